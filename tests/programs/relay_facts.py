"""What the kernel does with Unix sockets, and multiprocessing with a manager's connections."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import socket
import tempfile
import threading
import time
from multiprocessing.managers import BaseManager
from typing import Any, Callable

from programs.common import child, main, stay


def pair() -> tuple[socket.socket, socket.socket]:
    near, far = socket.socketpair(socket.AF_UNIX)
    near.settimeout(40)
    far.settimeout(40)
    return near, far


def rest(sock: socket.socket) -> bytes:
    """What can be read until the end."""
    data = b""
    while True:
        try:
            more = sock.recv(65536)
        except ConnectionResetError:
            return data + b" reset"
        if not more:
            return data
        data += more


def error_of(act: Callable[[], object]) -> str | None:
    try:
        act()
    except OSError as problem:
        return errno.errorcode[problem.errno or 0]
    return None


def reap(pid: int) -> int:
    """Wait for the end of a child; return its exit status, or the signal that ended it."""
    ended = os.waitid(os.P_PID, pid, os.WEXITED)
    assert ended is not None
    return ended.si_status


def stop(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)
    os.waitid(os.P_PID, pid, os.WSTOPPED)


# Sockets.


def killed_writer() -> None:
    near, far = pair()

    def write() -> None:
        near.sendall(b"all of it" * 1000)
        os.kill(os.getpid(), signal.SIGKILL)

    assert reap(child(write)) == signal.SIGKILL
    near.close()
    assert rest(far) == b"all of it" * 1000


def unread_answers() -> None:
    near, far = pair()
    far.sendall(b"an answer")
    near.sendall(b"all of it")
    near.close()
    assert rest(far) == b"all of it reset"


def shut_rd() -> None:
    near, far = pair()
    near.sendall(b"before")
    far.shutdown(socket.SHUT_RD)
    assert error_of(lambda: near.send(b"after", socket.MSG_NOSIGNAL)) == "EPIPE"
    assert far.recv(100) == b"before" and far.recv(100) == b""
    far.sendall(b"an answer")  # the other way is open
    assert near.recv(100) == b"an answer"


def closed_listener() -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as place:
        listener, near = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
        listener.bind(place + "/s")
        listener.listen(1)
        near.connect(place + "/s")
        near.sendall(b"heard by nobody")
        listener.close()
        assert error_of(lambda: near.send(b"more", socket.MSG_NOSIGNAL)) in ("EPIPE", "ECONNRESET")


def send_into_a_full_socket(size: int, buffer: int) -> None:
    """Send lines of ``size`` bytes while the peer makes room in odd amounts; each is sent completely or not at all."""
    near, far = pair()
    near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
    near.settimeout(None)  # with a timeout Python itself would wait and try again
    far.setblocking(False)
    line, sent, received, refused = b"x" * size, 0, 0, 0
    for turn in range(20_000):
        try:
            count = near.send(line, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except BlockingIOError:
            refused += 1
            if refused == 100:
                break
            try:
                received += len(far.recv(turn * 97 % 7000 + 1))
            except BlockingIOError:
                break  # the buffer has not the size of one such line
        else:
            assert count == size, (count, size, buffer)
            sent += count
    assert refused
    near.close()
    far.setblocking(True)
    assert received + len(rest(far)) == sent


def send_32_kb() -> None:
    for size in (300, 4096, 20_000, 32_768):
        for buffer in (65_536, 1_048_576):  # in pieces of half a buffer, so a smaller one would split it
            send_into_a_full_socket(size, buffer)


def send_60_kb() -> None:
    near, far = pair()
    near.settimeout(None)
    near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1_048_576)
    sizes = set()
    for turn in range(20_000):
        try:
            sizes.add(near.send(b"x" * 60_000, socket.MSG_DONTWAIT))
        except BlockingIOError:
            far.recv(turn * 97 % 7000 + 1)
    assert any(32_768 < size < 60_000 for size in sizes), sizes


def stopped_process() -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as place:
        listener, near = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
        listener.bind(place + "/s")
        listener.listen(1)
        pid = child(stay)
        listener.close()  # the child's alone
        stop(pid)
        near.connect(place + "/s")
        sent = 0
        while True:
            try:
                sent += near.send(b"x" * 300, socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
        assert sent > 30_000
        crowd = [socket.socket(socket.AF_UNIX) for _ in range(4)]
        for one in crowd:
            one.setblocking(False)
        assert [error_of(lambda: one.connect(place + "/s")) for one in crowd][-1] == "EAGAIN"  # noqa: B023
        os.kill(pid, signal.SIGKILL)
        reap(pid)


# Managers.


class Manager(BaseManager):
    pass


def started_manager() -> tuple[Any, int]:
    """A running manager, and its process id."""
    multiprocessing.current_process().authkey = b"key"
    manager: Any = Manager(("127.0.0.1", 0), b"key", ctx=multiprocessing.get_context("fork"))
    manager.start()
    return manager, manager._process.pid


def stopped_manager() -> None:
    manager, pid = started_manager()
    stop(pid)
    went_on = threading.Event()

    def connect() -> None:
        Manager(manager.address, b"key").connect()
        went_on.set()

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    assert not went_on.wait(1)
    os.kill(pid, signal.SIGCONT)
    assert went_on.wait(40)
    manager.shutdown()


def silent_connections() -> None:
    manager, pid = started_manager()

    def threads() -> int:
        return len(os.listdir(f"/proc/{pid}/task"))

    before = threads()
    crowd = [socket.create_connection(manager.address, 40) for _ in range(20)]
    deadline = time.monotonic() + 40
    while threads() < before + len(crowd):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    manager.shutdown()


main(globals())
