"""What stop-gradient and the symmetric term do for adaptive margins and temperatures: item vectors that gather or not.

    python -m benchmarks.collapse tldr [--epochs 2] [--seeds 1] [--plot docs/collapse.png]

Li et al. (EMNLP 2023 Industry) say that without stop-gradient all items gather in one place, and that the symmetric
term helps where a positive starts below its negatives. Both are tried on text queries to command pages in batches of
350 pairs. ``bad`` arms start with the query tower's map turned round, so that what matches scores lowest. Shown over
training: the mean similarity of different items of a batch (1: collapsed), and recall on validation at the end.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from pathlib import Path
from statistics import mean

import numpy as np

from benchmarks.data import committed_run
from benchmarks.harness import report, show
from twotower.config import Run, vary
from twotower.data.store import Store
from twotower.training.loop import Loop, evaluate_retriever, open_or_ingest, settings_of
from twotower.training.recorder import Recorder
from twotower.training.retriever import Retriever

BASE = ("training.batch_size=350", "towers.dim=128", "evaluation.batch_recall=350")
LOSSES = {"margin": "AdaptiveMargin", "temperature": "AdaptiveTemperature"}
ARMS = tuple(itertools.product(LOSSES, (False, True), (True, False), (0.0, 0.05)))
"""Loss, bad start, stop-gradient, weight of the symmetric term."""


def arm_name(loss: str, bad: bool, stop_gradient: bool, symmetric: float) -> str:
    return f"{loss}{' bad start' * bad}, {'stop-gradient' if stop_gradient else 'no stop-gradient'}, w={symmetric:g}"


class Watch(Recorder):
    """Keeps the similarity of items over training."""

    def __init__(self) -> None:
        super().__init__(None, quiet=True)
        self.seen: list[tuple[float, float]] = []

    def write(self, what: str, step: int, epoch: float, values: dict[str, float]) -> None:
        if what == "train" and "item_similarity" in values:
            self.seen.append((epoch, values["item_similarity"]))


def run_arm(run: Run, store: Store, bad: bool) -> tuple[list[tuple[float, float]], dict[str, float]]:
    """(epoch, similarity) over training, and metrics on the validation part."""
    part_E = run.split.assign(store)
    recorder = Watch()
    with settings_of(run.training):
        loop = Loop(run, store, np.flatnonzero(part_E == 0), None, recorder, None)
        if bad:
            loop.model.towers.query.project.weight.data.neg_()
        fit = loop.run_to(run.training.epochs)
        recorder.flush()
        found = evaluate_retriever(Retriever(run, store, fit.model.towers), part_E, "valid", baselines=False)
    assert found.batch_recall is not None
    return recorder.seen, {**found.rows["model"], **found.batch_recall.rows["model"]}


def plot(curves: dict[str, list[tuple[float, float]]], path: Path) -> None:
    """Similarity over training, a panel for each loss and start."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 7), layout="constrained")
    axes = figure.subplots(2, 2, sharey=True, squeeze=False)
    for (row, loss), (column, bad) in itertools.product(enumerate(LOSSES), enumerate((False, True))):
        axis = axes[row][column]
        axis.set(title=f"adaptive {loss}{', bad start' * bad}", xlabel="epoch", ylabel="mean similarity of items")
        for stop_gradient, symmetric in itertools.product((True, False), (0.0, 0.05)):
            curve = curves[arm_name(loss, bad, stop_gradient, symmetric)]
            style = {"color": "tab:blue" if stop_gradient else "tab:red", "linestyle": "--" if symmetric else "-"}
            label = f"{'stop-gradient' if stop_gradient else 'without'}, w={symmetric:g}"
            axis.plot([at for at, _ in curve], [value for _, value in curve], label=label, **style)
        axis.legend(fontsize="small")
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=("tldr",))
    parser.add_argument("--epochs", type=float, default=2.0)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--set", action="append", default=[], help="a setting of every arm")
    parser.add_argument("--plot", type=Path, help="where to draw similarity over training")
    arguments = parser.parse_args()
    started = time.perf_counter()
    rows, curves, metrics = [], {}, {}
    with tempfile.TemporaryDirectory() as work:
        settings = [*BASE, f"training.epochs={arguments.epochs}", *arguments.set]
        base = committed_run(arguments.name, Path(work), settings)
        store = open_or_ingest(base, quiet=True)
        for loss, bad, stop_gradient, symmetric in ARMS:
            name = arm_name(loss, bad, stop_gradient, symmetric)
            flag = "true" if stop_gradient else "false"
            setting = f"loss={{kind='{LOSSES[loss]}', stop_gradient={flag}, symmetric={symmetric}, correction='none'}}"
            runs = [vary(base, set=[setting], values={"training.seed": seed}) for seed in range(arguments.seeds)]
            results = [run_arm(run, store, bad) for run in runs]
            curves[name] = results[0][0]
            found = {metric: mean(r[metric] for _, r in results) for metric in results[0][1]}
            similarity = mean(curve[-1][1] for curve, _ in results)
            keys = ("recall@10", "recall@100", "batch_recall@1", "batch_recall@10")
            metrics[name] = {"item_similarity": similarity, **{key: found[key] for key in keys}}
            rows.append((name, *metrics[name].values()))
            print(name, {key: round(value, 4) for key, value in metrics[name].items()}, flush=True)
    show("At the end of training, validation", ("arm", "similarity", *keys), rows)
    if arguments.plot is not None:
        plot(curves, arguments.plot)
    report(
        f"collapse {arguments.name}",
        metrics,
        seconds=time.perf_counter() - started,
        seed=0,
        settings={"epochs": arguments.epochs, "seeds": arguments.seeds, "set": arguments.set},
    )


if __name__ == "__main__":
    main()
