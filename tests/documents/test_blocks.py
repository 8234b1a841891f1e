"""Every code block of the documents and the docstrings runs, or is parsed, and prints what the document says.

The comments above a block that say how are described in `blocks`.
"""

from __future__ import annotations

import ast
import configparser
import doctest
import json
import re
import shutil
import subprocess
import sys
import tempfile
from hashlib import sha256
from pathlib import Path
from typing import Any, Iterator

import pytest
from blocks import Block, blocks_of, docstring_blocks, documents
from harness import DEADLINE, ROOT, environment, needs
from shell_blocks import Shell, commands, has_programs

from letterapp.testing import IngestionServer, status
from stress.ports import free_port

pytestmark = needs("fcntl")


@pytest.fixture
def folder() -> Iterator[Path]:
    """A directory whose path leaves room for the name of a socket."""
    with tempfile.TemporaryDirectory(prefix="docs-") as name:
        yield Path(name)


BLOCKS = [block for page in documents() for block in blocks_of(page)]
RUN = [block for block in BLOCKS if not {"not run", "checked by"} & set(block.notes) and not block.excerpt]
OUTPUT = {block.previous.name: block for block in RUN if "output" in block.notes and block.previous}
MOST_NOT_RUN = 6

# What surrounds the code of a docstring, by its first line: a docstring has no room for comments.
AROUND = {
    "from letterapp.testing import capture": (
        "from shop import complete_order",
        "",
    ),
    "with IngestionServer() as api:": (
        "from letterapp import Letter\nfrom letterapp.testing import IngestionServer",
        "",
    ),
    'letter.track(user, "Order Completed", message_id=message_id("order completed", order_id))': (
        'from letterapp import Letter, message_id\nletter, user, order_id = Letter("your-key"), "user_42", 7',
        "",
    ),
    "queue = multiprocessing.Queue(1000)": (
        "import multiprocessing\nfrom letterapp import Letter\nfrom letterapp.relay import QueueListener",
        "",
    ),
}


