"""How figures scale: with the number of workers, of waiting events, of clients, of values in an event.

Responsible for: the order of the points, what follows from a failure, and the notes on that. Not responsible for:
starting a program and its server (`bench.py` passes that in), timing (`inside/measure.py`), the values of x
(`metrics.py`).
"""

from __future__ import annotations

import os
import time
from statistics import median
from typing import Any, Callable, ContextManager, Dict

from .metrics import CURVES, CurveSamples, spread
from .peers import FLOOR, SELF, Environments, Peer
from .programs import Failure
from .shapes import WARM_UP
from .stream_costs import StreamCosts

EVENTS = 19_200  # a multiple of every number of workers
REDIS_EVENTS = 192_000  # the same; enough for a second or more
FORK_STEPS = 10
GROWTH_CALLS = 300

Figures = Dict[str, float]


class Scaling:
    """Takes one point of each client after the other and keeps the results."""

    def __init__(
        self,
        columns: list[Peer],
        environments: Environments,
        measured: Callable[..., ContextManager[Any]],
        failures: dict[str, dict[str, str]],
    ) -> None:
        self._columns = columns
        self._environments = environments
        self._measured = measured
        self._failures = failures  # by measure and column: the first failure
        self._streams = StreamCosts(environments)
        self._created_late: set[str] = set()  # columns whose client cannot be created before the fork
        self.samples: CurveSamples = {}
        self.notes: list[str] = []

    def take(self, measure: str, step: Callable[[str], None]) -> None:
        curves = [curve for curve in CURVES if curve.measure == measure]
        for x in curves[0].xs:
            for peer in self._columns:
                step(f"{x:,}, {peer.column}")
                if peer.column == FLOOR and measure not in ("scale", "growth"):
                    continue
                if peer.column != SELF and measure.startswith("redis"):
                    continue
                figures = self._point(measure, peer, x)
                for curve in curves:
                    if figures is None or curve.key in figures:
                        points = self.samples.setdefault(curve.key, {}).setdefault(peer.column, {})
                        points.setdefault(x, []).append(figures[curve.key] if figures else None)

    def compare_server(self, speed: float, connections: int) -> None:
        """Note how much faster the server is, with this number of connections, than the clients of ``scale_rate``."""
        rates = [spread(rates) for points in self.samples.get("scale_rate", {}).values() for rates in points.values()]
        fastest = max((rate.middle for rate in rates if rate), default=None)
        if fastest:
            self.notes.append(
                f"The counting server alone takes {speed:,.0f} events/s on {connections} connections, "
                f"{speed / fastest:.1f} x the fastest point of scale_rate."
            )

    def _point(self, measure: str, peer: Peer, x: int) -> Figures | None:
        if peer.column in self._failures.get(measure, {}):
            return None  # not tried again: what hangs with few hangs with many
        try:
            if measure != "growth" and not hasattr(os, "fork"):
                raise Failure("no os.fork() on this system")
            method: Callable[[Peer, int], Figures] = getattr(self, f"_{measure}")
            return method(peer, x)
        except Failure as failure:
            self._failures.setdefault(measure, {})[peer.column] = f"at {x:,}: {failure}"
            return None

    def _scale(self, peer: Peer, workers: int) -> Figures:
        """Measure a client that is created before the fork. If a peer fails so, its workers create their own."""
        if peer.column not in self._created_late:
            try:
                return self._scaled(peer, workers, preloaded=True)
            except Failure as failure:
                if peer.column == SELF:
                    raise
                self._created_late.add(peer.column)
                self.notes.append(
                    f"scale of {peer.column}: created in each worker, "
                    f"because it failed with {workers} workers when created before the fork: {failure}"
                )
                for curve in self.samples.values():  # all points of a line must be measured in the same way
                    for rates in curve.get(peer.column, {}).values():
                        rates[:] = [None] * len(rates)
        return self._scaled(peer, workers, preloaded=False)

    def _scaled(self, peer: Peer, workers: int, preloaded: bool) -> Figures:
        with self._measured(peer, "scale", EVENTS, workers, int(preloaded)) as (program, server):
            result = program.receive()
            counts = server.close_and_receive()
        if peer.column == FLOOR:
            return {"scale_call": result["median_us"]}
        arrived = counts["events"] if counts else 0
        ends = [f"{result[how]} of {workers} workers {how}" for how in ("hung", "raised") if result[how]]
        if ends or arrived != EVENTS:
            raise Failure("; ".join([f"{arrived:,} of {EVENTS:,} arrived", *ends]))
        assert counts is not None
        return {"scale_call": result["median_us"], "scale_rate": EVENTS / (counts["last"] - result["began"])}

    def _redis_relays(self, peer: Peer, relays: int) -> Figures:
        return {"redis_relays": self._through_redis(relays, 8)}

    def _redis_workers(self, peer: Peer, workers: int) -> Figures:
        return {"redis_workers": self._through_redis(2, workers)}

    def _redis_entries(self, peer: Peer, per_entry: int) -> Figures:
        return self._streams.entries(per_entry)

    def _redis_slow_api(self, peer: Peer, relays: int) -> Figures:
        return self._streams.slow_api(relays)

    def _through_redis(self, relays: int, workers: int) -> float:
        peer = self._environments.redis()._replace(client="letterapp_redis", options={"relays": relays})
        with self._measured(peer, "scale", REDIS_EVENTS, workers, 1) as (program, server):
            result = program.receive()
            counts = server.receive()
        if result["hung"] or result["raised"]:
            raise Failure(f"{result['hung']} of {workers} workers hung, {result['raised']} raised")
        if result["relayed"] < REDIS_EVENTS:
            raise Failure(f"{REDIS_EVENTS - result['relayed']:,} events were sent by the workers themselves")
        return float(REDIS_EVENTS / (counts["last"] - result["began"]))

    def _fork_waiting(self, peer: Peer, events: int) -> Figures:
        """The server never responds, so all events wait. With 0 events the client was created but not used."""
        return {"fork_waiting": self._forked(peer, events, 1, expect=min(events, 1), no_response=True)}

    def _fork_clients(self, peer: Peer, clients: int) -> Figures:
        return {"fork_clients": self._forked(peer, 1, clients, expect=clients)}

    def _growth(self, peer: Peer, values: int) -> Figures:
        with self._measured(peer, "growth", GROWTH_CALLS, values, expect=WARM_UP) as (program, server):
            program.receive()
            if peer.column != FLOOR:
                server.receive()
            program.resume()
            return {"growth": program.receive()["median_us"]}

    def _forked(self, peer: Peer, events: int, clients: int, expect: int, no_response: bool = False) -> float:
        with self._measured(peer, "forks", events, clients, expect=expect, no_response=no_response) as (
            program,
            server,
        ):
            program.receive()
            if expect:
                server.receive()
            time.sleep(0.2)  # until the clients' threads sleep
            times: list[float] = []
            for _ in range(FORK_STEPS):
                program.resume()
                times.extend(program.receive()["us"])
        return median(times)
