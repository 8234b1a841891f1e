"""The client's own threads.

Responsible for: their signal mask, and waiting until the system has removed one. Not responsible for: what a thread
does, and when one is started.

They block all signals. Otherwise one could receive a signal that the program has blocked in its own threads in order to
receive it by `sigwait`, and the signal's default action would end the process.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # what `signal` wraps, and always there
import _thread
import os
import threading
import time

from .clock import monotonic

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

# Signals caused by the thread itself. If they were blocked, they would end the process without faulthandler's report.
_FAULTS = ("SIGSEGV", "SIGBUS", "SIGFPE", "SIGILL", "SIGTRAP", "SIGSYS", "SIGABRT")
_ENDING = 1.0  # maximum time to wait for the system to remove a thread, in seconds; usually tens of microseconds
_this = threading.local()  # `mask`: the signal mask of the thread that started this one


def start(run: Callable[..., object], *arguments: object) -> None:
    """Start a daemon thread that receives no signals. Raises what `_thread.start_new_thread` raises.

    The thread blocks them itself: if the caller did, a handler that raises could leave them blocked there.
    """
    mask = getattr(_this, "mask", None)  # in a thread that was started here, the mask of the thread that started it
    _thread.start_new_thread(_without_signals, (_thread.get_native_id(), mask, run, arguments))


def with_starters_signal_mask(act: Callable[..., Any], *arguments: Any) -> Any:
    """Call ``act``, a function of the application, with the signal mask of the thread that started this one.

    Programs that it starts inherit the mask; with ours they could not be stopped by signals.
    """
    mask = getattr(_this, "mask", None)
    if mask is None:
        return act(*arguments)
    before = _signal.pthread_sigmask(_signal.SIG_SETMASK, mask)
    try:
        return act(*arguments)
    finally:
        _signal.pthread_sigmask(_signal.SIG_SETMASK, before)


def wait_until_gone(thread: int, longest: float) -> None:
    """Wait until the system has removed the thread with this native ID, for at most ``longest`` seconds.

    Until then Python warns about forks (since 3.12), and cannot end a sub-interpreter. Only on Linux; returns at once
    elsewhere.
    """
    if not thread or thread == _thread.get_native_id():
        return  # a greenlet has the ID of the thread that it runs in
    until = monotonic() + min(longest, _ENDING)
    place = f"/proc/self/task/{thread}"
    while os.path.exists(place) and monotonic() < until:
        time.sleep(0.0001)


def _without_signals(starter: int, mask: Any, run: Callable[..., object], arguments: tuple[object, ...]) -> None:
    if _thread.get_native_id() != starter and hasattr(_signal, "pthread_sigmask"):  # otherwise a greenlet, or Windows
        own = _signal.pthread_sigmask(_signal.SIG_BLOCK, ())
        _this.mask = own if mask is None else mask
        _block()
    run(*arguments)


def _block() -> None:
    _signal.pthread_sigmask(_signal.SIG_BLOCK, _all())


def _all() -> set[int]:
    every = _signal.valid_signals() if hasattr(_signal, "valid_signals") else range(1, 32)  # PyPy has no such function
    return set(every) - {getattr(_signal, name) for name in _FAULTS if hasattr(_signal, name)}
