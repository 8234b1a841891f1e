"""The server of a `SenderManager`, and the queue that it exposes.

Responsible for: accepting batches, reporting the outcome of each, refusing further ones at the end. Not responsible
for: sending (`ownership`, `sender`), the process, its signals and its end (`manager_program`).

    a thread per connection (`multiprocessing.managers.Server`)      the sender's thread
    ----------------------------------------------------------      -------------------
    put_nowait(batch) ---> admit ---> queue -----------------------> send_once ---> post
    settled(seconds)  <--- wait <------------ progress <------------- settled, or its report

A connection has one batch at a time, so its state is an attribute of its thread, and is deleted with the thread.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from hmac import compare_digest
from multiprocessing.managers import Server
from queue import Full
from weakref import WeakSet, ref

from .._config import MAX_ITEMS
from .._delivery import shutdown
from .._queues.targets import TYPEID
from .._relay import protocol
from .._runtime.clock import monotonic
from .._runtime.condition import Condition
from .._version import __version__
from ..errors import LetterError
from . import daemon
from .ownership import OwnedSender, Owner

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

    from .._config import Settings
    from .._queues.manager_connection import Address

EXPOSED = ("put_nowait", "settled", "status")
BACKLOG = 512  # connections that the system accepts while the server is busy
_CROWDED = 0.1  # seconds until connections are accepted again after the system was out of descriptors or threads


class Session:
    """The state of one connection. It is deleted with the connection's thread, when the client has gone."""

    def __init__(self, log: Callable[[str], None]) -> None:
        self._log = log
        self.batch: BatchOwner | None = None  # accepted, and its outcome not yet fetched

    def __del__(self) -> None:
        if self.batch is not None:
            self.batch.log_reports(self._log)


class BatchOwner(Owner):
    """A batch, as the owner of its events."""

    def __init__(self, session: Session, events: int) -> None:
        super().__init__()
        self._session = ref(session)
        self._gave_up = False
        self.events = events

    @property
    def is_reachable(self) -> bool:
        return not self._gave_up and self._session() is not None

    @is_reachable.setter
    def is_reachable(self, value: bool) -> None:
        self._gave_up = not value

    def is_settled(self) -> bool:
        return self.settled >= self.events

    def log_reports(self, log: Callable[[str], None]) -> None:
        """Log the reports for which there is no client any more."""
        if self.resends:
            return
        for line in self.take_reports():
            said = protocol.parse(line)
            log(f"{said['lost']:,} lost from ended processes: {said['message']}")


