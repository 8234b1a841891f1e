"""The proxy that the environment names.

Responsible for: its address and what it is to be told. Not responsible for: speaking to it (`deadline_socket`,
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
        self.secrets = secrets  # lines of a header, each with its end


def proxy_for(secure: bool, host: str) -> Proxy | None:
    """The proxy that the environment names for ``host``, by urllib's conventions: HTTPS_PROXY, NO_PROXY, ...

    ``host`` is what stands in the URL, brackets and port included, since urllib compares NO_PROXY with that.
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
    """The scheme, host, port and header of a proxy's ``url``; no scheme where that cannot be read.

    It raises nothing, and so there is no frame whose variables hold the password.
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
    # All that urllib looks at but on a Mac and on Windows. To import it costs each worker 10 ms and 1 MB.
    # The names alone: the whole environment, secrets and all, would be a variable of the generator (Python 3.15).
    return sys.platform in ("darwin", "win32") or any(name.lower().endswith("_proxy") for name in list(os.environ))
