"""Delivery by a relay, with a fallback: the process itself sends what the relay does not accept.

Responsible for: `RelayDelivery`, which chooses between the relay and the local fallback, and the counters of both. Not
responsible for: the connection (`_relay.client`), starting a relay (`launcher`), sending (`sender`).

While the relay accepts events, no thread runs in this process. An event that was sent to it is kept until it is
acknowledged. If the relay is lost before that, the process sends the event itself.
"""

from __future__ import annotations

import _thread
import os
import threading

from .. import _log
from .._delivery import shutdown
from .._delivery.base import Delivery
from .._delivery.sender import Sender
from .._reporter import TroubleReporter
from .._runtime import servers
from .._runtime.clock import monotonic
from .._runtime.condition import Condition
from .._runtime.guards import ReentrancyGuard, ThreadClaim
from ..errors import LetterError
from . import launcher, protocol
from .client import RelayClient

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

    from .._config import Settings

_WHILE_RETURNING = 0.05  # seconds until a waiting thread checks again: an exception may have stopped the other one
_FIRST_START, _LONGEST_START = 1.0, 60.0  # seconds between two attempts to start a relay


class LeaseKeeper:
    """Keeps a lease on a relay, and starts another relay if that one is lost. Any thread may call."""

    def __init__(
        self,
        settings: Settings,
        clock: Callable[[], float],
        lease: Any,
        report_trouble: TroubleReporter,
        client: RelayClient,
        progress: Condition,
    ) -> None:
        """``progress`` is notified after each attempt to start a relay."""
        self._settings = settings
        self._clock = clock
        self.lease = lease  # forked children inherit it
        self._report_trouble = report_trouble
        self._client = client
        self._progress = progress
        self._claim = ThreadClaim()  # held by the thread that starts a relay
        self._is_needed = True
        self._next_start = 0.0
        self._wait = _FIRST_START

    def is_starting(self) -> bool:
        return self._claim.is_active()

    def note_success(self) -> None:
        """The relay works: if another one is needed, it may be started soon."""
        self._wait = _FIRST_START

    def start_if_due(self) -> None:
        """Start a relay in a thread, or in this one if no thread can run, unless the last attempt was too recent."""
        now = self._clock()
        if now < self._next_start or not self._is_needed:
            return
        self._next_start = now + self._wait
        self._wait = min(2 * self._wait, _LONGEST_START)
        claim = self._claim = ThreadClaim()
        with claim.starting:
            claim.started = servers.start_thread(self._start)
        if not claim.started:
            self._start()

    def retire(self) -> None:
        """No relay is needed any more: the process sends everything itself."""
        self._is_needed = False

    def resume(self) -> None:
        """Undo `retire`."""
        self._is_needed = True

    def close(self) -> None:
        """Release this process's lease. Its children have separate copies."""
        lease, self.lease = self.lease, None
        if lease is not None:
            lease.close()

    def _start(self) -> None:
        try:
            self._start_and_join()
        except LetterError as problem:
            self._report_trouble(str(problem))
        finally:
            self._claim = ThreadClaim()
            self._progress.notify_all()

    def _start_and_join(self) -> None:
        lease, before = launcher.lease(self._settings), self.lease
        self.lease = lease
        if before is not None:
            before.close()
        if not self._is_needed and lease is not None:
            lease.close()  # the client was closed meanwhile
        self._client.retry_soon()


class Reported:
    """What a `RelayDelivery` has reported about its relay."""

    def __init__(self) -> None:
        self.is_away = False  # reported that there is no relay at present
        self.breaks = 0  # number of lost connections when that was reported
        self.has_unsettled = False  # reported what the relay still has at the end
        self.start_trouble = ""  # why no relay could be started; still to be reported


