"""Programs and servers whose processes print what they have tracked, and what must be true of them at their end.

Responsible for: starting them, sending them requests, comparing what they tracked with what arrived. Not responsible
for: the applications, and how each server is stopped.
"""

from __future__ import annotations

import os
import re
import socket
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from itertools import count
from pathlib import Path
from typing import Any, Callable, Iterator, Sequence

import psutil
import pytest
from harness import Finished, Program, WebServer, environment, eventually, get, whose
from relayed import Runtime
from webapps import Gate, without_servers_own

COMPLAINTS = (
    *("Traceback", "Exception ignored", "BrokenPipe", "Broken pipe", "can only join a child process"),
    *("letterapp:", "letterapp relay [", "NO MERCY", "Fatal"),
)


class Service:
    """A program and its relay. What its processes said that they have tracked, and what must be true at its end."""

    def __init__(self, program: Program, api: Any, runtime: Runtime, port: int = 0) -> None:
        self.program = program
        self._api = api
        self._runtime = runtime
        self._port = port
        self._serials = count()

    @property
    def output(self) -> str:
        return self.program.output

    def tracked(self) -> list[tuple[str, int]]:
        return [(who, int(serial)) for who, serial in re.findall(r"^tracked (\S+) (\d+) in \d+$", self.output, re.M)]

    def at_work(self) -> set[int]:
        """The processes that have tracked something other than what they do while they import the application."""
        return {int(pid) for pid in re.findall(r"^tracked (?!import)\S+ \d+ in (\d+)$", self.output, re.M)}

    def last_at_work(self, requests: int) -> set[int]:
        """The processes that have had the last ``requests`` requests."""
        found = re.findall(r"^tracked request (\d+) in (\d+)$", self.output, re.M)
        return {pid for _, pid in sorted((int(serial), int(pid)) for serial, pid in found)[-requests:]}

    # Requests.

    def ask(self, path: str = "/") -> bool:
        """One request; False if it was not answered, as while a worker is replaced."""
        try:
            return get(f"http://127.0.0.1:{self._port}{path}?{next(self._serials)}") == "ok"
        except (OSError, HTTPException):
            return False

    def put_to_work(self, workers: int = 2, old: set[int] = frozenset()) -> set[int]:  # type: ignore[assignment]
        """Ask until as many workers, none of them ``old``, have had requests; return who they are."""

        def look() -> set[int]:
            with ThreadPoolExecutor(4) as visitors:
                list(visitors.map(lambda _: self.ask(), range(8)))
            return self.at_work() - old

        found: set[int] = eventually(look, lambda pids: len(pids) >= workers)
        assert len(found) >= workers, self.output
        return found

    def wait_for_more(self, events: int) -> None:
        target = len(self.tracked()) + events
        assert eventually(lambda: len(self.tracked()) >= target, bool), self.output

    # What must be true of it.

    def one_relay(self) -> psutil.Process:
        """The one relay, which all events went to; its program is no child of a server and has left no dead one."""
        # Not asked at the end: a gevent worker still answers requests when its exit handler has started to settle all.
        how = set(re.findall(r"^how: (.*)$", self.output, re.M))
        assert how == {"relay, 0 own, 0 threads"}, self.output
        relay = self._runtime.relay()
        family = self.program.descendants()
        assert relay.pid not in [process.pid for process in family]
        assert eventually(lambda: zombies(self.program), lambda dead: not dead, 20) == []
        return relay

    def ended(self, code: int | None = 0) -> Finished:
        """Wait for the end; it must be quiet and whole, and leave nothing. ``code`` is None for whatever it is."""
        finished = self.program.finish()
        assert not self.program.left_behind(), finished
        assert code is None or finished.code == code, finished
        self.left_nothing()
        return finished

    def left_nothing(self) -> None:
        self.port_is_free()
        assert not self._runtime.left_behind(), self.output
        said = without_servers_own(self.output)
        for complaint in COMPLAINTS:
            assert complaint not in said, said
        self.all_arrived()

    def port_is_free(self) -> None:
        if self._port:
            try:
                socket.create_server(("127.0.0.1", self._port)).close()
            except OSError as problem:  # nothing else but a listener is in its way
                holders = [held for held in psutil.net_connections("tcp") if held.laddr == ("127.0.0.1", self._port)]
                raise AssertionError(f"{problem}: {holders}") from None

    def all_arrived(self) -> None:
        """What was tracked by the calls that returned has arrived, once."""
        came = [(who, serial) for who, serials in whose(self._api).items() for serial in serials]
        assert len(came) == len(set(came)), self.output
        lost = set(self.tracked()) - set(came)
        assert not lost, (sorted(lost), self.output)


def gone(pids: set[int]) -> bool:
    return bool(eventually(lambda: not any(map(psutil.pid_exists, pids)), bool))


def zombies(program: Program) -> list[int]:
    """The program's descendants that have ended and that were not reaped."""
    dead = []
    for process in program.descendants():
        try:
            if process.status() == psutil.STATUS_ZOMBIE:
                dead.append(process.pid)
        except psutil.NoSuchProcess:
            pass
    return dead


class Load:
    """Visitors who send requests until the ``with`` block ends."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._is_over = threading.Event()
        self._visitors = [threading.Thread(target=self._visit, daemon=True) for _ in range(3)]

    def _visit(self) -> None:
        while not self._is_over.is_set():
            # With a pace: flat out they fill the socket of a relay that is held up for half a second, and take the CPU
            # from what is tested.
            self._is_over.wait(0.02)
            self._service.ask()

    def __enter__(self) -> None:
        for visitor in self._visitors:
            visitor.start()
        self._service.wait_for_more(20)

    def __exit__(self, *_: Any) -> None:
        self._is_over.set()
        for visitor in self._visitors:
            visitor.join(60)
            assert not visitor.is_alive()


@pytest.fixture(name="gate")
def closed_gate() -> Iterator[Gate]:
    with Gate() as gate:
        yield gate


@pytest.fixture(name="serve")
def start_programs(letter_api: Any, runtime: Runtime, gate: Gate, tmp_path: Path) -> Iterator[Callable[..., Service]]:
    """Starts programs, and ends what is left of them.

    ``source`` is written to application.py if there is any; a command can also name a module of ``tests/programs``.
    """
    running: list[Program] = []

    def start(
        source: str, *command: str, port: int = 0, package: str = "", run: Sequence[str] = ("-m",), **env: str
    ) -> Service:
        if source:
            (tmp_path / "application.py").write_text(source)
        env = environment(letter_api.url, **gate.environment, **env)
        if package:
            env["PYTHONPATH"] = os.pathsep.join([package, env["PYTHONPATH"]])
        line = [sys.executable, *run, *command]
        running.append(WebServer(line, env, tmp_path, port) if port else Program(line, env, tmp_path))
        return Service(running[-1], letter_api, runtime, port)

    yield start
    gate.open()
    letter_api.closing.set()
    for program in running:
        program.__exit__()
