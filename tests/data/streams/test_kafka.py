"""A Kafka topic, read from librdkafka's mock cluster: each message once; bad ones are counted, gaps refused."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from confluent_kafka import Producer

from twotower.data.streams import Kafka
from twotower.errors import ConfigError, DataError

from .reading import caught_up, rows, with_kills

N_PARTITIONS = 4  # what the mock gives a new topic

Send = Callable[..., None]


@pytest.fixture(scope="module")
def producer() -> Iterator[Producer]:
    """The mock cluster lives as long as it does."""
    producer = Producer({"test.mock.num.brokers": 2, "bootstrap.servers": "none", "log_level": 0})
    yield producer
    producer.flush(5)


@pytest.fixture
def servers(producer: Producer) -> str:
    return ",".join(f"{broker.host}:{broker.port}" for broker in producer.list_topics(timeout=10).brokers.values())


@pytest.fixture
def topic(request: pytest.FixtureRequest) -> str:
    """A topic of the test's own."""
    return "".join(letter if letter.isalnum() else "-" for letter in request.node.name)


@pytest.fixture
def send(producer: Producer, topic: str) -> Send:
    def send(*values: object, partition: int = 0) -> None:
        for value in values:
            raw = value if isinstance(value, bytes) or value is None else json.dumps(value).encode()
            producer.produce(topic, raw, partition=partition)
        assert producer.flush(10) == 0

    return send


def items(*numbers: int) -> list[dict[str, int]]:
    return [{"item": number} for number in numbers]


def test_what_is_there_comes_by_partition_and_offset(send: Send, topic: str, servers: str) -> None:
    send(*items(10, 11, 12), partition=1)
    send(*items(1, 2), partition=0)
    found, position = caught_up(Kafka(topic, servers))
    assert found == [("offsets 0:2 1:3 2:0 3:0", [1, 2, 10, 11, 12])]
    assert position == {"source": "kafka", "topic": topic, "offsets": {"0": 2, "1": 3, "2": 0, "3": 0}}
    assert caught_up(Kafka(topic, servers), position) == ([], position)
    send(*items(3), partition=0)
    send(*items(20), partition=2)  # a partition that had nothing
    assert caught_up(Kafka(topic, servers), json.loads(json.dumps(position)))[0] == [
        ("offsets 0:3 1:3 2:1 3:0", [3, 20])
    ]


def test_arrivals_are_bounded_and_partitions_stay_abreast(send: Send, topic: str, servers: str) -> None:
    send(*items(*range(100, 120)), partition=1)
    send(*items(*range(10)), partition=0)
    found, _ = caught_up(Kafka(topic, servers, most=6))
    assert [items for _, items in found] == [
        [*range(2 * at, 2 * at + 2), *range(100 + 4 * at, 104 + 4 * at)] for at in range(5)
    ]


@pytest.mark.parametrize("every", [1, 2])
def test_killed_between_arrivals_each_message_comes_once(send: Send, topic: str, servers: str, every: int) -> None:
    for partition in range(N_PARTITIONS):
        send(*items(*range(100 * partition, 100 * partition + 7 + 5 * partition)), partition=partition)
    sent = [100 * partition + at for partition in range(N_PARTITIONS) for at in range(7 + 5 * partition)]
    assert sorted(with_kills(Kafka(topic, servers, most=9), every)) == sent  # type: ignore[type-var]


def test_bad_messages_are_counted_and_never_stop_the_rest(send: Send, topic: str, servers: str) -> None:
    bad = [b"", None, b"[1, 2]", b"{}", b"\xff\xfe{", b'{"item": ', b"[" * 100_000]
    send({"item": 1}, *bad, {"item": "text"}, {"item": 2**70}, {"item": 3, "text": "x" * 2_000}, {"item": 4})
    (arrival,) = Kafka(topic, servers, message_bytes=1_000).since(None)
    assert rows(arrival) == [1, 4]
    assert arrival.left_out is not None
    assert arrival.left_out.read == 2 + len(bad) + 3
    assert arrival.left_out.left_out == {
        "message is no JSON object": 6,
        "message too large": 2,
        "a field is of another type than in most messages": 2,
    }
    assert arrival.left_out.examples["a field is of another type than in most messages"] == [
        "partition 0 offset 8: item is text, number in most",
        "partition 0 offset 9: item is a value that no column holds, number in most",
    ]
    assert arrival.position["offsets"]["0"] == 12


