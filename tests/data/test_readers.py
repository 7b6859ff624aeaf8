"""Readers: what comes in is what is in the file, and what is wrong with a file is said with its place."""

from __future__ import annotations

import gzip
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest

from twotower.data import csv_files, line_files, readers
from twotower.data.readers import chunks, column_names, read_chunks, reads_once
from twotower.errors import DataError

TABLE = pa.table({"user": ["007", "b", "c"], "item": [1, 2, 3], "price": [0.5, None, 2.0]})
TEXT = {"user": pa.string(), "item": pa.string()}


def read(source: object, **options: object) -> pa.Table:
    return pa.concat_tables(read_chunks(source, where="interactions", **options), promote_options="permissive")  # type: ignore[arg-type]


def write(folder: Path, name: str, content: bytes | str) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


# ---------------------------------------------------------------- what is in the files


@pytest.mark.parametrize(
    "suffix", [".csv", ".tsv", ".csv.gz", ".ndjson", ".jsonl.gz", ".parquet", ".arrow", ".feather"]
)
def test_every_format_gives_the_same_rows(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"events{suffix}"
    text = {
        ".csv": "user,item,price\n007,1,0.5\nb,2,\nc,3,2.0\n",
        ".tsv": "user\titem\tprice\n007\t1\t0.5\nb\t2\t\nc\t3\t2.0\n",
        ".ndjson": '{"user":"007","item":1,"price":0.5}\n{"user":"b","item":2}\n\n{"user":"c","item":3,"price":2}',
    }
    text[".jsonl"] = text[".ndjson"]
    plain = suffix.removesuffix(".gz")
    if plain in text:
        content = text[plain].encode()
        path.write_bytes(gzip.compress(content) if suffix.endswith(".gz") else content)
    elif suffix == ".parquet":
        pyarrow.parquet.write_table(TABLE, path)
    elif suffix == ".arrow":
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, TABLE.schema) as writer:
            writer.write_table(TABLE)
    else:
        pyarrow.feather.write_feather(TABLE, str(path))
    found = read(path, columns=["price", "user"], column_types={"user": pa.string(), "price": pa.float64()})
    assert found.column_names == ["price", "user"]
    assert found.to_pydict() == {"user": ["007", "b", "c"], "price": [0.5, None, 2.0]}
    assert column_names(path, where="interactions") == ["user", "item", "price"]


@pytest.mark.parametrize(
    "frame",
    [
        TABLE,
        TABLE.to_pandas(),
        pl.from_arrow(TABLE),
        TABLE.to_reader(),
        [TABLE.slice(0, 1), TABLE.slice(1)],
        iter([TABLE]),
    ],
    ids=["arrow", "pandas", "polars", "stream", "list", "iterator"],
)
def test_frames(frame: object) -> None:
    assert read(frame, columns=["user", "item"]).to_pydict() == {"user": ["007", "b", "c"], "item": [1, 2, 3]}


def test_frames_give_plain_types_and_leave_other_columns_alone() -> None:
    mixed = pd.DataFrame({"tag": pd.Categorical(["x", "y", "x"]), "odd": [1, "a", None]})
    found = read(mixed, columns=["tag"])
    assert found.to_pydict() == {"tag": ["x", "y", "x"]}
    assert pa.types.is_large_string(found["tag"].type)
    found = read(pl.DataFrame({"tag": pl.Series(["x", "y"], dtype=pl.Categorical), "id": ["a", "b"]}))
    assert found.to_pydict() == {"tag": ["x", "y"], "id": ["a", "b"]}
    assert {str(kind) for kind in found.schema.types} == {"large_string"}


def test_which_sources_are_read_only_once() -> None:
    assert not reads_once("a.csv")
    assert not reads_once([Path("a.csv"), TABLE, pl.DataFrame()])
    assert reads_once(TABLE.to_reader())
    assert reads_once(x for x in [TABLE])
    assert reads_once(["a.csv", TABLE.to_reader()])


