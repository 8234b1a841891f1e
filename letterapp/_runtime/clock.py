"""The clock for all deadlines.

Responsible for: `monotonic`, `FOREVER`. Not responsible for: the time of day in events, which a program's tests may
replace.
"""

from __future__ import annotations

import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable


FOREVER = float("inf")  # seconds


def monotonic(read: Callable[[], float] = time.monotonic) -> float:
    """`time.monotonic`, in seconds, which continues to run when a program's tests freeze the time.

    freezegun replaces each `time.monotonic` that is an attribute of a module, so here it is a default argument.
    """
    return read()
