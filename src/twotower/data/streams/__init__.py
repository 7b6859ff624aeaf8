"""Sources that go on: folders by day, Delta tables and Kafka topics, in order, with a position to go on from."""

from .delta import Delta
from .folder import Folder
from .kafka import Kafka
from .named import Streams, stream_of
from .stream import Arrival, Position, Stream, follow, stop_on_signal

__all__ = [
    "Arrival",
    "Delta",
    "Folder",
    "Kafka",
    "Position",
    "Stream",
    "Streams",
    "follow",
    "stop_on_signal",
    "stream_of",
]
