"""HTTP as it really goes: kept connections, every kind of failure, and what is said of it.

Where a wait has a length that matters, the test takes the sender's turns itself and sets the clock (`driven`): nothing
is slept through.
"""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
from email.utils import formatdate
from pathlib import Path
from typing import Any, Callable, Iterator

import pytest
from harness import DEADLINE, Program, environment, eventually

from letterapp import Letter, LetterError
from letterapp._sender import Sender
from letterapp.testing import Hold, IngestionServer, cut, endless, raw, reset, stall, status

DONE = float("inf")  # what a turn answers when nothing waits


class Driven:
    """A client whose sender has no thread: the test takes the turns, at moments of its own."""

    def __init__(self, api_url: str, errors: list[LetterError], **options: Any) -> None:
        self.now = 1000.0
        self.letter = Letter("test-key", api_url, on_error=errors.append, flush_interval=0, **options)
        self.sender = Sender(self.letter._settings, lambda: self.now)
        self.sender._outbox.attend()  # as the thread does: so no other is started
        self.letter._delivery = self.sender

    def track(self, count: int = 1) -> None:
        for serial in range(count):
            self.letter.track("u", "E", {"serial": serial})

    def settle(self) -> list[float]:
        """Take turns until nothing waits. Returns the waits between two tries, which the clock jumped over."""
        waits = []
        while True:
            wait = self.sender.step()
            if wait == DONE:
                return waits
            if wait:
                waits.append(wait)
                self.now += wait

    def stop(self) -> None:
        self.sender._outbox.abandon("closed")
        self.sender._outbox.desert()
        self.sender._transport.close()


@pytest.fixture
def driven(letter_api: IngestionServer, errors: list[LetterError]) -> Iterator[Callable[..., Driven]]:
    made: list[Driven] = []

    def new(base_url: str = letter_api.url, **options: Any) -> Driven:
        made.append(Driven(base_url, errors, **options))
        return made[-1]

    yield new
    for one in made:
        one.stop()


def connections(api: IngestionServer) -> int:
    return len({request.connection for request in api.requests})


PROPER = status(200, stored=True)
KEEP_ALIVE_200 = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


# Connections.


def test_one_connection_serves_many_batches(letter_api: IngestionServer, make: Any) -> None:
    letter = make(flush_at=10)
    for _ in range(5):
        for _ in range(100):
            letter.track("u", "E")
        assert letter.flush() is True  # after which the thread is gone, but not the connection
    assert len(letter_api.requests) >= 5
    assert connections(letter_api) == 1


def test_a_request_leaves_in_one_piece(make: Any) -> None:
    # `http.client` writes head and body apart, which is two packets and wakes the server twice.
    pieces = []

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            for _ in range(20):
                pieces.append(connection.recv(65536))
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

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
        assert letter.flush() is True
        letter_api.drop_connections()
    assert (len(letter_api.requests), connections(letter_api)) == (3, 3)
    assert letter.stats()["retried"] == 0 and letter.stats()["delivered"] == 3
    assert errors == [] and letter_api.repeated() == {}


