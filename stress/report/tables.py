"""The tables, in the terminal and in Markdown: figures, limits and curves of `bench`, the grid of a ledger.

Responsible for: the header and the lines of each table, the same in both formats. Not responsible for: the format of a
figure (`formatting.py`).
"""

from __future__ import annotations

from typing import Any, Iterator, List, NamedTuple, Tuple

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from ..metrics import spread
from ..peers import SELF
from . import results
from .formatting import MARKS, MEANINGS, bench_notes, cell, ledger_notes, spread_text, total
from .results import Bench, CurveLines, Ledger, LimitResult

STYLES = {"balances": "green", "reported": "yellow", "red": "red", "failed": "dim", "none": "dim"}


Rows = List[Tuple[str, ...]]


class Lines(NamedTuple):
    """A table whose cells are plain text, in either format."""

    title: str
    header: tuple[str, ...]
    rows: Rows


# ---- In the terminal


def show_bench(console: Console, bench: Bench) -> None:
    for lines in bench_lines(bench):
        table = Table(*_columns(lines.header), title=Text(lines.title), title_justify="left")
        for row in lines.rows:
            table.add_row(*map(Text, row), style="red" if row[-1] == "MISSED" else "")
        console.print(table)
    _show_notes(console, bench_notes(bench))


def show_ledger(console: Console, data: dict[str, Any] | Ledger) -> None:
    """Print scenarios by clients; ``data`` is the contents of a ledger's file, or a `Ledger`."""
    ledger = data if isinstance(data, Ledger) else results.ledger(data)
    table = Table(*_columns(("scenario", *ledger.columns)), title="Ledger", title_justify="left")
    for scenario, what in ledger.scenarios.items():
        cells = [cell(ledger.entries.get((scenario, column))) for column in ledger.columns]
        texts = [Text(one.text, style=STYLES[one.verdict]) for one in cells]
        table.add_row(Text.assemble(scenario, "\n", (what, "dim")), *texts)
    table.add_section()
    table.add_row("total", *("\n".join(total(ledger, column).parts) for column in ledger.columns))
    console.print(table)
    _show_notes(console, [legend(), *ledger_notes(ledger)])


def ledger_line(data: dict[str, Any]) -> Text:
    """One entry of a ledger's file, as a line of progress."""
    entry = results.entry(data)
    found = cell(entry)
    seconds = entry.figures["seconds"]
    took = "" if seconds is None else f"  {seconds:.1f} s"
    why = f": {entry.failure}" if entry.failure else ""
    who = f"{entry.scenario:25} {entry.column:16} "
    line = Text.assemble(who, (found.text + why, STYLES[found.verdict]), (took, "dim"))
    line.no_wrap = True
    return line


def _columns(header: tuple[str, ...]) -> Iterator[Column]:
    return (Column(header=Text(title)) for title in header)  # as `Text`, so that a `[` in it is not markup


def _show_notes(console: Console, notes: Iterator[str] | list[str]) -> None:
    for note in notes:
        console.print(note, soft_wrap=True, highlight=False, markup=False)


# ---- In Markdown


def bench_markdown(bench: Bench) -> str:
    figures, limits, *curves = bench_lines(bench)
    tables = [_markdown(figures), _markdown(limits)]
    for lines in curves:
        tables += [f"{_escaped(lines.title)}:", _markdown(lines)]
    return "\n\n".join([*tables, _list(bench_notes(bench))]) + "\n"


def ledger_markdown(data: dict[str, Any] | Ledger) -> str:
    """The grid, scenarios by clients, with its legend and notes; ``data`` as for `show_ledger`."""
    ledger = data if isinstance(data, Ledger) else results.ledger(data)
    return "\n\n".join([_markdown(grid_lines(ledger)), _list([legend(), *ledger_notes(ledger)])]) + "\n"


def _markdown(lines: Lines) -> str:
    rows = [lines.header, tuple("---" for _ in lines.header), *lines.rows]
    return "\n".join("| " + " | ".join(map(_escaped, row)) + " |" for row in rows)


def _list(notes: Iterator[str] | list[str]) -> str:
    return "\n".join(f"- {_escaped(note)}" for note in notes)


def _escaped(text: str) -> str:
    """Escape what would end a cell or open a tag."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


# ---- Their contents


def legend() -> str:
    return "; ".join(f"{MARKS[verdict]} {meaning}" for verdict, meaning in MEANINGS.items()) + "."


def grid_lines(ledger: Ledger) -> Lines:
    rows = []
    for scenario, what in ledger.scenarios.items():
        cells = (cell(ledger.entries.get((scenario, column))).text for column in ledger.columns)
        rows.append((f"{scenario}: {what}" if what else scenario, *cells))
    rows.append(("total", *("; ".join(total(ledger, column).parts) for column in ledger.columns)))
    return Lines("Ledger", ("scenario", *ledger.columns), rows)


def bench_lines(bench: Bench) -> list[Lines]:
    """The figures, the limits, then one table for each curve."""
    return [_figures(bench), limit_lines(bench), *(curve_lines(bench, curve) for curve in bench.curves.values())]


def _figures(bench: Bench) -> Lines:
    rows = []
    for key, title in bench.titles.items():
        if key in bench.samples:
            rows.append((title, *(_figure(bench, key, column) for column in bench.columns)))
    return Lines("Figures", ("median (minimum to maximum)", *bench.columns), rows)


def _figure(bench: Bench, key: str, column: str) -> str:
    if column in bench.failures.get(bench.measures.get(key, key), {}):
        return "failed"
    return spread_text(spread(bench.samples[key].get(column, [])))


def limit_lines(bench: Bench) -> Lines:
    rows: Rows = [(bench.titles.get(one.row, one.row), one.limit, limit_text(one), one.verdict) for one in bench.limits]
    return Lines("Limits", ("", "limit", SELF, ""), rows)


def limit_text(limit: LimitResult) -> str:
    return spread_text(limit.value, " x" if " x " in limit.limit else "")


def curve_lines(bench: Bench, curve: CurveLines) -> Lines:
    """The figures of a curve, one line for each x."""
    columns = [column for column in bench.columns if column in curve.samples]
    failed = bench.failures.get(curve.measure, {})
    rows = []
    for x in sorted({x for points in curve.samples.values() for x in points}):
        texts = [spread_text(spread(curve.samples[column].get(x, []))) for column in columns]
        rows.append((f"{x:,}", *(text or "failed" * (column in failed) for column, text in zip(columns, texts))))
    return Lines(f"{curve.title}, {curve.y_title}", (curve.x_title, *columns), rows)
