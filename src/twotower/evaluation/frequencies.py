"""A frequency estimate against the frequencies that came true."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from ..errors import DataError
from ..frequency import Frequency, log_of_at_least_one
from .report import aligned
from .slices import SLICES, Slices


@dataclass(frozen=True, slots=True, kw_only=True)
class FrequencyClass:
    """The estimate for the items of a slice of the catalogue (``SLICES``), by their events of that day."""

    name: str
    events: str
    """Of an item that day, in words."""
    n_items: int
    n_in_batch: float
    """Items of the slice in a batch, as it came true: the sum of p_i."""
    n_believed: float
    """The same as estimated."""
    mean_log_ratio: float
    """Mean over items of log(estimate / p_i): 0 where it is right, -0.1 where a tenth too low. nan for items that did
    not come, whose p_i is 0; -inf where one that came has the estimate 0."""


@dataclass(frozen=True, kw_only=True)
class FrequencyReport:
    """What ``frequency_report`` found."""

    error: float
    """1 / (2 B) sum_i |estimate_i - p_i|."""
    batch_size: int
    n_events: int
    classes: tuple[FrequencyClass, ...]

    def render(self) -> str:
        """A table for people."""
        heads = ["items", "events each", "number", "in a batch", "as estimated", "mean log ratio"]
        cells = [
            [
                c.name,
                c.events,
                f"{c.n_items:,}",
                f"{c.n_in_batch:,.4g}",
                f"{c.n_believed:,.4g}",
                _cell(c.mean_log_ratio),
            ]
            for c in self.classes
        ]
        head = (
            f"error {self.error:.4f} of the frequencies of {self.n_events:,} events in batches of {self.batch_size:,}"
        )
        return "\n".join([head, "", *aligned([heads, *cells])])

    def to_json(self) -> str:
        """Everything; null for what is not finite."""
        tree = asdict(self)
        for one in tree["classes"]:
            if not math.isfinite(one["mean_log_ratio"]):
                one["mean_log_ratio"] = None
        return json.dumps(tree, indent=2, allow_nan=False)


def _cell(number: float) -> str:
    return "-" if math.isnan(number) else f"{number:+.3f}"


def frequency_report(
    frequency: Frequency, item_count_M: Tensor, *, batch_size: int, tail_max: int = 50, head_share: float = 0.5
) -> FrequencyReport:
    """How far the presence that a run believes in is from that of batches of these events, such as a day's.

        error = 1 / (2 B) sum_i |estimate_i - p_i|,    p_i = 1 - (1 - q_i)^(B - 1)

    with q_i the item's share of the events: at least one of the B - 1 other rows of a batch of B events brings it, as
    ``ExactFrequency`` has it (a streaming estimate tells of all B rows: B / (B - 1) times as much for rare items).
    n events of an item tell its q_i to one part in sqrt(n), and the error holds that chance: compare it with that of
    another estimate on the same events. Rare items that came at all came rather too often, so the tail's mean log ratio
    is below 0 where nothing is wrong; sums are not.

    Args:
        frequency: the estimate, such as ``model.frequency``; it is read, not changed.
        item_count_M: [M] events of each item.
        batch_size: B, events of a batch.
        tail_max: as for ``evaluate``.
        head_share: as for ``evaluate``.

    Raises:
        DataError: there is no event.
        ConfigError: ``tail_max`` or ``head_share`` out of range.

    Source: Yi et al., Sampling-bias-corrected neural modeling for large corpus item recommendations (RecSys 2019),
    section 6.1: the total variation of estimates and truth, there with p_i = B q_i for batches of distinct items.
    """
    slices = Slices.of(item_count_M, tail_max=tail_max, head_share=head_share)
    n_events = int(item_count_M.sum())
    if n_events == 0:
        raise DataError("frequencies: found no event to compare with, expected at least one")
    log_p_M = log_of_at_least_one(item_count_M.double() / n_events, batch_size - 1)
    log_found_M = frequency.log_presence(torch.arange(len(item_count_M), device=item_count_M.device)).double()
    p_M, found_M = log_p_M.exp(), log_found_M.exp()
    events = slices.events()
    classes = []
    for number, name in enumerate(SLICES):
        of = slices.slice_M == number
        ratio = (log_found_M - log_p_M)[of & (item_count_M > 0)]
        classes.append(
            FrequencyClass(
                name=name,
                events=events[name],
                n_items=int(of.sum()),
                n_in_batch=float(p_M[of].sum()),
                n_believed=float(found_M[of].sum()),
                mean_log_ratio=float(ratio.mean()),
            )
        )
    return FrequencyReport(
        error=float((found_M - p_M).abs().sum()) / (2 * batch_size),
        batch_size=batch_size,
        n_events=n_events,
        classes=tuple(classes),
    )
