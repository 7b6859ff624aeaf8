"""MixGCF: what is made lies between the positive and the hardest candidates, layer by layer."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from twotower.errors import ConfigError
from twotower.negatives import DNS, Catalogue, MixGCF, Uniform, propose
from twotower.part import Facts
from twotower.records import Batch, Block
from twotower.scoring import encode

from .conftest import RunLook, batch_of, batch_of_queries
from .laws import M, ready

H, D = 3, 4


@dataclass
class LayeredLook(RunLook):
    """A model of a graph: an item's vector is the mean of its layers."""

    layer_MHD: Tensor = field(default_factory=lambda: torch.zeros(M, H, D))

    def items(self, row: Tensor) -> Tensor:
        return self.layer_MHD[row].mean(-2)

    def layers(self, row: Tensor) -> Tensor:
        return self.layer_MHD[row]


@pytest.fixture
def layered(look: RunLook) -> LayeredLook:
    rng = torch.Generator().manual_seed(5)
    made = torch.randn(M, H, D, generator=rng, dtype=torch.float64)
    return LayeredLook(look.frequency, query_BD=torch.randn(4, D, generator=rng, dtype=torch.float64), layer_MHD=made)


def own_vectors(block: Block, batch: Batch, look: RunLook) -> tuple[Tensor, Tensor]:
    """[B, K, D] vectors as the loss sees them, and their gradient's leaf [M, H, D]."""
    leaf = look.layers(torch.arange(M)).clone().requires_grad_()
    blocks = type("C", (), {"blocks": (block,), "positive_log_count_P": torch.zeros(len(batch.item_P))})
    encoded = encode(look.query_BD, lambda row: leaf[row].mean(1), batch, blocks, layers=lambda row: leaf[row])
    return encoded.table_TD[encoded.slot_BK], leaf


def test_each_layer_has_the_candidate_whose_mix_scores_highest(facts: Facts, layered: LayeredLook) -> None:
    """Against loops over queries, layers and candidates: of the whole catalogue, less what each query knows."""
    batch = batch_of([3, 0, 7, 11])
    (block,) = ready(MixGCF(of=Catalogue()), facts).draw(batch, layered, torch.Generator().manual_seed(2))
    assert block.mix is not None
    made_BKD, _ = own_vectors(block, batch, layered)
    for b, positive in enumerate(batch.item_P.tolist()):
        expected = torch.zeros(D, dtype=torch.float64)
        for h in range(H):
            share = float(block.mix.share_BKH[b, 0, h])
            assert 0 < share < 1
            best = None
            for candidate in set(range(M)) - {positive}:
                mixed = share * layered.layer_MHD[positive, h] + (1 - share) * layered.layer_MHD[candidate, h]
                score = float(mixed @ layered.query_BD[b])
                if best is None or score > best[0]:
                    best = (score, candidate, mixed)
            assert best is not None
            assert int(block.mix.second_BKH[b, 0, h]) == best[1]
            expected = expected + best[2] / H
        torch.testing.assert_close(made_BKD[b, 0].detach(), expected, rtol=1e-6, atol=1e-6)


def test_gradients_reach_every_layer_by_its_share(facts: Facts, layered: LayeredLook) -> None:
    batch = batch_of([3, 0, 7, 11])
    (block,) = ready(MixGCF(), facts).draw(batch, layered, torch.Generator().manual_seed(2))
    assert block.mix is not None
    made_BKD, leaf = own_vectors(block, batch, layered)
    made_BKD.sum().backward()
    expected = torch.zeros(M, H)
    for b in range(4):
        for h in range(H):
            share = block.mix.share_BKH[b, 0, h]
            expected[block.mix.first_BK[b, 0], h] += share / H
            expected[block.mix.second_BKH[b, 0, h], h] += (1 - share) / H
    assert leaf.grad is not None
    torch.testing.assert_close(leaf.grad[:, :, 0].float(), expected)


def test_shares_are_uniform_up_to_mixing(facts: Facts, layered: LayeredLook) -> None:
    batch, sampler = batch_of([3, 0, 7, 11]), ready(MixGCF(n=200, mixing=0.5), facts)
    blocks = sampler.draw(batch, layered, torch.Generator().manual_seed(0))
    share = torch.cat([block.mix.share_BKH.flatten() for block in blocks if block.mix is not None])
    assert len(share) == 200 * 4 * H
    assert float(share.max()) <= 0.5
    assert float(share.mean()) == pytest.approx(0.25, abs=4 * 0.5 / 12**0.5 / len(share) ** 0.5)


def test_without_mixing_and_graph_it_is_dns(facts: Facts, look: RunLook) -> None:
    rng = torch.Generator().manual_seed(1)
    look.query_BD, look.item_MD = torch.randn(4, 3, generator=rng), torch.randn(M, 3, generator=rng)
    batch, pool = batch_of([3, 0, 7, 11]), Catalogue()
    (mixed,) = ready(MixGCF(of=pool, mixing=0.0), facts).draw(batch, look, torch.Generator())
    (hard,) = ready(DNS(of=pool), facts).draw(batch, look, torch.Generator())
    assert mixed.mix is not None
    assert mixed.mix.second_BKH[:, :, 0].tolist() == hard.row.tolist()
    made_BKD, _ = own_vectors(mixed, batch, look)
    torch.testing.assert_close(made_BKD[:, 0].detach(), look.items(hard.row[:, 0]))


def test_positives_are_the_querys_own_and_each_is_taken(facts: Facts, layered: LayeredLook) -> None:
    batch = batch_of_queries([[0, 1], [2, 3, 4], [5], [6]])
    blocks = ready(MixGCF(n=60), facts).draw(batch, layered, torch.Generator().manual_seed(0))
    first_BK = torch.cat([block.mix.first_BK for block in blocks if block.mix is not None], 1)
    assert [sorted(set(own)) for own in first_BK.tolist()] == [[0, 1], [2, 3, 4], [5], [6]]


def test_a_query_that_knows_all_candidates_has_no_negative(facts: Facts, layered: LayeredLook) -> None:
    batch = batch_of_queries([list(range(M)), [0], [1], [2]])
    (block,) = propose(ready(MixGCF(), facts), batch, layered, torch.Generator()).blocks
    assert block.log_weight[:, 0].tolist() == [-torch.inf, 0, 0, 0]


def test_mixing_is_a_share() -> None:
    with pytest.raises(ConfigError, match=r"mixing is 1\.5, expected a share"):
        MixGCF(mixing=1.5)
    with pytest.raises(ConfigError, match="MixGCF: n is 0"):
        MixGCF(n=0, of=Uniform(4))
