"""Published data as tables that can be ingested: of splits the pairs that count as liked, a file of train and of test.

lastfm     as split by LightGCN and used for the ladder of DENS: every line is a positive (user, artist, plays)
ml-100k    IRGAN's split: a positive is a rating of 4 or 5; ratings below that are left out
kuairand   no split: impressions with clicks and times watched, users with what they had watched before, videos
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as csv
import pyarrow.parquet as pq

_LIKED_FROM = 4
"""Stars."""


def write_lastfm(source: Path, out: Path) -> None:
    """train.parquet and test.parquet, a line of each pair: ``user``, ``item``."""
    for name, file in (("train", "data1.txt"), ("test", "test1.txt")):
        _write(_read(source / file).select(["user", "item"]), out / f"{name}.parquet")


def write_ml_100k(source: Path, out: Path) -> None:
    """Likewise."""
    for name in ("train", "test"):
        table = _read(source / "irgan-split" / f"movielens-100k-{name}.txt")
        liked = table.filter(pc.greater_equal(table["value"], _LIKED_FROM))
        _write(liked.select(["user", "item"]), out / f"{name}.parquet")


def write_kuairand(source: Path, out: Path) -> None:
    """impressions.parquet; users.parquet with ``watched``, up to 50 videos from before; videos.parquet."""
    impressions = pq.read_table(
        source / "impressions_2022-04-25_30.parquet",
        columns=["user_id", "video_id", "time_ms", "is_click", "play_time_ms", "duration_ms"],
    )
    _write(impressions, out / "impressions.parquet")
    users = csv.read_csv(source / "user_features_pure.csv")
    watches = pq.read_table(source / "user_sequences.parquet", columns=["user_id", "watch_seq"])
    at = pc.index_in(users["user_id"], value_set=watches["user_id"].combine_chunks())
    _write(users.append_column("watched", watches["watch_seq"].take(at)), out / "users.parquet")
    _write(csv.read_csv(source / "video_features_basic_pure.csv"), out / "videos.parquet")


def _read(path: Path) -> pa.Table:
    return csv.read_csv(
        path,
        read_options=csv.ReadOptions(column_names=["user", "item", "value"]),
        parse_options=csv.ParseOptions(delimiter="\t"),
        convert_options=csv.ConvertOptions(
            column_types={"user": pa.int64(), "item": pa.int64(), "value": pa.float64()}
        ),
    )


def _write(table: pa.Table, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
