"""The resources of a process: the slot of its client, descriptors, mappings, memory."""

from __future__ import annotations

import os
from typing import Any

from letterapp import Letter


def kind(letter: Letter) -> str:
    found: str = letter.stats()["memory"]
    return found


def slot(letter: Any) -> int | None:
    """The number of the slot that a client's queue lies in, in this process. None if that memory is not shared."""
    own, memory = letter._delivery._queue._ring.slot, letter._delivery._recovery._backends._backends[0]
    return (own.base - memory.first) // memory.stride if own.kind == "shared" else None


def descriptors() -> dict[int, str]:
    """What is open, by number."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink("/proc/self/fd/" + name)
        except OSError:
            pass  # the one of the directory itself
    return found


def lock_files() -> list[int]:
    return [number for number, what in descriptors().items() if what.startswith("/memfd:letterapp")]


def mappings() -> int:
    with open("/proc/self/maps") as maps:
        return len(maps.readlines())


def kilobytes(line: str) -> int:
    """A figure of /proc/self/status."""
    with open("/proc/self/status") as status:
        return next(int(text.split()[1]) for text in status if text.startswith(line + ":"))
