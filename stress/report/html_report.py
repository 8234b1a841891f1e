"""The HTML report: everything that the result files contain, in one self-contained file.

Responsible for: the data of the template, and the colours of the charts as CSS variables. Not responsible for: markup
and style (`report.html.jinja`), drawing (`charts.py`), the format of a figure (`formatting.py`).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Iterator, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ..ledger import FAULTS
from ..peers import SELF
from . import canvas, charts, formatting
from .formatting import Cell
from .results import COUNTS, RESOURCES, Bench, Entry, Ledger, LimitResult, Origin
from .tables import Lines, bench_lines, curve_lines, limit_text

HERE = Path(__file__).resolve().parent
_DARK = {
    "ink": "#e6edf3",
    "muted": "#9da7b1",
    "line": "#3a424b",
    "paper": "#0f141a",
    "own": "#6cb0ff",
    "second": "#45c4b0",
    "third": "#f0a050",
    "fourth": "#cf9bf0",
    "fifth": "#c9c44a",
    "floor": "#8b949e",
    "balances": "#7ee29a",
    "balances-paper": "#10331f",
    "reported": "#f2cc60",
    "reported-paper": "#3d2f07",
    "red": "#ffa198",
    "red-paper": "#4d1519",
    "failed": "#b1bac4",
    "failed-paper": "#272e36",
    "none": "#8b949e",
    "none-paper": "#171d24",
}
_LIMIT_MARKS = {"met": ("✓", "balances"), "MISSED": ("✗", "red")}  # every other verdict is undecided


class Figure(NamedTuple):
    title: str
    under: str
    picture: Markup
    notes: list[tuple[str, str, str]]  # mark, style of the mark, text
    table: Lines | None = None


class GridCell(NamedTuple):
    """A cell of the grid, with all its details."""

    column: str
    cell: Cell
    hint: str
    figures: list[tuple[str, str, str]]  # title, text, style
    remarks: list[str]


def html_report(bench: Bench | None, ledger: Ledger | None) -> str:
    environment = Environment(
        loader=FileSystemLoader(str(HERE)),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.jinja").render(
        own=SELF,
        light=canvas.COLOURS,
        dark=_DARK,
        marks=formatting.MARKS,
        meanings=formatting.MEANINGS,
        ledger=ledger and _ledger(ledger),
        bench=bench and _bench(bench),
    )


def _ledger(ledger: Ledger) -> dict[str, Any]:
    keys = (*COUNTS, *RESOURCES)
    return {
        "facts": list(_facts(ledger.origin, {"Seed": ledger.seed, "Seconds a scenario": ledger.seconds})),
        "line": formatting.origin_line(ledger.origin) + ("" if ledger.seed is None else f", seed {ledger.seed}"),
        "columns": ledger.columns,
        "grid": [
            (scenario, what, [_grid_cell(ledger, scenario, column) for column in ledger.columns])
            for scenario, what in ledger.scenarios.items()
        ],
        "totals": [formatting.total(ledger, column).parts for column in ledger.columns],
        "titles": [(formatting.FIGURE_TITLES[key], formatting.FIGURE_MEANINGS.get(key, "")) for key in keys],
        "glossary": [(formatting.FIGURE_TITLES[key], meaning) for key, meaning in formatting.FIGURE_MEANINGS.items()],
        "notes": list(formatting.ledger_notes(ledger))[1:],  # the first one is `line`
    }


def _grid_cell(ledger: Ledger, scenario: str, column: str) -> GridCell:
    entry = ledger.entries.get((scenario, column))
    cell = formatting.cell(entry)
    figures = _figures(entry) if entry else []
    remarks = entry.remarks if entry else []
    some = [f"{title} {value}" for title, value, _ in figures[: len(COUNTS)] if value]
    return GridCell(column, cell, "\n".join([f"{scenario}, {column}", ", ".join(some), *remarks]), figures, remarks)


def _figures(entry: Entry) -> list[tuple[str, str, str]]:
    """One for each column of the full table; empty for a client that could not run."""
    blank = entry.verdict == "failed"
    return [
        (formatting.FIGURE_TITLES[key], "" if blank else formatting.figure_text(key, value), _style(key, value))
        for key, value in entry.figures.items()
    ]


def _style(key: str, value: float | None) -> str:
    if not value:
        return "zero"
    return "red" if key in FAULTS else "reported" if key == "reported" else ""


def _bench(bench: Bench) -> dict[str, Any]:
    titles = formatting.metric_titles(bench.titles)
    return {
        "facts": list(_facts(bench.origin, {"Rounds": bench.rounds})),
        "line": formatting.origin_line(bench.origin),
        "rounds": formatting.rounds_text(bench),
        "bars": [_bars(bench, key, titles[key]) for key in titles if key in bench.samples],
        "curves": [_curve(bench, key) for key in bench.curves],
        "figures": bench_lines(bench)[0],
        "notes": list(formatting.bench_notes(bench))[1:],
    }


def _bars(bench: Bench, key: str, title: formatting.MetricTitle) -> Figure:
    limits = [(*_limit_mark(one.verdict), _limit_note(one)) for one in bench.limits if one.row == key]
    failed = _failed(bench, bench.measures.get(key, key))
    return Figure(title.what, title.under, _inline(charts.bars(bench, key), title.what), [*limits, *failed])


def _limit_mark(verdict: str) -> tuple[str, str]:
    return _LIMIT_MARKS.get(verdict, ("?", "failed"))


def _limit_note(limit: LimitResult) -> str:
    text = limit_text(limit)
    return f"{limit.limit}: {text}, {limit.verdict}" if text else f"{limit.limit}: {limit.verdict}"


def _curve(bench: Bench, key: str) -> Figure:
    lines = bench.curves[key]
    under = formatting.direction(lines.y_title)
    picture = _inline(charts.curve(bench, key), lines.title)
    notes = [("!", "reported", note) for note in formatting.notes_of(bench, lines.measure)]
    return Figure(lines.title, under, picture, [*_failed(bench, lines.measure), *notes], curve_lines(bench, lines))


def _failed(bench: Bench, measure: str) -> list[tuple[str, str, str]]:
    return [("?", "failed", f"{column} failed: {why}") for column, why in bench.failures.get(measure, {}).items()]


def _facts(origin: Origin, more: dict[str, object]) -> Iterator[tuple[str, str]]:
    yield "Date", f"{origin.date:%Y-%m-%d %H:%M} UTC"
    yield "Machine", origin.machine
    yield "Python", origin.python
    yield "Versions", formatting.named(origin.versions)
    for title, value in more.items():
        if value is not None:
            yield title, f"{value:g}" if isinstance(value, float) else str(value)
    if origin.command:
        yield "Command", origin.command


_VARIABLES = {colour: f"var(--{name})" for name, colour in canvas.COLOURS.items()}


def _inline(svg: str, label: str) -> Markup:
    """The picture as a part of the page, with the colours and the font of the page."""
    svg = re.sub("|".join(_VARIABLES), lambda match: _VARIABLES[match[0]], svg)
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg)
    svg = re.sub(r"<defs>\s*<style[^>]*>.*?</style>\s*</defs>", "", svg, flags=re.DOTALL)
    return Markup(svg).replace("<svg", Markup('<svg aria-label="{}"').format(label), 1)
