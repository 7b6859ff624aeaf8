"""Fuzzy positives: labels are calibrated, in (0, 1), and never of what is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from twotower.errors import DataError
from twotower.records import Ragged
from twotower.training import Platt, fuzzy_positives


def lists_of(rows: list[list[int]]) -> Ragged:
    length = torch.tensor([len(own) for own in rows])
    value = torch.tensor([item for own in rows for item in own], dtype=torch.int64)
    return Ragged(offset=torch.cat([length.new_zeros(1), length.cumsum(0)]), value=value)


def planted(n: int, slope: float, intercept: float, shift: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    score = torch.randn(n, generator=rng)
    taken = torch.rand(n, generator=rng) < torch.sigmoid(slope * score + intercept)
    return score + shift, taken


def test_the_line_is_that_of_logistic_regression() -> None:
    """scikit-learn's without a penalty; smoothed targets make a difference of 1 / n."""
    score, taken = planted(20_000, slope=1.7, intercept=-1.0, shift=30.0)
    found = Platt.fit(score, taken)
    other = LogisticRegression(C=1e10, tol=1e-8).fit(score[:, None].double().numpy(), taken.numpy())
    assert found.slope == pytest.approx(float(other.coef_[0, 0]), rel=2e-3)
    assert found.intercept == pytest.approx(float(other.intercept_[0]), rel=2e-3)
    assert float(found.probability(score).mean()) == pytest.approx(float(taken.float().mean()), abs=1e-4)


def test_labels_hold() -> None:
    """In each fifth of the labels the share that is taken is what they say."""
    score, taken = planted(50_000, slope=1.7, intercept=-1.0)
    label = Platt.fit(score[:25_000], taken[:25_000]).probability(score[25_000:])
    for part in np.array_split(label.argsort().numpy(), 5):
        assert float(taken[25_000:][part].float().mean()) == pytest.approx(float(label[part].mean()), abs=0.025)


def test_likely_pairs_that_are_not_known_come_out_with_their_label() -> None:
    platt = Platt(slope=2.0, intercept=-1.0)
    pairs, known = lists_of([[4, 1, 7], [], [0, 3], [5, 2]]), lists_of([[0, 7], [1], [2, 3, 4], []])
    score = torch.tensor([0.9, 0.1, 5.0, 0.5, 9.0, 100.0, 0.49])
    found = fuzzy_positives(pairs, score, known, platt=platt, least=0.5)
    expected = []  # (0, 7) and (2, 3) are known
    flat = [(query, item) for query, own in enumerate([[4, 1, 7], [], [0, 3], [5, 2]]) for item in own]
    for (query, item), s in zip(flat, score.tolist(), strict=True):
        label = 1 / (1 + np.exp(-(2 * s - 1)))
        if label >= 0.5 and (query, item) not in {(0, 7), (2, 3)}:
            expected.append((query, item, label))
    assert list(zip(found.query_N.tolist(), found.item_N.tolist(), strict=True)) == [e[:2] for e in expected]
    assert found.label_N.tolist() == pytest.approx([e[2] for e in expected], rel=1e-6)
    assert bool(((found.label_N > 0) & (found.label_N < 1)).all())


def test_labels_stay_inside_whatever_the_score() -> None:
    label = Platt(slope=1.0, intercept=0.0).probability(torch.tensor([-1e6, -100.0, 100.0, 1e6]))
    assert bool(((label > 0) & (label < 1)).all())


def test_what_no_probability_follows_from_is_refused() -> None:
    score, taken = planted(500, slope=2.0, intercept=0.0)
    for one in (torch.ones(500), torch.zeros(500)):
        with pytest.raises(DataError, match="expected some of both"):
            Platt.fit(score, one)
    with pytest.raises(DataError, match="1 scores not finite"):
        Platt.fit(torch.cat([score[1:], torch.tensor([torch.nan])]), taken)
    for useless in (-score, torch.full_like(score, 3.0)):
        with pytest.raises(DataError, match="no higher for what was taken"):
            Platt.fit(useless, taken)
    pairs = lists_of([[1]])
    with pytest.raises(DataError, match="least is 1"):
        fuzzy_positives(pairs, torch.zeros(1), pairs, platt=Platt(1.0, 0.0), least=1.0)
    with pytest.raises(DataError, match="found 2 scores for 1 pairs"):
        fuzzy_positives(pairs, torch.zeros(2), pairs, platt=Platt(1.0, 0.0))
