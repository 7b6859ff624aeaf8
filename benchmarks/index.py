"""Indexes: exact search against Faiss flat, and what each kind finds and costs on trained and on synthetic vectors.

    python -m benchmarks.index [--on debian gowalla-fast clusters] [--skip HNSW] [--items 1000000] [--results FOLDER]

``clusters`` are unit vectors of 64 numbers around 2,000 centres; the others are trained with their committed settings,
and asked with their held-out queries. Each kind is built on one thread, tuned for recall@100 of .95 on half of the
queries, and measured on the others, one query at a time on one thread.

``exact_over_faiss_flat`` is how many times more queries a second of processor time ``Exact`` answers than
``faiss.IndexFlatIP``, 256 queries at once, both on one thread and by turns, median of 5. The library of numpy's
products is held to one thread by OMP_NUM_THREADS=1, which this program sets.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before numpy is imported

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import faiss
import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks import harness
from benchmarks.data import committed_run
from twotower.evaluation import top_k
from twotower.index import Index, IndexReport, IndexSettings, report
from twotower.index.report import USUAL
from twotower.training import report_index, train

WIDTH, CENTRES, K = 64, 2_000, 100
QUERIES, ROUNDS = 256, 5
TARGET = 0.95


def clusters(n: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Unit vectors around centres that are always the same."""
    centre_CD = np.random.default_rng(1).standard_normal((CENTRES, WIDTH), np.float32)
    vector_nD = rng.standard_normal((n, WIDTH), np.float32)
    vector_nD *= 0.5
    vector_nD += centre_CD[rng.integers(0, CENTRES, n)]
    vector_nD /= np.linalg.norm(vector_nD, axis=1, keepdims=True)
    return vector_nD


def exact_against_faiss(vector_MD: NDArray[np.float32], query_QD: NDArray[np.float32]) -> dict[str, float]:
    """Queries a second of processor time, many at once and one by one, and their ratios."""
    index, flat = Index.build(vector_MD), faiss.IndexFlatIP(WIDTH)
    flat.add(vector_MD)
    faiss.omp_set_num_threads(1)
    torch.set_num_threads(1)
    query_tensor, item_tensor = torch.from_numpy(query_QD), torch.from_numpy(vector_MD)
    seconds = _by_turns(
        {
            "faiss": lambda: flat.search(query_QD, K),
            "exact": lambda: index.search(query_QD, K),
            "evaluation": lambda: top_k(query_tensor, item_tensor, K),
        }
    )
    one_by_one = _by_turns(
        {
            "faiss": lambda: [flat.search(query_QD[at : at + 1], K) for at in range(20)],
            "exact": lambda: [index.search(query_QD[at : at + 1], K) for at in range(20)],
        }
    )
    agree = np.mean(
        [
            len(np.intersect1d(a, b)) / K
            for a, b in zip(index.search(query_QD, K).row_Bk, flat.search(query_QD, K)[1], strict=True)
        ]
    )
    found = {f"{name}_queries_a_second": len(query_QD) / taken for name, taken in seconds.items()}
    found |= {f"{name}_ms_one_by_one": 1000 * taken / 20 for name, taken in one_by_one.items()}
    return found | {
        "exact_over_faiss_flat": seconds["faiss"] / seconds["exact"],
        "exact_over_faiss_flat_one_by_one": one_by_one["faiss"] / one_by_one["exact"],
        "rows_agree": float(agree),
    }


def _by_turns(contestants: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Seconds of processor time, median of some rounds."""
    taken: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(ROUNDS):
        for name, run in contestants.items():
            started = time.process_time()
            run()
            taken[name].append(time.process_time() - started)
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


def metrics_of(found: IndexReport) -> dict[str, object]:
    """A line of the report as numbers."""
    return {
        line.kind: {
            "recall": line.recall,
            "tuned_for_target": line.met,
            "target_met_on_other_queries": line.recall >= found.target_recall,
            "recall_by_decile": ["none" if one is None else round(one, 4) for one in line.recall_by_decile],
            **{f"recall_{name}_filter": one.recall for name, one in line.filtered.items()},
            **{f"p50_ms_{name}_filter": one.latency.p50_ms for name, one in line.filtered.items()},
            "p50_ms": line.latency.p50_ms,
            "p99_ms": line.latency.p99_ms,
            "build_s": line.build_s,
            "mib": line.memory_bytes / 2**20,
        }
        for line in found.lines
    }


def reported(name: str, kinds: tuple[IndexSettings, ...], items: int) -> tuple[IndexReport, dict[str, object]]:
    """The report of one set of vectors, and the comparison with Faiss flat where they are the synthetic ones."""
    if name == "clusters":
        rng = np.random.default_rng(0)
        vector_MD, query_QD = clusters(items, rng), clusters(1_000, rng)
        against: dict[str, object] = dict(exact_against_faiss(vector_MD, query_QD[:QUERIES]))
        return report(vector_MD, query_QD, count_M=_popularity(items), kinds=kinds, k=K, target_recall=TARGET), against
    with tempfile.TemporaryDirectory() as work:
        model = Path(work) / "model"
        train(committed_run(name, Path(work)), model, quiet=True)
        return report_index(model, kinds, k=K, target_recall=TARGET), {}


def _popularity(n: int) -> NDArray[np.int64]:
    """Zipf, by row: synthetic vectors have no events."""
    return (10 * n / np.arange(1, n + 1)).astype(np.int64)


def main(arguments: Iterable[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--on", nargs="+", default=["debian", "gowalla-fast", "clusters"])
    parser.add_argument("--skip", nargs="*", default=[], help="kinds to leave out, such as HNSW")
    parser.add_argument("--items", type=int, default=1_000_000, help="synthetic items")
    parser.add_argument("--results", type=Path, help="folder for the reports, as JSON and as pictures")
    chosen = parser.parse_args(None if arguments is None else list(arguments))
    kinds = tuple(one for one in USUAL if type(one).__name__ not in chosen.skip)
    for name in chosen.on:
        started = time.perf_counter()
        found, against = reported(name, kinds, chosen.items)
        print(f"\n{name}\n{found.render()}", flush=True)
        if chosen.results is not None:
            chosen.results.mkdir(parents=True, exist_ok=True)
            (chosen.results / f"{name}.json").write_text(found.to_json() + "\n", encoding="utf-8")
            found.plot(chosen.results / f"{name}.png")
        harness.report(
            f"index {name}",
            against | metrics_of(found),
            seconds=time.perf_counter() - started,
            seed=0,
            settings={"k": K, "target_recall": TARGET, "items": found.n_items, "queries": found.n_queries},
        )


if __name__ == "__main__":
    main()
