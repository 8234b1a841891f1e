"""Relays of the tests: a runtime directory for each test, who serves in it, and that nobody is left.

Lives here: where the relays of one test are, starting one by hand, asking one how it is. Never here: what is right.

A relay that was started for clients is in nobody's process group. It is found by its command line, which holds the path
of its socket, and so the directory of its test.
"""

from __future__ import annotations

import contextlib
import json
import socket
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any, Iterator

import psutil
import pytest
from harness import DEADLINE, Program, environment, eventually
from senders import lent, run_to_end, serving

from letterapp._relay import protocol

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


def greet(sock: socket.socket, key: str, url: str, wants: str = protocol.EVENTS) -> socket.socket:
    """Get to know a relay, as a process does; `_protocol.Refused` if it does not want us."""
    caller = protocol.Caller(key, url, wants)
    sock.sendall(caller.hello)
    with sock.makefile("rb") as lines:  # while it is open, closing the socket does not close the connection
        challenge = lines.readline()
    sock.sendall(caller.answer(challenge))
    return sock


class Door:
    """The relay's end of a socket, in the hands of a test: who comes is challenged at once, for which it waits.

    What a process says after that, its proof first, is left in its connection.
    """

    def __init__(self, path: str, key: str, url: str) -> None:
        self._new = lambda: protocol.Callee(key, url)
        self._changed = threading.Condition()
        self._known: list[tuple[socket.socket, Any]] = []  # challenged, the last to come last
        self._all: list[socket.socket] = []
        self._taken = 0
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(path)
        self.listener.listen(8)
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                sock = self.listener.accept()[0]
            except OSError:
                return  # it is closed
            self._all.append(sock)
            callee = self._new()
            hello = b""
            while not hello.endswith(protocol.END):
                try:
                    more = sock.recv(1)
                except OSError:
                    more = b""
                if not more:
                    break
                hello += more
            else:
                with self._changed:
                    self._known.append((sock, callee))
                    self._changed.notify_all()
                    try:
                        sock.sendall(callee.hear(hello)[0])
                    except OSError:
                        pass  # it has gone

    def accept(self, timeout: float = DEADLINE) -> socket.socket:
        """The next one who was challenged, and has proved to have the key."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self._known) > self._taken, timeout)
            sock, callee = self._known[self._taken]
            self._taken += 1
        sock.settimeout(DEADLINE)
        assert callee.hear(line_from(sock)) == (b"", protocol.EVENTS)
        return sock

    def last(self) -> socket.socket | None:
        """The last one who was challenged. What it said may not have come."""
        with self._changed:
            return self._known[-1][0] if self._known else None

    def has_another(self) -> bool:
        with self._changed:
            return len(self._known) > self._taken

    def hang_up(self) -> None:
        with self._changed:
            for sock in self._all:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)  # the thread may wait for what it says
                sock.close()
            self._all.clear()
            self._known.clear()
            self._taken = 0

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)  # which wakes the thread
        self.hang_up()
        self._thread.join(DEADLINE)
        self.listener.close()
        self.hang_up()


def line_from(sock: socket.socket) -> bytes:
    """The next line, and nothing of what follows it."""
    heard = b""
    while not heard.endswith(protocol.END):
        more = sock.recv(1)
        assert more, heard
        heard += more
    return heard


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
        return run_to_end(self.command_line(*options), self.api.url, key)

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
        return serving(command, environment(self.api.url, **env), self.path)


# For all tests of a module that imports it: so it is older than their clients, and outlives them.
@pytest.fixture(name="runtime", autouse=True)
def own_runtime(letter_api: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Runtime]:
    yield from lent(Runtime(letter_api), monkeypatch)
