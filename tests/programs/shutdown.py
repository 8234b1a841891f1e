"""Programs with an object that uses the client in `__del__` while Python removes its modules."""

from __future__ import annotations

import os
import sys
import time
from typing import Any, Callable

from letterapp import Letter, LetterError
from programs.common import API, main, make, work

# By then the globals are gone, so that each `__del__` gets what it needs as defaults.


def keep_to_the_end(last: Any) -> None:
    sys.modules["last"] = last


def tracks() -> None:
    def on_error(error: LetterError, write: Callable[[int, bytes], int] = os.write) -> None:
        write(1, f"{error}\n".encode())

    class Last:
        def __init__(self, letter: Letter) -> None:
            self.letter = letter

        def __del__(self, write: Any = os.write, clock: Any = time.monotonic) -> None:
            began = clock()
            self.letter.track("late", "E")
            settled = self.letter.flush(), self.letter.close()
            write(1, f"{settled} {clock() - began < 20} {self.letter.stats()['lost']}\n".encode())

    letter = make(exit_timeout=40, on_error=on_error)
    work(letter, 1)
    keep_to_the_end(Last(letter))


CALLS: dict[str, Callable[[Letter, Any, str], Any]] = {
    "send": lambda letter, new, api: letter.send("a@b.example", "S", text="x"),
    "Letter": lambda letter, new, api: new("k", api),
}


def raises(name: str) -> None:
    class Last:
        def __init__(self, letter: Letter) -> None:
            self.letter = letter

        def __del__(
            self,
            write: Any = os.write,
            call: Any = CALLS[name],
            new: Any = Letter,
            api: str = API,
            expected: Any = LetterError,
        ) -> None:
            try:
                call(self.letter, new, api)
            except expected as error:
                write(1, str(error).encode())

    keep_to_the_end(Last(make()))


def waits_for_a_frozen_thread() -> None:
    class Last:
        def __init__(self, letter: Letter) -> None:
            self.letter = letter

        def __del__(self, write: Any = os.write, clock: Any = time.monotonic) -> None:
            began = clock()
            self.letter.flush(40)
            self.letter.close(40)
            write(1, f"{clock() - began < 20}\n".encode())

    letter = make(exit_timeout=0.2, on_error=lambda error: None)
    work(letter, 1)
    keep_to_the_end(Last(letter))


main(globals())
