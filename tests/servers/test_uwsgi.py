"""uWSGI: what the application tracks arrives once, with and without threads, preloaded or not, however a worker ends.

uWSGI forks without Python's hooks, its master stands still once the import is over, and before 2.0.27 a thread of a
worker gets one step a request. It runs a worker's exit code only when that worker is between two requests, so each stop
here waits until uWSGI itself calls the workers idle, and what a stop in the middle of a request costs has a test of its
own.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any, Iterator, Sequence

import pytest
from harness import Program, environment, eventually, get, whose

from letterapp.testing import Hold, status
from stress.ports import free_port

pytestmark = pytest.mark.skipif(importlib.util.find_spec("pyuwsgi") is None, reason="pyuwsgi is not installed")

WITHOUT_THREADS = "2.0.26"  # the last version whose workers run no threads unless told to

# How an application with threads is started. Each is one line of uWSGI's documentation.
STARTS: dict[str, Sequence[str]] = {
    "no flags": (),
    "enable-threads": ("--enable-threads",),
    "threads 2": ("--threads", "2"),
    "fork hooks": ("--enable-threads", "--py-call-uwsgi-fork-hooks"),
    "lazy-apps": ("--lazy-apps",),
}
every_start = pytest.mark.parametrize("start", STARTS.keys())

# Two clients, made where the application is imported. What `slow` holds leaves only when something makes it leave:
# its count, or the end of the worker. "/hold" tracks, and stays in the request until the test lets it go.
APPLICATION = """
import json, os, urllib.request, uwsgi
from letterapp import Letter

API = os.environ["TEST_API"]
letters = {
    "quick": Letter("k", API, flush_interval=0.02, exit_timeout=25),
    "slow": Letter("k", API, flush_interval=3600, exit_timeout=25, flush_at=int(os.environ["TEST_FLUSH_AT"])),
}
for name, letter in letters.items():
    letter.track(name + " at import", "Imported", {"serial": os.getpid()})

