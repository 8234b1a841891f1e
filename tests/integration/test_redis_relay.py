"""Relays that read a stream in Redis: what they deliver, and what becomes of it when one ends or is slow.

Responsible for: ``python -m letterapp relay --from``, with real servers. Not responsible for: appending (`test_redis`),
failures of Redis itself (`test_redis_failures`).
"""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path
from typing import Any, Callable

import pytest
from harness import DEADLINE, ROOT, environment, eventually, suspend
from redis_relays import KEY, Relays, idle, length, name_of, pending, says, started_relays, stream_of  # noqa: F401
from redis_server import RedisServer, needs_redis, started_redis  # noqa: F401  (fixtures)

from letterapp import Letter, LetterError
from letterapp._redis.location import Location
from letterapp._redis_server.group import Group
from letterapp._redis_server.identity import Identity
from letterapp.testing import status

pytestmark = needs_redis


@pytest.fixture(name="server")
def one_server(redis_server: Callable[..., RedisServer]) -> RedisServer:
    return redis_server()


@pytest.fixture(name="letter")
def client_of_server(server: RedisServer, make: Any) -> Letter:
    # Only a flush sends: else a busy machine may make two entries of a few events.
    letter: Letter = make(relay=server.url, flush_interval=3600)
    return letter


def work(letter: Letter, count: int, start: int = 0) -> None:
    for serial in range(start, start + count):
        letter.track("u", "Worked", {"serial": serial})
    assert letter.flush(20)


def named(name: str) -> Identity:
    identity = Identity()
    identity.name = name
    return identity


def serials(api: Any) -> list[int]:
    return [event["properties"]["serial"] for event in api.events]


def is_empty(server: RedisServer) -> bool:
    return eventually(lambda: (length(server), pending(server)), lambda found: found == (0, {})) == (0, {})


def test_what_was_appended_before_and_after_its_start_is_delivered_in_order_and_deleted(
    server: RedisServer, letter: Letter, relays: Relays, letter_api: Any
) -> None:
    work(letter, 300)
    relay = relays.start(server.url)
    work(letter, 300, 300)
    assert letter_api.wait_for(600)
    assert serials(letter_api) == list(range(600))
    assert is_empty(server)
    relay.signal(signal.SIGTERM)
    finished = relay.finish()
    assert finished.code == 0 and "600 delivered, 0 lost, 0 left" in finished.output, finished
    with server.client() as client:
        assert client.xinfo_consumers(stream_of(client), "letterapp") == []


def test_an_entry_is_deleted_only_when_the_api_has_its_events(
    server: RedisServer, letter: Letter, relays: Relays, letter_api: Any
) -> None:
    letter_api.hold()
    relays.start(server.url)
    work(letter, 3)
    assert letter_api.wait_until(lambda: letter_api.requests)
    assert length(server) == len(pending(server)) > 0
    letter_api.release()
    assert is_empty(server)


def test_small_batches_of_several_processes_share_a_request(
    server: RedisServer, letter: Letter, make: Any, relays: Relays, letter_api: Any
) -> None:
    for serial in range(20):
        work(letter, 1, serial)
    relays.start(server.url)
    assert letter_api.wait_for(20)
    assert len(letter_api.requests) < 5


@pytest.mark.slow
def test_an_api_that_is_down_for_longer_than_a_client_would_try_loses_nothing(
    server: RedisServer, letter: Letter, relays: Relays, letter_api: Any
) -> None:
    letter_api.plan(*[status(500)] * 2, status(401), status(404))  # a client gives up after the fourth
    relay = relays.start(server.url)
    work(letter, 3)
    assert letter_api.wait_for(3)
    assert is_empty(server)
    assert "are kept, and retried" in relay.output  # 401


def test_an_event_that_the_api_refuses_is_logged_and_the_others_are_delivered(
    server: RedisServer, letter: Letter, relays: Relays, letter_api: Any
) -> None:
    def refuse(request: Any) -> Any:
        return status(400) if b'"serial":7}' in request.body else None

    letter_api.rule = refuse
    relay = relays.start(server.url)
    work(letter, 20)
    assert letter_api.wait_for(19)
    assert is_empty(server)
    assert sorted(serials(letter_api)) == [serial for serial in range(20) if serial != 7]
    assert relay.output.count(": 1 lost: ") == relay.output.count("the API answered 400") == 1, relay.output


