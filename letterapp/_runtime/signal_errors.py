"""Exceptions that the application's signal handlers raise while this package's code runs.

Responsible for: distinguishing them from others. Not responsible for: handling either.

A signal handler may raise to interrupt its program: Celery's soft time limit, an alarm that raises `TimeoutError`.
Where this package catches what its own work may raise, such an exception must be raised again.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # what `signal` wraps, and always there
import sys


def reraise_signal_error(error: BaseException) -> None:
    """Raise ``error`` again if a signal handler raised it; for an `except` that catches more than its own errors."""
    codes = _codes_of_signal_handlers()
    frames = error.__traceback__ if codes else None
    while frames is not None:
        if frames.tb_frame.f_code in codes:
            raise error
        frames = frames.tb_next


def _codes_of_signal_handlers() -> set[object]:
    codes: set[object] = set()
    for number in range(1, _signal.NSIG):
        handler = _signal.getsignal(number)
        while hasattr(handler, "func"):  # functools.partial
            handler = handler.func
        code = getattr(handler, "__code__", None)  # of a function or a method
        if code is None and callable(handler):
            code = getattr(type(handler).__call__, "__code__", None)
        if code is not None:
            codes.add(code)
    return codes


def is_in_signal_handler() -> bool:
    """True in a signal handler, or in a function that it calls."""
    codes = _codes_of_signal_handlers()
    frame = sys._getframe(1) if codes else None
    while frame is not None:
        if frame.f_code in codes:
            return True
        frame = frame.f_back
    return False
