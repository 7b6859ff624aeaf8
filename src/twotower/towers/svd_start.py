"""A start in closed form: id tables as the leading singular vectors of the training pairs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import ConfigError
from ..tables import Table
from .graph import Adjacency


@dataclass(frozen=True, kw_only=True)
class SvdStart:
    """Query ids start at U sqrt(S), item ids at V sqrt(S), with U S V^T the truncated SVD of D_q^-1/2 R D_i^-1/2.

    R is the training pairs, as in ``Graph``, and needs the same ids. Each table is scaled to the deviation that it
    would have started with at random; ids without a training pair keep that start. Columns beyond the rank do too.

    Source: Halko, Martinsson and Tropp, SIAM Review 2011, algorithms 4.4 and 5.1 (randomised SVD).
    """

    power_iterations: int = 1
    """Times the random subspace is multiplied by the matrix and its transpose: more is closer to the exact SVD."""
    oversampling: int = 8
    """Dimensions of the random subspace beyond those that are kept."""

    def __post_init__(self) -> None:
        for name, value in (("power_iterations", self.power_iterations), ("oversampling", self.oversampling)):
            if value < 0:
                raise ConfigError(f"towers.start: {name} is {value}, expected 0 or more")

    def apply(self, adjacency: Adjacency, query: Table, item: Table) -> None:
        """Move the rows of both tables that have an edge."""
        left_QD, value_D, right_ID = self.decompose(adjacency, query.weight.shape[1])
        sides = ((query, left_QD, adjacency.n_edges_Q), (item, right_ID, adjacency.n_edges_I))
        for table, vector_RD, n_edges_R in sides:
            row = n_edges_R.nonzero()[:, 0]
            vector_nD = (vector_RD * value_D.sqrt()).index_select(0, row)
            table.start_from(row, vector_nD * (table.deviation / vector_nD.square().mean().sqrt()))

    def decompose(self, adjacency: Adjacency, rank: int) -> tuple[Tensor, Tensor, Tensor]:
        """U [rows of queries, D], S [D] falling and V [rows of items, D]; D is ``rank``, or that of R where it is less.

        Draws from torch's global generator.
        """
        n_items = len(adjacency.n_edges_I)
        width = min(rank + self.oversampling, n_items)
        subspace_QK = _orthonormal(
            adjacency.to_queries(torch.randn(n_items, width, dtype=adjacency.dtype, device=adjacency.device))
        )
        for _ in range(self.power_iterations):
            subspace_IK = _orthonormal(adjacency.to_items(subspace_QK))
            subspace_QK = _orthonormal(adjacency.to_queries(subspace_IK))
        inner_IK = adjacency.to_items(subspace_QK)
        right_ID, value_D, turn_KD = _decompose_tall(inner_IK, rank)
        return subspace_QK @ turn_KD, value_D, right_ID


def _orthonormal(x_nK: Tensor) -> Tensor:
    """A basis of the space of the columns."""
    return _decompose_tall(x_nK, x_nK.shape[1])[0]


def _decompose_tall(x_nK: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """The SVD of a tall matrix: U [n, D], S [D] falling, V [K, D], D at most ``rank``.

    By the eigenvectors of X^T X: a tenth of the time of a QR or an SVD of X, and as exact as a start needs.
    """
    square_K, vector_KK = torch.linalg.eigh((x_nK.T @ x_nK).double())
    square_K, vector_KK = square_K.flip(0)[:rank], vector_KK.flip(1)[:, :rank]
    rounding = torch.finfo(x_nK.dtype).eps * x_nK.shape[1]
    kept = int((square_K > rounding * square_K[0]).sum())
    value_D, vector_KD = square_K[:kept].sqrt().to(x_nK), vector_KK[:, :kept].to(x_nK)
    return x_nK @ (vector_KD / value_D), value_D, vector_KD