class Batches:
    """The queue that the server exposes. Its methods are called by one thread per connection."""

    def __init__(self, settings: Settings, flush_at: int, log: Callable[[str], None]) -> None:
        """``flush_at``: number of waiting events at which they are sent at once, instead of that in ``settings``."""
        self._flush_at = flush_at
        self._settings = settings
        self._log = log
        self._proof = protocol.proof(settings.api_key)
        self._progress = Condition()
        self._owned = OwnedSender(settings, log, self._progress)
        self._sender = self._owned.sender
        # Guards `_sessions` and `_is_closing`. Held while a batch is admitted, so that there is room for all of it or
        # none, and its events stay together.
        self._admission = threading.Lock()
        self._local = threading.local()
        self._sessions: WeakSet[Session] = WeakSet()
        self._is_closing = False
        self._started = monotonic()

    # Exposed.

    def open(self, proof: str, base_url: str) -> Batches:
        """The queue, for a new connection. Raises `LetterError` if the client has another API key or `base_url`."""
        if not compare_digest(proof.encode(), self._proof.encode()):
            raise LetterError("it sends with another API key")
        if base_url != self._settings.base_url:
            raise LetterError(f"it sends to another API, {self._settings.base_url}")
        return self

    def put_nowait(self, batch: list[bytes], urgent: bool) -> bool:
        """Accept all events of ``batch`` or none. False if there is no room yet; raises `Full` if it was refused.

        Unless it is ``urgent``, it is sent after `flush_interval`, together with events of other processes.
        """
        # `Server.serve_client` keeps an exception, and with it this frame: a session in it would outlive its thread.
        size = self._check(batch)
        with self._admission:
            if self._is_closing:
                raise Full("it is shutting down")
            if not self._sender.has_room(len(batch), size):
                if self._settings.overflow == "block" and self._may_ever_fit(len(batch), size):
                    return False
                raise Full
            if not self._admit(batch):
                raise Full
        if urgent or self._sender.stats()["waiting"] >= self._flush_at:
            self._sender.request_flush()
        return True

    def settled(self, seconds: float, urgent: bool) -> list[bytes] | None:
        """Wait for up to ``seconds`` until this connection's batch is settled.

        Returns the reports of its lost events; None if it is not settled.
        """
        owner = self._batch_of_this_connection()
        if owner is None:
            raise ValueError("no batch was sent on this connection")
        if urgent and not owner.is_settled():
            self._sender.request_flush()
        self._owned.pending_acks()  # discarded: here clients ask for the outcome
        self._progress.wait_while(lambda: not owner.is_settled(), monotonic() + seconds, monotonic)
        if owner.resends or not owner.is_settled():
            return None  # `resends`: given up here at the end, so the client's process sends it
        self._session().batch = None
        return owner.pending_reports()

    def status(self) -> dict[str, Any]:
        stats = self._sender.stats()
        return {
            "pid": stats["pid"],
            "version": __version__,
            "api": self._settings.base_url,
            "seconds": round(monotonic() - self._started, 1),
            "connections": len(self._sessions),
            **{name: stats[name] for name in ("accepted", "adopted", "delivered", "retried", "lost", "waiting")},
            "waiting_bytes": stats["waiting_bytes"],
            "memory": stats["memory"],
        }

    # Called by the process's main thread.

    def begin(self) -> None:
        """Send what an earlier process left in the spool. To be called before clients use descriptors."""
        self._sender.prepare()
        self._sender.flush(0.0)

    def is_used(self) -> bool:
        """True while a client is connected."""
        return len(self._sessions) > 0

    @property
    def is_closing(self) -> bool:
        """True once further batches are refused."""
        return self._is_closing

    def metrics(self) -> bytes:
        """The status as Prometheus text. Any thread may call this."""
        from .metrics import exposition

        return exposition(self.status(), self._settings)

    def close(self) -> bool:
        """Refuse further batches, and settle accepted ones within `exit_timeout`. Clients send the rest themselves."""
        timeout = self._settings.exit_timeout
        deadline = monotonic() + timeout
        with self._admission:
            self._is_closing = True
        self._sender.begin_shutdown()
        self._sender.flush(timeout)
        # Clients fetch an outcome at once; a client that is stopped must not delay this process.
        self._progress.wait_while(self._has_answers_to_give, deadline, monotonic, 0.02)
        for session in self._connected():
            if session.batch is not None:
                session.batch.resends, session.batch.is_reachable = True, False
        settled = self._sender.close_by(deadline, timeout)
        shutdown.unregister(self._sender)  # it has ended; the next start sends what is left in a spool
        return settled

    def _has_answers_to_give(self) -> bool:
        return any(session.batch is not None and session.batch.is_settled() for session in self._connected())

    def _admit(self, batch: list[bytes]) -> bool:
        session = self._session()
        session.batch = owner = BatchOwner(session, len(batch))
        if all(self._owned.admit(event, owner) for event in batch):
            return True
        session.batch = None  # admitted events are sent twice, here and by the client, with the same message IDs
        return False

    def _may_ever_fit(self, events: int, size: int) -> bool:
        return events <= self._settings.max_queue_events and size <= self._settings.max_queue_bytes

    def _batch_of_this_connection(self) -> BatchOwner | None:
        session: Session | None = getattr(self._local, "session", None)
        return session.batch if session is not None else None

    def _connected(self) -> list[Session]:
        with self._admission:
            return list(self._sessions)

    def _session(self) -> Session:
        session: Session | None = getattr(self._local, "session", None)
        if session is None:
            session = self._local.session = Session(self._log)
            self._sessions.add(session)
        return session

    def _check(self, batch: Any) -> int:
        if not isinstance(batch, list) or not 0 < len(batch) <= MAX_ITEMS:
            raise ValueError(f"a batch must be a list of 1 to {MAX_ITEMS} events")
        largest = min(self._settings.max_batch_bytes, self._settings.max_queue_bytes)
        for event in batch:
            if not isinstance(event, bytes) or event[:1] != b"{" or event[-1:] != b"}" or b"\n" in event:
                raise ValueError("an event must be a JSON object in one line, as bytes")
            if len(event) > largest:
                raise ValueError(f"an event of {len(event):,} bytes is larger than the manager accepts ({largest:,})")
        return sum(map(len, batch))


