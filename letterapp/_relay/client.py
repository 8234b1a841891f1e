"""A process's way to a relay: one socket, and the events that went over it and are not settled.

Responsible for: handing over, which never waits longer than a millisecond; the relay's answers; what is to be sent
again when the relay is gone. Not responsible for: what a process does instead (`_relay.delivery`), how a relay comes to
be (`launcher`).

When a connection is opened the call waits for one answer, the relay's challenge (`protocol`), but not for longer than
`GREETING`. One that comes later is heard by a later call, and events go another way until then.

The socket is C's own, because gevent's would let other greenlets in between an event's bytes.
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
PATIENCE = 0.001  # seconds that a call may wait for a relay that takes nothing; calls that follow do not wait at all
_EVERY = 63  # events, less one, after which the answers are read: a power of two, less one
_AT_ONCE = getattr(_socket, "MSG_DONTWAIT", 0) | getattr(_socket, "MSG_NOSIGNAL", 0)
QUIETLY = getattr(_socket, "MSG_NOSIGNAL", 0)  # a server may have SIGPIPE end its processes
_AT_MOST = 262_144  # bytes of answers that one call hears, however much there is
_LONGEST_COUNT = 22  # bytes
_BUFFER = 1_048_576  # bytes that may lie in a socket, if the system allows: what a burst finds room in
_LISTEN = 0.1  # seconds after which they are, in any case
_FIRST_WAIT, _LONGEST_WAIT = 1.0, 30.0  # seconds from one attempt to reach a relay to the next
_WHILE_WAITING = 0.05  # seconds: another thread may have read the answer

POSSIBLE = hasattr(_socket, "AF_UNIX")


def connect(path: str, timeout: float, user: int | None = None) -> Any:
    """A socket to the relay at ``path``; `OSError` when nobody listens there within ``timeout`` seconds.

    And when whoever listens is neither this user, root nor ``user``: he is not told a word.
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
    """What went over a link, at one moment."""

    def __init__(self, relayed: int, waiting: int, waiting_bytes: int, lost: dict[str, int], is_up: bool) -> None:
        self.relayed = relayed
        # What is lost out of order is told before it counts as settled.
        self.waiting = max(0, min(waiting, relayed - sum(lost.values())))
        self.waiting_bytes = waiting_bytes
        self.lost = lost
        self.delivered = relayed - self.waiting - sum(lost.values())
        self.is_up = is_up


