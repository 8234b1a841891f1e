"""The lines between a process and a relay, and what each side makes of them: against a plain socket, byte by byte.

Real processes and a real relay together are in `test_relay`.
"""

from __future__ import annotations

import gc
import socket
import threading
import time
import warnings
from functools import partial
from typing import Any, Callable, Iterator

import pytest
from harness import DEADLINE, eventually
from relayed import KEY, Door, Runtime, greet, own_runtime  # noqa: F401  (a fixture that is there for all)

from letterapp import LetterError
from letterapp._relay import protocol

pytestmark = pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="needs Unix sockets")

API = "http://127.0.0.1:9"
EVENTS = [b'{"number":%d}' % number for number in range(5)]
LOST = protocol.lost(LetterError("no", 400, "body", "code", "reason", cause="rejected"), 2, EVENTS[:1])


def take_back(link: Any) -> list[bytes]:
    taken = []
    while link.next_returned() is not None:
        taken.append(link.next_returned())
        link.confirm_returned()
    return taken


class Far:
    """The relay's end of a link, in the hands of the test."""

    def __init__(self, path: str) -> None:
        self.door = Door(path, KEY, API)
        self.sock: Any = None

    def accept(self) -> Far:
        self.sock = self.door.accept()
        return self

    def hears(self, length: int) -> bytes:
        heard = b""
        while len(heard) < length:
            more = self.sock.recv(length - len(heard))
            assert more, heard
            heard += more
        return heard

    def is_left(self) -> bool:
        return bool(self.sock.recv(1) == b"")

    def has_another(self) -> bool:
        """Somebody has connected who is not accepted yet."""
        return self.door.has_another()

    def close(self) -> None:
        self.door.close()


@pytest.fixture
def far(runtime: Runtime) -> Iterator[Far]:
    far = Far(str(runtime.path / "far.sock"))
    yield far
    far.close()


def link_to(runtime: Runtime, max_events: int = 10_000) -> Any:
    from letterapp._relay.client import RelayClient

    caller = partial(protocol.Caller, KEY, API, protocol.EVENTS)
    return RelayClient(lambda: str(runtime.path / "far.sock"), caller, max_events, 4_000_000)


