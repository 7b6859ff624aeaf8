"""What an index other than ``Exact`` looks items up in: Faiss structures behind one narrow door.

A structure knows positions 0 to n - 1 and proposes some for a query. Which rows they are, what is new or gone, and the
exact scores are the business of ``Index``. Nothing here changes after it was built, and searches may run side by side.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ArtifactError, ConfigError, DataError
from .exact import Mask, Rows, Vectors
from .kinds import HNSW, IVFPQ, IVFSQ8, LSH, POINTS_PER_LIST, Exact, IndexSettings, default_m, default_nlist

Approximate = IVFSQ8 | IVFPQ | HNSW | LSH

_ROUGHLY_EQUAL = 1e-3
"""Lengths that differ by a smaller share of the longest are taken for equal."""
LEAST_ITEMS = 256
"""Fewer are not worth a structure, nor enough to learn the codes of one from."""
_FETCHED = 20
"""From one item in so many on, to fetch by differing bits takes longer than to look at all."""
_TOO_LONG = 1e15
"""Times the usual length of a vector: its square, times numbers of vectors, has to stay finite."""
_CHUNK = 65_536
"""Vectors added at a time: they may be a mapped file."""


@dataclass(frozen=True, slots=True)
class Structure:
    """A built Faiss index and what is needed to ask it."""

    faiss_index: Any
    longest: float
    """Length of the longest vector where vectors got a number that makes them equally long, else 0."""
    n: int = field(init=False)
    """Positions it knows."""
    _own: threading.local = field(init=False, default_factory=threading.local)
    """A thread's ``_Asking``."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "n", int(self.faiss_index.ntotal))

    def propose(
        self, query_BD: Vectors, n: int, settings: Approximate, *, allowed_n: Mask | None, threads: int
    ) -> Rows:
        """[B, n] positions that may be among the best, best first as it sees them; -1 where it has no more.

        ``allowed_n`` says which positions may be proposed; the fewer they are, the harder it looks (``kinds``).
        """
        harder = 1.0 if allowed_n is None else _harder(settings, int(np.count_nonzero(allowed_n)), self.n)
        query_BD = np.ascontiguousarray(_lengthened(query_BD, None) if self.longest else query_BD)
        with _threads(threads):
            if isinstance(settings, LSH):
                return self._propose_by_bits(query_BD, math.ceil(n * harder), allowed_n)
            if allowed_n is None and isinstance(settings, (IVFSQ8, IVFPQ)):
                parameters = _parameters_of_lists(min(settings.nprobe, self.faiss_index.nlist))
            else:
                parameters = _search_parameters(settings, harder, self.n, self.faiss_index)
            if allowed_n is not None:
                parameters.sel = selector = _faiss().IDSelectorBitmap(np.packbits(allowed_n, bitorder="little"))
            _, position_Bn = self.faiss_index.search(query_BD, min(n, self.n), params=parameters)
            if allowed_n is not None:
                del selector  # only now: Faiss holds no reference
        found: Rows = position_Bn
        return found

    def propose_to_one(self, query_1D: Vectors, n: int, settings: IVFSQ8 | IVFPQ | HNSW, *, threads: int) -> Rows:
        """[n] what ``propose`` has for one query and all positions, without what it does for others."""
        n = min(n, self.n)
        asking: _Asking | None = getattr(self._own, "asking", None)
        if asking is None or asking.settings is not settings or asking.most < n or asking.threads != threads:
            if isinstance(settings, HNSW) or self.longest or _faiss().omp_get_max_threads() != threads:
                found: Rows = self.propose(query_1D, n, settings, allowed_n=None, threads=threads)[0]
                return found
            asking = self._own.asking = _Asking(self.faiss_index, settings, 2 * n, threads)
        return asking(query_1D, n)

    def _propose_by_bits(self, query_BD: Vectors, n: int, allowed_n: Mask | None) -> Rows:
        """Faiss takes no selector here: more are fetched, and those that are not allowed are dropped."""
        _, position_Bn = self.faiss_index.search(query_BD, min(n, self.n))
        return position_Bn if allowed_n is None else np.where(allowed_n[position_Bn], position_Bn, -1)

    def is_worth_it(self, n_allowed: int, n: int, settings: Approximate) -> bool:
        """Whether to propose n out of so many allowed positions is likely quicker than to look at all of these."""
        harder = _harder(settings, n_allowed, self.n)
        if isinstance(settings, LSH):
            return n * harder * _FETCHED < self.n
        if isinstance(settings, HNSW):
            return settings.ef_search * harder * 2 * settings.m < n_allowed
        return settings.nprobe * harder * 2 < int(self.faiss_index.nlist)

    def n_bytes(self) -> int:
        """Bytes of what it holds, as written."""
        counted = 0

        def count(part: bytes) -> None:
            nonlocal counted
            counted += len(part)

        _faiss().write_index(self.faiss_index, _faiss().PyCallbackIOWriter(count, 2**24))
        return counted

    def write(self, path: Path) -> None:
        """Write it as Faiss does, and put it on disk. Raises OSError where that fails."""
        try:
            _faiss().write_index(self.faiss_index, str(path))
        except RuntimeError as error:
            raise OSError(_said(error)) from error
        with open(path, "rb") as file:
            os.fsync(file.fileno())

    @staticmethod
    def read(path: Path, longest: float, *, mmap: bool) -> Structure:
        """What ``write`` wrote, mapped from the file with ``mmap``. Raises ArtifactError where it is damaged."""
        faiss = _faiss()
        try:
            return Structure(faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC if mmap else 0), longest)
        except RuntimeError as error:
            raise ArtifactError(f"{path}: Faiss can't read it ({_said(error)}): build the index again") from error


