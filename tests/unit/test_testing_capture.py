"""`letterapp.testing.capture` in one process."""

from __future__ import annotations

import datetime
import os
import pickle
import time
from pathlib import Path
from typing import Any

import pytest

from letterapp import Letter, LetterError
from letterapp._runtime import outbox
from letterapp.testing import CapturedLetter, IngestionServer, capture, no_network

EXISTING = Letter("key")  # as an application has one: created at import, for letter.app

TRACKED = {"type": "track", "event": "Order Completed", "userId": "u1", "timestamp": "now", "messageId": "id-1"}


@pytest.fixture(autouse=True)
def nothing_is_sent() -> Any:
    before = outbox.directory, os.environ.get(outbox.VARIABLE)
    with no_network():
        yield
    assert (outbox.directory, os.environ.get(outbox.VARIABLE)) == before


@pytest.fixture(scope="module", autouse=True)
def nothing_is_left() -> Any:
    before = outbox.directory, os.environ.get(outbox.VARIABLE)
    yield
    assert (outbox.directory, os.environ.get(outbox.VARIABLE)) == before


def test_a_client_that_existed_before_is_captured(letter: CapturedLetter) -> None:
    EXISTING.track("u1", "Order Completed", {"amount": 99})
    assert letter.snapshot() == [{**TRACKED, "properties": {"amount": 99}}]
    assert letter.assert_tracked("Order Completed", user_id="u1", amount=99)["userId"] == "u1"


def test_the_captured_client_is_a_client(letter: CapturedLetter) -> None:
    assert isinstance(letter, Letter)
    letter.track("u1", "Order Completed")
    assert letter.snapshot() == [{**TRACKED, "properties": {}}]


