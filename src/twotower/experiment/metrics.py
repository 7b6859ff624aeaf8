"""What is compared: numbers made of the sums that each unit has of outcome columns."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError

Sums = Mapping[str, NDArray[np.float64]]
"""[U] by column: the sum over the unit's rows."""


@dataclass(frozen=True, slots=True)
class Total:
    """Sum of a column a unit, such as revenue per visitor; 0 for units without a row. Written ``revenue``."""

    column: str

    def parts(self, sums: Sums) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """[U] what is summed above and below."""
        return sums[self.column], np.ones_like(sums[self.column])

    @property
    def columns(self) -> tuple[str, ...]:
        """Those it is made of."""
        return (self.column,)

    def __str__(self) -> str:
        return self.column


@dataclass(frozen=True, slots=True)
class AnyOf:
    """Share of units with more than 0 of a column, such as buyers among visitors. Written ``any(bought)``."""

    column: str

    def parts(self, sums: Sums) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """[U] what is summed above and below."""
        return (sums[self.column] > 0).astype(np.float64), np.ones_like(sums[self.column])

    @property
    def columns(self) -> tuple[str, ...]:
        """Those it is made of."""
        return (self.column,)

    def __str__(self) -> str:
        return f"any({self.column})"


@dataclass(frozen=True, slots=True)
class Ratio:
    """Sum of one column by the sum of another, over all units, such as clicks by impression; the interval minds that
    rows of a unit depend on one another (``statistics.ratio``). Written ``clicked/shown``."""

    above: str
    below: str

    def parts(self, sums: Sums) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """[U] what is summed above and below."""
        return sums[self.above], sums[self.below]

    @property
    def columns(self) -> tuple[str, ...]:
        """Those it is made of."""
        return (self.above, self.below)

    def __str__(self) -> str:
        return f"{self.above}/{self.below}"


Metric = Total | AnyOf | Ratio

_ANY = re.compile(r"any\((.+)\)")


def metric_of(text: str) -> Metric:
    """A metric from its written form: ``revenue``, ``any(bought)`` or ``clicked/shown``.

    Raises ConfigError for anything else.
    """
    above, slash, below = (part.strip() for part in text.partition("/"))
    if slash and above and below and "/" not in below:
        return Ratio(above, below)
    if found := _ANY.fullmatch(text.strip()):
        return AnyOf(found.group(1).strip())
    if text.strip() and not slash:
        return Total(text.strip())
    raise ConfigError(
        f"metric {text!r}: expected a column (its sum a unit), any(column) (share of units with it) or column/column"
    )
