"""The loop: epochs of shuffled batches, validation on the full catalogue, early stopping, refit, checkpoints."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..bundle import is_bundle
from ..config import Run, Training, ingest_run
from ..data.arrivals import parts_of_arrivals
from ..data.batches import TrainingBatches
from ..data.held_out import PARTS, HeldOut, held_out
from ..data.splits import SHOWN
from ..data.store import Store
from ..errors import ArtifactError, ConfigError, DataError
from ..evaluation import MODEL, check_metric, metric_names
from ..evaluation import Evaluation as EvaluationResult
from ..evaluation import evaluate as evaluate_vectors
from ..losses import AdapTau, Loss
from ..records import Batch
from ..schema import Id
from ..settings import first_difference
from ..towers import TwoTower
from . import checkpoint
from .interrupts import Interrupts
from .matmul import matmul_precision, probe
from .memory import estimate
from .recorder import METRICS, Recorder
from .retriever import (
    BEST,
    LAST,
    RUN,
    Retriever,
    encode_catalogue,
    encode_questions,
    save_run,
    saved_tree,
    tree_to_save,
)
from .step import Model, Stepper

TRAINED = "train.json"
"""Of a training that came to its end."""
FIRST = "first"
"""In the states of a refit: what the fit before it came to."""
NOTABLY_NEW = 0.1
"""Share of held-out queries without a training event from which that is said."""


@dataclass(frozen=True, kw_only=True)
class Fit:
    """One stretch of training."""

    model: Model
    steps: int
    epochs: float
    seconds: float
    """Wall time of batches and steps; validation and checkpoints are not in it."""
    best_epoch: float
    best_metric: float | None
    history: tuple[dict[str, float], ...]
    """Every validation: epoch and metrics."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What ``train`` made."""

    folder: Path
    best_epoch: float
    best_metric: float | None
    metric: str
    fit_seconds: float
    refit_seconds: float | None

    def render(self) -> str:
        """One line for people."""
        chosen = "" if self.best_metric is None else f", {self.metric} {self.best_metric:.4f} on validation"
        again = "" if self.refit_seconds is None else f", refit on all of it in {self.refit_seconds:.1f} s"
        return f"trained {self.best_epoch:.4g} epochs in {self.fit_seconds:.1f} s{chosen}{again}: {self.folder}"


def train(run: Run, out: str | Path, *, quiet: bool = False) -> Trained:
    """Train the towers of a run into the folder ``out``; ingests the data first where the store is not there.

    ``out`` gets run.toml, metrics.jsonl, the checkpoints best/ and last/, and at the end train.json. Ctrl-C leaves both
    checkpoints usable. Where ``out`` holds the same run, cut off in whatever way, training goes on from its newest
    whole checkpoint, and ends with the model that it would have ended with, bit for bit on the same machine with the
    same threads. Raises ConfigError, DataError or ArtifactError for what can't be trained on.
    """
    folder = Path(out)
    check_metric_of(run.training, weighted=run.schema.interactions.weight is not None)
    _check_warm_up(run)
    _check_free(folder, run)
    store = open_or_ingest(run, quiet=quiet)
    part_E = run.split.assign(store)
    state, wrong = checkpoint.recover(folder / LAST)
    done = None if state is None else folder / LAST
    keep, products = (0, None) if state is None else (state["recorder"]["length"], state["products"])
    with settings_of(run.training, products) as precision, _recorder(run.training, folder, quiet, keep) as recorder:
        with _writing(folder):
            save_run(run, store, folder)
        for line in (*wrong, _where_it_begins(folder, state, is_worse=bool(wrong))):
            if line:
                recorder.say(line)
        warning = getattr(run.split, "warning", None)
        memory = estimate(run, store)
        new = _new_queries(store, part_E)
        short, no_items = _catalogue_is_short(run.training, store), _no_item_vectors(run)
        how = f"float32 products: {precision}"
        for line in (warning, new, short, no_items, memory.render(), memory.warning(), how):
            if line:
                recorder.say(line)
        first = None if state is None else state.get(FIRST)
        refit_done = None if first is None else done
        found = None
        if first is None:
            fit = fit_once(run, store, part_E, recorder=recorder, folder=folder, done=done)
            first, found = _summary(fit), fit.model.loss
        refit_seconds = None
        if run.training.refit and first["best_metric"] is not None:
            length, about = first["best_epoch"], {FIRST: first}
            again = refit(
                run,
                store,
                part_E,
                length,
                found=found,
                recorder=recorder,
                folder=folder,
                about=about,
                done=refit_done,
            )
            refit_seconds = again.seconds
    trained = Trained(
        folder=folder,
        best_epoch=first["best_epoch"],
        best_metric=first["best_metric"],
        metric=run.training.metric,
        fit_seconds=first["seconds"],
        refit_seconds=refit_seconds,
    )
    checkpoint.forget_previous(folder / LAST)
    with _writing(folder):
        partial = folder / f"{TRAINED}.partial"
        partial.write_text(json.dumps({**asdict(trained), "folder": str(folder)}, indent=1), encoding="utf-8")
        partial.replace(folder / TRAINED)
    return trained


