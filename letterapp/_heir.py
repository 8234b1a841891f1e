"""What ended processes left: found, taken over, given back. And the place where this process's own events lie.

Lives here: `Heir`, when to look and how much to take over at a time. Never here: sending it (`_sender`), what waits in
which order (`_outbox`), how it is known who has ended (`_locks`).
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

LOOK = 1.0  # seconds from one look for what ended processes left to the next, while something is sent
LOOK_AFTER_FAULT = 30.0  # the same after one that failed, as without a descriptor; each costs the directory's listing
FEW = 32  # dead ones' slots taken over at a time: what is left a newborn process can go on in, and would else find none


def home(stores: Stores) -> Ring:
    """A ring for the events of this process, which may hold a dead one's already."""
    return _ring_in(stores.claim(), stores)


class Heir:
    """Takes over for one process, into its outbox. Any thread may ask; nothing here waits for another."""

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
        """Where the events of a forked child may lie."""
        return self._stores.for_child()

    def move(self) -> None:
        """Have this process go on in another place, if the one of before is not its own any more."""
        self._stores = self._stores.for_child()
        self._outbox.move(home(self._stores))
        self.tell_losses()

    def tell_losses(self) -> None:
        """Count and report the events of ended processes that are known to be gone."""
        for error in self._stores.losses():
            self._outbox.refuse(error.cause or "damaged", error.lost)
            self._report(error)

    def finds_orphans(self) -> bool:
        """True when ended processes have left something. Takes nothing over."""
        return self._stores.finds_orphans()

    def look_if_due(self, now: float) -> None:
        if now >= self._next_look or (self.left_some and not self._outbox.adopted()):
            self._next_look = now + LOOK
            self.take_over()

    def look_soon(self) -> None:
        """Have the next turn look, though one before it has just done so."""
        self._next_look = 0.0

    def take_over(self, most: float = FEW) -> None:
        """Adopt what ended processes left, until ``most`` of their slots are waiting to be sent."""
        if self._outbox.held_by_this_thread():
            return
        try:
            self._outbox.looking.run(lambda: self._look(most))
            self.tell_losses()
        except Exception as surprise:  # a fault of ours must cost neither this process's own events nor its thread
            pass_on(surprise)
            self._next_look = self._clock() + LOOK_AFTER_FAULT
            if not self._is_told:
                self._is_told = True
                said = f"what ended processes left cannot be looked for: {surprise!r}"
                self._report(LetterError(said, cause="degraded"))
        finally:
            self._progress.ring()

    def has_orphans_in_memory(self) -> bool:
        """True when a killed process of the family has left something. What is in a spool would take a listing."""
        return self._stores.has_orphans_in_memory()

    def give_back(self) -> None:
        """Free the slots of those whose events are settled."""
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
