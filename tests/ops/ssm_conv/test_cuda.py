"""The chunked convolution on the stand-in driver, host code and CUDA kernels, against its definition in plain torch."""

from __future__ import annotations

import ctypes
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from sequence_kernels.ops.ssm_conv import proof, reference
from tests.cuda_driver import ORDERS, driver, skip_reason
from tests.cuda_emulator.build import ROOT, compiler

pytestmark = [
    pytest.mark.skipif(skip_reason() is not None, reason=str(skip_reason())),
    pytest.mark.checks("oracle", "emulator", of="ssm_conv/cuda"),
]

F64 = torch.float64
SHARED_BYTES = 99 << 10
#: What computes products, the sequences' dtype, the precision that asks for it, and the error allowed: outputs and du
#: in that dtype, the others. The rounding of a matrix to 11 or 8 bits is the same in every chunk, so that sums over
#: chunks show it in full.
MATHS = [
    ("f64", torch.float64, 1, 1e-13, 1e-13),
    ("f32", torch.float32, 0, 1e-6, 1e-6),
    ("f32", torch.bfloat16, 0, 3e-3, 1e-6),
    ("tf32x3", torch.float32, 1, 1e-6, 1e-6),
    ("tf32", torch.float32, 2, 1e-3, 2e-3),
    ("tf32", torch.float16, 1, 1e-3, 2e-3),
    ("bf16", torch.bfloat16, 1, 5e-3, 5e-3),
]
CASES = [*proof.SIZES[:7], proof.Sizes(1, 1, 1, 0, 4, 4, False, False)]


class Arguments(NamedTuple):
    """Those of ``ops.ssm_conv``."""

    u: Tensor
    taps: Tensor
    e_out: Tensor
    e_in: Tensor
    a_powers: Tensor
    d: Tensor | None = None
    initial_state: Tensor | None = None
    lengths: Tensor | None = None


class Device(NamedTuple):
    """Both passes on a device that has so much shared memory for a block."""

    precision: int
    shared_bytes: int = SHARED_BYTES
    check: bool = False
    order: str = "forward"
    seed: int = 0

    def _run(self, op: str, *arguments: Any) -> Any:
        options = {"check": self.check, "order": self.order, "seed": self.seed}
        return driver().run(op, *arguments, self.precision, self.shared_bytes, **options)

    def forward(self, a: Arguments) -> tuple[Tensor, ...]:
        return tuple(self._run("ssm_conv_cuda", *a))

    def backward(self, g: Tensor, g_final: Tensor, a: Arguments) -> tuple[Tensor, ...]:
        return tuple(self._run("ssm_conv_backward_cuda", g, g_final, *a))

    def kernels(self) -> list[str]:
        """Those launched since the last time, without the op's name and the kind of arithmetic."""
        names = (line.split()[0] for line in driver().launches())
        return [name.removeprefix("ssm_conv_").rpartition("_")[0] for name in names]


@pytest.fixture(autouse=True)
def no_launches_before() -> None:
    driver().launches()


def arguments(case: tuple[Any, ...], dtype: torch.dtype) -> Arguments:
    """A random stable model, not one that comes from taps: its matrices are independent of each other."""
    return Arguments(*proof.system(proof.Sizes(*case), dtype))


def exact(*tensors: Tensor | None) -> list[Any]:
    return [t if t is None or t.dtype == torch.int64 or t.is_complex() else t.to(F64) for t in tensors]


def compare(got: tuple[Tensor, ...], want: tuple[Tensor, ...], rounded: float, others: float) -> None:
    """Errors relative to the norm; to that of sums of as many normal numbers, where a few such sums cancel."""
    floor = max(1.0, want[0].numel() ** 0.5)
    for i, (x, y) in enumerate(zip(got, want, strict=True)):
        assert x.shape == y.shape
        assert x.to(y.dtype).sub(y).norm() <= (others if i else rounded) * max(float(y.norm()), floor), i


def check(device: Device, case: tuple[Any, ...], dtype: torch.dtype, rounded: float, others: float) -> None:
    a = arguments(case, dtype)
    compare(device.forward(a), reference.ssm_conv(*exact(*a)), rounded, others)
    g, g_final = proof.gradients(proof.Sizes(*case), a.u.dtype)
    got = device.backward(g, g_final, a)
    compare(got, reference.ssm_conv_backward(*exact(g, g_final, *a)), rounded, others)


