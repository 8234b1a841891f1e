"""Task queues: what their workers track arrives once, however the workers end."""

from __future__ import annotations

import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any, Callable

import pytest
from applications import installed
from harness import Program, eventually, needs
from job_examples import Service, arrived, copy_of, kill_caller, once, quiet_end, settings
from redis_server import RedisServer, needs_redis, started_redis  # noqa: F401  (a fixture)

ORDERS = 20
HELD = 7
CHARGED = once(*[("Order Charged", f"user_{order}", order) for order in range(ORDERS)])
BOTH = {**CHARGED, **once(*[("Charge Started", user, order) for _, user, order in CHARGED])}


@pytest.fixture
def redis(redis_server: Callable[..., RedisServer]) -> RedisServer:
    return redis_server()


def enqueue(cwd: Path, env: dict[str, str]) -> None:
    command = [sys.executable, "shop.py", str(ORDERS)]
    done = subprocess.run(command, env=env, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60)
    assert done.returncode == 0, done.stdout.decode()


def work(api: Any, cwd: Path, env: dict[str, str], command: list[str], is_done: Callable[[str], bool]) -> None:
    """Run a worker until its tasks have tracked, while the API answers nothing. Then stop it as a service manager does.

    What its processes queued is sent by their end. It must come once, and nothing of the worker may stay.
    """
    enqueue(cwd, env)
    with Program([installed(command[0]), *command[1:]], env, cwd) as worker:
        assert eventually(lambda: is_done(worker.output), bool), worker.output
        assert api.events == [], worker.output
        worker.signal(signal.SIGTERM)
        quiet_end(worker)


CELERY = ["celery", "-A", "shop", "worker", "--loglevel", "INFO", "--without-gossip", "--without-mingle"]


@needs("celery")
@needs_redis
@pytest.mark.parametrize("pool", [pytest.param("prefork", marks=pytest.mark.gate), "threads", "solo"])
def test_celery_stopped(pool: str, letter_api: Any, redis: RedisServer, tmp_path: Path) -> None:
    with Service() as service:
        env = settings(letter_api, late=True, REDIS_URL=redis.url, PAYMENTS_URL=service.url)
        command = [*CELERY, "--pool", pool, "--concurrency", "2"]
        work(letter_api, copy_of("celery", tmp_path), env, command, lambda out: out.count("succeeded in") == ORDERS)
    assert arrived(letter_api) == BOTH
    assert letter_api.repeated() == {}


@needs("celery")
@needs_redis
def test_the_smallest_application_of_celery(letter_api: Any, redis: RedisServer, tmp_path: Path) -> None:
    env = settings(letter_api, REDIS_URL=redis.url)
    cwd = copy_of("celery", tmp_path)
    subprocess.run([sys.executable, "tasks.py"], env=env, cwd=cwd, check=True, timeout=60)
    with Program([installed("celery"), "-A", "tasks", *CELERY[3:]], env, cwd) as worker:
        assert eventually(lambda: "succeeded in" in worker.output, bool), worker.output
        worker.signal(signal.SIGTERM)
        quiet_end(worker)
    assert arrived(letter_api) == once(("Order Completed", "user_42", 1))


@needs("celery")
@needs_redis
def test_tasks_run_without_a_service_for_payments(letter_api: Any, redis: RedisServer, tmp_path: Path) -> None:
    work(
        letter_api,
        copy_of("celery", tmp_path),
        settings(letter_api, late=True, REDIS_URL=redis.url),
        CELERY,
        lambda out: out.count("succeeded in") == ORDERS,
    )
    assert arrived(letter_api) == BOTH


@needs("celery")
@needs_redis
def test_a_task_of_celery_whose_child_is_killed(letter_api: Any, redis: RedisServer, tmp_path: Path) -> None:
    """It runs again: the events of the first run are sent by the child's family, and count once."""
    with Service(f"/charge/{HELD}") as service:
        env = settings(letter_api, REDIS_URL=redis.url, PAYMENTS_URL=service.url)
        cwd = copy_of("celery", tmp_path)
        enqueue(cwd, env)
        with Program([installed("celery"), *CELERY[1:], "--concurrency", "2"], env, cwd) as worker:
            killed_once_its_event_has_arrived(letter_api, service, worker)
            assert eventually(lambda: worker.output.count("succeeded in") == ORDERS, bool), worker.output
            worker.signal(signal.SIGTERM)
            finished = worker.finish()
            assert not worker.left_behind(), finished
        assert service.calls[f"/charge/{HELD}"] == 2
    assert arrived(letter_api) == BOTH, finished
    assert letter_api.repeated(), "nothing of the first run had arrived"


@needs("rq")
@needs_redis
def test_a_job_of_rq_whose_process_is_killed(letter_api: Any, redis: RedisServer, tmp_path: Path) -> None:
    with Service(f"/charge/{HELD}") as service:
        env = settings(letter_api, REDIS_URL=redis.url, PAYMENTS_URL=service.url)
        cwd = copy_of("rq", tmp_path)
        enqueue(cwd, env)
        with Program([installed("rq"), "worker", "--burst", "--url", redis.url], env, cwd) as worker:
            killed_once_its_event_has_arrived(letter_api, service, worker)
            finished = worker.finish()
            assert finished.code == 0, finished
            assert not worker.left_behind(), finished
        assert service.calls[f"/charge/{HELD}"] == 2
    assert arrived(letter_api) == BOTH, finished
    assert letter_api.repeated(), "nothing of the first run had arrived"


