"""What emulator and PTX compute: warp collectives, atomics, vector and half types, tensor-core tiles."""

from __future__ import annotations

import pytest
import torch

from tests import ptx

from . import Kernels, skip_reason

pytestmark = pytest.mark.skipif(skip_reason() is not None, reason=str(skip_reason()))


NVCC = pytest.mark.skipif(ptx.skip_reason() is not None, reason=str(ptx.skip_reason()))


@pytest.fixture(scope="module", params=[Kernels, pytest.param(ptx.PtxKernels, marks=NVCC)])
def kernels(request: pytest.FixtureRequest) -> Kernels:
    return request.param("tests/cuda_emulator/samples.cu", check=True)


def skip_ptx(kernels: Kernels, lacking: str) -> None:
    if isinstance(kernels, ptx.PtxKernels):
        pytest.skip(f"the interpreter of PTX knows no {lacking}, which no kernel of csrc/ has")


@pytest.mark.parametrize("width", [8, 16, 32])
def test_shuffles(kernels: Kernels, width: int) -> None:
    x, y = torch.randn(64), torch.empty(64, 4)
    kernels.run("shuffles", {"x": x, "y": y, "threads": 64, "width": width}, order="random")
    lane = torch.arange(64)
    first = lane // width * width

    def taken(source: torch.Tensor, earlier: bool = False) -> torch.Tensor:
        outside = (source < first) & (not earlier) | (source >= first + width)
        return x[torch.where(outside, lane, source)]

    columns = (x[first + 5 % width], taken(lane - 3), taken(lane + 3), taken(lane ^ 9, earlier=True))
    torch.testing.assert_close(y, torch.stack(columns, -1), rtol=0, atol=0)


def test_halves_of_a_warp_part_and_meet(kernels: Kernels) -> None:
    skip_ptx(kernels, "votes")
    y = torch.empty(32)
    kernels.run("half_warps", {"x": y, "y": y, "threads": 32, "width": 0}, order="skewed", seed=2)
    low = torch.arange(32.0)
    for _ in range(3):
        low = low + low.view(16, 2).flip(1).reshape(32)
    high = torch.arange(32.0)
    for _ in range(7):
        high = high + high.view(16, 2).flip(1).reshape(32)
    torch.testing.assert_close(y, torch.cat((low[:16], high[16:])) + 3000, rtol=0, atol=0)


def test_histogram_with_atomics(kernels: Kernels) -> None:
    skip_ptx(kernels, "atomics")
    x, y = torch.randint(0, 16, (1000,), dtype=torch.int32), torch.zeros(16, dtype=torch.int32)
    kernels.run("histogram", {"x": x, "y": y, "n": 1000}, order="random", seed=3)
    assert torch.equal(y, torch.bincount(x, minlength=16).int())


def test_vectors(kernels: Kernels) -> None:
    x, y = torch.randn(32, 4), torch.empty(32, 4)
    kernels.run("vectors", {"x": x, "y": y, "threads": 32, "width": 0})
    torch.testing.assert_close(y, torch.cat((x[:, :3], x[:, 3:] + x[:, :1]), 1), rtol=0, atol=0)


def test_half_types_round_as_torch_does(kernels: Kernels) -> None:
    x = torch.cat((torch.randn(60), torch.tensor([1.00390625, 65519.0, 65520.0, 1e-7])))
    y = torch.empty(64, 2)
    kernels.run("halves", {"x": x, "y": y, "threads": 64, "width": 0})
    torch.testing.assert_close(y, torch.stack((x.bfloat16().float(), x.half().float()), -1), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("kernel", "depth", "dtype"),
    [("tile_tf32", 8, torch.float32), ("tile_bf16", 16, torch.bfloat16)],
)
def test_tensor_core_tiles(kernels: Kernels, kernel: str, depth: int, dtype: torch.dtype) -> None:
    a, b, c = torch.randn(16, depth).to(dtype), torch.randn(depth, 8).to(dtype), torch.empty(16, 8)
    if dtype == torch.float32:  # exact in tf32, so that only the layout matters
        a, b = a.bfloat16().float(), b.bfloat16().float()
    kernels.run(kernel, {"a": a, "b": b, "c": c})
    torch.testing.assert_close(c, (a.double() @ b.double()).float())


def owned_by_ptx(kind: str) -> tuple[list[list[tuple[int, int]]], ...]:
    """Element (row, column) of each lane's a_i, b_i and c_i, in the words of the PTX ISA.

    "Matrix fragments for mma.m16n8k8" (.tf32) and "for mma.m16n8k16" (.bf16):
    groupID = %laneid >> 2, threadID_in_group = %laneid % 4.
    """
    a, b, c = [], [], []
    for lane in range(32):
        group, member = lane >> 2, lane % 4
        if kind == "tf32":
            a.append(
                [
                    (group if i in (0, 2) else group + 8, member if i in (0, 1) else member + 4)
                    for i in range(4)
                ]
            )
            b.append([(member if i == 0 else member + 4, group) for i in range(2)])
        else:
            rows = [group if 0 <= i < 2 or 4 <= i < 6 else group + 8 for i in range(8)]
            columns = [member * 2 + (i & 1) if i < 4 else member * 2 + (i & 1) + 8 for i in range(8)]
            a.append(list(zip(rows, columns, strict=True)))
            b.append([(member * 2 + (i & 1) if i < 2 else member * 2 + (i & 1) + 8, group) for i in range(4)])
        c.append([(group if i < 2 else group + 8, member * 2 + (i & 1)) for i in range(4)])
    return a, b, c


@pytest.mark.parametrize(
    ("kind", "depth", "dtype"),
    [("tf32", 8, torch.float32), ("bf16", 16, torch.bfloat16)],
)
def test_fragments_are_owned_as_the_ptx_isa_says(
    kernels: Kernels, kind: str, depth: int, dtype: torch.dtype
) -> None:
    a, b = torch.randint(-8, 9, (16, depth)).to(dtype), torch.randint(-8, 9, (depth, 8)).to(dtype)  # exact
    owned_a, owned_b, owned_c = (torch.tensor(owned) for owned in owned_by_ptx(kind))
    registers = torch.empty(32, 4)
    fragments = (a[owned_a[..., 0], owned_a[..., 1]], b[owned_b[..., 0], owned_b[..., 1]])
    kernels.run(f"registers_{kind}", {"a": fragments[0], "b": fragments[1], "c": registers})
    assert torch.equal(registers, (a.float() @ b.float())[owned_c[..., 0], owned_c[..., 1]])


def test_params_must_match_the_struct(kernels: Kernels) -> None:
    with pytest.raises(TypeError, match="vectors takes"):
        kernels.run("vectors", {"x": torch.empty(4), "y": torch.empty(4), "threads": 1})
    with pytest.raises(ValueError, match="y must be contiguous"):
        kernels.run("vectors", {"x": torch.empty(4), "y": torch.empty(4, 2)[:, 0], "threads": 1, "width": 0})
