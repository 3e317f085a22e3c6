"""The tests of the GPU kernels run on two machines: their sources in the emulator or in Triton's interpreter, and the
PTX that nvcc or Triton makes of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests import ptx
from tests.cuda_driver import driver

#: By the check that a test makes: what it runs on otherwise, the machines for PTX with when they run, and why not.
MACHINES: dict[str, Any] = {
    "emulator": (
        "emulator",
        {"sm_80": [], "sm_75": [pytest.mark.thorough], "sm_90": [pytest.mark.thorough]},
        ptx.skip_reason,
    ),
    "interpreter": (
        "interpreter",
        {"cuda 80": [], "cuda 90": [pytest.mark.thorough]},
        ptx.triton_skip_reason,
    ),
}

#: What a test's ``math`` is where its kernels are for tensor cores: before sm_80 they are empty and never asked for.
TENSOR_CORES = ("tf32", "tf32x3", "bf16")


@pytest.fixture(autouse=True)
def machine(request: pytest.FixtureRequest) -> Iterator[None]:
    """Where kernels run: their sources, or the PTX of an architecture."""
    architecture = getattr(request, "param", None)
    if architecture is None:
        yield
        return
    if architecture.startswith("cuda "):
        of_triton = ptx.of_target(architecture)
        before, machine = of_triton.executed, of_triton
        with ptx.on_ptx(request.module.kernels, of_triton):
            yield
    else:
        of_nvcc = ptx.of_architecture(architecture)
        before, machine = of_nvcc.executed, of_nvcc
        with driver().on(of_nvcc):
            yield
    launches = request.node.get_closest_marker("launches_nothing") is None
    assert machine.executed > before or not launches, (
        "the test has run no kernel's PTX: mark it with launches_nothing"
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    marks = [*metafunc.definition.iter_markers()]
    if any(mark.name == "launches_nothing" for mark in marks):
        return
    for runs, (name, machines, skip_reason) in MACHINES.items():
        of = {mark.kwargs["of"] for mark in marks if mark.name == "checks" and runs in mark.args}
        if not of:
            continue
        checks = [pytest.mark.checks("PTX", of=each) for each in sorted(of)]
        checks.append(pytest.mark.skipif(skip_reason() is not None, reason=str(skip_reason())))
        other = [pytest.param(m, id=m, marks=[*when, *checks]) for m, when in machines.items()]
        metafunc.parametrize("machine", [pytest.param(None, id=name), *other], indirect=True)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Compiling a Triton kernel takes seconds: `make test` runs the first case of a test marked ``on_ptx`` as PTX."""
    seen = set()
    for item in items:
        params = getattr(getattr(item, "callspec", None), "params", {})
        machine = params.get("machine")
        for_tensor_cores = params.get("math") in TENSOR_CORES or item.get_closest_marker("tensor_cores")
        if machine == "sm_75" and for_tensor_cores:
            item.add_marker(
                pytest.mark.skip(reason="sm_75 has none of the tensor cores that the kernels are for")
            )
        if machine is None or not machine.startswith("cuda "):
            continue
        test = (item.path, item.originalname, machine)  # type: ignore[attr-defined]
        if test in seen or item.get_closest_marker("on_ptx") is None:
            item.add_marker(pytest.mark.thorough)
        seen.add(test)
