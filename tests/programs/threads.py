"""Programs of test_threads: what the client's own threads do with signals and their masks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

from letterapp import Letter, LetterError
from programs.common import API, main, make, work

if TYPE_CHECKING:
    import ssl


def idle(letter: Letter) -> None:
    """Return when the sender's thread has delivered what it had, and waits for more."""
    while letter.stats()["delivered"] + sum(letter.stats()["lost"].values()) < letter.stats()["accepted"]:
        time.sleep(0.005)


def mask() -> str:
    """The signals that are blocked in a program that this thread starts."""
    code = "import signal; print(sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])))"
    return subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True).stdout.decode().strip()


def awaited_signals(spool: str) -> None:
    letter = make(spool=spool or None)
    work(letter, 1)
    idle(letter)
    awaited = {signal.SIGTERM, signal.SIGUSR1}
    signal.pthread_sigmask(signal.SIG_BLOCK, awaited)
    for number in (signal.SIGTERM, signal.SIGUSR1):
        os.kill(os.getpid(), number)
        print(int(signal.sigwait(awaited)), end=" ")


def masks_of_callbacks() -> None:
    masks = []
    first = threading.get_ident()

    def note() -> None:
        masks.append((threading.get_ident() == first, mask()))

    def on_error(error: LetterError) -> None:
        note()

    def context() -> ssl.SSLContext:
        import ssl

        note()
        return ssl.create_default_context()

    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    letter = make(on_error=on_error)
    work(letter, 1)
    idle(letter)
    tls = make(base_url=API.replace("http:", "https:"), on_error=on_error, ssl_context=context, max_retries=0)
    work(tls, 1)
    idle(tls)
    work(letter, 1, "later")
    idle(letter)
    letter.flush()
    tls.flush()
    print(masks == [(False, f"[<Signals.SIGUSR2: {int(signal.SIGUSR2)}>]")] * 4, masks)
    with open("/proc/self/status") as status:
        own = [line for line in status if line.startswith("SigBlk")]
    print(own == [f"SigBlk:\t{1 << int(signal.SIGUSR2) - 1:016x}\n"])


def report_within_a_report() -> None:
    other = make("other", on_error=lambda error: None)

    def report(error: LetterError) -> None:
        other.track("u", "e", {"x": object()})  # which calls the other's
        print(mask())

    letter = make(on_error=report)
    work(letter, 1)
    idle(letter)
    letter.close()
    print(mask())


def report_of_a_listener() -> None:
    import multiprocessing

    from letterapp.relay import QueueListener

    queue: Any = multiprocessing.Queue()
    with QueueListener(queue, "k", API, on_error=lambda error: print(mask())):
        letter = make(relay=queue)
        work(letter, 1)
        letter.close(30)
    print(mask())


main(globals())
