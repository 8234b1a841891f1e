"""The test runs of this process, in which clients keep their requests.

Responsible for: `TestRun`, `no_network`. Not responsible for: captures (`captured`), the directory (`run`), how clients
are made to use it (`client`).

All test runs of a process use the same directory: a fork server, or the workers of a pool, that were started in one of
them know no other.
"""

from __future__ import annotations

import atexit
import os
import sys
from contextlib import contextmanager
from typing import Iterator, Optional

from .client import flush, redirect
from .run import Run

FLUSH = 5.0  # maximum time until this process's events are where they belong, in seconds

_importer = os.getpid()
_run: Optional[Run] = None  # may be that of a parent process, or removed
_depth = 0  # how many test runs of this process have begun and not ended


class TestRun:
    """From its construction to `end`, clients keep their requests in its directory, or are refused."""

    __test__ = False  # it is no test

    def __init__(self) -> None:
        global _run, _depth
        flush(FLUSH)  # what waits belongs to an outer test run, if there is one
        if _run is None or not _run.is_usable():
            _run, _depth = Run(), 0
            if _has_exit_handlers():
                atexit.register(_run.remove)
        self.run = _run
        self._before = redirect(self.run.path)
        _depth += 1

    def end(self, restore: bool = True) -> None:
        """Apply what applied before; ``restore=False``: refuse everything. Does nothing in a forked child."""
        global _depth
        if self.run.pid != os.getpid():
            return
        flush(FLUSH)
        if restore:
            redirect(self._before)
        _depth -= 1
        if not _depth and not (restore and _has_exit_handlers()):
            self.run.remove()


def tidy() -> None:
    """Remove the directory now if no test run uses it, because the process may end without exit handlers."""
    if _run is not None and not _depth:
        _run.remove()


def _has_exit_handlers() -> bool:
    """False in the child of another process, which may be terminated when it has done its work."""
    process = sys.modules.get("multiprocessing.process")
    return os.getpid() == _importer and (process is None or process.parent_process() is None)


@contextmanager
def no_network() -> Iterator[None]:
    """Send nothing to another machine, in a ``with``: events that are not captured are refused.

    Applies to all clients of this process and of the processes that it starts, except for those with a loopback
    ``base_url``. A refused event is lost, and reported with the cause ``"testing"``; `Letter.send` raises
    `LetterError`. A client that is created in the ``with`` does not send after it, either. In pytest the plugin does
    this for the whole run. Not for several threads of a process at a time.
    """
    active = TestRun()
    try:
        yield
    finally:
        active.end()
