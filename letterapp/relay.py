"""One sender process for all processes of an application, by way of a `multiprocessing` queue.

    from letterapp import Letter
    from letterapp.relay import SenderManager

    if __name__ == "__main__":
        with SenderManager("your-key") as manager:
            letter = Letter(relay=manager.queue)  # pass it to Process, Pool, executors, or fork after it is made
            letter.track("user_42", "Order Completed", {"amount": 99.5})

`SenderManager` is a manager whose server process sends; `QueueListener` sends what arrives in a queue that an
application has already. The relay over a Unix socket, ``Letter(relay=True)``, needs nothing of this module. All three
stand side by side in docs/relay.md.

Responsible for: the public classes. Not responsible for: handing batches over (`handover`), the server
(`manager_server`), its process (`manager_program`).
"""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from enum import Enum
from multiprocessing import AuthenticationError
from multiprocessing.managers import BaseManager
from queue import Empty, Full

from ._client import settings_of
from ._config import DEFAULT_BASE_URL, FixedOptions, seconds
from ._delivery import shutdown
from ._delivery.sender import Sender
from ._queues.manager_connection import ANSWERING, NOT_YET, Disconnected, ManagerConnection
from ._queues.targets import ForeignQueue, ManagerQueue, ProxyQueue, adapt
from ._relay import protocol
from ._relay_server.manager_program import batches_of, start_process
from ._reporter import Reporter
from ._runtime import servers
from ._runtime.atfork import this_process
from ._runtime.clock import monotonic
from ._runtime.condition import Condition
from ._runtime.lazy_module import LazyModule
from ._runtime.signal_errors import reraise_signal_error
from ._text import SecretBytes, concealed
from .errors import LetterError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import types
    import typing
    from typing import Any

    from ._queues.manager_connection import Address
    from ._queues.targets import Target
    from ._relay_server import manager_server
else:
    # As in `_client`.
    types, typing, manager_server = map(LazyModule, ("types", "typing", "letterapp._relay_server.manager_server"))
    Address = "typing.Union[str, typing.Tuple[str, int]]"

__all__ = ["QueueListener", "SenderManager"]

# Of `Letter`'s options those that the process which sends goes by. The others are each client's own.
SENDING = (
    *("flush_at", "flush_interval", "max_retries", "timeout", "max_queue_bytes", "max_queue_events", "overflow"),
    *("max_batch_bytes", "exit_timeout", "spool", "spool_max_bytes"),
)
LISTENING = (
    *("flush_at", "flush_interval", "max_retries", "timeout", "on_error", "max_queue_bytes", "max_queue_events"),
    *("max_batch_bytes", "exit_timeout", "ssl_context", "spool", "spool_sync", "spool_max_bytes"),
)
LEAVING = 5.0  # seconds beyond `exit_timeout` that its process may take to end
_SENTINEL = "letterapp: a listener stops"  # an item that marks where its queue ended then
_SHORTEST_PAUSE, _LONGEST_PAUSE = (
    0.01,
    0.1,
)  # seconds from one question whether a manager's queue has an item to the next
_GET = 1.0  # seconds that one wait for an item may take
_FIRST_WAIT, _LONGEST_WAIT = 1.0, 30.0  # seconds until a queue that failed is tried again, doubled each time


class Stage(Enum):
    """The life of a `SenderManager`: NEW -> SERVING by `start` or `connect`; SERVING -> SHUT_DOWN by `shutdown`."""

    NEW = "not started"
    SERVING = "serving"
    SHUT_DOWN = "shut down"


