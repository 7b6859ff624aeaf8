"""A Delta table: each appended row once; what is no append is refused or passed over as asked."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import deltalake
import pyarrow as pa
import pytest

from twotower.data.streams import Delta
from twotower.errors import ConfigError, DataError

from .reading import caught_up, rows, table, with_kills


def append(path: Path, *items: int, mode: str = "append", **options: object) -> None:
    frame = pa.table({"item": pa.array(items, pa.int64()), "day": [f"2024-05-{item:02d}" for item in items]})
    deltalake.write_deltalake(str(path), frame, mode=mode, **options)  # type: ignore[call-overload]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A table of three versions."""
    for items in ((1, 2), (3,), (4, 5, 6)):
        append(tmp_path / "events", *items)
    return tmp_path / "events"


def test_an_arrival_a_version(path: Path) -> None:
    found, position = caught_up(Delta(str(path)))
    assert found == [("version 0", [1, 2]), ("version 1", [3]), ("version 2", [4, 5, 6])]
    append(path, 7)
    position = json.loads(json.dumps(position))
    assert caught_up(Delta(str(path)), position)[0] == [("version 3", [7])]


def test_rows_can_be_read_twice(path: Path) -> None:
    first = next(iter(Delta(str(path)).since(None)))
    assert rows(first) == rows(first) == [1, 2]


def test_partitions_are_columns(tmp_path: Path) -> None:
    append(tmp_path / "events", 1, 2, partition_by=["day"])
    (arrival,) = Delta(str(tmp_path / "events")).since(None)
    assert sorted(table(arrival).select(["item", "day"]).to_pylist(), key=lambda row: row["item"]) == [
        {"item": 1, "day": "2024-05-01"},
        {"item": 2, "day": "2024-05-02"},
    ]


def test_compaction_adds_nothing(path: Path) -> None:
    _, position = caught_up(Delta(str(path)))
    done = deltalake.DeltaTable(str(path)).optimize.compact()
    assert (done["numFilesRemoved"], done["numFilesAdded"]) == (3, 1)
    assert caught_up(Delta(str(path)), position)[0] == []
    append(path, 7)
    assert caught_up(Delta(str(path)), position)[0] == [("version 4", [7])]
    assert [items for _, items in caught_up(Delta(str(path)))[0]] == [[1, 2], [3], [4, 5, 6], [7]]


def test_deleted_and_overwritten_rows_are_refused_or_passed_over(path: Path) -> None:
    _, position = caught_up(Delta(str(path)))
    deltalake.DeltaTable(str(path)).delete("item = 4")
    append(path, 7)
    append(path, 8, mode="overwrite")
    append(path, 9)
    with pytest.raises(
        DataError, match=r"version 3 \(DELETE\) deleted or rewrote rows, expected appends: .*rewrites=skip"
    ):
        caught_up(Delta(str(path)), position)
    skipping = Delta(str(path), rewrites="skip")
    assert caught_up(skipping, position)[0] == [("version 4", [7]), ("version 6", [9])]


def test_a_log_that_was_cleaned_up_past_the_position_is_no_gap_in_silence(path: Path) -> None:
    first = next(iter(Delta(str(path)).since(None)))
    deltalake.DeltaTable(str(path)).create_checkpoint()
    (path / "_delta_log" / f"{1:020d}.json").unlink()
    with pytest.raises(DataError, match=r"the log of version 1 was cleaned up; start without .* first=snapshot"):
        caught_up(Delta(str(path)), first.position)


def test_files_that_were_vacuumed_are_no_gap_in_silence(path: Path) -> None:
    first = next(iter(Delta(str(path)).since(None)))
    handle = deltalake.DeltaTable(str(path))
    handle.optimize.compact()
    handle.vacuum(retention_hours=0, enforce_retention_duration=False, dry_run=False)
    with pytest.raises(DataError, match=r"version 1 appended part-.* which is gone \(vacuumed\?\); start without"):
        caught_up(Delta(str(path)), first.position)
    found, position = caught_up(Delta(str(path), first="snapshot"))
    assert [(name, sorted(items)) for name, items in found] == [("version 5, whole", [1, 2, 3, 4, 5, 6])]  # type: ignore[type-var]
    append(path, 7)  # the vacuum was two versions
    assert caught_up(Delta(str(path), first="snapshot"), position)[0] == [("version 6", [7])]


def test_a_table_made_anew_is_another_one(path: Path, tmp_path: Path) -> None:
    _, position = caught_up(Delta(str(path)))
    for _ in range(4):
        append(tmp_path / "other", 1)
    with pytest.raises(DataError, match="the table was made anew or restored; start without a position"):
        caught_up(Delta(str(tmp_path / "other")), position)


def test_what_is_no_table_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"no: can't be opened as a Delta table"):
        caught_up(Delta(str(tmp_path / "no")))
    monkeypatch.setitem(sys.modules, "deltalake", None)
    with pytest.raises(ConfigError, match=r"pip install 'twotower\[delta\]'"):
        caught_up(Delta("events"))


@pytest.mark.parametrize("every", [1, 2])
def test_killed_between_arrivals_each_row_comes_once(path: Path, every: int) -> None:
    deltalake.DeltaTable(str(path)).optimize.compact()
    append(path, 7, 8)
    assert with_kills(Delta(str(path)), every) == [1, 2, 3, 4, 5, 6, 7, 8]
