"""The events of one process: queued by calls, sent by this process itself.

    any thread                          the worker's thread, or a caller's where no thread can run
    ----------                          ----------------------------------------------------------
    put ---> queue -------------------> BatchSender.send_once ---> the API, or a queue whose process sends
               ^                            |
               +----- settled, recovered ---+

Responsible for: `Sender`, which combines a queue, a worker and a `BatchSender`; callers that wait for settlement. Not
responsible for: sending (`batches`), the thread (`worker`), encoding, detecting the end of the process (`shutdown`).
"""

from __future__ import annotations

import _thread
import os
import threading

from .. import _log
from .._reporter import Reporter
from .._runtime import servers
from .._runtime.asyncio_thread import runs_event_loop
from .._runtime.atfork import this_process
from .._runtime.clock import FOREVER, monotonic
from .._runtime.condition import Condition
from .._storage.backends import Backends
from .._storage.queue import CLOSED, FULL, SLOT_LOST, WAKE, BoundedQueue
from .._storage.recovery import OrphanRecovery, claim_ring
from ..errors import LetterError
from . import exit_signals, notices, shutdown
from .base import Delivery
from .batches import BatchSender, closed_error, count_of, too_large_error
from .stages import Stages
from .worker import Worker, WorkerState

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

    from .._config import Settings
    from .._queues.targets import Target
    from .._storage.queue import PutResult
    from .batches import Handover

_SCAN_CHECK_INTERVAL = 0.05  # seconds after which a waiting thread checks again: the scan may have been interrupted
_LAST_SCAN = 0.5  # seconds to wait for another thread's scan before events are given up; it usually takes microseconds


