"""One run of a scenario with one client: an API, programs in the client's environment, a seeded random generator.

Responsible for: starting and ending all of it, and turning what was logged into one entry of the ledger. Not
responsible for: what any scenario does, or the counting (`ledger.py`).
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

from .api_server import ApiServer
from .ledger import Key, Records, balance, verdict
from .peers import OWN, REDIS, RELAY, Environments, Peer
from .process_monitor import FOLDER, RUNTIME, ProcessMonitor, surviving_processes, threads_and_descriptors
from .programs import Failure, Program
from .redis_service import RedisService

INSIDE = Path(__file__).resolve().parent / "inside"
TIMEOUT = 40.0  # seconds that a program may run, unless the scenario says otherwise
SHORT_WAIT = 0.5  # seconds
SETTLING = 5.0  # seconds that threads which are about to end get before they count as leaked
CLAIM_AFTER = 2.0  # seconds without a sign of life after which another relay gets what one had taken from Redis
GRACE = 7.0  # seconds that a process may outlive its parents or clients; its own limit for sending the rest is 5
# What a relay or a manager logs about lost events that it cannot report to any process, in either wording.
LOGGED = re.compile(
    r"^letterapp (?:relay|manager) \[\d+\]: ([\d,]+) lost from ended processes: ",
    re.MULTILINE,
)
# The same of a relay that reads a stream in Redis, which no process can be told of.
REDIS_LOG = re.compile(r"^letterapp relay \[\d+\]: entry \S+: ([\d,]+) lost: ", re.MULTILINE)


class Scenario(NamedTuple):
    name: str
    title: str
    module: ModuleType  # has `outside(run)`, and usually `inside(...)`


class Skipped(Exception):
    """This scenario cannot run here, or not with this client. The message says why."""


class NotApplicable(Skipped):
    """This scenario is meant for another column only, so it is no failure of this one."""


class ScenarioRun:
    """One scenario with one client. The same ``seed`` makes the same random choices for every client."""

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
        self.seconds = seconds  # how long a scenario runs that does not end on its own
        self.random = random.Random(f"{seed} {scenario.name}")
        self.seed = seed
        self.peer = peer
        self.environments = environments
        self.is_this_client = peer.column in OWN
        self.folder = folder  # empty at first; for any files of the scenario
        self.api = ApiServer()
        self.notes: list[str] = []
        self.allows_overtaking = False  # events may take two routes, so one that arrives late is noted and is no fault
        self.hung = 0
        self.leaked = 0
        self._redis: RedisService | None = None
        if peer.column == REDIS:
            self._redis = RedisService(append_only=True)
            self.start_redis_relay()
        self._module = scenario.module.__name__.rpartition(".")[2]
        self._logs = Path(tempfile.mkdtemp(dir=folder))
        self._programs: list[Program] = []
        self._has_lost = False
        self._logged = 0  # events of ended processes that a relay or manager lost, which only its log can report
        self._baselines: dict[int, tuple[int, int]] = {}

    # Starting programs.

    def env(self, **options: Any) -> dict[str, str]:
        """The environment of a program. ``options`` are arguments of the client, and apply to this client only."""
        path = os.pathsep.join(filter(None, [str(INSIDE), self.peer.env.get("PYTHONPATH", "")]))
        return {
            **self.peer.env,
            "PYTHONPATH": path,
            "PYTHONWARNINGS": "ignore::DeprecationWarning",  # Python 3.12 and later warn of forks beside threads
            "PYTHONUNBUFFERED": "1",
            "STRESS_CLIENT": self.peer.client,
            "STRESS_MODULE": self.peer.module,
            "STRESS_URL": self.api.url,
            "STRESS_LOGS": str(self._logs),
            "STRESS_OPTIONS": json.dumps({**self._own_options(), **options} if self.is_this_client else {}),
            RUNTIME: str(self.folder),  # where a client looks for a relay: each run has its own
            FOLDER: str(self.folder),
        }

    def _own_options(self) -> dict[str, Any]:
        return {**self.peer.options, **({"relay": self._redis.url} if self._redis is not None else {})}

    @property
    def redis(self) -> RedisService:
        """The server of the column with a stream in Redis."""
        assert self._redis is not None
        return self._redis

    def start_redis_relay(self) -> Any:
        """A relay that reads the stream, as a `subprocess.Popen`. It is ended with the run."""
        return self.redis.start_relay(self.peer.python, self.peer.env, self.api.url, "--claim-after", str(CLAIM_AFTER))

    def start(
        self,
        *arguments: object,
        timeout: float | None = None,
        env: dict[str, str] | None = None,
        **options: Any,
    ) -> Program:
        """Start the scenario's ``inside`` with ``arguments``; ``options`` as for `env`."""
        program = Program(
            self.peer.python,
            INSIDE / "run_inside.py",
            self._module,
            *arguments,
            env={**self.env(**options), **(env or {})},
            cwd=self.folder,
            timeout=TIMEOUT if timeout is None else timeout,
        )
        self._programs.append(program)
        return program

    def start_server(
        self, *arguments: object, timeout: float | None = None, env: dict[str, str] | None = None
    ) -> Program:
        """Start a server in the client's environment, ``python ARGUMENT...``; its output is kept."""
        program = Program(
            self.peer.python,
            *arguments,
            env={**self.env(), **(env or {})},
            cwd=self.folder,
            json_output=False,
            timeout=TIMEOUT if timeout is None else timeout,
        )
        self._programs.append(program)
        return program

    # Looking at them.

    @property
    def calls(self) -> int:
        """The number of calls that have returned so far, in all processes."""
        return sum(log.read_bytes().count(b"\n") for log in self._logs.iterdir() if "reported" not in log.name)

    def times(self) -> dict[Key, int]:
        """The duration in microseconds of each call that has returned so far."""
        logs = [log for log in self._logs.iterdir() if "reported" not in log.name]
        lines = [(log.name, line.split()) for log in logs for line in log.read_text().splitlines()]
        return {(who, int(words[0])): int(words[1]) for who, words in lines}

    def wait_for_all(self, seconds: float = 3.0) -> bool:
        """Wait until every event whose call returned has arrived. To be used while no program tracks.

        If the client has already lost an event the wait is short, since it would be useless every time.
        """
        calls = self.calls
        self._has_lost = not self.api.wait_until(
            lambda: len({key for _, key in self.api.arrivals}) >= calls, SHORT_WAIT if self._has_lost else seconds
        )
        return not self._has_lost

    def check_for_leaks(self, *pids: int, like: int | None = None) -> None:
        """Count the threads and descriptors of idle processes: any growth since the first count is a leak.

        With ``like``, since the first count of that process. Threads that are about to end get some seconds to do so.
        """
        for pid in pids:
            now = threads_and_descriptors(pid)
            first = self._baselines.setdefault(like or pid, now)
            deadline = time.monotonic() + (0 if self.leaked else SETTLING)
            while _growth(first, now) and time.monotonic() < deadline:
                time.sleep(0.02)
                now = threads_and_descriptors(pid)
            if _growth(first, now):
                self.notes.append(f"threads and descriptors: {first} before, {now} after")
            self.leaked = max(self.leaked, _growth(first, now))

    # Ending them.

    def finish(self, *programs: Program, seconds: float | None = None) -> None:
        """Wait until they end. One that takes more than ``seconds`` counts as hung. Raises `Failure` if one fails."""
        for program in programs:
            status = program.wait(TIMEOUT if seconds is None else seconds)
            if status is not None and status > 0:
                raise Failure(program.failure_text())

    def close(self) -> list[psutil.Process]:
        """End what is still running; return the processes that outlived their parents."""
        for program in self._programs:
            program.close_stdin()
            program.wait(GRACE)
        self.hung = sum(program.hung for program in self._programs)
        orphans = surviving_processes(str(self.folder), GRACE)
        for process in orphans:
            with contextlib.suppress(psutil.Error):
                process.send_signal(signal.SIGKILL)
        psutil.wait_procs(orphans, 5)
        for program in self._programs:
            self._logged += sum(int(number.replace(",", "")) for number in LOGGED.findall(program.output))
            program.dispose()
        if self._redis is not None:
            self._end_redis(self._redis)
        self.api.settle()
        self.api.close()
        return orphans

    def _end_redis(self, redis: RedisService) -> None:
        """Have delivered what waits in Redis, by a new relay and with an API that answers again."""
        if not redis.drain(SHORT_WAIT):
            self.notes.append(f"{redis.entries()} entries waited in Redis at the end, until the API answered again")
            self.api.answer_again()
            redis.end_relays()  # another one does not wait until the next try is due
            self.start_redis_relay()
            if not redis.drain():
                self.notes.append(f"{redis.entries()} entries are left in Redis")
        lost = [int(number.replace(",", "")) for number in REDIS_LOG.findall(redis.logs())]
        self._logged += sum(lost)
        redis.close()

    def records(self) -> Records:
        returned: dict[Key, int] = {}
        reported: dict[Key, str] = {}
        unnamed, unspecific = self._logged, 0
        for log in self._logs.iterdir():
            for line in log.read_text().splitlines():
                words = line.split()
                if log.name.startswith("reported"):
                    if words[1:]:
                        reported[words[0], int(words[1])] = "reported"
                    else:
                        unnamed += int(words[0])
                        unspecific += words[0] == "0"
                    continue
                returned[log.name, int(words[0])] = int(words[1])
                if words[2:]:
                    reported[log.name, int(words[0])] = words[2]
        if unspecific:
            self.notes.append(f"{unspecific} error{'s' * (unspecific > 1)} that name no event reached the program")
            # Such as the report that a busy relay accepts no events for now: those tracked meanwhile bypass it.
            self.allows_overtaking = self.allows_overtaking or self.peer.column in (RELAY, REDIS)
        return Records(returned, reported, list(self.api.arrivals), unnamed)