class BatchServer(Server):
    """A manager's server that can stop accepting, and that survives a lack of descriptors or threads."""

    listener: Any  # `Server`'s own, a `multiprocessing.connection.Listener`

    def __init__(self, batches: Batches, address: Address | None, authkey: bytes) -> None:
        registry: Any = {TYPEID: (batches.open, EXPOSED, None, None)}
        super().__init__(registry, address, authkey, "pickle")
        self._batches = batches
        self._is_closed = False
        self.heartbeat = daemon.Heartbeat(self._connect)
        try:
            self.listener._listener._socket.listen(BACKLOG)  # 16 in 3.11 and older
        except AttributeError:
            pass  # a pipe

    def accepter(self) -> None:
        while True:
            while not (self._is_closed or daemon.has_descriptor_for_client()):
                time.sleep(_CROWDED)
            try:
                connection = self.listener.accept()
                self.heartbeat.last = monotonic()
            except OSError:
                if self._is_closed:
                    return
                time.sleep(_CROWDED)
                continue
            if not isinstance(self.address, str):
                _keep_alive(connection)
            thread = threading.Thread(target=self.handle_request, args=(connection,), daemon=True)
            try:
                thread.start()
            except RuntimeError:
                connection.close()
                time.sleep(_CROWDED)

    def is_ready(self) -> bool:
        """True while it accepts connections and batches. Any thread may call this."""
        return not (self._is_closed or self._batches.is_closing)

    def metrics(self) -> bytes:
        """The status as Prometheus text. Any thread may call this."""
        return self._batches.metrics()

    def _connect(self) -> None:
        """Open and close a connection, to see whether it is accepted. Does not wait for that."""
        address: Any = self.address
        is_path = isinstance(address, str)
        if is_path and address.startswith("\\\\"):
            self.heartbeat.last = monotonic()  # a named pipe of Windows cannot be opened without waiting
            return
        try:
            family = socket.AF_UNIX if is_path else self.listener._listener._socket.family
            with socket.socket(family) as sock:
                sock.setblocking(False)
                sock.connect_ex(address)
        except (OSError, AttributeError):
            pass  # no descriptor left: then none is accepted either

    def stop_accepting(self) -> None:
        """Close the listening socket and remove its file. Open connections remain."""
        self._is_closed = True
        try:
            self.listener._listener._socket.shutdown(socket.SHUT_RDWR)  # `close` alone does not end a wait in `accept`
        except (AttributeError, OSError):
            pass  # a pipe; or a system where a listening socket cannot be shut down
        try:
            self.listener.close()
        except FileNotFoundError:
            pass  # the socket's file was removed by another program


def _keep_alive(connection: Any) -> None:
    """Let the system detect that the host at the other end has gone."""
    with socket.socket(fileno=os.dup(connection.fileno())) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


def log(text: str) -> None:
    daemon.write_log("manager", text)
