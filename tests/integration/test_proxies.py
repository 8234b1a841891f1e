"""Proxies from environment variables: a real one (proxy.py) for successes, a scripted one for failures."""

from __future__ import annotations

import base64
import socket
import ssl
import sys
import threading
from typing import Any, Callable, Iterator

import pytest
import trustme
from harness import DEADLINE, WebServer, environment, eventually
from raw_server import RawServer

from letterapp import LetterError
from letterapp.testing import IngestionServer
from stress.ports import free_port

NOWHERE = "http://127.0.0.1:1"  # a proxy that refuses every connection
USER, PASSWORD = "user@corp", "p:ss/w%rd ü"
ENCODED = "user%40corp:p%3Ass%2Fw%25rd%20%C3%BC"


class Running:
    """proxy.py on a port, and what it has logged of each connection."""

    def __init__(self, server: WebServer, port: int) -> None:
        self.address = f"127.0.0.1:{port}"
        self._server = server
        self._read = 0

    def logged(self, text: str) -> bool:
        """True when ``text`` has been logged, after what earlier calls found. A connection is logged at its end."""
        seen = eventually(lambda: self._server.output[self._read :], lambda output: text in output, 20)
        if text in seen:
            self._read += seen.index(text) + len(text)
        return text in seen


def running(tmp_path_factory: pytest.TempPathFactory, *options: str) -> Iterator[Running]:
    port = free_port()
    directory = tmp_path_factory.mktemp("proxy")
    command = [sys.executable, "-m", "proxy", "--hostname", "127.0.0.1", "--port", str(port)]
    command += ["--num-acceptors", "1", "--num-workers", "1", "--data-dir", str(directory), *options]
    with WebServer(command, environment("", HOME=str(directory)), directory, port) as server:
        yield Running(server, port)


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    yield from running(tmp_path_factory)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A proxy that asks for a user and a password."""
    yield from running(tmp_path_factory, "--basic-auth", f"{USER}:{PASSWORD}")


@pytest.fixture(scope="module")
def ca() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def tls_api(ca: trustme.CA) -> Iterator[IngestionServer]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("localhost").configure_cert(context)
    with IngestionServer(ssl_context=context) as api:
        yield api


@pytest.fixture
def trusting(ca: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    ca.configure_trust(context)
    return context


def delivers(letter: Any, times: int = 1) -> bool:
    before = letter.stats()["delivered"]
    for _ in range(times):
        letter.track("u", "E")
        assert letter.flush(DEADLINE) is True
    return bool(letter.stats()["delivered"] == before + times)


@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy"])
@pytest.mark.parametrize("scheme", ["http://", ""], ids=["with a scheme", "without"])
def test_http_goes_through_http_proxy(
    name: str, scheme: str, proxy: Running, letter_api: Any, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, scheme + proxy.address)
    letter = make(max_retries=0)
    assert delivers(letter, times=3)
    for request in letter_api.requests:
        assert request.path == "/v1/batch"  # though the proxy was given the whole URL
        assert request.headers["host"] == f"127.0.0.1:{letter_api.port}"
    # This proxy adds a header to the first request of a connection only, and all three came over one.
    assert "proxy" in letter_api.requests[0].headers["via"]
    assert len({request.connection for request in letter_api.requests}) == 1


@pytest.mark.parametrize("name", ["HTTPS_PROXY", "https_proxy"])
def test_https_goes_through_https_proxy_by_connect(
    name: str, proxy: Running, tls_api: Any, make: Any, trusting: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, f"http://{proxy.address}")
    letter = make(base_url=tls_api.url, ssl_context=trusting, max_retries=0)
    assert delivers(letter, times=3)
    assert len({request.connection for request in tls_api.requests}) == 1
    assert {request.path for request in tls_api.requests} == {"/v1/batch"}
    assert "via" not in tls_api.requests[0].headers
    tls_api.drop_connections()
    assert proxy.logged(f"CONNECT localhost:{tls_api.port}")


def test_the_certificate_is_verified_through_a_proxy_too(
    proxy: Running, tls_api: Any, make: Any, errors: list[LetterError], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", f"http://{proxy.address}")
    letter = make(base_url=tls_api.url, max_retries=0)
    assert not delivers(letter)
    assert "CERTIFICATE_VERIFY_FAILED" in str(errors[0]) and tls_api.requests == []


def test_a_connection_through_a_proxy_that_was_closed_is_replaced_without_a_retry(
    proxy: Running, tls_api: Any, make: Any, trusting: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", f"http://{proxy.address}")
    letter = make(base_url=tls_api.url, ssl_context=trusting, max_retries=0)
    assert delivers(letter)
    tls_api.drop_connections()
    assert delivers(letter)
    assert letter.stats()["retried"] == 0 and tls_api.repeated() == {}


def test_send_goes_through_the_proxy(
    proxy: Running, letter_api: Any, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://{proxy.address}")
    assert make().send("a@b.example", "S", text="x")["status"] == "sent"
    assert "via" in letter_api.requests[0].headers


@pytest.mark.parametrize("no_proxy", ["127.0.0.1", "other.example,127.0.0.1", "*", "127.0.0.1:PORT"])
def test_no_proxy_bypasses_the_proxy(
    no_proxy: str, letter_api: Any, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", NOWHERE)
    monkeypatch.setenv("NO_PROXY", no_proxy.replace("PORT", str(letter_api.port)))
    assert delivers(make(max_retries=0))


@pytest.mark.parametrize("no_proxy", ["localhost", ".localhost", "LOCALHOST"])
def test_no_proxy_bypasses_the_proxy_over_https(
    no_proxy: str, tls_api: Any, make: Any, trusting: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", NOWHERE)
    monkeypatch.setenv("NO_PROXY", no_proxy)
    assert delivers(make(base_url=tls_api.url, ssl_context=trusting, max_retries=0))


@pytest.mark.parametrize("no_proxy", ["other.example", "", "127.0.0.2"])
def test_no_proxy_with_other_hosts_has_no_effect(
    no_proxy: str, letter_api: Any, make: Any, errors: list[LetterError], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", NOWHERE)
    monkeypatch.setenv("NO_PROXY", no_proxy)
    assert not delivers(make(max_retries=0))
    assert "refused" in str(errors[0]).lower() and letter_api.requests == []


def test_the_proxy_of_the_other_scheme_is_not_used(letter_api: Any, make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", NOWHERE)
    assert delivers(make(max_retries=0))


def test_credentials_in_the_address_are_decoded_and_accepted(
    guarded: Running, letter_api: Any, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://{ENCODED}@{guarded.address}")
    assert delivers(make(max_retries=0), times=2)
    first = letter_api.requests[0]
    assert "via" in first.headers and "proxy-authorization" not in first.headers
    assert {request.headers["authorization"] for request in letter_api.requests} == {"Bearer test-key"}


def test_credentials_in_the_address_are_decoded_and_accepted_for_connect(
    guarded: Running, tls_api: Any, make: Any, trusting: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", f"http://{ENCODED}@{guarded.address}")
    assert delivers(make(base_url=tls_api.url, ssl_context=trusting, max_retries=0), times=2)
    assert "proxy-authorization" not in tls_api.requests[0].headers
    tls_api.drop_connections()
    assert guarded.logged(f"CONNECT localhost:{tls_api.port}")


@pytest.mark.parametrize("credentials", ["", "user:secret-word@"], ids=["none", "wrong"])
def test_refused_credentials_are_reported(
    credentials: str,
    guarded: Running,
    letter_api: Any,
    make: Any,
    errors: list[LetterError],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://{credentials}{guarded.address}")
    assert not delivers(make())
    (error,) = errors
    assert error.status == 407 and error.cause == "rejected" and error.lost == 1
    assert "secret-word" not in str(error)
    assert letter_api.requests == []


@pytest.mark.parametrize("credentials", ["", "user:secret-word@"], ids=["none", "wrong"])
def test_refused_credentials_are_reported_for_connect(
    credentials: str,
    guarded: Running,
    tls_api: Any,
    make: Any,
    trusting: ssl.SSLContext,
    errors: list[LetterError],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", f"http://{credentials}{guarded.address}")
    assert not delivers(make(base_url=tls_api.url, ssl_context=trusting, max_retries=0))
    (error,) = errors
    assert "refused the connection: 407" in str(error) and error.lost == 1
    assert "secret-word" not in str(error)
    assert tls_api.requests == []


@pytest.mark.parametrize(
    "address",
    [
        "https://127.0.0.1:1",
        "socks5://user:secret-word@127.0.0.1:1",
        "http://",
        "http://user:secret/word@127.0.0.1:1",
        "http://user:secret@127.0.0.1:0",
        "127.0.0.1:65536",
    ],
    ids=["https", "socks", "no host", "an unescaped slash in the password", "port 0", "no such port"],
)
def test_a_proxy_address_that_cannot_be_used_is_reported_without_its_password(
    address: str, letter_api: Any, make: Any, errors: list[LetterError], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", address)
    assert not delivers(make(max_retries=0))
    (error,) = errors
    assert "proxy" in str(error) and error.cause == "undeliverable"
    assert "secret" not in str(error)
    assert letter_api.requests == []


# A proxy that follows a script.


@pytest.mark.parametrize("no_proxy, bypassed", [("[::1]", True), ("::1", False)])
def test_no_proxy_names_an_ipv6_address_in_brackets(
    no_proxy: str, bypassed: bool, make: Any, errors: list[LetterError], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_INET6) as listener:
        try:
            listener.bind(("::1", 0))
        except OSError:
            pytest.skip("this machine has no IPv6")
        port = listener.getsockname()[1]  # where nothing listens
        monkeypatch.setenv("NO_PROXY", no_proxy)
        with RawServer(lambda sock: None) as proxy:
            monkeypatch.setenv("HTTP_PROXY", proxy.url)
            letter = make(base_url=f"http://[::1]:{port}", max_retries=0)
            assert not delivers(letter)
            assert bool(proxy.heads) is not bypassed


def trickling(head: bytes, piece: bytes, record: bytes) -> tuple[Callable[[socket.socket], None], threading.Event]:
    """A script that sends a piece every 20 ms for as long as the client reads, and an event that stops it."""
    stop = threading.Event()

    def script(sock: socket.socket) -> None:
        sock.sendall(head)
        if record:
            sock.recv(4096)  # TLS is started by the client
            sock.sendall(record)
        while not stop.wait(0.02):
            sock.sendall(piece)

    return script, stop


def through(
    proxy_url: str, make: Any, trusting: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch, **options: Any
) -> Any:
    monkeypatch.setenv("HTTPS_PROXY", proxy_url)
    return make(base_url="https://api.example:8443", ssl_context=trusting, max_retries=0, **options)


def tunnel_to(port: int) -> Callable[[socket.socket], None]:
    """A script that connects the client to ``port`` here, whatever it asked for."""

    def pump(source: socket.socket, sink: socket.socket) -> None:
        try:
            for piece in iter(lambda: source.recv(65536), b""):
                sink.sendall(piece)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def script(sock: socket.socket) -> None:
        with socket.create_connection(("127.0.0.1", port), DEADLINE) as other:
            sock.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            back = threading.Thread(target=pump, args=(other, sock), daemon=True)
            back.start()
            pump(sock, other)
            back.join(DEADLINE)

    return script


def test_the_host_header_leaves_out_the_default_port_of_https(
    tls_api: Any, make: Any, trusting: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    with RawServer(tunnel_to(tls_api.port)) as scripted:
        monkeypatch.setenv("HTTPS_PROXY", scripted.url)
        letter = make(base_url="https://localhost", ssl_context=trusting, max_retries=0)
        assert delivers(letter)
        assert letter.close() is True  # the tunnel's thread ends with the connection
    assert scripted.heads[0].startswith(b"CONNECT localhost:443 HTTP/1.")
    assert tls_api.requests[0].headers["host"] == "localhost"


def test_the_connect_request(make: Any, trusting: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch) -> None:
    with RawServer(lambda sock: sock.sendall(b"HTTP/1.1 502 No\r\nContent-Length: 0\r\n\r\n")) as scripted:
        address = scripted.url.replace("http://", f"http://{ENCODED}@")
        assert not delivers(through(address, make, trusting, monkeypatch))
        (head,) = scripted.heads
    lines = head.decode().split("\r\n")
    assert lines[0].startswith("CONNECT api.example:8443 HTTP/1.")
    token = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    assert f"Proxy-Authorization: Basic {token}" in lines
    assert b"test-key" not in head  # the proxy must not see the API key


@pytest.mark.parametrize(
    "answer, says",
    [
        (b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n", "403"),
        (b"HTTP/1.1 504 Gateway Timeout\r\n\r\n", "504"),
        (b"HTTP/1.1 302 Found\r\nLocation: http://elsewhere.example/\r\n\r\n", "302"),
        (b"", None),
        (b"garbage\r\n\r\n", None),
        (b"HTTP/1.1 200 Connection established\r\n\r\ngarbage in place of TLS", None),
        (b"HTTP/1.1 200 Connection established\r\n", None),
    ],
    ids=["403", "504", "302", "nothing", "garbage", "garbage behind it", "cut short"],
)
def test_a_connect_that_fails_is_reported(
    answer: bytes,
    says: str | None,
    make: Any,
    trusting: ssl.SSLContext,
    errors: list[LetterError],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with RawServer(lambda sock: sock.sendall(answer)) as scripted:
        assert not delivers(through(scripted.url, make, trusting, monkeypatch))
    (error,) = errors
    assert error.cause == "undeliverable" and error.lost == 1
    assert says is None or says in str(error)


@pytest.mark.parametrize(
    "head, piece, record",
    [
        (b"", b"", b""),
        (b"", b"H", b""),
        (b"HTTP/1.1 200 OK\r\n", b"X: y\r\n", b""),
        (b"HTTP/1.1 200 OK\r\nX: ", b"y", b""),
        (b"HTTP/1.1 200 OK\r\n\r\n", b"", b""),
        (b"HTTP/1.1 200 OK\r\n\r\n", b"\x00", b"\x16\x03\x03\x10\x00\x02\x00\x0f\xfc\x03\x03"),
        (b"HTTP/1.1 407 Wait\r\nContent-Length: 99999999\r\n\r\n", b"x", b""),
    ],
    ids=[
        "is silent",
        "trickles",
        "has no last header",
        "has a line without end",
        "is followed by silence",
        "is followed by a trickling handshake",
        "has a trickling body",
    ],
)
def test_a_request_is_bounded_by_timeout_when_the_answer_to_connect(
    head: bytes,
    piece: bytes,
    record: bytes,
    make: Any,
    trusting: ssl.SSLContext,
    errors: list[LetterError],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    script, stop = trickling(head, piece, record)
    with RawServer(script) as scripted:
        letter = through(scripted.url, make, trusting, monkeypatch, timeout=0.3)
        letter.track("u", "E")
        settled = letter.flush(10)
        stop.set()
    assert settled, "the request goes on for as long as the proxy speaks"
    (error,) = errors
    assert error.cause == "undeliverable" and error.lost == 1
    assert "no answer within 0.3 s" in str(error) or "refused the connection: 407" in str(error)
