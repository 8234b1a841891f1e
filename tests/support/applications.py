"""The applications of docs/examples/frameworks, run as their users run them, and what must be true at their end.

Responsible for: a copy of the example, its environment, requests to it, the events that must have arrived. Not
responsible for: how each framework is started and stopped.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import sys
from http.client import HTTPException
from pathlib import Path
from typing import Callable, Iterator, Sequence

import psutil
import pytest
from harness import DEADLINE, PROGRAMS, ROOT, Finished, Program, WebServer, environment, eventually, get

from letterapp.testing import IngestionServer
from stress.ports import free_port

EXAMPLES = ROOT / "docs" / "examples" / "frameworks"
LATE_FLUSH = PROGRAMS / "late_flush"  # see the module in it
# A framework that logs all that there is, as aiohttp does in its debug mode, shows the client's DEBUG lines too.
_COMPLAINT = re.compile(r"Traceback|Exception ignored|^letterapp:|(?:WARNING|ERROR).*letterapp", re.MULTILINE)


def installed(command: str) -> str:
    """The path of a console script of the running Python's environment."""
    return str(Path(sys.executable).parent / command)


class Application:
    """A running example. Requests to it, and the numbers of the orders that they track.

    Its property `number` tells one event from the other: an application tracks "Order Completed" with it.
    """

    def __init__(self, program: Program, directory: Path, api: IngestionServer, port: int = 0) -> None:
        self.program = program
        self.directory = directory
        self.answered: list[int] = []  # the orders that the application has confirmed
        self._api = api
        self._port = port
        self._next = 0

    @property
    def output(self) -> str:
        return self.program.output

    def wait_for(self, text: str, count: int) -> None:
        """Wait until it has printed ``text`` so often. Some servers hang if they are stopped before they are ready."""
        assert eventually(lambda: self.output.count(text), lambda found: found >= count) >= count, self.output

    def order(self, path: str = "/order/{}") -> bool:
        """One request that tracks an event; False if it was not answered, as while a server reloads."""
        number, self._next = self._next, self._next + 1
        try:
            get(f"http://127.0.0.1:{self._port}{path.format(number)}")
        except (OSError, HTTPException):
            return False
        self.answered.append(number)
        return True

    def orders(self, count: int, path: str = "/order/{}") -> None:
        """As many requests, all of which must be answered."""
        for _ in range(count):
            assert self.order(path), self.output

    def arrived(self) -> list[int]:
        """The numbers of the orders that arrived, one for each messageId, as the API counts them."""
        items = {item["messageId"]: item for item in list(self._api.events)}.values()
        return sorted(item["properties"]["number"] for item in items if item["event"] == "Order Completed")

    def others(self) -> list[str]:
        """The names of the other events that arrived."""
        items = {item["messageId"]: item for item in list(self._api.events)}.values()
        return sorted(item["event"] for item in items if item["event"] != "Order Completed")

    def waits(self) -> None:
        """Nothing has been sent yet: it is the end of a process that has to do it."""
        assert self.arrived() == [], self.output

    def workers(self, command_has: str = "") -> list[psutil.Process]:
        """The processes that the program has started, those of them with a word in their command line."""
        found = []
        for process in self.program.descendants():
            try:
                if command_has in " ".join(process.cmdline()) and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:
                pass
        return found

    def reload(self, name: str, old: Sequence[psutil.Process]) -> None:
        """Change a source file as an editor does, and wait until its reloader has ended the ``old`` processes."""
        path = self.directory / name
        for _ in range(10):  # a reloader does not see what changes before its first look at the files
            path.write_text(path.read_text() + "\n# changed\n")
            if ended(old, DEADLINE / 10):
                return
        raise AssertionError(self.output)

    # Its end.

    def stop(self, number: int = signal.SIGTERM, code: int | None = None) -> Finished:
        """Signal the program's first process, as a service manager does, and wait for all its processes to end."""
        self.program.signal(number)
        return self.ended(code)

    def ctrl_c(self, code: int | None = None) -> Finished:
        """Interrupt all processes, as a terminal does, and wait for them to end."""
        self.program.signal_group(signal.SIGINT)
        return self.ended(code)

    def ended(self, code: int | None = None) -> Finished:
        finished = self.program.finish()
        assert not self.program.left_behind(), finished
        assert code is None or finished.code == code, finished
        assert not _COMPLAINT.search(finished.output), finished
        return finished

    def all_arrived(self, *, once: bool = True) -> None:
        """Each confirmed order has arrived, and is counted once. With ``once`` none was sent twice either.

        An order that was not confirmed may have arrived, if its answer was cut off.
        """
        arrived = self.arrived()
        assert len(arrived) == len(set(arrived)), self.output
        assert self.answered and set(self.answered) <= set(arrived) <= set(range(self._next)), (arrived, self.output)
        assert not once or self._api.repeated() == {}, self.output


Start = Callable[..., Application]


@pytest.fixture(name="start")
def start_examples(letter_api: IngestionServer, tmp_path: Path) -> Iterator[Start]:
    """Starts examples, and ends what is left of them.

    ``start(example, *command)`` runs a command in a copy of docs/examples/frameworks/EXAMPLE, by the running Python if
    it begins with an option or a ``.py``. ``{port}`` in it is replaced by a free port, and makes it a server, which
    listens when this returns. With ``listens`` it is a server that takes the port from the environment variable PORT.
    Events wait for the end of a process; with ``late=False`` they are sent after a tenth of a second. ``without`` is a
    text that is taken out of the example's files first, to show what it is for; ``instead`` is put in its place.
    """
    running: list[Program] = []

    def start(
        example: str,
        *command: str,
        late: bool = True,
        listens: bool = False,
        without: str = "",
        instead: str = "",
        **env: str,
    ) -> Application:
        directory = tmp_path / example
        if not directory.exists():
            copy(example, directory, without, instead)
        port = free_port() if listens or any("{port}" in word for word in command) else 0
        line = [word.replace("{port}", str(port)) for word in command]
        line = [sys.executable, *line] if line[0].startswith("-") or line[0].endswith(".py") else line
        env = {"LETTER_BASE_URL": letter_api.url, "LETTER_API_KEY": "lt_test_key", "PORT": str(port), **env}
        running.append(program(line, environment(letter_api.url, **env), directory, port, late))
        return Application(running[-1], directory, letter_api, port)

    yield start
    letter_api.closing.set()
    for one in running:
        one.__exit__()


def copy(example: str, directory: Path, without: str = "", instead: str = "") -> None:
    shutil.copytree(EXAMPLES / example, directory, ignore=shutil.ignore_patterns("__pycache__", "*.sqlite3"))
    if without:
        files = [path for path in directory.rglob("*.*") if without in path.read_text()]
        assert files, f"{without!r} is not in the example"
        for path in files:
            path.write_text(path.read_text().replace(without, instead))


def program(line: Sequence[str], env: dict[str, str], directory: Path, port: int, late: bool) -> Program:
    # Without the tests' own directories: an example's `celery_app` is not a module of theirs.
    path = [str(ROOT), *([str(LATE_FLUSH)] if late else [])]
    env = {**env, "PYTHONPATH": os.pathsep.join(path)}
    return WebServer(line, env, directory, port) if port else Program(line, env, directory)


def ended(processes: Sequence[psutil.Process], timeout: float = DEADLINE) -> bool:
    """Wait until none of these processes runs any more; False after ``timeout`` seconds."""
    return not eventually(lambda: [one for one in processes if runs(one)], lambda rest: not rest, timeout)


def runs(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
