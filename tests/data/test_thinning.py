"""Thinning: keep rates by arithmetic, what is kept by test of hypothesis, and counts that follow."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import f as f_law
from scipy.stats import kstest, norm
from torch import Tensor

from tests.negatives.conftest import RunLook, batch_of
from tests.stores import make_store
from twotower.config import Training, dump_run, parse_run
from twotower.data.batches import TrainingBatches
from twotower.data.store import Store
from twotower.data.thinning import FrequentThinning, ThinnedEvents, Thinning, UniformThinning, keep_probability
from twotower.errors import ConfigError
from twotower.frequency import ExactFrequency, StreamingFrequency
from twotower.losses.hierarchical import huffman
from twotower.negatives import InBatch, Popularity, Rotations
from twotower.records import Ragged
from twotower.schema import History

COUNT = [160, 90, 60, 40, 25, 12, 8, 5, 0]
"""400 events of 9 items."""
FREQUENT = FrequentThinning(t=0.03)
KEEP = [min(1.0, math.sqrt(0.03 * 400 / n) + 0.03 * 400 / n) if n else 1.0 for n in COUNT]
"""sqrt(t / f) + t / f: .349, .498, .647, .848, and 1 from 25 events down."""
EXPECTED = [n * k for n, k in zip(COUNT, KEEP, strict=True)]
Q = [n / sum(EXPECTED) for n in EXPECTED]


def store_of(count: list[int], n_queries: int = 20, **kwargs: Any) -> Store:
    """Event e is of query e mod n."""
    item = [item for item, n in enumerate(count) for _ in range(n)]
    return make_store([(e % n_queries, i) for e, i in enumerate(item)], n_items=len(count), **kwargs)


def thinned(thin: Thinning | None = FREQUENT, count: list[int] = COUNT, **kwargs: Any) -> TrainingBatches:
    store = store_of(count)
    settings = {"batch_of": "pairs", "batch_size": 10, **kwargs}
    return TrainingBatches(store, np.arange(store.n_events), thin=thin, **settings)


def stream(keep: list[float], count: list[int]) -> ThinnedEvents:
    item_E = torch.repeat_interleave(torch.arange(len(count)), torch.tensor(count))
    return ThinnedEvents(item_E=item_E, keep_M=torch.tensor(keep, dtype=torch.float64))


# ---------------------------------------------------------------- rates


def test_rates_are_the_formulas() -> None:
    """t = .001, f = .01: f / t = 10."""
    share = torch.tensor([0.01, 0.001, 0.0005, 0.0])
    assert keep_probability(share, t=1e-3, form="code").tolist() == pytest.approx(
        [(math.sqrt(10) + 1) * 0.1, 1, 1, 1], rel=1e-6
    )
    assert keep_probability(share, t=1e-3, form="paper").tolist() == pytest.approx([math.sqrt(0.1), 1, 1, 1], rel=1e-6)
    assert keep_probability(share, t=1e-3, form="power", power=0.85).tolist() == pytest.approx(
        [10**-0.85, 1, 1, 1], rel=1e-6
    )


def test_settings_go_by_the_counts() -> None:
    count_M = torch.tensor([100_000, 10_000, 2_500, 0])  # of 112 500
    found = FrequentThinning(t=0.02).keep_probability(count_M)
    assert found.dtype == torch.float64
    ratio = [0.02 * 112_500 / n for n in (100_000, 10_000)]  # 1.0125, .225
    assert found.tolist() == pytest.approx([min(1, math.sqrt(r) + r) for r in ratio] + [1, 1])
    assert FrequentThinning(t=0.02, form="paper").keep_probability(count_M).tolist() == pytest.approx(
        [math.sqrt(0.0225), math.sqrt(0.225), math.sqrt(0.9), 1]
    )
    assert UniformThinning(keep=0.3).keep_probability(count_M).tolist() == [0.3] * 4
    assert FREQUENT.keep_probability(torch.tensor(COUNT)).tolist() == pytest.approx(KEEP)
    assert FREQUENT.keep_probability(torch.zeros(3)).tolist() == [1, 1, 1]


def test_a_floor_is_of_events() -> None:
    """f = 100 / 125, 20 / 125, 5 / 125; (t / f)^1 = .00125, .00625, .025, so 5 of 100, 5 of 20 and all 5 stay."""
    thin = FrequentThinning(t=1e-3, form="power", power=1.0, floor=5)
    assert thin.keep_probability(torch.tensor([100, 20, 5])).tolist() == pytest.approx([0.05, 0.25, 1.0])
    assert FrequentThinning(t=0.5, floor=5).keep_probability(torch.tensor([100, 20])).tolist() == pytest.approx([1, 1])
    batches = thinned(thin, [100, 20, 5], batch_size=100)
    assert sum(batch.item_P.bincount() for batch in batches.epoch(3)).tolist() == [5, 5, 5]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FrequentThinning(t=0), "FrequentThinning.t: found 0, expected a share of the events"),
        (lambda: FrequentThinning(t=math.nan), "FrequentThinning.t: found nan"),
        (lambda: FrequentThinning(form="papers"), "FrequentThinning.form: found papers, expected one of code, paper"),  # type: ignore[arg-type]
        (lambda: FrequentThinning(power=-1), "FrequentThinning.power: found -1"),
        (lambda: FrequentThinning(floor=-1), "FrequentThinning.floor: found -1, expected 0 or more events"),
        (lambda: UniformThinning(keep=0), "UniformThinning.keep: found 0, expected a probability"),
        (lambda: UniformThinning(keep=1.5), "UniformThinning.keep: found 1.5"),
    ],
)
def test_settings_out_of_range(make: Callable[[], Thinning], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


# ---------------------------------------------------------------- draws


def kept_counts(events: ThinnedEvents, epochs: Iterable[int]) -> Tensor:
    """[T, E] whether each event was kept."""
    found = []
    for epoch in epochs:
        kept = events.draw(torch.Generator().manual_seed(epoch))
        assert len(kept.unique()) == len(kept)
        found.append(torch.zeros(len(events.item_E)).index_fill(0, kept, 1.0))
    return torch.stack(found)


def test_every_draw_has_what_is_expected_of_it_rounded() -> None:
    """All together, and of every item: no draw is unlucky."""
    events = stream(KEEP, COUNT)
    for epoch in range(200):
        item = events.item_E[events.draw(torch.Generator().manual_seed(epoch))]
        assert len(item) in (events.n_least, events.n_least + 1)
        for n, expected in zip(item.bincount(minlength=len(COUNT)).tolist(), EXPECTED, strict=True):
            assert abs(n - expected) < 1
    assert events.n_least == math.floor(sum(EXPECTED))


@pytest.mark.parametrize("keep", [0.1, 0.3, 0.7, 1 / 3])
def test_a_whole_number_is_kept_to_the_event(keep: float) -> None:
    events = stream([keep], [3000])
    assert events.n_least == round(3000 * keep)
    assert {len(events.draw(torch.Generator().manual_seed(seed))) for seed in range(50)} == {round(3000 * keep)}


def test_all_are_kept_where_the_probability_is_one() -> None:
    events = stream([1.0, 1.0], [7, 4])
    assert events.draw(torch.Generator().manual_seed(0)).sort().values.tolist() == list(range(11))


def z_values(seeds: Iterable[int], factor: float = 1.0) -> list[float]:
    """Of how often one event of each thinned item is kept in 200 draws: independent coins of probability k."""
    events, found = stream(KEEP, COUNT), []
    first = [0, 160, 250, 310]  # of items 0 to 3
    keep = torch.tensor(KEEP[:4]) * factor
    for seed in seeds:
        times = kept_counts(events, range(seed * 1000, seed * 1000 + 200))[:, first].sum(0)
        found += ((times - 200 * keep) / (200 * keep * (1 - keep)).sqrt()).tolist()
    return found


def test_each_event_is_kept_with_its_probability() -> None:
    """p-values of 20 seeds are uniform; those of rates 5% too high would not be."""
    assert kstest(norm.cdf(z_values(range(20))), "uniform").pvalue > 0.01
    assert kstest(norm.cdf(z_values(range(20), factor=1.05)), "uniform").pvalue < 0.001


@pytest.mark.parametrize("n_items", [10, 1])
def test_which_events_are_kept_together_is_left_to_chance(n_items: int) -> None:
    """Ten events, of ten items or of one, half of them kept: any five are as likely, so two by 5 / 10 times 4 / 9."""
    found = kept_counts(stream([0.5] * n_items, [10 // n_items] * n_items), range(2000))
    together = found.T @ found / 2000
    off = together[~torch.eye(10, dtype=torch.bool)]
    assert float((off - 2 / 9).abs().max()) < 4.5 * math.sqrt(2 / 9 * 7 / 9 / 2000)


def hotelling(found_TM: Tensor, expected_M: Tensor) -> float:
    """p-value of the mean of T draws, with the covariance that they have."""
    difference, covariance = found_TM.mean(0) - expected_M, found_TM.T.cov()
    rank, n = int(torch.linalg.matrix_rank(covariance, hermitian=True, rtol=1e-9)), len(found_TM)
    squared = n * float(difference @ torch.linalg.pinv(covariance, hermitian=True, rtol=1e-9) @ difference)
    return float(f_law.sf(squared * (n - rank) / (rank * (n - 1)), rank, n - rank))


def first_batches(seed: int, epochs: int = 120) -> Tensor:
    """[T, M] items of the first batch of many epochs."""
    batches = thinned(seed=seed)
    return torch.stack([next(batches.epoch(e)).item_P.bincount(minlength=len(COUNT)) for e in range(epochs)]).double()


def test_batches_are_of_the_thinned_law() -> None:
    """Items of one batch of ten come with q = f k / sum f k: uniform p-values over 20 seeds."""
    found = [first_batches(seed)[:, :-1] for seed in range(20)]
    q_M = torch.tensor(Q[:-1], dtype=torch.float64)
    assert kstest([hotelling(x, 10 * q_M) for x in found], "uniform").pvalue > 0.01
    f_M = torch.tensor(COUNT[:-1]).double() / sum(COUNT)
    assert max(hotelling(x, 10 * f_M) for x in found) < 1e-6  # the law it had before


# ---------------------------------------------------------------- epochs


def same(a: Any, b: Any) -> bool:
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in ("query_B", "item_P", "of_P", "weight_P"))


def test_an_epoch_resumes_at_any_step_and_is_its_own_draw() -> None:
    batches, again = thinned(seed=3), thinned(seed=3)
    whole = list(batches.epoch(1))
    assert len(whole) == batches.steps_per_epoch == math.ceil(math.floor(sum(EXPECTED)) / 10)
    for start in range(batches.steps_per_epoch + 1):
        rest = list(again.epoch(1, start))
        assert len(rest) == len(whole) - start
        assert all(same(a, b) for a, b in zip(rest, whole[start:], strict=True))
    for other in (thinned(seed=4).epoch(1), batches.epoch(2)):
        assert not all(same(a, b) for a, b in zip(whole, other, strict=True))


@pytest.mark.parametrize(("keep", "sizes"), [(0.5, {(10, 10, 5)}), (0.61, {(10, 10, 10), (10, 10, 11)})])
def test_steps_are_the_same_in_all_epochs(keep: float, sizes: set[tuple[int, ...]]) -> None:
    """50 events: 25, or 30.5 and so 30 or 31, of which the last batch takes all that is left."""
    batches = thinned(UniformThinning(keep=keep), [20, 20, 10])
    found = {tuple(len(b.item_P) for b in batches.epoch(epoch)) for epoch in range(40)}
    assert found == sizes
    assert batches.steps_per_epoch == 3


def values(lists: Ragged) -> list[list[int]]:
    return [lists.slice(i, i + 1).value.tolist() for i in range(len(lists))]


def test_what_is_left_out_stays_known_and_remembered() -> None:
    """Over a few epochs every known list and every history is that of all events, whichever are batched."""
    times = list(range(sum(COUNT)))
    store = store_of(COUNT, time_us=times, context={"history": History(k=500)})
    all_of_it, some = (
        TrainingBatches(store, np.arange(400), batch_of="pairs", batch_size=400, thin=thin)
        for thin in (None, UniformThinning(keep=0.3))
    )
    (full,) = all_of_it.epoch(0)
    lists = (values(x) for x in (full.known, full.query["history"]))  # type: ignore[arg-type]
    known = {
        (query, item, len(history)): (k, history)
        for query, item, k, history in zip(full.query_B.tolist(), full.item_P.tolist(), *lists, strict=True)
    }
    assert len(known) == 400
    for epoch in range(3):
        (batch,) = some.epoch(epoch)
        assert len(batch.item_P) == 120
        histories = values(batch.query["history"])  # type: ignore[arg-type]
        for query, item, k, history in zip(
            batch.query_B.tolist(), batch.item_P.tolist(), values(batch.known), histories, strict=True
        ):
            assert known[query, item, len(history)] == (k, history)


def test_without_thinning_nothing_changes() -> None:
    plain = thinned(None)
    assert plain.facts().item_count_M.dtype == torch.int64
    for batches in (thinned(UniformThinning(keep=1.0)), plain):
        assert sum(batch.item_P.bincount(minlength=9) for batch in batches.epoch(0)).tolist() == COUNT  # type: ignore[union-attr]
        assert batches.facts().item_count_M.tolist() == COUNT


# ---------------------------------------------------------------- counts follow


def test_facts_are_of_what_is_kept() -> None:
    batches = thinned()
    facts = batches.facts()
    assert facts.item_count_M.tolist() == pytest.approx(EXPECTED)
    assert (facts.batch_size, facts.steps_per_epoch) == (10, math.ceil(math.floor(sum(EXPECTED)) / 10))
    want = [0.0] * 20
    for query, item in {(e % 20, i) for e, i in enumerate(batches.event_item.tolist())}:  # distinct pairs
        want[query] += KEEP[item]
    assert facts.query_count_Q.tolist() == pytest.approx(want)
    assert thinned(batch_size=1000).facts().batch_size == math.floor(sum(EXPECTED))


def test_log_counts_are_the_formulas_with_f_times_k() -> None:
    facts = thinned().facts()
    frequency = ExactFrequency()
    frequency.setup(facts)
    look, batch, row = RunLook(frequency), batch_of([0, 1, 2]), torch.arange(8)
    samplers = {InBatch(): [1 - (1 - q) ** 9 for q in Q[:8]], Rotations(2): [2 * q for q in Q[:8]]}
    total = sum(n**0.5 for n in EXPECTED)
    samplers[Popularity(5, alpha=0.5)] = [5 * n**0.5 / total for n in EXPECTED[:8]]
    for sampler, want in samplers.items():
        sampler.setup(facts)
        assert sampler.log_count(row, batch, look).exp().tolist() == pytest.approx(want, rel=1e-5)
    assert InBatch().log_count(torch.tensor([8]), batch, look).item() == -math.inf


def test_the_presences_sum_to_the_items_of_a_batch() -> None:
    """Exact and streaming: the mean number of distinct items of a batch, which without thinning is another one."""
    batches, plain = thinned(batch_size=11), thinned(None, batch_size=11)
    exact, before = ExactFrequency(), ExactFrequency()
    exact.setup(batches.facts())
    before.setup(plain.facts())
    streaming = StreamingFrequency(buckets=2**12, alpha=0.01)
    streaming.setup(batches.facts())
    distinct, of_ten = [], []
    for epoch in range(25):
        for batch in list(batches.epoch(epoch))[:-1]:
            streaming.observe(batch.item_P)
            distinct.append(len(batch.item_P.unique()))
            of_ten.append(len(batch.item_P[torch.randperm(11)[:10]].unique()))  # those beside one query's own
    row = torch.arange(len(COUNT))
    assert float(exact.log_presence(row).exp().sum()) == pytest.approx(np.mean(of_ten), rel=0.02)
    assert float(before.log_presence(row).exp().sum()) < 0.95 * np.mean(of_ten)
    assert float(streaming.log_presence(row[:-1]).exp().sum()) == pytest.approx(np.mean(distinct), rel=0.05)


def test_a_huffman_tree_takes_expected_counts() -> None:
    """4.5, 2.25, 1.2, 1.1: codes of 1, 2, 3 and 3 bits."""
    tree = huffman(torch.tensor([4.5, 2.25, 1.2, 1.1], dtype=torch.float64))
    assert (tree.offset[1:] - tree.offset[:-1]).tolist() == [1, 2, 3, 3]


# ---------------------------------------------------------------- settings

SCHEMA = """
[schema]
interactions = { query = "user", item = "item" }
query.user = { kind = "Id", column = "user" }
item.item = { kind = "Id", column = "item" }

