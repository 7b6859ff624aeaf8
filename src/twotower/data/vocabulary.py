"""From raw values to rows: exact and hashed vocabularies, both fitted in a stream.

A value is looked up by its *text form*, so that the number 7, the whole float 7.0 and the text "7" are one id: number
columns with gaps often arrive as floats. Everything here works on whole Arrow arrays, never a value at a time.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ..errors import ArtifactError, DataError

FORMAT = 2
"""Version of the saved files; those of version 1, in which nothing had grown, are read too."""

_MIX_A = np.uint64(0xBF58476D1CE4E5B9)
_MIX_B = np.uint64(0x94D049BB133111EB)
_STEP = np.uint64(0x9E3779B97F4A7C15)
_WORD = np.uint64(8)
_PLAIN_MIX_A, _PLAIN_MIX_B, _PLAIN_STEP = int(_MIX_A), int(_MIX_B), int(_STEP)
_MAX_WORD = 2**64 - 1
_AGAIN = "run the ingest again, or export the bundle again"
_CELL = 48
"""Bytes of the longest value that is kept at equal distances, too."""
_FEW = 8
"""Up to so many texts are hashed one by one."""
_MERGE_AT = 1 << 20
"""Pending rows that a fit collects before it merges them into its totals (more when the totals are larger)."""


# ---------------------------------------------------------------- text form and hash


def text_form(array: pa.Array | pa.ChunkedArray, column: str) -> pa.LargeStringArray:
    """The values as text, null where missing: what vocabularies look up.

    Text stays as it is; 7 and 7.0 are ``"7"``; truth values are ``"true"`` and ``"false"``; dates are ISO; nan is
    missing.

    Raises:
        DataError: the column holds anything else, such as lists.
    """
    values = one_array(array)
    kind = values.type
    if pa.types.is_large_string(kind):
        return values
    if pa.types.is_floating(kind):
        return _text_of_floats(values)
    if pa.types.is_decimal(kind):
        return _text_of_floats(values.cast(pa.float64()))
    if pa.types.is_string_view(kind):
        return values.cast(pa.string()).cast(pa.large_string())
    plain = (pa.types.is_string, pa.types.is_integer, pa.types.is_boolean, pa.types.is_date, pa.types.is_null)
    if any(is_kind(kind) for is_kind in plain):
        return values.cast(pa.large_string())
    raise DataError(
        f"column {column!r}: found {kind}, expected one value a row (text, number, truth value or date); "
        "declare a list column as Categories, a moment as Time"
    )


def text_of(value: object, column: str) -> str | None:
    """``text_form`` of one value; whole numbers of any size.

    Raises:
        DataError: the value has no text form.
    """
    try:
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        text: str | None = text_form(pa.array([value]), column)[0].as_py()
        return text
    except (pa.ArrowException, OverflowError, UnicodeEncodeError) as error:
        raise DataError(f"column {column!r}: found {value!r}, expected text, a number or a truth value") from error


def one_array(array: pa.Array | pa.ChunkedArray) -> pa.Array:
    """The same values in one piece, without dictionary encoding."""
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks()
        array = pa.concat_arrays(array.chunks) if isinstance(array, pa.ChunkedArray) else array
    return array.dictionary_decode() if pa.types.is_dictionary(array.type) else array


def _text_of_floats(values: pa.Array) -> pa.LargeStringArray:
    number = values.cast(pa.float64())
    number = pc.if_else(pc.is_nan(number), None, number)
    whole = pc.and_(pc.equal(number, pc.floor(number)), pc.less(pc.abs(number), 2.0**53))
    as_int = pc.if_else(whole, number, None).cast(pa.int64()).cast(pa.large_string())
    return pc.coalesce(as_int, number.cast(pa.large_string()))


def mix64(word: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Spread every bit of every word over all 64 (a one-to-one map).

    Source: the finaliser of SplitMix64, Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators".
    """
    word = (word ^ (word >> np.uint64(30))) * _MIX_A
    word = (word ^ (word >> np.uint64(27))) * _MIX_B
    return word ^ (word >> np.uint64(31))


