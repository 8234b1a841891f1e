"""Running ``python -m letterapp doctor``.

Responsible for: the process, its findings. Not responsible for: any knowledge of what is right.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Sequence

from harness import Program, environment

KEY = "lt_test_secret_of_the_doctor"


class Examined:
    """What the command has found."""

    def __init__(self, code: int, output: str, seconds: float) -> None:
        self.code = code
        self.output = output
        self.seconds = seconds
        lines = [line for line in output.splitlines() if line.startswith("{")]
        self.findings: list[dict[str, str]] = json.loads(lines[-1])["checks"] if lines else []

    def of(self, check: str) -> dict[str, str]:
        """The finding of a check, or the last one if it has several."""
        found = [finding for finding in self.findings if finding["check"] == check]
        assert found, (check, self.output)
        return found[-1]

    def levels(self) -> dict[str, str]:
        return {finding["check"]: finding["level"] for finding in self.findings}


def examine(
    url: str, cwd: Path, *arguments: Any, key: str | None = KEY, before: Sequence[str] = (), **env: str
) -> Examined:
    """Run it to its end with ``--json``; ``before``: a command that runs the command after it."""
    command = [*before, sys.executable, "-m", "letterapp", "doctor", "--json", *map(str, arguments)]
    environ = {**environment(url, LETTER_BASE_URL=url, **env), **({"LETTER_API_KEY": key} if key is not None else {})}
    with Program(command, environ, cwd) as program:
        finished = program.finish()
    assert "Traceback" not in finished.output, finished
    assert not key or len(key) < 8 or key not in finished.output, finished
    return Examined(finished.code, finished.output, finished.seconds)
