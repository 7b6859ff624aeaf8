"""What becomes of the places that a sampler fills: repeats, exclusions, distinct candidates."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..records import NEG_INF
from .subject import Step


@dataclass(frozen=True, kw_only=True)
class Offers:
    """Means over the batches."""

    places: float
    """Candidates of a query as drawn: shared and its own, empty places left out."""
    distinct: float
    """Different items among them."""
    merged: float
    """Share of the shared places that repeat an item, and are merged into one column."""
    repeated: float
    """Share of the places of a query's own that repeat one of its own."""
    excluded: float
    """Share of the merged places (line, candidate) that the loss left out: known items and accidental hits."""
    without_candidate: float
    """Share of the positives that had no candidate left, and so no loss."""
    item_rows: float
    """Distinct items that a batch sends through the item tower."""


class OffersTally:
    """Adds up batches."""

    def __init__(self) -> None:
        self.per_batch: list[dict[str, float]] = []

    def add(self, step: Step) -> None:
        """One batch."""
        self.per_batch.append(_of(step))

    def result(self) -> Offers:
        """Means; shares of places are of those of all batches."""

        def total(name: str) -> float:
            return sum(batch[name] for batch in self.per_batch)

        n = max(len(self.per_batch), 1)
        return Offers(
            places=total("places") / n,
            distinct=total("distinct") / n,
            merged=total("merged") / max(total("shared"), 1),
            repeated=total("repeated") / max(total("own"), 1),
            excluded=total("excluded") / n,
            without_candidate=total("alone") / max(total("positives"), 1),
            item_rows=total("item_rows") / n,
        )


def _of(step: Step) -> dict[str, float]:
    shared = [block for block in step.candidates.blocks if block.row.dim() == 1 and block.vector is None]
    own = [block for block in step.candidates.blocks if block.row.dim() == 2 and block.mix is None]
    shared_N = torch.cat([step.batch.item_P[:0], *(b.row[b.log_weight > NEG_INF] for b in shared)])
    distinct_U, n_queries = shared_N.unique(), max(len(step.batch.query_B), 1)
    own_BK = torch.cat(
        [
            step.batch.item_P.new_zeros(len(step.batch.query_B), 0),
            *(b.row.masked_fill(b.log_weight == NEG_INF, -1) for b in own),
        ],
        1,
    )
    first_BK, row_BK = _first_of_equals(own_BK)
    there = int((own_BK >= 0).sum())
    new = int((first_BK & ~torch.isin(row_BK, distinct_U)).sum())
    return {
        "shared": len(shared_N),
        "own": there,
        "merged": len(shared_N) - len(distinct_U),
        "repeated": there - int(first_BK.sum()),
        "places": len(shared_N) + there / n_queries,
        "distinct": len(distinct_U) + new / n_queries,
        "excluded": float(step.notes["excluded_share"]),
        "alone": int((~step.notes["alive"]).sum()),
        "positives": len(step.batch.item_P),
        "item_rows": int((step.encoded.row_T >= 0).sum()),
    }


def _first_of_equals(row_BK: Tensor) -> tuple[Tensor, Tensor]:
    """Rows sorted a line, and which of them are an item for the first time; -1 is none."""
    sorted_BK = row_BK.sort(1).values
    first_BK = sorted_BK >= 0
    first_BK[:, 1:] &= sorted_BK[:, 1:] != sorted_BK[:, :-1]
    return first_BK, sorted_BK
