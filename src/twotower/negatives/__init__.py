"""Samplers of negatives. A new one is a file, a line in ``Negatives`` and a test."""

from .alias import AliasTable
from .batch import InBatch, Rotations
from .conditional import Conditional
from .distinct import DistinctTable
from .mined import DNS, Mined, Pool
from .mixgcf import MixGCF
from .mixture import Mixture
from .positive_aware import PositiveAware
from .queue import Queue
from .rank_window import RankWindow
from .rejection import Rejection, Unknown
from .sampler import Density, Look, Sampler, propose
from .static import Catalogue, Law, LogPopularity, LogUniform, Popularity, TwoBucket, Uniform

Negatives = (
    Catalogue
    | Conditional
    | DNS
    | InBatch
    | LogPopularity
    | LogUniform
    | MixGCF
    | Mixture
    | Popularity
    | PositiveAware
    | Queue
    | RankWindow
    | Rejection
    | Rotations
    | TwoBucket
    | Uniform
    | Unknown
)
"""Every sampler there is: the type of the setting, and the list that contract tests and the docs table go through."""

__all__ = [
    "DNS",
    "AliasTable",
    "Catalogue",
    "Conditional",
    "Density",
    "DistinctTable",
    "InBatch",
    "Law",
    "LogPopularity",
    "LogUniform",
    "Look",
    "Mined",
    "MixGCF",
    "Mixture",
    "Negatives",
    "Pool",
    "Popularity",
    "PositiveAware",
    "Queue",
    "RankWindow",
    "Rejection",
    "Rotations",
    "Sampler",
    "TwoBucket",
    "Uniform",
    "Unknown",
    "propose",
]
