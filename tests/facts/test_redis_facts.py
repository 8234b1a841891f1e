"""How Redis and Valkey behave, as far as ``Letter(relay="redis://...")`` and its relay depend on it.

Responsible for: the smallest exchange that shows each fact, with each server that is installed. Not responsible for:
the client and the relay.
"""

from __future__ import annotations

import os
import socket
import time
from typing import Any, Callable, Iterator

import pytest
from harness import eventually
from redis_server import RedisServer, needs_redis, programs, started_redis  # noqa: F401  (a fixture)

pytestmark = needs_redis
GROUP = "g"
OOM = r"OOM|maxmemory"


@pytest.fixture(params=[pytest.param(path, id=os.path.basename(path)) for path in dict.fromkeys(programs())])
def server(request: Any, redis_server: Callable[..., RedisServer]) -> RedisServer:
    return redis_server("--appendonly", "yes", program=request.param)


@pytest.fixture
def client(server: RedisServer) -> Iterator[Any]:
    with server.client(decode_responses=True) as client:
        yield client


def pending(client: Any) -> dict[str, tuple[str, int]]:
    """The consumer and the number of deliveries of each pending entry."""
    rows = client.xpending_range("s", GROUP, "-", "+", 100)
    return {row["message_id"]: (row["consumer"], row["times_delivered"]) for row in rows}


def read(client: Any, consumer: str, start: str = ">") -> list[str]:
    found = client.xreadgroup(GROUP, consumer, {"s": start}, count=10)
    return [number for _, entries in found for number, _ in entries]


def test_an_acknowledged_entry_stays_in_the_stream_until_it_is_deleted(client: Any) -> None:
    client.xgroup_create("s", GROUP, "0", mkstream=True)
    number = client.xadd("s", {"e": "1"})
    assert read(client, "a") == [number]
    client.xack("s", GROUP, number)
    assert client.xlen("s") == 1
    client.xdel("s", number)
    assert client.xlen("s") == 0


def test_maxlen_trims_what_nobody_has_read(client: Any) -> None:
    client.xgroup_create("s", GROUP, "0", mkstream=True)
    for serial in range(3):
        client.xadd("s", {"e": serial}, maxlen=1, approximate=False)
    assert len(read(client, "a")) == 1


def test_a_script_can_refuse_to_append_beyond_a_length(client: Any) -> None:
    script = "if redis.call('XLEN', KEYS[1]) >= 1 then return false end return redis.call('XADD', KEYS[1], '*', 'e', 1)"
    assert client.eval(script, 1, "s")
    assert client.eval(script, 1, "s") is None
    assert client.xlen("s") == 1


def test_autoclaim_takes_from_a_slow_consumer_that_lives(client: Any) -> None:
    # It cannot be told which consumer to take from: only how long an entry must have been idle.
    client.xgroup_create("s", GROUP, "0", mkstream=True)
    number = client.xadd("s", {"e": "1"})
    read(client, "slow")
    read(client, "slow")  # it lives: it reads on
    claimed = client.xautoclaim("s", GROUP, "b", 0, "0-0", count=10)
    assert [each for each, _ in claimed[1]] == [number]


def test_a_script_can_claim_from_one_consumer_only(client: Any) -> None:
    client.xgroup_create("s", GROUP, "0", mkstream=True)
    first = client.xadd("s", {"e": "1"})
    read(client, "dead")
    second = client.xadd("s", {"e": "2"})
    read(client, "slow")
    script = (
        "local ids = {} for _, row in ipairs(redis.call('XPENDING', KEYS[1], 'g', '-', '+', 10, 'dead')) do "
        "ids[#ids + 1] = row[1] end return redis.call('XCLAIM', KEYS[1], 'g', 'b', 0, unpack(ids))"
    )
    assert client.eval(script, 1, "s") == [[first, ["e", "1"]]]
    assert pending(client) == {first: ("b", 2), second: ("slow", 1)}


def idle(client: Any, consumer: str) -> int:
    """Milliseconds since this consumer's last request."""
    return int({row["name"]: row["idle"] for row in client.xinfo_consumers("s", GROUP)}[consumer])


