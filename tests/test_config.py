"""The tree of a run: reading, writing, overriding, and settings that contradict one another."""

from __future__ import annotations

import os
import tomllib
from importlib.resources import as_file, files
from pathlib import Path
from typing import get_args

import pytest

from twotower.config import (
    Arm,
    Data,
    Evaluation,
    Range,
    Run,
    Training,
    Tune,
    dump_run,
    ingest_run,
    load_run,
    parse_run,
    vary,
)
from twotower.data.splits import GivenSplit, LeaveLastOut, QuerySplit, RandomSplit, Split, TimeSplit
from twotower.errors import ConfigError, SchemaError
from twotower.frequency import ExactFrequency, StreamingFrequency
from twotower.losses import (
    BPR,
    CCL,
    NCE,
    AdapTau,
    AdaptiveMargin,
    AdaptiveTemperature,
    BilateralSoftmax,
    Loss,
    Losses,
    Perturbed,
    SampledSoftmax,
    Symmetric,
)
from twotower.negatives import InBatch, Mixture, Negatives, Sampler, Uniform
from twotower.optimisers import Adagrad, AdamW, RowwiseAdagrad, RowwiseAdam
from twotower.schema import Id, Interactions, Schema, Text
from twotower.towers import TwoTower

SCHEMA = """
[schema]
interactions = { query = "user", item = "item", time = "time" }
query.user = { kind = "Id", column = "user" }
item.item = { kind = "Id", column = "item" }
"""

FULL = (
    SCHEMA
    + """
item.name = { kind = "Text", columns = ["title"], chars = [3, 5] }

[data]
interactions = ["events"]
items = ["items.parquet"]

[split]
kind = "LeaveLastOut"

[towers]
dim = 32
query.widths = [64, 32]
item.widths = [32]
tables.item = { init = "zeros" }

[frequency]
kind = "StreamingFrequency"

[negatives]
kind = "Mixture"
parts = [{ kind = "InBatch" }, { kind = "Uniform", n = 8192 }]

[loss]
kind = "SampledSoftmax"
temperature = 0.07

[training]
batch_size = 512
epochs = 3
tables = { kind = "RowwiseAdam", lr = 0.02 }
dense = { kind = "Adagrad" }
clip_norm = 1
patience = 3

[evaluation]
k = [20]
filter_seen = false
"""
)


def test_a_run_is_what_its_toml_says() -> None:
    run = parse_run(FULL)
    assert run.schema == Schema(
        interactions=Interactions(query="user", item="item", time="time"),
        query={"user": Id(column="user")},
        item={"item": Id(column="item"), "name": Text(columns=("title",), chars=(3, 5))},
    )
    assert run.data == Data(interactions=("events",), items=("items.parquet",))
    assert isinstance(run.split, LeaveLastOut)
    assert isinstance(run.towers, TwoTower)
    assert (run.towers.dim, run.towers.query.widths, run.towers.item.widths) == (32, (64, 32), (32,))
    assert run.towers.tables["item"].init == "zeros"
    assert isinstance(run.frequency, StreamingFrequency)
    assert isinstance(run.negatives, Mixture)
    in_batch, uniform = run.negatives.parts
    assert isinstance(in_batch, InBatch)
    assert isinstance(uniform, Uniform)
    assert uniform.n == 8192
    assert isinstance(run.loss, SampledSoftmax)
    assert run.loss.temperature == 0.07
    assert isinstance(run.training.tables, RowwiseAdam)
    assert (run.training.tables.lr, run.training.dense) == (0.02, Adagrad())
    assert (run.training.batch_size, run.training.epochs, run.training.clip_norm) == (512, 3.0, 1.0)
    assert run.evaluation == Evaluation(k=(20,), filter_seen=False)


def test_only_a_schema_is_needed() -> None:
    run = parse_run(SCHEMA)
    assert run.data is None
    assert isinstance(run.split, TimeSplit)
    assert isinstance(run.frequency, ExactFrequency)
    assert isinstance(run.loss, SampledSoftmax)
    assert isinstance(run.training.tables, RowwiseAdagrad)
    assert run.training.dense == AdamW()


