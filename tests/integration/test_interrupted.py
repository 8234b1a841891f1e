"""An exception of a signal handler anywhere inside a call: no event is lost, and no client hangs.

Python looks for signals where a function begins and after each call (CPython's `eval_breaker`). A tracer raises there.
"""

from __future__ import annotations

import dis
import gc
import json
import os
import signal
import subprocess
import sys
import threading
import traceback
import warnings
from collections import UserDict
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, tzinfo
from functools import lru_cache, partial
from itertools import count
from pathlib import Path
from typing import Any, Callable, Iterator

import pytest
from harness import DEADLINE, ROOT, environment, first_is_quick
from programs import far_relay
from relayed import Runtime, own_runtime  # noqa: F401  (a fixture that is there for all)

import letterapp
from letterapp import Letter
from letterapp._runtime.guards import ReentrancyGuard
from letterapp._runtime.signal_errors import reraise_signal_error
from letterapp.testing import Hold

if not hasattr(os, "fork"):
    pytest.skip("needs Unix", allow_module_level=True)

from letterapp._config import Settings
from letterapp._relay import client as client_module
from letterapp._relay import connection as connection_module
from letterapp._relay import delivery as delivery_module
from letterapp._storage import memory

EVENTS = [b'{"number":%d}' % number for number in range(7)]


@lru_cache(maxsize=None)
def places(code: Any) -> frozenset[int]:
    """The offsets of the instructions before which a signal is handled."""
    found = set()
    # From 3.11 on the exception belongs to the call: the next instruction may be behind the end of a `with` block.
    table = dis._parse_exception_table(code) if hasattr(dis, "_parse_exception_table") else []
    before = None
    for instruction in dis.get_instructions(code):
        if before is None or before.opname.startswith("CALL"):
            blocks = [
                [entry for entry in table if entry.start <= one.offset < entry.end]
                for one in (before or instruction, instruction)
            ]
            if blocks[0] == blocks[1]:
                found.add(instruction.offset)
        before = instruction
    return frozenset(found)


def in_del(frame: Any) -> bool:
    """True where Python itself loses whatever a handler raises."""
    while frame is not None and frame.f_code.co_name != "__del__":
        frame = frame.f_back
    return frame is not None


class Limit(TimeoutError):
    """What a program's own alarm raises, of a kind that much code catches."""


class Handler:
    """A signal handler that raises at some of the places which this thread's calls come to in these files."""

    def __init__(self, files: set[str], at: set[int]) -> None:
        self._files = files
        self._at = at
        self._last = max(at, default=0)
        self._met = 0
        self._raised = 0
        self._where: list[str] = []
        signal.signal(signal.SIGUSR1, self._handle)

    def _handle(self, *_: object) -> None:
        self._raised += 1
        self._where = [f"{frame.name}:{frame.lineno}" for frame in traceback.extract_stack()[-5:-1]]
        raise Limit

    def reached(self) -> bool:
        """There were as many places."""
        return self._met >= self._last

    def during(self, act: Callable[..., object], *arguments: Any) -> bool:
        """Call, and say whether the call returned: it does not when the handler has raised."""
        before = self._raised
        sys.settrace(self._trace)
        try:
            act(*arguments)
        except Limit:
            return False
        finally:
            sys.settrace(None)
        assert self._raised == before, f"what the handler raised was caught, in {self._where}"
        return True

    def _trace(self, frame: Any, event: str, _: object) -> Any:
        if frame.f_code.co_filename not in self._files or (event == "call" and in_del(frame)) or self.reached():
            return None
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        found = places(frame.f_code)  # once a frame: to hash code takes longer than all else here

        def trace(frame: Any, event: str, _: object) -> Any:
            if event == "opcode" and frame.f_lasti in found:
                self._met += 1
                if self._met in self._at:
                    self._handle()
            return trace

        return trace


def last_reached(is_reached: Callable[[int], bool], step: int = 1) -> int:
    """The last place, of each ``step``, that a run reaches.

    A run has a few places more or less, because its threads take turns: so the end is where ten in a row are missed.
    """
    last = 0
    for at in count(1, step):
        if is_reached(at):
            last = at
        elif at - last > 10 * step:
            return last
    raise AssertionError


