"""What samplers, losses, towers and frequency estimates have in common: settings are fields, state is buffers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self, dataclass_transform

import torch
from torch import Tensor, nn

from .errors import ArtifactError
from .records import Features, Ragged


def _no_lists() -> Ragged:
    return Ragged(offset=torch.zeros(1, dtype=torch.int64), value=torch.zeros(0, dtype=torch.int64))


def _no_features(index: Tensor) -> Features:
    return {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Events:
    """The training events, as they are drawn into batches; all of them, where an epoch is thinned."""

    item_E: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    """Item row of each."""
    features: Callable[[Tensor], Features] = _no_features
    """Event numbers [n] -> the query features that a batch of them has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a part may need to know of the data and the run before it makes its parameters and buffers."""

    n_items: int
    n_queries: int
    """Distinct queries with at least one training event."""
    item_count_M: Tensor
    """[M] training events of each item, as they are drawn into batches of an epoch: whole numbers, or the expected ones
    (float64) where events are thinned."""
    batch_size: int
    """Pairs, or queries, of one global batch."""
    batch_of: str
    """``"pairs"`` or ``"queries"`` (a query comes with all its positives)."""
    query_count_Q: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    """[Q] training pairs of each query by its row, those without any included; expected ones (float64) where events are
    thinned."""
    steps_per_epoch: int = 1
    width: int = 0
    """Width of the vectors of both towers."""
    pairs: Ragged = field(default_factory=_no_lists)
    """[Q] lists of the distinct items each query has in training, rising, with their weights."""
    shown: Ragged = field(default_factory=_no_lists)
    """[Q] lists of the distinct items each query was shown in training and never took, rising; a weight counts how
    often."""
    passed_over: Ragged = field(default_factory=_no_lists)
    """[Q] those of ``shown`` that the query looked at before it took something further down, likewise."""
    events: Events = field(default_factory=Events)
    """The training events, without impressions."""
    item_number_M: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    """[M] a number that an item has for itself for good, for what is hashed by item; -1 for a row that is free. Empty:
    its row."""
    live_M: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.bool))
    """[M] which items may be drawn: those that are live at some moment of these events; of length 0 where all may."""

    @property
    def n_live(self) -> int:
        """Items that may be drawn."""
        return int(self.live_M.sum()) if len(self.live_M) else self.n_items

    def of_live(self, value_M: Tensor, other: float = 0) -> Tensor:
        """[M] the same values, and another one for items that may not be drawn."""
        return value_M.masked_fill(~self.live_M.to(value_M.device), other) if len(self.live_M) else value_M

    @property
    def item_share_M(self) -> Tensor:
        """[M] float64: share of each item of the training events; 0 for all where there are none."""
        count_M = self.item_count_M.double()
        return count_M / count_M.sum().clamp(min=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """Rows of a grown store that are not what they were in the one before: new, freed, or taken by another value.

    Row numbers never move, so whatever a model keeps of all other rows still holds.
    """

    item_M: Tensor
    """[M] bool, of the catalogue of items."""
    query_Q: Tensor
    """[Q] bool, of the catalogue of queries."""
    table: Mapping[str, Tensor]
    """By embedding table of the towers: [R] bool."""
    start: Mapping[str, Tensor] = field(default_factory=dict)
    """By embedding table whose values have rows of their own: [R] the row in which a value that is new there was looked
    up until now, its bucket; -1 for none."""

    def still(self, item: Tensor) -> Tensor:
        """Item rows of any shape, as they are; -1 where the row is of another item by now, or of none."""
        is_changed = self.item_M.to(item.device)[item.clamp(min=0).long()] & (item >= 0)
        return item.masked_fill(is_changed, -1)


@torch.no_grad()
def carry_rows(now: Tensor, saved: Tensor, changed_R: Tensor) -> None:
    """Rows [R, ...] of ``now`` become those saved, which may be fewer; changed ones stay as they are."""
    n, changed_R = min(len(now), len(saved)), changed_R.to(now.device)
    fresh_C = changed_R[:n].nonzero()[:, 0]
    fresh = now.index_select(0, fresh_C)
    now[:n].copy_(saved[:n])
    now.index_copy_(0, fresh_C, fresh)


@torch.no_grad()
def carry_tensors(module: nn.Module, saved: Mapping[str, Tensor], changed: Mapping[str, Tensor]) -> None:
    """Fill a module's own tensors with the saved ones of the same names.

    What the first axis of a tensor is, its name tells: ``changed["Q"]`` [Q] says which rows of ``loss_Q`` or
    ``memory_QS`` stay as they are. Tensors with another first axis are copied whole.

    Raises ArtifactError where a shape does not fit.
    """
    for name, value in saved.items():
        now: Tensor = getattr(module, name)
        changed_R = changed.get(name.rpartition("_")[2][:1])
        by_row = changed_R is not None and len(now) == len(changed_R)  # else it is empty: not kept with these settings
        if now.shape[by_row:] != value.shape[by_row:]:
            raise ArtifactError(
                f"{type(module).__name__}: its {name} was saved with the shape {tuple(value.shape)}, expected "
                f"{tuple(now.shape)}: use the run.toml beside the checkpoint"
            )
        if by_row:
            assert changed_R is not None
            carry_rows(now, value, changed_R)
        else:
            now.copy_(value)


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
        for setting in dataclasses.fields(cls):  # type: ignore[arg-type]
            if setting.default is None and setting.name in cls.__dict__:
                delattr(cls, setting.name)  # a class attribute would hide the part that an instance has there

    def __init__(self) -> None:  # replaced by the dataclass; nn.Module.__init__ already ran in __new__
        pass

    def setup(self, facts: Facts) -> None:
        """Make the parameters and buffers whose size depends on the data."""

    def make_room(self, shapes: dict[str, torch.Size]) -> None:
        """Before saved state is loaded: make the buffers that ``setup`` could not, whose sizes only the saved tell."""

    def carry(self, saved: Mapping[str, Tensor], changes: Changes) -> None:
        """Take over its own tensors (not those of the parts in it) as saved before the store grew, by their names.

        By the names of its buffers (``carry_tensors``): rows [M] of items and [Q] of queries stay as ``setup`` made
        them where they changed. A part of which that is not true, such as one that holds item rows, has its own.
        """
        carry_tensors(self, saved, {"M": changes.item_M, "Q": changes.query_Q})

    def extra_repr(self) -> str:
        return ", ".join(
            f"{f.name}={getattr(self, f.name)!r}"
            for f in dataclasses.fields(self)  # type: ignore[arg-type]
            if f.init and not isinstance(getattr(self, f.name), nn.Module)
        )