class SenderManager(FixedOptions, BaseManager):
    """A manager whose server process is the one sender process of all clients that have its ``queue``.

    The process is a program of its own (nobody's child, so daemonic workers may start it and no ``__main__`` guard is
    needed; where there is no `os.fork` it is a spawned process, and the guard is). It ignores SIGINT and SIGTERM while
    its starter or a process that was forked from it lives, then sends what it has and ends. A manager can be started or
    connected in any process; its queue, not the manager, is what other processes get.

    Args:
        api_key: The API key. None reads the variable ``LETTER_API_KEY``.
        base_url: Where the API is. When not given, the variable ``LETTER_BASE_URL``, else letter.app.
        address: Where the server listens: None for a private place, the path of a Unix socket, ``(host, port)`` for
            TCP (trusted networks only: whoever has the authkey can run code there), or a Windows pipe.
        authkey: The secret, in bytes, that both sides must have. None makes a random one in `start`.
        options: Of `Letter`'s options those that concern sending: flush_at, flush_interval, max_retries, timeout,
            max_queue_bytes, max_queue_events, overflow, max_batch_bytes, exit_timeout, spool, spool_max_bytes. With
            ``overflow="block"`` a batch waits for room, up to the client's `timeout`; else a full queue refuses it, and
            its process sends it.

    Raises:
        LetterError: An option is missing or wrong.
    """

    def __init__(
        self,
        api_key: typing.Optional[str] = None,
        base_url: str = DEFAULT_BASE_URL,
        *,
        address: typing.Optional[Address] = None,
        authkey: typing.Optional[bytes] = None,
        **options: typing.Any,
    ) -> None:
        api_key, authkey = concealed(api_key), SecretBytes(authkey) if isinstance(authkey, bytes) else authkey
        _check_options("SenderManager", options, SENDING)
        if authkey is not None and (not isinstance(authkey, bytes) or not authkey):
            raise LetterError("authkey must be bytes, at least one")
        self._settings = settings_of(api_key=api_key, base_url=base_url, **options)
        self._given_authkey = authkey
        self._key = authkey or SecretBytes(os.urandom(32))
        super().__init__(address=_checked(address), authkey=self._key)
        self._stage = Stage.NEW
        self._queue: ManagerQueue | None = None
        self._process: Any = None  # the server's, if it was started here
        self._starter = os.getpid()

    def start(self) -> None:  # type: ignore[override]
        """Start the server process; return when it serves. Blocks for a fraction of a second, at most 20 s.

        Raises:
            LetterError: It cannot be started, something else serves at the address, or this manager has been used.
        """
        self._must_be_new()
        self._process, address = start_process(self._options(), self._address, self._key)
        self._starter = os.getpid()
        self._serve_at(address)
        self._queue_of().process = self._process

    def connect(self) -> None:
        """Use a server that somebody keeps (``python -m letterapp relay --manager``). Blocks for 5 s at most.

        Raises:
            LetterError: It cannot be reached, has another authkey, API key or `base_url`, or no address was given.
        """
        self._must_be_new()
        if self._address is None or self._given_authkey is None:
            raise LetterError("connect() needs the address and the authkey of the server")
        self._serve_at(self._address)
        try:
            self.status()
        except BaseException:
            self._stage = Stage.NEW
            self._queue = None
            raise

    @property
    def queue(self) -> ManagerQueue:
        """What ``Letter(relay=...)`` takes. It can be pickled, and carries the authkey and the API key."""
        return self._queue_of()

    def status(self) -> typing.Dict[str, typing.Any]:
        """How the sender process is: pid, connections, accepted, delivered, lost by cause, waiting, ...

        Blocks for 5 s at most. Raises `LetterError` when it does not answer.
        """
        status: dict[str, Any] = self._queue_of().ask("status")
        return status

    def shutdown(self) -> None:  # type: ignore[override]
        """Have this process's clients hand over what waits, and the sender process send it and end.

        Blocks for `exit_timeout` for the clients, and for `exit_timeout` and 5 s more for the process, at most. What
        cannot be sent by then is sent by the processes that tracked it. Without effect in a process that did not start
        it, and the second time.

        Raises:
            LetterError: This manager was connected: whoever keeps the server ends it, by SIGTERM.
        """
        if self._stage == Stage.SERVING and self._process is None:
            raise LetterError("shutdown() ends what start() started; whoever keeps this server ends it, by SIGTERM")
        if self._stage != Stage.SERVING or self._starter != os.getpid():
            return
        queue, process = self._queue_of(), self._process
        deadline = monotonic() + self._settings.exit_timeout
        _flush_clients_of(queue, deadline)
        queue.retired = True
        self._stage = Stage.SHUT_DOWN
        process.stop(self._settings.exit_timeout + LEAVING)

    def get_server(self) -> manager_server.BatchServer:
        """The server itself, for a process that is to be the sender process: ``get_server().serve_forever()``.

        It sends while it serves; nobody ends it but the process's own end, which sends what is there.
        """
        from ._relay_server.manager_server import BatchServer

        self._must_be_new()
        batches = batches_of(self._options())
        batches.begin()
        return BatchServer(batches, self._address, self._key)

    def join(self, timeout: typing.Optional[float] = None) -> None:
        """Wait until the process that `start` started has ended, ``timeout`` seconds at most."""
        if self._process is not None and self._starter == os.getpid():
            self._process.join(timeout)

    def _options(self) -> typing.Dict[str, typing.Any]:
        return {name: getattr(self._settings, name) for name in (*SENDING, "api_key", "base_url")}

    def __enter__(self) -> SenderManager:
        if self._stage == Stage.NEW:
            self.start()
        return self

    def __exit__(
        self,
        kind: typing.Optional[typing.Type[BaseException]],
        error: typing.Optional[BaseException],
        trace: typing.Optional[types.TracebackType],
    ) -> None:
        if self._process is not None:
            self.shutdown()

    def __reduce__(self) -> typing.Tuple[typing.Any, ...]:
        raise LetterError("a SenderManager stays in its process: pass its .queue")

    def __repr__(self) -> str:
        known = self.__dict__  # empty, where an option was wrong: crash reporters look at that too
        if "_stage" not in known:
            return "<SenderManager that has not been made>"
        return f"<SenderManager {self._stage.value} at {self._address!r}>"

    def _must_be_new(self) -> None:
        if self._stage != Stage.NEW:
            raise LetterError("this manager has been started or connected; make another one")

    def _serve_at(self, address: Address) -> None:
        self._address = address
        settings = self._settings
        self._queue = ManagerQueue(
            address, self._key, settings.api_key, settings.base_url, protocol.proof(settings.api_key)
        )
        self._stage = Stage.SERVING

    def _queue_of(self) -> ManagerQueue:
        if self._queue is None:
            raise LetterError("the manager has no queue yet: start() or connect() it")
        return self._queue


