"""The client's own threads: signals are none of their business, and one that has left is gone.

Lives here: the signal mask of a thread, and the system's word that it has ended. Never here: what a thread does, when
one is started.

A thread that takes any signal may take one that the program has blocked in its own threads, to get it by `sigwait`; the
signal's default action would then end the process.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # what `signal` wraps, and always there
import _thread
import os
import threading
import time

from ._clock import monotonic

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

# What the thread itself causes: blocked, it would end the process without a word of faulthandler's.
_FAULTS = ("SIGSEGV", "SIGBUS", "SIGFPE", "SIGILL", "SIGTRAP", "SIGSYS", "SIGABRT")
_ENDING = 1.0  # seconds that the system may take to remove a thread; tens of microseconds, mostly
_this = threading.local()  # `mask`: that of whoever started this thread


def start(run: Callable[..., object], *arguments: object) -> None:
    """Start a daemon thread that takes no signals. Raises what `_thread.start_new_thread` raises.

    The thread blocks them itself: a handler that raises in the middle of it would leave them blocked in the caller.
    """
    mask = getattr(_this, "mask", None)  # started by one of these itself, it is the mask of that one's starter
    _thread.start_new_thread(_without_signals, (_thread.get_native_id(), mask, run, arguments))


def as_started(act: Callable[..., Any], *arguments: Any) -> Any:
    """Call ``act``, which is the application's, with the signal mask that it would have elsewhere.

    A program that it starts inherits that, and could not be stopped else.
    """
    mask = getattr(_this, "mask", None)
    if mask is None:
        return act(*arguments)
    before = _signal.pthread_sigmask(_signal.SIG_SETMASK, mask)
    try:
        return act(*arguments)
    finally:
        _signal.pthread_sigmask(_signal.SIG_SETMASK, before)


def await_end(thread: int, longest: float) -> None:
    """Wait until the system has removed a thread of this process that has left, at most ``longest`` seconds.

    It is known by its native id.

    Until then Python warns of a fork (3.12), and cannot end a sub-interpreter. Elsewhere than on Linux it returns at
    once.
    """
    if not thread or thread == _thread.get_native_id():
        return  # a greenlet's
    until = monotonic() + min(longest, _ENDING)
    place = f"/proc/self/task/{thread}"
    while os.path.exists(place) and monotonic() < until:
        time.sleep(0.0001)


def _without_signals(starter: int, mask: Any, run: Callable[..., object], arguments: tuple[object, ...]) -> None:
    if _thread.get_native_id() != starter and hasattr(_signal, "pthread_sigmask"):  # else a greenlet, or Windows
        own = _signal.pthread_sigmask(_signal.SIG_BLOCK, ())
        _this.mask = own if mask is None else mask
        _block()
    run(*arguments)


def _block() -> None:
    _signal.pthread_sigmask(_signal.SIG_BLOCK, _all())


def _all() -> set[int]:
    every = _signal.valid_signals() if hasattr(_signal, "valid_signals") else range(1, 32)  # PyPy has no such function
    return set(every) - {getattr(_signal, name) for name in _FAULTS if hasattr(_signal, name)}
