"""What to learn from where a click says little: clicks, the share of a video that was watched, or both.

    python -m benchmarks.watch kuairand [--only clicks] [--seeds 3] [--keep FOLDER]
    python -m benchmarks.watch kuairand --search FOLDER

Every arm has the same tower, negatives, budget and trials, and its own store, whose events and weights are its labels
(``ARMS``). All are asked the same, in the search and in the test, whatever they learnt from:

    time@k     of the time that a user watched on that day, the share that went to k listed videos, mean over users
    all time@k the same share of the time of all users together, so that who watches long counts more
    clicks@k   recall of what was clicked, mean over users

What a user was shown before (for clicks@k: clicked on) is neither asked for nor listed. ``--search`` fits each arm with
every trial of settings/watch/kuairand.toml; what has the best time@50 on the validation day is committed beside it,
with its epochs.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean

import numpy as np
import torch
from torch import Tensor

from benchmarks.arms import Kind, cell, differences_of, in_words, named, write_chosen
from benchmarks.data import committed_run
from benchmarks.harness import report, show
from twotower.config import Run, dump_run, vary
from twotower.data.held_out import PARTS, HeldOut, held_out
from twotower.data.store import Store
from twotower.evaluation import MODEL, evaluate
from twotower.records import Ragged
from twotower.schema import Interactions, Reward
from twotower.training.loop import fit_once, open_or_ingest, refit, settings_of
from twotower.training.retriever import Retriever, encode_questions

NAME = "kuairand"
WATCH = Kind(name="watch", metrics={NAME: ()}, cut=(), further={}, paired={})

SHOWN = Interactions(query="user_id", item="video_id", time="time_ms", time_unit="ms")
"""Every impression is an event."""
CLICKED = replace(SHOWN, taken="is_click")
SHARE = Reward(column="play_time_ms", per="duration_ms", zero_below=0.1)
MINUTE = Reward(column="play_time_ms", one_from=60_000)

ARMS = {
    "clicks": CLICKED,
    "watched": replace(SHOWN, weight=SHARE),
    "clicks-watched": replace(CLICKED, weight=SHARE),
    "clicks-minute": replace(CLICKED, weight=MINUTE),
}
"""All clicks alike; impressions by the share that was watched; clicks by that share; clicks by time, up to a minute."""

ASKED = {"time": replace(SHOWN, weight="play_time_ms"), "clicks": CLICKED}
"""The stores that questions come from."""

PAIRED = (
    ("watched", "clicks"),
    ("clicks-watched", "clicks"),
    ("clicks-watched", "watched"),
    ("clicks-minute", "clicks"),
)
COMPARED = ("time@50", "all time@50", "clicks@50")
"""What arms are compared by query by query."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=(NAME,))
    parser.add_argument("--only", default="", help="arms whose name holds this text")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--keep", type=Path, help="folder of single fits, read where settings are the same")
    parser.add_argument("--search", type=Path, help="search on validation instead, with its stores in this folder")
    arguments = parser.parse_args()
    arms = named(list(ARMS), arguments.only)
    if arguments.search is not None:
        search(arms, arguments.search)
        return
    with tempfile.TemporaryDirectory() as folder:
        measure(arms, arguments.seeds, Path(folder), arguments.keep)


# ---------------------------------------------------------------- runs and questions


def run_of(labels: Interactions, name: str, work: Path) -> Run:
    """The common run with these labels, its store under ``work``."""
    run = committed_run(NAME, work, WATCH.comparison(NAME)["set"])
    assert run.data is not None
    return replace(
        run,
        schema=replace(run.schema, interactions=labels),
        data=replace(run.data, store=str(work / f"{name}.store")),
    )


def questions_of(part: str, work: Path) -> dict[str, HeldOut]:
    """What every arm is asked about the day of a part."""
    questions = {}
    for name, labels in ASKED.items():
        run = run_of(labels, f"asked-{name}", work)
        store = open_or_ingest(run, quiet=True)
        questions[name] = held_out(store, run.split.assign(store), part)
    return questions


def asked_of(store: Store, questions: HeldOut) -> HeldOut:
    """The same questions to a model of another store. Users and videos have the rows of their files in every store, but
    the tables of a store have rows of their own."""
    return replace(questions, store=store)


# ---------------------------------------------------------------- the search


def search(arms: list[str], folder: Path) -> None:
    """Fit each arm with every trial; the best on the validation day, with its epochs, is written as chosen."""
    folder.mkdir(parents=True, exist_ok=True)
    work = folder.resolve()
    questions = questions_of("valid", work)["time"]
    trials = WATCH.comparison(NAME)["trials"]
    for arm in arms:
        run = run_of(ARMS[arm], arm, work)
        store = open_or_ingest(run, quiet=True)
        found = []
        for values in trials:
            with settings_of(run.training):
                asked, part_E = asked_of(store, questions), run.split.assign(store)
                fit = fit_once(vary(run, values=values), store, part_E, questions=asked)
            assert fit.best_metric is not None
            found.append((fit.best_metric, {**values, "training.epochs": fit.best_epoch}))
            print(
                f"{arm} {values}: {fit.best_metric:.4f}, epoch {fit.best_epoch:.3g} ({fit.seconds:.0f} s)", flush=True
            )
        write_chosen(WATCH, NAME, len(trials), {arm: max(found, key=lambda trial: trial[0])[1]})


# ---------------------------------------------------------------- the test


