"""A program of test_lost_again: it keeps in a file what its end gave up."""

from __future__ import annotations

import json

from letterapp import LetterError
from programs.common import main, make, work


def two_kinds() -> None:
    def keep(error: LetterError) -> None:
        with open("lost", "a") as file:
            for event in error.events:
                file.write(json.dumps([error.cause, event]) + "\n")

    letter = make(on_error=keep, exit_timeout=0.2)
    work(letter, 2)
    letter.identify("u", "a@b")


main(globals())
