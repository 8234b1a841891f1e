"""docs/commands.md names each command and each option of those whose page it is."""

from __future__ import annotations

import argparse
import subprocess
import sys
from importlib import import_module

import pytest
from harness import ROOT

from letterapp import __main__ as program

PAGE = (ROOT / "docs" / "commands.md").read_text()


@pytest.mark.parametrize("name", sorted(program._MODULES))
def test_the_page_names_each_option(name: str) -> None:
    parser = argparse.ArgumentParser()
    import_module(program._MODULES[name][0], "letterapp").add_arguments(parser)
    section = PAGE.split(f"\n## {name}: ")[1].split("\n## ")[0] + PAGE.split("\n## ")[0]
    options = [text for action in parser._actions for text in action.option_strings if text.startswith("--")]
    assert options and [text for text in options if f"`{text}" not in section and f" {text} " not in section] == []


def test_the_page_lists_each_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main([]) == 2
    listed = [
        line.split()[0] for line in capsys.readouterr().out.splitlines() if line.startswith("    ") and line[4] != " "
    ]
    commands = [name for name in listed if name not in ("COMMAND",)]
    assert {"demo", "relay", *program._MODULES} <= set(commands)
    assert [name for name in commands if f"`{name}`" not in PAGE] == []


def test_the_modules_of_commands_are_imported_only_when_they_run() -> None:
    code = "import sys; from letterapp.__main__ import main; main(['relay', '--status']); print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=ROOT)
    assert b"letterapp._relay_server" in done.stdout and b"'letterapp._cli'" not in done.stdout
