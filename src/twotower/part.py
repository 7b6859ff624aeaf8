"""What samplers, losses, towers and frequency estimates have in common: settings are fields, state is buffers."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Self, dataclass_transform

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a part may need to know of the data and the run before it makes its parameters and buffers."""

    n_items: int
    n_queries: int
    """Distinct queries with at least one training event."""
    item_count_M: Tensor
    """[M] training events of each item, as they are drawn into batches."""
    batch_size: int
    """Pairs, or queries, of one global batch."""
    batch_of: str
    """``"pairs"`` or ``"queries"`` (a query comes with all its positives)."""
    query_count_Q: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    """[Q] training pairs of each query by its row, those without any included."""
    steps_per_epoch: int = 1
    width: int = 0
    """Width of the vectors of both towers."""


@dataclass_transform(kw_only_default=True, eq_default=False, field_specifiers=(dataclasses.field,))
class Part(nn.Module):
    """An ``nn.Module`` whose keyword-only dataclass fields are its settings.

    Parameters and buffers are its state. They are made in ``setup`` when their size depends on the data (the catalogue,
    the number of queries): until then a part is a recipe with an empty ``state_dict``. The trainer sets up a deep copy,
    so two runs of one recipe never share state.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        self = super().__new__(cls)
        nn.Module.__init__(self)
        return self

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        dataclass(kw_only=True, eq=False, repr=False)(cls)

    def __init__(self) -> None:  # replaced by the dataclass; nn.Module.__init__ already ran in __new__
        pass

    def setup(self, facts: Facts) -> None:
        """Make the parameters and buffers whose size depends on the data."""

    def extra_repr(self) -> str:
        return ", ".join(
            f"{f.name}={getattr(self, f.name)!r}"
            for f in dataclasses.fields(self)  # type: ignore[arg-type]
            if f.init and not isinstance(getattr(self, f.name), nn.Module)
        )
