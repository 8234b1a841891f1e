"""Managers of the tests: a separate directory for each test, the processes that serve in it, their clients.

Responsible for: starting managers and finding their processes, ending those that a test has left, what the tests of
managers and of listeners do alike. Not responsible for: what is right.
"""

from __future__ import annotations

import json
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any, Callable, Iterator

import psutil
import pytest
from harness import DEADLINE, Program, environment, eventually, processes_with
from senders import lent, run_to_end, serving

from letterapp import Letter, LetterError
from letterapp.relay import SenderManager

KEY = "test-key"
SECRET = b"a secret of the tests"
SLOW: dict[str, Any] = {"flush_interval": 3600, "flush_at": 10**6}  # nothing leaves before a flush


def command_of(program: Callable[..., object], *arguments: object) -> list[str]:
    """The command that runs a function of ``tests/programs``."""
    return [sys.executable, "-m", program.__module__, program.__name__, *map(str, arguments)]


class Directory:
    """The directory of one test's managers. Its path is short, because that of a socket has to be."""

    def __init__(self, api: Any) -> None:
        self.api = api
        self.path = Path(tempfile.mkdtemp(prefix="lm-", dir="/tmp"))
        self.socket = str(self.path / "own" / "m.sock")  # of a manager that the test starts itself, by the command line
        self.authkey_file = self.path / "authkey"
        self.authkey_file.write_bytes(SECRET + b"\n")
        self.authkey_file.chmod(0o600)

    def processes(self) -> list[psutil.Process]:
        """The managers' processes: those with this directory in their command line or environment."""
        found = []
        for process, command in processes_with("--for-manager", "--manager"):
            try:
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
        """Start a manager's server by the command line; it serves at ``address`` when this returns."""
        command = self.command_line("--manager", address or self.socket, *options)
        return serving(command, environment(self.api.url, LETTER_API_KEY=KEY, **env), self.path)

    def command_line(self, *options: str) -> list[str]:
        python = [sys.executable, "-m", "letterapp", "relay", "--base-url", self.api.url]
        return [*python, "--authkey-file", str(self.authkey_file), *options]

    def command(self, *options: str, key: str = KEY) -> Any:
        """Run ``python -m letterapp relay`` with ``options`` to its end."""
        return run_to_end(self.command_line(*options), self.api.url, key)

    def status(self, address: str = "") -> dict[str, Any]:
        """What ``--status`` prints of the server that `keep` has started."""
        status: dict[str, Any] = json.loads(self.command("--manager", address or self.socket, "--status").stdout)
        return status


# For all tests of a module that imports it: so it is set up before their clients, and torn down after them.
@pytest.fixture(name="directory", autouse=True)
def own_directory(letter_api: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Directory]:
    yield from lent(Directory(letter_api), monkeypatch)


@pytest.fixture(name="manager")
def own_manager(letter_api: Any) -> Iterator[Callable[..., SenderManager]]:
    """Starts managers, and shuts them down after the test."""
    made: list[SenderManager] = []

    def new(**options: Any) -> SenderManager:
        made.append(SenderManager(KEY, letter_api.url, **options))
        made[-1].start()
        return made[-1]

    yield new
    letter_api.closing.set()
    for one in made:
        one.shutdown()


def work(letter: Letter, count: int, who: str = "program", start: int = 0) -> None:
    """Track ``count`` events that carry who tracked them."""
    for serial in range(start, start + count):
        letter.track(who, "Worked", {"serial": serial})


def balanced(letter: Letter) -> dict[str, Any]:
    """The client's counters, which have to add up."""
    stats = letter.stats()
    assert stats["accepted"] == stats["delivered"] + sum(stats["lost"].values()) + stats["waiting"], stats
    return stats


def event(serial: int) -> bytes:
    """An event as a client encodes it."""
    fields = {
        "type": "track",
        "userId": "u",
        "event": "e",
        "messageId": f"m {serial}",
        "timestamp": "2026-01-01T00:00:00Z",
        "properties": {"serial": serial},
    }
    return json.dumps(fields).encode()


def troubles(errors: list[LetterError]) -> list[str]:
    """What was reported of a queue that could not be used. Nothing else may have been: no event is lost by that."""
    assert all(error.cause == "degraded" for error in errors), errors
    return [str(error) for error in errors]


class Suspended:
    """A client that sends nothing while events are put in, so that they make one batch."""

    def __init__(self, letter: Any) -> None:
        self._send_lock = letter._delivery._batches.lock
        self._begun, self._over = threading.Event(), threading.Event()
        self._holder = threading.Thread(target=self._hold)

    def _hold(self) -> None:
        def wait() -> None:
            self._begun.set()
            assert self._over.wait(DEADLINE)

        assert self._send_lock.run(wait, DEADLINE)

    def __enter__(self) -> None:
        self._holder.start()
        assert self._begun.wait(DEADLINE)

    def __exit__(self, *_: Any) -> None:
        self._over.set()
        self._holder.join(DEADLINE)
