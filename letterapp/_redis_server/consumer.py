"""The loop of a relay that reads a stream: it takes entries, has their events sent, and settles them.

Responsible for: which entries this relay has, when it reads, claims, settles and gives back, what it does while Redis
is away. Not responsible for: the commands (`group`), sending (`_relay_server.ownership`), the process (`program`).

    read, claim ---> waiting to be admitted ---> the sender's queue ---> the API
                                                                          |
                     deleted from the stream <--- settled <---------------+

The events are in Redis until the API has settled them, so the sender tries for ever, like one with a spool. What this
process has in memory is at most `MOST` entries. All of this but sending happens in one thread.
"""

from __future__ import annotations

from collections import deque

from .._delivery import shutdown
from .._relay import protocol
from .._relay_server.ownership import OwnedSender, Owner
from .._runtime.clock import monotonic
from .._runtime.condition import Condition
from .._runtime.signal_errors import reraise_signal_error
from .._storage.memory import MemorySlot, PrivateMemory
from .._text import said
from ..errors import LetterError
from .group import Entry, Group, is_gone
from .identity import Identity

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

    from .._config import Settings

MOST = 64  # entries that a relay has at a time
MOST_DELIVERIES = 10  # relays that may have ended with an entry before it is given up
_WAIT = 1.0  # seconds of one wait for an entry
_LOOK = 0.02  # seconds until the stream is read again while the API is awaited
_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 5.0  # seconds until Redis is tried again, doubled each time
# Heartbeats in the time after which a relay without one counts as dead, and the longest time between two, in seconds.
_BEATS, _LONGEST_BEAT = 5, 3.0
_LEAST_LEFT = 1.0  # seconds at the end that are kept for giving back what is not settled


class StreamMemory(PrivateMemory):
    """The memory of a relay: what is in it is in Redis too, so it is not lost with the process."""

    kind = "redis"

    def claim(self) -> MemorySlot:
        slot = super().claim()
        slot.kind, slot.is_durable = self.kind, True
        return slot


class HeldEntry(Owner):
    """An entry that this relay has, as the owner of its events."""

    def __init__(self, entry: Entry, events: list[bytes]) -> None:
        super().__init__()
        self.id = entry.id
        self.events = events

    def is_admitted(self) -> bool:
        return self.admitted >= len(self.events)

    def is_settled(self) -> bool:
        return self.settled >= len(self.events)


