"""The test runs of this process: which one its clients use.

Responsible for: `TestRun`, `no_network`. Not responsible for: captures (`captured`), the directory (`run`), how clients
are made to use it (`client`).
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import Iterator, Optional

from .client import flush, redirect
from .run import Run

FLUSH = 5.0  # maximum time until this process's events are where they belong, in seconds

_innermost: Optional[TestRun] = None  # may be that of a parent process


class TestRun:
    """From its construction to `end`, clients keep their requests in its directory, or are refused."""

    __test__ = False  # it is no test

    def __init__(self) -> None:
        global _innermost
        flush(FLUSH)  # what waits belongs to an outer test run, if there is one
        self.run = Run()
        self._outer = _innermost
        self._before = redirect(self.run.path)
        _innermost = self

    def end(self, restore: bool = True) -> None:
        """Do nothing in another process. ``restore=False``: everything is refused from now on."""
        global _innermost
        if self.run.pid != os.getpid():
            return
        flush(FLUSH)
        _innermost = self._outer
        if restore:
            redirect(self._before)
        self.run.remove()


def innermost() -> Optional[TestRun]:
    """The innermost test run that this process has begun."""
    return _innermost if _innermost is not None and _innermost.run.pid == os.getpid() else None


@contextmanager
def no_network() -> Iterator[None]:
    """Send nothing to another machine, in a ``with``: events that are not captured are refused.

    Applies to all clients of this process and of the processes that it starts, except for those with a loopback
    ``base_url``. A refused event is lost, and reported with the cause ``"testing"``; `Letter.send` raises
    `LetterError`. In pytest the plugin does this for the whole run. Not for several threads of a process at a time.
    """
    active = TestRun()
    try:
        yield
    finally:
        active.end()
