"""Who may talk to the inbox, and what a client can use up."""

from __future__ import annotations

import gzip
import json
import os
import sys
import zlib
from pathlib import Path
from typing import Iterator

import pytest
from harness import DEADLINE, eventually
from inboxes import KEY, Inbox, item

PATHS = ["/", "/api/list", "/api/events", "/api/stream", "/v1/batch"]


def raw(inbox: Inbox, data: bytes) -> bytes:
    """What the inbox answers to ``data``, until it closes the connection."""
    with inbox.connect() as sock:
        try:
            sock.sendall(data)
        except ConnectionError:
            pass
        said = b""
        try:
            while True:
                piece = sock.recv(65536)
                if not piece:
                    return said
                said += piece
        except ConnectionError:
            return said


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "evil.example:{port}"},
        {"Host": "127.0.0.1.evil.example"},
        {"Host": "127.0.0.1:{port}@evil.example"},
        {"Host": ""},
        {"Host": "127.0.0.1:{port}", "Origin": "https://evil.example"},
        {"Host": "127.0.0.1:{port}", "Origin": "http://127.0.0.1:1"},
        {"Host": "127.0.0.1:{port}", "Origin": "http://localhost:{port}"},
        {"Host": "127.0.0.1:{port}", "Origin": "null"},
        {"Host": "127.0.0.1:{port}", "Sec-Fetch-Site": "cross-site"},
        {"Host": "127.0.0.1:{port}", "Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "no-cors"},
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_web_pages_of_other_origins_are_refused(method: str, headers: dict[str, str], inbox: Inbox) -> None:
    inbox.track(item(event="Secret"))
    given = {name: value.format(port=inbox.port) for name, value in headers.items()}
    for path in PATHS:
        status, said, _ = inbox.request(method, path, b"{}" if method == "POST" else None, {**KEY, **given})
        assert status == 403 and "Secret" not in json.dumps(said), path
    assert inbox.names() == ["Secret"]


def test_a_request_without_a_host_is_refused(inbox: Inbox) -> None:
    assert raw(inbox, b"GET /api/list HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 403")
    twice = f"Host: 127.0.0.1:{inbox.port}\r\nHost: evil.example\r\n"
    assert raw(inbox, f"GET /api/list HTTP/1.1\r\n{twice}\r\n".encode()).startswith(b"HTTP/1.1 400")


@pytest.mark.parametrize("host", ["127.0.0.1:{port}", "localhost:{port}", "LOCALHOST", "127.0.0.1", "[::1]:{port}"])
def test_loopback_names_are_accepted(host: str, inbox: Inbox) -> None:
    given = host.format(port=inbox.port)
    assert inbox.request("GET", "/api/list", None, {"Host": given, "Origin": f"http://{given}"})[0] == 200


def test_a_link_leads_to_the_page_and_to_nothing_else(inbox: Inbox) -> None:
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    assert inbox.request("GET", "/", None, link)[0] == 200
    assert inbox.request("GET", "/api/list", None, link)[0] == 403
    assert inbox.request("GET", "/", None, {**link, "Sec-Fetch-Dest": "iframe"})[0] == 403


def test_the_page_allows_its_own_script_only(inbox: Inbox) -> None:
    status, page, answer = inbox.request("GET", "/")
    policy = answer.headers["Content-Security-Policy"]
    assert status == 200 and "default-src 'none'" in policy and "require-trusted-types-for 'script'" in policy
    assert "unsafe" not in policy and "frame-ancestors 'none'" in policy
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert "innerHTML" not in page and "<script src" not in page and "https://" not in page


def test_the_html_of_an_email_is_sandboxed(inbox: Inbox) -> None:
    assert inbox.post("/v1/send", {"to": "a@b", "subject": "S", "html": "<script>1</script>"})[0] == 200
    seq = inbox.get("/api/events", type="send")["seq"]
    _, html, answer = inbox.request("GET", f"/api/mails/{seq}")
    policy = answer.headers["Content-Security-Policy"].split("; ")
    assert html == "<script>1</script>" and "sandbox" in policy and "default-src 'none'" in policy
    inbox.track(item())
    assert inbox.request("GET", f"/api/mails/{seq + 1}")[0] == 404


def test_secrets_are_not_kept(inbox: Inbox) -> None:
    inbox.post("/v1/batch", {"batch": [item()]}, Cookie="session=s3cret", Authorization="Bearer lt_s3cret")
    assert "s3cret" not in json.dumps([inbox.get("/api/events"), inbox.get("/api/requests")])


# What a client can use up.


@pytest.mark.parametrize(
    "request_, status",
    [
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 40_000, 431),
        (b"POST /v1/batch HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\n", 413),
        (b"POST /v1/batch HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST /v1/batch HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        (b"POST /v1/batch HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n", 411),
        (b"\x16\x03\x01\x02\x00 TLS\r\n\r\n", 400),
        (b"GET http://localhost/ HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"GET /?" + b"a=1&" * 60 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nno header\r\nHost: localhost\r\n\r\n", 400),
    ],
)
def test_a_request_that_is_no_good_is_refused(request_: bytes, status: int, inbox: Inbox) -> None:
    said = raw(inbox, request_)
    assert said.startswith(b"HTTP/1.1 %d " % status), said
    assert set(json.loads(said.split(b"\r\n\r\n", 1)[1])["error"]) == {"code", "message", "reason"}


def test_a_body_that_is_too_large_is_answered_after_it_was_sent(inbox: Inbox) -> None:
    status, said = inbox.post("/v1/batch", b"x" * 6_000_000)
    assert status == 413 and "5,000,000" in said["error"]["message"]


def test_a_gzip_bomb_is_refused(inbox: Inbox) -> None:
    packer = zlib.compressobj(9, wbits=31)
    bomb = b"".join(packer.compress(bytes(1_000_000)) for _ in range(100)) + packer.flush()
    assert len(bomb) < 200_000
    assert inbox.post("/v1/batch", bomb, **{"Content-Encoding": "gzip"})[0] == 413
    cut = gzip.compress(b'{"batch": []}')[:-4]
    assert inbox.post("/v1/batch", cut, **{"Content-Encoding": "gzip"})[0] == 400
    assert inbox.post("/v1/batch", b"{}", **{"Content-Encoding": "gzip"})[0] == 400
    assert inbox.post("/v1/batch", b"{}", **{"Content-Encoding": "br"})[0] == 415


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_silent_connections_are_bounded_and_do_not_shut_out_others(tmp_path: Path) -> None:
    with Inbox(tmp_path) as inbox:
        silent = [inbox.connect() for _ in range(450)]
        slow = [inbox.connect() for _ in range(50)]
        for sock in slow:
            try:
                sock.sendall(b"POST /v1/batch HTTP/1.1\r\nHost: loc")
            except ConnectionError:
                pass
        inbox.track(item(event="In time"))
        assert inbox.names() == ["In time"]

        def sockets() -> int:
            return len(os.listdir(f"/proc/{inbox.pid}/fd"))

        assert eventually(sockets, lambda count: count < 430) < 430
        assert len(os.listdir(f"/proc/{inbox.pid}/task")) <= 6
        for sock in silent + slow:
            sock.close()
        assert eventually(sockets, lambda count: count < 40) < 40


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_bodies_that_never_come_do_not_shut_out_others(tmp_path: Path) -> None:
    with Inbox(tmp_path) as inbox:
        head = f"POST /v1/batch HTTP/1.1\r\nHost: 127.0.0.1:{inbox.port}\r\nContent-Length: 4000000\r\n\r\nx".encode()
        slow = [inbox.connect() for _ in range(450)]
        for sock in slow:
            try:
                sock.sendall(head)
            except ConnectionError:
                pass
        inbox.track(item(event="In time"))
        assert inbox.names() == ["In time"]
        for sock in slow:
            sock.close()
        eventually(lambda: len(os.listdir(f"/proc/{inbox.pid}/fd")), lambda count: count < 40)
        # What their bodies might have needed is free again.
        assert inbox.post("/v1/batch", b"x" * 5_000_000)[0] == 400


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[Inbox]:
    """An inbox that no earlier test has left connections to."""
    with Inbox(tmp_path) as inbox:
        yield inbox


def test_too_many_windows_are_refused(alone: Inbox) -> None:
    inbox = alone
    windows = [inbox.connect() for _ in range(45)]
    try:
        for sock in windows:
            sock.sendall(f"GET /api/stream HTTP/1.1\r\nHost: 127.0.0.1:{inbox.port}\r\n\r\n".encode())
        starts = [sock.recv(12) for sock in windows]
        assert starts.count(b"HTTP/1.1 200") == 40 and starts.count(b"HTTP/1.1 503") == 5
    finally:
        for sock in windows:
            sock.close()

    def is_free() -> bool:
        with inbox.connect() as sock:
            sock.settimeout(DEADLINE)
            sock.sendall(f"GET /api/stream HTTP/1.1\r\nHost: 127.0.0.1:{inbox.port}\r\n\r\n".encode())
            return sock.recv(12) == b"HTTP/1.1 200"

    assert eventually(is_free, bool)
