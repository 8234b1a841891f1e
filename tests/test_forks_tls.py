"""Forks while another thread is inside OpenSSL: its locks are held in the child for ever, unless the fork waits."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import pytest
from harness import run, whose

from letterapp.testing import IngestionServer

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
