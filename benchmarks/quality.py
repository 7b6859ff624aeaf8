"""Recall on real data with committed settings: one fit, one evaluation on the test part.

    python -m benchmarks.quality debian | gowalla | gowalla-fast | ml-1m [--set loss.temperature=0.07] [--validate]
    python -m benchmarks.quality gowalla --time-to 0.148 [--threads 2] [--repeats 3]

debian: the demo's settings, fitted on train and validation, packages held out whole, beside popularity and a TF-IDF
nearest-neighbour vote. gowalla, ml-1m: matrix factorisation on published splits. gowalla-fast: a closed-form start and
hardly any training; ``--time-to`` times it to a test recall, against tuned ALS (``benchmarks.time_to``).

``--validate`` fits on train alone and measures on the validation part instead (for gowalla and ml-1m on 10% cut from
train): settings are chosen with that, by ``benchmarks.search``, and never on test.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import scipy.sparse as sp
import torch

import twotower.demo
from benchmarks.baselines import package_texts, tfidf_vote
from benchmarks.data import committed_run
from benchmarks.harness import report
from benchmarks.time_to import time_to
from twotower.cli import keep_freed_memory
from twotower.config import Run, dump_run
from twotower.data.held_out import PARTS, HeldOut, held_out
from twotower.data.splits import GivenSplit
from twotower.data.store import Store
from twotower.evaluation import METRICS, Evaluation, Ranks, top_k_and_ranks
from twotower.training.loop import Fit, evaluate_retriever, fit_once, open_or_ingest, refit, settings_of
from twotower.training.recorder import Recorder
from twotower.training.retriever import Retriever, encode_catalogue, encode_questions

METRICS_OF = {
    "debian": ("recall@10", "recall@100", "recall@100_tail", "recall@100_unseen"),
    "gowalla": ("recall@20", "ndcg@20"),
    "gowalla-fast": ("recall@20", "ndcg@20"),
    "ml-1m": ("recall@20", "ndcg@20"),
}
"""What each benchmark reports; the first is what a search goes by."""


def fitted(run: Run, store: Store, part_E: np.ndarray, *, validate: bool) -> Fit:
    """Train alone to validate; train and validation together for the test."""
    with settings_of(run.training), Recorder(None) as recorder:
        if not validate:
            return refit(run, store, part_E, run.training.epochs, recorder=recorder)
        unwatched = np.where(part_E == 1, -1, part_E).astype(np.int8)  # no validation on the way: only the end counts
        return fit_once(run, store, unwatched, recorder=recorder)


@dataclass(frozen=True)
class Measured:
    """One fit and its one evaluation."""

    run: Run
    store: Store
    part_E: np.ndarray
    fit: Fit
    result: Evaluation
    asked: str

    def metrics(self) -> dict[str, float]:
        """What the benchmark reports."""
        is_debian = self.run.schema.interactions.query_is_item
        found = {n: self.result.metric(n) for n in METRICS_OF["debian" if is_debian else "gowalla"]}
        if is_debian:
            found["recall@100_tail"] = self.tail_recall()
        return found | {"fit_seconds": self.fit.seconds}

    def tail_recall(self, k: int = 100, at_most: int = 50) -> float:
        """Recall over links to targets with at most 50 training links, those with none included."""
        questions, towers = held_out(self.store, self.part_E, self.asked), self.fit.model.towers
        query_QD, item_MD = encode_questions(towers, questions).cpu(), encode_catalogue(towers, self.store).cpu()
        _, ranks = top_k_and_ranks(query_QD, item_MD, k, questions.truth, exclude=questions.seen)
        before = (self.part_E >= 0) & (self.part_E < PARTS[self.asked])
        count_M = torch.from_numpy(np.bincount(self.store.item_row[before], minlength=self.store.n_items))
        return float(METRICS["recall"](ranks.only(count_M[questions.truth.value] <= at_most), k).nanmean())


def fit_and_evaluate(name: str, work: Path, *, set: list[str], validate: bool) -> Measured:
    """Fit the committed settings once and measure once."""
    run = committed_run(name, work, set)
    if validate and name != "debian":
        run = replace(run, split=GivenSplit(valid=0.1))
    if not validate:
        run = replace(run, training=replace(run.training, refit=True))
    store = open_or_ingest(run, quiet=True)
    part_E = run.split.assign(store)
    fit = fitted(run, store, part_E, validate=validate)
    asked = "valid" if validate else "test"
    result = evaluate_retriever(Retriever(run, store, fit.model.towers), part_E, asked)
    return Measured(run, store, part_E, fit, result, asked)


def measure(name: str, *, set: list[str], validate: bool) -> None:
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as work:
        found = fit_and_evaluate(name, Path(work), set=set, validate=validate)
        print(found.result.table())
        if name == "debian":
            print(f"recall@100 over targets with at most 50 training links (also none): {found.tail_recall():.4f}")
        print(f"fitted {found.fit.epochs:g} epochs, {found.fit.steps} steps in {found.fit.seconds:.1f} s")
        if name == "debian":
            votes = vote(found.store, found.part_E, found.asked)
            print("TF-IDF vote, 30 neighbours: " + "  ".join(f"{n} {v:.4f}" for n, v in votes.items()))
    report(
        f"quality {name}" + (" (validation)" if validate else ""),
        found.metrics(),
        seconds=time.perf_counter() - started,
        seed=found.run.training.seed,
        settings={"run": dump_run(replace(found.run, data=None))},
    )


def measure_time_to(arguments: argparse.Namespace) -> None:
    name, target = arguments.name, arguments.time_to
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as work:
        found = time_to(
            name, target, Path(work), set=arguments.set, threads=arguments.threads, repeats=arguments.repeats
        )
        run = committed_run(f"{name}-fast", Path(work), arguments.set)
    report(
        f"quality {name} --time-to {target}",
        found,
        seconds=time.perf_counter() - started,
        seed=0,
        settings={
            "threads": arguments.threads,
            "repeats": arguments.repeats,
            "run": dump_run(replace(run, data=None)),
        },
    )


def vote(store: Store, part_E: np.ndarray, asked: str) -> dict[str, float]:
    """The TF-IDF nearest-neighbour vote on the same questions, with the same metrics."""
    folder = Path(twotower.demo.__file__).parent
    packages = pq.read_table(folder / "packages.parquet")
    texts = dict(zip(packages["package"].to_pylist(), package_texts(packages), strict=True))
    assert store.query_vocabulary is not None
    query_texts = [texts[query] for query in store.query_vocabulary.ids().to_pylist()]
    before = np.flatnonzero((part_E >= 0) & (part_E < PARTS[asked]))
    known = np.unique(store.query_row[before])
    target = sp.csr_matrix(
        (np.ones(len(before), np.float32), (store.query_row[before], store.item_row[before])),
        shape=(store.n_queries, store.n_items),
    )[known]
    questions = held_out(store, part_E, asked)
    asked_texts = [query_texts[q] for q in questions.query_Q.tolist()]
    votes = tfidf_vote([query_texts[q] for q in known], target, asked_texts, store.n_items)
    count_M = torch.from_numpy(np.bincount(store.item_row[before], minlength=store.n_items))
    ranks, truth = ranks_of(votes, questions), questions.truth.value
    slices = {"": count_M >= 0, "_tail": count_M <= 50, "_unseen": count_M == 0}
    return {
        f"recall@{k}{name}": float(METRICS["recall"](ranks.only(items[truth]), k).nanmean())
        for name, items in slices.items()
        for k in (10, 100)
    }


def ranks_of(votes: sp.csr_matrix, questions: HeldOut, depth: int = 100, chunk: int = 512) -> Ranks:
    """How many items have more votes than each true one, and how many as many; what was seen is left out."""
    above, tied = [], []
    for start in range(0, len(questions), chunk):
        stop = min(start + chunk, len(questions))
        score_QM = torch.from_numpy(votes[start:stop].toarray())
        seen, truth = questions.seen.slice(start, stop), questions.truth.slice(start, stop)
        score_QM[seen.owner(), seen.value] = -1.0
        own_T = score_QM[truth.owner(), truth.value]
        above.append((score_QM[truth.owner()] > own_T[:, None]).sum(1).clamp(max=depth))
        tied.append((score_QM[truth.owner()] == own_T[:, None]).sum(1))
    owner_T = questions.truth.owner()
    return Ranks.of(owner_T, torch.cat(above), torch.cat(tied), n_queries=len(questions), depth=depth)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=tuple(METRICS_OF))
    parser.add_argument("--set", action="append", default=[], help="override a setting")
    parser.add_argument("--validate", action="store_true", help="measure on the validation part")
    parser.add_argument("--time-to", type=float, metavar="RECALL", help="time to a test recall@20, against implicit")
    parser.add_argument("--threads", type=int, default=2, help="of both, with --time-to")
    parser.add_argument("--repeats", type=int, default=3, help="fits of each, with --time-to")
    arguments = parser.parse_args()
    keep_freed_memory()  # as the command line does
    if arguments.time_to is not None:
        measure_time_to(arguments)
        return
    measure(arguments.name, set=arguments.set, validate=arguments.validate)


if __name__ == "__main__":
    main()
