"""A running uWSGI, its statistics, and checks of the events that its workers tracked.

Responsible for: starting it, sending it requests. Not responsible for: how a test stops it.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import Any, Sequence

from harness import Program, environment, eventually, get, thread_states, whose

from letterapp.testing import Hold
from stress.ports import free_port

# How an application with threads is started. Each is one line of uWSGI's documentation.
STARTS: dict[str, Sequence[str]] = {
    "no flags": (),
    "enable-threads": ("--enable-threads",),
    "threads 2": ("--threads", "2"),
    "fork hooks": ("--enable-threads", "--py-call-uwsgi-fork-hooks"),
    "lazy-apps": ("--lazy-apps",),
}
# A module with an application, whose clients are its own.
APPLICATION = "from programs.uwsgi_application import create\napplication = create()\n"

# The installed script would do, but not for a copy that lies in a separate directory.
LAUNCHER = "import sys\nfrom pyuwsgi import run\nsys.exit(run())\n"


class Uwsgi(Program):
    """A running uWSGI with programs/uwsgi_application.py, its workers idle when the constructor returns.

    ``first``: a line of code that is run before the application is imported.
    """

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
        # knows nothing of the packages in it, by default.
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
        assert eventually(lambda: thread_states(self.pid), lambda found: found == {"S"}) == {"S"}
        return [self.pid]

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


def imports_of(start: str) -> int:
    """How often a start imports the application: once, or in each of the two workers."""
    return 2 if start == "lazy-apps" else 1
