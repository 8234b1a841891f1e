"""Programs with a spool, most of which are killed, and what they have in common with the tests."""

from __future__ import annotations

import atexit
import os
import signal
from typing import Any

from letterapp import LetterError
from programs.common import API, main, make, stay, work

SMALL: dict[str, Any] = {"max_queue_bytes": 4000, "max_queue_events": 20, "max_batch_bytes": 2000}  # files of 11 KB


def lock_is_taken(path: str) -> bool:
    """True when this process cannot lock the file."""
    import fcntl  # not on Windows, where these tests are skipped

    with open(path, "r+b") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1)
        except BlockingIOError:
            return True
    return False


def killed_while_making(directory: str) -> None:
    os.rename = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    make(spool=directory)


def without_standard_descriptors(directory: str) -> None:
    for number in range(3):
        os.close(number)
    work(make(spool=directory, exit_timeout=0.1), 1)
    taken = [number for number in range(3) if os.path.exists(f"/dev/fd/{number}")]
    os._exit(len(taken))


def limited_files(directory: str) -> None:
    import resource

    errors: list[LetterError] = []
    letter = make(spool=directory, on_error=errors.append)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    other = make(spool=directory, on_error=errors.append)
    kept = letter.stats()["memory"], other.stats()["memory"]
    limit = os.dup(0)  # the lowest number that is free
    os.close(limit)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    third = make(spool=directory, on_error=errors.append, flush_interval=3600, send_on_os_exit=False)
    work(third, 3)  # a call needs no descriptor
    print(*kept, third.stats()["memory"], *errors, sep="\n")
    os._exit(0)


def waits_with_five_events(directory: str) -> None:
    work(make(spool=directory, flush_interval=1000, flush_at=1000), 5)
    print("ready")
    stay()


def is_killed_with(count: str, who: str, directory: str) -> None:
    work(make("test-key", spool=directory, flush_at=1000, flush_interval=1000), int(count), who)
    os.kill(os.getpid(), signal.SIGKILL)


def works_without_end(directory: str) -> None:
    letter = make("test-key", spool=directory, max_queue_events=100_000, max_queue_bytes=20_000_000)

    def load(who: str) -> None:
        for serial in range(10_000):  # the queue holds more, should nothing be sent for a while
            work(letter, 1, who, serial)
            os.write(1, f"{who} {serial + 1}\n".encode())  # the call has returned
        stay()

    for number in range(3):
        if not os.fork():
            load(f"child {number}")
    load("parent")


def cannot_deliver(directory: str, who: str) -> None:
    letter = make("test-key", spool=directory, flush_at=1, timeout=0.1)
    work(letter, 20, who)
    letter.flush(0.2)
    print("ready")
    stay()


def tracks_after_its_end(directory: str) -> None:
    atexit.register(lambda: work(letter, 3, start=1))  # registered before the client, and so called after its end
    letter = make("test-key", spool=directory)
    work(letter, 1)


def only_starts(directory: str) -> None:
    make("test-key", API, spool=directory)
    stay()


main(globals())
