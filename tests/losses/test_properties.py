"""The property that defines each loss: what its optimum is, what it equals in a limit, what it must not do."""

from __future__ import annotations

import heapq
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from twotower.errors import ConfigError, DataError
from twotower.losses import (
    GBCE,
    NCE,
    SGNS,
    AdapTau,
    AdvInfoNCE,
    BinaryCrossEntropy,
    BucketedSoftmax,
    HierarchicalSoftmax,
    Perturbed,
    RowLoss,
    SampledSoftmax,
    SquaredGramian,
    Symmetric,
    Warp,
)
from twotower.losses.adap_tau import lambert
from twotower.losses.buckets import part_of
from twotower.losses.hierarchical import huffman
from twotower.part import Facts
from twotower.records import Batch, Block, Candidates, Encoded, Ragged
from twotower.scoring import encode

from . import oracle
from .oracle import make_case

M, K = 7, 3.0


def law(seed: int) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(M, generator=rng, dtype=torch.float64).softmax(0)


P, Q = law(1), law(2)
"""Of the data given the query, and of the noise."""


def no_lists(n: int) -> Ragged:
    return Ragged(offset=torch.zeros(n + 1, dtype=torch.int64), value=torch.empty(0, dtype=torch.int64))


def slope(loss: RowLoss, score_M: Tensor, batch: Batch, block: Block, log_count_M: Tensor) -> Tensor:
    """[M] gradient of the loss by the scores: every query is ``score_M``, items are the axes."""
    score_1M = score_M[None].detach().requires_grad_()
    candidates = Candidates(blocks=(block,), positive_log_count_P=log_count_M[batch.item_P])
    axes = torch.eye(M, dtype=torch.float64)
    encoded = encode(score_1M.expand(len(batch.query_B), -1), lambda row: axes[row], batch, candidates)
    value, _ = loss(encoded, tile=2)
    (found,) = torch.autograd.grad(value, score_1M)
    return found[0]


def all_of_one_query(weight_P: Tensor) -> Batch:
    return Batch(
        query={},
        query_B=torch.zeros(1, dtype=torch.int64),
        item_P=torch.arange(M),
        of_P=torch.zeros(M, dtype=torch.int64),
        weight_P=weight_P,
        known=no_lists(1),
    )


def expected_noise() -> Block:
    """K draws of the noise, as many as are expected of each item."""
    log_count_M = (K * Q).log()
    return Block(row=torch.arange(M), log_count=log_count_M, log_weight=log_count_M)


@pytest.mark.parametrize(
    ("loss", "optimum"),
    [
        (NCE(exclude="none"), P.log()),
        (SGNS(exclude="none"), P.log() - Q.log() - math.log(K)),
    ],
    ids=["NCE: log p", "SGNS: PMI - log K"],
)
def test_the_optimum_over_all_draws(loss: RowLoss, optimum: Tensor) -> None:
    batch = all_of_one_query(P)
    at = slope(loss, optimum, batch, expected_noise(), (K * Q).log())
    assert at.abs().max() < 1e-12
    assert slope(loss, optimum + 0.01, batch, expected_noise(), (K * Q).log()).abs().max() > 1e-4


def one_negative_each() -> tuple[Batch, Block]:
    """Every pair (positive, one negative) with its probability p_y q_j."""
    item_P, negative_P = (x.flatten() for x in torch.meshgrid(torch.arange(M), torch.arange(M), indexing="ij"))
    n = len(item_P)
    batch = Batch(
        query={},
        query_B=torch.arange(n),
        item_P=item_P,
        of_P=torch.arange(n),
        weight_P=P[item_P] * Q[negative_P],
        known=Ragged(offset=torch.arange(n + 1), value=item_P),
    )
    return batch, Block.of(negative_P[:, None]).with_count(Q.log()[negative_P][:, None])


