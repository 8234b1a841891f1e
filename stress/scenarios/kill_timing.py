"""Workers that are killed at a particular point: any, inside a call, inside the sender, before or after a response.

Every call that had returned counts, and so do later calls of the other processes, which no dead process may block.
"""

from __future__ import annotations

import _thread
import contextlib
import json
import os
import random
import select
import signal
import struct
import sys
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Any, Callable

if TYPE_CHECKING:
    from ..scenario_run import ScenarioRun

TITLES = {
    "kill-instants": "500 forked children, 4 at once, that track non-stop; SIGKILL within 20 ms of the first call",
    "kill-in-call": "200 children; SIGKILL before a random bytecode of the client in `track` or `close`",
    "kill-in-sender": "the same on the client's own thread, in all that it does to take, send and settle events",
    "kill-before-stored": "20 SIGKILLs of workers or a relay, when a request has arrived and is not yet stored",
    "kill-after-stored": "the same, when it is stored and not yet answered",
    "kill-recovery": "12 SIGKILLs of processes that send events of a killed one, before or after they are stored",
    "sudden-ends": "60 children that end with os._exit, os.abort or a segmentation fault, in turn",
}
CHILDREN = 500
MAX_LIFE = 0.02  # seconds
AT_FIRST = 200  # events without pauses, for some 5 ms; without a limit they would fill any queue
INTERVAL = 0.0005  # seconds between two later events
ROUNDS = 200
AT_ONCE = 4
REQUESTS = 20
RECOVERIES = 12
TIMEOUT = 90.0
KILLING_TIME = 6.0  # seconds in which the harness kills senders, if there are enough requests


def inside(name: str, seed: str) -> None:
    import tracker

    rng = random.Random(int(seed))
    if name == "kill-instants":
        tracker.track(20)
        _kill_at_any_time(rng)
    elif name == "sudden-ends":
        tracker.track(20)
        _in_children(60, _end_suddenly)
    elif name in ("kill-in-call", "kill-in-sender"):
        _kill_at_bytecodes(rng, on_main=name == "kill-in-call")
    else:
        import family

        family.run(parent_tracks=name != "kill-recovery")


def _kill_at_any_time(rng: random.Random) -> None:
    """The parent sends the signals, because they may then arrive between any two instructions of a child."""
    import tracker

    started, report_start = os.pipe()
    parent, remaining = os.getpid(), CHILDREN
    alive: set[int] = set()
    moments: dict[int, float] = {}
    while remaining or alive:
        while remaining and len(alive) < AT_ONCE:
            tracker.track()
            pid = os.fork()
            if pid == 0:
                os.write(report_start, struct.pack("i", os.getpid()))
                tracker.track(AT_FIRST)
                while os.getppid() == parent:
                    time.sleep(INTERVAL)
                    tracker.track()
                return
            alive.add(pid)
            remaining -= 1
        now = time.monotonic()
        for pid in [pid for pid, moment in moments.items() if moment <= now]:
            del moments[pid]
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            alive.remove(pid)
        if select.select([started], [], [], max(0.0, min(moments.values(), default=now + MAX_LIFE) - now))[0]:
            moments[struct.unpack("i", os.read(started, 4))[0]] = time.monotonic() + rng.uniform(0, MAX_LIFE)


def _in_children(count: int, life: Callable[[int], object], prepare: Callable[[int], object] = lambda _: None) -> None:
    """Run ``life(number)`` in the given number of children, a few at a time. Each is killed if it returns."""
    import tracker

    alive = set()
    for number in range(count):
        tracker.track()
        prepare(number)
        pid = os.fork()
        if pid == 0:
            life(number)
            os.kill(os.getpid(), signal.SIGKILL)
        alive.add(pid)
        while len(alive) >= AT_ONCE:
            alive.discard(os.wait()[0])
    for pid in alive:
        os.waitpid(pid, 0)


def _end_suddenly(number: int) -> None:
    import ctypes
    import resource

    import tracker

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    tracker.track(10)
    ends: list[Callable[[], object]] = [lambda: os._exit(0), os.abort, lambda: ctypes.string_at(0)]
    ends[number % len(ends)]()


# At a bytecode of the client, which is identified by the file and the first line of its code object, and its offset.


class KillTracer:
    """A trace function: in children it counts the client's bytecodes as they run, and kills the process at one of them.

    It is installed before the fork, because a client may start the child's thread in its fork hook.
    """

    def __init__(self) -> None:
        module = sys.modules[os.environ["STRESS_MODULE"]]
        self._package = os.path.dirname(str(module.__file__)) + os.sep
        self._parent = os.getpid()
        self.seen: Counter[Any] = Counter()
        self.fatal: Any = None  # a bytecode, and the number of the execution that is interrupted, from 1 on

    def __call__(self, frame: Any, event: str, argument: object) -> KillTracer | None:
        code = frame.f_code
        if not code.co_filename.startswith(self._package):
            return None
        frame.f_trace_opcodes = True
        if event == "opcode" and os.getpid() != self._parent:
            bytecode = (code.co_filename, code.co_firstlineno, frame.f_lasti)
            self.seen[bytecode] += 1
            if self.fatal == (bytecode, self.seen[bytecode]):
                os.kill(os.getpid(), signal.SIGKILL)
        return self

    def install(self) -> None:
        """Trace all threads that start from now on."""
        threading.settrace(self)
        start = _thread.start_new_thread

        def start_traced(function: Callable[..., object], *arguments: Any) -> int:
            def run_traced(*rest: Any) -> None:
                sys.settrace(self)
                function(*rest)

            return start(run_traced, *arguments)

        _thread.start_new_thread = start_traced  # `threading` has its own reference to the original


