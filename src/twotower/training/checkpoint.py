"""A checkpoint is a folder of safetensors and JSON that appears whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..errors import ArtifactError
from ..part import Part

FORMAT = 1
TENSORS, STATE = "model.safetensors", "state.json"


def save(folder: Path, modules: nn.Module, optimiser: torch.optim.Optimizer | None, state: dict[str, Any]) -> None:
    """Write modules, dense optimiser and position; replaces ``folder`` in one rename.

    Raises ArtifactError when the disk is full or not writable; what was there before is then still there. A
    process may be killed at any moment: a whole checkpoint is there, for an instant as ``FOLDER.old``, where ``load``
    finds it.
    """
    tensors = {f"modules.{name}": value.detach().contiguous().cpu() for name, value in modules.state_dict().items()}
    tensors |= {f"optimiser.{name}": value.contiguous().cpu() for name, value in _optimiser_tensors(optimiser).items()}
    partial = folder.with_name(folder.name + ".partial")
    old = folder.with_name(folder.name + ".old")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        save_file(tensors, str(partial / TENSORS))
        (partial / STATE).write_text(json.dumps({"format": FORMAT, **state}, indent=1), encoding="utf-8")
        for name in (TENSORS, STATE):
            _sync(partial / name)
        if folder.exists():  # else what is in ``old`` is all there is
            shutil.rmtree(old, ignore_errors=True)
            folder.rename(old)
        partial.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise ArtifactError(
            f"{folder}: the checkpoint could not be written ({error}): free some space and train on"
        ) from error


def load(folder: Path, modules: nn.Module, optimiser: torch.optim.Optimizer | None = None) -> dict[str, Any]:
    """Fill modules (and the dense optimiser) from a checkpoint; returns its state.

    Raises ArtifactError when it is missing, damaged, of another version or of other shapes.
    """
    state = read_state(folder)
    tensors = _read_tensors(_newest(folder))
    _fill(folder, modules, {n.removeprefix("modules."): v for n, v in tensors.items() if n.startswith("modules.")})
    if optimiser is not None:
        found = {n.removeprefix("optimiser."): v for n, v in tensors.items() if n.startswith("optimiser.")}
        fill_optimiser(folder, optimiser, found)
    return state


def load_part(folder: Path, name: str, module: nn.Module) -> None:
    """Fill one of a checkpoint's modules, such as ``towers``. Raises ArtifactError as ``load`` does."""
    read_state(folder)
    prefix = f"modules.{name}."
    tensors = _read_tensors(_newest(folder))
    _fill(folder, module, {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)})


def read_tensors(folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A checkpoint's tensors by name: those of the modules, and those of the dense optimiser. Raises ArtifactError as
    ``load`` does."""
    tensors = _read_tensors(_newest(folder))
    modules, optimiser = (
        {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
        for prefix in ("modules.", "optimiser.")
    )
    return modules, optimiser


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    try:
        return load_file(str(folder / TENSORS))
    except (OSError, SafetensorError) as error:
        raise ArtifactError(
            f"{folder / TENSORS}: damaged or unreadable ({error}): train again, or use another checkpoint"
        ) from error


def _fill(folder: Path, module: nn.Module, found: dict[str, Tensor]) -> None:
    for prefix, part in module.named_modules():
        if isinstance(part, Part):
            start = f"{prefix}." if prefix else ""
            part.make_room({n.removeprefix(start): v.shape for n, v in found.items() if n.startswith(start)})
    expected = module.state_dict()
    both = expected.keys() & found.keys()
    wrong = sorted(
        (expected.keys() ^ found.keys()) | {name for name in both if expected[name].shape != found[name].shape}
    )
    if wrong:
        raise ArtifactError(
            f"{folder}: does not fit this run, {wrong[0]} is missing or of another shape: use the run.toml beside it"
        )
    module.load_state_dict(found)


def read_state(folder: Path) -> dict[str, Any]:
    """The JSON of a checkpoint."""
    folder = _newest(folder)
    path = folder / STATE
    if not path.exists():
        raise ArtifactError(f"{folder}: holds no checkpoint (no {STATE}): train first")
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path}: damaged ({error}): train again, or use another checkpoint") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        found = state.get("format") if isinstance(state, dict) else None
        raise ArtifactError(
            f"{path}: format {found!r}, this version reads {FORMAT}: train again, or use the version that wrote it"
        )
    return state


def _newest(folder: Path) -> Path:
    """The folder, or what it replaced where a save was cut off between two renames."""
    old = folder.with_name(folder.name + ".old")
    return old if not folder.exists() and old.exists() else folder


def _sync(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _optimiser_tensors(optimiser: torch.optim.Optimizer | None) -> dict[str, Tensor]:
    if optimiser is None:
        return {}
    return {
        f"{index}.{name}": value
        for index, values in optimiser.state_dict()["state"].items()
        for name, value in values.items()
    }


def fill_optimiser(folder: Path, optimiser: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Give a dense optimiser its saved state. Raises ArtifactError where it is of other parameters."""
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        if int(index) >= len(parameters) or (value.dim() and value.shape != parameters[int(index)].shape):
            raise ArtifactError(
                f"{folder}: does not fit this run, the optimiser's {name} of parameter {index} is of another shape: "
                "use the run.toml beside it"
            )
        state.setdefault(int(index), {})[name] = value
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
