"""The process of a `SenderManager`'s server: how it is started, how long it runs, how it ends.

Responsible for: starting it, ``python -m letterapp relay --manager``, its signals, the end of its starter, its address.
Not responsible for: what it serves (`manager_server`), the relay over a Unix socket (`socket_program`).

If a manager started it, it runs while the other end of its standard input is open. The starter has that end, forked
children inherit it, and `exec` closes it. It ignores SIGINT and SIGTERM, because Ctrl-C and the stop of a service reach
the whole process group, whose last events are still to arrive. If it is run separately, it drains and ends at either.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import sys
import threading
import time

from .._client import settings_of
from .._path_trust import must_be_guarded
from .._queues.targets import ManagerQueue
from .._relay import launcher
from .._relay.connection import QUIETLY
from .._relay.protocol import proof
from .._runtime.clock import monotonic
from .._text import Secret, SecretBytes
from ..errors import LetterError
from . import daemon, endpoint
from .manager_server import Batches, BatchServer, log

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import Any, Callable

    from .._config import Settings
    from .._queues.manager_connection import Address

SHUTDOWN = b"shutdown\n"  # the starter's request to drain at once
AFTER_STARTER = 10.0  # seconds that clients that are still connected are served after the starter has ended
_PRIVATE = "manager-"  # the names of sockets without a given address begin with it
_ABANDONED = 60.0  # seconds after which such a socket is removed if no process listens
_NEVER = 10**9  # events
_LOOK = 0.1  # seconds between two checks whether clients are still connected


def batches_of(options: dict[str, Any]) -> Batches:
    """The queue of a manager with ``options``, with its sender."""
    flush_at = settings_of(**options).flush_at
    # A batch is admitted event by event, and the sender must not start to send in the middle of it.
    return Batches(settings_of(**{**options, "flush_at": _NEVER}), flush_at, log)


# In the process that starts a server.


class Launched:
    """A server process that is a detached daemon, for its starter and the children forked from that."""

    def __init__(self, lease: Any) -> None:
        self._lease = lease

    def stop(self, timeout: float) -> None:
        """Make it drain and end; wait for up to ``timeout`` seconds."""
        try:
            self._lease.settimeout(timeout)
            self._lease.sendall(SHUTDOWN, QUIETLY)
            self._lease.recv(1)
        except OSError:
            pass  # it has ended, or takes longer, and will end on its own
        self._lease.close()

    def join(self, timeout: float | None = None) -> None:
        """Wait until it has ended, for at most ``timeout`` seconds if given."""
        try:
            self._lease.settimeout(timeout)
            self._lease.recv(1)
        except OSError:
            pass

    def __del__(self) -> None:
        self._lease.close()


class Spawned:
    """A server process on systems without `os.fork`: a child of its starter."""

    def __init__(self, process: Any, lease: Any) -> None:
        import atexit

        self._process = process
        self._lease = lease
        # Runs before multiprocessing's exit handler, which would terminate it.
        atexit.register(self.stop, AFTER_STARTER)

    def stop(self, timeout: float) -> None:
        try:
            self._lease.send_bytes(SHUTDOWN)
        except OSError:
            pass
        self._process.join(timeout)
        self._lease.close()

    def join(self, timeout: float | None = None) -> None:
        self._process.join(timeout)


def start_process(options: dict[str, Any], address: Address | None, authkey: bytes) -> tuple[Any, Address]:
    """Start a server process; return it and its address when it is ready. Raises `LetterError` if it fails."""
    if not hasattr(os, "fork"):
        return spawn_process(options, address, authkey)
    said, lease = launcher.run_program(
        ["--for-manager"], {"options": options, "address": address, "authkey": Secret(authkey.hex())}
    )
    if not said.startswith("ready "):
        lease.close()
        raise launcher.not_started(said)
    return Launched(lease), _parsed(said[len("ready ") :])


def spawn_process(options: dict[str, Any], address: Address | None, authkey: bytes) -> tuple[Any, Address]:
    """The same with `multiprocessing`'s spawn, which needs a ``__main__`` guard. For systems without `os.fork`."""
    from multiprocessing import get_context

    context = get_context("spawn")
    ours, its = context.Pipe()
    process = context.Process(target=_spawned, args=(options, address, authkey, its), daemon=True)
    process.start()
    its.close()
    try:
        if not ours.poll(launcher.STARTING):
            raise EOFError
        said, found = ours.recv()
    except EOFError:
        said, found = "it ended before it was ready", None
    if said != "ready":
        ours.close()
        raise launcher.not_started(said)
    return Spawned(process, ours), found


