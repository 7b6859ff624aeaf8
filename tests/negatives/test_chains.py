"""Markov chains: their kernels keep the balance, the code walks by them, and their law becomes the target."""

from __future__ import annotations

import copy
import math
from itertools import pairwise

import pytest
import torch
from scipy.stats import chisquare, kstest
from torch import Tensor

from twotower.config import Run
from twotower.data.splits import RandomSplit
from twotower.errors import ConfigError
from twotower.losses import BilateralSoftmax, SampledSoftmax
from twotower.negatives import MCNS, Chain, Gibbs, MetropolisHastings, Mined, Mixture, Popularity, Uniform, propose
from twotower.negatives.neighbours import two_hop_neighbours
from twotower.part import Facts
from twotower.records import Batch, Ragged
from twotower.schema import Id, Interactions, Schema
from twotower.scoring import encode

from .conftest import COUNT, RunLook, batch_of
from .laws import M

SCORE = [0.9, -0.4, 0.2, -1.3, 0.5, 0.0, 1.1, -0.8, 0.3, -0.2, 0.7, -0.6]
"""Of each item for every query: a mild target, its largest probability 11 times its smallest."""

ALPHA, TEMPERATURE = 0.5, 0.5
NEIGHBOURS = 3
ASLEEP = 5
"""An item without neighbours."""


@pytest.fixture
def facts(facts: Facts) -> Facts:
    """Items with an event each at least; queries that have four items around the catalogue, one item alone."""
    count_M = torch.tensor(COUNT) + 40
    lists = [sorted({i % M for i in range(q, q + 4)} - {ASLEEP}) for q in range(M)] + [[ASLEEP]]
    pairs = Ragged(
        offset=torch.tensor([0, *[len(own) for own in lists]]).cumsum(0),
        value=torch.tensor([item for own in lists for item in own]),
    )
    return Facts(
        n_items=M,
        n_queries=M + 1,
        item_count_M=count_M,
        batch_size=16,
        batch_of="pairs",
        query_count_Q=torch.ones(100, dtype=torch.int64),
        pairs=pairs,
        width=2,
    )


@pytest.fixture
def look(look: RunLook) -> RunLook:
    """Scores as given, whatever the query."""
    look.item_MD = torch.tensor([[score, 0.0] for score in SCORE])
    look.query_BD = torch.tensor([[1.0, 0.0]]).repeat(2, 1)
    return look


def chains(n: int = 5, *, steps: int = 1, burn_in: int = 0) -> dict[str, Chain]:
    of = Popularity(max(7, n), per_query=True)
    return {
        "MetropolisHastings": MetropolisHastings(
            n, steps=steps, burn_in=burn_in, alpha=ALPHA, temperature=TEMPERATURE, of=of
        ),
        "Gibbs": Gibbs(n, steps=steps, burn_in=burn_in, alpha=ALPHA, temperature=TEMPERATURE),
        "MCNS": MCNS(
            n, steps=steps, burn_in=burn_in, alpha=ALPHA, temperature=TEMPERATURE, neighbours=NEIGHBOURS, of=of
        ),
    }


NAMES = ["MetropolisHastings", "Gibbs", "MCNS"]


def ready(name: str, facts: Facts, n: int = 5, *, steps: int = 1, burn_in: int = 0) -> Chain:
    chain = chains(n, steps=steps, burn_in=burn_in)[name]
    chain.setup(facts)
    return chain


def target() -> list[float]:
    weight = [math.exp(ALPHA * score / TEMPERATURE) for score in SCORE]
    return [w / sum(weight) for w in weight]


def popularity() -> list[float]:
    weight = [(count + 40) ** 0.75 for count in COUNT]
    return [w / sum(weight) for w in weight]


