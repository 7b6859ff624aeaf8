"""From what a column holds to the feature it could be, and to what a person should know before using it.

These are rules of thumb over names and values. They choose what is safe: what may be known only after the event, or
says which item was chosen, is left out or only offered, with the reason.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ..schema import Categorical, Categories, Feature, Number, Reward, Time, Vector
from .arrow import numbers
from .profile import ColumnProfile
from .vocabulary import hash64, one_array

_FEW = 20
"""Distinct numbers up to which they are taken for categories."""
_PHRASES = 200
"""Distinct phrases of several words up to which they are taken for categories, unless nearly all are different."""
_FEW_IDS = 1_000
"""Distinct values up to which a column of the interactions that is called an id can be a category."""
_MANY = 10_000
"""Distinct categories from which rare ones share a vector."""
_ALMOST_ALL = 0.9
_SEPARATORS = ("|", ";", ",")

_TIME_WORDS = {"time", "timestamp", "date", "datetime", "ts", "dt", "created", "updated", "at", "when", "day"}
_CATEGORY_WORDS = {
    *("id", "code", "type", "class", "category", "genre", "tag", "tags", "status", "zip", "postcode", "gender", "sex"),
    *("country", "city", "region", "state", "language", "lang", "device", "platform", "brand", "section", "level"),
    *("onehot", "group", "segment", "flag", "kind", "occupation", "author", "artist", "color", "colour"),
}
_POPULARITY_WORDS = {
    *("cnt", "count", "counts", "num", "popularity", "views", "plays", "clicks", "sales", "sold", "ctr", "rating"),
    *("ratings", "rate", "progress", "downloads", "popular", "rank", "score", "reviews"),
}
_ID_WORDS = {"id", "no", "number", "code", "key", "uuid", "token"}
_ROW_NUMBER = re.compile(r"__index_level_\d+__|unnamed.*|index|row_?(id|number)?", re.IGNORECASE)
"""What data frames call the numbers of their rows when they write them."""
_OUTCOME_WORDS = {
    *("rating", "stars", "star", "score", "watch", "watched", "play", "played", "dwell", "stay", "view", "viewed"),
    *("finish", "finished", "complete", "completed", "like", "liked", "dislike", "hate", "follow", "comment"),
    *("forward", "share", "shared", "click", "clicked", "purchase", "purchased", "bought", "order", "ordered"),
    *("convert", "conversion", "label", "positive", "reward", "revenue", "quantity", "qty", "amount", "reply"),
    *("enter", "skip", "skipped", "listen", "save", "saved", "favorite", "favourite", "review", "target", "outcome"),
}
_WATCH_WORDS = {"watch", "watched", "play", "played", "view", "viewed", "listen", "listened", "read"}
_SHARE_WORDS = {"ratio", "share", "fraction", "progress", "completion"}
_LENGTH_WORDS = {"duration", "length"}
_UNIT_WORDS = {"ms", "s", "sec", "secs", "second", "seconds", "minutes"}
_HARDLY_WATCHED = 0.1
"""Share of an item below which a reward of 0 is suggested."""


Side = Literal["query", "context", "item"]


def words_of(name: str) -> list[str]:
    """The lower-case words of a column name: ``CustomerID`` and ``customer_id`` are customer, id."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|[\W_]+", " ", name)
    return spaced.lower().split()


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What to do with a column."""

    feature: Feature | None = None
    """None: leave it out, unless it ``is_text``."""
    is_text: bool = False
    """One of the columns of the side's Text feature."""
    is_active: bool = True
    """False: offered in a comment, for a person to decide."""
    warnings: tuple[str, ...] = ()


def _left_out(reason: str) -> Verdict:
    return Verdict(warnings=(reason,))


# ---------------------------------------------------------------- a column by itself


def suggest(column: ColumnProfile) -> Verdict:
    """The feature of a column that describes a query, an item or an event."""
    if column.kind == "nothing":
        return _left_out("no value is there")
    if _ROW_NUMBER.fullmatch(column.name):
        return _left_out("the row number of a data frame, by its name")
    if column.kind == "other":
        return _left_out(f"type {column.type} can't be a feature")
    if column.n_distinct == 1 and column.kind != "vector":
        return _left_out(f"constant: every value is {column.examples[0]}")
    if column.missing_share > 0.95:
        return _left_out(f"{column.missing_share:.1%} missing")
    verdict = _by_kind(column)
    if column.missing_share <= 0.5:
        return verdict
    return _with_warning(verdict, f"{column.missing_share:.0%} missing")


