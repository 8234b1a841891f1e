"""Common code of the programs that tests run.

A test program is a function in a module of this package. `harness.run` starts it in a separate process, as
``python -m programs.forks NAME ARGUMENTS...``, with the arguments as strings; the module ends with ``main(globals())``.
Importing such a module only defines functions, so a test can import it to name the one that it runs.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from typing import Any, Callable, TypeVar

from letterapp import Letter

API = os.environ.get("TEST_API", "")

made: list[Letter] = []  # by `make`


def make(api_key: str = "k", base_url: str = API, **options: Any) -> Letter:
    """A client that lives until the interpreter ends, as one in a module's global does.

    At the end it has more time than by default, because a busy machine may need it. Not with a relay, which clients
    with the same options share, those of the test among them.
    """
    if not options.get("relay"):
        options.setdefault("exit_timeout", 20.0)
    made.append(Letter(api_key, base_url, **options))
    return made[-1]


Kept = TypeVar("Kept")
_kept: list[object] = []  # by `keep`


def keep(thing: Kept) -> Kept:
    """Keep an object alive as long as the client: an unreferenced queue or manager would end earlier."""
    _kept.append(thing)
    return thing


def work(letter: Letter, count: int, who: str = "program", start: int = 0) -> None:
    """Track ``count`` events that carry who tracked them."""
    for serial in range(start, start + count):
        letter.track(who, "Worked", {"serial": serial, "pid": os.getpid()})


def child(job: Callable[[], Any], fork: Callable[[], int] | None = None) -> int:
    """Run ``job`` in a forked child, whose exit status is what it returns; return the child's pid."""
    pid = (fork or os.fork)()
    if pid:
        return pid
    code = 99
    try:
        code = int(job() or 0)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(code)


class Ended(Exception):
    """Raised by a forked child that is done: it leaves all frames, and its interpreter ends as its parent's does."""


def suspend(pid: int) -> None:
    """Stop a process, and return when all its threads have stopped: one of them has to run to take the signal."""
    os.kill(pid, signal.SIGSTOP)

    def runs(thread: str) -> bool:
        try:
            with open(f"/proc/{pid}/task/{thread}/stat") as stat:
                return stat.read().rpartition(")")[2].split()[0] != "T"
        except OSError:
            return False  # it has ended since

    while os.path.isdir("/proc/self/task") and any(map(runs, os.listdir(f"/proc/{pid}/task"))):
        time.sleep(0.001)


def be_patient() -> None:
    """Let this process's clients wait for a relay that a busy machine holds up, and not send their events themselves.

    For programs that count what a relay gets. The relay must not be one that never answers.
    """
    from letterapp._relay import client

    client.GREETING = 60.0


def stay() -> None:
    """Wait for a signal, in pieces: one that comes just before a wait is handled by Python only after that wait."""
    while True:
        threading.Event().wait(0.1)


def _define_waitid() -> None:
    """PyPy has no `os.waitid`: the same by the C library, with a siginfo_t as Linux lays it out."""
    import ctypes
    import types

    call = ctypes.CDLL(None, use_errno=True).waitid

    def waitid(kind: int, pid: int, options: int) -> Any:
        info = (ctypes.c_int * 32)()
        while call(kind, pid, info, options):
            if ctypes.get_errno() != 4:  # EINTR
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        return types.SimpleNamespace(si_pid=info[4], si_status=info[6], si_code=info[2])

    vars(os).update(P_PID=1, WSTOPPED=2, WEXITED=4, WNOWAIT=0x01000000, waitid=waitid)


if hasattr(os, "fork") and not hasattr(os, "waitid"):
    _define_waitid()


def main(programs: dict[str, Any]) -> None:
    """Run the function that the command line names, if its module is the program."""
    if programs["__name__"] == "__main__":
        try:
            programs[sys.argv[1]](*sys.argv[2:])
        except Ended:
            pass
