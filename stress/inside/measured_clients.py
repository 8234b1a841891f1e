"""How each client is made and called, and the floor. Runs in the peer's interpreter: imports nothing but the client.

Lives here: one function a client; it returns ``track``, to be called with ``properties=``, and ``close``, which returns
when all is delivered. Options are the defaults but for the queue, which has room for ``room`` events so that nobody
drops. Never here: clocks.

`functools.partial` rather than a function of ours around each client: what is timed is the client's own call.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Callable, NamedTuple

USER, EVENT = "user_12345", "Order Completed"


class Client(NamedTuple):
    track: Callable[..., object]
    close: Callable[[], object]
    relayed: Callable[[], int] = lambda: 0  # events of this process that another one sent


def properties(number: int) -> dict[str, Any]:
    """Five properties, as a shop would send them; a dict of their own for each event."""
    return {"plan": "pro", "amount": 12.5, "count": number, "paid": True, "source": "newsletter"}


def letterapp(url: str, room: int, **options: Any) -> Client:
    from letterapp import Letter

    # 0.2.0 has no bounds, and takes no option for them.
    bounded = "max_queue_events" in (Letter.__init__.__kwdefaults__ or ())
    bounds: Any = {"max_queue_events": room, "max_queue_bytes": room * 1000, "exit_timeout": 60.0} if bounded else {}
    letter = Letter("key", url, **bounds, **options)
    return Client(partial(letter.track, USER, EVENT), letter.close, lambda: int(letter.stats()["relayed"]))


def letterapp_relay(url: str, room: int) -> Client:
    return letterapp(url, room, relay=True)


def letterapp_manager(url: str, room: int) -> Client:
    from letterapp.relay import SenderManager

    manager = SenderManager("key", url, max_queue_events=room, max_queue_bytes=room * 1000, exit_timeout=60.0)
    manager.start()
    return letterapp(url, room, relay=manager.queue)


def posthog(url: str, room: int) -> Client:
    from posthog import Posthog

    client = Posthog("key", host=url, max_queue_size=room)
    return Client(partial(client.capture, EVENT, distinct_id=USER), client.shutdown)


def segment(url: str, room: int) -> Client:
    from segment.analytics.client import Client as Segment

    client = Segment("key", host=url, max_queue_size=room)
    return Client(partial(client.track, USER, EVENT), client.shutdown)


def rudder(url: str, room: int) -> Client:
    from rudderstack.analytics.client import Client as Rudder

    client = Rudder("key", host=url, max_queue_size=room)
    return Client(partial(client.track, USER, EVENT), client.shutdown)


def floor(url: str, room: int) -> Client:
    """What no client that sends JSON with a unique id can do without, by the usual means; and it sends nothing."""
    import json
    import uuid
    from collections import deque

    queue = deque()  # type: ignore[var-annotated]

    def track(properties: dict[str, Any]) -> None:
        queue.append(
            json.dumps(
                {
                    "type": "track",
                    "event": EVENT,
                    "properties": properties,
                    "userId": USER,
                    "timestamp": "2026-01-01T00:00:00.000000Z",
                    "messageId": str(uuid.uuid4()),
                }
            )
        )

    return Client(track, queue.clear)
