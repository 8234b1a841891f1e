"""The result files, which a run writes and a report reads.

Responsible for: the contents of each kind of file, writing those of `bench`, reading and checking both. Unknown fields
are ignored, so that a file of a newer version can still be shown. Not responsible for: the format of a figure.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Callable, NamedTuple

import psutil

from ..ledger import FAULTS
from ..metrics import CURVES, METRICS, CurveSamples, Samples, Spread, check_limits
from ..peers import Peer

COUNTS = ("calls", "delivered", "reported", *FAULTS)
RESOURCES = (
    "seconds",
    "longest_call_ms",
    "cpu_seconds",
    "peak_rss",
    "peak_pss",
    "peak_threads",
    "peak_fds",
    "switches",
)
VERDICTS = ("balances", "reported", "red", "failed")


class Result(NamedTuple):
    """The results of `bench`, before they are written."""

    columns: list[Peer]
    samples: Samples
    failures: dict[str, dict[str, str]]  # by measure and column
    event_sizes: dict[str, float]
    server_rate: float | None  # events per second
    rounds: int
    python: str
    curves: CurveSamples = {}  # noqa: RUF012  # read only
    notes: list[str] = []  # noqa: RUF012  # read only


class Origin(NamedTuple):
    """Where, when, with which versions and by which command the figures of a file were made."""

    command: str
    date: datetime
    machine: str
    python: str
    versions: dict[str, str]  # by column


class LimitResult(NamedTuple):
    """A limit, and the verdict on it when the figures were taken."""

    row: str
    limit: str
    value: Spread | None
    verdict: str


class CurveLines(NamedTuple):
    title: str
    measure: str
    x_title: str
    y_title: str
    samples: dict[str, dict[int, list[float | None]]]  # by column, x and round


class Bench(NamedTuple):
    origin: Origin
    rounds: int
    server_rate: float | None
    event_sizes: dict[str, float]
    titles: dict[str, str]  # by metric
    measures: dict[str, str]  # by metric
    samples: Samples
    limits: list[LimitResult]
    failures: dict[str, dict[str, str]]  # by measure and column
    curves: dict[str, CurveLines]
    notes: list[str]

    @property
    def columns(self) -> list[str]:
        return list(self.origin.versions)


class Entry(NamedTuple):
    """What one client did in one scenario."""

    scenario: str
    column: str
    figures: dict[str, float | None]  # by the names of COUNTS and RESOURCES; None if not counted
    failure: str | None  # why it could not run
    notes: list[str]
    verdict: str
    is_applicable: bool = True  # False if the scenario is about something that this client does not have

    @property
    def remarks(self) -> list[str]:
        """Why it has no result, if it has none, and the notes."""
        why = "could not run" if self.is_applicable else "not applicable"
        return [*([f"{why}: {self.failure}"] if self.failure else []), *self.notes]


class Ledger(NamedTuple):
    origin: Origin
    seed: int | None
    seconds: float | None
    columns: list[str]
    scenarios: dict[str, str]  # by name: what happens in it; in the order of the tables
    entries: dict[tuple[str, str], Entry]  # by scenario and column

    def of(self, column: str) -> list[Entry]:
        return [entry for entry in self.entries.values() if entry.column == column]


# ---- Writing


def bench_content(result: Result) -> dict[str, Any]:
    """The contents of a file of `bench`; the function `bench` reads them."""
    limits = [
        {
            "row": check.metric.key,
            "limit": str(check.limit),
            "value": check.value and check.value._asdict(),
            "verdict": check.verdict,
        }
        for check in check_limits(result.samples)
    ]
    return {
        "kind": "bench",
        "command": command(),
        "date": now(),
        "machine": machine(),
        "python": result.python,
        "versions": {peer.column: peer.version for peer in result.columns},
        "rounds": result.rounds,
        "sink_events_per_second": result.server_rate,
        "event_bytes": result.event_sizes,
        "titles": {row.key: row.title for row in METRICS},
        "measures": {row.key: row.measure for row in METRICS},
        "samples": result.samples,
        "limits": limits,
        "failures": result.failures,
        "curves": {
            curve.key: {
                "title": curve.title,
                "measure": curve.measure,
                "x_title": curve.x_title,
                "y_title": curve.y_title,
                "samples": {
                    column: {str(x): values for x, values in points.items()}
                    for column, points in result.curves[curve.key].items()
                },
            }
            for curve in CURVES
            if curve.key in result.curves
        },
        "notes": result.notes,
    }


def keep(text: str, kind: str, options: argparse.Namespace) -> None:
    """Write the results of a run to ``--json``, and to the cache, where `report` looks by default."""
    for path in filter(None, (options.json, options.cache / "results" / f"{kind}.json")):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def command() -> str:
    """The current command line, as typed in a shell."""
    return " ".join(["python -m stress", *map(shlex.quote, sys.argv[1:])])


def now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def machine() -> str:
    memory = psutil.virtual_memory().total / 2**30
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, {memory:.0f} GiB"


# ---- Reading


def read(paths: list[Path], warn: Callable[[str], None]) -> tuple[Bench | None, Ledger | None]:
    """The newest of each kind; ``warn`` is called about ignored files. Raises ValueError for an invalid file."""
    newest: dict[type, tuple[Path, Bench | Ledger]] = {}
    for path in paths:
        found = _read_one(path)
        other = newest.get(type(found))
        if other is None:
            newest[type(found)] = path, found
            continue
        old, new = sorted([other, (path, found)], key=lambda pair: pair[1].origin.date)
        newest[type(found)] = new
        warn(f"{old[0]} is ignored: {new[0]} is newer ({new[1].origin.date:%Y-%m-%d %H:%M})")
    kept = {kind: found for kind, (_, found) in newest.items()}
    bench_found, ledger_found = kept.get(Bench), kept.get(Ledger)
    assert not isinstance(bench_found, Ledger) and not isinstance(ledger_found, Bench)
    return bench_found, ledger_found


def _read_one(path: Path) -> Bench | Ledger:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}") from None
    kind = data.get("kind") if isinstance(data, dict) else None
    try:
        if kind == "bench":
            return bench(data)
        if kind == "ledger":
            return ledger(data)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    raise ValueError(f"{path}: not a result file: its kind is {kind!r}, neither 'bench' nor 'ledger'")


def bench(data: dict[str, Any]) -> Bench:
    """Check the contents of a file of `bench`. Raises ValueError, with the name of an invalid field."""
    known = {row.key: row.measure for row in METRICS}
    failures: dict[str, Any] = _field(data, "failures", dict, {})
    limits: list[Any] = _field(data, "limits", list, [])
    curves: dict[str, Any] = _field(data, "curves", dict, {})
    return Bench(
        _origin(data),
        _field(data, "rounds", int),
        _field(data, "sink_events_per_second", float, None),
        _mapping(data, "event_bytes", float, {}),
        _mapping(data, "titles", str, {}),
        {**known, **_mapping(data, "measures", str, {})},
        _samples(_field(data, "samples", dict), "samples"),
        [_limit(line, f"limits[{number}]") for number, line in enumerate(limits)],
        {measure: _mapping(failures, measure, str) for measure in failures},
        {key: _curve(key, curve) for key, curve in curves.items()},
        [str(note) for note in _field(data, "notes", list, [])],
    )


def ledger(data: dict[str, Any]) -> Ledger:
    """Check the contents of a ledger's file. Raises ValueError, with the name of an invalid field."""
    columns: list[str] = _field(data, "columns", list)
    scenarios = _mapping(data, "scenarios", str)
    entries: list[Any] = _field(data, "entries", list)
    checked = [entry(line, f"entries[{number}]") for number, line in enumerate(entries)]
    for one in checked:
        if one.scenario not in scenarios or one.column not in columns:
            raise ValueError(f"an entry of scenario {one.scenario!r} and column {one.column!r}, which are not listed")
    return Ledger(
        _origin(data),
        _field(data, "seed", int, None),
        _field(data, "seconds", float, None),
        columns,
        scenarios,
        {(one.scenario, one.column): one for one in checked},
    )


