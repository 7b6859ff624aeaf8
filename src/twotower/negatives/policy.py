"""Samplers that are models of their own and learn from the towers which items to draw: by policy gradient."""

from __future__ import annotations

import math
from dataclasses import field

import torch
from torch import Tensor

from ..errors import ConfigError
from ..part import Facts
from ..records import Block, Encoded
from ..tables import Table, TableSettings
from .live import LiveRows
from .room import Room, Sizes
from .sampler import Look, Sampler, require_some
from .scores import dots

_DEVIATION = 0.1
"""Of the generator's vectors at the start: it begins near the uniform law."""


class Policy(Sampler):
    """n items a query, rows [B, n], drawn with replacement by a generator of its own, a matrix factorisation over ids:

        g(u, i) = <a_u, b_i> + c_i,    p_G(i | u) ~ e^{g(u, i) / temperature}

    A query without an id has no vector in it: for it all items are alike, and nothing is learned. Settings are checked,
    and vectors made, here; a subclass says over which items p_G runs and what a draw earns.

    The generator takes a step of the policy gradient in every ``every``-th training step, on the items drawn in it:

        loss = - mean over u and k of R_uk log p_G(i_k | u),    R_uk, the reward less the baseline, a constant

    Its vectors are tables: they are moved by the table optimiser with ``lr_scale`` times its learning rate, and saved.

    Raises ConfigError where a setting is out of its range or queries have no ids.
    """

    n: int = 1
    dim: int = 16
    """Of the generator's vectors."""
    bias: bool = True
    """Whether items have c_i."""
    temperature: float = 0.2
    scale: float = 1.0
    """Multiplies the towers' scores in the reward. Where they are cosines, one over the loss's temperature fits."""
    baseline: bool = True
    """Whether what is to be expected is taken off the rewards: that changes no mean, and steadies the gradient."""
    every: int = 1
    """Steps of training to one of the generator."""
    lr_scale: float = 1.0

    n_items: int = field(init=False)
    live: LiveRows = field(init=False)
    of_query: Table = field(init=False)
    of_item: Table = field(init=False)
    of_bias: Table | None = field(init=False)

    def __post_init__(self) -> None:
        require_some(self, self.n)
        name = type(self).__name__
        for setting, count in (("dim", self.dim), ("every", self.every)):
            if count < 1:
                raise ConfigError(f"{name}: {setting} is {count}, expected at least 1")
        for setting, value in (("temperature", self.temperature), ("scale", self.scale)):
            if not 0 < value < math.inf:
                raise ConfigError(f"{name}: {setting} is {value}, expected a positive number")
        if not 0 <= self.lr_scale < math.inf:
            raise ConfigError(f"{name}: lr_scale is {self.lr_scale}, expected 0 or more")

    def setup(self, facts: Facts) -> None:
        if not len(facts.query_count_Q):
            raise ConfigError(
                f"negatives: {type(self).__name__} has a vector for each query, but queries have no id: name one, or "
                "choose another sampler"
            )
        settings = TableSettings(deviation=_DEVIATION, lr_scale=self.lr_scale)
        self.n_items, self.live = facts.n_items, LiveRows(facts)
        self.of_query = Table(len(facts.query_count_Q), self.dim, settings, of="queries")
        self.of_item = Table(facts.n_items, self.dim, settings, of="items")
        self.of_bias = None
        if self.bias:
            self.of_bias = Table(facts.n_items, 1, TableSettings(init="zeros", lr_scale=self.lr_scale), of="items")

    def room(self, sizes: Sizes) -> Room:
        bias = ((sizes.n_items, 1),) if self.bias else ()
        return Room(own=self.n, tables=((sizes.n_queries, self.dim), (sizes.n_items, self.dim), *bias)) + LiveRows.room(
            sizes
        )

    def learns(self, blocks: tuple[Block, ...], look: Look) -> bool:
        """Whether the generator takes a step: what it drew is there, and it is its turn."""
        return bool(blocks) and look.step % self.every == 0


def reinforce(log_p_CK: Tensor, reward_CK: Tensor) -> Tensor:
    """Mean of -reward log p: its gradient is minus the policy gradient's, in expectation over what was drawn.

    Source: Williams, Simple statistical gradient-following algorithms (Machine Learning 1992).
    """
    return -(reward_CK.detach() * log_p_CK).mean()


def log_p_at(score_CM: Tensor, place_CK: Tensor) -> Tensor:
    """[C, K] log softmax at some places; -inf, and not nan, where all scores are -inf."""
    least = torch.finfo(score_CM.dtype).min
    return score_CM.gather(1, place_CK) - score_CM.logsumexp(1, keepdim=True).clamp(min=least)


def slots_of(encoded: Encoded, row: Tensor) -> Tensor:
    """Where item rows of any shape, all of the batch, have their vectors in the batch's table."""
    rising_T = encoded.row_T[encoded.row_T >= 0]  # what lies between items comes after them
    return torch.searchsorted(rising_T, row.contiguous())


def model_scores(encoded: Encoded, query_C: Tensor, row_CK: Tensor) -> Tensor:
    """[C, K] the towers' scores of items for queries of the batch, without gradient."""
    return dots(encoded.query_BD.detach()[query_C], encoded.table_TD.detach(), slots_of(encoded, row_CK))
