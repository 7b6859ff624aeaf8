"""A pair of trained towers as two ONNX graphs, built node by node: no tracing, and equal towers give equal files.

    tables.bin    every embedding table as it is served, which both graphs map into memory
    query.onnx    encoded columns of n queries -> vector [n, D]
    item.onnx     encoded columns of n items   -> vector [n, D]

A graph has an input for each encoded column of its side, by its name:

    rows      NAME                        int64 [n], -1 for missing
    numbers   NAME                        float32 [n], or [n, d]
    lists     NAME.row and NAME.weight    int64 and float32 [n, L], shorter lists filled up with -1, of any weight

A table ends with a row of zeros beyond its own, which is what -1 takes in ONNX: a missing value needs no mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import ConfigError
from ..schema import Categories, History, Id, Schema, Text, table_of
from ..towers import Tower, TwoTower
from .served_tower import list_inputs

if TYPE_CHECKING:
    from onnx import NodeProto, TensorProto

TABLES = "tables.bin"
OUTPUT = "vector"
OPSET, IR_VERSION = 18, 10
"""What is written: read by every ONNX Runtime since 1.18."""
_ALIGNED = 4096
"""Where a table may start: whole pages, so that it can be mapped."""

Side = Literal["query", "item"]


@torch.no_grad()
def write_towers(towers: TwoTower, schema: Schema, folder: Path) -> None:
    """Write both towers, settled and as they are served, into ``folder``.

    Raises ConfigError where the library ``onnx`` is not installed.
    """
    _onnx()
    towers.eval()
    with (folder / TABLES).open("wb") as file:
        tables = _Tables(file)
        for side in ("query", "item"):
            _Graph(towers, schema, side, tables).save(folder / f"{side}.onnx")


def _onnx() -> Any:
    try:
        import onnx
    except ModuleNotFoundError as error:
        raise ConfigError(
            "export: towers are written by the library onnx, which is not installed: pip install 'twotower[export]'"
        ) from error
    return onnx


class _Tables:
    """Tables written one after the other, each once, and what a graph says of where one is."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self._written: dict[str, TensorProto] = {}

    def place_of(self, name: str, weight_RD: Tensor) -> TensorProto:
        """A table [R, D] and a row of zeros, as an initializer whose data is in the file."""
        if name not in self._written:
            onnx = _onnx()
            weight = weight_RD.detach().float().cpu().numpy()
            start = -(-self._file.tell() // _ALIGNED) * _ALIGNED
            self._file.write(bytes(start - self._file.tell()))
            for part in (weight, np.zeros((1, weight.shape[1]))):
                np.ascontiguousarray(part, "<f4").tofile(self._file)
            place = {"location": TABLES, "offset": start, "length": self._file.tell() - start}
            tensor = onnx.TensorProto(name=name, data_type=onnx.TensorProto.FLOAT)
            tensor.dims.extend((len(weight) + 1, weight.shape[1]))
            tensor.data_location = onnx.TensorProto.EXTERNAL
            for key, value in place.items():
                tensor.external_data.add(key=key, value=str(value))
            self._written[name] = tensor
        return self._written[name]


class _Graph:
    """One tower as ONNX: the operations of ``Tower.forward`` and ``TwoTower.encode_*``, in their order."""

    def __init__(self, towers: TwoTower, schema: Schema, side: Side, tables: _Tables) -> None:
        self._towers, self._side, self._tables = towers, side, tables
        self._helper = _onnx().helper
        self._nodes: list[NodeProto] = []
        self._inputs: list[Any] = []
        self._initializers: dict[str, TensorProto] = {}
        self._lists = {name for _, name, f in schema.features() if isinstance(f, Categories | Text | History)}
        tower = towers.query if side == "query" else towers.item
        if towers.graph is not None and towers.graph.served_layers:
            last = self._gather(*self._served_ids(schema))
        else:
            last = self._layers(tower, self._combined(tower))
            if towers.normalise and towers.serve != "dot":
                last = self._unit_length(last)
        self._node("Identity", last, named=OUTPUT)

    def save(self, path: Path) -> None:
        """Write the checked graph. Its tables lie beside it."""
        onnx = _onnx()
        output = self._helper.make_tensor_value_info(OUTPUT, onnx.TensorProto.FLOAT, ["n", self._towers.width])
        graph = self._helper.make_graph(
            self._nodes, f"{self._side} tower", self._inputs, [output], list(self._initializers.values())
        )
        model = self._helper.make_model(
            graph, opset_imports=[self._helper.make_opsetid("", OPSET)], producer_name="twotower", ir_version=IR_VERSION
        )
        path.write_bytes(model.SerializeToString(deterministic=True))
        onnx.checker.check_model(str(path), full_check=True)

    # ------------------------------------------------------------ features

    def _combined(self, tower: Tower) -> str:
        parts = [self._look_up(key, table, is_id) for key, table, is_id in tower.look_ups]
        for key, layer in zip(tower.vectors, tower.vector_layers, strict=True):
            assert isinstance(layer, torch.nn.Linear)
            parts.append(self._linear(self._input(key, width=layer.in_features), layer, f"vector {key}"))
        if tower.numbers:
            columns = [self._node("Unsqueeze", self._input(key, number=True), self._axis(1)) for key in tower.numbers]
            stacked = columns[0] if len(columns) == 1 else self._node("Concat", *columns, axis=1)
            parts.append(self._linear(stacked, tower.number_layer, "numbers"))
        if len(parts) == 1:
            return parts[0]
        if tower.combine == "concat":
            return self._node("Concat", *parts, axis=1)
        total = parts[0]
        for part in parts[1:]:
            total = self._node("Add", total, part)
        return total

    def _look_up(self, key: str, table: str, is_id: bool) -> str:
        weight_RD = self._towers.table(table).weight
        if key in self._lists:
            return self._bag(key, table, weight_RD)
        graph = self._towers.graph
        if is_id and graph is not None and graph.layers:
            rows = torch.arange(len(weight_RD), device=weight_RD.device)
            return self._gather(key, f"{table} passed on", graph.look_up(self._side, rows))
        return self._gather(key, table, weight_RD)

    def _served_ids(self, schema: Schema) -> tuple[str, str, Tensor]:
        """The id feature of a tower of ids alone, and every row's vector after ``graph.served_layers``."""
        features = schema.query if self._side == "query" else schema.item
        ((name, feature),) = ((n, f) for n, f in features.items() if isinstance(f, Id))
        table = table_of(self._side, name, feature)
        assert table is not None
        weight = self._towers.table(table).weight
        encode = self._towers.encode_query if self._side == "query" else self._towers.encode_item
        vector_RD = encode({name: torch.arange(len(weight), device=weight.device)}, served=True)
        return name, f"{table} served", vector_RD

    def _gather(self, key: str, name: str, weight_RD: Tensor) -> str:
        table = self._table(name, weight_RD)
        return self._node("Gather", table, self._input(key), axis=0)

    def _bag(self, key: str, name: str, weight_RD: Tensor) -> str:
        """Weighted sums: [n, 1, L] times [n, L, D]."""
        table = self._table(name, weight_RD)
        rows, weights = self._list_input(key)
        vectors = self._node("Gather", table, rows, axis=0)
        product = self._node("MatMul", self._node("Unsqueeze", weights, self._axis(1)), vectors)
        return self._node("Squeeze", product, self._axis(1))

    # ------------------------------------------------------------ layers

    def _layers(self, tower: Tower, x: str) -> str:
        for at, layer in enumerate(tower.layers):
            x = self._linear(x, layer, f"layer {at}")
            if at < len(tower.layers) - 1:
                x = self._node("Relu", x)
        return self._linear(x, tower.project, "projection") if tower.projection else x

    def _linear(self, x: str, layer: Any, name: str) -> str:
        values = [self._constant(f"{name} weight", layer.weight.detach().float().cpu().numpy())]
        if layer.bias is not None:
            values.append(self._constant(f"{name} bias", layer.bias.detach().float().cpu().numpy()))
        return self._node("Gemm", x, *values, transB=1)

    def _unit_length(self, x: str) -> str:
        """x / |x|; a row of zeros stays zero."""
        return self._node("LpNormalization", x, axis=1, p=2)

    # ------------------------------------------------------------ what a graph is made of

    def _node(self, kind: str, *of: str, named: str | None = None, **attributes: int) -> str:
        name = named or f"{kind} {len(self._nodes)}"
        self._nodes.append(self._helper.make_node(kind, list(of), [name], name=name, **attributes))
        return name

    def _input(self, key: str, *, width: int | None = None, number: bool = False) -> str:
        proto = _onnx().TensorProto
        kind = proto.FLOAT if number or width is not None else proto.INT64
        self._declare(key, kind, ["n"] if width is None else ["n", width])
        return key

    def _list_input(self, key: str) -> tuple[str, str]:
        proto, shape = _onnx().TensorProto, ["n", f"length of {key}"]
        rows, weights = list_inputs(key)
        self._declare(rows, proto.INT64, shape)
        self._declare(weights, proto.FLOAT, shape)
        return rows, weights

    def _declare(self, name: str, kind: int, shape: Sequence[str | int]) -> None:
        self._inputs.append(self._helper.make_tensor_value_info(name, kind, shape))

    def _axis(self, axis: int) -> str:
        return self._constant(f"axis {axis}", np.array([axis], np.int64))

    def _constant(self, name: str, value: NDArray[Any]) -> str:
        if name not in self._initializers:
            self._initializers[name] = _onnx().numpy_helper.from_array(value, name)
        return name

    def _table(self, name: str, weight_RD: Tensor) -> str:
        self._initializers[f"table {name}"] = placed = _onnx().TensorProto()
        placed.CopyFrom(self._tables.place_of(name, weight_RD))
        placed.name = f"table {name}"
        return f"table {name}"
