"""What is cut off goes on, and ends bit for bit as if it had not been: every part, every stage, whatever was lost."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
import typing
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.negatives.examples import EXAMPLES
from tests.stores import make_store
from tests.training.checkerboard import SIZE, checkerboard, run_of
from tests.training.test_train import data as data
from tests.training.test_train import run_on
from twotower.config import Data, Run, Training, dump_run, parse_run
from twotower.data.batches import TrainingBatches
from twotower.data.held_out import held_out
from twotower.data.splits import SHOWN
from twotower.data.store import Store
from twotower.data.thinning import UniformThinning
from twotower.errors import ArtifactError, ConfigError
from twotower.frequency import StreamingFrequency
from twotower.losses import BPR, Loss, Losses, SampledSoftmax, Symmetric
from twotower.optimisers import Adagrad, AdamW, RowwiseAdam
from twotower.part import Part
from twotower.schema import Categorical, History, Id, Number
from twotower.towers import Tower, TwoTower
from twotower.towers.graph import Graph
from twotower.towers.svd_start import SvdStart
from twotower.training import checkpoint, loop, train
from twotower.training.interrupts import Interrupts
from twotower.training.loop import Fit, Loop, trained_events
from twotower.training.matmul import Matmul
from twotower.training.recorder import Recorder
from twotower.training.step import Model, StepReport


@pytest.fixture(autouse=True)
def unsynced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Power does not fail here, and waiting for the disk is most of the time of a small checkpoint."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture(autouse=True, scope="module")
def unprobed() -> Iterator[None]:
    """Nor is it tried out which products are fast."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "probe", lambda: Matmul(precision="highest", seconds={}, error={}))
        yield


# ---------------------------------------------------------------- every part

EVENTS = [(user, item) for user in range(SIZE) for item in range(SIZE)]
"""Of its own parity a user takes all it is shown, of the other one nothing, and that only some were shown."""
SHOWN_EVENTS = [(user, item) for user, item in EVENTS if user % 2 == item % 2 or (user + item) % 5 == 0]
PART = np.array([(0 if user % 2 == item % 2 else SHOWN) for user, item in SHOWN_EVENTS])
PART[::31] += 1
STEPS_PER_EPOCH, EPOCHS, CUT = 4, 2, 5


def store_of(*, ids_only: bool = False) -> Store:
    """With times, impressions, a context and a history."""
    of_event = {"n": np.array([item % 3 for _, item in SHOWN_EVENTS], np.float32)}
    return make_store(
        SHOWN_EVENTS,
        time_us=[e * 3_600_000_000 for e in range(len(SHOWN_EVENTS))],
        taken=[user % 2 == item % 2 for user, item in SHOWN_EVENTS],
        query={"user": Id(column="user")} | ({} if ids_only else {"country": Categorical(column="country")}),
        context={} if ids_only else {"history": History(k=3), "n": Number(column="n")},
        query_columns={"country": np.arange(SIZE, dtype=np.int32) % 3},
        context_columns={} if ids_only else of_event,
        table_sizes={"query.country": 3},
    )


class Killed(BaseException):
    """What no ``except`` of the program catches."""


class Killing(Recorder):
    """Kills the process at a step, before anything of it is saved."""

    def __init__(self, folder: Path | None, at: int) -> None:
        super().__init__(folder, quiet=True)
        self.kill_at = at

    def step(self, step: int, epoch: float, rate: float, report: StepReport, temperature: float | None) -> None:
        """One step."""
        super().step(step, epoch, rate, report, temperature)
        if step == self.kill_at:
            raise Killed


