"""The fork hooks: which process an object belongs to, what a fork waits for, what a child closes.

Responsible for: one set of hooks for the whole interpreter, and their state. Not responsible for: clients, queues.

After a fork, each page that either process writes is copied. Visiting all clients would copy dozens of pages in a child
that never uses them. So the hook visits only open descriptors, and sets one number that all objects of the parent
share, which marks them as not belonging to the child.
"""

from __future__ import annotations

import _thread
import os
import time
from _weakref import ref  # not `weakref`, which takes half a millisecond to import

from .clock import monotonic
from .signal_errors import reraise_signal_error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Protocol

    class Inheritable(Protocol):
        """An object with a descriptor, of which a forked child has a copy."""

        def close_inherited(self) -> None:
            """Close the copy, unless its number belongs to another file now. Called in the fork hook, or later."""


# The longest time that a fork waits, in seconds.
WORK = 30.0  # for local work: the imports of the first request take 30 ms, or seconds on an overloaded machine
NETWORK = 2.0  # for a resolver or a peer, whose delay has no bound


class Process:
    """A process, for the objects that belong to it. In a forked child ``pid`` differs from `os.getpid()`."""

    __slots__ = ("children", "locks", "pid")

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.locks: dict[object, Any] = {}  # its record locks, by name: the kernel would grant them a second time
        self.children: dict[int, Process] = {}


_process = Process()
_hooked = False
# No lock is needed: each use is one atomic operation on a set or a dict.
_open: set[ref[Inheritable]] = set()
_blocking: dict[object, tuple[int, int, float]] = {}  # for each call its process, its thread, until when forks wait
_leaving: dict[int, float] = {}  # native IDs of threads that are ending, and until when forks wait for them
_OF_C: object = type(len)  # the type of `start_new_thread`, unless gevent has patched it
_thread_id = getattr(_thread, "get_native_id", None)


def this_process() -> Process:
    """The `Process` object of this process. A process ID is not enough: a descendant may get the same one."""
    global _process
    pid = os.getpid()
    if _process.pid != pid:
        parent, mine = _process, Process()
        _process = parent.children.setdefault(pid, mine)  # atomic: two threads may get here at once
        if parent.pid and _process is mine:  # no fork hook was called: uWSGI
            for opened in _inherited():
                opened.close_inherited()
    return _process


def install_hooks(after_in_parent: Callable[[], object]) -> None:
    """Install the hooks, once per interpreter: they cannot be removed. Starts nothing."""
    global _hooked
    if not _hooked:
        _hooked = True
        if hasattr(os, "register_at_fork"):  # not on Windows
            os.register_at_fork(before=_before_fork, after_in_parent=after_in_parent, after_in_child=_in_child)


def register_inherited(opened: Inheritable) -> None:
    """Make each child that is forked while ``opened`` exists close its copy of the descriptor."""
    _open.add(ref(opened, _open.discard))


def block_forks(longest: float, act: Callable[..., Any], *arguments: Any) -> Any:
    """Call ``act``. A fork in another thread waits until it is done, for at most ``longest`` seconds.

    A child that is forked during an import keeps a partially initialised module. OpenSSL and the resolver hold locks
    outside of the GIL, which are never released in the child. A descriptor that is open and not yet registered stays
    open in the child.
    """
    mine = object()
    try:  # includes the assignment: an entry left behind by a Ctrl-C would delay every later fork
        _blocking[mine] = os.getpid(), _thread.get_ident(), monotonic() + longest
        return act(*arguments)
    finally:
        _blocking.pop(mine, None)


def announce_thread_end(leave: Callable[[], bool]) -> bool:
    """Call ``leave``, which returns True if the calling thread ends now; return its result.

    If True, a fork waits until the thread has also ended in C. OpenSSL cleans up after each thread, and holds a lock
    that the end of a process needs: in a child that is forked at that moment it is never released.
    """
    if _thread_id is None or type(_thread.start_new_thread) is not _OF_C:
        return leave()  # the end of a greenlet is not the end of a thread
    thread, now = _thread_id(), monotonic()
    for other, until in tuple(_leaving.items()):
        if until < now:
            _leaving.pop(other, None)  # if the process never forks, nothing else removes it
    _leaving[thread] = now + NETWORK
    leaves = leave()
    if not leaves:
        _leaving.pop(thread, None)
    return leaves


def close_if_unchanged(descriptor: int, inode: int) -> None:
    """Close a socket's descriptor, unless other code has closed it: its number may belong to another file now."""
    try:
        if descriptor >= 0 and os.fstat(descriptor).st_ino == inode:
            os.close(descriptor)
    except OSError as problem:
        reraise_signal_error(problem)  # otherwise it is already closed


def _before_fork() -> None:
    if _blocking:
        # A call that forks itself, as an import or the application's `ssl_context` function may, does not wait.
        here, me = os.getpid(), _thread.get_ident()
        while any(
            pid == here and thread != me and monotonic() < until for pid, thread, until in tuple(_blocking.values())
        ):
            time.sleep(0.001)
    for thread, until in tuple(_leaving.items()):
        # (On Linux only. Elsewhere there is no such file, and so no wait.)
        while os.path.exists(f"/proc/self/task/{thread}") and monotonic() < until:
            time.sleep(0.001)
        _leaving.pop(thread, None)


def _in_child() -> None:
    # Take no lock, start no thread, log nothing: gevent patches after this, and hooks of other libraries may not have
    # run yet. The child creates what it needs at the first use.
    _process.pid = 0
    for opened in _inherited():
        opened.close_inherited()
    if _blocking:
        _blocking.clear()
    if _leaving:
        _leaving.clear()


def _inherited() -> list[Inheritable]:
    return [opened for opened in [known() for known in tuple(_open)] if opened is not None]