class _Asking:
    """How a thread asks lists for one query at a time. What Faiss is given for that is made once: to make it takes as
    long as a part of the search."""

    def __init__(self, index: Any, settings: IVFSQ8 | IVFPQ, most: int, threads: int) -> None:
        self.settings, self.most, self.threads = settings, most, threads
        self._query_1D = np.empty((1, index.d), np.float32)
        self._score_n, self._position_n = np.empty(most, np.float32), np.empty(most, np.int64)
        self._pointers = [_faiss().swig_ptr(a) for a in (self._query_1D, self._score_n, self._position_n)]
        self._index, self._parameters = index, _parameters_of_lists(min(settings.nprobe, index.nlist))

    def __call__(self, query_1D: Vectors, n: int) -> Rows:
        """[n] positions, as ``Structure.propose`` has them."""
        self._query_1D[:] = query_1D
        query, score, position = self._pointers
        self._index.search_c(1, query, n, score, position, self._parameters)
        return self._position_n[:n].copy()


def _said(error: RuntimeError) -> str:
    """What Faiss says went wrong, without where in its source."""
    return str(error).rsplit("Error: ", 1)[-1]


def build(vector_nD: Vectors, settings: Approximate, *, threads: int, seed: int) -> Structure:
    """Lay out the vectors as the settings say; the same seed gives the same structure (``HNSW``: on one thread).

    ``LSH`` sees directions only, so vectors of different lengths get one number more. ``HNSW`` takes them as they are:
    made equally long they are all nearly alike, and a walk finds fewer of the best (docs/decisions.md). Lists see
    them divided by their usual length: Faiss makes the centres 1 long and codes what is between a centre and a vector,
    which is nearly all centre where vectors are short.
    """
    in_lists = isinstance(settings, (IVFSQ8, IVFPQ))
    longest = _longest_if_unequal(vector_nD) if isinstance(settings, LSH) else 0.0
    scale = _usual_length(vector_nD) if in_lists else 1.0
    width = vector_nD.shape[1] + (longest > 0)

    def seen(part_cD: Vectors) -> Vectors:
        """Vectors as the structure gets them."""
        if in_lists:
            return np.ascontiguousarray(part_cD / np.float32(scale))
        return _lengthened(part_cD, longest) if longest else np.ascontiguousarray(part_cD)

    with _threads(threads):
        index = _empty(settings, len(vector_nD), width, seed)
        if not index.is_trained:
            index.train(seen(_sample(vector_nD, max(index.nlist * POINTS_PER_LIST, 256 * POINTS_PER_LIST), seed)))
        halved = _halve_centres(index) if in_lists else None
        for first in range(0, len(vector_nD), _CHUNK):
            index.add(seen(vector_nD[first : first + _CHUNK]))
        if halved is not None:  # only now: whole numbers are quicker to add by
            index.quantizer, index.own_fields = halved, True
            halved.this.disown()
    return Structure(index, longest)


def check(settings: IndexSettings, n: int, width: int) -> None:
    """Raise a ``ConfigError`` where n vectors of this width can't give what is asked for, or Faiss is missing."""
    if isinstance(settings, Exact):
        return
    _faiss()
    if n >= LEAST_ITEMS and isinstance(settings, (IVFSQ8, IVFPQ)) and settings.nlist is not None and settings.nlist > n:
        raise ConfigError(f"nlist is {settings.nlist}, expected at most {n}, the number of items")
    if isinstance(settings, IVFPQ) and settings.m is not None and width % settings.m:
        raise ConfigError(f"m is {settings.m}, expected a divisor of the width of the vectors, {width}")


def most_looked_into(structure: Structure, settings: Approximate) -> int:
    """The greatest sensible value of how hard a search looks (``nprobe``, ``ef_search``, ``k_factor``)."""
    return int(structure.faiss_index.nlist) if isinstance(settings, (IVFSQ8, IVFPQ)) else structure.n


