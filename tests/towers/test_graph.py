"""The graph of the training pairs against a dense matrix and naive loops in float64."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.stores import make_store
from twotower.data.batches import group_pairs
from twotower.data.store import Store
from twotower.errors import ConfigError, DataError
from twotower.records import Features, Ragged
from twotower.schema import Categorical, Id, Seed
from twotower.tables import Table
from twotower.towers import Graph, Tower, TwoTower
from twotower.towers.graph import Adjacency, edges

DIM = 3
EVENTS = [(0, 0), (0, 1), (1, 1), (1, 1), (2, 2), (3, 0), (3, 2), (3, 3), (4, 1)]
"""Of 6 queries and 5 items: query 5 and item 4 have none, and one pair is there twice."""
ROWS = (7, 6)
"""Of the tables: one more a side than there are ids, for unknown ones."""
ITEM_ROW = np.array([0, 2, 1, 5, 4])
"""Row in the table of ids of each item of the catalogue."""


def pairs_of(events: list[tuple[int, int]], weight: list[float] | None = None) -> Ragged:
    query, item = np.array(events).T
    weights = np.ones(len(events), np.float32) if weight is None else np.array(weight, np.float32)
    found = group_pairs(query, item, weights, None, 6)
    return Ragged(offset=found.offset, value=found.item, weight=found.weight)


def store_of(**kwargs: Any) -> Store:
    sizes = {"query.user": ROWS[0], "item": ROWS[1]}
    columns = {"item": ITEM_ROW, **kwargs.pop("item_columns", {})}
    return make_store(EVENTS, n_queries=6, n_items=5, item_columns=columns, table_sizes=sizes, **kwargs)


def built(towers: TwoTower, store: Store | None = None) -> TwoTower:
    store = store or store_of()
    torch.manual_seed(4)
    towers.build(store.schema, store.encoders.table_sizes)
    towers.double()
    towers.connect(pairs_of(EVENTS), store.query, store.item)
    return towers


def naive_layers(layers: int) -> Tensor:
    """1 / (L + 1) sum A^l over the rows of both tables, by loops over the events."""
    R = np.zeros(ROWS)
    for query, item in EVENTS:
        R[query, ITEM_ROW[item]] = 1
    A = np.zeros((sum(ROWS), sum(ROWS)))
    for query in range(ROWS[0]):
        for item in range(ROWS[1]):
            if R[query, item]:
                weight = 1 / np.sqrt(R[query].sum() * R[:, item].sum())
                A[query, ROWS[0] + item] = A[ROWS[0] + item, query] = weight
    power, total = np.eye(len(A)), np.eye(len(A))
    for _ in range(layers):
        power = power @ A
        total = total + power
    return torch.from_numpy(total / (layers + 1))


def tables_of(towers: TwoTower) -> tuple[Table, Table]:
    query, item = towers.all_tables()
    return query, item


def everybody() -> tuple[Features, Features]:
    """Every query and every item of the catalogue, and one without an id."""
    return {"user": torch.tensor([0, 1, 2, 3, 4, 5, -1])}, {"item": torch.from_numpy(np.append(ITEM_ROW, -1))}


def dense(towers: TwoTower, layers: int, weights: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
    """The same vectors, from one matrix product."""
    of_query, of_item = weights or [table.weight for table in tables_of(towers)]
    every = naive_layers(layers) @ torch.cat([of_query, of_item])
    nothing = every.new_zeros(1, DIM)
    return torch.cat([every[:6], nothing]), torch.cat([every[ROWS[0] + torch.from_numpy(ITEM_ROW)], nothing])


# ---------------------------------------------------------------- forward and backward


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("training", [True, False])
def test_vectors_are_the_mean_of_the_layers(layers: int, training: bool) -> None:
    towers = built(TwoTower(dim=DIM, normalise=False, graph=Graph(layers=layers))).train(training)
    queries, items = everybody()
    want = dense(towers, layers)
    assert torch.allclose(towers.encode_query(queries), want[0], atol=1e-14, rtol=0)
    assert torch.allclose(towers.encode_item(items), want[1], atol=1e-14, rtol=0)


@pytest.mark.parametrize("normalise", [True, False])
def test_gradients_reach_every_row(normalise: bool) -> None:
    towers = built(TwoTower(dim=DIM, normalise=normalise, graph=Graph(layers=2)))
    queries, items = {"user": torch.tensor([3, 0, 3])}, {"item": torch.tensor([2, 5])}
    direction = torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    (towers.encode_query(queries) @ towers.encode_item(items).T * direction).sum().backward()
    found = [table.gradient() for table in tables_of(towers)]

    leaves = tuple(table.weight.clone().requires_grad_() for table in tables_of(towers))
    query_QD, item_ID = dense(towers, 2, leaves)  # type: ignore[arg-type]
    query_BD, item_ND = query_QD[[3, 0, 3]], item_ID[[1, 3]]  # rows 2 and 5 are items 1 and 3
    if normalise:
        query_BD, item_ND = (x / x.norm(dim=1, keepdim=True) for x in (query_BD, item_ND))
    (query_BD @ item_ND.T * direction).sum().backward()
    for leaf, touched in zip(leaves, found, strict=True):
        assert touched is not None
        assert touched[0].tolist() == list(range(len(leaf)))
        assert leaf.grad is not None
        assert torch.allclose(touched[1], leaf.grad, atol=1e-14, rtol=0)


def test_items_by_layers_and_their_gradients() -> None:
    """Layer l is A^l [E_query; E_item], and a gradient comes back to the tables by the same powers."""
    towers = built(TwoTower(dim=DIM, graph=Graph(layers=3), normalise=False)).train()
    query, item = (table.weight.clone() for table in tables_of(towers))
    A = 2 * naive_layers(1) - torch.eye(sum(ROWS), dtype=torch.float64)
    start = torch.cat([query, item]).requires_grad_()
    power, expected = start, []
    row = ROWS[0] + torch.from_numpy(ITEM_ROW)
    for _ in range(4):
        expected.append(power[row])
        power = A @ power
    found = towers.item_layers({"item": torch.from_numpy(ITEM_ROW)})
    torch.testing.assert_close(found, torch.stack(expected, 1))
    torch.testing.assert_close(found.mean(1), towers.encode_item({"item": torch.from_numpy(ITEM_ROW)}))

    outer = torch.randn(found.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    (found * outer).sum().backward()
    (torch.stack(expected, 1) * outer).sum().backward()
    assert start.grad is not None
    for table, want in zip(tables_of(towers), start.grad.split(ROWS), strict=True):
        touched = table.gradient()
        assert touched is not None
        torch.testing.assert_close(touched[1], want)


def test_layers_of_items_are_those_of_ids_alone() -> None:
    with pytest.raises(ConfigError, match="vectors by layers of the graph are those of ids alone"):
        built(TwoTower(dim=DIM, graph=Graph(), item=Tower(widths=(3,)))).item_layers({})
    flat = built(TwoTower(dim=DIM)).eval()
    features = {"item": torch.from_numpy(ITEM_ROW)}
    assert torch.equal(flat.item_layers(features)[:, 0], flat.encode_item(features))


def test_ids_hidden_in_training_have_no_vector() -> None:
    towers = built(TwoTower(dim=DIM, normalise=False, graph=Graph(layers=1), item=Tower(id_dropout=0.5)))
    torch.manual_seed(0)
    vectors = towers.encode_item({"item": torch.zeros(1000, dtype=torch.int64)})
    hidden = ~vectors.any(1)
    assert 400 < int(hidden.sum()) < 600
    assert torch.allclose(vectors[~hidden], dense(towers, 1)[1][:1], atol=1e-14, rtol=0)


def test_other_features_are_added_as_they_are() -> None:
    kinds = np.array([0, 1, 0, 1, -1])
    item = {"item": Id(column="item"), "kind": Categorical(column="kind")}
    store = store_of(item=item, item_columns={"kind": kinds})
    store.encoders.table_sizes["item.kind"] = 2
    towers = TwoTower(dim=DIM, normalise=False, graph=Graph(layers=2))
    torch.manual_seed(4)
    towers.build(store.schema, store.encoders.table_sizes)
    towers.double().connect(pairs_of(EVENTS), store.query, store.item)
    user, item_table, kind = towers.all_tables()
    of_kind = torch.cat([kind.weight, torch.zeros(1, DIM, dtype=torch.float64)])[torch.from_numpy(kinds)]
    want = dense(towers, 2, (user.weight, item_table.weight))[1][:5] + of_kind
    assert torch.allclose(towers.eval().encode_item(store.item.take(torch.arange(5))), want, atol=1e-14, rtol=0)


# ---------------------------------------------------------------- one propagation a step, never a stale one


def products(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts how often vectors are passed on from now on."""
    made: list[int] = []
    plain = Adjacency.mean_of_layers

    def counted(self: Adjacency, query_QD: Tensor, item_ID: Tensor, layers: int) -> tuple[Tensor, Tensor]:
        made.append(layers)
        return plain(self, query_QD, item_ID, layers)

    monkeypatch.setattr(Adjacency, "mean_of_layers", counted)
    return made


