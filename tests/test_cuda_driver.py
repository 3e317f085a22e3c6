"""The CUDA library on a stand-in for the NVIDIA driver, which records the calls and emulates the kernels."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sequence_kernels import ops
from sequence_kernels.ops import dispatch
from tests.aot import nvcc
from tests.cuda_driver import Driver, build, skip_reason
from tests.cuda_driver import driver as stand_in
from tests.cuda_driver.build import ROOT, setup, source_tree
from tests.ops.ssm_step.exact import check as check_step
from tests.ops.ssm_step.exact import sample as step_sample

pytestmark = pytest.mark.skipif(skip_reason() is not None, reason=str(skip_reason()))

raw = torch.ops.sequence_kernels_native


@pytest.fixture
def driver() -> Iterator[Driver]:
    driver = stand_in()
    driver.record()
    yield driver
    driver.fail("", 0)
    driver.record()
    assert driver.contexts() == 0  # each launch leaves the thread's context as it was


def samples(op: str, sets: int, channels: int, N: int, L: int, dtype: Any = torch.complex64) -> list[Tensor]:
    """The tensors of an op: weights, for cauchy the nodes, and the poles."""
    torch.manual_seed(N + L)
    weights = torch.randn(sets, channels, L if "transpose" in op else N, dtype=dtype)
    poles = torch.complex(-torch.rand(channels, N).double() / L, torch.randn(channels, N).double()).to(dtype)
    if "cauchy" in op:
        return [weights, torch.complex(torch.ones(1, L), torch.randn(1, L)).to(dtype), poles]
    return [weights, poles]


PRECISIONS = [(torch.complex64, "f32", 2e-5), (torch.complex128, "f64", 1e-12)]


@pytest.mark.parametrize(("dtype", "kind", "tolerance"), PRECISIONS)
@pytest.mark.parametrize(
    ("op", "sizes", "options", "launches"),
    [
        ("vandermonde", (1, 2, 3, 70), (70, True, 0), ["pairs_{} grid 2 block 256"]),
        ("vandermonde", (2, 1, 5, 130), (130, False, 2), ["plain_{} grid 1 block 256"]),
        ("vandermonde", (1, 3, 0, 4), (4, True, 0), ["pairs_{} grid 3 block 256"]),
        ("vandermonde", (2, 1, 5, 0), (0, True, 0), []),
        ("vandermonde_transpose", (1, 2, 17, 70), (1,), ["complex_{} grid 4 block 256"]),
        ("vandermonde_transpose", (1, 1, 2, 0), (0,), ["complex_{} grid 1 block 256"]),
        (
            "vandermonde_transpose",
            (1, 1, 2, 16385),
            (0,),
            ["complex_{} grid 2 block 256", "sum_segments_{} grid 1 block 256"],
        ),
        ("cauchy", (1, 2, 3, 130), (True, 1), ["one_{} grid 4 block 128"]),
        ("cauchy", (5, 1, 3, 7), (False, 2), ["four_{} grid 2 block 128"]),
        ("cauchy_transpose", (1, 1, 3, 70), (1,), ["one_{} grid 1 block 128"]),
        (
            "cauchy_transpose",
            (2, 1, 3, 4097),
            (2,),
            ["four_{} grid 2 block 128", "sum_segments_{} grid 1 block 256"],
        ),
    ],
)
def test_ops_launch_their_kernels(
    driver: Driver,
    op: str,
    sizes: tuple[int, int, int, int],
    options: tuple[Any, ...],
    launches: list[str],
    dtype: torch.dtype,
    kind: str,
    tolerance: float,
) -> None:
    tensors = samples(op, *sizes, dtype=dtype)
    out, expected = driver.run(op, *tensors, *options), getattr(raw, op)(*tensors, *options)
    assert out.dtype == expected.dtype
    torch.testing.assert_close(
        out, expected, rtol=0, atol=tolerance * max(1.0, expected.norm().item()) if expected.numel() else 0
    )
    launched = driver.launches()
    stream = 0x1000 + tensors[0].get_device()
    for got, wanted in zip(launched, launches, strict=True):
        kernel = wanted.format(kind)
        kernel = kernel if kernel.startswith("sum") else f"{op}_{kernel}"
        assert got.startswith(f"{kernel} shared 0 stream {stream} ")


def test_real_weights_have_their_own_transpose(driver: Driver) -> None:
    g, x = samples("vandermonde_transpose", 1, 1, 3, 70)
    out = driver.run("vandermonde_transpose", g.real.contiguous(), x, 0)
    torch.testing.assert_close(out, raw.vandermonde_transpose(g.real.contiguous(), x, 0), rtol=0, atol=2e-5)
    assert driver.launches()[0].startswith("vandermonde_transpose_real_f32")


@pytest.mark.parametrize(("dtype", "kind"), [precision[:2] for precision in PRECISIONS])
@pytest.mark.parametrize(
    ("shape", "state_indices", "launch"),
    [
        ((1, 3, 32, 2, None), None, "one_{} grid 1 block 128"),
        ((9, 2, 5, 1, 2), None, "many_{} grid 2 block 128"),
        ((3, 5, 4, 1, 1), [2, -1, 0], "many_{} grid 1 block 128"),
        ((0, 5, 4, 1, 1), None, None),
    ],
)
def test_steps_launch_their_kernel(
    driver: Driver,
    shape: Any,
    state_indices: list[int] | None,
    launch: str | None,
    dtype: torch.dtype,
    kind: str,
) -> None:
    x = step_sample(*shape, state_indices=state_indices, slots=shape[0], dtype=dtype)
    state, after = x.state.clone(), torch.full_like(x.state, complex("nan"))
    to = after if state_indices is None else state
    y = driver.run("ssm_step", state, *x[1:], to)
    check_step(x, y, to)
    launched = driver.launches()
    assert len(launched) == (launch is not None)
    if launch is not None:
        assert launched[0].startswith(f"ssm_step_{launch.format(kind)} shared ")


@pytest.mark.parametrize(("dtype", "kind", "tolerance"), PRECISIONS)
@pytest.mark.parametrize(
    ("sizes", "forward", "backward"),
    [
        ((1, 1, 2, 3, 130), ["c1_r1_{} grid 4"], ["factors_c1_r1_{} grid 4", "moments_4_{} grid 2"]),
        ((2, 1, 1, 3, 5), ["c2_r1_{} grid 1"], ["factors_c2_r1_{} grid 1", "moments_6_{} grid 1"]),
        ((1, 2, 1, 3, 5), ["c1_r2_{} grid 1"], ["factors_c1_r2_{} grid 1", "moments_9_{} grid 1"]),
        ((3, 2, 2, 3, 513), ["any_{} grid 10"], ["factors_any_{} grid 10", "moments_6_{} grid 12"]),
        ((2, 0, 1, 3, 5), ["any_{} grid 1"], ["factors_any_{} grid 1", "moments_6_{} grid 1"]),
        ((0, 1, 1, 3, 5), [], ["factors_any_{} grid 1", "moments_6_{} grid 1"]),
        ((1, 1, 2, 3, 0), [], ["moments_4_{} grid 2"]),
    ],
)
def test_generating_function_and_its_gradients(
    driver: Driver,
    sizes: tuple[int, int, int, int, int],
    forward: list[str],
    backward: list[str],
    dtype: torch.dtype,
    kind: str,
    tolerance: float,
) -> None:
    channels, rank, heads, N, L = sizes
    torch.manual_seed(N + L)
    c, p, q = (torch.randn(k, heads, N, dtype=dtype) for k in (channels, rank, rank))
    b, w = torch.randn(heads, N, dtype=dtype), torch.complex(-1 - torch.rand(heads, N), torch.randn(heads, N))
    t, g = 2 * torch.randn(L, dtype=dtype.to_real()), torch.randn(channels, heads, L, dtype=dtype)
    tensors = [c, 0.3 * p, 0.3 * q, b, w.to(dtype), t]
    for op, arguments, launches in (
        ("dplr_generating", tensors, forward),
        ("dplr_generating_backward", [g, *tensors], [*backward, "gradients_{} grid 1"]),
    ):
        got = driver.run(f"{op}_cuda", *arguments)
        want = dispatch.implementation(op, "torch")(*arguments)
        torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance * 10)
        for line, wanted in zip(driver.launches(), launches, strict=True):
            assert line.startswith(f"dplr_generating_{wanted.format(kind)} block 128 shared 0 ")
    with pytest.raises(RuntimeError, match=r"expects c \(C, H, N\), p and q \(R, H, N\)"):
        driver.run("dplr_generating_cuda", c, p, torch.cat((q, b[None])), b, w.to(dtype), t)
    assert driver.launches() == []


def test_chunked_convolution_refuses_states_beyond_shared_memory(driver: Driver) -> None:
    u, taps = torch.ones(1, 1, 4), torch.ones(1, 1, 2)
    powers = torch.ones(1, 2, 512, dtype=torch.cfloat)
    arguments = (u, taps, torch.ones(1, 1, 1024, 2), torch.ones(1, 2, 1024), powers, None, None, None)
    with pytest.raises(RuntimeError, match="take more shared memory than this GPU has; use backend='torch'"):
        driver.run("ssm_conv_cuda", *arguments, 0, 48 << 10)
    with pytest.raises(RuntimeError, match="ssm_conv expects contiguous arguments of the shapes"):
        driver.run("ssm_conv_cuda", u, taps.double(), *arguments[2:], 0, 48 << 10)
    assert driver.launches() == []


FAMILIES = sorted(path.parent.name for path in (ROOT / "csrc").glob("*/cuda.cpp"))
CALLS = [
    call for family in FAMILIES for call in importlib.import_module(f"tests.ops.{family}.test_cuda").calls()
]
AT = r"block \(\d+,0,0\) thread \(\d+,0,0\): out-of-bounds (read|write) of \d+ bytes"


@pytest.mark.parametrize(("op", "arguments"), CALLS, ids=[f"{op}-{i}" for i, (op, _) in enumerate(CALLS)])
def test_each_buffer_is_as_long_as_its_kernels_need(driver: Driver, op: str, arguments: list[Any]) -> None:
    """The host's own arithmetic of sizes: enough for every access, and 8 elements fewer would be reported."""
    driver.run(op, *arguments, check=True)
    for allocation in range(driver.allocations):
        driver.shorten(allocation, 8)
        with pytest.raises(
            RuntimeError, match=rf"cannot launch (\w+): .* \1: {AT}, .* end of allocation {allocation}"
        ):
            driver.run(op, *arguments, check=True)
    driver.launches()


