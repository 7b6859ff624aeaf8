"""The service under load: requests a second and latencies, against a bare ASGI handler and LitServe in the same run.

    python -m benchmarks.serve [--items 1000000] [--seconds 4] [--rounds 3] [--peer PYTHON] [--keep FOLDER]
        [--results FOLDER]

A bundle of a million items (unit vectors of 64 numbers around 2,000 centres, IVFSQ8) whose query tower reads an id, a
country, an age and a history of 20, through a layer; 50,000 known queries. ``wrk`` asks /recommend for 100 items of
random known queries, without those that they have seen. The others get the vectors of the same queries and search the
same file with the same nprobe (``benchmarks.serve_peers``): no tower, no filter. One worker each, by turns, medians of
the rounds; figures without a number of connections are those of 8. ``cpu_us`` is processor time a request, of the
server alone: what a busy machine changes least.

``--peer`` is a Python with litserve, faiss and orjson; without it there is no ``ratio_over_peer``. ``wrk`` has to be
installed (apt-get install wrk). Server and wrk share the machine's cores.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before numpy is imported

import argparse
import contextlib
import json
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import torch

from benchmarks.index import clusters
from twotower.bundle import Bundle
from twotower.bundle.writing import Content, write_bundle
from twotower.data.columns import RaggedArray
from twotower.data.ingest import ingest
from twotower.data.store import Store
from twotower.index import IVFSQ8, Index
from twotower.schema import Categorical, History, Id, Interactions, Number, Schema, table_of
from twotower.towers import Tower, TwoTower
from twotower.training.retriever import recent_items

K, WIDTH, QUERIES, EVENTS = 100, 64, 50_000, 400_000
CONNECTIONS = (1, 8, 32)
NPROBE, K_FACTOR = 16, 1.1
PORT = 18231
_UNITS_MS = {"us": 1e-3, "ms": 1.0, "s": 1e3, "m": 6e4}

SCHEMA = Schema(
    interactions=Interactions(query="user", item="item", time="time"),
    query={"user": Id(column="user"), "country": Categorical(column="country"), "age": Number(column="age")},
    context={"history": History(k=20)},
    item={"item": Id(column="item")},
)


def make_bundle(folder: Path, n_items: int) -> None:
    """Untrained towers around trained-like vectors: what it costs is the same."""
    rng = np.random.default_rng(0)
    events = {
        "user": [f"user-{user}" for user in rng.integers(0, QUERIES, EVENTS)],
        "item": [f"item-{item}" for item in rng.integers(0, n_items, EVENTS)],
        "time": np.sort(rng.integers(1_600_000_000, 1_650_000_000, EVENTS)),
    }
    users = {
        "user": [f"user-{user}" for user in range(QUERIES)],
        "country": [f"c{user % 50}" for user in range(QUERIES)],
        "age": rng.integers(18, 80, QUERIES).astype(float),
    }
    items = {"item": [f"item-{item}" for item in range(n_items)]}
    ingest(SCHEMA, interactions=pa.table(events), queries=pa.table(users), items=pa.table(items), out=folder / "store")
    store = Store.open(folder / "store")
    torch.manual_seed(0)
    towers = TwoTower(dim=WIDTH, query=Tower(combine="concat", widths=(WIDTH,)))
    towers.build(store.schema, store.encoders.table_sizes)
    vector_MD = clusters(n_items, rng)
    with torch.no_grad():
        for name, parameter in towers.named_parameters():
            if "table" not in name:
                parameter.copy_(torch.randn(parameter.shape) * 0.1)
        towers.table(table_of("item", "item", SCHEMA.item["item"]) or "").weight[:n_items] = torch.from_numpy(vector_MD)
    started = time.perf_counter()
    index = Index.build(vector_MD, IVFSQ8(nprobe=NPROBE, k_factor=K_FACTOR), threads=os.cpu_count() or 1)
    print(f"index built in {time.perf_counter() - started:.0f} s", flush=True)
    lists = recent_items(store)
    seen = [np.unique(lists.value[lists.offset[q] : lists.offset[q + 1]]) for q in range(len(lists))]
    seen_lists = RaggedArray.of_lengths(np.array([len(one) for one in seen]), np.concatenate(seen))
    (folder / "bundle").mkdir()
    content = Content(vector_MD=vector_MD, index=index, seen=seen_lists, latest=lists, attributes=None, about={})
    write_bundle(folder / "bundle", store, towers, content)


def write_requests(folder: Path, n_items: int) -> None:
    """Scripts for wrk: the same queries by id, and by the vectors that the bundle's tower makes of them."""
    bundle, rng = Bundle.open(folder / "bundle"), np.random.default_rng(1)
    queries = [{"user": f"user-{user}"} for user in rng.integers(0, QUERIES, 2_000)]
    vectors = bundle.encode_queries(queries)
    by_id = [json.dumps({"query": query, "k": K}) for query in queries]
    by_vector = [json.dumps({"vector": [float(f"{x:.7g}") for x in vector]}) for vector in vectors.tolist()]
    for name, bodies in (("ours", by_id), ("others", by_vector)):
        (folder / f"{name}.txt").write_text("\n".join(bodies))
        (folder / f"{name}.lua").write_text(
            f"""local bodies, at = {{}}, 0
for line in io.lines("{folder / f"{name}.txt"}") do bodies[#bodies + 1] = line end
local headers = {{["Content-Type"] = "application/json"}}
request = function()
  at = at % #bodies + 1
  return wrk.format("POST", "/recommend", headers, bodies[at])
end
"""
        )
    (folder / "ids.json").write_text(json.dumps([f"item-{item}" for item in range(n_items)]))
    about = {"index": str(folder / "bundle" / "index" / "base.faiss"), "nprobe": NPROBE}
    (folder / "peer.json").write_text(json.dumps(about))


