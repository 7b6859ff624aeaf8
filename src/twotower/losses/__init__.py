"""Objectives. A new one is a class in one file and a member of the union ``Losses``."""

from .adap_tau import AdapTau
from .adaptive import AdaptiveMargin, AdaptiveTemperature
from .adversarial import AdvInfoNCE
from .binary import GBCE, NCE, SGNS, BinaryCrossEntropy
from .buckets import BucketedSoftmax
from .hierarchical import HierarchicalSoftmax
from .pairwise import BPR, Margin, Warp
from .perturbed import Perturbed
from .row_loss import LogSumExpRowLoss, Loss, RowLoss
from .softmax import BilateralSoftmax, SampledSoftmax
from .squared import CCL, SquaredGramian
from .symmetric import Symmetric

Losses = (
    AdapTau
    | AdaptiveMargin
    | AdaptiveTemperature
    | AdvInfoNCE
    | BPR
    | BilateralSoftmax
    | BinaryCrossEntropy
    | BucketedSoftmax
    | CCL
    | GBCE
    | HierarchicalSoftmax
    | Margin
    | NCE
    | Perturbed
    | SGNS
    | SampledSoftmax
    | SquaredGramian
    | Symmetric
    | Warp
)
"""Every loss: public API, settings type, contract tests and docs table at once."""

__all__ = [
    "BPR",
    "CCL",
    "GBCE",
    "NCE",
    "SGNS",
    "AdapTau",
    "AdaptiveMargin",
    "AdaptiveTemperature",
    "AdvInfoNCE",
    "BilateralSoftmax",
    "BinaryCrossEntropy",
    "BucketedSoftmax",
    "HierarchicalSoftmax",
    "LogSumExpRowLoss",
    "Loss",
    "Losses",
    "Margin",
    "Perturbed",
    "RowLoss",
    "SampledSoftmax",
    "SquaredGramian",
    "Symmetric",
    "Warp",
]
