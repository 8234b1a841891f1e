"""The texts in the library's source that reach a user without being raised: reports to `on_error`, and warnings.

Responsible for: finding them. A text is the first argument of a `LetterError` that is not raised on the spot, or of
`warnings.warn`. What is inserted into it is followed to where it is written: to a variable, a constant, and, for a
parameter, to the calls of the function. Where that ends, the text has ``{}``. Not responsible for: what a page has to
say about them.
"""

from __future__ import annotations

import ast
import itertools
from pathlib import Path
from typing import Iterable, Iterator, NamedTuple, Tuple, Union

from harness import ROOT

# Programs, servers and what tests use: what they say is not said by a client.
_OTHERS = ("_cli/", "_inbox/", "_testing/", "testing.py", "pytest_plugin.py", "_relay_server/manager_server.py")
_RAISED_ELSEWHERE = ("_config.py", "_queues/manager_connection.py")  # where functions return what others raise
# Calls whose argument is reported, by other ways than a parameter: a list, an attribute, an exception.
OF_RELAY = "the relay {}; this process sends its events itself until the relay is back"
_REPORTS = {  # the cause, and the text in which it is inserted
    "_note_damage": ("damaged", "{}"),
    "NoRelay": ("degraded", "{}"),
    "_report": ("degraded", "{}"),  # of a stream, which gets a text and not a `LetterError`
    "_note_trouble": ("degraded", OF_RELAY),
}
_CALLED_AS = {"TroubleReporter.__call__": "_report_trouble"}

Function = Union[ast.FunctionDef, ast.AsyncFunctionDef]
Seen = Tuple[Tuple[Function, str], ...]  # names that are being followed


class Text(NamedTuple):
    """A text; the cause of its reports, or an empty text where that is decided elsewhere."""

    where: str
    text: str
    cause: str