class Sender(Delivery):
    """Delivers events from this process, on a background thread."""

    def __init__(
        self,
        settings: Settings,
        clock: Callable[[], float] = monotonic,
        backends: Backends | None = None,
        report: Callable[[LetterError], object] | None = None,
        progress: Condition | None = None,
        make_handover: Callable[[Any, Any], Handover] | None = None,
    ) -> None:
        """``make_handover``: creates what passes batches to another process; without it, this process posts them.

        The code that creates a sender registers it with `shutdown`.
        """
        self.owner = this_process()
        self.exit_timeout = settings.exit_timeout
        self._settings = settings
        self._clock = clock
        self.reporter = Reporter(settings.on_error)
        self._report = report or self.reporter
        self.progress = progress or Condition()  # notified when events were settled
        self._make_handover = make_handover
        self._children: dict[int, Sender] = {}
        self._stages = Stages()
        backends = backends or Backends.open(settings)
        self._queue = BoundedQueue(
            claim_ring(backends),
            settings.max_queue_events,
            settings.max_queue_bytes,
            settings.flush_at,
            settings.overflow == "drop_oldest",
            clock,
        )
        self._recovery = OrphanRecovery(self._queue, backends, self._report, clock, self.progress)
        self._batches = BatchSender(
            settings,
            self._queue,
            self._recovery,
            self._report,
            self.progress,
            clock,
            make_handover(self._report, clock) if make_handover is not None else None,
        )
        self._worker = Worker(self.owner, self._queue, self.progress)
        self._recovery.report_losses()
        notices.report_exposure(settings, self._report)
        if servers.is_never_ended():
            self._batches.interval = 0.0  # events that wait for a full batch would be lost
            if not settings.spool and (not settings.relay or make_handover is not None):
                notices.report_sub_interpreter(self._report)

    # Called by any thread.

    def put(self, event: bytes) -> None:
        answer = self._queue.put(event)
        if self._settings.spool_sync:
            self._queue.sync()
        if answer:
            self._handle_put_result(answer, event)

    def start_recovery(self) -> None:
        if not self._settings.spool or servers.is_before_fork():
            return
        if not self._queue.is_empty() or self._recovery.has_orphans():
            self.wake()
            self._worker.stop_when_idle()  # the thread was started only for that

    @property
    def sends_on_os_exit(self) -> bool:
        return self._settings.send_on_os_exit

    def refuse(self, cause: str, error: LetterError | None = None) -> None:
        self._queue.refuse(cause)
        if error is not None:
            self._report(error)
            self.emit_log()

    def flush(self, timeout: float) -> bool:
        deadline = self._clock() + timeout
        self._recover_all(deadline)
        settled = self._await(self._queue.request_flush(), deadline)
        while settled and self._has_more_orphans(deadline):
            self._recover_all(deadline)
            settled = self._await(self._queue.request_flush(), deadline)
        if settled:
            self._stop_idle_worker(deadline)
        self.emit_log()
        return settled

    def close(self, timeout: float) -> bool:
        return self.close_by(self._clock() + timeout, timeout)

    def close_by(self, deadline: float, timeout: float) -> bool:
        """`close`, until ``deadline``. ``timeout``, in seconds, appears in the report of events that were given up."""
        self._queue.close()
        settled = self.drain(deadline)
        if self.may_wait() and not settled:
            self._stages.give_up(self._give_up("closed", f"not delivered within the {timeout:g} s timeout of close()"))
            self._stop_idle_worker(deadline)
        if self.may_wait():
            self._disconnect()
            self._batches.report_drops(0.0)
            self._queue.release_empty_slot()
        self.emit_log(ending=True)
        return settled and not self._stages.lost_at_close

    def _disconnect(self) -> None:
        if not self._worker.is_there:
            self._batches.disconnect()

    def stats(self) -> dict[str, Any]:
        handover = self._batches.handover
        mode = "inline" if self._worker.state is WorkerState.UNAVAILABLE else "thread"
        return {
            "pid": self.owner.pid,
            "mode": "relay" if handover is not None and handover.is_up else mode,
            "memory": self._queue.kind,
            "relayed": handover.relayed if handover is not None else 0,
            **self._queue.counts(),
        }

    def quick_counts(self) -> tuple[int, int, int]:
        return self._queue.quick_counts()

    def recover_from_children(self) -> None:
        if self._recovery.has_orphans_in_memory():
            self._recovery.recover_soon()
            self.wake()
            self._worker.stop_when_idle()  # so that there is no thread at the next fork, if possible

    # The end of the process.

    def begin_shutdown(self) -> None:
        self._stages.begin_exit(False, self._clock())
        self._batches.expedite()
        self._queue.request_flush()
        self._worker.notify()

    def end(self, deadline: float, final: bool) -> None:
        self._stages.begin_exit(final, self._clock())
        self._batches.recovers_orphans = not final  # from now on this method recovers, when the order is right
        self._queue.mark_exiting(final)
        if self._stages.has_given_up and self._queue.is_empty():
            # `close` has given up the request in flight. A killed process may have left events since.
            self._recover_all(deadline)
            if self._queue.is_empty():
                return
        self._queue.set_wake_on_put(True)
        settled = self.drain(deadline)
        if self.may_wait():
            if final and not settled:
                self._give_up(
                    "exit", f"not delivered within exit_timeout ({self.exit_timeout:g} s) at the end of the process"
                )
                self._stop_idle_worker(deadline)
            self._batches.report_drops(0.0)
            if final:
                if self._batches.handover is not None:
                    self._batches.handover.finish()
                self._disconnect()
                self._queue.release_empty_slot()
        elif final and not self._queue.is_held_by_this_thread():
            # A signal handler interrupted this very thread while it was sending, and will not return to it.
            self._give_up("exit", "the process was ended while they were being sent")
        self.emit_log(ending=True)
        self._stages.set_budget(deadline - self._clock())

    def cancel_shutdown(self) -> None:
        self._stages.cancel_exit()
        self._batches.recovers_orphans = True
        self._queue.mark_exiting(False)
        self._queue.set_wake_on_put(self._worker.state is WorkerState.UNAVAILABLE)

    def has_resumed(self) -> bool:
        """True unless the process is ending or the client is closed. A process may survive a signal."""
        if self._stages.has_survived(self._clock()):
            self.cancel_shutdown()
        return self._stages.is_open and not self._queue.closed

    def defer_signal(self, act: Callable[[], object]) -> bool:
        if not self._queue.is_held_by_this_thread():
            return False
        _thread.start_new_thread(self._queue.call_when_released, (act,))
        return True

    # Forks.

    def for_child(self) -> Sender:
        # `setdefault` is atomic; a lock might have been held by another thread at the fork.
        child = self._children.setdefault(
            os.getpid(),
            Sender(self._settings, self._clock, self._recovery.for_child(), make_handover=self._make_handover),
        )
        if self._queue.closed:
            child._queue.close()
        shutdown.release(self)
        if self._settings.exit_signals:
            exit_signals.install(self._settings.exit_signals)  # gunicorn resets them in its workers
        return child

    @property
    def is_closed(self) -> bool:
        return self._queue.closed

    # Used only by a process that sends for others (`_relay_server`). Called by any thread.

    def prepare(self) -> None:
        """Load what the first request needs now. Does not raise."""
        self._batches.prepare()

    def watch_removals(self, on_removed: Callable[[list[bytes], str | None], object]) -> None:
        """Have ``on_removed`` called, under the queue's lock, with removed events and the cause if they are lost."""
        self._queue.on_removed = on_removed

    def has_room(self, events: int, size: int) -> bool:
        """True if ``events`` events of ``size`` bytes in total fit now, or would fit after dropping the oldest."""
        return self._queue.has_room(events, size)

    def put_if_room(self, event: bytes) -> bool:
        """Like `put`, but if the queue is full, return False and count no loss."""
        answer = self._queue.put(event)
        if answer == FULL:
            return False
        if answer:
            self._handle_put_result(answer, event)
        return True

    def request_flush(self) -> None:
        """Have everything in the queue sent without delay. Returns at once."""
        self._queue.request_flush()
        self.wake()

    def is_settled(self) -> bool:
        """True if the queue is empty."""
        return self._queue.is_empty()

    def uses(self, queue: Target) -> bool:
        """True if batches are passed to ``queue``."""
        handover = self._batches.handover
        return handover is not None and handover.target.is_same(queue)

    # What `put` does after queueing. Runs in the calling thread.

    def _handle_put_result(self, answer: PutResult, event: bytes) -> None:
        """Do what the queue's ``answer`` to ``event`` requires."""
        if answer == WAKE:
            if shutdown.is_finalizing():  # called by a `__del__`
                self._give_up("exit", shutdown.TORN_DOWN)
                return
            if not self.wake():
                self._send_inline()
            if self._stages.calls_settle:
                self._settle_now()
        elif answer == FULL:
            self._overflow(event)
        elif answer == SLOT_LOST:
            self._recovery.relocate()
            self.put(event)
        elif answer == CLOSED:
            self.refuse("closed", closed_error([event]))

    def wake(self) -> bool:
        """Make the worker check the queue; False if no thread can run."""
        was_unavailable = self._worker.state is WorkerState.UNAVAILABLE
        is_there = self._worker.wake(self._send, self._before_start, self._stages.calls_settle)
        if not (is_there or was_unavailable):
            shutdown.keep_alive(self)
            if not self._stages.calls_settle and threading.main_thread().is_alive() and not servers.is_before_workers():
                notices.warn_inline()
        return is_there

    def _send(self) -> float:
        wait = self._batches.send_within(FOREVER)
        self.emit_log()
        return wait

    def emit_log(self, ending: bool = False) -> None:
        """Log what waits to be logged, unless this thread may hold a lock."""
        if self.may_wait():
            self.reporter.emit_log(ending)

    def _before_start(self) -> None:
        shutdown.on_first_event(self._settings.send_on_os_exit)
        if self._settings.exit_signals:
            exit_signals.install_missing(self._settings.exit_signals)

    def _send_inline(self) -> None:
        if not self.may_wait():
            return
        if servers.is_before_workers():
            if not self.drain(self._clock() + self.exit_timeout):
                said = f"not delivered within {self.exit_timeout:g} s while uWSGI imported the application"
                self._give_up("undeliverable", f"{said}, and its master cannot send anything later")
        elif self._batches.is_due():
            self._batches.send_within(self._settings.timeout, linger=0.0)
        self.emit_log()

    def _overflow(self, event: bytes) -> None:
        most = self._queue.largest
        may_fit = len(event) <= most
        if self._settings.overflow == "block" and may_fit and self._may_block() and self._put_when_there_is_room(event):
            return
        if not may_fit:
            self.refuse("overflow", too_large_error(event, most, self._settings))
        elif self._queue.drop(event):
            self.wake()  # the worker reports the dropped events later, all in one report

    def _put_when_there_is_room(self, event: bytes) -> bool:
        deadline = self._clock() + self._settings.timeout
        while True:
            with self.progress.waiter() as waiter:
                answer = self._queue.put(event)
                if self._settings.spool_sync:
                    self._queue.sync()
                if answer != FULL:
                    if answer:
                        self._handle_put_result(answer, event)
                    return True
                left = deadline - self._clock()
                if left <= 0:
                    return False
                self._wait_or_work(waiter, left)

    def _may_block(self) -> bool:
        return self.may_wait() and not runs_event_loop()  # a call never blocks an event loop

    # Waiting for settlement. Runs in the calling thread.

    def may_wait(self) -> bool:
        """False in a callback on the sending thread, in a handler that interrupted the queue, and at finalization."""
        if self._batches.lock.is_mine() or self._queue.is_held_by_this_thread():
            return False
        return not (_log.is_handler_running() or shutdown.is_finalizing())

    def _await(self, target: int, deadline: float) -> bool:
        """Wait until ``target`` events are settled; False after ``deadline``, or if waiting is impossible."""
        if self._queue.has_settled(target):
            return True
        if not self.may_wait():
            return False
        self.wake()
        while True:
            with self.progress.waiter() as waiter:
                if self._queue.has_settled(target):
                    return True
                left = deadline - self._clock()
                if left <= 0:
                    return False
                self._wait_or_work(waiter, left)

    def _wait_or_work(self, waiter: Any, seconds: float) -> None:
        """Wait for the worker's progress or, if there is no thread, send in this one."""
        if self._worker.is_there and not _log.is_handler_running_elsewhere():
            waiter.wait(seconds)
            return
        with self._worker.wakeup.waiter() as pause:
            wait = self._batches.send_within(seconds)
            # If there is nothing to send, only another thread's progress ends the wait. The worker may have made it,
            # and stopped, after the caller's check: nobody would notify `pause` then.
            if wait < FOREVER and not waiter.is_notified:
                pause.wait(min(wait, seconds))
            else:
                waiter.wait(seconds)

    def drain(self, deadline: float) -> bool:
        """Wait until everything is settled and the thread has stopped.

        False after ``deadline``, or if waiting is impossible.
        """
        self._batches.expedite()
        while True:
            self._recover_all(deadline)
            if not self._await(self._queue.request_flush(), deadline):
                return False
            if self._has_more_orphans(deadline):
                continue
            # The thread may still have to report losses, and the end of the process would stop it. And it may have just
            # recovered events of another process.
            self._stop_idle_worker(deadline)
            if not self.may_wait() or (self._queue.is_empty() and not self._recovery.has_more):
                return True
            if self._clock() >= deadline:
                return False

    def _settle_now(self) -> None:
        """The process is ending: wait until everything is settled, or the budget is used up."""
        stages = self._stages
        if not self.may_wait() or self.has_resumed():
            return
        if not stages.is_final and runs_event_loop():
            return  # after a signal the event loop continues, and so does the thread; `end` will be called again
        started = self._clock()
        deadline = started + stages.budget
        settled = self._await(self._queue.request_flush(), deadline)
        if settled:
            self._stop_idle_worker(deadline)
        stages.set_budget(stages.budget - (self._clock() - started))
        self.has_resumed()
        if stages.is_final and not settled:
            self._give_up("exit", "the time allowed for the end of the process (exit_timeout) was over")

    def _stop_idle_worker(self, deadline: float) -> None:
        """Stop the thread if it is idle, so that there is none at the next fork."""
        self._worker.stop_when_idle()
        self._worker.notify()
        if self.may_wait():
            self._worker.await_stop(deadline, self._clock)

    def _recover_all(self, deadline: float) -> None:
        """Recover the events of all processes that have ended so far."""
        if self.may_wait():
            # Another thread's scan may have checked a process just before it ended. This thread cannot check it again
            # before that scan is over.
            self.progress.wait_while(self._queue.recovering.has_others, deadline, self._clock, _SCAN_CHECK_INTERVAL)
            if self._queue.needs_slot():
                self._recovery.relocate()  # otherwise the nested event is not counted as waiting
        self._recovery.recover()

    def _has_more_orphans(self, deadline: float) -> bool:
        """True if there are more events of ended processes to recover, and time to do so."""
        return self._recovery.has_more and self.may_wait() and self._clock() < deadline

    def _give_up(self, cause: str, why: str) -> int:
        """Report the events in the queue as lost for ``cause``, except those that others will recover.

        Returns their number.
        """
        if cause == "exit":
            self._release_to_family()
        elif self._recovery.has_more:
            self._recovery.recover(FOREVER)
        events = self._queue.abandon(cause)
        self._batches.give_up()
        self._recovery.release_drained()
        self.progress.notify_all()
        if events:
            self._report(LetterError(f"{count_of(events)} given up: {why}", cause=cause, events=events))
        return len(events)

    def _release_to_family(self) -> None:
        # This includes events that this process has recovered, or that its thread is about to recover.
        until = self._clock() + _LAST_SCAN
        self.progress.wait_while(self._queue.recovering.has_others, until, self._clock, _SCAN_CHECK_INTERVAL)
        self._recovery.recover(FOREVER)
        released = self._queue.release_to_family()
        if released and not any(slot.has_successor() for slot in released):
            # The last successor is ending by now, and may have scanned for the last time before these were released.
            # It marks itself as exiting and then scans; this process releases and then checks the marks. So at least
            # one of the two sees the events.
            self._recovery.recover(FOREVER)
