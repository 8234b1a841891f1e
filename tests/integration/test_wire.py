"""What is sent: items, headers, batches, order, timestamps and message ids."""

from __future__ import annotations

import json
import time
import uuid
from datetime import date, datetime, timedelta, timezone
from typing import Any, Callable, Iterator

import pytest
from harness import DEADLINE

import letterapp
from letterapp import LetterError
from letterapp.testing import Hold, raw, reset, status

GIVEN = {"timestamp": "2024-05-06T07:08:09Z", "message_id": "mine"}
STAMPED = {"timestamp": "2024-05-06T07:08:09Z", "messageId": "mine"}


def moment(text: str) -> datetime:
    """A timestamp of the wire; fails unless it is ISO 8601 in UTC to the microsecond."""
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=timezone.utc)


def sizes(api: Any) -> list[int]:
    return [len(request.json["batch"]) for request in api.requests]


@pytest.mark.parametrize(
    "call, arguments, item",
    [
        (
            "identify",
            {"user_id": "u"},
            {"type": "identify", "userId": "u", "traits": {}},
        ),
        (
            "identify",
            {"user_id": "u", "email": "a@b.example", "traits": {"plan": "pro"}, "timezone": "Europe/Rome"},
            {
                "type": "identify",
                "userId": "u",
                "email": "a@b.example",
                "traits": {"plan": "pro"},
                "timezone": "Europe/Rome",
            },
        ),
        (
            "group",
            {"user_id": "u", "account_id": "a"},
            {"type": "group", "userId": "u", "accountId": "a", "traits": {}},
        ),
        (
            "group",
            {"user_id": "u", "account_id": "a", "name": "Acme", "traits": {"seats": 5}},
            {"type": "group", "userId": "u", "accountId": "a", "name": "Acme", "traits": {"seats": 5}},
        ),
        (
            "track",
            {"user_id": "u", "event": "Order Completed"},
            {"type": "track", "userId": "u", "event": "Order Completed", "properties": {}},
        ),
        (
            "track",
            {
                "user_id": "u",
                "event": "Order Completed",
                "properties": {"total": 12.5, "items": [{"sku": None}], "new": True},
            },
            {
                "type": "track",
                "userId": "u",
                "event": "Order Completed",
                "properties": {"total": 12.5, "items": [{"sku": None}], "new": True},
            },
        ),
    ],
)
def test_an_item_has_exactly_these_fields(
    call: str, arguments: dict[str, Any], item: dict[str, Any], letter_api: Any, make: Any
) -> None:
    letter = make()
    getattr(letter, call)(**arguments, **GIVEN)
    assert letter.flush() is True
    assert letter_api.events == [{**item, **STAMPED}]


def test_the_arguments_may_be_given_by_position_as_documented(letter_api: Any, make: Any) -> None:
    letter = make()
    letter.identify("u", "a@b.example", {"x": 1}, "Asia/Tokyo", "t", "m1")
    letter.group("u", "a", "Acme", {"x": 1}, "t", "m2")
    letter.track("u", "E", {"x": 1}, "t", "m3")
    assert letter.flush() is True
    assert letter_api.events == [
        {
            "type": "identify",
            "userId": "u",
            "email": "a@b.example",
            "traits": {"x": 1},
            "timezone": "Asia/Tokyo",
            "timestamp": "t",
            "messageId": "m1",
        },
        {
            "type": "group",
            "userId": "u",
            "accountId": "a",
            "name": "Acme",
            "traits": {"x": 1},
            "timestamp": "t",
            "messageId": "m2",
        },
        {"type": "track", "userId": "u", "event": "E", "properties": {"x": 1}, "timestamp": "t", "messageId": "m3"},
    ]


def test_text_of_every_script_and_every_escape_arrives_unchanged(letter_api: Any, make: Any) -> None:
    texts = [
        "",
        "é",
        "漢字",
        "\U0001f600",
        '"',
        "\\",
        "\n\r\t\x00\x1f\x7f",
        "\u2028\u2029",
        "</script>",
        "\ufeff",
        "a" * 10_000,
    ]
    letter = make()
    for serial, text in enumerate(texts):
        letter.track(f"u{text}", f"E{text}", {f"k{text}": text, "serial": serial})
    assert letter.flush() is True
    assert [(item["userId"], item["event"], item["properties"]) for item in letter_api.events] == [
        (f"u{text}", f"E{text}", {f"k{text}": text, "serial": serial}) for serial, text in enumerate(texts)
    ]
    letter_api.requests[0].body.decode("utf-8")


