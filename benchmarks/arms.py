"""Arms side by side: for each the same data, tower, epochs and number of trials of its settings.

A *comparison* is a kind (losses, negatives) and a data set. Its arms and the ranges of their settings are under
``[tune]`` in settings/KIND/NAME.toml. ``--search`` draws the same number of settings for each arm, trains each for
``search_share`` of the arm's epochs and measures it on validation data; what is best there is committed in
settings/KIND/NAME.chosen.toml, with ``choose_epochs`` the epoch of its best validation too. Without it the committed
settings are fitted with every seed, on train and validation together, and measured once on the test part; a loss that
finds its temperature is fitted on train alone before, as its refit keeps what was found there. ``--keep`` writes each
fit's result to a folder, and reads it there when the same settings are asked for again, so that hours of fits can be
done in parts.

``ARM-longer`` is an arm with the epochs, and what else differs, under ``[longer]``: what it reaches beyond the common
budget.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import tomllib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.data import SETTINGS, committed_run
from benchmarks.harness import report, resident_high_water
from twotower.config import Run, dump_run, parse_run, vary
from twotower.data.splits import GivenSplit
from twotower.data.store import Store
from twotower.errors import TwoTowerError
from twotower.evaluation import paired_difference
from twotower.losses import AdapTau, Loss
from twotower.training.loop import evaluate_retriever, fit_once, open_or_ingest, refit, settings_of
from twotower.training.retriever import Retriever
from twotower.training.tune import tune

LONGER = "-longer"
"""Ends the name of an arm that trains beyond the common budget."""


@dataclass(frozen=True)
class Result:
    """One fit, measured."""

    metric: dict[str, float]
    seconds: float
    """Of the fit."""
    memory_mb: float
    """Most memory the process held, tables and data included."""
    first_Q: list[float] | None = None
    """The first metric of every query, where arms are compared query by query."""


Further = Callable[[Retriever, np.ndarray], dict[str, float]]
"""What else is measured of a fit: the retriever and the part of each event -> metrics."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What is compared on which data sets."""

    name: str
    metrics: Mapping[str, tuple[str, ...]]
    """What is reported of each data set; the first is what arms are compared by."""
    cut: tuple[str, ...]
    """Data without a validation part: a tenth of train is cut off to search by, and joined again for the test."""
    further: Mapping[str, Further]
    """By data set; a function of a module, as each fit is a process of its own."""
    paired: Mapping[str, tuple[tuple[str, str], ...]]
    """By data set, the arms that are compared query by query."""

    def settings(self, name: str) -> Path:
        """File of a comparison."""
        return SETTINGS / self.name / f"{name}.toml"

    def comparison(self, name: str) -> dict[str, Any]:
        """Arms and ranges, what is set for all, epochs of single arms, the share of them in a search."""
        return tomllib.loads(self.settings(name).read_text(encoding="utf-8"))

    def chosen(self, name: str) -> dict[str, dict[str, object]]:
        """Settings that were best on validation, by arm."""
        path = self.settings(f"{name}.chosen")
        return tomllib.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def run_of(kind: Kind, name: str, work: Path, overrides: Sequence[str]) -> Run:
    """The run that all arms are laid over, and the arms."""
    arms = kind.comparison(name)
    run = committed_run(name, work, [*arms["set"], *overrides])
    if run.split == GivenSplit():
        run = replace(run, split=GivenSplit(valid=0.1)) if name in kind.cut else run
    return vary(run, values={"tune": arms["tune"]})


def arm_run(kind: Kind, name: str, arm: str, base: Run, seed: int) -> Run:
    """The run of one arm with its chosen settings."""
    assert base.tune is not None
    of = arm.removesuffix(LONGER)
    values = {
        "training.epochs": epochs_of(kind, name, of, base),
        **kind.chosen(name).get(of, {}),
        "training.seed": seed,
    }
    if of != arm:
        values |= kind.comparison(name)["longer"][of]
    run = vary(base, set=base.tune.arms[of].set, values=values)
    assert base.data is not None
    assert run.data is not None
    store = Path(base.data.store).parent / run.data.store  # that of an arm of its own lies beside the common one
    return replace(run, data=replace(run.data, store=str(store)), training=replace(run.training, refit=True), tune=None)


def epochs_of(kind: Kind, name: str, arm: str, base: Run) -> float:
    """Epochs of an arm: as the others, unless an epoch of its own takes another time."""
    return float(kind.comparison(name).get("epochs", {}).get(arm, base.training.epochs))


