"""The inbox as an application and a script see it: the ingestion API, and the JSON API."""

from __future__ import annotations

import gzip
import json
import threading
import time
import uuid
from typing import Any

import pytest
from harness import DEADLINE
from inboxes import KEY, Inbox, item

from letterapp import Letter, LetterError


def test_a_client_needs_only_the_url_and_a_key(inbox: Inbox, letter: Letter, errors: list[LetterError]) -> None:
    letter.identify("u1", email="ada@example.com", traits={"plan": "pro"}, timezone="Europe/London")
    letter.group("u1", "acme", name="Acme Inc.", traits={"seats": 3})
    letter.track("u1", "Order Completed", {"amount": 99.5})
    assert letter.flush(DEADLINE) and errors == []
    assert inbox.names() == ["Order Completed", "acme", "ada@example.com"]
    event = inbox.get("/api/events", event="Order Completed")
    assert event["item"]["properties"] == {"amount": 99.5} and event["user"] == "u1" and event["deliveries"] == 1
    (request,) = event["requests"]
    assert request["items"] == 3 and request["attempt"] == 1 and request["status"] == 200
    assert request["headers"]["user-agent"].startswith("letterapp-python/")
    assert "lt_test_local" not in json.dumps(event)


def test_send_answers_as_the_api_does_and_replays_an_idempotency_key(inbox: Inbox, letter: Letter) -> None:
    mail: dict[str, Any] = {"to": "a@example.com", "subject": "Hi", "html": "<b>x</b>", "headers": {"X-A": "1"}}
    first = letter.send(**mail, idempotency_key="k1")
    again = letter.send(**mail, idempotency_key="k1")
    other = letter.send(**mail)
    assert first["status"] == "sent" and not first["replayed"] and again["replayed"] and not other["replayed"]
    assert first["id"] == again["id"] != other["id"] and first["messageId"] == again["messageId"]
    events = inbox.get("/api/list", type="send", whole=1)["events"]
    assert [event["deliveries"] for event in events] == [1, 2]
    assert events[1]["user"] == "a@example.com" and events[1]["item"]["headers"] == {"X-A": "1"}


@pytest.mark.parametrize(
    "body, status, reason",
    [
        (b"{", 400, "not_json"),
        (b'{"batch": [NaN]}', 400, "not_json"),
        (b'{"batch": [1e999]}', 400, "not_json"),
        (b'{"batch": [' + b"9" * 5000 + b"]}", 400, "not_json"),
        (b"[" * 100_000, 400, "not_json"),
        (b"\xff", 400, "not_json"),
        ({"batch": []}, 422, "batch_size"),
        ({"batch": [item() for _ in range(101)]}, 422, "batch_size"),
        ({"batch": [item()], "more": 1}, 422, "unknown_field"),
        ([], 422, "batch"),
        ({"batch": [item(type="page")]}, 422, "type"),
        ({"batch": [item(type=[])]}, 422, "type"),
        ({"batch": [item(userId="")]}, 422, "wrong_type"),
        ({"batch": [item(event=None)]}, 422, "wrong_type"),
        ({"batch": [item(properties=[])]}, 422, "wrong_type"),
        ({"batch": [item("identify", email=5)]}, 422, "wrong_type"),
        ({"batch": [{"type": "track", "userId": "u"}]}, 422, "missing_field"),
        ({"batch": [item(), 5]}, 422, "wrong_type"),
    ],
)
def test_an_invalid_batch_is_refused_with_the_api_s_error(body: Any, status: int, reason: str, inbox: Inbox) -> None:
    code, said = inbox.post("/v1/batch", body)
    assert (code, said["error"]["reason"]) == (status, reason) and set(said["error"]) == {"code", "message", "reason"}
    assert inbox.names() == [] and inbox.get("/api/requests")["requests"][0]["status"] == status


@pytest.mark.parametrize(
    "mail, reason",
    [
        ({"subject": "S", "text": "T"}, "missing_field"),
        ({"to": [], "subject": "S", "text": "T"}, "missing_field"),
        ({"to": "a@b", "text": "T"}, "missing_field"),
        ({"to": "a@b", "subject": "S"}, "missing_field"),
        ({"to": "a@b", "subject": "S", "text": "T", "headers": []}, "wrong_type"),
        ([], "body"),
    ],
)
def test_an_invalid_email_is_refused(mail: Any, reason: str, inbox: Inbox) -> None:
    code, said = inbox.post("/v1/send", mail)
    assert (code, said["error"]["reason"]) == (422, reason) and inbox.names() == []


