"""A stream in Redis between three hosts with real servers and the relays: gunicorn, Celery and a pool.

The hosts are network namespaces that reach Redis and nothing else, so only relays can deliver. Each call that has
returned prints a line. What was printed must arrive, once as the API counts, whatever fails meanwhile.
"""

from __future__ import annotations

import json
import re
import signal
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any, Callable, Iterator, Tuple

import pytest
from harness import Program, environment, eventually, needs, suspend
from hosts import Host, needs_hosts
from managed import command_of
from programs import host_load
from redis_relays import Relays, length, name_of, pending, started_relays  # noqa: F401  (a fixture)
from redis_server import RedisServer, has_redis, needs_redis, started_redis  # noqa: F401  (a fixture)


def _celery_takes_redis_py() -> bool:
    """True if Celery can have its broker in Redis: it wants a newer redis-py than the client does."""
    return has_redis() and tuple(map(int, version("redis").split(".")[:2])) >= (6, 1)


pytestmark = [
    needs_redis,
    needs_hosts,
    needs("gunicorn"),
    needs("celery"),
    pytest.mark.skipif(not _celery_takes_redis_py(), reason="Celery's broker needs redis-py 6.1 or newer"),
    pytest.mark.slow,
]

CLAIM = ("--claim-after", "2")
REACHABLE = ("--protected-mode", "no", "--bind", "0.0.0.0")
STOPPED, GONE = 5.0, 10.0  # seconds
# Nothing else takes its events, so a process keeps them and tries for ever.
CLIENT: dict[str, Any] = {"exit_timeout": 60, "max_retries": None, "timeout": 5}

Tracked = Tuple[str, int]  # who, and the serial


class Site:
    """Three hosts under load, the Redis server between them and the relays, and a second one: Celery's broker."""

    def __init__(self, server: RedisServer, broker: RedisServer, relays: Relays, api: Any, folder: Path) -> None:
        self.server, self.relays, self.api = server, relays, api
        self._broker, self._folder = broker, folder
        self._until = folder / "enough"
        self.hosts: list[Host] = []
        self.servers: dict[str, Program] = {}  # they track, and end by SIGTERM
        self._loads: list[Program] = []  # they end when they are told

    def start(self) -> None:
        for _ in range(3):
            self.hosts.append(Host())
        web, tasks, jobs = self.hosts
        # No port of a new host is taken.
        flags = ["-b", "127.0.0.1:8000", "--preload", "-w", "3", "--timeout", "60"]
        self.servers["gunicorn"] = self._run(web, sys.executable, "-m", "gunicorn", "programs.relay_wsgi", *flags)
        flags = ["--loglevel", "WARNING", "--concurrency", "2", "--without-gossip", "--without-mingle"]
        celery = [sys.executable, "-m", "celery", "-A", "programs.relay_tasks", "worker", *flags]
        self.servers["celery"] = self._run(tasks, *celery, TEST_STAYING="0", TEST_ENDLESS="0")
        self.servers["pool"] = self._run(jobs, *command_of(host_load.pool, self._until))
        self._loads.append(self._run(web, *command_of(host_load.visitors, "127.0.0.1:8000", self._until)))
        self._loads.append(self._run(tasks, *command_of(host_load.producer, self._until)))
        # On this host it takes the client's `timeout` to find out that there is no API. The others are refused at once.
        self._loads.append(self._run(jobs, *command_of(host_load.silent_api, self.api.port, self._until)))
        self.wait_for_more(100)

    def _run(self, host: Host, *command: str, **more: str) -> Program:
        client = {**CLIENT, "relay": self.server.url.replace("127.0.0.1", host.gateway)}
        broker = self._broker.url.replace("127.0.0.1", host.gateway)
        env = environment(self.api.url, TEST_CLIENT=json.dumps(client), TEST_BROKER=broker, **more)
        return Program(host.command(*command), env, self._folder)

    def processes(self) -> dict[int, list[Tracked]]:
        """What each process has tracked until now, in its order."""
        found: dict[int, list[Tracked]] = {}
        for program in self.servers.values():
            for who, serial, pid in re.findall(r"^tracked (\S+) (\d+) in (\d+)$", program.output, re.M):
                found.setdefault(int(pid), []).append((who, int(serial)))
        return found

    def tracked(self, server: str) -> int:
        return len(re.findall(r"^tracked ", self.servers[server].output, re.M))

    def arrived(self) -> list[Tracked]:
        """What has arrived, in that order, once as the API counts."""
        seen: dict[str, Tracked] = {}
        for item in list(self.api.events):
            seen.setdefault(item["messageId"], (item["userId"], item["properties"]["serial"]))
        return list(seen.values())

    def sent_again(self) -> bool:
        """True when an event has come twice, as the same message or not."""
        came = [(item["userId"], item["properties"]["serial"]) for item in list(self.api.events)]
        return len(set(came)) < len(came)

    def wait_for_more(self, events: int) -> None:
        """Wait until each host has tracked so many more."""
        enough = {name: self.tracked(name) + events for name in self.servers}

        def behind() -> list[str]:
            return [name for name in self.servers if self.tracked(name) < enough[name]]

        late = eventually(behind, lambda late: not late)
        assert not late, [(name, self.servers[name].output[-5000:]) for name in late]

    def without_redis(self) -> list[str]:
        """The servers that have said that they do without it."""
        return [name for name, server in self.servers.items() if "cannot be used" in server.output]

    def catch_up(self) -> dict[int, list[Tracked]]:
        """Wait until all that has been tracked until now has arrived, under load; return it."""
        until_now = self.processes()
        wanted = {each for tracked in until_now.values() for each in tracked}
        missing = eventually(lambda: wanted - set(self.arrived()), lambda rest: not rest)
        assert not missing, (len(missing), sorted(missing)[:20])
        return until_now

    def end(self) -> None:
        """End the load and then the servers, in order, and wait until the relays have delivered all."""
        self._until.touch()
        for load in self._loads:
            finished = load.finish()
            assert finished.code == 0, finished
        for name, server in self.servers.items():
            if name != "pool":
                server.signal(signal.SIGTERM)
            finished = server.finish()
            assert finished.code == 0 and "Traceback" not in finished.output, finished
        assert eventually(lambda: (length(self.server), pending(self.server)), lambda rest: rest == (0, {})) == (0, {})

    def all_arrived_once(self) -> None:
        arrived = self.arrived()
        assert len(arrived) == len(set(arrived))
        lost = {each for tracked in self.processes().values() for each in tracked} - set(arrived)
        assert not lost, sorted(lost)
        for relay in self.relays.started:
            assert "lost:" not in relay.output and "given up" not in relay.output, relay.output

    def close(self) -> None:
        for program in [*self._loads, *self.servers.values()]:
            program.__exit__()
        for host in self.hosts:
            host.remove()


