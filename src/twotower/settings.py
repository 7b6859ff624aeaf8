"""A tree of dataclasses, and the same tree as TOML.

A table becomes the dataclass that its place expects. Where a place takes one of several, ``kind`` is the name of the
class: ``loss = { kind = "BPR" }``. The union (``Losses = SampledSoftmax | BPR``) is all the registry there is; a place
typed with a base class takes the subclasses of it that are members of the unions the ``Codec`` was given.

Decoding is strict: an unknown key, a missing one or a value of another type is an error that says where, what was
found and what was expected. Nothing is converted, except that a whole number will do for a number. TOML has no null: a
setting that may be None is left out, or is the text "none".
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import re
import tomllib
import types
from collections.abc import Collection, Mapping
from copy import deepcopy
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import cattrs
import tomli_w

from .errors import ConfigError, TwoTowerError

Tree = dict[str, Any]
Form = Any
"""What a place expects: a class, a union, a literal, or a tuple or dict of such."""

_NONE = "none"
_WORDS: dict[type, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    tuple: "a list",
    list: "a list",
    dict: "a table",
}
"""What a value is called in a message."""


class _Misfit(Exception):
    """A value that does not fit. The message goes on from ``path``, which grows on the way up."""

    def __init__(self, message: str, path: str = "", kind: type[TwoTowerError] = ConfigError) -> None:
        super().__init__(message)
        self.message, self.path, self.kind = message, path, kind

    def below(self, step: str) -> _Misfit:
        """The same mistake as seen from one level up."""
        return _Misfit(self.message, _join(step, self.path), self.kind)


class Codec:
    """Decodes and encodes settings; ``unions`` are those behind the places that are typed with a base class."""

    def __init__(self, *unions: Form) -> None:
        self._classes = [member for union in unions for member in _members(union)]
        self._converter = cattrs.Converter()
        for scalar in (bool, int, float, str):
            self._converter.register_structure_hook(scalar, _decode_scalar)
        for takes, hook in (
            (lambda form: _origin(form) is Literal, _decode_literal),
            (lambda form: _origin(form) is tuple, self._decode_tuple),
            (lambda form: _origin(form) is dict, self._decode_dict),
            (lambda form: _origin(form) in (Union, types.UnionType), self._decode_union),
            (dataclasses.is_dataclass, self._decode_class),
        ):
            self._converter.register_structure_hook_func(takes, hook)

    def decode(self, form: Form, tree: object, where: str = "") -> Any:
        """``tree`` as ``form`` says; ConfigError with the dotted path from ``where`` if it does not fit.

        A TwoTowerError that a class raises about its own settings keeps its type and gets the path.
        """
        try:
            return self._converter.structure(tree, form)
        except _Misfit as misfit:
            path, message = _join(where, misfit.path), misfit.message
            says_where = not path or message.startswith(f": {path}")
            raise misfit.kind(message.removeprefix(": ") if says_where else path + message) from misfit.__cause__

    def encode(self, form: Form, value: object) -> Any:
        """The tree that ``decode`` turns into an equal value, with the defaults spelt out."""
        if dataclasses.is_dataclass(value):
            kind = {"kind": type(value).__name__} if len(self._choices(form)) > 1 else {}
            return kind | self._encode_fields(value)
        if isinstance(value, tuple):
            forms = _item_forms(_member_of(form, tuple), len(value))
            return [self.encode(inner, item) for inner, item in zip(forms, value, strict=True)]
        if isinstance(value, Mapping):
            _, inner = get_args(_member_of(form, dict))
            return {key: self.encode(inner, item) for key, item in value.items()}
        return _NONE if value is None else value

    def _encode_fields(self, value: Any) -> Tree:
        forms = get_type_hints(type(value))
        tree: Tree = {}
        for field in _settings(type(value)):
            content = getattr(value, field.name)
            if content is None and field.default is None:
                continue
            if content is None and self.decode(forms[field.name], _NONE) is not None:
                raise ConfigError(f"{type(value).__name__}.{field.name} is None, which TOML has no way to say there")
            tree[field.name] = self.encode(forms[field.name], content)
        return tree

    def _choices(self, form: Form) -> dict[str, type]:
        """The dataclasses that may stand where ``form`` is expected, by kind."""
        found: dict[str, type] = {}
        for member in _members(form):
            if isinstance(member, type) and dataclasses.is_dataclass(member):
                below = [choice for choice in self._classes if issubclass(choice, member)]
                found |= {choice.__name__: choice for choice in below or [member]}
        return found

    def _inside(self, step: str, form: Form, value: object) -> Any:
        try:
            return self._converter.structure(value, form)
        except _Misfit as misfit:
            raise misfit.below(step) from misfit.__cause__

    def _decode_tuple(self, value: Any, form: Form) -> Any:
        if not isinstance(value, list):
            raise _Misfit(f": found {_show(value)}, expected a list")
        forms = _item_forms(form, len(value))
        if len(forms) != len(value):
            raise _Misfit(f": found {len(value)} values, expected {len(forms)}")
        return tuple(self._inside(f"[{i}]", forms[i], item) for i, item in enumerate(value))

    def _decode_dict(self, value: Any, form: Form) -> Any:
        if not isinstance(value, dict):
            raise _Misfit(f": found {_show(value)}, expected a table")
        return {key: self._inside(key, get_args(form)[1], item) for key, item in value.items()}

    def _decode_union(self, value: Any, form: Form) -> Any:
        """A table by its kind, anything else as the first member that takes it."""
        choices = self._choices(form)
        if choices and isinstance(value, dict):
            return self._decode_choice(value, choices)
        forms = [member for member in _members(form) if not dataclasses.is_dataclass(member)]
        misfits: list[_Misfit] = []
        for inner in (inner for inner in forms if inner is not type(None)):
            try:
                return self._converter.structure(value, inner)
            except _Misfit as misfit:
                misfits.append(misfit)
        if type(None) in forms and value == _NONE:
            return None
        nearest = max(misfits, key=lambda misfit: len(misfit.path), default=None)
        if nearest is not None and (nearest.path or (len(misfits) == 1 and not choices)):
            raise nearest
        words = [_words(inner) for inner in forms] + ([_a_table(choices)] if choices else [])
        raise _Misfit(f": found {_show(value)}, expected {' or '.join(words)}")

    def _decode_class(self, value: Any, form: Form) -> Any:
        return self._decode_choice(value, self._choices(form))

    def _decode_choice(self, value: Any, choices: dict[str, type]) -> Any:
        if not isinstance(value, dict):
            raise _Misfit(f": found {_show(value)}, expected {_a_table(choices)}")
        settings = dict(value)
        kind = settings.pop("kind", next(iter(choices)) if len(choices) == 1 else None)
        if kind is None:
            raise _Misfit(f" is missing, expected one of {_listed(choices)}", "kind")
        if not isinstance(kind, str) or kind not in choices:
            raise _Misfit(f": found {_show(kind)}, expected one of {_listed(choices)}{_near(kind, choices)}", "kind")
        return self._construct(choices[kind], settings)

    def _construct(self, cls: type, settings: Tree) -> Any:
        fields = {field.name: field for field in _settings(cls)}
        for name in settings:
            if name not in fields:
                hint = _near(name, fields) or f", which has {_listed(fields) or 'none'}"
                raise _Misfit(f" is not a setting of {cls.__name__}{hint}", name)
        for name, field in fields.items():
            if name not in settings and _is_required(field):
                raise _Misfit(f" is missing, {cls.__name__} needs it", name)
        forms = get_type_hints(cls)
        decoded = {name: self._inside(name, forms[name], value) for name, value in settings.items()}
        try:
            return cls(**decoded)
        except TwoTowerError as error:
            raise _Misfit(f": {error}", kind=type(error)) from error
        except ValueError as error:
            raise _Misfit(f": {error}") from error


def parse_toml(text: str, name: str) -> Tree:
    """The tree of a TOML text; ``name`` is what an error calls it."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{name}: not valid TOML: {error}") from error


