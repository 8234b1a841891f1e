"""Whoever else is on the machine: other users on the way to a relay, and who speaks as no relay and no process does.

A child of another user needs root to become that user; where these run without, they are skipped.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Callable, Iterator

import psutil
import pytest
from harness import DEADLINE, environment, eventually, run, start
from relayed import KEY, Door, Runtime, greet, own_runtime  # noqa: F401  (a fixture that is there for all)

from letterapp import Letter, LetterError
from letterapp._path_trust import must_be_guarded
from letterapp._relay import protocol
from letterapp.testing import status

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs Unix")

STRANGER = 65534  # nobody
needs_root = pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="becomes another user")


# Whose the way to a relay is.


def _his_directory(base: Path) -> Path:
    os.chown(base / "a" / "b", STRANGER, -1)
    return base / "a" / "b"


def _in_his_directory(base: Path) -> Path:
    os.chown(base / "a", STRANGER, -1)
    return base / "a" / "b"


def _in_a_directory_for_all(base: Path) -> Path:
    (base / "a").chmod(0o777)
    return base / "a" / "b"


def _by_his_link(base: Path) -> Path:
    (base / "link").symlink_to("a")
    os.chown(base / "link", STRANGER, -1, follow_symlinks=False)
    return base / "link" / "b"


def _by_a_link_into_his_directory(base: Path) -> Path:
    (base / "his").mkdir()
    (base / "his" / "a").symlink_to(base / "a")
    os.chown(base / "his", STRANGER, -1)
    (base / "link").symlink_to("his/../his/a")
    return base / "link" / "b"


def _in_a_circle(base: Path) -> Path:
    (base / "link").symlink_to("link")
    return base / "link" / "b"


WAYS = {
    _his_directory: "belongs to user 65534",
    _in_his_directory: "belongs to user 65534",
    _in_a_directory_for_all: "everybody may write in it",
    _by_his_link: "belongs to user 65534",
    _by_a_link_into_his_directory: "belongs to user 65534",
    _in_a_circle: "symbolic links",
}


@needs_root
@pytest.mark.parametrize("lay", WAYS)
def test_a_way_on_which_another_user_could_put_himself_is_believed_by_nobody(
    lay: Callable[[Path], Path], make: Callable[..., Letter], runtime: Runtime
) -> None:
    (runtime.path / "a" / "b").mkdir(parents=True, mode=0o700)
    path = str(lay(runtime.path) / "r.sock")
    with pytest.raises(LetterError, match=WAYS[lay]):
        make(relay=path)
    refused = runtime.command("--socket", path)
    assert refused.returncode == 1 and WAYS[lay] in refused.stderr and "Traceback" not in refused.stderr


@needs_root
def test_his_way_is_believed_where_his_name_is_given(make: Callable[..., Letter], runtime: Runtime) -> None:
    import pwd

    (runtime.path / "a" / "b").mkdir(parents=True, mode=0o700)
    path = str(_his_directory(runtime.path) / "r.sock")
    for name in (STRANGER, pwd.getpwuid(STRANGER).pw_name):
        make(relay=path, relay_user=name).close()
    with pytest.raises(LetterError, match="belongs to user 65534"):
        make(relay=path, relay_user=STRANGER - 1)


def test_a_directory_for_all_is_believed_where_nobody_can_remove_what_is_anothers(runtime: Runtime) -> None:
    (runtime.path / "a" / "b").mkdir(parents=True)
    (runtime.path / "a").chmod(0o1777)
    (runtime.path / "link").symlink_to(runtime.path / "a")
    must_be_guarded(str(runtime.path / "link" / ".." / "link" / "b"))


@pytest.mark.parametrize(
    "options, why",
    [
        ({"relay": "r.sock", "relay_user": "no such user"}, "there is no user 'no such user'"),
        ({"relay": "r.sock", "relay_user": -1}, "relay_user must be a user's name or number, not -1"),
        ({"relay": "r.sock", "relay_user": True}, "relay_user must be"),
        ({"relay": True, "relay_user": 0}, "relay_user goes with relay=PATH"),
        ({"relay_user": 0}, "relay_user goes with relay=PATH"),
    ],
)
def test_a_user_who_is_none_is_a_clear_error(options: dict[str, Any], why: str, make: Callable[..., Letter]) -> None:
    with pytest.raises(LetterError, match=why):
        make(**options)


# Who listens.


@contextlib.contextmanager
def served_by_another_user(path: str) -> Iterator[int]:
    """A stranger listens at ``path``, and writes what each who comes says first to the pipe that is yielded."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    ends = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.setuid(STRANGER)
            listener.listen(8)  # whoever does that is who the system names
            os.write(ends[1], b"listens\n")
            while True:
                sock = listener.accept()[0]
                os.write(ends[1], b"heard:" + sock.recv(1000) + b"\n")
        finally:
            os._exit(0)
    os.close(ends[1])
    listener.close()
    try:
        assert os.read(ends[0], 100) == b"listens\n"
        yield ends[0]
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, 9)
        os.waitpid(pid, 0)
        os.close(ends[0])


