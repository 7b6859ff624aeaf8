"""Carrying over to a grown store: rows that stay are the same bit for bit, of those that changed nothing is left."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

from tests.negatives.examples import EXAMPLES
from twotower.config import Evaluation, Run, Training
from twotower.data.changes import changes as changes_of
from twotower.data.splits import GivenSplit
from twotower.data.store import Store
from twotower.errors import ArtifactError, ConfigError
from twotower.frequency import ExactFrequency, Frequency, FrequencyEstimate, StreamingFrequency
from twotower.losses import BPR, HierarchicalSoftmax, Loss, Losses, SampledSoftmax
from twotower.negatives import InBatch, Queue, Sampler, Uniform
from twotower.optimisers import DenseOptimiser, RowwiseAdagrad, RowwiseAdam, TableOptimiser
from twotower.part import Changes
from twotower.towers import Graph, SvdStart, Tower, TwoTower
from twotower.training import checkpoint
from twotower.training.carry import carry_over
from twotower.training.retriever import encode_catalogue
from twotower.training.step import Model, Stepper

from .grown import (
    BUCKET,
    CHANGED_ITEMS,
    CHANGED_QUERIES,
    FORGOTTEN,
    FREED,
    ITEM_NUMBERS,
    NEW_ITEMS,
    NEW_QUERIES,
    REUSED,
    batches_of,
    store_after,
    store_before,
)

REMADE = ("item_MD", "taken_at", "order_DM", "rank_DM", "deviation_D", "refreshed_at")
"""Made anew from the model before they are next read."""
OF_ITEMS_HELD = ("row_HC", "vector_HCD", "pool_QP", "history_QPT", "memory_QS", "chain_Qn")
OF_WAITING = ("last_HB", "touched_H", "began", "once_H")


@pytest.fixture(scope="module")
def before() -> Store:
    return store_before()


@pytest.fixture(scope="module")
def after() -> Store:
    return store_after()


@pytest.fixture(scope="module")
def changed(before: Store, after: Store) -> Changes:
    return changes_of(before, after)


def run_of(store: Store, **parts: Any) -> Run:
    training: dict[str, Any] = {"batch_size": 16, "tables": parts.pop("tables", RowwiseAdagrad(lr=0.1))}
    if "dense" in parts:
        training["dense"] = parts.pop("dense")
    settings: dict[str, Any] = {
        "towers": TwoTower(dim=4),
        "negatives": InBatch() + Uniform(8),
        "loss": BPR(),
        **parts,
    }
    return Run(
        schema=store.schema,
        split=GivenSplit(),
        training=Training(**training),
        evaluation=Evaluation(k=(1,)),
        **settings,
    )


def stepper_of(run: Run, store: Store, seed: int) -> Stepper:
    run = copy.deepcopy(run)
    facts = batches_of(store).facts()
    if store.n_items == len(ITEM_NUMBERS):
        facts = replace(facts, item_number_M=torch.tensor(ITEM_NUMBERS))
    torch.manual_seed(seed)
    return Stepper(Model(run, store, facts).train(), run.training)


def take(stepper: Stepper, store: Store, start: int, stop: int) -> None:
    batches = list(batches_of(store).epoch(0))
    for step in range(start, stop):
        report = stepper(batches[step % len(batches)], step + 1, 1.0)
        assert torch.isfinite(torch.tensor(report.loss))


def trained_before(run: Run, store: Store, folder: Path, steps: int = 3) -> Stepper:
    stepper = stepper_of(run, store, seed=0)
    take(stepper, store, 0, steps)
    checkpoint.save(folder, stepper.model, stepper.optimiser, {"step": steps})
    return stepper


def carried(run: Run, store: Store, folder: Path, changes: Changes, seed: int = 1) -> Stepper:
    stepper = stepper_of(run, store, seed)
    assert carry_over(folder, stepper.model, changes, stepper.optimiser)["step"] == 3
    return stepper


def rows_of(model: nn.Module, name: str) -> set[int] | None:
    """The changed rows of a tensor's first axis, None where it has no such rows: said here once more, by hand."""
    own = name.rpartition(".")[2]
    if "row_optimisers" in name:
        table = list(model.named_tables())[int(name.split(".")[1])]  # type: ignore[operator]
        name = f"{table}.{own}"
        if table == "item":
            return CHANGED_ITEMS
        if table == "query.user":
            return CHANGED_QUERIES
    if name.startswith("towers.weights./query/user.") or ".of_query." in name:
        return CHANGED_QUERIES
    if name.startswith("towers.weights./item.") or ".of_item." in name or ".of_bias." in name:
        return CHANGED_ITEMS
    last = own.rpartition("_")[2]
    return {"M": CHANGED_ITEMS, "Q": CHANGED_QUERIES}.get(last[0])