def application(environ, start_response):
    serials = json.loads("[" + environ["QUERY_STRING"] + "]")
    for serial in serials:
        for name, letter in letters.items():
            letter.track(name, "Worked", {"serial": serial})
    if environ["PATH_INFO"] == "/hold":
        urllib.request.urlopen(API + "/hold/" + str(os.getpid()), b"{}", timeout=60).read()
    modes = {name: letter.stats()["mode"] for name, letter in letters.items()}
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps({"pid": os.getpid(), "modes": modes}).encode()]
"""

# The installed script would do, but not for a copy that lies in a directory of its own.
LAUNCHER = "import sys\nfrom pyuwsgi import run\nsys.exit(run())\n"


class Uwsgi(Program):
    """A running uWSGI with the application above, its workers idle when the constructor returns."""

    def __init__(
        self,
        api: Any,
        cwd: Path,
        *flags: str,
        processes: int = 2,
        flush_at: int = 10_000,
        package: str = "",
        first: str = "",
    ) -> None:
        (cwd / "launcher.py").write_text(LAUNCHER)
        (cwd / "application.py").write_text(first + APPLICATION)
        self.api = api
        self.processes = processes
        self.package = package
        self.has_master = "--no-master" not in flags
        self._serial = 0
        self.port, self._stats_port = free_port(), free_port()
        command = [sys.executable, "launcher.py", "--http-socket", f"127.0.0.1:{self.port}", "--die-on-term"]
        # A reload executes what uWSGI believes to be its binary: the interpreter behind a virtual environment, which
        # knows nothing of the packages in it, unless told otherwise.
        command += ["--binary-path", sys.executable, "--wsgi-file", "application.py", "--need-app"]
        command += ["--processes", str(processes)]
        if self.has_master:
            command += ["--master", "--stats", f"127.0.0.1:{self._stats_port}"]
        command += [flag for flag in flags if flag != "--no-master"]
        env = environment(api.url, TEST_FLUSH_AT=str(flush_at))
        if package:
            env["PYTHONPATH"] = os.pathsep.join([package, env["PYTHONPATH"]])
        super().__init__(command, env, cwd)
        try:
            self.become_idle()
        except BaseException:
            self.__exit__()
            raise

    # What uWSGI says of itself.

    def workers(self) -> list[dict[str, Any]]:
        """The workers as the master's statistics server tells them, none while it does not listen."""
        if self.process.poll() is not None:
            raise AssertionError(f"uWSGI ended by itself:\n{self.output}")
        try:
            with socket.create_connection(("127.0.0.1", self._stats_port), 10) as sock:
                text = b"".join(iter(lambda: sock.recv(65536), b""))
        except OSError:
            return []
        found: list[dict[str, Any]] = json.loads(text)["workers"] if text else []
        return found

    def become_idle(self) -> list[int]:
        """Wait until each worker is between two requests, which is a moment after its last answer; return their ids."""
        if not self.has_master:
            return self._fall_asleep()
        # A worker that is not "accepting" yet may still be importing the application, and it has the master's signal
        # handlers until then: stopped at that moment uWSGI 2.0.30 stands still until its mercy ends.
        rows = eventually(self.workers, lambda rows: bool(rows) and all(map(_is_idle, rows)))
        assert len(rows) == self.processes, self.output
        return [row["pid"] for row in rows]

    def _fall_asleep(self) -> list[int]:
        # Nobody tells without a master. Between the end of an answer and the wait for the next request a thread waits
        # for nothing else, so where all of one that has answered sleep it is idle.
        eventually(lambda: self.process.poll() is not None or "spawned uWSGI worker 1" in self.output, bool)
        self.get()
        assert eventually(self._sleeps, bool)
        return [self.pid]

    def _sleeps(self) -> bool:
        threads = [path.read_text() for path in Path(f"/proc/{self.pid}/task").glob("*/stat")]
        states = [text.rpartition(")")[2].split()[0] for text in threads]
        return set(states) == {"S"}

    def be_replaced(self, old: Sequence[int]) -> list[int]:
        """Wait until none of ``old`` is among the workers, and all are idle."""
        return eventually(self.become_idle, lambda pids: not set(pids) & set(old))

    # Requests.

    def get(self, path: str = "/") -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(get(f"http://127.0.0.1:{self.port}{path}"))
        return answer

    def track(self, count: int = 1) -> dict[str, Any]:
        """One request that tracks ``count`` events with each client."""
        return self.get(f"/track?{self._take_serials(count)}")

    def hold(self, hold: Hold) -> list[threading.Thread]:
        """Fill the workers with requests that track an event and stay, until one is in each.

        No luck is needed for it: a request that is held keeps its thread from taking the next.
        """
        clients: list[threading.Thread] = []
        self.api.rule = lambda request: hold if request.path.startswith("/hold/") else None
        before = len(self._held())
        while True:
            path = f"/hold?{self._take_serials(1)}"
            clients.append(threading.Thread(target=self._get_or_be_cut, args=(path,), daemon=True))
            clients[-1].start()
            assert self.api.wait_until(lambda: len(self._held()) == before + len(clients)), self.output
            if len(set(self._held()[before:])) == self.processes:
                return clients

    def track_in_every_worker(self) -> None:
        """Have each worker track something, and finish the requests."""
        hold = Hold()
        clients = self.hold(hold)
        hold.release()
        for client in clients:
            client.join(60)
            assert not client.is_alive(), self.output

    def _held(self) -> list[str]:
        return [request.path for request in self.api.requests if request.path.startswith("/hold/")]

    def _get_or_be_cut(self, path: str) -> None:
        try:
            self.get(path)
        except (OSError, ValueError):
            pass  # the server was stopped in the middle

    def _take_serials(self, count: int) -> str:
        serials = range(self._serial, self._serial + count)
        self._serial += count
        return ",".join(map(str, serials))

    # What must be true of it.

    @property
    def tracked(self) -> list[int]:
        return list(range(self._serial))

    def quick_has_arrived(self) -> bool:
        """Wait until all that the quick client tracked in workers has arrived, which needs no end of anything."""
        arrived: bool = self.api.wait_until(lambda: sorted(whose(self.api).get("quick", [])) == self.tracked)
        return arrived

    def stop(self, number: int = signal.SIGTERM) -> str:
        """Stop an idle server; return what it printed."""
        self.become_idle()
        self.signal(number)
        return self.ended()

    def ended(self) -> str:
        """Wait for the end; return what was printed. It must be quick, quiet and whole."""
        finished = self.finish()
        assert not self.left_behind(), finished
        for complaint in ("Traceback", "letterapp:", "NO MERCY", "Fatal"):
            assert complaint not in finished.output.replace(INLINE_WARNING, ""), finished
        return finished.output

    def all_arrived_once(self, imports: int = 1) -> None:
        """Every event of the workers and of ``imports`` imports arrived, and none travelled twice."""
        came = {who: sorted(serials) for who, serials in whose(self.api).items()}
        assert len(came.pop("quick at import")) == imports, self.output
        assert len(came.pop("slow at import")) == imports, self.output
        assert came == {"quick": self.tracked, "slow": self.tracked}, self.output
        assert self.api.repeated() == {}


