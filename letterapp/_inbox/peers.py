"""Which process is at the other end of a connection from this machine.

Responsible for: the process ID and a short name, from ``/proc`` on Linux. Elsewhere, and for the processes of other
users, nothing is known. Not responsible for: connections.

A name has no arguments of the process, since these may contain passwords.
"""

from __future__ import annotations

import os
import re
import sys
from typing import NamedTuple

_PYTHON = re.compile(r"(python|pypy)[\d.]*(\.exe)?$")
_MAX_NAME = 80
_MAX_KNOWN = 256


class Peer(NamedTuple):
    pid: int | None = None
    name: str = ""


class Peers:
    """Finds processes, first among those that it found before. Used by one thread at a time."""

    def __init__(self) -> None:
        self._known: dict[int, None] = {}  # process IDs, the latest last

    def find(self, port: int, server_port: int) -> Peer:
        """The process whose socket is bound to ``port`` and connected to ``server_port``. Never raises.

        Takes some milliseconds: it reads the descriptors of many processes.
        """
        if sys.platform != "linux":
            return Peer()
        try:
            inode = _inode(port, server_port)
            pid = self._holder(f"socket:[{inode}]") if inode else None
            if pid is None:
                return Peer()
            self._known.pop(pid, None)
            self._known[pid] = None
            if len(self._known) > _MAX_KNOWN:
                del self._known[next(iter(self._known))]
            return Peer(pid, process_name(pid))
        except (OSError, ValueError):
            return Peer()

    def _holder(self, link: str) -> int | None:
        tried = set()
        for pid in [*reversed(list(self._known)), *_newest_first()]:
            if pid not in tried:
                tried.add(pid)
                if _holds(pid, link):
                    return pid
                self._known.pop(pid, None) if not os.path.isdir(f"/proc/{pid}") else None
        return None


def _inode(port: int, server_port: int) -> str | None:
    """The inode of the peer's socket, from the kernel's table."""
    local, remote = f":{port:04X}", f":{server_port:04X}"
    with open("/proc/net/tcp") as table:
        for line in table:
            fields = line.split(None, 10)
            if fields[1].endswith(local) and fields[2].endswith(remote) and fields[9] != "0":
                return fields[9]
    return None


def _newest_first() -> list[int]:
    return sorted((int(name) for name in os.listdir("/proc") if name.isdigit()), reverse=True)


def _holds(pid: int, link: str) -> bool:
    folder = f"/proc/{pid}/fd"
    try:
        descriptors = os.listdir(folder)
    except OSError:  # it has ended, or belongs to another user
        return False
    for descriptor in descriptors:
        try:
            if os.readlink(f"{folder}/{descriptor}") == link:
                return True
        except OSError:
            pass
    return False


def process_name(pid: int) -> str:
    """What a person would call the process: its script, module or program. Empty if it has ended."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = file.read(4096).decode("utf-8", "replace").split("\0")
        if not words[0]:
            with open(f"/proc/{pid}/comm") as file_:
                words = [file_.read().strip()]
    except OSError:
        return ""
    return _name(words)[:_MAX_NAME]


def _name(words: list[str]) -> str:
    path = words[0].split(" ")[0]
    program = os.path.basename(path) if "/" in path else words[0]
    if not _PYTHON.match(program):
        return program.strip()  # also a title that the process has given itself: "gunicorn: worker [app]"
    arguments = iter(words[1:])
    for word in arguments:
        if word == "-m":
            return next(arguments, program)
        if word == "-c":
            code = next(arguments, "")
            return next((name for mark, name in _HELPERS.items() if mark in code), f"{program} -c")
        if word in ("-W", "-X"):
            next(arguments, None)
        elif word and not word.startswith("-"):
            return os.path.basename(word)
    return program


# What a part of the code of `python -c` stands for.
_HELPERS = {
    "letterapp.__main__": "letterapp relay",
    "multiprocessing.spawn": "multiprocessing.spawn",
    "multiprocessing.forkserver": "multiprocessing.forkserver",
}
