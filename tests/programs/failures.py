"""Programs with temporary failures of the machine: no descriptor, a failing import."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

from letterapp import LetterError
from programs.common import main, make, work

# What an import of a module may raise.
ERRORS: dict[str, BaseException] = {
    "OSError": OSError(24, "Too many open files"),
    "ImportError": ImportError("no memory"),
    "MemoryError": MemoryError(),
}


def no_descriptors(spool: str = "") -> None:
    import resource

    options: dict[str, Any] = {"spool": spool} if spool else {}
    errors: list[LetterError] = []
    letter = make(flush_interval=600, on_error=errors.append, **options)
    work(letter, 12)
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, most))
    letter.flush(0)
    deadline = time.monotonic() + 60
    while not letter.stats()["retried"] and letter.stats()["waiting"] and time.monotonic() < deadline:
        time.sleep(0.01)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, most))
    letter.flush(30)
    stats = letter.stats()
    print(stats["delivered"], stats["lost"], stats["retried"] >= 12, [error for error in errors if error.lost])


class FailingImport:
    """A finder that raises when a module is imported, until it is taken from `sys.meta_path`."""

    def __init__(self, module: str, error: BaseException, once: bool) -> None:
        self._module = module
        self._error = error
        self._once = once
        sys.meta_path.insert(0, self)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name == self._module:
            if self._once:
                sys.meta_path.remove(self)
            raise self._error


def import_fails_once(module: str, error: str) -> None:
    sys.modules["orjson"] = None  # type: ignore[assignment]  # creating a client would import it, and it imports `json`
    FailingImport(module, ERRORS[error], once=True)
    sys.modules.pop(module, None)
    letter = make(flush_at=1)
    work(letter, 3)
    letter.flush(30)
    print(letter.stats()["delivered"], letter.stats()["lost"], letter.stats()["retried"] > 0)


def import_fails_in_orjson(module: str, error: str) -> None:
    import re  # noqa: F401  # a client imports it before orjson, and it imports `enum`

    for name in ("orjson", "orjson.orjson", module):
        sys.modules.pop(name, None)
    FailingImport(module, ERRORS[error], once=True)
    letter = make()
    work(letter, 3)
    print(letter.flush(), letter.stats()["delivered"])


def import_fails_in_send() -> None:
    failing = FailingImport("socket", ERRORS["OSError"], once=False)
    letter = make()
    try:
        letter.send("a@b.example", "S", text="x")
    except LetterError as error:
        print("Too many open files" in str(error))
    sys.meta_path.remove(failing)
    print(letter.send("a@b.example", "S", text="x")["status"])


main(globals())
