"""Events that are reported as lost can be sent again as the same event, with the code in the documents."""

from __future__ import annotations

import datetime as dt
import json
import math
import pickle
import re
import uuid
from pathlib import Path
from typing import Any

import pytest
from harness import DEADLINE, ROOT, run
from programs import lost_at_exit

from letterapp import LetterError
from letterapp.testing import Hold, IngestionServer, status

MOMENT = "2026-01-02T03:04:05Z"
CALLS: dict[str, Any] = {
    "track": lambda letter, values, **same: letter.track("u", "E", values, **same),
    "identify": lambda letter, values, **same: letter.identify("u", "a@b", values, "Europe/Rome", **same),
    "group": lambda letter, values, **same: letter.group("u", "acme", "Acme", values, **same),
}
GIVEN: dict[str, dict[str, Any]] = {
    "as given": {"timestamp": dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.timezone.utc), "message_id": uuid.UUID(int=7)},
    "as made": {},
}


def documented() -> Any:
    """`send_again` of docs/guarantees.md."""
    section = (ROOT / "docs" / "guarantees.md").read_text().split("## Send a loss again")[1]
    block = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    assert block
    names: dict[str, Any] = {}
    exec(block[1], names)
    return names["send_again"]


@pytest.mark.parametrize("given", GIVEN.values(), ids=GIVEN.keys())
@pytest.mark.parametrize("kind", CALLS)
def test_an_event_that_could_not_be_encoded_is_repaired_and_sent_under_its_id(
    kind: str, given: dict[str, Any], make: Any, errors: list[LetterError], letter_api: IngestionServer
) -> None:
    letter = make()
    CALLS[kind](letter, {"price": math.nan, "of": 1}, **given)
    (event,) = errors[0].events
    uuid.UUID(event["messageId"])
    assert event["timestamp"].endswith("Z") and dt.datetime.fromisoformat(event["timestamp"][:-1])
    if given:
        assert (event["timestamp"], event["messageId"]) == (MOMENT, str(uuid.UUID(int=7)))
    event["properties" if kind == "track" else "traits"]["price"] = 0
    documented()(letter, event)
    assert letter.flush(DEADLINE)
    assert letter_api.events == [event]


def test_the_id_that_before_send_saw_is_the_one_that_is_reported(make: Any, errors: list[LetterError]) -> None:
    seen: list[dict[str, Any]] = []

    def before_send(item: dict[str, Any]) -> Any:
        seen.append(item)
        raise ValueError("mine")

    make(before_send=before_send).track("u", "E", {"a": 1})
    assert errors[0].events == seen


@pytest.mark.parametrize(
    "call",
    [
        lambda letter: letter.track("u\ud800", "E"),
        lambda letter: letter.track("u", "E", {"blob": "x" * 500_000}),
        lambda letter: letter.track("u", "E", message_id="\ud800"),
    ],
    ids=["text", "size", "the id itself"],
)
def test_every_refusal_of_a_call_has_the_id_and_the_timestamp(call: Any, make: Any, errors: list[LetterError]) -> None:
    call(make())
    assert errors[0].events[0]["messageId"] and errors[0].events[0]["timestamp"].endswith("Z")


def lost_by(cause: str, make: Any, api: IngestionServer) -> Any:
    """Lose one event of each kind for ``cause``."""
    options: dict[str, Any] = {"flush_interval": 600}
    if cause == "overflow":
        options["max_queue_events"] = 1
    letter = make(max_retries=0, **options)
    if cause == "overflow":
        letter.track("u", "takes the room")
    if cause == "closed":
        letter.close()
    for call in CALLS.values():
        call(letter, {"n": [1, None, "ü"]})
    api.plan(status(401) if cause == "rejected" else status(200) if cause == "overflow" else status(500))
    assert letter.flush(DEADLINE)


@pytest.mark.parametrize("cause", ["rejected", "undeliverable", "overflow", "closed"])
def test_events_that_are_lost_later_can_be_sent_again(
    cause: str, make: Any, errors: list[LetterError], letter_api: IngestionServer
) -> None:
    lost_by(cause, make, letter_api)
    lost = [event for error in errors for event in pickle.loads(pickle.dumps(error)).events]
    assert {error.cause for error in errors} == {cause}
    assert [event["type"] for event in lost] == ["track", "identify", "group"]
    before = len(letter_api.events)
    letter = make()
    for event in json.loads(json.dumps(lost)):  # as lines of a file
        documented()(letter, event)
    assert letter.flush(DEADLINE)
    assert letter_api.events[before:] == lost


def test_events_given_up_at_the_end_can_be_sent_by_the_next_process(
    letter_api: IngestionServer, make: Any, tmp_path: Path
) -> None:
    hold = Hold()
    letter_api.rule = lambda request: hold
    assert run(lost_at_exit.two_kinds, letter_api.url, tmp_path).code == 0
    letter_api.rule = None
    hold.release()
    lost = [json.loads(line) for line in (tmp_path / "lost").read_text().splitlines()]
    assert [cause for cause, _ in lost] == ["exit"] * 3
    letter = make()
    for _, event in lost:
        documented()(letter, event)
    assert letter.flush(DEADLINE)
    assert letter_api.distinct == 3 and [event for _, event in lost] == letter_api.events[-3:]
