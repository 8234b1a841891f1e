"""Common code of the tests of relays and managers: the one process that sends for others.

Responsible for: running the command, waiting until it serves, ending what a test has left. Not responsible for: which
processes are a test's, what is right.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any, Iterator

import psutil
import pytest
from harness import DEADLINE, Program, environment, eventually


def run_to_end(command: list[str], api_url: str, key: str) -> Any:
    return subprocess.run(
        command,
        env=environment(api_url, LETTER_API_KEY=key),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        timeout=DEADLINE,
    )


def serving(command: list[str], env: dict[str, str], folder: Path) -> Program:
    """The program that ``command`` starts, when it says that it serves."""
    program = Program(command, env, folder)
    has_ended = program.process.poll
    output = eventually(lambda: program.output, lambda text: "serving at" in text or has_ended() is not None)
    if "serving at" not in output:
        program.__exit__()
        raise AssertionError(f"it does not serve:\n{output}")
    return program


def clear(here: Any) -> list[psutil.Process]:
    """End who is left of a test's senders, by process id, and remove their directory; return who it was."""
    left: list[psutil.Process] = here.left_behind()
    for process in left:
        try:
            os.kill(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    shutil.rmtree(here.path)
    return left


def lent(here: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """``here`` as the place of one test's senders; and no process is left in it."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(here.path))
    yield here
    left = clear(here)
    assert not left, f"left behind: {left}"
