"""Running the commands of a console block, in a directory of its own and against an ingestion server of the test.

Responsible for: which commands are run, and how. Servers (`inbox`, `relay`) go on until the page has ended. Not
responsible for: finding blocks (`blocks`), what a command has to print.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

from blocks import Block
from harness import DEADLINE, ROOT, Program, environment, eventually
from packaging.requirements import Requirement
from redis_server import RedisServer, has_redis

# What no test runs, and why.
NOT_RUN = {
    r"python3 -m venv .*|\.venv/bin/.*|\.ci/.*": "it makes an environment, or is a check of its own; the gate runs it",
    r"git .*|npm .*|twine .*|docker .*|systemctl .*|kubectl .*": "it acts on something outside of this checkout",
}
DIRECTORIES = ("/run/letter", "/run/secrets", "/etc/letter", "/var/lib/letter", "/var/spool/app", "/var/spool/letter")
PROGRAM = 'from letterapp import Letter\n\nLetter().track("user_42", "Order Completed", {"amount": 99.5})\n'
INBOX = "127.0.0.1:8025"
REDIS = "redis://redis.internal:6379/0"


class Shell:
    """One page's commands, one after the other, as a reader gives them."""

    def __init__(self, folder: Path, api_url: str) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        self.api_url = api_url
        self.inbox = INBOX
        self._servers: list[Program] = []
        self._stack = ExitStack()
        (folder / "your_program.py").write_text(PROGRAM)

    def __enter__(self) -> Shell:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def end_servers(self) -> None:
        """Ctrl-C ends each of them, with nothing worse than its exit status."""
        for server in self._servers:
            server.signal(signal.SIGINT)
            done = server.finish()
            assert done.code in (0, 130, -signal.SIGINT), done
            assert "Traceback" not in done.output, done
        self._servers.clear()

    def run(self, block: Block) -> str:
        """Run each command of ``block``; what they print, in order. A command that fails is an error."""
        printed = []
        *ahead, last = commands(block.text)
        for command in ahead:
            printed.append(self._run(command, 0))
        printed.append(self._run(last, int(block.notes.get("exits", 0))))
        return "".join(printed)

    def _run(self, command: str, code: int) -> str:
        words = shlex.split(command)
        if any(re.fullmatch(pattern, command) for pattern in NOT_RUN):
            return ""
        if words[:2] == ["pip", "install"]:
            return _check_requirements(words[2:])
        arguments = [word for word in words if not re.fullmatch(r"[A-Z_]+=.*", word)]
        if arguments[1:3] == ["-m", "stress"]:
            return _check_stress(arguments[3:])
        if (
            arguments[1:3] == ["-m", "letterapp"]
            and arguments[3] in ("inbox", "relay")
            and not {
                "--status",
                "--help",
            }
            & {*arguments}
        ):
            return self._serve(arguments, command)
        assert arguments[0].startswith(("python", "curl", "(", "pytest", "printf")), (
            f"no test knows how to run {command!r}: teach it, or write `<!-- not run: REASON -->` above the block"
        )
        done = subprocess.run(
            ["bash", "-c", self.here(command)],
            cwd=str(self.folder),
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=DEADLINE,
        )
        assert done.returncode == code, f"{command}: exit {done.returncode}\n{done.stdout}"
        return done.stdout

    def _environment(self) -> dict[str, str]:
        programs = self.folder / "bin"
        if not programs.exists():
            programs.mkdir()
            for name in ("python", "python3"):
                (programs / name).symlink_to(sys.executable)
        # A virtual environment's Python is found by the path that it was started with.
        path = os.pathsep.join([os.path.dirname(sys.executable), str(programs), os.environ.get("PATH", "")])
        return environment(
            self.api_url,
            PATH=path,
            LETTER_API_KEY="lt_test_local",
            LETTER_BASE_URL=self.api_url,
            XDG_RUNTIME_DIR=str(self._made("xdg")),
        )

    def _made(self, name: str) -> Path:
        folder = self.folder / name
        folder.mkdir(mode=0o700, exist_ok=True)
        return folder

    def here(self, command: str) -> str:
        """``command``, or a program, with the directories, inbox and Redis of this test, which are started for it."""
        if INBOX in command and self.inbox == INBOX:
            self._serve(["python", "-m", "letterapp", "inbox"], "")
        if REDIS in command:
            server = RedisServer()
            self._stack.callback(server.close)
            command = command.replace(REDIS, server.url)
        for directory in DIRECTORIES:
            if directory in command:
                command = command.replace(directory, str(self._made(directory.replace("/", "_"))))
        return command.replace(INBOX, self.inbox)

    def _serve(self, arguments: list[str], command: str) -> str:
        arguments = [self.here(word) for word in arguments[1:]]
        if "inbox" in arguments and "--port" not in arguments:
            arguments += ["--port", "0"]
        for position, word in enumerate(arguments[:-1]):
            if word in (
                "--manager",
                "--metrics",
            ):  # a free port, of this machine alone
                arguments[position + 1] = re.sub(r"^[\d.]+:\d+$", "127.0.0.1:0", arguments[position + 1])
            if word.endswith("-file") and not Path(arguments[position + 1]).exists():
                secret = Path(arguments[position + 1])
                secret.touch(mode=0o600)  # else a relay says first that others can read it
                secret.write_text("lt_test_local")
        program = Program([sys.executable, *arguments], self._environment(), self.folder)
        self._servers.append(self._stack.enter_context(program))
        ready = r"http://(127\.0\.0\.1:\d+)" if "inbox" in arguments else r"(?:serving at|reading) \S+"
        eventually(lambda: re.search(ready, program.output), lambda found: found or program.process.poll() is not None)
        assert program.process.poll() is None, f"{command} has ended:\n{program.output}"
        found = re.search(ready, program.output)
        assert found, f"{command} does not serve:\n{program.output}"
        if "inbox" in arguments:
            self.inbox = found[1]
        return program.output


def commands(text: str) -> list[str]:
    """The commands of a block; a line that ends in a backslash goes on, and one that is not a command is output."""
    lines = text.replace("\\\n", " ").splitlines()
    if any(line.startswith("$ ") for line in lines):
        lines = [line[2:] for line in lines if line.startswith("$ ")]
    found = [re.sub(r"\s+#\s.*$", "", line).strip() for line in lines]
    return [line for line in found if line and not line.startswith("#")]


def _check_requirements(words: list[str]) -> str:
    import letterapp

    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for word in words:
        if word.startswith("-"):
            continue
        one = Requirement(word.replace(".[", "letterapp[") if word.startswith(".[") else word)
        if one.name == "letterapp":
            assert all(re.search(rf"^{extra} = \[", pyproject, re.MULTILINE) for extra in one.extras), word
            assert one.specifier.contains(letterapp.__version__, prereleases=True), word
    return ""


def _check_stress(arguments: list[str]) -> str:
    from stress.__main__ import _parser

    _parser().parse_args(arguments)
    return ""


def has_programs(text: str) -> bool:
    if f"relay --from {REDIS}" in text and not has_redis():
        return False
    return all(shutil.which(name) for name in ("curl", "jq") if re.search(rf"\b{name} ", text))
