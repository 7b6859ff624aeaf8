"""Encoders against small arithmetic, naive loops and hand-counted words."""

from __future__ import annotations

import datetime
import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from twotower.data.columns import RaggedArray
from twotower.data.encoders import Encoders, EncodersFit
from twotower.data.statistics import Moments, Sample, quantile_edges
from twotower.data.text import char_grams, element_tokens, name_stem, name_tokens, word_tokens
from twotower.data.vocabulary import hash64
from twotower.errors import ArtifactError, ConfigError, DataError
from twotower.records import Ragged
from twotower.schema import (
    Categorical,
    Categories,
    Feature,
    History,
    Id,
    Interactions,
    Number,
    QueryFeature,
    Schema,
    Seed,
    Text,
    Time,
    Vector,
)

DAY_US = 86_400 * 10**6
IDS = {"item": Id(column="item_id")}


def schema_of(**query: QueryFeature) -> Schema:
    """A schema with these query features."""
    return Schema(interactions=Interactions(item="item_id", query="user_id"), query=query, item={**IDS})


def fitted(feature: QueryFeature, table: Mapping[str, object], training: list[bool] | None = None) -> Encoders:
    """Encoders of the one query feature ``x``."""
    fit = EncodersFit(schema_of(x=feature))
    fit.update("query", pa.table(dict(table)), None if training is None else np.array(training))
    return fit.finish(None)


def encode(encoders: Encoders, table: Mapping[str, object]) -> np.ndarray:
    column = encoders.transform("query", pa.table(dict(table)))["x"]
    assert isinstance(column, np.ndarray)
    return column


def lists(column: object) -> list[list[tuple[int, float]]]:
    """(row, weight) pairs of each list, by row."""
    assert isinstance(column, RaggedArray)
    assert column.weight is not None
    pairs = list(zip(column.value.tolist(), column.weight.tolist(), strict=True))
    return [sorted(pairs[a:b]) for a, b in zip(column.offset[:-1], column.offset[1:], strict=True)]


# ---------------------------------------------------------------- one value a row


def test_rows_are_by_falling_training_count() -> None:
    feature = Categorical(column="c", oov_buckets=2)
    encoders = fitted(feature, {"c": ["b", "a", "b", None, "late"]}, [True, True, True, True, False])
    bucket = int(hash64(pa.array(["late"], pa.large_string()))[0] % np.uint64(2))
    assert encode(encoders, {"c": ["a", "b", None, "late"]}).tolist() == [1, 0, -1, 2 + bucket]
    assert encoders.table_sizes["query.x"] == 4
    assert encoders.missing["query.x"] == 1


def test_numbers_and_truth_values_are_categories_too() -> None:
    encoders = fitted(Categorical(column="c"), {"c": [3.0, 3.0, None, 5.0]})
    assert encode(encoders, {"c": [5, 3]}).tolist() == [1, 0]
    assert encode(fitted(Categorical(column="c"), {"c": [True, True, False]}), {"c": [False, None]}).tolist() == [1, -1]


def test_hashed_tables_count_their_collisions() -> None:
    values = [f"v{i}" for i in range(20)]
    encoders = fitted(Categorical(column="c", hash_buckets=8), {"c": values})
    rows = [int(h % np.uint64(8)) for h in hash64(pa.array(values, pa.large_string()))]
    assert encode(encoders, {"c": values}).tolist() == rows
    assert encoders.collisions() == {"query.x": {"values": 20, "buckets_hit": len(set(rows)), "buckets": 8}}
    assert encoders.table_sizes["query.x"] == 8


def test_every_item_of_the_catalogue_has_a_row_and_min_count_counts_training_events() -> None:
    events = pa.table({"item_id": ["a", "b", "b", "c", "c", "c"], "user_id": [1, 1, 2, 2, 3, 3]})
    catalogue = pa.table({"item_id": ["never", "a", "b", "c"]})
    training = np.array([True, True, True, True, False, False])
    for min_count, expected in ((1, ["b", "a", "c", "never"]), (2, ["b"])):
        item = Id(column="item_id", min_count=min_count)
        fit = EncodersFit(
            Schema(
                interactions=Interactions(item="item_id", query="user_id"),
                query={"u": Id(column="user_id")},
                item={"item": item},
            )
        )
        fit.update("context", events, training)
        fit.update("item", catalogue, np.array([False, True, True, True]))
        fit.update("query", pa.table({"user_id": [1, 2, 3]}), np.array([True, True, False]))
        encoders = fit.finish(None)
        known = encoders.transform("item", pa.table({"item_id": expected}))["item"]
        assert isinstance(known, np.ndarray)
        assert known.tolist() == list(range(len(expected)))
        assert encoders.table_sizes == {"item": len(expected) + 1, "query.u": 3}