def format_toml(tree: Tree) -> str:
    """The TOML text of a tree."""
    return tomli_w.dumps(tree)


def override(tree: Tree, setting: str) -> Tree:
    """The tree with one setting changed: ``loss.temperature=0.1`` or ``negatives.parts.1.n=64``.

    The value is written as in TOML; what is not valid TOML is taken as text, so ``loss.kind=BPR`` needs no quotes.
    Tables on the way are made; it is for ``decode`` to say whether the result makes sense.
    """
    name, equals, text = setting.partition("=")
    if not equals or not all(_steps(name)):
        raise ConfigError(f"--set {setting}: expected NAME=VALUE, such as loss.temperature=0.1")
    return placed(tree, name, _override_value(text.strip()), f"--set {setting}")


def placed(tree: Tree, name: str, value: object, where: str) -> Tree:
    """The tree with the setting called ``name`` at ``value``; an error begins with ``where``."""
    steps = _steps(name)
    if not all(steps):
        raise ConfigError(f"{where}: {name!r} is no name of a setting, such as loss.temperature")
    changed = deepcopy(tree)
    place: Any = changed
    for step in steps[:-1]:
        place = place[_index(place, step, where)] if isinstance(place, list) else place.setdefault(step, {})
        if not isinstance(place, (dict, list)):
            raise ConfigError(f"{where}: {step} is {_show(place)}, which has no settings")
    place[_index(place, steps[-1], where) if isinstance(place, list) else steps[-1]] = value
    return changed


