"""What a step costs, phase by phase."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

from .subject import PHASES, Step


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Seconds of one batch, each phase the median over the batches; moving the parameters is not among them."""

    batch: float
    """Fetching it from the store."""
    towers: float
    """Query and item vectors, forward."""
    draw: float
    count: float
    """Expected counts of candidates and positives."""
    loss: float
    """Scores, loss, and the gradient of the vectors."""
    backward: float
    """From the vectors to the towers' parameters."""

    @property
    def total(self) -> float:
        """Of all phases."""
        return self.batch + self.towers + self.draw + self.count + self.loss + self.backward

    @property
    def sampler_share(self) -> float:
        """Of drawing and counting."""
        return (self.draw + self.count) / self.total


class CostTally:
    """Keeps the seconds of batches."""

    def __init__(self) -> None:
        self.seconds: list[dict[str, float]] = []

    def add(self, step: Step) -> None:
        """One batch, where it was timed."""
        if step.seconds is not None:
            self.seconds.append(step.seconds)

    def result(self) -> Cost:
        """Medians."""
        return Cost(**{phase: median(seconds[phase] for seconds in self.seconds) for phase in PHASES})
