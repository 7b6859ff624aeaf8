"""Search for settings on validation data: draws within declared ranges, or every combination of a sweep, arm by arm.

Arms get the same number of trials, of the same epochs and with the same seeds. What a trial is worth is the best
``training.metric`` on its way, as early stopping finds it. The test part is not looked at.
"""

from __future__ import annotations

import itertools
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from operator import attrgetter
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console

from ..config import Arm, Range, Run, Tune, dump_run, run_tree, vary
from ..data.held_out import PARTS
from ..data.store import Store
from ..errors import ArtifactError, ConfigError, DataError, TwoTowerError
from ..settings import Tree, parse_sweep
from .loop import check_metric_of, fit_once, open_or_ingest, settings_of
from .recorder import Recorder
from .tune_plot import plot
from .tuned import BEST_RUN, TRIALS, Outcome, Trial, Tuned, best_of, in_words, to_json

if TYPE_CHECKING:
    from .journal import ArmJournal

JOURNAL, PLOT = "tune.journal", "tune.png"

ALONE = "run"
"""What the run itself is called where no arms are declared."""

_MEASURED_BY = (
    *("schema", "data", "split", "evaluation", "training.metric", "training.device", "training.threads", "tune"),
)
"""What decides what a value and its seconds mean: it is that of the run, in every trial of every arm."""

_GRANTED = ("training.epochs", "training.seed")
"""What arms get alike."""


def tune(run: Run, out: str | Path, *, sweep: Sequence[str] = (), quiet: bool = False) -> Tuned:
    """Search within the ranges that ``run.tune`` declares; with ``sweep`` try every combination of its values instead.

    A sweep is ``loss.temperature=0.02,0.05,0.1``, one a setting. The folder ``out`` gets tune.journal, trials.jsonl,
    best.toml (a run for ``train``) and tune.png. The same call goes on with a search that was cut off: trials that
    ended stay, one that was killed is tried again, and more ``trials`` are added to those that are there.

    Raises ConfigError, DataError or ArtifactError for what can't be searched.
    """
    _require_optuna()
    folder, declared = Path(out), run.tune or Tune()
    check_metric_of(run.training, weighted=run.schema.interactions.weight is not None)
    arms = _arms(run, sweep)
    _check_free(folder)
    store = open_or_ingest(run, quiet=quiet)
    part_E = run.split.assign(store)
    if not (part_E == PARTS["valid"]).any():
        raise ConfigError(
            f"split: {type(run.split).__name__} holds out no event for validation, which a search goes by: choose "
            "another split"
        )
    sizes = {"queries": store.n_queries, "items": store.n_items, "events": store.n_events}
    search = _Search(run, declared, arms, folder, sizes, bool(sweep), quiet)
    with settings_of(run.training):
        search.go(store, part_E)
    return search.finish()


@dataclass(frozen=True, kw_only=True)
class _Arm:
    """One of the things compared, with what varies in it."""

    name: str
    where: str
    """What an error calls it."""
    run: Run
    ranges: dict[str, Range]
    grid: tuple[dict[str, Any], ...] | None
    """All combinations of a sweep; None where settings are drawn."""

    def settled(self, settings: Mapping[str, object]) -> Run:
        """The run of a trial."""
        return vary(self.run, values=settings)


def _require_optuna() -> None:
    try:
        import optuna  # noqa: F401
    except ImportError as error:
        raise ConfigError("a search needs Optuna, which is not installed: pip install 'twotower[tune]'") from error


def _arms(run: Run, sweep: Sequence[str]) -> tuple[_Arm, ...]:
    """What is declared, checked by building the runs at the ends of its ranges."""
    declared, swept = run.tune or Tune(), _swept(sweep)
    base = replace(run, tune=None)
    arms = tuple(_arm(base, declared, name, swept) for name in declared.arms or (ALONE,))
    for arm in arms:
        points, where = (
            (arm.grid, f"--sweep in {arm.where}") if arm.grid else (_ends(arm.ranges), f"{arm.where}: ranges")
        )
        for settings in points:
            _check(base, arm, settings, where)
    return arms


def _swept(sweep: Sequence[str]) -> dict[str, Range]:
    """The values of a sweep by setting."""
    swept: dict[str, Range] = {}
    for setting in sweep:
        name, values = parse_sweep(setting)
        if name in swept:
            raise ConfigError(f"--sweep {setting}: found {name} a second time, expected it once with all its values")
        try:
            swept[name] = Range(choices=tuple(values))
        except ConfigError as error:
            raise ConfigError(f"--sweep {setting}: {error}") from error
    return swept


