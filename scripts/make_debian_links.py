"""Make the demo data set, the link graph of a Debian release's packages, from apt's own metadata.

    apt-get update
    python scripts/make_debian_links.py --out src/twotower/demo

A package is a document (name, section, short description, tags); what it depends on, recommends or suggests are its
links. The task: given a package, find what it links to. Needs Python >= 3.11 and pyarrow, and a machine with apt, or a
file that one wrote (``apt-cache dumpavail > available``, then ``--available available``; ``-`` reads standard input).

``--sources FILE`` makes apt look at that source list alone. Give it where other vendors' archives are set up as well
(Debian's own list is usually ``/etc/apt/sources.list.d/debian.sources``), so that only Debian's packages get in.
Packages of the areas contrib and non-free (sections such as ``contrib/misc``) are left out: the rest is free software.

What is written, both zstd-compressed Parquet:

packages.parquet   package, section, description, tags (list), size (installed, KiB); a row a package, sorted by package
links.parquet      package, target, relation, split; a row a link, sorted by package, then target

- Every alternative of ``a | b`` is a link. Versions ``(>= 1.2)``, architectures ``[amd64]`` and ``:any`` are dropped.
- A target that is no package of the file (a virtual package, or one of another release) is left out, and so is a link
  of a package to itself. A target named twice counts once, with the strongest relation: Pre-Depends, Depends,
  Recommends, Suggests.
- A package that comes twice (a second architecture) counts once, as it came first.
- The description is the short one, the first line. Long ones would make the files several times as large, and many
  systems don't fetch them.
- ``split`` belongs to the linking package, so packages are held out whole: 10% test, 5% valid, the rest train, decided
  by a hash of the name. A package stays in its split when the data is made again from a later archive.

The same input gives the same bytes with the same version of pyarrow (which the files name): rows are sorted by code
point, and nothing depends on the order of the stanzas (but for packages that come twice), the locale, the clock or
Python's hash seed.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

RELATIONS = ("Pre-Depends", "Depends", "Recommends", "Suggests")
"""The fields that link, the strongest first."""

SPLITS = ("train", "valid", "test")
TEST_SHARE = 0.10
VALID_SHARE = 0.05

Stanza = Mapping[str, str]

_NAME = re.compile(r"\s*([A-Za-z0-9][A-Za-z0-9+.\-]*)")

PACKAGE_SCHEMA = pa.schema(
    [
        pa.field("package", pa.string(), nullable=False),
        pa.field("section", pa.string()),
        pa.field("description", pa.string()),
        pa.field("tags", pa.list_(pa.string()), nullable=False),
        pa.field("size", pa.int32()),
    ]
)
LINK_SCHEMA = pa.schema(
    [pa.field(name, pa.string(), nullable=False) for name in ("package", "target", "relation", "split")]
)


@dataclass(frozen=True, kw_only=True)
class Package:
    """One package as a document. ``size`` is the installed size in KiB."""

    package: str
    section: str | None
    description: str | None
    tags: tuple[str, ...]
    size: int | None


@dataclass(frozen=True, kw_only=True)
class Link:
    """``package`` names ``target`` in its field ``relation``."""

    package: str
    target: str
    relation: str
    split: str


@dataclass(frozen=True, kw_only=True)
class LinkData:
    """Both tables' rows in their final order, and what was left out, counted by cause."""

    packages: tuple[Package, ...]
    links: tuple[Link, ...]
    left_out: Mapping[str, int]


def read_stanzas(lines: Iterable[str]) -> Iterator[dict[str, str]]:
    """The stanzas of a Packages file: field name -> text, continuation lines joined with a newline.

    A line that is neither a field nor a continuation raises ``ValueError`` with its number.
    """
    stanza: dict[str, str] = {}
    field = ""
    for number, raw in enumerate(lines, start=1):
        line = raw.rstrip("\r\n")
        if not line.strip():
            if stanza:
                yield stanza
            stanza, field = {}, ""
        elif line[0] in " \t" and field:
            stanza[field] += "\n" + line.strip()
        else:
            field, colon, text = line.partition(":")
            if not colon or line[0] in " \t":
                raise ValueError(
                    f"line {number} is {line[:60]!r}, expected 'Field: text' as apt-cache dumpavail writes it"
                )
            stanza[field] = text.strip()
    if stanza:
        yield stanza


def parse_package(stanza: Stanza) -> Package:
    """What a stanza says about the package itself."""
    description = stanza.get("Description") or stanza.get("Description-en") or ""
    tags = (tag.strip() for tag in stanza.get("Tag", "").replace("\n", " ").split(","))
    size = stanza.get("Installed-Size", "")
    return Package(
        package=stanza["Package"],
        section=stanza.get("Section") or None,
        description=description.split("\n", 1)[0].strip() or None,
        tags=tuple(sorted({tag for tag in tags if tag})),
        size=int(size) if size.isdecimal() else None,
    )


def parse_relation(text: str) -> list[str]:
    """The package names of a relation field, every alternative, in their order.

    >>> parse_relation("libc6 (>= 2.34), python3:any | python2 [amd64]")
    ['libc6', 'python3', 'python2']
    """
    matches = (_NAME.match(alternative) for alternative in re.split(r"[,|]", text))
    return [match.group(1) for match in matches if match]


def split_of(package: str) -> str:
    """The split of a linking package: blake2b of its name as a number in [0, 1); below .10 test, below .15 valid."""
    digest = hashlib.blake2b(package.encode(), digest_size=8).digest()
    place = int.from_bytes(digest, "big") / 2**64
    if place < TEST_SHARE:
        return "test"
    return "valid" if place < TEST_SHARE + VALID_SHARE else "train"


