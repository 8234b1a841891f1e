"""Other users of the machine: as owners of directories in a relay's path, or listening in its place.

A child needs root to become another user; without root those tests are skipped.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import stat
from pathlib import Path
from typing import Any, Callable, Iterator

import pytest
from harness import DEADLINE
from relayed import STRANGER, FakeRelay, Runtime, needs_root, own_runtime  # noqa: F401  (a fixture)

from letterapp import Letter, LetterError
from letterapp._path_trust import must_be_guarded

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs Unix")


# Who owns the path to a relay.


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


PATHS: dict[Callable[[Path], Path], str] = {
    _his_directory: "belongs to user 65534",
    _in_his_directory: "belongs to user 65534",
    _in_a_directory_for_all: "every user may write to it",
    _by_his_link: "belongs to user 65534",
    _by_a_link_into_his_directory: "belongs to user 65534",
    _in_a_circle: "symbolic links",
}


@needs_root
@pytest.mark.parametrize("lay", PATHS)
def test_a_path_that_another_user_could_redirect_is_not_trusted(
    lay: Callable[[Path], Path], make: Callable[..., Letter], runtime: Runtime
) -> None:
    (runtime.path / "a" / "b").mkdir(parents=True, mode=0o700)
    path = str(lay(runtime.path) / "r.sock")
    with pytest.raises(LetterError, match=PATHS[lay]):
        make(relay=path)
    refused = runtime.command("--socket", path)
    assert refused.returncode == 1 and PATHS[lay] in refused.stderr and "Traceback" not in refused.stderr


@needs_root
def test_another_users_path_is_trusted_if_named_by_relay_user(make: Callable[..., Letter], runtime: Runtime) -> None:
    import pwd

    (runtime.path / "a" / "b").mkdir(parents=True, mode=0o700)
    path = str(_his_directory(runtime.path) / "r.sock")
    for name in (STRANGER, pwd.getpwuid(STRANGER).pw_name):
        make(relay=path, relay_user=name).close()
    with pytest.raises(LetterError, match="belongs to user 65534"):
        make(relay=path, relay_user=STRANGER - 1)


def test_a_world_writable_directory_is_trusted_if_it_has_the_sticky_bit(runtime: Runtime) -> None:
    (runtime.path / "a" / "b").mkdir(parents=True)
    (runtime.path / "a").chmod(0o1777)
    (runtime.path / "link").symlink_to(runtime.path / "a")
    must_be_guarded(str(runtime.path / "link" / ".." / "link" / "b"))


@pytest.mark.parametrize(
    "options, why",
    [
        ({"relay": "r.sock", "relay_user": "no such user"}, "there is no user 'no such user'"),
        ({"relay": "r.sock", "relay_user": -1}, "relay_user must be a user name or a user ID, not -1"),
        ({"relay": "r.sock", "relay_user": True}, "relay_user must be"),
        ({"relay": True, "relay_user": 0}, "relay_user needs relay=PATH"),
        ({"relay_user": 0}, "relay_user needs relay=PATH"),
    ],
)
def test_an_invalid_relay_user_is_a_clear_error(options: dict[str, Any], why: str, make: Callable[..., Letter]) -> None:
    with pytest.raises(LetterError, match=why):
        make(**options)


# Who listens.


@contextlib.contextmanager
def served_by_another_user(path: str) -> Iterator[int]:
    """Another user listens at ``path``, and writes what each process sends first to the pipe that is yielded."""
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
def test_nothing_is_sent_to_another_user_who_listens(
    make: Callable[..., Letter], runtime: Runtime, letter_api: Any, errors: list[LetterError]
) -> None:
    path = str(runtime.path / "r.sock")
    with served_by_another_user(path) as heard:
        letter = make(relay=path)
        letter.track("u", "E")
        assert letter.flush(DEADLINE) and letter.stats()["relayed"] == 0
        assert set(read(heard).splitlines()) == {b"heard:"}
    assert letter_api.distinct == 1
    assert "it is run by user 65534" in str(errors[0]) and errors[0].cause == "degraded"


@needs_root
def test_a_named_other_user_is_greeted_and_must_have_the_key(
    make: Callable[..., Letter],
    runtime: Runtime,
    letter_api: Any,
    errors: list[LetterError],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("letterapp._relay.launcher.ANSWERING", 0.3)  # seconds that a constructor waits
    path = str(runtime.path / "r.sock")
    with served_by_another_user(path) as heard:
        letter = make(relay=path, relay_user=STRANGER)
        assert b'"nonce"' in read(heard)
        letter.track("u", "E")
        assert letter.flush(DEADLINE) and letter.stats()["relayed"] == 0
    assert letter_api.distinct == 1


def test_a_relay_without_the_key_gets_no_event(
    make: Callable[..., Letter], runtime: Runtime, letter_api: Any, errors: list[LetterError]
) -> None:
    fake = FakeRelay(str(runtime.path / "r.sock"), "another-key", letter_api.url)
    try:
        with pytest.raises(LetterError, match="refuses this client: it has another API key"):
            make(relay=str(runtime.path / "r.sock"))
        sock = fake.last()
        assert sock is not None and sock.recv(65_536) == b""
    finally:
        fake.close()


# A relay's own socket.


def test_the_socket_is_inaccessible_to_others_from_its_first_moment(runtime: Runtime) -> None:
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
def test_a_relay_that_runs_as_root_logs_that(runtime: Runtime) -> None:
    with runtime.keep() as relay:
        assert relay.output.count("as root") == 1