def _origin(data: dict[str, Any]) -> Origin:
    written: str = _field(data, "date", str)
    try:
        date = datetime.fromisoformat(written.replace("Z", "+00:00"))  # Python before 3.11 does not accept Z
    except ValueError:
        raise ValueError(f"'date' is {written!r}, not an ISO date") from None
    date = date if date.tzinfo else date.replace(tzinfo=timezone.utc)
    return Origin(
        _field(data, "command", str, ""),
        date.astimezone(timezone.utc),
        _field(data, "machine", str, "unknown machine"),
        _field(data, "python", str, "?"),
        _mapping(data, "versions", str, {}),
    )


def entry(line: Any, where: str = "entry") -> Entry:
    """Check one of a ledger's entries. Raises ValueError as `ledger` does."""
    if not isinstance(line, dict):
        raise ValueError(f"{where} is not an object")
    if "told" in line:  # as older versions named this column
        line = {"reported": line["told"], **line}
    figures = {key: _field(line, key, float, None, where) for key in (*COUNTS, *RESOURCES)}
    failure = _field(line, "failure", str, None, where)
    verdict = _field(line, "verdict", str, "", where)
    return Entry(
        _field(line, "scenario", str, where=where),
        _field(line, "column", str, where=where),
        figures,
        failure,
        [str(note) for note in _field(line, "notes", list, [], where)],
        verdict if verdict in VERDICTS else _verdict(figures, failure),
        not _field(line, "not_applicable", bool, False, where),
    )


