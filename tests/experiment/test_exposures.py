"""What is put is read back, once, whatever happens to the process; what is lost is counted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from twotower.errors import ArtifactError, DataError
from twotower.experiment import Exposure, ExposureLog, exposures, read_exposures

NOON = 1_700_049_600.25  # 2023-11-15T12:00:00.25Z


def shown(request: str, *, user: str | None = "u1", arm: str = "a", experiment: str = "x") -> Exposure:
    return Exposure(
        time=NOON,
        request=request,
        experiment=experiment,
        arm=arm,
        user=user,
        items=["i1", "i2"],
        scores=np.array([0.5, 0.25], np.float32),  # type: ignore[arg-type]
        ranks=[1, 2],
        k=2,
        found=100,
        filtered=40,
        returned=2,
    )


def test_a_record_is_a_line_of_json(tmp_path: Path) -> None:
    with ExposureLog(tmp_path) as log:
        assert log.put(shown("r1", user=None))
    (file,) = tmp_path.iterdir()
    assert json.loads(file.read_text(encoding="utf-8")) == {
        "time": NOON,
        "request": "r1",
        "experiment": "x",
        "arm": "a",
        "user": None,
        "items": ["i1", "i2"],
        "scores": [0.5, 0.25],
        "ranks": [1, 2],
        "k": 2,
        "found": 100,
        "filtered": 40,
        "returned": 2,
        "dropped": 0,
    }
    counts = log.counts()
    assert (counts.written, counts.dropped, counts.waiting, counts.error) == (1, 0, 0, None)


def test_what_was_put_is_read_back(tmp_path: Path) -> None:
    with ExposureLog(tmp_path) as log:
        for i in range(1000):
            log.put(shown(f"r{i}", user=f"00{i % 7}", arm="ab"[i % 2], experiment="xy"[i % 10 == 0]))
    found = read_exposures(tmp_path, "x")
    expected = [i for i in range(1000) if i % 10]
    assert found.request_E.to_pylist() == [f"r{i}" for i in expected]
    assert found.user_E.to_pylist() == [f"00{i % 7}" for i in expected]
    assert found.arm_E.to_pylist() == ["ab"[i % 2] for i in expected]
    assert set(found.time_us_E.tolist()) == {1_700_049_600_250_000}
    assert {name: count_E.sum() for name, count_E in found.count_E.items()} == {
        "found": 90_000,
        "filtered": 36_000,
        "returned": 1_800,
    }
    assert (found.n_dropped, found.n_cut_lines) == (0, 0)


def test_columns_of_another_experiment_s_file_tell_nothing(tmp_path: Path) -> None:
    with ExposureLog(tmp_path) as log:
        log.put(shown("r1"))
    other = pa.table({"time": [NOON], "experiment": ["another"], "arm": ["b"], "user": ["u2"]})
    for name in ("0.parquet", "z.parquet"):  # before and after
        pyarrow.parquet.write_table(other, tmp_path / name)
    assert set(read_exposures(tmp_path, "x").count_E) == {"found", "filtered", "returned"}
    assert read_exposures(tmp_path, "another").count_E == {}


def test_parquet_is_read_as_well(tmp_path: Path) -> None:
    with ExposureLog(tmp_path / "log") as log:
        log.put(shown("r1"))
    table = pa.table(
        {
            "time": pa.array([NOON * 1e6], pa.int64()).cast(pa.timestamp("us")),
            "experiment": pa.array(["x"]).dictionary_encode(),
            "arm": ["b"],
            "user": [7],
            "items": [["i1"]],
        }
    )
    pyarrow.parquet.write_table(table, tmp_path / "log" / "old.parquet")
    found = read_exposures(tmp_path / "log")
    rows = zip(found.user_E.to_pylist(), found.arm_E.to_pylist(), found.time_us_E.tolist(), strict=True)
    assert sorted(rows) == [("7", "b", 1_700_049_600_250_000), ("u1", "a", 1_700_049_600_250_000)]
    assert found.count_E == {}


def test_files_end_by_size_and_day(tmp_path: Path) -> None:
    now = [NOON]
    written = threading.Semaphore(0)

    def clock() -> float:
        written.release()
        return now[0]

    size = len(exposures._line(shown("r0"), 0))
    with ExposureLog(tmp_path, max_bytes=2 * size, clock=clock) as log:
        for i in range(5):
            log.put(shown(f"r{i}"))
            written.acquire()
        now[0] += 86_400 / 2
        log.put(shown("r5"))
    files = sorted(tmp_path.iterdir())
    assert [file.name[:8] for file in files] == ["20231115"] * 3 + ["20231116"]
    assert [file.read_text(encoding="utf-8").count("\n") for file in files] == [2, 2, 1, 1]
    assert read_exposures(tmp_path).request_E.to_pylist() == [f"r{i}" for i in range(6)]


def test_a_full_queue_drops_counts_and_never_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at_work, may_go_on = threading.Event(), threading.Event()
    write = exposures._Files._write

    def slow(self: exposures._Files, data: bytes) -> None:
        at_work.set()
        may_go_on.wait()
        write(self, data)

    monkeypatch.setattr(exposures._Files, "_write", slow)
    with ExposureLog(tmp_path, max_waiting=3) as log:
        assert log.put(shown("r0"))
        at_work.wait()
        assert [log.put(shown(f"r{i}")) for i in range(1, 8)] == [True] * 3 + [False] * 4
        assert (log.counts().dropped, log.counts().waiting) == (4, 3)
        may_go_on.set()
    assert (log.counts().written, log.counts().dropped) == (4, 4)
    found = read_exposures(tmp_path)
    assert found.request_E.to_pylist() == ["r0", "r1", "r2", "r3"]
    assert found.n_dropped == 4
    assert not log.put(shown("late"))
    assert log.counts().dropped == 5


def test_a_fault_is_counted_and_the_log_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "log"
    with ExposureLog(folder) as log:
        folder.rmdir()
        log.put(shown("r0"))
        while not log.counts().error:
            pass
        assert "No such file" in str(log.counts().error)
        folder.mkdir()
        log.put(shown("r1"))
        log.put(shown(object()))  # type: ignore[arg-type]
    assert (log.counts().written, log.counts().dropped) == (1, 2)
    assert "no JSON" in str(log.counts().error)
    assert read_exposures(folder).n_dropped >= 1


def test_half_a_line_is_counted_and_left_out(tmp_path: Path) -> None:
    with ExposureLog(tmp_path) as log:
        log.put(shown("Ümlaut"))
    (file,) = tmp_path.iterdir()
    line = file.read_bytes()
    (tmp_path / "empty.ndjson").write_bytes(b"")
    (tmp_path / "whole.ndjson").write_bytes(line.rstrip())
    for cut in (1, line.index("Ü".encode()) + 1, len(line) - 2):
        (tmp_path / f"{cut}.ndjson").write_bytes(line + line[:cut])
    (tmp_path / "only.ndjson").write_bytes(line[:20])
    found = read_exposures(tmp_path)
    assert found.request_E.to_pylist() == ["Ümlaut"] * 5
    assert found.n_cut_lines == 4


def test_half_a_line_in_the_middle_is_an_error(tmp_path: Path) -> None:
    line = exposures._line(shown("r1"), 0)
    (tmp_path / "a.ndjson").write_bytes(line + line[:30] + b"\n" + line)
    with pytest.raises(DataError, match=r"a\.ndjson, line 2: not a JSON object"):
        read_exposures(tmp_path)


SHOWN = """
import os, sys
from twotower.experiment import Exposure, ExposureLog
def shown(request):
    return Exposure(time=1.0, request=request, experiment="x", arm="a", user="u1", items=["i1"], scores=[0.5],
                    ranks=[1], k=1, found=1, filtered=1, returned=1)
