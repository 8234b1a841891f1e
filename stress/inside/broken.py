"""This client, broken in one way each, so that a test can see every column of the ledger go red.

Runs in the client's interpreter. Lives here: one fault a function, by the same arguments as in `default_clients.py`. Never here:
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
    """The real client, its ``track`` in the wrapping that ``wrap`` makes of the `Letter`."""
    whole = default_clients.letterapp(url, on_given_up)
    track = wrap(whole.track.func.__self__)  # type: ignore[attr-defined]

    def called(properties: Properties) -> object:  # by its keyword
        return track(properties)

    return whole._replace(track=called)


def _often(properties: Properties) -> bool:
    return bool(properties["serial"] % 50 == 49)


def lost(url: str, on_given_up: OnGivenUp) -> Client:
    """An event in fifty is forgotten."""
    return _with(
        url, on_given_up, lambda letter: lambda given: None if _often(given) else letter.track(USER, EVENT, given)
    )


def told(url: str, on_given_up: OnGivenUp) -> Client:
    """An event in fifty is given up, and the program hears of it. No fault of the ledger's, but not green."""
    return _with(
        url,
        on_given_up,
        lambda letter: (
            lambda given: on_given_up([{"properties": given}]) if _often(given) else letter.track(USER, EVENT, given)
        ),
    )


def twice(url: str, on_given_up: OnGivenUp) -> Client:
    """An event in fifty is sent again under a new id, as after an answer that was lost."""

    def wrap(letter: Any) -> Track:
        def track(given: Properties) -> None:
            for _ in range(2 if _often(given) else 1):
                letter.track(USER, EVENT, given)

        return track

    return _with(url, on_given_up, wrap)


def collided(url: str, on_given_up: OnGivenUp) -> Client:
    """Neighbours share an id, as from a random generator that a fork has copied."""

    def wrap(letter: Any) -> Track:
        space = uuid.uuid4()

        def track(given: Properties) -> None:
            shared = uuid.uuid5(space, f"{given['who']} {given['serial'] // 2}")
            letter.track(USER, EVENT, given, message_id=str(shared))

        return track

    return _with(url, on_given_up, wrap)


def disordered(url: str, on_given_up: OnGivenUp) -> Client:
    """An event in fifty goes out after its follower."""

    def wrap(letter: Any) -> Track:
        held: list[Properties] = []

        def track(given: Properties) -> None:
            if given["serial"] % 50 == 3:
                held.append(given)
                return
            letter.track(USER, EVENT, given)
            while held:
                letter.track(USER, EVENT, held.pop())

        return track

    return _with(url, on_given_up, wrap)


def hung(url: str, on_given_up: OnGivenUp) -> Client:
    """A thread that nobody ends, and that the interpreter waits for."""
    threading.Thread(target=threading.Event().wait).start()
    return default_clients.letterapp(url, on_given_up)


def orphans(url: str, on_given_up: OnGivenUp) -> Client:
    """A helper process that outlives the program."""
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
    return default_clients.letterapp(url, on_given_up)


def descriptors(url: str, on_given_up: OnGivenUp) -> Client:
    """An event in fifty costs a descriptor."""

    def wrap(letter: Any) -> Track:
        def track(given: Properties) -> None:
            if _often(given):
                os.dup(0)
            letter.track(USER, EVENT, given)

        return track

    return _with(url, on_given_up, wrap)


def threads(url: str, on_given_up: OnGivenUp) -> Client:
    """An event in fifty costs a thread."""

    def wrap(letter: Any) -> Track:
        def track(given: Properties) -> None:
            if _often(given):
                threading.Thread(target=threading.Event().wait, daemon=True).start()
            letter.track(USER, EVENT, given)

        return track

    return _with(url, on_given_up, wrap)


def failing(url: str, on_given_up: OnGivenUp) -> Client:
    """The program itself breaks: that is no ledger at all."""
    raise RuntimeError("no client today")