@pytest.fixture
def link(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setattr("letterapp._relay.client.GREETING", DEADLINE)  # `Far`'s thread may be held up
    link = link_to(runtime)
    yield link
    link.close()


def send_event(link: Any, count: int) -> None:
    for event in EVENTS[:count]:
        assert link.send_event(event)


def told(link: Any) -> tuple[int, int, int]:
    link.read_acks()
    counts = link.counts()
    assert counts.relayed == counts.delivered + counts.waiting + sum(counts.lost.values())
    return counts.relayed, counts.waiting, counts.delivered


# The process's side.


def test_events_follow_the_proof_before_anybody_answers(link: Any, far: Far) -> None:
    send_event(link, 3)
    expected = b"".join(event + b"\n" for event in EVENTS[:3])
    assert far.accept().hears(len(expected)) == expected
    link.request_flush()
    assert far.hears(2) == b"!\n" and told(link) == (3, 3, 0)


def test_a_count_is_the_number_settled_since_the_greeting(link: Any, far: Far) -> None:
    send_event(link, 5)
    far.accept()
    for answer, settled in [(b"[1]\n", 1), (b"[3]\n", 3), (b"[3]\n", 3), (b"[4]\n[5]\n", 5)]:
        far.sock.sendall(answer)
        assert told(link) == (5, 5 - settled, settled)
    assert link.wait(5, time.monotonic() + DEADLINE, time.monotonic)


def test_it_counts_anew_over_a_new_connection(link: Any, far: Far) -> None:
    send_event(link, 3)
    far.accept().sock.sendall(b"[2]\n")
    far.sock.close()
    assert told(link) == (3, 1, 2) and not link.send_event(EVENTS[3])  # the one that is back goes first
    assert take_back(link) == [EVENTS[2]]
    link.retry_soon()
    send_event(link, 5)
    far.accept().sock.sendall(b"[4]\n")
    assert told(link) == (7, 1, 6)


def test_answers_may_come_in_any_pieces(link: Any, far: Far) -> None:
    send_event(link, 5)
    far.accept()
    answers = LOST + b"[2]\n[5]\n"
    for place in range(len(answers)):
        far.sock.sendall(answers[place : place + 1])
        whole = answers[: place + 1].count(b"\n")
        relayed, waiting, delivered = told(link)
        assert (relayed, waiting) == (5, [5, 3, 3, 0][whole])  # the report counts already
    assert delivered == 3 and link.counts().lost == {"rejected": 2}
    (error,) = link.take_errors()
    assert (error.status, error.lost, error.events) == (400, 2, [{"number": 0}]) and link.take_errors() == []


@pytest.mark.parametrize(
    "answer", [b"[many]\n", b"[\n", b"[1.5]\n", b'{"lost": 3}\n', b'{"lost": "all", "message": 1}\n', b"[\xff]\n"]
)
def test_nonsense_ends_the_link_and_loses_nothing(answer: bytes, link: Any, far: Far) -> None:
    send_event(link, 3)
    far.accept().sock.sendall(b"[1]\n" + answer)
    assert told(link)[2] == 1
    assert "answers what is no answer" in link.trouble and not link.is_connected()
    assert take_back(link) == EVENTS[1:3]


@pytest.mark.parametrize(("counted", "lost"), [(0, 0), (1, 0), (2, 1), (3, 2)])
def test_what_a_relay_reports_lost_and_has_not_counted_when_it_goes_counts_where_it_is_sent_again(
    counted: int, lost: int, link: Any, far: Far
) -> None:
    send_event(link, 3)
    report = protocol.lost(LetterError("refused", cause="rejected"), 2, [])
    answers = b"[1]\n" if counted == 1 else report + (b"[%d]\n" % (counted - 1) if counted else b"")
    relay = far.accept()
    relay.sock.sendall(answers)
    link.read_acks()
    relay.sock.close()
    link.read_acks()
    settled = max(counted - 1, counted == 1)
    assert take_back(link) == EVENTS[settled:3]
    counts = link.counts()
    assert (counts.relayed, counts.waiting, counts.lost) == (settled, 0, {"rejected": lost} if lost else {})
    assert counts.delivered == settled - lost


@pytest.mark.parametrize("fails", ["caller", "peer's name"])
def test_a_connection_that_cannot_be_used_is_closed(
    fails: str, runtime: Runtime, far: Far, monkeypatch: pytest.MonkeyPatch
) -> None:
    from letterapp._relay import client as client_module
    from letterapp._relay import connection as connection_module

    def unlucky(*_: Any) -> Any:
        raise OSError(24, "Too many open files")

    caller = partial(protocol.Caller, KEY, API, protocol.EVENTS)
    if fails == "peer's name":
        monkeypatch.setattr(connection_module.Connection, "__init__", unlucky)
    place = str(runtime.path / "far.sock")
    link = client_module.RelayClient(lambda: place, unlucky if fails == "caller" else caller, 10, 10_000)
    with warnings.catch_warnings(record=True) as complaints:
        warnings.simplefilter("always")
        assert not link.send_event(EVENTS[0]) and "Too many open files" in link.trouble
        gc.collect()
    assert complaints == []


def test_answers_of_a_later_version_are_passed_over(link: Any, far: Far) -> None:
    send_event(link, 1)
    far.accept().sock.sendall(b'{"weather": "fine"}\nhello\n\n[1]\n')
    assert told(link) == (1, 0, 1) and link.trouble == ""


def test_who_is_refused_does_not_come_again_soon(link: Any, far: Far) -> None:
    send_event(link, 2)
    far.accept().sock.sendall(protocol.line_of({"refused": "it is Monday"}))
    assert told(link)[1] == 2
    assert link.trouble == "refuses this client: it is Monday" and take_back(link) == EVENTS[:2]
    assert not link.send_event(EVENTS[0]) and not far.has_another()


def test_a_relay_that_takes_no_more_may_still_settle(link: Any, far: Far) -> None:
    send_event(link, 3)
    far.accept().sock.shutdown(socket.SHUT_RD)
    assert not link.send_event(EVENTS[3]) and told(link) == (3, 3, 0)
    far.sock.sendall(b"[3]\n")
    far.sock.close()
    assert told(link) == (3, 0, 3) and take_back(link) == []


def test_a_full_socket_takes_whole_lines_or_none(link: Any, far: Far) -> None:
    events = [b'{"number":%d,"filling":"%s"}' % (number, b"x" * (number * 37 % 3000)) for number in range(8000)]
    took = []
    refused = 0
    for event in events:
        if link.send_event(event):
            took.append(event)
        else:
            refused += 1
        if refused == 50:
            break
    assert refused == 50 and link.trouble == "takes no more events for now" and link.is_connected()
    assert not link.counts().is_up and link.counts().relayed == len(took)
    expected = b"".join(event + b"\n" for event in took)
    assert far.accept().hears(len(expected)) == expected
    send_event(link, 1)  # there is room again
    assert link.counts().is_up and far.hears(len(EVENTS[0]) + 1) == EVENTS[0] + b"\n"


def test_lines_of_many_threads_stay_whole(link: Any, far: Far) -> None:
    took: list[list[bytes]] = [[] for _ in range(4)]

    def hand(number: int) -> None:
        for serial in range(300):
            event = b'{"thread":%d,"serial":%d}' % (number, serial)
            if link.send_event(event):
                took[number].append(event)

    threads = [threading.Thread(target=hand, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
    length = sum(len(event) + 1 for each in took for event in each)
    lines = far.accept().hears(length).splitlines()
    assert [[line for line in lines if b'"thread":%d,' % number in line] for number in range(4)] == took


def test_an_event_that_is_too_large_for_one_send_goes_another_way(link: Any, far: Far) -> None:
    assert not link.send_event(b"{" + b" " * 60_000 + b"}")
    send_event(link, 1)
    assert told(link) == (1, 1, 0) and link.trouble == ""


def test_more_than_a_process_may_hold_goes_another_way(
    runtime: Runtime, far: Far, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("letterapp._relay.client.GREETING", DEADLINE)
    link = link_to(runtime, max_events=2)
    send_event(link, 2)
    assert not link.send_event(EVENTS[2]) and link.trouble == "settles more slowly than this process tracks"
    far.accept().sock.sendall(b"[1]\n")
    assert link.send_event(EVENTS[2]) and told(link) == (3, 2, 1)
    link.close()


def test_waiting_ends_at_the_answer_at_the_deadline_and_at_the_end(link: Any, far: Far) -> None:
    send_event(link, 2)
    far.accept()
    assert not link.wait(2, time.monotonic() + 0.05, time.monotonic)
    answer = threading.Timer(0.05, far.sock.sendall, [b"[2]\n"])
    answer.start()
    assert link.wait(2, time.monotonic() + DEADLINE, time.monotonic)
    answer.join()
    send_event(link, 1)
    leave = threading.Timer(0.05, far.sock.shutdown, [socket.SHUT_RDWR])
    leave.start()
    assert not link.wait(3, time.monotonic() + DEADLINE, time.monotonic)
    leave.join()
    assert link.trouble == "has ended"


# The lines themselves.


def acquainted(caller: protocol.Caller, callee: protocol.Callee) -> str:
    """What the process wants, when both have proved themselves."""
    challenge, wants = callee.hear(caller.hello)
    assert not wants
    said, wants = callee.hear(caller.answer(challenge))
    assert not said
    return wants


@pytest.mark.parametrize("wants", ["events", "lease", "status"])
def test_who_has_the_same_key_and_api_is_welcome(wants: str) -> None:
    caller = protocol.Caller(KEY, API, wants)
    assert caller.hello.count(b"\n") == 1 and KEY.encode() not in caller.hello
    assert acquainted(caller, protocol.Callee(KEY, API)) == wants
    with pytest.raises(protocol.Refused, match="another API key"):
        acquainted(protocol.Caller(KEY, API, wants), protocol.Callee(KEY + "x", API))
    with pytest.raises(protocol.Refused, match="another API than"):
        acquainted(protocol.Caller(KEY, API, wants), protocol.Callee(KEY, API + "/x"))


def test_what_was_heard_once_is_worth_nothing() -> None:
    caller, callee = protocol.Caller(KEY, API, "events"), protocol.Callee(KEY, API)
    challenge, _ = callee.hear(caller.hello)
    answer = caller.answer(challenge)
    assert callee.hear(answer) == (b"", "events")
    # A stranger who has heard all of it cannot be the process...
    again = protocol.Callee(KEY, API)
    again.hear(caller.hello)
    with pytest.raises(protocol.Refused, match="another API key"):
        again.hear(answer)
    # ... nor the relay, nor give a relay its own proof back.
    with pytest.raises(protocol.Refused, match="another API key"):
        protocol.Caller(KEY, API, "events").answer(challenge)
    mirror = protocol.Callee(KEY, API)
    own, _ = mirror.hear(caller.hello)
    with pytest.raises(protocol.Refused, match="another API key"):
        mirror.hear(own)


def test_a_process_proves_nothing_to_who_has_not_the_key(link: Any, runtime: Runtime) -> None:
    stranger = Door(str(runtime.path / "far.sock"), "another-key", API)
    try:
        assert not link.send_event(EVENTS[0])
        assert link.trouble == "refuses this client: it has another API key"
        sock = stranger.last()
        assert sock is not None and sock.recv(65_536) == b""
    finally:
        stranger.close()


@pytest.mark.parametrize("line", [b"", b"hello", b"[]", b"7", b"null", b"{", b"\xff\xfe", b"[" * 100_000, b'{"a": 1}'])
def test_what_is_no_greeting_is_refused(line: bytes) -> None:
    with pytest.raises(protocol.Refused, match="no version"):
        protocol.Callee(KEY, API).hear(line)
    with pytest.raises(protocol.Refused, match="what is no answer"):
        protocol.Caller(KEY, API, "events").answer(line)


@pytest.mark.parametrize("proof", [None, 7, [], "", "ü", "\ud800"])
def test_a_proof_that_is_none_is_refused(proof: Any) -> None:
    callee = protocol.Callee(KEY, API)
    callee.hear(protocol.Caller(KEY, API, "events").hello)
    with pytest.raises(protocol.Refused, match="another API key"):
        callee.hear(protocol.line_of({"proof": proof}))
    with pytest.raises(protocol.Refused, match="another API key"):
        protocol.Caller(KEY, API, "events").answer(protocol.line_of({"challenge": "c", "proof": proof}))


def test_a_report_arrives_as_it_was_sent() -> None:
    error = LetterError("two\nlines", 422, "ünïcode", "code", "reason", cause="rejected")
    line = protocol.lost(error, 7, EVENTS[:2])
    assert line.endswith(b"\n") and line.count(b"\n") == 1
    arrived = protocol.lost_error(protocol.parse(line), 7)
    assert str(arrived) == "by the relay: two lines"
    assert (arrived.lost, arrived.events) == (7, [{"number": 0}, {"number": 1}])
    names = ("status", "body", "code", "reason", "cause")
    assert [getattr(arrived, name) for name in names] == [getattr(error, name) for name in names]


# The relay's side.


def event(api: Any, number: int) -> bytes:
    """As a client writes it; ``number`` is also what the API tells repeated ones by."""
    return (
        b'{"type":"track","userId":"raw","event":"E","properties":{},"messageId":"m-%d","timestamp":"2026-01-01"}'
        % (number)
    )


@pytest.fixture
def connect(runtime: Runtime, letter_api: Any) -> Iterator[Callable[[], socket.socket]]:
    """Connections to a real relay, greeted."""
    made = []

    def new() -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        made.append(sock)
        sock.settimeout(DEADLINE)
        sock.connect(runtime.socket)
        return greet(sock, KEY, letter_api.url)

    with runtime.keep():
        yield new
        for sock in made:
            sock.close()


def count(sock: socket.socket, target: int) -> list[int]:
    """The counts that come until one is ``target``."""
    heard = b""
    while not heard.endswith(b"[%d]\n" % target):
        more = sock.recv(65_536)
        assert more, heard
        heard += more
    return [int(line[1:-1]) for line in heard.splitlines()]


def test_events_may_come_in_any_pieces(connect: Any, letter_api: Any) -> None:
    sock = connect()
    said = b"".join(event(letter_api, number) + b"\n" for number in range(30)) + b"!\n"
    for place in range(0, len(said), 61):
        sock.sendall(said[place : place + 61])
    counts = count(sock, 30)
    assert counts == sorted(set(counts)) and letter_api.distinct == 30


def test_each_connection_is_told_of_its_own_events(connect: Any, letter_api: Any) -> None:
    first, second = connect(), connect()
    for number in range(30):
        (first if number % 3 else second).sendall(event(letter_api, number) + b"\n")
    assert count(first, 20)[-1] == 20 and count(second, 10)[-1] == 10
    assert letter_api.distinct == 30


def test_the_same_event_over_two_connections_counts_for_both(connect: Any, letter_api: Any) -> None:
    first, second = connect(), connect()
    for sock in (first, second):
        sock.sendall(event(letter_api, 0) + b"\n" + event(letter_api, 0) + b"\n")
    count(first, 2)
    count(second, 2)
    assert letter_api.distinct == 1


def test_what_came_before_a_connection_ended_is_sent(connect: Any, letter_api: Any, runtime: Runtime) -> None:
    sock = connect()
    sock.sendall(b"".join(event(letter_api, number) + b"\n" for number in range(200)) + b'{"half')
    sock.close()
    assert letter_api.wait_for(200) and letter_api.distinct == 200
    status = eventually(runtime.own_status, lambda status: status["processes"] == 0)
    assert (status["processes"], status["accepted"], status["refused"]) == (0, 200, 0)


def test_a_process_that_never_reads_its_answers_harms_nobody(connect: Any, letter_api: Any) -> None:
    deaf, other = connect(), connect()
    for number in range(2000):
        deaf.sendall(event(letter_api, number) + b"\n")
        if not number % 100:
            other.sendall(event(letter_api, 10_000 + number) + b"\n")
    count(other, 20)
    assert letter_api.wait_for(2020)
    assert count(deaf, 2000)[-1] == 2000
