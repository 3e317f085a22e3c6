"""Arrows go one way: no module of the package imports itself, however far around."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import sequence_kernels

ROOT = Path(sequence_kernels.__file__).parent


def modules(root: Path) -> dict[str, ast.Module]:
    """Every module below ``root`` by its full name, a package by its own."""
    found = {}
    for path in root.rglob("*.py"):
        parts = path.relative_to(root.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = ast.parse(path.read_text())
    return found


def imports(trees: dict[str, ast.Module], packages: set[str]) -> dict[str, set[str]]:
    """What each module imports of the others, wherever it does so: in functions and for type checkers too."""
    found: dict[str, set[str]] = {}
    for name, tree in trees.items():
        package = name if name in packages else name.rpartition(".")[0]
        found[name] = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                found[name] |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                base = package.rsplit(".", node.level - 1)[0] if node.level else ""
                source = ".".join(filter(None, (base, node.module)))
                found[name] |= {
                    full if (full := f"{source}.{alias.name}") in trees else source for alias in node.names
                }
        found[name] &= trees.keys()
    return found


def packages_of(root: Path) -> set[str]:
    return {".".join(path.parent.relative_to(root.parent).parts) for path in root.rglob("__init__.py")}


def circle(arrows: dict[str, set[str]]) -> list[str] | None:
    try:
        TopologicalSorter(arrows).prepare()
    except CycleError as error:
        return list(error.args[1])
    return None


def test_no_circle() -> None:
    assert circle(imports(modules(ROOT), packages_of(ROOT))) is None


def test_export_knows_no_module_of_the_library() -> None:
    """It takes what any module offers, and steppers stand above it."""
    arrows = imports(modules(ROOT), packages_of(ROOT))
    above = tuple(f"sequence_kernels.{name}" for name in ("module", "stepping", "layers", "models", "compat"))
    found = {name: arrows[name] for name in arrows if name.startswith("sequence_kernels.export")}
    assert found
    assert not [arrow for targets in found.values() for arrow in targets if arrow.startswith(above)]


def test_a_circle_is_seen() -> None:
    """Among the package's own modules, of which one imports what imports it; each way of writing that."""
    trees, packages = modules(ROOT), packages_of(ROOT)
    arrows, stages = imports(trees, packages), "sequence_kernels.stepping.stages"
    for statement in (
        "from ..module import SequenceModule",
        "from .. import module",
        "import sequence_kernels.module",
        "def f():\n    from ..module import SequenceModule",
        "if TYPE_CHECKING:\n    from ..module import SequenceModule",
    ):
        added = imports({**dict.fromkeys(trees, ast.parse("")), stages: ast.parse(statement)}, packages)[
            stages
        ]
        assert added >= {"sequence_kernels.module"}, statement
        seen = circle({**arrows, stages: arrows[stages] | added})
        assert seen is not None
        assert {"sequence_kernels.module", stages} <= {*seen}
