"""What errors, logs and crash reports may hold: printable lines, and neither the key nor a password."""

from __future__ import annotations

import os
import pickle
import socket
import sys
import threading
import time
import traceback
from base64 import b64encode
from pathlib import Path
from types import FrameType
from typing import Any, Callable, Iterator

import pytest
from driven import Driven
from harness import DEADLINE, Program, environment, eventually, run
from programs import clear_text

from letterapp import Letter, LetterError, _text
from letterapp._http import proxy
from letterapp._text import LONGEST, Secret, SecretBytes, clean, excerpt
from letterapp.relay import SenderManager
from letterapp.testing import IngestionServer, raw, reset, status

KEY = "sk-live-0123456789abcdef"
MAIL = {"to": "ada@example.com", "subject": "Hello", "text": "Hi"}
posix = pytest.mark.skipif(os.name != "posix", reason="rights and descriptors are POSIX's")

# What a server, a proxy or a terminal's enemy may say.
NASTY = f"\x1b]0;owned\x07 \u202egnp.exe\u2066 a\r\nline\u2028 \x00 {KEY} https://user:hunter22@host/ " + "x" * 60_000


def is_fit(text: str) -> bool:
    return text.isprintable() and len(text) <= LONGEST and KEY not in text and "hunter22" not in text


# The place that no text gets around.


@pytest.mark.parametrize(
    "text, safe",
    [
        ("https://user:hunter22@host:80/path", "https://***@host:80/path"),
        ("to http://token@host.", "to http://***@host."),
        ("proxy user:hunter22@proxy:3128 refused", "proxy ***@proxy:3128 refused"),
        ("'http://user:hunter/22@host'", "'http://***@host'"),
        ("redis://:hunter22@host and ftp://a:hunter22@b", "redis://***@host and ftp://***@b"),
        ("http://u:p@hunter22@host/x@y", "http://***@host/x@y"),
        ("ada@example.com, http://host:80/a@b", "ada@example.com, http://host:80/a@b"),
        ('{"email": "ada@example.com"}', '{"email": "ada@example.com"}'),
        ("a: b", "a: b"),
    ],
)
def test_users_and_passwords_of_addresses_are_removed(text: str, safe: str) -> None:
    assert clean(text) == safe


def test_an_error_of_any_text_is_one_printable_line_of_bounded_length() -> None:
    Letter(KEY, "https://localhost").close()
    key = Secret(KEY)
    error = LetterError(NASTY, 400, NASTY, NASTY, NASTY)
    assert is_fit(str(error)) and is_fit(str(error.code)) and is_fit(str(error.reason))
    assert KEY not in str(error.body) and KEY not in repr(pickle.loads(pickle.dumps(error)))
    assert KEY not in repr(error) and "***" in str(error.body), key


@pytest.mark.parametrize(
    "text", ["a@" * 200_000, "a:" * 200_000, "://" * 200_000 + "@", "a" * 400_000, ":@/" * 100_000]
)
def test_long_texts_take_linear_time(text: str) -> None:
    began = time.process_time()
    assert len(clean(text)) <= LONGEST
    assert time.process_time() - began < 5, "some milliseconds, mostly"


def test_the_beginning_and_the_end_of_a_long_text_are_kept() -> None:
    assert excerpt("begin " + "x" * 1000 + " end").startswith("begin x") and excerpt("x" * 1000 + " end").endswith(
        " end"
    )
    assert excerpt("x" * LONGEST) == "x" * LONGEST and len(excerpt("x" * (LONGEST + 1))) == LONGEST


def test_a_text_that_contains_a_short_key_by_chance_stays_readable() -> None:
    letter = Letter("key", "https://localhost")
    assert str(LetterError("the key is wrong")) == "the key is wrong"
    letter.close()


class Raises:
    def __repr__(self) -> str:
        raise ZeroDivisionError


@pytest.mark.parametrize("option", ["flush_at", "timeout", "enabled", "on_error", "overflow", "relay", "exit_signals"])
@pytest.mark.parametrize("value", [Raises(), "x\n\u202e" * 9_999], ids=["no repr", "long"])
def test_a_wrong_option_of_any_kind_is_an_error_with_a_printable_text(option: str, value: object) -> None:
    if option == "relay" and isinstance(value, str):
        value = [value]
    wrong: Any = value if option != "on_error" or not callable(value) else None
    with pytest.raises(LetterError, match=option) as caught:
        Letter("k", "https://localhost", **{option: wrong})
    assert is_fit(str(caught.value))


# What the API and what is before it say.

