"""Connections that are kept, closed by the other side at any moment, and replaced."""

from __future__ import annotations

import socket
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from driven import connections
from harness import DEADLINE, eventually, run
from programs.connections import descriptor_is_reused
from responses import KEEP_ALIVE_200, PROPER

from letterapp import LetterError
from letterapp.testing import IngestionServer, raw, reset, status
from stress.ports import free_port


def test_one_connection_serves_many_batches(letter_api: IngestionServer, make: Any) -> None:
    letter = make(flush_at=10)
    for _ in range(5):
        for _ in range(100):
            letter.track("u", "E")
        assert letter.flush(DEADLINE) is True  # after which the thread is gone, but not the connection
    assert len(letter_api.requests) >= 5
    assert connections(letter_api) == 1


def test_a_request_is_sent_in_one_piece(make: Any) -> None:
    # `http.client` writes head and body apart, which is two packets and wakes the server twice.
    pieces: list[bytes] = []

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            for _ in range(20):
                pieces.append(connection.recv(65536))
                connection.sendall(KEEP_ALIVE_200)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(DEADLINE)
        server = threading.Thread(target=serve)
        server.start()
        letter = make(base_url=f"http://127.0.0.1:{listener.getsockname()[1]}")
        for _ in range(20):
            letter.track("u", "E")
            assert letter.flush(DEADLINE)
        server.join(DEADLINE)
    assert [piece for piece in pieces if b'{"batch":[' not in piece or not piece.endswith(b"]}")] == []


@pytest.mark.parametrize("max_retries", [0, 3])
def test_a_connection_that_the_server_closed_while_idle_is_replaced_without_a_retry(
    max_retries: int, letter_api: IngestionServer, make: Any, errors: list[LetterError]
) -> None:
    letter = make(max_retries=max_retries)
    for _ in range(3):
        letter.track("u", "E")
        assert letter.flush(DEADLINE) is True
        letter_api.drop_connections()
    assert (len(letter_api.requests), connections(letter_api)) == (3, 3)
    assert letter.stats()["retried"] == 0 and letter.stats()["delivered"] == 3
    assert errors == [] and letter_api.repeated() == {}


@pytest.mark.parametrize("stored", [False, True], ids=["before it was stored", "after it was stored"])
@pytest.mark.parametrize("fault", [raw, reset], ids=["closed", "reset"])
def test_a_connection_that_the_server_closes_during_a_request_is_replaced_without_a_retry(
    fault: Any, stored: bool, letter_api: IngestionServer, driven: Any, errors: list[LetterError]
) -> None:
    # The server's idle time was over just when the request came: no look at the socket before can see that.
    letter_api.plan(PROPER, fault(b"", stored) if fault is raw else fault(stored))
    one = driven(max_retries=0)
    one.track()
    assert one.settle() == []
    one.track()
    assert one.settle() == []
    assert (len(letter_api.requests), connections(letter_api)) == (3, 2)
    assert one.letter.stats()["retried"] == 0 and one.letter.stats()["delivered"] == 2
    assert errors == [] and letter_api.distinct == 2
    assert list(letter_api.repeated().values()) == ([2] if stored else [])


def test_an_unrequested_response_on_an_idle_connection_is_not_taken_for_the_next(
    letter_api: IngestionServer, driven: Any, errors: list[LetterError]
) -> None:
    # A 408, which some servers and load balancers send before they close an idle connection.
    handlers: list[Any] = []

    def answer(handler: Any) -> None:
        handlers.append(handler)
        handler.keep()
        handler.answer(200)

    letter_api.plan(answer)
    one = driven(max_retries=0)
    one.track()
    assert one.settle() == []
    handlers[0].answer(408)
    assert eventually(one.sender._batches._transport._line.is_stale, bool)
    one.track()
    assert one.settle() == []
    assert (letter_api.distinct, connections(letter_api)) == (2, 2)
    assert errors == [] and one.letter.stats()["retried"] == 0


def test_a_replaced_connection_that_fails_too_is_a_failed_try(
    letter_api: IngestionServer, driven: Any, errors: list[LetterError]
) -> None:
    letter_api.plan(PROPER, reset(), reset())
    one = driven(max_retries=1)
    one.track()
    assert one.settle() == []
    one.track()
    assert len(one.settle()) == 1
    assert len(letter_api.requests) == 4
    assert one.letter.stats()["retried"] == 1 and errors == []


def test_a_server_that_restarts_on_its_port_is_found_again(make: Any, errors: list[LetterError]) -> None:
    with IngestionServer(free_port()) as before:
        letter = make(base_url=before.url, max_retries=0)
        letter.track("u", "E")
        assert letter.flush(DEADLINE) is True
    with IngestionServer(before.port) as after:
        letter.track("u", "E")
        assert letter.flush(DEADLINE) is True
        assert after.distinct == 1
    assert errors == [] and letter.stats()["retried"] == 0


@pytest.mark.parametrize(
    "answer",
    [
        status(200, headers={"Connection": "close"}, stored=True),
        raw(b"HTTP/1.0 200 OK\r\n\r\n{}", stored=True),
        raw(b"HTTP/1.1 200 OK\r\n\r\n", stored=True),
        raw(
            b"HTTP/1.1 200 OK\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
            stored=True,
        ),
    ],
    ids=["Connection: close", "HTTP/1.0", "no length", "chunked"],
)
def test_a_response_that_ends_the_connection_causes_no_retry(
    answer: Any, letter_api: IngestionServer, driven: Any, errors: list[LetterError]
) -> None:
    letter_api.plan(answer, answer)
    one = driven(max_retries=0)
    for _ in range(3):
        one.track()
        assert one.settle() == []
    assert (len(letter_api.requests), connections(letter_api)) == (3, 3)
    assert errors == [] and letter_api.repeated() == {}


def test_the_test_servers_reset_is_a_reset(letter_api: IngestionServer) -> None:
    # If it were not, the tests above would prove less than they say.
    letter_api.plan(reset())
    with socket.create_connection(("127.0.0.1", letter_api.port), DEADLINE) as sock:
        sock.sendall(b"POST /v1/batch HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}")
        with pytest.raises(ConnectionResetError):
            sock.recv(1)


@pytest.mark.skipif(sys.platform == "win32", reason="its sockets are no descriptors")
@pytest.mark.parametrize("by", ["itself", "a child"])
def test_a_reused_descriptor_of_a_connection_is_not_closed(
    by: str, letter_api: IngestionServer, tmp_path: Path
) -> None:
    # The numbers that a daemon library closes are those of the next files, which must not get any of our bytes.
    finished = run(descriptor_is_reused, letter_api.url, tmp_path, by)
    assert (finished.code, finished.output) == (0, ""), finished
    assert letter_api.distinct == 2
