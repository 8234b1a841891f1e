"""The relay in plain Python processes: who starts it and who joins, what survives whom, and the program by itself.

Its lines and the side of the client are in `test_protocol_and_link`; what Linux does with sockets, `test_relay_facts`.
"""

from __future__ import annotations

import grp
import json
import multiprocessing
import os
import re
import signal
import socket
import ssl
import stat
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any, Callable, Iterator

import psutil
import pytest
from harness import DEADLINE, PRELUDE, environment, eventually, run, start, suspend, whose
from relayed import KEY, STATUSES, Runtime, greet, line_from, own_runtime  # noqa: F401  (a fixture that is there for all)

from letterapp import Letter, LetterError
from letterapp._relay import protocol
from letterapp.testing import Hold, status

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs Unix")

METHODS = multiprocessing.get_all_start_methods()
FORKS = pytest.mark.parametrize(
    "fork", ["os.fork", "ctypes.PyDLL(None).fork"], ids=["os.fork", "without Python's hooks"]
)


def script(code: str) -> str:
    return STATUSES + textwrap.dedent(code)


def balanced(stats: dict[str, Any]) -> dict[str, Any]:
    assert stats["accepted"] == stats["delivered"] + sum(stats["lost"].values()) + stats["waiting"], stats
    return stats


def track(letter: Letter, count: int, who: str = "test", start: int = 0) -> None:
    for serial in range(start, start + count):
        letter.track(who, "Worked", {"serial": serial})


@pytest.fixture
def hold(letter_api: Any) -> Iterator[Hold]:
    """Holds the next request on the wire."""
    hold = Hold()
    letter_api.plan(hold)
    yield hold
    hold.release()


@pytest.fixture
def kept(runtime: Runtime) -> Iterator[Any]:
    """A relay that the test keeps, at ``runtime.socket``."""
    with runtime.keep() as relay:
        yield relay


# Starting and joining.


def test_constructing_starts_one_and_all_others_join_it(
    make: Callable[..., Letter], runtime: Runtime, letter_api: Any, tmp_path: Path
) -> None:
    first = make(relay=True)
    relay = runtime.relay()
    track(make(relay=True), 5, "second client")
    track(first, 5, "first client")
    code = """
    letter = Letter('test-key', API, relay=True)
    work(letter, 5)
    assert letter.stats()['mode'] == 'relay' and letter.stats()['relayed'] == 5, letter.stats()
    """
    assert run(code, letter_api.url, tmp_path).code == 0
    assert first.flush(30)
    assert runtime.relays() == [relay] and letter_api.wait_for(15)
    assert runtime.status()["accepted"] == 15
    assert whose(letter_api) == {who: list(range(5)) for who in ("first client", "second client", "program")}


def test_it_is_nobodys_child_and_ends_after_the_last_client(make: Callable[..., Letter], runtime: Runtime) -> None:
    first, second = make(relay=True), make(relay=True)
    relay = runtime.relay()
    assert relay.pid not in [child.pid for child in psutil.Process().children(recursive=True)]
    assert os.getsid(relay.pid) == relay.pid != os.getsid(0)
    first.close(30)
    track(second, 1)
    assert second.flush(30) and runtime.relay() == relay
    second.close(30)
    assert runtime.left_behind() == []
    assert [path.suffix for path in runtime.path.glob("letterapp/*.sock")] == []


def test_a_relay_that_was_started_for_clients_outlives_signals_to_all(
    make: Callable[..., Letter], runtime: Runtime, letter_api: Any
) -> None:
    letter = make(relay=True)
    track(letter, 1)
    relay = runtime.relay()
    for number in (signal.SIGINT, signal.SIGHUP):
        relay.send_signal(number)
        track(letter, 1, "after the signal")
        assert letter.flush(30) and letter.stats()["relayed"] == letter.stats()["accepted"]
    letter.close(30)
    assert runtime.left_behind() == [] and letter_api.distinct == 3


# Without a guard: a spawned child makes the client when it imports this module, before the job begins.
FAMILY = (
    STATUSES
    + """
import multiprocessing

letter = Letter('test-key', API, relay=True)

def job(number):
    letter.track('job', 'Worked', {'serial': number})
    assert letter.stats()['mode'] == 'relay', letter.stats()

def grandparent(number):
    pid = child(lambda: job(number))
    assert os.waitpid(pid, 0)[1] == 0
    code = f"from letterapp import Letter; l = Letter('test-key', {API!r}, relay=True); "
    code += f"l.track('job', 'Worked', {{'serial': {number + 100}}})"
    subprocess.run([sys.executable, '-c', code], check=True, timeout=60)

if __name__ == '__main__':
    context = multiprocessing.get_context(sys.argv[1])
"""
)


def family(body: str, method: str, runtime: Runtime, api: Any, tmp_path: Path) -> None:
    code = FAMILY + textwrap.indent(textwrap.dedent(body), "    ")
    finished = run(code, api.url, tmp_path, method)
    assert finished.code == 0 and "Traceback" not in finished.output, finished
    assert "Exception ignored" not in finished.output, finished
    assert runtime.left_behind() == []


@pytest.mark.parametrize("method", METHODS)
def test_children_join_their_parents_relay(method: str, runtime: Runtime, letter_api: Any, tmp_path: Path) -> None:
    body = """
    before = statuses()
    jobs = [context.Process(target=job, args=(number,)) for number in range(3)]
    for each in jobs:
        each.start()
    for each in jobs:
        each.join(60)
        assert each.exitcode == 0
    (after,) = statuses()
    assert [after['pid']] == [one['pid'] for one in before] and after['accepted'] == 3, after
    """
    family(body, method, runtime, letter_api, tmp_path)
    assert sorted(whose(letter_api)["job"]) == [0, 1, 2]


@pytest.mark.parametrize("method", METHODS)
def test_daemonic_workers_and_their_children_join_it_too(
    method: str, runtime: Runtime, letter_api: Any, tmp_path: Path
) -> None:
    body = """
    with context.Pool(2) as pool:
        pool.map(grandparent, range(3), chunksize=1)
        pool.close()
        pool.join()
    (after,) = statuses()
    assert after['accepted'] == 6, after
    """
    family(body, method, runtime, letter_api, tmp_path)
    assert sorted(whose(letter_api)["job"]) == [0, 1, 2, 100, 101, 102]