def link_data(stanzas: Iterable[Stanza]) -> LinkData:
    """Packages and links of an archive, sorted, with what was left out counted."""
    left_out = Counter[str]()
    kept: dict[str, Stanza] = {}
    for number, stanza in enumerate(stanzas, start=1):
        if "Package" not in stanza:
            raise ValueError(f"stanza {number} has the fields {sorted(stanza)}, expected a Package among them")
        if "/" in stanza.get("Section", ""):
            left_out["packages of contrib and non-free"] += 1
        elif stanza["Package"] in kept:
            left_out["packages seen before"] += 1
        else:
            kept[stanza["Package"]] = stanza
    packages = tuple(parse_package(kept[name]) for name in sorted(kept))
    links = tuple(link for name in sorted(kept) for link in _links_of(kept[name], kept, left_out))
    return LinkData(packages=packages, links=links, left_out=left_out)


def _links_of(stanza: Stanza, known: Mapping[str, Stanza], left_out: Counter[str]) -> list[Link]:
    package = stanza["Package"]
    relation_of: dict[str, str] = {}
    for relation in RELATIONS:
        for target in parse_relation(stanza.get(relation, "")):
            if target == package:
                left_out["links to itself"] += 1
            elif target not in known:
                left_out["links to what is no package here (virtual, other release)"] += 1
            elif target in relation_of:
                left_out["links named again"] += 1
            else:
                relation_of[target] = relation
    split = split_of(package)
    return [Link(package=package, target=t, relation=relation_of[t], split=split) for t in sorted(relation_of)]


def package_table(packages: Sequence[Package]) -> pa.Table:
    rows = {
        "package": [p.package for p in packages],
        "section": [p.section for p in packages],
        "description": [p.description for p in packages],
        "tags": [list(p.tags) for p in packages],
        "size": [p.size for p in packages],
    }
    return pa.table(rows, schema=PACKAGE_SCHEMA)


def link_table(links: Sequence[Link]) -> pa.Table:
    rows = {
        "package": [link.package for link in links],
        "target": [link.target for link in links],
        "relation": [link.relation for link in links],
        "split": [link.split for link in links],
    }
    return pa.table(rows, schema=LINK_SCHEMA)


def write_parquet(table: pa.Table, path: Path) -> None:
    """One row group, values in dictionaries: names repeat, and a dictionary may hold all of them."""
    pq.write_table(
        table,
        path,
        compression="zstd",
        compression_level=19,
        use_dictionary=True,
        dictionary_pagesize_limit=1 << 24,
        row_group_size=max(1, table.num_rows),
    )


def available_lines(available: str | None, sources: str | None) -> Iterator[str]:
    """The lines of ``apt-cache dumpavail``: of a file, of standard input (``-``), or of apt itself."""
    if available == "-":
        yield from sys.stdin
    elif available is not None:
        with open(available, encoding="utf-8") as file:
            yield from file
    else:
        only = (
            ["-o", f"Dir::Etc::SourceList={Path(sources).resolve(strict=True)}", "-o", "Dir::Etc::SourceParts=-"]
            if sources
            else []
        )
        answer = subprocess.run(["apt-cache", *only, "dumpavail"], check=True, capture_output=True, encoding="utf-8")
        yield from answer.stdout.splitlines()


def summary(data: LinkData) -> str:
    """Counts for the reader of the terminal: what was made, how skewed it is, what was left out."""
    links = data.links
    count_of = sorted(Counter(link.target for link in links).values(), reverse=True)
    head = count_of[: len(count_of) // 100]
    linking = Counter(split for _, split in {(link.package, link.split) for link in links})
    relations = Counter(link.relation for link in links)
    n_linking, head_share = linking.total(), sum(head) / max(1, len(links))
    lines = [
        f"{len(data.packages):,} packages, {len(links):,} links of {n_linking:,} packages to {len(count_of):,} targets",
        "relations: " + ", ".join(f"{name} {relations[name]:,}" for name in RELATIONS),
        "linking packages: " + ", ".join(f"{name} {linking[name]:,}" for name in SPLITS),
        f"1% of the targets take {head_share:.1%} of the links; {count_of.count(1):,} targets have one",
        *(f"left out: {count:,} {cause}" for cause, count in sorted(data.left_out.items())),
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Make packages.parquet and links.parquet from apt's package metadata.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write the two files to")
    origin = parser.add_mutually_exclusive_group()
    origin.add_argument(
        "--available", metavar="FILE", help="output of 'apt-cache dumpavail' to read ('-': standard input)"
    )
    origin.add_argument("--sources", metavar="FILE", help="the one apt source list to look at (default: all of them)")
    options = parser.parse_args(arguments)
    try:
        data = link_data(read_stanzas(available_lines(options.available, options.sources)))
    except FileNotFoundError as error:
        parser.error(
            f"{error.filename} not found; without apt, give a file another machine's apt wrote with --available"
        )
    except subprocess.CalledProcessError as error:
        parser.error(f"apt-cache failed: {error.stderr.strip()}")
    except ValueError as error:
        parser.error(str(error))
    if not data.links:
        parser.error("apt knows of no package with links: run 'apt-get update' first")
    options.out.mkdir(parents=True, exist_ok=True)
    for name, table in (("packages", package_table(data.packages)), ("links", link_table(data.links))):
        path = options.out / f"{name}.parquet"
        write_parquet(table, path)
        print(f"{path}: {path.stat().st_size:,} bytes")
    print(summary(data))
    return 0


if __name__ == "__main__":
    sys.exit(main())
