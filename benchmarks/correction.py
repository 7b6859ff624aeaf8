"""What correcting the negatives is worth, and what it costs: the same towers, data, steps and seeds in every arm.

    python -m benchmarks.correction debian [--seeds 3] [--epochs 5] [--dim 64] [--jobs 1] [--part test]

Arms: correction none (plain), negatives, all; exact and streaming frequencies (after five passes over the ids, and for
``negatives`` also from nothing); temperatures 0.05, 0.07, 0.14;
strengths 0.5, 0.7, 1 at 0.05; and a sweep of the number of uniform negatives (mixed negative sampling). Trained on the
training part of the demo data, measured on its test part, by popularity of the target. Nothing is selected here:
``--part valid`` measures on the validation part, for whoever changes a setting of all arms.

Two arms are compared query by query: each query's recall is averaged over the seeds, and the difference is given with
its standard error over the queries. ``--jobs`` runs so many fits at a time, each with its share of the cores.
"""

from __future__ import annotations

import argparse
import itertools
import os
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.data import committed_run
from benchmarks.harness import report
from twotower.data.held_out import PARTS
from twotower.evaluation import PairedDifference, paired_difference
from twotower.training.loop import evaluate_retriever, fit_once, open_or_ingest, settings_of
from twotower.training.retriever import Retriever

METRICS = [f"recall@{k}{part}" for k in (10, 100, 300) for part in ("", "_head", "_tail", "_unseen")]
TEMPERATURES = (0.05, 0.07, 0.14)
GAINS = (0.05, 0.07)
"""Temperatures at which correction is to beat none; streaming is to equal exact at all."""
UNIFORM = (0, 128, 512, 2048, 8192, 32768)
EXACT = "frequency={ kind = 'ExactFrequency' }"
STREAMING = "frequency={ kind = 'StreamingFrequency', burn_in = 5.0 }"
"""After five passes over the ids: exact counts know the whole data set before the first step, too."""
COLD = "frequency={ kind = 'StreamingFrequency' }"


@dataclass(frozen=True)
class Arm:
    """One way to train."""

    name: str
    settings: tuple[str, ...]


def arms() -> list[Arm]:
    """All of them; ``negatives`` at strength 1 is the reference at every temperature."""
    found = []
    for t in TEMPERATURES:
        temperature = f"loss.temperature={t}"
        found.append(Arm(f"plain t={t}", (temperature, "loss.correction=none")))
        for correction in ("negatives", "all"):
            settings: tuple[str, ...] = (temperature, f"loss.correction={correction}")
            found.append(Arm(f"{correction} t={t} streaming", (*settings, STREAMING)))
            if correction == "negatives":
                found.append(Arm(f"{correction} t={t} streaming from nothing", (*settings, COLD)))
            found.append(Arm(f"{correction} t={t} exact", (*settings, EXACT)))
    for strength in (0.5, 0.7):
        settings = ("loss.temperature=0.05", "loss.correction=negatives", f"loss.strength={strength}", STREAMING)
        found.append(Arm(f"negatives t=0.05 strength={strength} streaming", settings))
    for n in UNIFORM:
        parts = "[{ kind = 'InBatch' }]" if n == 0 else f"[{{ kind = 'InBatch' }}, {{ kind = 'Uniform', n = {n} }}]"
        negatives = f"negatives={{ kind = 'Mixture', parts = {parts} }}"
        found.append(Arm(f"mixed N'={n}", ("loss.temperature=0.05", "loss.correction=negatives", negatives, STREAMING)))
    return found


@dataclass(frozen=True)
class Result:
    """One fit, measured."""

    mean: dict[str, float]
    per_query: dict[str, np.ndarray]


def run_one(arm: Arm, base: list[str], seed: int, part: str, work: Path) -> Result:
    """Fit and measure one arm with one seed; the store under ``work`` is made by the first."""
    run = committed_run("debian", work, [*base, *arm.settings, f"training.seed={seed}"])
    store = open_or_ingest(run, quiet=True)
    part_E = run.split.assign(store)
    trained, measured = (
        np.where(np.isin(part_E, [PARTS[name] for name in names]), part_E, -1).astype(np.int8)
        for names in (("train",), ("train", part))
    )
    with settings_of(run.training):
        fit = fit_once(run, store, trained)
    result = evaluate_retriever(Retriever(run, store, fit.model.towers), measured, part, baselines=False)
    return Result(
        mean={metric: result.metric(metric) for metric in METRICS},
        per_query={metric: result.per_query["model"][metric].numpy() for metric in METRICS},
    )


