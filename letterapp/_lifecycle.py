"""Ends: how this process will go, and who must be told.

Lives here: the exit paths of plain processes, multiprocessing, Celery and signals, and what uWSGI needs knowing.
Never here: sending; a delivery is asked to end, how it does that is its own affair.

Nothing is imported for this: a server is recognised by the modules that it has loaded itself.
"""

from __future__ import annotations

import _thread
import atexit
import os
import sys
import time
from _weakref import ref  # of which `weakref` is the rest: half a millisecond of `import letterapp`

from . import _forks
from .errors import LetterError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Iterable

    from ._delivery import Delivery

# The deliveries of this process and of those that it descends from. Weak: a client that is thrown away stays only as
# long as its thread has something to send. No lock: each use is one operation on a set.
_deliveries: set[ref[Delivery]] = set()
_kept: set[Delivery] = set()  # those that wait without a thread, which nothing else may keep alive

# Process ids rather than flags, because a flag that a parent has set is wrong in its children.
_armed_pid = 0
_ended_pid = 0
_past_multiprocessing_pid = 0


def watch(delivery: Delivery) -> None:
    """See to it that ``delivery`` is told of this process's forks and of its end. Cheap; starts nothing."""
    _deliveries.add(ref(delivery, _deliveries.discard))
    _forks.watch()
    _arm()
    if _ended_pid == delivery.owner.pid:  # made by an exit callback that ran after ours
        delivery.end(time.monotonic() + delivery.exit_timeout, final=True)


def unwatch(delivery: Delivery) -> None:
    """Tell ``delivery`` nothing of the end: whoever made it does."""
    _deliveries.discard(ref(delivery))


def keep(delivery: Delivery) -> None:
    """Hold on to a delivery that has no thread, until the process ends."""
    _kept.add(delivery)


def release(delivery: Delivery) -> None:
    """Let go of a delivery that is its parent's."""
    _kept.discard(delivery)


def own() -> list[Delivery]:
    """The deliveries of this process that are in use."""
    pid = os.getpid()
    alive = [known() for known in list(_deliveries)]
    return [delivery for delivery in alive if delivery is not None and delivery.owner.pid == pid]


# Ends.


def _arm() -> None:
    """Register with whatever will announce this process's end. Once per process."""
    global _armed_pid
    pid = os.getpid()
    if _armed_pid == pid:
        return
    _armed_pid = pid
    atexit.register(end_of_process)
    _arm_multiprocessing()
    signals = sys.modules.get("celery.signals")
    if signals is not None:
        # A prefork child of Celery leaves by `os._exit`, past `atexit` and every `Finalize`.
        signals.worker_process_shutdown.connect(end_of_process, weak=False, dispatch_uid="letterapp")


def _arm_multiprocessing() -> None:
    util = sys.modules.get("multiprocessing.util")
    process = sys.modules.get("multiprocessing.process")
    if util is None or process is None:
        return
    # A spawned child that still unpickles its job has no parent yet, and from 3.11 on keeps what it registers then.
    if process.parent_process() is not None or getattr(process.current_process(), "_inheriting", False):
        # A multiprocessing child: `atexit` does not run there before 3.13.
        util.Finalize(None, end_of_process, exitpriority=100)
    # Once more when its own children have been terminated and joined: it delivers what they left.
    util.Finalize(None, _end_after_multiprocessing, exitpriority=-100)
    # What a spawned child registered while it imported the main module is cleared before its job begins
    # (`BaseProcess._bootstrap`, up to 3.10); this is called right after that.
    util.register_after_fork(_arm_again, _arm_again)


def _arm_again(_: object) -> None:
    global _armed_pid
    _armed_pid = 0
    _arm()


def _end_after_multiprocessing() -> None:
    global _past_multiprocessing_pid
    _past_multiprocessing_pid = os.getpid()
    end_of_process()


def is_past_multiprocessing() -> bool:
    """True when multiprocessing has ended its helper threads: what a queue of its own takes now is never written."""
    return _past_multiprocessing_pid == os.getpid()


