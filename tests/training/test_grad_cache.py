"""Encoding in chunks: the gradient is that of the direct step, and no tower keeps a graph of more than a chunk."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from tests.training.checkerboard import EVENTS, PART, SIZE, checkerboard, run_of
from twotower.config import Run, Training
from twotower.data.batches import TrainingBatches
from twotower.data.store import Store
from twotower.errors import ConfigError
from twotower.losses import (
    BPR,
    CCL,
    AdapTau,
    AdaptiveMargin,
    AdaptiveTemperature,
    HierarchicalSoftmax,
    Loss,
    SampledSoftmax,
    Symmetric,
)
from twotower.records import Batch, Features, Ragged
from twotower.schema import Categorical, History, Id, Number
from twotower.towers import Tower, TwoTower
from twotower.towers.graph import Graph
from twotower.training.grad_cache import GradCache
from twotower.training.loop import fit_once
from twotower.training.step import Model, Stepper


class Caught(Stepper):
    """Keeps the gradients of a step instead of moving by them."""

    def _move(self, step: int, rate: float, *, norm_wanted: bool) -> float | None:
        self.found = {name: p.grad for name, p in self.model.named_parameters() if p.grad is not None}
        for name, table, _ in self.model.tables():
            found = table.gradient()
            if found is not None:
                self.found[name] = torch.zeros_like(table.weight).index_add(0, *found)
        return None


def rich_store() -> Store:
    """Ids and a category, a history that shares the items' table, a number of each event."""
    return checkerboard(
        time_us=list(range(len(EVENTS))),
        context={"history": History(k=5), "n": Number(column="n")},
        context_columns={"n": np.array([user / SIZE for user, _ in EVENTS], np.float32)},
        item={"item": Id(column="item"), "third": Categorical(column="third")},
        item_columns={"third": np.arange(SIZE) % 3},
        table_sizes={"item.third": 3},
    )


def towers_of(**query: Any) -> TwoTower:
    layers: dict[str, Any] = {"combine": "concat", "widths": (8, 6), **query}
    return TwoTower(dim=4, query=Tower(**layers), item=Tower(widths=(10, 6), dropout=query.get("dropout", 0.0)))


def caught(run: Run, store: Store) -> tuple[Caught, Batch]:
    """A stepper in float64 and its first batch."""
    batches = TrainingBatches(
        store, np.flatnonzero(PART == 0), batch_of=run.training.batch_of, batch_size=run.training.batch_size
    )
    torch.manual_seed(0)
    stepper = Caught(Model(run, store, batches.facts()).train().double(), run.training)
    batch = next(iter(batches.epoch(0)))
    return stepper, replace(batch, query=in_double(batch.query))


def in_double(features: Features) -> Features:
    def of(column: Tensor | Ragged) -> Tensor | Ragged:
        if isinstance(column, Ragged):
            return column if column.weight is None else replace(column, weight=column.weight.double())
        return column.double() if column.is_floating_point() else column

    return {name: of(column) for name, column in features.items()}


TEMPERED = SampledSoftmax(temperature=0.2, learn_temperature=True)


def gradients(
    store: Store, towers: Callable[[], TwoTower], chunk: int | None, loss: Loss = TEMPERED, **training: Any
) -> dict[str, Tensor]:
    """Loss and gradients of one step."""
    run = run_of(store, towers=towers(), loss=loss, encode_chunk=chunk, **{"batch_size": 50, **training})
    stepper, batch = caught(run, store)
    loss_value = stepper(batch, 3, 1.0).loss
    return {"loss": torch.tensor(loss_value, dtype=torch.float64), **stepper.found}


@contextmanager
def outputs_of_towers() -> Iterator[list[Tensor]]:
    """What every call of a tower gave, in order."""
    outputs: list[Tensor] = []

    def keep(module: nn.Module, _: object, output: Tensor) -> None:
        if isinstance(module, Tower):
            outputs.append(output)

    hook = register_module_forward_hook(keep)
    try:
        yield outputs
    finally:
        hook.remove()


# ---------------------------------------------------------------- the same gradient


@pytest.mark.parametrize("chunk", [1, 7, 50])
def test_the_gradient_is_that_of_the_direct_step(chunk: int) -> None:
    """Tables (one of them looked up by both towers), layers on both sides, and the temperature."""
    store = rich_store()
    direct, cached = (gradients(store, towers_of, size) for size in (None, chunk))
    assert {"query.user", "item", "item.third", "loss.log_temperature", "towers.query.layers.0.weight"} <= set(direct)
    assert set(cached) == set(direct)
    for name, gradient in direct.items():
        assert gradient.abs().sum() > 0, name
        assert torch.allclose(cached[name], gradient, rtol=0, atol=1e-10), name


@pytest.mark.parametrize(
    "loss",
    [
        BPR(),
        CCL(margin=0.1),
        AdaptiveMargin(learn_alpha=True),
        AdaptiveTemperature(learn_temperature=True),
        AdapTau(),
        Symmetric(of=SampledSoftmax(temperature=0.2)),
        HierarchicalSoftmax(),
    ],
    ids=lambda loss: type(loss).__name__,
)
def test_so_it_is_for_every_kind_of_loss(loss: Loss) -> None:
    store = rich_store()
    direct, cached = (gradients(store, towers_of, size, loss) for size in (None, 7))
    assert set(cached) == set(direct)
    for name, gradient in direct.items():
        assert torch.allclose(cached[name], gradient, rtol=0, atol=1e-10), name


