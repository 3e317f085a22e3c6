"""The tests of the CUDA kernels run on two machines: their sources in the emulator, and what nvcc makes of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests import ptx
from tests.cuda_driver import driver

#: The architectures whose PTX runs, and in which test runs.
ARCHITECTURES = {"sm_80": [], "sm_90": [pytest.mark.thorough]}


@pytest.fixture(autouse=True)
def machine(request: pytest.FixtureRequest) -> Iterator[None]:
    """Where the stand-in driver runs kernels: in the emulator, or the PTX of an architecture."""
    architecture = getattr(request, "param", None)
    if architecture is None:
        yield
        return
    ptx_machine = ptx.of_architecture(architecture)
    before = ptx_machine.executed
    with driver().on(ptx_machine):
        yield
    assert ptx_machine.executed > before, "the test has run no kernel's PTX: mark it with launches_nothing"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    marks = [*metafunc.definition.iter_markers()]
    emulated = {mark.kwargs["of"] for mark in marks if mark.name == "checks" and "emulator" in mark.args}
    if not emulated or any(mark.name == "launches_nothing" for mark in marks):
        return
    reason = ptx.skip_reason()
    machines = [pytest.param(None, id="emulator")]
    for architecture, when in ARCHITECTURES.items():
        checks = [pytest.mark.checks("PTX", of=of) for of in sorted(emulated)]
        skip = pytest.mark.skipif(reason is not None, reason=str(reason))
        machines.append(pytest.param(architecture, id=architecture, marks=[*when, *checks, skip]))
    metafunc.parametrize("machine", machines, indirect=True)
