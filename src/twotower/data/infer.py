"""Look at the files and write a first run: what ``twotower init`` does.

Every column is profiled in one pass, the columns of the interactions get their roles, all others a suggested feature
or the reason why not. What is written is for a person to read: suggestions that depend on what only they know are
comments.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

from ..errors import ConfigError, DataError
from ..schema import Categorical, Categories, Feature, History, Id, Interactions, Reward, Schema, Text, Time
from .arrow import TimeUnit
from .events import PARTS
from .profile import ColumnProfile, TableProfile, profile
from .readers import Source, reads_once
from .suggest import (
    Side,
    Verdict,
    graded_reward,
    has_own_name,
    holds_only,
    is_label,
    is_name,
    is_outcome,
    is_time,
    share_within,
    suggest,
    suggest_of_event,
    suggest_of_item,
    suggest_of_query,
    words_of,
)

_DIM = 64
"""Width of the tables in the run that is written."""
_BATCH = (64, 4096)
"""Least and largest batch of that run; between them it has ``_STEPS`` batches an epoch or more."""
_STEPS = 20
_FEW_ITEMS = 1_000
"""Items below which its metric looks at 10 of them, not at 100."""

_ITEM_WORDS = {
    *("item", "product", "movie", "film", "video", "track", "song", "book", "article", "business", "listing", "sku"),
    *("asin", "stock", "doc", "document", "page", "news", "poi", "venue", "location", "artist", "recipe", "target"),
    *("destination", "dst", "to", "iid", "ad", "course", "job", "app", "game", "photo", "passage"),
}
_QUERY_WORDS = {
    *("user", "customer", "member", "visitor", "session", "client", "account", "buyer", "reader", "viewer", "player"),
    *("uid", "query", "source", "src", "from", "person", "shopper", "reviewer", "student", "household", "candidate"),
}
_ID_WORDS = {"id", "code", "key", "no", "sku", "asin", "uid", "iid"}
_SEARCH_WORDS = {"query", "search", "question", "keyword", "keywords", "term", "terms"}
_LABEL_NAMES = (
    *("is_positive", "positive", "label", "is_click", "click", "clicked", "taken", "is_like", "like", "liked"),
    *("purchased", "purchase", "bought", "converted", "target"),
)
_GRADED = "0 for what was hardly watched, 1 for a whole view"
_PAIRS_OF_WORDS = ({"source", "target"}, {"src", "dst"}, {"from", "to"})


# ---------------------------------------------------------------- what comes out


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnReport:
    """What was found in one column and what is made of it."""

    file: str
    """``interactions``, ``queries`` or ``items``."""
    column: str
    type: str
    rows: int
    distinct: int
    distinct_is_capped: bool
    missing: float
    """Share of the rows."""
    examples: tuple[str, ...]
    role: str
    """``item id``, ``query id``, ``time``, ``weight``, ``split``, a feature such as ``item: Categorical``, or
    ``left out``; with a question mark where it is only offered."""
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class InferredSchema:
    """What ``init`` found."""

    schema: Schema
    columns: tuple[ColumnReport, ...]
    warnings: tuple[str, ...]
    """Those that are about no single column."""
    toml: str
    """The run, with comments."""

    def render(self) -> str:
        """The report as plain text columns, warnings below."""
        head = ("file", "column", "type", "distinct", "missing", "role", "examples")
        rows = [
            (
                *(report.file, report.column, _cut(report.type, 24)),
                ("≥ " if report.distinct_is_capped else "") + f"{report.distinct:,}",
                f"{report.missing:.1%}" if report.missing else "",
                *(report.role, ", ".join(report.examples)),
            )
            for report in self.columns
        ]
        width = [max(len(row[at]) for row in (head, *rows)) for at in range(len(head))]
        lines = ["  ".join(cell.ljust(n) for cell, n in zip(row, width, strict=True)).rstrip() for row in (head, *rows)]
        said: dict[str, list[str]] = {}
        for report in self.columns:
            for warning in report.warnings:
                said.setdefault(f"{report.file}.%s: {warning}", []).append(report.column)
        return "\n".join(
            [
                *lines,
                *([""] if said else []),
                *(text.replace("%s", _some(columns)) for text, columns in said.items()),
                *(["", *self.warnings] if self.warnings else []),
            ]
        )


def _some(names: list[str], most: int = 4) -> str:
    """Names for a line of the report."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _cut(text: str, n: int) -> str:
    return text if len(text) <= n else text[: n - 1] + "…"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Suggestion:
    section: Side
    name: str
    feature: Feature
    is_active: bool = True
    """False: written as a comment."""
    note: str = ""


