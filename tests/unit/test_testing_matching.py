"""What a test expects, and what it is told when that did not come (`letterapp._testing.matching`)."""

from __future__ import annotations

import uuid
from typing import Any
from unittest.mock import ANY

import pytest

from letterapp._testing.matching import Expected, equal, failure, line, without_chance


def track(event: str = "Order Completed", user_id: str = "u1", **properties: Any) -> dict[str, Any]:
    item = {"type": "track", "userId": user_id, "event": event, "properties": properties}
    return {**item, "messageId": str(uuid.uuid4()), "timestamp": "2026-01-01T00:00:00.000000Z"}


def expected(event: str = "Order Completed", user_id: str | None = None, **properties: Any) -> Expected:
    return Expected("track", {"event": event, "userId": user_id}, properties)


@pytest.mark.parametrize(
    ("wanted", "came"),
    [
        (1, 1),
        (1, 1.0),
        ("a", "a"),
        (None, None),
        (True, True),
        ((1, 2), [1, 2]),
        ([(1,), {"a": (2,)}], [[1], {"a": [2]}]),
        (ANY, True),
        ({"a": ANY}, {"a": [1]}),
        (pytest.approx(0.3), 0.1 + 0.2),
    ],
)
def test_equal(wanted: object, came: object) -> None:
    assert equal(wanted, came)


@pytest.mark.parametrize(
    ("wanted", "came"),
    [
        (1, 2),
        (1, True),
        (True, 1),
        (0.0, False),
        (1, "1"),
        ([1], [1, 2]),
        ({"a": 1}, {"a": 1, "b": 2}),
        ({"a": True}, {"a": 1}),
        ("a", ["a"]),
        (None, "None"),
    ],
)
def test_not_equal(wanted: object, came: object) -> None:
    assert not equal(wanted, came)


def test_properties_that_are_not_expected_do_not_matter() -> None:
    item = track(amount=99, currency="EUR")
    assert expected().matches(item) and expected(amount=99).matches(item) and expected(user_id="u1").matches(item)
    assert not expected(amount=98).matches(item) and not expected(user_id="u2").matches(item)
    assert not expected(total=None).matches(item)  # expected to be there
    assert not Expected("identify", {"userId": "u1"}, {}).matches(item)


def test_the_closest_event_is_compared_field_by_field() -> None:
    came = [track(amount=98, paid=True), track("Signed Up"), track(user_id="u2", amount=1, paid=False)]
    assert failure(expected(user_id="u1", amount=99, paid=True), came) == (
        "not tracked: 'Order Completed' user_id='u1' amount=99 paid=True\n"
        "\n"
        "The closest one differs:\n"
        "  - amount: 99  (expected)\n"
        "  + amount: 98\n"
        "\n"
        "What came (3 events):\n"
        "  track    'u1' 'Order Completed' {'amount': 98, 'paid': True}\n"
        "  track    'u1' 'Signed Up' {}\n"
        "  track    'u2' 'Order Completed' {'amount': 1, 'paid': False}"
    )


@pytest.mark.parametrize("name", ["order completed", "Order Complete", "OrderCompleted", "ORDER_COMPLETED"])
def test_a_similar_name_is_suggested(name: str) -> None:
    assert "Did you mean 'Order Completed'?" in failure(expected(name), [track("Signed Up"), track()])


def test_a_name_that_came_is_not_suggested() -> None:
    assert "mean" not in failure(expected(amount=1), [track(amount=2), track("Order Complete")])


def test_a_similar_property_and_a_similar_user_are_suggested() -> None:
    said = failure(expected(user_id="user_41", ammount=99), [track(user_id="user_42", amount=99)])
    assert "Did you mean 'user_42'?" in said and "Did you mean 'amount'?" in said and "+ ammount: (missing)" in said


def test_large_values_are_compared_line_by_line() -> None:
    items = [{"sku": f"sku-{number:04}", "quantity": number} for number in range(6)]
    said = failure(expected(items=items), [track(items=[*items[:3], {"sku": "other", "quantity": 3}, *items[4:]])])
    removed = [row for row in said.splitlines() if row.startswith("  - ")]
    assert len(removed) == 1 and "sku-0003" in removed[0], said


def test_nothing_came() -> None:
    said = failure(expected(), [], ["A note."])
    assert said == "not tracked: 'Order Completed'\nNothing came.\nA note."


def test_of_many_events_the_last_are_shown() -> None:
    said = failure(expected("Signed Up"), [track(number=number) for number in range(1_000)])
    assert "(1,000 events, the last 20 of which)" in said and "999" in said and "{'number': 979}" not in said


def test_each_type_is_shown_with_its_own_fields() -> None:
    ids = {"messageId": "m", "timestamp": "t"}
    identify = {"type": "identify", "userId": "u1", "email": "a@example.com", "traits": {"plan": "pro"}, **ids}
    group = {"type": "group", "userId": "u1", "accountId": "acme", "name": "Acme", "traits": {}, **ids}
    assert line(identify) == "identify 'u1' email='a@example.com' {'plan': 'pro'}"
    assert line(group) == "group    'u1' 'acme' name='Acme' {}"
    said = failure(Expected("group", {"userId": "u1", "accountId": "acmee"}, {"plan": "pro"}), [identify, group])
    assert said.startswith("not grouped: user_id='u1' account_id='acmee' plan='pro'") and "mean 'acme'?" in said
    said = failure(Expected("identify", {"userId": "u1", "email": "b@example.com"}, {}), [identify])
    assert said.startswith("not identified: user_id='u1' email='b@example.com'")
    assert "+ email: 'a@example.com'" in said


def test_random_ids_and_times_of_calls_are_replaced_and_chosen_ones_are_not() -> None:
    first, second = track(), track()
    chosen = {**track(), "messageId": "order-42", "timestamp": "2020-01-01T00:00:00Z"}
    plain = without_chance([first, second, chosen, first], lambda timestamp: timestamp.startswith("2026"))
    assert [item["messageId"] for item in plain] == ["id-1", "id-2", "order-42", "id-1"]
    assert [item["timestamp"] for item in plain] == ["now", "now", "2020-01-01T00:00:00Z", "now"]
    assert first["timestamp"] != "now"  # the events themselves stay as they were