def naive_kernel(name: str, chain: Chain) -> Tensor:
    """By the published rules, item by item."""
    pi, q = target(), popularity()
    k = torch.zeros(M, M, dtype=torch.float64)
    if isinstance(chain, Gibbs):
        cell = {int(item): (a, b) for a, own in enumerate(chain.grid_RC.tolist()) for b, item in enumerate(own)}
        column, row = (torch.zeros(M, M, dtype=torch.float64) for _ in range(2))
        for kernel, same in ((column, 0), (row, 1)):
            for i in range(M):
                slice_ = [j for j in range(M) if cell[j][same] == cell[i][same]]
                for j in slice_:
                    kernel[i, j] = pi[j] / sum(pi[h] for h in slice_)
        return column @ row @ column
    near = neighbours_of(chain) if isinstance(chain, MCNS) else None
    share = 1.0 if near is None else 0.5
    for i in range(M):
        for j in range(M):
            if j != i:
                k[i, j] += share * q[j] * min(1.0, pi[j] * q[i] / (pi[i] * q[j]))
            if near is not None and j in near[i]:
                assert i in near[j]
                k[i, j] += 0.5 / len(near[i]) * min(1.0, pi[j] * len(near[i]) / (pi[i] * len(near[j])))
        k[i, i] = 1 - k[i].sum()
    return k


def neighbours_of(chain: MCNS) -> list[list[int]]:
    offset, near = chain.offset_M.tolist(), chain.near.tolist()
    return [near[offset[i] : offset[i + 1]] for i in range(M)]


def kernel_of(chain: Chain, look: RunLook) -> Tensor:
    log_target_M = torch.tensor(SCORE, dtype=torch.float64) * (ALPHA / TEMPERATURE)
    return chain.kernel(log_target_M, batch_of([0, 1]), look)


@pytest.mark.parametrize("name", NAMES)
def test_kernels_keep_detailed_balance(name: str, facts: Facts, look: RunLook) -> None:
    chain = ready(name, facts)
    kernel = kernel_of(chain, look)
    pi = torch.tensor(target(), dtype=torch.float64)
    flow = pi[:, None] * kernel
    assert float((flow - flow.T).abs().max()) < 1e-12
    assert float((kernel.sum(1) - 1).abs().max()) < 1e-12
    assert float(kernel.min()) > -1e-12
    # q is float32, so the kernel is that close to the published one
    assert float((kernel - naive_kernel(name, chain)).abs().max()) < 1e-6


def test_each_redraw_keeps_the_balance(facts: Facts) -> None:
    chain = ready("Gibbs", facts)
    assert isinstance(chain, Gibbs)
    pi = torch.tensor(target(), dtype=torch.float64)
    for kernel in chain.redraw_kernels(pi.log()):
        assert float((pi[:, None] * kernel - (pi[:, None] * kernel).T).abs().max()) < 1e-15


@pytest.mark.parametrize("name", NAMES)
def test_the_target_is_approached_step_by_step(name: str, facts: Facts, look: RunLook) -> None:
    """From the item that is the worst to start from."""
    kernel, pi = kernel_of(ready(name, facts), look), torch.tensor(target(), dtype=torch.float64)
    power, distance = torch.eye(M, dtype=torch.float64), []
    for _ in range(60):
        power = power @ kernel
        distance.append(float((power - pi).abs().sum(1).max()) / 2)
    assert all(later <= before + 1e-12 for before, later in pairwise(distance))
    assert distance[-1] < 1e-3


def transitions(chain: Chain, look: RunLook, from_row: int, seed: int) -> Tensor:
    """[M] where one step from an item led, over the chains of two queries."""
    row_Cn = torch.full((2, chain.n), from_row)
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        after = chain.walk(row_Cn, 1, torch.arange(2), batch_of([0, 1]), look, rng)
    return after.flatten().bincount(minlength=M)


def p_of(found: Tensor, expected: Tensor) -> float:
    there = expected > 1e-9
    assert not bool(found[~there].any())
    return float(
        chisquare(found[there].numpy(), (expected[there] / expected[there].sum() * found.sum()).numpy()).pvalue
    )


