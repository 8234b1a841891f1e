"""Recovery of orphans, the events that ended processes left, and claiming a ring for this process's own events.

Responsible for: `OrphanRecovery`, when to look for orphans and how many to recover at a time. Not responsible for:
sending them (`batches`), their position in the queue (`_storage.queue`), detecting that a process has ended
(`file_lock`).
"""

from __future__ import annotations

from .. import _log
from .._reporter import unreadable
from .._runtime.signal_errors import reraise_signal_error
from ..errors import LetterError
from .ring import Ring, holds_events

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable

    from .._runtime.condition import Condition
    from .backends import Backends
    from .queue import BoundedQueue
    from .ring import Slot

SCAN_INTERVAL = 1.0  # seconds between two scans for orphans while something is sent
# The same after a scan that failed, for instance because no descriptor was left. Each scan lists a spool's directory.
SCAN_INTERVAL_AFTER_ERROR = 30.0
SLOTS_AT_ONCE = 32  # slots recovered at a time; the others stay available to new processes, which may find none free


def claim_ring(backends: Backends) -> Ring:
    """A ring for the events of this process. It may already contain events of an ended one."""
    return _ring_in(backends.claim(), backends)


class OrphanRecovery:
    """Recovers orphans into the queue of one process. Any thread may call; no method waits for another thread."""

    def __init__(
        self,
        queue: BoundedQueue,
        backends: Backends,
        report: Callable[[LetterError], object],
        clock: Callable[[], float],
        progress: Condition,
    ) -> None:
        self._queue = queue
        self._backends = backends
        self._report = report
        self._clock = clock
        self._progress = progress
        self._next_scan = 0.0
        self._has_reported_failure = False
        self.has_more = False  # the last scan found more than `SLOTS_AT_ONCE` slots

    def for_child(self) -> Backends:
        """The storage for a forked child."""
        return self._backends.for_child()

    def relocate(self) -> None:
        """Claim another slot for this process, if its last one no longer belongs to it."""
        self._backends = self._backends.for_child()
        self._queue.relocate(claim_ring(self._backends))
        self._progress.notify_all()  # events that another process sends now count as settled here
        self.report_losses()

    def report_losses(self) -> None:
        """Count and report lost events of ended processes."""
        for error in self._backends.losses():
            self._queue.refuse(error.cause or "damaged", error.lost)
            self._report(error)

    def has_orphans(self) -> bool:
        """True if there are events of ended processes. Recovers nothing."""
        return self._backends.has_orphans()

    def recover_if_due(self, now: float) -> None:
        if now >= self._next_scan or (self.has_more and not self._queue.recovered_count()):
            self._next_scan = now + SCAN_INTERVAL
            self.recover()

    def recover_soon(self) -> None:
        """Make the next `recover_if_due` scan, however recent the last scan is."""
        self._next_scan = 0.0

    def recover(self, most: float = SLOTS_AT_ONCE) -> None:
        """Queue the events of ended processes, until ``most`` of their slots are queued."""
        if self._queue.is_held_by_this_thread():
            return
        try:
            self._queue.recovering.run(lambda: self._scan(most))
            self.report_losses()
        except Exception as surprise:  # a failure must not affect this process's own events, nor end its thread
            reraise_signal_error(surprise)
            self._next_scan = self._clock() + SCAN_INTERVAL_AFTER_ERROR
            if not self._has_reported_failure:
                self._has_reported_failure = True
                said = f"events of ended processes cannot be searched for: {surprise!r}"
                self._report(LetterError(said, cause="degraded"))
        finally:
            self._progress.notify_all()

    def has_orphans_in_memory(self) -> bool:
        """True if a killed process of the family left events in memory. Takes microseconds; lists no directory."""
        return self._backends.has_orphans_in_memory()

    def release_drained(self) -> None:
        """Release the slots whose events are all settled."""
        for ring in self._queue.take_drained():
            ring.trim()
            ring.slot.release()

    def _scan(self, most: float) -> None:
        self.has_more = self._queue.recovered_count() >= most
        if self.has_more:
            return
        for slot in self._backends.orphans():
            ring = _ring_in(slot, self._backends)
            if not len(ring):
                slot.release()
                continue
            self._queue.add_recovered(ring)
            if self._queue.recovered_count() >= most:
                self.has_more = True
                return


def _ring_in(slot: Slot, backends: Backends) -> Ring:
    if not holds_events(slot.words):
        return Ring(slot)
    ring, wrong = Ring.recovered_from(slot)
    if len(ring):
        _log.note("taken over: %s of an ended process (%s)", _log.said(len(ring)), slot.kind)
    if wrong:
        slot.mark_corrupt()
        backends.note_loss(unreadable(ring.unreadable, wrong))
    return ring
