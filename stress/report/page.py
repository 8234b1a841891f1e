"""The page: everything that the files of results say, in one HTML file that needs nothing beside it.

Lives here: what the template is given, the pictures' colours as variables. Never here: markup and style
(`page.html.jinja`), drawing (`pictures.py`), how a figure reads (`words.py`).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Iterator, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ..ledger import FAULTS
from ..peers import SELF
from . import canvas, pictures, words
from .results import COUNTS, RESOURCES, Bench, Entry, Held, Ledger, Origin
from .tables import Lines, bench_lines, curve_lines, held_text
from .words import Cell

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
    "told": "#f2cc60",
    "told-paper": "#3d2f07",
    "red": "#ffa198",
    "red-paper": "#4d1519",
    "failed": "#b1bac4",
    "failed-paper": "#272e36",
    "none": "#8b949e",
    "none-paper": "#171d24",
}
_HELD_MARKS = {"met": ("✓", "balances"), "MISSED": ("✗", "red")}  # what else there is was not decided


class Figure(NamedTuple):
    title: str
    under: str
    picture: Markup
    notes: list[tuple[str, str, str]]  # a mark, its style, text
    table: Lines | None = None


class Square(NamedTuple):
    """A cell of the grid, with all that is known of it."""

    column: str
    cell: Cell
    hint: str
    figures: list[tuple[str, str, str]]  # title, text, style
    remarks: list[str]


def page(bench: Bench | None, ledger: Ledger | None) -> str:
    environment = Environment(
        loader=FileSystemLoader(str(HERE)),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.jinja").render(
        own=SELF,
        light=canvas.COLOURS,
        dark=_DARK,
        marks=words.MARKS,
        meanings=words.MEANINGS,
        ledger=ledger and _ledger(ledger),
        bench=bench and _bench(bench),
    )


def _ledger(ledger: Ledger) -> dict[str, Any]:
    keys = (*COUNTS, *RESOURCES)
    return {
        "facts": list(_facts(ledger.origin, {"Seed": ledger.seed, "Seconds a scenario": ledger.seconds})),
        "line": words.origin_line(ledger.origin) + ("" if ledger.seed is None else f", seed {ledger.seed}"),
        "columns": ledger.columns,
        "grid": [
            (scenario, what, [_square(ledger, scenario, column) for column in ledger.columns])
            for scenario, what in ledger.scenarios.items()
        ],
        "totals": [words.total(ledger, column).words for column in ledger.columns],
        "titles": [(words.FIGURE_TITLES[key], words.FIGURE_MEANINGS.get(key, "")) for key in keys],
        "glossary": [(words.FIGURE_TITLES[key], meaning) for key, meaning in words.FIGURE_MEANINGS.items()],
        "notes": list(words.ledger_notes(ledger))[1:],  # the first is the line above
    }


def _square(ledger: Ledger, scenario: str, column: str) -> Square:
    entry = ledger.entries.get((scenario, column))
    cell = words.cell(entry)
    figures = _figures(entry) if entry else []
    remarks = [*([f"could not run: {entry.failure}"] if entry.failure else []), *entry.notes] if entry else []
    some = [f"{title} {value}" for title, value, _ in figures[: len(COUNTS)] if value]
    return Square(column, cell, "\n".join([f"{scenario}, {column}", ", ".join(some), *remarks]), figures, remarks)


def _figures(entry: Entry) -> list[tuple[str, str, str]]:
    """All of them, so that the full table has its columns; of a client that could not run there are none."""
    blank = entry.verdict == "failed"
    return [
        (words.FIGURE_TITLES[key], "" if blank else words.figure_text(key, value), _style(key, value))
        for key, value in entry.figures.items()
    ]


def _style(key: str, value: float | None) -> str:
    if not value:
        return "zero"
    return "red" if key in FAULTS else "told" if key == "told" else ""


def _bench(bench: Bench) -> dict[str, Any]:
    titles = words.row_titles(bench.titles)
    return {
        "facts": list(_facts(bench.origin, {"Rounds": bench.rounds})),
        "line": words.origin_line(bench.origin),
        "rounds": words.rounds_text(bench),
        "bars": [_bars(bench, key, titles[key]) for key in titles if key in bench.samples],
        "curves": [_curve(bench, key) for key in bench.curves],
        "figures": bench_lines(bench)[0],
        "notes": list(words.bench_notes(bench))[1:],
    }


def _bars(bench: Bench, key: str, title: words.RowTitle) -> Figure:
    held = [(*_held_mark(one.verdict), _held_note(one)) for one in bench.held if one.row == key]
    failed = _failed(bench, bench.measures.get(key, key))
    return Figure(title.what, title.under, _inline(pictures.bars(bench, key), title.what), [*held, *failed])


def _held_mark(verdict: str) -> tuple[str, str]:
    return _HELD_MARKS.get(verdict, ("?", "failed"))


def _held_note(held: Held) -> str:
    text = held_text(held)
    return f"{held.limit}: {text}, {held.verdict}" if text else f"{held.limit}: {held.verdict}"


def _curve(bench: Bench, key: str) -> Figure:
    lines = bench.curves[key]
    under = words.direction(lines.y_title)
    picture = _inline(pictures.curve(bench, key), lines.title)
    notes = [("!", "told", note) for note in words.notes_of(bench, lines.measure)]
    return Figure(lines.title, under, picture, [*_failed(bench, lines.measure), *notes], curve_lines(bench, lines))


def _failed(bench: Bench, measure: str) -> list[tuple[str, str, str]]:
    return [("?", "failed", f"{column} failed: {why}") for column, why in bench.failures.get(measure, {}).items()]


def _facts(origin: Origin, more: dict[str, object]) -> Iterator[tuple[str, str]]:
    yield "Date", f"{origin.date:%Y-%m-%d %H:%M} UTC"
    yield "Machine", origin.machine
    yield "Python", origin.python
    yield "Versions", words.named(origin.versions)
    for title, value in more.items():
        if value is not None:
            yield title, f"{value:g}" if isinstance(value, float) else str(value)
    if origin.command:
        yield "Command", origin.command


_VARIABLES = {colour: f"var(--{name})" for name, colour in canvas.COLOURS.items()}


def _inline(svg: str, label: str) -> Markup:
    """The picture as a part of the page: its colours follow the page's, its letters have the page's font."""
    svg = re.sub("|".join(_VARIABLES), lambda match: _VARIABLES[match[0]], svg)
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg)
    svg = re.sub(r"<defs>\s*<style[^>]*>.*?</style>\s*</defs>", "", svg, flags=re.DOTALL)
    return Markup(svg).replace("<svg", Markup('<svg aria-label="{}"').format(label), 1)
