"""The recipes of docs/observability.md: a collector for one process, and counters for the workers of gunicorn."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable

import pytest
from harness import DEADLINE, ROOT, WebServer, environment, eventually, needs

from letterapp import Letter
from letterapp.testing import Hold, IngestionServer, status
from stress.ports import free_port

pytest.importorskip("prometheus_client")

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.parser import text_string_to_metric_families

EXAMPLES = ROOT / "docs" / "examples" / "metrics"
EXPORTED = "letterapp_exporter_event_exported_total"


def totals(text: str) -> dict[str, float]:
    """The value of each metric, by its name and the cause of a loss."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = f"{sample.name} {sample.labels.get('error_type', '')}".strip()
            found[key] = found.get(key, 0) + sample.value
    return found


def test_a_collector_for_one_process(
    make: Callable[..., Letter], letter_api: IngestionServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    from collector import LetterCollector  # type: ignore[import-not-found]

    from letterapp._client import settings_of
    from letterapp._relay_server.metrics import exposition

    letter = make(flush_interval=1000)
    registry = CollectorRegistry()
    registry.register(LetterCollector(letter))
    for _ in range(3):
        letter.track("u", "E")
    letter.flush(DEADLINE)
    letter_api.plan(status(400))
    letter.track("u", "E")
    letter.flush(DEADLINE)
    letter.track("u", "E")
    found = totals(generate_latest(registry).decode())
    assert (found["letterapp_event_created_total"], found[EXPORTED], found[f"{EXPORTED} rejected"]) == (5, 3, 1)
    assert found["letterapp_processor_event_queue_size"] == 1

    relays: dict[str, Any] = {"version": "1", "seconds": 1, "processes": 1, "leases": 1, "paused": 0, "refused": 0}
    settings = settings_of(api_key="k", base_url="http://127.0.0.1:9")
    theirs = totals(exposition({**relays, **letter.stats()}, settings).decode())
    assert {name: theirs[name] for name in found} == found  # the same names and numbers


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_the_page_of_one_process(letter_api: IngestionServer, tmp_path: Path) -> None:
    """The code on the page runs as it is, except for the port."""
    page = (ROOT / "docs" / "observability.md").read_text(encoding="utf-8")
    code = page[page.index("from collector import") :].split("```")[0]
    port = free_port()
    code += "letter.track('u', 'E')\nletter.flush()\n"
    code += "import urllib.request as r\nprint(r.urlopen('http://127.0.0.1:9100/metrics').read().decode())"
    code = code.replace("9100", str(port))
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(letter_api.url, LETTER_BASE_URL=letter_api.url),
        cwd=str(EXAMPLES),
        stdout=subprocess.PIPE,
        encoding="utf-8",
        timeout=DEADLINE,
        check=True,
    )
    assert totals(done.stdout)[EXPORTED] == 1


class Workers:
    """gunicorn with the example, in a directory of its own."""

    def __init__(self, api: IngestionServer, tmp_path: Path) -> None:
        self.files = tmp_path / "metrics"
        self.files.mkdir()
        shutil.copytree(EXAMPLES, tmp_path / "app", ignore=shutil.ignore_patterns("__pycache__"))
        port = free_port()
        command = [sys.executable, "-m", "gunicorn", "-c", "gunicorn.conf.py", "-w", "2", "-b", f"127.0.0.1:{port}"]
        env = environment(
            api.url,
            LETTER_API_KEY="test-key",
            LETTER_BASE_URL=api.url,
            PROMETHEUS_MULTIPROC_DIR=str(self.files),
        )
        self.server = WebServer([*command, "app:app"], env, tmp_path / "app", port)

    def scrape(self) -> dict[str, float]:
        try:
            return totals(self.server.get("/metrics"))
        except OSError:
            return {}  # a worker was killed

    def visit(self) -> str:
        try:
            return self.server.get("/page")
        except OSError:
            return ""

    def until(self, name: str, value: float) -> dict[str, float]:
        """Scrape until it has the value: each scrape has one worker publish its numbers."""
        found = eventually(self.scrape, lambda found: found.get(name) == value)
        assert found.get(name) == value, (found, self.server.output)
        return found

    def at_the_end(self) -> dict[str, float]:
        registry = CollectorRegistry()
        MultiProcessCollector(registry, str(self.files))
        return totals(generate_latest(registry).decode())


@needs("gunicorn")
def test_several_workers_of_which_one_is_killed(letter_api: IngestionServer, tmp_path: Path) -> None:
    hold = Hold()
    letter_api.rule = lambda request: hold  # else the killed one may have delivered some that it has not published yet
    workers = Workers(letter_api, tmp_path)
    with workers.server as server:
        for _ in range(40):
            assert server.get("/page") == "ok"
        workers.until("letterapp_event_created_total", 40)
        victim = server.descendants()[0]
        server.signal(signal.SIGKILL, victim.pid)
        assert eventually(victim.is_running, lambda runs: not runs) is False
        letter_api.rule = None
        hold.release()
        assert letter_api.wait_for(40)
        for _ in range(10):
            assert eventually(workers.visit, lambda found: found == "ok") == "ok"
        server.signal(signal.SIGTERM)
        assert server.finish().code == 0
    last = workers.at_the_end()
    assert (last["letterapp_event_created_total"], last[EXPORTED]) == (50, 50), server
    assert letter_api.distinct == 50 and last["letterapp_processor_event_queue_size"] == 0