@pytest.mark.parametrize("name", NAMES)
def test_walks_follow_the_kernel(name: str, facts: Facts, look: RunLook) -> None:
    """Each chain by chances of its own: 40,000 first steps from every item, against the published rule."""
    chain = ready(name, facts, 20_000)
    kernel = naive_kernel(name, chain)
    p_values = [p_of(transitions(chain, look, i, 100 + i), kernel[i]) for i in range(M) if kernel[i, i] < 1 - 1e-9]
    assert len(p_values) == M
    assert kstest(p_values, "uniform").pvalue > 0.01, p_values


@pytest.mark.parametrize("name", NAMES)
def test_draws_follow_the_target(name: str, facts: Facts, look: RunLook) -> None:
    """7000 independent chains after enough steps (by the kernel TV is below 0.0005), 20 seeds; a target that is off by
    5% fails."""
    half = {"MetropolisHastings": 20, "Gibbs": 2, "MCNS": 12}[name]
    chain, batch = ready(name, facts, 5000, steps=half, burn_in=half), batch_of([0, 1])
    pi = torch.tensor(target(), dtype=torch.float64)
    found = []
    for seed in range(20):
        (block,) = chain.draw(batch, look, torch.Generator().manual_seed(seed))
        found.append(block.row.flatten().bincount(minlength=M))
    p_values = [p_of(count, pi) for count in found]
    assert kstest(p_values, "uniform").pvalue > 0.01, p_values
    wrong = torch.where(torch.arange(M) % 2 == 0, pi * 1.05, pi)
    assert p_of(torch.stack(found).sum(0), wrong / wrong.sum()) < 1e-6


@pytest.mark.parametrize("name", NAMES)
def test_counts_are_the_target_up_to_a_factor_a_query(name: str, facts: Facts, look: RunLook) -> None:
    chain = ready(name, facts)
    look.query_BD = torch.tensor([[1.0, 0.0], [3.0, 0.0]])
    log_count = chain.log_count(torch.arange(M), batch_of([0, 1]), look).double()
    assert log_count.shape == (2, M)
    assert log_count[0].softmax(0).tolist() == pytest.approx(target(), rel=1e-5)
    for at, score in enumerate(SCORE):
        assert float(log_count[1, at] - log_count[1, 0]) == pytest.approx(3 * (score - SCORE[0]), abs=1e-5)


def encoded_of(batch: Batch, look: RunLook, chain: Chain, seed: int):
    candidates = propose(chain, batch, look, torch.Generator().manual_seed(seed))
    return candidates, encode(look.query_BD, look.items, batch, candidates)


@pytest.mark.parametrize("name", NAMES)
def test_chains_are_carried_by_query(name: str, facts: Facts, look: RunLook) -> None:
    """Query 7 goes on where it was, though its line is another; a query without a row always starts anew."""
    chain, still = ready(name, facts), torch.full((2, 5), 3)
    batch = batch_of([0, 1])
    batch.query_B.copy_(torch.tensor([7, -1]))
    candidates, encoded = encoded_of(batch, look, chain, 0)
    assert bool((chain.chain_Qn == -1).all())
    chain.observe(candidates.blocks, encoded, look)
    assert chain.chain_Qn[7].tolist() == candidates.blocks[0].row[0].tolist()
    assert chain.chain_Qn[7].dtype == torch.int32
    assert int((chain.chain_Qn >= 0).any(1).sum()) == 1

    starts: list[tuple[list[int], Tensor, int]] = []
    real = chain.walk

    def walk(row_Cn: Tensor, steps: int, query_C: Tensor, *rest: object) -> Tensor:
        starts.append((query_C.tolist(), row_Cn.clone(), steps))
        return real(row_Cn, steps, query_C, *rest)  # type: ignore[arg-type]

    chain.walk = walk  # type: ignore[method-assign]
    chain.burn_in = 4
    batch.query_B.copy_(torch.tensor([-1, 7]))
    chain.draw(batch, look, torch.Generator())
    (new, _, burn_in), (every, row, steps) = starts
    assert (new, burn_in, every, steps) == ([0], 4, [0, 1], 1)
    assert row[1].tolist() == chain.chain_Qn[7].tolist()
    assert still.shape == row.shape