def test_when_one_of_two_is_killed_in_the_middle_of_a_batch_the_other_delivers_it(
    server: RedisServer, letter: Letter, relays: Relays, letter_api: Any
) -> None:
    letter_api.hold()
    killed = relays.start(server.url, "--claim-after", "1", "--consumer", "one")  # the kernel is not asked about it
    work(letter, 250)
    assert letter_api.wait_until(lambda: letter_api.requests)
    killed.signal(signal.SIGKILL)
    killed.process.wait()
    other = relays.start(server.url, "--claim-after", "1", "--consumer", "other")
    letter_api.release()
    work(letter, 250, 250)
    assert letter_api.wait_for(500)
    assert letter_api.distinct == 500
    assert is_empty(server)
    assert other.output.count("letterapp relay [") == 1, other.output  # that it reads
    with server.client() as client:  # the dead one is forgotten
        names = eventually(lambda: client.xinfo_consumers(stream_of(client), "letterapp"), lambda all: len(all) == 1)
    assert [row["name"].decode() for row in names] == [name_of(other)]


@pytest.mark.slow
def test_a_relay_that_is_stopped_for_less_than_claim_after_keeps_its_entries(
    server: RedisServer, letter: Letter, relays: Relays, letter_api: Any
) -> None:
    letter_api.hold()
    stopped = relays.start(server.url, "--claim-after", "1000")
    work(letter, 100)
    assert letter_api.wait_until(lambda: letter_api.requests)
    suspend(stopped.pid)
    relays.start(server.url, "--claim-after", "6")
    name = name_of(stopped)
    assert eventually(lambda: idle(server, name), lambda seconds: seconds > 3) > 3
    assert set(pending(server).values()) == {(name, 1)}
    stopped.signal(signal.SIGCONT)
    letter_api.release()
    assert letter_api.wait_for(100)
    assert is_empty(server)
    assert letter_api.repeated() == {}


@pytest.mark.slow
def test_a_relay_that_is_stopped_for_longer_is_replaced_and_does_no_harm_when_it_continues(
    server: RedisServer, letter: Letter, relays: Relays, letter_api: Any
) -> None:
    letter_api.hold()
    stopped = relays.start(server.url, "--claim-after", "1")
    work(letter, 100)
    assert letter_api.wait_until(lambda: letter_api.requests)
    suspend(stopped.pid)
    other = relays.start(server.url, "--claim-after", "1")
    assert eventually(lambda: {name for name, _ in pending(server).values()}, lambda all: all == {name_of(other)})
    letter_api.release()
    assert letter_api.wait_for(100)
    assert is_empty(server)
    stopped.signal(signal.SIGCONT)
    work(letter, 100, 100)
    assert letter_api.wait_for(200)
    assert is_empty(server)
    assert letter_api.distinct == 200
    for relay in (stopped, other):
        assert "lost" not in relay.output and "given up" not in relay.output, relay.output


@pytest.mark.slow
def test_a_relay_whose_requests_are_slow_keeps_its_entries(
    server: RedisServer, letter: Letter, relays: Relays, letter_api: Any
) -> None:
    letter_api.hold()
    slow = relays.start(server.url, "--claim-after", "1.5")
    work(letter, 100)
    assert letter_api.wait_until(lambda: letter_api.requests)
    other = relays.start(server.url, "--claim-after", "1.5")
    began = idle_of_entries(server)
    assert eventually(lambda: idle_of_entries(server), lambda seconds: seconds > began + 3) > began + 3
    assert set(pending(server).values()) == {(name_of(slow), 1)}
    assert idle(server, name_of(other)) >= 0  # it has not been forgotten either
    letter_api.release()
    assert is_empty(server)
    assert letter_api.repeated() == {}


def idle_of_entries(server: RedisServer) -> float:
    with server.client() as client:
        rows = client.xpending_range(stream_of(client), "letterapp", "-", "+", 10)
    return float(min(row["time_since_delivered"] for row in rows)) / 1000


@pytest.mark.slow
def test_a_relay_that_is_ended_while_the_api_is_down_gives_its_entries_to_another_at_once(
    server: RedisServer, letter: Letter, relays: Relays, letter_api: Any
) -> None:
    letter_api.rule = lambda request: status(503)
    first = relays.start(server.url, "--claim-after", "1000")
    work(letter, 100)
    assert letter_api.wait_until(lambda: letter_api.requests)
    first.signal(signal.SIGTERM)
    finished = first.finish()
    assert finished.code == 0 and "0 lost, 100 left to others" in finished.output, finished
    assert {(name, count) for name, count in pending(server).values()} == {("released", 0)}
    letter_api.rule = None
    relays.start(server.url, "--claim-after", "20")
    assert letter_api.wait_for(100)
    assert serials(letter_api) == list(range(100))
    assert is_empty(server)


