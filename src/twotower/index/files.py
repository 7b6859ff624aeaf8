"""An index as a folder (``ArtifactKind``) whose files can be mapped.

index.json         the manifest: settings, counts, files with checksums; written last
base.faiss         the structure, as Faiss writes it
vectors.bin        [M, D] float32, unless the caller keeps the vectors
live.bin           [M] bool: rows of the base that are served
rows.bin           [n] int64: the rows of the structure's positions, where they differ
delta-rows.bin, delta-vectors.bin   what came since the structure was built
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..data.artifact import ArtifactKind
from ..data.column_files import Tree, open_array, write_array
from ..data.staging import Staging
from ..errors import ArtifactError, ConfigError, TwoTowerError
from .exact import Vectors
from .kinds import CODEC, IndexSettings
from .structures import Structure

if TYPE_CHECKING:
    from .index import Content, Index

INDEX = ArtifactKind(
    name="index",
    version=1,
    made_with="twotower index build",
    way_out="build the index again",
    replace_with="Index.save",
)
BASE = "base.faiss"


def write(index: Index, content: Content, folder: Path, *, vectors: bool) -> None:
    """Whole or not at all, in place of an index that is there."""
    if not vectors and len(content.delta_row_d):
        raise ConfigError(
            f"{folder}: {len(content.delta_row_d)} items changed since the index was built, so it can't be saved "
            "without its vectors: save it with them, or build it from today's"
        )
    arrays = {
        "vectors": content.vector_MD if vectors else None,
        "live": content.live_M,
        "rows": content.structure_row_n,
        "delta-rows": content.delta_row_d,
        "delta-vectors": content.delta_vector_dD,
    }
    with Staging(folder, True, INDEX) as staging:
        written = {
            name: write_array(staging.folder / f"{name}.bin", array)
            for name, array in arrays.items()
            if array is not None
        }
        if content.structure is not None:
            content.structure.write(staging.folder / BASE)
        INDEX.write(
            staging.folder,
            {
                "settings": CODEC.encode(IndexSettings, index.settings),
                "seed": index.seed,
                "metric": "inner product",
                "n": index.n,
                "n_built": content.n_built,
                "vector_shape": list(content.vector_MD.shape),
                "longest": None if content.structure is None else content.structure.longest,
                "arrays": written,
            },
        )
        staging.publish()


def read(folder: Path, *, mmap: bool, verify: bool, vector_MD: Vectors | None) -> Index:
    """What ``write`` wrote."""
    manifest = INDEX.read(folder)
    try:
        INDEX.check_files(folder, manifest, verify=verify)
        return _opened(folder, manifest, mmap=mmap, vector_MD=vector_MD)
    except ConfigError as error:
        if "is not installed" in str(error):
            raise
        raise ArtifactError(f"{folder / INDEX.manifest}: {error}") from error
    except (KeyError, TypeError, ValueError, OSError) as error:
        if isinstance(error, TwoTowerError):
            raise
        raise ArtifactError(f"{folder}: the index is damaged ({error!r}): {INDEX.way_out}") from error


def _opened(folder: Path, manifest: Tree, *, mmap: bool, vector_MD: Vectors | None) -> Index:
    from .index import Content, Index

    settings: IndexSettings = CODEC.decode(IndexSettings, manifest["settings"], "settings")
    arrays = {name: open_array(folder, leaf) for name, leaf in manifest["arrays"].items()}
    if not mmap:
        arrays = {name: np.array(array) for name, array in arrays.items()}
    structure = None
    if manifest["longest"] is not None:
        structure = Structure.read(folder / BASE, float(manifest["longest"]), mmap=mmap)
    vector_MD, expected = arrays.get("vectors", vector_MD), tuple(manifest["vector_shape"])
    if vector_MD is None:
        raise ArtifactError(f"{folder}: the index was saved without its vectors: give them (vector_MD)")
    if vector_MD.shape != expected or vector_MD.dtype != np.float32:
        raise ArtifactError(
            f"{folder}: found vectors {vector_MD.dtype} of the shape {vector_MD.shape}, expected float32 "
            f"{expected}: the index belongs to others"
        )
    content = Content(
        vector_MD=np.asarray(vector_MD),
        live_M=np.array(arrays["live"]),
        n_live=int(np.count_nonzero(arrays["live"])),
        structure=structure,
        structure_row_n=arrays.get("rows"),
        n_built=int(manifest["n_built"]),
        delta_row_d=np.array(arrays["delta-rows"]),
        delta_vector_dD=np.array(arrays["delta-vectors"]),
    )
    _check_fit(content)
    return Index(settings, content, seed=int(manifest["seed"]))


def _check_fit(content: Content) -> None:
    """Parts of one index fit one another; ValueError where they don't."""
    n_rows, width = content.vector_MD.shape
    row_n = content.structure_row_n
    fits = content.live_M.shape == (n_rows,) and content.delta_vector_dD.shape == (len(content.delta_row_d), width)
    fits &= content.live_M.dtype == np.bool_ and content.delta_vector_dD.dtype == np.float32
    fits &= all(rows is None or rows.dtype == np.int64 for rows in (row_n, content.delta_row_d))
    if content.structure is not None:
        fits &= content.structure.n == (n_rows if row_n is None else len(row_n))
        fits &= int(content.structure.faiss_index.d) == width + (content.structure.longest > 0)
    if row_n is not None and len(row_n):
        fits &= int(row_n[0]) >= 0 and int(row_n[-1]) < n_rows
    if not fits:
        raise ValueError("its files do not fit one another")
