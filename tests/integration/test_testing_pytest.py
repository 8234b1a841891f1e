"""The pytest plugin, in runs of pytest: what is refused, what is captured, what is left alone.

A client that sends to another machine sends to the test's server here, which is the proxy for it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Callable, Sequence

import pytest
from harness import DEADLINE, environment

from letterapp.testing import IngestionServer

Run = Callable[..., str]

# An application whose client exists before any test, and the ways in which it may track.
APP = """
import os, subprocess, sys
from letterapp import Letter

letter = Letter("key", "http://api.example.com", max_retries=0)
enabled = os.environ.get("DISABLED") is None

def track(event):
    letter.track("u1", event)
    return letter.flush(10)

def fork(event):
    child = os.fork()
    if not child:
        track(event)
        os._exit(0)
    os.waitpid(child, 0)

def spawn(event):
    from multiprocessing import get_context
    process = get_context("spawn").Process(target=track, args=(event,))
    process.start()
    process.join()

def program(event):
    subprocess.run([sys.executable, "-c", f"import app; app.track({event!r})"], check=True)

WAYS = {"track": track, "program": program, "spawn": spawn, **({"fork": fork} if hasattr(os, "fork") else {})}
"""
EVERY_WAY = """
import app, pytest

@pytest.mark.parametrize("way", app.WAYS)
def test(way):
    app.WAYS[way](way)
