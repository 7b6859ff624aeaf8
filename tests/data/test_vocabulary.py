"""Vocabularies against dictionaries and a hash written out in plain Python."""

from __future__ import annotations

import datetime
import random
from collections import Counter
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twotower.data import vocabulary
from twotower.data.vocabulary import (
    DistinctHashes,
    HashedVocabulary,
    HashedVocabularyFit,
    Vocabulary,
    VocabularyFit,
    hash64,
    hash64_of,
    text_form,
)
from twotower.errors import ArtifactError, DataError

MASK = 2**64 - 1


def naive_mix(word: int) -> int:
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & MASK
    return word ^ (word >> 31)


def naive_hash(text: str, seed: int = 0) -> int:
    data, step = text.encode(), 0x9E3779B97F4A7C15
    total = naive_mix(seed) + len(data) * step
    for i in range(0, len(data), 8):
        word = int.from_bytes(data[i : i + 8].ljust(8, b"\0"), "little")
        total += naive_mix(word ^ ((i // 8 + 1) * step & MASK))
    return naive_mix(total & MASK)


def texts(values: list[str | None]) -> pa.LargeStringArray:
    return pa.array(values, pa.large_string())


# ---------------------------------------------------------------- hash


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(max_size=40), max_size=20), st.integers(0, 3))
def test_the_hash_is_the_formula(values: list[str], seed: int) -> None:
    assert hash64(texts(values), seed).tolist() == [naive_hash(value, seed) for value in values]
    assert [hash64_of(value, seed) for value in values] == [naive_hash(value, seed) for value in values]


def test_the_hash_never_changes() -> None:
    """Saved models depend on these numbers; they were computed with ``naive_hash``."""
    golden = {
        "": 0,
        "7": 9272565700874140244,
        "item-1": 1924922194586272927,
        "ein längerer Name": 13163887057013609213,
    }
    assert hash64(texts(list(golden))).tolist() == list(golden.values())


def test_the_hash_of_a_slice_and_of_missing_values() -> None:
    values = texts(["a", None, "", "abcdefgh", "abcdefghi", None])
    assert hash64(values.slice(1, 4)).tolist() == [0, *map(naive_hash, ["", "abcdefgh", "abcdefghi"])]
    assert hash64(values.slice(0, 0)).tolist() == []
    assert hash64(texts([None, None])).tolist() == [0, 0]
    many = texts([None, *["", "abcdefgh", "abcdefghi", None] * 5])  # few are hashed one by one
    assert hash64(many.slice(1, 20)).tolist() == [*map(naive_hash, ["", "abcdefgh", "abcdefghi"]), 0] * 5


def test_texts_of_zeros_differ_by_their_length() -> None:
    values = ["\0" * n for n in range(20)]
    assert len(set(hash64(texts(values)).tolist())) == 20


def test_the_hash_spreads_evenly_over_buckets() -> None:
    """Chi-square with 63 degrees of freedom: mean 63, deviation sqrt(126) = 11.2; six deviations are 130."""
    hashed = hash64(texts([f"item-{i}" for i in range(64_000)]))
    count = np.bincount((hashed % np.uint64(64)).astype(np.int64), minlength=64)
    assert ((count - 1000) ** 2 / 1000).sum() < 130


# ---------------------------------------------------------------- text form


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (pa.array([7, None, -3]), ["7", None, "-3"]),
        (pa.array([7], pa.uint8()), ["7"]),
        (pa.array([7.0, 0.5, float("nan"), None, -0.0]), ["7", "0.5", None, None, "0"]),
        (pa.array([1e300]), ["1e+300"]),
        (pa.array([2.0], pa.float32()), ["2"]),
        (pa.array([Decimal("7.00"), Decimal("7.50")]), ["7", "7.5"]),
        (pa.array([True, False, None]), ["true", "false", None]),
        (pa.array(["7", None, ""]), ["7", None, ""]),
        (pa.array(["a", "b", "a"]).dictionary_encode(), ["a", "b", "a"]),
        (pa.chunked_array([["a"], ["b"]]), ["a", "b"]),
        (pa.chunked_array([], pa.string()), []),
        (pa.array([datetime.date(2024, 5, 1)]), ["2024-05-01"]),
        (pa.nulls(2), [None, None]),
    ],
)
def test_text_form(array: pa.Array, expected: list[str | None]) -> None:
    assert text_form(array, "c").to_pylist() == expected