def assert_stays(model: Model, old: dict[str, Tensor]) -> None:
    """Every row that did not change is bit for bit what it was."""
    new = model.state_dict()
    for name, value in old.items():
        own = name.rpartition(".")[2]
        if own in (*REMADE, *OF_ITEMS_HELD, *OF_WAITING, "histogram_CM"):
            continue  # each has a test of its own
        rows = rows_of(model, name)
        if rows is None:
            assert torch.equal(new[name].nan_to_num(), value.nan_to_num()), name
            continue
        for row in set(range(len(value))) - rows:
            assert torch.equal(new[name][row].nan_to_num(), value[row].nan_to_num()), (name, row)


def poison(folder: Path, model: Model) -> None:
    """Let everything that a checkpoint holds of changed rows be something else."""
    tensors = {name: value.clone() for name, value in model.state_dict().items()}
    gone = torch.tensor(sorted(CHANGED_ITEMS - set(NEW_ITEMS)))
    for name, value in tensors.items():
        rows = [row for row in rows_of(model, name) or () if row < len(value)]
        if rows and name.rpartition(".")[2] in OF_ITEMS_HELD:
            value[rows] = 0
        elif rows:
            value[rows] = ~value[rows] if value.dtype == torch.bool else value[rows] + 3
        if name.endswith("histogram_CM"):
            value[:, gone] += 0.5
    for name, value in tensors.items():
        if name.endswith("vector_HCD"):
            value[torch.isin(tensors[name.replace("vector_HCD", "row_HC")], gone)] += 3
        if name.endswith("history_QPT"):
            value[torch.isin(tensors[name.replace("history_QPT", "pool_QP")], gone.int())] += 0.5
    module = nn.Module()
    module.state_dict = lambda *args, **kwargs: tensors  # type: ignore[assignment, method-assign]
    checkpoint.save(folder, module, None, {"step": 3})


def check(run: Run, before: Store, after: Store, changed: Changes, folder: Path) -> None:
    """What holds for every part: see the assertions."""
    trained = trained_before(run, before, folder / "old")
    old = {name: value.clone() for name, value in trained.model.state_dict().items()}
    grown = carried(run, after, folder / "old", changed)
    assert_stays(grown.model, old)

    poison(folder / "poisoned", trained.model)
    twin = stepper_of(run, after, seed=1)
    for _ in range(2):  # a second time is the same
        carry_over(folder / "poisoned", twin.model, changed)
    for name, value in twin.model.state_dict().items():
        assert torch.equal(value.nan_to_num(), grown.model.state_dict()[name].nan_to_num()), name

    checkpoint.save(folder / "new", grown.model, grown.optimiser, {})
    again = stepper_of(run, after, seed=2)
    checkpoint.load(folder / "new", again.model, again.optimiser)
    for stepper in (grown, again):
        take(stepper, after, 3, 5)
    for name, value in grown.model.state_dict().items():
        assert torch.equal(value.nan_to_num(), again.model.state_dict()[name].nan_to_num()), name


# ---------------------------------------------------------------- every part


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_sampler_is_carried_over(
    name: str, before: Store, after: Store, changed: Changes, tmp_path: Path
) -> None:
    check(run_of(before, negatives=EXAMPLES[name]), before, after, changed, tmp_path)


@pytest.mark.parametrize(
    "loss", [x for x in get_args(Losses) if x is not HierarchicalSoftmax], ids=lambda x: x.__name__
)
def test_every_loss_is_carried_over(
    loss: type[Loss], before: Store, after: Store, changed: Changes, tmp_path: Path
) -> None:
    check(run_of(before, loss=loss()), before, after, changed, tmp_path)


FREQUENCIES: tuple[Frequency, ...] = (ExactFrequency(), StreamingFrequency(buckets=512))


