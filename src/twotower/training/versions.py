"""Versions of a model's bundle in a folder that a service watches: one for each update that was kept."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from ..bundle import versions_of
from ..bundle.attributes import open_attributes
from ..bundle.bundle import ATTRIBUTES, BUNDLE, ITEMS
from ..data.readers import Source
from ..data.store import Store
from ..data.vocabulary import Vocabulary
from ..errors import ArtifactError, TwoTowerError
from . import checkpoint
from .export import Exported, export
from .retriever import BEST, open_model


def next_version(model: str | Path, folder: str | Path) -> Path:
    """Where the next version of a model's bundle goes: the number of its updates, or one more than that of the newest
    version, in six digits.

    Raises ArtifactError where the newest version has a name that comes after it: no service would take it up.
    """
    _, store, _ = open_model(Path(model))
    newest = _newest(Path(folder))
    number = store.n_updates
    if newest is not None and re.fullmatch(r"[0-9]{6}", newest.name):
        number = max(number, int(newest.name) + 1)
    name = f"{number:06d}"
    if newest is not None and newest.name >= name:
        raise ArtifactError(
            f"{folder}: the newest version is {newest.name!r}, and {name!r} would not come after it by name: choose a "
            "folder of its own, or give that version a name of six digits"
        )
    return Path(folder) / name


def export_version(model: str | Path, folder: str | Path, *, items: Sequence[Source] = ()) -> Exported | None:
    """Export a model as the next version of its bundle; nothing where its last update was not kept, or where the newest
    version is of this model already.

    So it is called after every update, and whatever was cut off between an update and its export is made up for by the
    next call. The index is that of the model's folder (``export``); what is shown of items and the licence are those of
    the newest version, and what that knows of items stays, with ``items`` over it.

    Args:
        model: folder that ``train`` wrote.
        folder: where ``twotower serve --watch`` looks for versions.
        items: files of the attributes of items that are new or changed.

    Raises:
        ArtifactError: the version can't be written; the update is kept all the same, and the message says how to go on.
    """
    model, folder = Path(model), Path(folder)
    place = next_version(model, folder)
    run, store, state = open_model(model)
    days = state.get("days", [])
    if not days or not days[-1]["kept"]:
        return None
    newest = _newest(folder)
    try:
        if newest is None:
            of_run = () if run.data is None else run.data.items
            return export(model, place, items=[*([of_run] if of_run else []), *items] or None)
        before = BUNDLE.read(newest)
        if before["model"].get("checkpoint") == checkpoint.fingerprint(model / BEST):
            return None
        known = _attributes(newest, store)
        return export(
            model,
            place,
            show=[] if known is None else known.column_names[1:],
            items=None if known is None else [known, *items],
            licence=before.get("licence"),
        )
    except TwoTowerError as error:
        raise ArtifactError(
            f"{place}: update {days[-1]['number']} of {model} is kept, but was not exported: {error}. Then run the "
            f"same command again, or export by hand: twotower export {model} --out {place}"
        ) from error


def _newest(folder: Path) -> Path | None:
    versions = versions_of(folder)
    return versions[-1] if versions else None


def _attributes(version: Path, store: Store) -> pa.Table | None:
    """Ids, and what a version knows of its items; None where it shows nothing."""
    if not (version / ATTRIBUTES).exists():
        return None
    table, ids = open_attributes(version / ATTRIBUTES), Vocabulary.load(version / ITEMS).ids()
    key = store.schema.item_key or store.schema.interactions.item
    return pa.table({key: ids, **{name: table[name] for name in table.column_names}}).filter(ids.is_valid())
