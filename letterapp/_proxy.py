"""The proxy that the environment names.

Lives here: its address and what it is to be told. Never here: speaking to it (`_line`, `_transport`).
"""

from __future__ import annotations

import os
import sys


class Proxy:
    def __init__(self, host: str, port: int, headers: dict[str, str]) -> None:
        self.host = host
        self.port = port
        self.headers = headers


def proxy_for(secure: bool, host: str) -> Proxy | None:
    """The proxy that the environment names for ``host``, by urllib's conventions: HTTPS_PROXY, NO_PROXY, ...

    ``host`` is what stands in the URL, brackets and port included, since urllib compares NO_PROXY with that.
    """
    if not may_have_proxies():
        return None
    from urllib.parse import unquote, urlsplit
    from urllib.request import getproxies, proxy_bypass

    url = getproxies().get("https" if secure else "http")
    if not url or proxy_bypass(host):
        return None
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        port = 80 if parts.port is None else parts.port
    except ValueError:  # whose text may hold a password
        raise ValueError(
            "the address of the proxy in the environment cannot be read: is its password escaped?"
        ) from None
    if parts.scheme != "http" or not parts.hostname:
        raise ValueError(f"the proxy {parts.scheme}://{parts.hostname} is not spoken to: only http:// proxies are")
    if not port:
        raise ValueError("the proxy in the environment has port 0, where nobody listens")
    headers = {}
    if parts.username is not None:
        from base64 import b64encode

        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        headers["Proxy-Authorization"] = "Basic " + b64encode(pair.encode()).decode()
    return Proxy(parts.hostname, port, headers)


def may_have_proxies() -> bool:
    # All that urllib looks at but on a Mac and on Windows. To import it costs each worker 10 ms and 1 MB.
    return sys.platform in ("darwin", "win32") or any(name.lower().endswith("_proxy") for name in os.environ)
