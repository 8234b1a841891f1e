"""Unusual exits: ``os._exit`` in one's own code and in libraries, a daemon, a family that Ctrl-C ends."""

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
    "os-exit": "a program and its 30 forked children, 10 events each, which all end with os._exit",
    "pytest-forked": "pytest --forked, 30 tests, each in a child that ends with os._exit",
    "python-daemon": "python-daemon: 20 events, DaemonContext, which closes every descriptor; SIGTERM to the daemon",
    "family-ctrl-c": "a process and 3 forked children, 10 events waiting in each: one Ctrl-C; 5 families",
    "family-ctrl-c-outage": "the same, while the API is down: every event is reported",
    "family-ctrl-c-hurried": "the same, with exit_timeout=1 where it exists, which ends before the retries",
}
CHILDREN = 30
AT_ONCE = 4
BEFORE = 20  # events of a program before it becomes a daemon
FAMILIES = 5
INTERVAL = 0.005  # seconds between two events of a daemon, or two polls
DAEMON_LIFE = 0.3  # seconds that a daemon tracks before SIGTERM
START = 20.0  # seconds until a daemon has started
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
        _write_pid()
        while True:  # until the signal handler of the context ends it
            tracker.track()
            select.select([], [], [], INTERVAL)


def _write_pid() -> None:
    """For the harness: a daemon has no stdout."""
    Path("new").write_text(str(os.getpid()))
    os.replace("new", "pid")


def _family() -> None:
    import tracker

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background process starts with SIGINT ignored
    for _ in range(3):
        if os.fork() == 0:
            break
    tracker.track(10)
    tracker.notify(pid=os.getpid())
    # Until Ctrl-C. A short timeout, because a signal just before the system call does not interrupt it.
    while not select.select([0], [], [], INTERVAL)[0]:
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
        raise Failure("the daemon has not started")
    pid = int(written.read_text())
    if run.peer.column == RELAY:
        # A relay without clients waits 20 s for the first one, so SIGTERM must come after the daemon has connected. The
        # events before the fork went to an earlier relay.
        relay.used(run, events=BEFORE + 1)
    time.sleep(DAEMON_LIFE)
    os.kill(pid, signal.SIGTERM)
    wait_until(lambda: not is_alive(pid), TIMEOUT)  # if it is still running it counts as an orphan


def _test(run: ScenarioRun) -> None:
    from ..scenario_run import INSIDE

    flags = ("-q", "-p", "no:cacheprovider", "--forked", f"--rootdir={run.folder}")
    run.finish(
        run.start_server("-m", "pytest", *flags, INSIDE / "forked_tests.py", timeout=2 * TIMEOUT), seconds=TIMEOUT
    )
