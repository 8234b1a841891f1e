"""Passing batches to a queue, one at a time. The process itself sends batches that the queue does not accept.

Responsible for: the batch in flight, when to retry a queue that has failed, what is reported about it and how often.
Not responsible for: how a batch gets into a queue (`targets`), and sending a batch that was not accepted (`sender`).

    IDLE --- put ---> IN FLIGHT --- settled ---> IDLE
     ^                    |
     +-- any exception ---+    the connection is closed, and the queue is not tried before `_next_try`

Used by one thread at a time, the one that holds `BatchSender.lock`. If a queue fails, the fate of its batch is unknown,
so the sender sends the batch itself, with the same message IDs.
"""

from __future__ import annotations

from .. import _log
from .._delivery import shutdown
from .._delivery.retry import Pending, Settled
from .._queues.manager_connection import NOT_YET
from .._queues.targets import reason
from .._reporter import TroubleReporter
from .._runtime.signal_errors import reraise_signal_error
from .protocol import lost_error, parse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable

    from .._queues.manager_connection import Batch
    from .._queues.targets import Channel, Target
    from ..errors import LetterError

# Maximum time for a response of the queue's process, in seconds: longer than a busy machine needs, and so short that a
# stopped process delays a batch no longer than a slow API does. Shorter if `exit_timeout` is short.
PATIENCE, LEAST_PATIENCE = 1.0, 0.05
OF_EXIT_TIMEOUT = 0.25  # the part of `exit_timeout` for that, so that there is time to send afterwards
CONNECTING = 2.0  # the same for connecting, as a multiple: two connections, with a challenge each
# Seconds in a call that sends because no thread can run: for a response, which a later call may read, and for a
# connection. A manager on a busy machine needs about 10 ms for that; a stopped one is tried at most once a second.
INLINE_WAIT, INLINE_CONNECT = 0.002, 0.025
LINGER = 0.25  # seconds that one request for a batch's outcome may wait; a new flush is passed on between requests
POLL = 0.05  # seconds between requests that may not wait, and until a full queue is tried again
FIRST_WAIT, LONGEST_WAIT = 1.0, 30.0  # seconds until a queue that failed is tried again, doubled each time


class Handover:
    """Passes the batches of one client in one process to a queue."""

    def __init__(
        self,
        target: Target,
        timeout: float,
        exit_timeout: float,
        report: Callable[[LetterError], object],
        clock: Callable[[], float],
    ) -> None:
        """``timeout``: seconds that a batch may wait for room in a queue that asks to be retried. Opens nothing."""
        self.target = target
        self.is_ending = False  # the client or its process is ending: do not wait for room any more
        self.relayed = 0  # events that the queue has settled
        self._is_working = True
        self._timeout = timeout
        self._patience = max(LEAST_PATIENCE, min(PATIENCE, OF_EXIT_TIMEOUT * exit_timeout))
        self._report_trouble = TroubleReporter(report, clock)
        self._clock = clock
        self._channel: Channel | None = None
        self._batch: Batch | None = None  # in flight over the channel
        self._is_accepted = False  # the queue has accepted it
        self._in_operation = False  # in a request, which an exception of a signal handler may interrupt
        self._full_since: float | None = None
        self._next_try = 0.0
        self._wait = FIRST_WAIT
        self._is_reported = False

    @property
    def is_up(self) -> bool:
        """True while the queue accepts batches, as far as is known."""
        return self._is_working and not self.target.retired

    def offer(self, batch: Batch, linger: float, urgent: bool) -> Settled | Pending | None:
        """Put ``batch`` into the queue, or ask again whether it is settled; None if the process has to send it itself.

        ``urgent``: a caller waits for it, so it must not be delayed for other events.
        Blocks for up to ``linger`` seconds until the batch is settled; 0 if a call must not block.
        """
        if self._in_operation:
            self.close()  # interrupted: the next response on this connection might belong to the last request
            self._in_operation = False
        if self._batch is not None and self._batch != batch:
            self.close()  # that batch was given up; the manager logs its outcome
        if self._batch is None and (not self._may_try() or self._clock() < self._next_try):
            return None
        # A flag and not a `finally`, because an exception of a signal handler may interrupt that as well.
        self._in_operation = True
        outcome: Settled | Pending | None = None
        try:
            outcome = self._exchange(batch, linger, urgent)
        except ValueError as problem:
            reraise_signal_error(problem)
            self.close()
            self._report_queue_trouble(f"did not accept a batch: {problem}")  # this one only: the queue works
        except Exception as problem:
            reraise_signal_error(problem)
            self._fail(reason(problem))
        self._in_operation = False
        return outcome

    def finish(self) -> None:
        """The process is ending: do not let it wait for what the queue has not written."""
        self.target.finish()

    def close(self) -> None:
        """Close the connection, if there is one. The next batch opens another."""
        channel, self._channel = self._channel, None
        self._batch, self._is_accepted = None, False
        if channel is not None:
            channel.close()

    def _may_try(self) -> bool:
        return not (self.target.retired or (self.target.has_feeder and shutdown.is_past_multiprocessing()))

    def _exchange(self, batch: Batch, linger: float, urgent: bool) -> Settled | Pending | None:
        # Seconds for a response: no more than the caller has.
        wait = min(self._patience, linger) if linger else INLINE_WAIT
        if not self._is_accepted:
            answer = self._put(batch, urgent, wait)
            if answer is NOT_YET:
                return Pending(POLL)
            self._batch = None
            if not answer:
                return self._wait_for_room()
            self._batch = batch
            self._is_accepted = True
            self._full_since = None
            self._recover()
        assert self._channel is not None
        reports = self._channel.settled(min(linger, wait, LINGER), urgent, wait, self._patience)
        if reports is None or reports is NOT_YET:
            return Pending(0.0 if linger else POLL)
        assert isinstance(reports, list)
        self._batch, self._is_accepted = None, False
        self.relayed += len(batch)
        return Settled([lost_error(parse(report), len(batch)) for report in reports])

    def _put(self, batch: Batch, urgent: bool, wait: float) -> bool | object:
        if self._channel is not None:
            try:
                answer = self._channel.put(batch, urgent, wait, self._patience)
                self._batch = batch
                return answer
            except ConnectionError as problem:
                reraise_signal_error(problem)
                self.close()  # its process was restarted since the last batch, as may happen to a separate server
        self._channel = self.target.connect(INLINE_CONNECT if wait == INLINE_WAIT else CONNECTING * wait)
        self._batch = batch
        return self._channel.put(batch, urgent, wait, self._patience)

    def _wait_for_room(self) -> Pending | None:
        now = self._clock()
        if self._full_since is None:
            self._full_since = now
        if now - self._full_since < self._timeout and not self.is_ending:
            return Pending(POLL)
        self._full_since = None
        self._fail("it has been full for longer than `timeout`")
        return None

    def _recover(self) -> None:
        if not self._is_working:
            _log.note("mode: relay, the queue accepts batches again")
        self._is_working = True
        self._wait = FIRST_WAIT
        self._is_reported = False

    def _fail(self, why: str) -> None:
        self.close()
        if self.target.retired:
            return
        if self._is_working:
            _log.note("mode: thread, the queue cannot be used")
        self._is_working = False
        now = self._clock()
        self._next_try = now + self._wait
        self._wait = min(2 * self._wait, LONGEST_WAIT)
        if not self._is_reported:
            self._report_queue_trouble(f"cannot be used: {why}")
        self._is_reported = True

    def _report_queue_trouble(self, trouble: str) -> None:
        self._report_trouble(f"relay: {self.target!r} {trouble}; this process sends its events itself meanwhile")
