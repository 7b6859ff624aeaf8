"""The probe of float32 products: fast only where it is exact."""

from __future__ import annotations

import pytest
import torch

from twotower.training import matmul
from twotower.training.matmul import matmul_precision, probe

FAST = {"highest": 2.0, "medium": 1.0}


def timed(patch: pytest.MonkeyPatch, seconds: dict[str, float]) -> None:
    patch.setattr(matmul, "_time", lambda left, right: seconds[torch.get_float32_matmul_precision()])


def rounded(patch: pytest.MonkeyPatch, to: torch.dtype) -> None:
    """A machine whose ``medium`` rounds its inputs."""
    product = torch.Tensor.__matmul__

    def multiply(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        if left.dtype == torch.float32 and torch.get_float32_matmul_precision() == "medium":
            left, right = left.to(to).float(), right.to(to).float()
        return product(left, right)

    patch.setattr(torch.Tensor, "__matmul__", multiply)


def test_the_choice_is_exact_here() -> None:
    before = torch.get_float32_matmul_precision()
    found = probe(repeats=1)
    assert found.error[found.precision] <= 1e-6
    assert found.seconds.keys() == found.error.keys() == {"highest", "medium"}
    assert torch.get_float32_matmul_precision() == before


def test_a_fast_product_that_rounds_is_never_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    timed(monkeypatch, FAST)
    rounded(monkeypatch, torch.bfloat16)
    found = probe()
    assert found.precision == "highest"
    assert found.error["medium"] > 1e-3
    assert found.error["highest"] <= 1e-6


@pytest.mark.parametrize(("medium", "chosen"), [(1.0, "medium"), (1.9, "highest"), (3.0, "highest")])
def test_an_exact_product_is_chosen_where_it_is_clearly_faster(
    monkeypatch: pytest.MonkeyPatch, medium: float, chosen: str
) -> None:
    timed(monkeypatch, {"highest": 2.0, "medium": medium})
    rounded(monkeypatch, torch.float32)
    monkeypatch.setattr(matmul, "MAX_ERROR", 1.0)  # whatever this machine's medium does
    assert probe().precision == chosen


def test_the_default_is_left_where_nothing_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    timed(monkeypatch, FAST)
    monkeypatch.setattr(matmul, "MAX_ERROR", 0.0)
    assert probe().precision == "highest"


def test_a_setting_is_restored() -> None:
    before = torch.get_float32_matmul_precision()
    with matmul_precision("medium"):
        assert torch.get_float32_matmul_precision() == "medium"
    assert torch.get_float32_matmul_precision() == before
    with pytest.raises(KeyError), matmul_precision("medium"):
        raise KeyError
    assert torch.get_float32_matmul_precision() == before
