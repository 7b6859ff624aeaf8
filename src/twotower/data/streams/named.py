"""Streams as one line of text, for settings and the command line."""

from __future__ import annotations

import re
from urllib.parse import parse_qsl, urlsplit

from ...errors import ConfigError
from ...settings import Codec, Tree
from .delta import Delta
from .folder import Folder
from .kafka import Kafka

Streams = Folder | Delta | Kafka

_FORMS = (
    "a folder, delta:PATH or kafka://HOST:PORT/TOPIC, the last two with settings such as ?first=snapshot or "
    "?most=100000&properties=client.properties"
)


def stream_of(text: str) -> Streams:
    """The stream that ``text`` names.

        days/                                       Folder
        delta:tables/events?rewrites=skip           Delta
        kafka://one:9092,two:9092/events?most=1000  Kafka

    Settings after ``?`` are those of the class. A folder whose name looks like another form begins with ``./``.

    Raises:
        ConfigError: it is none of these, or a setting is unknown or of another type.
    """
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]+):", text)
    if not text:
        raise ConfigError(f"found an empty source, expected {_FORMS}")
    if scheme is None:
        return Folder(text)
    match scheme[1]:
        case "delta":
            path, _, settings = text.removeprefix("delta:").partition("?")
            if not path:
                raise ConfigError(f"{text}: found no path, expected {_FORMS}")
            return _decoded(Delta, text, {"path": path}, settings)
        case "kafka":
            address = urlsplit(text)
            topic = address.path.strip("/")
            if not re.fullmatch(r"[^:,/@\s]+:\d+(,[^:,/@\s]+:\d+)*", address.netloc) or not topic or "/" in topic:
                raise ConfigError(f"{text}: expected kafka://HOST:PORT/TOPIC, several servers with commas between")
            return _decoded(Kafka, text, {"topic": topic, "servers": address.netloc}, address.query)
        case _:
            raise ConfigError(f"{text}: found a source of kind {scheme[1]!r}, expected {_FORMS}")


def _decoded(kind: type[Delta] | type[Kafka], text: str, tree: Tree, settings: str) -> Delta | Kafka:
    try:
        pairs = parse_qsl(settings, keep_blank_values=True, strict_parsing=bool(settings))
    except ValueError as error:
        raise ConfigError(f"{text}: expected NAME=VALUE after ?, several with & between") from error
    for name, value in pairs:
        if name in tree:
            raise ConfigError(f"{text}: found {name} a second time")
        tree[name] = int(value) if value.isdecimal() else value
    stream: Delta | Kafka = Codec().decode(kind, tree, text)
    return stream