def test_new_clients_are_captured_whatever_their_options(letter: CapturedLetter, tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    for options in ({}, {"base_url": "http://api.example.com/prefix"}, {"spool": spool}, {"relay": True}):
        Letter("key", **options).track("u1", "Order Completed", options and {next(iter(options)): True})
    assert len(letter.tracked("Order Completed")) == 4
    assert letter.tracked(spool=True) and letter.tracked(relay=True) and letter.tracked(base_url=True)
    assert not spool.exists()  # nothing that a later program would find there, and send


def test_a_client_without_a_key_is_captured(letter: CapturedLetter, monkeypatch: pytest.MonkeyPatch) -> None:
    Letter().track("u1", "Order Completed")
    assert letter.tracked("Order Completed")


def test_after_a_capture_the_environment_is_as_before() -> None:
    before = dict(os.environ)
    with capture():
        assert os.environ["LETTER_API_KEY"] and os.environ[outbox.VARIABLE] == outbox.directory
        assert os.environ[outbox.VARIABLE] == before[outbox.VARIABLE]
    assert dict(os.environ) == before


def test_a_test_that_clears_the_environment_is_captured(
    letter: CapturedLetter, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        for name in list(os.environ):
            patch.delenv(name)
        EXISTING.track("u1", "Order Completed")
        Letter("key").track("u1", "Order Completed")
        assert len(letter.tracked("Order Completed")) == 2


def test_events_belong_to_the_capture_in_which_they_were_tracked() -> None:
    EXISTING.track("u1", "Before")
    with capture() as outer:
        EXISTING.track("u1", "First")
        with capture() as inner:
            EXISTING.track("u1", "Second")
        EXISTING.track("u1", "Third")
    EXISTING.track("u1", "After")
    assert EXISTING.flush(10)
    assert [item["event"] for item in inner.events] == ["Second"]
    assert [item["event"] for item in outer.events] == ["First", "Third"]


def test_events_are_in_the_order_of_the_calls_of_all_clients(letter: CapturedLetter) -> None:
    clients = [letter, Letter("key"), Letter("key", relay=True)]
    for number in range(300):
        clients[number % 3].track("u1", "Counted", {"number": number})
    assert [item["properties"]["number"] for item in letter.events] == list(range(300))


def test_chosen_ids_and_times_are_kept_and_change_no_order(letter: CapturedLetter) -> None:
    letter.track("u1", "First")
    letter.track("u1", "Second", message_id="order-42", timestamp=datetime.date(2020, 1, 1))
    letter.track("u1", "Third", timestamp="2020-01-01T00:00:00Z")
    letter.track("u1", "Fourth", message_id="order-42")  # the API keeps the first one
    assert [(item["event"], item["messageId"], item["timestamp"]) for item in letter.snapshot()] == [
        ("First", "id-1", "now"),
        ("Second", "order-42", "2020-01-01"),
        ("Third", "id-2", "2020-01-01T00:00:00Z"),
    ]


def test_identify_group_and_send(letter: CapturedLetter) -> None:
    EXISTING.identify("u1", email="ada@example.com", traits={"plan": "pro"}, timezone="Europe/Berlin")
    EXISTING.group("u1", "acme", name="Acme Inc.", traits={"seats": 3})
    assert EXISTING.send("ada@example.com", "Welcome", text="Hello")["status"] == "sent"
    assert letter.assert_identified("u1", email="ada@example.com", timezone="Europe/Berlin", plan="pro")
    assert letter.assert_grouped("u1", "acme", name="Acme Inc.", seats=3)
    assert letter.assert_grouped("u1") and letter.identified("u1") and letter.grouped("u1", "acme", traits={"seats": 3})
    assert not letter.identified("u2") and not letter.grouped("u1", "other") and not letter.tracked()
    assert letter.mails == [{"to": "ada@example.com", "subject": "Welcome", "text": "Hello"}]
    assert not letter.events[0]["messageId"].startswith("id-")


def test_the_latest_match_is_returned_whole(letter: CapturedLetter) -> None:
    letter.track("u1", "Order Completed", {"amount": 1, "event": "a name", "user_id": 7})
    letter.track("u1", "Order Completed", {"amount": 2, "event": "a name", "user_id": 7})
    found = letter.assert_tracked("Order Completed", event="a name", properties={"user_id": 7})
    assert found["properties"]["amount"] == 2 and found["messageId"] and found["timestamp"]


def test_a_failure_says_what_came() -> None:
    with capture(wait=0) as letter:
        EXISTING.track("u1", "Order Completed", {"amount": 98})
        with pytest.raises(AssertionError, match=r"(?s)not tracked: 'Order Completed' .*- amount: 99.*\+ amount: 98"):
            letter.assert_tracked("Order Completed", user_id="u1", amount=99)
        with pytest.raises(AssertionError, match="not identified: user_id='u1'"):
            letter.assert_identified("u1")
        with pytest.raises(AssertionError, match="not grouped: user_id='u1' account_id='acme'"):
            letter.assert_grouped("u1", "acme")


def test_a_failure_says_what_this_client_has_lost_and_where_others_send(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LETTER_BASE_URL", "http://127.0.0.1:8025")
    with capture(wait=0) as letter:
        letter.track("u1", "Order Completed", {"when": object()})
        with pytest.raises(AssertionError) as raised:
            letter.assert_tracked("Order Completed")
    assert "Nothing came." in str(raised.value) and "properties.when" in str(raised.value)
    assert "clients without base_url send to http://127.0.0.1:8025: unset it for tests." in str(raised.value)
    assert [error.cause for error in letter.errors] == ["invalid"]


def test_cleared_events_are_forgotten(letter: CapturedLetter) -> None:
    letter.track("u1", "First")
    letter.send("ada@example.com", "Welcome", text="Hello")
    letter.clear()
    letter.track("u1", "Second")
    assert [item["event"] for item in letter.events] == ["Second"] and letter.mails == []


def test_events_that_wait_for_a_server_on_this_machine_are_not_captured(
    letter: CapturedLetter, letter_api: IngestionServer
) -> None:
    with Letter("key", letter_api.url) as client:
        client.track("u1", "Order Completed")
    assert letter_api.distinct == 1 and letter.events == []


def test_a_held_server_does_not_delay_what_is_captured(letter: CapturedLetter, letter_api: IngestionServer) -> None:
    letter_api.hold()
    with Letter("key", letter_api.url) as client:
        client.track("u1", "Held")
        EXISTING.track("u1", "Order Completed")
        started = time.monotonic()
        assert letter.tracked("Order Completed") and time.monotonic() - started < 4
        letter_api.release()


def test_a_disabled_client_tracks_nothing(letter: CapturedLetter) -> None:
    Letter(enabled=False).track("u1", "Order Completed")
    assert letter.events == []


def test_outside_of_a_capture_events_are_refused() -> None:
    errors: list[LetterError] = []
    with Letter("key", on_error=errors.append) as client:
        client.track("u1", "Order Completed")
        assert client.flush(10)
        assert client.stats()["lost"] == {"testing": 1} and client.stats()["retried"] == 0
        with pytest.raises(LetterError, match=r"nothing is sent to api\.letter\.app while tests run"):
            client.send("ada@example.com", "Welcome", text="Hello", idempotency_key="once")
    (error,) = errors
    assert error.cause == "testing" and error.lost == 1 and error.events[0]["event"] == "Order Completed"
    for name in ("letter", "capture()", "base_url", "letterapp_allow_network"):
        assert name in str(error)


def test_outside_of_a_capture_a_client_that_existed_before_is_refused(capfd: pytest.CaptureFixture[str]) -> None:
    before = EXISTING.stats()["lost"].get("testing", 0)
    EXISTING.track("u1", "Order Completed")
    assert EXISTING.flush(10) and EXISTING.stats()["lost"] == {"testing": before + 1}
    assert "letterapp: 1 event lost: nothing is sent to api.letter.app while tests run" in capfd.readouterr().err


def test_of_many_refused_events_one_line_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    client = Letter("key")
    for _ in range(100):
        client.track("u1", "Order Completed")
    stats = client.stats()
    assert stats["lost"] == {"testing": 100} and stats["accepted"] == 100 and stats["waiting"] == 0
    assert capfd.readouterr().err.count("\n") == 1


def test_a_client_of_a_test_run_does_not_send_after_it(letter_api: IngestionServer, monkeypatch: Any) -> None:
    monkeypatch.setenv("http_proxy", letter_api.url)
    client = Letter("key", "http://api.example.com")
    with monkeypatch.context() as patch:
        patch.setattr(outbox, "directory", None)
        client.track("u1", "Order Completed")
    assert client.flush() and letter_api.requests == [] and client.stats()["lost"] == {"testing": 1}


def test_on_error_may_track(letter: CapturedLetter) -> None:
    client = Letter("key", on_error=lambda error: client.track("u1", "Lost", {"cause": error.cause}))
    client.track("u1", "Order Completed", {"bad": object()})
    letter.assert_tracked("Lost", cause="invalid")


def test_an_event_that_on_error_tracks_and_that_is_refused_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    client = Letter("key", on_error=lambda error: client.track("u1", "Lost"))
    client.track("u1", "Order Completed")
    assert client.stats()["lost"] == {"testing": 2} and "tracked by on_error itself" in capfd.readouterr().err


def test_the_counters_of_a_captured_client(letter: CapturedLetter) -> None:
    client = Letter("key", before_send=lambda event: None if event["event"] == "Dropped" else event)
    client.track("u1", "Kept")
    client.track("u1", "Dropped")
    assert client.close()
    client.track("u1", "Late")
    stats = client.stats()
    assert set(stats) == set(EXISTING.stats())
    assert (stats["accepted"], stats["delivered"], stats["lost"]) == (3, 1, {"filtered": 1, "closed": 1})
    assert repr(client) == f"<Letter waiting=0 delivered=1 lost=2 pid={os.getpid()}>"
    assert [item["event"] for item in letter.events] == ["Kept"]


def test_the_fixture_s_client_outlives_its_test_without_sending() -> None:
    with capture() as letter:
        pass
    letter.track("u1", "Late")  # it is closed
    assert [error.cause for error in letter.errors] == ["closed"] and letter.events == []


def test_nothing_of_a_capture_is_left() -> None:
    place = Path(os.environ[outbox.VARIABLE])
    with capture():
        EXISTING.track("u1", "Order Completed")
        assert {path.name for path in place.iterdir()} > {"current"}
    assert [path.name for path in place.iterdir()] == ["current"] and (place / "current").read_text() == ""


def test_it_cannot_be_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    errors: list[LetterError] = []
    with monkeypatch.context() as patch, Letter("key", max_retries=0, on_error=errors.append) as client:
        patch.setattr(outbox, "directory", "/dev/null")  # not a directory
        client.track("u1", "Order Completed")
        client.flush(10)
        assert [error.cause for error in errors] == ["undeliverable"] and "Not a directory" in str(errors[0])
        with pytest.raises(LetterError, match="cannot keep"):
            client.send("ada@example.com", "Welcome", text="Hello")


def test_a_full_disk_is_reported(letter: CapturedLetter, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        write = os.write
        patch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:-10]))
        letter.track("u1", "Lost")
    letter.track("u1", "Kept")
    assert [item["event"] for item in letter.events] == ["Kept"]
    assert [error.cause for error in letter.errors] == ["undeliverable"] and "No space left" in str(letter.errors[0])


def test_pickling_it_gives_a_plain_client(letter: CapturedLetter) -> None:
    copy = pickle.loads(pickle.dumps(letter))
    assert type(copy) is Letter
    copy.track("u1", "Order Completed")
    assert letter.tracked("Order Completed")
