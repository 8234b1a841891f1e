"""Programs that a greenlet library patches: before their client is made, after it, and under its idle thread.

Lives here: what gevent's and eventlet's tests share. Never here: what is right.
"""

from __future__ import annotations

from harness import PRELUDE, Program

# The sender's thread is idle then, and there: the library patches under it.
USE = """
work(letter, 5, "before the patch")
letter.flush(0)  # asks, and does not have the thread leave
while letter.stats()["delivered"] < 5:
    time.sleep(0.01)
"""


def beginnings(patch: str, make: str) -> dict[str, str]:
    """How a program comes to its patched client."""
    return {
        "patched before": patch + PRELUDE + make,
        "patched after it was made": PRELUDE + make + patch,
        "patched under its idle sender": PRELUDE + make + USE + patch,
    }


def tracked_before(code: str) -> dict[str, list[int]]:
    return {"before the patch": list(range(5))} if "before the patch" in code else {}


def end(program: Program, code: int = 0) -> None:
    """It ends by itself, and has nothing to complain of."""
    finished = program.finish()
    assert finished.code == code, finished
    for word in ("Traceback", "Exception ignored", "letterapp:"):
        assert word not in finished.output, finished
    assert not program.left_behind(), program.left_behind()