def test_min_count_of_ids_needs_the_events() -> None:
    schema = Schema(
        interactions=Interactions(item="i"),
        context={"c": Text(columns=("q",))},
        item={"i": Id(column="i", min_count=2)},
    )
    fit = EncodersFit(schema)
    fit.update("item", pa.table({"i": ["a"]}))
    with pytest.raises(ValueError, match="pass the interactions"):
        fit.finish(None)


def test_seeds_are_rows_of_the_items() -> None:
    schema = Schema(
        interactions=Interactions(item="item_id"),
        context={"seed": Seed(column="page")},
        item={"item": Id(column="item_id")},
    )
    fit = EncodersFit(schema)
    fit.update("item", pa.table({"item_id": [30, 10, 20]}))
    fit.update("context", pa.table({"page": ["10", None, "elsewhere"]}))
    encoders = fit.finish(None)
    seed = encoders.transform("context", pa.table({"page": ["30", None, "elsewhere"]}))["seed"]
    assert isinstance(seed, np.ndarray)
    assert seed.tolist() == [2, -1, 3]
    assert encoders.missing["context.seed"] == 1


# ---------------------------------------------------------------- several values a row


def test_categories_are_shares_of_a_list() -> None:
    table = {"c": [["a", "b"], [], None, ["a", "a", None, "new"]], "w": [[1.0, 3.0], [], None, [1.0, 1.0, 5.0, 2.0]]}
    encoders = fitted(Categories(column="c", weights="w"), {"c": [["a", "b"], ["a"]], "w": [[1.0, 1.0], [2.0]]})
    assert lists(encoders.transform("query", pa.table(table))["x"]) == [
        [(0, 0.25), (1, 0.75)],
        [],
        [],
        [(0, 0.25), (0, 0.25), (2, 0.5)],
    ]
    plain = fitted(Categories(column="c"), {"c": [["a", "b"], ["a"]]})
    found = lists(plain.transform("query", pa.table({"c": table["c"]}))["x"])
    assert found == [[(0, 0.5), (1, 0.5)], [], [], [(0, pytest.approx(1 / 3))] * 2 + [(2, pytest.approx(1 / 3))]]


def test_lists_whose_weights_are_all_zero_are_empty() -> None:
    encoders = fitted(Categories(column="c", weights="w"), {"c": [["a"]], "w": [[1]]})
    assert lists(encoders.transform("query", pa.table({"c": [["a"]], "w": [[0]]}))["x"]) == [[]]


def test_text_is_split_at_the_separator() -> None:
    encoders = fitted(Categories(column="c", separator="|"), {"c": ["a| b|", "b", "", None]})
    found = lists(encoders.transform("query", pa.table({"c": ["a|b", "|", None, " b "]}))["x"])
    assert found == [[(0, 0.5), (1, 0.5)], [], [], [(0, 1.0)]]
    assert encoders.missing["query.x"] == 2


