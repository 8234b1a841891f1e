"""The option `exit_signals`: signals that send waiting events before their previous action.

Responsible for: installing the handlers, what a signal does. Not responsible for: sending (`shutdown.end_all`), the
end of a process that no signal announces (`shutdown`).

`signal` takes a millisecond to import, and few programs use this option: so the functions import it.
"""

from __future__ import annotations

import os

from .. import _log
from .._runtime import greenlets
from .._runtime.clock import monotonic
from . import notices, shutdown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Iterable

    from ..errors import LetterError

_LOGGING = 1.0  # seconds that the handlers of the logger have to log the last losses, usually milliseconds
_previous: dict[int, Any] = {}  # the previous handler of each signal
_not_installed: set[int] = set()  # signals without our handler, because it was not the main thread


def install(signals: Iterable[int], report: Callable[[LetterError], object] | None = None) -> None:
    """Make ``signals`` send all waiting events before their previous action. Another call installs missing handlers.

    Only the main thread can do that. A call in another thread, or a signal with a handler outside of Python, is
    reported once if there is a ``report``, and does not raise: this option must not stop the application.
    """
    import signal

    for number in signals:
        handler = signal.getsignal(number)
        if handler is _on_signal:
            continue
        name = signal.Signals(number).name
        if handler is None:
            said = f"exit_signals: {name} has a handler that Python did not install, so it does not send waiting events"
            notices.report_once(report, said)
            continue
        previous, _previous[number] = _previous.get(number), handler  # before a signal can arrive
        try:
            signal.signal(number, _on_signal)
            _not_installed.discard(number)
        except ValueError:
            _not_installed.add(number)
            _previous[number] = previous
            notices.report_once(
                report,
                "exit_signals: only the main thread can install signal handlers; they are installed at the main "
                "thread's first event",
            )


def install_missing(signals: Iterable[int]) -> None:
    """Install the handlers that another thread could not; not those that a server has replaced, which is intended."""
    if _not_installed:
        install([number for number in signals if number in _not_installed])


def _on_signal(number: int, frame: Any) -> None:
    pid = os.getpid()
    if any(delivery.defer_signal(lambda: os.kill(pid, number)) for delivery in shutdown.own_deliveries()):
        return  # it has interrupted a `put`; the signal is sent again after that
    if not greenlets.spawn(_exit_by_signal, number, frame):
        _exit_by_signal(number, frame)


def _exit_by_signal(number: int, frame: Any) -> None:
    import signal

    previous = _previous[number]
    shutdown.end_all(monotonic(), final=previous is signal.SIG_DFL)
    if callable(previous):
        _watch_raising()
        previous(number, frame)
    elif previous == signal.SIG_DFL:
        _log.emit_before_kill(_LOGGING)
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        # Still running: the kernel ignores the default action for the first process of a container.
        signal.signal(number, _on_signal)
        for delivery in shutdown.own_deliveries():
            delivery.cancel_shutdown()


_raise_of_signal: Any = None  # the original `signal.raise_signal`


def _watch_raising() -> None:
    """Detect how uvicorn ends after a signal: it restores the default action and raises the signal again.

    Until then it completes pending requests, in an event loop where calls do not wait until their events are settled.
    """
    global _raise_of_signal
    import signal

    if _raise_of_signal is None:
        _raise_of_signal = signal.raise_signal
        signal.raise_signal = _raise_after_sending


def _raise_after_sending(number: int) -> None:
    """`signal.raise_signal`, after sending all events if one of `exit_signals` is about to end the process."""
    import signal

    ends = number in _previous and signal.getsignal(number) is signal.SIG_DFL
    if ends:
        shutdown.end_all(monotonic(), final=True)
    _raise_of_signal(number)
    if ends:  # still running: the kernel ignores the default action for the first process of a container
        for delivery in shutdown.own_deliveries():
            delivery.cancel_shutdown()
