"""The clock by which everything here waits.

Responsible for: `monotonic`. Not responsible for: the time of day, which events carry, and which a program may well
replace.
"""

from __future__ import annotations

import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable


def monotonic(read: Callable[[], float] = time.monotonic) -> float:
    """Seconds, to make deadlines of: they go on while a program's tests have the clock stand still.

    freezegun goes through all modules, and puts a function of its own in the place of each `time.monotonic` that is an
    attribute there. So this one is an argument.
    """
    return read()