def test_slices_of_lists_are_read_from_their_start() -> None:
    table = pa.table({"c": [["z", "z"], ["a"], ["b", "a"]]})
    encoders = fitted(Categories(column="c"), {"c": [["b"], ["a", "a"]]})
    assert lists(encoders.transform("query", table.slice(1))["x"]) == [[(0, 1.0)], [(0, 0.5), (1, 0.5)]]


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([[1.0], [1.0]], "row 1 holds 1 weights for the 2 values of column 'c'"),
        ([[1.0], [1.0, -1.0]], "row 1 holds the weight -1.0, expected 0 or more"),
        ([[1.0], [1.0, None]], "row 1 holds the weight nan"),
        ([1.0, 2.0], "column 'w': found double, expected a list of numbers"),
    ],
)
def test_wrong_weights_are_named(weights: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        fitted(Categories(column="c", weights="w"), {"c": [["a"], ["a", "b"]], "w": weights})


# ---------------------------------------------------------------- numbers


def test_standard_numbers() -> None:
    """Of 1, 3 and 5: mean 3, variance 8/3."""
    table = {"n": [1.0, 3.0, None, 5.0, float("nan"), float("inf"), 100.0]}
    encoders = fitted(Number(column="n"), table, [True] * 6 + [False])
    deviation = math.sqrt(8 / 3)
    assert encode(encoders, {"n": [3.0, 5.0, None, -float("inf")]}) == pytest.approx([0.0, 2 / deviation, 0.0, 0.0])
    assert encode(encoders, {"n": [True, None]}) == pytest.approx([-2 / deviation, 0.0])
    assert encoders.missing["query.x"] == 3


def test_log_numbers_keep_their_sign() -> None:
    """log(1 + |x|) of 0, e - 1 and 1 - e are 0, 1 and -1: mean 0, variance 2/3."""
    e = math.e
    encoders = fitted(Number(column="n", transform="log"), {"n": [0.0, e - 1, 1 - e]})
    deviation = math.sqrt(2 / 3)
    assert encode(encoders, {"n": [e - 1, 1 - e, e * e - 1]}) == pytest.approx(
        [1 / deviation, -1 / deviation, 2 / deviation]
    )


def test_a_constant_number_is_zero() -> None:
    assert encode(fitted(Number(column="n"), {"n": [0.1] * 7}), {"n": [0.1, 1.1]}) == pytest.approx([0.0, 1.0])
    assert encode(fitted(Number(column="n"), {"n": pa.nulls(2)}), {"n": [2.0, None]}) == pytest.approx([2.0, 0.0])


def test_quantile_buckets_hold_equal_counts() -> None:
    values = np.random.default_rng(0).permutation(1000).astype(float)
    encoders = fitted(Number(column="n", transform="quantile", buckets=4), {"n": values})
    row = encode(encoders, {"n": values})
    assert row.dtype == np.int32
    assert row.tolist() == [int(value // 250) for value in values]
    assert encode(encoders, {"n": [None, -5.0, 5000.0]}).tolist() == [-1, 0, 3]
    assert encoders.table_sizes["query.x"] == 4


def test_quantiles_of_few_values_make_few_buckets() -> None:
    encoders = fitted(Number(column="n", transform="quantile", buckets=8), {"n": [0.0] * 80 + [7.0] * 20})
    assert encode(encoders, {"n": [0.0, 7.0]}).tolist() == [0, 1]
    assert encoders.table_sizes["query.x"] == 2
    assert quantile_edges(np.zeros(0), 4).tolist() == []


def test_moments_do_not_depend_on_the_chunks() -> None:
    values = np.random.default_rng(1).normal(1e6, 2.0, 1000)
    moments = Moments()
    for chunk in np.array_split(values, [1, 1, 7, 500]):
        moments.update(chunk)
    assert moments.n == 1000
    assert moments.mean == pytest.approx(math.fsum(values) / 1000)
    variance = math.fsum((value - math.fsum(values) / 1000) ** 2 for value in values) / 1000
    assert moments.deviation == pytest.approx(math.sqrt(variance))


def test_a_sample_is_fair_and_does_not_depend_on_the_chunks() -> None:
    values = np.arange(20_000.0)
    whole, chunked = Sample(1000), Sample(1000)
    whole.update(values)
    for chunk in np.array_split(values, 33):
        chunked.update(chunk)
    assert whole.values().tolist() == chunked.values().tolist()
    assert len(set(whole.values().tolist())) == 1000
    # mean of 1000 drawn from 0..19999: deviation 20000 / sqrt(12 * 1000) = 183; five of them
    assert abs(whole.values().mean() - 9999.5) < 5 * 183


# ---------------------------------------------------------------- time


def moments_of(encoders: Encoders, values: object) -> dict[str, list[float]]:
    found = encoders.transform("query", pa.table({"t": values}))
    return {name: column.tolist() for name, column in found.items() if isinstance(column, np.ndarray)}


def test_time_parts() -> None:
    """2024-05-01 was a Wednesday, 1969-12-31 too."""
    utc = datetime.UTC
    times = [
        datetime.datetime(2024, 5, 1, 13, 59, tzinfo=utc),
        datetime.datetime(2024, 4, 28, 0, 0, tzinfo=utc),
        None,
        datetime.datetime(1969, 12, 31, 23, tzinfo=utc),
    ]
    schema = schema_of(x=Time(column="t"))
    fit = EncodersFit(schema)
    fit.update("query", pa.table({"t": times[:2]}))
    last = datetime.datetime(2024, 5, 1, 13, 59, tzinfo=utc)
    last_us = int(last.timestamp()) * 10**6
    encoders = fit.finish(last_us)
    days = (last - times[1]).total_seconds() / 86_400  # type: ignore[operator]
    found = moments_of(encoders, pa.array(times, pa.timestamp("us", "UTC")))
    assert found["x.hour"] == [13, 0, -1, 23]
    assert found["x.weekday"] == [2, 6, -1, 2]
    old = (last - times[3]).total_seconds() / 86_400  # type: ignore[operator]
    mean = math.log1p(days) / 2  # of the ages 0 and log(1 + days), what a missing moment gets
    assert found["x.age"] == pytest.approx([0.0, math.log1p(days), mean, math.log1p(old)])
    assert encoders.table_sizes == {"item": 1, "query.x.hour": 24, "query.x.weekday": 7}
    later = moments_of(encoders, pa.array([datetime.datetime(2030, 1, 1)], pa.timestamp("us")))
    assert later["x.age"] == [0.0]


@pytest.mark.parametrize(
    ("unit", "values"),
    [
        ("s", pa.array([1714571940, None])),
        ("s", pa.array([1714571940.0, float("nan")])),
        ("ms", pa.array([1714571940_000, None])),
        ("us", pa.array([1714571940_000_000, None])),
        ("ns", pa.array([1714571940_000_000_000, None])),
        ("s", pa.array(["2024-05-01T13:59:00Z", ""])),
        ("s", pa.array(["2024-05-01 15:59:00+02:00", None])),
        ("s", pa.array([" 2024-05-01 13:59:00.000 ", None])),
        ("s", pa.array([datetime.datetime(2024, 5, 1, 13, 59), None], pa.timestamp("ns"))),
        ("s", pa.array([datetime.datetime(2024, 5, 1, 13, 59), None], pa.timestamp("s", "Europe/Berlin"))),
    ],
)
def test_moments_in_every_form(unit: str, values: pa.Array) -> None:
    feature = Time(column="t", parts=("hour", "weekday"), unit=unit)  # type: ignore[arg-type]
    found = moments_of(fitted(feature, {"t": values}), values)
    assert found == {"x.hour": [13, -1], "x.weekday": [2, -1]}


def test_dates_and_texts_of_both_kinds() -> None:
    feature = Time(column="t", parts=("weekday",))
    dates = pa.array([datetime.date(2024, 5, 1), None])
    assert moments_of(fitted(feature, {"t": dates}), dates) == {"x.weekday": [2, -1]}
    mixed = ["2024-05-01", "2024-05-02T00:30:00+01:00"]
    assert moments_of(fitted(feature, {"t": mixed}), mixed) == {"x.weekday": [2, 2]}


def test_ages_count_from_the_last_moment_where_no_event_has_one() -> None:
    values = pa.array([10 * DAY_US, 7 * DAY_US])
    found = moments_of(fitted(Time(column="t", parts=("age",), unit="us"), {"t": values}), values)
    assert found["x.age"] == pytest.approx([0.0, math.log(4)])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (pa.array([1, 1714571940_000]), "row 1 holds 1714571940000, which in unit 's' is beyond the year 9999"),
        (pa.array(["yesterday"]), "yesterday.*expected ISO text"),
        (pa.array([[1]]), "found list<item: int64>, expected timestamps"),
        (pa.array([True]), "found bool, expected timestamps"),
    ],
)
def test_what_is_no_moment_is_named(values: pa.Array, message: str) -> None:
    with pytest.raises(DataError, match=f"query.x: column 't'.*{message}"):
        fitted(Time(column="t"), {"t": values})


# ---------------------------------------------------------------- vectors


def test_vectors() -> None:
    table = {"v": [[1.0, 2.0], None, [3.0, float("nan")], [5.0, 6.0]]}
    encoders = fitted(Vector(column="v", dim=2), table)
    assert encode(encoders, table).tolist() == [[1.0, 2.0], [0.0, 0.0], [0.0, 0.0], [5.0, 6.0]]
    assert encode(encoders, table).dtype == np.float32
    fixed = pa.array([[1, 2], None], pa.list_(pa.int8(), 2))
    assert encode(encoders, {"v": fixed}).tolist() == [[1.0, 2.0], [0.0, 0.0]]
    assert encode(encoders, {"v": pa.nulls(1)}).tolist() == [[0.0, 0.0]]
    assert encoders.missing["query.x"] == 2


def test_vectors_of_another_length_are_named() -> None:
    with pytest.raises(DataError, match=r"query.x: column 'v': row 1 holds 3 numbers, expected dim = 2 in every row"):
        fitted(Vector(column="v", dim=2), {"v": [[1.0, 2.0], [1.0, 2.0, 3.0]]})


# ---------------------------------------------------------------- tokens


def test_words() -> None:
    assert word_tokens("Émile's 3rd GAME_night!") == ["émile", "s", "3rd", "game_night"]
    assert element_tokens("game::Strategy") == ["game::strategy", "game", "strategy"]
    assert element_tokens(" Game ") == ["game"]
    assert element_tokens("") == []


@pytest.mark.parametrize(
    ("name", "tokens"),
    [
        ("libgtk-3-dev", ["libgtk", "3", "dev", "^libgtk", "dev$", "=gtk"]),
        ("Python3-numpy", ["python3", "numpy", "python", "3", "^python3", "numpy$", "=python3-numpy"]),
        ("vim", ["vim", "^vim", "vim$", "=vim"]),
        ("foo_bar", ["foo_bar", "foo", "bar", "^foo", "bar$", "=foo_bar"]),
        ("--", []),
    ],
)
def test_names(name: str, tokens: list[str]) -> None:
    assert name_tokens(name) == tokens


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("libgtk2.0-0", "gtk"),
        ("gtk-doc", "gtk"),
        ("libssl1.1", "ssl"),
        ("libfoo-bar-perl", "foo-bar"),
        ("0ad-data-common", "0ad"),
        ("g++", "g++"),
        ("lib", "lib"),
        ("3", "3"),
        ("9" * 100_000 + "x", "9" * 100_000 + "x"),
    ],
)
def test_stems(name: str, stem: str) -> None:
    assert name_stem(name) == stem