def _kill_at_bytecodes(rng: random.Random, on_main: bool) -> None:
    import tracker

    tracer = KillTracer()
    if not on_main:
        tracer.install()
    tracker.track(20)

    def live(number: int) -> None:
        if on_main:
            sys.settrace(tracer)
        tracker.track(5)
        tracker.close()
        sys.settrace(None)

    seen = _survey(tracer, live)
    if not seen:
        sys.exit("the client runs no bytecode there")
    plan = []
    for _ in range(ROUNDS):
        bytecode, times = rng.choice(seen)
        plan.append((tuple(bytecode), rng.randint(1, times)))

    def prepare(number: int) -> None:
        tracer.fatal = plan[number]

    _in_children(len(plan), live, prepare)


def _survey(tracer: KillTracer, live: Callable[[int], object]) -> list[tuple[list[Any], int]]:
    """Each bytecode that runs in such a child, and how often. All are equally likely to be chosen, in loops or not."""
    read_end, write_end = os.pipe()
    if os.fork() == 0:
        live(0)
        with open(write_end, "w") as file:
            json.dump(sorted(tracer.seen.items()), file)
        os._exit(0)
    os.close(write_end)
    with open(read_end) as file:
        text = file.read()
    os.wait()
    return json.loads(text) if text else []


# At a request, which the harness receives as the API.


def outside(run: ScenarioRun) -> None:
    from ..peers import REDIS, RELAY
    from ..programs import Failure
    from ..scenario_run import NotApplicable

    has_relay = run.peer.column == RELAY
    if run.peer.column == REDIS and run.name in ("kill-before-stored", "kill-after-stored", "kill-recovery"):
        raise NotApplicable("a relay sends all requests: see redis-relay-killed")
    if has_relay and run.name in ("kill-in-sender", "kill-recovery"):
        raise NotApplicable("the relay sends all events, and no worker any")
    run.allows_overtaking = has_relay
    program = run.start(run.name, run.random.randrange(2**32), timeout=TIMEOUT)
    killer = None
    if run.name in ("kill-before-stored", "kill-after-stored", "kill-recovery"):
        program.receive()
        killer = SenderKiller(run, program.pid)
        run.api.rule = killer.decide
        killer.wait()
        run.api.rule = None
        program.close_stdin()
    run.finish(program, seconds=TIMEOUT)
    if killer and not killer.killed and (run.is_this_client or run.name != "kill-recovery"):
        raise Failure("no worker sent a request during its life, so none was killed")


class SenderKiller:
    """Kills the sender of a request that has arrived: a worker, or the relay if there is one. Never the parent.

    Not both a worker and its relay, because then no copy of an event is left. With a manager there is another copy, in
    the memory that the family shares, so workers are killed as well.
    """

    def __init__(self, run: ScenarioRun, parent: int) -> None:
        from ..peers import MANAGER, RELAY

        self._recovering_only = run.name == "kill-recovery"
        self._stored = {"kill-before-stored": (False,), "kill-after-stored": (True,)}.get(run.name, (False, True))
        self._target = RECOVERIES if self._recovering_only else REQUESTS
        self._parent = parent
        self._sender_folder = str(run.folder) if run.peer.column in (RELAY, MANAGER) else ""
        self._spare_workers = run.peer.column == RELAY
        self._chance = run.random
        self._lock = threading.Lock()  # requests arrive on several threads
        self.killed = 0

    def decide(self, request: Any) -> Any:
        """The rule of the API: what happens to this request."""
        from letterapp.testing import reset

        from ..api_server import events_of

        processes = {int(who.partition("-")[0]) for _, (who, _) in events_of(request)}
        with self._lock:
            if self.killed >= self._target or (not self._recovering_only and self._chance.random() > 0.5):
                return None
            sender = self._sender(request.connection[1])
            if not sender or (self._recovering_only and processes <= {sender}):
                return None
            self.killed += 1
            stored = self._chance.choice(self._stored)

        def kill(handler: Any) -> object:
            _kill(sender)
            return reset(stored)(handler)

        return kill

    def wait(self) -> None:
        """Wait until enough senders are killed. In `kill-recovery` workers are killed too, so others send for them."""
        deadline = time.monotonic() + KILLING_TIME
        while self.killed < self._target and time.monotonic() < deadline:
            time.sleep(self._chance.uniform(0.1, 0.3))
            workers = self._workers()
            if self._recovering_only and workers:
                _kill(self._chance.choice(workers))

    def _sender(self, port: int) -> int | None:
        """The process at the other end; None for the parent, whose connections its children may have inherited."""
        if _has_connection(self._parent, port):
            return None
        return next((pid for pid in self._senders() if _has_connection(pid, port)), None)

    def _senders(self) -> list[int]:
        from ..process_monitor import surviving_processes

        if not self._sender_folder:
            return self._workers()
        excluded = {self._parent, *(self._workers() if self._spare_workers else ())}
        return sorted({each.pid for each in surviving_processes(self._sender_folder, 0)} - excluded)

    def _workers(self) -> list[int]:
        import psutil

        return sorted(child.pid for child in psutil.Process(self._parent).children())


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _has_connection(pid: int, port: int) -> bool:
    import psutil

    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        sockets = getattr(process, "net_connections", None) or process.connections  # renamed in psutil 6
        return any(each.laddr and each.laddr.port == port for each in sockets("tcp"))
    return False
