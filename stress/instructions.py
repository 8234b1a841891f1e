"""The instructions of a call and of a fork, counted by valgrind: a guard against higher costs, on a busy machine too.

Responsible for: running `inside/counted.py`, the figures, and comparing them with those stored in `instructions.json`.
Not responsible for: what is counted, seconds (`bench.py`).

How many instructions a call takes depends on the interpreter. So a figure is a ratio of two counts of the same run, and
figures are stored for each minor version of Python. Other builds of the same version differ by up to 10 %, so they are
compared less strictly.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Dict, NamedTuple

from .peers import CHECKOUT, clean_environment
from .programs import Failure

SCRIPT = Path(__file__).parent / "inside" / "counted.py"
STORED = Path(__file__).with_suffix(".json")
CALLS = 200  # of each shape
FORKS = 12  # from Python 3.11 on, the first ones are also there for the interpreter to optimize the code
TOLERANCE = 0.10
TOLERANCE_OF_ANOTHER_BUILD = 0.20
BUILD = " ".join(sys.version.split())
TIMEOUT = 300.0  # seconds; it takes some ten on a machine that does nothing else
NOT_MEASURED = 2  # exit status

FIGURES = {
    "flat": "track() over floor, flat",
    "list": "track() over floor, list",
    "cart": "track() over floor, cart",
    "fork": "what a used client adds to a fork, over a fork without",
    "search": "a fork's search for events of ended children, over floor",
    "first_call": "first call in a forked child, over floor",
}
Figures = Dict[str, float]


class Comparison(NamedTuple):
    what: str
    counted: float
    stored: float
    tolerance: float

    @property
    def is_higher(self) -> bool:
        return self.counted > self.stored * (1 + self.tolerance)

    @property
    def is_lower(self) -> bool:
        return self.counted < self.stored * (1 - self.tolerance)

    def __str__(self) -> str:
        verdict = "HIGHER" if self.is_higher else "lower" if self.is_lower else ""
        line = f"{self.what:56} {self.counted:6.3f}  stored {self.stored:6.3f} {self.counted / self.stored - 1:+7.1%}"
        return f"{line}  {verdict}".rstrip()


def instructions(options: argparse.Namespace) -> int:
    """Count, compare and print. Returns the exit status: 1 if a figure is too high, 2 if nothing can be compared."""
    version = "{}.{}".format(*sys.version_info)
    valgrind = shutil.which("valgrind")
    if valgrind is None:
        print("valgrind is not installed, so nothing was counted (apt-get install valgrind)", file=sys.stderr)
        return NOT_MEASURED
    stored = json.loads(STORED.read_text())
    if version not in stored and not options.update:
        print(f"no figures of Python {version} are stored, so nothing was counted (--update)", file=sys.stderr)
        return NOT_MEASURED
    try:
        counted = figures(counts(valgrind))
    except Failure as failure:
        print(failure, file=sys.stderr)
        return 1
    if options.update:
        stored[version] = {"build": BUILD, "figures": counted}
        in_order = sorted(stored.items(), key=lambda item: [int(number) for number in item[0].split(".")])
        STORED.write_text(json.dumps(dict(in_order), indent=2) + "\n")
    print(BUILD)
    tolerance = TOLERANCE
    if stored[version]["build"] != BUILD:
        tolerance = TOLERANCE_OF_ANOTHER_BUILD
        print(f"compared with {stored[version]['build']}, so it may differ by {tolerance:.0%}")
    return report(compare(counted, stored[version]["figures"], tolerance))


def compare(counted: Figures, stored: Figures, tolerance: float = TOLERANCE) -> list[Comparison]:
    return [Comparison(what, counted[key], stored[key], tolerance) for key, what in FIGURES.items()]


def report(comparisons: list[Comparison]) -> int:
    """Print the comparisons. Returns the exit status."""
    for each in comparisons:
        print(each)
    if any(each.is_lower for each in comparisons):
        print("Some figures are lower: store them with --update, so that they stay low.")
    if any(each.is_higher for each in comparisons):
        print("Some figures are HIGHER. If that is intended, store them with --update.")
        return 1
    return 0


def figures(counts: dict[str, list[int]]) -> Figures:
    """The figures, from the instructions of each section of `inside/counted.py`."""
    # Of several forks the least: the first one takes more, also because the parent searches for events of ended
    # children. It does that at most once a second.
    least = {name: min(each) for name, each in counts.items()}
    floor = least["flat floor"] / CALLS
    without, used = (sum(least[f"fork {kind}, {who}"] for who in ("parent", "child")) for kind in ("without", "with"))
    found = {shape: least[f"{shape} track"] / least[f"{shape} floor"] for shape in ("flat", "list", "cart")}
    found["fork"] = used / without - 1
    found["search"] = (counts["fork with, parent"][0] - least["fork with, parent"]) / floor
    found["first_call"] = (least["use, child"] - least["fork with, child"]) / floor
    return {key: round(value, 3) for key, value in found.items()}


def counts(valgrind: str) -> dict[str, list[int]]:
    """Run `inside/counted.py`. Returns the instructions of its sections, by name."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            valgrind,
            "--tool=callgrind",
            "--dump-before=getsid",
            "--separate-threads=yes",
            "--combine-dumps=yes",  # in one file for each process
            "--dump-line=no",
            f"--callgrind-out-file={folder}/%p",
            str(Path(sys.executable).resolve()),  # no virtual environment, whose path could differ
            "-Wignore",  # since 3.12, about a fork with a thread
            "-S",  # no installed packages: some start threads, or have hooks of their own at a fork
            *map(str, (SCRIPT.relative_to(CHECKOUT), CALLS, FORKS)),
        ]
        env = {**clean_environment(), "PYTHONHASHSEED": "0", "PYTHONPATH": "."}  # short: long paths move memory
        try:
            run = subprocess.run(
                command, cwd=CHECKOUT, env=env, capture_output=True, text=True, timeout=TIMEOUT, check=True
            )
        except subprocess.TimeoutExpired:
            raise Failure(f"{SCRIPT.name} did not end within {TIMEOUT:g} s under valgrind") from None
        except subprocess.CalledProcessError as error:
            raise Failure(f"{SCRIPT.name} failed under valgrind:\n{error.stderr}") from None
        names: dict[str, list[str]] = {}  # by process
        for line in run.stdout.splitlines():
            pid, name = line.split(" ", 1)
            names.setdefault(pid, []).append(name)
        found: dict[str, list[int]] = {}
        for pid, sections in names.items():
            parts = main_thread_totals(Path(folder, pid).read_text())
            if len(parts) != len(sections) + 1:  # the last part ends with the process
                raise Failure(f"callgrind wrote {len(parts)} parts of a process with {len(sections)} sections")
            for name, total in zip(sections, parts):
                found.setdefault(name, []).append(total)
        return found


def main_thread_totals(written: str) -> list[int]:
    """The instructions of the main thread in each part of a file that callgrind wrote."""
    parts = re.findall(r"^thread: (\d+)$.*?^totals: (\d+)$", written, re.MULTILINE | re.DOTALL)
    return [int(total) for thread, total in parts if thread == "1"]
