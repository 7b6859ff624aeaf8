"""Objectives. A new one is a class in one file and a member of the union ``Losses``."""

from .binary import BinaryCrossEntropy
from .pairwise import BPR, Margin
from .row_loss import LogSumExpRowLoss, Loss, RowLoss
from .softmax import BilateralSoftmax, SampledSoftmax

Losses = BPR | BilateralSoftmax | BinaryCrossEntropy | Margin | SampledSoftmax
"""Every loss: public API, settings type, contract tests and docs table at once."""

__all__ = [
    "BPR",
    "BilateralSoftmax",
    "BinaryCrossEntropy",
    "LogSumExpRowLoss",
    "Loss",
    "Losses",
    "Margin",
    "RowLoss",
    "SampledSoftmax",
]
