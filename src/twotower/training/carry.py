"""A model goes on where its store has grown: what it learned of rows that are still the same is carried over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ArtifactError
from ..optimisers import RowOptimiser
from ..part import Changes, Part, carry_tensors
from ..tables import Table
from . import checkpoint
from .step import Model


def carry_over(
    folder: Path, model: Model, changes: Changes, optimiser: torch.optim.Optimizer | None = None
) -> dict[str, Any]:
    """Fill a model that was just made on the grown store from a checkpoint of the store before; returns its state.

    State of rows that did not change (weights, what optimisers, samplers, losses and frequencies remember of them)
    comes back bit for bit; changed rows start anew (``Table.carry``, ``Part.carry``). Layers, learned settings and the
    dense optimiser come back whole. ``changes`` are those from the checkpoint's store to the model's
    (``data.changes``).

    Raises ArtifactError where the checkpoint is missing, damaged or of another run, and ConfigError where a part can't
    be carried over (``HierarchicalSoftmax``).
    """
    state = checkpoint.read_state(folder)
    saved, of_optimiser = checkpoint.read_tensors(folder)
    paths = {module: path for path, module in model.named_modules()}
    _check_names(folder, model, saved)

    def own(module: nn.Module) -> dict[str, Tensor]:
        prefix = f"{paths[module]}." if paths[module] else ""
        return {name: saved[prefix + name] for name in module.state_dict() if "." not in name}

    of_tables = {model.towers.table(name): name for name in changes.table}
    for _, table, row_optimiser in model.tables():
        name = of_tables.get(table)
        changed_R = _changed_rows(table, changes) if name is None else changes.table[name]
        table.carry(own(table), changed_R, None if name is None else changes.start.get(name))
        carry_tensors(row_optimiser, own(row_optimiser), {"R": changed_R})
    for module in paths:
        if isinstance(module, Part) and not isinstance(module, RowOptimiser):
            module.carry(own(module), changes)
        elif not isinstance(module, Part | Table):
            carry_tensors(module, own(module), {})
    if optimiser is not None:
        checkpoint.fill_optimiser(folder, optimiser, of_optimiser)
    return state


def _changed_rows(table: Table, changes: Changes) -> Tensor:
    """Of a table that a loss or a sampler has for itself."""
    if table.of == "items":
        return changes.item_M
    if table.of == "queries":
        return changes.query_Q
    return torch.zeros(len(table.weight), dtype=torch.bool)


def _check_names(folder: Path, model: Model, saved: dict[str, Tensor]) -> None:
    wrong = sorted(model.state_dict().keys() ^ saved.keys())
    if wrong:
        raise ArtifactError(
            f"{folder}: does not fit this run, {wrong[0]} is only in one of them: use the run.toml beside it"
        )