def test_an_entry_with_which_ten_relays_have_ended_is_reported_and_dropped(
    server: RedisServer, letter: Letter, relays: Relays, letter_api: Any
) -> None:
    work(letter, 3)
    with server.client() as client:
        stream = stream_of(client)
        client.xgroup_create(stream, "letterapp", "0")
        ((_, entries),) = client.xreadgroup("letterapp", "released", {stream: ">"})
        poison = [id for id, fields in entries][:1]
        client.xclaim(stream, "letterapp", "released", 0, poison, retrycount=10, justid=True)
    work(letter, 3, 3)
    relay = relays.start(server.url)
    assert says(relay, "was given up")
    assert "10 relays have ended while they had it; 3 events lost" in relay.output
    assert letter_api.wait_for(3)
    assert serials(letter_api) == [3, 4, 5]
    assert is_empty(server)


def test_entries_that_no_client_has_written_are_reported_and_dropped(
    server: RedisServer, letter: Letter, relays: Relays, letter_api: Any
) -> None:
    work(letter, 1)
    with server.client() as client:
        for fields in ({"x": "y"}, {"e": ""}, {"e": b'{"a":1}]}\n\xff'}, {"e": "[]"}):
            client.xadd(stream_of(client), fields)
    work(letter, 1, 1)
    relay = relays.start(server.url)
    assert letter_api.wait_for(2)
    assert is_empty(server)
    assert serials(letter_api) == [0, 1]
    assert relay.output.count("given up") == 4, relay.output


@pytest.mark.slow
def test_two_relays_share_the_work(server: RedisServer, letter: Letter, relays: Relays, letter_api: Any) -> None:
    letter_api.hold()
    both = [relays.start(server.url) for _ in range(2)]
    for serial in range(100):
        work(letter, 1, serial)
    names = eventually(lambda: {name for name, _ in pending(server).values()}, lambda all: len(all) == 2)
    assert names == {name_of(relay) for relay in both}
    letter_api.release()
    assert letter_api.wait_for(100)
    assert is_empty(server)
    assert letter_api.repeated() == {}


def test_a_relay_with_another_key_does_not_read_the_stream(
    server: RedisServer, letter: Letter, relays: Relays, letter_api: Any
) -> None:
    relays.start(server.url, key="another-key")
    work(letter, 1)
    with server.client() as client:
        assert sorted(client.xlen(key) for key in client.keys("*")) == [0, 1]
    assert letter_api.requests == []


@pytest.mark.slow
@pytest.mark.parametrize(("policy", "serves"), [("allkeys-lru", False), ("volatile-lru", True), ("noeviction", True)])
def test_it_does_not_start_where_redis_may_remove_the_stream(
    policy: str, serves: bool, redis_server: Callable[..., RedisServer], relays: Relays
) -> None:
    relay = relays.launch(redis_server("--maxmemory-policy", policy).url)
    output = eventually(lambda: relay.output, lambda text: "letterapp relay [" in text)
    assert ("reading" in output) == serves
    if not serves:
        assert relay.finish().code == 1 and "set it to noeviction" in output


def test_it_does_not_start_without_redis(server: RedisServer, relays: Relays) -> None:
    server.kill()
    finished = relays.launch(server.url).finish()
    assert finished.code == 1 and "refused" in finished.output, finished


@pytest.mark.slow
def test_status_says_what_waits_and_who_reads(
    server: RedisServer, letter: Letter, relays: Relays, letter_api: Any
) -> None:
    letter_api.hold()
    relay = relays.start(server.url)
    work(letter, 1)
    assert letter_api.wait_until(lambda: letter_api.requests)
    asked = subprocess.run(
        relays.command(server.url, "--status"), env=environment("", LETTER_API_KEY=KEY), capture_output=True, check=True
    )
    said = json.loads(asked.stdout)
    assert (said["entries"], said["pending"]) == (1, 1)
    assert [(row["name"], row["pending"]) for row in said["relays"]] == [(name_of(relay), 1)]
    relay.signal(signal.SIGUSR1)
    assert says(relay, '"held": 1')


