"""The ingestion server: the API's protocol over real sockets, its checks, and faults on request.

Responsible for: the server's side of the protocol, what it stores. Not responsible for: the client, the faults
themselves (`faults`). It imports nothing from the client, so that the two cannot share a bug.
"""

from __future__ import annotations

import json
import os
import socket
import ssl
import threading
import traceback
from collections import Counter, deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Callable, Dict, Optional, Type
from weakref import WeakSet

from .. import _api_rules as rules
from .faults import Fault, Request


class IngestionServer:
    """The API on a loopback port. It listens when the constructor returns. Any thread may use methods and attributes.

    Use it as a context manager, or call `close`. It belongs to the process that created it; others connect to `url`.
    A forked child closes its copies of the sockets.

    Args:
        port: The port to listen on; 0 is any free port.
        api_key: The API key to accept; None accepts any.
        max_body: Maximum size of a request's body, in bytes; a larger one gets a 413. None accepts any.
        ssl_context: Serves HTTPS with this context.
        on_event: Called with each item that was stored, before the response to its request.

    Attributes:
        url: The server's base URL.
        port: The port that it listens on.
        events: The items of all batches that were stored, in order of arrival, including repeated deliveries.
        mails: The bodies of requests to ``/v1/send``.
        requests: All requests, including refused ones.
        rule: A function that is called with each `Request`, and returns a fault, or None to respond as the API does.

    Raises:
        OSError: The port cannot be used.
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
        self._open_gate = threading.Event()  # not set: requests wait, see `hold`
        self._open_gate.set()
        self.api_key = api_key
        self.max_body = max_body
        self._on_event = on_event
        self._planned: deque[Fault] = deque()
        self._changed = threading.Condition()  # guards the lists and `_ids`; notified whenever something is received
        self._ids: set[str] = set()
        self._server = _Server(port, ssl_context, self)
        scheme = "https" if ssl_context else "http"
        self.port: int = self._server.server_address[1]
        self.url = f"{scheme}://{'localhost' if ssl_context else '127.0.0.1'}:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def plan(self, *faults: Fault) -> None:
        """Use ``faults`` for the next requests, one each, in order. Returns at once."""
        self._planned.extend(faults)

    def hold(self) -> None:
        """Let all requests from now on wait, until `release` or `close`; nothing of them is stored meanwhile.

        Returns at once. They are in `requests` when they have been received.
        """
        self._open_gate.clear()

    def release(self) -> None:
        """Let the requests continue that wait because of `hold`, and later ones."""
        self._open_gate.set()

    def wait_for(self, count: int, timeout: float = 60.0) -> bool:
        """Wait until ``count`` different events have been stored; False after ``timeout`` seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: len(self._ids) >= count, timeout)

    def wait_until(self, true: Callable[[], bool], timeout: float = 60.0) -> bool:
        """Wait until ``true()``, which is called again after each request; False after ``timeout`` seconds."""
        with self._changed:
            return self._changed.wait_for(true, timeout)

    @property
    def distinct(self) -> int:
        """The number of events that the API would count, one for each messageId."""
        with self._changed:
            return len(self._ids)

    def repeated(self) -> Dict[str, int]:
        """The messageIds that were received more than once, and how often."""
        with self._changed:
            counts = Counter(item["messageId"] for item in self.events)
        return {identity: count for identity, count in counts.items() if count > 1}

    def close(self) -> None:
        """Stop listening and close every connection. Usually blocks for less than 0.1 s."""
        self.closing.set()
        self._open_gate.set()
        self._server.shutdown()
        self._server.server_close()
        self._server.drop_connections()
        self._thread.join(10)

    def drop_connections(self) -> None:
        """Close every connection, as a server does with idle ones."""
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

    def _problem(self, request: Request) -> tuple[int, str, str] | None:
        """The status, the reason and the message with which ``request`` is refused; None if it is not."""
        if request.path.endswith("/v1/batch"):
            check = rules.batch_problem
        elif request.path.endswith("/v1/send"):
            check = rules.mail_problem
        else:
            return 404, "path", f"no such path: {request.path}"
        key = rules.key_of(request.headers.get("authorization", ""))
        if not key:
            return 401, "missing_key", "no API key"
        if self.api_key is not None and key != self.api_key:
            return 401, "wrong_key", "wrong API key"
        if self.max_body is not None and len(request.body) > self.max_body:
            return 413, "body", f"more than {self.max_body} bytes"
        try:
            problem = check(rules.parsed(request.body))
        except ValueError as error:
            return 400, "not_json", f"the body is not JSON: {error}"
        return None if problem is None else (422, *problem)

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
        _servers.add(self)

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
        pass  # clients that are killed during a request are expected in tests

    def close_inherited(self) -> None:
        """Close a forked child's copies: they would keep the port and the connections open."""
        for sock in (self.socket, *self._open):
            descriptor = sock.detach()  # `close` would wait for the threads of the parent
            if descriptor >= 0:
                os.close(descriptor)


_servers: WeakSet[_Server] = WeakSet()


def _after_fork_in_child() -> None:
    for server in list(_servers):
        server.close_inherited()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server
    received: Request
    is_kept = False  # the request's events are stored
    is_answered = False  # the response was sent, or the connection closed

    def do_GET(self) -> None:
        # Not part of the API: other processes use it to see what was received. Web pages may not: such a request has an
        # Origin header, or a host name that its owner has pointed to this machine (DNS rebinding).
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
            self.close_connection = True  # the client has disconnected: this is no complete request
            return
        request = Request("POST", self.path, headers, body, self.client_address)
        api = self.server.api
        self.received = request
        self.is_kept = self.is_answered = False
        fault = api._note(request)
        api._open_gate.wait()
        if fault is not None and self._meet(fault):
            return
        problem = api._problem(request)
        if problem is not None:
            code, reason, text = problem
            self.answer(code, json.dumps({"error": {"code": "invalid", "message": text, "reason": reason}}).encode())
            return
        self.keep()
        if request.path.endswith("/v1/send"):
            mail = {"id": "1", "messageId": "m-1", "status": "sent", "replayed": False}
            self.answer(200, json.dumps(mail).encode())
        else:
            self.answer(200)

    def _meet(self, fault: Fault) -> bool:
        """Let ``fault`` respond; False if it has raised and there is no response yet."""
        try:
            fault(self)
        except (ConnectionError, socket.timeout, ssl.SSLError):
            raise  # the client has gone, which ends the connection
        except BaseException:
            _complain()
            return self.is_answered
        return True

    @property
    def closing(self) -> threading.Event:
        return self.server.api.closing

    def keep(self) -> None:
        """Store the request's events."""
        if not self.is_kept:
            self.is_kept = True
            self.server.api._keep(self.received)

    def answer(self, code: int, body: bytes = b'{"ok":true}', headers: dict[str, str] | None = None) -> None:
        lines = [f"HTTP/1.1 {code} Status", "Content-Type: application/json", f"Content-Length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        self.is_answered = True
        # One write: after two small ones the client would wait for a delayed TCP acknowledgement, 40 ms per request.
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
    """True for a Host header that is a loopback name, with or without a port."""
    text = (host or "").strip().lower()
    name, _, port = text.rpartition(":")
    names = ("127.0.0.1", "localhost", "[::1]")
    return text in names or (name in names and port.isdigit())


def _complain() -> None:
    """Print the traceback of the current exception. Never raises: stderr may be closed."""
    try:
        traceback.print_exc()
    except Exception:
        pass
