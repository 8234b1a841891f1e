"""One sender process for all processes of an application, reached through a `multiprocessing` queue.

    from letterapp import Letter
    from letterapp.relay import SenderManager

    if __name__ == "__main__":
        with SenderManager("your-key") as manager:
            letter = Letter(relay=manager.queue)  # pass it to Process, Pool or an executor, or create it before forks
            letter.track("user_42", "Order Completed", {"amount": 99.5})

`SenderManager` is a manager whose server process sends the events; `QueueListener` sends what arrives in a queue that
the application already has. The relay over a Unix socket, ``Letter(relay=True)``, does not need this module.
docs/relay.md compares the three.

Responsible for: the public classes. Not responsible for: passing batches to a queue (`handover`), the manager's server
(`manager_server`) and its process (`manager_program`), the listener's thread (`queue_reader`).
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

# Those options of `Letter` that the sender process uses. The others apply in each client's process.
SENDING = (
    *("flush_at", "flush_interval", "max_retries", "timeout", "max_queue_bytes", "max_queue_events", "overflow"),
    *("max_batch_bytes", "exit_timeout", "spool", "spool_max_bytes"),
)
LISTENING = (
    *("flush_at", "flush_interval", "max_retries", "timeout", "on_error", "max_queue_bytes", "max_queue_events"),
    *("max_batch_bytes", "exit_timeout", "ssl_context", "spool", "spool_sync", "spool_max_bytes"),
)
LEAVING = 5.0  # seconds that `shutdown` waits for the end of the server process, in addition to `exit_timeout`


class Stage(Enum):
    """The life of a `SenderManager`: NEW -> SERVING by `start` or `connect`; SERVING -> SHUT_DOWN by `shutdown`."""

    NEW = "not started"
    SERVING = "serving"
    SHUT_DOWN = "shut down"


class SenderManager(FixedOptions, BaseManager):
    """A manager whose server process sends the events of all clients that have its ``queue``.

    The server process is a detached daemon, so daemonic workers may start it, and no ``__main__`` guard is needed.
    (Where there is no `os.fork`, it is a spawned child process, and the guard is needed.) It ignores SIGINT and SIGTERM
    while the process that started it, or one forked from that, is alive. Then it sends what it has and ends.

    A manager can be started or connected in any process. Pass its ``queue`` to other processes, not the manager: the
    queue can be pickled and is safe across forks, and a manager is for one process and one thread at a time.

    Args:
        api_key: The API key. None reads the environment variable ``LETTER_API_KEY``.
        base_url: The URL of the API. Default: the environment variable ``LETTER_BASE_URL``, else letter.app.
        address: Where the server listens: None for a private socket, the path of a Unix socket, ``(host, port)`` for
            TCP (in trusted networks only: whoever has the authkey can run code in the server), or a Windows pipe.
        authkey: The shared secret, as bytes. None generates a random one.
        options: Those options of `Letter` that concern sending: flush_at, flush_interval, max_retries, timeout,
            max_queue_bytes, max_queue_events, overflow, max_batch_bytes, exit_timeout, spool, spool_max_bytes. With
            ``overflow="block"`` a batch waits for room for up to the client's `timeout`; otherwise a full queue
            refuses the batch, and the client's process sends it.

    Raises:
        LetterError: An option is missing or invalid.
        TypeError: An option is unknown.
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
        """Start the server process, and return when it is ready. Blocks for a fraction of a second, 20 s at most.

        Raises:
            LetterError: It cannot be started, another process listens at the address, or this manager has already been
                started or connected.
        """
        self._must_be_new()
        self._process, address = start_process(self._options(), self._address, self._key)
        self._starter = os.getpid()
        self._serve_at(address)
        self._queue_of().process = self._process

    def connect(self) -> None:
        """Use a server that is run separately (``python -m letterapp relay --manager``). Blocks for 5 s at most.

        Raises:
            LetterError: The server cannot be reached, or has another authkey, API key or `base_url`; no address or
                authkey was given; or this manager has already been started or connected.
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
        """The queue for ``Letter(relay=...)``. It can be pickled, and contains the authkey and the API key.

        Any thread, and any child of this process, may use it. Does not block.

        Raises:
            LetterError: The manager has not been started or connected.
        """
        return self._queue_of()

    def status(self) -> typing.Dict[str, typing.Any]:
        """The state of the server process: pid, connections, accepted, delivered, lost by cause, waiting and others.

        Blocks for 5 s at most.

        Raises:
            LetterError: The server does not answer, or the manager has not been started or connected.
        """
        status: dict[str, Any] = self._queue_of().ask("status")
        return status

    def shutdown(self) -> None:  # type: ignore[override]
        """Flush this process's clients into the queue; then the server process sends what it has, and ends.

        Blocks for at most `exit_timeout` for the clients, and `exit_timeout` plus 5 s for the server process. What
        cannot be sent by then is sent by the processes that tracked it. Does nothing in a process that did not start
        the manager, and if called again.

        Raises:
            LetterError: This manager was connected, not started. SIGTERM stops such a server.
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
        """The server, to make this process the sender process: ``get_server().serve_forever()``. Does not block itself.

        It sends events while it serves. It ends with the process, which sends the remaining events at its end.

        Raises:
            LetterError: This manager has already been started or connected.
            OSError: The address cannot be used.
        """
        from ._relay_server.manager_server import BatchServer

        self._must_be_new()
        batches = batches_of(self._options())
        batches.begin()
        return BatchServer(batches, self._address, self._key)

    def join(self, timeout: typing.Optional[float] = None) -> None:
        """Wait until the server process that `start` started has ended.

        Blocks for at most ``timeout`` seconds; None is no limit. Returns at once in a process that did not start it.
        """
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
        known = self.__dict__  # empty if an option was invalid: crash reporters show such an object too
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
    """Sends what clients put into a queue, in one process, like `logging.handlers.QueueListener` for log records.

        queue = multiprocessing.Queue(1000)
        with QueueListener(queue, "your-key"):
            letter = Letter("your-key", relay=queue)

    A thread reads the queue and passes the events to an ordinary sender, with its batches, retries and bounds. It reads
    no more than the sender has room for: other events wait in the queue and, when that is full, in the clients. Events
    that were read and not sent are lost if this process is killed, unless there is a ``spool``. Any thread may call the
    methods. It belongs to the process that started it: in a forked child `stop` does nothing, and `start` starts
    another one.

    Args:
        queue: An object with a ``get`` method: ``multiprocessing.Queue()`` or ``multiprocessing.Manager().Queue()``.
        api_key: The API key. None reads the environment variable ``LETTER_API_KEY``.
        base_url: The URL of the API. Default: the environment variable ``LETTER_BASE_URL``, else letter.app.
        options: Those options of `Letter` that concern sending: flush_at, flush_interval, max_retries, timeout,
            on_error, max_queue_bytes, max_queue_events, max_batch_bytes, exit_timeout, ssl_context, spool, spool_sync,
            spool_max_bytes.

    Raises:
        LetterError: An option is missing or invalid, or the queue has no ``get`` method.
        TypeError: An option is unknown.
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

    @property
    def exit_timeout(self) -> float:
        """Maximum time of one `stop`, or of the end of the process, in seconds."""
        return self._reader.exit_timeout

    def start(self) -> None:
        """Start reading the queue. Returns at once; a second call does nothing.

        Raises:
            LetterError: The listener has been stopped, or no thread can run in this process.
        """
        self._reader.start()

    def stop(self, timeout: typing.Optional[float] = None) -> bool:
        """Send the events of this process's clients and those in the queue, then end the thread.

        Stop the clients of other processes first: what they put into the queue later stays there. Blocks for at most
        ``timeout`` seconds; None is `exit_timeout`. What is in the queue after that stays there; what was read and not
        delivered is reported to `on_error`.

        Returns:
            True if all events were settled in time.

        Raises:
            LetterError: ``timeout`` is not a number of seconds.
        """
        timeout = self.exit_timeout if timeout is None else seconds("timeout", timeout)
        return self._reader.stop(timeout)

    def stats(self) -> typing.Dict[str, typing.Any]:
        """The counters of the listener's sender, like those of `Letter.stats`; empty before `start`. Does not block."""
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
    """``address`` as `multiprocessing.connection` accepts it. Raises `LetterError` if it is invalid."""
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
