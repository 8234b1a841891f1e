"""The relay: one process that sends the events of many.

    process ---+                     main thread                                   the sender's thread
    process ---+--- socket --- lines --- admit ---> queue ----> send_once ---> post ---> settled
    process ---+                ^                                                          |
                                +--------- [N], {"lost": ...} <------ `on_removed` --------+

Responsible for: the event loop over the sockets, reading events, sending responses, when to exit. Not responsible for:
the owner of each event (`ownership`), sending (`sender`), the messages (`protocol`), arguments and signals
(`socket_program`).

One thread serves all sockets and never waits for one of them. If there is no room for a process's events, its socket is
not read until there is. The socket fills up, and the process sends its events itself.
"""

from __future__ import annotations

import _socket
import selectors
from collections import deque
from json import dumps

from .._path_trust import is_trusted, peer_of
from .._relay import protocol
from .._relay.connection import QUIETLY
from .._runtime.clock import FOREVER, monotonic
from .._runtime.condition import Condition
from .._version import __version__
from . import daemon
from .ownership import OwnedSender, Owner

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

    from .._config import Settings

GREETING = 5.0  # maximum time for the authentication of a connection, in seconds
UNKNOWN = 64  # unauthenticated connections; if there are more, the oldest one is closed, but not before `BRIEFLY`
UNKNOWN_OF_ONE = 16  # unauthenticated connections of one process; if there are more, the oldest is closed at once
BRIEFLY = 1.0  # maximum time for authentication on an overloaded machine, in seconds
AT_ONCE = 65_536  # bytes that are read from one socket before it is the next one's turn
FIRST_CLIENT = 20.0  # seconds that a relay which was started for clients waits for the first one
SOON = 0.05
CROWDED = 0.5  # seconds until connections are accepted again after the system was out of descriptors
_LONGEST_TURN = 60.0


class Peer(Owner):
    """One client connection."""

    def __init__(self, sock: Any, now: float, callee: protocol.Callee) -> None:
        super().__init__()
        self.sock = sock
        self.process, self.user = peer_of(sock)
        self.since = now
        self.callee = callee
        self.role = ""  # what the connection is for; empty until the process is authenticated
        self.partial_line = b""  # the beginning of a line
        self.lines: deque[bytes] = deque()  # events for which there is no room yet
        self.answered = 0  # settled events that were acknowledged
        self.unsent = b""
        self.is_read = False  # everything has been read


class _WakingCondition(Condition):
    """A condition that wakes the event loop over the sockets too."""

    def __init__(self, wake: Callable[[], None]) -> None:
        super().__init__()
        self._wake = wake

    def notify_all(self) -> None:
        super().notify_all()
        self._wake()


class Lifetime:
    """When a relay exits: when it was asked to, or, if it was started for clients, after the last of them."""

    def __init__(self, leased: bool) -> None:
        """``leased``: exit when the last connection is closed, not before."""
        self.started = monotonic()
        self.clients = 0  # connections for events or for a lease, but not for the status
        self._leased = leased
        self._had_clients = False
        self._deadline = FOREVER

    def add_client(self) -> None:
        self.clients += 1
        self._had_clients = True

    def end_by(self, deadline: float) -> None:
        """Exit when the last connection is closed, or at ``deadline``."""
        self._deadline = min(self._deadline, deadline)

    def is_over(self, now: float) -> bool:
        if now >= self._deadline:
            return True
        if self.clients:
            return False
        was_left = self._leased and (self._had_clients or now >= self.started + FIRST_CLIENT)
        return was_left or self._deadline < FOREVER

    def next_moment(self) -> float:
        """The next time at which `is_over` may become true without an event."""
        if self._leased and not self.clients:
            return min(self._deadline, self.started + FIRST_CLIENT)
        return self._deadline


