"""`before_send` may change, complete and drop events; what it breaks is lost alone, with a clear error."""

from __future__ import annotations

from typing import Any

import pytest

from letterapp import LetterError


def test_before_send_may_change_and_drop(make: Any, letter_api: Any, errors: list[LetterError]) -> None:
    def before_send(item: dict[str, Any]) -> dict[str, Any] | None:
        if item["properties"]["serial"] % 2:
            return None
        item["properties"]["seen"] = {"by": "before_send"}
        return item

    mine = {"serial": 0, "deep": {"list": [1]}}
    letter = make(before_send=before_send)
    letter.track("u", "e", mine)
    for serial in (1, 2, 3):
        letter.track("u", "e", {"serial": serial})
    assert letter.flush()
    assert [item["properties"]["serial"] for item in letter_api.events] == [0, 2]
    assert letter_api.events[0]["properties"]["seen"] == {"by": "before_send"}
    assert mine == {"serial": 0, "deep": {"list": [1]}} and errors == []
    assert letter.stats()["lost"] == {"filtered": 2} and letter.stats()["accepted"] == 4


@pytest.mark.parametrize(
    "before_send, problem",
    [
        (lambda item: item["nothing"], "before_send raised KeyError('nothing')"),
        (lambda item: "text", "before_send must return an event"),
        (lambda item: {**item, "messageId": None}, "before_send must return an event"),
        (lambda item: {**item, "messageId": ""}, "before_send must return an event"),
        (lambda item: {**item, "userId": ""}, "before_send must return an event"),
        (lambda item: {"batch": [item]}, "before_send must return an event, with its type"),
        (lambda item: {**item, "type": "page"}, "before_send must return an event, with its type"),
        (lambda item: {**item, "type": ["track"]}, "before_send must return an event, with its type"),
        (lambda item: {**item, "event": ""}, "an event with its event, a string"),
        (lambda item: {name: item[name] for name in item if name != "event"}, "an event with its event, a string"),
        (lambda item: {**item, "timestamp": 1.5}, "an event with its timestamp, a string"),
        (lambda item: {**item, "type": "group"}, "an event with its accountId, a string"),
        (lambda item: {**item, "type": "identify", "email": ["a@b"]}, "a string as email"),
        (lambda item: {**item, "properties": [1]}, "a dict as properties"),
        (lambda item: {**item, "properties": {"x": object}}, "properties.x: "),
        (lambda item: {**item, "properties": {"x": "y" * 500_000}}, "max_batch_bytes"),
    ],
)
def test_a_before_send_that_fails_loses_only_its_event(
    before_send: Any, problem: str, make: Any, letter_api: Any, errors: list[LetterError]
) -> None:
    letter = make(before_send=lambda item: item if item["event"] == "good" else before_send(item))
    letter.track("u", "bad")
    letter.track("u", "good")
    assert letter.flush()
    assert [item["event"] for item in letter_api.events] == ["good"]
    assert len(letter_api.requests) == 1  # the API has refused nothing
    assert problem in str(errors[0]) and errors[0].cause == "invalid" and len(errors) == 1


def test_before_send_may_remove_what_an_event_need_not_have(
    make: Any, letter_api: Any, errors: list[LetterError]
) -> None:
    def before_send(item: dict[str, Any]) -> dict[str, Any]:
        return {
            name: None if name in ("email", "name") else value
            for name, value in item.items()
            if name not in ("properties", "traits")
        }

    letter = make(before_send=before_send)
    letter.track("u", "e", {"private": 1})
    letter.identify("u", email="a@b.c", traits={"private": 1})
    letter.group("u", "a", name="A", traits={"private": 1})
    assert letter.flush() and errors == []
    tracked, identified, grouped = letter_api.events
    assert tracked["properties"] == {} and identified["traits"] == {} and grouped["traits"] == {}
    assert "email" not in identified and "name" not in grouped
