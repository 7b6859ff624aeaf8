"""Naive float64 loops over (positive, candidate): candidates neither merged nor tiled, one Python scalar at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import scipy.special
import torch
from torch import Tensor

from twotower.records import Batch, Block, Candidates, LiveAt, Lives, Ragged


@dataclass(frozen=True)
class Case:
    """One batch with its raw candidates, and the leaves to differentiate by."""

    query_BD: Tensor
    item_MD: Tensor
    batch: Batch
    candidates: Candidates
    log_count_M: Tensor


def make_case(seed: int, *, batch_of: str, shared: bool = True, own: bool = True) -> Case:
    """Queries with one or several positives, repeated shared candidates, own lists with an empty place, ragged known
    items."""
    g = torch.Generator().manual_seed(seed)
    n_items, n_queries, width = 19, 7, 4
    count_B = torch.ones(n_queries, dtype=torch.int64)
    if batch_of == "queries":
        count_B = torch.randint(1, 4, (n_queries,), generator=g)
    of_P = torch.repeat_interleave(torch.arange(n_queries), count_B)
    item_P = torch.cat([torch.randperm(n_items, generator=g)[: int(n)] for n in count_B])
    known = [
        sorted({*item_P[of_P == b].tolist(), *torch.randint(0, n_items, (2,), generator=g).tolist()})
        for b in range(n_queries)
    ]
    batch = Batch(
        query={},
        query_B=torch.arange(n_queries),
        item_P=item_P,
        of_P=of_P,
        weight_P=torch.rand(len(item_P), generator=g, dtype=torch.float64) + 0.2,
        known=Ragged(
            offset=torch.tensor([0, *[len(k) for k in known]]).cumsum(0),
            value=torch.tensor([i for k in known for i in k]),
        ),
    )
    log_count_M = torch.randn(n_items, generator=g, dtype=torch.float64)
    blocks = []
    if shared:
        in_batch = Block.of(item_P.unique(), of_batch=True)
        uniform = Block.of(torch.randint(0, n_items, (11,), generator=g))
        blocks += [in_batch.with_count(log_count_M[in_batch.row]), uniform.with_count(log_count_M[uniform.row])]
    if own:
        row_BK = torch.randint(0, n_items, (n_queries, 3), generator=g)
        log_weight_BK = torch.zeros(n_queries, 3, dtype=torch.float64)
        log_weight_BK[2, 1] = -math.inf
        log_weight_BK[4, 0] = math.log(0.5)
        blocks.append(Block(row=row_BK, log_count=log_count_M[row_BK], log_weight=log_weight_BK))
    return Case(
        query_BD=torch.randn(n_queries, width, generator=g, dtype=torch.float64).requires_grad_(),
        item_MD=torch.randn(n_items, width, generator=g, dtype=torch.float64).requires_grad_(),
        batch=batch,
        candidates=Candidates(blocks=tuple(blocks), positive_log_count_P=log_count_M[item_P]),
        log_count_M=log_count_M,
    )


def with_lives(case: Case, *, days: int) -> Case:
    """The same case in a catalogue that comes and goes: a query asks at one day, or from one to ``days`` later."""
    g = torch.Generator().manual_seed(5)
    since_M = torch.randint(0, 6, (len(case.item_MD),), generator=g)
    until_M = since_M + torch.randint(1, 6, since_M.shape, generator=g)
    first_B = torch.randint(0, 8, case.batch.query_B.shape, generator=g)
    lives = Lives(since_us_M=since_M, until_us_M=until_M)
    live = LiveAt(lives=lives, first_us_n=first_B, last_us_n=first_B + days)
    return replace(case, batch=replace(case.batch, live=live))


def dot(a: Tensor, b: Tensor) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for x, y in zip(a.unbind(), b.unbind(), strict=True):
        total = total + x * y
    return total


def log_sum_exp(xs: list[Tensor]) -> Tensor:
    top = max(x.item() for x in xs)
    return torch.log(sum((torch.exp(x - top) for x in xs), torch.zeros((), dtype=torch.float64))) + top


def softplus(x: Tensor) -> Tensor:
    return torch.log1p(torch.exp(-x.abs())) + x.clamp(min=0)


def candidates_of(case: Case, pair: int, exclude: str, *, with_gone: bool = False) -> list[tuple[int, float]]:
    """(item, weight) of every candidate the pair's query may see, repeats and all."""
    query = int(case.batch.of_P[pair])
    banned: set[int] = set()
    if exclude == "known":
        banned = set(
            case.batch.known.value[case.batch.known.offset[query] : case.batch.known.offset[query + 1]].tolist()
        )
    if exclude == "positives":
        banned = set(case.batch.item_P[case.batch.of_P == query].tolist())
    if case.batch.live is not None and not with_gone:
        banned |= gone_of(case, query)
    found = []
    for block in case.candidates.blocks:
        rows = block.row if block.row.dim() == 1 else block.row[query]
        weights = block.log_weight if block.row.dim() == 1 else block.log_weight[query]
        for item, log_weight in zip(rows.tolist(), weights.tolist(), strict=True):
            if item not in banned and log_weight > -math.inf:
                found.append((item, math.exp(log_weight)))
    return found


