"""An index as a folder: ``index.json``, written last, and raw files that can be mapped.

index.json         format, version, settings, counts, and each file's size and CRC-32
base.faiss         the structure, as Faiss writes it
vectors.bin        [M, D] float32, little-endian, unless the caller keeps the vectors
live.bin           [M] bool: rows of the base that are served
rows.bin           [n] int64: the rows of the structure's positions, where they differ
delta-rows.bin, delta-vectors.bin   what came since the structure was built
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ArtifactError, ConfigError, TwoTowerError
from .exact import Vectors
from .kinds import CODEC, IndexSettings
from .structures import Structure

if TYPE_CHECKING:
    from .index import Content, Index

FORMAT, VERSION = "twotower-index", 1
MANIFEST = "index.json"
BASE = "base.faiss"
_ARRAYS = {
    "vectors.bin": np.dtype("<f4"),
    "live.bin": np.dtype("?"),
    "rows.bin": np.dtype("<i8"),
    "delta-rows.bin": np.dtype("<i8"),
    "delta-vectors.bin": np.dtype("<f4"),
}


def write(index: Index, content: Content, folder: Path, *, vectors: bool) -> None:
    """Write it beside the folder first: whoever looks finds a whole index or none."""
    if not vectors and len(content.delta_row_d):
        raise ConfigError(
            f"{folder}: {len(content.delta_row_d)} items changed since the index was built, so it can't be saved "
            "without its vectors: save it with them, or build it from today's"
        )
    _check_free(folder)
    arrays: dict[str, NDArray[Any] | None] = {
        "vectors.bin": content.vector_MD if vectors else None,
        "live.bin": content.live_M,
        "rows.bin": content.structure_row_n,
        "delta-rows.bin": content.delta_row_d,
        "delta-vectors.bin": content.delta_vector_dD,
    }
    partial, replaced = (folder.with_name(f".{folder.name}.{state}") for state in ("partial", "replaced"))
    try:
        for leftover in (partial, replaced):
            shutil.rmtree(leftover, ignore_errors=True)
        partial.mkdir(parents=True)
        for name, array in arrays.items():
            if array is not None:
                array.astype(_ARRAYS[name], copy=False).tofile(partial / name)
        if content.structure is not None:
            content.structure.write(partial / BASE)
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            "settings": CODEC.encode(IndexSettings, index.settings),
            "seed": index.seed,
            "metric": "inner product",
            "n": index.n,
            "n_built": content.n_built,
            "shapes": {name: list(array.shape) for name, array in arrays.items() if array is not None},
            "vector_shape": list(content.vector_MD.shape),
            "longest": None if content.structure is None else content.structure.longest,
            "files": {path.name: _describe(path) for path in sorted(partial.iterdir())},
        }
        (partial / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        _sync(partial)
        if folder.exists():
            folder.rename(replaced)
        partial.rename(folder)
        shutil.rmtree(replaced, ignore_errors=True)
    except OSError as error:
        raise ArtifactError(f"{folder}: the index can't be written ({error}): choose another place") from error


def read(folder: Path, *, mmap: bool, verify: bool, vector_MD: Vectors | None) -> Index:
    """What ``write`` wrote."""
    from .index import Content, Index

    manifest = _manifest(folder)
    try:
        settings: IndexSettings = CODEC.decode(IndexSettings, manifest["settings"], "settings")
        _check_files(folder, manifest["files"], verify=verify)
        arrays = {name: _array(folder / name, shape, mmap=mmap) for name, shape in manifest["shapes"].items()}
        expected = tuple(manifest["vector_shape"])
        structure = None
        if manifest["longest"] is not None:
            structure = Structure.read(folder / BASE, float(manifest["longest"]), mmap=mmap)
        vector_MD = arrays.get("vectors.bin", vector_MD)
        if vector_MD is None:
            raise ArtifactError(f"{folder}: the index was saved without its vectors: give them (vector_MD)")
        if vector_MD.shape != expected or vector_MD.dtype != np.float32:
            raise ArtifactError(
                f"{folder}: found vectors {vector_MD.dtype} of the shape {vector_MD.shape}, expected float32 "
                f"{expected}: the index belongs to others"
            )
        content = Content(
            vector_MD=np.asarray(vector_MD),
            live_M=np.array(arrays["live.bin"]),
            n_live=int(np.count_nonzero(arrays["live.bin"])),
            structure=structure,
            structure_row_n=arrays.get("rows.bin"),
            n_built=int(manifest["n_built"]),
            delta_row_d=np.array(arrays["delta-rows.bin"]),
            delta_vector_dD=np.array(arrays["delta-vectors.bin"]),
        )
        _check_fit(content)
        return Index(settings, content, seed=int(manifest["seed"]))
    except ConfigError as error:
        if "is not installed" in str(error):
            raise
        raise ArtifactError(f"{folder / MANIFEST}: {error}") from error
    except (KeyError, TypeError, ValueError, OSError) as error:
        if isinstance(error, TwoTowerError):
            raise
        raise ArtifactError(f"{folder}: the index is damaged ({error!r}): build it again") from error


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.is_file():
        raise ArtifactError(f"{folder}: holds no index (no {MANIFEST}): build one with twotower index build")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        found = (manifest["format"], manifest["version"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{path}: can't be read ({error!r}): build the index again") from error
    if found != (FORMAT, VERSION):
        raise ArtifactError(
            f"{path}: found {found[0]} version {found[1]}, expected {FORMAT} version {VERSION}: build the index again"
        )
    checked: dict[str, Any] = manifest
    return checked


def _check_files(folder: Path, files: dict[str, dict[str, int]], *, verify: bool) -> None:
    for name, said in files.items():
        path = folder / name
        if not path.is_file():
            raise ArtifactError(f"{path}: is missing: build the index again")
        if path.stat().st_size != said["size"]:
            raise ArtifactError(
                f"{path}: found {path.stat().st_size} bytes, expected {said['size']}: build the index again"
            )
        if verify and _crc32(path) != said["crc32"]:
            raise ArtifactError(f"{path}: its checksum is not that of what was written: build the index again")


def _check_fit(content: Content) -> None:
    """Parts of one index fit one another; ValueError where they don't."""
    n_rows, width = content.vector_MD.shape
    row_n = content.structure_row_n
    fits = content.live_M.shape == (n_rows,) and content.delta_vector_dD.shape == (len(content.delta_row_d), width)
    if content.structure is not None:
        fits &= content.structure.n == (n_rows if row_n is None else len(row_n))
        fits &= int(content.structure.faiss_index.d) == width + (content.structure.longest > 0)
    if row_n is not None and len(row_n):
        fits &= int(row_n[0]) >= 0 and int(row_n[-1]) < n_rows
    if not fits:
        raise ValueError("its files do not fit one another")