def over_a_graph() -> TwoTower:
    """All chunks look into the same propagated vectors."""
    return TwoTower(dim=4, graph=Graph(layers=2), query=Tower(widths=(6,)), item=Tower(widths=(8, 6)))


@pytest.mark.parametrize("chunk", [4, 1000])
@pytest.mark.parametrize("towers", [towers_of, over_a_graph])
def test_so_it_is_for_whole_queries_and_over_a_graph(towers: Callable[[], TwoTower], chunk: int) -> None:
    store = checkerboard()
    direct, cached = (gradients(store, towers, size, batch_of="queries") for size in (None, chunk))
    assert set(cached) == set(direct)
    for name, gradient in direct.items():
        assert torch.allclose(cached[name], gradient, rtol=0, atol=1e-10), name


def test_training_in_chunks_finds_the_checkerboard() -> None:
    fit = fit_once(run_of(checkerboard(), encode_chunk=7, validate_every=10), checkerboard(), PART)
    assert fit.best_metric is not None
    assert fit.best_metric >= 0.95


# ---------------------------------------------------------------- dropout


def dropping() -> TwoTower:
    return towers_of(dropout=0.4, id_dropout=0.3)


def test_one_chunk_drops_what_the_direct_step_drops() -> None:
    store = rich_store()
    direct, cached = (gradients(store, dropping, size) for size in (None, 1000))
    for name, gradient in direct.items():
        assert torch.allclose(cached[name], gradient, rtol=0, atol=1e-12), name
    without = gradients(store, towers_of, None)
    assert not torch.allclose(direct["loss"], without["loss"], atol=1e-3)


def test_a_step_with_dropout_comes_out_the_same_again() -> None:
    store = rich_store()
    one, two = (gradients(store, dropping, 7) for _ in range(2))
    assert all(torch.equal(two[name], gradient) for name, gradient in one.items())


def test_both_passes_hide_the_same_units() -> None:
    """To the bit: tables give without a graph what they give with one, and masks come from the same state."""
    with outputs_of_towers() as outputs:
        gradients(rich_store(), dropping, 7)
    first, second = ([x for x in outputs if x.requires_grad == graph] for graph in (False, True))
    assert len(first) == len(second) > 10
    assert all(torch.equal(one, two) for one, two in zip(first, second, strict=True))


def test_the_second_pass_leaves_the_generator_alone() -> None:
    cache = GradCache(3, torch.device("cpu"))
    scale = torch.ones(2, requires_grad=True)
    leaf = cache.encode(8, lambda start, stop: torch.rand(stop - start, 2) * scale)
    (leaf * 2).sum().backward()
    before = torch.get_rng_state()
    cache.backward()
    assert torch.equal(torch.get_rng_state(), before)
    assert scale.grad is not None
    assert torch.allclose(scale.grad, 2 * leaf.detach().sum(0))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_device_has_a_generator_of_its_own() -> None:
    cache = GradCache(3, torch.device("cuda"))
    scale = torch.ones(2, device="cuda", requires_grad=True)
    leaf = cache.encode(8, lambda start, stop: torch.rand(stop - start, 2, device="cuda") * scale)
    leaf.sum().backward()
    before = torch.cuda.get_rng_state()
    cache.backward()
    assert torch.equal(torch.cuda.get_rng_state(), before)
    assert scale.grad is not None
    assert torch.allclose(scale.grad, leaf.detach().sum(0))


# ---------------------------------------------------------------- what is held


def test_a_tower_never_sees_more_than_a_chunk_with_a_graph() -> None:
    """All 420 events ask for themselves: 16 chunks of 25 and one of 20; the 30 items are one of 25 and one of 5."""
    with outputs_of_towers() as outputs:
        gradients(rich_store(), towers_of, 25, batch_size=1000)
    chunks = [25] * 16 + [20] + [25, 5]
    assert [(len(x), x.requires_grad) for x in outputs] == [(n, graph) for graph in (False, True) for n in chunks]


class Held:
    """A tensor that autograd keeps; counts how many numbers are kept at once."""

    now = most = 0

    def __init__(self, kept: Tensor) -> None:
        self.kept = kept
        Held.now += kept.numel()
        Held.most = max(Held.most, Held.now)

    def __del__(self) -> None:
        Held.now -= self.kept.numel()


def most_held(chunk: int | None) -> int:
    Held.now = Held.most = 0
    with torch.autograd.graph.saved_tensors_hooks(Held, lambda held: held.kept):
        gradients(checkerboard(), lambda: TwoTower(dim=4, query=Tower(widths=(512, 4))), chunk, batch_of="queries")
    return Held.most


def test_what_autograd_holds_is_that_of_a_chunk() -> None:
    """30 queries through 512 hidden units are 15,360 numbers, 3 of them 1,536; both in two or three copies."""
    direct, cached = most_held(None), most_held(3)
    assert direct > 2 * 30 * 512
    assert cached < 3 * 3 * 512 + 512 * 8 + 30 * 4 * 10  # activations, the layers' weights, vectors of both sides


# ---------------------------------------------------------------- settings


def test_a_chunk_has_rows() -> None:
    with pytest.raises(ConfigError, match=r"training\.encode_chunk: found 0, expected at least 1"):
        Training(encode_chunk=0)
