"""What changed from one store to the one that grew out of it, row by row."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import ArtifactError
from ..part import Changes
from .store import Store
from .vocabulary import Vocabulary


def changes(old: Store, new: Store) -> Changes:
    """The rows of ``new`` that are not what they were in ``old``: a row changed if its text is another by now, or none.

    Rows of buckets never change, nor do those of tables without a list of values (hashed ones, text, hours, quantiles).

    Raises ArtifactError where ``new`` did not grow out of ``old``: another schema, fewer rows, or a table of another
    size that never grows.
    """
    if old.schema != new.schema:
        raise ArtifactError(f"{new.path}: has another schema than {old.path}, expected a store that grew out of it")
    table, start = {}, {}
    for name, size in new.encoders.table_sizes.items():
        before, after = (store.encoders.vocabularies.get(name) for store in (old, new))
        if isinstance(before, Vocabulary) and isinstance(after, Vocabulary):
            changed_R = _changed(before, after, new, name)
            table[name], start[name] = torch.from_numpy(changed_R), _buckets(before, after, changed_R)
        elif old.encoders.table_sizes[name] != size:
            raise ArtifactError(
                f"{new.path}: table {name!r} has {size} rows, expected the {old.encoders.table_sizes[name]} of "
                f"{old.path}: its rows are no list of values, so it can't grow"
            )
        else:
            table[name] = torch.zeros(size, dtype=torch.bool)
    query_Q = np.zeros(new.n_queries, bool)
    if old.query_vocabulary is not None and new.query_vocabulary is not None:
        query_Q = _changed(old.query_vocabulary, new.query_vocabulary, new, "queries")
    item_M = _changed(old.item_vocabulary, new.item_vocabulary, new, "items")
    return Changes(item_M=torch.from_numpy(item_M), query_Q=torch.from_numpy(query_Q), table=table, start=start)


def _changed(old: Vocabulary, new: Vocabulary, store: Store, name: str) -> NDArray[np.bool_]:
    """[size of new] whether a row has another text, or is beyond those of old."""
    if new.size < old.size:
        raise ArtifactError(
            f"{store.path}: {name!r} has {new.size} rows, expected the {old.size} of the store it grew out of, or more"
        )
    before, after = _texts(old), _texts(new).slice(0, old.size)
    equal = pc.fill_null(pc.equal(before, after), False)
    equal = pc.or_(equal, pc.and_(pc.is_null(before), pc.is_null(after)))
    changed_R = np.ones(new.size, bool)
    changed_R[: old.size] = ~np.asarray(equal.to_numpy(zero_copy_only=False), bool)
    return changed_R


def _texts(vocabulary: Vocabulary) -> pa.LargeStringArray:
    """[size] the text of each row's value; null for free rows and buckets."""
    texts = vocabulary.ids()
    missing = vocabulary.size - len(texts)
    return pa.concat_arrays([texts, pa.nulls(missing, texts.type)]) if missing else texts


def _buckets(old: Vocabulary, new: Vocabulary, changed_R: NDArray[np.bool_]) -> Tensor:
    """[R] the row that old looks up for each new value, -1 for none."""
    row = np.flatnonzero(changed_R)
    bucket_R = np.full(new.size, -1, np.int64)
    bucket_R[row] = old.rows(_texts(new).take(pa.array(row)))  # -1 for a row that is free
    return torch.from_numpy(bucket_R)
