"""Samplers of negatives. A new one is a file, a line in ``Negatives`` and a test."""

from .alias import AliasTable
from .batch import InBatch, Rotations
from .mined import DNS, Mined, Pool
from .mixgcf import MixGCF
from .mixture import Mixture
from .policy import IRGAN, RNS, Policy
from .sampler import Density, Look, Sampler, propose
from .static import Catalogue, Popularity, Uniform

Negatives = DNS | IRGAN | RNS | Catalogue | InBatch | MixGCF | Mixture | Popularity | Rotations | Uniform
"""Every sampler there is: the type of the setting, and the list that contract tests and the docs table go through."""

__all__ = [
    "DNS",
    "IRGAN",
    "RNS",
    "AliasTable",
    "Catalogue",
    "Density",
    "InBatch",
    "Look",
    "Mined",
    "MixGCF",
    "Mixture",
    "Negatives",
    "Policy",
    "Pool",
    "Popularity",
    "Rotations",
    "Sampler",
    "Uniform",
    "propose",
]
