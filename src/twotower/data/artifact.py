"""A folder that is written whole and read checked: what stores, bundles and indexes have in common.

Its manifest, ``NAME.json``, says what kind of folder it is, of which version, and the size and checksum of every file
in it; it is written last.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import ArtifactError
from .column_files import Tree


@dataclass(frozen=True, kw_only=True)
class ArtifactKind:
    """A kind of folder, and how to speak of it."""

    name: str
    version: int
    """What is written, and read as it is."""
    made_with: str
    """The verb that makes one."""
    way_out: str
    """What to do where one can't be read."""
    replace_with: str
    """How to have one replaced."""
    migrations: Mapping[int, Callable[[Tree], Tree]] = field(default_factory=dict)
    """By an older version that can still be read: what makes its manifest one of the next version."""

    @property
    def one(self) -> str:
        """With its article."""
        return f"{'an' if self.name[0] in 'aeiou' else 'a'} {self.name}"

    @property
    def manifest(self) -> str:
        """The file that describes the folder."""
        return f"{self.name}.json"

    @property
    def format(self) -> str:
        """What the manifest says it is."""
        return f"twotower {self.name}"

    def read(self, folder: Path) -> Tree:
        """The checked manifest of the folder, as this version has it.

        Raises:
            ArtifactError: there is none, or it is damaged or of a version that can't be read.
        """
        file = folder / self.manifest
        if not file.is_file():
            raise ArtifactError(
                f"{folder}: there is no {self.name} here (no {file.name}): make one with {self.made_with}"
            )
        try:
            manifest = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ArtifactError(f"{file}: can't be read ({error}): {self.way_out}") from error
        if not isinstance(manifest, dict) or manifest.get("format") != self.format:
            raise ArtifactError(f"{file}: this is not the manifest of {self.one}")
        self._check_version(folder, manifest.get("version"))
        if manifest.pop("crc32", None) != _crc_of_tree(manifest):
            raise ArtifactError(f"{file}: the manifest is damaged (its checksum differs): {self.way_out}")
        while manifest["version"] != self.version:
            version = manifest["version"]
            manifest = {**self.migrations[version](manifest), "version": version + 1}
        return manifest

    def _check_version(self, folder: Path, version: object) -> None:
        if version == self.version or version in self.migrations:
            return
        is_newer = isinstance(version, int) and version > self.version
        way_out = f"use a newer twotower, or {self.way_out}" if is_newer else self.way_out
        raise ArtifactError(
            f"{folder}: the {self.name} has version {version}, this program reads version {self.version}: {way_out}"
        )

    def write(self, folder: Path, body: Tree) -> None:
        """Describe every file in ``folder`` and write the manifest: the last step."""
        manifest = {"format": self.format, "version": self.version, **body, "files": _described(folder)}
        manifest["crc32"] = _crc_of_tree(manifest)
        with open(folder / self.manifest, "w", encoding="utf-8") as file:
            json.dump(manifest, file, indent=1)
            file.flush()
            os.fsync(file.fileno())

    def fingerprint(self, manifest: Tree) -> str:
        """Eight hexadecimal digits that tell folders of other content, as read manifests list it, apart."""
        return f"{_crc_of_tree(manifest):08x}"

    def check_files(self, folder: Path, manifest: Tree, *, verify: bool) -> None:
        """Sizes of all files, and with ``verify`` their checksums (reads everything).

        Raises:
            ArtifactError: a file is missing or not as it was written.
        """
        for name, about in manifest["files"].items():
            path = folder / name
            if not path.is_file():
                raise ArtifactError(f"{folder}: the {self.name} is incomplete, {name} is missing: {self.way_out}")
            size = path.stat().st_size
            if size != about["size"]:
                raise ArtifactError(
                    f"{folder}: the {self.name} is damaged, {name} has {size} bytes, expected {about['size']}: "
                    f"{self.way_out}"
                )
            if verify and _crc_of_file(path) != about["crc32"]:
                raise ArtifactError(
                    f"{folder}: the {self.name} is damaged, the checksum of {name} differs: {self.way_out}"
                )

    def files_of(self, folder: Path) -> set[str]:
        """What an intact manifest lists, whatever its version; nothing without one."""
        try:
            manifest = json.loads((folder / self.manifest).read_text(encoding="utf-8"))
            is_one = manifest["format"] == self.format
            return {self.manifest, *manifest["files"]} if is_one else set()
        except (OSError, ValueError, KeyError, TypeError):
            return set()


def _crc_of_tree(tree: Tree) -> int:
    return zlib.crc32(json.dumps(tree, sort_keys=True).encode())


def _described(folder: Path) -> Tree:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "crc32": _crc_of_file(path)}
        for path in files
    }


def _crc_of_file(path: Path) -> int:
    crc = 0
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            crc = zlib.crc32(block, crc)
    return crc
