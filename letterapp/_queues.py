"""The queues that a batch can be handed to: a `SenderManager`'s, another manager's, or any with ``put_nowait``.

Responsible for: which objects are accepted, a connection to a manager's server with a deadline on every exchange, and
what pickling carries. Not responsible for: when a batch is handed over and what happens when that fails (`_handover`),
the server's side (`_manager`).

A manager's own proxies are not used: a raw `os.fork()` leaves parent and child one socket, and an exception in the
middle of a call shifts every later answer by one. `ManagerConnection` speaks the same protocol over a socket that
belongs to one process and is closed after any exchange that did not end.
"""

from __future__ import annotations

import hmac  # noqa: F401  # which `answer_challenge` imports at the call, where a fork in another thread could tear it
import os
import pickle
import socket
import struct
import sys
import time
from multiprocessing import connection as mp_connection
from queue import Full
from weakref import WeakKeyDictionary

from ._clock import monotonic
from ._handlers import pass_on
from ._line import Line, open_line
from ._texts import Secret, SecretBytes, short
from .errors import LetterError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, List, Protocol, Tuple, Union

    Address = Union[str, Tuple[str, int]]
    Batch = List[bytes]

    class Channel(Protocol):
        """One process's way into a queue. Used by one thread at a time."""

        # Each of these raises when it cannot be done, or when there is no answer for ``patience`` seconds. NOT_YET: the
        # answer was waited for no longer than ``wait`` seconds; the same call goes on with it.

        def put(self, batch: Batch, urgent: bool, wait: float, patience: float) -> bool | object:
            """Hand ``batch`` over; False when the queue asks to be tried again soon.

            ``urgent``: somebody waits for it, so it is to wait for no company.
            """

        def settled(self, linger: float, urgent: bool, wait: float, patience: float) -> list[bytes] | object | None:
            """Wait up to ``linger`` seconds until the batch is settled: reports of what is lost of it, or None."""

        def close(self) -> None: ...

    class Target(Protocol):
        """A queue, as `Letter` keeps it among its options."""

        retired: bool  # shut down on purpose in this process: nothing is wrong when it takes no more
        has_feeder: bool  # a thread of this process writes what it takes, until multiprocessing ends with the process

        def connect(self, patience: float) -> Channel: ...

        def is_same(self, other: Target) -> bool:
            """True when ``other`` leads to the same queue."""

        def finish(self) -> None:
            """The process ends: do not let the queue keep it from that."""


NOT_YET = object()  # the answer is still to come
TYPEID = "batches"  # what a `SenderManager`'s server calls its queue
ANSWERING = 5.0  # seconds that a server may take to answer what nobody waits for in a call
MAX_ANSWER = 8_388_608  # bytes of one answer: 100 reports of 64 KiB and more
_FEEDER_LOOK = 0.0002  # seconds until it is looked again whether a feeder thread has written, doubled each time
_STUCK = 1.0  # seconds that it may take; then nobody reads, or more slowly than this process tracks
_BACKLOG_WAIT = 0.01  # seconds until the next attempt at a server whose backlog is full


class Disconnected(ConnectionError):
    """The connection to a manager is of no use any more; a new one may be."""


