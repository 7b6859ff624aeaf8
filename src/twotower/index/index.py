"""An index: the k items with the greatest inner product with a query, while items come, change and go."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import ConfigError, DataError
from . import structures
from .exact import LAST_ROW, NOTHING, Keys, Mask, Rows, Vectors, best_of, keys_of, nearest, rows_of, scores_of
from .kinds import HNSW, LSH, SEARCH_SETTINGS, Exact, IndexSettings
from .structures import Approximate, Structure

EXACT_BELOW = 20_000
"""Under a filter that leaves at most so many items, all of them are looked at: a millisecond, and nothing is missed."""
_GATHER = 4
"""Where a filter leaves less than one item in so many, these are copied together before they are multiplied."""
_MOSTLY = 0.9
"""While so many of the structure's items are live, those that went are dropped after the search."""
_NUMBERS = 2**22
"""Numbers of proposed vectors that are multiplied at a time."""
_LOOKED_AT = 65_536
"""Vectors that are checked, or held against others, at a time."""
_NONE = np.empty(0, np.int64)
_ROUNDING = 1e-6
"""How far numbers of the same vectors, made by another number of threads, may be apart, as a share of the greatest
or of 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a search found, best first; equal scores by rising row."""

    row_Bk: Rows
    """Catalogue rows, int64; -1 where there are no more."""
    score_Bk: NDArray[np.float32]
    """Inner products, float32; -inf where the row is -1."""

    def first(self, n: int | None) -> Found:
        """Of the first n queries; of all, if None."""
        return Found(row_Bk=self.row_Bk[:n], score_Bk=self.score_Bk[:n])


