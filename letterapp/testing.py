"""An ingestion server for tests: it speaks the wire, keeps what came, and misbehaves when told.

    from letterapp.testing import IngestionServer

    with IngestionServer() as api:
        letter = Letter("key", api.url)
        letter.track("user_42", "Order Completed")
        letter.close()
        assert [item["event"] for item in api.events] == ["Order Completed"]

Responsible for: the server's side of the protocol, its checks, its faults. Imports nothing of the client, so the two
cannot share a bug. With pytest the fixture `letter_api` hands out a started server.

What it calls of yours (`on_event`, `rule`, a fault) costs no request when it raises: the traceback goes to stderr, and
the request is treated as if it had not been called.
"""

from __future__ import annotations

import json
import socket
import ssl
import struct
import threading
import time
import traceback
from collections import Counter, deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Callable, Dict, Optional, Tuple, Type

MAX_ITEMS = 100
_REQUIRED = {"identify": ("traits",), "group": ("accountId", "traits"), "track": ("event", "properties")}
_KINDS = {"traits": dict, "properties": dict}


class Request:
    """One request as it came. ``connection`` is the client's address, so equal for requests over one connection."""

    def __init__(
        self, method: str, path: str, headers: Dict[str, str], body: bytes, connection: Tuple[str, int]
    ) -> None:
        self.method = method
        self.path = path
        self.headers = headers  # names in lower case
        self.body = body
        self.connection = connection
        self.at = time.monotonic()

    @property
    def json(self) -> Any:
        return json.loads(self.body)


# A fault answers in the API's place. It gets the connection's handler, of which it may use `keep`, `answer`, `hang_up`
# and `wfile`. The request's events are kept if it calls `keep`. That comes before the answer, as with the API: a client
# that has an answer can rely on it.
Fault = Callable[["_Handler"], object]


def status(code: int, body: bytes = b"{}", headers: Optional[Dict[str, str]] = None, stored: bool = False) -> Fault:
    """Answer with this status."""

    def answer(handler: _Handler) -> None:
        if stored:
            handler.keep()
        handler.answer(code, body, headers or {})

    return answer


def reset(stored: bool = False) -> Fault:
    """Reset the connection (RST) without an answer."""

    def answer(handler: _Handler) -> None:
        if stored:
            handler.keep()
        handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        handler.hang_up()

    return answer


def raw(data: bytes, stored: bool = False) -> Fault:
    """Write ``data`` in the answer's place, and close: nothing, garbage, half an answer."""

    def answer(handler: _Handler) -> None:
        if stored:
            handler.keep()
        handler.wfile.write(data)
        handler.hang_up()

    return answer


