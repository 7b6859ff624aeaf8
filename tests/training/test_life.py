"""A run on a catalogue that comes and goes, from files to recommendations; and the gradient that it follows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from tests.stores import make_store
from twotower.config import Data, Evaluation, Run, Training, load_run
from twotower.data.batches import TrainingBatches
from twotower.data.splits import TimeSplit
from twotower.data.store import Store
from twotower.frequency import ExactFrequency
from twotower.losses import BPR, SampledSoftmax, Symmetric
from twotower.losses.symmetric import turned
from twotower.negatives import InBatch, Popularity, Sampler, Uniform, propose
from twotower.optimisers import RowwiseAdagrad
from twotower.part import Facts
from twotower.records import Batch, Candidates, Encoded, Items, LiveAt, Lives, Ragged
from twotower.schema import Id, Interactions, Life, Schema
from twotower.scoring import encode
from twotower.towers import TwoTower
from twotower.training import Retriever, evaluate, train

DAY_S = 86_400
USERS, SEASON = 12, 10
"""Days of a season; in each every user meets half of the items, that come with the season and go with it."""

SCHEMA = Schema(
    interactions=Interactions(query="user", item="item", time="t"),
    query={"user": Id(column="user")},
    item={"item": Id(column="item")},
    life=Life(since="from", until="to"),
)


def season_of(item: int) -> int:
    """Items 0 to 11 are of the first season, 12 to 23 of the second, and so on; 36 to 39 come when all is over."""
    return item // 12


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("data")
    events = [
        (season * SEASON + day, user, season * 12 + item)
        for season in range(3)
        for user in range(USERS)
        for day, item in enumerate(range(user % 2, 12, 2))
        if day < 4 + (user % 3 > 0)
    ]
    pq.write_table(
        pa.table(
            {
                "user": [f"u{user}" for _, user, _ in events],
                "item": [f"i{item}" for _, _, item in events],
                "t": [day * DAY_S for day, _, _ in events],
            }
        ),
        folder / "events.parquet",
    )
    items = range(40)
    pq.write_table(
        pa.table(
            {
                "item": [f"i{item}" for item in items],
                "from": [season_of(item) * SEASON * DAY_S for item in items],
                "to": [(season_of(item) + 1) * SEASON * DAY_S for item in items],
            }
        ),
        folder / "items.parquet",
    )
    return Run(
        schema=SCHEMA,
        data=Data(
            interactions=(str(folder / "events.parquet"),),
            items=(str(folder / "items.parquet"),),
            store=str(folder / "store"),
        ),
        split=TimeSplit(valid_from="1970-01-21", test_from="1970-01-23"),
        towers=TwoTower(dim=4),
        negatives=InBatch() + Uniform(16),
        loss=SampledSoftmax(temperature=0.2),
        training=Training(batch_size=16, epochs=4, metric="recall@2", tables=RowwiseAdagrad(lr=0.2)),
        evaluation=Evaluation(k=(2, 20)),
    )


@pytest.fixture(scope="module")
def model(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("out") / "model"
    train(run, folder, quiet=True)
    return folder


def test_a_run_file_says_that_items_come_and_go(model: Path) -> None:
    assert load_run(model / "run.toml").schema == SCHEMA
    assert "[schema.life]" in (model / "run.toml").read_text(encoding="utf-8")


def test_only_what_is_live_at_the_end_is_recommended(model: Path) -> None:
    retriever = Retriever.open(model)
    for user in range(USERS):
        found = [r.item for r in retriever.recommend({"user": f"u{user}"}, k=40, filter_seen=False)]
        assert sorted(found) == [f"i{item}" for item in range(24, 36)]
        seen = {f"i{24 + item}" for day, item in enumerate(range(user % 2, 12, 2)) if day < 4 + (user % 3 > 0)}
        found = [r.item for r in retriever.recommend({"user": f"u{user}"}, k=40)]
        assert sorted(found) == sorted({f"i{item}" for item in range(24, 36)} - seen)


def test_the_candidates_of_an_evaluation_are_live_in_its_time(model: Path) -> None:
    """A random order of twelve items finds as many as it must, for the model and the rows beside it."""
    result = evaluate(model)
    assert result.n_items == 12
    assert result.n_pairs_gone == 0
    assert result.rows["random"]["recall@20"] == 1.0
    assert result.rows["model"]["recall@20"] == result.rows["popularity"]["recall@20"] == 1.0


# ---------------------------------------------------------------- what a step is taught

M, D = 40, 5


def living_store() -> Store:
    """Items live for some days of twenty; each event's item is live at its moment, but for the last event."""
    rng = np.random.default_rng(1)
    since = rng.integers(0, 12, M)
    until = since + rng.integers(3, 15, M)
    time_us = np.sort(rng.integers(0, 20, 300))
    events = [(int(rng.integers(0, 30)), int(rng.choice(np.flatnonzero((since <= t) & (t < until))))) for t in time_us]
    since[events[-1][1]], until[events[-1][1]] = 0, 1
    store = make_store(events, time_us=time_us.tolist(), n_queries=30, n_items=M)
    return replace(store, schema=replace(store.schema, life=Life()), since_us=since, until_us=until)


