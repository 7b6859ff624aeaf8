"""What correcting the negatives is worth, and what it costs: the same towers, data, steps and seeds in every arm.

    python -m benchmarks.correction debian [--seeds 3] [--epochs 5] [--dim 64]

Arms: correction none (plain), negatives, all; exact and streaming frequencies; temperatures 0.05, 0.07, 0.14;
strengths 0.5, 0.7, 1 at 0.05; and a sweep of the number of uniform negatives (mixed negative sampling). Trained on the
training part of the demo data, measured on its test part, by popularity of the target. Nothing is selected here.

Two arms are compared query by query: each query's recall is averaged over the seeds, and the difference is given with
its standard error over the queries.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.data import committed_run
from benchmarks.harness import report
from twotower.data.store import Store
from twotower.evaluation import Evaluation, PairedDifference, paired_difference
from twotower.training.loop import evaluate_retriever, fit_once, open_or_ingest, settings_of
from twotower.training.retriever import Retriever

METRICS = [f"recall@{k}{part}" for k in (10, 100, 300) for part in ("", "_head", "_tail", "_unseen")]
TEMPERATURES = (0.05, 0.07, 0.14)
UNIFORM = (0, 128, 512, 2048, 8192, 32768)
EXACT = "frequency={ kind = 'ExactFrequency' }"


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
            settings = (temperature, f"loss.correction={correction}")
            found.append(Arm(f"{correction} t={t} streaming", settings))
            found.append(Arm(f"{correction} t={t} exact", (*settings, EXACT)))
    for strength in (0.5, 0.7):
        settings = ("loss.temperature=0.05", "loss.correction=negatives", f"loss.strength={strength}")
        found.append(Arm(f"negatives t=0.05 strength={strength} streaming", settings))
    for n in UNIFORM:
        parts = "[{ kind = 'InBatch' }]" if n == 0 else f"[{{ kind = 'InBatch' }}, {{ kind = 'Uniform', n = {n} }}]"
        negatives = f"negatives={{ kind = 'Mixture', parts = {parts} }}"
        found.append(Arm(f"mixed N'={n}", ("loss.temperature=0.05", "loss.correction=negatives", negatives)))
    return found


def run_arm(arm: Arm, base: list[str], seeds: int, work: Path) -> list[Evaluation]:
    results = []
    for seed in range(seeds):
        run = committed_run("debian", work, [*base, *arm.settings, f"training.seed={seed}"])
        store = open_or_ingest(run, quiet=True)
        part_E = run.split.assign(store)
        watched = np.where(part_E == 1, -1, part_E).astype(np.int8)  # validation takes no part here
        with settings_of(run.training):
            fit = fit_once(run, store, watched)
        results.append(_measured(store, Retriever(run, store, fit.model.towers), watched))
    return results


def _measured(store: Store, retriever: Retriever, part_E: np.ndarray) -> Evaluation:
    return evaluate_retriever(retriever, part_E, "test", baselines=False)


def per_query(results: list[Evaluation], metric: str) -> torch.Tensor:
    """[Q] a metric of each query, averaged over seeds."""
    return torch.stack([r.per_query["model"][metric] for r in results]).mean(0)


def compare(found: dict[str, list[Evaluation]], a: str, b: str, metric: str) -> PairedDifference:
    return paired_difference(per_query(found[a], metric), per_query(found[b], metric))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=("debian",))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=float, default=5.0)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--only", default="", help="arms whose name holds this text")
    arguments = parser.parse_args()
    started = time.perf_counter()
    base = [f"towers.dim={arguments.dim}", f"training.epochs={arguments.epochs}", "evaluation.k=[10, 100, 300]"]
    found: dict[str, list[Evaluation]] = {}
    console = Console(width=160, highlight=False)
    with tempfile.TemporaryDirectory() as work:
        for arm in arms():
            if arguments.only in arm.name:
                found[arm.name] = run_arm(arm, base, arguments.seeds, Path(work))
                figures = "  ".join(f"{m} {mean(r.metric(m) for r in found[arm.name]):.4f}" for m in METRICS[4:8])
                console.print(f"{arm.name}: {figures}  ({time.perf_counter() - started:.0f} s)")
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


def _summary(results: list[Evaluation]) -> dict[str, dict[str, float]]:
    """Mean and deviation over seeds of every metric."""
    summary = {}
    for metric in METRICS:
        values = [r.metric(metric) for r in results]
        summary[metric] = {"mean": mean(values), "deviation": stdev(values) if len(values) > 1 else 0.0}
    return summary


def _table(found: dict[str, list[Evaluation]]) -> Table:
    table = Table("arm", *[m.removeprefix("recall") for m in METRICS], title="recall, mean over seeds")
    for name, results in found.items():
        table.add_row(name, *[f"{mean(r.metric(m) for r in results):.4f}" for m in METRICS])
    return table


def _verdicts(found: dict[str, list[Evaluation]], console: Console) -> dict[str, bool]:
    """The two claims, with every comparison behind them, and what correction costs the tail."""
    beats, equal = [], []
    for t in TEMPERATURES:
        plain, streaming, exact = f"plain t={t}", f"negatives t={t} streaming", f"negatives t={t} exact"
        if not {plain, streaming, exact} <= set(found):
            continue
        for metric in METRICS[:1] + METRICS[4:8]:
            gain = compare(found, streaming, plain, metric)
            gap = compare(found, streaming, exact, metric)
            console.print(
                f"t={t} {metric}: negatives - plain {gain.mean:+.4f} ± {gain.standard_error:.4f}; "
                f"streaming - exact {gap.mean:+.4f} ± {gap.standard_error:.4f}"
            )
            if metric in ("recall@10", "recall@100"):
                equal.append(abs(gap.mean) <= 2 * gap.standard_error)
                if t in (0.05, 0.07):
                    beats.append(gain.mean > 2 * gain.standard_error)
    return {
        "negatives_beats_plain": bool(beats) and all(beats),
        "streaming_equals_exact": bool(equal) and all(equal),
    }


if __name__ == "__main__":
    main()