def _arm(base: Run, declared: Tune, name: str, swept: Mapping[str, Range]) -> _Arm:
    arm, where = (declared.arms[name], f"tune.arms.{name}") if declared.arms else (Arm(), "tune")
    try:
        changed = vary(base, set=arm.set)
    except TwoTowerError as error:
        raise type(error)(f"{where}: {error}") from error
    _check_measured_alike(base, changed, where)
    for setting in _GRANTED:
        found, expected = attrgetter(setting)(changed), attrgetter(setting)(base)
        if found != expected or setting in arm.ranges:
            raise ConfigError(f"{where}: changes {setting}, expected {expected} as in the run: arms get equal budgets")
    if swept:
        combinations = itertools.product(*(values.choices or () for values in swept.values()))
        grid = tuple(dict(zip(swept, values, strict=True)) for values in combinations)
        return _Arm(name=name, where=where, run=changed, ranges=dict(swept), grid=grid)
    ranges = {**declared.ranges, **arm.ranges}
    if not ranges:
        raise ConfigError(
            f'{where}: nothing varies: declare ranges, such as [tune.ranges] "loss.temperature" = '
            "{ low = 0.02, high = 0.3, log = true }, or sweep, such as --sweep loss.temperature=0.05,0.1"
        )
    if "training.seed" in ranges:
        raise ConfigError(
            "tune.ranges: found training.seed, but the luckiest is not the best: average, with tune.seeds"
        )
    return _Arm(name=name, where=where, run=changed, ranges=ranges, grid=None)


def _ends(ranges: Mapping[str, Range]) -> list[dict[str, Any]]:
    """Settings that show whether each range makes sense: all at their first value, then each at its others in turn."""
    values = {name: [r.low, r.high] if r.choices is None else list(r.choices) for name, r in ranges.items()}
    first: dict[str, Any] = {name: found[0] for name, found in values.items()}
    return [first, *(first | {name: value} for name, found in values.items() for value in found[1:])]


def _check(base: Run, arm: _Arm, settings: Mapping[str, object], where: str) -> None:
    try:
        changed = arm.settled(settings)
    except TwoTowerError as error:
        is_common = arm.grid is None and arm.name != ALONE and "is not a setting of" in str(error)
        hint = "; what only some arms have goes under tune.arms.NAME.ranges" if is_common else ""
        raise type(error)(f"{where}: {error}{hint}") from error
    _check_measured_alike(base, changed, where)


def _check_measured_alike(base: Run, changed: Run, where: str) -> None:
    for name in _MEASURED_BY:
        if attrgetter(name)(base) != attrgetter(name)(changed):
            raise ConfigError(
                f"{where}: changes {name}, but values of trials can be compared only where it is the same: leave it "
                "out, or search in several runs"
            )


def _check_free(folder: Path) -> None:
    """A search's folder is new, empty or of a search; what else is there is not written over."""
    if folder.exists() and not folder.is_dir():
        raise ArtifactError(f"{folder}: there is a file, expected a free place for the folder of the search")
    for name in (TRIALS, BEST_RUN, PLOT):
        if (folder / name).exists() and not (folder / JOURNAL).exists():
            raise ArtifactError(
                f"{folder}: holds a {name} that no search wrote and this one would replace: choose another folder"
            )


