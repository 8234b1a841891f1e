"""The HTTP server of ``--metrics``, with a loop of the test's own: what it answers, and to whom it does not listen."""

from __future__ import annotations

import socket
import threading
from http.client import HTTPConnection, HTTPResponse
from typing import Any, Iterator

import pytest
from harness import DEADLINE, eventually

from letterapp._relay_server import daemon, endpoint
from letterapp._runtime.clock import monotonic
from letterapp.errors import LetterError


class Relay:
    """What the endpoint asks."""

    def __init__(self) -> None:
        self.heartbeat = daemon.Heartbeat(self.wake)
        self.woken = threading.Event()
        self.turns = True  # when it is woken
        self.ready = True
        self.text = b"up 1\n"

    def wake(self) -> None:
        self.woken.set()
        if self.turns:
            self.heartbeat.last = monotonic()

    def is_ready(self) -> bool:
        return self.ready

    def metrics(self) -> bytes:
        if not self.text:
            raise ValueError("a bug")
        return self.text


class Served:
    def __init__(self) -> None:
        self.relay = Relay()
        self.logged: list[str] = []
        listener = endpoint.listen(("127.0.0.1", 0))
        self.port = listener.getsockname()[1]
        self.endpoint = endpoint.Endpoint(listener, self.relay, self.logged.append)
        self.endpoint.start()

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), DEADLINE)

    def ask(self, path: str, method: str = "GET") -> tuple[int, str]:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE)
        try:
            connection.request(method, path)
            answer: HTTPResponse = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def say(self, data: bytes) -> bytes:
        """Everything that comes back."""
        with self.connect() as sock:
            sock.sendall(data)
            return b"".join(iter(lambda: sock.recv(65_536), b""))


@pytest.fixture(name="served")
def serving() -> Iterator[Served]:
    served = Served()
    yield served
    served.endpoint.close()

    def connects() -> bool:
        with socket.socket() as sock:
            return sock.connect_ex(("127.0.0.1", served.port)) == 0

    assert not eventually(connects, lambda found: not found)


# What it answers.


def test_pages(served: Served) -> None:
    assert served.ask("/metrics") == (200, "up 1\n")
    assert served.ask("/metrics?name[]=up") == (200, "up 1\n")
    assert served.ask("/healthz") == (200, "alive\n")
    assert served.ask("/readyz") == (200, "ready\n")
    assert served.ask("/metrics", "HEAD") == (200, "")
    assert served.ask("/")[0] == served.ask("/metrics/")[0] == served.ask("http://other/metrics")[0] == 404
    assert served.ask("/metrics", "POST")[0] == 405


def test_the_text_has_prometheus_content_type(served: Served) -> None:
    head = served.say(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").partition(b"\r\n\r\n")[0]
    assert b"\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n" in head
    assert b"\r\nContent-Length: 5\r\n" in head and head.endswith(b"\r\nConnection: close")


def test_not_ready_is_not_dead(served: Served) -> None:
    served.relay.ready = False
    assert served.ask("/readyz") == (503, "not ready: no client can connect\n")
    assert served.ask("/healthz")[0] == 200


def test_an_idle_loop_is_woken_and_alive(served: Served) -> None:
    served.relay.heartbeat.last -= 3600
    assert served.ask("/healthz") == (200, "alive\n")
    assert served.relay.woken.is_set()


def test_a_loop_that_has_turned_lately_is_not_woken(served: Served) -> None:
    served.relay.heartbeat.last = monotonic() + 3600
    assert served.ask("/healthz")[0] == 200 and not served.relay.woken.is_set()


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
def test_a_loop_that_hangs_is_not_alive_and_may_recover(path: str, served: Served) -> None:
    served.relay.turns = False
    served.relay.heartbeat.last -= 100
    status, text = served.ask(path)
    assert status == 503 and text.startswith("not alive: the loop has not turned for 10")
    assert served.ask("/metrics")[0] == 200  # meanwhile
    served.relay.turns = True
    assert served.ask(path)[0] == 200


def test_a_bug_in_the_metrics_is_logged_once_and_the_probes_go_on(served: Served) -> None:
    served.relay.text = b""
    assert served.ask("/metrics")[0] == served.ask("/metrics")[0] == 500
    assert [line for line in served.logged if "a bug" in line] == served.logged[1:]
    assert served.ask("/healthz")[0] == 200


# Clients that are slow or hostile.


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"\n\n", 400),
        (b"GET /metrics\r\n\r\n", 400),
        (b"GET /metrics SPDY/1\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\r\n\r\n", 400),
        (b"GET /\xff HTTP/1.1\r\n\r\n", 404),
        (b"GET " + b"/" * 9_000, 431),
        (b"GET /metrics HTTP/1.1\r\n" + b"A: b\r\n" * 2_000, 431),
    ],
)
def test_what_is_no_request_gets_an_error(data: bytes, status: int, served: Served) -> None:
    assert served.say(data).startswith(b"HTTP/1.1 %d " % status)
    assert served.ask("/metrics")[0] == 200


