"""A trained model goes on: what arrived joins its store, is measured, trained on, and the result stays or not.

    extend          the store grows; every id that stays keeps its row
    carry over      the model's state on the grown store; a new row starts from what it was served as
    measure         what arrived, by the model that has not seen it
    train           on what no training has seen, with some of what one has
    keep or not     by what is held out: a model that got worse does not stay, what arrived does
    change over     in one rename, as a checkpoint names its store

Killed at any moment, the same command again ends as if nothing had happened: until the rename the model is yesterday's,
after it the store knows what arrived.
"""

from __future__ import annotations

import base64
import json
import math
import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..config import dump_run
from ..data.arrivals import held_out_for_good, parts_of_arrivals
from ..data.changes import changes
from ..data.extend import extend
from ..data.held_out import PARTS, HeldOut, held_out
from ..data.ingest import IngestReport
from ..data.lock import locked
from ..data.readers import Source
from ..data.splits import SHOWN, Parts
from ..data.store import WAITING, Store, read_manifest
from ..data.streams import Position, Stream, follow
from ..errors import ConfigError, DataError, TwoTowerError
from ..evaluation import MODEL
from ..evaluation.drift import Drift, drift
from ..evaluation.frequencies import frequency_report
from ..frequency import StreamingFrequency
from . import checkpoint
from .carry import carry_over
from .days import Day, Days, days_of
from .loop import Fit, Loop, Start, settings_of
from .recorder import Recorder
from .retriever import BEST, LAST, STORES, open_model
from .step import Model

_ERRORS = 2.0
"""Standard errors by which a model must be worse for that to be no chance."""
WORK = "update"
"""Folder in that of a model: an update on its way."""
_OF = "update"
"""In the states of an update on its way: which one it is."""
_HELD_OUT = "held_out"
"""In the state of a model that no update trained yet but that has a store of its own: which events of the first ingest
its training was not given."""


@dataclass(frozen=True, kw_only=True)
class Updated:
    """What an update did."""

    folder: Path
    day: Day | None
    """None where nothing new arrived, and nothing was done."""
    report: IngestReport
    drift: Drift | None
    """None where nothing arrived to compare, or nothing was there to compare it with."""
    metric: str

    def render(self) -> str:
        """For people: what arrived, what shifted, what became of the model."""
        if self.day is None:
            return f"nothing new arrived: the model is as it was: {self.folder}"
        day, found = self.day, []
        if self.drift is not None and self.drift.shifted:
            found += [f"shifted: {line.in_words()}" for line in self.drift.shifted]
        if day.served is not None:
            found += [f"{self.metric} {day.served:.4f} on what arrived, before training on it"]
        verdict = "kept" if day.kept else "not kept, the model stays as it was and trains on this with the next update"
        if day.before is not None and day.after is not None:
            found += [f"{self.metric} {day.before:.4f} before, {day.after:.4f} after, on what is held out: {verdict}"]
        head = (
            f"update {day.number}: {day.n_events:,} events, {day.new_queries:,} queries and {day.new_items:,} items new"
        )
        return "\n".join([head, *found, f"trained {day.epochs:.3g} epochs in {day.seconds:.1f} s: {self.folder}"])


