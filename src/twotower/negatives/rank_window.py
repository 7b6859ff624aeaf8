"""Hard candidates by their rank in an older version of the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..errors import ConfigError
from ..part import Changes, Facts
from ..records import NEG_INF, Batch, Block, Ragged, find, running_sum
from ..scoring import tile_for
from .drawing import best, some_of
from .live import LiveRows
from .room import Room, Sizes
from .sampler import Look, Sampler, require_some
from .scores import snapshot


class RankWindow(Sampler):
    """n different items for each query, evenly from its ranks ``first`` to ``last`` among all items.

        count_u(i) = n / (last - first + 1) for the items there, 0 for all others

    Ranked are the scores of the current query vector with a snapshot of all item vectors, without what the query is
    known to like and what is not live at its time. The snapshot is of the model as it is before step ``after`` + 1, and
    taken anew every ``refresh_every`` steps; the first ``after`` steps have no candidates from here. Ranks before
    ``first`` are left out because they hold too many positives nobody knows of. Where a query has fewer than ``last``
    items to rank, its window ends there, and holds all the same n, or all there are.

    Hard candidates alone train worse than random ones alone: take a hundred easy ones for each, as in
    ``Uniform(100, per_query=True) + RankWindow(1)``. Alone, no positive ever has a chance to be drawn, so losses that
    correct the positive too have nothing to correct it by. The density is exact.

    Choose it over ``DNS`` where a pool of some hundred random items is never hard enough. It is not cheap: a step
    ranks the whole catalogue for each query, B * M * D products and a selection of ``last`` among M, tile by tile: two
    seconds for 1,024 queries and 100,000 items of 64 numbers on one core. A refresh encodes all items. So it is for
    catalogues of up to about a million on a CPU, there with small batches. The snapshot takes M * D * 4 bytes, also
    in checkpoints: a run that goes on ranks by the same one.

    Raises ConfigError where n is below 1, the window or ``refresh_every`` is no such thing, ``after`` is negative, or
    ``first`` is beyond the catalogue.

    Source: Huang et al., Embedding-based retrieval in Facebook search (KDD 2020), section 6.1: offline hard negatives
    from ranks 101-500. Refreshed while training: Xiong et al., Approximate nearest neighbor negative contrastive
    learning for dense text retrieval (ICLR 2021), which ranks by an approximate index and encodes in parallel.
    """

    density = "exact"
    leaves_out_positives = True
    per_query_law = True

    n: int = field(default=1, kw_only=False)
    first: int = 101
    last: int = 500
    refresh_every: int = 1000
    """Steps between two snapshots."""
    after: int = 0
    """Steps before the first snapshot."""

    item_MD: Tensor = field(init=False)
    """The snapshot."""
    taken_at: Tensor = field(init=False)
    """Step that the snapshot was taken before; 0: there is none."""
    live: LiveRows = field(init=False)
    windows: Windows | None = field(init=False)
    """Those of the last draw."""

    def __post_init__(self) -> None:
        require_some(self, self.n)
        if not 1 <= self.first <= self.last:
            raise ConfigError(f"RankWindow: ranks {self.first} to {self.last}, expected 1 <= first <= last")
        if self.refresh_every < 1:
            raise ConfigError(f"RankWindow: refresh_every is {self.refresh_every}, expected at least 1 step")
        if self.after < 0:
            raise ConfigError(f"RankWindow: after is {self.after}, expected 0 or more steps")

    @property
    def idle_steps(self) -> int:
        """Those before the first snapshot."""
        return self.after

    def setup(self, facts: Facts) -> None:
        self.live = LiveRows(facts)
        if self.first > self.live.n:
            raise ConfigError(
                f"RankWindow: first is rank {self.first}, but there are {self.live.n} items: lower first and last"
            )
        device = facts.item_count_M.device
        self.register_buffer("item_MD", torch.zeros(facts.n_items, facts.width, device=device))
        self.register_buffer("taken_at", torch.zeros((), dtype=torch.int64, device=device))
        self.windows = None

    def carry(self, saved: Mapping[str, Tensor], changes: Changes) -> None:
        """Nothing: an old snapshot lacks the new items, so the next step takes another."""

    def room(self, sizes: Sizes) -> Room:
        return Room(own=self.n, kept=4 * sizes.n_items * sizes.width + 8) + LiveRows.room(sizes)

    def draw(self, batch: Batch, look: Look, rng: torch.Generator) -> tuple[Block, ...]:
        is_due = (look.step - self.after - 1) % self.refresh_every == 0 or not int(self.taken_at)
        if look.step > self.after and is_due:
            snapshot(self.item_MD, look)
            self.taken_at.fill_(look.step)
        self.windows = self._rank(batch, look)
        return (Block.chosen(some_of(self.windows.row_BW, self.n, rng)),)

    def log_count(self, row: Tensor, batch: Batch, look: Look) -> Tensor:
        windows = self.windows
        if windows is None or windows.batch is not batch or windows.query_BD is not look.query_BD:
            windows = self._rank(batch, look)
        size_B = windows.list_of_B.lengths()
        log_share_B = (size_B.clamp(max=self.n) / size_B).log()
        return torch.where(windows.hold(row), log_share_B[:, None], NEG_INF)

    def _rank(self, batch: Batch, look: Look) -> Windows:
        n_queries, n_items, query_BD = len(batch.query_B), len(self.item_MD), look.query_BD
        last = min(self.last, n_items)
        row_BW = batch.item_P.new_full((n_queries, last - self.first + 1), -1)
        if int(self.taken_at):
            step = tile_for(self.item_MD.device, n_items)
            for start in range(0, n_queries, step):
                stop = min(start + step, n_queries)
                score_CM = query_BD[start:stop].to(self.item_MD.dtype) @ self.item_MD.T
                known = batch.known.slice(start, stop)
                score_CM[known.owner(), known.value] = NEG_INF
                score_CM = self.live.only(score_CM)
                if batch.live is not None:
                    gone_CM = batch.live.slice(start, stop).gone(torch.arange(n_items, device=score_CM.device))
                    score_CM = score_CM.masked_fill(gone_CM, NEG_INF)
                row_BW[start:stop] = best(score_CM, last)[:, self.first - 1 :]
        return Windows.of(batch, query_BD, row_BW)


@dataclass(frozen=True, kw_only=True)
class Windows:
    """The items of each query's window, for one batch and its query vectors."""

    batch: Batch
    query_BD: Tensor
    row_BW: Tensor
    """-1 where the catalogue ends before the window does."""
    list_of_B: Ragged
    """The same, rising."""

    @staticmethod
    def of(batch: Batch, query_BD: Tensor, row_BW: Tensor) -> Windows:
        """Windows whose rows are in any order."""
        rising_BW = row_BW.sort(1).values
        offset = running_sum((row_BW >= 0).sum(1))
        return Windows(
            batch=batch,
            query_BD=query_BD,
            row_BW=row_BW,
            list_of_B=Ragged(offset=offset, value=rising_BW[rising_BW >= 0]),
        )

    def hold(self, row: Tensor) -> Tensor:
        """[B, N] whether each of [N] rows is in each window; of [B, K] rows, in that of its query."""
        if row.dim() == 2:
            return self.list_of_B.holds(row)
        distinct_U, where_N = row.unique(return_inverse=True)
        held_BU = torch.zeros(len(self.row_BW), len(distinct_U), dtype=torch.bool, device=row.device)
        at, found = find(distinct_U, self.list_of_B.value)
        held_BU[self.list_of_B.owner()[found], at[found]] = True
        return held_BU[:, where_N]
