"""Options of `pytest bench`."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--shapes", choices=("quick", "full", "cuda"), default="quick", help="which shapes to measure"
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    from bench.test_ops import cases

    if "case" in metafunc.fixturenames:
        found = cases(metafunc.config.getoption("--shapes"))
        metafunc.parametrize("case", found, ids=[str(case) for case in found])