@pytest.mark.parametrize("stored", [False, True], ids=["before it was stored", "after it was stored"])
@pytest.mark.parametrize("fault", [raw, reset], ids=["closed", "reset"])
def test_a_connection_that_the_server_closes_under_a_request_is_replaced_without_a_retry(
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


def test_what_a_server_says_unasked_on_an_idle_connection_is_not_taken_for_an_answer(
    letter_api: IngestionServer, driven: Any, errors: list[LetterError]
) -> None:
    # A 408, with which some servers and balancers say goodbye to an idle client.
    handlers: list[Any] = []

    def answer(handler: Any) -> bool:
        handlers.append(handler)
        handler.answer(200)
        return True

    letter_api.plan(answer)
    one = driven(max_retries=0)
    one.track()
    assert one.settle() == []
    handlers[0].answer(408)
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
    with IngestionServer() as before:
        letter = make(base_url=before.url, max_retries=0)
        letter.track("u", "E")
        assert letter.flush() is True
    with IngestionServer(before.port) as after:
        letter.track("u", "E")
        assert letter.flush() is True
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
def test_an_answer_that_ends_the_connection_costs_nothing(
    answer: Any, letter_api: IngestionServer, driven: Any, errors: list[LetterError]
) -> None:
    letter_api.plan(answer, answer)
    one = driven(max_retries=0)
    for _ in range(3):
        one.track()
        assert one.settle() == []
    assert (len(letter_api.requests), connections(letter_api)) == (3, 3)
    assert errors == [] and letter_api.repeated() == {}


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 100 Continue\r\n\r\n" + KEEP_ALIVE_200,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n1;x=y\r\n}\r\n0\r\nTrailer: t\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\n\r\n",
        b"HTTP/1.1 200 \r\nX: " + b"y" * 60_000 + b"\r\ncontent-length: 0\r\n\r\n",
    ],
    ids=["100 first", "chunked", "204", "long header"],
)
def test_an_unusual_but_proper_answer_is_read_and_the_connection_kept(
    data: bytes, letter_api: IngestionServer, driven: Any, errors: list[LetterError]
) -> None:
    def answer(handler: Any) -> bool:
        handler.wfile.write(data)
        return True

    letter_api.plan(answer, answer)
    one = driven(max_retries=0)
    for _ in range(3):
        one.track()
        assert one.settle() == []
    assert (len(letter_api.requests), connections(letter_api)) == (3, 1)
    assert errors == []


# What is tried again.


def closing_503(stored: bool) -> Any:
    """Answer 503 and close, which the answer does not announce."""

    def answer(handler: Any) -> bool:
        handler.answer(503)
        handler.hang_up()
        return stored

    return answer


PASSING = {
    "500": lambda stored: status(500, stored=stored),
    "502 from a gateway": lambda stored: status(502, b"<html>Bad Gateway</html>", stored=stored),
    "503": lambda stored: status(503, stored=stored),
    "504": lambda stored: status(504, b"", stored=stored),
    "599": lambda stored: status(599, stored=stored),
    "503, then closed": closing_503,
    "reset": reset,
    "closed": lambda stored: raw(b"", stored),
    "cut short": cut,
    "cut short in the status line": lambda stored: raw(b"HTTP/1.1 20", stored),
    "cut short after the status line": lambda stored: raw(b"HTTP/1.1 200 OK\r\n", stored),
    "cut short before the blank line": lambda stored: raw(b"HTTP/1.1 200 OK\r\nX: y\r\n", stored),
    "cut short in the headers": lambda stored: raw(b"HTTP/1.1 200 OK\r\nContent-Le", stored),
    "cut short in a chunk": lambda stored: raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\n{}", stored),
    "a chunk of garbage": lambda stored: raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}", stored),
    "garbage": lambda stored: raw(b"\x16\x03\x01\x02\x00\xff\xfe garbage\r\n\r\n", stored),
    "another protocol": lambda stored: raw(b"SSH-2.0-OpenSSH_9.6\r\n", stored),
    "garbage for a status": lambda stored: raw(b"HTTP/1.1 OK 200\r\n\r\n", stored),
    "a switch of protocols": lambda stored: raw(b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\n\r\n", stored),
    "a thousand headers": lambda stored: raw(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 1000 + b"\r\n", stored),
    "a header line without end": lambda stored: raw(b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000, stored),
    "headers without end": lambda stored: endless(b"X: y\r\n", stored, head=b"HTTP/1.1 200 OK\r\n"),
}


@pytest.mark.parametrize("stored", [False, True], ids=["not stored", "stored"])
@pytest.mark.parametrize("kind", PASSING)
def test_tried_again_with_the_same_events_after(
    kind: str, stored: bool, letter_api: IngestionServer, driven: Any, errors: list[LetterError]
) -> None:
    letter_api.plan(PASSING[kind](stored))
    one = driven()
    one.track(3)
    (wait,) = one.settle()
    assert 0.25 <= wait <= 0.3125
    # `endless` notes what it stored only when it has found the client gone.
    assert letter_api.wait_until(lambda: len(letter_api.events) == (6 if stored else 3), DEADLINE)
    assert len({request.body for request in letter_api.requests}) == 1 and len(letter_api.requests) == 2
    assert list(letter_api.repeated().values()) == ([2, 2, 2] if stored else [])
    assert one.letter.stats()["retried"] == 3 and one.letter.stats()["delivered"] == 3
    assert errors == []


