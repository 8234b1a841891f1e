"""A program of test_memory: clients in places that an interpreter clears early, late, or only by garbage collection."""

from __future__ import annotations

import builtins
import codecs
import gc
import sys
import threading
from typing import Any

import letterapp
import letterapp._client
from letterapp._runtime import atfork
from letterapp._storage import file_lock, memory
from programs.common import API, main

kept: list[object] = []


def clients(*used: str) -> None:
    """Make them all. What was ``used`` is closed, or there would be a warning about its socket."""

    def made() -> letterapp.Letter:
        letter = letterapp.Letter("k", API)
        if used:
            letter.track("program", "Worked", {"serial": 0})
            letter.close()
        return letter

    class Knot:
        def __init__(self) -> None:
            self.me, self.letter = self, made()

    gc.disable()
    places: list[Any] = [builtins, sys, threading.current_thread()]
    places += [letterapp, memory, file_lock, atfork, letterapp._client]
    for place in places:
        place.one = made()
    letter = made()

    def no_codec(name: str, keeps: object = letter) -> None:
        """What the interpreter's list of codecs refers to."""

    codecs.register(no_codec)
    kept.extend(made() for _ in range(50))
    kept.extend(Knot() for _ in range(50))
    for _ in range(20):
        Knot()


main(globals())