def update(
    model: str | Path,
    *,
    interactions: Source | None = None,
    queries: Source | None = None,
    items: Source | None = None,
    set: Sequence[str] = (),
    name: str = "",
    positions: dict[str, Position] | None = None,
    quiet: bool = False,
) -> Updated:
    """Go on with a trained model on what arrived: files, folders or frames as ``ingest`` reads them.

    New queries, items and values of features get rows of their own; all that was learned of others stays as it is until
    it is trained on (``carry_over``). The settings are those of the model's run.toml under ``[update]`` (``Update``),
    overridden by ``set``. What repeats events of the store is counted and does nothing, so a day may be given twice.

    The first update trains on what the run's split held out, too. Events that arrive are held out for good by chance
    (``update.valid``), and the metric of those of the last days, before and after, decides whether the trained model
    stays. Where it does not, the old one goes on with the grown store, and what arrived is trained on with what arrives
    next.

    Args:
        model: the folder that ``train`` wrote.
        interactions: the events that arrived.
        queries: new queries, and those whose attributes changed.
        items: the same of items.
        set: settings to change for this update, such as ``update.epochs=2``.
        name: of what arrived, for the history.
        positions: by source, where to go on after this; kept in the checkpoint.
        quiet: print nothing.

    Raises:
        ArtifactError: the folder holds no model, another update is going on there, or it can't be written.
        ConfigError: a setting is wrong, or the run's parts can't go on with a grown catalogue.
        DataError: what arrived can't be used.
    """
    with _alone(Path(model)) as folder:
        return _Update(folder, set, quiet).run(interactions, queries, items, name, positions or {})


def update_from(
    model: str | Path,
    stream: Stream,
    *,
    source: str,
    queries: Source | None = None,
    items: Source | None = None,
    every_s: float | None = None,
    stop: Callable[[], bool] = lambda: False,
    set: Sequence[str] = (),
    quiet: bool = False,
) -> Iterator[Updated]:
    """An update for all that a stream brings, from where the model's last one from it ended.

    The position is saved with the model, so each row is trained on exactly once, whenever it is killed and started
    again.

    Args:
        model: the folder that ``train`` wrote.
        stream: the source, such as ``Folder("days")``.
        source: its name, by which its position is remembered.
        queries: files of query attributes, read anew for every update: a stream has interactions alone, and where a run
            has such files, those of queries that are in none are left out.
        items: the same of items.
        every_s: look again after so many seconds, until ``stop()``; without it, end once caught up.
        stop: asked between updates.
        set: as for ``update``.
        quiet: as for ``update``.
    """
    _, _, state = open_model(Path(model), BEST)
    position = state.get("positions", {}).get(source)
    arrivals = stream.since(position) if every_s is None else follow(stream, position, every_s=every_s, stop=stop)
    for arrival in arrivals:
        positions = {source: arrival.position}
        yield update(
            model,
            interactions=arrival.interactions,
            queries=queries,
            items=items,
            set=set,
            name=arrival.name,
            positions=positions,
            quiet=quiet,
        )
        if stop():
            return


def history(model: str | Path) -> Days:
    """The updates of a model, in order. Raises ArtifactError where the folder holds none."""
    run, _, state = open_model(Path(model), BEST)
    return days_of(state.get("days", []), run.training.metric)


@dataclass(frozen=True, kw_only=True)
class Forgotten:
    """What ``forget`` did."""

    folder: Path
    n_queries: int
    n_events: int
    elsewhere: tuple[str, ...]
    """Where the same data may still lie: the first store, the files it was made of, and sources that were gone through.
    Files that updates were given one by one are not remembered."""

    def render(self) -> str:
        """For people."""
        return (
            f"{self.n_queries:,} queries with {self.n_events:,} events are gone from {self.folder}. Not touched, and "
            f"yours to clear: {', '.join(self.elsewhere)}, and other files that updates were given. Vectors of items "
            "were learned with their events among others; train anew for a model that never saw them"
        )


def forget(model: str | Path, queries: Sequence[object]) -> Forgotten:
    """Delete queries from a model: their ids, attributes, events, histories, known items, vectors and what optimisers,
    samplers and losses remember of them. Their rows are used again.

    After it no file in the model's folder holds an id of theirs, and every row that was theirs is as if it had never
    been met. The files that were ingested and the first store lie elsewhere: they are named, not touched.

    Raises:
        DataError: an id is not known; then nothing is deleted.
        ArtifactError: the folder holds no model, another update is going on there, or it can't be written.
    """
    with _alone(Path(model)) as folder:
        shutil.rmtree(folder / WORK, ignore_errors=True)  # an update that was cut off remembers them, too
        return _Update(folder, (), quiet=True).forget(queries)


