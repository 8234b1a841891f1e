"""Which directories, and which users at the other end of a socket, are trusted.

Responsible for: checking them. Not responsible for: the files in a directory (`spool`, `launcher`), and what is sent
over a socket (`_relay.client`).
"""

from __future__ import annotations

import _socket
import errno
import os
import stat
import struct
import sys

from ._runtime.signal_errors import reraise_signal_error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

ROOT = 0
_MOST_LINKS = 40  # symbolic links in a path: the kernel's limit
_UCRED = struct.Struct("iII")  # Linux: pid, uid, gid
_XUCRED = struct.Struct("II")  # the BSDs and macOS: a version, the uid, and more


def must_be_ours(directory: str) -> None:
    """Raise `OSError` unless ``directory`` belongs to this user, is closed to all others, and is not a link."""
    status = _status(directory)
    if status.st_uid != os.geteuid():
        said = f"it belongs to user {status.st_uid}, not to this user ({os.geteuid()}): choose another directory"
        raise OSError(errno.EPERM, said, directory)
    if status.st_mode & 0o077:
        said = f"its permissions are too open ({_mode(status)}), expected 0700: chmod it, or choose another directory"
        raise OSError(errno.EPERM, said, directory)


def must_be_guarded(directory: str, also: int | None = None) -> None:
    """Raise `OSError` if an untrusted user could create files in ``directory`` or replace it, or if it is a link.

    This user, root and the user ``also`` are trusted. Each directory on the path must belong to one of them, and must
    not be writable by all users unless it has the sticky bit, with which users cannot remove each other's files.
    """
    status = _status(directory)
    if status.st_mode & 0o022:
        said = f"its permissions are too open ({_mode(status)}), expected 0750 or stricter: chmod it"
        raise OSError(errno.EPERM, said, directory)
    must_be_reached_safely(directory, also)


def must_be_reached_safely(directory: str, also: int | None = None) -> None:
    """Raise `OSError` if an untrusted user could replace ``directory``, which must be an absolute path."""
    at, links = os.sep, 0
    _check_step(at, os.lstat(at), also)
    todo = directory.split(os.sep)[::-1]
    while todo:
        name = todo.pop()
        if name in ("", "."):
            continue
        if name == "..":
            at = os.path.dirname(at)
            continue
        path = os.path.join(at, name)
        status = os.lstat(path)
        _check_step(path, status, also)
        if not stat.S_ISLNK(status.st_mode):
            at = path
            continue
        links += 1
        if links > _MOST_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), directory)
        target = os.readlink(path)
        at = os.sep if target.startswith(os.sep) else at
        todo += target.split(os.sep)[::-1]


def _check_step(path: str, status: os.stat_result, also: int | None) -> None:
    if not is_trusted(status.st_uid, also):
        raise OSError(errno.EPERM, f"it belongs to user {status.st_uid}, who is not trusted and could replace it", path)
    if stat.S_ISDIR(status.st_mode) and status.st_mode & 0o002 and not status.st_mode & stat.S_ISVTX:
        raise OSError(errno.EPERM, "every user may write to it, and it has no sticky bit: chmod it to 755", path)


def is_trusted(user: int | None, also: int | None = None) -> bool:
    """True for this user, root and ``also``; also for None, which is the user where the system does not report it."""
    return user is None or user in (os.geteuid(), ROOT) or user == also


def peer_of(sock: Any) -> tuple[int | None, int | None]:
    """The process and the user at the other end of a Unix socket; None for what the system does not report."""
    try:
        if hasattr(_socket, "SO_PEERCRED"):
            process, user, _ = _UCRED.unpack(sock.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, _UCRED.size))
            return process, user
        if "bsd" in sys.platform or sys.platform == "darwin":
            return None, _XUCRED.unpack_from(sock.getsockopt(0, 1, 128))[1]  # SOL_LOCAL, LOCAL_PEERCRED
    except (OSError, struct.error) as problem:
        reraise_signal_error(problem)
    return None, None


def must_be_trusted(sock: Any, also: int | None = None) -> None:
    """Raise `OSError` unless the user at the other end of ``sock`` is trusted."""
    _, user = peer_of(sock)
    if not is_trusted(user, also):
        raise OSError(
            errno.EPERM, f"it is run by user {user}, who is neither this user nor root: set relay_user to trust it"
        )


def _status(directory: str) -> os.stat_result:
    status = os.lstat(directory)
    if not stat.S_ISDIR(status.st_mode):
        raise OSError(errno.ENOTDIR, "it must be a directory, and not a symbolic link", directory)
    return status


def _mode(status: os.stat_result) -> str:
    return f"{stat.S_IMODE(status.st_mode):04o}"
