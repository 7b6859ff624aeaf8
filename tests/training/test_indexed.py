"""Indexes of trained models: of what is live, tuned on held-out queries, and through the command line."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.training.test_life import model as living  # noqa: F401  (fixtures)
from tests.training.test_life import run  # noqa: F401
from tests.training.test_train import SIZE, data, model  # noqa: F401
from twotower import cli
from twotower.errors import ConfigError, DataError
from twotower.evaluation import top_k
from twotower.index import HNSW, IVFSQ8, Exact, Index
from twotower.training import Retriever, build_index, report_index


@pytest.mark.parametrize("settings", [Exact(), IVFSQ8(), HNSW()])
def test_an_index_finds_what_the_model_does(settings: Exact | IVFSQ8 | HNSW, model: Path, tmp_path: Path) -> None:  # noqa: F811
    built = build_index(model, settings, target_recall=0.9, k=5, out=tmp_path / "index")
    assert built.tuned is not None
    assert built.tuned.met
    assert built.tuned.n_queries == SIZE
    assert built.n_items == SIZE
    assert "recall@5 1.0000 on 30 held-out queries" in built.render()
    retriever = Retriever.open(model)
    query_QD = torch.randn(7, retriever.towers.width, generator=torch.Generator().manual_seed(0))
    expected = top_k(query_QD, retriever.item_MD, 9)
    found = Index.open(tmp_path / "index").search(query_QD.numpy(), 9)
    assert found.row_Bk.tolist() == expected.row_Qk.tolist()
    assert np.allclose(found.score_Bk, expected.score_Qk.numpy(), atol=1e-6)


def test_only_what_is_live_is_in_it(living: Path, tmp_path: Path) -> None:  # noqa: F811
    built = build_index(living, Exact(), out=tmp_path / "index")
    assert built.tuned is None
    index = Index.open(tmp_path / "index")
    found = index.search(np.ones((1, index.width)), 40)
    assert (index.n, index.n_rows) == (12, 40)
    expected = Retriever.open(living).live_rows().tolist()
    assert sorted(found.row_Bk[0][:12].tolist()) == expected
    assert (found.row_Bk[0][12:] == -1).all()


def test_on_the_command_line(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    out = tmp_path / "index"
    arguments = ["index", "build", str(model), "--kind", "HNSW", "--set", "m=8", "--out", str(out)]
    assert cli.main(arguments) == 0
    assert f"30 items, 0.0 MiB at hand, in {out}" in capsys.readouterr().out
    assert Index.open(out).settings == HNSW(m=8)
    assert cli.main([*arguments, "--set", "nprobe=8"]) == 2
    assert "index.nprobe is not a setting of HNSW" in capsys.readouterr().err
    assert cli.main(["index", "report", str(model), "--kind", "Exact"]) == 2
    assert "found 30 held-out queries, expected at least 60" in capsys.readouterr().err
    assert cli.main(["index", "report", str(model), "--json", str(tmp_path / "no" / "x.json")]) == 2
    assert "there is no folder" in capsys.readouterr().err


def test_a_report_of_a_model(
    model: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for module in ("twotower.index.report", "twotower.index.tuning"):  # of the first, the function has the name
        monkeypatch.setattr(import_module(module), "LEAST_QUERIES", 15)
    files = ["--json", str(tmp_path / "index.json"), "--plot", str(tmp_path / "index.png")]
    assert cli.main(["index", "report", str(model), "--kind", "Exact", "IVFSQ8", "--k", "5", *files]) == 0
    shown = capsys.readouterr().out
    assert "recall@5" in shown
    assert "IVFSQ8" in shown
    tree = json.loads((tmp_path / "index.json").read_text())
    assert [line["settings"]["kind"] for line in tree["lines"]] == ["Exact", "IVFSQ8"]
    assert tree["lines"][0]["recall"] == 1.0
    assert (tmp_path / "index.png").exists()


def test_a_target_that_is_not_met_writes_nothing(
    model: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("twotower.index.tuning.lower_bound", lambda *_: 0.0)
    with pytest.raises(ConfigError, match=r"but HNSW finds 1.0000 of the best 5 .*: lower the target"):
        build_index(model, HNSW(), target_recall=0.9, k=5, out=tmp_path / "index")
    assert not (tmp_path / "index").exists()
    with pytest.raises(DataError, match="expected at least 60"):
        report_index(model)