def _with_warning(verdict: Verdict, warning: str) -> Verdict:
    return dataclasses.replace(verdict, warnings=(*verdict.warnings, warning))


def _by_kind(column: ColumnProfile) -> Verdict:
    match column.kind:
        case "vector":
            return Verdict(feature=Vector(column=column.name, dim=max(column.dim, 1)))
        case "list":
            return Verdict(feature=Categories(column=column.name, min_count=_min_count(column)))
        case "moment":
            return Verdict(feature=Time(column=column.name, parts=("age",)))
        case "truth":
            return Verdict(feature=Categorical(column=column.name))
        case "text":
            return _text(column)
        case _:
            return _number(column)


def _min_count(column: ColumnProfile) -> int:
    return 2 if column.n_distinct > _MANY else 1


def _text(column: ColumnProfile) -> Verdict:
    if column.is_iso_text():
        return Verdict(feature=Time(column=column.name, parts=("age",)))
    separator = next((s for s in _SEPARATORS if _is_separated(column, s)), None)
    if separator is not None:
        return Verdict(feature=Categories(column=column.name, separator=separator, min_count=_min_count(column)))
    is_category = bool(_CATEGORY_WORDS & set(words_of(column.name)))
    if column.share_matching(r"^-?\d+(\.\d+)?$") == 1.0 and column.n_distinct > _FEW and not is_category:
        return _left_out("numbers stored as text: convert them to use them as Number")
    is_varied = column.n_distinct > _PHRASES or (column.unique_share > 0.5 and column.n_distinct > _FEW)
    if is_varied and column.words_a_text() >= 2 and column.share_matching(r"\s") > 0.5:
        return Verdict(is_text=True)
    return _category(column)


def _is_separated(column: ColumnProfile, separator: str) -> bool:
    """Whether short parts recur in different combinations."""
    texts = [str(text) for text in column.sample.slice(0, 5_000).to_pylist()]
    whole = {text for text in texts if separator in text}
    if len(whole) < 2 or sum(separator in text for text in texts) < 0.02 * len(texts):
        return False
    parts = [part.strip() for text in whole for part in text.split(separator)]
    is_short = sum(len(part.split()) for part in parts) <= 2 * len(parts)
    return is_short and len(set(parts)) < 0.5 * len(parts)


def _category(column: ColumnProfile) -> Verdict:
    if column.unique_share > _ALMOST_ALL and column.n_distinct > _FEW:
        return _left_out("almost every value is different: it names the row and tells nothing of others")
    return Verdict(feature=Categorical(column=column.name, min_count=_min_count(column)))


def _number(column: ColumnProfile) -> Verdict:
    name = set(words_of(column.name))
    unit = column.epoch_unit()
    if unit is not None and name & _TIME_WORDS:
        return Verdict(feature=Time(column=column.name, parts=("age",), unit=unit))
    if column.kind == "whole" and _is_calendar_number(column):
        return _left_out("a date written as a number, such as 20240501: convert it to dates to use it as Time")
    if column.kind == "whole" and (column.n_distinct <= _FEW or name & _CATEGORY_WORDS):
        return _category(column)
    if column.kind == "whole" and column.unique_share == 1.0 and column.high - column.low == column.n_distinct - 1:
        return _left_out("a running number of the rows")
    is_skewed = column.low >= 0 and column.high > 20 * max(_median(column), 1.0)
    return Verdict(feature=Number(column=column.name, transform="log" if is_skewed else "standard"))


def _median(column: ColumnProfile) -> float:
    return float(np.median(numbers(column.sample, column.name))) if len(column.sample) else 0.0


def _is_calendar_number(column: ColumnProfile) -> bool:
    if not {"date", "day", "dt"} & set(words_of(column.name)):
        return False
    value = numbers(column.sample, column.name)
    month, day = value // 100 % 100, value % 100
    is_date = (value >= 1900_01_01) & (value <= 2100_12_31) & (month >= 1) & (month <= 12) & (day >= 1) & (day <= 31)
    return len(value) > 0 and bool(is_date.all())


def is_time(column: ColumnProfile) -> bool:
    """Whether it holds moments."""
    is_named = bool(_TIME_WORDS & set(words_of(column.name)))
    is_epoch = is_named and column.epoch_unit() is not None
    return column.kind == "moment" or is_epoch or (column.kind == "text" and column.is_iso_text())


