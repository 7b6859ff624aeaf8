"""Naive float64 loops over (positive, candidate): candidates neither merged nor tiled, one Python scalar at a time."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from twotower.records import Batch, Block, Candidates, Ragged


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


def candidates_of(case: Case, pair: int, exclude: str) -> list[tuple[int, float]]:
    """(item, weight) of every candidate the pair's query may see, repeats and all."""
    query = int(case.batch.of_P[pair])
    banned: set[int] = set()
    if exclude == "known":
        banned = set(
            case.batch.known.value[case.batch.known.offset[query] : case.batch.known.offset[query + 1]].tolist()
        )
    if exclude == "positives":
        banned = set(case.batch.item_P[case.batch.of_P == query].tolist())
    found = []
    for block in case.candidates.blocks:
        rows = block.row if block.row.dim() == 1 else block.row[query]
        weights = block.log_weight if block.row.dim() == 1 else block.log_weight[query]
        for item, log_weight in zip(rows.tolist(), weights.tolist(), strict=True):
            if item not in banned and log_weight > -math.inf:
                found.append((item, math.exp(log_weight)))
    return found


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


def loss(
    case: Case, name: str, *, temperature: Tensor, correction: str, strength: float, exclude: str, **settings: float
) -> Tensor:
    """Weighted mean over the positives of one of the losses, by name."""
    total = torch.zeros((), dtype=torch.float64)
    for pair in range(len(case.batch.item_P)):
        one = _pair_loss(case, pair, name, temperature, correction, strength, exclude, settings)
        total = total + case.batch.weight_P[pair].double() * one
    return total / case.batch.weight_P.double().sum()


def _pair_loss(
    case: Case,
    pair: int,
    name: str,
    temperature: Tensor,
    correction: str,
    strength: float,
    exclude: str,
    settings: dict[str, float],
) -> Tensor:
    query = case.query_BD[int(case.batch.of_P[pair])]
    item = int(case.batch.item_P[pair])
    positive = dot(query, case.item_MD[item]) / temperature
    offset = 0.0 if correction == "none" else strength_offset(case, strength)
    found = candidates_of(case, pair, exclude)
    if not found:
        return torch.zeros((), dtype=torch.float64)
    scores, weights = [], []
    for candidate, weight in found:
        shift = 0.0 if correction == "none" else strength * case.log_count_M[candidate].item() + offset
        scores.append(dot(query, case.item_MD[candidate]) / temperature)
        weights.append(weight * math.exp(-shift))
    if correction == "all":
        positive = positive - strength * case.log_count_M[item] - offset
    weighted = [s + math.log(w) for s, w in zip(scores, weights, strict=True)]
    if name == "softmax":
        if settings.get("renormalise"):
            # counts conditioned on not drawing the positive: c_j / (1 - q), q = c_p over the weight of this query's
            # draws
            all_weight = sum(w for _, w in candidates_of(case, pair, "none"))
            share = math.exp(case.log_count_M[item].item()) / all_weight
            weighted = [x + math.log1p(-min(share, 1 - 1e-6)) for x in weighted]
        inside = exclude == "none" and any(b.of_batch for b in case.candidates.blocks)
        return log_sum_exp(weighted if inside else [positive, *weighted]) - positive
    if name == "bilateral":
        return settings["exponent"] * log_sum_exp(weighted) - positive
    if name == "bpr":
        return _mean([softplus(s - positive) for s in scores], weights)
    if name == "margin":
        return _mean([torch.clamp(settings["margin"] - positive + s, min=0) for s in scores], weights)
    if name == "binary":
        return softplus(-positive) + settings["negative_weight"] * _mean([softplus(s) for s in scores], weights)
    raise KeyError(name)


def _mean(values: list[Tensor], weights: list[float]) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for value, weight in zip(values, weights, strict=True):
        total = total + weight * value
    return total / sum(weights)
