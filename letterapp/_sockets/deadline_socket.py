"""A connected socket for `http.client`, with one deadline for all its waits.

Responsible for: TLS, waiting, and closing it in a forked child. Not responsible for: choosing an address (`connect`),
requests, responses, retries. Used by one thread at a time; in a forked child only `close_inherited` may be called.

This module and those of the network are imported at the first request, all at once; see `transport`.
"""

from __future__ import annotations

import _socket
import io
import os
import sys

from .._runtime.atfork import NETWORK, block_forks, close_if_unchanged, register_inherited
from .._runtime.clock import monotonic
from .._runtime.signal_errors import reraise_signal_error
from .._text import Secret, SecretBytes
from .connect import Race, detaching, readable, writable
from .sigpipe import without_sigpipe

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    import ssl
    from typing import Any, Callable


# On Linux this flag turns SIGPIPE, the signal for a write to a closed peer, into an error. Elsewhere, and over TLS, the
# signal is blocked.
_QUIETLY = getattr(_socket, "MSG_NOSIGNAL", 0)


def open_socket(host: str, port: int, deadline: float) -> DeadlineSocket:
    """Connect to ``host``. A child that is forked from now on closes its copy of the socket."""
    from socket import IPPROTO_TCP, TCP_NODELAY

    with Race(block_forks(NETWORK, _backends, host, port), deadline) as race:
        sock = race.run()
        sock.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)
        line = DeadlineSocket(sock, deadline)
        race.take(sock)
        return line


class DeadlineSocket:
    """A socket whose waits end at ``deadline``. The time-out of a normal socket starts again with each byte received.

    The socket is non-blocking. Waiting happens outside of its methods, where no signal is blocked and other greenlets
    can run.
    """

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        sock.settimeout(0.0)
        self._sock = sock
        self._detach = detaching(sock)
        # On Windows sockets are not descriptors, and nothing is inherited.
        self._inode = os.fstat(sock.fileno()).st_ino if os.name == "posix" else -1
        self._base = _socket_class()
        self.deadline = deadline
        self.ended = False  # the peer has closed its side
        self.has_surplus = False  # more was received than the responses to our requests
        self._flags = _QUIETLY
        register_inherited(self)

    # Opening.

    def start_tls(self, context: ssl.SSLContext, host: str) -> None:
        # In two steps: during a handshake in `wrap_socket` there is no reference to the new socket, so a child that is
        # forked then could not close it.
        secured = context.wrap_socket(self._sock, server_hostname=host, do_handshake_on_connect=False)
        self._sock, self._detach = secured, detaching(secured)
        self._flags = 0  # a TLS socket accepts no flags
        secured.settimeout(0.0)
        self._when_ready(secured.do_handshake, for_writing=False)

    # Called by `http.client`, for a response.

    def makefile(self, mode: str) -> io.BufferedReader:
        return _Buffered(_Reader(self))

    def close(self) -> None:
        """Do nothing: `http.client` closes the socket before the response has been read."""

    # Called by the transport and the reader.

    def send(self, head: bytes, secrets: Secret, body: bytes = b"") -> None:
        """Send a request: ``head`` and ``secrets``, which are complete header lines, and ``body``. In one packet."""
        self.sendall(_joined(head, secrets, body))

    def sendall(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[self._when_ready(self._send_some, rest, for_writing=True) :]

    def receive_into(self, buffer: Any) -> int:
        received: int = self._when_ready(self._sock.recv_into, buffer, for_writing=False)
        self.ended = not received
        return received

    def mark_surplus(self) -> None:
        """Note that data was read that is not part of a response."""
        self.has_surplus = True

    def is_stale(self) -> bool:
        """True if the idle connection must not be used again.

        The server has closed it, or sent something unasked; gevent has patched since; or other code has closed the
        descriptor, whose number may belong to another file now.
        """
        if self._base is not _socket_class():
            return True  # an unpatched socket would block every greenlet while it waits
        if not self._is_ours():
            return True
        return self.has_surplus or self.is_readable(0.0)

    def is_readable(self, wait: float) -> bool:
        """True if there is something to read, or an error, within ``wait`` seconds."""
        try:
            # `poll` does not see what OpenSSL has already read from the socket.
            pending = getattr(self._sock, "pending", None)
            return bool(pending is not None and pending()) or readable(self._sock, wait)
        except (OSError, ValueError) as problem:
            reraise_signal_error(problem)
            return True

    def hang_up(self) -> None:
        if not self._is_ours():
            self._detach()
        try:
            self._sock.close()
        except OSError as problem:
            reraise_signal_error(problem)  # otherwise it is closed, as intended

    def close_inherited(self) -> None:
        # Only this process's copy of the descriptor is closed: `shutdown`, or TLS's close_notify, would end the
        # parent's connection. And only if it is still the same file: daemons and workers close inherited descriptors.
        close_if_unchanged(self._detach(), self._inode)

    def _is_ours(self) -> bool:
        try:
            return self._inode == -1 or os.fstat(self._sock.fileno()).st_ino == self._inode
        except OSError as problem:
            reraise_signal_error(problem)
            return False

    def __del__(self) -> None:
        # For a client that was not closed: a socket that is deleted is closed too, but emits a ResourceWarning.
        try:
            if self._inode == -1:
                self.hang_up()
            else:
                self.close_inherited()
        except (AttributeError, TypeError):
            pass  # the constructor failed, or the interpreter is shutting down

    # One operation.

    def _when_ready(self, act: Callable[..., Any], *arguments: Any, for_writing: bool) -> Any:
        """Call ``act`` until the socket is ready for it, and wait in between."""
        while True:
            left = self.deadline - monotonic()
            if left <= 0:
                raise _socket.timeout("timed out")
            try:
                if self._flags:
                    return act(*arguments)
                return without_sigpipe(act, *arguments)
            except OSError as problem:
                wants = _wants_to_write(problem, for_writing)
                if wants is None:
                    raise
            if wants:
                writable([self._sock], left)
            else:
                readable(self._sock, left)

    def _send_some(self, data: memoryview) -> int:
        sent = self._sock.send(data, self._flags)
        if not sent:
            raise BlockingIOError  # gevent's TLS socket returns 0 instead
        return sent


def _joined(head: bytes, secrets: Secret, body: bytes) -> SecretBytes:
    return SecretBytes(b"".join((head, secrets.encode(), b"\r\n", body)))


class _Reader(io.RawIOBase):
    """Reads from a socket. Closing it leaves the socket open for the next request."""

    def __init__(self, line: DeadlineSocket) -> None:
        self.line = line
        self.is_done = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        return None if self.is_done else self.line.receive_into(buffer)


class _Buffered(io.BufferedReader):
    """The buffer for one response. When it is closed, it notes surplus bytes."""

    raw: _Reader

    def close(self) -> None:
        if not self.closed:
            self.raw.is_done = True  # so that `peek` looks only at the buffer, and does not wait
            if self.peek(1):
                self.raw.line.mark_surplus()
        super().close()


def _wants_to_write(problem: OSError, for_writing: bool) -> bool | None:
    """If the socket is not ready, True if it waits for writing, False for reading; None for any other ``problem``."""
    if isinstance(problem, BlockingIOError):
        return for_writing
    ssl = sys.modules.get("ssl")
    if ssl is not None and isinstance(problem, (ssl.SSLWantReadError, ssl.SSLWantWriteError)):
        return isinstance(problem, ssl.SSLWantWriteError)
    return None


def _backends(host: str, port: int) -> list[Any]:
    import socket

    return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)


def _socket_class() -> type:
    import socket

    return socket.socket