# In the server process.


def _spawned(options: dict[str, Any], address: Address | None, authkey: bytes, lease: Any) -> None:
    def starters_word() -> bytes:
        try:
            said: bytes = lease.recv_bytes()
            return said
        except (EOFError, OSError):
            return b""

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        serve(batches_of(options), address, authkey, lambda place: lease.send(("ready", place)), starters_word)
    except (LetterError, OSError) as problem:
        lease.send((str(problem), None))


def run_for_manager() -> int:
    """``python -m letterapp relay --for-manager``: the program that `start_process` runs."""
    line = sys.stdin.readline()
    if not line:
        return 1  # the starter has ended
    request = json.loads(line)
    del line  # contains the keys
    request["options"]["api_key"] = Secret(request["options"]["api_key"])
    authkey = SecretBytes.fromhex(request.pop("authkey"))
    address = tuple(request["address"]) if isinstance(request["address"], list) else request["address"]
    daemon.detach()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)

    def announce(place: Address) -> None:
        _leave_starters_pipe()
        os.write(1, f"ready {json.dumps(place)}\n".encode())
        os.dup2(2, 1)

    try:
        serve(batches_of(request["options"]), address, authkey, announce, lambda: os.read(0, 64))
    except (LetterError, OSError) as problem:
        os.write(1, f"{problem}\n".encode())
        return 1
    return 0


def _leave_starters_pipe() -> None:
    try:
        directory: str | None = launcher.own_directory()
    except OSError:
        directory = None
    daemon.leave_starters_pipe(directory)


def run_kept(options: argparse.Namespace) -> int:
    """``python -m letterapp relay --manager ADDRESS --authkey-file FILE``: run a server, or print its status."""
    try:
        address, authkey = address_of(options.manager), authkey_of(options.authkey_file)
        api_key = daemon.read_api_key(options.api_key_file)
        given = {"api_key": api_key, "base_url": options.base_url, "spool": options.spool}
        options_given = {name: value for name, value in given.items() if value is not None}
        settings = settings_of(**options_given)
        if options.status:
            print(json.dumps(_status(settings, address, authkey)))
            return 0
        api = settings.base_url
        metrics = endpoint.listen(options.metrics)
        batches = batches_of(options_given)
        serve(batches, address, authkey, lambda place: log(f"serving at {place} for {api}"), None, metrics)
        return 0
    except LetterError as problem:
        log(str(problem))
    except OSError as problem:
        log(f"{problem.filename or options.manager}: {problem.strerror or problem}")
    return 1


def _status(settings: Settings, address: Address, authkey: bytes) -> dict[str, Any]:
    queue = ManagerQueue(address, authkey, settings.api_key, settings.base_url, proof(settings.api_key))
    status: dict[str, Any] = queue.ask("status")
    return status


def serve(
    batches: Batches,
    address: Address | None,
    authkey: bytes,
    announce: Callable[[Address], object],
    starters_word: Callable[[], bytes] | None,
    metrics: Any = None,
) -> None:
    """Serve until the starter asks to shut down or has ended, or, if ``starters_word`` is None, until a signal.

    Then drain. ``starters_word`` waits for the starter's request, and returns an empty one when it has ended.
    ``metrics``: a listening socket for an `Endpoint`.
    """
    if hasattr(os, "umask"):
        os.umask(0o077)
    wakeup_read, wakeup_write = os.pipe()  # a signal handler must not take a lock: it may have interrupted its holder
    if starters_word is None:
        if os.name == "posix":
            # Makes the C handler write to it as well: if the signal comes just before the `read` below, Python's
            # handler runs only after it.
            os.set_blocking(wakeup_write, False)
            signal.set_wakeup_fd(wakeup_write, warn_on_full_buffer=False)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: os.write(wakeup_write, b"."))
        if hasattr(signal, "SIGHUP"):
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
    server = _bound(batches, address, authkey)
    daemon.raise_descriptors()
    batches.begin()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint.serve_metrics(metrics, server, log)
    place: Any = server.address
    announce(place)
    if starters_word is None:
        daemon.notify("READY=1")
        os.read(wakeup_read, 1)
        daemon.notify("STOPPING=1")
    elif starters_word() != SHUTDOWN:
        _serve_the_connected(batches)
    server.stop_accepting()
    batches.close()
    if starters_word is None:
        status = batches.status()
        log(f"{status['delivered']:,} delivered, {sum(status['lost'].values()):,} lost, {status['waiting']:,} left")


