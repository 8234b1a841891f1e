"""Samples the whole process tree while a scenario runs, and finds what is left of it afterwards.

Responsible for: memory, threads and descriptors, which are sampled; CPU time and context switches, which come from the
kernel's own sums over reaped children, because samples miss every process that lives for less than the interval between
two of them. A relay or a manager is no child of any process of the run, so it is included in the peaks but not in those
sums. Not responsible for: deciding what is a fault.
"""

from __future__ import annotations

import os
import resource
import sys
import threading
import time
from typing import NamedTuple

import psutil

INTERVAL = 0.2  # seconds
# Environment variables that identify the descendants of a run by its folder, even after their parents have ended. A
# relay has only the second, because it inherits little of the environment.
FOLDER, RUNTIME = "STRESS_FOLDER", "XDG_RUNTIME_DIR"


class Peaks(NamedTuple):
    """The maximum of the samples, each summed over all processes of the tree."""

    peak_processes: int
    peak_rss: int  # bytes; shared pages count once for each process
    peak_pss: int  # bytes; shared pages count once. 0 where the system does not provide it
    peak_threads: int
    peak_fds: int


class ProcessMonitor:
    """Samples the processes of the run in ``folder``, from construction to `end`."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._known: dict[psutil.Process, bool] = {}  # whether it belongs to the run
        self._peaks = Peaks(0, 0, 0, 0, 0)
        self._over = threading.Event()
        self._before = resource.getrusage(resource.RUSAGE_CHILDREN)
        self._began = time.monotonic()
        self._thread = threading.Thread(target=self._poll, daemon=True)
        self._thread.start()

    def end(self) -> dict[str, float]:
        self._over.set()
        self._thread.join()
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - self._before.ru_utime - self._before.ru_stime
        switches = after.ru_nvcsw + after.ru_nivcsw - self._before.ru_nvcsw - self._before.ru_nivcsw
        seconds = time.monotonic() - self._began
        return {**self._peaks._asdict(), "seconds": seconds, "cpu_seconds": cpu, "switches": switches}

    def _poll(self) -> None:
        while not self._over.wait(INTERVAL):
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
        # Only root can read a relay's environment, but its command line contains the path of its socket.
        if any(part.startswith(folder) for part in process.cmdline()):
            return True
        environment = process.environ()
        return folder in (environment.get(FOLDER), environment.get(RUNTIME))
    except psutil.Error:
        return False


def threads_and_descriptors(pid: int) -> tuple[int, int]:
    """The numbers of threads and descriptors that a process has now."""
    process = psutil.Process(pid)
    return process.num_threads(), _descriptors(process)


def is_alive(pid: int) -> bool:
    """Whether it has not ended; a zombie has."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def surviving_processes(folder: str, seconds: float) -> list[psutil.Process]:
    """The processes of a run that are still alive after ``seconds``."""
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
