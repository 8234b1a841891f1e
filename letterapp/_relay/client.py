"""A process's connection to a relay, and the events that were sent over it and are not yet acknowledged.

Responsible for: sending an event, which never blocks for more than a millisecond; the relay's responses; the events
that have to be sent again when the relay is lost. Not responsible for: what the process does then (`_relay.delivery`),
starting a relay (`launcher`).

The call that opens a connection waits for one message, the relay's challenge (`protocol`), for at most `GREETING`
seconds. If the challenge arrives later, a later call reads it, and until then the process sends its events itself.
"""

from __future__ import annotations

import _socket
import select
import threading

from .._runtime.atfork import WORK, block_forks, register_inherited
from .._runtime.clock import monotonic
from .._runtime.signal_errors import reraise_signal_error
from . import protocol
from .connection import FIRST_WAIT, LONGEST_WAIT, QUIETLY, Connection, Counts, Retry, Unacked, connect

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

    from ..errors import LetterError

GREETING = 0.25  # seconds that the call that opens a connection may wait for the relay's challenge
PATIENCE = 0.001  # seconds that a call may wait for a relay whose socket is full; the next calls do not wait at all
_EVERY = 63  # responses are read at every 64th event: a power of two, minus one
_AT_ONCE = getattr(_socket, "MSG_DONTWAIT", 0) | getattr(_socket, "MSG_NOSIGNAL", 0)
_AT_MOST = 262_144  # bytes of responses that one call reads at most
_LONGEST_COUNT = 22  # bytes of an acknowledgement
_LISTEN = 0.1  # seconds after which responses are read in any case
_WHILE_WAITING = 0.05  # seconds after which a waiting thread checks again: another one may have read the response


LOST = "has ended, or other code has closed the connection's descriptor"


