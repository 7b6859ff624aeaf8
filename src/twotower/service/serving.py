"""What a worker serves at this moment: a bundle an arm, the changes of items upon them, and how both are replaced."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import orjson

from ..bundle import Bundle, is_bundle, versions_of
from ..bundle.served_tower import ServedTower
from ..errors import ConfigError, DataError, TwoTowerError
from ..experiment import Assignment
from .engine import Engine, NewItem, checked_id
from .journal import Journal, Record
from .metrics import Metrics

FOLLOW_S = 0.1
"""After so long at most a worker starts to take up what another one was told."""
WATCH_S = 1.0
"""How often the folder of versions is looked at."""
_AT_ONCE = 512
"""Items encoded at a time."""
ORDERS = "serve.json"
"""What all workers are to serve, in the folder of orders."""
_COMPACT_BYTES = 1 << 20

Columns = Mapping[str, object] | None
"""Raw columns of an item that came or changed; None of one that went."""
Log = Callable[..., None]


def log_line(event: str, **facts: object) -> None:
    """One line of JSON on stderr."""
    moment = time.time()
    line = json.dumps({"time": round(moment, 3), "event": event, "pid": os.getpid(), **facts}, default=str)
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """What requests are answered with. Never changed but for its engines' items: a swap makes another one."""

    engines: Mapping[str, Engine]
    """By arm; one, named "", without an experiment."""
    assignment: Assignment | None = None

    @property
    def first(self) -> Engine:
        """The only engine, or that of the first arm, which also has those who take no part."""
        return next(iter(self.engines.values()))

    def engine_of(self, unit: object) -> tuple[Engine, str | None]:
        """The engine of a unit, and its arm where it takes part in an experiment."""
        arm = None if self.assignment is None else self.assignment.arm_of(unit)
        return (self.first, None) if arm is None else (self.engines[arm], arm)


def newest(folder: Path) -> Path:
    """The whole bundle of the greatest name in a folder of versions, or the folder itself, if it is a bundle.

    Raises ConfigError where there is none.
    """
    if is_bundle(folder):
        return folder
    versions = versions_of(folder)
    if not versions:
        raise ConfigError(f"{folder}: holds no bundle and no folder with one: make one with twotower export")
    return versions[-1]


def shared_between_workers(bundle: Bundle) -> Bundle:
    """The same bundle for a process that was forked: maps and look-ups stay shared, sessions are its own."""
    return replace(bundle, query_tower=ServedTower(bundle.folder / "query.onnx"))


def prepared(bundle: Bundle) -> Bundle:
    """The same, with everything made that is made when first used and can be shared."""
    bundle.items.row_of_text("")
    bundle.items.cells  # noqa: B018
    for vocabulary in (bundle.queries, *bundle.encoders.vocabularies.values()):
        if vocabulary is not None:
            vocabulary.row_of_text("")
    return bundle


