"""Samplers of negatives. A new one is a file, a line in ``Negatives`` and a test."""

from .alias import AliasTable
from .batch import InBatch, Rotations
from .mined import DNS, Mined, Pool
from .mixgcf import MixGCF
from .mixture import Mixture
from .positive_aware import PositiveAware
from .queue import Queue
from .rank_window import RankWindow
from .sampler import Density, Look, Sampler, propose
from .static import Catalogue, Popularity, Uniform

Negatives = (
    Catalogue | DNS | InBatch | MixGCF | Mixture | Popularity | PositiveAware | Queue | RankWindow | Rotations | Uniform
)
"""Every sampler there is: the type of the setting, and the list that contract tests and the docs table go through."""

__all__ = [
    "DNS",
    "AliasTable",
    "Catalogue",
    "Density",
    "InBatch",
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
    "Rotations",
    "Sampler",
    "Uniform",
    "propose",
]
