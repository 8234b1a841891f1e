"""How a figure reads, everywhere the same: on the terminal, in Markdown, on the page and in pictures.

Lives here: the digits of a number, a cell of the ledger, a row's title and unit. Pure. Never here: tables, colours.
"""

from __future__ import annotations

from typing import Iterator, NamedTuple

from ..ledger import FAULTS
from ..peers import FLOOR, SELF
from ..rows import Spread, spread
from .results import COUNTS, Bench, Entry, Ledger, Origin

# A reader who sees no red and green has the mark.
MARKS = {"balances": "✓", "told": "!", "red": "✗", "failed": "?", "none": "-"}
MEANINGS = {
    "balances": "all arrived, once, in order; nothing is left behind",
    "told": "some did not arrive, and the program was told of each",
    "red": "events lost in silence, doubled or out of order, or a program that hung or left something behind",
    "failed": "could not run",
    "none": "not run",
}
FIGURE_TITLES = {
    **{key: key for key in COUNTS},
    "disordered": "out of order",
    "seconds": "seconds",
    "longest_call_ms": "longest call, ms",
    "cpu_seconds": "CPU, s",
    "peak_rss": "RSS, MiB",
    "peak_pss": "PSS, MiB",
    "peak_threads": "threads",
    "peak_fds": "descriptors",
    "switches": "switches",
}
FIGURE_MEANINGS = {
    "calls": "calls that returned",
    "delivered": "of those, arrived at least once",
    "told": "not delivered, but named to the program's error callback",
    "lost": "neither delivered nor told",
    "twice": "delivered under two ids",
    "collided": "one id for two events",
    "disordered": "out of order within a process",
    "hung": "programs that did not end in time",
    "orphans": "processes left behind",
    "leaked": "descriptors or threads more at the end than before",
    "peak_rss": "most resident memory",
    "peak_pss": "the same, pages that processes share counted once",
    "peak_threads": "most threads at once",
    "peak_fds": "most open descriptors at once",
    "switches": "context switches",
}


def number(value: float) -> str:
    for above, digits in ((100, 0), (10, 1), (0, 2)):
        if abs(value) >= above:
            return f"{value:,.{digits}f}"
    return str(value)


def spread_text(value: Spread | None, sign: str = "") -> str:
    if value is None:
        return ""
    middle = number(value.middle) + sign
    return middle if value.least == value.most else f"{middle} ({number(value.least)} to {number(value.most)})"


def figure_text(key: str, value: float | None) -> str:
    """A figure of an `Entry`; empty where nobody counted."""
    if value is None:
        return ""
    if key in ("peak_rss", "peak_pss"):
        return f"{value / 2**20:,.1f}"
    return f"{value:,.0f}" if value == int(value) else number(value)


class Cell(NamedTuple):
    """What one client did in one scenario, in a few words."""

    verdict: str  # a key of MARKS
    words: list[str]

    @property
    def mark(self) -> str:
        return MARKS[self.verdict]

    @property
    def text(self) -> str:
        return f"{self.mark} {', '.join(self.words)}"


def cell(entry: Entry | None) -> Cell:
    if entry is None:
        return Cell("none", ["not run"])
    if entry.verdict == "failed":
        return Cell("failed", ["failed"])
    words = [_lost(entry)]
    for key in ("told", *FAULTS[1:]):
        count = entry.figures[key]
        if count:
            name = "orphan" if key == "orphans" and count == 1 else FIGURE_TITLES[key]
            words.append(f"{figure_text(key, count)} {name}")
    if entry.verdict == "red" and not any(entry.figures[key] for key in FAULTS):
        words.append("see notes" if entry.notes else "red")
    return Cell(entry.verdict, words)


def _lost(entry: Entry) -> str:
    lost, calls = entry.figures["lost"], entry.figures["calls"]
    if not lost:
        return "0 lost"
    return f"{lost:,.0f} of {calls:,.0f} lost" if calls else f"{lost:,.0f} lost"


class Total(NamedTuple):
    """One client over all scenarios that it ran."""

    verdicts: dict[str, int]
    calls: float
    lost: float

    @property
    def ran(self) -> int:
        return sum(count for verdict, count in self.verdicts.items() if verdict != "failed")

    @property
    def words(self) -> list[str]:
        if not self.ran:
            return ["not run"]
        return [f"{self.verdicts['balances']} of {self.ran} balance", f"{self.lost:,.0f} of {self.calls:,.0f} lost"]