class Served:
    """A worker's hold on all that. ``now`` is read once a request; everything else happens beside the requests."""

    def __init__(
        self,
        serving: Serving,
        *,
        metrics: Metrics,
        orders: Path | None = None,
        state: Path | None = None,
        watch: Path | None = None,
        log: Log = log_line,
    ) -> None:
        """``orders`` is a folder where the workers of a service agree on bundles; changes of items are kept in
        ``state``, for other services too, and refused without it."""
        self.now = serving
        self.metrics, self._orders, self._watch, self._log = metrics, orders, watch, log
        self._changing = threading.RLock()
        self._loading, self._reloading = threading.Lock(), threading.Lock()
        self._changed: dict[str, Columns] = {}
        self._since: dict[str, Columns] | None = None
        self._order = 0
        self._last_version = _version(serving.first.bundle.folder)
        self._ended = threading.Event()
        self._journal = None if state is None else Journal(state)
        self.catch_up()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to follow other workers and the folder of versions."""
        if self._orders is not None or self._journal is not None or self._watch is not None:
            self._thread = threading.Thread(target=self._follow, name="follow", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """End that."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        if self._journal is not None:
            with self._changing:
                self._journal.close()

    @property
    def n_changed(self) -> int:
        """Items that differ from those of the bundle, of the arm where they are most."""
        return max(engine.n_changed for engine in self.now.engines.values())

    # ------------------------------------------------------------ items

    def upsert(self, items: Sequence[Mapping[str, Any]]) -> int:
        """Items, as ``{"item": id, "columns": {...}}``, come or change: found at once here, soon by other workers, and
        again after a restart.

        Raises DataError for what can't be encoded, ConfigError without a state folder. All of them are made or none.
        """
        wanted = {one.item: one for one in (_new_item(given, at) for at, given in enumerate(items))}
        each = list(wanted.values())
        record = {"upsert": [{"item": one.item, "columns": one.columns} for one in each]}
        with self._changing:
            made = [(engine, *engine.encode_items(each)) for engine in self.now.engines.values()]
            self._write(record)
            for engine, vector_nD, attributes in made:
                engine.upsert(each, vector_nD, attributes)
            self._note({one.item: one.columns for one in each})
        self.metrics.add("items_upserted", len(each))
        return len(each)

    def delete(self, items: Sequence[object]) -> int:
        """Items go; how many of them there were."""
        texts = [checked_id(item, at) for at, item in enumerate(items)]
        with self._changing:
            self._write({"delete": texts})
            n = max(engine.delete(texts) for engine in self.now.engines.values())
            self._note(dict.fromkeys(texts))
        self.metrics.add("items_deleted", n)
        return n

    def _write(self, record: Record) -> None:
        if self._journal is None:
            raise ConfigError("items: the service was started without a folder to keep changes in (--state FOLDER)")
        with self._journal.locked():
            self._apply(self._journal.read())
            self._journal.append([record])

    def _note(self, changed: Mapping[str, Columns]) -> None:
        self._changed.update(changed)
        if self._since is not None:
            self._since.update(changed)

    def catch_up(self) -> None:
        """Take up what other workers, or those before, were told."""
        if self._journal is not None:
            with self._changing:
                self._apply(self._journal.read())

    def _apply(self, records: Iterable[Record]) -> None:
        changed = _last_of_each(records)
        if changed:
            for engine in self.now.engines.values():
                self._put(engine, changed)
            self._note(changed)

    def _put(self, engine: Engine, changed: Mapping[str, Columns]) -> None:
        """Changes upon an engine, but for what its bundle has already. What can't be encoded, since the bundle is
        another, is told and counted."""
        gone = [item for item, columns in changed.items() if columns is None]
        if gone:
            engine.delete(gone)
        each = [NewItem(item=item, columns=columns) for item, columns in changed.items() if columns is not None]
        for start in range(0, len(each), _AT_ONCE):
            self._put_some(engine, each[start : start + _AT_ONCE])

    def _put_some(self, engine: Engine, items: Sequence[NewItem]) -> None:
        try:
            engine.upsert(items, *engine.encode_items(items))
        except DataError as error:
            if len(items) > 1:
                for item in items:
                    self._put_some(engine, [item])
                return
            self.metrics.add("items_not_carried_over")
            self._log("item not carried over", item=items[0].item, bundle=engine.bundle.fingerprint, reason=str(error))

    # ------------------------------------------------------------ bundles

    def reload(self, folder: Path, arm: str = "") -> str:
        """Serve another bundle, in all workers; returns its fingerprint. Requests under way end on the old one.

        Raises what ``Bundle.open`` raises, and the old one is served on; ConfigError for an arm that is not there.
        """
        if arm not in self.now.engines:
            known = ", ".join(filter(None, self.now.engines)) or "none: leave it out"
            raise ConfigError(f"reload: found the arm {arm!r}, expected {known}")
        with self._reloading:  # orders are given in the order of swaps
            fingerprint = self._swap(folder, arm)
            if self._orders is not None:
                self._give_order(self._orders, folder, arm, fingerprint)
        return fingerprint

    def _give_order(self, at: Path, folder: Path, arm: str, fingerprint: str) -> None:
        """Let the other workers serve it too; of two orders at once all take up the later one."""
        with open(at / f"{ORDERS}.lock", "wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            orders = self._given_orders()
            before = int(orders.get("order", 0))
            bundles = {**orders.get("bundles", {}), arm: [str(folder.resolve()), fingerprint]}
            told = {"order": before + 1, "bundles": bundles, "last_version": self._last_version}
            _write_whole(at / ORDERS, orjson.dumps(told))
            if self._order == before:  # else what others ordered meanwhile is still to be obeyed
                self._order = before + 1

    def _swap(self, folder: Path, arm: str) -> str:
        with self._loading:
            try:
                engine = Engine(prepared(Bundle.open(folder, verify=True)), arm or None)
                engine.warm()
            except TwoTowerError as error:
                self.metrics.add("swaps_refused")
                self._log("bundle refused", path=folder, reason=str(error))
                raise
            with self._changing:
                self._since, before = {}, dict(self._changed)
            try:
                self._put(engine, before)
                with self._changing:
                    self._put(engine, self._since)
                    self.now = replace(self.now, engines={**self.now.engines, arm: engine})
            finally:
                self._since = None
        self.metrics.add("swaps")
        self._log("bundle served", path=folder, bundle=engine.bundle.fingerprint, arm=arm, items=engine.n_items)
        return engine.bundle.fingerprint

    def _given_orders(self) -> dict[str, Any]:
        assert self._orders is not None
        try:
            found = orjson.loads((self._orders / ORDERS).read_bytes())
            return found if isinstance(found, dict) else {}
        except (OSError, ValueError):
            return {}

    # ------------------------------------------------------------ following

    def _follow(self) -> None:
        looked = 0.0
        while not self._ended.wait(FOLLOW_S):
            try:
                if self._journal is not None and self._journal.has_news():
                    self.catch_up()
                if self._orders is not None:
                    self._obey()
                if self._watch is not None and time.monotonic() - looked >= WATCH_S:
                    looked = time.monotonic()
                    self._look_for_versions(self._watch)
            except Exception as error:  # whatever it is: who does not follow answers with what is outdated
                self._log("following failed", reason=repr(error))
                self._ended.wait(WATCH_S)

    def _obey(self) -> None:
        """Serve what another worker was told to. What fails is logged, and tried again."""
        orders = self._given_orders()
        order, failed = int(orders.get("order", 0)), False
        if order <= self._order:
            return
        name, written = orders["last_version"]
        self._last_version = max(self._last_version, (name, written))
        for arm, (folder, fingerprint) in orders["bundles"].items():
            engine = self.now.engines.get(arm)
            if engine is not None and engine.bundle.fingerprint != fingerprint:
                try:
                    self._swap(Path(folder), arm)
                except TwoTowerError:
                    failed = True
        if failed:
            self._ended.wait(WATCH_S)
        else:
            self._order = max(self._order, order)

    def _look_for_versions(self, watch: Path) -> None:
        """Serve a version that appeared since the last look, once: one that was refused is not tried again until it is
        written anew, and where an older one was ordered since, that stays."""
        versions = versions_of(watch)
        if not versions:
            return
        version = _version(versions[-1])
        if version > self._last_version:
            self._last_version = version
            with contextlib.suppress(TwoTowerError):  # it is logged
                self._swap(versions[-1], next(iter(self.now.engines)))


def _version(folder: Path) -> tuple[str, float]:
    """A bundle's name, and when the last of its files came to lie there."""
    return folder.name, max(path.stat().st_ctime for path in folder.rglob("*") if path.is_file())


def _last_of_each(records: Iterable[Record]) -> dict[str, Columns]:
    changed: dict[str, Columns] = {}
    for record in records:
        for one in record.get("upsert", ()):
            changed[one["item"]] = one["columns"]
        for item in record.get("delete", ()):
            changed[item] = None
    return changed


def compact(journal: Journal) -> None:
    """Write a journal anew, with the last change of each item, where most of it is outdated."""
    with journal.locked():
        changed = _last_of_each(journal.read())
        records: list[Record] = []
        gone = [item for item, columns in changed.items() if columns is None]
        if gone:
            records.append({"delete": gone})
        here = [{"item": item, "columns": columns} for item, columns in changed.items() if columns is not None]
        records += [{"upsert": here[at : at + _AT_ONCE]} for at in range(0, len(here), _AT_ONCE)]
        size = sum(len(orjson.dumps(record)) for record in records)
        if journal.n_bytes > max(_COMPACT_BYTES, 2 * size):
            before = journal.n_bytes
            journal.compact(records)
            log_line("journal compacted", items=len(changed), bytes_before=before, bytes=journal.n_bytes)


def _new_item(given: object, at: int) -> NewItem:
    if type(given) is not dict or not given.keys() <= {"item", "columns"} or "item" not in given:
        raise DataError(f'items: number {at} is {given!r:.80}, expected {{"item": id, "columns": {{...}}}}')
    columns = given.get("columns", {})
    if type(columns) is not dict:
        raise DataError(f"items: columns of number {at} are {columns!r:.80}, expected an object")
    return NewItem(item=checked_id(given["item"], at), columns=columns)


def _write_whole(path: Path, data: bytes) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_bytes(data)
    os.replace(partial, path)
