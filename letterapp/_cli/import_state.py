"""What an import keeps on disk: how far it is, and the rows that were refused.

Responsible for: both files, one import of a file at a time, whether an earlier run can be continued. Not responsible
for: what is sent.

The state is written after the API's answer. If the process is killed between the two, the rows are sent again, with
the same ids.
"""

from __future__ import annotations

import errno
import json
import os
from typing import Any

from ..errors import LetterError
from .import_rows import Row

try:
    import fcntl
except ImportError:
    fcntl = None  # type: ignore[assignment]  # Windows: nothing prevents two imports of one file there

_VERSION = 1
_LONGEST = 65_536  # bytes of the file
_FIRST = b'{"line": '  # how each line of the refused rows begins


class Progress:
    """How far an import is."""

    def __init__(self, offset: int = 0, line: int = 0, sent: int = 0, refused: int = 0, refused_size: int = 0) -> None:
        self.offset = offset  # in bytes of the (uncompressed) file; all rows before it are settled
        self.line = line
        self.sent = sent
        self.refused = refused
        self.refused_size = refused_size  # bytes of the file of refused rows


class StateFile:
    """The file ``path``, locked until `close`; without a path nothing is kept.

    ``identity``: what has to be the same for a run to be continued.
    """

    def __init__(self, path: str | None, identity: dict[str, Any]) -> None:
        """Raises `LetterError` if another process imports the same file, `OSError` if the file cannot be written."""
        self._path = path
        self._identity = identity
        self._descriptor = -1
        if path is None:
            return
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
        self._descriptor = os.open(path, flags, 0o600)
        if fcntl is not None:
            try:
                fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as problem:
                os.close(self._descriptor)
                if problem.errno not in (errno.EACCES, errno.EAGAIN):
                    raise
                raise LetterError(f"another process imports this file: {path} is locked") from None

    def read(self) -> tuple[Progress, str]:
        """How far the last run came, and why it cannot be continued if it cannot, or else an empty text."""
        if self._descriptor < 0:
            return Progress(), ""
        data = os.read(self._descriptor, _LONGEST)
        if not data:
            return Progress(), ""
        try:
            state = json.loads(data)
            if state["version"] != _VERSION:
                raise ValueError
            progress = Progress(**{name: int(value) for name, value in state["progress"].items()})
        except (ValueError, KeyError, TypeError, AttributeError):
            return Progress(), f"{self._path} is not the state of an import"
        for name, value in self._identity.items():
            if state.get("identity", {}).get(name) != value:
                return Progress(), f"the last run had another {name}"
        return progress, ""

    def write(self, progress: Progress) -> None:
        """Raises `OSError`."""
        if self._descriptor < 0:
            return
        state = {"version": _VERSION, "progress": progress.__dict__, "identity": self._identity}
        data = json.dumps(state).encode() + b"\n"
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        os.write(self._descriptor, data)  # one call: a killed process has made all of it, or nothing
        os.ftruncate(self._descriptor, len(data))

    def close(self, remove: bool) -> None:
        if self._descriptor < 0 or self._path is None:
            return
        if remove:
            try:
                os.unlink(self._path)
            except OSError:
                pass
        os.close(self._descriptor)
        self._descriptor = -1


class RefusedFile:
    """The rows that were refused, as lines of JSON. It is created with the first one."""

    def __init__(self, path: str, size: int) -> None:
        """``size``: bytes that an earlier run has written, whose rows are settled.

        Raises `OSError`, or `LetterError` if there is a file that no import has written.
        """
        self.path = path
        self.size = size
        self._file: Any = None
        if size:
            self._open()
        elif os.path.lexists(path):
            self._must_be_replaceable()
            os.unlink(path)

    def _must_be_replaceable(self) -> None:
        with open(self.path, "rb") as file:
            first = file.readline(_LONGEST)
        if first and not first.startswith(_FIRST):
            raise LetterError(f"{self.path} exists, and no import has written it: choose another file with --refused")

    def add(self, row: Row, reason: str) -> None:
        if self._file is None:
            self._open()
        line = json.dumps({"line": row.line, "reason": reason, "row": row.text}).encode() + b"\n"
        self._file.write(line)
        self.size += len(line)

    def _open(self) -> None:
        flags = os.O_WRONLY | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
        self._file = os.fdopen(os.open(self.path, flags, 0o600), "wb")
        self._file.truncate(self.size)  # what was written after the last state will be written again
        self._file.seek(self.size)

    def flush(self) -> None:
        if self._file is not None:
            self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
