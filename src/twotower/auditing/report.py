"""The result of an audit, as text, JSON and a picture."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table

from ..settings import without_nan
from .cost import Cost
from .gradient import Gradient
from .law import Compared, Law
from .offers import Offers
from .subject import PHASES

WIDTH = 80
"""Characters of a line, at most: what every terminal has."""
MOST_OF_ID = 24
"""Characters of an item's id that are shown."""


@dataclass(frozen=True, kw_only=True)
class Audit:
    """What ``audit`` found."""

    sampler: str
    loss: str
    correction: str | None
    """None where the loss has no such setting."""
    towers: str
    """Where they come from."""
    n_items: int
    n_batched: int
    """Pairs, or queries, of an epoch."""
    batch_of: str
    batch_size: int
    seed: int
    notes: tuple[str, ...]
    law: Law
    offers: Offers
    gradient: Gradient
    cost: Cost
    verdict: tuple[str, ...]
    seconds: float

    def render(self) -> str:
        """Plain text, lines of at most ``WIDTH`` characters."""
        parts: list[RenderableType] = [*self._head(), ""]
        parts += [
            *self._offered(),
            "",
            *self._law(),
            "",
            *self._offers(),
            "",
            *self._gradient(),
            "",
            *self._cost(),
            "",
            "Verdict",
        ]
        parts.append(_listed(self.verdict))
        console = Console(file=io.StringIO(), width=WIDTH, markup=False, emoji=False, highlight=False)
        with console.capture() as shown:
            for part in parts:
                console.print(part)
        return "\n".join(line.rstrip() for line in shown.get().splitlines())

    def to_json(self) -> str:
        """Everything; null for what there is not."""
        tree = asdict(self)
        tree["law"]["p"] = self.law.p
        tree["cost"] |= {"total": self.cost.total, "sampler_share": self.cost.sampler_share}
        return json.dumps(without_nan(tree), indent=2, ensure_ascii=False, allow_nan=False)

    def plot(self, path: str | Path) -> bool:
        """Write a picture; False where matplotlib is not installed."""
        from .plot import plot

        return plot(self, Path(path))

    def _head(self) -> list[RenderableType]:
        table = _table(("", False), ("", False))
        table.show_header = False
        table.add_row("sampler", f"{self.sampler}   (density {self.law.density})")
        table.add_row("loss", self.loss)
        table.add_row("towers", self.towers)
        table.add_row("data", f"{self.n_items:,} items; {self.n_batched:,} training {self.batch_of}")
        table.add_row("batches", f"{self.law.n_batches:,} of {self.batch_size:,} {self.batch_of}, seed {self.seed}")
        for note in self.notes:
            table.add_row("note", note)
        return [table]

    def _offered(self) -> list[RenderableType]:
        heads = ("decile", "items", "events of each", "of candidates", "x uniform", "x events")
        table = _table(*((head, True) for head in heads))
        for d in self.law.deciles:
            events = f"{d.least_events:,}" + f"-{d.most_events:,}" * (d.most_events > d.least_events)
            by_events = d.share_of_candidates / d.share_of_events if d.share_of_events else math.nan
            by_items = d.share_of_candidates / d.share_of_items
            shares = (f"{d.share_of_candidates:.1%}", _number(by_items), _number(by_events))
            table.add_row(str(d.number), f"{d.items:,}", events, *shares)
        return [
            "1. Who is offered, by decile of popularity (1: the most training events)",
            table,
            "   x uniform, x events: times its share of the items, of the training events",
        ]

    def _law(self) -> list[RenderableType]:
        if self.law.density == "none":
            return [f"2. Items offered most (of {self.law.found:,.5g} candidates of a query)", self._worst(False)]
        law = self.law
        lines: list[RenderableType] = [
            f"2. Counts against draws, a query ({law.claimed:,.5g} claimed, {law.found:,.5g} found)"
        ]
        if law.n_items < law.of_items:
            lines.append(f"   counts are each query's own: {law.n_items:,} of the items were looked at")
        table = _table(*((head, True) for head in ("decile", "claimed", "found", "found / claimed (95%)", "z")))
        for d in law.deciles:
            table.add_row(
                str(d.number), _number(d.count.claimed), _number(d.count.found), _ratio(d.count), _z(d.count.z)
            )
        lines += [
            table,
            "   claimed: the expected count that a correction takes; z: standard errors off",
            f"   p = {law.p:.2g} of anything as far off by chance (deciles {law.p_deciles:.2g}, items "
            f"{law.p_items:.2g})",
        ]
        if law.density == "approximate":
            lines.append("   counts of this sampler are estimates, which need not agree that well")
        return [*lines, "", "   items furthest from their claim", self._worst(True)]

    def _worst(self, known: bool) -> Table:
        heads = ["events", "claimed", "found", "found / claimed (95%)", "z"] if known else ["events", "found"]
        table = _table(("item", False), *((head, True) for head in heads))
        for one in self.law.worst:
            counts = [_number(one.count.claimed), _number(one.count.found), _ratio(one.count), _z(one.count.z)]
            table.add_row(_short(one.id), f"{one.events:,}", *(counts if known else [_number(one.count.found)]))
        return table

    def _offers(self) -> list[RenderableType]:
        o = self.offers
        table = _table(("", False), ("", True))
        table.show_header = False
        table.add_row("places", f"{o.places:,.1f}")
        table.add_row("different items among them", f"{o.distinct:,.1f}")
        table.add_row("different items that a batch encodes", f"{o.item_rows:,.0f}")
        table.add_row("shared places that repeat an item (merged)", f"{o.merged:.1%}")
        table.add_row("own places that repeat an item", f"{o.repeated:.1%}")
        table.add_row("excluded by the loss: known, accidental hits, not live", f"{o.excluded:.1%}")
        table.add_row("positives without a candidate left", f"{o.without_candidate:.2%}")
        return ["3. Candidates of a query, mean", table]

    def _gradient(self) -> list[RenderableType]:
        g = self.gradient
        table = _table(*((head, True) for head in ("candidates", "x n", "bias (95%)", "floor", "noise", "cosine")))
        for e in g.estimates:
            interval = f"{_share(e.bias)} ({_share(e.bias_low)}-{_share(e.bias_high)})"
            cells = (f"{e.places:,.0f}", f"{e.scale:g}", interval, _share(e.noise_floor), _share(e.noise))
            table.add_row(*cells, f"{e.cosine:.3f}")
        return [
            f"4. Gradient of {g.n_queries} query vectors, in lengths of the full softmax's ({g.n_draws} draws)",
            _indented(g.loss),
            table,
            _indented(
                "bias: of the mean of all possible draws; noise: of one draw about that mean; floor: what noise leaves "
                "in the mean of these draws (bias is free of it)"
            ),
            *(_indented(note) for note in g.notes),
        ]

    def _cost(self) -> list[RenderableType]:
        c = self.cost
        table = _table(*((head, True) for head in (*PHASES, "all")))
        table.add_row(*(f"{1000 * getattr(c, phase):,.2f}" for phase in PHASES), f"{1000 * c.total:,.2f}")
        return [
            "5. Milliseconds of a batch, the move of parameters left out",
            table,
            f"   draw and count, the sampler's share: {c.sampler_share:.1%}",
        ]


