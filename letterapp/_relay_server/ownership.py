"""A sender for the events of many processes, which reports to each of them the outcome of its events.

Responsible for: the owner of each event, how many of an owner's events are settled, reporting a lost event to its owner
or, if that has ended, to the log. Not responsible for: receiving events and sending responses (`socket_server`,
`manager_server`), sending events (`sender`).
"""

from __future__ import annotations

import threading
from collections import deque

from .. import _log
from .._delivery import shutdown
from .._delivery.batches import ENVELOPE
from .._delivery.sender import Sender
from .._relay import protocol
from .._storage.accounting import OVERFLOW_SAMPLE as SAMPLE
from .._storage.backends import Backends
from .._storage.memory import PrivateMemory
from .._storage.spool import Spool
from ..errors import LetterError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

    from .._config import Settings
    from .._runtime.condition import Condition

MAX_UNREAD = 262_144  # bytes of reports that an owner may leave unread; beyond that only losses by cause are counted


class Owner:
    """A source of events, in order, that receives their outcome."""

    def __init__(self) -> None:
        self.admitted = 0  # events, of which those below `settled` are settled, and those in `early`
        self.settled = 0
        self.early: set[int] = set()
        self.reports: deque[bytes] = deque()  # of lost events, to be sent before the acknowledgement that counts them
        self.unread = 0  # bytes of `reports`
        self.more: dict[
            str, tuple[LetterError, int]
        ] = {}  # by cause: a report beyond `MAX_UNREAD`, and how many events
        self.reporting = threading.Lock()  # guards the three above, for a moment
        self.is_reachable = True  # reports can still be sent to it
        self.resends = False  # it sends events that are not settled itself

    def report(self, error: LetterError, count: int, events: list[bytes]) -> None:
        """Add a report of ``count`` lost events for the owner; ``events`` are some of them."""
        with self.reporting:
            if self.unread < MAX_UNREAD:
                self.reports.append(protocol.lost(error, count, events))
                self.unread += len(self.reports[-1])
            else:
                cause = error.cause or ""
                self.more[cause] = error, self.more.get(cause, (error, 0))[1] + count

    def pending_reports(self) -> list[bytes]:
        """The reports that have to be sent to the owner before the next acknowledgement."""
        with self.reporting:
            return [*self.reports, *(protocol.lost(error, count, []) for error, count in self.more.values())]

    def take_reports(self) -> list[bytes]:
        """Return these reports, and remove them."""
        with self.reporting:
            lines = [*self.reports, *(protocol.lost(error, count, []) for error, count in self.more.values())]
            self.reports.clear()
            self.more.clear()
            self.unread = 0
            return lines


class OwnedSender:
    """A sender that knows the owner of each event. `shutdown` ends it with the process, like any other sender."""

    def __init__(self, settings: Settings, log: Callable[[str], None], progress: Condition) -> None:
        backends: list[Any] = [PrivateMemory(settings)]
        if settings.spool:
            backends.insert(0, Spool(settings, self._report))
        self._log = log
        self._largest = min(settings.max_queue_bytes, settings.max_batch_bytes - ENVELOPE)
        # Guards the four below. Held for a moment: by whoever admits an event, and under the queue's own lock when an
        # event leaves it.
        self._owners_lock = threading.Lock()
        # By the bytes of an event, which contain its message ID: its owner, its number, and the same for an earlier
        # copy, which exists if it was sent again over another connection.
        self._owners: dict[bytes, Any] = {}
        self._unreported: dict[
            str, list[tuple[bytes, Owner, int]]
        ] = {}  # lost events by cause, until they are reported
        self._pending_acks: set[Owner] = set()  # owners that are to be answered
        self._progress = progress
        self.sender = Sender(settings, backends=Backends(backends), report=self._report, progress=progress)
        self.sender.watch_removals(self._record_removal)
        shutdown.register(self.sender)

    # Called by the thread that receives events.

    def admit(self, event: bytes, owner: Owner) -> bool:
        """Queue an event of ``owner``; False if there is no room at present."""
        if len(event) > self._largest:
            self.sender.refuse("overflow")
            self._attribute_losses(
                [(event, owner, owner.admitted)],
                LetterError("the event is larger than the relay's queue or requests may be", cause="overflow"),
            )
            owner.admitted += 1
            return True
        with self._owners_lock:
            self._owners[event] = owner, owner.admitted, self._owners.get(event)
        if not self.sender.put_if_room(event):
            with self._owners_lock:
                self._forget_owner(event)
            return False
        owner.admitted += 1
        return True

    def pending_acks(self) -> set[Any]:
        """The owners whose events were settled since the last call."""
        with self._owners_lock:
            pending, self._pending_acks = self._pending_acks, set()
            return pending

    # Under the queue's lock.

    def _record_removal(self, events: list[bytes], cause: str | None) -> None:
        with self._owners_lock:
            for event in events:
                entry = self._forget_owner(event)
                if entry is None:
                    continue  # from the spool, of an ended process
                owner, number, _ = entry
                if cause is None:
                    self._settle(owner, number)
                else:  # it is counted after its report, which is sent first
                    self._unreported.setdefault(cause, []).append((event, owner, number))

    def _forget_owner(self, event: bytes) -> Any:
        entry = self._owners.pop(event, None)
        if entry is not None and entry[2] is not None:
            self._owners[event] = entry[2]
        return entry

    def _settle(self, owner: Owner, number: int) -> None:
        """Acknowledgements count from the first event: an event that is settled early waits for those before it."""
        if number == owner.settled:
            owner.settled = number + 1
            while owner.settled in owner.early:
                owner.early.remove(owner.settled)
                owner.settled += 1
            self._pending_acks.add(owner)
        else:
            owner.early.add(number)

    # Called by any thread that notices a loss.

    def _report(self, error: LetterError) -> None:
        _log.note_report(error)
        with self._owners_lock:
            lost_events = self._unreported.pop(error.cause or "", [])
        self._attribute_losses(lost_events, error)

    def _attribute_losses(self, lost_events: list[tuple[bytes, Owner, int]], error: LetterError) -> None:
        """Report losses to the owners of the events; to the log if an owner has gone."""
        of_each: dict[Owner, list[bytes]] = {}
        for event, owner, _ in lost_events:
            of_each.setdefault(owner, []).append(event)
        unattributed = error.lost - len(lost_events)  # from the spool
        for owner, events in of_each.items():
            if owner.is_reachable:
                owner.report(error, len(events), events[:SAMPLE])
            elif not owner.resends:
                unattributed += len(events)
        with self._owners_lock:
            for _, owner, number in lost_events:
                self._settle(owner, number)
        self._progress.notify_all()
        if unattributed > 0:
            self._log(f"{unattributed:,} lost from ended processes: {error}")
        elif not lost_events:
            self._log(str(error))
