"""The format of figures, the same in the terminal, in Markdown, on the page and in charts.

Responsible for: the digits of a number, a cell of the ledger, the title and the unit of a metric. Pure. Not responsible
for: tables, colours.
"""

from __future__ import annotations

from typing import Iterator, NamedTuple

from ..ledger import FAULTS
from ..metrics import Spread, spread
from ..peers import FLOOR, SELF
from .results import COUNTS, Bench, Entry, Ledger, Origin

# The marks are for readers who cannot distinguish red from green.
MARKS = {"balances": "✓", "reported": "!", "red": "✗", "failed": "?", "none": "-"}
MEANINGS = {
    "balances": "all events arrived once and in order; nothing is left behind",
    "reported": "some events did not arrive, and each was reported to the program",
    "red": "events lost without a report, duplicated or out of order, or a program that hung or left something behind",
    "failed": "could not run",
    "none": "not run, or not applicable to this client",
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
    "delivered": "events of those calls that arrived at least once",
    "reported": "not delivered, but reported to the program",
    "lost": "neither delivered nor reported",
    "twice": "delivered under two ids",
    "collided": "two events with one id",
    "disordered": "out of order within a thread",
    "hung": "programs that did not end in time",
    "orphans": "processes left behind",
    "leaked": "additional threads or descriptors of an idle process",
    "peak_rss": "maximum resident memory",
    "peak_pss": "the same, with shared pages counted once",
    "peak_threads": "maximum number of threads",
    "peak_fds": "maximum number of open descriptors",
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
    """A figure of an `Entry`; empty if it was not counted."""
    if value is None:
        return ""
    if key in ("peak_rss", "peak_pss"):
        return f"{value / 2**20:,.1f}"
    return f"{value:,.0f}" if value == int(value) else number(value)


class Cell(NamedTuple):
    """What one client did in one scenario, in a few words."""

    verdict: str  # a key of MARKS
    parts: list[str]

    @property
    def mark(self) -> str:
        return MARKS[self.verdict]

    @property
    def text(self) -> str:
        return f"{self.mark} {', '.join(self.parts)}"


def cell(entry: Entry | None) -> Cell:
    if entry is None:
        return Cell("none", ["not run"])
    if entry.verdict == "failed":
        return Cell("failed", ["failed"]) if entry.is_applicable else Cell("none", ["not applicable"])
    words = [_lost(entry)]
    for key in ("reported", *FAULTS[1:]):
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
    """One client, summed over all scenarios that it ran."""

    verdicts: dict[str, int]
    calls: float
    lost: float

    @property
    def ran(self) -> int:
        return sum(count for verdict, count in self.verdicts.items() if verdict != "failed")

    @property
    def parts(self) -> list[str]:
        if not self.ran:
            return ["not run"]
        return [f"{self.verdicts['balances']} of {self.ran} balance", f"{self.lost:,.0f} of {self.calls:,.0f} lost"]


def total(ledger: Ledger, column: str) -> Total:
    entries = ledger.of(column)
    verdicts = {verdict: sum(entry.verdict == verdict for entry in entries) for verdict in MARKS if verdict != "none"}
    ran = [entry for entry in entries if entry.verdict != "failed"]
    calls, lost = (sum(entry.figures[key] or 0 for entry in ran) for key in ("calls", "lost"))
    return Total(verdicts, calls, lost)


class MetricTitle(NamedTuple):
    """The complete title of a metric: with ``the same`` spelled out, and the unit separate."""

    what: str
    unit: str
    direction: str

    @property
    def under(self) -> str:
        return ", ".join(filter(None, [self.unit, self.direction]))


_UNITS = {"us": "µs", "ms": "ms", "events/s": "events/s", "wake-ups/s": "wake-ups/s"}


def metric_titles(titles: dict[str, str]) -> dict[str, MetricTitle]:
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
        found[key] = MetricTitle(what, unit, direction(title))
    return found


def direction(title: str) -> str:
    return "higher is better" if "events/s" in title else "lower is better"


def origin_line(origin: Origin) -> str:
    return f"{origin.machine}, Python {origin.python}, {origin.date:%Y-%m-%d}"


def versions_line(origin: Origin) -> str:
    """The other clients and their versions."""
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
        yield f"Bytes of one event in a request: {sizes}."
    fastest = max((s.middle for s in map(spread, bench.samples.get("stream", {}).values()) if s), default=None)
    if fastest and bench.server_rate:
        times = bench.server_rate / fastest
        yield f"The counting server alone takes {bench.server_rate:,.0f} events/s, {times:.1f} x the fastest client."
    yield from bench.notes
    for measure, failed in bench.failures.items():
        for column, why in failed.items():
            yield f"{measure} of {column} failed: {why}"


def notes_of(bench: Bench, measure: str) -> list[str]:
    """The notes that a chart of this measure needs: which clients were measured in another way."""
    return [note for note in bench.notes if note.startswith(f"{measure} of ")]


def ledger_notes(ledger: Ledger) -> Iterator[str]:
    own = ledger.origin.versions.get(SELF)
    versions = ", ".join(filter(None, [own and f"this client is {own}", versions_line(ledger.origin)]))
    seed = "" if ledger.seed is None else f", seed {ledger.seed}"
    seconds = "" if ledger.seconds is None else f", {ledger.seconds:g} s a scenario"
    yield f"{origin_line(ledger.origin)}{seed}{seconds}; {versions}."
    found: dict[tuple[str, str], dict[str, None]] = {}  # by note and scenario: the clients
    for entry in ledger.entries.values():
        for text in entry.remarks:
            found.setdefault((text, entry.scenario), {})[entry.column] = None
    where: dict[tuple[str, str], list[str]] = {}  # by clients and note: the scenarios
    for (text, scenario), columns in found.items():
        who = "every client" if len(columns) == len(ledger.columns) > 1 else ", ".join(columns)
        where.setdefault((who, text), []).append(scenario)
    for (who, text), scenarios in where.items():
        yield f"{who}: {text} ({', '.join(scenarios)})"
