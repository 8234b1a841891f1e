"""Run it with `pytest`, or with `pytest -n auto` if pytest-xdist is installed."""

from multiprocessing import get_context

import shop

from letterapp import Letter
from letterapp.testing import CapturedLetter, IngestionServer, reset, status


def test_an_order_is_tracked(letter: CapturedLetter) -> None:
    shop.complete_order("user_42", amount=99)
    letter.assert_tracked("Order Completed", user_id="user_42", amount=99)
    assert not letter.tracked("Order Failed")


def test_exactly_these_events_are_sent(letter: CapturedLetter) -> None:
    shop.complete_order("user_42", amount=99)
    assert letter.snapshot() == [
        {
            "type": "track",
            "userId": "user_42",
            "event": "Order Completed",
            "properties": {"amount": 99, "currency": "EUR"},
            "timestamp": "now",
            "messageId": "id-1",
        }
    ]


def test_workers_track_their_orders(letter: CapturedLetter) -> None:
    with get_context("spawn").Pool(2) as pool:
        pool.starmap(shop.complete_order, [(f"user_{number}", number) for number in range(10)])
    assert len(letter.tracked("Order Completed")) == 10


def test_an_outage_loses_no_event(letter_api: IngestionServer) -> None:
    letter_api.plan(status(503), reset())  # the next two requests
    with Letter("any-key", letter_api.url) as letter:
        letter.track("user_42", "Order Completed")
    assert [item["event"] for item in letter_api.events] == ["Order Completed"]
