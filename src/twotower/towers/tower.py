"""Features of one side become one vector: look-ups and bags, summed or side by side, then ReLU layers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.columns import Columns
from ..errors import ConfigError
from ..part import Part
from ..records import Features, Ragged
from ..schema import Feature, Id, Number, Schema, Text, Time, Vector, table_of
from ..tables import Table, TableSettings
from .graph import Adjacency, Graph, Side, edges
from .svd_start import SvdStart


class Tower(Part):
    """Features -> one vector [n, D] -> layers.

    ``sum`` adds the vectors of all features (they share one width); ``concat`` puts them side by side for the first
    layer. ``widths`` are the layers, ReLU between them and none on top; without layers and with ``sum`` an id-only
    tower is matrix factorisation. ``projection`` adds a linear map that starts as the identity.

    Source: Yi et al., RecSys 2019, section 3 (towers); Yang et al., WWW 2020, section 3.3 (no activation on top).
    """

    widths: tuple[int, ...] = ()
    dropout: float = 0.0
    """Share of a hidden layer's units dropped in training."""
    id_dropout: float = 0.0
    """Share of ids hidden from the tower in training, so that an item can live from its other features."""
    combine: Literal["sum", "concat"] = "sum"
    projection: bool = False

    def __post_init__(self) -> None:
        for name, value in (("dropout", self.dropout), ("id_dropout", self.id_dropout)):
            if not 0 <= value < 1:
                raise ConfigError(f"towers: {name} is {value}, expected 0 up to but not 1")
        if any(width < 1 for width in self.widths):
            raise ConfigError(f"towers: widths are {list(self.widths)}, expected positive numbers")
        if self.combine == "concat" and not self.widths:
            raise ConfigError(
                "towers: combine = 'concat' needs layers to mix the features: set widths, or combine = 'sum'"
            )

    def build(
        self,
        side: Side,
        features: list[tuple[str, str, Feature]],
        tables: nn.ModuleDict,
        dim: int,
        graph: Graph | None = None,
    ) -> int:
        """Make the layers over ``features`` (side, name, feature); returns the width of the tower's output."""
        self.side = side
        self.tables = [tables]  # in a list: the tables belong to the pair of towers, not to this one
        self.graph = [graph]  # and so does the graph
        self.look_ups: list[tuple[str, str, bool]] = []  # (key in Features, table, whether it is an id)
        self.numbers: list[str] = []
        self.vectors: list[str] = []
        self.vector_layers = nn.ModuleList()
        for feature_side, name, feature in features:
            self._add(feature_side, name, feature, dim)
        if self.numbers:
            self.number_layer = nn.Linear(len(self.numbers), dim)
        n_inputs = len(self.look_ups) + len(self.vectors) + bool(self.numbers)
        width = dim * n_inputs if self.combine == "concat" else dim
        self.layers = nn.ModuleList()
        for next_width in self.widths:
            self.layers.append(nn.Linear(width, next_width))
            width = next_width
        if self.projection:
            self.project = nn.Linear(width, width, bias=False)
            nn.init.eye_(self.project.weight)
        return width

    def _add(self, side: str, name: str, feature: Feature, dim: int) -> None:
        if isinstance(feature, Time):
            for part in feature.parts:
                if part == "age":
                    self.numbers.append(f"{name}.age")
                else:
                    self.look_ups.append((f"{name}.{part}", f"{side}.{name}.{part}", False))
        elif isinstance(feature, Vector):
            self.vectors.append(name)
            self.vector_layers.append(nn.Linear(feature.dim, dim))
        elif isinstance(feature, Number) and feature.transform != "quantile":
            self.numbers.append(name)
        else:
            table = table_of(side, name, feature)
            assert table is not None
            self.look_ups.append((name, table, isinstance(feature, Id)))

    def forward(self, features: Features) -> Tensor:
        """[n, D] vectors, not normalised."""
        x = self._combine([self._look_up(features[key], table, is_id) for key, table, is_id in self.look_ups], features)
        for i, layer in enumerate(self.layers):
            x = layer(x)
            if i < len(self.layers) - 1:
                x = F.dropout(F.relu(x), self.dropout, self.training)
        return self.project(x) if self.projection else x

    def _combine(self, parts: list[Tensor], features: Features) -> Tensor:
        for key, layer in zip(self.vectors, self.vector_layers, strict=True):
            parts.append(layer(features[key]))
        if self.numbers:
            parts.append(self.number_layer(torch.stack([_column(features, key) for key in self.numbers], 1)))
        if self.combine == "concat":
            return torch.cat(parts, 1)
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        return total

    def _look_up(self, column: Tensor | Ragged, table_name: str, is_id: bool) -> Tensor:
        table, graph = self.tables[0][_module_name(table_name)], self.graph[0]
        assert isinstance(table, Table)
        if isinstance(column, Ragged):
            return table.bag(column)
        if is_id and self.training and self.id_dropout > 0:
            hidden = torch.rand(len(column), device=column.device) < self.id_dropout
            column = column.masked_fill(hidden, -1)
        if is_id and graph is not None:
            return graph.look_up(self.side, column)
        return table.look_up(column)