def test_types_without_text_form_are_named() -> None:
    with pytest.raises(DataError, match=r"column 'tags': found list<item: string>.*Categories"):
        text_form(pa.array([["a"]]), "tags")
    with pytest.raises(DataError, match=r"column 'at': found timestamp.*Time"):
        text_form(pa.array([datetime.datetime(2024, 5, 1)]), "at")


# ---------------------------------------------------------------- exact


def test_rows_of_known_missing_and_unknown_values() -> None:
    known = Vocabulary(texts(["b", "a", "c"]), oov_buckets=4)
    unknown = ["x", "y", "", "z"]
    expected = [0, -1, 2, 1, *(3 + naive_hash(value) % 4 for value in unknown)]
    assert known.rows(texts(["b", None, "c", "a", *unknown])).tolist() == expected
    assert known.size == 7
    assert known.n_values == 3
    assert known.ids().to_pylist() == ["b", "a", "c"]
    assert known.ids_of([2, 0, 2]) == ["c", "b", "c"]


def test_without_buckets_unknown_values_have_no_row() -> None:
    assert Vocabulary(texts(["a"])).rows(texts(["a", "b", None])).tolist() == [0, -1, -1]
    assert Vocabulary(texts([])).rows(texts(["a", None])).tolist() == [-1, -1]


def test_a_number_and_its_text_are_one_id() -> None:
    known = Vocabulary(pa.array([10, 7]))
    for same in (pa.array([7]), pa.array([7.0]), pa.array(["7"])):
        assert known.rows(same).tolist() == [1]
    assert known.row(7) == known.row("7") == known.row(7.0) == 1
    assert known.row(8) == known.row(None) == -1
    assert known.row(2**63) == known.row(str(2**63)) == -1
    with pytest.raises(DataError, match=r"found '.udcff', expected text"):
        known.row("\udcff")
    with pytest.raises(DataError, match="expected one value"):
        known.row([7])
    with pytest.raises(DataError, match="found <object"):
        known.row(object())


def test_values_with_the_same_hash_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocabulary, "hash64", lambda text, seed=0: np.full(len(text), 9, np.uint64))
    known = Vocabulary(texts(["a", "b", "c"]))
    assert known.rows(texts(["c", "x", "a", "b", "c", None])).tolist() == [2, -1, 0, 1, 2, -1]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(max_size=10), unique=True), st.lists(st.one_of(st.none(), st.text(max_size=10))))
def test_rows_are_those_of_a_dictionary(values: list[str], asked: list[str | None]) -> None:
    place = {value: row for row, value in enumerate(values)}
    expected = [place.get(value, -1) if value is not None else -1 for value in asked]
    assert Vocabulary(texts(values)).rows(texts(asked)).tolist() == expected
    assert Vocabulary(texts(values)).rows(texts(values)).tolist() == list(range(len(values)))


def test_cells_hold_the_bytes_of_all_values() -> None:
    texts = ["a", "", "größer", "日本", "x" * 48]
    cells = Vocabulary(pa.array(texts)).cells
    assert cells is not None
    assert cells.tolist() == [text.encode() for text in texts]
    sliced = Vocabulary(pa.array(["zz", "b", "cc"]).slice(1)).cells
    assert sliced is not None
    assert sliced.tolist() == [b"b", b"cc"]
    grown = Vocabulary(pa.array(["a", None, "bb"]), first_bucket=1, oov_buckets=1).cells
    assert grown is not None
    assert grown.tolist() == [b"a", b"", b"bb"]
    assert Vocabulary(pa.array(["x" * 49])).cells is None
    assert Vocabulary(pa.array(["a\0"])).cells is None  # numpy drops zeros at an end
    empty = Vocabulary(pa.array([], pa.string())).cells
    assert empty is not None
    assert len(empty) == 0


def test_a_missing_value_can_not_be_listed() -> None:
    with pytest.raises(ValueError, match="missing"):
        Vocabulary(texts(["a", None]))


# ---------------------------------------------------------------- growing


