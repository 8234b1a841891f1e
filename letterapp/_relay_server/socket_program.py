"""``python -m letterapp relay``: a relay as a program.

Responsible for: its options, its path in the file system, its signals, its messages. Not responsible for: what a relay
does (`socket_server`), starting one for clients (`launcher`).

A relay that is run separately (by systemd, in a container) serves until SIGTERM or SIGINT, and then drains. A relay
that was started for clients is a detached daemon, and exits after its last client. It survives a signal to the whole
process group or service: that is meant for the application, whose last events are still to arrive.
"""

from __future__ import annotations

import _socket
import fcntl
import json
import os
import signal
import stat
import sys
import time

from .._client import settings_of
from .._config import Settings
from .._path_trust import must_be_guarded, must_be_ours
from .._relay import launcher, protocol
from .._runtime.clock import monotonic
from ..errors import LetterError
from . import daemon, endpoint
from .socket_server import RelayServer

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import Any

BACKLOG = 512  # connections that the system accepts while the relay is busy
GROUP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
AFTER_SIGTERM = 30.0  # seconds that a relay which was started for clients waits for them after SIGTERM or SIGINT
_ABANDONED = 2.0  # seconds that a relay that holds the lock may be without a socket
_LOCK_FLAGS = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
_BLINK = 0.02  # seconds between two checks for a relay that another process has just started


def relay(options: argparse.Namespace) -> int:
    """Run a relay, or print the status of relays. Returns the exit status."""
    try:
        if options.status:
            return _show_status(options)
        if options.for_clients:
            given = sys.stdin.readline()
            if not given:
                return 1  # the starter has ended
            settings = settings_of(**json.loads(given))
            del given  # contains the key
            daemon.detach()
            for number in (*GROUP_SIGNALS, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)  # until there is a server that handles them
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        else:
            settings = _settings_of(options)
        path = os.path.abspath(options.socket)
        return _Program(settings, path, options.group, options.for_clients, options.metrics).run()
    except LetterError as problem:
        _log(str(problem))
    except OSError as problem:
        _log(f"{problem.filename or options.socket or 'relay'}: {problem.strerror or problem}")
    return 1


def _settings_of(options: argparse.Namespace) -> Settings:
    if not options.socket:
        raise LetterError("--socket is required: the path of the socket that clients connect to")
    if len(os.fsencode(os.path.abspath(options.socket))) > launcher.LONGEST_PATH:
        raise LetterError(f"--socket is too long for a socket's path: {launcher.LONGEST_PATH} bytes at most")
    given: dict[str, Any] = {"spool": options.spool, "api_key": daemon.read_api_key(options.api_key_file)}
    if options.base_url:
        given["base_url"] = options.base_url
    return settings_of(**given)


