"""Common code of the applications in the relay's server tests: a client, and a line of output after each call.

They take the client's options from the environment, as JSON in ``TEST_CLIENT``.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from types import FrameType

from letterapp import Letter
from programs.common import be_patient

be_patient()
options = {"exit_timeout": 30, "timeout": 30, **json.loads(os.environ["TEST_CLIENT"])}
letter = Letter("test-key", os.environ["TEST_API"], **options)


def threads_of_letterapp() -> int:
    """How many threads run a function of the library as their first one."""
    found = 0
    for running in sys._current_frames().values():
        frame: FrameType = running
        while frame.f_back is not None:
            frame = frame.f_back
        found += f"{os.sep}letterapp{os.sep}_" in frame.f_code.co_filename
    return found


def say(line: str) -> None:
    """Print in one piece and on a separate line, whatever other processes write to the same file."""
    os.write(1, f"\n{line}\n".encode())


def track(who: str, serial: int) -> None:
    letter.track(who, "Worked", {"serial": serial})
    say(f"tracked {who} {serial} in {os.getpid()}")
    if serial % 4 == 0:
        stats = letter.stats()
        own = stats["accepted"] - stats["relayed"]
        say(f"how: {stats['mode']}, {own} own, {threads_of_letterapp()} threads")


def stay() -> None:
    """Wait until the test opens its gate."""
    with socket.create_connection(("127.0.0.1", int(os.environ["TEST_GATE"]))) as gate:
        gate.recv(1)
