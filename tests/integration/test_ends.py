"""Ends that nobody announces: `os._exit`, Ctrl-C once and twice, a family that ends together, PID 1, late clients.

Responsible for: what becomes of events at such an end, with real programs (RQ, ForkingMixIn, pytest --forked among
them). Not responsible for: kills (test_killed.py), servers' own ends.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from harness import DEADLINE, Program, environment, eventually, get, needs, run, start, whose
from relayed import Runtime
from senders import clear

from letterapp import Letter, LetterError
from letterapp.testing import Hold
from stress.ports import free_port

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs Unix")

DOWN = "http://127.0.0.1:9"  # where nobody listens


# os._exit


def test_a_forked_child_that_leaves_by_os_exit_sends_first(letter_api: Any, tmp_path: Any) -> None:
    code = """
    untouched = os._exit
    letter = Letter('k', API, flush_interval=3600)
    assert os._exit is untouched  # until the first event

    def leaves(status):
        pid = os.fork()
        if not pid:
            work(letter, 3, "child")
            os._exit(status)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) if sys.version_info >= (3, 9) else status

    print(leaves(0), leaves(7), os._exit is untouched)
    """
    finished = run(code, letter_api.url, tmp_path)
    assert finished.output == "0 7 True\n", finished
    assert sorted(whose(letter_api)["child"]) == [0, 0, 1, 1, 2, 2]


def test_a_child_that_has_not_used_its_client_leaves_at_once(letter_api: Any, tmp_path: Any) -> None:
    hold = Hold()
    letter_api.rule = lambda request: hold
    code = """
    letter = Letter('k', API, flush_interval=0, exit_timeout=50)
    work(letter, 3, "parent")
    began = time.monotonic()
    for turn in range(20):
        pid = os.fork()
        if not pid:
            os._exit(0)
        os.waitpid(pid, 0)
    import subprocess
    subprocess.run([sys.executable, "-c", ""], preexec_fn=lambda: None)
    print(time.monotonic() - began < 20)
    sys.stdout.flush()
    os.kill(os.getpid(), signal.SIGKILL)
    """
    with start(code, letter_api.url, tmp_path) as program:
        assert program.finish().output == "True\n"
    hold.release()
    letter_api.rule = None
    assert not program.left_behind()


def test_os_exit_takes_no_longer_than_the_end_of_a_process_may(letter_api: Any, tmp_path: Any) -> None:
    hold = Hold()
    letter_api.rule = lambda request: hold
    code = """
    letter = Letter('k', API, flush_interval=0, exit_timeout=1)
    work(letter, 3)
    began = time.monotonic()
    import atexit
    atexit.register(lambda: (os.write(1, f"{time.monotonic() - began < 1.9}\\n".encode()), os._exit(3)))
    """
    finished = run(code, letter_api.url, tmp_path)
    hold.release()
    assert finished.code == 3 and "True\n" in finished.output and "3 events given up" in finished.output, finished


def test_os_exit_is_left_alone_where_it_is_asked_for_and_in_a_signal_handler(letter_api: Any, tmp_path: Any) -> None:
    code = """
    options = {"flush_interval": 3600}
    off = Letter('k', API, send_on_os_exit=False, **options)
    on = Letter('k', API, **options)

    def job(letter, who, leave):
        pid = os.fork()
        if not pid:
            work(letter, 1, who)
            leave()
        os.waitpid(pid, 0)

    before = os._exit
    def off_leaves():
        assert os._exit is before
        os._exit(0)
    def by_signal():
        signal.signal(signal.SIGALRM, lambda *_: os._exit(0))
        os.kill(os.getpid(), signal.SIGALRM)
        stay()
    job(off, "off", off_leaves)
    job(on, "handler", by_signal)
    job(on, "on", lambda: os._exit(0))
    assert not off.stats()["adopted"]
    os.kill(os.getpid(), signal.SIGKILL)  # so that the family delivers nothing
    """
    with start(code, letter_api.url, tmp_path) as program:
        assert program.finish().output == ""
    assert whose(letter_api) in ({"on": [0]}, {"on": [0], "handler": [0]})  # of a dead sibling's the next child sends


JOBS = """
import os
from letterapp import Letter
letter = Letter("k", os.environ["TEST_API"], flush_interval=10)
def job(serial):
    letter.track("rq", "Worked", {"serial": serial})
