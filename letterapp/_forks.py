"""The fork hook: whose an object is, what a fork waits for, and what a forked child gives back.

Lives here: one hook for the whole interpreter, and the little that it looks at. Never here: clients, queues.

A fork is paid for in pages: each one that either side touches afterwards is copied. To walk the clients would cost a
child that never uses them tens of pages, so the hook looks at what is open only, and one number says to all
objects of the parent that they are nobody's.
"""

from __future__ import annotations

import _thread
import os
import time
from _weakref import ref  # of which `weakref` is the rest: half a millisecond of `import letterapp`

from ._clock import monotonic
from ._handlers import pass_on

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Protocol

    class Inheritable(Protocol):
        """What a forked child has a copy of, and is to give back."""

        def abandon(self) -> None:
            """Close the copy, if the descriptor is not something else by now. In the fork hook, or late without one."""


# Seconds that a fork waits at the longest for what is undisturbed.
WORK = 30.0  # of the processor's alone: the imports of a first request take 30 ms, on a machine that starves seconds
NETWORK = 2.0  # a resolver's, a peer's: it may take any time


class Process:
    """This process, as its objects know it: they are its own while ``pid`` is the number that the system gives."""

    __slots__ = ("children", "locks", "pid")

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.locks: dict[object, Any] = {}  # what the kernel would let it lock again, by name
        self.children: dict[int, Process] = {}


_process = Process()
_hooked = False
# No locks: each use is one operation on a set or a dict.
_open: set[ref[Inheritable]] = set()
_undisturbed: dict[object, tuple[int, int, float]] = {}  # each act: its process, thread, and until when forks wait
_leaving: dict[int, float] = {}  # threads that come to their end, as the system numbers them, and the same
_OF_C: object = type(len)  # what starts a thread is such a function, unless gevent has patched it
_thread_id = getattr(_thread, "get_native_id", None)


def this_process() -> Process:
    """The one `Process` of this process. A number is not enough: the system may give it again to a descendant."""
    global _process
    pid = os.getpid()
    if _process.pid != pid:
        parent, mine = _process, Process()
        _process = parent.children.setdefault(pid, mine)  # atomic: two threads may be the first
        if parent.pid and _process is mine:  # no hook was called: uWSGI
            for opened in _inherited():
                opened.abandon()
    return _process


def watch(after_in_parent: Callable[[], object]) -> None:
    """Have forks noticed from now on. Starts nothing; once per interpreter, because hooks cannot be taken back."""
    global _hooked
    if not _hooked:
        _hooked = True
        if hasattr(os, "register_at_fork"):  # not on Windows
            os.register_at_fork(before=_before_fork, after_in_parent=after_in_parent, after_in_child=_in_child)


def inherits(opened: Inheritable) -> None:
    """A child that is forked while ``opened`` lives, a connection or a file, is to `abandon` its copy of it."""
    _open.add(ref(opened, _open.discard))


def undisturbed(longest: float, act: Callable[..., Any], *arguments: Any) -> Any:
    """Call ``act``, for whose end a fork in another thread waits, until ``longest`` seconds from now.

    Imports leave half a module to a child. OpenSSL and the resolver take locks outside of the GIL, which the child
    would find held for ever.
    """
    mine = object()
    try:  # around the first line too: were an entry left by a Ctrl-C, every later fork would wait its longest
        _undisturbed[mine] = os.getpid(), _thread.get_ident(), monotonic() + longest
        return act(*arguments)
    finally:
        _undisturbed.pop(mine, None)


def leaving(leave: Callable[[], bool]) -> bool:
    """Call ``leave``, by which the thread that calls makes known that it comes to its end; False if it does not.

    A fork waits until that thread has ended in C too: OpenSSL cleans up after each, under a lock that a child which is
    made in that moment finds held for ever. It is taken again at the end of a process.
    """
    if _thread_id is None or type(_thread.start_new_thread) is not _OF_C:
        return leave()  # in a greenlet, whose end is none of a thread
    thread, now = _thread_id(), monotonic()
    for other, until in tuple(_leaving.items()):
        if until < now:
            _leaving.pop(other, None)  # of a process that never forks
    _leaving[thread] = now + NETWORK
    leaves = leave()
    if not leaves:
        _leaving.pop(thread, None)
    return leaves


def close_own(descriptor: int, inode: int) -> None:
    """Close a socket's descriptor unless somebody has: the number may be another file's by now, a log's or a peer's."""
    try:
        if descriptor >= 0 and os.fstat(descriptor).st_ino == inode:
            os.close(descriptor)
    except OSError as problem:
        pass_on(problem)  # else somebody has closed it before


def _before_fork() -> None:
    if _undisturbed:
        # An act that forks itself, as an import may, or a program's function that makes a TLS context, goes on in both.
        here, me = os.getpid(), _thread.get_ident()
        while any(
            pid == here and thread != me and monotonic() < until for pid, thread, until in tuple(_undisturbed.values())
        ):
            time.sleep(0.001)
    for thread, until in tuple(_leaving.items()):
        # (Linux's. Elsewhere there is no such file, and no wait.)
        while os.path.exists(f"/proc/self/task/{thread}") and monotonic() < until:
            time.sleep(0.001)
        _leaving.pop(thread, None)


def _in_child() -> None:
    # No lock, no thread, no log, no new object of consequence: gevent patches after this, and another library's hook
    # may not have run yet. What the child needs is made at its first use.
    _process.pid = 0
    for opened in _inherited():
        opened.abandon()
    if _undisturbed:
        _undisturbed.clear()
    if _leaving:
        _leaving.clear()


def _inherited() -> list[Inheritable]:
    return [opened for opened in [known() for known in tuple(_open)] if opened is not None]
