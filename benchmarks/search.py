"""Try settings of a quality benchmark on its validation part; what is best there is then committed by hand.

    python -m benchmarks.search debian --try towers.dim=256,384 --try training.epochs=5,7
    python -m benchmarks.search gowalla --try loss.exponent=1.2,1.35 --try training.epochs=220,300 [--seeds 2]

Every combination is fitted on the training part alone (for gowalla and ml-1m on 90% of it) and measured on the
validation part, all with the same seeds. The test part is never looked at.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from pathlib import Path
from statistics import mean

from benchmarks.harness import report
from benchmarks.quality import METRICS_OF, fit_and_evaluate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=tuple(METRICS_OF))
    parser.add_argument("--try", dest="ranges", action="append", required=True, help="SETTING=VALUE,VALUE,...")
    parser.add_argument("--set", action="append", default=[], help="a setting of every trial")
    parser.add_argument("--seeds", type=int, default=1)
    arguments = parser.parse_args()
    started = time.perf_counter()
    axes = [
        [f"{name}={value}" for value in values.split(",")]
        for name, values in (r.split("=", 1) for r in arguments.ranges)
    ]
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as work:
        for trial in itertools.product(*axes):
            results = []
            for seed in range(arguments.seeds):
                settings = [*arguments.set, *trial, f"training.seed={seed}"]
                results.append(fit_and_evaluate(arguments.name, Path(work), set=settings, validate=True).metrics())
            name = " ".join(trial)
            found[name] = {metric: mean(r[metric] for r in results) for metric in results[0]}
            print(name, "  ".join(f"{metric} {value:.4f}" for metric, value in found[name].items()), flush=True)
    first = METRICS_OF[arguments.name][0]
    best = max(found, key=lambda name: found[name][first])
    print(f"best {first}: {best}")
    report(
        f"search {arguments.name}",
        {"best": best, "trials": found},
        seconds=time.perf_counter() - started,
        seed=0,
        settings={"try": arguments.ranges, "set": arguments.set, "seeds": arguments.seeds},
    )


if __name__ == "__main__":
    main()