class Best(NamedTuple):
    """What a search found for one query."""

    row_k: Rows
    score_k: NDArray[np.float32]
    found: int
    """Items that it came up with, of k and as many as are excluded."""
    left: int
    """Of these, without those excluded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """What an index holds at one moment. Never changed: a change makes another one."""

    vector_MD: Vectors
    """Vectors of the base by catalogue row, perhaps a mapped file; rows that are not in it may hold anything."""
    live_M: Mask
    """Rows that are served from the base: in it, and neither deleted nor changed since."""
    n_live: int
    """How many these are: to count them takes as long as a search."""
    structure: Structure | None
    """What proposes rows of the base; None: all are looked at."""
    structure_row_n: Rows | None
    """Rows of its positions; None: they are the same."""
    n_built: int
    """Items of the base when it was built."""
    delta_row_d: Rows
    """Rows that came or changed since, rising."""
    delta_vector_dD: Vectors

    @property
    def n_rows(self) -> int:
        """One more than the greatest row it knows."""
        return max(len(self.live_M), int(self.delta_row_d[-1]) + 1 if len(self.delta_row_d) else 0)

    def without(self, row_n: Rows) -> Content:
        """These rows are gone."""
        live_M = self.live_M.copy()
        live_M[row_n[row_n < len(live_M)]] = False
        stays_d = ~np.isin(self.delta_row_d, row_n)
        return replace(
            self,
            live_M=live_M,
            n_live=int(np.count_nonzero(live_M)),
            delta_row_d=self.delta_row_d[stays_d],
            delta_vector_dD=self.delta_vector_dD[stays_d],
        )

    def with_vectors(self, row_n: Rows, vector_nD: Vectors) -> Content:
        """These rows have these vectors."""
        rest = self.without(row_n)
        row_d = np.concatenate([rest.delta_row_d, row_n])
        order_d = np.argsort(row_d)
        vector_dD = np.concatenate([rest.delta_vector_dD, vector_nD])
        return replace(rest, delta_row_d=row_d[order_d], delta_vector_dD=vector_dD[order_d])

    def current(self) -> tuple[Vectors, Mask]:
        """Vectors by row with all changes in them, and which rows there are."""
        vector_MD = np.zeros((self.n_rows, self.vector_MD.shape[1]), np.float32)
        vector_MD[: len(self.vector_MD)] = self.vector_MD
        there_M = np.zeros(self.n_rows, bool)
        there_M[: len(self.live_M)] = self.live_M
        vector_MD[self.delta_row_d] = self.delta_vector_dD
        there_M[self.delta_row_d] = True
        return vector_MD, there_M


_Change = Callable[[Content], Content]


class Index:
    """Items by catalogue row, found by inner product.

    Whether that is a cosine is for the towers to say: an index never changes the length of a vector. Searches may run
    in any number of threads beside one another and beside changes; each sees the index as it was at one moment.

    Changes (``upsert``, ``delete``) take effect at once and exactly: what is new is kept beside the structure and
    looked at in full, what is gone is masked. They make searches slower little by little (``stale_share``); ``compact``
    builds the structure anew.
    """

    def __init__(self, settings: IndexSettings, content: Content, *, seed: int = 0, threads: int = 1) -> None:
        self._settings, self._content = settings, content
        self.seed = seed
        self.threads = threads
        """Threads of one search in a Faiss structure; a service has better use for them than the single query."""
        self._changing = threading.Lock()
        self._compacting = threading.Lock()
        self._since: list[_Change] | None = None

    @staticmethod
    def build(
        vector_MD: Vectors,
        settings: IndexSettings | None = None,
        *,
        live_M: Mask | None = None,
        threads: int = 1,
        seed: int = 0,
    ) -> Index:
        """An index of vectors by catalogue row, of the rows in ``live_M`` if that is given.

        ``vector_MD`` is kept, not copied, and may be a mapped file. ``threads`` are for building. The same seed gives
        the same index, with ``HNSW`` on one thread only. Fewer than 256 items are looked at in full, whatever the kind.

        Raises:
            DataError: vectors that are not float32 or not finite, a mask of another length.
            ConfigError: settings that do not fit the vectors, or Faiss is needed and not installed.
        """
        settings = Exact() if settings is None else settings
        _check_vectors(vector_MD)
        live_M = np.ones(len(vector_MD), bool) if live_M is None else np.array(live_M, bool)
        if live_M.shape != (len(vector_MD),):
            raise DataError(f"live_M: found the shape {live_M.shape}, expected one for each of {len(vector_MD)} rows")
        structures.check(settings, int(live_M.sum()), vector_MD.shape[1])
        return Index(settings, _content(vector_MD, live_M, settings, threads, seed), seed=seed)

    @staticmethod
    def open(folder: str | Path, *, mmap: bool = True, verify: bool = False, vector_MD: Vectors | None = None) -> Index:
        """An index that ``save`` wrote; with ``mmap`` its files are mapped, not read.

        Sizes of files are checked always, checksums with ``verify``. ``vector_MD`` is for one that was saved without
        its vectors.

        Raises:
            ArtifactError: it is missing, incomplete, damaged or of another version.
            ConfigError: it needs Faiss, which is not installed.
        """
        from .files import read

        return read(Path(folder), mmap=mmap, verify=verify, vector_MD=vector_MD)

    def save(self, folder: str | Path, *, vectors: bool = True) -> None:
        """Write the index into a folder, in place of an index that is there; without its vectors where the caller keeps
        them.

        Raises:
            ArtifactError: the folder holds something else or can't be written.
            ConfigError: it was changed, and is to be saved without vectors: ``compact`` does not help, the caller's
                vectors must be today's.
        """
        from .files import write

        write(self, self._content, Path(folder), vectors=vectors)

    @property
    def settings(self) -> IndexSettings:
        """How it was built and how it is searched."""
        return self._settings

    @property
    def kind(self) -> str:
        """Name of the settings' class."""
        return type(self._settings).__name__

    @property
    def width(self) -> int:
        """Numbers of a vector."""
        return int(self._content.vector_MD.shape[1])

    @property
    def n(self) -> int:
        """Items that can be found."""
        content = self._content
        return content.n_live + len(content.delta_row_d)

    @property
    def n_rows(self) -> int:
        """One more than the greatest row it knows: the length of a mask of allowed rows."""
        return self._content.n_rows

    @property
    def stale_share(self) -> float:
        """Changes since it was built, as a share of what was built; beyond a tenth, ``compact`` pays."""
        content = self._content
        gone = content.n_built - content.n_live
        return (gone + len(content.delta_row_d)) / max(content.n_built, 1)

    @property
    def most(self) -> int:
        """The greatest sensible value of how hard it looks; 1 for ``Exact``."""
        structure = self._content.structure
        return 1 if structure is None else structures.most_looked_into(structure, cast(Approximate, self._settings))

    def holds(self, row_n: ArrayLike) -> Mask:
        """[n] which of these rows can be found.

        Raises:
            DataError: rows that are negative or given twice.
        """
        row_n, content = _check_rows(row_n), self._content
        held_n = np.isin(row_n, content.delta_row_d)
        of_base = row_n < len(content.live_M)
        held_n[of_base] |= content.live_M[row_n[of_base]]
        return held_n

    def is_of(self, vector_MD: Vectors, live_M: Mask) -> bool:
        """Whether it finds just the rows in ``live_M``, and these vectors are theirs up to rounding."""
        content = self._content
        if len(content.delta_row_d) or vector_MD.shape != content.vector_MD.shape:
            return False
        if not np.array_equal(content.live_M, live_M):
            return False
        row_n = np.flatnonzero(live_M)
        for first in range(0, len(row_n), _LOOKED_AT):
            ours, theirs = (of[row_n[first : first + _LOOKED_AT]] for of in (content.vector_MD, vector_MD))
            if float(np.abs(ours - theirs).max()) > _ROUNDING * max(1.0, float(np.abs(theirs).max())):
                return False
        return True

    def memory_bytes(self) -> int:
        """Bytes that a search needs at hand: those of the structure, masks and new items; of ``Exact``, the vectors.

        The others read ``k_factor`` · k vectors a search, from the mapped file where there is one.
        """
        content = self._content
        base = content.vector_MD.nbytes if content.structure is None else content.structure.n_bytes()
        rows = 0 if content.structure_row_n is None else content.structure_row_n.nbytes
        return base + rows + content.live_M.nbytes + content.delta_row_d.nbytes + content.delta_vector_dD.nbytes

    def look(self, settings: IndexSettings) -> Index:
        """The same index searched with other settings, which may differ in ``SEARCH_SETTINGS``.

        What it holds is shared until one of both is changed.

        Raises:
            ConfigError: settings that it would have to be built anew for.
        """
        own = {name: getattr(self._settings, name) for name in SEARCH_SETTINGS if hasattr(self._settings, name)}
        if type(settings) is not type(self._settings) or replace(settings, **own) != self._settings:
            raise ConfigError(
                f"an index built with {self._settings} can't be searched with {settings}: only "
                f"{', '.join(own) or 'nothing'} may differ; build another one"
            )
        return Index(settings, self._content, seed=self.seed, threads=self.threads)

    # ------------------------------------------------------------ search

    def search(
        self,
        query_BD: ArrayLike,
        k: int,
        *,
        allowed: Mask | None = None,
        excluded: Sequence[Rows] | None = None,
        exact: bool = False,
        complete: bool = True,
    ) -> Found:
        """The k items with the greatest inner product with each query.

        ``allowed`` says which rows may be found (rows beyond its end may not); ``excluded`` holds rows that a query
        must not find, an array a query. k items come back wherever there are k: where an approximate search finds
        fewer, all items are looked at, as they are with ``exact``. Without ``complete`` the list stays short.

        Raises:
            DataError: queries of another width or not finite, a mask that is none, not one array a query.
        """
        content = self._content
        if allowed is None and not exact and (excluded is None or len(excluded) == 1):
            one = self.search_one(query_BD, k, _NONE if excluded is None else np.unique(excluded[0]))
            if one is not None:
                return Found(row_Bk=one.row_k[None], score_Bk=one.score_k[None])
        query_BD = self._check_queries(query_BD)
        if k < 1:
            raise DataError(f"k is {k}, expected at least 1")
        if allowed is not None:
            allowed = _mask(allowed, content.n_rows)
        if excluded is not None and len(excluded) != len(query_BD):
            raise DataError(f"excluded: found {len(excluded)} arrays, expected one for each of {len(query_BD)} queries")
        key_Bk = self._search_base(content, query_BD, k, allowed, excluded, exact, complete)
        if len(content.delta_row_d):
            delta_Bk = nearest(
                query_BD,
                content.delta_vector_dD,
                k,
                row_n=content.delta_row_d,
                allowed_n=None if allowed is None else allowed[content.delta_row_d],
                excluded=excluded,
            )
            key_Bk = best_of(np.concatenate([key_Bk, delta_Bk], axis=1), k)
        return Found(row_Bk=rows_of(key_Bk), score_Bk=scores_of(key_Bk))

    def search_one(self, query_1D: ArrayLike, k: int, excluded: Rows) -> Best | None:
        """The plain case of a service, one query [1, D] that may have all but a few items (rising rows), in a third of
        the time around Faiss; None where it is another, something is wrong with it, or too few were found.
        """
        content, settings = self._content, self._settings
        structure = content.structure
        if structure is None or isinstance(settings, (Exact, LSH)) or content.n_live < _MOSTLY * structure.n:
            return None
        if (
            k < 1
            or not isinstance(query_1D, np.ndarray)
            or query_1D.shape != (1, content.vector_MD.shape[1])
            or query_1D.dtype != np.float32
        ):
            return None
        if isinstance(settings, HNSW) and not np.isfinite(query_1D).all():
            return None  # Faiss up to 1.13 ends the process
        goal = math.ceil(settings.k_factor * k) + len(excluded)
        spare = 0 if content.n_live == structure.n else goal // 4 + 16
        row_n = structure.propose_to_one(query_1D, goal + spare, settings, threads=self.threads)
        row_n = row_n[row_n >= 0] if row_n[-1] < 0 else row_n
        row_n = row_n if content.structure_row_n is None else content.structure_row_n[row_n]
        row_n = row_n[content.live_M[row_n]] if spare else row_n
        row_n.sort()  # of equal scores the lower row comes first
        found, left_out = len(row_n), 0
        if len(excluded):
            row_n = row_n[excluded.take(excluded.searchsorted(row_n), mode="clip") != row_n]
            left_out = found - len(row_n)
        score_n = content.vector_MD.take(row_n, axis=0).dot(query_1D[0])
        if len(content.delta_row_d):
            key_k = nearest(query_1D, content.delta_vector_dD, k, row_n=content.delta_row_d, excluded=[excluded])[0]
            key_k = key_k[key_k != NOTHING]
            row_n = np.concatenate([row_n, rows_of(key_k)])
            score_n = np.concatenate([score_n, scores_of(key_k)])
            by_row = np.argsort(row_n, kind="stable")
            row_n, score_n = row_n[by_row], score_n[by_row]
            found += len(key_k)
        order_k = (-score_n).argsort(kind="stable")[:k]
        if len(order_k) < k or not math.isfinite(score_n[order_k[0]]):  # as all are of a query that is not finite
            return None
        found = min(found, k + len(excluded))
        return Best(row_k=row_n[order_k], score_k=score_n[order_k], found=found, left=found - left_out)

    def _search_base(
        self,
        content: Content,
        query_BD: Vectors,
        k: int,
        allowed: Mask | None,
        excluded: Sequence[Rows] | None,
        exact: bool,
        complete: bool,
    ) -> Keys:
        """[B, k] keys of what the base finds."""
        wanted_M, n_wanted = content.live_M, content.n_live
        if allowed is not None:
            wanted_M = wanted_M & allowed[: len(wanted_M)]
            n_wanted = int(np.count_nonzero(wanted_M))
        settings = cast(Approximate, self._settings)
        if (
            exact
            or content.structure is None
            or n_wanted <= (EXACT_BELOW if allowed is not None else k)
            or (allowed is not None and not content.structure.is_worth_it(n_wanted, k, settings))
        ):
            return _nearest_of(content, query_BD, k, wanted_M, n_wanted, excluded)
        row_n = content.structure_row_n
        everything = n_wanted == content.structure.n
        wanted_n = None if everything else wanted_M if row_n is None else wanted_M[row_n]
        longest = max((len(rows) for rows in excluded), default=0) if excluded is not None else 0
        position_Bn = content.structure.propose(
            query_BD, math.ceil(settings.k_factor * k) + longest, settings, allowed_n=wanted_n, threads=self.threads
        )
        row_Bn = position_Bn if row_n is None else np.where(position_Bn < 0, -1, row_n[position_Bn])
        key_Bk = _ranked(content.vector_MD, query_BD, row_Bn, k, excluded)
        short = np.flatnonzero(key_Bk[:, -1] == NOTHING) if complete else ()
        if len(short):
            lists = None if excluded is None else [excluded[int(b)] for b in short]
            key_Bk[short] = _nearest_of(content, query_BD[short], k, wanted_M, n_wanted, lists)
        return key_Bk

    def _check_queries(self, query_BD: ArrayLike) -> Vectors:
        query_BD = np.asarray(query_BD, np.float32)
        if query_BD.ndim != 2 or query_BD.shape[1] != self.width:
            raise DataError(f"queries: found the shape {query_BD.shape}, expected (queries, {self.width})")
        if not np.isfinite(query_BD).all():
            raise DataError(f"queries: vector {int(np.argmin(np.isfinite(query_BD).all(1)))} is not finite")
        return query_BD

    # ------------------------------------------------------------ changes

    def upsert(self, row_n: ArrayLike, vector_nD: ArrayLike) -> None:
        """New items, or new vectors of items that are there; in effect when it returns.

        Raises:
            DataError: rows that are negative or given twice, vectors of another width, number or not finite.
        """
        row_n = _check_rows(row_n)
        vector_nD = np.array(vector_nD, np.float32)
        if vector_nD.shape != (len(row_n), self.width):
            raise DataError(f"vectors: found the shape {vector_nD.shape}, expected ({len(row_n)}, {self.width})")
        _check_vectors(vector_nD)
        self._change(lambda content: content.with_vectors(row_n, vector_nD))

    def delete(self, row_n: ArrayLike) -> None:
        """Items are gone; in effect when it returns. Rows that are not there are left as they are.

        Raises:
            DataError: rows that are negative or no whole numbers.
        """
        row_n = _check_rows(np.unique(np.asarray(row_n)))
        self._change(lambda content: content.without(row_n))

    def compact(self, *, threads: int = 1) -> None:
        """Build the structure anew out of what is there now; searches and changes go on meanwhile."""
        with self._compacting:
            with self._changing:
                self._since, before = [], self._content
            try:
                content = _content(*before.current(), self._settings, threads, self.seed)
                with self._changing:
                    for change in self._since:
                        content = change(content)
                    self._content = content
            finally:
                self._since = None

    def _change(self, change: _Change) -> None:
        with self._changing:
            self._content = change(self._content)
            if self._since is not None:
                self._since.append(change)


