"""Finding the relay of an application, and starting it if there is none.

Responsible for: the path of the socket, joining a relay, the interpreter, the start. Not responsible for: what is sent
over the socket later (`_relay.client`), what a relay does (`socket_server`). This module is imported only if a relay is
used.

With ``relay=True`` the path is derived from the user, the key and the options. So every process of an application finds
the same relay, whether it was forked, spawned or started separately, and the first one starts it. The relay is a
detached daemon: no process has it as a child, and none waits for it. It runs while a process holds a lease, which is a
connection over which nothing is sent. Forked children inherit the lease; a program that replaces itself by `exec`, as
uWSGI's master does at a reload, loses it.
"""

from __future__ import annotations

import _socket
import json
import os
import select
import subprocess
import sys
import tempfile
from hashlib import sha256

from .._path_trust import must_be_guarded, must_be_ours, must_be_reached_safely
from .._runtime.atfork import close_if_unchanged
from .._runtime.clock import monotonic
from .._runtime.signal_errors import reraise_signal_error
from .._text import Secret, revealed
from .._version import __version__
from ..errors import LetterError
from . import protocol
from .connection import POSSIBLE, QUIETLY, connect

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .._config import Settings

STARTING = 20.0  # maximum time until a new relay is ready, in seconds
ANSWERING = 5.0  # maximum time for the answer of a running relay to a greeting, in seconds
TRIES = 10
LONGEST_PATH = 103  # bytes of a socket's path, on the system with the lowest limit
# The options that apply in the relay. The others apply in each client's process.
PASSED_ON = (
    *("api_key", "base_url", "flush_at", "flush_interval", "max_retries", "timeout", "max_queue_bytes"),
    *("max_queue_events", "overflow", "max_batch_bytes", "exit_timeout", "spool", "spool_max_bytes"),
)
# Isolated (-I), so that variables for the application's Python have no effect. The first import has to find this copy
# of the package, and later ones must not find other modules in the same directory.
_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_BOOT = (
    "import sys; place = sys.argv.pop(1); sys.path.insert(0, place); import letterapp; sys.path.remove(place); "
    "from letterapp.__main__ import main; sys.exit(main())"
)


