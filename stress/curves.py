"""The curves: what a figure does as something grows, workers, waiting events, clients.

Lives here: the order of the points, what is done after a failure, and the notes on that. Never here: starting a program
with its sink (`bench.py` hands that in), clocks (`inside/measure.py`), the xs (`rows.py`).
"""

from __future__ import annotations

import os
import time
from statistics import median
from typing import Any, Callable, ContextManager, Dict

from .peers import FLOOR, SELF, Peer
from .programs import Failure
from .rows import CURVES, CurveSamples, spread

EVENTS = 19_200  # a multiple of each number of workers
FORK_STEPS = 10

Figures = Dict[str, float]


class Curves:
    """Takes one point of each client after the other and keeps what came of them."""

    def __init__(
        self,
        columns: list[Peer],
        measured: Callable[..., ContextManager[Any]],
        failures: dict[str, dict[str, str]],
    ) -> None:
        self._columns = columns
        self._measured = measured
        self._failures = failures  # measure, column: the first failure
        self._made_late: set[str] = set()  # columns whose clients cannot be made before the fork
        self.samples: CurveSamples = {}
        self.notes: list[str] = []

    def take(self, measure: str, step: Callable[[str], None]) -> None:
        curves = [curve for curve in CURVES if curve.measure == measure]
        for x in curves[0].xs:
            for peer in self._columns:
                step(f"{x:,}, {peer.column}")
                if peer.column == FLOOR and measure != "scale":
                    continue
                figures = self._point(measure, peer, x)
                for curve in curves:
                    if figures is None or curve.key in figures:
                        points = self.samples.setdefault(curve.key, {}).setdefault(peer.column, {})
                        points.setdefault(x, []).append(figures[curve.key] if figures else None)

    def compare_sink(self, speed: float, connections: int) -> None:
        """Note how far the sink, on so many connections at once, is from being what ``scale_rate`` measures."""
        rates = [spread(rates) for points in self.samples.get("scale_rate", {}).values() for rates in points.values()]
        fastest = max((rate.middle for rate in rates if rate), default=None)
        if fastest:
            self.notes.append(
                f"The sink alone takes {speed:,.0f} events/s on {connections} connections, "
                f"{speed / fastest:.1f} x the fastest point of scale_rate."
            )

    def _point(self, measure: str, peer: Peer, x: int) -> Figures | None:
        if peer.column in self._failures.get(measure, {}):
            return None  # once is enough: what hangs with few hangs with many
        try:
            if not hasattr(os, "fork"):
                raise Failure("no os.fork() on this system")
            method: Callable[[Peer, int], Figures] = getattr(self, f"_{measure}")
            return method(peer, x)
        except Failure as failure:
            self._failures.setdefault(measure, {})[peer.column] = f"at {x:,}: {failure}"
            return None

    def _scale(self, peer: Peer, workers: int) -> Figures:
        """Measure a client made before the fork. A peer that fails so is spared: its workers make their own then."""
        if peer.column not in self._made_late:
            try:
                return self._scaled(peer, workers, preloaded=True)
            except Failure as failure:
                if peer.column == SELF:
                    raise
                self._made_late.add(peer.column)
                self.notes.append(
                    f"scale of {peer.column}: made in each worker, "
                    f"because made before the fork, with {workers} workers, it failed: {failure}"
                )
                for curve in self.samples.values():  # a line is of one kind from end to end
                    for rates in curve.get(peer.column, {}).values():
                        rates[:] = [None] * len(rates)
        return self._scaled(peer, workers, preloaded=False)

    def _scaled(self, peer: Peer, workers: int, preloaded: bool) -> Figures:
        with self._measured(peer, "scale", EVENTS, workers, int(preloaded)) as (program, sink):
            heard = program.hear()
            tally = sink.end()
        if peer.column == FLOOR:
            return {"scale_call": heard["median_us"]}
        arrived = tally["events"] if tally else 0
        ends = [f"{heard[how]} of {workers} workers {how}" for how in ("hung", "raised") if heard[how]]
        if ends or arrived != EVENTS:
            raise Failure("; ".join([f"{arrived:,} of {EVENTS:,} arrived", *ends]))
        assert tally is not None
        return {"scale_call": heard["median_us"], "scale_rate": EVENTS / (tally["last"] - heard["began"])}

    def _fork_waiting(self, peer: Peer, events: int) -> Figures:
        """Nothing is ever answered, so all wait. With none, the client was made and not used."""
        return {"fork_waiting": self._forked(peer, events, 1, expect=min(events, 1), mute=True)}

    def _fork_clients(self, peer: Peer, clients: int) -> Figures:
        return {"fork_clients": self._forked(peer, 1, clients, expect=clients)}

    def _forked(self, peer: Peer, events: int, clients: int, expect: int, mute: bool = False) -> float:
        with self._measured(peer, "forks", events, clients, expect=expect, mute=mute) as (program, sink):
            program.hear()
            if expect:
                sink.hear()
            time.sleep(0.2)  # the clients' threads go to sleep
            times: list[float] = []
            for _ in range(FORK_STEPS):
                program.go_on()
                times.extend(program.hear()["us"])
        return median(times)
