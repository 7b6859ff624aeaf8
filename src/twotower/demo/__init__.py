"""The demo: train on Debian's package links, measure, look at what is found. All data is in the package."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path

from rich.console import Console

from ..config import Run, load_run
from ..errors import ArtifactError
from ..training import Retriever, evaluate, train

PACKAGES = ("gimp", "python3-numpy", "nginx", "supertux")
TEXTS = ("image viewer for GNOME", "play music from the command line", "fonts for chinese text")


def demo_run(out: Path, set: Sequence[str] = ()) -> Run:
    """The demo's run, its store under ``out``; ``set`` overrides settings as on the command line."""
    with resources.as_file(resources.files(__package__)) as folder:
        run = load_run(folder / "run.toml", set)
    assert run.data is not None
    return replace(run, data=replace(run.data, store=str(out / "store")))


def demo(out: str | Path = "demo") -> None:
    """Ingest, train, evaluate and query the demo into the folder ``out``, replacing what an earlier demo left there."""
    console, out, started = Console(highlight=False), Path(out).absolute(), time.perf_counter()
    _clear(out)
    console.rule("1. ingest and train: 63,666 packages, 300,368 links")
    trained = train(demo_run(out), out / "model")
    console.print(trained.render())
    console.rule("2. evaluate: packages held out whole, against the full catalogue")
    console.print(evaluate(out / "model").table())
    console.rule("3. what it finds")
    retriever = Retriever.open(out / "model")
    for package in PACKAGES:
        _show(console, f"package {package}", retriever, {"package": package})
    for text in TEXTS:
        _show(console, f'text "{text}"', retriever, {"description": text})
    console.rule(f"done in {time.perf_counter() - started:.0f} s")
    console.print(
        f"The model is in {out / 'model'}. Next:\n"
        f'  twotower recommend {_short(out / "model")} --query \'{{"description": "web server"}}\' --k 10\n'
        f"  twotower evaluate {_short(out / 'model')} --json\n"
        "  twotower init YOUR_INTERACTIONS.csv --items YOUR_ITEMS.csv --out run.toml\n"
        "  twotower train run.toml --out model",
        soft_wrap=True,
    )


def _show(console: Console, title: str, retriever: Retriever, query: dict[str, object]) -> None:
    found = retriever.recommend(query, k=8, filter_seen=False)
    console.print(f"[bold]{title}[/bold]: " + ", ".join(f"{r.item} {r.score:.2f}" for r in found), soft_wrap=True)


def _short(path: Path) -> str:
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _clear(out: Path) -> None:
    """Remove an earlier demo; anything else in the folder is the user's."""
    if not out.exists():
        return
    strange = sorted(p.name for p in out.iterdir() if p.name not in ("model", "store"))
    if strange:
        raise ArtifactError(f"{out}: holds {strange[0]!r}, which no demo wrote: choose another folder with --out")
    for name in ("model", "store"):
        shutil.rmtree(out / name, ignore_errors=True)
