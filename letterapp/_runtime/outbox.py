"""Where a test run keeps requests instead of sending them.

Responsible for: whether this process belongs to a test run, and storing a request for it. Not responsible for: starting
a test run and reading what was stored (`_testing`), which clients are concerned (`Settings.captured`).

A test run is a directory, which each process finds in an environment variable. So the events of forked, spawned and
other processes of a test are all there, without a thread or a socket in the process of the test. A process reads the
variable once: a test that changes `os.environ` does not make its process send.

The file `current` in it contains the name of the capture that is active, or nothing. It is read for each request: the
workers of a pool, and the children of a fork server, may have been started in an earlier test.
"""

from __future__ import annotations

import errno
import os

VARIABLE = "LETTER_TEST_OUTBOX"

directory: str | None = os.environ.get(VARIABLE) or None
_BINARY = getattr(os, "O_BINARY", 0)


def keep(kind: str, body: bytes) -> bool:
    """Store a request to ``/v1/{kind}``; False if no capture is active. Raises `OSError` if it cannot be written."""
    place = directory
    if place is None:
        return False
    try:
        capture = _read(os.path.join(place, "current"))
        if not capture:
            return False
        descriptor = os.open(os.path.join(place, capture, "requests"), os.O_WRONLY | os.O_APPEND | _BINARY)
    except FileNotFoundError:
        return False  # the capture, or the whole run, has ended
    try:
        # One system call, which appends a line as a whole. If the process is killed in it, the length is wrong, and the
        # next record begins on a new line.
        record = b"\n%s %d %s\n" % (kind.encode(), len(body), body)
        if os.write(descriptor, record) < len(record):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    finally:
        os.close(descriptor)
    return True


def _read(path: str) -> str:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return os.read(descriptor, 100).decode("ascii")
    finally:
        os.close(descriptor)
