"""The run at hand, and its batches as a training step sees them: everything is done but the move."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count, islice
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from ..config import Run, load_run, run_tree
from ..data.batches import TrainingBatches
from ..data.store import Store
from ..errors import ArtifactError, ConfigError
from ..frequency import Frequency
from ..negatives import Sampler, propose
from ..part import Facts
from ..records import Batch, Block, Candidates, Encoded
from ..scoring import encode, tile_for
from ..training import checkpoint
from ..training.grad_cache import GradCache
from ..training.loop import batches_of, open_or_ingest, trained_events
from ..training.retriever import BEST, RUN, no_model
from ..training.step import CurrentModel, Model, Stepper, seed_dropout

SETTLING_EPOCHS, MOST_SETTLING = 5.0, 2000
"""Batches, in epochs and at most, that a frequency estimate which learns from the stream observes before the audit."""

N_TIMED = 20
"""Batches of which gradients are formed too, and the clock is believed."""

PHASES = ("batch", "towers", "draw", "count", "loss", "backward")


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A run with its data and a model, ready for batches."""

    run: Run
    store: Store
    batches: TrainingBatches
    facts: Facts
    model: Model
    notes: tuple[str, ...]
    """What the reader has to know of how it was made ready."""

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return torch.device(self.run.training.device)


@dataclass(frozen=True, kw_only=True)
class Step:
    """One batch, drawn for and compared."""

    batch: Batch
    candidates: Candidates
    encoded: Encoded
    look: CurrentModel
    notes: dict[str, Tensor]
    """The loss's."""
    seconds: dict[str, float] | None
    """By phase; None after the first ``N_TIMED``, which are without gradient."""


def subject_of(run: Run, folder: Path | None, *, seed: int, quiet: bool) -> Subject:
    """The run on its training events, with towers at their start, or those of the trained model in ``folder``.

    Raises ConfigError, DataError or ArtifactError where there is nothing to audit on, or the model does not fit.
    """
    trained = None if folder is None else _run_of(folder)
    if trained is not None and trained.schema != run.schema:
        raise ConfigError(f"{folder}: was trained with another schema than this run's: audit the {RUN} beside it")
    if trained is not None:
        run = replace(run, towers=trained.towers)
    store = open_or_ingest(run, quiet=quiet)
    events, shown = trained_events(run.split.assign(store), "train")
    batches = batches_of(run, store, events, shown, seed=seed)
    torch.manual_seed(run.training.seed)
    model = Model(run, store, batches.facts()).to(run.training.device)
    loaded = set() if trained is None or folder is None else _load(model, folder / BEST, run, trained)
    facts = replace(batches.facts(), width=model.towers.width)
    notes = [*_missing(model, loaded)] if trained is not None else []
    if "frequency" not in loaded:
        notes += _settle(model, batches)
    return Subject(run=run, store=store, batches=batches, facts=facts, model=model, notes=tuple(notes))


def _run_of(folder: Path) -> Run:
    if not (folder / RUN).exists():
        raise ArtifactError(no_model(folder))
    return load_run(folder / RUN)


def _load(model: Model, folder: Path, run: Run, trained: Run) -> set[str]:
    """Fill the towers, and what else has the settings it was trained with; returns the names of what was filled."""
    mine, theirs = run_tree(run), run_tree(trained)
    names = {"towers"} | {name for name in ("loss", "negatives", "frequency") if mine.get(name) == theirs.get(name)}
    for name in sorted(names):
        checkpoint.load_part(folder, name, getattr(model, name))
    return names


def _missing(model: Model, loaded: set[str]) -> Iterator[str]:
    for name in ("negatives", "loss"):
        if name not in loaded and getattr(model, name).state_dict():
            yield f"{name}: set otherwise than the model's were, so what they learn starts anew"


