"""Two-tower retrieval, with negatives that are right.

    schema      what columns mean                 data        files -> store -> batches
    towers      features -> vectors               negatives   what positives are compared with
    frequency   how likely an item is in a batch  losses      objectives
    scoring     similarity, correction, tiles     optimisers  how parameters move
    config      a run: all settings, as TOML      training    train, evaluate, recommend
    evaluation  top-k, metrics, calibration       auditing    what a run's negatives are
    index       finding the best items quickly    experiment  arms, exposures, what they changed
    bundle      what is served, without torch     cli         the command line
    records     Batch, Block, Candidates, Encoded: who knows these knows the program

The names below are the public API. They are imported when first used: ``import twotower`` does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from .version import __version__ as __version__

if TYPE_CHECKING:
    from .auditing import Audit, audit
    from .bundle import Bundle, Recommendation
    from .config import (
        Arm,
        Data,
        Evaluation,
        Range,
        Run,
        Training,
        Tune,
        Update,
        dump_run,
        ingest_run,
        load_run,
        parse_run,
    )
    from .data.extend import extend
    from .data.infer import init
    from .data.ingest import IngestReport, ingest
    from .data.report import Growth
    from .data.splits import GivenSplit, LeaveLastOut, QuerySplit, RandomSplit, Split, TimeSplit
    from .data.store import Store
    from .data.streams import Delta, Folder, Kafka, stream_of
    from .data.thinning import FrequentThinning, Thinning, UniformThinning
    from .errors import ArtifactError, ConfigError, DataError, SchemaError, TwoTowerError
    from .evaluation import Drift, drift, frequency_report
    from .experiment import (
        AnyOf,
        Assignment,
        ExperimentReport,
        Exposure,
        ExposureLog,
        Ratio,
        Total,
        analyse,
    )
    from .frequency import ExactFrequency, Frequency, StreamingFrequency
    from .index import HNSW, IVFPQ, IVFSQ8, LSH, Exact, Found, Index, IndexReport, IndexSettings
    from .losses import (
        BPR,
        CCL,
        GBCE,
        NCE,
        SGNS,
        AdapTau,
        AdaptiveMargin,
        AdaptiveTemperature,
        AdvInfoNCE,
        BilateralSoftmax,
        BinaryCrossEntropy,
        BucketedSoftmax,
        HierarchicalSoftmax,
        Loss,
        Losses,
        Margin,
        Perturbed,
        RowLoss,
        SampledSoftmax,
        SquaredGramian,
        Symmetric,
        Warp,
    )
    from .negatives import (
        AHNS,
        AOBPR,
        BNS,
        DNS,
        IRGAN,
        MCNS,
        RNS,
        SIR,
        SRNS,
        AdaptiveImportance,
        Catalogue,
        Conditional,
        FirstViolation,
        Gibbs,
        Impressions,
        InBatch,
        LogPopularity,
        LogUniform,
        MetropolisHastings,
        MixGCF,
        Mixture,
        Negatives,
        Popularity,
        PositiveAware,
        Queue,
        RankWindow,
        Rejection,
        Rotations,
        Sampler,
        SoftmaxDNS,
        TwoBucket,
        Uniform,
        Unknown,
    )
    from .optimisers import Adagrad, AdamW, DenseOptimiser, RowwiseAdagrad, RowwiseAdam, TableOptimiser
    from .part import Facts, Part
    from .records import Batch, Block, Candidates, Encoded, Ragged
    from .schema import (
        Categorical,
        Categories,
        Feature,
        History,
        Id,
        Interactions,
        Life,
        Number,
        Reward,
        Schema,
        Seed,
        Text,
        Time,
        Vector,
    )
    from .tables import TableSettings
    from .towers import Graph, SvdStart, Tower, TwoTower
    from .training import (
        Day,
        Days,
        Exported,
        Forgotten,
        Indexed,
        Retriever,
        Trained,
        Trial,
        Tuned,
        Updated,
        build_index,
        evaluate,
        export,
        export_version,
        forget,
        history,
        recommend,
        recommend_all,
        report_index,
        save_vectors,
        similar,
        train,
        tune,
        update,
        update_from,
    )

__all__ = [
    "AHNS",
    "AOBPR",
    "BNS",
    "BPR",
    "CCL",
    "DNS",
    "GBCE",
    "HNSW",
    "IRGAN",
    "IVFPQ",
    "IVFSQ8",
    "LSH",
    "MCNS",
    "NCE",
    "RNS",
    "SGNS",
    "SIR",
    "SRNS",
    "Adagrad",
    "AdamW",
    "AdapTau",
    "AdaptiveImportance",
    "AdaptiveMargin",
    "AdaptiveTemperature",
    "AdvInfoNCE",
    "AnyOf",
    "Arm",
    "ArtifactError",
    "Assignment",
    "Audit",
    "Batch",
    "BilateralSoftmax",
    "BinaryCrossEntropy",
    "Block",
    "BucketedSoftmax",
    "Bundle",
    "Candidates",
    "Catalogue",
    "Categorical",
    "Categories",
    "Conditional",
    "ConfigError",
    "Data",
    "DataError",
    "Day",
    "Days",
    "Delta",
    "DenseOptimiser",
    "Drift",
    "Encoded",
    "Evaluation",
    "Exact",
    "ExactFrequency",
    "ExperimentReport",
    "Exported",
    "Exposure",
    "ExposureLog",
    "Facts",
    "Feature",
    "FirstViolation",
    "Folder",
    "Forgotten",
    "Found",
    "Frequency",
    "FrequentThinning",
    "Gibbs",
    "GivenSplit",
    "Graph",
    "Growth",
    "HierarchicalSoftmax",
    "History",
    "Id",
    "Impressions",
    "InBatch",
    "Index",
    "IndexReport",
    "IndexSettings",
    "Indexed",
    "IngestReport",
    "Interactions",
    "Kafka",
    "LeaveLastOut",
    "Life",
    "LogPopularity",
    "LogUniform",
    "Loss",
    "Losses",
    "Margin",
    "MetropolisHastings",
    "MixGCF",
    "Mixture",
    "Negatives",
    "Number",
    "Part",
    "Perturbed",
    "Popularity",
    "PositiveAware",
    "QuerySplit",
    "Queue",
    "Ragged",
    "RandomSplit",
    "Range",
    "RankWindow",
    "Ratio",
    "Recommendation",
    "Rejection",
    "Retriever",
    "Reward",
    "Rotations",
    "RowLoss",
    "RowwiseAdagrad",
    "RowwiseAdam",
    "Run",
    "SampledSoftmax",
    "Sampler",
    "Schema",
    "SchemaError",
    "Seed",
    "SoftmaxDNS",
    "Split",
    "SquaredGramian",
    "Store",
    "StreamingFrequency",
    "SvdStart",
    "Symmetric",
    "TableOptimiser",
    "TableSettings",
    "Text",
    "Thinning",
    "Time",
    "TimeSplit",
    "Total",
    "Tower",
    "Trained",
    "Training",
    "Trial",
    "Tune",
    "Tuned",
    "TwoBucket",
    "TwoTower",
    "TwoTowerError",
    "Uniform",
    "UniformThinning",
    "Unknown",
    "Update",
    "Updated",
    "Vector",
    "Warp",
    "analyse",
    "audit",
    "build_index",
    "drift",
    "dump_run",
    "evaluate",
    "export",
    "export_version",
    "extend",
    "forget",
    "frequency_report",
    "history",
    "ingest",
    "ingest_run",
    "init",
    "load_run",
    "parse_run",
    "recommend",
    "recommend_all",
    "report_index",
    "save_vectors",
    "similar",
    "stream_of",
    "train",
    "tune",
    "update",
    "update_from",
]

_NAMES_OF = {
    "auditing": "Audit audit",
    "bundle": "Bundle Recommendation",
    "config": "Arm Data Evaluation Range Run Training Tune Update dump_run ingest_run load_run parse_run",
    "data.extend": "extend",
    "data.infer": "init",
    "data.ingest": "IngestReport ingest",
    "data.report": "Growth",
    "data.splits": "GivenSplit LeaveLastOut QuerySplit RandomSplit Split TimeSplit",
    "data.store": "Store",
    "data.streams": "Delta Folder Kafka stream_of",
    "data.thinning": "FrequentThinning Thinning UniformThinning",
    "evaluation": "Drift drift frequency_report",
    "experiment": "AnyOf Assignment ExperimentReport Exposure ExposureLog Ratio Total analyse",
    "errors": "ArtifactError ConfigError DataError SchemaError TwoTowerError",
    "frequency": "ExactFrequency Frequency StreamingFrequency",
    "index": "HNSW IVFPQ IVFSQ8 LSH Exact Found Index IndexReport IndexSettings",
    "losses": "BPR CCL GBCE NCE SGNS AdapTau AdaptiveMargin AdaptiveTemperature AdvInfoNCE BilateralSoftmax "
    "BinaryCrossEntropy BucketedSoftmax HierarchicalSoftmax Loss Losses Margin Perturbed RowLoss SampledSoftmax "
    "SquaredGramian Symmetric Warp",
    "negatives": "AHNS AOBPR BNS DNS IRGAN MCNS RNS SIR SRNS AdaptiveImportance Catalogue Conditional FirstViolation "
    "Gibbs Impressions InBatch LogPopularity LogUniform MetropolisHastings MixGCF Mixture Negatives "
    "Popularity PositiveAware Queue RankWindow Rejection Rotations Sampler SoftmaxDNS TwoBucket Uniform "
    "Unknown",
    "optimisers": "Adagrad AdamW DenseOptimiser RowwiseAdagrad RowwiseAdam TableOptimiser",
    "part": "Facts Part",
    "records": "Batch Block Candidates Encoded Ragged",
    "schema": "Categorical Categories Feature History Id Interactions Life Number Reward Schema Seed Text Time Vector",
    "tables": "TableSettings",
    "towers": "Graph SvdStart Tower TwoTower",
    "training": "Day Days Exported Forgotten Indexed Retriever Trained Trial Tuned Updated build_index evaluate export "
    "export_version forget history recommend recommend_all report_index save_vectors similar train tune update "
    "update_from",
}
_MODULE_OF = {name: module for module, names in _NAMES_OF.items() for name in names.split()}


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'twotower' has no attribute {name!r}")
    found = getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return [*globals(), *__all__]
