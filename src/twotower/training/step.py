"""One step: encode, draw, compare, move. The whole of training is this function and the order it is called in."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..config import Run, Training
from ..data.store import Store
from ..errors import DataError
from ..frequency import Frequency
from ..losses import Loss
from ..negatives import Sampler, propose
from ..optimisers import RowOptimiser
from ..part import Facts
from ..records import Batch, Encoded, Features, Items, Ragged
from ..scoring import encode, tile_for
from ..tables import Table
from ..towers import TwoTower
from .grad_cache import GradCache, rows_of
from .health import Health, examine


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """What a step says of itself."""

    loss: float
    n_pairs: int
    n_columns: int
    excluded: float
    """Share of (line, candidate) places that were excluded."""
    alone: int
    """Positives that had no candidate left."""
    gradient_norm: float | None = None
    """Of all that is learned, before it is clipped; None where nothing asked for it."""
    health: Health | None = None
    """None where it was not asked for."""


class CurrentModel:
    """The towers and the frequency estimate as samplers may see them (``negatives.Look``)."""

    def __init__(self, model: Model, query_BD: Tensor, step: int) -> None:
        self._model = model
        self.query_BD = query_BD.detach()
        self.step = step

    def items(self, row: Tensor) -> Tensor:
        """[...] item rows -> [..., D], encoded now, without gradient or dropout."""
        return self._encoded(row, self._model.items)

    def layers(self, row: Tensor) -> Tensor:
        """[...] item rows -> [..., H, D], likewise; H = 1 without a graph."""
        return self._encoded(row, self._model.item_layers)

    def _encoded(self, row: Tensor, encode: Items) -> Tensor:
        self._model.towers.eval()
        with torch.no_grad():
            distinct, at = row.flatten().unique(return_inverse=True)
            vectors = encode(distinct)
        self._model.towers.train()
        return vectors.index_select(0, at).view(*row.shape, *vectors.shape[1:])

    def log_presence(self, row: Tensor) -> Tensor:
        """log P(item is in the global batch), as known before this batch."""
        return self._model.frequency.log_presence(row)


class Model(nn.Module):
    """Everything that learns or remembers: towers, loss, sampler, frequency estimate, optimiser state of tables."""

    def __init__(self, run: Run, store: Store, facts: Facts) -> None:
        super().__init__()
        self.towers: TwoTower = copy.deepcopy(run.towers)
        self.loss: Loss = copy.deepcopy(run.loss)
        self.negatives: Sampler = copy.deepcopy(run.negatives)
        self.frequency: Frequency = copy.deepcopy(run.frequency)
        self.towers.build(store.schema, store.encoders.table_sizes)
        self.towers.connect(facts.pairs, store.query, store.item)
        facts = replace(facts, width=self.towers.width)
        for part in (self.loss, self.negatives, self.frequency):
            part.setup(facts)
        self.row_optimisers = nn.ModuleList(copy.deepcopy(run.training.tables) for _ in self.named_tables())
        for _, table, optimiser in self.tables():
            rows, dim = table.weight.shape
            optimiser.allocate(rows, dim, table.weight.device)
        self.store = store

    def items(self, row: Tensor) -> Tensor:
        """Distinct item rows [U] -> vectors [U, D]."""
        return self.towers.encode_item(to_device(self.store.item.take(row.cpu()), row.device))

    def item_layers(self, row: Tensor) -> Tensor:
        """Distinct item rows [U] -> vectors by layers of the graph [U, H, D]."""
        return self.towers.item_layers(to_device(self.store.item.take(row.cpu()), row.device))

    def named_tables(self) -> dict[str, Table]:
        """Every embedding table by name: those of the towers, and what a loss or a sampler learns row by row."""
        parts = (("", self.towers.weights), ("loss", self.loss), ("negatives", self.negatives))
        return {
            f"{part}.{name}".replace("/", ".").strip("."): module
            for part, holder in parts
            for name, module in holder.named_modules()
            if isinstance(module, Table)
        }

    def tables(self) -> list[tuple[str, Table, RowOptimiser]]:
        """Embedding tables with their names and optimisers."""
        found = zip(self.named_tables().items(), self.row_optimisers, strict=True)
        return [(name, table, optimiser) for (name, table), optimiser in found]  # type: ignore[misc]


def to_device(features: Features, device: torch.device | str) -> Features:
    """Features moved to a device; nothing is done for the CPU."""
    if torch.device(device).type == "cpu":
        return features
    return {name: column.to(device) for name, column in features.items()}


def seed_dropout(seed: int, device: torch.device) -> None:
    """Seed the generators that dropout draws from. (``torch.manual_seed`` formats the stack for every kind of device
    that is not there: 0.15 ms a step.)"""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


class Stepper:
    """Runs steps of one model: draws from (seed, step), so that a step does not depend on those before it."""

    def __init__(self, model: Model, training: Training) -> None:
        self.model, self.training = model, training
        self.device = torch.device(training.device)
        self.gemm = torch.bfloat16 if training.precision == "bfloat16" else None
        self.dense = [p for p in model.parameters() if p.requires_grad]
        self.optimiser = training.dense.build(self.dense) if self.dense else None
        self.base_lr = training.dense.lr

    def __call__(self, batch: Batch, step: int, rate: float, *, with_health: bool = False) -> StepReport:
        """One global batch, with learning rates times ``rate``.

        ``with_health`` looks closer, at the price of a few per cent of a step: for some steps, not for all.

        Raises DataError when the loss or a gradient is not finite, naming the tensor and the step.
        """
        model, seed = self.model, self.training.seed * 1_000_003 + step
        seed_dropout(seed, self.device)
        rng = torch.Generator(self.device).manual_seed(~seed)  # negatives: another stream
        if self.device.type != "cpu":
            batch = batch.to(self.device)
        cache = None if self.training.encode_chunk is None else GradCache(self.training.encode_chunk, self.device)
        query_BD = self.encode_queries(batch, cache)
        look = CurrentModel(model, query_BD, step)
        candidates = propose(model.negatives, batch, look, rng, counted=model.loss.reads_counts())
        encoded = encode(
            query_BD,
            lambda row: self.encode_items(row, cache),
            batch,
            candidates,
            layers=model.item_layers,
            unit=model.towers.normalise,
        )
        tile = self.training.tile or tile_for(self.device, len(encoded.shared.row) + encoded.own.row.shape[1])
        loss, notes = model.loss(encoded, tile=tile, gemm=self.gemm)
        value = loss.item()
        if not torch.isfinite(loss):
            raise self._not_finite(encoded, step)
        health = examine(model.loss, encoded, notes, step) if with_health else None
        of_sampler = model.negatives.observe(candidates.blocks, encoded, look)
        if of_sampler is not None:
            of_sampler.backward()
        gradient_norm = None
        if loss.requires_grad or of_sampler is not None:
            if loss.requires_grad:
                loss.backward()
            if cache is not None:
                cache.backward()
            gradient_norm = self._move(step, rate, norm_wanted=with_health)
        model.loss.observe(encoded, notes)
        model.frequency.observe(batch.item_P)
        return StepReport(
            loss=value,
            n_pairs=len(batch.item_P),
            n_columns=len(encoded.shared.row) + encoded.own.row.shape[1],
            excluded=float(notes["excluded_share"]),
            alone=int((~notes["alive"]).sum()),
            gradient_norm=gradient_norm,
            health=health,
        )

    def encode_queries(self, batch: Batch, cache: GradCache | None) -> Tensor:
        """[B, D]"""
        encode_query = self.model.towers.encode_query
        if cache is None:
            return encode_query(batch.query)
        return cache.encode(len(batch.query_B), lambda start, stop: encode_query(rows_of(batch.query, start, stop)))

    def encode_items(self, row: Tensor, cache: GradCache | None) -> Tensor:
        """Distinct item rows [U] -> vectors [U, D]."""
        items = self.model.items
        return items(row) if cache is None else cache.encode(len(row), lambda start, stop: items(row[start:stop]))

    def _move(self, step: int, rate: float, *, norm_wanted: bool) -> float | None:
        """Apply the gradients; returns their norm where it is wanted, or needed to clip them."""
        tables = [(name, table, optimiser, table.gradient()) for name, table, optimiser in self.model.tables()]
        self._check_finite(tables, step)
        norm = None
        if norm_wanted or self.training.clip_norm is not None:
            norm = self._norm([found[1] for *_, found in tables if found is not None])
        scale = self._clip(norm)
        for _, table, optimiser, found in tables:
            if found is not None:
                rows_U, gradient_UD = found
                if scale < 1:
                    gradient_UD = gradient_UD * scale
                optimiser.step(table.weight, rows_U, gradient_UD, rate * table.settings.lr_scale)
        if self.optimiser is not None:
            for group in self.optimiser.param_groups:
                group["lr"] = self.base_lr * rate
            self.optimiser.step()
            self.optimiser.zero_grad(set_to_none=True)
        self.model.loss.constrain()
        return norm

    def _check_finite(
        self, tables: list[tuple[str, Table, RowOptimiser, tuple[Tensor, Tensor] | None]], step: int
    ) -> None:
        """A gradient that is not finite stops training before it moves anything."""
        named = [(f"table {name}", found[1]) for name, _, _, found in tables if found is not None]
        named += [(name, p.grad) for name, p in self.model.named_parameters() if p.grad is not None]
        for name, gradient in named:
            if not torch.isfinite(gradient.sum()):
                raise DataError(
                    f"training: the gradient of {name} is not finite at step {step}: lower the learning rate, "
                    "raise the temperature, or check the input"
                )

    def _norm(self, of_tables: list[Tensor]) -> float:
        """Of all gradients together."""
        gradients = [*of_tables, *(p.grad for p in self.dense if p.grad is not None)]
        return torch.stack([g.norm() for g in gradients]).norm().item() if gradients else 0.0

    def _clip(self, norm: float | None) -> float:
        """Scales dense gradients in place to the clipped norm; returns the scale for those of tables."""
        limit = self.training.clip_norm
        if limit is None or norm is None:
            return 1.0
        scale = min(1.0, limit / max(norm, 1e-12))
        if scale < 1:
            for p in self.dense:
                if p.grad is not None:
                    p.grad.mul_(scale)
        return scale

    def _not_finite(self, encoded: Encoded, step: int) -> DataError:
        """Names the first tensor on the way to the loss that is not finite."""
        suspects: dict[str, Tensor] = {name: p for name, p in self.model.named_parameters()}
        for name, column in encoded.batch.query.items():
            value = column.weight if isinstance(column, Ragged) else column
            if value is not None and value.is_floating_point():
                suspects[f"query feature {name!r}"] = value
        suspects |= {
            "reward weights": encoded.batch.weight_P,
            "query vectors": encoded.query_BD,
            "item vectors": torch.cat([encoded.table_TD, encoded.column_ND]),
            "positive log counts": encoded.positive_log_count_P,
        }
        bad = next((name for name, tensor in suspects.items() if not torch.isfinite(tensor).all()), "the loss alone")
        return DataError(
            f"training: the loss is not finite at step {step}; first found in {bad}: lower the learning rate, "
            "raise the temperature, or check the input"
        )
