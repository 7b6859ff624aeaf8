"""From files to recommendations and back: everything ``train`` writes is what a ``Retriever`` reads."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file

from tests.training.checkerboard import SIZE, checkerboard, run_of
from twotower.config import Data, Evaluation, Run, Training, load_run
from twotower.data.splits import GivenSplit, RandomSplit
from twotower.errors import ArtifactError, ConfigError, DataError
from twotower.losses import AdapTau, HierarchicalSoftmax, Perturbed
from twotower.negatives import Uniform
from twotower.schema import Categorical, Id, Interactions, Schema
from twotower.training import Retriever, checkpoint, evaluate, recommend, train

SCHEMA = Schema(
    interactions=Interactions(query="user", item="item", split="part"),
    query={"user": Id(column="user"), "country": Categorical(column="country")},
    item={"item": Id(column="item")},
)


def part_of(user: int, item: int) -> str:
    """User i has item i withheld for validation, and for the test the next of its parity, which competes with it."""
    return {0: "valid", 2: "test"}.get((item - user) % SIZE, "train")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    """The checkerboard as files: users "u0" to "u29", items "i0" to "i29"."""
    folder = tmp_path_factory.mktemp("data")
    pairs = [(user, item) for user in range(SIZE) for item in range(SIZE) if user % 2 == item % 2]
    events = pa.table(
        {
            "user": [f"u{user}" for user, _ in pairs],
            "item": [f"i{item}" for _, item in pairs],
            "part": [part_of(user, item) for user, item in pairs],
        }
    )
    users = pa.table({"user": [f"u{u}" for u in range(SIZE)], "country": [f"c{u % 2}" for u in range(SIZE)]})
    pq.write_table(events, folder / "events.parquet")
    pq.write_table(users, folder / "users.parquet")
    return Data(
        interactions=(str(folder / "events.parquet"),),
        queries=(str(folder / "users.parquet"),),
        store=str(folder / "store"),
    )


def run_on(data: Data, **training: object) -> Run:
    settings = {"epochs": 15, "validate_every": 5, "batch_of": "queries", "batch_size": 8, "metric": "recall@2"}
    run = run_of(checkerboard(), **{**settings, **training})  # type: ignore[arg-type]
    return replace(run, schema=SCHEMA, data=data, split=GivenSplit(), evaluation=Evaluation(k=(1, 2)))


@pytest.fixture(scope="module")
def model(data: Data, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("out") / "model"
    trained = train(run_on(data), folder, quiet=True)
    assert trained.folder == folder
    assert trained.best_metric is not None
    assert trained.best_metric >= 0.9
    assert trained.refit_seconds is None
    assert f"trained {trained.best_epoch:g} epochs" in trained.render()
    return folder


def test_the_folder_holds_all_of_it(model: Path) -> None:
    assert sorted(path.name for path in model.iterdir()) == ["best", "last", "metrics.jsonl", "run.toml", "train.json"]
    summary = json.loads((model / "train.json").read_text(encoding="utf-8"))
    state = checkpoint.read_state(model / "best")
    assert summary["best_metric"] == state["metric"]
    assert summary["best_epoch"] == state["epoch"]
    assert summary["metric"] == "recall@2"
    assert load_run(model / "run.toml").schema == SCHEMA


def test_what_was_measured_is_measured_again(model: Path) -> None:
    """The saved model gives the validation metric of its checkpoint, to the last bit."""
    state = checkpoint.read_state(model / "best")
    found = evaluate(model, split="valid")
    assert found.metric("recall@2") == state["metric"]
    assert found.n_pairs == SIZE
    test = evaluate(model)
    assert test.metric("recall@1") >= 0.9
    assert test.metric("recall@1") > 5 * test.rows["random"]["recall@1"]


def test_a_known_user_is_recommended_what_it_has_not_met(model: Path) -> None:
    """User 4 has an event with every even item, held out or not, so only odd ones are left."""
    everything = recommend(model, {"user": "u4"}, k=100)
    assert sorted(int(r.item[1:]) for r in everything) == list(range(1, SIZE, 2))
    assert [r.score for r in everything] == sorted((r.score for r in everything), reverse=True)
    all_of_it = recommend(model, {"user": "u4"}, k=100, filter_seen=False)
    assert len(all_of_it) == SIZE
    assert all(int(r.item[1:]) % 2 == 0 for r in all_of_it[: SIZE // 2])


def test_a_new_user_is_known_by_its_country(model: Path) -> None:
    best = recommend(model, {"country": "c1"}, k=5)
    assert all(int(r.item[1:]) % 2 == 1 for r in best)
    with_id = recommend(model, {"user": "nobody", "country": "c1"}, k=5)
    assert len(with_id) == 5


def test_queries_that_can_not_be(model: Path) -> None:
    retriever = Retriever.open(model)
    with pytest.raises(DataError, match=r"'contry' is no column .* did you mean 'country'"):
        retriever.recommend({"contry": "c1"})
    with pytest.raises(DataError, match="it is empty"):
        retriever.recommend({})
    with pytest.raises(DataError, match="k: found 0"):
        retriever.recommend({"country": "c1"}, k=0)
    with pytest.raises(DataError, match="declares no History"):
        retriever.recommend({"history": ["i1"]})


def test_a_trained_model_is_not_trained_over(model: Path, data: Data) -> None:
    with pytest.raises(ArtifactError, match="already holds a trained model"):
        train(run_on(data), model, quiet=True)


def test_a_store_of_another_schema(data: Data, model: Path, tmp_path: Path) -> None:
    other = replace(SCHEMA, query={"user": Id(column="user")})
    with pytest.raises(ConfigError, match="ingested with another schema"):
        train(replace(run_on(data), schema=other), tmp_path / "model", quiet=True)


def test_no_model(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"holds no trained model \(no run.toml\)"):
        Retriever.open(tmp_path)


def test_a_folder_can_move_with_its_store(data: Data, model: Path) -> None:
    """The store is named relative to the folder."""
    text = (model / "run.toml").read_text(encoding="utf-8")
    line = next(line for line in text.splitlines() if line.startswith("store"))
    assert ".." in line
    assert Path(load_run(model / "run.toml").data.store).samefile(data.store)  # type: ignore[union-attr]


def test_files_of_a_run_are_found_from_anywhere(data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative paths are taken from where the run was made, not from the model's folder."""
    monkeypatch.chdir(Path(data.store).parent)
    here = Data(interactions=("events.parquet",), queries=("users.parquet",), store="store")
    train(run_on(here, epochs=1), tmp_path / "model", quiet=True)
    monkeypatch.chdir(tmp_path)
    found = load_run(tmp_path / "model" / "run.toml").data
    assert found is not None
    assert (found.interactions, found.queries) == (data.interactions, data.queries)
    assert Path(found.store).samefile(data.store)


