"""Random servers, faults and signals, from a plan that is made from the seed before anything starts.

A plan is a sequence of acts, each with one program and what happens to it, and is printed in the notes.
``python -m stress run chaos --seconds 600 --seed S`` follows the same plan again, though with different timing.

Faults of the API last for a second at most, with pauses between them, so that no client runs out of retries.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import select
import signal
import threading
import time
from typing import TYPE_CHECKING, Any, Callable, Iterator, NamedTuple

if TYPE_CHECKING:
    from ..scenario_run import ScenarioRun

TITLES = {
    "chaos": "--seconds of random servers, API faults, reloads, and stopped workers; the seed determines the plan",
    "chaos-kills": "the same, with SIGKILL and SIGTERM to workers",
}
WORKING = ("forks", "pool", "celery")
PROGRAMS = (*WORKING, "gunicorn sync", "gunicorn gthread", "uwsgi")
FAULTS = ("503", "reset", "swallow", "slow", "down")
ACT = 8.0  # seconds
# Seconds: the longest fault and the shortest pause between two. Three retries take 1.75 s.
MAX_FAULT, MIN_PAUSE = 1.0, 3.0
WORKERS = 2
TASKS = 1_000  # more than Celery's children complete in an act
TIMEOUT = 40.0  # seconds for a program to end
READY = 20.0  # seconds for a server to have all its workers
STDIN = 0


class Step(NamedTuple):
    at: float  # seconds after the start of the act
    what: str  # a fault, or a signal's name
    seconds: float  # how long it lasts; 0 for a single action
    worker: int  # the index of the worker that gets the signal, modulo their number; -1 for their parent

    def __str__(self) -> str:
        whom = "" if self.what in FAULTS else " parent" if self.worker < 0 else f" worker {self.worker}"
        return f"{self.at:.1f} {self.what}{whom}" + (f" for {self.seconds:.1f}" if self.seconds else "")


class Act(NamedTuple):
    program: str
    seconds: float
    steps: list[Step]

    def __str__(self) -> str:
        return f"{self.program}, {self.seconds:.1f} s: " + ", ".join(map(str, self.steps))


# The plan: pure functions.


def plan(rng: random.Random, seconds: float, kills: bool) -> list[Act]:
    acts = []
    order: list[str] = []
    while seconds > 0:
        order = order or rng.sample(PROGRAMS, len(PROGRAMS))  # each once before any is repeated
        program, length = order.pop(), min(seconds, ACT)
        steps = sorted([*_faults(rng, length), *_signals(rng, length, _possible(program, kills))])
        acts.append(Act(program, length, steps))
        seconds -= length
    return acts


def _faults(rng: random.Random, length: float) -> Iterator[Step]:
    at = rng.uniform(0.2, MIN_PAUSE)
    while at < length:
        lasts = rng.uniform(0.1, MAX_FAULT)
        yield Step(at, rng.choice(FAULTS), lasts, -1)
        at += lasts + rng.uniform(MIN_PAUSE, 2 * MIN_PAUSE)


def _signals(rng: random.Random, length: float, possible: list[str]) -> Iterator[Step]:
    at = rng.uniform(0.2, 2)
    while at < length:
        what = rng.choice(possible)
        lasts = rng.uniform(0.05, 0.8) if what == "STOP" else 0.0
        to_parent = what == "HUP" or (what == "STOP" and rng.random() < 0.2)
        yield Step(at, what, lasts, -1 if to_parent else rng.randrange(4))
        at += lasts + rng.uniform(0.3, 2)


def _possible(program: str, kills: bool) -> list[str]:
    names = ["STOP"]
    if program.startswith(("gunicorn", "uwsgi")):
        names.append("HUP")
    if kills and program not in ("pool", "celery"):  # these wait forever for the job of a killed worker
        names += ["KILL", "TERM"]
    return names


# The programs, in the client's interpreter. The application of the servers is inside/app.py.


def inside(program: str) -> None:
    import tracker

    tracker.track(10)
    {"forks": _forks, "pool": _pool, "celery": _celery}[program]()
    tracker.track(10)


def _forks() -> None:
    import family

    family.run(parent_tracks=True)


def _pool() -> None:
    import tracker

    pool = multiprocessing.get_context("fork").Pool(WORKERS, maxtasksperchild=50)
    while not select.select([STDIN], [], [], 0)[0]:
        pool.map(job, range(20), chunksize=1)
        tracker.track()
    pool.close()
    pool.join()


def _celery() -> None:
    import celery_program

    celery_program.run(TASKS)


def job(number: int) -> None:
    import tracker

    tracker.track(2)
    time.sleep(0.01)


# What happens to them, from the harness.


def outside(run: ScenarioRun) -> None:
    acts = plan(run.random, run.seconds, run.name == "chaos-kills")
    for number, act in enumerate(acts, 1):
        run.notes.append(f"act {number}: {act}")
    for act in acts:
        with (_program if act.program in WORKING else _server_under_load)(run, act) as parent:
            _execute(run, act, parent)


@contextlib.contextmanager
def _program(run: ScenarioRun, act: Act) -> Iterator[int]:
    """A program that generates its own work."""
    from ..http_load import wait_until

    (run.folder / "queue").mkdir(exist_ok=True)
    before = run.calls
    program = run.start(act.program, timeout=act.seconds + 2 * TIMEOUT)
    wait_until(lambda: run.calls > before + 10 or not program.is_running, TIMEOUT)
    yield program.pid
    if act.program == "celery":
        program.signal(signal.SIGTERM)
    program.close_stdin()
    run.finish(program, seconds=TIMEOUT)


@contextlib.contextmanager
def _server_under_load(run: ScenarioRun, act: Act) -> Iterator[int]:
    """A server under permanent load."""
    from ..http_load import CONCURRENCY, LoadGenerator, wait_until
    from ..ports import free_port
    from ..programs import Failure
    from .uwsgi_workers import are_idle

    port, stats = free_port(), free_port()
    server = run.start_server(*_command(run, act.program, port, stats), timeout=act.seconds + 2 * TIMEOUT)
    load = LoadGenerator(server, port)
    load.wait_for_workers(1)
    finished = threading.Event()

    def send() -> None:
        while not finished.wait(0.005):
            with contextlib.suppress(Failure):  # no response: all workers are stopped or killed
                load.send_requests(CONCURRENCY)

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield server.pid
    finally:
        finished.set()
        thread.join()
    if act.program == "uwsgi":  # it must not be starting a worker: it would lose track of it and wait forever
        wait_until(lambda: are_idle(stats) or not server.is_running, READY)
    server.signal(signal.SIGTERM)
    run.finish(server, seconds=TIMEOUT)


def _command(run: ScenarioRun, program: str, port: int, stats: int) -> list[Any]:
    address = f"127.0.0.1:{port}"
    if program == "uwsgi":
        flags = ["--master", "--need-app", "--processes", WORKERS, "--binary-path", run.peer.python, "--die-on-term"]
        flags += ["--http-socket", address, "--module", "app:app", "--stats", f"127.0.0.1:{stats}"]
        return ["-c", "from pyuwsgi import run; run()", *flags]
    kind = program.split()[1]
    threads = ["--threads", 4] if kind == "gthread" else []
    return ["-m", "gunicorn", "app:app", "--preload", "-w", WORKERS, "-b", address, "-k", kind, *threads]


def _execute(run: ScenarioRun, act: Act, parent: int) -> None:
    began = time.monotonic()
    moments: list[tuple[float, Callable[[], object]]] = [(act.seconds, lambda: None)]
    for step in act.steps:
        begin, end = _fault_actions(run.api, step) if step.what in FAULTS else _signal_actions(step, parent)
        moments += [(step.at, begin), (step.at + step.seconds, end)]
    for at, do in sorted(moments, key=lambda moment: moment[0]):
        time.sleep(max(0.0, began + at - time.monotonic()))
        do()


def _fault_actions(api: Any, step: Step) -> tuple[Callable[[], object], Callable[[], object]]:
    from letterapp.testing import reset, stall, status

    if step.what == "down":
        return api.down, api.up
    fault = {"503": status(503), "reset": reset(), "swallow": reset(stored=True), "slow": stall(0.2)}[step.what]

    def rule(new: Any) -> None:
        api.rule = new

    return lambda: rule(lambda request: fault), lambda: rule(None)


def _signal_actions(step: Step, parent: int) -> tuple[Callable[[], object], Callable[[], object]]:
    """Both signals go to the same process, which the first one selects; nothing happens if it has ended by then."""
    import psutil

    chosen: list[int] = []

    def send(name: str) -> None:
        for pid in chosen:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, getattr(signal, name))

    def begin() -> None:
        workers = sorted(child.pid for child in psutil.Process(parent).children())
        chosen.extend([parent] if step.worker < 0 else [workers[step.worker % len(workers)]] if workers else [])
        send(f"SIG{step.what}")

    return begin, lambda: send("SIGCONT") if step.what == "STOP" else None