class QueueListener(FixedOptions):
    """Sends what clients put into a queue, in one process, as `logging.handlers.QueueListener` handles records.

        queue = multiprocessing.Queue(1000)
        with QueueListener(queue, "your-key"):
            letter = Letter("your-key", relay=queue)

    A thread takes items out of the queue and hands their events to an ordinary sender, with its batches, retries and
    bounds. It takes no more than the sender has room for: what is beyond waits in the queue and, when that is full, in
    the clients. What it has taken and not sent is lost when its process is killed, unless there is a ``spool``.

    Args:
        queue: Anything with ``get``: ``multiprocessing.Queue()``, ``multiprocessing.Manager().Queue()``.
        api_key: The API key. None reads the variable ``LETTER_API_KEY``.
        base_url: Where the API is. When not given, the variable ``LETTER_BASE_URL``, else letter.app.
        options: Of `Letter`'s options those that concern sending: flush_at, flush_interval, max_retries, timeout,
            on_error, max_queue_bytes, max_queue_events, max_batch_bytes, exit_timeout, ssl_context, spool, spool_sync,
            spool_max_bytes.

    Raises:
        LetterError: An option is missing or wrong, or the queue has no ``get``.
    """

    def __init__(
        self,
        queue: typing.Any,
        api_key: typing.Optional[str] = None,
        base_url: str = DEFAULT_BASE_URL,
        **options: typing.Any,
    ) -> None:
        api_key = concealed(api_key)
        _check_options("QueueListener", options, LISTENING)
        if isinstance(queue, (ManagerQueue, SenderManager)):
            raise LetterError("a SenderManager's queue needs no listener: its process sends")
        if not hasattr(queue, "get"):
            raise LetterError(f"a listener needs a queue with get, not {queue!r}")
        source = adapt(queue)
        assert not isinstance(source, ManagerQueue)
        self._source: Any = source
        self._settings = settings_of(api_key=api_key, base_url=base_url, **options)
        self.owner = this_process()
        self._report = Reporter(self._settings.on_error)
        self._sender: Sender | None = None
        self._stopped = threading.Event()
        self._is_draining = False  # it is to end when what is in the queue now has been taken
        self._has_marked_end = False  # a sentinel is behind that
        self._is_last = False  # all that was in the queue by then has come
        self._is_over = False  # the time of `stop` or of the end is over: what is in the queue stays there
        self._told = ""

    def start(self) -> None:
        """Start taking items out of the queue. Returns at once; a second call does nothing. Raises after `stop`."""
        if self._stopped.is_set():
            raise LetterError("this listener has been stopped; make another one")
        if self._sender is not None and self.owner.pid == os.getpid():
            return
        self.owner = this_process()
        self._room = Condition()
        self._sender = Sender(self._settings, report=self._report, progress=self._room)
        shutdown.register(self)  # type: ignore[arg-type]  # the process's end stops it
        self._sender.start_recovery()
        if not servers.start_thread(self._run):
            self._sender = None
            raise LetterError("a listener needs a thread, and none can run in this process")

    def stop(self, timeout: typing.Optional[float] = None) -> bool:
        """Send what this process's clients have, what is in the queue, what was taken out; True when all was settled.

        Stop the clients of other processes first: what they put later stays in the queue. Blocks for ``timeout``
        seconds at most, `exit_timeout` if None. What is in the queue then stays there; what was
        taken out and is not delivered is reported to `on_error`.
        """
        timeout = self.exit_timeout if timeout is None else seconds("timeout", timeout)
        if self._sender is None or self.owner.pid != os.getpid():
            return True
        deadline = monotonic() + timeout
        _flush_clients_of(self._source, deadline)
        drained = self._drain(deadline)
        self._is_over = True
        return self._sender.close(max(0.0, deadline - monotonic())) and drained and not self._told

    def stats(self) -> typing.Dict[str, typing.Any]:
        """The counters of its sender, as `Letter.stats` has them."""
        return self._sender.stats() if self._sender is not None else {}

    def __enter__(self) -> QueueListener:
        self.start()
        return self

    def __exit__(
        self,
        kind: typing.Optional[typing.Type[BaseException]],
        error: typing.Optional[BaseException],
        trace: typing.Optional[types.TracebackType],
    ) -> None:
        self.stop()

    # The end of the process, as `shutdown` announces it: after the clients, whose last batches come here.

    ends_last = True
    sends_on_os_exit = True

    @property
    def exit_timeout(self) -> float:
        return self._settings.exit_timeout

    def cancel_shutdown(self) -> None:
        pass

    def recover_from_children(self) -> None:
        pass

    def begin_shutdown(self) -> None:
        pass

    def end(self, deadline: float, final: bool) -> None:
        if self._sender is None or not final:
            return
        if (
            isinstance(self._source, ForeignQueue)
            and multiprocessing.active_children()
            and not shutdown.is_past_multiprocessing()
        ):
            # They are joined next, and go on putting until then. This is called again after that, when a manager that
            # this process has started is gone.
            return
        self._drain(deadline)
        self._is_over = True
        self._sender.end(deadline, final)

    def defer_signal(self, act: typing.Callable[[], object]) -> bool:
        return False

    def _drain(self, deadline: float) -> bool:
        """Have the thread take what is in the queue, and end; False when ``deadline`` has come before."""
        if not self._is_draining:
            self._is_draining = True
            # Behind all that this process has put: a `multiprocessing.Queue` writes on a thread of its own, so "empty"
            # says nothing yet.
            self._is_last = not self._put_sentinel()
            self._has_marked_end = True
        return self._stopped.wait(max(0.0, deadline - monotonic()))

    def _put_sentinel(self) -> bool:
        try:
            channel = self._source.connect(ANSWERING)
            try:
                channel.put([_SENTINEL], True, ANSWERING, ANSWERING)
            finally:
                channel.close()
        except (OSError, EOFError, Full, RuntimeError, ValueError, AuthenticationError) as problem:
            reraise_signal_error(problem)
            return False  # full, or gone: what can be read at once is the end
        return True

    # The thread.

    def _run(self) -> None:
        wait = _FIRST_WAIT
        channel: _Source | None = None
        try:
            while self.owner.pid == os.getpid() and not self._is_over:
                # Asked before the look: one that began before the sentinel was put, and found nothing, says nothing of
                # what has come since.
                has_marked_end = self._has_marked_end
                try:
                    channel = channel or _Source(self._source)
                    item = channel.get(0.0 if self._is_last else _GET)
                except Empty:
                    if channel is not None and channel.is_kept_from_us():
                        self._tell("the queue has items, and another reader holds it, perhaps one that was killed")
                        has_marked_end = self._is_draining
                    if has_marked_end and not (channel is not None and channel.is_being_written()):
                        return
                    continue
                except Exception as problem:
                    reraise_signal_error(problem)
                    if channel is not None:
                        channel.close()
                        channel = None
                    self._tell(f"the queue cannot be read: {problem!r}")
                    if self._is_draining:
                        return
                    self._pause(wait)
                    wait = min(2 * wait, _LONGEST_WAIT)
                    continue
                wait, self._told = _FIRST_WAIT, ""
                self._take(item)
        finally:
            if channel is not None:
                channel.close()
            if self.owner.pid == os.getpid():
                self._stopped.set()

    def _pause(self, wait: float) -> None:
        deadline = monotonic() + wait
        while not self._is_draining and monotonic() < deadline:
            time.sleep(0.05)

    def _take(self, item: Any) -> None:
        sender = self._sender
        assert sender is not None
        largest = min(self._settings.max_batch_bytes, self._settings.max_queue_bytes)
        events = list(item) if isinstance(item, (list, tuple)) else [item]
        for number, event in enumerate(events):
            if event == _SENTINEL:
                self._is_last = self._is_draining  # or it is another listener's, which ends without it
            elif not _is_event(event):
                said = f"the queue holds what is no event of a client: {event!r:.200}"
                sender.refuse("invalid", LetterError(said, cause="invalid", lost=1))
            elif len(event) > largest:
                said = f"an event of {len(event):,} bytes is larger than the listener takes ({largest:,})"
                sender.refuse("overflow", LetterError(said, cause="overflow", events=[event]))
            # What the sender has no room for waits here, and so in the queue.
            elif self._wait_for_room(sender, len(event)):
                sender.put(event)
            else:
                self._give_up(sender, [each for each in events[number:] if _is_event(each)])
                return

    def _wait_for_room(self, sender: Sender, size: int) -> bool:
        def must_wait() -> bool:
            return not (self._is_over or sender.has_room(1, size))

        self._room.wait_while(must_wait, float("inf"), monotonic, _GET)
        return not self._is_over

    def _give_up(self, sender: Sender, events: list[bytes]) -> None:
        """The rest of an item, for which there was no time any more. Those behind it are still in the queue."""
        for _ in events:
            sender.refuse("closed")
        if events:
            why = "were taken out of the queue and not sent before the listener stopped"
            self._report(LetterError(f"{len(events):,} events {why}", cause="closed", events=events))

    def _tell(self, trouble: str) -> None:
        if trouble != self._told:
            self._told = trouble
            self._report(LetterError(trouble, cause="degraded"))


