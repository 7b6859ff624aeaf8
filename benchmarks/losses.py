"""Losses side by side: for each the same data, tower, epochs and number of trials of its settings.

    python -m benchmarks.losses gowalla | ml-1m | tldr | debian [--only mf.] [--seeds 3] [--jobs 1] [--set NAME=VALUE]
                                [--keep FOLDER]
    python -m benchmarks.losses gowalla --search FOLDER

An arm is a loss with what belongs to it (negatives, kind of batch); arms and the ranges of their settings are under
``[tune]`` in settings/losses/NAME.toml. ``--search`` draws the same number of settings for each arm, trains each for
``search_share`` of the arm's epochs and measures it on validation data; what is best there is committed in
settings/losses/NAME.chosen.toml. Without it the committed settings are fitted with every seed, on train and validation
together, and measured once on the test part; ``--keep`` writes each fit's result to a folder, and reads it there when
the same settings are asked for again, so that hours of fits can be done in parts.

``ARM-longer`` is an arm with the epochs, and what else differs, under ``[longer]``: what it reaches beyond the common
budget.

gowalla, ml-1m   ``mf.LOSS`` and ``graph.LOSS``: matrix factorisation, and LightGCN over the same tables
tldr             fixed temperatures and margins against adaptive ones, with and without the symmetric term
debian           the three arms of the paper on mixed negatives (sampled softmax over ids, batch negatives, mixed), and
                 plain softmax, corrected softmax and mse-gramian as in that on sampling-bias correction
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import tomllib
from collections.abc import Sequence
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
from twotower.config import Run, dump_run, vary
from twotower.data.held_out import held_out
from twotower.data.splits import GivenSplit
from twotower.evaluation import top_k
from twotower.training.loop import evaluate_retriever, open_or_ingest, refit, settings_of
from twotower.training.retriever import Retriever, encode_questions
from twotower.training.tune import tune

CUT = ("gowalla", "ml-1m")
"""Data without a validation part: a tenth of train is cut off to search by, and joined again for the test."""

LISTED = 10
"""Places of a list that are looked at for what they hold."""

LONGER = "-longer"
"""Ends the name of an arm that trains beyond the common budget."""

METRICS_OF = {
    "gowalla": ("recall@20", "ndcg@20"),
    "ml-1m": ("recall@20", "ndcg@20"),
    "tldr": ("recall@1", "recall@10", "recall@100", "batch_recall@1", "batch_recall@5", "batch_recall@10"),
    "debian": ("recall@10", "recall@100", "recall@100_head", "recall@100_tail", "recall@100_unseen", "tail_share",
               "unlinked_share"),
}  # fmt: skip
"""What is reported; the first is what arms are compared by."""


@dataclass(frozen=True)
class Result:
    """One fit, measured."""

    metric: dict[str, float]
    seconds: float
    """Of the fit."""
    memory_mb: float
    """Most memory the process held, tables and data included."""


def comparison(name: str) -> dict[str, Any]:
    """What is compared: arms and ranges, what is set for all, epochs of single arms, the share of them in a search."""
    return tomllib.loads((SETTINGS / "losses" / f"{name}.toml").read_text(encoding="utf-8"))


def run_of(name: str, work: Path, overrides: Sequence[str]) -> Run:
    """The run that all arms are laid over, and the arms."""
    arms = comparison(name)
    run = committed_run(name, work, [*arms["set"], *overrides])
    if run.split == GivenSplit():
        run = replace(run, split=GivenSplit(valid=0.1)) if name in CUT else run
    return vary(run, values={"tune": arms["tune"]})


def chosen(name: str) -> dict[str, dict[str, object]]:
    """Settings that were best on validation, by arm."""
    path = SETTINGS / "losses" / f"{name}.chosen.toml"
    return tomllib.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def arm_run(name: str, arm: str, base: Run, seed: int) -> Run:
    """The run of one arm with its chosen settings."""
    assert base.tune is not None
    of = arm.removesuffix(LONGER)
    values = {"training.epochs": epochs_of(name, of, base), **chosen(name).get(of, {}), "training.seed": seed}
    if of != arm:
        values |= comparison(name)["longer"][of]
    run = vary(base, set=base.tune.arms[of].set, values=values)
    assert base.data is not None
    assert run.data is not None
    store = Path(base.data.store).parent / run.data.store  # that of an arm of its own lies beside the common one
    return replace(run, data=replace(run.data, store=str(store)), training=replace(run.training, refit=True), tune=None)


def epochs_of(name: str, arm: str, base: Run) -> float:
    """Epochs of an arm: as the others, unless an epoch of its own takes another time."""
    return float(comparison(name).get("epochs", {}).get(arm, base.training.epochs))


def run_one(name: str, arm: str, seed: int, work: Path, overrides: Sequence[str], keep: Path | None) -> Result:
    """Fit and measure one arm with one seed, unless its result is kept."""
    run = arm_run(name, arm, run_of(name, work, overrides), seed)
    record = None if keep is None else keep / f"{arm}.{seed}.json"
    settings = dump_run(replace(run, data=None))
    if record is not None and record.exists():
        kept = json.loads(record.read_text(encoding="utf-8"))
        if kept.pop("settings") == settings:
            return Result(**kept)
    result = _measured(name, run)
    if record is not None:
        record.parent.mkdir(parents=True, exist_ok=True)
        record.write_text(json.dumps({"settings": settings, **asdict(result)}, indent=1), encoding="utf-8")
    return result


def _measured(name: str, run: Run) -> Result:
    store = open_or_ingest(run, quiet=True)
    part_E = run.split.assign(store)
    with settings_of(run.training):
        fit = refit(run, store, part_E, run.training.epochs)
        retriever = Retriever(run, store, fit.model.towers)
        measured = evaluate_retriever(retriever, part_E, "test", baselines=False)
    found = {**measured.rows["model"], **(measured.batch_recall.rows["model"] if measured.batch_recall else {})}
    if name == "debian":
        found |= _listed(retriever, part_E)
    return Result(
        metric={metric: found[metric] for metric in METRICS_OF[name]},
        seconds=fit.seconds,
        memory_mb=resident_high_water() / 2**20,
    )


def _listed(retriever: Retriever, part_E: np.ndarray) -> dict[str, float]:
    """Which items are listed: the share with at most 50 training links, and with none at all."""
    questions = held_out(retriever.store, part_E, "test")
    query_QD = encode_questions(retriever.towers, questions)
    row_QL = top_k(query_QD, retriever.item_MD, LISTED, exclude=questions.seen).row_Qk
    trained = (part_E == 0) | (part_E == 1)
    count_M = torch.from_numpy(np.bincount(retriever.store.item_row[trained], minlength=retriever.store.n_items))
    count_QL = count_M[row_QL]
    return {
        "tail_share": float((count_QL <= 50).float().mean()),
        "unlinked_share": float((count_QL == 0).float().mean()),
    }


def search(name: str, folder: Path, only: str, overrides: Sequence[str]) -> None:
    """Draw settings for each arm, and write the best of each to the committed file as soon as it is known.

    The store lies in ``folder`` too: a search goes on only over the data it began with.
    """
    share = comparison(name).get("search_share", 1.0)
    folder.mkdir(parents=True, exist_ok=True)
    base = run_of(name, folder.resolve(), overrides)
    assert base.tune is not None
    for arm in _named(list(base.tune.arms), only):
        declared = replace(base.tune, arms={arm: base.tune.arms[arm]})
        training = replace(base.training, epochs=share * epochs_of(name, arm, base))
        found = tune(replace(base, training=training, tune=declared), folder / arm)
        print(found.table())
        trials = [trial for trial in found.of(arm) if trial.outcome.value is not None]
        if trials:
            _write_chosen(name, base.tune.trials, {arm: max(trials, key=lambda t: t.outcome.value or 0.0).settings})


def _write_chosen(name: str, trials: int, best: dict[str, dict[str, object]]) -> None:
    text = "".join(
        f'["{arm}"]\n' + "".join(f'"{setting}" = {_short(value)}\n' for setting, value in settings.items()) + "\n"
        for arm, settings in sorted({**chosen(name), **best}.items())
    )
    head = f"# Best on validation of {trials} trials each: python -m benchmarks.losses {name} --search FOLDER"
    (SETTINGS / "losses" / f"{name}.chosen.toml").write_text(f"{head}\n\n{text}", encoding="utf-8")


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else repr(value)


def measure(name: str, only: str, seeds: int, jobs: int, overrides: Sequence[str], keep: Path | None) -> None:
    """Every arm with every seed, one process a fit, so that its memory is its own."""
    started = time.perf_counter()
    console = Console(width=180, highlight=False)
    found: dict[str, list[Result]] = {}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        base = run_of(name, work, overrides)
        assert base.tune is not None
        arms = _named([*base.tune.arms, *(of + LONGER for of in comparison(name).get("longer", {}))], only)
        for arm in arms:  # stores are made before the fits that share them
            open_or_ingest(arm_run(name, arm, base, 0), quiet=True)
        tasks = [(arm, seed) for arm in arms for seed in range(seeds)]
        with ProcessPoolExecutor(jobs, get_context("spawn"), max_tasks_per_child=1) as pool:
            futures = [pool.submit(run_one, name, arm, seed, work, overrides, keep) for arm, seed in tasks]
            for (arm, _), future in zip(tasks, futures, strict=True):
                found.setdefault(arm, []).append(future.result())
                if len(found[arm]) == seeds:
                    console.print(
                        f"{arm}: {_cell(found[arm], METRICS_OF[name][0])} ({time.perf_counter() - started:.0f} s)"
                    )
        settings = {arm: dump_run(replace(arm_run(name, arm, base, 0), data=None)) for arm in arms}
    console.print(_table(name, found))
    first = METRICS_OF[name][0]
    metrics: dict[str, object] = {arm: mean(r.metric[first] for r in results) for arm, results in found.items()}
    metrics["all"] = {
        arm: {metric: mean(r.metric[metric] for r in results) for metric in METRICS_OF[name]}
        for arm, results in found.items()
    }
    report(
        f"losses {name}",
        metrics,
        seconds=time.perf_counter() - started,
        seed=0,
        settings={"seeds": seeds, "only": only, "set": list(overrides), "runs": settings},
    )


def _named(arms: list[str], only: str) -> list[str]:
    """Arms whose name holds the text."""
    found = [arm for arm in arms if only in arm]
    if not found:
        raise SystemExit(f"--only {only}: found no such arm, expected part of one of {sorted(arms)}")
    return found


def _cell(results: list[Result], metric: str) -> str:
    values = [r.metric[metric] for r in results]
    return f"{mean(values):.4f}" + (f" ± {stdev(values):.4f}" if len(values) > 1 else "")


def _table(name: str, found: dict[str, list[Result]]) -> Table:
    table = Table("arm", *METRICS_OF[name], "fit s", "MB", title=f"{name}, test, mean ± deviation over seeds")
    for arm, results in found.items():
        cells = [_cell(results, metric) for metric in METRICS_OF[name]]
        seconds, memory = mean(r.seconds for r in results), max(r.memory_mb for r in results)
        table.add_row(arm, *cells, f"{seconds:.0f}", f"{memory:,.0f}")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=tuple(METRICS_OF))
    parser.add_argument("--only", default="", help="arms whose name holds this text")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1, help="fits at a time")
    parser.add_argument("--set", action="append", default=[], help="a setting of every arm")
    parser.add_argument("--keep", type=Path, help="folder of results of single fits, read where settings are the same")
    parser.add_argument("--search", type=Path, help="search on validation instead, with its records in this folder")
    arguments = parser.parse_args()
    if arguments.search is None:
        measure(arguments.name, arguments.only, arguments.seeds, arguments.jobs, arguments.set, arguments.keep)
        return
    search(arguments.name, arguments.search, arguments.only, arguments.set)


if __name__ == "__main__":
    main()
