"""HTTP/1.1 on loopback, with a bound on everything that a client can use up.

Responsible for: connections, reading requests, writing responses, refusing what comes from a web page of another
origin. Not responsible for: what a request means (`api`, `ingestion`).

All connections share one thread. Of each resource there is a maximum: connections (above it the one that has been idle
for the longest time is closed, or the new one), the size of a request's head and body, the bytes of all bodies that are
being read, and the time that any of these may take.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import sys
import traceback
from contextlib import suppress
from http import HTTPStatus
from typing import Awaitable, Callable, Iterator, NamedTuple, Union
from urllib.parse import parse_qsl, unquote

from .wire import MAX_BODY, Refused, error_body, too_large

MAX_CONNECTIONS = 400  # fewer if the process may not have that many descriptors
_OTHER_DESCRIPTORS = 64  # that the process has or may need
MAX_HEAD = 16_384  # bytes of a request line and headers
MAX_BODIES = 64_000_000  # bytes of all bodies that are being read or handled
HEAD_TIMEOUT = 10.0  # seconds, from the first byte
BODY_TIMEOUT = 30.0
IDLE_TIMEOUT = 300.0  # between two requests
WRITE_TIMEOUT = 20.0  # for a client that does not read
_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


class Request:
    """One request. ``headers`` has names in lower case; ``query`` the last value of each parameter."""

    def __init__(self, method: str, target: str, version: str, headers: dict[str, str], connection: Connection) -> None:
        path, _, query = target.partition("?")
        wish = headers.get("connection", "").lower()
        self.keeps_connection = wish == "keep-alive" if version == "HTTP/1.0" else wish != "close"
        self.method = method
        self.path = unquote(path)
        self.query = dict(parse_qsl(query, keep_blank_values=True, max_num_fields=50))
        self.headers = headers
        self.connection = connection
        self.body = b""

    def is_gone(self) -> bool:
        """True if the client has disconnected, so that no work for this request is of use."""
        return self.connection.is_gone()


class Response(NamedTuple):
    """A complete response."""

    status: int = 200
    body: bytes = b'{"ok":true}'
    kind: str = "application/json"
    headers: tuple[tuple[str, str], ...] = ()


class Reset:
    """Instead of a response, the connection is reset."""


class Stream:
    """A response without an end. ``produce`` is called with a function that sends bytes, until one of them raises."""

    def __init__(self, produce: Callable[[Callable[[bytes], Awaitable[None]]], Awaitable[None]]) -> None:
        self.produce = produce


Answer = Union[Response, Reset, Stream]
Handler = Callable[[Request], Awaitable[Answer]]

# Of every response. Another page must not show or include what an event contains.
_ALWAYS = (
    ("Cache-Control", "no-store"),
    ("X-Content-Type-Options", "nosniff"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Referrer-Policy", "no-referrer"),
)


class Connection:
    """One client. ``notes`` is for the handlers, which keep there what they know about the client."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.task = asyncio.current_task()
        self.is_idle = True
        self.reserved = 0  # bytes for a body
        self.port: int = (writer.get_extra_info("peername") or ("", 0))[1]
        self.notes: dict[str, object] = {}

    def is_gone(self) -> bool:
        return self.reader.at_eof() or self.writer.is_closing()

    def close(self) -> None:
        with suppress(OSError, RuntimeError):
            self.writer.close()

    def reset(self) -> None:
        """Close with RST, so that the client gets an error whatever it does."""
        with suppress(OSError):
            sock = self.writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def write(self, data: bytes) -> None:
        """Send ``data``. Raises `ConnectionError` if the client has gone or does not read."""
        if self.writer.is_closing():
            raise ConnectionResetError
        self.writer.write(data)
        try:
            await asyncio.wait_for(self.writer.drain(), WRITE_TIMEOUT)
        except asyncio.TimeoutError:
            self.reset()
            raise ConnectionResetError


