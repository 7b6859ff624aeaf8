from __future__ import annotations

import json
import math
from collections.abc import Sequence

import pytest
import torch

from twotower.errors import ConfigError, DataError
from twotower.evaluation import METRICS, SLICES, Evaluation, Slices, evaluate, metric_names, paired_difference

from . import oracle
from .oracle import ragged, ranking

N_QUERIES, N_ITEMS = 23, 90


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


class Planted:
    """A random case and what loops say of it. Every query has three relevant items, except 4 and 9 that have none."""

    def __init__(self) -> None:
        rng = torch.Generator().manual_seed(11)
        self.query_QD = torch.randint(-4, 5, (N_QUERIES, 3), generator=rng).float()
        self.item_MD = torch.randint(-4, 5, (N_ITEMS, 3), generator=rng).float()
        self.count_M = torch.cat([torch.randint(0, 6, (80,), generator=rng), torch.arange(10, 110, 10)])
        self.truth, self.seen = [], []
        for query in range(N_QUERIES):
            row = torch.randperm(N_ITEMS, generator=rng).tolist()
            self.truth.append([] if query in (4, 9) else sorted(row[:3]))
            self.seen.append(sorted(row[3:8]))
        self.evaluated = [query for query in range(N_QUERIES) if self.truth[query]]
        self.scores = (self.query_QD @ self.item_MD.T).tolist()

    def run(self, memory_mb: float = 256.0, k: Sequence[int] = (5, 20)) -> Evaluation:
        return evaluate(
            self.query_QD,
            self.item_MD,
            ragged(self.truth),
            item_count_M=self.count_M,
            seen=ragged(self.seen),
            k=k,
            tail_max=3,
            memory_mb=memory_mb,
        )


@pytest.fixture(scope="module")
def planted() -> Planted:
    return Planted()


@pytest.fixture(scope="module")
def result(planted: Planted) -> Evaluation:
    return planted.run()


def expected_recall(scores: list[float], relevant: list[int], seen: list[int], k: int) -> float:
    total = 0.0
    for row in relevant:
        candidates = [score for other, score in enumerate(scores) if other not in seen]
        above, tied = sum(score > scores[row] for score in candidates), candidates.count(scores[row])
        total += min(max((k - above) / tied, 0.0), 1.0)
    return total / len(relevant)


@pytest.mark.parametrize("row", ["model", "popularity", "random"])
@pytest.mark.parametrize("k", [5, 20])
def test_recall_of_each_row(planted: Planted, result: Evaluation, row: str, k: int) -> None:
    for query in planted.evaluated:
        scores = {
            "model": planted.scores[query],
            "popularity": [float(count) for count in planted.count_M],
            "random": [0.0] * N_ITEMS,
        }[row]
        wanted = expected_recall(scores, planted.truth[query], planted.seen[query], k)
        assert result.per_query[row][f"recall@{k}"][query].item() == pytest.approx(wanted, rel=1e-12)
    values = result.per_query[row][f"recall@{k}"][planted.evaluated].tolist()
    assert result.rows[row][f"recall@{k}"] == pytest.approx(mean(values), rel=1e-12)


def test_random_recall_is_k_of_the_candidates(result: Evaluation) -> None:
    assert result.rows["random"]["recall@20"] == pytest.approx(20 / (90 - 5), rel=1e-12)
    assert result.rows["random"]["precision@20"] == pytest.approx(3 / (90 - 5), rel=1e-12)


def test_constant_vectors_get_what_the_random_row_gets(planted: Planted) -> None:
    constant = evaluate(
        torch.ones(N_QUERIES, 3), torch.ones(N_ITEMS, 3), ragged(planted.truth), item_count_M=planted.count_M, k=(5, 20)
    )
    accuracy = [name for name in metric_names((5, 20)) if not name.startswith(("coverage", "popularity"))]
    assert {name: constant.rows["model"][name] for name in accuracy} == pytest.approx(
        {name: constant.rows["random"][name] for name in accuracy}, rel=1e-12, nan_ok=True
    )
    assert constant.rows["model"]["recall@5"] == pytest.approx(5 / 90, rel=1e-12)


