"""What a user can get wrong, one row each: exit status 2 and one line that says where, what, what else and the way out.

Every case is a folder of files that are right but for one fault, and a command line run in that folder.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from twotower.cli import main
from twotower.config import Run
from twotower.errors import ConfigError
from twotower.losses import SampledSoftmax
from twotower.negatives import Uniform
from twotower.schema import Id, Interactions, Schema

USERS, ITEMS = 6, 8
EVENTS = [(u, i) for u in range(USERS) for i in range(ITEMS) if (u + i) % 2 == 0]
INTERACTIONS = '[schema.interactions]\nquery = "user"\nitem = "item"\ntime = "time"\n'
QUERY = '[schema.query]\nuser = { kind = "Id", column = "user" }\nage = { kind = "Number", column = "age" }\n'
ITEM = '[schema.item]\nitem = { kind = "Id", column = "item" }\n'
SCHEMA = INTERACTIONS + QUERY + ITEM
DATA = '[data]\ninteractions = ["events.csv"]\nqueries = ["users.csv"]\nitems = ["items.csv"]\n'
SETTINGS = """
[split]
kind = "LeaveLastOut"
[towers]
dim = 4
[negatives]
kind = "Uniform"
n = 4
[loss]
kind = "SampledSoftmax"
[training]
batch_size = 8
epochs = 1
metric = "recall@5"
[evaluation]
k = [5]
"""
RUN = DATA + SCHEMA + SETTINGS


def csv(head: str, rows: list[str]) -> str:
    return "\n".join([head, *rows]) + "\n"


ROWS = [f"u{u},i{i},2024-01-{10 + (5 * u + i) % 20}T0{u}:00:00" for u, i in EVENTS]
EVENTS_CSV = csv("user,item,time", ROWS)
USERS_CSV = csv("user,age", [f"u{u},{20 + u}" for u in range(USERS)])
ITEMS_CSV = csv("item,colour", [f"i{i},{'red' if i % 2 else 'blue'}" for i in range(ITEMS)])
GOOD = {"events.csv": EVENTS_CSV, "users.csv": USERS_CSV, "items.csv": ITEMS_CSV, "run.toml": RUN}


def parquet_bytes() -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"user": ["u0"] * 900, "item": ["i0"] * 900, "time": ["2024-01-01"] * 900}), sink)
    return bytes(sink.getvalue().to_pybytes())


@dataclass(frozen=True, kw_only=True)
class Case:
    """One mistake. ``files`` replace those of ``GOOD`` (None: it is absent); ``damage`` spoils what training made."""

    command: str
    says: tuple[str, ...]
    """Parts of the line, in this order."""
    files: dict[str, str | bytes | None] = field(default_factory=dict)
    query: str | None = None
    damage: Callable[[Path], object] | None = None


def events(*says: str, text: str | bytes | None) -> Case:
    """A fault in the interactions."""
    return Case(command="ingest run.toml", files={"events.csv": text}, says=says)


def read_as(name: str, content: str | bytes, *says: str) -> Case:
    """A fault in interactions of another name."""
    run = RUN.replace("events.csv", name)
    return Case(command="ingest run.toml", files={name: content, "run.toml": run}, says=says)


def schema(text: str, *says: str) -> Case:
    return Case(command="ingest run.toml", files={"run.toml": DATA + text}, says=("run.toml: ", *says))


def setting(change: str, *says: str) -> Case:
    return Case(command=f"train run.toml --out model --set {change}", says=says)


def search(declared: str, *says: str, more: str = "") -> Case:
    """A fault in what a search is to do."""
    return Case(command=f"tune run.toml --out found {more}".strip(), files={"run.toml": RUN + declared}, says=says)


def query(text: str, *says: str) -> Case:
    return Case(command="recommend trained/model --query", query=text, says=says)


def artifact(command: str, damage: Callable[[Path], object], *says: str) -> Case:
    return Case(command=command, damage=damage, says=says)


def cut(name: str) -> Callable[[Path], object]:
    """Takes away the second half of a file."""

    def halve(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])

    return halve


def edited(name: str, old: str, new: str) -> Callable[[Path], object]:
    def replace(folder: Path) -> None:
        text = (folder / name).read_text(encoding="utf-8")
        assert old in text
        (folder / name).write_text(text.replace(old, new), encoding="utf-8")

    return replace


FILES = {
    "a missing file": events("interactions: there is no file or folder ", "events.csv", text=None),
    "an empty file": events("events.csv: the file is empty, expected a line of column names", text=""),
    "a header alone": events("events.csv: there are no rows, expected at least one", text="user,item,time\n"),
    "a field too many": events(
        *("events.csv, line 3: found 4 fields, expected 3 as in the header",),
        text=csv("user,item,time", [ROWS[0], ROWS[1] + ",1", *ROWS[2:]]),
    ),
    "an open quote": events(
        *("events.csv, line 2: found 2 fields, expected 3", "a quote that begins there is closed on a later line"),
        text=csv("user,item,time", ['u0,"i0,2024-01-01', *ROWS]),
    ),
    "not UTF-8": events(
        *("events.csv, line 3, column 'item': b'i\\xe9' is not UTF-8: save it as UTF-8",),
        text=csv("user,item,time", [ROWS[0], "u0,ié,2024-01-01"]).encode("latin-1"),
    ),
    "a column too few": events(
        "events.csv: there is no column 'item'; the columns are 'user', 'itm', 'time'; did you mean 'itm'?",
        text=EVENTS_CSV.replace("item", "itm"),
    ),
    "a column twice": events(
        "events.csv: column 'user' is there twice: give every column a name of its own",
        text=EVENTS_CSV.replace("item", "user"),
    ),
    "times that are none": events(
        *(
            f"no event can be used: {len(EVENTS)} of {len(EVENTS)} rows of interactions",
            ": time missing, unreadable or",
        ),
        *("such as ", "events.csv row 1: ", "time = '?024-01-10"),
        text=EVENTS_CSV.replace("2024", "?024"),
    ),
    "items that are not in the item file": events(
        *("no event can be used: ", ": item not in the item file, such as ", "events.csv row 1: ", "item = 'j0'"),
        text=csv("user,item,time", [row.replace(",i", ",j") for row in ROWS]),
    ),
    "a number that is text": Case(
        command="ingest run.toml",
        files={"users.csv": USERS_CSV.replace("u1,21", "u1,old")},
        says=("users.csv, line 3, column 'age': found 'old', expected a number",),
    ),
    "no key in the item file": Case(
        command="ingest run.toml",
        files={"items.csv": ITEMS_CSV.replace("item", "article")},
        says=("items: there is no column 'item'", "the columns are 'article', 'colour'", "as schema.item_key"),
    ),
    "a truncated Parquet file": read_as(
        *("events.parquet", parquet_bytes()[:-40]), "events.parquet: can't be read as .parquet: ", "truncated"
    ),
    "an unknown suffix": read_as(
        *("events.dat", EVENTS_CSV, "events.dat: files of kind '.dat' can't be read; supported are .csv, .tsv"),
        "save lines of text as .csv (commas) or .tsv (tabs), with a first line of column names",
    ),
    "a line that is no JSON": read_as(
        *("events.ndjson", '{"user": "u0", "item": "i0", "time": "2024-01-01"}\nu1 i1\n'),
        "events.ndjson, line 2: not a JSON object",
    ),
    "a table as lists": Case(
        command="init ratings.txt --out first.toml",
        files={"ratings.txt": "".join(f"u{u} i{i} 5\n" for u, i in EVENTS)},
        says=(
            "ratings.txt: every line has 3 fields and many begin alike, such as 'u0 i0 5'",
            "read as lines of `query item item ...`: save it as .tsv, with a first line of column names",
        ),
    ),
    "an empty folder": Case(
        command="ingest run.toml",
        files={"run.toml": RUN.replace("events.csv", "trained")},
        says=("interactions: no readable file in the folder", "trained", "supported are .csv"),
    ),
    "no header": Case(
        command="init bare.csv --out first.toml",
        files={"bare.csv": "1,5,1700000000\n2,7,1700000001\n"},
        says=("interactions: the column names are 1, 5, 1700000000", "expected a first line of names", "user_id"),
    ),
}

SCHEMAS = {
    "an unknown kind of feature": schema(
        SCHEMA.replace('kind = "Number"', 'kind = "Numbr"'),
        "schema.query.age.kind: found 'Numbr' (text), expected one of Id, Categorical",
        "did you mean 'Number'?",
    ),
    "a feature without its column": schema(
        SCHEMA.replace('column = "age"', 'transform = "log"'), "schema.query.age.column is missing, Number needs it"
    ),
    "a history without item ids": schema(
        INTERACTIONS
        + '[schema.context]\nhistory = { kind = "History" }\n'
        + '[schema.item]\ncolour = { kind = "Categorical", column = "colour" }\n',
        "schema: context.history looks item ids up in the table 'item', but no item feature of kind Id uses it",
        'declare one, such as [schema.item] item = { kind = "Id"',
    ),
    "a history without time": schema(
        SCHEMA.replace('time = "time"\n', "") + '[schema.context]\nhistory = { kind = "History" }\n'
        '[split]\nkind = "RandomSplit"\n',
        "schema.context.history: a History needs the time of events, but interactions.time is not set: name the column",
    ),
    "a shared table of two makes": schema(
        INTERACTIONS + '[schema.query]\nuser = { kind = "Id", column = "user", table = "ids" }\n'
        '[schema.item]\nitem = { kind = "Id", column = "item", table = "ids", min_count = 2 }\n',
        "schema: query.user and item.item share the table 'ids' but make its rows differently",
        "(min_count is 1 and 2): give them equal settings or two tables",
    ),
    "a reward that is 0 above where it is 1": schema(
        SCHEMA.replace('time = "time"\n', 'time = "time"\nweight = { column = "seen", zero_below = 2 }\n'),
        "schema.interactions.weight: Reward(column='seen'): zero_below is 2.0, expected a number from 0 to one_from",
    ),
    "a reward by a column that is not there": Case(
        command="ingest run.toml",
        files={
            "run.toml": RUN.replace('time = "time"\n', 'time = "time"\nweight = { column = "seen", per = "tme" }\n')
        },
        says=("events.csv: there is no column 'seen'", "the columns are 'user', 'item', 'time'"),
    ),
    "no feature of queries": schema(
        INTERACTIONS + ITEM, "schema: the query side has no feature: declare one under [schema.query]"
    ),
    "no feature of items": schema(
        INTERACTIONS + QUERY, "schema: the item side has no feature: declare one under [schema.item]"
    ),
    "queries without an id": schema(
        SCHEMA.replace('query = "user"\n', ""), "interactions.query names no column: name the column of the query id"
    ),
}

SETTINGS_CASES = {
    "no TOML": Case(
        command="train run.toml --out model",
        files={"run.toml": "[schema\n"},
        says=("run.toml: not valid TOML: ", "line 1"),
    ),
    "no run": Case(
        command="train nowhere.toml --out model",
        says=("nowhere.toml: No such file or directory, expected a run as TOML; `twotower init` writes one",),
    ),
    "no data": Case(
        command="ingest run.toml",
        files={"run.toml": SCHEMA},
        says=("data is missing: it names the files, such as [data] interactions = ",),
    ),
    "an unknown setting": setting(
        "training.epoch=3", "run.toml: training.epoch is not a setting of Training: did you mean 'epochs'?"
    ),
    "an unknown loss": setting(
        "loss.kind=SampledSoftmx",
        *("run.toml: loss.kind: found 'SampledSoftmx' (text), expected one of ", "did you mean 'SampledSoftmax'?"),
    ),
    "text for a number": setting(
        "training.epochs=many", "run.toml: training.epochs: found 'many' (text), expected a number"
    ),
    "a number for a list": setting(
        "evaluation.k=10", "run.toml: evaluation.k: found 10 (whole number), expected a list"
    ),
    "no value": setting("training.epochs", "--set training.epochs: expected NAME=VALUE, such as loss.temperature=0.1"),
    "two settings at one --set": setting(
        "training.epochs=1 training.seed=1",
        "training.seed=1: not expected here; every setting needs a --set of its own",
    ),
    "settings of another kind": setting(
        "negatives.kind=InBatch",
        "run.toml: negatives.n is not a setting of InBatch",
        "to replace the whole table: --set 'negatives={kind=\"InBatch\"}'",
    ),
    "a temperature of zero": setting(
        "loss.temperature=0", "run.toml: loss.temperature of SampledSoftmax: found 0.0, expected a positive number"
    ),
    "a positive among its negatives": setting(
        "loss.exclude=none",
        "run.toml: loss.exclude of SampledSoftmax: 'none' leaves the positive among its own negatives",
        "use exclude = 'positives' or 'known', or correction = 'all'",
    ),
    "negatives that never come": setting(
        "negatives={kind='Queue',warm_up=1000}",
        *("negatives: Queue offers nothing in the first 1,000 steps, but training.epochs = 1 gives ", "train longer"),
    ),
    "a window that is never taken": setting(
        "negatives={kind='RankWindow',first=2,last=4,after=1000}",
        *("negatives: RankWindow offers nothing in the first 1,000 steps", "mix it with one"),
    ),
    "impressions that no column tells": setting(
        "negatives={kind='Impressions',n=2}",
        *("run.toml: negatives: Impressions draws from what queries were shown", "names no column: name the one"),
    ),
    "groups by no feature": setting(
        "negatives={kind='Conditional',n=2,by='land'}",
        "run.toml: negatives.by of Conditional: found 'land', expected a feature of schema.query or schema.context: ",
    ),
    "a correction of what is never drawn": setting(
        "negatives={kind='Unknown',of={kind='Uniform',n=2}} --set loss.correction=all",
        "run.toml: loss.correction: found 'all', which needs the expected count of every positive, but the sampler ",
    ),
    "a pool of old vectors": setting(
        "negatives={kind='DNS',of={kind='Queue'}} --set loss.correction=none",
        *("run.toml: negatives: DNS: of is Queue, which offers vectors", "choose from another sampler"),
    ),
    "no negatives": setting("negatives.n=0", "run.toml: negatives: Uniform: n is 0, expected at least 1"),
    "a split by a column that is not named": Case(
        command="train run.toml --out model",
        files={"run.toml": RUN.replace('time = "time"\n', "")},
        says=("run.toml: split: found LeaveLastOut, but schema.interactions.time names no column: name it, or choose",),
    ),
    "a given split that nobody gave": setting(
        "split.kind=GivenSplit",
        "run.toml: split: found GivenSplit, but nothing says what is held out: name ",
    ),
    "shares of more than all": setting(
        'split={kind="TimeSplit",valid=0.5,test=0.5}', "run.toml: split: TimeSplit: valid and test take 1 of the events"
    ),
    "an unknown metric": setting(
        "training.metric=recal@5",
        "training.metric: ",
        "'recal@5' is not reported, expected one of recall@5, ndcg@5",
        "did you mean recall@5?",
    ),
    "a metric of weights that no event has": setting(
        "training.metric=weighted_recall@5", "training.metric: ", "'weighted_recall@5' is not reported, expected one of"
    ),
    "a metric of no length": setting(
        "training.metric=recall",
        "run.toml: training.metric: found 'recall', expected a metric at a number of items",
    ),
    "a share that is none": setting(
        "evaluation.head_share=3", "run.toml: evaluation.head_share: found 3.0, expected a share of the training events"
    ),
    "queries whose features change": Case(
        command="train run.toml --out model --set training.batch_of=queries",
        files={"run.toml": RUN + '[schema.context]\nhistory = { kind = "History" }\n'},
        says=("run.toml: training.batch_of: 'queries' batches whole queries", "use batch_of = 'pairs'"),
    ),
    "a device that is not there": setting(
        "training.device=meta", "training.device: found 'meta', but torch sees no GPU: use device = 'cpu'"
    ),
}

SEARCHES = {
    "nothing to search": search(
        "",
        "tune: nothing varies: declare ranges, such as [tune.ranges] ",
        "or sweep, such as --sweep loss.temperature=",
    ),
    "an unknown setting of the search": search(
        "[tune]\ntrails = 5\n", "run.toml: tune.trails is not a setting of Tune: did you mean 'trials'?"
    ),
    "no trials": search("[tune]\ntrials = 0\n", "run.toml: tune.trials: found 0, expected at least 1"),
    "a range upside down": search(
        '[tune.ranges]\n"loss.temperature" = { low = 0.3, high = 0.02 }\n',
        "run.toml: tune.ranges.loss.temperature: found low = 0.3 and high = 0.02, expected numbers, low under high",
    ),
    "half a range": search(
        '[tune.ranges]\n"loss.temperature" = { low = 0.3 }\n',
        "run.toml: tune.ranges.loss.temperature: found no low and high, and no choices: write { low = 0.02, ",
    ),
    "the logarithm of zero": search(
        '[tune.ranges]\n"loss.temperature" = { low = 0, high = 1, log = true }\n',
        "run.toml: tune.ranges.loss.temperature: found low = 0 with log = true, expected a positive low",
    ),
    "a range and choices": search(
        '[tune.ranges]\n"towers.dim" = { low = 2, high = 4, choices = [2, 4] }\n',
        "run.toml: tune.ranges.towers.dim: found choices beside low, high or log, expected one or the other",
    ),
    "the same choice twice": search(
        '[tune.ranges]\n"towers.dim" = { choices = [4, 4] }\n',
        "run.toml: tune.ranges.towers.dim: found 4, 4, expected each choice once",
    ),
    "the name of a range without quotes": search(
        "[tune.ranges]\nloss.temperature = { low = 0.02, high = 0.3 }\n",
        *(
            "run.toml: tune.ranges.loss.temperature is not a setting of Range",
            'is quoted there: "loss.temperature" = {',
        ),
    ),
    "a range of what is no setting": search(
        '[tune.ranges]\n"loss.temprature" = { low = 0.02, high = 0.3 }\n',
        "tune: ranges: loss.temprature is not a setting of SampledSoftmax: did you mean 'temperature'?",
    ),
    "a range that leaves the setting's own": search(
        '[tune.ranges]\n"loss.strength" = { low = 0.5, high = 1.5 }\n',
        "tune: ranges: loss.strength of SampledSoftmax: found 1.5, expected 0 to 1",
    ),
    "a range of what is measured": search(
        '[tune.ranges]\n"evaluation.filter_seen" = { choices = [true, false] }\n',
        "tune: ranges: changes evaluation, but values of trials can be compared only where it is the same: leave",
    ),
    "an arm with more epochs": search(
        '[tune.arms.long]\nset = ["training.epochs=2"]\nranges = { "towers.dim" = { choices = [2, 4] } }\n',
        "tune.arms.long: changes training.epochs, expected 1.0 as in the run: arms get equal budgets",
    ),
    "a sweep without values": search(
        "", "--sweep loss.temperature: expected NAME=VALUE,VALUE,...", more="--sweep loss.temperature"
    ),
    "a search in a file's place": Case(
        command="tune run.toml --out users.csv --sweep towers.dim=2,4",
        says=("users.csv: there is a file, expected a free place for the folder of the search",),
    ),
    "a best run that no search wrote": Case(
        command="tune run.toml --out . --sweep towers.dim=2,4",
        files={"best.toml": RUN},
        says=("holds a best.toml that no search wrote and this one would replace: choose another folder",),
    ),
    "a damaged journal": Case(
        command="tune run.toml --out . --sweep towers.dim=2,4",
        files={"tune.journal": "trials\n"},
        says=("tune.journal: damaged or no journal of a search (", "choose another folder, or delete it first"),
    ),
}

QUERIES = {
    "no JSON": query("user=u1", "--query: not valid JSON: ", 'expected an object such as \'{"user_id": "u1"}\''),
    "no object": query('["u1"]', '--query: found ["u1"], expected an object'),
    "an unknown column": query(
        '{"usr": "u1"}', "query: 'usr' is no column of the query side, which has 'age', 'user'; did you mean 'user'?"
    ),
    "nothing": query("{}", "query: it is empty, expected at least one of 'age', 'user'"),
    "nothing but null": query('{"user": null}', "query: it is empty, expected at least one of 'age', 'user'"),
    "text for a number in a query": query(
        '{"user": "u1", "age": "old"}', "query.age: column 'age': found string, expected numbers"
    ),
    "a list for an id": query('{"user": ["u1"]}', "query: column 'user': found list", "expected one value a row"),
    "a stranger": query(
        '{"user": "nobody"}', "query: user 'nobody' is not known, and nothing else was given", "give other columns"
    ),
    "a history that no feature reads": query(
        '{"history": ["i1"]}', "query: history is given, but the schema declares no History feature: leave it out"
    ),
}

ARTIFACTS = {
    "no model": artifact(
        "evaluate trained",
        lambda at: None,
        "trained: holds no trained model (no run.toml): write one with twotower train",
    ),
    "no folder": artifact(
        "evaluate model", lambda at: None, "model: there is no such folder, expected the folder of a"
    ),
    "a file for a model": artifact(
        "evaluate run.toml", lambda at: None, "run.toml: this is a file, expected the folder"
    ),
    "an interrupted first save": artifact(
        "evaluate trained/model",
        lambda at: shutil.rmtree(at / "trained/model/best"),
        *("trained/model/best: holds no checkpoint (no state.json): train first",),
    ),
    "a truncated checkpoint": artifact(
        "evaluate trained/model",
        cut("trained/model/best/model.safetensors"),
        *("best/model.safetensors: damaged or unreadable", "train again, or use another checkpoint"),
    ),
    "a checkpoint without its state": artifact(
        "evaluate trained/model", cut("trained/model/best/state.json"), "best/state.json: damaged", "train again"
    ),
    "a checkpoint of another version": artifact(
        "evaluate trained/model",
        edited("trained/model/best/state.json", '"format": 2', '"format": 99'),
        "state.json: format 99, this version reads 2: train again, or use the version that wrote it",
    ),
    "a checkpoint of another shape": artifact(
        "evaluate trained/model",
        edited("trained/model/run.toml", "dim = 4", "dim = 8"),
        *("trained/model/best: does not fit this run", "of another shape: use the run.toml beside it"),
    ),
    "a model without its store": artifact(
        "evaluate trained/model",
        lambda at: shutil.rmtree(at / "trained/store"),
        *("trained/model: the store the model was trained on is not at ", "trained/store: move it along", "data.store"),
    ),
    "a truncated store": artifact(
        "evaluate trained/model",
        cut("trained/store/items.arrow"),
        *("trained/store: the store is damaged, items.arrow has ", "bytes, expected ", "run the ingest again"),
    ),
    "a manifest that was edited": artifact(
        "evaluate trained/model",
        edited("trained/store/store.json", f'"items": {ITEMS}', '"items": 3'),
        *("store.json: the manifest is damaged (its checksum differs): run the ingest again",),
    ),
    "a store of another schema": artifact(
        "train run.toml --out model --set data.store=trained/store --set schema.query.user.min_count=2",
        lambda at: None,
        *("trained/store: was ingested with another schema than this run's: ingest again with twotower ingest",),
    ),
    "a store that is there": artifact(
        "ingest run.toml --set data.store=trained/store",
        lambda at: None,
        *("trained/store: there is a store already: choose another place, or replace it with overwrite (--overwrite)",),
    ),
    "a folder that is no store": artifact(
        "ingest run.toml --overwrite --set data.store=trained/model",
        lambda at: None,
        *("trained/model: the folder holds what is no part of a store (", "choose another place"),
    ),
    "a model that is there": artifact(
        "train run.toml --out trained/model",
        lambda at: None,
        "trained/model: already holds a trained model: choose another folder, or delete it first",
    ),
    "a run in the model's place": artifact(
        "train run.toml --out .", lambda at: None, "holds a run.toml that no training wrote and this one would replace"
    ),
    "a file in the model's place": artifact(
        "train run.toml --out run.toml", lambda at: None, "run.toml: there is a file, expected a free place"
    ),
    "a run that is there": artifact(
        "init events.csv --out run.toml",
        lambda at: None,
        "run.toml: there is a file already",
        "choose another with --out",
    ),
}

CASES = {**FILES, **SCHEMAS, **SETTINGS_CASES, **SEARCHES, **QUERIES, **ARTIFACTS}


def write(folder: Path, files: dict[str, str | bytes | None]) -> None:
    for name, content in files.items():
        if content is not None:
            (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the store and the model of a run in which nothing is wrong."""
    folder = tmp_path_factory.mktemp("good")
    write(folder, {**GOOD})
    assert main(["train", str(folder / "run.toml"), "--out", str(folder / "model")]) == 0
    return folder


