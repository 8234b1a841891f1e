"""A relay of a stream that is killed and started again, with a name (`--consumer`) and without one; two with one name.

Responsible for: who takes the entries of the killed one, how soon, and what a relay does whose name was taken. Not
responsible for: relays that are dead because they are silent (`test_redis_relay`), the names (`test_redis_identity`).

``--claim-after`` is far above the deadline of a test, so what is delivered was not taken because of it.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from functools import partial
from typing import Any, Callable

import pytest
from harness import Program, environment, eventually, suspend
from redis_relays import Relays, idle, length, name_of, pending, says, started_relays, stream_of  # noqa: F401
from redis_server import RedisServer, needs_redis, started_redis  # noqa: F401  (fixtures)

from letterapp import Letter
from letterapp._redis.location import Location
from letterapp._redis_server.group import Group
from letterapp._redis_server.identity import Identity
from letterapp.testing import status

pytestmark = needs_redis
NEVER = ("--claim-after", "1000")


@pytest.fixture(name="server")
def one_server(redis_server: Callable[..., RedisServer]) -> RedisServer:
    return redis_server()


@pytest.fixture(name="letter")
def client_of_server(server: RedisServer, make: Any) -> Letter:
    letter: Letter = make(relay=server.url)
    return letter


def work(letter: Letter, count: int, start: int = 0) -> None:
    for serial in range(start, start + count):
        letter.track("u", "Worked", {"serial": serial})
    assert letter.flush(20)


def serials(api: Any) -> list[int]:
    return [event["properties"]["serial"] for event in api.events]


def consumers(server: RedisServer) -> set[str]:
    with server.client() as client:
        return {row["name"].decode() for row in client.xinfo_consumers(stream_of(client), "letterapp")}


def kill(relay: Program) -> None:
    relay.signal(signal.SIGKILL)
    relay.process.wait()


def all_delivered(api: Any, server: RedisServer, count: int) -> None:
    assert api.wait_for(count)
    assert eventually(lambda: (length(server), pending(server)), lambda found: found == (0, {})) == (0, {})
    assert api.distinct == count


def start_with_entries(relays: Relays, server: RedisServer, letter: Letter, api: Any, *options: str) -> Program:
    """A relay that has the entries of 100 events, which the API does not accept for now."""
    api.rule = lambda request: status(503)
    relay = relays.start(server.url, *NEVER, *options)
    work(letter, 100)
    assert api.wait_until(lambda: api.requests)
    assert eventually(lambda: {name for name, _ in pending(server).values()}, lambda all: all == {name_of(relay)})
    assert eventually(lambda: length(server) - len(pending(server)), lambda unread: unread == 0) == 0
    return relay


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(("--consumer", "stream-0"), id="named"),
        pytest.param((), id="unnamed", marks=pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")),
    ],
)
def test_a_killed_relay_that_is_started_again_delivers_what_it_had_at_once_and_before_new_entries(
    options: tuple[str, ...], server: RedisServer, letter: Letter, relays: Relays, letter_api: Any
) -> None:
    killed = start_with_entries(relays, server, letter, letter_api, *options)
    kill(killed)
    work(letter, 100, 100)
    letter_api.rule = None
    again = relays.start(server.url, *NEVER, *options)
    all_delivered(letter_api, server, 200)
    assert serials(letter_api) == list(range(200))
    assert eventually(lambda: consumers(server), lambda all: all == {name_of(again)}) == {name_of(again)}
    assert again.output.count("letterapp relay [") == 1, again.output  # that it reads


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_another_relay_of_this_host_takes_what_a_killed_one_had_at_once(
    server: RedisServer, letter: Letter, relays: Relays, letter_api: Any
) -> None:
    killed = start_with_entries(relays, server, letter, letter_api)
    other = relays.start(server.url, "--claim-after", "15")  # a heartbeat every 3 s
    kill(killed)
    letter_api.rule = None
    assert eventually(lambda: consumers(server), lambda all: all == {name_of(other)}) == {name_of(other)}
    all_delivered(letter_api, server, 100)


@pytest.mark.slow
def test_what_a_named_relay_had_is_not_taken_at_once_by_one_with_another_name(
    server: RedisServer, letter: Letter, relays: Relays, letter_api: Any
) -> None:
    killed = start_with_entries(relays, server, letter, letter_api, "--consumer", "stream-0")
    kill(killed)
    letter_api.rule = None
    other = relays.start(server.url, *NEVER, "--consumer", "stream-1")
    work(letter, 1, 100)
    assert letter_api.wait_for(1)  # it has looked at who is there, and read what is new
    left = {name_of(killed)}
    assert eventually(lambda: {name for name, _ in pending(server).values()}, lambda all: all == left) == left
    assert name_of(other).startswith("stream-1:")


@pytest.mark.slow
@pytest.mark.parametrize("is_stopped", [False, True])
def test_of_two_relays_with_one_name_the_later_takes_over_and_the_other_continues_without_it(
    is_stopped: bool, server: RedisServer, letter: Letter, relays: Relays, letter_api: Any
) -> None:
    first = relays.start(server.url, "--claim-after", "5", "--consumer", "stream-0")  # a heartbeat every second
    letter_api.rule = lambda request: status(503)
    work(letter, 100)
    assert letter_api.wait_until(lambda: letter_api.requests)
    if is_stopped:
        suspend(first.pid)
    later = relays.start(server.url, *NEVER, "--consumer", "stream-0")
    assert eventually(lambda: {name for name, _ in pending(server).values()}, lambda all: all == {name_of(later)})
    first.signal(signal.SIGCONT)
    assert says(first, "another relay was started as stream-0, and has taken what this one had"), first.output
    renamed = first.output.partition("this one continues as ")[2].split(". Give")[0]
    remaining = {name_of(later), renamed}
    assert eventually(lambda: consumers(server), lambda all: all == remaining) == remaining
    letter_api.rule = None
    work(letter, 100, 100)
    all_delivered(letter_api, server, 200)
    for relay in (first, later):
        assert "lost" not in relay.output and "given up" not in relay.output, relay.output
        relay.signal(signal.SIGTERM)
        assert relay.finish().code == 0
    assert later.output.count("another relay") == 0 and consumers(server) == set()


@pytest.mark.slow
def test_of_two_relays_that_start_together_with_one_name_one_has_it(
    server: RedisServer, letter: Letter, relays: Relays, letter_api: Any
) -> None:
    both = [relays.launch(server.url, "--claim-after", "2", "--consumer", "stream-0") for _ in range(2)]
    for relay in both:
        assert says(relay, "reading")
    named = eventually(lambda: sorted(name.startswith("stream-0:") for name in consumers(server)), [False, True].__eq__)
    assert named == [False, True]
    assert eventually(lambda: sum("another relay was started" in relay.output for relay in both), bool) == 1
    work(letter, 100)
    all_delivered(letter_api, server, 100)


@pytest.mark.slow
def test_names_of_killed_relays_do_not_pile_up(
    server: RedisServer, letter: Letter, relays: Relays, letter_api: Any
) -> None:
    for options in (("--consumer", "stream-0"), ("--consumer", "stream-1")):
        for _ in range(3):
            kill(relays.start(server.url, *NEVER, *options))
        last = relays.start(server.url, "--claim-after", "5", *options)
        work(letter, 1)
        assert eventually(partial(consumers, server), {name_of(last)}.__eq__) == {name_of(last)}
        last.signal(signal.SIGTERM)
        assert last.finish().code == 0


def test_what_several_relays_have_ended_with_is_not_taken_at_once(server: RedisServer, letter: Letter) -> None:
    # A relay that is killed at each start would otherwise have ended with it ten times within seconds.
    for serial in range(4):
        work(letter, 1, serial)
    with server.client() as client:
        stream = stream_of(client)
        first = opened(server, stream, Identity("stream-0"))
        entries = [entry.id for entry in first.read(10, 0.0)]
        client.xclaim(stream, "letterapp", first.me.name, 0, entries[:1], retrycount=3, justid=True)
        client.xclaim(stream, "letterapp", first.me.name, 0, entries[1:2], retrycount=4, justid=True)
        first.close()
        second = opened(server, stream, Identity("stream-0"))
        assert [(entry.id, entry.deliveries) for entry in second.beat(None, 10).entries] == [
            (entries[0], 3),
            (entries[2], 1),
            (entries[3], 1),
        ]
        eventually(lambda: idle(server, first.me.name), lambda seconds: seconds > 0.2)
        second.beat(None, 0)  # a relay that was silent itself takes nothing
        assert [(entry.id, entry.deliveries) for entry in second.beat(0.1, 10).entries] == [(entries[1], 4)]
        second.close()


def test_what_is_taken_from_several_relays_is_in_the_order_of_the_stream(server: RedisServer, letter: Letter) -> None:
    for serial in range(12):
        work(letter, 1, serial)
    with server.client() as client:
        stream = stream_of(client)
        client.xgroup_create(stream, "letterapp", "0")
        ids = [id.decode() for id, _ in client.xrange(stream)]
        for name in ("stream-0:0000000000001000000", "released", "stream-0:0000000000002000000"):
            client.xreadgroup("letterapp", name, {stream: ">"}, count=4)
    relay = opened(server, stream, Identity("stream-0"))
    assert [entry.id for entry in relay.beat(None, 10).entries] == ids[:10]
    relay.close()


def opened(server: RedisServer, stream: str, identity: Identity) -> Any:
    """A connection as the next relay of this name."""
    group: Any = Group(Location(server.url), stream, identity)
    group.beat(None, 0)
    group.me = identity
    return group


def test_a_later_relay_is_recognised_although_the_clock_of_its_host_is_slow(
    server: RedisServer, letter: Letter, relays: Relays, letter_api: Any
) -> None:
    work(letter, 3)
    with server.client() as client:
        stream = stream_of(client)
        client.xgroup_create(stream, "letterapp", "0")
        client.xreadgroup("letterapp", "stream-0:9000000000000000000", {stream: ">"})  # in the year 2255
    relay = relays.start(server.url, *NEVER, "--consumer", "stream-0")
    all_delivered(letter_api, server, 3)
    assert consumers(server) >= {name_of(relay)} and "another relay" not in relay.output


@pytest.mark.parametrize("name", ["", "a b", "a\nb", "ä", "x" * 101])
def test_a_name_that_cannot_be_one_is_refused(name: str, relays: Relays) -> None:
    finished = relays.launch("redis://127.0.0.1:9", "--consumer", name).finish()
    assert finished.code == 2 and "1 to 100 printable ASCII characters" in finished.output, finished


def test_a_name_is_only_for_relays_of_a_stream(relays: Relays) -> None:
    command = [*relays.command("")[:4], "--socket", "s", "--consumer", "a"]
    refused = subprocess.run(command, env=environment(""), capture_output=True, encoding="utf-8")
    assert refused.returncode == 2 and "--consumer needs --from" in refused.stderr
