"""The site has every page, and its reference every public name; `make docs` builds it."""

from __future__ import annotations

import importlib
import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import sequence_kernels
from sequence_kernels import compat, distributed, export, layers, models, ops, testing
from tools import draw_kernels
from tools.site_links import on_page_markdown

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


def resolved(path: str) -> Any:
    """What a dotted name of the reference means to mkdocstrings: a module comes before a function of its name."""
    package, _, name = path.rpartition(".")
    found = importlib.util.find_spec(path) if not package or is_package(package) else None
    return importlib.import_module(path) if found else getattr(importlib.import_module(package), name)


def is_package(path: str) -> bool:
    spec = importlib.util.find_spec(path)
    return spec is not None and spec.submodule_search_locations is not None


def shown(page: str) -> list[Any]:
    """The objects that a page of the reference shows: those of a module's ``__all__``, but modules."""
    found: list[Any] = []
    for path in re.findall(r"^::: (\S+)$", page, flags=re.MULTILINE):
        thing = resolved(path)
        if isinstance(thing, ModuleType):
            names = getattr(thing, "__all__", [n for n in vars(thing) if not n.startswith("_")])
            whole = hasattr(thing, "__path__")
            found += [
                getattr(thing, n) for n in names if not (whole and importlib.util.find_spec(f"{path}.{n}"))
            ]
        else:
            found.append(thing)
    return found


def test_the_reference_has_every_public_name() -> None:
    found = {id(thing) for page in (DOCS / "reference").glob("*.md") for thing in shown(page.read_text())}
    missing = [
        f"{module.__name__}.{name}"
        for module in (sequence_kernels, compat, distributed, export, layers, models, ops)
        for name in module.__all__
        if not isinstance(getattr(module, name), ModuleType) and id(getattr(module, name)) not in found
    ]
    assert missing == []
    assert id(testing.check_sequence_module) in found


def test_every_page_is_in_the_contents() -> None:
    pages = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
    assert set(re.findall(r"[\w/-]+\.md", (ROOT / "mkdocs.yml").read_text())) == pages


def test_links_of_pages_lead_somewhere() -> None:
    for page in DOCS.rglob("*.md"):
        prose = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", prose):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_what_is_quoted_is_the_source() -> None:
    quotes = re.findall(
        r'```\w+ title="(.+?)"\n(.*?)\n```', (DOCS / "new-op.md").read_text(), flags=re.DOTALL
    )
    assert {Path(path).name for path, _ in quotes} >= {
        "reference.py",
        "cpu.cpp",
        "triton.py",
        "cuda.cu",
        "proof.py",
    }
    for path, text in quotes:
        for piece in re.split(r"\n+(?:#|//) \.\.\.\n+", text):
            assert piece in (ROOT / path).read_text(), f"{path} has no longer what docs/new-op.md quotes"


def test_a_link_out_of_the_site_becomes_a_name() -> None:
    text = "See [CONTRIBUTING.md](../CONTRIBUTING.md#rules), [the law](../tests/test_law.py) and [Train](train.md)."
    wanted = "See `CONTRIBUTING.md`, the law (`tests/test_law.py`) and [Train](train.md)."
    assert on_page_markdown(text, page=None) == wanted


def test_the_picture_shows_the_kernels_as_they_are() -> None:
    number = re.compile(r"-?\d+\.\d")
    drawn, fresh = draw_kernels.FILE.read_text(), draw_kernels.picture(draw_kernels.kernels())
    stale = "python -m tools.draw_kernels writes docs/kernels.svg anew"
    assert number.sub("", drawn) == number.sub("", fresh), stale
    for old, new in zip(number.findall(drawn), number.findall(fresh), strict=True):
        assert abs(float(old) - float(new)) < 0.3, stale  # of 120 in height; processors round differently
