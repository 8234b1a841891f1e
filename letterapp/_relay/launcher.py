"""Where the relay of an application is, and how it is started where there is none.

Responsible for: the socket's place, joining, the interpreter, the start. Not responsible for: what goes over the socket
later (`_relay.client`), what a relay does (`socket_server`). This file and its modules are imported for those alone who
use a relay.

With ``relay=True`` the place follows from the user, the key and the options. So every process of an application finds
the same relay, whether it was forked, spawned or started by a server of its own, and the first one starts it. It is a
program by itself and nobody's child: neither the end nor the `wait` of any process meets it. It lives while somebody
holds a lease, a connection over which nothing goes. Forked children inherit the lease, and a program that replaces
itself by `exec`, as uWSGI's master does at a reload, loses it.
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

STARTING = 20.0  # seconds that a new relay may take until it serves
ANSWERING = 5.0  # seconds that one which serves may take to answer a greeting
TRIES = 10
LONGEST_PATH = 103  # bytes of a socket's path, on the system that takes the fewest
# What a relay does as its clients' options say. The rest is each process's own affair.
PASSED_ON = (
    *("api_key", "base_url", "flush_at", "flush_interval", "max_retries", "timeout", "max_queue_bytes"),
    *("max_queue_events", "overflow", "max_batch_bytes", "exit_timeout", "spool", "spool_max_bytes"),
)
# Isolated, so that no variable meant for the application's Python counts. The first import must find this very package,
# and no other one what lies beside it.
_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_BOOT = (
    "import sys; place = sys.argv.pop(1); sys.path.insert(0, place); import letterapp; sys.path.remove(place); "
    "from letterapp.__main__ import main; sys.exit(main())"
)


# What the program needs of the application's environment, in which there may be secrets: the way to the API, to its own
# libraries and directories, and the language of its messages.
_PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
_ENVIRONMENT = (
    *("PATH", "HOME", "USER", "LANG", "LANGUAGE", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR", "TEMP", "TMP"),
    *("XDG_RUNTIME_DIR", "JOURNAL_STREAM", "SSL_CERT_FILE", "SSL_CERT_DIR", "OPENSSL_CONF", "OPENSSL_MODULES"),
    *("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "LOCALDOMAIN", "RES_OPTIONS", "HOSTALIASES"),
    *_PROXIES,
    *(name.upper() for name in _PROXIES),
)


class NoRelay(LetterError):
    """A relay cannot be had at present: the host is short of something, or somebody is in the way."""


class Lease:
    """What keeps a relay going. A forked child's copy does too, until that child's end."""

    def __init__(self, sock: Any) -> None:
        self._sock = sock
        self._inode = os.fstat(sock.fileno()).st_ino

    def close(self) -> None:
        close_if_unchanged(self._sock.detach(), self._inode)

    def __del__(self) -> None:
        try:
            self.close()
        except (AttributeError, TypeError):
            pass  # the interpreter is taken apart; it goes with the process


def check(settings: Settings) -> None:
    """Raise `LetterError` for what cannot be, whatever the state of things."""
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
    """The path of the relay's socket, in a directory that is to be believed; `OSError` if there is none."""
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
    """A lease on the relay, which is started if it must be. None if another's is not there yet.

    Blocks: for milliseconds if it is there, for a fraction of a second, `STARTING` seconds at most, if not.
    `NoRelay` if it cannot be started, another `LetterError` if it refuses or can never be.
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
            found = _join(path, settings)  # None if it was another's, whose last client has left just now
            tries += 1
    except (_socket.timeout, BlockingIOError) as problem:
        reraise_signal_error(problem)
        return None  # there is one, and it stands still or is full: the calls will find it so
    if found is None and settings.relay is True:
        raise NoRelay(f"relay: the program that was started ended at once; to see why, run {_by_hand()}")
    return found


def ask(path: str, api_key: Secret, base_url: str, wants: str, user: int | None = None) -> tuple[Any, dict[str, Any]]:
    """Greet the relay at ``path``; return the socket and the answer. `OSError` if nobody answers in time.

    `protocol.Refused` if it does not want this client, or has not the key. ``user``: see `_relay.client.connect`.
    """
    deadline = monotonic() + ANSWERING  # for all of it, or one that says a byte now and then would never let go
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
        reraise_signal_error(problem)  # else it has closed already, and what it said before that is still to be read


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
        return None  # nobody there, or one that is about to leave
    return Lease(sock)


def _start(path: str, settings: Settings) -> None:
    """Run a relay until it says that it, or another one, serves at ``path``."""
    options = {name: getattr(settings, name) for name in PASSED_ON}
    said, ours = run_program(["--for-clients", "--socket", path], options)
    ours.close()
    if said != "ready":
        raise not_started(said)


def not_started(said: str) -> NoRelay:
    """The error for a program whose first line was ``said``."""
    return NoRelay(f"relay: the program could not be started: {said or 'it ended; stderr may say why'}")


def run_program(arguments: list[str], options: dict[str, Any]) -> tuple[str, Any]:
    """Start ``python -m letterapp relay ARGUMENT...``; return its first line and our end of its standard input.

    The program detaches itself: it is nobody's child when its first line is there. ``options`` go to it as a line of
    JSON, and so in no argument, which all users of the machine may read.
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
            stderr=None if _is_open(2) else subprocess.DEVNULL,  # or its sockets get that number, and its log them
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
    ours, its = _socket.socketpair()  # no pipe, of whose end the application's own SIGPIPE could tell
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
    """The program that was started ends at once: the relay is a child of nobody."""
    try:
        process.wait(ANSWERING)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def interpreter() -> str:
    """A Python that can run this package; `LetterError` if none can be found. uWSGI's ``sys.executable`` is uWSGI."""
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
    """A directory for sockets that is this user's alone, made if it must be."""
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
    told = [__version__, protocol.VERSION, {name: getattr(settings, name) for name in PASSED_ON}]
    return sha256(json.dumps(told, default=revealed).encode()).hexdigest()[:16]
