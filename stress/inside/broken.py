"""This client with one fault in each function, so that a test can see every column of the ledger go red.

Runs in the client's interpreter. The arguments are those of the functions in `default_clients.py`. Not responsible for:
anything that a comparison uses.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import uuid
from typing import Any, Callable, Dict

import default_clients
from default_clients import EVENT, USER, Client, OnGivenUp

Properties = Dict[str, Any]
Track = Callable[[Properties], object]


def _with(url: str, on_given_up: OnGivenUp, wrap: Callable[[Any], Track]) -> Client:
    """The real client, with the ``track`` that ``wrap`` makes from the `Letter`."""
    whole = default_clients.letterapp(url, on_given_up)
    track = wrap(whole.track.func.__self__)  # type: ignore[attr-defined]  # it is a functools.partial

    def called(properties: Properties) -> object:  # the argument is passed by keyword
        return track(properties)

    return whole._replace(track=called)


def _is_one_in_fifty(properties: Properties) -> bool:
    return bool(properties["serial"] % 50 == 49)


def lost(url: str, on_given_up: OnGivenUp) -> Client:
    """One event in fifty is dropped silently."""
    return _with(
        url,
        on_given_up,
        lambda letter: (
            lambda properties: None if _is_one_in_fifty(properties) else letter.track(USER, EVENT, properties)
        ),
    )


def reported(url: str, on_given_up: OnGivenUp) -> Client:
    """One event in fifty is given up and reported to the program: no fault, but not green either."""
    return _with(
        url,
        on_given_up,
        lambda letter: (
            lambda properties: (
                on_given_up([{"properties": properties}])
                if _is_one_in_fifty(properties)
                else letter.track(USER, EVENT, properties)
            )
        ),
    )


def twice(url: str, on_given_up: OnGivenUp) -> Client:
    """One event in fifty is sent twice with different ids, as by a client that retries with a new id."""

    def wrap(letter: Any) -> Track:
        def track(properties: Properties) -> None:
            for _ in range(2 if _is_one_in_fifty(properties) else 1):
                letter.track(USER, EVENT, properties)

        return track

    return _with(url, on_given_up, wrap)


def collided(url: str, on_given_up: OnGivenUp) -> Client:
    """Two consecutive events share an id, as with a random generator that a fork has duplicated."""

    def wrap(letter: Any) -> Track:
        space = uuid.uuid4()

        def track(properties: Properties) -> None:
            shared = uuid.uuid5(space, f"{properties['who']} {properties['serial'] // 2}")
            letter.track(USER, EVENT, properties, message_id=str(shared))

        return track

    return _with(url, on_given_up, wrap)


def disordered(url: str, on_given_up: OnGivenUp) -> Client:
    """One event in fifty is sent after its successor."""

    def wrap(letter: Any) -> Track:
        held: list[Properties] = []

        def track(properties: Properties) -> None:
            if properties["serial"] % 50 == 3:
                held.append(properties)
                return
            letter.track(USER, EVENT, properties)
            while held:
                letter.track(USER, EVENT, held.pop())

        return track

    return _with(url, on_given_up, wrap)


def hung(url: str, on_given_up: OnGivenUp) -> Client:
    """A thread that never ends, and for which the interpreter waits."""
    threading.Thread(target=threading.Event().wait).start()
    return default_clients.letterapp(url, on_given_up)


def orphans(url: str, on_given_up: OnGivenUp) -> Client:
    """A helper process that outlives the program."""
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
    return default_clients.letterapp(url, on_given_up)


def descriptors(url: str, on_given_up: OnGivenUp) -> Client:
    """One event in fifty leaks a descriptor."""

    def wrap(letter: Any) -> Track:
        def track(properties: Properties) -> None:
            if _is_one_in_fifty(properties):
                os.dup(0)
            letter.track(USER, EVENT, properties)

        return track

    return _with(url, on_given_up, wrap)


def threads(url: str, on_given_up: OnGivenUp) -> Client:
    """One event in fifty leaks a thread."""

    def wrap(letter: Any) -> Track:
        def track(properties: Properties) -> None:
            if _is_one_in_fifty(properties):
                threading.Thread(target=threading.Event().wait, daemon=True).start()
            letter.track(USER, EVENT, properties)

        return track

    return _with(url, on_given_up, wrap)


def failing(url: str, on_given_up: OnGivenUp) -> Client:
    """The program itself fails, so there is nothing to count."""
    raise RuntimeError("cannot create a client")
