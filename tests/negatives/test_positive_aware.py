"""Hard candidates below the positive, and the hardest of a batch, held against naive loops."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from twotower.errors import ConfigError
from twotower.negatives import DNS, Catalogue, InBatch, PositiveAware, Sampler, Uniform
from twotower.part import Facts
from twotower.records import Batch, Ragged

from .conftest import RunLook, batch_of, batch_of_queries
from .laws import M, ready
from .runs import check_resume, recall_of, run_from_toml

SETTINGS = [{"margin": 0.0}, {"margin": 0.4}, {"share": 1.0}, {"share": 0.7}, {"share": 0.95}]


def seen_by(look: RunLook, n_queries: int, seed: int) -> RunLook:
    rng = torch.Generator().manual_seed(seed)
    look.query_BD, look.item_MD = torch.randn(n_queries, 3, generator=rng), torch.randn(M, 3, generator=rng)
    return look


def rows_of(sampler: Sampler, batch: Batch, look: RunLook, facts: Facts) -> list[list[int]]:
    (block,) = ready(sampler, facts).draw(batch, look, torch.Generator().manual_seed(0))
    assert (block.log_weight == 0).tolist() == (block.row >= 0).tolist()
    return [[item for item in own if item >= 0] for own in block.row.tolist()]


def dot(a: Tensor, b: Tensor) -> float:
    return sum(x * y for x, y in zip(a.tolist(), b.tolist(), strict=True))


def scores_of(batch: Batch, look: RunLook, query: int) -> tuple[dict[int, float], float]:
    """Of the items a query may have as negatives, and the mean of its positives."""
    score = {item: dot(look.query_BD[query], look.item_MD[item]) for item in range(M)}
    own = [item for item, of in zip(batch.item_P.tolist(), batch.of_P.tolist(), strict=True) if of == query]
    known = batch.known.slice(query, query + 1).value.tolist()
    return {item: s for item, s in score.items() if item not in known}, sum(score[i] for i in own) / len(own)


def highest(positive: float, *, margin: float | None = None, share: float | None = None) -> float:
    """The threshold of the paper; below zero the same distance, downwards."""
    if margin is not None:
        return positive - margin
    assert share is not None
    return share * positive if positive >= 0 else positive + (1 - share) * positive


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("seed", range(4))
def test_the_hardest_below_the_threshold(settings: dict[str, float], seed: int, facts: Facts, look: RunLook) -> None:
    batch = batch_of_queries([[0, 3], [7], [2, 5, 11], [9], [1], [4]])
    seen_by(look, 6, seed)
    found = rows_of(PositiveAware(n=3, of=Catalogue(), **settings), batch, look, facts)
    fewer = 0
    for query, rows in enumerate(found):
        score, positive = scores_of(batch, look, query)
        below = [item for item in score if score[item] <= highest(positive, **settings)]
        assert rows == sorted(below, key=lambda item: -score[item])[:3]
        fewer += len(rows) < 3
    assert fewer < 6


def test_what_is_above_the_threshold_is_never_chosen(facts: Facts, look: RunLook) -> None:
    """Positives of both signs, pools that repeat items: what is chosen is below the positive, and no item twice."""
    signs = set()
    for seed in range(20):
        batch = batch_of([3, 0, 3, 11])
        seen_by(look, 4, seed)
        sampler = PositiveAware(n=4, share=0.9, of=InBatch() + Uniform(9) + Uniform(5, per_query=True))
        for query, rows in enumerate(rows_of(sampler, batch, look, facts)):
            score, positive = scores_of(batch, look, query)
            signs.add(positive > 0)
            assert all(score[item] <= positive - 0.1 * abs(positive) for item in rows)
            assert len(set(rows)) == len(rows)
    assert signs == {True, False}


def test_thresholds() -> None:
    positive = torch.tensor([2.0, 0.0, -2.0])
    assert PositiveAware(margin=0.5).threshold(positive).tolist() == [1.5, -0.5, -2.5]
    assert PositiveAware(share=0.75).threshold(positive).tolist() == [1.5, 0.0, -2.5]


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ConfigError, match="found neither of margin and share"):
        PositiveAware()
    with pytest.raises(ConfigError, match="found both of margin and share"):
        PositiveAware(margin=0.1, share=0.9)
    for margin in (-0.1, float("inf"), float("nan")):
        with pytest.raises(ConfigError, match="margin is"):
            PositiveAware(margin=margin)
    for share in (0.0, 1.1, float("nan")):
        with pytest.raises(ConfigError, match="share is"):
            PositiveAware(share=share)
    with pytest.raises(ConfigError, match="n is 0"):
        PositiveAware(n=0, margin=0.1)


# ---------------------------------------------------------------- the hardest of the batch


@pytest.mark.parametrize("seed", range(4))
def test_the_two_hardest_of_the_batch(seed: int, facts: Facts, look: RunLook) -> None:
    """Row i of the score matrix of a batch without its diagonal, and without what the query knows: the top two."""
    items = torch.randperm(M, generator=torch.Generator().manual_seed(seed))[:8]
    batch = batch_of(items)
    lists = [sorted({int(item), (int(item) + 3) % M}) for item in items]  # its own, and one more
    batch = replace(
        batch, known=Ragged(offset=torch.arange(9) * 2, value=torch.tensor([i for own in lists for i in own]))
    )
    seen_by(look, 8, seed)
    for query, rows in enumerate(rows_of(DNS(n=2, of=InBatch()), batch, look, facts)):
        row = [
            (dot(look.query_BD[query], look.item_MD[item]), item)
            for column, item in enumerate(items.tolist())
            if column != query and item not in lists[query]
        ]
        assert rows == [item for _, item in sorted(row, reverse=True)[:2]]


def test_a_batch_of_two_has_one_hardest(facts: Facts, look: RunLook) -> None:
    assert rows_of(DNS(n=2, of=InBatch()), batch_of([5, 8]), seen_by(look, 2, 0), facts) == [[8], [5]]


# ---------------------------------------------------------------- in training

BELOW = """
kind = "PositiveAware"
n = 2
share = 0.95
of = {kind = "Uniform", n = 12, per_query = true}
"""
HARDEST = """
kind = "DNS"
n = 2
of = {kind = "InBatch"}
"""
MARGIN = 'kind = "Margin"\nmargin = 0.5'


@pytest.mark.parametrize("negatives", [BELOW, HARDEST])
def test_it_trains(negatives: str) -> None:
    assert recall_of(run_from_toml(negatives, MARGIN)) > 0.5


@pytest.mark.parametrize("negatives", [BELOW, HARDEST])
def test_it_resumes_bit_for_bit(negatives: str, tmp_path: Path) -> None:
    check_resume(run_from_toml(negatives, MARGIN), tmp_path / "last", at=3, stop=6)