def test_softmax_with_all_corrected_is_exact_even_with_one_negative() -> None:
    """Its optimum is log p for any number of negatives; that of correction ``negatives`` needs many."""
    batch, block = one_negative_each()
    exact = slope(SampledSoftmax(temperature=1.0, correction="all"), P.log(), batch, block, Q.log())
    assert exact.abs().max() < 1e-12
    negatives = slope(SampledSoftmax(temperature=1.0), P.log(), batch, block, Q.log())
    assert negatives.abs().max() > 1e-3


def test_refined_2025_has_the_gradient_of_the_printed_loss() -> None:
    """-sg(1 - P) (s_p - log sum_n e^{s_n - log Q'_n}), Q' = q / (1 - q_p), P with 1 / n of that sum."""
    rng = torch.Generator().manual_seed(4)
    score_M = torch.randn(M, generator=rng, dtype=torch.float64)
    drawn = torch.tensor([1, 4, 2, 4])
    n, positive = len(drawn), 0
    batch = replace(all_of_one_query(P), item_P=torch.tensor([positive]), of_P=torch.zeros(1, dtype=torch.int64))
    batch = replace(batch, weight_P=torch.ones(1, dtype=torch.float64))
    block = Block.of(drawn).with_count((n * Q)[drawn].log())
    found = slope(SampledSoftmax.refined2025(temperature=1.0), score_M, batch, block, (n * Q).log())
    score = score_M.clone().requires_grad_()
    log_sum = torch.logsumexp(score[drawn] - (Q[drawn] / (1 - Q[positive])).log(), 0)
    share = (score[positive].exp() / (score[positive].exp() + log_sum.exp() / n)).detach()
    printed = -(1 - share) * (score[positive] - log_sum)
    (want,) = torch.autograd.grad(printed, score)
    assert (found - want).abs().max() < 1e-12


# ---------------------------------------------------------------- gBCE


def each_alone(weight_P: Tensor) -> tuple[Batch, Block]:
    """M pairs of one query, K draws without a law of their own from the other M - 1 items."""
    batch = Batch(
        query={},
        query_B=torch.arange(M),
        item_P=torch.arange(M),
        of_P=torch.arange(M),
        weight_P=weight_P,
        known=Ragged(offset=torch.arange(M + 1), value=torch.arange(M)),
    )
    count = torch.full((M,), math.log(K / (M - 1)), dtype=torch.float64)
    return batch, Block(row=torch.arange(M), log_count=count, log_weight=count)


def facts(n_items: int = M, n_queries: int = M, **more: object) -> Facts:
    return Facts(
        n_items=n_items,
        n_queries=n_queries,
        item_count_M=torch.arange(1, n_items + 1),
        batch_size=n_queries,
        batch_of="queries",
        query_count_Q=torch.ones(n_queries, dtype=torch.int64),
        **more,  # type: ignore[arg-type]
    )


def test_gbce_fully_calibrated_learns_probabilities() -> None:
    loss = GBCE(calibration=1.0)
    loss.setup(facts())
    batch, block = each_alone(P)
    logit = P.log() - torch.log1p(-P)
    assert slope(loss, logit, batch, block, block.log_count).abs().max() < 1e-12


def test_gbce_uncalibrated_is_binary_cross_entropy() -> None:
    loss, binary = GBCE(calibration=0.0), BinaryCrossEntropy(negative_weight=K)
    loss.setup(facts())
    batch, block = each_alone(P)
    score_M = law(5)
    found = slope(loss, score_M, batch, block, block.log_count)
    want = slope(binary, score_M, batch, block, block.log_count)
    assert (found - want / (K + 1)).abs().max() < 1e-12


def test_losses_that_count_the_catalogue_count_its_live_items() -> None:
    made = facts(n_items=19, n_queries=7, live_M=torch.arange(19) < 10)
    loss, adaptive = GBCE(), AdapTau()
    loss.setup(made)
    assert loss.n_live == 10
    adaptive.setup(replace(made, query_count_Q=torch.full((7,), 2)))
    assert adaptive.inverse_temperature.item() == pytest.approx(math.log(7 * 10 / (2 * 14)) / 0.7)


