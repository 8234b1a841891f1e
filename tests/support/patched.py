"""Programs that a greenlet library patches: before their client is made, after it, and under its idle thread.

Responsible for: what gevent's and eventlet's tests share. Not responsible for: what is right.
"""

from __future__ import annotations

from harness import Program

# How a program comes to its patched client; see programs/greenlets.py.
BEFORE = "patched before"
UNDER_IDLE_SENDER = "patched under its idle sender"
AFTER_USE = "patched after it was used"
BEGINNINGS = [BEFORE, "patched after it was made", UNDER_IDLE_SENDER]


def tracked_before(beginning: str) -> dict[str, list[int]]:
    return {"before the patch": list(range(5))} if beginning in (UNDER_IDLE_SENDER, AFTER_USE) else {}


def end(program: Program, code: int = 0) -> None:
    """It ends by itself, and has nothing to complain of."""
    finished = program.finish()
    assert finished.code == code, finished
    for word in ("Traceback", "Exception ignored", "letterapp:"):
        assert word not in finished.output, finished
    assert not program.left_behind(), program.left_behind()
