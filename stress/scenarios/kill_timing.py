"""The instants at which a worker can die: any, inside a call, inside the sender, at each end of a request; and how.

Every call that had returned counts, and so do the others' calls after it: what a dead one held must stop nobody.
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
    "kill-instants": "500 forked children, 4 at once, that track flat out; SIGKILL within 20 ms of the first call",
    "kill-in-call": "200 children, SIGKILLed before some bytecode of the client's, inside `track` or `close`",
    "kill-in-sender": "the same on the client's own thread, in all that it does to take, post and settle",
    "kill-before-stored": "20 SIGKILLs of workers that track, or a relay, when a request has come and is not stored",
    "kill-after-stored": "the same, when it is stored and not answered",
    "kill-heirs": "12 SIGKILLs of processes that send what a killed one left: its request just come, or just stored",
    "sudden-ends": "60 children that end by os._exit, os.abort and a segfault in turn",
}
CHILDREN = 500
LONGEST = 0.02  # seconds of a life
AT_FIRST = 200  # events flat out, some 5 ms of them; without an end they would fill every queue
EVERY = 0.0005  # seconds between two after that
ROUNDS = 200
AT_ONCE = 4
REQUESTS = 20
RECOVERIES = 12
TIMEOUT = 90.0
ENOUGH = 6.0  # seconds for the harness to meet all requests that it wants


def inside(name: str, seed: str) -> None:
    import tracker

    chance = random.Random(int(seed))
    if name == "kill-instants":
        tracker.track(20)
        _kill_at_any(chance)
    elif name == "sudden-ends":
        tracker.track(20)
        _in_children(60, _end_suddenly)
    elif name in ("kill-in-call", "kill-in-sender"):
        _kill_at_spots(chance, on_main=name == "kill-in-call")
    else:
        import family

        family.run(parent_tracks=name != "kill-heirs")


def _kill_at_any(chance: random.Random) -> None:
    """The parent kills, because nothing inside of a process comes between any two of its instructions."""
    import tracker

    began, begins = os.pipe()
    parent, left = os.getpid(), CHILDREN
    alive: set[int] = set()
    moments: dict[int, float] = {}
    while left or alive:
        while left and len(alive) < AT_ONCE:
            tracker.track()
            pid = os.fork()
            if pid == 0:
                os.write(begins, struct.pack("i", os.getpid()))
                tracker.track(AT_FIRST)
                while os.getppid() == parent:
                    time.sleep(EVERY)
                    tracker.track()
                return
            alive.add(pid)
            left -= 1
        now = time.monotonic()
        for pid in [pid for pid, moment in moments.items() if moment <= now]:
            del moments[pid]
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            alive.remove(pid)
        if select.select([began], [], [], max(0.0, min(moments.values(), default=now + LONGEST) - now))[0]:
            moments[struct.unpack("i", os.read(began, 4))[0]] = time.monotonic() + chance.uniform(0, LONGEST)


def _in_children(count: int, life: Callable[[int], object], prepare: Callable[[int], object] = lambda _: None) -> None:
    """Have ``life(number)`` lived by so many children, a few at once. It does not end by itself."""
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


# ReentrancyGuard of the client. A spot is a bytecode: the file and first line of its code object, and its place there.


class KillTracer:
    """A trace function: in children it counts the spots that a client comes to, and kills the process at one of them.

    It is stretched before the fork, because a client may start the child's thread in its fork hook.
    """

    def __init__(self) -> None:
        module = sys.modules[os.environ["STRESS_MODULE"]]
        self._package = os.path.dirname(str(module.__file__)) + os.sep
        self._parent = os.getpid()
        self.seen: Counter[Any] = Counter()
        self.deadly: Any = None  # a spot, and which time there: 1 is the first

    def __call__(self, frame: Any, event: str, argument: object) -> KillTracer | None:
        code = frame.f_code
        if not code.co_filename.startswith(self._package):
            return None
        frame.f_trace_opcodes = True
        if event == "opcode" and os.getpid() != self._parent:
            spot = (code.co_filename, code.co_firstlineno, frame.f_lasti)
            self.seen[spot] += 1
            if self.deadly == (spot, self.seen[spot]):
                os.kill(os.getpid(), signal.SIGKILL)
        return self

    def stretch(self) -> None:
        """Have it called on all threads that start from now on."""
        threading.settrace(self)
        start = _thread.start_new_thread

        def start_traced(function: Callable[..., object], *arguments: Any) -> int:
            def run(*given: Any) -> None:
                sys.settrace(self)
                function(*given)

            return start(run, *arguments)

        _thread.start_new_thread = start_traced  # `threading` has its own name for it


def _kill_at_spots(chance: random.Random, on_main: bool) -> None:
    import tracker

    tracer = KillTracer()
    if not on_main:
        tracer.stretch()
    tracker.track(20)

    def live(number: int) -> None:
        if on_main:
            sys.settrace(tracer)
        tracker.track(5)
        tracker.close()
        sys.settrace(None)

    seen = _survey(tracer, live)
    if not seen:
        sys.exit("the client does nothing there")
    plan = []
    for _ in range(ROUNDS):
        spot, times = chance.choice(seen)
        plan.append((tuple(spot), chance.randint(1, times)))

    def prepare(number: int) -> None:
        tracer.deadly = plan[number]

    _in_children(len(plan), live, prepare)


def _survey(tracer: KillTracer, live: Callable[[int], object]) -> list[tuple[list[Any], int]]:
    """Each spot that such a life comes to, and how often. Not by chance: loops would have most of it."""
    there, here = os.pipe()
    if os.fork() == 0:
        live(0)
        with open(here, "w") as file:
            json.dump(sorted(tracer.seen.items()), file)
        os._exit(0)
    os.close(here)
    with open(there) as file:
        text = file.read()
    os.wait()
    return json.loads(text) if text else []


# On the tracer: the harness is the API.


def outside(run: ScenarioRun) -> None:
    from ..peers import RELAY
    from ..programs import Failure
    from ..scenario_run import NotApplicable

    has_relay = run.peer.column == RELAY
    if has_relay and run.name in ("kill-in-sender", "kill-heirs"):
        raise NotApplicable("no worker sends anything: a relay does")
    run.allows_overtaking = has_relay
    program = run.start(run.name, run.random.randrange(2**32), timeout=TIMEOUT)
    killer = None
    if run.name in ("kill-before-stored", "kill-after-stored", "kill-heirs"):
        program.receive()
        killer = SenderKiller(run, program.pid)
        run.api.rule = killer.look
        killer.work()
        run.api.rule = None
        program.close_stdin()
    run.finish(program, seconds=TIMEOUT)
    if killer and not killer.killed and (run.is_this_client or run.name != "kill-heirs"):
        raise Failure("no worker sent anything while it lived: nobody was killed at it")


class SenderKiller:
    """Kills whoever sent a request that has come: a worker, or the relay where there is one. The parent is spared.

    Not both: with a worker and its relay all copies of an event are gone. With a manager there is one more copy, in the
    memory that the family shares: there workers are killed too.
    """

    def __init__(self, run: ScenarioRun, parent: int) -> None:
        from ..peers import MANAGER, RELAY

        self._recovering_only = run.name == "kill-heirs"
        self._stored = {"kill-before-stored": (False,), "kill-after-stored": (True,)}.get(run.name, (False, True))
        self._flush_target = RECOVERIES if self._recovering_only else REQUESTS
        self._parent = parent
        self._relays_of = str(run.folder) if run.peer.column in (RELAY, MANAGER) else ""
        self._spares_workers = run.peer.column == RELAY
        self._chance = run.random
        self._lock = threading.Lock()  # requests come on many threads
        self.killed = 0

    def look(self, request: Any) -> Any:
        """The API's rule: what it does with this request."""
        from letterapp.testing import reset

        from ..api_server import events_of

        trackers = {int(who.partition("-")[0]) for _, (who, _) in events_of(request)}
        with self._lock:
            if self.killed >= self._flush_target or (not self._recovering_only and self._chance.random() > 0.5):
                return None
            poster = self._poster(request.connection[1])
            if not poster or (self._recovering_only and trackers <= {poster}):
                return None
            self.killed += 1
            stored = self._chance.choice(self._stored)

        def kill(handler: Any) -> object:
            _kill(poster)
            return reset(stored)(handler)

        return kill

    def work(self) -> None:
        """Wait until enough are killed. Heirs need somebody who dies first."""
        deadline = time.monotonic() + ENOUGH
        while self.killed < self._flush_target and time.monotonic() < deadline:
            time.sleep(self._chance.uniform(0.1, 0.3))
            workers = self._workers()
            if self._recovering_only and workers:
                _kill(self._chance.choice(workers))

    def _poster(self, port: int) -> int | None:
        """The process at the other end; None for the parent, whose connection a child may hold too."""
        if _holds(self._parent, port):
            return None
        return next((pid for pid in self._posters() if _holds(pid, port)), None)

    def _posters(self) -> list[int]:
        from ..process_monitor import surviving_processes

        if not self._relays_of:
            return self._workers()
        spared = {self._parent, *(self._workers() if self._spares_workers else ())}
        return sorted({each.pid for each in surviving_processes(self._relays_of, 0)} - spared)

    def _workers(self) -> list[int]:
        import psutil

        return sorted(child.pid for child in psutil.Process(self._parent).children())


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _holds(pid: int, port: int) -> bool:
    import psutil

    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        sockets = getattr(process, "net_connections", None) or process.connections  # psutil 6 has renamed it
        return any(each.laddr and each.laddr.port == port for each in sockets("tcp"))
    return False
