"""Directories that are this user's alone.

Lives here: which directory is believed. Never here: what is laid there (`_spool`, `_launch`).
"""

from __future__ import annotations

import errno
import os
import stat


def must_be_ours(directory: str) -> None:
    """`OSError` for a directory in which others could act, or that a link leads to."""
    status = _status(directory)
    if status.st_uid != os.geteuid():
        said = f"it belongs to user {status.st_uid}: name a directory of this user's own"
        raise OSError(errno.EPERM, said, directory)
    if status.st_mode & 0o077:
        said = "others may use it: chmod it to 700, or name a directory that is not there yet"
        raise OSError(errno.EPERM, said, directory)


def must_be_guarded(directory: str) -> None:
    """`OSError` for a directory in which others than its owner could lay something, or that a link leads to."""
    if _status(directory).st_mode & 0o022:
        raise OSError(errno.EPERM, "others may write in it: chmod it to 750 or less", directory)


def _status(directory: str) -> os.stat_result:
    status = os.lstat(directory)
    if not stat.S_ISDIR(status.st_mode):
        raise OSError(errno.ENOTDIR, "it must be a directory, and not a link to one", directory)
    return status
