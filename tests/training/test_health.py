"""Health of a run: naive loops over pairs of items and over candidates, and warnings that are said once."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.losses.oracle import Case, make_case, strength_offset
from tests.training.checkerboard import PART, checkerboard, run_of
from twotower.config import Run
from twotower.data.batches import TrainingBatches
from twotower.data.store import Store
from twotower.losses import (
    BPR,
    AdaptiveMargin,
    AdaptiveTemperature,
    HierarchicalSoftmax,
    Loss,
    Margin,
    RowLoss,
    SampledSoftmax,
    Symmetric,
    Warp,
)
from twotower.records import Batch, Candidates, Encoded
from twotower.scoring import encode
from twotower.tables import Table
from twotower.towers import Tower, TwoTower
from twotower.training import health
from twotower.training.health import Health, Watch, complaints, examine, mean_similarity
from twotower.training.loop import fit_once
from twotower.training.recorder import Recorder
from twotower.training.step import Model, Stepper, StepReport

FINE = Health(item_similarity=0.1, candidates=1000.0, effective_negatives=50.0, no_margin_left=0.5)


def encoded_of(case: Case) -> Encoded:
    return encode(case.query_BD, lambda row: case.item_MD[row], case.batch, case.candidates)


def examined(loss: RowLoss, case: Case, step: int = 0) -> Health:
    encoded = encoded_of(case)
    _, notes = loss(encoded)
    return examine(loss, encoded, notes, step)


# ---------------------------------------------------------------- items in one place


def test_mean_similarity_is_that_of_all_pairs() -> None:
    vector_nD = torch.randn(9, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    vector_nD[3] = 0
    total = 0.0
    for i in range(9):
        for j in range(9):
            if i != j and i != 3 and j != 3:
                a, b = vector_nD[i], vector_nD[j]
                total += float(a @ b) / math.sqrt(float(a @ a) * float(b @ b))
    assert mean_similarity(vector_nD) == pytest.approx(total / (9 * 8), abs=1e-12)


def test_one_place_and_opposite_ends() -> None:
    assert mean_similarity(torch.ones(5, 3) * torch.arange(1.0, 6.0)[:, None]) == pytest.approx(1.0)
    assert mean_similarity(torch.tensor([[2.0, 0.0], [-1.0, 0.0]])) == pytest.approx(-1.0)
    assert mean_similarity(torch.eye(4)) == pytest.approx(0.0)
    assert math.isnan(mean_similarity(torch.ones(1, 3)))


def test_distinct_items_count_once() -> None:
    """Items 0 to 18, most of them candidates several times over: each is one vector."""
    case = make_case(1, batch_of="queries")
    rows = {*case.batch.item_P.tolist()}
    for block in case.candidates.blocks:
        rows |= {*block.row.flatten().tolist()}
    wanted = mean_similarity(case.item_MD.detach()[sorted(rows)])
    assert examined(SampledSoftmax(temperature=0.5), case).item_similarity == pytest.approx(wanted, abs=1e-12)


# ---------------------------------------------------------------- candidates of a line


def lines_of(case: Case, loss: RowLoss) -> list[tuple[float, list[float], list[float]]]:
    """(score of the positive, scores and weights of its candidates) of every pair; equal shared candidates as one."""
    exclude = "positives" if loss.exclude == "none" else loss.exclude
    offset = 0.0 if loss.correction == "none" else strength_offset(case, loss.strength)
    found = []
    for pair, query in enumerate(case.batch.of_P.tolist()):
        known, of = case.batch.known, case.batch.of_P == query
        banned = {*case.batch.item_P[of].tolist()}
        if exclude == "known":
            banned = {*known.value[known.offset[query] : known.offset[query + 1]].tolist()}
        merged: dict[tuple[str, int], float] = {}
        for block in case.candidates.blocks:
            shared = block.row.dim() == 1
            for at in range(block.row.shape[-1]):
                item = int(block.row[at] if shared else block.row[query, at])
                weight = math.exp(block.log_weight[at] if shared else block.log_weight[query, at])
                key = ("shared", item) if shared else ("own", at)
                if item not in banned and weight > 0:
                    shift = loss.strength * case.log_count_M[item].item() + offset
                    weight *= 1.0 if loss.correction == "none" else math.exp(-shift)
                    merged[key] = merged.get(key, 0.0) + weight
        score = [float(case.query_BD[query].detach() @ v) / loss.temperature for v in case.item_MD.detach()]
        items = [item if kind == "shared" else int(own_row(case, query, item)) for kind, item in merged]
        positive = score[int(case.batch.item_P[pair])]
        found.append((positive, [score[item] for item in items], list(merged.values())))
    return found


def own_row(case: Case, query: int, at: int) -> Tensor:
    (own,) = [block for block in case.candidates.blocks if block.row.dim() == 2]
    return own.row[query, at]


def naive(case: Case, loss: RowLoss) -> tuple[float, float, float]:
    """Candidates, effective negatives, and the share of positives above all of their candidates."""
    counts: dict[int, float] = {}
    effective: dict[int, float] = {}
    beaten = []
    for pair, (positive, scores, weights) in enumerate(lines_of(case, loss)):
        if not scores:
            continue
        line = pair if loss.per_pair else int(case.batch.of_P[pair])
        pull = (lambda s, p=positive: 1 / (1 + math.exp(p - s))) if isinstance(loss, BPR) else math.exp
        mass = [w * pull(s) for s, w in zip(scores, weights, strict=True)]
        share = [m / sum(mass) for m in mass]
        counts[line] = len(scores)
        effective[line] = math.exp(-sum(p * math.log(p) for p in share))
        beaten.append(max(scores) < positive)
    return tuple(sum(values) / len(values) for values in (counts.values(), effective.values(), beaten))  # type: ignore[return-value]


LOSSES = [
    SampledSoftmax(temperature=0.7),
    SampledSoftmax(temperature=0.3, strength=0.5, exclude="positives"),
    SampledSoftmax.yi2019(temperature=0.6),
    SampledSoftmax(temperature=0.7, correction="none"),
    BPR(),
    BPR(correction="negatives", exclude="positives", temperature=0.5),
]


@pytest.mark.parametrize("loss", LOSSES, ids=range(len(LOSSES)))
@pytest.mark.parametrize("blocks", [{"own": False}, {"shared": False}, {}])
@pytest.mark.parametrize("batch_of", ["pairs", "queries"])
def test_against_a_loop(loss: RowLoss, blocks: dict[str, bool], batch_of: str) -> None:
    case = make_case(4, batch_of=batch_of, **blocks)
    found = examined(loss, case)
    candidates, effective, beaten = naive(case, loss)
    assert found.candidates == pytest.approx(candidates, rel=1e-12)
    assert found.effective_negatives == pytest.approx(effective, rel=1e-9)
    assert found.no_margin_left == pytest.approx(beaten, rel=1e-12)


@pytest.mark.parametrize("margin", [0.0, 0.5, 3.0])
@pytest.mark.parametrize("loss", [Margin, Warp])
def test_a_margin_is_to_be_kept(loss: type[Margin] | type[Warp], margin: float) -> None:
    """Nothing is left of a hinge where the best candidate is below the positive by the margin."""
    case = make_case(4, batch_of="queries", own=False)
    made = loss(margin=margin)
    kept = [max(scores) <= positive - margin for positive, scores, _ in lines_of(case, made) if scores]
    assert examined(made, case).no_margin_left == pytest.approx(sum(kept) / len(kept), rel=1e-12)


def test_a_margin_of_each_pair_is_that_of_the_loss() -> None:
    """d = .01 + .5 (1 - cosine of the two items), for the query as anchor and for the item."""
    case = make_case(4, batch_of="queries", own=False)
    with torch.no_grad():
        for side in (case.query_BD, case.item_MD):
            side /= side.norm(dim=1, keepdim=True)
        case.query_BD.copy_(case.item_MD[case.batch.item_P[:: len(case.batch.item_P) // 7][:7]])
    item_MD, kept = case.item_MD.detach(), []
    for pair, query in enumerate(case.batch.of_P.tolist()):
        positive = item_MD[case.batch.item_P[pair]]
        known = case.batch.known.value[case.batch.known.offset[query] : case.batch.known.offset[query + 1]].tolist()
        of_blocks = {int(row) for block in case.candidates.blocks for row in block.row} - set(known)
        anchor = case.query_BD[query].detach()
        score = float(anchor @ positive)
        fine = True
        for negative in (item_MD[row] for row in of_blocks):
            to_query, to_item = float(anchor @ negative), float(positive @ negative)
            fine &= 0.01 + 0.5 * (1 - to_item) - score + to_query <= 0
            fine &= 0.01 + 0.5 * (1 - to_query) - score + to_item <= 0
        kept.append(fine)
    assert 0 < sum(kept) < len(kept)
    assert examined(AdaptiveMargin(), case).no_margin_left == pytest.approx(sum(kept) / len(kept))


@pytest.mark.parametrize("per", ["pair", "logit"])
def test_a_temperature_of_each_pair_is_that_of_the_loss(per: Literal["pair", "logit"]) -> None:
    """t_j = .2 + .5 (1 - cosine of the two items); e^x / t_j is the pull of candidate j, x its logit."""
    case = make_case(4, batch_of="queries", own=False)
    with torch.no_grad():
        for side in (case.query_BD, case.item_MD):
            side /= side.norm(dim=1, keepdim=True)
    item_MD, known, effective = case.item_MD.detach(), case.batch.known, []
    for pair, query in enumerate(case.batch.of_P.tolist()):
        positive, anchor = item_MD[case.batch.item_P[pair]], case.query_BD[query].detach()
        banned = {*known.value[known.offset[query] : known.offset[query + 1]].tolist()}
        weights: dict[int, float] = {}
        for block in case.candidates.blocks:
            for row, log_weight in zip(block.row.tolist(), block.log_weight.tolist(), strict=True):
                weights[row] = weights.get(row, 0.0) + math.exp(log_weight)
        mass = []
        for row in weights.keys() - banned:
            temperature = 0.2 + 0.5 * (1 - float(positive @ item_MD[row]))
            distance = float(anchor @ item_MD[row]) - (float(anchor @ positive) if per == "pair" else 0.0)
            mass.append(weights[row] * math.exp(distance / temperature) / temperature)
        if sum(mass):
            effective.append(math.exp(-sum(m / sum(mass) * math.log(m / sum(mass)) for m in mass)))
    loss = AdaptiveTemperature(temperature=0.2, alpha=0.5, correction="none", per=per)
    assert examined(loss, case).effective_negatives == pytest.approx(sum(effective) / len(effective), rel=1e-9)


def test_equal_candidates_are_all_effective() -> None:
    """Vectors of zeros score alike: without a correction what spreads is the weight alone, 1 2 and 1 of three items."""
    case = make_case(0, batch_of="pairs", own=False)
    block = replace(case.candidates.blocks[1], row=torch.tensor([1, 2, 2, 3]), log_weight=torch.zeros(4))
    block = block.with_count(torch.zeros(4, dtype=torch.float64))
    known = replace(case.batch.known, value=torch.zeros_like(case.batch.known.value))
    one = replace(
        case,
        query_BD=torch.zeros(7, 4, dtype=torch.float64),
        batch=replace(case.batch, known=known),
        candidates=replace(case.candidates, blocks=(block,)),
    )
    found = examined(SampledSoftmax(correction="none"), one)
    assert found.candidates == 3
    assert found.effective_negatives == pytest.approx(math.exp(2 * 0.25 * math.log(4) + 0.5 * math.log(2)))
    assert found.no_margin_left == 0  # equal is not above


def test_without_candidates_there_is_nothing_to_tell() -> None:
    case = make_case(0, batch_of="pairs", own=False)
    bare = replace(case, candidates=Candidates(blocks=(), positive_log_count_P=torch.zeros(7, dtype=torch.float64)))
    for loss in (SampledSoftmax(), Margin()):
        found = examined(loss, bare)
        assert math.isnan(found.effective_negatives)
        assert math.isnan(found.candidates)
        assert math.isnan(found.no_margin_left)
    assert complaints(found) == {}


def test_lines_are_a_sample_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three lines of 14 or so candidates; the place moves with the step."""
    case, loss = make_case(4, batch_of="pairs", own=False), SampledSoftmax()
    monkeypatch.setattr(health, "MOST_LINES", 3)
    counts = [float(len(scores)) for _, scores, _ in lines_of(case, loss)]
    possible = {round(sum(counts[at : at + 3]) / 3, 9) for at in range(5)}
    found = {round(examined(loss, case, step).candidates, 9) for step in range(40)}
    assert found == possible
    monkeypatch.setattr(health, "MOST_SCORES", 1)
    assert {examined(loss, case, step).candidates for step in range(60)} == set(counts)


