"""A trained model as its user sees it: queries in, items out."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..bundle import is_bundle
from ..bundle.recommending import (
    Lists,
    Recommendation,
    check_k,
    item_row,
    known_queries,
    listed_ids,
    recommendations,
    save_recommendations,
)
from ..config import Run, dump_run, load_run, parse_run, run_tree
from ..data.columns import Columns, RaggedArray
from ..data.held_out import HeldOut, seen_pairs
from ..data.life import lives_of, period_of
from ..data.raw_queries import RawQueries
from ..data.store import Store
from ..errors import ArtifactError
from ..evaluation import TopK, top_k
from ..records import Features, LiveAt, Ragged, running_sum
from ..settings import Tree
from ..towers import TwoTower
from . import checkpoint
from .step import to_device

CHUNK = 4096
"""Queries or items encoded at a time."""

RUN, BEST, LAST = "run.toml", "best", "last"
STORES = "stores"
"""Folder in that of a model: its store, once it was updated."""


def encode_catalogue(towers: TwoTower, store: Store) -> Tensor:
    """[M, D] vectors of all items as they are served, on the device of the towers."""
    return _encode(
        towers, store.n_items, lambda start, stop: store.item.take(torch.arange(start, stop)), towers.encode_item
    )


def encode_questions(towers: TwoTower, questions: HeldOut) -> Tensor:
    """[Q, D] vectors of held-out queries as they are served, on the device of the towers."""
    return _encode(towers, len(questions), questions.features, towers.encode_query)


def _encode(
    towers: TwoTower, n: int, features: Callable[[int, int], Features], encode: Callable[..., Tensor]
) -> Tensor:
    training, device = towers.training, towers.device
    if training:  # to set every module's mode takes as long as one query's layers
        towers.eval()
    with torch.no_grad():
        chunks = ((start, min(start + CHUNK, n)) for start in range(0, n, CHUNK))
        parts = [encode(to_device(features(start, stop), device), served=True) for start, stop in chunks]
    if training:
        towers.train()
    return torch.cat(parts) if parts else torch.empty(0, towers.width, device=device)


def no_model(folder: Path) -> str:
    """What to say of a folder without a run."""
    if is_bundle(folder):
        return f"{folder}: this is a bundle, which answers and is served; expected the folder of the model it is of"
    return f"{folder}: holds no trained model (no {RUN}): write one with twotower train RUN.toml --out FOLDER"


def open_model(folder: Path, which: str = BEST, set: Sequence[str] = ()) -> tuple[Run, Store, dict[str, Any]]:
    """A model's run, with settings changed by ``set``, the store it belongs to now, and the state of its checkpoint.

    Raises ArtifactError when one of them is missing or damaged, ConfigError for a setting.
    """
    if not folder.is_dir():
        found = "this is a file" if folder.exists() else "there is no such folder"
        raise ArtifactError(f"{folder}: {found}, expected the folder of a model that twotower train wrote")
    if not (folder / RUN).exists():
        raise ArtifactError(no_model(folder))
    run = load_run(folder / RUN, set)
    assert run.data is not None
    state = checkpoint.read_state(folder / which)
    place = folder / state["store"] if "store" in state else Path(run.data.store)
    if not place.exists():
        raise ArtifactError(
            f"{folder}: the store the model was trained on is not at {place}: move it along with the "
            f"model, or write its place into {folder / RUN} (data.store)"
        )
    return run, Store.open(place), state


class Retriever:
    """Towers, the store they were trained on and the vectors of its catalogue."""

    def __init__(self, run: Run, store: Store, towers: TwoTower) -> None:
        self.run, self.store, self.towers = run, store, towers.eval()
        towers.settle()
        self._item_MD: Tensor | None = None
        self._live = _live_at_end(store, towers.device)

    @staticmethod
    def open(folder: str | Path, which: str = BEST) -> Retriever:
        """From a folder that ``train`` wrote. Raises ArtifactError when it is missing or damaged."""
        run, store, _ = open_model(Path(folder), which)
        towers = run.towers
        towers.build(store.schema, store.encoders.table_sizes)
        checkpoint.load_part(Path(folder) / which, "towers", towers)
        return Retriever(run, store, towers)

    def live_rows(self) -> Tensor:
        """Rows of the items that may be recommended: those that are live at the last event."""
        row_M = torch.arange(self.store.n_items)
        return row_M if self._live is None else row_M[~self._live.gone(row_M)[0]]

    @cached_property
    def raw_queries(self) -> RawQueries:
        """How what a caller says of a query becomes what the query tower reads."""
        store = self.store
        return RawQueries(
            store.schema,
            store.encoders,
            queries=store.query_vocabulary,
            items=store.item_vocabulary,
            stored=store.query,
            item_columns=store.item,
            recent=lambda: recent_items(store),
        )

    def encode_queries(self, columns: Columns) -> Tensor:
        """[B, D] vectors of encoded queries as they are served, on the device of the towers."""
        return _encode(
            self.towers,
            columns.n,
            lambda start, stop: columns.take(torch.arange(start, stop)),
            self.towers.encode_query,
        )

    @property
    def item_MD(self) -> Tensor:
        """[M, D] vectors of the catalogue, encoded once."""
        if self._item_MD is None:
            self._item_MD = encode_catalogue(self.towers, self.store)
        return self._item_MD

    def recommend(
        self, query: Mapping[str, object], *, k: int = 10, filter_seen: bool = True, exclude: Sequence[object] = ()
    ) -> list[Recommendation]:
        """The k best items for a query given by its raw columns, such as ``{"user_id": "u1"}``.

        A known id brings its stored attributes and history; columns in the query replace them, and ``history`` (a list
        of item ids, oldest first) replaces the history. Items whose ids are in ``exclude``, which need not be known,
        are left out. Only items that are live at the last event are recommended; fewer than k come back only where
        there are no more.

        Raises DataError for an unknown column, a value of the wrong type, or a query of which nothing is known.
        """
        check_k(k)
        row = self.raw_queries.row(query)
        columns = Columns(self.raw_queries.encode([query], np.array([row])), 1)
        query_1D = self.encode_queries(columns)
        not_for = self._seen_of(row) if filter_seen else self._itself(row)
        excluded = self._one_list(exclude, [] if not_for is None else not_for.value.tolist())
        best = top_k(query_1D, self.item_MD, min(k, self.store.n_items), exclude=excluded, live=self._live)
        return self._named(best)

    def _one_list(self, exclude: Sequence[object], rows: Sequence[int]) -> Ragged:
        """Rows that one query must not get, and those of the ids in ``exclude`` that are known."""
        given = [self.store.item_vocabulary.row(item, "exclude") for item in listed_ids(exclude)]
        value = torch.tensor([*rows, *(row for row in given if row >= 0)], dtype=torch.int64)
        return Ragged(offset=torch.tensor([0, len(value)]), value=value)

    def _named(self, best: TopK) -> list[Recommendation]:
        """What was found for one query."""
        row_k, score_k = best.row_Qk[0].cpu().numpy(), best.score_Qk[0].cpu().numpy()
        return recommendations(self.store.item_vocabulary, row_k, score_k)

    def similar(self, item: object, *, k: int = 10, exclude: Sequence[object] = ()) -> list[Recommendation]:
        """The k live items whose vectors have the greatest inner product with that of an item, without itself and those
        in ``exclude``.

        Raises DataError for an item that is not known.
        """
        check_k(k)
        row = item_row(self.store.item_vocabulary, item)
        excluded = self._one_list(exclude, [row])
        best = top_k(
            self.item_MD[row : row + 1], self.item_MD, min(k, self.store.n_items), exclude=excluded, live=self._live
        )
        return self._named(best)

    def recommend_all(self, out: str | Path, *, k: int = 10, filter_seen: bool = True) -> int:
        """``recommend`` for every known query, as Parquet: ``query``, ``rank``, ``item``, ``score``; returns the lines.

        Raises DataError where queries have no ids, ArtifactError where ``out`` can't be written.
        """
        check_k(k)
        vocabulary = self.store.query_vocabulary
        row_Q = known_queries(vocabulary)
        assert vocabulary is not None
        return save_recommendations(out, vocabulary, self.store.item_vocabulary, self._all(row_Q, k, filter_seen))

    def _all(self, row_Q: NDArray[np.int64], k: int, filter_seen: bool) -> Iterator[Lists]:
        for start in range(0, len(row_Q), CHUNK):
            row_B = row_Q[start : start + CHUNK]
            query_BD = self.encode_queries(Columns(self.raw_queries.encode_known(row_B), len(row_B)))
            exclude = self.seen.take(torch.from_numpy(row_B)) if filter_seen else self._themselves(row_B)
            live = None if self._live is None else self._live.take(torch.zeros(len(row_B), dtype=torch.int64))
            best = top_k(query_BD, self.item_MD, min(k, self.store.n_items), exclude=exclude, live=live)
            yield row_B, best.row_Qk.cpu().numpy(), best.score_Qk.cpu().numpy()

    def _itself(self, row: int) -> Ragged | None:
        """The query's own item, where queries are items: it is no result for itself, filtered or not."""
        return None if row < 0 else self._themselves(np.array([row]))

    def _themselves(self, row_B: NDArray[np.int64]) -> Ragged | None:
        if self.store.query_item_row is None:
            return None
        own_B = torch.from_numpy(np.asarray(self.store.query_item_row)[row_B].astype(np.int64))
        return Ragged(offset=running_sum((own_B >= 0).long()), value=own_B[own_B >= 0])

    def _seen_of(self, row: int) -> Ragged | None:
        """Items a query took in any event, and its own item where queries are items."""
        return None if row < 0 else self.seen.take(torch.tensor([row]))

    @cached_property
    def seen(self) -> Ragged:
        """[n_queries] lists of the items each query took, rising, and its own item where queries are items."""
        return _all_seen(self.store)