def test_where_nothing_can_be_used_the_position_moves_on(send: Send, topic: str, servers: str) -> None:
    send(b"avro", b"avro")
    (arrival,) = Kafka(topic, servers).since(None)
    assert arrival.interactions is None
    assert arrival.left_out is not None
    assert arrival.left_out.kept == 0
    send({"item": 1})
    assert caught_up(Kafka(topic, servers), arrival.position)[0] == [("offsets 0:3 1:0 2:0 3:0", [1])]


def test_messages_deleted_before_they_were_read_are_a_gap(send: Send, topic: str, servers: str) -> None:
    send(*items(1, 2))
    _, position = caught_up(Kafka(topic, servers))
    send(*[{"item": 3, "long": "x" * 900_000}] * 12)  # the mock keeps 5 MiB of a partition
    with pytest.raises(
        DataError, match=r"partition 0: expected offset 2, found \d+ to 14: the messages .* retention\.ms"
    ):
        caught_up(Kafka(topic, servers), position)
    ((_, kept),) = caught_up(Kafka(topic, servers))[0]
    assert 0 < len(kept) < 12


def test_a_topic_made_anew_is_a_gap(send: Send, topic: str, servers: str) -> None:
    send(*items(*range(10)))
    with pytest.raises(
        DataError, match="partition 0: expected offset 11, found 0 to 10: the topic was made anew or cut"
    ):
        caught_up(Kafka(topic, servers), {"source": "kafka", "topic": topic, "offsets": {"0": 11}})


def test_messages_deleted_while_they_are_read_are_a_gap(send: Send, topic: str, servers: str) -> None:
    send(*items(1, 2))
    with pytest.raises(DataError, match="partition 0: offset 500 was deleted while it was to be read"):
        Kafka(topic, servers)._read({0: (500, 510)})


def test_positions_of_other_topics_are_refused(send: Send, topic: str, servers: str) -> None:
    send(*items(1))
    with pytest.raises(DataError, match="position of topic 'other'"):
        caught_up(Kafka(topic, servers), {"source": "kafka", "topic": "other", "offsets": {}})
    with pytest.raises(DataError, match="knows partition 9, which is not there"):
        caught_up(Kafka(topic, servers), {"source": "kafka", "topic": topic, "offsets": {"9": 1}})


def test_a_broker_or_topic_that_is_not_there_says_so(servers: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"kafka topic 'none' at .*: Broker: Unknown topic or partition"):
        caught_up(Kafka("none", servers))
    with pytest.raises(DataError, match=r"kafka topic 'none' at 127\.0\.0\.1:1: "):
        caught_up(Kafka("none", "127.0.0.1:1", timeout_s=0.3))
    monkeypatch.setitem(sys.modules, "confluent_kafka", None)
    with pytest.raises(ConfigError, match=r"pip install 'twotower\[kafka\]'"):
        caught_up(Kafka("none", servers))


def test_properties_come_from_a_file(send: Send, topic: str, servers: str, tmp_path: Path) -> None:
    send(*items(1))
    file = tmp_path / "client.properties"
    file.write_text("# ours\nclient.id = twotower-test\nauto.offset.reset=latest\n", encoding="utf-8")
    assert caught_up(Kafka(topic, servers, properties=str(file)))[0] == [("offsets 0:1 1:0 2:0 3:0", [1])]
    file.write_text("no.such.thing=1\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r'No such configuration property: "no\.such\.thing"'):
        caught_up(Kafka(topic, servers, properties=str(file)))
    file.write_text("password\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"client\.properties, line 1: expected name=value"):
        caught_up(Kafka(topic, servers, properties=str(file)))
    with pytest.raises(ConfigError, match=r"properties: .* can't be read"):
        caught_up(Kafka(topic, servers, properties=str(tmp_path / "no")))
