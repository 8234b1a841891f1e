"""Clients and relays while Redis itself fails: restarted, gone, cut off, full, flushed, failed over.

Responsible for: that nothing is lost then, and that all of them come back. Not responsible for: failures of a relay
(`test_redis_relay`), what a client does without Redis (`test_redis`).
"""

from __future__ import annotations

import signal
import sys
import threading
from functools import partial
from typing import Any, Callable

import pytest
from harness import eventually
from redis_relays import (  # noqa: F401  (fixtures)
    Cable,
    Relays,
    cable_to_servers,
    idle,
    length,
    name_of,
    pending,
    says,
    started_relays,
    stream_of,
)
from redis_server import RedisServer, Sentinel, needs_redis, started_redis  # noqa: F401

from letterapp import Letter, LetterError
from stress.ports import free_port

pytestmark = [needs_redis, pytest.mark.slow]
DURABLE = ("--appendonly", "yes")
CLAIM = ("--claim-after", "2")


class Load:
    """A thread that tracks until the ``with`` block ends; then all is flushed."""

    def __init__(self, letter: Letter) -> None:
        self._letter = letter
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._track)
        self.tracked = 0

    def _track(self) -> None:
        while not self._is_over.wait(0.001):
            self._letter.track("u", "Worked", {"serial": self.tracked})
            self.tracked += 1

    def more(self, count: int) -> None:
        target = self.tracked + count
        assert eventually(lambda: self.tracked >= target, bool)

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._is_over.set()
        self._thread.join()
        assert self._letter.flush(30)


def all_arrived(api: Any, count: int, server: RedisServer, errors: list[LetterError]) -> None:
    """Each event arrived, nothing was reported as lost, and nothing is left in Redis."""
    assert api.wait_for(count), (api.distinct, count)
    assert {event["properties"]["serial"] for event in api.events} == set(range(count))
    assert api.distinct == count
    assert all(error.cause == "degraded" for error in errors), errors
    empty = eventually(lambda: (length(server), pending(server)), lambda found: found == (0, {}))
    assert empty == (0, {})


def test_redis_is_killed_and_restarted_with_its_append_only_file(
    redis_server: Callable[..., RedisServer], make: Any, relays: Relays, letter_api: Any, errors: list[LetterError]
) -> None:
    server = redis_server(*DURABLE)
    both = [relays.start(server.url, *CLAIM) for _ in range(2)]
    with Load(make(relay=server.url)) as load:
        for _ in range(3):
            load.more(500)
            server.restart()
        load.more(500)
    all_arrived(letter_api, load.tracked, server, errors)
    for relay in both:
        assert "lost:" not in relay.output, relay.output


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(("--consumer", "stream-0"), id="named"),
        pytest.param((), id="unnamed", marks=pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")),
    ],
)
def test_the_only_relay_is_killed_and_started_again_under_load(
    options: tuple[str, ...],
    redis_server: Callable[..., RedisServer],
    make: Any,
    relays: Relays,
    letter_api: Any,
    errors: list[LetterError],
) -> None:
    server = redis_server()
    with Load(make(relay=server.url)) as load:
        for _ in range(3):
            killed = relays.start(server.url, "--claim-after", "1000", *options)
            load.more(500)
            assert eventually(lambda: pending(server), bool)
            killed.signal(signal.SIGKILL)
            killed.process.wait()
        last = relays.start(server.url, "--claim-after", "1000", *options)
        load.more(500)
    all_arrived(letter_api, load.tracked, server, errors)
    assert "lost:" not in last.output and "given up" not in last.output, last.output


def test_redis_is_gone_for_longer_than_a_relay_may_be_silent(
    redis_server: Callable[..., RedisServer], make: Any, relays: Relays, letter_api: Any, errors: list[LetterError]
) -> None:
    server = redis_server(*DURABLE)
    both = [relays.start(server.url, *CLAIM) for _ in range(2)]
    letter = make(relay=server.url)
    with Load(letter) as load:
        load.more(500)
        server.kill()
        load.more(3000)  # at least 3 s
        server.start()
        assert eventually(lambda: letter.stats()["mode"] == "relay", bool)
        load.more(500)
    all_arrived(letter_api, load.tracked, server, errors)
    for relay in both:
        assert says(relay, "is used again")
        assert relay.output.count("cannot be used") == relay.output.count("is used again") == 1, relay.output


def test_the_network_between_workers_and_redis_is_cut(
    redis_server: Callable[..., RedisServer],
    cable: Callable[[RedisServer], Cable],
    make: Any,
    relays: Relays,
    letter_api: Any,
    errors: list[LetterError],
) -> None:
    server = redis_server(*DURABLE)
    network = cable(server)
    relays.start(server.url, *CLAIM)
    letter = make(relay=network.url)
    with Load(letter) as load:
        load.more(500)
        network.cut()
        assert eventually(lambda: letter.stats()["mode"] != "relay", bool)
        load.more(500)
        network.mend()
        assert eventually(lambda: letter.stats()["mode"] == "relay", bool)
        load.more(500)
    all_arrived(letter_api, load.tracked, server, errors)


