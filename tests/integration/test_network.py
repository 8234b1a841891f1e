"""The network at its worst: what a batch survives, and what it costs.

A promise a chapter. Where the length of a wait matters, the test takes the sender's turns itself (`driven`).
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import select
import socket
import ssl
import sys
import threading
import time
from email.utils import formatdate
from pathlib import Path
from typing import Any, Callable, Iterator

import pytest
import trustme
from driven import connections
from harness import DEADLINE, FEW_DESCRIPTORS, eventually, run
from relayed import Runtime, greet, own_runtime  # noqa: F401  # the fixture

from letterapp import Letter, LetterError
from letterapp._relay import protocol
from letterapp.testing import IngestionServer, raw, reset, status
from stress.ports import free_port

PROPER = status(200, stored=True)


def serials(api: IngestionServer) -> list[int]:
    return [item["properties"]["serial"] for item in api.events]


def lost(errors: list[LetterError]) -> list[int]:
    return [event["properties"]["serial"] for error in errors for event in error.events]


@pytest.fixture(scope="module")
def ca() -> trustme.CA:
    return trustme.CA()


# 429: never sooner than the back-off.


@pytest.mark.parametrize("header", ["0", "-5", "0.01", "five seconds ago"])
def test_a_429_with_a_moment_that_is_past_makes_no_storm_of_requests(
    header: str, letter_api: IngestionServer, driven: Any, tmp_path: Path, errors: list[LetterError]
) -> None:
    if header == "five seconds ago":
        header = formatdate(time.time() - 5, usegmt=True)
    letter_api.rule = lambda request: status(429, headers={"Retry-After": header})
    one = driven(spool=tmp_path / "spool", max_retries=0)
    one.track()
    until = one.now + 60.0
    while one.now < until and len(letter_api.requests) < 50:
        one.now += one.sender._batches.send_once()
    assert len(letter_api.requests) <= 9 and errors == []  # after 0, 1/4, 3/4, ... 31.75, 61.75 s
    assert one.letter.stats()["waiting"] == 1


# A fault of the machine.


@pytest.mark.parametrize("spool", [False, True], ids=["memory", "spool"])
def test_no_descriptor_at_the_first_request_costs_no_event(
    spool: bool, letter_api: IngestionServer, tmp_path: Path
) -> None:
    code = """
    import resource
    options = {'spool': 'spool'} if len(sys.argv) > 1 else {}
    errors = []
    letter = Letter('k', API, flush_interval=600, on_error=errors.append, **options)
    work(letter, 12)
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, most))
    letter.flush(0)
    deadline = time.monotonic() + 60
    while not letter.stats()['retried'] and letter.stats()['waiting'] and time.monotonic() < deadline:
        time.sleep(0.01)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, most))
    letter.flush(30)
    stats = letter.stats()
    print(stats['delivered'], stats['lost'], stats['retried'] >= 12, [error for error in errors if error.lost])
    """
    finished = run(code, letter_api.url, tmp_path, *["spool"] * spool)
    assert finished.output == "12 {} True []\n", finished
    assert letter_api.distinct == 12


@pytest.mark.parametrize("module", ["http.client", "ssl", "socket", "json", "encodings.idna"])
@pytest.mark.parametrize("error", ["OSError(24, 'Too many open files')", "ImportError('no memory')", "MemoryError()"])
def test_an_import_that_fails_once_costs_no_event(
    module: str, error: str, letter_api: IngestionServer, tmp_path: Path
) -> None:
    code = f"""
    class Failing:
        def find_spec(self, name, path=None, target=None):
            if name == {module!r}:
                sys.meta_path.remove(self)
                raise {error}
    sys.meta_path.insert(0, Failing())
    sys.modules.pop({module!r}, None)
    letter = Letter('k', API, flush_at=1)
    work(letter, 3)
    letter.flush(30)
    print(letter.stats()['delivered'], letter.stats()['lost'], letter.stats()['retried'] > 0)
    """
    finished = run(code, letter_api.url, tmp_path)
    assert finished.output == "3 {} True\n", finished


def test_an_import_that_fails_in_send_is_a_letter_error(letter_api: IngestionServer, tmp_path: Path) -> None:
    code = """
    class Failing:
        def find_spec(self, name, path=None, target=None):
            if name == 'socket' and not allowed:
                raise OSError(24, 'Too many open files')
    allowed = []
    sys.meta_path.insert(0, Failing())
    letter = Letter('k', API)
    try:
        letter.send('a@b.example', 'S', text='x')
    except LetterError as error:
        print('Too many open files' in str(error))
    allowed.append(True)
    print(letter.send('a@b.example', 'S', text='x')['status'])
    """
    assert run(code, letter_api.url, tmp_path).output == "True\nsent\n"


SURPRISES = [
    MemoryError(),
    OSError(errno.EMFILE, "Too many open files"),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
    RuntimeError("out of the blue"),
    ImportError("half a module"),
]


def failing(real: Callable[..., Any], surprise: Exception, times: float) -> Callable[..., Any]:
    calls = itertools.count()

    def fail(*arguments: Any, **named: Any) -> Any:
        if next(calls) < times:
            raise surprise
        return real(*arguments, **named)

    return fail


@pytest.mark.parametrize("surprise", SURPRISES, ids=repr)
@pytest.mark.parametrize("place", ["_transport.post", "_transport.prepare", "_queue.take", "_hand_over_or_post"])
def test_what_nobody_expects_on_the_senders_path_is_tried_again(
    place: str,
    surprise: Exception,
    letter_api: IngestionServer,
    driven: Any,
    errors: list[LetterError],
    monkeypatch: Any,
) -> None:
    one = driven()
    one.track(5)
    room, _, name = place.rpartition(".")
    owner = getattr(one.sender._batches, room) if room else one.sender._batches
    monkeypatch.setattr(owner, name, failing(getattr(owner, name), surprise, 3))
    waits = one.settle()
    assert len(waits) == 3
    for wait, bare in zip(waits, [0.25, 0.5, 1.0] if place != "_queue.take" else [0.25] * 3):  # there it is no try
        assert bare <= wait <= bare * 1.25
    assert serials(letter_api) == [0, 1, 2, 3, 4] and errors == []


@pytest.mark.parametrize(
    "place",
    [
        "_queue.due",
        "_queue.is_lost",
        "_queue.take_overflow_report",
        "_recovery.recover_if_due",
        "_apply_outcome",
        "_queue.settle",
    ],
)
def test_what_nobody_expects_beside_the_senders_path_ends_no_sender(
    place: str, letter_api: IngestionServer, driven: Any, errors: list[LetterError], monkeypatch: Any
) -> None:
    one = driven()
    one.track(5)
    room, _, name = place.rpartition(".")
    owner = getattr(one.sender._batches, room) if room else one.sender._batches
    monkeypatch.setattr(owner, name, failing(getattr(owner, name), BufferError("cannot be re-sized"), 3))
    assert all(0.25 <= wait <= 0.5 * 1.25 for wait in one.settle())
    assert letter_api.distinct == 5 and {error.cause for error in errors} <= {"degraded"} and len(errors) <= 1


def test_an_event_that_fits_into_no_request_is_lost_alone(
    letter_api: IngestionServer, driven: Any, errors: list[LetterError], tmp_path: Path
) -> None:
    for options in ({}, {"overflow": "drop_oldest"}, {"overflow": "block"}, {"spool": tmp_path / "spool"}):
        one = driven(max_queue_bytes=600_000, **options)
        one.track(5)
        one.sender.put(b'{"x":"%s"}' % (b"a" * 599_000))  # as a client of a relay may send it
        one.track(5)
        one.settle()
        error = errors.pop()
        assert (error.cause, error.lost) == ("overflow", 1) and "501,608 (max_batch_bytes)" in str(error)
        assert one.sender.stats()["delivered"] == 10 and errors == []


def test_what_nobody_expects_is_reported_when_no_try_is_left(
    letter_api: IngestionServer, driven: Any, errors: list[LetterError], monkeypatch: Any
) -> None:
    one = driven(max_retries=2)
    one.track(5)
    monkeypatch.setattr(
        one.sender._batches._transport, "post", failing(one.sender._batches._transport.post, MemoryError(), 3)
    )
    assert len(one.settle()) == 2
    (error,) = errors
    assert error.cause == "undeliverable" and error.lost == 5 and "MemoryError" in str(error)
    one.track()
    assert one.settle() == [] and letter_api.distinct == 1


def test_what_nobody_expects_never_settles_a_batch_of_a_spool(
    letter_api: IngestionServer, driven: Any, errors: list[LetterError], monkeypatch: Any, tmp_path: Path
) -> None:
    one = driven(max_retries=0, spool=tmp_path / "spool")
    one.track(5)
    monkeypatch.setattr(
        one.sender._batches._transport, "post", failing(one.sender._batches._transport.post, MemoryError(), 20)
    )
    assert len(one.settle()) == 20
    assert serials(letter_api) == [0, 1, 2, 3, 4] and errors == []


def test_a_look_for_ended_processes_that_fails_is_told_once_and_repeated(
    letter_api: IngestionServer, driven: Any, errors: list[LetterError], monkeypatch: Any
) -> None:
    one = driven()
    backends = one.sender._recovery._backends
    looks: list[float] = []

    def orphans() -> list[Any]:
        looks.append(one.now)
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(backends, "orphans", orphans)
    for _ in range(4):
        one.sender._batches.send_once()
        one.now += 3600.0
    assert len(looks) == 4 and len(errors) == 1


def test_a_tls_context_that_was_made_without_its_certificates_is_made_anew(
    ca: trustme.CA, driven: Any, errors: list[LetterError]
) -> None:
    # OpenSSL does not say when it could not open the file of certificates, for want of a descriptor.
    serving, trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    ca.issue_cert("localhost").configure_cert(serving)
    ca.configure_trust(trusting)
    contexts = [ssl.create_default_context(), trusting]
    with IngestionServer(ssl_context=serving) as api:
        one = driven(api.url, ssl_context=lambda: contexts.pop(0))
        for tries in (1, 0):
            one.track()
            assert len(one.settle()) == tries
        assert api.distinct == 2 and errors == [] and contexts == []


def greeted(path: str, key: str, url: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(DEADLINE)
    sock.connect(path)
    with contextlib.suppress(protocol.Refused, OSError):  # it has no descriptor left for another one
        greet(sock, key, url)
    return sock


@pytest.fixture
def limited(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> Runtime:
    """Relays of the test have 64 descriptors."""
    real = runtime.command_line
    monkeypatch.setattr(
        runtime,
        "command_line",
        lambda *options: [sys.executable, "-c", FEW_DESCRIPTORS, *real(*options)],
        raising=False,
    )
    return runtime


def test_a_relay_keeps_descriptors_in_reserve_for_sending(letter_api: IngestionServer, limited: Runtime) -> None:
    with limited.keep() as relay:
        clients = [greeted(limited.socket, "test-key", letter_api.url) for _ in range(100)]
        assert eventually(lambda: relay.output, lambda text: "descriptors" in text), relay.output
        clients[0].sendall(
            b'{"type":"track","userId":"u","messageId":"m","timestamp":"t","event":"E","properties":{"serial":7}}\n'
        )
        assert clients[0].recv(100) == b"[1]\n", relay.output
        assert serials(letter_api) == [7]
        for client in clients:
            client.close()


def test_a_relay_with_64_descriptors_loses_nothing_of_100_clients(
    letter_api: IngestionServer, limited: Runtime, make: Any, errors: list[LetterError]
) -> None:
    with limited.keep() as relay:
        letters = [make(relay=limited.socket) for _ in range(100)]
        for serial, letter in enumerate(letters):
            letter.track("u", "E", {"serial": serial})
        assert all(letter.flush(DEADLINE) for letter in letters), relay.output
        assert sorted(set(serials(letter_api))) == list(range(100))
        assert [error for error in errors if error.lost] == []
        for letter in letters:
            letter.close(DEADLINE)


# One bad event.


def refusing(bad: set[int], code: int) -> Callable[[Any], Any]:
    def rule(request: Any) -> Any:
        serials = {item["properties"]["serial"] for item in request.json["batch"]}
        return status(code, b'{"error": {"message": "A bad event."}}') if serials & bad else None

    return rule


@pytest.mark.parametrize("code", [400, 422])
@pytest.mark.parametrize(
    "bad, requests",
    [
        ({0}, 15),
        ({63}, 15),
        ({99}, 15),
        ({0, 99}, 27),
        ({0, 1, 2}, 17),
        ({17, 38, 59, 77, 98}, 63),
    ],
    ids=str,
)
def test_a_bad_event_is_lost_alone_in_a_bounded_number_of_requests(
    bad: set[int], requests: int, code: int, letter_api: IngestionServer, driven: Any, errors: list[LetterError]
) -> None:
    letter_api.rule = refusing(bad, code)
    one = driven(max_retries=0)
    one.track(100)
    assert one.settle() == []
    assert serials(letter_api) == [serial for serial in range(100) if serial not in bad]  # in their order
    assert lost(errors) == sorted(bad)
    assert {(error.cause, error.status) for error in errors} == {("rejected", code)}
    assert one.letter.stats()["lost"] == {"rejected": len(bad)}
    assert len(letter_api.requests) <= requests


@pytest.mark.parametrize("events", [1, 2, 3, 50, 99, 100])
def test_an_api_that_refuses_every_batch_is_asked_17_times_for_one_at_the_most(
    events: int, letter_api: IngestionServer, driven: Any, errors: list[LetterError]
) -> None:
    letter_api.rule = lambda request: status(400)
    one = driven()
    one.track(events)
    assert one.settle() == []
    assert len(letter_api.requests) <= min(17, 2 * events - 1)
    assert lost(errors) == list(range(events))
    assert one.letter.stats()["lost"] == {"rejected": events} and one.letter.stats()["waiting"] == 0


def test_an_api_that_refuses_many_events_is_asked_a_bounded_number_of_times(
    letter_api: IngestionServer, driven: Any, errors: list[LetterError]
) -> None:
    letter_api.rule = refusing(set(range(1, 100, 2)), 400)
    one = driven()
    one.track(100)
    assert one.settle() == []
    assert len(letter_api.requests) <= 65
    assert letter_api.distinct + sum(error.lost for error in errors) == 100
    one.track()
    letter_api.rule = None
    assert one.settle() == [] and serials(letter_api)[-1] == 0  # the next batch begins anew


@pytest.mark.parametrize("code", [401, 402, 403, 404, 405, 409, 410, 415, 451, 302])
def test_what_is_said_of_the_request_as_a_whole_is_not_split(
    code: int, letter_api: IngestionServer, driven: Any, errors: list[LetterError]
) -> None:
    letter_api.rule = refusing({3}, code)
    one = driven()
    one.track(100)
    assert one.settle() == []
    assert len(letter_api.requests) == 1 and lost(errors) == list(range(100))


def test_a_part_of_a_split_batch_has_all_of_its_tries(
    letter_api: IngestionServer, driven: Any, errors: list[LetterError]
) -> None:
    fifty_busy = [status(503)] * 3
    letter_api.plan(status(422), *fifty_busy, status(422), *fifty_busy)
    one = driven(max_retries=3)
    one.track(4)
    waits = one.settle()
    assert [round(wait / 1.25, 2) <= bare <= wait for wait, bare in zip(waits, [0.25, 0.5, 1.0] * 2)] == [True] * 6
    assert serials(letter_api) == [0, 1, 2, 3] and errors == []


# Addresses that swallow packets.


class Addresses:
    """Listeners on loopback, and a name that resolves to them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch
        self._open: list[socket.socket] = []

    def swallowing(self) -> int:
        """A port whose listener has no room for another connection: what comes is dropped, as by a firewall."""
        listener = socket.socket()
        self._open.append(listener)
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port: int = listener.getsockname()[1]
        while True:
            sock = socket.socket()
            self._open.append(sock)
            sock.setblocking(False)
            sock.connect_ex(("127.0.0.1", port))
            if not select.select([], [sock], [], 0.3)[1]:
                return port

    def name(self, *ports: int) -> None:
        """Have every name lead to these ports of the loopback address, in this order."""
        found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port)) for port in ports]
        self._monkeypatch.setattr(socket, "getaddrinfo", lambda *arguments, **named: list(found))

    def close(self) -> None:
        for sock in self._open:
            sock.close()