def test_bad_arguments_launch_nothing(driver: Driver) -> None:
    v, x = samples("vandermonde", 1, 2, 3, 5)
    with pytest.raises(RuntimeError, match="vandermonde expects contiguous complex v and x of one dtype"):
        driver.run("vandermonde", v.real, x, 5, True, 0)
    v, z, w = samples("cauchy", 1, 2, 3, 5)
    with pytest.raises(RuntimeError, match="cauchy expects an order in"):
        driver.run("cauchy", v, z, w, True, 0)
    x = step_sample(3, 2, 4, 1, 1)
    with pytest.raises(RuntimeError, match="a step without state_indices expects as many states as rows"):
        driver.run("ssm_step", x.state, None, x.u[:2], *x[3:], x.state)
    assert driver.record() == []


@pytest.mark.parametrize("device", [0, 1])
@pytest.mark.parametrize("shared_bytes", [4096, 48 << 10, (48 << 10) + 4, 100 << 10])
def test_more_than_48_kb_of_shared_memory_is_asked_for(
    driver: Driver, shared_bytes: int, device: int
) -> None:
    x = torch.arange(256.0)
    out = raw.reverse(x, 2, 128, shared_bytes, device)
    assert torch.equal(out, x.view(2, 128).flip(1).flatten())
    *before, launch = [line for line in driver.record() if "reverse" in line and "GetKernel" not in line]
    assert before == ([f"cuKernelSetAttribute reverse {shared_bytes}"] if shared_bytes > 48 << 10 else [])
    where = f"stream {0x1000 + device} device {device}"
    assert launch == f"cuLaunchKernel reverse grid 2 block 128 shared {shared_bytes} {where}"


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [
        ((2, 128, 1 << 20, 0), r"reverse: cuKernelSetAttribute: another error \(1\)"),
        ((2, 128, 512, 7), r"reverse: cuDeviceGet: another error \(101\)"),
        ((1 << 31, 128, 512, 0), "reverse: a grid of 2147483648 blocks is more than a device takes"),
    ],
)
def test_an_impossible_launch_names_the_kernel(
    driver: Driver, arguments: tuple[int, ...], cause: str
) -> None:
    with pytest.raises(RuntimeError, match=f"sequence_kernels: cannot launch {cause}"):
        raw.reverse(torch.ones(256), *arguments)
    assert driver.launches() == []


