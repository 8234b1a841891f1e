"""What a run found, for people, for a page and for machines.

Lives here: the table on the terminal, the same in Markdown, the raw figures in JSON. Never here: what a figure means.
"""

from __future__ import annotations

import json
import os
import platform
from datetime import datetime, timezone
from typing import Iterator, List, NamedTuple, Tuple

import psutil
from rich.console import Console
from rich.table import Table

from .peers import FLOOR, SELF, Peer
from .rows import ROWS, Finding, Row, Samples, Spread, findings, spread


class Result(NamedTuple):
    columns: list[Peer]
    samples: Samples
    failures: dict[str, dict[str, str]]  # measure, column
    event_sizes: dict[str, float]
    sink_speed: float | None  # events a second
    rounds: int
    python: str


def show(console: Console, result: Result) -> None:
    for title, header, lines in (("Figures", *_figures(result)), ("Limits", *_limits(result))):
        table = Table(*header, title=title, title_justify="left")
        for line in lines:
            style = "red" if line[-1] == "MISSED" else ""
            table.add_row(*line, style=style)
        console.print(table)
    for note in _notes(result):
        console.print(note, soft_wrap=True, highlight=False)


def as_markdown(result: Result) -> str:
    tables = [_markdown_table(*_figures(result)), _markdown_table(*_limits(result))]
    notes = "\n".join(f"- {note}" for note in _notes(result))
    return "\n\n".join([*tables, notes]) + "\n"


def as_json(result: Result) -> str:
    found = [
        {
            "row": finding.row.key,
            "limit": str(finding.limit),
            "value": finding.value and finding.value._asdict(),
            "verdict": finding.verdict,
        }
        for finding in findings(result.samples)
    ]
    content = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": _machine(),
        "python": result.python,
        "versions": {peer.column: peer.version for peer in result.columns},
        "rounds": result.rounds,
        "sink_events_per_second": result.sink_speed,
        "event_bytes": result.event_sizes,
        "titles": {row.key: row.title for row in ROWS},
        "samples": result.samples,
        "limits": found,
        "failures": result.failures,
    }
    return json.dumps(content, indent=1) + "\n"


Lines = List[Tuple[str, ...]]


def _figures(result: Result) -> tuple[tuple[str, ...], Lines]:
    columns = [peer.column for peer in result.columns]
    lines = []
    for row in ROWS:
        if row.key in result.samples:
            lines.append((row.title, *(_figure(result, row, column) for column in columns)))
    return ("median (least to most)", *columns), lines


def _figure(result: Result, row: Row, column: str) -> str:
    if column in result.failures.get(row.measure, {}):
        return "failed"
    return _text(spread(result.samples[row.key].get(column, [])))


def _limits(result: Result) -> tuple[tuple[str, ...], Lines]:
    lines: Lines = [(finding.row.title, str(finding.limit), *_held(finding)) for finding in findings(result.samples)]
    header: tuple[str, ...] = ("", "limit", SELF, "")
    return header, lines


def _held(finding: Finding) -> tuple[str, str]:
    sign = " x" if finding.limit.against else ""
    return _text(finding.value, sign), finding.verdict


def _text(value: Spread | None, sign: str = "") -> str:
    if value is None:
        return ""
    middle = _number(value.middle) + sign
    return middle if value.least == value.most else f"{middle} ({_number(value.least)} to {_number(value.most)})"


def _number(value: float) -> str:
    for above, digits in ((100, 0), (10, 1), (0, 2)):
        if abs(value) >= above:
            return f"{value:,.{digits}f}"
    return str(value)


def _notes(result: Result) -> Iterator[str]:
    versions = ", ".join(_named(peer) for peer in result.columns if peer.column not in (FLOOR, SELF))
    day = datetime.now(timezone.utc).date()
    yield f"{_machine()}, Python {result.python}, {day}, {result.rounds} rounds; {versions}."
    sizes = ", ".join(f"{column} {size:.0f}" for column, size in result.event_sizes.items())
    if sizes:
        yield f"Bytes of one event on the wire: {sizes}."
    fastest = max((s.middle for s in map(spread, result.samples.get("stream", {}).values()) if s), default=None)
    if fastest and result.sink_speed:
        times = result.sink_speed / fastest
        yield f"The sink alone takes {result.sink_speed:,.0f} events/s, {times:.1f} x the fastest client."
    for measure, failed in result.failures.items():
        for column, why in failed.items():
            yield f"{measure} of {column} failed: {why}"


def _named(peer: Peer) -> str:
    return peer.column if peer.version in peer.column else f"{peer.column} {peer.version}"


def _machine() -> str:
    memory = psutil.virtual_memory().total / 2**30
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, {memory:.0f} GiB"


def _markdown_table(header: tuple[str, ...], lines: Lines) -> str:
    rows = [header, tuple("---" for _ in header), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)
