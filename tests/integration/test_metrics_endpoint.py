"""``python -m letterapp relay --metrics``: a relay and a manager as Prometheus and Kubernetes see them."""

from __future__ import annotations

import re
import signal
import socket
import sys
import time
from functools import partial
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, Callable, Iterator

import pytest
from harness import DEADLINE, ROOT, Program, environment, eventually, get, suspend
from managed import Directory, own_directory  # noqa: F401  (a fixture)
from relayed import Runtime, own_runtime, track  # noqa: F401  (a fixture)
from senders import serving

from letterapp import Letter
from letterapp.relay import SenderManager
from letterapp.testing import Hold, IngestionServer, status

parser = pytest.importorskip("prometheus_client.parser")

ADDRESS = "127.0.0.1:0"
PROBE = 1.0  # seconds: the default timeout of a probe in Kubernetes
Kept = Any


def url_of(program: Program) -> str:
    found = re.search(r"metrics at (http://\S+)/metrics$", program.output, re.M)
    assert found, program.output
    return found[1]


def probe(url: str, timeout: float = DEADLINE) -> int:
    """The status of a probe; 0 without a response in ``timeout`` seconds."""
    parts = url.split("/", 3)
    connection = HTTPConnection(parts[2], timeout=timeout)
    try:
        connection.request("GET", f"/{parts[3]}")
        return connection.getresponse().status
    except OSError:
        return 0
    finally:
        connection.close()


def scrape(url: str) -> dict[str, float]:
    """The value of each metric; those with labels are summed."""
    found: dict[str, float] = {}
    for family in parser.text_string_to_metric_families(get(f"{url}/metrics")):
        for sample in family.samples:
            key = sample.name + (f" {sample.labels['error_type']}" if "error_type" in sample.labels else "")
            found[key] = found.get(key, 0) + sample.value
    return found


