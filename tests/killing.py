"""Commands that are killed at random moments.

    with Commands(folder) as commands:
        ended = commands.run("train", "run.toml", "--out", "model", kill_after_s=0.3)

A server imports the package once and forks a process for every command, so that a kill falls into what the command does
and not into imports. It runs as ``python -m tests.killing`` and speaks JSON lines.
"""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self


class Ended(NamedTuple):
    """How a command ended."""

    killed: bool
    status: int
    """Of a command that was not killed."""
    seconds: float
    said: str
    """On stdout and stderr."""


class Commands:
    """Runs commands of ``twotower`` in a folder, each in a process of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.log = folder, folder / "said.txt"

    def __enter__(self) -> Self:
        root = Path(__file__).parents[1]
        paths = [str(root), str(root / "src"), os.environ.get("PYTHONPATH", "")]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
        self.server = subprocess.Popen(
            [sys.executable, "-m", "tests.killing"],
            cwd=self.folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        self.server.stdin.close()
        self.server.stdout.close()
        self.server.wait()

    def run(
        self,
        *arguments: str,
        kill_after_s: float | None = None,
        since: Path | None = None,
        most_bytes: int | None = None,
    ) -> Ended:
        """One command; killed (-9) after a time where it has not ended by then, counted from its start, or ``since``
        there is such a path. No file may grow above ``most_bytes``, as on a full disk."""
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        asked = {
            "arguments": arguments,
            "kill_after_s": kill_after_s,
            "since": None if since is None else str(since.resolve()),
            "most_bytes": most_bytes,
            "log": str(self.log),
        }
        self.server.stdin.write(json.dumps(asked) + "\n")
        self.server.stdin.flush()
        answer = json.loads(self.server.stdout.readline())
        return Ended(**answer, said=self.log.read_text(encoding="utf-8"))


def killed_at_random(
    commands: Commands,
    arguments: tuple[str, ...],
    rng: random.Random,
    *,
    span_s: float,
    kills: int,
    moment: Callable[[], str | None],
) -> Counter[str]:
    """Run a command again and again, killing it after a time uniform over ``span_s``, until it was killed so often or
    it came to its end; at last let it end.

    ``span_s`` is how long it takes without a kill. Returns where the kills fell, as ``moment`` finds it in what they
    left behind; None is for a command that had come to its end, and only had to say so.

    Raises AssertionError where a command fails.
    """
    fell: Counter[str] = Counter()
    for _ in range(kills):
        ended = commands.run(*arguments, kill_after_s=rng.uniform(0, span_s))
        if not ended.killed:
            assert ended.status == 0, ended.said
            return fell
        found = moment()
        if found is None:
            return fell
        fell[found] += 1
    ended = commands.run(*arguments)
    assert ended.status == 0, ended.said
    return fell


def _serve() -> None:
    """Import, then fork a process for each command."""
    import torch._dynamo  # which an optimiser imports, for seconds

    import twotower.training
    from twotower import cli
    from twotower.training import loop, matmul

    # Which products are fast may look different in another process, and what is held against each other must agree.
    loop.probe = lambda: matmul.Matmul(precision="highest", seconds={}, error={})  # type: ignore[assignment]
    assert twotower.training
    assert torch._dynamo
    for line in sys.stdin:
        asked = json.loads(line)
        started = time.perf_counter()
        process = os.fork()
        if process == 0:
            log = os.open(asked["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(log, 1)
            os.dup2(log, 2)
            if asked["most_bytes"] is not None:
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (asked["most_bytes"],) * 2)
            status = 1
            try:
                status = cli.main(asked["arguments"])
            finally:
                sys.stdout.flush()
                os._exit(status)
        killed, status = _wait(process, asked["kill_after_s"], asked["since"])
        answer = {"killed": killed, "status": status, "seconds": time.perf_counter() - started}
        print(json.dumps(answer), flush=True)


def _wait(process: int, kill_after_s: float | None, since: str | None) -> tuple[bool, int]:
    """Whether it was killed, and else its status."""
    deadline = None
    while kill_after_s is not None:
        if deadline is None and (since is None or os.path.exists(since)):
            deadline = time.perf_counter() + kill_after_s
        if deadline is not None and time.perf_counter() >= deadline:
            os.kill(process, signal.SIGKILL)
            break
        found, status = os.waitpid(process, os.WNOHANG)
        if found:
            return False, os.waitstatus_to_exitcode(status)
        time.sleep(0.001)
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    return code == -signal.SIGKILL, code


if __name__ == "__main__":
    _serve()
