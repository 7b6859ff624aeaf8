"""Whether a run is in good health: numbers that tell of the known ways to fail, and what to do about each."""

from __future__ import annotations

import copy
import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..losses import Loss, RowLoss
from ..records import NEG_INF, Encoded
from ..scoring import Lines, Scores, Similarity, pair_dots

MOST_LINES, MOST_SCORES, MOST_ITEMS = 128, 2**19, 4096
"""Of the sample of a batch that is looked at: a few milliseconds on a CPU."""

GATHERED = 0.9
"""Mean similarity of distinct items from which their vectors are in one place."""
FEW = 2.0
"""Effective negatives below which the other candidates teach nothing."""
ENOUGH_CANDIDATES = 20
"""Candidates of a line from which few effective ones are the model's doing, and not that there are no more."""
ALL_BEATEN = 0.95
"""Share of positives with no margin left above which little is left to learn."""
LASTING = 3
"""Examinations in a row that must find the same before it is said."""
FROM_STEP = 100
"""Before it a model is much as it was made, and nothing is said of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """What one batch says of the model; nan where there is nothing to compare."""

    item_similarity: float
    """Mean cosine of two distinct items of the batch: near 1 when all vectors have gathered in one place."""
    candidates: float
    """Candidates left to a line, mean; shared ones of equal row are one."""
    effective_negatives: float
    """As many equally heavy candidates would be as spread as those of a line, mean."""
    no_margin_left: float
    """Share of positives that beat all of their candidates, by the margin where the loss has one."""


def examine(loss: Loss, encoded: Encoded, notes: dict[str, Tensor], step: int) -> Health:
    """Health of the batch that ``loss`` saw and left ``notes`` of, without a gradient.

        item_similarity       (|sum_i v_i|^2 - sum_i |v_i|^2) / (n (n - 1)) over n distinct items, v_i of unit length
        effective_negatives   mean over lines of exp(- sum_j p_j log p_j),  p_j ~ |dL / ds_j|
        no_margin_left        share of positives whose loss is 0 where it can be (``is_hinge``), else of those that
                              score more than every candidate: s_j < s for all j

    L is the loss of a line's positives and s_j its similarity with candidate j, so that p_j is the share of the pull
    that j gets: w_j e^{s_j} of a softmax. Lines that nothing pulls at do not count. To be beaten is to score less, as
    served, uncorrected. Exclusions are the loss's own. Where it leaves a positive among its own candidates
    (``exclude = "none"``) that is left out here, for it is no negative; positives without a candidate do not count. Of
    a loss made of another that one is looked at, of ``Symmetric`` the way from queries to items; a loss without lines
    of candidates has the similarity only.

    Looked at are ``MOST_ITEMS`` items and ``MOST_LINES`` neighbouring lines, fewer where they would have more than
    ``MOST_SCORES`` scores, from a place drawn by ``step``.
    """
    loss = loss.compared()
    with torch.no_grad():
        item_similarity = mean_similarity(encoded.table_TD[:: -(-len(encoded.table_TD) // MOST_ITEMS)])
        if not isinstance(loss, RowLoss):
            nothing = {"candidates": math.nan, "effective_negatives": math.nan, "no_margin_left": math.nan}
            return Health(item_similarity=item_similarity, **nothing)
        sample = _Sample(loss, encoded, step)
        beaten_p = notes["loss"][notes["alive"]] == 0 if loss.is_hinge else sample.beaten()
        return Health(
            item_similarity=item_similarity,
            candidates=sample.candidates(),
            effective_negatives=sample.effective_negatives(),
            no_margin_left=float(beaten_p.double().mean()),
        )


def mean_similarity(vector_nD: Tensor) -> float:
    """Mean cosine of two different rows, in time n D; nan below two rows. A vector of zeros is like no other."""
    n = len(vector_nD)
    if n < 2:
        return math.nan
    length_n1 = vector_nD.norm(dim=1, keepdim=True)
    unit_nD = torch.where(length_n1 > 0, vector_nD / length_n1, 0.0)
    return float((unit_nD.sum(0).square().sum() - unit_nD.square().sum()) / (n * (n - 1)))


class _Sample:
    """Some lines of a batch with all their candidates, weighed and excluded as the loss does it."""

    def __init__(self, loss: RowLoss, encoded: Encoded, step: int) -> None:
        if loss.exclude == "none":
            loss = copy.copy(loss)
            loss.exclude = "positives"
        lines, prepared = Lines(encoded, loss), loss.prepare(encoded)
        start, stop = _some_lines(len(lines), len(encoded.column_ND) + lines.slot_LK.shape[1], step)
        pairs = slice(lines.pair_start[start], lines.pair_start[stop])

        def tile(of: Similarity) -> Tensor:
            line_CD, slot_CK = of.line_LD[start:stop], lines.slot_LK[start:stop]
            own_CK = (line_CD[:, None] * of.table_TD[slot_CK]).sum(-1)
            return torch.cat([line_CD @ of.column_ND.T, own_CK], 1)

        query_LD = prepared.query_BD.index_select(0, lines.query_L)
        self._loss, self._scores = (
            loss,
            Scores(
                lines,
                start,
                stop,
                tile(Similarity(query_LD, encoded.column_ND, encoded.table_TD)),
                {name: value_P[pairs] for name, value_P in prepared.row.items()},
                {name: tile(similarity) for name, similarity in prepared.beside.items()},
            ),
        )
        of_p, slot_p = encoded.batch.of_P[pairs], encoded.positive_slot_P[pairs]
        self._positive_p = pair_dots(prepared.query_BD, encoded.table_TD, of_p, slot_p)
        negative = self._scores.negative
        self._log_weight = self._scores.masked(self._scores.log_weight.expand_as(negative), NEG_INF)
        self._alive_C = self._scores.alive()

    def candidates(self) -> float:
        """Mean over lines of the candidates left."""
        return float((self._log_weight > NEG_INF).sum(1)[self._alive_C].double().mean())

    def effective_negatives(self) -> float:
        """Mean over lines of exp H(p)."""
        scores = self._scores
        if not bool(self._alive_C.any()):
            return math.nan
        with torch.enable_grad():
            scores.negative = scores.negative.requires_grad_()
            loss_p = self._loss.rows(scores)[scores.to_pairs(self._alive_C)]
            (pull,) = torch.autograd.grad(loss_p.sum(), scores.negative)
        scores.negative = scores.negative.detach()
        pull = pull.double().abs()
        total_C1 = pull.sum(1, keepdim=True)
        share = (pull / total_C1)[total_C1[:, 0] > 0]
        return float(torch.special.entr(share).sum(1).exp().mean())

    def beaten(self) -> Tensor:
        """Whether each positive that has a candidate scores more than all of them."""
        present = torch.where(self._log_weight > NEG_INF, self._scores.negative, NEG_INF)
        best_p = self._scores.to_pairs(F.pad(present, (0, 1), value=NEG_INF).amax(1))
        alive_p = self._scores.to_pairs(self._alive_C)
        return best_p[alive_p] < self._positive_p[alive_p]


def _some_lines(n_lines: int, n_candidates: int, step: int) -> tuple[int, int]:
    """First and last + 1 of the lines to look at."""
    n = min(n_lines, MOST_LINES, max(1, MOST_SCORES // max(n_candidates, 1)))
    start = int(torch.randint(n_lines - n + 1, (), generator=torch.Generator().manual_seed(step)))
    return start, start + n


class Watch:
    """Turns what lasts into warnings, each said once."""

    def __init__(self) -> None:
        self._found: Counter[str] = Counter()
        self._said: set[str] = set()

    def state(self) -> dict[str, Any]:
        """What it remembers, for JSON."""
        return {"found": dict(self._found), "said": sorted(self._said)}

    def restore(self, state: dict[str, Any]) -> None:
        """Remember what ``state`` told."""
        self._found, self._said = Counter(state["found"]), set(state["said"])

    def warnings(self, step: int, health: Health) -> list[str]:
        """What is to be said now, after one more examination."""
        found = complaints(health) if step >= FROM_STEP else {}
        self._found = Counter({name: self._found[name] + 1 for name in found})
        new = [name for name, times in self._found.items() if times >= LASTING and name not in self._said]
        self._said.update(new)
        return [found[name] for name in new]


def complaints(health: Health) -> dict[str, str]:
    """What is wrong, by the name of the number that tells, and what to do."""
    found = {}
    if health.item_similarity > GATHERED:
        found["item_similarity"] = (
            f"item vectors gather in one place (mean similarity {health.item_similarity:.2f}): raise the temperature "
            "where the loss has one to set, add uniform negatives, and keep stop_gradient on where the loss has it"
        )
    if health.effective_negatives < FEW and health.candidates >= ENOUGH_CANDIDATES:
        found["effective_negatives"] = (
            f"of {health.candidates:,.0f} candidates a query learns from about {health.effective_negatives:.1f}: raise "
            "the temperature where the loss has one to set, or check that the hardest negatives are not positives "
            "nobody recorded"
        )
    if health.no_margin_left > ALL_BEATEN:
        found["no_margin_left"] = (
            f"{health.no_margin_left:.0%} of the positives beat all of their candidates, so little is left to learn: "
            "draw more negatives or harder ones, raise the margin where the loss has one, or lower its temperature"
        )
    return found
