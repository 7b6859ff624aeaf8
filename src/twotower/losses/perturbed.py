"""A loss that must also hold for vectors moved a little the wrong way."""

from __future__ import annotations

import math
from dataclasses import field, replace
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ConfigError
from ..part import Facts
from ..records import Encoded
from ..scoring import DEFAULT_TILE
from .row_loss import Loss, RowLoss
from .softmax import SampledSoftmax


class Perturbed(Loss):
    """L(e) + weight L(e + delta), delta = epsilon g / |g|, g = dL/de: L another loss, e each vector of the batch.

    Every query and every distinct item of the batch is moved by ``epsilon`` in the direction that raises the loss most;
    an item is one vector, whether it is positive or candidate. delta is a constant: no gradient passes through it.
    Candidates, their counts and exclusions are the same for both. Vectors that the loss does not depend on stay.

    ``epsilon`` is in the units of the vectors: compare it with their length, 1 where towers normalise. For a loss that
    takes scores for cosines g is the part of the gradient along the sphere, and e + delta is put back to unit length;
    others get e + delta as it is, also where towers normalise.

    Costs a second loss and the gradient of the first by the vectors, no further pass through the towers. Choose it
    where few pairs are repeated often, so that the model learns them by heart; with ``IRGAN`` negatives it is AdvIR.

    Raises ConfigError where epsilon or weight is not a positive number.

    Source: Park and Chang, Adversarial sampling and training for semi-supervised information retrieval (WWW 2019); He
    et al., Adversarial personalized ranking for recommendation (SIGIR 2018), equations 6 and 8.
    """

    of: Loss = field(default_factory=SampledSoftmax)
    epsilon: float = 0.1
    weight: float = 1.0

    def __post_init__(self) -> None:
        for name, value in (("epsilon", self.epsilon), ("weight", self.weight)):
            if not 0 < value < math.inf:
                raise ConfigError(f"loss.{name} of Perturbed: found {value}, expected a positive number")

    def setup(self, facts: Facts) -> None:
        self.of.setup(facts)

    def compared(self) -> Loss:
        return self.of.compared()

    def uses_counts(self) -> bool:
        return self.of.uses_counts()

    def reads_counts(self) -> bool:
        return self.of.reads_counts()

    def keep(self, first: Self) -> None:
        self.of.keep(first.of)

    def constrain(self) -> None:
        self.of.constrain()

    def observe(self, encoded: Encoded, notes: dict[str, Tensor]) -> None:
        self.of.observe(encoded, notes)

    def forward(
        self, encoded: Encoded, *, tile: int | None = DEFAULT_TILE, gemm: torch.dtype | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Both; the notes are those of the vectors as they are."""
        wanted = torch.is_grad_enabled()
        with torch.enable_grad():  # the direction is needed to measure, too
            vectors = _Vectors(encoded)
            clean, notes = self.of(vectors.put(*vectors.all), tile=tile, gemm=gemm)
            moved = vectors.moved(clean, self.epsilon, unit=_needs_unit(self.compared()))
            perturbed, _ = self.of(moved, tile=tile, gemm=gemm)
            value = clean + self.weight * perturbed
        return value if wanted else value.detach(), notes


class _Vectors:
    """The vectors of a batch, each once: queries, items, and columns that are no item of the batch (given vectors)."""

    def __init__(self, encoded: Encoded) -> None:
        self.encoded = encoded
        self.slot_N, self.is_item_N = _slots_of_columns(encoded)
        given_GD = encoded.column_ND[~self.is_item_N]
        self.all = tuple(_apart(x) for x in (encoded.query_BD, encoded.table_TD, given_GD))

    def put(self, query_BD: Tensor, table_TD: Tensor, given_GD: Tensor) -> Encoded:
        """The batch with these vectors."""
        column_ND = table_TD.index_select(0, self.slot_N)
        if len(given_GD):
            column_ND = column_ND.index_copy(0, (~self.is_item_N).nonzero()[:, 0], given_GD)
        return replace(self.encoded, query_BD=query_BD, table_TD=table_TD, column_ND=column_ND)

    def moved(self, loss: Tensor, epsilon: float, *, unit: bool) -> Encoded:
        """The batch with each vector moved by ``epsilon`` up the loss."""
        gradients = torch.autograd.grad(loss, self.all, retain_graph=True, allow_unused=True, materialize_grads=True)
        query_BD, table_TD, given_GD = (
            _moved(x, g, epsilon, unit=unit) for x, g in zip(self.all, gradients, strict=True)
        )
        return self.put(query_BD, table_TD, given_GD)


def _moved(x_nD: Tensor, gradient_nD: Tensor, epsilon: float, *, unit: bool) -> Tensor:
    if not unit:
        return x_nD + epsilon * _direction(gradient_nD)
    along_n1 = (gradient_nD * x_nD.detach()).sum(1, keepdim=True)
    return F.normalize(x_nD + epsilon * _direction(gradient_nD - along_n1 * x_nD.detach()), dim=1)


def _apart(x: Tensor) -> Tensor:
    """The same vectors as a tensor of its own, to differentiate by; what comes back goes on to ``x``."""
    return x.view_as(x) if x.requires_grad else x.detach().requires_grad_()


def _direction(gradient_nD: Tensor) -> Tensor:
    """Each row over its length; a row of zeros stays."""
    length_n1: Tensor = gradient_nD.norm(dim=1, keepdim=True)
    return gradient_nD / length_n1.masked_fill(length_n1 == 0, 1.0)


def _slots_of_columns(encoded: Encoded) -> tuple[Tensor, Tensor]:
    """[N] where each column's vector is in the table, and whether it is there: a given vector (of a queue) is not, even
    where the table has its row."""
    row_T, row_N = encoded.row_T[encoded.row_T >= 0], encoded.shared.row  # rising; mixes of items come after the rows
    slot_N = torch.searchsorted(row_T, row_N).clamp(max=len(row_T) - 1)
    with torch.no_grad():
        same_N = (encoded.table_TD.index_select(0, slot_N) == encoded.column_ND).all(1)
    return slot_N, same_N & (row_T.index_select(0, slot_N) == row_N)


def _needs_unit(loss: Loss) -> bool:
    return isinstance(loss, RowLoss) and loss.needs_unit_vectors
