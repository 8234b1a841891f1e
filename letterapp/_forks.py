"""The fork hook: whose an object is, what a fork waits for, and what a forked child gives back.

Lives here: one hook for the whole interpreter, and the little that it looks at. Never here: clients, queues.

A fork is paid for in pages: each one that either side touches afterwards is copied. To walk the clients would cost a
child that never uses them tens of pages, so the hook looks at open connections only, and one number says to all
objects of the parent that they are nobody's.
"""

from __future__ import annotations

import os
import time
from _weakref import ref  # of which `weakref` is the rest: half a millisecond of `import letterapp`

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Protocol

    class Inheritable(Protocol):
        def abandon(self) -> None: ...


LONGEST_WAIT = 2.0  # seconds; the imports of a first request take 30 ms, a slow resolver may take more


class Process:
    """This process, as its objects know it: they are its own while ``pid`` is the number that the system gives."""

    __slots__ = ("pid",)

    def __init__(self) -> None:
        self.pid = os.getpid()


_process = Process()
_hooked = False
# No locks: each use is one operation on a set or a dict.
_open: set[ref[Inheritable]] = set()
_undisturbed: dict[object, int] = {}  # the acts that are under way, and the process of each


def this_process() -> Process:
    """The one `Process` of this process. A number is not enough: the system may give it again to a descendant."""
    global _process
    if _process.pid != os.getpid():
        _process = Process()
    return _process


def watch() -> None:
    """Have forks noticed from now on. Starts nothing; once per interpreter, because hooks cannot be taken back."""
    global _hooked
    if not _hooked:
        _hooked = True
        if hasattr(os, "register_at_fork"):  # not on Windows
            os.register_at_fork(before=_before_fork, after_in_child=_in_child)


def inherits(connection: Inheritable) -> None:
    """A child that is forked while ``connection`` lives is to `abandon` its copy of it."""
    _open.add(ref(connection, _open.discard))


def undisturbed(act: Callable[..., Any], *arguments: Any) -> Any:
    """Call ``act``, for whose end a fork in another thread waits.

    Imports leave half a module to a child. OpenSSL and the resolver take locks outside of the GIL, which the child
    would find held for ever.
    """
    mine = object()
    try:  # around the first line too: were an entry left by a Ctrl-C, every later fork would wait its longest
        _undisturbed[mine] = os.getpid()
        return act(*arguments)
    finally:
        _undisturbed.pop(mine, None)


def _before_fork() -> None:
    if _undisturbed:
        deadline = time.monotonic() + LONGEST_WAIT
        while os.getpid() in _undisturbed.values() and time.monotonic() < deadline:
            time.sleep(0.001)


def _in_child() -> None:
    # No lock, no thread, no log, no new object of consequence: gevent patches after this, and another library's hook
    # may not have run yet. What the child needs is made at its first use.
    _process.pid = 0
    for known in _open:
        connection = known()
        if connection is not None:
            connection.abandon()
    if _undisturbed:
        _undisturbed.clear()