@contextmanager
def running(command: list[str], port: int, probe: str) -> Iterator[subprocess.Popen[bytes]]:
    """A server, once it answers."""
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True) as server,
    ):
        try:
            _wait_for(server, port, probe, log)
            yield server
        finally:
            server.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(20)
            with contextlib.suppress(ProcessLookupError):  # LitServe leaves its processes behind
                os.killpg(server.pid, signal.SIGKILL)


def _wait_for(server: subprocess.Popen[bytes], port: int, body: str, log: IO[bytes]) -> None:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        if server.poll() is not None:
            log.seek(0)
            raise SystemExit(f"a server ended: {log.read().decode()[-2000:]}")
        try:
            asked = urllib.request.Request(
                f"http://127.0.0.1:{port}/recommend", body.encode(), {"Content-Type": "application/json"}
            )
            answer = json.loads(urllib.request.urlopen(asked, timeout=5).read())
            assert len(answer["items"]) == K
            return
        except OSError:
            time.sleep(0.2)
    raise SystemExit("a server did not answer for 90 s")


def load(port: int, script: Path, connections: int, seconds: int) -> dict[str, float]:
    """Requests a second, and latencies in ms, by wrk."""
    done = subprocess.run(
        [
            "wrk",
            "-t1",
            f"-c{connections}",
            f"-d{seconds}s",
            "--latency",
            "-s",
            str(script),
            f"http://127.0.0.1:{port}",
        ],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    if "Non-2xx" in done or re.search(r"connect [1-9]|read [1-9]|write [1-9]", done):  # a busy machine may time out
        raise SystemExit(f"requests failed:\n{done}")
    found = {"requests_per_s": float(re.search(r"Requests/sec:\s+([\d.]+)", done)[1])}  # type: ignore[index]
    for name in ("50", "99"):
        value, unit = re.search(rf"{name}%\s+([\d.]+)(us|ms|s|m)", done).groups()  # type: ignore[union-attr]
        found[f"p{name}_ms"] = float(value) * _UNITS_MS[unit]
    return found


def stages(port: int) -> dict[str, float]:
    """Seconds a request spent in each stage so far, by the service's own metrics."""
    text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode()
    sums = dict(re.findall(r'stage_seconds_sum\{stage="(\w+)"\} ([\d.e+-]+)', text))
    count = float(re.search(r'stage_seconds_count\{stage="tower"\} (\d+)', text)[1])  # type: ignore[index]
    handled = float(re.search(r'request_seconds_sum\{route="recommend"\} ([\d.e+-]+)', text)[1])  # type: ignore[index]
    return {**{name: float(value) / count for name, value in sums.items()}, "handled": handled / count}


def cpu_seconds(process: int) -> float:
    """Processor time that a process and its descendants have used."""
    total = 0.0
    for one in family(process):
        fields = Path(f"/proc/{one}/stat").read_text().rsplit(")", 1)[1].split()
        total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def family(process: int) -> list[int]:
    """A process and its descendants."""
    children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return [process, *(one for child in children for one in family(int(child)))]


def memory_mib(process: int) -> float:
    """Proportional share of memory of a process and its children."""
    total = 0.0
    for one in family(process):
        total += int(re.search(r"Pss:\s+(\d+)", Path(f"/proc/{one}/smaps_rollup").read_text())[1]) / 1024  # type: ignore[index]
    return total


def main() -> None:
    """Measure, print and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peer", type=Path)
    parser.add_argument("--keep", type=Path, help="folder that keeps the bundle for the next time")
    parser.add_argument("--results", type=Path)
    chosen = parser.parse_args()
    if shutil.which("wrk") is None:
        raise SystemExit("wrk is not installed: apt-get install wrk")
    with tempfile.TemporaryDirectory() as made:
        folder = chosen.keep or Path(made)
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "peer.json").exists():
            make_bundle(folder, chosen.items)
            write_requests(folder, chosen.items)
        found = measure(folder, chosen.seconds, chosen.rounds, chosen.peer)
    found["items"] = chosen.items
    text = json.dumps(found, indent=1)
    print(text)
    if chosen.results is not None:
        chosen.results.mkdir(parents=True, exist_ok=True)
        (chosen.results / "serve.json").write_text(text + "\n")


def measure(folder: Path, seconds: int, rounds: int, peer: Path | None) -> dict[str, Any]:
    """Everything, by turns."""
    peers = str(Path(__file__).parent / "serve_peers.py")
    service = [sys.executable, "-m", "twotower", "serve", str(folder / "bundle"), "--port"]
    commands = {
        "ours": [*service, str(PORT)],
        "bare": [sys.executable, peers, "bare", str(PORT + 1), str(folder)],
        **({} if peer is None else {"litserve": [str(peer), peers, "litserve", str(PORT + 2), str(folder)]}),
    }
    ports = {"ours": PORT, "bare": PORT + 1, "litserve": PORT + 2}
    scripts = {name: folder / ("ours.lua" if name == "ours" else "others.lua") for name in commands}
    of: dict[str, dict[int, list[dict[str, float]]]] = {name: {c: [] for c in CONNECTIONS} for name in commands}
    with contextlib.ExitStack() as servers:
        up = {}
        for name, command in commands.items():
            body = scripts[name].with_suffix(".txt").read_text().split("\n")[0]
            up[name] = servers.enter_context(running(command, ports[name], body))
            load(ports[name], scripts[name], 8, 2)
        for _ in range(rounds):
            for connections in CONNECTIONS:
                for name, server in up.items():  # the others are idle meanwhile
                    before = cpu_seconds(server.pid)
                    measured = load(ports[name], scripts[name], connections, seconds)
                    spent_s = cpu_seconds(server.pid) - before
                    measured["cpu_us"] = 1e6 * spent_s / (measured["requests_per_s"] * seconds)
                    of[name][connections].append(measured)
                    print(name, connections, {key: round(value, 2) for key, value in measured.items()}, flush=True)
        spent = stages(PORT)
    table = {name: {c: _median(each) for c, each in by.items()} for name, by in of.items()}
    found: dict[str, Any] = {
        "requests_per_s": table["ours"][8]["requests_per_s"],
        "share_of_bare_asgi": table["ours"][8]["requests_per_s"] / table["bare"][8]["requests_per_s"],
        "share_of_bare_asgi_by_connections": {
            c: table["ours"][c]["requests_per_s"] / table["bare"][c]["requests_per_s"] for c in CONNECTIONS
        },
        "share_of_bare_asgi_by_cpu": table["bare"][8]["cpu_us"] / table["ours"][8]["cpu_us"],
        "p50_ms_c1": table["ours"][1]["p50_ms"],
        "p99_ms_c1": table["ours"][1]["p99_ms"],
        "p99_ms_c32": table["ours"][32]["p99_ms"],
        "shares": {
            name: round(spent[name] * table["ours"][8]["requests_per_s"], 3)
            for name in ("encode", "tower", "search", "json")
        },
        "us_a_request": {name: round(1e6 * value, 1) for name, value in spent.items()},
        "by_connections": table,
    }
    found["shares"]["http"] = round(1 - sum(found["shares"].values()), 3)
    if peer is not None:
        found["ratio_over_peer"] = found["requests_per_s"] / table["litserve"][8]["requests_per_s"]
    return found | memory(folder, service)


def memory(folder: Path, service: list[str]) -> dict[str, float]:
    """What a second worker takes, in proportional shares (PSS) of the whole service under load."""
    used = {}
    body = (folder / "ours.txt").read_text().split("\n")[0]
    for workers in (1, 2):
        with running([*service, str(PORT), "--workers", str(workers)], PORT, body) as server:
            load(PORT, folder / "ours.lua", 32, 5)
            used[workers] = memory_mib(server.pid)
    return {
        "memory_mib_1_worker": used[1],
        "memory_mib_2_workers": used[2],
        "second_worker_share": (used[2] - used[1]) / used[1],
    }


def _median(each: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(one[name] for one in each) for name in each[0]}


if __name__ == "__main__":
    main()