class Connections:
    """Accepts connections and passes their requests to ``handle``."""

    def __init__(self, handle: Handler) -> None:
        self._handle = handle
        self._open: dict[Connection, None] = {}  # in the order of their last use
        self._bodies = 0  # bytes that are being read or handled
        self._maximum = _max_connections()

    async def serve(self, sock: socket.socket, until: Awaitable[object]) -> None:
        """Serve until ``until`` is done, then close everything at once."""
        server = await asyncio.start_server(self._serve_one, sock=sock, limit=MAX_HEAD, backlog=1024)
        try:
            await until
        finally:
            server.close()
            tasks = [connection.task for connection in self._open if connection.task is not None]
            for connection in list(self._open):
                connection.writer.transport.abort()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = Connection(reader, writer)
        if not self._admit(connection):
            connection.reset()
            return
        try:
            while await self._serve_request(connection):
                self._open.pop(connection, None)
                self._open[connection] = None
        except (ConnectionError, asyncio.IncompleteReadError, OSError):
            pass
        except asyncio.CancelledError:
            pass  # the server ends. asyncio would report the cancellation of this task as an error
        except Exception:
            with suppress(Exception):
                traceback.print_exc()
        finally:
            self._open.pop(connection, None)
            connection.close()

    def _admit(self, connection: Connection) -> bool:
        if len(self._open) >= self._maximum and not self._drop(each for each in self._open if each.is_idle):
            return False
        self._open[connection] = None
        return True

    def _reserve(self, connection: Connection, size: int) -> None:
        """Reserve ``size`` bytes for a body. The clients that have been sending theirs for the longest have to go."""
        if connection not in self._open:  # it had to go itself
            raise ConnectionResetError
        while self._bodies + size > MAX_BODIES:
            if not self._drop(each for each in self._open if each.is_idle and each.reserved):
                raise Refused(503, "unavailable", "busy", "too many requests at once")
        connection.reserved = size
        self._bodies += size

    def _release(self, connection: Connection) -> None:
        self._bodies -= connection.reserved
        connection.reserved = 0

    def _drop(self, candidates: Iterator[Connection]) -> bool:
        """Close the first of ``candidates``; False if there is none."""
        connection = next(candidates, None)
        if connection is None:
            return False
        self._open.pop(connection)
        self._release(connection)
        connection.writer.transport.abort()
        return True

    async def _serve_request(self, connection: Connection) -> bool:
        """Serve one request; False if the connection ends."""
        # Until the request is complete: a client that sends slowly is one of the first to go.
        connection.is_idle = True
        try:
            first = await asyncio.wait_for(connection.reader.readexactly(1), IDLE_TIMEOUT)
            head = await asyncio.wait_for(connection.reader.readuntil(b"\r\n\r\n"), HEAD_TIMEOUT)
        except asyncio.LimitOverrunError:
            await self._respond(connection, _refusal(431, "too_large", "head", "the headers are too large"), False)
            return False
        except asyncio.TimeoutError:
            return False
        try:
            request = _parsed(first + head, connection)
            _check_origin(request)
            size = await self._body_size(request)
            self._reserve(connection, size)
        except Refused as refused:  # the rest of the request is not read
            await self._respond(connection, Response(refused.status, refused.body()), False)
            return False
        try:
            if not await self._read_body(request, size):
                refusal = _refusal(408, "bad_request", "timeout", "the body took too long")
                await self._respond(connection, refusal, False)
                return False
            connection.is_idle = False
            answer = await self._handle(request)
        finally:
            self._release(connection)
        if isinstance(answer, Reset):
            connection.reset()
            return False
        if isinstance(answer, Stream):
            await self._stream(connection, answer)
            return False
        keep = request.keeps_connection
        await self._respond(connection, answer, keep, request.method == "HEAD")
        return keep

    async def _body_size(self, request: Request) -> int:
        length = request.headers.get("content-length", "0")
        if "transfer-encoding" in request.headers:
            raise Refused(411, "bad_request", "length", "send the body with a Content-Length")
        if not (length.isascii() and length.isdigit() and len(length) < 19):
            raise Refused(400, "bad_request", "length", "the Content-Length is invalid")
        size = int(length)
        if size > MAX_BODY:
            await self._discard(request.connection, size)
            raise too_large()
        return size

    async def _read_body(self, request: Request, size: int) -> bool:
        """Read the body; False if that takes too long."""
        if not size:
            return True
        if request.headers.get("expect", "").lower() == "100-continue":
            await request.connection.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        try:
            request.body = await asyncio.wait_for(request.connection.reader.readexactly(size), BODY_TIMEOUT)
        except asyncio.TimeoutError:
            return False
        return True

    async def _discard(self, connection: Connection, size: int) -> None:
        """Read and forget a body that is not much too large, since a client may only read the answer after it."""
        if size > 20 * MAX_BODY:
            return
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(_forget(connection.reader, size), BODY_TIMEOUT)

    async def _respond(self, connection: Connection, answer: Response, keep: bool, no_body: bool = False) -> None:
        phrase = _phrase(answer.status)
        lines = [f"HTTP/1.1 {answer.status} {phrase}", f"Content-Type: {answer.kind}"]
        lines += [f"{name}: {value}" for name, value in (*_ALWAYS, *answer.headers)]
        lines += [f"Content-Length: {len(answer.body)}", *([] if keep else ["Connection: close"])]
        await connection.write("\r\n".join(lines).encode() + b"\r\n\r\n" + (b"" if no_body else answer.body))

    async def _stream(self, connection: Connection, answer: Stream) -> None:
        lines = ["HTTP/1.1 200 OK", "Content-Type: text/event-stream", "Connection: close"]
        lines += [f"{name}: {value}" for name, value in _ALWAYS]
        await connection.write("\r\n".join(lines).encode() + b"\r\n\r\n")
        await answer.produce(connection.write)