@pytest.mark.parametrize(
    "fault, says",
    [
        (Hold, "no answer within 0.3 s"),
        (lambda: endless(b"x", every=0.01), "no answer within 0.3 s"),
        (lambda: endless(b"X: y\r\n", head=b"HTTP/1.1 200 OK\r\n", every=0.02), "no answer within 0.3 s"),
        (lambda: endless(b"HTTP/1.1 100 Continue\r\n\r\n", head=b"", every=0.01), "no answer within 0.3 s"),
        (lambda: endless(b"H", head=b"", every=0.01), "no answer within 0.3 s"),
    ],
    ids=["silent", "body trickles", "headers trickle", "only says that it goes on", "status line trickles"],
)
def test_a_request_is_bounded_by_timeout_when_the_answer(
    fault: Any, says: str, letter_api: IngestionServer, driven: Any, errors: list[LetterError]
) -> None:
    faults = [fault(), fault()]
    letter_api.plan(*faults)
    one = driven(timeout=0.3, max_retries=1)
    one.track()
    assert len(one.settle()) == 1
    for each in faults:
        if isinstance(each, Hold):
            each.release()
    (error,) = errors
    assert says in str(error) and error.status is None and error.cause == "undeliverable" and error.lost == 1


def test_an_event_that_was_stored_after_the_client_had_lost_patience_arrives_twice(
    letter_api: IngestionServer, driven: Any
) -> None:
    hold = Hold()
    letter_api.plan(hold)
    one = driven(timeout=0.3)
    one.track()
    assert len(one.settle()) == 1
    hold.release()
    assert letter_api.wait_until(lambda: len(letter_api.events) == 2, DEADLINE)
    assert list(letter_api.repeated().values()) == [2]


def test_a_body_without_end_is_read_no_further_than_64_kib(
    letter_api: IngestionServer, driven: Any, errors: list[LetterError]
) -> None:
    letter_api.plan(endless(stored=True), endless(head=b"HTTP/1.1 400 Bad Request\r\nContent-Length: 99999999\r\n\r\n"))
    one = driven(max_retries=0, timeout=600)
    for _ in range(3):
        one.track()
        assert one.settle() == []
    assert letter_api.wait_for(2)
    assert connections(letter_api) == 3  # the rest of a body is not worth reading, so the connection goes
    (error,) = errors
    assert error.status == 400 and error.body == "x" * 65_536


def test_a_refused_connection_is_tried_again(driven: Any, errors: list[LetterError]) -> None:
    with IngestionServer() as api:
        port = api.port
    one = driven(f"http://127.0.0.1:{port}")
    one.track()
    assert one.sender.step() == 0.0
    assert 0.25 <= one.sender.step() <= 0.3125
    with IngestionServer(port) as api:
        one.settle()
        assert api.distinct == 1
    assert errors == []


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:1",
        "http://[::1]:1",
        "http://name.invalid",
        "http://" + "a" * 64 + ".example",
        "http://a..example",
    ],
)
def test_an_api_that_is_not_there_is_reported(url: str, driven: Any, errors: list[LetterError]) -> None:
    one = driven(url, max_retries=2)
    one.track(5)
    waits = one.settle()
    assert len(waits) == 2 and 0.5 <= waits[1] <= 0.625
    (error,) = errors
    assert str(error).startswith("5 events lost: the API could not be reached: ")
    assert (error.status, error.body, error.code, error.reason) == (None, None, None, None)
    assert error.cause == "undeliverable" and len(error.events) == error.lost == 5
    assert one.letter.stats()["lost"] == {"undeliverable": 5}


