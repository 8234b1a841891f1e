"""What is retried and when, and what a `close` or the end of the process changes.

Where a wait has a length that matters, the test takes the sender's turns itself and sets the clock (`driven`): nothing
is slept through.
"""

from __future__ import annotations

import time
from email.utils import formatdate
from typing import Any, Callable

import pytest
from driven import connections
from harness import DEADLINE, eventually

from letterapp import Letter, LetterError
from letterapp.testing import Fault, Hold, IngestionServer, cut, endless, raw, reset, stall, status
from stress.ports import free_port


def closing_503(stored: bool) -> Any:
    """Answer 503 and close, which the answer does not announce."""

    def answer(handler: Any) -> None:
        if stored:
            handler.keep()
        handler.answer(503)
        handler.hang_up()

    return answer


PASSING: dict[str, Callable[[bool], Fault]] = {
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
def test_the_same_events_are_sent_again_after(
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
        (lambda: endless(b"HTTP/1.1 100 Continue\r\n\r\n", head=b"", every=0.05), "no answer within 0.3 s"),
        (lambda: endless(b"H", head=b"", every=0.01), "no answer within 0.3 s"),
    ],
    ids=["silent", "body trickles", "headers trickle", "endless interim responses", "status line trickles"],
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


def test_an_event_that_was_stored_after_the_clients_timeout_arrives_twice(
    letter_api: IngestionServer, driven: Any
) -> None:
    hold = Hold()
    letter_api.plan(hold)
    one = driven(timeout=0.3)
    one.track()
    assert one.settle()
    hold.release()
    assert letter_api.wait_until(lambda: len(letter_api.events) >= 2, DEADLINE)
    assert len(letter_api.repeated()) == 1


def test_an_endless_body_is_read_up_to_64_kib(
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
    port = free_port()
    one = driven(f"http://127.0.0.1:{port}")
    one.track()
    assert one.sender._batches.send_once() == 0.0
    assert 0.25 <= one.sender._batches.send_once() <= 0.3125
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
def test_an_unreachable_api_is_reported(url: str, driven: Any, errors: list[LetterError]) -> None:
    one = driven(url, max_retries=2)
    one.track(5)
    waits = one.settle()
    assert len(waits) == 2 and 0.5 <= waits[1] <= 0.625
    (error,) = [error for error in errors if error.cause != "degraded"]  # which is for the key in clear text
    assert str(error).startswith("5 events lost: the API could not be reached: ")
    assert (error.status, error.body, error.code, error.reason) == (None, None, None, None)
    assert error.cause == "undeliverable" and len(error.events) == error.lost == 5
    assert one.letter.stats()["lost"] == {"undeliverable": 5}


@pytest.mark.parametrize(
    "header, least, most",
    [
        (None, 1.0, 1.25),
        ("7", 7.0, 8.75),
        ("0", 0.25, 0.3125),  # never sooner than the back-off
        ("0.5", 0.5, 0.625),
        ("", 1.0, 1.25),
        ("\x0c", 1.0, 1.25),
        ("soon", 1.0, 1.25),
        ("Nov Tue, , Tue,", 1.0, 1.25),
        ("nan", 1.0, 1.25),
        ("-1", 0.25, 0.3125),
        ("inf", 300.0, 375.0),
        ("1000000000000", 300.0, 375.0),
        ("9" * 5000, 300.0, 375.0),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0.25, 0.3125),
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


# Waits and ends.


def is_between_tries(letter: Letter) -> Any:
    """True once the sender has noted when the next try is, which it does after it has counted the retry."""
    return eventually(lambda: letter._delivery._batches._in_flight.not_before, bool)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "fault", [status(429, headers={"Retry-After": "300"}), status(503)], ids=["Retry-After", "back-off"]
)
def test_close_cuts_the_back_off_short(
    fault: Any, letter_api: IngestionServer, make: Any, errors: list[LetterError], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("letterapp._delivery.retry.BACKOFF", 20.0)
    letter_api.plan(fault)
    letter = make(flush_at=1)
    letter.track("u", "E")
    assert is_between_tries(letter)
    assert letter.close(15) is True
    assert letter_api.distinct == 1 and len(letter_api.requests) == 2 and errors == []


def test_an_end_during_a_request_cuts_the_back_off_after_it_short(
    letter_api: IngestionServer, driven: Any, errors: list[LetterError]
) -> None:
    one = driven(max_retries=1)

    def ends_meanwhile(handler: Any) -> None:
        one.sender.begin_shutdown()
        status(429, headers={"Retry-After": "300"})(handler)

    letter_api.plan(ends_meanwhile, status(503))  # the try that was brought forward does not count, the next one does
    one.track()
    (wait,) = one.settle()
    assert 0.25 <= wait <= 0.3125
    assert len(letter_api.requests) == 3 and letter_api.distinct == 1 and errors == []


def test_flush_respects_the_back_off(letter_api: IngestionServer, make: Any) -> None:
    letter_api.plan(status(429, headers={"Retry-After": "300"}))
    letter = make(flush_at=1)
    letter.track("u", "E")
    assert is_between_tries(letter)
    assert letter.flush(0.05) is False
    assert len(letter_api.requests) == 1
    assert letter.stats()["waiting"] == 1


def test_close_reports_the_rest_at_its_timeout(
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
    assert letter.close() is False  # they were not delivered, nor will they be


def test_close_with_timeout_0_reports_at_once(
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


def test_the_sender_continues_after_every_kind_of_failure(
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
