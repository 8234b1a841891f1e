"""Families of processes of which some are killed: which events arrived, and the gates at which they wait for the test.

Responsible for: running such a program (`programs.family`, `programs.orphans`) and reading what it sent. Not
responsible for: what is right.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Callable

from harness import DEADLINE, ROOT, Program, eventually, start, whose

from letterapp.testing import Fault, Hold

NUMBERED = list(range(10_000))


def output_of(
    program: Callable[..., object],
    api: Any,
    tmp_path: Path,
    *arguments: object,
    longest: float = DEADLINE,
    system: Callable[[], None] | None = None,
) -> str:
    """Run a program to its good end; return what it printed.

    ``system``: a function of `programs.systems`, which its Python calls before all imports of the program's.
    """
    env = {}
    if system is not None:
        name = system.__name__
        (tmp_path / "sitecustomize.py").write_text(f"from programs.systems import {name}\n{name}()\n")
        env["PYTHONPATH"] = os.pathsep.join(map(str, (tmp_path, ROOT, ROOT / "tests")))
    with start(program, api.url, tmp_path, *arguments, **env) as running:
        ends_well(running, longest)
        return running.output


def runs_quietly(program: Callable[..., object], api: Any, tmp_path: Path, *arguments: object, **options: Any) -> None:
    """Run a program (see `output_of`) that prints nothing."""
    assert output_of(program, api, tmp_path, *arguments, **options) == ""


def ends_well(program: Program, longest: float = DEADLINE) -> None:
    """Wait until a program has ended as it should, and has left no process behind."""
    finished = program.finish(longest)
    assert finished.code == 0 and "Traceback" not in finished.output, finished
    assert not program.left_behind(), program.left_behind()


def arrived(api: Any, **counts: int) -> None:
    """All that was tracked has come, in order."""
    assert whose(api) == {who: NUMBERED[:count] for who, count in counts.items()}


def once(api: Any, **counts: int) -> None:
    """All that was tracked has come, in order, and nothing came twice."""
    arrived(api, **counts)
    assert api.repeated() == {}


def in_turn(api: Any) -> list[str]:
    """Whose events came, as often as it changed."""
    turns: list[str] = []
    for item in api.events:
        if turns[-1:] != [item["userId"]]:
            turns.append(item["userId"])
    return turns


def no_answer(stored: bool) -> Fault:
    """Keep the request or not, and let its client wait."""
    return lambda handler: handler.keep() if stored else None


def batches(api: Any) -> list[Any]:
    return [request for request in api.requests if request.path == "/v1/batch"]


class Gates:
    """Where programs stay until the test opens them, and how the batches that come meanwhile are met."""

    def __init__(self, api: Any) -> None:
        self._holds: dict[str, Hold] = {}
        self._faults: list[Fault] = []
        api.rule = self._meet

    def plan(self, *faults: Fault) -> None:
        """Meet the next batches with these, whatever else comes."""
        self._faults += faults

    def wait(self, name: str) -> None:
        assert self._at(name).arrived.wait(DEADLINE), name

    def open(self, name: str) -> None:
        self._at(name).release()

    def _at(self, name: str) -> Hold:
        return self._holds.setdefault(name, Hold())

    def _meet(self, request: Any) -> Fault | None:
        if request.path.startswith("/gate/"):
            return self._at(request.path[len("/gate/") :])
        return self._faults.pop(0) if self._faults else None


def said(program: Program, words: int) -> list[str]:
    """The first words that a program prints."""
    seen = eventually(lambda: program.output, lambda text: len(text.split()) >= words).split()
    assert len(seen) >= words, program.output
    return list(seen[:words])