def test_a_step_passes_on_once_and_back_once(monkeypatch: pytest.MonkeyPatch) -> None:
    towers = built(TwoTower(dim=DIM, graph=Graph(layers=2)))
    queries, items = everybody()
    made = products(monkeypatch)
    query_BD = towers.encode_query(queries)
    towers.eval()
    with torch.no_grad():  # as a sampler looks at the model
        looked_at = towers.encode_item(items)
    towers.train()
    item_ND = towers.encode_item(items)
    assert torch.equal(looked_at, item_ND)
    (query_BD @ item_ND.T).sum().backward()
    assert made == [2, 2]


def test_vectors_follow_the_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    towers = built(TwoTower(dim=DIM, normalise=False, graph=Graph(layers=1)))
    queries, _ = everybody()
    for training in (True, False):
        towers.train(training)
        towers.encode_query(queries).sum()
        for table in tables_of(towers):
            table.gradient()
            table.weight.mul_(2)
        assert torch.allclose(towers.encode_query(queries), dense(towers, 1)[0], atol=1e-14, rtol=0)
    before = towers.encode_query(queries)
    towers.float()
    assert towers.encode_query(queries).dtype == torch.float32
    assert torch.allclose(towers.encode_query(queries).double(), before, atol=1e-6)


def test_every_step_has_leaves_of_its_own() -> None:
    """Even where the tables did not move in between: gradients of a step that is over must not be taken again."""
    towers = built(TwoTower(dim=DIM, graph=Graph(layers=1)))
    queries, _ = everybody()
    gradients = []
    for _ in range(2):
        towers.encode_query(queries)[:, 0].sum().backward()
        found = tables_of(towers)[0].gradient()
        assert found is not None
        gradients.append(found[1])
        assert tables_of(towers)[1].gradient() is not None
    assert torch.equal(*gradients)


