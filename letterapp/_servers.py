"""What servers do to the processes that they fork: uWSGI, gunicorn.

Responsible for: recognising them, whether a thread can run here, whether this process will be ended in a way that
anybody announces. Not responsible for: what follows from that.

uWSGI calls no fork hooks, and may not let threads run. A server is recognised by the modules that it has loaded itself:
nothing is imported for this.
"""

from __future__ import annotations

import sys

from . import _threads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable


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