def in_segments(dense: bool) -> list[Any]:
    """The arguments of ssm_conv for one sequence, so long that it is cut in segments."""
    T, S, L = 4, 6, 150
    torch.manual_seed(L)
    a = torch.randn(1, S, S) / S if dense else 0.5 * torch.randn(1, S // 2, dtype=torch.cfloat)
    powers = [a]
    while len(powers) < T.bit_length():
        powers.append(powers[-1] @ powers[-1] if dense else powers[-1] * powers[-1])
    taps, e_out, e_in = torch.randn(1, 1, T), torch.randn(1, 1, S, T), torch.randn(1, T, S)
    return [torch.randn(1, 1, L), taps, e_out, e_in, torch.stack(powers, 1), None, torch.randn(1, 1, S), None]


def calls() -> Iterator[tuple[str, list[Any]]]:
    """Native ops and arguments, so that each launch occurs."""
    gradients = [torch.randn(1, 1, 1, 150), torch.randn(1, 1, 6)]
    for dense, forward, backward in (
        (False, 99, 99),
        (True, 99, 99),
        (False, 8, 10),
    ):  # the last: matrices apart
        arguments = in_segments(dense)
        yield "ssm_conv_cuda", [*arguments, 0, forward << 10]
        yield "ssm_conv_backward_cuda", [*gradients, *arguments, 0, backward << 10]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize(("math", "dtype", "precision", "rounded", "others"), MATHS)
def test_both_passes(
    math: str, dtype: torch.dtype, precision: int, rounded: float, others: float, case: tuple[Any, ...]
) -> None:
    check(Device(precision), case, dtype, rounded, others)
    launched = [line.split()[0] for line in driver().launches()]
    products = [name for name in launched if re.match(r"ssm_conv_(for|back)ward_", name)]
    segments, forward_segments = -(-case[3] // case[4]) > 8, case in (CASES[2], CASES[5])
    assert len(products) == 2 + forward_segments + 2 * segments
    assert all(name.endswith(f"ward_{math}") for name in products)


#: Tiles of more than four elements a thread; then of exactly four, more states than the warps of a block take at once,
#: and whole chunks that do not fill the last of three segments, behind which a final state's gradient waits; or of ten.
BEYOND = [
    (11, 2, 1, 200, 64, 64, True, True),
    (11, 1, 1, 100, 32, 48, False, True),
    (11, 1, 1, 40, 16, 32, True, True),
    (11, 1, 1, 20, 8, 144, False, True),
    (1, 1, 1, 76, 4, 4, False, True),
    (1, 1, 1, 300, 4, 6, False, True),
]


@pytest.mark.parametrize("case", BEYOND, ids=str)
@pytest.mark.parametrize(("math", "dtype", "precision", "rounded", "others"), MATHS)
def test_sizes_beyond_unrolled_loops(
    math: str, dtype: torch.dtype, precision: int, rounded: float, others: float, case: tuple[Any, ...]
) -> None:
    check(Device(precision), case, dtype, rounded, others)


#: More chunks than a backward pass keeps the states of and more rows than a block has; whole chunks; less than a
#: chunk; one stage beyond those that are loaded ahead; at last segments of an odd number of chunks, which the forward
#: pass alone goes through like this.
PIPELINED = [
    (17, 1, 1, 600, 32, 64, False, True),
    (16, 1, 2, 192, 32, 36, False, False),
    (2, 1, 1, 8, 32, 2, False, False),
    (9, 1, 1, 160, 32, 20, False, True),
    (1, 1, 1, 1064, 32, 6, False, True),
]


@pytest.mark.tensor_cores
@pytest.mark.checks("sanitizers", of="ssm_conv/cuda")
@pytest.mark.parametrize("wide", [True, False], ids=["", "powers in float32"])
@pytest.mark.parametrize("case", PIPELINED, ids=str)
def test_pipelined_for_memorys_rate(case: tuple[Any, ...], wide: bool) -> None:
    a = arguments(case, torch.bfloat16)
    if not wide:
        a = a._replace(a_powers=a.a_powers.to(torch.cfloat), d=None, initial_state=None)
    device = Device(1, check=True, order="random", seed=1)
    compare(device.forward(a), reference.ssm_conv(*exact(*a)), 5e-3, 5e-3)
    assert "pipelined" in device.kernels()
    g, g_final = proof.gradients(proof.Sizes(*case), a.u.dtype)
    compare(device.backward(g, g_final, a), reference.ssm_conv_backward(*exact(g, g_final, *a)), 5e-3, 5e-3)
    assert ({"pipelined_states", "pipelined_backward"} <= {*device.kernels()}) == (case != PIPELINED[-1])


@pytest.mark.tensor_cores
@pytest.mark.parametrize("sizes", [range(2, 34, 2), range(34, 66, 2)], ids=["", "many"])
def test_pipelined_states_that_end_at_each_of_a_lane(sizes: range) -> None:
    """Rows that end at the end of all beside others, one of a lane's two rows or both; a block not full of rows."""
    for size in sizes:
        case = (9 + size % 8, 1, 1, 64, 32, size, False, True)
        a, device = arguments(case, torch.bfloat16), Device(1, check=True, order="random", seed=1)
        lengths = torch.tensor([64, 64, 33, 31, 64, 0, 32, 50, 64, 7, 64, 64, 40, 32, 64])[: len(a.u)]
        a = a._replace(lengths=lengths if size % 16 < 8 else lengths.flip(0))
        compare(device.forward(a), reference.ssm_conv(*exact(*a)), 5e-3, 5e-3)
        g, g_final = proof.gradients(proof.Sizes(*case), a.u.dtype)
        want = reference.ssm_conv_backward(*exact(g, g_final, *a))
        compare(device.backward(g, g_final, a), want, 5e-3, 5e-3)
        assert {"pipelined", "pipelined_states", "pipelined_backward"} <= {*device.kernels()}


def rounded_powers(heads: int) -> Tensor:
    """Of A, diagonal, with 64 states and chunks of 32: the last one's parts are half a last place off float32."""
    parts = 0.5 + (torch.arange(64, dtype=F64).unflatten(0, (32, 2)) * 12345 + 0.49) * 2.0**-24
    signs = torch.tensor([(1, 1), (1, -1), (-1, 1), (-1, -1)]).repeat(8, 1)
    a_chunk = torch.view_as_complex(parts * signs)
    return torch.stack([a_chunk ** (2.0**bit / 32) for bit in range(5)] + [a_chunk]).repeat(heads, 1, 1)


@pytest.mark.tensor_cores
def test_pipelined_states_keep_the_digits_of_powers() -> None:
    """Sequences of zeros, so that nothing is rounded to 16 bits, over 30 chunks: a part without its last digits shows
    in the mean over eight rows and heads."""
    case = (16, 1, 8, 992, 32, 64, False, False)
    a = arguments(case, torch.bfloat16)
    lengths = torch.tensor(
        [961] * 8 + [962] * 8
    )  # eight rows' gradients come to power 0, the others' to power 1
    a = a._replace(u=torch.zeros_like(a.u), a_powers=rounded_powers(8), d=None, lengths=lengths)
    g, g_final, device = torch.zeros(16, 1, 8, 992, dtype=torch.bfloat16), a.initial_state, Device(1)
    assert g_final is not None
    (_, final), (_, want) = device.forward(a), reference.ssm_conv(*exact(*a))
    got = device.backward(g, g_final, a)
    wanted = reference.ssm_conv_backward(*exact(g, g_final, *a))
    assert {"pipelined", "pipelined_states", "pipelined_backward"} <= {*device.kernels()}
    by_power = [tuple(x[4][:, :2].transpose(0, 1) for x in (got, wanted))]
    for x, y in [tuple(map(by_halves, pair)) for pair in ((final, want), (got[6], wanted[6]))] + by_power:
        assert (((x * y.conj()).sum(1) / y.abs().square().sum(1) - 1).abs() < 2.2e-7).all()


@pytest.mark.tensor_cores
def test_pipelined_states_that_cancel() -> None:
    """The states that the backward pass computes again: an element takes off what 15 chunks leave of the initial state
    by powers in float32, so that their last digits are all that is left."""
    a = arguments((16, 1, 16, 512, 32, 64, False, False), torch.bfloat16)
    pulse = torch.linspace(0.5, 1.5, 256).unflatten(0, (16, 16)).to(torch.bfloat16)
    powers = rounded_powers(16)
    u, g = torch.zeros_like(a.u), torch.zeros(16, 1, 16, 512, dtype=torch.bfloat16)
    u[..., 14 * 32], g[..., 15 * 32] = pulse, 1
    e_in = a.e_in[:1].to(torch.bfloat16).float().repeat(16, 1, 1)
    rounded = powers[0, 5].to(torch.cfloat).to(powers.dtype)
    kept = -torch.view_as_complex(e_in[0, 0].to(F64).unflatten(0, (-1, 2))) / rounded**15
    initial = torch.view_as_real(pulse.to(F64).unsqueeze(-1) * kept).flatten(-2).float()
    a = a._replace(u=u, e_in=e_in, a_powers=powers, d=None, initial_state=initial)
    got = Device(1).backward(g, torch.zeros_like(initial), a)[2]
    want = reference.ssm_conv_backward(*exact(g, torch.zeros_like(initial), *a))[2]
    x, y = (torch.view_as_complex(d[0, :, :, 0].to(F64).sum(0).unflatten(0, (-1, 2))) for d in (got, want))
    assert ((x - y).abs() < 0.2 * y.abs()).all()  # float32 rounds each step by as much as its last digits are


def by_halves(states: Tensor) -> Tensor:
    """(B, H, S) to complex (2, B / 2 * H, S / 2)."""
    return torch.view_as_complex(states.to(F64).unflatten(-1, (-1, 2)).unflatten(0, (2, -1)).flatten(1, 2))


@pytest.mark.tensor_cores
@pytest.mark.thorough
def test_pipelined_over_many_chunks() -> None:
    """Three times as many as a backward pass keeps the states of: that takes as many sequences as fill a GPU."""
    case = (70, 1, 17, 1096, 32, 4, False, True)
    check(Device(1), case, torch.bfloat16, 5e-3, 5e-3)
    assert any("pipelined_backward_bf16 grid 85 " in line for line in driver().launches())


@pytest.mark.tensor_cores
@pytest.mark.parametrize("way", ["length", "begin", "step", "row", "shared memory"])
def test_what_cannot_be_moved_by_16_bytes_takes_the_other_kernel(way: str) -> None:
    a = arguments((2, 1, 1, 63 if way == "length" else 64, 32, 4, False, False), torch.bfloat16)
    u = torch.zeros(2, 1, 160, dtype=torch.bfloat16)
    if way == "begin":
        a = a._replace(u=u[..., 1:65].copy_(a.u))
    if way == "step":
        a = a._replace(u=u[..., :128:2].copy_(a.u))
    if way == "row":
        a = a._replace(u=u.flatten()[:280].as_strided((2, 1, 64), (65, 65, 1)).copy_(a.u))
    device = Device(1, shared_bytes=17 << 10 if way == "shared memory" else SHARED_BYTES)
    compare(device.forward(a), reference.ssm_conv(*exact(*a)), 5e-3, 5e-3)
    g, g_final = proof.gradients(proof.Sizes(2, 1, 1, a.u.shape[-1], 32, 4, False, False), a.u.dtype)
    want = reference.ssm_conv_backward(*exact(g, g_final, *a))
    compare(device.backward(g, g_final, a)[:1], want[:1], 5e-3, 5e-3)
    assert not any("pipelined" in kernel for kernel in device.kernels())


@pytest.mark.parametrize("dense", [True, False], ids=["dense", "diagonal"])
def test_powers_in_float32(dense: bool) -> None:
    """Where long sequences are cut in segments and end inside of chunks."""
    case = (3, 2, 1, 150, 8, 20, dense, True)
    a = arguments(case, torch.float32)
    a = a._replace(a_powers=a.a_powers.to(torch.float32 if dense else torch.cfloat))
    compare(Device(0).forward(a), reference.ssm_conv(*exact(*a)), 1e-6, 1e-6)
    g, g_final = proof.gradients(proof.Sizes(*case), a.u.dtype)
    want = reference.ssm_conv_backward(*exact(g, g_final, *a))
    compare(Device(0).backward(g, g_final, a), want, 1e-6, 1e-6)


@pytest.mark.thorough
@pytest.mark.parametrize("dense", [True, False], ids=["dense", "diagonal"])
@pytest.mark.parametrize(("math", "dtype", "precision", "rounded", "others"), MATHS[1:])
def test_powers_in_float32_of_many_states(
    math: str, dtype: torch.dtype, precision: int, rounded: float, others: float, dense: bool
) -> None:
    case = (3, 1, 1, 170, 16, 47 if dense else 46, dense, True)
    a = arguments(case, dtype)
    a = a._replace(a_powers=a.a_powers.to(torch.float32 if dense else torch.cfloat))
    g, g_final = proof.gradients(proof.Sizes(*case), dtype)
    want = reference.ssm_conv(*exact(*a)), reference.ssm_conv_backward(*exact(g, g_final, *a))
    for device in (Device(precision), with_matrices_in_global_memory(case, dtype, precision)):
        compare(device.forward(a), want[0], rounded, others)
        compare(device.backward(g, g_final, a), want[1], rounded, others)


#: As MATHS, and every other type that a product's sequences may have.
EVERY_TYPE = [*MATHS, ("f32", torch.float16, 0, 3e-3, 1e-5)]
#: Tiles of more than four elements a thread, in all rows of a block and all chunks of a segment; then many segments.
LOOPS = [
    (16, 2, 1, 550, 64, 64, True, True),
    (16, 1, 1, 550, 64, 64, False, True),
    (16, 1, 1, 1060, 128, 4, False, True),
    (17, 8, 1, 140, 16, 20, True, False),
    (1, 3, 1, 70, 32, 48, False, True),
    (16, 7, 1, 140, 16, 48, True, False),
    (1, 1, 1, 2600, 4, 7, True, True),
    (1, 1, 1, 2600, 4, 6, False, True),
]


@pytest.mark.thorough
@pytest.mark.parametrize("case", LOOPS, ids=str)
@pytest.mark.parametrize(("math", "dtype", "precision", "rounded", "others"), EVERY_TYPE)
def test_every_way_through_unrolled_loops(
    math: str, dtype: torch.dtype, precision: int, rounded: float, others: float, case: tuple[Any, ...]
) -> None:
    """On devices of less and less shared memory, where matrices stay in global memory, until one is too small."""
    errors = 3 * rounded, 3 * others  # sums are longer than elsewhere
    check(Device(precision, 227 << 10), case, dtype, *errors)
    with pytest.raises(RuntimeError, match="more shared memory than this GPU has"):
        check_smaller_and_smaller(precision, case, dtype, *errors)


def check_smaller_and_smaller(precision: int, *arguments: Any) -> None:
    for kilobytes in range(60, 0, -6):
        check(Device(precision, kilobytes << 10), *arguments)


def with_matrices_in_global_memory(case: tuple[Any, ...], dtype: torch.dtype, precision: int) -> Device:
    """The device with the least shared memory that the kernels can do with."""
    a = arguments(case, dtype)
    gradients = proof.gradients(proof.Sizes(*case), a.u.dtype)
    for kilobytes in range(4, 99):
        device = Device(precision, kilobytes << 10)
        try:
            device.backward(*gradients, a)
        except RuntimeError as error:
            if "more shared memory than this GPU has" not in str(error):
                raise
        else:
            return device
        finally:
            device.kernels()
    raise AssertionError("no device is large enough")


#: The last: matrices so large that gradients of states, of two channels, need them there too.
IN_GLOBAL_MEMORY = [*CASES[:4], (9, 2, 1, 64, 4, 64, True, True)]


@pytest.mark.parametrize("case", IN_GLOBAL_MEMORY, ids=str)
@pytest.mark.parametrize(("math", "dtype", "precision", "rounded", "others"), MATHS[:3])
def test_matrices_in_global_memory(
    math: str, dtype: torch.dtype, precision: int, rounded: float, others: float, case: tuple[Any, ...]
) -> None:
    device = with_matrices_in_global_memory(case, dtype, precision)
    check(device, case, dtype, rounded, others)
    assert "backward_large" in device.kernels()
    forward = Device(precision, device.shared_bytes * 2 // 3)
    compare(
        forward.forward(arguments(case, dtype)),
        reference.ssm_conv(*exact(*arguments(case, dtype))),
        rounded,
        others,
    )
    assert "forward_large" in forward.kernels()


def test_more_gradients_than_a_block_has_accumulators_for() -> None:
    check(Device(0), (1, 1, 1, 70, 32, 64, True, False), torch.float32, 2e-6, 2e-6)
    assert any("ssm_conv_backward_f32 grid 2 " in line for line in driver().launches())


@pytest.mark.thorough
def test_a_block_goes_through_several_groups_of_rows() -> None:
    check(Device(0), (33, 1, 264, 4, 4, 4, False, False), torch.float32, 2e-6, 2e-6)
    assert any(
        "ssm_conv_backward_f32 grid 528 " in line for line in driver().launches()
    )  # 3 groups in 2 parts


def test_tails_that_are_not_known() -> None:
    """a_chunk alone: rows that end inside a chunk have no final state, and its gradient counts for nothing."""
    case = (3, 1, 1, 21, 4, 4, False, False)
    whole = arguments(case, F64)
    a = whole._replace(a_powers=whole.a_powers[:, -1:].contiguous(), lengths=torch.tensor([8, 21, 3]))
    y, final = Device(1).forward(a)
    compare((y, final[:1]), (reference.ssm_conv(*whole)[0], reference.ssm_conv(*a)[1][:1]), 1e-13, 1e-13)
    assert final[1:].isnan().all()
    g, g_final = proof.gradients(proof.Sizes(*case), a.u.dtype)
    compare(
        Device(1).backward(g, g_final, a),
        reference.ssm_conv_backward(g, g_final, *a),
        1e-13,
        1e-13,
    )


@pytest.mark.parametrize("length", [0, 21])
def test_rows_that_end_nowhere(monkeypatch: pytest.MonkeyPatch, length: int) -> None:
    """A length that is not one of 0 .. L: NaN for that row's state, whose gradient counts for nothing."""
    monkeypatch.setattr(reference, "_check_lengths", lambda *_: None)
    lengths = torch.tensor([-5, length, 0, length + 1, length // 2, 2**62, -(2**63)])
    case = (len(lengths), 1, 1, length, 4, 4, False, False)
    a = arguments(case, F64)._replace(lengths=lengths)
    (y, final), (want_y, want) = Device(1, check=True).forward(a), reference.ssm_conv(*a)
    wrong = (lengths < 0) | (lengths > length)
    assert (final.isnan().all((1, 2)) == wrong).all()
    assert (want.isnan().all((1, 2)) == wrong).all()
    compare((y, final[~wrong]), (want_y, want[~wrong]), 1e-13, 1e-13)
    g, g_final = proof.gradients(proof.Sizes(*case), a.u.dtype)
    got = Device(1, check=True).backward(g, g_final, a)
    compare(got, reference.ssm_conv_backward(g, g_final, *a), 1e-13, 1e-13)


@pytest.mark.tensor_cores
@pytest.mark.parametrize("precision", [0, 1])  # apart, as memory may still hold the other's results
def test_float32_keeps_its_digits_over_long_sequences(precision: int) -> None:
    """Slow modes, a_chunk in double: 3 x tf32 and the CUDA cores stay within float32 for thousands of steps."""
    generator = torch.Generator().manual_seed(0)
    heads, size, chunk, length = 1, 8, 16, 1 << 14
    rate = torch.logspace(-4, -3, size // 2, dtype=F64)
    pole = torch.exp(torch.complex(-0.5 * rate, 3 * rate))[None]
    c = torch.randn(heads, size // 2, dtype=torch.complex128, generator=generator)
    steps = torch.arange(chunk + 1)
    power = pole.unsqueeze(-1) ** steps  # (H, N, T + 1)
    taps = (c.unsqueeze(-1) * rate[:, None] * power[..., :chunk]).sum(1).real[None]
    row = (c.unsqueeze(-1) * power[..., 1:]).unsqueeze(2)  # real part of x c: rows for Re x and Im x
    e_out = torch.cat((row.real, -row.imag), 2).flatten(1, 2)[None]
    e_in = torch.view_as_real((rate[:, None] * power[..., :chunk].flip(-1)).transpose(1, 2)).flatten(-2)
    u = torch.randn(1, heads, length, generator=generator)
    a = Arguments(u, taps.float(), e_out.float(), e_in.float().contiguous(), (pole**chunk).unsqueeze(1))
    for x, y in zip(Device(precision).forward(a), reference.ssm_conv(*exact(*a)), strict=True):
        assert (x - y).norm() < 1e-6 * y.norm()


def test_sequences_of_more_than_2_to_31_elements() -> None:
    """The second one lies beyond them; memory that nobody touches costs nothing."""
    a, apart = arguments((2, 1, 1, 11, 4, 4, False, False), torch.bfloat16), (1 << 31) + 8
    u = torch.empty(apart + 11, dtype=a.u.dtype)
    u[:11], u[apart:] = a.u[0, 0], a.u[1, 0]
    y, _ = Device(0).forward(a._replace(u=u.as_strided((2, 1, 11), (apart, 11, 1))))
    assert torch.equal(y, Device(0).forward(a)[0])


RULES = """
#include "ssm_conv/cuda.h"
extern "C" int64_t forward_chunks(int64_t B, int64_t H, int64_t M) { return ssm_conv::segment_chunks(B, H, M); }
extern "C" int64_t backward_chunks(int32_t C, int32_t T, int32_t S, int32_t dense, int32_t bytes, int64_t limit) {
  SsmConvBackwardParams p{};
  p.C = C, p.T = T, p.S = S, p.dense = dense, p.real_bytes = p.operand_bytes = bytes;
  return ssm_conv::backward_chunks(p, limit);
}
extern "C" int64_t splits(int64_t B, int64_t H, int64_t segments) {
  return ssm_conv::backward_splits(B, H, segments);
}
"""


@pytest.mark.launches_nothing
def test_launch_rules(tmp_path: Path) -> None:
    """Long batches are not cut; short ones fill 16 rows of 264 blocks; what does not fit is kept for fewer chunks."""
    (tmp_path / "rules.cpp").write_text(RULES)
    command = [
        str(compiler()),
        "-std=c++17",
        f"-I{ROOT / 'csrc'}",
        "-shared",
        "-fPIC",
        "rules.cpp",
        "-o",
        "rules.so",
    ]
    subprocess.run(command, cwd=tmp_path, check=True)
    rules = ctypes.CDLL(str(tmp_path / "rules.so"))
    for function in (rules.forward_chunks, rules.backward_chunks, rules.splits):
        function.restype = ctypes.c_int64
    whole = [(16, 512, 512), (8, 512, 512), (64, 66, 512), (1, 512, 8), (1, 1, 0), (0, 4, 9)]
    assert [rules.forward_chunks(*size) for size in whole] == [512, 512, 512, 8, 1, 9]
    assert rules.forward_chunks(1, 256, 512) == 512 // 32
    assert rules.forward_chunks(4, 264, 512) == 512 // 4
    assert rules.forward_chunks(1, 1, 512) == 8
    sizes = [(1, 32, 64, 0, 4, 99 << 10), (1, 32, 64, 0, 4, 64 << 10), (1, 128, 128, 1, 8, 99 << 10)]
    assert [rules.backward_chunks(*size) for size in sizes] == [8, 4, 1]
    assert [rules.splits(*size) for size in ((16, 512, 64), (1, 8, 2), (0, 8, 1))] == [2, 1, 0]


@pytest.mark.parametrize(
    ("dtype", "precision"),
    [
        (torch.float32, 0),
        pytest.param(torch.float32, 1, marks=pytest.mark.tensor_cores),
        pytest.param(torch.bfloat16, 1, marks=pytest.mark.tensor_cores),
    ],
)
def test_results_do_not_depend_on_the_order_of_threads(dtype: torch.dtype, precision: int) -> None:
    case = (20, 1, 1, 66, 8, 4, False, True)
    a = arguments(case, dtype)
    g, g_final = proof.gradients(proof.Sizes(*case), a.u.dtype)
    results = []
    for order in ORDERS:
        device = Device(precision, order=order, seed=5)
        results.append([*device.forward(a), *device.backward(g, g_final, a)])
    for other in results[1:]:
        assert all(torch.equal(x, y) for x, y in zip(results[0], other, strict=True))


CHECKED = [(2, 2, 1, 37, 4, 4, True, True), (1, 1, 1, 70, 16, 20, False, False)]


@pytest.mark.checks("sanitizers", of="ssm_conv/cuda")
@pytest.mark.parametrize("case", CHECKED, ids=str)
@pytest.mark.parametrize(("math", "dtype", "precision", "rounded", "others"), MATHS)
def test_every_access_is_in_bounds_and_ordered(
    math: str, dtype: torch.dtype, precision: int, rounded: float, others: float, case: tuple[Any, ...]
) -> None:
    check(Device(precision, check=True, order="random", seed=1), case, dtype, rounded, others)
    if math in ("f32", "f64"):
        check(
            with_matrices_in_global_memory(case, dtype, precision)._replace(check=True),
            case,
            dtype,
            rounded,
            others,
        )


@pytest.mark.tensor_cores
@pytest.mark.thorough
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_access_is_in_bounds_and_ordered_for_many_schedules(
    case: tuple[Any, ...], order: str, seed: int
) -> None:
    for _, dtype, precision, rounded, others in (MATHS[0], MATHS[3], MATHS[6]):
        check(Device(precision, check=True, order=order, seed=seed), case, dtype, rounded, others)