def _module_name(table: str) -> str:
    """A table's name as that of a module: two names stay two (``a.b``, ``a_b``), and none is a method's (``items``)."""
    return "/" + table.replace("%", "%25").replace("/", "%2F").replace(".", "/")


def _column(features: Features, key: str) -> Tensor:
    column = features[key]
    assert isinstance(column, Tensor)
    return column


class TwoTower(Part):
    """The pair: s(x, y) = <u(x), v(y)>, both of unit length by default.

    Source: Yi et al., RecSys 2019, section 3.
    """

    dim: int = 64
    """Width of every embedding table."""
    query: Tower = field(default_factory=Tower)
    item: Tower = field(default_factory=Tower)
    normalise: bool = True
    """Divide both vectors by their length: the dot product is the cosine."""
    serve: Literal["as_trained", "dot"] = "as_trained"
    """Whether vectors that are measured and served are normalised too, or compared by dot product."""
    start: SvdStart | None = None
    """Where the tables of ids start; at random without it."""
    graph: Graph | None = None
    """Passes vectors of ids on along the training pairs."""
    tables: dict[str, TableSettings] = field(default_factory=dict)
    """Settings of tables by name, where they differ from the default."""

    def __post_init__(self) -> None:
        if self.dim < 1:
            raise ConfigError(f"towers.dim: found {self.dim}, expected at least 1")

    def build(self, schema: Schema, table_sizes: dict[str, int]) -> None:
        """Make tables and layers for the features of a schema."""
        unknown = sorted(set(self.tables) - set(table_sizes))
        if unknown:
            raise ConfigError(f"towers.tables: {unknown} are no tables of the schema, which has {sorted(table_sizes)}")
        features = schema.features()
        of_text = {table_of(*feature) for feature in features if isinstance(feature[2], Text)}
        self.weights = nn.ModuleDict(
            {
                _module_name(name): Table(
                    rows,
                    self.dim,
                    self.tables.get(name, TableSettings()),
                    of=None if name in of_text else "values",
                )
                for name, rows in table_sizes.items()
            }
        )
        self.id_tables = None if self.start is None and self.graph is None else _id_tables(features)
        if self.graph is not None:
            self._check_graph(self.graph, [f"{side}.{name}" for side, name, _ in features])
            self.graph.build(*self._tables_of_ids())
        item = [f for f in features if f[0] == "item"]
        query = [f for f in features if f[0] != "item"]
        query_width = self.query.build("query", query, self.weights, self.dim, self.graph)
        item_width = self.item.build("item", item, self.weights, self.dim, self.graph)
        if query_width != item_width:
            raise ConfigError(
                f"towers: the query tower ends {query_width} wide and the item tower {item_width}: give "
                "towers.query.widths and towers.item.widths the same last number (without them it is towers.dim)"
            )
        self.width = query_width

    def _check_graph(self, graph: Graph, features: list[str]) -> None:
        if graph.served_layers and len(features) > 2:
            raise ConfigError(
                f"towers.graph: served_layers is {graph.served_layers}, which needs towers of ids alone, found the "
                f"features {features}: leave served_layers out"
            )

    def connect(self, pairs: Ragged, query: Columns, item: Columns) -> None:
        """Take the training pairs (the items of every query) and the encoded catalogues, for ``start`` and ``graph``.

        Nothing is done without these settings. Raises DataError where no pair has both ids.
        """
        if self.id_tables is None:
            return
        (query_name, _), (item_name, _) = self.id_tables
        edge_2E = edges(pairs, query[query_name], item[item_name])
        of_query, of_item = self._tables_of_ids()
        if self.graph is not None:
            self.graph.connect(edge_2E)
        if self.start is not None:
            weight, rows = of_query.weight, (len(of_query.weight), len(of_item.weight))
            made = Adjacency(edge_2E, rows, weight.dtype) if self.graph is None else self.graph.adjacency(weight)
            self.start.apply(made, of_query, of_item)

    def _tables_of_ids(self) -> tuple[Table, Table]:
        assert self.id_tables is not None
        (_, query), (_, item) = self.id_tables
        of_query, of_item = self.weights[_module_name(query)], self.weights[_module_name(item)]
        assert isinstance(of_query, Table)
        assert isinstance(of_item, Table)
        return of_query, of_item

    @property
    def device(self) -> torch.device:
        """Where the vectors are made."""
        return next(iter(self.buffers())).device

    def table(self, name: str) -> Table:
        """The embedding table of this name in the schema."""
        found = self.weights[_module_name(name)]
        assert isinstance(found, Table)
        return found

    def all_tables(self) -> list[Table]:
        """Every embedding table."""
        return [table for table in self.weights.values() if isinstance(table, Table)]

    def settle(self) -> None:
        """Values that training never met get the mean vector of those it did, for good (``Table.settle``)."""
        for table in self.all_tables():
            table.settle()

    @contextmanager
    def settled(self) -> Iterator[None]:
        """``settle`` for as long as the block lasts, to measure in the middle of training."""
        with ExitStack() as stack:
            for table in self.all_tables():
                stack.enter_context(table.settled())
            yield

    def encode_query(self, features: Features, *, served: bool = False) -> Tensor:
        """[B, D] as a loss compares them, or as they are ``served``: by ``serve``, after ``graph.served_layers``."""
        return self._encode("query", features, served)

    def encode_item(self, features: Features, *, served: bool = False) -> Tensor:
        """[n, D], likewise."""
        return self._encode("item", features, served)

    def item_layers(self, features: Features) -> Tensor:
        """[n, H, D] vectors of items by layers of the graph, not normalised; without a graph their vectors, H = 1."""
        if self.graph is None or self.graph.layers == 0:
            return self.encode_item(features)[:, None]
        if len(self.item.look_ups) > 1 or self.item.widths or self.item.numbers or self.item.vectors:
            raise ConfigError(
                "towers: vectors by layers of the graph are those of ids alone, but the item tower has further "
                "features or layers: use layers of the graph with an item tower of one Id feature"
            )
        row = features[self._id_name("item")]
        assert isinstance(row, Tensor)
        return self.graph.item_layers(row)

    def _encode(self, side: Side, features: Features, served: bool) -> Tensor:
        if served and self.graph is not None and self.graph.served_layers:
            row = features[self._id_name(side)]
            assert isinstance(row, Tensor)
            vector = self.graph.serve(side, row, self._encode_rows, (*self.parameters(), *self.buffers()))
        else:
            vector = (self.query if side == "query" else self.item)(features)
        return unit_length(vector) if self.normalise and not (served and self.serve == "dot") else vector

    def _encode_rows(self, side: Side, row: Tensor) -> Tensor:
        """Vectors of rows of an id table, as a loss compares them; for towers of ids alone."""
        return self._encode(side, {self._id_name(side): row}, served=False)

    def _id_name(self, side: Side) -> str:
        assert self.id_tables is not None
        return self.id_tables[0 if side == "query" else 1][0]


