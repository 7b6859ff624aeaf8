"""Day by day: a model that is updated daily, beside one that stays as it was, and one that is trained anew.

    python -m benchmarks.days online-retail [--work FOLDER] [--since 2011-06-10] [--until DATE] [--full-every 10]

Everything before ``--since`` is trained on; then each day is asked for and only then trained on, as ``twotower update``
does it. Measured is recall of what each customer buys on the day, over the full catalogue, by a model that has not seen
the day:

    frozen    trained once, before the first day; it knows new items by their words and customers by what they bought
    daily     updated after each day
    full      trained anew on all days before, on every ``--full-every``-th day

All three stop by one rule, patience on the same held-out events. Ratios to full are over the days on which there is
one, over their customers, with intervals over days (bootstrap). Seconds are those of batches and steps, validation left
out, the same for all. "New" are items whose first event is less than 30 days before the day.

Settings of updates are chosen on days before ``--since`` (``--since 2011-05-01 --until 2011-06-10``). With ``--work``
what is done stays there, and the same command goes on.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from benchmarks.data import committed_run
from benchmarks.harness import report, show
from twotower.cli import keep_freed_memory
from twotower.config import Run
from twotower.data.arrivals import held_out_for_good, parts_of_arrivals
from twotower.data.arrow import US_PER_DAY
from twotower.data.batches import keep
from twotower.data.changes import changes
from twotower.data.held_out import PARTS, HeldOut, held_out
from twotower.data.store import Store
from twotower.evaluation import MODEL
from twotower.training import history, train, update
from twotower.training.carry import carry_over
from twotower.training.loop import Loop, batches_of, measured, settings_of
from twotower.training.recorder import Recorder
from twotower.training.retriever import BEST, open_model
from twotower.training.step import Model

NEW_DAYS = 30
ARMS = ("frozen", "daily", "full")


@dataclass(frozen=True, kw_only=True)
class Recalled:
    """Sums over the customers of a day."""

    found: float
    queries: int
    found_new: float
    """Of items that are new."""
    queries_new: int
    """Customers who bought some."""


@dataclass(frozen=True, kw_only=True)
class DayResult:
    """One day."""

    date: str
    frozen: Recalled
    daily: Recalled
    full: Recalled | None
    update_seconds: float
    update_wall_s: float
    """With growing the store, and all measuring."""
    full_seconds: float | None
    new_items: int
    new_queries: int
    kept: bool
    frequency_error: float | None


class Days:
    """The benchmark in a folder, which it can go on in."""

    def __init__(self, run: Run, work: Path, since: dt.date, until: dt.date, full_every: int) -> None:
        self.run, self.work, self.full_every = run, work, full_every
        self.model, self.frozen, self.log = work / "model", work / "frozen", work / "days.jsonl"
        self.since, self.until = since, until

    def files(self) -> tuple[Path, dict[str, Path]]:
        """The raw rows before the first day, and those of each day."""
        folder = self.work / "raw"
        if not folder.exists():
            partial = self.work / "raw.partial"
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            assert self.run.data is not None
            table = pq.read_table(self.run.data.interactions[0])
            time_column = self.run.schema.interactions.time
            assert time_column is not None
            day = table[time_column].cast(pa.date32())
            pq.write_table(table.filter(pc.less(day, pa.scalar(self.since))), partial / "before.parquet")
            inside = pc.and_(pc.greater_equal(day, pa.scalar(self.since)), pc.less(day, pa.scalar(self.until)))
            for date in sorted(pc.unique(day.filter(inside)).to_pylist()):
                pq.write_table(table.filter(pc.equal(day, pa.scalar(date))), partial / f"{date}.parquet")
            partial.rename(folder)
        days = {path.stem: path for path in sorted(folder.glob("2*.parquet"))}
        return folder / "before.parquet", days

    def results(self) -> Iterator[DayResult]:
        """Of each day, those of an earlier start first."""
        before, days = self.files()
        done = [_read(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []
        yield from done
        data = self.run.data
        assert data is not None
        self.run = replace(self.run, data=replace(data, interactions=(str(before),), store=str(self.work / "store")))
        if not (self.model / "train.json").exists():
            train(self.run, self.model, quiet=True)
        if not self.frozen.exists():
            shutil.copytree(self.model / BEST, self.frozen)
        for at, (date, file) in enumerate(days.items()):
            if at < len(done):
                continue
            result = self.day(at, date, file)
            with self.log.open("a") as log:
                log.write(json.dumps(asdict(result)) + "\n")
            yield result

    def day(self, at: int, date: str, file: Path) -> DayResult:
        """Ask for a day, then train on it."""
        yesterday = self.work / "yesterday"
        if not yesterday.exists() or Store.open(yesterday / "store").n_updates != at:
            _, store, _ = open_model(self.model)
            shutil.rmtree(yesterday, ignore_errors=True)
            shutil.copytree(store.path, self.work / "y.partial" / "store", copy_function=os.link, dirs_exist_ok=True)
            shutil.copytree(self.model / BEST, self.work / "y.partial" / BEST, dirs_exist_ok=True)
            (self.work / "y.partial").rename(yesterday)
        base = Store.open(yesterday / "store")
        full, full_seconds = None, None
        if at and at % self.full_every == 0:
            full, full_seconds = self.trained_anew(base)
        started = time.perf_counter()
        updated = update(self.model, interactions=[str(file)], name=date, quiet=True)
        wall = time.perf_counter() - started
        _, store, _ = open_model(self.model)
        first = Store.open(self.work / "store")
        day = updated.day
        if day is None:  # killed after the model changed over: it knows the day
            day = history(self.model).days[-1]
        with settings_of(self.run.training):
            return DayResult(
                date=date,
                frozen=self.recalled(self.carried(self.frozen, first, store), store),
                daily=self.recalled(self.carried(yesterday / BEST, base, store), store),
                full=None if full is None else self.recalled(self.carried(full, base, store), store),
                update_seconds=day.seconds,
                update_wall_s=wall,
                full_seconds=full_seconds,
                new_items=day.new_items,
                new_queries=day.new_queries,
                kept=day.kept,
                frequency_error=day.frequency_error,
            )

    def trained_anew(self, store: Store) -> tuple[Path, float]:
        """A model trained from the start on all that an update may train on; its checkpoint, and seconds of steps."""
        folder = self.work / "full"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        settings = self.run.update
        part_E = parts_of_arrivals(store, share=settings.valid, days=settings.valid_days)
        known = np.flatnonzero(part_E == PARTS["train"])
        events = known[~held_out_for_good(store, settings.valid)[known]]
        questions = held_out(store, part_E, "valid", filter_seen=self.run.evaluation.filter_seen)
        with settings_of(self.run.training):
            loop = Loop(self.run, store, events, questions, Recorder(None, quiet=True), folder, known=known)
            fit = loop.run_to(self.run.training.epochs)
        return folder / BEST, fit.seconds

    def carried(self, saved: Path, base: Store, store: Store) -> Model:
        """A checkpoint's model on a store that grew since."""
        model = Model(self.run, store, batches_of(self.run, store, self.arrived(store), None, seed=0).facts())
        carry_over(saved, model, changes(base, store))
        return model

    @staticmethod
    def arrived(store: Store) -> NDArray[np.int64]:
        """Events of the newest update."""
        return np.flatnonzero(np.asarray(store.arrived) == store.n_updates)

    def recalled(self, model: Model, store: Store) -> Recalled:
        """Recall of what each customer bought on the day, by a model that knows all before."""
        arrived = self.arrived(store)
        part_E = np.full(store.n_events, PARTS["train"], np.int8)
        part_E[arrived] = PARTS["valid"]
        questions = held_out(store, part_E, "valid", filter_seen=self.run.evaluation.filter_seen)
        assert store.time_us is not None
        first_us_M = np.full(store.n_items, np.iinfo(np.int64).max)
        np.minimum.at(first_us_M, store.item_row, store.time_us)
        is_new_M = torch.from_numpy(int(store.time_us[arrived[0]]) - first_us_M < NEW_DAYS * US_PER_DAY)
        new_truth = keep(questions.truth, is_new_M[questions.truth.value])
        found, queries = self.summed(model, questions)
        found_new, queries_new = 0.0, 0
        if len(new_truth.value):
            found_new, queries_new = self.summed(model, replace(questions, truth=new_truth))
        return Recalled(found=found, queries=queries, found_new=found_new, queries_new=queries_new)

    def summed(self, model: Model, questions: HeldOut) -> tuple[float, int]:
        """Recall summed over the queries that have an answer, and how many those are."""
        counts_M = torch.from_numpy(np.bincount(questions.store.item_row, minlength=questions.store.n_items))
        result = measured(self.run, model.towers, questions, counts_M)
        recall_Q = result.per_query[MODEL][self.run.training.metric]
        return float(recall_Q.nansum()), int((~recall_Q.isnan()).sum())


