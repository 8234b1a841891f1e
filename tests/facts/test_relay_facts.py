"""What the kernel and multiprocessing really do, as far as the relay leans on it, each fact by the smallest program."""

from __future__ import annotations

import sys
from pathlib import Path
from textwrap import dedent
from typing import Callable

import pytest
from harness import run

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="facts about Linux")

NOWHERE = "http://127.0.0.1:9"

SOCKETS = """
import errno, multiprocessing, socket, tempfile
from multiprocessing.managers import BaseManager

def pair():
    ends = socket.socketpair(socket.AF_UNIX)
    for end in ends:
        end.settimeout(40)
    return ends

def rest(sock):
    "What can be read until the end."
    heard = b""
    while True:
        try:
            more = sock.recv(65536)
        except ConnectionResetError:
            return heard + b" reset"
        if not more:
            return heard
        heard += more

def error_of(act):
    try:
        act()
    except OSError as problem:
        return errno.errorcode[problem.errno]

def reap(pid):
    return os.waitid(os.P_PID, pid, os.WEXITED).si_status

def stopped(pid):
    os.kill(pid, signal.SIGSTOP)
    os.waitid(os.P_PID, pid, os.WSTOPPED)

def threads(pid):
    return len(os.listdir(f"/proc/{pid}/task"))

def eventually(look):
    deadline = time.monotonic() + 40
    while not look():
        assert time.monotonic() < deadline
        time.sleep(0.01)
"""

MANAGER = """
class Manager(BaseManager):
    pass

if __name__ == "__main__":
    multiprocessing.current_process().authkey = b"key"
    manager = Manager(("127.0.0.1", 0), b"key", ctx=multiprocessing.get_context("fork"))
    manager.start()
    pid = manager._process.pid

    def silent():
        return socket.create_connection(manager.address, 40)
"""


@pytest.fixture
def holds(tmp_path: Path) -> Callable[[str], None]:
    """Runs a program that must end well and print nothing."""

    def run_it(code: str) -> None:
        finished = run(SOCKETS + dedent(code), NOWHERE, tmp_path)
        assert (finished.code, finished.output) == (0, ""), finished

    return run_it


def test_what_a_killed_writer_sent_can_still_be_read(holds: Callable[[str], None]) -> None:
    holds("""
    near, far = pair()
    def write():
        near.sendall(b"all of it" * 1000)
        os.kill(os.getpid(), signal.SIGKILL)
    assert reap(child(write)) == signal.SIGKILL
    near.close()
    assert rest(far) == b"all of it" * 1000
    """)


def test_what_was_sent_before_the_end_of_a_writer_that_left_answers_unread_can_be_read_before_the_reset(
    holds: Callable[[str], None],
) -> None:
    holds("""
    near, far = pair()
    far.sendall(b"an answer")
    near.sendall(b"all of it")
    near.close()
    assert rest(far) == b"all of it reset"
    """)


def test_after_shut_rd_a_send_fails_and_what_was_sent_before_can_be_read(holds: Callable[[str], None]) -> None:
    holds("""
    near, far = pair()
    near.sendall(b"before")
    far.shutdown(socket.SHUT_RD)
    assert error_of(lambda: near.send(b"after", socket.MSG_NOSIGNAL)) == "EPIPE"
    assert far.recv(100) == b"before" and far.recv(100) == b""
    far.sendall(b"an answer")  # the other way is open
    assert near.recv(100) == b"an answer"
    """)


def test_a_connection_that_was_not_accepted_when_the_listener_closed_is_reset(holds: Callable[[str], None]) -> None:
    holds("""
    with tempfile.TemporaryDirectory(dir="/tmp") as place:
        listener, near = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
        listener.bind(place + "/s")
        listener.listen(1)
        near.connect(place + "/s")
        near.sendall(b"heard by nobody")
        listener.close()
        assert error_of(lambda: near.send(b"more", socket.MSG_NOSIGNAL)) in ("EPIPE", "ECONNRESET")
    """)


def test_a_send_of_32_kb_is_whole_or_nothing(holds: Callable[[str], None]) -> None:
    holds("""
    flags = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
    for size in (300, 4096, 20_000, 32_768):
        for buffer in (65_536, 1_048_576):  # in pieces of half a buffer, so a smaller one would split it
            near, far = pair()
            near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
            near.settimeout(None)  # with a timeout Python itself would wait and try again
            far.setblocking(False)
            line, sent, heard, refused = b"x" * size, 0, 0, 0
            for turn in range(20_000):
                try:
                    got = near.send(line, flags)
                except BlockingIOError:
                    refused += 1
                    if refused == 100:
                        break
                    try:  # odd amounts of room
                        heard += len(far.recv(turn * 97 % 7000 + 1))
                    except BlockingIOError:
                        break  # the buffer has not the size of one such line
                else:
                    assert got == size, (got, size, buffer)
                    sent += got
            assert refused
            near.close()
            far.setblocking(True)
            assert heard + len(rest(far)) == sent
    """)


def test_a_send_of_60_kb_may_go_in_part(holds: Callable[[str], None]) -> None:
    # In pieces of some 36 kB, however large the buffer is: the second one may find no room.
    holds("""
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
    """)


def test_a_stopped_process_takes_connections_and_bytes_until_its_buffers_are_full(
    holds: Callable[[str], None],
) -> None:
    holds("""
    with tempfile.TemporaryDirectory(dir="/tmp") as place:
        listener, near = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
        listener.bind(place + "/s")
        listener.listen(1)
        pid = child(stay)
        listener.close()  # the child's alone
        stopped(pid)
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
        assert [error_of(lambda: one.connect(place + "/s")) for one in crowd][-1] == "EAGAIN"
        os.kill(pid, signal.SIGKILL)
        reap(pid)
    """)


def test_who_connects_to_a_stopped_manager_is_blocked(holds: Callable[[str], None]) -> None:
    # Why the relay is no manager: the handshake has no deadline, and each call would wait like that.
    holds(
        MANAGER
        + """
    stopped(pid)
    went_on = threading.Event()
    def connect():
        Manager(manager.address, b"key").connect()
        went_on.set()
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    assert not went_on.wait(1)
    os.kill(pid, signal.SIGCONT)
    assert went_on.wait(40)
    manager.shutdown()
    """
    )


def test_a_manager_has_a_thread_for_each_connection_that_says_nothing(holds: Callable[[str], None]) -> None:
    holds(
        MANAGER
        + """
    before = threads(pid)
    crowd = [silent() for _ in range(20)]
    eventually(lambda: threads(pid) >= before + 20)
    manager.shutdown()
    """
    )