def test_new_values_take_the_lowest_free_rows_then_rows_behind_the_buckets(tmp_path: Path) -> None:
    known = Vocabulary(texts(["a", "b", "c"]), oov_buckets=2)
    less = known.grown(texts([]), np.array([2, 0]))
    assert (less.ids().to_pylist(), less.n_values, less.size) == ([None, "b", None], 1, 5)
    assert less.free.tolist() == [True, False, True, False, False]
    grown = less.grown(texts(["d", "e", "f", "g"]), np.array([1]))
    assert grown.ids().to_pylist() == ["d", "e", "f", None, None, "g"]
    assert (grown.n_values, grown.size, grown.free.any()) == (4, 6, False)
    bucket = [3 + naive_hash(value) % 2 for value in "abc"]
    assert grown.rows(texts(["g", "a", None, "d", "b", "c"])).tolist() == [5, bucket[0], -1, 0, *bucket[1:]]
    assert grown.own_rows(texts(["g", "a", None])).tolist() == [5, -1, -1]
    assert grown.bucket_of(texts(["a", None])).tolist() == [bucket[0], -1]
    assert grown.in_buckets(np.array([-1, 2, 3, 4, 5])).tolist() == [False, False, True, True, False]
    assert grown.changed(known).tolist() == [True, True, True, False, False, True]
    assert less.changed(known).tolist() == [True, False, True, False, False]
    assert grown.gained(less).tolist() == [0, 1, 2, 5]
    grown.save(tmp_path / "v.arrow")
    loaded = Vocabulary.load(tmp_path / "v.arrow")
    assert (loaded.ids(), loaded.first_bucket, loaded.oov_buckets) == (grown.ids(), 3, 2)
    assert loaded.grown(texts(["h"])).rows(texts(["h", "g"])).tolist() == [6, 5]


UPDATES = st.lists(st.tuples(st.sets(st.sampled_from("abcdefg")), st.sets(st.sampled_from("abcdefg"))), max_size=5)


@settings(max_examples=50, deadline=None)
@given(UPDATES, st.integers(0, 3))
def test_growth_is_that_of_a_list(updates: list[tuple[set[str], set[str]]], buckets: int) -> None:
    rows: list[str | None] = ["x", "y"]
    known = Vocabulary(texts(rows), oov_buckets=buckets)
    for come, go in updates:
        gone = [row for row, value in enumerate(rows) if value in go]
        rows = [None if value in go else value for value in rows]
        new = sorted(come - set(rows))
        known = known.grown(texts(new), np.array(gone, np.int64))
        for value in new:
            free = [row for row, other in enumerate(rows) if other is None and not 2 <= row < 2 + buckets]
            if free:
                rows[free[0]] = value
            else:
                rows += [None] * (buckets if len(rows) == 2 else 0)
                rows.append(value)
        assert known.ids().to_pylist() == rows
        assert known.size == max(len(rows), 2 + buckets)
        for value in "abcdefgxyz":
            bucket = 2 + naive_hash(value) % buckets if buckets else -1
            assert known.row(value) == (rows.index(value) if value in rows else bucket)


def test_a_vocabulary_of_the_first_format_has_its_buckets_last(tmp_path: Path) -> None:
    about = {"format": "1", "oov_buckets": "2"}
    table = pa.table({"value": texts(["a", "b"])}).replace_schema_metadata(about)
    with pa.OSFile(str(tmp_path / "v.arrow"), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    loaded = Vocabulary.load(tmp_path / "v.arrow")
    assert loaded.rows(texts(["b", "z"])).tolist() == [1, 2 + naive_hash("z") % 2]


def test_a_fit_goes_on_counting_what_waits() -> None:
    fit = VocabularyFit()
    fit.update(texts(["a", "a", "b", "c"]))
    known, waiting = fit.finish(min_count=2, oov_buckets=1), fit.waiting(min_count=2)
    assert known.ids().to_pylist() == ["a"]
    assert waiting.to_pydict() == {"value": ["b", "c"], "listed": [1, 1], "counted": [0, 0]}
    later = VocabularyFit(known, waiting)
    later.update(texts(["b", "d", "a"]))
    later.update_again(texts(["c", "e", "a"]))  # c was counted when its row came
    assert later.finish(min_count=2).ids().to_pylist() == ["a", None, "b"]
    assert later.waiting(min_count=2, gone=texts(["d"]))["value"].to_pylist() == ["c", "e"]
    assert later.finish(min_count=1, gone=texts(["a"])).ids().to_pylist() == ["b", None, "c", "d", "e"]


# ---------------------------------------------------------------- fitting


@pytest.mark.parametrize("merge_at", [1, 5, 10**6])
def test_a_fit_counts_like_a_counter_whatever_the_chunks(merge_at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocabulary, "_MERGE_AT", merge_at)
    rng = random.Random(0)
    values = [rng.choice("abcdefgh") * rng.randint(1, 3) for _ in range(500)]
    fit = VocabularyFit()
    for start in range(0, 500, 37):
        fit.update(texts([*values[start : start + 37], None]))
    count = Counter(values)
    ordered = sorted(count, key=lambda value: (-count[value], value))
    assert fit.finish().ids().to_pylist() == ordered
    assert fit.finish(min_count=20).ids().to_pylist() == [value for value in ordered if count[value] >= 20]


def test_values_counted_elsewhere_decide_about_the_listed_ones() -> None:
    fit = VocabularyFit()
    fit.update(texts(["a", "b", "c", "d"]))
    fit.count(texts(["b", "b", "c", "unlisted", "unlisted", "unlisted"]))
    assert fit.finish().ids().to_pylist() == ["b", "c", "a", "d"]
    assert fit.finish(min_count=2, oov_buckets=1).ids().to_pylist() == ["b"]


def test_an_empty_fit_knows_nothing() -> None:
    assert VocabularyFit().finish(oov_buckets=2).size == 2


def test_numbers_and_texts_are_counted_together() -> None:
    fit = VocabularyFit()
    fit.update(pa.array([7, 8]))
    fit.update(pa.array(["7"]))
    assert fit.finish().ids().to_pylist() == ["7", "8"]


# ---------------------------------------------------------------- hashed


def test_hashed_rows_and_collisions() -> None:
    values = [f"v{i}" for i in range(50)]
    fit = HashedVocabularyFit()
    fit.update(texts([*values[:30], None]))
    fit.update(texts(values[10:]))
    hashed = fit.finish(buckets=16)
    assert hashed.n_values == 50
    assert hashed.n_hit == len({naive_hash(value) % 16 for value in values})
    assert hashed.size == 16
    assert hashed.rows(texts(["v3", None, "new"])).tolist() == [naive_hash("v3") % 16, -1, naive_hash("new") % 16]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.integers(0, 30))))
