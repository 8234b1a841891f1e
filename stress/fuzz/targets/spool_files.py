"""Target `spool`: any bytes as a spool file."""

from __future__ import annotations

import os
import shutil
import tempfile
from binascii import crc32
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator

from letterapp import LetterError
from letterapp._client import settings_of
from letterapp._runtime.clock import monotonic
from letterapp._runtime.condition import Condition
from letterapp._storage.backends import Backends
from letterapp._storage.memory import PrivateMemory
from letterapp._storage.queue import BoundedQueue
from letterapp._storage.recovery import OrphanRecovery, claim_ring
from letterapp._storage.ring import UNIT
from letterapp._storage.spool import Spool
from letterapp._storage.spool_header import CHECKSUM, HEAD, HEADER, MAGIC, WORDS_AT

from ..values import Source
from .common import KEY, Run, expect

SEEDS = [bytes([127]) + bytes(24) + bytes([0, 0, 3, 0, 0, 0, 1, 0]) + b"\x05event\x06second\x05third"]
_BOUNDS = {"max_queue_bytes": 4000, "max_queue_events": 20, "max_batch_bytes": 2000}


@contextmanager
def spool() -> Iterator[Run]:
    """An unreadable file is set aside or left alone, and reported; no exception escapes, and no file grows."""
    directory = Path(tempfile.mkdtemp(prefix="letterapp-fuzz-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
    settings = settings_of(api_key=KEY.reveal(), spool=str(directory), spool_max_bytes=1 << 20, **_BOUNDS)
    reports: list[LetterError] = []
    names = Spool(settings, reports.append)

    def run(data: bytes) -> None:
        reports.clear()
        path = directory / f"{names._prefix}{0:016x}.ring"
        content = spool_file(data, names._key)
        path.write_bytes(content)
        path.chmod(0o600)
        backends = Backends([Spool(settings, reports.append), PrivateMemory(settings)], reports.append)
        queue = BoundedQueue(claim_ring(backends), 20, 4000, 5, False, monotonic)
        recovery = OrphanRecovery(queue, backends, reports.append, monotonic, Condition())
        expect(queue.kind == "spool", "one invalid file does not prevent the use of the spool", list(map(str, reports)))
        recovery.recover()
        queue.put(b"{}")
        taken: list[bytes] = []
        for _ in range(10_000):
            batch = queue.take(100, 2000)
            if not batch:
                break
            taken += batch
            queue.settle()
            recovery.release_drained()
        recovery.report_losses()
        expect(
            taken[-1:] == [b"{}"] and queue.is_empty(),
            "all readable events are sent in finite time",
            taken,
        )
        expect(all(event in content for event in taken[:-1]), "nothing is sent that was not in the file", taken)
        for report in reports:
            expect(report.cause in ("damaged", "degraded"), "a report names its cause", report)
            expect("cannot be searched for" not in str(report), "no search for orphaned events fails", report)
        queue.release_empty_slot()
        remaining = os.listdir(directory)
        if path.name + ".damaged" in remaining or path.name in remaining:
            expect(reports, "an unread file is reported", remaining)
        expect(len(remaining) <= 1, "at most one file remains", remaining)
        for name in remaining:
            os.unlink(directory / name)

    try:
        yield run
    finally:
        shutil.rmtree(directory)


def spool_file(data: bytes, key: bytes) -> bytes:
    """A file made from ``data``: the bytes as they are, or with those parts of a valid header that its flags select."""
    source = Source(data)
    flags = source.byte()
    if not flags & 1:
        return source.rest()
    capacity, in_flight = (6352, 3616) if flags & 2 else (source.number(4), source.number(4))
    header = HEADER if flags & 4 else source.number(2)
    head = HEAD.pack(MAGIC, 1 if flags & 8 else source.byte(), header, capacity, in_flight, key)
    words = source.take(3 * UNIT)
    if flags & 16:  # offsets that mostly point into the file
        numbers = [source.number(2) % 1000 for _ in range(4)]
        words = b"".join(number.to_bytes(4, "little") for number in numbers).ljust(3 * UNIT, b"\0")
    body = b""
    while not source.is_over() and len(body) < 20_000:
        if flags & 32:
            event = source.some()
            body += len(event).to_bytes(4, "little") + crc32(event).to_bytes(4, "little") + event
            body += bytes(-len(event) % UNIT)
        else:
            body += source.rest()
    start = head + CHECKSUM.pack(crc32(head))
    start = (start.ljust(WORDS_AT, b"\0") + words).ljust(HEADER, b"\0")
    size = HEADER + capacity + in_flight
    whole = start + body
    return whole[:size].ljust(size if size < 100_000 else len(whole), b"\0") if flags & 64 else whole
