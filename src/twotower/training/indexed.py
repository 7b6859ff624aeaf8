"""An index of a trained model's items, tuned and measured on its held-out queries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ..data.held_out import PARTS, HeldOut, held_out
from ..errors import ConfigError
from ..index import IVFSQ8, Exact, Index, IndexReport, IndexSettings, Tuned
from ..index import report as report_of
from ..index import tune as tune_index
from ..index.report import MOST_QUERIES, USUAL
from .loop import measured_part
from .retriever import Retriever, encode_questions

INDEX = "index"
"""Folder of the index in that of the model."""
TARGET_RECALL = 0.95
"""Of a report."""
_MOST_QUERIES = 2 * MOST_QUERIES


@dataclass(frozen=True, slots=True, kw_only=True)
class Indexed:
    """What ``build_index`` made."""

    folder: Path
    settings: IndexSettings
    n_items: int
    memory_bytes: int
    tuned: Tuned | None

    def render(self) -> str:
        """In a few lines, for people."""
        lines = [
            f"{self.n_items:,} items, {self.memory_bytes / 2**20:,.1f} MiB at hand, in {self.folder}",
            f"{self.settings}",
        ]
        return "\n".join([*lines, *([] if self.tuned is None else [self.tuned.in_words()])])


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexSubject:
    """What of a model an index needs."""

    vector_MD: NDArray[np.float32]
    live_M: NDArray[np.bool_]
    query_QD: NDArray[np.float32]
    """Of held-out queries."""
    count_M: NDArray[np.int64]
    """Training events of each item."""

    def build(self, settings: IndexSettings, *, threads: int, seed: int = 0) -> Index:
        """An index of the live items."""
        return Index.build(self.vector_MD, settings, live_M=self.live_M, threads=threads, seed=seed)

    def tuned(self, index: Index, *, k: int, target_recall: float) -> tuple[Index, Tuned]:
        """The index with the cheapest search settings that reach the target on the held-out queries.

        Raises ConfigError where none do.
        """
        tuned = tune_index(index, self.query_QD, k=k, target_recall=target_recall)
        if not tuned.met:
            raise ConfigError(
                f"target_recall is {target_recall:g}, but {index.kind} finds {tuned.recall:.4f} of the best {k} (above "
                f"{tuned.low:.4f} with 95%) with {tuned.settings}: lower the target, or choose another kind"
            )
        return index.look(tuned.settings), tuned

    def report(
        self,
        kinds: Sequence[IndexSettings] = USUAL,
        *,
        k: int,
        target_recall: float = TARGET_RECALL,
        filter_share: float = 0.1,
        threads: int = 1,
        seed: int = 0,
    ) -> IndexReport:
        """Each kind tuned and measured on the held-out queries (``index.report``)."""
        return report_of(
            self.vector_MD,
            self.query_QD,
            count_M=self.count_M,
            live_M=self.live_M,
            kinds=kinds,
            k=k,
            target_recall=target_recall,
            filter_share=filter_share,
            threads=threads,
            seed=seed,
        )


def build_index(
    model: str | Path,
    settings: IndexSettings | None = None,
    *,
    target_recall: float | None = None,
    k: int = 100,
    out: str | Path | None = None,
    threads: int = 1,
    seed: int = 0,
) -> Indexed:
    """Build an index of the model's live items into ``out``, its folder ``index`` if not given, where ``export`` looks
    for it.

    With ``target_recall`` the search settings are the cheapest that reach it on held-out queries (``index.tune``).

    Raises:
        ArtifactError: the model is missing or damaged, or the index can't be written.
        ConfigError: settings that don't fit, or a target that the kind can't reach.
        DataError: too few held-out queries to tune on.
    """
    model = Path(model)
    subject = index_subject(Retriever.open(model), model, with_queries=target_recall is not None, seed=seed)
    index, tuned = subject.build(IVFSQ8() if settings is None else settings, threads=threads, seed=seed), None
    if target_recall is not None:
        index, tuned = subject.tuned(index, k=k, target_recall=target_recall)
    folder = model / INDEX if out is None else Path(out)
    index.save(folder)
    return Indexed(
        folder=folder, settings=index.settings, n_items=index.n, memory_bytes=index.memory_bytes(), tuned=tuned
    )


def index_left(model: Path, subject: IndexSubject, *, threads: int) -> tuple[Index, bool]:
    """The index that ``build_index`` left in the model's folder, ``Exact`` where there is none; and whether it had to
    be built anew with the same settings, as the model has changed since.

    Raises ArtifactError where it is damaged, ConfigError where its settings no longer fit or Faiss is not installed.
    """
    folder = model / INDEX
    if not folder.exists():
        return subject.build(Exact(), threads=threads), False
    left = Index.open(folder)
    if left.is_of(subject.vector_MD, subject.live_M):
        return left, False
    return subject.build(left.settings, threads=threads, seed=left.seed), True


def report_index(
    model: str | Path,
    kinds: Sequence[IndexSettings] = USUAL,
    *,
    target_recall: float = TARGET_RECALL,
    k: int = 100,
    filter_share: float = 0.1,
    threads: int = 1,
    seed: int = 0,
) -> IndexReport:
    """Each kind of index of the model's live items, tuned and measured on its held-out queries (``index.report``).

    Raises:
        ArtifactError: the model is missing or damaged.
        ConfigError: settings that don't fit.
        DataError: fewer than 60 held-out queries.
    """
    subject = index_subject(Retriever.open(model), Path(model), with_queries=True, seed=seed)
    return subject.report(
        kinds, k=k, target_recall=target_recall, filter_share=filter_share, threads=threads, seed=seed
    )


def index_subject(retriever: Retriever, model: Path, *, with_queries: bool, seed: int = 0) -> IndexSubject:
    """Of an opened model and its folder; held-out queries and counts are empty if they are not asked for."""
    store = retriever.store
    live_M = np.zeros(store.n_items, bool)
    live_M[retriever.live_rows().numpy()] = True
    vector_MD = np.ascontiguousarray(retriever.item_MD.float().cpu().numpy())
    query_QD, count_M = np.empty((0, vector_MD.shape[1]), np.float32), np.zeros(store.n_items, np.int64)
    if with_queries:
        part_E, split = measured_part(retriever, model, "test")
        questions = held_out(store, part_E, split, filter_seen=False)
        query_QD = encode_questions(retriever.towers, _some(questions, seed)).float().cpu().numpy()
        count_M = np.bincount(store.item_row[part_E == PARTS["train"]], minlength=store.n_items)
    return IndexSubject(vector_MD=vector_MD, live_M=live_M, query_QD=query_QD, count_M=count_M)


def _some(questions: HeldOut, seed: int) -> HeldOut:
    """As many as are looked at; what answers them does not matter here."""
    if len(questions) <= _MOST_QUERIES:
        return questions
    some = torch.from_numpy(np.sort(np.random.default_rng(seed).choice(len(questions), _MOST_QUERIES, replace=False)))
    return replace(
        questions,
        query_Q=questions.query_Q[some],
        event_Q=None if questions.event_Q is None else questions.event_Q[some],
        truth=questions.truth.take(some),
        seen=questions.seen.take(some),
        live=None,
    )
