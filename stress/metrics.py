"""What is measured and which limits apply: the metrics, the curves, and the ratios between figures.

Responsible for: `METRICS`, in the order of docs/benchmarks.md, and `CURVES`. Pure. Not responsible for: measuring,
printing.

Each figure is taken once a round for every client. A ratio is taken within a round, and the median is that of the
ratios, so that a machine that is slow for a minute is slow for both sides.
"""

from __future__ import annotations

from statistics import median
from typing import Dict, List, NamedTuple, Optional

from .peers import FLOOR, ORJSON, SELF

SHAPES = ("flat", "list", "cart")  # of events; what is in them: `SHAPES` in inside/measured_clients.py

Samples = Dict[str, Dict[str, List[Optional[float]]]]  # by metric, column and round; None if a measurement failed
CurveSamples = Dict[str, Dict[str, Dict[int, List[Optional[float]]]]]  # by curve, column, x and round


class Limit(NamedTuple):
    """A bound for a figure of this client or its variant ``column``, or for its ratio to the column ``against``."""

    bound: float
    against: str = ""
    at_least: bool = False
    column: str = SELF

    def __str__(self) -> str:
        sign = "at least" if self.at_least else "at most"
        text = f"{sign} {self.bound:g} x {self.against}" if self.against else f"{sign} {self.bound:,g}"
        return text if self.column == SELF else f"{self.column}: {text}"

    def is_met(self, value: float) -> bool:
        return value >= self.bound if self.at_least else value <= self.bound


class Metric(NamedTuple):
    key: str
    measure: str  # metrics of one measure come from the same runs
    title: str
    limits: tuple[Limit, ...] = ()


OLD = "letterapp 0.2.0"
# For the median of a call, over the floor; the second if orjson is installed.
_CALL_LIMITS = {"flat": (0.7, 0.45), "list": (0.7, 0.45), "cart": (0.65, 0.3)}


def _shape_metrics(shape: str) -> tuple[Metric, ...]:
    ordinary, fast = _CALL_LIMITS[shape]
    return (
        Metric(
            f"{shape}_call",
            "shapes",
            f"{shape} event: track(), median, us",
            (Limit(ordinary, FLOOR), Limit(fast, FLOOR, column=ORJSON)),
        ),
        Metric(f"{shape}_tail", "shapes", f"{shape} event: p99 of track() over its median", (Limit(8),)),
        Metric(f"{shape}_cpu", "shapes", f"{shape} event: CPU, sending included, us", (Limit(1.2, FLOOR),)),
        Metric(
            f"{shape}_rate",
            "shapes",
            f"{shape} event: over HTTP, events/s",
            (Limit(1.3, OLD, True), Limit(8, "posthog", True)),
        ),
    )


# The import has two limits because milliseconds depend on the machine: on the one where 10 was set, 0.2.0 took 34.
METRICS = (
    Metric("call", "calls", "track(), five properties, median, us", (Limit(1.0, FLOOR),)),
    Metric("tail", "calls", "the same, p99.9 over its median", (Limit(100),)),
    Metric(
        "stream", "stream", "40,000 events over HTTP, events/s", (Limit(1.15, OLD, True), Limit(5, "posthog", True))
    ),
    Metric("cpu", "stream", "the same, CPU per event, us", (Limit(1.5, FLOOR),)),
    *(metric for shape in SHAPES for metric in _shape_metrics(shape)),
    Metric("loopback_tls", "loopback_tls", "20,000 events over TLS, no delay, events/s"),
    Metric("tls", "tls", "4,000 events over TLS, 20 ms away, events/s", (Limit(5, OLD, True),)),
    Metric("import", "import", "import, CPU over bare Python, ms", (Limit(10), Limit(0.3, OLD))),
    Metric("wakes", "idle", "idle after a burst, wake-ups/s", (Limit(0),)),
    Metric("threads", "idle", "threads left some seconds later", (Limit(0),)),
    Metric("fork", "fork", "fork with a used client over without", (Limit(1.1),)),
    Metric("memory", "memory", "memory per waiting event over its encoded size", (Limit(1.3),)),
    Metric("relay_call", "relay", "track() with relay=True over without, median", (Limit(3.0),)),
    Metric("relay_rate", "relay", "8 processes through one relay, all delivered, events/s", (Limit(50_000, "", True),)),
    Metric("relay_own", "relay", "of these, sent by the processes themselves, %"),
    Metric("manager_call", "manager", "track() with relay=manager.queue over without, median", (Limit(1.2),)),
    Metric(
        "manager_rate", "manager", "8 processes through one manager, delivered, events/s", (Limit(30_000, "", True),)
    ),
    Metric("manager_own", "manager", "of these, sent by the processes themselves, %"),
    Metric("redis_call", "redis", "track() with relay=redis://... over without, median", (Limit(1.2),)),
    Metric(
        "redis_rate", "redis", "8 processes through Redis and a relay, delivered, events/s", (Limit(20_000, "", True),)
    ),
    Metric("redis_own", "redis", "of these, sent by the processes themselves, %"),
    Metric("redis_memory", "redis", "memory of Redis per waiting event over its encoded size"),
    Metric("redis_used_connection", "redis_connections", "memory of Redis for a connection after a request, KB"),
    Metric("redis_idle_connection", "redis_connections", "the same, when it was idle for 10 s, KB"),
)


