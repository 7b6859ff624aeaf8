"""Who may call: bearer tokens, and what is refused without any."""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import ConfigError

Headers = Sequence[tuple[bytes, bytes]]
_SHORTEST = 16
_LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """Why a call was not let in."""

    status: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """The tokens of a service, as hashes. Without tokens everybody may ask, and who is on this machine may change
    things, as long as the service listens to no other."""

    all_rights: frozenset[bytes] = frozenset()
    may_ask: frozenset[bytes] = frozenset()
    is_local: bool = True
    """Whether the service listens to this machine only."""

    @staticmethod
    def read(path: Path | None, host: str) -> Tokens:
        """Tokens of a file: one a line, ``read TOKEN`` for one that may ask but not change; empty lines and those that
        begin with # are left out.

        Raises ConfigError for a file that can't be read, holds none, or a token that is too short.
        """
        if path is None:
            return Tokens(is_local=is_loopback(host))
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"--token-file {path}: can't be read ({error})") from error
        every: set[bytes] = set()
        asking: set[bytes] = set()
        for number, line in enumerate(lines, 1):
            words = line.split()
            if not words or words[0].startswith("#"):
                continue
            only_reads = len(words) == 2 and words[0] == "read"
            if len(words) != 1 + only_reads or len(words[-1]) < _SHORTEST:
                raise ConfigError(
                    f"--token-file {path}, line {number}: expected a token of at least {_SHORTEST} characters, perhaps "
                    "after the word read"
                )
            (asking if only_reads else every).add(_hashed(words[-1].encode()))
        if not every and not asking:
            raise ConfigError(f"--token-file {path}: there is no token in it")
        return Tokens(all_rights=frozenset(every), may_ask=frozenset(asking), is_local=is_loopback(host))

    @property
    def there_are_some(self) -> bool:
        """Whether callers need one."""
        return bool(self.all_rights or self.may_ask)

    def refuse(self, headers: Headers, *, changes: bool) -> Refused | None:
        """Why a call is not let in, None where it is."""
        if not self.there_are_some:
            return self._refuse_without(headers) if changes else None
        given = next((value for name, value in headers if name == b"authorization"), b"")
        kind, _, token = given.partition(b" ")
        # Hashes are compared: how long that takes says nothing about the token.
        hashed = _hashed(token.strip()) if kind.lower() == b"bearer" else b""
        if hashed in self.all_rights or (hashed in self.may_ask and not changes):
            return None
        if hashed in self.may_ask:
            return Refused(status=403, reason="this token may ask, but not change anything")
        return Refused(
            status=401, reason="expected the header Authorization: Bearer TOKEN with a token of this service"
        )

    def _refuse_without(self, headers: Headers) -> Refused | None:
        if not self.is_local:
            return Refused(
                status=403,
                reason="nothing can be changed here: the service listens beyond this machine and has no tokens "
                "(--token-file)",
            )
        of = dict(headers)
        host = of.get(b"host", b"").decode("latin-1").lower()
        name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
        if name not in _LOCAL_NAMES:  # a web page whose name was pointed to this machine
            return Refused(status=403, reason=f"nothing can be changed here under the name {name!r}, but as localhost")
        if not of.get(b"content-type", b"").startswith(b"application/json"):  # what a web page can send unasked
            return Refused(status=403, reason="expected the header Content-Type: application/json")
        return None


def is_loopback(host: str) -> bool:
    """Whether who listens at ``host`` hears this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _hashed(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()