def total(ledger: Ledger, column: str) -> Total:
    entries = ledger.of(column)
    verdicts = {verdict: sum(entry.verdict == verdict for entry in entries) for verdict in MARKS if verdict != "none"}
    ran = [entry for entry in entries if entry.verdict != "failed"]
    calls, lost = (sum(entry.figures[key] or 0 for entry in ran) for key in ("calls", "lost"))
    return Total(verdicts, calls, lost)


class RowTitle(NamedTuple):
    """A row's title without its neighbours: ``the same`` is spelled out, the unit stands apart."""

    what: str
    unit: str
    direction: str

    @property
    def under(self) -> str:
        return ", ".join(filter(None, [self.unit, self.direction]))


_UNITS = {"us": "µs", "ms": "ms", "events/s": "events/s", "wake-ups/s": "wake-ups/s"}


def row_titles(titles: dict[str, str]) -> dict[str, RowTitle]:
    found = {}
    before = ""
    for key, title in titles.items():
        what, _, last = title.rpartition(", ")
        if last not in _UNITS:
            what, last = title, ""
        if what.startswith("the same"):
            what = before.partition(", ")[0] + what[len("the same") :]
        else:
            before = what
        unit = _UNITS.get(last) or ("ratio" if " over " in what else "")
        found[key] = RowTitle(what, unit, direction(title))
    return found


def direction(title: str) -> str:
    return "more is better" if "events/s" in title else "less is better"


def origin_line(origin: Origin) -> str:
    return f"{origin.machine}, Python {origin.python}, {origin.date:%Y-%m-%d}"


def versions_line(origin: Origin) -> str:
    """The clients beside this one, and their versions."""
    return named({column: version for column, version in origin.versions.items() if column not in (FLOOR, SELF)})


def named(versions: dict[str, str]) -> str:
    return ", ".join(column if version in column else f"{column} {version}" for column, version in versions.items())


def rounds_text(bench: Bench) -> str:
    return f"{bench.rounds} round" + "s" * (bench.rounds != 1)


def bench_notes(bench: Bench) -> Iterator[str]:
    own = bench.origin.versions.get(SELF)
    versions = ", ".join(filter(None, [own and f"this client is {own}", versions_line(bench.origin)]))
    yield f"{origin_line(bench.origin)}, {rounds_text(bench)}; {versions}."
    sizes = ", ".join(f"{column} {size:.0f}" for column, size in bench.event_sizes.items())
    if sizes:
        yield f"Bytes of one event on the wire: {sizes}."
    fastest = max((s.middle for s in map(spread, bench.samples.get("stream", {}).values()) if s), default=None)
    if fastest and bench.sink_speed:
        times = bench.sink_speed / fastest
        yield f"The sink alone takes {bench.sink_speed:,.0f} events/s, {times:.1f} x the fastest client."
    yield from bench.notes
    for measure, failed in bench.failures.items():
        for column, why in failed.items():
            yield f"{measure} of {column} failed: {why}"


def notes_of(bench: Bench, measure: str) -> list[str]:
    """Those without which a picture of this measure would mislead: who was measured in another way."""
    return [note for note in bench.notes if note.startswith(f"{measure} of ")]


def ledger_notes(ledger: Ledger) -> Iterator[str]:
    own = ledger.origin.versions.get(SELF)
    versions = ", ".join(filter(None, [own and f"this client is {own}", versions_line(ledger.origin)]))
    seed = "" if ledger.seed is None else f", seed {ledger.seed}"
    seconds = "" if ledger.seconds is None else f", {ledger.seconds:g} s a scenario"
    yield f"{origin_line(ledger.origin)}{seed}{seconds}; {versions}."
    said: dict[tuple[str, str], dict[str, None]] = {}  # what and in which scenario, by whom
    for entry in ledger.entries.values():
        for text in [f"could not run: {entry.failure}"] * bool(entry.failure) + entry.notes:
            said.setdefault((text, entry.scenario), {})[entry.column] = None
    where: dict[tuple[str, str], list[str]] = {}  # by whom and what: the scenarios
    for (text, scenario), columns in said.items():
        who = "every client" if len(columns) == len(ledger.columns) > 1 else ", ".join(columns)
        where.setdefault((who, text), []).append(scenario)
    for (who, text), scenarios in where.items():
        yield f"{who}: {text} ({', '.join(scenarios)})"
