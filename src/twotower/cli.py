"""The command line: each verb calls the public function of its name.

Exit status: 0 done, 2 a mistake in what came in (one line on stderr), 130 interrupted. Torch is imported by the verbs
that need it, so that help is quick.
"""

from __future__ import annotations

import ctypes
import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from datetime import date, time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import App, CycloptsError, Parameter, UnusedCliTokensError

from . import __version__
from .errors import ArtifactError, ConfigError, DataError, TwoTowerError

if TYPE_CHECKING:
    from .bundle import Bundle, Recommendation
    from .index import IndexSettings
    from .training import Retriever, Updated

Overrides = Annotated[tuple[str, ...], Parameter(name="--set", show_default=False)]
Sweep = Annotated[tuple[str, ...], Parameter(name="--sweep", show_default=False)]
Repeated = Annotated[tuple[str, ...], Parameter(show_default=False)]
Kind = Literal["Exact", "IVFSQ8", "IVFPQ", "HNSW", "LSH"]
AsJson = Annotated[bool, Parameter(name="--json")]

app = App(
    name="twotower",
    help="Two-tower retrieval: from interaction logs to recommendations.",
    version=__version__,
    default_parameter=Parameter(negative=()),
    suppress_keyboard_interrupt=False,
    result_action="return_value",
)


@app.command(sort_key=1)
def demo(*, out: Path = Path("demo")) -> None:
    """Train, measure and query a small model on data that comes with the package.

    Parameters
    ----------
    out
        Folder for the model and everything on the way to it.
    """
    from .demo import demo

    demo(out)


@app.command(sort_key=2)
def init(
    interactions: Annotated[list[str], Parameter(consume_multiple=True)],
    /,
    *,
    queries: Path | None = None,
    items: Path | None = None,
    out: Path = Path("run.toml"),
) -> None:
    """Look at the files and write a first run, to be read and edited.

    Parameters
    ----------
    interactions
        Files or folders of interactions, one event a row: CSV or TSV with a line of column names, JSON lines, Parquet
        or Arrow.
    queries
        File of query (user) attributes, a row a query.
    items
        File of item attributes, a row an item.
    out
        The run to write; a file that is there is not overwritten.
    """
    from .data.infer import init

    print(init(interactions, queries=queries, items=items, out=out).render())
    print(f"\nwrote {out}: read it, edit it, then: twotower ingest {out}")


@app.command(sort_key=3)
def ingest(run: Path, /, *, overrides: Overrides = (), overwrite: bool = False, as_json: AsJson = False) -> None:
    """Read the files of a run into its store, and report what was left out and why.

    Parameters
    ----------
    run
        The run, a TOML file.
    overrides
        A setting to change, such as data.store=other; as often as you like.
    overwrite
        Replace a store that is there.
    as_json
        Print the report as JSON.
    """
    from .config import ingest_run, load_run

    report = ingest_run(load_run(run, overrides), overwrite=overwrite)
    print(_as_json(report) if as_json else f"{report.render()}\n\nnext: twotower train {run} --out model")


@app.command(sort_key=4)
def train(run: Path, /, *, out: Path, overrides: Overrides = ()) -> None:
    """Train the towers of a run; reads its files into the store first where there is none. The same command goes on
    with a training that was cut off.

    Parameters
    ----------
    run
        The run, a TOML file.
    out
        Folder for the model, its settings and its metrics; Ctrl-C leaves a model there that can be used, and trained
        on.
    overrides
        A setting to change, such as loss.temperature=0.1; as often as you like.
    """
    from .config import load_run
    from .training import train

    print(train(load_run(run, overrides), out).render())


@app.command(sort_key=5)
def tune(run: Path, /, *, out: Path, overrides: Overrides = (), sweep: Sweep = ()) -> None:
    """Search for the settings of a run that do best on validation; the same command goes on with a search cut short.

    Parameters
    ----------
    run
        The run, a TOML file that declares under [tune] what may vary.
    out
        Folder for the trials, the best run, to be trained, and a picture.
    overrides
        A setting to change, such as tune.trials=50; as often as you like.
    sweep
        Values to try instead of what the run declares, such as loss.temperature=0.05,0.1; of several, all combinations.
    """
    from .config import load_run
    from .training import tune

    print(tune(load_run(run, overrides), out, sweep=sweep).render())