def _table(*heads: tuple[str, bool]) -> Table:
    table = Table(box=None, pad_edge=True, padding=(0, 1))
    for head, right in heads:
        table.add_column(head, justify="right" if right else "left", overflow="fold")
    return table


def _indented(text: str) -> Padding:
    return Padding(text, (0, 0, 0, 3), expand=False)


def _listed(lines: Sequence[str]) -> Table:
    table = _table(("", False), ("", False))
    table.show_header, table.padding = False, (0, 1, 0, 0)
    for line in lines:
        table.add_row("-", line)
    return table


def _number(value: float) -> str:
    """Four figures, without an exponent where that is short."""
    if math.isnan(value):
        return "-"
    if value == 0 or 1e-5 <= abs(value) < 1e6:
        return f"{value:,.{max(0, 3 - math.floor(math.log10(abs(value) or 1)))}f}"
    return f"{value:.3g}"


def _share(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"


def _short(name: str) -> str:
    return name if len(name) <= MOST_OF_ID else name[: MOST_OF_ID - 3] + "..."


def _ratio(count: Compared) -> str:
    if not count.claimed > 0:
        return "-"
    return f"{count.ratio:.3f} ({count.low:.3f}-{count.high:.3f})"


def _z(value: float) -> str:
    return f"{value:.1f}"
