"""Random bytes that are available even if the process has no file descriptor left.

Responsible for: `random_bytes`. Not responsible for: secrets, for which `os.urandom` is used, which may fail.
"""

from __future__ import annotations

import os
import time
from itertools import count

__all__ = ["random_bytes"]

try:
    # Not `urandom`, which releases the GIL: the sender's thread would run, and each call would wait for it.
    from os import getrandom as random_bytes

    random_bytes(1)  # an old kernel or a sandbox may refuse it
except (ImportError, OSError):
    # PyPy has no such function, and its `urandom` opens a file, which fails if no descriptor is left.
    _seed = int.from_bytes(os.urandom(16), "big")
    _numbers = count()
    _ODD = 0x9E3779B97F4A7C15F39CC0605CEDC835  # 2 ** 128 over the golden ratio

    def random_bytes(size: int, flags: int = 0) -> bytes:
        """At most 16 bytes, all results different: if need be, derived from the time, the process and a counter."""
        try:
            return os.urandom(size)
        except OSError:
            now = time.time_ns() << 64 | (os.getpid() & 0xFFFFFFFF) << 32 | next(_numbers) & 0xFFFFFFFF
            return ((_seed + now) * _ODD % 2**128).to_bytes(16, "big")[:size]
