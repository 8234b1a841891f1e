"""The HTTP proxy in the environment.

Responsible for: its address and credentials. Not responsible for: connecting through it (`deadline_socket`,
`transport`).
"""

from __future__ import annotations

import os
import sys

from .._text import Secret, concealed


class Proxy:
    def __init__(self, host: str, port: int, secrets: Secret) -> None:
        self.host = host
        self.port = port
        self.secrets = secrets  # header lines, each with its line end


def proxy_for(secure: bool, host: str) -> Proxy | None:
    """The proxy for ``host`` in the environment, by the conventions of urllib: HTTPS_PROXY, NO_PROXY and others.

    ``host`` is the host as written in the URL, with brackets and port, because urllib compares NO_PROXY with that.
    Raises `ValueError` if the proxy's URL is invalid or not supported.
    """
    if not may_have_proxies():
        return None
    from urllib.request import getproxies, proxy_bypass

    url = concealed(getproxies().get("https" if secure else "http"))
    if not url or proxy_bypass(host):
        return None
    scheme, name, port, secrets = _read(url)
    if scheme is None:
        raise ValueError(
            "the proxy's URL in the environment is invalid: percent-encode special characters in its password"
        )
    if scheme != "http" or not name:
        raise ValueError(f"the proxy {scheme}://{name} is not supported: only http:// proxies are")
    if not port:
        raise ValueError("the proxy in the environment has port 0: it must be from 1 to 65535")
    return Proxy(name, port, secrets)


def _read(url: Secret) -> tuple[str | None, str | None, int, Secret]:
    """The scheme, host, port and header of a proxy's ``url``; no scheme if it is invalid.

    It never raises, so that no traceback has a frame whose variables contain the password.
    """
    from urllib.parse import unquote, urlsplit

    try:
        parts = urlsplit(url.reveal() if "://" in url.reveal() else f"http://{url.reveal()}")
        port = 80 if parts.port is None else parts.port
    except ValueError:
        return None, None, 0, Secret("")
    if parts.username is None:
        return parts.scheme, parts.hostname, port, Secret("")
    from base64 import b64encode

    pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
    return parts.scheme, parts.hostname, port, Secret(f"Proxy-Authorization: Basic {b64encode(pair).decode()}\r\n")


def may_have_proxies() -> bool:
    # Except on macOS and Windows, urllib considers nothing else. Importing it takes 10 ms and 1 MB in each worker.
    # Only the names, because since Python 3.15 the generator would have the whole environment as a variable.
    return sys.platform in ("darwin", "win32") or any(name.lower().endswith("_proxy") for name in list(os.environ))