@app.command(sort_key=6)
def audit(
    run: Path,
    /,
    *,
    model: Path | None = None,
    overrides: Overrides = (),
    json_file: Annotated[Path | None, Parameter(name="--json")] = None,
    plot: Path | None = None,
    batches: int = 100,
    queries: int = 32,
    seed: int = 0,
) -> None:
    """Look at what a run's negatives are before training with them: counts against draws, gradient, cost.

    Parameters
    ----------
    run
        The run, a TOML file; its files are read into the store first where there is none.
    model
        Folder that train wrote, for the towers of a trained model instead of those at their start.
    overrides
        A setting to change, such as negatives.n=1024; as often as you like.
    json_file
        File to write the numbers to, as JSON.
    plot
        File to write a picture to, such as audit.png.
    batches
        Training batches to draw for.
    queries
        Queries whose gradient is held against that of the full softmax.
    seed
        Of batches, draws and queries.
    """
    for path in (json_file, plot):
        if path is not None and not path.absolute().parent.is_dir():
            raise ArtifactError(f"{path}: there is no folder {path.absolute().parent}: make it first")
    from .auditing import audit
    from .config import load_run

    found = audit(load_run(run, overrides), model=model, batches=batches, queries=queries, seed=seed)
    print(found.render())
    if json_file is not None:
        _write(json_file, found.to_json() + "\n")
    if plot is not None and not found.plot(plot):
        print("no plot, as matplotlib is not installed: pip install 'twotower[plots]'")


@app.command(sort_key=7)
def evaluate(model: Path, /, *, split: Literal["valid", "test"] = "test", as_json: AsJson = False) -> None:
    """Measure a trained model over the full catalogue, beside recommending what is popular.

    Parameters
    ----------
    model
        Folder that train wrote.
    split
        Which held-out events are to be found.
    as_json
        Print the tables as JSON.
    """
    from .training import evaluate

    result = evaluate(model, split=split)
    print(result.to_json() if as_json else result.table())


@app.command(sort_key=8)
def recommend(
    model: Path,
    /,
    *,
    query: str | None = None,
    all_queries: bool = False,
    out: Path | None = None,
    k: int = 10,
    filter_seen: Annotated[bool, Parameter(negative="--no-filter-seen")] = True,
    where: Repeated = (),
    exclude: Repeated = (),
    show: str | None = None,
    as_json: AsJson = False,
) -> None:
    """Find the k best items for a query: score and item id, a line each; or for all known queries, into a file.

    Parameters
    ----------
    model
        Folder that train or export wrote.
    query
        Columns of the query as a JSON object, such as '{"user_id": "u1"}'; the attributes and the history of an id
        that is known are added.
    all_queries
        Ask for every known query instead.
    out
        File to write those lists to, as Parquet: query, rank, item and score.
    k
        How many items.
    filter_seen
        Leave out the items of the query's own events.
    where
        What items must be by an attribute of the bundle: section=news, a list as section=a,b, a range as
        year=2010..2020 with either end, or JSON as the service takes it; as often as there are attributes.
    exclude
        The id of an item to leave out; as often as you like.
    show
        Attributes of the bundle to print beside each item, such as title,section.
    as_json
        Print the items as JSON.
    """
    if all_queries == (query is not None) or all_queries != (out is not None):
        raise ConfigError("recommend: expected either --query, or --all-queries with --out")
    if out is not None:
        if where or exclude or show is not None:
            raise ConfigError("recommend: --where, --exclude and --show are for one query, not for --all-queries")
        if out.suffix != ".parquet":
            raise ConfigError(f"recommend: --out {out}: Parquet is written, expected a name that ends in .parquet")
        n = _opened(model).recommend_all(out, k=k, filter_seen=filter_seen)
        print(json.dumps({"lines": n}) if as_json else f"wrote {n:,} lines to {out}")
        return
    columns = _json_object(query or "")
    if where or show is not None:
        bundle = _with_attributes(model)
        found = bundle.recommend(columns, k=k, filter_seen=filter_seen, exclude=exclude, where=bundle.where_of(where))
        _print_shown(bundle, found, show, as_json)
    else:
        _print_found(_opened(model).recommend(columns, k=k, filter_seen=filter_seen, exclude=exclude), as_json)