def test_defaults_are_not_shared_between_runs() -> None:
    one, two = parse_run(SCHEMA), parse_run(SCHEMA)
    assert one.loss is not two.loss
    assert one.training.tables is not two.training.tables


@pytest.mark.parametrize("text", [SCHEMA, FULL])
def test_what_is_written_reads_back_the_same(text: str) -> None:
    run = parse_run(text)
    written = dump_run(run)
    again = parse_run(written)
    assert dump_run(again) == written
    assert (again.schema, again.data, again.split, again.evaluation) == (
        run.schema,
        run.data,
        run.split,
        run.evaluation,
    )
    assert (repr(again.loss), repr(again.negatives), repr(again.towers)) == (
        repr(run.loss),
        repr(run.negatives),
        repr(run.towers),
    )


SEARCHED = """
[tune]
trials = 5
[tune.ranges]
"loss.temperature" = { low = 0.02, high = 0.3, log = true }
"towers.query.widths" = { choices = [[32], [64, 32]] }
[tune.arms.bpr]
set = ["loss={kind='BPR'}"]
ranges = { "negatives.parts.1.n" = { low = 1, high = 5 } }
"""


def test_a_search_is_part_of_the_tree() -> None:
    run = parse_run(FULL + SEARCHED)
    assert run.tune == Tune(
        trials=5,
        ranges={
            "loss.temperature": Range(low=0.02, high=0.3, log=True),
            "towers.query.widths": Range(choices=((32,), (64, 32))),
        },
        arms={"bpr": Arm(set=("loss={kind='BPR'}",), ranges={"negatives.parts.1.n": Range(low=1, high=5)})},
    )
    assert parse_run(dump_run(run)).tune == run.tune
    assert parse_run(FULL).tune is None
    assert "tune" not in tomllib.loads(dump_run(parse_run(FULL)))


def test_settings_are_varied() -> None:
    run = vary(
        parse_run(FULL), set=["loss={kind='BPR'}"], values={"loss.temperature": 0.5, "towers.query.widths": (8,)}
    )
    assert isinstance(run.loss, BPR)
    assert run.loss.temperature == 0.5
    assert run.towers.query.widths == (8,)
    assert dump_run(vary(run)) == dump_run(run)
    with pytest.raises(ConfigError, match=r"^loss\.tempo is not a setting of BPR"):
        vary(run, values={"loss.tempo": 1})


def test_defaults_are_written_out() -> None:
    tree = tomllib.loads(dump_run(parse_run(SCHEMA)))
    assert tree["loss"]["temperature"] == 0.05
    assert tree["training"]["batch_size"] == 4096
    assert tree["training"]["tables"]["kind"] == "RowwiseAdagrad"
    assert "clip_norm" not in tree["training"]


@pytest.mark.parametrize("kind", [member.__name__ for member in get_args(Losses)])
def test_every_loss_can_be_named(kind: str) -> None:
    run = parse_run(SCHEMA, set=[f"loss.kind={kind}"])
    assert type(run.loss).__name__ == kind
    assert dump_run(parse_run(dump_run(run))) == dump_run(run)


@pytest.mark.parametrize("kind", [member.__name__ for member in get_args(Negatives)])
def test_every_sampler_is_known(kind: str) -> None:
    with pytest.raises(ConfigError, match=rf"negatives\.zzz is not a setting of {kind}"):
        parse_run(SCHEMA, set=[f"negatives.kind={kind}", "negatives.zzz=1"])


@pytest.mark.parametrize("kind", [member.__name__ for member in get_args(Split)])
def test_every_split_is_known(kind: str) -> None:
    with pytest.raises(ConfigError, match=rf"split\.zzz is not a setting of {kind}"):
        parse_run(SCHEMA, set=[f"split.kind={kind}", "split.zzz=1"])


