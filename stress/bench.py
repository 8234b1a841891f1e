"""The rounds: who is measured when, and which figures come of it.

Lives here: the order of measurements and what each needs around it, a sink, a proxy, a look from outside. Everything is
taken once a round, client after client, so that all share the machine's moods. Never here: limits, tables, clocks
around a client's calls (those run in its own interpreter: `inside/measure.py`), figures at several sizes (`curves.py`).
"""

from __future__ import annotations

import argparse
import os
import resource
import ssl
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Callable, Dict, Iterator, NamedTuple

import psutil
import trustme
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from . import report
from .curves import Curves
from .peers import FLOOR, KNOWN, SELF, Environments, Peer
from .programs import Failure, Program
from .report import results
from .rows import CURVES, MEASURES, ROWS, WORKERS, Samples, findings

HERE = Path(__file__).resolve().parent
CALLS = 20_000
STREAM = 40_000
NEAR = 20_000  # over TLS
FAR = 4_000
WAITING = 40_000
BURST = 200
RELAYED, RELAYED_BY = 200_000, 8  # events, processes
FLOOD = 384_000  # a whole number of batches on each of the connections
WARMING = 100  # as in inside/measure.py
ONE_WAY = 0.010  # seconds
IMPORTS = 10  # pairs in a round
FORK_STEPS = 10
SETTLING, WATCHED, LEAVING = 1.0, 3.0, 4.0  # seconds after a burst: unwatched, watched, before threads are counted

Figures = Dict[str, float]


def bench(options: argparse.Namespace) -> int:
    """Measure, print the table, write the files. Returns the exit status: 1 when a limit is missed."""
    console = Console()
    wanted = [name for name in options.rows.split(",") if name] or list(MEASURES)
    for name in wanted:
        if name not in MEASURES:
            raise ValueError(f"unknown measure {name!r}: some of {','.join(MEASURES)}")
    environments = Environments(options.python, options.cache, lambda what: console.print(f"[dim]{what}[/dim]"))
    peers = [environments.peer(name) for name in options.peers or KNOWN]
    columns = [environments.this_client(), *peers, environments.floor()]
    with tempfile.TemporaryDirectory() as folder:
        rounds = _Rounds(columns, _Certificate.make(Path(folder)), Path(folder))
        with _progress(console) as progress:
            task = progress.add_task("", total=options.rounds * sum(map(rounds.steps, wanted)))

            def step(what: str, column: str) -> None:
                progress.update(task, advance=1, description=f"{what}: {column}")

            for number in range(options.rounds):
                for measure in wanted:
                    if not console.is_terminal:  # no bar is drawn there
                        console.print(f"round {number + 1} of {options.rounds}, {measure}")
                    rounds.take(measure, partial(step, f"round {number + 1}, {measure}"))
        try:
            sink_speed: float | None = rounds.sink_speed(1)
            rounds.curves.compare_sink(rounds.sink_speed(max(WORKERS)), max(WORKERS))
        except Failure as failure:
            console.print(f"the sink alone: {failure}")
            sink_speed = None
    result = report.Result(
        columns,
        rounds.samples,
        rounds.failures,
        rounds.event_sizes,
        sink_speed,
        options.rounds,
        environments.python_version,
        rounds.curves.samples,
        rounds.curves.notes,
    )
    report.show(console, result)
    results.keep(report.as_json(result), "bench", options)
    if options.markdown:
        options.markdown.write_text(report.as_markdown(result))
    return 1 if any(finding.verdict == "MISSED" for finding in findings(result.samples)) else 0


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description:40}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console
    )


class _Certificate(NamedTuple):
    server: Path  # certificate and key
    bundle: Path  # what the clients trust

    @classmethod
    def make(cls, folder: Path) -> _Certificate:
        authority = trustme.CA()
        server, bundle = folder / "server.pem", folder / "bundle.pem"
        authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(server))
        # Beside the system's own, because loading those is part of what a client does that makes a new TLS context
        # for each connection.
        system = ssl.get_default_verify_paths().cafile
        bundle.write_bytes((Path(system).read_bytes() if system else b"") + authority.cert_pem.bytes())
        return cls(server, bundle)