"""


@pytest.fixture
def run(letter_api: IngestionServer, tmp_path: Path) -> Run:
    """Run pytest with the files ``name="text"``; return its output.

    By default without the plugins of other libraries, whose imports take longer than a test. ``plugins=None``: with all
    that are installed, as users have them.
    """

    def run_pytest(
        *arguments: str,
        code: int = 0,
        ini: str = "",
        env: dict[str, str] | None = None,
        plugins: Sequence[str] | None = ("letterapp.pytest_plugin",),
        **files: str,
    ) -> str:
        (tmp_path / "pytest.ini").write_text(f"[pytest]\n{ini}\n")
        for name, text in {"app": APP, **files}.items():
            (tmp_path / f"{name}.py").write_text(textwrap.dedent(text))
        loaded = [option for name in plugins or () for option in ("-p", name)]
        alone = {} if plugins is None else {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *loaded, *arguments],
            env=environment("", http_proxy=letter_api.url, TMPDIR=str(tmp_path), **alone, **(env or {})),
            cwd=str(tmp_path),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=2 * DEADLINE,
        )
        assert done.returncode == code, done.stdout
        assert not list(tmp_path.glob("letterapp-tests-*"))
        return done.stdout

    return run_pytest


def test_no_test_sends(run: Run, letter_api: IngestionServer) -> None:
    output = run("-s", plugins=None, test_it=EVERY_WAY)
    assert letter_api.requests == []
    ways = 4 if hasattr(os, "fork") else 3
    assert output.count("1 event lost: nothing is sent to api.example.com while tests run") == ways, output
    assert "letterapp_allow_network" in output


@pytest.mark.slow
def test_the_setting_allows_it(run: Run, letter_api: IngestionServer) -> None:
    run(ini="letterapp_allow_network = true", test_it=EVERY_WAY)
    assert {item["event"] for item in letter_api.events} >= {"track", "program", "spawn"}


@pytest.mark.slow
def test_the_option_of_the_command_line_allows_it(run: Run, letter_api: IngestionServer) -> None:
    run("-o", "letterapp_allow_network=true", test_it=EVERY_WAY)
    assert letter_api.distinct >= 3


def test_every_way_is_captured(run: Run, letter_api: IngestionServer) -> None:
    run(
        test_it="""
        import app, pytest

        @pytest.mark.parametrize("way", app.WAYS)
        def test(way, letter):
            app.WAYS[way](way)
            assert [item["event"] for item in letter.events] == [way]
        """
    )
    assert letter_api.requests == []


@pytest.mark.slow
def test_every_way_is_captured_where_the_network_is_allowed(run: Run, letter_api: IngestionServer) -> None:
    run(
        ini="letterapp_allow_network = true",
        test_it="""
        import app, pytest

        @pytest.mark.parametrize("way", app.WAYS)
        def test(way, letter):
            app.WAYS[way](way)
            assert [item["event"] for item in letter.events] == [way]

        def test_outside():
            app.track("outside")

        def test_the_end_of_a_worker_of_xdist():
            import atexit, os
            atexit.register(os._exit, 0)  # handlers that were registered earlier do not run
        """,
    )
    assert [item["event"] for item in letter_api.events] == ["outside"]


@pytest.mark.slow
def test_under_xdist_each_worker_captures_its_own_tests(run: Run, letter_api: IngestionServer) -> None:
    pytest.importorskip("xdist")
    test = """
    import app, pytest

    @pytest.mark.parametrize("number", range(20))
    def test_captured(number, letter):
        for way in (app.track, app.WAYS.get("fork", app.track)):
            way(f"event {number}")
        assert [item["event"] for item in letter.events] == [f"event {number}"] * 2

    def test_not_captured():
        app.track("lost")
        assert app.letter.stats()["lost"] == {"testing": 1}
    """
    assert "21 passed" in run("-n", "2", plugins=("letterapp.pytest_plugin", "xdist"), test_it=test)
    assert letter_api.requests == []


def test_nothing_is_sent_while_modules_are_imported_and_when_the_process_ends(
    run: Run, letter_api: IngestionServer
) -> None:
    output = run(
        "-s",
        conftest="""
        import atexit, app

        def end():
            app.track("at exit")
            app.Letter("key", "http://api.example.com").track("u1", "of a new client")

        app.track("at import")
        atexit.register(end)
        """,
        test_it="def test(): pass",
    )
    assert letter_api.requests == []
    assert "event lost: nothing is sent" in output


def test_what_a_process_tracks_between_tests_is_refused(run: Run, letter_api: IngestionServer) -> None:
    run(
        test_it="""
        import subprocess, sys
        import app

        PROGRAM = "import app, sys; sys.stdin.readline(); app.track('late'); print(app.letter.stats()['lost'])"

        def start():
            return subprocess.Popen([sys.executable, "-c", PROGRAM], stdin=-1, stdout=-1, text=True)

        def test_first(letter):
            global of_the_first_test
            of_the_first_test = start()

        def test_second():
            output, _ = of_the_first_test.communicate("go on")
            assert output == "{'testing': 1}\\n"
        """
    )
    assert letter_api.requests == []


@pytest.mark.slow
def test_a_process_that_was_started_before_a_test_is_captured(run: Run, letter_api: IngestionServer) -> None:
    run(
        test_it="""
        import subprocess, sys
        import app, pytest

        PROGRAM = "import app, sys; [(app.track(line.strip()), print('done', flush=True)) for line in sys.stdin]"

        @pytest.fixture(scope="session")
        def service():
            with subprocess.Popen([sys.executable, "-c", PROGRAM], stdin=-1, stdout=-1, text=True) as program:
                yield program
                program.stdin.close()

        @pytest.mark.parametrize("name", ["first", "second"])
        def test(name, service, letter):
            print(name, file=service.stdin, flush=True)
            letter.assert_tracked(name)
            assert len(letter.events) == 1 and service.stdout.readline() == "done\\n"
        """
    )
    assert letter_api.requests == []


def test_a_client_of_a_server_on_this_machine_sends(run: Run, letter_api: IngestionServer) -> None:
    run(
        env={"LETTER_BASE_URL": letter_api.url, "LETTER_API_KEY": "key"},
        test_it="""
        from letterapp import Letter

        def test(letter):
            with Letter() as client:
                client.track("u1", "local")
            assert letter.events == []
        """,
    )
    assert [item["event"] for item in letter_api.events] == ["local"]


def test_a_failure_shows_the_test_s_own_line(run: Run) -> None:
    output = run(
        code=1,
        test_it="""
        from letterapp.testing import capture

        def test():
            with capture(wait=0) as letter:
                letter.track("u1", "Order Completed", {"amount": 98})
                letter.assert_tracked("Order Completed", amount=99)
        """,
    )
    assert "test_it.py:7: AssertionError" in output and "+ amount: 98" in output
    assert "captured.py" not in output and "contextlib" not in output


@pytest.mark.slow
def test_without_the_plugin_everything_is_sent(run: Run, letter_api: IngestionServer) -> None:
    run(plugins=(), test_it=EVERY_WAY)
    assert letter_api.distinct >= 3


@pytest.mark.slow
def test_a_program_that_calls_pytest_sends_before_and_after(
    run: Run, letter_api: IngestionServer, tmp_path: Path
) -> None:
    run(test_it=EVERY_WAY)  # writes the files
    program = "import app, pytest; app.track('before'); assert pytest.main(['-q']) == 0; app.track('after')"
    env = environment("", http_proxy=letter_api.url)
    subprocess.run([sys.executable, "-c", program], env=env, cwd=str(tmp_path), check=True, timeout=DEADLINE)
    assert [item["event"] for item in letter_api.events] == ["before", "after"]


def test_a_program_outside_of_pytest_sends(letter_api: IngestionServer, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APP)
    env = environment("", http_proxy=letter_api.url)
    program = "import app, sys; app.track('sent'); assert 'letterapp.testing' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], env=env, cwd=str(tmp_path), check=True, timeout=DEADLINE)
    assert letter_api.distinct == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_sockets_may_be_forbidden_and_forks_warn_of_nothing(run: Run, letter_api: IngestionServer) -> None:
    run(
        ini="filterwarnings = error",
        conftest="""
        import socket

        def refuse(*_):
            raise RuntimeError("a test opens a socket")

        socket.socket.connect = socket.socket.bind = refuse
        """,
        test_it="""
        import os, warnings
        from letterapp import Letter

        def test(letter):
            client = Letter("key")
            client.track("u1", "parent")
            child = os.fork()
            if not child:
                client.track("u1", "child")
                os._exit(0)
            os.waitpid(child, 0)
            assert [item["event"] for item in letter.events] == ["parent", "child"]
        """,
    )