def settled(run: Run, **training: Any) -> Run:
    """The run in steps of which four are an epoch."""
    n = len(trained_events(PART, "train")[0])
    sizes = {"batch_size": -(-n // STEPS_PER_EPOCH), "epochs": EPOCHS, "validate_every": 0.75, **training}
    return replace(run, training=replace(run.training, **sizes))


def loop_of(run: Run, store: Store, recorder: Recorder | None = None, folder: Path | None = None) -> Loop:
    events, shown = trained_events(PART, "train")
    return Loop(
        run, store, events, held_out(store, PART, "valid"), recorder or Recorder(None, quiet=True), folder, shown=shown
    )


def all_tensors(found: Loop) -> dict[str, torch.Tensor]:
    """What is saved, what is not, and the dense optimiser's."""
    of_model = {**dict(found.model.named_parameters()), **dict(found.model.named_buffers())}
    state = {} if found.stepper.optimiser is None else found.stepper.optimiser.state_dict()["state"]
    return of_model | {f"{i}.{name}": value for i, values in state.items() for name, value in values.items()}


def check(run: Run, store: Store, folder: Path) -> None:
    """Without a checkpoint, and with one each step, killed and gone on by objects of its own: the same bits."""
    through = loop_of(run, store)
    whole = through.run_to(run.training.epochs)
    saving = replace(run, training=replace(run.training, checkpoint_every_s=0.0))
    with pytest.raises(Killed):
        loop_of(saving, store, Killing(None, at=CUT + 1), folder).run_to(run.training.epochs)
    assert checkpoint.read_state(folder / "last")["step"] == CUT
    resumed = loop_of(run, store, folder=folder)
    rest = resumed.run_to(run.training.epochs, done=folder / "last")
    found = all_tensors(resumed)
    for name, value in all_tensors(through).items():
        assert torch.equal(found[name].nan_to_num(), value.nan_to_num()), name
    assert found.keys() == all_tensors(through).keys()
    assert summary(rest) == summary(whole)
    assert plain_state(resumed.model) == plain_state(through.model)


def summary(fit: Fit) -> tuple[object, ...]:
    return fit.steps, fit.epochs, fit.best_epoch, fit.best_metric, fit.history


def plain_state(model: Model) -> dict[str, object]:
    """Numbers that parts hold outside of tensors: those must not change, or they would not come back."""
    return {
        f"{name}.{key}": value
        for name, part in model.named_modules()
        if isinstance(part, Part)
        for key, value in vars(part).items()
        if isinstance(value, int | float | str | None) and value == value
    }


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_sampler(name: str, tmp_path: Path) -> None:
    store = store_of()
    check(settled(replace(run_of(store, loss=BPR()), negatives=EXAMPLES[name])), store, tmp_path)


@pytest.mark.parametrize("loss", typing.get_args(Losses), ids=lambda loss: loss.__name__)
def test_every_loss(loss: type[Loss], tmp_path: Path) -> None:
    store = store_of()
    run = run_of(store, loss=loss(), parts={"frequency": StreamingFrequency(buckets=64, burn_in=0.5)})
    check(settled(run), store, tmp_path)


DROPOUT = TwoTower(dim=4, query=Tower(widths=(8, 4), dropout=0.3, id_dropout=0.2), item=Tower(id_dropout=0.2))
IDS = TwoTower(dim=4, start=SvdStart(), graph=Graph(layers=2))
SETTINGS: dict[str, tuple[TwoTower, dict[str, Any]]] = {
    "AdamW": (DROPOUT, {"dense": AdamW(weight_decay=0.1), "tables": RowwiseAdam(), "clip_norm": 0.5}),
    "Adagrad": (DROPOUT, {"dense": Adagrad(), "schedule": "cosine", "warmup_steps": 6, "query_weight": -0.5}),
    "no momentum": (DROPOUT, {"tables": RowwiseAdam(beta1=0.0), "schedule": "constant"}),
    "chunks": (DROPOUT, {"encode_chunk": 7}),
    "bfloat16": (DROPOUT, {"precision": "bfloat16", "tile": 16}),
    "days": (DROPOUT, {"order": "days", "batch_size": 1000}),
    "thinned": (DROPOUT, {"thin": UniformThinning(keep=0.5), "batch_size": 55}),
    "graph": (IDS, {"dense": AdamW()}),
    "graph of queries": (IDS, {"batch_of": "queries", "batch_size": 8}),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_every_way_of_training(name: str, tmp_path: Path) -> None:
    towers, training = SETTINGS[name]
    store = store_of(ids_only=towers is IDS)
    loss = Symmetric(of=SampledSoftmax(temperature=0.2, learn_temperature=True))
    run = run_of(store, loss=loss, towers=towers, parts={"frequency": StreamingFrequency(buckets=64)}, **training)
    check(settled(run, **training), store, tmp_path)


# ---------------------------------------------------------------- a training, from its files


@pytest.fixture(scope="module")
def run(data: Data) -> Run:
    """Four steps an epoch, validated twice an epoch; the best is not the last, and it is refitted."""
    return run_on(data, epochs=3, validate_every=0.5, refit=True, checkpoint_every_s=0.0)


@pytest.fixture(scope="module")
def whole(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What came out without a cut."""
    folder = tmp_path_factory.mktemp("whole") / "model"
    train(run, folder, quiet=True)
    return folder


TIMES = {"seconds", "fit_seconds", "refit_seconds", "folder", "examples_per_s", "recorder"}


def without_times(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {name: without_times(value) for name, value in tree.items() if name not in TIMES}
    return tree


def outcome(folder: Path) -> dict[str, object]:
    """All of a trained model that does not tell the time."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return {
        "names": sorted(path.name for path in folder.iterdir()),
        "metrics": [without_times(json.loads(line)) for line in lines],
        "train": without_times(json.loads((folder / "train.json").read_text(encoding="utf-8"))),
        **{name: (folder / name / "model.safetensors").read_bytes() for name in ("best", "last")},
        **{f"{name} state": without_times(checkpoint.read_state(folder / name)) for name in ("best", "last")},
    }


def cut(monkeypatch: pytest.MonkeyPatch, at: int, error: BaseException | None = None) -> None:
    """Stop at the step that is taken as number ``at``, counted over all stages."""
    left = iter(range(1, 10**6))
    step = Loop._step

    def stepper(self: Loop, number: int, batch: Any) -> None:
        if next(left) == at:
            raise error or Killed
        step(self, number, batch)

    monkeypatch.setattr(Loop, "_step", stepper)


def killed(run: Run, folder: Path, at: int, error: BaseException | None = None) -> None:
    with pytest.MonkeyPatch.context() as patch:
        cut(patch, at, error)
        with pytest.raises(type(error) if error else Killed):
            train(run, folder, quiet=True)


FIT_STEPS = 12
"""Thirty queries of eight a batch: four steps an epoch."""


@pytest.mark.parametrize("at", [1, 2, 4, 7, FIT_STEPS, FIT_STEPS + 1, FIT_STEPS + 2])
def test_a_killed_training_ends_as_if_it_had_not_been(
    run: Run, whole: Path, tmp_path: Path, at: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the fit, between its end and the refit, and in the refit."""
    folder = tmp_path / "model"
    killed(run, folder, at)
    if at > 2:
        killed(run, folder, 2)  # of those that are left
    train(run, folder)
    assert outcome(folder) == outcome(whole)
    said = capsys.readouterr().out
    if at > 1:
        assert "goes on with a training that was cut off, after step" in said
        assert ("of the refit" in said) == (at >= FIT_STEPS + 1)


def test_killed_before_it_says_that_it_is_done(run: Run, whole: Path, tmp_path: Path) -> None:
    def die(trained: object) -> None:
        raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "asdict", die)
        with pytest.raises(Killed):
            train(run, tmp_path / "model", quiet=True)
    assert not (tmp_path / "model" / "train.json").exists()
    with pytest.MonkeyPatch.context() as patch:
        cut(patch, 1)  # nothing is left to train
        train(run, tmp_path / "model", quiet=True)
    assert outcome(tmp_path / "model") == outcome(whole)


def test_seconds_are_those_of_all_stretches(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    killed(run, folder, 6)
    before = checkpoint.read_state(folder / "last")["seconds"]
    assert before > 0
    trained = train(run, folder, quiet=True)
    assert trained.fit_seconds > before


def test_products_are_made_as_before(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though another way seems the fastest now."""
    killed(run, tmp_path / "model", 3)
    assert checkpoint.read_state(tmp_path / "model" / "last")["products"] == "highest"
    monkeypatch.setattr(loop, "probe", lambda: Matmul(precision="medium", seconds={}, error={}))
    train(run, tmp_path / "model", quiet=True)
    assert checkpoint.read_state(tmp_path / "model" / "last")["products"] == "highest"


def test_patience_goes_on_too(data: Data, tmp_path: Path) -> None:
    patient = run_on(data, epochs=30, validate_every=1.0, patience=2, checkpoint_every_s=0.0)
    one = train(patient, tmp_path / "one", quiet=True)
    n_validations = len(checkpoint.read_state(tmp_path / "one" / "last")["history"])
    assert n_validations < 30
    killed(patient, tmp_path / "two", 4 * (n_validations - 1) + 2)  # after the first that was worse
    two = train(patient, tmp_path / "two", quiet=True)
    assert (two.best_epoch, two.best_metric) == (one.best_epoch, one.best_metric)
    assert outcome(tmp_path / "two") == outcome(tmp_path / "one")


def test_a_training_that_never_saved_begins_anew(run: Run, whole: Path, tmp_path: Path) -> None:
    rarely = replace(run, training=replace(run.training, checkpoint_every_s=math.inf))
    killed(rarely, tmp_path / "model", 6)
    assert (tmp_path / "model" / "best").exists()
    assert not (tmp_path / "model" / "last").exists()
    train(rarely, tmp_path / "model", quiet=True)
    found, want = outcome(tmp_path / "model"), outcome(whole)
    for name in ("best", "last", "best state", "last state", "train"):
        assert found[name] == want[name]


def test_only_the_same_run_goes_on(run: Run, data: Data, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    killed(run, folder, 3)
    other = replace(run, training=replace(run.training, seed=5))
    with pytest.raises(ArtifactError, match=r"of a run with training.seed = 0, this one has 5: choose another folder"):
        train(other, folder, quiet=True)
    state = checkpoint.read_state(folder / "last")
    grown = dataclasses.replace(checkerboard(), n_events=state["data"][2] + 1)
    with pytest.raises(ArtifactError, match=r"was trained on 30 queries, 30 items and 450 events, but the store has"):
        Loop(run, grown, np.arange(450), None, Recorder(None, quiet=True), folder).run_to(1.0, done=folder / "last")


# ---------------------------------------------------------------- Ctrl-C


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """SIGINT interrupts, as in a terminal: what runs in the background is started without it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_waits_for_the_end_of_the_step(run: Run, whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    rarely = replace(run, training=replace(run.training, checkpoint_every_s=math.inf))
    step = Loop._step

    def stepper(self: Loop, number: int, batch: Any) -> None:
        if number == 5:
            os.kill(os.getpid(), signal.SIGINT)
        step(self, number, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Loop, "_step", stepper)
        with pytest.raises(KeyboardInterrupt):
            train(rarely, folder, quiet=True)
    state = checkpoint.read_state(folder / "last")
    assert (state["step"], "torn" in state) == (5, False)
    train(rarely, folder, quiet=True)
    found, want = outcome(folder), outcome(whole)
    assert all(found[name] == want[name] for name in ("best", "last", "best state", "last state", "train"))


@pytest.mark.usefixtures("ctrl_c")
def test_the_second_ctrl_c_does_not_wait() -> None:
    with Interrupts() as interrupts:
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupts.asked
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_torn_model_is_left_behind(run: Run, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Interrupted within steps 6, 3 of the rest and 1 of what is left then: each goes on after the last whole step."""
    folder = tmp_path / "model"
    for at in (6, 3, 1):
        killed(run, folder, at, KeyboardInterrupt())
        assert checkpoint.read_state(folder / "last")["torn"]
    train(run, folder)
    assert outcome(folder) == outcome(whole)
    assert "last: was cut off in the midst of a step" in capsys.readouterr().out


# ---------------------------------------------------------------- damage, and no room


def flip(path: Path, at: float) -> None:
    content = bytearray(path.read_bytes())
    content[int(at * (len(content) - 1))] ^= 0x10
    path.write_bytes(content)


TENSORS, STATE = "model.safetensors", "state.json"
DAMAGES: dict[str, Callable[[Path], object]] = {
    "the first bits of the tensors": lambda folder: flip(folder / TENSORS, 0),
    "a bit of the tensors": lambda folder: flip(folder / TENSORS, 0.5),
    "the last bit of the tensors": lambda folder: flip(folder / TENSORS, 1),
    "a bit of the state": lambda folder: flip(folder / STATE, 0.4),
    "half of the tensors": lambda folder: os.truncate(folder / TENSORS, 2000),
    "half of the state": lambda folder: os.truncate(folder / STATE, 100),
    "no tensors": lambda folder: (folder / TENSORS).unlink(),
    "no state": lambda folder: (folder / STATE).unlink(),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_told_and_the_checkpoint_before_is_used(
    run: Run, whole: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "model"
    killed(run, folder, 8)
    assert [checkpoint.read_state(folder / last)["step"] for last in ("last", "last.old")] == [7, 6]
    DAMAGES[name](folder / "last")
    train(run, folder)
    said = capsys.readouterr().out
    assert f"{folder / 'last'}" in said
    assert "goes on with a training that was cut off, after step 6, the checkpoint before that" in said
    assert outcome(folder) == outcome(whole)


def test_where_all_is_damaged_it_begins_anew(
    run: Run, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "model"
    killed(run, folder, 8)
    for last in ("last", "last.old"):
        flip(folder / last / "model.safetensors", 0.7)
    train(run, folder)
    assert "no whole checkpoint is left of a training that was cut off: begins anew" in capsys.readouterr().out
    assert outcome(folder) == outcome(whole)


def test_every_flipped_bit_of_a_checkpoint_is_found(tmp_path: Path) -> None:
    module = torch.nn.Linear(2, 2)
    checkpoint.save(tmp_path / "last", module, None, {"step": 3, "history": [{"epoch": 0.1}], "metric": math.nan})
    for name in ("model.safetensors", "state.json"):
        path = tmp_path / "last" / name
        sound = path.read_bytes()
        for at in range(len(sound)):
            path.write_bytes(sound[:at] + bytes([sound[at] ^ (1 << at % 8)]) + sound[at + 1 :])
            state, wrong = checkpoint.recover(tmp_path / "last")
            assert state is None or (name == "state.json" and json_equal(path.read_bytes(), sound)), (name, at)
            assert bool(wrong) == (state is None)
        path.write_bytes(sound)
    assert checkpoint.recover(tmp_path / "last")[0] is not None


def json_equal(one: bytes, two: bytes) -> bool:
    """Blanks say nothing."""
    return repr(json.loads(one)) == repr(json.loads(two))


@pytest.mark.parametrize("at", [1, 2, 3, 5, 11])
def test_a_full_disk_stops_training_and_spares_what_was_there(run: Run, whole: Path, tmp_path: Path, at: int) -> None:
    """The write of checkpoint number ``at`` fails in its midst."""
    folder, left, save_file = tmp_path / "model", iter(range(1, 10**6)), checkpoint.save_file

    def full(tensors: Any, path: str) -> None:
        if next(left) == at:
            Path(path).write_bytes(b"half of it")
            raise OSError(28, "No space left on device")
        save_file(tensors, path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "save_file", full)
        with pytest.raises(ArtifactError, match=r"No space left on device.*run the same command again"):
            train(run, folder, quiet=True)
    assert not list(folder.glob("*.partial"))
    train(run, folder, quiet=True)
    assert outcome(folder) == outcome(whole)


def test_no_room_for_a_line_of_metrics(run: Run, whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    recorder = Recorder.write

    def full(self: Recorder, what: str, step: int, epoch: float, values: dict[str, float]) -> None:
        if step == 5 and self.file is not None:
            self.file.close()
            self.file = Path("/dev/full").open("ab", buffering=0)  # noqa: SIM115
        recorder(self, what, step, epoch, values)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Recorder, "write", full)
        with pytest.raises(ArtifactError, match="No space left on device"):
            train(run, folder, quiet=True)
    train(run, folder, quiet=True)
    assert outcome(folder) == outcome(whole)


@pytest.mark.parametrize("every_s", [-1.0, math.nan])
def test_times_that_are_none(every_s: float) -> None:
    with pytest.raises(ConfigError, match=r"training.checkpoint_every_s: found .*, expected 0 or more seconds"):
        Training(checkpoint_every_s=every_s)
    assert parse_run(dump_run(run_of(store_of(), checkpoint_every_s=math.inf))).training.checkpoint_every_s == math.inf


def test_batches_of_a_resumed_epoch_are_not_made_twice(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Only those that are left."""
    store, made = store_of(), []
    run = settled(run_of(store), checkpoint_every_s=0.0)
    with pytest.raises(Killed):
        loop_of(run, store, Killing(None, at=CUT + 1), tmp_path).run_to(2.0)
    of_events = TrainingBatches.of_events
    monkeypatch.setattr(TrainingBatches, "of_events", lambda self, index: made.append(1) or of_events(self, index))
    loop_of(run, store, folder=tmp_path).run_to(2.0, done=tmp_path / "last")
    assert len(made) == 2 * STEPS_PER_EPOCH - CUT
