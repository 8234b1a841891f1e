"""Greenlets in the place of threads, where gevent or eventlet has put them there.

Responsible for: what a signal handler has to do differently then. Not responsible for: locks, threads and sockets,
which those libraries replace themselves.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

# Where eventlet's hub stands while it waits, or is about to: nothing of its own is half done there.
_IN_THE_WAIT = ("run", "sleep_until", "default_sleep", "wait", "do_poll", "_control")


def spawn(act: Callable[..., object], number: int, frame: Any) -> bool:
    """Have a greenlet of its own call ``act(number, frame)``; False where threads are threads. For a signal handler.

    A handler runs in whatever greenlet is current, the hub or the sender's own, and neither may wait there.
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
    if hasattr(hub, "loop"):  # asyncio's, which has a way to be woken
        hub.loop.call_soon_threadsafe(lambda: None)
    elif eventlet.getcurrent() is hub.greenlet and frame.f_code.co_name in _IN_THE_WAIT and _is_direct(frame):
        # What the hub waits in would go on after the handler for the time that it was told before (PEP 475), up to a
        # minute, and see nothing new until then. So this hub ends, and another begins: eventlet is made for that, since
        # an exception that leaves the hub ends it too (`BaseHub.ensure_greenlet`).
        ending = hub.greenlet
        hub.greenlet = type(ending)(hub.run, ending.parent)
        ending.parent = hub.greenlet
        raise ending.GreenletExit


def _is_direct(interrupted: Any) -> bool:
    """True unless another handler, which has replaced ours, calls it."""
    caller = sys._getframe(3).f_back
    return caller is interrupted