class RelayDelivery(Delivery):
    """Sends the events of this process to a relay, or delivers them itself."""

    def __init__(
        self,
        settings: Settings,
        clock: Callable[[], float] = monotonic,
        local: Sender | None = None,
        lease: Any = None,
    ) -> None:
        """``lease`` keeps a relay running: the first process of a family gets it in `start`, and the others inherit it.

        ``local`` sends the events that the relay does not accept.
        """
        self._settings = settings
        self._clock = clock
        self._progress = Condition() if local is None else local.progress
        self._local = local or Sender(settings, clock, progress=self._progress)
        # Registered separately, because its thread may outlive this object. It ends after this object, which may still
        # give it events.
        self._local.ends_last = True
        shutdown.register(self._local)
        self.owner = self._local.owner
        self.reporter = self._local.reporter
        self.exit_timeout = settings.exit_timeout
        self._children: dict[int, RelayDelivery] = {}
        self._has_left = False  # the client is closed or the process is ending: it sends everything itself
        self._handling = ReentrancyGuard()  # threads that handle reports of the relay, and may call `on_error`
        self._returning = threading.Lock()  # held by the thread that returns the events of a lost relay
        self._reported = Reported()
        self._report_trouble = TroubleReporter(self.reporter, clock)
        self._client = RelayClient(
            lambda: launcher.place(settings),
            lambda: protocol.Caller(settings.api_key, settings.base_url, protocol.EVENTS),
            settings.max_queue_events,
            settings.max_queue_bytes,
            settings.relay_user,
        )
        self._keeper = LeaseKeeper(settings, clock, lease, self._report_trouble, self._client, self._progress)

    @classmethod
    def start(cls, settings: Settings) -> RelayDelivery:
        """Start a relay if there is none. Blocks until it is ready or cannot be started.

        Raises `LetterError` if the relay refuses this client, or if these options can never work with one.
        """
        launcher.check(settings)
        try:
            return cls(settings, lease=launcher.lease(settings) if settings.enabled else None)
        except launcher.NoRelay as problem:
            sender = cls(settings)
            sender._reported.start_trouble = str(problem)
            sender._client.news = True
            return sender

    def put(self, event: bytes) -> None:
        if self._has_left and self._local.has_resumed():
            self.cancel_shutdown()
        if self._has_left or not self._client.send_event(event):
            if self._client.has_news():
                self._handle_news()  # events of a lost relay come first
            self._local.put(event)
        elif self._client.news:
            self._handle_news()

    def flush(self, timeout: float) -> bool:
        deadline = self._clock() + timeout
        self._client.request_flush()
        # The local queue first, because the relay works meanwhile; and again for what the relay has returned.
        self._local.flush(timeout)
        settled = self._await_relay(deadline)
        return self._local.flush(max(0.0, deadline - self._clock())) and settled

    def close(self, timeout: float) -> bool:
        deadline = self._clock() + timeout
        self._leave()
        self._local.drain(deadline)
        settled = self._await_relay(deadline)
        settled = self._local.close_by(deadline, timeout) and settled
        self._await_start(deadline)
        self._report_unsettled(f"the {timeout:g} s timeout of close()")
        self._client.close()
        self._keeper.close()
        self._local.emit_log(ending=True)
        return settled

    def begin_shutdown(self) -> None:
        self._leave()

    def _leave(self) -> None:
        self._has_left = True
        self._keeper.retire()
        self._client.request_flush()

    def end(self, deadline: float, final: bool) -> None:
        self._local.drain(deadline)
        self._await_relay(deadline)
        if final:
            self._report_unsettled(f"exit_timeout ({self.exit_timeout:g} s) at the end of the process")
            self._client.close()
        self._local.emit_log(ending=True)

    def cancel_shutdown(self) -> None:
        if not self._local.is_closed:
            self._has_left = False
            self._keeper.resume()
            self._client.reopen()

    def defer_signal(self, act: Callable[[], object]) -> bool:
        if self._client.is_held_by_this_thread():
            _thread.start_new_thread(self._client.call_when_released, (act,))
            return True
        return self._local.defer_signal(act)

    def stats(self) -> dict[str, Any]:
        self._client.read_acks()
        if self._client.has_news():
            self._handle_news()
        stats = self._local.stats()
        link = self._client.counts()
        for cause, count in link.lost.items():
            stats["lost"][cause] = stats["lost"].get(cause, 0) + count
        stats["relayed"] = link.relayed
        stats["accepted"] += link.relayed
        stats["delivered"] += link.delivered
        stats["waiting"] += link.waiting
        stats["waiting_bytes"] += link.waiting_bytes
        if link.is_up:
            stats["mode"] = "relay"
        return stats

    def quick_counts(self) -> tuple[int, int, int]:
        own, relayed = self._local.quick_counts(), self._client.quick_counts()
        return own[0] + relayed[0], own[1] + relayed[1], own[2] + relayed[2]

    def for_child(self) -> RelayDelivery:
        child = RelayDelivery(self._settings, self._clock, self._local.for_child(), self._keeper.lease)
        if self._local.is_closed:
            child._leave()
        # `setdefault` is atomic, where a lock might have been held by some thread at the fork.
        return self._children.setdefault(os.getpid(), child)

    # What concerns the local sender only, which is itself notified of forks and of the end of the process.

    def refuse(self, cause: str, error: LetterError | None = None) -> None:
        self._local.refuse(cause, error)

    def start_recovery(self) -> None:
        self._local.start_recovery()

    def recover_from_children(self) -> None:
        pass

    @property
    def sends_on_os_exit(self) -> bool:
        return self._local.sends_on_os_exit

    # Reports of the connection.

    def _handle_news(self) -> None:
        """Report losses, send again what a lost relay had, and start another relay if necessary."""
        if self._client.is_held_by_this_thread() or self._handling.is_here():
            return  # a signal handler that interrupted it, or `on_error` below: the interrupted call gets here again
        # Returned events are queued under a lock, and a report of that must not be logged there.
        self._handling.run(lambda: _log.defer(self._handle_client))
        self._local.emit_log()

    def _handle_client(self) -> None:
        link = self._client
        link.news = False
        if link.has_returned() and not self._returning.locked():
            # (If another thread acquires the lock between these lines, this one waits, and finds nothing left.)
            with self._returning:
                event = link.next_returned()
                while event is not None:
                    self._local.put(event)
                    link.confirm_returned()
                    event = link.next_returned()
            self._progress.notify_all()
        for error in link.take_errors():
            self.reporter(error)
        reported = self._reported
        trouble, reported.start_trouble = reported.start_trouble, ""
        if trouble:
            reported.is_away = True
            _log.note("mode: thread, there is no relay")
            self._report_trouble(trouble)
        if not link.trouble and not trouble:
            self._keeper.note_success()
            if reported.is_away:
                _log.note("mode: relay, it accepts events again")
            reported.is_away = False
            return
        if reported.breaks != link.breaks:
            self._report_trouble.forget()  # it is another relay that was lost
        if reported.breaks != link.breaks or not reported.is_away:
            if not reported.is_away:
                _log.note("mode: thread, the relay does not accept events")
            reported.breaks = link.breaks
            reported.is_away = True
            self._report_trouble(
                f"the relay {link.trouble}; this process sends its events itself until the relay is back"
            )
        if self._settings.relay is True and not link.is_connected():
            self._keeper.start_if_due()

    def _report_unsettled(self, time_limit: str) -> None:
        """Report events that the relay has not settled: this process will not learn whether it delivers them."""
        events = self._client.unsettled()
        if events and not self._reported.has_unsettled:
            self._reported.has_unsettled = True
            said = (
                f"{len(events):,} events were sent to the relay and are not settled after {time_limit}: "
                "it keeps trying, and logs those that it gives up"
            )
            self.reporter(LetterError(said, cause="degraded", lost=0, events=events))

    def _await_relay(self, deadline: float) -> bool:
        """Wait until what was sent to the relay is settled, or returned to the local queue; False at ``deadline``."""
        link = self._client
        if not self._local.may_wait() or link.is_held_by_this_thread() or self._handling.is_here():
            return False
        target = link.sent_count
        while not link.wait(target, deadline, self._clock):
            if self._clock() >= deadline or link.is_held_by_this_thread():
                break
            if not link.is_connected():
                break
        self._handle_news()
        while link.has_returned() and not link.has_settled(target):  # another thread is returning them
            with self._progress.waiter() as waiter:
                left = deadline - self._clock()
                if left <= 0 or not link.has_returned():
                    break
                waiter.wait(min(left, _WHILE_RETURNING))
            self._handle_news()
        return link.has_settled(target)

    def _await_start(self, deadline: float) -> None:
        """Wait for a relay that is being started: otherwise it would start, and find no client."""
        if self._local.may_wait():
            self._progress.wait_while(self._keeper.is_starting, deadline, self._clock)
