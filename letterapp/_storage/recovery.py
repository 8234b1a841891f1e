"""Recovery of what ended processes left, and the ring for this process's own events.

Responsible for: `OrphanRecovery`, when to look for orphans and how many to take over at a time. Not responsible for:
sending them (`batches`), their place in the queue (`_storage.queue`), how it is known that a process has ended
(`file_lock`).
"""

from __future__ import annotations

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

LOOK = 1.0  # seconds between two looks for orphans while something is sent
LOOK_AFTER_FAULT = 30.0  # the same after one that failed, as for want of descriptors: each lists a spool's directory
SLOTS_AT_ONCE = 32  # slots recovered at a time; the others are left to new processes, which might find none free


def claim_ring(backends: Backends) -> Ring:
    """A ring for the events of this process. It may hold an ended one's already."""
    return _ring_in(backends.claim(), backends)


class OrphanRecovery:
    """Recovers for one process, into its queue. Any thread may call; none waits for another here."""

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
        self._next_look = 0.0
        self._is_told = False  # that looking failed
        self.has_more = False  # there were more than `SLOTS_AT_ONCE`

    def for_child(self) -> Backends:
        """The storage for a forked child."""
        return self._backends.for_child()

    def relocate(self) -> None:
        """Give this process another slot, if its last one is no longer its own."""
        self._backends = self._backends.for_child()
        self._queue.relocate(claim_ring(self._backends))
        self._progress.notify_all()  # what another process sends now is nothing that anybody here waits for
        self.report_losses()

    def report_losses(self) -> None:
        """Count and report events of ended processes that are known to be lost."""
        for error in self._backends.losses():
            self._queue.refuse(error.cause or "damaged", error.lost)
            self._report(error)

    def has_orphans(self) -> bool:
        """True when ended processes have left something. Recovers nothing."""
        return self._backends.has_orphans()

    def recover_if_due(self, now: float) -> None:
        if now >= self._next_look or (self.has_more and not self._queue.recovered_count()):
            self._next_look = now + LOOK
            self.recover()

    def recover_soon(self) -> None:
        """Have the next `recover_if_due` look, even if the last look was a moment ago."""
        self._next_look = 0.0

    def recover(self, most: float = SLOTS_AT_ONCE) -> None:
        """Queue what ended processes left, until ``most`` of their slots are queued."""
        if self._queue.is_held_by_this_thread():
            return
        try:
            self._queue.recovering.run(lambda: self._look(most))
            self.report_losses()
        except Exception as surprise:  # it must cost neither this process's own events nor its thread
            reraise_signal_error(surprise)
            self._next_look = self._clock() + LOOK_AFTER_FAULT
            if not self._is_told:
                self._is_told = True
                said = f"events of ended processes cannot be searched for: {surprise!r}"
                self._report(LetterError(said, cause="degraded"))
        finally:
            self._progress.notify_all()

    def has_orphans_in_memory(self) -> bool:
        """True when a killed process of the family has left something in memory. Microseconds; lists no directory."""
        return self._backends.has_orphans_in_memory()

    def release_drained(self) -> None:
        """Release the slots whose events are all settled."""
        for ring in self._queue.take_drained():
            ring.trim()
            ring.slot.release()

    def _look(self, most: float) -> None:
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
    if wrong:
        slot.mark_corrupt()
        backends.note_loss(unreadable(ring.unreadable, wrong))
    return ring
