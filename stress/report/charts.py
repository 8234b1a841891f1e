"""The charts: a metric as bars, a curve as lines. Their titles are part of the page.

Responsible for: drawing bars and lines. Not responsible for: the meaning and the format of a figure (`formatting.py`),
the grid and the overview (`overview.py`), colours (`canvas.py`).
"""

from __future__ import annotations

import math
from typing import Iterator

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from ..metrics import Spread, spread
from ..peers import SELF
from .canvas import COLOURS, MARKERS, Canvas, colours, styled
from .formatting import number
from .results import Bench, CurveLines


@styled
def bars(bench: Bench, key: str) -> str:
    """One metric of a benchmark, with a bar for each client."""
    height = 8 + BAR * len(bar_columns(bench, key))
    canvas = Canvas(380, height, f"bars-{key}")
    draw_bars(canvas.axes(NAMES, 4, 380 - NAMES, height - 8), bench, key)
    return canvas.svg()


@styled
def curve(bench: Bench, key: str) -> str:
    """One curve of a benchmark, with a line for each client."""
    canvas = Canvas(480, 300, f"curve-{key}")
    draw_curve(canvas.axes(72, 10, 480 - 72 - LINE_NAMES, 300 - 10 - 46), bench, bench.curves[key])
    return canvas.svg()


# ---- Bars

BAR = 24  # pixels for each client
NAMES = 118  # pixels for the names
_VALUES = 0.30  # fraction of the axes for the number after the bar


def bar_columns(bench: Bench, key: str) -> list[str]:
    failed = bench.failures.get(bench.measures.get(key, key), {})
    measured = bench.samples[key]
    return [column for column in bench.columns if column in failed or spread(measured.get(column, []))]


def draw_bars(axes: Axes, bench: Bench, key: str) -> None:
    columns = bar_columns(bench, key)
    names = colours(bench.columns)
    spreads = {column: spread(bench.samples[key].get(column, [])) for column in columns}
    longest = max((found.most for found in spreads.values() if found), default=0) or 1
    gap = longest * 0.02
    for place, column in enumerate(columns):
        found = spreads[column]
        if found is None:
            axes.text(gap, place, "failed", va="center", color=COLOURS["muted"], style="italic", fontsize=12)
            continue
        axes.barh(place, found.middle, height=0.62, color=COLOURS[names[column]], linewidth=0)
        if found.most > found.least:
            _whisker(axes, found, place)
        bold = "bold" if column == SELF else "normal"
        axes.text(found.most + gap, place, number(found.middle), va="center", fontsize=12, fontweight=bold)
    axes.set_xlim(0, longest / (1 - _VALUES))
    axes.set_ylim(len(columns) - 0.5, -0.5)
    axes.set_yticks(range(len(columns)), columns)
    for label, column in zip(axes.get_yticklabels(), columns):
        label.set_fontweight("bold" if column == SELF else "normal")
    axes.tick_params(axis="y", length=0, pad=6, labelsize=12)
    axes.xaxis.set_major_locator(NullLocator())
    for side in ("top", "right", "bottom"):
        axes.spines[side].set_visible(False)


def _whisker(axes: Axes, found: Spread, place: float) -> None:
    """From the minimum to the maximum, with an outline that makes it visible on the bar."""
    axes.hlines(place, found.least, found.most, colors=COLOURS["paper"], linewidth=4)
    axes.hlines(place, found.least, found.most, colors=COLOURS["ink"], linewidth=1.4)
    axes.vlines([found.least, found.most], place - 0.16, place + 0.16, colors=COLOURS["ink"], linewidth=1.4)


# ---- Curves

LINE_NAMES = 122  # pixels at the right for the names at the ends of the lines
_NAME_HEIGHT = 15
_LEADER_LINE = {"arrowstyle": "-", "linewidth": 0.7, "shrinkA": 1, "shrinkB": 5, "relpos": (0, 0.5)}
_LOG_FROM = 30  # the ratio of the highest to the lowest point from which on the scale is logarithmic


