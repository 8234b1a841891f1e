"""The process of a `SenderManager` is disturbed: killed, stopped, restarted, full, and signalled with its family.

A parent and 4 forked children track meanwhile. For the column with a manager's queue alone; the others have none.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Iterator

if TYPE_CHECKING:
    from ..scenario_run import ScenarioRun

FULL = {
    "manager-full-newest": "drop_newest",
    "manager-full-oldest": "drop_oldest",
    "manager-full-block": "block",
}
TITLES = {
    "manager-killed": "SIGKILL to the managers of 3 families of a parent and 4 children, which track on without",
    "manager-stopped": "6 SIGSTOPs of the manager, of up to 3 s: no call is slower for it",
    "manager-restarted": "a manager kept with --manager: 3 restarts under load, by SIGTERM",
    "manager-starter-killed": "SIGKILL to 3 parents that started a manager: it serves their children, then ends",
    "manager-full-newest": "a manager with room for 100 events, API slow for 3 s; drop_newest",
    "manager-full-oldest": "the same, drop_oldest: what gives way is told",
    "manager-full-block": "the same, block",
    "manager-terminated": "SIGTERM and SIGINT to the manager under load; then to it and its whole family at once",
}
KEY = "key"  # that every client has
AUTHKEY = b"what-the-harness-knows-too"
FAMILIES, STOPS, RESTARTS = 3, 6, 3
AFTERWARDS = 400  # events of a child whose parent has been killed, one in 5 ms
ROOM = 100  # events
SLOW, ANSWER = 3.0, 0.3  # seconds for which the API is slow, and that each answer takes then
MANY = 200  # events after which a manager counts as used
SLOW_CALL = 5_000  # microseconds
LONGEST_CALL = 250_000  # microseconds: a call that waited for a manager would take a second or more
SPARE = 5  # slow calls that chance may add
START = 20.0  # seconds for a manager to serve, and for its users to come back to it
END = 10.0  # seconds for a family to end when nothing is in its way: it needs less than 1
TIMEOUT = 60.0


def inside(name: str) -> None:
    import family
    import tracker

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a harness in the background passes on "ignore"
    family.run(parent_tracks=True, afterwards=AFTERWARDS if name == "manager-starter-killed" else 0)
    tracker.track(10)


def outside(run: ScenarioRun) -> None:
    from ..peers import MANAGER
    from ..scenario_run import NotApplicable

    if run.peer.column != MANAGER:
        raise NotApplicable(f"has no manager: see the column {MANAGER}")
    if run.name in FULL:
        _fill(run, FULL[run.name])
        return
    {
        "manager-killed": _kill,
        "manager-stopped": _stop,
        "manager-restarted": _restart,
        "manager-starter-killed": _kill_starter,
        "manager-terminated": _terminate,
    }[run.name](run)


@contextlib.contextmanager
def _family(run: ScenarioRun, **options: Any) -> Iterator[Any]:
    """A parent and its children that track until the block ends. ``options`` are those of their manager."""
    program = _start(run, **options)
    yield program
    program.close_stdin()
    run.finish(program, seconds=END)


def _start(run: ScenarioRun, **options: Any) -> Any:
    # What else the client is given makes no difference where nobody sends that signal.
    given: dict[str, Any] = {"manager": {"authkey": AUTHKEY.hex(), **options}, "exit_signals": [signal.SIGTERM]}
    program = run.start(run.name, timeout=TIMEOUT, **given)
    program.receive()
    return program


def _kill(run: ScenarioRun) -> None:
    for _ in range(FAMILIES):
        with _family(run):
            pid = _used(run)["pid"]
            time.sleep(run.random.uniform(0.05, 0.5))
            os.kill(pid, signal.SIGKILL)
            enough = run.calls + MANY
            _wait(partial(_has_calls, run, enough), "nobody tracks after the manager's end")
            _must(not _status(run), "a manager that was killed was started again")


def _has_calls(run: ScenarioRun, calls: int) -> bool:
    return bool(run.calls >= calls)


def _stop(run: ScenarioRun) -> None:
    with _family(run):
        running: list[int] = []
        stopped: list[int] = []
        status = _used(run)
        for _ in range(STOPS):
            seconds = run.random.uniform(0.3, 3)
            before = run.times()
            time.sleep(seconds)
            between = run.times()
            os.kill(status["pid"], signal.SIGSTOP)
            time.sleep(seconds)
            os.kill(status["pid"], signal.SIGCONT)
            # A call that had waited for it would have returned by then.
            status = _used(run, events=_status(run)["accepted"] + MANY)
            after = run.times()
            running += [between[key] for key in between.keys() - before.keys()]
            stopped += [after[key] for key in after.keys() - between.keys()]
    _compare(run, running, stopped)


def _compare(run: ScenarioRun, running: list[int], stopped: list[int]) -> None:
    """Fail if calls took longer while the manager was stopped. On a busy machine some are slow at any time."""
    slow, slow_stopped = (sum(each > SLOW_CALL for each in times) for times in (running, stopped))
    run.notes.append(
        f"calls over {SLOW_CALL / 1000:g} ms: {slow} of {len(running):,} while the manager ran, {slow_stopped} of "
        f"{len(stopped):,} around its stops, the longest {max(stopped) / 1000:.1f} ms"
    )
    expected = slow * len(stopped) / len(running)
    _must(slow_stopped <= 2 * expected + SPARE, "calls were slower while the manager was stopped")
    _must(max(stopped) < LONGEST_CALL, "a call waited for a manager that was stopped")


def _restart(run: ScenarioRun) -> None:
    path, manager = _keep(run)
    with _family(run, address=path):
        dead = 0
        for _ in range(RESTARTS):
            dead = _used(run, path, but=dead)["pid"]
            time.sleep(run.random.uniform(0.05, 0.5))
            manager.signal(signal.SIGTERM)
            run.finish(manager, seconds=START)
            path, manager = _keep(run)
        _used(run, path, but=dead)
    manager.signal(signal.SIGTERM)
    run.finish(manager, seconds=START)


def _kill_starter(run: ScenarioRun) -> None:
    for _ in range(FAMILIES):
        program = _start(run)
        _used(run)
        time.sleep(run.random.uniform(0.05, 0.5))
        program.signal(signal.SIGKILL)
        run.finish(program)
        status = _status(run)
        _must(status, "the manager has ended, and the children of its starter live")
        _used(run, events=status["accepted"] + MANY)
        _must_be_gone(run)


def _fill(run: ScenarioRun, overflow: str) -> None:
    from letterapp.testing import stall

    with _family(run, max_queue_events=ROOM, overflow=overflow):
        _used(run)
        run.api.rule = lambda request: stall(ANSWER)
        _wait(lambda: _status(run)["waiting"] >= ROOM / 2, "the manager was never full")
        time.sleep(SLOW)
        dropped = sum(_status(run)["lost"].values())
        run.api.rule = None
        run.notes.append(f"{dropped:,} events gave way in the manager")
        _must(bool(dropped) == (overflow == "drop_oldest"), run.notes[-1])
        _must_go_on(run)


def _must_go_on(run: ScenarioRun) -> None:
    """Wait until an event has come from each process that was tracked after now."""
    calls = Counter(who for who, _ in run.times())

    def have_all() -> bool:
        latest = {who: serial for _, (who, serial) in run.api.arrivals}
        return all(latest.get(who, 0) >= serial for who, serial in calls.items())

    _wait(have_all, "a process sends nothing more since its manager was full")


def _terminate(run: ScenarioRun) -> None:
    for last in (signal.SIGTERM, signal.SIGINT):
        program = _start(run)
        status = _used(run)
        for number in (signal.SIGTERM, signal.SIGINT):
            os.kill(status["pid"], number)
        found = _used(run, events=_status(run).get("accepted", 0) + MANY)
        _must(found["pid"] == status["pid"], "a signal has ended the manager of a family that lives")
        program.signal_group(last)
        os.kill(status["pid"], last)
        run.finish(program, seconds=END)
        _must_be_gone(run)


def _keep(run: ScenarioRun) -> tuple[str, Any]:
    """Start a manager that no client starts; return its address and its program, when it serves."""
    path, secret = str(run.folder / "kept" / "manager.sock"), run.folder / "authkey"
    secret.write_bytes(AUTHKEY)
    arguments = ("-m", "letterapp", "relay", "--manager", path, "--authkey-file", secret, "--base-url", run.api.url)
    manager = run.start_server(*arguments, env={"LETTER_API_KEY": KEY}, timeout=2 * TIMEOUT)
    _wait(lambda: _status(run, path), "a manager that was started does not serve")
    return path, manager


def _used(run: ScenarioRun, path: str = "", events: int = MANY, but: int = 0) -> dict[str, Any]:
    """Wait until a manager, not the process ``but``, has taken so many events; return how it is then."""
    found: dict[str, Any] = {}

    def is_used() -> bool:
        found.update(_status(run, path))
        return bool(found) and found["pid"] != but and found["accepted"] >= events

    _wait(is_used, "no manager is used")
    return found


def _status(run: ScenarioRun, path: str = "") -> dict[str, Any]:
    """What the manager at ``path``, or the one that a client has started, says of itself; empty if none serves."""
    from letterapp import LetterError
    from letterapp.relay import SenderManager

    for place in [path] if path else map(str, Path(run.folder).glob("letterapp/manager-*.sock")):
        manager = SenderManager(KEY, run.api.url, address=place, authkey=AUTHKEY)
        with contextlib.suppress(LetterError):
            manager.connect()
            return manager.status()
    return {}


def _must_be_gone(run: ScenarioRun) -> None:
    from ..process_monitor import surviving_processes

    _must(not surviving_processes(str(run.folder), START), "something is left of a family that has ended")


def _wait(true: Any, otherwise: str) -> None:
    from ..http_load import wait_until

    _must(wait_until(true, START), otherwise)


def _must(true: object, otherwise: str) -> None:
    from ..programs import Failure

    if not true:
        raise Failure(otherwise)
