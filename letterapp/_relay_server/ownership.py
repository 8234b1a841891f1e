"""A sender for the events of many processes, which tells each of them what became of its events.

Responsible for: which event is whose, how many of an owner's events are settled, reporting a lost event to its owner
or, when that has ended, to the log. Not responsible for: how events arrive and answers leave (`socket_server`
over sockets, `manager_server` by a manager's server), sending (`sender`).
"""

from __future__ import annotations

import threading
from collections import deque

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

UNHEARD = 262_144  # bytes of reports that an owner may leave unread; beyond them one tells the count of each cause


class Owner:
    """Whoever handed events over, in one order, and is told what became of them."""

    def __init__(self) -> None:
        self.admitted = 0  # events, of which those below `settled` are settled, and those in `early`
        self.settled = 0
        self.early: set[int] = set()
        self.reports: deque[bytes] = deque()  # of lost events, which go before the answer that counts them
        self.unheard = 0  # bytes of these
        self.more: dict[str, tuple[LetterError, int]] = {}  # by cause: what there was no room for, and how many
        self.reporting = threading.Lock()  # guards the three above, for a moment
        self.is_reachable = True  # it may still be told
        self.resends = False  # what is not settled is still its own, and it sends that itself

    def report(self, error: LetterError, count: int, events: list[bytes]) -> None:
        """Have the owner told of ``count`` lost events, of which ``events`` are some."""
        with self.reporting:
            if self.unheard < UNHEARD:
                self.reports.append(protocol.lost(error, count, events))
                self.unheard += len(self.reports[-1])
            else:
                cause = error.cause or ""
                self.more[cause] = error, self.more.get(cause, (error, 0))[1] + count

    def untold(self) -> list[bytes]:
        """What the owner is to be told before the next answer."""
        with self.reporting:
            return [*self.reports, *(protocol.lost(error, count, []) for error, count in self.more.values())]

    def take_reports(self) -> list[bytes]:
        """The same, and forget it."""
        with self.reporting:
            lines = [*self.reports, *(protocol.lost(error, count, []) for error, count in self.more.values())]
            self.reports.clear()
            self.more.clear()
            self.unheard = 0
            return lines


class OwnedSender:
    """A sender that knows whose each event is. The end of the process ends it like any other one (`shutdown`)."""

    def __init__(self, settings: Settings, log: Callable[[str], None], progress: Condition) -> None:
        places: list[Any] = [PrivateMemory(settings)]
        if settings.spool:
            places.insert(0, Spool(settings, self._tell))
        self._log = log
        self._largest = min(settings.max_queue_bytes, settings.max_batch_bytes - ENVELOPE)
        # Guards the four below. Held for a moment: by whoever admits an event, and under the queue's own lock when an
        # event leaves it.
        self._owners_lock = threading.Lock()
        # By an event's own bytes, which contain its id: its owner, its number, and the same of an earlier copy, which
        # exists if it was sent again over another connection.
        self._owners: dict[bytes, Any] = {}
        self._unreported: dict[
            str, list[tuple[bytes, Owner, int]]
        ] = {}  # lost events by cause, until they are reported
        self._pending_acks: set[Owner] = set()  # owners that are to be answered
        self._progress = progress
        self.sender = Sender(settings, backends=Backends(places), report=self._tell, progress=progress)
        self.sender.watch_removals(self._record_removal)
        shutdown.register(self.sender)

    # Called by whoever receives events.

    def admit(self, event: bytes, owner: Owner) -> bool:
        """Queue an event of ``owner``; False when there is no room now."""
        if len(event) > self._largest:
            self.sender.refuse("overflow")
            self._attribute_losses(
                [(event, owner, owner.admitted)],
                LetterError("it is larger than the relay's queue or requests", cause="overflow"),
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
        """The owners that are to be answered, since the last call."""
        with self._owners_lock:
            pending, self._pending_acks = self._pending_acks, set()
            return pending

    # Under the queue's lock.

    def _record_removal(self, events: list[bytes], cause: str | None) -> None:
        with self._owners_lock:
            for event in events:
                entry = self._forget_owner(event)
                if entry is None:
                    continue  # an ended process's, from the spool
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
        """Answers count from the first event on: an event that leaves out of order waits for those before it."""
        if number == owner.settled:
            owner.settled = number + 1
            while owner.settled in owner.early:
                owner.early.remove(owner.settled)
                owner.settled += 1
            self._pending_acks.add(owner)
        else:
            owner.early.add(number)

    # Called by any thread that finds that events are lost.

    def _tell(self, error: LetterError) -> None:
        with self._owners_lock:
            lost_events = self._unreported.pop(error.cause or "", [])
        self._attribute_losses(lost_events, error)

    def _attribute_losses(self, lost_events: list[tuple[bytes, Owner, int]], error: LetterError) -> None:
        """Report losses to their owners, and to the log if the owner is gone."""
        of_each: dict[Owner, list[bytes]] = {}
        for event, owner, _ in lost_events:
            of_each.setdefault(owner, []).append(event)
        unheard = error.lost - len(lost_events)  # from the spool
        for owner, events in of_each.items():
            if owner.is_reachable:
                owner.report(error, len(events), events[:SAMPLE])
            elif not owner.resends:
                unheard += len(events)
        with self._owners_lock:
            for _, owner, number in lost_events:
                self._settle(owner, number)
        self._progress.notify_all()
        if unheard > 0:
            self._log(f"{unheard:,} of processes that have ended: {error}")
        elif not lost_events:
            self._log(str(error))
