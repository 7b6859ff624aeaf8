"""The memory estimate is arithmetic."""

from __future__ import annotations

import pytest

from tests.stores import make_store
from tests.training.checkerboard import run_of
from twotower.config import Run, Training
from twotower.negatives import (
    IRGAN,
    Conditional,
    Impressions,
    InBatch,
    Popularity,
    Rejection,
    Rotations,
    Sampler,
    Uniform,
    Unknown,
)
from twotower.optimisers import RowwiseAdagrad, RowwiseAdam, TableOptimiser
from twotower.towers import TwoTower
from twotower.training import memory
from twotower.training.memory import Memory, candidates, estimate

STORE = make_store([(q, i) for q in range(5) for i in range(4)], n_items=100)
"""20 events, tables of 5 and of 100 rows."""


def run(negatives: Sampler, tables: TableOptimiser | None = None, **training: object) -> Run:
    return Run(
        schema=STORE.schema,
        split=run_of(STORE).split,
        towers=TwoTower(dim=8),
        negatives=negatives,
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
    assert found.total == found.tables + found.optimiser + found.events + found.catalogue + found.step


def test_queries_bring_their_items() -> None:
    """3 queries with 20 / 5 = 4 pairs each."""
    found = estimate(run(Uniform(6), batch_of="queries", batch_size=3, tile=128), STORE)
    assert found.step == (6 * (3 + 18 + 18) * 8 + 3 * 3 * 18) * 4


def test_a_catalogue_bounds_what_is_distinct() -> None:
    found = estimate(run(Uniform(5000), batch_size=4, tile=2), STORE)
    assert found.step == (6 * (4 + 100 + 100) * 8 + 3 * 2 * 100) * 4


@pytest.mark.parametrize("negatives", [Uniform(5, per_query=True), IRGAN(n=5)])
def test_own_negatives(negatives: Sampler) -> None:
    """5 for each of 4 queries: 4 columns, 24 items, tiles with 2 * 5 vectors of 8."""
    found = estimate(run(negatives, batch_size=4, tile=2), STORE)
    assert found.step == (6 * (4 + 4 + 24) * 8 + 3 * 2 * (4 + 5) + 2 * 5 * 8) * 4


def test_states_of_optimisers() -> None:
    for optimiser, numbers in ((RowwiseAdagrad(), 1), (RowwiseAdam(), 8 + 2), (RowwiseAdam(beta1=0.0), 2)):
        assert estimate(run(InBatch(), optimiser), STORE).optimiser == 105 * numbers * 4


def test_candidates_of_mixtures() -> None:
    mixture = InBatch() + Uniform(6) + Popularity(7) + Uniform(5, per_query=True)
    assert candidates(mixture) == (13, 5)
    assert candidates(InBatch()) == (0, 0)
    assert candidates(Rotations(4) + Uniform(3)) == (3, 4)
    own = Conditional(5, by="country") + Unknown(of=Uniform(6))
    assert candidates(own + Rejection(of=Uniform(2), target=Popularity(7))) == (7, 11)
    assert candidates(Impressions(4) + Uniform(3)) == (3, 4)


def test_what_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    mib = 2**20
    found = Memory(tables=5 * mib, optimiser=mib, events=2 * mib, step=3 * mib, catalogue=4 * mib)
    monkeypatch.setattr(memory, "available_bytes", lambda: 16 * mib)
    assert found.render() == (
        "memory: about 15 MiB of 16 MiB available (tables 5, their optimiser 1, events 2, a step 3, "
        "vectors of the catalogue 4)"
    )
    assert found.warning() is None
    monkeypatch.setattr(memory, "available_bytes", lambda: 14 * mib)
    assert "may not fit" in (found.warning() or "")
    monkeypatch.setattr(memory, "available_bytes", lambda: None)
    assert "available" not in found.render()
    assert found.warning() is None


def test_this_machine_has_some_memory() -> None:
    available = memory.available_bytes()
    assert available is None or available > 2**20