@pytest.mark.parametrize(("least", "n_queries", "n_pairs"), [(0.0, 5, 11), (0.5, 3, 9), (0.9, 1, 4)])
def test_adaptau_counts_queries_with_so_many_pairs(least: float, n_queries: int, n_pairs: int) -> None:
    """Of queries with 0, 1, 1, 2, 3, 4 pairs those from the quantile on; none that has no pair."""
    made, loss = facts(n_items=19, n_queries=6), AdapTau(least=least)
    loss.setup(replace(made, query_count_Q=torch.tensor([0, 1, 1, 2, 3, 4])))
    assert loss.log_odds == pytest.approx(math.log(n_queries * 19 / (2 * n_pairs)))


# ---------------------------------------------------------------- squared, WARP


def test_squared_over_the_catalogue_is_the_gramian_form() -> None:
    """mean_j <u, v_j>^2 = u^T G u."""
    rng = torch.Generator().manual_seed(6)
    u, v = (torch.randn(n, 4, generator=rng, dtype=torch.float64) for n in (1, M))
    batch = replace(all_of_one_query(P), item_P=torch.tensor([2]), of_P=torch.zeros(1, dtype=torch.int64))
    batch = replace(batch, weight_P=torch.ones(1, dtype=torch.float64))
    block = Block.of(torch.arange(M)).with_count(torch.zeros(M))
    candidates = Candidates(blocks=(block,), positive_log_count_P=torch.zeros(1))
    value, _ = SquaredGramian(negative_weight=2.0)(encode(u, lambda row: v[row], batch, candidates))
    gramian = v.T @ v / M
    assert value.item() == pytest.approx(((u[0] @ v[2] - 1) ** 2 + 2 * u[0] @ gramian @ u[0]).item(), abs=1e-12)


def test_warp_counts_the_catalogue_from_a_sample() -> None:
    """Two of seven items violate; drawn once each of expected 1/3, they stand for 3 each: rank 6."""
    score_M = torch.tensor([0.5, 0.6, 0.55, 0.0, -1.0, 0.1, 0.2], dtype=torch.float64)
    batch = replace(all_of_one_query(P), item_P=torch.tensor([0]), of_P=torch.zeros(1, dtype=torch.int64))
    batch = replace(batch, weight_P=torch.ones(1, dtype=torch.float64))
    drawn = torch.tensor([1, 2, 4])
    log_count_M = torch.full((M,), math.log(1 / 3), dtype=torch.float64)
    found = slope(Warp(margin=0.1), score_M, batch, Block.of(drawn).with_count(log_count_M[drawn]), log_count_M)
    phi = 1 + 1 / 2 + 1 / 3 + 1 / 4 + 1 / 5 + 1 / 6
    want = torch.tensor([-phi, phi / 2, phi / 2, 0, 0, 0, 0], dtype=torch.float64)
    assert (found - want).abs().max() < 1e-12


# ---------------------------------------------------------------- hierarchical


def test_probabilities_of_a_tree_sum_to_one() -> None:
    loss = HierarchicalSoftmax()
    loss.setup(facts(n_items=33, width=5))
    loss.nodes.weight.normal_()
    query_BD = torch.randn(3, 5)
    of_P, item_P = torch.arange(3).repeat_interleave(33), torch.arange(33).repeat(3)
    total_B = loss.log_p(query_BD, of_P, item_P).exp().view(3, 33).sum(1)
    assert torch.allclose(total_B, torch.ones(3), atol=1e-5)


def test_log_p_is_the_walk_from_the_root() -> None:
    loss = HierarchicalSoftmax()
    loss.setup(facts(n_items=9, width=4))
    loss.double().nodes.weight.normal_()
    tree, query = huffman(torch.arange(1, 10)), torch.randn(1, 4, dtype=torch.float64)
    for item in range(9):
        want = 0.0
        for at in range(int(tree.offset[item]), int(tree.offset[item + 1])):
            x = tree.sign[at].item() * (query[0] @ loss.nodes.weight[tree.node[at]]).item()
            want -= math.log1p(math.exp(-x))
        found = loss.log_p(query, torch.zeros(1, dtype=torch.int64), torch.tensor([item]))
        assert found.item() == pytest.approx(want, abs=1e-12)


