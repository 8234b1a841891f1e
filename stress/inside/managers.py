"""The one `SenderManager` of a family of processes: started by the first process that asks, found by all others.

Forked processes inherit it, and spawned ones find it by an environment variable that holds its address and its authkey.

Runs in the client's interpreter; imports nothing but the client. Responsible for: which manager a process uses. Not
responsible for: the client that gets its queue (`default_clients.py`).
"""

from __future__ import annotations

import json
import os
from typing import Any

VARIABLE = "STRESS_MANAGER"

_manager: Any = None  # referred to for the life of the process, whose end ends the manager's process
_starter = 0  # the process that started it


def shared(url: str, address: str = "", authkey: str = "", **options: Any) -> Any:
    """The family's manager. ``address``: that of one which is kept for it, else the first process starts one.

    ``authkey``, in hex: the one that it has or gets. ``options`` are those of a `SenderManager` that is started.
    """
    global _manager
    if _manager is None:
        kept = _connected(url, address, authkey) if address else _inherited(url)
        _manager = kept or _started(url, authkey, options)
    return _manager


def shut_down() -> None:
    """Shut down what this process has started. Without effect in others, which do not end it for the first one."""
    global _manager
    if _manager is not None and _starter == os.getpid():
        _manager.shutdown()
        _manager = None
        del os.environ[VARIABLE]


def _started(url: str, authkey: str, options: dict[str, Any]) -> Any:
    from letterapp.relay import SenderManager

    global _starter
    key = bytes.fromhex(authkey) if authkey else os.urandom(32)
    manager = SenderManager("key", url, authkey=key, **options)
    manager.start()
    _starter = os.getpid()
    os.environ[VARIABLE] = json.dumps({"starter": _starter, "address": manager.address, "authkey": key.hex()})
    return manager


def _inherited(url: str) -> Any:
    """The one that an ancestor has started, if it can be reached; None else.

    A process that replaced itself by `exec`, as uWSGI's master does at a reload, has closed what kept its own going.
    """
    from letterapp.errors import LetterError

    told = json.loads(os.environ.get(VARIABLE, "null"))
    if told is None or told["starter"] == os.getpid():
        return None
    try:
        return _connected(url, told["address"], told["authkey"])
    except LetterError:
        return None


def _connected(url: str, address: str, authkey: str) -> Any:
    from letterapp.relay import SenderManager

    manager = SenderManager("key", url, address=address, authkey=bytes.fromhex(authkey))
    manager.connect()
    return manager