def hash64(text: pa.LargeStringArray, seed: int = 0) -> NDArray[np.uint64]:
    """A 64-bit hash of each text's UTF-8 bytes, the same on every machine and in every process; 0 for null.

    With the bytes cut into 8-byte little-endian words w_1 .. w_k (zeros after the last) and all modulo 2^64:

        hash = mix64( seed' + length * c + sum_i mix64(w_i xor (i * c)) )        seed' = mix64(seed)

    The sum has no order of its own (the position is in each term), so all words of all texts are mixed at once. It
    spreads ids and words evenly; it is no protection against someone who makes collisions on purpose.
    """
    if len(text) <= _FEW:
        return np.array([0 if one is None else hash64_of(one, seed) for one in text.to_pylist()], np.uint64)
    length = _byte_lengths(text)
    word, at, owner = _words(text, length)
    mixed = mix64(word ^ (at.astype(np.uint64) * _STEP))
    with np.errstate(over="ignore"):
        total = length.astype(np.uint64) * _STEP + mix64(np.array([seed], np.uint64))
        starts = np.flatnonzero(np.diff(owner, prepend=-1))
        if len(starts):
            total[owner[starts]] += np.add.reduceat(mixed, starts)
    hashed = mix64(total)
    hashed[_is_null(text)] = 0
    return hashed