def _summary(fit: Fit) -> dict[str, Any]:
    return {"best_epoch": fit.best_epoch, "best_metric": fit.best_metric, "seconds": fit.seconds}


def _where_it_begins(folder: Path, state: dict[str, Any] | None, *, is_worse: bool) -> str | None:
    """What to know of a training that was cut off; None of one that is new."""
    if state is None:
        return (
            f"{folder}: no whole checkpoint is left of a training that was cut off: begins anew" if is_worse else None
        )
    stage, which = " of the refit" if FIRST in state else "", ", the checkpoint before that" if is_worse else ""
    return f"{folder}: goes on with a training that was cut off, after step {state['step']:,}{stage}{which}"


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ArtifactError(
            f"{folder}: the model can't be written there ({error}): free some space, and run the same command again, "
            "or choose another folder"
        ) from error


def check_metric_of(training: Training, *, weighted: bool) -> None:
    """Raise ConfigError where ``training.metric`` is none that validation reports; ``weighted``: where events are."""
    try:
        check_metric(training.metric, metric_names([_k_of(training.metric)], weighted=weighted))
    except ConfigError as error:
        raise ConfigError(f"training.metric: {error}") from error


def _check_warm_up(run: Run) -> None:
    """A temperature that is to be found after training would not be found."""
    loss, epochs = run.loss.compared(), run.training.epochs
    if isinstance(loss, AdapTau) and loss.warm_up >= epochs:
        raise ConfigError(
            f"loss.warm_up of AdapTau: found {loss.warm_up:g} epochs, which training.epochs = {epochs:g} does not "
            "outlast, so that no temperature would be found: train longer, or shorten the warm-up"
        )


def _check_free(folder: Path, run: Run) -> None:
    """A model's folder is new, empty, or of a training of the same run that was cut off."""
    if folder.exists() and not folder.is_dir():
        raise ArtifactError(f"{folder}: there is a file, expected a free place for the model's folder")
    if is_bundle(folder):
        raise ArtifactError(f"{folder}: holds a bundle, expected a free place for the model's folder: choose another")
    is_of_a_run, has_model = (folder / RUN).exists(), (folder / BEST).exists() or (folder / f"{BEST}.old").exists()
    if (folder / TRAINED).exists() or (
        has_model and (not is_of_a_run or "store" in checkpoint.read_state(folder / BEST))
    ):
        raise ArtifactError(f"{folder}: already holds a trained model: choose another folder, or delete it first")
    if is_of_a_run and not (folder / METRICS).exists():
        raise ArtifactError(
            f"{folder}: holds a {RUN} that no training wrote and this one would replace: choose another folder"
        )
    if (
        is_of_a_run
        and run.data is not None
        and (difference := first_difference(saved_tree(folder), tree_to_save(run, folder)))
    ):
        raise ArtifactError(
            f"{folder}: holds a training that was cut off, of a run with {difference}: choose another folder, or "
            "delete this one to begin anew"
        )


