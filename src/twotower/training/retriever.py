"""A trained model as its user sees it: queries in, items out."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from ..config import Run, dump_run, load_run, parse_run, run_tree
from ..data.arrow import did_you_mean
from ..data.batches import Histories, id_rows, mean_of
from ..data.files import listed
from ..data.held_out import HeldOut, seen_pairs
from ..data.life import lives_of, period_of
from ..data.store import Store
from ..errors import ArtifactError, DataError
from ..evaluation import top_k
from ..records import Features, LiveAt, Ragged
from ..schema import History, Id, Schema, table_of
from ..settings import Tree
from ..towers import TwoTower
from . import checkpoint
from .step import to_device

CHUNK = 4096
"""Queries or items encoded at a time."""

RUN, BEST, LAST = "run.toml", "best", "last"
STORES = "stores"
"""Folder in that of a model: its store, once it was updated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recommendation:
    """One item and its score."""

    item: str
    score: float


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
    towers.eval()
    with torch.no_grad():
        chunks = ((start, min(start + CHUNK, n)) for start in range(0, n, CHUNK))
        parts = [encode(to_device(features(start, stop), device), served=True) for start, stop in chunks]
    towers.train(training)
    return torch.cat(parts) if parts else torch.empty(0, towers.width, device=device)


def open_model(folder: Path, which: str = BEST, set: Sequence[str] = ()) -> tuple[Run, Store, dict[str, Any]]:
    """A model's run, with settings changed by ``set``, the store it belongs to now, and the state of its checkpoint.

    Raises ArtifactError when one of them is missing or damaged, ConfigError for a setting.
    """
    if not folder.is_dir():
        found = "this is a file" if folder.exists() else "there is no such folder"
        raise ArtifactError(f"{folder}: {found}, expected the folder of a model that twotower train wrote")
    if not (folder / RUN).exists():
        raise ArtifactError(
            f"{folder}: holds no trained model (no {RUN}): write one with twotower train RUN.toml --out {folder}"
        )
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
        self._seen: Ragged | None = None
        self._histories: Histories | None = None
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

    @property
    def item_MD(self) -> Tensor:
        """[M, D] vectors of the catalogue, encoded once."""
        if self._item_MD is None:
            self._item_MD = encode_catalogue(self.towers, self.store)
        return self._item_MD

    def recommend(self, query: Mapping[str, object], *, k: int = 10, filter_seen: bool = True) -> list[Recommendation]:
        """The k best items for a query given by its raw columns, such as ``{"user_id": "u1"}``.

        A known id brings its stored attributes and history; columns in the query replace them, and ``history`` (a list
        of item ids, oldest first) replaces the history. Only items that are live at the last event are recommended;
        fewer than k come back only where there are no more.

        Raises DataError for an unknown column, a value of the wrong type, or a query of which nothing is known.
        """
        if k < 1:
            raise DataError(f"k: found {k}, expected at least 1")
        given = {column: value for column, value in query.items() if value is not None}
        self._check_query(given)
        row = self._query_row(given)
        features = self._query_features(given, row)
        with torch.no_grad():
            query_1D = self.towers.encode_query(to_device(features, self.towers.device), served=True)
        exclude = self._seen_of(row) if filter_seen else self._itself(row)
        best = top_k(query_1D, self.item_MD, min(k, self.store.n_items), exclude=exclude, live=self._live)
        rows = [r for r in best.row_Qk[0].tolist() if r >= 0]
        ids = self.store.item_vocabulary.ids().take(pa.array(rows, pa.int64())).to_pylist()
        return [Recommendation(item=i, score=s) for i, s in zip(ids, best.score_Qk[0].tolist(), strict=False)]

    def _query_row(self, query: Mapping[str, object]) -> int:
        """Row of the query's id; -1 where it has none or is new."""
        schema = self.store.schema
        names = [n for n in (schema.query_key, schema.interactions.query) if n is not None and n in query]
        if not names or self.store.query_vocabulary is None:
            return -1
        try:
            row = self.store.query_vocabulary.row(query[names[0]], names[0])
        except DataError as error:
            raise DataError(f"query: {error}") from error
        if row < 0 and not any(map(self._tells_of_new, query)):
            others = listed(self._columns_of_query(), most=10)
            raise DataError(
                f"query: {names[0]} {query[names[0]]!r} is not known, and nothing else was given that says anything "
                f"of a new query: give other columns ({others}), or an id that has events"
            )
        return row

    def _tells_of_new(self, column: str) -> bool:
        """Whether something was learnt for values of a column that training did not meet."""
        schema = self.store.schema
        features = [f for side, _, f in schema.features() if side != "item" and column in feature_columns(f)]
        return column == "history" or not all(isinstance(f, Id) and _is_exact(f) for f in features)

    def _query_features(self, query: dict[str, object], row: int) -> Features:
        schema = self.store.schema
        history = query.get("history")
        given = {side: {c: v for c, v in query.items() if c in _columns(schema, side)} for side in ("query", "context")}
        features: Features = {}
        for side in ("query", "context"):
            features |= self.store.encoders.transform_rows(side, [given[side]])
        if row >= 0 and schema.query:
            stored = self.store.query.take(torch.tensor([row]))
            features |= {key: stored[key] for key in _unmentioned(schema, given["query"], stored)}
        return features | self._history_features(history, row)

    def _columns_of_query(self) -> list[str]:
        schema = self.store.schema
        known = {*_columns(schema, "query"), *_columns(schema, "context")}
        return sorted(known | {name for name in (schema.query_key, schema.interactions.query) if name is not None})

    def _check_query(self, query: dict[str, object]) -> None:
        known = self._columns_of_query()
        unknown = sorted(set(query) - {*known, "history"})
        if unknown:
            raise DataError(
                f"query: {unknown[0]!r} is no column of the query side, which has {listed(known, most=10)}"
                f"{did_you_mean(unknown[0], known)}"
            )
        if not query:
            raise DataError(f"query: it is empty, expected at least one of {listed(known, most=10)}")

    def _history_features(self, history: object, row: int) -> Features:
        schema = self.store.schema
        declared = [(n, f) for n, f in schema.context.items() if isinstance(f, History)]
        if history is not None:
            if not declared:
                raise DataError("query: history is given, but the schema declares no History feature: leave it out")
            if not isinstance(history, list):
                raise DataError(f"query: history is {type(history).__name__}, expected a list of item ids")
            rows = [self.store.item_vocabulary.row(item, "history") for item in history]
            return {
                n: self._one_list([r for r in rows if r >= 0][-f.k :], table_of("context", n, f)) for n, f in declared
            }
        if not declared:
            return {}
        if self._histories is None:
            self._histories = Histories(self.store, self.store.taken_events())
        return self._histories.before(torch.tensor([row]), None)

    def _one_list(self, rows: list[int], table: str | None) -> Ragged:
        value = id_rows(self.store, table).index_select(0, torch.tensor(rows, dtype=torch.int64))
        return mean_of(Ragged(offset=torch.tensor([0, len(rows)]), value=value))

    def _itself(self, row: int) -> Ragged | None:
        """The query's own item, where queries are items: it is no result for itself, filtered or not."""
        own = self.store.query_item_row
        if own is None or row < 0 or own[row] < 0:
            return None
        return Ragged(offset=torch.tensor([0, 1]), value=torch.tensor([int(own[row])]))

    def _seen_of(self, row: int) -> Ragged | None:
        """Items a query took in any event, and its own item where queries are items."""
        if row < 0:
            return None
        if self._seen is None:
            self._seen = _all_seen(self.store)
        return self._seen.take(torch.tensor([row]))