@pytest.mark.parametrize("batch_of", ["pairs", "queries"])
def test_a_batch_of_walks_is_a_naive_loop(batch_of: str) -> None:
    """Weighted mean of -log p over the pairs, and its gradient at queries and nodes."""
    case = make_case(6, batch_of=batch_of, own=False)
    encoded = encode(case.query_BD, lambda row: case.item_MD.index_select(0, row), case.batch, case.candidates)
    loss, tree = HierarchicalSoftmax(), huffman(torch.arange(1, 20))
    loss.setup(facts(n_items=19, width=4))
    loss.double().nodes.weight.normal_()
    value, _ = loss(encoded)
    (found_query,) = torch.autograd.grad(value, case.query_BD, retain_graph=True)
    value.backward()
    rows, found_node = loss.nodes.gradient() or (torch.empty(0), torch.empty(0))
    node_ND = loss.nodes.weight.detach().clone().requires_grad_()
    total = torch.zeros((), dtype=torch.float64)
    for query, item, weight in zip(case.batch.of_P, case.batch.item_P, case.batch.weight_P, strict=True):
        for at in range(int(tree.offset[item]), int(tree.offset[item + 1])):
            total = total - weight * F.logsigmoid(tree.sign[at] * (case.query_BD[query] @ node_ND[tree.node[at]]))
    want = total / case.batch.weight_P.sum()
    want_query, want_node = torch.autograd.grad(want, [case.query_BD, node_ND])
    assert value.item() == pytest.approx(want.item(), abs=1e-10)
    assert (found_query - want_query).abs().max() < 1e-10
    assert (torch.zeros_like(node_ND).index_add(0, rows, found_node) - want_node).abs().max() < 1e-10


@pytest.mark.parametrize("n_items", [1, 2, 3, 50])
def test_the_tree_is_as_short_as_huffman_s(n_items: int) -> None:
    count = torch.randint(0, 40, (n_items,), generator=torch.Generator().manual_seed(n_items))
    tree = huffman(count)
    weight = count.clamp(min=1)
    length = tree.offset[1:] - tree.offset[:-1]
    heap, cost = weight.tolist(), 0
    heapq.heapify(heap)
    while len(heap) > 1:
        both = heapq.heappop(heap) + heapq.heappop(heap)
        cost += both
        heapq.heappush(heap, both)
    assert int((length * weight).sum()) == cost
    share = weight / weight.sum()
    entropy = -(share * share.log2()).sum().item()
    assert (length * share).sum().item() <= entropy + 1
    starts = tree.node[tree.offset[:-1][length > 0]]
    assert (starts == n_items - 2).all()  # every path begins at the root


# ---------------------------------------------------------------- both ways


def test_symmetric_is_a_naive_loop_both_ways() -> None:
    case = make_case(2, batch_of="queries")
    batch, items = case.batch, case.item_MD
    loss = Symmetric(of=SampledSoftmax(temperature=0.7), weight=0.3)
    loss.setup(replace(facts(n_items=19), query_count_Q=torch.arange(1, 8), batch_of="pairs", batch_size=5))
    q = torch.arange(1, 8).double() / 28
    log_presence = torch.log(1 - (1 - q) ** 4)
    there = oracle.loss(case, "softmax", temperature=0.7, correction="negatives", strength=1.0, exclude="known")
    back = torch.zeros((), dtype=torch.float64)
    known = [set(batch.known.slice(b, b + 1).value.tolist()) for b in range(7)]
    for pair, item in enumerate(batch.item_P.tolist()):
        query = int(batch.of_P[pair])
        positive = case.query_BD[query] @ items[item] / 0.7
        others = [b for b in range(7) if item not in known[b]]
        logits = [case.query_BD[b] @ items[item] / 0.7 - log_presence[b] for b in others]
        back = back + batch.weight_P[pair] * (oracle.log_sum_exp([positive, *logits]) - positive)
    want = 0.7 * there + 0.3 * back / batch.weight_P.sum()
    want_gradients = torch.autograd.grad(want, [case.query_BD, items])
    for tile in (None, 2):
        encoded = encode(case.query_BD, lambda row: items.index_select(0, row), batch, case.candidates)
        value, _ = loss(encoded, tile=tile)
        assert value.item() == pytest.approx(want.item(), abs=1e-6)  # presences are kept in float32
        for found, expected in zip(torch.autograd.grad(value, [case.query_BD, items]), want_gradients, strict=True):
            assert (found - expected).abs().max() < 1e-6