@pytest.fixture(autouse=True)
def _before() -> Iterator[None]:
    before = signal.getsignal(signal.SIGUSR1)
    yield
    signal.signal(signal.SIGUSR1, before)


needs_instructions = pytest.mark.skipif(
    sys.version_info[:2] == (3, 12), reason="3.12.1 traces no instructions of a frame that asks late"
)
# The second one, if there is one, comes while what the first one has cut short is cleaned up, or in the next call.
every_gap = first_is_quick("later", [0, 1, 2, 5, 13])


# A process that sends directly.

PACKAGE = Path(letterapp.__file__).parent
# Not the transport: the thread has that.
PLAIN = {str(path) for path in PACKAGE.rglob("*.py") if path.stem not in ("testing", "transport")}


@pytest.fixture
def few_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop over the slots comes to the same places in the same state each time, so a few rounds show all.

    They all exist, because a fork of a later test may still look at them.
    """
    make, count = memory.SharedMemory.__init__, memory.SLOTS

    def make_all(self: memory.SharedMemory, settings: Settings) -> None:
        memory.SLOTS = count
        try:
            make(self, settings)
        finally:
            memory.SLOTS = 8

    monkeypatch.setattr(memory.SharedMemory, "__init__", make_all)
    monkeypatch.setattr(memory, "SLOTS", 8)


def tracked(api: Any) -> set[str]:
    return {item["userId"] for item in api.events}


def interrupted_while_sending(make: Callable[..., Letter], api: Any, at: set[int], **options: Any) -> bool:
    handler = Handler(PLAIN, at)
    api.events.clear()  # of the clients before: to search them each time would take longer than all else
    letter = make(flush_interval=0, flush_at=100, **options)
    returned: set[str] = set()

    def track(serial: int) -> None:
        who = f"{sorted(at)} {serial}"
        if handler.during(letter.track, who, "E"):
            returned.add(who)

    track(0)
    track(1)
    handler.during(letter.flush, DEADLINE)
    track(2)

    last = f"{sorted(at)} last"
    letter.track(last, "E")
    assert api.wait_until(lambda: last in tracked(api), DEADLINE), f"the sender stands still since {at}"
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(letter.flush, DEADLINE).result(), at
    assert letter.flush(DEADLINE), at
    assert returned <= tracked(api), at
    stats = letter.stats()
    assert stats["accepted"] == stats["delivered"] and stats["lost"] == {}, (at, stats)
    assert letter.close(DEADLINE), at
    return handler.reached()


@pytest.mark.slow
@needs_instructions
@every_gap
@pytest.mark.usefixtures("few_slots")
def test_sending(later: int, make: Callable[..., Letter], letter_api: Any) -> None:
    assert last_reached(lambda at: interrupted_while_sending(make, letter_api, {at, at + later})) > 100


@pytest.mark.slow
@needs_instructions
@pytest.mark.usefixtures("few_slots")
def test_sending_where_no_thread_runs(make: Callable[..., Letter], letter_api: Any) -> None:
    files = {
        str(PACKAGE / f"{name}.py")
        for name in (
            "_delivery/sender",
            "_delivery/batches",
            "_delivery/worker",
            "_runtime/guards",
            "_runtime/condition",
            "_storage/queue",
            "_storage/recovery",
        )
    }

    def interrupted(at: set[int]) -> bool:
        handler = Handler(files, at)
        letter = make(flush_interval=0, flush_at=100, max_retries=0)
        letter._delivery._worker._start = lambda send: False  # type: ignore[attr-defined]
        returned = set()
        for serial in range(3):
            who = f"{sorted(at)} {serial}"
            if handler.during(letter.track, who, "E"):
                returned.add(who)
        handler.during(letter.flush, DEADLINE)
        last = f"{sorted(at)} last"
        letter.track(last, "E")
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(letter.flush, DEADLINE).result(), at
        assert letter.flush(DEADLINE), at
        assert {*returned, last} <= tracked(letter_api), at
        stats = letter.stats()
        assert stats["accepted"] == stats["delivered"] and stats["lost"] == {}, (at, stats)
        assert letter.close(DEADLINE), at
        return handler.reached()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Each third place: they are many, and each costs a connection.
        assert last_reached(lambda at: interrupted({at}), step=3) > 100


@pytest.mark.slow
@needs_instructions
@pytest.mark.usefixtures("few_slots")
def test_sending_with_a_spool(make: Callable[..., Letter], letter_api: Any, tmp_path: Path) -> None:
    spool = str(tmp_path / "spool")
    assert last_reached(lambda at: interrupted_while_sending(make, letter_api, {at}, spool=spool)) > 100


# One that hands its events to a relay.


class Far:
    """The relay's end of one connection after the other. It reads what there is, and settles as much as asked."""

    def __init__(self, path: str, url: str) -> None:
        env = environment(url)
        env["PYTHONPATH"] += os.pathsep + str(ROOT / "tests" / "support")
        command = [sys.executable, "-m", far_relay.__name__, far_relay.serve.__name__, path, "test-key", url]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env)
        assert self._process.stdout is not None and self._process.stdout.readline() == b"serves\n"

    def _ask(self, what: str) -> list[bytes]:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(what.encode() + b"\n")
        self._process.stdin.flush()
        return [event.encode() for event in json.loads(self._process.stdout.readline())]

    def settle(self, most: int) -> list[bytes]:
        """The events that it has settled, of all that this connection has brought."""
        return self._ask(str(most))

    def leave(self) -> None:
        """Hang up, on those as well who have connected and were not met."""
        self._ask("leave")

    def close(self) -> None:
        self._process.communicate(timeout=DEADLINE)