def test_a_symmetric_loss_is_seen_from_its_queries() -> None:
    store, inner = checkerboard(), SampledSoftmax(temperature=0.2)
    stepper, batch = stepper_of(run_of(store, loss=Symmetric(of=inner)), store)
    alone, _ = stepper_of(run_of(store, loss=inner), store)
    found, wanted = (one(batch, 1, 1.0, with_health=True).health for one in (stepper, alone))
    assert found == wanted


def test_a_loss_without_lines_has_the_items_only() -> None:
    store = checkerboard()
    stepper, batch = stepper_of(run_of(store, loss=HierarchicalSoftmax()), store)
    found = stepper(batch, 1, 1.0, with_health=True).health
    assert found is not None
    assert abs(found.item_similarity) < 0.5
    assert math.isnan(found.effective_negatives)
    assert math.isnan(found.no_margin_left)


# ---------------------------------------------------------------- in a step


def stepper_of(run: Run, store: Store) -> tuple[Stepper, Batch]:
    batches = TrainingBatches(store, np.flatnonzero(PART == 0), batch_of="pairs", batch_size=64)
    torch.manual_seed(0)
    return Stepper(Model(run, store, batches.facts()).train(), run.training), next(iter(batches.epoch(0)))


def test_looking_changes_nothing() -> None:
    store = checkerboard()
    towers = TwoTower(dim=4, query=Tower(widths=(8, 4), dropout=0.5))
    loss = SampledSoftmax(temperature=0.2, learn_temperature=True)
    states = []
    for with_health in (False, True):
        stepper, batch = stepper_of(run_of(store, towers=towers, loss=loss), store)
        reports = [stepper(batch, step, 1.0, with_health=with_health) for step in (1, 2)]
        states.append({"loss": torch.tensor([r.loss for r in reports]), **stepper.model.state_dict()})
        assert all((report.health is not None) == with_health for report in reports)
        assert all((report.gradient_norm is not None) == with_health for report in reports)
    assert all(torch.equal(states[1][name], value) for name, value in states[0].items())


