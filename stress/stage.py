"""What a scenario has to play with: an API, programs in the client's environment, chance, and an end for everything.

Lives here: starting and ending, and turning what was written down into one entry of the ledger. Never here: what any
scenario does, or the sums (`ledger.py`).
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import tempfile
import time
from pathlib import Path
from types import ModuleType
from typing import Any, Iterator, NamedTuple

import psutil

from .ledger import Books, Key, balance, verdict
from .peers import OWN, RELAY, Environments, Peer
from .programs import Failure, Program
from .recorder import Api
from .watch import FOLDER, RUNTIME, Watch, held, left_behind

INSIDE = Path(__file__).resolve().parent / "inside"
PATIENCE = 40.0  # seconds for a program from its start to its end, where a scenario says nothing else
BRIEFLY = 0.5
LEAVING = 5.0  # seconds for a thread that is about to end, where threads are counted
GRACE = 7.0  # seconds that a process may outlive its parents or clients, while it sends what it has: 5 by default
LOGGED = re.compile(r"^letterapp (?:relay|manager) \[\d+\]: ([\d,]+) of processes that have ended", re.MULTILINE)


class Scenario(NamedTuple):
    name: str
    title: str
    module: ModuleType  # has `outside(stage)`, and mostly `inside(...)`


class Skipped(Exception):
    """This scenario cannot be played here, or not by this client. The text says why."""


class Elsewhere(Skipped):
    """This scenario is another column's: no fault of whose client it is."""


class Stage:
    """One scenario with one client. ``seed`` makes the same choices for every client."""

    def __init__(
        self,
        scenario: Scenario,
        peer: Peer,
        environments: Environments,
        seconds: float,
        seed: int,
        folder: Path,
    ) -> None:
        self.name = scenario.name
        self.seconds = seconds  # how long a scenario without an end of its own goes on
        self.random = random.Random(f"{seed} {scenario.name}")
        self.seed = seed
        self.peer = peer
        self.environments = environments
        self.is_this_client = peer.column in OWN
        self.folder = folder  # empty, for what the scenario needs
        self.api = Api()
        self.notes: list[str] = []
        self.may_overtake = False  # events may go two ways here: then a late one is noted, and no fault
        self.hung = 0
        self.leaked = 0
        self._module = scenario.module.__name__.rpartition(".")[2]
        self._journal = Path(tempfile.mkdtemp(dir=folder))
        self._programs: list[Program] = []
        self._has_lost = False
        self._logged = 0  # events that a relay or manager gave up when their process had ended: its log is who is told
        self._rested: dict[int, tuple[int, int]] = {}

    # What is started.

    def env(self, **options: Any) -> dict[str, str]:
        """The environment of a program: the client, where the API is, and ``options`` for this client only."""
        path = os.pathsep.join(filter(None, [str(INSIDE), self.peer.env.get("PYTHONPATH", "")]))
        return {
            **self.peer.env,
            "PYTHONPATH": path,
            "PYTHONWARNINGS": "ignore::DeprecationWarning",  # from 3.12 on, for forks beside a thread: the point here
            "PYTHONUNBUFFERED": "1",
            "STRESS_CLIENT": self.peer.client,
            "STRESS_MODULE": self.peer.module,
            "STRESS_URL": self.api.url,
            "STRESS_JOURNAL": str(self._journal),
            "STRESS_OPTIONS": json.dumps({**self.peer.options, **options} if self.is_this_client else {}),
            RUNTIME: str(self.folder),  # whoever looks there for a relay finds this performance's
            FOLDER: str(self.folder),
        }

    def play(
        self,
        *arguments: object,
        patience: float | None = None,
        env: dict[str, str] | None = None,
        **options: Any,
    ) -> Program:
        """Start the scenario's ``inside`` with ``arguments``; ``options`` are for this client only."""
        program = Program(
            self.peer.python,
            INSIDE / "play.py",
            self._module,
            *arguments,
            env={**self.env(**options), **(env or {})},
            cwd=self.folder,
            patience=PATIENCE if patience is None else patience,
        )
        self._programs.append(program)
        return program

    def serve(self, *arguments: object, patience: float | None = None, env: dict[str, str] | None = None) -> Program:
        """Start a server of the client's environment, ``python ARGUMENT...``; what it prints is kept."""
        program = Program(
            self.peer.python,
            *arguments,
            env={**self.env(), **(env or {})},
            cwd=self.folder,
            talks=False,
            patience=PATIENCE if patience is None else patience,
        )
        self._programs.append(program)
        return program

    # What is looked at.

    @property
    def calls(self) -> int:
        """Calls that returned so far, in all processes."""
        return sum(page.read_bytes().count(b"\n") for page in self._journal.iterdir() if "told" not in page.name)

    def times(self) -> dict[Key, int]:
        """Of each call that returned so far the microseconds that it took."""
        pages = [page for page in self._journal.iterdir() if "told" not in page.name]
        lines = [(page.name, line.split()) for page in pages for line in page.read_text().splitlines()]
        return {(who, int(words[0])): int(words[1]) for who, words in lines}

    def wait_for_all(self, seconds: float = 3.0) -> bool:
        """Wait until all has come whose calls returned. For a moment at which no program tracks.

        A client that lost something before gets a short wait, since it would be in vain every time.
        """
        calls = self.calls
        self._has_lost = not self.api.wait_until(
            lambda: len({key for _, key in self.api.arrivals}) >= calls, BRIEFLY if self._has_lost else seconds
        )
        return not self._has_lost

    def rest(self, *pids: int, like: int | None = None) -> None:
        """Look at the threads and descriptors of processes that rest: growth since the first such look is a leak.

        With ``like``, since the first look at that process. What is about to leave has some seconds for it.
        """
        for pid in pids:
            now = held(pid)
            first = self._rested.setdefault(like or pid, now)
            deadline = time.monotonic() + (0 if self.leaked else LEAVING)
            while _growth(first, now) and time.monotonic() < deadline:
                time.sleep(0.02)
                now = held(pid)
            if _growth(first, now):
                self.notes.append(f"threads and descriptors: {first} before, {now} after")
            self.leaked = max(self.leaked, _growth(first, now))

    # How it ends.

    def finish(self, *programs: Program, seconds: float | None = None) -> None:
        """Wait for their ends. One that does not come in ``seconds`` counts as hung; one that fails is a `Failure`."""
        for program in programs:
            status = program.wait(PATIENCE if seconds is None else seconds)
            if status is not None and status > 0:
                raise Failure(program.last_words())

    def close(self) -> list[psutil.Process]:
        """End what still runs; return what outlived its parents."""
        for program in self._programs:
            program.close_stdin()
            program.wait(GRACE)
        self.hung = sum(program.hung for program in self._programs)
        orphans = left_behind(str(self.folder), GRACE)
        for process in orphans:
            with contextlib.suppress(psutil.Error):
                process.send_signal(signal.SIGKILL)
        psutil.wait_procs(orphans, 5)
        for program in self._programs:
            self._logged += sum(int(number.replace(",", "")) for number in LOGGED.findall(program.output))
            program.dispose()
        self.api.settle()
        self.api.close()
        return orphans

    def books(self) -> Books:
        returned: dict[Key, int] = {}
        told: dict[Key, str] = {}
        unnamed, vague = self._logged, 0
        for page in self._journal.iterdir():
            for line in page.read_text().splitlines():
                words = line.split()
                if page.name.startswith("told"):
                    if words[1:]:
                        told[words[0], int(words[1])] = "told"
                    else:
                        unnamed += int(words[0])
                        vague += words[0] == "0"
                    continue
                returned[page.name, int(words[0])] = int(words[1])
                if words[2:]:
                    told[page.name, int(words[0])] = words[2]
        if vague:
            self.notes.append(f"{vague} errors reached the program that name no event")
            # As that its relay takes no more for now, for want of a processor: what is tracked then goes past it.
            self.may_overtake = self.may_overtake or self.peer.column == RELAY
        return Books(returned, told, list(self.api.arrivals), unnamed)