class Consumer:
    """One relay. `run` blocks until `stop` was called, which any thread or signal handler may do."""

    def __init__(
        self,
        settings: Settings,
        connect: Callable[[], Group],
        identity: Identity,
        place: str,
        claim_after: float,
        log: Callable[[str], None],
    ) -> None:
        """``claim_after``: seconds without a heartbeat after which a relay's entries are claimed."""
        self._settings = settings
        self._connect = connect  # as this identity
        self._identity = identity
        self._place = place
        self._claim_after = claim_after
        self._interval = min(_LONGEST_BEAT, claim_after / _BEATS)
        self._log = log
        self._progress = Condition()
        self._owned = OwnedSender(settings, log, self._progress, StreamMemory(settings))
        self._sender = self._owned.sender
        self._held: dict[str, HeldEntry] = {}  # until they are deleted from the stream
        self._unadmitted: deque[HeldEntry] = deque()
        self._to_settle: deque[HeldEntry] = deque()
        self._group: Group | None = None
        self._beats_since = 0.0  # since when there was no gap in this relay's heartbeat
        self._next_beat = 0.0
        self._pause = _FIRST_PAUSE
        self._is_away = False  # it was logged that Redis cannot be used
        self._is_unchecked = False
        self.is_stopping = False
        self.entries = 0  # settled

    def open(self) -> None:
        """Connect. Raises `LetterError` or `OSError` if that is impossible."""
        self._group = self._opened()
        self._sender.prepare()

    def run(self) -> None:
        """Read, deliver and settle until `stop`; then drain, within `exit_timeout`, and give back the rest."""
        while not self.is_stopping:
            self._attempt(self._turn)
        self._finish()

    def stop(self) -> None:
        self.is_stopping = True
        self._progress.notify_all()

    def status(self) -> dict[str, Any]:
        stats = self._sender.stats()
        named = {name: stats[name] for name in ("pid", "accepted", "delivered", "retried", "lost", "waiting")}
        return {**named, "entries": self.entries, "held": len(self._held), "connected": self._group is not None}

    # One turn.

    def _attempt(self, act: Callable[[Group], None]) -> bool:
        """Call ``act`` with a connection; False if that failed. Then wait a little, while the sender goes on."""
        try:
            if self._group is None:
                self._group = self._opened()
            act(self._group)
        except (OSError, LetterError) as problem:
            reraise_signal_error(problem)
            if self._group is not None and is_gone(problem):
                return self._create_again()
            self._disconnect()
            self._note_failure(_why(problem))
            self._progress.wait_while(lambda: not self.is_stopping, monotonic() + self._pause, monotonic)
            self._pause = min(2 * self._pause, _LONGEST_PAUSE)
            return False
        self._pause = _FIRST_PAUSE
        return True

    def _turn(self, group: Group) -> None:
        self._settle(group)
        now = monotonic()
        if now >= self._next_beat:
            # What was released, and what a process has left that certainly has ended, is taken at any time; at the
            # start before new entries. But nobody is declared dead by a relay that was itself away: the others may have
            # been without Redis for the same time.
            is_sure = now - self._beats_since >= self._claim_after
            if self._beat(group, self._claim_after if is_sure else None, self._room()) > self._claim_after / 2:
                self._beats_since = now
            self._next_beat = now + self._interval
        self._admit()
        if self._unadmitted or not self._room():
            self._await_settlement(_LOOK)
        elif not self._held:
            self._take(group.read(self._room(), min(_WAIT, self._interval)))
        else:
            found = group.read(self._room(), 0.0)
            self._take(found)
            if not found:
                self._await_settlement(_LOOK)
        self._note_success()

    def _beat(self, group: Group, idle: float | None, room: int) -> float:
        """Take at most ``room`` entries of others. Returns for how many seconds this relay was silent."""
        beat = group.beat(idle, room)
        if beat.is_superseded:
            self._give_up_name()
            beat = group.beat(None, 0)
        self._take(beat.entries)
        return beat.silent

    def _give_up_name(self) -> None:
        # It goes on, because it can do no harm without the name: the other has its entries already. If it ended instead
        # and was started again, it would end the other, and so on.
        given = self._identity.given
        self._identity.give_up()
        self._log(
            f"another relay was started as {given}, and has taken what this one had: this one continues as "
            f"{self._identity.name}. Give each relay that runs a name of its own"
        )

    def _room(self) -> int:
        return max(0, MOST - len(self._held))

    def _await_settlement(self, seconds: float) -> None:
        self._progress.wait_while(
            lambda: not (self._collect() or self.is_stopping), monotonic() + seconds, monotonic, seconds
        )

    def _opened(self) -> Group:
        group = self._connect()
        try:
            self._beats_since = monotonic()
            self._beat(group, None, 0)
            while True:
                found = group.own_pending(self._held, MOST)
                if not found:
                    break
                self._take(found)
        except BaseException:
            group.close()
            raise
        if group.unchecked and not self._is_unchecked:
            self._is_unchecked = True
            self._log(f"{self._place}: whether it may remove the stream could not be checked: {group.unchecked}")
        return group

    def _create_again(self) -> bool:
        self._log(f"{self._place}: the stream or its group was deleted; creating it again")
        assert self._group is not None
        try:
            self._group.create()
        except (OSError, LetterError) as problem:
            reraise_signal_error(problem)
            self._disconnect()
            return False
        return True

    def _disconnect(self) -> None:
        group, self._group = self._group, None
        if group is not None:
            group.close()

    def _note_failure(self, why: str) -> None:
        if not self._is_away:
            self._is_away = True
            self._log(f"{self._place} cannot be used: {why}; trying again")

    def _note_success(self) -> None:
        if self._is_away:
            self._is_away = False
            self._log(f"{self._place} is used again")

    # Entries.

    def _take(self, entries: list[Entry]) -> None:
        for entry in entries:
            if entry.id in self._held:
                continue  # Redis was restarted, and has forgotten that this relay has it
            held = HeldEntry(entry, self._events_of(entry))
            self._held[entry.id] = held
            if held.events:
                self._unadmitted.append(held)
            else:
                self._to_settle.append(held)
        self._admit()

    def _events_of(self, entry: Entry) -> list[bytes]:
        """The events to send. What cannot be sent is reported, and given up."""
        if entry.events is None:
            self._log(f"entry {entry.id} was given up: a client has not written it")
            return []
        events = entry.events.split(b"\n")
        if entry.deliveries >= MOST_DELIVERIES:
            self._log(
                f"entry {entry.id} was given up: {entry.deliveries} relays have ended while they had it; "
                f"{len(events):,} events lost, the first: {events[0][:300].decode('utf-8', 'replace')}"
            )
            return []
        valid = [event for event in events if protocol.is_event(event)]
        if len(valid) < len(events):
            self._log(f"entry {entry.id} contains {len(events) - len(valid)} lines that are not events: given up")
        return valid

    def _admit(self) -> None:
        """Pass events to the sender, in order, as long as there is room."""
        while self._unadmitted:
            held = self._unadmitted[0]
            while not held.is_admitted():
                if not self._owned.admit(held.events[held.admitted], held):
                    return
            self._unadmitted.popleft()
            if held.is_settled():
                self._to_settle.append(held)

    def _collect(self) -> bool:
        """Note the entries whose events were all settled; True if there are any that are still in the stream."""
        for held in self._owned.pending_acks():
            if held.is_admitted() and held.is_settled() and held.id in self._held:
                self._to_settle.append(held)
        return bool(self._to_settle)

    def _settle(self, group: Group) -> None:
        if not self._collect():
            return
        settled = list({held.id: held for held in self._to_settle}.values())
        for held in settled:
            self._log_losses(held)
        group.settle([held.id for held in settled])
        for held in settled:
            del self._held[held.id]
        self._to_settle.clear()
        self.entries += len(settled)

    def _log_losses(self, held: HeldEntry) -> None:
        for line in held.take_reports():
            report = protocol.parse(line)
            self._log(f"entry {held.id}: {report['lost']:,} lost: {report['message']}")

    # The end.

    def _finish(self) -> None:
        timeout = self._settings.exit_timeout
        deadline = monotonic() + timeout
        until = deadline - min(_LEAST_LEFT, timeout / 2)
        self._unadmitted.clear()  # another relay gets them
        self._sender.request_flush()
        while self._sender_has_events() and monotonic() < until:
            self._await_settlement(min(_LOOK, max(0.0, until - monotonic())))
            if self._to_settle and not self._attempt(self._settle):
                break
        self._sender.close_by(monotonic(), timeout)
        shutdown.unregister(self._sender)
        if self._attempt(self._give_back):
            self._disconnect()

    def _sender_has_events(self) -> bool:
        return not self._sender.is_settled()

    def _give_back(self, group: Group) -> None:
        self._settle(group)
        group.leave()


def _why(problem: Exception) -> str:
    return str(problem) if isinstance(problem, LetterError) else getattr(problem, "strerror", "") or said(problem)
