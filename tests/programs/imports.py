"""Programs of test_package: which modules are loaded when."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from programs.common import API, main, make, work


def loaded_by_calls() -> None:
    sys.modules["orjson"] = None  # type: ignore[assignment]  # creating a client would import it, and it imports `json`
    letter = make(flush_interval=1000)
    letter.track("u", "e", {"a": {"b": [1]}})
    print(*sys.modules, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)  # so that it sends nothing at its end


def loaded_after_the_first_request() -> None:
    from letterapp._http import transport

    transport.load()
    errors: list[Any] = []
    letter = make(on_error=errors.append, max_retries=1)
    before = set(sys.modules)
    for _ in range(6):
        letter.track("u", "e")
        letter.flush()
    late = make(base_url="https://localhost:9", on_error=errors.append, max_retries=0)
    late.track("u", "e")
    late.flush()
    print(sorted(set(sys.modules) - before), len(errors))


def late_proxy() -> None:
    direct = make()
    work(direct, 1)
    direct.flush()
    print("urllib.request" in sys.modules)
    os.environ["HTTP_PROXY"] = API  # from now on the way to an address that is nowhere (RFC 5737)
    work(make(base_url="http://192.0.2.1", on_error=lambda error: None), 1, "by the proxy")


main(globals())
