"""A slot in memory (`letterapp._storage.memory`) whose owner has ended, and the checks of its contents."""

from __future__ import annotations

from letterapp._storage.memory import MemorySlot
from letterapp._storage.ring import WORDS, Ring


def test_a_record_that_the_in_flight_area_could_not_hold_is_damage() -> None:
    memory = bytearray(10_000)
    words = memoryview(memory)[: 8 * WORDS].cast("Q")
    slot = MemorySlot(memory, words, 8 * WORDS, 4096, 3000)
    assert Ring(slot).append(b"x" * 2000)
    slot.in_flight_size = 1024
    ring, wrong = Ring.recovered_from(slot)
    assert "does not fit" in wrong and ring.unreadable == 1 and ring.is_empty()
