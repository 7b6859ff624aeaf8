"""How parameters move: row by row for embedding tables, torch's own optimisers for the rest."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from .errors import ConfigError
from .part import Part


def _require(ok: bool, name: str, setting: str, found: float, expected: str) -> None:
    if not ok:
        raise ConfigError(f"training: {setting} of {name} is {found}, expected {expected}")


def _check_rate(name: str, lr: float) -> None:
    _require(0 < lr < math.inf, name, "lr", lr, "a positive number")


def _check_betas(name: str, beta1: float, beta2: float) -> None:
    _require(0 <= beta1 < 1, name, "beta1", beta1, "0 up to but not 1")
    _require(0 <= beta2 < 1, name, "beta2", beta2, "0 up to but not 1")


def mean_square(gradient_UD: Tensor) -> Tensor:
    """[U] mean(g^2) of each row, through the norm: one pass, nothing held."""
    norm_U: Tensor = torch.linalg.vector_norm(gradient_UD, dim=1)
    return norm_U.square_().div_(gradient_UD.shape[1])


class RowOptimiser(Part):
    """State of one embedding table, and the step for the rows a batch touched."""

    lr: float = 0.05

    def __post_init__(self) -> None:
        _check_rate(type(self).__name__, self.lr)

    def allocate(self, rows: int, dim: int, device: torch.device) -> None:
        """Make the state of a table of ``rows x dim``."""
        raise TypeError(f"{type(self).__name__} defines no allocate")

    def step(self, weight_RD: Tensor, rows_U: Tensor, gradient_UD: Tensor, rate: float) -> None:
        """Move the distinct ``rows_U`` of the table in place, with learning rate ``lr * rate``."""
        raise TypeError(f"{type(self).__name__} defines no step")


class RowwiseAdagrad(RowOptimiser):
    """One accumulator a row: a += mean(g^2); w -= lr g / (sqrt(a) + eps).

    The state is 1/dim of the table, and only touched rows are read or written. With a loss that is a mean over the
    batch, gradients are small (1/B), so an initial accumulator such as 0.1 would stop all learning: it starts at 0.

    Source: Duchi et al., JMLR 2011, with the accumulator shared by a row (as in FBGEMM's row-wise Adagrad).
    """

    initial_accumulator: float = 0.0
    eps: float = 1e-10

    accumulator_R: Tensor = field(init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        name, start = type(self).__name__, self.initial_accumulator
        _require(0 <= start < math.inf, name, "initial_accumulator", start, "0 or more")
        _require(self.eps > 0, name, "eps", self.eps, "a positive number")

    def allocate(self, rows: int, dim: int, device: torch.device) -> None:
        """One float a row."""
        self.register_buffer("accumulator_R", torch.full((rows,), self.initial_accumulator, device=device))

    def step(self, weight_RD: Tensor, rows_U: Tensor, gradient_UD: Tensor, rate: float) -> None:
        """w -= lr g / (sqrt(a) + eps)"""
        accumulator_U = self.accumulator_R.index_select(0, rows_U).add_(mean_square(gradient_UD))
        self.accumulator_R.index_copy_(0, rows_U, accumulator_U)
        scale_U = accumulator_U.sqrt_().add_(self.eps).reciprocal_().mul_(-self.lr * rate)
        weight_RD.index_add_(0, rows_U, gradient_UD * scale_U[:, None])


class RowwiseAdam(RowOptimiser):
    """Adam with one second moment a row; rows that a batch does not touch keep their moments.

    m = b1 m + (1 - b1) g; v = b2 v + (1 - b2) mean(g^2); w -= lr m' / (sqrt(v') + eps), bias corrected by
    each row's own number of steps.

    Source: Kingma and Ba, ICLR 2015, algorithm 1, lazily and with the second moment shared by a row.
    """

    lr: float = 0.03
    beta1: float = 0.9
    beta2: float = 0.99
    eps: float = 1e-10

    first_RD: Tensor = field(init=False)
    second_R: Tensor = field(init=False)
    steps_R: Tensor = field(init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_betas(type(self).__name__, self.beta1, self.beta2)
        _require(self.eps > 0, type(self).__name__, "eps", self.eps, "a positive number")

    def allocate(self, rows: int, dim: int, device: torch.device) -> None:
        """The table once more (not with beta1 = 0), and two floats a row."""
        self.register_buffer("first_RD", torch.zeros(rows if self.beta1 > 0 else 0, dim, device=device))
        self.register_buffer("second_R", torch.zeros(rows, device=device))
        self.register_buffer("steps_R", torch.zeros(rows, device=device))

    def step(self, weight_RD: Tensor, rows_U: Tensor, gradient_UD: Tensor, rate: float) -> None:
        """w -= lr m' / (sqrt(v') + eps)"""
        steps_U = self.steps_R.index_select(0, rows_U).add_(1)
        second_U = self.second_R.index_select(0, rows_U)
        second_U.lerp_(mean_square(gradient_UD), 1 - self.beta2)
        self.steps_R.index_copy_(0, rows_U, steps_U)
        self.second_R.index_copy_(0, rows_U, second_U)
        first_UD = gradient_UD
        if self.beta1 > 0:
            first_UD = self.first_RD.index_select(0, rows_U).lerp_(gradient_UD, 1 - self.beta1)
            self.first_RD.index_copy_(0, rows_U, first_UD)
        corrected_U = (second_U / (1 - torch.pow(self.beta2, steps_U))).sqrt_().add_(self.eps)
        scale_U = -self.lr * rate / (corrected_U * (1 - torch.pow(self.beta1, steps_U)))
        weight_RD.index_add_(0, rows_U, first_UD * scale_U[:, None])


TableOptimiser = RowwiseAdagrad | RowwiseAdam
"""Every optimiser of embedding tables."""


@dataclass(frozen=True, kw_only=True)
class AdamW:
    """torch's AdamW, fused. Source: Loshchilov and Hutter, ICLR 2019."""

    lr: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        _check_rate("AdamW", self.lr)
        _check_betas("AdamW", self.beta1, self.beta2)
        _require(0 <= self.weight_decay < math.inf, "AdamW", "weight_decay", self.weight_decay, "0 or more")

    def build(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        """Over the given parameters."""
        return torch.optim.AdamW(
            parameters, lr=self.lr, betas=(self.beta1, self.beta2), weight_decay=self.weight_decay, fused=True
        )


@dataclass(frozen=True, kw_only=True)
class Adagrad:
    """torch's Adagrad. Source: Duchi et al., JMLR 2011."""

    lr: float = 0.01
    initial_accumulator: float = 0.0

    def __post_init__(self) -> None:
        _check_rate("Adagrad", self.lr)
        start = self.initial_accumulator
        _require(0 <= start < math.inf, "Adagrad", "initial_accumulator", start, "0 or more")

    def build(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        """Over the given parameters."""
        return torch.optim.Adagrad(parameters, lr=self.lr, initial_accumulator_value=self.initial_accumulator)


DenseOptimiser = Adagrad | AdamW
"""Every optimiser of layers and of learned settings of losses."""