def gone_of(case: Case, query: int) -> set[int]:
    """Items that live at no moment of the query's period, but never its own positives."""
    live = case.batch.live
    assert live is not None
    own = set(case.batch.item_P[case.batch.of_P == query].tolist())
    first, last = int(live.first_us_n[query]), int(live.last_us_n[query])
    lives = zip(live.lives.since_us_M.tolist(), live.lives.until_us_M.tolist(), strict=True)
    return {
        item
        for item, (since, until) in enumerate(lives)
        if not any(since <= moment < until for moment in range(first, last + 1))
    } - own


def strength_offset(case: Case, strength: float) -> float:
    """k that keeps the estimated sum of counts: log(sum w) - log(sum w c^(strength - 1)), own lists averaged over
    queries."""
    total = shaped = 0.0
    n_queries = len(case.batch.query_B)
    for block in case.candidates.blocks:
        share = 1.0 if block.row.dim() == 1 else 1.0 / n_queries
        for item, log_weight in zip(block.row.flatten().tolist(), block.log_weight.flatten().tolist(), strict=True):
            weight = share * math.exp(log_weight)
            total += weight
            shaped += weight * math.exp((strength - 1) * case.log_count_M[item].item())
    return math.log(total) - math.log(shaped)


def unit(case: Case) -> Case:
    """The same case with vectors of unit length as the leaves."""
    query_BD, item_MD = (
        (x / x.norm(dim=1, keepdim=True)).detach().requires_grad_()
        for x in (case.query_BD.detach(), case.item_MD.detach())
    )
    return replace(case, query_BD=query_BD, item_MD=item_MD)


@dataclass(frozen=True)
class Pair:
    """One positive and the candidates its query may see."""

    case: Case
    number: int
    exclude: str
    settings: dict[str, Any]
    temperature: Tensor | float
    positive: Tensor
    item: int
    candidates: list[int]
    scores: list[Tensor]
    """Over the temperature."""
    weights: list[float]
    """Corrected."""

    def __getitem__(self, setting: str) -> Any:
        return self.settings[setting]

    @property
    def query(self) -> int:
        return int(self.case.batch.of_P[self.number])

    def weighted(self) -> list[Tensor]:
        """Logs of w e^s."""
        return [s + math.log(w) for s, w in zip(self.scores, self.weights, strict=True)]

    def log_count(self, item: int) -> float:
        return self.case.log_count_M[item].item()


def loss(
    case: Case,
    name: str,
    *,
    temperature: Tensor | float,
    correction: str,
    strength: float,
    exclude: str,
    **settings: Any,
) -> Tensor:
    """Weighted mean over the positives of one of the losses, by name."""
    total = torch.zeros((), dtype=torch.float64)
    for number in range(len(case.batch.item_P)):
        pair = _pair(case, number, temperature, correction, strength, exclude, settings)
        if pair.candidates:
            total = total + case.batch.weight_P[number].double() * FORMULAS[name](pair)
    return total / case.batch.weight_P.double().sum()


def _pair(
    case: Case,
    number: int,
    temperature: Tensor | float,
    correction: str,
    strength: float,
    exclude: str,
    settings: dict[str, Any],
) -> Pair:
    query = case.query_BD[int(case.batch.of_P[number])]
    item = int(case.batch.item_P[number])
    positive = dot(query, case.item_MD[item]) / temperature
    offset = 0.0 if correction == "none" else strength_offset(case, strength)
    found = candidates_of(case, number, exclude)
    scores, weights = [], []
    for candidate, weight in found:
        shift = 0.0 if correction == "none" else strength * case.log_count_M[candidate].item() + offset
        scores.append(dot(query, case.item_MD[candidate]) / temperature)
        weights.append(weight * math.exp(-shift))
    if correction == "all":
        positive = positive - strength * case.log_count_M[item] - offset
    return Pair(case, number, exclude, settings, temperature, positive, item, [c for c, _ in found], scores, weights)


def _softmax(pair: Pair) -> Tensor:
    weighted = pair.weighted()
    if pair.settings.get("renormalise"):
        # counts conditioned on not drawing the positive: c_j / (1 - q), q = c_p over the weight of this query's draws
        all_weight = sum(w for _, w in candidates_of(pair.case, pair.number, "none", with_gone=True))
        share = math.exp(pair.log_count(pair.item)) / all_weight
        weighted = [x + math.log1p(-min(share, 1 - 1e-6)) for x in weighted]
    inside = pair.exclude == "none" and any(b.of_batch for b in pair.case.candidates.blocks)
    return log_sum_exp(weighted if inside else [pair.positive, *weighted]) - pair.positive