def _new_queries(store: Store, part_E: np.ndarray) -> str | None:
    """What to know where many held-out queries are new and their ids are features."""
    if not any(isinstance(feature, Id) for feature in store.schema.query.values()):
        return None
    trained = np.unique(store.query_row[part_E == PARTS["train"]])
    held = np.unique(store.query_row[(part_E == PARTS["valid"]) | (part_E == PARTS["test"])])
    new = int((~np.isin(held, trained)).sum())
    if new < NOTABLY_NEW * len(held):
        return None
    return (
        f"{new:,} of {len(held):,} held-out queries have no training event: their ids stand for the mean of all "
        "others, only other features tell them apart"
    )


def _no_item_vectors(run: Run) -> str | None:
    """What to know where there is nothing to rank items by."""
    if run.loss.learns_items:
        return None
    return (
        f"loss: {type(run.loss).__name__} learns vectors of queries alone; those of items stay as they were made, so "
        "all measures of ranking, and the choice of the best epoch by them, mean nothing"
    )


def _catalogue_is_short(training: Training, store: Store) -> str | None:
    """What to know where the metric looks at the whole catalogue."""
    if _k_of(training.metric) < store.n_items:
        return None
    return (
        f"training.metric: {training.metric} looks at {_k_of(training.metric)} of {store.n_items} items, so no "
        "state is better than another: choose a shorter list, such as recall@10"
    )


def _recorder(training: Training, folder: Path, quiet: bool, keep: int) -> Recorder:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return Recorder(folder, tensorboard=training.tensorboard, quiet=quiet, keep=keep)
    except OSError as error:
        raise ArtifactError(f"{folder}: the model can't be written there ({error}): choose another folder") from error


def open_or_ingest(run: Run, *, quiet: bool = False) -> Store:
    """The run's store, ingested now where there is none. Raises ConfigError where it was made with another schema."""
    if run.data is None:
        raise ConfigError("data: the run names no files: give it a [data] section with interactions")
    is_new = not Path(run.data.store).exists()
    if is_new:
        report = ingest_run(run)
        if not quiet:
            print(report.render())
    store = Store.open(run.data.store)
    if store.schema != run.schema:
        raise ConfigError(
            f"{run.data.store}: was ingested with another schema than this run's: ingest again with "
            "twotower ingest RUN.toml --overwrite, or set data.store to another folder"
        )
    if not is_new and not quiet:
        print(f"store: {store.n_events:,} events as ingested before into {run.data.store}")
    return store


class settings_of:
    """Threads and float32 product path of a run, restored afterwards: ``with settings_of(training) as precision``.

    The path is the fastest of those that are sound, unless ``products`` names one that is: bits depend on it, and on a
    busy machine another one may seem the fastest.
    """

    def __init__(self, training: Training, products: str | None = None) -> None:
        self.training, self.products = training, products

    def __enter__(self) -> str:
        if self.training.device != "cpu" and not torch.cuda.is_available():
            raise ConfigError(
                f"training.device: found {self.training.device!r}, but torch sees no GPU: use device = 'cpu'"
            )
        self.threads = torch.get_num_threads()
        if self.training.threads is not None:
            torch.set_num_threads(self.training.threads)
        found = probe()
        precision = self.products if self.products and found.is_sound(self.products) else found.precision
        self.matmul = matmul_precision(precision)
        self.matmul.__enter__()
        return precision

    def __exit__(self, *error: Any) -> None:
        self.matmul.__exit__(*error)
        torch.set_num_threads(self.threads)


def fit_once(
    run: Run,
    store: Store,
    part_E: np.ndarray,
    *,
    questions: HeldOut | None = None,
    recorder: Recorder | None = None,
    folder: Path | None = None,
    done: Path | None = None,
) -> Fit:
    """Train on the training part, validating by ``questions``; without them by the valid part where there is one. From
    the checkpoint ``done`` on."""
    if questions is None and (part_E == PARTS["valid"]).any():
        questions = held_out(store, part_E, "valid", filter_seen=run.evaluation.filter_seen)
    recorder = recorder or Recorder(None, quiet=True)
    events, shown = trained_events(part_E, "train")
    loop = Loop(run, store, events, questions, recorder, folder, shown=shown)
    return loop.run_to(run.training.epochs, done=done)


