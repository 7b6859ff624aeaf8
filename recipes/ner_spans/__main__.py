"""Missed entities as negatives: all unlabelled spans, or a few drawn of each sentence.

    python -m recipes.ner_spans [--missing 0,0.5] [--rates all,0.35,0.7] [--seeds 3] [--epochs 6]

F1 on test pages, all of whose labels are there; training loses a share of its own.
"""

from __future__ import annotations

import argparse
import time
from statistics import mean, stdev

import torch
from benchmarks.data import data_folder
from benchmarks.harness import report, show

from recipes.ner_spans.model import f1, train
from recipes.ner_spans.sentences import read_parts, with_missing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--missing", default="0,0.5", help="shares of the training labels that are lost")
    parser.add_argument("--rates", default="all,0.35,0.7", help="unlabelled spans drawn a token")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    started = time.perf_counter()
    parts = read_parts(data_folder() / "tldr" / "pages.jsonl.gz")
    print(", ".join(f"{part}: {len(its):,} commands, {sum(len(s.span) for s in its):,} arguments"
                    for part, its in parts.items()))  # fmt: skip
    rows, metrics = [], {}
    for share in map(float, arguments.missing.split(",")):
        for rate in arguments.rates.split(","):
            found = []
            for seed in range(arguments.seeds):
                sentences = with_missing(parts["train"], share, seed)
                model = train(
                    sentences, None if rate == "all" else float(rate), epochs=arguments.epochs, seed=seed
                )  # fmt: skip
                found.append(f1(model, parts["test"]))
            deviation = stdev(found) if len(found) > 1 else 0.0
            rows.append((f"{share:g} of labels missing, negatives {rate}", mean(found), deviation))
            metrics[f"missing {share:g}, {rate}"] = mean(found)
            print(f"{rows[-1][0]}: F1 {mean(found):.4f} ± {deviation:.4f}", flush=True)
    show("F1 on test", ("", "mean", "deviation"), rows)
    report("ner_spans", metrics, seconds=time.perf_counter() - started, seed=0, settings=vars(arguments))


if __name__ == "__main__":
    main()
