"""The index benchmark runs, and what it prints is what was measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("faiss")

from benchmarks import index


def test_on_few_items(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "ROUNDS", 1)
    monkeypatch.setattr(index, "QUERIES", 20)
    arguments = ["--on", "clusters", "--items", "2000", "--skip", "HNSW", "IVFPQ", "LSH", "--results", str(tmp_path)]
    index.main(arguments)
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    metrics = line["metrics"]
    assert metrics["exact_over_faiss_flat"] == pytest.approx(
        metrics["exact_queries_a_second"] / metrics["faiss_queries_a_second"], rel=1e-4
    )
    assert metrics["rows_agree"] > 0.999
    assert metrics["Exact"]["recall"] == 1.0
    assert metrics["IVFSQ8"]["target_met_on_other_queries"]
    assert set(metrics) >= {"Exact", "IVFSQ8"}
    assert "HNSW" not in metrics
    saved = json.loads((tmp_path / "clusters.json").read_text())
    assert saved["n_items"] == 2_000
