"""Popularity within the group of a query, held against loops over the training events."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from twotower.errors import ConfigError
from twotower.negatives import Conditional, Popularity
from twotower.part import Events, Facts
from twotower.records import Batch, Ragged

from .conftest import COUNT, RunLook, batch_of, features_of
from .laws import TOTAL, M, check_law, independent, ready
from .test_static import alike, counts, p_values, shares, uniform


def law(group: int | None, facts: Facts, by: str, alpha: float, smoothing: float) -> Tensor:
    """By a loop over the events; of no group, that of all events."""
    item_E = facts.events.item_E.tolist()
    column = facts.events.features(torch.arange(TOTAL))[by]
    of_group, of_all = [0] * M, [0] * M
    for event, item in enumerate(item_E):
        if isinstance(column, Ragged):
            start, stop = column.offset[event : event + 2].tolist()
            value = int(column.value[stop - 1]) if stop > start else -1
        else:
            value = int(column[event])
        of_all[item] += 1
        of_group[item] += value == group
    popular = shares([count**alpha if count else 0.0 for count in of_all])
    if group is None or not sum(of_group):
        return popular
    return (1 - smoothing) * shares([count**alpha if count else 0.0 for count in of_group]) + smoothing * popular


def in_countries(country: list[int]) -> Batch:
    return replace(batch_of([0] * len(country)), query={"country": torch.tensor(country)})


def after(lists: list[list[int]]) -> Batch:
    offset = torch.tensor([0, *torch.tensor([len(own) for own in lists]).cumsum(0).tolist()])
    history = Ragged(offset=offset, value=torch.tensor([i for own in lists for i in own]).long())
    return replace(batch_of([0] * len(lists)), query={"history": history})


@pytest.mark.parametrize(("alpha", "smoothing"), [(1.0, 0.1), (0.5, 0.0), (0.75, 1.0)])
def test_counts_are_those_of_a_loop(alpha: float, smoothing: float, facts: Facts, look: RunLook) -> None:
    sampler = ready(Conditional(7, by="country", alpha=alpha, smoothing=smoothing), facts)
    found = counts(sampler, look, in_countries([2, 0, 1, 2, 77, -1]))
    for row, group in zip(found, (2, 0, 1, 2, None, None), strict=True):
        assert row.tolist() == pytest.approx((7 * law(group, facts, "country", alpha, smoothing)).tolist(), rel=1e-5)


def test_countries_have_laws_of_their_own(facts: Facts) -> None:
    """So the tests here would notice a law of the wrong group."""
    laws = [law(group, facts, "country", 1.0, 0.0) for group in (0, 1, 2, None)]
    assert min(float((a - b).abs().sum()) for i, a in enumerate(laws) for b in laws[:i]) > 0.5


@pytest.mark.parametrize("group", [0, 1, 2, 77, -1])
def test_draws_follow_the_law_of_the_group(group: int, facts: Facts, look: RunLook) -> None:
    """Of queries beside those of other groups."""
    q_M = law(None if group in (77, -1) else group, facts, "country", 1.0, 0.1)
    sampler = ready(Conditional(10, by="country"), facts)

    class Half(Conditional):
        def draw(self, batch: Batch, look: RunLook, rng: torch.Generator) -> tuple:  # type: ignore[type-arg]
            (block,) = sampler.draw(batch, look, rng)
            return (replace(block, row=block.row[::2]),)

    batch = in_countries([group, (group + 1) % 3] * 2000)
    assert uniform(p_values(Half(10, by="country"), 10 * q_M, batch, look, independent(q_M, 10)))


def test_draws_follow_the_counts_in_a_run(facts: Facts, look: RunLook) -> None:
    q_M = law(0, facts, "country", 0.5, 0.5)
    check_law(
        ready(Conditional(24, by="country", alpha=0.5, smoothing=0.5), facts), look, independent(q_M, 24), trials=60
    )


def test_after_a_history_comes_what_followed_its_last_item(facts: Facts, look: RunLook) -> None:
    """A bigram law."""
    sampler = ready(Conditional(7, by="history", smoothing=0.2), facts)
    batch = after([[1, 5], [5], [], [5, 3], [11]])
    for row, group in zip(counts(sampler, look, batch), (5, 5, None, 3, None), strict=True):
        assert row.tolist() == pytest.approx((7 * law(group, facts, "history", 1.0, 0.2)).tolist(), rel=1e-5)
    q_M = law(6, facts, "history", 1.0, 0.2)
    assert uniform(p_values(sampler, 7 * q_M, after([[2, 6]] * 2000), look, independent(q_M, 7)))


def test_events_without_a_group_leave_popularity(facts: Facts, look: RunLook) -> None:
    none = Events(item_E=facts.events.item_E, features=lambda event: {"country": torch.full_like(event, -1)})
    sampler = ready(Conditional(7, by="country"), replace(facts, events=none))
    popularity = counts(ready(Popularity(7, alpha=1.0), facts), look)
    for row in counts(sampler, look, in_countries([0, -1])):
        assert torch.allclose(row, popularity)
    q_M = shares([float(count) for count in COUNT])
    assert uniform(p_values(sampler, 7 * q_M, alike(2000), look, independent(q_M, 7)))


def facts_of_one_popular_group(facts: Facts) -> Facts:
    """Item 11, with 1000 events, is all that group 0 has; item 8 with 10 is of no group."""
    events = Events(
        item_E=facts.events.item_E,
        features=lambda event: {"country": torch.where(facts.events.item_E[event] == 11, 0, -1)},
    )
    return replace(facts, events=events)


def test_a_feature_that_makes_no_groups_is_refused(facts: Facts) -> None:
    with pytest.raises(ConfigError, match=r"by is 'land', expected a feature of queries; they have country, age, hist"):
        Conditional(3, by="land").setup(facts)
    with pytest.raises(ConfigError, match=r"by is 'age', whose values are numbers or vectors"):
        Conditional(3, by="age").setup(facts)
    with pytest.raises(ConfigError, match=r"smoothing is 1.5, expected a share"):
        Conditional(3, by="country", smoothing=1.5)
    with pytest.raises(ConfigError, match="which leaves groups without weight"):
        Conditional(3, by="country", alpha=-200.0).setup(facts_of_one_popular_group(facts))
    with pytest.raises(ConfigError, match="Conditional: n is 0"):
        Conditional(0, by="country")


def test_the_features_here_are_as_described() -> None:
    history = features_of(torch.tensor([0, 1, 2, 5]))["history"]
    assert isinstance(history, Ragged)
    assert history.value.tolist() == [4, 2, 5, 5, 3]
