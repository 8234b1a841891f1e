"""Ends that nobody announces: ``os._exit`` in one's own code and in others', a daemon, a family that a Ctrl-C ends."""

from __future__ import annotations

import os
import select
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..scenario_run import ScenarioRun

TITLES = {
    "os-exit": "a program and its 30 forked children, 10 events each, all of which leave by os._exit",
    "pytest-forked": "pytest --forked, 30 tests, each in a child that leaves by os._exit",
    "python-daemon": "python-daemon: 20 events, DaemonContext, which closes every descriptor; SIGTERM to the daemon",
    "family-ctrl-c": "a process and 3 forked children, 10 events waiting in each: one Ctrl-C; 5 families",
    "family-ctrl-c-outage": "the same, while the API is down: all is told",
    "family-ctrl-c-hurried": "the same with exit_timeout=1 where it exists, over before the tries are",
}
CHILDREN = 30
AT_ONCE = 4
BEFORE = 20  # events of a daemon before it is one
FAMILIES = 5
EVERY = 0.005  # seconds between two events of a daemon, or two looks
LONGER = 0.3  # seconds that a daemon tracks before it is ended
START = 20.0  # seconds for a daemon to be one
TIMEOUT = 30.0


def inside(name: str) -> None:
    {"os-exit": _leave, "python-daemon": _daemon}.get(name, _family)()


def _leave() -> None:
    import tracker

    tracker.track(10)
    alive = set()
    for _ in range(CHILDREN):
        pid = os.fork()
        if pid == 0:
            tracker.track(10)
            os._exit(0)
        alive.add(pid)
        while len(alive) >= AT_ONCE:
            alive.discard(os.wait()[0])
    for pid in alive:
        os.waitpid(pid, 0)
    tracker.track(10)
    os._exit(0)


def _daemon() -> None:
    import daemon
    import tracker

    tracker.track(BEFORE)
    tracker.close_logs()
    with daemon.DaemonContext(working_directory=os.getcwd(), detach_process=True):
        tracker.track()
        _say_who()
        while True:  # the context's own handler ends it
            tracker.track()
            select.select([], [], [], EVERY)


def _say_who() -> None:
    """It has no output any more."""
    Path("new").write_text(str(os.getpid()))
    os.replace("new", "pid")


def _family() -> None:
    import tracker

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a harness in the background passes on "ignore"
    for _ in range(3):
        if os.fork() == 0:
            break
    tracker.track(10)
    tracker.notify(pid=os.getpid())
    # Until Ctrl-C. Looked at often, because one that comes just before the system call does not interrupt it.
    while not select.select([0], [], [], EVERY)[0]:
        pass


def outside(run: ScenarioRun) -> None:
    if run.name == "python-daemon":
        _daemonize(run)
    elif run.name == "pytest-forked":
        _test(run)
    elif run.name == "os-exit":
        run.finish(run.start(run.name, timeout=TIMEOUT), seconds=TIMEOUT)
    else:
        if run.name != "family-ctrl-c":
            run.api.down()
        for _ in range(FAMILIES):
            _interrupt(run)


def _interrupt(run: ScenarioRun) -> None:
    from ..http_load import wait_until
    from ..process_monitor import is_alive
    from ..programs import Failure

    options: dict[str, Any] = {"exit_timeout": 1.0} if run.name == "family-ctrl-c-hurried" else {}
    program = run.start(run.name, timeout=2 * TIMEOUT, **options)
    family = [program.receive()["pid"] for _ in range(4)]
    program.signal_group(signal.SIGINT)
    run.finish(program, seconds=TIMEOUT)
    if not wait_until(lambda: not any(map(is_alive, family)), TIMEOUT) and run.is_this_client:
        raise Failure("a process of the family has not ended")


def _daemonize(run: ScenarioRun) -> None:
    from ..http_load import wait_until
    from ..peers import RELAY
    from ..process_monitor import is_alive
    from ..programs import Failure
    from . import relay

    run.finish(run.start(run.name, timeout=TIMEOUT), seconds=TIMEOUT)
    written = run.folder / "pid"
    if not wait_until(written.exists, START):
        raise Failure("there is no daemon")
    pid = int(written.read_text())
    if run.peer.column == RELAY:
        # One that the daemon has started and does not come to waits 20 s for its first client. The one of before had
        # what was tracked before.
        relay.used(run, events=BEFORE + 1)
    time.sleep(LONGER)
    os.kill(pid, signal.SIGTERM)
    wait_until(lambda: not is_alive(pid), TIMEOUT)  # if it is still there it is an orphan


def _test(run: ScenarioRun) -> None:
    from ..scenario_run import INSIDE

    flags = ("-q", "-p", "no:cacheprovider", "--forked", f"--rootdir={run.folder}")
    run.finish(
        run.start_server("-m", "pytest", *flags, INSIDE / "forked_tests.py", timeout=2 * TIMEOUT), seconds=TIMEOUT
    )
