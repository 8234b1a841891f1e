"""Managers of the tests: a directory for the sockets of each test, who serves there, and that nobody is left.

Responsible for: where a test's managers are, finding their processes, keeping one by hand. Not responsible for: what is
right.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any, Iterator

import psutil
import pytest
from harness import DEADLINE, Program, environment, eventually
from senders import lent, run_to_end, serving

KEY = "test-key"
SECRET = b"a secret of the tests"


class Directory:
    """Where the managers of one test lie. Short, because the path of a socket is."""

    def __init__(self, api: Any) -> None:
        self.api = api
        self.path = Path(tempfile.mkdtemp(prefix="lm-", dir="/tmp"))
        self.socket = str(self.path / "own" / "m.sock")  # for a manager that a test keeps itself
        self.authkey_file = self.path / "authkey"
        self.authkey_file.write_bytes(SECRET + b"\n")
        self.authkey_file.chmod(0o600)

    def processes(self) -> list[psutil.Process]:
        """The managers' processes: those that were started carry this directory in their environment."""
        found = []
        for process in psutil.process_iter(["cmdline"]):
            command = process.info["cmdline"] or []
            try:
                if "--for-manager" in command or "--manager" in command:
                    where = process.environ().get("XDG_RUNTIME_DIR", "")
                    if str(self.path) in (where, *(part[: len(str(self.path))] for part in command)):
                        found.append(process)
            except psutil.Error:
                pass
        return found

    def left_behind(self, timeout: float = DEADLINE) -> list[psutil.Process]:
        found: list[psutil.Process] = eventually(self.processes, lambda found: not found, timeout)
        return found

    def keep(self, *options: str, address: str = "", **env: str) -> Program:
        """A manager's server of the test's own, which serves at ``address`` when this returns."""
        command = self.command_line("--manager", address or self.socket, *options)
        return serving(command, environment(self.api.url, LETTER_API_KEY=KEY, **env), self.path)

    def command_line(self, *options: str) -> list[str]:
        python = [sys.executable, "-m", "letterapp", "relay", "--base-url", self.api.url]
        return [*python, "--authkey-file", str(self.authkey_file), *options]

    def command(self, *options: str, key: str = KEY) -> Any:
        """Run ``python -m letterapp relay`` with ``options`` to its end."""
        return run_to_end(self.command_line(*options), self.api.url, key)

    def status(self, address: str = "") -> dict[str, Any]:
        """What ``--status`` prints of the kept one."""
        status: dict[str, Any] = json.loads(self.command("--manager", address or self.socket, "--status").stdout)
        return status


# For all tests of a module that imports it: so it is older than their clients, and outlives them.
@pytest.fixture(name="directory", autouse=True)
def own_directory(letter_api: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Directory]:
    yield from lent(Directory(letter_api), monkeypatch)
