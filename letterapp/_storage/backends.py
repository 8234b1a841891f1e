"""Storage backends in order of preference: a spool, memory that the family shares, private memory.

Responsible for: `Backends`, their order, and the report if a process has to use private memory.
Not responsible for: the backends themselves.
"""

from __future__ import annotations

from .._reporter import Reporter
from .._runtime import servers
from ..errors import LetterError
from . import memory
from .memory import PrivateMemory, SharedMemory, Unavailable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Iterable, Iterator, Protocol

    from .._config import Settings
    from .ring import Slot

    class Backend(Protocol):
        """A source of slots. Any thread may call; a descendant uses what `for_child` returned."""

        def claim(self) -> Slot | None:
            """A slot for this process, which may contain events of an ended process; None if there is no room."""

        def orphans(self) -> Iterable[Slot]:
            """The slots with events of ended processes, claimed for this process."""

        def has_orphans_in_memory(self) -> bool:
            """True if there are such slots, and that can be determined within microseconds."""

        def losses(self) -> list[LetterError]:
            """Reports of lost events of ended processes since the last call. The caller counts and reports them."""

        def for_child(self) -> Any:
            """The backend for a forked child."""


class Backends:
    """The backends of one client in one process."""

    def __init__(
        self, backends: list[Backend], report: Callable[[LetterError], object] | None = None, unshared: str = ""
    ) -> None:
        """``unshared``: why memory is not shared with the family; empty if that is not to be reported."""
        self._backends = backends
        self._report = report
        self._unshared = unshared
        self._losses: list[LetterError] = []

    @classmethod
    def open(cls, settings: Settings) -> Backends:
        report = Reporter(settings.on_error)
        backends: list[Backend] = [PrivateMemory(settings)]
        unshared = ""
        if settings.enabled:
            try:
                backends.insert(0, SharedMemory(settings))
            except Unavailable as problem:
                unshared = str(problem)
            if settings.spool:
                from .spool import Spool

                backends.insert(0, Spool(settings, report, servers.is_before_fork))
        return cls(backends, report, unshared)

    def claim(self) -> Slot:
        slots = (backend.claim() for backend in self._backends)
        slot = next(slot for slot in slots if slot is not None)  # private memory always has room
        if slot.kind == PrivateMemory.kind:
            self._report_unshared()
        return slot

    def has_orphans(self) -> bool:
        """True if an ended process has left events that this one can recover."""
        for slot in self.orphans():
            slot.release()
            return True
        return False

    def orphans(self) -> Iterator[Slot]:
        for backend in self._backends:
            yield from backend.orphans()

    def has_orphans_in_memory(self) -> bool:
        """The same for shared memory only; takes microseconds."""
        return any(backend.has_orphans_in_memory() for backend in self._backends)

    def note_loss(self, error: LetterError) -> None:
        self._losses.append(error)

    def losses(self) -> list[LetterError]:
        mine, self._losses = self._losses, []
        return mine + [error for backend in self._backends for error in backend.losses()]

    def for_child(self) -> Backends:
        backends = [backend.for_child() for backend in self._backends]
        shared, is_shared = _shared(self._backends), _shared(backends)
        if shared is not None and is_shared is None and shared.is_first_without():
            return Backends(
                backends,
                self._report,
                "other code closed the descriptor of the shared memory, and no new one is available",
            )
        return Backends(backends, self._report, self._unshared)

    def _report_unshared(self) -> None:
        """Report once in a family that a kill loses events of this process."""
        why, self._unshared = self._unshared, ""
        shared = _shared(self._backends)
        if shared is not None and shared.is_first_without():
            why = f"more than {memory.SLOTS} processes use one client at a time"
        if why and self._report is not None:
            said = f"events are kept in private memory ({why}): they are lost if this process is killed"
            self._report(LetterError(said, cause="degraded"))


def _shared(backends: list[Any]) -> SharedMemory | None:
    return next((backend for backend in backends if isinstance(backend, SharedMemory)), None)
