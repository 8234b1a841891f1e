"""A process's connection to a relay, and the events that were sent over it and are not acknowledged.

Responsible for: sending an event, which never waits longer than a millisecond; the relay's answers; what has to be sent
again when the relay is gone. Not responsible for: what the process does then (`_relay.delivery`), starting a relay
(`launcher`).

The call that opens a connection waits for one answer, the relay's challenge (`protocol`), for `GREETING` seconds at
most. If it comes later, a later call reads it, and events are sent by the process itself until then.

The socket is of the `_socket` module, because gevent's would let other greenlets run between the bytes of an event.
"""

from __future__ import annotations

import _socket
import os
import select
import threading
from collections import deque

from .._path_trust import must_be_believed
from .._runtime.atfork import close_if_unchanged, register_inherited
from .._runtime.clock import monotonic
from .._runtime.signal_errors import reraise_signal_error
from . import protocol

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

    from ..errors import LetterError

GREETING = 0.25  # seconds that the call which opens a connection may wait for the relay's challenge
PATIENCE = 0.001  # seconds that a call may wait for a relay whose socket is full; the next calls do not wait at all
_EVERY = 63  # the answers are read at every 64th event: a power of two, less one
_AT_ONCE = getattr(_socket, "MSG_DONTWAIT", 0) | getattr(_socket, "MSG_NOSIGNAL", 0)
QUIETLY = getattr(_socket, "MSG_NOSIGNAL", 0)  # SIGPIPE may have its default action, which ends the process
_AT_MOST = 262_144  # bytes of answers that one call reads, however many there are
_LONGEST_COUNT = 22  # bytes of an acknowledgement
_BUFFER = 1_048_576  # size of the send buffer in bytes, if the system allows it: room for a burst
_LISTEN = 0.1  # seconds after which the answers are read in any case
_FIRST_WAIT, _LONGEST_WAIT = 1.0, 30.0  # seconds between two attempts to reach a relay
_WHILE_WAITING = 0.05  # seconds: another thread may have read the answer

POSSIBLE = hasattr(_socket, "AF_UNIX")


def connect(path: str, timeout: float, user: int | None = None) -> Any:
    """A socket to the relay at ``path``. `OSError` if nobody listens there within ``timeout`` seconds.

    And if the listening process belongs to another user than this one, root or ``user``: nothing is sent to it then.
    """
    sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        sock.settimeout(timeout)
        sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_SNDBUF, _BUFFER)
        sock.connect(path)
        must_be_believed(sock, user)
    except BaseException:
        sock.close()
        raise
    return sock


class Counts:
    """The counters of a connection, of one moment."""

    def __init__(self, relayed: int, waiting: int, waiting_bytes: int, lost: dict[str, int], is_up: bool) -> None:
        self.relayed = relayed
        # A loss out of order is reported before it is counted as settled.
        self.waiting = max(0, min(waiting, relayed - sum(lost.values())))
        self.waiting_bytes = waiting_bytes
        self.lost = lost
        self.delivered = relayed - self.waiting - sum(lost.values())
        self.is_up = is_up


