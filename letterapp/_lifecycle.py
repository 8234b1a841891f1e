"""Ends: how this process will go, and who must be told.

Lives here: the exit paths of plain processes, multiprocessing, Celery and signals, and what uWSGI needs knowing.
Never here: sending; a delivery is asked to end, how it does that is its own affair.

Nothing is imported for this: a server is recognised by the modules that it has loaded itself.
"""

from __future__ import annotations

import atexit
import os
import sys
from _weakref import ref  # of which `weakref` is the rest: half a millisecond of `import letterapp`

from . import _forks, _greenlets, _threads
from ._clock import monotonic
from ._handlers import is_in_handler, pass_on
from .errors import LetterError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Iterable, NoReturn

    from ._delivery import Delivery

# The deliveries of this process and of those that it descends from. Weak: a client that is thrown away stays only as
# long as its thread has something to send. No lock: each use is one operation on a set.
_deliveries: set[ref[Delivery]] = set()
_kept: set[Delivery] = set()  # those that wait without a thread, which nothing else may keep alive

# Process ids rather than flags, because a flag that a parent has set is wrong in its children.
_armed_pid = 0
_ended_pid = 0
_past_multiprocessing_pid = 0
_spent_pid, _spent = 0, 0.0  # seconds that the ends of this process have taken so far: they share one budget
_knows_forks = False  # whether multiprocessing calls us in its children, which forked ones inherit


def watch(delivery: Delivery) -> None:
    """See to it that ``delivery`` is told of this process's forks and of its end. Cheap; starts nothing."""
    _deliveries.add(ref(delivery, _deliveries.discard))
    _forks.watch(_after_fork_in_parent)
    _arm()
    # Made by an exit callback that runs after ours, or where ours is never called, because callbacks run already.
    if _ended_pid == delivery.owner.pid or is_shutting_down():
        delivery.end(monotonic() + delivery.exit_timeout, final=True)


def unwatch(delivery: Delivery) -> None:
    """Tell ``delivery`` nothing of the end: whoever made it does."""
    _deliveries.discard(ref(delivery))


def keep(delivery: Delivery) -> None:
    """Hold on to a delivery that has no thread, until the process ends."""
    _kept.add(delivery)


def release(delivery: Delivery) -> None:
    """Let go of a delivery that is its parent's."""
    _kept.discard(delivery)


_LOOK = 1.0  # seconds between two looks of a process that forks
_next_look = 0.0


def _after_fork_in_parent() -> None:
    """Have what a killed child left be sent. Its parent may never use its client, and so would not look."""
    global _next_look
    now = monotonic()
    if now >= _next_look and not is_shutting_down():
        _next_look = now + _LOOK
        for delivery in own():
            delivery.look_after_children()


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
    atexit.unregister(end_of_process)  # a parent's, which a forked child inherits
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
    global _knows_forks
    if not _knows_forks:
        _knows_forks = True
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


def is_shutting_down() -> bool:
    """True when the interpreter runs its exit callbacks: one that is registered now is never called."""
    threading = sys.modules.get("threading")
    if threading is None:
        return False
    return bool(getattr(threading, "_SHUTTING_DOWN", False)) or not threading.main_thread().is_alive()


TORN_DOWN = "Python is removing its modules, and nothing can be sent any more"


def is_torn_down() -> bool:
    """True while Python removes its modules, after all exit callbacks: no other thread runs and nothing is imported."""
    return sys.is_finalizing()


def end_of_process(*_: object, **__: object) -> None:
    """Settle what this process's clients still hold. Called by whatever announces the end, all within one budget."""
    _end_within_budget(lambda delivery: True)


def _end_within_budget(chosen: Callable[[Delivery], bool]) -> None:
    global _ended_pid, _spent_pid, _spent
    pid = os.getpid()
    if _spent_pid != pid:
        _spent_pid, _spent = pid, 0.0
    _ended_pid = pid
    began = monotonic()
    try:
        _end_whatever_comes(began - _spent, chosen)
    finally:
        _spent += monotonic() - began
        _restore_exit_status()


