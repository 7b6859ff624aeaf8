"""Decoding, encoding and overriding of settings, on small classes of this file."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twotower.errors import ConfigError, SchemaError
from twotower.settings import Codec, format_toml, override, parse_sweep, parse_toml, placed


class Shape:
    """A base class without fields, as ``Sampler`` is."""


@dataclass(frozen=True, kw_only=True)
class Base(Shape):
    pass


@dataclass(frozen=True, kw_only=True)
class Circle(Base):
    radius: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Square(Base):
    side: int
    turned: bool = False

    def __post_init__(self) -> None:
        if self.side < 0:
            raise ValueError(f"side is {self.side}, expected 0 or more")
        if self.side > 1000:
            raise SchemaError(f"Square: side is {self.side}, expected at most 1000")


@dataclass(frozen=True, kw_only=True)
class Group(Base):
    parts: tuple[Base, ...] = ()


Shapes = Circle | Square | Group


@dataclass(frozen=True, kw_only=True)
class Other:
    size: int = 3
    made: list[int] = field(init=False, compare=False, repr=False)
    """No setting, and not there before it is made."""


@dataclass(frozen=True, kw_only=True)
class Sheet:
    name: str
    shape: Base = Circle()
    by_union: Circle | Square | None = None
    named: dict[str, Circle | Square] = field(default_factory=dict)
    other: Other = Other()
    ratio: float = 0.5
    clip: float | None = None
    patience: int | None = 3
    label: str | None = None
    tags: tuple[str, ...] = ()
    span: tuple[int, int] | None = None
    mode: Literal["fast", "slow"] = "fast"
    amount: int | float | Literal["all"] = 1


CODEC = Codec(Shapes)


def decode(text: str) -> Sheet:
    sheet = CODEC.decode(Sheet, parse_toml(text, "sheet.toml"))
    assert isinstance(sheet, Sheet)
    return sheet


def test_a_full_tree() -> None:
    text = """
    name = "a"
    ratio = 2
    clip = 0.1
    tags = ["x", "y"]
    span = [3, 5]
    mode = "slow"
    amount = "all"
    other = { size = 7 }
    by_union = { kind = "Square", side = 2 }
    named.one = { kind = "Circle" }
    named.two = { kind = "Square", side = 4, turned = true }
    [shape]
    kind = "Group"
    [[shape.parts]]
    kind = "Circle"
    radius = 0.25
    [[shape.parts]]
    kind = "Group"
    parts = [{ kind = "Square", side = 9 }]
    """
    expected = Sheet(
        name="a",
        ratio=2.0,
        clip=0.1,
        tags=("x", "y"),
        span=(3, 5),
        mode="slow",
        amount="all",
        other=Other(size=7),
        by_union=Square(side=2),
        named={"one": Circle(), "two": Square(side=4, turned=True)},
        shape=Group(parts=(Circle(radius=0.25), Group(parts=(Square(side=9),)))),
    )
    assert decode(text) == expected
    assert type(decode(text).ratio) is float


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "name is missing, Sheet needs it"),
        ("nam = 'a'", "nam is not a setting of Sheet: did you mean 'name'?"),
        (
            "name = 'a'\nother.zzz = 1",
            "other.zzz is not a setting of Other, which has size",
        ),
        ("name = 3", "name: found 3 (whole number), expected text"),
        ("name = 'a'\nratio = 'x'", "ratio: found 'x' (text), expected a number"),
        ("name = 'a'\nratio = '0.3'", "ratio: found '0.3' (text), expected a number"),
        ("name = 'a'\nratio = true", "ratio: found true, expected a number"),
        ("name = 'a'\nother.size = true", "other.size: found true, expected a whole number"),
        ("name = 'a'\nother.size = 3.0", "other.size: found 3.0 (number), expected a whole number"),
        ("name = 'a'\nother = 3", "other: found 3 (whole number), expected a table of the settings of Other"),
        (
            "name = 'a'\nother.kind = 'Othr'",
            "other.kind: found 'Othr' (text), expected one of Other: did you mean 'Other'?",
        ),
        ("name = 'a'\ntags = 'x'", "tags: found 'x' (text), expected a list"),
        ("name = 'a'\ntags = ['x', 2]", "tags[1]: found 2 (whole number), expected text"),
        ("name = 'a'\nspan = [1, 2, 3]", "span: found 3 values, expected 2"),
        ("name = 'a'\nspan = [1, 'b']", "span[1]: found 'b' (text), expected a whole number"),
        ("name = 'a'\nspan = 1", "span: found 1 (whole number), expected a list"),
        ("name = 'a'\nclip = 'x'", "clip: found 'x' (text), expected a number"),
        ("name = 'a'\nclip = []", "clip: found a list, expected a number"),
        ("name = 'a'\nlabel = 2024-01-01", "label: found 2024-01-01 (date), expected text"),
        (
            "name = 'a'\nmode = 'fats'",
            "mode: found 'fats' (text), expected one of 'fast', 'slow': did you mean 'fast'?",
        ),
        (
            "name = 'a'\namount = 'most'",
            "amount: found 'most' (text), expected a whole number or a number or one of 'all'",
        ),
        (
            "name = 'a'\nby_union = 3",
            'by_union: found 3 (whole number), expected "none" or a table with a kind out of Circle, Square',
        ),
        ("name = 'a'\nnamed = []", "named: found a list, expected a table"),
        ("name = 'a'\nnamed.x = { side = 1 }", "named.x.kind is missing, expected one of Circle, Square"),
        (
            "name = 'a'\nnamed.x = 'Circle'",
            "named.x: found 'Circle' (text), expected a table with a kind out of Circle, Square",
        ),
        ("name = 'a'\nnamed.x = { kind = 'Square' }", "named.x.side is missing, Square needs it"),
        (
            "name = 'a'\nshape = { kind = 'circel' }",
            "shape.kind: found 'circel' (text), expected one of Circle, Square, Group: did you mean 'Circle'?",
        ),
        (
            "name = 'a'\nshape = { kind = 3 }",
            "shape.kind: found 3 (whole number), expected one of Circle, Square, Group",
        ),
        ("name = 'a'\nshape = { kind = [] }", "shape.kind: found a list, expected one of Circle, Square, Group"),
        (
            "name = 'a'\nshape = { kind = 'Group', parts = [{ kind = 'Circle' }, { kind = 'Circle', radus = 1 }] }",
            "shape.parts[1].radus is not a setting of Circle: did you mean 'radius'?",
        ),
        ("name = 'a'\nshape = { kind = 'Square', side = -1 }", "shape: side is -1, expected 0 or more"),
    ],
)
def test_a_mistake_says_where_what_was_found_and_what_was_expected(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        decode(text)
    assert str(error.value) == message


def test_an_error_of_a_class_keeps_its_type_and_gets_the_path() -> None:
    with pytest.raises(SchemaError) as error:
        decode("name = 'a'\nnamed.x = { kind = 'Square', side = 2000 }")
    assert str(error.value) == "named.x: Square: side is 2000, expected at most 1000"


def test_where_comes_before_the_path() -> None:
    with pytest.raises(ConfigError, match=r"^loss\.radius: found 'x' \(text\), expected a number$"):
        CODEC.decode(Circle, {"radius": "x"}, where="loss")


def test_a_base_class_takes_only_members_below_it() -> None:
    assert Codec(Shapes, Other).decode(Base, {"kind": "Circle"}) == Circle()
    with pytest.raises(ConfigError, match="expected one of Circle, Square, Group"):
        Codec(Shapes, Other).decode(Base, {"kind": "Other"})


def test_none_is_a_text_where_a_text_is_expected() -> None:
    sheet = decode("name = 'none'\nlabel = 'none'\npatience = 'none'\nclip = 'none'\nby_union = 'none'")
    assert (sheet.name, sheet.label, sheet.patience, sheet.clip, sheet.by_union) == ("none", "none", None, None, None)


def test_defaults_are_spelt_out() -> None:
    tree = CODEC.encode(Sheet, Sheet(name="a"))
    assert tree["shape"] == {"kind": "Circle", "radius": 1.0}
    assert tree["other"] == {"size": 3}
    assert "clip" not in tree


def test_a_none_that_toml_cannot_say() -> None:
    @dataclass(frozen=True)
    class Named:
        label: str | None = "x"

    with pytest.raises(ConfigError, match=r"Named\.label is None"):
        CODEC.encode(Named, Named(label=None))


number = st.floats(allow_nan=False)
circle = st.builds(Circle, radius=number)
square = st.builds(Square, side=st.integers(0, 1000), turned=st.booleans())
shape = st.recursive(circle | square, lambda inner: st.builds(Group, parts=st.lists(inner, max_size=3).map(tuple)))
text = st.text(st.characters(exclude_categories=["Cs"]))
sheets = st.builds(
    Sheet,
    name=text,
    shape=shape,
    by_union=st.none() | circle | square,
    named=st.dictionaries(text, circle | square, max_size=3),
    ratio=number,
    clip=st.none() | number,
    patience=st.none() | st.integers(-(2**63), 2**63 - 1),
    label=st.none() | text,
    tags=st.lists(text, max_size=3).map(tuple),
    span=st.none() | st.tuples(st.integers(0, 9), st.integers(0, 9)),
    mode=st.sampled_from(["fast", "slow"]),
    amount=st.integers(0, 9) | number | st.just("all"),
)


@given(sheets)
def test_what_is_written_reads_back_equal(sheet: Sheet) -> None:
    assert decode(format_toml(CODEC.encode(Sheet, sheet))) == sheet


def test_bad_toml_says_file_and_line() -> None:
    with pytest.raises(ConfigError, match=r"^run\.toml: not valid TOML: .*line 2"):
        parse_toml("a = 1\nb = = 2", "run.toml")


@pytest.mark.parametrize(
    ("setting", "tree"),
    [
        ("a=1", {"a": 1, "b": {"c": [{"d": 1}, {"d": 2}]}}),
        ("b.c.1.d=0.5", {"a": 0, "b": {"c": [{"d": 1}, {"d": 0.5}]}}),
        ("b.c[0].d = true", {"a": 0, "b": {"c": [{"d": True}, {"d": 2}]}}),
        ("b.c=[]", {"a": 0, "b": {"c": []}}),
        ("a=BPR", {"a": "BPR", "b": {"c": [{"d": 1}, {"d": 2}]}}),
        ("a='x=y'", {"a": "x=y", "b": {"c": [{"d": 1}, {"d": 2}]}}),
        ("a=1\nz=2", {"a": "1\nz=2", "b": {"c": [{"d": 1}, {"d": 2}]}}),
        ("x.y=3", {"a": 0, "b": {"c": [{"d": 1}, {"d": 2}]}, "x": {"y": 3}}),
    ],
)
def test_override(setting: str, tree: dict[str, object]) -> None:
    before = {"a": 0, "b": {"c": [{"d": 1}, {"d": 2}]}}
    assert override(before, setting) == tree
    assert before == {"a": 0, "b": {"c": [{"d": 1}, {"d": 2}]}}


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("a", "expected NAME=VALUE"),
        ("=1", "expected NAME=VALUE"),
        ("a..b=1", "expected NAME=VALUE"),
        ("a.b=1", r"a is 0 \(whole number\), which has no settings"),
        ("c.2.d=1", "2 is no place of a list of 2, expected 0 to 1"),
        ("c.x.d=1", "x is no place of a list of 2"),
    ],
)
def test_an_override_that_leads_nowhere(setting: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        override({"a": 0, "c": [{"d": 1}, {"d": 2}]}, setting)


@pytest.mark.parametrize(
    ("setting", "values"),
    [
        ("a.b=0.02,0.5", [0.02, 0.5]),
        ("a.b = 1, 2 ", [1, 2]),
        ("a.b=[4],[8,4]", [[4], [8, 4]]),
        ("a.b={kind='C'},{kind='D'}", [{"kind": "C"}, {"kind": "D"}]),
        ("a.b='x,y','z'", ["x,y", "z"]),
        ("a.b=cosine,linear", ["cosine", "linear"]),
        ("a.b=true,none", [True, "none"]),
    ],
)
def test_a_sweep_is_values_of_a_setting(setting: str, values: list[object]) -> None:
    assert parse_sweep(setting) == ("a.b", values)


@pytest.mark.parametrize("setting", ["a.b", "a.b=", "=1,2", "a..b=1,2", "a.b=1,,2", "a.b=cosine,", "a.b=1]\nc=[2"])
def test_what_is_no_sweep(setting: str) -> None:
    with pytest.raises(ConfigError, match="expected NAME=VALUE,VALUE,"):
        parse_sweep(setting)


def test_a_value_is_placed() -> None:
    before: dict[str, object] = {"a": 0, "c": [{"d": 1}, {"d": 2}]}
    assert placed(before, "c.1.d", 3, "here") == {"a": 0, "c": [{"d": 1}, {"d": 3}]}
    assert placed(before, "e.f", [4], "here") == {**before, "e": {"f": [4]}}
    with pytest.raises(ConfigError, match=r"^here: 'c\.\.d' is no name of a setting"):
        placed(before, "c..d", 3, "here")
    with pytest.raises(ConfigError, match=r"^here: a is 0 \(whole number\), which has no settings"):
        placed(before, "a.b", 3, "here")
