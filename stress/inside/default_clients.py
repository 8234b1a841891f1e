"""Each client with its default options and an error callback, as its users have it.

Runs in the client's interpreter; imports nothing but the client. ``STRESS_OPTIONS`` contains further keyword arguments,
as JSON, for scenarios that test an option. Not responsible for: logs, timing, and options that only a measurement needs
(see `measured_clients.py`).
"""

from __future__ import annotations

import importlib
import json
import os
from functools import partial
from typing import Any, Callable, NamedTuple

USER, EVENT = "user_12345", "Order Completed"
# Called with the events that were given up, and the number of further ones that the client does not name.
OnGivenUp = Callable[..., None]


class Client(NamedTuple):
    track: Callable[..., object]  # called with properties=
    close: Callable[[], object]
    refused: Callable[[Any], bool]  # whether the return value of ``track`` says that the event was not accepted


def make(name: str, url: str, on_given_up: OnGivenUp) -> Client:
    """The client called ``name``; ``MODULE:NAME`` for one in another module."""
    module, _, function = name.rpartition(":")
    maker = getattr(importlib.import_module(module), function) if module else globals()[function]
    client: Client = maker(url, on_given_up, **json.loads(os.environ.get("STRESS_OPTIONS", "{}")))
    return client


def letterapp(url: str, on_given_up: OnGivenUp, manager: dict[str, Any] | None = None, **options: Any) -> Client:
    """``manager``: the options of the `SenderManager` whose queue it uses; None for no manager."""
    from letterapp import Letter

    def on_error(error: Any) -> None:
        events = getattr(error, "events", ())  # errors of 0.2.0 do not contain the events
        # The report of a full queue contains the first hundred events only, to save memory, and the number of all. In a
        # report on events that a relay has returned that number is smaller, because those are not lost.
        on_given_up(events, max(0, getattr(error, "lost", 0) - len(events)))

    if manager is None:
        letter = Letter("key", url, on_error=on_error, **options)
        close: Callable[[], object] = letter.close
    else:
        import managers

        letter = Letter(relay=managers.shared(url, **manager).queue, on_error=on_error, **options)

        def close() -> None:
            letter.close()
            managers.shut_down()

    return Client(partial(letter.track, USER, EVENT), close, lambda result: False)


def posthog(url: str, on_given_up: OnGivenUp) -> Client:
    from posthog import Posthog

    client = Posthog("key", host=url, on_error=lambda error, batch: on_given_up(batch))
    return Client(partial(client.capture, EVENT, distinct_id=USER), client.shutdown, lambda result: result is None)


def segment(url: str, on_given_up: OnGivenUp) -> Client:
    from segment.analytics.client import Client as Segment

    client = Segment("key", host=url, on_error=lambda error, batch: on_given_up(batch))
    return Client(partial(client.track, USER, EVENT), client.shutdown, lambda result: not result[0])


def rudder(url: str, on_given_up: OnGivenUp) -> Client:
    from rudderstack.analytics.client import Client as Rudder

    client = Rudder("key", host=url, on_error=lambda error, batch: on_given_up(batch))
    return Client(partial(client.track, USER, EVENT), client.shutdown, lambda result: not result[0])