def test_symmetric_needs_to_know_the_queries() -> None:
    case = make_case(2, batch_of="queries")
    nameless = replace(case.batch, query_B=torch.tensor([0, 1, -1, 3, -1, 5, 6]))
    encoded = encode(case.query_BD, lambda row: case.item_MD.index_select(0, row), nameless, case.candidates)
    loss = Symmetric()
    loss.setup(facts(n_items=19))
    with pytest.raises(DataError, match="2 of 7 events of a batch have no query id"):
        loss(encoded)


@pytest.mark.parametrize("inner", [GBCE, NCE])
def test_what_is_made_for_drawn_items_has_no_other_way_round(inner: type[RowLoss]) -> None:
    with pytest.raises(ConfigError, match=f"Symmetric: found {inner.__name__}, whose formula has the number of items"):
        Symmetric(of=inner())


@pytest.mark.parametrize("inner", [AdvInfoNCE, AdapTau])
def test_symmetric_refuses_what_is_kept_for_each_query(inner: type[RowLoss]) -> None:
    """Other way round it would be looked up by the rows of items."""
    with pytest.raises(ConfigError, match=f"Symmetric: found {inner.__name__}, which keeps something for each query"):
        Symmetric(of=inner())


def test_what_symmetric_is_made_of_learns_from_each_step() -> None:
    """What a temperature for all is found from, summed up over an epoch of two steps."""
    case = make_case(2, batch_of="queries")
    encoded = encode(case.query_BD, lambda row: case.item_MD.index_select(0, row), case.batch, case.candidates)
    alone, inner = (AdapTau(beta=math.inf) for _ in range(2))
    both = Symmetric(of=inner)
    for loss in (alone, both):
        loss.setup(replace(facts(n_items=19, width=4), steps_per_epoch=2))
        _, notes = loss(encoded)
        loss.observe(encoded, notes)
    assert int(inner.steps) == 1
    assert torch.equal(inner.gap_sums, alone.gap_sums)
    assert int(inner.gap_sums[1]) == len(case.batch.item_P)


# ---------------------------------------------------------------- buckets


def encoded_of(seed: int = 2) -> tuple[Encoded, oracle.Case]:
    case = make_case(seed, batch_of="queries", own=False)
    return encode(case.query_BD, lambda row: case.item_MD.index_select(0, row), case.batch, case.candidates), case


@pytest.mark.parametrize("tile", [None, 2])
def test_one_bucket_of_everything_is_the_whole_softmax(tile: int | None) -> None:
    encoded, case = encoded_of()
    whole, _ = SampledSoftmax(temperature=0.7)(encoded, tile=tile)
    bucket, _ = BucketedSoftmax(temperature=0.7, buckets=1, queries=99, items=99)(encoded, tile=tile)
    assert bucket.item() == pytest.approx(whole.item(), abs=1e-12)
    of_whole, of_bucket = (
        torch.autograd.grad(x, [case.query_BD, case.item_MD], retain_graph=True) for x in (whole, bucket)
    )
    for got, want in zip(of_bucket, of_whole, strict=True):
        assert (got - want).abs().max() < 1e-12


