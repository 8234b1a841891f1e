"""The ledger of `stress`: its counts, and that each of its columns goes red if the client is broken in that way.

The broken clients are this client with one fault each (stress/inside/broken.py), and the programs are real.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from harness import DEADLINE, ROOT, first_is_quick
from rich.console import Console

from stress import ports, run, scenario_run
from stress.ledger import FAULTS, Records, balance, verdict
from stress.peers import MANAGER, RELAY, SELF, Environments, Peer
from stress.ports import free_port
from stress.programs import Failure
from stress.scenarios import SCENARIOS, chaos, exits, manager, relay

ONE, OTHER = ("1", 0), ("1", 1)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the kernel's range is not asked for")
def test_a_free_port_is_not_an_ephemeral_port() -> None:
    first, last = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    if first < 11_000 and last > 64_535:
        pytest.skip("nothing is beside the kernel's range")
    assert not any(first <= free_port() <= last for _ in range(20))


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing marks a port")
def test_a_free_port_is_used_once(monkeypatch: pytest.MonkeyPatch) -> None:
    all_of_them = ports._outside_kernel_range()
    start = random.randrange(len(all_of_them) - 20)
    some = all_of_them[start : start + 20]  # some of which may be in use
    monkeypatch.setattr(ports, "_outside_kernel_range", lambda: some)
    assert len({free_port() for _ in range(15)}) == 15


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing marks a port")
def test_the_number_of_marked_ports_is_bounded() -> None:
    for _ in range(ports._MAX_RESERVED + 20):
        free_port()
    assert len(ports._reservations) == ports._MAX_RESERVED


def sums(returned: list[Any], arrivals: list[Any], reported: tuple[Any, ...] = ()) -> dict[str, Any]:
    records = Records(dict.fromkeys(returned, 1500), dict.fromkeys(reported, "reported"), arrivals)
    found = balance(records)._asdict()
    assert found["calls"] == found["delivered"] + found["reported"] + found["lost"]
    return {name: value for name, value in found.items() if value and name not in ("calls", "longest_call_ms")}


def test_events_that_arrived_once_balance() -> None:
    assert sums([ONE, OTHER], [("a", ONE), ("b", OTHER)]) == {"delivered": 2}


def test_a_second_delivery_under_the_same_id_is_no_fault() -> None:
    assert sums([ONE, OTHER], [("a", ONE), ("b", OTHER), ("a", ONE)]) == {"delivered": 2}


def test_an_event_that_did_not_arrive_is_lost_unless_it_was_reported() -> None:
    assert sums([ONE, OTHER], [("a", ONE)]) == {"delivered": 1, "lost": 1}
    assert sums([ONE, OTHER], [("a", ONE)], reported=(OTHER,)) == {"delivered": 1, "reported": 1}
    assert sums([ONE], [("a", ONE)], reported=(ONE,)) == {"delivered": 1}, "given up, but delivered nevertheless"


def test_two_ids_of_one_event_and_two_events_of_one_id() -> None:
    assert sums([ONE], [("a", ONE), ("b", ONE)]) == {"delivered": 1, "twice": 1}
    assert sums([ONE, OTHER], [("a", ONE), ("a", OTHER)]) == {"delivered": 2, "collided": 1}


def test_order_is_that_of_first_arrivals_and_within_one_thread() -> None:
    assert sums([ONE, OTHER], [("b", OTHER), ("a", ONE)]) == {"delivered": 2, "disordered": 1}
    elsewhere = ("2", 0)
    assert sums([OTHER, elsewhere], [("b", OTHER), ("c", elsewhere)]) == {"delivered": 2}


def test_a_call_that_was_cut_short_is_no_fault() -> None:
    assert sums([ONE], [("a", ONE), ("b", OTHER)]) == {"delivered": 1, "cut": 1}


def test_every_fault_makes_the_verdict_red() -> None:
    clean = {**dict.fromkeys(FAULTS, 0), "reported": 0, "failure": None}
    assert verdict(clean) == "balances"
    assert verdict({**clean, "reported": 1}) == "reported"
    assert verdict({**clean, "failure": "no server"}) == "failed"
    for fault in FAULTS:
        assert verdict({**clean, "reported": 1, fault: 1}) == "red"


@pytest.fixture
def perform(tmp_path: Path) -> Any:
    """Run a scenario with a client of stress/inside, on this interpreter."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    environments = Environments(sys.executable, tmp_path, print)

    def perform(scenario: str, client: str, **options: Any) -> dict[str, Any]:
        column = MANAGER if "manager" in options else RELAY if "relay" in options else SELF
        peer = Peer(column, client, "letterapp", "", sys.executable, "", env, options)
        return scenario_run.run_scenario(SCENARIOS[scenario], peer, environments)

    return perform


