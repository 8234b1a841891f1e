"""``python -m letterapp doctor``: against a server that is in order, and against all kinds of trouble."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import socket
import sys
import threading
import time
from email.utils import formatdate
from pathlib import Path
from typing import Any, Iterator

import pytest
from doctors import KEY, examine
from harness import DEADLINE, FEW_DESCRIPTORS, Program, environment, first_is_quick
from raw_server import RawServer

from letterapp._cli import doctor_host, doctor_network
from letterapp._cli.findings import Level, ok, within
from letterapp._text import Secret
from letterapp.testing import IngestionServer, endless, raw, reset, stall, status
from stress.ports import free_port

FINGERPRINT = hashlib.sha256(KEY.encode()).hexdigest()[:16]


def test_all_is_well(letter_api: IngestionServer, tmp_path: Path) -> None:
    letter_api.api_key = KEY
    done = examine(letter_api.url, tmp_path)
    assert done.code == 0, done.output
    assert set(done.levels().values()) <= {"ok", "note"}, done.output
    assert FINGERPRINT in done.of("key")["text"] and f"{len(KEY)} characters" in done.of("key")["text"]
    assert "accepts the key (422 for an empty batch, 401 with a key that does not exist" in done.of("api")["text"]
    assert "in memory, and survive a killed process" in done.of("mode")["text"]
    assert not letter_api.events
    mine, invented = (request.headers["authorization"].partition(" ")[2] for request in letter_api.requests)
    assert mine == KEY and invented.startswith("lt_test_secret_of_the_") and len(invented) == len(KEY)
    assert invented.isascii() and invented != KEY


def test_it_prints_a_line_for_each_check(letter_api: IngestionServer, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "letterapp", "doctor"]
    for url, key, last, code in (
        (letter_api.url, KEY, "all is well", 0),
        (letter_api.url, "", "1 of 16 checks failed", 1),
    ):
        env = environment(url, LETTER_API_KEY=key, LETTER_BASE_URL=url)
        with Program(command, env, tmp_path) as program:
            done = program.finish()
        lines = done.output.splitlines()
        assert done.code == code and lines[-1] == last and len(lines) == 17, done
        assert all(line[:5].strip() in ("ok", "note", "warn", "FAIL") for line in lines[:-1]), done
        assert KEY not in done.output


def test_a_test_event_is_stored(letter_api: IngestionServer, tmp_path: Path) -> None:
    done = examine(letter_api.url, tmp_path, "--test-event")
    assert done.code == 0 and "accepts the test event (200" in done.of("api")["text"], done.output
    assert [item["event"] for item in letter_api.events] == ["letterapp doctor"]


@pytest.mark.slow
def test_a_server_that_repeats_the_key(letter_api: IngestionServer, tmp_path: Path) -> None:
    for code, body in ((401, '{"error":{"message":"no key %s"}}'), (302, ""), (500, "%s")):
        text = (body % KEY if "%s" in body else body).encode()
        letter_api.rule = lambda _, code=code, text=text: status(code, text, {"Location": f"https://x/{KEY}"})
        assert examine(letter_api.url, tmp_path).code == 1  # which checks the output


# The key.


@pytest.mark.parametrize(
    ("key", "said"),
    [
        (None, "there is none"),
        ("", "there is none"),
        ("lt_with space", "printable ASCII"),
        ("lt_line\nbreak", "printable ASCII"),
        ("'lt_in_quotes'", "in quotes"),
        ("Bearer-lt_something", "beginning with Bearer"),
        ("your-key", "looks like an example"),
    ],
)
def test_a_key_that_cannot_be_right(key: str | None, said: str, letter_api: IngestionServer, tmp_path: Path) -> None:
    done = examine(letter_api.url, tmp_path, key=key)
    assert done.code == 1 and said in done.of("key")["text"], done.output
    assert done.levels()["connection"] == "ok"  # the rest is checked all the same


def test_a_key_from_a_file(letter_api: IngestionServer, tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text(f"{KEY}\n")
    path.chmod(0o600)
    done = examine(letter_api.url, tmp_path, "--api-key-file", path, key=None)
    assert done.code == 0 and f"from {path}" in done.of("key")["text"], done.output
    done = examine(letter_api.url, tmp_path, "--api-key-file", tmp_path / "none", key=None)
    assert done.code == 1 and "No such file" in done.of("key")["text"], done.output


# What the API answers.

HTML = b"<html>Please log in</html>"


ANSWERS: list[tuple[Any, str, str]] = [
    # To every key.
    (status(200), "note", "answered 200 to an empty batch, whatever the key"),
    (status(400), "note", "answered 400 to an empty batch, whatever the key"),
    (status(200, HTML), "warn", "no JSON"),
    (
        status(401, b'{"error":{"message":"no such key\\u001b[31m"}}'),
        "fail",
        "refuses the key: 401 no such key [31m",
    ),
    (status(403), "fail", "refuses the key"),
    (status(404, HTML), "fail", "there is no API at"),
    (status(405), "fail", "there is no API at"),
    (status(302, headers={"Location": "https://login.example/?x"}), "fail", "redirects to https://login.example/"),
    (status(429), "warn", "limits requests"),
    (status(500, HTML), "fail", "fails at present"),
    (status(418), "fail", "refuses requests: 418"),
    (raw(b""), "fail", ""),
    (raw(b"SSH-2.0-OpenSSH_9.2\r\n"), "fail", ""),
    (raw(b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n{"), "fail", ""),
    (reset(), "fail", "reset"),
    (stall(DEADLINE), "fail", "no answer within 1 s"),
    (endless(), "warn", "no JSON"),
    (endless(head=b"HTTP/1.1 200 OK\r\n", piece=b"X-Filler: 1\r\n"), "fail", ""),
    (endless(head=b"HTTP/1.1 200 OK\r\n\r\n", piece=b"x", every=0.05), "fail", "no answer within 1 s"),
]


@first_is_quick("number", range(len(ANSWERS)))
def test_answers(number: int, letter_api: IngestionServer, tmp_path: Path) -> None:
    fault, level, said = ANSWERS[number]
    letter_api.rule = lambda _: fault
    timeout = "1" if "within 1 s" in said else "20"  # of all checks, for which a busy machine may need more
    done = examine(letter_api.url, tmp_path, "--timeout", timeout)
    assert done.of("api")["level"] == level and said in done.of("api")["text"], done.output
    assert done.code == int(level == "fail") and done.seconds < DEADLINE / 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "then", "level", "said"),
    [
        (status(422), status(401), "ok", "accepts the key (422 for an empty batch, 401 with a key that does not exist"),
        (status(200), status(403), "ok", "accepts the key (200 for an empty batch, 403 with a key that does not exist"),
        (status(422), status(422), "note", "answered 422 to an empty batch, whatever the key: it may be accepted or"),
        (status(422), status(429), "note", "answered 422 to an empty batch: the key was probably accepted"),
        (status(422), reset(), "note", "answered 422 to an empty batch: the key was probably accepted"),
        (status(422), stall(DEADLINE), "note", "answered 422 to an empty batch: the key was probably accepted"),
    ],
)
def test_a_key_that_does_not_exist_shows_what_the_answer_says_about_the_key(
    first: Any, then: Any, level: str, said: str, letter_api: IngestionServer, tmp_path: Path
) -> None:
    letter_api.rule = lambda request: first if request.headers["authorization"] == f"Bearer {KEY}" else then
    done = examine(letter_api.url, tmp_path, "--timeout", "2")
    assert done.of("api")["level"] == level and said in done.of("api")["text"], done.output
    assert ("--test-event" in done.of("api")["advice"]) == (level == "note")
    assert done.code == 0 and len(letter_api.requests) == 2 and done.seconds < DEADLINE / 2


@pytest.mark.parametrize("key", ["lt_live_Ab3", "nothing-in-front", "lt_", "____", "x", "lt_live_a-b.c"])
def test_an_invented_key_has_the_form_of_the_key(key: str) -> None:
    for _ in range(100):
        invented = doctor_network._invented(Secret(key)).reveal()
        assert invented != key and invented.isascii() and " " not in invented
        assert invented.startswith(key[: key.rfind("_") + 1])


@pytest.mark.parametrize(
    ("seconds", "level", "said"),
    [
        (0, "ok", "agrees"),
        (-30, "warn", "30 seconds ahead of"),
        (7300, "fail", "2 hours behind"),
        (None, "note", "no date"),
    ],
)
def test_the_clock(seconds: float | None, level: str, said: str, letter_api: IngestionServer, tmp_path: Path) -> None:
    def rule(_: Any) -> Any:
        date = "" if seconds is None else f"Date: {formatdate(time.time() + seconds, usegmt=True)}\r\n"
        return raw(f"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n{date}\r\n{{}}".encode())

    letter_api.rule = rule
    done = examine(letter_api.url, tmp_path)
    text = re.sub(r"\b[23]\d seconds", "30 seconds", done.of("clock")["text"])  # a busy machine takes some
    assert done.of("clock")["level"] == level and said in text, done.output


# The way to it.


def test_nothing_listens(tmp_path: Path) -> None:
    done = examine(f"http://127.0.0.1:{free_port()}", tmp_path)
    assert done.code == 1 and "refused" in done.of("connection")["text"], done.output
    assert "api" not in done.levels()


def test_a_host_without_an_address(tmp_path: Path) -> None:
    done = examine("http://no-such-host.invalid", tmp_path, "--timeout", "3")
    assert done.code == 1 and done.of("dns")["level"] == "fail", done.output
    assert done.of("base_url")["level"] == "warn"  # not encrypted


@pytest.mark.parametrize("url", ["ftp://example.com", "http://", "http://user:password@example.com", "https://x:99999"])
def test_an_address_that_is_none(url: str, tmp_path: Path) -> None:
    done = examine(url, tmp_path)
    assert done.code == 1 and "base_url must be" in done.of("options")["text"], done.output
    assert "password@" not in done.output


@pytest.fixture
def silent() -> Iterator[int]:
    """A server that accepts connections, and says nothing."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(16)
        yield listener.getsockname()[1]