def refit(
    run: Run,
    store: Store,
    part_E: np.ndarray,
    epochs: float,
    *,
    found: Loss | None = None,
    recorder: Recorder | None = None,
    folder: Path | None = None,
    about: Mapping[str, Any] | None = None,
    done: Path | None = None,
) -> Fit:
    """Train anew on training and validation events for a length chosen before, with the same schedule, keeping what
    the loss ``found`` in the fit before; from the checkpoint ``done`` on, which has that too."""
    recorder = recorder or Recorder(None, quiet=True)
    events, shown = trained_events(part_E, "train", "valid")
    loop = Loop(run, store, events, None, recorder, folder, shown=shown, about=about)
    if found is not None:
        loop.model.loss.keep(found)
    return loop.run_to(epochs, done=done)


def trained_events(part_E: np.ndarray, *names: str) -> tuple[np.ndarray, np.ndarray]:
    """Events of these parts that were taken, and impressions that were not."""
    parts = [PARTS[name] for name in names]
    return np.flatnonzero(np.isin(part_E, parts)), np.flatnonzero(np.isin(part_E - SHOWN, parts))


def batches_of(
    run: Run,
    store: Store,
    events: np.ndarray,
    shown: np.ndarray | None,
    *,
    seed: int,
    known: np.ndarray | None = None,
) -> TrainingBatches:
    """The run's batches of these events, with impressions that were not taken, and what else is known."""
    training = run.training
    return TrainingBatches(
        store,
        events,
        batch_of=training.batch_of,
        batch_size=training.batch_size,
        known=known,
        shown=shown,
        query_weight=training.query_weight,
        thin=training.thin,
        order=training.order,
        seed=seed,
    )


@dataclass(frozen=True, kw_only=True)
class Start:
    """Where a stretch of training begins that goes on with a model, instead of making one."""

    fill: Callable[[Model, torch.optim.Optimizer | None], None]
    """Brings the state of the model and of its dense optimiser, both just made, to what it is to begin with."""
    step: int
    """The model's steps before. Numbers go on from there, and with them what is drawn: no seed comes twice."""
    rate: float = 1.0
    """Factor of all learning rates, over that of the schedule."""


def _check_idle(run: Run, steps: int) -> None:
    """Raise ConfigError where training ends before the sampler offers anything."""
    idle, name = run.negatives.idle_steps, type(run.negatives).__name__
    if steps <= idle:
        raise ConfigError(
            f"negatives: {name} offers nothing in the first {idle:,} steps, but training.epochs = "
            f"{run.training.epochs:g} gives {steps:,}: train longer, shorten its warm-up, or mix it with one that "
            "starts at once, such as InBatch"
        )


