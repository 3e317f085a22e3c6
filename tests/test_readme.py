"""The README's example runs, and its table of backends is what the library has."""

from __future__ import annotations

import re
from pathlib import Path

import sequence_kernels.ops as ops
from sequence_kernels.ops.dispatch import _implementations

README = Path(__file__).parents[1] / "README.md"


def backends_table() -> str:
    """One row an op: which implementations are registered."""
    rows = [
        "| op | " + " | ".join(f"`{b}`" for b in ops.BACKENDS) + " |",
        "| --- " * (1 + len(ops.BACKENDS)) + "|",
    ]
    for op in ops.operations():
        if not op.endswith("_backward"):
            marks = ("yes" if b in _implementations[op] else "" for b in ops.BACKENDS)
            rows.append(f"| `{op}` | " + " | ".join(marks) + " |")
    return "\n".join(rows)


def test_the_example_runs() -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    assert "step" in example
    exec(compile(example, str(README), "exec"), {})


def test_the_table_of_backends_is_true() -> None:
    section = README.read_text().split("<!-- backends:begin -->")[1].split("<!-- backends:end -->")[0]
    assert section.strip() == backends_table()


if __name__ == "__main__":  # python -m tests.test_readme rewrites the table
    head, rest = README.read_text().split("<!-- backends:begin -->")
    tail = rest.split("<!-- backends:end -->")[1]
    README.write_text(f"{head}<!-- backends:begin -->\n{backends_table()}\n<!-- backends:end -->{tail}")
