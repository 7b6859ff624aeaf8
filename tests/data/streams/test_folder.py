"""A folder: each file once, in the order of the days, whenever it comes."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from twotower.data.streams import Folder
from twotower.errors import DataError

from .reading import caught_up, with_kills


def add(folder: Path, name: str, *items: str) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pa.parquet.write_table(pa.table({"item": pa.array(items, pa.string())}), path)
    else:
        path.write_text("\n".join(["item", *items]) + "\n", encoding="utf-8")


def test_files_and_folders_of_days_come_in_order(tmp_path: Path) -> None:
    add(tmp_path, "day=2024-05-02/part-1.csv", "c")
    add(tmp_path, "day=2024-05-02/part-0.parquet", "b")
    add(tmp_path, "day=2024-05-02/part-2.parquet")  # writers of parts leave some without rows
    add(tmp_path, "2024-05-03.parquet", "d")
    add(tmp_path, "2024-05-01.csv", "a")
    add(tmp_path, "2024-05-10/x.csv", "e")
    found, _ = caught_up(Folder(str(tmp_path)))
    assert found == [
        ("2024-05-01.csv", ["a"]),
        ("day=2024-05-02/", ["b", "c"]),
        ("2024-05-03.parquet", ["d"]),
        ("2024-05-10/", ["e"]),
    ]


@pytest.mark.parametrize(
    "names",
    [
        ["year=2024/month=5/day=9/a.csv", "year=2024/month=5/day=10/a.csv", "year=2024/month=12/day=1/a.csv"],
        ["events-9.csv", "events-10.csv", "events-100.csv"],
        ["20231231.csv", "20240101.csv"],
        ["a.csv", "b1.csv", "b.x.csv", "c/1.csv"],
    ],
)
def test_numbers_in_names_are_numbers(tmp_path: Path, names: list[str]) -> None:
    for name in reversed(names):
        add(tmp_path, name, name)
    found, _ = caught_up(Folder(str(tmp_path)))
    assert [items for _, items in found] == [[name] for name in names]


def test_only_what_is_new_comes_again_with_what_is_late(tmp_path: Path) -> None:
    add(tmp_path, "2024-05-02.csv", "b")
    add(tmp_path, "day=2024-05-03/part-0.csv", "c")
    _, position = caught_up(Folder(str(tmp_path)))
    add(tmp_path, "2024-05-01.csv", "late")
    add(tmp_path, "day=2024-05-03/part-1.csv", "late part")
    add(tmp_path, "2024-05-04.csv", "d")
    found, after = caught_up(Folder(str(tmp_path)), json.loads(json.dumps(position)))
    assert found == [("2024-05-01.csv", ["late"]), ("day=2024-05-03/", ["late part"]), ("2024-05-04.csv", ["d"])]
    assert caught_up(Folder(str(tmp_path)), after) == ([], after)


def test_a_file_that_was_read_may_go_but_not_change(tmp_path: Path) -> None:
    add(tmp_path, "1.csv", "a")
    add(tmp_path, "2.csv", "b")
    _, position = caught_up(Folder(str(tmp_path)))
    (tmp_path / "1.csv").unlink()
    add(tmp_path, "3.csv", "c")
    assert caught_up(Folder(str(tmp_path)), position)[0] == [("3.csv", ["c"])]
    add(tmp_path, "2.csv", "b", "more")
    with pytest.raises(DataError, match=r"2\.csv: found 12 bytes, but 7 when it was read: files must not change"):
        caught_up(Folder(str(tmp_path)), position)


@pytest.mark.parametrize(
    "name",
    [".2024.csv", "_temporary/1.csv", "2.csv.tmp", "3.csv.partial", "4.csv.crdownload", "day=5.tmp/1.csv", "_SUCCESS"],
)
def test_what_is_being_written_is_not_there_yet(tmp_path: Path, name: str) -> None:
    add(tmp_path, name, "half")
    (tmp_path / "6.csv").touch()
    assert caught_up(Folder(str(tmp_path))) == ([], None)
    add(tmp_path, "1.csv", "a")
    found, position = caught_up(Folder(str(tmp_path)))
    assert found == [("1.csv", ["a"])]
    add(tmp_path, "6.csv", "f")
    assert caught_up(Folder(str(tmp_path)), position)[0] == [("6.csv", ["f"])]


def test_a_folder_in_which_nothing_can_be_read_says_so(tmp_path: Path) -> None:
    (tmp_path / "events.orc").write_bytes(b"ORC")
    with pytest.raises(DataError, match=r"no readable file in the folder \(files in it: 'events\.orc'\)"):
        caught_up(Folder(str(tmp_path)))
    add(tmp_path, "1.csv", "a")  # beside one that can be read it may be a README
    assert caught_up(Folder(str(tmp_path)))[0] == [("1.csv", ["a"])]
    with pytest.raises(DataError, match="there is no such folder"):
        caught_up(Folder(str(tmp_path / "no")))


def test_the_position_of_another_source_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="position of the source 'kafka', expected one of 'folder'"):
        caught_up(Folder(str(tmp_path)), {"source": "kafka"})


@pytest.mark.parametrize("every", [1, 2, 3])
def test_killed_between_arrivals_each_row_comes_once(tmp_path: Path, every: int) -> None:
    for day in range(1, 8):
        add(tmp_path, f"day={day}/a.csv", f"{day}a", f"{day}b")
        add(tmp_path, f"{day}.csv", f"{day}c")
    expected = [f"{day}{row}" for day in range(1, 8) for row in "cab"]
    assert with_kills(Folder(str(tmp_path)), every) == expected


def test_three_thousand_days_are_a_small_position(tmp_path: Path) -> None:
    for day in range(3_000):
        (tmp_path / f"{day}.csv").write_bytes(b"item\na\n")
    arrivals = Folder(str(tmp_path)).since(None)
    assert [next(arrivals).name for _ in range(2_999)] == [f"{day}.csv" for day in range(2_999)]
    (last,) = arrivals
    assert last.name == "2999.csv"
    assert len(json.dumps(last.position)) < 60_000
    del last.position["files"]["7.csv"]
    assert [arrival.name for arrival in Folder(str(tmp_path)).since(last.position)] == ["7.csv"]