@pytest.mark.parametrize("tile", [None, 1, 2])
def test_buckets_are_a_naive_loop(tile: int | None) -> None:
    encoded, case = encoded_of()
    loss = BucketedSoftmax(temperature=0.7, buckets=3, queries=4, items=5, mix=False)
    torch.manual_seed(11)
    value, _ = loss(encoded, tile=tile)
    torch.manual_seed(11)
    direction = torch.randn(3, 4, dtype=torch.float64)
    batch, best = case.batch, {}
    for bucket in range(3):
        near = (case.query_BD.detach() @ direction[bucket]).topk(4).indices.tolist()
        columns = (encoded.column_ND.detach() @ direction[bucket]).topk(5).indices.tolist()
        for query in near:
            known = set(batch.known.slice(query, query + 1).value.tolist())
            logits = []
            for c in columns:
                item = int(encoded.shared.row[c])
                if item not in known:
                    score = case.query_BD[query] @ case.item_MD[item] / 0.7
                    logits.append(score + encoded.shared.log_weight[c] - encoded.shared.log_count[c])
            pairs = [p for p in range(len(batch.item_P)) if int(batch.of_P[p]) == query]
            lost = [torch.zeros((), dtype=torch.float64) for _ in pairs]
            if logits:
                positives = [case.query_BD[query] @ case.item_MD[int(batch.item_P[p])] / 0.7 for p in pairs]
                lost = [oracle.log_sum_exp([p, *logits]) - p for p in positives]
            if query not in best or sum(x.item() for x in lost) > sum(x.item() for x in best[query][1]):
                best[query] = (pairs, lost)
    weight = sum(batch.weight_P[p] for pairs, _ in best.values() for p in pairs)
    total = sum(batch.weight_P[p] * x for pairs, lost in best.values() for p, x in zip(pairs, lost, strict=True))
    assert value.item() == pytest.approx((total / weight).item(), abs=1e-10)
    found, want = (
        torch.autograd.grad(x, [case.query_BD, case.item_MD], retain_graph=True) for x in (value, total / weight)
    )
    assert all((a - b).abs().max() < 1e-10 for a, b in zip(found, want, strict=True))


@pytest.mark.parametrize("settings", [{"renormalise": True}, {"strength": 0.5}])
def test_a_bucket_does_not_go_by_all_counts(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=rf"{next(iter(settings))} of BucketedSoftmax: .* of which a bucket"):
        BucketedSoftmax(**settings)
    assert BucketedSoftmax(strength=0.5, correction="none").strength == 0.5


def test_a_bucket_takes_the_counts_of_its_queries() -> None:
    """One bucket of some queries and all columns, with a count for each query and column."""
    encoded, _ = encoded_of()
    g = torch.Generator().manual_seed(5)
    log_count_BN = torch.randn(len(encoded.query_BD), len(encoded.shared.row), generator=g).double()
    encoded = replace(encoded, shared=encoded.shared.with_count(log_count_BN))
    query_b, column_y = torch.tensor([1, 4, 5]), torch.arange(0, len(encoded.shared.row), 2)
    part, _ = part_of(encoded, query_b, column_y, encoded.total_weight)
    assert torch.equal(part.shared.log_count, log_count_BN[[1, 4, 5]][:, ::2])


# ---------------------------------------------------------------- temperatures that are found


def test_lambert_solves_its_equation() -> None:
    x = torch.tensor([-math.exp(-1), -0.3678, -0.2, 0.0, 1e-6, 0.3, 1.0, math.e, 10.0, 1000.0], dtype=torch.float64)
    w = lambert(x)
    assert (w * w.exp() - x).abs().max() < 1e-9
    assert (w >= -1).all()
    assert lambert(torch.tensor([math.e], dtype=torch.float64)).item() == pytest.approx(1.0, abs=1e-12)


def of_symmetric(**settings: Any) -> Symmetric:
    return Symmetric(of=AdapTau(**settings))


def of_perturbed(**settings: Any) -> Perturbed:
    return Perturbed(of=AdapTau(**settings))


