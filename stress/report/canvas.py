"""What all charts share: colours, fonts, and SVG text that is identical for identical figures.

Responsible for: matplotlib's settings, a canvas with pixel coordinates, reducing what matplotlib writes. Not
responsible for: figures.
"""

from __future__ import annotations

import html
import io
import re
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

from ..peers import FLOOR, SELF

# All different, because the page replaces each by a CSS variable, whose value is another one in dark mode. Each is
# readable as text on white, and those of the clients differ in lightness as well.
COLOURS = {
    "ink": "#1f2328",
    "muted": "#59636e",
    "line": "#d1d9e1",
    "paper": "#ffffff",
    "own": "#0a5cc3",
    "second": "#0f7b6d",
    "third": "#b35901",
    "fourth": "#8a3fa1",
    "fifth": "#6b6b02",
    "floor": "#7d8590",
    "balances": "#1a7f38",
    "balances-paper": "#dafbe2",
    "reported": "#7d4e01",
    "reported-paper": "#fff1c2",
    "red": "#b3121f",
    "red-paper": "#ffdcd8",
    "failed": "#57606b",
    "failed-paper": "#eaeef3",
    "none": "#57606c",
    "none-paper": "#f6f8fb",
}
OVERVIEW = "overview"
_OWN_COLOURS = {SELF: "own", "posthog": "third", "segment": "fourth", "rudder": "fifth", FLOOR: "floor"}
MARKERS = {"own": "o", "second": "s", "third": "^", "fourth": "D", "fifth": "v", "floor": "x"}

# A unit is a CSS pixel. DejaVu Sans is part of matplotlib, so that positions are the same on every machine.
_SETTINGS: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 12,
    "text.color": COLOURS["ink"],
    "axes.edgecolor": COLOURS["line"],
    "axes.labelcolor": COLOURS["muted"],
    "xtick.color": COLOURS["line"],
    "ytick.color": COLOURS["line"],
    "xtick.labelcolor": COLOURS["ink"],
    "ytick.labelcolor": COLOURS["ink"],
    "axes.facecolor": "none",
    "path.simplify": False,
    "text.parse_math": False,  # so that `$` is an ordinary character
}
styled = matplotlib.rc_context(_SETTINGS)  # some settings are read when an object is created, some when it is written


def colours(columns: list[str]) -> dict[str, str]:
    """A name of `COLOURS` for each column: a client has the same colour in all charts."""
    free = [name for name in MARKERS if name not in _OWN_COLOURS.values() or name == "second"]
    others = [name for name in MARKERS if name not in ("own", "floor", "second")]
    found: dict[str, str] = {}
    for column in columns:
        if column in _OWN_COLOURS:
            found[column] = _OWN_COLOURS[column]
        else:
            taken = {*found.values(), *(_OWN_COLOURS[other] for other in columns if other in _OWN_COLOURS)}
            found[column] = next((name for name in free + others if name not in taken), "floor")
    return found


class Canvas:
    """A picture of the given size in pixels, with its origin at the top left."""

    def __init__(self, width: float, height: float, name: str) -> None:
        self.width, self.height = width, height
        self._name = name
        self._is_standalone = name == OVERVIEW
        self._figure = Figure(figsize=(width / 72, height / 72), dpi=72)
        self._figure.patch.set_visible(self._is_standalone)
        self._figure.patch.set_facecolor(COLOURS["paper"])

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        bottom = self.height - top - height
        box = (left / self.width, bottom / self.height, width / self.width, height / self.height)
        axes: Axes = self._figure.add_axes(box)
        return axes

    def sheet(self, top: float, height: float) -> Axes:
        """Axes over the whole width with pixel coordinates, from ``top`` on."""
        axes = self.axes(0, top, self.width, height)
        axes.set_xlim(0, self.width)
        axes.set_ylim(height, 0)
        axes.axis("off")
        return axes

    def svg(self) -> str:
        written = io.StringIO()
        with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": self._name}):
            nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
            canvas: Any = FigureCanvasSVG(self._figure)
            canvas.print_svg(written, metadata=nothing)
        svg = _cleaned(written.getvalue(), self._name, self.width, self.height)
        return _compact(svg) if self._is_standalone else svg