def _verdict(figures: dict[str, float | None], failure: str | None) -> str:
    if failure:
        return "failed"
    if any(figures[fault] for fault in FAULTS):
        return "red"
    return "reported" if figures["reported"] else "balances"


def _limit(line: Any, where: str) -> LimitResult:
    if not isinstance(line, dict):
        raise ValueError(f"{where} is not an object")
    value: dict[str, float] | None = _field(line, "value", dict, None, where)
    return LimitResult(
        _field(line, "row", str, where=where),
        _field(line, "limit", str, where=where),
        Spread(*(_field(value, end, float, where=where) for end in Spread._fields)) if value else None,
        _field(line, "verdict", str, where=where),
    )


def _curve(key: str, curve: Any) -> CurveLines:
    where = f"curves[{key!r}]"
    if not isinstance(curve, dict):
        raise ValueError(f"{where} is not an object")
    try:
        samples = {
            column: {int(x): _values(values, where) for x, values in points.items()}
            for column, points in _field(curve, "samples", dict, where=where).items()
        }
    except (AttributeError, ValueError) as error:
        raise ValueError(f"{where}: its samples are not lists of numbers by column and x: {error}") from None
    measure = next((known.measure for known in CURVES if known.key == key), key)
    return CurveLines(
        _field(curve, "title", str, key, where),
        _field(curve, "measure", str, measure, where),
        _field(curve, "x_title", str, "", where),
        _field(curve, "y_title", str, "", where),
        samples,
    )


def _samples(samples: dict[str, Any], where: str) -> Samples:
    checked: Samples = {}
    for row, columns in samples.items():
        if not isinstance(columns, dict):
            raise ValueError(f"{where}[{row!r}] is not an object")
        checked[row] = {column: _values(values, f"{where}[{row!r}]") for column, values in columns.items()}
    return checked


def _values(values: Any, where: str) -> list[float | None]:
    if not isinstance(values, list) or not all(value is None or _is_a(value, float) for value in values):
        raise ValueError(f"{where}: {_short(values)} is not a list of numbers")
    return values


_REQUIRED: Any = object()


def _field(data: dict[str, Any], key: str, kind: type, default: Any = _REQUIRED, where: str = "") -> Any:
    """``data[key]``, which must be a ``kind``; ``default`` if it is missing or null."""
    prefix = f"{where}: " if where else ""
    value = data.get(key)
    if value is None:
        if default is _REQUIRED:
            raise ValueError(f"{prefix}{key!r} is missing")
        return default
    if not _is_a(value, kind):
        names = {
            dict: "an object",
            list: "a list",
            str: "text",
            bool: "true or false",
            int: "a whole number",
            float: "a number",
        }
        raise ValueError(f"{prefix}{key!r} is {_short(value)}, not {names[kind]}")
    return value


def _mapping(data: dict[str, Any], key: str, kind: type, default: Any = _REQUIRED) -> dict[str, Any]:
    """``data[key]``, an object whose values must each be a ``kind``."""
    values: dict[str, Any] = _field(data, key, dict, default)
    for name in values:
        _field(values, name, kind, where=repr(key))
    return values


def _is_a(value: Any, kind: type) -> bool:
    if kind is bool or isinstance(value, bool):
        return kind is type(value)  # for `isinstance`, True is an int
    return isinstance(value, (int, float) if kind is float else kind)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