@pytest.mark.parametrize("name", CASES)
def test_a_bad_input_is_one_line_that_helps(
    name: str,
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    case = CASES[name]
    write(tmp_path, {**GOOD, **case.files})
    (tmp_path / "trained").mkdir()
    for part in ("store", "model"):
        if "trained/" in case.command:
            shutil.copytree(trained / part, tmp_path / "trained" / part)
    if case.damage is not None:
        case.damage(tmp_path)
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    before = sorted(tmp_path.rglob("*"))
    assert main([*case.command.split(), *([case.query] if case.query is not None else [])]) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: ")
    assert line.count("\n") == 1
    found = -1
    for part_of_line in case.says:
        found = line.find(part_of_line, found + 1)
        assert found >= 0, f"{part_of_line!r} is not (or not in this order) in {line!r}"
    assert sorted(tmp_path.rglob("*")) == before or name in LEAVES, "what failed left something behind"


LEAVES = {
    "a device that is not there",
    "a damaged journal",
    "a window that is never taken",
    "negatives that never come",
}
"""Found after the store was made, which stays."""


class Opaque(Uniform):
    """A sampler that does not know what it draws."""

    density = "none"


def test_a_correction_needs_counts() -> None:
    """No sampler of the command line is without a density: those that are come from Python."""
    ids = Schema(
        interactions=Interactions(item="item", query="user"),
        query={"user": Id(column="user")},
        item={"item": Id(column="item")},
    )
    with pytest.raises(ConfigError, match=r"loss\.correction: found 'negatives'.* sampler Opaque has no density: use"):
        Run(schema=ids, negatives=Opaque(4), loss=SampledSoftmax())
