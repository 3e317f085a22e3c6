"""Options and markers shared by every test."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tests import checks_table
from tests.instruction_sets import instruction_set

__all__ = ["instruction_set"]  # a fixture


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--torch-threads",
        type=int,
        default=None,
        help="threads torch uses in each test process (default: torch's own)",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", checks_table.MARKER)
    threads = config.getoption("--torch-threads")
    if threads is not None:
        torch.set_num_threads(threads)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Any:
    """Without the search for garbage, which among so many tests that stay takes a third of the time to read them."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


#: All tests that were read, those too that are not run.
COLLECTED = pytest.StashKey[list[pytest.Item]]()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    config.stash[COLLECTED] = list(items)
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a GPU"))


@pytest.fixture(autouse=True)
def graphs_of_one_test() -> Iterator[None]:
    """torch counts the graphs of a function over the whole process, and refuses the ninth."""
    yield
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()