@pytest.mark.parametrize("k", [5, 20])
def test_slices(planted: Planted, result: Evaluation, k: int) -> None:
    counts = planted.count_M.tolist()
    falling, held, head_min = sorted(counts, reverse=True), 0, 0
    for count in falling:
        held, head_min = held + count, count
        if held >= 1 / 2 * sum(counts):
            break
    members = {
        "unseen": [row for row in range(N_ITEMS) if counts[row] == 0],
        "tail": [row for row in range(N_ITEMS) if 1 <= counts[row] <= 3],
        "middle": [row for row in range(N_ITEMS) if 3 < counts[row] < head_min],
        "head": [row for row in range(N_ITEMS) if counts[row] >= head_min],
    }
    assert set(members) == set(SLICES)
    for size in result.slices:
        values, n_pairs = [], 0
        for query in planted.evaluated:
            relevant = [row for row in planted.truth[query] if row in members[size.name]]
            n_pairs += len(relevant)
            if relevant:
                values.append(expected_recall(planted.scores[query], relevant, planted.seen[query], k))
        assert (size.n_items, size.n_queries, size.n_pairs) == (len(members[size.name]), len(values), n_pairs)
        assert result.rows["model"][f"recall@{k}_{size.name}"] == pytest.approx(mean(values), rel=1e-12)


@pytest.mark.parametrize("row", ["model", "popularity"])
@pytest.mark.parametrize("k", [5, 20])
def test_coverage_and_popularity_of_the_lists(planted: Planted, result: Evaluation, row: str, k: int) -> None:
    listed: set[int] = set()
    popularity = []
    for query in planted.evaluated:
        scores = planted.scores[query] if row == "model" else planted.count_M.tolist()
        best = ranking(scores, planted.seen[query])[:k]
        listed |= set(best)
        popularity.append(mean([planted.count_M[item].item() for item in best]))
    assert result.rows[row][f"coverage@{k}"] == pytest.approx(len(listed) / N_ITEMS, rel=1e-12)
    assert result.rows[row][f"popularity@{k}"] == pytest.approx(mean(popularity), rel=1e-12)


def test_coverage_and_popularity_of_a_random_order(planted: Planted, result: Evaluation) -> None:
    shares, popularity = [], []
    for row in range(N_ITEMS):
        unlisted = 1.0
        for query in planted.evaluated:
            unlisted *= 1.0 if row in planted.seen[query] else 1 - 20 / (N_ITEMS - 5)
        shares.append(1 - unlisted)
    for query in planted.evaluated:
        counts = planted.count_M.tolist()
        popularity.append(mean([counts[row] for row in range(N_ITEMS) if row not in planted.seen[query]]))
    assert result.rows["random"]["coverage@20"] == pytest.approx(mean(shares), rel=1e-12)
    assert result.rows["random"]["popularity@20"] == pytest.approx(mean(popularity), rel=1e-12)


def test_random_lists_of_the_whole_catalogue_cover_it() -> None:
    out = evaluate(torch.ones(2, 1), torch.ones(3, 1), ragged([[0], [1]]), item_count_M=torch.tensor([1, 2, 3]), k=(5,))
    assert out.rows["random"]["coverage@5"] == 1.0
    assert out.rows["random"]["recall@5"] == 1.0


def test_any_memory_gives_the_same(planted: Planted, result: Evaluation) -> None:
    small = planted.run(memory_mb=0.01)
    for row, values in result.rows.items():
        assert small.rows[row] == pytest.approx(values, rel=1e-12, nan_ok=True)


def test_several_k_are_one_k_each(planted: Planted, result: Evaluation) -> None:
    alone = planted.run(k=(5,))
    for row, values in alone.rows.items():
        assert values == pytest.approx({name: result.rows[row][name] for name in metric_names((5,))}, nan_ok=True)


def test_queries_without_truth_are_left_out_and_counted(planted: Planted, result: Evaluation) -> None:
    assert (result.n_queries, result.n_queries_without_truth, result.n_pairs) == (21, 2, 63)
    for value_Q in result.per_query["model"].values():
        assert len(value_Q) == N_QUERIES
        assert value_Q[[4, 9]].isnan().all()


