"""The overview for the documents: the grid and the most important charts in one picture, on white.

Responsible for: its layout. Not responsible for: drawing bars and lines (`charts.py`), the format of a figure
(`formatting.py`).
"""

from __future__ import annotations

from functools import partial
from typing import Callable, NamedTuple, Tuple

from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from ..peers import SELF
from .canvas import COLOURS, OVERVIEW, Canvas, styled, text_width
from .charts import BAR, LINE_NAMES, NAMES, bar_columns, draw_bars, draw_curve
from .formatting import (
    MARKS,
    MEANINGS,
    Cell,
    MetricTitle,
    cell,
    direction,
    metric_titles,
    notes_of,
    origin_line,
    rounds_text,
    total,
    versions_line,
)
from .results import Bench, CurveLines, Ledger

_WIDTH = 900
_MARGIN = 16
_SCENARIOS = 262  # pixels of the grid's first column
_LINE = 30  # pixels for a scenario
_OVERVIEW_ROWS = ("call", "stream", "cpu", "fork", "memory")
_OVERVIEW_CURVE = "scale_rate"

_Part = Tuple[float, Callable[[Canvas, float], None]]  # its height, and a function that draws it from a top position on


@styled
def overview(bench: Bench | None, ledger: Ledger | None) -> str:
    """The grid and the most important charts in one picture, as wide as a page of the documents, on white."""
    parts = [*_grid_parts(ledger), *_figure_parts(bench)]
    canvas = Canvas(_WIDTH, sum(height for height, _ in parts) + 2 * _MARGIN, OVERVIEW)
    top = float(_MARGIN)
    for height, draw in parts:
        draw(canvas, top)
        top += height
    return canvas.svg()


# ---- Its parts


def _grid_parts(ledger: Ledger | None) -> list[_Part]:
    if ledger is None:
        return []
    under = ", ".join([origin_line(ledger.origin), *([] if ledger.seed is None else [f"seed {ledger.seed}"])])
    under += f"; {versions_line(ledger.origin)}"
    return [
        (50, partial(_draw_heading, "What each client loses", under)),
        (28, partial(_draw_columns, ledger)),
        *(_scenario_part(ledger, scenario) for scenario in ledger.scenarios),
        (_LINE + 12, partial(_draw_totals, ledger)),
        (len(MEANINGS) * 16 + 22, _draw_legend),
    ]


def _scenario_part(ledger: Ledger, scenario: str) -> _Part:
    what = _wrapped(ledger.scenarios[scenario], _SCENARIOS - 10, 10)
    height = _LINE + 12 * (len(what) - 1)
    return height, partial(_draw_scenario, ledger, scenario, what, height)


def _figure_parts(bench: Bench | None) -> list[_Part]:
    if bench is None:
        return []
    titles = metric_titles(bench.titles)
    tiles = [_bar_tile(bench, key, titles[key]) for key in _OVERVIEW_ROWS if key in bench.samples and key in titles]
    if _OVERVIEW_CURVE in bench.curves:
        tiles.append(_curve_tile(bench, bench.curves[_OVERVIEW_CURVE]))
    under = f"{origin_line(bench.origin)}; {versions_line(bench.origin)}. Bar: median of {rounds_text(bench)}; "
    under += "whisker: minimum to maximum"
    pairs = [tiles[start : start + 2] for start in range(0, len(tiles), 2)]
    rows: list[_Part] = [(max(tile.height for tile in pair), partial(_draw_tiles, pair)) for pair in pairs]
    lines = bench.curves.get(_OVERVIEW_CURVE)
    notes = notes_of(bench, lines.measure) if lines else []
    return [
        (50, partial(_draw_heading, "What each client costs", under)),
        *rows,
        *((16, partial(_draw_note, note)) for note in notes),
    ]


def _draw_heading(heading: str, under: str, canvas: Canvas, top: float) -> None:
    sheet = canvas.sheet(top, 50)
    sheet.text(_MARGIN, 10, heading, fontsize=18, fontweight="bold", va="center")
    size = _fitting(under, _WIDTH - 2 * _MARGIN, 11)
    sheet.text(_MARGIN, 32, under, fontsize=size, color=COLOURS["muted"], va="center")


def _draw_note(note: str, canvas: Canvas, top: float) -> None:
    size = _fitting(note, _WIDTH - 2 * _MARGIN, 10.5)
    canvas.sheet(top, 16).text(_MARGIN, 8, note, fontsize=size, color=COLOURS["muted"], va="center")


def _lefts(ledger: Ledger) -> tuple[list[float], float]:
    """The left edge of each client's column, and their width."""
    width = (_WIDTH - 2 * _MARGIN - _SCENARIOS) / max(len(ledger.columns), 1)
    return [_MARGIN + _SCENARIOS + place * width for place in range(len(ledger.columns))], width


def _draw_columns(ledger: Ledger, canvas: Canvas, top: float) -> None:
    sheet = canvas.sheet(top, 28)
    lefts, width = _lefts(ledger)
    for left, column in zip(lefts, ledger.columns):
        bold = "bold" if column == SELF else "normal"
        size = _fitting(column, width - 8, 12)
        sheet.text(left + width / 2, 14, column, ha="center", va="center", fontsize=size, fontweight=bold)


