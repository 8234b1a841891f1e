"""The client's own threads take no signals, and hand nothing of that on to the application.

Responsible for: signals that the program waits for, the signal mask of programs that are started on a client's thread.
Not responsible for: that a thread has gone after `flush` (test_forks.py), signals that end a process (test_ends.py).
"""

from __future__ import annotations

import signal
import sys
import textwrap
from typing import Any

import pytest
from harness import run

from letterapp.testing import status

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")

# `idle(letter)` returns when the sender's thread has delivered what it had, and waits for more.
IDLE = """
import subprocess

def idle(letter):
    while letter.stats()["delivered"] + sum(letter.stats()["lost"].values()) < letter.stats()["accepted"]:
        time.sleep(0.005)

def mask():
    code = "import signal; print(sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])))"
    return subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True).stdout.decode().strip()
"""


@pytest.mark.parametrize("where", ["", ", spool='spool'"])
def test_a_signal_that_the_program_waits_for_is_left_to_it(where: str, letter_api: Any, tmp_path: Any) -> None:
    code = f"""
    letter = Letter('k', API{where})
    work(letter, 1)
    idle(letter)
    signal.pthread_sigmask(signal.SIG_BLOCK, {{signal.SIGTERM, signal.SIGUSR1}})
    for number in (signal.SIGTERM, signal.SIGUSR1):
        os.kill(os.getpid(), number)
        print(int(signal.sigwait({{signal.SIGTERM, signal.SIGUSR1}})), end=" ")
    """
    finished = run(IDLE + "\n" + textwrap.dedent(code), letter_api.url, tmp_path)
    assert finished.output == f"{int(signal.SIGTERM)} {int(signal.SIGUSR1)} ", finished


def test_on_error_and_ssl_context_have_the_program_s_own_signal_mask(letter_api: Any, tmp_path: Any) -> None:
    # Else whatever they start, which inherits it, could not be stopped.
    code = """
    import threading
    masks = []

    def on_error(error):
        masks.append((threading.get_ident() == main, mask()))

    def context():
        import ssl
        on_error(None)
        return ssl.create_default_context()

    main = threading.get_ident()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    letter = Letter('k', API, on_error=on_error)
    work(letter, 1)
    idle(letter)
    tls = Letter('k', API.replace('http:', 'https:'), on_error=on_error, ssl_context=context, max_retries=0)
    work(tls, 1)
    idle(tls)
    work(letter, 1, "later")
    idle(letter)
    letter.flush()
    tls.flush()
    print(masks == [(False, f"[<Signals.SIGUSR2: {int(signal.SIGUSR2)}>]")] * 4, masks)
    own = [line for line in open("/proc/self/status") if line.startswith("SigBlk")]
    print(own == [f"SigBlk:\\t{1 << int(signal.SIGUSR2) - 1:016x}\\n"])
    """
    letter_api.rule = lambda request: status(404)
    finished = run(IDLE + "\n" + textwrap.dedent(code), letter_api.url, tmp_path)
    assert finished.output.startswith("True [") and finished.output.endswith("\nTrue\n"), finished


def test_a_report_within_a_report_leaves_the_mask_as_it_was(letter_api: Any, tmp_path: Any) -> None:
    letter_api.rule = lambda request: status(400)
    code = """
    other = Letter('other', API, on_error=lambda error: None)

    def report(error):
        other.track("u", "e", {"x": object()})  # which calls the other's
        print(mask())

    letter = Letter('k', API, on_error=report)
    work(letter, 1)
    idle(letter)
    letter.close()
    print(mask())
    """
    finished = run(IDLE + textwrap.dedent(code), letter_api.url, tmp_path)
    inside, outside = finished.output.splitlines()
    assert inside == outside, finished


def test_the_on_error_of_a_listener_has_the_program_s_own_signal_mask(letter_api: Any, tmp_path: Any) -> None:
    # Its thread starts the one that sends.
    letter_api.rule = lambda request: status(400)
    code = """
    import multiprocessing
    from letterapp.relay import QueueListener
    queue = multiprocessing.Queue()
    with QueueListener(queue, 'k', API, on_error=lambda error: print(mask())):
        letter = Letter(relay=queue, api_key='k', base_url=API)
        work(letter, 1)
        letter.close(30)
    print(mask())
    """
    finished = run(IDLE + textwrap.dedent(code), letter_api.url, tmp_path)
    inside, outside = finished.output.splitlines()
    assert inside == outside, finished
