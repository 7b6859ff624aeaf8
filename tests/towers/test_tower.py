"""Towers: what every kind of feature does to the vector, how features are combined, copies and states."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from twotower.errors import ConfigError
from twotower.records import Features, Ragged
from twotower.schema import (
    Categorical,
    Categories,
    ContextFeature,
    History,
    Id,
    Interactions,
    ItemFeature,
    Number,
    QueryFeature,
    Schema,
    Seed,
    Text,
    Time,
    Vector,
)
from twotower.tables import TableSettings
from twotower.towers import Tower, TwoTower
from twotower.towers.tower import unit_length

DIM = 4
ID = {"item": Id(column="item")}


def schema(
    query: dict[str, QueryFeature] | None = None,
    context: dict[str, ContextFeature] | None = None,
    item: dict[str, ItemFeature] | None = None,
) -> Schema:
    return Schema(
        interactions=Interactions(query="user", item="item", time="time"),
        query={"user": Id(column="user")} if query is None else query,
        context=context or {},
        item=item or {**ID},
    )


def built(towers: TwoTower, of: Schema, sizes: dict[str, int]) -> TwoTower:
    torch.manual_seed(3)
    towers.build(of, sizes)
    return towers


def lists(*values: list[int]) -> Ragged:
    return Ragged(
        offset=torch.tensor([0, *[len(v) for v in values]]).cumsum(0),
        value=torch.tensor([v for row in values for v in row], dtype=torch.int64),
        weight=torch.tensor([1.0 / len(row) for row in values for _ in row]),
    )


# ---------------------------------------------------------------- every kind of feature

EVERYTHING = schema(
    query={
        "user": Id(column="user"),
        "country": Categorical(column="country"),
        "likes": Categories(column="likes"),
        "age": Number(column="age"),
        "income": Number(column="income", transform="quantile", buckets=4),
        "joined": Time(column="joined"),
        "about": Text(columns=("about",), buckets=8),
        "photo": Vector(column="photo", dim=3),
    },
    context={"page": Seed(column="page"), "history": History(k=3), "clicks": Number(column="clicks", transform="log")},
)
SIZES = {
    "query.user": 5, "query.country": 5, "query.likes": 5, "query.income": 4, "query.joined.hour": 24,
    "query.joined.weekday": 7, "query.about": 8, "item": 6,
}  # fmt: skip


def everything() -> Features:
    """Two queries."""
    return {
        "user": torch.tensor([0, 1]),
        "country": torch.tensor([2, 3]),
        "likes": lists([0, 1], [2]),
        "age": torch.tensor([0.5, -1.0]),
        "income": torch.tensor([0, 3]),
        "joined.hour": torch.tensor([23, 0]),
        "joined.weekday": torch.tensor([6, 0]),
        "joined.age": torch.tensor([1.0, 2.0]),
        "about": lists([7, 3], [1, 2]),
        "photo": torch.tensor([[1.0, 2.0, 3.0], [0.0, 1.0, 0.0]]),
        "page": torch.tensor([1, -1]),
        "history": lists([0, 2, 3], [5]),
        "clicks": torch.tensor([0.1, 0.2]),
    }


CHANGED: Features = {
    "user": torch.tensor([4, 1]),
    "country": torch.tensor([-1, 3]),
    "likes": lists([0, 3], [2]),
    "age": torch.tensor([0.6, -1.0]),
    "income": torch.tensor([1, 3]),
    "joined.hour": torch.tensor([22, 0]),
    "joined.weekday": torch.tensor([5, 0]),
    "joined.age": torch.tensor([1.5, 2.0]),
    "about": lists([7, 4], [1, 2]),
    "photo": torch.tensor([[1.0, 2.0, 4.0], [0.0, 1.0, 0.0]]),
    "page": torch.tensor([2, -1]),
    "history": lists([0, 2, 4], [5]),
    "clicks": torch.tensor([0.3, 0.2]),
}


@pytest.mark.parametrize("combine", ["sum", "concat"])
@pytest.mark.parametrize("key", CHANGED)
def test_every_feature_reaches_the_vector_of_its_row_only(key: str, combine: str) -> None:
    query = Tower(combine=combine, widths=(16, DIM))  # type: ignore[arg-type]
    towers = built(TwoTower(dim=DIM, query=query), EVERYTHING, SIZES).eval()
    before = towers.encode_query(everything())
    after = towers.encode_query({**everything(), key: CHANGED[key]})
    assert not torch.allclose(before[0], after[0], atol=1e-4)
    assert torch.allclose(before[1], after[1], atol=1e-6)


def test_every_table_and_layer_gets_a_gradient() -> None:
    query = Tower(combine="concat", widths=(16, DIM), projection=True)
    towers = built(TwoTower(dim=DIM, query=query), EVERYTHING, SIZES)
    (towers.encode_query(everything()) * torch.randn(2, DIM)).sum().backward()
    for name, parameter in towers.query.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name
    for name, table in zip(SIZES, towers.all_tables(), strict=True):
        found = table.gradient()
        assert found is not None, name
        assert found[1].any(), name


# ---------------------------------------------------------------- combining

TWO = schema(item={"item": Id(column="item"), "kind": Categorical(column="kind")})
TWO_SIZES = {"query.user": 3, "item": 4, "item.kind": 2}
TWO_ROWS: Features = {"item": torch.tensor([0, 3, 2]), "kind": torch.tensor([1, 0, -1])}


def tables_of(towers: TwoTower) -> dict[str, Tensor]:
    return dict(zip(TWO_SIZES, (table.weight for table in towers.all_tables()), strict=True))


def test_sum_is_the_sum_of_the_features() -> None:
    towers = built(TwoTower(dim=DIM, normalise=False), TWO, TWO_SIZES).eval()
    tables = tables_of(towers)
    zero = torch.zeros(DIM)
    want = torch.stack(
        [
            tables["item"][0] + tables["item.kind"][1],
            tables["item"][3] + tables["item.kind"][0],
            tables["item"][2] + zero,
        ]
    )
    assert torch.equal(towers.encode_item(TWO_ROWS), want)
    unit = built(TwoTower(dim=DIM), TWO, TWO_SIZES).eval().encode_item(TWO_ROWS)
    assert torch.allclose(unit, want / want.norm(dim=1, keepdim=True))


def test_concat_puts_features_side_by_side() -> None:
    item = Tower(combine="concat", widths=(5, DIM))
    towers = built(TwoTower(dim=DIM, normalise=False, item=item), TWO, TWO_SIZES).eval()
    tables = tables_of(towers)
    x = torch.cat([tables["item"][3], tables["item.kind"][0]])
    first, second = towers.item.layers
    hidden = (first.weight @ x + first.bias).clamp(min=0)  # type: ignore[operator]
    want = second.weight @ hidden + second.bias  # type: ignore[operator]
    assert torch.allclose(towers.encode_item(TWO_ROWS)[1], want, atol=1e-6)


def test_a_projection_starts_as_the_identity() -> None:
    towers = built(TwoTower(dim=DIM, normalise=False, query=Tower(projection=True)), TWO, TWO_SIZES).eval()
    assert torch.equal(towers.encode_query({"user": torch.tensor([2, 0])}), tables_of(towers)["query.user"][[2, 0]])
    assert towers.query.project.weight.requires_grad


def test_widths_that_do_not_meet() -> None:
    towers = TwoTower(dim=8, query=Tower(widths=(16, 4)), item=Tower())
    with pytest.raises(ConfigError, match="query tower ends 4 wide and the item tower 8"):
        towers.build(TWO, TWO_SIZES)


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"id_dropout": -0.1}, "id_dropout is -0.1"),
        ({"widths": (8, 0)}, r"widths are \[8, 0\]"),
        ({"combine": "concat"}, "combine = 'concat'"),
    ],
)
def test_settings_out_of_range(setting: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        Tower(**setting)  # type: ignore[arg-type]


def test_settings_of_a_table_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match=r"towers.tables: \['itme'\] are no tables"):
        TwoTower(dim=DIM, tables={"itme": TableSettings()}).build(TWO, TWO_SIZES)
    with pytest.raises(ConfigError, match=r"towers.dim: found 0"):
        TwoTower(dim=0)


def test_settings_of_a_table_are_its_own() -> None:
    towers = built(TwoTower(dim=DIM, tables={"item.kind": TableSettings(init="zeros", lr_scale=0.5)}), TWO, TWO_SIZES)
    user, item, kind = towers.all_tables()
    assert not kind.weight.any()
    assert user.weight.any()
    assert item.weight.any()
    assert [t.settings.lr_scale for t in (user, item, kind)] == [1.0, 1.0, 0.5]


# ---------------------------------------------------------------- names of tables


@pytest.mark.parametrize("table", ["items", "type", "a.b/c%", "keys", ""])
def test_any_name_will_do_for_a_table(table: str) -> None:
    named = schema(item={"item": Id(column="item", table=table)})
    towers = built(TwoTower(dim=DIM), named, {"query.user": 2, table: 3})
    assert towers.encode_item({"item": torch.tensor([2])}).shape == (1, DIM)


def test_names_that_differ_by_a_dot_are_two_tables() -> None:
    """The hours of ``joined`` are not the categories of ``joined_hour``."""
    alike = schema(
        query={"joined": Time(column="joined", parts=("hour",)), "joined_hour": Categorical(column="hour_name")}
    )
    sizes = {"query.joined.hour": 24, "query.joined_hour": 3, "item": 2}
    towers = built(TwoTower(dim=DIM), alike, sizes)
    assert [len(table.weight) for table in towers.all_tables()] == [24, 3, 2]
    assert towers.encode_query({"joined.hour": torch.tensor([23]), "joined_hour": torch.tensor([2])}).shape == (1, DIM)


# ---------------------------------------------------------------- dropout


def test_id_dropout_hides_its_share_of_ids_in_training_only() -> None:
    """Of 20,000 ids 0.3 are hidden, to 5 deviations of sqrt(20,000 * 0.3 * 0.7) = 65."""
    n = 20_000
    towers = TwoTower(dim=DIM, normalise=False, item=Tower(id_dropout=0.3))
    towers = built(towers, TWO, {**TWO_SIZES, "item": n})
    features: Features = {"item": torch.arange(n), "kind": torch.zeros(n, dtype=torch.int64)}
    vector = towers.encode_item(features)
    of_kind = tables_of(towers)["item.kind"][0]
    hidden = (vector == of_kind).all(1)  # the other feature is all that is left
    assert abs(int(hidden.sum()) - 0.3 * n) < 5 * 65
    with_id = tables_of(towers)["item"] + of_kind
    assert torch.equal(vector[~hidden], with_id[~hidden])

    vector.sum().backward()
    _, item, kind = towers.all_tables()
    touched = item.gradient()
    assert touched is not None
    assert torch.equal(touched[0], (~hidden).nonzero()[:, 0])
    assert kind.gradient() is not None

    assert torch.equal(towers.eval().encode_item(features), with_id)


def test_dropout_is_of_hidden_layers_in_training_only() -> None:
    towers = built(TwoTower(dim=DIM, item=Tower(widths=(32, DIM), dropout=0.5)), TWO, TWO_SIZES)
    assert not torch.equal(towers.encode_item(TWO_ROWS), towers.encode_item(TWO_ROWS))
    towers.eval()
    assert torch.equal(towers.encode_item(TWO_ROWS), towers.encode_item(TWO_ROWS))
    without_layers = built(TwoTower(dim=DIM, item=Tower(dropout=0.5)), TWO, TWO_SIZES)
    assert torch.equal(without_layers.encode_item(TWO_ROWS), without_layers.encode_item(TWO_ROWS))


# ---------------------------------------------------------------- unit length


def test_unit_length_by_arithmetic() -> None:
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0], [0.0, -2.0]], requires_grad=True)
    y = unit_length(x)
    assert torch.allclose(y, torch.tensor([[0.6, 0.8], [0.0, 0.0], [0.0, -1.0]]))
    y.sum().backward()
    # d/dx1 of (x1 + x2) / |x| at (3, 4): (1 - 0.6 * 1.4) / 5
    assert x.grad is not None
    assert torch.allclose(x.grad, torch.tensor([[0.032, -0.024], [0.0, 0.0], [0.5, 0.0]]))


def test_unit_length_gradient() -> None:
    x = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.autograd.gradcheck(unit_length, (x,))


def test_what_is_not_finite_stays_so() -> None:
    y = unit_length(torch.tensor([[float("nan"), 1.0], [float("inf"), 1.0]]))
    assert y.isnan().any(1).all()


# ---------------------------------------------------------------- shared tables, states, copies


def test_the_gradient_of_a_table_both_towers_share() -> None:
    """Seed items, histories and items read one table; its gradient is that of a dense matrix."""
    shared = schema(query={}, context={"page": Seed(column="page"), "history": History(k=3)})
    towers = built(TwoTower(dim=DIM), shared, {"item": 6}).double()
    weights = torch.tensor([0.5, 0.5, 1.0], dtype=torch.float64)
    history = Ragged(offset=torch.tensor([0, 2, 3]), value=torch.tensor([1, 4, 4]), weight=weights)
    page, item = torch.tensor([1, 5]), torch.tensor([4, 0])
    (table,) = towers.all_tables()
    dense = table.weight.clone().requires_grad_()

    query_BD = towers.encode_query({"page": page, "history": history})
    (query_BD * towers.encode_item({"item": item})).sum().backward()
    sums = torch.stack([dense[1] + (dense[1] + dense[4]) / 2, dense[5] + dense[4]])
    unit = [x / x.norm(dim=1, keepdim=True) for x in (sums, dense[item])]
    (unit[0] * unit[1]).sum().backward()

    found = table.gradient()
    assert found is not None
    assert found[0].tolist() == [0, 1, 4, 5]
    assert dense.grad is not None
    assert torch.allclose(found[1], dense.grad[found[0]], atol=1e-12, rtol=0)
    assert not dense.grad[[2, 3]].any()


def states(towers: TwoTower) -> Iterator[tuple[str, Tensor]]:
    yield from towers.state_dict().items()


def test_the_state_holds_tables_and_layers() -> None:
    def make() -> TwoTower:
        return TwoTower(dim=DIM, item=Tower(widths=(6, DIM), projection=True))

    one = built(make(), TWO, TWO_SIZES)
    shapes = sorted(tuple(value.shape) for _, value in states(one))
    tables = [(3, DIM), (4, DIM), (2, DIM), (3,), (4,), (2,)]  # vectors, and which rows were met
    assert shapes == sorted([*tables, (6, DIM), (6,), (DIM, 6), (DIM,), (DIM, DIM)])

    other = make()
    torch.manual_seed(99)
    other.build(TWO, TWO_SIZES)
    assert not torch.equal(one.eval().encode_item(TWO_ROWS), other.eval().encode_item(TWO_ROWS))
    other.load_state_dict(one.state_dict())
    assert torch.equal(one.encode_item(TWO_ROWS), other.encode_item(TWO_ROWS))


def test_copies_share_nothing() -> None:
    one = built(TwoTower(dim=DIM, item=Tower(widths=(DIM,))), TWO, TWO_SIZES)
    two = copy.deepcopy(one)
    mine = {value.data_ptr() for _, value in states(one)}
    assert not mine & {value.data_ptr() for _, value in states(two)}
    before = one.eval().encode_item(TWO_ROWS)
    for table in two.all_tables():
        table.weight.zero_()
    two.eval()
    assert torch.equal(one.encode_item(TWO_ROWS), before)
    assert torch.equal(two.encode_query({"user": torch.tensor([1])}), torch.zeros(1, DIM))  # reads its own tables


def test_a_recipe_has_no_state() -> None:
    assert TwoTower().state_dict() == {}