def _is_idle(worker: dict[str, Any]) -> bool:
    return bool(worker["accepting"]) and worker["status"] == "idle"


INLINE_WARNING = "RuntimeWarning: letterapp: no thread can run in this process"


@pytest.fixture(scope="session")
def threadless(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The directory of a pyuwsgi whose workers run no threads, fetched once and kept in pytest's cache."""
    cache = getattr(pytestconfig, "cache", None)  # absent when the cache is switched off
    name = f"pyuwsgi-{WITHOUT_THREADS}-{sys.implementation.cache_tag}"
    home = Path(cache.mkdir(name)) if cache is not None else tmp_path_factory.mktemp(name)
    there = home / "installed"
    if not there.exists():
        with tempfile.TemporaryDirectory(dir=str(home)) as fresh:
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--only-binary=:all:"]
            try:
                done = subprocess.run(
                    [*pip, "--target", os.path.join(fresh, "it"), f"pyuwsgi=={WITHOUT_THREADS}"],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    timeout=120,
                    check=False,
                )
            except subprocess.TimeoutExpired:
                pytest.skip("pip took too long")
            if done.returncode:
                why = done.stdout.decode("utf-8", "replace").strip().splitlines()
                pytest.skip(f"no pyuwsgi {WITHOUT_THREADS} for this Python: {why[-1] if why else 'pip failed'}")
            try:
                os.rename(os.path.join(fresh, "it"), str(there))
            except OSError:
                assert there.exists()  # another worker of pytest-xdist was faster
    return str(there)


@pytest.fixture
def uwsgi(letter_api: Any, tmp_path: Path) -> Iterator[Any]:
    """Starts servers, and ends what is left of them."""
    running: list[Uwsgi] = []

    def serve(*flags: str, **options: Any) -> Uwsgi:
        running.append(Uwsgi(letter_api, tmp_path, *flags, **options))
        return running[-1]

    yield serve
    letter_api.closing.set()
    for server in running:
        server.__exit__()


def imports_of(start: str) -> int:
    """How often a start imports the application: once, or in each of the two workers."""
    return 2 if start == "lazy-apps" else 1


# With threads.


@every_start
def test_a_stop_loses_nothing_and_what_the_master_tracked_comes_once(start: str, uwsgi: Any) -> None:
    server = uwsgi(*STARTS[start])
    server.track_in_every_worker()
    assert server.track(20)["modes"] == {"quick": "thread", "slow": "thread"}
    assert server.quick_has_arrived()
    assert "slow" not in whose(server.api)
    assert INLINE_WARNING not in server.stop()
    server.all_arrived_once(imports_of(start))


@every_start
def test_a_reload_loses_nothing(start: str, uwsgi: Any) -> None:
    server = uwsgi(*STARTS[start])
    server.track_in_every_worker()
    old = server.become_idle()
    server.signal(signal.SIGHUP)
    server.be_replaced(old)
    assert sorted(whose(server.api)["slow"]) == server.tracked  # the old workers have sent what they held
    server.track_in_every_worker()
    assert server.quick_has_arrived()
    server.stop()
    server.all_arrived_once(2 * imports_of(start))


@every_start
def test_a_worker_that_leaves_by_max_requests_loses_nothing(start: str, uwsgi: Any) -> None:
    # The lifetime is 10 seconds at least unless told otherwise, whatever the count of requests.
    server = uwsgi("--max-requests", "3", "--min-worker-lifetime", "0", *STARTS[start])
    old = server.become_idle()
    eventually(lambda: server.track(5)["pid"], lambda pid: pid not in old)
    assert server.quick_has_arrived()
    server.stop()
    came = whose(server.api)
    server.all_arrived_once(imports=len(came["quick at import"]) if start == "lazy-apps" else 1)


def test_ctrl_c_loses_nothing(uwsgi: Any) -> None:
    server = uwsgi()
    server.track_in_every_worker()
    server.become_idle()
    server.signal_group(signal.SIGINT)
    server.ended()
    server.all_arrived_once()


def test_a_second_signal_while_a_worker_ends_does_not_cut_its_end_short(uwsgi: Any) -> None:
    # Ctrl-C reaches a worker twice, from the terminal and from the master. The thread that ends the process does not
    # take the second; were it another's to take, uWSGI's handler would call C's `exit` again, in that thread.
    server = uwsgi()
    server.track_in_every_worker()
    assert server.quick_has_arrived()
    workers = server.become_idle()
    hold = Hold(then=status(503))  # each worker has a second request to make, after its second signal
    server.api.rule = None
    server.api.plan(*[hold] * len(workers))
    before = len(server.api.requests)
    server.signal(signal.SIGTERM)
    assert server.api.wait_until(lambda: len(server.api.requests) == before + len(workers)), server.output
    for pid in workers:
        server.signal(signal.SIGINT, pid)
    hold.release()
    server.ended()
    server.all_arrived_once()


@pytest.mark.parametrize("start", ["no flags", "enable-threads", "threads 2", "fork hooks"])
def test_without_a_master_nothing_is_lost(start: str, uwsgi: Any) -> None:
    server = uwsgi("--no-master", *STARTS[start], processes=1)
    assert server.track(20)["modes"] == {"quick": "thread", "slow": "thread"}
    assert server.quick_has_arrived()
    server.stop()
    server.all_arrived_once()


# Stopped in the middle of a request.


def test_a_worker_that_is_stopped_busy_loses_no_more_than_what_waited(uwsgi: Any) -> None:
    server = uwsgi()
    hold = Hold()
    clients = server.hold(hold)
    assert server.quick_has_arrived()  # in the middle of its request
    server.signal(signal.SIGTERM)
    server.ended()  # at once, though both workers are in a request that would take longer
    hold.release()
    for client in clients:
        client.join(60)
    came = whose(server.api)
    assert sorted(came["quick"]) == server.tracked
    assert set(came.get("slow", [])) <= set(server.tracked)  # uWSGI runs no exit code of a busy worker
    assert server.api.repeated() == {}


def test_a_reload_lets_a_busy_worker_finish_and_loses_nothing(uwsgi: Any) -> None:
    server = uwsgi()
    old = server.become_idle()
    hold = Hold()
    clients = server.hold(hold)
    server.signal(signal.SIGHUP)
    assert eventually(lambda: server.output.count("Gracefully killing worker"), lambda count: count == 2) == 2
    hold.release()
    for client in clients:
        client.join(60)
    server.be_replaced(old)
    server.stop()
    server.all_arrived_once(imports=2)


def test_a_graceful_stop_lets_a_busy_worker_finish_and_loses_nothing(uwsgi: Any, tmp_path: Path) -> None:
    server = uwsgi("--master-fifo", "fifo")
    hold = Hold()
    clients = server.hold(hold)
    (tmp_path / "fifo").write_text("q")
    assert eventually(lambda: server.output.count("Gracefully killing worker"), lambda count: count == 2) == 2
    hold.release()
    for client in clients:
        client.join(60)
    server.ended()
    server.all_arrived_once()


# Two applications in one process, each in an interpreter of its own unless told otherwise. uWSGI ends the first one
# alone, at which Python says that others remain, and calls no exit code of theirs.

SECOND = ("--manage-script-name", "--mount", "/second=second.py")
SAID = "letterapp: uWSGI ends an interpreter that is not its first without any exit code."


def test_in_an_interpreter_that_uwsgi_never_ends_events_are_sent_at_once_and_it_is_said(
    uwsgi: Any, tmp_path: Path
) -> None:
    (tmp_path / "second.py").write_text(APPLICATION)
    _use_both(uwsgi(*SECOND, processes=1))


def test_the_same_without_threads(threadless: str, uwsgi: Any, tmp_path: Path) -> None:
    (tmp_path / "second.py").write_text(APPLICATION)
    _use_both(uwsgi(*SECOND, processes=1, package=threadless))


def _use_both(server: Uwsgi) -> None:
    server.get(f"/second?{server._take_serials(20)}")
    assert server.api.wait_until(lambda: sorted(whose(server.api).get("slow", [])) == server.tracked), server.output
    server.track(20)  # in the first interpreter, whose end is announced
    server.become_idle()
    server.signal(signal.SIGTERM)
    finished = server.finish()
    assert finished.output.count(SAID) == 1 and "Traceback" not in finished.output, finished
    server.all_arrived_once(imports=2)


def test_two_applications_in_a_single_interpreter_lose_nothing(uwsgi: Any, tmp_path: Path) -> None:
    (tmp_path / "second.py").write_text(APPLICATION)
    server = uwsgi(*SECOND, "--single-interpreter", processes=1)
    server.get(f"/second?{server._take_serials(20)}")
    server.track(20)
    assert server.quick_has_arrived()
    assert "slow" not in whose(server.api)
    server.stop()
    server.all_arrived_once(imports=2)


# Without threads.


def test_without_threads_the_calls_send_and_one_warning_says_why(threadless: str, uwsgi: Any) -> None:
    server = uwsgi(package=threadless)
    server.track_in_every_worker()
    assert server.track()["modes"] == {"quick": "inline", "slow": "inline"}
    output = server.stop()
    assert output.count(INLINE_WARNING) == 2, output  # one a worker
    assert "Under uWSGI start it with --enable-threads." in output
    server.all_arrived_once()


def test_without_threads_a_batch_leaves_at_its_count(threadless: str, uwsgi: Any) -> None:
    server = uwsgi(package=threadless, processes=1, flush_at=30)
    server.track(29)
    assert "slow" not in whose(server.api)
    server.track(1)  # the call returns when the batch has been delivered
    assert whose(server.api)["slow"] == server.tracked
    server.track(1)
    assert whose(server.api)["slow"] == list(range(30))
    server.stop()
    server.all_arrived_once()


def test_without_threads_what_has_waited_long_enough_leaves_with_the_next_call(threadless: str, uwsgi: Any) -> None:
    server = uwsgi(package=threadless, processes=1)
    server.track(10)
    eventually(lambda: server.track() and whose(server.api), lambda came: len(came.get("quick", [])) >= 10)
    came = whose(server.api)
    assert came["quick"][:10] == list(range(10))
    assert "slow" not in came
    server.stop()
    server.all_arrived_once()


def test_without_threads_a_reload_loses_nothing(threadless: str, uwsgi: Any) -> None:
    server = uwsgi(package=threadless)
    server.track_in_every_worker()
    old = server.become_idle()
    server.signal(signal.SIGHUP)
    server.be_replaced(old)
    assert sorted(whose(server.api)["slow"]) == server.tracked
    server.track_in_every_worker()
    server.stop()
    server.all_arrived_once(imports=2)


def test_without_threads_a_worker_that_leaves_by_max_requests_loses_nothing(threadless: str, uwsgi: Any) -> None:
    server = uwsgi("--max-requests", "3", "--min-worker-lifetime", "0", package=threadless)
    old = server.become_idle()
    eventually(lambda: server.track(5)["pid"], lambda pid: pid not in old)
    server.stop()
    server.all_arrived_once()


@pytest.mark.parametrize("flags", [("--no-master",), ("--lazy-apps",)], ids=["without a master", "lazy-apps"])
def test_without_threads_nothing_is_lost_when_started(flags: Sequence[str], threadless: str, uwsgi: Any) -> None:
    server = uwsgi(*flags, package=threadless, processes=1)
    assert server.track(20)["modes"] == {"quick": "inline", "slow": "inline"}
    server.stop()
    server.all_arrived_once()


@pytest.mark.parametrize("start", ["enable-threads", "threads 2", "fork hooks"])
def test_a_uwsgi_without_threads_runs_them_when_told_to(start: str, threadless: str, uwsgi: Any) -> None:
    server = uwsgi(*STARTS[start], package=threadless)
    server.track_in_every_worker()
    assert server.track(20)["modes"] == {"quick": "thread", "slow": "thread"}
    assert server.quick_has_arrived()
    assert INLINE_WARNING not in server.stop()
    server.all_arrived_once()