def test_a_server_that_says_nothing(silent: int, tmp_path: Path) -> None:
    for scheme, check in (("http", "api"), ("https", "tls")):
        done = examine(f"{scheme}://127.0.0.1:{silent}", tmp_path, "--timeout", "0.5")
        assert done.code == 1 and "within 0.5 s" in done.of(check)["text"], done.output
        assert done.seconds < DEADLINE / 2


@pytest.mark.slow
def test_tls(tls_api: IngestionServer, ca_file: str, tmp_path: Path) -> None:
    tls_api.api_key = KEY
    good = examine(tls_api.url, tmp_path, SSL_CERT_FILE=ca_file)
    assert good.code == 0 and good.of("api")["level"] == "ok" and good.of("tls")["text"].startswith("TLSv1."), (
        good.output
    )
    untrusted = examine(tls_api.url, tmp_path)
    assert untrusted.code == 1 and "SSL_CERT_FILE" in untrusted.of("tls")["advice"], untrusted.output
    other = examine(f"https://127.0.0.1:{tls_api.port}", tmp_path, SSL_CERT_FILE=ca_file)
    assert "correct the host in base_url" in other.of("tls")["advice"], other.output
    (tmp_path / "empty.pem").touch()
    none = examine(tls_api.url, tmp_path, SSL_CERT_FILE=str(tmp_path / "empty.pem"), SSL_CERT_DIR=str(tmp_path))
    assert none.code == 1 and none.of("tls")["level"] == "fail", none.output


