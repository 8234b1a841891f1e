"""The client, as the kit uses it: the only module here that imports anything from the client.

Responsible for: making this process's clients, and those of the processes that it starts, keep their requests in a
directory; having them send at once. Not responsible for: what is in the directory (`run`).
"""

from __future__ import annotations

import os
from typing import Optional

from .. import Letter, LetterError
from .._delivery.shutdown import own_deliveries
from .._runtime import outbox

__all__ = ["Letter", "LetterError", "flush", "has_clients", "redirect"]


def redirect(directory: Optional[str]) -> Optional[str]:
    """Have requests kept in ``directory``, or sent if it is None; return what applied before.

    Affects clients that exist already, and, by way of the environment, the processes that are started from now on.
    """
    before = outbox.directory
    outbox.directory = directory
    if directory is None:
        os.environ.pop(outbox.VARIABLE, None)
    else:
        os.environ[outbox.VARIABLE] = directory
    return before


def has_clients() -> bool:
    """True if this process has a client that was used or may be used."""
    return bool(own_deliveries())


def flush(timeout: float) -> None:
    """Have the captured clients of this process send what waits. Blocks for at most ``timeout`` seconds each."""
    for delivery in own_deliveries():
        if delivery.captured:
            delivery.flush(timeout)