def test_character_grams() -> None:
    assert char_grams("cat", 3, 4) == ["<ca", "cat", "at>", "<cat", "cat>"]
    assert char_grams("a", 4, 5) == []


# ---------------------------------------------------------------- text


def row_of(token: str, buckets: int, seed: int = 0) -> int:
    return int(hash64(pa.array([token], pa.large_string()), seed)[0] % np.uint64(buckets))


def bag(tokens: Mapping[str, float], buckets: int) -> list[tuple[int, float]]:
    """Rows and weights scaled to unit length."""
    length = math.sqrt(sum(weight * weight for weight in tokens.values()))
    return sorted((row_of(token, buckets), pytest.approx(weight / length)) for token, weight in tokens.items())


def test_tfidf_is_log_count_times_smooth_idf_at_unit_length() -> None:
    texts = ["red cat", "Red dog dog", "", None]
    encoders = fitted(Text(columns=("t",), buckets=2**18), {"t": texts})
    common, rare = math.log(3 / 3) + 1, math.log(3 / 2) + 1  # two documents: "red" in both, the others in one
    found = lists(encoders.transform("query", pa.table({"t": [*texts, "red bird"]}))["x"])
    unseen = math.log(3 / 1) + 1
    assert found == [
        bag({"red": common, "cat": rare}, 2**18),
        bag({"red": common, "dog": (1 + math.log(2)) * rare}, 2**18),
        [],
        [],
        bag({"red": common, "bird": unseen}, 2**18),
    ]
    assert encoders.missing["query.x"] == 2
    assert encoders.collisions() == {"query.x": {"values": 3, "buckets_hit": 3, "buckets": 2**18}}


