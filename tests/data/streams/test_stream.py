"""Following a stream, and naming one."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import deltalake
import pyarrow as pa
import pyarrow.parquet
import pytest

from twotower.data.ingest import ingest
from twotower.data.report import Tally
from twotower.data.store import Store
from twotower.data.streams import (
    Arrival,
    Delta,
    Folder,
    Kafka,
    Position,
    follow,
    stop_on_signal,
    stream_of,
)
from twotower.data.streams.messages import table_of
from twotower.errors import ConfigError
from twotower.schema import Id, Interactions, Schema


class Counting:
    """Numbers up to ``there``; one more is there at every look."""

    def __init__(self, there: int) -> None:
        self.there = there
        self.looks = 0

    def since(self, position: Position | None) -> Iterator[Arrival]:
        self.looks += 1
        self.there += self.looks > 1
        for at in range(0 if position is None else position["next"], self.there):
            yield Arrival(name=str(at), interactions=None, position={"next": at + 1})


def test_follow_gives_what_is_there_and_then_what_comes() -> None:
    stream, names = Counting(2), []
    for arrival in follow(stream, every_s=0.0, stop=lambda: len(names) == 5):
        names.append(arrival.name)
    assert names == ["0", "1", "2", "3", "4"]
    assert stream.looks == 4
    rest = follow(stream, {"next": 4}, every_s=0.0, stop=lambda: False)
    assert next(rest).name == "4"


def test_follow_stops_between_arrivals_and_while_it_waits() -> None:
    names = [arrival.name for arrival in follow(Counting(3), every_s=1e9, stop=iter([False, False, True]).__next__)]
    assert names == ["0", "1"]  # asked before the first look, and after each
    with stop_on_signal() as stop:
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
        assert [arrival.name for arrival in follow(Counting(1), every_s=1e9, stop=stop)] == ["0"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_asks_and_the_second_interrupts(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    heard = []
    signal.signal(number, lambda *_: heard.append(number))
    try:
        with stop_on_signal() as stop:
            assert not stop()
            signal.raise_signal(number)
            assert stop()
            assert not heard
            signal.raise_signal(number)
            assert heard == [number]
        signal.raise_signal(number)
        assert heard == [number, number]
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize(
    ("text", "stream"),
    [
        ("days/", Folder("days/")),
        ("./delta:odd", Folder("./delta:odd")),
        ("/data/by day", Folder("/data/by day")),
        ("delta:tables/events", Delta("tables/events")),
        ("delta:s3://bucket/events", Delta("s3://bucket/events")),
        ("delta:t?first=snapshot&rewrites=skip", Delta("t", first="snapshot", rewrites="skip")),
        ("kafka://h:9092/clicks", Kafka("clicks", "h:9092")),
        ("kafka://a.b:1,c:2/t?most=10&timeout_s=3", Kafka("t", "a.b:1,c:2", most=10, timeout_s=3.0)),
        ("kafka://h:1/t?properties=my/client.properties", Kafka("t", "h:1", properties="my/client.properties")),
    ],
)
def test_text_names_a_stream(text: str, stream: object) -> None:
    assert stream_of(text) == stream


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "found an empty source, expected a folder, delta:PATH or kafka://"),
        ("s3://bucket/days", "found a source of kind 's3', expected a folder, delta:PATH or kafka://"),
        ("delta:", "found no path"),
        ("delta:t?frist=snapshot", "first"),
        ("delta:t?rewrites=ignore", "rewrites"),
        ("delta:t?path=x", "found path a second time"),
        ("delta:t?skip", "expected NAME=VALUE after"),
        ("kafka://h:1", "expected kafka://HOST:PORT/TOPIC"),
        ("kafka://h/t", "expected kafka://HOST:PORT/TOPIC"),
        ("kafka://h:1/t/u", "expected kafka://HOST:PORT/TOPIC"),
        ("kafka://me:secret@h:1/t", "expected kafka://HOST:PORT/TOPIC"),
        ("kafka://h:1/t?most=many", "most"),
        ("kafka://h:1/t?most=0", "most: found 0, expected more than 0"),
    ],
)
def test_text_that_names_none_says_what_would(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        stream_of(text)
    assert str(error.value).startswith(text or "found")


def test_what_arrives_is_ingested(tmp_path: Path) -> None:
    frame = pa.table({"user": ["u", "v", "u"], "item": ["b", "a", "c"], "time": [30, 10, 20]})
    (tmp_path / "days" / "1").mkdir(parents=True)
    pa.parquet.write_table(frame, tmp_path / "days" / "1" / "a.parquet")
    pa.parquet.write_table(frame.slice(0, 0), tmp_path / "days" / "1" / "b.parquet")
    deltalake.write_deltalake(str(tmp_path / "table"), frame, partition_by=["user"])
    messages = table_of([("", json.dumps(row).encode()) for row in frame.to_pylist()], Tally("messages"), most_bytes=99)
    (folder,) = Folder(str(tmp_path / "days")).since(None)
    (table,) = Delta(str(tmp_path / "table")).since(None)
    schema = Schema(
        interactions=Interactions(query="user", item="item", time="time"),
        query={"user": Id(column="user")},
        item={"item": Id(column="item")},
    )
    for at, source in enumerate((folder.interactions, table.interactions, messages)):
        assert source is not None
        ingest(schema, interactions=source, out=tmp_path / f"store-{at}")
        store = Store.open(tmp_path / f"store-{at}")
        ids = store.item_vocabulary.ids()
        assert [ids[row].as_py() for row in store.item_row] == ["a", "c", "b"]
        assert store.time_us is not None
        assert store.time_us.tolist() == [10_000_000, 20_000_000, 30_000_000]