def _read(line: str) -> DayResult:
    tree = json.loads(line)
    return DayResult(**{**tree, **{arm: tree[arm] and Recalled(**tree[arm]) for arm in ARMS}})


def ratio(
    days: Sequence[DayResult], arm: str, over: str, *, new: bool = False, draws: int = 2000
) -> tuple[float, float, float]:
    """Recall of one arm over that of another on the days that have both, and its 95% interval over days."""
    both = [(getattr(day, arm), getattr(day, over)) for day in days if getattr(day, arm) and getattr(day, over)]
    found = np.array([[(one.found_new, two.found_new) if new else (one.found, two.found)] for one, two in both])[:, 0]
    chosen = np.random.default_rng(0).integers(len(found), size=(draws, len(found)))
    sums = found[chosen].sum(1)
    low, high = np.quantile(sums[:, 0] / sums[:, 1], [0.025, 0.975])
    return float(found[:, 0].sum() / found[:, 1].sum()), float(low), float(high)


def mean(days: Sequence[DayResult], arm: str, *, new: bool = False) -> float:
    """Recall over the customers of days."""
    some: list[Recalled] = [getattr(day, arm) for day in days if getattr(day, arm)]
    if new:
        return sum(one.found_new for one in some) / max(sum(one.queries_new for one in some), 1)
    return sum(one.found for one in some) / sum(one.queries for one in some)