def hash64_of(text: str, seed: int = 0) -> int:
    """``hash64`` of one text: the same number in 4 us, where an array of one takes 300."""
    data = text.encode()
    total = len(data) * _PLAIN_STEP + (_mix64_of(seed) if seed else 0)  # which keeps 0 as it is
    for start in range(0, len(data), 8):
        word = int.from_bytes(data[start : start + 8], "little")
        total += _mix64_of(word ^ ((start // 8 + 1) * _PLAIN_STEP & _MAX_WORD))
    return _mix64_of(total & _MAX_WORD)


def _mix64_of(word: int) -> int:
    word = ((word ^ (word >> 30)) * _PLAIN_MIX_A) & _MAX_WORD
    word = ((word ^ (word >> 27)) * _PLAIN_MIX_B) & _MAX_WORD
    return word ^ (word >> 31)


def _is_null(text: pa.LargeStringArray) -> NDArray[np.bool_]:
    return np.asarray(text.is_null().to_numpy(zero_copy_only=False), bool)


def _byte_lengths(text: pa.LargeStringArray) -> NDArray[np.int64]:
    return np.asarray(pc.fill_null(pc.binary_length(text), 0).to_numpy(zero_copy_only=False), np.int64)


def _words(
    text: pa.LargeStringArray, length: NDArray[np.int64]
) -> tuple[NDArray[np.uint64], NDArray[np.int64], NDArray[np.int64]]:
    """All 8-byte words of all texts: the word, its number in its text (from 1), which text it belongs to."""
    count = (length + 7) // 8
    owner = np.repeat(np.arange(len(text)), count)
    at = np.arange(len(owner)) - np.repeat(np.cumsum(count) - count, count)
    if not len(owner):
        return np.zeros(0, np.uint64), at, owner
    _, offset_buffer, bytes_buffer = text.buffers()
    offset = np.frombuffer(offset_buffer, np.int64)[text.offset : text.offset + len(text)]
    first, last = int(offset[0]), int(offset[-1] + length[-1])
    data = np.zeros(last - first + 8, np.uint8)  # the padding lets the last word be read whole
    data[: last - first] = np.frombuffer(bytes_buffer, np.uint8)[first:last]
    any_start = np.ndarray((len(data) - 7,), dtype="<u8", buffer=data.data, strides=(1,))  # the word at every byte
    word = any_start[offset[owner] - first + 8 * at].astype(np.uint64)
    unused = 8 - np.minimum(length[owner] - 8 * at, 8)
    return word & (~np.uint64(0) >> (_WORD * unused.astype(np.uint64))), at + 1, owner


# ---------------------------------------------------------------- vocabularies


class Vocabulary:
    """Exact: every listed value has a row of its own, ``0 .. V-1`` in the order given.

    Other values share ``oov_buckets`` rows behind them, ``V + hash % oov_buckets``; without buckets they have none: -1.

    Rows never move. A vocabulary that grew has its buckets where they were, behind the first V values, and later values
    behind the buckets; a row whose value is gone is *free* until a new value takes it.
    """

    def __init__(
        self, values: pa.Array | pa.ChunkedArray, *, oov_buckets: int = 0, first_bucket: int | None = None
    ) -> None:
        """``values``: distinct, of any type that has a text form. None may be missing, but for one that grew, which
        says where its buckets begin (``first_bucket``): there bucket rows and free rows are null."""
        self._values = text_form(values, "vocabulary")
        self.oov_buckets = oov_buckets
        self.first_bucket = len(self._values) if first_bucket is None else first_bucket
        if first_bucket is None and self._values.null_count:
            raise ValueError("a vocabulary can't list a missing value")

    @property
    def n_values(self) -> int:
        """The values with a row of their own."""
        return len(self._values) - int(self._values.null_count)

    @property
    def size(self) -> int:
        """Rows of its table: values, buckets and free rows."""
        return max(len(self._values), self.first_bucket + self.oov_buckets)

    def ids(self) -> pa.LargeStringArray:
        """The text of each row's value, null for a free row; buckets are null where values follow them, else left out:
        [V] until it grows."""
        return self._values

    @cached_property
    def free(self) -> NDArray[np.bool_]:
        """[size] whether a row waits for a value."""
        free = np.zeros(self.size, bool)
        free[: len(self._values)] = _is_null(self._values)
        free[self.first_bucket : self.first_bucket + self.oov_buckets] = False
        return free

    def grown(self, values: pa.LargeStringArray, gone: NDArray[np.int64] | None = None) -> Vocabulary:
        """With the rows ``gone`` freed and new values: they take free rows, the lowest first, then rows at the end."""
        kept = ~_is_null(self._values)
        free = self.free.copy()
        if gone is not None:
            kept[gone], free[gone] = False, True
        place = np.flatnonzero(free)[: len(values)]
        place = np.append(place, self.size + np.arange(len(values) - len(place)))
        source = np.full(max(len(self._values), int(place.max(initial=-1)) + 1), -1, np.int64)
        source[: len(kept)][kept] = np.flatnonzero(kept)
        source[place] = len(self._values) + np.arange(len(values))
        together = pa.concat_arrays([self._values, text_form(values, "vocabulary")])
        texts = together.take(pa.array(source, mask=source < 0))
        return Vocabulary(texts, oov_buckets=self.oov_buckets, first_bucket=self.first_bucket)

    def changed(self, old: Vocabulary) -> NDArray[np.bool_]:
        """[size] whether a row means another value than in ``old``, from which this one grew: new, freed or reused."""
        both = min(len(self._values), len(old._values))
        ours, theirs = self._values.slice(0, both), old._values.slice(0, both)
        differs = np.zeros(self.size, bool)
        differs[:both] = pc.fill_null(pc.not_equal(ours, theirs), False).to_numpy(zero_copy_only=False)
        differs[:both] |= _is_null(ours) != _is_null(theirs)
        differs[both : len(self._values)] = ~_is_null(self._values.slice(both))
        return differs

    def gained(self, old: Vocabulary) -> NDArray[np.int64]:
        """Rows whose value had no row, or another one, in ``old``."""
        return np.flatnonzero(self.changed(old)[: len(self._values)] & ~_is_null(self._values))

    def ids_of(self, rows: Sequence[int]) -> list[str]:
        """The texts of these rows' values, of those that have a row of their own."""
        texts: list[str] = self._values.take(pa.array(rows, pa.int64())).to_pylist()
        return texts

    def row(self, value: object, column: str = "values") -> int:
        """Row of one value, as ``rows`` has it.

        Raises:
            DataError: the value has no text form.
        """
        return int(self.rows(pa.array([text_of(value, column)], pa.large_string()), column)[0])

    def row_of_text(self, text: str) -> int:
        """``rows`` of one text form, without an array: 5 us, where ``row`` takes 100."""
        hashed = hash64_of(text)
        sorted_hash, row_of = self._index
        place = int(sorted_hash.searchsorted(np.uint64(hashed)))
        offset, data = self._bytes
        wanted = text.encode()
        while place < len(sorted_hash) and int(sorted_hash[place]) == hashed:
            row = int(row_of[place])
            if data[offset[row] : offset[row + 1]] == wanted:
                return row
            place += 1
        return self.first_bucket + hashed % self.oov_buckets if self.oov_buckets else -1

    @property
    def text_bytes(self) -> tuple[NDArray[np.int64], bytes]:
        """The values' UTF-8 bytes one after the other, and where each begins and the last ends [V + 1]."""
        return self._bytes

    @cached_property
    def _bytes(self) -> tuple[NDArray[np.int64], bytes]:
        """A copy, of which a slice is had three times as fast as of a buffer."""
        values = self._values
        _, offsets, data = values.buffers()
        if offsets is None or not len(values):
            return np.zeros(len(values) + 1, np.int64), b""
        offset = np.frombuffer(offsets, np.int64)[values.offset : values.offset + len(values) + 1]
        return offset, data.to_pybytes() if data is not None else b""

    @cached_property
    def cells(self) -> NDArray[np.bytes_] | None:
        """[V] the values' UTF-8 bytes at equal distances, from which many are had at once seven times as fast; None
        where one is long, or they hold the byte 0, which would be lost at an end."""
        offset, data = self._bytes
        length, value = np.diff(offset), np.frombuffer(data, np.uint8)[offset[0] : offset[-1]]
        width = max(1, int(length.max(initial=1)))
        if width > _CELL or not value.all():
            return None
        cell = np.zeros((len(length), width), np.uint8)
        cell[np.arange(width) < length[:, None]] = value
        return cell.view(f"S{width}")[:, 0]

    def rows(self, values: pa.Array | pa.ChunkedArray, column: str = "values") -> NDArray[np.int64]:
        """Row of each value; -1 for missing, and for unknown ones where there are no buckets.

        Raises:
            DataError: ``column`` has a type without a text form.
        """
        text = text_form(values, column)
        hashed = hash64(text)
        row = self._find(text, hashed)
        unknown = (row < 0) & ~_is_null(text)
        row[unknown] = self._bucket_rows(hashed[unknown])
        return row

    def own_rows(self, values: pa.Array | pa.ChunkedArray, column: str = "values") -> NDArray[np.int64]:
        """Row of each value that has one of its own, -1 of others."""
        text = text_form(values, column)
        return self._find(text, hash64(text))

    def bucket_of(self, values: pa.Array | pa.ChunkedArray, column: str = "values") -> NDArray[np.int64]:
        """The bucket each value falls into where it has no row of its own; -1 for missing, and without buckets."""
        text = text_form(values, column)
        row = self._bucket_rows(hash64(text))
        row[_is_null(text)] = -1
        return row

    def in_buckets(self, row: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether a row is a bucket that values share."""
        return (row >= self.first_bucket) & (row < self.first_bucket + self.oov_buckets)

    def _bucket_rows(self, hashed: NDArray[np.uint64]) -> NDArray[np.int64]:
        if not self.oov_buckets:
            return np.full(len(hashed), -1, np.int64)
        return self.first_bucket + _bucket(hashed, self.oov_buckets)

    @cached_property
    def _index(self) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        """The values' hashes, rising, and the row each belongs to. Built once, so that one live value is a binary
        search (a hash join would be built anew for every call)."""
        taken = np.flatnonzero(~_is_null(self._values))
        hashed = hash64(self._values)[taken]
        order = np.argsort(hashed, kind="stable")
        return hashed[order], taken[order]

    def _find(self, text: pa.LargeStringArray, hashed: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Row of each text or -1. Equal hashes prove nothing: the texts are compared, and different values of one hash
        (they are neighbours in the index) are tried in turn."""
        sorted_hash, row_of = self._index
        found = np.full(len(text), -1, np.int64)
        place = np.searchsorted(sorted_hash, hashed)
        open_ = np.flatnonzero(~_is_null(text))
        while True:
            at = place[open_]
            inside = at < len(sorted_hash)
            open_, at = open_[inside], at[inside]
            same_hash = sorted_hash[at] == hashed[open_]
            open_, at = open_[same_hash], at[same_hash]
            if not len(open_):
                return found
            row = row_of[at]
            equal = pc.equal(self._values.take(pa.array(row)), text.take(pa.array(open_)))
            match = np.asarray(equal.to_numpy(zero_copy_only=False), bool)
            found[open_[match]] = row[match]
            open_ = open_[~match]
            place[open_] += 1

    def save(self, path: Path) -> None:
        """Write one Arrow IPC file."""
        about = {"format": FORMAT, "oov_buckets": self.oov_buckets, "first_bucket": self.first_bucket}
        table = pa.table({"value": self._values})
        table = table.replace_schema_metadata({key: str(value) for key, value in about.items()})
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)

    @staticmethod
    def load(path: Path) -> Vocabulary:
        """Read a saved vocabulary; the values stay a memory map.

        Raises:
            ArtifactError: the file is missing, damaged or of another format.
        """
        try:
            table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
            about = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
            found, oov_buckets = int(about["format"]), int(about["oov_buckets"])
            first_bucket = int(about.get("first_bucket", len(table)))  # format 1 had them behind all values
            table.validate(full=True)
        except (OSError, pa.ArrowInvalid, KeyError, ValueError) as error:
            raise ArtifactError(f"{path}: not a saved vocabulary ({error}): {_AGAIN}") from error
        _check_format(path, found)
        return Vocabulary(table["value"], oov_buckets=oov_buckets, first_bucket=first_bucket)


@dataclass(frozen=True, kw_only=True)
class HashedVocabulary:
    """No list of values: the row is ``hash % buckets``, and different values may share it.

    ``n_values`` distinct values were seen when it was fitted and fell into ``n_hit`` buckets.
    """

    buckets: int
    n_values: int = 0
    n_hit: int = 0

    @property
    def size(self) -> int:
        """Rows of its table."""
        return self.buckets

    def row_of_text(self, text: str) -> int:
        """``rows`` of one text form, without an array."""
        return hash64_of(text) % self.buckets

    def rows(self, values: pa.Array | pa.ChunkedArray, column: str = "values") -> NDArray[np.int64]:
        """Row of each value; -1 for missing.

        Raises:
            DataError: ``column`` has a type without a text form.
        """
        text = text_form(values, column)
        row = _bucket(hash64(text), self.buckets)
        row[_is_null(text)] = -1
        return row

    def save(self, path: Path) -> None:
        """Write one JSON file."""
        about = {"format": FORMAT, "buckets": self.buckets, "n_values": self.n_values, "n_hit": self.n_hit}
        path.write_text(json.dumps(about), encoding="utf-8")

    @staticmethod
    def load(path: Path) -> HashedVocabulary:
        """Read a saved vocabulary.

        Raises:
            ArtifactError: the file is missing, damaged or of another format.
        """
        try:
            about: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            found, counts = int(about["format"]), {key: int(about[key]) for key in ("buckets", "n_values", "n_hit")}
        except (OSError, TypeError, KeyError, ValueError) as error:
            raise ArtifactError(f"{path}: not a saved vocabulary ({error}): {_AGAIN}") from error
        _check_format(path, found)
        return HashedVocabulary(**counts)


def _check_format(path: Path, found: int) -> None:
    if found not in (1, FORMAT):
        raise ArtifactError(f"{path}: format {found}, expected {FORMAT}: run the ingest again with this version")


def _bucket(hashed: NDArray[np.uint64], buckets: int) -> NDArray[np.int64]:
    return (hashed % np.uint64(buckets)).astype(np.int64)


# ---------------------------------------------------------------- fitting in a stream


class VocabularyFit:
    """Counts values in a stream; memory is that of the distinct values.

    ``update`` lists values: those can get a row. ``count`` only counts occurrences elsewhere, such as the events of a
    catalogue's items; once it was called, its counts and not the listings decide about ``min_count`` and the order.

    A fit that goes on from ``base`` gives rows to what is new; ``waiting`` are the counts of what was below
    ``min_count`` so far.
    """

    def __init__(self, base: Vocabulary | None = None, waiting: pa.Table | None = None) -> None:
        self._base = base
        self._merged = _counts_table(pa.array([], pa.large_string()), listed=True) if waiting is None else waiting
        self._known = [] if base is None else [base, Vocabulary(self._merged["value"])]
        self._pending: list[pa.Table] = []
        self._n_pending = 0
        self.has_counts = False

    def update(self, values: pa.Array | pa.ChunkedArray, column: str = "values") -> None:
        """List these values, each occurrence counted."""
        self._add(_counts_table(text_form(values, column), listed=True))

    def update_again(self, values: pa.Array | pa.ChunkedArray, column: str = "values") -> None:
        """List the values of rows that were there before: those that were known are counted already."""
        text = text_form(values, column)
        known = np.zeros(len(text), bool)
        for vocabulary in self._known:
            known |= vocabulary.own_rows(text) >= 0
        self.update(text.filter(pa.array(~known)))

    def count(self, values: pa.Array | pa.ChunkedArray, column: str = "values") -> None:
        """Count these occurrences, without listing the values."""
        self.has_counts = True
        self._add(_counts_table(text_form(values, column), listed=False))

    def _add(self, counts: pa.Table) -> None:
        self._pending.append(counts)
        self._n_pending += len(counts)
        if self._n_pending > max(_MERGE_AT, len(self._merged)):  # so each value is merged a bounded number of times
            self._merge()

    def _merge(self) -> None:
        table = pa.concat_tables([self._merged, *self._pending])
        code = one_array(table["value"]).dictionary_encode()  # twice as fast as a group_by
        n = len(code.dictionary)
        sums = {
            name: np.bincount(code.indices.to_numpy(), table[name].to_numpy(), minlength=n).astype(np.int64)
            for name in ("listed", "counted")
        }
        self._merged = pa.table({"value": code.dictionary, **sums})
        self._pending, self._n_pending = [], 0

    def finish(
        self, *, min_count: int = 1, oov_buckets: int = 0, gone: pa.LargeStringArray | None = None
    ) -> Vocabulary:
        """The values with at least ``min_count`` occurrences, by falling count, equal counts by text.

        With ``min_count = 1`` every listed value is kept, also one that was never counted. A fit that goes on from a
        vocabulary lets it grow by those that are new, without the values that are ``gone``.
        """
        enough, _ = self._cut(min_count, gone)
        value = enough.sort_by([(self._deciding, "descending"), ("value", "ascending")])["value"]
        if self._base is None:
            return Vocabulary(value, oov_buckets=oov_buckets)
        row = np.zeros(0, np.int64) if gone is None else self._base.own_rows(gone)
        return self._base.grown(one_array(value), row[row >= 0])

    def waiting(self, *, min_count: int = 1, gone: pa.LargeStringArray | None = None) -> pa.Table:
        """``value``, ``listed`` and ``counted`` of what was listed and has no row yet, by text."""
        return self._cut(min_count, gone)[1].sort_by("value")

    @property
    def _deciding(self) -> str:
        return "counted" if self.has_counts else "listed"

    def _cut(self, min_count: int, gone: pa.LargeStringArray | None) -> tuple[pa.Table, pa.Table]:
        """Values without a row so far: those that get one, and those that go on waiting."""
        self._merge()
        table = self._merged.filter(pc.greater(self._merged["listed"], 0))
        if self._base is not None:
            table = table.filter(pa.array(self._base.own_rows(table["value"]) < 0))
        if gone is not None:
            table = table.filter(pc.invert(pc.is_in(table["value"], value_set=gone)))
        if min_count == 1:
            return table, table.slice(0, 0)
        enough = pc.greater_equal(table[self._deciding], min_count)
        return table.filter(enough), table.filter(pc.invert(enough))


def _counts_table(text: pa.LargeStringArray, *, listed: bool) -> pa.Table:
    """Distinct texts with how often they are listed and counted."""
    counts = pc.value_counts(text.drop_null())
    value, n = counts.field("values"), counts.field("counts")
    none = pa.array(np.zeros(len(n), np.int64))
    return pa.table({"value": value, "listed": n if listed else none, "counted": none if listed else n})


class DistinctHashes:
    """A set of 64-bit hashes that grows in a stream, 8 bytes each."""

    def __init__(self) -> None:
        self._sorted = np.zeros(0, np.uint64)

    def __len__(self) -> int:
        return len(self._sorted)

    def values(self) -> NDArray[np.uint64]:
        """The hashes, rising."""
        return self._sorted

    def add(self, hashed: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Add hashes and return the places in ``hashed``, rising, at which a new one occurs for the first time."""
        distinct, first = np.unique(hashed, return_index=True)
        place = np.searchsorted(self._sorted, distinct)
        known = np.zeros(len(distinct), bool)
        inside = place < len(self._sorted)
        known[inside] = self._sorted[place[inside]] == distinct[inside]
        if not known.all():
            self._sorted = np.insert(self._sorted, place[~known], distinct[~known])
        return np.sort(first[~known])


class HashedVocabularyFit:
    """Counts distinct values and the buckets they fall into, in a stream."""

    def __init__(self) -> None:
        self._seen = DistinctHashes()

    def update(self, values: pa.Array | pa.ChunkedArray, column: str = "values") -> None:
        """See these values."""
        text = text_form(values, column).drop_null()
        self._seen.add(hash64(text))

    def finish(self, *, buckets: int) -> HashedVocabulary:
        """The vocabulary, with its collisions counted."""
        n_hit = len(np.unique(_bucket(self._seen.values(), buckets)))
        return HashedVocabulary(buckets=buckets, n_values=len(self._seen), n_hit=n_hit)