def killed_once_its_event_has_arrived(api: Any, service: Service, worker: Program) -> None:
    assert service.wait_for(f"/charge/{HELD}"), worker.output
    assert api.wait_until(lambda: arrived(api)[("Charge Started", f"user_{HELD}", HELD)] > 0), worker.output
    kill_caller(worker, service, f"/charge/{HELD}")


@needs("rq")
@needs_redis
@pytest.mark.parametrize("flushes", [pytest.param(True, marks=pytest.mark.gate), False])
def test_rq_stopped(flushes: bool, letter_api: Any, redis: RedisServer, tmp_path: Path) -> None:
    """Without the job's own `flush`, its process sends when it leaves by `os._exit`."""
    with Service() as service:
        env = settings(letter_api, late=True, REDIS_URL=redis.url, PAYMENTS_URL=service.url)
        cwd = copy_of("rq", tmp_path)
        if not flushes:
            code = (cwd / "shop.py").read_text()
            (cwd / "shop.py").write_text(code.replace("if not letter.flush():", "if False:"))
            assert "flush" not in (cwd / "shop.py").read_text()
        enqueue(cwd, env)
        with Program([installed("rq"), "worker", "--url", redis.url], env, cwd) as worker:
            assert eventually(lambda: worker.output.count("Job OK") == ORDERS, bool), worker.output
            assert arrived(letter_api) == BOTH, worker.output  # each job sends its own before it is done
            worker.signal(signal.SIGTERM)
            quiet_end(worker)
    assert arrived(letter_api) == BOTH
    assert letter_api.repeated() == {}


@needs("dramatiq")
@needs_redis
@pytest.mark.gate
def test_dramatiq_stopped(letter_api: Any, redis: RedisServer, tmp_path: Path) -> None:
    env = settings(letter_api, late=True, REDIS_URL=redis.url)
    command = ["dramatiq", "shop", "--processes", "2", "--threads", "2", "--verbose"]
    work(letter_api, copy_of("dramatiq", tmp_path), env, command, lambda out: out.count("Completed after") == ORDERS)
    assert arrived(letter_api) == CHARGED
    assert letter_api.repeated() == {}


@needs("huey")
@pytest.mark.parametrize("kind", [pytest.param("process", marks=pytest.mark.gate), "thread"])
def test_huey_stopped(kind: str, letter_api: Any, tmp_path: Path) -> None:
    env = settings(letter_api, late=True)
    command = ["huey_consumer", "shop.queue", "--worker-type", kind, "--workers", "2"]
    work(letter_api, copy_of("huey", tmp_path), env, command, lambda out: out.count("executed in") == ORDERS)
    assert arrived(letter_api) == CHARGED
    assert letter_api.repeated() == {}


ARQ = ["arq", "shop.WorkerSettings"]


@needs("arq")
@needs("aiohttp")
@needs_redis
@pytest.mark.gate
def test_arq_stopped(letter_api: Any, redis: RedisServer, tmp_path: Path) -> None:
    with Service() as service:
        env = settings(letter_api, late=True, REDIS_URL=redis.url, PAYMENTS_URL=service.url)
        work(letter_api, copy_of("arq", tmp_path), env, ARQ, lambda out: out.count("●") == ORDERS)
    assert arrived(letter_api) == BOTH
    assert letter_api.repeated() == {}


@needs("arq")
@needs("aiohttp")
@needs_redis
def test_a_job_of_arq_that_is_cancelled_by_the_end_of_its_worker(
    letter_api: Any, redis: RedisServer, tmp_path: Path
) -> None:
    """Arq cancels it at SIGTERM, and the next worker runs it again."""
    with Service(f"/charge/{HELD}") as service:
        env = settings(letter_api, late=True, REDIS_URL=redis.url, PAYMENTS_URL=service.url)
        cwd = copy_of("arq", tmp_path)
        enqueue(cwd, env)
        for calls in (1, 2):
            with Program([installed(ARQ[0]), *ARQ[1:]], env, cwd) as worker:
                assert service.wait_for(f"/charge/{HELD}", calls), worker.output
                others = ORDERS - 1 if calls == 1 else 1
                assert eventually(partial(finished_jobs, worker, others), bool), worker.output
                worker.signal(signal.SIGTERM)
                finished = worker.finish()  # Arq sometimes ends by the CancelledError of its job
                assert not worker.left_behind(), finished
                assert "letterapp:" not in finished.output, finished
    assert arrived(letter_api) == BOTH
    assert len(letter_api.repeated()) == 1  # of the first run, sent by the end of the first worker


def finished_jobs(worker: Program, count: int) -> bool:
    return worker.output.count("●") == count
