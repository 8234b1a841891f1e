"""A client whose relay is a stream in Redis: what is appended, and what happens if Redis does not take it.

Responsible for: the worker's side, with real servers. Not responsible for: the relay that reads the stream
(`test_redis_relay`), how Redis behaves (`test_redis_facts`).
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable

import pytest
from harness import ROOT, environment, eventually, run, suspend
from programs import redis_clients
from redis_server import RedisServer, needs_redis, started_redis  # noqa: F401  (a fixture)

from letterapp import Letter, LetterError
from letterapp._redis.location import Location
from stress.ports import free_port

pytestmark = needs_redis
KEY = "test-key"


@pytest.fixture(name="server")
def one_server(redis_server: Callable[..., RedisServer]) -> RedisServer:
    return redis_server()


def entries(server: RedisServer, **options: Any) -> list[list[dict[str, Any]]]:
    """The events of each entry of the only stream."""
    with server.client(**options) as client:
        streams = client.keys("{letterapp:*}:events")
        assert len(streams) <= 1
        found = client.xrange(streams[0]) if streams else []
    return [[json.loads(event) for event in fields[b"e"].split(b"\n")] for _, fields in found]


def serials(server: RedisServer, **options: Any) -> list[int]:
    return [event["properties"]["serial"] for entry in entries(server, **options) for event in entry]


def work(letter: Letter, count: int, start: int = 0) -> None:
    for serial in range(start, start + count):
        letter.track("u", "Worked", {"serial": serial})


def troubles(errors: list[LetterError]) -> list[str]:
    """What was reported, except that no relay reads the stream, which is so in all of these tests."""
    assert all(error.cause == "degraded" for error in errors), errors
    return [str(error) for error in errors if "no relay has ever read" not in str(error)]


def test_batches_are_appended_and_nothing_is_posted(
    server: RedisServer, make: Any, letter_api: Any, errors: list[LetterError]
) -> None:
    letter = make(relay=server.url)
    work(letter, 250)
    assert letter.flush(10)
    assert serials(server) == list(range(250))
    assert max(map(len, entries(server))) == 100
    stats = letter.stats()
    assert (stats["mode"], stats["relayed"], stats["delivered"], stats["waiting"]) == ("relay", 250, 250, 0)
    assert letter_api.requests == [] and troubles(errors) == []


def test_nothing_in_redis_contains_the_key(server: RedisServer, make: Any) -> None:
    letter = make(api_key="a-key-that-is-secret", relay=server.url)
    work(letter, 1)
    assert letter.flush(10)
    with server.client() as client:
        for name in client.keys("*"):
            assert b"a-key-that-is-secret" not in name + repr(client.dump(name)).encode()


def test_clients_with_another_key_or_another_api_have_another_stream(server: RedisServer, make: Any) -> None:
    for options in ({"api_key": "one"}, {"api_key": "two"}, {"api_key": "one", "base_url": "http://127.0.0.1:9"}):
        letter = make(relay=server.url, **options)
        work(letter, 1)
        assert letter.flush(10)
    with server.client() as client:
        assert len(client.keys("*")) == 3


def test_it_is_reported_once_that_no_relay_has_ever_read_the_stream(
    server: RedisServer, make: Any, errors: list[LetterError], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("letterapp._delivery.notices._reported", set())
    for _ in range(2):
        letter = make(relay=server.url)
        work(letter, 1)
        assert letter.flush(10)
    assert [error.cause for error in errors] == ["degraded"]
    assert "no relay has ever read" in str(errors[0])


def test_without_redis_the_process_sends_its_events_and_says_so_once(
    server: RedisServer, make: Any, letter_api: Any, errors: list[LetterError]
) -> None:
    server.kill()
    letter = make(relay=server.url)
    for start in (0, 10):
        work(letter, 10, start)
        assert letter.flush(10)
    assert [event["properties"]["serial"] for event in letter_api.events] == list(range(20))
    (said,) = troubles(errors)
    assert "cannot be used" in said and "sends its events itself" in said
    assert letter.stats()["mode"] == "thread"


def test_a_redis_that_comes_back_is_used_again(
    server: RedisServer, make: Any, letter_api: Any, errors: list[LetterError]
) -> None:
    letter = make(relay=server.url)
    work(letter, 1)
    assert letter.flush(10)
    server.kill()
    work(letter, 1, 1)
    assert letter.flush(10)
    server.start()

    def tried_again() -> bool:
        work(letter, 1, 2)
        assert letter.flush(10)
        return bool(letter.stats()["mode"] == "relay")

    assert eventually(tried_again, bool)
    assert len(troubles(errors)) == 1
    assert set(serials(server)) == {2}


def test_a_batch_whose_connection_was_cut_is_appended_over_another_one(
    server: RedisServer, make: Any, letter_api: Any, errors: list[LetterError]
) -> None:
    letter = make(relay=server.url)
    work(letter, 1)
    assert letter.flush(10)
    with server.client() as client:
        client.client_kill_filter(_type="normal", skipme=True)
    work(letter, 1, 1)
    assert letter.flush(10)
    assert serials(server) == [0, 1]
    assert letter_api.requests == [] and troubles(errors) == []


def test_a_stopped_redis_delays_a_batch_for_a_second_and_the_process_sends_it(
    server: RedisServer, make: Any, letter_api: Any, errors: list[LetterError]
) -> None:
    letter = make(relay=server.url)
    work(letter, 1)
    assert letter.flush(10)
    assert server.process is not None
    suspend(server.process.pid)
    work(letter, 1, 1)
    assert letter.flush(10)
    assert [event["properties"]["serial"] for event in letter_api.events] == [1]
    assert len(troubles(errors)) == 1
    server.signal(signal.SIGCONT)
    # The append whose reply did not come was executed: both copies have the same message ID.
    assert eventually(lambda: serials(server), lambda found: len(found) == 2) == [0, 1]
    _, (appended,) = entries(server)
    assert appended["messageId"] == letter_api.events[0]["messageId"]


def test_a_full_stream_is_not_trimmed_and_the_process_sends_the_rest(
    server: RedisServer, make: Any, letter_api: Any, errors: list[LetterError]
) -> None:
    letter = make(relay=f"{server.url}?max_length=2")
    for start in range(4):
        work(letter, 1, start)
        assert letter.flush(10)
    assert serials(server) == [0, 1]
    assert [event["properties"]["serial"] for event in letter_api.events] == [2, 3]
    (said,) = troubles(errors)
    assert "2 entries wait in it" in said


def test_with_overflow_block_a_batch_waits_for_room_in_the_stream(
    server: RedisServer, make: Any, letter_api: Any, errors: list[LetterError]
) -> None:
    letter = make(relay=f"{server.url}?max_length=1", overflow="block")
    work(letter, 1)
    assert letter.flush(10)
    work(letter, 1, 1)
    assert not letter.flush(0.2)
    with server.client() as client:
        (stream,) = client.keys("*")
        client.xtrim(stream, maxlen=0)
    assert letter.flush(10)
    assert serials(server) == [1]
    assert letter_api.requests == [] and troubles(errors) == []


def test_a_redis_without_memory_is_one_that_is_full(
    server: RedisServer, make: Any, letter_api: Any, errors: list[LetterError]
) -> None:
    with server.client() as client:
        client.config_set("maxmemory-policy", "noeviction")
        client.config_set("maxmemory", 1)
    letter = make(relay=server.url)
    work(letter, 3)
    assert letter.flush(10)
    assert len(letter_api.events) == 3
    (said,) = troubles(errors)
    assert "out of memory" in said


def test_a_redis_that_refuses_the_password_is_reported_without_it(
    redis_server: Callable[..., RedisServer], make: Any, letter_api: Any, errors: list[LetterError]
) -> None:
    server = redis_server("--requirepass", "the-right-password")
    letter = make(relay=f"redis://:a-wrong-password@127.0.0.1:{server.port}/0")
    work(letter, 1)
    assert letter.flush(10)
    assert len(letter_api.events) == 1
    (said,) = troubles(errors)
    assert "refuses this client" in said and "password" not in said.replace("WRONGPASS", "").replace(
        "username-password pair", ""
    )
    assert "a-wrong-password" not in repr(letter) + repr(letter._settings.__dict__)
    right = make(relay=f"redis://:the-right-password@127.0.0.1:{server.port}/0")
    work(right, 1, 1)
    assert right.flush(10)
    assert serials(server, password="the-right-password") == [1]


def test_forked_processes_have_connections_of_their_own(server: RedisServer, letter_api: Any, tmp_path: Path) -> None:
    finished = run(redis_clients.forks, letter_api.url, tmp_path, server.url)
    assert finished.code == 0, finished
    assert sorted(serials(server)) == sorted([*range(100), *range(1000, 1100), *range(2000, 2100), *range(100, 200)])
    assert letter_api.requests == []
    assert "letterapp:" not in finished.output.replace("letterapp: relay: Redis", "", 1), finished


def test_a_client_for_redis_can_be_pickled(server: RedisServer, make: Any) -> None:
    letter = pickle.loads(pickle.dumps(Letter(KEY, relay=server.url)))
    work(letter, 1)
    assert letter.flush(10)
    letter.close()
    assert serials(server) == [0]


def test_a_connection_with_tls_verifies_the_server(
    redis_server: Callable[..., RedisServer],
    ca: Any,
    ca_file: str,
    make: Any,
    errors: list[LetterError],
    tmp_path: Path,
) -> None:
    certificate = ca.issue_cert("127.0.0.1")
    certificate.private_key_pem.write_to_path(str(tmp_path / "key"))
    certificate.cert_chain_pems[0].write_to_path(str(tmp_path / "certificate"))
    port = free_port()
    tls = ["--tls-port", str(port), "--tls-cert-file", str(tmp_path / "certificate"), "--tls-auth-clients", "no"]
    server = redis_server(*tls, "--tls-key-file", str(tmp_path / "key"), "--tls-ca-cert-file", ca_file)
    letter = make(relay=f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={ca_file}")
    work(letter, 100)
    assert letter.flush(20)
    assert serials(server) == list(range(100)) and troubles(errors) == []
    distrustful = make(relay=f"rediss://127.0.0.1:{port}/0")
    work(distrustful, 1, 100)
    assert distrustful.flush(20)
    assert len(serials(server)) == 100
    (said,) = troubles(errors)
    assert "certificate verify failed" in said.lower()


def test_redis_is_reached_over_a_unix_socket(
    redis_server: Callable[..., RedisServer], make: Any, errors: list[LetterError], tmp_path: Path
) -> None:
    server = redis_server("--unixsocket", str(tmp_path / "s"))
    letter = make(relay=f"unix://{tmp_path}/s?db=0&max_length=7")
    work(letter, 100)
    assert letter.flush(20)
    assert serials(server) == list(range(100)) and troubles(errors) == []


def test_the_parts_of_a_url() -> None:
    plain = Location("redis://user:secret-word@host:7/3?max_length=5&socket_keepalive=no")
    assert (plain.max_length, plain.sentinels, repr(plain)) == (5, [], "Redis at host:7")
    kind, options = plain.connection_options()
    assert kind.__name__ == "Connection"
    assert (options["username"], options["password"], options["db"]) == ("user", "secret-word", 3)
    assert "max_length" not in options
    socket = Location("unix:///run/redis.sock?db=2")
    assert socket.connection_options()[1]["path"] == "/run/redis.sock" and repr(socket) == "Redis at /run/redis.sock"
    watched = Location("redis+sentinel://:master-word@a,b:7,[::1]:8/mine/4?sentinel_password=sentinel-word")
    assert watched.sentinels == [("a", 26379), ("b", 7), ("::1", 8)]
    assert (watched.service, repr(watched)) == ("mine", "Redis service mine")
    assert watched.connection_options()[1]["db"] == 4
    assert watched.connection_options()[1]["password"] == "master-word"
    assert watched.sentinel_options()["password"] == "sentinel-word"
    first = Location("redis+sentinel://[::1]:8,[::2],b/mine?max_length=5")
    assert first.sentinels == [("::1", 8), ("::2", 26379), ("b", 26379)]
    assert (first.service, first.max_length) == ("mine", 5)
    for location in (plain, watched):
        assert "-word" not in str(vars(location)) + repr(location)


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("redis://host:port/0", "invalid"),
        ("redis://[/0", "invalid"),
        ("redis://:word\u2100@host", "invalid$"),  # `urlsplit` refuses the sign, and says the password
        ("redis+sentinel://:word\u2100@host/service", "invalid$"),
        ("redis://host/0?max_length=0", "max_length"),
        ("redis://host/0?max_length=many", "max_length"),
        ("redis+sentinel://host:26379", "sentinel URL"),
        ("redis+sentinel://host:x/service", "port"),
        ("redis+sentinel:///service", "sentinel URL"),
        ("redis+sentinel://[::1/service", "host"),
        ("redis+sentinel://a,[/service", "host"),
        ("redis+sentinel://[]:1/service", "host"),
        ("redis+sentinel://:1/service", "host"),
        ("redis+sentinel://host:٣/service", "port"),
    ],
)
def test_a_wrong_url_is_refused_at_once(url: str, why: str) -> None:
    with pytest.raises(LetterError, match=why):
        Letter(KEY, relay=url)


def test_redis_py_is_imported_only_for_a_redis_url(tmp_path: Path) -> None:
    program = (
        "import sys; from letterapp import Letter; Letter('k' * 9, relay='/tmp/none', enabled=False);"
        "assert 'redis' not in sys.modules; Letter('k' * 9, relay='redis://localhost', enabled=False);"
        "assert 'redis' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], env=environment(""), cwd=str(ROOT), check=True)


def test_without_redis_py_the_error_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "redis.py").write_text("raise ImportError('none here')")
    program = "from letterapp import Letter; Letter('k' * 9, relay='redis://localhost')"
    env = environment("")
    env["PYTHONPATH"] = os.pathsep.join([str(tmp_path), env["PYTHONPATH"]])
    ended = subprocess.run([sys.executable, "-c", program], env=env, cwd=str(ROOT), capture_output=True, text=True)
    assert ended.returncode == 1 and "pip install 'letterapp[redis]'" in ended.stderr