def named(blocks: list[Block]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("block", blocks, ids=[block.name for block in blocks])


def in_turn(blocks: list[Block]) -> Iterator[Any]:
    """``-m "not slow"`` runs the first block of each page only."""
    seen: set[Path] = set()
    for block in blocks:
        yield pytest.param(block, id=block.name, marks=pytest.mark.slow if block.path in seen else ())
        seen.add(block.path)


def same(expected: str, printed: str) -> bool:
    return doctest.OutputChecker().check_output(
        expected.strip() + "\n", printed.strip() + "\n", doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    )


def run_python(program: str, folder: Path, url: str, code: int = 0) -> str:
    """Run it as a program, or with pytest if it has tests; what it prints. Nothing that it tracks may be lost."""
    if not (folder / "shop.py").exists():
        shutil.copy(ROOT / "docs" / "examples" / "testing" / "pytest_shop" / "shop.py", folder)
    is_test = re.search(r"^(async )?def test_", program, re.MULTILINE)
    path = folder / ("test_block.py" if is_test else "block.py")
    path.write_text(program, encoding="utf-8")
    (folder / "pytest.ini").write_text("[pytest]\n")
    arguments = ["-m", "pytest", "-q", "-p", "no:cacheprovider"] if is_test else []
    (folder / "xdg").mkdir(mode=0o700)
    env = environment(url, LETTER_API_KEY="lt_test_local", LETTER_BASE_URL=url, TMPDIR=str(folder))
    if "127.0.0.1" in program:
        env["LETTER_BASE_URL"] = "http://127.0.0.1:" + program.split("127.0.0.1:")[1][:5].rstrip('"/')
    elif is_test or "capture" in program:
        env.pop("LETTER_BASE_URL")  # to a loopback address clients send in tests too
    if is_test and (folder / "conftest.py").exists():
        env.pop("LETTER_API_KEY")  # the page shows how to do without
    done = subprocess.run(
        [sys.executable, *arguments, path.name],
        cwd=str(folder),
        env={**env, "XDG_RUNTIME_DIR": str(folder / "xdg")},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=DEADLINE,
    )
    assert done.returncode == code, f"exit {done.returncode}\n{done.stdout}"
    return done.stdout


PYTHON = [block for block in RUN if block.language == "python" and "with" not in block.notes]


def address_of(block: Block, api: IngestionServer, request: pytest.FixtureRequest) -> str:
    """The base URL for ``block``; the API behaves as its comment says."""
    behaviour = block.notes.get("api", "")
    if behaviour.isdigit():
        api.rule = lambda _: status(int(behaviour))
    elif behaviour == "down":
        return f"http://127.0.0.1:{free_port()}"  # nothing listens there
    elif behaviour == "tls":
        return str(request.getfixturevalue("tls_api").url)
    return api.url


@pytest.mark.parametrize("block", list(in_turn(PYTHON)))
def test_python_runs_and_prints_what_the_page_says(
    block: Block, folder: Path, letter_api: IngestionServer, request: pytest.FixtureRequest
) -> None:
    url = address_of(block, letter_api, request)
    for other in BLOCKS:  # the modules that the page shows
        if other.path == block.path and other.notes.get("file", "").endswith(".py"):
            (folder / other.notes["file"]).write_text(other.text, encoding="utf-8")
    with Shell(folder / "shell", letter_api.url) as shell:
        program = shell.here(block.program())
        printed = run_python(program, folder, url, int(block.notes.get("exits", 0)))
    expected = OUTPUT.get(block.name)
    if expected is not None:
        assert same(expected.text, printed), f"the page says:\n{expected.text}\nand it prints:\n{printed}"
    else:
        assert not re.search("^letterapp: ", printed, re.MULTILINE), printed
    if "arrives" in block.notes:
        assert letter_api.distinct == int(block.notes["arrives"]), letter_api.events


DOCSTRINGS = list(docstring_blocks())


@named([block for block in DOCSTRINGS if block.language == "python"])
def test_a_docstring_s_code_runs(block: Block, folder: Path, letter_api: IngestionServer) -> None:
    before, after = AROUND.get(block.text.splitlines()[0], ("", ""))
    printed = run_python(f"{before}\n{block.text}\n{after}\n", folder, letter_api.url)
    assert not re.search("^letterapp: ", printed, re.MULTILINE), printed


def pages_with_commands() -> Iterator[Any]:
    pages: dict[Path, list[Block]] = {}
    for block in RUN:
        if block.language in ("console", "bash", "sh"):
            pages.setdefault(block.path, []).append(block)
    for page, blocks in pages.items():
        slow = any("letterapp demo" in block.text for block in blocks)  # ten seconds
        yield pytest.param(blocks, id=page.relative_to(ROOT).as_posix(), marks=pytest.mark.slow if slow else ())


@pytest.mark.parametrize("blocks", list(pages_with_commands()))
def test_a_page_s_commands_run(blocks: list[Block], folder: Path, letter_api: IngestionServer) -> None:
    with Shell(folder, letter_api.url) as shell:
        for block in BLOCKS:
            if block.path == blocks[0].path and "file" in block.notes:
                (folder / block.notes["file"]).write_text(block.text)
        for block in blocks:
            if not has_programs(block.text):
                pytest.skip("a program that it uses is not installed")
            if "before" in block.notes:
                subprocess.run([sys.executable, "-c", block.notes["before"]], cwd=str(folder), check=True)
            printed = shell.run(block)
            expected = OUTPUT.get(block.name)
            if any(line.startswith("$ ") for line in block.text.splitlines()):
                said = "".join(line + "\n" for line in block.text.splitlines() if not line.startswith("$ "))
                assert same(said, printed), f"{block.name} says:\n{said}\nand it prints:\n{printed}"
            elif expected is not None:
                assert same(expected.text, printed), f"{expected.name} says:\n{expected.text}\nit prints:\n{printed}"
        shell.end_servers()


def parse(language: str, text: str) -> None:
    if language == "json":
        json.loads(text)
    elif language in ("ini", "systemd", "cfg"):
        parser = configparser.ConfigParser(strict=False, interpolation=None, allow_no_value=True)
        parser.optionxform = str  # type: ignore[assignment, method-assign]
        parser.read_string(text)
        assert parser.sections()
    elif language in ("yaml", "yml"):
        yaml = pytest.importorskip("yaml")
        assert list(yaml.safe_load_all(text))
    elif language == "toml":
        tomllib = pytest.importorskip("tomllib")
        assert tomllib.loads(text)
    elif language == "dockerfile":
        assert re.match(r"(#.*\n|ARG .*\n|\n)*FROM \S+", text)
    else:
        raise AssertionError(f"a block in {language!r}: no test knows what to do with it")


PARSED = [
    block
    for block in [*RUN, *DOCSTRINGS]
    if block.language not in ("python", "console", "bash", "sh", "mermaid") and "output" not in block.notes
]


@named(PARSED)
def test_a_file_of_a_known_kind_can_be_parsed(block: Block) -> None:
    parse(block.language, block.text)


@named([block for block in BLOCKS if block.language == "mermaid"])
def test_a_diagram_has_its_picture(block: Block) -> None:
    name = f"{sha256(block.text.encode()).hexdigest()[:12]}.svg"
    assert (ROOT / "docs" / "diagrams" / name).is_file(), "run docs/draw.py"


@named([block for block in BLOCKS if "checked by" in block.notes])
def test_what_is_checked_elsewhere_names_a_test_that_exists(block: Block) -> None:
    path, _, function = block.notes["checked by"].partition("::")
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    assert function in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_few_blocks_are_not_run_and_each_says_why() -> None:
    reasons = {block.name: block.notes["not run"] for block in BLOCKS if "not run" in block.notes}
    assert all(len(reason.split()) >= 3 for reason in reasons.values()), reasons
    assert len(reasons) <= MOST_NOT_RUN, reasons


def test_an_output_follows_what_prints_it() -> None:
    for block in BLOCKS:
        if "output" in block.notes:
            assert block.previous and block.previous.language in ("python", "console"), block.name
            assert "not run" not in block.previous.notes, block.name


def test_each_example_is_run_by_a_test() -> None:
    """A block that stands in an example counts as run, so a test must know its folder."""
    tests = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("*.py"))
    examples = ROOT / "docs" / "examples"
    found = {path.relative_to(examples).parent.parts for path in examples.rglob("*.py")}
    assert found
    # docs/examples/GROUP/EXAMPLE/..., or docs/examples/EXAMPLE
    unknown = [parts for parts in found if not any(f'"{part}' in tests for part in parts[1:] or parts)]
    assert unknown == []


# What the checks themselves find.


def test_a_wrong_output_a_failing_command_and_a_lost_event_are_found(
    tmp_path: Path, letter_api: IngestionServer
) -> None:
    assert same("one ... three", "one two three") and not same("one two", "one three")
    with pytest.raises(AssertionError, match="exit 1"):
        run_python("raise ValueError", tmp_path, letter_api.url)
    page = tmp_path / "page.md"
    page.write_text("<!-- not run: needs a reason -->\n```python\nx\n```\n\n    python -m letterapp nothing\n")
    one, two = blocks_of(page)
    assert (one.notes, two.notes, two.language) == ({"not run": "needs a reason"}, {}, "console")
    with Shell(tmp_path, letter_api.url) as shell, pytest.raises(AssertionError, match="exit 2"):
        shell.run(two)
    page.write_text("<!-- no run: misspelled -->\n```python\nx\n```\n")
    with pytest.raises(AssertionError, match="unknown comment"):
        list(blocks_of(page))


def test_commands_are_told_from_what_they_print() -> None:
    assert commands("$ one \\\n  two\noutput\n$ three  # four\n") == ["one    two", "three"]
    assert commands("# first\none  # two\n\nthree\n") == ["one", "three"]