@pytest.fixture
def far(runtime: Runtime, letter_api: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Far]:
    monkeypatch.setattr(client_module, "GREETING", DEADLINE)  # it may be held up
    far = Far(str(runtime.path / "far.sock"), letter_api.url)
    yield far
    far.close()


@pytest.fixture
def settings(runtime: Runtime, letter_api: Any, far: Far) -> Settings:
    letter = Letter("test-key", letter_api.url, enabled=False, relay=str(runtime.path / "far.sock"))
    return letter._settings


def interrupted_while_relaying(settings: Settings, far: Far, at: set[int]) -> bool:
    """Use a relay, which leaves."""
    handler = Handler({client_module.__file__, connection_module.__file__, delivery_module.__file__}, at)
    sender = delivery_module.RelayDelivery(settings)
    sender.reporter = lambda error: None  # type: ignore[assignment]
    sender._local._queue.claim_worker().started = True  # type: ignore[union-attr]  # as the thread does: so none is started
    returned: set[bytes] = set()
    settled: list[bytes] = []

    def put(*events: bytes) -> None:
        for event in events:
            if handler.during(sender.put, event):
                returned.add(event)

    put(*EVENTS[:3])
    settled += far.settle(2)
    handler.during(sender.stats)
    put(*EVENTS[3:5])
    far.leave()
    sender._client._retry.next = float("inf")  # else a process that is held up for a second finds the listener again
    put(*EVENTS[5:])

    last = sender.stats()  # as any later call would, it takes back what is left
    own = sender._local._queue.take(100, 100_000)
    assert returned <= {*settled, *own}, f"lost at {at}"
    assert last["waiting"] == len(own), (at, last)
    assert last["accepted"] == last["delivered"] + len(own) and last["lost"] == {}, (at, last)
    sender._local._queue.settle()
    sender._local._queue.release_worker()
    assert sender.close(1), at
    return handler.reached()


@needs_instructions
@every_gap
def test_relaying(later: int, settings: Settings, far: Far) -> None:
    # Else the collector calls an earlier link's `__del__` in the middle, where an exception reaches no caller.
    gc.disable()
    try:
        assert last_reached(lambda at: interrupted_while_relaying(settings, far, {at, at + later})) > 100
    finally:
        gc.enable()


# What a handler raises in the application's own functions, or while the caller waits for the API, is the caller's too.