def run_scenario(
    scenario: Scenario, peer: Peer, environments: Environments, seconds: float = 10.0, seed: int = 0
) -> dict[str, Any]:
    """Run a scenario with a client; return its entry in the ledger. ``failure`` there says why it could not run."""
    with _folder() as folder:
        run = ScenarioRun(scenario, peer, environments, seconds, seed, folder)
        monitor = ProcessMonitor(str(run.folder))
        failure = None
        not_applicable = False
        try:
            scenario.module.outside(run)
        except (Failure, Skipped) as reason:
            failure = str(reason)
            not_applicable = isinstance(reason, NotApplicable)
        except Exception as error:  # such as a process that ended before its signal: it costs this entry only
            failure = f"the scenario failed: {error!r}"
        finally:
            orphans = run.close()
            figures = monitor.end()
        counts = balance(run.records())
        if run.allows_overtaking and counts.disordered:
            run.notes.append(f"{counts.disordered} events were overtaken by others that took another route")
            counts = counts._replace(disordered=0)
        if run.hung:
            failure = None  # the hang is the result, and the events that it kept from arriving are lost
        elif not failure and not counts.calls:
            failure = "no call returned, so nothing was tested"
        entry: dict[str, Any] = {
            "scenario": scenario.name,
            "column": peer.column,
            **counts._asdict(),
            "hung": run.hung,
            "orphans": len(orphans),
            "leaked": run.leaked,
            **figures,
            "failure": failure,
            "not_applicable": not_applicable,
            "notes": run.notes,
        }
        return {**entry, "verdict": verdict(entry)}


def _growth(before: tuple[int, int], after: tuple[int, int]) -> int:
    return sum(max(0, now - then) for then, now in zip(before, after))


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    # A short name, because the path of a Unix socket may have no more than 103 bytes.
    with tempfile.TemporaryDirectory(prefix="stress-") as name:
        yield Path(name)