def test_reading_behind_the_last_entry_only_shows_that_a_consumer_lives(client: Any) -> None:
    client.xgroup_create("s", GROUP, "0", mkstream=True)
    client.xadd("s", {"e": "1"})
    read(client, "a")
    before = pending(client)
    client.config_set("maxmemory-policy", "noeviction")
    client.config_set("maxmemory", 1)  # it works without memory too
    waited = eventually(lambda: idle(client, "a"), lambda milliseconds: milliseconds > 50)
    script = "return redis.call('XREADGROUP', 'GROUP', 'g', 'a', 'STREAMS', KEYS[1], '18446744073709551615-0')"
    began = time.monotonic()
    client.eval(script, 1, "s")
    passed = idle(client, "a")
    # Not since before: that is longer, even if this process had to wait for its turn between the two requests.
    assert passed <= (time.monotonic() - began) * 1000 + 1 and waited > 50
    assert pending(client) == before


def test_a_full_server_lets_entries_be_claimed(client: Any) -> None:
    client.xgroup_create("s", GROUP, "0", mkstream=True)
    number = client.xadd("s", {"e": "1"})
    read(client, "a")
    client.config_set("maxmemory-policy", "noeviction")
    client.config_set("maxmemory", 1)
    assert client.xclaim("s", GROUP, "b", 0, [number]) == [(number, {"e": "1"})]
    client.xclaim("s", GROUP, "c", 0, [number], justid=True, retrycount=0)
    assert pending(client) == {number: ("c", 0)}


def test_after_a_restart_every_consumer_counts_as_just_seen(client: Any, server: RedisServer) -> None:
    client.xgroup_create("s", GROUP, "0", mkstream=True)
    client.xadd("s", {"e": "1"})
    read(client, "a")
    eventually(lambda: idle(client, "a"), lambda milliseconds: milliseconds > 1000)
    server.stop()
    server.start()
    with server.client(decode_responses=True) as again:
        assert idle(again, "a") < 1000


def test_claiming_just_ids_can_set_the_number_of_deliveries(client: Any) -> None:
    client.xgroup_create("s", GROUP, "0", mkstream=True)
    number = client.xadd("s", {"e": "1"})
    read(client, "a")
    client.xclaim("s", GROUP, "a", 0, [number], retrycount=0, justid=True)
    assert pending(client) == {number: ("a", 0)}


def test_deleting_a_consumer_forgets_what_it_had_pending(client: Any) -> None:
    client.xgroup_create("s", GROUP, "0", mkstream=True)
    client.xadd("s", {"e": "1"})
    read(client, "a")
    client.xgroup_delconsumer("s", GROUP, "a")
    assert pending(client) == {}
    assert read(client, "b") == []  # nobody reads it any more, though it is in the stream
    assert client.xlen("s") == 1


def test_an_entry_whose_reply_was_lost_is_pending_and_not_new(client: Any, server: RedisServer) -> None:
    client.xgroup_create("s", GROUP, "0", mkstream=True)
    number = client.xadd("s", {"e": "1"})
    with socket.create_connection(("127.0.0.1", server.port)) as sock:
        sock.sendall(b"XREADGROUP GROUP g a COUNT 10 STREAMS s >\r\n")
        eventually(lambda: pending(client), bool)
    assert read(client, "a") == []
    assert read(client, "a", "0") == [number]


def test_an_append_whose_reply_was_lost_is_in_the_stream(client: Any, server: RedisServer) -> None:
    with socket.create_connection(("127.0.0.1", server.port)) as sock:
        sock.sendall(b"XADD s * e 1\r\n")
        assert eventually(lambda: client.xlen("s"), bool) == 1


def test_a_consumer_that_waits_gets_an_error_when_its_group_is_flushed(client: Any, server: RedisServer) -> None:
    client.xgroup_create("s", GROUP, "0", mkstream=True)
    with socket.create_connection(("127.0.0.1", server.port), 60) as sock:
        sock.sendall(b"XREADGROUP GROUP g a BLOCK 0 STREAMS s >\r\n")
        eventually(lambda: client.info("clients")["blocked_clients"], bool)
        client.flushall()
        client.xadd("s", {"e": "1"})
        assert sock.recv(1000).split()[0] in (b"-NOGROUP", b"-UNBLOCKED")  # the latter by Redis 7.0


