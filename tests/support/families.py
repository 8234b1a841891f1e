"""Families of processes of which some are killed: real programs, and the gates at which they wait for the test.

Lives here: what such a program begins with, starting it, and what came of it. Never here: what is right.

A process is killed where the test wants it: by itself, or by the test when its request has reached the server. Nothing
is slept through; a wait that has no end is ended by an alarm.
"""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent
from typing import Any

from harness import DEADLINE, Program, eventually, run, start, whose

from letterapp.testing import Fault, Hold

# `make` gives a client from which nothing leaves by itself, `fork` a child that ends by nothing but what its job does.
FAMILY = """
import ctypes, json, resource, urllib.request

resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
signal.alarm(50)
from letterapp._delivery import shutdown
shutdown._next_look = float('inf')  # a parent that forks does not look, or who is the heir would be a matter of luck

def make(**options):
    return Letter('k', API, **{'flush_interval': 3600, 'flush_at': 10**6, 'exit_timeout': 40, **options})

def has_looked(sender):
    "Wait until a thread that was just started has looked for what others left. It does so again after a second."
    if sender.owner.pid == os.getpid():
        def is_looking():
            is_between = sender._batches.lock.is_taken() and sender._queue._taken.ring is None
            return not sender._recovery._next_look or is_between
        while sender._queue.has_worker and is_looking():
            time.sleep(0.001)

def fork(job, *arguments):
    if 'letter' in globals():
        has_looked(letter._delivery)  # else it may look, and be the heir, when the test does not expect it
    pid = os.fork()
    if pid:
        return pid
    try:
        signal.alarm(50)
        job(*arguments)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(99)

def die(number=signal.SIGKILL):
    os.kill(os.getpid(), number)
    stay()

def reap(pid):
    "The code with which a child left, or the signal that killed it, negative."
    status = os.waitpid(pid, 0)[1]
    return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)

def leave(letter, count, who='dead', end=die):
    "A child that tracks, and is killed."
    def job():
        work(letter, count, who)
        end()
    return reap(fork(job))

def leave_all(letter, count, *names):
    "Children that are stopped before the first is killed, so that none looks when another is dead."
    def job(name):
        work(letter, count, name)
        os.kill(os.getpid(), signal.SIGSTOP)
    pids = []
    for name in names:
        pids.append(fork(job, name))
        assert os.WIFSTOPPED(os.waitpid(pids[-1], os.WUNTRACED)[1])
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
        assert reap(pid) == -signal.SIGKILL

def say(*words):
    os.write(1, (' '.join(map(str, words)) + '\\n').encode())  # in one piece, whatever the others write

def gate(name):
    "Stay until the test opens it."
    urllib.request.urlopen(f'{API}/gate/{name}', b'{}', timeout=50).read()

def counts(letter):
    found = letter.stats()
    assert found['accepted'] == found['delivered'] + sum(found['lost'].values()) + found['waiting'], found
    return [found[name] for name in ('accepted', 'delivered', 'adopted', 'waiting')]

def adopts(letter, count, own=0):
    "This process has delivered what others left, and what it tracked itself."
    assert counts(letter) == [count + own, count + own, count, 0], letter.stats()
    assert not letter.stats()['lost'], letter.stats()
"""

NUMBERED = list(range(10_000))


def family(body: str, api: Any, tmp_path: Path, *arguments: str) -> str:
    """Run a program to its good end; return what it printed."""
    finished = run(FAMILY + dedent(body), api.url, tmp_path, *arguments)
    assert finished.code == 0 and "Traceback" not in finished.output, finished
    return finished.output


def running(body: str, api: Any, tmp_path: Path) -> Program:
    return start(FAMILY + dedent(body), api.url, tmp_path)


def ends(program: Program) -> None:
    finished = program.finish()
    assert finished.code == 0 and "Traceback" not in finished.output, finished
    assert not program.left_behind(), program.left_behind()


def arrived(api: Any, **counts: int) -> None:
    """All that was tracked has come, in order."""
    assert whose(api) == {who: NUMBERED[:count] for who, count in counts.items()}


def once(api: Any, **counts: int) -> None:
    arrived(api, **counts)
    assert api.repeated() == {}


def in_turn(api: Any) -> list[str]:
    """Whose events came, as often as it changed."""
    turns: list[str] = []
    for item in api.events:
        if turns[-1:] != [item["userId"]]:
            turns.append(item["userId"])
    return turns


def no_answer(stored: bool) -> Fault:
    """Keep the request or not, and let its client wait."""
    return lambda handler: handler.keep() if stored else None


def batches(api: Any) -> list[Any]:
    return [request for request in api.requests if request.path == "/v1/batch"]


class Gates:
    """Where programs stay until the test opens them, and how the batches that come meanwhile are met."""

    def __init__(self, api: Any) -> None:
        self._holds: dict[str, Hold] = {}
        self._faults: list[Fault] = []
        api.rule = self._meet

    def plan(self, *faults: Fault) -> None:
        """Meet the next batches with these, whatever else comes."""
        self._faults += faults

    def wait(self, name: str) -> None:
        assert self._at(name).arrived.wait(DEADLINE), name

    def open(self, name: str) -> None:
        self._at(name).release()

    def _at(self, name: str) -> Hold:
        return self._holds.setdefault(name, Hold())

    def _meet(self, request: Any) -> Fault | None:
        if request.path.startswith("/gate/"):
            return self._at(request.path[len("/gate/") :])
        return self._faults.pop(0) if self._faults else None


def said(program: Program, words: int) -> list[str]:
    """The first words that a program prints."""
    seen = eventually(lambda: program.output, lambda text: len(text.split()) >= words).split()
    assert len(seen) >= words, program.output
    return list(seen[:words])
