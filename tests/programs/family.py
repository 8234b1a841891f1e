"""Common code of programs whose processes share a client: a client that sends nothing automatically, gates, ends."""

from __future__ import annotations

import os
import signal
from typing import Any

from letterapp import Letter
from programs import common

# Nothing is sent before a flush, a close or an end.
LATER: dict[str, Any] = {"flush_interval": 3600, "flush_at": 10**6, "exit_timeout": 40}


def make(**options: Any) -> Letter:
    """A client that sends nothing automatically. It lives until the interpreter ends."""
    return common.make(**{**LATER, **options})


def die(number: int = signal.SIGKILL) -> None:
    """End by a signal."""
    os.kill(os.getpid(), number)
    common.stay()


def reap(pid: int) -> int:
    """The code with which a child left, or the signal that killed it, negative."""
    status = os.waitpid(pid, 0)[1]
    return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


class Gate:
    """Processes wait at it until as many are let through. Its descriptors are above those that programs close."""

    def __init__(self) -> None:
        import fcntl  # here, since some programs run without it

        self.ends = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 600) for end in os.pipe()]

    def wait(self, times: int = 1) -> None:
        for _ in range(times):
            assert os.read(self.ends[0], 1)

    def open(self, times: int = 1) -> None:
        os.write(self.ends[1], b"." * times)
