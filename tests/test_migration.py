"""Every example of docs/migration.md runs."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from sequence_kernels import compat

GUIDE = Path(__file__).parents[1] / "docs" / "migration.md"
EXAMPLES = re.findall(r"```python(?: needs=(\w+))?\n(.*?)```", GUIDE.read_text(), flags=re.DOTALL)


def test_there_is_an_example_for_each_library() -> None:
    assert len(EXAMPLES) == 5


@pytest.mark.parametrize("index", range(len(EXAMPLES)))
def test_example(index: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs, code = EXAMPLES[index]
    if needs:
        for name in ("cauchy_mult", "pykeops", "pykeops.torch"):
            monkeypatch.setitem(sys.modules, name, None)
        pytest.importorskip(needs, reason="pip install --no-deps -r tests/parity/requirements.txt")
    monkeypatch.chdir(tmp_path)
    try:
        exec(compile(code, f"docs/migration.md, example {index}", "exec"), {"__name__": "example"})
    finally:
        compat.uninstall()