def test_no_tls_at_that_port(letter_api: IngestionServer, tmp_path: Path) -> None:
    done = examine(letter_api.url.replace("http", "https"), tmp_path, "--timeout", "20")
    assert done.code == 1 and "does not speak TLS" in done.of("tls")["advice"], done.output


def test_tls_at_that_port(tls_api: IngestionServer, tmp_path: Path) -> None:
    done = examine(tls_api.url.replace("https", "http"), tmp_path, "--timeout", "20")
    assert done.code == 1 and done.of("api")["level"] == "fail", done.output


# A proxy.


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n", "407 Proxy Authentication"),
        (b"HTTP/1.1 403 No \x1b[31m\r\n\r\n", "403 No"),
        (b"no HTTP\r\n", "does not connect"),
        (b"", "does not connect"),
    ],
    ids=repr,
)
def test_a_proxy_that_refuses(answer: bytes, said: str, tmp_path: Path) -> None:
    with RawServer(lambda sock: sock.sendall(answer)) as proxy:
        url = f"http://user:very-secret@127.0.0.1:{proxy.port}"
        done = examine("https://api.example.com", tmp_path, "--timeout", "20", HTTPS_PROXY=url)
    assert done.code == 1 and said in done.of("connection")["text"], done.output
    assert f"127.0.0.1:{proxy.port}, from the environment" in done.of("proxy")["text"], done.output
    assert "very-secret" not in done.output and "\\u001b" not in done.output
    assert proxy.heads[0].startswith(b"CONNECT api.example.com:443 HTTP/1.1\r\n")


@pytest.mark.slow
def test_a_proxy_for_http_and_one_that_is_none(letter_api: IngestionServer, tmp_path: Path) -> None:
    letter_api.api_key = KEY
    proxy = f"http://127.0.0.1:{letter_api.port}"  # it takes the path of the whole address for a prefix
    done = examine("http://api.example.com", tmp_path, HTTP_PROXY=proxy)
    assert done.of("api")["level"] == "ok", done.output
    assert letter_api.requests[-1].path == "http://api.example.com:80/v1/batch"
    gone = examine("http://api.example.com", tmp_path, HTTP_PROXY=f"http://127.0.0.1:{free_port()}")
    assert gone.code == 1 and "refused" in gone.of("connection")["text"], gone.output
    for url in ("socks5://127.0.0.1:1080", "http://user:pass/word@host:1"):
        wrong = examine("http://api.example.com", tmp_path, HTTP_PROXY=url)
        assert wrong.code == 1 and wrong.of("proxy")["level"] == "fail" and "word@" not in wrong.output, wrong.output
    assert examine(letter_api.url, tmp_path, HTTP_PROXY="socks5://x", NO_PROXY="127.0.0.1").code == 0


