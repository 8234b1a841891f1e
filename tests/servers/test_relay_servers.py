"""The relay with real servers: gunicorn, uWSGI and uvicorn, however they and their workers end.

Lives here: starting each of them with a client whose relay keeps all it gets until its clients have gone, and the one
ledger for all. So what arrives is what the relay had and sent at the end, whether any exit code ran or not.

A process writes a line after each call that has returned. What was written must arrive, once, however the process
ended; the servers have nothing to complain about; one relay serves at a time, and none is left.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from itertools import count
from pathlib import Path
from typing import Any, Callable, Iterator, Sequence

import psutil
import pytest
from harness import DEADLINE, Finished, Program, WebServer, environment, eventually, get, needs, whose
from relayed import Runtime, own_runtime  # noqa: F401  (a fixture that is there for all)
from uwsgi_server import LAUNCHER, threadless  # noqa: F401  (a fixture)
from webapps import Gate, without_servers_own

from letterapp.testing import Hold
from stress.ports import free_port

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs Unix")


# Nothing leaves this client's relay before somebody hurries it or its last client is gone. A line in one piece, and on
# a line of its own, whatever the other processes write.
CLIENT = """
import os, socket, sys
from letterapp import Letter

letter = Letter(
    "test-key", os.environ["TEST_API"],
    relay=True, flush_interval=600, flush_at=10_000, exit_timeout=30, timeout=30,
)

def threads_of_letterapp():
    found = 0
    for frame in sys._current_frames().values():
        while frame.f_back is not None:
            frame = frame.f_back
        found += f"{os.sep}letterapp{os.sep}_" in frame.f_code.co_filename
    return found

def track(who, serial):
    letter.track(who, "Worked", {"serial": serial})
    os.write(1, f"\\ntracked {who} {serial} in {os.getpid()}\\n".encode())
    if serial % 4 == 0:
        stats = letter.stats()
        own = stats["accepted"] - stats["relayed"]
        os.write(1, f"\\nhow: {stats['mode']}, {own} own, {threads_of_letterapp()} threads\\n".encode())

def stay():
    with socket.create_connection(("127.0.0.1", int(os.environ["TEST_GATE"]))) as gate:
        gate.recv(1)

"""

APPLICATION = (
    CLIENT
    + """
track("import", int.from_bytes(os.urandom(6), "big"))  # a reload of uWSGI keeps the process id
os.write(1, f"\\nexecutable {sys.executable}\\n".encode())

def application(environ, start_response):
    track("request", int(environ["QUERY_STRING"]))
    if environ["PATH_INFO"] == "/stay":
        stay()
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]
"""
)

ASGI = (
    CLIENT
    + """
async def application(scope, receive, send):
    if scope["type"] == "http":
        track("request", int(scope["query_string"]))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ok"})