class _Draft:
    """Suggestions and reports as they come."""

    def __init__(self) -> None:
        self.found: list[_Suggestion] = []
        self._reports: dict[tuple[str, str], ColumnReport] = {}

    @property
    def reports(self) -> tuple[ColumnReport, ...]:
        return tuple(self._reports.values())

    def add(self, side: Side, column: ColumnProfile, verdict: Verdict, file: str, *, is_shared: bool = False) -> None:
        """Report a column and suggest its feature. The texts of a file are left to whoever joins them to one."""
        self.report(file, column, _role_of(side, verdict), verdict.warnings)
        feature = verdict.feature
        if verdict.is_text and file == "interactions":
            feature = Text(columns=(column.name,))
        if feature is None:
            return
        if is_shared and isinstance(feature, (Categorical, Categories)):
            feature = dataclasses.replace(feature, table=column.name)
        note = "; ".join((_n_values(column), *verdict.warnings))
        self.found.append(
            _Suggestion(section=side, name=column.name, feature=feature, is_active=verdict.is_active, note=note)
        )

    def offer(self, name: str, feature: Feature, note: str) -> None:
        """Suggest, in a comment, a context feature that is of no single column."""
        self.found.append(_Suggestion(section="context", name=name, feature=feature, is_active=False, note=note))

    def report(self, file: str, column: ColumnProfile, role: str, warnings: tuple[str, ...] = ()) -> None:
        """Report a column; once, where one file describes both sides."""
        self._reports[file, column.name] = ColumnReport(
            file=file,
            column=column.name,
            type=column.type,
            rows=column.n,
            distinct=column.n_distinct,
            distinct_is_capped=column.is_capped,
            missing=column.missing_share,
            examples=column.examples,
            role=role,
            warnings=warnings,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Roles:
    """Columns of the interactions, and the keys of the other files."""

    item: str
    query: str | None
    time: str | None
    time_unit: TimeUnit
    taken: str | None
    graded: Reward | None
    """A graded weight that is offered."""
    split: str | None
    has_valid: bool
    """The split column names validation events."""
    query_is_item: bool
    item_key: str | None
    query_key: str | None

    def of(self, column: str) -> str | None:
        named = {
            self.item: "item id",
            self.query: "query id",
            self.time: "time",
            self.taken: "taken",
            self.split: "split",
        }
        return named.get(column)


# ---------------------------------------------------------------- the way through


def init(
    interactions: Source,
    *,
    queries: Source | None = None,
    items: Source | None = None,
    out: str | os.PathLike[str] | None = None,
) -> InferredSchema:
    """Look at the files (or frames) and suggest a schema; with ``out`` write a commented run there.

    Paths in the run are relative to it. A file that is there is not overwritten.

    Raises:
        DataError: a file can't be read, or no column can be the item's id.
        ConfigError: ``out`` is there already, or its folder is not.
    """
    if out is not None:
        _check_out(Path(out))
    events = profile(interactions, "interactions")
    of_query = None if queries is None else profile(queries, "queries")
    of_item = None if items is None else profile(items, "items")
    inferred = _infer(events, of_query, of_item, _Paths.of(interactions, queries, items, out))
    if out is not None:
        Path(out).write_text(inferred.toml, encoding="utf-8")
    return inferred


def _check_out(out: Path) -> None:
    if out.exists():
        raise ConfigError(
            f"{out}: there is a file already, and a run that was edited is not overwritten: choose another with --out"
        )
    if not out.parent.is_dir():
        raise ConfigError(f"{out}: there is no folder {out.parent}: make it first")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Paths:
    """The files as the run names them; empty for frames."""

    interactions: tuple[str, ...]
    queries: tuple[str, ...]
    items: tuple[str, ...]

    @staticmethod
    def of(
        interactions: Source, queries: Source | None, items: Source | None, out: str | os.PathLike[str] | None
    ) -> _Paths:
        folder = None if out is None else Path(out).absolute().parent
        return _Paths(
            interactions=tuple(_paths(interactions, folder)),
            queries=tuple(_paths(queries, folder)),
            items=tuple(_paths(items, folder)),
        )


def _paths(source: Source | None, folder: Path | None) -> Iterable[str]:
    if isinstance(source, (str, os.PathLike)):
        path = Path(source)
        yield (path if folder is None else Path(os.path.relpath(path, folder))).as_posix()
    elif isinstance(source, Sequence) and not reads_once(source):
        for part in source:
            yield from _paths(part, folder)


def _infer(
    events: TableProfile, of_query: TableProfile | None, of_item: TableProfile | None, paths: _Paths
) -> InferredSchema:
    roles, warnings = _find_roles(events, of_query, of_item)
    draft = _Draft()
    if roles.query_is_item and of_query is None and of_item is not None:
        of_query = of_item
        roles = dataclasses.replace(roles, query_key=roles.item_key or roles.item)
        paths = dataclasses.replace(paths, queries=paths.items)
        warnings.append("query ids are item ids: the item file describes the queries too")
    in_files = {"query": _names(of_query), "item": _names(of_item)}
    _add_events(events, in_files, roles, draft)
    is_shared = of_query is of_item
    if of_query is not None:
        _add_attributes(of_query, "query", roles, events.columns[roles.item], is_shared, draft)
    elif roles.query is not None:
        draft.found.insert(0, _Suggestion(section="query", name=roles.query, feature=Id(column=roles.query)))
    if of_item is not None:
        _add_attributes(of_item, "item", roles, events.columns[roles.item], is_shared, draft)
    else:
        draft.found.insert(0, _Suggestion(section="item", name=roles.item, feature=Id(column=roles.item)))
    found = _with_distinct_names(draft.found)
    warnings += _of_memory(found, events, of_query, of_item)
    if not any(s.is_active and s.section in ("query", "context") for s in found):
        raise DataError(
            "interactions: found no column that could be the query's id or text; expected one, such as user_id: "
            f"the columns are {', '.join(events.columns)}"
        )
    return InferredSchema(
        schema=_schema(roles, found),
        columns=draft.reports,
        warnings=tuple(warnings),
        toml=_toml(roles, found, warnings, paths) + _settings(events, roles),
    )


def _names(table: TableProfile | None) -> Set[str]:
    return set() if table is None else table.columns.keys()


def _schema(roles: _Roles, found: list[_Suggestion]) -> Schema:
    sides: dict[str, dict[str, Feature]] = {"query": {}, "context": {}, "item": {}}
    for s in found:
        if s.is_active:
            sides[s.section][s.name] = s.feature
    return Schema(
        interactions=Interactions(
            item=roles.item,
            query=roles.query,
            time=roles.time,
            time_unit=roles.time_unit,
            taken=roles.taken,
            split=roles.split,
            query_is_item=roles.query_is_item,
        ),
        query=sides["query"],  # type: ignore[arg-type]
        context=sides["context"],  # type: ignore[arg-type]
        item=sides["item"],  # type: ignore[arg-type]
        query_key=roles.query_key,
        item_key=roles.item_key,
    )


def _with_distinct_names(found: list[_Suggestion]) -> list[_Suggestion]:
    """Plain lower-case names, each once among query and context, and once among the items."""
    taken: dict[bool, set[str]] = {True: set(), False: set()}
    named = []
    for suggestion in found:
        names = taken[suggestion.section == "item"]
        plain = "_".join(words_of(suggestion.name)) or "feature"
        name = next(n for n in (plain, *(f"{plain}_{at}" for at in range(2, len(found) + 2))) if n not in names)
        names.add(name)
        named.append(dataclasses.replace(suggestion, name=name))
    return named


# ---------------------------------------------------------------- roles


def _find_roles(
    events: TableProfile, of_query: TableProfile | None, of_item: TableProfile | None
) -> tuple[_Roles, list[str]]:
    warnings = _of_header(events)
    columns = list(events.columns.values())
    warnings += [
        f"interactions.{column.name}: some are negative: such events (returned, cancelled, disliked) train like the "
        "others until you take them out"
        for column in columns
        if is_outcome(column) and column.low < 0
    ]
    times = [column for column in columns if is_time(column)]
    time = max(times, key=_time_score, default=None)
    ids = [column for column in columns if _can_be_id(column) and column not in times]
    query, item = _ids(ids, of_query, of_item)
    if item is None:
        raise DataError(
            "interactions: found no column that could be the item's id; expected one, such as item_id: the columns are "
            f"{', '.join(events.columns)}"
        )
    if query is not None and _query_score(query) + _key_score(query, of_query) <= 0:
        warnings.append(f"interactions.query is {query.name!r} by its place only: check it")
    if _item_score(item) + _key_score(item, of_item) <= 0:
        warnings.append(f"interactions.item is {item.name!r} by its place only: check it")
    item_key, said = _key(item, of_item, "items")
    warnings += said
    query_key, said = (None, []) if query is None else _key(query, of_query, "queries")
    warnings += said
    if query is not None and query.unique_share > 0.8:
        warnings.append(
            f"interactions.{query.name}: almost every event has a query of its own, so vectors of query ids learn "
            "nothing: describe queries by context or by a query file"
        )
    taken = {column.name for column in (query, item, time) if column is not None}
    split = next((c for c in columns if c.name not in taken and holds_only(c, PARTS)), None)
    roles = _Roles(
        item=item.name,
        query=None if query is None else query.name,
        time=None if time is None else time.name,
        time_unit="s" if time is None else time.epoch_unit() or "s",
        taken=_taken([column for column in columns if column.name not in taken]),
        graded=graded_reward([column for column in columns if column.name not in taken]),
        split=None if split is None else split.name,
        has_valid=split is not None and not holds_only(split, ("train", "test")),
        query_is_item=query is not None and _is_item_too(query, item, item_key, of_item),
        item_key=item_key,
        query_key=query_key,
    )
    if time is not None and time.epoch_unit() not in (None, "s"):
        warnings.append(
            f"interactions.{time.name}: numbers like {time.examples[0]} are moments in {time.epoch_unit()} since 1970"
        )
    if time is None:
        warnings.append("interactions: no column of moments was found, so a split can't follow time")
    return roles, warnings


def _of_header(events: TableProfile) -> list[str]:
    """A name that is also a value was probably no name; numbers for names are a first row."""
    if all(re.fullmatch(r"-?[0-9.]+", name) for name in events.columns):
        raise DataError(
            f"interactions: the column names are {', '.join(events.columns)}: that looks like a first row of values, "
            "expected a first line of names, such as user_id, item_id, time: put one before it"
        )
    names = [column.name for column in events.columns.values() if has_own_name(column)]
    return [
        f"interactions: the column name {name!r} occurs among the values: is the header line missing?" for name in names
    ]


def _time_score(column: ColumnProfile) -> int:
    is_exact = column.kind == "moment" or column.epoch_unit() is not None
    return 2 * is_exact + bool({"time", "timestamp", "date", "ts"} & set(words_of(column.name)))


def _can_be_id(column: ColumnProfile) -> bool:
    return column.kind in ("text", "whole") and column.n_distinct > 1 and not is_label(column)


def _item_score(column: ColumnProfile) -> int:
    return _name_score(column, _ITEM_WORDS)


def _query_score(column: ColumnProfile) -> int:
    return _name_score(column, _QUERY_WORDS)


def _name_score(column: ColumnProfile, names: set[str]) -> int:
    words = set(words_of(column.name))
    is_sentence = column.kind == "text" and column.share_matching(r"\s") > 0.5
    return 2 * bool(words & names) + bool(words & _ID_WORDS) - 4 * is_sentence - (column.unique_share > 0.99)


def _ids(
    columns: list[ColumnProfile], of_query: TableProfile | None, of_item: TableProfile | None
) -> tuple[ColumnProfile | None, ColumnProfile | None]:
    """The best pair of query and item column; the earlier ones where several are as good, the query first."""
    item_score = {c.name: _item_score(c) + _key_score(c, of_item) for c in columns}
    query_score = {c.name: _query_score(c) + _key_score(c, of_query) for c in columns}
    pairs = [(query_score[q.name] + item_score[i.name], q, i) for q in columns for i in columns if q is not i]
    if not pairs:
        return None, columns[0] if columns else None
    _, query, item = max(pairs, key=lambda pair: pair[0])
    is_guess = query_score[query.name] <= 0
    is_search = any(_is_search_text(column) for column in columns)
    return (None if is_guess and is_search else query), item


def _is_search_text(column: ColumnProfile) -> bool:
    """Whether it holds what people typed: then a query is that text, and needs no id."""
    return bool(_SEARCH_WORDS & set(words_of(column.name))) and suggest(column).is_text


def _keys_of(table: TableProfile) -> list[ColumnProfile]:
    """Columns that name the rows."""
    complete = (column for column in table.columns.values() if column.n_missing == 0 and column.unique_share > 0.99)
    return [column for column in complete if column.kind in ("text", "whole")]


def _match(column: ColumnProfile, key: ColumnProfile) -> int:
    """How well a column fits a key: numbers lie within others by chance, names do not."""
    is_within = share_within(column, key) > 0.5
    return max(3 * (column.name == key.name), is_within * (3 if column.kind == "text" and key.kind == "text" else 1))


def _key_score(column: ColumnProfile, table: TableProfile | None) -> int:
    return 0 if table is None else max((_match(column, key) for key in _keys_of(table)), default=0)


def _key(column: ColumnProfile, table: TableProfile | None, file: str) -> tuple[str | None, list[str]]:
    """The key of a file where it has another name than the column that points to it, and what to say of it."""
    if table is None:
        return None, []
    keys = _keys_of(table)
    if not keys:
        raise DataError(
            f"{file}: no column has a value of its own in every row, so none can be the key that interactions."
            f"{column.name} points to; the columns are {', '.join(table.columns)}"
        )
    best = max(keys, key=lambda key: _match(column, key))
    within = share_within(column, best)
    said = [f"{file}.{best.name}: it has {within:.0%} of the distinct values of interactions.{column.name}"]
    return (None if best.name == column.name else best.name), said if within < 0.95 else []


def _is_item_too(query: ColumnProfile, item: ColumnProfile, item_key: str | None, of_item: TableProfile | None) -> bool:
    """Whether queries are items: both columns hold names out of the item file, or are called source and target."""
    query_words, item_words = set(words_of(query.name)), set(words_of(item.name))
    if any(pair & query_words and pair & item_words and query_words != item_words for pair in _PAIRS_OF_WORDS):
        return True
    if of_item is None or query.kind != "text" or item.kind != "text":
        return False
    return share_within(query, of_item.columns[item_key or item.name]) > 0.5


def _taken(columns: list[ColumnProfile]) -> str | None:
    """The column that says whether the query took what it was shown."""
    labels = {column.name.lower(): column.name for column in columns if is_label(column)}
    return next((labels[name] for name in _LABEL_NAMES if name in labels), None)


# ---------------------------------------------------------------- features


def _add_events(events: TableProfile, in_files: Mapping[str, Set[str]], roles: _Roles, draft: _Draft) -> None:
    """The columns of the interactions: roles, searched text, attributes that no file has, and what may be context."""
    for column in events.columns.values():
        role = roles.of(column.name)
        if role is not None:
            draft.report("interactions", column, role, _of_role(role, column))
        elif roles.query is None and _is_search_text(column):
            draft.add("context", column, Verdict(is_text=True), "interactions")
        else:
            side, verdict = suggest_of_event(
                column, events.sample, item=roles.item, query=roles.query, label=roles.taken
            )
            if column.name in in_files.get(side, ()):
                verdict = Verdict(warnings=(f"the {side} file has it",))
            draft.add(side, column, verdict, "interactions")
    if roles.time is not None:
        draft.offer(
            "when", Time(column=roles.time, parts=("hour", "weekday"), unit=roles.time_unit), "when it is asked"
        )
        if roles.query is not None:
            draft.offer("history", History(), "what the query chose before")


def _of_role(role: str, column: ColumnProfile) -> tuple[str, ...]:
    if column.missing_share == 0 or role not in ("item id", "query id"):
        return ()
    return (f"{column.missing_share:.1%} missing: ingest leaves such events out and counts them",)


def _add_attributes(
    table: TableProfile, section: Side, roles: _Roles, item: ColumnProfile, is_shared: bool, draft: _Draft
) -> None:
    """The columns of the query or item file: its key, and a feature of each other column; texts are one feature."""
    file = "items" if section == "item" or is_shared else "queries"
    key = (roles.item_key or roles.item) if section == "item" else (roles.query_key or roles.query or "")
    names = (key,) if is_name(table.columns[key]) else ()
    texts: list[str] = []
    for column in table.columns.values():
        if column.name == key:
            draft.found.append(_Suggestion(section=section, name=key, feature=Id(column=key)))
            draft.report(file, column, f"{section} id")
            continue
        verdict = suggest_of_item(column) if section == "item" else suggest_of_query(column, item)
        texts += [column.name] if verdict.is_text else []
        draft.add(section, column, verdict, file, is_shared=is_shared)
    if texts or names:
        feature = Text(columns=tuple(texts), name_columns=names, table="text" if is_shared else None)
        draft.found.append(_Suggestion(section=section, name="text", feature=feature))


def _n_values(column: ColumnProfile) -> str:
    return f"{'at least ' if column.is_capped else ''}{column.n_distinct:,} values"


def _role_of(section: str, verdict: Verdict) -> str:
    kind = "Text" if verdict.is_text else type(verdict.feature).__name__
    if verdict.feature is None and not verdict.is_text:
        return "left out"
    return f"{section}: {kind}" + ("" if verdict.is_active else "?")


def _of_memory(
    found: list[_Suggestion], events: TableProfile, of_query: TableProfile | None, of_item: TableProfile | None
) -> list[str]:
    """Tables that take more than a quarter of this machine's memory; training needs twice a table."""
    available = _memory_bytes()
    if available is None:
        return []
    said = []
    for suggestion in found:
        feature = suggestion.feature
        table = {"query": of_query, "item": of_item}.get(suggestion.section) or events
        if isinstance(feature, (Id, Categorical, Categories)) and feature.column in table.columns:
            column = table.columns[feature.column]
            size = column.n_distinct * _DIM * 4
            if size > available / 4:
                said.append(
                    f"{suggestion.section}.{suggestion.name}: {_n_values(column)} take {size / 2**30:.1f} GiB as "
                    f"vectors of {_DIM} numbers, of {available / 2**30:.1f} GiB memory: set hash_buckets, or min_count"
                )
    return said


def _memory_bytes() -> int | None:
    """Memory of this machine, None where it can't be told."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


# ---------------------------------------------------------------- the run as text

_SETTINGS = """[towers]
dim = {dim}  # width of every embedding table
# query = {{ widths = [128, 64] }}  # layers on top of the summed features; none: matrix factorisation
# item = {{ widths = [128, 64], id_dropout = 0.2 }}

[negatives]
kind = "Mixture"
parts = [{{ kind = "InBatch" }}, {{ kind = "Uniform", n = 1024 }}]
{shown}
[loss]
kind = "SampledSoftmax"
temperature = 0.05  # try 0.03 to 0.2
correction = "negatives"

[training]
batch_of = "pairs"
batch_size = {batch_size}
epochs = 10.0
metric = "recall@{k}"  # what the best state is chosen by, on the validation events

[training.tables]  # how embeddings move
kind = "RowwiseAdagrad"
lr = 0.05

[evaluation]
k = [10, 100]
filter_seen = true  # false where items are taken again and again
"""


_SHOWN = '# { kind = "Impressions", n = 64 }  # a third part: what the query was shown and did not take\n'


def _toml(roles: _Roles, found: list[_Suggestion], warnings: list[str], paths: _Paths) -> str:
    said = [f"#   {_plain(warning)}" for warning in warnings]
    lines = [
        "# A first run, written by `twotower init`. Read it, edit it, then: twotower ingest, audit, train.",
        *(["# Check:", *said] if said else []),
        "",
        *_data_lines(paths),
        *_interactions_lines(roles),
        *_section_lines("query", "what describes a query wherever it comes up", found),
        *_section_lines("context", "what surrounds one event: use only what is known when the query comes", found),
        *_section_lines("item", "what describes an item", found),
        *_split_lines(roles),
        "",
    ]
    return "\n".join(lines)


def _settings(events: TableProfile, roles: _Roles) -> str:
    """Settings that fit the size of the data."""
    least, most = _BATCH
    batch_size = min(max(1 << max(events.n // _STEPS, 1).bit_length() - 1, least), most)
    k = 10 if events.columns[roles.item].n_distinct < _FEW_ITEMS else 100
    shown = "" if roles.taken is None else _SHOWN
    return _SETTINGS.format(dim=_DIM, batch_size=batch_size, k=k, shown=shown)


def _data_lines(paths: _Paths) -> list[str]:
    if not paths.interactions:
        return ["# There is no [data]: the interactions came as a frame. Ingest them from Python.", ""]
    lines = ["[data]  # paths are relative to this file", f"interactions = {_value(paths.interactions)}"]
    lines += [f"queries = {_value(paths.queries)}"] if paths.queries else []
    lines += [f"items = {_value(paths.items)}"] if paths.items else []
    return [*lines, 'store = "store"', ""]


def _interactions_lines(roles: _Roles) -> list[str]:
    keys = [(name, value) for name, value in (("query_key", roles.query_key), ("item_key", roles.item_key)) if value]
    lines = ["[schema]  # keys of the files where they have other names than in the interactions"] if keys else []
    lines += [*(f"{name} = {_value(value)}" for name, value in keys), ""] if keys else []
    lines += ["[schema.interactions]", f"item = {_value(roles.item)}"]
    lines += [f"query = {_value(roles.query)}"] if roles.query is not None else []
    lines += [f"time = {_value(roles.time)}"] if roles.time is not None else []
    lines += [f"time_unit = {_value(roles.time_unit)}"] if roles.time_unit != "s" else []
    lines += [f"taken = {_value(roles.taken)}  # 0: shown, but not chosen"] if roles.taken is not None else []
    lines += [f"# weight = {_inline_table(roles.graded)}  # graded: {_GRADED}"] if roles.graded is not None else []
    lines += [f"split = {_value(roles.split)}"] if roles.split is not None else []
    lines += ["query_is_item = true"] if roles.query_is_item else []
    return [*lines, ""]


def _section_lines(section: str, what: str, found: list[_Suggestion]) -> list[str]:
    chosen = [suggestion for suggestion in found if suggestion.section == section]
    if not chosen:
        return []
    return [f"[schema.{section}]  # {what}", *map(_feature_line, chosen), ""]


def _feature_line(suggestion: _Suggestion) -> str:
    feature = suggestion.feature
    name = suggestion.name if re.fullmatch(r"[A-Za-z0-9_-]+", suggestion.name) else _value(suggestion.name)
    line = f"{name} = {_inline_table(feature, kind=True)}" + (
        f"  # {_plain(suggestion.note)}" if suggestion.note else ""
    )
    return line if suggestion.is_active else f"# {line}"


def _split_lines(roles: _Roles) -> list[str]:
    lines = ["[split]"]
    if roles.split is not None:
        lines.append('kind = "GivenSplit"')
        lines += [] if roles.has_valid else ["valid = 0.1  # the data brings no validation events: cut from training"]
    elif roles.time is not None:
        lines += ['kind = "TimeSplit"  # the last events are held out', "valid = 0.1", "test = 0.1"]
    else:
        lines += ['kind = "RandomSplit"  # there is no time to split by', "valid = 0.1", "test = 0.1"]
    return [*lines, ""]


def _inline_table(settings: Feature | Reward, *, kind: bool = False) -> str:
    """The settings that are not the default."""
    chosen = {"kind": type(settings).__name__} if kind else {}
    chosen |= {
        field.name: getattr(settings, field.name)
        for field in dataclasses.fields(settings)
        if getattr(settings, field.name) != field.default
    }
    return "{ " + ", ".join(f"{name} = {_value(value)}" for name, value in chosen.items()) + " }"


def _value(value: object) -> str:
    """A setting as TOML."""
    if isinstance(value, (tuple, list)):
        return "[" + ", ".join(map(_value, value)) + "]"
    if isinstance(value, str):  # a JSON text is a TOML text, but for DEL
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return json.dumps(value)


def _plain(note: str) -> str:
    """Without characters that a TOML comment can't hold."""
    return "".join(character if character.isprintable() else " " for character in note)
