"""The checks, one at a time: `nox -s lint`, `nox -s tests-3.12 -- tests/unit/test_ring.py`. `.ci/run` runs them all."""

from __future__ import annotations

import nox

nox.options.sessions = ["lint", "types"]
nox.options.default_venv_backend = "venv"

PYTHONS = nox.project.python_versions(nox.project.load_toml("pyproject.toml"))


@nox.session
def lint(session: nox.Session) -> None:
    """Style and mistakes. `nox -s lint -- --fix` corrects what it can."""
    session.install("ruff", "import-linter", "-e", ".")
    session.run("ruff", "check", *session.posargs, ".")
    session.run("ruff", "format", "--check", ".")
    session.run("lint-imports")


@nox.session
def types(session: nox.Session) -> None:
    """The library's own types, and those that a caller sees."""
    session.install("mypy", "types-psutil", "pyright", ".[test]")
    session.run("mypy")
    with session.chdir("tests/typing"):  # where the library is the installed one
        session.run("mypy", ".")
        session.run("pyright")


@nox.session
def docs(session: nox.Session) -> None:
    """The site, into build/site. A warning is an error, and nothing is fetched."""
    session.install("-e", ".[docs]")
    session.run("python", "-m", "sphinx", "-W", "-n", "-q", "-b", "html", "docs", "build/site")


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """All tests, or those that are named after `--`."""
    session.install(".[test]")
    session.run("pytest", "-n", "auto", *session.posargs)


@nox.session
def coverage(session: nox.Session) -> None:
    """Branch coverage of the library, with the processes that tests start.

    Before Python 3.14 the library's own threads are not seen, since they are not started by `threading`: run it as
    `nox -s coverage -P 3.14`. What a killed process did is missing everywhere.
    """
    session.install("-e", ".[test]", "coverage>=7.12")
    session.run("coverage", "erase")
    session.run("coverage", "run", "-m", "pytest", "-n", "2", *session.posargs)
    session.run("coverage", "combine", "--quiet")
    session.run("coverage", "report")


@nox.session
def frameworks(session: nox.Session) -> None:
    """The examples of docs/examples/frameworks, with the frameworks and servers themselves."""
    session.install("-e", ".[frameworks]")
    session.run("pytest", "-n", "2", "-m", "frameworks", "tests/frameworks", *session.posargs)


@nox.session
def stress(session: nox.Session) -> None:
    """A few scenarios with real processes and faults; others are named after `--`."""
    session.install(".[stress]")
    scenarios = session.posargs or [
        "single",
        "bursts",
        "fork-storm",
        "pool-fork-terminate",
        "outage-middle",
        "kill-workers",
    ]
    session.run("python", "-m", "stress", "run", "--client", "this", "--seed", "1", "--seconds", "5", *scenarios)


@nox.session
def build(session: nox.Session) -> None:
    """The sdist and the wheel, their metadata, and some tests from an unpacked sdist."""
    session.install("build", "twine")
    session.run(".ci/build", "python", external=True)
