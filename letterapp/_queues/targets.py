"""The queues that accept batches: a `SenderManager`'s, another manager's, or any other with ``put_nowait``.

Responsible for: which objects are accepted, and how they are pickled. Not responsible for: the protocol of a manager's
server (`manager_connection`), when a batch is put into a queue and what happens if that fails (`handover`).
"""

from __future__ import annotations

import os
import socket
import sys
import time
from queue import Full
from weakref import WeakKeyDictionary

from .._runtime.clock import monotonic
from .._runtime.signal_errors import reraise_signal_error
from .._text import Secret, SecretBytes, short
from ..errors import LetterError
from .manager_connection import ANSWERING, Disconnected, ManagerConnection

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Protocol

    from .manager_connection import Address, Batch

    class Channel(Protocol):
        """One process's connection to a queue. Used by one thread at a time."""

        # These methods raise if they fail, or if there is no response for ``patience`` seconds. They return NOT_YET if
        # there is no response after ``wait`` seconds; another call with the same arguments continues to wait for it.

        def put(self, batch: Batch, urgent: bool, wait: float, patience: float) -> bool | object:
            """Put ``batch`` into the queue; False if that has to be retried soon.

            ``urgent``: a caller waits for it, so it must not be delayed for other events.
            """

        def settled(self, linger: float, urgent: bool, wait: float, patience: float) -> list[bytes] | object | None:
            """Wait for up to ``linger`` seconds until the batch is settled.

            Returns the reports of its lost events; None if it is not settled.
            """

        def close(self) -> None: ...

    class Target(Protocol):
        """A queue as an option of a `Letter`."""

        retired: bool  # shut down on purpose in this process, so its refusals are not failures
        has_feeder: bool  # a thread of this process writes to it, until multiprocessing shuts down

        def connect(self, patience: float) -> Channel: ...

        def is_same(self, other: Target) -> bool:
            """True if ``other`` is the same queue."""

        def finish(self) -> None:
            """The process is ending: do not let the queue prevent that."""


TYPEID = "batches"  # the name of the queue in a `SenderManager`'s server
_FEEDER_LOOK = 0.0002  # seconds until the next check whether a feeder thread has written, doubled each time
_STUCK = 1.0  # maximum time for writing, in seconds; if it takes longer, no process reads the queue, or too slowly


def adapt(queue: Any) -> Target:
    """``relay=queue`` as a `Target`. Raises `LetterError` if it cannot carry events to another process."""
    if isinstance(queue, (ManagerQueue, ProxyQueue, ForeignQueue)):
        return queue
    if not hasattr(queue, "put_nowait"):
        hint = ": pass its .queue" if hasattr(queue, "get_server") else ""
        raise LetterError(
            f"relay must be True, the path of a socket or a queue with put_nowait, not {short(queue)}{hint}"
        )
    if _stays_in_process(queue):
        raise LetterError(
            f"relay={type(queue).__name__}: its items never leave this process; "
            "use multiprocessing.Queue(), a manager's queue or SenderManager(...).queue"
        )
    token = getattr(queue, "_token", None)
    if token is not None and hasattr(queue, "_authkey"):
        if getattr(queue, "_serializer", "pickle") != "pickle":
            raise LetterError("relay: a manager with serializer='xmlrpclib' cannot carry events; use 'pickle'")
        return ProxyQueue(queue, token.address, SecretBytes(queue._authkey), token.id)
    return ForeignQueue(queue)


def _stays_in_process(queue: Any) -> bool:
    for module in ("queue", "_queue", "asyncio", "gevent.queue"):
        for name in ("Queue", "SimpleQueue"):
            kind = getattr(sys.modules.get(module), name, None)
            if isinstance(kind, type) and isinstance(queue, kind):
                return True
    return False


class ManagerQueue:
    """The queue of a `letterapp.relay.SenderManager`, for ``Letter(relay=manager.queue)``.

    It can be pickled, and carries the authkey and the API key with it: whoever has it can send events and, because
    managers unpickle what they receive, run code in the manager's process. Safe in any thread and across forks.
    """

    has_feeder = False

    def __init__(self, address: Address, authkey: bytes, api_key: Secret, base_url: str, proof: str) -> None:
        self.address = address
        self.api_key = api_key
        self.base_url = base_url
        self._authkey = SecretBytes(authkey)
        self._proof = proof
        self.retired = False
        self.process: object = None  # keeps the manager's process alive; only in the process that started it

    def connect(self, patience: float) -> ManagerConnection:
        asked = (TYPEID, self._proof, self.base_url)
        return ManagerConnection(self.address, self._authkey, patience, asked, answers=True)

    def is_same(self, other: Target) -> bool:
        return isinstance(other, ManagerQueue) and other.address == self.address

    def finish(self) -> None:
        pass

    def ask(self, method: str) -> Any:
        """Call ``method`` of the server over a new connection. Raises `LetterError` if it does not respond."""
        try:
            connection = self.connect(ANSWERING)
            try:
                answer = connection.call(method, patience=ANSWERING)
                if answer is None:
                    raise Disconnected("it is shutting down")
                return answer
            finally:
                connection.close()
        except LetterError as problem:
            raise LetterError(f"the manager at {self.address!r} refuses this client: {problem}") from None
        except Exception as problem:
            reraise_signal_error(problem)
            raise LetterError(f"the manager at {self.address!r} cannot be used: {reason(problem)}") from None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "retired": False, "process": None}

    def __repr__(self) -> str:
        return f"<ManagerQueue at {self.address!r}>"