def parse_sweep(setting: str) -> tuple[str, list[Any]]:
    """The name and the values of ``loss.temperature=0.02,0.05,0.1``, each written as for ``override``."""
    name, _, text = setting.partition("=")
    try:
        parsed = tomllib.loads(f"values = [{text}]")
    except tomllib.TOMLDecodeError:
        parsed = {"values": [_override_value(value.strip()) for value in text.split(",")]}
    values = parsed["values"]
    if len(parsed) > 1 or not all(_steps(name)) or not values or "" in values:
        raise ConfigError(f"--sweep {setting}: expected NAME=VALUE,VALUE,..., such as loss.temperature=0.02,0.05,0.1")
    return name.strip(), values


def _steps(name: str) -> list[str]:
    """The keys on the way to a setting."""
    return [step.strip() for step in re.split(r"\.|(?=\[)", name.strip())]


def _override_value(text: str) -> Any:
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return parsed["value"] if len(parsed) == 1 else text


def _index(place: list[Any], step: str, where: str) -> int:
    digits = step.strip("[]")
    if not digits.isdecimal() or int(digits) >= len(place):
        raise ConfigError(f"{where}: {step} is no place of a list of {len(place)}, expected 0 to {len(place) - 1}")
    return int(digits)


def _decode_scalar(value: Any, form: Form) -> Any:
    if form is float and type(value) is int:
        return float(value)
    if type(value) is not form:
        raise _Misfit(f": found {_show(value)}, expected {_WORDS[form]}")
    return value


def _decode_literal(value: Any, form: Form) -> Any:
    for choice in get_args(form):
        if value == choice and type(value) is type(choice):
            return choice
    choices = [str(choice) for choice in get_args(form)]
    raise _Misfit(f": found {_show(value)}, expected {_words(form)}{_near(value, choices)}")


def _origin(form: Form) -> Any:
    return get_origin(form)


def _members(form: Form) -> tuple[Form, ...]:
    return get_args(form) if _origin(form) in (Union, types.UnionType) else (form,)


def _member_of(form: Form, origin: type) -> Form:
    return next(member for member in _members(form) if _origin(member) is origin)


def _item_forms(form: Form, n: int) -> tuple[Form, ...]:
    """What each place of a tuple expects: of n places if its length is open."""
    items = get_args(form)
    return (items[0],) * n if items[1:] == (...,) else items


def _settings(cls: type) -> list[dataclasses.Field[Any]]:
    return [field for field in dataclasses.fields(cls) if field.init]


def _is_required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _join(path: str, step: str) -> str:
    return f"{path}.{step}" if path and step and not step.startswith("[") else path + step


def _show(value: object) -> str:
    """A value as found in TOML, with what it is."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, dict)):
        return _WORDS[type(value)]
    text = repr(value) if isinstance(value, str) else str(value)
    return f"{text} ({_WORDS.get(type(value), type(value).__name__).removeprefix('a ')})"


def _words(form: Form) -> str:
    """What a place takes, in words."""
    if _origin(form) is Literal:
        return "one of " + ", ".join(repr(choice) for choice in get_args(form))
    return _WORDS.get(_origin(form) or form, f'"{_NONE}"')


def _a_table(choices: Collection[str]) -> str:
    if len(choices) == 1:
        return f"a table of the settings of {_listed(choices)}"
    return f"a table with a kind out of {_listed(choices)}"


def _listed(names: Collection[str]) -> str:
    return ", ".join(names)


def _near(name: object, names: Collection[str]) -> str:
    """The did-you-mean that ends a message."""
    lower = {known.lower(): known for known in names}
    near = difflib.get_close_matches(str(name).lower(), lower, n=1)
    return f": did you mean '{lower[near[0]]}'?" if near else ""


def first_difference(before: Any, now: Any, name: str = "") -> str | None:
    """The first setting in which two trees differ, with both values."""
    if isinstance(before, dict) and isinstance(now, dict):
        differences = (
            first_difference(before.get(key), now.get(key), f"{name}.{key}" if name else key)
            for key in {**before, **now}
        )
        return next((difference for difference in differences if difference), None)
    return None if before == now else f"{name} = {json.dumps(before)}, this one has {json.dumps(now)}"


def without_nan(tree: object) -> object:
    """A tree that JSON can hold: null for each number that is not finite."""
    if isinstance(tree, dict):
        return {name: without_nan(value) for name, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [without_nan(value) for value in tree]
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree
