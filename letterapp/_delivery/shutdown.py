"""The end of this process: detecting it, and notifying the deliveries.

Responsible for: the exit paths of plain processes, multiprocessing, Celery and Twisted, and `os._exit`.
Not responsible for: sending, which each delivery does in its `end`; `exit_signals`, which has its own module.

Nothing is imported for this: a framework is recognised by the modules that the application has imported.
"""

from __future__ import annotations

import atexit
import os
import sys
from _weakref import ref  # not `weakref`, which takes half a millisecond to import

from .._runtime import atfork
from .._runtime.clock import monotonic
from .._runtime.signal_errors import is_in_signal_handler, reraise_signal_error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, NoReturn

    from .base import Delivery

# The deliveries of this process and of its ancestors. Weak references: the delivery of a deleted client exists only as
# long as its thread has something to send. No lock is needed: each use is one atomic operation on a set.
_deliveries: set[ref[Delivery]] = set()
_kept: set[Delivery] = set()  # deliveries with waiting events and no thread, which nothing else may keep alive

# Process IDs instead of flags: a flag that was set in the parent would be wrong in its children.
_registered_pid = 0
_exiting_pid = 0
_past_multiprocessing_pid = 0
# Seconds that the exit handlers of this process have taken so far: they share one budget.
_exit_seconds_pid, _exit_seconds = 0, 0.0
_knows_forks = False  # multiprocessing calls us in its children; forked children inherit that


def register(delivery: Delivery) -> None:
    """Notify ``delivery`` of forks and of the end of this process from now on. Cheap; starts nothing."""
    _deliveries.add(ref(delivery, _deliveries.discard))
    atfork.install_hooks(_after_fork_in_parent)
    _register_exit_hooks()
    # It may be created by an exit handler that runs after ours, or when exit handlers already run and no new one is
    # called.
    if _exiting_pid == delivery.owner.pid or is_shutting_down():
        delivery.end(monotonic() + delivery.exit_timeout, final=True)


def unregister(delivery: Delivery) -> None:
    """Do not notify ``delivery`` of the end: the code that created it does that."""
    _deliveries.discard(ref(delivery))


def keep_alive(delivery: Delivery) -> None:
    """Keep a delivery without a thread alive until the process ends."""
    _kept.add(delivery)


def release(delivery: Delivery) -> None:
    """Undo `keep_alive`, for a delivery of the parent."""
    _kept.discard(delivery)


_RECOVERY_INTERVAL = 1.0  # minimum time between two searches in a process that forks, in seconds
_next_recovery = 0.0


def _after_fork_in_parent() -> None:
    """Send the events of killed children. A parent that never uses its client would not look for them otherwise."""
    global _next_recovery
    now = monotonic()
    if now >= _next_recovery and not is_shutting_down():
        _next_recovery = now + _RECOVERY_INTERVAL
        for delivery in own_deliveries():
            delivery.recover_from_children()


def own_deliveries() -> list[Delivery]:
    """The deliveries of this process that still exist."""
    pid = os.getpid()
    alive = [known() for known in list(_deliveries)]
    return [delivery for delivery in alive if delivery is not None and delivery.owner.pid == pid]


# Exit hooks.


def _register_exit_hooks() -> None:
    """Register with everything that announces the end of this process. Once per process."""
    global _registered_pid
    pid = os.getpid()
    if _registered_pid == pid:
        return
    _registered_pid = pid
    atexit.unregister(shut_down_process)  # the parent's, which a forked child inherits
    atexit.register(shut_down_process)
    _register_with_multiprocessing()
    signals = sys.modules.get("celery.signals")
    if signals is not None:
        # A prefork child of Celery ends by `os._exit`, which skips `atexit` and `Finalize`.
        signals.worker_process_shutdown.connect(shut_down_process, weak=False, dispatch_uid="letterapp")


def _register_with_multiprocessing() -> None:
    util = sys.modules.get("multiprocessing.util")
    process = sys.modules.get("multiprocessing.process")
    if util is None or process is None:
        return
    # A spawned child that is still unpickling its job has no parent process yet; since Python 3.11 it keeps what is
    # registered then.
    if process.parent_process() is not None or getattr(process.current_process(), "_inheriting", False):
        # A multiprocessing child: `atexit` does not run there before 3.13.
        util.Finalize(None, shut_down_process, exitpriority=100)
    # And again after its own children have been terminated and joined, to deliver what they have left.
    util.Finalize(None, _shut_down_after_multiprocessing, exitpriority=-100)
    # What a spawned child registers while it imports the main module is cleared before its job begins
    # (`BaseProcess._bootstrap`, up to Python 3.10). This hook is called right after that.
    global _knows_forks
    if not _knows_forks:
        _knows_forks = True
        util.register_after_fork(_register_exit_hooks_again, _register_exit_hooks_again)


def _register_exit_hooks_again(_: object) -> None:
    global _registered_pid
    _registered_pid = 0
    _register_exit_hooks()


def _shut_down_after_multiprocessing() -> None:
    global _past_multiprocessing_pid
    _past_multiprocessing_pid = os.getpid()
    shut_down_process()


def is_past_multiprocessing() -> bool:
    """True if multiprocessing has stopped its feeder threads: what is put into a queue now would never be written."""
    return _past_multiprocessing_pid == os.getpid()


def is_shutting_down() -> bool:
    """True while the interpreter runs exit handlers: one that is registered now would never be called."""
    threading = sys.modules.get("threading")
    if threading is None:
        return False
    return bool(getattr(threading, "_SHUTTING_DOWN", False)) or not threading.main_thread().is_alive()


TORN_DOWN = "the interpreter is shutting down, and nothing can be sent any more"


def is_finalizing() -> bool:
    """True while Python clears its modules, after all exit handlers: no thread can be started, nothing imported."""
    return sys.is_finalizing()


def shut_down_process(*_: object, **__: object) -> None:
    """Settle all events of this process's clients. Every exit hook calls it; they share one time budget."""
    _shut_down_within_budget(lambda delivery: True)


def _shut_down_within_budget(chosen: Callable[[Delivery], bool]) -> None:
    global _exiting_pid, _exit_seconds_pid, _exit_seconds
    pid = os.getpid()
    if _exit_seconds_pid != pid:
        _exit_seconds_pid, _exit_seconds = pid, 0.0
    _exiting_pid = pid
    began = monotonic()
    try:
        _shut_down_despite_signals(began - _exit_seconds, chosen)
    finally:
        _exit_seconds += monotonic() - began
        _restore_exit_status()


def _shut_down_despite_signals(started: float, chosen: Callable[[Delivery], bool]) -> None:
    while True:
        try:
            end_all(started, True, chosen)
            return
        except SystemExit:
            pass  # a second signal's handler, or a greenlet of gunicorn, asks for what is already happening
        except KeyboardInterrupt:
            end_all(float("-inf"), True, chosen)  # the user does not want to wait: report undelivered events
            raise


def _restore_exit_status() -> None:
    """Make a program that Ctrl-C has ended die of SIGINT, as Python does, so that a shell loop around it ends too.

    CPython has a flag for that (`unhandled_keyboard_interrupt` in ``Modules/main.c`` and ``Python/pythonrun.c``). Any
    `eval` resets it, and an import may call `eval`, as `namedtuple` does. An exception in `exec` sets it again.
    """
    kind = getattr(sys, "last_type", None)
    if isinstance(kind, type) and issubclass(kind, KeyboardInterrupt) and not hasattr(sys, "ps1"):
        try:
            exec("raise KeyboardInterrupt")
        except KeyboardInterrupt:
            pass


def end_all(started: float, final: bool, chosen: Callable[[Delivery], bool] = lambda delivery: True) -> None:
    """`Delivery.end` of this process's deliveries; each takes at most its `exit_timeout` from ``started`` on."""
    mine = sorted(filter(chosen, own_deliveries()), key=lambda delivery: delivery.ends_last)
    for delivery in reversed(mine):
        delivery.begin_shutdown()
    for delivery in mine:
        delivery.end(started + delivery.exit_timeout, final)


_twisted_pid = 0


def _register_with_twisted() -> None:
    """Register with Twisted's reactor, which replaces signal handlers and ends with a signal's default action."""
    global _twisted_pid
    reactor: Any = sys.modules.get("twisted.internet.reactor")
    if _twisted_pid != os.getpid() and hasattr(reactor, "addSystemEventTrigger"):
        _twisted_pid = os.getpid()
        try:
            reactor.addSystemEventTrigger("after", "shutdown", shut_down_process)
        except Exception as problem:
            reraise_signal_error(problem)  # otherwise it is an error of the reactor, and no reason for a call to fail


# `os._exit`, with which forked children end, usually in the code of a library.

_exit_of_os: Any = None  # the original `os._exit`


def on_first_event(wraps_exit: bool) -> None:
    """Install the remaining hooks. Called when a client starts its thread: at its first event, or after a pause."""
    if wraps_exit:
        _wrap_os_exit()
    _register_with_twisted()


def _wrap_os_exit() -> None:
    global _exit_of_os
    if _exit_of_os is None:
        _exit_of_os = os._exit
        os._exit = _exit_after_sending


def _exit_after_sending(status: int) -> NoReturn:
    """`os._exit`, after sending all events of this process within the rest of its exit budget."""
    try:
        if any(delivery.sends_on_os_exit for delivery in own_deliveries()) and not is_in_signal_handler():
            _shut_down_within_budget(lambda delivery: delivery.sends_on_os_exit)
    except BaseException:
        pass  # nothing must prevent the exit
    _exit_of_os(status)
    raise SystemExit(status)  # never reached