# The part of the application's environment that the program needs: how to reach the API, its libraries and directories,
# the language of its messages, whether it prints what it does. The rest may contain secrets.
_PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
_ENVIRONMENT = (
    *("PATH", "HOME", "USER", "LANG", "LANGUAGE", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR", "TEMP", "TMP"),
    *("XDG_RUNTIME_DIR", "JOURNAL_STREAM", "SSL_CERT_FILE", "SSL_CERT_DIR", "OPENSSL_CONF", "OPENSSL_MODULES"),
    *("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "LOCALDOMAIN", "RES_OPTIONS", "HOSTALIASES"),
    "LETTER_DEBUG",
    *_PROXIES,
    *(name.upper() for name in _PROXIES),
)


class NoRelay(LetterError):
    """No relay can be started at present: the host is short of some resource, or another process interferes."""


class Lease:
    """Keeps a relay running. A forked child's copy does so too, until that child ends."""

    def __init__(self, sock: Any) -> None:
        self._sock = sock
        self._inode = os.fstat(sock.fileno()).st_ino

    def close(self) -> None:
        close_if_unchanged(self._sock.detach(), self._inode)

    def __del__(self) -> None:
        try:
            self.close()
        except (AttributeError, TypeError):
            pass  # the interpreter is shutting down; the kernel closes the lease with the process


def check(settings: Settings) -> None:
    """Raise `LetterError` if these options can never work with a relay."""
    relay: Any = settings.relay
    if not POSSIBLE:
        raise LetterError("relay needs Unix sockets, which this system does not have: leave it out")
    if relay is not True and len(os.fsencode(relay)) > LONGEST_PATH:
        raise LetterError(f"relay={relay!r} is too long for a socket's path: {LONGEST_PATH} bytes at most")
    if settings.spool_sync:
        raise LetterError(
            "spool_sync cannot be combined with relay, because calls do not wait for the relay's disk: leave one out"
        )
    if relay is True and settings.ssl_context is not None:
        raise LetterError(
            "relay=True starts another program, which cannot use this ssl_context: set SSL_CERT_FILE, "
            "or run a relay yourself and give the path of its socket"
        )


def place(settings: Settings) -> str:
    """The path of the relay's socket. Raises `OSError` if its directory is missing or not trusted."""
    if settings.relay is not True:
        path = str(settings.relay)
        must_be_guarded(os.path.dirname(path), settings.relay_user)
        return path
    return os.path.join(own_directory(), f"relay-{_name(settings)}.sock")


def places() -> list[str]:
    """The sockets of this user's relays that were started for clients."""
    directory = own_directory()
    return [os.path.join(directory, name) for name in sorted(os.listdir(directory)) if name.endswith(".sock")]


def lease(settings: Settings) -> Lease | None:
    """A lease on the relay, which is started if necessary. None if a relay that is run separately is not running.

    Blocks for milliseconds if it is running; otherwise for a fraction of a second, and at most `STARTING` seconds.
    Raises `NoRelay` if it cannot be started, and another `LetterError` if it refuses or can never work.
    """
    try:
        path = place(settings)
    except OSError as problem:
        reraise_signal_error(problem)
        if settings.relay is not True and isinstance(problem, FileNotFoundError):
            return None
        where = f"{problem.filename}: " if problem.filename else ""
        said = f"relay: the socket's directory cannot be used: {where}{problem.strerror or problem}"
        raise (NoRelay if settings.relay is True else LetterError)(said) from None
    if len(os.fsencode(path)) > LONGEST_PATH:
        raise LetterError(f"relay: the path {path} is too long for a socket: set XDG_RUNTIME_DIR to a shorter path")
    try:
        found = _join(path, settings)
        tries = 0 if settings.relay is True else TRIES
        while found is None and tries < TRIES:
            _start(path, settings)
            found = _join(path, settings)  # None if another process started it, and its last client has just left
            tries += 1
    except (_socket.timeout, BlockingIOError) as problem:
        reraise_signal_error(problem)
        return None  # there is one, but it is stopped or overloaded: the calls will find out
    if found is None and settings.relay is True:
        raise NoRelay(f"relay: the program that was started ended at once; to see why, run {_by_hand()}")
    return found


def ask(path: str, api_key: Secret, base_url: str, wants: str, user: int | None = None) -> tuple[Any, dict[str, Any]]:
    """Connect to the relay at ``path``; return the socket and the relay's response.

    Raises `OSError` if there is no response in time, and `protocol.Refused` if the relay refuses this client or does
    not have the key. ``user``: see `_relay.connection.connect`.
    """
    deadline = monotonic() + ANSWERING  # for the whole exchange: a peer may send one byte at a time
    sock = connect(path, ANSWERING, user)
    try:
        caller = protocol.Caller(api_key, base_url, wants)
        _say(sock, caller.hello)
        _say(sock, caller.answer(_hear_line(sock, deadline)))
        answer = protocol.parse(_hear_line(sock, deadline))
        if "welcome" not in answer:
            raise protocol.refusal(answer)
    except BaseException:
        sock.close()
        raise
    return sock, answer


def _say(sock: Any, line: bytes) -> None:
    try:
        sock.sendall(line, QUIETLY)
    except OSError as problem:
        reraise_signal_error(problem)  # otherwise it has closed the connection, and what it sent can still be read


def _hear_line(sock: Any, deadline: float) -> bytes:
    heard = b""
    while not heard.endswith(protocol.END):
        left = deadline - monotonic()
        if left <= 0 or len(heard) > protocol.LONGEST_GREETING:
            raise _socket.timeout("its line did not end in time")
        sock.settimeout(left)
        data = sock.recv(protocol.LONGEST_GREETING)
        if not data:
            raise ConnectionResetError("it closed the connection")
        heard += data
    return heard


def _join(path: str, settings: Settings) -> Lease | None:
    try:
        sock, _ = ask(path, settings.api_key, settings.base_url, protocol.LEASE, settings.relay_user)
    except protocol.Refused as refused:
        if refused.is_busy:
            raise BlockingIOError("it has no room for another connection") from None
        raise LetterError(f"the relay at {path} {refused}") from None
    except (_socket.timeout, BlockingIOError):
        raise  # its backlog is full
    except OSError as problem:
        reraise_signal_error(problem)
        return None  # no relay is listening, or it is about to exit
    return Lease(sock)


def _start(path: str, settings: Settings) -> None:
    """Start a relay, and wait until it reports that it, or another one, is ready at ``path``."""
    options = {name: getattr(settings, name) for name in PASSED_ON}
    said, ours = run_program(["--for-clients", "--socket", path], options)
    ours.close()
    if said != "ready":
        raise not_started(said)


def not_started(said: str) -> NoRelay:
    """The error for a program whose first line of output was ``said``."""
    return NoRelay(f"relay: the program could not be started: {said or 'it ended; stderr may say why'}")


def run_program(arguments: list[str], options: dict[str, Any]) -> tuple[str, Any]:
    """Start ``python -m letterapp relay ARGUMENT...``; return its first line of output and our end of its stdin.

    The program has detached itself from this process when it prints its first line. ``options`` are sent to it as a
    line of JSON, because all users of the machine can read a program's arguments.
    """
    command = [interpreter(), "-I", "-c", _BOOT, os.path.dirname(_PACKAGE)]
    try:
        ours, its = _standard_input()
    except OSError as problem:
        raise NoRelay(f"relay: the program could not be started: {problem.strerror or problem}") from None
    try:
        process = subprocess.Popen(
            [*command, "relay", *arguments],
            stdin=its.fileno(),
            stdout=subprocess.PIPE,
            stderr=None if _is_open(2) else subprocess.DEVNULL,  # or it would log to a socket that gets the number 2
            cwd=os.path.abspath(os.sep),
            env={name: value for name, value in os.environ.items() if name in _ENVIRONMENT},
            start_new_session=True,
        )
    except OSError as problem:
        ours.close()
        raise NoRelay(f"relay: {command[0]} cannot be run: {problem.strerror or problem}") from None
    finally:
        its.close()
    assert process.stdout is not None
    try:
        ours.sendall(json.dumps(options, default=revealed).encode() + b"\n", QUIETLY)
        said = _first_line(process.stdout.fileno())
    except OSError as problem:
        said = str(problem)
    finally:
        process.stdout.close()
        _reap(process)
    return said, ours


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def _standard_input() -> tuple[Any, Any]:
    ours, its = _socket.socketpair()  # not a pipe, which could cause a SIGPIPE in the application
    ours.settimeout(ANSWERING)
    return ours, its


def _first_line(descriptor: int) -> str:
    deadline = monotonic() + STARTING
    heard = b""
    while not heard.endswith(b"\n") and len(heard) < protocol.LONGEST_GREETING:
        left = deadline - monotonic()
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        if left <= 0 or not poll.poll(left * 1000):
            return f"it was not ready within {STARTING:g} s"
        data = os.read(descriptor, 4096)
        if not data:
            break
        heard += data
    return heard.decode("utf-8", "replace").strip()


def _reap(process: Any) -> None:
    """Reap the program that was started: it ends at once, after it has forked the detached relay."""
    try:
        process.wait(ANSWERING)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def interpreter() -> str:
    """A Python interpreter that can run this package; under uWSGI `sys.executable` is uWSGI. Raises `LetterError`."""
    if getattr(sys, "frozen", False):
        raise LetterError(
            "starting a relay needs a Python interpreter, and this program is frozen: "
            f"run a relay yourself ({_by_hand()}) and give the path of its socket"
        )
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    names = [f"python{version}", "python3", "python", f"pypy{version}", "pypy3"]
    places = [os.path.join(prefix, "bin", name) for prefix in (sys.prefix, sys.base_prefix) for name in names]
    executable = sys.executable or ""
    if os.path.basename(executable).startswith(("python", "pypy")):
        places.insert(0, executable)
    for path in places:
        if os.path.isfile(path) and os.access(path, os.X_OK):
            return path
    raise LetterError(
        f"starting a relay needs a Python interpreter, and none is in {os.path.join(sys.prefix, 'bin')}: "
        f"run a relay yourself ({_by_hand()}) and give the path of its socket"
    )


def _by_hand() -> str:
    return "python -m letterapp relay --socket PATH"


def own_directory() -> str:
    """A directory for sockets that only this user can access. It is created if it does not exist."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    try:
        must_be_ours(runtime)
        directory = os.path.join(runtime, "letterapp")
    except OSError:
        directory = os.path.join(tempfile.gettempdir(), f"letterapp-{os.geteuid()}")
    try:
        os.mkdir(directory, 0o700)
    except FileExistsError:
        pass
    must_be_ours(directory)
    must_be_reached_safely(directory)
    return directory


def _name(settings: Settings) -> str:
    identity = [__version__, protocol.VERSION, {name: getattr(settings, name) for name in PASSED_ON}]
    return sha256(json.dumps(identity, default=revealed).encode()).hexdigest()[:16]