@pytest.fixture
def addresses(monkeypatch: pytest.MonkeyPatch) -> Iterator[Addresses]:
    made = Addresses(monkeypatch)
    yield made
    made.close()


@pytest.mark.parametrize("before, timeout", [(1, 2.0), (5, 2.0), (2, 10.0)])
def test_an_address_that_swallows_packets_does_not_cost_the_others_their_time(
    before: int,
    timeout: float,
    letter_api: IngestionServer,
    driven: Any,
    addresses: Addresses,
    errors: list[LetterError],
) -> None:
    addresses.name(*[addresses.swallowing() for _ in range(before)], letter_api.port)
    one = driven(max_retries=0, timeout=timeout)
    one.track()
    started = time.monotonic()
    assert one.settle() == [] and errors == [] and letter_api.distinct == 1
    assert time.monotonic() - started < timeout


def test_an_address_that_refuses_is_followed_by_the_next_at_once(
    letter_api: IngestionServer, driven: Any, addresses: Addresses, errors: list[LetterError], monkeypatch: Any
) -> None:
    monkeypatch.setattr("letterapp._sockets.connect.DELAY", 3600.0)
    addresses.name(free_port(), free_port(), letter_api.port)
    one = driven(max_retries=0, timeout=7200)
    one.track()
    assert one.settle() == [] and errors == [] and letter_api.distinct == 1


