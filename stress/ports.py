"""A port for a server that is started later, or restarted.

A port from the range that the kernel gives to port 0 and to outgoing connections may be given away between the moment
it was found free and the moment the server binds it, or while the server is down. So one is taken from beside it.
"""

from __future__ import annotations

import secrets
import socket
import sys
from collections import deque
from pathlib import Path
from typing import Sequence

_LOWEST, _ENOUGH = 10_000, 1_000
_MARKS = 100  # ports whose servers may not listen yet
_marks: deque[socket.socket] = deque()  # of the latest that this process was given


def free_port() -> int:
    """A TCP port of 127.0.0.1 that is free now, and that nobody gets without asking for it by number."""
    ports = _beside_the_kernels()
    while True:
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                sock.bind(("127.0.0.1", secrets.choice(ports)))
            except OSError:
                continue
            port: int = sock.getsockname()[1]
        if _is_ours_alone(port):
            return port


def _is_ours_alone(port: int) -> bool:
    """False when it was given away before, here or to another process of the tests, whose server may not listen yet.

    One process at a time can have a name in Linux's abstract space (unix(7)), and the name goes with it.
    """
    if sys.platform != "linux":
        return True
    mark = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        mark.bind(f"\0letterapp-port-{port}")
    except OSError:
        mark.close()
        return False
    _marks.append(mark)
    if len(_marks) > _MARKS:
        _marks.popleft().close()
    return True


def _beside_the_kernels() -> Sequence[int]:
    try:
        first, last = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    except (OSError, ValueError):
        return [0]  # no Linux: what the kernel gives
    below, above = range(_LOWEST, first), range(last + 1, 65_536)
    return next((ports for ports in (below, above) if len(ports) >= _ENOUGH), [0])
