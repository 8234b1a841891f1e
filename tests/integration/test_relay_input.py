"""Lines that no process should send to a relay: they cost their sender its connection, and affect no other."""

from __future__ import annotations

import contextlib
import os
from typing import Any, Callable

import psutil
import pytest
from harness import DEADLINE, eventually, first_is_quick
from relayed import KEY, Runtime, greeted, own_runtime, patient_clients, raw_event, read_to_end  # noqa: F401  (fixtures)

from letterapp import Letter, LetterError
from letterapp.testing import status

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs Unix"),
    pytest.mark.usefixtures("patient"),
]


NO_EVENTS = {
    "not UTF-8": b'{"x":"\xff"}',
    "two of them": b'{"x":1},{"y":2}',
    "another batch": b'{"x":1}],"batch":[{"y":2}',
    "more brackets": b'{"x":1}]}',
    "cut short": b'{"x":[}',
    "UTF-16": '{"x":1}'.encode("utf-16-le"),
    "too large": b'{"x":"%s"}' % (b"a" * 501_600),
    "deep": b'{"x":%s}' % (b"[" * 10_000 + b"]" * 10_000),
}


@first_is_quick("what", NO_EVENTS)
def test_an_invalid_line_affects_only_its_sender(
    what: str, make: Callable[..., Letter], runtime: Runtime, letter_api: Any, errors: list[LetterError]
) -> None:
    with runtime.keep() as relay:
        innocent = make(relay=runtime.socket)
        innocent.track("innocent", "E")
        with greeted(runtime.socket, KEY, letter_api.url) as sock:
            with contextlib.suppress(OSError):
                sock.sendall(raw_event("before") + NO_EVENTS[what] + b"\n")
            heard = read_to_end(sock)
        innocent.track("innocent", "E")
        assert innocent.flush(DEADLINE) and errors == [] and innocent.stats()["relayed"] == 2
        assert letter_api.wait_for(3)  # what came before it is sent
        assert [event["userId"] for event in letter_api.events].count("innocent") == 2
        assert "Traceback" not in relay.output
        assert b"refused" in heard or "not an event" in relay.output or "too long" in relay.output


def test_incomplete_lines_and_lines_without_room_take_little_memory(runtime: Runtime, letter_api: Any) -> None:
    letter_api.rule = lambda request: status(503)  # nothing leaves
    with runtime.keep() as relay, contextlib.ExitStack() as opened:
        process = psutil.Process(relay.pid)
        socks = [opened.enter_context(greeted(runtime.socket, KEY, letter_api.url)) for _ in range(100)]
        before = process.memory_info().rss
        line = raw_event("x" * 20_000)
        for number, sock in enumerate(socks):
            sock.setblocking(False)
            with contextlib.suppress(OSError):
                sock.sendall(line * 40 if number % 2 else b'{"x":"' + b"a" * 31_000)
        assert eventually(runtime.own_status, lambda status: status["paused"] >= 1)["paused"] >= 1
        assert process.memory_info().rss - before < 40_000_000
