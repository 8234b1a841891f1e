"""A connected socket, as `http.client` uses one, whose every wait ends at one deadline.

Lives here: opening it, TLS, an HTTP proxy's tunnel, and what becomes of it in a forked child. Never here: requests,
answers, retries. Used by one thread at a time; `abandon` and `abandon_late` alone may be called in a forked child.

This file and the network's modules are imported at the first request: `_transport.load` says why, and why all at once.
"""

from __future__ import annotations

import _socket
import io
import os
import time

from ._forks import NETWORK, close_own, inherits, undisturbed
from ._handlers import pass_on

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    import ssl
    from typing import Any, Callable


# Linux's, by which a peer that has gone is an error here; elsewhere and over TLS an application that has given SIGPIPE
# its default action, as command lines do, would be ended.
_QUIETLY = getattr(_socket, "MSG_NOSIGNAL", 0)


def open_line(host: str, port: int, deadline: float) -> Line:
    """Open a line, and have a child that is forked from now on find it."""
    from socket import IPPROTO_TCP, TCP_NODELAY

    sock = _connected(undisturbed(NETWORK, _places, host, port), deadline)
    sock.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)
    return Line(sock, deadline)


class Line:
    """The socket. Its waits end at ``deadline``; its own time-out would start anew with each byte that trickles in."""

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self._sock = sock
        self._detach = _detach(sock)
        # Windows' sockets are no descriptors, and nothing is inherited there.
        self._inode = os.fstat(sock.fileno()).st_ino if os.name == "posix" else -1
        self._base = _socket_class()
        self.deadline = deadline
        self.ended = False  # the peer has closed its side
        self._held: list[bytes] | None = None  # what is to leave in one piece
        self._flags = _QUIETLY
        inherits(self)

    # Opening.

    def ask_for_tunnel(self, authority: str, headers: dict[str, str]) -> None:
        """Have an HTTP proxy connect this line to ``authority`` (RFC 9110, 9.3.6)."""
        import http.client

        lines = [
            f"CONNECT {authority} HTTP/1.1",
            f"Host: {authority}",
            *(f"{name}: {headers[name]}" for name in headers),
        ]
        self.sendall(("\r\n".join(lines) + "\r\n\r\n").encode("ascii"))
        response = http.client.HTTPResponse(self, method="CONNECT")  # type: ignore[arg-type]
        response.begin()
        if response.status != 200:
            raise OSError(f"the proxy refused: {response.status} {response.reason}")

    def secure(self, context: ssl.SSLContext, host: str) -> None:
        # In two steps, because a socket in the middle of `wrap_socket`'s own handshake is in nobody's hands, and a
        # child forked then could not give it back.
        secured = context.wrap_socket(self._sock, server_hostname=host, do_handshake_on_connect=False)
        self._sock, self._detach = secured, _detach(secured)
        self._flags = 0  # the only ones that a TLS socket takes
        self._armed()
        secured.do_handshake()

    # What `http.client` calls.

    def sendall(self, data: bytes) -> None:
        if self._held is not None:
            self._held.append(data)
            return
        rest = memoryview(data)
        while rest:
            rest = rest[self._armed().send(rest, self._flags) :]

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(_Reader(self))

    def close(self) -> None:
        """Without effect: `http.client` lets go of the socket while the answer is still to be read."""

    # What the transport and the reader call.

    def send(self, request: Callable[[], object]) -> None:
        """Send what ``request`` writes, as one piece: `http.client` writes head and body apart, a packet for each."""
        held: list[bytes] = []
        self._held = held
        try:
            request()
        finally:
            self._held = None
        self.sendall(b"".join(held))

    def receive_into(self, buffer: Any) -> int:
        received = self._armed().recv_into(buffer)
        self.ended = not received
        return received

    def is_stale(self) -> bool:
        """True when the server closed the idle connection, or spoke out of turn, or gevent patched since."""
        # A socket of before would stop every greenlet while it waits.
        return self._base is not _socket_class() or self.is_readable(0.0)

    def is_readable(self, wait: float) -> bool:
        """True when there is something to read, or an error to be met, within ``wait`` seconds."""
        import select

        try:
            if hasattr(select, "poll"):  # `select.select` fails above descriptor 1023
                poll = select.poll()
                poll.register(self._sock, select.POLLIN)
                return bool(poll.poll(wait * 1000))
            return bool(select.select([self._sock], [], [], wait)[0])
        except (OSError, ValueError):
            return True

    def is_ours(self) -> bool:
        """False when somebody has closed the descriptor, whose number may be another file's by now."""
        try:
            return self._inode == -1 or os.fstat(self._sock.fileno()).st_ino == self._inode
        except OSError:
            return False

    def hang_up(self) -> None:
        try:
            self._sock.close()
        except OSError:
            pass  # it is gone, which is what was wanted

    def abandon(self) -> None:
        # In the fork hook. Only this process's copy of the descriptor goes; `shutdown` or TLS's farewell would end the
        # parent's connection.
        descriptor = self._detach()
        if descriptor >= 0:  # -1 the second time
            try:
                os.close(descriptor)
            except OSError:
                pass  # somebody else closed it

    def abandon_late(self) -> None:
        close_own(self._detach(), self._inode)  # daemons and workers close what they inherited

    def _armed(self) -> socket.socket:
        left = self.deadline - time.monotonic()
        if left <= 0:
            import socket

            raise socket.timeout("timed out")
        self._sock.settimeout(left)
        return self._sock


class _Reader(io.RawIOBase):
    """The reading end of a line. Closing it leaves the line open, for the next request."""

    def __init__(self, line: Line) -> None:
        self._line = line

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._line.receive_into(buffer)


def _places(host: str, port: int) -> list[Any]:
    import socket

    return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)


def _connected(places: list[Any], deadline: float) -> socket.socket:
    """What `socket.create_connection` does, but with one deadline for all addresses of the host together."""
    import socket

    problem: OSError = OSError("the host has no address")
    for family, kind, protocol, _, place in places:
        sock = socket.socket(family, kind, protocol)
        try:
            sock.settimeout(max(0.001, deadline - time.monotonic()))
            sock.connect(place)
        except OSError as error:
            sock.close()
            pass_on(error)
            problem = error
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    raise problem


def _socket_class() -> type:
    import socket

    return socket.socket


def _detach(sock: socket.socket) -> Callable[[], int]:
    """What takes its descriptor from ``sock``: C's own where it can be, since Python's is some pages more in a fork."""
    taking: Callable[[], int] = _socket.socket.detach.__get__(sock) if isinstance(sock, _socket.socket) else sock.detach
    return taking
