"""Mistakes that a type checker must find. It is checked, not run: an ignore that is not needed is an error."""

from __future__ import annotations

from letterapp import Letter, LetterError, message_id
from letterapp.relay import QueueListener, SenderManager
from letterapp.testing import CapturedLetter, IngestionServer, capture


def wrong_options() -> None:
    Letter(42)  # type: ignore[arg-type]
    Letter("key", flush_at="50")  # type: ignore[arg-type]
    Letter("key", flush_interval=None)  # type: ignore[arg-type]
    Letter("key", "https://api.example.com", 50, 0.1, 3, 10.0, None, 1_000_000)  # type: ignore[call-arg]
    Letter("key", no_such_option=True)  # type: ignore[call-arg]
    Letter("key", on_error=lambda: None)  # type: ignore[arg-type, misc]
    Letter("key", before_send=lambda event: 42)  # type: ignore[arg-type, return-value]
    Letter("key", exit_signals="SIGTERM")  # type: ignore[arg-type]
    Letter("key", spool=3)  # type: ignore[arg-type]


def wrong_events(letter: Letter) -> None:
    letter.track("user_42")  # type: ignore[call-arg]
    letter.track(42, "Order Completed")  # type: ignore[arg-type]
    letter.track("user_42", "Order Completed", ["amount"])  # type: ignore[arg-type]
    letter.track("user_42", "Order Completed", timestamp=1.5)  # type: ignore[arg-type]
    letter.track("user_42", "Order Completed", message_id=7)  # type: ignore[arg-type]
    letter.track("user_42", "Order Completed", message_id=message_id("order", 99.5))  # type: ignore[arg-type]
    letter.identify(user="user_42")  # type: ignore[call-arg]
    letter.group("user_42")  # type: ignore[call-arg]
    letter.alias("user_42", "user_43")  # type: ignore[attr-defined]
    letter.send("ada@example.com")  # type: ignore[call-arg]
    letter.flush("1")  # type: ignore[arg-type]
    letter.timeout = 3.0  # type: ignore[attr-defined]


async def wrong_waits(letter: Letter) -> None:
    settled: bool = letter.aflush()  # type: ignore[assignment]
    await letter.flush()  # type: ignore[misc]
    print(settled)


def wrong_errors(error: LetterError) -> None:
    error.events = []  # type: ignore[misc]
    print(error.status + 1)  # type: ignore[operator]


def wrong_relays(manager: SenderManager) -> None:
    SenderManager("key", "https://api.example.com", ("127.0.0.1", 5000))  # type: ignore[call-arg]
    SenderManager("key", authkey="secret")  # type: ignore[arg-type]
    manager.queue = None  # type: ignore[misc, assignment]
    QueueListener()  # type: ignore[call-arg]


def wrong_servers(api: IngestionServer) -> None:
    api.plan(503)  # type: ignore[arg-type]
    api.distinct = 0  # type: ignore[misc]
    IngestionServer(on_event=lambda: None)  # type: ignore[arg-type, misc]


def wrong_captures(letter: CapturedLetter) -> None:
    letter.assert_tracked()  # type: ignore[call-arg]
    letter.assert_tracked("Order Completed", "user_42")  # type: ignore[call-arg]
    letter.assert_tracked("Order Completed", user_id=42)  # type: ignore[arg-type]
    letter.assert_identified()  # type: ignore[call-arg]
    letter.events = []  # type: ignore[misc]
    capture("1")  # type: ignore[arg-type]