ANSWERS: dict[str, Callable[[], Any]] = {
    "message": lambda: status(400, str({"error": {"message": NASTY}}).replace("'", '"').encode("ascii", "replace")),
    "code": lambda: status(403, _named(code=NASTY, reason=NASTY, message=NASTY)),
    "body": lambda: status(400, NASTY.encode()),
    "location": lambda: status(302, headers={"Location": f"https://user:hunter22@host/{KEY}/" + "x" * 5_000}),
    "status line": lambda: raw(b"HTTP/1.1 zz " + NASTY.replace("\n", " ").encode()[:60_000] + b"\r\n\r\n"),
    "no HTTP": lambda: raw(NASTY.encode()),
    "a length": lambda: raw(f"HTTP/1.1 200 OK\r\nContent-Length: {KEY}\r\n\r\n".encode()),
}


def _named(**error: str) -> bytes:
    from json import dumps

    return dumps({"error": error}).encode()


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS.keys())
@pytest.mark.parametrize("how", ["track", "send"])
def test_a_servers_text_is_always_sanitised(
    answer: Callable[[], Any], how: str, letter_api: Any, make: Any, errors: list[LetterError]
) -> None:
    letter = make(api_key=KEY, max_retries=0)
    letter_api.rule = lambda request: answer()
    if how == "track":
        letter.track("u", "E")
        assert letter.flush(DEADLINE)
    else:
        with pytest.raises(LetterError) as caught:
            letter.send(**MAIL)
        errors.append(caught.value)
    (error,) = errors
    assert is_fit(str(error)), error
    assert is_fit(error.code or "") and is_fit(error.reason or "") and KEY not in (error.body or "")
    assert error.__cause__ is None and error.__context__ is None, "a traceback would print it"


@pytest.mark.parametrize("before", [65_536 - 10, 65_536 - len(KEY) + 1, 65_536, 65_536 + 5, 10])
def test_a_key_at_the_end_of_what_is_read_of_a_body_leaves_no_part_of_it(
    before: int, letter_api: Any, make: Any, errors: list[LetterError]
) -> None:
    letter_api.plan(status(403, b"x" * before + KEY.encode() + b"y" * 100_000))
    letter = make(api_key=KEY, max_retries=0)
    letter.track("u", "E")
    assert letter.flush(DEADLINE)
    (error,) = errors
    assert error.body is not None and "sk-l" not in error.body and 65_000 < len(error.body) <= 65_536