class _Update:
    """One update of the model in a folder."""

    def __init__(self, folder: Path, set: Sequence[str], quiet: bool) -> None:
        self.folder, self.quiet = folder, quiet
        self.run_, self.base, self.state = open_model(folder, BEST, set)
        self.settings = self.run_.update
        self.number = self.base.n_updates + 1
        self.metric = self.run_.training.metric
        if self.metric.startswith("coverage"):
            raise ConfigError(
                f"training.metric: {self.metric} has no value a query, by which an update could tell chance from loss: "
                "choose another, such as --set training.metric=recall@10"
            )
        self.recorder = Recorder(None, quiet=quiet)
        self._tidy(self.base)

    def run(
        self,
        interactions: Source | None,
        queries: Source | None,
        items: Source | None,
        name: str,
        positions: dict[str, Position],
    ) -> Updated:
        """From what arrived to a model that is changed over."""
        report = self._grow(
            interactions=interactions, queries=queries, items=items, evict_idle_days=self.settings.evict_idle_days
        )
        if not self.quiet:
            print(report.render())
        if self._is_nothing(report, are_listed=queries is not None or items is not None):
            self._stay(positions)
            return Updated(folder=self.folder, day=None, report=report, drift=None, metric=self.metric)
        with settings_of(self.run_.training, self.state["products"]) as self.products:
            day, shifted, loop = self._trained(report, name)
        self._change_over(loop, self._state_after(day, positions))
        return Updated(folder=self.folder, day=day, report=report, drift=shifted, metric=self.metric)

    def forget(self, queries: Sequence[object]) -> Forgotten:
        """The model without some queries."""
        report = self._grow(forget=queries)
        assert report.growth is not None
        with settings_of(self.run_.training, self.state["products"]):
            part_E = self._parts()
            part_E[self._fresh()] = PARTS["test"]  # the model stays one that does not know them
            loop = self._loop(np.flatnonzero(part_E == PARTS["train"]), part_E)
            self._fill(loop.model, loop.stepper.optimiser)
        self._change_over(loop, {**self.state, **self._first_held_out(), "store": self._relative(self.store)})
        assert self.run_.data is not None
        data = self.run_.data
        raw = [*data.interactions, *data.queries, *data.valid, *data.test]
        return Forgotten(
            folder=self.folder,
            n_queries=report.growth.forgotten_queries,
            n_events=report.growth.forgotten_events,
            elsewhere=(data.store, *raw, *self.state.get("positions", {})),
        )

    def _grow(self, **arrived: Any) -> IngestReport:
        """The new store, beside that of the model."""
        place = self.folder / STORES / f"{self.number:06d}"
        try:
            report = extend(self.base, out=place, overwrite=True, **arrived)
            self.store = Store.open(place)
            self.changes = changes(self.base, self.store)
        except TwoTowerError:
            self._tidy(self.base)
            raise
        return report

    def _is_nothing(self, report: IngestReport, *, are_listed: bool) -> bool:
        """Whether events, ids and what is known of them are as they were; values that wait are not counted again with
        events that repeat."""
        assert report.growth is not None
        if not report.growth.is_nothing:
            return False
        before, after = ({**_files(store), WAITING: None} for store in (self.base, self.store))
        return not are_listed or before == after

    # ------------------------------------------------------------ what is trained on

    def _parts(self) -> Parts:
        return parts_of_arrivals(self.store, share=self.settings.valid, days=self.settings.valid_days)

    def _fresh(self) -> NDArray[np.bool_]:
        """[E] taken events that no training has seen, those held out for good among them."""
        arrived = np.asarray(self.store.arrived)
        fresh = arrived > self.state.get("trained", 0)
        if "trained" not in self.state:
            fresh[arrived == 0] = self._held_out_at_first()
        return np.asarray(fresh & _is_taken(self.store))

    def _held_out_at_first(self) -> NDArray[np.bool_]:
        """Of the first ingest's events that are still there, in order: which the first training was not given."""
        base = self.base
        if _HELD_OUT in self.state:
            held_out = _unpacked(self.state[_HELD_OUT])
        else:
            part_E, refitted = self.run_.split.assign(base), self.run_.training.refit
            held_out = ~((part_E == PARTS["train"]) | ((part_E == PARTS["valid"]) & refitted))
        stays = ~self.changes.item_M.numpy()[base.item_row]
        if base.n_queries:
            stays &= ~self.changes.query_Q.numpy()[base.query_row] | (np.asarray(base.query_row) < 0)
        return np.asarray(held_out[stays[np.asarray(base.arrived) == 0]], bool)

    def _first_held_out(self) -> dict[str, str]:
        """For the state of a model that has not been trained on it yet, since the split can't tell any more once events
        went."""
        return {} if "trained" in self.state else {_HELD_OUT: _packed(self._held_out_at_first())}

    def _replayed(self, n: int, old: NDArray[np.int64]) -> NDArray[np.int64]:
        """Some of the events that were trained on before, for n new ones."""
        rng = np.random.default_rng((self.run_.training.seed, self.number))
        return rng.choice(old, min(round(self.settings.replay * n), len(old)), replace=False)

    # ------------------------------------------------------------ training

    def _trained(self, report: IngestReport, name: str) -> tuple[Day, Drift | None, Loop]:
        """What there is to say of the update, and a loop with the model that stays."""
        store, fresh = self.store, self._fresh()
        part_E = self._parts()
        is_trained_on = (part_E == PARTS["train"]) & ~held_out_for_good(store, self.settings.valid)
        news, old = np.flatnonzero(is_trained_on & fresh), np.flatnonzero(is_trained_on & ~fresh)
        arrived = np.flatnonzero(_is_taken(store) & (np.asarray(store.arrived) == self.number))
        events = np.sort(np.concatenate([news, self._replayed(len(news), old)])) if len(news) else old
        loop = self._loop(events, part_E)
        self._fill(loop.model, loop.stepper.optimiser)
        shifted = drift(store, old, arrived, towers=loop.model.towers) if len(old) and len(arrived) else None
        served_Q = self._measured(loop, self._asked(arrived))
        error = self._frequency_error(loop, arrived)
        before_Q = self._measured(loop, loop.questions)
        fit = self._fit(loop) if len(news) else None
        after_Q = None if fit is None else self._measured(loop, loop.questions)
        kept = before_Q is None or after_Q is None or not is_below(after_Q, self.settings.min_recall_ratio * before_Q)
        if not kept:
            loop = self._loop(events, part_E)
            self._fill(loop.model, loop.stepper.optimiser)
        growth, dates = report.growth, _dates(store, arrived)
        assert growth is not None
        day = Day(
            number=self.number,
            name=name,
            first=dates[0],
            last=dates[1],
            n_events=len(arrived),
            n_repeats=growth.n_repeats,
            n_held_out=int((~is_trained_on[arrived]).sum()),
            n_trained=len(news),
            new_queries=growth.new_queries,
            new_items=growth.new_items,
            evicted_items=growth.evicted_items,
            served=_mean(served_Q),
            before=_mean(before_Q),
            after=_mean(after_Q),
            kept=kept,
            epochs=0.0 if fit is None else fit.best_epoch,
            steps=0 if fit is None else fit.steps,
            seconds=0.0 if fit is None else fit.seconds,
            shifted=() if shifted is None else tuple(f"{line.of} {line.what}" for line in shifted.shifted),
            frequency_error=error,
        )
        return day, shifted, loop

    def _loop(self, events: NDArray[np.int64], part_E: Parts) -> Loop:
        """A stretch of training on these events, knowing all others that are not held out now."""
        run, settings = self.run_, self.settings
        training = replace(
            run.training,
            epochs=settings.epochs,
            patience=settings.patience,
            schedule="constant",
            warmup_steps=0,
            validate_every=1.0,
        )
        questions = None
        if (part_E == PARTS["valid"]).any():
            questions = self._questions(part_E)
        known = np.flatnonzero(part_E == PARTS["train"])
        shown = np.flatnonzero(part_E == PARTS["train"] + SHOWN)
        start = Start(fill=self._fill, step=self.state["step"], rate=settings.rate)
        return Loop(
            replace(run, training=training),
            self.store,
            events,
            questions,
            self.recorder,
            self.folder / WORK,
            known=known,
            shown=shown,
            start=start,
            about={_OF: self._signature()},
        )

    def _fill(self, model: Model, optimiser: torch.optim.Optimizer | None) -> None:
        carry_over(self.folder / BEST, model, self.changes, optimiser)

    def _is_begun(self) -> bool:
        """Whether there is a training of this update to go on with; what another update left is removed."""
        work = self.folder / WORK
        state, _ = checkpoint.recover(work / LAST)
        if state is not None and state.get(_OF) == self._signature():
            return True
        shutil.rmtree(work, ignore_errors=True)
        return False

    def _fit(self, loop: Loop) -> Fit:
        """Train; the model of the loop is then the best validated one."""
        work = self.folder / WORK
        fit = loop.run_to(self.settings.epochs, done=work / LAST if self._is_begun() else None)
        checkpoint.load(work / BEST, loop.model, loop.stepper.optimiser)
        return fit

    def _signature(self) -> int:
        """Of what the update trains on, and how: what a training that was cut off goes on with must be the same."""
        return zlib.crc32((json.dumps(_files(self.store), sort_keys=True) + dump_run(self.run_)).encode())

    # ------------------------------------------------------------ measuring

    def _asked(self, arrived: NDArray[np.int64]) -> HeldOut | None:
        """What arrived, as questions to a model that knows what was there before."""
        part_E = np.full(self.store.n_events, PARTS["train"], np.int8)
        part_E[arrived] = PARTS["valid"]
        part_E[~_is_taken(self.store)] += SHOWN
        return self._questions(part_E)

    def _questions(self, part_E: Parts) -> HeldOut | None:
        """None where nothing is left to ask."""
        try:
            return held_out(self.store, part_E, "valid", filter_seen=self.run_.evaluation.filter_seen)
        except DataError:
            return None

    def _measured(self, loop: Loop, questions: HeldOut | None) -> Tensor | None:
        """[Q] the metric of each question; nan for those left out."""
        return None if questions is None else loop.measure(questions).per_query[MODEL][self.metric]

    def _frequency_error(self, loop: Loop, arrived: NDArray[np.int64]) -> float | None:
        """Of an estimate that follows the stream, on what it has not seen yet."""
        if not isinstance(loop.model.frequency, StreamingFrequency) or not len(arrived):
            return None
        count_M = torch.from_numpy(np.bincount(self.store.item_row[arrived], minlength=self.store.n_items))
        size = min(self.run_.training.batch_size, len(arrived))
        return frequency_report(loop.model.frequency, count_M, batch_size=size).error

    # ------------------------------------------------------------ the end

    def _relative(self, store: Store) -> str:
        return os.path.relpath(store.path, self.folder)

    def _state_after(self, day: Day, positions: dict[str, Position]) -> dict[str, Any]:
        return {
            "store": self._relative(self.store),
            "step": self.state["step"] + day.steps,
            "products": self.products,
            **({"trained": self.number} if day.kept else self._trained_before()),
            "positions": self._positions_after(positions),
            "days": [*self.state.get("days", []), asdict(day)],
        }

    def _trained_before(self) -> dict[str, Any]:
        """The newest update whose model stayed; before there is one, what the first training was not given."""
        return {"trained": self.state["trained"]} if "trained" in self.state else self._first_held_out()

    def _positions_after(self, positions: dict[str, Position]) -> dict[str, Position]:
        return {**self.state.get("positions", {}), **positions}

    def _change_over(self, loop: Loop, state: dict[str, Any]) -> None:
        """Let the model and its store take the place of yesterday's, and remove what nobody needs any more."""
        checkpoint.save(self.folder / BEST, loop.model, loop.stepper.optimiser, state)
        self.state = state
        shutil.rmtree(self.folder / WORK, ignore_errors=True)
        self._tidy(self.store)

    def _stay(self, positions: dict[str, Position]) -> None:
        """Leave the model as it is, and remember where its sources go on."""
        shutil.rmtree(self.folder / WORK, ignore_errors=True)
        self._tidy(self.base)
        after = self._positions_after(positions)
        if after != self.state.get("positions", {}):
            checkpoint.write_state(self.folder / BEST, {**self.state, "positions": after})

    def _tidy(self, store: Store) -> None:
        """Remove what does not belong to the model and its store: what was before them, and what an update left that
        was cut off, save for what goes on with its training."""
        stores, leftovers = self.folder / STORES, [self.folder / f"{BEST}.partial"]
        if (self.folder / BEST).exists():
            leftovers += [self.folder / f"{BEST}.old"]
        if "store" in self.state:  # the first training is over for good
            leftovers += [self.folder / f"{LAST}{end}" for end in ("", ".old", ".partial")]
        if stores.exists():
            leftovers += [path for path in stores.iterdir() if path.resolve() != store.path.resolve()]
        for path in leftovers:
            if path.is_file():
                path.unlink()
            else:
                shutil.rmtree(path, ignore_errors=True)
        if stores.exists() and not any(stores.iterdir()):
            stores.rmdir()


