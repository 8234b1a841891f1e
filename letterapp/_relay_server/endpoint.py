"""``--metrics HOST:PORT``: a small HTTP server with ``/metrics``, ``/healthz`` and ``/readyz``.

Responsible for: its thread, HTTP, the bounds against slow and hostile clients, what "alive" means. Not responsible for:
the text of the metrics (`metrics`), whether the relay is ready (`Observed`).

    READING --- the head is complete ---> CHECKING --- the answer is known ---> WRITING ---> DISCARDING ---> closed
       \\______________________ `PATIENCE` seconds, or too many connections _____________________/

One thread, which never waits for a client, serves all connections. A connection gets one response. None of the states
outlasts `PATIENCE`, and if there are too many connections, the oldest one is closed: a probe that has just connected
gets through, whoever else is connected.
"""

from __future__ import annotations

import errno
import selectors
import socket
import time
from enum import Enum

from .._relay.connection import QUIETLY
from .._runtime import threads
from .._runtime.clock import FOREVER, monotonic
from .._runtime.signal_errors import reraise_signal_error
from ..errors import LetterError
from . import daemon
from .metrics import CONTENT_TYPE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Protocol

    class Observed(Protocol):
        """What a relay and a manager tell about themselves. Called by the endpoint's thread."""

        heartbeat: daemon.Heartbeat

        def is_ready(self) -> bool:
            """True while clients can connect. It does not depend on the API."""

        def metrics(self) -> bytes:
            """Prometheus text."""


PATIENCE = 5.0  # maximum time of a connection, in seconds
CONNECTIONS = 32
LONGEST_HEAD = 8_192  # bytes; a scraper sends some hundred
LATELY = 10.0  # seconds: a loop that has turned within them is alive
# Seconds that a loop which has not, because it is idle, has to react. Less than the default timeout of a probe in
# Kubernetes, which is 1 s.
REACTION = 0.7
_LOOK = 0.02  # seconds between two checks whether it has
_CROWDED = 0.1  # seconds until a connection is accepted again after the system was out of descriptors
_BACKLOG = 64
_MOST_DISCARDED = 65_536  # bytes that a client may send without need
_PLAIN = "text/plain; charset=utf-8"
_REASONS = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    503: "Service Unavailable",
}


class State(Enum):
    READING = "reading"
    CHECKING = "checking"  # whether the loop turns
    WRITING = "writing"
    DISCARDING = "discarding"  # what the client still sends: closing at once might make it lose the response


class _Connection:
    def __init__(self, sock: Any, now: float) -> None:
        self.sock = sock
        self.state = State.READING
        self.until = now + PATIENCE
        self.head = b""
        self.path = ""
        self.has_body = True  # False for HEAD
        self.asked = 0.0  # when the loop was woken
        self.unsent = b""
        self.discarded = 0  # bytes


