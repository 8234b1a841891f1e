"""Relays of the tests: a runtime directory for each test, who serves in it, and that nobody is left.

Lives here: where the relays of one test are, starting one by hand, asking one how it is. Never here: what is right.

A relay that was started for clients is in nobody's process group. It is found by its command line, which holds the path
of its socket, and so the directory of its test.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Iterator

import psutil
import pytest
from harness import DEADLINE, Program, environment, eventually

KEY = "test-key"  # what `make` and the programs' clients have

# For programs: how the relays are that their processes started, in JSON.
STATUSES = """
import json, subprocess

PYTHON = sys.executable

def statuses():
    command = [PYTHON, '-m', 'letterapp', 'relay', '--base-url', API, '--status']
    env = {**os.environ, 'LETTER_API_KEY': 'test-key'}
    said = subprocess.run(command, env=env, stdout=subprocess.PIPE, timeout=60).stdout
    return [json.loads(line) for line in said.splitlines()]
"""


class Runtime:
    """The directory of one test. Short, because the path of a socket is."""

    def __init__(self, api: Any) -> None:
        self.api = api
        self.path = Path(tempfile.mkdtemp(prefix="la-", dir="/tmp"))
        self.socket = str(self.path / "own" / "r.sock")  # for a relay that a test keeps itself

    def relays(self) -> list[psutil.Process]:
        """Who serves here, or is about to. A stopped one counts; one that is dead has no command line any more."""
        found = []
        for process in psutil.process_iter(["cmdline"]):
            command = process.info["cmdline"] or []
            if "relay" in command and any(part.startswith(str(self.path)) for part in command):
                found.append(process)
        return found

    def relay(self) -> psutil.Process:
        """The one that serves here."""
        found: list[psutil.Process] = eventually(self.relays, lambda found: len(found) == 1)
        assert len(found) == 1, found
        return found[0]

    def left_behind(self, timeout: float = DEADLINE) -> list[psutil.Process]:
        """Who is still here after ``timeout`` seconds."""
        found: list[psutil.Process] = eventually(self.relays, lambda found: not found, timeout)
        return found

    def statuses(self, *options: str, key: str = KEY) -> list[dict[str, Any]]:
        """What ``python -m letterapp relay --status`` prints."""
        said = self.command("--status", *options, key=key)
        return [json.loads(line) for line in said.stdout.splitlines()]

    def status(self, *options: str, key: str = KEY) -> dict[str, Any]:
        (status,) = self.statuses(*options, key=key)
        return status

    def command(self, *options: str, key: str = KEY) -> Any:
        """Run ``python -m letterapp relay`` with ``options`` to its end."""
        return subprocess.run(
            self.command_line(*options),
            env=environment(self.api.url, LETTER_API_KEY=key),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            timeout=DEADLINE,
        )

    def command_line(self, *options: str) -> list[str]:
        return [sys.executable, "-m", "letterapp", "relay", "--base-url", self.api.url, *options]

    def own_status(self) -> dict[str, Any]:
        """How the relay is that the test keeps itself."""
        return self.status("--socket", self.socket)

    def keep(self, *options: str, socket: str = "", key: str | None = KEY, **env: str) -> Program:
        """A relay of the test's own, which serves at ``socket`` when this returns."""
        if key is not None:
            env["LETTER_API_KEY"] = key
        command = self.command_line("--socket", socket or self.socket, *options)
        program = Program(command, environment(self.api.url, **env), self.path)
        has_ended = program.process.poll
        output = eventually(lambda: program.output, lambda text: "serving at" in text or has_ended() is not None)
        if "serving at" not in output:
            program.__exit__()
            raise AssertionError(f"the relay does not serve:\n{output}")
        return program

    def clear(self) -> list[psutil.Process]:
        """End who is left, by process id, and remove the directory; return who it was."""
        left = self.left_behind()
        for process in left:
            try:
                os.kill(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        shutil.rmtree(self.path)
        return left


# For all tests of a module that imports it: so it is older than their clients, and outlives them.
@pytest.fixture(name="runtime", autouse=True)
def own_runtime(letter_api: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Runtime]:
    here = Runtime(letter_api)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(here.path))
    yield here
    left = here.clear()
    assert not left, f"left behind: {left}"