def test_a_kernel_that_the_fat_binary_lacks(driver: Driver) -> None:
    with pytest.raises(
        RuntimeError, match=r"cannot launch absent: cuLibraryGetKernel: another error \(500\)"
    ):
        raw.absent(torch.ones(1))


@pytest.mark.parametrize(
    ("error", "text"),
    [(209, "no kernel image is available for execution"), (700, "an illegal memory access was encountered")],
)
def test_a_failed_launch_names_kernel_and_cause_and_the_next_one_works(
    driver: Driver, error: int, text: str
) -> None:
    arguments = (*samples("vandermonde", 1, 1, 3, 5), 5, True, 0)
    driver.fail("cuLaunchKernel", error)
    with pytest.raises(
        RuntimeError, match=rf"launch vandermonde_pairs_f32: cuLaunchKernel: {text}.* \({error}\)"
    ):
        driver.run("vandermonde", *arguments)
    driver.fail("", 0)
    assert driver.run("vandermonde", *arguments).isfinite().all()


def test_without_a_driver_the_first_launch_says_so(driver: Driver) -> None:
    assert re.search(
        r"cannot launch vandermonde_pairs_f32: there is no NVIDIA driver: libcuda.so.1: ",
        driver.without_driver,
    )


def test_threads_load_each_fat_binary_once(driver: Driver) -> None:
    v, x = samples("vandermonde", 1, 1, 3, 5)
    expected = raw.vandermonde(v, x, 5, True, 0)
    with ThreadPoolExecutor(8) as pool:
        results = pool.map(lambda _: driver.run("vandermonde", v, x, 5, True, 0), range(32))
        for result in results:
            torch.testing.assert_close(result, expected)
    assert len(driver.launches()) == 32
    loads = [line for line in driver.whole_record if not line.startswith(("cuLaunchKernel", "cuKernelSet"))]
    assert loads[0] == "cuInit"
    assert any(line.startswith("cuLibraryLoadData") for line in loads)
    assert len(loads) == len(set(loads))


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_process_is_told_to_spawn(driver: Driver) -> None:
    arguments = (*samples("vandermonde", 1, 1, 3, 5), 5, True, 0)
    driver.run("vandermonde", *arguments)
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        try:
            driver.run("vandermonde", *arguments)
        except RuntimeError as error:
            os.write(write, str(error).encode())
        os._exit(0)
    os.close(write)
    os.waitpid(child, 0)
    with os.fdopen(read) as said:
        assert "CUDA does not survive a fork: start processes by" in said.read()