class Look:
    """Exact presence; no vectors are asked for."""

    query_BD = torch.empty(0)
    step = 1

    def __init__(self, frequency: ExactFrequency) -> None:
        self.log_presence = frequency.log_presence

    def items(self, row: Tensor) -> Tensor:
        raise AssertionError("no sampler here needs vectors")

    layers = items


@pytest.mark.parametrize("sampler", [Uniform(200), Uniform(60) + Popularity(200, smoothing=1.0)], ids=["one", "two"])
def test_the_mean_gradient_is_that_of_the_full_softmax_over_the_live(sampler: Sampler) -> None:
    """Of each line over the items that live at its moment and that its query does not know, and its positive."""
    store = living_store()
    batches = TrainingBatches(store, np.arange(store.n_events), batch_of="pairs", batch_size=16)
    sampler.setup(batches.facts())
    rng = torch.Generator().manual_seed(0)
    index = torch.tensor([5, 90, 160, 250])
    batch = batches.at(index)
    score_BM = torch.randn(len(index), M, generator=rng, dtype=torch.float64)
    mean_BM, n_trials = torch.zeros_like(score_BM), 80
    for _ in range(n_trials):
        mean_BM += gradient(score_BM, batch, propose(sampler, batch, Look(ExactFrequency()), rng)) / n_trials
    for line, event in enumerate(index.tolist()):
        t, own = int(store.time_us[event]), int(store.item_row[event])  # type: ignore[index]
        known = {int(store.item_row[e]) for e in range(store.n_events)
                 if store.query_row[e] == store.query_row[event] and store.time_us[e] <= t}  # type: ignore[index]  # fmt: skip
        live = {i for i in range(M) if store.since_us[i] <= t < store.until_us[i]}  # type: ignore[index]
        compared = sorted((live - known) | {own})
        assert len(live) < M - 10
        want = torch.zeros(M, dtype=torch.float64)
        want[compared] = score_BM[line, compared].softmax(0)
        want[own] -= 1
        error = float((mean_BM[line] - want).abs().sum() / want.abs().sum())
        assert error < 0.08, (line, error)
        assert not bool(mean_BM[line, [i for i in range(M) if i not in compared]].any())


def gradient(score_BM: Tensor, batch: Batch, drawn: Candidates) -> Tensor:
    """[B, M] of the sum of the losses, by the scores: a query's vector is a unit vector, an item's its scores."""
    item_MD = score_BM.T.contiguous().requires_grad_()
    encoded = encode(
        torch.eye(len(score_BM), dtype=torch.float64), lambda row: item_MD.index_select(0, row), batch, drawn
    )
    loss, _ = SampledSoftmax(temperature=1.0)(encoded)
    (found,) = torch.autograd.grad(loss, item_MD)
    return found.T * float(encoded.total_weight)