def test_a_request_has_the_path_and_the_headers_of_the_api(letter_api: Any, make: Any) -> None:
    letter = make(api_key="sk_test-123")
    letter.track("u", "E")
    assert letter.flush() is True
    (request,) = letter_api.requests
    assert (request.method, request.path) == ("POST", "/v1/batch")
    assert request.headers["authorization"] == "Bearer sk_test-123"
    assert request.headers["content-type"] == "application/json"
    assert request.headers["user-agent"] == f"letterapp-python/{letterapp.__version__}"
    assert request.headers["host"] == f"127.0.0.1:{letter_api.port}"
    assert request.headers["content-length"] == str(len(request.body))
    assert "transfer-encoding" not in request.headers and "cookie" not in request.headers


@pytest.mark.parametrize("end", ["/prefix", "/prefix/", "/prefix//"])
def test_a_base_url_may_have_a_path(end: str, letter_api: Any, make: Any) -> None:
    letter = make(base_url=letter_api.url + end)
    letter.track("u", "E")
    assert letter.flush() is True
    letter.send("a@b.example", "Hello", text="x")
    assert [request.path for request in letter_api.requests] == ["/prefix/v1/batch", "/prefix/v1/send"]


def test_a_path_may_contain_percent_signs(letter_api: Any, make: Any) -> None:
    letter = make(base_url=f"{letter_api.url}/a%20b/100%25/%s%d")
    letter.track("u", "E")
    assert letter.close(DEADLINE)
    assert [request.path for request in letter_api.requests] == ["/a%20b/100%25/%s%d/v1/batch"]


@pytest.mark.parametrize(
    "events, batches",
    [(1, [1]), (99, [99]), (100, [100]), (101, [100, 1]), (250, [100, 100, 50])],
)
def test_a_request_carries_1_to_100_items(events: int, batches: list[int], letter_api: Any, make: Any) -> None:
    letter = make(flush_at=1000, flush_interval=600)
    for serial in range(events):
        letter.track("u", "E", {"serial": serial})
    assert letter.flush() is True
    assert sizes(letter_api) == batches
    assert [item["properties"]["serial"] for item in letter_api.events] == list(range(events))


def test_an_empty_queue_posts_nothing(letter_api: Any, make: Any) -> None:
    letter = make()
    assert letter.flush() is True
    assert letter.close() is True
    assert letter_api.requests == []


def test_a_batch_is_sent_when_flush_at_events_are_waiting(letter_api: Any, make: Any) -> None:
    letter = make(flush_at=7, flush_interval=600)
    for _ in range(6):
        letter.track("u", "E")
    assert letter_api.requests == []
    letter.track("u", "E")
    assert letter_api.wait_for(7)
    assert sizes(letter_api) == [7]


def test_events_queued_during_a_request_are_sent_as_one_batch(letter_api: Any, make: Any) -> None:
    hold = Hold()
    letter_api.plan(hold)
    letter = make(flush_at=1)
    letter.track("u", "First")
    assert hold.arrived.wait(DEADLINE)
    for _ in range(80):
        letter.track("u", "Later")
    hold.release()
    assert letter.flush() is True
    assert sizes(letter_api) == [1, 80]


# An event of a known length: its bytes on the wire with an empty filler, and what a request adds around a batch.
FRAME = len('{"batch":[]}')


def length(letter_api: Any, make: Any) -> int:
    letter = make()
    letter.track("u", "E", {"f": ""}, **GIVEN)
    assert letter.flush() is True
    size = len(letter_api.requests[0].body) - FRAME
    letter_api.requests.clear()
    return size


@pytest.mark.parametrize("spare, batches", [(0, [3, 3, 1]), (-1, [2, 2, 2, 1]), (1, [3, 3, 1])])
def test_a_body_is_filled_to_max_batch_bytes_and_never_beyond(
    spare: int, batches: list[int], letter_api: Any, make: Any
) -> None:
    filler = "x" * (1000 - length(letter_api, make))
    limit = FRAME + 3 * 1000 + 2 + spare  # three events of 1,000 bytes and two commas
    letter = make(max_batch_bytes=limit, flush_at=1000, flush_interval=600)
    for _ in range(7):
        letter.track("u", "E", {"f": filler}, **GIVEN)
    assert letter.flush() is True
    assert sizes(letter_api) == batches
    assert max(len(request.body) for request in letter_api.requests) == FRAME + batches[0] * 1001 - 1 <= limit


