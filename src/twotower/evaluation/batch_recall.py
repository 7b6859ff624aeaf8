"""Recall among the items of a batch: what some publications report, and far easier than the whole catalogue."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import ConfigError
from ..records import NEG_INF, LiveAt, Ragged
from .inputs import check_lists, check_vectors

BATCH_K = (1, 5, 10)
_MOST_SCORES = 4 * 2**20


def batch_recall(
    query_QD: Tensor,
    item_MD: Tensor,
    truth: Ragged,
    *,
    seen: Ragged | None = None,
    live: LiveAt | None = None,
    batch_size: int = 350,
    k: Sequence[int] = BATCH_K,
    seed: int = 0,
) -> dict[str, float]:
    """Share of held-out pairs (query, item) whose item is among the k best of the items of their batch.

    The pairs of ``truth`` are shuffled by ``seed`` and dealt into batches; those that fill no batch are left out, as a
    smaller one would be easier. A pair's item competes with the other distinct items of its batch, without those that
    are true for the query as well, those in its list of ``seen`` and those not ``live`` for it: to rank these above it
    is no mistake. Items of equal score stand in random order, and the value is the expectation over it: of ``e`` tied
    items, the pair's own among them, after ``a`` greater ones, it is ``clamp((k - a) / e, 0, 1)``.

    Returns ``batch_recall@k`` for each k, nan where no batch is full. Every pair counts alike, so a query with many
    items counts often: it is no mean over queries.

    Source: Li et al., EMNLP 2023 Industry Track (batch recall@k in batches of 350 pairs).

    Raises:
        DataError: as ``top_k``.
        ConfigError: a batch or a k too small.
    """
    if batch_size < 2 or not k or min(k) < 1:
        raise ConfigError(
            f"batch recall: batch_size is {batch_size} and k is {tuple(k)}, expected batches of 2 pairs or more, and "
            "one or more places, each at least 1"
        )
    check_vectors(query_QD, item_MD)
    check_lists("truth", truth, n_queries=len(query_QD), n_items=len(item_MD), distinct=True)
    if seen is not None:
        check_lists("seen", seen, n_queries=len(query_QD), n_items=len(item_MD))
    query_T, item_T = truth.owner(), truth.value
    order_T = torch.randperm(len(item_T), generator=torch.Generator().manual_seed(seed)).to(item_T.device)
    known = [truth] if seen is None else [truth, seen]
    hits_k = torch.zeros(len(k), dtype=torch.float64, device=item_T.device)
    n_pairs = len(item_T) // batch_size * batch_size
    for start in range(0, n_pairs, batch_size):
        pair_B = order_T[start : start + batch_size]
        item_U = item_T[pair_B].unique()
        vector_UD = item_MD.index_select(0, item_U).to(query_QD.device).float()
        for pair_b in pair_B.split(max(1, _MOST_SCORES // len(item_U))):
            query_b, slot_b = query_T[pair_b], torch.searchsorted(item_U, item_T[pair_b])
            score_bU = query_QD.index_select(0, query_b).float() @ vector_UD.T
            own_b1 = score_bU.gather(1, slot_b[:, None])
            for lists in known:
                _take_out(score_bU, lists.take(query_b), item_U)
            if live is not None:
                score_bU.masked_fill_(live.take(query_b).gone(item_U), NEG_INF)
            above_b, tied_b = (score_bU > own_b1).sum(1), 1 + (score_bU == own_b1).sum(1)
            for at, places in enumerate(k):
                hits_k[at] += ((places - above_b).double() / tied_b).clamp(0.0, 1.0).sum()
    return {
        f"batch_recall@{places}": hits / n_pairs if n_pairs else math.nan
        for places, hits in zip(k, hits_k.tolist(), strict=True)
    }


def _take_out(score_bU: Tensor, lists: Ragged, item_U: Tensor) -> None:
    """Set the scores of each query's listed items to -inf."""
    at = torch.searchsorted(item_U, lists.value).clamp(max=len(item_U) - 1)
    there = item_U[at] == lists.value
    score_bU[lists.owner()[there], at[there]] = NEG_INF
