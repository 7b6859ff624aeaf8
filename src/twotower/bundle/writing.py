"""Writing a bundle's folder from a store and settled towers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ..data.column_files import ColumnsWriter, Tree, write_array
from ..data.columns import Column, RaggedArray
from ..data.raw_queries import last_of_each
from ..data.store import Store, encode_schema
from ..index import Index
from ..schema import History, Id, table_of
from ..towers import TwoTower
from .attributes import save_attributes
from .bundle import ATTRIBUTES, BUNDLE, ENCODERS, INDEX, ITEMS, LATEST, QUERIES, VECTORS
from .towers_as_onnx import write_towers


@dataclass(frozen=True, kw_only=True)
class Content:
    """What a bundle is made of besides its store and its towers."""

    vector_MD: NDArray[np.float32]
    """Vectors of the catalogue, as they are served."""
    index: Index
    """Of those of the items that may be recommended."""
    seen: RaggedArray
    """[n_queries] items of each query's events, and itself where queries are items."""
    latest: RaggedArray
    """[n_queries] items each query took, oldest first."""
    attributes: pa.Table | None
    """[M] raw columns of the items."""
    about: Tree
    """For the manifest: what the model is, as plain JSON."""


def write_bundle(folder: Path, store: Store, towers: TwoTower, content: Content) -> None:
    """Write everything into the empty ``folder``, the manifest last."""
    write_towers(towers, store.schema, folder)
    store.encoders.save(folder / ENCODERS)
    store.item_vocabulary.save(folder / ITEMS)
    if store.query_vocabulary is not None:
        store.query_vocabulary.save(folder / QUERIES)
    vectors = write_array(folder / VECTORS, content.vector_MD)
    content.index.save(folder / INDEX, vectors=False)
    if content.attributes is not None:
        save_attributes(content.attributes, folder / ATTRIBUTES)
    histories = [(name, f) for name, f in store.schema.context.items() if isinstance(f, History)]
    latest = last_of_each(content.latest, max([LATEST, *(f.k for _, f in histories)]))
    ids = {table_of("context", name, f) for name, f in histories}
    item = {
        n: store.item[n] for n, f in store.schema.item.items() if isinstance(f, Id) and table_of("item", n, f) in ids
    }
    lists = {"latest": _int32(latest), "seen": _int32(content.seen)}
    own = store.query_item_row
    BUNDLE.write(
        folder,
        {
            **content.about,
            "schema": encode_schema(store.schema),
            "width": towers.width,
            "score": "cosine" if towers.normalise and towers.serve != "dot" else "dot",
            "counts": {
                "items": store.item_vocabulary.n_values,
                "live": content.index.n,
                "queries": None if store.query_vocabulary is None else store.query_vocabulary.n_values,
            },
            "arrays": {
                "vectors": vectors,
                "query": _columns(folder, "query", store.query),
                "item": _columns(folder, "item", item),
                "lists": _columns(folder, "lists", lists),
                "own": None if own is None else write_array(folder / "own.bin", np.asarray(own)),
            },
        },
    )


def _int32(lists: RaggedArray) -> RaggedArray:
    return RaggedArray(offset=lists.offset, value=lists.value.astype(np.int32))


def _columns(folder: Path, prefix: str, columns: Mapping[str, Column]) -> Tree:
    writer = ColumnsWriter(folder, prefix)
    writer.append(columns)
    return writer.close()
