"""Numbers with their arithmetic: vectors are one number wide, so a score is a product that can be read off."""

from __future__ import annotations

from math import e, exp, inf, log, sqrt

import pytest
import torch

from twotower.losses import (
    BPR,
    CCL,
    GBCE,
    NCE,
    SGNS,
    AdapTau,
    AdaptiveMargin,
    AdaptiveTemperature,
    AdvInfoNCE,
    BilateralSoftmax,
    BinaryCrossEntropy,
    BucketedSoftmax,
    HierarchicalSoftmax,
    Loss,
    Margin,
    SampledSoftmax,
    SquaredGramian,
    Symmetric,
    Warp,
)
from twotower.part import Facts
from twotower.records import Batch, Block, Candidates, Ragged
from twotower.scoring import encode

SCORES = [1.0, 0.0, log(2)]
"""Of item 0, the positive, and of the candidates 1 and 2."""
COUNTS = [0.25, 0.5, 4.0]
"""Expected counts of the three: corrected, candidate 1 weighs 2 and candidate 2 a quarter."""


def value(
    loss: Loss,
    *,
    drawn: tuple[int, ...] = (1, 2),
    positives: tuple[tuple[int, int], ...] = ((0, 0),),
    weights: tuple[float, ...] = (1.0,),
    known: tuple[tuple[int, ...], ...] = ((0,),),
    of_batch: bool = False,
    own: bool = False,
) -> float:
    """Positives are (query, item); every query is the number 1."""
    item_M1 = torch.tensor(SCORES, dtype=torch.float64)[:, None].requires_grad_()
    log_count_M = torch.tensor(COUNTS, dtype=torch.float64).log()
    n_queries = len(known)
    of_P, item_P = (torch.tensor([p[side] for p in positives]) for side in (0, 1))
    row = torch.tensor(drawn)
    if own:
        row = row.repeat(n_queries, 1)
    block = Block.of(row, of_batch=of_batch).with_count(log_count_M[row])
    batch = Batch(
        query={},
        query_B=torch.arange(n_queries),
        item_P=item_P,
        of_P=of_P,
        weight_P=torch.tensor(weights, dtype=torch.float64),
        known=Ragged(
            offset=torch.tensor([0, *[len(items) for items in known]]).cumsum(0),
            value=torch.tensor([item for items in known for item in items], dtype=torch.int64),
        ),
    )
    query_B1 = torch.ones(n_queries, 1, dtype=torch.float64, requires_grad=True)
    candidates = Candidates(blocks=(block,), positive_log_count_P=log_count_M[item_P])
    encoded = encode(query_B1, lambda rows: item_M1.index_select(0, rows), batch, candidates)
    found: list[float] = [loss(encoded, tile=tile)[0].item() for tile in (None, 1, 8)]
    assert found == pytest.approx([found[0]] * 3, abs=1e-12)
    return found[0]


def set_up(loss: Loss, *, n_items: int = 3, item_count: tuple[int, ...] = ()) -> Loss:
    """Two queries with one pair each."""
    facts = Facts(
        n_items=n_items,
        n_queries=2,
        item_count_M=torch.tensor(item_count or [1] * n_items),
        query_count_Q=torch.tensor([1, 1]),
        batch_size=2,
        batch_of="queries",
        width=1,
    )
    loss.setup(facts)
    return loss.double()


def near(number: float | list[float]) -> object:
    return pytest.approx(number, abs=1e-6)


@pytest.mark.parametrize("own", [False, True])
def test_softmax(own: bool) -> None:
    loss = SampledSoftmax(temperature=1.0, correction="none")
    assert value(loss, own=own) == near(log(e + 1 + 2) - 1)  # 0.7437
    colder = SampledSoftmax(temperature=0.5, correction="none")
    assert value(colder, own=own) == near(log(e**2 + 1 + 4) - 2)  # scores 2, 0, 2 log 2


@pytest.mark.parametrize("own", [False, True])
def test_softmax_corrected(own: bool) -> None:
    """e^s / count: 1 / 0.5 = 2 and 2 / 4 = 0.5; ``all`` divides the positive by 0.25 too."""
    assert value(SampledSoftmax(temperature=1.0), own=own) == near(log(e + 2 + 0.5) - 1)
    assert value(SampledSoftmax(temperature=1.0, correction="all"), own=own) == near(log(4 * e + 2.5) - log(4 * e))


