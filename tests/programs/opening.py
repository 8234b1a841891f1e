"""Programs that fork while another thread has just opened a descriptor, and not registered it yet."""

from __future__ import annotations

import multiprocessing
import os
import stat
import threading
import time
from types import SimpleNamespace
from typing import Any, Callable

from letterapp._runtime import atfork
from letterapp.relay import QueueListener, SenderManager
from programs.common import API, child, main, make

LONG = 60.0  # seconds that a fork waits, and not 2: on a busy machine, connecting to a server takes longer


def _copies(of: os.stat_result) -> int:
    """How many descriptors of this process lead to a file."""
    found = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            found += os.path.samestat(os.stat(f"/proc/self/fd/{name}"), of)
        except OSError:
            pass  # that of the directory itself
    return found


def _fork_while_opening(is_meant: Callable[[int], bool], act: Callable[[], object]) -> None:
    """Call ``act`` in a thread, fork when it has opened a descriptor, and print how many copies of that the child has.

    The library calls `os.fstat` for each descriptor that it opens, before it is registered. Only copies of that one
    count: what other modules opened, their own fork hooks may close.
    """
    fstat = os.fstat
    opened: list[tuple[os.stat_result, int]] = []  # the file, and how many descriptors of it there were before
    has_opened, is_decided = threading.Event(), threading.Event()  # the second: the fork waits, or has not waited

    def pausing(descriptor: int) -> os.stat_result:
        status = fstat(descriptor)
        if descriptor > 2 and is_meant(status.st_mode) and not opened:
            opened.append((status, _copies(status) - 1))
            has_opened.set()
            is_decided.wait(30)
        return status

    def waiting(seconds: float) -> None:
        is_decided.set()
        time.sleep(seconds)

    os.fstat = pausing  # type: ignore[assignment]
    atfork.time = SimpleNamespace(sleep=waiting)  # type: ignore[assignment,attr-defined]  # which the fork hook calls
    thread = threading.Thread(target=act)
    thread.start()
    if not has_opened.wait(30):
        print("nothing was opened")
    file, before = opened[0]
    pid = child(lambda: _copies(file) - before)
    is_decided.set()
    print(os.WEXITSTATUS(os.waitpid(pid, 0)[1]), flush=True)
    os.fstat = fstat
    thread.join()


def _tracks(**options: Any) -> Callable[[], object]:
    letter = make("test-key", API, **options)

    def track() -> None:
        letter.track("u", "E")
        letter.flush(30)

    return track


def to_the_api() -> None:
    from letterapp._http import transport

    transport.load()
    _fork_while_opening(stat.S_ISSOCK, _tracks())


def to_a_relay(path: str) -> None:
    _fork_while_opening(stat.S_ISSOCK, _tracks(relay=path))


def to_a_manager() -> None:
    with SenderManager("test-key", API) as manager:
        _fork_while_opening(stat.S_ISSOCK, _tracks(relay=manager.queue))


def to_redis(url: str) -> None:
    from letterapp._redis import connection

    connection.NETWORK = LONG  # type: ignore[attr-defined]
    _fork_while_opening(stat.S_ISSOCK, _tracks(relay=url))


def a_listener() -> None:
    queue: Any = multiprocessing.Queue()
    letter = make("test-key", API)  # which installs the fork hooks
    listener = QueueListener(queue, "test-key", API)
    _fork_while_opening(stat.S_ISFIFO, listener.start)
    listener.stop()
    letter.close()


def a_file(directory: str) -> None:
    from letterapp._storage import file_lock

    file_lock.NETWORK = LONG  # type: ignore[attr-defined]
    letter = make("test-key", API)  # which installs the fork hooks
    made: list[Any] = []
    _fork_while_opening(stat.S_ISREG, lambda: made.append(file_lock.LockedFile.make(os.path.join(directory, "file"))))
    letter.close()


main(globals())