def text_width(text: str, size: float, weight: str = "normal", style: Any = "normal") -> float:
    """The width in pixels of one line in DejaVu Sans."""
    font = FontProperties(family="DejaVu Sans", weight=weight, style=style)
    width, _, _ = text_to_path.get_text_width_height_descent(text, font, False)
    return float(width) * size / float(font.get_size_in_points())


def _compact(svg: str) -> str:
    """The same picture in fewer bytes, for a standalone file.

    Every text states its width, so that a reader's font, which may be wider, takes no more space than DejaVu Sans.
    Text as outlines would have the same effect, with ten times the bytes.
    """

    def sized(match: re.Match[str]) -> str:
        style = dict(part.split(": ", 1) for part in match["style"].split("; "))
        size = float(style["font-size"][:-2])
        weight = style.get("font-weight", "normal")
        wide = text_width(html.unescape(match["text"]), size, weight, style.get("font-style", "normal"))
        style["font-family"] = _FONTS
        place = re.sub(r' transform="rotate\(-0 [^"]*"', "", match["place"])
        rule = "; ".join(f"{key}: {value}" for key, value in style.items())
        return f'<text style="{rule}"{place} textLength="{wide:.1f}">{match["text"]}</text>'

    svg = _TEXT.sub(sized, svg)
    svg = re.sub(r"<g>\n(<(?:text|path|use)[^>]*>(?:[^<]*</text>)?)\n</g>", r"\1", svg)
    svg = _RECTANGLE.sub(r"M\1 \2H\3V\4H\1z", svg)
    classes = {style: f"s{place}" for place, style in enumerate(dict.fromkeys(_STYLE.findall(svg)))}
    svg = _STYLE.sub(lambda match: f'class="{classes[match[1]]}"', svg)
    rules = "".join(f"\n.{name}{{{style}}}" for style, name in classes.items())
    return svg.replace("</style>", f"{rules}</style>", 1)


_TEXT = re.compile('<text style="(?P<style>[^"]*)"(?P<place>[^>]*)>(?P<text>[^<]*)</text>')
_STYLE = re.compile(r'(?<= )style="([^"]*)"')
_RECTANGLE = re.compile(r"M (\S+) (\S+)\nL (\S+) \2\nL \3 (\S+)\nL \1 \4\nz\n")
_FONTS = "'DejaVu Sans', Verdana, sans-serif"


def _cleaned(svg: str, name: str, width: float, height: float) -> str:
    """Smaller, and without ids that another picture on the same page has."""
    svg = svg[svg.index("<svg") :]
    used = dict.fromkeys(re.findall(r'(?:url\(#|href="#)([^)"]+)', svg))
    short = {long: f"{name[:1]}{place}" if name == OVERVIEW else f"{name}-{place}" for place, long in enumerate(used)}
    svg = re.sub(r' id="([^"]+)"', lambda match: f' id="{short[match[1]]}"' if match[1] in used else "", svg)
    svg = re.sub(r'(url\(#|href="#)([^)"]+)', lambda match: match[1] + short[match[2]], svg)
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r"\d+\.\d{3,}", lambda match: _rounded(float(match[0])), svg)
    svg = re.sub(r"\s*\n\s*", "\n", svg)
    head = '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" role="img" '
    head += f'width="{width:g}" height="{height:g}" viewBox="0 0 {width:g} {height:g}">'
    return re.sub(r"<svg[^>]*>", head, svg, count=1)


def _rounded(length: float) -> str:
    """Hundredths of a pixel. A number below 1 may be a scale factor, and keeps four significant digits."""
    return f"{length:.4g}" if length < 1 else f"{length:.2f}".rstrip("0").rstrip(".")
