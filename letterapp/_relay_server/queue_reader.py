"""The thread of a `letterapp.relay.QueueListener`: it takes items out of a queue and passes their events to a sender.

Responsible for: reading the queue, checking what is in it, waiting for room in the sender, the end of the process.
Not responsible for: the public class (`letterapp.relay`), connecting to a manager (`manager_connection`), sending
(`sender`).
"""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from multiprocessing import AuthenticationError
from multiprocessing import connection as mp_connection
from multiprocessing.queues import Queue
from queue import Empty, Full

from .._delivery import shutdown
from .._delivery.sender import Sender
from .._queues.manager_connection import ANSWERING, NOT_YET, Disconnected, ManagerConnection
from .._queues.targets import ForeignQueue, ProxyQueue
from .._relay import protocol
from .._reporter import Reporter
from .._runtime import servers
from .._runtime.atfork import WORK, block_forks, close_if_unchanged, register_inherited, this_process
from .._runtime.clock import FOREVER, monotonic
from .._runtime.condition import Condition
from .._runtime.signal_errors import reraise_signal_error
from .._text import said as text_of
from .._text import shown
from ..errors import LetterError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

    from .._config import Settings
    from .._queues.targets import Target

_SENTINEL = "letterapp: a listener stops"  # an item that marks the end of the queue when a listener stops
# Seconds between two requests for an item from a manager's queue; the pause doubles while the queue is empty.
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.01, 0.1
_GET = 1.0  # maximum time of one wait for an item, in seconds
_FIRST_WAIT, _LONGEST_WAIT = 1.0, 30.0  # seconds until a queue that failed is tried again, doubled each time


class QueueReader:
    """Reads a queue and sends what it reads, in one process. Any thread may call; `stop` waits for the thread.

    `shutdown` notifies it of the end of the process, like a `Delivery`.
    """

    def __init__(self, source: ProxyQueue | ForeignQueue, settings: Settings) -> None:
        self._source: Any = source
        self._settings = settings
        self.owner = this_process()
        self._report = Reporter(settings.on_error)
        self._sender: Sender | None = None
        self._stopped = threading.Event()
        self._is_draining = False  # it has to end when what is in the queue now has been read
        self._has_marked_end = False  # a sentinel is behind that
        self._is_last = False  # all that was in the queue by then has been read
        self._is_over = False  # the time of `stop` or of the process's end is over: the rest stays in the queue
        self._trouble = ""

    def start(self) -> None:
        """Start reading. Returns at once; a second call does nothing. Raises `LetterError` after `stop`."""
        if self._stopped.is_set():
            raise LetterError("this listener has been stopped; create another one")
        if self._sender is not None and self.owner.pid == os.getpid():
            return
        self.owner = this_process()
        self._room = Condition()
        self._sender = Sender(self._settings, report=self._report, progress=self._room)
        shutdown.register(self)  # type: ignore[arg-type]  # the end of the process stops it
        self._sender.start_recovery()
        # Now, because its descriptor must be copied before the end of the process.
        source: _Source | None = None
        if isinstance(self._source, ForeignQueue):
            try:
                source = _Source(self._source)
            except OSError as problem:
                reraise_signal_error(problem)  # otherwise the queue is closed, which the thread reports
        if not servers.start_thread(lambda: self._run(source)):
            self._sender = None
            raise LetterError("a listener needs a thread, and none can run in this process")

    def stop(self, timeout: float) -> bool:
        """See `QueueListener.stop`."""
        if self._sender is None or self.owner.pid != os.getpid():
            return True
        deadline = monotonic() + timeout
        flush_clients_of(self._source, deadline)
        drained = self._drain(deadline)
        self._is_over = True
        return self._sender.close(max(0.0, deadline - monotonic())) and drained and not self._trouble

    def stats(self) -> dict[str, Any]:
        """The sender's counters; empty before `start`."""
        return self._sender.stats() if self._sender is not None else {}

    # The end of the process, as `shutdown` announces it: after the clients, whose last batches arrive in the queue.

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
            # They are joined next, and continue to put until then. This is called again later, when a manager that
            # this process has started is gone.
            return
        self._drain(deadline)
        self._is_over = True
        self._sender.end(deadline, final)

    def defer_signal(self, act: Callable[[], object]) -> bool:
        return False

    def _drain(self, deadline: float) -> bool:
        """Make the thread read what is in the queue, and end; False if it has not ended by ``deadline``."""
        if not self._is_draining:
            self._is_draining = True
            # Behind all that this process has put: a `multiprocessing.Queue` writes on a separate thread, so "empty"
            # proves nothing yet.
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
            return False  # full, or gone: what can be read at once is all there is
        return True

    # The thread.

    def _run(self, channel: _Source | None) -> None:
        wait = _FIRST_WAIT
        is_kept = False
        try:
            while self.owner.pid == os.getpid() and not self._is_over:
                # Read before `get`: a `get` that began before the sentinel was put, and found nothing, proves nothing
                # about what has arrived since.
                has_marked_end = self._has_marked_end
                try:
                    channel = channel or _Source(self._source)
                    item = channel.get(0.0 if self._is_last else _GET)
                except Empty:
                    was_kept, is_kept = is_kept, channel is not None and channel.is_kept_from_us()
                    if is_kept and not was_kept:
                        continue  # no proof yet: the items may have come when `get` had just found none
                    if is_kept:
                        self._report_trouble(
                            "the queue has items, but another reader, perhaps a killed one, holds its lock"
                        )
                        has_marked_end = self._is_draining
                    if has_marked_end and not (channel is not None and channel.is_being_written()):
                        return
                    continue
                except Exception as problem:
                    reraise_signal_error(problem)
                    if channel is not None:
                        channel.close()
                        channel = None
                    self._report_trouble(f"the queue cannot be read: {text_of(problem)}")
                    if self._is_draining:
                        return
                    self._pause(wait)
                    wait = min(2 * wait, _LONGEST_WAIT)
                    continue
                wait, is_kept, self._trouble = _FIRST_WAIT, False, ""
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
        # Anybody may put anything, so no method of an item's class is called: one that raises would end the thread.
        events = list(item) if type(item) in (list, tuple) else [item]
        for number, event in enumerate(events):
            if type(event) is str and event == _SENTINEL:
                self._is_last = self._is_draining  # or it is another listener's, which ends without it
            elif not _is_event(event):
                said = f"the queue contains an item that is not an event of a client: {shown(event)}"
                sender.refuse("invalid", LetterError(said, cause="invalid", lost=1))
            elif len(event) > largest:
                said = f"an event of {len(event):,} bytes is larger than the listener accepts ({largest:,})"
                sender.refuse("overflow", LetterError(said, cause="overflow", events=[event]))
            # If the sender has no room, the event waits here, and what is behind it in the queue.
            elif self._wait_for_room(sender, len(event)):
                sender.put(event)
            else:
                self._give_up(sender, [each for each in events[number:] if _is_event(each)])
                return

    def _wait_for_room(self, sender: Sender, size: int) -> bool:
        def must_wait() -> bool:
            return not (self._is_over or sender.has_room(1, size))

        self._room.wait_while(must_wait, FOREVER, monotonic, _GET)
        return not self._is_over

    def _give_up(self, sender: Sender, events: list[bytes]) -> None:
        """Report the rest of an item, for which there was no time left. Later items are still in the queue."""
        for _ in events:
            sender.refuse("closed")
        if events:
            why = "were read from the queue and not sent before the listener stopped"
            self._report(LetterError(f"{len(events):,} events {why}", cause="closed", events=events))

    def _report_trouble(self, trouble: str) -> None:
        if trouble != self._trouble:
            self._trouble = trouble
            self._report(LetterError(trouble, cause="degraded"))