def test_without_eviction_a_full_server_refuses_appends_also_in_a_script_and_still_acknowledges(client: Any) -> None:
    import redis

    client.xgroup_create("s", GROUP, "0", mkstream=True)
    number = client.xadd("s", {"e": "1"})
    read(client, "a")
    client.config_set("maxmemory-policy", "noeviction")
    client.config_set("maxmemory", 1)
    for append in (("XADD", "s", "*", "e", "2"), ("EVAL", "return redis.call('XADD', KEYS[1], '*', 'e', 1)", 1, "s")):
        with pytest.raises(redis.ResponseError, match=OOM):
            client.execute_command(*append)
    with pytest.raises(redis.ResponseError, match=OOM):
        client.eval("return redis.call('ZADD', KEYS[1], 1, 'a')", 1, "z")
    assert client.xack("s", GROUP, number) == 1
    assert client.xdel("s", number) == 1
    assert [row["name"] for row in client.xinfo_consumers("s", GROUP)] == ["a"]


def test_a_full_server_may_refuse_a_transaction_that_makes_room_but_not_a_script(client: Any) -> None:
    import redis

    client.xgroup_create("s", GROUP, "0", mkstream=True)
    numbers = [client.xadd("s", {"e": serial}) for serial in range(2)]
    read(client, "a")
    client.config_set("maxmemory", 1)
    with client.pipeline(transaction=True) as pipeline:
        pipeline.xack("s", GROUP, numbers[0])
        try:
            pipeline.execute()
        except redis.ResponseError:
            assert int(client.info("server")["redis_version"].partition(".")[0]) <= 7
    client.eval("redis.call('XACK', KEYS[1], 'g', ARGV[1]) redis.call('XDEL', KEYS[1], ARGV[1])", 1, "s", numbers[1])
    assert numbers[1] not in pending(client)


def test_a_server_that_evicts_any_key_evicts_a_stream(client: Any) -> None:
    import redis

    client.xadd("s", {"e": "x"})
    client.config_set("maxmemory-policy", "allkeys-lru")
    client.config_set("maxmemory", 1)  # its oldest key goes, and then it still has no room
    with pytest.raises(redis.ResponseError, match=OOM):
        client.set("other", "x")
    assert client.xlen("s") == 0


def test_a_server_that_evicts_only_what_expires_keeps_a_stream(client: Any) -> None:
    import redis

    client.xadd("s", {"e": "x"})
    client.config_set("maxmemory-policy", "volatile-lru")
    client.config_set("maxmemory", 1)
    with pytest.raises(redis.ResponseError, match=OOM):
        client.set("other", "x")
    assert client.xlen("s") == 1


def test_a_user_may_append_by_a_script_and_nothing_else(client: Any, server: RedisServer) -> None:
    import redis

    rules = ["on", ">secret", "resetkeys", "~{letterapp:*}*", "-@all", "+eval", "+xadd", "+xlen"]
    client.execute_command("ACL", "SETUSER", "w", *rules)
    with server.client(username="w", password="secret", protocol=2) as worker:
        key = "{letterapp:1}:events"
        assert worker.eval("return redis.call('XADD', KEYS[1], '*', 'e', 1)", 1, key)
        for refused in (
            ("EVAL", "return redis.call('XRANGE', KEYS[1], '-', '+')", 1, key),
            ("EVAL", "return redis.call('XADD', KEYS[1], '*', 'e', 1)", 1, "another"),
            ("XRANGE", key, "-", "+"),
            ("DEL", key),
        ):
            with pytest.raises(redis.ResponseError, match=r"permission|can't run"):
                worker.execute_command(*refused)


def test_what_was_appended_and_is_pending_survives_a_restart_with_an_append_only_file(
    client: Any, server: RedisServer
) -> None:
    client.xgroup_create("s", GROUP, "0", mkstream=True)
    numbers = [client.xadd("s", {"e": serial}) for serial in range(2)]
    client.xreadgroup(GROUP, "a", {"s": ">"}, count=1)
    server.stop()
    server.start()
    with server.client(decode_responses=True) as again:
        assert pending(again) == {numbers[0]: ("a", 1)}
        assert read(again, "a") == numbers[1:]