def faults(entry: dict[str, Any]) -> dict[str, int]:
    return {fault: entry[fault] for fault in FAULTS if entry[fault]}


needs_unix = pytest.mark.skipif(sys.platform == "win32", reason="forks, and a relay needs Unix sockets")


@first_is_quick("scenario", ["single", "bursts", "threads", pytest.param("python-daemon", marks=needs_unix)])
def test_the_client_as_it_is_balances(scenario: str, perform: Any) -> None:
    if scenario == "python-daemon":
        pytest.importorskip("daemon")
    entry = perform(scenario, "letterapp")
    assert (entry["verdict"], faults(entry), entry["failure"]) == ("balances", {}, None), entry
    assert entry["delivered"] == entry["calls"] > 0


@pytest.mark.slow
@needs_unix
def test_events_queued_at_os_exit_are_lost(perform: Any) -> None:
    entry = perform("os-exit", "letterapp", send_on_os_exit=False)
    assert (entry["verdict"], list(faults(entry)), entry["calls"]) == ("red", ["lost"], 320), entry


@pytest.mark.slow
@needs_unix
def test_a_family_ended_by_ctrl_c_reports_every_event(perform: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exits, "FAMILIES", 1)
    entry = perform("family-ctrl-c-hurried", "letterapp")
    assert (entry["verdict"], entry["reported"], entry["calls"], faults(entry)) == ("reported", 40, 40, {}), entry


@needs_unix
@first_is_quick("scenario", ["single", "process-spawn", "sigterm-exit-signals", "relay-cgroup"])
def test_the_client_with_a_relay_balances(scenario: str, perform: Any) -> None:
    if scenario == "relay-cgroup":
        pytest.importorskip("gunicorn")
    entry = perform(scenario, "letterapp", relay=True)
    assert (entry["verdict"], faults(entry), entry["failure"]) == ("balances", {}, None), entry
    assert entry["delivered"] == entry["calls"] > 0


@pytest.mark.slow
@needs_unix
def test_a_relay_that_outlives_its_clients_is_an_orphan(perform: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenario_run, "GRACE", 0.3)

    def outside(scenario: Any) -> None:
        program = scenario.start("bursts")
        program.receive()
        program.resume()
        program.receive()
        pid = relay.used(scenario, events=200)["pid"]
        assert scenario.wait_for_all(DEADLINE)
        os.kill(pid, signal.SIGSTOP)
        program.close_stdin()
        scenario.finish(program)

    monkeypatch.setattr(SCENARIOS["bursts"].module, "outside", outside)
    entry = perform("bursts", "letterapp", relay=True, exit_timeout=1.0)
    assert (entry["verdict"], faults(entry)) == ("red", {"orphans": 1}), entry


@pytest.mark.slow
@needs_unix
def test_losses_in_the_log_of_a_relay_count_as_reported(perform: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenario_run, "GRACE", 15.0)  # a relay may run for a while after its last client
    entry = perform("outage-end", "letterapp", relay=True, exit_timeout=1.0)
    assert (entry["verdict"], faults(entry)) == ("reported", {}), entry
    assert entry["calls"] == entry["reported"] + entry["delivered"] > entry["delivered"]


@pytest.mark.slow
@needs_unix
def test_a_relay_that_dies_with_events(perform: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "KILLS", 2)
    entry = perform("relay-killed", "letterapp", relay=True)
    assert (entry["verdict"], faults(entry), entry["failure"]) == ("balances", {}, None), entry
    assert any("name no event" in note for note in entry["notes"]), "no process has reported the end of its relay"


@needs_unix
@first_is_quick(
    "scenario",
    ["single", "single-close", "process-spawn", "sigterm-exit-signals", "manager-restarted", "manager-terminated"],
)
def test_the_client_with_a_manager_balances(scenario: str, perform: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manager, "RESTARTS", 1)
    entry = perform(scenario, "letterapp", manager={})
    assert (entry["verdict"], faults(entry), entry["failure"]) == ("balances", {}, None), entry
    assert entry["delivered"] == entry["calls"] > 0


