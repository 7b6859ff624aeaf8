"""How hard a search must look to find what it should: the cheapest settings that reach a recall."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import ConfigError, DataError
from .exact import Mask, Vectors
from .index import EXACT_BELOW, Found, Index
from .kinds import HNSW, IVFPQ, IVFSQ8, LSH, Exact, IndexSettings

LEAST_QUERIES = 30
"""Fewer say too little of recall."""
_ERROR = 0.05
"""Chance that a bound is not one."""
_TRIED = 25
"""Settings that a search looks at, at most, each of which may seem to meet the target by chance."""
_FACTOR_QUERIES = 100
"""Queries that ``k_factor`` of lists is found on, as each looks at all of them."""
_FACTORS = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0, 48.0, 64.0)
"""Those tried for ``k_factor`` of lists: the scores of their codes are wrong by little."""
_FILTER_SHARE, _FILTERED_QUERIES, _MOST_FILTER_FACTOR = 0.1, 200, 64
"""The filter that ``filter_factor`` is found for, and on how many of the queries."""
_MOST_IN_VIEW = 8_192
_MOST_FACTOR = 256
"""Beyond them ``HNSW`` and ``LSH`` are slower than to look at everything."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuned:
    """What tuning found."""

    settings: IndexSettings
    """The cheapest that meet the target; the best there are, if none do."""
    k: int
    target_recall: float
    recall: float
    """Mean share of the k best that are found, over the queries."""
    low: float
    """Where the true mean lies above with 95%, however many settings were tried."""
    n_queries: int

    @property
    def met(self) -> bool:
        """Whether the target is met with 95%, as far as these queries can tell."""
        return self.low >= self.target_recall

    def in_words(self) -> str:
        """What was found, on a line."""
        return (
            f"recall@{self.k} {self.recall:.4f} on {self.n_queries:,} held-out queries, above {self.low:.4f} with 95% "
            f"(target {self.target_recall:g})"
        )


class _Look(Protocol):
    """What some settings give, on the first so many queries."""

    def __call__(self, settings: IndexSettings, most: int | None = None) -> Tuned: ...


def recall_of(found: Found, truth: Found) -> NDArray[np.float64]:
    """[B] share of the best items that were found; an item that scores as much as the last of the best is one.

    Of queries for which there is nothing, 1.
    """
    there_Bk = truth.row_Bk >= 0
    n_B = there_Bk.sum(1)
    last_B = truth.score_Bk[np.arange(len(n_B)), np.maximum(n_B - 1, 0)]
    # Scores of one pair differ in their last bits from one multiplication to another.
    enough_B = last_B - 1e-6 * np.abs(truth.score_Bk[:, 0])
    found_B = ((found.row_Bk >= 0) & (found.score_Bk >= enough_B[:, None])).sum(1)
    return np.where(n_B > 0, np.minimum(found_B, n_B) / np.maximum(n_B, 1), 1.0)


def lower_bound(recall_Q: NDArray[np.float64], tried: int = 1) -> float:
    """Where the mean over all such queries lies above with 95%, for all of so many settings at once (Bonferroni).

    A draw is a query, not a place of its list.
    """
    errors = NormalDist().inv_cdf(1 - _ERROR / tried)
    return float(recall_Q.mean() - errors * recall_Q.std(ddof=1) / math.sqrt(len(recall_Q)))


