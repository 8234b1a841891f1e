"""``python -m stress cpython``: CPython's own tests, with a used client in every process that they start.

Responsible for: the environments, running the test modules, and the differences. Not responsible for: what runs in the
processes (`inside/every_process.py`).

Each module runs three times: unchanged, with an idle thread, which shows what any thread changes, and with the client.
A test that passes unchanged but not in another mode is run again in all modes before it is reported. A test that is
skipped where it otherwise runs counts as one that does not pass.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import xml.etree.ElementTree as xml
from pathlib import Path
from typing import Iterable, NamedTuple, Sequence

from letterapp.testing import IngestionServer

from .peers import CHECKOUT, clean_environment

TOP = "LETTERAPP_STRESS_TOP"  # an environment variable of the process that runs the tests
BARE, THREAD, CLIENT, CHILDREN = "bare", "thread", "client", "children"
NAMES = {BARE: "without", THREAD: "idle thread", CLIENT: "client", CHILDREN: "client, children use it"}
MODULES = (
    "test_fork1",
    "test_signal",
    "test_thread",
    "test_atexit",
    "test_threading",
    "test_socketserver",
    "test_os",
    "test_subprocess",
    "test_asyncio.test_subprocess",
    "test_asyncio.test_unix_events",
    "test_multiprocessing_main_handling",
    "test_multiprocessing_fork",
    "test_multiprocessing_forkserver",
    "test_multiprocessing_spawn",
    "test_concurrent_futures",
)
GOOD = ("pass", "skip")
WHOLE, ABSENT = "(the module)", "(absent)"

# Failures that any client causes by its presence, by the last two parts of the test's name.
_GAP = "skipped: a client that is created while `site` has a `.pth` file open leaves a gap in the descriptor numbers"
KNOWN = {
    "FileTests.test_closerange": _GAP,
    "TestInvalidFD.test_closerange": _GAP,
    "POSIXProcessTestCase.test_pass_fds_redirected": "the child that lists its descriptors has a client too",
}


class Difference(NamedTuple):
    module: str
    test: str
    bad: dict[str, int]  # the number of runs in which it did not pass, by mode
    runs: int
    message: str  # of a failure, with the client if there is one

    @property
    def reason(self) -> str:
        """Why the client is not at fault; empty if it is."""
        with_client = max(count for mode, count in self.bad.items() if mode in (CLIENT, CHILDREN))
        if with_client <= max(self.bad[BARE], self.bad[THREAD]):
            return "any thread causes it"
        if 2 * with_client <= self.runs:
            return "fails in a minority of the runs"
        return KNOWN.get(".".join(self.test.split(".")[-2:]), "")


def compare(options: argparse.Namespace) -> int:
    """Run them, print the differences. Returns 1 if only the client makes a test fail, for no known reason."""
    modes = [BARE, THREAD, CLIENT, *([CHILDREN] if options.children else [])]
    with tempfile.TemporaryDirectory(prefix="lc-") as folder, IngestionServer() as server:
        runner = _Runner(options, Path(folder), server.url)
        version = runner.make(modes)
        found: list[Difference] = []
        for chosen in options.tests or MODULES:
            module, _, pattern = chosen.partition(":")
            found += _one_module(runner, module, pattern, modes, options.again)
        print(f"\nPython {version}: {len(found)} tests differ", flush=True)
        for each in found:
            counts = ", ".join(f"{NAMES[mode]} {each.bad[mode]}" for mode in modes)
            print(f"{each.test}: {each.reason or 'CAUSED BY THE CLIENT'}")
            print(f"    failures in {each.runs} runs: {counts}\n    {each.message}")
        arrived = {item["messageId"] for item in server.events}
        tracked = runner.tracked()
        print(f"{len(tracked):,} processes used a client; the events of {len(tracked - arrived)} did not arrive")
    return 1 if any(not each.reason for each in found) else 0


def _one_module(runner: _Runner, module: str, pattern: str, modes: list[str], again: int) -> list[Difference]:
    results = {mode: [runner.run(mode, module, [pattern] if pattern else [])] for mode in modes}
    first = {mode: results[mode][0] for mode in modes}
    line = "  ".join(f"{NAMES[mode]}: {_summary(first[mode])}" for mode in modes)
    print(f"{module:36} {line}", flush=True)
    if WHOLE in first[BARE]:
        print(f"    could not run: {first[BARE][WHOLE]}")
    base = first[BARE]
    suspects = {
        test
        for mode in modes[1:]
        for test in {*base, *first[mode]}
        if base.get(test, "pass") in GOOD and _is_worse(first[mode].get(test, ABSENT), base.get(test, ABSENT))
    }
    if not suspects:
        return []
    for _ in range(again):
        for mode in modes:
            results[mode].append(runner.run(mode, module, [test for test in suspects if test != WHOLE]))
    found = []
    for test in sorted(suspects):
        bad = {
            mode: sum(_is_worse(each.get(test, ABSENT), base.get(test, ABSENT)) for each in results[mode])
            for mode in modes
        }
        messages = [each[test] for mode in reversed(modes) for each in results[mode] if test in each]
        message = next((text for text in messages if text != "pass"), "")
        if max(bad.values()) > bad[BARE]:
            found.append(Difference(module, test, bad, again + 1, message))
            print(f"    {test}: {bad} of {again + 1}", flush=True)
    return found


def _is_worse(result: str, than: str) -> bool:
    if result in GOOD:
        return result == "skip" and than == "pass"
    return result != ABSENT or than == "pass"


def _summary(results: dict[str, str]) -> str:
    bad = sum(result not in GOOD for result in results.values())
    return f"{len(results) - bad} of {len(results)}"


class _Runner:
    def __init__(self, options: argparse.Namespace, folder: Path, url: str) -> None:
        self._options = options
        self._folder = folder
        self._url = url
        self._runs = 0

    def make(self, modes: Iterable[str]) -> str:
        """Make an environment for each mode; return the version of Python."""
        for mode in modes:
            environment = self._folder / mode
            subprocess.run([self._options.python, "-m", "venv", "--without-pip", str(environment)], check=True)
            packages = next(environment.glob("lib/python*/site-packages"))
            (packages / "letterapp").symlink_to(CHECKOUT / "letterapp")
            shutil.copy(CHECKOUT / "stress/inside/every_process.py", packages / "letterapp_everywhere.py")
            config = {"what": mode, "url": self._url, "journal": str(self._folder / "journal")}
            (packages / "letterapp_everywhere.json").write_text(json.dumps(config))
            # A `.pth` file, because it is read even by children that ignore the environment (-E, -I).
            (packages / "letterapp_everywhere.pth").write_text("import letterapp_everywhere\n")
        (self._folder / "journal").touch()
        code = "import platform, test.libregrtest; print(platform.python_version())"
        return subprocess.run(
            [self._python(BARE), "-c", code], check=True, stdout=subprocess.PIPE, text=True
        ).stdout.strip()

    def run(self, mode: str, module: str, tests: Sequence[str]) -> dict[str, str]:
        """The result of each test of ``module``: "pass", "skip", or the last line of its output.

        After a test that ends the interpreter, the others are run again without it.
        """
        ended: dict[str, str] = {}
        chosen = list(tests)
        while True:
            results, output = self._run_once(mode, module, chosen)
            if results is not None:
                return {**results, **ended}
            culprit = _last_started(output)
            last = (output.strip().splitlines() or [""])[-1][:300]
            if culprit is None or culprit in ended:
                return {WHOLE: last, **ended}
            ended[culprit] = f"the interpreter ended: {_fatal(output) or last}"
            chosen = [test for test in chosen or self._list(mode, module) if test not in ended]
            if not chosen:
                return ended

    def _list(self, mode: str, module: str) -> list[str]:
        command = [self._python(mode), "-m", "test", "--list-cases", module]
        listed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=clean_environment())
        return [line for line in listed.stdout.split() if line.startswith("test.")]

    def _run_once(self, mode: str, module: str, tests: list[str]) -> tuple[dict[str, str] | None, str]:
        """The results, None if there is no report, and the output."""
        self._runs += 1
        report, listed, work = self._folder / "report.xml", self._folder / "listed", self._folder / "t"
        report.unlink(missing_ok=True)
        work.mkdir()
        command = [self._python(mode), "-m", "test", "-v", "-u", "network", "--junit-xml", str(report)]
        if tests:
            listed.write_text("".join(f"{test}\n" for test in tests))
            command += ["--matchfile", str(listed)]
        with tempfile.TemporaryFile() as file:
            process = subprocess.Popen(
                [*command, module],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**clean_environment(), "TMPDIR": str(work), TOP: "1"},
                cwd=work,
                start_new_session=True,
            )
            try:
                process.wait(self._options.seconds)
            except subprocess.TimeoutExpired:
                pass  # so there is no report
            finally:
                try:
                    os.killpg(process.pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
                process.wait()
            output = os.pread(file.fileno(), 100_000_000, 0).decode(errors="replace")
        shutil.rmtree(work, ignore_errors=True)
        if self._options.keep is not None:
            self._options.keep.mkdir(parents=True, exist_ok=True)
            (self._options.keep / f"{self._runs:03}-{module}-{mode}.txt").write_text(output)
        return dict(_results(report)) if report.exists() else None, output

    def tracked(self) -> set[str]:
        return set((self._folder / "journal").read_text().split())

    def _python(self, mode: str) -> str:
        return str(self._folder / mode / "bin/python")


def _last_started(output: str) -> str | None:
    """The test that was started last: unittest prints its name, its class and three dots."""
    started = re.findall(r"^(test\w*) \((\S+?)\)", output, re.MULTILINE)
    if not started:
        return None
    name, qualified = started[-1]
    # Since Python 3.11 the class is followed by the name.
    return qualified if qualified.endswith(f".{name}") else f"{qualified}.{name}"


def _fatal(output: str) -> str | None:
    found = re.search(r"^Fatal Python error.*", output, re.MULTILINE)
    return found and found.group()


def _error_line(text: str) -> str:
    """The line of a traceback with the error, or the last line."""
    lines = [line for line in text.splitlines() if line.strip("- ")]
    return next((line for line in lines[::-1] if re.match(r"[\w.]*(Error|Exception)\b", line)), lines[-1])[:300]


def _results(report: Path) -> Iterable[tuple[str, str]]:
    for case in xml.parse(report).iter("testcase"):
        result = "pass"
        for child in case:
            if child.tag == "skipped":
                result = "skip"
            elif child.tag in ("failure", "error"):
                result = _error_line("".join(child.itertext())) or child.tag
                break
        yield str(case.get("name")), result
