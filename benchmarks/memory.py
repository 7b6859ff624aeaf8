"""Memory of one large step for every loss of the softmax, pairwise and adaptive families.

    python -m benchmarks.memory [--only Adaptive] [--batch 65536]

A batch of 65,536 pairs (items log-uniformly popular among a million) against ``InBatch() + Uniform(8192)``, 64 numbers
a vector. Measured is by how much the resident memory of a process of its own rises while it draws, encodes, compares,
goes back and moves the tables; tables and optimiser state are there before. One copy of the scores, all pairs by all
distinct candidates, is printed beside it.
"""

from __future__ import annotations

import argparse
import time

import torch

from benchmarks.harness import Apart, peak_extra_bytes, report, show
from benchmarks.step import Ours, Sizes
from twotower.losses import (
    BPR,
    CCL,
    AdapTau,
    AdaptiveMargin,
    AdaptiveTemperature,
    AdvInfoNCE,
    BilateralSoftmax,
    BucketedSoftmax,
    Loss,
    Margin,
    SampledSoftmax,
    Symmetric,
    Warp,
)
from twotower.training.matmul import probe

LOSSES: tuple[type[Loss], ...] = (
    SampledSoftmax,
    BilateralSoftmax,
    BucketedSoftmax,
    AdvInfoNCE,
    Symmetric,
    AdapTau,
    AdaptiveTemperature,
    AdaptiveMargin,
    BPR,
    CCL,
    Margin,
    Warp,
)
TARGET_MB = 1024.0


class Step(Ours):
    """A step whose memory is watched."""

    def memory(self, threads: int) -> tuple[float, float, float]:
        """MiB the step needed at most, MiB of one copy of the scores, and its seconds."""
        torch.set_num_threads(threads)
        batch, columns = next(self.stream), 0
        started = time.perf_counter()

        def step() -> None:
            nonlocal columns
            columns = self.stepper(batch, next(self.number), 1.0).n_columns

        extra = peak_extra_bytes(step)
        return extra / 2**20, len(batch.item_P) * columns * 4 / 2**20, time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="losses whose name holds this text")
    parser.add_argument("--batch", type=int, default=65_536)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    started, matmul = time.perf_counter(), probe().precision
    sizes = Sizes(batch=arguments.batch)
    rows, metrics = [], {}
    for loss in LOSSES:
        if arguments.only in loss.__name__:
            with Apart(Step, sizes, "float32", matmul, loss()) as contestant:
                extra, scores, seconds = contestant.call("memory", arguments.threads)
            metrics[loss.__name__] = extra
            rows.append((loss.__name__, extra, scores, seconds, "yes" if extra <= TARGET_MB else "NO"))
            print(f"{loss.__name__}: {extra:,.0f} MiB in {seconds:.0f} s", flush=True)
    show("One step", ("loss", "MiB above the tables", "MiB of the scores", "s", f"at most {TARGET_MB:,.0f}"), rows)
    report(
        "memory",
        metrics,
        seconds=time.perf_counter() - started,
        seed=sizes.seed,
        settings={"batch": arguments.batch, "uniform": sizes.uniform, "dim": sizes.dim, "items": sizes.items},
    )


if __name__ == "__main__":
    main()
