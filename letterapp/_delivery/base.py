"""The interface through which the client delivers events.

Responsible for: the methods and what each guarantees. Not responsible for: the implementations (`sender`,
`_relay.delivery`), reports (`_reporter`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from .._runtime.atfork import this_process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

    from .._config import Settings
    from .._reporter import Reporter
    from .._runtime.atfork import Process
    from ..errors import LetterError


class Delivery(ABC):
    """Delivers the events of one client in one process.

    Creating one starts nothing. It belongs to the process ``owner``; in a forked child only `for_child` may be called.
    """

    owner: Process
    reporter: Reporter  # reports losses and other problems to the application
    exit_timeout: float  # maximum time that `end` takes, in seconds
    _settings: Settings  # of every delivery that is registered with `shutdown`
    ends_last = False  # it ends after the deliveries that may still pass events to it

    @abstractmethod
    def put(self, event: bytes) -> None:
        """Queue an encoded event, or count and report it as lost. Never raises because the queue is full.

        Takes microseconds, unless `overflow="block"` makes it wait or the process is ending.
        """

    @abstractmethod
    def refuse(self, cause: str, error: LetterError | None = None) -> None:
        """Count an event that was not queued as lost for ``cause``; report ``error`` if it is given."""

    @abstractmethod
    def flush(self, timeout: float) -> bool:
        """Send the events queued before this call. True if all were settled within ``timeout`` seconds."""

    @abstractmethod
    def close(self, timeout: float) -> bool:
        """Refuse further events and send those in the queue. Gives up the rest after ``timeout`` seconds.

        True if none was given up.
        """

    @abstractmethod
    def begin_shutdown(self) -> None:
        """The process is ending: start sending everything. Returns at once, so that all clients share one deadline."""

    @abstractmethod
    def end(self, deadline: float, final: bool) -> None:
        """Wait until everything is settled, or until the monotonic ``deadline``.

        After that each `put` returns when its event is settled, because threads may not run any more. Unless this is
        ``final``, that does not apply in a thread that runs an asyncio loop: those events wait for the next `end`.
        ``final``: the process will certainly end, so what is not settled in time is reported as lost.
        """

    @abstractmethod
    def cancel_shutdown(self) -> None:
        """The process continues after all: undo `end`."""

    @abstractmethod
    def start_recovery(self) -> None:
        """Start sending the events of ended processes in a spool, because no other process may. Returns at once."""

    @property
    def captured(self) -> bool:
        """True if a test run keeps its requests, or refuses them."""
        return self._settings.captured

    @property
    def sends_on_os_exit(self) -> bool:
        """True if `os._exit` sends the waiting events first."""
        return True

    @abstractmethod
    def recover_from_children(self) -> None:
        """This process has forked: start sending what killed children may have left. Takes microseconds."""

    @abstractmethod
    def defer_signal(self, act: Callable[[], object]) -> bool:
        """For a signal handler. True if it has interrupted a method of this object, so that nothing can be sent now.

        Then ``act`` is called in another thread, as soon as the interrupted method has released its lock.
        """

    @abstractmethod
    def stats(self) -> dict[str, Any]:
        """A snapshot of the counters: accepted = delivered + lost + waiting."""

    @abstractmethod
    def quick_counts(self) -> tuple[int, int, int]:
        """How many events are waiting, delivered and lost. For `repr`: takes no lock, so they may not add up."""

    @abstractmethod
    def for_child(self) -> Delivery:
        """The delivery for the current process, a descendant of ``owner``: empty, and the same for all threads."""


class NullDelivery(Delivery):
    """For a client with ``enabled=False``: does nothing, and allocates nothing."""

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
