"""Messages as a table: JSON types are kept, and what disagrees is left out with its place."""

from __future__ import annotations

import json

import pytest

from twotower.data.report import Tally
from twotower.data.streams.messages import table_of


def read(*values: object) -> tuple[dict[str, list[object]], dict[str, list[str]]]:
    """The columns, and what was left out."""
    tally = Tally("messages")
    raw = [
        (f"message {at}", value if isinstance(value, bytes) else json.dumps(value).encode())
        for at, value in enumerate(values)
    ]
    table = table_of(raw, tally, most_bytes=100_000)
    assert tally.read == len(values) == len(table) + sum(tally.left_out.values())
    return table.to_pydict(), tally.examples


def test_values_keep_their_json_type() -> None:
    columns, left_out = read(
        {"id": "007", "n": 2**53 + 1, "tags": ["a"], "deep": {"a": 1}, "yes": True, "mixed": ["a", 1]},
        {"id": "é", "n": 0.5, "tags": [], "deep": {"a": "x"}, "extra": None},
        {"id": "2024-05-01", "v": [2**53 + 1, 2.5], "deep": None},
    )
    assert not left_out
    assert columns == {
        "id": ["007", "é", "2024-05-01"],
        "n": [float(2**53), 0.5, None],
        "tags": [["a"], [], None],
        "deep": ['{"a": 1}', '{"a": "x"}', None],
        "yes": [True, None, None],
        "mixed": ['["a", 1]', None, None],
        "extra": [None, None, None],
        "v": [None, None, [float(2**53), 2.5]],
    }


@pytest.mark.parametrize(
    ("usual", "other", "why"),
    [
        (1, "1", "x is text, number in most"),
        (1.5, True, "x is true or false, number in most"),
        ("a", 1, "x is number, text in most"),
        ("a", {"b": 1}, "x is an object, text in most"),
        ({"b": 1}, "a", "x is text, an object in most"),
        (1, [], "x is list, number in most"),
        (["a"], [1], "x is list of number, list of text in most"),
        (["a"], "a", "x is text, list of text in most"),
        (1, 2**63, "x is a value that no column holds, number in most"),
        ("a", "\ud800", "x is a value that no column holds, text in most"),
        (["a"], ["\ud800"], "x is a value that no column holds, list of text in most"),
    ],
)
def test_the_type_of_most_is_the_column_s(usual: object, other: object, why: str) -> None:
    columns, left_out = read({"x": usual}, {"x": other, "y": 1}, {"x": None}, {"y": 2}, {"x": usual})
    shown = json.dumps(usual) if isinstance(usual, dict) else usual
    assert columns == {"x": [shown, None, None, shown], "y": [None, None, 2, None]}
    assert left_out == {"a field is of another type than in most messages": [f"message 1: {why}"]}


def test_empty_lists_fit_lists() -> None:
    columns, left_out = read({"x": []}, {"x": ["a"]}, {"x": 1}, {"x": []}, {"x": [None, "b"]})
    assert columns == {"x": [[], ["a"], [], [None, "b"]]}
    assert list(left_out.values()) == [["message 2: x is number, list of text in most"]]


def test_fields_without_end_are_no_columns_without_end() -> None:
    wide = {f"f{at}": at for at in range(990)}
    columns, left_out = read({"item": 1}, wide, {f"g{at}": at for at in range(10)}, {"item": 2, "f3": 0})
    assert len(columns) == 991
    assert columns["item"] == [1, None, 2]
    assert left_out == {"message is no JSON object": ["message 2: more than 1,000 fields, with those before"]}


def test_no_message_is_an_empty_table() -> None:
    assert read(b"no", {}) == (
        {},
        {"message is no JSON object": ["message 0: Expecting value: line 1 column 1 (char 0)", "message 1: {}"]},
    )