def end_of_process(*_: object, **__: object) -> None:
    """Settle what this process's clients still hold, all within one budget. Called by whatever announces the end."""
    global _ended_pid
    _ended_pid = os.getpid()
    started = time.monotonic()
    while True:
        try:
            _end(started, final=True)
            return
        except SystemExit:
            pass  # a handler of a second signal, or a greenlet of gunicorn's, wants what is going on already


def _end(started: float, final: bool) -> None:
    mine = sorted(own(), key=lambda delivery: delivery.ends_last)
    for delivery in mine:
        delivery.hasten()
    for delivery in mine:
        delivery.end(started + delivery.exit_timeout, final)


# Signals, where the application asked for it.

_previous: dict[int, Any] = {}  # what handled each signal before


def end_on(signals: Iterable[int]) -> None:
    """Have ``signals`` send what waits before they do what they did. Main thread only; `LetterError` elsewhere."""
    import signal

    for number in signals:
        handler = signal.getsignal(number)
        if handler is _on_signal:
            continue
        if handler is None:
            raise LetterError(f"exit_signals: {signal.Signals(number).name} is handled outside of Python here")
        previous, _previous[number] = _previous.get(number), handler  # before the first signal can come
        try:
            signal.signal(number, _on_signal)
        except ValueError:
            _previous[number] = previous
            raise LetterError("exit_signals: only the main thread can install signal handlers") from None


def _on_signal(number: int, frame: Any) -> None:
    pid = os.getpid()
    if any(delivery.defers(lambda: os.kill(pid, number)) for delivery in own()):
        return  # it came in the middle of a `put`, and comes again after it
    monkey: Any = sys.modules.get("gevent.monkey")
    if monkey is not None and monkey.is_module_patched("threading"):
        # The handler runs in whatever greenlet is current, the hub or the sender's own, and neither may wait here.
        sys.modules["gevent"].spawn(_end_by_signal, number, frame)
    else:
        _end_by_signal(number, frame)


def _end_by_signal(number: int, frame: Any) -> None:
    import signal

    previous = _previous[number]
    _end(time.monotonic(), final=previous is signal.SIG_DFL)
    if callable(previous):
        previous(number, frame)
    elif previous == signal.SIG_DFL:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


# uWSGI, which forks without Python's hooks and may not let threads run.


def start_thread(run: Callable[..., object], *arguments: object) -> bool:
    """Start a daemon thread; False where it could not be, or would never get a turn.

    Not `threading.Thread`: its `start` waits for the new thread inside locks, where a signal handler or a `__del__`
    that calls `track` would stand still.
    """
    uwsgi = _uwsgi()
    if uwsgi is not None and not _threads_run(uwsgi):
        return False
    # uWSGI's handlers are C's own, and end the process in whichever thread the system picks: for ours, a second signal
    # (Ctrl-C reaches a worker twice) would cut short the end that the first one began. The mask is inherited.
    block = uwsgi is not None
    if block:
        import _signal  # type: ignore[import-not-found]  # what `signal` wraps, and always there

        before = _signal.pthread_sigmask(_signal.SIG_BLOCK, _signal.valid_signals())
    try:
        _thread.start_new_thread(run, arguments)
    except RuntimeError:
        return False  # the interpreter is shutting down (3.12), or the system has no thread left
    finally:
        if block:
            _signal.pthread_sigmask(_signal.SIG_SETMASK, before)
    return True


def _threads_run(uwsgi: Any) -> bool:
    if is_before_workers():
        return False  # once the import is over, the master's loop holds the GIL for ever
    return _version(uwsgi) >= (2, 0, 27) or "enable-threads" in uwsgi.opt or "threads" in uwsgi.opt


def is_before_workers() -> bool:
    """True while uWSGI imports the application before its workers exist: the last chance to send from this process."""
    uwsgi = _uwsgi()
    return uwsgi is not None and uwsgi.worker_id() == 0 and not uwsgi.mule_id()


def _uwsgi() -> Any:
    module: Any = sys.modules.get("uwsgi")
    return module if hasattr(module, "worker_id") and hasattr(module, "opt") else None


def _version(uwsgi: Any) -> tuple[int, ...]:
    text = uwsgi.version.decode("ascii", "replace")
    numbers = text.split("-")[0].split(".")
    return tuple(int(number) for number in numbers if number.isdigit())
