"""Softmax over a tree: exactly normalised at log M products a pair, without candidates."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ConfigError
from ..part import Changes, Facts
from ..records import Encoded, Ragged, running_sum
from ..scoring import DEFAULT_TILE, pair_dots
from ..tables import Table, TableSettings
from .row_loss import Loss


class HierarchicalSoftmax(Loss):
    """-log p(i|u), p(i|u) = prod over the path to i of sigmoid(sign_l <u, theta_l>), on a Huffman tree of the counts.

    Every inner node decides between two branches, so sum_i p(i|u) = 1 for any vectors. Frequent items have short paths:
    the mean depth is below the entropy of the counts in bits plus one.

    The nodes' vectors take the place of item vectors: nothing is learnt that an index could search, so this is for
    query vectors as such (word vectors), and as an exact oracle.

    Source: Morin and Bengio, AISTATS 2005; Huffman tree and initial zeros as in Mikolov et al., NIPS 2013, section 2.1.
    """

    learns_items: ClassVar[bool] = False

    offset: Tensor = field(init=False)
    """[M + 1] where the path of each item begins in ``node`` and ``sign``."""
    node: Tensor = field(init=False)
    sign: Tensor = field(init=False)
    nodes: Table = field(init=False)
    """[M - 1] vectors of the inner nodes."""

    def setup(self, facts: Facts) -> None:
        if facts.width < 1:
            raise ConfigError("HierarchicalSoftmax: the width of the towers is not known, expected Facts.width")
        tree = huffman(facts.item_count_M)
        device = facts.item_count_M.device
        # They follow from the data, so they are not saved.
        for name, value in (("offset", tree.offset), ("node", tree.node), ("sign", tree.sign)):
            self.register_buffer(name, value.to(device), persistent=False)
        self.nodes = Table(max(facts.n_items - 1, 1), facts.width, TableSettings(init="zeros"))

    def carry(self, saved: Mapping[str, Tensor], changes: Changes) -> None:
        """Raises ConfigError: other counts make another tree, whose nodes decide between other items."""
        raise ConfigError(
            "loss: HierarchicalSoftmax learns the nodes of a tree that is made of the counts of training, and those of "
            "a grown store make another tree: train anew on it, or choose another loss"
        )

    def log_p(self, query_BD: Tensor, of_P: Tensor, item_P: Tensor) -> Tensor:
        """[P] log p(item | query); ``of_P`` is the query of each pair, rising."""
        path = Ragged(offset=self.offset, value=self.node, weight=self.sign).take(item_P)
        pair_S = path.owner()
        distinct, at_S = path.value.unique(return_inverse=True)
        node_UD = self.nodes.look_up(distinct)
        score_S = pair_dots(query_BD, node_UD.to(query_BD.dtype), of_P.index_select(0, pair_S), at_S)
        assert path.weight is not None
        log_S = F.logsigmoid(score_S * path.weight.to(score_S.dtype))
        return torch.zeros(len(item_P), dtype=log_S.dtype, device=log_S.device).index_add(0, pair_S, log_S)

    def forward(
        self, encoded: Encoded, *, tile: int | None = DEFAULT_TILE, gemm: torch.dtype | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean of -log p over the batch's weight."""
        batch = encoded.batch
        loss_P = -self.log_p(encoded.query_BD, batch.of_P, batch.item_P)
        total = encoded.total_weight.to(loss_P.dtype)
        share_P = batch.weight_P.to(loss_P.dtype) / torch.where(total > 0, total, 1.0)
        notes = {
            "loss": loss_P.detach(),
            "alive": torch.ones(len(loss_P), dtype=torch.bool, device=loss_P.device),
            "excluded_share": torch.zeros(()),
        }
        return (loss_P * share_P).sum(), notes


@dataclass(frozen=True, slots=True)
class Tree:
    """The way from the root to every item."""

    offset: Tensor
    """[M + 1] where the path of each item begins in ``node`` and ``sign``."""
    node: Tensor
    """Inner nodes, root first, 0 to M - 2; the root is M - 2."""
    sign: Tensor
    """float32: 1 for one branch, -1 for the other."""


def huffman(count_M: Tensor) -> Tree:
    """The tree whose mean depth, weighted by counts, is least; items without events count as one.

    Two queues: leaves by count, and inner nodes in the order they are made, which is by count too.

    Source: Huffman, Proc. IRE 40 (1952); van Leeuwen, ICALP 1976 (two queues).
    """
    n_items = len(count_M)
    count_M = count_M.clamp(min=1)
    leaves = torch.sort(count_M, stable=True).indices.tolist()
    weight = [*count_M.tolist(), *[math.inf] * (n_items - 1)]
    parent, sign = [0] * (2 * n_items - 1), [1.0] * (2 * n_items - 1)
    leaf, inner = 0, n_items
    for made in range(n_items, 2 * n_items - 1):
        pair = []
        for _ in range(2):
            is_leaf = leaf < n_items and (inner >= made or weight[leaves[leaf]] <= weight[inner])
            pair.append(leaves[leaf] if is_leaf else inner)
            leaf, inner = leaf + is_leaf, inner + (not is_leaf)
        first, second = pair
        weight[made] = weight[first] + weight[second]
        parent[first] = parent[second] = made
        sign[second] = -1.0
    return _paths(torch.tensor(parent), torch.tensor(sign), n_items)


def _paths(parent: Tensor, sign: Tensor, n_items: int) -> Tree:
    """Walk all items up to the root at once, then turn each path round."""
    root = 2 * n_items - 2
    owner, node, signs, depth = [], [], [], []
    item, at, level = torch.arange(n_items), torch.arange(n_items), 0
    while True:
        below = at != root
        item, at = item[below], at[below]
        if not len(at):
            break
        owner.append(item)
        signs.append(sign[at])
        at = parent[at]
        node.append(at - n_items)
        depth.append(torch.full_like(at, level))
        level += 1
    if not owner:
        return Tree(torch.zeros(n_items + 1, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), torch.zeros(0))
    all_owner, all_depth = torch.cat(owner), torch.cat(depth)
    order = torch.argsort(all_owner * (level + 1) + (level - all_depth))
    length = all_owner.bincount(minlength=n_items)
    return Tree(
        offset=running_sum(length),
        node=torch.cat(node)[order],
        sign=torch.cat(signs)[order],
    )
