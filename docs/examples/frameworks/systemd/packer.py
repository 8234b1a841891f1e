"""A service: see packer.service."""

import os
import signal
import sys
import time
from typing import Any

from letterapp import Letter

# With the spool the next start sends what a killed process has left. systemd sets STATE_DIRECTORY.
letter = Letter(spool=os.path.join(os.environ["STATE_DIRECTORY"], "letter"))  # LETTER_API_KEY


def stop(number: int, frame: Any) -> None:
    sys.exit(0)  # Python's own reaction to SIGTERM ends it without its exit callbacks


def main() -> None:
    signal.signal(signal.SIGTERM, stop)
    for number in range(20):
        letter.track(f"user_{number}", "Order Packed", {"order": number})
    print("waiting for orders", flush=True)
    while True:
        time.sleep(1)


if __name__ == "__main__":
    main()
