"""Writing to a peer that may have gone, without a SIGPIPE for the process.

Responsible for: the signal of one call. Not responsible for: the error that the call then raises (`BrokenPipeError`).

Python ignores SIGPIPE, but some command-line programs restore its default action, which ends the process. On Linux a
plain socket has a flag against that (MSG_NOSIGNAL). OpenSSL does not use it, so the thread blocks the signal.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # what `signal` wraps, and always there

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

_POSSIBLE = all(hasattr(_signal, name) for name in ("SIGPIPE", "pthread_sigmask", "sigpending"))  # not on Windows
_SIGPIPE = {_signal.SIGPIPE} if _POSSIBLE else set()


def without_sigpipe(act: Callable[..., Any], *arguments: Any) -> Any:
    """Call ``act`` with SIGPIPE blocked in this thread, and discard the one that it caused.

    ``act`` must not wait: under gevent another greenlet would run with this mask, and might change it.
    """
    if not _POSSIBLE or _SIGPIPE & _signal.sigpending():
        return act(*arguments)  # a pending signal is already blocked, and not ours to discard
    was_blocked = _SIGPIPE & _signal.pthread_sigmask(_signal.SIG_BLOCK, ())
    try:  # it includes the blocking, which may raise an exception of a signal handler afterwards
        _signal.pthread_sigmask(_signal.SIG_BLOCK, _SIGPIPE)
        return act(*arguments)
    finally:
        _discard()
        if not was_blocked:
            _signal.pthread_sigmask(_signal.SIG_UNBLOCK, _SIGPIPE)


def _discard() -> None:
    if hasattr(_signal, "sigtimedwait"):
        _signal.sigtimedwait(_SIGPIPE, 0)
    elif _SIGPIPE & _signal.sigpending():  # macOS
        _signal.sigwait(_SIGPIPE)
