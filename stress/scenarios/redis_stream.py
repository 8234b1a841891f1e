"""Faults of a Redis server and of the relays that read its stream: killed, restarted, stopped.

Meanwhile a parent and its 4 forked children track. Only for the column with a stream in Redis.
"""

from __future__ import annotations

import contextlib
import signal
import time
from typing import TYPE_CHECKING, Any, Iterator

if TYPE_CHECKING:
    from ..scenario_run import ScenarioRun

TITLES = {
    "redis-restarted": "SIGKILL to Redis under load, 3 times, and a restart with its append-only file",
    "redis-gone": "Redis killed under load, and gone for 10 s",
    "redis-relay-killed": "two relays under load, SIGKILL to one of them, 5 times, and another one is started",
    "redis-relay-stopped": "two relays under load, SIGSTOP to one of them, 3 times, for up to twice --claim-after",
}
RESTARTS, KILLS, STOPS = 3, 5, 3
GONE = 10.0  # seconds
SETTLED = 300  # events of the family between two faults
START = 20.0  # seconds
END = 15.0
TIMEOUT = 90.0


def inside(name: str) -> None:
    import family
    import tracker

    family.run(parent_tracks=True)
    tracker.track(10)


def outside(run: ScenarioRun) -> None:
    from ..peers import REDIS
    from ..scenario_run import NotApplicable

    if run.peer.column != REDIS:
        raise NotApplicable(f"this client has no stream in Redis; see the column {REDIS}")
    run.allows_overtaking = True
    {
        "redis-restarted": _restart,
        "redis-gone": _go,
        "redis-relay-killed": _kill,
        "redis-relay-stopped": _stop,
    }[run.name](run)


@contextlib.contextmanager
def _family(run: ScenarioRun) -> Iterator[Any]:
    program = run.start(run.name, timeout=TIMEOUT)
    program.receive()
    _progress(run)
    yield program
    program.close_stdin()
    run.finish(program, seconds=END)


def _progress(run: ScenarioRun) -> None:
    """Wait until so many more events have arrived."""
    from ..programs import Failure

    enough = len(run.api.arrivals) + SETTLED
    if not run.api.wait_until(lambda: len(run.api.arrivals) >= enough, START):
        raise Failure("no more events arrive")


def _restart(run: ScenarioRun) -> None:
    with _family(run):
        for _ in range(RESTARTS):
            time.sleep(run.random.uniform(0.05, 0.5))
            run.redis.kill_server()
            run.redis.start_server()
            _progress(run)


def _go(run: ScenarioRun) -> None:
    with _family(run):
        run.redis.kill_server()
        time.sleep(GONE)
        run.redis.start_server()
        _progress(run)


def _kill(run: ScenarioRun) -> None:
    with _family(run):
        relay = run.start_redis_relay()
        for _ in range(KILLS):
            time.sleep(run.random.uniform(0.05, 0.5))
            relay.kill()
            relay.wait()
            relay = run.start_redis_relay()
            _progress(run)


def _stop(run: ScenarioRun) -> None:
    from ..scenario_run import CLAIM_AFTER

    with _family(run):
        relay = run.start_redis_relay()
        for _ in range(STOPS):
            relay.send_signal(signal.SIGSTOP)
            time.sleep(run.random.uniform(0.2, 2 * CLAIM_AFTER))
            relay.send_signal(signal.SIGCONT)
            _progress(run)
