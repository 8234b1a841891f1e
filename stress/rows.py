"""What is measured and what is allowed: the rows of the table, their limits, the curves, the sums behind a ratio.

Lives here: `ROWS`, in the order of docs/benchmarks.md, and `CURVES`. Pure. Never here: measuring, printing.

Each figure is taken once a round for every client. A ratio is taken within a round and the median is of those ratios,
so that a machine that is slow for a minute is slow for both sides.
"""

from __future__ import annotations

from statistics import median
from typing import Dict, List, NamedTuple, Optional

from .peers import FLOOR, SELF

Samples = Dict[str, Dict[str, List[Optional[float]]]]  # row, column, round; None where a measurement failed
CurveSamples = Dict[str, Dict[str, Dict[int, List[Optional[float]]]]]  # curve, column, x, round


class Limit(NamedTuple):
    """This client's figure, or its ratio to the figure of the column ``against``, is within ``bound``."""

    bound: float
    against: str = ""
    at_least: bool = False

    def __str__(self) -> str:
        sign = "at least" if self.at_least else "at most"
        return f"{sign} {self.bound:g} x {self.against}" if self.against else f"{sign} {self.bound:g}"

    def is_met(self, value: float) -> bool:
        return value >= self.bound if self.at_least else value <= self.bound


class Row(NamedTuple):
    key: str
    measure: str  # rows of one measure come from the same runs
    title: str
    limits: tuple[Limit, ...] = ()


OLD = "letterapp 0.2.0"
# The import has two limits because milliseconds are those of one machine: where 10 was set, 0.2.0 took 34.
ROWS = (
    Row("call", "calls", "track(), five properties, median, us", (Limit(1.0, FLOOR),)),
    Row("tail", "calls", "the same, p99.9 over its median", (Limit(100),)),
    Row("stream", "stream", "40,000 events over HTTP, events/s", (Limit(1.15, OLD, True), Limit(5, "posthog", True))),
    Row("cpu", "stream", "the same, CPU per event, us", (Limit(1.5, FLOOR),)),
    Row("loopback_tls", "loopback_tls", "20,000 events over TLS, no delay, events/s"),
    Row("tls", "tls", "4,000 events over TLS, 20 ms away, events/s", (Limit(5, OLD, True),)),
    Row("import", "import", "import, CPU over bare Python, ms", (Limit(10), Limit(0.3, OLD))),
    Row("wakes", "idle", "idle after a burst, wake-ups/s", (Limit(0),)),
    Row("threads", "idle", "threads left some seconds later", (Limit(0),)),
    Row("fork", "fork", "fork with a used client over without", (Limit(1.1),)),
    Row("memory", "memory", "memory per waiting event over its encoded size", (Limit(1.3),)),
    Row("relay_call", "relay", "track() with relay=True over without, median", (Limit(3.0),)),
    Row("relay_rate", "relay", "8 processes through one relay, all delivered, events/s", (Limit(50_000, "", True),)),
    Row("relay_own", "relay", "of these the part that went the processes' own way, %"),
    Row("manager_call", "manager", "track() with relay=manager.queue over without, median", (Limit(1.2),)),
    Row("manager_rate", "manager", "8 processes through one manager, delivered, events/s", (Limit(30_000, "", True),)),
    Row("manager_own", "manager", "of these the part that went the processes' own way, %"),
)


class Curve(NamedTuple):
    """A figure that is taken at each of ``xs``, for its shape. No limit: what a shape may be is for a reader to say."""

    key: str
    measure: str  # curves of one measure come from the same runs, so they share their xs
    title: str
    x_title: str
    y_title: str
    xs: tuple[int, ...]


WORKERS, WAITING, CLIENTS = (1, 2, 4, 8, 16, 32), (0, 100, 1_000, 10_000), (1, 10, 100)
CURVES = (
    Curve("scale_call", "scale", "track() in forked workers, all at once", "workers", "median of a call, us", WORKERS),
    Curve("scale_rate", "scale", "19,200 events of forked workers, delivered", "workers", "events/s in all", WORKERS),
    Curve("fork_waiting", "fork_waiting", "fork while events wait", "events waiting", "fork and end, us", WAITING),
    Curve("fork_clients", "fork_clients", "fork with many used clients", "clients", "fork and end, us", CLIENTS),
)
MEASURES = tuple(dict.fromkeys([*(row.measure for row in ROWS), *(curve.measure for curve in CURVES)]))


class Spread(NamedTuple):
    """The median of some rounds, the least and the most."""

    middle: float
    least: float
    most: float


def spread(values: list[float | None]) -> Spread | None:
    taken = [value for value in values if value is not None]
    return Spread(median(taken), min(taken), max(taken)) if taken else None


def held_against(samples: Samples, row: Row, limit: Limit) -> Spread | None:
    """What ``limit`` looks at; None when either side was not measured."""
    own = samples[row.key].get(SELF, [])
    if not limit.against:
        return spread(own)
    other = samples[row.key].get(limit.against, [])
    return spread([a / b if a is not None and b else None for a, b in zip(own, other)])


class Finding(NamedTuple):
    """One limit, looked at."""

    row: Row
    limit: Limit
    value: Spread | None
    noise: Spread | None  # the floor's own figure, where that is no cost but what the machine does to everybody

    @property
    def verdict(self) -> str:
        if self.value is None:
            return "not measured"
        if self.limit.is_met(self.value.middle):
            return "met"
        if self.noise is not None and not self.limit.is_met(self.noise.middle):
            return "unknown: the floor misses it too"  # others had the machine: neither met nor missed
        return "MISSED"


def findings(samples: Samples) -> list[Finding]:
    return [_finding(samples, row, limit) for row in ROWS if row.key in samples for limit in row.limits]


def _finding(samples: Samples, row: Row, limit: Limit) -> Finding:
    noise = None if limit.against else spread(samples[row.key].get(FLOOR, []))
    return Finding(row, limit, held_against(samples, row, limit), noise)
