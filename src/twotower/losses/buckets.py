"""Softmax over the items that happen to lie near a query: hard candidates found by random directions."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from ..errors import ConfigError
from ..records import Batch, Block, Encoded, Ragged, spans
from ..scoring import DEFAULT_TILE
from .softmax import SampledSoftmax


class BucketedSoftmax(SampledSoftmax):
    """Sampled softmax of each query over the candidates of its bucket alone: scalable cross-entropy (SCE).

    ``buckets`` random directions are drawn each step. A bucket holds the ``queries`` queries and the ``items``
    candidates with the greatest products with its direction, so both lie near each other: most of the softmax's mass
    at a fraction of its places. A query of several buckets keeps the one with the largest loss; one of none has no
    loss in this step. Use it over many candidates, such as ``Catalogue()``; corrections and exclusions are those of
    ``SampledSoftmax``. Without settings there are 2 sqrt(B) buckets of 2 sqrt(B) queries. ``mix`` makes directions of
    the batch's own queries, which follow their distribution.

    The mean is over the weight of the queries that have a loss.

    Source: Mezentsev et al., RecSys 2024, arXiv 2409.18721, algorithm 1.
    """

    buckets: int | None = None
    queries: int | None = None
    items: int = 256
    mix: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value in (("buckets", self.buckets), ("queries", self.queries), ("items", self.items)):
            if value is not None and value < 1:
                raise ConfigError(f"loss.{name} of BucketedSoftmax: found {value}, expected at least 1")
        if self.renormalise or (self.correction != "none" and self.strength != 1):
            found, expected = ("renormalise", "false") if self.renormalise else ("strength", "1")
            raise ConfigError(
                f"loss.{found} of BucketedSoftmax: found {getattr(self, found)}, expected {expected}: it goes by all "
                "counts of a batch, of which a bucket sees its own"
            )

    def forward(
        self, encoded: Encoded, *, tile: int | None = DEFAULT_TILE, gemm: torch.dtype | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Choose each query's bucket by loss without gradient, then compare each query in its own."""
        chosen, column_GY = self._buckets(encoded)
        best_B = self._hardest(encoded, chosen, column_GY, tile, gemm)
        has_loss_P = (best_B >= 0).index_select(0, encoded.batch.of_P)
        total_weight = encoded.batch.weight_P[has_loss_P].sum()
        notes = {
            "loss": torch.zeros_like(encoded.positive_log_count_P, dtype=encoded.query_BD.dtype),
            "alive": torch.ones_like(has_loss_P),
            "excluded_share": torch.zeros(()),
        }
        total = 0 * (encoded.query_BD.sum() + encoded.column_ND.sum() + encoded.table_TD.sum())
        for bucket, query_b in _grouped(best_B):
            part, pair_p = part_of(encoded, query_b, column_GY[bucket], total_weight)
            loss, noted = super().forward(part, tile=tile, gemm=gemm)
            total = total + loss
            notes["loss"][pair_p], notes["alive"][pair_p] = noted["loss"], noted["alive"]
            notes["excluded_share"] = notes["excluded_share"] + noted["excluded_share"] * len(query_b) / len(best_B)
        return total, notes

    @torch.no_grad()
    def _buckets(self, encoded: Encoded) -> tuple[Tensor, Tensor]:
        """Rows of queries [G, X] and columns [G, Y] of each bucket, columns rising."""
        query_BD, column_ND = encoded.query_BD, encoded.column_ND
        usual = max(1, round(2 * math.sqrt(len(query_BD))))
        shape = (self.buckets or usual, len(query_BD) if self.mix else query_BD.shape[1])
        direction = torch.randn(shape, dtype=query_BD.dtype, device=query_BD.device)
        if self.mix:
            direction = direction @ query_BD
        nearest = (direction @ query_BD.T).topk(min(self.queries or usual, len(query_BD)), 1).indices
        columns = (direction @ column_ND.T).topk(min(self.items, len(column_ND)), 1).indices
        return nearest, columns.sort(1).values

    @torch.no_grad()
    def _hardest(
        self, encoded: Encoded, query_GX: Tensor, column_GY: Tensor, tile: int | None, gemm: torch.dtype | None
    ) -> Tensor:
        """[B] the bucket in which each query loses most, -1 where it is in none."""
        of_P, n_queries = encoded.batch.of_P, len(encoded.query_BD)
        worst_B = torch.full((n_queries,), -math.inf, dtype=encoded.query_BD.dtype, device=of_P.device)
        best_B = torch.full((n_queries,), -1, dtype=torch.int64, device=of_P.device)
        for bucket, query_X in enumerate(query_GX):
            query_b = query_X.sort().values
            part, pair_p = part_of(encoded, query_b, column_GY[bucket], encoded.total_weight)
            _, noted = super().forward(part, tile=tile, gemm=gemm)
            lost_B = torch.zeros_like(worst_B).index_add_(0, of_P[pair_p], noted["loss"])
            harder = ~(lost_B[query_b] <= worst_B[query_b])  # not a number is not to be passed over
            worst_B[query_b] = torch.where(harder, lost_B[query_b], worst_B[query_b])
            best_B[query_b] = torch.where(harder, bucket, best_B[query_b])
        return best_B


def _grouped(bucket_B: Tensor) -> Iterator[tuple[int, Tensor]]:
    """(bucket, its queries, rising) of every bucket that has any."""
    order = torch.sort(bucket_B, stable=True).indices
    found, count = bucket_B[order].unique_consecutive(return_counts=True)
    for bucket, query_b in zip(found.tolist(), order.split(count.tolist()), strict=True):
        if bucket >= 0:
            yield bucket, query_b


def part_of(encoded: Encoded, query_b: Tensor, column_y: Tensor, total_weight: Tensor) -> tuple[Encoded, Tensor]:
    """Some queries of a batch against some of the shared columns (both rising), and which pairs are theirs."""
    batch = encoded.batch
    count_B = batch.of_P.bincount(minlength=len(batch.query_B))
    first_B = count_B.cumsum(0) - count_B
    _, pair_p = spans(first_B[query_b], count_B[query_b])
    of_p = torch.repeat_interleave(torch.arange(len(query_b), device=query_b.device), count_B[query_b])
    part = Batch(
        query={},
        query_B=batch.query_B[query_b],
        item_P=batch.item_P[pair_p],
        of_P=of_p,
        weight_P=batch.weight_P[pair_p],
        known=Ragged(offset=batch.known.offset, value=batch.known.value).take(query_b),
        live=None if batch.live is None else batch.live.take(query_b),
    )
    return replace(
        encoded,
        batch=part,
        query_BD=encoded.query_BD.index_select(0, query_b),
        positive_slot_P=encoded.positive_slot_P[pair_p],
        column_ND=encoded.column_ND.index_select(0, column_y),
        shared=_columns(encoded.shared, column_y, query_b),
        slot_BK=encoded.slot_BK[query_b],
        own=_rows(encoded.own, query_b),
        positive_log_count_P=encoded.positive_log_count_P[pair_p],
        total_weight=total_weight,
    ), pair_p


def _columns(shared: Block, column_y: Tensor, query_b: Tensor) -> Block:
    log_count = shared.log_count if shared.log_count.dim() == 1 else shared.log_count[query_b]
    return replace(
        shared,
        row=shared.row[column_y],
        log_count=log_count[..., column_y],
        log_weight=shared.log_weight[column_y],
    )


def _rows(own: Block, query_b: Tensor) -> Block:
    return replace(own, row=own.row[query_b], log_count=own.log_count[query_b], log_weight=own.log_weight[query_b])
