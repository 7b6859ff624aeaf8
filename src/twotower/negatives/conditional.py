"""Laws of items given something about the query, counted in the training events."""

from __future__ import annotations

import math
from dataclasses import field
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..errors import ConfigError
from ..part import Facts
from ..records import NEG_INF, Batch, Block, Features, Ragged, find, running_sum
from .alias import AliasTable
from .drawing import bounds, by_weight, uniform
from .room import Room, Sizes
from .sampler import Look, Sampler, require_some
from .static import power, share
from .tiles import tiles

_CHUNK = 2**16
"""Events whose features are read at a time: a history of 50 items each makes 25 MiB."""


class Conditional(Sampler):
    """n items for each query by their popularity within the query's group, rows [B, n].

        q(i | g) = (1 - smoothing) f_gi^alpha / sum of f_gj^alpha  +  smoothing f_i^alpha / sum of f_j^alpha

    g is the value of the query's (or context's) feature ``by``, f_gi the training events of item i with that value, f_i
    those of item i. Of a list g is the last value: by a history, the item before, and q is a bigram law: what follows
    what. A query without a value, or with one that no training event has, draws by popularity alone.

    The density is exact; n q(i | g) are expected. Choose it where groups like different items (country, language,
    device, the item before): its negatives are those that the group's popularity alone can't tell apart, so the model
    must learn the rest. Corrected, it estimates the softmax with less variance than popularity over all; uncorrected,
    it takes the group's popularity out of the scores.

    A batch costs O(B n log E), and counting N shared candidates O(N log E) for each distinct group; 20 bytes are kept
    for each distinct (group, item) of the E events.

    Raises ConfigError where n is below 1, where smoothing is no share, and where queries have no such feature, or one
    that is no row of a vocabulary.

    Source: Bengio and Senécal, Adaptive importance sampling to accelerate training of a neural probabilistic language
    model (IEEE TNN 2008), whose proposals are n-gram laws mixed with the unigram law; here they do not adapt.
    """

    density = "exact"
    per_query: ClassVar[bool] = True
    per_query_law = True

    n: int = field(kw_only=False)
    by: str
    alpha: float = 1.0
    smoothing: float = 0.1
    """Share of the catalogue's popularity."""

    popular: AliasTable = field(init=False)
    log_popular_M: Tensor = field(init=False)
    group_G: Tensor = field(init=False)
    """Values that groups have, rising."""
    offset_G: Tensor = field(init=False)
    """[G + 1] where the pairs of each group start."""
    key_Z: Tensor = field(init=False)
    """Of each distinct pair: place of the group * M + item, rising."""
    until_Z: Tensor = field(init=False)
    """[Z + 1] summed weight of the pairs before each place, float64."""
    log_share_Z: Tensor = field(init=False)
    """log q of the item in its group."""

    def __post_init__(self) -> None:
        require_some(self, self.n)
        if not 0 <= self.smoothing <= 1:
            raise ConfigError(f"Conditional: smoothing is {self.smoothing}, expected a share from 0 to 1")

    def setup(self, facts: Facts) -> None:
        n_items, item_E = facts.n_items, facts.events.item_E
        weight_M = facts.of_live(power(facts.item_count_M.double(), self.alpha))
        log_popular_M = share(self, weight_M).log().float()
        self.popular = AliasTable(weight_M)

        chunks = torch.arange(len(item_E)).split(_CHUNK)
        group_E = torch.cat([self._groups(facts.events.features(index)) for index in chunks])
        has = (group_E >= 0) & facts.of_live(torch.ones(n_items, dtype=torch.bool))[item_E]
        group_G, of_E = group_E[has].unique(return_inverse=True)
        key_Z, count_Z = (of_E * n_items + item_E[has]).unique(return_counts=True)
        weight_Z, of_Z = count_Z.double() ** self.alpha, key_Z // n_items
        total_G = torch.zeros(len(group_G), dtype=torch.float64).index_add_(0, of_Z, weight_Z)
        if not bool((total_G > 0).all()):
            raise ConfigError(
                f"Conditional: alpha is {self.alpha}, which leaves groups without weight: bring it nearer to 1"
            )
        # Follow from the data, so they are not saved: tomorrow's run counts tomorrow's events.
        self.register_buffer("log_popular_M", log_popular_M, persistent=False)
        self.register_buffer("group_G", group_G, persistent=False)
        self.register_buffer("offset_G", torch.searchsorted(of_Z, torch.arange(len(group_G) + 1)), persistent=False)
        self.register_buffer("key_Z", key_Z, persistent=False)
        self.register_buffer("until_Z", running_sum(weight_Z), persistent=False)
        self.register_buffer("log_share_Z", (weight_Z / total_G[of_Z]).log().float(), persistent=False)

    def room(self, sizes: Sizes) -> Room:
        """Each event may be a (group, item) of its own."""
        return Room(own=self.n, kept=20 * (sizes.n_items + sizes.n_events))

    def _groups(self, features: Features) -> Tensor:
        """[n] the value of each query, -1 for none."""
        column = features.get(self.by)
        if column is None:
            have = ", ".join(features) or "none"
            raise ConfigError(f"Conditional: by is {self.by!r}, expected a feature of queries; they have {have}")
        if isinstance(column, Ragged):
            last = pad(column.value, (1, 0))[column.offset[1:]]
            return torch.where(column.lengths() > 0, last, -1)
        if column.is_floating_point() or column.dim() != 1:
            raise ConfigError(
                f"Conditional: by is {self.by!r}, whose values are numbers or vectors, expected one of few values, or"
                " lists of such: name a feature of kind Categorical, Seed or History, or cut a Number into quantiles"
            )
        return column

    def _places(self, batch: Batch) -> Tensor:
        """[B] place of each query's group among the known ones, -1 for none."""
        group_B = self._groups(batch.query)
        at_B, is_known_B = find(self.group_G, group_B)
        return at_B.where(is_known_B, -1)

    def draw(self, batch: Batch, look: Look, rng: torch.Generator) -> tuple[Block, ...]:
        device, shape = batch.item_P.device, (len(batch.query_B), self.n)
        popular_Bn = self.popular.draw(shape, rng).to(device)
        by_group_Bn = uniform(shape, rng, device) >= self.smoothing
        if not len(self.group_G):
            return (Block.of(popular_Bn),)
        start_B, stop_B = bounds(self.offset_G, self._places(batch))
        pair_Bn = by_weight(self.until_Z, start_B, stop_B, self.n, rng)
        of_group_Bn = self.key_Z[pair_Bn.clamp(min=0)] % len(self.log_popular_M)
        return (Block.of(torch.where(by_group_Bn & (pair_Bn >= 0), of_group_Bn, popular_Bn)),)

    def log_count(self, row: Tensor, batch: Batch, look: Look) -> Tensor:
        place_B = self._places(batch)
        if row.dim() > 1:
            return self._log_q(row, place_B[:, None]) + math.log(self.n)
        place_U, at_B = place_B.unique(return_inverse=True)  # queries share their groups
        log_q_UN = torch.cat([self._log_q(row[None, :], place_U[at, None]) for at in tiles(len(place_U), 4 * len(row))])
        return log_q_UN[at_B] + math.log(self.n)

    def _log_q(self, row: Tensor, place: Tensor) -> Tensor:
        popular = self.log_popular_M[row]
        if not len(self.key_Z):
            return popular.expand(torch.broadcast_shapes(row.shape, place.shape))
        key = place * len(self.log_popular_M) + row
        pair, is_there = find(self.key_Z, key)
        in_group = torch.where(is_there, self.log_share_Z[pair], NEG_INF)
        mixed = torch.logaddexp(in_group + _log(1 - self.smoothing), popular + _log(self.smoothing))
        return torch.where(place < 0, popular, mixed)


def _log(share: float) -> float:
    return math.log(share) if share else NEG_INF