@pytest.mark.parametrize(
    "header, least, most",
    [
        (None, 1.0, 1.25),
        ("7", 7.0, 8.75),
        ("0", 0.0, 0.0),
        ("0.5", 0.5, 0.625),
        ("", 1.0, 1.25),
        ("\x0c", 1.0, 1.25),
        ("soon", 1.0, 1.25),
        ("Nov Tue, , Tue,", 1.0, 1.25),
        ("nan", 1.0, 1.25),
        ("-1", 0.0, 0.0),
        ("inf", 300.0, 375.0),
        ("1000000000000", 300.0, 375.0),
        ("9" * 5000, 300.0, 375.0),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0, 0.0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 300.0, 375.0),
        ("in 200 s", 100.0, 250.0),
    ],
)
def test_a_429_is_tried_again_when_retry_after_says(
    header: str | None,
    least: float,
    most: float,
    letter_api: IngestionServer,
    driven: Any,
    errors: list[LetterError],
) -> None:
    if header == "in 200 s":
        header = formatdate(time.time() + 200, usegmt=True)
    letter_api.plan(status(429, headers={} if header is None else {"Retry-After": header}))
    one = driven()
    one.track()
    waits = one.settle() or [0.0]
    assert len(waits) == 1 and least <= waits[0] <= most
    assert len(letter_api.requests) == 2 and letter_api.distinct == 1
    assert one.letter.stats()["retried"] == 1 and errors == []


def test_the_waits_double_and_end_after_max_retries(
    letter_api: IngestionServer, driven: Any, errors: list[LetterError]
) -> None:
    letter_api.plan(*[status(503, b'{"error": {"code": "busy", "message": "Later.", "reason": "load"}}')] * 5)
    one = driven(max_retries=4)
    one.track(2)
    waits = one.settle()
    assert len(waits) == 4
    for wait, bare in zip(waits, [0.25, 0.5, 1.0, 2.0]):
        assert bare <= wait <= bare * 1.25
    (error,) = errors
    assert str(error) == "2 events lost: the API answered 503: Later."
    assert (error.status, error.code, error.reason, error.cause) == (503, "busy", "load", "undeliverable")
    assert [event["properties"]["serial"] for event in error.events] == [0, 1]
    one.track()  # and the next one begins anew
    letter_api.plan(status(503))
    (wait,) = one.settle()
    assert 0.25 <= wait <= 0.3125
    assert letter_api.distinct == 1
    assert one.letter.stats()["retried"] == 9


@pytest.mark.parametrize("fault", [status(503), status(429), reset(), cut()], ids=["503", "429", "reset", "cut short"])
def test_max_retries_0_means_one_try(
    fault: Any, letter_api: IngestionServer, driven: Any, errors: list[LetterError]
) -> None:
    letter_api.plan(fault)
    one = driven(max_retries=0)
    one.track()
    assert one.settle() == []
    assert len(letter_api.requests) == 1
    assert one.letter.stats()["lost"] == {"undeliverable": 1} and one.letter.stats()["retried"] == 0
    assert len(errors) == 1


# What is not tried again.


@pytest.mark.parametrize("code", [400, 401, 403, 404, 405, 408, 409, 410, 422, 451])
def test_another_4xx_is_reported_at_once_with_all_that_was_said(
    code: int, letter_api: IngestionServer, driven: Any, errors: list[LetterError]
) -> None:
    body = json.dumps({"error": {"code": "bad_thing", "message": "Ünusable.", "reason": "because"}})
    letter_api.plan(status(code, body.encode()))
    one = driven()
    one.track(2)
    assert one.settle() == []
    assert len(letter_api.requests) == 1
    (error,) = errors
    assert (error.status, error.body, error.code, error.reason) == (code, body, "bad_thing", "because")
    assert error.cause == "rejected" and error.lost == 2
    assert error.events == letter_api.requests[0].json["batch"]
    assert one.letter.stats()["lost"] == {"rejected": 2}
    one.track()
    assert one.settle() == []
    assert letter_api.distinct == 1 and connections(letter_api) == 1


