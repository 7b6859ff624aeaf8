"""Scores of the current model without gradient, and never more item vectors at a time than a tile holds.

Scores are plain products: cosines where towers normalise, and not divided by a temperature.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..records import Batch
from ..scoring import pair_dots
from .sampler import Look
from .tiles import tiles

_CHUNK = 2**16
"""Items of the whole catalogue that are encoded at a time."""


def scores(query_CD: Tensor, row: Tensor, look: Look) -> Tensor:
    """[C, N] or [C, K] scores of C queries with the same rows [N], or with each one's own [C, K]."""
    item_U, slot = row.unique(return_inverse=True)
    return dots(query_CD, look.items(item_U), slot)


def layer_scores(query_CD: Tensor, row_CK: Tensor, look: Look) -> Tensor:
    """[C, K, H] scores of C queries with each one's own rows, layer by layer of the graph; H = 1 without one."""
    item_U, slot_CK = row_CK.unique(return_inverse=True)
    layers = look.layers(item_U).unbind(1)
    return torch.stack([dots(query_CD, vector_UD, slot_CK) for vector_UD in layers], 2)


def dots(query_CD: Tensor, table_TD: Tensor, slot: Tensor) -> Tensor:
    """[C, N] or [C, K] scores of C queries with the vectors at places [N] or [C, K] of a table.

    An item's score is the same number whichever way it is asked for.
    """
    slot_CK = slot.expand(len(query_CD), slot.shape[-1])
    at_a_time = tiles(len(query_CD), slot_CK.shape[1] * query_CD.shape[1])
    return torch.cat([(table_TD[slot_CK[at]] @ query_CD[at, :, None])[:, :, 0] for at in at_a_time])


def pair_scores(of_T: Tensor, row_T: Tensor, look: Look) -> Tensor:
    """[T] scores of queries of the batch, which rise, with an item each."""
    item_U, slot_T = row_T.unique(return_inverse=True)
    return pair_dots(look.query_BD, look.items(item_U), of_T, slot_T)


def positive_scores(batch: Batch, look: Look) -> Tensor:
    """[B] mean score of each query's positives in the batch; 0 without any."""
    score_P = pair_scores(batch.of_P, batch.item_P, look)
    count_B = batch.positives().lengths()
    return score_P.new_zeros(len(count_B)).index_add_(0, batch.of_P, score_P) / count_B.clamp(min=1)


def snapshot(item_MD: Tensor, look: Look) -> Tensor:
    """Fills [M, D] with the current vectors of all items, some at a time, and returns it."""
    for row in torch.arange(len(item_MD), device=item_MD.device).split(_CHUNK):
        item_MD[row] = look.items(row).to(item_MD.dtype)
    return item_MD
