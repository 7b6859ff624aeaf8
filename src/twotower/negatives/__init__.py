"""Samplers of negatives. A new one is a file, a line in ``Negatives`` and a test."""

from .alias import AliasTable
from .batch import InBatch, Rotations
from .chains import MCNS, Chain, Gibbs, MetropolisHastings
from .conditional import Conditional
from .distinct import DistinctTable
from .importance import (
    AdaptiveImportance,
    Estimate,
    effective_sample_size,
    importance_sampling,
    monte_carlo,
    self_normalised,
)
from .irgan import IRGAN
from .lists import Impressions
from .mined import AHNS, BNS, DNS, SIR, SoftmaxDNS
from .mixgcf import MixGCF
from .mixture import Mixture
from .policy import Policy
from .pool import Mined, Pool, Pooled
from .positive_aware import PositiveAware
from .queue import Queue
from .rank_window import RankWindow
from .ranked import AOBPR, FirstViolation
from .rejection import Rejection, Unknown
from .rns import RNS
from .room import Room, Sizes
from .sampler import Density, Look, Sampler, propose
from .srns import SRNS
from .static import Catalogue, Law, LogPopularity, LogUniform, Popularity, TwoBucket, Uniform

Negatives = (
    AHNS
    | AOBPR
    | AdaptiveImportance
    | BNS
    | Catalogue
    | Conditional
    | DNS
    | FirstViolation
    | Gibbs
    | IRGAN
    | Impressions
    | InBatch
    | LogPopularity
    | LogUniform
    | MCNS
    | MetropolisHastings
    | MixGCF
    | Mixture
    | Popularity
    | PositiveAware
    | Queue
    | RNS
    | RankWindow
    | Rejection
    | Rotations
    | SIR
    | SRNS
    | SoftmaxDNS
    | TwoBucket
    | Uniform
    | Unknown
)
"""Every sampler there is: the type of the setting, and the list that contract tests and the docs table go through."""

__all__ = [
    "AHNS",
    "AOBPR",
    "BNS",
    "DNS",
    "IRGAN",
    "MCNS",
    "RNS",
    "SIR",
    "SRNS",
    "AdaptiveImportance",
    "AliasTable",
    "Catalogue",
    "Chain",
    "Conditional",
    "Density",
    "DistinctTable",
    "Estimate",
    "FirstViolation",
    "Gibbs",
    "Impressions",
    "InBatch",
    "Law",
    "LogPopularity",
    "LogUniform",
    "Look",
    "MetropolisHastings",
    "Mined",
    "MixGCF",
    "Mixture",
    "Negatives",
    "Policy",
    "Pool",
    "Pooled",
    "Popularity",
    "PositiveAware",
    "Queue",
    "RankWindow",
    "Rejection",
    "Room",
    "Rotations",
    "Sampler",
    "Sizes",
    "SoftmaxDNS",
    "TwoBucket",
    "Uniform",
    "Unknown",
    "effective_sample_size",
    "importance_sampling",
    "monte_carlo",
    "propose",
    "self_normalised",
]
