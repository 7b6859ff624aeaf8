"""What comes back from models and bundles alike: recommendations, one by one or of all queries in a file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ..data.vocabulary import Vocabulary
from ..errors import ArtifactError, DataError

Lists = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]
"""Rows of queries [B], rows of items [B, k] (-1 where there are no more) and their scores [B, k]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recommendation:
    """One item and its score."""

    item: str
    score: float


def check_k(k: int) -> None:
    """Raises DataError unless something is asked for."""
    if not isinstance(cast(object, k), (int, np.integer)):
        raise DataError(f"k: found {k!r}, expected a whole number")
    if k < 1:
        raise DataError(f"k: found {k}, expected at least 1")


def listed_ids(exclude: Sequence[object]) -> Sequence[object]:
    """Raises DataError for a text, whose letters are no ids."""
    if isinstance(exclude, (str, bytes)):
        raise DataError(f"exclude: found the text {exclude!r:.80}, expected a list of item ids")
    return exclude


def item_row(items: Vocabulary, item: object, where: str = "item") -> int:
    """Row of a known item. Raises DataError for one that is not."""
    row = items.row(item, where)
    if row < 0:
        raise DataError(f"{where}: {item!r} is not known, expected the id of an item of the catalogue")
    return row


def recommendations(items: Vocabulary, row_k: NDArray[np.int64], score_k: NDArray[np.float32]) -> list[Recommendation]:
    """Found rows as their ids; -1 is no item."""
    there = row_k >= 0
    ids = items.ids_of(row_k[there].tolist())
    return [Recommendation(item=i, score=s) for i, s in zip(ids, score_k[there].tolist(), strict=True)]


def known_queries(queries: Vocabulary | None) -> NDArray[np.int64]:
    """Rows of all queries that there are. Raises DataError where queries have no ids."""
    if queries is None:
        raise DataError(
            "recommend: the schema names no query column (interactions.query), so there are no known queries to "
            "recommend to: ask query by query"
        )
    return np.flatnonzero(~np.asarray(queries.ids().is_null().to_numpy(zero_copy_only=False), bool))


def save_recommendations(out: str | Path, queries: Vocabulary, items: Vocabulary, found: Iterable[Lists]) -> int:
    """Write lists as Parquet, a line an item: ``query``, ``rank`` (from 1), ``item``, ``score``; returns the lines.

    Raises ArtifactError where ``out`` can't be written; what was there before is then still there.
    """
    out = Path(out)
    schema = pa.schema(
        [("query", pa.large_string()), ("rank", pa.int32()), ("item", pa.large_string()), ("score", pa.float32())]
    )
    partial, n = out.with_name(f".{out.name}.partial"), 0
    try:
        with pq.ParquetWriter(partial, schema) as writer:
            for row_B, row_Bk, score_Bk in found:
                at_n, place_n = np.nonzero(row_Bk >= 0)
                columns = [
                    queries.ids().take(pa.array(row_B[at_n])),
                    pa.array(place_n + 1, pa.int32()),
                    items.ids().take(pa.array(row_Bk[at_n, place_n])),
                    pa.array(score_Bk[at_n, place_n], pa.float32()),
                ]
                writer.write_table(pa.table(columns, schema=schema))
                n += len(at_n)
        partial.replace(out)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise ArtifactError(f"{out}: the lists can't be written ({error}): choose another place") from error
    return n