def test_a_request_may_come_byte_by_byte(served: Served) -> None:
    with served.connect() as sock:
        for byte in b"GET /metrics HTTP/1.1\r\n\r\n":
            sock.sendall(bytes([byte]))
        assert sock.recv(65_536).startswith(b"HTTP/1.1 200 OK\r\n")


def test_a_body_does_not_cost_the_response(served: Served) -> None:
    data = b"POST /metrics HTTP/1.1\r\nContent-Length: 30000\r\n\r\n" + b"x" * 30_000
    with served.connect() as sock:
        sock.sendall(data)
        assert b"".join(iter(lambda: sock.recv(65_536), b"")).startswith(b"HTTP/1.1 405 ")


def test_silent_clients_do_not_keep_probes_out(served: Served) -> None:
    silent = [served.connect() for _ in range(3 * endpoint.CONNECTIONS)]
    for sock in silent:
        sock.sendall(b"GET /healthz HTTP/1.1\r\n")
    assert served.ask("/healthz") == (200, "alive\n")
    assert len(served.endpoint._connections) <= endpoint.CONNECTIONS
    for sock in silent:
        sock.close()


def test_a_client_is_given_up_after_some_time(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "PATIENCE", 0.1)
    with served.connect() as sock:
        sock.sendall(b"GET /metrics HTTP/1.1\r\n")
        assert sock.recv(1) == b""


def test_a_client_that_does_not_read_is_given_up(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "PATIENCE", 0.3)
    asked = threading.Event()

    def metrics() -> bytes:
        asked.set()
        return b"# comment\n" * 1_000_000

    monkeypatch.setattr(served.relay, "metrics", metrics)
    with served.connect() as sock:
        sock.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        assert asked.wait(DEADLINE)
        monkeypatch.setattr(endpoint, "PATIENCE", DEADLINE)
        assert served.ask("/healthz")[0] == 200
        assert eventually(lambda: len(served.endpoint._connections), lambda left: left == 0) == 0


def test_a_client_that_sends_for_ever_is_given_up_at_once(served: Served) -> None:
    with served.connect() as sock, pytest.raises(OSError):
        sock.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        for _ in range(100_000):
            sock.sendall(b"x" * 10_000)


def test_a_client_that_resets_does_no_harm(served: Served) -> None:
    for sent in (b"", b"GET", b"GET /metrics HTTP/1.1\r\n\r\n"):
        sock = served.connect()
        sock.sendall(sent)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        sock.close()
    assert served.ask("/healthz")[0] == 200


def test_the_last_descriptors_are_for_sending(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon, "has_descriptor_for_client", lambda: False)
    monkeypatch.setattr(endpoint, "PATIENCE", 10 * DEADLINE)
    with served.connect() as sock:
        assert sock.recv(1) == b""
    monkeypatch.undo()
    assert served.ask("/healthz")[0] == 200


# Where it listens.


def test_an_address_that_cannot_be_used_is_an_error(served: Served) -> None:
    with pytest.raises(LetterError, match=rf"--metrics: cannot listen at 127\.0\.0\.1:{served.port}: Address already"):
        endpoint.listen(("127.0.0.1", served.port))
    with pytest.raises(LetterError, match=r"--metrics: cannot listen at 192\.0\.2\.1:80"):
        endpoint.listen(("192.0.2.1", 80))
    with pytest.raises(LetterError, match=r"cannot listen at no\.such\.host\.invalid:80"):
        endpoint.listen(("no.such.host.invalid", 80))
    assert endpoint.listen(None) is None


def test_ipv6() -> None:
    try:
        listener: Any = endpoint.listen(("::1", 0))
    except LetterError as problem:
        pytest.skip(str(problem))
    with listener:
        assert endpoint.url_of(listener) == f"http://[::1]:{listener.getsockname()[1]}/metrics"