@app.command(sort_key=9)
def similar(
    model: Path,
    /,
    *,
    item: str,
    k: int = 10,
    where: Repeated = (),
    exclude: Repeated = (),
    show: str | None = None,
    as_json: AsJson = False,
) -> None:
    """Find the k items whose vectors are most like that of an item: score and item id, a line each.

    Parameters
    ----------
    model
        Folder that train or export wrote.
    item
        Its id.
    k
        How many items.
    where
        What items must be by an attribute of the bundle: section=news, a list as section=a,b, a range as
        year=2010..2020 with either end, or JSON as the service takes it; as often as there are attributes.
    exclude
        The id of an item to leave out; as often as you like.
    show
        Attributes of the bundle to print beside each item, such as title,section.
    as_json
        Print the items as JSON.
    """
    if where or show is not None:
        bundle = _with_attributes(model)
        found = bundle.similar(item, k=k, exclude=exclude, where=bundle.where_of(where))
        _print_shown(bundle, found, show, as_json)
    else:
        _print_found(_opened(model).similar(item, k=k, exclude=exclude), as_json)


_NOTHING_FOUND = "no item is left: ask with fewer conditions"


def _print_found(found: list[Recommendation], as_json: bool) -> None:
    lines = [f"{best.score:8.4f}  {best.item}" for best in found] or [_NOTHING_FOUND]
    print(_as_json(found) if as_json else "\n".join(lines))


def _print_shown(bundle: Bundle, found: list[Recommendation], show: str | None, as_json: bool) -> None:
    """What was found, with attributes if any are to be shown."""
    if show is None or not found:
        _print_found(found, as_json)
        return
    shown = bundle.shown([best.item for best in found], _names(show))
    if as_json:
        lines = [{**dataclasses.asdict(best), "attributes": of} for best, of in zip(found, shown, strict=True)]
        print(json.dumps(lines, default=_time_as_text, ensure_ascii=False))
        return
    for best, of in zip(found, shown, strict=True):
        values = ["-" if value is None else " ".join(str(value).split()) for value in of.values()]
        print("  ".join([f"{best.score:8.4f}", best.item, *values]))


def _time_as_text(value: object) -> str:
    return value.isoformat() if isinstance(value, date | time) else str(value)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


@app.command(sort_key=10)
def export(
    model: Path,
    /,
    *,
    out: Path,
    index: Kind | None = None,
    overrides: Overrides = (),
    target_recall: float | None = None,
    k: int = 100,
    report: bool = False,
    threads: int = 1,
    show: str | None = None,
    items: Annotated[tuple[str, ...], Parameter(consume_multiple=True, show_default=False)] = (),
    licence: str | None = None,
    overwrite: bool = False,
    as_json: AsJson = False,
) -> None:
    """Write a model as a bundle: one folder that answers without PyTorch and without the training data.

    Parameters
    ----------
    model
        Folder that train wrote.
    out
        Folder of the bundle. It holds what is known of all queries: keep it as private as the log.
    index
        How items are found: Exact looks at all, IVFSQ8 is for millions, HNSW is quick and large, IVFPQ small. Without
        it as by the index that index build left in the model's folder, else Exact.
    overrides
        A setting of that kind to change, such as nlist=4096; as often as you like.
    target_recall
        Share of the k best items to find, such as 0.95; the cheapest settings that do are found on held-out queries.
    k
        How many best items the target is about.
    report
        Measure every kind of index, as index report does, and keep that in the bundle, whose page shows it.
    threads
        Threads to build indexes with.
    show
        Columns of the item files for titles and filters, such as title,section; all with one value a row, without it.
    items
        Item files to read them from, instead of those of the run.
    licence
        Under which the bundle may be used; it is noted in it.
    overwrite
        Replace a bundle that is there.
    as_json
        Print what was written as JSON.
    """
    from .training import export

    columns = None if show is None else _names(show)
    if index is None and overrides:
        raise ConfigError(
            f"export: --set {overrides[0]} changes an index that is built now: say which kind with --index"
        )
    done = export(
        model,
        out,
        index=None if index is None else _index_settings(index, overrides),
        target_recall=target_recall,
        k=k,
        report=report,
        threads=threads,
        show=columns,
        items=items or None,
        licence=licence,
        overwrite=overwrite,
    )
    print(done.to_json() if as_json else done.render())