class _Search:
    """The trials of all arms, and the files that tell of them."""

    def __init__(
        self,
        run: Run,
        declared: Tune,
        arms: Sequence[_Arm],
        folder: Path,
        sizes: Mapping[str, int],
        is_sweep: bool,
        quiet: bool,
    ) -> None:
        self.run, self.declared, self.arms, self.folder, self.is_sweep = run, declared, arms, folder, is_sweep
        self.sizes = sizes
        self.console = Console(quiet=quiet, highlight=False, markup=False, soft_wrap=True)
        self.n = len(arms[0].grid) if arms[0].grid is not None else declared.trials
        self.journals = self._open()
        if known := len(self._trials()):
            self.console.print(f"{folder}: goes on after {known} of {self.n * len(arms)} trials")

    def _open(self) -> dict[str, ArmJournal]:
        from .journal import Journal

        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            journal = Journal(self.folder / JOURNAL)
        except OSError as error:
            raise ArtifactError(f"{self.folder}: can't be written ({error}): choose another folder") from error
        prune = self.declared.prune and not self.is_sweep  # a sweep is to show every combination
        return {
            arm.name: journal.arm(
                arm.name,
                terms=_terms(arm, self.declared, prune) | {"data": dict(self.sizes)},
                ranges=arm.ranges,
                seed=self.declared.seed,
                prune=prune,
            )
            for arm in self.arms
        }

    def go(self, store: Store, part_E: np.ndarray) -> None:
        """Bring every arm to its number of trials, in turns, so that a search cut short is fair too."""
        try:
            for number in range(1, self.n + 1):
                for arm in self.arms:
                    if len(self.journals[arm.name].trials()) < number:
                        self._try(arm, number, store, part_E)
        except KeyboardInterrupt:
            known = len(self._trials())
            self.console.print(f"interrupted after {known} trials: the same command goes on from there")
            raise

    def _try(self, arm: _Arm, number: int, store: Store, part_E: np.ndarray) -> None:
        journal = self.journals[arm.name]
        settings = journal.begin(None if arm.grid is None else arm.grid[number - 1])
        outcome = _attempt(arm.settled(settings), store, part_E, self.declared.seeds, journal.is_hopeless)
        before = best_of(self._trials())
        journal.end(outcome)
        self._write()
        best = best_of(self._trials())
        found = {
            "done": f"{self.run.training.metric} {outcome.value:.4f}" if outcome.value is not None else "",
            "pruned": "given up, below the median",
            "failed": f"failed ({outcome.error})",
        }[outcome.state]
        self.console.print(
            f"{arm.name} {number}/{self.n}: {found} in {outcome.seconds:.1f} s{' (best)' * (best != before)}: "
            f"{in_words(settings)}"
        )

    def _trials(self) -> tuple[Trial, ...]:
        """Of all arms, as many of each as were asked for."""
        by_arm = [self.journals[arm.name].trials()[: self.n] for arm in self.arms]
        return tuple(trial for trials in itertools.zip_longest(*by_arm) for trial in trials if trial is not None)

    def _write(self) -> None:
        """Replace trials.jsonl and best.toml."""
        trials = self._trials()
        _replace(self.folder / TRIALS, "".join(to_json(trial) + "\n" for trial in trials))
        best = best_of(trials)
        if best is None:
            return
        (arm,) = (arm for arm in self.arms if arm.name == best.arm)
        settled = arm.settled(best.settings)
        if settled.data is not None:
            settled = replace(settled, data=settled.data.under(Path.cwd()))
        said = (
            f"# {self.run.training.metric} {best.outcome.value:.4f} on validation: arm {arm.name}, trial {best.number}"
        )
        _replace(self.folder / BEST_RUN, f"{said} of a search\n{dump_run(settled)}")

    def finish(self) -> Tuned:
        """The result, and its picture."""
        trials = self._trials()
        if best_of(trials) is None:
            raise DataError(
                f"{self.folder}: none of {len(trials)} trials has a value; the last one failed: "
                f"{trials[-1].outcome.error}"
            )
        self._write()
        ranges = [(name, values) for arm in self.arms for name, values in arm.ranges.items()]
        tuned = Tuned(
            folder=self.folder,
            metric=self.run.training.metric,
            arms=tuple(arm.name for arm in self.arms),
            names=tuple(dict.fromkeys(name for name, _ in ranges)),
            by_log=frozenset(name for name, values in ranges if values.log),
            is_sweep=self.is_sweep,
            trials=trials,
            plot=self.folder / PLOT,
        )
        return tuned if plot(tuned, self.folder / PLOT) else replace(tuned, plot=None)


def _terms(arm: _Arm, declared: Tune, prune: bool) -> Tree:
    """All that the values of an arm depend on, but for the number of trials."""
    ranges = {name: asdict(values) for name, values in arm.ranges.items()}
    searched = {"seeds": declared.seeds, "seed": declared.seed, "prune": prune, "ranges": ranges}
    return run_tree(arm.run) | {"tune": searched, "is_sweep": arm.grid is not None}


def _replace(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


class _Hopeless(Exception):
    """A trial is given up."""


class _Watch(Recorder):
    """Says nothing, and asks after each validation whether to go on."""

    def __init__(self, is_hopeless: Callable[[float, int], bool]) -> None:
        super().__init__(None, quiet=True)
        self.is_hopeless, self.validations = is_hopeless, 0

    def write(self, what: str, step: int, epoch: float, values: dict[str, float]) -> None:
        """Of a validation only."""
        if what == "valid":
            (value,) = values.values()
            if self.is_hopeless(value, self.validations):
                raise _Hopeless
            self.validations += 1


def _attempt(
    run: Run, store: Store, part_E: np.ndarray, seeds: int, is_hopeless: Callable[[float, int], bool]
) -> Outcome:
    """Train with each seed. A training that diverges is a result of the search, not the end of it."""
    started, values, epochs = time.perf_counter(), list[float](), list[float]()

    def outcome(state: Any, error: str | None = None) -> Outcome:
        return Outcome(
            state=state,
            value=mean(values) if state == "done" else None,
            values=tuple(values),
            epochs=tuple(epochs),
            seconds=time.perf_counter() - started,
            error=error,
        )

    for at in range(seeds):
        seeded = replace(run, training=replace(run.training, seed=run.training.seed + at))
        recorder = _Watch(is_hopeless) if at == 0 else Recorder(None, quiet=True)
        try:
            fit = fit_once(seeded, store, part_E, recorder=recorder)
        except _Hopeless:
            return outcome("pruned")
        except DataError as error:
            return outcome("failed", str(error))
        if fit.best_metric is None or math.isnan(fit.best_metric):
            return outcome("failed", f"no held-out query has a {run.training.metric}")
        values.append(fit.best_metric)
        epochs.append(fit.best_epoch)
    return outcome("done")