def adapt(queue: Any) -> Target:
    """What ``Letter(relay=queue)`` works with; `LetterError` for an object that cannot carry events to a process."""
    if isinstance(queue, (ManagerQueue, ProxyQueue, ForeignQueue)):
        return queue
    if not hasattr(queue, "put_nowait"):
        hint = ": give its .queue" if hasattr(queue, "get_server") else ""
        raise LetterError(f"relay must be True, a socket's path or a queue with put_nowait, not {short(queue)}{hint}")
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

    It can be pickled, and carries the authkey and the API key with it: whoever gets it can send events and, because
    managers unpickle what arrives, run code in the manager's process. Safe in any thread and across forks.
    """

    has_feeder = False

    def __init__(self, address: Address, authkey: bytes, api_key: Secret, base_url: str, proof: str) -> None:
        self.address = address
        self.api_key = api_key
        self.base_url = base_url
        self._authkey = SecretBytes(authkey)
        self._proof = proof
        self.retired = False
        self.process: object = None  # the manager's, which it keeps going, in the process that started it alone

    def connect(self, patience: float) -> ManagerConnection:
        asked = (TYPEID, self._proof, self.base_url)
        return ManagerConnection(self.address, self._authkey, patience, asked, answers=True)

    def is_same(self, other: Target) -> bool:
        return isinstance(other, ManagerQueue) and other.address == self.address

    def finish(self) -> None:
        pass

    def ask(self, method: str) -> Any:
        """Call ``method`` of the server over a connection of its own; `LetterError` when it does not answer."""
        try:
            connection = self.connect(ANSWERING)
            try:
                return connection.call(method, patience=ANSWERING)
            finally:
                connection.close()
        except LetterError as problem:
            raise LetterError(f"the manager at {self.address!r} refuses this client: {problem}") from None
        except Exception as problem:
            pass_on(problem)
            raise LetterError(f"the manager at {self.address!r} cannot be used: {reason(problem)}") from None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "retired": False, "process": None}

    def __repr__(self) -> str:
        return f"<ManagerQueue at {self.address!r}>"


class ProxyQueue:
    """A queue in any other manager, as ``multiprocessing.Manager().Queue()``: nobody answers what became of a batch."""

    retired = False
    has_feeder = False

    def __init__(self, proxy: Any, address: Address, authkey: bytes, ident: str) -> None:
        self._proxy = proxy  # while it lives the manager keeps the queue
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
        # A proxy that is pickled outside of `Process` loses a key of its own (cpython issue 139801); this one keeps it.
        return {**self.__dict__, "_proxy": None}

    def __repr__(self) -> str:
        return f"<queue of the manager at {self.address!r}>"


_feeders: WeakKeyDictionary[Any, int] = WeakKeyDictionary()  # of each queue the process that its feeder belongs to


class ForeignQueue:
    """A queue that is called in this process: ``multiprocessing.Queue()``, or any other with ``put_nowait``.

    A ``multiprocessing.Queue`` only lays an item down for its feeder thread, which is gone at a kill or `os._exit`. So
    a batch counts as settled when the feeder has written it, and stays its process's own until then.
    Pickled as the queue itself is, so a ``multiprocessing.Queue`` goes to `Process` and pool initializers only.
    """

    retired = False

    def __init__(self, queue: Any) -> None:
        self.queue = queue
        self.has_feeder = all(hasattr(queue, name) for name in ("_buffer", "_notempty", "_thread"))
        self._stuck_from = 0.0  # when the last batch was put
        self._gave_up = False  # one of ours may still be with a feeder that cannot write it
        self._pipe = _identity(queue) if self.has_feeder else None
        if self.has_feeder:
            _feeders.setdefault(queue, os.getpid())

    def connect(self, patience: float) -> ForeignQueue:
        return self

    def is_same(self, other: Target) -> bool:
        return isinstance(other, ForeignQueue) and other.queue is self.queue

    def is_kept_from_us(self) -> bool:
        """True when there are items, though a `get` found none: another reader has the queue's lock, maybe a dead one.

        A process that is killed in `get` never gives the lock of a ``multiprocessing.Queue`` back.
        """
        try:
            return self.has_feeder and not self.queue.empty()
        except OSError:
            return False

    def put(self, batch: Batch, urgent: bool, wait: float, patience: float) -> bool:
        if self.has_feeder:
            if _identity(self.queue) != self._pipe:
                raise Disconnected("its descriptor was closed")
            _renew_feeder(self.queue)
            if self._gave_up and self._is_stuck():
                raise Full("nobody reads it")
            self._gave_up = False
        self.queue.put_nowait(batch)
        self._stuck_from = monotonic()
        return True

    def settled(self, linger: float, urgent: bool, wait: float, patience: float) -> list[bytes] | None:
        until = monotonic() + linger
        pause = _FEEDER_LOOK
        while self._is_stuck():
            now = monotonic()
            if now >= self._stuck_from + _STUCK:
                self._gave_up = True
                raise Full("nobody reads it")
            if now >= until:
                return None
            time.sleep(pause)
            pause = min(2 * pause, 0.01)
        return []

    def finish(self) -> None:
        """See `Target`. `multiprocessing` joins the feeder without a time-out, for ever where nobody reads."""
        if self._is_stuck():
            self.queue.cancel_join_thread()

    def close(self) -> None:
        pass

    def _is_stuck(self) -> bool:
        """True until the feeder has written all that it has. It waits for more only then."""
        # A parent's feeder is nothing to wait for, nor is its lock, which some thread may have held at the fork.
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
    """What the feeder writes to; another file when somebody has closed the descriptor, whose number is given again."""
    try:
        status = os.fstat(queue._writer.fileno())
    except (AttributeError, OSError, ValueError):
        return None  # closed; a Windows pipe, which has no descriptor
    return status.st_dev, status.st_ino


def _renew_feeder(queue: Any) -> None:
    """Have a ``multiprocessing.Queue`` start a feeder thread of this process.

    Its own fork hook is called for `multiprocessing` children alone, not after `os.fork()` (cpython
    ``multiprocessing/queues.py``, `Queue._after_fork`): there it takes items, and nothing ever writes them.
    """
    feeder, pid = queue._thread, os.getpid()
    if feeder is None or (_feeders[queue] == pid and feeder.is_alive()):
        _feeders[queue] = pid
        return
    if _feeders[queue] == pid:
        raise Disconnected("its feeder thread has ended")
    _feeders[queue] = pid
    if hasattr(queue, "_reset"):
        queue._reset(after_fork=True)
    else:
        queue._after_fork()  # 3.8


class ManagerConnection:
    """A connection of this process to a manager's server; every exchange ends within the seconds that it is given.

    Used by one thread at a time. A forked child closes its copy and makes its own. The protocol is that of
    `multiprocessing.managers`: a mutual challenge with the authkey, then pickled ``(ident, method, args, kwds)`` and
    ``(kind, result)``.
    """

    def __init__(
        self,
        address: Address,
        authkey: bytes,
        patience: float,
        queue: str | tuple[str, str, str],
        answers: bool,
    ) -> None:
        """``queue``: its identity in the server, or the arguments by which the server is asked for it."""
        self._answers = answers
        self._asked: float | None = None  # when the question was asked whose answer is still to come
        deadline = monotonic() + patience
        if isinstance(queue, tuple):
            # The server answers one question on a connection, unless the question is to be accepted for more.
            self._wire = _open_wire(address, authkey, deadline)
            try:
                self._ident = self._exchange(None, "create", *queue)[0]
            finally:
                self._wire.close()
        else:
            self._ident = queue
        self._wire = _open_wire(address, authkey, deadline)
        try:
            self._exchange(None, "accept_connection", f"letterapp {os.getpid()}")
        except BaseException:
            self._wire.close()
            raise

    def put(self, batch: Batch, urgent: bool, wait: float, patience: float) -> bool | object:
        arguments = (batch, urgent) if self._answers else (batch,)
        answer: object = self._ask("put_nowait", *arguments, wait=wait, patience=patience)
        if answer is NOT_YET:
            return NOT_YET
        return bool(answer) or not self._answers

    def settled(self, linger: float, urgent: bool, wait: float, patience: float) -> list[bytes] | object | None:
        if not self._answers:
            return []
        answer: list[bytes] | object | None = self._ask(
            "settled", linger, urgent, wait=linger + wait, patience=linger + patience
        )
        return answer

    def call(self, method: str, *arguments: Any, patience: float) -> Any:
        """Call ``method`` of the queue; raise what it raised, or `OSError`, after which this is to be closed."""
        return self._ask(method, *arguments, wait=patience, patience=patience)

    def ask(self, method: str, *arguments: Any, wait: float) -> Any:
        """The same, but NOT_YET after ``wait`` seconds; called again, it goes on waiting for that answer."""
        return self._ask(method, *arguments, wait=wait, patience=float("inf"))

    def close(self) -> None:
        self._wire.close()

    def _ask(self, method: str, *arguments: Any, wait: float, patience: float) -> Any:
        now = monotonic()
        if self._asked is None:
            if self._wire.is_stale():
                raise Disconnected("it closed the connection")
            self._wire.set_deadline(now + min(wait, patience))
            self._send(self._ident, method, *arguments)
            self._asked = now
        if not self._wire.has_answer(wait):
            if monotonic() >= self._asked + patience:
                raise socket.timeout("timed out")
            return NOT_YET
        self._asked = None
        self._wire.set_deadline(monotonic() + min(patience, ANSWERING))
        return self._answer()

    def _exchange(self, ident: str | None, method: str, *arguments: Any) -> Any:
        self._send(ident, method, *arguments)
        return self._answer()

    def _send(self, ident: str | None, method: str, *arguments: Any) -> None:
        self._wire.send_bytes(pickle.dumps((ident, method, arguments, {})))

    def _answer(self) -> Any:
        kind, result = pickle.loads(self._wire.recv_bytes())
        if kind == "#RETURN":
            return result
        if kind == "#ERROR" and isinstance(result, Exception):
            raise result
        raise _remote_error(str(result))


class _SocketWire:
    """Messages over a socket, framed as `multiprocessing.connection.Connection` does it, within one deadline."""

    def __init__(self, line: Line) -> None:
        self._line = line

    def set_deadline(self, deadline: float) -> None:
        self._line.deadline = deadline

    def is_stale(self) -> bool:
        return self._line.is_stale()

    def has_answer(self, wait: float) -> bool:
        """True when something can be read, or an error be met, within ``wait`` seconds."""
        return self._line.is_readable(wait)

    def send_bytes(self, data: bytes) -> None:
        size = len(data)
        head = struct.pack("!i", size) if size < 0x7FFFFFFF else struct.pack("!iQ", -1, size)
        self._line.sendall(head + data)

    def recv_bytes(self, maxlength: int = MAX_ANSWER) -> bytes:
        (size,) = struct.unpack("!i", self._read(4))
        if not 0 <= size <= maxlength:
            raise Disconnected(f"it sent a message of {size} bytes, more than {maxlength}")
        return bytes(self._read(size))

    def close(self) -> None:
        self._line.hang_up()

    def _read(self, size: int) -> bytearray:
        data = bytearray(size)
        rest = memoryview(data)
        while rest:
            received = self._line.receive_into(rest)
            if not received:
                raise Disconnected("it closed the connection")
            rest = rest[received:]
        return data


class _PipeWire:
    """Messages over one of Windows' named pipes, or any other `multiprocessing.connection.Connection`."""

    def __init__(self, pipe: Any, deadline: float) -> None:
        self._pipe = pipe
        self._deadline = deadline

    def set_deadline(self, deadline: float) -> None:
        self._deadline = deadline

    def is_stale(self) -> bool:
        try:
            return bool(self._pipe.poll(0))
        except OSError:
            return True

    def has_answer(self, wait: float) -> bool:
        return bool(self._pipe.poll(wait))

    def send_bytes(self, data: bytes) -> None:
        self._pipe.send_bytes(data)

    def recv_bytes(self, maxlength: int = MAX_ANSWER) -> bytes:
        if not self._pipe.poll(max(0.0, self._deadline - monotonic())):
            raise socket.timeout("timed out")
        data: bytes = self._pipe.recv_bytes(maxlength)
        return data

    def close(self) -> None:
        self._pipe.close()


