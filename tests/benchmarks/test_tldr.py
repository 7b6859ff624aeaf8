"""The tables of the tldr benchmark: what a query and an item may hold, and that pages are held out whole."""

from __future__ import annotations

import gzip
import json
import zlib
from collections import defaultdict
from pathlib import Path

import pytest
from benchmarks.data import committed_run, data_folder
from benchmarks.tldr import page_ids, page_texts, part_of, query_text, read_pages, tables_of, write_tables

from twotower.config import ingest_run
from twotower.data.store import Store

PAGES = [
    {
        "platform": "common",
        "command": "tar",
        "description": "Archiving utility.",
        "examples": ["E[x]tract an archive", "[l]ist the contents"],
        "commands": ["tar xf {{archive}}", "tar tf {{archive}}"],
    },
    {
        "platform": "linux",
        "command": "tar",
        "description": "Archive on Linux.",
        "examples": ["[l]ist the contents"],
        "commands": ["tar tvf {{archive}}"],
    },
    {"platform": "common", "command": "mc", "description": "Files.", "examples": ["Start"], "commands": ["mc"]},
    {"platform": "common", "command": "mc", "description": "Buckets.", "examples": ["Start"], "commands": ["mc ls"]},
]


def test_a_query_is_an_example_line_and_an_item_never_holds_one() -> None:
    tables = tables_of(PAGES)
    rows = tables.interactions.to_pylist()
    assert [(row["query"], row["page"]) for row in rows] == [
        ("Extract an archive", "common/tar"),
        ("list the contents", "common/tar"),
        ("list the contents", "linux/tar"),
        ("Start", "common/mc"),
        ("Start", "common/mc 2"),
    ]
    assert tables.items.to_pylist()[0] == {
        "page": "common/tar",
        "command": "tar",
        "description": "Archiving utility.",
        "commands": "tar xf {{archive}}\ntar tf {{archive}}",
    }
    assert page_texts(tables.items)[3] == "mc Buckets. mc ls"


def test_pages_of_one_command_are_of_one_part() -> None:
    parts = defaultdict(set)
    for row in tables_of(PAGES).interactions.to_pylist():
        parts[row["page"].split("/")[1].split()[0]].add(row["split"])
    assert {len(found) for found in parts.values()} == {1}


@pytest.mark.parametrize(
    ("line", "typed"),
    [
        ("[l]ist all files", "list all files"),
        ("E[x]tract to [std]out", "Extract to stdout"),
        ("Match [a-z] and []", "Match [a-z] and []"),
    ],
)
def test_marks_of_options_are_taken_off(line: str, typed: str) -> None:
    assert query_text(line) == typed


def test_parts_are_tenths_by_the_checksum_of_the_name() -> None:
    names = [f"command {n}" for n in range(2000)]
    for name in names:
        tenth = zlib.crc32(name.encode()) % 10
        assert part_of(name) == ("test" if tenth == 0 else "valid" if tenth == 1 else "train")
    assert {part_of(name) for name in names} == {"train", "valid", "test"}


def test_tables_are_written(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "pages.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(page) + "\n" for page in PAGES)
    assert read_pages(tmp_path / "pages.jsonl.gz") == PAGES
    write_tables(tmp_path / "pages.jsonl.gz", tmp_path / "made")
    assert sorted(path.name for path in (tmp_path / "made").iterdir()) == ["interactions.parquet", "items.parquet"]


def test_the_committed_run_reads_real_pages(tmp_path: Path) -> None:
    """Held-out pages have no training example, and of its own page no item holds a query."""
    if not (data_folder() / "tldr").exists():
        pytest.skip(f"{data_folder() / 'tldr'} is absent: set TWOTOWER_DATA to the folder of the data sets")
    pages = read_pages(data_folder() / "tldr" / "pages.jsonl.gz")
    ids = page_ids(pages)
    assert len(set(ids)) == len(ids) == 7_424
    changes = [f"schema.{feature}.chars=none" for feature in ("query.text", "query.own", "item.text", "item.own")]
    run = committed_run("tldr", tmp_path, changes)
    report = ingest_run(run)
    assert (report.n_items, report.items_with_events, report.groups[0].read) == (7_424, 7_424, 32_135)
    assert report.groups[0].left_out == {"repeats an earlier event": 2}
    assert run.data is not None
    store = Store.open(run.data.store)
    assert store.split is not None
    parts_of_item = defaultdict(set)
    for item, part in zip(store.item_row.tolist(), store.split.tolist(), strict=True):
        parts_of_item[item].add(part)
    assert {len(parts) for parts in parts_of_item.values()} == {1}
    tables = tables_of(pages)
    texts = dict(zip(tables.items["page"].to_pylist(), page_texts(tables.items), strict=True))
    rows = tables.interactions.to_pylist()
    said_by_the_page_too = sum(row["query"] in texts[row["page"]] for row in rows if " " in row["query"])
    assert said_by_the_page_too < 0.02 * len(rows)  # a description may say the same; example lines would all be there
