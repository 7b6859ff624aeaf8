"""Runs with a graph: the planted truth is found, and a saved model knows its edges."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.training.checkerboard import EVENTS, PART, SIZE, checkerboard, run_of
from tests.training.test_train import data, run_on  # noqa: F401  (a fixture)
from twotower.config import Data, dump_run, parse_run
from twotower.losses import BPR, Loss, SampledSoftmax
from twotower.negatives import MixGCF, Uniform
from twotower.optimisers import RowwiseAdagrad
from twotower.schema import Id
from twotower.towers import Graph, SvdStart, TwoTower
from twotower.training import Retriever, evaluate, train
from twotower.training.loop import fit_once
from twotower.training.retriever import encode_catalogue

GRAPHS = {
    "LightGCN": TwoTower(dim=8, graph=Graph(layers=2), serve="dot"),
    "served only": TwoTower(dim=8, graph=Graph(layers=0, served_layers=1), start=SvdStart()),
}


@pytest.mark.parametrize("batch_of", ["pairs", "queries"])
@pytest.mark.parametrize("name", GRAPHS)
def test_a_graph_finds_the_checkerboard(name: str, batch_of: str) -> None:
    """A guess among the 16 items a user has not met would give 1/16."""
    store = checkerboard()
    run = run_of(store, towers=GRAPHS[name], batch_of=batch_of, batch_size=8 if batch_of == "queries" else 64)
    fit = fit_once(run, store, PART)
    assert fit.best_metric is not None
    assert fit.best_metric >= 0.95
    graph = fit.model.towers.graph
    assert graph is not None
    held_out = {event for event, part in zip(EVENTS, PART, strict=True) if part}
    edges = set(map(tuple, graph.edge_2E.T.tolist()))
    assert edges == set(EVENTS) - held_out


@pytest.mark.parametrize("towers", [GRAPHS["LightGCN"], TwoTower(dim=8)])
@pytest.mark.parametrize("loss", [BPR(), SampledSoftmax(correction="none", temperature=0.2)])
def test_made_negatives_find_it_too(towers: TwoTower, loss: Loss) -> None:
    store = checkerboard()
    negatives = MixGCF(n=2, of=Uniform(4, per_query=True), mixing=0.5)
    fit = fit_once(replace(run_of(store, towers=towers, loss=loss), negatives=negatives), store, PART)
    assert fit.best_metric is not None
    assert fit.best_metric >= 0.95


def test_a_start_in_closed_form_alone_finds_it() -> None:
    """A step so small that nothing moves: the truth is of rank two, and the start knows it."""
    store = checkerboard()
    towers = TwoTower(dim=2, start=SvdStart())
    fit = fit_once(run_of(store, towers=towers, epochs=1, tables=RowwiseAdagrad(lr=1e-9)), store, PART)
    assert fit.best_metric is not None
    assert fit.best_metric >= 0.95


@pytest.mark.parametrize("name", GRAPHS)
def test_a_saved_model_recommends_the_same(name: str, data: Data, tmp_path: Path) -> None:  # noqa: F811
    run = run_on(data, epochs=5.0)
    schema = replace(run.schema, query={"user": Id(column="user")})
    run = replace(run, schema=schema, data=replace(data, store=str(tmp_path / "store")), towers=GRAPHS[name])
    train(run, tmp_path / "model", quiet=True)
    opened = Retriever.open(tmp_path / "model")
    assert opened.towers.graph is not None
    assert opened.towers.graph.edge_2E.shape == (2, SIZE * (SIZE // 2 - 2))

    part_E = run.split.assign(opened.store)
    fit = fit_once(run, opened.store, part_E)
    trained = Retriever(run, opened.store, fit.model.towers)
    assert torch.equal(trained.item_MD, opened.item_MD)
    for user in range(SIZE):
        want = trained.recommend({"user": f"u{user}"}, k=3, filter_seen=False)
        assert want == opened.recommend({"user": f"u{user}"}, k=3, filter_seen=False)
        assert {int(found.item[1:]) % 2 for found in want} == {user % 2}
    assert evaluate(tmp_path / "model").metric("recall@2") > 0.5


def test_validation_measures_what_is_served() -> None:
    store = checkerboard()
    fit = fit_once(run_of(store, towers=GRAPHS["LightGCN"], epochs=2, validate_every=1), store, PART)
    towers = fit.model.towers
    vectors = encode_catalogue(towers, store)
    assert not torch.allclose(vectors.norm(dim=1), torch.ones(SIZE))
    assert torch.equal(vectors, towers.eval().encode_item(store.item.take(torch.arange(SIZE)), served=True))


def test_settings_survive_toml() -> None:
    run = run_of(checkerboard(), towers=GRAPHS["served only"], epochs=2.0, validate_every=1.0)
    text = dump_run(run)
    assert dump_run(parse_run(text)) == text
    assert parse_run(text).towers.graph is not None
    plain = parse_run(dump_run(run_of(checkerboard())))
    assert plain.towers.graph is None
    assert plain.towers.start is None


def test_the_same_seed_gives_the_same_model() -> None:
    store = checkerboard()
    made = [fit_once(run_of(store, towers=GRAPHS["LightGCN"], epochs=2), store, PART).model for _ in range(2)]
    for one, other in zip(*(model.state_dict().values() for model in made), strict=True):
        assert np.array_equal(one.numpy(), other.numpy())


def test_a_graph_and_chunks_of_the_gradient() -> None:
    """Encoding a few rows at a time gives the tables of the direct step."""
    store = checkerboard()
    tables = []
    for chunk in (None, 7):
        run = run_of(store, towers=GRAPHS["LightGCN"], epochs=1, encode_chunk=chunk)
        tables.append([table.weight for table in fit_once(run, store, PART).model.towers.all_tables()])
    for direct, chunked in zip(*tables, strict=True):
        assert torch.allclose(direct, chunked, atol=1e-4)