def tune(
    index: Index, query_QD: ArrayLike, *, k: int = 100, target_recall: float = 0.95, allowed: Mask | None = None
) -> Tuned:
    """The cheapest search settings whose recall at k is at least ``target_recall`` with 95%, on these queries.

    What is right is found by looking at everything; lists that come back short count as they are, for to complete them
    would be right, and slow. Queries should be such as will come, and none that the index is
    measured by afterwards. Found by bisection: of lists, first the least ``k_factor`` that leaves half of the misses to
    the lists, then ``nprobe``; else ``ef_search`` or ``k_factor``. Recall is taken to rise with each of them. In a
    catalogue so large that a filter may leave too many to look at all, ``filter_factor`` is found the same way under a
    random filter that leaves a tenth.

    Raises:
        DataError: fewer than 30 queries.
        ConfigError: a target that is not above 0 and below 1.
    """
    query_QD = np.asarray(query_QD, np.float32)
    if len(query_QD) < LEAST_QUERIES:
        raise DataError(f"tune: found {len(query_QD)} queries, expected at least {LEAST_QUERIES}, better some hundred")
    if not 0 < target_recall < 1:
        raise ConfigError(f"target_recall is {target_recall}, expected more than 0 and less than 1")
    truth = index.search(query_QD, k, allowed=allowed, exact=True)

    def look(settings: IndexSettings, most: int | None = None) -> Tuned:
        recall_Q = recall_of(
            index.look(settings).search(query_QD[:most], k, allowed=allowed, complete=False), truth.first(most)
        )
        return Tuned(
            settings=settings,
            k=k,
            target_recall=target_recall,
            recall=float(recall_Q.mean()),
            low=lower_bound(recall_Q, _TRIED),
            n_queries=len(recall_Q),
        )

    tuned = _tune_unfiltered(look, index, k, target_recall)
    if allowed is not None or isinstance(tuned.settings, Exact) or index.n * _FILTER_SHARE <= EXACT_BELOW:
        return tuned
    mask = np.random.default_rng(index.seed).random(index.n_rows) < _FILTER_SHARE
    return replace(tuned, settings=_tune_filtered(index, tuned, query_QD, mask))


def _tune_unfiltered(look: _Look, index: Index, k: int, target_recall: float) -> Tuned:
    settings = index.settings
    if isinstance(settings, (IVFSQ8, IVFPQ)):
        return _tune_lists(look, settings, index.most, target_recall)
    if isinstance(settings, HNSW):
        in_view = max(1, min(_MOST_IN_VIEW, index.most))
        return _least(lambda n: look(replace(settings, ef_search=n)), min(k, in_view), in_view)
    if isinstance(settings, LSH):
        factor = max(1, min(_MOST_FACTOR, -(-index.most // k)))
        return _least(lambda n: look(replace(settings, k_factor=float(n))), 1, factor)
    return look(settings)


def _tune_filtered(index: Index, tuned: Tuned, query_QD: Vectors, mask: Mask) -> IndexSettings:
    """The settings with the least ``filter_factor`` that meets the target under a filter, or the greatest tried."""
    settings, query_QD = tuned.settings, query_QD[:_FILTERED_QUERIES]
    assert not isinstance(settings, Exact)
    truth = index.search(query_QD, tuned.k, allowed=mask, exact=True)

    def with_factor(factor: int) -> Tuned:
        tried = replace(settings, filter_factor=float(factor))
        recall_Q = recall_of(index.look(tried).search(query_QD, tuned.k, allowed=mask, complete=False), truth)
        return replace(tuned, settings=tried, recall=float(recall_Q.mean()), low=lower_bound(recall_Q, _TRIED))

    return _least(with_factor, 1, _MOST_FILTER_FACTOR).settings


def _tune_lists(look: _Look, settings: IVFSQ8 | IVFPQ, nlist: int, target: float) -> Tuned:
    """``k_factor`` with all lists, where every miss is one of the codes, then ``nprobe``."""
    share = target + (1 - target) / 2

    def with_factor(place: int) -> Tuned:
        tried = replace(settings, nprobe=nlist, k_factor=_FACTORS[place])
        return replace(look(tried, _FACTOR_QUERIES), target_recall=share)

    rough = _least(with_factor, 0, len(_FACTORS) - 1).settings
    assert isinstance(rough, (IVFSQ8, IVFPQ))
    return _least(lambda n: look(replace(rough, nprobe=n)), 1, nlist)


def _least(look: Callable[[int], Tuned], least: int, most: int) -> Tuned:
    """What the smallest number that meets the target gives: doubled until it does, then bisected."""
    failed, number = least - 1, least
    tuned = look(number)
    while not tuned.met and number < most:
        failed, number = number, min(max(2 * number, 1), most)
        tuned = look(number)
    if not tuned.met:
        return tuned
    while number - failed > 1:
        middle = (failed + number) // 2
        tried = look(middle)
        if tried.met:
            number, tuned = middle, tried
        else:
            failed = middle
    return tuned