IdTable = tuple[str, str]
"""An Id feature's name and its table's."""


def _id_tables(features: list[tuple[str, str, Feature]]) -> tuple[IdTable, IdTable]:
    """The ids of both sides. Raises ConfigError unless each side has one, in two tables."""
    found: list[IdTable] = []
    for side in ("query", "item"):
        ids = [(name, table_of(s, name, f)) for s, name, f in features if s == side and isinstance(f, Id)]
        if len(ids) != 1:
            raise ConfigError(
                f"towers: start and graph need one Id feature under [schema.{side}], found {[n for n, _ in ids]}: "
                "declare one, or leave towers.start and towers.graph out"
            )
        name, table = ids[0]
        assert table is not None
        found.append((name, table))
    if found[0][1] == found[1][1]:
        raise ConfigError(
            f"towers: start and graph need a table for the ids of each side, found {found[0][1]!r} for both: give "
            "their features two tables, or leave towers.start and towers.graph out"
        )
    return found[0], found[1]


def unit_length(x_nD: Tensor) -> Tensor:
    """x / |x|, row by row; a row of zeros stays zero, with a gradient of zero."""
    result: Tensor = _UnitLength.apply(x_nD)  # type: ignore[no-untyped-call]
    return result


class _UnitLength(torch.autograd.Function):
    """d (x / |x|) = (g - y <y, g>) / |x|, in three passes over the vectors (autograd's own takes ten)."""

    @staticmethod
    def forward(ctx: Any, x_nD: Tensor) -> Tensor:
        length_n1 = torch.linalg.vector_norm(x_nD, dim=1, keepdim=True)
        inverse_n1 = torch.where(length_n1 > 0, length_n1.reciprocal(), 0.0)
        y_nD = x_nD * inverse_n1
        ctx.save_for_backward(y_nD, inverse_n1)
        return y_nD

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *outer: Tensor) -> Tensor:
        y_nD, inverse_n1 = ctx.saved_tensors
        along_n1 = torch.linalg.vecdot(y_nD, outer[0])[:, None]  # einsum makes n products of 1 x D by D x 1
        return torch.addcmul(outer[0], y_nD, along_n1, value=-1).mul_(inverse_n1)