def test_softmax_half_corrected() -> None:
    """Counts become k c^0.5. An item drawn once stands for 1 / c items, so the sum of all counts is estimated as
    1 + 1 = 2, and that of the new ones as k (0.5^-0.5 + 4^-0.5): k makes them equal."""
    k = 2 / (1 / sqrt(0.5) + 1 / 2)
    want = log(e + 1 / (k * sqrt(0.5)) + 2 / (k * 2)) - 1
    assert value(SampledSoftmax(temperature=1.0, strength=0.5)) == near(want)


def test_softmax_renormalised() -> None:
    """Two draws, of which the positive has an expected 0.25: q = 1/8, counts are divided by 7/8."""
    assert value(SampledSoftmax(temperature=1.0, renormalise=True)) == near(log(e + 7 / 8 * 2.5) - 1)


def test_softmax_as_in_yi_2019() -> None:
    """Nothing is excluded, and the positive, which is in the batch, is one of the columns: all over their counts."""
    in_batch = value(SampledSoftmax.yi2019(temperature=1.0), drawn=(0, 1, 2), of_batch=True)
    assert in_batch == near(log(4 * e + 2 + 0.5) - log(4 * e))


def test_a_candidate_drawn_twice_weighs_twice() -> None:
    loss = SampledSoftmax(temperature=1.0, correction="none")
    assert value(loss, drawn=(2, 1, 2)) == near(log(e + 1 + 2 + 2) - 1)


@pytest.mark.parametrize("own", [False, True])
def test_what_is_known_is_no_candidate(own: bool) -> None:
    loss = SampledSoftmax(temperature=1.0, correction="none")
    assert value(loss, drawn=(0, 1, 2), own=own) == near(log(e + 1 + 2) - 1)  # the positive itself
    assert value(loss, known=((0, 2),), own=own) == near(log(e + 1) - 1)
    positives_only = SampledSoftmax(temperature=1.0, correction="none", exclude="positives")
    assert value(positives_only, drawn=(0, 1, 2), known=((0, 2),), own=own) == near(log(e + 1 + 2) - 1)


def test_the_mean_is_weighted() -> None:
    """Query 0 likes item 0 (weight 1), query 1 likes 0 (weight 3) and 2 (weight 4) and so has candidate 1 only."""
    loss = SampledSoftmax(temperature=1.0, correction="none")
    found = value(loss, positives=((0, 0), (1, 0), (1, 2)), weights=(1.0, 3.0, 4.0), known=((0,), (0, 2)))
    want = 1 * (log(e + 3) - 1) + 3 * (log(e + 1) - 1) + 4 * (log(2 + 1) - log(2))
    assert found == near(want / 8)


def test_a_positive_without_candidates_adds_its_weight_only() -> None:
    loss = SampledSoftmax(temperature=1.0, correction="none")
    found = value(loss, positives=((0, 0), (1, 0)), weights=(1.0, 3.0), known=((0,), (0, 1, 2)))
    assert found == near((log(e + 3) - 1) / 4)


def test_bilateral() -> None:
    """The positive is not in the sum: 1.5 log(1 + 2) - 1."""
    assert value(BilateralSoftmax(temperature=1.0, exponent=1.5)) == near(1.5 * log(3) - 1)
    assert value(BilateralSoftmax(temperature=0.5, exponent=1.5)) == near(1.5 * log(1 + 4) - 2)
    assert value(BilateralSoftmax(temperature=1.0, correction="negatives")) == near(log(2.5) - 1)


def test_bpr() -> None:
    """-log sigmoid(1 - s) = log(1 + e^s / e): of 1 / e and 2 / e."""
    one, two = log(1 + 1 / e), log(1 + 2 / e)
    assert value(BPR()) == near((one + two) / 2)
    assert value(BPR(correction="negatives")) == near((2 * one + 0.25 * two) / 2.25)
    assert value(BPR(temperature=0.5)) == near((log(1 + 1 / e**2) + log(1 + 4 / e**2)) / 2)


