"""The background thread of one process's client.

    STOPPED ----- wake ----> STARTING ----> RUNNING ----- idle, or asked to stop ----> STOPPED
                                |
                                +----> UNAVAILABLE (no thread can run here: calls send) ----- wake ----> STARTING

Responsible for: starting the thread, at most one, when there is something to send, and stopping it when it is idle, so
that a process that forks has no threads. Not responsible for: what it sends, and when (`batches`).

The thread stops under the queue's lock, and only if the queue is empty. So an event that is queued after the thread has
checked the queue for the last time starts a new one.
"""

from __future__ import annotations

import _thread
import os
from enum import Enum

from .. import _log
from .._runtime import servers, threads
from .._runtime.atfork import announce_thread_end
from .._runtime.clock import FOREVER
from .._runtime.condition import Condition

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable

    from .._runtime.atfork import Process
    from .._storage.queue import BoundedQueue

IDLE = 5.0  # seconds without an event after which the thread stops; starting it again takes about 50 us
_HANDLER = 1.0  # seconds that a caller waits for a handler of the logger in the thread that is to end
_CHECK_INTERVAL = 0.05  # seconds after which a caller that waits for the thread's end checks again


class WorkerState(Enum):
    STOPPED = "stopped"
    STARTING = "starting"
    RUNNING = "running"
    UNAVAILABLE = "unavailable"


class Worker:
    """Manages the thread. Any thread, signal handler or callback may call. A forked child creates its own."""

    def __init__(self, process: Process, queue: BoundedQueue, progress: Condition) -> None:
        """Starts nothing. ``progress`` is notified when the thread has stopped, or could not start."""
        self._process = process
        self._queue = queue
        self._progress = progress
        self.wakeup = Condition()  # notified when there may be something to send; also for a caller that sends instead
        self._stops_when_idle = False
        self._token: object = None  # identifies the current thread; one with another token stops
        self._started_by: object = _thread.start_new_thread  # the function that started it
        self._native_id = 0  # the operating system's ID of the last thread
        self._is_unavailable = False

    @property
    def state(self) -> WorkerState:
        claim = self._queue.claim
        if claim.started:
            return WorkerState.RUNNING
        if claim.is_active():
            return WorkerState.STARTING
        return WorkerState.UNAVAILABLE if self._is_unavailable else WorkerState.STOPPED

    @property
    def is_there(self) -> bool:
        """True while the thread is running or being started."""
        return self._queue.has_worker

    def notify(self) -> None:
        """Make the thread check the queue, if it is running. Starts none."""
        self.wakeup.notify_all()

    def wake(self, send: Callable[[], float], before_start: Callable[[], object], calls_settle: bool) -> bool:
        """Make the thread check the queue, starting it if necessary; False if no thread can run.

        ``send``: sends what is due, and returns the seconds until there is more to do, infinity for nothing.
        ``before_start``: called before a thread is started.
        ``calls_settle``: calls wait until their events are settled, so each `put` has to return WAKE.
        """
        claim = self._queue.claim_worker()
        if claim is None:
            self.wakeup.notify_all()
            if self._started_by is _thread.start_new_thread:
                return True
            # gevent has patched in the meantime. The running thread is a real one, in which gevent's objects do not
            # work: it stops when it sees that its token has been replaced, and a greenlet replaces it.
            claim = self._queue.replace_worker()
        before_start()
        with claim.starting:
            claim.started = self._start(send)
        if self._is_unavailable == claim.started:
            _log.note("mode: %s", "thread" if claim.started else "inline, because no thread can run")
        self._is_unavailable = not claim.started
        self._queue.set_wake_on_put(calls_settle or self._is_unavailable)
        if self._is_unavailable:
            self._queue.release_worker()
            self._progress.notify_all()  # whoever relied on this thread has to send itself
        return claim.started

    def stop_when_idle(self) -> None:
        """Make the thread stop as soon as the queue is empty."""
        self._stops_when_idle = True

    def await_stop(self, deadline: float, clock: Callable[[], float]) -> None:
        """Make an idle thread stop; wait until the system has removed it, or until ``deadline`` of ``clock``."""

        patience = clock() + _HANDLER

        def is_idle() -> bool:
            if not (self._queue.has_worker and self._queue.is_empty()):
                return False
            if clock() >= patience and _log.is_handler_running_elsewhere():
                return False  # it may block for long
            # Asked each time: another thread's call may have started a new one since, which was not asked yet.
            self.stop_when_idle()
            self.notify()
            return True

        self._progress.wait_while(is_idle, deadline, clock, _CHECK_INTERVAL)  # a new event does not notify
        if not self._queue.has_worker:
            thread, self._native_id = self._native_id, 0
            threads.wait_until_gone(thread, deadline - clock())

    def _start(self, send: Callable[[], float]) -> bool:
        self._stops_when_idle = False
        self._started_by = _thread.start_new_thread
        self._token = token = object()
        return servers.start_thread(self._run, token, send)

    # Runs in the thread.

    def _run(self, token: object, send: Callable[[], float]) -> None:
        stopped = False
        self._native_id = _thread.get_native_id()
        try:
            # A callback may have forked, and this is the child; or another thread has replaced this one.
            while self._process.pid == os.getpid() and self._token is token:
                if self._started_by is not _thread.start_new_thread:
                    self._queue.set_wake_on_put(True)  # gevent has patched: the next call starts a greenlet
                    return
                with self.wakeup.waiter() as waiter:
                    wait = send()
                    if wait < FOREVER:
                        waiter.wait(wait)
                    elif self._stops_when_idle or self._queue.closed or not waiter.wait(IDLE):
                        _log.emit()  # losses that were only counted; not below, where a fork waits for this thread
                        stopped = announce_thread_end(self._queue.try_stop_worker)
                        if stopped:
                            return
        finally:
            if self._process.pid == os.getpid() and self._token is token:
                if not stopped:
                    announce_thread_end(self._release_worker)
                self._progress.notify_all()

    def _release_worker(self) -> bool:
        self._queue.release_worker()
        return True