def _settle(model: Model, batches: TrainingBatches) -> list[str]:
    """Let the frequency estimate observe the stream first, in orders that no epoch of training has."""
    if type(model.frequency).observe is Frequency.observe:
        return []
    epochs = max(SETTLING_EPOCHS, model.frequency.epochs_ahead())
    n_batches = min(round(epochs * batches.steps_per_epoch), MOST_SETTLING)
    device = next(iter(model.frequency.buffers())).device
    for batch in islice(stream(batches, forwards=False), n_batches):
        model.frequency.observe(batch.item_P.to(device))
    name = type(model.frequency).__name__
    return [f"{name}: observed {n_batches:,} batches before; untrained it knows less in its first epochs"]


def stream(batches: TrainingBatches, *, forwards: bool = True) -> Iterator[Batch]:
    """Batches without end, of epochs 0, 1, ... or -1, -2, ..."""
    for epoch in count(0) if forwards else count(-1, -1):
        yield from batches.epoch(epoch)


class Clock:
    """Seconds by phase."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.seconds = device, dict.fromkeys(PHASES, 0.0)

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Add what the block takes."""
        self._wait()
        started = time.perf_counter()
        yield
        self._wait()
        self.seconds[phase] += time.perf_counter() - started

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


class _Timed:
    """A sampler by the clock."""

    def __init__(self, sampler: Sampler, clock: Clock) -> None:
        self.sampler, self.clock = sampler, clock
        self.density, self.per_query_law = sampler.density, sampler.per_query_law

    def draw(self, batch: Batch, look: CurrentModel, rng: torch.Generator) -> tuple[Block, ...]:
        with self.clock("draw"):
            return self.sampler.draw(batch, look, rng)

    def log_count(self, row: Tensor, batch: Batch, look: CurrentModel) -> Tensor:
        with self.clock("count"):
            return self.sampler.log_count(row, batch, look)


def walk(subject: Subject, n_batches: int, seed: int) -> Iterator[Step]:
    """The first batches, each as a training step sees it; between two, what learns from a step does so. Nothing moves:
    neither towers nor what a sampler learns by gradient."""
    model, device = subject.model, subject.device
    stepper = Stepper(model, subject.run.training)
    batches = islice(stream(subject.batches), n_batches)
    for number in range(1, n_batches + 1):
        clock = Clock(device)
        with clock("batch"):
            batch = next(batches).to(device)
        seed_dropout(seed * 1_000_003 + number, device)
        rng = torch.Generator(device).manual_seed(~(seed * 1_000_003 + number))
        with torch.set_grad_enabled(number <= N_TIMED):
            step = _step(subject, stepper, batch, number, rng, clock)
        yield step
        with torch.no_grad():
            model.negatives.observe(step.candidates.blocks, step.encoded, step.look)
            model.loss.observe(step.encoded, step.notes)
            model.frequency.observe(batch.item_P)


def _step(subject: Subject, stepper: Stepper, batch: Batch, number: int, rng: torch.Generator, clock: Clock) -> Step:
    model, training = subject.model, subject.run.training
    in_chunks = training.encode_chunk is not None and torch.is_grad_enabled()
    cache = None if training.encode_chunk is None or not in_chunks else GradCache(training.encode_chunk, subject.device)
    model.train()
    with clock("towers"):
        query_BD = stepper.encode_queries(batch, cache)
    look = CurrentModel(model, query_BD, number)
    candidates = propose(cast(Sampler, _Timed(model.negatives, clock)), batch, look, rng)
    with clock("towers"):
        encoded = encode(
            query_BD,
            lambda row: stepper.encode_items(row, cache),
            batch,
            candidates,
            layers=model.item_layers,
            unit=model.towers.normalise,
        )
    tile = training.tile or tile_for(subject.device, len(encoded.shared.row) + encoded.own.row.shape[1])
    with clock("loss"):
        loss, notes = model.loss(encoded, tile=tile, gemm=stepper.gemm)
    with clock("backward"):
        if loss.requires_grad:
            loss.backward()
            if cache is not None:
                cache.backward()
    for _, table, _ in model.tables():
        table.touched.clear()
    model.zero_grad(set_to_none=True)
    return Step(
        batch=batch,
        candidates=candidates,
        encoded=encoded,
        look=look,
        notes=notes,
        seconds=clock.seconds if number <= N_TIMED else None,
    )