class Foreign(UserDict):  # type: ignore[type-arg]
    """Slow enough for an alarm."""

    def items(self) -> Any:
        signal.raise_signal(signal.SIGUSR1)
        return super().items()


class Slow(tzinfo):
    """So is this one."""

    def utcoffset(self, moment: Any) -> Any:
        signal.raise_signal(signal.SIGUSR1)
        return None

    def tzname(self, moment: Any) -> Any:
        return None

    def dst(self, moment: Any) -> Any:
        return None


def strike(given: Any) -> Any:
    signal.raise_signal(signal.SIGUSR1)
    return given


@pytest.mark.parametrize(
    "options, act",
    [
        ({"before_send": strike}, lambda letter: letter.track("u", "E")),
        ({"on_error": strike}, lambda letter: letter.track("u", "E", {"x": object()})),
        ({"default": strike}, lambda letter: letter.track("u", "E", {"x": object()})),
        ({}, lambda letter: letter.track("u", "E", Foreign())),
        ({}, lambda letter: letter.track("u", "E", {"x": [{"y": Foreign()}]})),
        ({}, lambda letter: letter.track("u", "E", timestamp=datetime(2026, 1, 2, tzinfo=Slow()))),
        ({}, lambda letter: letter.send("a@example.com", "Hi", text="Hi", metadata=Foreign())),
    ],
    ids=["before_send", "on_error", "default", "properties", "a value", "timestamp", "metadata"],
)
def test_in_a_function_of_the_application(options: Any, act: Any, make: Callable[..., Letter], letter_api: Any) -> None:
    letter = make(**options)
    handler = Handler(set(), set())
    with pytest.raises(Limit):
        act(letter)
    assert handler._raised == 1
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    letter.track("u", "next")
    assert letter.flush(DEADLINE)
    assert [item["event"] for item in letter_api.events][-1:] == ["next"]


def test_while_a_mail_is_being_sent(make: Callable[..., Letter], letter_api: Any) -> None:
    letter = make()
    hold = Hold()
    letter_api.plan(hold)
    Handler(set(), set())

    def strike_then() -> None:
        assert hold.arrived.wait(DEADLINE)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)  # type: ignore[arg-type]

    with ThreadPoolExecutor(1) as pool:
        struck = pool.submit(strike_then)
        with pytest.raises(Limit):
            letter.send("a@example.com", "subject", html="<p>text</p>")
        struck.result(DEADLINE)
    hold.release()
    assert len(letter_api.requests) == 1  # it has not been tried again


# By themselves.


def raising(*_: object) -> None:
    raise Limit


class Raising:
    def method(self, *_: object) -> None:
        raise Limit

    def __call__(self, *_: object) -> None:
        raise Limit


HANDLERS = [raising, Raising().method, Raising(), partial(raising, 1), partial(partial(Raising().method, 1), 2)]


@pytest.mark.parametrize("handler", HANDLERS, ids=["function", "method", "object", "partial", "partial of a partial"])
def test_only_what_a_handler_raised_is_raised_again(handler: Any) -> None:
    signal.signal(signal.SIGUSR1, handler)
    for act, is_passed_on in ((lambda: signal.raise_signal(signal.SIGUSR1), True), (lambda: int("x"), False)):
        try:
            act()
        except Exception as error:
            caught = error
        if is_passed_on:
            with pytest.raises(Limit) as raised:
                reraise_signal_error(caught)
            assert raised.value is caught
        else:
            reraise_signal_error(caught)


def test_reentrancy_guard() -> None:
    inside = ReentrancyGuard()
    seen: list[Any] = []

    def look() -> None:
        with ThreadPoolExecutor(1) as other:
            seen.append((inside.is_here(), inside.has_others(), other.submit(inside.is_here).result()))
            seen.append(other.submit(inside.has_others).result())

    def look_again() -> None:
        inside.run(look)  # as a handler does that interrupts its own thread
        look()
        raise Limit

    with pytest.raises(Limit):
        inside.run(look_again)
    assert seen == [(True, False, False), True] * 2
    assert not inside.is_here() and not inside.has_others()
    inside.run(look)
    assert seen[-2:] == [(True, False, False), True]
