"""The benchmark's rounds: the order of the measurements, and the figures that result.

Responsible for: what each measurement needs around it (a server, a proxy, samples from outside). Every figure is taken
once a round, client after client, so that the varying load of the machine affects all of them. Not responsible for:
limits, tables, timing a client's calls (in its own interpreter: `inside/measure.py`), figures at several sizes
(`scaling.py`), events of several shapes (`shapes.py`).
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
from .metrics import CURVES, MEASURES, METRICS, WORKERS, Samples, check_limits
from .peers import FLOOR, KNOWN, SELF, Environments, Peer
from .programs import TIMEOUT, Failure, Program
from .redis_service import RedisService
from .report import results
from .scaling import Scaling
from .shapes import Shapes
from .stream_costs import StreamCosts

HERE = Path(__file__).resolve().parent
CALLS = 20_000
STREAM = 40_000
TLS_STREAM = 20_000  # over TLS, without delay
DELAYED_STREAM = 4_000  # over TLS, with `ONE_WAY_DELAY`
WAITING = 40_000
BURST = 200
RELAYED, RELAYING_PROCESSES = 200_000, 8  # events, processes
FLOOD = 384_000  # a whole number of batches on each of the connections
WARM_UP = 100  # events, as in inside/measure.py
ONE_WAY_DELAY = 0.010  # seconds
IMPORTS = 10  # pairs a round
FORK_STEPS = 10
# Seconds after a burst: before the wake-ups are counted, while they are, and before the threads are.
SETTLING, WATCHED, ENDING = 1.0, 3.0, 4.0

WITH_ORJSON = "orjson"  # the name of that column on the command line

Figures = Dict[str, float]


def distinct(columns: list[Peer]) -> list[Peer]:
    """``columns``, or a `ValueError` if two are the same client: each would wait for events of the other."""
    names = [peer.column for peer in columns]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{name} is named twice")
    return columns


def bench(options: argparse.Namespace) -> int:
    """Measure, print the tables, write the files. Returns the exit status: 1 if a limit is missed."""
    console = Console()
    wanted = [name for name in options.rows.split(",") if name] or list(MEASURES)
    for name in wanted:
        if name not in MEASURES:
            raise ValueError(f"unknown measure {name!r}: some of {','.join(MEASURES)}")
    environments = Environments(options.python, options.cache, lambda what: console.print(f"[dim]{what}[/dim]"))
    variants = {WITH_ORJSON: environments.orjson}
    peers = [variants[name]() if name in variants else environments.peer(name) for name in options.peers or KNOWN]
    columns = distinct([environments.this_client(), *peers, environments.floor()])
    with tempfile.TemporaryDirectory() as folder:
        rounds = _Rounds(columns, environments, _Certificate.make(Path(folder)), Path(folder))
        with _progress(console) as progress:
            task = progress.add_task("", total=options.rounds * sum(map(rounds.steps, wanted)))

            def step(what: str, column: str) -> None:
                progress.update(task, advance=1, description=f"{what}: {column}")

            for number in range(options.rounds):
                for measure in wanted:
                    if not console.is_terminal:  # which draws no progress bar
                        console.print(f"round {number + 1} of {options.rounds}, {measure}")
                    rounds.take(measure, partial(step, f"round {number + 1}, {measure}"))
        try:
            server_rate: float | None = rounds.server_rate(1)
            rounds.curves.compare_server(rounds.server_rate(max(WORKERS)), max(WORKERS))
        except Failure as failure:
            console.print(f"the counting server alone: {failure}")
            server_rate = None
    result = report.Result(
        columns,
        rounds.samples,
        rounds.failures,
        rounds.event_sizes,
        server_rate,
        options.rounds,
        environments.python_version,
        rounds.curves.samples,
        rounds.curves.notes,
    )
    report.show(console, result)
    results.keep(report.as_json(result), "bench", options)
    if options.markdown:
        options.markdown.write_text(report.as_markdown(result))
    return 1 if any(finding.verdict == "MISSED" for finding in check_limits(result.samples)) else 0


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description:40}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console
    )


class _Certificate(NamedTuple):
    server: Path  # certificate and key
    bundle: Path  # the authorities that the clients trust

    @classmethod
    def make(cls, folder: Path) -> _Certificate:
        authority = trustme.CA()
        server, bundle = folder / "server.pem", folder / "bundle.pem"
        authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(server))
        # In addition to the system's, because loading those is part of the cost of a client that makes a new TLS
        # context for each connection.
        system = ssl.get_default_verify_paths().cafile
        bundle.write_bytes((Path(system).read_bytes() if system else b"") + authority.cert_pem.bytes())
        return cls(server, bundle)


class _Rounds:
    """Takes one measurement after the other and keeps the results."""

    def __init__(
        self, columns: list[Peer], environments: Environments, certificate: _Certificate, folder: Path
    ) -> None:
        self._columns = columns
        self._environments = environments
        self._certificate = certificate
        self._folder = folder
        self.samples: Samples = {}
        self.failures: dict[str, dict[str, str]] = {}  # by measure and column: the first failure
        self.event_sizes: dict[str, float] = {}  # bytes of one event in a request
        self.curves = Scaling(columns, environments, self._measured, self.failures)
        self._shapes = Shapes(columns, self._measured, self.failures)

    def steps(self, measure: str) -> int:
        """How often `take` will call ``step``."""
        if measure == "shapes":
            return self._shapes.steps()
        return len(self._columns) * next((len(curve.xs) for curve in CURVES if curve.measure == measure), 1)

    def take(self, measure: str, step: Callable[[str], None]) -> None:
        if any(curve.measure == measure for curve in CURVES):
            self.curves.take(measure, step)
        elif measure == "shapes":
            for column, figures in self._shapes.take(step).items():
                self._keep(measure, column, figures)
        else:
            self._take_metrics(measure, step)

    def _take_metrics(self, measure: str, step: Callable[[str], None]) -> None:
        method: Callable[[Peer], Figures | None] = getattr(self, f"_{measure}")
        watches = self._start_idling() if measure == "idle" else {}
        for peer in self._columns:
            step(peer.column)
            if peer.column == FLOOR and measure not in ("calls", "stream"):
                continue
            if peer.column != SELF and measure in ("relay", "manager", "redis", "redis_connections"):
                continue
            if peer.column in self.failures.get(measure, {}):
                figures: Figures | None = None  # not tried again: a hang costs minutes
            else:
                try:
                    figures = watches[peer.column]() if watches else method(peer)
                except Failure as failure:
                    self.failures.setdefault(measure, {})[peer.column] = str(failure)
                    figures = None
            self._keep(measure, peer.column, figures)

    def _keep(self, measure: str, column: str, figures: Figures | None) -> None:
        for metric in METRICS:
            if metric.measure == measure and (figures is None or metric.key in figures):
                kept = self.samples.setdefault(metric.key, {}).setdefault(column, [])
                kept.append(figures[metric.key] if figures else None)

    def _calls(self, peer: Peer) -> Figures:
        with self._measured(peer, "calls", CALLS, expect=WARM_UP) as (program, server):
            program.receive()
            if peer.column != FLOOR:
                server.receive()
            program.resume()
            result = program.receive()
        return {"call": result["median_us"], "tail": result["p999_us"] / result["median_us"]}

    def _stream(self, peer: Peer) -> Figures:
        return self._streamed(peer, STREAM, "stream")

    def _loopback_tls(self, peer: Peer) -> Figures:
        return {"loopback_tls": self._streamed(peer, TLS_STREAM, "loopback_tls", tls=True)["loopback_tls"]}

    def _tls(self, peer: Peer) -> Figures:
        return {"tls": self._streamed(peer, DELAYED_STREAM, "tls", tls=True, delayed=True)["tls"]}

    def _streamed(self, peer: Peer, events: int, metric: str, tls: bool = False, delayed: bool = False) -> Figures:
        with self._measured(peer, "stream", events, tls=tls, delayed=delayed) as (program, server):
            result = program.receive()
            if peer.column == FLOOR:
                return {"cpu": result["cpu_us"]}
            counts = server.close_and_receive()
        if counts is None or counts["events"] != events:
            raise Failure(f"{counts['events'] if counts else 'none'} of {events:,} events arrived")
        self.event_sizes[peer.column] = counts["bytes"] / events
        return {metric: events / (counts["last"] - result["began"]), "cpu": result["cpu_us"]}

    def _memory(self, peer: Peer) -> Figures:
        size = self.event_sizes.get(peer.column)
        if size is None:
            raise Failure("the size of its events is unknown: measure stream as well")
        with self._measured(peer, "memory", WAITING, expect=1, no_response=True) as (program, server):
            program.receive()
            server.receive()
            time.sleep(0.2)  # until the client's thread waits for the response that never comes
            before = psutil.Process(program.pid).memory_info().rss
            program.resume()
            program.receive()
            after = psutil.Process(program.pid).memory_info().rss
            program.resume()
        return {"memory": (after - before) / WAITING / size}

    def _fork(self, peer: Peer) -> Figures:
        if not hasattr(os, "fork"):
            raise Failure("no os.fork() on this system")
        without: list[float] = []
        used: list[float] = []
        with ExitStack() as running:
            plain, _ = running.enter_context(self._measured(peer, "forks", 0, 0))
            program, server = running.enter_context(self._measured(peer, "forks", BURST, 1))
            plain.receive()
            program.receive()
            server.receive()
            for _ in range(FORK_STEPS):  # in turns, so that the load of the machine affects both
                for kept, forking in ((without, plain), (used, program)):
                    forking.resume()
                    kept.extend(forking.receive()["us"])
        return {"fork": median(used) / median(without)}

    def _import(self, peer: Peer) -> Figures:
        bare: list[float] = []
        imported: list[float] = []
        folder = Path(peer.python).parent
        for _ in range(IMPORTS):
            for times, code in ((bare, "pass"), (imported, f"import {peer.module}")):
                before = _cpu_of_children()
                # Not in the current folder, which `-c` puts first on the path: there, the checkout would be imported.
                done = subprocess.run(
                    [peer.python, "-c", code], env=peer.env, cwd=folder, stderr=subprocess.PIPE, check=False
                )
                if done.returncode:
                    raise Failure(done.stderr.decode(errors="replace").strip().splitlines()[-1])
                times.append(_cpu_of_children() - before)
        return {"import": (median(imported) - median(bare)) * 1e3}

    def _relay(self, peer: Peer) -> Figures:
        return self._through_sender(peer, "relay")

    def _manager(self, peer: Peer) -> Figures:
        return self._through_sender(peer, "manager")

    def _redis(self, peer: Peer) -> Figures:
        peer = self._environments.redis()._replace(column=peer.column)
        figures = self._through_sender(peer, "redis")
        # Relays whose API never responds: all that they have not taken waits in the stream, and what they have too.
        with RedisService() as redis:
            env = {"STRESS_REDIS": redis.url}
            waiting = peer._replace(client="letterapp_redis", env={**peer.env, **env})
            empty = redis.memory()
            with self._measured(waiting, "stream", STREAM) as (program, _):
                program.receive()
            used = redis.memory() - empty
        with self._measured(peer, "stream", STREAM) as (program, server):
            program.receive()
            counts = server.receive()
        return {**figures, "redis_memory": used / counts["bytes"]}

    def _redis_connections(self, peer: Peer) -> Figures:
        return StreamCosts(self._environments).connections()

    def _through_sender(self, peer: Peer, mode: str) -> Figures:
        """Cost and throughput if one process sends for all."""
        through = peer._replace(client=f"letterapp_{mode}")
        without, call = self._calls(peer)["call"], self._calls(through)["call"]
        with self._measured(through, "scale", RELAYED, RELAYING_PROCESSES, 1) as (program, server):
            result = program.receive()
            counts = server.receive()
        if result["hung"] or result["raised"]:
            raise Failure(f"{result['hung']} of {RELAYING_PROCESSES} processes hung, {result['raised']} raised")
        rate = RELAYED / (counts["last"] - result["began"])
        bypassed = 100 * (1 - result["relayed"] / RELAYED)
        return {f"{mode}_call": call / without, f"{mode}_rate": rate, f"{mode}_own": bypassed}

    def _idle(self, peer: Peer) -> Figures:
        raise AssertionError("all clients idle at the same time: see _start_idling")

    def _start_idling(self) -> dict[str, Callable[[], Figures]]:
        """Watch all clients at the same time; return for each a function with its figures or its failure."""
        watches: dict[str, Callable[[], Figures]] = {}
        with ExitStack() as running:
            started: dict[str, tuple[Program, Program]] = {}
            for peer in self._columns:
                if peer.column != FLOOR:
                    program, server = running.enter_context(self._measured(peer, "idle", BURST))
                    started[peer.column] = program, server
            programs: dict[str, Program] = {}
            # Step by step for all clients: their bursts are simultaneous, so no thread ends before it is watched.
            for step in (_ready, _burst, _arrived):
                for column, (program, server) in started.items():
                    try:
                        if column not in watches:
                            step(program, server)
                            programs[column] = program
                    except Failure as failure:
                        watches[column] = _raising(failure)
            for column in watches:
                programs.pop(column, None)
            time.sleep(SETTLING)
            before = {column: _wake_ups(program.pid) for column, program in programs.items()}
            time.sleep(WATCHED)
            after = {column: _wake_ups(program.pid) for column, program in programs.items()}
            time.sleep(ENDING)
            for column, program in programs.items():
                remaining = psutil.Process(program.pid).num_threads() - 1
                wakes = _between(before[column], after[column]) / WATCHED
                watches[column] = _returning({"wakes": wakes, "threads": remaining})
                program.resume()
        return watches

    def server_rate(self, connections: int) -> float:
        """Events a second that the server receives from a program that does nothing but send."""
        with self._measured(self._columns[0], "flood", FLOOD, connections) as (program, server):
            began = program.receive()["began"]
            counts = server.receive()
        return float(counts["events"] / (counts["last"] - began))

    @contextmanager
    def _measured(
        self,
        peer: Peer,
        measure: str,
        *numbers: int,
        expect: int | list[int] | None = None,
        no_response: bool = False,
        tls: bool = False,
        delayed: bool = False,
        timeout: float = TIMEOUT,
    ) -> Iterator[Any]:
        """Run ``measure`` with the peer's client and a separate server; yields both programs."""
        expected = expect if isinstance(expect, list) else [max(1, numbers[0]) if expect is None else expect]
        server_options = ["--certificate", str(self._certificate.server)] if tls else []
        server_options += ["--no-response"] if no_response else []
        trust = {"SSL_CERT_FILE": str(self._certificate.bundle), "REQUESTS_CA_BUNDLE": str(self._certificate.bundle)}
        with ExitStack() as stack:
            server = stack.enter_context(
                _start("counting_server.py", peer.marker or "-", *expected, *server_options, timeout=timeout)
            )
            port = server.receive()["port"]
            if delayed:
                proxy = stack.enter_context(_start("delay_proxy.py", port, ONE_WAY_DELAY))
                port = proxy.receive()["port"]
            url = f"{'https' if tls else 'http'}://127.0.0.1:{port}"
            script = HERE / "inside" / "measure.py"
            env = {**peer.env, **trust, "STRESS_MODULE": peer.module}
            env["XDG_RUNTIME_DIR"] = str(self._folder)  # where a relay listens
            if peer.client == "letterapp_redis" and "STRESS_REDIS" not in env:
                redis = stack.enter_context(RedisService())
                for _ in range(peer.options.get("relays", 1)):
                    redis.start_relay(peer.python, peer.env, url)
                env["STRESS_REDIS"] = redis.url
            yield (
                stack.enter_context(
                    Program(peer.python, script, measure, peer.client, url, *numbers, env=env, timeout=timeout)
                ),
                server,
            )


