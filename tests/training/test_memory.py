"""The memory estimate is arithmetic."""

from __future__ import annotations

import pytest

from tests.stores import make_store
from tests.training.checkerboard import run_of
from twotower.config import Run, Training
from twotower.losses import SampledSoftmax
from twotower.negatives import DNS, IRGAN, SRNS, InBatch, Popularity, Queue, RankWindow, Sampler, Uniform
from twotower.optimisers import RowwiseAdagrad, RowwiseAdam, TableOptimiser
from twotower.towers import TwoTower
from twotower.training import memory
from twotower.training.memory import Memory, estimate, sizes_of

STORE = make_store([(q, i) for q in range(5) for i in range(4)], n_items=100)
"""20 events, tables of 5 and of 100 rows."""


def run(negatives: Sampler, tables: TableOptimiser | None = None, **training: object) -> Run:
    return Run(
        schema=STORE.schema,
        split=run_of(STORE).split,
        towers=TwoTower(dim=8),
        negatives=negatives,
        loss=SampledSoftmax(correction="none"),
        training=Training(tables=tables or RowwiseAdagrad(), **training),  # type: ignore[arg-type]
    )


def test_a_tiny_case() -> None:
    """4 pairs and 6 shared negatives: 4 queries, 10 columns and 10 items, 6 copies of each vector of 8 numbers; 3
    tiles of 2 rows and 10 columns."""
    found = estimate(run(InBatch() + Uniform(6), batch_size=4, tile=2), STORE)
    assert found.tables == 105 * 8 * 4
    assert found.optimiser == 105 * 4
    assert found.events == 20 * 48
    assert found.catalogue == 100 * 8 * 4
    assert found.step == (6 * (4 + 10 + 10) * 8 + 3 * 2 * 10) * 4
    assert found.negatives == 0
    assert found.total == found.tables + found.optimiser + found.events + found.catalogue + found.step


def test_queries_bring_their_items() -> None:
    """3 queries with 20 / 5 = 4 pairs each, beside 6 columns."""
    found = estimate(run(Uniform(6), batch_of="queries", batch_size=3, tile=128), STORE)
    assert found.step == (6 * (3 + 6 + 18) * 8 + 3 * 3 * 6) * 4


def test_a_catalogue_bounds_what_is_distinct() -> None:
    found = estimate(run(Uniform(5000), batch_size=4, tile=2), STORE)
    assert found.step == (6 * (4 + 100 + 100) * 8 + 3 * 2 * 100) * 4


@pytest.mark.parametrize("negatives", [Uniform(5, per_query=True), IRGAN(n=5), DNS(n=5)])
def test_own_negatives(negatives: Sampler) -> None:
    """5 for each of 4 queries: no column, 24 items, tiles with 2 * 5 vectors of 8."""
    found = estimate(run(negatives, batch_size=4, tile=2), STORE)
    assert found.step == (6 * (4 + 0 + 24) * 8 + 3 * 2 * 5 + 2 * 5 * 8) * 4


def test_states_of_optimisers() -> None:
    for optimiser, numbers in ((RowwiseAdagrad(), 1), (RowwiseAdam(), 8 + 2), (RowwiseAdam(beta1=0.0), 2)):
        assert estimate(run(InBatch(), optimiser), STORE).optimiser == 105 * numbers * 4


def test_what_negatives_keep() -> None:
    """Of 20 events, 5 queries, 100 items and vectors of 8; 4 pairs a batch."""
    popular = 100 * (8 + 8 + 4)
    assert estimate(run(InBatch() + Uniform(6)), STORE).negatives == 0
    assert estimate(run(Popularity(7) + DNS(of=Popularity(8, per_query=True))), STORE).negatives == 2 * popular
    assert estimate(run(RankWindow(2), batch_size=4), STORE).negatives == 100 * 8 * 4 + 8
    assert estimate(run(InBatch() + Queue(batches=3), batch_size=4), STORE).negatives == 3 * 4 * (8 + 8 * 4) + 8
    srns = SRNS(pool=10, memory=4, fresh=3, turnover=1)
    assert estimate(run(srns), STORE).negatives == 5 * (10 * 4 + 10 * 5 * 2 + 4 * 4 + 4)


def test_a_queue_of_queries_has_room_for_those_with_most_pairs() -> None:
    """Queries of 9, 3 and 1 items: two bring 12 at most, 2 * 13 / 3 = 8 as a rule."""
    store = make_store([(q, i) for q, n in enumerate((9, 3, 1)) for i in range(n)], n_items=100)
    sizes = sizes_of(run(Queue(), batch_of="queries", batch_size=2), store)
    assert (sizes.batch_items, sizes.most_batch_items) == (8, 12)


def test_tables_of_a_generator_have_an_optimiser() -> None:
    """16 numbers of 5 queries and 100 items, and a bias of each item."""
    found = estimate(run(IRGAN(n=5), RowwiseAdam()), STORE)
    assert found.tables == (105 * 8 + 105 * 16 + 100) * 4
    assert found.optimiser == (105 * (8 + 2) + 105 * (16 + 2) + 100 * (1 + 2)) * 4


def test_a_queue_brings_its_vectors() -> None:
    """4 pairs and the batch: 4 queries, 4 items; 3 batches of 4 columns more, which are no further items."""
    found = estimate(run(InBatch() + Queue(batches=3), batch_size=4, tile=2), STORE)
    assert found.step == (6 * (4 + 16 + 4) * 8 + 3 * 2 * 16) * 4


def test_what_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    mib = 2**20
    found = Memory(tables=5 * mib, optimiser=mib, events=2 * mib, step=3 * mib, negatives=7 * mib, catalogue=4 * mib)
    monkeypatch.setattr(memory, "available_bytes", lambda: 23 * mib)
    assert found.render() == (
        "memory: about 22 MiB of 23 MiB available (tables 5, their optimiser 1, events 2, a step 3, "
        "what negatives keep 7, vectors of the catalogue 4)"
    )
    assert found.warning() is None
    monkeypatch.setattr(memory, "available_bytes", lambda: 21 * mib)
    assert "may not fit" in (found.warning() or "")
    monkeypatch.setattr(memory, "available_bytes", lambda: None)
    assert "available" not in found.render()
    assert found.warning() is None


def test_this_machine_has_some_memory() -> None:
    available = memory.available_bytes()
    assert available is None or available > 2**20