def _bilateral(pair: Pair) -> Tensor:
    return pair["exponent"] * log_sum_exp(pair.weighted()) - pair.positive


def _bpr(pair: Pair) -> Tensor:
    return _mean([softplus(s - pair.positive) for s in pair.scores], pair.weights)


def _margin(pair: Pair) -> Tensor:
    return _mean([torch.clamp(pair["margin"] - pair.positive + s, min=0) for s in pair.scores], pair.weights)


def _binary(pair: Pair) -> Tensor:
    noise = _mean([softplus(s) for s in pair.scores], pair.weights)
    return softplus(-pair.positive) + pair["negative_weight"] * noise


def _sgns(pair: Pair) -> Tensor:
    return softplus(-pair.positive) + _sum([softplus(s) for s in pair.scores], pair.weights)


def _nce(pair: Pair) -> Tensor:
    counts = [pair.log_count(candidate) for candidate in pair.candidates]
    noise = _sum([softplus(s - c) for s, c in zip(pair.scores, counts, strict=True)], pair.weights)
    return softplus(pair.log_count(pair.item) - pair.positive) + noise


def _gbce(pair: Pair) -> Tensor:
    k, t = sum(pair.weights), pair["calibration"]
    alpha = min(k / (len(pair.case.item_MD) - 1), 1.0)
    beta = alpha * (t * (1 - 1 / alpha) + 1 / alpha)  # as printed
    return (beta * softplus(-pair.positive) + _sum([softplus(s) for s in pair.scores], pair.weights)) / (k + 1)


def _ccl(pair: Pair) -> Tensor:
    hard = _mean([torch.clamp(s - pair["margin"], min=0) for s in pair.scores], pair.weights)
    return 1 - pair.positive + pair["negative_weight"] * hard


def _squared(pair: Pair) -> Tensor:
    return (pair.positive - 1) ** 2 + pair["negative_weight"] * _mean([s * s for s in pair.scores], pair.weights)


def _warp(pair: Pair) -> Tensor:
    excess = [pair["margin"] + s - pair.positive for s in pair.scores]
    violators = [(x, w) for x, w in zip(excess, pair.weights, strict=True) if x.item() > 0]
    if not violators:
        return torch.zeros((), dtype=torch.float64)
    rank = sum(w for _, w in violators)
    harmonic = float(scipy.special.digamma(rank + 1)) - float(scipy.special.digamma(1))
    return harmonic / rank * _sum([x for x, _ in violators], [w for _, w in violators])


def _adaptau(pair: Pair) -> Tensor:
    own = pair["temperature_Q"][int(pair.case.batch.query_B[pair.query])]
    negatives = [s / own + math.log(w) for s, w in zip(pair.scores, pair.weights, strict=True)]
    return log_sum_exp(negatives) - pair.positive / pair["temperature_0"]


def _adaptive(pair: Pair) -> Tensor:
    """L_q + w L_v of JD's losses, one cosine at a time; ``base`` is the temperature tau_0 or the margin delta_0."""
    item = pair.case.item_MD[pair.item]
    to_item = [dot(item, pair.case.item_MD[candidate]) for candidate in pair.candidates]

    def of_anchor(negative: list[Tensor], cosine: list[Tensor]) -> Tensor:
        if pair["stop_gradient"]:
            cosine = [c.detach() for c in cosine]
        ease, base = [pair["alpha"] * (1 - c) for c in cosine], pair["base"]
        room = [base + e if pair["combine"] == "additive" else base * (1 + e) for e in ease]
        if not pair["per"]:
            hinge = [torch.clamp(r - pair.positive + n, min=0) for n, r in zip(negative, room, strict=True)]
            return _mean(hinge, pair.weights)
        shift, left = (pair.positive, 0.0) if pair["per"] == "pair" else (0.0, pair.positive / base)
        logits = [(n - shift) / r + math.log(w) for n, r, w in zip(negative, room, pair.weights, strict=True)]
        return softplus(log_sum_exp(logits) - left)

    first = of_anchor(pair.scores, to_item if pair["hardness"] == "item" else pair.scores)
    return first + pair["symmetric"] * of_anchor(to_item, pair.scores)


FORMULAS: dict[str, Callable[[Pair], Tensor]] = {
    "softmax": _softmax,
    "bilateral": _bilateral,
    "bpr": _bpr,
    "margin": _margin,
    "binary": _binary,
    "sgns": _sgns,
    "nce": _nce,
    "gbce": _gbce,
    "ccl": _ccl,
    "squared": _squared,
    "warp": _warp,
    "adaptau": _adaptau,
    "adaptive": _adaptive,
}


def _sum(values: list[Tensor], weights: list[float]) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for value, weight in zip(values, weights, strict=True):
        total = total + weight * value
    return total


def _mean(values: list[Tensor], weights: list[float]) -> Tensor:
    return _sum(values, weights) / sum(weights)
