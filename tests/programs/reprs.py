"""A program that shows its clients in a forked child."""

from __future__ import annotations

import os

from programs.common import child, main, make, work


def in_a_child() -> None:
    letter, relayed = make(), make(relay=True)
    work(letter, 1)

    def show() -> None:
        before = vars(letter)["_delivery"], vars(relayed)["_delivery"]
        text = repr(letter) + repr(relayed)
        assert text == f"<Letter not used so far, pid={os.getpid()}>" * 2, text
        assert before == (vars(letter)["_delivery"], vars(relayed)["_delivery"])
        work(letter, 1)
        letter.flush()
        assert "delivered=1" in repr(letter), repr(letter)

    assert os.waitpid(child(show), 0)[1] == 0
    print("fine")


main(globals())
