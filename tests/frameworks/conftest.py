"""The applications of docs/examples/frameworks, with the frameworks and servers themselves.

They run with `pytest -m frameworks`, and the selection of the gate with `pytest -m "frameworks and gate"`. Otherwise
they are deselected, because the ordinary suite has to stay quick.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from applications import start_examples  # noqa: F401  (a fixture)

HERE = Path(__file__).parent


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    here = [item for item in items if HERE in item.path.parents]
    for item in here:
        item.add_marker(pytest.mark.frameworks)
    if here and not re.search("frameworks|gate", config.option.markexpr):
        config.hook.pytest_deselected(items=here)
        items[:] = [item for item in items if item not in here]
