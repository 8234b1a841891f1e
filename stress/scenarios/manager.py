"""Faults of a `SenderManager`'s process: killed, stopped, restarted, full, and signalled together with its family.

Meanwhile a parent and its 4 forked children track. Only for the column with a manager's queue.
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
    "manager-killed": "SIGKILL to the managers of 3 families of a parent and 4 children, which continue to track",
    "manager-stopped": "6 SIGSTOPs of the manager, of up to 3 s: no call is slower",
    "manager-restarted": "a manager started with --manager: 3 restarts under load, by SIGTERM",
    "manager-starter-killed": "SIGKILL to 3 parents that started a manager: it serves their children, then ends",
    "manager-full-newest": "a manager with a queue of 150 events, API slow for 3 s; drop_newest",
    "manager-full-oldest": "the same, drop_oldest: dropped events are reported",
    "manager-full-block": "the same, block",
    "manager-terminated": "SIGTERM and SIGINT to the manager under load; then to it and its whole family at once",
}
KEY = "key"  # of every client
AUTHKEY = b"known-to-the-harness-as-well"
FAMILIES, STOPS, RESTARTS = 3, 6, 3
AFTERWARDS = 400  # events of a child after its parent was killed, one every 5 ms
CAPACITY = 150  # events: more than a batch, because the batch in flight cannot be dropped
SLOW, ANSWER = 3.0, 0.3  # seconds: how long the API is slow, and the time of each response
MANY = 200  # events after which a manager counts as used
SLOW_CALL = 5_000  # microseconds
LONGEST_CALL = 250_000  # microseconds: a call that waits for a manager takes a second or more
TOLERANCE = 5  # additional slow calls that may be coincidence
START = 20.0  # seconds until a manager accepts connections, and until its clients are connected again
END = 10.0  # seconds for a family to end; normally less than 1
TIMEOUT = 60.0


def inside(name: str) -> None:
    import family
    import tracker

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background process starts with SIGINT ignored
    family.run(parent_tracks=True, afterwards=AFTERWARDS if name == "manager-starter-killed" else 0)
    tracker.track(10)


def outside(run: ScenarioRun) -> None:
    from ..peers import MANAGER
    from ..scenario_run import NotApplicable

    if run.peer.column != MANAGER:
        raise NotApplicable(f"this client has no manager; see the column {MANAGER}")
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
    """A parent and its children, which track until the block ends. ``options`` are those of their manager."""
    program = _start(run, **options)
    yield program
    program.close_stdin()
    run.finish(program, seconds=END)


def _start(run: ScenarioRun, **options: Any) -> Any:
    # `exit_signals` has no effect in scenarios that do not send the signal.
    arguments: dict[str, Any] = {"manager": {"authkey": AUTHKEY.hex(), **options}, "exit_signals": [signal.SIGTERM]}
    program = run.start(run.name, timeout=TIMEOUT, **arguments)
    program.receive()
    return program


def _kill(run: ScenarioRun) -> None:
    for _ in range(FAMILIES):
        with _family(run):
            pid = _used(run)["pid"]
            time.sleep(run.random.uniform(0.05, 0.5))
            os.kill(pid, signal.SIGKILL)
            enough = run.calls + MANY
            _wait(partial(_has_calls, run, enough), "no process tracks after the end of the manager")
            _require(not _status(run), "a manager that was killed was started again")


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
            # Calls that waited for it have returned by then.
            status = _used(run, events=_status(run)["accepted"] + MANY)
            after = run.times()
            running += [between[key] for key in between.keys() - before.keys()]
            stopped += [after[key] for key in after.keys() - between.keys()]
    _compare(run.notes, running, stopped)


def _compare(notes: list[str], running: list[int], stopped: list[int]) -> None:
    """Fail if calls took longer while the manager was stopped. On a busy machine some are slow at all times."""
    slow, slow_stopped = (sum(each > SLOW_CALL for each in times) for times in (running, stopped))
    notes.append(
        f"calls over {SLOW_CALL / 1000:g} ms: {slow} of {len(running):,} while the manager ran, {slow_stopped} of "
        f"{len(stopped):,} around its stops, the longest {max(stopped) / 1000:.1f} ms"
    )
    expected = slow * len(stopped) / len(running)
    _require(slow_stopped <= 2 * expected + TOLERANCE, "calls were slower while the manager was stopped")
    _require(max(stopped) < LONGEST_CALL, "a call waited for a stopped manager")


def _restart(run: ScenarioRun) -> None:
    path, manager = _start_manager(run)
    with _family(run, address=path):
        previous = 0
        for _ in range(RESTARTS):
            previous = _used(run, path, but=previous)["pid"]
            time.sleep(run.random.uniform(0.05, 0.5))
            manager.signal(signal.SIGTERM)
            run.finish(manager, seconds=START)
            path, manager = _start_manager(run)
        _used(run, path, but=previous)
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
        _require(status, "the manager has ended while children of its starter are alive")
        _used(run, events=status["accepted"] + MANY)
        _require_end_of(run)


def _fill(run: ScenarioRun, overflow: str) -> None:
    from letterapp.testing import stall

    with _family(run, max_queue_events=CAPACITY, overflow=overflow):
        _used(run)
        run.api.rule = lambda request: stall(ANSWER)
        _wait(lambda: _status(run)["waiting"] >= CAPACITY / 2, "the manager was never full")
        time.sleep(SLOW)
        dropped = sum(_status(run)["lost"].values())
        run.api.rule = None
        run.notes.append(f"the manager dropped {dropped:,} events")
        _require(bool(dropped) == (overflow == "drop_oldest"), run.notes[-1])
        _require_progress(run)


def _require_progress(run: ScenarioRun) -> None:
    """Wait until an event of each process has arrived that was tracked after this call."""
    calls = Counter(who for who, _ in run.times())

    def have_all() -> bool:
        latest = {who: serial for _, (who, serial) in run.api.arrivals}
        return all(latest.get(who, 0) >= serial for who, serial in calls.items())

    _wait(have_all, "a process has sent nothing since its manager was full")


def _terminate(run: ScenarioRun) -> None:
    for last in (signal.SIGTERM, signal.SIGINT):
        program = _start(run)
        status = _used(run)
        for number in (signal.SIGTERM, signal.SIGINT):
            os.kill(status["pid"], number)
        found = _used(run, events=_status(run).get("accepted", 0) + MANY)
        _require(found["pid"] == status["pid"], "a signal has ended the manager of a family that is alive")
        program.signal_group(last)
        os.kill(status["pid"], last)
        run.finish(program, seconds=END)
        _require_end_of(run)


def _start_manager(run: ScenarioRun) -> tuple[str, Any]:
    """Start a manager independently of any client; return its address and its program once it accepts connections."""
    path, secret = str(run.folder / "standalone" / "manager.sock"), run.folder / "authkey"
    secret.write_bytes(AUTHKEY)
    arguments = ("-m", "letterapp", "relay", "--manager", path, "--authkey-file", secret, "--base-url", run.api.url)
    manager = run.start_server(*arguments, env={"LETTER_API_KEY": KEY}, timeout=2 * TIMEOUT)
    _wait(lambda: _status(run, path), "a manager does not accept connections")
    return path, manager


def _used(run: ScenarioRun, path: str = "", events: int = MANY, but: int = 0) -> dict[str, Any]:
    """Wait until a manager, other than the process ``but``, has accepted this number of events; return its status."""
    found: dict[str, Any] = {}

    def is_used() -> bool:
        found.update(_status(run, path))
        return bool(found) and found["pid"] != but and found["accepted"] >= events

    _wait(is_used, "no manager is used")
    return found


def _status(run: ScenarioRun, path: str = "") -> dict[str, Any]:
    """The status of the manager at ``path``, or of the one that a client has started; empty if there is none."""
    from letterapp import LetterError
    from letterapp.relay import SenderManager

    for place in [path] if path else map(str, Path(run.folder).glob("letterapp/manager-*.sock")):
        manager = SenderManager(KEY, run.api.url, address=place, authkey=AUTHKEY)
        with contextlib.suppress(LetterError):
            manager.connect()
            return manager.status()
    return {}


def _require_end_of(run: ScenarioRun) -> None:
    from ..process_monitor import surviving_processes

    _require(not surviving_processes(str(run.folder), START), "a process of a family that has ended is still running")


def _wait(condition: Any, message: str) -> None:
    from ..http_load import wait_until

    _require(wait_until(condition, START), message)


def _require(condition: object, message: str) -> None:
    from ..programs import Failure

    if not condition:
        raise Failure(message)
