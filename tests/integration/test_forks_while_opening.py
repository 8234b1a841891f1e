"""A fork at the moment at which another thread has opened a descriptor: the child keeps no copy of it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Callable

import pytest
from harness import Program, run
from programs import opening
from redis_server import RedisServer, needs_redis, started_redis  # noqa: F401  (a fixture)
from relayed import Runtime, kept_relay, own_runtime  # noqa: F401  (fixtures)

pytestmark = pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="no /proc to look into")


def test_to_the_api(letter_api: Any, tmp_path: Path) -> None:
    assert run(opening.to_the_api, letter_api.url, tmp_path).output == "0\n"


def test_to_a_relay(runtime: Runtime, kept: Program, letter_api: Any, tmp_path: Path) -> None:
    assert run(opening.to_a_relay, letter_api.url, tmp_path, runtime.socket).output == "0\n"


def test_to_a_manager(letter_api: Any, tmp_path: Path) -> None:
    assert run(opening.to_a_manager, letter_api.url, tmp_path).output == "0\n"


@needs_redis
def test_to_redis(redis_server: Callable[..., RedisServer], letter_api: Any, tmp_path: Path) -> None:
    finished = run(opening.to_redis, letter_api.url, tmp_path, redis_server().url)
    assert "0" in finished.output.splitlines(), finished  # beside the report that no relay reads the stream


def test_by_a_listener(letter_api: Any, tmp_path: Path) -> None:
    assert run(opening.a_listener, letter_api.url, tmp_path).output == "0\n"


def test_a_file_with_a_lock(letter_api: Any, tmp_path: Path) -> None:
    assert run(opening.a_file, letter_api.url, tmp_path, str(tmp_path)).output == "0\n"
