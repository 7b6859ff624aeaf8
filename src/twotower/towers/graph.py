"""The graph of the training pairs: id vectors passed on between the queries and the items that met.

An *edge* is a distinct training pair, as rows of the two id tables: ids that share a row share its edges.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.columns import Column
from ..errors import ConfigError, DataError
from ..part import Changes, Part
from ..records import Ragged, running_sum
from ..tables import Table, where_present

Side = Literal["query", "item"]
_AT: dict[Side, int] = {"query": 0, "item": 1}


def edges(pairs: Ragged, query_id: Column, item_id: Column) -> Tensor:
    """[2, E] distinct rows of the two id tables, sorted by query, of ``pairs``: the items of every query, weight 0 not.

    ``query_id`` and ``item_id`` are the id columns of the catalogues. Raises DataError where no pair has both ids.
    """
    query_P, item_P = pairs.owner(), pairs.value
    if pairs.weight is not None and not bool(pairs.weight.all()):
        query_P, item_P = query_P[pairs.weight > 0], item_P[pairs.weight > 0]
    query_E, item_E = (
        torch.from_numpy(np.asarray(column).astype(np.int64)).index_select(0, row_P)
        for column, row_P in ((query_id, query_P), (item_id, item_P))
    )
    there_E = (query_E >= 0) & (item_E >= 0)
    if not bool(there_E.any()):
        raise DataError(
            f"towers: none of {len(there_E)} training pairs has an id on both sides, which a graph is made of: leave "
            "towers.graph and towers.start out"
        )
    n_items = int(item_E.max()) + 1
    key_E = (query_E[there_E] * n_items + item_E[there_E]).unique()
    return torch.stack([key_E // n_items, key_E % n_items])


class Adjacency:
    """R~ = D_q^-1/2 R D_i^-1/2 times vectors of either side; R is 1 at every edge, D counts the edges of a row.

    A product is a bag of vectors for each row: on a CPU half the time of torch's sparse matrices.
    """

    def __init__(self, edge_2E: Tensor, rows: tuple[int, int], dtype: torch.dtype = torch.float32) -> None:
        """``edge_2E`` are distinct and sorted by query; ``rows`` is how many the tables of both sides have."""
        query_E, item_E = edge_2E.long()
        self.n_edges_Q, self.n_edges_I = query_E.bincount(minlength=rows[0]), item_E.bincount(minlength=rows[1])
        weight_E = (self.n_edges_Q[query_E] * self.n_edges_I[item_E]).to(dtype).rsqrt()
        by_item = item_E.sort(stable=True).indices
        self._items = Ragged(offset=running_sum(self.n_edges_Q), value=item_E, weight=weight_E)
        self._queries = Ragged(offset=running_sum(self.n_edges_I), value=query_E[by_item], weight=weight_E[by_item])
        self.dtype, self.device = weight_E.dtype, weight_E.device

    def to_queries(self, item_ID: Tensor) -> Tensor:
        """R~ x: vectors of items -> [rows of queries, D]."""
        return _weighted_sums(self._items, item_ID)

    def to_items(self, query_QD: Tensor) -> Tensor:
        """R~^T x: vectors of queries -> [rows of items, D]."""
        return _weighted_sums(self._queries, query_QD)

    def mean_of_layers(self, query_QD: Tensor, item_ID: Tensor, layers: int) -> tuple[Tensor, Tensor]:
        """1 / (L + 1) sum_{l=0..L} A^l [query; item], A = [[0, R~], [R~^T, 0]]."""
        total_QD, total_ID = query_QD, item_ID
        for _ in range(layers):
            query_QD, item_ID = self.to_queries(item_ID), self.to_items(query_QD)
            total_QD, total_ID = total_QD + query_QD, total_ID + item_ID
        return total_QD / (layers + 1), total_ID / (layers + 1)


def _weighted_sums(lists: Ragged, vector_RD: Tensor) -> Tensor:
    return F.embedding_bag(lists.value, vector_RD, lists.offset[:-1], mode="sum", per_sample_weights=lists.weight)


class _MeanOfLayers(torch.autograd.Function):
    """A is symmetric, and so is the mean of its powers: the gradient is passed on as the vectors were."""

    @staticmethod
    def forward(
        ctx: Any, adjacency: Adjacency, layers: int, query_QD: Tensor, item_ID: Tensor
    ) -> tuple[Tensor, Tensor]:
        ctx.adjacency, ctx.layers = adjacency, layers
        return adjacency.mean_of_layers(query_QD, item_ID, layers)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *outer: Tensor) -> tuple[None, None, Tensor, Tensor]:
        return None, None, *ctx.adjacency.mean_of_layers(outer[0], outer[1], ctx.layers)


class _ItemLayers(torch.autograd.Function):
    """[I, L + 1, D] item vectors of every layer; the gradient of layer l comes back by l products, nested as Horner's
    rule nests powers."""

    @staticmethod
    def forward(ctx: Any, adjacency: Adjacency, layers: int, query_QD: Tensor, item_ID: Tensor) -> Tensor:
        ctx.adjacency, ctx.layers, ctx.n_queries = adjacency, layers, len(query_QD)
        found = [item_ID]
        for _ in range(layers):
            query_QD, item_ID = adjacency.to_queries(item_ID), adjacency.to_items(query_QD)
            found.append(item_ID)
        return torch.stack(found, 1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *outer: Tensor) -> tuple[None, None, Tensor, Tensor]:
        of_layer = outer[0].unbind(1)
        of_item_ID = of_layer[-1].contiguous()
        of_query_QD = of_item_ID.new_zeros(ctx.n_queries, of_item_ID.shape[1])
        for of_ID in reversed(of_layer[:-1]):
            of_query_QD, of_item_ID = (
                ctx.adjacency.to_queries(of_item_ID),
                ctx.adjacency.to_items(of_query_QD) + of_ID,
            )
        return None, None, of_query_QD, of_item_ID


@dataclass(frozen=True, kw_only=True)
class _Propagated:
    """Vectors of all rows, of both sides or by layers, and the state of what they were made of."""

    vectors: tuple[Tensor, ...]
    sources: tuple[Tensor, ...]
    versions: tuple[int, ...]
    """Of the sources: one more whenever they are changed in place."""
    leaves: tuple[Tensor, ...] = ()
    """What gradients flow to, where any do."""

    def still_holds(self, sources: tuple[Tensor, ...]) -> bool:
        """Whether the sources are as they were."""
        return len(sources) == len(self.sources) and all(
            source is kept and source._version == version
            for source, kept, version in zip(sources, self.sources, self.versions, strict=True)
        )


class Graph(Part):
    """An id's vector is the mean over layers of what its neighbours in the graph passed on.

    [u; v] = 1 / (L + 1) sum_{l=0..L} A^l [E_query; E_item], A = D^-1/2 [[0, R], [R^T, 0]] D^-1/2, with E the two id
    tables, R the distinct training pairs and D how many of them each row has. Each side needs exactly one Id feature,
    in a table of its own; other features join the id's vector as they do without a graph. A row without an edge has
    its layer 0 alone.

    A training step with layers makes the vectors of all rows once, for both sides, and its gradient reaches all rows.

    Source: He et al., SIGIR 2020 (LightGCN), equations 7 and 8 with alpha = 1 / (L + 1).
    """

    layers: int = 3
    """Layers in training; 0 trains the tables as if there were no graph."""
    served_layers: int = 0
    """Further layers, over the vectors as trained, when they are measured and served; for towers of ids alone. One of
    them is worth epochs to a model that was trained for a few, and spoils one that has converged."""

    edge_2E: Tensor = field(init=False)

    def __post_init__(self) -> None:
        for name, value in (("layers", self.layers), ("served_layers", self.served_layers)):
            if value < 0:
                raise ConfigError(f"towers.graph: {name} is {value}, expected 0 or more")
        if self.layers == 0 and self.served_layers == 0:
            raise ConfigError("towers.graph: it has no layer, in training or served: set layers, or leave graph out")

    def build(self, query: Table, item: Table) -> None:
        """For these id tables; the edges come later, by ``connect`` or from a checkpoint."""
        self.tables = (query, item)  # in a tuple: they belong to the towers
        self._set_edges(torch.empty(2, 0, dtype=torch.int32, device=query.weight.device))

    def connect(self, edge_2E: Tensor) -> None:
        """The edges, as ``edges`` makes them."""
        self._set_edges(edge_2E.to(self.edge_2E))

    def make_room(self, shapes: dict[str, torch.Size]) -> None:
        """For as many edges as were saved."""
        self._set_edges(self.edge_2E.new_zeros(shapes.get("edge_2E", self.edge_2E.shape)))

    def carry(self, saved: Mapping[str, Tensor], changes: Changes) -> None:
        """Nothing: the edges are those of the pairs it was connected with, today's."""

    def _set_edges(self, edge_2E: Tensor) -> None:
        self.register_buffer("edge_2E", edge_2E)
        self._adjacency: Adjacency | None = None
        self._trained: _Propagated | None = None
        self._layered: _Propagated | None = None
        self._served: _Propagated | None = None

    def __getstate__(self) -> dict[str, Any]:
        """A copy makes its own products: what these were made of is not the copy's."""
        return {**self.__dict__, "_adjacency": None, "_trained": None, "_layered": None, "_served": None}

    def look_up(self, side: Side, row: Tensor) -> Tensor:
        """[n] rows of the id table -> [n, D]; zeros where the row is -1."""
        if self.layers == 0:
            return self.tables[_AT[side]].look_up(row)
        vector_RD = self._propagated()[_AT[side]]
        return where_present(row, lambda present: F.embedding(present, vector_RD), vector_RD)

    def item_layers(self, row: Tensor) -> Tensor:
        """[n] rows of the id table -> [n, L + 1, D], what the mean of ``look_up`` is taken of.

        With a gradient it costs a propagation of its own; without, one for as long as the tables stay as they are.
        """
        if self.training and torch.is_grad_enabled():
            self._propagated()
            assert self._trained is not None
            return self._item_layers(self._trained.leaves).index_select(0, row)
        sources = tuple(table.weight for table in self.tables)
        found = self._layered
        if found is None or not found.still_holds(sources):
            with torch.no_grad():
                found = self._layered = _Propagated(
                    vectors=(self._item_layers(sources),),
                    sources=sources,
                    versions=tuple(weight._version for weight in sources),
                )
        return found.vectors[0].index_select(0, row)

    def _item_layers(self, start: tuple[Tensor, ...]) -> Tensor:
        """[I, L + 1, D] from the vectors of both tables."""
        made: Tensor = _ItemLayers.apply(self.adjacency(start[0]), self.layers, *start)  # type: ignore[no-untyped-call]
        return made

    def _propagated(self) -> tuple[Tensor, Tensor]:
        """Vectors of all rows of both sides: made once for as long as the tables stay as they are."""
        query, item = self.tables
        sources = (query.weight, item.weight)
        with_gradient = self.training and torch.is_grad_enabled()
        found = self._trained
        if found is None or not found.still_holds(sources) or (with_gradient and not self._awaited(found)):
            start = (query.whole(), item.whole())
            vectors = _MeanOfLayers.apply(self.adjacency(query.weight), self.layers, *start)  # type: ignore[no-untyped-call]
            found = self._trained = _Propagated(
                vectors=vectors,
                sources=sources,
                versions=tuple(weight._version for weight in sources),
                leaves=start if with_gradient else (),
            )
        query_QD, item_ID = found.vectors
        return (query_QD, item_ID) if with_gradient else (query_QD.detach(), item_ID.detach())

    def _awaited(self, found: _Propagated) -> bool:
        """Whether the optimiser's next step will look at the gradients of these vectors."""
        return bool(found.leaves) and all(map(Table.awaits, self.tables, found.leaves))

    @torch.no_grad()
    def serve(
        self,
        side: Side,
        row: Tensor,
        trained: Callable[[Side, Tensor], Tensor],
        sources: tuple[Tensor, ...],
    ) -> Tensor:
        """[n] rows of the id table -> [n, D] after ``served_layers``, zeros where the row is -1.

        ``trained`` makes the vectors of rows of a side, out of ``sources``.
        """
        found = self._served
        if found is None or not found.still_holds(sources):
            rows = [torch.arange(len(table.weight), device=row.device) for table in self.tables]
            vectors = (trained("query", rows[0]), trained("item", rows[1]))
            found = self._served = _Propagated(
                vectors=self.adjacency(vectors[0]).mean_of_layers(*vectors, self.served_layers),
                sources=sources,
                versions=tuple(source._version for source in sources),
            )
        vector_RD = found.vectors[_AT[side]]
        return where_present(row, lambda present: vector_RD.index_select(0, present), vector_RD)

    def adjacency(self, like: Tensor) -> Adjacency:
        """The normalised edges on the device and of the type of ``like``, made once."""
        if not self.edge_2E.shape[1]:
            raise ConfigError("towers.graph: the towers were built without training pairs: connect them first")
        made = self._adjacency
        if made is None or (made.dtype, made.device) != (like.dtype, like.device):
            query, item = self.tables
            made = self._adjacency = Adjacency(self.edge_2E, (len(query.weight), len(item.weight)), like.dtype)
        return made