@pytest.fixture
def site(redis_server: Callable[..., RedisServer], relays: Relays, letter_api: Any, tmp_path: Path) -> Iterator[Site]:
    server = redis_server("--appendonly", "yes", *REACHABLE)
    made = Site(server, redis_server(*REACHABLE), relays, letter_api, tmp_path)
    yield made
    made.close()


def in_order(processes: dict[int, list[Tracked]], arrived: list[Tracked]) -> None:
    place = {each: number for number, each in enumerate(arrived)}
    for tracked in processes.values():
        places = [place[each] for each in tracked]
        assert places == sorted(places), tracked


def wait(seconds: float, since: float) -> None:
    eventually(lambda: time.monotonic() - since, lambda passed: passed >= seconds)


def test_a_relay_is_killed_one_is_stopped_a_link_is_down_and_redis_is_restarted(site: Site) -> None:
    first = site.relays.start(site.server.url, *CLAIM)
    site.start()
    in_order(site.catch_up(), site.arrived())

    site.api.hold()
    before = len(site.api.requests)
    assert site.api.wait_until(lambda: len(site.api.requests) > before)
    first.signal(signal.SIGKILL)  # in the middle of a batch, which the API gets and nobody acknowledges
    first.process.wait()
    both = [site.relays.start(site.server.url, *CLAIM) for _ in range(2)]
    site.api.release()
    site.catch_up()
    assert eventually(site.sent_again, bool)

    site.api.hold()
    stopped = both[0]
    assert eventually(lambda: name_of(stopped) in {name for name, _ in pending(site.server).values()}, bool)
    suspend(stopped.pid)  # with a batch, which the other one takes
    began = time.monotonic()
    site.api.release()
    site.hosts[0].disconnect()
    gunicorn = site.servers["gunicorn"]
    assert "gunicorn" in eventually(site.without_redis, lambda found: "gunicorn" in found), gunicorn.output
    site.wait_for_more(20)
    gunicorn.signal(signal.SIGKILL, gunicorn.descendants()[0].pid)
    wait(STOPPED, began)
    stopped.signal(signal.SIGCONT)
    site.hosts[0].reconnect()
    site.catch_up()

    site.server.restart()
    site.wait_for_more(20)
    site.catch_up()
    site.end()
    site.all_arrived_once()


def test_redis_is_killed_and_gone_for_ten_seconds(site: Site) -> None:
    relay = site.relays.start(site.server.url, *CLAIM)
    site.start()
    began = time.monotonic()
    site.server.kill()
    site.wait_for_more(100)
    assert eventually(site.without_redis, lambda found: found == list(site.servers)) == list(site.servers)
    wait(GONE, began)
    site.server.start()
    site.catch_up()
    site.wait_for_more(20)
    site.end()
    site.all_arrived_once()
    # One relay has read, and all events went through Redis.
    in_order(site.processes(), site.arrived())
    assert relay.output.count("cannot be used") == relay.output.count("is used again") > 0, relay.output