"""
)

COMPLAINTS = (
    *("Traceback", "Exception ignored", "BrokenPipe", "Broken pipe", "can only join a child process"),
    *("letterapp:", "letterapp relay [", "NO MERCY", "Fatal"),
)


class Service:
    """A program and its relay. What its processes said that they have tracked, and what must be true at its end."""

    def __init__(self, program: Program, api: Any, runtime: Runtime, port: int = 0) -> None:
        self.program = program
        self._api = api
        self._runtime = runtime
        self._port = port
        self._serials = count()

    @property
    def output(self) -> str:
        return self.program.output

    def tracked(self) -> list[tuple[str, int]]:
        return [(who, int(serial)) for who, serial in re.findall(r"^tracked (\S+) (\d+) in \d+$", self.output, re.M)]

    def at_work(self) -> set[int]:
        """The processes that have tracked something other than what they do while they import the application."""
        return {int(pid) for pid in re.findall(r"^tracked (?!import)\S+ \d+ in (\d+)$", self.output, re.M)}

    # Requests.

    def ask(self, path: str = "/") -> bool:
        """One request; False when nobody answered it, as while a worker is replaced."""
        try:
            return get(f"http://127.0.0.1:{self._port}{path}?{next(self._serials)}") == "ok"
        except (OSError, HTTPException):
            return False

    def put_to_work(self, workers: int = 2, old: set[int] = frozenset()) -> set[int]:  # type: ignore[assignment]
        """Ask until as many workers, none of them ``old``, have had requests; return who they are."""

        def look() -> set[int]:
            with ThreadPoolExecutor(4) as visitors:
                list(visitors.map(lambda _: self.ask(), range(8)))
            return self.at_work() - old

        found: set[int] = eventually(look, lambda pids: len(pids) >= workers)
        assert len(found) >= workers, self.output
        return found

    def wait_for_more(self, events: int) -> None:
        target = len(self.tracked()) + events
        assert eventually(lambda: len(self.tracked()) >= target, bool), self.output

    # What must be true of it.

    def one_relay(self) -> psutil.Process:
        """The one relay, which all events went to; its program is no child of a server and has left no dead one."""
        # Not asked at the end: a gevent worker still answers requests when its exit code has begun to settle all.
        how = set(re.findall(r"^how: (.*)$", self.output, re.M))
        assert how == {"relay, 0 own, 0 threads"}, self.output
        relay = self._runtime.relay()
        family = self.program.descendants()
        assert relay.pid not in [process.pid for process in family]
        assert eventually(lambda: _zombies(self.program), lambda dead: not dead, 20) == []
        return relay

    def ended(self, code: int | None = 0) -> Finished:
        """Wait for the end; it must be quiet and whole, and leave nothing. ``code`` is None for whatever it is."""
        finished = self.program.finish()
        assert not self.program.left_behind(), finished
        assert code is None or finished.code == code, finished
        self.left_nothing()
        return finished

    def left_nothing(self) -> None:
        self.port_is_free()
        assert not self._runtime.left_behind(), self.output
        said = without_servers_own(self.output)
        for complaint in COMPLAINTS:
            assert complaint not in said, said
        self.all_arrived()

    def port_is_free(self) -> None:
        if self._port:
            holders = [held for held in psutil.net_connections("tcp") if held.laddr == ("127.0.0.1", self._port)]
            assert not [held for held in holders if held.status == psutil.CONN_LISTEN], holders
            socket.create_server(("127.0.0.1", self._port)).close()

    def all_arrived(self) -> None:
        """What was tracked by the calls that returned has arrived, once."""
        came = [(who, serial) for who, serials in whose(self._api).items() for serial in serials]
        assert len(came) == len(set(came)), self.output
        lost = set(self.tracked()) - set(came)
        assert not lost, (sorted(lost), self.output)


def gone(pids: set[int]) -> bool:
    return bool(eventually(lambda: not any(map(psutil.pid_exists, pids)), bool))


def _zombies(program: Program) -> list[int]:
    dead = []
    for process in program.descendants():
        try:
            if process.status() == psutil.STATUS_ZOMBIE:
                dead.append(process.pid)
        except psutil.NoSuchProcess:
            pass
    return dead


class Load:
    """Visitors who ask until the ``with`` is left."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._is_over = threading.Event()
        self._visitors = [threading.Thread(target=self._visit, daemon=True) for _ in range(3)]

    def _visit(self) -> None:
        while not self._is_over.is_set():
            # With a pace: flat out they fill the socket of a relay that is held up for half a second.
            self._is_over.wait(0.005 if self._service.ask() else 0.02)

    def __enter__(self) -> None:
        for visitor in self._visitors:
            visitor.start()
        self._service.wait_for_more(20)

    def __exit__(self, *_: Any) -> None:
        self._is_over.set()
        for visitor in self._visitors:
            visitor.join(60)
            assert not visitor.is_alive()


@pytest.fixture
def gate() -> Iterator[Gate]:
    with Gate() as gate:
        yield gate


@pytest.fixture
def serve(letter_api: Any, runtime: Runtime, gate: Gate, tmp_path: Path) -> Iterator[Callable[..., Service]]:
    """Starts programs, and ends what is left of them."""
    running: list[Program] = []

    def start(
        source: str, *command: str, port: int = 0, package: str = "", run: Sequence[str] = ("-m",), **env: str
    ) -> Service:
        (tmp_path / "application.py").write_text(source)
        env = environment(letter_api.url, **gate.environment, **env)
        if package:
            env["PYTHONPATH"] = os.pathsep.join([package, env["PYTHONPATH"]])
        line = [sys.executable, *run, *command]
        running.append(WebServer(line, env, tmp_path, port) if port else Program(line, env, tmp_path))
        return Service(running[-1], letter_api, runtime, port)

    yield start
    gate.open()
    letter_api.closing.set()
    for program in running:
        program.__exit__()


