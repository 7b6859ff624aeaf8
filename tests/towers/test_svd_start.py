"""The closed-form start against numpy's SVD of the dense matrix."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.stores import make_store
from twotower.errors import ConfigError
from twotower.records import Ragged
from twotower.tables import Table, TableSettings
from twotower.towers import SvdStart, TwoTower
from twotower.towers.graph import Adjacency

N_QUERIES, N_ITEMS, DIM = 40, 30, 5


def random_edges(share: float = 0.2, seed: int = 3) -> np.ndarray:
    """[N_QUERIES, N_ITEMS] true where there is an edge; the last query and the last item have none."""
    there = np.random.default_rng(seed).random((N_QUERIES, N_ITEMS)) < share
    there[-1] = there[:, -1] = False
    return there


def normalised(there: np.ndarray) -> np.ndarray:
    of_query, of_item = there.sum(1), there.sum(0)
    matrix = np.zeros(there.shape)
    for query, item in zip(*np.nonzero(there), strict=True):
        matrix[query, item] = 1 / np.sqrt(of_query[query] * of_item[item])
    return matrix


def adjacency_of(there: np.ndarray) -> Adjacency:
    return Adjacency(torch.from_numpy(np.stack(np.nonzero(there))), there.shape, torch.float64)


def tables(deviation: tuple[float, float] = (0.5, 0.02)) -> tuple[Table, Table]:
    torch.manual_seed(0)
    query, item = (
        Table(rows, DIM, TableSettings(deviation=d), of="values").double()
        for rows, d in zip((N_QUERIES, N_ITEMS), deviation, strict=True)
    )
    return query, item


def test_it_is_the_truncated_svd() -> None:
    """With power iterations enough; what they leave falls with (S[D + oversampling] / S[D]) ** (2 iterations)."""
    there = random_edges()
    left, value, right = np.linalg.svd(normalised(there))
    torch.manual_seed(1)
    found = SvdStart(power_iterations=60).decompose(adjacency_of(there), DIM)
    assert np.allclose(found[1], value[:DIM], atol=1e-9)
    product = found[0] * found[1] @ found[2].T
    assert np.allclose(product, left[:, :DIM] * value[:DIM] @ right[:DIM], atol=1e-7)
    for vectors in (found[0], found[2]):
        assert np.allclose(vectors.T @ vectors, np.eye(DIM), atol=1e-9)


def test_one_power_iteration_is_near() -> None:
    """The product is at most a tenth worse than the best of its rank, with the oversampling of the default."""
    there = random_edges()
    matrix = normalised(there)
    best = np.sqrt((np.linalg.svd(matrix, compute_uv=False)[DIM:] ** 2).sum())
    for seed in range(5):
        torch.manual_seed(seed)
        left, value, right = SvdStart().decompose(adjacency_of(there), DIM)
        error = np.linalg.norm(matrix - (left * value @ right.T).numpy())
        assert best <= error + 1e-12 < 1.1 * best


def test_tables_start_there_at_their_own_scale() -> None:
    """The scores are those of U S V^T, times one number; ids without an edge keep what they had, and count as cold."""
    there = random_edges()
    query, item = tables()
    before = query.weight[-1].clone(), item.weight[-1].clone()
    SvdStart(power_iterations=60).apply(adjacency_of(there), query, item)
    left, value, right = np.linalg.svd(normalised(there))
    want = (left[:, :DIM] * value[:DIM] @ right[:DIM])[:-1, :-1]
    found = (query.weight @ item.weight.T).numpy()[:-1, :-1]
    scale = (found * want).sum() / (want * want).sum()
    assert scale > 0
    assert np.allclose(found, scale * want, atol=1e-8)
    for table, kept, deviation in zip((query, item), before, (0.5, 0.02), strict=True):
        assert torch.equal(table.weight[-1], kept)
        assert table.weight[:-1].square().mean().sqrt().item() == pytest.approx(deviation)
        assert table.met_R.tolist() == [True] * (len(table.weight) - 1) + [False]


def test_columns_beyond_the_rank_stay_random() -> None:
    """Two blocks of ones have rank 2, whatever the dimension."""
    there = np.zeros((N_QUERIES, N_ITEMS), bool)
    there[:20, :10] = there[20:, 10:] = True
    query, item = tables()
    before = query.weight.clone()
    left, value, right = SvdStart().decompose(adjacency_of(there), DIM)
    assert torch.allclose(value, torch.ones(2, dtype=torch.float64), atol=1e-9)
    assert np.allclose(left * value @ right.T, normalised(there), atol=1e-9)
    SvdStart().apply(adjacency_of(there), query, item)
    assert torch.equal(query.weight[:, 2:], before[:, 2:])
    assert not torch.isclose(query.weight[:, :2], before[:, :2]).any()


def test_towers_start_from_the_training_pairs_alone() -> None:
    """``connect`` is given the training pairs; the store's other events are not looked at."""

    def started(events: list[tuple[int, int]]) -> Tensor:
        store = make_store(events, n_queries=4, n_items=4)
        towers = TwoTower(dim=2, start=SvdStart())
        torch.manual_seed(0)
        towers.build(store.schema, store.encoders.table_sizes)
        offset = torch.tensor([0, 2, 3, 4, 4])
        towers.connect(Ragged(offset=offset, value=torch.tensor([0, 1, 1, 2])), store.query, store.item)
        return torch.cat([table.weight for table in towers.all_tables()])

    training = [(0, 0), (0, 1), (1, 1), (2, 2)]
    assert torch.equal(started(training), started([*training, (3, 3), (0, 3), (3, 0)]))


@pytest.mark.parametrize("setting", ["power_iterations", "oversampling"])
def test_settings_out_of_range(setting: str) -> None:
    with pytest.raises(ConfigError, match=rf"towers.start: {setting} is -1"):
        SvdStart(**{setting: -1})
