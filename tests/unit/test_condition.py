"""The lock-free condition in isolation: no notification is missed, and every waiter wakes up."""

from __future__ import annotations

import threading

from letterapp._runtime.condition import Condition


def test_no_notification_between_the_check_and_the_wait_is_missed() -> None:
    condition = Condition()
    with condition.waiter() as waiter:
        condition.notify_all()
        assert waiter.wait(30) is True
    with condition.waiter() as waiter:
        assert waiter.wait(0.001) is False
    condition.notify_all()
    assert not condition._waiters


def test_every_waiter_is_woken_by_one_notification_and_none_twice_by_many() -> None:
    condition = Condition()
    ready = threading.Barrier(9)
    woken: list[bool] = []

    def wait() -> None:
        with condition.waiter() as waiter:
            ready.wait(30)
            woken.append(waiter.wait(30))

    threads = [threading.Thread(target=wait) for _ in range(8)]
    for thread in threads:
        thread.start()
    ready.wait(30)
    notifiers = [threading.Thread(target=condition.notify_all) for _ in range(4)]
    for thread in notifiers:
        thread.start()
    for thread in [*notifiers, *threads]:
        thread.join(30)
    assert woken == [True] * 8
