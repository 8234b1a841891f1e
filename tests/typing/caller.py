"""A program that uses the public names, as type checkers see it. It is checked, not run.

Each `assert_type` fixes the type that a caller gets.
"""

from __future__ import annotations

import datetime
import multiprocessing
import signal
import ssl
import uuid
from pathlib import Path
from typing import Any, assert_type

import letterapp
from letterapp import Letter, LetterError
from letterapp.pytest_plugin import letter as letter_fixture
from letterapp.pytest_plugin import letter_api
from letterapp.relay import QueueListener, SenderManager
from letterapp.testing import (
    CapturedLetter,
    Exchange,
    Fault,
    Hold,
    IngestionServer,
    Request,
    capture,
    cut,
    endless,
    no_network,
    raw,
    reset,
    stall,
    status,
)

assert_type(letterapp.__version__, str)
assert_type(letterapp.message_id("order", 42, True, uuid.UUID(int=1)), str)


def note(error: LetterError) -> None:
    assert_type(error.status, int | None)
    assert_type(error.body, str | None)
    assert_type(error.code, str | None)
    assert_type(error.reason, str | None)
    assert_type(error.cause, str | None)
    assert_type(error.lost, int)
    assert_type(error.events, list[dict[str, Any]])
    failure: Exception = error
    print(failure)


def change(event: dict[str, Any]) -> dict[str, Any] | None:
    return event if event["type"] == "track" else None


def context() -> ssl.SSLContext:
    return ssl.create_default_context()


def every_option() -> None:
    Letter()
    Letter("key")
    Letter("key", "https://api.example.com", 50, 0.1, 3, 10.0, note)
    Letter(
        api_key=None,
        base_url="https://api.example.com",
        flush_at=1,
        flush_interval=1,
        max_retries=None,
        timeout=1,
        on_error=print,
        max_queue_bytes=1_000_000,
        max_queue_events=1_000,
        overflow="block",
        max_batch_bytes=100_000,
        exit_timeout=2,
        before_send=change,
        default=str,
        enabled=True,
        ssl_context=context,
        exit_signals=(signal.SIGTERM,),
        send_on_os_exit=False,
        spool=Path("spool"),
        spool_sync=True,
        spool_max_bytes=1_000_000,
        relay=True,
    )
    Letter(ssl_context=context(), exit_signals={signal.SIGTERM, 2}, spool="spool", relay="relay.socket")
    Letter("key", before_send=lambda event: event, on_error=lambda error: error.lost)
    Letter("key", relay=multiprocessing.Manager().Queue())


def events(letter: Letter) -> None:
    now = datetime.datetime.now(datetime.timezone.utc)
    letter.identify("user_42")
    letter.identify("user_42", "ada@example.com", {"plan": "pro"}, "Europe/Berlin", now, "an id")
    letter.identify("user_42", email=None, traits=None, timezone=None, timestamp=None, message_id=None)
    letter.group("user_42", "acme")
    letter.group("user_42", "acme", "Acme Inc.", {"seats": 3}, now.date(), uuid.uuid4())
    letter.group("user_42", "acme", name=None, traits=None, timestamp="2026-01-01T00:00:00Z", message_id=None)
    letter.track("user_42", "Order Completed")
    letter.track("user_42", "Order Completed", {"amount": 99.5}, now, uuid.uuid4())
    letter.track("user_42", "Order Completed", properties=None, timestamp=None, message_id=None)
    properties: dict[str, int] = {"amount": 99}
    letter.track("user_42", "Order Completed", properties)


def settling(letter: Letter) -> None:
    assert_type(letter.flush(), bool)
    assert_type(letter.flush(1), bool)
    assert_type(letter.flush(timeout=None), bool)
    assert_type(letter.close(), bool)
    assert_type(letter.close(timeout=0.5), bool)
    assert_type(letter.stats(), dict[str, Any])
    with letter as entered:
        assert_type(entered, Letter)


async def settling_in_asyncio(letter: Letter) -> None:
    assert_type(await letter.aflush(), bool)
    assert_type(await letter.aflush(timeout=1), bool)
    assert_type(await letter.aclose(None), bool)
    async with letter as entered:
        assert_type(entered, Letter)


