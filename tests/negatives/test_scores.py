"""Scores of the current model, against loops."""

from __future__ import annotations

import pytest
import torch

from twotower.negatives import scores as module
from twotower.negatives import tiles
from twotower.negatives.scores import layer_scores, pair_scores, positive_scores, scores, snapshot

from .conftest import RunLook, batch_of_queries
from .laws import M


@pytest.fixture
def seeing(look: RunLook) -> RunLook:
    rng = torch.Generator().manual_seed(0)
    look.query_BD, look.item_MD = torch.randn(4, 3, generator=rng), torch.randn(M, 3, generator=rng)
    return look


class Layered(RunLook):
    """Layer h is h + 1 times the item's vector."""

    def layers(self, row: torch.Tensor) -> torch.Tensor:
        return torch.stack([self.item_MD[row], 2 * self.item_MD[row]], -2)


@pytest.mark.parametrize("most", [2**22, 20, 1])
def test_scores_are_products_whatever_is_held_at_a_time(
    most: int, seeing: RunLook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiles, "MOST", most)
    want_BM = (seeing.query_BD.double() @ seeing.item_MD.double().T).float()
    row_N, row_BK = torch.tensor([3, 0, 3, 11, 7]), torch.tensor([[1, 1, 2], [5, 0, 11], [4, 3, 2], [9, 9, 9]])
    assert torch.allclose(scores(seeing.query_BD, row_N, seeing), want_BM[:, row_N], atol=1e-6)
    own_BK = scores(seeing.query_BD, row_BK, seeing)
    assert torch.allclose(own_BK, want_BM.gather(1, row_BK), atol=1e-6)
    layered = Layered(seeing.frequency, seeing.query_BD, seeing.item_MD)
    assert torch.allclose(layer_scores(seeing.query_BD, row_BK, layered), torch.stack([own_BK, 2 * own_BK], 2))
    assert scores(seeing.query_BD[:0], row_BK[:0], seeing).shape == (0, 3)


def test_positives_are_scored_by_their_query_and_meaned(seeing: RunLook) -> None:
    batch = batch_of_queries([[3, 5], [0], [], [1, 7, 1]])
    want_BM = (seeing.query_BD.double() @ seeing.item_MD.double().T).float()
    score_P = pair_scores(batch.of_P, batch.item_P, seeing)
    assert torch.allclose(score_P, want_BM[[0, 0, 1, 3, 3, 3], [3, 5, 0, 1, 7, 1]], atol=1e-6)
    mean_B = [float(want_BM[0, [3, 5]].mean()), float(want_BM[1, 0]), 0.0, float(want_BM[3, [1, 7, 1]].mean())]
    assert positive_scores(batch, seeing).tolist() == pytest.approx(mean_B, abs=1e-6)


def test_a_snapshot_holds_every_item(seeing: RunLook, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CHUNK", 5)
    assert torch.equal(snapshot(torch.zeros(M, 3), seeing), seeing.item_MD)
