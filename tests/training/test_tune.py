"""Searching for settings: ranges, arms, sweeps, and what is there after a search was cut off."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from optuna.storages.journal import JournalFileBackend
from optuna.storages.journal._base import BaseJournalSnapshot
from optuna.trial import TrialState

from twotower import Arm, Data, Range, Run, Tune, load_run, parse_run, train, tune
from twotower.config import dump_run
from twotower.errors import ArtifactError, ConfigError, DataError
from twotower.losses import BPR
from twotower.training.recorder import Recorder

module = import_module("twotower.training.tune")
SIZE = 12
SETTINGS = """
[data]
interactions = ["events.parquet"]
[schema]
interactions = { query = "user", item = "item", split = "part" }
query.user = { kind = "Id", column = "user" }
item.item = { kind = "Id", column = "item" }
[split]
kind = "GivenSplit"
[towers]
dim = 4
[negatives]
kind = "Uniform"
n = 8
[training]
batch_size = 32
epochs = 2
metric = "recall@2"
threads = 1
[evaluation]
k = [2]
"""
RANGES = {
    "loss.temperature": Range(low=0.05, high=0.5, log=True),
    "negatives.n": Range(low=3, high=6),
    "towers.query.widths": Range(choices=((4,), (8, 4))),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A checkerboard: even users like even items, odd users odd ones, and each has one such item withheld."""
    folder = tmp_path_factory.mktemp("data")
    pairs = [(user, item) for user in range(SIZE) for item in range(SIZE) if user % 2 == item % 2]
    part = ["valid" if user == item else "train" for user, item in pairs]
    events = {"user": [f"u{user}" for user, _ in pairs], "item": [f"i{item}" for _, item in pairs], "part": part}
    pq.write_table(pa.table(events), folder / "events.parquet")
    (folder / "run.toml").write_text(SETTINGS, encoding="utf-8")
    return load_run(folder / "run.toml")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No training and no picture: what a trial is worth is its temperature."""

    def fit(run: Run, *given: object, recorder: Recorder) -> SimpleNamespace:
        value = run.loss.temperature  # type: ignore[attr-defined]
        recorder.write("valid", 1, 1.0, {run.training.metric: value})
        return SimpleNamespace(best_metric=value, best_epoch=1.0)

    monkeypatch.setattr(module, "fit_once", fit)
    monkeypatch.setattr(module, "plot", lambda tuned, path: False)
    monkeypatch.setattr(module, "settings_of", lambda training: nullcontext())


def search(run: Run, **declared: Any) -> Run:
    return replace(run, tune=Tune(**{"ranges": RANGES, "trials": 3, **declared}))


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "trials.jsonl").read_text(encoding="utf-8").splitlines()]


def attempts(folder: Path, arm: str = "run") -> list[TrialState]:
    """What the journal holds of an arm, also what does not count."""
    storage = optuna.storages.JournalStorage(JournalFileBackend(str(folder / "tune.journal")))
    return [trial.state for trial in optuna.load_study(study_name=arm, storage=storage).trials]


def interrupted(at: int, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """The training with this number, from 1, is cut off."""
    fit_once, calls = module.fit_once, [0]

    def fit(*given: Any, **named: Any) -> Any:
        calls[0] += 1
        if calls[0] == at:
            raise error
        return fit_once(*given, **named)

    monkeypatch.setattr(module, "fit_once", fit)


# ---------------------------------------------------------------- ranges


@pytest.mark.usefixtures("quick")
def test_settings_are_of_their_ranges(run: Run, tmp_path: Path) -> None:
    tuned = tune(search(run, trials=5), tmp_path / "out", quiet=True)
    assert [trial.number for trial in tuned.trials] == [1, 2, 3, 4, 5]
    for trial in tuned.trials:
        assert list(trial.settings) == list(RANGES)
        assert 0.05 <= trial.settings["loss.temperature"] <= 0.5
        assert type(trial.settings["negatives.n"]) is int
        assert 3 <= trial.settings["negatives.n"] <= 6
        assert trial.settings["towers.query.widths"] in ([4], [8, 4])
    assert len({trial.settings["loss.temperature"] for trial in tuned.trials}) == 5


def test_the_folder_tells_all(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    tuned = tune(search(run, seeds=2, trials=2), out)
    assert sorted(path.name for path in out.iterdir()) == ["best.toml", "trials.jsonl", "tune.journal", "tune.png"]
    found = rows(out)
    assert [row["trial"] for row in found] == [1, 2]
    for row, trial in zip(found, tuned.trials, strict=True):
        assert row["settings"] == trial.settings
        assert row["value"] == sum(row["values"]) / 2 == trial.outcome.value
        assert len(row["values"]) == len(row["epochs"]) == 2
    best = max(found, key=lambda row: row["value"])
    assert tuned.best is not None
    assert tuned.best.number == best["trial"]
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("run ")]
    assert [line.split(":")[0] for line in lines] == ["run 1/2", "run 2/2"]
    assert f"recall@2 {found[0]['value']:.4f} in " in lines[0]
    shown = tuned.render()
    assert shown.splitlines()[0].split() == ["arm", "recall@2", *RANGES, "trials", "s", "a", "trial"]
    assert shown.splitlines()[1].split()[:2] == ["run", f"{best['value']:.4f}"]
    assert (out / "tune.png").read_bytes().startswith(b"\x89PNG")


def test_the_best_run_can_be_trained(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run.data is not None
    elsewhere = Path(run.data.store).parent
    monkeypatch.chdir(elsewhere)
    relative = replace(run, data=Data(interactions=("events.parquet",), store="store"))
    tuned = tune(search(relative), tmp_path / "out", quiet=True)
    monkeypatch.chdir(tmp_path)
    best = load_run(tmp_path / "out" / "best.toml")
    assert tuned.best is not None
    assert best.tune is None
    assert best.negatives.n == tuned.best.settings["negatives.n"]  # type: ignore[attr-defined]
    assert best.loss.temperature == tuned.best.settings["loss.temperature"]  # type: ignore[attr-defined]
    assert train(best, tmp_path / "model", quiet=True).best_metric == tuned.best.outcome.value


def test_training_ignores_what_is_to_be_searched(run: Run, tmp_path: Path) -> None:
    with_tune = search(run, arms={"bpr": Arm(set=("loss={kind='BPR'}",), ranges={"towers.dim": Range(choices=(2, 4))})})
    assert parse_run(dump_run(with_tune)).tune == with_tune.tune
    plain = train(run, tmp_path / "plain", quiet=True)
    assert train(with_tune, tmp_path / "searched", quiet=True).best_metric == plain.best_metric


@pytest.mark.usefixtures("quick")
def test_what_diverges_is_a_result(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted(2, monkeypatch, DataError("training: the loss is not finite at step 3"))
    tuned = tune(search(run), tmp_path / "out", quiet=True)
    assert [trial.outcome.state for trial in tuned.trials] == ["done", "failed", "done"]
    assert rows(tmp_path / "out")[1]["error"] == "training: the loss is not finite at step 3"
    assert "3 (1 failed)" in tuned.table()


@pytest.mark.usefixtures("quick")
def test_nothing_but_failures_is_an_error(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted(1, monkeypatch, DataError("the loss is not finite"))
    with pytest.raises(DataError, match="none of 1 trials has a value; the last one failed: the loss is not finite"):
        tune(search(run, trials=1), tmp_path / "out", quiet=True)


@pytest.mark.usefixtures("quick")
def test_a_hopeless_trial_is_given_up(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    curves = iter([[0.2, 0.3], [0.2, 0.4], [0.2, 0.5], [0.2, 0.6], [0.2, 0.7], [0.2, 0.49], [0.2, 0.51], [0.1, 0.9]])

    def fit(run: Run, *given: object, recorder: Recorder) -> SimpleNamespace:
        curve = next(curves)
        for step, value in enumerate(curve):
            recorder.write("valid", step, float(step), {run.training.metric: value})
        return SimpleNamespace(best_metric=curve[-1], best_epoch=1.0)

    monkeypatch.setattr(module, "fit_once", fit)
    tuned = tune(search(run, trials=8, prune=True), tmp_path, quiet=True)
    states = [trial.outcome.state for trial in tuned.trials]
    assert states == ["done"] * 5 + ["pruned", "done", "pruned"]  # medians .5, .5 and, at the first validation, .2
    assert "8 (2 pruned)" in tuned.table()
    assert tuned.best is not None
    assert tuned.best.outcome.value == 0.7


# ---------------------------------------------------------------- cut off, and on again


@pytest.mark.usefixtures("quick")
def test_a_search_goes_on_to_its_number(run: Run, tmp_path: Path) -> None:
    whole = tune(search(run, trials=4), tmp_path / "whole", quiet=True)
    out = tmp_path / "parts"
    tune(search(run, trials=1), out, quiet=True)
    parts = tune(search(run, trials=4), out, quiet=True)
    assert attempts(out) == [TrialState.COMPLETE] * 4
    assert [(t.settings, t.outcome.value) for t in parts.trials] == [
        (t.settings, t.outcome.value) for t in whole.trials
    ]
    again = tune(search(run, trials=4), out, quiet=True)
    assert again.trials == parts.trials
    assert attempts(out) == [TrialState.COMPLETE] * 4
    assert tune(search(run, trials=2), out, quiet=True).trials == parts.trials[:2]


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("killed")])
def test_a_killed_trial_is_tried_again(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        interrupted(2, patch, error)
        with pytest.raises(type(error)):
            tune(search(run), out, quiet=True)
    assert attempts(out) == [TrialState.COMPLETE, TrialState.RUNNING]
    assert len(rows(out)) == 1
    assert (out / "best.toml").exists()
    tuned = tune(search(run), out, quiet=True)
    assert attempts(out) == [TrialState.COMPLETE, TrialState.FAIL, TrialState.COMPLETE, TrialState.COMPLETE]
    whole = tune(search(run), tmp_path / "whole", quiet=True)
    assert [trial.settings for trial in tuned.trials] == [trial.settings for trial in whole.trials]


@pytest.mark.usefixtures("quick")
def test_a_line_that_was_cut_off_is_dropped(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    tune(search(run, trials=1), out, quiet=True)
    with (out / "tune.journal").open("a", encoding="utf-8") as journal:
        journal.write('{"op_code":4,"wor')
    assert len(tune(search(run, trials=2), out, quiet=True).trials) == 2


@pytest.mark.usefixtures("quick")
def test_the_journal_is_json(run: Run, tmp_path: Path) -> None:
    tune(search(run, trials=1), tmp_path, quiet=True)
    for line in (tmp_path / "tune.journal").read_text(encoding="utf-8").splitlines():
        assert isinstance(json.loads(line), dict)
    assert not issubclass(JournalFileBackend, BaseJournalSnapshot)  # the only ones that Optuna pickles for


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("change", "difference"),
    [
        (lambda run: replace(run, training=replace(run.training, epochs=1)), "training.epochs = 2.0, this one has 1.0"),
        (lambda run: search(run, seeds=2), "tune.seeds = 1, this one has 2"),
        (
            lambda run: search(run, ranges={"towers.dim": Range(low=2, high=4)}),
            '"choices": null}, this one has null',
        ),
    ],
)
def test_a_folder_is_of_one_search(run: Run, tmp_path: Path, change: Callable[[Run], Run], difference: str) -> None:
    one = search(run, ranges={"negatives.n": Range(low=3, high=6)}, trials=1)
    tune(one, tmp_path, quiet=True)
    with pytest.raises(ConfigError) as error:
        tune(change(one), tmp_path, quiet=True)
    assert f"{tmp_path}: holds a search with " in str(error.value)
    assert difference in str(error.value)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("text", ["no journal\n", '{"op_code": 99}\n', "[]\n"])
def test_a_damaged_journal(run: Run, tmp_path: Path, text: str) -> None:
    (tmp_path / "tune.journal").write_text(text, encoding="utf-8")
    with pytest.raises(ArtifactError, match=r"tune\.journal: damaged or no journal of a search .*choose another"):
        tune(search(run), tmp_path, quiet=True)


def test_what_no_search_wrote_stays(run: Run, tmp_path: Path) -> None:
    (tmp_path / "best.toml").write_text("mine", encoding="utf-8")
    with pytest.raises(ArtifactError, match=r"holds a best\.toml that no search wrote"):
        tune(search(run), tmp_path, quiet=True)
    with pytest.raises(ArtifactError, match=r"best\.toml: there is a file"):
        tune(search(run), tmp_path / "best.toml", quiet=True)
    assert (tmp_path / "best.toml").read_text(encoding="utf-8") == "mine"


# ---------------------------------------------------------------- arms


@pytest.mark.usefixtures("quick")
def test_arms_have_equal_budgets(run: Run, tmp_path: Path) -> None:
    arms = {
        "bilateral": Arm(set=("loss={kind='BilateralSoftmax'}",), ranges={"loss.exponent": Range(low=0.8, high=1.2)}),
        "bpr": Arm(set=("loss={kind='BPR'}",), ranges={"loss.temperature": Range(low=0.5, high=1.0)}),
    }
    common = {"training.tables.lr": Range(low=0.01, high=0.5, log=True)}
    tuned = tune(search(run, trials=2, ranges=common, arms=arms), tmp_path, quiet=True)
    assert [(row["arm"], row["trial"]) for row in rows(tmp_path)] == [
        *(("bilateral", 1), ("bpr", 1)),
        *(("bilateral", 2), ("bpr", 2)),
    ]
    assert all("loss.exponent" in trial.settings for trial in tuned.of("bilateral"))
    assert all("loss.exponent" not in trial.settings for trial in tuned.of("bpr"))
    rates = [[trial.settings["training.tables.lr"] for trial in tuned.of(arm)] for arm in arms]
    assert rates[0] == rates[1]  # the same draws
    head, bilateral, bpr = (line.split() for line in tuned.table().splitlines())
    assert head[2:5] == ["training.tables.lr", "loss.exponent", "loss.temperature"]
    assert (bilateral[4], bpr[3]) == ("-", "-")
    assert (bilateral[5], bpr[5]) == ("2", "2")


@pytest.mark.usefixtures("quick")
def test_the_best_run_is_of_the_best_arm(run: Run, tmp_path: Path) -> None:
    arms = {"softmax": Arm(), "bpr": Arm(set=("loss={kind='BPR'}",)), "again": Arm(set=("loss={kind='BPR'}",))}
    same = {"negatives.n": Range(low=3, high=6)}
    tuned = tune(search(run, trials=1, ranges=same, arms=arms), tmp_path, quiet=True)
    assert tuned.best is not None
    assert tuned.best.arm == "bpr"  # of equals the first
    assert isinstance(load_run(tmp_path / "best.toml").loss, BPR)
    said = (tmp_path / "best.toml").read_text(encoding="utf-8").splitlines()[0]
    assert said == "# recall@2 1.0000 on validation: arm bpr, trial 1 of a search"


@pytest.mark.usefixtures("quick")
def test_an_arm_more_joins_a_search(run: Run, tmp_path: Path) -> None:
    arms = {"softmax": Arm(), "bpr": Arm(set=("loss={kind='BPR'}",))}
    tune(search(run, trials=2, arms={"softmax": arms["softmax"]}), tmp_path, quiet=True)
    tuned = tune(search(run, trials=2, arms=arms), tmp_path, quiet=True)
    assert [len(tuned.of(arm)) for arm in arms] == [2, 2]
    assert attempts(tmp_path, "softmax") == [TrialState.COMPLETE] * 2


# ---------------------------------------------------------------- sweeps


@pytest.mark.usefixtures("quick")
def test_a_sweep_is_complete(run: Run, tmp_path: Path) -> None:
    arms = {"softmax": Arm(), "bpr": Arm(set=("loss={kind='BPR'}",))}
    sweep = ["loss.temperature=0.1,0.5", "towers.query.widths=[4],[8,4]"]
    tuned = tune(search(run, arms=arms, trials=1), tmp_path, sweep=sweep, quiet=True)
    grid = [(0.1, [4]), (0.1, [8, 4]), (0.5, [4]), (0.5, [8, 4])]
    for arm in arms:
        assert [tuple(trial.settings.values()) for trial in tuned.of(arm)] == grid
    combinations = [line.split() for line in tuned.table().split("\n\n")[1].splitlines()]
    assert combinations[0] == ["loss.temperature", "towers.query.widths", "softmax", "bpr"]
    assert [line[0] for line in combinations[1:]] == ["0.1", "0.1", "0.5", "0.5"]


@pytest.mark.usefixtures("quick")
def test_a_sweep_is_of_any_values(run: Run, tmp_path: Path) -> None:
    sweep = ["negatives={kind='InBatch'},{kind='Uniform',n=4}", "loss.temperature=0.123451,0.123452"]
    tuned = tune(run, tmp_path, sweep=sweep, quiet=True)
    kinds = [(trial.settings["negatives"]["kind"], trial.settings["loss.temperature"]) for trial in tuned.trials]
    assert kinds == [(kind, value) for kind in ("InBatch", "Uniform") for value in (0.123451, 0.123452)]
    assert len(tuned.table().split("\n\n")[1].splitlines()) == 1 + 4
    assert tune(run, tmp_path, sweep=sweep, quiet=True).trials == tuned.trials


@pytest.mark.usefixtures("quick")
def test_a_sweep_needs_no_ranges_and_goes_on(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = ["training.seed=0,1,2"]
    with monkeypatch.context() as patch:
        interrupted(2, patch, RuntimeError("killed"))
        with pytest.raises(RuntimeError):
            tune(run, tmp_path, sweep=sweep, quiet=True)
    tuned = tune(run, tmp_path, sweep=sweep, quiet=True)
    assert [trial.settings["training.seed"] for trial in tuned.trials] == [0, 1, 2]
    with pytest.raises(ConfigError, match="holds a search with"):
        tune(run, tmp_path, sweep=["training.seed=0,1"], quiet=True)


@pytest.mark.usefixtures("quick")
def test_values_on_other_data_are_not_compared(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tune(run, tmp_path, sweep=["training.seed=0"], quiet=True)
    opened = module.open_or_ingest
    monkeypatch.setattr(module, "open_or_ingest", lambda *given, **more: replace(opened(*given, **more), n_items=7))
    with pytest.raises(ConfigError, match=r"holds a search with data\.items = \d+, this one has 7"):
        tune(run, tmp_path, sweep=["training.seed=0"], quiet=True)


# ---------------------------------------------------------------- what can't be searched


@pytest.mark.parametrize(
    ("declared", "sweep", "message"),
    [
        ({"ranges": {}}, (), r"tune: nothing varies: declare ranges, such as \[tune\.ranges\]"),
        ({"ranges": {}, "arms": {"a": Arm(ranges=RANGES), "b": Arm()}}, (), r"tune\.arms\.b: nothing varies"),
        (
            {"ranges": {"loss.temprature": Range(low=1, high=2)}},
            (),
            r"^tune: ranges: loss\.temprature is not a setting of SampledSoftmax: did you mean 'temperature'\?$",
        ),
        (
            {"ranges": {"loss.exponent": Range(low=1, high=2)}, "arms": {"bpr": Arm(set=("loss={kind='BPR'}",))}},
            (),
            r"tune\.arms\.bpr: ranges: loss\.exponent is not a setting of BPR.*goes under tune\.arms\.NAME\.ranges",
        ),
        (
            {"ranges": {"loss.temperature": Range(low=0, high=1)}},
            (),
            r"tune: ranges: loss\.temperature of SampledSoftmax: found 0\.0, expected a positive number",
        ),
        (
            {"ranges": {"negatives.n": Range(low=1, high=2.5)}},
            (),
            r"tune: ranges: negatives\.n: found 2\.5 \(number\), expected a whole number",
        ),
        (
            {"ranges": {"loss..x": Range(low=1, high=2)}},
            (),
            r"'loss\.\.x' is no name of a setting, such as loss\.temperature",
        ),
        (
            {"ranges": {"evaluation.filter_seen": Range(choices=(True, False))}},
            (),
            r"tune: ranges: changes evaluation, but values of trials can be compared only where it is the same",
        ),
        ({"ranges": {"training.seed": Range(low=0, high=9)}}, (), r"found training\.seed, but the luckiest is not"),
        ({"ranges": {"tune.trials": Range(low=1, high=9)}}, (), r"tune: ranges: changes tune, "),
        ({"arms": {"a": Arm(set=("training.metric=ndcg@2",))}}, (), r"tune\.arms\.a: changes training\.metric"),
        (
            {"arms": {"a": Arm(set=("training.epochs=9",))}},
            (),
            r"tune\.arms\.a: changes training\.epochs, expected 2\.0 as in the run: arms get equal budgets",
        ),
        (
            {"arms": {"a": Arm(ranges={"training.epochs": Range(low=1, high=9)})}},
            (),
            r"tune\.arms\.a: changes training\.epochs",
        ),
        ({"arms": {"a": Arm(set=("loss.kind",))}}, (), r"tune\.arms\.a: --set loss\.kind: expected NAME=VALUE"),
        ({}, ["loss.temperature"], r"--sweep loss\.temperature: expected NAME=VALUE,VALUE,"),
        ({}, ["loss.temperature=0.1,,0.2"], r"expected NAME=VALUE,VALUE,"),
        ({}, ["loss.temperature=0.1,0.1"], r"--sweep .*: found 0\.1, 0\.1, expected each choice once"),
        ({}, ["loss.temperature=1", "loss.temperature=2"], r"found loss\.temperature a second time"),
        ({}, ["loss.temperature=0.1,many"], r"--sweep in tune: loss\.temperature: found 'many' \(text\)"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_done(
    run: Run, tmp_path: Path, declared: dict[str, Any], sweep: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        tune(search(run, **declared), tmp_path / "out", sweep=sweep, quiet=True)
    assert not (tmp_path / "out").exists()


def test_validation_is_needed(run: Run, tmp_path: Path) -> None:
    without = parse_run(dump_run(run), set=["split={kind='RandomSplit',valid=0,test=0.1}"])
    with pytest.raises(ConfigError, match="split: RandomSplit holds out no event for validation"):
        tune(search(without), tmp_path / "out", quiet=True)


def test_optuna_is_needed(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ConfigError, match=r"needs Optuna, which is not installed: pip install 'twotower\[tune\]'"):
        tune(search(run), tmp_path / "out", quiet=True)


def test_without_matplotlib_there_is_no_picture(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    tuned = tune(search(run, trials=1), tmp_path, quiet=True)
    assert tuned.plot is None
    assert not (tmp_path / "tune.png").exists()
    assert "no plot, as matplotlib is not installed: pip install 'twotower[plots]'" in tuned.render()
    assert tuned.table() in tuned.render()
