"""What is made of the runs of a race."""

from __future__ import annotations

import pytest
from benchmarks.time_to import Reached, summary


def test_the_ratio_is_of_medians_and_below_one_where_ours_is_faster() -> None:
    found = {
        "ours": [Reached(seconds=s, recall=r, to_the_end=s + 1) for s, r in ((1.0, 0.150), (9.0, 0.149), (2.0, 0.151))],
        "implicit_als": [
            Reached(seconds=s, recall=r, to_the_end=s + 1) for s, r in ((4.0, 0.148), (5.0, 0.1485), (3.0, 0.149))
        ],
    }
    assert summary(found) == {
        "seconds_ratio": pytest.approx(2.0 / 4.0),
        "seconds_ours": 2.0,
        "seconds_implicit_als": 4.0,
        "seconds_implicit_als_15_iterations": 5.0,
        "recall@20_ours": 0.149,
        "recall@20_implicit_als": 0.148,
    }
