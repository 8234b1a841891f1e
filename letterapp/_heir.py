"""Recovery of what ended processes left, and the ring for this process's own events.

Responsible for: `Heir`, when to look for orphans and how many to take over at a time. Not responsible for: sending them
(`_batches`), their place in the queue (`_outbox`), how it is known that a process has ended (`_locks`).
"""

from __future__ import annotations

from ._handlers import pass_on
from ._reporter import unreadable
from ._ring import Ring, holds_events
from .errors import LetterError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable

    from ._bell import Bell
    from ._outbox import Outbox
    from ._ring import Slot
    from ._stores import Stores

LOOK = 1.0  # seconds between two looks for orphans while something is sent
LOOK_AFTER_FAULT = 30.0  # the same after one that failed, as for want of descriptors: each lists a spool's directory
FEW = 32  # slots that are recovered at a time; the others are left to new processes, which might find none free


def home(stores: Stores) -> Ring:
    """A ring for the events of this process. It may hold an ended one's already."""
    return _ring_in(stores.claim(), stores)


class Heir:
    """Recovers for one process, into its queue. Any thread may call; none waits for another here."""

    def __init__(
        self,
        outbox: Outbox,
        stores: Stores,
        report: Callable[[LetterError], object],
        clock: Callable[[], float],
        progress: Bell,
    ) -> None:
        self._outbox = outbox
        self._stores = stores
        self._report = report
        self._clock = clock
        self._progress = progress
        self._next_look = 0.0
        self._is_told = False  # that looking failed
        self.left_some = False  # there were more than `FEW`

    def for_child(self) -> Stores:
        """The storage for a forked child."""
        return self._stores.for_child()

    def move(self) -> None:
        """Give this process another slot, if its last one is no longer its own."""
        self._stores = self._stores.for_child()
        self._outbox.move(home(self._stores))
        self.tell_losses()

    def tell_losses(self) -> None:
        """Count and report events of ended processes that are known to be lost."""
        for error in self._stores.losses():
            self._outbox.refuse(error.cause or "damaged", error.lost)
            self._report(error)

    def finds_orphans(self) -> bool:
        """True when ended processes have left something. Recovers nothing."""
        return self._stores.finds_orphans()

    def look_if_due(self, now: float) -> None:
        if now >= self._next_look or (self.left_some and not self._outbox.adopted()):
            self._next_look = now + LOOK
            self.take_over()

    def look_soon(self) -> None:
        """Have the next `look_if_due` look, even if the last look was a moment ago."""
        self._next_look = 0.0

    def take_over(self, most: float = FEW) -> None:
        """Queue what ended processes left, until ``most`` of their slots are queued."""
        if self._outbox.held_by_this_thread():
            return
        try:
            self._outbox.looking.run(lambda: self._look(most))
            self.tell_losses()
        except Exception as surprise:  # it must cost neither this process's own events nor its thread
            pass_on(surprise)
            self._next_look = self._clock() + LOOK_AFTER_FAULT
            if not self._is_told:
                self._is_told = True
                said = f"what ended processes left cannot be looked for: {surprise!r}"
                self._report(LetterError(said, cause="degraded"))
        finally:
            self._progress.ring()

    def has_orphans_in_memory(self) -> bool:
        """True when a killed process of the family has left something in memory. Microseconds; lists no directory."""
        return self._stores.has_orphans_in_memory()

    def give_back(self) -> None:
        """Release the slots whose events are all settled."""
        for ring in self._outbox.given_back():
            ring.trim()
            ring.slot.release()

    def _look(self, most: float) -> None:
        self.left_some = self._outbox.adopted() >= most
        if self.left_some:
            return
        for slot in self._stores.orphans():
            ring = _ring_in(slot, self._stores)
            if not len(ring):
                slot.release()
                continue
            self._outbox.adopt(ring)
            if self._outbox.adopted() >= most:
                self.left_some = True
                return


def _ring_in(slot: Slot, stores: Stores) -> Ring:
    if not holds_events(slot.words):
        return Ring(slot)
    ring, wrong = Ring.left_in(slot)
    if wrong:
        slot.spoil()
        stores.note_loss(unreadable(ring.unreadable, wrong))
    return ring
