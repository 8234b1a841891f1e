"""The counters of a client in each worker of a server, in the multi-process mode of `prometheus_client`.

A custom collector does not work in that mode, because a scrape reaches one worker. So each worker adds what has
happened since the last time to ordinary counters, which are in files that all workers share.
"""

import os
import threading
import time

from prometheus_client import Counter, Gauge

CREATED = Counter("letterapp_event_created", "Events that were tracked.")
ADOPTED = Counter("letterapp_event_adopted", "Events that ended processes left.")
EXPORTED = Counter(
    "letterapp_exporter_event_exported",
    "Settled events: delivered, or lost for the reason in error_type.",
    ["error_type"],
)
RETRIED = Counter("letterapp_exporter_event_retried", "Events in repeated requests.")
WAITING = Gauge(
    "letterapp_processor_event_queue_size", "Events that are queued or in flight.", multiprocess_mode="livesum"
)
INTERVAL = 1.0  # seconds


class Publisher:
    """Publishes the counters of ``letter``. Call `publish` in each request, and when a worker exits."""

    def __init__(self, letter):
        self._letter = letter
        self._lock = threading.Lock()
        self._pid = 0
        self._published = {}
        self._next = 0.0

    def publish(self, now=False):
        """Publish what has changed, at most once in `INTERVAL` seconds unless ``now``. Never waits."""
        if (now or time.monotonic() >= self._next) and self._lock.acquire(blocking=False):
            try:
                self._next = time.monotonic() + INTERVAL
                self._publish()
            finally:
                self._lock.release()

    def _publish(self):
        if self._pid != os.getpid():  # a forked worker, whose client counts from zero
            self._pid, self._published = os.getpid(), {}
        stats = self._letter.stats()
        self._add(CREATED, "created", stats["accepted"] - stats["adopted"])
        self._add(ADOPTED, "adopted", stats["adopted"])
        self._add(RETRIED, "retried", stats["retried"])
        self._add(EXPORTED.labels(""), "delivered", stats["delivered"])
        for cause, count in stats["lost"].items():
            self._add(EXPORTED.labels(cause), f"lost {cause}", count)
        WAITING.set(stats["waiting"])

    def _add(self, counter, name, total):
        increase = total - self._published.get(name, 0)
        if increase > 0:
            counter.inc(increase)
            self._published[name] = total