"""


@needs("rq")
@pytest.mark.skipif(shutil.which("redis-server") is None, reason="needs redis-server")
@pytest.mark.parametrize("worker", ["worker", "worker-pool", "SpawnWorker", "SimpleWorker"])
def test_rqs_work_horses(worker: str, letter_api: Any, tmp_path: Path) -> None:
    from redis import Redis
    from rq import Queue

    (tmp_path / "jobs.py").write_text(JOBS)
    port = free_port()
    env = environment(letter_api.url)
    env["PYTHONPATH"] = os.pathsep.join([str(tmp_path), env["PYTHONPATH"]])
    flags = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(tmp_path)]
    with Program(["redis-server", *flags], env, tmp_path):
        redis = Redis(port=port)
        assert eventually(lambda: _answers(redis), bool)
        queue = Queue(connection=redis)
        jobs = 4 if worker == "SpawnWorker" else 20  # each is a new interpreter there
        for serial in range(jobs):
            queue.enqueue("jobs.job", serial)
        is_class = worker.endswith("Worker")
        rq = [sys.executable, "-m", "rq.cli", "worker" if is_class else worker]
        rq += ["--burst", "--url", f"redis://127.0.0.1:{port}"]
        rq += ["--num-workers", "2"] if worker == "worker-pool" else []
        rq += ["--worker-class", f"rq.worker.{worker}"] if is_class else []
        with Program(rq, env, tmp_path) as program:
            finished = program.finish()
        assert finished.code == 0 and "Traceback" not in finished.output, finished
        redis.close()
    assert sorted(whose(letter_api).get("rq", [])) == list(range(jobs)), finished


def _answers(redis: Any) -> bool:
    try:
        return bool(redis.ping())
    except OSError:
        return False
    except Exception as problem:
        return "ConnectionError" not in type(problem).__name__ and bool(1 / 0)


FORKING = """
import socketserver
from http.server import BaseHTTPRequestHandler, HTTPServer

letter = Letter('k', API, flush_interval=10)

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        serial = int(self.path.rpartition("?")[2])
        letter.track("request", "Worked", {"serial": serial})
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")
    def log_message(self, *_): ...

class Server(socketserver.ForkingMixIn, HTTPServer): ...

server = Server(("127.0.0.1", int(sys.argv[1])), Handler)
print("ready")
sys.stdout.flush()
server.serve_forever()
"""


def test_the_children_of_a_forking_server(letter_api: Any, tmp_path: Path) -> None:
    port = free_port()
    with start(FORKING, letter_api.url, tmp_path, str(port)) as program:
        assert eventually(lambda: program.output, lambda text: "ready" in text) == "ready\n"
        for serial in range(40):
            assert get(f"http://127.0.0.1:{port}/?{serial}") == "ok"
        assert letter_api.wait_for(40), program.output
        program.signal(signal.SIGTERM)
        program.finish()
    assert sorted(whose(letter_api)["request"]) == list(range(40))


@needs("pytest_forked")
def test_pytest_forked(letter_api: Any, tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        JOBS + "import pytest\n@pytest.mark.parametrize('serial', range(5))\ndef test_it(serial): job(serial)\n"
    )
    flags = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--forked", "test_it.py"]
    with Program([sys.executable, *flags], environment(letter_api.url), tmp_path) as program:
        program.finish()
    # (1.7.5 with pytest 9 says of every test that it failed, an empty one too.)
    assert sorted(whose(letter_api).get("rq", [])) == list(range(5))


SPARK = (
    JOBS
    + """
from pyspark.serializers import read_int, write_int

def main(infile, outfile):  # what a task is, in the place of `pyspark.worker`
    job(read_int(infile))
    write_int(os.getpid(), outfile)
    outfile.flush()
