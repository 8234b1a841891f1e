"""What others have left, or run, on this host: a spool, a relay, a manager.

Responsible for: their state. Not responsible for: reading a spool's files (`_storage.spool_view`), asking a relay
(`_relay.launcher`).
"""

from __future__ import annotations

import os
from hashlib import sha256
from typing import Any

from .._config import Settings
from .._path_trust import must_be_ours
from .._storage.spool import Spool
from .._storage.spool_header import NAME_OF_KEY
from .._storage.spool_view import State, look
from .._text import clean
from .._version import __version__
from ..errors import LetterError
from . import console
from .findings import Finding, failure, note, ok, said, warning

_REMOTE = ("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "fuse.sshfs", "afs", "ceph", "glusterfs", "fuse.glusterfs")
_COPY_ON_WRITE = ("btrfs", "zfs", "bcachefs")
_VOLATILE = ("tmpfs", "ramfs")


def spool(settings: Settings, has_key: bool) -> list[Finding]:
    """The directory, its file system, and what is in it."""
    directory = settings.spool or ""
    try:
        must_be_ours(directory)
    except FileNotFoundError:
        return _missing(directory)
    except OSError as problem:
        return [failure("spool", f"{directory}: {said(problem)}", "clients with this spool cannot be created")]
    found = _tried(settings, directory)
    if found:
        return found
    return [*_file_system(settings, directory), *_contents(settings, directory, has_key)]


def _missing(directory: str) -> list[Finding]:
    parent = os.path.dirname(directory)
    if os.path.isdir(parent) and os.access(parent, os.W_OK | os.X_OK):
        return [ok("spool", f"{directory} does not exist yet; the first client creates it")]
    return [failure("spool", f"{directory} cannot be created", f"create {parent}, writable for this user")]


def _tried(settings: Settings, directory: str) -> list[Finding]:
    """A failure if no file can be created and locked there."""
    problems: list[LetterError] = []
    try:
        Spool(settings, problems.append)
    except LetterError as problem:
        return [failure("spool", clean(str(problem)), "clients with this spool cannot be created")]
    return []


def _file_system(settings: Settings, directory: str) -> list[Finding]:
    kind = _kind_of_file_system(directory)
    found: list[Finding] = []
    if kind in _REMOTE:
        found.append(warning("spool", f"{directory} is on {kind}", "use a local disk: the files are locked and mapped"))
    elif kind in _COPY_ON_WRITE:
        found.append(
            warning("spool", f"{directory} is on {kind}, where space cannot be reserved", "use ext4, XFS or tmpfs")
        )
    elif kind in _VOLATILE:
        found.append(note("spool", f"{directory} is on {kind}: events do not survive a reboot"))
    try:
        status = os.statvfs(directory)
    except (OSError, AttributeError):
        return found
    free = status.f_bavail * status.f_frsize
    if free < settings.spool_max_bytes:
        text = f"{directory} has {free:,} bytes free, and may grow to spool_max_bytes={settings.spool_max_bytes:,}"
        found.append(warning("spool", text, "make room, or lower spool_max_bytes"))
    return found


def _kind_of_file_system(directory: str) -> str:
    """Its name, as Linux lists it; empty elsewhere."""
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as mounts:
            lines = [line.split() for line in mounts]
    except OSError:
        return ""
    path = os.path.realpath(directory)
    best, kind = "", ""
    for words in lines:
        place = (
            words[4].encode("utf-8", "surrogateescape").decode("unicode_escape", "replace")
            if "\\" in words[4]
            else words[4]
        )
        inside = path == place or path.startswith(place.rstrip("/") + "/")
        if inside and len(place) >= len(best) and "-" in words:
            best, kind = place, words[words.index("-") + 1]
    return kind


def _contents(settings: Settings, directory: str, has_key: bool) -> list[Finding]:
    files = list(look(directory))
    key = sha256(settings.api_key.encode()).hexdigest()[:NAME_OF_KEY] if has_key else ""
    running = [file for file in files if file.state is State.IN_USE]
    waiting = sum(len(file.events) for file in running)
    text = f"{directory}: {len(running)} of {len(files)} files in use, {waiting:,} events waiting there"
    found = [ok("spool", text)]
    left = [file for file in files if file.events and file.state is State.LEFT]
    mine = sum(len(file.events) for file in left if file.key == key)
    others = sum(len(file.events) for file in left if file.key != key)
    show = f"see `python -m letterapp spool {directory}`"
    if mine:
        text = f"{mine:,} events of ended processes wait for the next process"
        found.append(note("spool", text, f"or run `python -m letterapp spool {directory} --send`"))
    if others:
        text = f"{others:,} events of {'other API keys' if has_key else 'ended processes'} wait"
        found.append(
            warning("spool", text, f"only a process with their key can send them: {show}")
            if has_key
            else note("spool", text, show)
        )
    for state, what in ((State.DAMAGED, "cannot be read"), (State.UNTRUSTED, "no process touches")):
        count = sum(file.state is state for file in files)
        if count:
            found.append(warning("spool", f"{console.count(count, 'file')} that {what}", show))
    return found


# A relay and a manager.


def relay(settings: Settings) -> list[Finding]:
    """The relay at a path, or with ``relay=True`` those that clients of this user and key have started."""
    from .._relay import launcher, protocol

    try:
        launcher.check(settings)
        places = [launcher.place(settings)] if settings.relay is not True else launcher.places()
    except LetterError as problem:
        return [failure("relay", clean(str(problem)))]
    except OSError as problem:
        where = problem.filename or settings.relay
        return [
            failure(
                "relay", f"{where}: {said(problem)}", "the directory must exist, and be writable for trusted users only"
            )
        ]
    found: list[Finding] = []
    for path in places:
        try:
            sock, answer = launcher.ask(path, settings.api_key, settings.base_url, protocol.STATUS, settings.relay_user)
        except OSError as problem:
            if settings.relay is not True:
                advice = f"start it: python -m letterapp relay --socket {path}; until then, processes send themselves"
                found.append(failure("relay", f"{path}: {said(problem)}", advice))
        except protocol.Refused as problem:
            if settings.relay is not True:
                found.append(
                    failure("relay", clean(f"the relay at {path} {problem}"), "give both the same key and base_url")
                )
        else:
            sock.close()
            found += _judged("relay", path, answer["welcome"])
    return found or [ok("relay", "no relay of this user and API key runs; the first client with relay=True starts one")]


def manager(settings: Settings, address: str, authkey_file: str | None) -> list[Finding]:
    """The server of a `SenderManager` that runs as a service."""
    from .._relay_server.manager_program import address_of, ask_status, authkey_of

    try:
        status = ask_status(settings, address_of(address), authkey_of(authkey_file))
    except LetterError as problem:
        return [failure("manager", clean(str(problem)))]
    except OSError as problem:
        return [
            failure("manager", f"{address}: {said(problem)}", "start it: python -m letterapp relay --manager ADDRESS")
        ]
    return _judged("manager", address, status)


def _judged(name: str, place: str, status: Any) -> list[Finding]:
    """What the status of a relay or a manager says."""
    lost = sum(status["lost"].values())
    counts = f"{status['delivered']:,} delivered, {status['waiting']:,} waiting, {lost:,} lost"
    text = f"process {status['pid']} serves at {place}: {counts}"
    found = [ok(name, text)] if not lost else [warning(name, text, f"its log and on_error say why: {status['lost']}")]
    if status["version"] != __version__:
        found.append(note(name, f"it runs letterapp {status['version']}, and this is {__version__}", "restart it"))
    return found
