"""The committed arms of the losses benchmark are runs, and what a search finds is written so that it is read again."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from benchmarks.data import SETTINGS, data_folder
from benchmarks.losses import METRICS_OF, arm_run, run_of

from benchmarks import losses
from twotower.evaluation import metric_names


@pytest.mark.parametrize("name", METRICS_OF)
def test_every_arm_is_a_run(name: str, tmp_path: Path) -> None:
    if name != "debian" and not (data_folder() / name).exists():
        pytest.skip(f"{data_folder() / name} is absent: set TWOTOWER_DATA to the folder of the data sets")
    base = run_of(name, tmp_path, [])
    assert base.tune is not None
    for arm in base.tune.arms:
        run = arm_run(name, arm, base, seed=3)
        assert run.training.seed == 3
        assert run.training.refit
        assert run.tune is None
        known = metric_names(run.evaluation.k) if name != "tldr" else ["recall@1", "recall@10", "recall@100"]
        assert METRICS_OF[name][0] in known


@pytest.mark.parametrize("name", ["gowalla", "ml-1m"])
def test_every_loss_with_item_vectors_is_an_arm(name: str) -> None:
    arms = tomllib.loads((SETTINGS / "losses" / f"{name}.toml").read_text(encoding="utf-8"))["tune"]["arms"]
    text = str(arms)
    for kind in ("SampledSoftmax", "BilateralSoftmax", "BucketedSoftmax", "AdvInfoNCE", "Symmetric", "AdapTau", "BPR"):
        assert f"kind='{kind}'" in text
    for kind in ("AdaptiveTemperature", "AdaptiveMargin", "Margin", "Warp", "CCL", "GBCE", "SGNS", "NCE"):
        assert f"kind='{kind}'" in text
    assert sum(arm.startswith("graph.") for arm in arms) >= 4


def test_chosen_settings_are_toml(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "losses").mkdir()
    (tmp_path / "losses" / "gowalla.chosen.toml").write_text(
        '["mf.softmax"]\n"loss.temperature" = 0.1\n"training.tables.lr" = 0.04\n', encoding="utf-8"
    )
    monkeypatch.setattr(losses, "SETTINGS", tmp_path)
    assert losses.chosen("gowalla") == {"mf.softmax": {"loss.temperature": 0.1, "training.tables.lr": 0.04}}
    assert losses.chosen("ml-1m") == {}
