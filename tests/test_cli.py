"""The command line: its verbs, what goes wrong and with which exit status."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
import types
from dataclasses import dataclass
from pathlib import Path

import docstring_parser
import pytest

import twotower
from twotower import cli
from twotower.errors import DataError
from twotower.index import IVFSQ8


def write_run(folder: Path, more: str = "") -> Path:
    path = folder / "run.toml"
    path.write_text(
        f"""
        [schema]
        interactions = {{ query = "user", item = "item", time = "time" }}
        query.user = {{ kind = "Id", column = "user" }}
        item.item = {{ kind = "Id", column = "item" }}
        [data]
        interactions = ["events.parquet"]
        {more}
        """
    )
    return path


VERBS = [
    "audit",
    "days",
    "demo",
    "evaluate",
    "experiment",
    "export",
    "forget",
    "ingest",
    "init",
    "recommend",
    "serve",
    "similar",
    "train",
    "tune",
    "update",
]


def test_the_verbs_are_these() -> None:
    verbs = [name for name in cli.app if not name.startswith("-")]
    assert sorted(verbs) == sorted([*VERBS, "index"])


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["train", "--help"], ["tune", "--help"], ["recommend", "--help"], ["--version"], ["trian"]],
)
def test_help_does_not_import_torch(arguments: list[str]) -> None:
    program = (
        "import sys; from twotower.cli import main; main(sys.argv[1:]);"
        "print([n for n in ('torch', 'pyarrow', 'numpy', 'optuna') if n in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True)
    assert shown.stdout.endswith("[]\n")


def test_python_dash_m() -> None:
    shown = subprocess.run([sys.executable, "-m", "twotower", "--version"], capture_output=True, text=True, check=True)
    assert shown.stdout == f"{twotower.__version__}\n"
    wrong = subprocess.run([sys.executable, "-m", "twotower", "trian"], capture_output=True, text=True, check=False)
    assert wrong.returncode == 2


@pytest.mark.parametrize("verb", VERBS)
def test_every_parameter_has_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    function = getattr(cli, verb)
    documented = {param.arg_name: param.description for param in docstring_parser.parse(function.__doc__).params}
    assert list(documented) == list(inspect.signature(function).parameters)
    assert cli.main([verb, "--help"]) == 0
    shown = capsys.readouterr().out
    assert all(str(description).split()[0] in shown for description in documented.values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], 'Did you mean "train"?'),
        (["train", "run.toml"], '"train" parameter --out requires an argument'),
        (["tune", "run.toml"], '"tune" parameter --out requires an argument'),
        (["recommend", "m", "--query", "{}", "--filterseen"], "Did you mean --filter-seen"),
        (["train", "nowhere.toml", "--out", "x"], "nowhere.toml: No such file or directory, expected a run as TOML"),
        (["update", "m"], "update: found nothing to read, expected one of --interactions"),
        (
            ["update", "m", "--interactions", "e.csv", "--follow", "days"],
            "--interactions and --follow, expected one of",
        ),
        (
            ["update", "nowhere", "--interactions", "e.csv"],
            "nowhere: there is no such folder, expected the folder of a",
        ),
        (["days", "nowhere"], "nowhere: there is no such folder"),
        (["forget", "nowhere", "--query", "u1"], "nowhere: there is no such folder"),
        (["forget", "nowhere"], '"forget" parameter --query requires an argument'),
        (["recommend", "m", "--query", "{"], "--query: not valid JSON"),
        (["experiment", "--exposures", "nowhere", "--outcomes", "o", "--control", "a"], "no file or folder nowhere"),
        (["recommend", "m", "--query", "[1]"], "--query: found [1], expected an object"),
        (["recommend", "m"], "expected either --query, or --all-queries with --out"),
        (["recommend", "m", "--all-queries"], "expected either --query, or --all-queries with --out"),
        (["recommend", "m", "--query", "{}", "--out", "o"], "expected either --query, or --all-queries with --out"),
    ],
)
def test_a_mistake_is_one_line_on_stderr_and_status_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("error: ")
    assert shown.err.count("\n") == 1
    assert message in shown.err


def test_a_wrong_override_names_the_file_and_the_setting(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_run(tmp_path)
    assert cli.main(["train", str(path), "--out", str(tmp_path / "m"), "--set", "training.bath_size=3"]) == 2
    expected = f"error: {path}: training.bath_size is not a setting of Training: did you mean 'batch_size'?\n"
    assert capsys.readouterr().err == expected


@dataclass(frozen=True)
class Call:
    """Stands for a result, and remembers what it was asked for."""

    given: list[object]

    def table(self) -> str:
        return f"table of {self.given}"

    def render(self) -> str:
        return self.table()

    def to_json(self) -> str:
        return json.dumps({"given": self.given})


@dataclass(frozen=True)
class Found:
    """Stands for a recommendation."""

    item: str
    score: float


@pytest.fixture
def training(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A ``twotower.training`` whose functions only say what they were called with."""

    def evaluate(model: Path, *, split: str) -> Call:
        return Call([model.name, split])

    @dataclass(frozen=True)
    class Retriever:
        model: Path

        @staticmethod
        def open(model: Path) -> Retriever:
            return Retriever(model)

        def recommend(
            self, query: dict[str, object], *, k: int, filter_seen: bool, exclude: tuple[str, ...]
        ) -> list[Found]:
            if query == {"user": "stranger"}:
                raise DataError("nobody\nknows")
            if query == {"user": "impatient"}:
                raise KeyboardInterrupt
            given = [self.model.name, query["user"], k, filter_seen, *exclude]
            return [Found(" ".join(map(str, given)), 0.25), Found("other", -1.5)]

        def recommend_all(self, out: Path, *, k: int, filter_seen: bool) -> int:
            out.write_text(f"{self.model.name} {k} {filter_seen}", encoding="utf-8")
            return 1234

        def similar(self, item: str, *, k: int, exclude: tuple[str, ...]) -> list[Found]:
            return [Found(" ".join(["like", item, str(k), *exclude]), 0.5)]

    def export(model: Path, out: Path, **settings: object) -> Call:
        return Call([model.name, out.name, settings])

    def tune(run: twotower.Run, out: Path, *, sweep: tuple[str, ...]) -> Call:
        assert run.tune is not None
        return Call([run.tune.trials, out.name, *sweep])

    module = types.ModuleType("twotower.training")
    module.evaluate, module.Retriever, module.tune = evaluate, Retriever, tune  # type: ignore[attr-defined]
    module.export = export  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "twotower.training", module)
    return module