@pytest.mark.parametrize("key", ["", "Bearer", "Bearer  ", "Basic abc"])
def test_a_request_without_a_key_is_refused(key: str, inbox: Inbox) -> None:
    code, said = inbox.post("/v1/batch", {"batch": [item()]}, Authorization=key)
    assert code == 401 and said["error"]["code"] == "unauthorized" and inbox.names() == []


def test_other_paths_and_methods_say_what_there_is(inbox: Inbox) -> None:
    assert inbox.request("GET", "/v1/batch")[0] == 405
    assert inbox.request("POST", "/v1/other", b"{}", KEY)[0] == 404
    status, said, _ = inbox.request("PUT", "/api/events")
    assert status == 405 and "DELETE or GET" in said["error"]["message"]


def test_an_event_counts_once_however_often_it_is_delivered(inbox: Inbox) -> None:
    event = item(event="Twice")
    inbox.track(event, item(event="Once"))
    inbox.track(event)
    stats = inbox.get("/api/stats")
    assert stats["events"] == 2 and stats["again"] == 1
    assert inbox.names(again=1) == ["Twice"]
    seen = inbox.get("/api/events", event="Twice")
    assert seen["deliveries"] == 2 and [request["attempt"] for request in seen["requests"]] == [1, 2]
    assert [request["items"] for request in seen["requests"]] == [2, 1]


@pytest.mark.parametrize(
    "text", ["\ud800", "a\x00b", "\u202e", "x" * 10_000, "'; DROP TABLE events; --", "%_\\", "é", "🦆"]
)
def test_any_text_is_stored_found_and_returned_as_it_was(text: str, inbox: Inbox) -> None:
    inbox.track(item(event=text, userId=text, messageId=text, properties={text: text}), item(event="other"))
    (row,) = [row for row in inbox.get("/api/list")["events"] if row["name"] != "other"]
    assert inbox.get(f"/api/events/{row['seq']}")["item"]["properties"] == {text: text}
    if text.isprintable():
        for name in ("user", "event", "q", "user_prefix"):
            found = inbox.get("/api/list", **{name: text[:300] if name in ("q", "user_prefix") else text})
            assert [each["seq"] for each in found["events"]] == [row["seq"]], name


def test_gzip_is_accepted(inbox: Inbox) -> None:
    body = gzip.compress(json.dumps({"batch": [item(event="Packed")]}).encode())
    assert inbox.post("/v1/batch", body, **{"Content-Encoding": "gzip"})[0] == 200
    assert inbox.names() == ["Packed"]


# Filters.


def test_filters_are_combined(inbox: Inbox) -> None:
    inbox.track(
        item(event="A", user="u1", properties={"path": "/pricing", "n": 5}),
        item(event="A", user="u2", properties={"say": 'x "y": z'}),
        item(event="B", user="u1"),
        item("identify", user="u10", email="a@example.com"),
    )
    assert inbox.names(event="A") == ["A", "A"]
    assert inbox.names(event="A", user="u1") == ["A"]
    assert inbox.names(user="u1") == ["B", "A"]
    assert inbox.names(user_prefix="u1") == ["a@example.com", "B", "A"]
    assert inbox.names(type="identify") == ["a@example.com"]
    assert inbox.names(q="PRICING") == ["A"] and inbox.names(q='"n": 5') == ["A"] and inbox.names(q='x "y": z') == ["A"]
    assert inbox.names(q="nothing") == [] and inbox.names(process="nobody") == []
    assert inbox.get("/api/count", event="A")["count"] == 2 and inbox.get("/api/count")["count"] == 4
    assert inbox.names(limit=2, offset=1) == ["B", "A"]


@pytest.mark.parametrize(
    "query", ["user_id=x", "after=yesterday", "limit=-1", "limit=1001", "offset=x", "upto=%C2%B2", "wait=1"]
)
def test_a_parameter_that_is_wrong_is_refused_rather_than_ignored(query: str, inbox: Inbox) -> None:
    status, said, _ = inbox.request("GET", f"/api/list?{query}")
    assert status == 400 and said["error"]["reason"] == "parameter"


def test_events_are_found_by_the_process_that_sent_them(inbox: Inbox, letter: Letter) -> None:
    import os
    import sys

    if sys.platform != "linux":
        pytest.skip("the sender is known on Linux only")
    letter.track("u", "Mine")
    assert letter.flush(DEADLINE)
    event = inbox.get("/api/events", event="Mine")
    assert event["pid"] == os.getpid() and event["process"]
    assert inbox.names(pid=os.getpid()) == inbox.names(process=event["process"]) == ["Mine"]
    assert inbox.get("/api/stats")["processes"][0] == {"pid": os.getpid(), "process": event["process"], "count": 1}


