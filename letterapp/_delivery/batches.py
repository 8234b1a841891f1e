"""Sending the events in one process's queue, a batch at a time.

    queue ---- take -----> send_once ---> transport.post ---> judge
      ^                 or handover.offer                       |
      +---- settle --------------+-------- delivered, lost -----+
                                 +-------- again: `InFlight.wait`
                                 +-------- split: halve

Responsible for: `BatchSender`, when a batch is sent and over which transport, applying the outcome to the queue.
Not responsible for: threads (`worker`), callers that wait for settlement (`sender`), what an answer means (`retry`),
HTTP.

No stack frame holds a batch between two tries: it stays in the queue, and `InFlight` has the number of its tries and
the time of the next one. So consecutive tries may be made by different threads.

Only the API's answer settles a batch, or the failure of its last try. Any unexpected exception (no descriptor left, no
memory, a partial import, a bug of ours) is a failed try.
"""

from __future__ import annotations

import time

from .. import _log
from .._config import MAX_ITEMS
from .._http.transport import Transport, Unreachable
from .._runtime.clock import FOREVER
from .._runtime.guards import FairLock
from .._runtime.random_bytes import random_bytes
from .._runtime.signal_errors import reraise_signal_error
from .._text import kind_of
from ..errors import LetterError
from .in_flight import InFlight, InFlightState
from .retry import (
    LONGEST_BACKOFF,
    LONGEST_WHILE_REFUSED,
    Again,
    Delivered,
    Pending,
    Settled,
    Split,
    Surprise,
    backoff,
    is_refusal_of_all,
    judge,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, Protocol, Union

    from .._config import Settings
    from .._http.transport import Answer
    from .._queues.manager_connection import Batch
    from .._queues.targets import Target
    from .._runtime.condition import Condition
    from .._storage.accounting import OverflowReport
    from .._storage.queue import BoundedQueue
    from .._storage.recovery import OrphanRecovery
    from .retry import RequestOutcome

    Outcome = Union[RequestOutcome, Settled, Pending]

    class Handover(Protocol):
        """Passes batches to another process, one at a time."""

        target: Target
        is_ending: bool  # the client or its process is ending: do not wait for room any more
        relayed: int  # events that the other process has settled

        @property
        def is_up(self) -> bool:
            """True while the other process accepts batches, as far as is known."""

        def offer(self, batch: Batch, linger: float, urgent: bool) -> Settled | Pending | None:
            """Pass ``batch`` on, or ask whether it is settled; None if this process has to send it itself.

            Blocks for up to ``linger`` seconds. ``urgent``: a caller waits for it.
            """

        def finish(self) -> None:
            """The process is ending: do not let it wait for what is not yet written."""

        def close(self) -> None:
            """Close the connection, if there is one."""


OVERFLOW_REPORT_DELAY = 1.0  # seconds after which dropped events are reported even if the queue is still full
_HEAD, _TAIL = b'{"batch":[', b"]}"
ENVELOPE = len(_HEAD) + len(_TAIL)  # bytes of a request's body in addition to its events


class BatchSender:
    """Sends the batches of one process. One thread at a time sends; others wait for it only with a deadline."""

    def __init__(
        self,
        settings: Settings,
        queue: BoundedQueue,
        recovery: OrphanRecovery,
        report: Callable[[LetterError], object],
        progress: Condition,
        clock: Callable[[], float],
        handover: Handover | None,
    ) -> None:
        """``handover``: passes batches to another process; without it, this process posts them."""
        self._settings = settings
        self._queue = queue
        self._recovery = recovery
        self._report = report
        self._progress = progress
        self._clock = clock
        self._transport = Transport(settings)
        self.handover = handover
        self.interval = settings.flush_interval
        # Held while a batch is sent, including the request: the queue has one batch in flight, and the transport has
        # one connection.
        self.lock = FairLock()
        self._in_flight = InFlight()
        # False once the process is certain to end: it would recover what it has just released to its family.
        self.recovers_orphans = True
        self._refusal_is_reported = False
        self._surprise_is_reported = False

    # Called by any thread.

    def prepare(self) -> None:
        """Load what the first request needs now, because descriptors or memory may run out later. Does not raise."""
        try:
            self._transport.prepare()
        except Exception as problem:
            reraise_signal_error(problem)  # otherwise the first request fails in the same way and reports it

    def is_due(self) -> bool:
        """True if a batch is to be sent now."""
        now = self._clock()
        return self._queue.due(now, self.interval) <= 0 and self._in_flight.not_before <= now

    def expedite(self) -> None:
        """Make the next try of the batch in flight due now, because there may be no later one. Any thread may call."""
        if self.handover is not None:
            self.handover.is_ending = True
        self._in_flight.expedite(self._clock())

    def give_up(self) -> None:
        """All events in the queue, including those in flight, were given up."""
        self._in_flight.give_up()

    def disconnect(self) -> None:
        """Close the connections, unless a thread is using them. A later batch opens new ones."""
        self.lock.run(self._close_connections, 0.0)

    def send_within(self, patience: float, linger: float = FOREVER) -> float:
        """Call `send_once`. Returns 0 if another thread is sending for all of ``patience`` seconds."""
        wait = 0.0

        def send() -> None:
            nonlocal wait
            wait = self.send_once(patience, linger)

        self.lock.run(lambda: _log.defer(send), patience)
        return wait

    def report_drops(self, longest: float) -> float:
        """Report dropped events and refused nested calls, if a report is due. Returns the seconds until the next one.

        Drops are reported once the queue has room again, or after ``longest`` seconds.
        """
        refused = self._queue.take_refused()
        if refused:
            self._report(closed_error(refused))
        overflow, wait = self._queue.take_overflow_report(self._clock(), longest)
        if overflow is not None:
            self._report(self._overflow_error(overflow))
        return wait

    # Called with the lock held.

    def send_once(self, patience: float = FOREVER, linger: float = FOREVER) -> float:
        """Send the next batch if it is due, waiting at most ``patience`` seconds for the answer.

        ``linger``: maximum seconds to wait for another process to settle the batch; 0 in a call that must not block.

        Returns the seconds until there is more to do: 0 for at once, infinity if the queue is empty.
        """
        sends = False
        try:
            now = self._clock()
            if self.recovers_orphans:
                self._recovery.recover_if_due(now)
            if self._queue.is_taken_over() or self._queue.needs_slot():
                self._recovery.relocate()
            until_overflow_report = self.report_drops(OVERFLOW_REPORT_DELAY)
            wait = max(self._queue.due(now, self.interval), self._in_flight.not_before - now)
            if wait > 0:
                return min(wait, until_overflow_report)
            sends = True
            return 0.0 if self._send_batch(min(patience, self._settings.timeout), linger) else until_overflow_report
        except Exception as surprise:  # a failed try: it must not lose an event, nor end the thread
            reraise_signal_error(surprise)
            return self._handle_surprise(surprise, sends)

    def _handle_surprise(self, surprise: Exception, sends: bool) -> float:
        """Handle an unexpected exception in `send_once`, and return its result; ``sends``: a batch was being sent."""
        pause = backoff(0, 0.0)
        try:
            if sends and self._queue.is_sending():
                if self._in_flight.state is not InFlightState.SENDING:  # the exception came before `begin`
                    self._in_flight.begin(self._queue.batch_number)
                self._apply_outcome(Surprise(surprise), [])
                return 0.0
        except Exception as another:
            reraise_signal_error(another)
            surprise = another
        self._in_flight.pause(self._clock() + pause)
        if not (sends or self._surprise_is_reported):
            self._surprise_is_reported = True
            said = f"nothing can be sent at present: {surprise!r}; retrying"
            self._report(LetterError(said, cause="degraded"))
        return pause

    def _send_batch(self, timeout: float, linger: float) -> bool:
        """Take the next batch, send it and apply the outcome; False if there is none."""
        batch = self._queue.take(MAX_ITEMS, self._settings.max_batch_bytes - ENVELOPE + 1)
        if not batch:
            return False
        self._in_flight.begin(self._queue.batch_number)
        began = self._clock()
        outcome = self._send(batch, timeout, linger)
        self._apply_outcome(outcome, batch, self._clock() - began)
        return True

    def _send(self, batch: list[bytes], timeout: float, linger: float) -> Outcome:
        if self.handover is not None:
            outcome = self.handover.offer(batch, min(timeout, linger), self._queue.is_flush_requested())
            if outcome is not None:
                return outcome
        return self._post(batch, timeout)

    def _post(self, batch: list[bytes], timeout: float) -> Answer | Unreachable:
        try:
            return self._transport.post("/v1/batch", batch_of(batch), max(0.001, timeout))
        except Unreachable as problem:
            return problem

    def _close_connections(self) -> None:
        self._transport.close()
        if self.handover is not None:
            self.handover.close()

    # The outcome of a batch.

    def _apply_outcome(self, outcome: Outcome, batch: list[bytes], seconds: float = 0.0) -> None:
        """``seconds``: how long the request took, for the log."""
        in_flight, now = self._in_flight, self._clock()
        if isinstance(outcome, Pending):
            in_flight.wait(now + outcome.seconds, now, failed=False)
            return
        if isinstance(outcome, Settled):
            self._note(batch, "settled by the queue's process, %d lost", sum(error.lost for error in outcome.errors))
            self._apply_settlement(outcome.errors, len(batch))
            return
        verdict = judge(
            outcome,
            attempt=in_flight.attempt,
            max_retries=self._most_retries(),
            items=len(batch),
            now=time.time(),
            jitter=int.from_bytes(random_bytes(2), "big") / 65536,  # `random` would repeat itself in forked workers
            may_search=in_flight.may_search(),
            durable=self._queue.is_durable(),
        )
        why = _reason(outcome)
        if isinstance(verdict, Again):
            self._note(batch, "try %d failed (%s), the next one in %.1f s", in_flight.attempt + 1, why, verdict.seconds)
            if self._queue.retry():
                in_flight.wait(now + verdict.seconds, now, failed=True)
            if verdict.refusal is not None:
                self._report_refusal(verdict.refusal)
        elif isinstance(verdict, Split):
            self._note(batch, "to be sent in two parts (%s)", why)
            in_flight.split(verdict.in_search)
            self._queue.halve()
        elif isinstance(verdict, Delivered):
            self._note(batch, "delivered in %.3f s (%s)", seconds, why)
            in_flight.end(accepted=True)
            self._refusal_is_reported = False
            self._queue.settle()
            self._note_progress()
        else:
            self._note(batch, "lost, %s (%s)", verdict.cause, why)
            in_flight.end(accepted=False)
            self._lose(verdict.cause, verdict.error)

    def _note(self, batch: list[bytes], text: str, *arguments: object) -> None:
        said = "batch %d, %s: " + text
        _log.note(said, self._queue.batch_number, _log.said(len(batch)), *arguments, events=batch)

    def _most_retries(self) -> float:
        most = self._settings.max_retries
        return FOREVER if most is None or self._queue.is_durable() else most

    def _apply_settlement(self, errors: list[LetterError], events: int) -> None:
        kept = [error for error in errors if error.cause != "rejected" or is_refusal_of_all(error)]
        if self._queue.is_durable() and kept:
            # The manager has given up, but a spool never does: the whole batch is sent again, with the same IDs.
            refusals = [error for error in kept if is_refusal_of_all(error)]
            if self._queue.retry():
                longest = LONGEST_WHILE_REFUSED if refusals else LONGEST_BACKOFF
                in_flight, now = self._in_flight, self._clock()
                in_flight.wait(now + backoff(in_flight.attempt, 0.0, longest), now, failed=True)
            if refusals:
                self._report_refusal(refusals[0])
            return
        self._refusal_is_reported = False
        self._in_flight.end(accepted=True)
        lost: dict[str, int] = {}
        for error in errors:
            count = min(error.lost, events - sum(lost.values()))
            if count > 0:
                cause = error.cause or "undeliverable"
                lost[cause] = lost.get(cause, 0) + count
        self._queue.settle(lost=lost)
        self._note_progress()
        for error in errors:
            self._report(error)

    def _report_refusal(self, error: LetterError) -> None:
        """Report that the API refuses every request, and that the events are kept. Once, until one is accepted."""
        if not self._refusal_is_reported:
            self._refusal_is_reported = True
            said = f"{error}; waiting events are kept, and retried at growing intervals"
            self._report(LetterError(said, error.status, error.body, error.code, error.reason, cause="degraded"))

    def _lose(self, cause: str, error: LetterError) -> None:
        lost = self._queue.settle(cause)
        self._note_progress()
        if lost:
            said = f"{count_of(lost)} lost: {error}"
            self._report(
                LetterError(said, error.status, error.body, error.code, error.reason, cause=cause, events=lost)
            )

    def _note_progress(self) -> None:
        self._recovery.release_drained()
        self._progress.notify_all()

    def _overflow_error(self, overflow: OverflowReport) -> LetterError:
        settings = self._settings
        return LetterError(
            f"{count_of(range(overflow.lost))} dropped ({settings.overflow}): the queue is full "
            f"({settings.max_queue_events:,} events or {settings.max_queue_bytes:,} bytes)",
            cause="overflow",
            lost=overflow.lost,
            events=overflow.sample,
        )


def _reason(outcome: RequestOutcome) -> str:
    """The outcome of a request for the log. What an exception or a response says may quote an event."""
    if isinstance(outcome, Surprise):
        return kind_of(outcome.problem)
    return "no response" if isinstance(outcome, Unreachable) else f"status {outcome.status}"


def batch_of(events: list[bytes]) -> bytes:
    """The body of a request."""
    return _HEAD + b",".join(events) + _TAIL


def closed_error(events: list[bytes]) -> LetterError:
    """The report of ``events`` that were tracked after `close`."""
    what = "the event was" if len(events) == 1 else f"{count_of(events)} were"
    return LetterError(f"the client is closed: {what} not accepted", cause="closed", events=events)


def too_large_error(event: bytes, most: int, settings: Settings) -> LetterError:
    """The report of an ``event`` of more than ``most`` bytes."""
    bound = "max_queue_bytes" if most == settings.max_queue_bytes else "max_batch_bytes"
    said = f"1 event dropped: it has {len(event):,} bytes, and the maximum is {most:,} ({bound})"
    return LetterError(said, cause="overflow", events=[event])


def count_of(events: list[bytes] | range) -> str:
    return "1 event" if len(events) == 1 else f"{len(events):,} events"
