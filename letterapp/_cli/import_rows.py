"""Reading the rows of a file: lines of JSON, or CSV.

Responsible for: encodings, compression, line ends, lines and fields without an end, where each row begins and ends. Not
responsible for: what a row means (`import_events`).

However large a line or a field is, only `LONGEST` bytes of it are kept in memory.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import re
import zlib
from typing import IO, Any, Iterator, NamedTuple

from ..errors import LetterError

LONGEST = 1 << 22  # bytes of a row; an event may have 500,000, and escapes make a line longer than its event
_SHOWN = 200  # bytes of a longer row that are kept for the report
_CHUNK = 1 << 16
_GZIP = b"\x1f\x8b"
_UTF8_MARK = b"\xef\xbb\xbf"
_FORMATS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "csv"}
_OWN_COUNT = re.compile(r"^line \d+: ")  # which PyPy's reader puts in front
_DELIMITERS = (",", ";", "\t", "|")


class Row(NamedTuple):
    """One row of the file; either ``fields`` or ``problem`` says what is in it."""

    line: int  # the number of its first line, from 1
    end: int  # the offset behind it, in bytes of the (uncompressed) file
    text: str  # as it was in the file
    fields: dict[str, Any] | None
    problem: str


class Source:
    """An open input. Raises `LetterError` if it cannot be used, `OSError` if it cannot be opened."""

    def __init__(self, path: str) -> None:
        self._raw: Any = io.BufferedReader(io.FileIO(0, closefd=False)) if path == "-" else open(path, "rb")  # noqa: SIM115
        try:
            self.size = os.fstat(self._raw.fileno()).st_size if path != "-" else 0
            head = self._raw.read(64)
            self.head = head
            joined: Any = _Joined(head, self._raw)
            self.is_compressed = head.startswith(_GZIP)
            if self.is_compressed:
                joined = gzip.GzipFile(fileobj=io.BufferedReader(joined))
            self.file: IO[bytes] = io.BufferedReader(joined, _CHUNK)
            self.beginning = self.file.peek(64)[:64]
        except (EOFError, gzip.BadGzipFile, zlib.error) as problem:
            raise LetterError(f"{path} cannot be decompressed: {problem}") from None
        if self.beginning.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise LetterError(f"{path} is UTF-16: convert it first, for example by iconv -f UTF-16 -t UTF-8")

    def position(self) -> int:
        """How many bytes of the file, as it is on disk, were read."""
        try:
            return int(self._raw.tell())
        except OSError:  # a pipe
            return 0

    def close(self) -> None:
        self._raw.close()


class _Joined(io.RawIOBase):
    """What was read of a file already, and the rest."""

    def __init__(self, head: bytes, rest: Any) -> None:
        self._head = head
        self._rest = rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._head[: len(buffer)] or self._rest.read1(len(buffer))
        self._head = self._head[len(buffer) :]
        buffer[: len(data)] = data
        return len(data)


def format_of(path: str, source: Source) -> str:
    """``"jsonl"`` or ``"csv"``, by the name of the file, else by its first character."""
    name = path[:-3] if path.endswith(".gz") else path
    known = _FORMATS.get(os.path.splitext(name)[1].lower())
    if known is not None:
        return known
    first = source.beginning[len(_UTF8_MARK) :] if source.beginning.startswith(_UTF8_MARK) else source.beginning
    if first.lstrip()[:1] == b"[":
        raise LetterError(f"{path} is an array: write one object per line, for example by jq -c '.[]'")
    return "jsonl" if first.lstrip()[:1] == b"{" else "csv"


class Lines:
    """The lines of a file, decoded. `number`, `offset` and `problem` describe what was read since `begin_row`."""

    def __init__(self, source: Source, encoding: str) -> None:
        self._file = source.file
        self._encoding = encoding
        self.number = 0  # of the line that was read last
        self.offset = 0  # behind it
        self.begin_row()

    def begin_row(self) -> None:
        self.texts: list[str] = []
        self._size = 0
        self.problem = ""
        self.first = self.number + 1

    def skip_to(self, offset: int, number: int) -> bool:
        """Continue behind the byte ``offset``, where line ``number`` ends; False if the file is shorter."""
        while self.offset < offset:
            data = self._file.read(min(_CHUNK, offset - self.offset))
            if not data:
                return False
            self.offset += len(data)
        self.number = number
        self.begin_row()
        return True

    def __iter__(self) -> Iterator[str]:
        while True:
            line = self._file.readline(LONGEST + 1)
            if not line:
                return
            self.number += 1
            self.offset += len(line)
            if self._size + len(line) > LONGEST:
                self.problem = f"it is longer than {LONGEST:,} bytes"
                self._skip_rest(line)
                line = line[:_SHOWN] + b"\n"
                self.texts = self.texts[:1]
            self._size += len(line)
            yield self._decoded(line)

    def _skip_rest(self, line: bytes) -> None:
        while line and not line.endswith(b"\n"):
            line = self._file.readline(_CHUNK)
            self.offset += len(line)

    def _decoded(self, line: bytes) -> str:
        if self.number == 1 and line.startswith(_UTF8_MARK):
            line = line[len(_UTF8_MARK) :]
        try:
            text = line.decode(self._encoding)
        except UnicodeDecodeError as problem:
            where = f"byte {problem.start + 1} of line {self.number}"
            self.problem = self.problem or f"it is not {self._encoding} ({where}): set --encoding, for example cp1252"
            text = line.decode(self._encoding, "replace")
        self.texts.append(text)
        if "\0" in text:
            self.problem = self.problem or "it contains a NUL byte"
            text = text.replace("\0", "")  # which `csv` refuses before Python 3.11
        return text

    def row(self, fields: dict[str, Any] | None, problem: str = "") -> Row:
        """The row that was read since `begin_row`."""
        problem = self.problem or problem
        return Row(self.first, self.offset, "".join(self.texts).rstrip("\r\n"), None if problem else fields, problem)


def json_rows(lines: Lines) -> Iterator[Row]:
    """A row for each line that is not blank."""
    lines.begin_row()
    for text in lines:
        if lines.problem or text.strip():
            try:
                fields = json.loads(text)
            except (ValueError, RecursionError) as problem:
                yield lines.row(None, f"it is not JSON: {problem}")
            else:
                wrong = "" if isinstance(fields, dict) else "it is not a JSON object"
                yield lines.row(None if wrong else fields, wrong)
        lines.begin_row()


class CsvFormat:
    """The header of a CSV file. It is read from the first row that is not empty. Raises `LetterError`."""

    def __init__(self, lines: Lines, delimiter: str | None) -> None:
        csv.field_size_limit(LONGEST)
        lines.begin_row()
        first = next((text for text in lines if text.strip()), "")
        if lines.problem:
            raise LetterError(f"the header cannot be read: {lines.problem}")
        if "\r" in first.rstrip("\r\n"):
            raise LetterError("its lines end with CR alone: convert them first, for example by tr '\\r' '\\n'")
        self.delimiter = delimiter or max(_DELIMITERS, key=first.count)
        try:
            rest = _chained(first, lines)
            self.columns: list[str] = [name.strip() for name in next(csv.reader(rest, delimiter=self.delimiter), [])]
        except csv.Error as problem:
            raise LetterError(f"the header cannot be read: {problem}") from None
        repeated = [name for name in self.columns if self.columns.count(name) > 1]
        if not self.columns:
            raise LetterError("the file is empty: its first line has to name the columns")
        if repeated or "" in self.columns:
            raise LetterError(
                f"the header has {f'two columns {repeated[0]!r}' if repeated else 'a column without a name'}"
            )
        lines.begin_row()

    def rows(self, lines: Lines) -> Iterator[Row]:
        """A row for each record with a value. The cells of `Row.fields` are strings that are not empty."""
        while True:
            reader = csv.reader(iter(lines), delimiter=self.delimiter, strict=True)
            try:
                for cells in reader:
                    if lines.problem or any(cells):
                        yield self._row(lines, cells)
                    lines.begin_row()
                return
            except csv.Error as problem:
                yield lines.row(None, f"it is not CSV: {_OWN_COUNT.sub('', str(problem))}")
                lines.begin_row()  # with a new reader, since this one may be inside of quotes

    def _row(self, lines: Lines, cells: list[str]) -> Row:
        if len(cells) != len(self.columns):
            return lines.row(None, f"it has {len(cells)} columns, and the header has {len(self.columns)}")
        return lines.row({name: cell for name, cell in zip(self.columns, cells) if cell})


def _chained(first: str, lines: Lines) -> Iterator[str]:
    yield first
    yield from lines
