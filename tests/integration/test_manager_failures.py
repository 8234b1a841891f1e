"""A manager that fails: killed, stopped, restarted, shut down, unreachable, or short of descriptors.

A call never waits for it, no event is lost, and the failure is reported once: meanwhile a process sends directly.
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from harness import DEADLINE, FEW_DESCRIPTORS, eventually, run, start, suspend, whose
from managed import (
    KEY,
    SECRET,
    SLOW,
    Directory,
    balanced,
    event,
    own_directory,  # noqa: F401  (a fixture for all tests)
    own_manager,  # noqa: F401  (a fixture)
    troubles,
    work,
)
from programs import managers

from letterapp import Letter, LetterError
from letterapp._queues.manager_connection import Disconnected
from letterapp._queues.targets import ManagerQueue
from letterapp._relay.protocol import proof
from letterapp._text import Secret
from letterapp.relay import SenderManager
from letterapp.testing import Hold, status

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs Unix")


def calls_in_time(letter: Letter, count: int, start: int, longest: float = 0.9) -> None:
    """Calls that do not wait for a manager, which would take a second or two."""
    for serial in range(start, start + count):
        began = time.monotonic()
        letter.track("program", "Worked", {"serial": serial})
        assert time.monotonic() - began < longest


def test_a_killed_manager_loses_nothing_and_is_reported_once(manager: Any, letter_api: Any, errors: Any) -> None:
    hold = Hold()
    letter_api.plan(hold)
    one = manager()
    letter = Letter(relay=one.queue, on_error=errors.append, flush_interval=0)
    calls_in_time(letter, 20, 0)
    assert hold.arrived.wait(DEADLINE)
    os.kill(one.status()["pid"], signal.SIGKILL)
    calls_in_time(letter, 20, 20)
    assert letter.flush(DEADLINE)
    hold.release()
    calls_in_time(letter, 20, 40)
    assert letter.close(DEADLINE)
    assert len(troubles(errors)) == 1 and "cannot be used" in str(errors[0])
    stats = balanced(letter)
    assert (stats["delivered"], stats["mode"]) == (60, "thread")
    assert whose(letter_api) == {"program": list(range(60))}


@pytest.mark.slow
def test_a_stopped_manager_delays_no_call_and_is_used_again(manager: Any, letter_api: Any, errors: Any) -> None:
    one = manager()
    letter = Letter(relay=one.queue, on_error=errors.append, flush_interval=0)
    calls_in_time(letter, 1, 0)
    assert letter.flush(DEADLINE)
    pid = one.status()["pid"]
    suspend(pid)
    try:
        calls_in_time(letter, 300, 1)
        began = time.monotonic()
        assert letter.flush(DEADLINE)
        assert time.monotonic() - began < 20  # a second until it counts as stopped, and a request; not forever
        assert letter.stats()["mode"] == "thread"
    finally:
        os.kill(pid, signal.SIGCONT)

    def is_used_again() -> bool:
        before = letter.stats()["relayed"]
        work(letter, 1, "again", start=int(time.monotonic() * 1e6))
        assert letter.flush(DEADLINE)
        return bool(letter.stats()["relayed"] > before)

    assert eventually(is_used_again, bool)
    assert letter.close(DEADLINE)
    assert ["does not answer in time" in text for text in troubles(errors)] == [True]
    assert whose(letter_api)["program"] == list(range(301))


@pytest.mark.parametrize("options", [SLOW, {"flush_interval": 0}], ids=["at the end", "on the wire"])
def test_a_process_ends_in_time_even_if_its_manager_is_stopped(
    options: dict[str, Any], manager: Any, letter_api: Any, tmp_path: Path
) -> None:
    queue = manager().queue
    pid = queue.ask("status")["pid"]
    arguments = (pickle.dumps(queue).hex(), "program", json.dumps(options), pid)
    try:
        finished = run(managers.ends_while_its_manager_is_stopped, letter_api.url, tmp_path, *arguments)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert finished.code == 0 and finished.output.count("\n") == 1, finished
    assert "does not answer in time" in finished.output
    assert whose(letter_api) == {"program": [0, 1, 2, 3]}


@pytest.mark.filterwarnings("ignore:letterapp. no thread can run:RuntimeWarning")
def test_a_flush_keeps_its_timeout_even_if_the_manager_is_stopped(manager: Any, letter_api: Any) -> None:
    one = manager()
    pid = one.status()["pid"]
    letter: Any = Letter(relay=one.queue, on_error=lambda error: None, **SLOW)
    letter._delivery._worker._start = lambda send: False  # as where no thread can run
    suspend(pid)
    try:
        for _ in range(2):
            work(letter, 3)
            began = time.monotonic()
            letter.flush(0.05)
            assert time.monotonic() - began < 0.9
    finally:
        os.kill(pid, signal.SIGCONT)
    assert letter.flush(DEADLINE)
    letter.close()


@pytest.mark.slow
def test_a_restarted_manager_is_used_again(directory: Directory, letter_api: Any, errors: Any) -> None:
    with directory.keep() as kept:
        one = SenderManager(KEY, letter_api.url, address=directory.socket, authkey=SECRET)
        one.connect()
        letter = Letter(relay=one.queue, on_error=errors.append, **SLOW)
        work(letter, 3)
        assert letter.flush(DEADLINE)
        kept.signal(signal.SIGTERM)
        assert kept.finish().code == 0 and "3 delivered, 0 lost, 0 left" in kept.output
        assert not os.path.exists(directory.socket)
    with directory.keep():
        work(letter, 3, start=3)  # a stale connection is replaced at once: nothing was handed over meanwhile
        assert letter.flush(DEADLINE) and not errors
        assert directory.status()["delivered"] == 3
    work(letter, 3, start=6)  # leaving the `with` killed it: nobody serves
    assert letter.flush(DEADLINE)
    assert len(troubles(errors)) == 1
    with directory.keep():  # at the socket file that the killed one has left

        def is_used_again() -> bool:
            work(letter, 1, "again", start=int(time.monotonic() * 1e6))
            assert letter.flush(DEADLINE)
            return bool(directory.status()["delivered"] > 0)

        assert eventually(is_used_again, bool)
        with pytest.raises(LetterError, match="a server that SIGTERM stops"):
            one.shutdown()
        assert letter.close(DEADLINE)
    assert whose(letter_api)["program"] == list(range(9))
    assert letter_api.repeated() == {}


@pytest.mark.slow
@pytest.mark.parametrize("code", [503, 401])
def test_a_manager_that_gives_up_does_not_empty_a_client_s_spool(
    code: int, manager: Any, letter_api: Any, errors: Any, tmp_path: Path
) -> None:
    letter_api.rule = lambda request: status(code)
    one = manager(max_retries=0)
    letter = Letter(relay=one.queue, spool=tmp_path / "spool", on_error=errors.append, **SLOW)
    work(letter, 50)
    assert not letter.flush(1)
    assert eventually(lambda: one.status()["lost"], bool)
    assert balanced(letter)["waiting"] == 50 and not letter.stats()["lost"]
    letter_api.rule = None
    assert letter.flush(DEADLINE) and letter.stats()["delivered"] == 50
    assert letter.close() and [error.cause for error in errors] == ["degraded"] * (code == 401)


@pytest.mark.slow
def test_what_a_manager_has_not_sent_when_it_ends_is_sent_by_its_process(
    directory: Directory, letter_api: Any, errors: Any
) -> None:
    hold = Hold()
    letter_api.plan(hold)
    with directory.keep() as kept:
        one = SenderManager(KEY, letter_api.url, address=directory.socket, authkey=SECRET)
        one.connect()
        letter = Letter(relay=one.queue, on_error=errors.append, flush_interval=0, exit_timeout=DEADLINE)
        work(letter, 10)
        assert hold.arrived.wait(DEADLINE)
        kept.signal(signal.SIGTERM)
        assert kept.finish().code == 0, kept.output
        assert letter.flush(DEADLINE)
    hold.release()
    assert letter.close() and whose(letter_api) == {"program": list(range(10))}, (letter.stats(), kept.output)


def test_what_is_not_settled_at_a_shutdown_is_sent_by_its_process(manager: Any, letter_api: Any, errors: Any) -> None:
    hold = Hold()
    letter_api.plan(hold)
    one = manager(exit_timeout=0.3)
    queue = pickle.loads(pickle.dumps(one.queue))  # as in another process
    letter = Letter(relay=queue, on_error=errors.append, **SLOW)
    work(letter, 5)
    flushing = threading.Thread(target=letter.flush, args=(DEADLINE,))
    flushing.start()
    assert hold.arrived.wait(DEADLINE)
    one.shutdown()  # in vain, as the API does not answer
    flushing.join(DEADLINE)
    hold.release()
    assert letter.close(DEADLINE)
    assert balanced(letter)["delivered"] == 5 and len(troubles(errors)) == 1
    assert whose(letter_api) == {"program": list(range(5))}


def test_the_next_manager_sends_what_a_killed_one_had_in_its_spool(
    letter_api: Any, directory: Directory, tmp_path: Path
) -> None:
    letter_api.rule = lambda request: status(503)
    with start(managers.killed_with_its_manager, letter_api.url, tmp_path, tmp_path / "spool") as program:
        program.finish()
    assert not directory.left_behind() and whose(letter_api) == {}
    letter_api.rule = None
    with SenderManager(KEY, letter_api.url, spool=str(tmp_path / "spool")):
        assert eventually(lambda: whose(letter_api), lambda came: came == {"program": list(range(5))})


def test_connect_refuses_a_wrong_authkey_another_key_and_another_api(directory: Directory, letter_api: Any) -> None:
    with directory.keep():
        wrong = SenderManager(KEY, letter_api.url, address=directory.socket, authkey=b"another secret")
        with pytest.raises(LetterError, match="AuthenticationError"):
            wrong.connect()
        other = SenderManager("another", letter_api.url, address=directory.socket, authkey=SECRET)
        with pytest.raises(LetterError, match="another API key"):
            other.connect()
        elsewhere = SenderManager(KEY, "http://127.0.0.1:9", address=directory.socket, authkey=SECRET)
        with pytest.raises(LetterError, match="another API"):
            elsewhere.connect()


NOT_A_MANAGER = {
    "speaks HTTP": b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "hangs up": b"",
    "sends no challenge": b"\0\0\0\5hello",
    "announces too much": b"\x7f\xff\xff\xff" + b"x" * 99,
}


@pytest.mark.parametrize("answer", NOT_A_MANAGER.values(), ids=NOT_A_MANAGER.keys())
def test_connect_refuses_a_server_that_is_not_a_manager_but(answer: bytes, letter_api: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(DEADLINE)

        def respond() -> None:
            peer, _ = listener.accept()
            peer.sendall(answer)
            peer.close()

        responder = threading.Thread(target=respond)
        responder.start()
        one = SenderManager(KEY, letter_api.url, address=listener.getsockname(), authkey=SECRET)
        with pytest.raises(LetterError, match="cannot be used"):
            one.connect()
        responder.join(DEADLINE)


def test_without_a_server_the_process_sends(directory: Directory, letter_api: Any, errors: Any) -> None:
    nobody = ManagerQueue(str(directory.path / "nobody"), SECRET, Secret(KEY), letter_api.url, "0" * 64)
    letter = Letter(relay=nobody, on_error=errors.append)
    work(letter, 3)
    assert letter.close(DEADLINE) and len(troubles(errors)) == 1
    assert whose(letter_api) == {"program": [0, 1, 2]}


def test_a_connection_whose_descriptor_was_closed_is_replaced(manager: Any, letter_api: Any, errors: Any) -> None:
    letter: Any = Letter(relay=manager().queue, on_error=errors.append, **SLOW)
    work(letter, 1)
    assert letter.flush(DEADLINE)
    descriptor = letter._delivery._batches.handover._channel._wire._line._sock.fileno()
    os.close(descriptor)
    with socket.socketpair()[0] as stranger:  # which gets its number
        work(letter, 1, start=1)
        assert letter.flush(DEADLINE) and not errors
        assert letter.stats()["relayed"] == 2
        stranger.setblocking(False)
    assert isinstance(Disconnected(), ConnectionError)
    assert letter.close()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no limit of descriptors here")
def test_a_manager_reserves_descriptors_for_sending(
    directory: Directory, letter_api: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, few = directory.command_line, [sys.executable, "-c", FEW_DESCRIPTORS]
    monkeypatch.setattr(directory, "command_line", lambda *options: [*few, *real(*options)])
    with directory.keep():
        queue = ManagerQueue(directory.socket, SECRET, Secret(KEY), letter_api.url, proof(Secret(KEY)))
        connections: list[Any] = []
        with pytest.raises(OSError, match="timed out"):
            while len(connections) < 64:
                connections.append(queue.connect(1.0))
        assert connections[0].put([event(0)], True, DEADLINE, DEADLINE)
        assert connections[0].settled(DEADLINE, True, DEADLINE, DEADLINE) == []
        assert letter_api.distinct == 1
        for connection in connections:
            connection.close()
