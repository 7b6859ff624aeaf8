"""Evaluation where items come and go: loops over the items that are live for each question."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
import torch

from twotower.errors import DataError
from twotower.evaluation import Evaluation, evaluate, top_k
from twotower.records import LiveAt, Lives

from .oracle import ragged, ranking

N_QUERIES, N_ITEMS = 9, 12


class Living:
    """A random case; each question has a period, a moment if ``days`` is 0."""

    def __init__(self, days: int, seed: int = 3) -> None:
        rng = torch.Generator().manual_seed(seed)
        self.query_QD = torch.randint(-4, 5, (N_QUERIES, 3), generator=rng).float()
        self.item_MD = torch.randn(N_ITEMS, 3, generator=rng)
        self.count_M = torch.randint(0, 9, (N_ITEMS,), generator=rng)
        self.since = torch.randint(0, 8, (N_ITEMS,), generator=rng)
        self.until = self.since + torch.randint(1, 9, (N_ITEMS,), generator=rng)
        self.first = torch.randint(2, 7, (N_QUERIES,), generator=rng)
        self.last = self.first + days
        self.since[5], self.until[5] = -(2**63), 2**63 - 1  # always there
        self.since[7] = self.until[7] = 2**63 - 1  # a row without an item
        self.live = LiveAt(
            lives=Lives(since_us_M=self.since, until_us_M=self.until), first_us_n=self.first, last_us_n=self.last
        )
        row = [torch.randperm(N_ITEMS, generator=rng).tolist() for _ in range(N_QUERIES)]
        self.truth, self.seen = [sorted(r[:4]) for r in row], [sorted(r[4:6]) for r in row]
        self.candidates = [
            [i for i in range(N_ITEMS) if i not in self.seen[q] and self.is_live(i, q)] for q in range(N_QUERIES)
        ]
        self.relevant = [[i for i in self.truth[q] if i in self.candidates[q]] for q in range(N_QUERIES)]
        self.asked = [q for q in range(N_QUERIES) if self.relevant[q]]

    def is_live(self, item: int, query: int) -> bool:
        days = range(int(self.first[query]), int(self.last[query]) + 1)
        return any(int(self.since[item]) <= day < int(self.until[item]) for day in days)

    def run(self, memory_mb: float = 256.0) -> Evaluation:
        return evaluate(
            self.query_QD,
            self.item_MD,
            ragged(self.truth),
            item_count_M=self.count_M,
            seen=ragged(self.seen),
            live=self.live,
            k=(2, 5),
            tail_max=3,
            batch_recall=4,
            memory_mb=memory_mb,
        )

    def mean_recall(self, scores: list[list[float]], k: int) -> float:
        """Ties are broken at random."""
        found = []
        for q in self.asked:
            mine = [scores[q][i] for i in self.candidates[q]]
            share = [
                min(max((k - sum(s > scores[q][i] for s in mine)) / mine.count(scores[q][i]), 0.0), 1.0)
                for i in self.relevant[q]
            ]
            found.append(sum(share) / len(share))
        return sum(found) / len(found)


@pytest.fixture(params=[0, 2], ids=["moments", "periods"])
def living(request: pytest.FixtureRequest) -> Living:
    return Living(request.param)


def test_the_best_are_the_best_of_the_live(living: Living) -> None:
    scores = (living.query_QD @ living.item_MD.T).tolist()
    for memory_mb in (64.0, 0.001):
        found = top_k(living.query_QD, living.item_MD, N_ITEMS, live=living.live, memory_mb=memory_mb)
        for q, rows in enumerate(found.row_Qk.tolist()):
            want = ranking(scores[q], [i for i in range(N_ITEMS) if not living.is_live(i, q)])
            assert rows == want + [-1] * (N_ITEMS - len(want))


def test_metrics_are_those_of_a_loop_over_the_live(living: Living) -> None:
    result, tiled = living.run(), living.run(memory_mb=0.001)
    by_row = {
        "model": (living.query_QD @ living.item_MD.T).tolist(),
        "popularity": [living.count_M.tolist()] * N_QUERIES,
        "random": [[0.0] * N_ITEMS] * N_QUERIES,
    }
    for name, scores in by_row.items():
        for k in (2, 5):
            assert result.rows[name][f"recall@{k}"] == pytest.approx(living.mean_recall(scores, k)), (name, k)
        assert tiled.rows[name] == pytest.approx(result.rows[name], nan_ok=True)


def test_what_is_not_live_is_left_out_and_counted(living: Living) -> None:
    result = living.run()
    gone = sum(not living.is_live(i, q) for q in range(N_QUERIES) for i in living.truth[q])
    assert gone > 3
    assert (result.n_pairs_gone, result.n_pairs_seen) == (gone, 0)
    assert result.n_pairs == sum(map(len, living.relevant))
    assert result.n_queries == len(living.asked)
    candidates = {i for i in range(N_ITEMS) if any(living.is_live(i, q) for q in range(N_QUERIES))}
    assert 7 not in candidates
    assert result.n_items == len(candidates) == sum(size.n_items for size in result.slices)
    assert f"{gone} relevant items left out that were not live" in result.table()
    assert f'"n_pairs_gone": {gone}' in result.to_json()


def test_coverage_and_popularity_of_a_random_order_are_those_of_the_live(living: Living) -> None:
    """Of k places, by trying every set of k candidates."""
    row, k = living.run().rows["random"], 2
    candidates = {i for i in range(N_ITEMS) if any(living.is_live(i, q) for q in range(N_QUERIES))}
    unlisted, popularity = dict.fromkeys(candidates, 1.0), []
    for q in living.asked:
        sets = list(combinations(living.candidates[q], min(k, len(living.candidates[q]))))
        for item in candidates:
            unlisted[item] *= sum(item not in some for some in sets) / len(sets)
        counts = [living.count_M[i].item() for i in living.candidates[q]]
        popularity.append(sum(counts) / len(counts))
    assert row[f"coverage@{k}"] == pytest.approx(sum(1 - p for p in unlisted.values()) / len(candidates))
    assert row[f"popularity@{k}"] == pytest.approx(sum(popularity) / len(popularity))


def test_a_batch_holds_no_candidate_that_is_not_live() -> None:
    """Two pairs a batch: of query 0 the item scores below the other, which is not live for it."""
    lives = Lives(since_us_M=torch.tensor([0, 5]), until_us_M=torch.tensor([9, 9]))
    found = {}
    for moment in (4, 5):
        time_us = torch.tensor([moment, 5])
        result = evaluate(
            torch.tensor([[1.0], [1.0]]),
            torch.tensor([[1.0], [2.0]]),
            ragged([[0], [1]]),
            item_count_M=torch.tensor([1, 1]),
            live=LiveAt(lives=lives, first_us_n=time_us, last_us_n=time_us),
            k=(1,),
            batch_recall=2,
        )
        assert result.batch_recall is not None
        found[moment] = result.batch_recall.rows["model"]["batch_recall@1"]
    assert found == {4: 1.0, 5: 0.5}


def test_nothing_that_is_live_to_ask_for_is_an_error() -> None:
    lives = Lives(since_us_M=torch.tensor([0, 5]), until_us_M=torch.tensor([9, 9]))
    with pytest.raises(DataError, match="that it has not seen and that is live"):
        evaluate(
            torch.ones(1, 1),
            torch.ones(2, 1),
            ragged([[1]]),
            item_count_M=torch.ones(2),
            live=LiveAt.throughout(lives, 3, 4, 1),
        )


def test_everything_live_is_as_without(living: Living) -> None:
    lives = Lives(since_us_M=torch.full((N_ITEMS,), -(2**63)), until_us_M=torch.full((N_ITEMS,), 2**63 - 1))
    arguments = (living.query_QD, living.item_MD, ragged(living.truth))
    always, plain = (
        evaluate(*arguments, item_count_M=living.count_M, seen=ragged(living.seen), live=live, k=(2, 5))
        for live in (LiveAt.throughout(lives, 0, 9, N_QUERIES), None)
    )
    assert not math.isnan(plain.rows["model"]["recall@2"])
    assert {name: pytest.approx(row, nan_ok=True) for name, row in plain.rows.items()} == always.rows
    assert (always.n_items, always.n_pairs_gone) == (N_ITEMS, 0)