@pytest.mark.parametrize("method", METHODS)
def test_a_daemonic_worker_starts_one_where_there_is_none(
    method: str, runtime: Runtime, letter_api: Any, tmp_path: Path
) -> None:
    code = script("""
    import multiprocessing

    def job(number):
        letter = Letter('test-key', API, relay=True)
        work(letter, 5, f'job {number}')
        assert letter.stats()['relayed'] == 5, letter.stats()
        return len(statuses())

    if __name__ == '__main__':
        assert statuses() == []
        with multiprocessing.get_context(sys.argv[1]).Pool(1) as pool:
            assert pool.map(job, range(2), chunksize=1) == [1, 1]
            pool.close()
            pool.join()
    """)
    finished = run(code, letter_api.url, tmp_path, method)
    assert finished.code == 0, finished
    assert runtime.left_behind() == []
    assert whose(letter_api) == {f"job {number}": list(range(5)) for number in range(2)}


def test_processes_that_start_together_share_one(runtime: Runtime, letter_api: Any, tmp_path: Path) -> None:
    code = script("""
    ready, go, leave = os.pipe(), os.pipe(), os.pipe()
    def job():
        os.close(go[1])
        os.close(leave[1])
        os.write(ready[1], b'.')
        os.read(go[0], 1)
        letter = Letter('test-key', API, relay=True)
        work(letter, 1)
        (one,) = statuses()
        os.write(ready[1], b'%8d' % one['pid'])
        os.read(leave[0], 1)
    children = [child(job) for _ in range(6)]
    for _ in children:
        os.read(ready[0], 1)
    os.write(go[1], b'.' * 6)
    pids = {os.read(ready[0], 8) for _ in children}
    os.write(leave[1], b'.' * 6)
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0] * 6
    assert len(pids) == 1, pids
    """)
    finished = run(code, letter_api.url, tmp_path)
    assert finished.code == 0, finished
    assert runtime.left_behind() == [] and len(letter_api.events) == 6


def test_a_program_that_replaces_itself_gives_its_lease_back(runtime: Runtime, letter_api: Any, tmp_path: Path) -> None:
    # As uWSGI's master at a reload: the same process, and nothing of ours in it that could hang up.
    code = """
    letter = Letter('test-key', API, relay=True)
    work(letter, 5)
    os.execv(sys.executable, [sys.executable, '-c', 'import time; print("ready", flush=True); time.sleep(600)'])
    """
    with start(code, letter_api.url, tmp_path) as program:
        assert "ready" in eventually(lambda: program.output, lambda text: "ready" in text)
        assert runtime.left_behind() == [] and program.process.poll() is None
    assert whose(letter_api) == {"program": list(range(5))}


def test_the_key_shows_nowhere_and_the_socket_is_this_users_alone(
    make: Callable[..., Letter], runtime: Runtime
) -> None:
    key = "a-key-that-nobody-may-see"
    letter = make(api_key=key, relay=True)
    relay = runtime.relay()
    for name in ("cmdline", "environ"):
        assert key.encode() not in Path(f"/proc/{relay.pid}/{name}").read_bytes(), name
    (path,) = runtime.path.glob("letterapp/*.sock")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    letter.close(30)


def test_two_keys_have_two_relays(make: Callable[..., Letter], runtime: Runtime, letter_api: Any) -> None:
    letters = {key: make(api_key=key, relay=True) for key in ("key-1", "key-2")}
    assert len(runtime.relays()) == 2
    for key, letter in letters.items():
        track(letter, 3, key)
        assert letter.flush(30)
        assert runtime.status(key=key)["accepted"] == 3
    for request in letter_api.requests:
        (who,) = {item["userId"] for item in request.json["batch"]}
        assert request.headers["authorization"] == f"Bearer {who}"


def test_the_interpreter_of_a_virtual_environment_is_used(runtime: Runtime, letter_api: Any, tmp_path: Path) -> None:
    where = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(where)], check=True, timeout=DEADLINE)
    code = """
    sys.executable = sys.argv[1]  # uWSGI's is uWSGI, an embedded interpreter may have none
    letter = Letter('test-key', API, relay=True)
    work(letter, 1)
    (one,) = statuses()
    command = open(f"/proc/{one['pid']}/cmdline").read().split(chr(0))
    assert command[0].startswith(sys.argv[2]), command
    """
    python = str(where / "bin" / "python")
    for executable in (python, "/usr/sbin/uwsgi", ""):
        with start(script(code), letter_api.url, tmp_path, executable, python, python=python) as program:
            finished = program.finish()
            assert finished.code == 0, finished
        assert runtime.left_behind() == []


# Handing over.


def test_no_thread_runs_in_a_process_that_hands_over(runtime: Runtime, letter_api: Any, tmp_path: Path) -> None:
    code = """
    letter = Letter('test-key', API, relay=True)
    work(letter, 200)
    assert len(os.listdir('/proc/self/task')) == 1
    assert letter.flush(60)
    assert len(os.listdir('/proc/self/task')) == 1
    stats = letter.stats()
    assert (stats['mode'], stats['relayed'], stats['delivered']) == ('relay', 200, 200), stats
    """
    finished = run(code, letter_api.url, tmp_path)
    assert finished.code == 0, finished
    assert whose(letter_api) == {"program": list(range(200))}


def test_sigkill_of_a_worker_after_the_call_loses_nothing(runtime: Runtime, letter_api: Any, tmp_path: Path) -> None:
    code = """
    letter = Letter('test-key', API, relay=True)
    def job(round):
        work(letter, round, f'round {round}')
        assert letter.stats()['relayed'] == round
        os.kill(os.getpid(), signal.SIGKILL)
    for round in range(1, 41):
        assert os.waitpid(child(lambda: job(round)), 0)[1] == signal.SIGKILL
    """
    finished = run(code, letter_api.url, tmp_path)
    assert finished.code == 0, finished
    assert runtime.left_behind() == []
    assert whose(letter_api) == {f"round {count}": list(range(count)) for count in range(1, 41)}


