"""What a command prints, and how it is ended by Ctrl-C.

Responsible for: lines on stdout and stderr, whatever these are; a progress bar on a terminal; options that several
commands have. Not responsible for: what the lines say.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Iterator, NoReturn

from .._client import settings_of
from .._relay_server.daemon import read_api_key
from .._text import Secret

if TYPE_CHECKING:
    import argparse

    from .._config import Settings

_REDRAW = 0.1  # seconds between two states of the bar
_LINE = 10.0  # seconds between two lines of progress, where stderr is no terminal
_BAR = 24  # characters


def show(text: str = "") -> None:
    """Write a line to stdout. Never raises: the reader may have gone, the encoding may lack a character."""
    _write(sys.stdout, printable(text) + "\n")


def show_json(value: Any) -> None:
    """Write ``value`` to stdout as one line of JSON."""
    _write(sys.stdout, json.dumps(value) + "\n")


def complain(text: str) -> None:
    """Write a line to stderr. Never raises."""
    _write(sys.stderr, printable(text) + "\n")


def printable(text: str) -> str:
    """``text`` on one line, with control characters and changes of direction escaped as in JSON."""
    return (
        text if text.isprintable() else "".join(sign if sign.isprintable() else json.dumps(sign)[1:-1] for sign in text)
    )


def _write(stream: Any, text: str) -> None:
    if stream is None:
        return  # it was closed when Python started
    try:
        data = text.encode(getattr(stream, "encoding", None) or "utf-8", "backslashreplace")
        descriptor = stream.fileno()
        while data:
            data = data[os.write(descriptor, data) :]
    except (OSError, ValueError):
        pass


def count(number: int, what: str) -> str:
    """For example ``1 row`` or ``2,000 rows``."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


class Progress:
    """A bar on stderr if that is a terminal; elsewhere a line now and then.

    ``total``: the amount of work, or 0 if it is unknown. ``what``: what is counted, in the plural. ``before``: how many
    an earlier run has counted.
    """

    def __init__(self, total: int, what: str, before: int = 0) -> None:
        self._total = total
        self._before = before
        self._what = what
        self._is_terminal = sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._began = time.monotonic()
        self._next = self._began + (0.0 if self._is_terminal else _LINE)
        self._is_drawn = False

    def update(self, done: int, number: int, note: str = "") -> None:
        """Show that ``done`` of the total is done, and ``number`` events are; ``note`` is shown at the end."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + (_REDRAW if self._is_terminal else _LINE)
        seconds = max(now - self._began, 0.001)
        rate = (number - self._before) / seconds
        parts = [f"{number:,} {self._what}", f"{rate:,.0f}/s"]
        if self._total:
            share = min(1.0, done / self._total)
            parts.insert(0, f"{share:4.0%}")
            if self._is_terminal:
                parts.insert(0, f"[{'#' * int(share * _BAR):{_BAR}}]")
        if note:
            parts.append(note)
        text = "  ".join(parts)
        if self._is_terminal:
            self._is_drawn = True
            _write(sys.stderr, f"\r\x1b[K{printable(text)[: shutil.get_terminal_size().columns - 1]}")
        else:
            complain(text)

    def clear(self) -> None:
        """Remove the bar, so that a line can be written."""
        if self._is_drawn:
            self._is_drawn = False
            _write(sys.stderr, "\r\x1b[K")

    def say(self, text: str) -> None:
        """Write a line to stderr, above the bar."""
        self.clear()
        complain(text)
        if self._is_terminal:
            self._next = 0.0


class Interrupt:
    """Ctrl-C, which has to wait while something is being recorded. Used by the main thread."""

    def __init__(self) -> None:
        self._waits = False
        self._came = False

    def install(self) -> None:
        """Replace the handler of SIGINT."""
        signal.signal(signal.SIGINT, self._handle)

    def _handle(self, *_: object) -> None:
        if not self._waits:
            raise KeyboardInterrupt
        self._came = True

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Raise `KeyboardInterrupt` at the end, and not inside, of the block."""
        self._waits = True
        try:
            yield
        finally:
            self._waits = False
        if self._came:
            self._came = False
            raise KeyboardInterrupt


def end_by_ctrl_c() -> NoReturn:
    """End this process by SIGINT, as a shell expects that stops its loop then."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGINT)
    sys.exit(130)  # Windows


# Options of several commands.


def seconds(text: str) -> float:
    """For `argparse`: a time that is more than nothing, and ends."""
    number = float(text)
    if not 0 < number < 1e6:
        raise ValueError
    return number


def add_api_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--api-key-file", metavar="FILE", help="file with the API key (default: the variable LETTER_API_KEY)"
    )
    parser.add_argument(
        "--base-url", metavar="URL", help="URL of the API (default: the variable LETTER_BASE_URL, else letter.app)"
    )


def settings_from(options: argparse.Namespace, **more: Any) -> Settings:
    """The settings that the options of `add_api_options` ask for. Raises `LetterError`."""
    return settings_of(**api_options(options), **more)


def api_options(options: argparse.Namespace) -> dict[str, Any]:
    """The same as arguments for `Letter`. Raises `LetterError`."""
    key: Secret | None = read_api_key(options.api_key_file)
    given: dict[str, Any] = {"api_key": key}
    if options.base_url:
        given["base_url"] = options.base_url
    return given