@pytest.fixture
def gunicorn(serve: Any) -> Callable[..., Service]:
    def start(worker: str = "gthread", preload: bool = True) -> Service:
        port = free_port()
        flags = ["-b", f"127.0.0.1:{port}", "-k", worker, "-w", "2", "--threads", "4", "--timeout", "60"]
        flags += ["--preload"] if preload else []
        service: Service = serve(APPLICATION, "gunicorn", "application", *flags, port=port)
        service.put_to_work()
        return service

    return start


# gunicorn.

each_worker = pytest.mark.parametrize("worker", ["gthread", pytest.param("gevent", marks=needs("gevent"))])
preloaded_or_not = pytest.mark.parametrize("preload", [True, False], ids=["preloaded", "not preloaded"])


@needs("gunicorn")
@each_worker
@preloaded_or_not
def test_gunicorns_graceful_stop(worker: str, preload: bool, gunicorn: Any) -> None:
    service = gunicorn(worker, preload)
    service.one_relay()
    with Load(service):
        service.program.signal(signal.SIGTERM)
        service.ended()


@needs("gunicorn")
@each_worker
@preloaded_or_not
def test_gunicorns_reload_and_quick_stop(worker: str, preload: bool, gunicorn: Any) -> None:
    service = gunicorn(worker, preload)
    relay, old = service.one_relay(), service.at_work()
    with Load(service):
        service.program.signal(signal.SIGHUP)
        assert gone(old), service.output
        service.put_to_work(old=old)
        # Without preload there is a moment without any worker's lease, if all leave before the new ones have theirs.
        assert not preload or service.one_relay() == relay
        service.one_relay()
    service.put_to_work(old=old)
    service.program.signal(signal.SIGQUIT)
    service.ended()


@needs("gunicorn")
@each_worker
@preloaded_or_not
def test_gunicorns_workers_are_killed_under_load(worker: str, preload: bool, gunicorn: Any) -> None:
    service = gunicorn(worker, preload)
    relay, old = service.one_relay(), service.at_work()
    with Load(service):
        for pid in old:
            service.program.signal(signal.SIGKILL, pid)
            service.wait_for_more(10)
        service.put_to_work(old=old)
    assert service.one_relay() == relay or not preload
    service.program.signal(signal.SIGTERM)
    service.ended()


def to_the_group(number: int) -> Callable[[Service], None]:
    return lambda service: service.program.signal_group(number)


def to_the_control_group(service: Service) -> None:
    """What systemd does to stop a service: SIGTERM to each process of it, and the relay's is one."""
    for process in [*service.program.descendants(), service.one_relay(), psutil.Process(service.program.pid)]:
        try:
            process.terminate()
        except psutil.NoSuchProcess:
            pass  # the master has ended it already


STOPS = {
    "SIGTERM to the group": to_the_group(signal.SIGTERM),
    "Ctrl-C": to_the_group(signal.SIGINT),
    "SIGTERM to all and the relay": to_the_control_group,
}
each_stop = pytest.mark.parametrize("stop", STOPS.values(), ids=STOPS.keys())


@needs("gunicorn")
@each_worker
@each_stop
def test_gunicorn_is_stopped_with_all_its_processes(worker: str, stop: Any, gunicorn: Any) -> None:
    service = gunicorn(worker)
    service.one_relay()
    with Load(service):
        stop(service)
        service.ended(None)


@needs("gunicorn")
@each_worker
@preloaded_or_not
def test_gunicorns_master_is_killed_and_its_workers_end(worker: str, preload: bool, gunicorn: Any) -> None:
    service = gunicorn(worker, preload)
    with Load(service):
        service.program.signal(signal.SIGKILL)
        service.ended(-signal.SIGKILL)


@needs("gunicorn")
def test_a_relay_that_still_sends_keeps_no_port_of_the_server(gunicorn: Any, letter_api: Any) -> None:
    service = gunicorn()
    relay = service.one_relay()
    hold = Hold()
    letter_api.plan(hold)
    service.program.signal_group(signal.SIGKILL)
    service.program.finish()
    assert not service.program.left_behind()
    assert hold.arrived.wait(DEADLINE)
    service.port_is_free()
    assert relay.is_running()
    hold.release()
    service.left_nothing()


# uWSGI.

# Each is one line of uWSGI's documentation, but the last, which is a version whose workers run no threads.
STARTS: dict[str, Sequence[str]] = {
    "no flags": (),
    "threads 2": ("--threads", "2"),
    "lazy-apps": ("--lazy-apps",),
    "without threads": (),
}
every_start = pytest.mark.parametrize("start", STARTS)


