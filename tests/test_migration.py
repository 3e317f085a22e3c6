"""Every example of the guides runs."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from sequence_kernels import compat

DOCS = Path(__file__).parents[1] / "docs"
PAGES = (
    "c-library.md",
    "distributed.md",
    "index.md",
    "layers.md",
    "mamba.md",
    "migration.md",
    "sequences.md",
    "steppers.md",
    "train.md",
)
#: Pages whose examples go on from each other.
STORIES = ("new-layer.md", "new-op.md")


def examples(page: str) -> list[tuple[str, str]]:
    """What each needs, and its code."""
    return re.findall(r"```python(?: needs=(\w+))?\n(.*?)```", (DOCS / page).read_text(), flags=re.DOTALL)


EXAMPLES = {f"{page}, example {i}": found for page in PAGES for i, found in enumerate(examples(page))} | {
    page: ("", "\n".join(code for _, code in examples(page))) for page in STORIES
}


def test_there_is_an_example_for_each_library() -> None:
    assert len(EXAMPLES) == 27 + len(STORIES)


def test_no_page_is_left_out() -> None:
    pages = {page.name for page in DOCS.glob("*.md") if examples(page.name)}
    assert pages == {*PAGES, *STORIES}


@pytest.mark.parametrize("name", EXAMPLES)
def test_example(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs, code = EXAMPLES[name]
    if needs:
        for name in ("cauchy_mult", "pykeops", "pykeops.torch"):
            monkeypatch.setitem(sys.modules, name, None)
        pytest.importorskip(needs, reason="pip install --no-deps -r tests/parity/requirements.txt")
    monkeypatch.chdir(tmp_path)
    try:
        exec(compile(code, f"docs/{name}", "exec"), {"__name__": "example"})
    finally:
        compat.uninstall()