# The latest match, for tests in any language.


def test_the_latest_match_comes_whole_in_one_call(inbox: Inbox) -> None:
    inbox.track(item(event="A", properties={"n": 1}), item(event="A", properties={"n": 2}), item(event="B"))
    event = inbox.get("/api/events", event="A")
    assert event["item"]["properties"] == {"n": 2}
    assert inbox.get("/api/events", user="u1")["name"] == "B"
    earlier = inbox.get("/api/events", event="A", upto=event["seq"] - 1)
    assert earlier["item"]["properties"] == {"n": 1}


def test_no_match_says_what_is_there(inbox: Inbox) -> None:
    inbox.track(item(event="Order Started"))
    status, said, _ = inbox.request("GET", "/api/events?event=Order+Completed")
    assert status == 404 and "'Order Completed'" in said["error"]["message"]
    assert "'Order Started' (1)" in said["error"]["message"]


def test_a_call_waits_for_an_event_that_comes_later(inbox: Inbox) -> None:
    inbox.track(item(event="Before"))
    seq = inbox.get("/api/stats")["last"]
    found: list[Any] = []
    waiting = threading.Thread(
        target=lambda: found.append(inbox.get("/api/events", event="Before", user="u2", after=seq, wait=DEADLINE))
    )
    waiting.start()
    try:
        inbox.track(item(event="Other"))
        inbox.track(item(event="Before", user="u3"))
        inbox.track(item(event="Before", user="u2", properties={"n": 7}))
    finally:
        waiting.join(DEADLINE)
    assert found[0]["item"]["properties"] == {"n": 7}


def test_a_call_waits_no_longer_than_it_should(inbox: Inbox) -> None:
    started = time.monotonic()
    assert inbox.request("GET", "/api/events?event=Never&wait=0.3")[0] == 404
    assert 0.25 < time.monotonic() - started < DEADLINE / 2


def test_after_takes_a_time_as_well(inbox: Inbox) -> None:
    inbox.track(item(event="A"))
    received = inbox.get("/api/events", event="A")["received"]
    assert inbox.names(after="2026-01-01T00:00:00Z") == ["A"] and inbox.names(after="2026-01-01") == ["A"]
    assert inbox.names(after="2999-01-01T00:00:00+01:00") == []
    assert received.endswith("Z")


def test_delete_removes_everything_and_later_numbers_are_higher(inbox: Inbox) -> None:
    inbox.track(item(event="A"), item(event="B"))
    before = inbox.get("/api/stats")["last"]
    assert inbox.request("DELETE", "/api/events")[1] == {"removed": 2}
    stats = inbox.get("/api/stats")
    assert stats["events"] == stats["requests"] == stats["bytes"] == 0 and inbox.names() == []
    inbox.track(item(event="C"))
    assert inbox.names(after=before) == ["C"]


# A person.


def test_a_person_has_the_traits_that_result_from_all_calls(inbox: Inbox) -> None:
    inbox.track(
        item("identify", email="old@example.com", traits={"plan": "free", "age": 5}),
        item("group", accountId="acme", name="Acme", traits={"seats": 1}),
        item(event="A"),
        item("identify", email="new@example.com", traits={"plan": "pro"}, timezone="Europe/London"),
        item("group", accountId="acme", traits={"seats": 2}),
        item("group", accountId="other"),
        item("identify", user="u2", traits={"plan": "none"}),
    )
    person = inbox.get("/api/person", user="u1")
    assert person["traits"] == {"plan": "pro", "age": 5}
    assert person["email"] == "new@example.com" and person["timezone"] == "Europe/London"
    assert person["accounts"][0] == {"account": "acme", "name": "Acme", "traits": {"seats": 2}}
    assert person["counts"] == {"identify": 2, "group": 3, "track": 1}
    people = inbox.get("/api/people")["people"]
    assert [(one["user"], one["events"]) for one in people] == [("u2", 1), ("u1", 6)]
    assert inbox.get("/api/people", start="u2")["people"] == people[:1]


def test_a_thousand_distinct_events_can_be_read_in_pages(inbox: Inbox) -> None:
    for start in range(0, 1000, 100):
        inbox.track(*(item(event=f"E{number}", messageId=str(uuid.uuid4())) for number in range(start, start + 100)))
    first = inbox.get("/api/list", limit=300)
    inbox.track(item(event="later"))
    rest = [inbox.names(limit=300, offset=offset, upto=first["upto"]) for offset in (300, 600, 900)]
    names = [event["name"] for event in first["events"]] + [name for page in rest for name in page]
    assert names == [f"E{number}" for number in reversed(range(1000))]
