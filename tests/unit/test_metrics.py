"""The Prometheus text of a relay and a manager, as Prometheus' own parsers read it."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from harness import DEADLINE, ROOT

from letterapp._client import settings_of
from letterapp._relay_server.metrics import CAUSES, exposition

parser = pytest.importorskip("prometheus_client.parser")

PAGE = (ROOT / "docs" / "observability.md").read_text(encoding="utf-8")
SETTINGS = settings_of(api_key="test-key", base_url="http://127.0.0.1:9", max_queue_events=500)
STATUS: dict[str, Any] = {
    "pid": 7,
    "version": "1.2.3",
    "api": "http://127.0.0.1:9",
    "seconds": 3.5,
    "accepted": 107,
    "adopted": 7,
    "delivered": 90,
    "retried": 4,
    "lost": {"rejected": 2, 'un"us\\ual\n': 1},
    "waiting": 14,
    "waiting_bytes": 1400,
    "memory": "spool",
}
RELAY = {**STATUS, "socket": "/run/r.sock", "processes": 3, "leases": 1, "paused": 2, "refused": 5}
MANAGER = {**STATUS, "connections": 6}
each_kind = pytest.mark.parametrize("status", [RELAY, MANAGER], ids=["relay", "manager"])


def samples(text: bytes) -> dict[tuple[str, str], float]:
    """The value of each sample, by its name and its label's value."""
    return {
        (sample.name, sample.labels.get("error_type") or sample.labels.get("kind") or ""): sample.value
        for family in parser.text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


@each_kind
def test_each_counter_is_a_sample(status: dict[str, Any]) -> None:
    found = samples(exposition(status, SETTINGS))
    exported = {label: value for (name, label), value in found.items() if name.endswith("exported_total")}
    assert exported == {"": 90, **dict.fromkeys(CAUSES, 0), "rejected": 2, 'un"us\\ual\n': 1}
    created, adopted = found["letterapp_event_created_total", ""], found["letterapp_event_adopted_total", ""]
    assert (created, adopted) == (100, 7)
    waiting = found["letterapp_processor_event_queue_size", ""]
    assert created + adopted == sum(exported.values()) + waiting
    assert found["letterapp_exporter_event_retried_total", ""] == 4
    assert found["letterapp_processor_event_queue_capacity", ""] == 500
    assert found["letterapp_processor_queue_size_bytes", ""] == 1400
    connections = {label: value for (name, label), value in found.items() if name == "letterapp_relay_connections"}
    assert connections == ({"batches": 6} if status is MANAGER else {"events": 3, "lease": 1})


@each_kind
def test_every_metric_has_a_type_and_help(status: dict[str, Any]) -> None:
    for family in parser.text_string_to_metric_families(exposition(status, SETTINGS).decode()):
        assert family.type in ("counter", "gauge") and family.documentation.endswith("."), family


def promtool(*arguments: str, given: bytes = b"") -> tuple[int, bytes]:
    """Run Prometheus' own checker; return its exit status and what it says."""
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("promtool (Debian's package prometheus) is not installed")
    done = subprocess.run(
        [program, *arguments], input=given, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=DEADLINE
    )
    return done.returncode, done.stdout


@each_kind
def test_promtool_accepts_the_text(status: dict[str, Any]) -> None:
    assert promtool("check", "metrics", given=exposition(status, SETTINGS)) == (0, b"")


def test_promtool_accepts_the_alerts(tmp_path: Path) -> None:
    (tmp_path / "rules.yml").write_text(re.findall(r"^```yaml\n(groups:.*?)^```", PAGE, re.M | re.S)[0])
    code, said = promtool("check", "rules", str(tmp_path / "rules.yml"))
    assert code == 0 and b"2 rules found" in said, said
    named = set(re.findall(r"letterapp_\w+", (tmp_path / "rules.yml").read_text()))
    assert named and named <= {name for name, _ in samples(exposition(RELAY, SETTINGS))}


def test_every_cause_of_a_loss_has_a_sample_from_the_beginning() -> None:
    guarantees = (ROOT / "docs" / "guarantees.md").read_text()
    documented = re.findall(r"^\| `(\w+)` \| .* \| .*\|$", guarantees, re.M)
    assert {"rejected", "degraded"} <= set(documented)
    assert set(CAUSES) == set(documented) - {"degraded"}  # which is no loss


def test_the_document_names_every_metric() -> None:
    for name in {name for status in (RELAY, MANAGER) for name, _ in samples(exposition(status, SETTINGS))}:
        assert f"| `{name}` |" in PAGE, name
