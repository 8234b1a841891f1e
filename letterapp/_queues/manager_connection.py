"""A connection to the server of a `multiprocessing` manager, with a deadline for every request.

Responsible for: the client side of the managers' protocol, over Unix sockets, TCP and Windows pipes.
Not responsible for: the requests (`targets`), the server side (`manager_server`).

A manager's own proxies are not used: after a raw `os.fork()` parent and child share one socket, and after an exception
in the middle of a call every response belongs to the request before. `ManagerConnection` uses the same protocol over a
socket that belongs to one process, and that is closed after a request that was not completed.
"""

from __future__ import annotations

import hmac  # noqa: F401  # `answer_challenge` would import it in a call, and a fork in another thread could tear that
import os
import pickle
import socket
import struct
import time
from multiprocessing import connection as mp_connection
from queue import Full

from .._runtime.atfork import WORK, block_forks
from .._runtime.clock import FOREVER, monotonic
from .._sockets.deadline_socket import DeadlineSocket, open_socket
from ..errors import LetterError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, List, Tuple, Union

    Address = Union[str, Tuple[str, int]]
    Batch = List[bytes]

NOT_YET = object()  # there is no response yet
ANSWERING = 5.0  # maximum time for a response if no call of the application waits, in seconds
MAX_ANSWER = 8_388_608  # bytes of one response: more than 100 reports of 64 KiB
_BACKLOG_WAIT = 0.01  # seconds until the next attempt at a server whose backlog is full


class Disconnected(ConnectionError):
    """The connection to a manager cannot be used any more; a new one may work."""


class ManagerConnection:
    """A connection of this process to a manager's server. Every request ends within a given number of seconds.

    Used by one thread at a time. A forked child closes its copy and opens its own. The protocol is that of
    `multiprocessing.managers`: a mutual challenge with the authkey, then pickled ``(ident, method, args, kwds)`` as
    requests and ``(kind, result)`` as responses.
    """

    def __init__(
        self,
        address: Address,
        authkey: bytes,
        patience: float,
        queue: str | tuple[str, str, str],
        answers: bool,
    ) -> None:
        """``queue``: its identity in the server, or the arguments for the server's ``create``.

        ``answers``: the queue reports when a batch is settled, as that of a `SenderManager` does.
        """
        self._answers = answers
        self._asked: float | None = None  # when the request was sent that has no response yet
        deadline = monotonic() + patience
        if isinstance(queue, tuple):
            # The server handles one request per connection, unless that is "accept_connection".
            self._wire = _open_wire(address, authkey, deadline)
            try:
                self._ident = self._exchange(None, "create", *queue)[0]
            finally:
                self._wire.close()
        else:
            self._ident = queue
        self._wire = _open_wire(address, authkey, deadline)
        try:
            self._exchange(None, "accept_connection", f"letterapp {os.getpid()}")
        except BaseException:
            self._wire.close()
            raise

    def put(self, batch: Batch, urgent: bool, wait: float, patience: float) -> bool | object:
        arguments = (batch, urgent) if self._answers else (batch,)
        answer: object = self._ask("put_nowait", *arguments, wait=wait, patience=patience)
        if answer is NOT_YET:
            return NOT_YET
        return bool(answer) or not self._answers

    def settled(self, linger: float, urgent: bool, wait: float, patience: float) -> list[bytes] | object | None:
        if not self._answers:
            return NOT_YET if self.confirm(wait, patience) is NOT_YET else []
        answer: list[bytes] | object | None = self._ask(
            "settled", linger, urgent, wait=linger + wait, patience=linger + patience
        )
        return answer

    def confirm(self, wait: float, patience: float) -> object:
        """Make sure that the last response, None, is genuine. Raises `OSError` or `EOFError` if it is not.

        A server that is shutting down responds with None to a request that it does not carry out, and then closes the
        connection (`Server.handle_request` in CPython's ``multiprocessing/managers.py``, after `serve_client`).
        """
        try:
            answer = self._ask("empty", wait=wait, patience=patience)
        except RuntimeError:
            return True  # the object has no such method, and the server said so
        if answer is None:
            raise Disconnected("it is shutting down")
        return answer

    def call(self, method: str, *arguments: Any, patience: float) -> Any:
        """Call ``method`` of the queue. Raises what it raised, or `OSError`, after which this has to be closed."""
        return self._ask(method, *arguments, wait=patience, patience=patience)

    def ask(self, method: str, *arguments: Any, wait: float) -> Any:
        """The same, but returns NOT_YET after ``wait`` seconds; the next call continues to wait for the response."""
        return self._ask(method, *arguments, wait=wait, patience=FOREVER)

    def close(self) -> None:
        self._wire.close()

    def _ask(self, method: str, *arguments: Any, wait: float, patience: float) -> Any:
        now = monotonic()
        if self._asked is None:
            if self._wire.is_stale():
                raise Disconnected("it closed the connection")
            self._wire.set_deadline(now + min(wait, patience))
            self._send(self._ident, method, *arguments)
            self._asked = now
        if not self._wire.has_answer(wait):
            if monotonic() >= self._asked + patience:
                raise socket.timeout("timed out")
            return NOT_YET
        self._asked = None
        self._wire.set_deadline(monotonic() + min(patience, ANSWERING))
        return self._answer()

    def _exchange(self, ident: str | None, method: str, *arguments: Any) -> Any:
        self._send(ident, method, *arguments)
        return self._answer()

    def _send(self, ident: str | None, method: str, *arguments: Any) -> None:
        self._wire.send_bytes(pickle.dumps((ident, method, arguments, {})))

    def _answer(self) -> Any:
        kind, result = pickle.loads(self._wire.recv_bytes())
        if kind == "#RETURN":
            return result
        if kind == "#ERROR" and isinstance(result, Exception):
            raise result
        raise _remote_error(str(result))