def test_a_slow_first_address_wins_when_it_answers_first(
    letter_api: IngestionServer, driven: Any, addresses: Addresses, errors: list[LetterError]
) -> None:
    addresses.name(letter_api.port, addresses.swallowing())
    one = driven(max_retries=0)
    for _ in range(2):
        one.track()
        assert one.settle() == []
    assert errors == [] and connections(letter_api) == 1


@pytest.mark.parametrize("refusing", [False, True], ids=["all swallow", "the last refuses"])
def test_addresses_that_all_fail_are_bounded_by_timeout(
    refusing: bool, letter_api: IngestionServer, driven: Any, addresses: Addresses, errors: list[LetterError]
) -> None:
    addresses.name(addresses.swallowing(), free_port() if refusing else addresses.swallowing())
    one = driven(max_retries=0, timeout=0.5)
    one.track()
    before = set(os.listdir("/dev/fd"))
    assert one.settle() == []
    (error,) = errors
    assert "no answer within 0.5 s" in str(error)
    assert set(os.listdir("/dev/fd")) == before  # every socket was closed


def test_the_families_of_a_hosts_addresses_take_turns() -> None:
    from letterapp._sockets.connect import interleaved

    six, four = socket.AF_INET6, socket.AF_INET
    places = [(six, 1), (six, 2), (six, 3), (four, 4), (four, 5)]
    assert [place[1] for place in interleaved(places)] == [1, 4, 2, 5, 3]
    assert interleaved([(four, 1), (six, 2)]) == [(four, 1), (six, 2)]
    assert interleaved([]) == []


