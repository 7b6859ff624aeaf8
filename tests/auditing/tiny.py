"""A small store with popular items, and audits of it without files."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import islice
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.stores import make_store
from twotower.auditing import Audit, audit
from twotower.auditing.law import Law, LawTally
from twotower.auditing.subject import Step, stream, subject_of
from twotower.config import Data, Evaluation, Run, Training
from twotower.data.splits import GivenSplit
from twotower.data.store import Store
from twotower.losses import SampledSoftmax
from twotower.negatives import Look, Sampler, propose
from twotower.records import Batch, Block
from twotower.towers import TwoTower
from twotower.training.step import CurrentModel

N_QUERIES, N_ITEMS, N_EVENTS = 200, 60, 2000


class OfEachQuery(Sampler):
    """Each query is offered items of its own half of the catalogue, even rows or odd ones."""

    density = "exact"
    per_query_law = True

    n: int = 8
    off: float = 1.0

    def draw(self, batch: Batch, look: Look, rng: torch.Generator) -> tuple[Block, ...]:
        row_BK = 2 * torch.randint(N_ITEMS // 2, (len(batch.query_B), self.n), generator=rng)
        return (Block.of(row_BK + batch.query_B[:, None] % 2),)

    def log_count(self, row: Tensor, batch: Batch, look: Look) -> Tensor:
        row_BN = row.expand(len(batch.query_B), -1) if row.dim() == 1 else row
        own_BN = row_BN % 2 == batch.query_B[:, None] % 2
        count_BN = torch.where(own_BN, self.n * 2 / N_ITEMS, 0.0)
        return torch.where(row_BN < 10, self.off * count_BN, count_BN).log()


@cache
def popular_store() -> Store:
    """2000 events, item i in proportion to 1 / (i + 3); the last items have hardly any."""
    rng = np.random.default_rng(1)
    weight = 1 / (np.arange(N_ITEMS) + 3.0)
    item = rng.choice(N_ITEMS, N_EVENTS, p=weight / weight.sum())
    query = rng.integers(0, N_QUERIES, N_EVENTS)
    store = make_store(list(zip(query.tolist(), item.tolist(), strict=True)), n_queries=N_QUERIES, n_items=N_ITEMS)
    names = SimpleNamespace(ids_of=lambda rows: [f"i{row}" for row in rows])
    return replace(store, item_vocabulary=cast(Any, names), split=np.zeros(N_EVENTS, np.int8))


def run_with(sampler: Sampler, *, correction: Any = "negatives", batch_size: int = 64) -> Run:
    """Matrix factorisation of the store's ids."""
    store = popular_store()
    return Run(
        schema=store.schema,
        data=Data(interactions=("none.parquet",), valid=("none.parquet",)),
        split=GivenSplit(),
        towers=TwoTower(dim=8),
        negatives=sampler,
        loss=SampledSoftmax(temperature=0.3, correction=correction),
        training=Training(batch_size=batch_size, threads=1, metric="recall@10"),
        evaluation=Evaluation(k=(10,)),
    )


def law_of(sampler: Sampler, *, batches: int = 100, seed: int = 0, correction: Any = "none") -> Law:
    """The law alone, without vectors."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("twotower.auditing.subject.open_or_ingest", lambda run, *, quiet: popular_store())
        subject = subject_of(run_with(sampler, correction=correction), None, seed=seed, quiet=True)
    tally, rng = LawTally(subject, batches, seed), torch.Generator().manual_seed(seed)
    for number, batch in enumerate(islice(stream(subject.batches), batches), start=1):
        look = CurrentModel(subject.model, torch.zeros(len(batch.query_B), 8), number)
        drawn = propose(subject.model.negatives, batch, look, rng)
        tally.add(Step(batch=batch, candidates=drawn, encoded=cast(Any, None), look=look, notes={}, seconds=None))
    return tally.result()


def audited(
    sampler: Sampler,
    *,
    run: Run | None = None,
    correction: Any = "negatives",
    batches: int = 6,
    queries: int = 4,
    seed: int = 0,
    batch_size: int = 64,
) -> Audit:
    """An audit on the store at hand."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("twotower.auditing.subject.open_or_ingest", lambda run, *, quiet: popular_store())
        run = run or run_with(sampler, correction=correction, batch_size=batch_size)
        return audit(run, batches=batches, queries=queries, seed=seed, quiet=True)
