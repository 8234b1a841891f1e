"""How processes end: `os._exit`, Ctrl-C once and twice, a whole family at once, PID 1, clients that are created late.

Responsible for: what becomes of events at such an end, with real programs (RQ, ForkingMixIn, pytest --forked among
them). Not responsible for: kills (test_killed.py), servers' own ends.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Callable

import pytest
from harness import DEADLINE, PROGRAMS, Program, environment, eventually, get, needs, run, start, whose
from programs import ends
from redis_server import RedisServer, needs_redis, started_redis  # noqa: F401  (a fixture)
from relayed import Runtime
from senders import clear

from letterapp import Letter, LetterError
from letterapp.testing import Hold
from stress.ports import free_port

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs Unix")

DOWN = "http://127.0.0.1:9"  # where nothing listens


# os._exit


def test_a_forked_child_that_calls_os_exit_sends_first(letter_api: Any, tmp_path: Any) -> None:
    finished = run(ends.leaves_by_os_exit, letter_api.url, tmp_path)
    assert finished.output == "0 7 True\n", finished
    assert sorted(whose(letter_api)["child"]) == [0, 0, 1, 1, 2, 2]


def test_a_child_that_has_not_used_its_client_exits_at_once(letter_api: Any, tmp_path: Any) -> None:
    hold = Hold()
    letter_api.rule = lambda request: hold
    with start(ends.unused_in_children, letter_api.url, tmp_path) as program:
        assert program.finish().output == "True\n"
    hold.release()
    letter_api.rule = None
    assert not program.left_behind()


def test_os_exit_takes_at_most_exit_timeout(letter_api: Any, tmp_path: Any) -> None:
    hold = Hold()
    letter_api.rule = lambda request: hold
    finished = run(ends.os_exit_in_an_exit_callback, letter_api.url, tmp_path)
    hold.release()
    assert finished.code == 3 and "True\n" in finished.output and "3 events given up" in finished.output, finished


def test_os_exit_does_not_send_if_disabled_or_in_a_signal_handler(letter_api: Any, tmp_path: Any) -> None:
    with start(ends.os_exit_left_alone, letter_api.url, tmp_path) as program:
        assert program.finish().output == ""
    assert whose(letter_api) in ({"on": [0]}, {"on": [0], "handler": [0]})  # of a dead sibling's the next child sends


@pytest.mark.slow
@needs("rq")
@needs_redis
@pytest.mark.parametrize("worker", ["worker", "worker-pool", "SpawnWorker", "SimpleWorker"])
def test_rqs_work_horses(
    worker: str, redis_server: Callable[..., RedisServer], letter_api: Any, tmp_path: Path
) -> None:
    from rq import Queue

    server = redis_server()
    jobs = 4 if worker == "SpawnWorker" else 20  # each is a new interpreter there
    with server.client() as connection:
        queue = Queue(connection=connection)
        for serial in range(jobs):
            queue.enqueue("programs.jobs.job", serial)
    is_class = worker.endswith("Worker")
    rq = [sys.executable, "-m", "rq.cli", "worker" if is_class else worker, "--burst", "--url", server.url]
    rq += ["--num-workers", "2"] if worker == "worker-pool" else []
    rq += ["--worker-class", f"rq.worker.{worker}"] if is_class else []
    with Program(rq, environment(letter_api.url), tmp_path) as program:
        finished = program.finish()
    assert finished.code == 0 and "Traceback" not in finished.output, finished
    assert sorted(whose(letter_api).get("job", [])) == list(range(jobs)), finished


@pytest.mark.slow
def test_the_children_of_a_forking_server(letter_api: Any, tmp_path: Path) -> None:
    port = free_port()
    with start(ends.forking_server, letter_api.url, tmp_path, port) as program:
        assert eventually(lambda: program.output, lambda text: "ready" in text) == "ready\n"
        for serial in range(40):
            assert get(f"http://127.0.0.1:{port}/?{serial}") == "ok"
        assert letter_api.wait_for(40), program.output
        program.signal(signal.SIGTERM)
        program.finish()
    assert sorted(whose(letter_api)["request"]) == list(range(40))


@pytest.mark.slow
@needs("pytest_forked")
def test_pytest_forked(letter_api: Any, tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text("from programs.forked_tests import test_it\n")
    flags = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--forked", "test_it.py"]
    with Program([sys.executable, *flags], environment(letter_api.url), tmp_path) as program:
        program.finish()
    # (1.7.5 with pytest 9 says of every test that it failed, an empty one too.)
    assert sorted(whose(letter_api).get("job", [])) == list(range(5))


@needs("pyspark")
@pytest.mark.parametrize("reused", [False, True], ids=["a worker a task", "a worker for all tasks"])
def test_pysparks_daemon(reused: bool, letter_api: Any, tmp_path: Path) -> None:
    # As a JVM drives it: the port on its standard output, a connection for a worker, and the end of its standard input
    # for the end, at which it kills its workers by SIGHUP. A worker for all tasks has no other end, so it has a relay.
    runtime = Runtime(letter_api)
    env = environment(letter_api.url, PYTHON_WORKER_FACTORY_SECRET="secret", XDG_RUNTIME_DIR=str(runtime.path))
    env["TEST_OPTIONS"] = json.dumps({"relay": reused})
    env.update({"SPARK_REUSE_WORKER": "1"} if reused else {})
    command = [sys.executable, "-m", "pyspark.daemon", "programs.spark_worker"]
    workers = set()
    with subprocess.Popen(command, env=env, cwd=str(tmp_path), stdin=subprocess.PIPE, stdout=subprocess.PIPE) as daemon:
        assert daemon.stdin is not None and daemon.stdout is not None
        port = int.from_bytes(daemon.stdout.read(4), "big")
        with ExitStack() as connections:
            for serial in range(3):
                if serial == 0 or not reused:
                    connections.close()  # at which a worker a task ends by `os._exit`
                    connection = connections.enter_context(socket.create_connection(("127.0.0.1", port), DEADLINE))
                    answers = connections.enter_context(connection.makefile("rb"))
                    answers.read(4)  # the worker's process id
                    connection.sendall((6).to_bytes(4, "big") + b"secret")
                    assert answers.read(6) == b"\0\0\0\2ok"
                connection.sendall(serial.to_bytes(4, "big"))
                workers.add(int.from_bytes(answers.read(4), "big"))
            if not reused:
                connections.close()
                assert letter_api.wait_for(3)
            daemon.stdin.close()
            daemon.wait(DEADLINE)
    assert len(workers) == (1 if reused else 3)
    assert not clear(runtime)
    assert sorted(whose(letter_api)["job"]) == [0, 1, 2]


@needs("daemon")
def test_a_daemon_loses_no_event_tracked_before_it_detached(letter_api: Any, tmp_path: Path) -> None:
    # It forks twice, leaves by `os._exit` both times, and closes every descriptor that it inherited.
    with start(ends.daemon, letter_api.url, tmp_path) as program:
        finished = program.finish()
        assert letter_api.wait_for(10), finished
    assert whose(letter_api) == {"before": list(range(5)), "after": list(range(5))}


@needs("twisted")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
def test_twisteds_reactor_ends_by_a_signal_s_default_action(number: int, letter_api: Any, tmp_path: Path) -> None:
    twistd = [sys.executable, "-c", "from twisted.scripts.twistd import run; run()"]
    flags = ["-n", "--pidfile=", "-l", str(tmp_path / "log"), "-y", str(PROGRAMS / "twisted_application.py")]
    with Program([*twistd, *flags], environment(letter_api.url), tmp_path) as program:
        assert eventually(lambda: program.output, lambda text: "20\n" in text), program.output
        program.signal(number)
        finished = program.finish()
    assert finished.code == -number, finished
    tracked = [int(line) for line in finished.output.split()]
    assert len(tracked) > 20 and set(tracked) <= set(whose(letter_api)["twisted"]), finished


# One budget a process.


@pytest.mark.slow
def test_an_end_takes_one_exit_timeout_at_any_fork_depth(letter_api: Any, tmp_path: Any) -> None:
    hold = Hold()
    letter_api.rule = lambda request: hold
    with start(ends.nested_forks, letter_api.url, tmp_path) as program:
        program.finish()
        assert eventually(lambda: program.output, lambda text: "\n" in text) == "True\n"
    hold.release()


@pytest.mark.slow
def test_multiprocessing_s_registry_does_not_grow_with_nested_processes(letter_api: Any, tmp_path: Any) -> None:
    finished = run(ends.nested_processes, letter_api.url, tmp_path)
    assert finished.output == "1\n", finished
    assert whose(letter_api) == {f"depth {depth}": [0] for depth in range(7)}


# Ctrl-C.


def test_a_program_ended_by_ctrl_c_dies_of_sigint(letter_api: Any, tmp_path: Any) -> None:
    finished = run(ends.interrupted, letter_api.url, tmp_path)
    assert finished.code == -signal.SIGINT and "KeyboardInterrupt" in finished.output, finished
    assert whose(letter_api) == {"program": list(range(10))}
    assert run(ends.interrupted_and_handled, letter_api.url, tmp_path).code == 0


def test_a_second_ctrl_c_during_the_end_reports_what_is_lost(letter_api: Any, tmp_path: Any) -> None:
    hold = Hold()
    letter_api.rule = lambda request: hold
    with start(ends.interrupted, letter_api.url, tmp_path, 50) as program:
        assert hold.arrived.wait(DEADLINE)
        assert eventually(lambda: "KeyboardInterrupt" in program.output, bool)
        program.signal(signal.SIGINT)
        finished = program.finish(20)
    hold.release()
    assert "10 events given up" in finished.output, finished


def test_a_family_that_ends_together_while_the_api_is_down_reports_each_event(tmp_path: Any) -> None:
    with start(ends.family, DOWN, tmp_path) as program:
        assert eventually(lambda: program.output.count("ready"), lambda count: count == 4) == 4
        program.signal_group(signal.SIGINT)
        program.finish()
        assert not program.left_behind()
        assert sum(int(line.split()[1]) for line in program.output.splitlines() if line.startswith("reported")) == 40


def test_a_killed_childs_events_are_delivered_after_a_close_that_gave_up(letter_api: Any, tmp_path: Any) -> None:
    hold = Hold()
    letter_api.plan(hold)
    with start(ends.orphans_after_close, letter_api.url, tmp_path) as program:
        assert eventually(lambda: program.output, lambda text: "closed" in text) == "closed\n"
        hold.release()
        finished = program.finish()
    assert finished.code == 0 and whose(letter_api)["child"] == list(range(5)), finished


# Clients that come late.


@pytest.mark.parametrize("where", ["here", "in a forked child"])
def test_the_first_client_of_a_process_may_be_created_by_an_exit_callback(
    where: str, letter_api: Any, tmp_path: Any
) -> None:
    if where != "here" and sys.version_info[:2] == (3, 12):
        pytest.skip("3.12 forks nowhere at its end")
    finished = run(ends.late_client, letter_api.url, tmp_path, where)
    assert finished.code == 0 and not finished.output, finished
    assert whose(letter_api) == {"program": list(range(5))}


# exit_signals.


def test_exit_signals_never_prevent_an_application_from_starting(letter_api: Any, tmp_path: Any) -> None:
    finished = run(ends.exit_signals_in_a_thread, letter_api.url, tmp_path)
    assert finished.code == -signal.SIGTERM, finished
    assert finished.output.count("only the main thread") == 1 and "Traceback" not in finished.output, finished
    assert whose(letter_api) == {"program": [0, 1, 2]}


def test_a_handler_that_replaced_ours_is_not_replaced(letter_api: Any, tmp_path: Any) -> None:
    assert run(ends.replaced_handler, letter_api.url, tmp_path).output == "True\n"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_signals_that_no_process_can_handle_are_an_error_of_the_options(number: Any) -> None:
    with pytest.raises(LetterError, match="no process can handle"):
        Letter("k", exit_signals=(number,))


# A clock that stands still, as in a program's own tests.


@needs("freezegun")
@pytest.mark.parametrize("moment", ["2001-01-01", "2101-01-01"])
def test_an_end_while_the_clock_stands_still(moment: str, letter_api: Any, tmp_path: Any) -> None:
    # freezegun puts its own function in the place of `time.monotonic` in every module that has it.
    finished = run(ends.frozen_clock, letter_api.url, tmp_path, moment)
    assert (finished.code, finished.output) == (0, ""), finished
    assert {who: sorted(set(serials)) for who, serials in whose(letter_api).items()} == {
        "before": [0, 1, 2],
        "frozen": [0, 1, 2],
    }
    assert next(item for item in letter_api.events if item["userId"] == "frozen")["timestamp"].startswith(moment)


@pytest.mark.slow
@needs("freezegun")
@pytest.mark.parametrize("moment", ["2001-01-01", "2101-01-01"])
def test_an_end_while_the_clock_stands_still_and_the_api_is_silent(moment: str, letter_api: Any, tmp_path: Any) -> None:
    letter_api.rule = lambda request: Hold()
    finished = run(ends.frozen_clock_and_silent_api, letter_api.url, tmp_path, moment)
    assert finished.code == 0 and "3 events given up" in finished.output, finished
    assert finished.seconds < 20


@pytest.mark.slow
def test_a_process_does_not_recover_what_it_released_to_its_family(tmp_path: Any) -> None:
    # It is held up in a later exit callback, with its sender's thread still there, while the other comes to its end.
    finished = run(ends.left_to_another, DOWN, tmp_path)
    assert finished.output == "other reported 1\n", finished


def test_a_signal_during_a_request_sent_by_the_call_itself_reports_what_is_lost(letter_api: Any, tmp_path: Any) -> None:
    hold = Hold()
    letter_api.rule = lambda request: hold
    with start(ends.signal_during_an_inline_request, letter_api.url, tmp_path, PYTHONWARNINGS="ignore") as program:
        assert hold.arrived.wait(DEADLINE)
        program.signal(signal.SIGTERM)
        finished = program.finish()
    hold.release()
    assert (finished.code, finished.output) == (-signal.SIGTERM, "reported exit 2\n"), finished


def test_a_second_end_does_not_touch_a_slot_that_another_process_uses(letter_api: Any, tmp_path: Any) -> None:
    with start(ends.second_end, letter_api.url, tmp_path) as program:
        assert program.finish().output == "0\n", program.output