def draw_curve(axes: Axes, bench: Bench, lines: CurveLines) -> None:
    xs = sorted({x for points in lines.samples.values() for x in points})
    places = dict(zip(xs, _log2_places(xs)))
    names = colours(bench.columns)
    ends: dict[str, tuple[float, float]] = {}
    lowest, highest = math.inf, 0.0
    for column in [column for column in reversed(bench.columns) if column in lines.samples]:  # this client on top
        found = {x: spread(values) for x, values in sorted(lines.samples[column].items())}
        points = [(places[x], value) for x, value in found.items() if value]
        if points:
            _line(axes, points, names[column], column == SELF)
            ends[column] = points[-1][0], points[-1][1].middle
            lowest = min(lowest, *(value.least for _, value in points))
            highest = max(highest, *(value.most for _, value in points))
    _scale(axes, lines, places, lowest, highest)
    _name_ends(axes, ends, names)


def _log2_places(xs: list[int]) -> Iterator[float]:
    """Log2 of each; 0, which has no logarithm, is placed one step before the first."""
    some = [math.log2(x) for x in xs if x > 0]
    step = (some[-1] - some[0]) / (len(some) - 1) if len(some) > 1 else 1
    for x in xs:
        yield math.log2(x) if x > 0 else some[0] - step if some else 0


def _line(axes: Axes, points: list[tuple[float, Spread]], name: str, own: bool) -> None:
    places = [place for place, _ in points]
    middles = [value.middle for _, value in points]
    below = [value.middle - value.least for _, value in points]
    above = [value.most - value.middle for _, value in points]
    axes.errorbar(
        places,
        middles,
        yerr=(below, above) if any(below) or any(above) else None,
        color=COLOURS[name],
        marker=MARKERS[name],
        markersize=6,
        linewidth=2.6 if own else 1.6,
        linestyle="--" if name == "floor" else "-",
        elinewidth=1.2,
        capsize=3,
        clip_on=False,
    )


def _scale(axes: Axes, lines: CurveLines, places: dict[int, float], lowest: float, highest: float) -> None:
    log = lowest > 0 and highest > _LOG_FROM * lowest
    if log:
        axes.set_yscale("log")
        axes.set_ylim(lowest / 1.6, highest * 1.6)
        axes.yaxis.set_major_locator(LogLocator(10, subs=(1, 3)))
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.set_ylim(0, (highest or 1) * 1.08)
        axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}"))
    unit = lines.y_title.replace(", us", ", µs") + (" (log)" if log else "")
    axes.set_ylabel(unit, fontsize=11)
    axes.set_xlabel(f"{lines.x_title} (log2)", fontsize=11)
    axes.set_xticks(list(places.values()), [f"{x:,}" for x in places])
    ends = min(places.values()), max(places.values())
    pad = (ends[1] - ends[0]) * 0.04 or 1
    axes.set_xlim(ends[0] - pad, ends[1] + pad)
    axes.grid(axis="y", color=COLOURS["line"], linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=11, length=3)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _name_ends(axes: Axes, ends: dict[str, tuple[float, float]], names: dict[str, str]) -> None:
    """Write each client's name at the end of its line, without overlaps, connected by a leader line."""
    box = axes.get_window_extent()
    marks = {column: axes.transData.transform(end) for column, end in ends.items()}
    order = sorted(marks, key=lambda column: float(marks[column][1]))
    heights: list[float] = []
    for column in order:  # upwards from the lowest, then downwards from the top if there is no space left
        heights.append(max(float(marks[column][1]), heights[-1] + _NAME_HEIGHT if heights else box.y0 + 4))
    ceiling = box.y1 + 2
    for place in reversed(range(len(heights))):
        heights[place] = min(heights[place], ceiling)
        ceiling = heights[place] - _NAME_HEIGHT
    for column, height in zip(order, heights):
        colour = COLOURS[names[column]]
        mark_x, mark_y = (float(part) for part in marks[column])
        axes.annotate(
            column,
            xy=ends[column],
            xytext=(box.x1 + 16 - mark_x, height - mark_y),
            textcoords="offset pixels",
            va="center",
            color=colour,
            fontsize=11.5,
            fontweight="bold" if column == SELF else "normal",
            arrowprops={**_LEADER_LINE, "color": colour},
            annotation_clip=False,
        )
