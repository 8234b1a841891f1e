"""``python -m letterapp spool DIR``: what waits in a spool, and sending it.

Responsible for: its arguments, what it prints, how long it tries to send. Not responsible for: reading the files
(`_storage.spool_view`), delivering events (the client).
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from .._client import Letter
from .._storage.spool import Spool
from .._storage.spool_header import NAME_OF_KEY
from .._storage.spool_view import SpoolFile, State, look
from ..errors import LetterError
from . import console

if TYPE_CHECKING:
    import argparse

_ROOM = 16_777_216  # bytes beyond the files that are there, for the file of the process that sends
_LOOK = 0.5  # seconds between two updates of the progress
_NAMES = 5  # the most frequent events that are shown

_EXPLAINED = {
    State.UNFINISHED: "being made, or left by a process that was killed while it made it: it has no events, and the "
    "next process removes it",
    State.EMPTY: "of an ended process, and empty: the next process uses or removes it",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", metavar="DIR", help="the directory of spool=DIR")
    parser.add_argument("--send", action="store_true", help="deliver now what ended processes have left")
    parser.add_argument(
        "--timeout", type=console.seconds, default=60.0, metavar="SECONDS",
        help="with --send: give up when nothing was delivered for so long (default 60)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print a line of JSON")
    console.add_api_options(parser)


def run(options: argparse.Namespace) -> int:
    """Returns 0; 1 if the directory cannot be read, a file is damaged, or with --send if events still wait."""
    directory = os.path.abspath(options.directory)
    try:
        files = [Seen(file) for file in look(directory)]
    except OSError as problem:
        console.complain(f"spool: {directory} cannot be read: {problem.strerror or problem}")
        return 1
    if options.send:
        try:
            return _send(options, directory, files)
        except LetterError as problem:
            console.complain(f"spool: {problem}")
            return 1
    if options.json:
        console.show_json(as_json(directory, files))
    else:
        _show(directory, files)
    return int(any(seen.file.state is State.DAMAGED for seen in files))


class Seen:
    """A file, and what its events are about. The events themselves are not kept."""

    def __init__(self, file: SpoolFile) -> None:
        self.file = file
        self.events = len(file.events)
        self.since = ""  # the timestamp of its oldest event
        self.names: Counter[str] = Counter()
        for event in file.events:
            self._note(event)
        file.events = []

    def _note(self, event: bytes) -> None:
        try:
            item = json.loads(event)
            name, when = item.get("event") or item.get("type"), item.get("timestamp")
        except (ValueError, AttributeError, RecursionError):
            name, when = "no event", None
        self.names[name if isinstance(name, str) else "no event"] += 1
        if isinstance(when, str) and when[4:5] == "-" and (not self.since or when < self.since):
            self.since = when

    @property
    def waits(self) -> bool:
        """True if it has events, and no process that runs will send them by itself."""
        return self.events > 0 and not self.file.pid and self.file.state in (State.LEFT, State.DAMAGED)

    def as_json(self) -> dict[str, Any]:
        file = self.file
        return {
            "file": os.path.basename(file.path),
            "state": file.state.value,
            "key": file.key,
            "pid": file.pid or None,
            "events": self.events,
            "since": self.since or None,
            "names": dict(self.names.most_common()),
            "unreadable": file.unreadable,
            "problem": file.problem or None,
            "bytes": file.size,
            "written": _moment(file.written),
            "changes": file.changes,
        }


def as_json(directory: str, files: list[Seen]) -> dict[str, Any]:
    """What ``--json`` prints."""
    return {
        "directory": directory,
        "waiting": sum(seen.events for seen in files),
        "left": sum(seen.events for seen in files if seen.waits),
        "files": [seen.as_json() for seen in files],
    }


def _moment(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


# What it prints.


def _show(directory: str, files: list[Seen]) -> None:
    waiting = sum(seen.events for seen in files)
    size = sum(seen.file.size for seen in files)
    console.show(
        f"{directory}: {console.count(len(files), 'file')} of {size:,} bytes, {console.count(waiting, 'event')} waiting"
    )
    for seen in files:
        console.show()
        for line in _described(seen):
            console.show(line)
    left = sum(seen.events for seen in files if seen.waits)
    if left:
        keys = sorted({seen.file.key for seen in files if seen.waits})
        console.show()
        console.show(
            f"{console.count(left, 'event')} of ended processes {'waits' if left == 1 else 'wait'}. The next process "
            f"with the same directory and API key sends them. To send them now, set LETTER_API_KEY and run"
        )
        console.show(f"    python -m letterapp spool {directory} --send")
        if len(keys) > 1:
            console.show(f"once with each of the {len(keys)} keys. Their fingerprints: {', '.join(keys)}")


def _described(seen: Seen) -> list[str]:
    file = seen.file
    lines = [os.path.basename(file.path)]
    if seen.events:
        about = "about " if file.changes else ""
        since = f", since {_short(seen.since)}" if seen.since else ""
        lines.append(f"    {about}{console.count(seen.events, 'event')} of key {file.key}{since}")
        common = [f"{number:,} {name}" for name, number in seen.names.most_common(_NAMES)]
        more = len(seen.names) - len(common)
        lines.append(f"    {', '.join(common)}{f', {more:,} others' if more > 0 else ''}")
    lines.append(f"    {_explained(seen)}")
    return [console.printable(line)[:300] for line in lines]


def _short(when: str) -> str:
    return when[:19].replace("T", " ") + (" UTC" if when.endswith("Z") else "")


def _explained(seen: Seen) -> str:
    file = seen.file
    if file.state is State.IN_USE:
        who = f"process {file.pid} runs{_program(file.pid)}" if file.pid else "its process runs"
        return f"{who} and sends them itself" if seen.events else f"{who}: nothing waits"
    if file.state is State.LEFT:
        return f"its process has ended; last written {_short(_moment(file.written))}"
    if file.state is State.UNTRUSTED:
        return f"no process touches it: {file.problem}"
    if file.state is State.DAMAGED:
        return _damage(seen)
    return _EXPLAINED[file.state]


def _damage(seen: Seen) -> str:
    file = seen.file
    lost = f", and at least {console.count(file.unreadable, 'event')} cannot" if file.unreadable else ""
    readable = f"; {console.count(seen.events, 'event')} can be read{lost}" if seen.events or lost else ""
    if file.path.endswith(".damaged"):
        then = "It was set aside and reported, and no process uses it: look at it, or remove it"
    else:
        then = "The next process with that key reports it and sets it aside as .damaged"
    return f"damaged: {file.problem}{readable}. {then}"


def _program(pid: int) -> str:
    """The command line of a process, where the system shows it."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = os.fsdecode(file.read(4096)).split("\0")
    except OSError:
        return ""
    text = " ".join(words).strip()
    return f" ({text[:60]}{'...' if len(text) > 60 else ''})" if text else ""


