"""The loop: epochs of shuffled batches, validation on the full catalogue, early stopping, refit, checkpoints."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..config import Run, Training, ingest_run
from ..data.batches import TrainingBatches
from ..data.held_out import PARTS, HeldOut, held_out
from ..data.splits import SHOWN
from ..data.store import Store
from ..errors import ArtifactError, ConfigError
from ..evaluation import MODEL, check_metric, metric_names
from ..evaluation import Evaluation as EvaluationResult
from ..evaluation import evaluate as evaluate_vectors
from ..records import Batch
from ..schema import Id
from . import checkpoint
from .matmul import matmul_precision, probe
from .memory import estimate
from .recorder import METRICS, Recorder
from .retriever import BEST, LAST, RUN, Retriever, encode_catalogue, encode_questions, save_run
from .step import Model, Stepper

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

    ``out`` gets run.toml, metrics.jsonl, the checkpoints best/ and last/, and train.json. Ctrl-C leaves both
    checkpoints usable. Raises ConfigError, DataError or ArtifactError for what can't be trained on.
    """
    folder = Path(out)
    check_metric_of(run.training, weighted=run.schema.interactions.weight is not None)
    _check_free(folder)
    store = open_or_ingest(run, quiet=quiet)
    part_E = run.split.assign(store)
    with settings_of(run.training) as precision, _recorder(run.training, folder, quiet) as recorder:
        save_run(run, store, folder)
        warning = getattr(run.split, "warning", None)
        memory = estimate(run, store)
        new = _new_queries(store, part_E)
        short = _catalogue_is_short(run.training, store)
        for line in (warning, new, short, memory.render(), memory.warning(), f"float32 products: {precision}"):
            if line:
                recorder.say(line)
        fit = first = fit_once(run, store, part_E, recorder=recorder, folder=folder)
        refit_seconds = None
        if run.training.refit and first.best_metric is not None:
            fit = refit(run, store, part_E, first.best_epoch, recorder=recorder, folder=folder)
            refit_seconds = fit.seconds
    trained = Trained(
        folder=folder,
        best_epoch=first.best_epoch,
        best_metric=first.best_metric,
        metric=run.training.metric,
        fit_seconds=first.seconds,
        refit_seconds=refit_seconds,
    )
    (folder / "train.json").write_text(
        json.dumps({**asdict(trained), "folder": str(folder)}, indent=1), encoding="utf-8"
    )
    return trained


def check_metric_of(training: Training, *, weighted: bool) -> None:
    """Raise ConfigError where ``training.metric`` is none that validation reports; ``weighted``: where events are."""
    try:
        check_metric(training.metric, metric_names([_k_of(training.metric)], weighted=weighted))
    except ConfigError as error:
        raise ConfigError(f"training.metric: {error}") from error


def _check_free(folder: Path) -> None:
    """A model's folder is new, empty, or of a training that was cut off before its first checkpoint."""
    if folder.exists() and not folder.is_dir():
        raise ArtifactError(f"{folder}: there is a file, expected a free place for the model's folder")
    if (folder / BEST).exists() or (folder / f"{BEST}.old").exists():
        raise ArtifactError(f"{folder}: already holds a trained model: choose another folder, or delete it first")
    if (folder / RUN).exists() and not (folder / METRICS).exists():
        raise ArtifactError(
            f"{folder}: holds a {RUN} that no training wrote and this one would replace: choose another folder"
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


def _catalogue_is_short(training: Training, store: Store) -> str | None:
    """What to know where the metric looks at the whole catalogue."""
    if _k_of(training.metric) < store.n_items:
        return None
    return (
        f"training.metric: {training.metric} looks at {_k_of(training.metric)} of {store.n_items} items, so no "
        "state is better than another: choose a shorter list, such as recall@10"
    )


def _recorder(training: Training, folder: Path, quiet: bool) -> Recorder:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return Recorder(folder, tensorboard=training.tensorboard, quiet=quiet)
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
    """Threads and float32 product path of a run, restored afterwards: ``with settings_of(training) as precision``."""

    def __init__(self, training: Training) -> None:
        self.training = training

    def __enter__(self) -> str:
        if self.training.device != "cpu" and not torch.cuda.is_available():
            raise ConfigError(
                f"training.device: found {self.training.device!r}, but torch sees no GPU: use device = 'cpu'"
            )
        self.threads = torch.get_num_threads()
        if self.training.threads is not None:
            torch.set_num_threads(self.training.threads)
        found = probe()
        self.matmul = matmul_precision(found.precision)
        self.matmul.__enter__()
        return found.precision

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
) -> Fit:
    """Train on the training part, validating by ``questions``; without them by the valid part where there is one."""
    if questions is None and (part_E == PARTS["valid"]).any():
        questions = held_out(store, part_E, "valid", filter_seen=run.evaluation.filter_seen)
    recorder = recorder or Recorder(None, quiet=True)
    events, shown = trained_events(part_E, "train")
    return Loop(run, store, events, questions, recorder, folder, shown=shown).run_to(run.training.epochs)


