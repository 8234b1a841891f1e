"""A scheduler with a process pool: `python reminders.py`. It ends at SIGTERM or Ctrl-C."""

import signal
import sys
from typing import Any

from apscheduler.executors.pool import ProcessPoolExecutor
from apscheduler.schedulers.blocking import BlockingScheduler

from letterapp import Letter

letter = Letter()  # LETTER_API_KEY


def remind(user: str) -> None:
    letter.track(user, "Reminder Sent")
    print("reminded", user, flush=True)


def stop(number: int, frame: Any) -> None:
    sys.exit(0)  # APScheduler leaves SIGTERM alone, and Python ends there without its exit callbacks


def main() -> None:
    signal.signal(signal.SIGTERM, stop)
    scheduler = BlockingScheduler(executors={"default": ProcessPoolExecutor(2)}, timezone="UTC")
    for number in range(4):
        scheduler.add_job(remind, "interval", seconds=1, args=[f"user_{number}"])
    try:
        scheduler.start()
    finally:
        scheduler.shutdown()  # waits for the jobs that run
        letter.track("operations", "Scheduler Stopped")


if __name__ == "__main__":
    main()