def test_the_network_between_one_relay_and_redis_is_cut(
    redis_server: Callable[..., RedisServer],
    cable: Callable[[RedisServer], Cable],
    make: Any,
    relays: Relays,
    letter_api: Any,
    errors: list[LetterError],
) -> None:
    server = redis_server(*DURABLE)
    network = cable(server)
    lonely = relays.start(network.url, *CLAIM)
    other = relays.start(server.url, *CLAIM)
    with Load(make(relay=server.url)) as load:
        load.more(500)
        network.cut()
        assert says(lonely, "cannot be used")
        load.more(500)
        network.mend()
        assert says(lonely, "is used again")
        load.more(500)
    all_arrived(letter_api, load.tracked, server, errors)
    for relay in (lonely, other):
        assert "lost:" not in relay.output and "given up" not in relay.output, relay.output


def test_somebody_flushes_redis(
    redis_server: Callable[..., RedisServer], make: Any, relays: Relays, letter_api: Any, errors: list[LetterError]
) -> None:
    server = redis_server()
    relay = relays.start(server.url)
    letter = make(relay=server.url)
    for serial in range(3):
        letter.track("u", "Worked", {"serial": serial})
        assert letter.flush(20)
        assert letter_api.wait_for(serial + 1)
        with server.client() as client:
            client.flushall()
    assert eventually(lambda: "creating it again" in relay.output, bool), relay.output
    letter.track("u", "Worked", {"serial": 3})
    assert letter.flush(20)
    all_arrived(letter_api, 4, server, errors)


def test_a_redis_without_memory_is_emptied_by_its_relays(
    redis_server: Callable[..., RedisServer], make: Any, relays: Relays, letter_api: Any, errors: list[LetterError]
) -> None:
    server = redis_server()
    letter_api.hold()
    relays.start(server.url, *CLAIM)
    letter = make(relay=server.url)
    with server.client() as client:
        with Load(letter) as load:
            load.more(500)
            assert letter_api.wait_until(lambda: letter_api.requests)
        waited = client.xlen(stream_of(client))
        client.config_set("maxmemory", 1)
        letter.track("u", "Worked", {"serial": load.tracked})  # its process sends it, when the API answers
        assert eventually(lambda: letter.stats()["mode"] != "relay", bool)
        letter_api.release()
        assert waited and eventually(lambda: client.xlen(stream_of(client)), lambda found: found == 0) == 0
        client.config_set("maxmemory", 0)
    all_arrived(letter_api, load.tracked + 1, server, errors)
    assert any("out of memory" in str(error) for error in errors)


@pytest.mark.parametrize("policy", ["volatile-lru", "volatile-lfu", "volatile-random", "volatile-ttl"])
def test_a_full_redis_that_evicts_what_expires_keeps_the_stream(
    policy: str,
    redis_server: Callable[..., RedisServer],
    make: Any,
    relays: Relays,
    letter_api: Any,
    errors: list[LetterError],
) -> None:
    server = redis_server("--maxmemory-policy", policy)
    letter_api.hold()
    relays.start(server.url, *CLAIM)
    with Load(make(relay=server.url)) as load:
        load.more(500)
        assert letter_api.wait_until(lambda: letter_api.requests)
    with server.client() as client:
        waiting = client.xlen(stream_of(client))
        client.config_set("maxmemory", client.info("memory")["used_memory"] + 4_000_000)
        for serial in range(200):
            client.set(f"other-{serial}", bytes(50_000), ex=1000)
        assert client.info("stats")["evicted_keys"] > 50
        assert waiting and client.xlen(stream_of(client)) == waiting
        ours = client.keys("*letterapp*")
        assert ours and {client.ttl(key) for key in ours} == {-1}  # none of them expires
    letter_api.release()
    all_arrived(letter_api, load.tracked, server, errors)