class _Source:
    """Where a listener's thread gets items from."""

    def __init__(self, queue: ProxyQueue | ForeignQueue) -> None:
        self._connection: ManagerConnection | None = None
        if isinstance(queue, ProxyQueue):
            self._connection = queue.connect(ANSWERING)
        else:
            self._target = queue

    def get(self, wait: float) -> Any:
        """The next item; `queue.Empty` after ``wait`` seconds without one."""
        if self._connection is None:
            return self._target.queue.get(wait > 0, wait)
        # Asked again and again: a manager that waits for an item on behalf of a listener would give it to nobody, if
        # that one is killed meanwhile. A question that was asked is not abandoned, for its answer is an item.
        until = monotonic() + wait
        pause = _SHORTEST_PAUSE
        while True:
            left = max(0.0, until - monotonic())
            try:
                item = self._connection.ask("get_nowait", wait=left or ANSWERING)
                if item is NOT_YET:
                    raise Empty
                if item is None and self._connection.confirm(ANSWERING, ANSWERING) is NOT_YET:
                    raise Disconnected("it does not answer in time")
                return item
            except Empty:
                if monotonic() + pause >= until:
                    raise
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def is_kept_from_us(self) -> bool:
        """True when there are items, though `get` found none."""
        return self._connection is None and self._target.is_kept_from_us()

    def is_being_written(self) -> bool:
        """True while a thread of this process still has to write what was put into the queue here."""
        return self._connection is None and self._target.is_being_written()

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()


