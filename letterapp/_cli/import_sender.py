"""Delivering the batches of an import.

Responsible for: one or more connections, retries, finding the rows that the API refuses, the order in which batches are
settled. Not responsible for: what an answer means (`_delivery.retry`), requests (`_http`), rows.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any, Callable, Tuple

from .._config import MAX_ITEMS
from .._delivery.batches import batch_of
from .._delivery.retry import Again, Delivered, GiveUp, Split, is_refusal_of_all, judge
from .._http.transport import Transport, Unreachable
from .._runtime.random_bytes import random_bytes
from ..errors import LetterError
from .import_events import MAX_BYTES
from .import_rows import LONGEST, Row

if TYPE_CHECKING:
    from .._config import Settings

RETRIES = 8  # of one request: a minute in all
_LOOK = 0.2  # seconds between two looks at the progress
_FRAME = 16  # bytes that a request adds to its events
Refusals = Tuple[Tuple[int, str], ...]  # for each refused event its index in the batch, and why


class Stopped(Exception):
    """The import is to stop."""


class Batch:
    """Rows that are sent together, and those between them that were refused already."""

    def __init__(self) -> None:
        self.rows: list[Row] = []  # of the events, in the same order
        self.events: list[bytes] = []
        self.refused: list[tuple[Row, str]] = []
        self.end = 0  # the offset behind the last row, and its line
        self.line = 0
        self._size = _FRAME
        self._text = 0

    def has_room(self, row: Row, event: bytes) -> bool:
        if not self.events:
            return True
        return (
            len(self.events) < MAX_ITEMS
            and self._size + len(event) + 1 <= MAX_BYTES
            and self._text + len(row.text) <= LONGEST
        )

    def add(self, row: Row, event: bytes) -> None:
        self.rows.append(row)
        self.events.append(event)
        self._size += len(event) + 1
        self._text += len(row.text)

    def refuse(self, row: Row, reason: str) -> None:
        self.refused.append((row, reason))
        self._text += len(row.text)

    @property
    def is_full(self) -> bool:
        return len(self.events) >= MAX_ITEMS or len(self.refused) >= 10 * MAX_ITEMS or self._text >= LONGEST


class Sender:
    """Sends batches over ``connections`` connections. Used by one thread."""

    def __init__(self, settings: Settings, connections: int) -> None:
        self._settings = settings
        self._most = 2 * connections
        self._stop = threading.Event()
        self._here = threading.local()
        self._pool = ThreadPoolExecutor(connections, "letterapp-import")
        self._pending: deque[tuple[Batch, Future[Refusals] | None]] = deque()
        self.trouble = ""  # why requests are being tried again, for the progress bar

    def send(self, batch: Batch) -> None:
        self._pending.append((batch, self._pool.submit(self._deliver, batch.events) if batch.events else None))

    def wait_for_oldest(self, in_any_case: bool, while_waiting: Callable[[], object]) -> bool:
        """True if `take` would return at once. Waits if ``in_any_case``, or if many batches are under way.

        Calls ``while_waiting`` now and then.
        """
        if not self._pending:
            return False
        future = self._pending[0][1]
        if future is None:
            return True
        while not future.done() and (in_any_case or len(self._pending) > self._most):
            wait((future,), _LOOK)
            while_waiting()
        return future.done()

    def take(self) -> tuple[Batch, Refusals]:
        """The oldest batch, and its refused events. Raises `LetterError` if the API would refuse any batch."""
        batch, future = self._pending[0]
        refusals: Refusals = () if future is None else future.result()
        self._pending.popleft()
        return batch, refusals

    def stop(self) -> None:
        """Make no more requests, except for those under way."""
        self._stop.set()

    def close(self) -> None:
        self._stop.set()
        self._pool.shutdown()

    # In the threads of the pool.

    def _deliver(self, events: list[bytes]) -> Refusals:
        transport = getattr(self._here, "transport", None)
        if transport is None:
            transport = self._here.transport = Transport(self._settings)
        return tuple(self._deliver_part(transport, events, 0))

    def _deliver_part(self, transport: Transport, events: list[bytes], first: int) -> list[tuple[int, str]]:
        verdict = self._verdict(transport, events)
        if isinstance(verdict, Delivered):
            return []
        if isinstance(verdict, Split):
            half = len(events) // 2
            found = self._deliver_part(transport, events[:half], first)
            return found + self._deliver_part(transport, events[half:], first + half)
        assert isinstance(verdict, GiveUp)
        if verdict.cause != "rejected" or is_refusal_of_all(verdict.error):
            self._stop.set()
            raise verdict.error
        return [(first + number, str(verdict.error)) for number in range(len(events))]

    def _verdict(self, transport: Transport, events: list[bytes]) -> Any:
        """What became of one request, after its retries."""
        for attempt in range(RETRIES + 1):
            if self._stop.is_set():
                raise Stopped
            try:
                outcome: Any = transport.post("/v1/batch", batch_of(events), self._settings.timeout)
            except Unreachable as problem:
                outcome = problem
            jitter = int.from_bytes(random_bytes(2), "big") / 65536
            verdict = judge(
                outcome, attempt=attempt, max_retries=RETRIES, items=len(events), now=time.time(), jitter=jitter
            )
            if not isinstance(verdict, Again):
                self.trouble = ""
                return verdict
            said = str(outcome) if isinstance(outcome, Unreachable) else f"the API answered {outcome.status}"
            self.trouble = f"{said}; trying again"
            self._stop.wait(verdict.seconds)
        raise LetterError("the API did not accept a request")  # the last verdict is none to try again
