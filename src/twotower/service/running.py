"""A service's processes: one that listens and looks after the others, and workers that answer.

What workers can share, maps of the bundle's files and look-ups of ids, is made before they are forked; sessions,
threads and locks are made after.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import shutil
import signal
import socket
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import uvicorn

from ..bundle import Bundle
from ..errors import ArtifactError, ConfigError
from ..experiment import Assignment, ExposureLog
from .access_log import AccessLog
from .app import Service
from .asking import Limits
from .engine import Engine
from .journal import Journal
from .metrics import Metrics
from .protocol import quick_protocol
from .serving import Served, Serving, compact, log_line, newest, prepared, shared_between_workers
from .tokens import Tokens

GRACE_S = 30
"""How long requests under way may take when the service ends."""
_BACKLOG = 2048
_RESTART_S = 1.0
_FAILED = 1
"""Status of a worker that ended by an error of its own."""
_MOST_FAILURES = 5
"""Of workers, one after the other, each within ``_EARLY_S``: then none will do better."""
_EARLY_S = 60.0
_ENDING = (signal.SIGINT, signal.SIGTERM)
_PARENT_DEATH_SIGNAL = 1
"""PR_SET_PDEATHSIG of Linux."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One bundle of an experiment."""

    name: str
    bundle: Path
    share: float

    @staticmethod
    def parse(text: str) -> Arm:
        """``NAME=BUNDLE:SHARE``. Raises ConfigError for anything else."""
        name, _, rest = text.partition("=")
        path, _, share = rest.rpartition(":")
        try:
            if name and path:
                return Arm(name=name, bundle=Path(path), share=float(share))
        except ValueError:
            pass
        raise ConfigError(f"--arm {text}: expected NAME=BUNDLE:SHARE, such as new=bundles/2:0.5")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What is served, and how."""

    bundle: Path | None = None
    """A bundle, or a folder of them, of which the one with the greatest name is served."""
    host: str = "127.0.0.1"
    port: int = 8000
    """0 takes a free one."""
    workers: int = 1
    token_file: Path | None = None
    watch: bool = False
    """Serve versions that appear in the folder of bundles."""
    state: Path | None = None
    """Where changes of items are kept; without it they are refused."""
    arms: Sequence[Arm] = ()
    experiment: str = "experiment"
    exposures: Path | None = None
    """Folder for the log of what the arms of the experiment showed."""
    access_log: Path | None = None
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        if (self.bundle is None) == (not self.arms):
            raise ConfigError("serve: expected either a bundle, or arms of an experiment (--arm NAME=BUNDLE:SHARE)")
        if self.workers < 1:
            raise ConfigError(f"--workers {self.workers}: expected at least 1")
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"--port {self.port}: expected 0 to 65535")
        if len({arm.name for arm in self.arms}) != len(self.arms):
            raise ConfigError("--arm: two arms have one name")
        if self.arms and self.exposures is None:
            raise ConfigError("--arm: an experiment needs a folder for the log of exposures (--exposures FOLDER)")
        if self.exposures is not None and not self.arms:
            raise ConfigError("--exposures: the log is one of an experiment: name its arms (--arm), or leave it out")
        if self.watch and self.arms:
            raise ConfigError("--watch: not with arms, which are replaced by /reload")


def serve(settings: Settings) -> None:
    """Answer until a signal ends it (SIGINT, SIGTERM): requests under way are then answered, for 30 seconds at most.

    Raises:
        ArtifactError: a bundle is missing or damaged, or the state folder can't be used.
        ConfigError: settings that do not fit one another, an address that is taken, or a library is not installed.
    """
    _check(settings)
    tokens = Tokens.read(settings.token_file, settings.host)
    bundles = {name: prepared(Bundle.open(newest(folder), verify=True)) for name, folder in _folders(settings).items()}
    listening = _listen(settings.host, settings.port)
    if settings.state is not None:
        try:
            settings.state.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            listening.close()
            raise ArtifactError(
                f"--state {settings.state}: can't be used ({error.strerror}): choose another folder"
            ) from error
    agreed = Path(tempfile.mkdtemp(prefix="twotower-"))
    metrics = Metrics(settings.workers)
    job = _Job(settings, tokens, bundles, listening, agreed, metrics)
    host, port = listening.getsockname()[:2]
    log_line(
        "listening",
        url=f"http://{f'[{host}]' if ':' in host else host}:{port}",
        workers=settings.workers,
        bundles={name or "bundle": str(bundle.folder) for name, bundle in bundles.items()},
        items_can_change=settings.state is not None,
    )
    try:
        if settings.state is not None:
            journal = Journal(settings.state)  # once, before there are workers
            compact(journal)
            journal.close()
        if settings.workers == 1:
            job.work(0)
        else:
            _Workers(job).run()
    finally:
        listening.close()
        shutil.rmtree(agreed, ignore_errors=True)
    log_line("ended")


def _folders(settings: Settings) -> dict[str, Path]:
    if settings.bundle is not None:
        return {"": settings.bundle}
    return {arm.name: arm.bundle for arm in settings.arms}


def _assignment(settings: Settings) -> Assignment | None:
    """Who is in which arm; None without an experiment. Raises ConfigError for shares that make no whole."""
    if not settings.arms:
        return None
    return Assignment(name=settings.experiment, arms={arm.name: arm.share for arm in settings.arms})


def _check(settings: Settings) -> None:
    """Make once what workers make: what only they found out, each of them would, again and again."""
    _assignment(settings)
    if settings.exposures is not None:
        ExposureLog(settings.exposures).close()
    if settings.access_log is not None:
        AccessLog(settings.access_log).close()


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(_BACKLOG)
    except OSError as error:
        raise ConfigError(f"--host {host} --port {port}: can't listen there ({error.strerror})") from error
    return listening


@dataclass(frozen=True, slots=True)
class _Job:
    """What a worker needs to begin."""

    settings: Settings
    tokens: Tokens
    bundles: dict[str, Bundle]
    listening: socket.socket
    agreed: Path
    """Folder where workers agree on what they serve."""
    metrics: Metrics

    def served(self) -> Served:
        settings, assignment = self.settings, _assignment(self.settings)
        engines = {name: self._engine(name, bundle) for name, bundle in self.bundles.items()}
        for engine in engines.values():
            engine.warm()
        return Served(
            Serving(engines=engines, assignment=assignment),
            metrics=self.metrics,
            orders=self.agreed,
            state=settings.state,
            watch=_versions(settings) if settings.watch else None,
        )

    def _engine(self, name: str, bundle: Bundle) -> Engine:
        """With the parent's bundle, or where its folder holds another by now, or is gone, with the newest there is: a
        worker that is started anew opens towers by their paths, and those of one bundle do not go with the rest of
        another."""
        with contextlib.suppress(ArtifactError):
            engine = Engine(shared_between_workers(bundle), name or None)
            if bundle.is_there():
                return engine
        log_line("bundle replaced", path=bundle.folder, was=bundle.fingerprint)
        return Engine(prepared(Bundle.open(newest(_folders(self.settings)[name]), verify=True)), name or None)

    def work(self, number: int) -> None:
        """Answer requests until a signal comes."""
        with contextlib.suppress(ModuleNotFoundError):
            import faiss

            faiss.omp_set_num_threads(1)  # of this thread, which answers
        self.metrics.use(number)
        self.metrics.add("worker_starts")
        settings = self.settings
        service = Service(
            self.served(),
            limits=settings.limits,
            tokens=self.tokens,
            exposures=None if settings.exposures is None else ExposureLog(settings.exposures),
            access_log=None if settings.access_log is None else AccessLog(settings.access_log),
        )
        gc.collect()
        gc.freeze()  # what is here stays: the collector need not go through it again, nor touch shared pages
        config = uvicorn.Config(
            service,
            http=quick_protocol(service.quickly, settings.limits.body_bytes),
            loop="uvloop",
            ws="none",
            lifespan="on",
            access_log=False,
            log_config=None,
            server_header=False,
            backlog=_BACKLOG,
            timeout_graceful_shutdown=GRACE_S,
        )
        server = uvicorn.Server(config)

        def end(signal_number: int, frame: FrameType | None) -> None:
            """Before it answers; then uvicorn has handlers of its own, and raises the signal again when it is done."""
            if not server.started:
                raise SystemExit(0)

        before = {name: signal.signal(name, end) for name in _ENDING}
        try:
            server.run(sockets=[self.listening])
        finally:
            for name, handler in before.items():
                signal.signal(name, handler)


def _versions(settings: Settings) -> Path:
    """The folder that holds versions."""
    assert settings.bundle is not None
    return settings.bundle if newest(settings.bundle) != settings.bundle else settings.bundle.resolve().parent


class _Workers:
    """Forks workers, starts one anew where it dies, and ends them all."""

    def __init__(self, job: _Job) -> None:
        self._job = job
        self._number_of: dict[int, int] = {}
        self._ending = False
        self._failures = 0
        """Of workers, in a row, early and by errors of their own, not by signals."""
        self._forked_at: dict[int, float] = {}

    def run(self) -> None:
        before = {name: signal.signal(name, self._end) for name in _ENDING}
        try:
            for number in range(self._job.settings.workers):
                self._fork(number)
            while self._number_of:
                process, status = os.wait()
                number = self._number_of.pop(process, -1)
                if number >= 0 and not self._ending:
                    log_line("worker died", worker=number, process=process, status=os.waitstatus_to_exitcode(status))
                    self._start_anew(number, failed=os.waitstatus_to_exitcode(status) == _FAILED)
            if self._failures > _MOST_FAILURES:
                raise ConfigError(
                    f"workers failed {self._failures} times in a row: the lines above tell why (worker failed)"
                )
        finally:
            for name, handler in before.items():
                signal.signal(name, handler)

    def _start_anew(self, number: int, *, failed: bool) -> None:
        """But where workers do nothing but fail, end."""
        early = time.monotonic() - self._forked_at[number] < _EARLY_S
        self._failures = self._failures + 1 if failed and early else 0
        if self._failures > _MOST_FAILURES:
            self._end(signal.SIGTERM, None)
            return
        time.sleep(_RESTART_S)
        self._fork(number)

    def _fork(self, number: int) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)  # until the parent knows of the child, and it of itself
        self._forked_at[number] = time.monotonic()
        process = 0 if self._ending else os.fork()
        if process or self._ending:
            self._number_of |= {process: number} if process else {}
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)
            return
        status = _FAILED
        try:
            _end_with_parent()
            for name in _ENDING:
                signal.signal(name, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)
            self._job.work(number)
            status = 0
        except BaseException as error:
            log_line("worker failed", worker=number, error=repr(error), traceback=traceback.format_exc())
        finally:
            os._exit(status)

    def _end(self, signal_number: int, frame: FrameType | None) -> None:
        self._ending = True
        for process in self._number_of:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGTERM)


def _end_with_parent() -> None:
    """Have the system end this process when its parent is killed (Linux): its port would else be taken for ever."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGTERM)
