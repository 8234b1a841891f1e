"""Forks while another thread is inside OpenSSL, or other C: its locks are held in the child for ever, unless the fork
waits.
"""

from __future__ import annotations

import ssl
import sys
from pathlib import Path
from typing import Any

import pytest
from harness import run, whose

from letterapp.testing import IngestionServer, status

trustme = pytest.importorskip("trustme")


def test_a_fork_on_the_very_thread_for_which_forks_wait_does_not_wait(tmp_path: Path) -> None:
    # The program's own function may run a program, or fork, while a request is being prepared.
    code = """
    import subprocess
    def context():
        import ssl
        subprocess.run([sys.executable, "-c", ""], preexec_fn=lambda: None)
        if not os.fork():
            sys.__stdout__.flush()
            __import__("posix")._exit(0)
        os.wait()
        return ssl.create_default_context()
    letter = Letter("k", "https://127.0.0.1:9", flush_interval=0, ssl_context=context, max_retries=0, on_error=print)
    began = time.monotonic()
    work(letter, 1)
    letter.flush(40)
    print(time.monotonic() - began < 20)
    """
    finished = run(code, "http://unused", tmp_path)
    assert finished.output.endswith("True\n") and "1 event lost" in finished.output, finished


@pytest.mark.skipif("not hasattr(__import__('os'), 'fork')", reason="needs os.fork")
def test_a_fork_while_the_sender_makes_its_tls_context_leaves_a_child_that_can_send(tmp_path: Path) -> None:
    ca: Any = trustme.CA()
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("localhost").configure_cert(server)
    code = """
    import ssl
    inside = threading.Event()
    finished = False
    def context():
        global finished
        inside.set()
        for _ in range(5):  # some 80 ms; which instruction the fork would meet is a matter of luck
            ssl.create_default_context()
        made = ssl.create_default_context(cafile=os.environ["TEST_CA"])
        finished = True
        return made
    letter = Letter("k", API, flush_interval=0, ssl_context=context, exit_timeout=20, timeout=20)
    work(letter, 3, "parent")
    assert inside.wait(30)
    child = os.fork()
    if child == 0:
        assert finished, "forked inside OpenSSL"
        work(letter, 3, "child")
        sys.exit(0)
    assert os.waitpid(child, 0)[1] == 0
    """
    with IngestionServer(ssl_context=server) as api:
        finished = run(code, api.url, tmp_path, TEST_CA=str(tmp_path / "ca.pem"))
        assert finished.code == 0, finished
        assert whose(api) == {"parent": [0, 1, 2], "child": [0, 1, 2]}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="how far a thread's end has come is told by /proc")
@pytest.mark.parametrize("ends", ["flush", "idle"])
def test_a_fork_waits_until_the_sender_s_thread_has_ended_in_c_too(
    ends: str, letter_api: IngestionServer, tmp_path: Path
) -> None:
    # OpenSSL cleans up after a thread when that ends, under a lock which the end of a process takes too. A child that
    # was forked at that moment, as right after a `flush`, never ended: some 1 in 100 on a busy machine. Here a
    # destructor of the test's own takes the place of OpenSSL's.
    code = """
    import ctypes
    from letterapp._runtime import atfork
    from letterapp._delivery import worker

    atfork.NETWORK = 60.0
    worker.IDLE = 0.01 if sys.argv[1] == 'idle' else 60.0
    forking, is_over = threading.Event(), False

    @ctypes.CFUNCTYPE(None, ctypes.c_void_p)
    def destructor(_):
        global is_over
        forking.wait(60)
        time.sleep(0.2)
        is_over = True

    libc = ctypes.CDLL(None)
    key = ctypes.c_uint()
    assert libc.pthread_key_create(ctypes.byref(key), destructor) == 0

    def on_error(error):  # on the sender's thread
        assert libc.pthread_setspecific(key, ctypes.c_void_p(1)) == 0

    letter = Letter('k', API, on_error=on_error)
    os.register_at_fork(before=forking.set)  # called before the client's
    letter.track('u', 'E')
    if sys.argv[1] == 'flush':
        assert letter.flush(60)
    while letter._delivery._queue.has_worker:
        time.sleep(0.001)
    pid = os.fork()
    if pid == 0:
        os._exit(0 if is_over else 1)
    assert os.waitpid(pid, 0)[1] == 0, "forked while the thread ended"
    """
    letter_api.rule = lambda request: status(401)
    finished = run(code, letter_api.url, tmp_path, ends)
    assert finished.code == 0, finished


def test_a_child_that_is_forked_right_after_a_flush_over_tls_comes_to_its_end(tmp_path: Path) -> None:
    ca: Any = trustme.CA()
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("localhost").configure_cert(server)
    code = """
    import ssl
    context = ssl.create_default_context(cafile=os.environ['TEST_CA'])
    children = []
    for turn in range(20):
        letter = Letter('k', API, ssl_context=context)
        work(letter, 1, start=turn)
        assert letter.flush(60)
        pid = os.fork()
        if not pid:
            break  # to the end of the interpreter, and of OpenSSL
        children.append(pid)
    for pid in children if pid else ():
        assert os.waitpid(pid, 0)[1] == 0
    """
    with IngestionServer(ssl_context=server) as api:
        finished = run(code, api.url, tmp_path, TEST_CA=str(tmp_path / "ca.pem"))
        assert finished.code == 0, finished
        assert whose(api) == {"program": list(range(20))}
