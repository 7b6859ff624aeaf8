"""A run: one typed tree of all its settings, made in Python or read from TOML.

    run = load_run("run.toml", set=["loss.temperature=0.1"])
    text = dump_run(run)

``settings`` says how a tree is read, written and overridden; here is what the tree holds, and what its settings have to
do with one another.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from .data.batches import BatchOf, Order, check_batches
from .data.ingest import IngestReport, ingest
from .data.splits import GivenSplit, LeaveLastOut, QuerySplit, Split, TimeSplit
from .data.thinning import Thinning
from .errors import ConfigError, TwoTowerError
from .frequency import ExactFrequency, Frequency, StreamingFrequency
from .losses import Loss, Losses, RowLoss, SampledSoftmax
from .negatives import RNS, Conditional, Impressions, InBatch, Mixture, Negatives, Rotations, Sampler, Uniform
from .optimisers import AdamW, DenseOptimiser, RowwiseAdagrad, TableOptimiser
from .schema import Schema
from .settings import Codec, Tree, format_toml, override, parse_toml, placed
from .towers import TwoTower

_CODEC = Codec(Losses, Negatives, ExactFrequency | StreamingFrequency)


def _require(ok: bool, message: str) -> None:
    if not ok:
        raise ConfigError(message)


@dataclass(frozen=True, kw_only=True)
class Data:
    """Where the files are. In a TOML file, paths are relative to that file."""

    interactions: tuple[str, ...]
    queries: tuple[str, ...] = ()
    items: tuple[str, ...] = ()
    valid: tuple[str, ...] = ()
    """Interactions that are held out for validation."""
    test: tuple[str, ...] = ()
    """Interactions that are held out for the test."""
    store: str = "store"
    """Folder of the ingested data."""

    def __post_init__(self) -> None:
        _require(len(self.interactions) > 0, "data.interactions: found no path, expected at least one file or folder")

    def under(self, folder: Path) -> Data:
        """The same data with relative paths taken from ``folder``, all of them absolute."""

        def rooted(paths: tuple[str, ...]) -> tuple[str, ...]:
            return tuple(os.path.abspath(folder / path) for path in paths)

        return Data(
            interactions=rooted(self.interactions),
            queries=rooted(self.queries),
            items=rooted(self.items),
            valid=rooted(self.valid),
            test=rooted(self.test),
            store=rooted((self.store,))[0],
        )


@dataclass(frozen=True, kw_only=True)
class Training:
    """How the towers are trained."""

    batch_of: BatchOf = "pairs"
    """What is drawn: pairs of a query and an item, or queries with all their items."""
    batch_size: int = 4096
    """Pairs, or queries, of a batch."""
    epochs: float = 10.0
    query_weight: float = 0.0
    """The weight of a pair is multiplied by (its query's number of pairs) ** query_weight; -0.5 is usual, 0 is off."""
    thin: Thinning | None = None
    """Which events an epoch leaves out, drawn anew each time; for pairs. They stay known, so are never negatives."""
    order: Order = "shuffled"
    """Of an epoch of pairs: all of it shuffled, or day by day, oldest first, shuffled within each."""
    tables: TableOptimiser = field(default_factory=RowwiseAdagrad)
    """Moves the embedding tables."""
    dense: DenseOptimiser = field(default_factory=AdamW)
    """Moves everything else."""
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    """Learning rates over the run, after the warm-up: as they are, or down to zero."""
    warmup_steps: int = 0
    clip_norm: float | None = None
    """Largest norm of the gradient of all that is learned, tables included."""
    tile: int | None = None
    """Score rows held at a time. Without it 128, which suits a CPU's cache; on a GPU what makes 256 MiB of scores."""
    encode_chunk: int | None = None
    """Queries, or items, whose activations are held at a time, for towers too heavy for the batch: each is encoded
    twice, and the gradient is the same. Without it all of the batch."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of score products; sums and losses are float32 at least."""
    device: str = "cpu"
    threads: int | None = None
    seed: int = 0
    validate_every: float = 1.0
    """In epochs."""
    patience: int | None = None
    """Validations without a better ``metric`` after which training stops."""
    metric: str = "recall@100"
    refit: bool = False
    """After the best number of epochs is known, train again on training and validation events, with the temperature
    that an ``AdapTau`` loss had found."""
    tensorboard: bool = False
    checkpoint_every_s: float = 600.0
    """Wall time after which the state is saved, so that what is cut off goes on from there; 0 after each step."""

    def __post_init__(self) -> None:
        for name, value in (("epochs", self.epochs), ("validate_every", self.validate_every)):
            _require(0 < value < float("inf"), f"training.{name}: found {value}, expected a positive number")
        _require(
            self.checkpoint_every_s >= 0,
            f"training.checkpoint_every_s: found {self.checkpoint_every_s}, expected 0 or more seconds, inf for never",
        )
        counts = {
            "batch_size": self.batch_size,
            "tile": self.tile,
            "encode_chunk": self.encode_chunk,
            "threads": self.threads,
            "patience": self.patience,
        }
        for name, count in counts.items():
            _require(count is None or count >= 1, f"training.{name}: found {count}, expected at least 1")
        for name, start in (("warmup_steps", self.warmup_steps), ("seed", self.seed)):
            _require(start >= 0, f"training.{name}: found {start}, expected at least 0")
        _require(
            self.clip_norm is None or self.clip_norm > 0,
            f"training.clip_norm: found {self.clip_norm}, expected a positive number",
        )
        _require(
            re.fullmatch(r"[a-z_]+@[1-9][0-9]*(_[a-z]+)?", self.metric) is not None,
            f"training.metric: found {self.metric!r}, expected a metric at a number of items, such as 'recall@100'",
        )


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """How a model is measured, over the full catalogue."""

    k: tuple[int, ...] = (10, 100)
    """Lengths of the lists that are measured."""
    filter_seen: bool = True
    """Leave out of a query's list what it is known to like from earlier events."""
    tail_max: int = 50
    """Training events up to which an item is of the tail."""
    head_share: float = 0.5
    """The most popular items that together hold this share of the training events are the head."""
    batch_recall: int | None = None
    """Pairs of a batch in which recall is measured too, among the batch's items alone: to compare with publications
    that report it (350 in Li et al., EMNLP 2023), far easier than the catalogue."""

    def __post_init__(self) -> None:
        _require(
            len(self.k) > 0 and min(self.k, default=0) >= 1,
            f"evaluation.k: found {list(self.k)}, expected positive numbers",
        )
        _require(
            self.batch_recall is None or self.batch_recall >= 2,
            f"evaluation.batch_recall: found {self.batch_recall}, expected the pairs of a batch, at least 2",
        )
        _require(self.tail_max >= 0, f"evaluation.tail_max: found {self.tail_max}, expected 0 or more training events")
        _require(
            0 < self.head_share < 1,
            f"evaluation.head_share: found {self.head_share}, expected a share of the training events between 0 and 1",
        )


@dataclass(frozen=True, kw_only=True)
class Update:
    """How a trained model goes on with what arrived since (``twotower update``)."""

    epochs: float = 4.0
    """Passes over what arrived and what is replayed, at most; the best one on what is held out stays."""
    replay: float = 4.0
    """Earlier events that are trained on again, drawn anew each time, for every event that arrived."""
    rate: float = 1.0
    """Factor of all learning rates, which stay constant over an update."""
    patience: int | None = 1
    """Validations, one a pass, without a better ``training.metric`` after which an update stops."""
    valid: float = 0.1
    """Share of what arrives that is held out for good, by query and day: no update trains on it, and what stays is
    decided by it."""
    valid_days: float = 14.0
    """Only what was held out in so many days before the newest event is asked for."""
    min_recall_ratio: float = 0.9
    """An update does not stay where ``training.metric`` on what is held out is less than so many times what it was
    before, by more than chance; the model is then as it was, and what arrived is trained on with the next update."""
    evict_idle_days: float | None = None
    """Days without an event after which an item leaves the catalogue, with its events, and its row is used again."""

    def __post_init__(self) -> None:
        for name, value in (("epochs", self.epochs), ("rate", self.rate), ("valid_days", self.valid_days)):
            _require(0 < value < math.inf, f"update.{name}: found {value}, expected a positive number")
        for name, value in (("replay", self.replay), ("min_recall_ratio", self.min_recall_ratio)):
            _require(0 <= value < math.inf, f"update.{name}: found {value}, expected 0 or more")
        _require(0 <= self.valid < 1, f"update.valid: found {self.valid}, expected a share from 0 to less than 1")
        _require(
            self.patience is None or self.patience >= 1,
            f"update.patience: found {self.patience}, expected at least 1",
        )
        _require(
            self.evict_idle_days is None or self.evict_idle_days > 0,
            f"update.evict_idle_days: found {self.evict_idle_days}, expected a positive number of days",
        )


Choice = bool | int | float | str | tuple[bool | int | float | str, ...]
"""A value that can be listed; to choose between tables, such as losses, make each an ``Arm``."""


@dataclass(frozen=True, kw_only=True)
class Range:
    """What a search may set a setting to: ``low`` to ``high`` (whole numbers where both are), or one of ``choices``."""

    low: int | float | None = None
    high: int | float | None = None
    log: bool = False
    """Draw evenly by the logarithm."""
    choices: tuple[Choice, ...] | None = None

    def __post_init__(self) -> None:
        if self.choices is not None:
            _require(
                (self.low, self.high, self.log) == (None, None, False),
                "found choices beside low, high or log, expected one or the other",
            )
            _require(len(self.choices) > 0, "found no choices, expected at least one")
            written = [repr(choice) for choice in self.choices]  # as numbers 1, 1.0 and true would be the same
            _require(len({*written}) == len(written), f"found {', '.join(written)}, expected each choice once")
            return
        if self.low is None or self.high is None:
            raise ConfigError(
                "found no low and high, and no choices: write { low = 0.02, high = 0.3 } or { choices = [32, 64] }"
            )
        _require(
            -math.inf < self.low < self.high < math.inf,
            f"found low = {self.low} and high = {self.high}, expected numbers, low under high",
        )
        _require(not self.log or self.low > 0, f"found low = {self.low} with log = true, expected a positive low")


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One of several things that a search compares, such as a loss, each at its own best settings."""

    set: tuple[str, ...] = ()
    """Settings as for ``--set``."""
    ranges: dict[str, Range] = field(default_factory=dict)
    """Of this arm alone; they come over the common ones."""


@dataclass(frozen=True, kw_only=True)
class Tune:
    """A search for settings; ``twotower tune`` does it, training ignores it."""

    trials: int = 20
    """Of each arm."""
    seeds: int = 1
    """Trainings of a trial, whose values are averaged: with training.seed, the number after it, and so on."""
    prune: bool = False
    """Give up a trial whose first training is below the median of the others at the same validation."""
    seed: int = 0
    """Of the draws of settings, the same for every arm."""
    ranges: dict[str, Range] = field(default_factory=dict)
    """By the name of the setting, such as "loss.temperature"."""
    arms: dict[str, Arm] = field(default_factory=dict)
    """By names of your own; without any the run is the only one."""

    def __post_init__(self) -> None:
        for name, count, least in (("trials", self.trials, 1), ("seeds", self.seeds, 1), ("seed", self.seed, 0)):
            _require(count >= least, f"tune.{name}: found {count}, expected at least {least}")


@dataclass(frozen=True, kw_only=True)
class Run:
    """All settings of a run. Towers, negatives, loss, frequency and optimisers are recipes: training sets up copies."""

    schema: Schema
    data: Data | None = None
    split: Split = field(default_factory=TimeSplit)
    towers: TwoTower = field(default_factory=TwoTower)
    frequency: Frequency = field(default_factory=ExactFrequency)
    negatives: Sampler = field(default_factory=lambda: Mixture(parts=(InBatch(), Uniform(n=8192))))
    loss: Loss = field(default_factory=SampledSoftmax)
    training: Training = field(default_factory=Training)
    evaluation: Evaluation = field(default_factory=Evaluation)
    update: Update = field(default_factory=Update)
    tune: Tune | None = None

    def __post_init__(self) -> None:
        _check_negatives(self)
        _check_loss(self)
        _check_counts(self)
        _check_split(self)
        check_batches(self.schema, self.training.batch_of, self.training.thin, self.training.order)
        _require(
            self.training.query_weight == 0 or self.schema.interactions.query is not None,
            f"training.query_weight: found {self.training.query_weight}, but schema.interactions.query names no "
            "column, so there is no query to count the pairs of: name it, or set query_weight = 0",
        )


def _check_negatives(run: Run) -> None:
    """Some samplers draw by what only some schemas tell: say so before hours of ingest."""
    taken, features = run.schema.interactions.taken, [*run.schema.query, *run.schema.context]
    for sampler in run.negatives.modules():
        name = type(sampler).__name__
        _require(
            taken is not None or not isinstance(sampler, Impressions | RNS),
            f"negatives: {name} draws from what queries were shown and did not take, but schema.interactions.taken "
            "names no column: name the one that tells what was taken, or choose another sampler",
        )
        _require(
            not isinstance(sampler, Conditional) or sampler.by in features,
            f"negatives.by of {name}: found {getattr(sampler, 'by', None)!r}, expected a feature of schema.query or "
            f"schema.context: {', '.join(features) or 'there is none'}",
        )
    _require(
        run.training.batch_size > 1 or not isinstance(run.negatives, InBatch | Rotations),
        f"training.batch_size: found 1, but {type(run.negatives).__name__} offers what the other rows of a batch "
        "bring: take more rows, or another sampler",
    )


def _check_loss(run: Run) -> None:
    """What a loss needs of the rest: say so now, not in step 40,000."""
    compared, unit = run.loss.compared(), run.towers.normalise
    _require(
        unit or not (isinstance(compared, RowLoss) and compared.needs_unit_vectors),
        f"loss: {type(compared).__name__} takes scores for cosines, but towers.normalise is false: set it to true, or "
        "choose another loss",
    )


def _check_counts(run: Run) -> None:
    """A correction needs counts: say so now, not in step 40,000."""
    loss, sampler, compared = run.loss, run.negatives, run.loss.compared()
    of_rows = compared if isinstance(compared, RowLoss) else None
    any_scale = of_rows is not None and of_rows is loss and of_rows.any_scale_of_counts
    if not loss.uses_counts() or (any_scale and sampler.density == "relative"):
        return
    what, way_out = f"loss: {type(loss).__name__} needs", ""
    if of_rows is not None and of_rows.correction != "none":
        place = "loss.correction" if of_rows is loss else f"loss: correction of the {type(of_rows).__name__} in it"
        what, way_out = f"{place}: found {of_rows.correction!r}, which needs", "use correction = 'none' or "
        if sampler.density == "relative":
            way_out = "use correction = 'none', or the loss BilateralSoftmax, or "
    if sampler.density not in ("exact", "approximate"):
        raise ConfigError(
            f"{what} the expected count of every candidate, but {_why_uncounted(sampler)}: {way_out or 'choose '}"
            "another sampler under negatives"
        )
    corrects_positive = of_rows is not None and (of_rows.correction == "all" or of_rows.needs_counts)
    _require(
        not (corrects_positive and sampler.leaves_out_positives),
        f"{what} the expected count of every positive, but {_named(sampler)} never offers a query its own positives: "
        + "use correction = 'negatives', or " * bool(way_out)
        + "mix it with one that does, such as InBatch",
    )


def _named(sampler: Sampler) -> str:
    """The sampler in a sentence, a mixture with its parts."""
    if not isinstance(sampler, Mixture):
        return f"the sampler {type(sampler).__name__}"
    return f"the sampler Mixture ({' + '.join(type(part).__name__ for part in sampler.parts)})"


def _why_uncounted(sampler: Sampler) -> str:
    """Which sampler knows no counts, and how little it knows."""
    if isinstance(sampler, Mixture):
        weak = [type(part).__name__ for part in sampler.parts if part.density in ("none", "relative")]
        reason = f"{' and '.join(dict.fromkeys(weak))} in it"
        if "none" not in {part.density for part in sampler.parts}:
            return f"{_named(sampler)} has no density, for {reason} knows its own only up to an unknown factor"
        return f"{_named(sampler)} has no density, for there is none of {reason}"
    known = {"none": "has no density", "relative": "knows its density only up to an unknown factor"}
    return f"{_named(sampler)} {known[sampler.density]}"


def _check_split(run: Run) -> None:
    """A split needs the columns it splits by: say so before hours of ingest."""
    columns, data, split = run.schema.interactions, run.data, run.split
    needed = [
        ("query", columns.query, (QuerySplit, LeaveLastOut)),
        ("time", columns.time, (TimeSplit, LeaveLastOut)),
    ]
    for name, column, kinds in needed:
        _require(
            column is not None or not isinstance(split, kinds),
            f"split: found {type(split).__name__}, but schema.interactions.{name} names no column: name it, or choose "
            "another split",
        )
    given = columns.split is not None or data is None or bool(data.valid or data.test)
    _require(
        given or not isinstance(split, GivenSplit),
        "split: found GivenSplit, but nothing says what is held out: name schema.interactions.split, or the files "
        "data.valid and data.test",
    )


def parse_run(text: str, *, set: Sequence[str] = (), name: str = "run") -> Run:
    """The run a TOML text describes, with settings such as ``loss.temperature=0.1`` laid over it.

    Raises ConfigError (SchemaError for the schema) that starts with ``name``.
    """
    tree = parse_toml(text, name)
    for setting in set:
        tree = override(tree, setting)
    try:
        return _decode(tree, set)
    except TwoTowerError as error:
        raise type(error)(f"{name}: {error}") from error


def vary(run: Run, *, set: Sequence[str] = (), values: Mapping[str, object] | None = None) -> Run:
    """The run with settings such as ``loss.temperature=0.1``, and then values by name, laid over it.

    Raises ConfigError (SchemaError for the schema) where the result is no run.
    """
    tree = run_tree(run)
    for setting in set:
        tree = override(tree, setting)
    for name, value in (values or {}).items():
        tree = placed(tree, name, list(value) if isinstance(value, tuple) else value, "settings")
    return _decode(tree, set)


def _decode(tree: Tree, set: Sequence[str]) -> Run:
    try:
        run = _CODEC.decode(Run, tree)
    except TwoTowerError as error:
        raise type(error)(f"{error}{_way_out(str(error), set)}") from error
    assert isinstance(run, Run)
    return run


def _way_out(message: str, settings: Sequence[str]) -> str:
    """What to write instead, where ``--set negatives.kind=InBatch`` meets settings that the file gave another kind,
    and where the name of a range is not quoted."""
    if re.match(r"tune\.(arms\..*\.)?ranges\.\S* is not a setting of Range, which", message):
        return '; the name of a setting is quoted there: "loss.temperature" = { low = 0.02, high = 0.3 }'
    for setting in settings:
        place, is_kind, kind = setting.partition(".kind=")
        if is_kind and message.startswith(f"{place}.") and not message.startswith(f"{place}.kind"):
            return f"; to replace the whole table: --set '{place}={{kind=\"{kind}\"}}'"
    return ""


def load_run(path: str | Path, set: Sequence[str] = ()) -> Run:
    """The run of a TOML file. Paths under ``data`` are relative to the file, and absolute in the result."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ConfigError(f"{path}: {reason}, expected a run as TOML; `twotower init` writes one") from error
    run = parse_run(text, set=set, name=str(path))
    return run if run.data is None else replace(run, data=run.data.under(Path(path).parent))


def dump_run(run: Run) -> str:
    """The run as TOML that ``parse_run`` reads back, with all defaults spelt out."""
    return format_toml(run_tree(run))


def run_tree(run: Run) -> Tree:
    """What ``dump_run`` writes, as tables."""
    tree: Tree = _CODEC.encode(Run, run)
    return tree


def ingest_run(run: Run, *, overwrite: bool = False) -> IngestReport:
    """Ingest the files of a run into its store; see ``data.ingest.ingest``."""
    if run.data is None:
        raise ConfigError("data is missing: it names the files, such as [data] interactions = ['events.parquet']")
    return ingest(
        run.schema,
        interactions=run.data.interactions,
        queries=run.data.queries or None,
        items=run.data.items or None,
        valid=run.data.valid or None,
        test=run.data.test or None,
        out=run.data.store,
        overwrite=overwrite,
    )