def _all_seen(store: Store) -> Ragged:
    pairs = seen_pairs(store, store.taken_events())
    return Ragged(offset=pairs.offset, value=pairs.item)


def recent_items(store: Store) -> RaggedArray:
    """[n_queries] lists of the items each query took, oldest first."""
    events = store.taken_events()  # in order of time
    query_row = np.asarray(store.query_row[events])
    order = np.argsort(query_row, kind="stable")
    first = int((query_row < 0).sum())  # those of no query are sorted to the front
    length = np.bincount(query_row[query_row >= 0], minlength=store.n_queries)
    return RaggedArray.of_lengths(length, np.asarray(store.item_row[events])[order[first:]].astype(np.int64))


def _live_at_end(store: Store, device: torch.device) -> LiveAt | None:
    """What may be recommended to one query: items that are live at the last event."""
    lives = lives_of(store)
    _, end_us = period_of(store, np.arange(max(store.n_events - 1, 0), store.n_events))  # events rise by time
    return None if lives is None else LiveAt.throughout(lives, end_us, end_us, 1).to(device)


def save_vectors(model: str | Path, out: str | Path) -> None:
    """Write the vectors of a model's live items, as they are served, as Parquet: ``item`` (id) and ``vector``.

    Raises ArtifactError where the model is missing or damaged, or ``out`` can't be written.
    """
    retriever = Retriever.open(model)
    row = retriever.live_rows()
    vector_MD = retriever.item_MD.cpu()[row].numpy()
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(vector_MD.ravel()), vector_MD.shape[1])
    table = pa.table({"item": retriever.store.item_vocabulary.ids().take(pa.array(row.numpy())), "vector": vectors})
    partial = Path(out).with_name(f".{Path(out).name}.partial")
    try:
        pq.write_table(table, partial)
        partial.replace(out)
    except OSError as error:
        raise ArtifactError(f"{out}: the vectors can't be written ({error}): choose another place") from error


def save_run(run: Run, store: Store, folder: Path) -> None:
    """Write ``run.toml`` beside the checkpoints, the path of the store taken from there."""
    partial = folder / (RUN + ".partial")
    partial.write_text(dump_run(_seen_from(folder, run, store.path)), encoding="utf-8")
    partial.replace(folder / RUN)


def tree_to_save(run: Run, folder: Path) -> Tree:
    """What ``save_run`` would write."""
    assert run.data is not None
    return run_tree(parse_run(dump_run(_seen_from(folder, run, Path(run.data.store)))))


def saved_tree(folder: Path) -> Tree:
    """What it wrote. Raises ConfigError where that is no run."""
    path = folder / RUN
    return run_tree(parse_run(path.read_text(encoding="utf-8"), name=str(path)))


def _seen_from(folder: Path, run: Run, store: Path) -> Run:
    """The store moves with the model's folder; what it was made of stays where it is."""
    assert run.data is not None
    return replace(run, data=replace(run.data.under(Path()), store=os.path.relpath(store, folder)))