class _SocketWire:
    """Messages over a socket, framed like those of `multiprocessing.connection.Connection`, with a deadline."""

    def __init__(self, line: DeadlineSocket) -> None:
        self._line = line

    def set_deadline(self, deadline: float) -> None:
        self._line.deadline = deadline

    def is_stale(self) -> bool:
        return self._line.is_stale()

    def has_answer(self, wait: float) -> bool:
        """True if there is something to read, or an error, within ``wait`` seconds."""
        return self._line.is_readable(wait)

    def send_bytes(self, data: bytes) -> None:
        size = len(data)
        head = struct.pack("!i", size) if size < 0x7FFFFFFF else struct.pack("!iQ", -1, size)
        self._line.sendall(head + data)

    def recv_bytes(self, maxlength: int = MAX_ANSWER) -> bytes:
        (size,) = struct.unpack("!i", self._read(4))
        if not 0 <= size <= maxlength:
            raise Disconnected(f"it sent a message of {size} bytes, more than {maxlength}")
        return bytes(self._read(size))

    def close(self) -> None:
        self._line.hang_up()

    def _read(self, size: int) -> bytearray:
        data = bytearray(size)
        rest = memoryview(data)
        while rest:
            received = self._line.receive_into(rest)
            if not received:
                raise Disconnected("it closed the connection")
            rest = rest[received:]
        return data


class _PipeWire:
    """Messages over a Windows named pipe, or any other `multiprocessing.connection.Connection`."""

    def __init__(self, pipe: Any, deadline: float) -> None:
        self._pipe = pipe
        self._deadline = deadline

    def set_deadline(self, deadline: float) -> None:
        self._deadline = deadline

    def is_stale(self) -> bool:
        try:
            return bool(self._pipe.poll(0))
        except OSError:
            return True

    def has_answer(self, wait: float) -> bool:
        return bool(self._pipe.poll(wait))

    def send_bytes(self, data: bytes) -> None:
        self._pipe.send_bytes(data)

    def recv_bytes(self, maxlength: int = MAX_ANSWER) -> bytes:
        if not self._pipe.poll(max(0.0, self._deadline - monotonic())):
            raise socket.timeout("timed out")
        data: bytes = self._pipe.recv_bytes(maxlength)
        return data

    def close(self) -> None:
        self._pipe.close()


def _open_wire(address: Address, authkey: bytes, deadline: float) -> _SocketWire | _PipeWire:
    wire: _SocketWire | _PipeWire
    if not isinstance(address, str):
        wire = _SocketWire(open_socket(address[0], address[1], deadline))
    elif address.startswith("\\\\"):
        wire = _PipeWire(mp_connection.Client(address), deadline)
    else:
        wire = _SocketWire(_connected_to_path(address, deadline))
    try:
        mp_connection.answer_challenge(wire, authkey)  # type: ignore[arg-type]
        mp_connection.deliver_challenge(wire, authkey)  # type: ignore[arg-type]
    except AssertionError as problem:
        wire.close()
        raise Disconnected(f"it is not a manager's server: {problem}") from None  # 3.11 and older
    except BaseException:
        wire.close()
        raise
    return wire


def _connected_to_path(path: str, deadline: float) -> DeadlineSocket:
    def make() -> tuple[socket.socket, DeadlineSocket]:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        return sock, DeadlineSocket(sock, deadline)

    sock: socket.socket
    line: DeadlineSocket
    sock, line = block_forks(WORK, make)
    try:
        while True:
            sock.settimeout(max(0.001, deadline - monotonic()))
            try:
                sock.connect(path)
                sock.settimeout(0.0)
                return line
            except BlockingIOError:  # on Linux, at once if the backlog is full, whatever the time-out
                if monotonic() + _BACKLOG_WAIT >= deadline:
                    raise socket.timeout("timed out") from None
                time.sleep(_BACKLOG_WAIT)
    except BaseException:
        sock.close()
        raise


def _remote_error(trace: str) -> Exception:
    """The error of a server that sends its traceback as text."""
    last = trace.strip().rsplit("\n", 1)[-1]
    if last.startswith(("letterapp.errors.LetterError: ", "queue.Full")):
        return Full() if last.startswith("queue") else LetterError(last.partition(": ")[2])
    return RuntimeError(last)
