"""How each client is created and called in measurements, and the floor.

Runs in the peer's interpreter; imports nothing but the client. Responsible for: one function for each client, which
returns ``track``, to be called with ``properties=``, and ``close``, which returns when everything is delivered. Options
are the defaults, except for a queue of ``capacity`` events, so that no client drops any. Not responsible for: timing.

`functools.partial` instead of a function of our own around each client, because only the client's own call is timed.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Callable, NamedTuple

USER, EVENT = "user_12345", "Order Completed"
PATIENCE = 5.0  # seconds for a reply of Redis


class Client(NamedTuple):
    track: Callable[..., object]
    close: Callable[[], object]
    relayed: Callable[[], int] = lambda: 0  # events of this process that another one sent


def properties(number: int) -> dict[str, Any]:
    """Five properties, such as a shop would send; a new dict for each event."""
    return {"plan": "pro", "amount": 12.5, "count": number, "paid": True, "source": "newsletter"}


def flat(number: int) -> dict[str, Any]:
    return {"plan": "pro", "amount": 12.5, "count": number, "paid": True}


def with_list(number: int) -> dict[str, Any]:
    """As `flat`, but one of the values is a list."""
    return {"plan": "pro", "amount": 12.5, "count": number, "sizes": [1, 2, 3]}


def with_cart(number: int) -> dict[str, Any]:
    """As `with_list`, and the five items of an order."""
    cart = [{"sku": f"A-{item}", "name": f"Item {item}", "price": 9.5 + item, "quantity": item} for item in range(5)]
    return {**with_list(number), "cart": cart}


def with_values(number: int, values: int) -> dict[str, Any]:
    """An order with ``values`` values: one of its own, and items of three each."""
    return {"count": number, "cart": [{"sku": f"A-{item}", "price": 9.5, "paid": True} for item in range(values // 3)]}


# By their names in stress/metrics.py. Each call makes new objects, as a program would.
SHAPES: dict[str, Callable[[int], dict[str, Any]]] = {"flat": flat, "list": with_list, "cart": with_cart}


def letterapp(url: str, capacity: int, **options: Any) -> Client:
    from letterapp import Letter

    # 0.2.0 has an unbounded queue, no option to change that, and no statistics.
    bounded = "max_queue_events" in (Letter.__init__.__kwdefaults__ or ())
    bounds: Any = (
        {"max_queue_events": capacity, "max_queue_bytes": capacity * 1000, "exit_timeout": 60.0} if bounded else {}
    )
    letter = Letter("key", url, **bounds, **options)
    track = partial(letter.track, USER, EVENT)
    return Client(track, letter.close, lambda: int(letter.stats()["relayed"]) if bounded else 0)


def letterapp_relay(url: str, capacity: int) -> Client:
    return letterapp(url, capacity, relay=True)


def letterapp_manager(url: str, capacity: int) -> Client:
    from letterapp.relay import SenderManager

    manager = SenderManager("key", url, max_queue_events=capacity, max_queue_bytes=capacity * 1000, exit_timeout=60.0)
    manager.start()
    return letterapp(url, capacity, relay=manager.queue)


def letterapp_redis(url: str, capacity: int) -> Client:
    """``STRESS_REDIS``: the URL of a server that the harness has started, with relays for ``url``."""
    import os

    return letterapp(url, capacity, relay=os.environ["STRESS_REDIS"])


def appender(url: str) -> Callable[[list[bytes]], object]:
    """Appends an entry of the given events to the stream at ``STRESS_REDIS``, over one connection.

    It is what the client's thread does with a batch: the client itself decides how many events that has.
    """
    import os
    from types import SimpleNamespace

    from letterapp._redis.stream import RedisStream
    from letterapp._text import Secret

    settings = SimpleNamespace(api_key=Secret("key"), base_url=url, overflow="drop_newest")
    channel = RedisStream(os.environ["STRESS_REDIS"]).for_client(settings, lambda text: None).connect(PATIENCE)
    return lambda batch: channel.put(batch, False, PATIENCE, PATIENCE)


def encoded(number: int) -> bytes:
    """An event as the client encodes it, with the properties of all measurements."""
    import json

    event = {
        "type": "track",
        "event": EVENT,
        "properties": properties(number),
        "userId": USER,
        "timestamp": "2026-01-01T00:00:00.000000Z",
        "messageId": f"00000000-0000-4000-8000-{number:012}",
    }
    return json.dumps(event, separators=(",", ":")).encode()


def posthog(url: str, capacity: int) -> Client:
    from posthog import Posthog

    client = Posthog("key", host=url, max_queue_size=capacity)
    return Client(partial(client.capture, EVENT, distinct_id=USER), client.shutdown)


def segment(url: str, capacity: int) -> Client:
    from segment.analytics.client import Client as Segment

    client = Segment("key", host=url, max_queue_size=capacity)
    return Client(partial(client.track, USER, EVENT), client.shutdown)


def rudder(url: str, capacity: int) -> Client:
    from rudderstack.analytics.client import Client as Rudder

    client = Rudder("key", host=url, max_queue_size=capacity)
    return Client(partial(client.track, USER, EVENT), client.shutdown)


def floor(url: str, capacity: int) -> Client:
    """The minimum for any client that sends JSON with a unique id, in plain Python; it sends nothing."""
    import json
    import uuid
    from collections import deque

    # Bounded, because a queue that grows would also measure how fast the system provides memory.
    queue: deque[str] = deque(maxlen=capacity)

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
