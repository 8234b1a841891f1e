"""``python -m letterapp demo``: one client, created before any fork, and used in processes of every kind.

Responsible for: those processes, their own record of the events that they tracked, and the ledger that compares it with
what the server has received. It uses only the client's public API. Not responsible for: the client and the server.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter, defaultdict
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any, Iterator, NamedTuple, Tuple

from .._client import Letter
from ..errors import LetterError
from ..relay import SenderManager
from .console import end_by_ctrl_c

CAN_FORK = hasattr(os, "fork")
POOL_SIZE = 2
# On a busy machine, a server that stalls and refuses takes longer than the default of 5 s.
_PATIENT: dict[str, Any] = {"max_retries": 10, "exit_timeout": 30.0}
_UNBOUNDED = ("--max-events", "1000000000", "--max-bytes", "1000000000000")  # the ledger needs all
Key = Tuple[str, int]  # who, pid


class Book:
    """The record of what happened, independent of the client: a file to which every process appends whole lines."""

    def __init__(self, path: str) -> None:
        self._path = path

    def write(self, **line: Any) -> None:
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.write(descriptor, json.dumps(line).encode() + b"\n")
        os.close(descriptor)

    def error(self, error: LetterError) -> None:
        self.write(error=str(error), pid=os.getpid())

    def read(self) -> list[dict[str, Any]]:
        try:
            with open(self._path) as lines:
                return [json.loads(line) for line in lines if line.endswith("\n")]
        except FileNotFoundError:
            return []


class Program:
    """What each process needs. ``settles``: each process records what its client delivered: the API does not."""

    def __init__(self, letter: Letter, book: Book, events: int, settles: bool) -> None:
        self.letter = letter
        self.book = book
        self.events = events
        self.settles = settles

    def work(self, who: str) -> None:
        pid = os.getpid()
        start = _tracked.get(pid, 0)  # a pool may give two jobs to one worker
        _tracked[pid] = start + self.events
        for serial in range(start, start + self.events):
            self.letter.track(f"user_{serial % 7}", "Demo Event", {"who": who, "pid": pid, "serial": serial})
        self.book.write(who=who, pid=pid, tracked=self.events)
        if self.settles:
            before = self.letter.stats()["delivered"]
            self.letter.flush()
            self.book.write(who=who, pid=pid, delivered=self.letter.stats()["delivered"] - before)


_tracked: dict[int, int] = {}  # events that a process has tracked so far, by its pid
_program: Program | None = None  # forked children inherit it, like a preloaded application


def _work(who: str) -> None:
    assert _program is not None
    _program.work(who)


def demo(workers: int, events: int, base_url: str | None) -> int:
    """Run everything; return 0 if the ledger balances, otherwise 1, or 2 if an option is invalid."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        _end_at_ctrl_c(folder)
        book = Book(os.path.join(folder, "book"))
        if base_url is None:
            with _server() as url:
                letter = Letter("demo-key", url, **_PATIENT, on_error=book.error)
                with Progress(book, url):
                    _run(Program(letter, book, events, settles=False), workers)
                    with SenderManager("demo-key", url, **_PATIENT) as manager:
                        through = Letter(relay=manager.queue, **_PATIENT, on_error=book.error)
                        _run_through_a_manager(Program(through, book, events, settles=False), workers)
                kept = _received(url)
        else:
            try:
                letter = Letter(base_url=base_url, on_error=book.error)
            except LetterError as error:
                print(f"demo: {error}", file=sys.stderr)
                return 2
            with Progress(book, None):
                _run(Program(letter, book, 1, settles=True), workers)
                with SenderManager(base_url=base_url) as manager:
                    through = Letter(relay=manager.queue, on_error=book.error)
                    _run_through_a_manager(Program(through, book, 1, settles=True), workers)
            kept = None
        return _close_the_books(book.read(), kept, time.monotonic() - started)


@contextmanager
def _server() -> Iterator[str]:
    # A separate process, so that the demo's forks do not inherit its threads.
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    environment = {**os.environ, "PYTHONPATH": os.path.dirname(package)}
    command = [sys.executable, "-m", "letterapp", "inbox", "--port", "0", "--quiet", "--troubled", *_UNBOUNDED]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, universal_newlines=True
    ) as inbox:
        assert inbox.stdin is not None and inbox.stdout is not None
        try:
            yield inbox.stdout.readline().strip()
        finally:
            inbox.stdin.close()


def _received(url: str) -> list[dict[str, Any]]:
    """All items that the server has received, each as often as it was delivered."""
    items: list[dict[str, Any]] = []
    offset = 0
    while True:
        events = _ask(url, f"api/list?whole=1&limit=1000&offset={offset}")["events"]
        for event in events:
            items += [event["item"]] * event["deliveries"]
        offset += len(events)
        if not events:
            return items


def _ask(url: str, what: str) -> Any:
    with urllib.request.urlopen(f"{url}/{what}", timeout=10) as answer:
        return json.load(answer)


# The processes, each created as servers do it.


def _end_at_ctrl_c(folder: str | None = None) -> None:
    """Make Ctrl-C end this process and its forks at once, and not after `exit_timeout`: its server ends too."""
    starter = os.getpid()

    def end(*_: object) -> None:
        if folder is not None and os.getpid() == starter:
            shutil.rmtree(folder, ignore_errors=True)
        end_by_ctrl_c()

    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as a shell does for a program in the background
        signal.signal(signal.SIGINT, end)


def _work_in_a_new_interpreter(program: Program, who: str) -> None:
    _end_at_ctrl_c()
    program.work(who)