@pytest.mark.slow
@needs_unix
def test_a_manager_that_dies_with_events(perform: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manager, "FAMILIES", 1)
    entry = perform("manager-killed", "letterapp", manager={})
    assert (entry["verdict"], faults(entry), entry["failure"]) == ("balances", {}, None), entry
    assert any("name no event" in note for note in entry["notes"]), "no process has reported the end of its manager"


@pytest.mark.slow
@needs_unix
def test_a_manager_whose_starter_dies_serves_its_children_and_ends(
    perform: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manager, "FAMILIES", 1)
    entry = perform("manager-starter-killed", "letterapp", manager={})
    assert (entry["verdict"], faults(entry), entry["failure"]) == ("balances", {}, None), entry


@pytest.mark.slow
@needs_unix
def test_a_manager_that_outlives_its_family_is_an_orphan(perform: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenario_run, "GRACE", 0.3)

    def outside(scenario: Any) -> None:
        program = scenario.start("bursts", manager={"authkey": manager.AUTHKEY.hex()})
        program.receive()
        program.resume()
        program.receive()
        pid = manager._used(scenario)["pid"]
        assert scenario.wait_for_all(DEADLINE)
        os.kill(pid, signal.SIGSTOP)
        program.close_stdin()
        scenario.finish(program)

    monkeypatch.setattr(SCENARIOS["bursts"].module, "outside", outside)
    entry = perform("bursts", "letterapp", manager={}, exit_timeout=1.0)
    assert (entry["verdict"], faults(entry)) == ("red", {"orphans": 1}), entry


@pytest.mark.slow
@needs_unix
@pytest.mark.skipif(sys.version_info < (3, 10), reason="the program uses sys.orig_argv")
def test_a_spawned_process_finds_its_familys_manager_or_starts_its_own() -> None:
    path = os.pathsep.join(map(str, (ROOT, ROOT / "tests", ROOT / "stress" / "inside")))
    with tempfile.TemporaryDirectory(prefix="stress-") as folder:  # a socket's path in it may have 103 bytes
        done = subprocess.run(
            [sys.executable, "-m", "programs.shared_managers", "http://127.0.0.1:9", "parent"],
            env={**os.environ, "PYTHONPATH": path, "XDG_RUNTIME_DIR": folder},
            capture_output=True,
            text=True,
            timeout=DEADLINE,
        )
    assert done.returncode == 0, done.stderr
    first, found, own = done.stdout.split()
    assert first == found != own


@pytest.mark.parametrize("kind", ["relay", "manager"])
def test_the_log_of_the_sending_process_has_the_losses_of_ended_processes(kind: str) -> None:
    line = f"letterapp {kind} [123]: 1,234 lost from ended processes: 2 events lost: no answer"
    assert scenario_run.LOGGED.findall(f"something\n{line}\n") == ["1,234"]


def test_a_call_that_waited_for_a_stopped_manager_is_found() -> None:
    notes: list[str] = []
    quick = [20] * 1_000
    manager._compare(notes, quick, quick)
    manager._compare(notes, [*quick, *[6_000] * 20], [*quick, *[6_000] * 30])  # a busy machine
    with pytest.raises(Failure, match="slower"):
        manager._compare(notes, quick, [*quick, *[6_000] * 30])
    with pytest.raises(Failure, match="waited"):
        manager._compare(notes, quick, [*quick, 1_200_000])


@pytest.mark.parametrize(
    ("scenario", "column", "options"),
    [
        ("relay-killed", RELAY, {}),
        ("relay-killed", RELAY, {"manager": {}}),
        ("manager-killed", MANAGER, {}),
        ("manager-killed", MANAGER, {"relay": True}),
    ],
)
def test_a_scenario_of_another_column_is_no_fault_of_this_client(
    scenario: str, column: str, options: dict[str, Any], perform: Any
) -> None:
    entry = perform(scenario, "letterapp", **options)
    assert (entry["verdict"], entry["calls"]) == ("failed", 0)
    assert column in entry["failure"]
    assert run._status(Console(quiet=True), {**ledger(entry), "columns": [entry["column"]]}, 1) == 0