@app.command(sort_key=11)
def update(
    model: Path,
    /,
    *,
    interactions: Annotated[tuple[str, ...], Parameter(consume_multiple=True, show_default=False)] = (),
    queries: Annotated[tuple[str, ...], Parameter(consume_multiple=True, show_default=False)] = (),
    items: Annotated[tuple[str, ...], Parameter(consume_multiple=True, show_default=False)] = (),
    source: str | None = None,
    follow: str | None = None,
    every: float = 60.0,
    overrides: Overrides = (),
    vectors: Path | None = None,
    export: Path | None = None,
    as_json: AsJson = False,
) -> None:
    """Go on with a trained model on what arrived: measure it, train on it, keep the result or not.

    Parameters
    ----------
    model
        Folder that train wrote; it is changed over in one step, and may be killed at any moment before.
    interactions
        Files or folders of the interactions that arrived; what the store has already is counted and does nothing.
    queries
        Files of query attributes: new queries, and those that changed. With --source or --follow they are read anew for
        every update.
    items
        Files of item attributes, likewise. Where the run has such files, events of items that are in none are left out.
    source
        A source to catch up with instead, an update for each file, day or version: a folder, delta:PATH or
        kafka://HOST:PORT/TOPIC. The model remembers where it is.
    follow
        The same, and then wait for more until Ctrl-C.
    every
        Seconds between looks at the source that is followed.
    overrides
        A setting to change, such as update.epochs=2; as often as you like.
    vectors
        File to write the vectors of all items to, as Parquet, after each update.
    export
        Folder for a new version of the model's bundle after each update that was kept, for twotower serve FOLDER
        --watch; a version that is missing since an update was cut off is made up for.
    as_json
        Print what each update did as JSON.
    """
    from .data.streams import stop_on_signal, stream_of
    from .training import export_version, next_version, save_vectors, update, update_from

    ways = (("--interactions", interactions), ("--source", source), ("--follow", follow))
    given = [name for name, one in ways if one]
    if len(given) > 1 or not (given or queries or items):
        raise ConfigError(
            f"update: found {' and '.join(given) or 'nothing to read'}, expected one of --interactions, --source and "
            "--follow, with --queries and --items beside it or alone"
        )

    def say(done: Updated) -> None:
        if vectors is not None and done.day is not None:
            save_vectors(model, vectors)
        print(_as_json(done.day) if as_json else done.render(), flush=True)
        export_if_asked()

    def export_if_asked() -> None:
        exported = None if export is None else export_version(model, export, items=items)
        if exported is not None and not as_json:
            print(exported.head(), flush=True)

    if export is not None:  # before an update is made for it
        next_version(model, export)
    if source is None and follow is None:
        arrived = [list(files) or None for files in (interactions, queries, items)]
        say(update(model, interactions=arrived[0], queries=arrived[1], items=arrived[2], set=overrides, quiet=as_json))
        return
    export_if_asked()  # of an update that was cut off before
    named, n_updates = source or follow or "", 0
    with stop_on_signal() as stop:
        stream, every_s = stream_of(named), None if follow is None else every
        for done in update_from(
            model,
            stream,
            source=named,
            queries=list(queries) or None,
            items=list(items) or None,
            every_s=every_s,
            stop=stop,
            set=overrides,
            quiet=as_json,
        ):
            say(done)
            n_updates += 1
    if not n_updates and not as_json:
        print(f"nothing new in {named}: the model is as it was: {model}")