def read(descriptor: int) -> bytes:
    assert select.select([descriptor], [], [], DEADLINE)[0]
    return os.read(descriptor, 10_000)


@needs_root
def test_another_user_who_listens_is_not_told_a_word(
    make: Callable[..., Letter], runtime: Runtime, letter_api: Any, errors: list[LetterError]
) -> None:
    path = str(runtime.path / "r.sock")
    with served_by_another_user(path) as heard:
        letter = make(relay=path)
        letter.track("u", "E")
        assert letter.flush(DEADLINE) and letter.stats()["relayed"] == 0
        assert set(read(heard).splitlines()) == {b"heard:"}
    assert letter_api.distinct == 1
    assert "user 65534 serves there" in str(errors[0]) and errors[0].cause == "degraded"


@needs_root
def test_another_user_who_is_named_is_greeted_and_has_to_have_the_key(
    make: Callable[..., Letter], runtime: Runtime, letter_api: Any, errors: list[LetterError]
) -> None:
    path = str(runtime.path / "r.sock")
    with served_by_another_user(path) as heard:
        letter = make(relay=path, relay_user=STRANGER)
        assert b'"nonce"' in read(heard)
        letter.track("u", "E")
        assert letter.flush(DEADLINE) and letter.stats()["relayed"] == 0
    assert letter_api.distinct == 1


def test_who_has_not_the_key_gets_no_event(
    make: Callable[..., Letter], runtime: Runtime, letter_api: Any, errors: list[LetterError]
) -> None:
    door = Door(str(runtime.path / "r.sock"), "another-key", letter_api.url)
    try:
        with pytest.raises(LetterError, match="refuses this client: it has another API key"):
            make(relay=str(runtime.path / "r.sock"))
        sock = door.last()
        assert sock is not None and sock.recv(65_536) == b""
    finally:
        door.close()


# A relay's own place.


def test_the_socket_is_closed_to_others_from_its_first_moment(runtime: Runtime) -> None:
    from letterapp._relay_server.socket_program import _bind

    for group, mode in ((None, 0o600), (os.getgid(), 0o660)):
        before = os.umask(0)
        try:
            path = runtime.path / f"{mode}.sock"
            with socket.socket(socket.AF_UNIX) as listener:
                _bind(listener, str(path), group)
                assert stat.S_IMODE(path.stat().st_mode) == mode
            assert os.umask(0) == 0
        finally:
            os.umask(before)


@needs_root
def test_a_relay_that_runs_as_root_says_so(runtime: Runtime) -> None:
    with runtime.keep() as relay:
        assert relay.output.count("as root") == 1


# What one process says is not another's loss.

WITH_A_MESSAGE_ID = (
    b'{"type":"track","userId":"u","event":"E","properties":{},"messageId":"m-%s","timestamp":"2026-01-01"}'
)


def greeted(runtime: Runtime, letter_api: Any) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(DEADLINE)
    sock.connect(runtime.socket)
    return greet(sock, KEY, letter_api.url)