def is_label(column: ColumnProfile) -> bool:
    """Whether it holds yes and no, both of them."""
    return (
        (column.kind in ("whole", "truth"))
        and holds_only(column, ("0", "1", "true", "false"))
        and column.n_distinct == 2
    )


def is_outcome(column: ColumnProfile) -> bool:
    """Whether its name says what came of an event."""
    return bool(_OUTCOME_WORDS & set(words_of(column.name)))


def graded_reward(columns: Sequence[ColumnProfile]) -> Reward | None:
    """A reward by how much of the item was watched: a share of it, or a time and the item's duration in one unit."""
    numeric = [(c, set(words_of(c.name))) for c in columns if c.kind in ("whole", "fraction") and c.low >= 0]
    for column, words in numeric:
        if words & _WATCH_WORDS and words & _SHARE_WORDS and column.kind == "fraction" and _median(column) <= 1:
            return Reward(column=column.name, zero_below=_HARDLY_WATCHED)
    for column, words in numeric:
        for per, per_words in numeric:
            is_time = bool(words & _WATCH_WORDS and words & {"time", *_LENGTH_WORDS, *_UNIT_WORDS})
            is_whole = bool(per_words & _LENGTH_WORDS and not per_words & _WATCH_WORDS)
            if is_time and is_whole and words & _UNIT_WORDS == per_words & _UNIT_WORDS:
                return Reward(column=column.name, per=per.name, zero_below=_HARDLY_WATCHED)
    return None


def holds_only(column: ColumnProfile, values: Sequence[str]) -> bool:
    """Whether no other text form than these occurs."""
    known = hash64(pa.array(values, pa.large_string()))
    return not column.is_capped and len(column.hashes) > 0 and bool(np.isin(column.hashes, known).all())


def has_own_name(column: ColumnProfile) -> bool:
    """Whether the column's name is one of its values: then it was probably no name."""
    name = hash64(pa.array([column.name], pa.large_string()))
    return column.kind in ("text", "whole") and bool(np.isin(name, column.hashes).all())


def share_within(column: ColumnProfile, other: ColumnProfile) -> float:
    """Share of the column's distinct values that the other one has too."""
    return float(np.isin(column.hashes, other.hashes).mean()) if len(column.hashes) else 0.0


# ---------------------------------------------------------------- what gives the answer away


def suggest_of_query(column: ColumnProfile, item: ColumnProfile) -> Verdict:
    """As ``suggest``, but lists of items are only offered: they may hold the events that are to be predicted."""
    verdict = suggest(column)
    if not isinstance(verdict.feature, Categories) or share_within(column, item) < 0.5:
        return verdict
    warning = "holds items: it leaks if items to be predicted are in it, which a History never does"
    return dataclasses.replace(_with_warning(verdict, warning), is_active=False)


def suggest_of_item(column: ColumnProfile) -> Verdict:
    """As ``suggest``, but counts of events are only offered: they may include the events that are to be predicted."""
    verdict = suggest(column)
    if not isinstance(verdict.feature, Number) or not (_POPULARITY_WORDS | _OUTCOME_WORDS) & set(words_of(column.name)):
        return verdict
    warning = "looks like a count or rate of events: it leaks if events to be predicted are in it"
    return dataclasses.replace(_with_warning(verdict, warning), is_active=False)


def suggest_of_event(
    column: ColumnProfile, sample: pa.Table, *, item: str, query: str | None, label: str | None
) -> tuple[Side, Verdict]:
    """What a column of the interactions describes (item, query, or context: one event), and its feature.

    What follows from the item or the query is an attribute of theirs. Context is only offered, and left out where it
    surely leaks. ``sample`` are some rows of the interactions; ``item``, ``query`` and ``label`` are columns in it.
    """
    verdict = suggest(column)
    if verdict.feature is None and not verdict.is_text:
        return "context", verdict
    values = sample[column.name] if column.name in sample.column_names else pa.chunked_array([pa.nulls(len(sample))])
    if _given_by(sample[item], values) > _ALMOST_ALL:
        return "item", suggest_of_item(column)
    leak = _leak(column, values, sample[item], None if label is None else (label, sample[label]))
    if leak is not None:
        return "context", _left_out(leak)
    if query is not None and _given_by(sample[query], values) > _ALMOST_ALL:
        return "query", verdict
    if isinstance(verdict.feature, Time):
        return "context", _left_out("a moment besides the time of the event")
    if isinstance(verdict.feature, Categorical) and column.n_distinct > _FEW_IDS and _has_id_name(column):
        return "context", _left_out(f"an id of {column.n_distinct:,} values: new events bring new ones")
    return "context", dataclasses.replace(verdict, is_active=False)