def test_relevant_items_that_were_seen_are_left_out_and_counted() -> None:
    # Query 0 has 0 and 1 to find and has seen 0 (twice in its list); query 1 has only a seen one.
    out = evaluate(
        torch.ones(2, 1),
        torch.tensor([[3.0], [2.0], [1.0]]),
        ragged([[0, 1], [2]]),
        item_count_M=torch.tensor([9, 1, 1]),
        seen=ragged([[0, 0], [2]]),
        k=(1,),
    )
    assert (out.n_queries, out.n_queries_without_truth, out.n_pairs, out.n_pairs_seen) == (1, 1, 1, 2)
    assert out.metric("recall@1") == 1.0
    assert out.rows["random"]["recall@1"] == 1 / 2


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_reaches_the_report(planted: Planted, name: str) -> None:
    """Distinct scores, so the loop needs no orders of ties."""
    score_QM = torch.stack(
        [torch.randperm(N_ITEMS, generator=torch.Generator().manual_seed(q)) for q in range(3)]
    ).float()
    truth = [[1, 2], [3], [4, 5, 6, 7]]
    out = evaluate(
        torch.eye(3), score_QM.T.contiguous(), ragged(truth), item_count_M=planted.count_M, k=(30,), baselines=False
    )
    wanted = []
    for scores, relevant in zip(score_QM.tolist(), truth, strict=True):
        hits = [row in relevant for row in ranking(scores)]
        wanted.append(oracle.METRICS[name](hits, len(relevant), 30))
    assert list(out.rows) == ["model"]
    assert out.metric(f"{name}@30") == pytest.approx(mean(wanted), rel=1e-12)


@pytest.mark.parametrize("row", ["model", "popularity", "random"])
def test_weighted_recall_stands_beside_where_truth_has_weights(planted: Planted, row: str) -> None:
    """Weights of 1, 2 and 4 by turns; the first relevant item of query 0 was seen and takes its weight along."""
    weights = [[float(2 ** ((query + at) % 3)) for at in range(len(rows))] for query, rows in enumerate(planted.truth)]
    seen = [sorted([*rows, planted.truth[0][0]]) if query == 0 else rows for query, rows in enumerate(planted.seen)]
    out = evaluate(
        planted.query_QD,
        planted.item_MD,
        ragged(planted.truth, weights),
        item_count_M=planted.count_M,
        seen=ragged(seen),
        k=(20,),
        memory_mb=0.05,
    )
    values = []
    for query in planted.evaluated:
        scores = {
            "model": planted.scores[query],
            "popularity": [float(count) for count in planted.count_M],
            "random": [0.0] * N_ITEMS,
        }[row]
        found = total = 0.0
        for item, weight in zip(planted.truth[query], weights[query], strict=True):
            if item not in seen[query]:
                found += weight * expected_recall(scores, [item], seen[query], 20)
                total += weight
        values.append(found / total)
    assert out.per_query[row]["weighted_recall@20"][planted.evaluated].tolist() == pytest.approx(values, rel=1e-12)
    assert out.rows[row]["weighted_recall@20"] == pytest.approx(mean(values), rel=1e-12)
    assert list(out.rows[row]) == list(metric_names((20,), weighted=True))


def test_weights_change_no_other_metric(planted: Planted, result: Evaluation) -> None:
    truth = ragged(planted.truth, [[3.0] * len(rows) for rows in planted.truth])
    weighted = evaluate(
        planted.query_QD,
        planted.item_MD,
        truth,
        item_count_M=planted.count_M,
        seen=ragged(planted.seen),
        k=(5, 20),
        tail_max=3,
    )
    for row, values in result.rows.items():
        assert not any(name.startswith("weighted") for name in values)
        found = {name: value for name, value in weighted.rows[row].items() if not name.startswith("weighted")}
        assert found == pytest.approx(values, rel=0, nan_ok=True)


@pytest.mark.parametrize("weight", [-1.0, math.nan, math.inf])
def test_a_weight_that_is_none_is_refused(weight: float) -> None:
    with pytest.raises(DataError, match="truth: the weight of row 1 of query 0 is"):
        evaluate(
            torch.ones(1, 1), torch.ones(2, 1), ragged([[0, 1]], [[1.0, weight]]), item_count_M=torch.tensor([1, 1])
        )


def test_each_relevant_item_has_a_weight_or_none_has() -> None:
    with pytest.raises(DataError, match="truth: found 1 weights of 2 rows"):
        evaluate(torch.ones(1, 1), torch.ones(2, 1), ragged([[0, 1]], [[1.0]]), item_count_M=torch.tensor([1, 1]))


