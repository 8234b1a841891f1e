"""Ends that nobody announces: ``os._exit`` in one's own code and in others', a daemon, a family that a Ctrl-C ends."""

from __future__ import annotations

import os
import select
import signal
import time
from pathlib import Path
from typing import Any

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
PATIENCE = 30.0


def inside(name: str) -> None:
    {"os-exit": _leave, "python-daemon": _daemon}.get(name, _family)()


def _leave() -> None:
    import desk

    desk.track(10)
    alive = set()
    for _ in range(CHILDREN):
        pid = os.fork()
        if pid == 0:
            desk.track(10)
            os._exit(0)
        alive.add(pid)
        while len(alive) >= AT_ONCE:
            alive.discard(os.wait()[0])
    for pid in alive:
        os.waitpid(pid, 0)
    desk.track(10)
    os._exit(0)


def _daemon() -> None:
    import daemon
    import desk

    desk.track(BEFORE)
    desk.turn_over()
    with daemon.DaemonContext(working_directory=os.getcwd(), detach_process=True):
        desk.track()
        _say_who()
        while True:  # the context's own handler ends it
            desk.track()
            select.select([], [], [], EVERY)


def _say_who() -> None:
    """It has no output any more."""
    Path("new").write_text(str(os.getpid()))
    os.replace("new", "pid")


def _family() -> None:
    import desk

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a harness in the background passes on "ignore"
    for _ in range(3):
        if os.fork() == 0:
            break
    desk.track(10)
    desk.say(pid=os.getpid())
    # Until Ctrl-C. Looked at often, because one that comes just before the system call does not interrupt it.
    while not select.select([0], [], [], EVERY)[0]:
        pass


def outside(stage: Any) -> None:
    if stage.name == "python-daemon":
        _daemonize(stage)
    elif stage.name == "pytest-forked":
        _test(stage)
    elif stage.name == "os-exit":
        stage.finish(stage.play(stage.name, patience=PATIENCE), seconds=PATIENCE)
    else:
        if stage.name != "family-ctrl-c":
            stage.api.down()
        for _ in range(FAMILIES):
            _interrupt(stage)


def _interrupt(stage: Any) -> None:
    from ..programs import Failure
    from ..visits import until
    from ..watch import is_alive

    options = {"exit_timeout": 1.0} if stage.name == "family-ctrl-c-hurried" else {}
    program = stage.play(stage.name, patience=2 * PATIENCE, **options)
    family = [program.hear()["pid"] for _ in range(4)]
    program.signal_group(signal.SIGINT)
    stage.finish(program, seconds=PATIENCE)
    if not until(lambda: not any(map(is_alive, family)), PATIENCE) and stage.is_this_client:
        raise Failure("a process of the family has not ended")


def _daemonize(stage: Any) -> None:
    from ..peers import RELAY
    from ..programs import Failure
    from ..visits import until
    from ..watch import is_alive
    from . import relay

    stage.finish(stage.play(stage.name, patience=PATIENCE), seconds=PATIENCE)
    written = stage.folder / "pid"
    if not until(written.exists, START):
        raise Failure("there is no daemon")
    pid = int(written.read_text())
    if stage.peer.column == RELAY:
        # One that the daemon has started and does not come to waits 20 s for its first client. The one of before had
        # what was tracked before.
        relay.used(stage, events=BEFORE + 1)
    time.sleep(LONGER)
    os.kill(pid, signal.SIGTERM)
    until(lambda: not is_alive(pid), PATIENCE)  # if it is still there it is an orphan


def _test(stage: Any) -> None:
    from ..stage import INSIDE

    flags = ("-q", "-p", "no:cacheprovider", "--forked", f"--rootdir={stage.folder}")
    stage.finish(stage.serve("-m", "pytest", *flags, INSIDE / "cases.py", patience=2 * PATIENCE), seconds=PATIENCE)