def run_all(
    chosen: list[Arm], base: list[str], seeds: int, part: str, jobs: int, console: Console
) -> dict[str, list[Result]]:
    """Every arm with every seed, the arms in their order."""
    started = time.perf_counter()
    found: dict[str, list[Result]] = {}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        work = Path(folder)
        open_or_ingest(committed_run("debian", work, base), quiet=True)
        tasks = [(arm, seed) for arm in chosen for seed in range(seeds)]
        results: Iterator[Result] = (run_one(arm, base, seed, part, work) for arm, seed in tasks)
        if jobs > 1:
            threads = max(1, (os.cpu_count() or 1) // jobs)
            pool = stack.enter_context(
                ProcessPoolExecutor(jobs, get_context("spawn"), initializer=torch.set_num_threads, initargs=(threads,))
            )
            futures = [
                pool.submit(run_one, arm, base, seed, part, work) for arm, seed in reversed(tasks)
            ]  # longest first
            results = (future.result() for future in reversed(futures))
        for (arm, _), result in zip(tasks, results, strict=True):
            found.setdefault(arm.name, []).append(result)
            if len(found[arm.name]) == seeds:
                figures = "  ".join(f"{m} {mean(r.mean[m] for r in found[arm.name]):.4f}" for m in METRICS[4:8])
                console.print(f"{arm.name}: {figures}  ({time.perf_counter() - started:.0f} s)")
    return found


def per_query(results: list[Result], metric: str) -> torch.Tensor:
    """[Q] a metric of each query, averaged over seeds."""
    return torch.from_numpy(np.stack([r.per_query[metric] for r in results]).mean(0))


def compare(found: dict[str, list[Result]], a: str, b: str, metric: str) -> PairedDifference:
    return paired_difference(per_query(found[a], metric), per_query(found[b], metric))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=("debian",))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=float, default=5.0)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--part", choices=("test", "valid"), default="test", help="the part that is measured")
    parser.add_argument("--only", default="", help="arms whose name holds this text")
    parser.add_argument("--jobs", type=int, default=1, help="fits at a time")
    parser.add_argument(
        "--set", action="append", default=[], help="a setting of every arm, such as training.device=cuda"
    )
    arguments = parser.parse_args()
    started = time.perf_counter()
    base = [f"towers.dim={arguments.dim}", f"training.epochs={arguments.epochs}", "evaluation.k=[10, 100, 300]"]
    console = Console(width=160, highlight=False)
    chosen = [arm for arm in arms() if arguments.only in arm.name]
    found = run_all(chosen, [*base, *arguments.set], arguments.seeds, arguments.part, arguments.jobs, console)
    console.print(_table(found))
    verdicts = _verdicts(found, console)
    metrics = {name: _summary(results) for name, results in found.items()}
    report(
        "correction debian",
        {"arms": metrics, **verdicts},
        seconds=time.perf_counter() - started,
        seed=0,
        settings=vars(arguments),
    )


def _summary(results: list[Result]) -> dict[str, dict[str, float]]:
    """Mean and deviation over seeds of every metric."""
    summary = {}
    for metric in METRICS:
        values = [r.mean[metric] for r in results]
        summary[metric] = {"mean": mean(values), "deviation": stdev(values) if len(values) > 1 else 0.0}
    return summary


def _table(found: dict[str, list[Result]]) -> Table:
    table = Table("arm", *[m.removeprefix("recall") for m in METRICS], title="recall, mean over seeds")
    for name, results in found.items():
        table.add_row(name, *[f"{mean(r.mean[m] for r in results):.4f}" for m in METRICS])
    return table


def _verdicts(found: dict[str, list[Result]], console: Console) -> dict[str, bool]:
    """The two claims, with every comparison behind them, and what correction costs the tail."""
    beats, equal = [], []
    for t, metric in itertools.product(TEMPERATURES, METRICS[:1] + METRICS[4:8]):
        plain, streaming, exact = f"plain t={t}", f"negatives t={t} streaming", f"negatives t={t} exact"
        pairs = ((streaming, plain), (streaming, exact), (f"{streaming} from nothing", exact))
        gain, gap, cold = (compare(found, a, b, metric) if {a, b} <= set(found) else None for a, b in pairs)
        shown = (("negatives - plain", gain), ("streaming - exact", gap), ("streaming from nothing - exact", cold))
        console.print(f"t={t} {metric}:", *[f"{name} {d.mean:+.4f} ± {d.standard_error:.4f}" for name, d in shown if d])
        if metric in ("recall@10", "recall@100"):
            if gap is not None:
                equal.append(abs(gap.mean) <= 2 * gap.standard_error)
            if gain is not None and t in GAINS:
                beats.append(gain.mean > 2 * gain.standard_error)
    return {
        "negatives_beats_plain": bool(beats) and all(beats),
        "streaming_equals_exact": bool(equal) and all(equal),
    }


if __name__ == "__main__":
    main()
