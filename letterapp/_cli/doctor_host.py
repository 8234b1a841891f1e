"""What this host has: fork, threads, shared memory, descriptors.

Responsible for: trying each of them. Not responsible for: the network (`doctor_network`), files of others
(`doctor_places`).
"""

from __future__ import annotations

import os
import platform
import sys
import threading

from .._config import Settings
from .._storage.memory import SharedMemory, Unavailable
from .._version import __version__
from .findings import Finding, failure, note, ok, said, warning

_FEW_DESCRIPTORS = 64  # fewer free ones are soon used up by connections


class Host:
    """What the host has, as far as the mode of a client depends on it."""

    def __init__(self) -> None:
        self.threads = True
        self.shared_memory = True


def python() -> list[Finding]:
    gil = "" if getattr(sys, "_is_gil_enabled", lambda: True)() else ", without the GIL"
    system = f"{platform.system()} {platform.release().partition('-')[0]}"
    return [
        ok(
            "python",
            f"letterapp {__version__}, {platform.python_implementation()} {platform.python_version()}{gil}, {system}",
        )
    ]


def fork() -> list[Finding]:
    """Fork a child that ends at once. Called before there are other threads."""
    if not hasattr(os, "fork"):
        return [
            note("fork", "this system has none: each process has its own client", "use a spool, so that events survive")
        ]
    try:
        child = os.fork()
        if not child:
            os._exit(0)
        _, status = os.waitpid(child, 0)
    except OSError as problem:
        return [
            failure("fork", f"os.fork fails: {said(problem)}", "raise the limits of processes (ulimit -u) and memory")
        ]
    if status:
        return [failure("fork", f"a forked child ended with status {status}", "look for what ends processes here")]
    return [ok("fork", "works")]


def start_method() -> list[Finding]:
    """How `multiprocessing` starts workers here."""
    import multiprocessing

    method = multiprocessing.get_start_method()
    if method == "fork":
        return [ok("workers", "multiprocessing forks its workers")]
    return [
        note(
            "workers",
            f"multiprocessing starts its workers by {method}: each has its own client, and no relative",
            "use a spool or a relay if workers may be killed",
        )
    ]


def threads(host: Host) -> list[Finding]:
    done = threading.Event()
    try:
        thread = threading.Thread(target=done.set, daemon=True)
        thread.start()
        thread.join(5.0)
    except (RuntimeError, MemoryError) as problem:
        host.threads = False
        return [
            warning(
                "threads",
                f"no thread can be started: {said(problem)}",
                "each call will send its event itself, and wait for the API: raise the limit (ulimit -u)",
            )
        ]
    return [ok("threads", "can be started")]


def memory(host: Host, settings: Settings) -> list[Finding]:
    """Whether processes of a family can share memory, and lock it."""
    try:
        slot = SharedMemory(settings).claim()
        if slot is None:
            raise Unavailable("no part of it can be locked")
        slot.memory[slot.base] = 1
        slot.release()
    except Unavailable as problem:
        host.shared_memory = False
        if not str(problem):
            return [note("memory", "this system has no memory that processes share")]
        return [
            warning(
                "memory",
                f"processes cannot share memory: {problem}",
                "what a killed process has not sent is lost: raise the limits (ulimit -v, ulimit -n), or use a spool",
            )
        ]
    return [ok("memory", "processes share it, so that a killed one's events are sent by another")]


def memfd() -> list[Finding]:
    if not hasattr(os, "memfd_create"):
        return (
            [note("memfd", "this Python has none; a temporary file without a name is used for locks")]
            if hasattr(os, "fork")
            else []
        )
    try:
        os.close(os.memfd_create("letterapp-doctor"))
    except OSError as problem:
        return [note("memfd", f"not available ({said(problem)}): a temporary file without a name is used for locks")]
    return [ok("memfd", "available, for locks")]


def semaphores() -> list[Finding]:
    """Whether `multiprocessing` has what its queues need: on Linux, a directory in memory."""
    if sys.platform != "linux":
        return []
    place = "/dev/shm"
    if os.path.isdir(place) and os.access(place, os.W_OK | os.X_OK):
        return [ok("semaphores", f"{place} is writable")]
    what = "cannot be written to" if os.path.isdir(place) else "is missing"
    return [
        warning(
            "semaphores",
            f"{place} {what}: the queues and locks of multiprocessing do not work here",
            "mount a tmpfs there if you use relay=multiprocessing.Queue(); nothing else of letterapp needs it",
        )
    ]


def descriptors() -> list[Finding]:
    try:
        import resource

        lowest = os.dup(0)
    except ImportError:
        return []  # Windows
    except OSError as problem:
        return [failure("descriptors", f"no file can be opened: {said(problem)}", "raise the limit (ulimit -n)")]
    os.close(lowest)
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return [ok("descriptors", "no limit")]
    text = f"a process may have {limit:,} files open"
    if limit - lowest < _FEW_DESCRIPTORS:
        return [warning("descriptors", f"{text}, and {lowest} are", "raise the limit (ulimit -n)")]
    return [ok("descriptors", text)]


def mode(host: Host, settings: Settings, manager: str | None) -> list[Finding]:
    """Where events wait, and who sends them. ``manager``: the address of one, if it is used."""
    if settings.captured:
        return [note("mode", "this is a test run (LETTER_TEST_OUTBOX): nothing is sent", "unset the variable to send")]
    if settings.relay is True or isinstance(settings.relay, str):
        sends = "a relay sends; the process itself, while the relay does not accept events"
    elif manager:
        sends = "a manager sends; the process itself, while the manager does not accept events"
    elif host.threads:
        sends = "a background thread of each process sends"
    else:
        sends = "each call sends"
    if settings.spool:
        waits = "events wait in files, and survive whatever is killed"
    elif host.shared_memory:
        waits = "events wait in memory, and survive a killed process while another of its family lives"
    else:
        waits = "events wait in private memory, and are lost if their process is killed"
    return [ok("mode", f"{sends}; {waits}")]