def test_a_url_with_a_password_can_be_in_a_file(
    redis_server: Callable[..., RedisServer], relays: Relays, make: Any, letter_api: Any, tmp_path: Path
) -> None:
    server = redis_server("--requirepass", "a-long-password")
    url = f"redis://:a-long-password@127.0.0.1:{server.port}/0"
    file = tmp_path / "url"
    file.write_text(url + "\n")
    file.chmod(0o600)
    command = relays.command(url)
    command[command.index("--from") : command.index("--from") + 2] = ["--from-file", str(file)]
    relays.command = lambda *_: command  # type: ignore[method-assign]
    relay = relays.start("")
    letter = make(relay=url)
    work(letter, 1)
    assert letter_api.wait_for(1)
    assert "a-long-password" not in relay.output


def test_an_option_of_these_relays_is_refused_by_others(relays: Relays) -> None:
    for others in (["--socket", "s"], ["--manager", "m"]):
        command = [*relays.command("")[:4], *others, "--claim-after", "1"]
        refused = subprocess.run(command, env=environment(""), capture_output=True, encoding="utf-8")
        assert refused.returncode == 2 and "--claim-after needs --from" in refused.stderr


@pytest.mark.parametrize("option", ["--from-file", "--socket", "--spool", "--manager", "--group", "--metrics"])
def test_options_of_other_relays_are_refused(option: str, relays: Relays) -> None:
    finished = relays.launch("redis://127.0.0.1:9", option, "127.0.0.1:9").finish()
    assert finished.code == 2 and "cannot be combined" in finished.output


def test_entries_whose_reply_was_lost_are_read_again_before_new_ones(server: RedisServer, letter: Letter) -> None:
    work(letter, 1)
    with server.client() as client:
        stream = stream_of(client)
        group = Group(Location(server.url), stream, named("me"))
        client.xreadgroup("letterapp", "me", {stream: ">"})  # its reply does not reach the relay
        work(letter, 1, 1)
        lost = group.own_pending({}, 10)
        assert [json.loads(entry.events or b"")["properties"]["serial"] for entry in lost] == [0]
        assert group.own_pending({lost[0].id: None}, 10) == []
        client.xdel(stream, lost[0].id)
        assert group.own_pending({}, 10) == []
        assert pending(server) == {}
        group.close()


@pytest.mark.slow
def test_the_url_is_not_followed_by_a_hang_when_nothing_waits(server: RedisServer, relays: Relays) -> None:
    relay = relays.start(server.url)
    relay.signal(signal.SIGINT)
    assert relay.finish(DEADLINE).code == 0


@pytest.mark.slow
def test_the_acl_recipe_of_the_documents(
    redis_server: Callable[..., RedisServer], relays: Relays, make: Any, letter_api: Any
) -> None:
    server = redis_server()
    text = (ROOT / "docs" / "many-hosts.md").read_text()
    rules = [line.split() for line in text.splitlines() if line.startswith("ACL SETUSER ")]
    with server.client() as client:
        for rule in rules:
            client.execute_command(*rule)
        client.execute_command("ACL", "SETUSER", "default", "off")
    assert len(rules) == 2
    worker = f"redis://letter-worker:WORKER-PASSWORD@127.0.0.1:{server.port}/0"
    relay = relays.start(f"redis://letter-relay:RELAY-PASSWORD@127.0.0.1:{server.port}/0", "--claim-after", "0.5")
    errors: list[Any] = []
    letter = make(relay=worker, on_error=errors.append)
    work(letter, 300)
    assert letter_api.wait_for(300)
    letter_api.rule = lambda request: status(503)
    sent = len(letter_api.requests)
    work(letter, 1, 300)
    assert letter_api.wait_until(lambda: len(letter_api.requests) > sent)
    relay.signal(signal.SIGTERM)  # gives an entry back, and another relay claims it
    assert relay.finish().code == 0
    letter_api.rule = None
    other = relays.start(f"redis://letter-relay:RELAY-PASSWORD@127.0.0.1:{server.port}/0", "--claim-after", "0.5")
    assert letter_api.wait_for(301)
    assert errors == [] and letter.stats()["relayed"] == 301
    for one in (relay, other):
        assert "cannot" not in one.output and "could not" not in one.output, one.output
    with pytest.raises(LetterError, match=r"NOPERM|permission"):
        Group(Location(worker), "{letterapp:0}:events", Identity())
