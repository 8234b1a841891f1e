"""Where this process's events may lie: the first place that has room.

Lives here: `Stores`, the order of the places, and the report of a process whose place keeps less than was promised.
Never here: what a place is, or how events lie in it.
"""

from __future__ import annotations

from . import _memory, _servers
from ._memory import PrivateMemory, SharedMemory, Unavailable
from ._reporter import Reporter
from .errors import LetterError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Iterable, Iterator, Protocol

    from ._ring import Slot
    from ._settings import Settings

    class Store(Protocol):
        """A place for slots. Any thread may ask; a descendant may ask what `for_child` gave it."""

        def claim(self) -> Slot | None:
            """A slot for this process, which may hold a dead one's events; None when there is no room."""

        def orphans(self) -> Iterable[Slot]:
            """The slots with events of processes that have ended: from now on this process's."""

        def has_orphans_in_memory(self) -> bool:
            """True when there are such slots, if that can be seen within microseconds."""

        def losses(self) -> list[LetterError]:
            """Reports of ended processes' events that are gone, since the last call. Who asks counts and tells them."""

        def for_child(self) -> Any:
            """The place as a forked child is to use it."""


class Stores:
    """The places of one client in one process."""

    def __init__(
        self, places: list[Store], report: Callable[[LetterError], object] | None = None, unshared: str = ""
    ) -> None:
        """``unshared``: why events in memory are out of the family's reach, where that is to be reported."""
        self._places = places
        self._report = report
        self._unshared = unshared
        self._losses: list[LetterError] = []

    @classmethod
    def open(cls, settings: Settings) -> Stores:
        report = Reporter(settings.on_error)
        places: list[Store] = [PrivateMemory(settings)]
        unshared = ""
        if settings.enabled:
            try:
                places.insert(0, SharedMemory(settings))
            except Unavailable as problem:
                unshared = str(problem)
            if settings.spool:
                from ._spool import Spool

                places.insert(0, Spool(settings, report, _servers.is_before_fork))
        return cls(places, report, unshared)

    def claim(self) -> Slot:
        slots = (place.claim() for place in self._places)
        slot = next(slot for slot in slots if slot is not None)  # private memory always has room
        if slot.kind == PrivateMemory.kind:
            self._tell_unshared()
        return slot

    def finds_orphans(self) -> bool:
        """True when an ended process has left events where this one can take them over."""
        for slot in self.orphans():
            slot.release()
            return True
        return False

    def orphans(self) -> Iterator[Slot]:
        for place in self._places:
            yield from place.orphans()

    def has_orphans_in_memory(self) -> bool:
        """The same within microseconds, and of the family's memory alone."""
        return any(place.has_orphans_in_memory() for place in self._places)

    def note_loss(self, error: LetterError) -> None:
        self._losses.append(error)

    def losses(self) -> list[LetterError]:
        mine, self._losses = self._losses, []
        return mine + [error for place in self._places for error in place.losses()]

    def for_child(self) -> Stores:
        places = [place.for_child() for place in self._places]
        shared, is_shared = _shared(self._places), _shared(places)
        if shared is not None and is_shared is None and shared.is_first_without():
            return Stores(places, self._report, "what it shared is closed, and there is no other")
        return Stores(places, self._report, self._unshared)

    def _tell_unshared(self) -> None:
        """Say that what is promised of a family does not hold here: once in a family."""
        why, self._unshared = self._unshared, ""
        shared = _shared(self._places)
        if shared is not None and shared.is_first_without():
            why = f"more than {_memory.SLOTS} processes use one client at a time"
        if why and self._report is not None:
            said = f"events lie in memory that only their own process has ({why}): if it is killed, they are lost"
            self._report(LetterError(said, cause="degraded"))


def _shared(places: list[Any]) -> SharedMemory | None:
    return next((place for place in places if isinstance(place, SharedMemory)), None)