def test_an_event_as_long_as_a_body_is_sent_and_one_byte_more_is_refused_in_the_call(
    letter_api: Any, make: Any, errors: list[LetterError]
) -> None:
    bare = length(letter_api, make)
    letter = make(max_batch_bytes=2000)
    room = 2000 - FRAME - bare
    letter.track("u", "E", {"f": "x" * room}, **GIVEN)
    letter.track("u", "E", {"f": "x" * (room + 1)}, **GIVEN)
    letter.track("u", "E", {"f": ""}, **GIVEN)
    assert letter.flush() is True
    assert [len(request.body) for request in letter_api.requests] == [2000, FRAME + bare]
    (error,) = errors
    assert error.cause == "invalid" and error.events[0]["properties"] == {"f": "x" * (room + 1)}
    assert letter.stats()["lost"] == {"invalid": 1}


def test_the_order_is_kept_over_retries_and_splits(letter_api: Any, make: Any, errors: list[LetterError]) -> None:
    # Each request of more than 8 items is refused as too large, and some of the others are lost on the way there, or
    # on the way back after they were stored.
    letter_api.rule = lambda request: status(413) if len(request.json["batch"]) > 8 else None
    letter_api.plan(
        status(503), status(413), reset(), status(413), raw(b"", stored=True), status(429, headers={"Retry-After": "0"})
    )
    letter = make(flush_at=64, flush_interval=600, max_retries=5)
    for serial in range(200):
        letter.track("u", "E", {"serial": serial})
    assert letter.flush(DEADLINE) is True
    seen = list(dict.fromkeys(item["messageId"] for item in letter_api.events))
    first = {item["messageId"]: item["properties"]["serial"] for item in letter_api.events}
    assert [first[identity] for identity in seen] == list(range(200))
    assert errors == [] and letter.stats()["delivered"] == 200


def test_a_repeated_request_is_the_same_to_the_byte(letter_api: Any, make: Any) -> None:
    letter_api.plan(status(429, headers={"Retry-After": "0"}, stored=True), status(429, headers={"Retry-After": "0"}))
    letter = make(flush_interval=600)
    for serial in range(3):
        letter.track("u", "E", {"serial": serial})
    assert letter.flush() is True
    assert len({request.body for request in letter_api.requests}) == 1 and len(letter_api.requests) == 3
    assert set(letter_api.repeated().values()) == {2} and letter_api.distinct == 3


# Moments.


def test_an_event_has_the_time_of_its_call_in_utc(letter_api: Any, make: Any) -> None:
    hold = Hold()
    letter_api.plan(hold)
    letter = make(flush_at=1)
    calls = []
    called: list[Callable[[], None]] = [
        lambda: letter.track("u", "E"),
        lambda: letter.identify("u"),
        lambda: letter.group("u", "a"),
    ]
    for call in called:
        before = datetime.now(timezone.utc)
        call()
        calls.append((before, datetime.now(timezone.utc)))
    assert hold.arrived.wait(DEADLINE)
    hold.release()  # two of them waited for the first; that is not in their moments
    assert letter.flush() is True
    moments = [moment(item["timestamp"]) for item in letter_api.events]
    for (before, after), stamped in zip(calls, moments):
        assert before <= stamped <= after
    assert moments == sorted(moments)