class ProxyQueue:
    """A queue of any other manager, like ``multiprocessing.Manager().Queue()``. It does not report outcomes."""

    retired = False
    has_feeder = False

    def __init__(self, proxy: Any, address: Address, authkey: bytes, ident: str) -> None:
        self._proxy = proxy  # the manager keeps the queue as long as this exists
        self.address = address
        self._authkey = authkey
        self._ident = ident

    def connect(self, patience: float) -> ManagerConnection:
        return ManagerConnection(self.address, self._authkey, patience, self._ident, answers=False)

    def is_same(self, other: Target) -> bool:
        return isinstance(other, ProxyQueue) and (other.address, other._ident) == (self.address, self._ident)

    def finish(self) -> None:
        pass

    def __getstate__(self) -> dict[str, Any]:
        # A proxy that is pickled outside of `Process` loses its authkey (CPython issue 139801); this object keeps it.
        return {**self.__dict__, "_proxy": None}

    def __repr__(self) -> str:
        return f"<queue of the manager at {self.address!r}>"


_feeders: WeakKeyDictionary[Any, int] = WeakKeyDictionary()  # the process ID of each queue's feeder thread


class ForeignQueue:
    """A queue whose methods run in this process: ``multiprocessing.Queue()``, or any other with ``put_nowait``.

    A ``multiprocessing.Queue`` passes an item to its feeder thread, which is lost at a kill or `os._exit`. So a batch
    counts as settled when the feeder has written it, and stays in this process's queue until then.
    Pickled like the queue itself, so a ``multiprocessing.Queue`` can only be passed to `Process` and pool initializers.
    """

    retired = False

    def __init__(self, queue: Any) -> None:
        self.queue = queue
        self.has_feeder = all(hasattr(queue, name) for name in ("_buffer", "_notempty", "_thread"))
        self._stuck_from = 0.0  # when the last batch was put
        self._gave_up = False  # a batch may still be with a feeder that cannot write it
        self._pipe = _identity(queue) if self.has_feeder else None
        if self.has_feeder:
            _feeders.setdefault(queue, os.getpid())

    def connect(self, patience: float) -> ForeignQueue:
        return self

    def is_same(self, other: Target) -> bool:
        return isinstance(other, ForeignQueue) and other.queue is self.queue

    def put(self, batch: Batch, urgent: bool, wait: float, patience: float) -> bool:
        if self.has_feeder:
            if _identity(self.queue) != self._pipe:
                raise Disconnected("its descriptor was closed")
            _renew_feeder(self.queue)
            if self._gave_up and self.is_being_written():
                raise Full("no process reads it")
            self._gave_up = False
        self.queue.put_nowait(batch)
        self._stuck_from = monotonic()
        return True

    def settled(self, linger: float, urgent: bool, wait: float, patience: float) -> list[bytes] | None:
        until = monotonic() + linger
        pause = _FEEDER_LOOK
        while self.is_being_written():
            now = monotonic()
            if now >= self._stuck_from + _STUCK:
                self._gave_up = True
                raise Full("no process reads it")
            if now >= until:
                return None
            time.sleep(pause)
            pause = min(2 * pause, 0.01)
        return []

    def finish(self) -> None:
        """See `Target`. `multiprocessing` joins the feeder without a time-out, forever if no process reads."""
        if self.is_being_written():
            self.queue.cancel_join_thread()

    def close(self) -> None:
        pass

    def is_being_written(self) -> bool:
        """True until the feeder of this process has written everything. Only then does it wait for more."""
        # Do not wait for the parent's feeder, or its lock, which another thread may have held during the fork.
        if not self.has_feeder or self.queue._thread is None or _feeders.get(self.queue) != os.getpid():
            return False
        with self.queue._notempty:
            return bool(self.queue._buffer) or not self.queue._notempty._waiters

    def __getstate__(self) -> dict[str, Any]:
        return {"queue": self.queue}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["queue"])  # type: ignore[misc]

    def __repr__(self) -> str:
        return f"<{type(self.queue).__module__}.{type(self.queue).__name__}>"


def _identity(queue: Any) -> tuple[int, int] | None:
    """The file that the feeder writes to; another one if other code has closed the descriptor."""
    try:
        status = os.fstat(queue._writer.fileno())
    except (AttributeError, OSError, ValueError):
        return None  # closed; or a Windows pipe, which has no descriptor
    return status.st_dev, status.st_ino


def _renew_feeder(queue: Any) -> None:
    """Make a ``multiprocessing.Queue`` start a feeder thread in this process.

    Its own fork hook is called only in `multiprocessing` children, not after `os.fork()` (`Queue._after_fork` in
    CPython's ``multiprocessing/queues.py``): there it would accept items, and nothing would ever write them. Or it
    would accept none: a thread of the parent may have held its lock at the fork, before there was any feeder.
    """
    feeder, pid = queue._thread, os.getpid()
    if _feeders[queue] == pid:
        if feeder is not None and not feeder.is_alive():
            raise Disconnected("its feeder thread has ended")
        return
    _feeders[queue] = pid
    if hasattr(queue, "_reset"):
        queue._reset(after_fork=True)
    else:
        queue._after_fork()  # 3.8


def reason(problem: Exception) -> str:
    """Why a request to a queue failed, for a message."""
    if isinstance(problem, Full):
        return f"it accepts nothing: {problem}" if str(problem) else "it is full"
    if isinstance(problem, socket.timeout):
        return "it does not answer in time"
    if isinstance(problem, LetterError):
        return f"it refuses this client: {problem}"
    text = getattr(problem, "strerror", None) or str(problem)
    return f"{text} ({type(problem).__name__})" if text else type(problem).__name__
