"""Programs of test_forks: a parent with a client, and children that end in every way."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import threading
import time
from typing import Any, Callable

from letterapp import LetterError
from programs.common import Ended, made, main, make, work


def fork(job: Callable[[], object], end: str = "return") -> int:
    """Run ``job`` in a child that ends as ``end`` says; return the child's pid."""
    faulthandler.enable()  # for `wait`
    pid = os.fork()
    if pid:
        return pid
    job()
    if end == "close":
        for letter in made:
            letter.close()
        os._exit(0)
    if end == "exit":
        sys.exit(0)
    if end == "raise":
        raise RuntimeError("on purpose")
    raise Ended


def wait(pid: int, seconds: float = 40) -> int:
    """Reap a child, which has to end in time; return its status. One that hangs prints where."""
    status = _ended(pid, seconds)
    if status is not None:
        return status
    os.kill(pid, signal.SIGABRT)
    if _ended(pid, 10) is None:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    raise SystemExit("a child hung")


def _ended(pid: int, seconds: float) -> int | None:
    """The status of a child that ends within ``seconds``."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return status
        time.sleep(0.01)
    return None


def waiting_events(end: str) -> None:
    letter = make(flush_interval=30, flush_at=10_000)
    work(letter, 500, "parent")
    children = [fork(lambda n=n: work(letter, 300, f"child {n}"), end) for n in range(3)]  # type: ignore[misc]
    for child in children:
        wait(child)


def idle_children() -> None:
    letter = make(flush_interval=30)
    work(letter, 40, "parent")
    for child in [fork(lambda: None) for _ in range(4)]:
        assert wait(child) == 0


def counts() -> None:
    letter = make(flush_interval=30)
    work(letter, 40, "parent")

    def look() -> None:
        stats = letter.stats()
        print(stats["pid"] == os.getpid(), stats["accepted"], stats["waiting"], f"pid={os.getpid()}" in repr(letter))

    wait(fork(look))
    print(letter.stats()["waiting"])


def request_on_the_wire(gate: str) -> None:
    letter = make(flush_at=1, timeout=60, exit_timeout=50)
    work(letter, 10, "parent")
    with open(gate) as opened:
        opened.read()  # until the request is on the wire
    wait(fork(lambda: work(letter, 200, "child")))
    print("child ended", flush=True)


def _sockets() -> int:
    found = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            found += os.readlink(f"/proc/self/fd/{name}").startswith("socket:")
        except OSError:
            pass
    return found


def connections() -> None:
    letter = make()
    work(letter, 10, "parent")
    letter.flush()
    print(_sockets())
    wait(fork(lambda: print(_sockets())))
    work(letter, 10, "parent")
    letter.flush()


def daemon() -> None:
    from letterapp._runtime import atfork

    atfork._hooked = True
    letter = make()
    work(letter, 10, "parent")
    letter.flush()

    def daemonized() -> None:
        os.closerange(3, 100)
        log = [os.open(__file__, os.O_RDONLY) for _ in range(20)]
        work(letter, 10, "child")
        letter.flush()
        for descriptor in log:  # were one closed, its number would be the new connection's by now
            assert os.path.samestat(os.fstat(descriptor), os.stat(__file__))

    wait(fork(daemonized))


def held_lock() -> None:
    letter: Any = make()
    work(letter, 10, "parent")
    held, over = threading.Event(), threading.Event()

    def wait_inside() -> None:
        with letter._delivery._queue._lock:
            held.set()
            over.wait(40)

    holder = threading.Thread(target=lambda: letter._delivery._batches.lock.run(wait_inside, 0))
    letter.flush()
    holder.start()
    held.wait(40)
    wait(fork(lambda: work(letter, 50, "child")))
    over.set()
    holder.join()


def from_a_thread() -> None:
    letter = make()
    work(letter, 120, "parent")
    thread = threading.Thread(target=lambda: wait(fork(lambda: work(letter, 130, "child"), "close")))
    thread.start()
    thread.join()


def from_on_error() -> None:
    def on_error(error: LetterError) -> None:
        pid = os.fork()
        if pid:
            wait(pid)
        else:
            work(letter, 20, "child")
            letter.close()
            # and continues: as the worker thread of a process that is not that worker's

    letter = make(on_error=on_error, flush_at=5, flush_interval=30)
    work(letter, 5, "refused")
    letter.flush()
    work(letter, 100, "parent")


def generations() -> None:
    letter = make(flush_interval=30, flush_at=10_000)

    def generation(number: int) -> None:
        work(letter, 100, f"generation {number}")
        if number < 3:
            wait(fork(lambda: generation(number + 1)))

    generation(0)


def grandchild() -> None:
    letter = make(flush_interval=30)
    work(letter, 30, "parent")
    wait(fork(lambda: wait(fork(lambda: work(letter, 30, "grandchild")))))


def many_children(hooks: str) -> None:
    from letterapp._runtime import atfork

    atfork._hooked = hooks == "not called"
    letter = make(max_queue_events=10**6, max_queue_bytes=10**9, exit_timeout=40)
    if hooks == "not called":
        # Whoever forks without hooks (uWSGI) has no thread at that time that could be in the middle of its imports.
        work(letter, 1, "warm up")
        letter.flush()
    over = threading.Event()
    counts = [0] * 4

    def without_rest(number: int) -> None:
        while not over.is_set():
            work(letter, 1, f"thread {number}", start=counts[number])
            counts[number] += 1
            if counts[number] % 50 == 0:
                over.wait(0.001)  # leaves the interpreter to the others, so that there are more forks than events
                while letter.stats()["waiting"] > 5_000 and not over.is_set():
                    over.wait(0.01)  # on a busy machine; `close` could not send all the rest in its time

    threads = [threading.Thread(target=without_rest, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    try:
        for first in range(0, 200, 10):
            children = []
            for number in range(first, first + 10):
                children.append(fork(lambda number=number: work(letter, 20, f"child {number}"), "close"))  # type: ignore[misc]
            for pid in children:
                assert wait(pid) == 0
    finally:
        over.set()  # otherwise the end of this program would wait for the threads forever
    for thread in threads:
        thread.join()
    letter.close()
    assert letter.stats()["lost"] == {}, letter.stats()
    print(*counts)


def threads_after_flush() -> None:
    letter = make()
    for turn in range(100):
        work(letter, 2, "parent", start=turn * 2)
        assert letter.flush()
        print(len(os.listdir("/proc/self/task")), end=" ")


def in_the_middle_of_imports() -> None:
    from importlib.machinery import PathFinder

    reached, forking = threading.Event(), threading.Event()

    class Gate:
        """Stands still where `http.client` is executed: while it is looked for, Python itself blocks forks."""

        def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
            if name != "http.client" or reached.is_set():
                return None
            spec: Any = PathFinder.find_spec(name, path)
            execute = spec.loader.exec_module

            def exec_module(module: Any) -> None:
                reached.set()
                forking.wait(40)
                execute(module)

            spec.loader.exec_module = exec_module
            return spec

    gate: Any = Gate()
    sys.meta_path.insert(0, gate)
    letter = make(flush_at=1)
    os.register_at_fork(before=forking.set)  # after the client's own hook, and so run before it
    work(letter, 10, "parent")
    reached.wait(40)
    wait(fork(lambda: work(letter, 10, "child")))


main(globals())