@pytest.mark.parametrize(
    "body, text",
    [
        (b"", ""),
        (b"<h1>No</h1>", "<h1>No</h1>"),
        (b'{"error": "no object"}', '{"error": "no object"}'),
        (b'{"error": {"code": 17}}', '{"error": {"code": 17}}'),
        (b"\xff\x00\xfe", "\ufffd\x00\ufffd"),
        (b"z" * 200_000, "z" * 65_536),
    ],
    ids=["none", "HTML", "a text", "a number", "not UTF-8", "long"],
)
def test_a_refusal_that_is_not_the_apis_own_is_reported_with_its_body(
    body: bytes, text: str, letter_api: IngestionServer, driven: Any, errors: list[LetterError]
) -> None:
    letter_api.plan(status(403, body))
    one = driven()
    one.track()
    assert one.settle() == []
    (error,) = errors
    assert (error.status, error.body, error.code, error.reason) == (403, text, None, None)
    assert "403" in str(error) and len(str(error)) < 300


def test_a_wrong_key_is_reported_and_never_shown(make: Any, errors: list[LetterError]) -> None:
    with IngestionServer(api_key="right") as api:
        letter = make(base_url=api.url, api_key="wrong-and-secret")
        letter.track("u", "E")
        assert letter.flush() is True
        assert api.events == []
    (error,) = errors
    assert (error.status, error.code) == (401, "invalid")
    assert "wrong-and-secret" not in str(error) + repr(error) + repr(error.events)


@pytest.mark.parametrize("code", [300, 301, 302, 303, 304, 307, 308])
def test_a_redirect_is_never_followed_and_the_error_says_where_it_led(
    code: int, letter_api: IngestionServer, driven: Any, errors: list[LetterError]
) -> None:
    with IngestionServer() as other:
        location = f"{other.url}/v1/batch"
        letter_api.plan(status(code, b"" if code == 304 else b"moved", {"Location": location}))
        one = driven()
        one.track()
        assert one.settle() == []
        assert other.requests == []  # the key has not travelled there
    (error,) = errors
    assert error.status == code and error.cause == "rejected" and error.lost == 1
    assert location in str(error) and "redirect" in str(error)
    assert len(letter_api.requests) == 1


def test_a_redirect_is_not_followed_by_send_either(letter_api: IngestionServer, make: Any) -> None:
    with IngestionServer() as other:
        letter_api.plan(status(307, b"", {"Location": f"{other.url}/v1/send"}))
        with pytest.raises(LetterError, match="redirect") as caught:
            make().send("a@b.example", "Hello", text="x", idempotency_key="k")
        assert caught.value.status == 307
        assert other.requests == []


@pytest.mark.parametrize("code", [200, 201, 202, 204, 206, 299])
@pytest.mark.parametrize("body", [b"", b"{}", b"<html>", b"\xff\xfe", b'{"error": {"code": "x"}}', b"z" * 70_000])
def test_any_2xx_is_success_whatever_its_body(
    code: int, body: bytes, letter_api: IngestionServer, driven: Any, errors: list[LetterError]
) -> None:
    letter_api.plan(status(code, b"" if code == 204 else body, stored=True))
    one = driven(max_retries=0)
    one.track()
    assert one.settle() == []
    assert one.letter.stats()["delivered"] == 1 and len(letter_api.requests) == 1 and errors == []


# 413.


def test_a_413_is_split_down_to_single_events_and_the_order_kept(
    letter_api: IngestionServer, driven: Any, errors: list[LetterError]
) -> None:
    letter_api.rule = lambda request: status(413) if len(request.json["batch"]) > 1 else None
    one = driven(max_retries=0)
    one.track(13)
    assert one.settle() == []
    assert [item["properties"]["serial"] for item in letter_api.events] == list(range(13))
    assert letter_api.repeated() == {} and errors == []
    stats = one.letter.stats()
    assert (stats["delivered"], stats["retried"], stats["waiting"]) == (13, 0, 0)


