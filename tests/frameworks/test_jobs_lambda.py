"""A function of AWS Lambda, in one container that is frozen between its invocations.

The runtime is AWS's (`awslambdaric`), which asks the container's HTTP API for invocations. That API is served here, as
Lambda does: a process that asks for the next invocation is frozen until there is one.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Iterator

import pytest
from harness import Program, needs, suspend
from job_examples import arrived, copy_of, settings

pytestmark = needs("awslambdaric")

INVOCATIONS = 5


class Invocations:
    """Lambda's side of the runtime's API: https://docs.aws.amazon.com/lambda/latest/dg/runtimes-api.html"""

    def __init__(self) -> None:
        self.asked = threading.Semaphore(0)  # the runtime waits for an invocation
        self.next = threading.Semaphore(0)  # it gets one
        self.events: list[dict[str, Any]] = []
        self.answers: list[Any] = []
        api = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                assert self.path == "/2018-06-01/runtime/invocation/next", self.path
                api.asked.release()
                api.next.acquire()
                body = json.dumps(api.events.pop(0)).encode()
                self.send_response(200)
                self.send_header("Lambda-Runtime-Aws-Request-Id", f"request-{len(api.answers)}")
                self.send_header("Lambda-Runtime-Deadline-Ms", "4102444800000")
                self.send_header("Lambda-Runtime-Invoked-Function-Arn", "arn:aws:lambda:eu-central-1:1:function:shop")
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                api.answers.append(body if self.path.endswith("/response") else (self.path, body))
                self.send_response(202)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self.address = f"127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)


@pytest.fixture
def invocations() -> Iterator[Invocations]:
    api = Invocations()
    yield api
    api.close()


@pytest.mark.gate
def test_a_container_is_frozen_after_each_invocation(letter_api: Any, invocations: Invocations, tmp_path: Path) -> None:
    env = settings(letter_api, late=True, AWS_LAMBDA_RUNTIME_API=invocations.address)
    command = [sys.executable, "-m", "awslambdaric", "handler.charge"]
    expected: dict[tuple[str, str, int], int] = {}
    with Program(command, env, copy_of("aws_lambda", tmp_path)) as container:
        for order in range(INVOCATIONS):
            freeze(invocations, container)
            assert arrived(letter_api) == expected, container.output
            letter_api.drop_connections()  # a server closes what is idle for minutes
            invoke(invocations, container, order)
            expected["Order Charged", f"user_{order}", order] = 1
        freeze(invocations, container)
        assert arrived(letter_api) == expected, container.output
        container.signal(signal.SIGKILL)  # a frozen container is not used again
        container.finish()
    assert invocations.answers == [{"order": order} for order in range(INVOCATIONS)], container
    assert letter_api.repeated() == {}


def test_an_invocation_that_fails_is_repeated(letter_api: Any, invocations: Invocations, tmp_path: Path) -> None:
    """The API answers nothing within `exit_timeout`, so the function fails, and Lambda invokes it again."""
    env = settings(letter_api, late=True, AWS_LAMBDA_RUNTIME_API=invocations.address)
    command = [sys.executable, "-m", "awslambdaric", "handler.charge"]
    letter_api.hold()
    with Program(command, env, copy_of("aws_lambda", tmp_path)) as container:
        freeze(invocations, container)
        invoke(invocations, container, 1)
        freeze(invocations, container)
        [(path, failure)] = invocations.answers
        assert path.endswith("/error") and "the API did not take the events" in failure["errorMessage"]
        assert letter_api.events == []
        letter_api.release()
        invoke(invocations, container, 1)
        freeze(invocations, container)
        container.signal(signal.SIGKILL)
        container.finish()
    assert arrived(letter_api) == {("Order Charged", "user_1", 1): 1}
    assert len({item["messageId"] for item in letter_api.events}) == 1 < len(letter_api.events)
    assert invocations.answers[1:] == [{"order": 1}]


def freeze(invocations: Invocations, container: Program) -> None:
    """Wait until the runtime asks for the next invocation, and stop its process."""
    assert invocations.asked.acquire(timeout=60), container.output
    suspend(container.pid)


def invoke(invocations: Invocations, container: Program, order: int) -> None:
    os.kill(container.pid, signal.SIGCONT)
    invocations.events.append({"order": order, "user": f"user_{order}"})
    invocations.next.release()
