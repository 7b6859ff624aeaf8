"""Laws made of other laws by drawing again, and laws that leave out what a query knows."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from twotower.errors import ConfigError
from twotower.negatives import Law, LogUniform, Popularity, Rejection, Rotations, TwoBucket, Uniform, Unknown, propose
from twotower.part import Facts
from twotower.records import Batch, Ragged

from .conftest import COUNT, RunLook, batch_of, batch_of_queries
from .laws import M, check_law, independent, ready
from .test_static import alike, counts, p_values, shares, uniform, zipf


def test_the_accepted_follow_the_target(facts: Facts, look: RunLook) -> None:
    q_M = shares([count**0.75 for count in COUNT])
    shared = ready(Rejection(of=Uniform(4), target=Popularity(24)), facts)
    own = ready(Rejection(of=Uniform(4), target=Popularity(10, per_query=True)), facts)
    assert counts(shared, look).tolist() == pytest.approx((24 * q_M).tolist(), rel=1e-5)
    check_law(shared, look, independent(q_M, 24), trials=60)
    assert uniform(p_values(own, 10 * q_M, alike(2000), look, independent(q_M, 10)))


class Counting(LogUniform):
    """Remembers what it proposed."""

    def rows(self, shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
        self.proposed = getattr(self, "proposed", 0) + math.prod(shape)
        return super().rows(shape, rng)


def test_one_in_c_is_accepted(facts: Facts, look: RunLook) -> None:
    """C = max p / q; with one proposal at a time none is thrown away, so n are accepted of about n C."""
    p_M, q_M = shares([float(count) for count in COUNT]), shares(zipf())
    c = max(p / q for p, q in zip(p_M.tolist(), q_M.tolist(), strict=True))
    of, n = Counting(1), 40_000
    sampler = ready(Rejection(of=of, target=Popularity(n, alpha=1.0)), facts)
    assert sampler.acceptance_rate == pytest.approx(1 / c, rel=1e-9)
    sampler.draw(batch_of([0]), look, torch.Generator().manual_seed(0))
    deviation = math.sqrt(n * (1 - 1 / c)) * c  # of a negative binomial
    assert abs(of.proposed - n * c) < 4 * deviation
    assert deviation < 0.02 * n * c


def test_what_rejection_can_not_do_is_refused(facts: Facts) -> None:
    with pytest.raises(ConfigError, match=r"Rejection: 2 of 12 items are in the target \(Uniform\) but never proposed"):
        Rejection(of=Popularity(3), target=Uniform(3)).setup(facts)
    with pytest.raises(ConfigError, match="target is Uniform with unique = true"):
        Rejection(of=Popularity(3), target=Uniform(3, unique=True))
    with pytest.raises(ConfigError, match=r"Uniform would accept one of .* proposals of Popularity"):
        Rejection(of=Popularity(3, alpha=8.0), target=Uniform(3)).setup(
            replace(facts, item_count_M=torch.tensor([1] + [40] * 11))
        )


def knowing(lists: list[list[int]]) -> Batch:
    """A batch whose queries know these items."""
    batch = batch_of([0] * len(lists))
    offset = torch.tensor([0, *torch.tensor([len(own) for own in lists]).cumsum(0).tolist()])
    return replace(batch, known=Ragged(offset=offset, value=torch.tensor([i for own in lists for i in own]).long()))


KNOWN = [[], [11], [0, 3, 11], [0, 1, 2, 3], [8, 9, 10, 11], [0, 3, 4, 5, 6, 7, 9, 11]]
"""Nothing; the head; some at the edges; and nearly all of the law."""

LAWS: dict[str, tuple[Law, list[float]]] = {
    "Uniform": (Uniform(8), [1.0] * M),
    "Popularity": (Popularity(8), [count**0.75 for count in COUNT]),
    "LogUniform": (LogUniform(8), zipf()),
}


@pytest.mark.parametrize("known", KNOWN, ids=str)
@pytest.mark.parametrize("name", LAWS)
def test_unknown_items_follow_the_law_renormalised(name: str, known: list[int], facts: Facts, look: RunLook) -> None:
    of, weight = LAWS[name]
    q_M = shares([0.0 if item in known else w for item, w in enumerate(weight)])
    sampler = ready(Unknown(of=of), facts)
    batch = knowing([known] * 2000)
    log_count = sampler.log_count(torch.arange(M), batch, look)
    assert log_count.shape == (2000, M)
    assert log_count[7].double().exp().tolist() == pytest.approx((8 * q_M).tolist(), rel=1e-5)
    assert uniform(p_values(sampler, 8 * q_M, batch, look, independent(q_M, 8)))


def test_queries_that_know_different_items_share_a_batch(facts: Facts, look: RunLook) -> None:
    """One who knows every item that the law draws has empty places, whose counts are none."""
    everything = [item for item in range(M) if COUNT[item]]
    sampler = ready(Unknown(of=Popularity(500)), facts)
    batch = knowing([*KNOWN, everything, list(range(M)), [5]])
    (block,) = propose(sampler, batch, look, torch.Generator().manual_seed(0)).blocks
    for known, row in zip([*KNOWN, [*everything], list(range(M)), [5]], block.row.tolist(), strict=True):
        open_ = set(everything) - set(known)
        assert set(row) <= (open_ or {-1})
        assert len(set(row)) == 1 or len(set(row)) == len(open_) or len(open_) > 6
    empty = torch.tensor([6, 7])
    assert bool((block.row[empty] == -1).all())
    assert bool((block.log_weight[empty] == -math.inf).all())
    log_count = sampler.log_count(torch.arange(M), batch, look)
    assert bool((log_count[empty] == -math.inf).all())
    total = log_count.double().exp().sum(1)
    assert total.tolist() == pytest.approx([0.0 if at in (6, 7) else 500.0 for at in range(9)], rel=1e-5)


def test_others_clicks_have_the_law_of_other_rows_of_the_batch(facts: Facts, look: RunLook) -> None:
    """A naive loop over the training events that are not of known items; and ``Rotations``, which draws rows of the
    batch, less the known."""
    known = [3, 4, 9]
    others = [item for item in facts.events.item_E.tolist() if item not in known]
    expected = [5 * others.count(item) / len(others) for item in range(M)]
    batch = replace(knowing([known] * 6), item_P=torch.tensor([3, 4, 9, 3, 4, 9]))
    sampler = ready(Unknown(of=Popularity(5, alpha=1.0)), facts)
    assert counts(sampler, look, batch)[0].tolist() == pytest.approx(expected, rel=1e-5)
    of_rows = counts(ready(Rotations(1), facts), look, batch)
    of_rows[known] = 0
    assert (5 * of_rows / of_rows.sum()).tolist() == pytest.approx(expected, rel=1e-5)


def test_positives_count_by_the_law_of_their_own_query(facts: Facts, look: RunLook) -> None:
    """A batch of queries with several positives, known to others only: 12 items, of which 1, 2 and 3 are unknown to
    them."""
    batch = batch_of_queries([[4], [5, 6, 7], [8, 9]])
    offset = torch.tensor([0, 11, 21, 30])
    known = Ragged(
        offset=offset, value=torch.tensor([i for own in ({4}, {5, 6}, {8, 9, 10}) for i in range(12) if i not in own])
    )
    candidates = propose(ready(Unknown(of=Uniform(6)), facts), replace(batch, known=known), look, torch.Generator())
    log_count_P = candidates.positive_log_count_P
    expected = [math.log(6), math.log(3), math.log(3), -math.inf, math.log(2), math.log(2)]
    assert log_count_P.tolist() == pytest.approx(expected, rel=1e-5)


def test_a_law_of_distinct_items_has_no_unknown_ones() -> None:
    with pytest.raises(ConfigError, match="Unknown: of is TwoBucket with unique = true"):
        Unknown(of=TwoBucket(3, threshold=2, unique=True))