class RelayClient:
    """The connection of one process. Any thread, callback and signal handler may call; a forked child opens its own."""

    def __init__(
        self,
        place: Callable[[], str],
        caller: Callable[[], protocol.Caller],
        max_events: int,
        max_bytes: int,
        user: int | None = None,
    ) -> None:
        """``place`` returns the path of the socket, or raises `OSError`. Opens nothing.

        ``caller`` creates the object that authenticates this process. Besides this user and root, ``user`` may run the
        relay.
        """
        self._place = place
        self._make_caller = caller
        self._user = user
        # Held while an event is stored and sent, because the relay acknowledges events in the order of sending. Sending
        # blocks for at most `PATIENCE`, and opening a connection for at most `GREETING`; nothing else blocks.
        self._lock = threading.RLock()
        self._connection: Connection | None = None
        self._in_operation = False  # if it is interrupted, the state of the connection and the counters is unknown
        self._has_hung_up = False
        self._unacked = Unacked(max_events, max_bytes)  # if there is no connection, the process sends them itself
        self._settled = 0
        self._retry = Retry()

        self.lost: dict[str, int] = {}
        self.errors: list[LetterError] = []  # losses that the relay has reported, still to be passed to the application
        self.trouble = ""  # what is wrong with the relay; empty while it accepts events
        self.breaks = 0  # how often the connection was lost
        self.news = False  # `errors` or `trouble` has changed
        register_inherited(self)

    # Any thread.

    def send_event(self, event: bytes) -> bool:
        """Send ``event`` to the relay; False if that is impossible, so that the process has to send it itself."""
        if len(event) > protocol.LONGEST_EVENT or self._lock._is_owned():  # type: ignore[attr-defined]
            return False  # (in a signal handler that interrupted this, the two events would be mixed up)
        with self._lock:
            self._begin()
            taken = self._send_event(event)
            self._in_operation = False
            return taken

    def request_flush(self) -> None:
        """Ask the relay to send what it has without delay."""
        if not self._lock._is_owned():  # type: ignore[attr-defined]
            with self._lock:
                self._begin()
                if self._accepts_events() and self._unacked:
                    self._send(protocol.FLUSH + protocol.END)
                self._in_operation = False

    def read_acks(self) -> None:
        """Read the relay's responses so far, without waiting."""
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
            connection = self._connection
            if self.has_settled(target):
                return True
            if connection is None or left <= 0 or self.is_held_by_this_thread():
                return False
            try:
                poll = select.poll()  # looked up at each use, because gevent's lets other greenlets run
                poll.register(connection.sock.fileno(), select.POLLIN)
                poll.poll(min(left, _WHILE_WAITING) * 1000)
            except (OSError, ValueError) as problem:
                reraise_signal_error(problem)  # otherwise another thread has closed it

    # What a lost relay had not acknowledged is returned to the process one event at a time. So if an exception of a
    # signal handler interrupts that, the rest is still here.

    def next_returned(self) -> bytes | None:
        """The next event to be sent by the process itself; call `confirm_returned` afterwards. One thread at a time."""
        with self._lock:
            return self._unacked.first() if self.has_returned() else None

    def confirm_returned(self) -> None:
        with self._lock:
            self._unacked.remove_first()

    @property
    def sent_count(self) -> int:
        """How many events were sent, minus those that were returned."""
        return self._settled + len(self._unacked)

    def has_settled(self, target: int) -> bool:
        """True if the first ``target`` events have all been settled or returned."""
        return self._settled >= target or not self._unacked

    def has_returned(self) -> bool:
        """True if events of a lost relay have to be sent by the process itself."""
        return self._connection is None and not self._has_hung_up and bool(self._unacked)

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
        """The events that the relay has and has not settled; empty if the relay was lost."""
        self.read_acks()
        if self._lock._is_owned():  # type: ignore[attr-defined]
            return []
        with self._lock:
            return [] if self.has_returned() else self._unacked.copy()

    def is_connected(self) -> bool:
        return self._connection is not None

    def counts(self) -> Counts:
        with self._lock:
            connection = self._connection
            is_up = connection.accepts_events and not connection.is_full if connection else not self.trouble
            return Counts(self.sent_count, len(self._unacked), self._unacked.size, dict(self.lost), is_up)

    def quick_counts(self) -> tuple[int, int, int]:
        """How many events wait, were delivered and were lost. Takes no lock, so the numbers may not add up."""
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
        """A relay was started: connect at the next event."""
        self._retry.next = 0.0

    def close(self) -> None:
        """Close the connection. The relay delivers what was sent."""
        if not self._lock._is_owned():  # type: ignore[attr-defined]
            with self._lock:
                self._has_hung_up = True
                self._hang_up()

    def reopen(self) -> None:
        """Undo `close`: the next event opens a connection."""
        self._has_hung_up = False
        self.retry_soon()

    # In a forked child.

    def close_inherited(self) -> None:
        connection = self._connection
        if connection is not None:
            connection.close()

    def __del__(self) -> None:
        # For a client that was not closed: a socket that is deleted is closed too, but emits a ResourceWarning.
        try:
            self.close_inherited()
        except (AttributeError, TypeError):
            pass  # the constructor failed, or the interpreter is shutting down

    # Under the lock.

    def _begin(self) -> None:
        if self._in_operation and self._connection is not None:
            # An exception of a signal handler has interrupted the last operation. What was sent or read by then is not
            # known, so everything is sent again. A flag records it, because any clean-up could be interrupted as well.
            self._drop_connection("connection was interrupted by a signal handler")
        self._in_operation = True

    def _accepts_events(self) -> bool:
        return self._connection is not None and self._connection.accepts_events

    def _send_event(self, event: bytes) -> bool:
        if self._connection is not None:
            self._check(self._connection)
        if not self._accepts_events() and not self._open():
            return False
        if not self._unacked.has_room(event):
            self._read_acks()
            if not self._accepts_events() or not self._unacked.has_room(event):
                self._note_trouble("settles events more slowly than this process tracks them")
                return False
        self._unacked.append(event)
        if self._send(event + protocol.END):
            return True
        self._unacked.remove_last(event)
        return False

    def _open(self) -> bool:
        if self._connection is not None:
            self._read_acks()  # a relay that accepts no more events may still acknowledge; or the challenge is late
            if self._connection is not None:
                return self._accepts_events()
        if self._unacked or self._has_hung_up or not self._retry.is_due():
            return False
        self._retry.note_attempt()
        try:
            connection = block_forks(WORK, self._connected)
        except OSError as problem:
            reraise_signal_error(problem)
            self._note_trouble(f"cannot be reached: {problem.strerror or problem}")
            return False
        assert connection.caller is not None
        return self._send(connection.caller.hello) and self._await_challenge(connection)

    def _connected(self) -> Connection:
        sock = connect(self._place(), 0, self._user)
        try:
            connection = Connection(sock, self._make_caller())
            self._unacked.start_anew()
        except BaseException:
            sock.close()
            raise
        self._connection = connection
        return connection

    def _await_challenge(self, connection: Connection) -> bool:
        """Wait for the relay's challenge, for at most `GREETING` seconds; True when it has been answered."""
        deadline = monotonic() + GREETING
        sock = connection.sock
        try:
            while connection.caller is not None and self._connection is connection:
                left = deadline - monotonic()
                if left <= 0:
                    self._note_trouble("has not answered yet")
                    break
                sock.settimeout(left)  # not `poll`: gevent's runs other greenlets, which could get here too
                data = sock.recv(protocol.LONGEST_GREETING)
                sock.settimeout(0)
                self._take(connection, data)
        except _socket.timeout as problem:
            reraise_signal_error(problem)
            self._note_trouble("has not answered yet")
            sock.settimeout(0)
        except OSError as problem:
            reraise_signal_error(problem)
            self._drop_connection("has ended")
        return self._accepts_events()

    def _answer_challenge(self, connection: Connection, line: bytes) -> None:
        caller, connection.caller = connection.caller, None
        assert caller is not None
        try:
            answer = caller.answer(line)
        except protocol.Refused as problem:
            self._stay_away(str(problem))
            return
        connection.accepts_events = True
        if self.trouble == "has not answered yet":
            self.trouble = ""
        self._send(answer)

    def _stay_away(self, why: str) -> None:
        self._retry.wait = LONGEST_WAIT
        self._drop_connection(why)

    def _check(self, connection: Connection) -> None:
        """Before each event: check that the socket is still ours, and read responses if it is time."""
        now = monotonic()
        if now >= connection.next_read or not self.sent_count & _EVERY:
            connection.next_read = now + _LISTEN
            self._read_acks()
        elif not connection.is_ours():
            self._drop_connection(LOST)

    def _send(self, line: bytes) -> bool:
        """Send all of ``line`` or nothing; False if the relay does not accept it."""
        connection = self._connection
        if connection is None:
            return False
        try:
            sent = connection.sock.send(line, _AT_ONCE)
        except BlockingIOError:
            sent = 0
        except OSError as problem:
            reraise_signal_error(problem)
            self._end(connection)
            return False
        if sent < len(line):
            return self._send_patiently(connection, line, sent)
        connection.is_full = False
        return True

    def _send_patiently(self, connection: Connection, line: bytes, sent: int) -> bool:
        if sent or not connection.is_full:
            try:
                connection.sock.settimeout(PATIENCE)
                sent += connection.sock.send(memoryview(line)[sent:], QUIETLY)
                connection.sock.settimeout(0)
            except _socket.timeout as problem:
                reraise_signal_error(problem)
                connection.sock.settimeout(0)
            except OSError as problem:
                reraise_signal_error(problem)
                self._end(connection)
                return False
            if sent == len(line):
                return True
            if sent:
                self._drop_connection("accepted only a part of an event")
                return False
        connection.is_full = True
        self._note_trouble("accepts no more events for now")
        return False

    def _read_acks(self) -> None:
        connection = self._connection
        if connection is None:
            return
        if not connection.is_ours():
            self._drop_connection(LOST)
            return
        try:
            for _ in range(_AT_MOST // 65_536):
                data = connection.sock.recv(65_536, _AT_ONCE)
                self._take(connection, data)
                if len(data) < 65_536 or self._connection is None:
                    return
        except BlockingIOError:
            pass
        except OSError as problem:
            reraise_signal_error(problem)
            self._drop_connection("has ended")

    def _take(self, connection: Connection, data: bytes) -> None:
        """Handle ``data`` from the relay; empty means that the relay has closed the connection."""
        if not data:
            self._drop_connection("has ended")
            return
        try:
            self._handle_lines(connection, data)
        except (ValueError, KeyError, TypeError, AttributeError) as nonsense:
            reraise_signal_error(nonsense)
            self._drop_connection(f"sent an invalid response: {nonsense!r}")

    def _handle_lines(self, connection: Connection, data: bytes) -> None:
        *lines, connection.partial_line = (connection.partial_line + data).split(protocol.END)
        if connection.caller is not None:
            if len(connection.partial_line) > protocol.LONGEST_GREETING:
                raise ValueError("a line is too long")
            if not lines:
                return
            self._answer_challenge(connection, lines.pop(0))
        for line in lines:
            if self._connection is not connection:
                return
            if line[:1] == b"[":
                if len(line) > _LONGEST_COUNT:
                    raise ValueError("it acknowledges events that were not sent to it")
                self._settle(connection, int(line[1:-1]))
                continue
            said = protocol.parse(line)
            if "lost" in said:
                self._note_loss(connection, said)
            elif "refused" in said:
                self._stay_away(str(protocol.refusal(said)))
                return
        if len(connection.partial_line) > protocol.LONGEST_ANSWER:
            raise ValueError("a line is too long")

    def _note_loss(self, connection: Connection, said: dict[str, Any]) -> None:
        error = protocol.lost_error(said, len(self._unacked) - sum(lost for _, lost in connection.uncounted))
        cause = error.cause or "undeliverable"
        connection.uncounted.append((cause, error.lost))
        self.lost[cause] = self.lost.get(cause, 0) + error.lost
        self.errors.append(error)
        self.news = True

    def _settle(self, connection: Connection, count: int) -> None:
        if count > connection.acknowledged + len(self._unacked):
            raise ValueError("it acknowledges events that were not sent to it")
        self._retry.wait = FIRST_WAIT
        if self.trouble:
            self.trouble = ""
            self.news = True
        connection.note_counted(max(0, count - connection.acknowledged))
        while connection.acknowledged < count and self._unacked:
            connection.acknowledged += 1
            self._unacked.remove_first()
            self._settled += 1

    def _end(self, connection: Connection) -> None:
        """The relay accepts no more events. It may acknowledge what it has until the connection is closed."""
        connection.accepts_events = False
        self._read_acks()

    def _drop_connection(self, why: str) -> None:
        """The relay is lost, or must not be used any more. What it has not acknowledged is sent again."""
        connection = self._connection
        self._hang_up()
        while connection is not None and connection.uncounted:  # sent again, and counted by whoever sends them
            cause, lost = connection.uncounted.popleft()
            self.lost[cause] -= lost
            if not self.lost[cause]:
                del self.lost[cause]
        self.breaks += 1
        self._note_trouble(why)
        self._retry.postpone()

    def _hang_up(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _note_trouble(self, what: str) -> None:
        self.trouble = what
        self.news = True