def _serve_the_connected(batches: Batches) -> None:
    """The starter has ended. Give its children some seconds to send their last events."""
    deadline = monotonic() + AFTER_STARTER
    while batches.is_used() and monotonic() < deadline:
        time.sleep(_LOOK)


def _bound(batches: Batches, address: Address | None, authkey: bytes) -> BatchServer:
    if address is None and hasattr(socket, "AF_UNIX"):
        directory = launcher.own_directory()
        _remove_abandoned(directory)
        address = os.path.join(directory, f"{_PRIVATE}{os.urandom(8).hex()}.sock")
        return _listening(batches, address, authkey)
    if not isinstance(address, str) or address.startswith("\\\\"):
        return _listening(batches, address, authkey)
    if len(os.fsencode(address)) > launcher.LONGEST_PATH:
        raise LetterError(
            f"the address {address} is too long for a socket's path: {launcher.LONGEST_PATH} bytes at most"
        )
    try:
        os.mkdir(os.path.dirname(address), 0o700)
    except FileExistsError:
        pass
    try:
        must_be_guarded(os.path.dirname(address))
    except OSError as problem:
        raise LetterError(f"{os.path.dirname(address)}: {problem.strerror}") from None
    if not _lock(address):
        raise LetterError(f"another process serves at {address}")
    _remove_what_a_killed_one_left(address)
    return _listening(batches, address, authkey)


def _lock(path: str) -> bool:
    """Lock the address until the process ends, so that only one process replaces a socket there."""
    import fcntl

    descriptor = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return False
    return True


def _listening(batches: Batches, address: Address | None, authkey: bytes) -> BatchServer:
    try:
        return BatchServer(batches, address, authkey)
    except (OSError, OverflowError) as problem:
        raise LetterError(f"cannot listen at {address}: {getattr(problem, 'strerror', None) or problem}") from None


def _remove_abandoned(directory: str) -> None:
    """Remove the sockets of servers that were killed."""
    for name in os.listdir(directory):
        path = os.path.join(directory, name)
        try:
            # A new socket may be bound, and not listen yet.
            if name.startswith(_PRIVATE) and time.time() - os.lstat(path).st_mtime > _ABANDONED:
                _remove_what_a_killed_one_left(path)
        except (LetterError, OSError):
            pass  # it is in use, or another process has just removed it


def _remove_what_a_killed_one_left(path: str) -> None:
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise LetterError(f"{path} exists and is not a socket: remove it, or choose another path")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(1.0)
        try:
            sock.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except OSError:
            pass  # its backlog is full, so a process listens
    raise LetterError(f"another process serves at {path}")


# The command line.


def address_of(text: str) -> Address:
    """The address in ``--manager``: a path, ``host:port``, or a Windows pipe."""
    host, separator, port = text.rpartition(":")
    if separator and port.isdigit() and os.sep not in text:
        return host.strip("[]"), int(port)
    return text if text.startswith("\\\\") else os.path.abspath(text)


def authkey_of(path: str | None) -> bytes:
    """The content of ``--authkey-file``, without surrounding white space."""
    if not path:
        raise LetterError("--authkey-file is required with --manager: a file with the secret that its clients use too")
    return daemon.read_secret("--authkey-file", path)


def _parsed(text: str) -> Address:
    place = json.loads(text)
    return tuple(place) if isinstance(place, list) else place
