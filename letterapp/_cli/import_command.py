"""``python -m letterapp import FILE``: events of the past, from lines of JSON or CSV.

Responsible for: its arguments, the order of its steps, what it prints. Not responsible for: reading (`import_rows`),
events (`import_events`), sending (`import_sender`), what is kept on disk (`import_state`).
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Iterator, NoReturn

from .._storage.spool_header import NAME_OF_KEY
from ..errors import LetterError
from . import console
from .import_events import TYPES, Converter, Event, Refused, check_columns
from .import_rows import CsvFormat, Lines, Row, Source, format_of, json_rows
from .import_sender import Batch, Refusals, Sender, Stopped
from .import_state import Progress, RefusedFile, StateFile

if TYPE_CHECKING:
    import argparse

_SHOWN = 10  # refused rows that are printed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("file", metavar="FILE", help="lines of JSON or CSV, perhaps compressed by gzip; - is stdin")
    add("--format", choices=("jsonl", "csv"), help="default: by the file's name, else by its first character")
    add("--encoding", default="utf-8", metavar="NAME", help="default utf-8; Excel often writes cp1252")
    add("--delimiter", metavar="SIGN", help="of CSV; default: the one of , ; | and tab that is most in the header")
    add(
        "--types", default="", metavar="COLUMN=TYPE,...",
        help=f"types of a CSV file's columns: {', '.join(TYPES)} (default: string)",
    )  # fmt: skip
    add("--id-from", default="", metavar="FIELD,...", help="fields that identify a row (default: the whole row)")
    add("--now", action="store_true", help="a track without a timestamp happens now (default: it is refused)")
    add("--connections", type=int, default=1, metavar="N", help="requests at a time; above 1 the order changes")
    add("--dry-run", action="store_true", help="read and check all rows, send and write nothing")
    add("--state", metavar="FILE", help="where to keep how far it is (default: FILE.import-state)")
    add("--refused", metavar="FILE", help="where to write refused rows (default: FILE.refused.jsonl)")
    add("--restart", action="store_true", help="begin with the first row, whatever an earlier run has done")
    console.add_api_options(parser)


def run(options: argparse.Namespace) -> int:
    """Returns 0 if all rows were sent, 1 if some were refused or it had to stop, 2 if an option is wrong."""
    try:
        job = _Import(options)
    except (LetterError, OSError) as problem:
        console.complain(f"import: {_text(problem)}")
        return 2
    try:
        return job.check() if options.dry_run else job.run()
    except (LetterError, OSError) as problem:
        console.complain(f"import: {_text(problem)}")
        return 1
    except KeyboardInterrupt:
        job.progress.say("import: stopped")
        console.end_by_ctrl_c()
    finally:
        job.source.close()


def _text(problem: Exception) -> str:
    if isinstance(problem, OSError):
        where = f"{problem.filename}: " if problem.filename else ""
        return f"{where}{problem.strerror or problem}"
    return str(problem)


class _Import:
    """One import. The constructor opens and checks everything that can be checked before the first row."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._name = "stdin" if options.file == "-" else options.file
        self._is_file = os.path.isfile(options.file)  # and no pipe, beside which no file can be
        _check(options)
        types = _types(options.types)
        self.source = Source(options.file)
        self._lines = Lines(self.source, options.encoding)
        self._format = options.format or format_of(options.file, self.source)
        self._csv = CsvFormat(self._lines, options.delimiter) if self._format == "csv" else None
        columns = self._csv.columns if self._csv else None
        unknown = [name for name in types if columns is None or name not in columns]
        if unknown:
            raise LetterError(f"--types: there is no column {unknown[0]!r}" if columns else "--types is for CSV only")
        ids = tuple(name for name in options.id_from.split(",") if name)
        if columns is not None:
            check_columns(columns, ids, options.now)
        self._converter = Converter(columns, types, ids, options.now)
        self.progress = console.Progress(self.source.size, "rows")
        self._settled = Progress()
        self._interrupt = console.Interrupt()
        self._is_troubled = False  # requests are being tried again

    def _rows(self) -> Iterator[tuple[Row, Event | None, str]]:
        """Each row with its event, or with the reason why it is none."""
        rows = self._csv.rows(self._lines) if self._csv else json_rows(self._lines)
        try:
            for row in rows:
                if row.fields is None:
                    yield row, None, row.problem
                    continue
                try:
                    yield row, self._converter.event(row.fields), ""
                except Refused as problem:
                    yield row, None, str(problem)
        except (EOFError, OSError) as problem:  # of gzip
            raise LetterError(f"{self._name} cannot be read beyond line {self._lines.number:,}: {problem}") from None

    # Only checking.

    def check(self) -> int:
        refused = 0
        kinds: Counter[str] = Counter()
        times: list[str] = []
        for number, (row, event, reason) in enumerate(self._rows(), 1):
            if event is None:
                refused += 1
                self._say_refused(row, reason, refused)
            else:
                kinds[event.kind] += 1
                times = (
                    [min(times[0], event.timestamp), max(times[1], event.timestamp)]
                    if times
                    else ([event.timestamp] * 2 if event.timestamp else [])
                )
            self.progress.update(self.source.position(), number)
        self.progress.clear()
        self._say_more(refused)
        said = ", ".join(f"{number:,} {kind}" for kind, number in kinds.most_common()) or "no events"
        span = f", from {times[0]} to {times[1]}" if times else ""
        console.show(f"{said}{span}; {console.count(refused, 'row')} would be refused. Nothing was sent")
        return int(bool(refused))

    def _say_refused(self, row: Row, reason: str, number: int) -> None:
        if number <= _SHOWN:
            self.progress.say(f"import: line {row.line:,} is refused: {reason[:200]}")

    def _say_more(self, refused: int) -> None:
        if refused > _SHOWN:
            console.complain(f"import: and {refused - _SHOWN:,} more")

    # Sending.

    def run(self) -> int:
        settings = console.settings_from(self._options)
        self._open_files(sha256(settings.api_key.encode()).hexdigest()[:NAME_OF_KEY], settings.base_url)
        self._sender = Sender(settings, self._options.connections)
        self._interrupt.install()
        try:
            self._send_all()
        except KeyboardInterrupt:
            self._stop_cleanly()
        except BaseException as problem:
            self._finish_pending()
            self._close(is_complete=False)
            if not isinstance(problem, (LetterError, OSError)):
                raise
            self.progress.say(f"import: {_text(problem)}")
            self._say_how_to_continue()
            return 1
        self._close(is_complete=True)
        self.progress.clear()
        self._say_more(self._settled.refused)
        where = f" (see {self._refused.path})" if self._settled.refused else ""
        console.show(f"{console.count(self._settled.sent, 'row')} sent, {self._settled.refused:,} refused{where}")
        return int(bool(self._settled.refused))

    def _open_files(self, key: str, base_url: str) -> None:
        options = self._options
        identity = {
            "key": key,
            "base_url": base_url,
            "format": self._format,
            "beginning": sha256(self.source.beginning).hexdigest()[:NAME_OF_KEY],
            "options": [options.encoding, options.delimiter, options.types, options.id_from, options.now],
        }
        path = options.state or (f"{options.file}.import-state" if self._is_file else None)
        why = ""
        try:
            self._state = StateFile(path, identity)
            if not options.restart:
                self._settled, why = self._state.read()
        except OSError as problem:
            console.complain(f"import: {_text(problem)}: if it is stopped, it cannot be continued, and begins again")
            self._state = StateFile(None, identity)
        if why:
            console.complain(f"import: beginning with the first row: {why}")
        if self._settled.offset:
            if self._lines.skip_to(self._settled.offset, self._settled.line):
                console.complain(f"import: continuing behind line {self._settled.line:,}, where the last run stopped")
            else:
                self._state.close(remove=False)
                raise LetterError(
                    f"{self._name} is shorter than in the last run: run with --restart to begin with its first row"
                )
        self.progress = console.Progress(self.source.size, "rows", self._settled.sent)
        refused = options.refused or (f"{options.file}.refused.jsonl" if self._is_file else "refused.jsonl")
        self._refused = RefusedFile(refused, self._settled.refused_size)

    def _send_all(self) -> None:
        batch = Batch()
        for row, event, reason in self._rows():
            if event is not None and not batch.has_room(row, event.data):
                batch = self._send(batch)
            if event is None:
                batch.refuse(row, reason)
            else:
                batch.add(row, event.data)
            batch.end, batch.line = row.end, self._lines.number
            if batch.is_full:
                batch = self._send(batch)
        self._send(batch)
        self._settle(all_of_them=True)

    def _send(self, batch: Batch) -> Batch:
        """Send a batch, and return an empty one."""
        if batch.end:
            self._sender.send(batch)
        self._settle(all_of_them=False)
        return Batch()

    def _settle(self, all_of_them: bool) -> None:
        while self._sender.wait_for_oldest(all_of_them, self._show):
            with self._interrupt.deferred():
                self._note(*self._sender.take())
            self._show()

    def _note(self, batch: Batch, refusals: Refusals) -> None:
        """Record what became of a batch, in this order: refused rows, then the state."""
        refused = [*batch.refused, *((batch.rows[index], reason) for index, reason in refusals)]
        for row, reason in sorted(refused, key=lambda each: each[0].line):
            self._settled.refused += 1
            self._say_refused(row, reason, self._settled.refused)
            self._refused.add(row, reason)
        self._refused.flush()
        self._settled.sent += len(batch.events) - len(refusals)
        self._settled.offset, self._settled.line = batch.end, batch.line
        self._settled.refused_size = self._refused.size
        self._state.write(self._settled)

    def _show(self) -> None:
        trouble = self._sender.trouble
        if trouble and not self._is_troubled:
            self.progress.say(f"import: {trouble}")
        self._is_troubled = bool(trouble)
        refused = f"{self._settled.refused:,} refused" if self._settled.refused else ""
        self.progress.update(self.source.position(), self._settled.sent, trouble or refused)

    # The end.

    def _stop_cleanly(self) -> NoReturn:
        self.progress.say("import: stopping, when the requests under way are answered")
        self._finish_pending()
        self._close(is_complete=False)
        self._say_how_to_continue()
        console.end_by_ctrl_c()

    def _finish_pending(self) -> None:
        """Settle what can be settled without another request."""
        self._sender.stop()
        try:
            self._settle(all_of_them=True)
        except (Stopped, LetterError, OSError):
            pass  # the first batch that was not sent
        self._sender.close()

    def _close(self, is_complete: bool) -> None:
        self._sender.close()
        self._refused.close()
        self._state.close(remove=is_complete or not self._settled.offset)

    def _say_how_to_continue(self) -> None:
        done = f"{console.count(self._settled.sent, 'row')} sent, {self._settled.refused:,} refused"
        console.complain(
            f"import: {done}, up to line {self._settled.line:,}. Run the same command again to continue there; "
            "rows that are sent twice have the same id, and count once"
        )