def test_a_refit_replaces_the_best(data: Data, model: Path, tmp_path: Path) -> None:
    """Trained on validation events too, for as long as was best: they are then no surprise."""
    trained = train(run_on(data, refit=True), tmp_path / "model", quiet=True)
    assert trained.refit_seconds is not None
    state = checkpoint.read_state(tmp_path / "model" / "best")
    assert state["metric"] is None
    assert state["epoch"] == trained.best_epoch
    test = evaluate(tmp_path / "model")
    assert test.metric("recall@1") >= 0.9


def test_a_refit_keeps_the_temperature_that_was_validated(data: Data, tmp_path: Path) -> None:
    """With the validation pairs in training the formula would find another."""
    run = replace(run_on(data), loss=AdapTau(beta=math.inf, warm_up=5.0))
    train(run, tmp_path / "first", quiet=True)
    train(replace(run, training=replace(run.training, refit=True)), tmp_path / "again", quiet=True)
    first, again = (
        load_file(tmp_path / name / part / checkpoint.TENSORS)["modules.loss.inverse_temperature"].item()
        for name, part in (("first", "last"), ("again", "best"))
    )
    assert again == first


def test_a_temperature_is_to_be_found_before_the_end(data: Data, tmp_path: Path) -> None:
    run = run_on(data)
    for loss in (AdapTau(warm_up=run.training.epochs), Perturbed(of=AdapTau(warm_up=run.training.epochs))):
        with pytest.raises(ConfigError, match=r"warm_up of AdapTau: .* which training\.epochs = .* does not outlast"):
            train(replace(run, loss=loss), tmp_path / "model", quiet=True)


def test_without_item_vectors_measures_mean_nothing(
    data: Data, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(replace(run_on(data), loss=HierarchicalSoftmax()), tmp_path / "model")
    assert "loss: HierarchicalSoftmax learns vectors of queries alone" in capsys.readouterr().out


def test_an_item_is_no_result_for_itself(tmp_path: Path) -> None:
    """Where queries are items, the item itself never comes back, whether seen items are filtered or not."""
    names = [f"p{i}" for i in range(12)]
    rows = [(a, b) for i, a in enumerate(names) for b in (names[(i + 1) % 12], names[(i + 2) % 12])]
    pq.write_table(pa.table({"page": [a for a, _ in rows], "link": [b for _, b in rows]}), tmp_path / "links.parquet")
    pq.write_table(pa.table({"page": names}), tmp_path / "pages.parquet")
    run = Run(
        schema=Schema(
            interactions=Interactions(query="page", item="link", query_is_item=True),
            query={"page": Id(column="page", table="item")},
            item={"page": Id(column="page")},
            item_key="page",
        ),
        data=Data(
            interactions=(str(tmp_path / "links.parquet"),),
            items=(str(tmp_path / "pages.parquet"),),
            store=str(tmp_path / "store"),
        ),
        split=RandomSplit(valid=0.1, test=0.1),
        negatives=Uniform(4),
        training=Training(batch_size=8, epochs=1, threads=1, metric="recall@5"),
        evaluation=Evaluation(k=(5,)),
    )
    train(run, tmp_path / "model", quiet=True)
    for filter_seen in (True, False):
        found = recommend(tmp_path / "model", {"page": "p3"}, k=12, filter_seen=filter_seen)
        assert "p3" not in [one.item for one in found]
        assert len(found) == (11 if not filter_seen else 9)
