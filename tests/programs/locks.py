"""The lock file of a program, and processes that own a slot of it. A wait that never ends is ended by the test.

TEST_LOCKS says what the file is: "memfd" or "temporary file". Importing this makes it, before the program forks.
"""

from __future__ import annotations

import fcntl
import os
import resource
import tempfile
import threading
from typing import Callable

from programs.common import child, stay


def lock_file() -> int:
    # Moved before the first lock is taken: closing the first descriptor would give it back.
    file = os.environ["TEST_LOCKS"] == "temporary file"
    with tempfile.TemporaryFile() if file else open(os.memfd_create("locks"), "wb") as made:
        return fcntl.fcntl(made.fileno(), fcntl.F_DUPFD_CLOEXEC, 3)


LOCKS = -1  # a test imports this as well, and locks nothing
if "TEST_LOCKS" in os.environ:
    LOCKS = lock_file()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def take(slot: int, fd: int = LOCKS) -> bool:
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, slot)
    except BlockingIOError:  # and nothing else: a descriptor that is closed says nothing about an owner
        return False
    return True


def reap(pid: int) -> int:
    """Wait for the end of a child; return its exit status, or the signal that ended it."""
    result = os.waitid(os.P_PID, pid, os.WEXITED)
    assert result is not None
    return result.si_status


def dies(pid: int) -> None:
    """Wait for the end of a child, which stays a zombie."""
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


def others_can_take(slot: int) -> bool:
    code = reap(child(lambda: take(slot)))
    assert code in (0, 1), code
    return code == 1


def owner(slot: int, end: Callable[[], object] = stay) -> tuple[int, int]:
    """A child that has taken the slot, and does ``end`` when it reads something from the second thing returned."""
    ready, go = os.pipe(), os.pipe()

    def own() -> None:
        assert take(slot)
        threading.Thread(target=stay, daemon=True).start()
        os.write(ready[1], b".")
        os.read(go[0], 1)
        end()

    pid = child(own)
    os.read(ready[0], 1)
    return pid, go[1]
