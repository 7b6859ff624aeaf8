"""Thinning: an event of item i is kept with probability k_i, so a stream whose law was f_i becomes one of f_i k_i.

    FrequentThinning   popular items lose events: word2vec's subsampling of frequent words
    UniformThinning    all items lose the same share

``keep_probability`` is the rule by itself, for any stream: positives, or impressions nobody took.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from ..errors import ConfigError

ThinningForm = Literal["code", "paper", "power"]
FORMS: tuple[ThinningForm, ...] = ("code", "paper", "power")

_BITS = 32
UNIT = 1 << _BITS
"""Probabilities are rounded up to multiples of 2^-32, so that their sums are exact."""


def keep_probability(share: Tensor, *, t: float, form: ThinningForm = "code", power: float = 0.5) -> Tensor:
    """With which probability an event stays, by its item's share f of all events: float64, 1 where f is 0.

        code    min(1, (sqrt(f / t) + 1) t / f) = min(1, sqrt(t / f) + t / f)
        paper   min(1, sqrt(t / f))
        power   min(1, (t / f)^power)

    Source: word2vec.c, ``sample``, and gensim (``code``); Mikolov et al., Distributed representations of words and
    phrases (NIPS 2013), equation 5 (``paper``).
    """
    ratio = t / share.double()
    kept = ratio ** (power if form == "power" else 0.5)
    return (kept + ratio if form == "code" else kept).clamp(max=1.0)


@dataclass(frozen=True, kw_only=True)
class FrequentThinning:
    """Events of item i are kept with ``keep_probability`` of its share of the training events.

    Items above the share t lose events (code: above 2.6 t). Far above it f k becomes sqrt(f t): popularity among
    positives has half its exponent, as ``Popularity(alpha)`` sets that among negatives. With ``floor`` an item keeps
    that many events an epoch, or all it has where it has fewer: k_i >= min(1, floor / events of i).

    Choose it where a few popular items take most steps and most of the gradient. t = 1e-3 is for some 10^5 items, as
    words; the flatter the shares, the lower it must be, and where none is above t nothing is left out.
    ``form = "power"`` with power = 0.85, t = 1e-4 and floor = 5 is known from production.

    Raises ConfigError where a setting is out of its range.

    Source: as for ``keep_probability``; the floor is ours.
    """

    t: float = 1e-3
    form: ThinningForm = "code"
    power: float = 0.5
    """Of ``form = "power"``."""
    floor: int = 0
    """Events."""

    def __post_init__(self) -> None:
        _require(0 < self.t < math.inf, "FrequentThinning.t", self.t, "a share of the events, above 0")
        _require(self.form in FORMS, "FrequentThinning.form", self.form, f"one of {', '.join(FORMS)}")
        _require(0 < self.power < math.inf, "FrequentThinning.power", self.power, "a positive number")
        _require(self.floor >= 0, "FrequentThinning.floor", self.floor, "0 or more events")

    def keep_probability(self, count_M: Tensor) -> Tensor:
        """[M] events of each item -> [M] float64 probability that an event of it is kept."""
        count_M = count_M.double()
        share_M = count_M / count_M.sum().clamp(min=1)
        kept_M = keep_probability(share_M, t=self.t, form=self.form, power=self.power)
        return torch.maximum(kept_M, (self.floor / count_M.clamp(min=1)).clamp(max=1.0))


@dataclass(frozen=True, kw_only=True)
class UniformThinning:
    """Every event is kept with the same probability: shorter epochs of the same law.

    Choose it beside ``FrequentThinning`` as a control, with as many events an epoch but popularity as it was.

    Raises ConfigError where ``keep`` is no probability.
    """

    keep: float

    def __post_init__(self) -> None:
        _require(0 < self.keep <= 1, "UniformThinning.keep", self.keep, "a probability, above 0 and at most 1")

    def keep_probability(self, count_M: Tensor) -> Tensor:
        """[M] events of each item -> [M] float64 probability that an event of it is kept."""
        return torch.full(count_M.shape, self.keep, dtype=torch.float64, device=count_M.device)


Thinning = FrequentThinning | UniformThinning
"""Every way of thinning there is: the type of the setting."""


@dataclass(frozen=True, kw_only=True)
class ThinnedEvents:
    """Draws of the events that are kept: exactly k_i an event, and as many as expected, not a random number.

    Lay the events end to end on a line, each as long as its probability, and keep those in which one of the points u,
    u + 1, u + 2, ... lies, u uniform on [0, 1): systematic sampling. As no event is longer than 1, each is kept with
    its probability exactly, and all together are the sum of the probabilities, rounded down or up. The same holds for
    any stretch of the line, so items are laid one after the other: in *every* draw an item has f_i k_i events, rounded
    down or up, where independent coins would add noise of sqrt(f_i k_i (1 - k_i)). The order of the items, and of the
    events of each, is random anew in each draw, so which events are kept together is left to chance.

    A fixed size is what a schedule needs: the number of steps of an epoch is known before the run. A draw costs a sort
    of the events, some five seconds for ten million on one core.

    Source: Madow, On the theory of systematic sampling, II (Annals of Mathematical Statistics 20, 1949); in random
    order: Hartley and Rao, Sampling with unequal probabilities and without replacement (the same 33, 1962).
    """

    item_E: Tensor
    """Item row of each event."""
    keep_M: Tensor
    """Probability that an event of an item is kept."""
    day_E: Tensor | None = None
    """The day of each event, from 0: days are then laid one after the other, in each the items, and what is said of
    items holds for those of one day."""
    length_M: Tensor = field(init=False)
    """The same as multiples of 2^-32, int64."""
    n_least: int = field(init=False)
    """Events of a draw; where their expected number is no whole one, some draws have one more."""

    def __post_init__(self) -> None:
        length_M = (self.keep_M.double() * UNIT).ceil().long()
        object.__setattr__(self, "length_M", length_M)
        object.__setattr__(self, "n_least", int(length_M[self.item_E].sum()) >> _BITS)

    def draw(self, rng: torch.Generator) -> Tensor:
        """Numbers of the events that are kept, grouped by item, and before that by day."""
        order = torch.randperm(len(self.item_E), generator=rng)
        place_M = torch.randperm(len(self.length_M), generator=rng)
        order = order[torch.sort(place_M[self.item_E[order]], stable=True).indices]
        if self.day_E is not None:
            order = order[torch.sort(self.day_E[order], stable=True).indices]
        length = self.length_M[self.item_E[order]]
        end = length.cumsum(0) + torch.randint(UNIT, (), generator=rng)
        return order[(end >> _BITS) > ((end - length) >> _BITS)]


def _require(ok: bool, setting: str, found: float | str, expected: str) -> None:
    if not ok:
        raise ConfigError(f"{setting}: found {found}, expected {expected}")
