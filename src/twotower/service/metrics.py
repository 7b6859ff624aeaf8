"""What happened, counted by all workers in one piece of shared memory and told in Prometheus' text format.

Every worker adds to a slot of its own, so nothing is locked and nothing is lost when one of them is started anew; who
is asked adds the slots up. That is why the series are fixed when the service starts.
"""

from __future__ import annotations

import mmap
from bisect import bisect_left
from collections.abc import Mapping, Sequence

ROUTES = ("recommend", "recommend_batch", "similar", "compare", "embed", "items", "items_delete", "reload", "other")
STATUSES = ("2xx", "3xx", "4xx", "5xx")
STAGES = ("encode", "tower", "search", "json")
"""Of an answer: raw values to rows, rows to a vector, vector to items, items to bytes."""
COUNTS = ("found", "filtered", "returned")
"""Items: that the index found, that were left by the filters, that were returned."""
EVENTS = (
    "swaps",
    "swaps_refused",
    "items_upserted",
    "items_deleted",
    "items_not_carried_over",
    "exposures_dropped",
    "worker_starts",
)
BUCKETS_S = (25e-6, 50e-6, 100e-6, 250e-6, 500e-6, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, 0.1, 0.25, 0.5, 1.0, 2.5)
"""Upper bounds of the latency histograms, seconds."""

_PER_HISTOGRAM = len(BUCKETS_S) + 2
"""A count for each bucket and for what is above, and the sum."""


class Metrics:
    """Counters of a service; made before its workers are, each of which then takes a slot (``use``)."""

    def __init__(self, n_workers: int = 1) -> None:
        places: list[tuple[str, ...]] = [("route", route, status) for route in ROUTES for status in STATUSES]
        places += [("count", name) for name in COUNTS] + [("event", name) for name in EVENTS]
        self._place = {key: at for at, key in enumerate(places)}
        self._histogram: dict[tuple[str, str], int] = {}
        at = len(places)
        for kind, names in (("route", ROUTES), ("stage", STAGES)):
            for name in names:
                self._histogram[kind, name] = at
                at += _PER_HISTOGRAM
        self._size, self.n_workers = at, n_workers
        self._all = memoryview(mmap.mmap(-1, 8 * at * n_workers)).cast("d")
        self.use(0)

    def use(self, worker: int) -> None:
        """Count in this worker's slot from now on."""
        self._own = self._all[worker * self._size : (worker + 1) * self._size]

    def add(self, name: str, n: float = 1) -> None:
        """Count one of ``EVENTS``."""
        self._own[self._place["event", name]] += n

    def add_counts(self, found: int, filtered: int, returned: int) -> None:
        """Count the items of an answer."""
        first = self._place["count", COUNTS[0]]
        own = self._own
        own[first] += found
        own[first + 1] += filtered
        own[first + 2] += returned

    def add_request(self, route: str, status: int, seconds: float) -> None:
        """Count a request that was answered."""
        self._own[self._place["route", route, f"{status // 100}xx" if status >= 200 else "2xx"]] += 1
        self._observe(self._histogram["route", route], seconds)

    def add_stages(self, *seconds: float) -> None:
        """Count how long each of ``STAGES`` took."""
        at = self._histogram["stage", STAGES[0]]
        for one in seconds:
            self._observe(at, one)
            at += _PER_HISTOGRAM

    def _observe(self, at: int, seconds: float) -> None:
        self._own[at + bisect_left(BUCKETS_S, seconds)] += 1
        self._own[at + _PER_HISTOGRAM - 1] += seconds

    def total(self, *key: str) -> float:
        """Of all workers: of ``("event", name)``, ``("count", name)`` or ``("route", route, status)``."""
        return self._sum(self._place[key])

    def _sum(self, at: int) -> float:
        return sum(self._all[worker * self._size + at] for worker in range(self.n_workers))

    def render(self, gauges: Mapping[str, float], information: Mapping[str, Sequence[Mapping[str, str]]]) -> str:
        """Prometheus' text exposition format, version 0.0.4. ``gauges`` are told as they are, ``information`` as
        gauges of 1 that carry labels.

        Source: https://prometheus.io/docs/instrumenting/exposition_formats/
        """
        lines = ["# TYPE twotower_requests_total counter"]
        for route in ROUTES:
            for status in STATUSES:
                value = self.total("route", route, status)
                lines.append(f'twotower_requests_total{{route="{route}",status="{status}"}} {value:.0f}')
        lines.append("# TYPE twotower_items_total counter")
        lines += [f'twotower_items_total{{stage="{name}"}} {self.total("count", name):.0f}' for name in COUNTS]
        for name in EVENTS:
            lines += [f"# TYPE twotower_{name}_total counter", f"twotower_{name}_total {self.total('event', name):.0f}"]
        for kind, metric in (("route", "request_seconds"), ("stage", "stage_seconds")):
            lines.append(f"# TYPE twotower_{metric} histogram")
            for (of, name), at in self._histogram.items():
                if of == kind:
                    lines += self._histogram_lines(f"twotower_{metric}", f'{kind}="{name}"', at)
        for name, value in gauges.items():
            lines += [f"# TYPE twotower_{name} gauge", f"twotower_{name} {value:g}"]
        for name, each in information.items():
            lines.append(f"# TYPE twotower_{name} gauge")
            for labels in each:
                inside = ",".join(f'{label}="{_escaped(value)}"' for label, value in labels.items())
                lines.append(f"twotower_{name}{{{inside}}} 1")
        return "\n".join(lines) + "\n"

    def _histogram_lines(self, metric: str, label: str, at: int) -> list[str]:
        below, lines = 0.0, []
        for place, bound in enumerate([*map(repr, BUCKETS_S), "+Inf"]):
            below += self._sum(at + place)
            lines.append(f'{metric}_bucket{{{label},le="{bound}"}} {below:.0f}')
        lines.append(f"{metric}_sum{{{label}}} {self._sum(at + _PER_HISTOGRAM - 1):.9g}")
        lines.append(f"{metric}_count{{{label}}} {below:.0f}")
        return lines


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