@pytest.mark.slow
def test_allowed_overtaking_is_only_noted(perform: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    original = SCENARIOS["single"].module.outside

    def outside(scenario: Any) -> None:
        scenario.allows_overtaking = True
        original(scenario)

    monkeypatch.setattr(SCENARIOS["single"].module, "outside", outside)
    entry = perform("single", "broken:disordered")
    assert (entry["verdict"], faults(entry)) == ("balances", {}), entry
    assert any("overtaken" in note for note in entry["notes"])


@first_is_quick("fault", ["lost", "twice", "collided", "disordered", "orphans"])
def test_a_broken_client_turns_its_column_red(fault: str, perform: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenario_run, "GRACE", 0.3 if fault == "orphans" else scenario_run.GRACE)
    entry = perform("single", f"broken:{fault}")
    assert (entry["verdict"], list(faults(entry))) == ("red", [fault]), entry


@pytest.mark.slow
def test_a_client_that_does_not_let_its_program_end_is_hung(perform: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def outside(scenario: Any) -> None:
        program = scenario.start("single")
        assert scenario.api.wait_for(5_000, DEADLINE)
        scenario.finish(program, seconds=0.5)

    monkeypatch.setattr(SCENARIOS["single"].module, "outside", outside)
    entry = perform("single", "broken:hung")
    assert (entry["verdict"], faults(entry)) == ("red", {"hung": 1}), entry


@first_is_quick("what", ["descriptors", "threads"])
def test_a_client_that_keeps_a_descriptor_or_a_thread_of_each_burst_leaks(
    what: str, perform: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scenario_run, "SETTLING", 0.2)
    entry = perform("bursts", f"broken:{what}")
    assert (entry["verdict"], list(faults(entry))) == ("red", ["leaked"]), entry


def test_reported_events_are_not_lost_but_not_green(perform: Any) -> None:
    entry = perform("single", "broken:reported")
    assert (entry["verdict"], entry["reported"], faults(entry)) == ("reported", 100, {}), entry


def test_a_program_that_fails_has_no_ledger(perform: Any) -> None:
    entry = perform("single", "broken:failing")
    assert entry["verdict"] == "failed"
    assert "cannot create a client" in entry["failure"]


def test_the_same_seed_makes_the_same_choices(tmp_path: Path) -> None:
    def choices(seed: int) -> list[float]:
        peer = Peer(SELF, "letterapp", "letterapp", "", sys.executable, "", {})
        made = scenario_run.ScenarioRun(SCENARIOS["single"], peer, None, 1.0, seed, tmp_path)  # type: ignore[arg-type]
        made.api.close()
        return [made.random.random() for _ in range(3)]

    assert choices(7) == choices(7) != choices(8)


def ledger(*entries: dict[str, Any]) -> dict[str, Any]:
    return {
        "kind": "ledger",
        "command": "python -m stress run single",
        "date": "2026-01-01T00:00:00+00:00",
        "machine": "a machine",
        "python": "3.11",
        "versions": {SELF: "1"},
        "seed": 7,
        "seconds": 1.0,
        "columns": [SELF],
        "scenarios": {entry["scenario"]: SCENARIOS[entry["scenario"]].title for entry in entries},
        "entries": list(entries),
    }


@pytest.mark.slow
def test_a_report_shows_what_the_ledger_says_and_needs_nothing_else(perform: Any, tmp_path: Path) -> None:
    report = pytest.importorskip("stress.report")
    file = tmp_path / "ledger.json"
    file.write_text(json.dumps(ledger(perform("single", "broken:lost"), perform("bursts", "letterapp"))))
    html, markdown, picture = (tmp_path / name for name in ("page.html", "page.md", "picture.svg"))
    assert report.report([file], html, markdown, picture, Console(quiet=True)) == 0
    lines = [line for line in markdown.read_text().splitlines() if line.startswith("|")]
    rows = {line.split("|")[1].split()[0].strip("`:"): line for line in lines}
    assert "100 of 5,000 lost" in rows["single"]
    assert "✓" in rows["bursts"]
    page = html.read_text()
    assert "100 of 5,000 lost" in page and "seed 7" in page
    outside = re.findall(r"(?:src|href)\s*=\s*[\"'](?!#)[^\"']*|url\((?!#)[^)]*|@import", page)
    assert outside == []
    assert ElementTree.parse(picture).getroot().tag.endswith("svg")


def test_a_report_tells_what_does_not_apply_from_what_failed(perform: Any, tmp_path: Path) -> None:
    report = pytest.importorskip("stress.report")
    entries = [
        {
            **perform("single", "broken:lost"),
            "failure": why,
            "not_applicable": fits,
            "scenario": name,
            "verdict": "failed",
        }
        for name, why, fits in [("single", "it has no relay", True), ("bursts", "it did not start", False)]
    ]
    file, markdown = tmp_path / "ledger.json", tmp_path / "page.md"
    file.write_text(json.dumps(ledger(*entries)))
    assert report.report([file], None, markdown, None, Console(quiet=True)) == 0
    text = markdown.read_text()
    assert "| - not applicable |" in text and "not applicable: it has no relay (single)" in text
    assert "| ? failed |" in text and "could not run: it did not start (bursts)" in text


@pytest.mark.parametrize("text", ["", "[]", '{"kind": "novel"}', '{"kind": "ledger"}'])
def test_a_file_that_is_not_a_result_is_named(text: str, tmp_path: Path) -> None:
    report = pytest.importorskip("stress.report")
    file = tmp_path / "wrong.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=r"wrong\.json"):
        report.report([file], tmp_path / "page.html", None, None, Console(quiet=True))
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "no-such"], "no scenario 'no-such'"),
        (["run", "single", "--client", "no-such"], "unknown peer 'no-such'"),
        (["bench", "--rows", "no-such"], "unknown measure 'no-such'"),
        (["report", "no-such.json"], "no-such.json"),
    ],
)
def test_the_command_line_reports_errors(arguments: list[str], said: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "stress", *arguments, "--cache", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE)
    assert (done.returncode, done.stdout) == (2, ""), done
    assert said in done.stderr