class _Rounds:
    """Takes one measurement after the other and keeps what came of them."""

    def __init__(self, columns: list[Peer], certificate: _Certificate, folder: Path) -> None:
        self._columns = columns
        self._certificate = certificate
        self._folder = folder
        self.samples: Samples = {}
        self.failures: dict[str, dict[str, str]] = {}  # measure, column: the first failure
        self.event_sizes: dict[str, float] = {}  # bytes of one event on the wire
        self.curves = Curves(columns, self._measured, self.failures)

    def steps(self, measure: str) -> int:
        """How many steps `take` will tell of."""
        return len(self._columns) * next((len(curve.xs) for curve in CURVES if curve.measure == measure), 1)

    def take(self, measure: str, step: Callable[[str], None]) -> None:
        if any(curve.measure == measure for curve in CURVES):
            self.curves.take(measure, step)
        else:
            self._take_rows(measure, step)

    def _take_rows(self, measure: str, step: Callable[[str], None]) -> None:
        method: Callable[[Peer], Figures | None] = getattr(self, f"_{measure}")
        watches = self._start_idling() if measure == "idle" else {}
        for peer in self._columns:
            step(peer.column)
            if peer.column == FLOOR and measure not in ("calls", "stream"):
                continue
            if peer.column != SELF and measure in ("relay", "manager"):
                continue
            if peer.column in self.failures.get(measure, {}):
                figures: Figures | None = None  # once is enough: a hang costs minutes
            else:
                try:
                    figures = watches[peer.column]() if watches else method(peer)
                except Failure as failure:
                    self.failures.setdefault(measure, {})[peer.column] = str(failure)
                    figures = None
            for row in ROWS:
                if row.measure == measure and (figures is None or row.key in figures):
                    kept = self.samples.setdefault(row.key, {}).setdefault(peer.column, [])
                    kept.append(figures[row.key] if figures else None)

    def _calls(self, peer: Peer) -> Figures:
        with self._measured(peer, "calls", CALLS, expect=WARMING) as (program, sink):
            program.hear()
            if peer.column != FLOOR:
                sink.hear()
            program.go_on()
            heard = program.hear()
        return {"call": heard["median_us"], "tail": heard["p999_us"] / heard["median_us"]}

    def _stream(self, peer: Peer) -> Figures:
        return self._streamed(peer, STREAM, "stream")

    def _loopback_tls(self, peer: Peer) -> Figures:
        return {"loopback_tls": self._streamed(peer, NEAR, "loopback_tls", tls=True)["loopback_tls"]}

    def _tls(self, peer: Peer) -> Figures:
        return {"tls": self._streamed(peer, FAR, "tls", tls=True, far=True)["tls"]}

    def _streamed(self, peer: Peer, events: int, row: str, tls: bool = False, far: bool = False) -> Figures:
        with self._measured(peer, "stream", events, tls=tls, far=far) as (program, sink):
            heard = program.hear()
            if peer.column == FLOOR:
                return {"cpu": heard["cpu_us"]}
            tally = sink.end()
        if tally is None or tally["events"] != events:
            raise Failure(f"{tally['events'] if tally else 'none'} of {events:,} events arrived")
        self.event_sizes[peer.column] = tally["bytes"] / events
        return {row: events / (tally["last"] - heard["began"]), "cpu": heard["cpu_us"]}

    def _memory(self, peer: Peer) -> Figures:
        size = self.event_sizes.get(peer.column)
        if size is None:
            raise Failure("its events' size is not known: the row stream has to be measured too")
        with self._measured(peer, "memory", WAITING, expect=1, mute=True) as (program, sink):
            program.hear()
            sink.hear()
            time.sleep(0.2)  # the client's thread goes to sleep over the answer that never comes
            before = psutil.Process(program.pid).memory_info().rss
            program.go_on()
            program.hear()
            after = psutil.Process(program.pid).memory_info().rss
            program.go_on()
        return {"memory": (after - before) / WAITING / size}

    def _fork(self, peer: Peer) -> Figures:
        if not hasattr(os, "fork"):
            raise Failure("no os.fork() on this system")
        without: list[float] = []
        used: list[float] = []
        with ExitStack() as running:
            plain, _ = running.enter_context(self._measured(peer, "forks", 0, 0))
            program, sink = running.enter_context(self._measured(peer, "forks", BURST, 1))
            plain.hear()
            program.hear()
            sink.hear()
            for _ in range(FORK_STEPS):  # in turns, so that the machine's moods meet both
                for kept, forking in ((without, plain), (used, program)):
                    forking.go_on()
                    kept.extend(forking.hear()["us"])
        return {"fork": median(used) / median(without)}

    def _import(self, peer: Peer) -> Figures:
        bare: list[float] = []
        imported: list[float] = []
        elsewhere = Path(peer.python).parent
        for _ in range(IMPORTS):
            for times, code in ((bare, "pass"), (imported, f"import {peer.module}")):
                before = _cpu_of_children()
                # Not here: `-c` looks into the current folder first, and the checkout would pass for letterapp 0.2.0.
                done = subprocess.run(
                    [peer.python, "-c", code], env=peer.env, cwd=elsewhere, stderr=subprocess.PIPE, check=False
                )
                if done.returncode:
                    raise Failure(done.stderr.decode(errors="replace").strip().splitlines()[-1])
                times.append(_cpu_of_children() - before)
        return {"import": (median(imported) - median(bare)) * 1e3}

    def _relay(self, peer: Peer) -> Figures:
        return self._handed_over(peer, "relay")

    def _manager(self, peer: Peer) -> Figures:
        return self._handed_over(peer, "manager")

    def _handed_over(self, peer: Peer, mode: str) -> Figures:
        """What it costs and what gets through where one process sends for all."""
        through = peer._replace(client=f"letterapp_{mode}")
        without, call = self._calls(peer)["call"], self._calls(through)["call"]
        with self._measured(through, "scale", RELAYED, RELAYED_BY, 1) as (program, sink):
            heard = program.hear()
            tally = sink.hear()
        if heard["hung"] or heard["raised"]:
            raise Failure(f"{heard['hung']} of {RELAYED_BY} processes hung, {heard['raised']} raised")
        rate = RELAYED / (tally["last"] - heard["began"])
        own = 100 * (1 - heard["relayed"] / RELAYED)
        return {f"{mode}_call": call / without, f"{mode}_rate": rate, f"{mode}_own": own}

    def _idle(self, peer: Peer) -> Figures:
        raise AssertionError("all idle at once: see _start_idling")

    def _start_idling(self) -> dict[str, Callable[[], Figures]]:
        """Watch all clients over the same seconds; return for each what gives its figures, or raises its failure."""
        watches: dict[str, Callable[[], Figures]] = {}
        with ExitStack() as running:
            started: dict[str, tuple[Program, Program]] = {}
            for peer in self._columns:
                if peer.column != FLOOR:
                    program, sink = running.enter_context(self._measured(peer, "idle", BURST))
                    started[peer.column] = program, sink
            programs: dict[str, Program] = {}
            for step in (_ready, _burst, _arrived):  # all burst at once, so none has left before it is watched
                for column, (program, sink) in started.items():
                    try:
                        if column not in watches:
                            step(program, sink)
                            programs[column] = program
                    except Failure as failure:
                        watches[column] = _raising(failure)
            for column in watches:
                programs.pop(column, None)
            time.sleep(SETTLING)
            before = {column: _wake_ups(program.pid) for column, program in programs.items()}
            time.sleep(WATCHED)
            after = {column: _wake_ups(program.pid) for column, program in programs.items()}
            time.sleep(LEAVING)
            for column, program in programs.items():
                left = psutil.Process(program.pid).num_threads() - 1
                wakes = _between(before[column], after[column]) / WATCHED
                watches[column] = _giving({"wakes": wakes, "threads": left})
                program.go_on()
        return watches

    def sink_speed(self, connections: int) -> float:
        """Events a second that the sink takes from a program that does nothing but send."""
        with self._measured(self._columns[0], "flood", FLOOD, connections) as (program, sink):
            began = program.hear()["began"]
            tally = sink.hear()
        return float(tally["events"] / (tally["last"] - began))

    @contextmanager
    def _measured(
        self,
        peer: Peer,
        measure: str,
        *numbers: int,
        expect: int | None = None,
        mute: bool = False,
        tls: bool = False,
        far: bool = False,
    ) -> Iterator[Any]:
        """Run ``measure`` on the peer's client with a sink of its own; gives the program and the sink."""
        expect = max(1, numbers[0]) if expect is None else expect
        sink_options = ["--certificate", str(self._certificate.server)] if tls else []
        sink_options += ["--mute"] if mute else []
        trust = {"SSL_CERT_FILE": str(self._certificate.bundle), "REQUESTS_CA_BUNDLE": str(self._certificate.bundle)}
        with ExitStack() as stack:
            sink = stack.enter_context(_own("sink.py", peer.marker or "-", expect, *sink_options))
            port = sink.hear()["port"]
            if far:
                proxy = stack.enter_context(_own("delay.py", port, ONE_WAY))
                port = proxy.hear()["port"]
            url = f"{'https' if tls else 'http'}://127.0.0.1:{port}"
            script = HERE / "inside" / "measure.py"
            env = {**peer.env, **trust, "STRESS_MODULE": peer.module}
            env["XDG_RUNTIME_DIR"] = str(self._folder)  # where a relay listens
            yield stack.enter_context(Program(peer.python, script, measure, peer.client, url, *numbers, env=env)), sink


