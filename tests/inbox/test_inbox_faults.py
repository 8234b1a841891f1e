"""The switches, as a client with retries and an `on_error` sees them."""

from __future__ import annotations

import json
import time

import pytest
from harness import DEADLINE
from inboxes import Inbox

from letterapp import Letter, LetterError


def attempts(inbox: Inbox) -> list[tuple[int, int]]:
    """Attempt and status of each request, the oldest first."""
    requests = inbox.get("/api/requests")["requests"]
    return [(request["attempt"], request["status"]) for request in reversed(requests)]


@pytest.mark.parametrize(
    "kind, seen", [("503", [(1, 503), (2, 200)]), ("429", [(1, 429), (2, 200)]), ("reset", [(1, 0), (2, 200)])]
)
def test_a_client_delivers_in_spite_of_a_failure(
    kind: str, seen: list[tuple[int, int]], inbox: Inbox, letter: Letter, errors: list[LetterError]
) -> None:
    inbox.fault(kind, 1, seconds=0.2)
    letter.track("u", "E")
    assert letter.flush(DEADLINE) and errors == []
    assert attempts(inbox) == seen and inbox.get("/api/events")["deliveries"] == 1
    assert inbox.get("/api/faults")[kind]["left"] == 0 and inbox.get("/api/stats")["refused"] == 1


@pytest.mark.slow
def test_retry_after_is_waited_for(inbox: Inbox, letter: Letter) -> None:
    inbox.fault("429", 1, seconds=1.2)
    letter.track("u", "E")
    assert letter.flush(DEADLINE)
    first, second = [request["at"] for request in reversed(inbox.get("/api/requests")["requests"])]
    assert second - first >= 1.2


def test_a_swallowed_request_is_delivered_again_and_counts_once(
    inbox: Inbox, letter: Letter, errors: list[LetterError]
) -> None:
    inbox.fault("swallow", 1)
    letter.track("u", "E")
    assert letter.flush(DEADLINE) and errors == []
    event = inbox.get("/api/events")
    assert event["deliveries"] == 2 and inbox.get("/api/stats")["events"] == 1
    assert [(request["attempt"], request["note"]) for request in event["requests"]] == [
        (1, "reset, events stored"),
        (2, ""),
    ]


def test_a_slow_answer_comes_late(inbox: Inbox, letter: Letter) -> None:
    inbox.fault("slow", 1, seconds=0.4)
    started = time.monotonic()
    letter.track("u", "E")
    assert letter.flush(DEADLINE)
    assert time.monotonic() - started >= 0.4 and attempts(inbox) == [(1, 200)]


def test_what_cannot_be_delivered_reaches_on_error(inbox: Inbox, errors: list[LetterError]) -> None:
    inbox.fault("503", 2)
    letter = Letter("k", inbox.url, max_retries=1, on_error=errors.append)
    letter.track("u", "Lost")
    letter.flush(DEADLINE)
    letter.close()
    assert errors[0].status == 503 and [event["event"] for event in errors[0].events] == ["Lost"]
    assert inbox.names() == [] and attempts(inbox) == [(1, 503), (2, 503)]


def test_a_refused_key_is_not_tried_again(inbox: Inbox, letter: Letter, errors: list[LetterError]) -> None:
    inbox.fault("401", 1)
    letter.track("u", "E")
    letter.flush(DEADLINE)
    assert errors[0].status == 401 and attempts(inbox) == [(1, 401)]


def test_switches_are_used_up_in_order_and_turned_off(inbox: Inbox) -> None:
    inbox.fault("503", 2)
    inbox.fault("429", 1, seconds=7)
    assert [inbox.post("/v1/batch", {})[0] for _ in range(4)] == [503, 503, 429, 422]
    inbox.fault("reset", 5)
    inbox.fault("reset", 0)
    assert inbox.post("/v1/batch", {})[0] == 422
    inbox.fault("503", 5)
    state = inbox.request("DELETE", "/api/faults")[1]
    assert all(switch["left"] == 0 for switch in state.values())


@pytest.mark.parametrize(
    "body",
    [
        {"kind": "500"},
        {"kind": "503", "count": -1},
        {"kind": "503", "count": "3"},
        {"kind": "slow", "count": 1, "seconds": 61},
        {"kind": "slow", "count": 1, "seconds": float("nan")},
        {"other": 1},
        [],
    ],
)
def test_a_wrong_switch_is_refused(body: object, inbox: Inbox) -> None:
    status, said, _ = inbox.request("POST", "/api/faults", json.dumps(body).encode())
    assert status == 400 and said["error"]["reason"] == "fault"
