"""What tests compare must fail for NaN: Python's ``max`` passes over one that is not its first argument."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
FILES = sorted(TESTS.rglob("*.py"))


def bounded_maxima(tree: ast.AST) -> Iterator[int]:
    """Lines of ``max(...) < bound``, but of pairs of versions, ``max((int(a), int(b)) ...)``."""
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Compare) and isinstance(node.ops[0], (ast.Lt, ast.LtE))):
            continue
        left = node.left
        if isinstance(left, ast.Call) and isinstance(left.func, ast.Name) and left.func.id == "max":
            first = left.args[0]
            if not (isinstance(first, ast.GeneratorExp) and isinstance(first.elt, ast.Tuple)):
                yield node.lineno


@pytest.mark.parametrize("name", sorted({path.relative_to(TESTS).parts[0] for path in FILES}))
def test_no_bound_is_on_a_maximum(name: str) -> None:
    chosen = [path for path in FILES if path.relative_to(TESTS).parts[0] == name]
    found = [f"{path.name}:{line}" for path in chosen for line in bounded_maxima(ast.parse(path.read_text()))]
    assert not found, "write all(error < bound for error in errors)"


def test_one_is_found() -> None:
    assert max(0.5, float("nan")) == 0.5  # what this is about
    tree = ast.parse(
        "assert max(errors) < 1e-6\nassert max((int(a), 2) for a in b) <= (2, 28)\nassert max(a) > 1"
    )
    assert list(bounded_maxima(tree)) == [1]