@pytest.fixture(params=["UTC0", "XXX-05:30", "YYY+03:30"])
def local_zone(request: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[timedelta]:
    """Lets the process live in a zone, and says how far it is ahead of UTC."""
    monkeypatch.setenv("TZ", request.param)
    time.tzset()
    yield {
        "UTC0": timedelta(0),
        "XXX-05:30": timedelta(hours=5, minutes=30),
        "YYY+03:30": -timedelta(hours=3, minutes=30),
    }[request.param]
    monkeypatch.undo()
    time.tzset()


def stamped(letter_api: Any, make: Any, timestamp: Any) -> Any:
    letter = make()
    letter.track("u", "E", timestamp=timestamp)
    letter.identify("u", timestamp=timestamp)
    letter.group("u", "a", timestamp=timestamp)
    assert letter.flush() is True
    (text,) = {item["timestamp"] for item in letter_api.events}
    return text


@pytest.mark.skipif(not hasattr(time, "tzset"), reason="the zone of a process cannot be set here")
def test_a_naive_datetime_is_local_time(local_zone: timedelta, letter_api: Any, make: Any) -> None:
    naive = datetime(2024, 5, 6, 7, 8, 9, 123456)
    expected = (naive - local_zone).replace(tzinfo=timezone.utc)
    assert moment(stamped(letter_api, make, naive)) == expected == naive.astimezone(timezone.utc)


@pytest.mark.skipif(not hasattr(time, "tzset"), reason="the zone of a process cannot be set here")
def test_the_time_of_the_call_is_utc_in_every_time_zone(local_zone: timedelta, letter_api: Any, make: Any) -> None:
    before = datetime.now(timezone.utc)
    letter = make()
    letter.track("u", "E")
    assert letter.flush() is True
    assert before <= moment(letter_api.events[0]["timestamp"]) <= datetime.now(timezone.utc)


@pytest.mark.parametrize(
    "timestamp, text",
    [
        (datetime(2024, 5, 6, 7, 8, 9, tzinfo=timezone.utc), "2024-05-06T07:08:09Z"),
        (datetime(2024, 5, 6, 7, 8, 9, 1, tzinfo=timezone.utc), "2024-05-06T07:08:09.000001Z"),
        (datetime(2024, 1, 1, 1, 0, tzinfo=timezone(timedelta(hours=2))), "2023-12-31T23:00:00Z"),
        (datetime(2024, 1, 1, 23, 0, tzinfo=timezone(-timedelta(hours=9, minutes=30))), "2024-01-02T08:30:00Z"),
        (date(2024, 2, 29), "2024-02-29"),
        ("2024-05-06T07:08:09+02:00", "2024-05-06T07:08:09+02:00"),
        ("yesterday", "yesterday"),
    ],
)
def test_a_given_timestamp_is_encoded_as(timestamp: Any, text: str, letter_api: Any, make: Any) -> None:
    assert stamped(letter_api, make, timestamp) == text


@pytest.mark.parametrize(
    "timestamp",
    [1_700_000_000, 1.5, True, b"2024", [2024], datetime.min.replace(tzinfo=timezone(timedelta(hours=1)))],
    ids=["int", "float", "bool", "bytes", "list", "before the year 1"],
)
def test_an_invalid_timestamp_raises_in_the_call(timestamp: Any, letter_api: Any, make: Any) -> None:
    letter = make()
    with pytest.raises(LetterError, match="timestamp"):
        letter.track("u", "E", timestamp=timestamp)
    assert letter.flush() is True
    assert letter_api.requests == []


# Identities.


def test_each_event_has_a_random_uuid_of_version_4(letter_api: Any, make: Any) -> None:
    letter = make()
    for _ in range(400):
        letter.track("u", "E")
        letter.identify("u")
        letter.group("u", "a")
    assert letter.flush() is True
    identities = [item["messageId"] for item in letter_api.events]
    assert len(set(identities)) == 1200
    for identity in identities:
        parsed = uuid.UUID(identity)
        assert (parsed.version, parsed.variant, str(parsed)) == (4, uuid.RFC_4122, identity)
    for place in range(36):  # each digit that is free takes each value
        values = {identity[place] for identity in identities}
        assert len(values) == {8: 1, 13: 1, 18: 1, 23: 1, 14: 1, 19: 4}.get(place, 16)


def test_a_given_message_id_is_sent_unchanged(letter_api: Any, make: Any) -> None:
    given = ["order-17", "ü", uuid.UUID(int=5)]
    letter = make()
    for identity in given:
        letter.track("u", "E", message_id=identity)
    assert letter.flush() is True
    assert [item["messageId"] for item in letter_api.events] == [
        "order-17",
        "ü",
        "00000000-0000-0000-0000-000000000005",
    ]


@pytest.mark.parametrize("identity", ["", 7, b"x", ["x"]])
def test_an_invalid_message_id_raises_in_the_call(identity: Any, letter_api: Any, make: Any) -> None:
    letter = make()
    with pytest.raises(LetterError, match="message_id"):
        letter.track("u", "E", message_id=identity)
    assert letter.flush() is True
    assert letter_api.requests == []


def test_a_body_is_compact_json_in_utf_8(letter_api: Any, make: Any) -> None:
    letter = make()
    letter.track("ü", "E", {"a": [1, 2], "b": {"c": "d"}}, **GIVEN)
    assert letter.flush() is True
    body = letter_api.requests[0].body
    assert "ü".encode() in body and b"\\u" not in body
    assert body == json.dumps(json.loads(body), ensure_ascii=False, separators=(",", ":")).encode()