def test_margin() -> None:
    """max(0, 0.5 - 1 + s): 0 and log 2 - 0.5."""
    assert value(Margin(margin=0.5)) == near((log(2) - 0.5) / 2)
    assert value(Margin(margin=0.5, correction="negatives")) == near(0.25 * (log(2) - 0.5) / 2.25)


def test_binary() -> None:
    """-log sigmoid(1) = log(1 + 1/e); -log(1 - sigmoid(s)) = log(1 + e^s): log 2 and log 3."""
    loss = BinaryCrossEntropy(negative_weight=1.5)
    assert value(loss) == near(log(1 + exp(-1)) + 1.5 * (log(2) + log(3)) / 2)
    corrected = BinaryCrossEntropy(correction="negatives")
    assert value(corrected) == near(log(1 + exp(-1)) + (2 * log(2) + 0.25 * log(3)) / 2.25)


def test_sgns() -> None:
    """log(1 + e^-1), and log(1 + e^s) of each: log 2 and log 3, not their mean."""
    assert value(SGNS()) == near(log(1 + exp(-1)) + log(2) + log(3))
    assert value(SGNS(correction="negatives")) == near(log(1 + exp(-1)) + 2 * log(2) + 0.25 * log(3))


def test_nce() -> None:
    """e^s / count: 4 e of the positive, 2 and 0.5 of the candidates."""
    assert value(NCE()) == near(log(1 + 1 / (4 * e)) + log(1 + 2) + log(1 + 0.5))


def test_gbce() -> None:
    """2 negatives of 10 items other than the positive: beta = 1 - t (1 - 2/10), and all is divided by 2 + 1."""
    positive, negatives = log(1 + exp(-1)), log(2) + log(3)
    for calibration, beta in ((0.0, 1.0), (0.75, 0.4), (1.0, 0.2)):
        loss = set_up(GBCE(calibration=calibration), n_items=11)
        assert value(loss) == near((beta * positive + negatives) / 3)


def test_ccl() -> None:
    """1 - 1 + 3 times the mean of max(0, s - 0.5)."""
    assert value(CCL(margin=0.5, negative_weight=3.0)) == near(3 * (log(2) - 0.5) / 2)
    colder = value(CCL(margin=0.9, negative_weight=3.0), positives=((0, 2),), drawn=(0, 1), known=((2,),))
    assert colder == near(1 - log(2) + 3 * 0.1 / 2)


def test_squared() -> None:
    """Of the positive log 2: (log 2 - 1)^2; of 1 and 0 the squares 1 and 0, weighing 4 and 2."""
    pair = {"positives": ((0, 2),), "drawn": (0, 1), "known": ((2,),)}
    assert value(SquaredGramian(negative_weight=3.0, correction="none"), **pair) == near((log(2) - 1) ** 2 + 3 / 2)
    assert value(SquaredGramian(negative_weight=3.0), **pair) == near((log(2) - 1) ** 2 + 3 * 4 / 6)


def test_warp() -> None:
    """One violator: Phi(1) = 1 times what it violates. Two: Phi(2) = 3/2 times the mean."""
    assert value(Warp(margin=0.5, correction="none")) == near(log(2) - 0.5)
    assert value(Warp(margin=1.5, correction="none")) == near(1.5 * (0.5 + log(2) + 0.5) / 2)
    assert value(Warp(margin=0.1, correction="none")) == 0


LOW = {"positives": ((0, 2),), "drawn": (0, 1), "known": ((2,),)}
"""The positive is item 2, its cosines with the query, itself and the candidates 0 and 1: log 2, 1, log 2 and 0."""


def test_adaptive_margin() -> None:
    """Margins by the items' cosines: 0.01 + 0.5 (1 - log 2) and 0.51, of which only the first is not kept. The other
    way round margins are by the query's cosines 1 and 0: 0.01 and 0.51, against the item's log 2 and 0."""
    to_query = (0.01 + 0.5 * (1 - log(2)) - log(2) + 1) / 2
    to_item = (0.01 - log(2) + log(2)) / 2
    assert value(AdaptiveMargin.jd2023(), **LOW) == near(to_query + 0.05 * to_item)
    by_query = AdaptiveMargin(alpha=0.5, offset=0.01, symmetric=0.0, hardness="query")
    assert value(by_query, **LOW) == near((0.01 - log(2) + 1) / 2)
    multiplied = AdaptiveMargin(alpha=0.5, offset=0.2, symmetric=0.0, combine="multiplicative")
    assert value(multiplied, **LOW) == near((0.2 * (1 + 0.5 * (1 - log(2))) - log(2) + 1) / 2)