@pytest.mark.parametrize("frequency", FREQUENCIES, ids=lambda x: type(x).__name__)
def test_every_frequency_is_carried_over(
    frequency: Frequency, before: Store, after: Store, changed: Changes, tmp_path: Path
) -> None:
    assert {type(f) for f in FREQUENCIES} == set(get_args(FrequencyEstimate))
    loss = SampledSoftmax(correction="negatives", learn_temperature=True)
    check(run_of(before, frequency=frequency, loss=loss), before, after, changed, tmp_path)


@pytest.mark.parametrize("tables", [kind() for kind in get_args(TableOptimiser)], ids=lambda x: type(x).__name__)
@pytest.mark.parametrize("dense", [kind() for kind in get_args(DenseOptimiser)], ids=lambda x: type(x).__name__)
def test_every_optimiser_is_carried_over(
    tables: TableOptimiser, dense: DenseOptimiser, before: Store, after: Store, changed: Changes, tmp_path: Path
) -> None:
    towers = TwoTower(dim=4, query=Tower(widths=(5, 4), dropout=0.2), item=Tower(projection=True, id_dropout=0.2))
    run = run_of(before, tables=tables, dense=dense, towers=towers)
    check(run, before, after, changed, tmp_path)
    old, new = trained_before(run, before, tmp_path / "old"), carried(run, after, tmp_path / "old", changed)
    assert old.optimiser is not None
    assert new.optimiser is not None
    was, now = (optimiser.state_dict()["state"] for optimiser in (old.optimiser, new.optimiser))
    assert was.keys() == now.keys() != set()
    for index, state in was.items():
        for name, value in state.items():
            assert torch.equal(now[index][name], value), (index, name)


@pytest.mark.parametrize("towers", [TwoTower(dim=4, graph=Graph(layers=2)), TwoTower(dim=4, start=SvdStart())])
def test_towers_are_carried_over_and_the_graph_is_todays(
    towers: TwoTower, before: Store, after: Store, changed: Changes, tmp_path: Path
) -> None:
    run = run_of(before, towers=towers)
    trained = trained_before(run, before, tmp_path / "old")
    grown = carried(run, after, tmp_path / "old", changed)
    old, new = trained.model.state_dict(), grown.model.state_dict()
    for table, rows in (("item", CHANGED_ITEMS), ("query/user", CHANGED_QUERIES)):
        name = f"towers.weights./{table}.weight"
        for row in set(range(len(old[name]))) - rows:
            assert torch.equal(new[name][row], old[name][row])
        met_R = grown.model.towers.table(table.replace("/", ".")).met_R
        assert not bool(met_R[sorted(rows - set(NEW_QUERIES) if table == "query/user" else rows)].any())
    if towers.graph is not None:
        assert torch.equal(
            new["towers.graph.edge_2E"], stepper_of(run, after, 5).model.state_dict()["towers.graph.edge_2E"]
        )
    take(grown, after, 3, 4)


def test_a_tree_of_counts_is_refused(before: Store, after: Store, changed: Changes, tmp_path: Path) -> None:
    run = run_of(before, loss=HierarchicalSoftmax())
    trained_before(run, before, tmp_path / "old")
    with pytest.raises(ConfigError, match=r"HierarchicalSoftmax learns the nodes of a tree .* train anew"):
        carried(run, after, tmp_path / "old", changed)


def test_a_checkpoint_of_another_run_is_refused(before: Store, after: Store, changed: Changes, tmp_path: Path) -> None:
    trained_before(run_of(before), before, tmp_path / "old")
    with pytest.raises(ArtifactError, match="does not fit this run"):
        carried(run_of(before, tables=RowwiseAdam()), after, tmp_path / "old", changed)
    one, other = (run_of(before, towers=TwoTower(dim=4, query=Tower(widths=(n, 4)))) for n in (5, 6))
    trained_before(one, before, tmp_path / "other")
    with pytest.raises(ArtifactError, match=r"Linear: its weight was saved with the shape \(5, 4\), expected \(6, 4\)"):
        carried(other, after, tmp_path / "other", changed)


# ---------------------------------------------------------------- tables


