"""Two ranks for all the tests here, and four for the thorough ones."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .ranks import Ranks


def _ranks(size: int, factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    ranks = Ranks(size, factory.mktemp("ranks"))
    yield ranks
    ranks.close()


@pytest.fixture(scope="session")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    yield from _ranks(2, tmp_path_factory)


@pytest.fixture(scope="session")
def four(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    yield from _ranks(4, tmp_path_factory)
