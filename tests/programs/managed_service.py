"""Common code of gunicorn's applications with a manager: two clients, and a line of output after each call.

`late` keeps its events until the process ends, and `prompt` hands each over at once. With TEST_FLUSH a call counts when
its events are settled.
"""

from __future__ import annotations

import os
import signal
from typing import Any

from programs.managed_clients import ManagedLetter, say

options: dict[str, Any] = {"exit_timeout": 30, "timeout": 30}
if "TEST_SIGNALS" in os.environ:
    options["exit_signals"] = (signal.SIGTERM,)
letters = {
    "late": ManagedLetter(flush_interval=600, flush_at=10_000, **options),
    "prompt": ManagedLetter(flush_interval=0.01, **options),
}


def track(who: str, serial: int) -> None:
    for name, letter in letters.items():
        letter.track(f"{who}-{name}", "Worked", {"serial": serial})
        if "TEST_FLUSH" not in os.environ or letter.flush():
            say(f"tracked {who}-{name} {serial} in {os.getpid()}")


track("import", os.getpid())
