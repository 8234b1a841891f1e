"""Containers and service managers: the sequence of signals by which they end a program, with their real time limits."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Iterator, Sequence
from urllib.parse import urlsplit

import pytest
from applications import EXAMPLES, installed
from harness import DEADLINE, Program, WebServer, eventually, needs
from job_examples import arrived, copy_of, once, settings

from letterapp.testing import reset, stall
from stress.ports import free_port

PACKED = once(*[("Order Packed", f"user_{order}", order) for order in range(20)])
EXIT_TIMEOUT = 5.0  # the client's default
DOCKER_STOP = 10.0  # seconds between the two signals of `docker stop`

# Docker.


def may_run(*command: str) -> bool:
    if shutil.which(command[0]) is None:
        return False
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


namespaces = pytest.mark.skipif(
    not may_run("unshare", "--pid", "--mount", "--fork", "true"), reason="may not make namespaces (unshare --pid)"
)
runc = pytest.mark.skipif(shutil.which("runc") is None, reason="runc, which runs Docker's containers, is not installed")
WAITING = "waiting for orders"


def program_of_the_image(cwd: Path) -> list[str]:
    # Only with the form in brackets, which is JSON, is the program the first process.
    [line] = [line for line in (cwd / "Dockerfile").read_text().splitlines() if line.startswith("CMD ")]
    python, *arguments = json.loads(line[4:])
    assert python == "python"
    return [sys.executable, *arguments]


def all_packed_once(api: Any) -> None:
    assert arrived(api) == {**PACKED, **once(("Packing Stopped", "operations", None))}
    assert api.repeated() == {}


@namespaces
@pytest.mark.gate
def test_the_first_process_of_a_namespace_is_stopped_as_docker_does(letter_api: Any, tmp_path: Path) -> None:
    cwd = copy_of("docker", tmp_path)
    command = ["unshare", "--pid", "--fork", "--kill-child", *program_of_the_image(cwd)]
    with Program(command, settings(letter_api, late=True), cwd) as unshare:
        assert eventually(lambda: WAITING in unshare.output, bool), unshare.output
        [program] = unshare.descendants()
        [numbers] = [line for line in Path(f"/proc/{program.pid}/status").read_text().splitlines() if "NSpid" in line]
        assert numbers.split()[-1] == "1"
        assert letter_api.events == []
        program.terminate()
        finished = unshare.finish(DOCKER_STOP)
        assert finished.code == 0, finished
    all_packed_once(letter_api)


class Container(Program):
    """A container of runc, with this machine's files as its own. Made as Docker makes them, from a configuration."""

    def __init__(self, command: list[str], env: dict[str, str], cwd: Path, tmp_path: Path) -> None:
        bundle = tmp_path / "bundle"
        (bundle / "files").mkdir(parents=True)
        self._runc = ["runc", "--root", str(tmp_path / "runc")]
        process = {"args": command, "env": [f"{name}={value}" for name, value in env.items()], "cwd": str(cwd)}
        config = {
            "ociVersion": "1.0.2",
            "process": {"user": {"uid": 0, "gid": 0}, **process},
            "root": {"path": "files"},
            "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
            "linux": {"namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "ipc"}]},
        }
        (bundle / "config.json").write_text(json.dumps(config))
        mount = 'mount --make-rprivate / && mount --rbind / files && exec "$@"'
        line = ["unshare", "--mount", "sh", "-c", mount, "sh", *self._runc, "run", "shop"]
        super().__init__(line, dict(os.environ), bundle)

    def kill(self, name: str) -> None:
        subprocess.run([*self._runc, "kill", "shop", name], check=True, timeout=DEADLINE)

    def __exit__(self, *exception: Any) -> None:
        subprocess.run([*self._runc, "delete", "--force", "shop"], capture_output=True, check=False, timeout=DEADLINE)
        super().__exit__(*exception)


@namespaces
@runc
def test_a_container_is_stopped(letter_api: Any, tmp_path: Path) -> None:
    cwd = copy_of("docker", tmp_path)
    with Container(program_of_the_image(cwd), settings(letter_api, late=True), cwd, tmp_path) as container:
        assert eventually(lambda: WAITING in container.output, bool), container.output
        assert letter_api.events == []
        container.kill("TERM")
        finished = container.finish(DOCKER_STOP)
        assert finished.code == 0, finished
    all_packed_once(letter_api)


# Kubernetes.


@pytest.fixture(scope="module")
def deployment() -> Any:
    yaml = pytest.importorskip("yaml")
    with (EXAMPLES / "kubernetes" / "deployment.yaml").open() as file:
        return yaml.safe_load(file)


def container_of(deployment: Any) -> Any:
    [container] = deployment["spec"]["template"]["spec"]["containers"]
    return container


def option(command: Sequence[str], name: str) -> str:
    return command[command.index(name) + 1]


class Pod:
    """What a kubelet does with the container of the deployment: its command, environment, volume and probes."""

    def __init__(self, deployment: Any, api: Any, tmp_path: Path) -> None:
        spec = deployment["spec"]["template"]["spec"]
        self.container = container_of(deployment)
        self.grace: float = spec["terminationGracePeriodSeconds"]
        self._api = api
        self._cwd = copy_of("kubernetes", tmp_path)
        self._volume = tmp_path / "volume"
        self._volume.mkdir()
        self._volume.chmod(0o777)  # as a kubelet makes an emptyDir

    def start(self) -> WebServer:
        """Start the container, and wait until it is ready."""
        [mount] = self.container["volumeMounts"]
        env = {one["name"]: one["value"] for one in self.container["env"] if "value" in one}
        env = {name: value.replace(mount["mountPath"], str(self._volume)) for name, value in env.items()}
        port = free_port()
        command = [word.replace("0.0.0.0:8000", f"127.0.0.1:{port}") for word in self.container["command"]]
        server = WebServer(
            [installed(command[0]), *command[1:]], {**settings(self._api, late=True), **env}, self._cwd, port
        )
        for probe in ("livenessProbe", "readinessProbe"):
            assert server.get(self.container[probe]["httpGet"]["path"]) == "ok\n"
        return server


@pytest.fixture
def pod(deployment: Any, letter_api: Any, tmp_path: Path) -> Iterator[Pod]:
    yield Pod(deployment, letter_api, tmp_path)


def completed(orders: int) -> dict[tuple[str, str, Any], int]:
    return once(*[("Order Completed", "user_42", order) for order in range(orders)])


@needs("kubernetes_validate")
@pytest.mark.gate
@pytest.mark.parametrize("wrong", [False, True], ids=["as it is", "with a mistake"])
def test_kubernetes_accepts_the_manifest(wrong: bool, tmp_path: Path) -> None:
    manifest = copy_of("kubernetes", tmp_path) / "deployment.yaml"
    if wrong:
        manifest.write_text(manifest.read_text().replace("periodSeconds: 10", "periodSecond: 10"))
    command = [installed("kubernetes-validate"), "--strict", str(manifest)]  # by the schemas of Kubernetes itself
    checked = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert checked.returncode == int(wrong), checked
    assert ("'periodSecond' was unexpected" in checked.stdout) == wrong, checked


@needs("yaml")
@pytest.mark.gate
def test_the_manifest_leaves_time_for_the_end(deployment: Any) -> None:
    container, spec = container_of(deployment), deployment["spec"]["template"]["spec"]
    command = container["command"]
    program, seconds = container["lifecycle"]["preStop"]["exec"]["command"]
    assert program == "sleep"
    needed = float(seconds) + float(option(command, "--graceful-timeout")) + EXIT_TIMEOUT
    assert needed < spec["terminationGracePeriodSeconds"]
    assert float(option(command, "--graceful-timeout")) > EXIT_TIMEOUT


@needs("yaml")
@pytest.mark.gate
def test_the_manifest_fits_together(deployment: Any) -> None:
    container, spec = container_of(deployment), deployment["spec"]["template"]["spec"]
    assert deployment["spec"]["selector"]["matchLabels"] == deployment["spec"]["template"]["metadata"]["labels"]
    [mount], [volume] = container["volumeMounts"], spec["volumes"]
    assert mount["name"] == volume["name"]
    [spool] = [one["value"] for one in container["env"] if one["name"] == "LETTER_SPOOL"]
    # A directory in the volume: the client makes it with the mode 700. The volume itself is open to others.
    assert Path(spool).parent == Path(mount["mountPath"])
    [port] = [one["containerPort"] for one in container["ports"]]
    assert urlsplit("//" + option(container["command"], "--bind")).port == port
    for probe in ("livenessProbe", "readinessProbe"):
        assert container[probe]["httpGet"]["port"] == port
    assert not any("value" in one for one in container["env"] if one["name"] == "LETTER_API_KEY")


@needs("yaml")
@needs("gunicorn")
def test_a_pod_that_is_told_to_end(pod: Pod, letter_api: Any) -> None:
    """preStop, while requests still come, then SIGTERM: all events are sent within the grace period."""
    with pod.start() as server:
        order = 0
        with Program(pod.container["lifecycle"]["preStop"]["exec"]["command"], dict(os.environ), Path("/")) as hook:
            while hook.process.poll() is None and order < 2000:
                server.get(f"/order/{order}")
                order += 1
            assert hook.finish().code == 0
        assert letter_api.events == []
        server.signal(signal.SIGTERM)
        finished = server.finish(pod.grace - hook_seconds(pod))
        assert finished.code == 0, finished
        assert not server.left_behind(), finished
        assert "letterapp:" not in finished.output, finished
    assert arrived(letter_api) == completed(order)
    assert letter_api.repeated() == {}


def hook_seconds(pod: Pod) -> float:
    return float(pod.container["lifecycle"]["preStop"]["exec"]["command"][1])


@needs("yaml")
@needs("gunicorn")
@pytest.mark.gate
def test_a_pod_that_is_killed_while_the_api_is_away(pod: Pod, letter_api: Any) -> None:
    """SIGTERM, then SIGKILL before anything could be sent. The restarted container sends it, from the volume."""
    letter_api.rule = lambda request: stall(60, reset())
    with pod.start() as server:
        for order in range(20):
            server.get(f"/order/{order}")
        server.signal(signal.SIGTERM)
        # Its workers try to send what they have.
        assert letter_api.wait_until(lambda: letter_api.requests), server.output
        server.signal_group(signal.SIGKILL)
        server.finish()
        assert not server.left_behind()
    letter_api.rule = None
    assert letter_api.events == []
    with pod.start() as server:
        server.get("/order/20")
        server.signal(signal.SIGTERM)
        finished = server.finish(pod.grace)
        assert not server.left_behind(), finished
    assert arrived(letter_api) == completed(21), finished
    assert letter_api.repeated() == {}


# systemd.


class Unit:
    """A service of systemd, started and stopped as its unit file says."""

    def __init__(self, api: Any, tmp_path: Path) -> None:
        self._cwd = copy_of("systemd", tmp_path)
        lines = (line.partition("=") for line in (self._cwd / "packer.service").read_text().splitlines())
        self.settings = {name: value for name, equals, value in lines if equals and not name.startswith("#")}
        self._state = tmp_path / "state"
        self._state.mkdir(int(self.settings["StateDirectoryMode"], 8))
        self._env = settings(api, late=True, STATE_DIRECTORY=str(self._state))

    def start(self) -> Program:
        python, program = shlex.split(self.settings["ExecStart"])
        assert python == "/usr/bin/python3"
        service = Program([sys.executable, Path(program).name], self._env, self._cwd)
        assert eventually(lambda: "waiting for orders" in service.output, bool), service.output
        return service

    def stop(self, service: Program) -> int:
        service.signal_group(signal.SIGTERM)
        return service.finish(float(self.settings["TimeoutStopSec"])).code


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
@pytest.mark.gate
@pytest.mark.parametrize("wrong", [False, True], ids=["as it is", "with a mistake"])
def test_systemd_accepts_the_unit(wrong: bool, tmp_path: Path) -> None:
    unit = copy_of("systemd", tmp_path) / "packer.service"
    if wrong:
        unit.write_text(unit.read_text().replace("TimeoutStopSec=", "TimeoutStopSecs="))
    checked = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False)
    assert ("'TimeoutStopSecs'" in checked.stderr) == wrong, checked
    if not wrong:
        assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")


@pytest.mark.gate
def test_a_service_that_is_stopped(letter_api: Any, tmp_path: Path) -> None:
    unit = Unit(letter_api, tmp_path)
    assert float(unit.settings["TimeoutStopSec"]) > EXIT_TIMEOUT
    with unit.start() as service:
        assert letter_api.events == []
        assert unit.stop(service) == 0, service.output
        assert not service.left_behind()
    assert arrived(letter_api) == PACKED
    assert letter_api.repeated() == {}


@pytest.mark.gate
def test_a_service_that_is_killed_and_started_again(letter_api: Any, tmp_path: Path) -> None:
    unit = Unit(letter_api, tmp_path)
    with unit.start() as service:
        service.signal_group(signal.SIGKILL)
        service.finish()
    assert letter_api.events == []
    with unit.start() as service:
        # Without waiting for an event. (The new ones wait for the end: see `settings`.)
        assert letter_api.wait_for(len(PACKED)), service.output
        assert unit.stop(service) == 0, service.output
    assert arrived(letter_api) == {event: 2 for event in PACKED}
    assert letter_api.repeated() == {}
