"""The fuzzer's own process: ``python -m stress.fuzz.worker ENGINE TARGET SEED SECONDS CORPUS FINDINGS``.

Responsible for: the loop, the time that one input may take, one file for each kind of finding. A finding ends nothing:
the others are looked for in the time that is left.
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

LONGEST = 5.0  # seconds of the processor that one input may take
STANDSTILL = 120.0  # seconds that it may take in all, on a machine that starves
EVERY = 10.0  # seconds from one line of progress to the next
PACKAGE = str(Path(__file__).resolve().parents[2] / "letterapp") + os.sep
MOST_BYTES = 8192  # of one input


class TooLong(BaseException):
    """An input has taken longer than it may. No `Exception`, which the client would take for a fault of its own."""


class Recorder:
    """Runs inputs, and keeps the first of each kind that fails."""

    def __init__(self, run: Callable[[bytes], object], findings: Path, longest: float = LONGEST) -> None:
        self._run = run
        self._timers = (
            (signal.SIGPROF, signal.ITIMER_PROF, longest),
            (signal.SIGALRM, signal.ITIMER_REAL, STANDSTILL),
        )
        self._findings = findings
        self._started = self._told = time.monotonic()
        self._kinds: set[str] = set()
        self.inputs = 0

    def __call__(self, data: bytes) -> None:
        self.inputs += 1
        now = time.monotonic()
        if now >= self._told + EVERY:
            self._told = now
            self.tell()
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

    def tell(self) -> None:
        seconds = time.monotonic() - self._started
        said = f"{self.inputs:,} inputs in {seconds:.0f} s, {len(self._kinds):,} kinds of findings"
        print(f"[{seconds:5.0f} s] {said}", flush=True)

    def _keep(self, data: bytes, finding: BaseException) -> None:
        trace = [frame for frame in traceback.extract_tb(finding.__traceback__) if frame.name != "expect"]
        frames = [f"{frame.filename}:{frame.lineno}" for frame in trace]
        ours = [frame for frame in frames if frame.startswith(PACKAGE)] or frames
        where = "" if isinstance(finding, TooLong) else ours[-1]  # where it was just then says nothing
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
        raise TooLong("of the processor's time" if number == signal.SIGPROF else f"stands still for {STANDSTILL:g} s")


def main() -> None:
    engine, target, seed, seconds, corpus, findings = sys.argv[1:]
    engines = {"atheris": _atheris, "hypothesis": _hypothesis}
    engines[engine](target, int(seed), float(seconds), Path(corpus), Path(findings))


def _atheris(target: str, seed: int, seconds: float, corpus: Path, findings: Path) -> None:
    import atheris

    with atheris.instrument_imports(include=["letterapp", "stress.fuzz"]):
        from stress.fuzz.targets import SEEDS, TARGETS

        _sow(SEEDS[target], corpus)
        with TARGETS[target]() as run:
            record = Recorder(run, findings)
            arguments = [f"-seed={seed}", f"-max_total_time={int(seconds)}", f"-max_len={MOST_BYTES}", "-timeout=0"]
            arguments.append("-len_control=20")
            arguments += [f"-artifact_prefix={findings}{os.sep}", "-print_final_stats=1", "-rss_limit_mb=2048"]
            atheris.Setup([sys.argv[0], *arguments, str(corpus)], record)
            atheris.Fuzz()  # ends the process


def _sow(seeds: list[bytes], corpus: Path) -> None:
    for data in seeds:
        (corpus / hashlib.sha1(data).hexdigest()).write_bytes(data)  # as libFuzzer names them


def _hypothesis(target: str, seed: int, seconds: float, corpus: Path, findings: Path) -> None:
    import random

    from hypothesis import HealthCheck, Phase, given, settings, strategies
    from hypothesis import seed as with_seed

    from stress.fuzz.targets import SEEDS, TARGETS

    _sow(SEEDS[target], corpus)
    end = time.monotonic() + seconds
    with TARGETS[target]() as run:
        record = Recorder(run, findings)
        for path in sorted(corpus.iterdir()):
            record(path.read_bytes())
        choose = random.Random(seed)
        turn = 0
        while time.monotonic() < end:

            @with_seed(seed + turn)
            @settings(
                max_examples=500,
                deadline=None,
                database=None,
                phases=[Phase.generate],
                suppress_health_check=[*HealthCheck],
            )
            @given(strategies.binary(max_size=MOST_BYTES))
            def play(data: bytes) -> None:
                if time.monotonic() < end:
                    record(data)
                    if choose.random() < 0.001:  # nothing says which ones reach something new
                        (corpus / hashlib.sha1(data).hexdigest()).write_bytes(data)

            play()
            turn += 1
        record.tell()


if __name__ == "__main__":
    main()