class RelayClient:
    """The connection of one process. Any thread, callback and signal handler may call; a forked child makes its own."""

    def __init__(
        self,
        place: Callable[[], str],
        caller: Callable[[], protocol.Caller],
        max_events: int,
        max_bytes: int,
        user: int | None = None,
    ) -> None:
        """``place`` returns the path of the socket, or raises `OSError`. Opens nothing.

        ``caller`` makes the object that authenticates this process; ``user`` may serve, besides this user and root.
        """
        self._place = place
        self._make_caller = caller
        self._user = user
        self._max_events = max_events
        self._max_bytes = max_bytes
        # Held while an event is stored and sent, as the relay acknowledges events in the order in which they were sent.
        # That one `send` is the only I/O under the lock, and waits `PATIENCE` at most.
        self._lock = threading.RLock()
        self._sock: Any = None
        self._inode = 0
        self._peer: Any = None  # the relay's address
        self._caller: protocol.Caller | None = None  # while the relay's challenge is still to come
        self._next_listen = 0.0
        self._accepts_events = False  # False while the relay only acknowledges, or has not answered yet
        self._is_stuck = False
        self._in_operation = (
            False  # in an operation that leaves the socket or the counters in doubt if it is interrupted
        )
        self._has_hung_up = False
        # Sent and not acknowledged, in order. Without a socket the process takes them back.
        self._unacked: deque[bytes] = deque()
        self._unacked_bytes = 0
        self._settled = 0
        self._partial_line = b""  # the beginning of a line
        self._acknowledged = 0  # events, over this socket
        # Cause and number of events that the relay has reported lost and, as far as can be known, has not counted yet.
        self._uncounted: deque[tuple[str, int]] = deque()
        self._next_try = 0.0
        self._wait = _FIRST_WAIT

        self.lost: dict[str, int] = {}
        self.errors: list[LetterError] = []  # of the relay, to be reported
        self.trouble = ""  # what is wrong with the relay; empty while it accepts events
        self.breaks = 0  # how often the connection was lost
        self.news = False  # there are errors or trouble to be looked at
        register_inherited(self)

    # Any thread.

    def send_event(self, event: bytes) -> bool:
        """Send ``event`` to the relay; False if that is impossible, and the process has to send it itself."""
        if len(event) > protocol.LONGEST_EVENT or self._lock._is_owned():  # type: ignore[attr-defined]
            return False  # (in a signal handler that interrupted this, its event would be counted as another one)
        with self._lock:
            self._begin()
            taken = self._send_event(event)
            self._in_operation = False
            return taken

    def request_flush(self) -> None:
        """Ask the relay to send what it has now."""
        if not self._lock._is_owned():  # type: ignore[attr-defined]
            with self._lock:
                self._begin()
                if self._accepts_events and self._unacked:
                    self._send(protocol.FLUSH + protocol.END)
                self._in_operation = False

    def read_acks(self) -> None:
        """Read the relay's answers so far."""
        if not self._lock._is_owned():  # type: ignore[attr-defined]
            with self._lock:
                self._begin()
                self._read_acks()
                self._in_operation = False

    def wait(self, target: int, deadline: float, clock: Callable[[], float]) -> bool:
        """Wait until ``target`` events are settled; False at ``deadline``, or without a relay."""
        while True:
            self.read_acks()
            left = deadline - clock()
            sock = self._sock
            if self.has_settled(target):
                return True
            if sock is None or left <= 0 or self.is_held_by_this_thread():
                return False
            try:
                poll = select.poll()  # looked up now: gevent's lets other greenlets run
                poll.register(sock.fileno(), select.POLLIN)
                poll.poll(min(left, _WHILE_WAITING) * 1000)
            except (OSError, ValueError) as problem:
                reraise_signal_error(problem)  # otherwise another thread has closed it

    # What a lost relay had not acknowledged goes back to its process one event at a time. So if an exception of a
    # signal handler interrupts that, the rest is still here.

    def next_returned(self) -> bytes | None:
        """The next event to be taken back; call `confirm_returned` afterwards. For one thread at a time."""
        with self._lock:
            return self._unacked[0] if self.has_returned() else None

    def confirm_returned(self) -> None:
        with self._lock:
            self._unacked_bytes -= len(self._unacked.popleft())

    @property
    def sent_count(self) -> int:
        """How many events were sent, less those that came back."""
        return self._settled + len(self._unacked)

    def has_settled(self, target: int) -> bool:
        """True when the first ``target`` events are all settled, or taken back."""
        return self._settled >= target or not self._unacked

    def has_returned(self) -> bool:
        """True when there are events to be taken back from a lost relay."""
        return self._sock is None and not self._has_hung_up and bool(self._unacked)

    def has_news(self) -> bool:
        return self.news or self.has_returned()

    def take_errors(self) -> list[LetterError]:
        """The errors that the relay has reported since the last call."""
        if not self.errors or self._lock._is_owned():  # type: ignore[attr-defined]
            return []
        with self._lock:
            errors, self.errors = self.errors, []
            return errors

    def unsettled(self) -> list[bytes]:
        """The events that the relay has and has not settled; empty if they are to be taken back."""
        self.read_acks()
        if self._lock._is_owned():  # type: ignore[attr-defined]
            return []
        with self._lock:
            return [] if self.has_returned() else list(self._unacked)

    def is_connected(self) -> bool:
        return self._sock is not None

    def counts(self) -> Counts:
        with self._lock:
            is_up = not self._is_stuck and (self._accepts_events or not (self._sock or self.trouble))
            return Counts(self.sent_count, len(self._unacked), self._unacked_bytes, dict(self.lost), is_up)

    def quick_counts(self) -> tuple[int, int, int]:
        """Events that wait, were delivered and were lost, not all of one moment: takes no lock."""
        counts = Counts(self.sent_count, len(self._unacked), 0, self.lost.copy(), False)
        return counts.waiting, max(0, counts.delivered), sum(counts.lost.values())

    def is_held_by_this_thread(self) -> bool:
        return bool(self._lock._is_owned())  # type: ignore[attr-defined]

    def call_when_released(self, act: Callable[[], object]) -> None:
        """Wait until the lock is free, then call ``act``."""
        with self._lock:
            pass
        act()

    def retry_soon(self) -> None:
        """A relay has been started: try at once."""
        self._next_try = 0.0

    def close(self) -> None:
        """Close the connection. What was sent is the relay's to deliver."""
        if not self._lock._is_owned():  # type: ignore[attr-defined]
            with self._lock:
                self._has_hung_up = True
                self._hang_up()

    # In a forked child.

    def close_inherited(self) -> None:
        # Only this process's copy, so that the relay notices the end of the process that uses it.
        sock = self._sock
        if sock is not None:
            close_if_unchanged(sock.detach(), self._inode)

    def __del__(self) -> None:
        # Of a client that nobody closed. A socket that is deleted is closed too, but emits a ResourceWarning.
        try:
            self.close_inherited()
        except (AttributeError, TypeError):
            pass  # its constructor failed, or the interpreter is shutting down

    # Under the lock.

    def _begin(self) -> None:
        if self._in_operation and self._sock is not None:
            # An exception of a signal handler has interrupted the last operation. Nobody knows what was sent or read by
            # then, so all of it is sent again. A flag records it, because any clean-up could be interrupted as well.
            self._drop_connection("was interrupted")
        self._in_operation = True

    def _send_event(self, event: bytes) -> bool:
        if self._sock is not None:
            self._look_after_it()
        if not self._accepts_events and not self._open():
            return False
        if not self._has_room(event):
            self._read_acks()
            if not self._accepts_events or not self._has_room(event):
                self._note_trouble("settles more slowly than this process tracks")
                return False
        self._unacked.append(event)
        self._unacked_bytes += len(event)
        if self._send(event + protocol.END):
            return True
        if self._unacked and self._unacked[-1] is event:
            self._unacked_bytes -= len(self._unacked.pop())
        return False

    def _open(self) -> bool:
        now = monotonic()
        if self._sock is not None:
            self._read_acks()  # of a relay that accepts no more, but may still acknowledge; or a late challenge
            if self._sock is not None:
                return self._accepts_events
        if now < self._next_try or self._unacked or self._has_hung_up:
            return False
        self._next_try = now + self._wait
        self._wait = min(2 * self._wait, _LONGEST_WAIT)
        try:
            sock = connect(self._place(), 0, self._user)
            self._caller = self._make_caller()
        except OSError as problem:
            reraise_signal_error(problem)
            self._note_trouble(f"cannot be reached: {problem.strerror or problem}")
            return False
        self._inode = os.fstat(sock.fileno()).st_ino
        self._peer = sock.getpeername()
        self._sock = sock
        self._unacked_bytes = 0
        self._is_stuck = False
        self._partial_line = b""
        self._acknowledged = 0
        return self._send(self._caller.hello) and self._await_challenge()

    def _await_challenge(self) -> bool:
        """Wait for the relay's challenge, `GREETING` seconds at most; True when it has been answered."""
        deadline = monotonic() + GREETING
        try:
            while self._caller is not None and self._sock is not None:
                left = deadline - monotonic()
                if left <= 0:
                    self._note_trouble("has not answered yet")
                    break
                self._sock.settimeout(left)  # not `poll`: gevent's runs other greenlets, which would come here too
                data = self._sock.recv(protocol.LONGEST_GREETING)
                self._sock.settimeout(0)
                self._take(data)
        except _socket.timeout as problem:
            reraise_signal_error(problem)
            self._note_trouble("has not answered yet")
            self._sock.settimeout(0)
        except OSError as problem:
            reraise_signal_error(problem)
            self._drop_connection("has ended")
        return self._accepts_events

    def _answer_challenge(self, line: bytes) -> None:
        caller, self._caller = self._caller, None
        assert caller is not None
        try:
            answer = caller.answer(line)
        except protocol.Refused as problem:
            self._stay_away(str(problem))
            return
        self._accepts_events = True
        if self.trouble == "has not answered yet":
            self.trouble = ""
        self._send(answer)

    def _stay_away(self, why: str) -> None:
        self._wait = _LONGEST_WAIT
        self._drop_connection(why)

    def _look_after_it(self) -> None:
        """Before each event: check that the socket is still ours, and read the answers if it is time."""
        now = monotonic()
        if now >= self._next_listen or not self.sent_count & _EVERY:
            self._next_listen = now + _LISTEN
            self._read_acks()
        else:
            self._is_ours()

    def _is_ours(self) -> bool:
        """False if somebody has closed the descriptor: its number may be another file's by now."""
        try:
            if self._sock.getpeername() == self._peer:
                return True
        except OSError as problem:
            reraise_signal_error(problem)
        self._drop_connection("has ended, or somebody has closed the connection's descriptor")
        return False

    def _send(self, line: bytes) -> bool:
        """Send all of ``line`` or nothing; False if the relay does not accept it."""
        try:
            sent = self._sock.send(line, _AT_ONCE)
        except BlockingIOError:
            sent = 0
        except OSError as problem:
            reraise_signal_error(problem)
            self._end()
            return False
        if sent < len(line):
            return self._send_patiently(line, sent)
        self._is_stuck = False
        return True

    def _send_patiently(self, line: bytes, sent: int) -> bool:
        if sent or not self._is_stuck:
            try:
                self._sock.settimeout(PATIENCE)
                sent += self._sock.send(memoryview(line)[sent:], QUIETLY)
                self._sock.settimeout(0)
            except _socket.timeout as problem:
                reraise_signal_error(problem)
                self._sock.settimeout(0)
            except OSError as problem:
                reraise_signal_error(problem)
                self._end()
                return False
            if sent == len(line):
                return True
            if sent:
                self._drop_connection("took a part of an event only")
                return False
        self._is_stuck = True
        self._note_trouble("takes no more events for now")
        return False

    def _read_acks(self) -> None:
        if self._sock is None or not self._is_ours():
            return
        try:
            for _ in range(_AT_MOST // 65_536):
                data = self._sock.recv(65_536, _AT_ONCE)
                self._take(data)
                if len(data) < 65_536 or self._sock is None:
                    return
        except BlockingIOError:
            pass
        except OSError as problem:
            reraise_signal_error(problem)
            self._drop_connection("has ended")

    def _take(self, data: bytes) -> None:
        """Handle what was received; nothing means that the relay has closed the connection."""
        if not data:
            self._drop_connection("has ended")
            return
        try:
            self._handle_lines(data)
        except (ValueError, KeyError, TypeError, AttributeError) as nonsense:
            reraise_signal_error(nonsense)
            self._drop_connection(f"answers what is no answer: {nonsense!r}")

    def _handle_lines(self, data: bytes) -> None:
        *lines, self._partial_line = (self._partial_line + data).split(protocol.END)
        if self._caller is not None:
            if len(self._partial_line) > protocol.LONGEST_GREETING:
                raise ValueError("a line has no end")
            if not lines:
                return
            self._answer_challenge(lines.pop(0))
        for line in lines:
            if self._sock is None:
                return
            if line[:1] == b"[":
                if len(line) > _LONGEST_COUNT:
                    raise ValueError("it counts events that it has not had")
                self._settle(int(line[1:-1]))
                continue
            said = protocol.parse(line)
            if "lost" in said:
                error = protocol.lost_error(said, len(self._unacked) - sum(lost for _, lost in self._uncounted))
                cause = error.cause or "undeliverable"
                self._uncounted.append((cause, error.lost))
                self.lost[cause] = self.lost.get(cause, 0) + error.lost
                self.errors.append(error)
                self.news = True
            elif "refused" in said:
                self._stay_away(str(protocol.refusal(said)))
                return
        if len(self._partial_line) > protocol.LONGEST_ANSWER:
            raise ValueError("a line has no end")

    def _settle(self, count: int) -> None:
        if count > self._acknowledged + len(self._unacked):
            raise ValueError("it counts events that it has not had")
        self._wait = _FIRST_WAIT
        if self.trouble:
            self.trouble = ""
            self.news = True
        self._note_counted(max(0, count - self._acknowledged))
        while self._acknowledged < count and self._unacked:
            self._acknowledged += 1
            self._unacked_bytes -= len(self._unacked.popleft())
            self._settled += 1

    def _note_counted(self, events: int) -> None:
        while events and self._uncounted:
            cause, lost = self._uncounted.popleft()
            if lost > events:
                self._uncounted.appendleft((cause, lost - events))
            events -= min(lost, events)

    def _end(self) -> None:
        """The relay accepts no more. It may still acknowledge what it has; it is gone when nothing more can be read."""
        self._accepts_events = False
        self._read_acks()

    def _drop_connection(self, why: str) -> None:
        """The relay is gone, or has to be given up. What it has not acknowledged is sent again."""
        self._hang_up()
        while self._uncounted:  # these are sent again, and counted where that happens
            cause, lost = self._uncounted.popleft()
            self.lost[cause] -= lost
            if not self.lost[cause]:
                del self.lost[cause]
        self.breaks += 1
        self._note_trouble(why)
        self._next_try = max(self._next_try, monotonic() + self._wait)

    def _hang_up(self) -> None:
        sock, self._sock = self._sock, None
        self._accepts_events = False
        self._caller = None
        if sock is not None:
            close_if_unchanged(sock.detach(), self._inode)

    def _has_room(self, event: bytes) -> bool:
        return len(self._unacked) < self._max_events and self._unacked_bytes + len(event) <= self._max_bytes

    def _note_trouble(self, what: str) -> None:
        self.trouble = what
        self.news = True
