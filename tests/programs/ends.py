"""Programs of test_ends: processes that end without running exit hooks, and others.

What a request needs is imported by no program beforehand: the first one may come at the end, and so its imports.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import time
from threading import Thread
from typing import Any, Callable

from letterapp import Letter, LetterError
from programs.common import child, main, make, stay, work


def ignore(error: LetterError) -> None:
    pass


def kill_oneself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


# os._exit


def leaves_by_os_exit() -> None:
    untouched = os._exit
    letter = make(flush_interval=3600)
    assert os._exit is untouched  # until the first event

    def leaves(status: int) -> int:
        pid = os.fork()
        if not pid:
            work(letter, 3, "child")
            os._exit(status)
        return os.WEXITSTATUS(os.waitpid(pid, 0)[1])

    print(leaves(0), leaves(7), os._exit is untouched)


def unused_in_children() -> None:
    import subprocess

    letter = make(flush_interval=0, exit_timeout=50)
    work(letter, 3, "parent")
    began = time.monotonic()
    for _ in range(20):
        pid = os.fork()
        if not pid:
            os._exit(0)
        os.waitpid(pid, 0)
    subprocess.run([sys.executable, "-c", ""], preexec_fn=lambda: None)
    print(time.monotonic() - began < 20)
    sys.stdout.flush()
    kill_oneself()


def os_exit_in_an_exit_callback() -> None:
    letter = make(flush_interval=0, exit_timeout=1)
    work(letter, 3)
    began = time.monotonic()

    def leave() -> None:
        os.write(1, f"{time.monotonic() - began < 1.9}\n".encode())
        os._exit(3)

    atexit.register(leave)


def os_exit_left_alone() -> None:
    off = make(send_on_os_exit=False, flush_interval=3600)
    on = make(flush_interval=3600)

    def job(letter: Letter, who: str, leave: Callable[[], object]) -> None:
        pid = os.fork()
        if not pid:
            work(letter, 1, who)
            leave()
        os.waitpid(pid, 0)

    before: Any = os._exit

    def off_leaves() -> None:
        assert os._exit is before
        os._exit(0)

    def by_signal() -> None:
        signal.signal(signal.SIGALRM, lambda *_: os._exit(0))
        os.kill(os.getpid(), signal.SIGALRM)
        stay()

    job(off, "off", off_leaves)
    job(on, "handler", by_signal)
    job(on, "on", lambda: os._exit(0))
    assert not off.stats()["adopted"]
    kill_oneself()  # so that the family delivers nothing


def forking_server(port: str) -> None:
    import socketserver
    from http.server import BaseHTTPRequestHandler, HTTPServer

    letter = make(flush_interval=10)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            letter.track("request", "Worked", {"serial": int(self.path.rpartition("?")[2])})
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"ok")

        def log_message(self, *_: Any) -> None:
            pass

    class Server(socketserver.ForkingMixIn, HTTPServer):
        pass

    server = Server(("127.0.0.1", int(port)), Handler)
    print("ready")
    sys.stdout.flush()
    server.serve_forever()


def daemon() -> None:
    from daemon import DaemonContext

    letter = make(flush_interval=10)
    work(letter, 5, "before")
    with DaemonContext(working_directory=os.getcwd()):
        work(letter, 5, "after")


# One time budget a process.


def nested_forks() -> None:
    letter = make(flush_interval=3600, exit_timeout=1, on_error=ignore)
    for depth in range(6):
        work(letter, 1, f"depth {depth}")
        pid = os.fork()
        if pid:
            os.waitpid(pid, 0)
            kill_oneself()
    work(letter, 1, "deepest")
    began = time.monotonic()

    class Last:
        """Says how long the end took, once all exit callbacks have run, with those that a child inherits."""

        def __del__(self, write: Any = os.write, clock: Any = time.monotonic) -> None:
            write(1, f"{clock() - began < 4}\n".encode())

    modules: dict[str, Any] = sys.modules
    modules["last"] = Last()


def nested_processes() -> None:
    import multiprocessing
    from multiprocessing import util

    context = multiprocessing.get_context("fork")
    letter = make()

    def nest(depth: int) -> None:
        work(letter, 1, f"depth {depth}")
        if depth:
            process = context.Process(target=nest, args=(depth - 1,))
            process.start()
            process.join()
        else:
            registry = vars(util)["_afterfork_registry"]
            print(len([value for value in registry.values() if "letterapp" in value.__module__]))
            sys.stdout.flush()

    nest(6)


# Ctrl-C.


def interrupted(exit_timeout: str = "30") -> None:
    letter = make(exit_timeout=float(exit_timeout), flush_interval=3600)  # so the request comes when the end has begun
    work(letter, 10)
    os.kill(os.getpid(), signal.SIGINT)
    stay()


def interrupted_and_handled() -> None:
    letter = make()
    work(letter, 1)
    try:
        os.kill(os.getpid(), signal.SIGINT)
        stay()
    except KeyboardInterrupt:
        pass


def family() -> None:
    def reported(error: LetterError) -> None:
        if error.lost:
            os.write(1, f"reported {error.lost}\n".encode())

    signal.signal(signal.SIGINT, signal.default_int_handler)
    letter = make(on_error=reported, exit_timeout=1, max_retries=100)
    for _ in range(3):
        if not os.fork():
            break
    work(letter, 10, str(os.getpid()))
    os.write(1, b"ready\n")
    stay()


def orphans_after_close() -> None:
    letter: Any = make(flush_interval=3600, max_retries=0, on_error=ignore)
    pid = os.fork()
    if not pid:
        os.kill(os.getpid(), signal.SIGSTOP)
        work(letter, 5, "child")
        kill_oneself()
    os.waitpid(pid, os.WUNTRACED)
    work(letter, 5, "parent")
    assert not letter.close(0.2)
    os.kill(pid, signal.SIGCONT)
    os.waitpid(pid, 0)
    print("closed")
    sys.stdout.flush()
    # until the request that no caller waits for is over
    while not letter._delivery._batches.lock.run(lambda: None, 0.0):
        time.sleep(0.01)


# Clients that come late.


def late_client(where: str) -> None:
    def late() -> None:
        if where != "here":
            pid = os.fork()
            if pid:
                os.waitpid(pid, 0)
                return
        work(make(flush_interval=3600), 5)

    atexit.register(late)


# exit_signals.


def exit_signals_in_a_thread() -> None:
    made: list[Letter] = []
    thread = Thread(target=lambda: made.append(make(exit_signals=(signal.SIGTERM,), flush_interval=3600)))
    thread.start()
    thread.join()
    (letter,) = made
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    work(letter, 3)
    assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    os.kill(os.getpid(), signal.SIGTERM)
    stay()


def replaced_handler() -> None:
    letter = make(exit_signals=(signal.SIGTERM,))

    def servers_own(*_: Any) -> None:
        pass

    signal.signal(signal.SIGTERM, servers_own)
    work(letter, 1)
    letter.flush()
    print(signal.getsignal(signal.SIGTERM) is servers_own)


# A clock that stands still.


def frozen_clock(moment: str) -> None:
    from freezegun import freeze_time

    letter = make(flush_interval=3600, exit_timeout=30)
    work(letter, 3, "before")
    freeze_time(moment).start()
    work(letter, 3, "frozen")


def frozen_clock_and_silent_api(moment: str) -> None:
    from freezegun import freeze_time

    letter = make(flush_interval=0, exit_timeout=1, timeout=50)
    freeze_time(moment).start()
    work(letter, 3)


# What one process leaves to another.


def left_to_another() -> None:
    who, (over, is_over), (gone, is_gone) = "other", os.pipe(), os.pipe()

    def reported(error: LetterError) -> None:
        os.write(1, f"{who} reported {error.lost}\n".encode())

    letter = make(on_error=reported, exit_timeout=0.5, max_retries=None)
    letter.stats()
    if not os.fork():
        who = "leaver"
        os.close(is_gone)

        def stay_a_while() -> None:
            os.write(is_over, b"1")
            os.read(gone, 1)

        atexit.register(stay_a_while)  # called after the client's own, which is registered at its first use
        work(letter, 1)
        sys.exit()
    os.close(gone)
    os.read(over, 1)


def signal_during_an_inline_request() -> None:
    def reported(error: LetterError) -> None:
        os.write(1, f"reported {error.cause} {error.lost}\n".encode())

    letter: Any = make(flush_at=2, flush_interval=3600, exit_signals=(signal.SIGTERM,), on_error=reported)
    letter._delivery._worker._start = lambda send: False  # as where no thread can run
    work(letter, 2)


def second_end() -> None:
    from letterapp._delivery import shutdown
    from letterapp._storage.memory import _ALIVE

    def another(then: Callable[[], int]) -> tuple[int, int]:
        """A process that has used its client, and does ``then`` on request."""
        (here, is_here), (go, is_over) = os.pipe(), os.pipe()

        def job() -> int:
            os.close(is_over)
            letter.stats()
            os.write(is_here, b"1")
            os.read(go, 1)
            return then()

        pid = child(job)
        os.read(here, 1)
        return pid, is_over

    def ended(process: tuple[int, int]) -> int:
        pid, is_over = process
        os.close(is_over)
        return os.waitpid(pid, 0)[1]

    def slot() -> Any:
        return letter._delivery._queue._ring.slot

    letter: Any = make(base_url="http://127.0.0.1:9", exit_timeout=0.2, max_retries=None, on_error=ignore)
    work(letter, 1)
    first = another(lambda: 0 if not letter.close(0) and letter.stats()["adopted"] == 1 else 1)
    shutdown.shut_down_process()  # the waiting events are released to that process,
    assert ended(first) == 0  # which gives it up, and so the slot is free
    owners = slot().base
    second = another(lambda: 0 if slot().base == owners and slot()._shared_words[_ALIVE] else 1)
    shutdown.shut_down_process()
    print(ended(second))
    kill_oneself()


main(globals())