@dataclass(frozen=True)
class Result:
    """One fit, measured on the last day."""

    metric: dict[str, float]
    per_query: dict[str, list[float]]
    """Of ``COMPARED``."""
    seconds: float
    """Of the fit."""


def measure(arms: list[str], seeds: int, work: Path, keep: Path | None) -> None:
    """Every arm with its chosen settings and every seed: a table, differences between arms, a line of JSON."""
    started = time.perf_counter()
    questions = questions_of("test", work)
    found: dict[str, list[Result]] = {}
    for arm in arms:
        found[arm] = [run_one(arm, seed, questions, work, keep) for seed in range(seeds)]
        print(
            f"{arm}: {cell([r.metric[COMPARED[0]] for r in found[arm]])} ({time.perf_counter() - started:.0f} s)",
            flush=True,
        )
    popular = {metric: float(value_Q.mean()) for metric, value_Q in popularity(questions, work).items()}
    rows = [
        [arm, *(cell([r.metric[metric] for r in of]) for metric in popular), mean(r.seconds for r in of)]
        for arm, of in found.items()
    ]
    show(
        f"{NAME}, last day, mean ± deviation over seeds",
        ["arm", *popular, "fit s"],
        [*rows, ["popularity", *(f"{value:.4f}" for value in popular.values()), ""]],
    )
    differences = {
        metric: differences_of(PAIRED, {arm: [r.per_query[metric] for r in of] for arm, of in found.items()})
        for metric in COMPARED
    }
    for metric, pairs in differences.items():
        for pair, difference in pairs.items():
            print(f"{metric}, {pair}: {in_words(difference)}")
    report(
        f"watch {NAME}",
        {
            **{arm: {metric: mean(r.metric[metric] for r in of) for metric in popular} for arm, of in found.items()},
            "popularity": popular,
            "differences": differences,
        },
        seconds=time.perf_counter() - started,
        seed=0,
        settings={"seeds": seeds, "chosen": {arm: WATCH.chosen(NAME)[arm] for arm in arms}},
    )


def run_one(arm: str, seed: int, questions: dict[str, HeldOut], work: Path, keep: Path | None) -> Result:
    """Fit an arm on all days but the last and measure it, unless its result is kept."""
    run = vary(run_of(ARMS[arm], arm, work), values={**WATCH.chosen(NAME)[arm], "training.seed": seed})
    record = None if keep is None else keep / f"{arm}.{seed}.json"
    settings = dump_run(replace(run, data=None))
    if record is not None and record.exists():
        kept = json.loads(record.read_text(encoding="utf-8"))
        if kept.pop("settings") == settings:
            return Result(**kept)
    store = open_or_ingest(run, quiet=True)
    with settings_of(run.training):
        fit = refit(run, store, run.split.assign(store), run.training.epochs)
        retriever = Retriever(run, store, fit.model.towers)
        query_QD = {name: encode_questions(fit.model.towers, asked_of(store, of)) for name, of in questions.items()}
        value_Q = answers(query_QD, retriever.item_MD, questions, run.evaluation.k)
    result = Result(
        metric={metric: float(value_Q[metric].mean()) for metric in value_Q},
        per_query={metric: value_Q[metric].tolist() for metric in COMPARED},
        seconds=fit.seconds,
    )
    if record is not None:
        record.parent.mkdir(parents=True, exist_ok=True)
        record.write_text(json.dumps({"settings": settings, **asdict(result)}, indent=1), encoding="utf-8")
    return result


def answers(
    query_QD: Mapping[str, Tensor], item_MD: Tensor, questions: Mapping[str, HeldOut], k: Sequence[int]
) -> dict[str, Tensor]:
    """Every metric of the vectors, a value a query whose mean it is."""
    found = {
        name: evaluate(
            query_QD[name],
            item_MD,
            of.truth,
            seen=of.seen,
            item_count_M=torch.zeros(len(item_MD)),
            k=k,
            baselines=False,
        ).per_query[MODEL]
        for name, of in questions.items()
    }
    share_Q = shares_of_all(questions["time"].truth)
    return {
        **{f"time@{at}": found["time"][f"weighted_recall@{at}"] for at in k},
        **{f"all time@{at}": share_Q * found["time"][f"weighted_recall@{at}"] for at in k},
        **{f"clicks@{at}": found["clicks"][f"recall@{at}"] for at in k},
    }


def shares_of_all(truth: Ragged) -> Tensor:
    """[Q] the weight of each query's list over the mean of all lists, so that the mean of share times recall is the
    recall of all the weight together."""
    assert truth.weight is not None
    weight_Q = torch.zeros(len(truth), dtype=torch.float64).index_add_(0, truth.owner(), truth.weight.double())
    return weight_Q / weight_Q.mean()


def popularity(questions: Mapping[str, HeldOut], work: Path) -> dict[str, Tensor]:
    """The metrics of listing what was clicked most before the last day."""
    run = run_of(ASKED["clicks"], "asked-clicks", work)
    store = open_or_ingest(run, quiet=True)
    before = np.flatnonzero(np.isin(run.split.assign(store), (PARTS["train"], PARTS["valid"])))
    count_M = torch.from_numpy(np.bincount(store.item_row[before], minlength=store.n_items)).float()
    ones_Q1 = {name: torch.ones(len(of), 1) for name, of in questions.items()}
    return answers(ones_Q1, count_M[:, None], questions, run.evaluation.k)


if __name__ == "__main__":
    main()