class RelayServer:
    """Serves a socket until it is stopped, or has no more clients."""

    def __init__(
        self, settings: Settings, listener: Any, leased: bool, log: Callable[[str], None], path: str = ""
    ) -> None:
        """``leased``: exit when the last connection is closed, not before."""
        self._settings = settings
        self._listener = listener
        self._log = log
        self._path = path
        self._lifetime = Lifetime(leased)
        self._logged: set[str] = set()  # messages that are logged only once
        self._peers: dict[Peer, None] = {}  # in the order in which they connected
        self._unknown: dict[Peer, None] = {}  # the unauthenticated ones
        self._paused: dict[Peer, None] = {}  # the ones that are not read, because there is no room for their events
        self._refused = 0
        self._is_serving = False
        self.heartbeat = daemon.Heartbeat(self.wake)
        self._selector = selectors.DefaultSelector()
        self._ears = _socket.socketpair()
        for ear in self._ears:
            ear.setblocking(False)
        self._selector.register(self._ears[0], selectors.EVENT_READ, self._wake_up)
        self._selector.register(listener, selectors.EVENT_READ, self._accept)
        self._accept_again = 0.0
        self._is_draining = False
        self._shall_tell = False
        self._owned = OwnedSender(settings, log, _WakingCondition(self.wake))

    def wake(self) -> None:
        """Wake the event loop. Any thread and signal handler may call this."""
        try:
            self._ears[1].send(b".")
        except OSError:
            pass  # the socket is full, so the event loop wakes up anyway

    def leave(self, within: float) -> None:
        """Exit when the last connection is closed, or after ``within`` seconds."""
        self._lifetime.end_by(monotonic() + within)
        self.wake()

    def tell_status(self) -> None:
        """Make the event loop log its status. A signal handler cannot, because it may have interrupted an update."""
        self._shall_tell = True
        self.wake()

    def serve(self, vacate: Callable[[], None]) -> None:
        """Serve until it is time to exit. Then ``vacate``, which frees the path for another relay, and drain."""
        self._owned.sender.prepare()  # before clients use the descriptors that it needs
        self._owned.sender.flush(0.0)  # what is in the spool
        self._is_serving = True
        while not self._lifetime.is_over(monotonic()):
            self._turn(self._next_moment())
        self._is_serving = False
        vacate()
        self._drain()

    def is_ready(self) -> bool:
        """True while it accepts connections. Any thread may call this."""
        return self._is_serving and not self._accept_again

    def metrics(self) -> bytes:
        """The status as Prometheus text. Any thread may call this."""
        from .metrics import exposition

        return exposition(self.status(), self._settings)

    def status(self) -> dict[str, Any]:
        """What ``--status`` prints. Any thread may call this."""
        peers = list(self._peers)  # in one step: the event loop changes it
        stats = self._owned.sender.stats()
        return {
            "pid": stats.pop("pid"),
            "socket": self._path,
            "version": __version__,
            "api": self._settings.base_url,
            "seconds": round(monotonic() - self._lifetime.started, 1),
            "processes": sum(peer.role == protocol.EVENTS for peer in peers),
            "leases": sum(peer.role == protocol.LEASE for peer in peers),
            "paused": len(self._paused),
            "refused": self._refused,
            **{name: stats[name] for name in ("accepted", "adopted", "delivered", "retried", "lost", "waiting")},
            "waiting_bytes": stats["waiting_bytes"],
            "memory": stats["memory"],
        }

    # When to exit.

    def _next_moment(self) -> float:
        now = monotonic()
        moments = [self._lifetime.next_moment()]
        if self._accept_again:
            moments.append(self._accept_again)
        moments += [peer.since + GREETING for peer in list(self._unknown)[:1]]
        return max(0.0, min(min(moments) - now, _LONGEST_TURN))

    # One iteration of the event loop.

    def _turn(self, timeout: float) -> None:
        for key, ready in self._selector.select(timeout):
            if isinstance(key.data, Peer):
                self._handle(key.data, ready)
            else:
                key.data()
        self.heartbeat.last = now = monotonic()
        for peer in [peer for peer in self._unknown if peer.since + GREETING <= now]:
            self._hear_or_refuse(peer, "it did not authenticate in time")
        if self._accept_again and self._accept_again <= now:
            self._accept_again = 0.0
            self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        for peer in self._owned.pending_acks():
            self._answer(peer)
        for peer in list(self._paused):
            self._admit(peer)
            if peer in self._paused:
                break  # there is no room for the first one, and the others have to wait for their turn
        if self._shall_tell:
            self._shall_tell = False
            self._log(dumps(self.status()))

    def _handle(self, peer: Peer, ready: int) -> None:
        try:
            if ready & selectors.EVENT_READ:
                if self._paused and peer.role == protocol.EVENTS:
                    self._pause(peer)  # there is no room for what would be read
                else:
                    self._read(peer)
            if ready & selectors.EVENT_WRITE:
                self._answer(peer)
        except Exception as surprise:  # an unexpected message must not affect other connections
            self._refuse(peer, f"unexpected error: {surprise!r:.200}")

    def _wake_up(self) -> None:
        try:
            self._ears[0].recv(4096)
        except BlockingIOError:
            pass

    def _accept(self) -> bool:
        """Accept a limited number of connections; True when there may be more."""
        for _ in range(UNKNOWN):
            if len(self._unknown) >= UNKNOWN and not self._is_draining:
                oldest = next(iter(self._unknown))
                if monotonic() < oldest.since + BRIEFLY:
                    self._accept_later(SOON)  # a connection can wait in the backlog
                    return False
                self._hear_or_refuse(oldest, "there are too many unauthenticated connections")
            is_crowded = not daemon.has_descriptor_for_client()
            try:
                descriptor, _ = self._listener._accept()
            except BlockingIOError:
                return False
            except ConnectionError:
                continue
            except OSError as problem:  # the whole system has no descriptor left
                self._say(f"no further connections are accepted: {problem.strerror}")
                self._accept_later(CROWDED)
                return False
            sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM, 0, descriptor)
            sock.setblocking(False)
            peer = Peer(sock, monotonic(), protocol.Callee(self._settings.api_key, self._settings.base_url))
            self._limit(peer)
            self._peers[peer] = self._unknown[peer] = None
            self._selector.register(sock, selectors.EVENT_READ, peer)
            if is_crowded:
                # Accepted and refused, so that the process sends its events itself instead of keeping them for a relay
                # that cannot read them as long as the other clients stay.
                self._refuse(peer, "the relay needs its last file descriptors for sending", is_busy=True)
        return True

    def _limit(self, newcomer: Peer) -> None:
        """Prevent a process, or another user, from taking up all places for unauthenticated connections."""
        if newcomer.process is None or self._is_draining:
            return
        his = [peer for peer in self._unknown if peer.process == newcomer.process]
        if len(his) < UNKNOWN_OF_ONE and not is_trusted(newcomer.user):
            his = [peer for peer in self._unknown if peer.user == newcomer.user]
        if len(his) >= UNKNOWN_OF_ONE:
            self._hear_or_refuse(his[0], "there are too many unauthenticated connections")

    def _accept_later(self, seconds: float) -> None:
        if not self._accept_again and not self._is_draining:
            self._selector.unregister(self._listener)
            self._accept_again = monotonic() + seconds

    def _hear_or_refuse(self, peer: Peer, reason: str) -> None:
        self._read(peer)  # its hello may just have arrived
        if not peer.role and peer in self._peers:
            self._refuse(peer, reason, notify=False)  # a slow client may reconnect at once

    def _read(self, peer: Peer) -> None:
        try:
            data = peer.sock.recv(AT_ONCE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            peer.is_read = True
            if peer.callee.has_challenged and not peer.role and not self._is_draining:
                self._refuse(peer, "it disconnected before it proved that it has the API key", notify=False)
            elif self._is_draining and peer.is_reachable:
                self._watch(peer)  # it has shut down its sending side, and waits for responses
            else:
                self._part_with(peer)
            return
        *lines, peer.partial_line = (peer.partial_line + data).split(protocol.END)
        if not peer.role and not self._greet(peer, lines):
            return
        wrong = "it sent a line that is too long" if len(peer.partial_line) > protocol.LONGEST_EVENT else ""
        for line in lines:
            if line != protocol.FLUSH and not (len(line) <= protocol.LONGEST_EVENT and protocol.is_event(line)):
                wrong = "it sent something that is not an event"
                break
            peer.lines.append(line)
        self._admit(peer)
        if wrong:
            self._refuse(peer, wrong)

    def _greet(self, peer: Peer, lines: list[bytes]) -> bool:
        """Authenticate ``peer``, and remove the messages of that from ``lines``; True if it may send events."""
        role = ""
        while lines and not role:
            try:
                if len(lines[0]) > protocol.LONGEST_GREETING:
                    raise protocol.Refused(protocol.UNKNOWN_PROTOCOL)
                answer, role = peer.callee.hear(lines.pop(0))
            except protocol.Refused as problem:
                self._refuse(peer, str(problem))
                return False
            peer.unsent += answer
        if not role:
            if len(peer.partial_line) > protocol.LONGEST_GREETING:
                self._refuse(peer, protocol.UNKNOWN_PROTOCOL)
            else:
                self._answer(peer)
            return False
        if self._is_draining and role != protocol.EVENTS:
            self._part_with(peer)  # the relay is exiting
            return False
        peer.role = role
        del self._unknown[peer]
        if peer.role != protocol.STATUS:
            self._lifetime.add_client()
        if peer.role != protocol.EVENTS:
            peer.unsent += protocol.line_of({"welcome": self.status()})
            self._answer(peer)
        return peer.role == protocol.EVENTS

    def _admit(self, peer: Peer) -> None:
        lines = peer.lines
        admit = self._owned.admit
        while lines:
            line = lines[0]
            if line == protocol.FLUSH:
                self._owned.sender.request_flush()
            elif not admit(line, peer):
                self._pause(peer)
                return
            lines.popleft()
        self._continue(peer)

    def _pause(self, peer: Peer) -> None:
        if peer not in self._paused:
            self._paused[peer] = None
            self._watch(peer)

    def _continue(self, peer: Peer) -> None:
        if peer in self._paused:
            del self._paused[peer]
            self._watch(peer)

    def _watch(self, peer: Peer) -> None:
        if peer not in self._peers:
            return
        events = 0 if peer.is_read or peer in self._paused else selectors.EVENT_READ
        events |= selectors.EVENT_WRITE if peer.unsent else 0
        known = peer.sock in self._selector.get_map()
        if known and events:
            self._selector.modify(peer.sock, events, peer)
        elif known:
            self._selector.unregister(peer.sock)
        elif events:
            self._selector.register(peer.sock, events, peer)

    def _answer(self, peer: Peer) -> None:
        had_to_wait = bool(peer.unsent)
        try:
            while peer.is_reachable and self._has_answer(peer):
                peer.unsent = peer.unsent[peer.sock.send(peer.unsent, QUIETLY) :]
        except BlockingIOError:
            pass
        except OSError:
            self._no_longer_hears(peer)  # what it has sent can still be read
        if had_to_wait or peer.unsent:
            self._watch(peer)

    def _no_longer_hears(self, peer: Peer) -> None:
        """The peer has ended, or does not wait for responses: log its reports."""
        peer.is_reachable = False
        unread, peer.unsent = peer.unsent + b"".join(peer.take_reports()), b""
        losses: dict[str, list[Any]] = {}  # by cause, so that there are few lines per process
        for line in [] if peer.resends else unread.split(protocol.END):
            said = protocol.parse(line)
            if "lost" in said:
                losses.setdefault(said["cause"], [0, said["message"]])[0] += said["lost"]
        for lost, message in losses.values():
            self._log(f"{lost:,} lost from ended processes: {message}")

    @staticmethod
    def _has_answer(peer: Peer) -> bool:
        """Fill ``peer.unsent`` with what there is to send. An acknowledgement includes all earlier ones."""
        if not peer.unsent:
            settled = peer.settled  # read once: the sender's thread keeps counting
            peer.unsent = b"".join(peer.take_reports())
            if settled != peer.answered:
                peer.answered = settled
                peer.unsent += protocol.settled(settled)
        return bool(peer.unsent)

    def _refuse(self, peer: Peer, reason: str, notify: bool = True, is_busy: bool = False) -> None:
        self._refused += 1
        self._say(f"a connection was refused: {reason}")
        try:
            if notify:
                peer.sock.send(protocol.line_of({"refused": reason, **({"busy": True} if is_busy else {})}), QUIETLY)
        except OSError:
            pass
        self._part_with(peer)

    def _part_with(self, peer: Peer) -> None:
        """Close the connection. What was received over it is still delivered."""
        if self._peers.pop(peer, self) is self:
            return
        self._unknown.pop(peer, None)
        self._no_longer_hears(peer)
        if peer.sock in self._selector.get_map():
            self._selector.unregister(peer.sock)
        peer.sock.close()
        if peer.role in (protocol.EVENTS, protocol.LEASE):
            self._lifetime.clients -= 1

    def _say(self, text: str) -> None:
        """Log ``text``, once."""
        if text not in self._logged:
            self._logged.add(text)
            self._log(text)

    # The end.

    def _drain(self) -> None:
        deadline = monotonic() + self._settings.exit_timeout
        if not self._accept_again:
            self._selector.unregister(self._listener)
        self._accept_again = 0.0
        self._is_draining = True
        for peer in list(self._peers):
            if peer.role in (protocol.LEASE, protocol.STATUS):
                self._part_with(peer)
        while self._accept():
            pass  # accept those that connected before the path was freed
        self._listener.close()
        for peer in self._peers:
            # From now on the peer cannot send. What it has sent can still be read.
            try:
                peer.sock.shutdown(_socket.SHUT_RD)
            except OSError:
                pass  # it has closed the connection
        for peer in list(self._unknown):
            self._read(peer)
            if not peer.role:
                self._part_with(peer)  # it has sent no event, and cannot do so any more
        self._owned.sender.begin_shutdown()
        while not self._is_drained() and monotonic() < deadline:
            self._owned.sender.request_flush()
            self._turn(deadline - monotonic())
        for peer in self._owned.pending_acks():
            self._answer(peer)
        for peer in list(self._peers):
            peer.resends = True
            self._part_with(peer)
        self._owned.sender.close_by(deadline, self._settings.exit_timeout)

    def _is_drained(self) -> bool:
        return not self._paused and all(peer.is_read for peer in self._peers) and self._owned.sender.is_settled()
