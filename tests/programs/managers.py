"""Programs of test_manager.py and its neighbours: processes that start a `SenderManager` and send through it."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import signal
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from letterapp import Letter, LetterError
from letterapp.relay import SenderManager
from programs.common import API, child, keep, made, main, stay, suspend, work

KEY = "test-key"


def client(queue: Any, **options: Any) -> Letter:
    """A client of a manager's queue, which carries key and address. It lives until the interpreter ends."""
    made.append(Letter(relay=queue, **options))
    return made[-1]


def started(**options: Any) -> SenderManager:
    """A manager that lives until the interpreter ends."""
    manager = keep(SenderManager(KEY, API, **options))
    manager.start()
    return manager


# Every kind of process. Its jobs are found by name in processes that were not forked.

adopted: Letter


def job(serial: int) -> None:
    adopted.track("pool", "Worked", {"serial": serial, "pid": os.getpid()})


def process(letter: Letter, who: str) -> None:
    work(letter, 120, who)


def adopt(letter: Letter) -> None:
    global adopted
    adopted = letter


def every_kind_of_process(method: str) -> None:
    context: Any = multiprocessing.get_context(method)
    with SenderManager(KEY, API) as manager:
        letter = client(manager.queue)
        work(letter, 120, "main")
        processes = [context.Process(target=process, args=(letter, f"process {n}")) for n in range(3)]
        for each in processes:
            each.start()
        for each in processes:
            each.join()
            assert each.exitcode == 0
        with context.Pool(4, adopt, (letter,)) as pool:
            pool.map(job, range(200), chunksize=5)
            pool.close()
            pool.join()
        with ProcessPoolExecutor(2, mp_context=context, initializer=adopt, initargs=(letter,)) as executor:
            list(executor.map(job, range(200, 300)))
        with context.Pool(2, adopt, (letter,)) as pool:  # ended by SIGTERM
            pool.map(job, range(300, 320))
            if method != "fork":  # no family shares its memory: what is not handed over goes with a killed worker
                pool.close()
                pool.join()
        letter.flush()
        status = manager.status()
        assert letter.stats()["mode"] == "relay", letter.stats()
    work(letter, 10, "late")
    print(status["accepted"], status["delivered"], status["lost"])
    print(status["pid"])


def ends_while_its_manager_is_stopped(queue: str, who: str, options: str, manager: str) -> None:
    letter = client(pickle.loads(bytes.fromhex(queue)), exit_timeout=2, **json.loads(options))
    work(letter, 1, who)
    letter.flush()
    assert letter.stats()["relayed"] == 1
    suspend(int(manager))
    work(letter, 3, who, 1)


def stays() -> None:
    manager = started()
    letter = client(manager.queue, flush_interval=0)
    work(letter, 5)
    letter.flush()
    print(manager.status()["pid"], flush=True)
    stay()


def killed_before_its_child_sends() -> None:
    letter = client(started().queue, flush_interval=0)
    reader, writer = os.pipe()

    def orphan() -> None:
        os.close(writer)
        os.read(reader, 1)  # until the parent has gone
        work(letter, 5, "orphan")
        letter.flush()
        assert letter.stats()["mode"] == "relay", letter.stats()
        print("done")

    child(orphan)
    os.kill(os.getpid(), signal.SIGKILL)


def child_calls_shutdown() -> None:
    with keep(SenderManager(KEY, API)) as manager:
        letter = client(manager.queue)
        pid = child(manager.shutdown)
        assert os.waitpid(pid, 0)[1] == 0
        work(letter, 3)
        letter.flush()
        assert manager.status()["delivered"] == 3
    manager.shutdown()  # a second time
    try:
        manager.start()
    except LetterError as error:
        print(error)


def killed_with_its_manager(spool: str) -> None:
    manager = started(spool=spool)
    letter = client(manager.queue, flush_interval=0)
    work(letter, 5)
    while manager.status()["accepted"] < 5:
        time.sleep(0.01)
    os.kill(manager.status()["pid"], signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


def server(address: str) -> None:
    """The manager's server in this process, until SIGTERM."""
    server: Any = SenderManager(KEY, API, address=address, authkey=b"secret").get_server()
    print("serving", flush=True)
    signal.signal(signal.SIGTERM, lambda *_: server.stop_event.set())
    server.serve_forever()


def leaves_its_manager_to_a_silent_child() -> None:
    manager = started()
    pid = os.fork()  # the manager lives as long as this child
    if not pid:
        for number in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)
        sys.stdin.read()
        os._exit(0)
    print(manager.status()["pid"])
    os._exit(0)


# On other hosts.


def connected(host: str, port: str, **options: Any) -> Letter:
    manager = keep(SenderManager(base_url=API, address=(host, int(port)), authkey=b"a secret of the tests"))
    manager.connect()
    return client(manager.queue, max_retries=10**6, exit_timeout=50, **options)


def forks_30_children(host: str, port: str, who: str) -> None:
    letter = connected(host, port)
    for serial in range(0, 300, 10):
        work(letter, 10, who, serial)

        def in_a_child(serial: int = serial) -> None:
            work(letter, 10, f"{who}'s child {serial}")
            letter.close()

        if os.waitpid(child(in_a_child), 0)[1] != 0:
            sys.exit("a child failed")
    print("tracked", flush=True)
    sys.exit(0 if letter.close() else 3)


def never_waits_in_a_call(host: str, port: str, who: str) -> None:
    from letterapp._relay import handover

    handover.PATIENCE = 3.0  # so that a call that waits is told from one that a busy machine holds up
    letter = connected(host, port, flush_interval=0)
    work(letter, 10, who)
    assert letter.flush(50)
    print("connected", flush=True)
    while not os.path.exists("go"):
        time.sleep(0.01)
    longest = 0.0
    for serial in range(10, 500):
        began = time.monotonic()
        letter.track(who, "Worked", {"serial": serial})
        longest = max(longest, time.monotonic() - began)
    assert longest < 2, longest
    print("tracked", flush=True)
    sys.exit(0 if letter.close() else 3)


main(globals())
