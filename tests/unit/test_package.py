"""The package: what importing it costs, what its annotations and docstrings say, and what the documents claim."""

from __future__ import annotations

import ast
import inspect
import re
import ssl
import subprocess
import sys
import typing
from pathlib import Path
from typing import Any, Iterator

import pytest
from harness import ROOT, environment, run
from programs import imports

import letterapp
from letterapp import Letter, pytest_plugin, relay, testing
from letterapp._runtime.lazy_module import LazyModule

PACKAGE = ROOT / "letterapp"
OWN_MODULES = {"letterapp"} | {f"letterapp.{path.stem}" for path in PACKAGE.glob("*.py")}
OWN_MODULES |= {f"letterapp._testing.{path.stem}" for path in (PACKAGE / "_testing").glob("*.py")}  # of `testing`
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")


def test_every_private_module_says_what_it_is_responsible_for() -> None:
    for path in MODULES:
        text = " ".join((ast.get_docstring(ast.parse(path.read_text())) or "").split())
        if any(part.startswith("_") for part in path.relative_to(PACKAGE).parts) and path.name != "_version.py":
            assert "Responsible for" in text and "Not responsible for" in text, path


def test_packages_run_no_code_when_they_are_imported() -> None:
    packages = [path for path in PACKAGE.rglob("__init__.py") if path.parent != PACKAGE]
    assert packages and not any(path.read_text() for path in packages)


def modules_after(code: str) -> set[str]:
    report = f"{code}\nimport sys; sys.stdout.write(' '.join(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", report], env=environment("http://127.0.0.1:9"), stdout=subprocess.PIPE, check=True
    )
    return set(done.stdout.decode().split())


# What encodes strings in C is `_json` in CPython, and in PyPy a part of this.
ENCODER = {"json"} if sys.implementation.name == "pypy" else set()


def test_importing_loads_nothing_expensive() -> None:
    bare = modules_after("")
    expensive = {
        "ssl",
        "http.client",
        "urllib.request",
        "json",
        "multiprocessing",
        "logging",
        "asyncio",
        "uuid",
        "typing",
    }
    assert not (modules_after("import letterapp") - bare) & (expensive - ENCODER)


def test_the_network_s_modules_are_loaded_by_the_first_request_and_not_by_calls(tmp_path: Path) -> None:
    network = {"ssl", "http.client", "urllib.request", "json"}
    finished = run(imports.loaded_by_calls, "http://127.0.0.1:9", tmp_path)
    loaded = set(finished.output.split())
    assert "letterapp" in loaded and not loaded & (network - ENCODER), finished


def test_after_the_first_request_no_request_imports_more(letter_api: Any, tmp_path: Path) -> None:
    # A fork waits for `prepare`, and for nothing later: see docs/architecture.md, rule 9.
    from letterapp.testing import cut, reset, status

    date = {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}
    letter_api.plan(status(400, b'{"error":{"code":"c"}}'), reset(), status(429, headers=date), cut(), status(302))
    finished = run(imports.loaded_after_the_first_request, letter_api.url, tmp_path)
    assert finished.output == "[] 4\n", finished


@pytest.mark.skipif(sys.platform in ("darwin", "win32"), reason="proxies are settings of the system there")
def test_urllib_request_is_loaded_only_for_a_proxy_which_may_be_set_late(letter_api: Any, tmp_path: Path) -> None:
    assert run(imports.late_proxy, letter_api.url, tmp_path).output == "False\n"
    assert [item["userId"] for item in letter_api.events].count("by the proxy") == 1


def the_public_face() -> Iterator[Any]:
    """Each public function, class, method and property, as a parameter that has its name."""
    for module in (letterapp, relay, testing, pytest_plugin):
        for name in getattr(module, "__all__", None) or vars(module):
            public = getattr(module, name)
            if name.startswith("_") or getattr(public, "__module__", None) not in OWN_MODULES:
                continue
            yield pytest.param(public, id=name)
            for part, found in vars(public).items() if inspect.isclass(public) else ():
                method = found.fget if isinstance(found, property) else getattr(found, "__func__", found)
                is_own = inspect.isfunction(method) and method.__qualname__ == f"{name}.{part}"  # not `Protocol`'s
                if is_own and (part[0] != "_" or part.startswith("__")):
                    yield pytest.param(method, id=f"{name}.{part}")


@pytest.mark.parametrize("public", list(the_public_face()))
def test_the_annotations_can_be_evaluated(public: Any) -> None:
    hints = typing.get_type_hints(public)
    assert not any(isinstance(hint, (str, LazyModule)) for hint in hints.values())
    if inspect.isfunction(public):
        assert set(hints) == {*inspect.signature(public).parameters, "return"} - {"self"}


def test_the_annotations() -> None:
    hints = typing.get_type_hints(Letter.__init__)
    assert hints["api_key"] == typing.Optional[str] and ssl.SSLContext in hints["ssl_context"].__args__


def test_letter_has_at_most_ten_public_methods_and_each_is_documented() -> None:
    methods = {name for name in vars(Letter) if not name.startswith("_")}
    assert methods == {"identify", "group", "track", "send", "flush", "close", "aflush", "aclose", "stats"}
    assert all(inspect.getdoc(getattr(Letter, name)) for name in methods)


REPORTING = {"report", "_report", "note_loss", "refuse", "append"}  # the functions that a report goes to


def test_every_report_has_a_cause() -> None:
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            called = getattr(node, "func", None)
            if getattr(called, "attr", None) not in REPORTING and getattr(called, "id", None) not in REPORTING:
                continue
            for given in getattr(node, "args", []):
                if isinstance(given, ast.Call) and getattr(given.func, "id", "") == "LetterError":
                    assert "cause" in {keyword.arg for keyword in given.keywords}, f"{path.name}:{given.lineno}"


def test_the_documents_name_every_option_and_every_cause() -> None:
    configuration = (ROOT / "docs" / "configuration.md").read_text()
    for name in inspect.signature(Letter).parameters:
        assert f"| `{name}` |" in configuration, name
        assert f"{name}:" in (Letter.__doc__ or ""), name
    guarantees = (ROOT / "docs" / "guarantees.md").read_text()
    sources = "".join(path.read_text() for path in MODULES)
    for cause in set(re.findall(r'cause="(\w+)"|GiveUp\("(\w+)"|_give_up\(\s*"(\w+)"|refuse\("(\w+)"', sources)):
        assert f"| `{''.join(cause)}` |" in guarantees, cause


def test_the_version_is_defined_once() -> None:
    assert letterapp.__version__ == "0.3.0"
    found = [path for path in MODULES if "0.3.0" in path.read_text()]
    assert [path.name for path in found] == ["_version.py"]
    assert 'version = "0' not in (ROOT / "pyproject.toml").read_text()
    assert "## 0.3.0" in (ROOT / "CHANGELOG.md").read_text()