def test_the_mean_weighs_every_word_the_same() -> None:
    encoders = fitted(Text(columns=("t",), weighting="mean", buckets=1000), {"t": ["red"]})
    found = lists(encoders.transform("query", pa.table({"t": ["dog red dog dog"]}))["x"])
    assert found == [sorted([(row_of("dog", 1000), 0.75), (row_of("red", 1000), 0.25)])]


def test_columns_lists_and_names_make_one_bag() -> None:
    feature = Text(columns=("t", "tags"), name_columns=("name",), weighting="mean", buckets=2**20)
    table = {"t": ["strategy game"], "tags": [["game::strategy", "Game"]], "name": ["libgame-dev"]}
    tokens = ["strategy", "game", "game::strategy", "game", "strategy", "game"]
    tokens += ["libgame", "dev", "^libgame", "dev$", "=game"]
    found = lists(fitted(feature, table).transform("query", pa.table(table))["x"])
    weight = {row_of(token, 2**20): tokens.count(token) / len(tokens) for token in tokens}
    assert found == [sorted((row, pytest.approx(share)) for row, share in weight.items())]


def test_only_the_first_words_of_each_text_are_read() -> None:
    feature = Text(columns=("t", "tags"), name_columns=("name",), length=2, weighting="mean", buckets=2**20)
    table = {"t": ["red big old cat"], "tags": [["a", "b", "c"]], "name": ["ab-cd"]}
    found = lists(fitted(feature, table).transform("query", pa.table(table))["x"])
    names = Text(columns=(), name_columns=("name",), weighting="mean", buckets=2**20)
    of_name = lists(fitted(names, table).transform("query", pa.table(table))["x"])
    expected = {row_of(token, 2**20) for token in ("red", "big", "a", "b", "c")} | {row for row, _ in of_name[0]}
    assert {row for row, _ in found[0]} == expected


