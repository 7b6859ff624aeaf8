"""The committed run on impressions reads the real files, and trains with what was shown and not clicked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from benchmarks.data import committed_run, data_folder

from twotower.data.splits import SHOWN
from twotower.negatives import Impressions
from twotower.training.loop import fit_once, open_or_ingest


@pytest.mark.slow
def test_the_committed_run_reads_real_impressions(tmp_path: Path) -> None:
    source = data_folder() / "kuairand-pure" / "impressions_2022-04-25_30.parquet"
    if not source.exists():
        pytest.skip(f"no data at {source}: set TWOTOWER_DATA to the folder that holds it")
    run = committed_run("kuairand", tmp_path, ["training.epochs=0.1", "training.validate_every=1"])
    store = open_or_ingest(run, quiet=True)
    columns = ["user_id", "video_id", "time_ms", "is_click"]
    distinct = set(zip(*(pq.read_table(source, columns=columns)[name].to_pylist() for name in columns), strict=True))
    clicks = sum(row[3] for row in distinct)
    assert (store.n_events, len(store.taken_events())) == (len(distinct), clicks)
    part = run.split.assign(store)
    sizes = [int((part == number).sum()) for number in range(3)]
    assert sizes == pytest.approx([0.8 * clicks, 0.1 * clicks, 0.1 * clicks], rel=0.01)
    assert (part >= SHOWN).sum() == len(distinct) - clicks
    fit = fit_once(run, store, np.where(part % SHOWN == 0, part, -1).astype(np.int8))
    (sampler,) = [part for part in fit.model.negatives.modules() if isinstance(part, Impressions)]
    trained = {(int(store.query_row[at]), int(store.item_row[at])) for at in np.flatnonzero(part == 0)}
    shown = {(int(store.query_row[at]), int(store.item_row[at])) for at in np.flatnonzero(part == SHOWN)}
    assert len(sampler.key_L) == len(shown - trained)
