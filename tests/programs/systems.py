"""Systems, and builds of Python, that lack or refuse something.

`sitecustomize` calls one of these functions before a program imports anything (`families.output_of`).
"""

from __future__ import annotations

import os
import sys
from typing import Any, NoReturn

modules: dict[str, Any] = sys.modules


def _refuse(code: int, text: str) -> Any:
    def refuse(*_: object, **__: object) -> NoReturn:
        raise OSError(code, text)

    return refuse


def lacks_memfd_create() -> None:
    if hasattr(os, "memfd_create"):
        del os.memfd_create


def refuses_memfd_create() -> None:
    os.memfd_create = _refuse(38, "Function not implemented")


def refuses_madv_remove() -> None:
    import mmap

    class Map(mmap.mmap):
        madvise = _refuse(22, "Invalid argument")

    mmap.mmap = Map  # type: ignore[misc]


def refuses_mmap() -> None:
    import mmap

    mmap.mmap = _refuse(12, "Cannot allocate memory")  # type: ignore[misc]


def refuses_files() -> None:
    import tempfile

    os.memfd_create = tempfile.TemporaryFile = _refuse(24, "Too many open files")


def lacks_mmap() -> None:
    modules["mmap"] = None


def lacks_fcntl() -> None:
    modules["fcntl"] = None


def lacks_fork() -> None:
    os.their_fork = os.fork  # type: ignore[attr-defined]  # by which the program itself forks
    del os.fork
