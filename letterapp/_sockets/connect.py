"""Connecting to whichever address of a host responds first (RFC 8305, "Happy Eyeballs").

Responsible for: the order of the addresses, overlapping attempts, closing their sockets, also in a forked child. Not
responsible for: looking up the addresses, TLS, and what is sent over the connection (`deadline_socket`).

An address that drops packets, such as an IPv6 address without a route, would otherwise use up the whole deadline, and a
working one would never be tried. One thread tries them all with non-blocking connects.
"""

from __future__ import annotations

import _socket
import errno
import os
from collections import deque

from .._runtime.atfork import WORK, block_forks, close_if_unchanged, register_inherited
from .._runtime.clock import monotonic
from .._runtime.signal_errors import reraise_signal_error

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from typing import Any, Callable

DELAY = 0.25  # seconds from one attempt to the next while none has failed: "Connection Attempt Delay", RFC 8305, 8
LEAST_DELAY = 0.01  # seconds: the minimum in the same section
# Errors of a non-blocking connect that is in progress; some of them occur on other systems than Linux only.
_UNDER_WAY = {errno.EINPROGRESS, errno.EWOULDBLOCK, errno.EALREADY, errno.EINTR, getattr(errno, "WSAEWOULDBLOCK", 0)}
_UNDER_WAY -= {0}


class Attempt:
    """One socket that is connecting to one address."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.detach = detaching(sock)
        self.inode = os.fstat(sock.fileno()).st_ino if os.name == "posix" else -1


class Race:
    """The attempts to connect to one host. Used in a ``with``, whose end closes every socket that was not taken."""

    def __init__(self, places: list[Any], deadline: float) -> None:
        """``places`` is the result of `socket.getaddrinfo`. Opens nothing yet."""
        self._backends = deque(interleaved(places))
        self._deadline = deadline
        # If there are many addresses and little time, each of them gets a share.
        share = (deadline - monotonic()) / max(1, len(places))
        self._delay = max(LEAST_DELAY, min(DELAY, share))
        self._next_start = 0.0
        self._attempts: list[Attempt] = []
        self._problem = OSError("the host has no address")  # of the attempt that failed last
        register_inherited(self)

    def __enter__(self) -> Race:
        return self

    def __exit__(self, *_: object) -> None:
        while self._attempts:
            self._attempts.pop().sock.close()

    def run(self) -> socket.socket:
        """Return the first socket that is connected; raise the error of the last attempt if all have failed."""
        while True:
            now = monotonic()
            if now >= self._deadline:
                raise _socket.timeout("timed out")
            if self._backends and (now >= self._next_start or not self._attempts):
                self._next_start = now + self._delay
                self._start(*self._backends.popleft())
            elif not self._attempts:
                raise self._problem
            until = min(self._deadline, self._next_start) if self._backends else self._deadline
            winner = self._connected_until(until)
            if winner is not None:
                return winner

    def take(self, sock: socket.socket) -> None:
        """Leave ``sock`` to the caller, who makes sure that a forked child closes its copy."""
        self._attempts = [attempt for attempt in self._attempts if attempt.sock is not sock]

    # In the fork hook of a child: see `atfork.Inheritable`.

    def close_inherited(self) -> None:
        for attempt in self._attempts:
            close_if_unchanged(attempt.detach(), attempt.inode)  # -1 if the caller's socket was detached before

    # One attempt.

    def _start(self, family: int, kind: int, protocol: int, _: str, place: Any) -> None:
        try:
            attempt = block_forks(WORK, self._open, family, kind, protocol)
        except OSError as problem:  # an address family that this system does not support, or no descriptor left
            reraise_signal_error(problem)
            self._note(problem)
            return
        number = attempt.sock.connect_ex(place)
        if number and number not in _UNDER_WAY:
            self._fail(attempt, number)

    def _open(self, family: int, kind: int, protocol: int) -> Attempt:
        import socket

        sock = socket.socket(family, kind, protocol)
        try:
            sock.setblocking(False)
            attempt = Attempt(sock)
        except BaseException:
            sock.close()
            raise
        self._attempts.append(attempt)
        return attempt

    def _connected_until(self, moment: float) -> socket.socket | None:
        socks = [attempt.sock for attempt in self._attempts]
        if not socks:
            return None
        ready = writable(socks, moment - monotonic())
        for attempt in [attempt for attempt in self._attempts if attempt.sock in ready]:
            number = attempt.sock.getsockopt(_socket.SOL_SOCKET, _socket.SO_ERROR)
            if not number:
                return attempt.sock
            self._fail(attempt, number)
        return None

    def _fail(self, attempt: Attempt, number: int) -> None:
        self._attempts.remove(attempt)
        attempt.sock.close()
        self._note(OSError(number, os.strerror(number)))

    def _note(self, problem: OSError) -> None:
        self._problem = problem
        self._next_start = 0.0  # RFC 8305, 5: the next attempt starts at once


def interleaved(places: list[Any]) -> list[Any]:
    """``places`` in the resolver's order, but with alternating address families (RFC 8305, 4)."""
    families = list(dict.fromkeys(place[0] for place in places))
    queues = [deque(place for place in places if place[0] == family) for family in families]
    ordered = []
    while any(queues):
        ordered += [queue.popleft() for queue in queues if queue]
    return ordered


def writable(socks: list[socket.socket], seconds: float) -> list[socket.socket]:
    """Wait up to ``seconds`` until some of ``socks`` can be written to or have failed; return those."""
    return _waited(socks, seconds, for_writing=True)


def readable(sock: socket.socket, seconds: float) -> bool:
    """Wait until ``sock`` can be read or has failed; False after ``seconds``."""
    return bool(_waited([sock], seconds, for_writing=False))


def _waited(socks: list[socket.socket], seconds: float, for_writing: bool) -> list[socket.socket]:
    import select  # looked up at each use: gevent's blocks only the greenlet

    seconds = max(0.0, seconds)
    if hasattr(select, "poll"):  # `select.select` fails above descriptor 1023
        poll = select.poll()
        for sock in socks:
            poll.register(sock, select.POLLOUT if for_writing else select.POLLIN)
        ready = {descriptor for descriptor, _ in poll.poll(seconds * 1000)}
        return [sock for sock in socks if sock.fileno() in ready]
    if for_writing:  # Windows reports a failed connect as an exceptional condition
        _, ready_socks, failed = select.select([], socks, socks, seconds)
        return [*ready_socks, *failed]
    return select.select(socks, [], [], seconds)[0]


def detaching(sock: socket.socket) -> Callable[[], int]:
    """``sock.detach``, if possible the C method: Python's would touch some more pages in a forked child."""
    taking: Callable[[], int] = _socket.socket.detach.__get__(sock) if isinstance(sock, _socket.socket) else sock.detach
    return taking
