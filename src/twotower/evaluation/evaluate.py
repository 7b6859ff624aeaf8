"""Evaluating a retrieval model over the full catalogue, from vectors."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import ConfigError, DataError
from ..records import LiveAt, Ragged, running_sum
from .baselines import RandomOrder, popularity_vectors
from .batch_recall import batch_recall as batch_recall_of
from .inputs import check_lists, check_vectors, check_weights, pairs
from .metrics import METRICS, WEIGHTED_METRICS, recall
from .ranks import Ranks
from .report import MODEL, BatchRecall, Evaluation, SliceSize, metric_names
from .slices import SLICES, Slices
from .topk import top_k_and_ranks

_QUERIES_PER_CHECK = 65_536


def evaluate(
    query_QD: Tensor,
    item_MD: Tensor,
    truth: Ragged,
    *,
    item_count_M: Tensor,
    seen: Ragged | None = None,
    live: LiveAt | None = None,
    k: Sequence[int] = (10, 100),
    tail_max: int = 50,
    head_share: float = 0.5,
    batch_recall: int | None = None,
    baselines: bool = True,
    memory_mb: float = 256.0,
) -> Evaluation:
    """Metrics of ranking the whole catalogue by inner product, a value a query first and then their mean.

    ``truth`` holds the relevant item rows of each query (distinct in a list) and may hold what each is worth as weight,
    ``seen`` those not to be listed to it (usually its training events), ``item_count_M`` the training events of each
    item. Relevant items that were seen, and queries that have no other, are left out and counted. With ``live`` each
    query is answered with the items that are live for it, in every row of the table; the others are no candidates, and
    where they are relevant left out and counted too.

    Reported, at each k (``metric_names``):

    - ``recall``, ``ndcg``, ``hit_rate``, ``precision``, ``mrr``, ``map``: formulas in ``metrics``, exact expectations
      over random orders of tied items;
    - ``weighted_recall``, where ``truth`` has weights: the share of their sum that is found;
    - ``recall@k_head``, ``_middle``, ``_tail``, ``_unseen``: recall of the relevant items in a slice of the catalogue
      (``Slices``), in the full ranking, over the queries that have any there;
    - ``coverage``: share of the catalogue, or of what is live for someone, that is listed to someone;
    - ``popularity``: training events of the items listed, mean of a query's list. In lists ties go to the lower row.

    With ``batch_recall``, a number of pairs, recall among the items of such batches (``batch_recall.batch_recall``)
    stands beside them, always the same pairs in a batch.

    With ``baselines`` two rows stand beside the model's: ``popularity``, the same code with training events as scores,
    and ``random``, the expectation over random orders.

    ``memory_mb`` bounds the working memory in MiB; not counted are what is given, 8 bytes for each query and metric of
    the result, and a few numbers for each relevant and seen item.

    Raises:
        DataError: vectors that are not finite, rows outside the catalogue, a repeated relevant item, a weight that is
            negative or not finite, sizes that do not fit together, or no relevant item at all.
        ConfigError: a setting out of range.
    """
    if not k or min(k) < 1:
        raise ConfigError(f"evaluation: k is {tuple(k)}, expected one or more places, each at least 1")
    check_vectors(query_QD, item_MD)
    if item_count_M.shape != (len(item_MD),):
        raise DataError(
            f"item_count_M: found {list(item_count_M.shape)} counts, expected one for each of the {len(item_MD)} items"
        )
    device = query_QD.device
    item_count_M = item_count_M.to(device)
    seen = None if seen is None else seen.to(device)
    live = None if live is None else live.to(device)
    relevant, n_pairs_seen, n_pairs_gone = _relevant(
        truth.to(device), seen, live, n_queries=len(query_QD), n_items=len(item_MD)
    )
    task = _Task(
        query_q=relevant.lengths().nonzero()[:, 0],
        truth=relevant,
        seen=seen,
        live=live,
        candidate_M=_candidates(live, len(item_MD), device),
        item_count_M=item_count_M,
        slices=Slices.of(item_count_M, tail_max=tail_max, head_share=head_share),
        k=tuple(sorted(set(k))),
        memory_mb=memory_mb,
    )
    start = time.perf_counter()
    tallies = {MODEL: task.rank(query_QD, item_MD)}
    seconds = time.perf_counter() - start
    if baselines:
        tallies["popularity"] = task.rank(*popularity_vectors(item_count_M, len(query_QD)))
        tallies["random"] = task.rank_at_random()
    return Evaluation(
        rows={name: tally.means() for name, tally in tallies.items()},
        per_query={name: tally.value_Q for name, tally in tallies.items()},
        slices=task.slice_sizes(),
        n_queries=len(task.query_q),
        n_queries_without_truth=len(query_QD) - len(task.query_q),
        n_pairs=len(relevant.value),
        n_pairs_seen=n_pairs_seen,
        n_pairs_gone=n_pairs_gone,
        n_items=int(task.candidate_M.sum()),
        seconds=seconds,
        batch_recall=None if batch_recall is None else task.batch_recall(query_QD, item_MD, batch_recall, baselines),
    )


class _Tally:
    """The metrics of one row of the table, gathered block by block."""

    def __init__(self, task: _Task) -> None:
        self._task = task
        self.value_Q: dict[str, Tensor] = {}
        self.coverage: dict[str, float] = {}
        self._listed_kM = {k: torch.zeros(task.n_items, dtype=torch.bool, device=task.device) for k in task.k}

    def put(self, name: str, query_b: Tensor, value_b: Tensor) -> None:
        """Values of some queries."""
        if name not in self.value_Q:
            self.value_Q[name] = torch.full((self._task.n_queries,), torch.nan, dtype=torch.float64)
        self.value_Q[name][query_b.cpu()] = value_b.double().cpu()

    def put_ranks(self, query_b: Tensor, ranks: Ranks, slice_T: Tensor) -> None:
        """Every metric of the ranks of some queries; ``slice_T`` is the slice of each relevant item."""
        parts = {name: ranks.only(slice_T == number) for number, name in enumerate(SLICES)}
        metrics = METRICS if ranks.weight_T is None else METRICS | WEIGHTED_METRICS
        for k in self._task.k:
            for name, metric in metrics.items():
                self.put(f"{name}@{k}", query_b, metric(ranks, k))
            for name, part in parts.items():
                self.put(f"recall@{k}_{name}", query_b, recall(part, k))

    def put_lists(self, query_b: Tensor, row_bk: Tensor) -> None:
        """What was listed to some queries."""
        there_bk = row_bk >= 0
        count_bk = torch.where(there_bk, self._task.item_count_M.double()[row_bk.clamp(min=0)], 0.0)
        for k, listed_M in self._listed_kM.items():
            self.put(f"popularity@{k}", query_b, count_bk[:, :k].sum(1) / there_bk[:, :k].sum(1))
            listed_M[row_bk[:, :k][there_bk[:, :k]]] = True
            self.coverage[f"coverage@{k}"] = float(listed_M[self._task.candidate_M].double().mean())

    def means(self) -> dict[str, float]:
        """The mean of every metric over the queries that have it, in the order of a report."""
        mean = {name: float(value_Q.nanmean()) for name, value_Q in self.value_Q.items()} | self.coverage
        return {name: mean[name] for name in metric_names(self._task.k, weighted=self._task.truth.weight is not None)}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Task:
    """What is asked of every row of the table: n queries with a relevant item, out of Q."""

    query_q: Tensor
    """Numbers of the queries that have a relevant item."""
    truth: Ragged
    """[Q] lists of relevant items that were not seen."""
    seen: Ragged | None
    live: LiveAt | None
    candidate_M: Tensor
    """Items that are candidates of some query."""
    item_count_M: Tensor
    slices: Slices
    k: tuple[int, ...]
    memory_mb: float

    @property
    def n_queries(self) -> int:
        return len(self.truth)

    @property
    def n_items(self) -> int:
        return len(self.item_count_M)

    @property
    def device(self) -> torch.device:
        return self.item_count_M.device

    def rank(self, query_QD: Tensor, item_MD: Tensor) -> _Tally:
        """A row whose scores are inner products."""
        tally = _Tally(self)
        for query_b in self._blocks():
            truth, seen = self._lists_of(query_b)
            top, ranks = top_k_and_ranks(
                query_QD.index_select(0, query_b),
                item_MD,
                self.k[-1],
                truth,
                exclude=seen,
                live=self._live_for(query_b),
                memory_mb=self.memory_mb / 2,
            )
            tally.put_ranks(query_b, ranks, self.slices.slice_M[truth.value])
            tally.put_lists(query_b, top.row_Qk)
        return tally

    def rank_at_random(self) -> _Tally:
        """The row of a random order."""
        tally = _Tally(self)
        log_unlisted_kM = {k: torch.zeros(self.n_items, dtype=torch.float64, device=self.device) for k in self.k}
        for query_b in self._blocks():
            truth, seen = self._lists_of(query_b)
            order = RandomOrder(
                seen, n_queries=len(query_b), item_count_M=self.item_count_M, live=self._live_for(query_b)
            )
            tally.put_ranks(query_b, order.ranks(truth, self.k[-1]), self.slices.slice_M[truth.value])
            for k in self.k:
                tally.put(f"popularity@{k}", query_b, order.popularity_Q())
                log_unlisted_kM[k] += order.log_unlisted_M(k)
        for k, log_unlisted_M in log_unlisted_kM.items():
            tally.coverage[f"coverage@{k}"] = float(-torch.expm1(log_unlisted_M[self.candidate_M]).mean())
        return tally

    def batch_recall(self, query_QD: Tensor, item_MD: Tensor, batch_size: int, baselines: bool) -> BatchRecall:
        """The same rows, measured in batches."""
        sides = {MODEL: (query_QD, item_MD)}
        if baselines:
            sides["popularity"] = popularity_vectors(self.item_count_M, self.n_queries)
            sides["random"] = popularity_vectors(torch.zeros_like(self.item_count_M), self.n_queries)
        return BatchRecall(
            batch_size=batch_size,
            n_pairs=len(self.truth.value),
            rows={
                name: batch_recall_of(*vectors, self.truth, seen=self.seen, live=self.live, batch_size=batch_size)
                for name, vectors in sides.items()
            },
        )

    def slice_sizes(self) -> tuple[SliceSize, ...]:
        """How much there is in each slice."""
        events, owner_T = self.slices.events(), self.truth.owner()
        slice_T = self.slices.slice_M[self.truth.value]
        return tuple(
            SliceSize(
                name=name,
                events=events[name],
                n_items=int((self.slices.slice_M[self.candidate_M] == number).sum()),
                n_queries=len(owner_T[slice_T == number].unique()),
                n_pairs=int((slice_T == number).sum()),
            )
            for number, name in enumerate(SLICES)
        )

    def _blocks(self) -> Iterator[Tensor]:
        """Queries a few at a time: their lists, and two dozen float64 numbers for each place, in half of the memory."""
        n_queries = int(self.memory_mb / 2 * 2**20 / (192 * (self.k[-1] + 1)))
        yield from self.query_q.split(max(1, n_queries))

    def _lists_of(self, query_b: Tensor) -> tuple[Ragged, Ragged | None]:
        return self.truth.take(query_b), None if self.seen is None else self.seen.take(query_b)

    def _live_for(self, query_b: Tensor) -> LiveAt | None:
        return None if self.live is None else self.live.take(query_b)


def _candidates(live: LiveAt | None, n_items: int, device: torch.device) -> Tensor:
    """[M] items that are live for some query."""
    if live is None:
        return torch.ones(n_items, dtype=torch.bool, device=device)
    since_us_M, until_us_M = live.lives.since_us_M, live.lives.until_us_M
    first_us_Q, last_us_Q = live.first_us_n.sort().values, live.last_us_n.sort().values
    too_early_M = torch.searchsorted(last_us_Q, since_us_M)
    too_late_M = len(first_us_Q) - torch.searchsorted(first_us_Q, until_us_M)
    return too_early_M + too_late_M < len(first_us_Q)


def _relevant(
    truth: Ragged, seen: Ragged | None, live: LiveAt | None, *, n_queries: int, n_items: int
) -> tuple[Ragged, int, int]:
    """The relevant items that were not seen and are live; how many were seen, and how many of the others are not live.
    Lists are checked."""
    check_lists("truth", truth, n_queries=n_queries, n_items=n_items, distinct=True)
    check_weights("truth", truth)
    n_all = len(truth.value)
    if seen is not None:
        check_lists("seen", seen, n_queries=n_queries, n_items=n_items)
        truth = _only(truth, ~_listed(truth, seen, n_items))
    n_unseen = len(truth.value)
    if live is not None:
        truth = _only(truth, ~live.take(truth.owner()).gone(truth.value[:, None])[:, 0])
    if len(truth.value) == 0:
        or_gone = "" if live is None else " and that is live"
        raise DataError(
            f"truth: none of the {n_queries} queries has a relevant item that it has not seen{or_gone}, expected at "
            "least one; check the split, or list seen items too"
        )
    return truth, n_all - n_unseen, n_unseen - len(truth.value)


def _listed(truth: Ragged, seen: Ragged, n_items: int) -> Tensor:
    """[T] which relevant items were seen."""
    parts = []
    for start in range(0, len(truth), _QUERIES_PER_CHECK):
        stop = min(start + _QUERIES_PER_CHECK, len(truth))
        parts.append(torch.isin(pairs(truth.slice(start, stop), n_items), pairs(seen.slice(start, stop), n_items)))
    return torch.cat(parts)


def _only(lists: Ragged, kept: Tensor) -> Ragged:
    """The lists with the values that are kept."""
    length = torch.bincount(lists.owner()[kept], minlength=len(lists))
    weight = None if lists.weight is None else lists.weight[kept]
    return Ragged(offset=running_sum(length), value=lists.value[kept], weight=weight)