SWALLOWED = """
import select, socket
def swallowing():
    listener = socket.socket()
    listener.bind(('127.0.0.1', 0))
    listener.listen(0)
    kept.append(listener)
    while True:
        sock = socket.socket()
        sock.setblocking(False)
        sock.connect_ex(listener.getsockname())
        kept.append(sock)
        if not select.select([], [sock], [], 0.3)[1]:
            return listener.getsockname()
kept = []
port = int(API.rpartition(':')[2])
places = [swallowing(), swallowing(), ('127.0.0.1', port)]
socket.getaddrinfo = lambda *a, **k: [(socket.AF_INET, socket.SOCK_STREAM, 6, '', place) for place in places]
"""


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="no /proc to look into")
def test_a_child_that_is_forked_while_addresses_are_tried_keeps_none_of_the_sockets(
    letter_api: IngestionServer, tmp_path: Path
) -> None:
    code = (
        SWALLOWED
        + """
from letterapp._http import transport
transport.load()
places[-1] = swallowing()
def sockets():
    return sum(os.readlink(f'/proc/self/fd/{name}').startswith('socket:') for name in os.listdir('/proc/self/fd')
               if os.path.lexists(f'/proc/self/fd/{name}'))
before = sockets()
def on_error(error):
    if error.cause != 'degraded':
        print(error)
letter = Letter('k', 'http://name.example', flush_at=1, max_retries=0, timeout=60, exit_timeout=0, on_error=on_error,
                send_on_os_exit=False)
work(letter, 1)
deadline = time.monotonic() + 60
while sockets() < before + 3 and time.monotonic() < deadline:
    time.sleep(0.01)
print(sockets() - before, flush=True)
pid = child(lambda: sockets() - before)
print(os.WEXITSTATUS(os.waitpid(pid, 0)[1]), flush=True)
print(sockets() - before, flush=True)
os._exit(0)
"""
    )
    assert run(code, letter_api.url, tmp_path).output == "3\n0\n3\n"


