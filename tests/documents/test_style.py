"""The rules of CONTRIBUTING.md that can be counted: sizes, and how tests reach into the code."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = sorted(ROOT.glob("reconciler/**/*.py"))
TESTS = sorted(ROOT.glob("tests/**/*.py"))

LONGEST_MODULE = 400  # lines
LONGEST_FUNCTION = 40  # lines besides the docstring
TABLES: frozenset[str] = frozenset()  # functions that are one long table: `module.function`

# These tests plant mistakes in the code, to see that others find them.
PLANTS_MISTAKES = {"tests/faults/test_history.py"}


def parsed(files: list[Path]) -> Iterator[tuple[str, ast.Module]]:
    """Every file's path in the project, and its syntax tree."""
    for file in files:
        yield file.relative_to(ROOT).as_posix(), ast.parse(file.read_text(encoding="utf-8"))


def test_no_module_is_longer_than_a_reader_holds():
    """A longer one has two subjects."""
    lines = {str(file): len(file.read_text(encoding="utf-8").splitlines()) for file in PACKAGE}
    assert {name: count for name, count in lines.items() if count > LONGEST_MODULE} == {}


def test_no_function_is_longer_than_a_screen():
    """Tables are named here, one by one."""
    long = {}
    for path, tree in parsed(PACKAGE):
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                docstring = node.body[0] if ast.get_docstring(node) is not None else None
                lines = _lines(node) - (_lines(docstring) if docstring is not None else 0)
                name = f"{Path(path).stem}.{node.name}"
                if lines > LONGEST_FUNCTION and name not in TABLES:
                    long[name] = lines
    assert long == {}


def test_no_test_imports_from_a_conftest():
    """Fixtures come by name; all else stands in the harness."""
    found = [
        f"{path}:{node.lineno}"
        for path, tree in parsed(TESTS)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").endswith("conftest")
    ]
    assert found == []


def test_no_test_patches_a_private_name():
    """A test that needs another page size, wait or signal passes it as a parameter."""
    found = [
        f"{path}:{node.lineno}"
        for path, tree in parsed(TESTS)
        if path not in PLANTS_MISTAKES
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and _is_patch(node) and any(map(_is_private, node.args[:2]))
    ]
    assert found == []


def _lines(node: ast.stmt) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def _is_patch(call: ast.Call) -> bool:
    return ast.unparse(call.func) in {"monkeypatch.setattr", "patch.setattr", "patch.object", "patch"}


def _is_private(target: ast.expr) -> bool:
    """Whether an expression names a private attribute: `_x`, "_x", "module._x" or one of something private."""
    match target:
        case ast.Constant(str(name)):
            names = name.split(".")
        case ast.Attribute():
            names = ast.unparse(target).split(".")
        case _:
            return False
    return any(name.startswith("_") and not name.startswith("__") for name in names)
