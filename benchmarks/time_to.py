"""Seconds until test recall reaches a figure, ours against tuned ALS of the package implicit.

Both start from the events of an ingested store and end with vectors of all held-out queries and items; both have the
same number of threads, and a process each. Ours sets the model up, trains it by the committed settings and makes the
vectors. ALS (alpha 30, regularisation 30, 64 factors, conjugate gradients) sets up its matrix and iterates 15 times;
its seconds are those of the first iteration that reaches the figure, known in hindsight and at no cost.

Source: Hu, Koren and Volinsky, ICDM 2008; https://github.com/benfred/implicit.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch import Tensor

from benchmarks.data import committed_run
from benchmarks.harness import Apart, show
from twotower.config import Run
from twotower.data.held_out import held_out
from twotower.evaluation import evaluate
from twotower.training.loop import open_or_ingest, refit, settings_of
from twotower.training.recorder import Recorder
from twotower.training.retriever import encode_catalogue, encode_questions

OURS, THEIRS = "ours", "implicit_als"
ITERATIONS = 15
K = 20


@dataclass(frozen=True, kw_only=True)
class Reached:
    """When the figure was reached."""

    seconds: float
    recall: float
    """At that moment."""
    to_the_end: float
    """Seconds of the whole run: that of ALS goes on to its last iteration."""


class Contender:
    """The data in place, ready to start the clock."""

    def __init__(self, settings: str, work: Path, set: list[str], threads: int) -> None:
        torch.set_num_threads(threads)
        run = committed_run(settings, work, set)
        self.run: Run = replace(run, training=replace(run.training, threads=threads, refit=True))
        self.threads = threads
        self.store = open_or_ingest(self.run, quiet=True)
        self.part_E = self.run.split.assign(self.store)
        self.questions = held_out(self.store, self.part_E, "test")

    def recall(self, query_QD: Tensor, item_MD: Tensor) -> float:
        """Recall@20 over the full catalogue, training items left out; not timed."""
        trained = self.part_E == 0
        found = evaluate(
            query_QD,
            item_MD,
            self.questions.truth,
            seen=self.questions.seen,
            item_count_M=torch.from_numpy(np.bincount(self.store.item_row[trained], minlength=self.store.n_items)),
            k=(K,),
            baselines=False,
        )
        return found.metric(f"recall@{K}")


class TwoTowers(Contender):
    """Ours, by the committed settings."""

    def reach(self, recall: float, seed: int) -> Reached:
        """Raises SystemExit where the settings do not reach it."""
        run = replace(self.run, training=replace(self.run.training, seed=seed))
        started = time.perf_counter()
        with settings_of(run.training), Recorder(None, quiet=True) as recorder:
            fit = refit(run, self.store, self.part_E, run.training.epochs, recorder=recorder)
            towers = fit.model.towers
            towers.settle()
            vectors = encode_questions(towers, self.questions), encode_catalogue(towers, self.store)
        seconds = time.perf_counter() - started
        found = self.recall(*vectors)
        if found < recall:
            raise SystemExit(f"recall@{K} is {found:.4f} after {fit.epochs:g} epochs, expected at least {recall}")
        return Reached(seconds=seconds, recall=found, to_the_end=seconds)


class Als(Contender):
    """implicit's, with BLAS on one thread: it runs its own."""

    def reach(self, recall: float, seed: int) -> Reached:
        """Raises SystemExit where 15 iterations do not reach it."""
        from implicit.cpu.als import AlternatingLeastSquares
        from scipy.sparse import csr_matrix
        from threadpoolctl import threadpool_limits

        after: list[tuple[float, Tensor, Tensor]] = []
        copying = 0.0

        def keep(iteration: int, seconds: float, loss: float | None) -> None:
            nonlocal copying
            now = time.perf_counter()
            query_UD, item_MD = (torch.from_numpy(x.copy()) for x in (model.user_factors, model.item_factors))
            after.append((now - started - copying, query_UD, item_MD))
            copying += time.perf_counter() - now

        with threadpool_limits(1, "blas"):
            started = time.perf_counter()
            events = np.flatnonzero(self.part_E == 0)
            place = (np.asarray(self.store.query_row[events]), np.asarray(self.store.item_row[events]))
            shape = (self.store.n_queries, self.store.n_items)
            matrix = csr_matrix((np.ones(len(events), np.float32), place), shape=shape)
            model = AlternatingLeastSquares(
                factors=64,
                regularization=30.0,
                alpha=30.0,
                iterations=ITERATIONS,
                num_threads=self.threads,
                random_state=seed,
            )
            model.fit(matrix, show_progress=False, callback=keep)
        best = 0.0
        for seconds, query_QD, item_MD in after:
            found = self.recall(query_QD.index_select(0, self.questions.query_Q), item_MD)
            best = max(best, found)
            if found >= recall:
                return Reached(seconds=seconds, recall=found, to_the_end=after[-1][0])
        raise SystemExit(f"ALS: recall@{K} is at most {best:.4f} in {ITERATIONS} iterations, expected {recall}")


def time_to(name: str, target: float, work: Path, *, set: list[str], threads: int, repeats: int) -> dict[str, float]:
    """The metrics of ``summary`` after ``repeats`` runs of each, in turns, with a seed each; also shown as a table."""
    found: dict[str, list[Reached]] = {OURS: [], THEIRS: []}
    settings = f"{name}-fast"
    with (
        Apart(TwoTowers, settings, work / OURS, set, threads) as ours,
        Apart(Als, settings, work / THEIRS, set, threads) as theirs,
    ):
        for seed in range(repeats):
            found[OURS].append(ours.call("reach", target, seed))
            found[THEIRS].append(theirs.call("reach", target, seed))
    rows = [
        (who, *(of([run.seconds for run in runs]) for of in (median, min, max)), min(run.recall for run in runs))
        for who, runs in found.items()
    ]
    title = f"seconds until test recall@{K} of {name} is {target}, {threads} threads, {repeats} runs"
    show(title, ("", "median", "least", "most", f"recall@{K}, least"), rows)
    return summary(found)


def summary(found: dict[str, list[Reached]]) -> dict[str, float]:
    """``seconds_ratio`` is ours / theirs of the medians: below 1 ours is faster. Recalls are the least of all runs."""
    seconds = {who: median(run.seconds for run in runs) for who, runs in found.items()}
    recall = {who: min(run.recall for run in runs) for who, runs in found.items()}
    return {
        "seconds_ratio": seconds[OURS] / seconds[THEIRS],
        **{f"seconds_{who}": value for who, value in seconds.items()},
        f"seconds_{THEIRS}_{ITERATIONS}_iterations": median(run.to_the_end for run in found[THEIRS]),
        **{f"recall@{K}_{who}": value for who, value in recall.items()},
    }