def test_a_positive_outside_its_life_is_still_learned() -> None:
    store = living_store()
    batches = TrainingBatches(store, np.arange(store.n_events), batch_of="pairs", batch_size=16)
    sampler = InBatch() + Uniform(50)
    frequency = ExactFrequency()
    for part in (sampler, frequency):
        part.setup(batches.facts())
    batch = batches.at(torch.tensor([store.n_events - 1, 200]))
    own = int(batch.item_P[0])
    assert bool(batch.live.gone(torch.tensor([own]))[0])  # type: ignore[union-attr]
    item_MD = torch.randn(M, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    drawn = propose(sampler, batch, Look(frequency), torch.Generator())
    query_BD = item_MD[:2]
    for loss in (SampledSoftmax(), SampledSoftmax.yi2019(), BPR()):
        leaf = item_MD.clone().requires_grad_()
        value, notes = loss(encode(query_BD, lambda row, leaf=leaf: leaf[row], batch, drawn))
        value.backward()
        assert leaf.grad is not None
        assert bool(notes["alive"].all())
        assert float(notes["loss"].min()) >= 0
        assert float((leaf.grad[own] * query_BD[0]).sum()) < 0


def test_seen_from_an_item_only_queries_that_ask_in_its_life_are_candidates() -> None:
    """Scores of dead pairs have no gradient, either way round."""
    lives = Lives(since_us_M=torch.tensor([0, 3, 0]), until_us_M=torch.tensor([9, 9, 4]))
    time_us = torch.tensor([1, 5, 3])
    batch = Batch(
        query={},
        query_B=torch.arange(3),
        item_P=torch.tensor([0, 1, 2]),
        of_P=torch.arange(3),
        weight_P=torch.ones(3),
        known=Ragged(offset=torch.arange(4), value=torch.arange(3)),
        live=LiveAt(lives=lives, first_us_n=time_us, last_us_n=time_us),
    )
    gone = {(0, 1), (1, 2)}
    score_33 = torch.randn(3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    loss = Symmetric(of=SampledSoftmax(temperature=1.0, correction="none"), weight=0.25)
    facts = Facts(
        n_items=3, n_queries=3, item_count_M=torch.ones(3), batch_size=3, batch_of="pairs",
        query_count_Q=torch.ones(3, dtype=torch.int64),
    )  # fmt: skip
    for part in (loss, sampler := InBatch(), frequency := ExactFrequency()):
        part.setup(facts)
    leaf = score_33.T.contiguous().requires_grad_()
    items: Items = lambda row: leaf[row]  # noqa: E731
    drawn = propose(sampler, batch, Look(frequency), torch.Generator())
    encoded: Encoded = encode(torch.eye(3, dtype=torch.float64), items, batch, drawn)
    value, _ = loss(encoded)
    there, back = [], []
    for own in range(3):
        items_of = [i for i in range(3) if (own, i) not in gone]
        queries_of = [q for q in range(3) if (q, own) not in gone]
        there.append(score_33[own, own] - torch.logsumexp(score_33[own, items_of], 0))
        back.append(score_33[own, own] - torch.logsumexp(score_33[queries_of, own], 0))
    want = -(0.75 * sum(there) + 0.25 * sum(back)) / 3
    assert value.item() == pytest.approx(float(want))
    assert turned(encoded, loss.log_presence_Q).batch.live is not None


def test_without_a_life_batches_carry_nothing() -> None:
    store = replace(living_store(), since_us=None, until_us=None)
    batches = TrainingBatches(store, np.arange(store.n_events), batch_of="pairs", batch_size=16)
    assert batches.at(torch.arange(4)).live is None
    assert len(batches.facts().live_M) == 0