def summary(days: Sequence[DayResult]) -> dict[str, object]:
    """What the benchmark reports."""
    compared = [day for day in days if day.full is not None]
    metrics: dict[str, object] = {
        "days": len(days),
        "days_with_full": len(compared),
        "updates_not_kept": sum(not day.kept for day in days),
        "update_seconds": float(np.mean([day.update_seconds for day in days])),
        "update_wall_s": float(np.mean([day.update_wall_s for day in days])),
    }
    for arm in ("frozen", "daily"):
        metrics[f"{arm}_recall_all_days"] = mean(days, arm)
        metrics[f"{arm}_recall_new_all_days"] = mean(days, arm, new=True)
    if not compared:
        return metrics
    full_seconds = float(np.mean([day.full_seconds for day in compared if day.full_seconds is not None]))
    metrics["full_seconds"] = full_seconds
    metrics["daily_over_full_seconds"] = float(np.mean([day.update_seconds for day in days])) / full_seconds
    for arm in ARMS:
        metrics[f"{arm}_recall"], metrics[f"{arm}_recall_new"] = mean(compared, arm), mean(compared, arm, new=True)
    for arm in ("daily", "frozen"):
        for suffix, new in (("", False), ("_new", True)):
            value, low, high = ratio(compared, arm, "full", new=new)
            metrics[f"{arm}_over_full_recall{suffix}"] = value
            metrics[f"{arm}_over_full_recall{suffix}_95"] = [round(low, 4), round(high, 4)]
    return metrics


def plot(days: Sequence[DayResult], path: Path) -> None:
    """Recall by week, of all items and of new ones."""
    from matplotlib.figure import Figure

    weeks: dict[dt.date, list[DayResult]] = {}
    for day in days:
        date = dt.date.fromisoformat(day.date)
        weeks.setdefault(date - dt.timedelta(days=date.weekday()), []).append(day)
    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.subplots(2, 1, sharex=True)
    for axis, new in zip(axes, (False, True), strict=True):
        for arm in ARMS:
            points = [(week, mean(some, arm, new=new)) for week, some in weeks.items() if _has(some, arm, new)]
            axis.plot(
                [at for at, _ in points],
                [value for _, value in points],
                "o" if arm == "full" else ".-",
                label="full (single days)" if arm == "full" else arm,
            )
        axis.set(ylabel=f"recall@20{', items new in 30 days' if new else ''}")
        axis.legend()
    figure.autofmt_xdate()
    figure.savefig(path, dpi=120)


def _has(days: Sequence[DayResult], arm: str, new: bool) -> bool:
    some: list[Recalled] = [getattr(day, arm) for day in days if getattr(day, arm)]
    return sum(one.queries_new if new else one.queries for one in some) > 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=["online-retail"])
    parser.add_argument("--work", type=Path, help="folder to work in; a temporary one without it")
    parser.add_argument("--since", type=dt.date.fromisoformat, default=dt.date(2011, 6, 10))
    parser.add_argument("--until", type=dt.date.fromisoformat, default=dt.date(2011, 12, 10))
    parser.add_argument("--full-every", type=int, default=10, help="days between trainings anew")
    parser.add_argument("--set", action="append", default=[], metavar="SETTING=VALUE")
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    keep_freed_memory()
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary:
        work = arguments.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        run = committed_run(arguments.name, work, arguments.set)
        days = []
        for day in Days(run, work, arguments.since, arguments.until, arguments.full_every).results():
            days.append(day)
            cells = " ".join(f"{arm} {mean([day], arm):.4f}" for arm in ARMS if getattr(day, arm))
            print(f"{day.date} {day.daily.queries:,} customers: {cells}, {day.update_seconds:.2f} s", flush=True)
    metrics = summary(days)
    rows = [
        [arm, mean(days, arm) if arm != "full" else float("nan"), *(_of(days, arm, new) for new in (False, True))]
        for arm in ARMS
    ]
    show(
        "recall@20, mean over the customers of each day",
        ["", "all days", "days with full", "new items, those days"],
        rows,
    )
    if arguments.plot is not None:
        plot(days, arguments.plot)
    report(
        f"days-{arguments.name}",
        metrics,
        seconds=time.perf_counter() - started,
        seed=run.training.seed,
        settings={"set": arguments.set, "since": str(arguments.since), "until": str(arguments.until)},
    )


def _of(days: Sequence[DayResult], arm: str, new: bool) -> float:
    compared = [day for day in days if day.full is not None]
    return mean(compared, arm, new=new) if compared else float("nan")


if __name__ == "__main__":
    main()