def listen(port: int) -> socket.socket:
    """A socket that listens on loopback. Raises `OSError`."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        if sys.platform != "win32":  # where it would let two programs use one port
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1", port))
        sock.listen(1024)
    except BaseException:
        sock.close()
        raise
    return sock


def _max_connections() -> int:
    try:
        import resource

        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    except (ImportError, OSError):  # Windows
        return MAX_CONNECTIONS
    if limit == resource.RLIM_INFINITY:
        return MAX_CONNECTIONS
    return max(8, min(MAX_CONNECTIONS, limit - _OTHER_DESCRIPTORS))


def _parsed(head: bytes, connection: Connection) -> Request:
    lines = head.decode("latin-1").split("\r\n")
    words = lines[0].split(" ")
    if len(words) != 3 or not words[2].startswith("HTTP/1.") or not words[1].startswith("/"):
        raise Refused(400, "bad_request", "request_line", "this is not an HTTP/1.1 request")
    headers: dict[str, str] = {}
    for line in lines[1:-2]:
        name, colon, value = line.partition(":")
        if not colon or not name or name != name.strip():
            raise Refused(400, "bad_request", "header", "a header is invalid")
        name = name.lower()
        if name in headers and name in ("host", "origin", "content-length", "authorization"):
            raise Refused(400, "bad_request", "header", f"the header {name} is there twice")
        headers[name] = value.strip()
    try:
        return Request(words[0], words[1], words[2], headers, connection)
    except ValueError as problem:
        raise Refused(400, "bad_request", "query", str(problem))


def _check_origin(request: Request) -> None:
    """Refuse what a web page sends that is not this server's, or whose host name leads here (DNS rebinding)."""
    host = request.headers.get("host", "").lower()
    if not _is_loopback(host):
        raise Refused(403, "forbidden", "host", "use a loopback host name such as 127.0.0.1")
    origin = request.headers.get("origin")
    if origin is not None and origin.lower() != f"http://{host}":
        raise Refused(403, "forbidden", "origin", "web pages of other origins are refused")
    site = request.headers.get("sec-fetch-site", "none")
    is_link = (
        request.headers.get("sec-fetch-mode") == "navigate" and request.headers.get("sec-fetch-dest") == "document"
    )
    if site not in ("none", "same-origin") and not (is_link and request.method == "GET" and request.path == "/"):
        raise Refused(403, "forbidden", "origin", "web pages of other origins are refused")


def _is_loopback(host: str) -> bool:
    name, colon, port = host.rpartition(":")
    return host in _LOOPBACK or (bool(colon) and name in _LOOPBACK and port.isascii() and port.isdigit())


def _refusal(status: int, code: str, reason: str, message: str) -> Response:
    return Response(status, error_body(code, reason, message))


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Status"


async def _forget(reader: asyncio.StreamReader, size: int) -> None:
    while size > 0:
        piece = await reader.read(min(size, 65_536))
        if not piece:
            return
        size -= len(piece)