NO_EVENTS = {
    "not UTF-8": b'{"x":"\xff"}',
    "two of them": b'{"x":1},{"y":2}',
    "another batch": b'{"x":1}],"batch":[{"y":2}',
    "more brackets": b'{"x":1}]}',
    "cut short": b'{"x":[}',
    "UTF-16": '{"x":1}'.encode("utf-16-le"),
    "too large": b'{"x":"%s"}' % (b"a" * 501_600),
    "deep": b'{"x":%s}' % (b"[" * 10_000 + b"]" * 10_000),
}


@pytest.mark.parametrize("what", NO_EVENTS)
def test_a_line_that_is_no_event_costs_who_sent_it_alone(
    what: str, make: Callable[..., Letter], runtime: Runtime, letter_api: Any, errors: list[LetterError]
) -> None:
    with runtime.keep() as relay:
        innocent = make(relay=runtime.socket)
        innocent.track("innocent", "E")
        with greeted(runtime, letter_api) as sock:
            with contextlib.suppress(OSError):
                sock.sendall(WITH_A_MESSAGE_ID % b"before" + b"\n" + NO_EVENTS[what] + b"\n")
            heard = b""
            with contextlib.suppress(ConnectionResetError):
                while True:
                    more = sock.recv(65_536)
                    if not more:
                        break
                    heard += more
        innocent.track("innocent", "E")
        assert innocent.flush(DEADLINE) and errors == [] and innocent.stats()["relayed"] == 2
        assert letter_api.wait_for(3)  # what came before it is sent
        assert [event["userId"] for event in letter_api.events].count("innocent") == 2
        assert "Traceback" not in relay.output
        assert b"refused" in heard or "no event" in relay.output or "no end" in relay.output


def test_a_million_numbers_and_all_of_unicode_are_an_event() -> None:
    assert protocol.is_event('{"a":"\u2028ü😀","b":[1e999,-0,12345678901234567890],"c":NaN}'.encode())
    assert protocol.is_event(b'{"a":%s}' % (b"9" * 20_000)) and protocol.is_event(b"{}")
    assert not protocol.is_event(b"[]") and not protocol.is_event(b"") and not protocol.is_event(b'{"a":\n1}')


def test_an_event_that_no_request_could_carry_is_told_to_its_owner_and_the_relay_goes_on(
    runtime: Runtime, letter_api: Any, tmp_path: Path
) -> None:
    code = """
    from letterapp._relay import protocol
    from letterapp._runtime.condition import Condition
    from letterapp._client import settings_of
    from letterapp._relay_server.ownership import OwnedSender, Owner

    settings = settings_of(api_key='k', base_url=API, max_batch_bytes=1000, spool=sys.argv[1])
    sender = OwnedSender(settings, print, Condition())
    owner = Owner()
    good = b'{"type":"track","userId":"u","event":"E","properties":{},"messageId":"m","timestamp":"2026-01-01"}'
    assert sender.admit(b'{"x":"%s"}' % (b'a' * 30_000), owner) and sender.admit(good, owner)
    assert sender.sender.flush(30)
    (report,) = owner.take_reports()
    print(protocol.parse(report)['cause'], owner.settled)
    """
    assert run(code, letter_api.url, tmp_path, str(tmp_path / "spool")).output == "overflow 2\n"


def test_a_record_that_a_hand_could_not_hold_is_damage() -> None:
    from letterapp._storage.memory import MemorySlot
    from letterapp._storage.ring import WORDS, Ring

    memory = bytearray(10_000)
    words = memoryview(memory)[: 8 * WORDS].cast("Q")
    slot = MemorySlot(memory, words, 8 * WORDS, 4096, 3000)
    assert Ring(slot).append(b"x" * 2000)
    slot.hand = 1024
    ring, wrong = Ring.recovered_from(slot)
    assert "does not fit" in wrong and ring.unreadable == 1 and ring.is_empty()


def test_no_exception_ends_the_sender(letter_api: Any, driven: Any) -> None:
    one = driven(max_retries=0)
    one.track()
    look = one.sender._recovery.recover_if_due

    def fail(now: float) -> None:
        raise BufferError("unheard of")

    one.sender._recovery.recover_if_due = fail
    assert 0 < one.sender._batches.send_once() <= 1  # not at once again, which would be for ever
    one.sender._recovery.recover_if_due = look
    one.settle()
    assert letter_api.distinct == 1


