"""Softmax whose candidates are weighed by an adversary."""

from __future__ import annotations

import math
from dataclasses import field
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..errors import ConfigError
from ..part import Facts
from ..records import Encoded
from ..scoring import Prepared, Scores, Similarity
from ..tables import Table, TableSettings
from .softmax import SampledSoftmax

HARDNESS = "hardness"


class AdvInfoNCE(SampledSoftmax):
    """-log( e^p / (e^p + sum_j h_j w_j e^{s_j}) ), h_j = K softmax_j(<a_u, b_j>): a learned log-count.

    The adversary's vectors a (of queries) and b (of items) climb the loss: candidates that cost most count more, false
    negatives and noise included, which the model then has to be robust against. h has mean 1 over a query's K
    candidates. The adversary learns in the first ``epochs`` epochs out of every ``every``, by reversed gradient in the
    same step, with ``lr_scale`` times the tables' learning rate; later h stays as it is.

    Queries need ids.

    Source: Zhang et al., Empowering collaborative filtering with principled adversarial contrastive loss, NeurIPS 2023,
    arXiv 2310.18700, equations 5 to 8. (There the adversary moves in epochs of its own.)
    """

    knows_queries: ClassVar[bool] = True

    width: int = 16
    """Of the adversary's vectors."""
    lr_scale: float = 0.1
    epochs: float = 1.0
    every: float = 5.0
    until: float = 30.0
    """Epochs after which the adversary rests for good: let it go on and it only overstates what is hard."""

    of_query: Table = field(init=False)
    of_item: Table = field(init=False)
    steps: Tensor = field(init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width < 1:
            raise ConfigError(f"loss.width of AdvInfoNCE: found {self.width}, expected at least 1")
        for name, value in (("epochs", self.epochs), ("every", self.every), ("until", self.until)):
            if not 0 < value < math.inf:
                raise ConfigError(f"loss.{name} of AdvInfoNCE: found {value}, expected a positive number of epochs")

    def setup(self, facts: Facts) -> None:
        if not len(facts.query_count_Q):
            raise ConfigError("loss: AdvInfoNCE has a vector for each query, but queries have no id: name one")
        settings = TableSettings(deviation=0.1, lr_scale=self.lr_scale)
        self.of_query = Table(len(facts.query_count_Q), self.width, settings, of="queries")
        self.of_item = Table(facts.n_items, self.width, settings, of="items")
        self.steps_per_epoch = facts.steps_per_epoch
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def learns(self) -> bool:
        """Whether the adversary moves in this step."""
        epoch = int(self.steps) / self.steps_per_epoch
        return epoch < self.until and epoch % self.every < self.epochs

    def prepare(self, encoded: Encoded) -> Prepared:
        """Also looks up the adversary's vectors, their gradients reversed."""
        query_BD, row, _ = super().prepare(encoded)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.learns()):
            query_Bd = self.of_query.look_up(encoded.batch.query_B)
            item_Td = self.of_item.look_up(encoded.row_T)
            column_Nd = self.of_item.look_up(encoded.shared.row)
        vectors = (_reversed(x.to(query_BD.dtype)) for x in (query_Bd, column_Nd, item_Td))
        return Prepared(query_BD, row, {HARDNESS: Similarity(*vectors)})

    by_log_sum_exp = False  # the weights are learned, and differ from query to query

    def rows(self, scores: Scores) -> Tensor:
        """softplus(log sum_j h_j w_j e^{s_j} - p)"""
        hardness = scores.beside[HARDNESS]
        n_C = scores.masked(scores.log_weight_alone.exp().expand(hardness.shape), 0.0).sum(1)
        log_total_C = scores.log_sum_exp(hardness, scores.log_weight_alone)
        log_h = hardness + (n_C.clamp(min=torch.finfo(n_C.dtype).tiny).log() - _finite(log_total_C))[:, None]
        return self.finish(scores.to_pairs(scores.log_sum_exp(scores.negative + log_h)), scores)

    def observe(self, encoded: Encoded, notes: dict[str, Tensor]) -> None:
        """Count the step."""
        self.steps += 1


def _finite(x: Tensor) -> Tensor:
    """0 where a line has no candidate: its loss is none anyway."""
    return torch.where(x.isinf(), 0.0, x)


class _Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> Tensor:
        return -outer[0]


def _reversed(x: Tensor) -> Tensor:
    """x, whose gradient comes back with the other sign: what descends, climbs."""
    found: Tensor = _Reverse.apply(x)  # type: ignore[no-untyped-call]
    return found