def _flush_clients_of(queue: Target, deadline: float) -> None:
    """Have this process's clients put what they have into ``queue``."""
    for delivery in shutdown.own_deliveries():
        if isinstance(delivery, Sender) and delivery.uses(queue):
            delivery.flush(max(0.0, deadline - monotonic()))


def _is_event(item: Any) -> bool:
    """True for what a client puts. Anybody may put something else, and it must not spoil the batch of others."""
    return isinstance(item, bytes) and protocol.is_event(item)


def _check_options(kind: str, options: dict[str, Any], known: tuple[str, ...]) -> None:
    for name in options:
        if name not in known:
            raise TypeError(f"{kind} takes no option {name!r}; those that concern sending are: {', '.join(known)}")


def _checked(address: Any) -> Address | None:
    """``address`` as `multiprocessing.connection` takes it; `LetterError` for what is none."""
    if address is None:
        return None
    if isinstance(address, tuple):
        if len(address) == 2 and isinstance(address[0], str) and isinstance(address[1], int):
            return address
    elif isinstance(address, (str, os.PathLike)):
        path = os.fspath(address)
        if isinstance(path, str) and path and "\0" not in path:
            return path if path.startswith("\\\\") else os.path.abspath(path)
    raise LetterError(f"address must be a path, (host, port) or a Windows pipe, not {address!r}")
