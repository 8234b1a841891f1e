"""Greenlets instead of threads, under gevent and eventlet.

Responsible for: what a signal handler has to do differently then. Not responsible for: locks, threads and sockets,
which those libraries replace themselves.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

# The functions in which eventlet's hub waits, or is about to wait: its state is consistent there.
_IN_THE_WAIT = ("run", "sleep_until", "default_sleep", "wait", "do_poll", "_control")


def spawn(act: Callable[..., object], number: int, frame: Any) -> bool:
    """Call ``act(number, frame)`` in a new greenlet; False if threads are not greenlets. For a signal handler.

    A handler runs in the current greenlet, which may be the hub or the sender's, where waiting is not possible.
    """
    monkey: Any = sys.modules.get("gevent.monkey")
    if monkey is not None and monkey.is_module_patched("threading"):
        sys.modules["gevent"].spawn(act, number, frame)
        return True
    patcher: Any = sys.modules.get("eventlet.patcher")
    if patcher is not None and patcher.is_monkey_patched("thread"):
        _spawn_in_eventlet(act, number, frame)
        return True
    return False


def _spawn_in_eventlet(act: Callable[..., object], number: int, frame: Any) -> None:
    eventlet: Any = sys.modules["eventlet"]
    hub = eventlet.hubs.get_hub()
    eventlet.spawn(act, number, frame)
    if hasattr(hub, "loop"):  # the hub on asyncio, which can be woken
        hub.loop.call_soon_threadsafe(lambda: None)
    elif eventlet.getcurrent() is hub.greenlet and frame.f_code.co_name in _IN_THE_WAIT and _is_direct(frame):
        # After the handler, the hub's system call would continue to wait for the original time (PEP 475), up to a
        # minute, and not notice the new greenlet. So this hub ends, and a new one starts. Eventlet supports that, since
        # an exception that leaves the hub ends it too (`BaseHub.ensure_greenlet`).
        ending = hub.greenlet
        hub.greenlet = type(ending)(hub.run, ending.parent)
        ending.parent = hub.greenlet
        raise ending.GreenletExit


def _is_direct(interrupted: Any) -> bool:
    """True unless our handler was called by another one, which has replaced it."""
    caller = sys._getframe(3).f_back
    return caller is interrupted