def _run(program: Program, workers: int) -> None:
    global _program
    _program = program
    program.work("parent, before the forks")
    if CAN_FORK:
        _fork_workers(workers)
        fork = multiprocessing.get_context("fork")
        with fork.Pool(POOL_SIZE) as pool:
            pool.map(_work, ["Pool worker"] * POOL_SIZE, chunksize=1)
            pool.close()
            pool.join()
        with ProcessPoolExecutor(POOL_SIZE, mp_context=fork) as executor:
            list(executor.map(_work, ["ProcessPoolExecutor worker"] * POOL_SIZE))
    spawned = multiprocessing.get_context("spawn").Process(
        target=_work_in_a_new_interpreter, args=(program, "spawned, client as an argument")
    )
    spawned.start()
    spawned.join()
    program.work("parent, after them")
    program.letter.close()


def _run_through_a_manager(program: Program, workers: int) -> None:
    """The same kinds of processes, all of which send through one manager process."""
    global _program
    _program = program
    if CAN_FORK:
        _fork_workers(workers, ", through a manager")
        with multiprocessing.get_context("fork").Pool(POOL_SIZE) as pool:
            pool.map(_work, ["Pool worker, through a manager"] * POOL_SIZE, chunksize=1)
            pool.close()
            pool.join()
    spawned = multiprocessing.get_context("spawn").Process(
        target=_work_in_a_new_interpreter, args=(program, "spawned, through a manager")
    )
    spawned.start()
    spawned.join()
    program.work("parent, through a manager")
    program.letter.close()


def _fork_workers(workers: int, how: str = "") -> None:
    children = [_forked(_be_worker, f"worker {number}{how}") for number in range(1, workers + 1)]
    for child in children:
        os.waitpid(child, 0)


def _be_worker(who: str) -> None:
    _work(who)
    grandchild = _forked(_work, f"grandchild of {who}")
    os.waitpid(grandchild, 0)


def _forked(job: Any, argument: Any) -> int:
    child = os.fork()
    if child:
        return child
    # The child closes its client, and then exits without running the `finally` blocks of the parent's frames.
    try:
        job(argument)
        assert _program is not None
        _program.letter.close()
        os._exit(0)
    finally:
        os._exit(1)


class Progress:
    """A line on the terminal that is updated while the processes work; elsewhere a new line every 2 seconds."""

    def __init__(self, book: Book, url: str | None) -> None:
        self._book = book
        self._url = url
        self._over = threading.Event()
        self._started = time.monotonic()

    def __enter__(self) -> None:
        threading.Thread(target=self._show, daemon=True).start()

    def __exit__(self, *_: Any) -> None:
        self._over.set()
        if sys.stdout.isatty():
            sys.stdout.write("\r\x1b[K")

    def _show(self) -> None:
        terminal = sys.stdout.isatty()
        while not self._over.wait(0.2 if terminal else 2.0):
            lines = [line for line in self._book.read() if "tracked" in line]
            tracked = sum(line["tracked"] for line in lines)
            text = f"{time.monotonic() - self._started:5.1f} s  {len(lines)} processes done  {tracked:,} events tracked"
            if self._url is not None:
                try:
                    counts = _ask(self._url, "api/stats")
                except OSError:
                    continue
                text += f"  {counts['events']:,} delivered in {counts['requests']:,} requests"
            sys.stdout.write(f"\r\x1b[K{text}" if terminal else f"{text}\n")
            sys.stdout.flush()


# The ledger.


class Row(NamedTuple):
    who: str
    pid: int
    tracked: int
    delivered: int
    twice: int

    @property
    def lost(self) -> int:
        return self.tracked - self.delivered


def _rows(lines: list[dict[str, Any]], kept: list[dict[str, Any]] | None) -> list[Row]:
    tracked: dict[Key, int] = defaultdict(int)
    delivered: dict[Key, int] = defaultdict(int)
    twice: dict[Key, int] = defaultdict(int)
    for line in lines:
        if "tracked" in line:
            tracked[line["who"], line["pid"]] += line["tracked"]
        elif "delivered" in line:
            delivered[line["who"], line["pid"]] += line["delivered"]
    # The API keeps one event per messageId. An event that was sent with two of them would be counted twice.
    by_id = {item["messageId"]: item["properties"] for item in kept or ()}
    copies = Counter((made["who"], made["pid"], made["serial"]) for made in by_id.values())
    for (who, pid, _), count in copies.items():
        delivered[who, pid] += 1
        twice[who, pid] += count - 1
    keys = list(dict.fromkeys([*tracked, *delivered]))
    return [Row(who, pid, tracked[who, pid], delivered[who, pid], twice[who, pid]) for who, pid in keys]


def _close_the_books(lines: list[dict[str, Any]], kept: list[dict[str, Any]] | None, seconds: float) -> int:
    rows = _rows(lines, kept)
    for line in lines:
        if "error" in line:
            print(f"pid {line['pid']}: {line['error']}")
    sums = (sum(row.tracked for row in rows), sum(row.delivered for row in rows), sum(row.twice for row in rows))
    total = Row("total", 0, *sums)
    width = max(len(row.who) for row in [*rows, total])
    print(f"{'process':{width}} {'pid':>8} {'tracked':>9} {'delivered':>9} {'lost':>6} {'twice':>6}")
    for row in [*rows, total]:
        pid = row.pid or ""
        print(f"{row.who:{width}} {pid:>8} {row.tracked:>9,} {row.delivered:>9,} {row.lost:>6,} {row.twice:>6,}")
    if kept is not None:
        again = len(kept) - len({item["messageId"] for item in kept})
        print(f"{again:,} events were sent again under the same id, after faults of the server; it kept each once")
    balances = total.tracked > 0 and all(row.lost == 0 and row.twice == 0 for row in rows)
    print(f"{'the ledger balances' if balances else 'THE LEDGER DOES NOT BALANCE'}  ({seconds:.1f} s)")
    return 0 if balances else 1