def _content(vector_MD: Vectors, live_M: Mask, settings: IndexSettings, threads: int, seed: int) -> Content:
    """A fresh base."""
    n = int(live_M.sum())
    whole = n == len(live_M)
    row_n = None if whole else np.flatnonzero(live_M)
    structure = None
    if not isinstance(settings, Exact) and n >= structures.LEAST_ITEMS:
        base_nD = vector_MD if row_n is None else vector_MD[row_n]
        structure = structures.build(base_nD, settings, threads=threads, seed=seed)
    return Content(
        vector_MD=np.asarray(vector_MD),  # of a mapped file, the plain array on it: quicker to slice
        live_M=live_M,
        n_live=n,
        structure=structure,
        structure_row_n=None if structure is None else row_n,
        n_built=n,
        delta_row_d=np.empty(0, np.int64),
        delta_vector_dD=np.empty((0, vector_MD.shape[1]), np.float32),
    )


def _nearest_of(
    content: Content, query_BD: Vectors, k: int, wanted_M: Mask, n_wanted: int, excluded: Sequence[Rows] | None
) -> Keys:
    """Exact search of the base among the wanted rows."""
    if n_wanted * _GATHER < len(wanted_M):
        row_n = np.flatnonzero(wanted_M)
        return nearest(query_BD, np.take(content.vector_MD, row_n, axis=0), k, row_n=row_n, excluded=excluded)
    return nearest(
        query_BD,
        content.vector_MD,
        k,
        allowed_n=None if n_wanted == len(wanted_M) else wanted_M,
        excluded=excluded,
    )