def test_adaptau_measures_the_gap_over_an_epoch() -> None:
    """1 / t_0 = log(U M / 2D) / (mean positive cosine - <mean query, mean item>), over the two steps of an epoch."""
    made = facts(n_items=19, n_queries=7, width=4, steps_per_epoch=2)
    loss = AdapTau(warm_up=1.0)
    loss.setup(replace(made, query_count_Q=torch.full((7,), 2)))
    odds = math.log(7 * 19 / (2 * 14))
    assert loss.inverse_temperature.item() == pytest.approx(odds / 0.7)
    catalogue = Block.of(torch.arange(19)).with_count(torch.zeros(19))
    cosines, queries, items = [], [], []
    for seed in (3, 4):
        case = oracle.unit(make_case(seed, batch_of="queries", own=False))
        candidates = Candidates(blocks=(catalogue,), positive_log_count_P=torch.zeros(len(case.batch.item_P)))
        encoded = encode(case.query_BD, lambda row, of=case.item_MD: of.index_select(0, row), case.batch, candidates)
        _, notes = loss(encoded, tile=3)
        loss.observe(encoded, notes)
        cosines += [case.query_BD[q] @ case.item_MD[i] for q, i in zip(case.batch.of_P, case.batch.item_P, strict=True)]
        queries.append(case.query_BD)
        items.append(case.item_MD)
    gap = torch.stack(cosines).mean() - torch.cat(queries).mean(0) @ torch.cat(items).mean(0)
    if gap > 0:
        assert loss.inverse_temperature.item() == pytest.approx(odds / gap.item(), rel=1e-5)
    else:
        assert loss.inverse_temperature.item() == pytest.approx(odds / 0.7)
    assert not loss.loss_Q.isnan().any()
    assert loss.gap_sums.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("made_of", [AdapTau, of_symmetric, of_perturbed], ids=["alone", "Symmetric", "Perturbed"])
def test_adaptau_keeps_the_temperature_of_a_first_fit_after_its_own_warm_up(made_of: Any) -> None:
    """An epoch of warm-up at log(U M / 2D) / .7, then what the first fit found, not what is measured."""
    case = make_case(3, batch_of="queries")
    encoded = encode(case.query_BD, lambda row: case.item_MD.index_select(0, row), case.batch, case.candidates)
    first, again = (made_of(beta=math.inf, warm_up=2.0, least=0.0) for _ in range(2))
    for loss in (first, again):
        loss.setup(replace(facts(n_items=19, n_queries=7, width=4), query_count_Q=torch.full((7,), 2)))
    first.compared().inverse_temperature.fill_(5.0)
    again.keep(first)
    found = []
    for _ in range(3):
        _, notes = again(encoded)
        again.observe(encoded, notes)
        found.append(again.compared().inverse_temperature.item())
    assert found == pytest.approx([math.log(7 * 19 / (2 * 14)) / 0.7, 5.0, 5.0])


def test_adaptau_counts_columns_by_the_mean_over_queries() -> None:
    """A column drawn with counts 1/2 and 1/4 stands for (2 + 4) / 2 items."""
    encoded, _ = encoded_of()
    log_count_BN = encoded.shared.log_count.new_zeros(len(encoded.query_BD), len(encoded.shared.row)) - math.log(2)
    log_count_BN[1::2] -= math.log(2)
    n_second = len(log_count_BN[1::2])
    loss = AdapTau()
    loss.setup(facts(width=4, steps_per_epoch=9))
    loss.observe(replace(encoded, shared=encoded.shared.with_count(log_count_BN)), {"cosine": torch.zeros(3)})
    total = encoded.shared.log_weight.exp().sum() * (2 + 2 * n_second / len(log_count_BN))
    assert float(loss.item_sum[-1]) == pytest.approx(float(total))


