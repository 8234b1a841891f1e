"""The counters of a client as metrics of `prometheus_client`, for an application of one process.

The names are those of ``python -m letterapp relay --metrics``.
"""

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector


class LetterCollector(Collector):
    """Reads ``letter.stats()`` at each scrape: ``REGISTRY.register(LetterCollector(letter))``."""

    def __init__(self, letter):
        self._letter = letter

    def collect(self):
        stats = self._letter.stats()
        yield CounterMetricFamily(
            "letterapp_event_created", "Events that were tracked.", value=stats["accepted"] - stats["adopted"]
        )
        yield CounterMetricFamily(
            "letterapp_event_adopted", "Events that ended processes left.", value=stats["adopted"]
        )
        exported = CounterMetricFamily(
            "letterapp_exporter_event_exported",
            "Settled events: delivered, or lost for the reason in error_type.",
            labels=["error_type"],
        )
        exported.add_metric([""], stats["delivered"])
        for cause, count in stats["lost"].items():
            exported.add_metric([cause], count)
        yield exported
        yield CounterMetricFamily(
            "letterapp_exporter_event_retried", "Events in repeated requests.", value=stats["retried"]
        )
        yield GaugeMetricFamily(
            "letterapp_processor_event_queue_size", "Events that are queued or in flight.", value=stats["waiting"]
        )
        yield GaugeMetricFamily(
            "letterapp_processor_queue_size_bytes",
            "The size of the events that are queued or in flight.",
            value=stats["waiting_bytes"],
        )