"""
)


@needs("pyspark")
@pytest.mark.parametrize("reused", [False, True], ids=["a worker a task", "a worker for all tasks"])
def test_pysparks_daemon(reused: bool, letter_api: Any, tmp_path: Path) -> None:
    # As a JVM drives it: the port on its standard output, a connection for a worker, and the end of its standard input
    # for the end, at which it kills its workers by SIGHUP. A worker for all tasks has no other end, so it has a relay.
    (tmp_path / "pyspark_job.py").write_text(SPARK.replace("flush_interval=10", f"flush_interval=10, relay={reused}"))
    runtime = Runtime(letter_api)
    env = environment(letter_api.url, PYTHON_WORKER_FACTORY_SECRET="secret", XDG_RUNTIME_DIR=str(runtime.path))
    env["PYTHONPATH"] = os.pathsep.join([str(tmp_path), env["PYTHONPATH"]])
    env.update({"SPARK_REUSE_WORKER": "1"} if reused else {})
    command = [sys.executable, "-m", "pyspark.daemon", "pyspark_job"]
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
    assert sorted(whose(letter_api)["rq"]) == [0, 1, 2]


@needs("daemon")
def test_a_daemon_keeps_what_was_tracked_before_it_became_one(letter_api: Any, tmp_path: Path) -> None:
    # It forks twice, leaves by `os._exit` both times, and closes every descriptor that it inherited.
    code = """
    import daemon
    letter = Letter('k', API, flush_interval=10)
    work(letter, 5, "before")
    with daemon.DaemonContext(working_directory=os.getcwd()):
        work(letter, 5, "after")
    """
    with start(code, letter_api.url, tmp_path) as program:
        finished = program.finish()
        assert letter_api.wait_for(10), finished
    assert whose(letter_api) == {"before": list(range(5)), "after": list(range(5))}


TWISTED = """
import os
from twisted.application import service
from twisted.internet import task
from letterapp import Letter

letter = Letter("k", os.environ["TEST_API"], flush_interval=10)
serials = iter(range(10**6))

def track():
    serial = next(serials)
    letter.track("twisted", "Worked", {"serial": serial})
    os.write(1, f"{serial}\\n".encode())

