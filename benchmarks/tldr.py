"""Command pages of tldr as a search task by text alone: which page answers "list all files"? Pages are held out whole.

A query is the text of one example line of a page; what it is to find is the page. Lines that read the same are one
query with several pages, of which some may be in training and others held out.

An item is a page: its command, its description and the commands of its examples. **The example lines are no part of it:
they are the queries of that same page**, and a page that held them could be found by equal words alone. Commands stay:
they are what a page of a command is about, and no query is made of them.

All pages of one command, whatever their platform, are of one part: they often say the same. A page of the test is
unseen in training, whole; in the catalogue are the pages of all parts.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

_MNEMONIC = re.compile(r"\[(\w+)\]")
_TENTHS = {0: "test", 1: "valid"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Tables:
    """What a run reads."""

    interactions: pa.Table
    """A line of each example: ``query``, its text; ``page``, the id of its page; ``split``."""
    items: pa.Table
    """A line of each page: ``page``, its id; ``command``; ``description``; ``commands``, one in each line."""


def read_pages(path: Path) -> list[dict[str, Any]]:
    """The pages of ``pages.jsonl.gz``: platform, command, description, and as many examples as commands."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def tables_of(pages: Sequence[dict[str, Any]]) -> Tables:
    """Examples and pages as tables, in the order of the pages."""
    named = list(zip(page_ids(pages), pages, strict=True))
    examples = [
        {"query": query_text(example), "page": page_id, "split": part_of(page["command"])}
        for page_id, page in named
        for example in page["examples"]
    ]
    items = [
        {
            "page": page_id,
            "command": page["command"],
            "description": page["description"],
            "commands": "\n".join(page["commands"]),
        }
        for page_id, page in named
    ]
    return Tables(interactions=pa.Table.from_pylist(examples), items=pa.Table.from_pylist(items))


def page_ids(pages: Sequence[dict[str, Any]]) -> list[str]:
    """``platform/command`` of each page; where several pages are called so, the later ones get a number."""
    seen: Counter[str] = Counter()
    ids = []
    for page in pages:
        name = f"{page['platform']}/{page['command']}"
        seen[name] += 1
        ids.append(name if seen[name] == 1 else f"{name} {seen[name]}")
    return ids


def query_text(example: str) -> str:
    """An example line as a person would type it: without the brackets that mark the letter of an option, as in
    ``E[x]tract`` or ``[l]ist``."""
    return _MNEMONIC.sub(r"\1", example)


def part_of(command: str) -> str:
    """The part of a command's pages: a tenth of the commands are ``test``, a tenth ``valid``, the others ``train``."""
    return _TENTHS.get(zlib.crc32(command.encode()) % 10, "train")


def page_texts(items: pa.Table) -> list[str]:
    """One text a page, for a baseline: all that a tower reads of it."""
    return [" ".join(row[c] for c in ("command", "description", "commands")) for row in items.to_pylist()]


def write_tables(pages: Path, folder: Path) -> None:
    """Make ``interactions.parquet`` and ``items.parquet`` of ``pages.jsonl.gz`` in ``folder``."""
    tables = tables_of(read_pages(pages))
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(tables.interactions, folder / "interactions.parquet")
    pq.write_table(tables.items, folder / "items.parquet")