def test_every_scenario_is_listed() -> None:
    command = [sys.executable, "-m", "stress", "list"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE).stdout
    assert [line.split()[0] for line in listed.splitlines()] == list(SCENARIOS)


@pytest.mark.parametrize(("client", "status"), [("letterapp", 0), ("broken:reported", 0), ("broken:lost", 1)])
def test_a_run_ends_with_1_unless_this_client_balances(client: str, status: int, perform: Any) -> None:
    console = Console(quiet=True)
    data = ledger(perform("single", client))
    assert run._status(console, data, 1) == status
    assert run._status(console, data, 2) == 1, "a scenario did not run"
    for column in (RELAY, MANAGER):
        data["columns"] = [column]
        data["entries"][0]["column"] = column
        assert run._status(console, data, 1) == status, "also a column of this client"


def test_the_worst_of_several_runs_is_kept() -> None:
    entries = [
        {"verdict": verdict, "lost": lost, "notes": ["as it was"]}
        for verdict, lost in [("balances", 0), ("red", 10), ("reported", 0), ("red", 40), ("failed", 0)]
    ]
    assert run.worst(entries[:1]) == entries[0]
    assert run.worst(entries) == {
        **entries[3],
        "notes": ["as it was", "the worst of 5 runs: 3 did not balance, 50 events lost in all"],
    }


def test_a_scenario_that_fails_does_not_end_the_run(perform: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def outside(scenario: Any) -> None:
        program = scenario.start("single")
        scenario.finish(program)
        os.kill(program.pid, 0)  # it has ended

    monkeypatch.setattr(SCENARIOS["single"].module, "outside", outside)
    entry = perform("single", "letterapp")
    assert (entry["verdict"], entry["calls"]) == ("failed", 5_000)
    assert "ProcessLookupError" in entry["failure"]


@pytest.mark.parametrize("seed", range(20))
def test_the_plan_of_chaos_depends_only_on_its_seed_and_spares_retries(seed: int) -> None:
    acts = chaos.plan(random.Random(seed), 60.0, kills=True)
    assert acts == chaos.plan(random.Random(seed), 60.0, kills=True) != chaos.plan(random.Random(99), 60.0, kills=True)
    assert {act.program for act in acts} == set(chaos.PROGRAMS), "each once before any is repeated"
    for act in acts:
        api_faults = [step for step in act.steps if step.what in chaos.FAULTS]
        assert all(step.seconds <= chaos.MAX_FAULT for step in api_faults)
        assert all(b.at - a.at - a.seconds >= chaos.MIN_PAUSE for a, b in zip(api_faults, api_faults[1:]))