@pytest.mark.usefixtures("training")
def test_json_is_printed_on_demand(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["evaluate", "m", "--split", "valid", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"given": ["m", "valid"]}
    assert cli.main(["recommend", "m", "--query", '{"user": "é"}', "--k", "3", "--no-filter-seen", "--json"]) == 0
    best = {"item": "m é 3 False", "score": 0.25}
    assert json.loads(capsys.readouterr().out) == [best, {"item": "other", "score": -1.5}]


@pytest.mark.usefixtures("training")
def test_results_are_printed_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["evaluate", "m"]) == 0
    assert capsys.readouterr().out == "table of ['m', 'test']\n"
    assert cli.main(["recommend", "m", "--query", '{"user": "u1"}']) == 0
    assert capsys.readouterr().out == "  0.2500  m u1 10 True\n -1.5000  other\n"


@pytest.mark.usefixtures("training")
def test_lists_of_all_queries_and_items_like_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "top.parquet"
    assert cli.main(["recommend", "m", "--all-queries", "--out", str(out), "--k", "5", "--no-filter-seen"]) == 0
    assert capsys.readouterr().out == f"wrote 1,234 lines to {out}\n"
    assert out.read_text(encoding="utf-8") == "m 5 False"
    assert cli.main(["similar", "m", "--item", "i1", "--k", "2"]) == 0
    assert capsys.readouterr().out == "  0.5000  like i1 2\n"
    assert cli.main(["similar", "m", "--item", "i1", "--exclude", "i2", "--exclude", "i3"]) == 0
    assert capsys.readouterr().out == "  0.5000  like i1 10 i2 i3\n"
    assert cli.main(["recommend", "m", "--query", '{"user": "u1"}', "--exclude", "i4"]) == 0
    assert capsys.readouterr().out == "  0.2500  m u1 10 True i4\n -1.5000  other\n"


@pytest.mark.usefixtures("training")
def test_an_export_takes_lists_of_columns_and_files(capsys: pytest.CaptureFixture[str]) -> None:
    plain = {
        "index": None, "target_recall": None, "k": 100, "report": False, "threads": 1,
        "show": None, "items": None, "licence": None, "overwrite": False
    }  # fmt: skip
    assert cli.main(["export", "m", "--out", "b"]) == 0
    assert capsys.readouterr().out == f"table of {['m', 'b', plain]}\n"
    chosen = ["--index", "IVFSQ8", "--set", "nlist=64", "--threads", "2", "--show", "title, year", "--report"]
    chosen += ["--target-recall", "0.9", "--k", "20"]
    chosen += ["--items", "a.csv", "b.csv", "--licence", "CC0-1.0", "--overwrite"]
    assert cli.main(["export", "m", "--out", "b", *chosen]) == 0
    given = {
        "index": IVFSQ8(nlist=64), "target_recall": 0.9, "k": 20, "report": True, "threads": 2,
        "show": ["title", "year"], "items": ("a.csv", "b.csv"),
        "licence": "CC0-1.0", "overwrite": True,
    }  # fmt: skip
    assert capsys.readouterr().out == f"table of {['m', 'b', given]}\n"
    assert cli.main(["export", "m", "--out", "b", "--show", ""]) == 0
    assert "'show': []" in capsys.readouterr().out
    assert cli.main(["export", "m", "--out", "b", "--set", "nlist=64"]) == 2
    assert "--set nlist=64 changes an index that is built now: say which kind with --index" in capsys.readouterr().err