class Endpoint:
    """Serves until `close`."""

    def __init__(self, listener: Any, observed: Observed, log: Callable[[str], None]) -> None:
        self._listener = listener
        self._observed = observed
        self._log = log
        self._connections: dict[_Connection, None] = {}  # in the order in which they connected
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ)
        self._is_closed = False
        self._has_failed = False

    def start(self) -> None:
        """Serve on a thread, which receives no signals: they have to interrupt the main thread's wait."""
        threads.start(self._serve)
        self._log(f"metrics at {url_of(self._listener)}")

    def close(self) -> None:
        """Stop, within a second. Any thread may call."""
        self._is_closed = True

    # Runs in the thread.

    def _serve(self) -> None:
        while not self._is_closed:
            try:
                self._turn()
            except Exception as surprise:
                reraise_signal_error(surprise)
                self._say(f"metrics: unexpected error: {surprise!r:.200}")
        for connection in list(self._connections):
            self._part_with(connection)
        self._selector.close()
        self._listener.close()

    def _turn(self) -> None:
        for key, _ in self._selector.select(self._timeout()):
            if key.data is None:
                self._accept()
            else:
                self._handle(key.data)
        now = monotonic()
        for connection in list(self._connections):
            if connection.state is State.CHECKING:
                self._check(connection)
            if connection in self._connections and now >= connection.until:
                self._part_with(connection)

    def _timeout(self) -> float:
        if any(connection.state is State.CHECKING for connection in self._connections):
            return _LOOK
        first = min((connection.until for connection in self._connections), default=FOREVER)
        return max(0.0, min(first - monotonic(), 1.0))

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError as problem:
            if problem.errno in (errno.EMFILE, errno.ENFILE):
                time.sleep(_CROWDED)  # the connection stays in the backlog, and this would be tried again at once
            return  # otherwise the client has gone
        if not daemon.has_descriptor_for_client():
            sock.close()  # the last ones are for sending
            return
        sock.setblocking(False)
        if len(self._connections) >= CONNECTIONS:
            self._part_with(next(iter(self._connections)))
        connection = _Connection(sock, monotonic())
        self._connections[connection] = None
        self._selector.register(sock, selectors.EVENT_READ, connection)

    def _handle(self, connection: _Connection) -> None:
        if connection not in self._connections:
            return  # closed in this turn
        try:
            if connection.state is State.WRITING:
                self._write(connection)
            else:
                self._read(connection)
        except BlockingIOError:
            pass
        except OSError:
            self._part_with(connection)

    def _read(self, connection: _Connection) -> None:
        data = connection.sock.recv(LONGEST_HEAD)
        if connection.state is not State.READING:
            connection.discarded += len(data)
        if not data or connection.discarded > _MOST_DISCARDED:
            self._part_with(connection)
        elif connection.state is State.READING:
            connection.head += data
            head, end, _ = connection.head.replace(b"\r\n", b"\n").partition(b"\n\n")
            if end:
                self._respond_to(connection, head.split(b"\n", 1)[0])
            elif len(connection.head) >= LONGEST_HEAD:
                self._answer(connection, 431, "the request is too long\n")

    def _respond_to(self, connection: _Connection, line: bytes) -> None:
        words = line.split(b" ")
        if len(words) != 3 or not words[2].startswith(b"HTTP/1."):
            self._answer(connection, 400, "this is not an HTTP/1.1 request\n")
            return
        connection.has_body = words[0] != b"HEAD"
        connection.path = words[1].split(b"?", 1)[0].decode("latin-1")
        if words[0] not in (b"GET", b"HEAD"):
            self._answer(connection, 405, "only GET and HEAD\n", {"Allow": "GET, HEAD"})
        elif connection.path == "/metrics":
            try:
                self._answer(connection, 200, self._observed.metrics().decode(), {"Content-Type": CONTENT_TYPE})
            except Exception as surprise:
                reraise_signal_error(surprise)
                self._say(f"metrics: unexpected error: {surprise!r:.200}")
                self._answer(connection, 500, "unexpected error: see the log\n")
        elif connection.path in ("/healthz", "/readyz"):
            connection.state = State.CHECKING
            connection.asked = monotonic()
            self._check(connection)
            if connection.state is State.CHECKING:
                self._observed.heartbeat.wake()
        else:
            self._answer(connection, 404, "there are /metrics, /healthz and /readyz\n")

    def _check(self, connection: _Connection) -> None:
        now, last = monotonic(), self._observed.heartbeat.last
        if last < connection.asked and now - last > LATELY:
            if now - connection.asked >= REACTION:
                self._answer(connection, 503, f"not alive: the loop has not turned for {now - last:.0f} s\n")
        elif connection.path == "/healthz":
            self._answer(connection, 200, "alive\n")
        elif self._observed.is_ready():
            self._answer(connection, 200, "ready\n")
        else:
            self._answer(connection, 503, "not ready: no client can connect\n")

    def _answer(self, connection: _Connection, status: int, text: str, headers: dict[str, str] | None = None) -> None:
        body = text.encode()
        fields = {
            "Content-Type": _PLAIN,
            "Content-Length": str(len(body)),
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
            "Connection": "close",
            **(headers or {}),
        }
        lines = [f"HTTP/1.1 {status} {_REASONS[status]}", *(f"{name}: {value}" for name, value in fields.items())]
        connection.unsent = "\r\n".join([*lines, "", ""]).encode() + (body if connection.has_body else b"")
        connection.state = State.WRITING
        self._selector.modify(connection.sock, selectors.EVENT_WRITE, connection)
        self._handle(connection)

    def _write(self, connection: _Connection) -> None:
        connection.unsent = connection.unsent[connection.sock.send(connection.unsent, QUIETLY) :]
        if not connection.unsent:
            connection.sock.shutdown(socket.SHUT_WR)
            connection.state = State.DISCARDING
            self._selector.modify(connection.sock, selectors.EVENT_READ, connection)

    def _part_with(self, connection: _Connection) -> None:
        del self._connections[connection]
        self._selector.unregister(connection.sock)
        connection.sock.close()

    def _say(self, text: str) -> None:
        if not self._has_failed:
            self._has_failed = True
            self._log(text)


def serve_metrics(listener: Any, observed: Observed, log: Callable[[str], None]) -> None:
    """Serve at ``listener``, a result of `listen`, until the process ends."""
    if listener is not None:
        Endpoint(listener, observed, log).start()


def listen(address: tuple[str, int] | None) -> Any:
    """A listening socket at ``address``, or None. Raises `LetterError` if it cannot be used."""
    if address is None:
        return None
    host, port = address
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    listener = None
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        if hasattr(socket, "SO_EXCLUSIVEADDRUSE"):  # Windows, where the other option would let two processes listen
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
        else:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(place)
        listener.listen(_BACKLOG)
        listener.setblocking(False)
        return listener
    except (OSError, UnicodeError) as problem:
        if listener is not None:
            listener.close()
        why = getattr(problem, "strerror", None) or problem
        raise LetterError(f"--metrics: cannot listen at {where}: {why}") from None


def url_of(listener: Any) -> str:
    """For example ``http://127.0.0.1:9464/metrics``."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}/metrics" if ":" in host else f"http://{host}:{port}/metrics"
