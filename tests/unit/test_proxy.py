"""Which proxy a request goes through: ``NO_PROXY`` is read as urllib reads it."""

from __future__ import annotations

import email.message
import io
import urllib.request
import urllib.response
from typing import Any, Callable

import pytest
from harness import first_is_quick
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from letterapp import Letter

NOWHERE = "http://127.0.0.1:1"  # a proxy that refuses every connection


def bypasses_by_urllib(url: str) -> bool:
    """True when urllib sends a request for ``url`` to its own host."""
    asked: list[str] = []

    class Spy(urllib.request.BaseHandler):
        def http_open(self, request: Any) -> Any:
            asked.append(request.host)
            return urllib.response.addinfourl(io.BytesIO(), email.message.Message(), url, 200)

        https_open = http_open

    opener = urllib.request.OpenerDirector()
    for handler in (urllib.request.ProxyHandler(), Spy()):
        opener.add_handler(handler)
    opener.open(url)
    return asked == [urllib.request.Request(url).host]


def bypasses(url: str) -> bool:
    letter: Any = Letter("k", url)
    return letter._delivery._batches._transport._proxy() is None


HOSTS = ["[::1]", "[fe80::1]", "[::ffff:1.2.3.4]", "127.0.0.1", "localhost", "api.letter.app", "API.Letter.app"]
NAMED = ["::1", "[::1]", "[::1]:80", "[::1]:8080", "::1:8080", "fe80::1", "[fe80::1]", "1.2.3.4", "[::ffff:1.2.3.4]"]
NAMED += ["127.0.0.1", "127.0.0.1:8080", ".0.0.1", "localhost", "localhost:80", "localhost:443", "api.letter.app:443"]
NAMED += ["letter.app", ".letter.app", "..letter.app", "*.letter.app", "LETTER.APP", "etter.app", "app", "1]", "]", ":"]
NAMED += ["*", " * ", "", " ", "."]


def compare(scheme: str, host: str, port: str, no_proxy: str, set_env: Callable[[str, str], None]) -> bool:
    set_env("NO_PROXY", no_proxy)
    url = f"{scheme}://{host}{port}"
    bypassed = bypasses(url)
    assert bypassed == bypasses_by_urllib(url), (url, no_proxy)
    return bypassed


@first_is_quick("host", HOSTS)
def test_no_proxy_is_parsed_like_urllib(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, NOWHERE)
    bypassed = {
        compare(scheme, host, port, no_proxy, monkeypatch.setenv)
        for scheme in ("http", "https")
        for port in ("", ":80", ":443", ":8080")
        for no_proxy in NAMED
    }
    assert bypassed == {True, False}


@pytest.mark.slow
@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    st.sampled_from(["http", "https"]),
    st.sampled_from(HOSTS),
    st.sampled_from(["", ":80", ":443", ":8080"]),
    st.lists(st.one_of(st.sampled_from(NAMED), st.text("[]:.*,% 18alpet", max_size=6)), max_size=3),
)
def test_any_no_proxy_is_parsed_like_urllib(scheme: str, host: str, port: str, names: list[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HTTP_PROXY", "HTTPS_PROXY"):
            patch.setenv(name, NOWHERE)
        compare(scheme, host, port, ",".join(names), patch.setenv)