@app.command(sort_key=12)
def days(model: Path, /, *, plot: Path | None = None, as_json: AsJson = False) -> None:
    """Show what each update of a model did.

    Parameters
    ----------
    model
        Folder that train wrote.
    plot
        File to write a picture to, such as days.png.
    as_json
        Print the table as JSON.
    """
    from .training import history

    found = history(model)
    print(found.to_json() if as_json else found.render())
    if plot is not None and not found.plot(plot):
        print("no plot, as matplotlib is not installed: pip install 'twotower[plots]'")


@app.command(sort_key=13)
def forget(model: Path, /, *, query: Annotated[tuple[str, ...], Parameter(consume_multiple=True)]) -> None:
    """Delete queries (users) from a model: ids, attributes, vectors, histories, events and what is known of them.

    Parameters
    ----------
    model
        Folder that train wrote.
    query
        Their ids.
    """
    from .training import forget

    print(forget(model, query).render())


@app.command(sort_key=12)
def experiment(
    *,
    exposures: Path,
    outcomes: Annotated[tuple[str, ...], Parameter(consume_multiple=True, show_default=False)],
    control: str,
    name: str | None = None,
    metric: Repeated = (),
    stage: Repeated = (),
    share: Repeated = (),
    unit: Literal["user", "request"] = "user",
    join_by: Literal["user", "request"] | None = None,
    user: str = "user",
    request: str = "request",
    time: str = "time",
    time_unit: Literal["s", "ms", "us", "ns"] = "s",
    before: bool = False,
    plot: Path | None = None,
    as_json: AsJson = False,
) -> None:
    """Tell what the arms of an experiment changed: uplifts with intervals, and first whether they can be trusted.

    Where counts do not fit the shares that were assigned, numbers are shown all the same and the status is 2.

    Parameters
    ----------
    exposures
        File or folder of the exposures that a service logged, NDJSON or Parquet.
    outcomes
        Files or folders with an outcome a row: user and time, or request, and columns of numbers.
    control
        The arm that the others are compared with.
    name
        The experiment, where the exposures are of several.
    metric
        Such as revenue (a user), 'any(bought)' (share of users) or clicked/shown; as often as you like, the primary
        one first. All columns of the outcomes by default.
    stage
        Column that counts items which passed a stage, in order, after what was returned; by default ranked, shown,
        clicked and bought where they are there.
    share
        Share of units that an arm was assigned, such as control=0.9; of all arms, or none where they are equal.
    unit
        What arms were assigned by.
    join_by
        What outcomes name, where it is not the unit.
    user
        Column of the outcomes with the id of the user.
    request
        Column of the outcomes with the id of the request.
    time
        Column of the outcomes with their time.
    time_unit
        Of times that are numbers, since 1970.
    before
        Take out what outcomes before a user's first exposure explain (CUPED).
    plot
        File to write a picture to, such as uplift.png.
    as_json
        Print the report as JSON.
    """
    from .experiment import OutcomeColumns, analyse, metric_of

    found = analyse(
        exposures,
        list(outcomes),
        control=control,
        experiment=name,
        metrics=[metric_of(text) for text in metric] or None,
        stages=stage or None,
        shares=dict(map(_share, share)) or None,
        unit=unit,
        join_by=join_by,
        columns=OutcomeColumns(user=user, request=request, time=time, time_unit=time_unit),
        before=before,
    )
    print(found.to_json() if as_json else found.render())
    if plot is not None and not found.plot(plot):
        print("no plot, as matplotlib is not installed: pip install 'twotower[plots]'", file=sys.stderr)
    if not found.trusted:
        raise DataError(found.warning)