def test_a_copy_in_the_middle_of_a_step() -> None:
    towers = built(TwoTower(dim=DIM, normalise=False, graph=Graph(layers=1))).eval()
    queries, items = everybody()
    towers.encode_query(queries)
    other = copy.deepcopy(towers)
    tables_of(other)[0].weight.zero_()
    assert torch.allclose(towers.encode_item(items), dense(towers, 1)[1], atol=1e-14, rtol=0)
    assert torch.allclose(other.encode_item(items), dense(other, 1)[1], atol=1e-14, rtol=0)


# ---------------------------------------------------------------- what is served


def unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=1, keepdim=True)


@pytest.mark.parametrize("layers", [0, 2])
@pytest.mark.parametrize("serve", ["dot", "as_trained"])
def test_served_layers_are_over_the_vectors_as_trained(layers: int, serve: Any) -> None:
    towers = built(TwoTower(dim=DIM, graph=Graph(layers=layers, served_layers=1), serve=serve))
    queries, items = everybody()
    stacked = naive_layers(layers) @ torch.cat([table.weight for table in tables_of(towers)])
    assert torch.allclose(towers.encode_query(queries)[:6], unit(stacked)[:6], atol=1e-14, rtol=0)
    passed_on = naive_layers(1) @ unit(stacked)
    want = unit(passed_on) if serve == "as_trained" else passed_on
    found = towers.encode_query(queries, served=True), towers.encode_item(items, served=True)
    assert torch.allclose(found[0][:6], want[:6], atol=1e-14, rtol=0)
    assert torch.allclose(found[1][:5], want[ROWS[0] + torch.from_numpy(ITEM_ROW)], atol=1e-14, rtol=0)
    assert not found[0][6].any()  # the query without an id
    assert not found[1][5].any()