def _start(script: str, *arguments: object, timeout: float = TIMEOUT) -> Program:
    return Program(sys.executable, HERE / script, *arguments, timeout=timeout)


def _returning(figures: Figures) -> Callable[[], Figures]:
    return lambda: figures


def _raising(failure: Failure) -> Callable[[], Figures]:
    def fail() -> Figures:
        raise failure

    return fail


def _cpu_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)  # `os.times` has a resolution of 10 ms only
    return used.ru_utime + used.ru_stime


def _ready(program: Program, _: Program) -> None:
    program.receive()


def _burst(program: Program, _: Program) -> None:
    program.resume()


def _arrived(program: Program, server: Program) -> None:
    program.receive()
    server.receive()


def _wake_ups(pid: int) -> dict[str, int]:
    """The number of voluntary context switches of each thread of a process, so far."""
    tasks = Path(f"/proc/{pid}/task")
    if not tasks.is_dir():
        raise Failure("wake-ups can be read from /proc only")
    counts = {}
    for task in tasks.iterdir():
        try:
            status = (task / "status").read_text()
        except OSError:
            continue  # it has just ended
        named = dict(line.split(":", 1) for line in status.splitlines())
        counts[task.name] = int(named["voluntary_ctxt_switches"])
    return counts


def _between(before: dict[str, int], after: dict[str, int]) -> int:
    """Wake-ups between two counts. A thread that started or ended in between woke up at least once."""
    return sum(abs(after[task] - before[task]) if task in before and task in after else 1 for task in {*before, *after})
