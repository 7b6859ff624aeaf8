"""The committed arms of the benchmark of negatives are runs that differ in their sampler alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from benchmarks.arms import arm_run, differences_of, run_of
from benchmarks.data import data_folder
from benchmarks.negatives import NEGATIVES

from twotower.config import dump_run
from twotower.negatives import Uniform

FOLDER = {"kuairand": "kuairand-pure"}


@pytest.mark.parametrize("name", NEGATIVES.metrics)
def test_arms_differ_in_their_sampler_alone(name: str, tmp_path: Path) -> None:
    folder = data_folder() / FOLDER.get(name, name)
    if not folder.exists():
        pytest.skip(f"{folder} is absent: set TWOTOWER_DATA to the folder of the data sets")
    base = run_of(NEGATIVES, name, tmp_path, [])
    assert base.tune is not None
    assert len(base.tune.arms) >= (6 if name == "kuairand" else 12)
    seen = set()
    for arm in base.tune.arms:
        run = arm_run(NEGATIVES, name, arm, base, seed=1)
        seen.add(dump_run(replace(run, data=None)))
        tuned = run.training.tables
        plain = replace(
            run,
            negatives=Uniform(1),
            data=None,
            loss=base.loss,
            training=replace(run.training, tables=base.training.tables, epochs=base.training.epochs),
        )
        assert type(tuned) is type(base.training.tables)
        assert type(run.loss) is type(base.loss)
        assert dump_run(plain) == dump_run(
            replace(
                base,
                negatives=Uniform(1),
                data=None,
                tune=None,
                training=replace(base.training, seed=1, refit=True),
            )
        )
    assert len(seen) == len(base.tune.arms)


def test_differences_are_over_queries() -> None:
    """a - b of two queries is .3 and .1: mean .2, standard error .1."""
    found = {"a": [[0.5, 0.3], [0.7, 0.5]], "b": [[0.3, 0.3], [0.3, 0.3]]}
    (difference,) = differences_of((("a", "b"), ("a", "c")), found).values()
    assert difference["mean"] == pytest.approx(0.2)
    assert difference["high"] - difference["low"] == pytest.approx(2 * 1.96 * 0.1)