def test_adaptive_temperature() -> None:
    """Temperatures by the items' cosines: 0.5 + 0.5 (1 - log 2) and 1. The other way round 0.5 and 1: the difference
    log 2 - log 2 and 0 - log 2."""
    pair = AdaptiveTemperature(temperature=0.5, alpha=0.5, symmetric=0.1, correction="none")
    to_query = log(1 + exp((1 - log(2)) / (1 - 0.5 * log(2))) + 0.5)
    assert value(pair, **LOW) == near(to_query + 0.1 * log(1 + 1 + 0.5))
    logit = AdaptiveTemperature(temperature=0.5, alpha=0.5, symmetric=0.1, correction="none", per="logit")
    to_query = log(4 + exp(1 / (1 - 0.5 * log(2))) + 1) - log(4)  # the positive by itself: 2^(1 / 0.5)
    assert value(logit, **LOW) == near(to_query + 0.1 * (log(4 + 4 + 1) - log(4)))


def test_adaptau() -> None:
    """Two queries, 8 items, two pairs: 1 / t_0 = log(2 * 8 / (2 * 2)) / 0.7 = log(4) / 0.7 before any gap."""
    sharp = log(4) / 0.7
    assert value(set_up(AdapTau(beta=inf), n_items=8)) == near(log(1 + 2**sharp) - sharp)


def test_advinfonce() -> None:
    """The adversary weighs the candidates as 1 to 3: 2 softmax = 1/2 and 3/2. At rest all weigh 1."""
    loss = AdvInfoNCE(temperature=1.0, correction="none", width=1)
    set_up(loss)
    with torch.no_grad():
        loss.of_query.weight.fill_(1.0)
        loss.of_item.weight.copy_(torch.tensor([[5.0], [0.0], [log(3)]]))
    assert value(loss) == near(log(e + 0.5 + 1.5 * 2) - 1)
    with torch.no_grad():
        loss.of_item.weight.zero_()
    assert value(loss) == near(log(e + 1 + 2) - 1)


def test_dssm() -> None:
    """gamma 2, nothing corrected: scores are twice as large, e^2, 1 and 2^2."""
    assert value(SampledSoftmax.dssm2013(gamma=2.0)) == near(log(e**2 + 1 + 4) - 2)


def test_one_bucket_of_all() -> None:
    assert value(BucketedSoftmax(temperature=1.0, correction="none", buckets=1)) == near(log(e + 1 + 2) - 1)


def test_hierarchical() -> None:
    """Counts 1, 1, 2: the root parts item 2 from the others, a node below parts 0 from 1. Of vectors log 3 and log 2
    the probabilities are 3/4 for item 2, 1/4 * 2/3 for item 0 and 1/4 * 1/3 for item 1."""
    loss = HierarchicalSoftmax()
    set_up(loss, item_count=(1, 1, 2))
    with torch.no_grad():
        loss.nodes.weight.copy_(torch.tensor([[log(2)], [log(3)]]))
    found = [value(loss, positives=((0, item),), known=((item,),)) for item in range(3)]
    assert found == near([log(6), log(12), log(4 / 3)])


def test_symmetric() -> None:
    """Seen from either item both queries score alike, so one is found with probability 1/2."""
    loss = set_up(Symmetric(of=SampledSoftmax(temperature=1.0, correction="none"), weight=0.25))
    found = value(loss, drawn=(0, 1, 2), of_batch=True, positives=((0, 0), (1, 2)), weights=(1, 1), known=((0,), (2,)))
    there = (log(e + 1 + 2) - 1 + log(2 + e + 1) - log(2)) / 2
    assert found == near(0.75 * there + 0.25 * log(2))
