"""The delivery of a client that was created in a test run: each call keeps its event for the tests.

Responsible for: `CapturedDelivery`. Not responsible for: where events are kept (`_runtime.outbox`), clients that were
created before the test run began: their transport keeps their requests.

There is no queue and no thread: when a call has returned, its event is there, whatever happens to the process.
"""

from __future__ import annotations

import os
import threading

from .._http.transport import FORBIDDEN
from .._reporter import Reporter
from .._runtime import outbox
from .._runtime.signal_errors import reraise_signal_error
from ..errors import LetterError
from .base import NullDelivery
from .batches import batch_of, closed_error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .._config import Settings


class CapturedDelivery(NullDelivery):
    """Keeps each event, or refuses it if no test captures. It sends nothing, also after the test run."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(Reporter(settings.on_error), settings.exit_timeout)
        self._settings = settings
        self._children: dict[int, CapturedDelivery] = {}
        self._closed = False
        self._lock = threading.RLock()  # guards the counters, for a few instructions
        self._delivered = 0
        self._lost: dict[str, int] = {}

    def put(self, event: bytes) -> None:
        if self._closed:
            self.refuse("closed", closed_error([event]))
            return
        try:
            is_kept = outbox.keep("batch", batch_of([event]))
        except OSError as problem:
            reraise_signal_error(problem)
            self._lose("undeliverable", f"the test run cannot keep it: {problem.strerror or problem}", event)
            return
        if is_kept:
            with self._lock:
                self._delivered += 1
        else:
            self._lose("testing", FORBIDDEN.format(self._settings.host), event)

    def _lose(self, cause: str, why: str, event: bytes) -> None:
        is_first = cause not in self._lost
        # On stderr, one line is enough: a test run without captures may track thousands of events.
        is_reported = is_first or self._settings.on_error is not None
        said = f"1 event lost: {why}"
        self.refuse(cause, LetterError(said, cause=cause, events=[event]) if is_reported else None)

    def refuse(self, cause: str, error: LetterError | None = None) -> None:
        with self._lock:
            self._lost[cause] = self._lost.get(cause, 0) + 1
        if error is not None:
            self.reporter(error)
            self.reporter.emit_log()

    def close(self, timeout: float) -> bool:
        self._closed = True
        return True

    def stats(self) -> dict[str, Any]:
        with self._lock:
            counts = {"delivered": self._delivered, "lost": dict(self._lost)}
            counts["accepted"] = self._delivered + sum(self._lost.values())
        return {**super().stats(), "mode": "inline", **counts}

    def quick_counts(self) -> tuple[int, int, int]:
        return 0, self._delivered, sum(tuple(self._lost.values()))

    def for_child(self) -> CapturedDelivery:
        child = self._children.setdefault(os.getpid(), CapturedDelivery(self._settings))
        child._closed = self._closed
        return child
