"""Programs of test_manager_facts.py, each the smallest one that shows a fact about multiprocessing."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import socket
import threading
import time
from multiprocessing import AuthenticationError, process, util
from multiprocessing.connection import Client, Connection, Listener
from multiprocessing.managers import SyncManager, dispatch  # type: ignore[attr-defined]
from typing import Any

from programs.common import child, keep, main

FORK: Any = multiprocessing.get_context("fork" if hasattr(os, "fork") else None)


def connection_after_a_raw_fork() -> None:
    manager = FORK.Manager()
    queue = manager.Queue()
    queue.qsize()  # used: the connection is open
    mine = queue._tls.connection

    def job() -> None:
        os.write(1, f"{queue._tls.connection is mine and queue._tls.connection.fileno() == mine.fileno()}\n".encode())
        queue._tls.connection.close()  # or parent and child would take each other's answers

    os.waitpid(child(job), 0)
    forked = FORK.Process(target=lambda: os.write(1, f"{hasattr(queue._tls, 'connection')}\n".encode()))
    forked.start()
    forked.join()


def own_connection_after_a_raw_fork() -> None:
    manager = FORK.Manager()
    queue = manager.Queue()
    queue.qsize()

    def job() -> None:
        connection = Client(queue._token.address, authkey=bytes(queue._authkey))
        dispatch(connection, None, "accept_connection", ("a child",))
        for serial in range(100):
            dispatch(connection, queue._token.id, "put_nowait", (serial,))

    children = [child(job) for _ in range(3)]
    for pid in children:
        assert os.waitpid(pid, 0)[1] == 0
    print(queue.qsize())


def exception_in_the_middle_of_a_call() -> None:
    manager = FORK.Manager()
    queue = manager.Queue()
    queue.put("an item")
    receive = Connection.recv

    def interrupted(self: Any) -> Any:
        Connection.recv = receive  # type: ignore[method-assign]
        raise KeyboardInterrupt  # as a signal handler may, between the question and the answer

    Connection.recv = interrupted  # type: ignore[method-assign]
    try:
        queue.qsize()
    except KeyboardInterrupt:
        pass
    print(repr(queue.empty()), repr(queue.get()))  # qsize's answer, then empty's


def pickled_proxy() -> None:
    manager = SyncManager(authkey=b"a key of its own", ctx=FORK)
    manager.start()
    queue = manager.Queue()
    try:
        pickle.loads(pickle.dumps(queue))
    except AuthenticationError:
        print("lost")


def feeder_after_a_fork() -> None:
    queue = FORK.Queue()
    queue.put("starts the feeder")
    queue.get()

    def look() -> None:
        os.write(1, f"{queue._thread is None}\n".encode())

    os.waitpid(child(look), 0)
    forked = FORK.Process(target=look)
    forked.start()
    forked.join()


def idle_feeder() -> None:
    queue: Any = multiprocessing.Queue()
    deadline = time.monotonic() + 30

    def is_idle() -> bool:
        with queue._notempty:
            return not queue._buffer and bool(queue._notempty._waiters)

    for _ in range(200):
        queue.put(b"x" * 10_000)
        while not is_idle() and time.monotonic() < deadline:
            time.sleep(0)
        assert len(queue._reader.recv_bytes()) > 10_000 and not queue._reader.poll()
    queue.put(b"x" * 1_000_000)  # more than the pipe takes
    while queue._buffer and time.monotonic() < deadline:
        time.sleep(0)
    print(is_idle())
    queue._reader.recv_bytes()
    while not is_idle() and time.monotonic() < deadline:
        time.sleep(0)
    print(is_idle())


def queue_that_nobody_reads(feeder: str) -> None:
    queue: Any = keep(multiprocessing.Queue())
    queue.put(b"x" * 1_000_000)
    if feeder == "cancelled":
        queue.cancel_join_thread()
    os.write(1, b"at its end\n")


def signals_of_a_server() -> None:
    manager = FORK.Manager()
    queue = manager.Queue()
    pid = manager._process.pid
    os.kill(pid, signal.SIGINT)
    queue.put(1)
    print(queue.qsize())
    os.kill(pid, signal.SIGTERM)
    manager._process.join()
    for _ in range(2):
        try:
            queue.qsize()
        except (EOFError, ConnectionError):
            print("gone")


class Job:
    """Registers what it does at a fork and at the end of the process, while it is unpickled."""

    def __reduce__(self) -> Any:
        return Job.made, ()

    @staticmethod
    def made() -> Job:
        inheriting = getattr(process.current_process(), "_inheriting", False)
        about = f"{process.parent_process() is None} {inheriting}"
        util.Finalize(None, os.write, (1, b"kept\n"), exitpriority=100)
        util.register_after_fork(Job.again, Job.again)
        os.write(1, f"{about}\n".encode())
        return Job()

    @staticmethod
    def again(_: Any) -> None:
        os.write(1, b"called again\n")


def run_job(job: Job) -> None:
    os.write(1, b"runs\n")


def registered_while_unpickling(method: str) -> None:
    context: Any = multiprocessing.get_context(method)
    spawned = context.Process(target=run_job, args=(Job(),))
    spawned.start()
    spawned.join()


def backlog(address: str) -> None:
    listener: Any = Listener(address, backlog=16)
    listener._listener._socket.listen(512)  # again, with more
    waiting = []
    for _ in range(100):
        waiting.append(socket.socket(socket.AF_UNIX))
        waiting[-1].settimeout(5)
        waiting[-1].connect(address)
    print(len(waiting))


def shut_down_while_it_accepts(address: str) -> None:
    listener: Any = Listener(address)

    def accept() -> None:
        try:
            listener.accept()
        except OSError:
            print("ended")

    thread = threading.Thread(target=accept)
    thread.start()
    listener._listener._socket.shutdown(socket.SHUT_RDWR)
    thread.join(30)
    print(thread.is_alive())


main(globals())
