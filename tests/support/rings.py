"""A ring's memory that a test can inspect and damage, and what another process would find in it.

Responsible for: `Slot`, and helpers to fill, drain and inspect a ring. Not responsible for: what is right.
"""

from __future__ import annotations

import struct
from typing import Any
from zlib import crc32

from letterapp._storage.ring import UNIT, WORDS, Ring

WRAP = b"\xff\xff\xff\xff"


class Slot:
    """A piece of memory for a ring: a `ring.Slot`."""

    kind = "private"
    is_durable = False
    checked = True

    def __init__(self, capacity: int, in_flight_size: int) -> None:
        self.memory: Any = bytearray(capacity + in_flight_size)
        self.words: Any = [0] * WORDS
        self.base = 0
        self.capacity = capacity
        self.in_flight_size = in_flight_size

    def copy(self) -> Slot:
        """What another process sees."""
        other = Slot(self.capacity, self.in_flight_size)
        other.memory[:] = self.memory
        other.words[:] = self.words
        return other

    def is_own(self) -> bool:
        return True

    def has_successor(self) -> bool:
        return False

    def mark_exiting(self, exiting: bool) -> None:
        pass

    def release(self) -> None:
        pass

    def mark_corrupt(self) -> None:
        pass

    def trim(self, start: int, end: int) -> None:
        self.memory[start:end] = bytes(end - start)

    def sync(self) -> None:
        pass


def drain(ring: Ring, items: int = 3, size: int = 1000) -> list[bytes]:
    """All that waits, as a sender gets it."""
    events: list[bytes] = []
    for _ in range(1000):
        batch = list(ring.take(items, size))
        if not batch:
            assert ring.is_empty() and len(ring) == 0 and ring.size == 0
            return events
        assert ring.settle() == batch
        events += batch
    raise AssertionError("the ring does not become empty")


def found(slot: Slot) -> tuple[list[bytes], str]:
    """The events that would be found if the process were killed now, and what would be reported as wrong."""
    ring, wrong = Ring.recovered_from(slot.copy())
    count, size = len(ring), ring.size
    events = drain(ring)
    assert (count, size) == (len(events), sum(map(len, events)))
    return events, wrong


def record(event: bytes) -> bytes:
    data = struct.pack("<II", len(event), crc32(event)) + event
    return data + bytes(-len(data) % UNIT)


def numbered(serial: int, size: int = 8) -> bytes:
    return (b"%08d" % serial).ljust(size, b"x")


def filled(ring: Ring, *sizes: int, start: int = 0) -> list[bytes]:
    """Append events of these sizes; return them."""
    events = [numbered(serial, size) for serial, size in enumerate(sizes, start)]
    assert all([ring.append(event) for event in events])
    return events


def cover(start: int, end: int) -> int:
    """The word that covers the records from ``start`` to ``end``."""
    return start // UNIT << 32 | end // UNIT
