"""Programs that fork while another thread has just opened a descriptor, and not registered it yet."""

from __future__ import annotations

import os
import stat
import threading
from typing import Any, Callable

from letterapp.relay import SenderManager
from programs.common import API, child, main, make

LONG = 60.0  # seconds that a fork waits, and not 2: on a busy machine, connecting to a server takes longer
PAUSE = 0.2  # seconds that the other thread stands still, unless it is in the way of the fork


def _count(is_meant: Callable[[int], bool]) -> int:
    found = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            found += is_meant(os.stat(f"/proc/self/fd/{name}").st_mode)
        except OSError:
            pass  # that of the directory itself
    return found


def _fork_while_opening(is_meant: Callable[[int], bool], act: Callable[[], object]) -> None:
    """Call ``act`` in a thread, fork when it has opened something, and print how many of its kind the child has more.

    The library calls `os.fstat` for each descriptor that it opens, before it is registered.
    """
    before = _count(is_meant)
    fstat = os.fstat
    has_opened, has_forked = threading.Event(), threading.Event()

    def pausing(descriptor: int) -> os.stat_result:
        status = fstat(descriptor)
        if descriptor > 2 and is_meant(status.st_mode) and not has_opened.is_set():
            has_opened.set()
            has_forked.wait(PAUSE)
        return status

    os.fstat = pausing  # type: ignore[assignment]
    thread = threading.Thread(target=act)
    thread.start()
    if not has_opened.wait(30):
        print("nothing was opened")
    pid = child(lambda: _count(is_meant) - before)
    has_forked.set()
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


def a_file(directory: str) -> None:
    from letterapp._storage import file_lock

    file_lock.NETWORK = LONG  # type: ignore[attr-defined]
    letter = make("test-key", API)  # which installs the fork hooks
    made: list[Any] = []
    _fork_while_opening(stat.S_ISREG, lambda: made.append(file_lock.LockedFile.make(os.path.join(directory, "file"))))
    letter.close()


main(globals())