def _leak(
    column: ColumnProfile,
    values: pa.ChunkedArray,
    item: pa.ChunkedArray,
    label: tuple[str, pa.ChunkedArray] | None,
) -> str | None:
    """Why a column can't be context, None where nothing speaks against it."""
    if label is not None and _tells(label[1], values) > _ALMOST_ALL:
        return f"all but tells {label[0]}: known only after the event"
    if is_outcome(column):
        return "sounds like an outcome, known only after the event"
    if _explained_by(item, values) > 0.8:
        return "mostly follows from the item, so as context it gives the answer away"
    return None


def _has_id_name(column: ColumnProfile) -> bool:
    return bool(_ID_WORDS & set(words_of(column.name)))


def _codes(array: pa.ChunkedArray) -> NDArray[np.int64]:
    """A number for each distinct value, missing ones included."""
    coded = one_array(array).dictionary_encode(null_encoding="encode")
    return np.asarray(coded.indices.to_numpy(zero_copy_only=False), np.int64)


def _given_by(key: pa.ChunkedArray, value: pa.ChunkedArray) -> float:
    """How far a value follows from a key: 0 where the key's usual value is no better a guess than the usual value of
    all, 1 where it is always right. Over keys of at least three rows; 0 where there are too few."""
    if pa.types.is_nested(value.type):
        return 0.0
    key_code, value_code = _codes(key), _codes(value)
    kept = np.bincount(key_code)[key_code] >= 3
    key_code, value_code = key_code[kept], value_code[kept]
    if len(key_code) < 100:
        return 0.0
    pairs, count = np.unique(key_code * (value_code.max() + 1) + value_code, return_counts=True)
    most = np.zeros(key_code.max() + 1, np.int64)
    np.maximum.at(most, pairs // (value_code.max() + 1), count)
    usual = np.bincount(value_code).max() / len(value_code)
    return float((most.sum() / len(key_code) - usual) / max(1 - usual, 1e-9))


def _explained_by(key: pa.ChunkedArray, value: pa.ChunkedArray) -> float:
    """Share of the variance of a number's rank that its mean for each key explains (eta squared). Over keys of at least
    three rows; 0 where it is no number or there are too few."""
    if not _is_number(value.type):
        return 0.0
    key_code, number = _codes(key), numbers(one_array(value), "value")
    kept = (np.bincount(key_code)[key_code] >= 3) & ~np.isnan(number)
    key_code, rank = key_code[kept], _ranks(number[kept])
    if len(rank) < 100 or rank.min() == rank.max():
        return 0.0
    mean = np.bincount(key_code, rank) / np.maximum(np.bincount(key_code), 1)
    return float(mean[key_code].var() / rank.var())


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind))


def _ranks(number: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rank of each number from 1; equal ones share their mean rank."""
    _, place, count = np.unique(number, return_inverse=True, return_counts=True)
    rank: NDArray[np.float64] = np.cumsum(count) - (count - 1) / 2
    return rank[place]


def _tells(label: pa.ChunkedArray, value: pa.ChunkedArray) -> float:
    """How well a number tells yes from no: |2 AUC - 1|, 0 where it is no number or there are too few rows."""
    if not _is_number(value.type):
        return 0.0
    number, answer = numbers(one_array(value), "value"), numbers(one_array(label), "label")
    kept = ~np.isnan(number) & ~np.isnan(answer)
    number, yes = number[kept], answer[kept] > 0
    n_yes, n_no = int(yes.sum()), len(yes) - int(yes.sum())
    if min(n_yes, n_no) < 20:
        return 0.0
    auc = (_ranks(number)[yes].sum() - n_yes * (n_yes + 1) / 2) / (n_yes * n_no)
    return float(abs(2 * auc - 1))


def is_name(column: ColumnProfile) -> bool:
    """Whether ids are names made of words, such as ``libgtk-3-dev``, and not numbers."""
    return column.kind == "text" and column.share_matching(r"\pL{3}") > 0.8 and column.share_matching(r"[-_. ]") > 0.3
