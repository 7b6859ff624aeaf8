"""A checkpoint is a folder of safetensors and JSON that appears whole or not at all, and tells when it was damaged."""

from __future__ import annotations

import json
import os
import shutil
import zlib
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..errors import ArtifactError
from ..part import Part

FORMAT = 2
TENSORS, STATE = "model.safetensors", "state.json"
_TENSORS_CRC, _STATE_CRC = "tensors_crc32", "crc32"
TORN = "torn"
"""In the state of a model that was saved in the midst of a step: it can be used, but not trained on."""
_CHUNK = 1 << 24
_WAY_OUT = "train again, or use another checkpoint"


def save(
    folder: Path,
    modules: nn.Module,
    optimiser: torch.optim.Optimizer | None,
    state: dict[str, Any],
    *,
    keep_previous: bool = False,
) -> None:
    """Write modules, dense optimiser and position; replaces ``folder`` in one rename.

    Raises ArtifactError when the disk is full or not writable; what was there before is then still there. A
    process may be killed and power may fail at any moment: a whole checkpoint is there, for an instant as
    ``FOLDER.old``, where ``load`` finds it. With ``keep_previous`` the one that is replaced stays there, for
    ``recover``.
    """
    tensors = {f"modules.{name}": value.detach().contiguous().cpu() for name, value in modules.state_dict().items()}
    tensors |= {f"optimiser.{name}": value.contiguous().cpu() for name, value in _optimiser_tensors(optimiser).items()}
    partial = folder.with_name(folder.name + ".partial")
    old = _previous(folder)
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        save_file(tensors, str(partial / TENSORS))
        written = {"format": FORMAT, **state, _TENSORS_CRC: _crc_of_file(partial / TENSORS)}
        written[_STATE_CRC] = _crc_of(written)
        (partial / STATE).write_text(json.dumps(written, indent=1), encoding="utf-8")
        for path in (partial / TENSORS, partial / STATE, partial):
            _sync(path)
        if folder.exists():  # else what is in ``old`` is all there is
            shutil.rmtree(old, ignore_errors=True)
            folder.rename(old)
        partial.rename(folder)
        _sync(folder.parent)
        if not keep_previous:
            shutil.rmtree(old, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise ArtifactError(
            f"{folder}: the checkpoint could not be written ({error}): free some space, and run the same command again"
        ) from error


def write_state(folder: Path, state: dict[str, Any]) -> None:
    """Replace the state of a checkpoint, in one rename; its tensors stay.

    Raises ArtifactError where it is missing or damaged, or can't be written.
    """
    folder = _newest(folder)
    written = {**state, "format": FORMAT, _TENSORS_CRC: _read(folder)[_TENSORS_CRC]}
    written[_STATE_CRC] = _crc_of(written)
    partial = folder / f"{STATE}.partial"
    try:
        partial.write_text(json.dumps(written, indent=1), encoding="utf-8")
        _sync(partial)
        partial.replace(folder / STATE)
        _sync(folder)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise ArtifactError(f"{folder / STATE}: can't be written ({error}): free some space") from error


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


def recover(folder: Path) -> tuple[dict[str, Any] | None, list[str]]:
    """The state of the newest checkpoint that training can go on from, and what is wrong with newer ones.

    If it is the one that ``keep_previous`` kept, it takes the place of what is at ``folder``. Reads all of it.
    """
    wrong = []
    for candidate in (folder, _previous(folder)):
        if not candidate.exists():
            continue
        try:
            state = read_state(candidate)
            _check_tensors(candidate)
        except ArtifactError as error:
            wrong.append(str(error).removesuffix(f": {_WAY_OUT}"))
            continue
        if state.get(TORN):
            wrong.append(f"{candidate}: was cut off in the midst of a step")
            continue
        if candidate != folder:
            shutil.rmtree(folder, ignore_errors=True)
            candidate.rename(folder)
        return state, wrong
    return None, wrong


def forget_previous(folder: Path) -> None:
    """Remove what ``keep_previous`` kept."""
    shutil.rmtree(_previous(folder), ignore_errors=True)


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
    _check_tensors(folder)
    try:
        return load_file(str(folder / TENSORS))
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"{folder / TENSORS}: damaged or unreadable ({error}): {_WAY_OUT}") from error


def _check_tensors(folder: Path) -> None:
    """Raise ArtifactError where the file of tensors is not the one that was written."""
    try:
        found = _crc_of_file(folder / TENSORS)
    except OSError as error:
        raise ArtifactError(f"{folder / TENSORS}: damaged or unreadable ({error}): {_WAY_OUT}") from error
    if found != _read(folder)[_TENSORS_CRC]:
        raise ArtifactError(f"{folder / TENSORS}: damaged or unreadable (another checksum): {_WAY_OUT}")


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
    """The JSON of a checkpoint, without checksums. Raises ArtifactError where it is missing, damaged or of another
    version."""
    state = _read(_newest(folder))
    return {name: value for name, value in state.items() if name not in (_TENSORS_CRC, _STATE_CRC)}


def fingerprint(folder: Path) -> str:
    """Eight hexadecimal digits that tell models apart: of all tensors of a checkpoint. Raises ArtifactError as
    ``read_state`` does."""
    return f"{_read(_newest(folder))[_TENSORS_CRC]:08x}"


def _read(folder: Path) -> dict[str, Any]:
    path = folder / STATE
    if not path.exists():
        raise ArtifactError(f"{folder}: holds no checkpoint (no {STATE}): train first")
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path}: damaged ({error}): {_WAY_OUT}") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        found = state.get("format") if isinstance(state, dict) else None
        raise ArtifactError(
            f"{path}: format {found!r}, this version reads {FORMAT}: train again, or use the version that wrote it"
        )
    if state.pop(_STATE_CRC, None) != _crc_of(state):
        raise ArtifactError(f"{path}: damaged (another checksum): {_WAY_OUT}")
    return state


def _crc_of(state: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(state, sort_keys=True).encode())


def _crc_of_file(path: Path) -> int:
    crc = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            crc = zlib.crc32(chunk, crc)
    return crc


def _previous(folder: Path) -> Path:
    return folder.with_name(folder.name + ".old")


def _newest(folder: Path) -> Path:
    """The folder, or what it replaced where a save was cut off between two renames."""
    old = _previous(folder)
    return old if not folder.exists() and old.exists() else folder


def _sync(path: Path) -> None:
    """Onto the disk, a file's content or which names are in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
