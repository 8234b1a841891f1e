"""What a stream in Redis costs: the figures from which docs/many-hosts.md plans for many workers.

Responsible for: Redis's CPU and memory for entries of several sizes, a relay's CPU and rate, the rate of several relays
whose API takes its time, the memory of connections. Not responsible for: the rates of workers (`scaling.py`), what is
appended (`inside/measured_clients.py`), the numbers of events in an entry and of relays (`metrics.py`).

Rates and a relay's CPU are taken between two moments at which the API has so many events, so the start of the relay and
the last, incomplete requests are not in them.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Dict, Iterator, NamedTuple

import psutil

from .peers import Environments, Peer
from .programs import Failure, Program
from .redis_service import RedisService

HERE = Path(__file__).resolve().parent
EVENTS = {1: 60_000, 10: 200_000, 100: 400_000}  # by the number of events in an entry: seconds each
WARM_UP = 0.1  # the part of the events before the first moment
# Processes that append at once: if Redis had to wait for each entry of a single one, most of its CPU would be the cost
# of falling asleep and waking up (38 us an entry on a machine at rest, 15 on a busy one).
APPENDERS = 4
SLOW = 0.050  # seconds until the API answers
SLOW_EVENTS = 12_800  # for each relay: twice what it takes at a time
CONNECTIONS = 400
REQUEST = 2_430  # bytes: ten events

Figures = Dict[str, float]


class _Run(NamedTuple):
    redis: RedisService
    appenders: list[Program]  # which append when they are resumed
    api: Program
    url: str  # of the API
    peer: Peer

    def append(self) -> None:
        for program in self.appenders:
            program.resume()
        for program in self.appenders:
            program.receive()

    def start_relay(self) -> psutil.Process:
        relay = self.redis.start_relay(self.peer.python, self.peer.env, self.url)
        return psutil.Process(relay.pid)


class StreamCosts:
    def __init__(self, environments: Environments) -> None:
        self._environments = environments

    def entries(self, per_entry: int) -> Figures:
        """CPU and memory of Redis and of a relay, with ``per_entry`` events in each entry."""
        figures = self._entry_costs(per_entry, append_only=False)
        durable = self._entry_costs(per_entry, append_only=True)
        return {**figures, "redis_durable_cpu": durable["redis_append_cpu"] + durable["redis_read_cpu"]}

    def _entry_costs(self, per_entry: int, append_only: bool) -> Figures:
        events = EVENTS[per_entry]
        with self._running(events, per_entry, [int(WARM_UP * events), events], append_only=append_only) as run:
            redis = run.redis
            cpu, memory = [redis.cpu()], redis.memory()
            run.append()
            cpu.append(redis.cpu())
            memory = redis.memory() - memory
            relay = run.start_relay()
            began, relay_cpu = run.api.receive(), _cpu(relay)
            ended, relay_cpu = run.api.receive(), _cpu(relay) - relay_cpu
            if not redis.drain() or ended["events"] != events:
                raise Failure(f"{ended['events']:,} of {events:,} events arrived: {redis.logs().strip()[-200:]}")
            cpu.append(redis.cpu())
        delivered = ended["events"] - began["events"]
        entries = events / per_entry
        return {
            "redis_append_cpu": (cpu[1] - cpu[0]) / entries * 1e6,
            "redis_read_cpu": (cpu[2] - cpu[1]) / entries * 1e6,
            "redis_event_memory": memory / events,
            "redis_relay_cpu": relay_cpu / delivered * 1e6,
            "redis_relay_rate": delivered / (ended["last"] - began["last"]),
        }

    def slow_api(self, relays: int) -> Figures:
        """The rate of ``relays`` together if the API answers each request after `SLOW` seconds."""
        events = SLOW_EVENTS * relays
        with self._running(events, 100, [events // 10, events * 9 // 10, events], delay=SLOW) as run:
            for _ in range(relays):
                run.start_relay()
            run.append()
            began, ended, _ = (run.api.receive() for _ in range(3))
        return {"redis_slow_rate": (ended["events"] - began["events"]) / (ended["last"] - began["last"])}

    def connections(self) -> Figures:
        """Memory of Redis for a connection, in KB."""
        with RedisService() as redis:
            used, idle = redis.connection_memory(CONNECTIONS, REQUEST)
        return {"redis_used_connection": used / 1024, "redis_idle_connection": idle / 1024}

    @contextmanager
    def _running(
        self, events: int, per_entry: int, marks: list[int], delay: float = 0.0, append_only: bool = False
    ) -> Iterator[_Run]:
        """A server, an API that reports at ``marks``, and programs that are ready to append."""
        peer = self._environments.redis()
        with ExitStack() as stack:
            api = stack.enter_context(
                Program(sys.executable, HERE / "counting_server.py", peer.marker, *marks, "--delay", delay)
            )
            url = f"http://127.0.0.1:{api.receive()['port']}"
            redis = stack.enter_context(RedisService(append_only))
            env = {**peer.env, "STRESS_REDIS": redis.url}
            measure = HERE / "inside" / "measure.py"
            each = events // APPENDERS
            appenders = [
                stack.enter_context(
                    Program(peer.python, measure, "entries", "letterapp_redis", url, each, per_entry, env=env)
                )
                for _ in range(APPENDERS)
            ]
            for program in appenders:
                program.receive()
            yield _Run(redis, appenders, api, url, peer)


def _cpu(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.Error:
        raise Failure("the relay has ended") from None
    return float(times.user + times.system)
