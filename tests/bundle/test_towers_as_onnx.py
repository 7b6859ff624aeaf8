"""Towers as ONNX: every feature and every setting gives the vectors that PyTorch gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray

from tests.towers.test_tower import DIM, EVERYTHING, ID, SIZES, everything, schema
from twotower.bundle.served_tower import ServedTower
from twotower.bundle.towers_as_onnx import TABLES, write_towers
from twotower.data.columns import Column, RaggedArray
from twotower.errors import ArtifactError
from twotower.records import Features, Ragged
from twotower.schema import Categorical, Categories, Id, Schema
from twotower.towers import Graph, Tower, TwoTower

pytest.importorskip("onnxruntime")

WIDE = Tower(combine="concat", widths=(16, 2 * DIM), projection=True)
ITEM = Tower(widths=(2 * DIM,))


def columns(features: Features) -> dict[str, Column]:
    found: dict[str, Column] = {}
    for name, column in features.items():
        if isinstance(column, Ragged):
            weight = None if column.weight is None else column.weight.numpy()
            found[name] = RaggedArray(offset=column.offset.numpy(), value=column.value.numpy(), weight=weight)
        else:
            found[name] = column.numpy()
    return found


def missing() -> Features:
    """A query of which nothing is known."""
    features: Features = {}
    for name, column in everything().items():
        if isinstance(column, Ragged):
            none = torch.zeros(0)
            features[name] = Ragged(offset=torch.tensor([0, 0]), value=none.long(), weight=none)
        else:
            features[name] = column[:1] * 0 if column.is_floating_point() else torch.tensor([-1])
    return features


def written(towers: TwoTower, of: Schema, folder: Path) -> tuple[ServedTower, ServedTower]:
    towers.eval()
    for parameter in towers.parameters():  # projections start as the identity and biases small: tell them apart
        torch.nn.init.normal_(parameter, std=0.3)
    write_towers(towers, of, folder)
    return ServedTower(folder / "query.onnx"), ServedTower(folder / "item.onnx")


def far(found: NDArray[np.float32], want: torch.Tensor) -> float:
    assert found.shape == tuple(want.shape)
    return float(np.abs(found - want.numpy()).max(initial=0))


@pytest.mark.parametrize(
    "towers",
    [
        TwoTower(dim=DIM),
        TwoTower(dim=DIM, normalise=False),
        TwoTower(dim=DIM, serve="dot"),
        TwoTower(dim=DIM, query=Tower(projection=True), item=Tower(projection=True)),
        TwoTower(dim=DIM, query=Tower(widths=(16, 2 * DIM), dropout=0.5), item=Tower(widths=(2 * DIM,))),
        TwoTower(dim=DIM, query=WIDE, item=ITEM),
        TwoTower(dim=DIM, query=Tower(id_dropout=0.9)),
    ],
    ids=["sum", "raw", "dot", "projection", "layers", "concat", "id_dropout"],
)
def test_every_feature_and_setting(towers: TwoTower, tmp_path: Path) -> None:
    torch.manual_seed(0)
    towers.build(EVERYTHING, SIZES)
    query, item = written(towers, EVERYTHING, tmp_path)
    for features, n in ((everything(), 2), (missing(), 1)):
        with torch.no_grad():
            want = towers.encode_query(features, served=True)
        assert far(query(columns(features), n), want) < 1e-6
    rows: Features = {"item": torch.tensor([5, -1, 0])}
    with torch.no_grad():
        want = towers.encode_item(rows, served=True)
    assert far(item(columns(rows), 3), want) < 1e-6
    assert (want[0] != want[2]).any()


def test_unknown_of_everything_is_a_row_of_zeros_not_of_nan(tmp_path: Path) -> None:
    towers = TwoTower(dim=DIM)
    towers.build(schema(), {"query.user": 3, "item": 4})
    query, _ = written(towers, schema(), tmp_path)
    assert query({"user": np.array([-1])}, 1).tolist() == [[0.0] * DIM]


@pytest.mark.parametrize("graph", [Graph(layers=2), Graph(layers=0, served_layers=2), Graph(layers=1, served_layers=1)])
def test_a_graph_is_in_the_tables(graph: Graph, tmp_path: Path) -> None:
    torch.manual_seed(0)
    towers = TwoTower(dim=DIM, graph=graph)
    towers.build(schema(), {"query.user": 3, "item": 4})
    graph.connect(torch.tensor([[0, 0, 1, 2], [0, 1, 1, 3]]))
    query, item = written(towers, schema(), tmp_path)
    of_query, of_item = torch.tensor([2, 0, -1, 1]), torch.tensor([3, 2, 1, -1, 0])
    assert far(query({"user": of_query.numpy()}, 4), towers.encode_query({"user": of_query}, served=True)) < 1e-6
    assert far(item({"item": of_item.numpy()}, 5), towers.encode_item({"item": of_item}, served=True)) < 1e-6


def test_a_graph_beside_other_features_passes_ids_alone_on(tmp_path: Path) -> None:
    torch.manual_seed(0)
    of = schema(item={**ID, "kind": Categorical(column="kind")})
    graph = Graph(layers=2)
    towers = TwoTower(dim=DIM, graph=graph)
    towers.build(of, {"query.user": 3, "item": 4, "item.kind": 2})
    graph.connect(torch.tensor([[0, 0, 1, 2], [0, 1, 1, 3]]))
    _, item = written(towers, of, tmp_path)
    rows: Features = {"item": torch.tensor([3, 0]), "kind": torch.tensor([1, -1])}
    assert far(item(columns(rows), 2), towers.encode_item(rows, served=True)) < 1e-6


def test_lists_of_any_length_in_any_number(tmp_path: Path) -> None:
    """Longer than what is filled up at a time, and more rows than one chunk has."""
    of = schema(query={"likes": Categories(column="likes")})
    towers = TwoTower(dim=DIM)
    towers.build(of, {"query.likes": 50, "item": 4})
    query, _ = written(towers, of, tmp_path)
    generator = np.random.default_rng(0)
    length = generator.integers(0, 4, 5000)
    length[17] = 70_000
    value = generator.integers(0, 50, length.sum())
    weight = generator.random(length.sum()).astype(np.float32)
    lists = RaggedArray.of_lengths(length, value, weight)
    offset, row, weights = (torch.from_numpy(a) for a in (lists.offset, value, weight))
    want = towers.encode_query({"likes": Ragged(offset=offset, value=row, weight=weights)}, served=True)
    assert far(query({"likes": lists}, 5000), want) < 1e-5
    assert query({"likes": lists.take(np.zeros(0, np.int64))}, 0).shape == (0, DIM)


def test_both_towers_map_one_file_in_which_a_shared_table_is_once(tmp_path: Path) -> None:
    """Two id tables of 3 and 4 rows of 4 floats and their zeros, on a page each; items are read by both towers."""
    of = EVERYTHING
    towers = TwoTower(dim=DIM)
    towers.build(of, SIZES)
    written(towers, of, tmp_path)
    last = (SIZES["item"] + 1) * DIM * 4
    assert (tmp_path / TABLES).stat().st_size <= (len(SIZES) - 1) * 4096 + max(last, 25 * DIM * 4)
    for side in ("query", "item"):
        proto = onnx.load(str(tmp_path / f"{side}.onnx"), load_external_data=False)
        tables = [t for t in proto.graph.initializer if t.name.startswith("table ")]
        assert all(t.data_location == onnx.TensorProto.EXTERNAL for t in tables)
    assert (tmp_path / "item.onnx").stat().st_size < 2000


def test_equal_towers_give_equal_files(tmp_path: Path) -> None:
    found = []
    for name in ("a", "b"):
        torch.manual_seed(1)
        towers = TwoTower(dim=DIM, query=WIDE, item=ITEM)
        towers.build(EVERYTHING, SIZES)
        (tmp_path / name).mkdir()
        written(towers, EVERYTHING, tmp_path / name)
        found.append([(tmp_path / name / file).read_bytes() for file in ("query.onnx", "item.onnx", TABLES)])
    assert found[0] == found[1]


def test_a_file_that_is_no_tower(tmp_path: Path) -> None:
    (tmp_path / "query.onnx").write_bytes(b"nothing")
    with pytest.raises(ArtifactError, match=r"query\.onnx: ONNX Runtime can't read it"):
        ServedTower(tmp_path / "query.onnx")


def test_a_table_name_may_be_any_text(tmp_path: Path) -> None:
    of = schema(item={"item": Id(column="item", table="a/b c.d")})
    towers = TwoTower(dim=DIM)
    towers.build(of, {"query.user": 2, "a/b c.d": 3})
    _, item = written(towers, of, tmp_path)
    want = towers.encode_item({"item": torch.tensor([2])}, served=True)
    assert far(item({"item": np.array([2])}, 1), want) < 1e-6
