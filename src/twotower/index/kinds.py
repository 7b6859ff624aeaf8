"""The kinds of index and their settings: how the catalogue is laid out, and how hard a search looks.

Each setting belongs to the building (``nlist``, ``m``, ``bits``, ``ef_construction``) or to the search (``nprobe``,
``ef_search``, ``k_factor``, ``filter_factor``); the latter may be changed at any time (``Index.look``) and are what
``tune`` finds. Under a filter that leaves a share p of the items, a search looks 1 + ``filter_factor`` · (1 / p - 1)
times as hard: the best of those left are far from the best of all.

Scores are inner products in every kind, and exact: a kind other than ``Exact`` only chooses ``k_factor`` · k items
whose vectors are then multiplied with the query's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import ConfigError
from ..settings import Codec, Tree, override

POINTS_PER_LIST = 40
"""Vectors that the centre of a list is learned from; Faiss asks for 39."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exact:
    """Every item is looked at. The best choice up to some hundred thousand items, and what others are measured by."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IVFSQ8:
    """Items in ``nlist`` lists around learned centres, a byte a number; a search looks into ``nprobe`` of the lists.

    The default for millions of items: quick to build, a quarter of the memory of the vectors.

    Source: Sivic and Zisserman 2003 (inverted lists); Faiss, ``IndexIVFScalarQuantizer``.
    """

    nlist: int | None = None
    """None: the power of 2 nearest to 4 √n, so 4,096 for a million items and 32,768 for 67 million."""
    nprobe: int = 16
    k_factor: float = 1.5
    filter_factor: float = 2.0

    def __post_init__(self) -> None:
        _check_lists(self.nlist, self.nprobe)
        _check_factors(self.k_factor, self.filter_factor)


@dataclass(frozen=True, slots=True, kw_only=True)
class IVFPQ:
    """As ``IVFSQ8``, with vectors cut into ``m`` parts of a byte each: for catalogues that would not fit memory.

    Its own scores are rough: ``k_factor`` · k items are ranked again by their vectors, which are read from the file.

    Source: Jégou et al. 2011, "Product Quantization for Nearest Neighbor Search"; Faiss, ``IndexIVFPQ``.
    """

    nlist: int | None = None
    m: int | None = None
    """Bytes an item, a divisor of the width; None: half of the width, or the next smaller divisor."""
    nprobe: int = 16
    k_factor: float = 4.0
    filter_factor: float = 2.0

    def __post_init__(self) -> None:
        _check_lists(self.nlist, self.nprobe)
        _check_factors(self.k_factor, self.filter_factor)
        _check_least("m", self.m, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class HNSW:
    """A graph of near items with ``m`` links each, walked from far to near with ``ef_search`` items in view.

    The quickest search at high recall; ten times longer to build, and it holds the vectors besides the graph. The same
    seed makes the same graph on one thread only.

    Source: Malkov and Yashunin 2018; Faiss, ``IndexHNSWFlat``.
    """

    m: int = 16
    ef_construction: int = 80
    ef_search: int = 64
    k_factor: float = 1.0
    filter_factor: float = 2.0

    def __post_init__(self) -> None:
        _check_least("m", self.m, 2)
        _check_least("ef_construction", self.ef_construction, 1)
        _check_least("ef_search", self.ef_search, 1)
        _check_factors(self.k_factor, self.filter_factor)


@dataclass(frozen=True, slots=True, kw_only=True)
class LSH:
    """The signs of ``bits`` random projections; the ``k_factor`` · k items with the fewest differing bits are ranked.

    Learns nothing, so it is built at once and never grows stale; needs the largest ``k_factor`` of all.

    Where vectors are of different lengths, a number is added to each that makes them equally long, without which the
    angle would count and not the inner product.

    Source: Charikar 2002; Neyshabur and Srebro 2015 for the lengths; Faiss, ``IndexLSH``.
    """

    bits: int | None = None
    """None: 4 for each number of a vector."""
    k_factor: float = 16.0
    filter_factor: float = 2.0

    def __post_init__(self) -> None:
        _check_least("bits", self.bits, 8)
        if self.bits is not None and self.bits % 8:
            raise ConfigError(f"bits is {self.bits}, expected a multiple of 8")
        _check_factors(self.k_factor, self.filter_factor)


IndexSettings = Exact | IVFSQ8 | IVFPQ | HNSW | LSH
KINDS: tuple[type[IndexSettings], ...] = (Exact, IVFSQ8, IVFPQ, HNSW, LSH)
SEARCH_SETTINGS = ("nprobe", "ef_search", "k_factor", "filter_factor")
"""Those that a built index does not depend on."""
CODEC = Codec(IndexSettings)


def decode(kind: str, overrides: Sequence[str] = ()) -> IndexSettings:
    """Settings by kind, with some changed, such as ``["nlist=4096"]``. Raises ConfigError where they don't fit."""
    tree: Tree = {"kind": kind}
    for setting in overrides:
        tree = override(tree, setting)
    settings: IndexSettings = CODEC.decode(IndexSettings, tree, "index")
    return settings


def default_nlist(n: int) -> int:
    """Lists for n items: the power of 2 nearest to 4 √n that leaves each list what its centre is learned from."""
    wanted = 1 << round(math.log2(4 * math.sqrt(max(n, 1))))
    return max(1, min(wanted, n // POINTS_PER_LIST))


def default_m(width: int) -> int:
    """Parts of a vector: the greatest divisor of the width that is at most half of it."""
    return max((m for m in range(1, width // 2 + 1) if width % m == 0), default=1)


def _check_lists(nlist: int | None, nprobe: int) -> None:
    _check_least("nlist", nlist, 1)
    _check_least("nprobe", nprobe, 1)


def _check_factors(k_factor: float, filter_factor: float) -> None:
    _check_least("k_factor", k_factor, 1)
    _check_least("filter_factor", filter_factor, 1)


def _check_least(name: str, value: float | None, least: int) -> None:
    if value is not None and not least <= value < math.inf:
        raise ConfigError(f"{name} is {value}, expected at least {least}")
