"""Samplers of negatives. A new one is a file, a line in ``Negatives`` and a test."""

from .alias import AliasTable
from .batch import InBatch, Rotations
from .mined import AHNS, BNS, DNS, SIR, Mined, Pool, Pooled, SoftmaxDNS
from .mixgcf import MixGCF
from .mixture import Mixture
from .positive_aware import PositiveAware
from .queue import Queue
from .rank_window import RankWindow
from .ranked import AOBPR, FirstViolation
from .sampler import Density, Look, Sampler, propose
from .srns import SRNS
from .static import Catalogue, Popularity, Uniform

Negatives = (
    AHNS
    | AOBPR
    | BNS
    | Catalogue
    | DNS
    | FirstViolation
    | InBatch
    | MixGCF
    | Mixture
    | Popularity
    | PositiveAware
    | Queue
    | RankWindow
    | Rotations
    | SIR
    | SRNS
    | SoftmaxDNS
    | Uniform
)
"""Every sampler there is: the type of the setting, and the list that contract tests and the docs table go through."""

__all__ = [
    "AHNS",
    "AOBPR",
    "BNS",
    "DNS",
    "SIR",
    "SRNS",
    "AliasTable",
    "Catalogue",
    "Density",
    "FirstViolation",
    "InBatch",
    "Look",
    "Mined",
    "MixGCF",
    "Mixture",
    "Negatives",
    "Pool",
    "Pooled",
    "Popularity",
    "PositiveAware",
    "Queue",
    "RankWindow",
    "Rotations",
    "Sampler",
    "SoftmaxDNS",
    "Uniform",
    "propose",
]
