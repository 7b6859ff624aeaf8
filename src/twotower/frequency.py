"""How likely an item is to be in a batch: counted before the run, or learned from the stream.

A frequency estimate belongs to the run, not to a sampler. Samplers read it through ``Look.log_presence``.

    ExactFrequency      the training events are counted; nothing changes while training
    StreamingFrequency  gaps between an item's batches in a hashed table; follows a stream whose law drifts
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import field

import torch
from torch import Tensor

from .errors import ConfigError
from .part import Changes, Facts, Part

_MOST_UNSEEN = 100.0
"""The gap of an item that was never seen is at most so many times as long as it was waited for."""

_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)


class Frequency(Part):
    """The presence of items: P(item is in the global batch), as known before that batch."""

    def epochs_ahead(self) -> float:
        """Epochs of batches it wants to have observed before the first step."""
        return 0.0

    def log_presence(self, row: Tensor) -> Tensor:
        """Item rows of any shape -> float32 of that shape, at most 0."""
        raise TypeError(f"{type(self).__name__} defines no log_presence")

    def observe(self, item_P: Tensor) -> None:
        """Learn from the positives of one global batch; called once a batch, after its counts were read."""


class ExactFrequency(Frequency):
    """Presence from the counted training events: an item is there if at least one of the B - 1 other rows brings it.

        log P = log(1 - (1 - q)^(B - 1)) = log(-expm1((B - 1) log1p(-q)))

    In a batch of B pairs, q is the item's share of the training events. In a batch of B queries with all their
    positives, q is the share of the queries that have the item among their positives.

    An item without training event is in no batch: its presence is 0 and its log -inf, not a small number. That is safe
    as a count in a mixture (``logaddexp``), and such an item is never offered by the batch. The same holds for every
    item when B is 1. What is counted is what is trained on, so an item that was not live then (``schema.life``) has no
    presence, whatever it had before.

    Raises ConfigError where an item is counted in more queries than there are.
    """

    log_presence_M: Tensor = field(init=False)

    def setup(self, facts: Facts) -> None:
        count_M = facts.item_count_M.double()
        total = facts.n_queries if facts.batch_of == "queries" else float(count_M.sum())
        if len(count_M) and float(count_M.max()) > total:
            raise ConfigError(
                f"ExactFrequency: an item is counted {count_M.max():.0f} times among {total} queries, expected at most"
                " once a query; batches of queries need the number of training queries that have each item"
            )
        log_presence_M = log_of_at_least_one(count_M / max(total, 1), facts.batch_size - 1)
        # Follows from the data, so it is not saved: tomorrow's run counts tomorrow's events.
        self.register_buffer("log_presence_M", log_presence_M.float(), persistent=False)

    def log_presence(self, row: Tensor) -> Tensor:
        return self.log_presence_M[row]


def log_of_at_least_one(q: Tensor, tries: int) -> Tensor:
    """log(1 - (1 - q)^tries), with no digits lost where q is tiny; -inf where there is no chance."""
    if tries < 1:
        return torch.full_like(q, -math.inf)
    return torch.log(-torch.expm1(tries * torch.log1p(-q)))


class StreamingFrequency(Frequency):
    """Presence as one over the mean gap, in batches, between two batches that hold the item.

    At global batch t, each bucket h that an item of the batch falls into is updated once, however many do:

        B[h] <- (1 - alpha) B[h] + alpha (t - A[h]),    A[h] <- t

    A collision only shortens gaps, so of several hash functions the largest gap is believed. Read before batch t:

        log P = -log max(1, max over the hash functions of max(B[h], (t - A[h]) / patience))

    The second term is ours and lets an item that stopped coming fade. It must wait: for an item in the batch being
    read, t - A[h] is itself a fresh sample T of the gap g, nearly exponential where g is large, and with c for patience

        E[max(g, T / c)] = g (1 + integral from c of (u / c - 1) exp(-u) du) = g (1 + exp(-c) / c)

    so waiting for one gap would weigh every item of the batch 1.37 times too much; waiting for five adds 0.13%.
    ``patience = inf`` reads as printed in the paper.

    With ``warm_up`` (ours; off is the paper's form) the n-th gap of a bucket counts max(alpha, 1 / n) instead of alpha:
    the first gaps are averaged alike, and the initial gap is forgotten at once. Candidates weigh 1 / P, the gap
    itself, of which a mean of gaps is an unbiased estimate. Without it a bucket forgets its initial gap only
    after some 1/alpha touches, which an item of the tail never gets: on the demo data that costs .04 of tail recall.
    A gap lies between two touches. The wait for the first touch began with the stream, not with the item: in passes
    over a data set it is half a gap, for an item that is new it is the age of the stream. It stands in until the second
    touch, and then does not count; counted, items with one event would weigh 10% too little after five passes.

    A bucket never touched has the gap max(initial_gap, t): not seen in t batches. With ``warm_up`` it has what Good and
    Turing would give it: n_1 buckets were touched once in t batches, so new ones come n_1 / t a batch, and of M items
    n_0 are still to come:

        presence of each = (n_1 + 1) / (n_0 t), its gap at most 100 t

    For a catalogue half of which never comes, 1 / t would keep saying that it soon will. (The bound is for the day on
    which something new does come: a candidate's weight is its gap.) The first touch is an update like any other, with t
    for its gap. Once settled, an estimate of presence p has the relative standard deviation
    sqrt(alpha / (2 - alpha) (1 - p)) and the relative bias alpha / 2 (1 - p): 7% and 0.5% for rare items, alpha = 0.01.

    ``burn_in`` epochs of batches, in orders of their own, are observed before the first step. In the first pass over a
    data set everything is new, and the first gaps are too short; where all of it is at hand, a few passes over the ids,
    which cost next to nothing, put that behind: after five, no class of items of the demo data weighs 2% too little
    (after two it is 5%).

    ``buckets`` is the size of each hash function's own table; with ten times as many buckets as live items one item in
    ten shares its bucket, and one in a hundred shares both where there are two functions. Hashed is the
    number that an item has for itself (``Facts.item_number_M``), or its row where items have none: an item that takes
    the row of one that went does not take its gap.

    When the store grows (``carry``) the tables go on as they are. What changes is who is waited for:

        M and n_0 count the items that are there now: those that went are no longer to come
        for a new item the wait began when it came, not with the stream: t in its bounds (least and most) and in its
            first gap is its age in batches
        n_1 / t is counted from the day the last new items came: Good and Turing hold for any set of items, here those
            that had not come by then, and what is new comes at a rate of its own

    Buckets of items that went are not cleared, for others may share them: a later item that falls into all of those of
    one that went inherits what is left of its gap, until its own touches have replaced that.

    Raises ConfigError where a setting is out of its range.

    Source: Yi et al., Sampling-bias-corrected neural modeling for large corpus item recommendations (RecSys 2019),
    Algorithms 2 and 3, Equation 6. Never seen: Good, The population frequencies of species, Biometrika 40 (1953),
    Equation 9. Hashing: Steele, Lea and Flood, Fast splittable pseudorandom number generators
    (OOPSLA 2014).
    """

    buckets: int = 2**20
    hashes: int = 2
    alpha: float = 0.01
    initial_gap: float = 100.0
    patience: float = 5.0
    warm_up: bool = True
    burn_in: float = 0.0

    last_HB: Tensor = field(init=False)
    """[hashes, buckets] the batch that last touched a bucket, counted from 1. Of one that was never touched, the batch
    after which the first item that falls into it was new; 0: the start of the stream."""
    gap_HB: Tensor = field(init=False)
    """[hashes, buckets] mean gap in batches."""
    touches_HB: Tensor = field(init=False)
    """[hashes, buckets] batches that touched a bucket."""
    step: Tensor = field(init=False)
    """Batches observed."""
    touched_H: Tensor = field(init=False)
    """[hashes] items whose bucket was ever touched; those that collided since the store last grew are taken for one."""
    began: Tensor = field(init=False)
    """Batches observed before the last new items came."""
    once_H: Tensor = field(init=False)
    """[hashes] buckets touched by one batch, after those."""
    number_M: Tensor = field(init=False)
    """[M] what is hashed of each item; empty: its row."""
    n_items: int = field(init=False)

    def __post_init__(self) -> None:
        _require(1 <= self.buckets <= 2**31, "buckets", self.buckets, "1 to 2**31")
        _require(self.hashes >= 1, "hashes", self.hashes, "at least 1")
        _require(0 < self.alpha <= 1, "alpha", self.alpha, "above 0, at most 1")
        _require(1 <= self.initial_gap < math.inf, "initial_gap", self.initial_gap, "at least 1 batch")
        _require(0 <= self.burn_in < math.inf, "burn_in", self.burn_in, "0 or more epochs")
        _require(self.patience >= 1, "patience", self.patience, "at least 1 gap; inf for no fading")

    def setup(self, facts: Facts) -> None:
        device, shape = facts.item_count_M.device, (self.hashes, self.buckets)
        self.register_buffer("last_HB", torch.zeros(shape, dtype=torch.int64, device=device))
        self.register_buffer("gap_HB", torch.full(shape, float(self.initial_gap), device=device))
        self.register_buffer("touches_HB", torch.zeros(shape, dtype=torch.int32, device=device))
        for name in ("step", "began"):
            self.register_buffer(name, torch.zeros((), dtype=torch.int64, device=device))
        for name in ("touched_H", "once_H"):
            self.register_buffer(name, torch.zeros(self.hashes, dtype=torch.int64, device=device))
        # Follows from the data, so it is not saved.
        self.register_buffer("number_M", facts.item_number_M.to(device), persistent=False)
        self.n_items = int((self.number_M >= 0).sum()) if len(self.number_M) else facts.n_items

    @torch.no_grad()
    def carry(self, saved: Mapping[str, Tensor], changes: Changes) -> None:
        """All of the tables; new items begin to wait, and of those that are there it is counted who has come."""
        super().carry(saved, changes)
        row_M = torch.arange(len(changes.item_M), device=self.step.device)
        is_there_M = self.number_M >= 0 if len(self.number_M) else torch.ones_like(row_M, dtype=torch.bool)
        touches, last = self.touches_HB.view(-1), self.last_HB.view(-1)
        place = self._place(row_M[is_there_M & changes.item_M.to(row_M.device)])
        if place.numel():
            last[place[touches[place] == 0]] = self.step
            self.began.copy_(self.step)
            self.once_H.zero_()
        self.touched_H.copy_((touches[self._place(row_M[is_there_M])] > 0).sum(1))

    def epochs_ahead(self) -> float:
        return self.burn_in

    def log_presence(self, row: Tensor) -> Tensor:
        place = self._place(row)
        last, mean_gap = self.last_HB.view(-1)[place], self.gap_HB.view(-1)[place]
        waited = self.step + 1 - last
        faded = torch.maximum(mean_gap, waited / self.patience)
        gap = torch.where(self.touches_HB.view(-1)[place] == 0, self._unseen_gap(waited).to(faded.dtype), faded)
        return -gap.amax(0).clamp(min=1).log()

    def _unseen_gap(self, waited: Tensor) -> Tensor:
        """[hashes, ...] gap of a bucket never touched, by how long it was waited for [hashes, ...]."""
        t, waited = (self.step + 1 - self.began).to(self.gap_HB.dtype), waited.to(self.gap_HB.dtype)
        least = waited.clamp(min=self.initial_gap)
        if not self.warm_up:
            return least
        to_come_H = (self.n_items - self.touched_H).clamp(min=1)
        by_turing = (to_come_H * t / (self.once_H + 1)).view(-1, *(1 for _ in waited.shape[1:]))
        return torch.maximum(least, torch.minimum(by_turing, _MOST_UNSEEN * waited))

    @torch.no_grad()
    def observe(self, item_P: Tensor) -> None:
        # Each bucket once: going through the items one by one would add a gap of 0 for each repeat.
        place = self._place(item_P).unique()
        last, mean_gap, touches = self.last_HB.view(-1), self.gap_HB.view(-1), self.touches_HB.view(-1)
        self.step += 1
        touch = touches[place] + 1
        share = (1 / (touch - 1).clamp(min=1)).clamp(min=self.alpha) if self.warm_up else self.alpha
        first_H, second_H = (
            self._per_hash(place[touched]) for touched in (touch == 1, (touch == 2) & (last[place] > self.began))
        )
        self.touched_H += first_H
        self.once_H += first_H - second_H
        mean_gap[place] = (1 - share) * mean_gap[place] + share * (self.step - last[place])
        touches[place] = touch
        last[place] = self.step

    def _per_hash(self, place: Tensor) -> Tensor:
        """[hashes] how many of some places lie in each hash function's table."""
        return (place // self.buckets).bincount(minlength=self.hashes)

    def _place(self, row: Tensor) -> Tensor:
        """[...] -> [hashes, ...] places in the flattened tables: the item's bucket in that of each hash function."""
        which = torch.arange(self.hashes, device=row.device).view(-1, *(1 for _ in row.shape))
        of_item = self.number_M[row] if len(self.number_M) else row
        number = _mix(of_item * self.hashes + which + 1)
        return which * self.buckets + (number * self.buckets >> 32)


def _mix(counter: Tensor) -> Tensor:
    """The splitmix64 number of each counter, its upper 32 bits: multiply and shift, so any input spreads evenly."""
    number = counter * _GOLDEN  # int64 wraps around
    number = (number ^ _shift(number, 30)) * _MIX_1
    number = (number ^ _shift(number, 27)) * _MIX_2
    return _shift(number, 32)


def _shift(number: Tensor, bits: int) -> Tensor:
    """Right by that many bits, zeros coming in: int64 alone would bring in the sign."""
    return (number >> bits) & ((1 << (64 - bits)) - 1)


def _require(ok: bool, setting: str, found: float, expected: str) -> None:
    if not ok:
        raise ConfigError(f"StreamingFrequency: {setting} is {found}, expected {expected}")


FrequencyEstimate = ExactFrequency | StreamingFrequency
"""Every frequency estimate there is: the type of the setting, and the list that contract tests go through."""