@pytest.mark.slow
@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf", "soon"])
def test_a_time_that_is_none(seconds: str, tmp_path: Path) -> None:
    for name in (["doctor"], ["spool", "."]):
        command = [sys.executable, "-m", "letterapp", *name, f"--timeout={seconds}"]
        with Program(command, environment(""), tmp_path) as program:
            done = program.finish()
        assert done.code == 2 and "invalid seconds value" in done.output, done


# A host in trouble.


def limited(*limits: str) -> list[str]:
    """A command that sets limits, then runs what follows."""
    sets = "; ".join(f"resource.setrlimit(resource.{limit}" for limit in limits)
    code = f"import os, resource, sys; {sets}; os.execv(sys.argv[1], sys.argv[1:])"
    return [sys.executable, "-c", code]


def test_little_address_space(letter_api: IngestionServer, tmp_path: Path) -> None:
    done = examine(letter_api.url, tmp_path, before=limited("RLIMIT_AS, (400_000_000, 400_000_000))"))
    assert done.of("memory")["level"] == "warn" and "ulimit -v" in done.of("memory")["advice"], done.output
    assert "are lost if their process is killed" in done.of("mode")["text"] and done.code == 0


def test_few_descriptors(letter_api: IngestionServer, tmp_path: Path) -> None:
    done = examine(letter_api.url, tmp_path, before=[sys.executable, "-c", FEW_DESCRIPTORS])
    assert done.of("descriptors")["level"] == "warn" and done.code == 0, done.output


# Python 3.8 aborts at the end of a thread if no library can be opened (bpo-44434).
@pytest.mark.parametrize("limit", [8, 6, *[5] * (sys.version_info >= (3, 9))])
def test_hardly_any_descriptors(limit: int, letter_api: IngestionServer, tmp_path: Path) -> None:
    done = examine(letter_api.url, tmp_path, before=limited(f"RLIMIT_NOFILE, ({limit}, {limit}))"))
    assert done.findings and done.seconds < DEADLINE / 2, done.output  # it says what it can, and ends


def test_no_threads(letter_api: IngestionServer, tmp_path: Path) -> None:
    letter_api.api_key = KEY
    # A thread's stack has the size of this limit, for which there is no room.
    limits = limited("RLIMIT_STACK, (600_000_000, 600_000_000))", "RLIMIT_AS, (500_000_000, 500_000_000))")
    done = examine(letter_api.url, tmp_path, before=limits)
    assert done.of("threads")["level"] == "warn" and "each call sends" in done.of("mode")["text"], done.output
    assert done.levels()["api"] == "ok" and done.code == 0


def test_no_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> int:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(os, "fork", fail)  # no limit concerns root
    (finding,) = doctor_host.fork()
    assert finding.level is Level.FAILURE and "ulimit -u" in finding.advice


def test_in_a_test_run(letter_api: IngestionServer, tmp_path: Path) -> None:
    done = examine("http://api.example.com", tmp_path, LETTER_TEST_OUTBOX=str(tmp_path), HTTP_PROXY=letter_api.url)
    assert "this is a test run" in done.of("mode")["text"], done.output


def test_a_reader_that_has_gone_is_no_error(letter_api: IngestionServer, tmp_path: Path) -> None:
    line = '"$@" >&-; echo $?; "$@" >/dev/full; echo $?'
    command = ["sh", "-c", line, "sh", sys.executable, "-m", "letterapp", "doctor"]
    env = environment(letter_api.url, LETTER_API_KEY=KEY, LETTER_BASE_URL=letter_api.url)
    with Program(command, env, tmp_path) as program:
        assert program.finish().output == "0\n0\n"


def test_a_check_that_hangs_or_raises_is_a_failure() -> None:
    gate = threading.Event()

    def hang() -> Any:
        gate.wait(DEADLINE)
        return [ok("x", "late")]

    def fail() -> Any:
        raise MemoryError

    (finding,) = within(0.05, "x", hang)
    gate.set()
    assert finding.level is Level.FAILURE and "no result within 0.05 s" in finding.text
    (finding,) = within(5.0, "x", fail)
    assert finding.level is Level.FAILURE and "MemoryError" in finding.text