def test_what_can_not_be_evaluated_is_refused() -> None:
    query_QD, item_MD, count_M = torch.ones(1, 1), torch.ones(2, 1), torch.tensor([1, 1])
    with pytest.raises(DataError, match="truth: row 2 of query 0"):
        evaluate(query_QD, item_MD, ragged([[2]]), item_count_M=count_M)
    with pytest.raises(DataError, match="seen: row 7 of query 0"):
        evaluate(query_QD, item_MD, ragged([[0]]), seen=ragged([[7]]), item_count_M=count_M)
    with pytest.raises(DataError, match="given twice"):
        evaluate(query_QD, item_MD, ragged([[0, 0]]), item_count_M=count_M)
    with pytest.raises(DataError, match="none of the 1 queries"):
        evaluate(query_QD, item_MD, ragged([[1]]), seen=ragged([[1]]), item_count_M=count_M)
    with pytest.raises(DataError, match=r"item_count_M: found \[3\] counts"):
        evaluate(query_QD, item_MD, ragged([[0]]), item_count_M=torch.ones(3))
    with pytest.raises(DataError, match="item_count_M: a count is negative"):
        evaluate(query_QD, item_MD, ragged([[0]]), item_count_M=torch.tensor([1, -1]))
    with pytest.raises(DataError, match="item vectors: 1 of 2 are not finite, the first is row 1"):
        evaluate(query_QD, torch.tensor([[1.0], [math.nan]]), ragged([[0]]), item_count_M=count_M)
    with pytest.raises(ConfigError, match="k is"):
        evaluate(query_QD, item_MD, ragged([[0]]), item_count_M=count_M, k=(0, 5))
    with pytest.raises(ConfigError, match=r"head_share is 1\.5"):
        evaluate(query_QD, item_MD, ragged([[0]]), item_count_M=count_M, head_share=1.5)


def test_items_with_as_many_events_are_in_one_slice() -> None:
    # 60 events; half is 30: 20 + 10 would do, and the other items with 10 come along.
    slices = Slices.of(torch.tensor([20, 10, 10, 10, 6, 4, 0]), tail_max=5, head_share=0.5)
    assert [SLICES[number] for number in slices.slice_M] == ["head"] * 4 + ["middle", "tail", "unseen"]
    assert slices.events() == {"head": "10 or more", "middle": "6 to 9", "tail": "1 to 5", "unseen": "0"}


def test_head_is_the_smallest_set_that_holds_its_share() -> None:
    # 20 events; one item holds half of them.
    assert Slices.of(torch.tensor([6, 10, 4]), tail_max=3, head_share=0.5).head_min == 10
    assert Slices.of(torch.tensor([6, 10, 4]), tail_max=3, head_share=0.51).head_min == 6


def test_tail_goes_before_head() -> None:
    slices = Slices.of(torch.tensor([9, 8, 1, 0]), tail_max=50, head_share=0.5)
    assert [SLICES[number] for number in slices.slice_M] == ["tail", "tail", "tail", "unseen"]


def test_json_and_table(planted: Planted) -> None:
    out = evaluate(torch.ones(1, 1), torch.ones(2, 1), ragged([[0]]), item_count_M=torch.tensor([60, 2]), k=(1,))
    tree = json.loads(out.to_json())
    assert tree["rows"]["model"]["recall@1"] == 1 / 2
    assert tree["rows"]["model"]["recall@1_unseen"] is None
    assert tree["slices"][0] == {"name": "head", "events": "60 or more", "n_items": 1, "n_queries": 1, "n_pairs": 1}
    lines = out.table().splitlines()
    assert lines[0].split() == ["model", "popularity", "random"]
    assert lines[1].split() == ["recall@1", "0.5000", "1.0000", "0.5000"]
    assert [line.split()[1:] for line in lines if line.startswith("recall@1_unseen")] == [["-", "-", "-"]]


def test_an_unknown_metric_gets_a_hint(result: Evaluation) -> None:
    with pytest.raises(ConfigError, match="did you mean recall@20"):
        result.metric("recal@20")


def test_paired_difference() -> None:
    nan = math.nan
    a, b = torch.tensor([0.5, nan, 1.0, 0.0, 1.0]), torch.tensor([0.25, nan, 0.5, 0.25, 0.5])
    out = paired_difference(a, b)
    # Differences 1/4, 1/2, -1/4, 1/2: mean 1/4, squared deviations 0, 1/16, 1/4, 1/16.
    assert out.mean == pytest.approx(1 / 4)
    assert out.standard_error == pytest.approx(math.sqrt((1 / 16 + 1 / 4 + 1 / 16) / 3 / 4))
    assert out.n_queries == 4
    assert math.isnan(paired_difference(a[:1], b[:1]).standard_error)
    with pytest.raises(DataError, match="1 queries have a value on one side only"):
        paired_difference(a, torch.ones(5))
    with pytest.raises(DataError, match="a has 5 queries and b 4"):
        paired_difference(a, b[:4])
    with pytest.raises(DataError, match="no query has a value"):
        paired_difference(a[1:2], b[1:2])
