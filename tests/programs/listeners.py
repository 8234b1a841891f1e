"""Programs of test_listener.py: batches go through a queue of multiprocessing, which a `QueueListener` reads."""

from __future__ import annotations

import multiprocessing
import multiprocessing.util
import os
import signal
import threading
import time
from typing import Any

from letterapp import Letter
from letterapp.relay import QueueListener
from programs.common import API, child, keep, main, make, work

KEY = "test-key"
DEADLINE = 30.0  # seconds


def process(letter: Letter, who: str, count: int) -> None:
    work(letter, count, who)


def every_kind_of_process(kind: str, method: str) -> None:
    context: Any = multiprocessing.get_context(method)
    queue: Any = keep(context.Manager()).Queue(50) if kind == "manager" else context.Queue(50)
    with QueueListener(queue, KEY, API) as listener:
        letter = make(KEY, relay=queue)
        work(letter, 150, "main")
        letter.flush()
        processes = [context.Process(target=process, args=(letter, f"process {n}", 150)) for n in range(3)]
        for each in processes:
            each.start()
        children = []
        for n in range(3):

            def grandchild(n: int = n) -> None:
                work(letter, 10, f"grandchild {n}")
                letter.close()

            def job(n: int = n, grandchild: Any = grandchild) -> None:
                work(letter, 150, f"forked {n}")
                os.waitpid(child(grandchild), 0)
                letter.close()

            children.append(child(job))
        work(letter, 150, "main", 150)
        for pid in children:
            assert os.waitpid(pid, 0)[1] == 0
        for each in processes:
            each.join()
            assert each.exitcode == 0
        letter.close()
        assert letter.stats()["mode"] == "relay"
    stats = listener.stats()
    print(stats["accepted"], stats["delivered"], stats["lost"])


def forks_during_the_first_put() -> None:
    """The first batch is being put into the queue, whose feeder thread is not started yet, when the process forks."""
    queue: Any = multiprocessing.get_context("fork").Queue(50)
    start_feeder, is_inside, may_go_on = queue._start_thread, threading.Event(), threading.Event()

    def start_later() -> None:
        is_inside.set()
        may_go_on.wait()
        start_feeder()

    with QueueListener(queue, KEY, API):
        letter = make(KEY, relay=queue)
        queue._start_thread = start_later
        work(letter, 10, "parent")
        assert is_inside.wait(DEADLINE)
        del queue._start_thread

        def forked() -> None:
            work(letter, 10, "child")
            assert letter.close(DEADLINE)

        assert os.waitpid(child(forked), 0)[1] == 0
        may_go_on.set()
        assert letter.close(DEADLINE)


def nobody_reads() -> None:
    letter = make(KEY, relay=keep(multiprocessing.Queue()), exit_timeout=20)
    for turn in range(20):
        letter.track("program", "Worked", {"serial": turn, "x": "y" * 20_000})
        letter.flush()


def listens_to(queue: Any, **options: Any) -> QueueListener:
    """A listener that lives until the interpreter ends."""
    listener = keep(QueueListener(queue, KEY, API, **options))
    listener.start()
    return listener


def ends_with_its_listener(first: str) -> None:
    queue: Any = multiprocessing.Queue()
    if first == "client":
        letter = make(KEY, relay=queue, flush_interval=3600)
        listens_to(queue)
    else:
        listens_to(queue)
        letter = make(KEY, relay=queue, flush_interval=3600)
    work(letter, 250, first)


def killed_with_a_spool(spool: str) -> None:
    queue: Any = multiprocessing.Queue()
    listener = listens_to(queue, spool=spool)
    letter = make(KEY, relay=queue, flush_interval=0)
    work(letter, 5)
    letter.flush()
    while listener.stats()["accepted"] < 5:
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)


def never_stops_its_listener(when: str) -> None:
    context = multiprocessing.get_context("fork")
    queue: Any = context.Queue()
    letter = make(KEY, relay=queue)
    listens_to(queue)
    reader, writer = os.pipe()

    def job() -> None:
        os.read(reader, 1)  # until the parent is at its end
        work(letter, 20, "child")

    context.Process(target=job).start()
    work(letter, 2000, "parent")

    def let_the_child_go_on() -> None:
        if when == "the queue's thread has ended":
            queue._thread.join(30)
        os.write(writer, b".")

    # A priority between those of the queue's end, which is 10, and of the join of the children, which is 0.
    multiprocessing.util.Finalize(None, let_the_child_go_on, exitpriority=20 if when == "the process ends" else 5)


def child_without_the_queue_s_descriptor() -> None:
    letter = make(KEY, relay=keep(multiprocessing.Queue()), on_error=print)

    def job() -> None:
        os.closerange(3, 64)  # as a daemon does
        log = open("log", "wb")
        while os.dup(log.fileno()) < 40:
            pass
        work(letter, 5, "child")
        assert letter.flush() and letter.stats()["relayed"] == 0
        print(os.path.getsize("log"), flush=True)

    os.waitpid(child(job), 0)


def child_of_a_parent_whose_feeder_holds_its_lock() -> None:
    queue: Any = keep(multiprocessing.Queue())
    letter = make(KEY, relay=queue)
    work(letter, 1)
    letter.flush()
    queue._notempty.acquire()  # as some thread may have at the fork

    def job() -> bool:
        signal.alarm(20)
        return letter.close()

    pid = child(job)
    queue._notempty.release()
    print(os.waitpid(pid, 0)[1])
    queue.get()


main(globals())
