"""The contract between the client and what carries its events.

Responsible for: the methods and what each guarantees. Not responsible for: any way of carrying, reports
(`_reporter`). The client knows no more of a carrier than this, so no flag tells two carriers apart.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from .._runtime.atfork import this_process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

    from .._reporter import Reporter
    from .._runtime.atfork import Process
    from ..errors import LetterError


class Delivery(ABC):
    """Carries the events of one client in one process.

    Making one starts nothing. It belongs to the process ``owner``; in a forked child only `for_child` may be called.
    """

    owner: Process
    reporter: Reporter  # tells the application what becomes of its events
    exit_timeout: float  # seconds that the end of the process may take for it
    ends_last = False  # it ends after those that hand events to it

    @abstractmethod
    def put(self, event: bytes) -> None:
        """Queue an encoded event, or count and report it as lost. Microseconds; a full queue raises nothing."""

    @abstractmethod
    def refuse(self, cause: str, error: LetterError | None = None) -> None:
        """Count an event that was not queued as lost for ``cause``; report ``error`` if there is one."""

    @abstractmethod
    def flush(self, timeout: float) -> bool:
        """Send what was queued before this call; True when it is settled, False after ``timeout`` seconds."""

    @abstractmethod
    def close(self, timeout: float) -> bool:
        """Refuse further events, settle what waits, give up the rest after ``timeout``. True when all was settled."""

    @abstractmethod
    def begin_shutdown(self) -> None:
        """The process is ending: begin to send what waits. Returns at once, so that many clients share a deadline."""

    @abstractmethod
    def end(self, deadline: float, final: bool) -> None:
        """Wait until all is settled, until the monotonic ``deadline`` at the latest.

        After that each `put` returns when its event is settled, because no thread can be relied on any more. Not in a
        thread that runs an asyncio loop, unless this is ``final``: those events wait for the next end.
        ``final``: the process is certain to end, so what is not settled in time is reported as lost.
        """

    @abstractmethod
    def cancel_shutdown(self) -> None:
        """The process goes on after all: undo `end`."""

    @abstractmethod
    def start_recovery(self) -> None:
        """Begin to send what ended processes left in a spool, which nobody else may find. Returns at once."""

    @property
    def sends_on_os_exit(self) -> bool:
        """Whether `os._exit` sends what waits first."""
        return True

    @abstractmethod
    def recover_from_children(self) -> None:
        """This process has forked: begin to send what a killed child left, if it left something. Microseconds."""

    @abstractmethod
    def defer_signal(self, act: Callable[[], object]) -> bool:
        """For a signal handler. True if it interrupted this very object, which then cannot send anything.

        In that case ``act`` is called from another thread when the interrupted call has released its lock.
        """

    @abstractmethod
    def stats(self) -> dict[str, Any]:
        """Counters, of one moment: accepted = delivered + lost + waiting."""

    @abstractmethod
    def quick_counts(self) -> tuple[int, int, int]:
        """Events that wait, were delivered and were lost, not all of one moment. For `repr`: takes no lock."""

    @abstractmethod
    def for_child(self) -> Delivery:
        """The delivery of this process, a descendant of ``owner``: empty, and the same for all threads that ask."""


class NullDelivery(Delivery):
    """For a client with ``enabled=False``: carries nothing, and allocates nothing for that."""

    def __init__(self, reporter: Reporter, exit_timeout: float) -> None:
        self.owner = this_process()
        self.reporter = reporter
        self.exit_timeout = exit_timeout

    def put(self, event: bytes) -> None:
        pass

    def refuse(self, cause: str, error: LetterError | None = None) -> None:
        pass

    def flush(self, timeout: float) -> bool:
        return True

    def close(self, timeout: float) -> bool:
        return True

    def begin_shutdown(self) -> None:
        pass

    def end(self, deadline: float, final: bool) -> None:
        pass

    def cancel_shutdown(self) -> None:
        pass

    def start_recovery(self) -> None:
        pass

    def recover_from_children(self) -> None:
        pass

    def defer_signal(self, act: Callable[[], object]) -> bool:
        return False

    def stats(self) -> dict[str, Any]:
        counts = ("relayed", "accepted", "delivered", "retried", "adopted", "waiting", "waiting_bytes")
        named = {"pid": self.owner.pid, "mode": "thread", "memory": "private", "lost": {}}
        return {**named, **dict.fromkeys(counts, 0)}

    def quick_counts(self) -> tuple[int, int, int]:
        return 0, 0, 0

    def for_child(self) -> NullDelivery:
        return NullDelivery(self.reporter, self.exit_timeout)