def test_served_vectors_follow_tables_and_layers() -> None:
    towers = built(TwoTower(dim=DIM, graph=Graph(layers=0, served_layers=1), query=Tower(projection=True)))
    queries, _ = everybody()
    seen = [towers.encode_query(queries, served=True)]
    with torch.no_grad():
        for weight in (tables_of(towers)[1].weight, towers.query.project.weight):
            weight[0] += 1  # type: ignore[operator]
            seen.append(towers.encode_query(queries, served=True))
            assert not torch.allclose(seen[-1], seen[-2])
    assert torch.equal(towers.encode_query(queries, served=True), seen[-1])


def test_dot_products_are_only_served() -> None:
    towers = built(TwoTower(dim=DIM, serve="dot"))
    queries, _ = everybody()
    plain = tables_of(towers)[0].weight[:6]
    assert torch.allclose(towers.encode_query(queries)[:6], unit(plain), atol=1e-14, rtol=0)
    assert torch.equal(towers.encode_query(queries, served=True)[:6], plain)


def test_without_layers_in_training_only_looked_up_rows_get_a_gradient() -> None:
    towers = built(TwoTower(dim=DIM, graph=Graph(layers=0, served_layers=1)))
    towers.encode_query({"user": torch.tensor([3, 1])})[:, 0].sum().backward()
    found = tables_of(towers)[0].gradient()
    assert found is not None
    assert found[0].tolist() == [1, 3]


# ---------------------------------------------------------------- edges


def test_edges_are_distinct_rows_of_the_tables() -> None:
    """Items 1 and 3 share row 2; the pair of weight 0 and the pair without an id are none."""
    item_id, query_id = np.array([0, 2, 1, 2, -1]), np.array([5, 4, 3, 2, 1, 0])
    pairs = pairs_of([(0, 1), (0, 3), (0, 4), (1, 0), (2, 2)], [1, 1, 1, 1, 0])
    assert edges(pairs, query_id, item_id).tolist() == [[4, 5], [0, 2]]


def test_no_edge_is_an_error() -> None:
    with pytest.raises(DataError, match="none of 1 training pairs has an id on both sides"):
        edges(pairs_of([(0, 0)]), np.full(6, -1), np.arange(5))
    towers = TwoTower(dim=DIM, graph=Graph())
    store = store_of()
    towers.build(store.schema, store.encoders.table_sizes)
    with pytest.raises(ConfigError, match="built without training pairs"):
        towers.encode_query({"user": torch.tensor([0])})


# ---------------------------------------------------------------- what is refused


def test_schemas_without_one_id_a_side() -> None:
    def build(**kwargs: Any) -> None:
        store = store_of(**kwargs)
        sizes = {**store.encoders.table_sizes, "query.second": 3, "item.kind": 3, "both": 6}
        TwoTower(dim=DIM, graph=Graph(served_layers=1)).build(store.schema, sizes)

    with pytest.raises(ConfigError, match=r"one Id feature under \[schema.query\], found \[\]"):
        build(query={}, context={"page": Seed(column="page")})
    with pytest.raises(ConfigError, match=r"under \[schema.query\], found \['user', 'second'\]"):
        build(query={"user": Id(column="user"), "second": Id(column="second")})
    with pytest.raises(ConfigError, match=r"under \[schema.item\], found \[\]"):
        build(item={"kind": Categorical(column="kind")})
    with pytest.raises(ConfigError, match="served_layers is 1, which needs towers of ids alone"):
        build(item={"item": Id(column="item"), "kind": Categorical(column="kind")})
    with pytest.raises(ConfigError, match="found 'both' for both"):
        build(query={"user": Id(column="user", table="both")}, item={"item": Id(column="item", table="both")})


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"layers": -1}, "layers is -1"),
        ({"served_layers": -2}, "served_layers is -2"),
        ({"layers": 0}, "it has no layer"),
    ],
)
def test_settings_out_of_range(settings: dict[str, int], named: str) -> None:
    with pytest.raises(ConfigError, match=rf"towers.graph: {named}"):
        Graph(**settings)