def test_only_the_first_subwords_of_each_text_are_read() -> None:
    texts = ["low lower lowest", "new newer newest", "wide wider widest"] * 5
    encoders = {
        length: fitted(Text(columns=("t",), subwords=300, length=length, weighting="mean"), {"t": texts})
        for length in (None, 3)
    }
    read = pa.table({"t": ["x", "low newest wide cab"]})
    whole, cut = (lists(encoders[length].transform("query", read)["x"]) for length in (None, 3))
    assert cut[0] == whole[0]  # no longer than that
    assert sum(round(weight * 3) for _, weight in cut[1]) == 3
    assert len(whole[1]) > 3
    assert {row for row, _ in cut[1]} < {row for row, _ in whole[1]}


def test_character_grams_are_no_words() -> None:
    feature = Text(columns=("t",), chars=(3, 3), weighting="mean", buckets=2**20)
    found = lists(fitted(feature, {"t": ["cat"]}).transform("query", pa.table({"t": ["cat"]}))["x"])
    rows = [row_of("cat", 2**20), *(row_of(gram, 2**20, seed=1) for gram in ("<ca", "cat", "at>"))]
    assert found == [sorted((row, 0.25) for row in rows)]


def test_a_document_counts_once_over_all_sides_that_share_the_table() -> None:
    """Documents: "red cat" (item, query twice, context of a test event), "dog" (item), "bird" (training context)."""

    def text(column: str) -> Text:
        return Text(columns=(column,), table="words", buckets=2**18)

    fit = EncodersFit(
        Schema(
            interactions=Interactions(item="item_id", query="user_id"),
            query={"q": text("a")},
            context={"c": text("b")},
            item={"t": text("d"), **IDS},
        )
    )
    fit.update("query", pa.table({"a": ["red cat", "cat red"]}))
    fit.update("context", pa.table({"b": ["bird", "fish"]}), np.array([True, False]))
    fit.update("item", pa.table({"d": ["Red cat", "dog"], "item_id": [1, 2]}), np.array([False, False]))
    encoders = fit.finish(None)
    known, unseen = math.log(4 / 2) + 1, math.log(4 / 1) + 1
    found = lists(encoders.transform("context", pa.table({"b": ["red fish", "dog bird"]}))["c"])
    assert found == [bag({"red": known, "fish": unseen}, 2**18), bag({"dog": known, "bird": known}, 2**18)]


def test_repeated_texts_and_slices() -> None:
    table = pa.table({"t": ["z", "a b", "a b", "c"]})
    encoders = fitted(Text(columns=("t",), weighting="mean", buckets=2**18), {"t": ["a b"]})
    found = lists(encoders.transform("query", table.slice(1))["x"])
    both = sorted([(row_of("a", 2**18), 0.5), (row_of("b", 2**18), 0.5)])
    assert found == [both, both, [(row_of("c", 2**18), 1.0)]]


def test_subwords_are_trained_and_saved(tmp_path: Path) -> None:
    texts = ["low lower lowest", "new newer newest", "Low NEW", None] * 5
    schema = schema_of(x=Text(columns=("t",), name_columns=("name",), subwords=300, weighting="tfidf"))
    fit = EncodersFit(schema)
    fit.update("query", pa.table({"t": texts, "name": ["liblow-dev", None, "x", ""] * 5}))
    encoders = fit.finish(None)
    assert encoders.table_sizes["query.x"] == 300
    assert encoders.missing["query.x"] == 5
    table = pa.table({"t": ["low newest 日本", "LOW NEWEST 日本", None], "name": ["", None, None]})
    found = lists(encoders.transform("query", table)["x"])
    assert found[0] == found[1]
    assert found[2] == []
    assert math.fsum(weight * weight for _, weight in found[0]) == pytest.approx(1.0, abs=1e-6)
    assert all(0 <= row < 300 for row, _ in found[0])
    encoders.save(tmp_path)
    assert lists(Encoders.load(tmp_path, schema).transform("query", table)["x"]) == found
    assert encoders.collisions() == {}