def test_sigkill_of_the_only_process_after_the_call_loses_nothing(
    runtime: Runtime, letter_api: Any, tmp_path: Path
) -> None:
    code = """
    letter = Letter('test-key', API, relay=True)
    work(letter, 50, sys.argv[1])
    os.kill(os.getpid(), signal.SIGKILL)
    """
    for turn in range(5):
        assert run(code, letter_api.url, tmp_path, f"turn {turn}").code == -signal.SIGKILL
        assert runtime.left_behind() == []  # it has drained
    assert whose(letter_api) == {f"turn {turn}": list(range(50)) for turn in range(5)}


def test_many_threads(make: Callable[..., Letter], letter_api: Any, errors: list[LetterError]) -> None:
    letter = make(relay=True)
    threads = [threading.Thread(target=track, args=(letter, 400, f"thread {number}")) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        balanced(letter.stats())
        thread.join(DEADLINE)
    assert letter.flush(DEADLINE)
    assert balanced(letter.stats())["lost"] == {}
    came = {who: sorted(serials) for who, serials in whose(letter_api).items()}
    assert came == {f"thread {number}": list(range(400)) for number in range(8)}


@FORKS
def test_a_fork_in_the_middle_of_hand_overs(fork: str, runtime: Runtime, letter_api: Any, tmp_path: Path) -> None:
    code = f"""
    import ctypes
    letter = Letter('test-key', API, relay=True, overflow='block')
    done, counts = threading.Event(), [0] * 3
    def go_on(number):
        while not done.is_set():
            work(letter, 1, f'thread {{number}}', counts[number])
            counts[number] += 1
            letter.flush(30) if not counts[number] % 200 else None
    threads = [threading.Thread(target=go_on, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    work(letter, 20, 'parent')
    for number in range(25):
        def job():
            work(letter, 20, f'child {{number}}')
            return not letter.flush(30)
        assert os.waitpid(child(job, {fork}), 0)[1] == 0
    done.set()
    for thread in threads:
        thread.join()
    assert letter.close(30)
    print(counts)
    """.replace("THREADS", "3" if fork == "os.fork" else "0")  # without hooks CPython's own lock is copied in any state
    finished = run(code, letter_api.url, tmp_path)
    assert finished.code == 0, finished
    assert runtime.left_behind() == []
    came = {who: sorted(serials) for who, serials in whose(letter_api).items()}
    expected = {"parent": list(range(20))}
    expected.update({f"child {number}": list(range(20)) for number in range(25)})
    expected.update(
        # Its last line: if the relay was held up before, the client has said that it takes no more for now.
        {f"thread {number}": list(range(n)) for number, n in enumerate(json.loads(finished.output.splitlines()[-1]))}
    )
    assert came == {who: serials for who, serials in expected.items() if serials}


# What flush, close and on_error mean.


def test_flush_is_true_when_the_api_has_it_and_false_at_the_deadline(
    make: Callable[..., Letter], letter_api: Any, hold: Hold, errors: list[LetterError]
) -> None:
    letter = make(relay=True)
    track(letter, 5)
    assert hold.arrived.wait(DEADLINE)
    assert not letter.flush(0.2)
    assert balanced(letter.stats())["waiting"] == 5
    hold.release()
    assert letter.flush(DEADLINE) and letter_api.distinct == 5
    assert balanced(letter.stats())["delivered"] == 5 and errors == []


def test_flush_hastens_and_outlasts_refusals(make: Callable[..., Letter], letter_api: Any) -> None:
    letter = make(relay=True, flush_at=10_000, flush_interval=600)
    letter_api.plan(status(503), status(503))
    track(letter, 5)
    assert letter.flush(DEADLINE)
    assert letter_api.distinct == 5 and len(letter_api.requests) == 3
    assert letter.stats()["mode"] == "relay"


def test_close_means_settled_and_false_leaves_it_to_the_relay(
    make: Callable[..., Letter], runtime: Runtime, letter_api: Any, errors: list[LetterError]
) -> None:
    hold = Hold()
    letter_api.plan(hold)
    first, second = make(relay=True), make(relay=True)
    track(first, 5, "first")
    assert hold.arrived.wait(DEADLINE)
    track(second, 5, "second")
    assert not first.close(0.2)
    hold.release()
    assert second.close(DEADLINE) and letter_api.distinct == 10
    assert balanced(second.stats())["delivered"] == 5
    balanced(first.stats())
    (error,) = errors
    assert (error.cause, error.lost, [event["userId"] for event in error.events]) == ("degraded", 0, ["first"] * 5)


def test_an_error_reaches_the_client_whose_event_failed_and_no_other(
    make: Callable[..., Letter], letter_api: Any
) -> None:
    bad = status(403, b'{"error": {"code": "bad", "message": "no", "reason": "so"}}')
    letter_api.rule = lambda request: bad if b"evil" in request.body else None
    heard: dict[str, list[LetterError]] = {"good": [], "evil": []}
    letters = {who: make(relay=True, on_error=heard[who].append, flush_interval=600) for who in heard}
    for who, letter in letters.items():
        track(letter, 3, who)
        assert letter.flush(DEADLINE)
    assert heard["good"] == []
    (error,) = heard["evil"]
    assert (error.status, error.code, error.reason, error.cause, error.lost) == (403, "bad", "so", "rejected", 3)
    assert len(error.events) == 3 and "by the relay" in str(error)
    assert balanced(letters["evil"].stats())["lost"] == {"rejected": 3}
    assert balanced(letters["good"].stats())["delivered"] == 3


def test_an_error_of_a_process_that_has_ended_is_in_the_relays_log(
    runtime: Runtime, letter_api: Any, tmp_path: Path
) -> None:
    hold = Hold(then=status(400, b"no"))
    letter_api.plan(hold)
    letter_api.rule = lambda request: status(400, b"no")  # should the three come in two batches
    code = """
    letter = Letter('test-key', API, relay=sys.argv[1])
    work(letter, 3)
    os.kill(os.getpid(), signal.SIGKILL)
    """
    with runtime.keep() as relay:
        assert run(code, letter_api.url, tmp_path, runtime.socket).code == -signal.SIGKILL
        assert hold.arrived.wait(DEADLINE)
        assert eventually(runtime.own_status, lambda status: status["processes"] == 0)["processes"] == 0
        hold.release()

        def told() -> int:
            lines = re.findall(r"(\d+) of processes that have ended: .* answered 400", relay.output)
            return sum(map(int, lines))

        assert eventually(told, lambda count: count >= 3) == 3, relay.output
        assert runtime.own_status()["lost"] == {"rejected": 3}


# A relay that takes nothing.


def test_calls_go_the_own_way_while_the_relay_is_stopped(
    make: Callable[..., Letter], runtime: Runtime, letter_api: Any, errors: list[LetterError], kept: Any
) -> None:
    letter = make(relay=runtime.socket)
    track(letter, 1)
    assert letter.flush(DEADLINE)
    suspend(kept.pid)
    durations = []
    serial = 1
    while serial < 5000 and (serial < 3000 or letter.stats()["mode"] == "relay"):
        began = time.monotonic()
        track(letter, 1, start=serial)
        durations.append(time.monotonic() - began)
        serial += 1
        if not serial % 250:
            balanced(letter.stats())
    durations.sort()
    # A call waits a millisecond once, and those that follow do not at all. Other processes have the CPU now and then.
    assert durations[len(durations) // 2] < 0.001
    assert sum(duration > 0.1 for duration in durations) < len(durations) // 100, durations[-20:]
    stats = balanced(letter.stats())
    assert stats["mode"] == "thread" and 0 < stats["relayed"] < stats["accepted"] == serial
    assert not letter.flush(0.2)
    (error,) = errors
    assert "takes no more events" in str(error) and not error.lost
    assert letter_api.wait_for(1 + serial - stats["relayed"])

    kept.signal(signal.SIGCONT)
    assert letter.flush(DEADLINE)
    assert sorted(whose(letter_api)["test"]) == sorted([0, *range(1, serial)])
    track(letter, 1, start=serial)
    stats = balanced(letter.stats())
    assert stats["mode"] == "relay" and len(errors) == 1
    assert letter.flush(DEADLINE) and balanced(letter.stats())["delivered"] == serial + 1


def test_constructing_does_not_hang_at_a_stopped_relay(
    make: Callable[..., Letter], runtime: Runtime, letter_api: Any, kept: Any
) -> None:
    suspend(kept.pid)
    letter = make(relay=runtime.socket)
    track(letter, 3)
    kept.signal(signal.SIGCONT)
    assert letter.flush(DEADLINE) and letter_api.distinct == 3


def test_what_a_killed_relay_had_is_sent_again_and_there_is_a_new_one(
    make: Callable[..., Letter], runtime: Runtime, letter_api: Any, hold: Hold, errors: list[LetterError]
) -> None:
    letter = make(relay=True)
    track(letter, 20)
    assert hold.arrived.wait(DEADLINE)
    first = runtime.relay()
    first.kill()
    first.wait(DEADLINE)
    track(letter, 1, start=20)
    stats = balanced(letter.stats())
    assert (stats["relayed"], stats["accepted"]) == (0, 21)
    (error,) = errors
    assert "until it is back events go this process's own way" in str(error) and not error.lost
    assert letter.flush(DEADLINE) and sorted(whose(letter_api)["test"]) == list(range(21))
    assert until_relayed(letter, 21) and runtime.relay() != first
    assert letter.flush(DEADLINE)
    stats = balanced(letter.stats())
    assert stats["relayed"] and stats["lost"] == {} and len(errors) == 1
    assert letter_api.distinct == stats["accepted"] == stats["delivered"]


def until_relayed(letter: Letter, start: int) -> int:
    """Track, which sees to it that there is a relay again, until one takes it; return how many, 0 if none came."""
    for count in range(1, 100_000):
        track(letter, 1, start=start + count - 1)
        if balanced(letter.stats())["mode"] == "relay":
            return count
        time.sleep(0.01)  # a pace: the attempts are seconds apart
    return 0


def test_a_relay_that_cannot_be_started_again_is_tried_less_and_less_often(
    runtime: Runtime, letter_api: Any, tmp_path: Path
) -> None:
    code = script("""
    letter = Letter('test-key', API, relay=True)
    (one,) = statuses()
    os.kill(one['pid'], signal.SIGKILL)
    os.unlink(one['socket'])
    open(one['socket'], 'w').close()  # which no relay will replace
    began, serial = time.monotonic(), 0
    while time.monotonic() < began + 5:
        work(letter, 1, start=serial)
        serial += 1
        time.sleep(0.01)
    assert letter.close(60)
    print(serial)
    """)
    finished = run(code, letter_api.url, tmp_path)
    assert finished.code == 0, finished
    attempts = finished.output.count("is there and is no socket")
    assert 1 <= attempts <= 3, finished  # at 0, 1 and 3 seconds
    assert finished.output.count("until it is back") == 1, finished
    assert whose(letter_api) == {"program": list(range(int(finished.output.splitlines()[-1])))}


def test_more_than_the_relay_may_hold_goes_the_own_way(
    make: Callable[..., Letter], letter_api: Any, hold: Hold, errors: list[LetterError]
) -> None:
    letter = make(relay=True, max_queue_events=100)
    track(letter, 1)
    assert hold.arrived.wait(DEADLINE)
    track(letter, 149, start=1)
    stats = balanced(letter.stats())
    assert stats["relayed"] == 100
    assert letter_api.wait_for(50)
    assert not letter.flush(0.1)
    assert eventually(lambda: balanced(letter.stats())["delivered"], lambda count: count == 50) == 50
    hold.release()
    assert letter.flush(DEADLINE)
    assert sorted(whose(letter_api)["test"]) == list(range(150))
    (error,) = errors
    assert "settles more slowly" in str(error) and not error.lost


def test_a_full_relay_reads_no_more_and_goes_on_later(
    make: Callable[..., Letter], runtime: Runtime, letter_api: Any, hold: Hold, errors: list[LetterError]
) -> None:
    first, second = make(relay=True, max_queue_events=100), make(relay=True, max_queue_events=100)
    track(first, 80, "first")
    assert hold.arrived.wait(DEADLINE)
    track(second, 80, "second")
    full = eventually(runtime.status, lambda status: status["paused"] == 1)
    assert full["paused"] == 1 and full["accepted"] == 100
    hold.release()
    assert first.flush(DEADLINE) and second.flush(DEADLINE)
    assert whose(letter_api) == {"first": list(range(80)), "second": list(range(80))}
    assert runtime.status()["paused"] == 0 and errors == []


def test_what_the_relay_drops_is_reported_to_its_owner(
    make: Callable[..., Letter], runtime: Runtime, letter_api: Any, hold: Hold
) -> None:
    def takes(count: int) -> None:
        """Wait until the relay has read as many."""
        assert eventually(runtime.status, lambda status: status["accepted"] == count)["accepted"] == count

    heard: dict[str, list[LetterError]] = {"first": [], "second": []}
    options: dict[str, Any] = {"relay": True, "max_queue_events": 100, "overflow": "drop_oldest", "flush_at": 10}
    first = make(on_error=heard["first"].append, **options)
    second = make(on_error=heard["second"].append, **options)
    track(first, 10, "first")
    assert hold.arrived.wait(DEADLINE)
    track(first, 60, "first", start=10)
    takes(70)
    track(second, 60, "second")
    takes(130)
    hold.release()
    assert first.flush(DEADLINE) and second.flush(DEADLINE)
    assert balanced(first.stats())["lost"] == {"overflow": 30} and balanced(second.stats())["lost"] == {}
    assert sum(error.lost for error in heard["first"]) == 30 and heard["second"] == []
    assert whose(letter_api)["second"] == list(range(60))


# Who is refused.


def hello(key: str, url: str, wants: str = protocol.EVENTS) -> bytes:
    return protocol.Caller(key, url, wants).hello


def greeted(api: Any, then: bytes) -> Callable[[socket.socket], object]:
    return lambda sock: greet(sock, KEY, api.url).sendall(then)


def without_the_key(sock: socket.socket, api: Any) -> None:
    sock.sendall(hello("another-key", api.url))
    line_from(sock)
    sock.sendall(protocol.line_of({"proof": "0" * 64}))


WRONG: dict[str, Callable[[Any], Any]] = {
    "it has another API key": lambda api: lambda sock: without_the_key(sock, api),
    "another API than": lambda api: hello(KEY, "http://127.0.0.1:9"),
    "it wants what this relay has not": lambda api: hello(KEY, api.url, "everything"),
    "it is of another version": lambda api: b'{"letterapp": 1, "proof": "ab", "api": "", "wants": "events"}\n',
    "no version of this protocol": lambda api: b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "it sends what is no event": lambda api: greeted(api, b"no event\n"),
    "a line has no end": lambda api: greeted(api, b"{" * 4_300_000),
}


def say(path: str, data: bytes | Callable[[socket.socket], object]) -> bytes:
    """Say ``data`` to the relay, or do what it does, and return all that it answers until it hangs up."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(DEADLINE)
        sock.connect(path)
        try:
            sock.sendall(data) if isinstance(data, bytes) else data(sock)
        except (BrokenPipeError, ConnectionResetError):
            pass  # it has hung up in the middle
        heard = b""
        try:
            while True:
                more = sock.recv(65_536)
                if not more:
                    return heard
                heard += more
        except ConnectionResetError:
            return heard


@pytest.mark.parametrize("reason", [*WRONG, "greeting without an end"])
def test_who_says_the_wrong_thing_is_refused_and_logged_once(
    reason: str, make: Callable[..., Letter], runtime: Runtime, letter_api: Any, kept: Any
) -> None:
    letter = make(relay=runtime.socket)
    track(letter, 1)
    said = WRONG[reason](letter_api) if reason in WRONG else b"x" * 5000
    reason = reason if reason in WRONG else "no version of this protocol"
    for _ in range(3):
        answer = say(runtime.socket, said)
        assert not answer or reason in json.loads(answer)["refused"], answer
    assert runtime.own_status()["refused"] == 3
    assert kept.output.count(reason) == 1, kept.output
    track(letter, 1, start=1)
    assert letter.flush(DEADLINE) and letter.stats()["relayed"] == 2 and letter_api.distinct == 2


def test_a_client_that_is_refused_says_so_and_not_the_key(runtime: Runtime, letter_api: Any, kept: Any) -> None:
    with pytest.raises(LetterError, match="refuses this client: it has another API key") as raised:
        Letter("another-key", letter_api.url, relay=runtime.socket)
    assert "another-key" not in str(raised.value)
    with pytest.raises(LetterError, match="refuses this client: it wants another API"):
        Letter(KEY, "http://127.0.0.1:9", relay=runtime.socket)
    assert KEY not in kept.output and "another-key" not in kept.output
    assert "it left when it was to prove that it has the key" in eventually(
        lambda: kept.output, lambda text: "left" in text
    )


def test_a_thousand_connections_that_say_nothing_harm_nobody(
    runtime: Runtime, letter_api: Any, tmp_path: Path, make: Callable[..., Letter], kept: Any
) -> None:
    code = """
    import resource, socket
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096) if hard > 0 else 4096, hard))
    silent = []
    for _ in range(1000):
        silent.append(socket.socket(socket.AF_UNIX))
        silent[-1].connect(sys.argv[1])
    print('connected', flush=True)
    stay()
    """
    letter = make(relay=runtime.socket)
    with start(code, letter_api.url, tmp_path, runtime.socket) as silent:
        assert "connected" in eventually(lambda: silent.output, lambda text: "connected" in text)
        track(letter, 100)
        assert letter.flush(DEADLINE) and letter.stats()["relayed"] == 100
        late = make(relay=runtime.socket)
        track(late, 100, "late")
        assert late.flush(DEADLINE) and late.stats()["relayed"] == 100
        assert runtime.own_status()["refused"] >= 900
        all_refused = eventually(runtime.own_status, lambda status: status["refused"] == 1000)
        assert all_refused["refused"] == 1000  # those that were few enough too, after a while
        assert kept.output.count("did not say who it is") == 1 == kept.output.count("too many at a time")
        assert kept.output.count("connection was refused") == 2, "each reason once"
    assert len(whose(letter_api)["late"]) == 100


# The program.


def test_the_key_comes_from_a_file_or_the_environment(
    make: Callable[..., Letter], runtime: Runtime, letter_api: Any
) -> None:
    file = runtime.path / "key"
    file.write_text(f"{KEY}\n")
    for options, key in [(["--api-key-file", str(file)], None), ([], KEY)]:
        with runtime.keep(*options, key=key) as relay:
            letter = make(relay=runtime.socket)
            track(letter, 1)
            assert letter.flush(DEADLINE) and letter.stats()["relayed"] == 1
            assert KEY.encode() not in Path(f"/proc/{relay.pid}/cmdline").read_bytes()
            letter.close()
    assert letter_api.distinct == 2
    without = runtime.command("--socket", runtime.socket, key="")
    assert without.returncode == 1 and "LETTER_API_KEY" in without.stderr
    missing = runtime.command("--socket", runtime.socket, "--api-key-file", str(runtime.path / "none"))
    assert missing.returncode == 1 and "No such file" in missing.stderr and "Traceback" not in missing.stderr


def test_a_group_may_be_let_in(make: Callable[..., Letter], runtime: Runtime) -> None:
    for group in (grp.getgrgid(os.getgid()).gr_name, str(os.getgid())):
        with runtime.keep("--group", group):
            path = Path(runtime.socket)
            assert stat.S_IMODE(path.stat().st_mode) == 0o660 and path.stat().st_gid == os.getgid()
            assert stat.S_IMODE(path.parent.stat().st_mode) == 0o750 and path.parent.stat().st_gid == os.getgid()
            letter = make(relay=runtime.socket)
            track(letter, 1)
            assert letter.flush(DEADLINE) and letter.stats()["relayed"] == 1
            letter.close()
    unknown = runtime.command("--socket", runtime.socket, "--group", "no-such-group")
    assert unknown.returncode == 1 and "no group no-such-group" in unknown.stderr


def test_without_a_group_the_socket_is_this_users_alone(runtime: Runtime, kept: Any) -> None:
    path = Path(runtime.socket)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_with_a_spool_nothing_is_lost_when_all_are_killed(
    runtime: Runtime, letter_api: Any, hold: Hold, tmp_path: Path
) -> None:
    code = """
    letter = Letter('test-key', API, relay=sys.argv[1])
    work(letter, 120)
    os.kill(os.getpid(), signal.SIGKILL)
    """
    spool = ["--spool", str(tmp_path / "spool")]
    with runtime.keep(*spool) as relay:
        assert run(code, letter_api.url, tmp_path, runtime.socket).code == -signal.SIGKILL
        assert hold.arrived.wait(DEADLINE)
        assert eventually(runtime.own_status, lambda status: status["accepted"] == 120)["accepted"] == 120
        relay.signal(signal.SIGKILL)
        assert relay.finish().code == -signal.SIGKILL
    assert letter_api.distinct == 0
    with runtime.keep(*spool):
        assert letter_api.wait_for(120)
        assert eventually(runtime.own_status, lambda status: status["delivered"] == 120)["adopted"] == 120
    hold.release()
    assert sorted(whose(letter_api)["program"]) == list(range(120))


def test_status_says_how_the_relays_are(make: Callable[..., Letter], runtime: Runtime, kept: Any) -> None:
    none = runtime.command("--status")
    assert (none.returncode, none.stdout) == (1, "") and "no relay" in none.stderr
    nowhere = runtime.command("--status", "--socket", runtime.socket + "x")
    assert (nowhere.returncode, nowhere.stdout) == (1, "") and "No such file" in nowhere.stderr
    wrong = runtime.command("--status", "--socket", runtime.socket, key="another-key")
    assert (wrong.returncode, wrong.stdout) == (1, "") and "another API key" in wrong.stderr

    own = runtime.status("--socket", runtime.socket)
    assert own["pid"] == kept.pid and own["socket"] == runtime.socket
    letter = make(relay=True)
    track(letter, 3)
    assert letter.flush(DEADLINE)
    started = runtime.status()
    assert started["pid"] != kept.pid and balanced(started)["delivered"] == 3
    assert (started["processes"], started["leases"]) == (1, 1)


def test_sigusr1_has_it_say_the_same_in_its_log(kept: Any, runtime: Runtime) -> None:
    kept.signal(signal.SIGUSR1)
    said = eventually(lambda: kept.output, lambda text: "accepted" in text and text.endswith("\n"))
    line = said.splitlines()[-1]
    assert json.loads(line[line.index("{") :])["pid"] == kept.pid


def test_it_tells_systemd_when_it_serves_and_when_it_ends(runtime: Runtime) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
        ear.settimeout(DEADLINE)
        ear.bind(str(runtime.path / "notify"))
        with runtime.keep(NOTIFY_SOCKET=str(runtime.path / "notify")) as relay:
            assert ear.recv(100) == b"READY=1"
            relay.signal(signal.SIGTERM)
            assert ear.recv(100) == b"STOPPING=1"
            assert relay.finish().code == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_has_it_drain_and_leave(
    number: int, make: Callable[..., Letter], runtime: Runtime, letter_api: Any, hold: Hold, kept: Any
) -> None:
    letter = make(relay=runtime.socket)
    track(letter, 120)
    assert hold.arrived.wait(DEADLINE)
    kept.signal(number)
    assert eventually(lambda: os.path.exists(runtime.socket), lambda there: not there) is False
    hold.release()
    finished = kept.finish()
    assert finished.code == 0 and "120 delivered, 0 lost, 0 left" in finished.output, finished
    assert sorted(whose(letter_api)["test"]) == list(range(120))
    assert letter.flush(DEADLINE) and balanced(letter.stats())["delivered"] == 120
    assert letter_api.repeated() == {}


def test_it_does_not_wait_for_the_api_for_ever(
    make: Callable[..., Letter], runtime: Runtime, letter_api: Any, hold: Hold, kept: Any
) -> None:
    letter = make(relay=runtime.socket)
    track(letter, 3)
    assert hold.arrived.wait(DEADLINE)
    kept.signal(signal.SIGTERM)
    began = time.monotonic()
    assert kept.finish().code == 0
    assert time.monotonic() - began < 9.9  # once `exit_timeout`, which is 5, and not twice
    hold.release()
    assert letter.flush(DEADLINE) and letter_api.distinct == 3  # what it left is still the client's


def test_a_second_one_at_the_same_place_gives_up(
    make: Callable[..., Letter], runtime: Runtime, letter_api: Any, kept: Any
) -> None:
    second = runtime.command("--socket", runtime.socket)
    assert second.returncode == 1 and f"another relay serves at {runtime.socket}" in second.stderr
    letter = make(relay=runtime.socket)
    track(letter, 1)
    assert letter.flush(DEADLINE) and letter.stats()["relayed"] == 1


def test_the_socket_of_a_killed_one_is_replaced_and_a_file_is_left_alone(
    make: Callable[..., Letter], runtime: Runtime, letter_api: Any, kept: Any
) -> None:
    kept.signal(signal.SIGKILL)
    kept.finish()
    assert stat.S_ISSOCK(os.stat(runtime.socket).st_mode)
    with runtime.keep():
        letter = make(relay=runtime.socket)
        track(letter, 1)
        assert letter.flush(DEADLINE) and letter.stats()["relayed"] == 1
    Path(runtime.socket).unlink()
    Path(runtime.socket).write_text("precious")
    refused = runtime.command("--socket", runtime.socket)
    assert refused.returncode == 1 and "is no socket: it is left alone" in refused.stderr
    assert Path(runtime.socket).read_text() == "precious"


def test_a_kept_one_is_joined_when_it_comes_late(
    make: Callable[..., Letter], runtime: Runtime, letter_api: Any, errors: list[LetterError]
) -> None:
    Path(runtime.socket).parent.mkdir(mode=0o700)
    letter = make(relay=runtime.socket)
    track(letter, 1)
    assert letter.flush(DEADLINE) and balanced(letter.stats())["relayed"] == 0 and len(errors) == 1
    with runtime.keep():
        count = until_relayed(letter, 1)
        assert count and letter.flush(DEADLINE) and sorted(whose(letter_api)["test"]) == list(range(1 + count))


# What cannot be.


@pytest.mark.parametrize(
    "options, why",
    [
        ({"relay": "/" + "x" * 103}, "too long for a socket's path"),
        ({"relay": True, "spool": "spool", "spool_sync": True}, "spool_sync cannot be kept with a relay"),
        ({"relay": True, "ssl_context": ssl.create_default_context()}, "an ssl_context cannot go there"),
        ({"relay": 7}, "relay must be True, a socket's path or a queue"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_is_a_clear_error(
    options: dict[str, Any],
    why: str,
    make: Callable[..., Letter],
    runtime: Runtime,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LetterError, match=why):
        make(**options)
    assert runtime.relays() == []


def test_a_frozen_program_must_keep_a_relay_itself(
    make: Callable[..., Letter], runtime: Runtime, letter_api: Any, kept: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    with pytest.raises(LetterError, match="this program is frozen: keep a relay yourself"):
        make(relay=True)
    letter = make(relay=runtime.socket)
    track(letter, 1)
    assert letter.flush(DEADLINE) and letter.stats()["relayed"] == 1


def test_a_runtime_directory_that_is_too_long_is_a_clear_error(
    make: Callable[..., Letter], runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = runtime.path / ("x" * 100)
    long.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(long))
    with pytest.raises(LetterError, match="set XDG_RUNTIME_DIR to a short one"):
        make(relay=True)


def test_a_directory_that_others_may_write_in_is_believed_by_nobody(
    make: Callable[..., Letter], runtime: Runtime
) -> None:
    directory = Path(runtime.socket).parent
    directory.mkdir()
    directory.chmod(0o777)
    with pytest.raises(LetterError, match="others may write in it"):
        make(relay=runtime.socket)
    refused = runtime.command("--socket", runtime.socket)
    assert refused.returncode == 1 and "others may write in it" in refused.stderr


# What it holds of its starter.

linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")

STARTS_ONE = """
letter = Letter('test-key', API, relay=True)
print("started", flush=True)
sys.stdin.read()
"""


def test_who_reads_all_output_of_a_program_does_not_wait_for_the_relay_that_it_started(
    runtime: Runtime, make: Any, letter_api: Any, tmp_path: Path
) -> None:
    (tmp_path / "program.py").write_text(PRELUDE + STARTS_ONE)
    command = [sys.executable, str(tmp_path / "program.py")]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(letter_api.url),
        encoding="utf-8",
    ) as program:
        assert program.stdout is not None and program.stdout.readline() == "started\n"
        relay = runtime.relay()
        make(relay=True)  # which keeps it going
        assert program.communicate(timeout=DEADLINE) == ("", "")
    assert runtime.relays() == [relay] and relay.is_running()
    # Its messages go to a file now, which is begun anew when it is large.
    log = runtime.path / "letterapp" / "relay.log"
    assert log.stat().st_mode & 0o777 == 0o600 and log.read_bytes() == b""
    place = next(runtime.path.glob("letterapp/*.sock"))
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.connect(str(place))
        stranger.sendall(b"hello\n")
        assert b"refused" in stranger.recv(1000)
    said = eventually(log.read_text, bool)
    assert re.fullmatch(r"[\d-]{10} [\d:]{8} letterapp relay \[\d+\]: a connection was refused: .+\n", said), said
    log.write_bytes(b"x" * 1_048_577)
    relay.send_signal(signal.SIGUSR1)
    said = eventually(log.read_text, lambda text: text.endswith("\n"))
    assert '"delivered"' in said and len(said) < 2000


@linux
def test_a_relay_has_no_open_file_of_its_starter_but_stderr(
    runtime: Runtime, make: Any, letter_api: Any, tmp_path: Path
) -> None:
    code = """
    ends = os.pipe()
    for number in (40, 41):
        os.dup2(ends[1], number)  # which can be inherited
        os.set_inheritable(number, True)
    kept = open(sys.argv[1], "w")
    os.dup2(kept.fileno(), 42)
    letter = Letter('test-key', API, relay=True)
    print("started", flush=True)
    stay()
    """
    with start(code, letter_api.url, tmp_path, str(tmp_path / "kept")) as program:
        assert eventually(lambda: program.output, lambda text: "started" in text)
        relay = runtime.relay()
        theirs = {os.stat(f"/proc/{program.pid}/fd/{name}").st_ino for name in os.listdir(f"/proc/{program.pid}/fd")}
        output = os.fstat(program._output.fileno()).st_ino  # a file, for which nobody waits
        null = os.stat(os.devnull).st_ino
        mine = {os.stat(f"/proc/{relay.pid}/fd/{name}").st_ino for name in os.listdir(f"/proc/{relay.pid}/fd")}
        assert mine & theirs <= {output, null} and output in mine
        assert not (runtime.path / "letterapp" / "relay.log").exists()


@linux
def test_a_program_without_stderr_starts_a_relay_that_writes_into_none_of_its_sockets(
    runtime: Runtime, letter_api: Any, tmp_path: Path
) -> None:
    code = """
    os.close(2)
    letter = Letter('test-key', API, relay=True)
    os.write(1, b"started\\n")
    stay()
    """
    with start(code, letter_api.url, tmp_path) as program:
        assert eventually(lambda: program.output, lambda text: "started" in text)
        assert os.readlink(f"/proc/{runtime.relay().pid}/fd/2") == os.devnull


def _missing_key(path: Path) -> tuple[list[str], str]:
    return ["--socket", str(path / "r.sock"), "--api-key-file", "/no/key"], "--api-key-file: /no/key: No such file"


def _status_with_missing_key(path: Path) -> tuple[list[str], str]:
    return ["--status", "--api-key-file", "/no/key"], "--api-key-file: /no/key: No such file"


def _empty_key(path: Path) -> tuple[list[str], str]:
    return ["--status", "--api-key-file", os.devnull], f"--api-key-file: {os.devnull} is empty"


def _binary_key(path: Path) -> tuple[list[str], str]:
    (path / "key").write_bytes(bytes(range(256)))
    (path / "key").chmod(0o600)
    return ["--status", "--api-key-file", str(path / "key")], "api_key holds a line break"


def _managers_missing_key(path: Path) -> tuple[list[str], str]:
    (path / "authkey").write_text("secret")
    (path / "authkey").chmod(0o600)
    options = ["--manager", str(path / "m.sock"), "--authkey-file", str(path / "authkey"), "--api-key-file", "/no/key"]
    return options, "--api-key-file: /no/key: No such file"


def _missing_authkey(path: Path) -> tuple[list[str], str]:
    return ["--manager", str(path / "m.sock"), "--authkey-file", "/no/authkey"], "--authkey-file: /no/authkey: No such"


def _managers_port(path: Path) -> tuple[list[str], str]:
    (path / "authkey").write_text("secret")
    (path / "authkey").chmod(0o600)
    options = ["--manager", "127.0.0.1:99999", "--authkey-file", str(path / "authkey")]
    return options, "cannot listen at ('127.0.0.1', 99999): "


def _directory_in_nothing(path: Path) -> tuple[list[str], str]:
    return ["--socket", str(path / "a" / "b" / "r.sock")], f"{path / 'a' / 'b'}: No such file"


def _open_directory(path: Path) -> tuple[list[str], str]:
    (path / "open").mkdir()
    (path / "open").chmod(0o777)
    return ["--socket", str(path / "open" / "r.sock")], f"{path / 'open'}: others may write in it"


def _directory_is_a_file(path: Path) -> tuple[list[str], str]:
    (path / "file").write_text("")
    return ["--socket", str(path / "file" / "r.sock")], f"{path / 'file'}: it must be a directory"


@pytest.mark.parametrize(
    "lay",
    [
        _missing_key,
        _status_with_missing_key,
        _empty_key,
        _binary_key,
        _managers_missing_key,
        _missing_authkey,
        _managers_port,
        _directory_in_nothing,
        _open_directory,
        _directory_is_a_file,
    ],
)
def test_a_command_names_the_file_that_it_cannot_use(
    lay: Callable[[Path], tuple[list[str], str]], runtime: Runtime, tmp_path: Path
) -> None:
    options, says = lay(tmp_path)
    done = runtime.command(*options)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1 and line.split("]: ", 1)[1].startswith(says), line


def test_the_inbox_names_a_port_that_is_none(runtime: Runtime) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "letterapp", "inbox", "--port", "70000"],
        env=environment(runtime.api.url),
        stderr=subprocess.PIPE,
        timeout=DEADLINE,
    )
    assert done.returncode == 2 and b"argument --port: from 0 to 65535" in done.stderr


@pytest.mark.parametrize("ends", ["close", "exit"])
def test_what_the_relay_has_when_a_process_ends_is_told_with_its_events_and_its_log_tells_what_it_gives_up(
    ends: str, hold: Hold, letter_api: Any, runtime: Runtime, tmp_path: Path
) -> None:
    code = """
    def tell(error):
        serials = [event["properties"]["serial"] for event in error.events]
        print(error.cause, error.lost, serials == list(range(40)), error, flush=True)
    letter = Letter('test-key', API, relay=True, exit_timeout=0.3, on_error=tell)
    work(letter, 40)
    if sys.argv[1] == "close":
        assert letter.close() is False
    else:
        assert letter.flush() is False
    stats = letter.stats()
    assert (stats["waiting"], stats["lost"]) == (40, {}), stats
    """
    with start(code, letter_api.url, tmp_path, ends) as program:
        assert program.finish().code == 0, program.output
        assert runtime.left_behind() == []
        told, logged = program.output.splitlines()
    hold.release()
    time = "0.3 s of close()" if ends == "close" else "0.3 s that the end of the process may take"
    assert told.startswith(f"degraded 0 True 40 events were handed to the relay and are not settled after the {time}")
    assert re.fullmatch(r"letterapp relay \[\d+\]: 40 of processes that have ended: 40 events given up: .+", logged)


def test_what_a_relay_settles_in_time_is_not_told_of(make: Any, letter_api: Any, errors: list[LetterError]) -> None:
    letter = make(relay=True)
    track(letter, 40)
    assert letter.close(DEADLINE) and letter.close() and errors == []


@pytest.mark.parametrize("how", ["a thread", "no thread"])
def test_what_a_client_without_its_relay_has_is_sent_though_the_program_lets_go_of_it(
    how: str, runtime: Runtime, letter_api: Any, tmp_path: Path
) -> None:
    code = """
    import gc, warnings
    from letterapp._runtime import servers
    warnings.simplefilter('ignore')
    if sys.argv[2] == 'no thread':
        servers.start_thread = lambda *_: False  # as under uWSGI without threads
    os.mkdir(os.path.dirname(sys.argv[1]), 0o700)
    letter = Letter('test-key', API, relay=sys.argv[1], on_error=print, flush_interval=3600, flush_at=10**6)
    work(letter, 5)
    assert letter.stats()['waiting'] == 5
    del letter
    gc.collect()
    """
    finished = run(code, letter_api.url, tmp_path, str(tmp_path / "away" / "r.sock"), how)
    assert finished.code == 0 and "Traceback" not in finished.output, finished
    assert whose(letter_api) == {"program": [0, 1, 2, 3, 4]}, finished