@pytest.mark.parametrize("clip_norm", [None, 1e-3])
def test_the_norm_is_that_of_all_gradients_before_they_are_clipped(
    monkeypatch: pytest.MonkeyPatch, clip_norm: float | None
) -> None:
    store = checkerboard()
    towers = TwoTower(dim=4, query=Tower(widths=(4,)))
    stepper, batch = stepper_of(run_of(store, towers=towers, clip_norm=clip_norm), store)
    squares: list[float] = []
    gradient = Table.gradient

    def seen(self: Table) -> tuple[Tensor, Tensor] | None:
        found = gradient(self)
        assert found is not None
        squares.append(float(found[1].double().square().sum()))
        return found

    def dense(*_: object) -> None:
        squares.extend(float(p.grad.double().square().sum()) for p in stepper.dense if p.grad is not None)

    monkeypatch.setattr(Table, "gradient", seen)
    monkeypatch.setattr(stepper, "_check_finite", dense)  # which comes before they are clipped
    norm = stepper(batch, 1, 1.0, with_health=True).gradient_norm
    assert len(squares) == 4  # two tables, a weight and a bias
    assert norm == pytest.approx(math.sqrt(sum(squares)), rel=1e-5)


# ---------------------------------------------------------------- what is said


@pytest.mark.parametrize(
    ("ill", "text"),
    [
        ({"item_similarity": 0.951}, r"item vectors gather in one place \(mean similarity 0.95\): raise the temp"),
        ({"effective_negatives": 1.24}, r"of 1,000 candidates a query learns from about 1.2: raise the temperature"),
        ({"no_margin_left": 0.972}, r"97% of the positives beat all of their candidates, so little is left to learn"),
    ],
)
def test_every_ailment_has_its_advice(ill: dict[str, float], text: str) -> None:
    (found,) = complaints(replace(FINE, **ill)).values()
    assert re.match(text, found)


