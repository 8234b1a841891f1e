"""Peculiarities of processes that are forked by servers: uWSGI, gunicorn.

Responsible for: recognising the servers, whether a thread can run in this process, whether its end will be announced.
Not responsible for: what follows from that.

uWSGI calls no fork hooks, and may not let threads run. A server is recognised by the modules that it has imported:
nothing is imported for this.
"""

from __future__ import annotations

import sys

from . import threads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable


def start_thread(run: Callable[..., object], *arguments: object) -> bool:
    """Start a daemon thread that receives no signals; False if that is impossible, or if it would never run.

    Not `threading.Thread`: its `start` waits for the new thread while it holds locks, so a signal handler or a
    `__del__` that calls `track` would deadlock.
    """
    uwsgi = _uwsgi()
    if uwsgi is not None and not _threads_run(uwsgi):
        return False
    # uWSGI's signal handlers are written in C, and end the process in whichever thread the kernel chooses. In our
    # thread, a second signal (Ctrl-C reaches a worker twice) would abort the shutdown that the first one has started.
    # So signals are blocked before the thread exists: it inherits the mask.
    block = uwsgi is not None
    if block:
        import _signal  # type: ignore[import-not-found]  # what `signal` wraps, and always there

        before = _signal.pthread_sigmask(_signal.SIG_BLOCK, _signal.valid_signals())
    try:
        threads.start(run, *arguments)
    except RuntimeError:
        return False  # the interpreter is shutting down (Python 3.12), or no more threads can be created
    finally:
        if block:
            _signal.pthread_sigmask(_signal.SIG_SETMASK, before)
    return True


def _threads_run(uwsgi: Any) -> bool:
    if is_before_workers():
        return False  # after the import the master's loop holds the GIL forever
    return _version(uwsgi) >= (2, 0, 27) or "enable-threads" in uwsgi.opt or "threads" in uwsgi.opt


def is_before_fork() -> bool:
    """True in a process that may do nothing else than import the application and fork workers."""
    return is_before_workers() or "gunicorn.arbiter" in sys.modules  # gunicorn's workers have that module too


def is_never_ended() -> bool:
    """True in an interpreter whose end is not announced: that of each `--mount` after the first in uWSGI."""
    return _uwsgi() is not None and not is_main_interpreter()


def is_main_interpreter() -> bool:
    try:
        interpreters: Any = __import__("_interpreters" if sys.version_info >= (3, 13) else "_xxsubinterpreters")
    except ImportError:
        return True
    main: bool = interpreters.get_current() == interpreters.get_main()
    return main


def is_before_workers() -> bool:
    """True while uWSGI imports the application before it forks workers: the last chance to send from this process."""
    uwsgi = _uwsgi()
    return uwsgi is not None and uwsgi.worker_id() == 0 and not uwsgi.mule_id()


def _uwsgi() -> Any:
    module: Any = sys.modules.get("uwsgi")
    return module if hasattr(module, "worker_id") and hasattr(module, "opt") else None


def _version(uwsgi: Any) -> tuple[int, ...]:
    text = uwsgi.version.decode("ascii", "replace")
    numbers = text.split("-")[0].split(".")
    return tuple(int(number) for number in numbers if number.isdigit())