def _own(script: str, *arguments: object) -> Program:
    return Program(sys.executable, HERE / script, *arguments)


def _giving(figures: Figures) -> Callable[[], Figures]:
    return lambda: figures


def _raising(failure: Failure) -> Callable[[], Figures]:
    def fail() -> Figures:
        raise failure

    return fail


def _cpu_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)  # `os.times` counts in hundredths of a second
    return used.ru_utime + used.ru_stime


def _ready(program: Program, _: Program) -> None:
    program.hear()


def _burst(program: Program, _: Program) -> None:
    program.go_on()


def _arrived(program: Program, sink: Program) -> None:
    program.hear()
    sink.hear()


def _wake_ups(pid: int) -> dict[str, int]:
    """Times that each thread of a process went to sleep of its own accord, so far."""
    tasks = Path(f"/proc/{pid}/task")
    if not tasks.is_dir():
        raise Failure("wake-ups are read from /proc")
    counts = {}
    for task in tasks.iterdir():
        try:
            status = (task / "status").read_text()
        except OSError:
            continue  # it left while we looked
        named = dict(line.split(":", 1) for line in status.splitlines())
        counts[task.name] = int(named["voluntary_ctxt_switches"])
    return counts


def _between(before: dict[str, int], after: dict[str, int]) -> int:
    """Wake-ups from one look to the next. A thread that came or left meanwhile woke at least once."""
    return sum(abs(after[task] - before[task]) if task in before and task in after else 1 for task in {*before, *after})
