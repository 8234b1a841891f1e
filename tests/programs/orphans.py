"""Common code of programs in which some processes are killed and others deliver their events.

A process is killed where the test wants it: by itself, or by the test when its request has reached the server. Nothing
sleeps; a wait that does not end is ended by an alarm.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
import urllib.request
from typing import Any, Callable

from letterapp import Letter
from letterapp._delivery import shutdown
from programs import common
from programs.common import made, work
from programs.family import die, reap

_LONGEST = 50  # seconds that a process may take


def main(programs: dict[str, Any]) -> None:
    """Run the function that the command line names, if its module is the program."""
    if programs["__name__"] == "__main__":
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.alarm(_LONGEST)
        # A parent that forks does not look for orphans, or who recovers them would be a matter of luck.
        shutdown._next_recovery = float("inf")
    common.main(programs)


def has_looked(sender: Any) -> None:
    """Wait until a thread that was just started has looked for orphans. It does so again after a second."""
    if sender.owner.pid != os.getpid():
        return

    def is_looking() -> bool:
        is_between = sender._queue._taken.ring is None and not sender._batches.lock.run(lambda: None, 0.0)
        return not sender._recovery._next_scan or is_between

    while sender._queue.has_worker and is_looking():
        time.sleep(0.001)


def fork(job: Callable[..., object], *arguments: object) -> int:
    """Run ``job`` in a child that ends by nothing but what its job does; return the child's pid."""
    if made:
        has_looked(made[0]._delivery)  # else it may look, and recover, when the test does not expect it
    pid = os.fork()
    if pid:
        return pid
    try:
        signal.alarm(_LONGEST)
        job(*arguments)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(99)


def leave(letter: Letter, count: int, who: str = "dead", end: Callable[[], object] = die) -> int:
    """Have a child track, and end. Return what `reap` says of it."""

    def job() -> None:
        work(letter, count, who)
        end()

    return reap(fork(job))


def leave_all(letter: Letter, count: int, *names: str) -> None:
    """Have children track that are stopped before the first is killed, so that none looks when another is dead."""

    def job(name: str) -> None:
        work(letter, count, name)
        os.kill(os.getpid(), signal.SIGSTOP)

    pids = []
    for name in names:
        pids.append(fork(job, name))
        has_stopped(pids[-1])
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
        assert reap(pid) == -signal.SIGKILL


def has_stopped(pid: int) -> None:
    """Wait until a child has stopped itself."""
    assert os.WIFSTOPPED(os.waitpid(pid, os.WUNTRACED)[1])


def say(*words: object) -> None:
    """Print a line, in one piece, whatever other processes print."""
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def gate(name: str) -> None:
    """Stay until the test opens it."""
    urllib.request.urlopen(f"{common.API}/gate/{name}", b"{}", timeout=50).read()


def counts(letter: Letter) -> list[int]:
    found = letter.stats()
    assert found["accepted"] == found["delivered"] + sum(found["lost"].values()) + found["waiting"], found
    return [found[name] for name in ("accepted", "delivered", "adopted", "waiting")]


def recovers(letter: Letter, count: int, own: int = 0) -> None:
    """Check that this process has delivered what others left, and what it tracked itself."""
    assert counts(letter) == [count + own, count + own, count, 0], letter.stats()
    assert not letter.stats()["lost"], letter.stats()
