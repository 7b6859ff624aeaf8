"""A picture of an index report: recall against latency, recall by popularity, memory and time to build."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ArtifactError

if TYPE_CHECKING:
    from .report import IndexReport


def plot(report: IndexReport, path: Path) -> bool:
    """Write the picture; False where matplotlib is not installed.

    Raises ArtifactError where it can't be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(13, 4.5), layout="constrained")
    speed, deciles, cost = figure.subplots(1, 3)
    figure.suptitle(f"{report.n_items:,} items of {report.width} numbers, k = {report.k}")
    for at, line in enumerate(report.lines):
        colour = f"C{at}"
        points = sorted((point.p50_ms, point.recall) for point in line.curve)
        if points:
            speed.plot([x for x, _ in points], [y for _, y in points], "-", color=colour, alpha=0.5)
        speed.plot(line.latency.p50_ms, line.recall, "o", color=colour, label=line.kind)
        found = [(place + 1, recall) for place, recall in enumerate(line.recall_by_decile) if recall is not None]
        deciles.plot([x for x, _ in found], [y for _, y in found], "o-", color=colour, label=line.kind)
        cost.plot(line.memory_bytes / 2**20, max(line.build_s, 1e-3), "o", color=colour, label=line.kind)
    speed.axhline(report.target_recall, color="gray", linewidth=1, linestyle="--")
    speed.set(xlabel="p50 ms of one query, one thread", ylabel=f"recall@{report.k} against exact", xscale="log")
    deciles.set(xlabel="popularity decile, most popular first", ylabel="share of the right items found")
    cost.set(xlabel="MiB", ylabel="s to build", xscale="log", yscale="log")
    speed.legend()
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path}: the picture can't be written there ({error}): choose a .png elsewhere") from error
    return True
