"""A Kafka topic whose messages are JSON objects."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ...errors import ConfigError, DataError
from ..report import Tally
from .messages import table_of
from .stream import Arrival, Position, saved

if TYPE_CHECKING:
    import confluent_kafka

_SOURCE = "kafka"
_POLL_S = 0.5
_SHOWN_PARTITIONS = 8
_PASSING = (-195, -187)
"""Codes of librdkafka for a lost connection and for no broker at hand: it tries again by itself."""

_Values = list[tuple[str, bytes | None]]


@dataclass(frozen=True, slots=True)
class Kafka:
    """A topic: what is in it when one looks, in arrivals of at most ``most`` messages, each a JSON object.

    All partitions are read, with no consumer group: the position is the next offset of each partition, kept by whoever
    reads and nowhere in the broker. An arrival takes of each partition in proportion to what waits there, so that
    they stay abreast; its rows are in the order of partition and offset. Partitions that are added are read from
    their first message.

    A message that is no object, is too large, or has a field of another type than most is left out and counted in the
    arrival. Values are kept as JSON has them; objects within objects become text.

    Memory: an arrival as Python values, about 1 kB a message of five fields.

    Needs the extra ``twotower[kafka]``. Tested against the mock cluster of librdkafka, not against a real broker.
    """

    topic: str
    servers: str
    """``host:port``, several with commas."""
    _: KW_ONLY
    most: int = 200_000
    """Messages of an arrival."""
    message_bytes: int = 1 << 20
    """Bytes of a message; one with more is left out."""
    timeout_s: float = 30.0
    """How long a broker may say nothing."""
    properties: str | None = None
    """File of further client properties, ``name=value`` a line, such as ``security.protocol`` and passwords."""

    def __post_init__(self) -> None:
        for name in ("most", "message_bytes", "timeout_s"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name}: found {getattr(self, name)}, expected more than 0")

    def since(self, position: Position | None) -> Iterator[Arrival]:
        """The messages after ``position`` that are there now.

        Raises:
            ConfigError: confluent-kafka is not installed, or a property is wrong.
            DataError: the broker does not answer or refuses; there is no such topic; messages after the position were
                deleted before they were read.
        """
        with self._consumer() as consumer:
            bounds = self._bounds(consumer)
        start = self._start(position, bounds)
        end = {partition: high for partition, (_, high) in bounds.items()}
        while ranges := _shares(start, end, self.most):
            values, reached = self._read(ranges)
            start |= reached
            # a transaction that is still open ends a partition early: the rest comes with the next look
            end |= {partition: to for partition, to in reached.items() if to < ranges[partition][1]}
            if any(to > ranges[partition][0] for partition, to in reached.items()):
                yield self._arrival(values, start)

    def _arrival(self, values: _Values, start: Mapping[int, int]) -> Arrival:
        tally = Tally("messages")
        table = table_of(values, tally, most_bytes=self.message_bytes)
        shown = [f"{partition}:{offset}" for partition, offset in sorted(start.items())]
        more = [f"and {len(shown) - _SHOWN_PARTITIONS} more"] if len(shown) > _SHOWN_PARTITIONS else []
        return Arrival(
            name=" ".join(["offsets", *shown[:_SHOWN_PARTITIONS], *more]),
            interactions=table if len(table) else None,
            position={
                "source": _SOURCE,
                "topic": self.topic,
                "offsets": {str(partition): offset for partition, offset in sorted(start.items())},
            },
            left_out=tally.report(),
        )

    def _start(self, position: Position | None, bounds: Mapping[int, tuple[int, int]]) -> dict[int, int]:
        """The next offset of each partition, checked against what the broker has."""
        start = {partition: low for partition, (low, _) in bounds.items()}
        if position is None:
            return start
        read = saved(position, _SOURCE, self._where)
        if read["topic"] != self.topic:
            raise DataError(f"{self._where}: found a position of topic {read['topic']!r}: start without a position")
        for text, offset in read["offsets"].items():
            partition = int(text)
            if partition not in bounds:
                raise DataError(
                    f"{self._where}: the position knows partition {partition}, which is not there: the topic was made "
                    "anew; start without a position"
                )
            low, high = bounds[partition]
            if not low <= offset <= high:
                raise DataError(self._out_of_range(partition, offset, low, high))
            start[partition] = offset
        return start

    def _out_of_range(self, partition: int, offset: int, low: int, high: int) -> str:
        why = (
            "the messages between were deleted before they were read: raise the topic's retention.ms"
            if offset < low
            else "the topic was made anew or cut short"
        )
        return (
            f"{self._where}, partition {partition}: expected offset {offset}, found {low} to {high}: {why}; start "
            "without a position to go on with what is there"
        )

    # ---------------------------------------------------------------- the broker

    @property
    def _where(self) -> str:
        return f"kafka topic {self.topic!r} at {self.servers}"

    @contextmanager
    def _consumer(self) -> Iterator[confluent_kafka.Consumer]:
        try:
            import confluent_kafka
        except ImportError as error:
            raise ConfigError(
                f"{self._where}: confluent-kafka is not installed: pip install 'twotower[kafka]'"
            ) from error
        settings: dict[str, Any] = {
            "group.id": "twotower",  # asked for, but never joined
            "log_level": 2,  # what goes wrong comes as an exception
            "isolation.level": "read_committed",
            **self._properties(),
            "bootstrap.servers": self.servers,
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "enable.partition.eof": True,
            "auto.offset.reset": "error",
        }
        try:
            consumer = confluent_kafka.Consumer(settings)
        except confluent_kafka.KafkaException as error:
            raise ConfigError(f"{self._where}: {error.args[0].str()}") from error
        try:
            yield consumer
        except confluent_kafka.KafkaException as error:
            raise DataError(f"{self._where}: {error.args[0].str()}") from error
        finally:
            consumer.close()

    def _properties(self) -> dict[str, str]:
        if self.properties is None:
            return {}
        try:
            lines = Path(self.properties).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"properties: {self.properties} can't be read ({error})") from error
        found: dict[str, str] = {}
        for at, line in enumerate(lines, start=1):
            name, equals, value = line.partition("=")
            if not line.strip() or line.lstrip().startswith("#"):
                continue
            if not equals:
                raise ConfigError(f"{self.properties}, line {at}: expected name=value")
            found[name.strip()] = value.strip()
        return found

    def _bounds(self, consumer: confluent_kafka.Consumer) -> dict[int, tuple[int, int]]:
        """First offset, and the one after the last, of each partition."""
        from confluent_kafka import TopicPartition

        topic = consumer.list_topics(self.topic, timeout=self.timeout_s).topics[self.topic]
        if topic.error is not None:
            raise DataError(f"{self._where}: {topic.error.str()}")
        bounds: dict[int, tuple[int, int]] = {}
        for partition in sorted(topic.partitions):
            found = consumer.get_watermark_offsets(TopicPartition(self.topic, partition), timeout=self.timeout_s)
            if found is None:
                raise DataError(f"{self._where}, partition {partition}: no answer for {self.timeout_s:g} s")
            bounds[partition] = found
        return bounds

    def _read(self, ranges: Mapping[int, tuple[int, int]]) -> tuple[_Values, dict[int, int]]:
        """Values between two offsets of each partition, and the next offset of each."""
        from confluent_kafka import TopicPartition

        values: dict[int, _Values] = {partition: [] for partition in sorted(ranges)}
        reached: dict[int, int] = {}
        with self._consumer() as consumer:
            consumer.assign([TopicPartition(self.topic, partition, start) for partition, (start, _) in ranges.items()])
            heard = time.monotonic()
            while len(reached) < len(ranges):
                if time.monotonic() - heard > self.timeout_s:
                    raise DataError(f"{self._where}: no message for {self.timeout_s:g} s, though there are some")
                message = consumer.poll(_POLL_S)
                at = None if message is None else self._place(message)
                if message is None or at is None or at.partition in reached:
                    continue
                heard = time.monotonic()
                end = ranges[at.partition][1]
                if not at.is_end and at.offset < end:
                    place = f"partition {at.partition} offset {at.offset}"
                    values[at.partition].append((place, message.value()))
                if at.is_end or at.offset >= end - 1:
                    reached[at.partition] = min(at.offset, end) if at.is_end else end
                    consumer.pause([TopicPartition(self.topic, at.partition)])
        return [value for part in values.values() for value in part], reached

    def _place(self, message: confluent_kafka.Message) -> _Place | None:
        """Where a message stands; None for a fault that may pass."""
        from confluent_kafka import KafkaError

        partition, offset, error = message.partition(), message.offset(), message.error()
        if error is not None and (error.retriable() or error.code() in _PASSING):
            return None
        if partition is None or offset is None:
            raise DataError(f"{self._where}: {error}")
        if error is None:
            return _Place(partition, offset, is_end=False)
        if error.code() == KafkaError._PARTITION_EOF:
            return _Place(partition, offset, is_end=True)
        if error.code() == KafkaError._AUTO_OFFSET_RESET:
            raise DataError(
                f"{self._where}, partition {partition}: offset {offset} was deleted while it was to be read: raise the "
                "topic's retention.ms; start without a position to go on with what is there"
            )
        raise DataError(f"{self._where}: {error.str()}")


class _Place(NamedTuple):
    partition: int
    offset: int
    is_end: bool
    """There is no message; it says that the partition ends at ``offset``."""


def _shares(start: Mapping[int, int], end: Mapping[int, int], most: int) -> dict[int, tuple[int, int]]:
    """From and to which offset each partition is read: ``most`` in all, in proportion to what waits in each."""
    waiting = {partition: end[partition] - start[partition] for partition in sorted(start)}
    total = sum(waiting.values())
    if not total:
        return {}
    take = min(most, total)
    cuts = [0, *accumulate(waiting.values())]
    shares = [high * take // total - low * take // total for low, high in pairwise(cuts)]
    return {
        partition: (start[partition], start[partition] + share)
        for partition, share in zip(waiting, shares, strict=True)
        if share
    }
