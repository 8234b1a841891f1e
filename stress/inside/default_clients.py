"""Each client as its users have it: the default options, and an error callback.

Runs in the client's interpreter; imports nothing but the client. ``STRESS_OPTIONS`` holds more keyword arguments, as
JSON, where a scenario is about an option. Never here: journals, clocks, and options that only a measurement needs
(`measured_clients.py` has those).
"""

from __future__ import annotations

import importlib
import json
import os
from functools import partial
from typing import Any, Callable, NamedTuple

USER, EVENT = "user_12345", "Order Completed"
OnGivenUp = Callable[..., None]  # the events that are given up, and how many more are that have no name


class Client(NamedTuple):
    track: Callable[..., object]  # called with properties=
    close: Callable[[], object]
    refused: Callable[[Any], bool]  # whether the call's answer says that the event was not taken


def make(name: str, url: str, on_given_up: OnGivenUp) -> Client:
    """The client called ``name``; ``MODULE:NAME`` for one that lies not_applicable."""
    module, _, function = name.rpartition(":")
    maker = getattr(importlib.import_module(module), function) if module else globals()[function]
    client: Client = maker(url, on_given_up, **json.loads(os.environ.get("STRESS_OPTIONS", "{}")))
    return client


def letterapp(url: str, on_given_up: OnGivenUp, manager: dict[str, Any] | None = None, **options: Any) -> Client:
    """``manager``: the options of the `SenderManager` whose queue it gets; None for none."""
    from letterapp import Letter

    def on_error(error: Any) -> None:
        events = getattr(error, "events", ())  # 0.2.0 says nothing of the events that an error is about
        # The report of a full queue names the first hundred and counts all: it stays small when memory is short.
        on_given_up(events, max(0, getattr(error, "lost", 0) - len(events)))  # of a relay's rest none counts as lost

    if manager is None:
        letter = Letter("key", url, on_error=on_error, **options)
        close: Callable[[], object] = letter.close
    else:
        import managers

        letter = Letter(relay=managers.shared(url, **manager).queue, on_error=on_error, **options)

        def close() -> None:
            letter.close()
            managers.shut_down()

    return Client(partial(letter.track, USER, EVENT), close, lambda answer: False)


def posthog(url: str, on_given_up: OnGivenUp) -> Client:
    from posthog import Posthog

    client = Posthog("key", host=url, on_error=lambda error, batch: on_given_up(batch))
    return Client(partial(client.capture, EVENT, distinct_id=USER), client.shutdown, lambda answer: answer is None)


def segment(url: str, on_given_up: OnGivenUp) -> Client:
    from segment.analytics.client import Client as Segment

    client = Segment("key", host=url, on_error=lambda error, batch: on_given_up(batch))
    return Client(partial(client.track, USER, EVENT), client.shutdown, lambda answer: not answer[0])


def rudder(url: str, on_given_up: OnGivenUp) -> Client:
    from rudderstack.analytics.client import Client as Rudder

    client = Rudder("key", host=url, on_error=lambda error, batch: on_given_up(batch))
    return Client(partial(client.track, USER, EVENT), client.shutdown, lambda answer: not answer[0])
