"""The whole audit: gradients that have known biases, and what comes out of the command line."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.auditing.tiny import OfEachQuery, audited, run_with
from twotower.auditing import audit
from twotower.cli import main
from twotower.config import Run
from twotower.data.splits import RandomSplit
from twotower.errors import ConfigError
from twotower.losses import BPR, SampledSoftmax
from twotower.negatives import DNS, Catalogue, InBatch, Popularity, Rotations, Sampler, Uniform

N_USERS, N_ITEMS = 24, 40


def test_the_catalogue_is_the_full_softmax() -> None:
    (estimate,) = audited(Catalogue()).gradient.estimates
    assert estimate.bias < 1e-6
    assert estimate.noise < 1e-6
    assert estimate.cosine == pytest.approx(1)
    assert estimate.places == 60


def test_corrected_bias_falls_as_candidates_grow() -> None:
    """It goes with 1 / n: four times the candidates leave about a quarter."""
    few, some, many = audited(Uniform(8), batches=120, queries=6, batch_size=256).gradient.estimates
    assert [round(e.places) for e in (few, some, many)] == [2, 8, 32]
    assert few.bias > 2 * some.bias > 4 * many.bias
    assert few.noise > some.noise > many.noise
    assert few.bias_low < few.bias < few.bias_high


def test_noise_is_not_taken_for_bias() -> None:
    """With candidates for one draw in hundreds of a step: a plain mean would be off by the floor."""
    (*_, many) = audited(Uniform(200), batches=8, queries=8).gradient.estimates
    assert many.bias_low < many.noise_floor
    assert many.bias < 0.5 * many.noise_floor


def test_uncorrected_batch_negatives_are_biased() -> None:
    without, corrected = (audited(InBatch(), run=sharper(InBatch(), c), batches=30, queries=8) for c in CORRECTIONS)
    (biased,), (right,) = without.gradient.estimates, corrected.gradient.estimates
    assert biased.bias_low > right.bias_high
    assert biased.bias > 3 * right.bias
    assert "InBatch: no number to change" in " ".join(corrected.gradient.notes)


def test_what_helps_is_said() -> None:
    sampler = Popularity(60, alpha=1.0)
    found = audited(sampler, run=sharper(sampler, "none", batch_size=128), batches=30, queries=8)
    assert "correction = 'negatives' is what lowers it" in " ".join(found.verdict)


CORRECTIONS = ("none", "negatives")


def sharper(sampler: Sampler, correction: Any, *, batch_size: int = 32) -> Run:
    run = run_with(sampler, correction=correction, batch_size=batch_size)
    return replace(run, loss=SampledSoftmax(temperature=0.2, correction=correction))


@pytest.mark.parametrize("sampler", [OfEachQuery(), Rotations(4), DNS(n=2, of=InBatch()), InBatch() + Uniform(4)])
@pytest.mark.parametrize("batch_of", ["pairs", "queries"])
def test_every_kind_of_block_and_batch(sampler: Sampler, batch_of: Any) -> None:
    run = run_with(sampler, correction="none")
    run = replace(run, training=replace(run.training, batch_of=batch_of))
    audit = audited(sampler, run=run, batches=4, queries=3)
    assert audit.gradient.n_queries == 3
    assert all(0 <= e.noise < 10 and -1 <= e.cosine <= 1 for e in audit.gradient.estimates)


def test_where_nothing_is_excluded_the_positive_is_a_column() -> None:
    """Every item is in nearly every batch, so the printed form of Yi et al. is nearly the full softmax."""
    run = run_with(InBatch(), batch_size=1500)
    run = replace(run, loss=SampledSoftmax(temperature=0.3, correction="none", exclude="none"))
    (estimate,) = audited(InBatch(), run=run, queries=40).gradient.estimates
    assert estimate.places > 59
    assert estimate.bias < 0.02


def test_a_bias_that_more_candidates_leave_is_told_from_one_they_lower() -> None:
    """Items of its own half of the catalogue are all that a query is offered: no count brings in the other half."""
    halves = OfEachQuery(n=40)
    found = audited(halves, run=sharper(halves, "negatives", batch_size=128), batches=30, queries=8)
    assert "mix in Uniform(n)" in " ".join(found.verdict)
    few = Uniform(4)
    found = audited(few, run=sharper(few, "all", batch_size=128), batches=30, queries=8)
    assert "'negatives' goes to the full softmax's as candidates grow" in " ".join(found.verdict)


def test_a_loss_of_another_family_is_audited_by_a_softmax() -> None:
    run = replace(run_with(Popularity(8)), loss=BPR(temperature=0.5))
    found = audited(Popularity(8), run=run)
    assert "BPR is no sampled softmax" in found.gradient.loss
    assert "a softmax in the loss's place" in " ".join(found.verdict)
    assert "temperature=0.5, correction='negatives'" in found.gradient.loss
    mined = audited(DNS(n=1, of=Uniform(4, per_query=True)), run=replace(run, negatives=DNS()))
    assert "correction='none'" in mined.gradient.loss


def test_the_same_seed_finds_the_same() -> None:
    first, again = (audited(InBatch() + Uniform(8), seed=3) for _ in range(2))
    assert first.law == again.law
    assert first.gradient == again.gradient
    assert first.offers == again.offers
    assert audited(InBatch() + Uniform(8), seed=4).law != first.law


def test_every_line_fits() -> None:
    text = audited(InBatch() + Uniform(8) + Popularity(3, per_query=True)).render()
    assert max(map(len, text.splitlines())) <= 80
    for word in ("Verdict", "found / claimed", "bias", "excluded", "sampler"):
        assert word in text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batches": 3}, "batches is 3, expected at least 4"),
        ({"queries": 0}, "queries is 0"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_settings_out_of_range(settings: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        audit(run_with(Uniform(4)), **settings)  # type: ignore[arg-type]


def test_a_run_without_data() -> None:
    with pytest.raises(ConfigError, match="the run names no files"):
        audit(replace(run_with(Uniform(4)), data=None, split=RandomSplit()))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Files, and a run that names them."""
    with (tmp_path / "events.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["user", "item", "time"])
        for user in range(N_USERS):
            for at in range(12):
                writer.writerow([f"u{user}", f"i{(user * 5 + at * at) % N_ITEMS}", 1_700_000_000 + 3600 * at + user])
    path = tmp_path / "run.toml"
    path.write_text(
        """
        [data]
        interactions = ["events.csv"]
        [schema]
        interactions = { query = "user", item = "item", time = "time" }
        query.user = { kind = "Id", column = "user" }
        item.item = { kind = "Id", column = "item" }
        [split]
        kind = "LeaveLastOut"
        [towers]
        dim = 8
        [frequency]
        kind = "StreamingFrequency"
        [negatives]
        kind = "Mixture"
        parts = [{ kind = "InBatch" }, { kind = "Uniform", n = 16 }]
        [loss]
        kind = "SampledSoftmax"
        [training]
        batch_size = 32
        epochs = 1
        threads = 1
        metric = "recall@10"
        """,
        encoding="utf-8",
    )
    return path


def test_impressions_are_audited_as_they_are_trained_with(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = (run.parent / "events.csv").read_text(encoding="utf-8").split()
    rows = [f"{line},{int(at % 3 > 0)}" for at, line in enumerate(lines[1:])]
    (run.parent / "events.csv").write_text("\n".join([lines[0] + ",clicked", *rows]), encoding="utf-8")
    taken = ["--set", "schema.interactions.taken=clicked", "--set", 'negatives={kind="Impressions",n=2}']
    assert main(["audit", str(run), *FEW, *taken, "--set", "training.thin={kind='UniformThinning',keep=0.5}"]) == 0
    assert "Counts agree with the draws" in capsys.readouterr().out.replace("\n  ", " ")


FEW = ["--batches", "6", "--queries", "4"]


def test_the_command_prints_and_writes(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    folder = run.parent
    files = ["--json", str(folder / "a.json"), "--plot", str(folder / "a.png")]
    assert main(["audit", str(run), *FEW, *files, "--set", "loss.temperature=0.2"]) == 0
    text = capsys.readouterr().out
    assert "InBatch() + Uniform(n=16)" in text
    assert "temperature=0.2" in text
    assert "observed" in text  # the stream, before
    tree = json.loads((folder / "a.json").read_text(encoding="utf-8"))
    assert tree["law"]["density"] == "approximate"
    assert len(tree["law"]["worst"]) == 5
    assert [e["scale"] for e in tree["gradient"]["estimates"]] == [0.25, 1.0, 4.0]
    assert tree["cost"]["total"] > 0
    assert (folder / "a.png").read_bytes().startswith(b"\x89PNG")


def test_a_trained_model_is_audited_with_what_it_learnt(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = run.parent / "model"
    assert main(["train", str(run), "--out", str(model)]) == 0
    capsys.readouterr()
    assert main(["audit", str(run), "--model", str(model), *FEW]) == 0
    text = capsys.readouterr().out
    assert "trained, of" in text
    assert "observed" not in text  # its frequencies come with it
    other = ["--set", 'frequency={kind="ExactFrequency"}', "--set", "towers.dim=4"]
    assert main(["audit", str(run), "--model", str(model), *FEW, *other]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "nowhere"], "holds no trained model"),
        (["--plot", "nowhere/a.png"], "there is no folder"),
        (["--json", "nowhere/a.json"], "there is no folder"),
        (["--batches", "1"], "batches is 1, expected at least 4"),
        (["--set", "negatives.m=3"], "negatives.m is not a setting"),
    ],
)
def test_a_mistake_is_one_line(
    run: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["audit", str(run), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
