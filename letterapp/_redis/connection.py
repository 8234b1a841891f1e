"""A connection to a Redis or Valkey server, with a deadline for every request.

Responsible for: opening it where the stream is (a server, the master that sentinels name, a node of a cluster), one
request at a time, closing it in a forked child. Not responsible for: the URL (`location`), the commands (`stream`).

redis-py's connections are used without its clients and pools: those retry, and a request that has to end in time must
not be repeated in between. A child that is forked without Python's hooks shares the pool of its parent's client, too.
"""

from __future__ import annotations

import os
import socket

from .._queues.manager_connection import NOT_YET, Disconnected
from .._runtime.atfork import NETWORK, block_forks, close_if_unchanged, register_inherited
from .._runtime.clock import monotonic
from .._runtime.signal_errors import reraise_signal_error
from .._sockets.connect import detaching
from ..errors import LetterError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .location import Location

# On Linux this flag turns SIGPIPE, the signal for a write to a closed peer, into an error.
_QUIETLY = getattr(socket, "MSG_NOSIGNAL", 0)


class Refusal(LetterError):
    """The server has answered with an error. ``kind`` is its first word: OOM, NOGROUP, NOPERM."""

    kind = ""


class RedisConnection:
    """A connection of this process. Used by one thread at a time; a forked child closes its copy and opens its own."""

    def __init__(self, location: Location, key: str, patience: float) -> None:
        """Connect to the server that has ``key``.

        Blocks for at most ``patience`` seconds for each exchange: with a sentinel, the server, a node of a cluster.
        Raises `Disconnected`, `socket.timeout` or `Refusal`.
        """
        self._asked: float | None = None  # when the request was sent that has no response yet
        try:
            # A name lookup and a TLS handshake hold locks outside of the GIL.
            block_forks(NETWORK, self._connect, location, key, patience)
        except Exception as problem:
            raise _translated(problem) from None

    def _connect(self, location: Location, key: str, patience: float) -> None:
        self._connection = _open(location, key, patience)
        sock = self._connection._sock
        self._detach = detaching(sock)
        self._descriptor = sock.fileno()
        self._inode = os.fstat(self._descriptor).st_ino if os.name == "posix" else -1
        register_inherited(self)

    def ask(self, *command: Any, wait: float, patience: float) -> Any:
        """Send ``command`` and return its response, or NOT_YET after ``wait`` seconds.

        Another call, with any command, continues to wait for that response. Raises `Refusal` if the server has
        refused the command; `socket.timeout` after ``patience`` seconds, or `Disconnected`: then this has to be closed.
        """
        try:
            now = monotonic()
            if self._asked is None:
                self._require_own_socket()
                self._send(self._connection.pack_command(*command))
                self._asked = now
            if not self._connection.can_read(max(0.0, wait)):
                if monotonic() >= self._asked + patience:
                    raise socket.timeout("timed out")
                return NOT_YET
            self._asked = None
            return self._connection.read_response()
        except Exception as problem:
            raise _translated(problem) from None

    def request(self, *command: Any, patience: float) -> Any:
        """The same, and wait for the response for up to ``patience`` seconds."""
        return self.ask(*command, wait=patience, patience=0.0)

    def close(self) -> None:
        try:
            if self._is_own_socket():
                self._connection.disconnect()
            else:
                self._detach()
        except Exception as problem:
            reraise_signal_error(problem)  # otherwise it is closed already

    def close_inherited(self) -> None:
        close_if_unchanged(self._detach(), self._inode)

    def _send(self, packed: list[bytes]) -> None:
        sock = self._connection._sock
        if _QUIETLY and type(sock) is socket.socket:
            sock.sendall(b"".join(packed), _QUIETLY)
        else:
            self._connection.send_packed_command(packed)  # a TLS socket accepts no flags

    def _require_own_socket(self) -> None:
        if not self._is_own_socket():
            raise Disconnected("its descriptor was closed")

    def _is_own_socket(self) -> bool:
        """False if other code has closed the descriptor, whose number may belong to another file now."""
        try:
            return self._inode == -1 or os.fstat(self._descriptor).st_ino == self._inode
        except OSError as problem:
            reraise_signal_error(problem)
            return False


def _open(location: Location, key: str, patience: float) -> Any:
    kind, options = location.connection_options()
    if location.sentinels:
        options["host"], options["port"] = _master(location, patience)
    connection = _connected(kind, options, patience)
    moved = _node_with(key, connection)
    if moved is not None:
        connection.disconnect()
        options["host"], options["port"] = moved[0] or options.get("host", "localhost"), moved[1]
        connection = _connected(kind, options, patience)
    return connection


def _connected(kind: Any, options: dict[str, Any], patience: float) -> Any:
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    ours = {"socket_timeout": patience, "socket_connect_timeout": patience, "retry": Retry(NoBackoff(), 0)}
    if "path" not in options:
        options = {"socket_keepalive": True, **options}  # let the system detect that the other host has gone
    connection = kind(**{**options, **ours, "protocol": 2})
    try:
        connection.connect()
    except BaseException:
        connection.disconnect()
        raise
    return connection


def _master(location: Location, patience: float) -> tuple[str, int]:
    """The address of the master, from the first sentinel that knows it."""
    from redis.connection import Connection

    problem: Exception = Disconnected(f"no sentinel knows a master of {location.service}")
    for host, port in location.sentinels:
        try:
            connection = _connected(Connection, {"host": host, "port": port, **location.sentinel_options()}, patience)
            try:
                connection.send_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", location.service)
                address = connection.read_response()
            finally:
                connection.disconnect()
        except Exception as failure:
            reraise_signal_error(failure)
            problem = failure  # the next one may know
            continue
        if address:
            return address[0].decode(), int(address[1])
    raise problem


def _node_with(key: str, connection: Any) -> tuple[str, int] | None:
    """The node of a cluster that has ``key``, if this one has not. None if this is no cluster."""
    from redis.exceptions import MovedError, ResponseError

    connection.send_command("XLEN", key)
    try:
        connection.read_response()
    except ResponseError as problem:
        # The slot and the address. (Not all versions of redis-py have a class for it here.)
        if isinstance(problem, MovedError) or str(problem).startswith("MOVED "):
            host, _, port = str(problem).split()[-1].rpartition(":")
            return host, int(port)
        # Otherwise this user may not ask. If that matters, the first command fails as well.
    return None


def _translated(problem: Exception) -> Exception:
    """An exception of redis-py as one that does not need redis-py to be handled."""
    from redis import exceptions

    if isinstance(problem, exceptions.TimeoutError):
        return socket.timeout("timed out")
    if isinstance(problem, (exceptions.ConnectionError, exceptions.InvalidResponse)) and not isinstance(
        problem, exceptions.AuthenticationError
    ):
        return Disconnected(str(problem) or "it closed the connection")
    if isinstance(problem, exceptions.RedisError):
        refusal = Refusal(str(problem))
        refusal.kind = _kind(problem)
        return refusal
    return problem


def _kind(problem: Exception) -> str:
    # redis-py removes the first word of the errors for which it has classes.
    from redis import exceptions

    named = {"OutOfMemoryError": "OOM", "NoPermissionError": "NOPERM", "ReadOnlyError": "READONLY"}
    if isinstance(problem, exceptions.AuthenticationError):
        return "NOAUTH"
    text = str(problem)
    if "-OOM " in text:
        return "OOM"  # Redis 6.2 names the error of a script's command in the middle
    return named.get(type(problem).__name__) or text.partition(" ")[0]
