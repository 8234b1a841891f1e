"""A daemon: `python packer.py`. It ends at SIGTERM."""

import os
import time

import daemon
from daemon.pidfile import PIDLockFile

from letterapp import Letter


def main() -> None:
    here = os.getcwd()
    # Its reaction to SIGTERM is to end as `sys.exit` does, which sends what is queued.
    context = daemon.DaemonContext(working_directory=here, pidfile=PIDLockFile(os.path.join(here, "packer.pid")))
    with context:
        # Here, and not before: a daemon closes all descriptors, and the process before it ends.
        letter = Letter()  # LETTER_API_KEY
        for number in range(20):
            letter.track(f"user_{number}", "Order Packed", {"order": number})
        with open("ready", "w"):
            pass
        while True:
            time.sleep(1)


if __name__ == "__main__":
    main()