"""
WRITER = """
log = ExposureLog(sys.argv[1])
log.put(shown("parent-0"))
while log.counts().written == 0:
    pass
forked = os.fork()
name = "parent" if forked else "child"
assert log.counts().written == (1 if forked else 0)
for i in range(1 if forked else 0, 300):
    log.put(shown(f"{name}-{i}"))
log.close()
if forked:
    os.waitpid(forked, 0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_process_and_its_fork_have_files_of_their_own(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-c", SHOWN + WRITER, str(tmp_path)]
    subprocess.run(command, check=True)
    assert len(list(tmp_path.iterdir())) == 2
    count = Counter(read_exposures(tmp_path).request_E.to_pylist())
    assert count == Counter(f"{name}-{i}" for name in ("parent", "child") for i in range(300))


KILLED = """
log = ExposureLog(sys.argv[1])
at = 0
while True:
    if log.put(shown(f"r{at}")):
        at += 1
    if log.counts().written > 500:
        print("go", flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_a_killed_process_leaves_whole_records(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", SHOWN + KILLED, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    found = read_exposures(tmp_path).request_E.to_pylist()
    assert len(found) > 500
    assert found == [f"r{at}" for at in range(len(found))]


def test_mistakes(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no file or folder"):
        read_exposures(tmp_path / "nowhere")
    with ExposureLog(tmp_path / "two") as log:
        log.put(shown("r1", experiment="ranker"))
        log.put(shown("r2", experiment="index"))
    with pytest.raises(DataError, match="found the experiments 'index', 'ranker', expected one"):
        read_exposures(tmp_path / "two")
    with pytest.raises(DataError, match="no experiment 'indx'; found 'index', 'ranker'; did you mean 'index'"):
        read_exposures(tmp_path / "two", "indx")
    (tmp_path / "arm.csv").write_text("time,experiment,arm,user\n1,x,,u1\n")
    with pytest.raises(DataError, match=r"arm\.csv.*column 'arm': row 1 of these has no value"):
        read_exposures(tmp_path / "arm.csv")
    (tmp_path / "no.csv").write_text("time,experiment,arm\n1,x,a\n")
    with pytest.raises(DataError, match="column 'user' is missing"):
        read_exposures(tmp_path / "no.csv")
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="no folder can be made"):
        ExposureLog(tmp_path / "file")
