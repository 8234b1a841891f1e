"""The counters of a relay or a manager as Prometheus text (exposition format 0.0.4).

Responsible for: the names of the metrics, and the format. Not responsible for: the counters, serving them (`endpoint`).

The names follow OpenTelemetry's semantic conventions for SDK metrics, with ``letterapp`` instead of ``otel.sdk`` and
``event`` instead of ``log``: https://opentelemetry.io/docs/specs/semconv/otel/sdk-metrics
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, Tuple

    from .._config import Settings

    Sample = Tuple[Dict[str, str], float]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# Why events are lost: each has a sample from the beginning, so that the first loss is an increase too.
CAUSES = ("closed", "damaged", "exit", "filtered", "invalid", "overflow", "rejected", "testing", "undeliverable")


class _Text:
    def __init__(self) -> None:
        self._lines: list[str] = []

    def add(self, name: str, kind: str, help_text: str, samples: list[Sample]) -> None:
        self._lines += [f"# HELP {name} {help_text}", f"# TYPE {name} {kind}"]
        for labels, value in samples:
            inside = ",".join(f'{label}="{_escaped(text)}"' for label, text in labels.items())
            self._lines.append(f"{name}{{{inside}}} {value}" if inside else f"{name} {value}")

    def counter(self, name: str, help_text: str, value: int) -> None:
        self.add(name, "counter", help_text, [({}, value)])

    def gauge(self, name: str, help_text: str, value: float) -> None:
        self.add(name, "gauge", help_text, [({}, value)])

    def encode(self) -> bytes:
        return "\n".join([*self._lines, ""]).encode()


def exposition(status: dict[str, Any], settings: Settings) -> bytes:
    """The text for ``status``, the dict that ``relay --status`` prints."""
    text = _Text()
    info = {"version": str(status["version"]), "memory": str(status["memory"])}
    text.add("letterapp_build_info", "gauge", "The version, and where events wait; always 1.", [(info, 1)])
    text.gauge("letterapp_relay_uptime_seconds", "Time since the start.", status["seconds"])
    _add_events(text, status)
    text.gauge("letterapp_processor_event_queue_size", "Events that are queued or in flight.", status["waiting"])
    text.gauge(
        "letterapp_processor_event_queue_capacity",
        "The maximum number of events in the queue.",
        settings.max_queue_events,
    )
    text.gauge(
        "letterapp_processor_queue_size_bytes",
        "The size of the events that are queued or in flight.",
        status["waiting_bytes"],
    )
    text.gauge("letterapp_processor_queue_capacity_bytes", "The maximum size of the queue.", settings.max_queue_bytes)
    _add_clients(text, status)
    return text.encode()


def _add_events(text: _Text, status: dict[str, Any]) -> None:
    text.counter(
        "letterapp_event_created_total", "Events that clients have sent.", status["accepted"] - status["adopted"]
    )
    text.counter("letterapp_event_adopted_total", "Events that an ended process left in the spool.", status["adopted"])
    lost = {**dict.fromkeys(CAUSES, 0), **status["lost"]}
    text.add(
        "letterapp_exporter_event_exported_total",
        "counter",
        "Settled events: delivered, or lost for the reason in error_type.",
        [({}, status["delivered"]), *(({"error_type": cause}, count) for cause, count in sorted(lost.items()))],
    )
    text.counter("letterapp_exporter_event_retried_total", "Events in repeated requests.", status["retried"])


def _add_clients(text: _Text, status: dict[str, Any]) -> None:
    if "connections" in status:  # a manager
        open_ones: list[Sample] = [({"kind": "batches"}, status["connections"])]
    else:
        open_ones = [({"kind": "events"}, status["processes"]), ({"kind": "lease"}, status["leases"])]
        text.gauge(
            "letterapp_relay_paused_connections",
            "Clients that are not read, because there is no room for their events.",
            status["paused"],
        )
        text.counter("letterapp_relay_refused_connections_total", "Connections that were refused.", status["refused"])
    text.add("letterapp_relay_connections", "gauge", "Open connections of clients.", open_ones)


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