# Sending.


def _send(options: argparse.Namespace, directory: str, files: list[Seen]) -> int:
    given = console.api_options(options)
    settings = console.settings_from(options)  # checks the key and the address
    key = sha256(settings.api_key.encode()).hexdigest()[:NAME_OF_KEY]
    mine = [seen for seen in files if seen.waits and seen.file.key == key and not seen.file.path.endswith(".damaged")]
    total = sum(seen.events for seen in mine)
    if not total:
        others = sorted({seen.file.key for seen in files if seen.waits and seen.file.key != key})
        rest = f" (fingerprint {key}); there are some of {', '.join(others)}" if others else ""
        console.show(f"nothing to send: no ended process has left events of this API key{rest}")
        return 0
    Spool.most_damaged = sys.maxsize  # it must not remove what somebody may want to look at
    sender = Sending(total, options.timeout)
    limit = sum(seen.file.size for seen in files) + _ROOM
    letter = Letter(
        **given, spool=directory, spool_max_bytes=max(limit, 268_435_456), on_error=sender.note, exit_timeout=1.0
    )
    try:
        is_done = sender.wait(letter)
    except KeyboardInterrupt:
        sender.progress.clear()
        letter.close(0)
        console.complain("spool: stopped; what was not delivered stays in the spool")
        console.end_by_ctrl_c()
    letter.close(0)
    counts = letter.stats()
    return sender.report(counts, is_done, options.json)


class Sending:
    """Waits for the client, shows its progress, and decides when to give up."""

    def __init__(self, total: int, timeout: float) -> None:
        self.progress = console.Progress(total, "events delivered")
        self._total = total
        self._timeout = timeout
        self._refusal = ""  # why the API refuses everything

    def note(self, error: LetterError) -> None:
        """The client's `on_error`."""
        self.progress.say(f"spool: {error}")
        if error.cause == "degraded" and error.status is not None:
            self._refusal = str(error)

    def wait(self, letter: Letter) -> bool:
        """True if everything is settled; False if it is given up."""
        settled_before = -1
        deadline = 0.0
        while not self._refusal:
            is_done = letter.flush(_LOOK)
            counts = letter.stats()
            settled = counts["delivered"] + sum(counts["lost"].values())
            retries = "the API does not answer; trying again" if counts["retried"] and not counts["delivered"] else ""
            self.progress.update(settled, counts["delivered"], retries)
            if is_done:
                return True
            now = time.monotonic()
            if settled != settled_before:
                settled_before, deadline = settled, now + self._timeout
            elif now >= deadline:
                return False
        return False

    def report(self, counts: dict[str, Any], is_done: bool, as_json: bool) -> int:
        self.progress.clear()
        lost = sum(counts["lost"].values())
        waiting = 0 if is_done else max(counts["waiting"], self._total - counts["delivered"] - lost)
        if as_json:
            console.show_json({"delivered": counts["delivered"], "lost": counts["lost"], "waiting": waiting})
        else:
            gone = f", {lost:,} lost (see above)" if lost else ""
            rest = f", {waiting:,} still in the spool" if waiting else ""
            console.show(f"{console.count(counts['delivered'], 'event')} delivered{gone}{rest}")
        if waiting and not self._refusal:
            console.complain(f"spool: nothing was delivered for {self._timeout:g} s: see `python -m letterapp doctor`")
        return int(bool(waiting or lost))