def _all_seen(store: Store) -> Ragged:
    pairs = seen_pairs(store, store.taken_events())
    return Ragged(offset=pairs.offset, value=pairs.item)


def _live_at_end(store: Store, device: torch.device) -> LiveAt | None:
    """What may be recommended to one query: items that are live at the last event."""
    lives = lives_of(store)
    _, end_us = period_of(store, np.arange(max(store.n_events - 1, 0), store.n_events))  # events rise by time
    return None if lives is None else LiveAt.throughout(lives, end_us, end_us, 1).to(device)


def _is_exact(feature: Id) -> bool:
    """Whether ids that training did not meet have a vector that nothing moved."""
    return feature.min_count == 1 and feature.hash_buckets is None


def _columns(schema: Schema, side: str) -> set[str]:
    """Columns the features of a side read."""
    found: set[str] = set()
    for feature_side, _, feature in schema.features():
        if feature_side == side:
            found |= set(feature_columns(feature))
    return found


def feature_columns(feature: object) -> Iterator[str]:
    """The columns a feature reads."""
    for name in ("column", "weights"):
        value = getattr(feature, name, None)
        if value is not None:
            yield value
    yield from getattr(feature, "columns", ())
    yield from getattr(feature, "name_columns", ())


def _unmentioned(schema: Schema, given: dict[str, object], stored: Features) -> list[str]:
    """Keys of stored query features none of whose columns the caller gave, ids included."""
    key_columns = {schema.query_key, schema.interactions.query}
    mentioned = {
        name
        for name, feature in schema.query.items()
        if any(c in given and c not in key_columns for c in feature_columns(feature))
    }
    return [key for key in stored if key.split(".")[0] not in mentioned and key not in mentioned]


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
    assert run.data is not None
    return replace(run, data=replace(run.data, store=os.path.relpath(store, folder)))