def test_rows_of_the_towers_start_where_they_were_served(
    before: Store, after: Store, changed: Changes, tmp_path: Path
) -> None:
    """New queries from their bucket, new items from the mean of the items that training met and that are there yet."""
    trained = trained_before(run_of(before), before, tmp_path / "old")
    grown = carried(run_of(before), after, tmp_path / "old", changed)
    old_item, old_user = (trained.model.towers.table(name) for name in ("item", "query.user"))
    item, user = (grown.model.towers.table(name) for name in ("item", "query.user"))
    assert bool(old_user.met_R[BUCKET])
    kept = [row for row in range(12) if row not in (FREED, REUSED) and old_item.met_R[row]]
    assert len(kept) > 2
    mean = sum(old_item.weight[row].double() for row in kept) / len(kept)
    for row in CHANGED_ITEMS:
        assert torch.allclose(item.weight[row].double(), mean, atol=1e-7)
        assert not item.met_R[row]
    for row in NEW_QUERIES:
        assert torch.equal(user.weight[row], old_user.weight[BUCKET])
    assert not user.met_R[FORGOTTEN]
    served = item.weight.clone(), user.weight[list(NEW_QUERIES)].clone()
    grown.model.towers.settle()  # as it is served if it is never trained
    assert torch.allclose(item.weight, served[0], atol=1e-7)
    assert torch.equal(user.weight[list(NEW_QUERIES)], served[1])
    accumulators = dict(zip(grown.model.named_tables(), grown.model.row_optimisers, strict=True))
    for row in CHANGED_ITEMS:
        assert accumulators["item"].accumulator_R[row] == 0.0
    for row in CHANGED_QUERIES:
        assert accumulators["query.user"].accumulator_R[row] == 0.0


def test_vectors_of_items_that_stay_are_the_same_until_they_are_trained(
    before: Store, after: Store, changed: Changes, tmp_path: Path
) -> None:
    trained = trained_before(run_of(before), before, tmp_path / "old")
    grown = carried(run_of(before), after, tmp_path / "old", changed)
    was, now = encode_catalogue(trained.model.towers, before), encode_catalogue(grown.model.towers, after)
    stay = [row for row in range(12) if row not in CHANGED_ITEMS]
    assert torch.equal(now[stay], was[stay])
    assert len(now) == 15
    batch = batches_of(after).at(torch.tensor([0, 1]))
    grown.model.negatives = Uniform(1)
    grown.model.negatives.setup(batches_of(after).facts())
    touched = set(batch.item_P.tolist())
    state = [x.clone() for x in (grown.model.towers.table("item").weight, grown.model.row_optimisers[-1].accumulator_R)]
    grown(batch, 4, 1.0)
    moved = (grown.model.towers.table("item").weight != state[0]).any(1).nonzero()[:, 0].tolist()
    assert touched <= set(moved)
    assert len(moved) <= len(touched) + 1


# ---------------------------------------------------------------- what holds items


