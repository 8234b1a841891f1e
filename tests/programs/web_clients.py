"""The clients of the applications for web servers, and common code of these applications.

There are two, because a server can go wrong in two ways. `late` keeps its events until the process ends, so they show
what that end does. `prompt` sends each at once, so the parent's sender was alive at a fork, with a connection open.
TEST_ENDS says what ends them: "lifespan", "exit_signals NAME ...", or nothing of theirs.
"""

from __future__ import annotations

import os
import signal
from typing import Any

from programs.common import make

IMPORTED = 3  # events that each process tracks here with each client; support/webapps.py expects as many

ends = os.environ.get("TEST_ENDS", "")
options: dict[str, Any] = {"exit_timeout": 30, "timeout": 30}
if ends.startswith("exit_signals"):
    options["exit_signals"] = [getattr(signal, name) for name in ends.split()[1:]]
late = make(flush_interval=600, flush_at=10_000, **options)
prompt = make(flush_interval=0, **options)


def note(who: str, serial: int) -> None:
    late.track(f"{who}, late", "Worked", {"serial": serial})
    prompt.track(f"{who}, prompt", "Worked", {"serial": serial})


def ready() -> None:
    os.write(1, f"ready {os.getpid()}\n".encode())  # in one piece, whatever the other workers write


def gate() -> tuple[str, int]:
    return "127.0.0.1", int(os.environ["TEST_GATE"])


for number in range(IMPORTED):
    note(f"import {os.getpid()}", number)
