"""A picture of an audit: who is offered how often, whether counts agree, and what the gradient makes of it."""

from __future__ import annotations

import math
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ArtifactError
from .report import Audit
from .subject import PHASES

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot(audit: Audit, path: Path) -> bool:
    """Write the picture; False where matplotlib is not installed.

    Raises ArtifactError where it can't be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(11, 7.5), layout="constrained")
    ((shares, ratios), (gradient, cost)) = figure.subplots(2, 2)
    figure.suptitle(textwrap.shorten(audit.sampler, 110, placeholder=" ..."))
    _shares(shares, audit)
    _ratios(ratios, audit)
    _gradient(gradient, audit)
    cost.barh(PHASES[::-1], [1000 * getattr(audit.cost, phase) for phase in PHASES[::-1]])
    cost.set(xlabel="ms a batch", title=f"cost: {audit.cost.sampler_share:.0%} of it draws and counts")
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path}: the picture can't be written there ({error}): choose a .png elsewhere") from error
    return True


def _shares(axes: Axes, audit: Audit) -> None:
    deciles = audit.law.deciles
    at = range(len(deciles))
    series = {
        "items": [d.share_of_items for d in deciles],
        "training events": [d.share_of_events for d in deciles],
        "candidates": [d.share_of_candidates for d in deciles],
    }
    for place, (name, values) in enumerate(series.items()):
        axes.bar([x + 0.27 * (place - 1) for x in at], values, 0.27, label=name)
    axes.set_xticks(list(at), [str(d.number) for d in deciles])
    axes.set(xlabel="decile, most popular first", title="who is offered: shares of each decile")
    axes.legend()


def _ratios(axes: Axes, audit: Audit) -> None:
    told = [d for d in audit.law.deciles if d.count.claimed > 0 and math.isfinite(d.count.high)]
    if not told:
        axes.text(0.5, 0.5, "nothing is claimed", ha="center", va="center", color="gray", transform=axes.transAxes)
        axes.set(xticks=[], yticks=[])
    else:
        axes.axhline(1.0, color="gray", linewidth=1)
        ratio = [d.count.ratio for d in told]
        reach = [[r - d.count.low for r, d in zip(ratio, told, strict=True)]]
        reach.append([d.count.high - r for r, d in zip(ratio, told, strict=True)])
        axes.errorbar(range(len(told)), ratio, yerr=reach, fmt="o", capsize=4)
        axes.set_xticks(range(len(told)), [str(d.number) for d in told])
    title = f"found / claimed, 95% (density {audit.law.density})"
    axes.set(xlabel="decile, most popular first", title=title)


def _gradient(axes: Axes, audit: Audit) -> None:
    found = audit.gradient.estimates
    at = range(len(found))
    reach = [[e.bias - e.bias_low for e in found], [e.bias_high - e.bias for e in found]]
    if all(math.isfinite(x) for side in reach for x in side):
        axes.errorbar(at, [e.bias for e in found], yerr=reach, fmt="o-", capsize=4, label="bias of the mean")
    axes.plot(at, [e.noise for e in found], "s--", label="noise of one batch")
    axes.set_xticks(list(at), [f"{e.places:,.0f}" for e in found])
    axes.set(xlabel="candidates of a query", title="gradient, in lengths of the full softmax's")
    axes.set_ylim(bottom=0)
    axes.legend()
