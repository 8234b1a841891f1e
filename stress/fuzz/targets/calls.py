"""Target `call`: any Python value as an argument of a call."""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import Any, Iterator

from letterapp import Letter, LetterError
from letterapp._delivery.sender import Sender

from ..values import Source, value
from .common import KEY, UNUSED_URL, InvariantViolated, Run, expect

SEEDS = [bytes([0, 255, 29, 3, 5, 1, 97, 2, 5, 1, 98, 4, 15, 0, 7, 1, 1, 1, 1])]
_OPTIONAL = {
    "track": ("properties", "timestamp", "message_id"),
    "identify": ("traits", "timestamp", "message_id", "timezone"),
    "group": ("traits", "timestamp", "message_id", "name"),
}


@contextmanager
def call() -> Iterator[Run]:
    """A call raises nothing but `LetterError`, and a queued event is one line of JSON that fits in a request."""
    reports: list[LetterError] = []
    letter = Letter(KEY.reveal(), UNUSED_URL, on_error=reports.append, flush_interval=1e6, flush_at=10_000)
    sender = letter._delivery
    assert isinstance(sender, Sender)
    sender._queue.replace_worker().started = True  # so that no thread is started

    def run(data: bytes) -> None:
        source = Source(data)
        method = (letter.track, letter.identify, letter.group)[source.byte() % 3]
        arguments: list[Any] = ["user", "Event"] if method != letter.identify else ["user", "a@b.example"]
        fuzzed = source.byte()  # bits: which of the arguments
        options: dict[str, Any] = {}
        for number, name in enumerate(_OPTIONAL[method.__name__]):
            if number == 0 or fuzzed >> number & 1:
                options[name] = value(source)
        for number in range(2):
            if fuzzed >> (5 + number) & 1:
                arguments[number] = value(source)
        before = sender.stats()
        reports.clear()
        try:
            method(*arguments, **options)
        except LetterError as error:
            str(error), repr(error)
        after = sender.stats()
        for report in reports:
            str(report), repr(report), report.events
        expect(after["accepted"] - before["accepted"] <= 1, "one call queues at most one event")
        for event in sender._queue.take(100, 1 << 30):
            expect(b"\n" not in event, "an event is one line", event)
            expect(len(event) <= 500_000, "an event fits in a request", len(event))
            item = json.loads(event.decode(), parse_constant=_reject_constant)
            expect(
                isinstance(item.get("userId"), str) and isinstance(item.get("messageId"), str), "ids are strings", item
            )
        sender._queue.settle()

    try:
        yield run
    finally:
        letter.close(0)


def _reject_constant(name: str) -> Any:
    raise InvariantViolated(f"{name} is not valid JSON")
