"""A look at the whole process tree while a scenario runs, and at what is left of it afterwards.

Lives here: psutil. CPU and context switches come from the kernel's own sum over children that were waited for, because
a sample misses every process that lives shorter than the time between two looks. So a relay or a
manager's process, which is nobody's child, is in the peaks and not in those. Never here: who is to blame.
"""

from __future__ import annotations

import os
import resource
import sys
import threading
import time
from typing import NamedTuple

import psutil

EVERY = 0.2  # seconds
# The environment variables of which one has a run's folder: how a descendant is known whose parents are all gone. A
# relay has the second one only, as it gets little of its starter's environment.
FOLDER, RUNTIME = "STRESS_FOLDER", "XDG_RUNTIME_DIR"


class Peaks(NamedTuple):
    """The most that was seen at one look, over all processes of the tree."""

    peak_processes: int
    peak_rss: int  # bytes; pages that several processes share count in each
    peak_pss: int  # bytes; shared pages count once in all. 0 where the system does not tell
    peak_threads: int
    peak_fds: int


class Watch:
    """Looks at the processes of the run in ``folder``, from its start to `end`."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._known: dict[psutil.Process, bool] = {}  # whether it is one of ours
        self._peaks = Peaks(0, 0, 0, 0, 0)
        self._over = threading.Event()
        self._before = resource.getrusage(resource.RUSAGE_CHILDREN)
        self._began = time.monotonic()
        self._thread = threading.Thread(target=self._look_on, daemon=True)
        self._thread.start()

    def end(self) -> dict[str, float]:
        self._over.set()
        self._thread.join()
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - self._before.ru_utime - self._before.ru_stime
        switches = after.ru_nvcsw + after.ru_nivcsw - self._before.ru_nvcsw - self._before.ru_nivcsw
        seconds = time.monotonic() - self._began
        return {**self._peaks._asdict(), "seconds": seconds, "cpu_seconds": cpu, "switches": switches}

    def _look_on(self) -> None:
        while not self._over.wait(EVERY):
            found = [_figures(process) for process in self._tree()]
            sums = Peaks(len(found), *(sum(each) for each in zip(*found))) if found else self._peaks
            self._peaks = Peaks(*map(max, self._peaks, sums))

    def _tree(self) -> list[psutil.Process]:
        found = list(psutil.process_iter())
        for process in found:
            if process not in self._known:
                self._known[process] = _belongs_to(process, self._folder)
        return [process for process in found if self._known[process]]


def _figures(process: psutil.Process) -> tuple[int, int, int, int]:
    try:
        memory = process.memory_full_info()
        return memory.rss, getattr(memory, "pss", 0), process.num_threads(), _descriptors(process)
    except psutil.Error:
        return 0, 0, 0, 0  # it has just ended


def _descriptors(process: psutil.Process) -> int:
    if sys.platform == "win32":
        return process.num_handles()
    return process.num_fds()


def _belongs_to(process: psutil.Process, folder: str) -> bool:
    try:
        # A relay's environment can be read by root only; the path of its socket stands in its command line.
        if any(part.startswith(folder) for part in process.cmdline()):
            return True
        environment = process.environ()
        return folder in (environment.get(FOLDER), environment.get(RUNTIME))
    except psutil.Error:
        return False


def held(pid: int) -> tuple[int, int]:
    """The threads and descriptors that a process has now."""
    process = psutil.Process(pid)
    return process.num_threads(), _descriptors(process)


def is_alive(pid: int) -> bool:
    """Whether it has not ended; nobody need have waited for it."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def left_behind(folder: str, seconds: float) -> list[psutil.Process]:
    """The processes of a run that still live after ``seconds`` of patience."""
    deadline = time.monotonic() + seconds
    while True:
        found = [each for each in psutil.process_iter() if each.pid != os.getpid() and _lives(each, folder)]
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.05)


def _lives(process: psutil.Process, folder: str) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE and _belongs_to(process, folder)
    except psutil.Error:
        return False