def emails(letter: Letter) -> None:
    assert_type(letter.send("ada@example.com", "Hello"), dict[str, Any])
    letter.send(
        to="ada@example.com",
        subject="Hello",
        html="<p>Hello</p>",
        text=None,
        from_email="shop@example.com",
        from_name=None,
        reply_to=None,
        headers={"X-Campaign": "autumn"},
        tag="welcome",
        metadata={"order": 42},
        idempotency_key="order-42",
    )


def relays() -> None:
    with SenderManager("key", address=("127.0.0.1", 5000), authkey=b"secret", flush_at=10) as manager:
        assert_type(manager, SenderManager)
        assert_type(manager.status(), dict[str, Any])
        Letter(relay=manager.queue)
    SenderManager(address=None)
    SenderManager(address="manager.socket").connect()
    manager.start()
    manager.shutdown()
    manager.join(timeout=1)

    with QueueListener(multiprocessing.Manager().Queue(), "key", timeout=5.0) as listener:
        assert_type(listener, QueueListener)
        assert_type(listener.stats(), dict[str, Any])
        assert_type(listener.exit_timeout, float)
    listener.start()
    assert_type(listener.stop(), bool)
    assert_type(listener.stop(timeout=1), bool)


def servers() -> None:
    def rule(request: Request) -> Fault | None:
        assert_type(request.method, str)
        assert_type(request.path, str)
        assert_type(request.headers, dict[str, str])
        assert_type(request.body, bytes)
        assert_type(request.connection, tuple[str, int])
        assert_type(request.at, float)
        return status(500) if request.json else None

    with IngestionServer(0, api_key="key", max_body=100, ssl_context=context(), on_event=print) as api:
        assert_type(api, IngestionServer)
        assert_type(api.url, str)
        assert_type(api.port, int)
        assert_type(api.events, list[dict[str, Any]])
        assert_type(api.mails, list[dict[str, Any]])
        assert_type(api.requests, list[Request])
        assert_type(api.distinct, int)
        assert_type(api.repeated(), dict[str, int])
        assert_type(api.wait_for(1), bool)
        assert_type(api.wait_until(lambda: bool(api.mails), timeout=1), bool)
        api.rule = rule
        api.rule = None
        hold = Hold(then=reset(), longest=1)
        api.plan(status(429, b"{}", {"Retry-After": "1"}), reset(stored=True), raw(b""), cut(), endless(), hold)
        api.plan(stall(0.1, then=status(503, stored=True)))
        assert_type(hold.arrived.is_set(), bool)
        hold.release()
        api.hold()
        api.release()
        api.drop_connections()
        api.plan(refuse)
    api.close()


def refuse(exchange: Exchange) -> None:
    exchange.keep()
    exchange.answer(503, b"{}", {"Retry-After": "1"})
    exchange.hang_up()
    assert_type(exchange.closing.is_set(), bool)


def captures() -> None:
    with no_network() as nothing, capture() as letter, capture(wait=0) as another:
        assert_type(nothing, None)
        assert_type(letter, CapturedLetter)
        events(letter)
        emails(another)
        assert_type(letter.events, list[dict[str, Any]])
        assert_type(letter.snapshot(), list[dict[str, Any]])
        assert_type(letter.mails, list[dict[str, Any]])
        assert_type(letter.errors, list[LetterError])
        assert_type(letter.tracked(), list[dict[str, Any]])
        assert_type(letter.tracked("Order Completed", user_id="user_42", amount=99), list[dict[str, Any]])
        assert_type(letter.identified("user_42", email="ada@example.com", plan="pro"), list[dict[str, Any]])
        assert_type(letter.grouped("user_42", "acme", name="Acme Inc.", seats=3), list[dict[str, Any]])
        assert_type(letter.assert_tracked("Order Completed", properties={"user_id": 1}, event=2), dict[str, Any])
        assert_type(letter.assert_identified("user_42", timezone="UTC", traits={"email": 1}), dict[str, Any])
        assert_type(letter.assert_grouped("user_42"), dict[str, Any])
        letter.wait = 5
        letter.clear()


def test_with_the_fixtures(letter: CapturedLetter, letter_api: IngestionServer) -> None:
    assert_type(letter.events, list[dict[str, Any]])
    assert_type(letter_api.url, str)


print(letter_api, letter_fixture)
