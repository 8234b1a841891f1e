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
        raise OSError(errno.EPERM, f"it belongs to user {status.st_uid}: name a directory of this user's own")
    if status.st_mode & 0o077:
        raise OSError(errno.EPERM, "others may use it: chmod it to 700, or name a directory that is not there yet")


def must_be_guarded(directory: str) -> None:
    """`OSError` for a directory in which others than its owner could lay something, or that a link leads to."""
    if _status(directory).st_mode & 0o022:
        raise OSError(errno.EPERM, "others may write in it: chmod it to 750 or less")


def _status(directory: str) -> os.stat_result:
    status = os.lstat(directory)
    if not stat.S_ISDIR(status.st_mode):
        raise OSError(errno.ENOTDIR, "it must be a directory, and not a link to one")
    return status