class _Source:
    """Where the thread gets items from."""

    def __init__(self, queue: ProxyQueue | ForeignQueue) -> None:
        self._connection: ManagerConnection | None = None
        self._pipe: _Pipe | None = None
        self._is_over = False  # nothing can come any more
        if isinstance(queue, ProxyQueue):
            self._connection = queue.connect(ANSWERING)
        else:
            self._target = queue
            self._queue = queue.queue
            if isinstance(queue.queue, Queue) and os.name == "posix":  # on Windows the pipe has no descriptor
                pipe: _Pipe = block_forks(WORK, _Pipe, queue.queue)
                self._pipe, self._queue = pipe, pipe.queue

    def get(self, wait: float) -> Any:
        """The next item; `queue.Empty` after ``wait`` seconds without one."""
        if self._connection is None:
            try:
                return self._queue.get(wait > 0, wait)
            except EOFError:
                if self._pipe is None:
                    raise
                self._is_over = True  # every process that could put something has ended, or has closed the queue
                time.sleep(min(wait, _LONGEST_PAUSE))
                raise Empty from None
        # Polled, because a manager that waits for an item on behalf of a listener would lose the item if the listener
        # is killed meanwhile. A request that was sent is never abandoned, since its response is an item.
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
        """True if there are items, though `get` found none, because another reader holds the queue's lock.

        A process that is killed in `get` never releases the lock of a ``multiprocessing.Queue``.
        """
        try:
            return (
                self._connection is None and self._target.has_feeder and not self._is_over and not self._queue.empty()
            )
        except OSError:
            return False

    def is_being_written(self) -> bool:
        """True while a thread of this process still has to write what was put into the queue here."""
        return self._connection is None and self._target.is_being_written()

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
        if self._pipe is not None:
            self._pipe.close_inherited()


class _Pipe:
    """The reading end of a ``multiprocessing.Queue``, with a descriptor that belongs to this object.

    The queue's own one is closed at the end of the process, before the children are joined that still put something:
    since Python 3.9 the queue's feeder thread does that (`Queue._feed` in CPython's ``multiprocessing/queues.py``).
    """

    def __init__(self, queue: Any) -> None:
        self._reader = mp_connection.Connection(os.dup(queue._reader.fileno()), writable=False)
        self._descriptor = self._reader.fileno()
        self._inode = os.fstat(self._descriptor).st_ino
        self.queue = object.__new__(type(queue))  # for `get` and `empty`, with the same locks
        self.queue.__dict__.update(queue.__dict__)
        self.queue._reader = self._reader
        self.queue._poll, self.queue._recv_bytes = self._reader.poll, self._reader.recv_bytes
        register_inherited(self)

    def close_inherited(self) -> None:
        if not self._reader.closed:
            self._reader._handle = None  # type: ignore[attr-defined]  # so that the object does not close it again
            close_if_unchanged(self._descriptor, self._inode)


def flush_clients_of(queue: Target, deadline: float) -> None:
    """Make this process's clients put what they have into ``queue``."""
    for delivery in shutdown.own_deliveries():
        if isinstance(delivery, Sender) and delivery.uses(queue):
            delivery.flush(max(0.0, deadline - monotonic()))


def _is_event(item: Any) -> bool:
    """True for an encoded event. Any process may put something else, which must not spoil a batch of other events."""
    return type(item) is bytes and protocol.is_event(item)
