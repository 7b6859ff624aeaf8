"""Right counts pass, wrong ones are caught and named; deciles and places are those of naive loops."""

from __future__ import annotations

import math
from dataclasses import field, replace
from itertools import islice

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.auditing.tiny import N_ITEMS, OfEachQuery, audited, law_of, popular_store, run_with
from twotower.auditing import Audit
from twotower.auditing.deciles import Deciles
from twotower.auditing.law import Law, offered, z_scores
from twotower.auditing.verdict import _of_law
from twotower.data.batches import TrainingBatches
from twotower.losses import SampledSoftmax
from twotower.negatives import DNS, Catalogue, InBatch, Look, Popularity, Rotations, Sampler, Uniform
from twotower.records import Batch, Block, Ragged


class HeadClaimedShort(Popularity):
    """Claims 15% too little of the five most popular items."""

    def log_count(self, row: Tensor, batch: Batch, look: Look) -> Tensor:
        return super().log_count(row, batch, look) + torch.where(row < 5, math.log(0.85), 0.0)


class AnotherLaw(Sampler):
    """Claims to be uniform and draws low rows twice as often as high ones."""

    density = "exact"

    n: int = field(default=40, kw_only=False)

    def draw(self, batch: Batch, look: Look, rng: torch.Generator) -> tuple[Block, ...]:
        row = torch.randint(N_ITEMS * 3 // 2, (self.n,), generator=rng)
        return (Block.of(torch.where(row < N_ITEMS, row, row - N_ITEMS)),)

    def log_count(self, row: Tensor, batch: Batch, look: Look) -> Tensor:
        return torch.full(row.shape, math.log(self.n / N_ITEMS))


class UpToAFactor(Popularity):
    """Knows its counts up to a factor, another one in every batch."""

    density = "relative"

    def log_count(self, row: Tensor, batch: Batch, look: Look) -> Tensor:
        return super().log_count(row, batch, look) + float(batch.item_P.sum() % 7)


RIGHT: dict[str, Sampler] = {
    "Catalogue": Catalogue(),
    "Popularity": Popularity(40),
    "Popularity of each query": Popularity(8, per_query=True),
    "Uniform": Uniform(40),
    "two": Uniform(20) + Popularity(5, per_query=True),
    "up to a factor": UpToAFactor(40),
    "law of each query": OfEachQuery(),
}


@pytest.mark.parametrize("sampler", RIGHT.values(), ids=RIGHT)
def test_right_counts_pass(sampler: Sampler) -> None:
    law = law_of(sampler)
    assert law.p > 0.01
    assert all(abs(d.count.z) < 3.5 for d in law.deciles)
    assert law.found == pytest.approx(law.claimed, rel=0.02)


def test_right_counts_are_seldom_doubted() -> None:
    """Over 30 seeds of what is hardest, few hits of many items: p is no smaller than a uniform number would be."""
    p = [law_of(Popularity(4, alpha=1.0), batches=40, seed=seed).p for seed in range(30)]
    assert sum(value < 0.05 for value in p) <= 4  # P(more of Binomial(30, .05)) = 0.02
    assert min(p) > 0.001


@pytest.mark.parametrize("sampler", [HeadClaimedShort(60), AnotherLaw(), OfEachQuery(off=0.85)])
def test_wrong_counts_are_caught_and_named(sampler: Sampler) -> None:
    law = law_of(sampler, batches=300)
    assert law.p < 1e-4
    said = said_of(law)
    assert "COUNTS DO NOT AGREE" in said
    worst = law.worst[0]
    assert worst.id == f"i{worst.row}"
    assert f"item {worst.id}" in said
    if isinstance(sampler, AnotherLaw):  # rows up to 30 come 4/3 as often as they should, others 2/3
        assert worst.count.ratio == pytest.approx(4 / 3 if worst.row < N_ITEMS // 2 else 2 / 3, abs=0.3)
    else:
        assert worst.row < (5 if isinstance(sampler, HeadClaimedShort) else 10)
        assert worst.count.ratio == pytest.approx(1 / 0.85, rel=0.08)


def said_of(law: Law) -> str:
    """The verdict on it."""
    return " ".join(_of_law(law))


def test_what_is_never_drawn_by_its_count_is_no_candidate() -> None:
    class Never(Uniform):
        def log_count(self, row: Tensor, batch: Batch, look: Look) -> Tensor:
            return super().log_count(row, batch, look).masked_fill(row == 7, -math.inf)

    law = law_of(Never(40))
    assert law.worst[0].row == 7
    assert law.p_items < 1e-6


def test_batch_items_are_offered_by_the_others() -> None:
    law = law_of(InBatch(), batches=300)
    assert law.density == "approximate"
    assert all(0.9 < d.count.ratio < 1.1 for d in law.deciles if d.count.claimed > 0.05)


def test_rotations_are_as_approximate_as_they_say() -> None:
    law = law_of(Rotations(4), batches=300)
    assert law.found == pytest.approx(4)
    assert "approximate" in said_of(law)


def test_without_a_density_only_what_was_offered_is_told() -> None:
    audit = audited(DNS(n=2, of=Uniform(8, per_query=True)), correction="none")
    assert audit.law.found == pytest.approx(2, rel=0.01)
    assert math.isnan(audit.law.claimed)
    assert "no density" in audit.verdict[0]
    assert "claimed" not in audit.render()
    falling = [item.count.found for item in audit.law.worst]
    assert falling == sorted(falling, reverse=True)


def test_memory_of_each_query_s_law_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """About half of the 60 items are looked at, and the drawn ones stand for the others."""
    monkeypatch.setattr("twotower.auditing.law.MOST_PLACES", 30 * 60)
    law = law_of(OfEachQuery(), batches=200)
    assert 30 <= law.n_items < 40
    assert law.of_items == N_ITEMS
    assert law.p > 0.01
    assert law.claimed == pytest.approx(8, rel=0.03)  # each item as likely as another, so weights must sum to all
    assert law_of(OfEachQuery(off=0.8), batches=200).p < 0.001


def test_offered_by_a_naive_loop() -> None:
    """Queries 0, 1, 2 with positives (4), (4, 2), (1): item 4 comes from two, 1 and 2 from one each."""
    batch = Batch(
        query={},
        query_B=torch.arange(3),
        item_P=torch.tensor([4, 2, 4, 1]),
        of_P=torch.tensor([0, 1, 1, 2]),
        weight_P=torch.ones(4),
        known=Ragged(offset=torch.tensor([0, 1, 3, 4]), value=torch.tensor([4, 2, 4, 1])),
    )
    blocks = (
        Block.of(torch.tensor([1, 2, 4]), of_batch=True),
        Block.of(torch.tensor([0, 4, 0])),
        Block.chosen(torch.tensor([[3, 3], [0, -1], [-1, -1]]), torch.tensor([[0.0, math.log(2.0)], [0.0, 0], [0, 0]])),
    )
    positives = [{4}, {4, 2}, {1}]
    expected = [0.0] * 6
    for query in range(3):
        for item in (1, 2, 4):
            expected[item] += any(item in own for other, own in enumerate(positives) if other != query)
        expected[0] += 2
        expected[4] += 1
    expected[3] += 3
    expected[0] += 1
    found_M, squares = offered(blocks, batch, 6)
    assert found_M.tolist() == pytest.approx([value / 3 for value in expected])
    of_batch = (2 / 3) ** 2 + (2 / 3) ** 2 + 1
    assert squares == pytest.approx(of_batch + 3 + (1 / 3) ** 2 + (2 / 3) ** 2 + (1 / 3) ** 2)


def test_deciles_by_a_naive_loop() -> None:
    count = [int(x) for x in torch.randint(0, 12, (97,), generator=torch.Generator().manual_seed(5))]
    deciles = Deciles.of(torch.tensor(count))
    number = []
    for own in count:  # from the middle of the places that equal items share
        before, equal = sum(other > own for other in count), count.count(own)
        number.append(int((before + equal / 2) / len(count) * 10) + 1)
    assert deciles.number_G[deciles.group_M].tolist() == number
    for at, one in enumerate(deciles.number_G.tolist()):
        own = [c for c, n in zip(count, number, strict=True) if n == one]
        assert (int(deciles.items_G[at]), int(deciles.events_G[at])) == (len(own), sum(own))
        assert (int(deciles.least_G[at]), int(deciles.most_G[at])) == (min(own), max(own))


def test_items_without_events_are_not_taken_for_popular() -> None:
    """95 of 100 have none, and so are one group: its middle is at 52.5%."""
    deciles = Deciles.of(torch.tensor([3, 1, 2, 5, 4] + [0] * 95))
    assert deciles.number_G.tolist() == [1, 6]
    assert deciles.items_G.tolist() == [5, 95]


def test_shares_of_deciles() -> None:
    store = popular_store()
    law = law_of(Popularity(40, alpha=1.0))
    count = np.bincount(store.item_row, minlength=N_ITEMS)
    for decile in law.deciles:
        # drawn as the data are: a decile's share of candidates is its share of the events
        assert decile.share_of_candidates == pytest.approx(decile.share_of_events, abs=0.03)
        own = count[(count >= decile.least_events) & (count <= decile.most_events)]
        assert decile.share_of_events == pytest.approx(own.sum() / count.sum())
        assert decile.share_of_items == pytest.approx(len(own) / N_ITEMS)


def test_z_of_a_poisson_number() -> None:
    """Tail probabilities: P(N >= 50) of 25 is 4.9e-6, z 4.42; P(N <= 9) of 25 is 2.2e-4, z -3.51."""
    z = z_scores(
        torch.tensor([50.0, 9.0, 25.0]).double(),
        torch.tensor([25.0, 25.0, 25.0]).double(),
        torch.tensor([25.0, 25.0, 25.0]).double(),
        1.0,
        torch.zeros(3, dtype=torch.int64),
    )
    assert z.tolist() == pytest.approx([4.42, -3.6, 0.0], abs=0.12)


def test_a_sampler_that_keeps_its_draws_is_not_taken_for_many() -> None:
    class Keeps(Uniform):
        """Draws anew in every tenth batch: its counts are right, its batches are not independent."""

        def draw(self, batch: Batch, look: Look, rng: torch.Generator) -> tuple[Block, ...]:
            return super().draw(batch, look, torch.Generator().manual_seed(look.step // 10))

    law = law_of(Keeps(40))
    assert law.carried_over > 4
    assert law.p > 0.01


def test_exclusions_and_repeats_by_a_naive_loop() -> None:
    """The catalogue is offered once and once more: half of the places repeat, and of a line's columns its known items
    are excluded."""
    audit: Audit = audited(Catalogue() + Catalogue(), batches=4)
    offers = audit.offers
    assert offers.places == 2 * N_ITEMS
    assert offers.distinct == N_ITEMS
    assert offers.merged == 0.5
    assert offers.item_rows == N_ITEMS
    store = popular_store()
    known = {int(q): {int(i) for i in store.item_row[store.query_row == q]} for q in set(store.query_row.tolist())}
    lines = excluded = 0
    for batch in _first_batches(4):
        for query in batch.query_B.tolist():
            lines += 1
            excluded += len(known[query])
    assert offers.excluded == pytest.approx(excluded / lines / N_ITEMS, rel=0.02)  # batches differ in lines
    assert offers.without_candidate == 0


def test_places_of_each_query() -> None:
    sampler = Uniform(6) + Uniform(5, per_query=True)
    offers = audited(sampler, batches=4).offers
    assert offers.places == 11
    assert 0 < offers.repeated < 0.3
    assert 9 < offers.distinct < 11


def _first_batches(n: int) -> list[Batch]:
    store = popular_store()
    batches = TrainingBatches(store, np.arange(store.n_events), batch_of="pairs", batch_size=64, seed=0)
    return list(islice(batches.epoch(0), n))


def test_the_loss_of_the_run_is_named() -> None:
    run = replace(run_with(Uniform(4)), loss=SampledSoftmax(temperature=0.3))
    assert run.loss.temperature == 0.3  # type: ignore[attr-defined]
    assert "temperature=0.3" in audited(Uniform(4), run=run).loss
