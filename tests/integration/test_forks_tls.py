"""A fork waits while another thread is inside OpenSSL or other C code, whose locks would stay held in the child."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from harness import run, whose
from programs import forks_tls

from letterapp.testing import IngestionServer, status


def test_a_fork_on_the_thread_that_blocks_forks_does_not_wait(tmp_path: Path) -> None:
    # The program's own function may run a program, or fork, while a request is being prepared.
    finished = run(forks_tls.fork_in_ssl_context, "https://127.0.0.1:9", tmp_path)
    assert finished.output.endswith("True\n") and "1 event lost" in finished.output, finished


@pytest.mark.slow
@pytest.mark.skipif("not hasattr(__import__('os'), 'fork')", reason="needs os.fork")
def test_a_child_forked_while_the_sender_creates_its_tls_context_can_send(
    tls_api: IngestionServer, ca_file: str, tmp_path: Path
) -> None:
    finished = run(forks_tls.fork_while_the_context_is_made, tls_api.url, tmp_path, ca_file)
    assert finished.code == 0, finished
    assert whose(tls_api) == {"parent": [0, 1, 2], "child": [0, 1, 2]}


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="how far a thread's end has come is reported by /proc")
@pytest.mark.parametrize("ends", ["flush", "idle"])
def test_a_fork_waits_until_the_senders_thread_has_also_ended_in_c(
    ends: str, letter_api: IngestionServer, tmp_path: Path
) -> None:
    # OpenSSL cleans up after a thread when that ends, under a lock which the end of a process takes too. A child that
    # was forked at that moment, as right after a `flush`, never ended: some 1 in 100 on a busy machine. Here a
    # destructor of the test's own takes the place of OpenSSL's.
    letter_api.rule = lambda request: status(401)
    finished = run(forks_tls.fork_while_the_thread_ends, letter_api.url, tmp_path, ends)
    assert finished.code == 0, finished


@pytest.mark.slow
def test_a_child_forked_right_after_a_flush_over_tls_ends(
    tls_api: IngestionServer, ca_file: str, tmp_path: Path
) -> None:
    finished = run(forks_tls.fork_right_after_flush, tls_api.url, tmp_path, ca_file)
    assert finished.code == 0, finished
    assert whose(tls_api) == {"program": list(range(20))}
