"""The stream of one API key in Redis: its keys, its entries, and the worker's side, which appends.

Responsible for: `RedisStream`, the `Target` to which a `Handover` passes batches; the names of keys; the format of an
entry. Not responsible for: when a batch is passed, what happens if that fails (`_relay.handover`), reading
(`_redis_server`).

    {letterapp:FINGERPRINT}:events    a stream with one consumer group; an entry is a batch of 1 to 100 events

A batch counts as settled when it is in the stream. The fate of an append without a reply is unknown: the batch is
appended again, or sent by the process, with the same message IDs.
"""

from __future__ import annotations

from hashlib import sha256
from queue import Full

from .._queues.manager_connection import NOT_YET
from .connection import RedisConnection, Refusal
from .location import Location

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

    from .._queues.manager_connection import Batch
    from .._queues.targets import Target
    from .._text import Secret

GROUP = "letterapp"
EVENTS = "e"  # the field of an entry that has its events, one in a line
# Not MAXLEN, which removes entries that nobody has read. Returns 0 if the stream is full, 1 if the batch was appended,
# and 2 if in addition no relay has ever read this stream (asked once for each connection).
APPEND = """
if redis.call('XLEN', KEYS[1]) >= tonumber(ARGV[1]) then return 0 end
redis.call('XADD', KEYS[1], '*', 'e', ARGV[2])
if ARGV[3] == '1' then
    local groups = redis.pcall('XINFO', 'GROUPS', KEYS[1])
    if not groups.err and #groups == 0 then return 2 end
end
return 1
"""
_FULL, _UNREAD = 0, 2


def key_of(api_key: Secret, base_url: str) -> str:
    """The name of the stream for events with ``api_key`` for ``base_url``. The key cannot be found out from it.

    The braces keep all keys of one stream on one node of a cluster.
    """
    fingerprint = sha256(b"letterapp stream\0" + api_key.encode() + b"\0" + base_url.encode()).hexdigest()[:32]
    return f"{{letterapp:{fingerprint}}}:events"


def entry_of(batch: Batch) -> bytes:
    """The value of `EVENTS` for ``batch``. An event contains no line break."""
    return b"\n".join(batch)


class RedisStream:
    """A stream as the option ``relay`` of a client. Can be pickled, with the password in its URL. Opens nothing."""

    retired = False
    has_feeder = False

    def __init__(self, url: str) -> None:
        self.location = Location(url)
        self._key = ""
        self._waits = False  # a batch waits for room in a full stream, for up to the client's `timeout`
        self._report: Callable[[str], object] = str

    def for_client(self, settings: Any, report: Callable[[str], object]) -> RedisStream:
        """The stream of a client with these ``settings``. ``report``: called if no relay has ever read it."""
        mine = RedisStream.__new__(RedisStream)
        mine.location = self.location
        mine._key = key_of(settings.api_key, settings.base_url)
        mine._waits = settings.overflow == "block"
        mine._report = report
        return mine

    def connect(self, patience: float) -> _Channel:
        connection = RedisConnection(self.location, self._key, patience)
        return _Channel(connection, self._key, self.location.max_length, self._waits, self._note_unread)

    def is_same(self, other: Target) -> bool:
        return isinstance(other, RedisStream) and (other.location, other._key) == (self.location, self._key)

    def finish(self) -> None:
        pass

    def _note_unread(self) -> None:
        self._report(
            f"relay: {self!r} has the events, and no relay has ever read them: start `python -m letterapp relay --from "
            "URL` with the same API key and base_url",
        )

    def __repr__(self) -> str:
        return repr(self.location)


class _Channel:
    """Appends batches over one connection; implements `targets.Channel`."""

    def __init__(
        self, connection: RedisConnection, key: str, max_length: int, waits: bool, note_unread: Callable[[], object]
    ) -> None:
        self._connection = connection
        self._key = key
        self._max_length = max_length
        self._waits = waits
        self._note_unread = note_unread
        self._is_first = True

    def put(self, batch: Batch, urgent: bool, wait: float, patience: float) -> bool | object:
        command = ("EVAL", APPEND, 1, self._key, self._max_length, entry_of(batch), int(self._is_first))
        try:
            answer: object = self._connection.ask(*command, wait=wait, patience=patience)
        except Refusal as refusal:
            if refusal.kind == "OOM":
                raise Full("the server is out of memory (maxmemory)") from None
            raise
        if answer is NOT_YET:
            return NOT_YET
        self._is_first = False
        if answer == _FULL:
            if self._waits:
                return False
            raise Full(f"{self._max_length:,} entries wait in it")
        if answer == _UNREAD:
            self._note_unread()
        return True

    def settled(self, linger: float, urgent: bool, wait: float, patience: float) -> list[bytes]:
        return []

    def close(self) -> None:
        self._connection.close()