def _array(path: Path, shape: list[int], *, mmap: bool) -> NDArray[Any]:
    dtype = _ARRAYS[path.name]
    if 0 in shape:  # an empty file can't be mapped
        return np.zeros(shape, dtype)
    if mmap:
        return np.memmap(path, dtype, mode="r", shape=tuple(shape))
    return np.fromfile(path, dtype).reshape(shape)


def _check_free(folder: Path) -> None:
    """Only an absent place, an empty folder or an index may be taken."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ArtifactError(f"{folder}: there is a file, expected a free place for the index")
    foreign = sorted(path.name for path in folder.iterdir() if path.name not in {MANIFEST, BASE, *_ARRAYS})
    if foreign:
        raise ArtifactError(f"{folder}: holds {foreign[0]!r}, which is no part of an index: choose another place")


def _describe(path: Path) -> dict[str, int]:
    return {"size": path.stat().st_size, "crc32": _crc32(path)}


def _crc32(path: Path) -> int:
    checksum = 0
    with open(path, "rb") as file:
        while part := file.read(2**22):
            checksum = zlib.crc32(part, checksum)
    return checksum


def _sync(folder: Path) -> None:
    """Let everything reach the disk before the folder gets its name."""
    for path in folder.iterdir():
        with open(path, "rb") as file:
            os.fsync(file.fileno())