class Curve(NamedTuple):
    """A figure at each of ``xs``, for its shape. There is no limit: the reader judges the shape."""

    key: str
    measure: str  # curves of one measure come from the same runs, so they have the same xs
    title: str
    x_title: str
    y_title: str
    xs: tuple[int, ...]


WORKERS, WAITING, CLIENTS = (1, 2, 4, 8, 16, 32), (0, 100, 1_000, 10_000), (1, 10, 100)
VALUES = (10, 100, 1_000)
RELAYS, PRODUCERS = (1, 2, 4), (1, 4, 16, 64)
PER_ENTRY, SLOW_RELAYS = (1, 10, 100), (1, 4, 16)


def _entry_curve(key: str, title: str, y_title: str) -> Curve:
    return Curve(key, "redis_entries", title, "events per entry", y_title, PER_ENTRY)


CURVES = (
    Curve(
        "scale_call",
        "scale",
        "track() in forked workers, all at once",
        "workers",
        "median of a call, us",
        WORKERS,
    ),
    Curve("scale_rate", "scale", "19,200 events of forked workers, delivered", "workers", "events/s in all", WORKERS),
    Curve("fork_waiting", "fork_waiting", "fork while events wait", "events waiting", "fork and end, us", WAITING),
    Curve("growth", "growth", "track() with many values in an event", "values", "median of a call, us", VALUES),
    Curve("fork_clients", "fork_clients", "fork with many used clients", "clients", "fork and end, us", CLIENTS),
    Curve("redis_relays", "redis_relays", "8 workers through Redis, delivered", "relays", "events/s in all", RELAYS),
    Curve(
        "redis_workers",
        "redis_workers",
        "workers through Redis and 2 relays, delivered",
        "workers",
        "events/s in all",
        PRODUCERS,
    ),
    _entry_curve("redis_append_cpu", "CPU of Redis to append an entry", "us"),
    _entry_curve("redis_read_cpu", "CPU of Redis to hand out an entry and to delete it", "us"),
    _entry_curve("redis_durable_cpu", "the sum of both, with an append-only file", "us"),
    _entry_curve("redis_event_memory", "memory of Redis per waiting event", "bytes"),
    _entry_curve("redis_relay_cpu", "CPU of a relay per event", "us"),
    _entry_curve("redis_relay_rate", "one relay and an API that answers at once", "events/s"),
    Curve(
        "redis_slow_rate",
        "redis_slow_api",
        "an API that answers in 50 ms, 100 events per entry",
        "relays",
        "events/s in all",
        SLOW_RELAYS,
    ),
)
MEASURES = tuple(dict.fromkeys([*(metric.measure for metric in METRICS), *(curve.measure for curve in CURVES)]))


class Spread(NamedTuple):
    """The median, the minimum and the maximum of some rounds."""

    middle: float
    least: float
    most: float


def spread(values: list[float | None]) -> Spread | None:
    taken = [value for value in values if value is not None]
    return Spread(median(taken), min(taken), max(taken)) if taken else None


def limited_value(samples: Samples, metric: Metric, limit: Limit) -> Spread | None:
    """The figure or ratio that ``limit`` applies to; None if either side was not measured."""
    own = samples[metric.key].get(limit.column, [])
    if not limit.against:
        return spread(own)
    other = samples[metric.key].get(limit.against, [])
    return spread([a / b if a is not None and b else None for a, b in zip(own, other)])


class LimitCheck(NamedTuple):
    """One limit, compared with the figures."""

    metric: Metric
    limit: Limit
    value: Spread | None
    noise: Spread | None  # the floor's own figure, which shows what the machine adds

    @property
    def verdict(self) -> str:
        if self.value is None:
            return "not measured"
        if self.limit.is_met(self.value.middle):
            return "met"
        if self.noise is not None and not self.limit.is_met(self.noise.middle):
            return "unknown: the floor misses it too"  # other load on the machine: neither met nor missed
        return "MISSED"


def check_limits(samples: Samples) -> list[LimitCheck]:
    """Compare all limits but those of a variant that is not among the columns."""
    return [
        _check_limit(samples, metric, limit)
        for metric in METRICS
        if metric.key in samples
        for limit in metric.limits
        if limit.column == SELF or limit.column in samples[metric.key]
    ]


def _check_limit(samples: Samples, metric: Metric, limit: Limit) -> LimitCheck:
    noise = None if limit.against else spread(samples[metric.key].get(FLOOR, []))
    return LimitCheck(metric, limit, limited_value(samples, metric, limit), noise)
