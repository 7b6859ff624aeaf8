"""Unlabelled spans are drawn evenly from the complement, and commands become sentences with spans."""

from __future__ import annotations

import math

import numpy as np
import pytest
from recipes.ner_spans.model import SpanModel, _decode, f1, train
from recipes.ner_spans.sentences import Sentence, sentences_of, with_missing
from recipes.ner_spans.spans import all_spans, sample_unlabelled, unlabelled
from scipy.stats import chi2, chisquare, kstest

LABELLED = np.array([[1, 2], [4, 4]])


def test_the_complement_by_loops() -> None:
    expected = [(i, j) for i in range(6) for j in range(i, 6) if (i, j) not in {(1, 2), (4, 4)}]
    assert [tuple(span) for span in unlabelled(6, LABELLED).tolist()] == expected
    assert len(expected) == 6 * 7 / 2 - 2
    assert len(all_spans(1)) == 1
    assert len(unlabelled(1, np.array([[0, 0]]))) == 0


@pytest.mark.parametrize("rate", [0.35, 0.7, 1.0])
def test_ceil_of_rate_times_n_distinct_spans(rate: float) -> None:
    rng = np.random.default_rng(0)
    for n in (1, 2, 5, 9):
        labelled = np.array([[0, n - 1]])
        drawn = sample_unlabelled(n, labelled, rate, rng)
        assert len(drawn) == min(math.ceil(rate * n), n * (n + 1) // 2 - 1)
        assert len({tuple(span) for span in drawn.tolist()}) == len(drawn)
        assert (0, n - 1) not in {tuple(span) for span in drawn.tolist()}


def p_value(seed: int, skew: float = 0.0) -> float:
    """Chi-square of how often each of the 19 spans is drawn in 400 sentences, three (0.35 x 6) at a time.

    Draws without replacement from N spread less than independent ones, by (N - n) / (N - 1).
    """
    rng = np.random.default_rng(seed)
    count = np.zeros((6, 6))
    for _ in range(400):
        drawn = sample_unlabelled(6, LABELLED, 0.35, rng)
        if skew and rng.random() < skew:
            drawn[0] = [0, 0]
        np.add.at(count, (drawn[:, 0], drawn[:, 1]), 1)
    spans = unlabelled(6, LABELLED)
    assert count.sum() == 1200
    found = count[spans[:, 0], spans[:, 1]]
    assert found.sum() == 1200
    statistic = chisquare(found).statistic * (19 - 1) / (19 - 3)
    return float(chi2.sf(statistic, 18))


def test_every_unlabelled_span_is_as_likely() -> None:
    assert kstest([p_value(seed) for seed in range(20)], "uniform").pvalue > 0.01
    assert max(p_value(seed, skew=0.2) for seed in range(3)) < 1e-6


def test_arguments_are_spans() -> None:
    (sentence, bare) = sentences_of(["tar cf {{target.tar}} {{file1 file2}}", "ls", "ls", "a\nb"])
    assert sentence.token == ("tar", "cf", "target.tar", "file1", "file2")
    assert sentence.span.tolist() == [[2, 2], [3, 4]]
    assert bare == Sentence(("ls",), bare.span)
    assert bare.span.shape == (0, 2)
    (glued,) = sentences_of(["cmd --name={{x}}"])
    assert glued.token == ("cmd", "--name=", "x")


def test_a_share_of_the_labels_is_lost() -> None:
    sentences = [Sentence(("a", "b"), np.array([[0, 0], [1, 1]]))] * 5000
    left = sum(len(s.span) for s in with_missing(sentences, 0.3, 1))
    assert left / 10_000 == pytest.approx(0.7, abs=4 * math.sqrt(0.3 * 0.7 / 10_000))


def test_the_surest_of_overlapping_spans_is_taken() -> None:
    spans = np.array([[0, 1], [1, 1], [2, 2], [0, 0]])
    assert _decode(spans, np.array([1.0, 2.0, 0.5, -1.0], np.float32)) == {(1, 1), (2, 2)}


def test_a_pattern_is_learnt() -> None:
    """Words in capitals are the entities."""
    rng = np.random.default_rng(0)
    sentences = []
    for _ in range(300):
        capital = rng.random(5) < 0.3
        letter = rng.choice(list("ABCDEFGH"), 5)
        token = tuple(2 * its if up else "abc" for its, up in zip(letter, capital, strict=True))
        sentences.append(Sentence(token, np.stack([np.flatnonzero(capital)] * 2, 1)))
    model = train(sentences[:250], 1.0, epochs=8, seed=0, batch=32)
    assert isinstance(model, SpanModel)
    assert f1(model, sentences[250:]) > 0.9
