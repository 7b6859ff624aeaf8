"""Samplers of negatives. A new one is a file, a line in ``Negatives`` and a test."""

from .alias import AliasTable
from .batch import InBatch, Rotations
from .lists import Impressions
from .mined import DNS, Mined, Pool
from .mixgcf import MixGCF
from .mixture import Mixture
from .sampler import Density, Look, Sampler, propose
from .static import Catalogue, Popularity, Uniform

Negatives = DNS | Catalogue | Impressions | InBatch | MixGCF | Mixture | Popularity | Rotations | Uniform
"""Every sampler there is: the type of the setting, and the list that contract tests and the docs table go through."""

__all__ = [
    "DNS",
    "AliasTable",
    "Catalogue",
    "Density",
    "Impressions",
    "InBatch",
    "Look",
    "Mined",
    "MixGCF",
    "Mixture",
    "Negatives",
    "Pool",
    "Popularity",
    "Rotations",
    "Sampler",
    "Uniform",
    "propose",
]
