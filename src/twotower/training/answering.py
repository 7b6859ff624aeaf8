"""Answers of a trained model or of a bundle, whichever a folder holds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..bundle import Bundle, Recommendation, is_bundle
from ..data.raw_queries import RawQuery
from .retriever import Retriever


def open_to_answer(folder: str | Path) -> Retriever | Bundle:
    """What a folder holds. Raises ArtifactError when it is missing or damaged."""
    return Bundle.open(folder) if is_bundle(folder) else Retriever.open(folder)


def recommend(
    folder: str | Path, query: RawQuery, *, k: int = 10, filter_seen: bool = True, exclude: Sequence[object] = ()
) -> list[Recommendation]:
    """The k best items of a model or bundle for a query given by its raw columns, without those in ``exclude``."""
    return open_to_answer(folder).recommend(query, k=k, filter_seen=filter_seen, exclude=exclude)


def recommend_all(folder: str | Path, out: str | Path, *, k: int = 10, filter_seen: bool = True) -> int:
    """The same for every known query, as Parquet: ``query``, ``rank``, ``item``, ``score``; returns the lines."""
    return open_to_answer(folder).recommend_all(out, k=k, filter_seen=filter_seen)


def similar(folder: str | Path, item: object, *, k: int = 10, exclude: Sequence[object] = ()) -> list[Recommendation]:
    """The k live items of a model or bundle whose vectors have the greatest inner product with that of an item."""
    return open_to_answer(folder).similar(item, k=k, exclude=exclude)
