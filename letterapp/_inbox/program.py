"""The inbox as a program: one loop that serves until it is told to stop.

Responsible for: putting the parts together, signals, the end. Not responsible for: arguments and output (`_cli/inbox`).
"""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
from contextlib import suppress
from typing import Any, Callable, NamedTuple

from .api import Api
from .changes import Changes
from .connections import Connections
from .faults import Faults
from .ingestion import Ingestion, OnEvent
from .store import Store


class Settings(NamedTuple):
    """What an inbox is started with. ``on_event`` must not block."""

    sock: socket.socket  # that listens
    store: Store
    troubled: bool = False
    on_event: OnEvent | None = None
    stop_when: Callable[[], Any] | None = None  # a function that returns when the inbox should stop


def serve(settings: Settings) -> None:
    """Serve until Ctrl-C, SIGTERM, or `stop_when`. Call it in the main thread. Closes the socket and the store."""
    try:
        asyncio.run(_serve(settings))
    except KeyboardInterrupt:
        pass
    finally:
        settings.sock.close()
        settings.store.close()


async def _serve(settings: Settings) -> None:
    loop = asyncio.get_running_loop()
    stopped = loop.create_future()

    def stop() -> None:
        if not stopped.done():
            stopped.set_result(None)

    for number in (signal.SIGINT, signal.SIGTERM):
        # Not what the parent has told this process to ignore, as a shell does for a program in the background.
        if signal.getsignal(number) != signal.SIG_IGN:
            with suppress(NotImplementedError):  # on Windows, where KeyboardInterrupt ends the loop
                loop.add_signal_handler(number, stop)
    if settings.stop_when is not None:
        threading.Thread(target=_watch, args=(settings.stop_when, loop, stop), daemon=True).start()
    changes = Changes()
    port = settings.sock.getsockname()[1]
    incoming = Ingestion(settings.store, Faults(settings.troubled), changes, port, settings.on_event)
    api = Api(settings.store, incoming, changes, f"http://127.0.0.1:{port}")
    try:
        await Connections(api.handle).serve(settings.sock, stopped)
    finally:
        incoming.close()


def _watch(stop_when: Callable[[], Any], loop: asyncio.AbstractEventLoop, stop: Callable[[], None]) -> None:
    stop_when()
    with suppress(RuntimeError):  # the loop has ended
        loop.call_soon_threadsafe(stop)