def _share(text: str) -> tuple[str, float]:
    arm, equals, share = text.rpartition("=")
    try:
        return arm, float(share if equals and arm else "")
    except ValueError as error:
        raise ConfigError(f"--share: found {text!r}, expected an arm and its share, such as control=0.5") from error


@app.command(sort_key=15)
def serve(
    bundle: Path | None = None,
    /,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    workers: int = 1,
    token_file: Path | None = None,
    state: Path | None = None,
    watch: bool = False,
    arm: Repeated = (),
    experiment: str = "experiment",
    exposures: Path | None = None,
    access_log: Path | None = None,
    max_k: int = 1_000,
    max_batch: int = 256,
    max_body: int = 1 << 20,
) -> None:
    """Answer over HTTP from a bundle, until interrupted: recommend, similar, embed, items that come and go.

    Parameters
    ----------
    bundle
        Folder that export wrote, or a folder of such folders, of which the last by name is served.
    host
        Address to listen at. Beyond this machine nothing can be changed without tokens.
    port
        Port to listen at; 0 takes a free one.
    workers
        Processes that answer, which share the files of the bundle in memory.
    token_file
        File of tokens that callers need, one a line; after the word read, one that can't change anything.
    state
        Folder to keep changes of items in; without it they are refused.
    watch
        Serve a new version that appears beside the bundle, without a stop.
    arm
        An arm of an experiment as NAME=BUNDLE:SHARE instead of one bundle, as often as there are.
    experiment
        Its name, on which the assignment of users depends.
    exposures
        Folder for the log of what its arms showed.
    access_log
        File to append a line a request to.
    max_k
        Most items of an answer.
    max_batch
        Most queries, or items, of a request.
    max_body
        Most bytes of a request.
    """
    from .service import Arm, Limits, Settings
    from .service import serve as answer

    answer(
        Settings(
            bundle=bundle,
            host=host,
            port=port,
            workers=workers,
            token_file=token_file,
            state=state,
            watch=watch,
            arms=[Arm.parse(text) for text in arm],
            experiment=experiment,
            exposures=exposures,
            access_log=access_log,
            limits=Limits(k=max_k, batch=max_batch, body_bytes=max_body),
        )
    )


# ---------------------------------------------------------------- index

index = App(
    name="index",
    help="Build an index of a trained model's items, or see what each kind finds and costs.",
    sort_key=12,
    default_parameter=Parameter(negative=()),
)
app.command(index)


@index.command(name="build", sort_key=1)
def index_build(
    model: Path,
    /,
    *,
    kind: Kind = "IVFSQ8",
    overrides: Overrides = (),
    target_recall: float | None = None,
    k: int = 100,
    out: Path | None = None,
    threads: int = 1,
    seed: int = 0,
) -> None:
    """Build an index of a model's items.

    Parameters
    ----------
    model
        Folder that train wrote.
    kind
        How items are laid out: Exact looks at all, IVFSQ8 is for millions, HNSW is quick and large, IVFPQ small.
    overrides
        A setting of the kind to change, such as nlist=4096; as often as you like.
    target_recall
        Share of the k best items to find, such as 0.95; the cheapest settings that do are found on held-out queries.
    k
        How many best items the target is about.
    out
        Folder for the index; the folder index in the model's, if not given.
    threads
        Threads to build with.
    seed
        Of what is drawn when it is built.
    """
    from .training import build_index

    settings = _index_settings(kind, overrides)
    built = build_index(model, settings, target_recall=target_recall, k=k, out=out, threads=threads, seed=seed)
    print(built.render())