def _open_wire(address: Address, authkey: bytes, deadline: float) -> _SocketWire | _PipeWire:
    wire: _SocketWire | _PipeWire
    if not isinstance(address, str):
        wire = _SocketWire(open_line(address[0], address[1], deadline))
    elif address.startswith("\\\\"):
        wire = _PipeWire(mp_connection.Client(address), deadline)
    else:
        wire = _SocketWire(Line(_connected_to_path(address, deadline), deadline))
    try:
        mp_connection.answer_challenge(wire, authkey)  # type: ignore[arg-type]
        mp_connection.deliver_challenge(wire, authkey)  # type: ignore[arg-type]
    except AssertionError as problem:
        wire.close()
        raise Disconnected(f"it is no manager's server: {problem}") from None  # 3.11 and older
    except BaseException:
        wire.close()
        raise
    return wire


def _connected_to_path(path: str, deadline: float) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        while True:
            sock.settimeout(max(0.001, deadline - monotonic()))
            try:
                sock.connect(path)
                return sock
            except BlockingIOError:  # Linux says so at once when the backlog is full, whatever the time-out
                if monotonic() + _BACKLOG_WAIT >= deadline:
                    raise socket.timeout("timed out") from None
                time.sleep(_BACKLOG_WAIT)
    except BaseException:
        sock.close()
        raise


def _remote_error(trace: str) -> Exception:
    """The error of a server that sends its traceback as a text."""
    last = trace.strip().rsplit("\n", 1)[-1]
    if last.startswith(("letterapp.errors.LetterError: ", "queue.Full")):
        return Full() if last.startswith("queue") else LetterError(last.partition(": ")[2])
    return RuntimeError(last)


def reason(problem: Exception) -> str:
    """What an exchange with a queue failed for, in words."""
    if isinstance(problem, Full):
        return f"it takes nothing: {problem}" if str(problem) else "it is full"
    if isinstance(problem, socket.timeout):
        return "it does not answer in time"
    if isinstance(problem, LetterError):
        return f"it refuses this client: {problem}"
    text = getattr(problem, "strerror", None) or str(problem)
    return f"{text} ({type(problem).__name__})" if text else type(problem).__name__
