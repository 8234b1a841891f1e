"""Responses that are not retried: refusals, redirects, and a 413, after which the batch is split."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest
from driven import connections
from harness import DEADLINE, run
from programs import reports
from raw_server import RawServer, head_of

from letterapp import LetterError
from letterapp.testing import IngestionServer, status

PROPER = status(200, stored=True)
KEEP_ALIVE_200 = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


# (A 400 or 422 for several may mean one of them: test_bad_events.py.)
@pytest.mark.parametrize(
    "code, events", [(400, 1), (422, 1), (401, 2), (403, 2), (404, 2), (405, 2), (409, 2), (410, 2), (451, 2)]
)
def test_another_4xx_is_reported_at_once_with_the_whole_response(
    code: int, events: int, letter_api: IngestionServer, driven: Any, errors: list[LetterError]
) -> None:
    body = json.dumps({"error": {"code": "bad_thing", "message": "Ünusable.", "reason": "because"}})
    letter_api.plan(status(code, body.encode()))
    one = driven()
    one.track(events)
    assert one.settle() == []
    assert len(letter_api.requests) == 1
    (error,) = errors
    assert (error.status, error.body, error.code, error.reason) == (code, body, "bad_thing", "because")
    assert error.cause == "rejected" and error.lost == events
    assert error.events == letter_api.requests[0].json["batch"]
    assert one.letter.stats()["lost"] == {"rejected": events}
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
    assert "answered 403" in str(error) and len(str(error)) < 300


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


def test_the_second_half_of_a_split_batch_does_not_wait_for_more_events(
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

    def __call__(self, sock: socket.socket) -> None:
        while self._answer(sock):
            pass

    def _answer(self, sock: socket.socket) -> bool:
        head, body = head_of(sock)
        if not head:
            return False
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        if length > self._longest:
            sock.sendall(b"HTTP/1.1 413 Too Large\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
            return False
        while len(body) < length:
            body += sock.recv(65536)
        self.kept += [item["properties"]["serial"] for item in json.loads(body)["batch"]]
        sock.sendall(KEEP_ALIVE_200)
        return True


def test_a_413_from_a_server_that_does_not_read_the_rest_is_received(driven: Any, errors: list[LetterError]) -> None:
    # What stands unread in the server's buffer makes its close a reset, and the client's writing fails. The answer
    # has come before that.
    hasty = Hasty(3_000_000)
    with RawServer(hasty, reads_head=False, buffer=4096) as api:  # so the client cannot be done before
        one = driven(api.url, max_batch_bytes=20_000_000, max_queue_bytes=40_000_000, timeout=DEADLINE)
        for serial in range(8):
            one.letter.track("u", "E", {"serial": serial, "text": "x" * 1_000_000})
        assert one.settle() == []
    assert errors == []
    assert hasty.kept == list(range(8))


@pytest.mark.parametrize("code", [401, 402, 403, 404, 405, 407, 301, 308])
def test_a_refusal_that_is_not_about_the_events_empties_no_spool_and_is_reported_once(
    code: int, letter_api: IngestionServer, driven: Any, errors: list[LetterError], tmp_path: Path
) -> None:
    body = b'{"error": {"code": "bad_key", "message": "No such key.", "reason": "revoked"}}'
    letter_api.rule = lambda request: status(code, body)
    one = driven(spool=tmp_path / "spool")
    one.track(300)
    waits = []
    for _ in range(14):
        assert one.sender._batches.send_once() == 0.0
        waits.append(one.sender._batches._in_flight.not_before - one.now)
        one.now += waits[-1]
    for wait, shortest in zip(waits, [min(300, 0.25 * 2**turn) for turn in range(14)]):
        assert shortest <= wait <= 1.25 * shortest, waits
    (error,) = errors
    assert (error.cause, error.lost, error.events, error.status) == ("degraded", 0, [], code)
    assert "are kept" in str(error) and (code < 400 or error.code == "bad_key")
    stats = one.letter.stats()
    assert (stats["waiting"], stats["lost"], stats["memory"]) == (300, {}, "spool")
    letter_api.rule = lambda request: None
    one.settle()
    assert one.letter.stats()["delivered"] == 300 and letter_api.distinct == 300 and len(errors) == 1
    letter_api.rule = lambda request: status(code, body)
    one.track()
    one.sender._batches.send_once()
    assert len(errors) == 2, "it is another trouble by now"


@pytest.mark.parametrize("code", [400, 409, 413, 422])
def test_a_refusal_of_an_event_removes_it_from_a_spool_too(
    code: int, letter_api: IngestionServer, driven: Any, errors: list[LetterError], tmp_path: Path
) -> None:
    letter_api.plan(status(code))
    one = driven(spool=tmp_path / "spool")
    one.track(1)
    assert one.settle() == [] and one.letter.stats()["lost"] == {"rejected": 1}


def test_close_returns_false_for_a_refused_key_and_the_next_start_sends_the_events(
    make: Any, letter_api: IngestionServer, errors: list[LetterError], tmp_path: Path
) -> None:
    letter_api.rule = lambda request: status(401)
    finished = run(reports.refused_key, letter_api.url, tmp_path, tmp_path / "spool")
    assert finished.output == "False False ['degraded'] {}\n", finished
    letter_api.rule = lambda request: None
    letter = make(spool=tmp_path / "spool")
    assert letter.flush(DEADLINE) and letter.stats()["delivered"] == 300 and errors == []
    assert [item["properties"]["serial"] for item in letter_api.events] == list(range(300))