class _Program:
    """One relay at one path."""

    def __init__(
        self,
        settings: Settings,
        path: str,
        group: str | None,
        for_clients: bool,
        metrics: tuple[str, int] | None = None,
    ) -> None:
        """``metrics``: host and port of its `Endpoint`."""
        self._settings = settings
        self._path = path
        self._group = group
        self._for_clients = for_clients
        self._metrics = metrics
        self._terminations = 0
        self._identity = (0, 0)
        self._lock = -1

    def run(self) -> int:
        os.umask(0o077)
        daemon.protect_memory()
        daemon.keep_stderr_from_blocking()
        signal.pthread_sigmask(signal.SIG_SETMASK, ())  # a thread that blocks signals may have started it
        self._prepare_directory()
        if not self._lock_place():
            if self._for_clients:
                _ready()  # another relay, which was started at the same time, serves
                return 0
            raise LetterError(f"another relay serves at {self._path}")
        metrics_listener = endpoint.listen(self._metrics)
        listener = self._listen()
        daemon.raise_descriptors()
        self._relay = RelayServer(self._settings, listener, self._for_clients, _log, self._path)
        for number in GROUP_SIGNALS:
            signal.signal(number, self._terminate)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGUSR1, lambda *_: self._relay.tell_status())
        endpoint.serve_metrics(metrics_listener, self._relay, _log)
        if self._for_clients:
            daemon.leave_starters_pipe(os.path.dirname(self._path))
            _ready()
        else:
            if os.geteuid() == 0:
                _log("it runs as root, which a relay does not need: run it as a separate user")
            _log(f"serving at {self._path} for {self._settings.base_url}")
        daemon.notify("READY=1")
        self._relay.serve(self._vacate)
        if not self._for_clients:
            status = self._relay.status()
            _log(
                f"{status['delivered']:,} delivered, {sum(status['lost'].values()):,} lost, {status['waiting']:,} left"
            )
        return 0

    def _terminate(self, *_: object) -> None:
        self._terminations += 1
        waits = self._for_clients and self._terminations == 1
        self._relay.leave(AFTER_SIGTERM if waits else 0.0)

    # The path, its directory and its lock.

    def _prepare_directory(self) -> None:
        directory = os.path.dirname(self._path)
        try:
            os.mkdir(directory, 0o700)
            is_new = True
        except FileExistsError:
            is_new = False
        if self._for_clients:
            must_be_ours(directory)
        else:
            must_be_guarded(directory)  # from now on no other user can replace files in it
        if is_new and self._group is not None:
            opened = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                os.fchown(opened, -1, _group_id(self._group))
                os.fchmod(opened, 0o750)
            finally:
                os.close(opened)

    def _lock_place(self) -> bool:
        """True if this process has locked the path; False if another relay serves there."""
        place = self._path + ".lock"
        self._lock = os.open(place, _LOCK_FLAGS, 0o600)
        began = monotonic()
        while monotonic() < began + launcher.STARTING:
            try:
                fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except OSError:
                if self._is_served():
                    return False
            time.sleep(_BLINK)  # it is about to serve, or about to leave
            if monotonic() > began + _ABANDONED and not os.path.lexists(self._path):
                # Its socket was removed, so no client finds it any more, and another relay may use the path.
                os.unlink(place)
                os.close(self._lock)
                self._lock = os.open(place, _LOCK_FLAGS, 0o600)
                began = monotonic()
        raise LetterError(f"another relay holds {self._path}.lock and does not answer: stop it, or choose another path")

    def _is_served(self) -> bool:
        try:
            sock, _ = launcher.ask(self._path, self._settings.api_key, self._settings.base_url, protocol.STATUS)
        except (_socket.timeout, BlockingIOError):
            return True  # it is stopped
        except protocol.Refused:
            return True
        except OSError:
            return False
        sock.close()
        return True

    def _listen(self) -> Any:
        try:
            if not stat.S_ISSOCK(os.lstat(self._path).st_mode):
                raise LetterError(f"{self._path} exists and is not a socket: remove it, or choose another path")
            os.unlink(self._path)  # left by a killed relay: the lock was free, so no process serves at it
        except FileNotFoundError:
            pass
        listener = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
        _bind(listener, self._path, None if self._group is None else _group_id(self._group))
        listener.listen(BACKLOG)
        listener.setblocking(False)
        self._identity = _identity(self._path)
        return listener

    def _vacate(self) -> None:
        """Free the path before draining, so that a relay for new clients does not have to wait for that."""
        daemon.notify("STOPPING=1")
        try:
            if _identity(self._path) == self._identity:
                os.unlink(self._path)
        except OSError:
            pass  # it was removed, or the directory is not accessible any more
        os.close(self._lock)


def _bind(listener: Any, path: str, group: int | None) -> None:
    """Create the socket, with its final permissions from the beginning."""
    before = os.umask(0o177 if group is None else 0o117)
    try:
        listener.bind(path)
    finally:
        os.umask(before)
    if group is not None:
        os.chown(path, -1, group, follow_symlinks=False)


def _identity(path: str) -> tuple[int, int]:
    status = os.lstat(path)
    return status.st_dev, status.st_ino


def _group_id(name: str) -> int:
    import grp

    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        if name.isdigit():
            return int(name)
        raise LetterError(f"--group: there is no group {name}") from None


def _ready() -> None:
    """Notify the process that started this one."""
    try:
        os.write(1, b"ready\n")
    except OSError:
        pass  # it has ended meanwhile; other clients may find this relay
    os.dup2(2, 1)


def _log(text: str) -> None:
    daemon.write_log("relay", text)


# Status.


def _show_status(options: argparse.Namespace) -> int:
    key = settings_of(api_key=daemon.read_api_key(options.api_key_file), base_url=options.base_url or "").api_key
    url = settings_of(api_key=key, base_url=options.base_url or "").base_url
    places = [os.path.abspath(options.socket)] if options.socket else launcher.places()
    found = 0
    for path in places:
        try:
            sock, answer = launcher.ask(path, key, url, protocol.STATUS)
        except OSError as problem:
            if options.socket:
                _log(f"{path}: {problem.strerror or problem}")
            continue
        except protocol.Refused as problem:
            if options.socket:
                _log(f"{path}: it {problem}")
            continue
        sock.close()
        found += 1
        print(json.dumps(answer["welcome"]))
    if not found and not options.socket:
        _log("no relay of this user uses this API key")
    return 0 if found else 1
