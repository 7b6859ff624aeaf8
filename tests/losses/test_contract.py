"""What every loss of the union must do."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import typing

import pytest
import torch

from twotower.errors import ConfigError
from twotower.losses import (
    BPR,
    AdapTau,
    AdaptiveMargin,
    AdaptiveTemperature,
    HierarchicalSoftmax,
    Loss,
    Losses,
    Margin,
    RowLoss,
    SampledSoftmax,
    Warp,
)
from twotower.part import Facts
from twotower.scoring import Correction, encode

from .oracle import Case, make_case

ALL: tuple[type[Loss], ...] = typing.get_args(Losses)
ROW = [loss for loss in ALL if issubclass(loss, RowLoss)]
TEMPERED = [loss for loss in ROW if loss not in (AdaptiveMargin, AdapTau)]
"""Losses whose temperature may be set."""
WITHOUT_POSITIVE_CORRECTION = [loss for loss in ROW if not loss.corrects_positive]

every_loss = pytest.mark.parametrize("loss", ALL, ids=lambda loss: loss.__name__)
every_row_loss = pytest.mark.parametrize("loss", ROW, ids=lambda loss: loss.__name__)
every_tempered_loss = pytest.mark.parametrize("loss", TEMPERED, ids=lambda loss: loss.__name__)

FACTS = Facts(
    n_items=19,
    n_queries=7,
    item_count_M=torch.ones(19),
    batch_size=7,
    batch_of="queries",
    query_count_Q=torch.ones(7, dtype=torch.int64),
    width=4,
)


def set_up(loss: type[Loss]) -> Loss:
    made = loss()
    made.setup(FACTS)
    return made


def value_of(loss: Loss, tile: int | None = 3, case: Case | None = None) -> torch.Tensor:
    torch.manual_seed(0)  # of losses that draw
    case = case or make_case(1, batch_of="queries")
    encoded = encode(case.query_BD, lambda row: case.item_MD.index_select(0, row), case.batch, case.candidates)
    value: torch.Tensor
    value, notes = loss(encoded, tile=tile)
    assert {"loss", "alive", "excluded_share"} <= set(notes)
    assert len(notes["loss"]) == len(notes["alive"]) == len(case.batch.item_P)
    return value


def test_there_are_losses() -> None:
    assert len(ALL) >= 5


@every_loss
def test_it_says_what_it_is_and_where_it_is_from(loss: type[Loss]) -> None:
    text = inspect.getdoc(loss)
    assert text is not None
    assert "Source: " in text
    assert inspect.getdoc(loss) != inspect.getdoc(RowLoss)


@every_row_loss
def test_its_defaults(loss: type[RowLoss]) -> None:
    made = loss()
    assert made.temperature > 0
    assert made.exclude == "known"


@every_loss
def test_its_defaults_work(loss: type[Loss]) -> None:
    made = set_up(loss)
    value = value_of(made)
    assert value.dim() == 0
    assert value.isfinite()
    assert torch.allclose(value, value_of(made, None), rtol=1e-9)


@every_loss
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("side", ["query", "item"])
@pytest.mark.parametrize("tile", [None, 3])
def test_what_is_not_finite_is_not_passed_over(loss: type[Loss], tile: int | None, side: str, bad: float) -> None:
    """A line of scores that are no numbers is no line without candidates: the loss must tell."""
    if loss is HierarchicalSoftmax and side == "item":
        return  # a tree has no item vectors
    case = make_case(1, batch_of="queries")
    with torch.no_grad():
        vectors = case.query_BD if side == "query" else case.item_MD
        vectors[0 if side == "query" else int(case.batch.item_P[0])] = bad
    assert not value_of(set_up(loss), tile, case).isfinite()


@every_loss
def test_its_settings_are_keyword_only_fields(loss: type[Loss]) -> None:
    names = {f.name for f in dataclasses.fields(loss) if f.init and f.name != "of"}
    if issubclass(loss, RowLoss):
        assert {"temperature", "correction", "strength", "exclude", "learn_temperature"} <= names
    with pytest.raises(TypeError):
        loss(0.5)  # type: ignore[call-arg]
    assert all(f"{name}=" in repr(loss()) for name in names)


@every_loss
def test_it_has_no_state_before_it_is_set_up(loss: type[Loss]) -> None:
    assert loss().state_dict() == {}


@every_tempered_loss
def test_copies_share_no_state(loss: type[RowLoss]) -> None:
    one = loss(temperature=0.5, learn_temperature=True)
    two = copy.deepcopy(one)
    assert [name for name, _ in one.named_parameters()] == ["log_temperature"]
    with torch.no_grad():
        two.log_temperature.add_(0.25)
    assert torch.as_tensor(one.current_temperature()).item() == pytest.approx(0.5)
    assert torch.as_tensor(two.current_temperature()).item() == pytest.approx(0.5 * torch.tensor(0.25).exp().item())


@every_tempered_loss
def test_a_learned_temperature_is_clamped(loss: type[RowLoss]) -> None:
    made = loss(temperature=0.5, learn_temperature=True, min_temperature=0.1, max_temperature=0.9)
    for log_temperature, clamped in ((-100.0, 0.1), (100.0, 0.9)):
        with torch.no_grad():
            made.log_temperature.fill_(log_temperature)
        made.constrain()
        assert torch.as_tensor(made.current_temperature()).item() == pytest.approx(clamped)


@every_tempered_loss
@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"temperature": 0.0}, r"loss\.temperature of {}: found 0\.0"),
        ({"temperature": -1.0}, r"loss\.temperature of {}: found -1\.0"),
        ({"temperature": float("nan")}, r"loss\.temperature of {}: found nan"),
        ({"strength": 1.1}, r"loss\.strength of {}: found 1\.1"),
        ({"strength": -0.1}, r"loss\.strength of {}: found -0\.1"),
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
    if loss.positive_may_be_noise:
        assert loss(exclude="none").exclude == "none"
        return
    with pytest.raises(ConfigError, match=rf"loss\.exclude of {loss.__name__}: 'none'"):
        loss(exclude="none")


def test_a_softmax_that_holds_its_positive_is_not_corrected_on_one_side() -> None:
    with pytest.raises(ConfigError, match=r"loss\.exclude of SampledSoftmax: 'none' .* count twice"):
        SampledSoftmax(exclude="none", correction="negatives")


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
    assert {loss for loss in ROW if loss.per_pair} == {AdaptiveMargin, AdaptiveTemperature, BPR, Margin, Warp}