# What a relay says is bounded.


def told(link: Any) -> Any:
    link.read_acks()
    return link.counts()


@pytest.mark.parametrize(
    "answer",
    [
        b"[4]\n",
        b"[%s]\n" % (b"9" * 5000),
        b"[99999999999999999]\n",
        b"[-1]\n[" + b"1" * 30 + b"]\n[4]\n",
        *(
            protocol.line_of({**protocol.parse(protocol.lost(LetterError("x"), 1, [])), **change})
            for change in (
                {"lost": 10**30},
                {"lost": 3},
                {"lost": 0},
                {"lost": -1},
                {"lost": True},
                {"lost": 1.5},
                {"lost": "1"},
                {"message": 7},
                {"body": []},
                {"status": "200"},
                {"cause": ["x"]},
                {"events": ["{}", "{}"]},
                {"events": [7]},
                {"events": "{}"},
            )
        ),
        2 * protocol.lost(LetterError("x"), 1, []) + protocol.lost(LetterError("x"), 1, []),
    ],
)
def test_a_number_that_is_none_of_ours_ends_the_link_and_loses_nothing(
    answer: bytes, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    with linked(runtime, monkeypatch) as (link, sock):
        assert link.send_event(b"{}") and link.send_event(b"{}")
        sock.sendall(answer)
        counts = told(link)
        assert not link.is_connected() and "what is no answer" in link.trouble
        assert counts.relayed == counts.waiting + sum(counts.lost.values()) + counts.delivered
        assert 0 <= counts.delivered <= 1 and sum(counts.lost.values()) <= 2


@contextlib.contextmanager
def linked(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A link that is up, and the relay's end of it."""
    from letterapp._relay import client as client_module

    monkeypatch.setattr(client_module, "GREETING", DEADLINE)
    path = str(runtime.path / "far.sock")
    door = Door(path, KEY, "http://127.0.0.1:9")
    link = client_module.RelayClient(
        lambda: path, lambda: protocol.Caller(KEY, "http://127.0.0.1:9", protocol.EVENTS), 10_000, 4_000_000
    )
    try:
        assert link.send_event(b"{}")
        sock = door.accept()
        sock.sendall(b"[1]\n")
        while not told(link).delivered:
            pass
        yield link, sock
    finally:
        link.close()
        door.close()


def test_a_flood_of_answers_does_not_hold_a_call(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    with linked(runtime, monkeypatch) as (link, sock):
        stop = threading.Event()

        def flood() -> None:
            with contextlib.suppress(OSError):
                while not stop.is_set():
                    sock.sendall(b"{}\n" * 100_000)

        thread = threading.Thread(target=flood)
        thread.start()
        try:
            for _ in range(50):
                link.read_acks()  # it returns though there is always more
        finally:
            stop.set()
            link.close()
            thread.join(DEADLINE)


def test_a_line_without_an_end_ends_the_link(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    with linked(runtime, monkeypatch) as (link, sock):
        sock.setblocking(False)
        sent = 0
        while link.is_connected() and sent < 4_000_000:
            with contextlib.suppress(BlockingIOError, BrokenPipeError):
                sent += sock.send(b"x" * 65_536)
            link.read_acks()
        assert 1_000_000 < sent < 2_000_000 and "what is no answer" in link.trouble


@pytest.mark.parametrize("piece", [b"", b"x"])
def test_who_trickles_at_the_relays_path_holds_no_constructor(
    piece: bytes, make: Callable[..., Letter], runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    from letterapp._relay import launcher

    monkeypatch.setattr(launcher, "ANSWERING", 0.3)
    path = str(runtime.path / "r.sock")
    over = threading.Event()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(8)

        def trickle() -> None:
            sock = listener.accept()[0]
            with contextlib.suppress(OSError):
                while not over.wait(0.02):
                    sock.send(piece)
            sock.close()

        thread = threading.Thread(target=trickle)
        thread.start()
        try:
            make(relay=path)
        finally:
            over.set()
            thread.join(DEADLINE)


# Memory, and a relay's own output.


def test_half_lines_and_lines_that_find_no_room_take_little_memory(runtime: Runtime, letter_api: Any) -> None:
    letter_api.rule = lambda request: status(503)  # nothing leaves
    with runtime.keep() as relay, contextlib.ExitStack() as opened:
        process = psutil.Process(relay.pid)
        socks = [opened.enter_context(greeted(runtime, letter_api)) for _ in range(100)]
        before = process.memory_info().rss
        line = WITH_A_MESSAGE_ID % (b"x" * 20_000) + b"\n"
        for number, sock in enumerate(socks):
            sock.setblocking(False)
            with contextlib.suppress(OSError):
                sock.sendall(line * 40 if number % 2 else b'{"x":"' + b"a" * 31_000)
        eventually(runtime.own_status, lambda status: status["paused"] >= 1)
        assert process.memory_info().rss - before < 40_000_000


def test_who_never_reads_his_reports_costs_little_memory_and_a_few_lines_of_the_log() -> None:
    from letterapp._relay_server.ownership import UNHEARD, Owner

    owner = Owner()
    error = LetterError("no" * 200, 400, "b" * 60_000, cause="rejected")
    for _ in range(20_000):
        owner.report(error, 2, [b"{}", b"{}"])
    assert sum(map(len, owner.untold())) < 2 * UNHEARD
    assert sum(protocol.parse(line)["lost"] for line in owner.take_reports()) == 40_000
    assert owner.take_reports() == []


def test_a_report_is_not_longer_than_a_line_may_be() -> None:
    error = LetterError("no", cause="rejected")
    line = protocol.lost(error, 100, ['{"x":"ü%s"}'.encode() % (b"y" * 30_000)] * 100)
    assert len(line) < protocol.LONGEST_ANSWER and protocol.lost_error(protocol.parse(line), 100).lost == 100


@pytest.mark.skipif(not Path("/dev/fd").exists(), reason="needs /dev/fd")
def test_a_relay_whose_stderr_nobody_reads_goes_on(
    runtime: Runtime, make: Callable[..., Letter], letter_api: Any
) -> None:
    ends = os.pipe()
    env = environment(letter_api.url, LETTER_API_KEY=KEY)
    relay = subprocess.Popen(runtime.command_line("--socket", runtime.socket), env=env, stderr=ends[1])
    try:
        assert b"serving at" in eventually(lambda: os.read(ends[0], 10_000), lambda said: b"serving" in said)
        assert os.get_blocking(ends[1])  # that flag is everybody's who has it
        os.set_blocking(ends[1], False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(ends[1], b"x" * 4096)
        for _ in range(20):
            relay.send_signal(signal.SIGUSR1)  # has it say something
            runtime.own_status()
        letter = make(relay=runtime.socket)
        letter.track("u", "E")
        assert letter.flush(DEADLINE) and letter.stats()["relayed"] == 1
    finally:
        relay.send_signal(signal.SIGTERM)
        relay.wait(DEADLINE)
        os.close(ends[0])
        os.close(ends[1])


# A host that is short of something, or where somebody is in the way.


@pytest.mark.parametrize("lay", ["squatted", "a file", "missing", "open"])
def test_a_directory_that_cannot_be_had_costs_the_shortcut_and_no_event(
    lay: str,
    make: Callable[..., Letter],
    runtime: Runtime,
    letter_api: Any,
    errors: list[LetterError],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = runtime.path / "letterapp"
    if lay == "squatted":
        if os.geteuid() != 0:
            pytest.skip("becomes another user")
        own.mkdir(mode=0o700)
        os.chown(own, STRANGER, -1)
    elif lay == "a file":
        own.write_text("")
    elif lay == "open":
        own.mkdir()
        own.chmod(0o777)
    else:
        monkeypatch.setenv("XDG_RUNTIME_DIR", "")
        monkeypatch.setattr("tempfile.tempdir", str(runtime.path / "missing"))
    letter = make(relay=True)
    letter.track("u", "E")
    assert letter.flush(DEADLINE) and letter.stats()["relayed"] == 0 and letter_api.distinct == 1
    assert [error.cause for error in errors] == ["degraded"] and "no place for the socket" in str(errors[0])


def test_no_descriptor_for_a_relay_costs_the_shortcut_and_says_so(
    runtime: Runtime, letter_api: Any, tmp_path: Path
) -> None:
    code = """
    import resource
    import letterapp._relay.delivery, letterapp._http.transport
    letterapp._http.transport.load()
    Letter('test-key', API, enabled=False)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = len(os.listdir("/dev/fd")) - 1
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, before[1]))
    letter = Letter('test-key', API, relay=True)
    resource.setrlimit(resource.RLIMIT_NOFILE, before)
    work(letter, 1)
    assert letter.flush(60)
    """
    finished = run(code, letter_api.url, tmp_path)
    assert finished.code == 0 and "Too many open files" in finished.output, finished
    assert letter_api.distinct == 1 and runtime.left_behind() == []


def test_no_descriptor_to_load_the_modules_by_is_no_bare_error(letter_api: Any, tmp_path: Path) -> None:
    code = """
    import resource
    limit = len(os.listdir("/dev/fd")) - 1
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, before[1]))
    try:
        Letter('test-key', API, relay=True)
    except LetterError as problem:
        print(problem)
    resource.setrlimit(resource.RLIMIT_NOFILE, before)
    Letter('test-key', API, enabled=False)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, before[1]))
    letter = Letter('test-key', API, relay=True)
    resource.setrlimit(resource.RLIMIT_NOFILE, before)
    work(letter, 1)
    assert letter.flush(60)
    """
    finished = run(code, letter_api.url, tmp_path)
    assert finished.code == 0, finished
    assert "base_url cannot be looked at: Too many open files" in finished.output
    assert "its modules cannot be loaded: Too many open files" in finished.output and letter_api.distinct == 1


@needs_root
@pytest.mark.skipif(not os.path.exists("/usr/bin/python3"), reason="needs a Python that others may run")
def test_no_process_for_a_relay_costs_the_shortcut_and_says_so(
    runtime: Runtime, letter_api: Any, tmp_path: Path
) -> None:
    code = """
    import resource
    resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
    os.setuid(4_000_000)
    os.environ['XDG_RUNTIME_DIR'] = sys.argv[1]
    letter = Letter('test-key', API, relay=True)
    work(letter, 1)
    letter.flush(60)
    print('goes on', letter.stats()['relayed'], letter.stats()['delivered'])
    """
    runtime.path.chmod(0o755)
    his = runtime.path / "his"
    his.mkdir(mode=0o700)
    os.chown(his, 4_000_000, -1)
    python = "/usr/bin/python3"  # which the other user may run
    with start(code, letter_api.url, tmp_path, str(his), python=python) as program:
        finished = program.finish()
    assert "goes on 0 1" in finished.output and "Resource temporarily unavailable" in finished.output, finished
    assert letter_api.distinct == 1


# What a relay holds of its starter's secrets, and shows of its own.

linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


@linux
def test_a_relay_has_what_it_needs_of_the_environment_and_nothing_else(
    runtime: Runtime, make: Callable[..., Letter], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgres://user:secret@db")
    monkeypatch.setenv("LETTER_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    letter = make(relay=True)
    letter.track("u", "E")
    assert letter.flush(DEADLINE)
    environ = Path(f"/proc/{runtime.relay().pid}/environ").read_bytes()
    assert b"secret" not in environ and KEY.encode() not in environ
    assert b"NO_PROXY=127.0.0.1\0" in environ and b"XDG_RUNTIME_DIR=" in environ


@linux
def test_a_relay_cannot_be_traced_and_leaves_no_core(runtime: Runtime, make: Callable[..., Letter]) -> None:
    make(relay=True)
    pid = runtime.relay().pid
    limits = Path(f"/proc/{pid}/limits").read_text()
    assert re.search(r"Max core file size +0 +0 ", limits)
    if os.geteuid() == 0:
        assert os.stat(f"/proc/{pid}/environ").st_uid == 0
    else:
        with pytest.raises(PermissionError):
            Path(f"/proc/{pid}/environ").read_bytes()