@pytest.mark.parametrize("shared", [True, False])
def test_adaptau_measures_candidates_of_each_query(shared: bool) -> None:
    """Lists of a query's own, counts 1/3: each stands for three items, and every query's for the catalogue."""
    case = make_case(5, batch_of="queries", shared=shared)
    blocks = [replace(b, log_count=torch.full_like(b.log_count, -math.log(3))) for b in case.candidates.blocks]
    candidates = replace(case.candidates, blocks=tuple(blocks))
    encoded = encode(case.query_BD, lambda row: case.item_MD.index_select(0, row), case.batch, candidates)
    loss = AdapTau()
    loss.setup(facts(width=4, steps_per_epoch=9))
    loss.observe(encoded, {"cosine": torch.zeros(3)})
    n_queries, total = len(case.query_BD), torch.zeros(5, dtype=torch.float64)
    for block in blocks:
        for query in range(n_queries):
            own = block.row.dim() == 2
            for row, log_weight in zip(
                (block.row[query] if own else block.row).tolist(),
                (block.log_weight[query] if own else block.log_weight).tolist(),
                strict=True,
            ):
                stands_for = 3 * math.exp(log_weight) / n_queries
                if stands_for:
                    total += stands_for * torch.cat([case.item_MD.detach()[row], torch.ones(1)])
    assert torch.allclose(loss.item_sum, total, atol=1e-9)


def test_adaptau_needs_more_others_than_positives() -> None:
    loss = AdapTau()
    for n_items in (5, 4):
        loss.setup(replace(facts(n_items=n_items, n_queries=7, width=4), query_count_Q=torch.full((7,), 2)))
        if n_items == 5:
            loss.check()
    with pytest.raises(ConfigError, match="where half of all pairs or more are positives, found 14 of 7 queries and 4"):
        loss.check()


def test_adaptau_is_softer_where_the_fit_is_worse_and_plain_where_unknown() -> None:
    loss = AdapTau()
    loss.setup(facts(width=4))
    global_ = loss.current_temperature()
    assert torch.allclose(loss.temperature_of(torch.tensor([0, -1])).float(), torch.as_tensor(global_).float())
    loss.loss_Q[:3] = torch.tensor([1.0, 2.0, 3.0])
    low, middle, high, unknown = loss.temperature_of(torch.tensor([0, 1, 2, 5])).tolist()
    assert low < middle < high
    assert middle == pytest.approx(float(global_))
    assert unknown == pytest.approx(float(global_))
    # t_u = t_0 e^{W(x)} with x = (3 - 2) / 1: W(1) is the omega constant
    assert high == pytest.approx(float(global_) * math.exp(0.5671432904097838))


def test_the_adversary_climbs() -> None:
    """After a step along its gradient the loss, the model held still, is larger."""
    encoded, _ = encoded_of()
    loss = AdvInfoNCE(temperature=0.7, width=3)
    loss.setup(facts(n_items=19))
    loss.double().train()
    before, _ = loss(encoded)
    before.backward()
    for table in (loss.of_query, loss.of_item):
        rows, gradient = table.gradient() or (torch.empty(0), torch.empty(0))
        table.weight[rows] -= 0.1 * gradient / gradient.norm()
    after, _ = loss(encoded)
    assert after.item() > before.item()


def test_the_adversary_rests_in_time() -> None:
    loss = AdvInfoNCE(epochs=1, every=3, until=5)
    loss.setup(facts(steps_per_epoch=2))
    moves = []
    for _ in range(14):
        moves.append(loss.learns())
        loss.observe(None, {})  # type: ignore[arg-type]
    assert moves == [True, True, False, False, False, False, True, True, *[False] * 6]


class Products(TorchDispatchMode):
    """Sizes of all matrix products made inside the block."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in {"mm", "addmm", "addmm_", "mv", "dot", "vdot", "bmm"}:
            self.sizes |= {size for x in args if isinstance(x, Tensor) for size in x.shape}
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("loss", [SampledSoftmax(correction="none"), SGNS()])
def test_no_product_is_as_long_as_the_positives(loss: RowLoss) -> None:
    """Their number is another in every batch, and oneDNN keeps compiled code for each shape it met."""
    case = make_case(2, batch_of="queries", own=False)
    encoded = encode(case.query_BD, lambda row: case.item_MD.index_select(0, row), case.batch, case.candidates)
    loss.setup(facts(n_items=19))
    with Products() as products:
        value, _ = loss(encoded, tile=100)
        value.backward()
    n_positives = len(case.batch.item_P)
    assert products.sizes
    assert n_positives not in products.sizes
    assert n_positives not in {4, 7, len(encoded.column_ND)}  # else it could not be told from them
