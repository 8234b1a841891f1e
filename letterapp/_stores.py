"""Where this process's events may lie: the first place that has room.

Lives here: `Stores`, the order of the places. Never here: what a place is, or how events lie in it.
"""

from __future__ import annotations

from ._delivery import Reporter
from ._memory import PrivateMemory, SharedMemory, Unavailable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Iterable, Iterator, Protocol

    from ._ring import Slot
    from ._settings import Settings

    class Store(Protocol):
        """A place for slots. Any thread may ask; a descendant may ask what `for_child` gave it."""

        def claim(self) -> Slot | None:
            """A slot for this process, which may hold a dead one's events; None when there is no room."""

        def orphans(self) -> Iterable[Slot]:
            """The slots with events of processes that have ended: from now on this process's."""

        def has_orphans(self) -> bool:
            """True when there are such slots, as far as that can be seen within microseconds."""

        def dropped(self) -> list[bytes]:
            """The events of ended processes that gave way for a slot, since the last call."""

        def for_child(self) -> Any:
            """The place as a forked child is to use it."""


class Stores:
    """The places of one client in one process."""

    def __init__(self, places: list[Store]) -> None:
        self._places = places

    @classmethod
    def open(cls, settings: Settings) -> Stores:
        places: list[Store] = [PrivateMemory(settings)]
        if settings.enabled:
            try:
                places.insert(0, SharedMemory(settings))
            except Unavailable:
                pass
            if settings.spool:
                from ._spool import Spool

                places.insert(0, Spool(settings, Reporter(settings.on_error)))
        return cls(places)

    def claim(self) -> Slot:
        slots = (place.claim() for place in self._places)
        return next(slot for slot in slots if slot is not None)  # private memory always has room

    def orphans(self) -> Iterator[Slot]:
        for place in self._places:
            yield from place.orphans()

    def has_orphans(self) -> bool:
        return any(place.has_orphans() for place in self._places)

    def dropped(self) -> list[bytes]:
        return [event for place in self._places for event in place.dropped()]

    def for_child(self) -> Stores:
        return Stores([place.for_child() for place in self._places])
