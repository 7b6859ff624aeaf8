"""The committed arms of the losses benchmark are runs, and what a search finds is written so that it is read again."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from benchmarks.arms import Kind, arm_run, run_of
from benchmarks.data import SETTINGS, data_folder
from benchmarks.losses import LOSSES

from benchmarks import arms
from twotower.config import Run, dump_run
from twotower.evaluation import metric_names


@pytest.mark.parametrize("name", LOSSES.metrics)
def test_every_arm_is_a_run(name: str, tmp_path: Path) -> None:
    if name != "debian" and not (data_folder() / name).exists():
        pytest.skip(f"{data_folder() / name} is absent: set TWOTOWER_DATA to the folder of the data sets")
    base = run_of(LOSSES, name, tmp_path, [])
    assert base.tune is not None
    for arm in base.tune.arms:
        run = arm_run(LOSSES, name, arm, base, seed=3)
        assert run.training.seed == 3
        assert run.training.refit
        assert run.tune is None
        assert run.data is not None
        assert Path(run.data.store).parent == tmp_path
        known = metric_names(run.evaluation.k) if name != "tldr" else ["recall@1", "recall@10", "recall@100"]
        assert LOSSES.metrics[name][0] in known


@pytest.mark.parametrize("name", ["gowalla", "ml-1m"])
def test_every_loss_with_item_vectors_is_an_arm(name: str) -> None:
    declared = tomllib.loads((SETTINGS / "losses" / f"{name}.toml").read_text(encoding="utf-8"))["tune"]["arms"]
    text = str(declared)
    for kind in ("SampledSoftmax", "BilateralSoftmax", "BucketedSoftmax", "AdvInfoNCE", "Symmetric", "AdapTau", "BPR"):
        assert f"kind='{kind}'" in text
    for kind in ("AdaptiveTemperature", "AdaptiveMargin", "Margin", "Warp", "CCL", "GBCE", "SGNS", "NCE"):
        assert f"kind='{kind}'" in text
    assert sum(arm.startswith("graph.") for arm in declared) >= 4


def test_a_longer_arm_is_its_arm_but_for_what_is_declared(tmp_path: Path) -> None:
    if not (data_folder() / "gowalla").exists():
        pytest.skip(f"{data_folder() / 'gowalla'} is absent: set TWOTOWER_DATA to the folder of the data sets")
    base = run_of(LOSSES, "gowalla", tmp_path, [])
    arm, longer = (arm_run(LOSSES, "gowalla", name, base, seed=0) for name in ("mf.bilateral", "mf.bilateral-longer"))
    assert longer.training.epochs > arm.training.epochs
    as_long = replace(longer, training=replace(longer.training, epochs=arm.training.epochs))
    assert dump_run(as_long) == dump_run(arm)


def test_an_arm_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(SystemExit, match=r"--only mf.sofmax: found no such arm.*mf.softmax"):
        arms.named(["mf.softmax", "mf.nce"], "mf.sofmax")


def test_chosen_settings_are_toml(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "losses").mkdir()
    (tmp_path / "losses" / "gowalla.chosen.toml").write_text(
        '["mf.softmax"]\n"loss.temperature" = 0.1\n"training.tables.lr" = 0.04\n', encoding="utf-8"
    )
    monkeypatch.setattr(arms, "SETTINGS", tmp_path)
    assert LOSSES.chosen("gowalla") == {"mf.softmax": {"loss.temperature": 0.1, "training.tables.lr": 0.04}}
    assert LOSSES.chosen("ml-1m") == {}


def test_what_a_search_finds_is_added_to_what_others_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "losses").mkdir()
    monkeypatch.setattr(arms, "SETTINGS", tmp_path)
    arms.write_chosen(LOSSES, "gowalla", 4, {"mf.softmax": {"loss.temperature": 0.1}})
    arms.write_chosen(LOSSES, "gowalla", 4, {"mf.nce": {"training.tables.lr": 0.0123456}})
    assert LOSSES.chosen("gowalla") == {
        "mf.softmax": {"loss.temperature": 0.1},
        "mf.nce": {"training.tables.lr": 0.0123},
    }


def test_a_kept_result_is_read_for_the_same_settings_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fitted = []

    def measured(kind: Kind, name: str, run: Run) -> arms.Result:
        fitted.append(run.training.seed)
        return arms.Result(metric={"recall@10": 0.5}, seconds=1.0, memory_mb=2.0)

    monkeypatch.setattr(arms, "_measured", measured)
    keep = tmp_path / "kept"
    first = arms.run_one(LOSSES, "debian", "mns.batch", 1, tmp_path, [], keep)
    assert arms.run_one(LOSSES, "debian", "mns.batch", 1, tmp_path, [], keep) == first
    assert fitted == [1]
    arms.run_one(LOSSES, "debian", "mns.batch", 1, tmp_path, ["training.epochs=2"], keep)
    arms.run_one(LOSSES, "debian", "mns.batch", 1, tmp_path, ["training.epochs=2"], None)
    assert fitted == [1, 1, 1]