def _draw_scenario(ledger: Ledger, scenario: str, what: list[str], height: float, canvas: Canvas, top: float) -> None:
    sheet = canvas.sheet(top, height)
    sheet.text(_MARGIN, 9.5, scenario, va="center", fontsize=11.5, fontweight="bold")
    for place, line in enumerate(what):
        size = _fitting(line, _SCENARIOS - 10, 10)
        sheet.text(_MARGIN, 22 + 12 * place, line, va="center", fontsize=size, color=COLOURS["muted"])
    lefts, width = _lefts(ledger)
    for left, column in zip(lefts, ledger.columns):
        _draw_cell(sheet, left, width, height, cell(ledger.entries.get((scenario, column))))


def _draw_totals(ledger: Ledger, canvas: Canvas, top: float) -> None:
    sheet = canvas.sheet(top, _LINE + 12)
    sheet.plot([_MARGIN, _WIDTH - _MARGIN], [4, 4], color=COLOURS["line"], linewidth=1)
    sheet.text(_MARGIN, 8 + _LINE / 2, "total", va="center", fontsize=11.5, fontweight="bold")
    lefts, width = _lefts(ledger)
    for left, column in zip(lefts, ledger.columns):
        for place, words in enumerate(total(ledger, column).parts):
            size = _fitting(words, width - 8, 10)
            sheet.text(left + width / 2, 17 + 13 * place, words, ha="center", va="center", fontsize=size)


def _draw_cell(sheet: Axes, left: float, width: float, height: float, found: Cell) -> None:
    paper, ink = COLOURS[f"{found.verdict}-paper"], COLOURS[found.verdict]
    sheet.add_patch(Rectangle((left + 1, 1), width - 2, height - 2, facecolor=paper, linewidth=0, clip_on=False))
    lines = [f"{found.mark} {found.parts[0]}", *_fewer(found.parts[1:], width - 8)]
    first = height / 2 - 6.5 * (len(lines) - 1)
    for place, text in enumerate(lines):
        size = _fitting(text, width - 8, 10)
        y = first + 13 * place
        sheet.text(left + width / 2, y, text, ha="center", va="center", fontsize=size, color=ink)


def _fewer(words: list[str], width: float) -> list[str]:
    """One line with as many as fit, and the number of the others."""
    for kept in range(len(words), 0, -1):
        more = [f"+{len(words) - kept}"] if kept < len(words) else []
        line = ", ".join([*words[:kept], *more])
        if kept == 1 or _fitting(line, width, 10) >= 8.5:
            return [line]
    return []


def _draw_legend(canvas: Canvas, top: float) -> None:
    sheet = canvas.sheet(top, len(MEANINGS) * 16 + 22)
    for place, (verdict, meaning) in enumerate(MEANINGS.items()):
        y = 10 + place * 16
        paper = COLOURS[f"{verdict}-paper"]
        sheet.add_patch(Rectangle((_MARGIN, y - 7), 18, 14, facecolor=paper, linewidth=0, clip_on=False))
        sheet.text(_MARGIN + 9, y, MARKS[verdict], ha="center", va="center", fontsize=10, color=COLOURS[verdict])
        sheet.text(_MARGIN + 26, y, meaning, va="center", fontsize=10.5, color=COLOURS["muted"])


class _Tile(NamedTuple):
    """Half the width of the picture: a title, a line below it, and axes."""

    height: float
    title: str
    under: str
    draw: Callable[[Canvas, float, float], None]  # at a left and a top position


def _draw_tiles(tiles: list[_Tile], canvas: Canvas, top: float) -> None:
    sheet = canvas.sheet(top, 46)
    half = _WIDTH / 2
    for place, tile in enumerate(tiles):
        left = _MARGIN + place * half
        room = half - 2 * _MARGIN
        sheet.text(left, 10, tile.title, va="center", fontsize=_fitting(tile.title, room, 12.5), fontweight="bold")
        sheet.text(left, 27, tile.under, va="center", fontsize=11, color=COLOURS["muted"])
        tile.draw(canvas, left, top + 40)


def _bar_tile(bench: Bench, key: str, title: MetricTitle) -> _Tile:
    height = BAR * len(bar_columns(bench, key))

    def draw(canvas: Canvas, left: float, top: float) -> None:
        draw_bars(canvas.axes(left + NAMES, top, _WIDTH / 2 - 2 * _MARGIN - NAMES, height), bench, key)

    return _Tile(40 + height + 22, title.what, title.under, draw)


def _curve_tile(bench: Bench, lines: CurveLines) -> _Tile:
    def draw(canvas: Canvas, left: float, top: float) -> None:
        draw_curve(canvas.axes(left + 62, top + 6, _WIDTH / 2 - 2 * _MARGIN - 62 - LINE_NAMES, 190), bench, lines)

    return _Tile(40 + 6 + 190 + 50, lines.title, direction(lines.y_title), draw)


def _wrapped(text: str, width: float, size: float) -> list[str]:
    """One line, or two, which `_fitting` reduces if they are too long."""
    words = text.split(" ")
    # A single word on the second line looks worse than a smaller font.
    if text_width(text, size) <= width * 1.1 or len(words) == 1:
        return [text]
    first = max([at for at in range(1, len(words)) if text_width(" ".join(words[:at]), size) <= width], default=1)
    return [" ".join(words[:first]), " ".join(words[first:])]


def _fitting(text: str, width: float, size: float) -> float:
    """``size``, or the one at which ``text`` is ``width`` pixels wide."""
    wide = text_width(text, size)
    return size if wide <= width else size * width / wide
