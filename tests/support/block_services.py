"""What the programs of the documents' code blocks need beside them: a relay, or a manager, that runs as a service."""

from __future__ import annotations

import atexit
import subprocess
import sys
from pathlib import Path


def relay(*arguments: str) -> None:
    """Start ``python -m letterapp relay`` with ``arguments``; return when it serves. It ends with this process."""
    process = subprocess.Popen(
        [sys.executable, "-m", "letterapp", "relay", *arguments], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
    )
    atexit.register(process.wait, 30)
    atexit.register(process.terminate)
    assert process.stderr is not None
    assert process.stderr.readline(), "it does not serve"


def authkey(path: str) -> str:
    Path(path).write_text("0123456789abcdef0123456789abcdef")
    Path(path).chmod(0o600)
    return path