def test_under_gevent_addresses_are_tried_without_stopping_other_greenlets(
    letter_api: IngestionServer, tmp_path: Path
) -> None:
    pytest.importorskip("gevent")
    code = (
        "from gevent import monkey; monkey.patch_all()\nimport gevent\n"
        + SWALLOWED
        + """
turns = []
def turn():
    while True:
        turns.append(time.monotonic())
        gevent.sleep(0.01)
gevent.spawn(turn)
letter = Letter('k', 'http://name.example', max_retries=0, timeout=10, on_error=lambda error: None)
work(letter, 1)
started = time.monotonic()
print(letter.flush(30), letter.stats()['delivered'])
print(sum(started < turn < started + 0.4 for turn in turns) >= 5)
"""
    )
    assert run(code, letter_api.url, tmp_path).output == "True 1\nTrue\n"


# 408 and interim answers.


@pytest.mark.parametrize("max_retries", [0, 3])
def test_a_408_on_a_kept_connection_is_the_servers_way_of_closing_it(
    max_retries: int, letter_api: IngestionServer, driven: Any, errors: list[LetterError]
) -> None:
    letter_api.plan(PROPER, status(408), PROPER, status(408))
    one = driven(max_retries=max_retries)
    for _ in range(3):
        one.track()
        assert one.settle() == []
    assert (len(letter_api.requests), connections(letter_api)) == (5, 3)
    assert errors == [] and one.letter.stats()["retried"] == 0 and letter_api.distinct == 3