def run_one(
    kind: Kind, name: str, arm: str, seed: int, work: Path, overrides: Sequence[str], keep: Path | None
) -> Result:
    """Fit and measure one arm with one seed, unless its result is kept."""
    run = arm_run(kind, name, arm, run_of(kind, name, work, overrides), seed)
    record = None if keep is None else keep / f"{arm}.{seed}.json"
    settings = dump_run(replace(run, data=None))
    if record is not None and record.exists():
        kept = json.loads(record.read_text(encoding="utf-8"))
        if _as_written_now(kept.pop("settings")) == settings:
            return Result(**kept)
    result = _measured(kind, name, run)
    if record is not None:
        record.parent.mkdir(parents=True, exist_ok=True)
        record.write_text(json.dumps({"settings": settings, **asdict(result)}, indent=1), encoding="utf-8")
    return result


def _as_written_now(settings: str) -> str | None:
    """A run as it would be written today, with settings that are new since at their defaults; None where it is none any
    more."""
    try:
        return dump_run(parse_run(settings))
    except TwoTowerError:
        return None


def _found(run: Run, store: Store, part_E: np.ndarray) -> Loss | None:
    """For a refit that keeps what its loss found in a first fit: the loss of that fit, which is measured once."""
    if not isinstance(run.loss, AdapTau):
        return None
    run = replace(run, training=replace(run.training, validate_every=run.training.epochs))
    return fit_once(run, store, part_E).model.loss


def _measured(kind: Kind, name: str, run: Run) -> Result:
    store = open_or_ingest(run, quiet=True)
    part_E = run.split.assign(store)
    with settings_of(run.training):
        fit = refit(run, store, part_E, run.training.epochs, found=_found(run, store, part_E))
        retriever = Retriever(run, store, fit.model.towers)
        measured = evaluate_retriever(retriever, part_E, "test", baselines=False)
    found = {**measured.rows["model"], **(measured.batch_recall.rows["model"] if measured.batch_recall else {})}
    if name in kind.further:
        found |= kind.further[name](retriever, part_E)
    first = kind.metrics[name][0]
    return Result(
        metric={metric: found[metric] for metric in kind.metrics[name]},
        seconds=fit.seconds,
        memory_mb=resident_high_water() / 2**20,
        first_Q=measured.per_query["model"][first].tolist() if name in kind.paired else None,
    )


def search(kind: Kind, name: str, folder: Path, only: str, overrides: Sequence[str]) -> None:
    """Draw settings for each arm, and write the best of each to the committed file as soon as it is known.

    The store lies in ``folder`` too: a search goes on only over the data it began with.
    """
    comparison = kind.comparison(name)
    share = comparison.get("search_share", 1.0)
    folder.mkdir(parents=True, exist_ok=True)
    base = run_of(kind, name, folder.resolve(), overrides)
    assert base.tune is not None
    for arm in named(list(base.tune.arms), only):
        declared = replace(base.tune, arms={arm: base.tune.arms[arm]})
        training = replace(base.training, epochs=share * epochs_of(kind, name, arm, base))
        found = tune(replace(base, training=training, tune=declared), folder / arm)
        print(found.table())
        trials = [trial for trial in found.of(arm) if trial.outcome.value is not None]
        if trials:
            best = max(trials, key=lambda trial: trial.outcome.value or 0.0)
            epochs = {"training.epochs": mean(best.outcome.epochs)} if comparison.get("choose_epochs") else {}
            write_chosen(kind, name, base.tune.trials, {arm: {**best.settings, **epochs}})


def write_chosen(kind: Kind, name: str, trials: int, best: dict[str, dict[str, object]]) -> None:
    """Write the best settings of some arms to the committed file, where those of the others stay."""
    text = "".join(
        f'["{arm}"]\n' + "".join(f'"{setting}" = {_short(value)}\n' for setting, value in settings.items()) + "\n"
        for arm, settings in sorted({**kind.chosen(name), **best}.items())
    )
    head = f"# Best on validation of {trials} trials each: python -m benchmarks.{kind.name} {name} --search FOLDER"
    kind.settings(f"{name}.chosen").write_text(f"{head}\n\n{text}", encoding="utf-8")


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else repr(value)


