"""Checkpoints: what was saved comes back, whatever moment a process is killed at, and damage is told apart."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tests.training.checkerboard import PART, checkerboard, run_of
from twotower.config import Run
from twotower.data.batches import TrainingBatches
from twotower.data.store import Store
from twotower.errors import ArtifactError
from twotower.frequency import StreamingFrequency
from twotower.losses import SampledSoftmax
from twotower.optimisers import Adagrad, AdamW, DenseOptimiser, RowwiseAdam
from twotower.towers import Tower, TwoTower
from twotower.training import checkpoint
from twotower.training.step import Model, Stepper


def recipe(store: Store, dim: int = 4, dense: DenseOptimiser | None = None) -> Run:
    """A run with every kind of state: tables and their momentum, layers, a learned temperature, gaps of items."""
    return run_of(
        store,
        towers=TwoTower(dim=dim, query=Tower(widths=(8, dim), dropout=0.3)),
        loss=SampledSoftmax(temperature=0.2, learn_temperature=True),
        parts={"frequency": StreamingFrequency(buckets=64)},
        tables=RowwiseAdam(),
        batch_size=16,
        dense=dense or AdamW(),
    )


def batches_of(store: Store) -> TrainingBatches:
    return TrainingBatches(store, np.flatnonzero(PART == 0), batch_of="pairs", batch_size=16)


def started(store: Store, steps: int, dense: DenseOptimiser | None = None) -> Stepper:
    run, batches = recipe(store, dense=dense), batches_of(store)
    torch.manual_seed(0)
    stepper = Stepper(Model(run, store, batches.facts()).train(), run.training)
    take(stepper, batches, 0, steps)
    return stepper


def take(stepper: Stepper, batches: TrainingBatches, start: int, stop: int) -> None:
    for step, batch in enumerate(batches.epoch(0, start), start=start + 1):
        if step > stop:
            return
        stepper(batch, step, 1.0)


@pytest.fixture
def store() -> Store:
    return checkerboard()


# ---------------------------------------------------------------- there and back


@pytest.mark.parametrize("dense", [AdamW(), Adagrad()])
@pytest.mark.parametrize("at", [0, 1, 4])
def test_training_goes_on_from_a_checkpoint_bit_for_bit(
    store: Store, tmp_path: Path, at: int, dense: DenseOptimiser
) -> None:
    folder, batches = tmp_path / "last", batches_of(store)
    through = started(store, 6, dense=dense)
    first = started(store, at, dense=dense)
    checkpoint.save(folder, first.model, first.optimiser, {"step": at, "history": [{"epoch": 0.5}]})

    resumed = started(store, 2, dense=dense)  # other weights, to be replaced
    state = checkpoint.load(folder, resumed.model, resumed.optimiser)
    assert state == {"format": 2, "step": at, "history": [{"epoch": 0.5}]}
    take(resumed, batches, at, 6)
    for name, value in through.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value), name


def test_a_part_comes_back_alone(store: Store, tmp_path: Path) -> None:
    stepper = started(store, 2)
    checkpoint.save(tmp_path / "best", stepper.model, stepper.optimiser, {})
    towers = recipe(store).towers
    towers.build(store.schema, store.encoders.table_sizes)
    checkpoint.load_part(tmp_path / "best", "towers", towers)
    for name, value in stepper.model.towers.state_dict().items():
        assert torch.equal(towers.state_dict()[name], value)
    with pytest.raises(ArtifactError, match="does not fit this run"):
        checkpoint.load_part(tmp_path / "best", "tower", towers)


def test_a_folder_is_only_safetensors_and_json(store: Store, tmp_path: Path) -> None:
    stepper = started(store, 1)
    for _ in range(2):  # the second replaces the first
        checkpoint.save(tmp_path / "best", stepper.model, stepper.optimiser, {})
    assert [path.name for path in tmp_path.iterdir()] == ["best"]
    assert sorted(path.name for path in (tmp_path / "best").iterdir()) == ["model.safetensors", "state.json"]


# ---------------------------------------------------------------- killed while saving


class Killed(BaseException):
    """What no ``except`` of the program catches."""


MOMENTS = ("writing", "before the first rename", "between the renames", "after the renames")


def kill(patch: pytest.MonkeyPatch, moment: str) -> None:
    """Let the process die at a moment of the next save."""
    rename, rmtree = Path.rename, shutil.rmtree
    dying_rename = {"before the first rename": "best.old", "between the renames": "best"}.get(moment)

    def write(tensors: object, path: str) -> None:
        Path(path).write_bytes(b"half of it")
        raise Killed

    def move(self: Path, target: Path) -> Path:
        if target.name == dying_rename:
            raise Killed
        return rename(self, target)

    def remove(path: Path, ignore_errors: bool = False) -> None:
        if path.name == "best.old" and path.exists():
            raise Killed
        rmtree(path, ignore_errors=ignore_errors)

    if moment == "writing":
        patch.setattr(checkpoint, "save_file", write)
    elif moment == "after the renames":
        patch.setattr("twotower.training.checkpoint.shutil.rmtree", remove)
    else:
        patch.setattr(Path, "rename", move)


def numbered(step: int) -> nn.Linear:
    """A module that says which step it is of."""
    module = nn.Linear(2, 2)
    nn.init.constant_(module.weight, step)
    nn.init.constant_(module.bias, step)
    return module


@pytest.mark.parametrize("second", MOMENTS)
@pytest.mark.parametrize("first", MOMENTS)
def test_two_kills_at_any_moments_leave_a_whole_checkpoint(tmp_path: Path, first: str, second: str) -> None:
    folder, newest = tmp_path / "best", 1
    checkpoint.save(folder, numbered(1), None, {"step": 1})
    for step, moment in ((2, first), (3, second)):
        with pytest.MonkeyPatch.context() as patch, contextlib.suppress(Killed):
            kill(patch, moment)
            checkpoint.save(folder, numbered(step), None, {"step": step})
        module = numbered(0)
        found = checkpoint.load(folder, module)["step"]
        assert newest <= found <= step  # never one that is older than what was there
        if (step, moment) == (2, "after the renames"):
            assert found == step
        assert all((value == found).all() for value in module.state_dict().values())
        newest = found
    checkpoint.save(folder, numbered(4), None, {"step": 4})
    assert checkpoint.read_state(folder)["step"] == 4
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "best"
    checkpoint.save(folder, numbered(1), None, {"step": 1})

    def full(tensors: object, path: str) -> None:
        Path(path).write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(ArtifactError, match=r"could not be written .*No space left on device"):
        checkpoint.save(folder, numbered(2), None, {"step": 2})
    assert checkpoint.read_state(folder)["step"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["best"]  # what was half written makes room


# ---------------------------------------------------------------- damage


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"best: holds no checkpoint \(no state.json\): train first"):
        checkpoint.load(tmp_path / "best", numbered(0))


@pytest.mark.parametrize("kept", [0, 4, 40, -1])
def test_truncated_tensors(tmp_path: Path, kept: int) -> None:
    folder = tmp_path / "best"
    checkpoint.save(folder, numbered(1), None, {})
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(ArtifactError, match=r"model.safetensors: damaged or unreadable"):
        checkpoint.load(folder, numbered(0))


def test_missing_tensors(tmp_path: Path) -> None:
    folder = tmp_path / "best"
    checkpoint.save(folder, numbered(1), None, {})
    (folder / "model.safetensors").unlink()
    with pytest.raises(ArtifactError, match=r"model.safetensors: damaged or unreadable"):
        checkpoint.load(folder, numbered(0))


@pytest.mark.parametrize("text", ["", '{"format": 1, "st', "\x00\xff"])
def test_a_damaged_state(tmp_path: Path, text: str) -> None:
    folder = tmp_path / "best"
    checkpoint.save(folder, numbered(1), None, {})
    (folder / "state.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ArtifactError, match=r"state.json: damaged"):
        checkpoint.load(folder, numbered(0))


@pytest.mark.parametrize("state", [{"format": 1}, {}, [1]])
def test_another_format(tmp_path: Path, state: object) -> None:
    folder = tmp_path / "best"
    checkpoint.save(folder, numbered(1), None, {})
    (folder / "state.json").write_text(json.dumps(state), encoding="utf-8")
    with pytest.raises(ArtifactError, match=r"state.json: format (1|None), this version reads 2"):
        checkpoint.load(folder, numbered(0))


def test_other_shapes(store: Store, tmp_path: Path) -> None:
    folder, stepper = tmp_path / "best", started(store, 1)
    checkpoint.save(folder, stepper.model, stepper.optimiser, {})
    other = Model(recipe(store, dim=6), store, batches_of(store).facts())
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(
        ArtifactError, match=r"does not fit this run, .* is missing or of another shape: use the run.toml"
    ):
        checkpoint.load(folder, other)
    assert all(torch.equal(other.state_dict()[name], value) for name, value in before.items())
    with pytest.raises(ArtifactError, match=r"does not fit this run, bias is missing"):
        checkpoint.load_part(folder, "loss", nn.Linear(2, 2))


def test_another_optimiser(tmp_path: Path) -> None:
    module = numbered(1)
    module.weight.grad, module.bias.grad = torch.ones(2, 2), torch.ones(2)
    optimiser = torch.optim.AdamW(module.parameters())
    optimiser.step()
    checkpoint.save(tmp_path / "best", module, optimiser, {})
    for others in ([module.bias, module.weight], [module.weight]):
        with pytest.raises(ArtifactError, match=r"does not fit this run, the optimiser's exp_avg\w* of parameter [01]"):
            checkpoint.load(tmp_path / "best", module, torch.optim.AdamW(others))
