"""What `multiprocessing` does by itself, which `Letter(relay=queue)` is built on and around.

Responsible for: the smallest program that shows each fact, run with this Python. Not responsible for: the client.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from harness import run, start

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs Unix")


def shows(code: str, tmp_path: Path, *arguments: str) -> str:
    finished = run(code, "", tmp_path, *arguments)
    assert finished.code == 0, finished
    return finished.output


def test_a_raw_fork_leaves_parent_and_child_one_connection_of_a_used_proxy(tmp_path: Path) -> None:
    code = """
    import multiprocessing
    manager = multiprocessing.get_context("fork").Manager()
    queue = manager.Queue()
    queue.qsize()  # used: the connection is open
    mine = queue._tls.connection

    def job():
        os.write(1, f"{queue._tls.connection is mine and queue._tls.connection.fileno() == mine.fileno()}\\n".encode())
        queue._tls.connection.close()  # or parent and child would take each other's answers

    os.waitpid(child(job), 0)
    process = multiprocessing.get_context("fork").Process(
        target=lambda: os.write(1, f"{hasattr(queue._tls, 'connection')}\\n".encode())
    )
    process.start()
    process.join()
    """
    assert shows(code, tmp_path).split() == ["True", "False"]


def test_a_connection_of_one_s_own_from_the_proxy_s_token_works_in_a_raw_fork(tmp_path: Path) -> None:
    code = """
    import multiprocessing
    from multiprocessing.connection import Client
    from multiprocessing.managers import dispatch
    manager = multiprocessing.get_context("fork").Manager()
    queue = manager.Queue()
    queue.qsize()

    def job():
        connection = Client(queue._token.address, authkey=bytes(queue._authkey))
        dispatch(connection, None, "accept_connection", ("a child",))
        for serial in range(100):
            dispatch(connection, queue._token.id, "put_nowait", (serial,))

    children = [child(job) for _ in range(3)]
    for pid in children:
        assert os.waitpid(pid, 0)[1] == 0
    print(queue.qsize())
    """
    assert shows(code, tmp_path) == "300\n"


def test_an_exception_in_the_middle_of_a_call_shifts_every_later_answer(tmp_path: Path) -> None:
    code = """
    import multiprocessing
    from multiprocessing.connection import Connection
    manager = multiprocessing.get_context("fork").Manager()
    queue = manager.Queue()
    queue.put("an item")
    receive = Connection.recv

    def interrupted(self):
        Connection.recv = receive
        raise KeyboardInterrupt  # as a signal handler may, between the question and the answer

    Connection.recv = interrupted
    try:
        queue.qsize()
    except KeyboardInterrupt:
        pass
    print(repr(queue.empty()), repr(queue.get()))  # qsize's answer, then empty's
    """
    assert shows(code, tmp_path) == "1 False\n"


def test_a_proxy_that_is_pickled_loses_a_key_of_its_manager_s_own(tmp_path: Path) -> None:
    # cpython issue 139801
    code = """
    import multiprocessing, pickle
    from multiprocessing import AuthenticationError
    from multiprocessing.managers import SyncManager
    manager = SyncManager(authkey=b"a key of its own", ctx=multiprocessing.get_context("fork"))
    manager.start()
    queue = manager.Queue()
    try:
        pickle.loads(pickle.dumps(queue))
    except AuthenticationError as error:
        print("lost")
    """
    assert shows(code, tmp_path) == "lost\n"


def test_a_queue_s_feeder_is_renewed_in_a_multiprocessing_child_and_not_after_a_raw_fork(tmp_path: Path) -> None:
    code = """
    import multiprocessing
    queue = multiprocessing.get_context("fork").Queue()
    queue.put("starts the feeder")
    queue.get()
    look = lambda: os.write(1, f"{queue._thread is None}\\n".encode())
    os.waitpid(child(look), 0)
    process = multiprocessing.get_context("fork").Process(target=look)
    process.start()
    process.join()
    """
    assert shows(code, tmp_path).split() == ["False", "True"]


def test_a_feeder_waits_for_more_only_when_it_has_written_all(tmp_path: Path) -> None:
    code = """
    import multiprocessing
    queue = multiprocessing.Queue()
    deadline = time.monotonic() + 30

    def is_idle():
        with queue._notempty:
            return not queue._buffer and bool(queue._notempty._waiters)

    for serial in range(200):
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
    """
    assert shows(code, tmp_path) == "False\nTrue\n"


def test_a_process_whose_queue_nobody_reads_does_not_end_unless_its_feeder_is_let_go(tmp_path: Path) -> None:
    code = """
    import multiprocessing
    queue = multiprocessing.Queue()
    queue.put(b"x" * 1_000_000)
    if sys.argv[1] == "let go":
        queue.cancel_join_thread()
    os.write(1, b"at its end\\n")
    """
    assert shows(code, tmp_path, "let go") == "at its end\n"
    with start(code, "", tmp_path, "joined") as program, pytest.raises(AssertionError, match="still running"):
        program.finish(3)


def test_a_manager_s_server_spares_sigint_and_ends_at_sigterm(tmp_path: Path) -> None:
    code = """
    import multiprocessing
    manager = multiprocessing.get_context("fork").Manager()
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
        except (EOFError, ConnectionError) as error:
            print("gone")
    """
    assert shows(code, tmp_path) == "1\ngone\ngone\n"


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_what_a_spawned_child_registers_while_it_unpickles_its_job_may_be_kept(method: str, tmp_path: Path) -> None:
    # Up to 3.10 `BaseProcess._bootstrap` cleared it; so it is registered then, and again after that.
    code = """
    import multiprocessing
    from multiprocessing import process, util

    class Job:
        def __reduce__(self):
            return Job.made, ()
        @staticmethod
        def made():
            about = f"{process.parent_process() is None} {getattr(process.current_process(), '_inheriting', False)}"
            util.Finalize(None, os.write, (1, b"kept\\n"), exitpriority=100)
            util.register_after_fork(Job.again, Job.again)
            os.write(1, f"{about}\\n".encode())
            return Job()
        @staticmethod
        def again(_):
            os.write(1, b"called again\\n")

    def run(job):
        os.write(1, b"runs\\n")

    if __name__ == "__main__":
        child = multiprocessing.get_context(sys.argv[1]).Process(target=run, args=(Job(),))
        child.start()
        child.join()
    """
    lines = shows(code, tmp_path, method).splitlines()
    assert lines[0] == "True True", lines
    assert lines[1:] in (["called again", "runs"], ["runs", "kept"]), lines


def test_the_number_of_connections_that_a_server_keeps_waiting(tmp_path: Path) -> None:
    # 16 up to 3.11: a connect to a full backlog fails at once for a socket with a time-out.
    code = """
    from multiprocessing.connection import Listener
    import socket
    address = sys.argv[1]
    listener = Listener(address, backlog=16)
    listener._listener._socket.listen(512)  # again, with more
    waiting = []
    for _ in range(100):
        waiting.append(socket.socket(socket.AF_UNIX))
        waiting[-1].settimeout(5)
        waiting[-1].connect(address)
    print(len(waiting))
    """
    assert shows(code, tmp_path, str(tmp_path / "s")) == "100\n"


def test_shutting_a_listening_socket_down_ends_a_wait_in_accept(tmp_path: Path) -> None:
    code = """
    from multiprocessing.connection import Listener
    import socket
    listener = Listener(sys.argv[1])

    def accept():
        try:
            listener.accept()
        except OSError:
            print("ended")

    thread = threading.Thread(target=accept)
    thread.start()
    listener._listener._socket.shutdown(socket.SHUT_RDWR)
    thread.join(30)
    print(thread.is_alive())
    """
    if os.uname().sysname == "Linux":
        assert shows(code, tmp_path, str(tmp_path / "s")) == "ended\nFalse\n"