@pytest.mark.parametrize("name", NAMES)
def test_lines_of_one_query_share_its_chains(name: str, facts: Facts, look: RunLook) -> None:
    """Both lines start from them; those of the first line are kept, whatever the device's order of writing."""
    chain, batch = ready(name, facts), batch_of([0, 1])
    batch.query_B.copy_(torch.tensor([9, 9]))
    candidates, encoded = encoded_of(batch, look, chain, 3)
    chain.observe(candidates.blocks, encoded, look)
    assert chain.chain_Qn[9].tolist() == candidates.blocks[0].row[0].tolist()


@pytest.mark.parametrize("name", NAMES)
def test_a_run_resumes(name: str, facts: Facts, look: RunLook) -> None:
    chain, batch = ready(name, facts), batch_of([0, 1])
    candidates, encoded = encoded_of(batch, look, chain, 0)
    chain.observe(candidates.blocks, encoded, look)
    again = ready(name, facts)
    again.load_state_dict(copy.deepcopy(chain.state_dict()))
    assert set(chain.state_dict()) == {"chain_Qn"}
    drawn, redrawn = (c.draw(batch, look, torch.Generator().manual_seed(5))[0].row for c in (chain, again))
    assert torch.equal(drawn, redrawn)
    chain.observe((), encoded, look)  # mined by another sampler, it has no blocks of its own


def test_items_that_are_never_proposed_are_never_visited(facts: Facts, look: RunLook) -> None:
    """Neither by neighbours; chains that tomorrow's data left on such items start anew."""
    count_M = facts.item_count_M.clone()
    count_M[[2, 10]] = 0
    facts = Facts(**{**{name: getattr(facts, name) for name in Facts.__dataclass_fields__}, "item_count_M": count_M})
    for name in ("MetropolisHastings", "MCNS"):
        chain = ready(name, facts, 500, steps=20)
        chain.chain_Qn[0] = 2
        row = chain.draw(batch_of([0, 1]), look, torch.Generator().manual_seed(0))[0].row
        assert not bool(((row == 2) | (row == 10)).any())
        log_count = chain.log_count(torch.tensor([2, 10, 3]), batch_of([0, 1]), look)
        assert log_count[:, :2].isneginf().all()
        assert log_count[:, 2].isfinite().all()
        kernel = kernel_of(chain, look)
        pi = torch.tensor([0.0 if i in (2, 10) else p for i, p in enumerate(target())], dtype=torch.float64)
        assert float((pi[:, None] * kernel - (pi[:, None] * kernel).T).abs().max()) < 1e-12


def test_neighbours_share_queries_both_ways(facts: Facts) -> None:
    """All that shares a query is found where there is room, and the relation is symmetric where there is none."""
    queries = [
        facts.pairs.value[int(a) : int(b)].tolist()
        for a, b in zip(facts.pairs.offset[:-1], facts.pairs.offset[1:], strict=True)
    ]
    shared = {(i, j) for own in queries for i in own for j in own if i != j}
    for most in (100, 2):
        found = two_hop_neighbours(facts.pairs, M, most)
        pairs = set(zip(found.owner().tolist(), found.value.tolist(), strict=True))
        assert len(pairs) == len(found.value)
        assert pairs == {(j, i) for i, j in pairs}
        assert pairs <= shared
        assert len(pairs) <= 2 * most * M
        if most == 100:
            assert pairs == shared
        for i in range(M):
            assert (int(found.lengths()[i]) == 0) == (i == ASLEEP)
    again = two_hop_neighbours(facts.pairs, M, 2)
    assert torch.equal(again.value, found.value)


