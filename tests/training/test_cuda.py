"""The same on a GPU: losses to the digit, training to the truth, measuring to the list."""

from __future__ import annotations

import copy
import dataclasses
import typing
from pathlib import Path

import pytest
import torch

from tests.losses.oracle import Case, make_case, unit
from tests.training.checkerboard import EVENTS, PART, checkerboard, run_of
from twotower.frequency import StreamingFrequency
from twotower.losses import (
    AdapTau,
    AdaptiveMargin,
    AdaptiveTemperature,
    BucketedSoftmax,
    HierarchicalSoftmax,
    Loss,
    Losses,
    SampledSoftmax,
)
from twotower.negatives import InBatch, Popularity, Uniform
from twotower.part import Facts
from twotower.records import Block, Candidates
from twotower.schema import History, Number
from twotower.scoring import encode
from twotower.towers import Tower, TwoTower
from twotower.training.loop import evaluate_retriever, fit_once, settings_of
from twotower.training.retriever import Retriever

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")

UNIT = (AdaptiveMargin, AdaptiveTemperature, AdapTau)


def on(case: Case, device: str) -> Case:
    def moved(block: Block) -> Block:
        tensors = {f.name: getattr(block, f.name) for f in dataclasses.fields(block)}
        return Block(**{name: x.to(device) if isinstance(x, torch.Tensor) else x for name, x in tensors.items()})

    candidates = Candidates(
        blocks=tuple(moved(block) for block in case.candidates.blocks),
        positive_log_count_P=case.candidates.positive_log_count_P.to(device),
    )
    return dataclasses.replace(
        case,
        query_BD=case.query_BD.detach().to(device).requires_grad_(),
        item_MD=case.item_MD.detach().to(device).requires_grad_(),
        batch=case.batch.to(device),
        candidates=candidates,
        log_count_M=case.log_count_M.to(device),
    )


@pytest.mark.parametrize("batch_of", ["pairs", "queries"])
@pytest.mark.parametrize("loss", typing.get_args(Losses), ids=lambda loss: loss.__name__)
def test_a_loss_is_the_same_on_both(loss: type[Loss], batch_of: str) -> None:
    case = make_case(7, batch_of=batch_of)
    made = BucketedSoftmax(buckets=1, queries=99, items=99) if loss is BucketedSoftmax else loss()
    made.setup(
        Facts(
            n_items=19,
            n_queries=7,
            item_count_M=torch.arange(1, 20),
            batch_size=7,
            batch_of=batch_of,
            query_count_Q=torch.ones(7, dtype=torch.int64),
            width=4,
        )
    )
    found = []
    for device in ("cpu", "cuda"):
        here, copied = on(unit(case) if loss in UNIT else case, device), copy.deepcopy(made).double().to(device)
        encoded = encode(
            here.query_BD, lambda row, of=here: of.item_MD.index_select(0, row), here.batch, here.candidates
        )
        value, notes = copied(encoded, tile=3)
        wrt = [here.query_BD] if loss is HierarchicalSoftmax else [here.query_BD, here.item_MD]
        gradients = torch.autograd.grad(value, wrt)
        copied.observe(encoded, notes)
        found.append([value.detach().cpu(), *(g.cpu() for g in gradients)])
    for cpu, cuda in zip(*found, strict=True):
        assert torch.allclose(cpu, cuda, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_training_on_a_gpu_finds_the_checkerboard(precision: str) -> None:
    store = checkerboard(
        time_us=list(range(len(EVENTS))),
        context={"history": History(k=5), "n": Number(column="n")},
        context_columns={"n": torch.tensor([user % 2 for user, _ in EVENTS]).float().numpy()},
    )
    run = run_of(
        store,
        towers=TwoTower(dim=8, query=Tower(id_dropout=0.1), item=Tower(projection=True)),
        loss=SampledSoftmax(temperature=0.2, learn_temperature=True),
        parts={"frequency": StreamingFrequency(buckets=64, initial_gap=2.0)},
        device="cuda",
        precision=precision,
        clip_norm=1.0,
    )
    run = dataclasses.replace(run, negatives=InBatch() + Uniform(8) + Popularity(8, per_query=True))
    with settings_of(run.training):
        fit = fit_once(run, store, PART)
    assert fit.best_metric is not None
    assert fit.best_metric >= 0.95


def test_a_model_trained_on_a_gpu_measures_the_same_on_a_cpu(tmp_path: Path) -> None:
    store = checkerboard()
    run = run_of(store, epochs=5, device="cuda")
    with settings_of(run.training):
        fit = fit_once(run, store, PART, folder=tmp_path)
    on_gpu = Retriever(run, store, fit.model.towers)
    on_cpu = Retriever(run, store, copy.deepcopy(fit.model.towers).cpu())
    assert on_gpu.item_MD.device.type == "cuda"
    measured = [evaluate_retriever(retriever, PART, "valid").rows["model"] for retriever in (on_gpu, on_cpu)]
    assert measured[0] == pytest.approx(measured[1], nan_ok=True)
    assert torch.allclose(on_gpu.item_MD.cpu(), on_cpu.item_MD, atol=1e-5)