def test_distinct_hashes_are_a_set(chunks: list[list[int]]) -> None:
    distinct, seen = DistinctHashes(), set()
    for chunk in chunks:
        expected = []
        for at, value in enumerate(chunk):
            if value not in seen:
                expected.append(at)
                seen.add(value)
        assert distinct.add(np.array(chunk, np.uint64)).tolist() == expected
    assert distinct.values().tolist() == sorted(seen)
    assert len(distinct) == len(seen)


# ---------------------------------------------------------------- saving


def test_an_exact_vocabulary_comes_back(tmp_path: Path) -> None:
    Vocabulary(texts(["b", "ä", ""]), oov_buckets=3).save(tmp_path / "v.arrow")
    loaded = Vocabulary.load(tmp_path / "v.arrow")
    assert loaded.ids().to_pylist() == ["b", "ä", ""]
    assert loaded.oov_buckets == 3
    assert loaded.rows(texts(["", "ä"])).tolist() == [2, 1]


def test_an_empty_vocabulary_comes_back(tmp_path: Path) -> None:
    Vocabulary(texts([]), oov_buckets=1).save(tmp_path / "v.arrow")
    assert Vocabulary.load(tmp_path / "v.arrow").rows(texts(["a"])).tolist() == [0]


def test_a_hashed_vocabulary_comes_back(tmp_path: Path) -> None:
    hashed = HashedVocabulary(buckets=9, n_values=4, n_hit=3)
    hashed.save(tmp_path / "v.json")
    assert HashedVocabulary.load(tmp_path / "v.json") == hashed


@pytest.mark.parametrize("content", [b"", b"not a vocabulary", b'{"format": 1}', b"[]"])
@pytest.mark.parametrize("kind", [Vocabulary, HashedVocabulary])
def test_damaged_files_are_named(kind: type[Vocabulary | HashedVocabulary], content: bytes, tmp_path: Path) -> None:
    (tmp_path / "v").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"v: not a saved vocabulary.*run the ingest again"):
        kind.load(tmp_path / "v")
    with pytest.raises(ArtifactError, match="missing"):
        kind.load(tmp_path / "missing")


def test_truncated_and_newer_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "v.arrow"
    Vocabulary(texts([f"value {i}" for i in range(100)])).save(path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ArtifactError, match="not a saved vocabulary"):
        Vocabulary.load(path)
    (tmp_path / "v.json").write_text('{"format": 3, "buckets": 9, "n_values": 4, "n_hit": 3}')
    with pytest.raises(ArtifactError, match="format 3, expected 2"):
        HashedVocabulary.load(tmp_path / "v.json")