task.LoopingCall(track).start(0.01)
application = service.Application("letters")
"""


@needs("twisted")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
def test_twisteds_reactor_ends_by_a_signal_s_default_action(number: int, letter_api: Any, tmp_path: Path) -> None:
    (tmp_path / "application.py").write_text(TWISTED)
    twistd = [sys.executable, "-c", "from twisted.scripts.twistd import run; run()"]
    flags = ["-n", "--pidfile=", "-l", str(tmp_path / "log"), "-y", "application.py"]
    with Program([*twistd, *flags], environment(letter_api.url), tmp_path) as program:
        assert eventually(lambda: program.output, lambda text: "20\n" in text), program.output
        program.signal(number)
        finished = program.finish()
    assert finished.code == -number, finished
    tracked = [int(line) for line in finished.output.split()]
    assert len(tracked) > 20 and set(tracked) <= set(whose(letter_api)["twisted"]), finished


# One budget a process.


def test_an_end_takes_one_exit_timeout_however_deep_the_process_is(letter_api: Any, tmp_path: Any) -> None:
    hold = Hold()
    letter_api.rule = lambda request: hold
    code = """
    letter = Letter('k', API, flush_interval=3600, exit_timeout=1, on_error=lambda error: None)
    for depth in range(3):
        work(letter, 1, f"depth {depth}")
        pid = os.fork()
        if pid:
            os.waitpid(pid, 0)
            os.kill(os.getpid(), signal.SIGKILL)
    work(letter, 1, "deepest")
    began = time.monotonic()
    import atexit, threading
    # Once all exit callbacks have been called, the parents' too, which a forked child inherits.
    threading._register_atexit if hasattr(threading, "_register_atexit") else None
    class Last:
        def __del__(self, write=os.write, clock=time.monotonic):
            write(1, f"{clock() - began < 1.8}\\n".encode())
    sys.modules["last"] = Last()
    """
    with start(code, letter_api.url, tmp_path) as program:
        program.finish()
        assert eventually(lambda: program.output, lambda text: "\n" in text) == "True\n"
    hold.release()


def test_multiprocessing_s_registry_does_not_grow_with_nested_processes(letter_api: Any, tmp_path: Any) -> None:
    code = """
    import multiprocessing
    from multiprocessing import util
    context = multiprocessing.get_context("fork")
    letter = Letter('k', API)

    def nest(depth):
        work(letter, 1, f"depth {depth}")
        if depth:
            process = context.Process(target=nest, args=(depth - 1,))
            process.start()
            process.join()
        else:
            mine = [key for key, value in util._afterfork_registry.items() if "letterapp" in value.__module__]
            print(len(mine))
            sys.stdout.flush()

    nest(6)
    """
    finished = run(code, letter_api.url, tmp_path)
    assert finished.output == "1\n", finished
    assert whose(letter_api) == {f"depth {depth}": [0] for depth in range(7)}


# Ctrl-C.


def test_a_program_that_ctrl_c_ends_dies_of_it(letter_api: Any, tmp_path: Any) -> None:
    code = """
    letter = Letter('k', API)
    work(letter, 1)
    os.kill(os.getpid(), signal.SIGINT)
    stay()
    """
    finished = run(code, letter_api.url, tmp_path)
    assert finished.code == -signal.SIGINT and "KeyboardInterrupt" in finished.output, finished
    assert whose(letter_api) == {"program": [0]}
    handled = """
    letter = Letter('k', API)
    work(letter, 1)
    try:
        os.kill(os.getpid(), signal.SIGINT)
        stay()
    except KeyboardInterrupt:
        pass
    """
    assert run(handled, letter_api.url, tmp_path).code == 0


def test_a_second_ctrl_c_during_the_end_tells_what_is_lost(letter_api: Any, tmp_path: Any) -> None:
    hold = Hold()
    letter_api.rule = lambda request: hold
    code = """
    letter = Letter('k', API, exit_timeout=50)
    work(letter, 10)
    os.kill(os.getpid(), signal.SIGINT)
    stay()
    """
    with start(code, letter_api.url, tmp_path) as program:
        assert hold.arrived.wait(DEADLINE)
        assert eventually(lambda: "KeyboardInterrupt" in program.output, bool)
        program.signal(signal.SIGINT)
        finished = program.finish(20)
    hold.release()
    assert "10 events given up" in finished.output, finished


def test_a_family_that_ends_together_while_the_api_is_down_tells_each_event(tmp_path: Any) -> None:
    code = """
    def told(error):
        if error.lost:
            os.write(1, f"told {error.lost}\\n".encode())

    signal.signal(signal.SIGINT, signal.default_int_handler)
    letter = Letter('k', API, on_error=told, exit_timeout=1, max_retries=100)
    for n in range(3):
        if not os.fork():
            break
    work(letter, 10, str(os.getpid()))
    os.write(1, b"ready\\n")
    stay()
    """
    with start(code, DOWN, tmp_path) as program:
        assert eventually(lambda: program.output.count("ready"), lambda count: count == 4) == 4
        program.signal_group(signal.SIGINT)
        program.finish()
        assert not program.left_behind()
        assert sum(int(line.split()[1]) for line in program.output.splitlines() if line.startswith("told")) == 40


def test_what_a_killed_child_left_after_a_close_that_gave_up_is_delivered(letter_api: Any, tmp_path: Any) -> None:
    code = """
    letter = Letter('k', API, flush_interval=3600, max_retries=0, on_error=lambda error: None)
    pid = os.fork()
    if not pid:
        os.kill(os.getpid(), signal.SIGSTOP)
        work(letter, 5, "child")
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, os.WUNTRACED)
    work(letter, 5, "parent")
    assert not letter.close(0.2)
    os.kill(pid, signal.SIGCONT)
    os.waitpid(pid, 0)
    print("closed")
    sys.stdout.flush()
    while letter._delivery._batches.lock.is_taken():  # until the request that nobody waits for is over
        time.sleep(0.01)
    """
    hold = Hold()
    letter_api.plan(hold)
    with start(code, letter_api.url, tmp_path) as program:
        assert eventually(lambda: program.output, lambda text: "closed" in text) == "closed\n"
        hold.release()
        finished = program.finish()
    assert finished.code == 0 and whose(letter_api)["child"] == list(range(5)), finished


# Clients that come late.


@pytest.mark.parametrize("where", ["here", "in a forked child"])
def test_the_first_client_of_a_process_may_be_made_by_an_exit_callback(
    where: str, letter_api: Any, tmp_path: Any
) -> None:
    code = """
    import atexit

    def late():
        if sys.argv[1] != "here":
            pid = os.fork()
            if pid:
                os.waitpid(pid, 0)
                return
        letter = Letter('k', API, flush_interval=3600)
        work(letter, 5)

    atexit.register(late)
    """
    if where != "here" and sys.version_info[:2] == (3, 12):
        pytest.skip("3.12 forks nowhere at its end")
    finished = run(code, letter_api.url, tmp_path, where)
    assert finished.code == 0 and not finished.output, finished
    assert whose(letter_api) == {"program": list(range(5))}


# exit_signals.


def test_exit_signals_keep_no_application_from_starting(letter_api: Any, tmp_path: Any) -> None:
    code = """
    made = []
    thread = threading.Thread(target=lambda: made.append(
        Letter('k', API, exit_signals=(signal.SIGTERM,), flush_interval=3600)))
    thread.start()
    thread.join()
    (letter,) = made
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    work(letter, 3)
    assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    os.kill(os.getpid(), signal.SIGTERM)
    stay()
    """
    finished = run(code, letter_api.url, tmp_path)
    assert finished.code == -signal.SIGTERM, finished
    assert finished.output.count("only the main thread") == 1 and "Traceback" not in finished.output, finished
    assert whose(letter_api) == {"program": [0, 1, 2]}


def test_a_handler_that_replaced_ours_is_left_alone(letter_api: Any, tmp_path: Any) -> None:
    code = """
    letter = Letter('k', API, exit_signals=(signal.SIGTERM,))
    servers_own = lambda *_: None
    signal.signal(signal.SIGTERM, servers_own)
    work(letter, 1)
    letter.flush()
    print(signal.getsignal(signal.SIGTERM) is servers_own)
    """
    assert run(code, letter_api.url, tmp_path).output == "True\n"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_signals_that_no_process_can_handle_are_an_error_of_the_options(number: Any) -> None:
    with pytest.raises(LetterError, match="no process can handle"):
        Letter("k", exit_signals=(number,))


def _can_be_first() -> bool:
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        return False
    return subprocess.run(["unshare", "--pid", "--fork", "true"], capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not hasattr(os, "geteuid") or not _can_be_first(), reason="needs root and process namespaces")
def test_the_first_process_of_a_container_goes_on_after_a_signal_that_the_kernel_ignores(
    letter_api: Any, tmp_path: Path
) -> None:
    code = """
    letter = Letter('k', API, exit_signals=(signal.SIGTERM,))
    work(letter, 5)
    assert os.getpid() == 1
    os.kill(1, signal.SIGTERM)
    work(letter, 5, start=5)
    assert letter.flush()
    os.kill(1, signal.SIGTERM)
    work(letter, 5, start=10)
    print(letter.stats()["mode"], letter.stats()["lost"])
    """
    from textwrap import dedent

    from harness import PRELUDE

    (tmp_path / "program.py").write_text(PRELUDE + dedent(code))
    command = ["unshare", "--pid", "--fork", sys.executable, "program.py"]
    with Program(command, environment(letter_api.url), tmp_path) as program:
        finished = program.finish()
    assert finished.code == 0 and finished.output == "thread {}\n", finished
    assert whose(letter_api) == {"program": list(range(15))}


# A clock that stands still, as in a program's own tests.


@needs("freezegun")
@pytest.mark.parametrize("moment", ["2001-01-01", "2101-01-01"])
def test_an_end_while_the_clock_stands_still(moment: str, letter_api: Any, tmp_path: Any) -> None:
    # freezegun puts its own function in the place of `time.monotonic` in every module that has it.
    code = f"""
    from freezegun import freeze_time
    letter = Letter('k', API, flush_interval=3600, exit_timeout=30)
    work(letter, 3, "before")
    freeze_time("{moment}").start()
    work(letter, 3, "frozen")
    """
    finished = run(code, letter_api.url, tmp_path)
    assert (finished.code, finished.output) == (0, ""), finished
    assert {who: sorted(set(serials)) for who, serials in whose(letter_api).items()} == {
        "before": [0, 1, 2],
        "frozen": [0, 1, 2],
    }
    assert next(item for item in letter_api.events if item["userId"] == "frozen")["timestamp"].startswith(moment)


@needs("freezegun")
@pytest.mark.parametrize("moment", ["2001-01-01", "2101-01-01"])
def test_an_end_while_the_clock_stands_still_and_the_api_is_silent(moment: str, letter_api: Any, tmp_path: Any) -> None:
    letter_api.rule = lambda request: Hold()
    code = f"""
    from freezegun import freeze_time
    letter = Letter('k', API, flush_interval=0, exit_timeout=1, timeout=50)
    freeze_time("{moment}").start()
    work(letter, 3)
    """
    finished = run(code, letter_api.url, tmp_path)
    assert finished.code == 0 and "3 events given up" in finished.output, finished
    assert finished.seconds < 20


def test_what_a_process_leaves_to_another_it_does_not_take_back(tmp_path: Any) -> None:
    # It is held up in a later exit callback, with its sender's thread still there, while the other comes to its end.
    code = """
    import atexit

    def told(error):
        os.write(1, f"{who} told {error.lost}\\n".encode())

    who, (over, is_over), (gone, is_gone) = "other", os.pipe(), os.pipe()
    letter = Letter('k', API, on_error=told, exit_timeout=1.5, max_retries=None)
    letter.stats()
    if not os.fork():
        who = "leaver"
        os.close(is_gone)

        def stay_a_while():
            os.write(is_over, b"1")
            os.read(gone, 1)

        atexit.register(stay_a_while)  # called after the client's own, which is registered at its first use
        work(letter, 1)
        sys.exit()
    os.close(gone)
    os.read(over, 1)
    """
    finished = run(code, DOWN, tmp_path)
    assert finished.output == "other told 1\n", finished


def test_a_signal_in_the_middle_of_a_request_that_the_call_itself_sends_tells_what_is_lost(
    letter_api: Any, tmp_path: Any
) -> None:
    hold = Hold()
    letter_api.rule = lambda request: hold
    code = """
    def told(error):
        os.write(1, f"told {error.cause} {error.lost}\\n".encode())

    letter = Letter('k', API, flush_at=2, flush_interval=3600, exit_signals=(signal.SIGTERM,), on_error=told)
    letter._delivery._worker._start = lambda send: False  # as where no thread can run
    work(letter, 2)
    """
    with start(code, letter_api.url, tmp_path, PYTHONWARNINGS="ignore") as program:
        assert hold.arrived.wait(DEADLINE)
        program.signal(signal.SIGTERM)
        finished = program.finish()
    hold.release()
    assert (finished.code, finished.output) == (-signal.SIGTERM, "told exit 2\n"), finished


def test_a_second_end_leaves_a_slot_alone_that_is_another_process_s_by_now(letter_api: Any, tmp_path: Any) -> None:
    code = """
    from letterapp._delivery import shutdown
    from letterapp._storage.memory import _ALIVE

    def another(then):
        "A process that has used its client, and does ``then`` when it is told to."
        (here, is_here), (go, is_over) = os.pipe(), os.pipe()
        def job():
            os.close(is_over)
            letter.stats()
            os.write(is_here, b"1")
            os.read(go, 1)
            return then()
        pid = child(job)
        os.read(here, 1)
        return pid, is_over

    def ended(process):
        pid, is_over = process
        os.close(is_over)
        return os.waitpid(pid, 0)[1]

    def slot():
        return letter._delivery._queue._ring.slot

    letter = Letter('k', "http://127.0.0.1:9", exit_timeout=0.2, max_retries=None, on_error=lambda error: None)
    work(letter, 1)
    first = another(lambda: 0 if not letter.close(0) and letter.stats()["adopted"] == 1 else 1)
    shutdown.shut_down_process()  # what waits is left to that one,
    assert ended(first) == 0  # which gives it up, and so the slot is free
    owners = slot().base
    second = another(lambda: 0 if slot().base == owners and slot()._shared_words[_ALIVE] else 1)
    shutdown.shut_down_process()
    print(ended(second))
    os.kill(os.getpid(), signal.SIGKILL)
    """
    with start(code, letter_api.url, tmp_path) as program:
        assert program.finish().output == "0\n", program.output