def perform(
    scenario: Scenario, peer: Peer, environments: Environments, seconds: float = 10.0, seed: int = 0
) -> dict[str, Any]:
    """Play a scenario with a client: one entry of the ledger. What the scenario cannot do is in ``failure``."""
    with _folder() as folder:
        stage = Stage(scenario, peer, environments, seconds, seed, folder)
        watch = Watch(str(stage.folder))
        failure = None
        elsewhere = False
        try:
            scenario.module.outside(stage)
        except (Failure, Skipped) as told:
            failure = str(told)
            elsewhere = isinstance(told, Elsewhere)
        except Exception as surprise:  # as when a process is gone before its signal: it costs this entry, not the run
            failure = f"the scenario broke: {surprise!r}"
        finally:
            orphans = stage.close()
            figures = watch.end()
        sums = balance(stage.books())
        if stage.may_overtake and sums.disordered:
            stage.notes.append(f"{sums.disordered} events were overtaken by others that went another way")
            sums = sums._replace(disordered=0)
        if stage.hung:
            failure = None  # that is the finding, and all it kept us from seeing is lost
        elif not failure and not sums.calls:
            failure = "no call returned: nothing was tried"
        entry: dict[str, Any] = {
            "scenario": scenario.name,
            "column": peer.column,
            **sums._asdict(),
            "hung": stage.hung,
            "orphans": len(orphans),
            "leaked": stage.leaked,
            **figures,
            "failure": failure,
            "elsewhere": elsewhere,
            "notes": stage.notes,
        }
        return {**entry, "verdict": verdict(entry)}


def _growth(before: tuple[int, int], after: tuple[int, int]) -> int:
    return sum(max(0, now - then) for then, now in zip(before, after))


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    # A short name: a socket's path in it may have 103 bytes.
    with tempfile.TemporaryDirectory(prefix="stress-") as name:
        yield Path(name)
