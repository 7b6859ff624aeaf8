"""Both ways at once: queries look for items, items for queries."""

from __future__ import annotations

from dataclasses import field, replace
from typing import Self

import torch
from torch import Tensor

from ..errors import ConfigError, DataError
from ..frequency import log_of_at_least_one
from ..part import Facts
from ..records import Batch, Block, Encoded, LiveAt, Lives, Ragged, find, running_sum
from ..scoring import DEFAULT_TILE
from .binary import GBCE, NCE
from .row_loss import Loss, RowLoss
from .softmax import SampledSoftmax


class Symmetric(Loss):
    """(1 - weight) L(query -> items) + weight L(item -> queries), L one and the same loss, its temperature shared.

    Seen from an item, the candidates are the queries of the batch, each distinct one once; those known to like the item
    are excluded, and those that ask while it is not live. Where L is corrected, the other way is corrected with the
    counts of the queries: the probability that a query is in the batch, log(1 - (1 - q)^(B - 1)).

    Raises ConfigError where weight is not between 0 and 1, where L excludes nothing, where it keeps something for each
    query (``AdvInfoNCE``, ``AdapTau`` with a finite beta), which items have not, and for ``GBCE`` and ``NCE``, which
    are made for items that are drawn.

    Source: Radford et al., CLIP, ICML 2021, figure 3 (both directions of the batch, weight 1/2); the correction is that
    of Yi et al., RecSys 2019, with the sides exchanged.
    """

    of: RowLoss = field(default_factory=SampledSoftmax)
    weight: float = 0.5

    log_presence_Q: Tensor = field(init=False)
    """[Q] log P(query is in the batch)."""

    def __post_init__(self) -> None:
        if not 0 < self.weight < 1:
            raise ConfigError(f"loss.weight of Symmetric: found {self.weight}, expected between 0 and 1")
        if self.of.exclude == "none":
            raise ConfigError(
                "loss.of.exclude of Symmetric: found 'none', but the other way round there is nothing like it: use "
                "'known' or 'positives'"
            )
        if isinstance(self.of, GBCE | NCE):
            raise ConfigError(
                f"loss.of of Symmetric: found {type(self.of).__name__}, whose formula has the number of items or their "
                "law in it, but the other way round queries of the batch are drawn: use another loss, such as "
                "SampledSoftmax"
            )
        if self.of.knows_queries:
            raise ConfigError(
                f"loss.of of Symmetric: found {type(self.of).__name__}, which keeps something for each query, but the "
                "other way round items take the place of queries: use another loss, such as SampledSoftmax"
            )

    def setup(self, facts: Facts) -> None:
        count_Q = facts.query_count_Q.double()
        if facts.batch_of == "queries":
            count_Q = (count_Q > 0).double()
        if not float(count_Q.sum()) > 0:
            raise ConfigError("loss: Symmetric compares items with queries, but queries have no id: name one")
        log_presence_Q = log_of_at_least_one(count_Q / count_Q.sum(), facts.batch_size - 1)
        # Follows from the data, so it is not saved.
        self.register_buffer("log_presence_Q", log_presence_Q.float(), persistent=False)
        self.of.setup(facts)

    def uses_counts(self) -> bool:
        return self.of.uses_counts()

    def reads_counts(self) -> bool:
        return self.of.reads_counts()

    def compared(self) -> Loss:
        return self.of

    def current_temperature(self) -> Tensor | float:
        """That of the loss."""
        return self.of.current_temperature()

    def keep(self, first: Self) -> None:
        self.of.keep(first.of)

    def constrain(self) -> None:
        self.of.constrain()

    def observe(self, encoded: Encoded, notes: dict[str, Tensor]) -> None:
        """The loss learns from queries that look for items, once a step."""
        self.of.observe(encoded, notes)

    def forward(
        self, encoded: Encoded, *, tile: int | None = DEFAULT_TILE, gemm: torch.dtype | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Both; the notes are those of queries looking for items."""
        there, notes = self.of(encoded, tile=tile, gemm=gemm)
        back, _ = self.of(turned(encoded, self.log_presence_Q), tile=tile, gemm=gemm)
        return (1 - self.weight) * there + self.weight * back, notes


def turned(encoded: Encoded, log_presence_Q: Tensor) -> Encoded:
    """The same batch seen from its positive items: each is a query now, and looks for the queries of the batch."""
    batch = encoded.batch
    nameless = int((batch.query_B < 0).sum())
    if nameless:
        raise DataError(
            f"training: {nameless} of {len(batch.query_B)} events of a batch have no query id, which Symmetric finds "
            "queries by: leave such events out, or choose another loss"
        )
    slot_U, of_P = encoded.positive_slot_P.unique(return_inverse=True)
    by_item = torch.sort(of_P, stable=True).indices
    by_row = torch.sort(batch.query_B, stable=True).indices
    row_B = batch.query_B[by_row]
    _, at, times = row_B.unique_consecutive(return_inverse=True, return_counts=True)
    log_weight_B = -times.to(encoded.query_BD.dtype).log()[at]  # a query that is there twice is one candidate
    query_P = batch.query_B.index_select(0, batch.of_P)
    return Encoded(
        batch=Batch(
            query={},
            query_B=encoded.row_T[slot_U],
            item_P=query_P[by_item],
            of_P=of_P[by_item],
            weight_P=batch.weight_P[by_item],
            known=_knowing(batch, encoded.row_T[slot_U]),
            live=_there_for(batch, encoded.row_T[slot_U]),
        ),
        query_BD=encoded.table_TD.index_select(0, slot_U),
        table_TD=encoded.query_BD,
        row_T=batch.query_B,
        positive_slot_P=batch.of_P[by_item],
        column_ND=encoded.query_BD.index_select(0, by_row),
        shared=Block(
            row=row_B,
            log_count=log_presence_Q[row_B].to(encoded.query_BD.dtype),
            log_weight=log_weight_B,
            of_batch=True,
        ),
        slot_BK=encoded.slot_BK.new_empty(len(slot_U), 0),
        own=replace(
            encoded.own,
            row=encoded.own.row.new_empty(len(slot_U), 0),
            log_count=encoded.own.log_count.new_empty(len(slot_U), 0),
            log_weight=encoded.own.log_weight.new_empty(len(slot_U), 0),
        ),
        positive_log_count_P=log_presence_Q[query_P[by_item]].to(encoded.query_BD.dtype),
        total_weight=encoded.total_weight,
    )


def _knowing(batch: Batch, item_U: Tensor) -> Ragged:
    """[U] lists of the queries of the batch that know each of the items (rising rows), rising and distinct."""
    owner, item = batch.known.owner(), batch.known.value
    at, found = find(item_U, item)
    pairs = torch.stack([at[found], batch.query_B[owner[found]]], 1).unique(dim=0)
    length = pairs[:, 0].bincount(minlength=len(item_U))
    return Ragged(offset=running_sum(length), value=pairs[:, 1].contiguous())


def _there_for(batch: Batch, item_U: Tensor) -> LiveAt | None:
    """For each of the items the queries that ask at a moment of its life: a life the other way round. A query that asks
    at several moments of the batch is there from the first to the last."""
    if batch.live is None:
        return None
    first_us_B, last_us_B, lives = batch.live.first_us_n, batch.live.last_us_n, batch.live.lives
    n_rows = int(batch.query_B.max()) + 1
    since_us_Q = first_us_B.new_full((n_rows,), torch.iinfo(torch.int64).max)
    until_us_Q = last_us_B.new_full((n_rows,), torch.iinfo(torch.int64).min)
    since_us_Q.scatter_reduce_(0, batch.query_B, first_us_B, "amin")
    until_us_Q.scatter_reduce_(0, batch.query_B, last_us_B + 1, "amax")
    return LiveAt(
        lives=Lives(since_us_M=since_us_Q, until_us_M=until_us_Q),
        first_us_n=lives.since_us_M[item_U],
        last_us_n=lives.until_us_M[item_U] - 1,
    )