class Texts:
    """All of them. ``folder`` is the package."""

    def __init__(self, folder: Path = ROOT / "letterapp") -> None:
        self._parents: dict[ast.AST, ast.AST] = {}
        self._modules: dict[ast.AST, str] = {}  # of each call
        self._calls: dict[str, list[ast.Call]] = {}  # by the name of the function
        self._constants: dict[str, ast.expr] = {}  # of modules
        for path in sorted(folder.rglob("*.py")):
            name = path.relative_to(folder).as_posix()
            if not name.startswith(_OTHERS):
                self._read(name, ast.parse(path.read_text(encoding="utf-8")))

    def _read(self, module: str, tree: ast.Module) -> None:
        for statement in tree.body:
            if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
                self._constants[statement.targets[0].id] = statement.value
        for node in ast.walk(tree):
            self._parents.update((child, node) for child in ast.iter_child_nodes(node))
            if isinstance(node, ast.Call):
                self._modules[node] = module
                self._calls.setdefault(_name(node.func), []).append(node)

    def reported(self) -> Iterator[Text]:
        """The texts of reports, with their causes."""
        for call in self._calls["LetterError"]:
            module = self._modules[call]
            if call.args and not isinstance(self._parents[call], ast.Raise) and module not in _RAISED_ELSEWHERE:
                yield from self._texts(call, _cause(call))
        for name, (cause, around) in _REPORTS.items():
            for call in self._calls.get(name, []):
                yield from self._texts(call, cause, around)

    def warned(self) -> Iterator[Text]:
        """The texts of warnings."""
        for call in self._calls["warn"]:
            yield from self._texts(call, "")

    def _texts(self, call: ast.Call, cause: str, around: str = "{}") -> Iterator[Text]:
        for text in self._values(call.args[0], ()):
            if text.replace("{}", "").strip(" :;,.()"):  # otherwise all of it is another text
                yield Text(f"{self._modules[call]}:{call.lineno}", around.replace("{}", text, 1), cause)

    # What an expression stands for.

    def _values(self, node: ast.expr, seen: Seen) -> list[str]:
        """The texts that ``node`` may be, each once."""
        if isinstance(node, ast.Constant):
            return [node.value] if isinstance(node.value, str) else ["{}"]
        if isinstance(node, ast.JoinedStr):
            return self._joined(node.values, seen)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            return self._joined([node.left, node.right], seen)
        if isinstance(node, ast.FormattedValue):
            return self._values(node.value, seen)
        if isinstance(node, ast.IfExp):
            return self._any([node.body, node.orelse], seen)
        if isinstance(node, ast.BoolOp):
            return self._any(node.values, seen)
        if isinstance(node, ast.Name):
            return self._named(node, seen)
        if isinstance(node, ast.Attribute) and node.attr.isupper() and node.attr in self._constants:
            return self._values(self._constants[node.attr], seen)
        if isinstance(node, ast.Call) and _name(node.func) == "format" and isinstance(node.func, ast.Attribute):
            return self._values(node.func.value, seen)
        return ["{}"]

    def _any(self, nodes: Iterable[ast.expr], seen: Seen) -> list[str]:
        return list(dict.fromkeys(text for node in nodes for text in self._values(node, seen)))

    def _joined(self, nodes: Iterable[ast.expr], seen: Seen) -> list[str]:
        return list(map("".join, itertools.product(*(self._values(node, seen) for node in nodes))))

    def _named(self, node: ast.Name, seen: Seen) -> list[str]:
        name = node.id
        function = self._function(node)
        if function is None or (function, name) in seen:
            return ["{}"]
        seen = (*seen, (function, name))
        assigned = self._assigned(function, node)
        if assigned:
            return self._any(assigned, seen)
        if name in (parameters := [each.arg for each in function.args.args]):
            passed = [_argument(call, name, parameters) for call in self._callers(function)]
            return self._any([value for value in passed if value is not None], seen) or ["{}"]
        return self._values(self._constants[name], seen) if name in self._constants and name.isupper() else ["{}"]

    def _assigned(self, function: Function, use: ast.Name) -> list[ast.expr]:
        """What ``function`` assigns to the name; only the last of it, if that is in the same block as the use."""
        found = [
            each
            for each in ast.walk(function)
            if isinstance(each, ast.Assign) and any(getattr(to, "id", "") == use.id for to in each.targets)
        ]
        statement: ast.AST = use
        while not isinstance(statement, ast.stmt):
            statement = self._parents[statement]
        block = next(
            (
                block
                for _, block in ast.iter_fields(self._parents[statement])
                if isinstance(block, list) and statement in block
            )
        )
        near = [each for each in block[: block.index(statement)] if each in found]
        return [each.value for each in near[-1:] or found]

    def _function(self, node: ast.AST) -> Function | None:
        while not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            if node not in self._parents:
                return None
            node = self._parents[node]
        return node

    def _callers(self, function: Function) -> list[ast.Call]:
        """The calls of ``function``: of a private one, only those in its module, if there are any."""
        owner = self._parents.get(function)
        full_name = f"{owner.name}.{function.name}" if isinstance(owner, ast.ClassDef) else function.name
        calls = self._calls.get(_CALLED_AS.get(full_name, function.name), [])
        module = next((self._modules[each] for each in ast.walk(function) if each in self._modules), "")
        near = [call for call in calls if self._modules[call] == module]
        return near if near and function.name.startswith("_") and full_name not in _CALLED_AS else calls


def _name(function: ast.expr) -> str:
    """The last word of what is called."""
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def _cause(call: ast.Call) -> str:
    for keyword in call.keywords:
        if keyword.arg == "cause" and isinstance(keyword.value, ast.Constant):
            return str(keyword.value.value)
    return ""


def _argument(call: ast.Call, name: str, parameters: list[str]) -> ast.expr | None:
    """What ``call`` passes for the parameter ``name``."""
    position = parameters.index(name) - (parameters[0] in ("self", "cls"))
    if position < 0:
        return None  # the object itself
    if position < len(call.args):
        return call.args[position]
    return next((keyword.value for keyword in call.keywords if keyword.arg == name), None)
