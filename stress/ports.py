"""A port for a server that is started later, or restarted.

The kernel may assign any port of the range that it uses for port 0 and for outgoing connections, between the moment
when the port was found to be free and the moment when the server binds it, or while the server is down. So the ports
here come from outside that range.
"""

from __future__ import annotations

import atexit
import secrets
import socket
import sys
from collections import deque
from pathlib import Path
from typing import Sequence

_LOWEST, _ENOUGH = 10_000, 1_000
_MAX_RESERVED = 100  # ports whose servers may not listen yet
_reservations: deque[socket.socket] = deque()  # for the last ports that this process took


def free_port() -> int:
    """A TCP port of 127.0.0.1 that is free now, and that is outside the range of ephemeral ports."""
    ports = _outside_kernel_range()
    while True:
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                sock.bind(("127.0.0.1", secrets.choice(ports)))
            except OSError:
                continue
            port: int = sock.getsockname()[1]
        if _reserve(port):
            return port


def _reserve(port: int) -> bool:
    """Reserve a port; False if another caller, here or in another test process, has it and may not listen yet.

    Only one process at a time can bind a name in Linux's abstract namespace (unix(7)), until it ends.
    """
    if sys.platform != "linux":
        return True
    reservation = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        reservation.bind(f"\0letterapp-port-{port}")
    except OSError:
        reservation.close()
        return False
    _reservations.append(reservation)
    if len(_reservations) > _MAX_RESERVED:
        _reservations.popleft().close()
    return True


@atexit.register
def _release() -> None:
    while _reservations:
        _reservations.popleft().close()  # otherwise, Python warns of each


def _outside_kernel_range() -> Sequence[int]:
    try:
        first, last = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    except (OSError, ValueError):
        return [0]  # not Linux: the kernel chooses
    below, above = range(_LOWEST, first), range(last + 1, 65_536)
    return next((ports for ports in (below, above) if len(ports) >= _ENOUGH), [0])