def test_one_event_over_the_servers_limit_is_given_up_alone_and_named(errors: list[LetterError], driven: Any) -> None:
    with IngestionServer(max_body=1000) as api:
        one = driven(api.url)
        for serial in range(9):
            one.letter.track("u", "E", {"serial": serial, "text": "x" * (2000 if serial == 4 else 10)})
        assert one.settle() == []
        assert [item["properties"]["serial"] for item in api.events] == [0, 1, 2, 3, 5, 6, 7, 8]
        (error,) = errors
        assert error.status == 413 and error.cause == "rejected" and error.lost == 1
        assert [event["properties"]["serial"] for event in error.events] == [4]
        one.track()
        assert one.settle() == []
        assert one.letter.stats()["lost"] == {"rejected": 1}


def test_a_split_batch_has_all_its_tries_again(
    letter_api: IngestionServer, driven: Any, errors: list[LetterError]
) -> None:
    letter_api.plan(status(503), status(413), status(503), PROPER, status(503), PROPER)
    one = driven(max_retries=1)
    one.track(2)
    assert len(one.settle()) == 3
    assert [len(request.json["batch"]) for request in letter_api.requests] == [2, 2, 1, 1, 1, 1]
    assert errors == [] and one.letter.stats()["delivered"] == 2


def test_the_second_half_of_a_split_batch_does_not_wait_for_company_again(
    letter_api: IngestionServer, make: Any, errors: list[LetterError]
) -> None:
    letter_api.plan(status(413))
    letter = make(flush_at=8, flush_interval=600)
    for serial in range(8):
        letter.track("u", "E", {"serial": serial})
    assert letter_api.wait_for(8, 10)  # nobody calls flush
    assert [item["properties"]["serial"] for item in letter_api.events] == list(range(8))
    assert errors == []


