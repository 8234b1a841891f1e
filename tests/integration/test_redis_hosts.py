"""A stream in Redis and programs on other hosts, which are network namespaces that a test makes and removes.

Responsible for: programs that reach Redis and nothing else, so that they cannot send events themselves. Not responsible
for: what can be tested on one host (test_redis.py, test_redis_relay.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable

import pytest
from harness import Program, environment, eventually, whose
from hosts import Host, needs_hosts
from managed import command_of
from programs import redis_clients
from redis_relays import KEY, Relays, Stream, started_relays  # noqa: F401
from redis_server import RedisServer, needs_redis, started_redis  # noqa: F401

pytestmark = [needs_redis, needs_hosts, pytest.mark.slow]


def test_programs_on_three_hosts_that_reach_only_redis_and_the_link_of_one_is_down_for_a_while(
    redis_server: Callable[..., RedisServer], relays: Relays, letter_api: Any, tmp_path: Path
) -> None:
    server = redis_server("--appendonly", "yes", "--protected-mode", "no", "--bind", "0.0.0.0")
    stream = Stream(server, relays)
    hosts: list[Host] = []
    programs: list[Program] = []
    try:
        for number in range(3):
            hosts.append(Host())
            url = server.url.replace("127.0.0.1", hosts[-1].gateway)
            command = hosts[-1].command(*command_of(redis_clients.lonely_host, url, KEY, f"host {number}", 1000))
            programs.append(Program(command, environment(letter_api.url), tmp_path))
        assert eventually(lambda: "connected" in programs[0].output, bool), programs[0].output
        hosts[0].disconnect()
        stream.kill_a_relay()
        assert eventually(lambda: "cannot be used" in programs[0].output, bool), programs[0].output
        server.restart()
        assert eventually(lambda: "tracked" in programs[0].output, bool), programs[0].output
        hosts[0].reconnect()
        for program in programs:
            finished = program.finish()
            assert finished.code == 0 and "Traceback" not in finished.output, finished
        stream.settle()
        found = {who: sorted(serials) for who, serials in whose(letter_api).items()}
        assert found == {f"host {number}": list(range(1000)) for number in range(3)}
    finally:
        for program in programs:
            program.__exit__()
        for host in hosts:
            host.remove()