@pytest.mark.usefixtures("training")
def test_a_search_takes_overrides_and_sweeps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_run(tmp_path, "[tune]\ntrials = 3")
    sweeps = ["--sweep", "loss.temperature=0.05,0.1", "--sweep", "towers.dim=8,16"]
    assert cli.main(["tune", str(path), "--out", "found", "--set", "tune.trials=7", *sweeps]) == 0
    assert capsys.readouterr().out == "table of [7, 'found', 'loss.temperature=0.05,0.1', 'towers.dim=8,16']\n"


@pytest.mark.usefixtures("training")
def test_an_error_of_several_lines_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["recommend", "m", "--query", '{"user": "stranger"}']) == 2
    assert capsys.readouterr().err == "error: nobody knows\n"


@pytest.mark.usefixtures("training")
def test_an_interrupt_is_status_130() -> None:
    assert cli.main(["recommend", "m", "--query", '{"user": "impatient"}']) == 130


def test_from_files_to_a_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [f"u{i % 7},i{i % 5},2024-01-{i + 1:02}T00:00:00" for i in range(20)]
    (tmp_path / "events.csv").write_text("\n".join(["user_id,item_id,timestamp", *rows]) + "\n")
    path = tmp_path / "run.toml"
    assert cli.main(["init", str(tmp_path / "events.csv"), "--out", str(path)]) == 0
    assert "user_id" in capsys.readouterr().out
    assert cli.main(["ingest", str(path), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["n_events"], report["n_queries"], report["n_items"]) == (20, 7, 5)
    assert twotower.Store.open(tmp_path / "store").n_events == 20
    assert cli.main(["ingest", str(path)]) == 2
    assert str(tmp_path / "store") in capsys.readouterr().err
    assert cli.main(["ingest", str(path), "--overwrite"]) == 0
    assert cli.main(["init", str(tmp_path / "events.csv"), "--out", str(path)]) == 2


def test_every_day(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Train, update twice, look at the days, forget: what is printed, for people and for machines."""
    head, day_of = "user,item,time", "u{0},i{1},2024-01-{2:02}T00:00:00".format
    rows = [day_of(user, (user * 3 + day) % 20, day) for day in range(1, 9) for user in range(12)]
    for name, lines in (("events", rows[:72]), ("day-7", rows[72:84]), ("day-8", [*rows[84:], day_of("new", 3, 8)])):
        (tmp_path / f"{name}.csv").write_text("\n".join([head, *lines]) + "\n")
    run = write_run(tmp_path, '[training]\nepochs = 1\nmetric = "recall@5"')
    run.write_text(run.read_text().replace("events.parquet", "events.csv"))
    model, vectors = str(tmp_path / "model"), tmp_path / "vectors.parquet"
    assert cli.main(["train", str(run), "--out", model]) == 0
    assert cli.main(["days", model]) == 0
    assert capsys.readouterr().out.endswith("no update yet: twotower update MODEL --interactions NEW\n")
    assert cli.main(["update", model, "--interactions", str(tmp_path / "day-7.csv"), "--vectors", str(vectors)]) == 0
    assert "update 1: 12 events, 0 queries and 0 items new" in capsys.readouterr().out
    assert vectors.exists()
    assert cli.main(["update", model, "--interactions", str(tmp_path / "day-8.csv"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["new_queries"] == 1
    assert cli.main(["update", model, "--interactions", str(tmp_path / "day-8.csv"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) is None
    (tmp_path / "days").mkdir()
    assert cli.main(["update", model, "--source", f"{tmp_path}/days"]) == 0
    assert capsys.readouterr().out == f"nothing new in {tmp_path}/days: the model is as it was: {model}\n"
    assert cli.main(["days", model, "--plot", str(tmp_path / "days.png")]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].split("  ")[0] == "update"
    assert [line.split()[:3] for line in shown[1:3]] == [["1", "2024-01-07", "12"], ["2", "2024-01-08", "13"]]
    assert (tmp_path / "days.png").read_bytes().startswith(b"\x89PNG")
    assert cli.main(["days", model, "--json"]) == 0
    assert [day["number"] for day in json.loads(capsys.readouterr().out)["days"]] == [1, 2]
    assert cli.main(["forget", model, "--query", "unew", "u3"]) == 0
    assert f"2 queries with 9 events are gone from {model}" in capsys.readouterr().out
    assert cli.main(["forget", model, "--query", "u3"]) == 2
    assert "forget: 1 of 1 ids are no queries of" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is glibc's")
def test_freed_memory_is_kept_in_a_process_of_ours_alone() -> None:
    """Called from Python it is left as it is; as a process, what is freed stays resident."""
    body = (
        "import sys; from twotower import cli; {call};"
        "import ctypes; free = ctypes.CDLL(None).free; make = ctypes.CDLL(None).malloc; make.restype = ctypes.c_void_p;"
        "x = make(64 << 20); ctypes.memset(x, 1, 64 << 20); free(ctypes.c_void_p(x));"
        "print(int(open('/proc/self/statm').read().split()[1]) * 4096 >> 20)"
    )
    left, kept = (
        int(
            subprocess.run(
                [sys.executable, "-c", body.format(call=call)], capture_output=True, text=True, check=True
            ).stdout.splitlines()[-1]
        )
        for call in ("cli.main(['--version'])", "sys.argv = ['twotower', '--version']; cli.main()")
    )
    assert kept - left > 48
