"""What every loss of the union must do."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import typing

import pytest
import torch

from twotower.errors import ConfigError
from twotower.losses import BPR, Losses, Margin, RowLoss, SampledSoftmax
from twotower.part import Facts
from twotower.scoring import Correction, encode

from .oracle import Case, make_case

ALL: tuple[type[RowLoss], ...] = typing.get_args(Losses)
WITHOUT_POSITIVE_CORRECTION = [loss for loss in ALL if not loss.corrects_positive]

every_loss = pytest.mark.parametrize("loss", ALL, ids=lambda loss: loss.__name__)


def value_of(loss: RowLoss, tile: int | None = 3, case: Case | None = None) -> torch.Tensor:
    case = case or make_case(1, batch_of="queries")
    encoded = encode(case.query_BD, lambda row: case.item_MD.index_select(0, row), case.batch, case.candidates)
    value: torch.Tensor
    value, notes = loss(encoded, tile=tile)
    assert set(notes) == {"loss", "alive", "excluded_share"}
    assert len(notes["loss"]) == len(notes["alive"]) == len(case.batch.item_P)
    return value


def test_there_are_losses() -> None:
    assert len(ALL) >= 5


@every_loss
def test_it_says_what_it_is_and_where_it_is_from(loss: type[RowLoss]) -> None:
    text = inspect.getdoc(loss)
    assert text is not None
    assert "Source: " in text
    assert inspect.getdoc(loss) != inspect.getdoc(RowLoss)


@every_loss
def test_its_defaults_work(loss: type[RowLoss]) -> None:
    made = loss()
    assert made.temperature > 0
    assert made.exclude == "known"
    made.setup(Facts(n_items=19, n_queries=7, item_count_M=torch.ones(19), batch_size=7, batch_of="queries"))
    value = value_of(made)
    assert value.dim() == 0
    assert value.isfinite()
    assert torch.allclose(value, value_of(made, None), rtol=1e-9)


@every_loss
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("side", ["query", "item"])
@pytest.mark.parametrize("tile", [None, 3])
def test_what_is_not_finite_is_not_passed_over(loss: type[RowLoss], tile: int | None, side: str, bad: float) -> None:
    """A line of scores that are no numbers is no line without candidates: the loss must tell."""
    case = make_case(1, batch_of="queries")
    with torch.no_grad():
        vectors = case.query_BD if side == "query" else case.item_MD
        vectors[0 if side == "query" else int(case.batch.item_P[0])] = bad
    assert not value_of(loss(), tile, case).isfinite()


@every_loss
def test_its_settings_are_keyword_only_fields(loss: type[RowLoss]) -> None:
    names = {f.name for f in dataclasses.fields(loss)}
    assert {"temperature", "correction", "strength", "exclude", "learn_temperature"} <= names
    with pytest.raises(TypeError):
        loss(0.5)  # type: ignore[call-arg]
    assert all(f"{name}=" in repr(loss()) for name in names)


@every_loss
def test_copies_share_no_state(loss: type[RowLoss]) -> None:
    one = loss(temperature=0.5, learn_temperature=True)
    two = copy.deepcopy(one)
    assert [name for name, _ in one.named_parameters()] == ["log_temperature"]
    with torch.no_grad():
        two.log_temperature.add_(0.25)
    assert torch.as_tensor(one.current_temperature()).item() == pytest.approx(0.5)
    assert torch.as_tensor(two.current_temperature()).item() == pytest.approx(0.5 * torch.tensor(0.25).exp().item())
    assert loss().state_dict() == {}


@every_loss
def test_a_learned_temperature_is_clamped(loss: type[RowLoss]) -> None:
    made = loss(temperature=0.5, learn_temperature=True, min_temperature=0.1, max_temperature=0.9)
    for log_temperature, clamped in ((-100.0, 0.1), (100.0, 0.9)):
        with torch.no_grad():
            made.log_temperature.fill_(log_temperature)
        made.constrain()
        assert torch.as_tensor(made.current_temperature()).item() == pytest.approx(clamped)


@every_loss
@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"temperature": 0.0}, r"loss\.temperature of {}: found 0\.0"),
        ({"temperature": -1.0}, r"loss\.temperature of {}: found -1\.0"),
        ({"temperature": float("nan")}, r"loss\.temperature of {}: found nan"),
        ({"strength": 1.1}, r"loss\.strength of {}: found 1\.1"),
        ({"strength": -0.1}, r"loss\.strength of {}: found -0\.1"),
        ({"exclude": "none", "correction": "negatives"}, r"loss\.exclude of {}"),
        ({"temperature": 3.0, "learn_temperature": True}, r"loss\.temperature of {}: found 3\.0, expected 0\.01 to 2"),
        ({"temperature": 0.5, "learn_temperature": True, "min_temperature": 0.0}, r"loss\.temperature of {}"),
    ],
)
def test_settings_that_can_not_be(loss: type[RowLoss], settings: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigError, match=named.format(loss.__name__)):
        loss(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("loss", WITHOUT_POSITIVE_CORRECTION, ids=lambda loss: loss.__name__)
def test_only_softmax_corrects_its_positive(loss: type[RowLoss]) -> None:
    with pytest.raises(ConfigError, match=rf"loss\.correction of {loss.__name__}: 'all'"):
        loss(correction="all")
    with pytest.raises(ConfigError, match=rf"loss\.exclude of {loss.__name__}: 'none'"):
        loss(exclude="none")


def test_renormalising_needs_corrected_negatives() -> None:
    corrections: tuple[Correction, ...] = ("none", "all")
    for correction in corrections:
        with pytest.raises(ConfigError, match=rf"loss\.renormalise .* found '{correction}'"):
            SampledSoftmax(correction=correction, renormalise=True)
    assert SampledSoftmax(renormalise=True).renormalise


def test_presets() -> None:
    yi, mns, refined = SampledSoftmax.yi2019(), SampledSoftmax.mns2020(), SampledSoftmax.refined2025()
    assert (yi.correction, yi.exclude, yi.renormalise) == ("all", "none", False)
    assert (mns.correction, mns.exclude, mns.renormalise) == ("negatives", "positives", False)
    assert (refined.correction, refined.exclude, refined.renormalise) == ("negatives", "positives", True)


def test_losses_that_compare_pairs_say_so() -> None:
    assert {loss for loss in ALL if loss.per_pair} == {BPR, Margin}
