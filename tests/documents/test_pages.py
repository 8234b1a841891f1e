"""What the pages say is what the code does: outputs, options, causes, links to tests, and what troubles look like."""

from __future__ import annotations

import ast
import inspect
import re
import typing
from pathlib import Path
from typing import Any, Iterator

import pytest
from blocks import blocks_of, rows
from harness import ROOT

from letterapp import Letter, relay
from letterapp._relay.launcher import PASSED_ON
from letterapp.testing import capture, no_network
from stress.scenarios import SCENARIOS


def text_block(page: str, beginning: str) -> str:
    (found,) = (one.text for one in blocks_of(ROOT / "docs" / page) if one.text.startswith(beginning))
    return found.rstrip("\n")


def test_the_failure_that_the_testing_page_shows(tmp_path: Path) -> None:
    with capture(wait=0) as letter:
        letter.identify("user_42", "ada@example.com", {"plan": "pro"})
        letter.track("user_42", "Order Completed", {"amount": 98, "currency": "EUR"})
        try:
            letter.assert_tracked("Order Completed", user_id="user_42", amount=99)
        except AssertionError as failure:
            said = f"AssertionError: {failure}"
    assert said == text_block("testing.md", "AssertionError")


def test_the_report_that_the_testing_page_shows(capfd: pytest.CaptureFixture[str]) -> None:
    with no_network(), Letter("lt_live_key") as letter:
        letter.track("user_42", "Order Completed")
    printed = capfd.readouterr().err
    shown = text_block("testing.md", "letterapp: 1 event lost")
    assert shown.endswith(" ...") and printed.startswith(shown[:-4]), printed


# How the page names the types of options, by their annotations.
TYPES: dict[Any, str] = {
    str: "str",
    bool: "bool",
    int: "int",
    float: "float, seconds",
    typing.Optional[int]: "int or None",
    typing.Optional[str]: "str",
    typing.Iterable[int]: "signals",
    typing.Union[str, int, None]: "str or int",
}
# The defaults that are None in the code, and something else in effect.
EFFECTIVE = {
    "api_key": "`LETTER_API_KEY`",
    "base_url": "`LETTER_BASE_URL`, else `https://api.letter.app`",
    "on_error": "prints to stderr",
    "ssl_context": "the system's certificates",
}


def _type_named(name: str, hint: Any) -> str:
    if hint in TYPES:
        return TYPES[hint]
    if name == "spool":
        return "path"
    if name == "relay":
        return "bool, path or queue"
    return "SSLContext or function" if name == "ssl_context" else "function" if "Callable" in str(hint) else str(hint)


def _default_named(name: str, default: Any) -> str:
    if name in EFFECTIVE:
        return EFFECTIVE[name]
    if isinstance(default, int) and not isinstance(default, bool):
        return f"{default:,}"
    if isinstance(default, str):
        return f'`"{default}"`'
    return f"`{default}`" if isinstance(default, tuple) else str(default)


def test_the_configuration_page_has_the_options_with_their_types_and_defaults() -> None:
    hints = typing.get_type_hints(Letter.__init__)
    parameters = list(inspect.signature(Letter).parameters.values())
    expected = {
        one.name: (_type_named(one.name, hints[one.name]), _default_named(one.name, one.default)) for one in parameters
    }
    found = {name.strip("`"): (kind, default) for name, kind, default, _ in rows("configuration.md", "Options")}
    assert found == expected
    positional = ", ".join(one.name for one in parameters if one.kind is one.POSITIONAL_OR_KEYWORD)
    assert f"`Letter({positional}, *, ...)`" in (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")


def test_the_configuration_page_has_the_options_of_the_manager_and_the_listener() -> None:
    table = rows("configuration.md", "A `SenderManager` and a `QueueListener`")
    for column, kind in ((1, relay.SenderManager), (2, relay.QueueListener)):
        known = {*(relay.SENDING if column == 1 else relay.LISTENING), *inspect.signature(kind).parameters}
        named = [name for row in table if row[column] == "yes" for name in re.findall(r"`(\w+)`", row[0])]
        assert sorted(named) == sorted(known - {"options"})


def test_the_relay_page_says_which_options_a_relay_takes_from_its_clients() -> None:
    text = (ROOT / "docs" / "relay.md").read_text(encoding="utf-8")
    taken, own = (
        re.findall(r"`(\w+)`", line.split(" | ")[0])
        for line in text.splitlines()
        if line.startswith(("| `api_key`, `base_url`, `flush_at`", "| `before_send`, "))
    )
    assert sorted(taken) == sorted(PASSED_ON)
    everything = set(inspect.signature(Letter).parameters)
    assert {*taken, *own} == everything - {"relay", "ssl_context", "spool_sync"}  # refused, see launcher.check


PROOF = re.compile(
    r'\[[^]]+\]\((\.\./tests/\S+) "(\w+)"\)'
    r'|\[`([\w-]+)`\]\(stress\.md "stress scenario"\)'
    r"|\[(measured)\]\(processes\.md#"
)
MOST_MEASURED = 3


def proofs() -> Iterator[tuple[str, list[tuple[str, ...]]]]:
    """Each row of a table that has a column of proofs, and what that column links to."""
    for page in ("guarantees.md", "relay.md"):
        is_one = False
        for line in (ROOT / "docs" / page).read_text(encoding="utf-8").splitlines():
            is_one = line.endswith("| shown by |") or (is_one and line.startswith("|"))
            if is_one and not line.endswith(("| shown by |", "| --- |")):
                yield f"{page}: {line}", PROOF.findall(line.split(" | ")[-1])


def test_each_guarantee_links_to_a_test_or_a_scenario_that_there_is() -> None:
    measured = []
    found = list(proofs())
    assert len(found) > 40
    for row, links in found:
        assert links, f"nothing shows this: {row}"
        for path, function, scenario, by_hand in links:
            if by_hand:
                measured.append(row)
            elif scenario:
                assert scenario in SCENARIOS, f"no scenario {scenario}"
            else:
                tree = ast.parse((ROOT / "docs" / path).read_text(encoding="utf-8"))
                assert function in {getattr(node, "name", "") for node in tree.body}, f"{path} has no {function}"
    assert len(measured) <= MOST_MEASURED, measured
