"""Samplers of negatives. A new one is a file, a line in ``Negatives`` and a test."""

from .alias import AliasTable
from .batch import InBatch, Rotations
from .conditional import Conditional
from .distinct import DistinctTable
from .mined import DNS, Mined, Pool
from .mixture import Mixture
from .rejection import Rejection, Unknown
from .sampler import Density, Look, Sampler, propose
from .static import Catalogue, Law, LogPopularity, LogUniform, Popularity, TwoBucket, Uniform

Negatives = (
    DNS
    | Catalogue
    | Conditional
    | InBatch
    | LogPopularity
    | LogUniform
    | Mixture
    | Popularity
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
    "Mixture",
    "Negatives",
    "Pool",
    "Popularity",
    "Rejection",
    "Rotations",
    "Sampler",
    "TwoBucket",
    "Uniform",
    "Unknown",
    "propose",
]