def test_a_408_on_a_new_connection_is_tried_again_after_the_backoff_on_another_one(
    letter_api: IngestionServer, driven: Any, errors: list[LetterError]
) -> None:
    letter_api.plan(status(408), status(408))
    one = driven(max_retries=2)
    one.track()
    waits = one.settle()
    assert len(waits) == 2 and 0.25 <= waits[0] <= 0.3125 and 0.5 <= waits[1] <= 0.625
    assert connections(letter_api) == 3 and errors == [] and letter_api.distinct == 1


def test_a_408_for_every_try_is_reported_with_its_status(
    letter_api: IngestionServer, driven: Any, errors: list[LetterError]
) -> None:
    letter_api.rule = lambda request: status(408, b"slow")
    one = driven(max_retries=1)
    one.track(2)
    assert len(one.settle()) == 1
    (error,) = errors
    assert (error.status, error.body, error.cause, error.lost) == (408, "slow", "undeliverable", 2)


def test_a_mail_without_an_idempotency_key_is_not_sent_again_after_a_408(
    letter_api: IngestionServer, make: Any
) -> None:
    letter_api.rule = lambda request: status(408)
    with pytest.raises(LetterError) as caught:
        make().send("a@b.example", "S", text="x")
    assert caught.value.status == 408 and len(letter_api.requests) == 1


CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
HINTS = b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\nLink: </x>\r\n\r\n"
PROCESSING = b"HTTP/1.1 102 Processing\r\n\r\n"
KEEP_ALIVE_200 = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


def then(data: bytes, stored: bool = True) -> Callable[[Any], None]:
    """Answer with these bytes, and leave the connection open."""

    def answer(handler: Any) -> None:
        if stored:
            handler.keep()
        handler.wfile.write(data)

    return answer


@pytest.mark.parametrize(
    "interim",
    [HINTS, PROCESSING, CONTINUE, HINTS + HINTS, CONTINUE + PROCESSING * 3 + HINTS, b"HTTP/1.1 199 X\r\n\r\n"],
    ids=["103", "102", "100", "103 twice", "mixed", "199"],
)
def test_interim_answers_are_skipped(
    interim: bytes, letter_api: IngestionServer, driven: Any, errors: list[LetterError]
) -> None:
    letter_api.plan(then(interim + KEEP_ALIVE_200), then(interim + KEEP_ALIVE_200))
    one = driven(max_retries=0)
    for _ in range(2):
        one.track()
        assert one.settle() == []
    assert (len(letter_api.requests), connections(letter_api)) == (2, 1)
    assert errors == [] and letter_api.repeated() == {}


def test_interim_answers_without_end_are_an_error(
    letter_api: IngestionServer, driven: Any, errors: list[LetterError]
) -> None:
    letter_api.plan(then(HINTS * 1000 + KEEP_ALIVE_200))
    one = driven(max_retries=0, timeout=600)
    one.track()
    assert one.settle() == []
    (error,) = errors
    assert error.cause == "undeliverable" and "interim" in str(error)


