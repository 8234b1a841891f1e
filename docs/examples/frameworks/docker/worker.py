"""A program that is the first process of a container: `docker run` and `docker stop`."""

import signal
import sys
import threading
from typing import Any

from letterapp import Letter

letter = Letter()  # LETTER_API_KEY
stopping = threading.Event()


def stop(number: int, frame: Any) -> None:
    # The kernel ignores a signal without a handler if it goes to the first process of a container. So without this one
    # `docker stop` would wait for ten seconds, then kill the program, and Python would run no exit callback.
    stopping.set()


def main() -> int:
    signal.signal(signal.SIGTERM, stop)
    for number in range(20):
        letter.track(f"user_{number}", "Order Packed", {"order": number})
    print("waiting for orders", flush=True)
    # Not for ever: Python may notice a signal that arrives just before it waits only when it has waited.
    while not stopping.wait(1):
        pass
    letter.track("operations", "Packing Stopped")
    return 0  # the end of the program sends what is queued


if __name__ == "__main__":
    sys.exit(main())
