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

import os
from enum import Enum
from multiprocessing.managers import BaseManager

from ._client import settings_of
from ._config import DEFAULT_BASE_URL, FixedOptions, seconds
from ._queues.targets import ManagerQueue, adapt
from ._relay import protocol
from ._relay_server.manager_program import batches_of, start_process
from ._relay_server.queue_reader import QueueReader, flush_clients_of
from ._runtime.clock import monotonic
from ._runtime.lazy_module import LazyModule
from ._text import SecretBytes, concealed, short
from .errors import LetterError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import types
    import typing
    from typing import Any

    from ._queues.manager_connection import Address
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
            raise LetterError("authkey must be bytes, and not empty")
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
            raise LetterError("connect() needs the server's address and authkey: give both to the SenderManager")
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
            raise LetterError(
                "shutdown() is for a manager that was started; this one is connected to a server that SIGTERM stops"
            )
        if self._stage != Stage.SERVING or self._starter != os.getpid():
            return
        queue, process = self._queue_of(), self._process
        deadline = monotonic() + self._settings.exit_timeout
        flush_clients_of(queue, deadline)
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
        raise LetterError("a SenderManager cannot be pickled: pass its .queue to other processes")

    def __repr__(self) -> str:
        known = self.__dict__  # empty, where an option was wrong: crash reporters look at that too
        if "_stage" not in known:
            return "<SenderManager, not initialised>"
        return f"<SenderManager {self._stage.value} at {self._address!r}>"

    def _must_be_new(self) -> None:
        if self._stage != Stage.NEW:
            raise LetterError("this manager has already been started or connected; create another one")

    def _serve_at(self, address: Address) -> None:
        self._address = address
        settings = self._settings
        self._queue = ManagerQueue(
            address, self._key, settings.api_key, settings.base_url, protocol.proof(settings.api_key)
        )
        self._stage = Stage.SERVING

    def _queue_of(self) -> ManagerQueue:
        if self._queue is None:
            raise LetterError("the manager has no queue yet: call start() or connect() first")
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
            raise LetterError("a SenderManager's queue needs no listener: the manager's process sends the events")
        if not hasattr(queue, "get"):
            raise LetterError(f"queue must be an object with a get method, not {short(queue)}")
        source: Any = adapt(queue)
        self._reader = QueueReader(source, settings_of(api_key=api_key, base_url=base_url, **options))

    def start(self) -> None:
        """Start taking items out of the queue. Returns at once; a second call does nothing. Raises after `stop`."""
        self._reader.start()

    def stop(self, timeout: typing.Optional[float] = None) -> bool:
        """Send what this process's clients have, what is in the queue, what was taken out; True when all was settled.

        Stop the clients of other processes first: what they put later stays in the queue. Blocks for ``timeout``
        seconds at most, `exit_timeout` if None. What is in the queue then stays there; what was
        taken out and is not delivered is reported to `on_error`.
        """
        timeout = self._reader.exit_timeout if timeout is None else seconds("timeout", timeout)
        return self._reader.stop(timeout)

    def stats(self) -> typing.Dict[str, typing.Any]:
        """The counters of its sender, as `Letter.stats` has them."""
        return self._reader.stats()

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


def _check_options(kind: str, options: dict[str, Any], known: tuple[str, ...]) -> None:
    for name in options:
        if name not in known:
            raise TypeError(f"{kind} has no option {name!r}; its options are: {', '.join(known)}")


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