def test_neighbours_are_those_met_most_often() -> None:
    """Item 0 shares nine queries with item 1, one with item 2: walks meet item 1 nine times as often."""
    lists = [[0, 1]] * 9 + [[0, 2]] + [[2, 3]] * 9
    pairs = Ragged(
        offset=torch.tensor([0, *[2] * len(lists)]).cumsum(0), value=torch.tensor([i for own in lists for i in own])
    )
    found = two_hop_neighbours(pairs, 5, 1)
    edges = set(zip(found.owner().tolist(), found.value.tolist(), strict=True))
    assert edges == {(0, 1), (1, 0), (2, 3), (3, 2)}
    nothing = Ragged(offset=torch.zeros(1, dtype=torch.int64), value=torch.zeros(0, dtype=torch.int64))
    assert two_hop_neighbours(nothing, 5, 1).lengths().tolist() == [0] * 5


@pytest.mark.parametrize("n_items", [1, 2, 3, 7, 12, 17])
def test_every_item_has_a_cell_of_the_grid(n_items: int) -> None:
    chain = Gibbs(1)
    chain.setup(
        Facts(
            n_items=n_items,
            n_queries=0,
            item_count_M=torch.ones(n_items, dtype=torch.int64),
            batch_size=1,
            batch_of="pairs",
        )
    )
    grid = chain.grid_RC.flatten()
    assert sorted(grid[grid >= 0].tolist()) == list(range(n_items))
    assert grid[chain.cell_M].tolist() == list(range(n_items))
    assert bool((chain.grid_RC >= 0).any(1).all())
    assert max(chain.grid_RC.shape) ** 2 < 4 * n_items + 4


def test_relative_counts_correct_a_softmax_without_its_positive() -> None:
    schema = Schema(
        interactions=Interactions(query="user", item="item"),
        query={"id": Id(column="user")},
        item={"id": Id(column="item")},
    )
    run = Run(schema=schema, split=RandomSplit(), negatives=Gibbs(4), loss=BilateralSoftmax(correction="negatives"))
    assert run.negatives.density == "relative"
    with pytest.raises(ConfigError, match="only up to an unknown factor"):
        Run(schema=schema, split=RandomSplit(), negatives=Gibbs(4), loss=SampledSoftmax())
    with pytest.raises(ConfigError, match="has no density"):
        Run(
            schema=schema,
            split=RandomSplit(),
            negatives=Gibbs(4) + Uniform(4),
            loss=BilateralSoftmax(correction="negatives"),
        )


def test_settings_that_make_no_sense_are_refused() -> None:
    for make, message in (
        (lambda: Gibbs(0), "Gibbs: n is 0, expected at least 1"),
        (lambda: Gibbs(1, steps=0), "Gibbs: steps is 0, expected at least 1"),
        (lambda: MetropolisHastings(1, burn_in=-1), "MetropolisHastings: burn_in is -1, expected at least 0"),
        (lambda: MCNS(1, alpha=math.nan), "MCNS: alpha is nan"),
        (lambda: MCNS(1, temperature=0.0), "MCNS: temperature is 0.0, expected a positive"),
        (lambda: MCNS(1, neighbours=0), "MCNS: neighbours is 0, expected at least 1"),
        (lambda: MetropolisHastings(1, of=Uniform(4)), r"of is Uniform\(.*expected a law that proposes"),
        (lambda: MetropolisHastings(1, of=Uniform(4, per_query=True, unique=True)), "to each query on its own, indep"),
        (lambda: MCNS(1, of=Mixture(parts=(Uniform(4, per_query=True),))), "MCNS: of is Mixture"),
        (lambda: MCNS(1, of=Mined(of=Uniform(4, per_query=True))), "MCNS: of is Mined"),
    ):
        with pytest.raises(ConfigError, match=message):
            make()
