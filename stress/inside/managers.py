"""The one `SenderManager` of a family of processes: the first process that needs it starts it, all others find it.

Forked processes inherit it, and spawned ones find it through an environment variable with its address and authkey.

Runs in the client's interpreter; imports nothing but the client. Responsible for: which manager a process uses. Not
responsible for: the client that uses its queue (`default_clients.py`).
"""

from __future__ import annotations

import json
import os
from typing import Any

VARIABLE = "STRESS_MANAGER"

_manager: Any = None  # kept for the life of the process, because the manager's process ends with its last reference
_starter = 0  # the process that started it


def shared(url: str, address: str = "", authkey: str = "", **options: Any) -> Any:
    """The family's manager: the one at ``address``, or if that is empty, one that the first process starts.

    ``authkey`` is its key, in hex. ``options`` are those of the `SenderManager` that is started.
    """
    global _manager
    if _manager is None:
        existing = _connected(url, address, authkey) if address else _inherited(url)
        _manager = existing or _started(url, authkey, options)
    return _manager


def shut_down() -> None:
    """Shut the manager down if this process has started it; no effect in any other process."""
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
    """The manager that an ancestor has started; None if there is none, or if it has ended.

    It has ended if its starter replaced itself with `exec`, as uWSGI's master does at a reload: that closed its lease.
    """
    from letterapp.errors import LetterError

    found = json.loads(os.environ.get(VARIABLE, "null"))
    if found is None or found["starter"] == os.getpid():
        return None
    try:
        return _connected(url, found["address"], found["authkey"])
    except LetterError:
        return None


def _connected(url: str, address: str, authkey: str) -> Any:
    from letterapp.relay import SenderManager

    manager = SenderManager("key", url, address=address, authkey=bytes.fromhex(authkey))
    manager.connect()
    return manager