def refit(
    run: Run,
    store: Store,
    part_E: np.ndarray,
    epochs: float,
    *,
    recorder: Recorder | None = None,
    folder: Path | None = None,
) -> Fit:
    """Train anew on training and validation events for a length chosen before, with the same schedule."""
    recorder = recorder or Recorder(None, quiet=True)
    events, shown = trained_events(part_E, "train", "valid")
    return Loop(run, store, events, None, recorder, folder, shown=shown).run_to(epochs)


def trained_events(part_E: np.ndarray, *names: str) -> tuple[np.ndarray, np.ndarray]:
    """Events of these parts that were taken, and impressions that were not."""
    parts = [PARTS[name] for name in names]
    return np.flatnonzero(np.isin(part_E, parts)), np.flatnonzero(np.isin(part_E - SHOWN, parts))


def batches_of(run: Run, store: Store, events: np.ndarray, shown: np.ndarray | None, *, seed: int) -> TrainingBatches:
    """The run's batches of these events, with impressions that were not taken."""
    training = run.training
    return TrainingBatches(
        store,
        events,
        batch_of=training.batch_of,
        batch_size=training.batch_size,
        shown=shown,
        query_weight=training.query_weight,
        thin=training.thin,
        seed=seed,
    )


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
    """State of one stretch of training."""

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
    ) -> None:
        training = run.training
        self.run, self.store, self.questions, self.recorder, self.folder = run, store, questions, recorder, folder
        self.batches = batches_of(run, store, events, shown, seed=training.seed)
        torch.manual_seed(training.seed)
        self.model = Model(run, store, self.batches.facts()).to(training.device)
        self.stepper = Stepper(self.model, training)
        check_metric_of(training, weighted=questions is None or questions.truth.weight is not None)
        self.scheduled_steps = max(round(training.epochs * self.batches.steps_per_epoch), 1)
        _check_idle(run, self.scheduled_steps)
        self.every = max(round(training.validate_every * self.batches.steps_per_epoch), 1)
        self.history: list[dict[str, float]] = []
        self.best_metric: float | None = None
        self.best_epoch = 0.0
        self.worse = 0
        self.seconds = 0.0

    def run_to(self, epochs: float) -> Fit:
        """Train for ``epochs`` of the schedule, or until patience ends."""
        stop = min(max(round(epochs * self.batches.steps_per_epoch), 1), self.scheduled_steps)
        self.recorder.begin("train" if self.questions is not None else "train on all", stop)
        self.model.train()
        step, started = 0, time.perf_counter()
        self._burn_in()
        try:
            for step, batch in enumerate(self._stream(stop), start=1):
                self._step(step, batch)
                if self.questions is not None and (step % self.every == 0 or step == stop):
                    self.seconds += time.perf_counter() - started
                    with self.recorder.paused():
                        ended = self._validate(step)
                    started = time.perf_counter()
                    if ended:
                        break
            self.seconds += time.perf_counter() - started
        except KeyboardInterrupt:
            self._save(step, only_last=self.folder is not None and (self.folder / BEST).exists())
            self.recorder.say(f"interrupted at step {step}: the model so far is in {self.folder}")
            raise
        self.recorder.say_alone()
        if self.questions is None:
            self.best_epoch = self._epoch(step)
        self._save(step, only_last=self.questions is not None)
        return Fit(
            model=self.model,
            steps=step,
            epochs=self._epoch(step),
            seconds=self.seconds,
            best_epoch=self.best_epoch,
            best_metric=self.best_metric,
            history=tuple(self.history),
        )

    def _burn_in(self) -> None:
        """Let the frequency estimate observe what it wants to know ahead, in orders that no epoch of training has."""
        left, epoch = round(self.model.frequency.epochs_ahead() * self.batches.steps_per_epoch), -1
        while left > 0:
            for batch in islice(self.batches.epoch(epoch), left):
                self.model.frequency.observe(batch.item_P.to(self.stepper.device))
            left, epoch = left - self.batches.steps_per_epoch, epoch - 1

    def _stream(self, stop: int) -> Iterator[Batch]:
        left, epoch = stop, 0
        while left > 0:
            for batch in self.batches.epoch(epoch):
                yield batch
                left -= 1
                if left == 0:
                    return
            epoch += 1

    def _step(self, step: int, batch: Batch) -> None:
        rate = learning_rate(self.run.training, step - 1, self.scheduled_steps)
        report = self.stepper(batch, step, rate, with_health=self.recorder.wants_health)
        temperature = getattr(self.model.loss, "current_temperature", lambda: None)()
        if isinstance(temperature, torch.Tensor):
            temperature = temperature.item()
        self.recorder.step(step, self._epoch(step), rate, report, temperature)

    def _epoch(self, step: int) -> float:
        return step / self.batches.steps_per_epoch

    def _validate(self, step: int) -> bool:
        """Measure, keep the best; True when patience has ended."""
        assert self.questions is not None
        metric = self.run.training.metric
        result = self._measure(self.questions)
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
            self._save(step, only_best=True)
            return False
        self.worse += 1
        return self.run.training.patience is not None and self.worse >= self.run.training.patience

    def _measure(self, questions: HeldOut) -> EvaluationResult:
        """Metrics on held-out questions, over the full catalogue."""
        towers = self.model.towers
        with towers.settled():
            query_QD, item_MD = encode_questions(towers, questions), encode_catalogue(towers, self.store)
        return evaluate_vectors(
            query_QD,
            item_MD,
            questions.truth,
            seen=questions.seen,
            item_count_M=self.batches.event_item.bincount(minlength=self.store.n_items),
            k=tuple(sorted({*self.run.evaluation.k, _k_of(self.run.training.metric)})),
            tail_max=self.run.evaluation.tail_max,
            head_share=self.run.evaluation.head_share,
            batch_recall=self.run.evaluation.batch_recall,
            baselines=False,
        )

    def _save(self, step: int, *, only_best: bool = False, only_last: bool = False) -> None:
        if self.folder is None:
            return
        state = {"step": step, "epoch": self._epoch(step), "metric": self.best_metric, "history": self.history}
        for name in (BEST,) * (not only_last) + (LAST,) * (not only_best):
            checkpoint.save(self.folder / name, self.model, self.stepper.optimiser, state)


def _k_of(metric: str) -> int:
    """The k of a metric such as ``recall@100_tail``."""
    return int(metric.split("@")[1].split("_")[0])


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
    """Metrics of a trained model on the held-out part ``split``, beside popularity and random rankings."""
    retriever = Retriever.open(model)
    part_E = retriever.run.split.assign(retriever.store)
    return evaluate_retriever(retriever, part_E, split)


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
        item_count_M=torch.from_numpy(np.bincount(store.item_row[trained], minlength=store.n_items)),
        k=run.evaluation.k,
        tail_max=run.evaluation.tail_max,
        head_share=run.evaluation.head_share,
        batch_recall=run.evaluation.batch_recall,
        baselines=baselines,
    )


def recommend(model: str | Path, query: dict[str, object], *, k: int = 10, filter_seen: bool = True) -> list[Any]:
    """The k best items of a trained model for a query given by its raw columns."""
    return Retriever.open(model).recommend(query, k=k, filter_seen=filter_seen)