@pytest.fixture(params=["relay", "manager"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(name="kept")
def kept_with_metrics(kind: str, runtime: Runtime, directory: Directory) -> Iterator[Kept]:
    keep = runtime.keep if kind == "relay" else directory.keep
    with keep("--metrics", ADDRESS) as program:
        eventually(lambda: probe(f"{url_of(program)}/readyz"), lambda found: found == 200)
        yield program


@pytest.fixture(name="client")
def client_of_kept(
    kind: str, kept: Kept, make: Callable[..., Letter], runtime: Runtime, directory: Directory
) -> Letter:
    if kind == "relay":
        return make(relay=runtime.socket)
    manager = SenderManager(
        "test-key", directory.api.url, address=directory.socket, authkey=directory.authkey_file.read_bytes().strip()
    )
    manager.connect()
    return make(relay=manager.queue)


def test_what_is_sent_and_lost_is_counted(kind: str, kept: Kept, client: Letter, letter_api: IngestionServer) -> None:
    track(client, 30)
    assert client.flush(DEADLINE)
    letter_api.plan(status(400))
    track(client, 1)
    assert client.flush(DEADLINE)
    found = eventually(lambda: scrape(url_of(kept)), lambda found: found["letterapp_event_created_total"] == 31)
    assert found["letterapp_exporter_event_exported_total"] == 30
    assert found["letterapp_exporter_event_exported_total rejected"] == 1
    assert found["letterapp_processor_event_queue_size"] == 0
    assert found["letterapp_relay_connections"] == (2 if kind == "relay" else 1)  # a relay has a lease as well


def test_a_queue_that_waits_for_the_api_is_counted_and_is_ready(
    kept: Kept, client: Letter, letter_api: IngestionServer
) -> None:
    hold = Hold()
    letter_api.plan(hold)
    track(client, 30)
    assert hold.arrived.wait(DEADLINE)
    found = eventually(lambda: scrape(url_of(kept)), lambda found: found["letterapp_event_created_total"] == 30)
    assert found["letterapp_processor_event_queue_size"] == 30 and found["letterapp_processor_queue_size_bytes"] > 30
    assert probe(f"{url_of(kept)}/readyz") == probe(f"{url_of(kept)}/healthz") == 200
    hold.release()
    assert client.flush(DEADLINE)


def test_a_stopped_process_is_not_alive_and_a_continued_one_is(kept: Kept) -> None:
    url = url_of(kept)
    assert probe(f"{url}/healthz") == 200
    suspend(kept.pid)
    assert probe(f"{url}/healthz", PROBE) == 0
    kept.signal(signal.SIGCONT)
    assert eventually(lambda: probe(f"{url}/healthz"), lambda found: found == 200) == 200


# The program, in which no turn of the loop counts unless the probe has caused it.
IMPATIENT = (
    "import sys; from letterapp.__main__ import main; from letterapp._relay_server import endpoint; "
    "endpoint.LATELY = 0.0; sys.exit(main())"
)


def test_an_idle_one_is_woken_and_alive(kind: str, runtime: Runtime, directory: Directory) -> None:
    if kind == "relay":
        command = runtime.command_line("--socket", runtime.socket, "--metrics", ADDRESS)
    else:
        command = directory.command_line("--manager", directory.socket, "--metrics", ADDRESS)
    env = environment(runtime.api.url, LETTER_API_KEY="test-key")
    with serving([command[0], "-c", IMPATIENT, *command[3:]], env, runtime.path) as program:
        url = url_of(program)
        assert eventually(lambda: probe(f"{url}/readyz"), lambda found: found == 200) == 200
        assert [probe(f"{url}/healthz") for _ in range(3)] == [200] * 3


def test_while_it_drains_it_is_alive_and_not_ready(
    kind: str, kept: Kept, client: Letter, letter_api: IngestionServer
) -> None:
    url = url_of(kept)
    hold = Hold()
    letter_api.plan(hold)
    track(client, 1)
    assert hold.arrived.wait(DEADLINE)
    kept.signal(signal.SIGTERM)
    seen = eventually(lambda: (probe(f"{url}/readyz"), probe(f"{url}/healthz")), lambda found: found[0] != 200)
    assert seen == (503, 200)
    hold.release()
    assert kept.finish().code == 0
    assert probe(f"{url}/healthz") == 0


def test_signals_still_end_it_at_once(kept: Kept) -> None:
    began = time.monotonic()
    kept.signal(signal.SIGTERM)
    assert kept.finish().code == 0
    assert time.monotonic() - began < DEADLINE / 2


def test_a_port_in_use_is_an_error_at_the_start(kind: str, runtime: Runtime, directory: Directory) -> None:
    with socket.create_server(("127.0.0.1", 0)) as used:
        address = f"127.0.0.1:{used.getsockname()[1]}"
        if kind == "relay":
            done = runtime.command("--socket", runtime.socket, "--metrics", address)
        else:
            done = directory.command("--manager", directory.socket, "--metrics", address)
    assert done.returncode == 1 and f"--metrics: cannot listen at {address}: Address already in use" in done.stderr
    assert "Traceback" not in done.stderr and "serving at" not in done.stderr
    assert not Path(runtime.socket).exists() and not Path(directory.socket).exists()


@pytest.mark.parametrize("address", ["9464", ":9464", "localhost:", "localhost:http", "::1:9464", "[::1]", "h:65536"])
def test_an_address_that_is_none_is_an_error(address: str, runtime: Runtime) -> None:
    done = runtime.command("--socket", runtime.socket, "--metrics", address)
    assert done.returncode == 2 and "--metrics" in done.stderr and "Traceback" not in done.stderr


def test_only_a_relay_that_is_run_separately_has_metrics(runtime: Runtime) -> None:
    for options in (["--status"], ["--for-clients"], ["--for-manager"]):
        done = runtime.command(*options, "--metrics", ADDRESS)
        assert done.returncode == 2 and "--metrics is for a relay that is run separately" in done.stderr


def test_the_command_of_the_kubernetes_example(directory: Directory, tmp_path: Path) -> None:
    """It runs as it stands on the page, with other paths and ports, and each probe of the example succeeds."""
    page = (ROOT / "docs" / "observability.md").read_text(encoding="utf-8")
    lines = re.findall(r"^ +- (python|-m|letterapp|relay|--\S+)(?: .*)?$", page, re.M)
    assert lines[:4] == ["python", "-m", "letterapp", "relay"] and len(lines) == 9
    (tmp_path / "key").write_text("test-key")
    (tmp_path / "key").chmod(0o600)
    places = {"0.0.0.0:7000": ADDRESS, "0.0.0.0:9464": ADDRESS, "/run/secrets/letter/key": str(tmp_path / "key")}
    places.update({"/run/secrets/letter/authkey": str(directory.authkey_file), "/var/lib/letter": str(tmp_path)})
    command = [sys.executable, *lines[1:], "--base-url", directory.api.url]
    for there, here in places.items():
        command = [part.replace(there, here) for part in command]
    with serving(command, environment(directory.api.url), tmp_path) as program:
        for path in set(re.findall(r"httpGet: \{path: (\S+),", page)):
            assert eventually(partial(probe, url_of(program) + path), lambda found: found == 200) == 200
        assert scrape(url_of(program))["letterapp_build_info"] == 1
        assert (tmp_path / "spool").is_dir()


@pytest.mark.slow
def test_hostile_clients_do_not_stop_events(kept: Kept, client: Letter) -> None:
    host, port = url_of(kept).rsplit("/", 1)[1].split(":")
    others = [socket.create_connection((host, int(port)), DEADLINE) for _ in range(200)]
    for number, sock in enumerate(others):
        try:
            sock.sendall(b"GET /metrics HTTP/1.1\r\n" if number % 2 else b"\x16\x03\x01" * 1_000)
        except OSError:
            pass  # there are newer ones, so it was closed
    track(client, 50)
    assert client.flush(DEADLINE)
    assert probe(f"{url_of(kept)}/healthz") == 200
    for sock in others:
        sock.close()
