"""Running the example applications of docs/examples/frameworks whose work is done by jobs.

Responsible for: a copy of an example, its environment, the service that its jobs call and that holds them, killing the
process of a job that is held. Not responsible for: what an example does, and what is right.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
from applications import EXAMPLES, LATE_FLUSH
from harness import ROOT, Finished, Program, environment, eventually

BIN = Path(sys.executable).parent  # of the programs that packages install


def copy_of(name: str, tmp_path: Path) -> Path:
    """A copy of an example's folder: what runs there may write into it."""
    return Path(shutil.copytree(EXAMPLES / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__")))


def settings(api: Any, late: bool = False, **more: str) -> dict[str, str]:
    """The environment of an example. With ``late``, events wait for the end of a process, as in `applications`."""
    path = [str(ROOT), *([str(LATE_FLUSH)] if late else [])]
    more.update(LETTER_API_KEY="lt_test_key", LETTER_BASE_URL=api.url, PYTHONPATH=os.pathsep.join(path))
    env = environment(api.url)
    return {**env, "PATH": os.pathsep.join([str(BIN), env.get("PATH", "")]), **more}


def arrived(api: Any) -> Counter[tuple[str, str, Any]]:
    """How many events the API counts, by event, user and the order that they are about."""
    once = {item["messageId"]: item for item in api.events}
    return Counter((item["event"], item["userId"], item["properties"].get("order")) for item in once.values())


def quiet_end(program: Program, code: int = 0) -> Finished:
    """Wait for the end of a program: with this code, without complaints, and with all that it has started."""
    finished = program.finish()
    assert finished.code == code, finished
    assert not program.left_behind(), finished
    for complaint in ("Traceback", "Exception ignored", "letterapp:"):
        assert complaint not in finished.output, finished
    return finished


def once(*events: tuple[str, str, Any]) -> dict[tuple[str, str, Any], int]:
    """What `arrived` has to return: each of these events, once."""
    return dict.fromkeys(events, 1)


class Service:
    """A service that jobs call. It answers each path at once, but for the first request for one of ``held``.

    Attributes:
        url: Its base URL.
        calls: How often each path was asked for.
    """

    def __init__(self, *held: str) -> None:
        self.calls: Counter[str] = Counter()
        self._held = set(held)
        self._changed = threading.Condition()
        self._released = threading.Event()
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                with service._changed:
                    service.calls[self.path] += 1
                    first = service.calls[self.path] == 1
                    service._changed.notify_all()
                if first and self.path in service._held:
                    service._released.wait()
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            block_on_close = False

            def handle_error(self, *_: Any) -> None:
                pass  # the caller was killed

        self._server = Server(("127.0.0.1", 0), Handler)
        self.port: int = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def wait_for(self, path: str, times: int = 1, timeout: float = 60.0) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: self.calls[path] >= times, timeout)

    def release(self) -> None:
        self._released.set()

    def callers(self, processes: list[psutil.Process]) -> list[psutil.Process]:
        """Those of ``processes`` that have a connection to this service."""
        found = []
        for process in processes:
            try:
                connections = process.net_connections("tcp")
            except psutil.Error:
                continue
            if any(one.raddr and one.raddr.port == self.port and one.status == "ESTABLISHED" for one in connections):
                found.append(process)
        return found

    def close(self) -> None:
        self.release()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)

    def __enter__(self) -> Service:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def kill_caller(program: Program, service: Service, path: str) -> int:
    """SIGKILL to the process of ``program`` that waits for the service's answer to ``path``. Returns its pid."""
    assert service.wait_for(path), program.output
    callers = eventually(lambda: service.callers(program.descendants()), lambda found: len(found) == 1)
    assert len(callers) == 1, (callers, program.output)
    callers[0].send_signal(signal.SIGKILL)
    return int(callers[0].pid)