def _end_whatever_comes(started: float, chosen: Callable[[Delivery], bool]) -> None:
    while True:
        try:
            _end(started, True, chosen)
            return
        except SystemExit:
            pass  # a handler of a second signal, or a greenlet of gunicorn's, wants what is going on already
        except KeyboardInterrupt:
            _end(float("-inf"), True, chosen)  # who is in a hurry is told at once what is not delivered
            raise


def _restore_exit_status() -> None:
    """Have a program that a Ctrl-C ended die of SIGINT, as Python does, so that the shell's loop around it ends too.

    CPython keeps a mark for that, which any `eval` resets, as an import of ours may do by `namedtuple`; code that is
    run by `exec` and raises sets it again (`Modules/main.c`, `Python/pythonrun.c`: `unhandled_keyboard_interrupt`).
    """
    kind = getattr(sys, "last_type", None)
    if isinstance(kind, type) and issubclass(kind, KeyboardInterrupt) and not hasattr(sys, "ps1"):
        try:
            exec("raise KeyboardInterrupt")
        except KeyboardInterrupt:
            pass


def _end(started: float, final: bool, chosen: Callable[[Delivery], bool] = lambda delivery: True) -> None:
    mine = sorted(filter(chosen, own()), key=lambda delivery: delivery.ends_last)
    for delivery in mine:
        delivery.hasten()
    for delivery in mine:
        delivery.end(started + delivery.exit_timeout, final)


# `os._exit`, by which forked children leave, mostly in somebody else's code.

_exit_of_os: Any = None  # what `os._exit` was before


_twisted_pid = 0


def _arm_twisted() -> None:
    """Have Twisted tell of its reactor's end, which replaces signal handlers and is a signal's default action."""
    global _twisted_pid
    reactor: Any = sys.modules.get("twisted.internet.reactor")
    if _twisted_pid != os.getpid() and hasattr(reactor, "addSystemEventTrigger"):
        _twisted_pid = os.getpid()
        try:
            reactor.addSystemEventTrigger("after", "shutdown", end_of_process)
        except Exception as problem:
            pass_on(problem)  # else it is the reactor's, and no reason for a call to fail


def watch_first_use(signals: Iterable[int], wraps_exit: bool) -> None:
    """A client of this process has its first event, or its first for a while."""
    if wraps_exit:
        _wrap_os_exit()
    _arm_twisted()
    if _not_installed:  # and never what a server has replaced since: that is its own affair
        end_on([number for number in signals if number in _not_installed])


def _wrap_os_exit() -> None:
    global _exit_of_os
    if _exit_of_os is None:
        _exit_of_os = os._exit
        os._exit = _exit_after_sending


def _exit_after_sending(status: int) -> NoReturn:
    """`os._exit`, after what waits in this process has been sent: within what is left of the budget of its end."""
    try:
        if any(delivery.sends_on_os_exit for delivery in own()) and not is_in_handler():
            _end_within_budget(lambda delivery: delivery.sends_on_os_exit)
    except BaseException:
        pass  # nothing keeps it from exiting
    _exit_of_os(status)
    raise SystemExit(status)  # never comes to it


# Signals, where the application asked for it.

_previous: dict[int, Any] = {}  # what handled each signal before


_not_installed: set[int] = set()  # because no main thread was there to do it
_reported: set[str] = set()  # troubles with them, each of which is told once


def end_on(signals: Iterable[int], report: Callable[[LetterError], object] | None = None) -> None:
    """Have ``signals`` send what waits before they do what they did. Called again, it installs what is missing.

    Only the main thread can do that; elsewhere, and where a signal is another library's, it is reported, once, if there
    is a ``report``: an option of a client must not keep an application from starting.
    """
    import signal

    for number in signals:
        handler = signal.getsignal(number)
        if handler is _on_signal:
            continue
        name = signal.Signals(number).name
        if handler is None:
            report_once(report, f"exit_signals: {name} is handled outside of Python here, and left alone")
            continue
        previous, _previous[number] = _previous.get(number), handler  # before the first signal can come
        try:
            signal.signal(number, _on_signal)
            _not_installed.discard(number)
        except ValueError:
            _not_installed.add(number)
            _previous[number] = previous
            report_once(
                report,
                "exit_signals: only the main thread can install signal handlers; they are installed when the main "
                "thread has an event",
            )


