"""Recall among the items of a batch: fractions made by hand, and a loop over pairs."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
import torch

from tests.training.checkerboard import PART, checkerboard, run_of
from twotower.config import Evaluation
from twotower.errors import ConfigError, DataError
from twotower.evaluation import batch_recall, evaluate
from twotower.training.loop import evaluate_retriever, fit_once
from twotower.training.recorder import Recorder
from twotower.training.retriever import Retriever

from .oracle import ragged


def naive(
    scores: list[list[float]],
    batches: list[list[tuple[int, int]]],
    truth: list[list[int]],
    seen: list[list[int]],
    k: int,
) -> float:
    """Mean over the pairs of the chance to be among the k best of the batch, over all orders of ties."""
    chances = []
    for batch in batches:
        items = {item for _, item in batch}
        for query, item in batch:
            rivals = [other for other in items if other not in truth[query] and other not in seen[query]]
            own = scores[query][item]
            above = sum(scores[query][other] > own for other in rivals)
            tied = 1 + sum(scores[query][other] == own for other in rivals)
            chances.append(sum(place <= k for place in range(above + 1, above + tied + 1)) / tied)
    return sum(chances) / len(chances)


def test_three_pairs_by_hand() -> None:
    """Scores of query 0: 3 2 1; of query 1: 5 5 0; of query 2: 1 1 1.

    Query 0 looks for item 0: first. Query 1 for item 1: tied with item 0, first with chance 1/2. Query 2 for item 2:
    all three tied, first with chance 1/3.
    """
    scores = torch.tensor([[3.0, 2.0, 1.0], [5.0, 5.0, 0.0], [1.0, 1.0, 1.0]])
    found = batch_recall(torch.eye(3), scores.T.contiguous(), ragged([[0], [1], [2]]), batch_size=3, k=(1, 2, 3))
    assert found == pytest.approx(
        {
            "batch_recall@1": (1 + 1 / 2 + 1 / 3) / 3,
            "batch_recall@2": (1 + 1 + 2 / 3) / 3,
            "batch_recall@3": 1.0,
        },
        rel=1e-12,
    )


def test_what_is_true_or_seen_is_not_counted_against_a_pair() -> None:
    """One query, three of four items true for it: each pair has only item 3 of the other query above it."""
    scores = torch.tensor([[1.0, 2.0, 3.0, 4.0], [0.0, 0.0, 0.0, 1.0]])
    item_MD, truth = scores.T.contiguous(), ragged([[0, 1, 2], [3]])
    found = batch_recall(torch.eye(2), item_MD, truth, batch_size=4, k=(1, 2))
    assert found == {"batch_recall@1": 1 / 4, "batch_recall@2": 1.0}
    unseen = batch_recall(torch.eye(2), item_MD, truth, seen=ragged([[3], []]), batch_size=4, k=(1,))
    assert unseen == {"batch_recall@1": 1.0}


def test_an_item_that_several_pairs_bring_competes_once() -> None:
    """Items 0, 0, 0, 1: query 3 looks for item 1 and has one rival above it, not three."""
    scores = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    found = batch_recall(torch.eye(4), scores.T.contiguous(), ragged([[0], [0], [0], [1]]), batch_size=4, k=(1, 2))
    assert found == {"batch_recall@1": 3 / 4, "batch_recall@2": 1.0}


@pytest.mark.parametrize("batch_size", [2, 7, 16, 40])
@pytest.mark.parametrize("seed", [0, 5])
def test_against_a_loop(batch_size: int, seed: int) -> None:
    """Small integer vectors, so that many scores are equal; some queries have no item to find, 43 pairs in all."""
    rng = torch.Generator().manual_seed(3)
    query_QD = torch.randint(-2, 3, (20, 2), generator=rng).float()
    item_MD = torch.randint(-2, 3, (30, 2), generator=rng).float()
    truth, seen = [], []
    for query in range(20):
        row = torch.randperm(30, generator=rng).tolist()
        truth.append(sorted(row[: query % 5]))
        seen.append(sorted(row[10:14]))
    truth[19] += [row for row in range(30) if row not in truth[19] and row not in seen[19]][:3]
    pairs = [(query, item) for query, items in enumerate(truth) for item in items]
    assert len(pairs) == 43
    order = torch.randperm(43, generator=torch.Generator().manual_seed(seed)).tolist()
    full = range(0, 43 - batch_size + 1, batch_size)
    batches = [[pairs[at] for at in order[start : start + batch_size]] for start in full]
    found = batch_recall(
        query_QD, item_MD, ragged(truth), seen=ragged(seen), batch_size=batch_size, k=(1, 3, 10), seed=seed
    )
    scores = (query_QD @ item_MD.T).tolist()
    wanted = {f"batch_recall@{k}": naive(scores, batches, truth, seen, k) for k in (1, 3, 10)}
    assert found == pytest.approx(wanted, rel=1e-12)


def test_a_batch_too_large_for_one_product(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = torch.Generator().manual_seed(1)
    query_QD, item_MD = (torch.randint(-3, 4, (25, 3), generator=rng).float() for _ in range(2))
    truth = ragged([[query] for query in range(25)])
    whole = batch_recall(query_QD, item_MD, truth, batch_size=10)
    monkeypatch.setattr(import_module("twotower.evaluation.batch_recall"), "_MOST_SCORES", 30)
    assert batch_recall(query_QD, item_MD, truth, batch_size=10) == pytest.approx(whole, rel=1e-12)


def test_what_fills_no_batch_is_left_out() -> None:
    found = batch_recall(torch.ones(3, 1), torch.ones(3, 1), ragged([[0], [1], [2]]), batch_size=4, k=(1,))
    assert math.isnan(found["batch_recall@1"])


def test_what_can_not_be_measured_is_refused() -> None:
    query_QD, item_MD = torch.ones(2, 1), torch.ones(2, 1)
    with pytest.raises(ConfigError, match="batch_size is 1"):
        batch_recall(query_QD, item_MD, ragged([[0], [1]]), batch_size=1)
    with pytest.raises(ConfigError, match=r"k is \(0,\)"):
        batch_recall(query_QD, item_MD, ragged([[0], [1]]), batch_size=2, k=(0,))
    with pytest.raises(DataError, match="truth: row 2 of query 1"):
        batch_recall(query_QD, item_MD, ragged([[0], [2]]), batch_size=2)
    with pytest.raises(DataError, match="seen: row 9 of query 0"):
        batch_recall(query_QD, item_MD, ragged([[0], [1]]), seen=ragged([[9], []]), batch_size=2)


# ---------------------------------------------------------------- beside the full catalogue


def test_a_report_has_it_beside_the_catalogue() -> None:
    """Ten queries, each ranks its own item first of 20, in two batches of 4; two pairs are left out.

    A random order of 4 items has the one looked for first with chance 1/4. By training events item i is the i-th: in a
    batch of 4 one pair of 4 has the most popular item, whoever it is.
    """
    item_MD = torch.eye(20)
    out = evaluate(
        torch.eye(20)[:10],
        item_MD,
        ragged([[query] for query in range(10)]),
        item_count_M=torch.arange(20),
        k=(1,),
        batch_recall=4,
    )
    assert out.batch_recall is not None
    assert {row: values["batch_recall@1"] for row, values in out.batch_recall.rows.items()} == {
        "model": 1.0,
        "popularity": 1 / 4,
        "random": 1 / 4,
    }
    assert out.batch_recall.rows["random"]["batch_recall@5"] == 1.0
    assert (out.batch_recall.n_batches, out.batch_recall.n_pairs_left_out) == (2, 2)
    assert "batch_recall@1" not in out.rows["model"]  # never in place of the catalogue's

    tree = json.loads(out.to_json())
    assert tree["batch_recall"]["batch_size"] == 4
    assert tree["batch_recall"]["rows"]["popularity"]["batch_recall@1"] == 1 / 4
    table = out.table().partition("easier: among the items of a batch of 4 pairs")
    assert "batch_recall" not in table[0]
    assert table[2].startswith(", not the catalogue (2 batches; 2 pairs left out)")
    assert ["batch_recall@1", "1.0000", "0.2500", "0.2500"] in [line.split() for line in table[2].splitlines()]


def test_without_it_a_report_is_silent() -> None:
    out = evaluate(torch.eye(2), torch.eye(2), ragged([[0], [1]]), item_count_M=torch.ones(2), k=(1,))
    assert out.batch_recall is None
    assert "batch" not in out.table()
    assert "batch" not in out.to_json()


def test_seen_items_that_are_true_are_not_asked_for() -> None:
    """As in the catalogue: query 0 has met item 0, so the pairs are (0, 1) and (1, 2)."""
    out = evaluate(
        torch.tensor([[0.0, 1.0, 2.0], [0.0, 2.0, 1.0]]),
        torch.eye(3),
        ragged([[0, 1], [2]]),
        item_count_M=torch.ones(3),
        seen=ragged([[0], []]),
        k=(1,),
        baselines=False,
        batch_recall=2,
    )
    assert out.batch_recall is not None
    assert out.batch_recall.n_pairs == 2
    assert out.batch_recall.rows == {"model": {"batch_recall@1": 0.0, "batch_recall@5": 1.0, "batch_recall@10": 1.0}}


def test_a_report_without_a_full_batch() -> None:
    out = evaluate(torch.eye(2), torch.eye(2), ragged([[0], [1]]), item_count_M=torch.ones(2), k=(1,), batch_recall=350)
    assert json.loads(out.to_json())["batch_recall"]["rows"]["model"]["batch_recall@1"] is None
    assert "a batch of 350 pairs, not the catalogue (0 batches; 2 pairs left out)" in out.table()


# ---------------------------------------------------------------- in a run


def test_validation_and_evaluation_report_it(tmp_path: Path) -> None:
    """30 held-out pairs in two batches; the items of its own half a user has met, the other half loses."""
    store = checkerboard()
    run = replace(run_of(store, epochs=20, validate_every=10), evaluation=Evaluation(k=(1,), batch_recall=15))
    names = {"batch_recall@1", "batch_recall@5", "batch_recall@10"}
    with Recorder(tmp_path, quiet=True) as recorder:
        fit = fit_once(run, store, PART, recorder=recorder)
    assert [set(validation) for validation in fit.history] == [{"epoch", "recall@1"} | names] * 2
    assert fit.history[-1]["batch_recall@1"] >= 0.95
    written = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    last = [line for line in written if line["what"] == "valid"][-1]
    assert last["batch_recall@1"] == fit.history[-1]["batch_recall@1"]
    found = evaluate_retriever(Retriever(run, store, fit.model.towers), PART, "valid")
    assert found.batch_recall is not None
    assert set(found.batch_recall.rows) == {"model", "popularity", "random"}
    assert set(found.batch_recall.rows["model"]) == names


def test_a_batch_has_pairs() -> None:
    with pytest.raises(ConfigError, match=r"evaluation\.batch_recall: found 1, expected the pairs of a batch"):
        Evaluation(batch_recall=1)
