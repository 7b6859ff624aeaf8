"""Who gets which arm."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import accumulate

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ..data.vocabulary import hash64, hash64_of, text_form, text_of
from ..errors import ConfigError

_POINTS = 2.0**53
"""Points of [0, 1) that a hash falls on: all that a float can tell apart."""
_DROPPED_BITS = 11
_TOLERANCE = 1e-9
"""By which shares may miss one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """The arm of each unit (a user, or a request) of an experiment, from a hash of its id: the same in every process,
    on every machine and for good, with nothing stored.

        u = hash64(text of the id, seed of (name, salt)) / 2^64
        arm k where  s_1 + .. + s_k-1  <=  u  <  s_1 + .. + s_k

    with the shares s in the order of ``arms``. A change of shares moves the borders of these intervals and nobody else:
    of two arms only those move who must, of more also those between two borders that shift alike (.4 .3 .3 to .3 .3 .4
    moves .1 from the first to the second and .1 from the second to the third). Another order of the arms is another
    assignment.

    ``enrolled`` is the share of units that take part, by a hash of its own: to let an experiment grow, raise it and
    leave the shares alone, and nobody who takes part changes the arm. Experiments with other names or salts are
    independent. ``salt`` draws anew: a second run with the same users should not inherit what the first did to them.

    An id is its text form, as in vocabularies: 7, 7.0 and "7" are one user. A unit without an id (None, nan, "") has no
    arm: it is served as everybody outside the experiment, and not logged as exposed. Where such visitors should take
    part, assign by the id of the request instead, and analyse by request: one visitor then sees several arms.

    Source: hashing into intervals, Kohavi, Tang and Xu 2020, "Trustworthy Online Controlled Experiments", chapters 4
    and 15 (ramping).

    Raises ConfigError for an empty name, no arms, or shares that are no shares.
    """

    name: str
    arms: Mapping[str, float]
    """Share by arm; they sum to one."""
    salt: str = ""
    enrolled: float = 1.0
    _seed: int = field(init=False, repr=False, compare=False)
    _enrol_seed: int = field(init=False, repr=False, compare=False)
    _names: tuple[str, ...] = field(init=False, repr=False, compare=False)
    _ends: tuple[float, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        where = f"experiment {self.name!r}"
        if not self.name or not self.arms or "" in self.arms:
            raise ConfigError(f"{where}: found arms {list(self.arms)}, expected a name and arms, each with a name")
        shares = list(self.arms.values())
        if not all(0 <= share <= 1 for share in shares) or abs(math.fsum(shares) - 1) > _TOLERANCE:
            raise ConfigError(
                f"{where}: found shares {dict(self.arms)}, expected shares from 0 to 1 that sum to 1; a part of the "
                "traffic outside the experiment is enrolled below 1"
            )
        if not 0 <= self.enrolled <= 1:
            raise ConfigError(f"{where}: found enrolled {self.enrolled}, expected a share from 0 to 1")
        of = hash64_of(self.name) ^ hash64_of(self.salt, seed=1)
        ends = [*list(accumulate(shares))[:-1], 1.0]
        values = {
            "_seed": of,
            "_enrol_seed": hash64_of("enrolled", of),
            "_names": tuple(self.arms),
            "_ends": tuple(ends),
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def arm_of(self, unit_id: object) -> str | None:
        """The arm of a unit; None where it has no id or does not take part. Some 10 us."""
        text = unit_id if unit_id is None or isinstance(unit_id, str) else text_of(unit_id, "unit id")
        if not text or (self.enrolled < 1 and _point(hash64_of(text, self._enrol_seed)) >= self.enrolled):
            return None
        return self._names[bisect_right(self._ends, _point(hash64_of(text, self._seed)))]

    def arms_of(self, unit_ids: pa.Array | pa.ChunkedArray) -> NDArray[np.int64]:
        """[n] number of each unit's arm, in the order of ``arms``; -1 where ``arm_of`` has None."""
        text = text_form(unit_ids, "unit id")
        arm = np.searchsorted(self._ends, _points(hash64(text, self._seed)), side="right")
        missing = np.asarray(pa.compute.equal(text, "").fill_null(True).to_numpy(zero_copy_only=False), bool)
        out = missing | (_points(hash64(text, self._enrol_seed)) >= self.enrolled)
        return np.where(out, -1, arm)


def _point(hashed: int) -> float:
    return (hashed >> _DROPPED_BITS) / _POINTS


def _points(hashed: NDArray[np.uint64]) -> NDArray[np.float64]:
    return (hashed >> np.uint64(_DROPPED_BITS)) / _POINTS