def measure(
    kind: Kind, name: str, only: str, seeds: int, jobs: int, overrides: Sequence[str], keep: Path | None
) -> None:
    """Every arm with every seed, one process a fit, so that its memory is its own."""
    started = time.perf_counter()
    console = Console(width=180, highlight=False)
    first = kind.metrics[name][0]
    found: dict[str, list[Result]] = {}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        base = run_of(kind, name, work, overrides)
        assert base.tune is not None
        arms = named([*base.tune.arms, *(of + LONGER for of in kind.comparison(name).get("longer", {}))], only)
        runs = {arm: arm_run(kind, name, arm, base, 0) for arm in arms}
        for run in runs.values():  # stores are made before the fits that share them
            open_or_ingest(run, quiet=True)
        tasks = [(arm, seed) for arm in arms for seed in range(seeds)]
        with ProcessPoolExecutor(jobs, get_context("spawn"), max_tasks_per_child=1) as pool:
            futures = [pool.submit(run_one, kind, name, arm, seed, work, overrides, keep) for arm, seed in tasks]
            for (arm, _), future in zip(tasks, futures, strict=True):
                found.setdefault(arm, []).append(future.result())
                if len(found[arm]) == seeds:
                    console.print(
                        f"{arm}: {cell([r.metric[first] for r in found[arm]])} ({time.perf_counter() - started:.0f} s)"
                    )
    epoch_s = {arm: mean(r.seconds for r in found[arm]) / run.training.epochs for arm, run in runs.items()}
    console.print(_table(kind, name, found, epoch_s))
    first_Q = {arm: [result.first_Q or [] for result in results] for arm, results in found.items()}
    differences = differences_of(kind.paired.get(name, ()), first_Q)
    for pair, difference in differences.items():
        console.print(f"{first}, {pair}: {in_words(difference)}")
    metrics: dict[str, object] = {arm: mean(r.metric[first] for r in results) for arm, results in found.items()}
    metrics["all"] = {
        arm: {metric: mean(r.metric[metric] for r in results) for metric in kind.metrics[name]}
        | {"seconds_per_epoch": epoch_s[arm]}
        for arm, results in found.items()
    }
    metrics |= {"differences": differences} if differences else {}
    report(
        f"{kind.name} {name}",
        metrics,
        seconds=time.perf_counter() - started,
        seed=0,
        settings={
            "seeds": seeds,
            "only": only,
            "set": list(overrides),
            "chosen": {arm: kind.chosen(name).get(arm) for arm in arms},
        },
    )


def differences_of(
    pairs: Sequence[tuple[str, str]], value_Q: Mapping[str, list[list[float]]]
) -> dict[str, dict[str, float]]:
    """Between arms of a metric (arm -> seed -> query), meaned over seeds query by query: mean and 95% interval."""
    differences = {}
    for a, b in pairs:
        if a in value_Q and b in value_Q:
            mean_Q = [torch.tensor(value_Q[arm], dtype=torch.float64).mean(0) for arm in (a, b)]
            measured = paired_difference(*mean_Q)
            half = 1.96 * measured.standard_error
            differences[f"{a} - {b}"] = {
                "mean": measured.mean,
                "low": measured.mean - half,
                "high": measured.mean + half,
            }
    return differences


def in_words(difference: Mapping[str, float]) -> str:
    """A difference and its interval."""
    return f"{difference['mean']:+.4f} (95%: {difference['low']:+.4f} to {difference['high']:+.4f})"


def named(arms: list[str], only: str) -> list[str]:
    """Arms whose name holds the text."""
    found = [arm for arm in arms if only in arm]
    if not found:
        raise SystemExit(f"--only {only}: found no such arm, expected part of one of {sorted(arms)}")
    return found


def cell(values: Sequence[float]) -> str:
    """Mean and deviation over seeds."""
    return f"{mean(values):.4f}" + (f" ± {stdev(values):.4f}" if len(values) > 1 else "")


def _table(kind: Kind, name: str, found: dict[str, list[Result]], epoch_s: dict[str, float]) -> Table:
    table = Table(
        "arm", *kind.metrics[name], "fit s", "s/epoch", "MB", title=f"{name}, test, mean ± deviation over seeds"
    )
    for arm, results in found.items():
        cells = [cell([r.metric[metric] for r in results]) for metric in kind.metrics[name]]
        seconds, memory = mean(r.seconds for r in results), max(r.memory_mb for r in results)
        table.add_row(arm, *cells, f"{seconds:.0f}", f"{epoch_s[arm]:.2f}", f"{memory:,.0f}")
    return table


def main(kind: Kind, doc: str | None) -> None:
    """The command line of a kind of comparison."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=tuple(kind.metrics))
    parser.add_argument("--only", default="", help="arms whose name holds this text")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1, help="fits at a time")
    parser.add_argument("--set", action="append", default=[], help="a setting of every arm")
    parser.add_argument("--keep", type=Path, help="folder of results of single fits, read where settings are the same")
    parser.add_argument("--search", type=Path, help="search on validation instead, with its records in this folder")
    arguments = parser.parse_args()
    if arguments.search is None:
        measure(kind, arguments.name, arguments.only, arguments.seeds, arguments.jobs, arguments.set, arguments.keep)
        return
    search(kind, arguments.name, arguments.search, arguments.only, arguments.set)