class RelayClient:
    """The connection of one process. Any thread, callback and signal handler may call; a child makes its own."""

    def __init__(
        self,
        place: Callable[[], str],
        caller: Callable[[], protocol.Caller],
        max_events: int,
        max_bytes: int,
        user: int | None = None,
    ) -> None:
        """``place`` says where the socket is, or raises `OSError`. Opens nothing.

        ``caller`` makes what proves this process to a relay; ``user`` may serve besides this user and root.
        """
        self._place = place
        self._make_caller = caller
        self._user = user
        self._max_events = max_events
        self._max_bytes = max_bytes
        # Held while an event is noted and sent, because the relay's answers count in the order of the sending. That
        # one `send` is the only I/O under it, and waits for `PATIENCE` at the most.
        self._lock = threading.RLock()
        self._sock: Any = None
        self._inode = 0
        self._peer: Any = None  # the relay's address
        self._caller: protocol.Caller | None = None  # while the relay's challenge is still to come
        self._next_listen = 0.0
        self._accepts_events = False  # events may go over it; else it is only listened to, until the relay has ended
        self._is_stuck = False
        self._is_amid = False  # in something that leaves the socket or the counts in doubt if it is cut short
        self._has_hung_up = False
        # Handed over and not settled, in order. Without a socket they are to go back to the process.
        self._unacked: deque[bytes] = deque()
        self._unacked_bytes = 0
        self._settled = 0
        self._partial_line = b""  # the beginning of a line
        self._acknowledged = 0  # over this socket
        # Cause and number of events that the relay has reported lost and, as far as can be known, has not counted yet.
        self._uncounted: deque[tuple[str, int]] = deque()
        self._next_try = 0.0
        self._wait = _FIRST_WAIT

        self.lost: dict[str, int] = {}
        self.errors: list[LetterError] = []  # that the relay told of, and nobody has reported
        self.trouble = ""  # what is wrong with the relay; empty while it takes events
        self.breaks = 0  # how often it was lost
        self.news = False  # there are errors, or trouble, or its end
        register_inherited(self)

    # Any thread.

    def send_event(self, event: bytes) -> bool:
        """Give the relay ``event``; False when it is not to be had, and the event must go another way."""
        if len(event) > protocol.LONGEST_EVENT or self._lock._is_owned():  # type: ignore[attr-defined]
            return False  # (a signal handler in the middle of this: its event would count for another's)
        with self._lock:
            self._begin()
            taken = self._send_event(event)
            self._is_amid = False
            return taken

    def request_flush(self) -> None:
        """Ask the relay to send what was handed over now."""
        if not self._lock._is_owned():  # type: ignore[attr-defined]
            with self._lock:
                self._begin()
                if self._accepts_events and self._unacked:
                    self._send(protocol.FLUSH + protocol.END)
                self._is_amid = False

    def read_acks(self) -> None:
        """Read what the relay has answered so far."""
        if not self._lock._is_owned():  # type: ignore[attr-defined]
            with self._lock:
                self._begin()
                self._read_acks()
                self._is_amid = False

    def wait(self, target: int, deadline: float, clock: Callable[[], float]) -> bool:
        """Wait until ``target`` of the events handed over are settled; False at ``deadline`` or without a relay."""
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
                reraise_signal_error(problem)  # else another thread found it ended

    # What a relay had that is gone goes back to its process event by event, so that whatever comes in between, an
    # exception of a signal handler too, the rest is still here.

    def next_returned(self) -> bytes | None:
        """The event that is to be sent another way; `confirm_returned` when it is. For one thread at a time."""
        with self._lock:
            return self._unacked[0] if self.has_returned() else None

    def confirm_returned(self) -> None:
        with self._lock:
            self._unacked_bytes -= len(self._unacked.popleft())

    @property
    def sent_count(self) -> int:
        """How many events the relay has had, less those that came back."""
        return self._settled + len(self._unacked)

    def has_settled(self, target: int) -> bool:
        """True when of the first ``target`` events handed over all are settled, or on their own way."""
        return self._settled >= target or not self._unacked

    def has_returned(self) -> bool:
        """True when a relay that is gone has left events here."""
        return self._sock is None and not self._has_hung_up and bool(self._unacked)

    def has_news(self) -> bool:
        return self.news or self.has_returned()

    def take_errors(self) -> list[LetterError]:
        """What the relay told of since the last time."""
        if not self.errors or self._lock._is_owned():  # type: ignore[attr-defined]
            return []
        with self._lock:
            errors, self.errors = self.errors, []
            return errors

    def unsettled(self) -> list[bytes]:
        """What the relay has and has not settled; nothing where it is to be sent another way."""
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
        """Events that wait for the relay's word, were delivered and were lost, not all of the same moment: no lock."""
        counts = Counts(self.sent_count, len(self._unacked), 0, self.lost.copy(), False)
        return counts.waiting, max(0, counts.delivered), sum(counts.lost.values())

    def is_held_by_this_thread(self) -> bool:
        return bool(self._lock._is_owned())  # type: ignore[attr-defined]

    def call_when_released(self, act: Callable[[], object]) -> None:
        """Wait until no other thread is inside, then call ``act``."""
        with self._lock:
            pass
        act()

    def retry_soon(self) -> None:
        """A relay has been started: do not wait for the next attempt's time."""
        self._next_try = 0.0

    def close(self) -> None:
        """Hang up. What was handed over is the relay's to send."""
        if not self._lock._is_owned():  # type: ignore[attr-defined]
            with self._lock:
                self._has_hung_up = True
                self._hang_up()

    # A forked child's.

    def close_inherited(self) -> None:
        # This process's copy alone, so that the relay sees the end of the one that uses it.
        sock = self._sock
        if sock is not None:
            close_if_unchanged(sock.detach(), self._inode)

    def __del__(self) -> None:
        # Of a client that nobody closed. A socket that is left to itself is closed too, but complains of that.
        try:
            self.close_inherited()
        except (AttributeError, TypeError):
            pass  # it was not made to its end, or the interpreter is taken apart

    # Under the lock.

    def _begin(self) -> None:
        if self._is_amid and self._sock is not None:
            # The last one here was cut short by an exception of a signal handler. What was sent or read by then nobody
            # knows, so all of it goes again. Told by a mark, because such an exception cuts short any cleaning up too.
            self._drop_connection("was interrupted")
        self._is_amid = True

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
            self._read_acks()  # a relay that takes no more, but may still settle; or its challenge comes late
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
        """Wait for the relay's challenge for a while; True when it has come and is answered."""
        deadline = monotonic() + GREETING
        try:
            while self._caller is not None and self._sock is not None:
                left = deadline - monotonic()
                if left <= 0:
                    self._note_trouble("has not answered yet")
                    break
                self._sock.settimeout(left)  # not `poll`, in which gevent runs greenlets that would come here too
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
        """Before each event: is it still our relay's, and is it time to hear what the relay has to say?"""
        now = monotonic()
        if now >= self._next_listen or not self.sent_count & _EVERY:
            self._next_listen = now + _LISTEN
            self._read_acks()
        else:
            self._is_ours()

    def _is_ours(self) -> bool:
        """False if somebody has closed the descriptor behind our back: its number may be a stranger's by now."""
        try:
            if self._sock.getpeername() == self._peer:
                return True
        except OSError as problem:
            reraise_signal_error(problem)
        self._drop_connection("has ended, or somebody has closed the connection's descriptor")
        return False

    def _send(self, line: bytes) -> bool:
        """Send all of ``line`` or nothing; False when the relay does not take it."""
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
        """Hear what the relay has said, or that it has hung up."""
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
        """The relay takes no more. It may still settle what it has: it is gone when there is nothing more to hear."""
        self._accepts_events = False
        self._read_acks()

    def _drop_connection(self, why: str) -> None:
        """The relay is gone, or must be given up. What it has not settled is to be sent again."""
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