def _check(options: argparse.Namespace) -> None:
    if not 1 <= options.connections <= 64:
        raise LetterError("--connections must be from 1 to 64")
    try:
        if "\n".encode(options.encoding) != b"\n":
            raise LetterError(f"--encoding {options.encoding}: convert the file to UTF-8 first")
    except LookupError:
        raise LetterError(f"--encoding: Python has no encoding {options.encoding!r}") from None
    if options.delimiter is not None:
        options.delimiter = options.delimiter.replace("\\t", "\t")
        if len(options.delimiter) != 1 or options.delimiter in '"\r\n\0':
            raise LetterError("--delimiter must be one character, and neither a quote nor a line break")
    if options.file != "-" and os.path.isdir(options.file):
        raise LetterError(f"{options.file} is a directory")
    if options.file == "-" and sys.stdin is not None and sys.stdin.isatty():
        console.complain("import: reading from the terminal; end it by Ctrl-D")


def _types(text: str) -> dict[str, str]:
    types: dict[str, Any] = {}
    for part in filter(None, text.split(",")):
        name, _, kind = part.rpartition("=")
        if not name or kind not in TYPES:
            raise LetterError(f"--types: {part!r} must be COLUMN=TYPE, and a type one of {', '.join(TYPES)}")
        types[name] = kind
    return types
