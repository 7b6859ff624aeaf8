"""The bundle: everything that answers a query, in one folder, and what answers them. No torch.

bundle.json                       the manifest: schema, settings, metrics, sizes, files with checksums; written last
query.onnx item.onnx tables.bin   the towers
encoders/                         how raw values become what the towers read
items.arrow queries.arrow         ids by row
vectors.bin                       [M, D] vectors of all items
index/                            what finds them
query-*.bin lists-*.bin           known queries: stored columns, latest items, items of all their events
attributes.arrow                  raw columns of items, for titles and filters
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ..data.artifact import ArtifactKind
from ..data.column_files import Tree, open_array, open_column
from ..data.columns import Column, RaggedArray
from ..data.encoders import Encoders
from ..data.raw_queries import RawQueries, RawQuery
from ..data.store import decode_schema
from ..data.vocabulary import Vocabulary
from ..errors import ArtifactError, DataError
from ..index import Found, Index
from ..schema import Schema
from .attributes import Where, check_attribute, open_attributes, rows_where, where_of
from .recommending import (
    Lists,
    Recommendation,
    check_k,
    item_row,
    known_queries,
    listed_ids,
    recommendations,
    save_recommendations,
)
from .served_tower import ServedTower

_AGAIN = "export the model again (twotower export)"
BUNDLE = ArtifactKind(
    name="bundle", version=1, made_with="twotower export", way_out=_AGAIN, replace_with="overwrite (--overwrite)"
)
VECTORS, ATTRIBUTES, ENCODERS, INDEX = "vectors.bin", "attributes.arrow", "encoders", "index"
ITEMS, QUERIES = "items.arrow", "queries.arrow"

LATEST = 20
"""Items of a query that are kept at least."""
CHUNK = 1024
"""Queries answered at a time where all are."""

_NOTHING = np.zeros(0, np.int64)


@dataclass(frozen=True, kw_only=True, eq=False)
class Bundle:
    """An opened bundle: read-only, on memory maps, to be asked by several threads and opened by several processes."""

    folder: Path
    manifest: Tree
    """``licence``, ``metrics``, ``score`` (cosine or dot), ``counts``, ``run``: what the export knew of the model."""
    schema: Schema
    encoders: Encoders
    items: Vocabulary
    """Raw item id <-> row; the row of an item that went is null."""
    queries: Vocabulary | None
    """Raw query id <-> row; None where queries have no ids."""
    vectors: NDArray[np.float32]
    """[M, D] by row, of items that are not live too."""
    index: Index
    """Finds the live items."""
    raw_queries: RawQueries
    """How raw queries become what the query tower reads."""
    query_tower: ServedTower
    seen_rows: RaggedArray
    """[n_queries] lists of the items of each query's events, rising."""
    latest_rows: RaggedArray
    """[n_queries] lists of the latest items each query took, oldest first: as many as a History reads, at least 20."""
    own_rows: NDArray[np.int32] | None
    """[n_queries] where queries are items: each one's own item row, -1 for none."""
    attributes: pa.Table | None
    """[M] raw columns of the items; None where there were no item files."""

    @staticmethod
    def open(folder: str | os.PathLike[str], *, verify: bool = False) -> Bundle:
        """Open a bundle. Sizes of all files are always checked, their checksums with ``verify`` (reads everything).

        Raises:
            ArtifactError: there is no bundle, or it is incomplete, damaged or of another version.
            ConfigError: ONNX Runtime is not installed.
        """
        path = Path(folder)
        manifest = BUNDLE.read(path)
        BUNDLE.check_files(path, manifest, verify=verify)
        try:
            return _opened(path, manifest)
        except ArtifactError:
            raise
        except (DataError, KeyError, TypeError, ValueError, OSError, pa.ArrowException) as error:
            raise ArtifactError(f"{path}: the bundle is damaged ({error!r}): {_AGAIN}") from error

    @cached_property
    def fingerprint(self) -> str:
        """Eight hexadecimal digits that tell bundles of other content apart."""
        return BUNDLE.fingerprint(self.manifest)

    def is_there(self) -> bool:
        """Whether its folder still holds it, not another one or none."""
        try:
            return BUNDLE.fingerprint(BUNDLE.read(self.folder)) == self.fingerprint
        except ArtifactError:
            return False

    def warm(self) -> None:
        """Read and make what the first answers need, a second for a million items: look-ups of ids, the towers."""
        for vocabulary in (self.items, self.queries, *self.encoders.vocabularies.values()):
            if isinstance(vocabulary, Vocabulary):
                vocabulary.own_rows(pa.array([""]))
        nothing = {**self.encoders.encode_rows("query", [{}]), **self.encoders.encode_rows("context", [{}])}
        self._search(self.query_tower(nothing, 1), 1, [_NOTHING], None)
        self.encode_items([{}])

    @cached_property
    def item_tower(self) -> ServedTower:
        """Makes vectors of items that are not in the catalogue; opened when first used."""
        return ServedTower(self.folder / "item.onnx")

    # ------------------------------------------------------------ vectors

    def encode_queries(self, queries: Sequence[RawQuery]) -> NDArray[np.float32]:
        """[B, D] vectors of queries given by their raw columns, such as ``{"user_id": "u1"}``.

        Raises DataError for an unknown column, a value of the wrong type, or a query of which nothing is known.
        """
        row_B = np.array([self.raw_queries.row(query) for query in queries], np.int64)
        return self.query_tower(self.raw_queries.encode(queries, row_B), len(queries))

    def encode_items(self, items: Sequence[Mapping[str, object]]) -> NDArray[np.float32]:
        """[n, D] vectors of items, new ones too, given by their raw columns.

        Raises DataError for an unknown column or a value of the wrong type.
        """
        return self.item_tower(self.encoders.encode_rows("item", items), len(items))

    # ------------------------------------------------------------ answers

    def recommend(
        self,
        query: RawQuery,
        *,
        k: int = 10,
        filter_seen: bool = True,
        exclude: Sequence[object] = (),
        where: Where | None = None,
    ) -> list[Recommendation]:
        """The k best live items for a query given by its raw columns, such as ``{"user_id": "u1"}``.

        A known id brings its stored attributes and history; columns in the query replace them, and ``history`` (a list
        of item ids, oldest first) replaces the history. Items whose ids are in ``exclude``, which need not be known,
        are left out, and of the others only those ``where`` holds for are recommended. Fewer than k come back only
        where there are no more.

        Raises DataError for an unknown column or attribute, a value of the wrong type, or a query of which nothing is
        known.
        """
        return self.recommend_many([query], k=k, filter_seen=filter_seen, exclude=exclude, where=where)[0]

    def recommend_many(
        self,
        queries: Sequence[RawQuery],
        *,
        k: int = 10,
        filter_seen: bool = True,
        exclude: Sequence[object] = (),
        where: Where | None = None,
    ) -> list[list[Recommendation]]:
        """``recommend`` for several queries at once."""
        check_k(k)
        row_B = np.array([self.raw_queries.row(query) for query in queries], np.int64)
        query_BD = self.query_tower(self.raw_queries.encode(queries, row_B), len(queries))
        given = np.array([self.items.row(item, "exclude") for item in listed_ids(exclude)], np.int64)
        excluded = [np.union1d(given[given >= 0], self._not_for(int(row), filter_seen)) for row in row_B]
        found = self._search(query_BD, k, excluded, self._allowed(where))
        return [recommendations(self.items, *lists) for lists in zip(found.row_Bk, found.score_Bk, strict=True)]

    def similar(
        self, item: object, *, k: int = 10, exclude: Sequence[object] = (), where: Where | None = None
    ) -> list[Recommendation]:
        """The k live items whose vectors have the greatest inner product with that of an item, without itself.

        Raises DataError for an item that is not known.
        """
        check_k(k)
        row = item_row(self.items, item)
        given = [self.items.row(other, "exclude") for other in listed_ids(exclude)]
        excluded = np.unique([row, *(other for other in given if other >= 0)])
        found = self._search(np.asarray(self.vectors[row : row + 1]), k, [excluded], self._allowed(where))
        return recommendations(self.items, found.row_Bk[0], found.score_Bk[0])

    def recommend_all(self, out: str | Path, *, k: int = 10, filter_seen: bool = True) -> int:
        """``recommend`` for every known query, as Parquet: ``query``, ``rank``, ``item``, ``score``; returns the lines.

        Raises DataError where queries have no ids, ArtifactError where ``out`` can't be written.
        """
        check_k(k)
        row_Q = known_queries(self.queries)
        assert self.queries is not None
        return save_recommendations(out, self.queries, self.items, self._all(row_Q, k, filter_seen))

    def _all(self, row_Q: NDArray[np.int64], k: int, filter_seen: bool) -> Iterator[Lists]:
        for start in range(0, len(row_Q), CHUNK):
            row_B = row_Q[start : start + CHUNK]
            query_BD = self.query_tower(self.raw_queries.encode_known(row_B), len(row_B))
            found = self._search(query_BD, k, [self._not_for(int(row), filter_seen) for row in row_B], None)
            yield row_B, found.row_Bk, found.score_Bk

    def seen(self, query: object) -> list[str]:
        """Ids of the items of a query's own events, none of one that is not known."""
        row = -1 if self.queries is None else self.queries.row(query, "query")
        return self.items.ids_of(self._not_for(row, True).tolist())

    def latest(self, query: object) -> list[str]:
        """Ids of the latest items that a query took, newest first, one that it took twice twice; none of one that is
        not known."""
        row, lists = -1 if self.queries is None else self.queries.row(query, "query"), self.latest_rows
        found = lists.value[lists.offset[row] : lists.offset[row + 1]] if row >= 0 else _NOTHING
        return self.items.ids_of(found[::-1].tolist())

    def shown(self, items: Sequence[object], names: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """The attributes of known items, by name, all of them or those in ``names``; without ``names`` nothing where
        the bundle has none.

        Raises DataError for an item that is not known, or an attribute that is not there.
        """
        rows = [item_row(self.items, item) for item in items]
        for name in names or ():
            check_attribute(name, self._attributes("show").column_names, "show")
        if self.attributes is None:
            return [{} for _ in rows]
        table = self.attributes if names is None else self.attributes.select(list(dict.fromkeys(names)))
        if not table.column_names:
            return [{} for _ in rows]
        found: list[dict[str, Any]] = table.take(pa.array(rows, pa.int64())).to_pylist()
        return found

    def where_of(self, texts: Sequence[str]) -> Where | None:
        """What items must be out of what people type: ``name=value``, ``name=a,b``, ``name=from..to`` or ``name=JSON``.

        Raises DataError for an attribute that is not there or given twice, or a text that is none of this.
        """
        return where_of(self._attributes("where"), texts) if texts else None

    def _attributes(self, asked: str) -> pa.Table:
        if self.attributes is None:
            raise DataError(f"{asked}: the bundle has no attributes of items: export it with item files (--items)")
        return self.attributes

    def _not_for(self, row: int, filter_seen: bool) -> NDArray[np.int64]:
        """Items a known query is not to get: those of its events, and always itself where queries are items."""
        if row < 0:
            return _NOTHING
        if filter_seen:
            lists = self.seen_rows
            return np.asarray(lists.value[lists.offset[row] : lists.offset[row + 1]], np.int64)
        own = -1 if self.own_rows is None else int(self.own_rows[row])
        return np.array([own], np.int64) if own >= 0 else _NOTHING

    def _allowed(self, where: Where | None) -> NDArray[np.bool_] | None:
        return rows_where(self._attributes("where"), where) if where else None

    def _search(
        self,
        query_BD: NDArray[np.float32],
        k: int,
        excluded: Sequence[NDArray[np.int64]],
        allowed: NDArray[np.bool_] | None,
    ) -> Found:
        """[B, k] the best, less what each query must not get."""
        most = min(k, len(self.vectors))
        lists = excluded if any(len(rows) for rows in excluded) else None
        return self.index.search(query_BD, most, allowed=allowed, excluded=lists)


def _opened(folder: Path, manifest: Tree) -> Bundle:
    schema, arrays = decode_schema(manifest["schema"], folder, BUNDLE), manifest["arrays"]
    encoders = Encoders.load(folder / ENCODERS, schema)
    items = Vocabulary.load(folder / ITEMS)
    queries = Vocabulary.load(folder / QUERIES) if manifest["counts"]["queries"] is not None else None
    vectors = open_array(folder, arrays["vectors"])

    def columns(name: str) -> dict[str, Column]:
        return {column: open_column(folder, leaf) for column, leaf in arrays[name].items()}

    lists = columns("lists")
    latest, seen = lists["latest"], lists["seen"]
    assert isinstance(latest, RaggedArray)
    assert isinstance(seen, RaggedArray)
    return Bundle(
        folder=folder,
        manifest=manifest,
        schema=schema,
        encoders=encoders,
        items=items,
        queries=queries,
        vectors=vectors,
        index=Index.open(folder / INDEX, vector_MD=vectors),
        raw_queries=RawQueries(
            schema,
            encoders,
            queries=queries,
            items=items,
            stored=columns("query"),
            item_columns=columns("item"),
            recent=lambda: latest,
        ),
        query_tower=ServedTower(folder / "query.onnx"),
        seen_rows=seen,
        latest_rows=latest,
        own_rows=None if arrays["own"] is None else open_array(folder, arrays["own"]),
        attributes=open_attributes(folder / ATTRIBUTES) if (folder / ATTRIBUTES).exists() else None,
    )


def is_bundle(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder holds a bundle rather than a model."""
    return (Path(folder) / BUNDLE.manifest).exists()


def versions_of(folder: Path) -> list[Path]:
    """Bundles in a folder, by name. What is being written has no manifest yet, or a name that begins with a dot."""
    try:
        inside = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError:
        return []
    return [path for path in inside if is_bundle(path)]