class Loop:
    """State of one stretch of training.

    ``events`` are trained on, ``known`` (by default the same) are what its queries are known to like. With ``start``
    the stretch goes on with a model's state at its global step: steps are numbered from there on, and epochs of
    batches too, so that neither draws nor orders repeat those of an earlier stretch with the same seed. The schedule
    of learning rates, ``training.epochs`` and what is reported as epochs are of this stretch alone, and nothing
    is observed ahead of it.

    In ``folder`` it keeps two checkpoints: best/, with the best validated model, and last/, which a stretch that was
    cut off goes on from; both have ``about`` in their states.
    """

    def __init__(
        self,
        run: Run,
        store: Store,
        events: np.ndarray,
        questions: HeldOut | None,
        recorder: Recorder,
        folder: Path | None,
        *,
        shown: np.ndarray | None = None,
        known: np.ndarray | None = None,
        start: Start | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        training = run.training
        self.run, self.store, self.questions, self.recorder, self.folder = run, store, questions, recorder, folder
        self.batches = batches_of(run, store, events, shown, known=known, seed=training.seed)
        torch.manual_seed(training.seed)
        self.model = Model(run, store, self.batches.facts()).to(training.device)
        self.model.loss.compared().check()
        self.stepper = Stepper(self.model, training)
        check_metric_of(training, weighted=questions is None or questions.truth.weight is not None)
        self.scheduled_steps = max(round(training.epochs * self.batches.steps_per_epoch), 1)
        self.start, self.about = start, dict(about or {})
        self.step = self.first_step = 0 if start is None else start.step
        _check_idle(run, self.first_step + self.scheduled_steps)
        self.every = max(round(training.validate_every * self.batches.steps_per_epoch), 1)
        self.history: list[dict[str, float]] = []
        self.best_metric: float | None = None
        self.best_epoch = 0.0
        self.worse = 0
        self.seconds = 0.0
        self.ended = False
        self.since = self.saved_at = time.perf_counter()
        """When the seconds were counted, and the state saved."""

    def run_to(self, epochs: float, *, done: Path | None = None) -> Fit:
        """Train for ``epochs`` of the schedule, or until patience ends; from the checkpoint ``done`` of the same
        stretch on."""
        steps = min(max(round(epochs * self.batches.steps_per_epoch), 1), self.scheduled_steps)
        stop = self.first_step + steps
        self.model.train()
        self._begin(stop, done)
        had_ended, torn = self.ended, False
        try:
            with Interrupts() as interrupts:
                for batch in self._stream(0 if self.ended else stop - self.step):
                    torn = True
                    self._step(self.step + 1, batch)
                    self.step += 1
                    self.ended = self.step == stop
                    if self.questions is not None and (self.ended or (self.step - self.first_step) % self.every == 0):
                        with self._uncounted():
                            self.ended |= self._validate(self.step)
                    torn = False
                    if self.ended:
                        break
                    if interrupts.asked:
                        raise KeyboardInterrupt
                    if self._is_due():
                        with self._uncounted():
                            self._save_last()
        except KeyboardInterrupt:
            self._interrupted(torn=torn)
            raise
        self._count()
        if not had_ended:
            self._end()
        return Fit(
            model=self.model,
            steps=self.step - self.first_step,
            epochs=self._epoch(self.step),
            seconds=self.seconds,
            best_epoch=self.best_epoch,
            best_metric=self.best_metric,
            history=tuple(self.history),
        )

    def _begin(self, stop: int, done: Path | None) -> None:
        """Bring all state to what it is before the first step from here."""
        state = {} if done is None else checkpoint.read_state(done)
        self.step = state.get("step", self.first_step)
        name = "train" if self.questions is not None else "train on all"
        self.recorder.begin(name, stop, first_step=self.step)
        self.since = self.saved_at = time.perf_counter()
        if done is not None:
            self._restore(done, state)
        elif self.start is not None:
            self.start.fill(self.model, self.stepper.optimiser)
        else:
            self._burn_in()

    def _restore(self, done: Path, state: dict[str, Any]) -> None:
        if state["data"] != self._sizes():
            raise ArtifactError(
                f"{self.folder}: was trained on {_in_words(state['data'])}, but the store has "
                f"{_in_words(self._sizes())} now: choose another folder, or delete this one to begin anew"
            )
        checkpoint.load(done, self.model, self.stepper.optimiser)
        self.history, self.best_metric, self.best_epoch = state["history"], state["metric"], state["best_epoch"]
        self.worse, self.seconds, self.ended = state["worse"], state["seconds"], state["ended"]
        self.recorder.restore(state["recorder"])

    def _is_due(self) -> bool:
        """Whether the state is to be saved now, so that it needs not be made again."""
        age_s = time.perf_counter() - self.saved_at
        return self.folder is not None and age_s >= self.run.training.checkpoint_every_s

    def _end(self) -> None:
        self.recorder.say_alone()
        if self.questions is None:
            self.best_epoch = self._epoch(self.step)
            self._save_best()
        self._save_last()

    def _interrupted(self, *, torn: bool) -> None:
        """Leave a model that can be used, and trained on from, unless it was interrupted within a step."""
        if self.folder is None:
            return
        self._count()
        if not (self.folder / BEST).exists():
            self._save_best()
        self._save_last(torn=torn)
        self.recorder.say(
            f"interrupted after step {self.step:,}: the model so far is in {self.folder}, and the same command goes on"
        )

    @contextmanager
    def _uncounted(self) -> Iterator[None]:
        """For what is no step: its time counts neither here nor in the recorder."""
        self._count()
        with self.recorder.paused():
            yield
        self.since = time.perf_counter()

    def _count(self) -> None:
        now = time.perf_counter()
        self.seconds, self.since = self.seconds + now - self.since, now

    def _burn_in(self) -> None:
        """Let the frequency estimate observe what it wants to know ahead, in orders that no epoch of training has."""
        left, epoch = round(self.model.frequency.epochs_ahead() * self.batches.steps_per_epoch), -1
        while left > 0:
            for batch in islice(self.batches.epoch(epoch), left):
                self.model.frequency.observe(batch.item_P.to(self.stepper.device))
            left, epoch = left - self.batches.steps_per_epoch, epoch - 1

    def _stream(self, steps: int) -> Iterator[Batch]:
        """The next batches. Epochs are numbered from the first step on, which are at least as many as there were."""
        epoch, at = divmod(self.step - self.first_step, self.batches.steps_per_epoch)
        while steps > 0:
            for batch in islice(self.batches.epoch(self.first_step + epoch, at), steps):
                yield batch
                steps -= 1
            epoch, at = epoch + 1, 0

    def _step(self, step: int, batch: Batch) -> None:
        rate = learning_rate(self.run.training, step - self.first_step - 1, self.scheduled_steps)
        if self.start is not None:
            rate *= self.start.rate
        report = self.stepper(batch, step, rate, with_health=self.recorder.wants_health)
        temperature = getattr(self.model.loss, "current_temperature", lambda: None)()
        if isinstance(temperature, torch.Tensor):
            temperature = temperature.item()
        self.recorder.step(step, self._epoch(step), rate, report, temperature)

    def _epoch(self, step: int) -> float:
        return (step - self.first_step) / self.batches.steps_per_epoch

    def _validate(self, step: int) -> bool:
        """Measure, keep the best; True when patience has ended."""
        assert self.questions is not None
        metric = self.run.training.metric
        result = self.measure(self.questions)
        value = result.metric(metric)
        measured = {metric: value}
        if self.run.evaluation.batch_recall is not None and result.batch_recall is not None:
            measured |= result.batch_recall.rows[MODEL]
        self.history.append({"epoch": self._epoch(step), **measured})
        self.recorder.write("valid", step, self._epoch(step), measured)
        better = self.best_metric is None or math.isnan(self.best_metric) or value > self.best_metric
        self.recorder.say(
            f"epoch {self._epoch(step):.4g}: {metric} {value:.4f} on validation{' (best)' if better else ''}"
        )
        if better:
            self.best_metric, self.best_epoch, self.worse = value, self._epoch(step), 0
            self._save_best()
            return False
        self.worse += 1
        return self.run.training.patience is not None and self.worse >= self.run.training.patience

    def measure(self, questions: HeldOut) -> EvaluationResult:
        """Metrics on held-out questions, over the full catalogue."""
        counts_M = _item_counts(self.store, self.batches.known_events)
        return measured(self.run, self.model.towers, questions, counts_M)

    def _save_best(self) -> None:
        if self.folder is not None:
            checkpoint.save(self.folder / BEST, self.model, self.stepper.optimiser, self._state())

    def _save_last(self, *, torn: bool = False) -> None:
        """The state with all that is needed to go on; the one before it stays, lest this one be damaged."""
        if self.folder is not None:
            position = {
                "data": self._sizes(),
                "best_epoch": self.best_epoch,
                "worse": self.worse,
                "seconds": self.seconds,
                "ended": self.ended,
                "recorder": self.recorder.state(),
                **({checkpoint.TORN: True} if torn else {}),
            }
            state = self._state() | position
            checkpoint.save(self.folder / LAST, self.model, self.stepper.optimiser, state, keep_previous=True)
        self.saved_at = time.perf_counter()

    def _state(self) -> dict[str, Any]:
        state = {"step": self.step, "epoch": self._epoch(self.step), "metric": self.best_metric}
        return {**state, "history": self.history, "products": torch.get_float32_matmul_precision(), **self.about}

    def _sizes(self) -> list[int]:
        """Queries, items and events of the store."""
        return [self.store.n_queries, self.store.n_items, self.store.n_events]


def _in_words(sizes: list[int]) -> str:
    return "{:,} queries, {:,} items and {:,} events".format(*sizes)


def _k_of(metric: str) -> int:
    """The k of a metric such as ``recall@100_tail``."""
    return int(metric.split("@")[1].split("_")[0])


def measured(run: Run, towers: TwoTower, questions: HeldOut, item_count_M: torch.Tensor) -> EvaluationResult:
    """Metrics of towers in the midst of training, with those that ``training.metric`` needs."""
    with towers.settled():
        query_QD, item_MD = encode_questions(towers, questions), encode_catalogue(towers, questions.store)
    return evaluate_vectors(
        query_QD,
        item_MD,
        questions.truth,
        seen=questions.seen,
        live=questions.live,
        item_count_M=item_count_M,
        k=tuple(sorted({*run.evaluation.k, _k_of(run.training.metric)})),
        tail_max=run.evaluation.tail_max,
        head_share=run.evaluation.head_share,
        batch_recall=run.evaluation.batch_recall,
        baselines=False,
    )


def learning_rate(training: Training, step: int, total: int) -> float:
    """Factor of all learning rates at a step: linear warm-up, then constant, linear or cosine to zero."""
    if step < training.warmup_steps:
        return (step + 1) / training.warmup_steps
    done = (step - training.warmup_steps) / max(total - training.warmup_steps, 1)
    if training.schedule == "linear":
        return max(1 - done, 0.0)
    if training.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
    return 1.0


def evaluate(model: str | Path, *, split: str = "test") -> EvaluationResult:
    """Metrics of a trained model on the held-out part ``split``, beside popularity and random rankings.

    A model that was updated has trained on all parts of its split by then: of such one, both are what its updates hold
    out for good (``Update.valid``).
    """
    retriever = Retriever.open(model)
    return evaluate_retriever(retriever, *measured_part(retriever, model, split))


def measured_part(retriever: Retriever, model: str | Path, split: str) -> tuple[np.ndarray, str]:
    """The part of each event, and the name of the one to measure the model by: ``split``, unless it was updated."""
    store, settings = retriever.store, retriever.run.update
    if not store.n_updates:
        return retriever.run.split.assign(store), split
    part_E = parts_of_arrivals(store, share=settings.valid, days=settings.valid_days)
    if not (part_E == PARTS["valid"]).any():
        raise DataError(
            f"{model}: no update held anything out in the {settings.valid_days:g} days before the newest event "
            "(update.valid, update.valid_days), so there is nothing to measure an updated model by"
        )
    return part_E, "valid"


def evaluate_retriever(
    retriever: Retriever, part_E: np.ndarray, split: str = "test", *, baselines: bool = True
) -> EvaluationResult:
    """The same for a model at hand. Popularity counts the events the model was trained on."""
    run, store = retriever.run, retriever.store
    questions = held_out(store, part_E, split, filter_seen=run.evaluation.filter_seen)
    refitted = run.training.refit and split == "test"
    trained = (part_E == PARTS["train"]) | ((part_E == PARTS["valid"]) & refitted)
    return evaluate_vectors(
        encode_questions(retriever.towers, questions),
        retriever.item_MD,
        questions.truth,
        seen=questions.seen,
        live=questions.live,
        item_count_M=_item_counts(store, np.flatnonzero(trained)),
        k=run.evaluation.k,
        tail_max=run.evaluation.tail_max,
        head_share=run.evaluation.head_share,
        batch_recall=run.evaluation.batch_recall,
        baselines=baselines,
    )


def _item_counts(store: Store, events: np.ndarray) -> torch.Tensor:
    """[M] events of each item."""
    return torch.from_numpy(np.bincount(store.item_row[events], minlength=store.n_items))