def test_settings_are_laid_over_the_file() -> None:
    changes = ["loss.temperature=0.1", "negatives.parts.1.n=64", "training.patience=none", "training.dense.kind=AdamW"]
    run = parse_run(FULL, set=changes)
    assert isinstance(run.loss, SampledSoftmax)
    assert run.loss.temperature == 0.1
    assert isinstance(run.negatives, Mixture)
    assert isinstance(run.negatives.parts[1], Uniform)
    assert run.negatives.parts[1].n == 64
    assert run.training.patience is None
    assert run.training.dense == AdamW()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("loss.temprature=0.1", "loss.temprature is not a setting of SampledSoftmax: did you mean 'temperature'?"),
        ("loss.temperature=a", "loss.temperature: found 'a' (text), expected a number"),
        ("loss.kind=SampledSoftmx", "did you mean 'SampledSoftmax'?"),
        ("loss.temperature=-1", "loss.temperature of SampledSoftmax: found -1.0, expected a positive number"),
        ("negatives.parts.1.m=3", "negatives.parts[1].m is not a setting of Uniform"),
        ("negatives.parts.1.n=0", "negatives.parts[1]"),
        ("training.batch_of=paris", "training.batch_of: found 'paris' (text), expected one of 'pairs', 'queries'"),
        ("training.batch_size=0", "training.batch_size: found 0, expected at least 1"),
        ("training.batch_size=1e3", "training.batch_size: found 1000.0 (number), expected a whole number"),
        ("training.epochs=0", "training.epochs: found 0.0, expected a positive number"),
        ("training.epochs=inf", "training.epochs: found inf, expected a positive number"),
        ("training.tile=0", "training.tile: found 0, expected at least 1"),
        ("training.threads=0", "training.threads: found 0, expected at least 1"),
        ("training.seed=-1", "training.seed: found -1, expected at least 0"),
        ("training.clip_norm=0", "training.clip_norm: found 0.0, expected a positive number"),
        ("training.metric=recall", "training.metric: found 'recall', expected a metric at a number of items"),
        ("evaluation.k=[]", "evaluation.k: found [], expected positive numbers"),
        ("evaluation.k=[0]", "evaluation.k: found [0], expected positive numbers"),
        ("data.interactions=[]", "data.interactions: found no path"),
        ("optimizer.lr=1", "optimizer is not a setting of Run"),
    ],
)
def test_a_wrong_setting(setting: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_run(FULL, set=[setting], name="r.toml")
    assert str(error.value).startswith("r.toml: ")
    assert message in str(error.value)


def test_a_wrong_schema_is_a_schema_error() -> None:
    with pytest.raises(SchemaError, match=r"^r\.toml: schema: the item side has no feature"):
        parse_run(SCHEMA, set=["schema.item={}"], name="r.toml")
    with pytest.raises(SchemaError, match=r"^r\.toml: schema\.item\.name: Text.*buckets is 1, expected at least 2"):
        parse_run(FULL, set=["schema.item.name.buckets=1"], name="r.toml")


def test_a_schema_is_needed() -> None:
    with pytest.raises(ConfigError, match="schema is missing, Run needs it"):
        parse_run("")


class Blind(Sampler):
    density = "none"


class Scaled(Sampler):
    density = "relative"


def run_of(**parts: object) -> Run:
    return Run(schema=parse_run(SCHEMA).schema, **parts)  # type: ignore[arg-type]


@pytest.mark.parametrize(("sampler", "reason"), [(Blind(), "has no density"), (Scaled(), "up to an unknown factor")])
def test_a_correction_needs_counts(sampler: Sampler, reason: str) -> None:
    with pytest.raises(ConfigError, match=rf"loss\.correction: found 'negatives', which needs .* {reason}"):
        run_of(negatives=sampler)
    assert run_of(negatives=sampler, loss=SampledSoftmax(correction="none")).negatives is sampler
    mixed = rf"the sampler Mixture \(InBatch \+ {type(sampler).__name__}\) has no density, for "
    with pytest.raises(ConfigError, match=mixed):
        run_of(negatives=Mixture(parts=(InBatch(), sampler)))


def test_counts_up_to_a_factor_suit_one_loss() -> None:
    with pytest.raises(ConfigError, match=r"loss\.correction: .* unknown factor: .* the loss BilateralSoftmax"):
        run_of(negatives=Scaled())
    assert run_of(negatives=Scaled(), loss=BilateralSoftmax(correction="negatives")).negatives.density == "relative"
    with pytest.raises(ConfigError, match=r"loss: NCE needs .* Scaled knows its density only up to an unknown factor"):
        run_of(negatives=Scaled(), loss=NCE())


WITHOUT_POSITIVES = [
    "{kind='RankWindow'}",
    "{kind='Unknown', of={kind='Uniform', n=4}}",
    "{kind='Impressions', n=4}",
    "{kind='IRGAN', n=4, exclude_known=true, known_share=0}",
    "{kind='Mixture', parts=[{kind='RankWindow'}, {kind='Impressions', n=4}]}",
]


@pytest.mark.parametrize("negatives", WITHOUT_POSITIVES)
def test_a_positive_that_is_never_offered_has_no_correction(negatives: str) -> None:
    """Its log count would be -inf, and the loss 0 whatever the scores are."""
    settings = ["schema.interactions.taken=clicked", "loss.kind=SampledSoftmax", f"negatives={negatives}"]
    with pytest.raises(
        ConfigError, match=r"loss\.correction: found 'all', which needs .* never offers .*: use .*'negatives', or mix"
    ):
        parse_run(SCHEMA, set=[*settings, "loss.correction=all"])
    with pytest.raises(ConfigError, match=r"loss: NCE needs the expected count of every positive.*: mix it with one"):
        parse_run(SCHEMA, set=[*settings, "loss={kind='NCE'}"])
    with pytest.raises(ConfigError, match=r"loss: correction of the SampledSoftmax in it: found 'all'"):
        parse_run(SCHEMA, set=[*settings, "loss={kind='Perturbed', of={kind='SampledSoftmax', correction='all'}}"])
    parse_run(SCHEMA, set=[*settings, "loss.correction=negatives"])
    mixed = f"negatives={{kind='Mixture', parts=[{{kind='InBatch'}}, {negatives}]}}"
    parse_run(SCHEMA, set=[*settings[:2], mixed, "loss.correction=all"])


def test_a_sampler_needs_what_it_draws_by() -> None:
    for name in ("Impressions", "RNS"):
        sampler = f"{{kind='{name}', n=2}}"
        blind = ["loss.kind=SampledSoftmax", "loss.correction=none"]
        with pytest.raises(
            ConfigError, match=rf"negatives: {name} draws .* schema\.interactions\.taken names no column"
        ):
            parse_run(SCHEMA, set=[*blind, f"negatives={sampler}"])
        with pytest.raises(ConfigError, match=rf"negatives: {name} draws"):
            parse_run(SCHEMA, set=[*blind, f"negatives={{kind='DNS', of={sampler}}}"])
    with pytest.raises(ConfigError, match=r"negatives\.by of Conditional: found 'land', .*: user$"):
        parse_run(SCHEMA, set=["negatives={kind='Conditional', n=2, by='land'}"])
    for name in ("InBatch", "Rotations"):
        with pytest.raises(ConfigError, match=rf"training\.batch_size: found 1, but {name} offers what the other rows"):
            parse_run(SCHEMA, set=[f"negatives={{kind='{name}'}}", "training.batch_size=1"])


def test_a_loss_made_of_counts_needs_them() -> None:
    with pytest.raises(
        ConfigError, match=r"loss: NCE needs the expected count .* Blind has no density: choose another"
    ):
        run_of(negatives=Blind(), loss=NCE())
    with pytest.raises(
        ConfigError, match=r"loss: correction of the SampledSoftmax in it: found .negatives., which needs"
    ):
        run_of(negatives=Blind(), loss=Symmetric())
    run_of(negatives=Blind(), loss=Symmetric(of=SampledSoftmax(correction="none")))


@pytest.mark.parametrize("loss", [AdaptiveMargin(), AdaptiveTemperature(correction="none"), AdapTau(), CCL()])
def test_a_loss_of_cosines_needs_unit_vectors(loss: Loss) -> None:
    with pytest.raises(ConfigError, match=rf"{type(loss).__name__} takes scores for cosines, but towers.normalise is"):
        run_of(loss=loss, towers=TwoTower(normalise=False))


@pytest.mark.parametrize(
    "loss",
    [Perturbed(of=AdapTau()), Symmetric(of=AdaptiveMargin()), Perturbed(of=Symmetric(of=AdaptiveMargin()))],
)
def test_a_loss_made_of_one_of_cosines_needs_them_too(loss: Loss) -> None:
    with pytest.raises(
        ConfigError, match=r"(AdapTau|AdaptiveMargin) takes scores for cosines, but towers\.normalise is"
    ):
        run_of(loss=loss, towers=TwoTower(normalise=False))


def test_an_uncorrected_loss_takes_any_sampler() -> None:
    assert isinstance(run_of(negatives=Blind(), loss=BPR()).loss, BPR)


def test_a_split_needs_its_columns() -> None:
    timeless = Schema(
        interactions=Interactions(query="user", item="item"),
        query={"user": Id(column="user")},
        item={"item": Id(column="item")},
    )
    with pytest.raises(ConfigError, match=r"TimeSplit, but schema\.interactions\.time names no column"):
        Run(schema=timeless)
    with pytest.raises(ConfigError, match=r"LeaveLastOut, but schema\.interactions\.time names no column"):
        Run(schema=timeless, split=LeaveLastOut())
    assert Run(schema=timeless, split=QuerySplit()).schema is timeless
    assert Run(schema=timeless, split=RandomSplit()).schema is timeless
    data = Data(interactions=("events",))
    with pytest.raises(ConfigError, match="GivenSplit, but nothing says what is held out"):
        Run(schema=timeless, data=data, split=GivenSplit())
    assert Run(schema=timeless, data=Data(interactions=("e",), test=("t",)), split=GivenSplit()).data is not None


def test_a_query_weight_needs_queries() -> None:
    search = Schema(
        interactions=Interactions(item="item", time="time"),
        context={"words": Text(columns=("words",))},
        item={"item": Id(column="item")},
    )
    with pytest.raises(ConfigError, match=r"training\.query_weight: found -0\.5, but .* names no column"):
        Run(schema=search, training=Training(query_weight=-0.5))
    with pytest.raises(ConfigError, match=r"schema\.interactions\.query names no column"):
        Run(schema=search, split=LeaveLastOut())


def test_paths_are_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "deep").mkdir()
    absolute = os.path.abspath(tmp_path / "elsewhere" / "items.parquet")
    text = SCHEMA + f"[data]\ninteractions = ['../events']\nitems = ['{absolute}']\n"
    (tmp_path / "deep" / "run.toml").write_text(text)
    monkeypatch.chdir(tmp_path)
    run = load_run("deep/run.toml", set=["data.store=here"])
    assert run.data == Data(
        interactions=(os.path.abspath(tmp_path / "events"),),
        items=(absolute,),
        store=os.path.abspath(tmp_path / "deep" / "here"),
    )
    assert parse_run(dump_run(run)).data == run.data


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml: No such file or directory, expected a run as TOML"):
        load_run(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="Is a directory"):
        load_run(tmp_path)
    (tmp_path / "latin.toml").write_bytes(b"# \xe9")
    with pytest.raises(ConfigError, match="not UTF-8 text"):
        load_run(tmp_path / "latin.toml")
    (tmp_path / "bad.toml").write_text("a = 1\nb = = 2\n")
    with pytest.raises(ConfigError, match=r"bad\.toml: not valid TOML: .*line 2"):
        load_run(tmp_path / "bad.toml")


def test_ingest_needs_files() -> None:
    with pytest.raises(ConfigError, match="data is missing"):
        ingest_run(parse_run(SCHEMA))


def test_the_demo_is_a_run() -> None:
    with as_file(files("twotower") / "demo" / "run.toml") as path:
        run = load_run(path)
    assert dump_run(parse_run(dump_run(run))) == dump_run(run)
