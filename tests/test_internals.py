"""torch's private names: used in one file alone, and all there; tools/smoke.py uses them in every torch."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch

import sequence_kernels
from sequence_kernels import internals

ROOT = Path(sequence_kernels.__file__).parent


def private_names(tree: ast.Module) -> set[str]:
    """``torch._C`` and the like, and private attributes of ``forward_ad``."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            text = ast.unparse(node)
            if text.startswith(("torch.", "forward_ad.", "internals.")):
                found.add(text)
        if isinstance(node, (ast.ImportFrom, ast.Import)):
            modules = [getattr(node, "module", None) or "", *(alias.name for alias in node.names)]
            found |= {name for name in modules if name.startswith("torch.") and "._" in name}
    return found


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_private_names_stand_in_one_file(path: Path) -> None:
    found = private_names(ast.parse(path.read_text()))
    assert bool(found) == (path.name == "internals.py"), found


def test_levels_and_transforms_are_seen() -> None:
    assert internals.dual_level() < 0
    assert internals.transform() is None
    assert not internals.dispatch_modes()
    assert not internals.function_modes()
    assert internals.tracing_state() is None
    seen = []

    def look(x: torch.Tensor) -> torch.Tensor:
        seen.append((internals.in_forward_mode(), internals.transform() is None, internals.is_wrapped(x)))
        return x.sum()

    x = torch.ones(2)
    torch.func.jvp(look, (x,), (x,))
    torch.func.grad(look)(x)
    with torch.autograd.forward_ad.dual_level():
        assert internals.dual_level() >= 0
    assert seen == [(True, False, True), (False, False, True)]