@contextmanager
def _alone(folder: Path) -> Iterator[Path]:
    """Keep other updates of a model out."""
    if not folder.is_dir():
        yield folder  # which says what is missing
        return
    with locked(folder / ".lock", f"{folder}: another update of this model is going on: wait for it"):
        yield folder


def is_below(value_Q: Tensor, other_Q: Tensor) -> bool:
    """Whether the mean of n values is below that of others of the same questions by more than chance makes it: by more
    than two standard errors of the difference, sd(d) / sqrt(n). Of less than two questions nothing is known.

    ``nan`` of both are left out.
    """
    d_Q = (value_Q - other_Q).double()
    d_Q = d_Q[~d_Q.isnan()]
    if len(d_Q) < 2:
        return False
    return float(d_Q.mean()) < -_ERRORS * float(d_Q.std()) / math.sqrt(len(d_Q))


def _mean(value_Q: Tensor | None) -> float | None:
    return None if value_Q is None or bool(value_Q.isnan().all()) else float(value_Q.nanmean())


def _files(store: Store) -> dict[str, Any]:
    """Size and checksum by name."""
    return dict(read_manifest(store.path)["files"])


def _packed(true: NDArray[np.bool_]) -> str:
    """Truth values as text, short where they come in stretches."""
    return f"{len(true)}:{base64.b85encode(zlib.compress(np.packbits(true).tobytes())).decode()}"


def _unpacked(text: str) -> NDArray[np.bool_]:
    n, _, bits = text.partition(":")
    return np.unpackbits(np.frombuffer(zlib.decompress(base64.b85decode(bits)), np.uint8), count=int(n)).astype(bool)


def _is_taken(store: Store) -> NDArray[np.bool_]:
    """[E]"""
    return np.ones(store.n_events, bool) if store.taken is None else np.asarray(store.taken, bool)


def _dates(store: Store, events: NDArray[np.int64]) -> tuple[str | None, str | None]:
    """First and last day of events, in order."""
    if store.time_us is None or not len(events):
        return None, None
    first, last = (np.datetime64(int(store.time_us[at]), "us").astype("datetime64[D]") for at in events[[0, -1]])
    return str(first), str(last)