def cut(stored: bool = False) -> Fault:
    """Close in the middle of an answer."""
    return raw(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{", stored)


def endless(
    piece: bytes = b"x" * 4096,
    stored: bool = False,
    head: bytes = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n",
    every: float = 0.0,
) -> Fault:
    """Answer ``head`` and then ``piece`` without an end, until the client leaves; one each ``every`` seconds."""

    def answer(handler: _Handler) -> None:
        if stored:
            handler.keep()
        try:
            handler.wfile.write(head)
            while not handler.server.api.closing.wait(every):
                handler.wfile.write(piece)
        except OSError:
            pass
        handler.hang_up()

    return answer


def stall(seconds: float, then: Optional[Fault] = None) -> Fault:
    """Answer only after ``seconds``, properly or by ``then``."""

    def answer(handler: _Handler) -> None:
        handler.server.api.closing.wait(seconds)
        (then or _properly)(handler)

    return answer


class Hold:
    """A fault that holds a request on the wire: ``arrived`` says that it is there, and `release` lets it go on."""

    def __init__(self, then: Optional[Fault] = None, longest: float = 60.0) -> None:
        self.arrived = threading.Event()
        self._released = threading.Event()
        self._then = then
        self._longest = longest

    def release(self) -> None:
        self._released.set()

    def __call__(self, handler: _Handler) -> None:
        self.arrived.set()
        self._released.wait(self._longest)
        (self._then or _properly)(handler)


def _properly(handler: _Handler) -> None:
    handler.keep()
    handler.answer(200)


class IngestionServer:
    """The API on a loopback port. Started means listening. All methods and attributes may be used from any thread.

    Attributes:
        events: every item of every batch that was kept, in the order of arrival, repeated deliveries too.
        mails: bodies of ``/v1/send``.
        requests: every request, refused ones too.
        rule: called with each `Request`; returns a fault, or None to treat it properly.

    ``on_event`` is called with each item that was kept, before its request is answered.
    """

    def __init__(
        self,
        port: int = 0,
        *,
        api_key: Optional[str] = None,
        max_body: Optional[int] = None,
        ssl_context: Optional[ssl.SSLContext] = None,
        on_event: Optional[Callable[[Dict[str, Any]], object]] = None,
    ) -> None:
        self.events: list[dict[str, Any]] = []
        self.mails: list[dict[str, Any]] = []
        self.requests: list[Request] = []
        self.rule: Callable[[Request], Fault | None] | None = None
        self.closing = threading.Event()
        self.api_key = api_key
        self.max_body = max_body
        self._on_event = on_event
        self._planned: deque[Fault] = deque()
        self._changed = threading.Condition()  # guards the lists and `_ids`; notified whenever something came
        self._ids: set[str] = set()
        self._server = _Server(port, ssl_context, self)
        scheme = "https" if ssl_context else "http"
        self.port: int = self._server.server_address[1]
        self.url = f"{scheme}://{'localhost' if ssl_context else '127.0.0.1'}:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def plan(self, *faults: Fault) -> None:
        """Meet the next requests with ``faults``, one each, in order."""
        self._planned.extend(faults)

    def wait_for(self, count: int, timeout: float = 60.0) -> bool:
        """Wait until ``count`` different events have been kept; False when ``timeout`` seconds passed before."""
        with self._changed:
            return self._changed.wait_for(lambda: len(self._ids) >= count, timeout)

    def wait_until(self, true: Callable[[], bool], timeout: float = 60.0) -> bool:
        """Wait until ``true()``, which is asked again whenever a request has come."""
        with self._changed:
            return self._changed.wait_for(true, timeout)

    @property
    def distinct(self) -> int:
        """How many events the API would count: one for each messageId."""
        with self._changed:
            return len(self._ids)

    def repeated(self) -> Dict[str, int]:
        """messageIds that came more than once, and how often."""
        with self._changed:
            counts = Counter(item["messageId"] for item in self.events)
        return {identity: count for identity, count in counts.items() if count > 1}

    def close(self) -> None:
        """Stop listening and drop every connection."""
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._server.drop_connections()
        self._thread.join(10)

    def drop_connections(self) -> None:
        """Close every connection from this side, as a server does with idle ones."""
        self._server.drop_connections()

    def __enter__(self) -> IngestionServer:
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self.close()

    # Called by the connections' threads.

    def _note(self, request: Request) -> Fault | None:
        with self._changed:
            self.requests.append(request)
            self._changed.notify_all()
            if self._planned:
                return self._planned.popleft()
        try:
            return self.rule(request) if self.rule is not None else None
        except BaseException:  # `pytest.fail` too
            _complain()
            return None

    def _problem(self, request: Request) -> tuple[int, str] | None:
        if request.path.endswith("/v1/batch"):
            check: Callable[[Any], str | None] = _batch_problem
        elif request.path.endswith("/v1/send"):
            check = _mail_problem
        else:
            return 404, f"no such path: {request.path}"
        if not request.headers.get("authorization", "").startswith("Bearer "):
            return 401, "no API key"
        if self.api_key is not None and request.headers["authorization"] != f"Bearer {self.api_key}":
            return 401, "wrong API key"
        if self.max_body is not None and len(request.body) > self.max_body:
            return 413, f"more than {self.max_body} bytes"
        try:
            parsed = json.loads(request.body, parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            return 400, f"not JSON: {error}"
        problem = check(parsed)
        return None if problem is None else (422, problem)

    def _keep(self, request: Request) -> None:
        parsed = request.json
        items = parsed["batch"] if request.path.endswith("/v1/batch") else []
        with self._changed:
            self.events.extend(items)
            self._ids.update(item["messageId"] for item in items)
            if request.path.endswith("/v1/send"):
                self.mails.append(parsed)
            self._changed.notify_all()
        for item in items if self._on_event is not None else ():
            try:
                self._on_event(item)  # type: ignore[misc]
            except BaseException:
                _complain()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 1024

    def __init__(self, port: int, context: ssl.SSLContext | None, api: IngestionServer) -> None:
        self.api = api
        self._context = context
        self._open: set[socket.socket] = set()
        self._open_lock = threading.Lock()
        super().__init__(("127.0.0.1", port), _Handler)

    def get_request(self) -> tuple[socket.socket, Any]:
        sock, address = super().get_request()
        if self._context is not None:
            # The handshake happens at the first read, on the connection's own thread.
            sock = self._context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
        with self._open_lock:
            self._open.add(sock)
        return sock, address

    def close_request(self, request: Any) -> None:
        with self._open_lock:
            self._open.discard(request)
        super().close_request(request)

    def drop_connections(self) -> None:
        with self._open_lock:
            sockets = list(self._open)
        for sock in sockets:
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a client that was killed in the middle is what this server is for


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server
    received: Request
    is_kept = False  # its events are
    is_answered = False  # or the connection is closed

    def do_GET(self) -> None:
        # Not of the API: how another process asks what came. A web page may not: it would come from elsewhere, or by a
        # name of its own that it has made lead to this machine (DNS rebinding).
        if not _is_of_this_machine(self.headers.get("Host")) or "Origin" in self.headers:
            self.answer(403, b'{"error":{"code":"forbidden","message":"use a loopback host name, and no web page"}}')
            return
        api = self.server.api
        with api._changed:
            if self.path == "/received":
                view: dict[str, Any] = {"events": api.events}
            else:
                view = {"distinct": len(api._ids), "requests": len(api.requests)}
            body = json.dumps(view).encode()
        self.answer(200 if self.path in ("/received", "/counts") else 404, body)

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        headers = {name.lower(): value for name, value in self.headers.items()}
        body = self.rfile.read(length)
        if len(body) < length:
            self.close_connection = True  # cut short by the client: no request
            return
        request = Request("POST", self.path, headers, body, self.client_address)
        api = self.server.api
        self.received = request
        self.is_kept = self.is_answered = False
        fault = api._note(request)
        if fault is not None and self._meet(fault):
            return
        problem = api._problem(request)
        if problem is not None:
            code, text = problem
            self.answer(code, json.dumps({"error": {"code": "invalid", "message": text, "reason": "checked"}}).encode())
            return
        self.keep()
        if request.path.endswith("/v1/send"):
            mail = {"id": "1", "messageId": "m-1", "status": "sent", "replayed": False}
            self.answer(200, json.dumps(mail).encode())
        else:
            self.answer(200)

    def _meet(self, fault: Fault) -> bool:
        """Have ``fault`` answer; False when it has raised, and there is no answer yet."""
        try:
            fault(self)
        except (ConnectionError, socket.timeout, ssl.SSLError):
            raise  # the client is gone, which ends the connection
        except BaseException:
            _complain()
            return self.is_answered
        return True

    def keep(self) -> None:
        """Accept the request's events."""
        if not self.is_kept:
            self.is_kept = True
            self.server.api._keep(self.received)

    def answer(self, code: int, body: bytes = b'{"ok":true}', headers: dict[str, str] | None = None) -> None:
        lines = [f"HTTP/1.1 {code} Status", "Content-Type: application/json", f"Content-Length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        self.is_answered = True
        # One write: two small ones make the client wait for the network's delayed acknowledgement, 40 ms a request.
        self.wfile.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)

    def hang_up(self) -> None:
        self.is_answered = self.close_connection = True
        try:
            self.wfile.flush()
            self.connection.close()
        except OSError:
            pass

    def log_message(self, format: str, *args: Any) -> None:
        pass


def _is_of_this_machine(host: str | None) -> bool:
    """True for a Host header that names loopback, with or without a port."""
    text = (host or "").strip().lower()
    name, _, port = text.rpartition(":")
    names = ("127.0.0.1", "localhost", "[::1]")
    return text in names or (name in names and port.isdigit())


def _complain() -> None:
    """Print the exception that is handled. Never raises: stderr may be closed."""
    try:
        traceback.print_exc()
    except Exception:
        pass


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _batch_problem(parsed: Any) -> str | None:
    if not isinstance(parsed, dict) or set(parsed) != {"batch"} or not isinstance(parsed["batch"], list):
        return "not a batch"
    if not 1 <= len(parsed["batch"]) <= MAX_ITEMS:
        return f"{len(parsed['batch'])} items"
    for item in parsed["batch"]:
        if not isinstance(item, dict) or item.get("type") not in _REQUIRED:
            return "an item without a type"
        for name in ("userId", "messageId", "timestamp", *_REQUIRED[item["type"]]):
            kind = _KINDS.get(name, str)
            if not isinstance(item.get(name), kind):
                return f"{item['type']} without {name}"
    return None


def _mail_problem(parsed: Any) -> str | None:
    if not isinstance(parsed, dict) or not parsed.get("to") or not parsed.get("subject"):
        return "to and subject are required"
    return None if parsed.get("html") or parsed.get("text") else "html or text is required"
