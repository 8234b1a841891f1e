"""One connection to a relay, and its state.

Responsible for: opening a socket to a trusted peer, the events that are not acknowledged, when to reconnect.
Not responsible for: what is sent and received (`_relay.client`).

The socket is one of the `_socket` module, because gevent's would let other greenlets run in the middle of an event.
"""

from __future__ import annotations

import _socket
import os
from collections import deque

from .._path_trust import must_be_trusted
from .._runtime.atfork import close_if_unchanged
from .._runtime.clock import monotonic
from .._runtime.signal_errors import reraise_signal_error
from . import protocol

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

QUIETLY = getattr(_socket, "MSG_NOSIGNAL", 0)  # SIGPIPE may have its default action, which ends the process
_BUFFER = 1_048_576  # size of the send buffer in bytes, if the system allows it: room for a burst
FIRST_WAIT, LONGEST_WAIT = 1.0, 30.0  # seconds between two attempts to reach a relay

POSSIBLE = hasattr(_socket, "AF_UNIX")


def connect(path: str, timeout: float, user: int | None = None) -> Any:
    """A socket to the relay at ``path``. Raises `OSError` if no process accepts within ``timeout`` seconds.

    Also if the listening process belongs to another user than this one, root or ``user``; nothing is sent to it.
    """
    sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        sock.settimeout(timeout)
        sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_SNDBUF, _BUFFER)
        sock.connect(path)
        must_be_trusted(sock, user)
    except BaseException:
        sock.close()
        raise
    return sock


class Connection:
    """One socket to a relay, and the state of the conversation."""

    def __init__(self, sock: Any, caller: protocol.Caller) -> None:
        self.sock = sock
        self._inode = os.fstat(sock.fileno()).st_ino
        self._peer = sock.getpeername()
        self.caller: protocol.Caller | None = caller  # until the relay's challenge is answered
        self.accepts_events = False  # False before that, and when the relay only sends acknowledgements
        self.is_full = False  # the last event found no room in the socket
        self.partial_line = b""
        self.acknowledged = 0  # events
        # Cause and number of events that the relay has reported as lost, and may not have acknowledged yet.
        self.uncounted: deque[tuple[str, int]] = deque()
        self.next_read = 0.0  # when responses have to be read at the latest

    def is_ours(self) -> bool:
        """False if the relay has gone, or other code has closed the descriptor, whose number may be reused."""
        try:
            return bool(self.sock.getpeername() == self._peer)
        except OSError as problem:
            reraise_signal_error(problem)
            return False

    def close(self) -> None:
        """Close only this process's copy: the relay notices when the process that uses the connection ends."""
        close_if_unchanged(self.sock.detach(), self._inode)

    def note_counted(self, events: int) -> None:
        """The relay has acknowledged ``events`` more, including those that it has reported as lost."""
        while events and self.uncounted:
            cause, lost = self.uncounted.popleft()
            if lost > events:
                self.uncounted.appendleft((cause, lost - events))
            events -= min(lost, events)


class Unacked:
    """The events that were sent and not acknowledged, in order."""

    def __init__(self, max_events: int, max_bytes: int) -> None:
        self._max_events = max_events
        self._max_bytes = max_bytes
        self._events: deque[bytes] = deque()
        self.size = 0  # bytes

    def __len__(self) -> int:
        return len(self._events)

    def has_room(self, event: bytes) -> bool:
        return len(self._events) < self._max_events and self.size + len(event) <= self._max_bytes

    def append(self, event: bytes) -> None:
        self._events.append(event)
        self.size += len(event)

    def remove_last(self, event: bytes) -> None:
        """Remove ``event``, if it is the last one."""
        if self._events and self._events[-1] is event:
            self.size -= len(self._events.pop())

    def first(self) -> bytes:
        return self._events[0]

    def remove_first(self) -> None:
        self.size -= len(self._events.popleft())

    def copy(self) -> list[bytes]:
        return list(self._events)

    def start_anew(self) -> None:
        """Correct the size of an empty queue: an exception of a signal handler may have prevented an update."""
        self.size = 0


class Retry:
    """When to connect to a relay again."""

    def __init__(self) -> None:
        self.wait = FIRST_WAIT
        self.next = 0.0

    def is_due(self) -> bool:
        return monotonic() >= self.next

    def note_attempt(self) -> None:
        self.next = monotonic() + self.wait
        self.wait = min(2 * self.wait, LONGEST_WAIT)

    def postpone(self) -> None:
        self.next = max(self.next, monotonic() + self.wait)


class Counts:
    """A snapshot of a connection's counters."""

    def __init__(self, relayed: int, waiting: int, waiting_bytes: int, lost: dict[str, int], is_up: bool) -> None:
        self.relayed = relayed
        # A loss out of order is reported before it is acknowledged.
        self.waiting = max(0, min(waiting, relayed - sum(lost.values())))
        self.waiting_bytes = waiting_bytes
        self.lost = lost
        self.delivered = relayed - self.waiting - sum(lost.values())
        self.is_up = is_up
