"""The rows of the catalogue that may be drawn: those that are live in the period that is trained on."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..part import Facts
from ..records import NEG_INF
from .room import Room, Sizes


class LiveRows(nn.Module):
    """All rows, or those of ``Facts.live_M``. Nothing is kept where all may be drawn."""

    live_M: Tensor | None
    row_L: Tensor | None

    def __init__(self, facts: Facts) -> None:
        super().__init__()
        self.n_items, self.n = facts.n_items, facts.n_live
        if not self.n:
            raise ConfigError(
                f"negatives: none of the {facts.n_items:,} items is live at the times that are trained on, so nothing "
                "can be drawn: check schema.life"
            )
        # Follow from the data, so they are not saved: tomorrow other items are live.
        live_M = facts.live_M if self.n < self.n_items else None
        self.register_buffer("live_M", live_M, persistent=False)
        self.register_buffer("row_L", None if live_M is None else live_M.nonzero()[:, 0], persistent=False)

    def rows(self, device: torch.device) -> Tensor:
        """[n] all of them, rising."""
        return torch.arange(self.n_items, device=device) if self.row_L is None else self.row_L.to(device)

    def draw(self, shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
        """Rows of that shape, each equally likely, independent; on the device of the generator."""
        place = torch.randint(self.n, shape, generator=rng, device=rng.device)
        return place if self.row_L is None else self.row_L.to(rng.device)[place]

    def gone(self, row: Tensor) -> Tensor:
        """Shape of ``row``: whether rows may not be drawn."""
        return torch.zeros_like(row, dtype=torch.bool) if self.live_M is None else ~self.live_M[row]

    def only(self, log_value: Tensor, row: Tensor | None = None) -> Tensor:
        """The same logs of rows ``row``, or along the last axis of the whole catalogue, -inf where they may not be
        drawn."""
        if self.live_M is None:
            return log_value
        return log_value.masked_fill(~self.live_M if row is None else self.gone(row), NEG_INF)

    @staticmethod
    def room(sizes: Sizes) -> Room:
        """What is kept."""
        return Room(kept=9 * sizes.n_items if sizes.some_come_and_go else 0)