@pytest.fixture
def uwsgi(serve: Any, tmp_path: Path, request: pytest.FixtureRequest) -> Callable[..., Service]:
    def start(start: str = "no flags", *more: str) -> Service:
        (tmp_path / "launcher.py").write_text(LAUNCHER)
        port = free_port()
        package = request.getfixturevalue("threadless") if start == "without threads" else ""
        flags = ["--http-socket", f"127.0.0.1:{port}", "--die-on-term", "--master", "--processes", "2", "--need-app"]
        # A reload executes what uWSGI takes for its binary, which may know nothing of this environment's packages.
        flags += ["--binary-path", sys.executable, "--wsgi-file", "application.py", *STARTS[start], *more]
        service: Service = serve(APPLICATION, "launcher.py", *flags, port=port, package=package, run=())
        service.put_to_work()
        return service

    return start


def stop_uwsgi(service: Service) -> None:
    """SIGTERM, which uWSGI ignores until its master's loop runs: so it is told again until it says that it heard."""
    for _ in range(60):
        service.program.signal(signal.SIGTERM)
        if eventually(lambda: "received...killing workers" in service.output, bool, 1.0):
            return
    raise AssertionError(service.output)


@needs("pyuwsgi")
@every_start
def test_uwsgi_is_stopped_under_load(start: str, uwsgi: Any) -> None:
    service = uwsgi(start)
    service.one_relay()
    with Load(service):
        stop_uwsgi(service)
        service.ended()


@needs("pyuwsgi")
@every_start
def test_uwsgi_is_stopped_right_after_a_response(start: str, uwsgi: Any) -> None:
    service = uwsgi(start)
    service.one_relay()
    assert service.ask()
    stop_uwsgi(service)
    service.ended()


@needs("pyuwsgi")
@every_start
def test_uwsgi_is_stopped_in_the_middle_of_requests(start: str, uwsgi: Any, gate: Gate) -> None:
    service = uwsgi(start)
    with ThreadPoolExecutor(2) as visitors:
        answers = [visitors.submit(service.ask, "/stay") for _ in range(2)]
        gate.wait_for(2)
        stop_uwsgi(service)
        service.ended()
        assert [answer.result() for answer in answers] == [False, False]


@needs("pyuwsgi")
@every_start
def test_uwsgis_reload(start: str, uwsgi: Any) -> None:
    service = uwsgi(start)
    old = service.at_work()
    for _ in range(2):
        with Load(service):
            service.program.signal(signal.SIGHUP)
            assert gone(old), service.output
            service.put_to_work(old=old)
        service.one_relay()  # the first has left, or was joined by who came after it
        old = service.at_work()
    stop_uwsgi(service)
    service.ended()


@needs("pyuwsgi")
@every_start
@pytest.mark.parametrize("by", ["SIGKILL", "harakiri"])
def test_uwsgis_workers_are_killed_in_the_middle_of_requests(by: str, start: str, uwsgi: Any, gate: Gate) -> None:
    service = uwsgi(start, *(["--harakiri", "1"] if by == "harakiri" else []))
    old = service.at_work()
    with ThreadPoolExecutor(2) as visitors:
        answers = [visitors.submit(service.ask, "/stay") for _ in range(2)]
        gate.wait_for(2)
        if by == "SIGKILL":
            for pid in old:
                service.program.signal(signal.SIGKILL, pid)
        assert [answer.result() for answer in answers] == [False, False], service.output
    gone = {pid for pid in old if eventually(lambda pid=pid: not psutil.pid_exists(pid), bool, 5)}  # type: ignore[misc]
    assert gone, service.output
    gate.open()
    service.put_to_work(old=gone)
    service.one_relay()
    stop_uwsgi(service)
    service.ended()


@needs("pyuwsgi")
@each_stop
def test_uwsgi_is_stopped_with_all_its_processes(stop: Any, uwsgi: Any) -> None:
    service = uwsgi()
    with Load(service):
        stop(service)
        service.ended(None)


@needs("pyuwsgi")
def test_the_relay_of_uwsgi_keeps_no_port(uwsgi: Any, letter_api: Any) -> None:
    service = uwsgi()
    relay = service.one_relay()
    assert "executable" in service.output
    hold = Hold()
    letter_api.plan(hold)
    service.program.signal_group(signal.SIGKILL)
    service.program.finish()
    assert not service.program.left_behind()
    assert hold.arrived.wait(DEADLINE)
    service.port_is_free()
    assert relay.is_running()
    hold.release()
    service.left_nothing()