def _empty(settings: Approximate, n: int, width: int, seed: int) -> Any:
    faiss = _faiss()
    inner_product = faiss.METRIC_INNER_PRODUCT
    if isinstance(settings, HNSW):
        index = faiss.IndexHNSWFlat(width, settings.m, inner_product)
        index.hnsw.efConstruction = settings.ef_construction
        index.hnsw.rng = faiss.RandomGenerator(seed)
        return index
    if isinstance(settings, LSH):
        index = faiss.IndexLSH(width, settings.bits or 8 * math.ceil(4 * width / 8))
        index.rrot.init(seed)
        return index
    centres, nlist = faiss.IndexFlatIP(width), min(settings.nlist or default_nlist(n), n)
    if isinstance(settings, IVFSQ8):
        byte = faiss.ScalarQuantizer.QT_8bit
        index = faiss.IndexIVFScalarQuantizer(centres, width, nlist, byte, inner_product, True)
    else:
        index = faiss.IndexIVFPQ(centres, width, nlist, settings.m or default_m(width), 8, inner_product)
        index.pq.cp.seed = seed
        index.pq.cp.min_points_per_centroid = 1
    index.cp.seed = seed
    index.cp.min_points_per_centroid = 1  # fewer are no reason for Faiss to write to the terminal
    index.cp.max_points_per_centroid = POINTS_PER_LIST
    return index


def _halve_centres(index: Any) -> Any:
    """The centres of an index's lists in bfloat16, to be looked through by each search; its own become the same
    numbers, so that what is added lies around them."""
    faiss = _faiss()
    halved = faiss.IndexScalarQuantizer(index.d, faiss.ScalarQuantizer.QT_bf16, faiss.METRIC_INNER_PRODUCT)
    halved.add(index.quantizer.reconstruct_n(0, index.nlist))
    index.quantizer.reset()
    index.quantizer.add(halved.reconstruct_n(0, index.nlist))
    return halved


def _harder(settings: Approximate, n_allowed: int, n: int) -> float:
    """How many times as hard to look for the best of so many out of n."""
    return 1 + settings.filter_factor * (n / max(n_allowed, 1) - 1)


def _search_parameters(settings: IVFSQ8 | IVFPQ | HNSW, harder: float, n: int, index: Any) -> Any:
    faiss = _faiss()
    if isinstance(settings, HNSW):
        return faiss.SearchParametersHNSW(efSearch=min(math.ceil(settings.ef_search * harder), n))
    return faiss.SearchParametersIVF(nprobe=min(math.ceil(settings.nprobe * harder), index.nlist))


@lru_cache
def _parameters_of_lists(nprobe: int) -> Any:
    """Without a selector; made once, as that takes as long as a part of the search."""
    return _faiss().SearchParametersIVF(nprobe=nprobe)


def _sample(vector_nD: Vectors, most: int, seed: int) -> Vectors:
    """Vectors to learn from, in the order of the catalogue (a mapped file is read forwards)."""
    if len(vector_nD) <= most:
        return np.ascontiguousarray(vector_nD)
    chosen = np.sort(np.random.default_rng(seed).choice(len(vector_nD), most, replace=False))
    return np.ascontiguousarray(vector_nD[chosen])


def _longest_if_unequal(vector_nD: Vectors) -> float:
    """The greatest length, or 0 where all are as long."""
    shortest, longest = math.inf, 0.0
    for first in range(0, len(vector_nD), _CHUNK):
        length_c = np.linalg.norm(vector_nD[first : first + _CHUNK], axis=1)
        shortest, longest = min(shortest, float(length_c.min())), max(longest, float(length_c.max()))
    return longest if longest - shortest > _ROUGHLY_EQUAL * longest else 0.0


def _usual_length(vector_nD: Vectors) -> float:
    """Median of the lengths that are not zero, which a few long ones don't move; 1 where all are zeros.

    Raises DataError where one is so much longer that Faiss, which squares them, would end the process.
    """
    parts = (vector_nD[first : first + _CHUNK] for first in range(0, len(vector_nD), _CHUNK))
    length_n = np.concatenate([np.sqrt(np.einsum("cd,cd->c", part, part, dtype=np.float64)) for part in parts])
    usual = float(np.median(length_n[length_n > 0])) if length_n.any() else 1.0
    if length_n.max() > _TOO_LONG * usual:
        raise DataError(
            f"vectors: number {int(length_n.argmax())} of the live ones is {length_n.max() / usual:.0e} times as long "
            f"as is usual, expected at most {_TOO_LONG:.0e}: leave the item out, or choose Exact"
        )
    return usual


def _lengthened(vector_nD: Vectors, longest: float | None) -> Vectors:
    """Vectors with one more number, such that all are ``longest`` long; queries (None) get a 0, so that inner products
    stay what they are."""
    more_n = np.zeros(len(vector_nD), np.float32)
    if longest is not None:
        square_n = np.einsum("nd,nd->n", vector_nD, vector_nD, dtype=np.float64)
        more_n = np.sqrt(np.maximum(longest**2 - square_n, 0.0)).astype(np.float32)
    return np.concatenate([vector_nD, more_n[:, None]], axis=1)


@contextmanager
def _threads(threads: int) -> Iterator[None]:
    """Faiss on so many threads: OpenMP keeps the number for each thread that calls it."""
    faiss = _faiss()
    before = faiss.omp_get_max_threads()
    if before == threads:
        yield
        return
    faiss.omp_set_num_threads(threads)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise ConfigError(
            "an index other than Exact needs Faiss, which is not installed: pip install 'twotower[faiss]', or choose "
            "Exact"
        ) from error
    return faiss