def report_once(report: Callable[[LetterError], object] | None, trouble: str) -> None:
    if report is not None and trouble not in _reported:
        _reported.add(trouble)
        report(LetterError(trouble, cause="degraded"))


def _on_signal(number: int, frame: Any) -> None:
    pid = os.getpid()
    if any(delivery.defers(lambda: os.kill(pid, number)) for delivery in own()):
        return  # it came in the middle of a `put`, and comes again after it
    if not _greenlets.spawn(_end_by_signal, number, frame):
        _end_by_signal(number, frame)


def _end_by_signal(number: int, frame: Any) -> None:
    import signal

    previous = _previous[number]
    _end(monotonic(), final=previous is signal.SIG_DFL)
    if callable(previous):
        _watch_raising()
        previous(number, frame)
    elif previous == signal.SIG_DFL:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        # Still here: the kernel ignores the default action for the first process of a container.
        signal.signal(number, _on_signal)
        for delivery in own():
            delivery.go_on()


_raise_of_signal: Any = None  # what `signal.raise_signal` was before


def _watch_raising() -> None:
    """Have the end noticed that uvicorn makes of a signal which has come: its default action, restored and raised.

    Until then it answers what is under way, in a loop where no call waits until its event is settled.
    """
    global _raise_of_signal
    import signal

    if _raise_of_signal is None:
        _raise_of_signal = signal.raise_signal
        signal.raise_signal = _raise_after_sending


def _raise_after_sending(number: int) -> None:
    """`signal.raise_signal`, after what waits has been sent, where it ends the process by one of `exit_signals`."""
    import signal

    ends = number in _previous and signal.getsignal(number) is signal.SIG_DFL
    if ends:
        _end(monotonic(), final=True)
    _raise_of_signal(number)
    if ends:  # and has not: the kernel ignores the default action for the first process of a container
        for delivery in own():
            delivery.go_on()


# uWSGI, which forks without Python's hooks and may not let threads run.


def start_thread(run: Callable[..., object], *arguments: object) -> bool:
    """Start a daemon thread that takes no signals; False where it could not be, or would never get a turn.

    Not `threading.Thread`: its `start` waits for the new thread inside locks, where a signal handler or a `__del__`
    that calls `track` would stand still.
    """
    uwsgi = _uwsgi()
    if uwsgi is not None and not _threads_run(uwsgi):
        return False
    # uWSGI's handlers are C's own, and end the process in whichever thread the system picks: for ours, a second signal
    # (Ctrl-C reaches a worker twice) would cut short the end that the first one began. So not one instruction of the
    # thread may run with them: the mask is inherited.
    block = uwsgi is not None
    if block:
        import _signal  # type: ignore[import-not-found]  # what `signal` wraps, and always there

        before = _signal.pthread_sigmask(_signal.SIG_BLOCK, _signal.valid_signals())
    try:
        _threads.start(run, *arguments)
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


def is_before_fork() -> bool:
    """True where an application may be imported in a process that does nothing but fork workers afterwards."""
    return is_before_workers() or "gunicorn.arbiter" in sys.modules  # gunicorn's workers have that module too


def is_never_ended() -> bool:
    """True in an interpreter of which nobody announces the end: uWSGI's for each `--mount` after the first."""
    return _uwsgi() is not None and not _is_main_interpreter()


def _is_main_interpreter() -> bool:
    try:
        interpreters: Any = __import__("_interpreters" if sys.version_info >= (3, 13) else "_xxsubinterpreters")
    except ImportError:
        return True
    main: bool = interpreters.get_current() == interpreters.get_main()
    return main


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
