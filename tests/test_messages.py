"""What a message of the library names: arguments in backticks, which the command line writes as flags, and no flag."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest

import featcache as fc
from featcache.settings import COMMANDS, SharedOptions

ROOT = Path(fc.__file__).parent
# These write for a shell: help of options, advice of doctor (which has no function in Python), commands to copy,
# tables for a terminal.
SHELL = ("settings.py", "extras/doctor/", "extras/recipes/", "extras/report/commands.py", "extras/report/table.py")
# A whole command may stand in a message.
COMMAND = re.compile(r"\b(featcache|pip install|iconv) .*?(?=[,;:.)](\s|$)|$)")
FLAG = re.compile(r"(?<![\w./-])--?[a-z][\w-]*")
QUOTED = re.compile(r"(?<![.\w])`([^`]*)`")
ARGUMENT = re.compile(r"(\w+)(=.+)?", re.DOTALL)
VALUE = "0"  # stands for what an f-string fills in


def is_docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def texts(node: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield the line and the text of each string in the code, without those of functions that make commands."""
    if isinstance(node, ast.JoinedStr):
        yield node.lineno, "".join(part.value if isinstance(part, ast.Constant) else VALUE for part in node.values)
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.lineno, node.value
    elif not (isinstance(node, ast.FunctionDef) and re.search("command|flags", node.name)):
        for child in ast.iter_child_nodes(node):
            if not (isinstance(child, ast.stmt) and is_docstring(child)):
                yield from texts(child)


def wrong_in(text: str, arguments: set[str]) -> list[str]:
    """Return the flags in a text, and what stands in backticks and is no argument."""
    wrong = [] if "in Python:" in text else FLAG.findall(COMMAND.sub("", text))
    for quoted in QUOTED.findall(text):
        argument = ARGUMENT.fullmatch(quoted)
        if argument is None or argument[1] not in {*arguments, VALUE}:
            wrong.append(quoted)
    return wrong


def arguments() -> set[str]:
    """Return the names of the arguments that functions of the library and options of the command line have."""
    names = {field.name for kind in (SharedOptions, *COMMANDS.values()) for field in fields(kind)}
    public = [getattr(fc, name) for name in fc.__all__]
    functions = [value for value in public if inspect.isfunction(value)]
    for kind in public:
        if inspect.isclass(kind):
            functions += [method for name, method in inspect.getmembers(kind, inspect.isfunction) if name[0] != "_"]
    for function in [*functions, fc.FeatureExtractor]:
        names |= set(inspect.signature(function).parameters)
    return names


def test_a_message_names_arguments_in_backticks_and_no_flags():
    known, wrong = arguments(), {}
    for path in ROOT.rglob("*.py"):
        file = path.relative_to(ROOT).as_posix()
        if file.startswith(SHELL):
            continue
        for line, text in texts(ast.parse(path.read_text())):
            if names := wrong_in(text, known):
                wrong[f"{file}:{line}"] = names
    assert not wrong


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("Use `cv=5`, or leave out `cv`", []),
        ("Use --cv 5", ["--cv"]),
        ("0 is no model: -b MODEL.keras", ["-b"]),
        ("Take an earlier one: featcache sweep C.h5 --cv 5. Then compare", []),
        ("Take an earlier one: featcache sweep C.h5. Or --cv 5", ["--cv"]),
        ("0-fold cross-validation; see `sweep RUN`", ["sweep RUN"]),
        ("Sweep with `folds=5`", ["folds=5"]),
        ("`0` takes a number", []),
    ],
)
def test_the_check_finds_flags_and_what_is_no_argument(text, wrong):
    assert wrong_in(text, {"cv"}) == wrong