def test_subwords_need_their_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ConfigError, match=r"pip install twotower\[text\]"):
        EncodersFit(schema_of(x=Text(columns=("t",), subwords=300)))


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("feature", "values", "message"),
    [
        (Categorical(column="c"), [["a"]], "found list<item: string>, expected one value a row"),
        (Id(column="c"), [{"a": 1}], "found struct"),
        (Categories(column="c"), ["a,b"], "found string, expected a list column; set separator"),
        (Number(column="c"), ["5"], "found string, expected numbers"),
        (Vector(column="c", dim=1), [1.0], "found double, expected a list of numbers"),
        (Vector(column="c", dim=1), [["a"]], "found string, expected numbers"),
        (Text(columns=("c",)), [{"a": 1}], "found struct"),
    ],
)
def test_mistyped_columns_are_named(feature: QueryFeature, values: list[object], message: str) -> None:
    with pytest.raises(DataError, match=f"query.x: column 'c': {message}"):
        fitted(feature, {"c": values})


def test_missing_columns_are_named() -> None:
    with pytest.raises(DataError, match=r"query.x: column 'color' is missing; found colour; did you mean 'colour'\?"):
        fitted(Categorical(column="color"), {"colour": ["red"]})


def test_there_are_three_sides() -> None:
    with pytest.raises(ValueError, match="expected query, context or item"):
        EncodersFit(schema_of(x=Number(column="n"))).update("user", pa.table({}))


# ---------------------------------------------------------------- live rows and saving


EVERY_KIND: dict[str, Feature] = {
    "category": Categorical(column="category"),
    "hashed": Categorical(column="category", hash_buckets=50),
    "tags": Categories(column="tags", weights="tag_weights"),
    "size": Number(column="size", transform="log"),
    "price": Number(column="price", transform="quantile", buckets=2),
    "at": Time(column="at"),
    "text": Text(columns=("title",), name_columns=("name",), chars=(3, 4)),
    "vector": Vector(column="vector", dim=2),
    "page": Seed(column="page"),
    "history": History(k=2),
}
EVERY_COLUMN: dict[str, list[object]] = {
    "category": ["a", "b", "a", None],
    "tags": [["x"], ["y", "x"], [], None],
    "tag_weights": [[1.0], [3.0, 1.0], [], None],
    "size": [1.0, 20.0, 300.0, None],
    "price": [1, 2, 3, None],
    "at": ["2024-05-01", "2024-05-02", "2024-05-03", None],
    "title": ["Red cat", "blue cat", "dog", None],
    "name": ["liba-dev", "b", "c2", None],
    "vector": [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], None],
    "page": ["i1", "i2", "i3", None],
}


def every_kind() -> Encoders:
    fit = EncodersFit(
        Schema(
            interactions=Interactions(item="item_id", query="user_id"),
            context=EVERY_KIND,  # type: ignore[arg-type]
            item={**IDS},
        )
    )
    fit.update("context", pa.table(EVERY_COLUMN))
    fit.update("item", pa.table({"item_id": ["i1", "i2", "i3"]}))
    return fit.finish(20_000 * DAY_US)


def test_live_rows_are_encoded_as_chunks_are() -> None:
    encoders = every_kind()
    rows = [{name: values[i] for name, values in EVERY_COLUMN.items()} for i in range(4)]
    live = encoders.transform_rows("context", [*rows, {}])  # type: ignore[list-item]
    stored = encoders.transform("context", pa.table(EVERY_COLUMN))
    assert set(live) == {*stored, "history"}
    for name, column in stored.items():
        found = live[name]
        if isinstance(column, RaggedArray):
            assert isinstance(found, Ragged)
            assert found.value.tolist() == column.value.tolist()
            assert found.offset.tolist() == [*column.offset, column.offset[-1]]
            assert found.weight is not None
            assert column.weight is not None
            assert found.weight.tolist() == column.weight.tolist()
        else:
            assert isinstance(found, torch.Tensor)
            assert found[:4].tolist() == column.tolist()
            assert found[4].tolist() == column[3].tolist()  # absent is missing
    assert encoders.columns("context") == (*EVERY_COLUMN, "history")


def test_a_feature_of_which_no_row_says_anything() -> None:
    """It is encoded by itself, and is what it is beside rows that say something of it."""
    encoders = every_kind()
    full = {name: values[1] for name, values in EVERY_COLUMN.items()} | {"history": ["i1"]}
    beside, alone = encoders.encode_rows("context", [full, {}, {}]), encoders.encode_rows("context", [{}, {}])
    assert list(beside) == list(alone)
    for name, column in beside.items():
        found = alone[name]
        if isinstance(column, RaggedArray):
            assert isinstance(found, RaggedArray)
            assert found.offset.tolist() == [0, 0, 0]
            assert column.offset[1:].tolist() == [column.offset[1]] * 3
            assert (found.value.dtype, found.weight is None) == (column.value.dtype, column.weight is None)
        else:
            assert isinstance(found, np.ndarray)
            assert found.tolist() == column[1:].tolist()
            assert found.dtype == column.dtype
    assert {len(column) for column in encoders.encode_rows("context", []).values()} == {0}


