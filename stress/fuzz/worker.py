"""The fuzzer's own process: ``python -m stress.fuzz.worker ENGINE TARGET SEED SECONDS CORPUS FINDINGS``.

Responsible for: the loop, the time limit of one input, one file for each kind of finding. A finding does not end
the run; the remaining time is used to look for others.
"""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Callable

MAX_CPU_TIME = 5.0  # seconds for one input
MAX_REAL_TIME = 120.0  # seconds for one input, on an overloaded machine too
PROGRESS_INTERVAL = 10.0  # seconds
PACKAGE = str(Path(__file__).resolve().parents[2] / "letterapp") + os.sep
MAX_BYTES = 8192  # of one input


class TooLong(BaseException):
    """An input took longer than it may. Not an `Exception`, which the client would catch and report."""


class Recorder:
    """Runs inputs, and keeps the first input of each kind of finding."""

    def __init__(self, run: Callable[[bytes], object], findings: Path, max_cpu_time: float = MAX_CPU_TIME) -> None:
        self._run = run
        self._timers = (
            (signal.SIGPROF, signal.ITIMER_PROF, max_cpu_time),
            (signal.SIGALRM, signal.ITIMER_REAL, MAX_REAL_TIME),
        )
        self._findings = findings
        self._started = self._last_progress = time.monotonic()
        self._kinds: set[str] = set()
        self.inputs = 0

    def __call__(self, data: bytes) -> None:
        self.inputs += 1
        now = time.monotonic()
        if now >= self._last_progress + PROGRESS_INTERVAL:
            self._last_progress = now
            self.print_progress()
        before = [signal.signal(number, self._stop) for number, _, _ in self._timers]
        for _, timer, seconds in self._timers:
            signal.setitimer(timer, seconds)
        try:
            self._run(data)
        except (Exception, TooLong) as finding:
            self._keep(data, finding)
        finally:
            for (number, timer, _), handler in zip(self._timers, before):
                signal.setitimer(timer, 0)
                signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def print_progress(self) -> None:
        seconds = time.monotonic() - self._started
        progress = f"{self.inputs:,} inputs in {seconds:.0f} s, {len(self._kinds):,} kinds of findings"
        print(f"[{seconds:5.0f} s] {progress}", flush=True)

    def _keep(self, data: bytes, finding: BaseException) -> None:
        trace = [frame for frame in traceback.extract_tb(finding.__traceback__) if frame.name != "expect"]
        frames = [f"{frame.filename}:{frame.lineno}" for frame in trace]
        ours = [frame for frame in frames if frame.startswith(PACKAGE)] or frames
        where = "" if isinstance(finding, TooLong) else ours[-1]  # where it was interrupted is arbitrary
        kind = hashlib.sha256(f"{type(finding).__name__} {where}".encode()).hexdigest()[:16]
        if kind in self._kinds:
            return
        self._kinds.add(kind)
        (self._findings / kind).write_bytes(data)
        text = "".join(traceback.format_exception(type(finding), finding, finding.__traceback__))
        (self._findings / f"{kind}.txt").write_text(text, errors="backslashreplace")
        print(f"found {kind}: {type(finding).__name__} at {where}: {str(finding)[:200]!r}", flush=True)

    @staticmethod
    def _stop(number: int, _: object) -> None:
        raise TooLong("too much CPU time" if number == signal.SIGPROF else f"no result within {MAX_REAL_TIME:g} s")


def main() -> None:
    engine, target, seed, seconds, corpus, findings = sys.argv[1:]
    engines = {"atheris": _atheris, "hypothesis": _hypothesis}
    engines[engine](target, int(seed), float(seconds), Path(corpus), Path(findings))


def _atheris(target: str, seed: int, seconds: float, corpus: Path, findings: Path) -> None:
    import atheris

    with atheris.instrument_imports(include=["letterapp", "stress.fuzz"]):
        from stress.fuzz.targets import SEEDS, TARGETS

        _add_seeds(SEEDS[target], corpus)
        with TARGETS[target]() as run:
            record = Recorder(run, findings)
            arguments = [f"-seed={seed}", f"-max_total_time={int(seconds)}", f"-max_len={MAX_BYTES}", "-timeout=0"]
            arguments.append("-len_control=20")
            arguments += [f"-artifact_prefix={findings}{os.sep}", "-print_final_stats=1", "-rss_limit_mb=2048"]
            atheris.Setup([sys.argv[0], *arguments, str(corpus)], record)
            atheris.Fuzz()  # does not return: it ends the process


def _add_seeds(seeds: list[bytes], corpus: Path) -> None:
    for data in seeds:
        (corpus / hashlib.sha1(data).hexdigest()).write_bytes(data)  # as libFuzzer names them


def _hypothesis(target: str, seed: int, seconds: float, corpus: Path, findings: Path) -> None:
    import random

    from hypothesis import HealthCheck, Phase, given, settings, strategies
    from hypothesis import seed as with_seed

    from stress.fuzz.targets import SEEDS, TARGETS

    _add_seeds(SEEDS[target], corpus)
    end = time.monotonic() + seconds
    with TARGETS[target]() as run:
        record = Recorder(run, findings)
        for path in sorted(corpus.iterdir()):
            record(path.read_bytes())
        choose = random.Random(seed)
        round_number = 0
        while time.monotonic() < end:

            @with_seed(seed + round_number)
            @settings(
                max_examples=500,
                deadline=None,
                database=None,
                phases=[Phase.generate],
                suppress_health_check=[*HealthCheck],
            )
            @given(strategies.binary(max_size=MAX_BYTES))
            def try_input(data: bytes) -> None:
                if time.monotonic() < end:
                    record(data)
                    if choose.random() < 0.001:  # there is no information on which inputs reach new code
                        (corpus / hashlib.sha1(data).hexdigest()).write_bytes(data)

            try_input()
            round_number += 1
        record.print_progress()


if __name__ == "__main__":
    main()