@pytest.mark.parametrize(
    "op",
    ["vandermonde", "vandermonde_transpose", "cauchy", "ssm_step", "ssm_step_"],
)
def test_the_python_side_is_the_cpu_s(op: str) -> None:
    assert dispatch.implementation(op, "cuda") is dispatch.implementation(op, "cpu")
    assert "cuda: torch" in ops.explain(op, "cuda")
    assert "has no CUDA; install a torch with CUDA" in ops.explain(op, "cuda")


def test_the_architectures_are_those_of_the_file() -> None:
    lines = (ROOT / "csrc" / "architectures.txt").read_text().splitlines()
    newest = lines[-1].split()[1:]
    for fatbin in build().fatbins:
        compiled = [line for line in fatbin.read_text().splitlines() if line.startswith("arch=")]
        assert compiled[:-1] == [f"arch=compute_{a},code=sm_{a}" for a in newest]
        assert compiled[-1] == f"arch=compute_{newest[-1]},code=compute_{newest[-1]}"


@pytest.mark.parametrize(
    ("version", "home", "said"),
    [
        (
            "12.9",
            "here",
            r"=12.9 needs a compiler of CUDA 12.9, and found nvcc 13.0.0 of CUDA 13.0.*: set CUDA_HOME",
        ),
        ("14.9", "empty", r"pip install 'nvidia-cuda-nvcc==14.9"),
        ("yes", "here", r"SEQUENCE_KERNELS_CUDA must be a version of CUDA, for example 13.0, got 'yes'"),
    ],
)
def test_setup_says_what_is_wrong(tmp_path: Path, version: str, home: str, said: str) -> None:
    homes = {"here": ROOT / "tests" / "cuda_driver", "empty": tmp_path}
    environment = {**os.environ, "SEQUENCE_KERNELS_CUDA": version, "CUDA_HOME": str(homes[home])}
    command = [sys.executable, "setup.py", "--version"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert re.search(said, done.stderr)


def test_the_library_needs_no_newer_glibc_than_the_wheel_allows() -> None:
    versions = re.findall(rb"GLIBC_(\d+)\.(\d+)", build().library.read_bytes())
    assert max((int(major), int(minor)) for major, minor in versions) <= (2, 28)


@pytest.mark.skipif(nvcc.skip_reason() is not None, reason=str(nvcc.skip_reason()))
def test_nvcc_makes_the_library(tmp_path: Path) -> None:
    """With the real compiler, for one architecture, of kernels that are compiled fast; tests/aot compiles all."""
    version = nvcc.version().rpartition(".")[0]
    source_tree(tmp_path)
    for part in (tmp_path / "csrc").iterdir():
        if part.is_dir() and part.name not in ("common", "runtime", "sample", "ssm_step"):
            shutil.rmtree(part)
    (tmp_path / "csrc" / "architectures.txt").write_text(f"{version} 90\n")
    library = setup(tmp_path, version, None)
    assert library.read_bytes().count(b"\x50\xed\x55\xba") == 3  # a fat binary's first word
