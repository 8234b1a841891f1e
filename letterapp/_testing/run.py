"""The directory of a test run, in which clients keep what they would send, and how it is read.

Responsible for: the directory's layout, reading requests in order. Not responsible for: making clients use it
(`client`), the API's rules (`_api_rules`), what is expected (`matching`). It shares nothing with the code that writes
the files, so that the two cannot share a bug.

    RUN/current     the name of the active capture, or nothing
    RUN/N/requests  what came in one capture: "batch", or "send", the body's length and the body; each on a line
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from typing import Any, Dict, List

from .._api_rules import batch_problem, mail_problem, parsed
from .matching import seconds_of

_SLACK = 1.0  # seconds by which the clock of an event may differ from that of the test


class Run:
    """The directory of a test run. It belongs to the process that created it; others write to it."""

    def __init__(self) -> None:
        self.path = tempfile.mkdtemp(prefix="letterapp-tests-")  # only this user may read it
        self.pid = os.getpid()
        self._captures = 0
        self.set_current("")

    def new_capture(self) -> str:
        """The name of a new capture, which is empty and not active."""
        self._captures += 1
        name = str(self._captures)
        os.mkdir(self.capture_path(name), 0o700)
        open(os.path.join(self.capture_path(name), "requests"), "xb").close()
        return name

    def set_current(self, name: str) -> None:
        """Make the capture ``name`` the active one; an empty name: there is none."""
        path = os.path.join(self.path, "current")
        with open(f"{path}.new", "w", encoding="ascii") as file:
            file.write(name)
        self.current = name
        os.replace(f"{path}.new", path)  # another process reads the old name or the new one, and nothing else

    def capture_path(self, name: str) -> str:
        return os.path.join(self.path, name)

    def remove_capture(self, name: str) -> None:
        """Remove the capture ``name``: what other processes still send to it is refused."""
        shutil.rmtree(self.capture_path(name), ignore_errors=True)

    def is_usable(self) -> bool:
        """True in the process that created it, until it is removed."""
        return self.pid == os.getpid() and os.path.isdir(self.path)

    def remove(self) -> None:
        """Remove everything; in a forked child nothing."""
        if self.pid == os.getpid():
            shutil.rmtree(self.path, ignore_errors=True)


class Received:
    """What was kept in a capture's directory. Used by one thread at a time."""

    def __init__(self, path: str) -> None:
        self._path = os.path.join(path, "requests")
        self._began = time.time()
        self._read = 0  # bytes
        self._ids: set[str] = set()
        self.events: List[Dict[str, Any]] = []  # one for each messageId, as the API keeps them
        self.mails: List[Dict[str, Any]] = []

    def update(self) -> None:
        """Read what has come since the last call. Raises `AssertionError` if the API would refuse it."""
        try:
            with open(self._path, "rb") as file:
                file.seek(self._read)
                data = file.read()
        except FileNotFoundError:
            return  # the capture is over
        data = data[: data.rfind(b"\n") + 1]
        self._read += len(data)
        for line in data.split(b"\n"):
            kind, _, rest = line.partition(b" ")
            length, _, body = rest.partition(b" ")
            if body and length == b"%d" % len(body):  # otherwise its process was killed
                self._add(kind.decode("ascii"), body)

    def _add(self, kind: str, data: bytes) -> None:
        try:
            body: Any = parsed(data)
            problem = batch_problem(body) if kind == "batch" else mail_problem(body)
            said = problem and problem.message
        except ValueError as error:
            said = f"it is not JSON: {error}"
        if said:
            raise AssertionError(f"the client has made a request that the API refuses: {said}: {data.decode()}")
        if kind == "send":
            self.mails.append(body)
            return
        for item in body["batch"]:
            if item["messageId"] not in self._ids:
                self._ids.add(item["messageId"])
                self.events.append(item)

    def clear(self) -> None:
        """Forget what was read so far."""
        self.events, self.mails = [], []

    def is_now(self, timestamp: str) -> bool:
        """True if ``timestamp`` is the time of a call since this object was created, and not one that was chosen."""
        moment = seconds_of(timestamp)
        return moment is not None and self._began - _SLACK <= moment <= time.time() + _SLACK