class Hasty:
    """A server that answers 413 to every long body when it has read the headers, and closes on the rest of it."""

    def __init__(self, longest: int) -> None:
        self.kept: list[int] = []
        self._longest = longest
        self._listener = socket.socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # so the client cannot be done before
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(16)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            with sock:
                while self._answer(sock):
                    pass

    def _answer(self, sock: socket.socket) -> bool:
        data = b""
        while b"\r\n\r\n" not in data:
            piece = sock.recv(1024)
            if not piece:
                return False
            data += piece
        head, body = data.split(b"\r\n\r\n", 1)
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        if length > self._longest:
            sock.sendall(b"HTTP/1.1 413 Too Large\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
            return False
        while len(body) < length:
            body += sock.recv(65536)
        self.kept += [item["properties"]["serial"] for item in json.loads(body)["batch"]]
        sock.sendall(KEEP_ALIVE_200)
        return True

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


def test_a_413_from_a_server_that_does_not_read_the_rest_is_heard(driven: Any, errors: list[LetterError]) -> None:
    # What stands unread in the server's buffer makes its close a reset, and the client's writing fails. The answer
    # has come before that.
    api = Hasty(3_000_000)
    try:
        one = driven(api.url, max_batch_bytes=20_000_000, max_queue_bytes=40_000_000, timeout=DEADLINE)
        for serial in range(8):
            one.letter.track("u", "E", {"serial": serial, "text": "x" * 1_000_000})
        assert one.settle() == []
    finally:
        api.close()
    assert errors == []
    assert api.kept == list(range(8))


# Waits and ends.


def is_between_tries(letter: Letter) -> Any:
    """True once the sender has noted when the next try is, which it does after it has counted the retry."""
    return eventually(lambda: letter._delivery._not_before, bool)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "fault", [status(429, headers={"Retry-After": "300"}), status(503)], ids=["Retry-After", "back-off"]
)
def test_close_cuts_a_wait_between_two_tries_short(
    fault: Any, letter_api: IngestionServer, make: Any, errors: list[LetterError], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("letterapp._retry.BACKOFF", 20.0)
    letter_api.plan(fault)
    letter = make(flush_at=1)
    letter.track("u", "E")
    assert is_between_tries(letter)
    assert letter.close(15) is True
    assert letter_api.distinct == 1 and len(letter_api.requests) == 2 and errors == []


def test_flush_respects_a_wait_between_two_tries(letter_api: IngestionServer, make: Any) -> None:
    letter_api.plan(status(429, headers={"Retry-After": "300"}))
    letter = make(flush_at=1)
    letter.track("u", "E")
    assert is_between_tries(letter)
    assert letter.flush(0.05) is False
    assert len(letter_api.requests) == 1
    assert letter.stats()["waiting"] == 1


def test_close_reports_what_is_left_when_its_time_is_over(
    letter_api: IngestionServer, make: Any, errors: list[LetterError]
) -> None:
    hold = Hold()
    letter_api.plan(hold)
    letter = make(flush_at=1)
    letter.track("u", "On the wire")
    assert hold.arrived.wait(DEADLINE)
    letter.track("u", "Behind it")
    assert letter.close(0.05) is False
    hold.release()
    (error,) = errors
    assert error.cause == "closed" and error.lost == 2 and "0.05 s" in str(error)
    assert [event["event"] for event in error.events] == ["On the wire", "Behind it"]
    stats = letter.stats()
    assert stats["lost"] == {"closed": 2} and stats["accepted"] == 2 and stats["waiting"] == 0
    assert letter.close() is True  # nothing is left to settle


def test_close_with_no_time_at_all_reports_at_once(
    letter_api: IngestionServer, make: Any, errors: list[LetterError]
) -> None:
    letter_api.plan(status(503))
    letter = make(flush_at=1)
    letter.track("u", "E")
    assert is_between_tries(letter)
    letter.close(0)
    delivered = letter.stats()["delivered"]
    assert letter.stats()["waiting"] == 0
    assert len(errors) == 1 - delivered


def test_the_sender_goes_on_after_every_kind_of_failure(
    letter_api: IngestionServer, make: Any, errors: list[LetterError]
) -> None:
    letter_api.plan(
        reset(),
        status(400),
        status(503),
        raw(b"garbage\r\n\r\n"),
        status(302),
        cut(),
        status(413),
        status(401),
        stall(0),
    )
    letter = make(max_retries=0)
    for serial in range(9):
        letter.track("u", "E", {"serial": serial})
        assert letter.flush() is True
    assert [error.events[0]["properties"]["serial"] for error in errors] == list(range(8))
    assert [item["properties"]["serial"] for item in letter_api.events] == [8]
    stats = letter.stats()
    assert stats["accepted"] == 9 and stats["delivered"] == 1 and sum(stats["lost"].values()) == 8


# Reports.


def test_on_error_may_track(letter_api: IngestionServer, make: Any) -> None:
    letter_api.plan(status(400))
    letter: Any = make(on_error=lambda error: letter.track("u", "Reported", {"lost": error.lost}))
    letter.track("u", "E")
    assert letter_api.wait_for(1)
    assert [(item["event"], item["properties"]) for item in letter_api.events] == [("Reported", {"lost": 1})]


def test_flush_in_on_error_on_the_senders_thread_returns_at_once(letter_api: IngestionServer, make: Any) -> None:
    # With more events behind it, which only the thread that asks can send.
    answers: list[bool] = []
    hold = Hold(status(400))
    letter_api.plan(hold)
    letter: Any = make(flush_at=1, on_error=lambda error: answers.append(letter.flush(600)))
    letter.track("u", "Refused")
    assert hold.arrived.wait(DEADLINE)
    letter.track("u", "Behind it")
    hold.release()
    assert letter.flush(DEADLINE) is True
    assert answers == [False]
    assert [item["event"] for item in letter_api.events] == ["Behind it"]


def test_on_error_may_close_and_what_was_accepted_still_goes_out(letter_api: IngestionServer, make: Any) -> None:
    answers: list[bool] = []
    hold = Hold(status(400))
    letter_api.plan(hold)
    letter: Any = make(flush_at=1, on_error=lambda error: answers.append(letter.close(600)) if not answers else None)
    letter.track("u", "Refused")
    assert hold.arrived.wait(DEADLINE)
    letter.track("u", "Behind it")
    hold.release()
    assert letter_api.wait_for(1)
    assert letter.close(DEADLINE) is True
    assert answers == [False]
    assert [item["event"] for item in letter_api.events] == ["Behind it"]
    letter.track("u", "Too late")
    assert letter.stats()["lost"] == {"rejected": 1, "closed": 1}


@pytest.mark.parametrize("failure", [ValueError("mine"), LetterError("mine"), RecursionError("mine")])
def test_an_on_error_that_raises_is_reported_and_the_sender_goes_on(
    failure: Exception, letter_api: IngestionServer, make: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    def on_error(error: LetterError) -> None:
        raise failure

    letter_api.plan(status(400))
    letter = make(on_error=on_error)
    for _ in range(2):
        letter.track("u", "E")
        assert letter.flush() is True
    assert letter_api.distinct == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "on_error raised" in line and "mine" in line and "400" in line


@pytest.mark.parametrize(
    "body",
    [b"", b"one", b"two\nlines", b"two\r\nlines", b"a\rb\x0bc\x0cd", "a\u2028b\u0085c".encode(), b"\x1b[31mred\x1b[0m"],
)
def test_a_failure_is_one_line_on_stderr_by_default(
    body: bytes, letter_api: IngestionServer, make: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    letter_api.plan(status(400, body))
    letter = make(on_error=None)
    letter.track("u", "E")
    assert letter.flush() is True
    text = capsys.readouterr().err
    (line,) = text.splitlines()
    assert text.endswith("\n")
    assert line.startswith("letterapp: 1 event lost: the API answered 400: ")
    assert line.isprintable(), "an answer must not be able to steer a terminal"


def test_a_closed_or_missing_stderr_costs_nothing(
    letter_api: IngestionServer, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    letter = make(on_error=None)
    for stream in (None, object()):
        monkeypatch.setattr("sys.stderr", stream)
        letter_api.plan(status(400))
        letter.track("u", "E")
        assert letter.flush() is True
    letter.track("u", "E")
    assert letter.flush() is True
    assert letter_api.distinct == 1


def test_on_error_runs_while_every_other_thread_can_go_on(letter_api: IngestionServer, make: Any) -> None:
    inside, leave = threading.Event(), threading.Event()

    def on_error(error: LetterError) -> None:
        inside.set()
        leave.wait(DEADLINE)

    letter_api.plan(status(400))
    letter = make(flush_at=1, on_error=on_error)
    letter.track("u", "Refused")
    assert inside.wait(DEADLINE)
    for _ in range(1000):
        letter.track("u", "E")
    assert letter.stats()["waiting"] == 1000
    assert "waiting=1,000" in repr(letter)
    assert letter.flush(0) is False
    leave.set()
    assert letter.flush(DEADLINE) is True
    assert letter_api.distinct == 1000


# Imports.

HEAVY = ["ssl", "http.client", "urllib.request", "json", "multiprocessing", "logging", "asyncio", "uuid"]


@pytest.mark.parametrize(
    "code, heavy",
    [
        ("import letterapp", HEAVY),
        (
            "import letterapp; letter = letterapp.Letter('k', API, flush_interval=600, flush_at=1000)\n"
            "letter.track('u', 'E', {'a': [1, 2.5, None, True, 'x']}); letter.identify('u'); letter.group('u', 'a')\n"
            "assert letter.stats()['waiting'] == 3",
            ["ssl", "http.client", "urllib.request"],
        ),
    ],
    ids=["the package", "a client that has sent nothing yet"],
)
def test_nothing_heavy_is_imported_by(code: str, heavy: list[str], letter_api: IngestionServer, tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(
        f"import os, sys\nbefore = set(sys.modules)\nAPI = os.environ['TEST_API']\n{code}\n"
        f"print(sorted(set({heavy!r}) & (set(sys.modules) - before)), flush=True)\n"
    )
    with Program([sys.executable, str(script)], environment(letter_api.url), tmp_path) as program:
        finished = program.finish()
    assert (finished.code, finished.output) == (0, "[]\n"), finished


def test_a_reset_with_nothing_lingering_is_what_the_server_sends(letter_api: IngestionServer) -> None:
    # The test of a fault: `reset` must be a reset, or the tests above would prove less than they say.
    letter_api.plan(reset())
    with socket.create_connection(("127.0.0.1", letter_api.port), DEADLINE) as sock:
        sock.sendall(b"POST /v1/batch HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}")
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