def test_csv_quotes_line_breaks_missing_and_byte_order_mark(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", '\ufeffuser,title\r\nNA,"two\nlines, ""quoted"""\r\n\r\n,plain\r\n')
    assert read(path, column_types={"user": pa.string()}).to_pydict() == {
        "user": ["NA", None],
        "title": ['two\nlines, "quoted"', "plain"],
    }


def test_csv_numbers_and_moments_of_text(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", "price,t,day\n1,10,2024-05-01\nNA,20,\n2.5,30,2024-05-02\n")
    types = {"price": pa.float64(), "t": pa.timestamp("us"), "day": pa.timestamp("us")}
    found = read(path, column_types=types)
    assert found.to_pydict() == {
        "price": [1.0, None, 2.5],
        "t": [10, 20, 30],
        "day": ["2024-05-01", None, "2024-05-02"],
    }


def test_json_text_that_looks_like_a_moment_stays_text(tmp_path: Path) -> None:
    path = write(tmp_path, "a.ndjson", '{"user":"2024-05-01","tags":["2024-05-01"]}\n')
    found = read(path, column_types={"user": pa.string(), "tags": pa.string()})
    assert found.to_pydict() == {"user": ["2024-05-01"], "tags": [["2024-05-01"]]}


def test_json_ignores_trouble_in_columns_that_are_not_wanted(tmp_path: Path) -> None:
    path = write(tmp_path, "a.ndjson", '{"user":"a","x":1}\n{"user":"b","x":"one"}\n')
    assert read(path, columns=["user"]).to_pydict() == {"user": ["a", "b"]}


def test_json_column_that_is_missing_in_later_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line_files, "BLOCK_BYTES", 24)
    path = write(tmp_path, "a.ndjson", '{"user":"a","n":1}\n{"user":"bbbbbbbbbbbbbbbbb"}\n{"user":"c","n":2}\n')
    assert read(path, columns=["user", "n"]).to_pydict() == {"user": ["a", "b" * 17, "c"], "n": [1, None, 2]}


def test_lists_of_lightgcn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, "train.txt", "0 10 11 \n1\n\n2 010\n3 12 10 11")
    expected = {"u": ["0", "0", "2", "3", "3", "3"], "i": ["10", "11", "010", "12", "10", "11"]}
    assert read(path, list_columns=("u", "i")).to_pydict() == expected
    assert read(path, list_columns=("u", "i"), columns=["i"]).to_pydict() == {"i": expected["i"]}
    monkeypatch.setattr(line_files, "BLOCK_BYTES", 4)
    assert read(path, list_columns=("u", "i")).to_pydict() == expected


def test_folder_is_read_in_order_without_hidden_files(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    write(tmp_path, "c.csv", "user\nthree\n")
    write(tmp_path, "b/a.csv", "user\ntwo\n")
    write(tmp_path, "a.csv", "user\none\n")
    write(tmp_path, "README.txt", "not read")
    write(tmp_path, ".hidden.csv", "user\nno\n")
    write(tmp_path, "_SUCCESS", "")
    pyarrow.parquet.write_table(
        pa.table({"user": pa.array([], pa.string())}), tmp_path / "d.parquet"
    )  # parts may be empty
    assert read(tmp_path).to_pydict() == {"user": ["one", "two", "three"]}
    assert [chunk.file for chunk in chunks(tmp_path, where="x")] == [
        str(tmp_path / n) for n in ("a.csv", "b/a.csv", "c.csv")
    ]


def test_chunks_are_bounded_and_know_their_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "CHUNK_ROWS", 4)
    pyarrow.parquet.write_table(pa.table({"n": range(10)}), tmp_path / "a.parquet", row_group_size=3)
    found = list(chunks([tmp_path / "a.parquet", pa.table({"n": [7]})], where="x"))
    assert all(len(chunk.table) <= 4 for chunk in found)
    assert [n for chunk in found for n in chunk.table["n"].to_pylist()] == [*range(10), 7]
    rows = np.cumsum([0] + [len(chunk.table) for chunk in found[:-1]])
    assert [chunk.first_row for chunk in found[:-1]] == (rows[:-1] + 1).tolist()
    assert found[-1].first_row == 1


def test_reading_is_lazy(tmp_path: Path) -> None:
    def frames() -> Iterator[pa.Table]:
        yield TABLE
        raise AssertionError("read too far")

    assert len(next(read_chunks(frames(), where="x"))) == 3


# ---------------------------------------------------------------- what is wrong with them


def gz(text: str, n_bytes: int | None = None) -> bytes:
    return gzip.compress(text.encode())[:n_bytes]


BAD: dict[str, tuple[str, bytes | str, str]] = {
    "empty": ("a.csv", "", r"a\.csv: the file is empty \(0 bytes\)"),
    "only blank lines": ("a.csv", "\n\n", r"a\.csv: the file is empty, expected a line of column names"),
    "header only": ("a.csv", "user,item\n", r"a\.csv: there are no rows"),
    "header only, no newline": ("a.csv", "user,item", r"a\.csv: there are no rows, only a header"),
    "too many fields": (
        "a.csv",
        "user,item\na,1\nb,2,3\n",
        r"a\.csv, line 3: found 3 fields, expected 2 as in the header$",
    ),
    "too few fields": ("a.tsv", "user\titem\na\t1\n\nb\n", r"a\.tsv, line 4: found 1 fields, expected 2"),
    "line breaks count": ("a.csv", 'user,item\n"a\nb",1\nc\n', r"a\.csv, line 4: found 1 fields"),
    "open quote": ("a.csv", 'user,item\n"a,1\nb,2\n', r"a\.csv, line 2: found 1 fields.*a quote that begins there"),
    "not UTF-8": (
        "a.csv",
        b"user,item\na,1\nM\xfcller,2\n",
        r"a\.csv, line 3, column 'user': b'M\\xfcller' is not UTF-8",
    ),
    "header not UTF-8": ("a.csv", b"us\xe9r,item\na,1\n", r"a\.csv, line 1: the column names are not UTF-8"),
    "UTF-16": ("a.csv", "user,item\na,1\n".encode("utf-16"), r"a\.csv, line 1: the column names are not UTF-8"),
    "no number": (
        "a.csv",
        "user,item,price\na,1,2\n\nb,2,cheap\n",
        r"line 4, column 'price': found 'cheap', expected a number",
    ),
    "missing column": (
        "a.csv",
        "usr,item\na,1\n",
        r"there is no column 'user'; the columns are 'usr', 'item'; did you mean 'usr'\?",
    ),
    "column twice": ("a.csv", "user,item,user\na,1,2\n", r"a\.csv: column 'user' is there twice"),
    "gzip cut short": (
        "a.csv.gz",
        gz("user,item\n" + "a,1\n" * 9999, 60),
        r"a\.csv\.gz: damaged or truncated, found after record",
    ),
    "no gzip": ("a.csv.gz", "user,item\na,1\n", r"a\.csv\.gz: the header can't be read: damaged or truncated"),
    "JSON error": ("a.ndjson", '{"user":"a","item":1}\n\n{"user":"b"\n', r"a\.ndjson, line 3: not a JSON object"),
    "JSON list": (
        "a.ndjson",
        '[{"user":"a"}]\n',
        r"a\.ndjson, line 1: found a JSON list, expected an object in every line",
    ),
    "JSON types": (
        "a.ndjson",
        '{"user":"a","item":1}\n{"user":2,"item":1}\n',
        r"line 2, column 'user': found 2, which is of another",
    ),
    "JSON not UTF-8": ("a.ndjson", b'{"user":"a"}\n{"user":"\xff"}\n', r"a\.ndjson, line 2: .* is not UTF-8"),
    "JSON without the column": ("a.ndjson", '{"usr":"a"}\n', r"there is no column 'user'"),
    "JSON gzip cut short": (
        "a.ndjson.gz",
        gz('{"user":"a"}\n' * 9999, 60),
        r"a\.ndjson\.gz: damaged or truncated, found after line",
    ),
    "lists without names": ("a.txt", "1 2 3\n", r"a\.txt: a \.txt file is read as lines of `query item item"),
    "no Parquet": (
        "a.parquet",
        "user,item\n",
        r"a\.parquet: can't be read as \.parquet: damaged, truncated or another",
    ),
    "no Arrow": ("a.feather", "user,item\na,1\n", r"a\.feather: can't be read as \.feather"),
    "unsupported": ("a.xlsx", "x", r"files of kind '\.xlsx' can't be read; supported are \.csv"),
    "no suffix": ("data", "x", r"files of kind '\(no suffix\)' can't be read"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files(tmp_path: Path, case: str) -> None:
    name, content, message = BAD[case]
    path = write(tmp_path, name, content)
    types = {"user": pa.string(), "item": pa.string(), "price": pa.float64()}
    columns = ["user", "item", "price"] if case == "no number" else ["user"] if "JSON" in case else ["user", "item"]
    with pytest.raises(DataError, match=message) as error:
        read(path, columns=columns, column_types=types)
    assert str(path) in str(error.value)


def test_non_utf8_lists_name_the_line(tmp_path: Path) -> None:
    path = write(tmp_path, "a.txt", b"1 2 3\n4 \xff\n")
    with pytest.raises(DataError, match=r"a\.txt, line 2: .* is not UTF-8"):
        read(path, list_columns=("u", "i"))


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("suffix", ["parquet", "feather", "arrow"])
def test_truncated_binary_files(tmp_path: Path, suffix: str, share: float) -> None:
    path = tmp_path / f"a.{suffix}"
    table = pa.table({"user": [f"user {n}" for n in range(5000)]})
    if suffix == "parquet":
        pyarrow.parquet.write_table(table, path)
    elif suffix == "feather":
        pyarrow.feather.write_feather(table, str(path))
    else:
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table, max_chunksize=100)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(DataError, match=rf"a\.{suffix}: can't be read as \.{suffix}: damaged, truncated"):
        read(path)


def test_damaged_parquet_page(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pa.table({"user": [f"user {n}" for n in range(5000)]}), path, use_dictionary=False)
    content = bytearray(path.read_bytes())
    content[200:400] = bytes(200)
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.parquet"):
        read(path)


def test_text_in_a_binary_file_must_be_utf8() -> None:
    broken = pa.Array.from_buffers(pa.string(), 1, [*pa.array(["ab"]).buffers()[:2], pa.py_buffer(b"\xff\xfe")])
    with pytest.raises(DataError, match=r"interactions \(pyarrow frame\), column 'user': .*text must be UTF-8"):
        read(pa.table({"user": broken}))


def test_frame_that_arrow_can_not_take() -> None:
    with pytest.raises(DataError, match=r"interactions \(pandas frame\): can't be turned into Arrow columns .*user"):
        read(pd.DataFrame({"user": [1, "a"]}))
    with pytest.raises(DataError, match="there is no column 'user'; the columns are 'users'; did you mean 'users'"):
        read(pd.DataFrame({"users": [1, 2]}), columns=["user"])


def test_csv_type_that_changes_after_the_first_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_files, "BLOCK_BYTES", 64)
    path = write(tmp_path, "a.csv", "user,n\n" + "a,1\n" * 50 + "b,many\n")
    with pytest.raises(DataError, match=r"a\.csv, line 52, column 'n': found 'many', which is of another type"):
        read(path)
    monkeypatch.undo()


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"interactions: there is no file or folder .*nowhere\.csv"):
        read(tmp_path / "nowhere.csv")
    write(tmp_path, "README.txt", "hello")
    with pytest.raises(DataError, match=r"no readable file in the folder .*\(files in it: 'README\.txt'\)"):
        read(tmp_path)
    with pytest.raises(DataError, match="interactions: no file and no frame was given"):
        read([])
    with pytest.raises(DataError, match="found int, expected a path, a folder, a frame"):
        read(3)
    with pytest.raises(DataError, match="found dict, expected a path"):
        read({"user": [1]})


def test_second_file_without_the_column_is_named(tmp_path: Path) -> None:
    paths = [write(tmp_path, "a.csv", "user,item\na,1\n"), write(tmp_path, "b.csv", "user,itm\nb,2\n")]
    with pytest.raises(
        DataError, match=r"b\.csv: there is no column 'item'; the columns are 'user', 'itm'; did you mean 'itm'"
    ):
        read(paths, columns=["user", "item"])


@pytest.mark.parametrize("name", ["a.parquet", "a.feather", "a.csv", "a.csv.gz", "a.ndjson", "a.txt"])
def test_any_damage_is_a_data_error_or_harmless(tmp_path: Path, name: str) -> None:
    rng = random.Random(name)
    path = tmp_path / name
    users = [f"user {k % 7}" for k in range(60)]
    table = pa.table({"user": users, "item": [str(k) for k in range(60)]})
    if name == "a.parquet":
        pyarrow.parquet.write_table(table, path)
    elif name == "a.feather":
        pyarrow.feather.write_feather(table, str(path))
    elif name == "a.ndjson":
        path.write_text("".join(f'{{"user":"{u}","item":"{k}"}}\n' for k, u in enumerate(users)))
    else:
        text = "user,item\n" + "".join(f'"{u}",{k}\n' for k, u in enumerate(users))
        path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    content = path.read_bytes()
    n_errors = 0
    for _ in range(60):
        damaged = bytearray(content)
        if rng.random() < 0.3:
            del damaged[rng.randrange(1, len(damaged)) :]
        else:
            for _ in range(rng.choice([1, 5])):
                damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        path.write_bytes(damaged)
        try:
            read(path, columns=["user", "item"], column_types=TEXT, list_columns=("user", "item"))
        except DataError as error:
            n_errors += 1
            assert str(path) in str(error)  # noqa: PT017 - not every damage is an error
    assert n_errors > 5