[split]
kind = "RandomSplit"
"""


def test_a_run_names_it_by_kind() -> None:
    text = (
        SCHEMA + '[training]\nthin = { kind = "FrequentThinning", t = 0.01, form = "power", power = 0.85, floor = 5 }\n'
    )
    run = parse_run(text)
    assert run.training.thin == FrequentThinning(t=0.01, form="power", power=0.85, floor=5)
    assert parse_run(dump_run(run)).training.thin == run.training.thin
    assert parse_run(SCHEMA).training.thin is None
    assert parse_run(text, set=["training.thin=none"]).training.thin is None
    uniform = parse_run(SCHEMA, set=["training.thin.kind=UniformThinning", "training.thin.keep=0.25"])
    assert uniform.training.thin == UniformThinning(keep=0.25)
    with pytest.raises(ConfigError, match=r"training.thin.*did you mean 'UniformThinning'"):
        parse_run(SCHEMA, set=["training.thin.kind=UniformThining"])
    with pytest.raises(ConfigError, match=r"training.thin.*FrequentThinning.t: found -1"):
        parse_run(SCHEMA, set=["training.thin.kind=FrequentThinning", "training.thin.t=-1"])


def test_batches_of_queries_refuse_it() -> None:
    message = "training.thin: found FrequentThinning, but training.batch_of = 'queries'.*use batch_of = 'pairs'"
    with pytest.raises(ConfigError, match=message):
        thinned(batch_of="queries")
    with pytest.raises(ConfigError, match=message):
        parse_run(SCHEMA, set=["training.thin.kind=FrequentThinning", "training.batch_of=queries"])
    assert Training(thin=FREQUENT).thin is FREQUENT


def test_nothing_is_left() -> None:
    with pytest.raises(ConfigError, match=r"training.thin: UniformThinning\(keep=0.001\) keeps 0.4 of the 400"):
        thinned(UniformThinning(keep=0.001))