def test_a_sentinel_replaces_a_master_that_is_killed(
    redis_server: Callable[..., RedisServer], make: Any, relays: Relays, letter_api: Any, errors: list[LetterError]
) -> None:
    master = redis_server(*DURABLE)
    replica = redis_server("--replicaof", "127.0.0.1", str(master.port), *DURABLE)
    sentinel = Sentinel(master, "events")
    try:
        with sentinel.client(decode_responses=True) as asked:
            assert eventually(lambda: asked.sentinel_master("events")["num-slaves"], bool)
        url = f"redis+sentinel://127.0.0.1:{free_port()},127.0.0.1:{sentinel.port}/events/0"
        letter = make(relay=url)
        letter_api.hold()
        relays.start(url, *CLAIM)
        with Load(letter) as load:
            load.more(300)
            with master.client() as client:
                assert eventually(lambda: client.wait(1, 1000), bool)
            master.kill()
            with sentinel.client(decode_responses=True) as asked:
                assert eventually(lambda: asked.sentinel_master("events")["port"], lambda port: port == replica.port)
            letter_api.release()
            assert eventually(lambda: letter.stats()["mode"] == "relay", bool)
            load.more(300)
        # What was appended after the last replication is lost with the master: see docs/many-hosts.md.
        assert eventually(lambda: (length(replica), pending(replica)), lambda found: found == (0, {})) == (0, {})
        arrived = {event["properties"]["serial"] for event in letter_api.events}
        assert set(range(300)) <= arrived and load.tracked - 1 in arrived
        assert all(error.cause == "degraded" for error in errors), errors
    finally:
        sentinel.close()


def test_a_node_of_a_cluster_names_the_node_that_has_the_stream(
    redis_server: Callable[..., RedisServer], make: Any, relays: Relays, letter_api: Any, errors: list[LetterError]
) -> None:
    nodes = [redis_server("--cluster-enabled", "yes") for _ in range(2)]
    first, second = [node.client() for node in nodes]
    with first, second:
        first.execute_command("CLUSTER", "ADDSLOTS", *range(8192))
        second.execute_command("CLUSTER", "ADDSLOTS", *range(8192, 16384))
        first.execute_command("CLUSTER", "MEET", "127.0.0.1", nodes[1].port)
        for client in (first, second):
            assert eventually(partial(is_ready, client), bool)
    # Each of two nodes has half of the slots, so with both URLs one of the clients has to be sent on.
    for serial, node in enumerate(nodes):
        letter = make(relay=node.url)
        letter.track("u", "Worked", {"serial": serial})
        assert letter.flush(20)
    relays.start(nodes[0].url)
    relays.start(nodes[1].url)
    assert letter_api.wait_for(2)
    assert [event["properties"]["serial"] for event in letter_api.events] == [0, 1]
    assert all(error.cause == "degraded" and "no relay has ever read" in str(error) for error in errors), errors


def is_ready(client: Any) -> bool:
    return bool(client.execute_command("CLUSTER INFO")["cluster_state"] == "ok")


def test_a_relay_that_was_itself_away_declares_nobody_dead(
    redis_server: Callable[..., RedisServer],
    cable: Callable[[RedisServer], Cable],
    make: Any,
    relays: Relays,
    letter_api: Any,
) -> None:
    server = redis_server(*DURABLE)
    networks = [cable(server) for _ in range(2)]
    letter_api.hold()
    busy = relays.start(networks[0].url, "--claim-after", "3")
    letter = make(relay=server.url)
    letter.track("u", "Worked", {"serial": 0})
    assert letter.flush(20)
    assert letter_api.wait_until(lambda: letter_api.requests)
    other = relays.start(networks[1].url, "--claim-after", "3")
    for network in networks:
        network.cut()
    assert eventually(lambda: idle(server, name_of(busy)), lambda seconds: seconds > 4) > 4
    # It makes the next request, and the one whose reply is on its way, when it has been silent for as long as the
    # other. It would claim when it has been back for 3 s.
    networks[1].mend()
    assert eventually(lambda: idle(server, name_of(other)), lambda seconds: seconds < 0.5) < 0.5
    assert eventually(lambda: idle(server, name_of(other)), lambda seconds: seconds > 0.5) > 0.5
    assert set(pending(server).values()) == {(name_of(busy), 1)}
    letter_api.release()
    networks[0].mend()
    assert eventually(lambda: length(server), lambda found: found == 0) == 0
    assert letter_api.distinct == 1


def test_an_entry_that_redis_hands_out_again_is_not_sent_again(
    redis_server: Callable[..., RedisServer], make: Any, relays: Relays, letter_api: Any
) -> None:
    server = redis_server()
    letter_api.hold()
    relay = relays.start(server.url)
    letter = make(relay=server.url)
    letter.track("u", "Worked", {"serial": 0})
    assert letter.flush(20)
    assert letter_api.wait_until(lambda: letter_api.requests)
    with server.client() as client:  # as if it had forgotten who has what
        client.xgroup_destroy(stream_of(client), "letterapp")
    assert says(relay, "creating it again")
    assert eventually(lambda: pending(server), bool)
    letter.track("u", "Worked", {"serial": 1})
    assert letter.flush(20)
    letter_api.release()
    assert letter_api.wait_for(2)
    assert eventually(lambda: length(server), lambda found: found == 0) == 0
    assert letter_api.repeated() == {}
