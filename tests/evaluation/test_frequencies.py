"""A frequency estimate against frequencies that came true, by arithmetic."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import Tensor

from twotower.errors import DataError
from twotower.evaluation import frequency_report
from twotower.frequency import ExactFrequency, Frequency, StreamingFrequency
from twotower.part import Facts

torch.set_num_threads(1)


class Given(Frequency):
    """Believes in presences that a test gives."""

    def __init__(self, presence_M: list[float]) -> None:
        self.presence_M = torch.tensor(presence_M)

    def log_presence(self, row: Tensor) -> Tensor:
        return self.presence_M[row].log()


def test_error_and_classes_by_arithmetic() -> None:
    # batches of 2: one other row, so p is the share: 6/10, 3/10, 1/10, 0
    found = frequency_report(Given([0.5, 0.3, 0.2, 0.1]), torch.tensor([6, 3, 1, 0]), batch_size=2, tail_max=1)
    assert found.error == pytest.approx((0.1 + 0 + 0.1 + 0.1) / 4)
    assert found.n_events == 10
    head, middle, tail, unseen = found.classes
    assert [one.name for one in found.classes] == ["head", "middle", "tail", "unseen"]
    assert [one.n_items for one in found.classes] == [1, 1, 1, 1]
    assert (head.n_in_batch, head.n_believed) == (pytest.approx(0.6), pytest.approx(0.5))
    assert head.mean_log_ratio == pytest.approx(math.log(5 / 6))
    assert middle.mean_log_ratio == pytest.approx(0.0, abs=1e-6)
    assert tail.mean_log_ratio == pytest.approx(math.log(2))
    assert (unseen.n_in_batch, unseen.n_believed) == (0.0, pytest.approx(0.1))
    assert math.isnan(unseen.mean_log_ratio)


def test_the_truth_is_that_of_exact_counts() -> None:
    count_M = torch.tensor([50, 20, 7, 2, 0])
    exact = ExactFrequency()
    exact.setup(Facts(n_items=5, n_queries=9, item_count_M=count_M, batch_size=16, batch_of="pairs"))
    found = frequency_report(exact, count_M, batch_size=16, tail_max=10)
    assert found.error == pytest.approx(0.0, abs=1e-7)
    # 15 other rows
    assert found.classes[0].n_in_batch == pytest.approx(1 - (29 / 79) ** 15)


def test_a_streaming_estimate_that_saw_the_same_law_is_near_and_one_of_another_law_is_not() -> None:
    rng = torch.Generator().manual_seed(0)
    q_M = 1 / torch.arange(1, 101).double()
    batches = torch.multinomial(q_M, 600 * 32, replacement=True, generator=rng).view(600, 32)
    count_M = batches.flatten().bincount(minlength=100)
    frequency = StreamingFrequency()
    frequency.setup(Facts(n_items=100, n_queries=1, item_count_M=count_M, batch_size=32, batch_of="pairs"))
    for batch in batches:
        frequency.observe(batch)
    state = {name: value.clone() for name, value in frequency.state_dict().items()}
    near = frequency_report(frequency, count_M, batch_size=32)
    far = frequency_report(frequency, count_M.flip(0), batch_size=32)
    # estimates have a deviation of 7%, sqrt(alpha / 2), so are .8 of that off; of 20 items in a batch of 32:
    # .07 * .8 * 20 / (2 * 32) = .018
    assert near.error < 0.018
    assert far.error > 10 * near.error
    head, middle, _, _ = near.classes
    assert head.mean_log_ratio == pytest.approx(0.0, abs=0.03)
    assert middle.mean_log_ratio == pytest.approx(math.log(32 / 31), abs=0.02)  # it tells of all rows of a batch
    assert far.classes[0].mean_log_ratio < -2
    assert all(torch.equal(value, state[name]) for name, value in frequency.state_dict().items())


def test_an_item_that_came_and_was_believed_never_to_is_told() -> None:
    found = frequency_report(Given([1.0, 0.0]), torch.tensor([9, 1]), batch_size=2)
    assert found.classes[2].mean_log_ratio == -math.inf
    tree = json.loads(found.to_json())
    assert [one["mean_log_ratio"] for one in tree["classes"]][1:] == [None, None, None]
    assert "-inf" in found.render()
    assert found.render().splitlines()[0] == f"error {found.error:.4f} of the frequencies of 10 events in batches of 2"


def test_a_day_without_events_is_refused() -> None:
    with pytest.raises(DataError, match="found no event to compare with"):
        frequency_report(Given([0.5]), torch.tensor([0]), batch_size=2)