def test_few_candidates_are_no_ailment() -> None:
    assert complaints(FINE) == {}
    assert complaints(replace(FINE, effective_negatives=1.0, candidates=5.0)) == {}
    nothing = {name: math.nan for name in ("item_similarity", "candidates", "effective_negatives", "no_margin_left")}
    assert complaints(Health(**nothing)) == {}


def test_a_warning_is_said_once_when_it_lasts() -> None:
    ill = replace(FINE, item_similarity=0.95)
    watch = Watch()
    said = [bool(watch.warnings(step, ill)) for step in (1, 50, 99, 100, 110, 120, 130, 140)]
    assert said == [False, False, False, False, False, True, False, False]


def test_what_passes_is_not_said() -> None:
    ill, watch = replace(FINE, no_margin_left=0.99), Watch()
    said = [bool(watch.warnings(200 + i, one)) for i, one in enumerate([ill, ill, FINE, ill, ill, FINE, ill, ill, ill])]
    assert said == [False] * 8 + [True]


# ---------------------------------------------------------------- in the log


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def test_the_first_step_of_every_line_is_looked_at(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Time stands still, so lines end with validations: 2 of 7 steps each, and 14 steps are looked at twice."""
    looked: list[int] = []

    def look(loss: Loss, encoded: Encoded, notes: dict[str, Tensor], step: int) -> Health:
        looked.append(step)
        return FINE

    monkeypatch.setattr("twotower.training.step.examine", look)
    monkeypatch.setattr("twotower.training.recorder.time.perf_counter", lambda: 5.0)
    monkeypatch.setattr("twotower.training.recorder.summarise", lambda reports, seconds: summarised(reports))
    store = checkerboard()
    with Recorder(tmp_path, quiet=True) as recorder:
        fit_once(run_of(store, epochs=2, validate_every=1), store, PART, recorder=recorder)
    assert looked == [1, 8]


def summarised(reports: list[StepReport]) -> dict[str, float]:
    return {"loss": 1.0, "examples_per_s": float(len(reports)), "excluded": 0.0}


def test_a_line_has_the_numbers(tmp_path: Path) -> None:
    store = checkerboard()
    with Recorder(tmp_path, quiet=True) as recorder:
        fit_once(run_of(store, epochs=2, validate_every=1), store, PART, recorder=recorder)
    trained = [line for line in lines(tmp_path) if line["what"] == "train"]
    assert len(trained) == 2
    for line in trained:
        assert -1 <= line["item_similarity"] <= 1
        assert 1 <= line["effective_negatives"] <= line["candidates"] <= 30
        assert 0 <= line["no_margin_left"] <= 1
        assert line["gradient_norm"] > 0


def test_a_run_that_collapses_says_so_once(capsys: pytest.CaptureFixture[str]) -> None:
    """All items start at one point and the rate is next to nothing; a line a step, as time runs fast."""
    store = checkerboard()
    ticks = iter(range(10**6))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("twotower.training.recorder.time.perf_counter", lambda: float(next(ticks)))
        patch.setattr(Table, "look_up", lambda self, row: torch.ones(len(row), 4) + 0.0 * self.weight.sum())
        with Recorder(None) as recorder:
            for_items = run_of(store, epochs=20, schedule="constant")
            fit_once(for_items, store, PART, recorder=recorder)
    assert capsys.readouterr().out.count("item vectors gather in one place (mean similarity 1.00)") == 1