def _ranked(vector_MD: Vectors, query_BD: Vectors, row_Bn: Rows, k: int, excluded: Sequence[Rows] | None) -> Keys:
    """[B, k] keys of the proposed rows with the greatest inner products; the excluded ones are none."""
    key_Bk = np.empty((len(query_BD), k), np.int64)
    at_once = max(1, _NUMBERS // max(1, row_Bn.shape[1] * query_BD.shape[1]))
    for start in range(0, len(query_BD), at_once):
        stop = start + at_once
        row_bn, query_bD = row_Bn[start:stop], query_BD[start:stop]
        score_bn = np.matmul(np.take(vector_MD, np.maximum(row_bn, 0), axis=0), query_bD[:, :, None])[:, :, 0]
        there_bn = row_bn >= 0
        for place, rows in enumerate(() if excluded is None else excluded[start:stop]):
            there_bn[place] &= ~np.isin(row_bn[place], rows)
        key_Bk[start:stop] = best_of(np.where(there_bn, keys_of(score_bn, row_bn), NOTHING), k)
    return key_Bk


def _mask(allowed: Mask, n_rows: int) -> Mask:
    """[n_rows] which rows are allowed."""
    if allowed.ndim != 1 or allowed.dtype != np.bool_:
        raise DataError(f"allowed: found {allowed.dtype} of the shape {allowed.shape}, expected bool [rows]")
    missing = n_rows - len(allowed)
    return np.pad(allowed, (0, missing)) if missing > 0 else allowed[:n_rows]


def _check_rows(row_n: ArrayLike) -> Rows:
    rows = np.atleast_1d(np.asarray(row_n))
    if rows.ndim != 1 or (len(rows) and rows.dtype.kind not in "iu"):
        raise DataError(f"rows: found {rows.dtype} of the shape {rows.shape}, expected a list of whole numbers")
    rows = rows.astype(np.int64)
    if len(rows) and (rows.min() < 0 or rows.max() > LAST_ROW):
        raise DataError(f"rows: found {int(rows.min())} to {int(rows.max())}, expected 0 to {LAST_ROW}")
    if len(np.unique(rows)) != len(rows):
        raise DataError("rows: one is given twice, expected each row once")
    return rows


def _check_vectors(vector_nD: Vectors) -> None:
    if vector_nD.ndim != 2 or vector_nD.dtype != np.float32 or vector_nD.shape[1] == 0:
        raise DataError(f"vectors: found {vector_nD.dtype} of the shape {vector_nD.shape}, expected float32 [items, D]")
    for first in range(0, len(vector_nD), _LOOKED_AT):
        finite = np.isfinite(vector_nD[first : first + _LOOKED_AT]).all(1)
        if not finite.all():
            raise DataError(f"vectors: that of row {first + int(np.argmin(finite))} is not finite")