def test_a_switch_of_protocols_is_an_error(letter_api: IngestionServer, driven: Any, errors: list[LetterError]) -> None:
    letter_api.plan(then(b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\n\r\n" + KEEP_ALIVE_200))
    one = driven(max_retries=0, timeout=600)
    one.track()
    assert one.settle() == []
    assert errors[0].cause == "undeliverable" and "101" in str(errors[0])


# Answers that nobody asked for.


@pytest.fixture(params=["http", "https"])
def any_api(request: Any, ca: trustme.CA) -> Iterator[tuple[IngestionServer, dict[str, Any]]]:
    """A server, and what a client of it needs."""
    if request.param == "http":
        with IngestionServer() as api:
            yield api, {}
        return
    serving, trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    ca.issue_cert("localhost").configure_cert(serving)
    ca.configure_trust(trusting)
    with IngestionServer(ssl_context=serving) as api:
        yield api, {"ssl_context": trusting}


def padded(size: int) -> bytes:
    """A proper answer of ``size`` bytes."""
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n"
    body = size - len(head % size)
    return head % body + b" " * body if len(head % body) + body == size else head % (body + 1) + b" " * (body + 1)


@pytest.mark.parametrize("size", [100, 8191, 8192, 8193, 16_000])
def test_a_second_answer_that_nobody_asked_for_is_not_taken_for_the_next_ones(
    size: int, any_api: tuple[IngestionServer, dict[str, Any]], driven: Any, errors: list[LetterError]
) -> None:
    api, options = any_api
    # One write, so with TLS one record: what is read of it in part lies in OpenSSL's buffer, where no `poll` sees it.
    api.plan(then(padded(size) + KEEP_ALIVE_200), status(422))
    one = driven(api.url, max_retries=0, **options)
    for _ in range(2):
        one.track()
        assert one.settle() == []
    assert (len(api.requests), connections(api)) == (2, 2)
    assert [error.status for error in errors] == [422] and one.letter.stats()["lost"] == {"rejected": 1}


# Lengths.


SENSELESS = {
    "negative": b"Content-Length: -1\r\n",
    "no number": b"Content-Length: abc\r\n",
    "empty": b"Content-Length:\r\n",
    "two": b"Content-Length: 2\r\nContent-Length: 3\r\n",
    "two in one line": b"Content-Length: 2, 3\r\n",
    "a number and nothing": b"Content-Length: 2,\r\n",
    "signed": b"Content-Length: +2\r\n",
    "underscored": b"Content-Length: 0_2\r\n",
    "a fraction": b"Content-Length: 2.0\r\n",
    "hexadecimal": b"Content-Length: 0x2\r\n",
    "a digit of another script": b"Content-Length: \xb2\r\n",
    "larger than anything": b"Content-Length: " + b"9" * 5000 + b"\r\n",
}


@pytest.mark.parametrize("length", SENSELESS.values(), ids=SENSELESS.keys())
def test_an_answer_whose_length_makes_no_sense_is_no_answer(
    length: bytes, letter_api: IngestionServer, driven: Any, errors: list[LetterError]
) -> None:
    letter_api.plan(raw(b"HTTP/1.1 200 OK\r\n" + length + b"\r\n{}"), PROPER)
    one = driven(max_retries=1)
    one.track()
    assert len(one.settle()) == 1
    assert (len(letter_api.requests), connections(letter_api)) == (2, 2)
    assert errors == [] and letter_api.distinct == 1


@pytest.mark.parametrize(
    "length",
    [
        b"Content-Length: 2\r\nContent-Length: 2\r\n",
        b"Content-Length: 2, 2\r\n",
        b"Content-Length: 2 , 02\r\nContent-Length: 2\r\n",
        b"Content-Length:   2   \r\n",
    ],
)
def test_a_length_that_is_said_twice_is_a_length(
    length: bytes, letter_api: IngestionServer, driven: Any, errors: list[LetterError]
) -> None:
    letter_api.plan(then(b"HTTP/1.1 200 OK\r\n" + length + b"\r\n{}"))
    one = driven(max_retries=0, timeout=5)
    one.track()
    assert one.settle() == [] and errors == [] and letter_api.distinct == 1


# SIGPIPE.


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGPIPE here")
@pytest.mark.parametrize("way", ["flush", "send", "thread"])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_server_that_closes_in_the_middle_of_a_body_ends_no_program_that_has_sigpipes_default_action(
    scheme: str, way: str, ca: trustme.CA, tmp_path: Path
) -> None:
    code = """
    import socket
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    letter = Letter('k', API, flush_interval=600, flush_at=1000, max_retries=2, timeout=30, on_error=lambda error: None,
                    max_batch_bytes=4_000_000)
    if sys.argv[1] == 'flush':
        import _thread
        def none(*_): raise RuntimeError("can't start new thread")
        _thread.start_new_thread = none  # so that this thread sends
    if sys.argv[1] == 'send':
        for _ in range(5):
            try:
                letter.send('a@b.example', 'S', text='x' * 3_000_000)
            except LetterError:
                print('refused', flush=True)
    else:
        for _ in range(10):
            letter.track('u', 'E', {'text': 'x' * 300_000})
        letter.flush(30)
        print('flushed', flush=True)
    print(signal.SIGPIPE in signal.pthread_sigmask(signal.SIG_BLOCK, ()), signal.sigpending())
    os._exit(0)
    """
    context = None
    if scheme == "https":
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        ca.issue_cert("localhost").configure_cert(context)
        ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    with Rude(context) as url:
        finished = run(code, url, tmp_path, way, SSL_CERT_FILE=str(tmp_path / "ca.pem"), PYTHONWARNINGS="ignore")
    assert finished.code == 0, finished
    assert finished.output.splitlines()[-1] == "False set()", finished


class Rude:
    """A server that reads the beginning of each request and closes: the client's next write meets a broken pipe."""

    def __init__(self, context: ssl.SSLContext | None) -> None:
        self._context = context
        self._listener = socket.socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(8)
        self._is_over = False
        self._thread = threading.Thread(target=self._serve)

    def _serve(self) -> None:
        while not self._is_over:
            sock, _ = self._listener.accept()
            sock.settimeout(DEADLINE)
            try:
                if self._context is not None:
                    sock = self._context.wrap_socket(sock, server_side=True)
                sock.recv(1000)
                # An end of stream, and then the reset that a close with something unread is: what a client that still
                # writes meets is EPIPE. (A reset alone would be ECONNRESET, and no signal.)
                sock.shutdown(socket.SHUT_WR)
            except OSError:
                pass
            sock.close()

    def __enter__(self) -> str:
        self._thread.start()
        port = self._listener.getsockname()[1]
        return f"https://localhost:{port}" if self._context else f"http://127.0.0.1:{port}"

    def __exit__(self, *_: Any) -> None:
        self._is_over = True
        socket.create_connection(self._listener.getsockname()).close()
        self._thread.join(DEADLINE)
        self._listener.close()


# As long as there is room.


@pytest.mark.parametrize("fault", [status(503), status(429), status(408), reset()], ids=["503", "429", "408", "reset"])
def test_max_retries_none_tries_as_long_as_the_queue_has_room(
    fault: Any, letter_api: IngestionServer, driven: Any, errors: list[LetterError]
) -> None:
    letter_api.plan(*[fault] * 40)
    one = driven(max_retries=None)
    one.track(3)
    waits = one.settle()
    assert len(waits) == 40 and errors == [] and letter_api.distinct == 3
    assert all(wait <= 30.0 * 1.25 for wait in waits) and waits[-1] >= 30.0


def test_max_retries_none_gives_up_what_is_refused(
    letter_api: IngestionServer, driven: Any, errors: list[LetterError]
) -> None:
    letter_api.plan(status(401))
    one = driven(max_retries=None)
    one.track(3)
    assert one.settle() == [] and errors[0].cause == "rejected"


def test_max_retries_none_reports_what_finds_no_room(driven: Any, errors: list[LetterError]) -> None:
    one = driven(f"http://127.0.0.1:{free_port()}", max_retries=None, max_queue_events=10)
    one.track(15)
    for _ in range(20):
        one.now += one.sender._batches.send_once()
    assert sum(error.lost for error in errors) == 5 and {error.cause for error in errors} == {"overflow"}
    assert one.letter.stats()["waiting"] == 10


def test_send_tries_three_times_more_when_max_retries_is_none(
    letter_api: IngestionServer, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("letterapp._delivery.retry.BACKOFF", 0.001)
    letter_api.rule = lambda request: status(503)
    with pytest.raises(LetterError):
        make(max_retries=None).send("a@b.example", "S", text="x", idempotency_key="k")
    assert len(letter_api.requests) == 4


def test_a_relay_that_is_started_gets_max_retries_none(
    letter_api: IngestionServer, make: Any, errors: list[LetterError], runtime: Runtime
) -> None:
    letter_api.plan(*[status(429, headers={"Retry-After": "0"})] * 4)
    letter = make(relay=True, max_retries=None)
    letter.track("u", "E")
    assert letter.flush(DEADLINE) and letter_api.distinct == 1 and errors == []
    assert len(letter_api.requests) == 5 and letter.stats()["relayed"] == 1
    assert letter.close(DEADLINE)


@pytest.mark.parametrize("value", ["3", 1.5, -1, True, float("inf")])
def test_another_max_retries_is_refused(value: Any) -> None:
    with pytest.raises(LetterError, match="max_retries must be a whole number, 0 or more, or None"):
        Letter("k", max_retries=value)


# Whose tries they are.


def test_a_batch_after_an_abandoned_one_has_all_of_its_tries_and_at_once(
    letter_api: IngestionServer, driven: Any, errors: list[LetterError]
) -> None:
    letter_api.plan(*[status(503)] * 3)
    one = driven(max_retries=3)
    one.track()
    for _ in range(3):
        one.now += one.sender._batches.send_once()
        if len(letter_api.requests) < 3:
            one.now += one.sender._batches.send_once()
    assert len(letter_api.requests) == 3
    one.sender._give_up("exit", "the process ends")
    assert len(errors) == 1
    letter_api.plan(*[status(503)] * 3)
    one.track()
    waits = one.settle()
    assert [bare <= wait <= bare * 1.25 for wait, bare in zip(waits, [0.25, 0.5, 1.0])] == [True] * 3
    assert letter_api.distinct == 1 and len(errors) == 1


def test_a_batch_that_another_process_took_over_leaves_its_tries_to_nobody(
    letter_api: IngestionServer, driven: Any, errors: list[LetterError]
) -> None:
    letter_api.plan(*[status(503)] * 6)
    one = driven(max_retries=3)
    one.track()
    while len(letter_api.requests) < 3:
        one.now += one.sender._batches.send_once()
    ring = one.sender._queue._ring
    ring._words[2] += 1  # OWNER: the memory is another process's now
    one.track()
    assert len(one.settle()) >= 3
    assert letter_api.distinct == 1 and errors == []