@index.command(name="report", sort_key=2)
def index_report(
    model: Path,
    /,
    *,
    kind: Annotated[tuple[Kind, ...], Parameter(consume_multiple=True, show_default=False)] = (),
    target_recall: float = 0.95,
    k: int = 100,
    filter_share: float = 0.1,
    threads: int = 1,
    seed: int = 0,
    json_file: Annotated[Path | None, Parameter(name="--json")] = None,
    plot: Path | None = None,
) -> None:
    """Measure what each kind of index finds of the best items, how quickly, and what it costs.

    Parameters
    ----------
    model
        Folder that train wrote.
    kind
        Kinds to measure; all, if none is given.
    target_recall
        Share of the k best items that each kind is tuned for, on half of the held-out queries.
    k
        How many best items.
    filter_share
        Share of the items that filters leave.
    threads
        Threads to build with; searches are measured on one.
    seed
        Of what is drawn.
    json_file
        File to write the numbers to, as JSON.
    plot
        File to write a picture to, such as index.png.
    """
    for path in (json_file, plot):
        if path is not None and not path.absolute().parent.is_dir():
            raise ArtifactError(f"{path}: there is no folder {path.absolute().parent}: make it first")
    from .index.report import USUAL
    from .training import report_index

    kinds = tuple(_index_settings(one, ()) for one in kind) or USUAL
    found = report_index(
        model, kinds, target_recall=target_recall, k=k, filter_share=filter_share, threads=threads, seed=seed
    )
    print(found.render())
    if json_file is not None:
        _write(json_file, found.to_json() + "\n")
    if plot is not None and not found.plot(plot):
        print("no plot, as matplotlib is not installed: pip install 'twotower[plots]'")


def _index_settings(kind: str, overrides: Sequence[str]) -> IndexSettings:
    from .index.kinds import decode

    return decode(kind, overrides)


_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of mallopt, from glibc's malloc.h


def keep_freed_memory() -> bool:
    """Tell glibc to keep what is freed for what comes next, instead of giving large buffers back to the system.

    Touching them anew costs a quarter of a training step (docs/decisions.md). The same as the environment variables
    MALLOC_MMAP_MAX_=0 and MALLOC_TRIM_THRESHOLD_=-1 at the start of a process. False where the C library is another.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return False
    return bool(mallopt(_MMAP_MAX, 0) and mallopt(_TRIM_THRESHOLD, -1))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status; without ``arguments`` those of the process are taken."""
    if arguments is None:  # the process is ours: whoever calls from Python decides for theirs
        keep_freed_memory()
    try:
        app(arguments, exit_on_error=False, print_error=False)
        sys.stdout.flush()
    except UnusedCliTokensError as error:
        extra = " ".join(error.unused_tokens or ())
        return _refused(f"{extra}: not expected here" + "; every setting needs a --set of its own" * ("=" in extra))
    except (CycloptsError, TwoTowerError) as error:
        return _refused(str(error))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever read our output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _refused(message: str) -> int:
    print("error:", " ".join(message.split()), file=sys.stderr)
    return 2


def _opened(folder: Path) -> Bundle | Retriever:
    """The bundle, which answers without torch, or the model in a folder."""
    from .bundle import Bundle, is_bundle

    if is_bundle(folder):
        return Bundle.open(folder)
    from .training import Retriever

    return Retriever.open(folder)


def _with_attributes(folder: Path) -> Bundle:
    """The bundle in a folder, since a model knows no attributes of items."""
    from .bundle import Bundle, is_bundle

    if folder.is_dir() and not is_bundle(folder):
        raise ConfigError(
            f"{folder}: found no bundle, and --where and --show need the attributes of one: export the model first, "
            f"twotower export {folder} --out bundle --show COLUMNS"
        )
    return Bundle.open(folder)


def _json_object(text: str) -> dict[str, object]:
    try:
        parsed = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(
            f'--query: not valid JSON: {error}; expected an object such as \'{{"user_id": "u1"}}\''
        ) from error
    if not isinstance(parsed, dict):
        raise DataError(f'--query: found {text}, expected an object such as \'{{"user_id": "u1"}}\'')
    return parsed


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ArtifactError(f"{path}: can't be written ({error.strerror}): choose another place") from error


def _as_json(result: object) -> str:
    return json.dumps(result, default=dataclasses.asdict, ensure_ascii=False)