def part_of(
    sampler: Sampler, before: Store, after: Store, changed: Changes, folder: Path
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """State of a sampler before and after."""
    run = run_of(before, negatives=sampler)
    trained = trained_before(run, before, folder / "old")
    grown = carried(run, after, folder / "old", changed)
    return trained.model.negatives.state_dict(), grown.model.negatives.state_dict()


def test_items_that_went_leave_the_queue(before: Store, after: Store, changed: Changes, tmp_path: Path) -> None:
    old, new = part_of(Queue(batches=2), before, after, changed, tmp_path)
    assert bool(torch.isin(old["row_HC"], torch.tensor([FREED, REUSED])).any())
    assert new["row_HC"].shape == (2, 15)  # a batch of 16 may have all 15 items by now
    for at in range(2):
        for place in range(15):
            row = int(old["row_HC"][at, place]) if place < 12 else -1
            stays = row >= 0 and row not in CHANGED_ITEMS
            assert int(new["row_HC"][at, place]) == (row if stays else -1)
            vector = old["vector_HCD"][at, place] if stays else torch.zeros(4)
            assert torch.equal(new["vector_HCD"][at, place], vector)


def test_a_queue_of_wider_batches_than_todays_keeps_them_all(after: Store) -> None:
    facts = replace(batches_of(after).facts(), width=2, batch_size=3)
    queue = Queue(batches=1)
    queue.setup(facts)
    saved = {
        "row_HC": torch.tensor([[0, 1, FREED, 6, 7]]),
        "vector_HCD": torch.arange(10.0).view(1, 5, 2),
        "n_seen": torch.tensor(9),
    }
    none = torch.zeros(0, dtype=torch.bool)
    item_M = torch.tensor([row in CHANGED_ITEMS for row in range(15)])
    queue.carry(saved, Changes(item_M=item_M, query_Q=none, table={}))
    assert queue.row_HC.tolist() == [[0, 1, -1, 6, 7]]
    assert queue.vector_HCD.tolist() == [[[0.0, 1.0], [2.0, 3.0], [0.0, 0.0], [6.0, 7.0], [8.0, 9.0]]]
    assert int(queue.n_seen) == 9
    again = Queue(batches=1)
    again.setup(facts)
    again.make_room({name: value.shape for name, value in queue.state_dict().items()})  # as a checkpoint is read
    again.load_state_dict(queue.state_dict())


@pytest.mark.parametrize("name", ["SRNS", "SRNS of the catalogue"])
def test_pools_lose_the_items_that_went(
    name: str, before: Store, after: Store, changed: Changes, tmp_path: Path
) -> None:
    old, new = part_of(EXAMPLES[name], before, after, changed, tmp_path)
    visited = [query for query in range(8) if old["visits_Q"][query] and query != FORGOTTEN]
    assert visited
    went = 0
    for query in visited:
        assert new["visits_Q"][query] == old["visits_Q"][query]
        size = old["memory_QS"].shape[1]
        assert torch.equal(new["memory_QS"][query, :size], old["memory_QS"][query])
        assert bool((new["memory_QS"][query, size:] == -1).all())
        for place in range(new["pool_QP"].shape[1]):
            row = int(old["pool_QP"][query, place]) if place < old["pool_QP"].shape[1] else -1
            if row < 0 or row in CHANGED_ITEMS:
                went += row >= 0
                assert int(new["pool_QP"][query, place]) == -1
                assert bool(new["history_QPT"][query, place].isnan().all())
            else:
                assert int(new["pool_QP"][query, place]) == row
                history = (s["history_QPT"][query, place].nan_to_num(-1.0) for s in (new, old))
                assert torch.equal(*history)
    assert went
    for query in CHANGED_QUERIES:
        assert int(new["visits_Q"][query]) == 0
        assert bool((new["pool_QP"][query] == -1).all())


@pytest.mark.parametrize("name", ["Gibbs", "MCNS", "MetropolisHastings"])
def test_chains_at_items_that_went_start_anew(
    name: str, before: Store, after: Store, changed: Changes, tmp_path: Path
) -> None:
    old, new = part_of(EXAMPLES[name], before, after, changed, tmp_path)
    was, now = old["chain_Qn"].tolist(), new["chain_Qn"].tolist()
    assert any(row in CHANGED_ITEMS for rows in was for row in rows)
    for query, rows in enumerate(now):
        stays = query < 8 and query != FORGOTTEN
        assert rows == ([-1 if row in CHANGED_ITEMS else row for row in was[query]] if stays else [-1] * 5)


def test_learned_laws_keep_their_proportions_and_sum_to_one(
    before: Store, after: Store, changed: Changes, tmp_path: Path
) -> None:
    old, new = part_of(EXAMPLES["AdaptiveImportance"], before, after, changed, tmp_path)
    count_M = batches_of(after).facts().item_count_M.double()
    popular_M = (count_M + 1) ** 0.75 / ((count_M + 1) ** 0.75).sum()
    stay = [row for row in range(15) if row not in CHANGED_ITEMS]
    for law, was in zip(new["histogram_CM"].double(), old["histogram_CM"].double(), strict=True):
        assert float(law.sum()) == pytest.approx(1.0, abs=1e-6)
        for row in CHANGED_ITEMS:
            assert float(law[row]) == pytest.approx(float(popular_M[row]), rel=1e-5)
        assert torch.allclose(law[stay] / law[stay].sum(), was[stay] / was[stay].sum(), rtol=1e-5)


@pytest.mark.parametrize("name", ["AOBPR", "RankWindow"])
def test_what_was_made_of_the_whole_catalogue_is_made_anew_at_the_next_step(
    name: str, before: Store, after: Store, changed: Changes, tmp_path: Path
) -> None:
    run = run_of(before, negatives=EXAMPLES[name])
    trained_before(run, before, tmp_path / "old")
    grown = carried(run, after, tmp_path / "old", changed)
    made_at = {"AOBPR": "refreshed_at", "RankWindow": "taken_at"}[name]
    assert int(grown.model.negatives.state_dict()[made_at]) == 0
    take(grown, after, 3, 4)
    assert int(grown.model.negatives.state_dict()[made_at]) == 4