# uvicorn, on whose SIGTERM no exit code of Python runs, and no lifespan closes the client here.


@needs("uvicorn")
@pytest.mark.parametrize("workers", [1, 2], ids=["alone", "two workers"])
@pytest.mark.parametrize("stop", [to_the_group(signal.SIGTERM), to_the_group(signal.SIGINT)], ids=["SIGTERM", "Ctrl-C"])
def test_uvicorn(stop: Any, workers: int, serve: Any) -> None:
    port = free_port()
    flags = ["--port", str(port), "--no-access-log", "--lifespan", "off", "--workers", str(workers)]
    service = serve(ASGI, "uvicorn", "application:application", *flags, port=port)
    service.put_to_work(workers)
    service.one_relay()
    with Load(service):
        stop(service)
        service.ended(None)


# Celery.

TASKS = """
from celery import Celery, signals
from celery.exceptions import SoftTimeLimitExceeded

app = Celery("application", broker="filesystem://")
app.conf.update(
    broker_transport_options={
        "data_folder_in": "queue", "data_folder_out": "queue", "control_folder": "control", "polling_interval": 0.02,
    },
    broker_connection_retry_on_startup=True,
    worker_enable_remote_control=False,
)
track("import", os.getpid())

@app.task
def work(serial):
    track("task", serial)
    if serial < int(os.environ["TEST_STAYING"]):
        stay()

@app.task(soft_time_limit=0.3)
def work_without_end(first):
    try:
        for serial in range(first, first + 1000):
            track("endless", serial)
        while True:
            letter.stats()
            letter.flush(0.01)
    except SoftTimeLimitExceeded:
        os.write(1, b"\\nstopped\\n")

@signals.worker_ready.connect
def queue(**_):
    for number in range(int(os.environ["TEST_ENDLESS"])):
        work_without_end.delay(1000 * number)
    for serial in range(20):
        work.delay(serial)
"""


@pytest.fixture
def celery(serve: Any, tmp_path: Path) -> Callable[..., Service]:
    def start(client: str = CLIENT, staying: int = 0, endless: int = 0) -> Service:
        (tmp_path / "queue").mkdir()
        flags = ["-A", "application", "worker", "--loglevel", "CRITICAL", "--concurrency", "2"]
        flags += ["--without-gossip", "--without-mingle", "--without-heartbeat"]
        env = {"TEST_STAYING": str(staying), "TEST_ENDLESS": str(endless)}
        service: Service = serve(client + TASKS, "celery", *flags, **env)
        return service

    return start


def have_worked(service: Service, tasks: int = 20) -> set[int]:
    done = lambda: len([who for who, _ in service.tracked() if who == "task"])  # noqa: E731
    assert eventually(done, lambda count: count >= tasks) == tasks, service.output
    return service.at_work()


@needs("celery")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGQUIT, signal.SIGINT], ids=["warm", "cold", "Ctrl-C"])
def test_a_shutdown_of_celery(number: int, celery: Any) -> None:
    service = celery()
    have_worked(service)
    service.one_relay()
    (service.program.signal_group if number == signal.SIGINT else service.program.signal)(number)
    service.ended(None)


@needs("celery")
def test_a_child_of_celery_is_killed_in_the_middle_of_a_task(celery: Any, gate: Gate) -> None:
    service = celery(staying=2)
    gate.wait_for(2)
    children = service.at_work()
    assert len(children) == 2
    service.program.signal(signal.SIGKILL, min(children))
    gate.open()
    have_worked(service)
    service.program.signal_group(signal.SIGKILL)  # a Celery whose child was killed may hang, with or without a client
    service.program.finish()
    assert not service.program.left_behind()
    service.left_nothing()


# Celery raises it in a signal handler, wherever the task is.
@needs("celery")
@pytest.mark.parametrize("client", [CLIENT, CLIENT.replace("relay=True, ", "")], ids=["relay", "without a relay"])
def test_a_soft_time_limit_in_the_middle_of_a_call(client: str, celery: Any) -> None:
    service = celery(client.replace("flush_interval=600, flush_at=10_000, ", ""), endless=6)
    have_worked(service)
    # Nothing orders the last of these before the tasks of the other child.
    assert eventually(lambda: service.output.count("stopped"), lambda count: count >= 6) == 6, service.output
    service.program.signal(signal.SIGTERM)
    service.ended()