def test_a_chunk_may_be_empty() -> None:
    encoders = every_kind()
    for table in (pa.table(EVERY_COLUMN).slice(0, 0), pa.table({name: pa.nulls(0) for name in EVERY_COLUMN})):
        assert {len(column) for column in encoders.transform("context", table).values()} == {0}


def test_a_live_history_keeps_its_last_k() -> None:
    live = every_kind().transform_rows("context", [{"history": ["i3", "i1", "i2"]}, {}, {"history": ["i3"]}])["history"]
    assert isinstance(live, Ragged)
    assert live.value.tolist() == [0, 1, 2]
    assert live.offset.tolist() == [0, 2, 2, 3]
    assert live.weight is not None
    assert live.weight.tolist() == [0.5, 0.5, 1.0]


def test_live_ids_may_be_numbers_and_text() -> None:
    encoders = fitted(Id(column="user_id"), {"user_id": [7, 8]})
    found = encoders.transform_rows("query", [{"user_id": 8}, {"user_id": "7"}, {"user_id": True}, {"user_id": None}])
    assert isinstance(found["x"], torch.Tensor)
    assert found["x"].tolist() == [1, 0, 2, -1]


def test_live_ids_of_the_side_are_no_mistake() -> None:
    encoders = fitted(Number(column="n"), {"n": [1.0]})
    assert set(encoders.transform_rows("query", [{"user_id": 3, "n": 1.0}])) == {"x"}
    assert encoders.transform_rows("query", [])["x"].tolist() == []  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"categori": "a"}, "context 1: unknown column 'categori', expected some of .*; did you mean 'category'?"),
        ({"size": "large"}, "context.size: column 'size': found string, expected numbers"),
        ({"size": object()}, "context.size: column 'size': "),
        ({"vector": [1.0]}, "context.vector: column 'vector': row 1 holds 1 numbers"),
        ({"vector": torch.zeros(2, 2)}, "context.vector: column 'vector': "),
        ({"category": ["a"]}, "context.category: column 'category': found list"),
        ({"history": "i1"}, "context.history: found string, expected a list of item ids"),
        ({"tags": ["x"]}, "row 1 holds 0 weights for the 1 values"),
    ],
)
def test_mistakes_in_live_rows_are_named(row: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message.replace("?", r"\?")):
        every_kind().transform_rows("context", [{}, row])


def test_everything_comes_back(tmp_path: Path) -> None:
    encoders = every_kind()
    encoders.save(tmp_path / "encoders")
    loaded = Encoders.load(tmp_path / "encoders", encoders.schema)
    assert loaded.table_sizes == encoders.table_sizes
    assert loaded.collisions() == encoders.collisions()
    assert loaded.missing == encoders.missing
    before, after = (e.transform("context", pa.table(EVERY_COLUMN)) for e in (encoders, loaded))
    for name, column in before.items():
        again = after[name]
        if isinstance(column, RaggedArray):
            assert isinstance(again, RaggedArray)
            assert lists(again) == lists(column)
        else:
            assert isinstance(again, np.ndarray)
            np.testing.assert_array_equal(again, column)
    assert {path.suffix for path in (tmp_path / "encoders").iterdir()} == {".json", ".arrow", ".npy"}


def test_encoders_of_other_features_are_refused(tmp_path: Path) -> None:
    encoders = fitted(Number(column="n"), {"n": [1.0]})
    encoders.save(tmp_path)
    with pytest.raises(ArtifactError, match=r"other features than the schema's \(different: query.x\)"):
        Encoders.load(tmp_path, schema_of(x=Number(column="n", transform="log")))


def test_damaged_encoders_are_named(tmp_path: Path) -> None:
    encoders = every_kind()
    with pytest.raises(ArtifactError, match="run the ingest again"):
        Encoders.load(tmp_path, encoders.schema)
    encoders.save(tmp_path)
    for name in ("vocabulary-0.arrow", "idf-0.npy"):
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[:20])
        with pytest.raises(ArtifactError):
            Encoders.load(tmp_path, encoders.schema)
        (tmp_path / name).write_bytes(content)
    about = json.loads((tmp_path / "encoders.json").read_text())
    (tmp_path / "encoders.json").write_text(json.dumps({**about, "format": 99}))
    with pytest.raises(ArtifactError, match="format 99"):
        Encoders.load(tmp_path, encoders.schema)
