"""Where benchmark data lies: the demo's comes with the package, the rest is read in place."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.splits import write_kuairand, write_lastfm, write_ml_100k
from benchmarks.tldr import write_tables
from twotower.config import Run, load_run
from twotower.demo import demo_run

SETTINGS = Path(__file__).parent / "settings"


def data_folder() -> Path:
    """``$TWOTOWER_DATA``, or ``../shared/data`` beside the project."""
    return Path(os.environ.get("TWOTOWER_DATA", Path(__file__).parents[2] / "shared" / "data"))


_MADE_OF: dict[str, Callable[[Path, Path], None]] = {
    "tldr": lambda source, out: write_tables(source / "pages.jsonl.gz", out),
    "lastfm": write_lastfm,
    "kuairand-pure": write_kuairand,
    "ml-100k": write_ml_100k,
}
"""Data whose files can't be read as they are: what makes tables of a folder in another."""


def committed_run(name: str, work: Path, set: Sequence[str] = ()) -> Run:
    """The committed settings of a benchmark, its store under ``work``."""
    if name == "debian":
        return demo_run(work, set)
    path = SETTINGS / f"{name}.toml"
    if not path.exists():
        known = sorted(["debian", *(p.stem for p in SETTINGS.glob("*.toml"))])
        raise SystemExit(f"no settings named {name!r}: expected one of {known}")
    run = load_run(path, set)
    assert run.data is not None
    folder = data_folder()
    source = folder / Path(run.data.interactions[0]).parent.name
    if not source.exists():
        raise SystemExit(f"{name}: its data is not at {source}; set TWOTOWER_DATA to the folder that holds it")
    if source.name in _MADE_OF:
        _MADE_OF[source.name](source, work / source.name)
        folder = work

    def placed(paths: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(str(folder / Path(p).relative_to(SETTINGS.resolve())) for p in paths)

    data = replace(
        run.data,
        interactions=placed(run.data.interactions),
        queries=placed(run.data.queries),
        items=placed(run.data.items),
        test=placed(run.data.test),
        store=str(work / "store"),
    )
    return replace(run, data=data)
