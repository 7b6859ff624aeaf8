"""The step benchmark at toy size: the contestants compute the same, and everything it promises is printed."""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch
from benchmarks.harness import Apart, peak_extra_bytes, report, show
from benchmarks.step import Clock, Ours, Sizes, Textbook, events

from benchmarks import step

TOY = Sizes(queries=600, items=400, dim=8, batch=64, uniform=32)


class Here:
    """Stands in for ``Apart``, in this process."""

    def __init__(self, make: object, *args: object, warm: bool = False) -> None:
        assert callable(make)
        self.made, self.call = make(*args), lambda method, *args: getattr(self.made, method)(*args)

    def __enter__(self) -> Here:
        return self

    def __exit__(self, *error: object) -> None:
        pass


def test_events_are_whole_batches_of_distinct_queries() -> None:
    query_E, item_E = events(TOY)
    assert len(query_E) == len(item_E) == 576  # 9 batches of 64 fit into 600 queries
    assert len(np.unique(query_E)) == 576
    assert item_E.min() >= 0
    assert item_E.max() < 400
    # log-uniform: the most popular item has log 2 / log 400 = 12% of the events, 67 of 576
    assert 40 < np.bincount(item_E).max() < 95


def test_ours_and_the_textbook_are_one_function() -> None:
    found = Ours(TOY, "float32", "highest").difference_to_textbook()
    assert set(found) == {"loss", "gradient of queries", "gradient of items"}
    assert max(found.values()) < 1e-5


@pytest.mark.parametrize("in_place", [False, True])
def test_textbook_loss_is_that_of_a_loop(in_place: bool) -> None:
    book = Textbook(TOY, in_place)
    item_B, label_B, column_N = torch.tensor([5, 9, 5]), torch.tensor([0, 1, 0]), torch.tensor([5, 9, 7, 9, 9])
    query_BD, column_ND = (vector.detach() for vector in book.vectors(torch.tensor([1, 2, 3]), column_N))
    total = 0.0
    for b in range(3):
        kept = [j for j in range(5) if j == label_B[b] or column_N[j] != item_B[b]]
        logit = {j: float(query_BD[b] @ column_ND[j]) / 0.05 - float(book.log_count_M[column_N[j]]) for j in kept}
        total += math.log(sum(math.exp(x) for x in logit.values())) - logit[int(label_B[b])]
    found = book.loss(query_BD, column_ND, item_B, label_B, column_N)
    assert found.item() == pytest.approx(total / 3, rel=1e-5)


def test_textbook_count_is_presence_and_uniform_draws() -> None:
    book = Textbook(TOY)
    count_M = Counter(book.event_item.tolist())
    for item in (book.event_item[0].item(), book.event_item[1].item()):
        expected = 1 - (1 - count_M[item] / 576) ** 63 + 32 / 400
        assert math.exp(book.log_count_M[item]) == pytest.approx(expected, rel=1e-4)


def test_both_learn() -> None:
    for contestant in (Ours(TOY, "float32", "highest"), Textbook(TOY)):
        if isinstance(contestant, Textbook):
            contestant.optimiser.param_groups[0]["lr"] = 0.05  # the usual one is too small to show in 90 steps
        losses = [contestant.step() for _ in range(90)]
        assert sum(losses[-9:]) < 0.9 * sum(losses[:9])


def test_prints_tables_and_ends_with_one_line_of_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(step, "Apart", Here)
    step.main(queries=600, items=400, large=1200, dim=8, batch=64, uniform=32, repeats=1, steps=2, threads=1, seed=3)
    *tables, line = capsys.readouterr().out.strip().splitlines()
    said = json.loads(line)
    assert set(said) == {"benchmark", "metrics", "seconds", "seed", "settings", "machine"}
    assert said["benchmark"] == "step"
    assert said["seed"] == 3
    assert set(said["machine"]) == {"cpu", "cores", "threads", "torch", "load_average"}
    contract = {"speedup_float32_cold", "speedup_float32_warm", "speedup_bf16_warm", "loss_memory_share", "step_ms"}
    assert contract | {"examples_per_s", "ten_million_over_one_million"} <= set(said["metrics"])
    assert said["metrics"]["examples_per_s"] == pytest.approx(64e3 / said["metrics"]["step_ms"], rel=1e-4)
    assert any("loss and its gradient" in row for row in tables)


def test_clock_counts_an_inner_part_once() -> None:
    clock = Clock()
    with clock.part("outer"):
        time.sleep(0.02)
        with clock.part("inner"):
            time.sleep(0.05)
    assert clock.seconds["inner"] >= 0.05
    assert 0.02 <= clock.seconds["outer"] < clock.seconds["inner"]


def test_peak_extra_bytes_sees_memory_that_is_given_back() -> None:
    assert 38e6 < peak_extra_bytes(lambda: bytearray(b"x") * 40_000_000) < 50e6
    assert peak_extra_bytes(lambda: None) < 5e6


def test_an_object_apart_keeps_its_state_and_says_when_it_dies() -> None:
    with Apart(Counter, "abca", warm=True) as counter:
        counter.call("update", "aa")
        assert counter.call("most_common", 1) == [("a", 4)]
        with pytest.raises(RuntimeError, match="asked for nonsense has died"):
            counter.call("nonsense")


def test_report_and_show(capsys: pytest.CaptureFixture[str]) -> None:
    show("Some", ("name", "x"), [("long name", 0.123456), ("b", 12345)])
    report("b", {"x": 1 / 3}, seconds=1.26, seed=7, settings={"n": 2})
    *table, line = capsys.readouterr().out.strip().splitlines()
    assert table == ["Some", "  name            x", "  long name  0.1235", "  b          12,345"]
    assert all(len(a) == len(b) for a, b in pairwise(table[1:]))
    assert json.loads(line)["metrics"] == {"x": 0.333333}