def test_a_proxys_text_is_always_sanitised(
    make: Any, errors: list[LetterError], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def refuse() -> None:
            sock, _ = listener.accept()
            with sock:
                sock.recv(65_536)
                reason = NASTY.replace("\r\n", " ").encode()
                sock.sendall(b"HTTP/1.1 407 " + reason[:50_000] + b"\r\nContent-Length: 0\r\n\r\n")

        thread = threading.Thread(target=refuse)
        thread.start()
        port = listener.getsockname()[1]
        monkeypatch.setenv("HTTPS_PROXY", f"http://user:hunter22@127.0.0.1:{port}")
        letter = make(api_key=KEY, base_url="https://api.example", max_retries=0)
        letter.track("u", "E")
        assert letter.flush(DEADLINE)
        thread.join(DEADLINE)
    (error,) = errors
    assert is_fit(str(error)) and "the proxy refused the connection: 407" in str(error)


def test_what_on_error_raises_is_printed_safely(make: Any, letter_api: Any, capsys: pytest.CaptureFixture[str]) -> None:
    class Strange(Exception):
        def __repr__(self) -> str:
            raise KeyError("no repr")

    def on_error(error: LetterError) -> None:
        raise Strange if "E2" in str(error.events) else ValueError(NASTY)

    letter = make(api_key=KEY, on_error=on_error)
    letter_api.rule = lambda request: status(403, NASTY.encode())
    for event in ("E1", "E2"):
        letter.track("u", event)
        assert letter.flush(DEADLINE)
    first, second = capsys.readouterr().err.splitlines()
    assert "on_error raised ValueError" in first and "on_error raised Strange()" in second
    for line in (first, second):
        assert line.isprintable() and len(line) <= 1_000 and KEY not in line and "hunter22" not in line


@pytest.mark.parametrize(
    "url, why",
    [
        ("https://user:hunter22@host", "a user name or a password"),
        ("https://hunter22@host", "a user name or a password"),
        ("https://user:hunter/22@host", "an invalid host or port"),
        (KEY, "http:// or https://"),
        (f"user:hunter22@{KEY}", "http:// or https://"),
        (f"https://host/?key={KEY}", "after the path"),
        (f"https://host:{KEY}", "an invalid host or port"),
        (f"https://host /{KEY}", "a space"),
        (f"{KEY}\n", "a line break"),
    ],
)
def test_a_wrong_base_url_is_not_shown(url: str, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(make: Callable[[], object]) -> None:
        with pytest.raises(LetterError, match="base_url must be") as caught:
            make()
        text = "".join(traceback.format_exception(type(caught.value), caught.value, caught.tb))
        assert why in str(caught.value)
        for hidden in ("hunter", KEY):
            assert hidden not in str(caught.value) + text

    refused(lambda: Letter("other-key", url))
    monkeypatch.setenv("LETTER_BASE_URL", url)
    refused(lambda: Letter("other-key"))


# The key in objects and frames.


def test_a_secret_is_never_shown_but_survives_a_pickle() -> None:
    for hidden in (Secret(KEY), SecretBytes(KEY.encode())):
        assert KEY not in f"{hidden} {hidden!r} {[hidden]} { ({1: hidden}) }"
        assert pickle.loads(pickle.dumps(hidden)) == hidden
    assert Secret(KEY) != KEY and Secret(KEY) == Secret(KEY) and {Secret(KEY)} == {Secret(KEY)}
    with pytest.raises(AttributeError):
        Secret(KEY)._text = ""


def test_a_pickled_client_has_the_key(letter_api: Any) -> None:
    letter = pickle.loads(pickle.dumps(Letter(KEY, letter_api.url)))
    letter.track("u", "E")
    assert letter.close(DEADLINE)
    (request,) = letter_api.requests
    assert request.headers["authorization"] == f"Bearer {KEY}"
    assert KEY not in repr(vars(letter._settings))


def test_the_key_from_the_environment_is_secret_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LETTER_API_KEY", KEY)
    assert KEY not in repr(vars(Letter(base_url="https://localhost")._settings))


def locals_of(frame: FrameType) -> list[str]:
    """What crash reporters show of a frame: the reprs of its variables, and of what containers among them hold."""
    shown = []
    for value in list(frame.f_locals.values()):
        try:
            shown.append(repr(value))
        except Exception:  # an object that is not made to its end
            continue
    return shown


class Watch:
    """Looks at the variables of all frames of this package, and of what it calls to send, at each line."""

    def __init__(self, secrets: tuple[str, ...]) -> None:
        self.secrets = secrets
        self.found: set[str] = set()
        self.lines = 0

    def __call__(self, frame: FrameType, event: str, argument: Any) -> Any:
        name = frame.f_code.co_filename
        if name == _text.__file__ or not ("letterapp" in name or f"{os.sep}http{os.sep}" in name or "ssl.py" in name):
            return None
        if frame.f_code is proxy._read.__code__:
            return None  # where it is parsed, and which raises nothing
        self.lines += 1
        for text in locals_of(frame):
            if any(secret in text for secret in self.secrets):
                self.found.add(f"{os.path.basename(name)}:{frame.f_lineno} {frame.f_code.co_name}: {text[:200]}")
        return self


PASSWORD = "hunter22-and-more"
BASIC = b64encode(f"user:{PASSWORD}".encode()).decode()


def _refuses(api: Any) -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


def _answers(*faults: Any) -> Callable[[Any], str]:
    def url(api: Any) -> str:
        api.plan(*faults)
        return str(api.url)

    return url


FAILURES: dict[str, tuple[Callable[[Any], str], str]] = {
    "refused": (_refuses, ""),
    "reset": (_answers(reset()), ""),
    "garbage": (_answers(raw(b"garbage")), ""),
    "a fault of the server": (_answers(status(500)), ""),
    "no TLS there": (lambda api: api.url.replace("http://127.0.0.1", "https://localhost"), ""),
    "a proxy": (lambda api: "http://api.example", "http://user:{}@127.0.0.1:1"),
    "a proxy's tunnel": (lambda api: "https://api.example", f"http://user:{{}}@{'{address}'}"),
    "a proxy that cannot be read": (lambda api: "https://api.example", "http://user:{}/@127.0.0.1:1"),
    "a proxy that is not spoken to": (lambda api: "https://api.example", "socks5://user:{}@127.0.0.1:1"),
}


@pytest.mark.skipif(sys.implementation.name == "pypy", reason="a trace of each line takes too long there")
@pytest.mark.parametrize("how", ["track", "send"])
@pytest.mark.parametrize("url_of, proxy", FAILURES.values(), ids=FAILURES.keys())
def test_no_frame_s_variable_shows_the_key_while_a_request_fails(
    url_of: Callable[[Any], str],
    proxy: str,
    how: str,
    letter_api: IngestionServer,
    driven: Callable[..., Driven],
    errors: list[LetterError],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if proxy:
        address = letter_api.url.partition("//")[2]
        for name in ("HTTP_PROXY", "HTTPS_PROXY"):
            monkeypatch.setenv(name, proxy.replace("{}", PASSWORD).replace("{address}", address))
    one = driven(url_of(letter_api), api_key=KEY, max_retries=0)
    one.sender.prepare()  # the imports have nothing to hide
    watch = Watch((KEY, PASSWORD, BASIC))
    before = sys.gettrace()
    if how == "track":
        one.track()
        sys.settrace(watch)
        try:
            one.sender._batches.send_once()
        finally:
            sys.settrace(before)
        assert [error.lost for error in errors if error.cause != "degraded"] == [1]
    else:
        sys.settrace(watch)
        try:
            one.letter.send(**MAIL)  # type: ignore[arg-type]
        except LetterError:
            pass
        else:
            raise AssertionError("it did not fail")
        finally:
            sys.settrace(before)
    assert watch.lines > 50
    assert not watch.found, "\n".join(sorted(watch.found))


def frames_with(secrets: tuple[str, ...], act: Callable[[], object]) -> list[str]:
    """The variables of this package's frames, as crash reporters show them, that hold a secret when ``act`` raises."""
    with pytest.raises(LetterError) as caught:
        act()
    found = []
    error: BaseException | None = caught.value
    while error is not None:
        for frame, line in traceback.walk_tb(error.__traceback__):
            if f"{os.sep}letterapp{os.sep}" in frame.f_code.co_filename:
                texts = [text for text in locals_of(frame) if any(secret in text for secret in secrets)]
                found += [f"{frame.f_code.co_filename}:{line} {text}" for text in texts]
        error = error.__cause__ or error.__context__
    return found


def test_an_error_of_a_constructor_shows_no_key_in_this_package_s_frames(tmp_path: Path) -> None:
    wrong: list[Callable[[], object]] = [
        lambda: Letter(KEY, "https://localhost", flush_at=0),
        lambda: Letter(KEY, "nonsense"),
        lambda: Letter(KEY + " "),
        lambda: SenderManager(KEY, flush_at=0),
        lambda: SenderManager(KEY, address=str(tmp_path / "m"), authkey=PASSWORD.encode()).connect(),
        lambda: SenderManager(KEY, address=os.path.join(os.devnull, "m"), authkey=PASSWORD.encode()).start(),
    ]
    if hasattr(socket, "AF_UNIX"):
        wrong.append(lambda: Letter(KEY, "https://localhost", relay=str(tmp_path / ("x" * 200))))
    for make in wrong:
        assert not frames_with((KEY, PASSWORD), make)


# A key's file, and a program without stderr.


@pytest.fixture
def key_file(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "key"
    path.write_text(KEY)
    yield path


@posix
@pytest.mark.parametrize("mode, said", [(0o644, "can read"), (0o602, "can write"), (0o600, ""), (0o640, "")])
def test_a_key_file_that_others_can_read_causes_a_warning(mode: int, said: str, key_file: Path) -> None:
    key_file.chmod(mode)
    command = [sys.executable, "-m", "letterapp", "relay", "--status", "--api-key-file", str(key_file)]
    with Program(command, environment("", XDG_RUNTIME_DIR=str(key_file.parent)), key_file.parent) as program:
        finished = program.finish()
    word = [line for line in finished.output.splitlines() if "chmod it to 600" in line]
    assert bool(word) == bool(said), finished
    assert all(said in line and str(key_file) in line for line in word) and KEY not in finished.output


@posix
@pytest.mark.parametrize("closed", ["2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_a_relay_without_stderr_writes_to_none_of_its_files(closed: str, letter_api: Any, tmp_path: Path) -> None:
    path = tmp_path / "own" / "r.sock"
    line = f'exec "$0" -m letterapp relay --base-url {letter_api.url} --socket {path} {closed}'
    env = environment(letter_api.url, LETTER_API_KEY=KEY)
    with Program(["sh", "-c", line, sys.executable], env, tmp_path) as program:
        assert eventually(path.exists, bool), program.output
        lock = Path(f"{path}.lock")
        assert eventually(lambda: os.readlink(f"/proc/{program.pid}/fd/2"), lambda it: it == os.devnull) == os.devnull
        letter = Letter(KEY, letter_api.url, relay=str(path))
        letter.track("u", "E")
        assert letter.close(DEADLINE) and lock.read_bytes() == b""
        program.signal(15)
        assert program.finish().code == 0


# Clear text.


@pytest.mark.skipif(not hasattr(os, "fork"), reason="its child is forked")
@pytest.mark.parametrize(
    "urls, reports",
    [
        ("http://api.example http://192.0.2.1:8000 http://api.example", 1),
        ("http://127.evil.example", 1),
        ("http://[2001:db8::1]", 1),
        ("http://127.0.0.1:9 http://127.3.2.1 http://localhost http://LOCALHOST. http://a.localhost", 0),
        ("http://[::1]:9 http://[::ffff:127.0.0.1]", 0),
        ("https://api.example", 0),
    ],
)
def test_clear_text_to_another_host_is_reported_once_in_a_process(urls: str, reports: int, tmp_path: Path) -> None:
    finished = run(clear_text.clients, "http://unused", tmp_path, urls)
    assert finished.output == f"{[('degraded', True)] * reports} {reports}\n", finished
