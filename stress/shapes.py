"""Events of several shapes, side by side: what a call, an event's CPU and the delivery of many events cost for each.

Responsible for: the order of the windows, and the figures of a round. Not responsible for: starting a program and its
server (`bench.py` passes that in), timing (`inside/measure.py`), the contents of an event
(`inside/measured_clients.py`), limits (`metrics.py`).

A window is `EVENTS` events of one shape from one client, and takes a fraction of a second. Clients and shapes take
turns, several times in a round, so that a busy moment of the machine affects all of them. All clients run until the
end of the round, but only one of them has events at a time.
"""

from __future__ import annotations

import time
from contextlib import ExitStack, contextmanager
from statistics import median
from typing import Any, Callable, ContextManager, Dict, Iterator, NamedTuple

from .metrics import SHAPES
from .peers import FLOOR, Peer
from .programs import Failure, Program

EVENTS = 2_000  # in a window
TURNS = 10  # windows of each client and shape in a round
WARM_UP = 100  # events, as in inside/measure.py
# The last batch is not part of a rate: some clients hold it back until an interval has passed. No client's is larger.
BATCH = 100
SETTLING = 0.02  # seconds until a client has read the response to its last batch
TIMEOUT = 600.0  # seconds for a round

Figures = Dict[str, float]


class Window(NamedTuple):
    """What one client took for `EVENTS` events of one shape."""

    median_us: float  # of a call
    p99_us: float
    cpu_us: float  # of an event
    rate: float | None  # events per second that arrived; None for the floor, which sends nothing


def window_ends() -> list[int]:
    """The numbers of events, counted from the start, at which a server reports.

    After the warm-up, and twice in each window: for the rate, and at its end.
    """
    starts = (WARM_UP + number * EVENTS for number in range(TURNS * len(SHAPES)))
    return [WARM_UP, *(start + count for start in starts for count in (EVENTS - BATCH, EVENTS))]


def figures(shape: str, windows: list[Window]) -> Figures:
    """A round's figures, by the keys of `METRICS`.

    The call is that of the quickest window, because other load on the machine only adds to the median of a window. The
    others are the medians of the windows: they depend on how the threads of a client take turns, and the best window is
    luck.
    """
    found = {
        f"{shape}_call": min(window.median_us for window in windows),
        f"{shape}_tail": median(window.p99_us / window.median_us for window in windows),
        f"{shape}_cpu": median(window.cpu_us for window in windows),
    }
    rates = [window.rate for window in windows if window.rate is not None]
    if rates:
        found[f"{shape}_rate"] = median(rates)
    return found


class Shapes:
    """Takes the windows of a round, client after client and shape after shape."""

    def __init__(
        self,
        columns: list[Peer],
        measured: Callable[..., ContextManager[Any]],
        failures: dict[str, dict[str, str]],
    ) -> None:
        self._columns = columns
        self._measured = measured
        self._failures = failures  # by measure and column: the first failure

    def steps(self) -> int:
        """How often `take` will call ``step``."""
        return TURNS * len(SHAPES) * len(self._columns)

    def take(self, step: Callable[[str], None]) -> dict[str, Figures | None]:
        """The figures of a round, by column; None for a client that has failed, in this round or before."""
        windows: dict[str, dict[str, list[Window]]] = {}  # by column and shape
        with ExitStack() as stack:
            running: dict[str, tuple[Program, Program]] = {}  # by column: the client's program and its server
            for peer in self._columns:
                with self._noting_failure(peer):
                    if not self._has_failed(peer):
                        running[peer.column] = self._start(peer, stack)
            for _ in range(TURNS):
                for shape in SHAPES:
                    for peer in self._columns:
                        step(f"{shape}, {peer.column}")
                        with self._noting_failure(peer):
                            if not self._has_failed(peer):
                                taken = windows.setdefault(peer.column, {}).setdefault(shape, [])
                                taken.append(_window(peer, *running[peer.column], shape))
        return {
            peer.column: None if self._has_failed(peer) else _all_figures(windows[peer.column])
            for peer in self._columns
        }

    def _start(self, peer: Peer, stack: ExitStack) -> tuple[Program, Program]:
        program, server = stack.enter_context(
            self._measured(peer, "shapes", EVENTS, expect=window_ends(), timeout=TIMEOUT)
        )
        program.receive()
        if peer.column != FLOOR:
            server.receive()
        return program, server

    @contextmanager
    def _noting_failure(self, peer: Peer) -> Iterator[None]:
        try:
            yield
        except Failure as failure:
            self._failures.setdefault("shapes", {})[peer.column] = str(failure)

    def _has_failed(self, peer: Peer) -> bool:
        return peer.column in self._failures.get("shapes", {})


def _window(peer: Peer, program: Program, server: Program, shape: str) -> Window:
    program.resume(shape)
    began = program.receive()["began"]
    rate = None
    if peer.column != FLOOR:
        most, all_of_them = server.receive(), server.receive()
        if (all_of_them["events"] - WARM_UP) % EVENTS:
            raise Failure(f"more events arrived than were tracked: {all_of_them['events']:,}")
        rate = (EVENTS - BATCH) / (most["last"] - began)
        time.sleep(SETTLING)
    program.resume()
    result = program.receive()
    return Window(result["median_us"], result["p99_us"], result["cpu_us"], rate)


def _all_figures(windows: dict[str, list[Window]]) -> Figures:
    return {key: value for shape, taken in windows.items() for key, value in figures(shape, taken).items()}
