"""The Triton kernels of the chunked convolution against the reference: interpreted, or compiled on a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from tests.ops import second_derivatives
from tests.triton_kernels import compiled, device, skip_reason

if skip_reason() is not None:
    pytest.skip(str(skip_reason()), allow_module_level=True)

from sequence_kernels.ops import dispatch
from sequence_kernels.ops.ssm_conv import reference
from sequence_kernels.ops.ssm_conv import triton as kernels

from .test_ssm_conv import Model, lin, relative

pytestmark = pytest.mark.checks("oracle", "interpreter", "GPU", of="ssm_conv/triton")

DEVICE = device()
F64 = torch.float64
#: Of the norm, by the type of u.
TOLERANCES = {F64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 5e-3, torch.float16: 2e-3}
DENSE = pytest.mark.parametrize("dense", [False, True], ids=["diagonal", "dense"])


@pytest.fixture
def short_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sequences of a few chunks are divided as long ones are."""
    monkeypatch.setattr(kernels, "SHORTEST", 2)


@pytest.fixture(params=["whole", "segments"])
def segments(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(kernels, "SHORTEST", 1 << 30 if request.param == "whole" else 2)
    return request.param == "segments"


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What no kernel writes is NaN."""
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def arguments(
    model: Model, batch: int, length: int, lengths: Tensor | None = None, dtype: torch.dtype = F64
) -> list[Any]:
    """As the implementations take them."""
    torch.manual_seed(batch + length)
    heads, size = model.e_in.shape[0], model.e_in.shape[2]
    u, state = torch.randn(batch, heads, length, dtype=F64), torch.randn(batch, heads, size, dtype=F64)
    matrices, real = [*model.matrices()[:3], model.d, state], F64 if dtype == F64 else torch.float32
    taps, e_out, e_in, d, state = (m.to(real) for m in matrices)
    return [u.to(dtype), taps, e_out, e_in, model.a_powers, d, state, lengths]


def run(given: list[Any], module: Any) -> tuple[Tensor, ...]:
    """The outputs and all gradients, by ``kernels`` on their device or by ``reference`` on the CPU."""
    where = DEVICE if module is kernels else "cpu"
    given = [None if t is None else t.to(where) for t in given]
    y, final = module.ssm_conv(*given)
    weights = [torch.cos(torch.arange(t.numel(), device=where)).view(t.shape).to(t.dtype) for t in (y, final)]
    return tuple(t.cpu() for t in (y, final, *module.ssm_conv_backward(*weights, *given)))


def agree(given: list[Any], tolerance: float) -> None:
    for got, want in zip(run(given, kernels), run(given, reference), strict=True):
        assert (got.dtype, got.shape) == (want.dtype, want.shape)
        assert relative(got, want) < tolerance


@pytest.mark.on_ptx
@DENSE
@pytest.mark.parametrize(
    ("size", "chunk", "batch", "channels", "length"),
    [(6, 16, 3, 2, 75), (34, 32, 1, 1, 320), (2, 1, 2, 1, 9), (4, 4, 17, 1, 22)],
)
def test_against_the_reference(
    size: int, chunk: int, batch: int, channels: int, length: int, dense: bool, segments: bool
) -> None:
    """Forward, final state and every gradient, of rows that end anywhere and of rows that end together."""
    model = Model(2, channels, size, chunk, dense)
    layout = kernels._layout(torch.empty(batch, 2, length, dtype=F64), model.e_in, dense)
    assert (layout.segments > 1) == (segments and layout.chunks > 2)
    for lengths in (None, torch.arange(batch) * 7 % (length + 1)):
        agree(arguments(model, batch, length, lengths), 1e-12)


@DENSE
def test_rows_that_end_with_the_chunks(dense: bool, segments: bool) -> None:
    """Without lengths, with a_chunk alone, and where some state cannot be told, which is then NaN."""
    model = Model(2, 1, 4, 8, dense)
    agree(arguments(model, 2, 64), 1e-12)
    model.a_powers = model.a_powers[:, -1:]
    agree(arguments(model, 2, 64), 1e-12)
    given = arguments(model, 3, 30, torch.tensor([24, 29, 0]))
    (_, got, *got_all), (_, want, *want_all) = run(given, kernels), run(given, reference)
    assert torch.isnan(got[1]).all()
    assert torch.isnan(want[1]).all()
    assert relative(got[[0, 2]], want[[0, 2]]) < 1e-12
    for a, b in zip(got_all, want_all, strict=True):
        assert relative(a, b) < 1e-12


@DENSE
@pytest.mark.parametrize("length", [0, 30])
def test_rows_that_end_nowhere(
    monkeypatch: pytest.MonkeyPatch, dense: bool, segments: bool, length: int
) -> None:
    """A length that is not one of 0 .. L: NaN for that row's state, whose gradient counts for nothing."""
    monkeypatch.setattr(reference, "_check_lengths", lambda *_: None)
    model = Model(2, 2, 4, 8, dense)
    lengths = torch.tensor([-5, length, 0, length + 1, length // 2, 2**62, -(2**63)])
    given = arguments(model, 7, length, lengths)
    (y, got, *got_all), (want_y, want, *want_all) = run(given, kernels), run(given, reference)
    wrong = (lengths < 0) | (lengths > length)
    assert (torch.isnan(got).all((1, 2)) == wrong).all()
    assert (torch.isnan(want).all((1, 2)) == wrong).all()
    assert relative(got[~wrong], want[~wrong]) < 1e-12
    for a, b in zip((y, *got_all), (want_y, *want_all), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_states_divided_among_programs(monkeypatch: pytest.MonkeyPatch, segments: bool) -> None:
    """Where a diagonal A has more states than a program holds, each holds some, and the outputs are sums."""
    monkeypatch.setattr(kernels, "STATES", 16)
    model = Model(2, 2, 40, 16, dense=False)
    agree(arguments(model, 2, 90, torch.tensor([90, 33])), 1e-12)


@DENSE
def test_chunks_divided_among_programs(dense: bool, segments: bool) -> None:
    agree(arguments(Model(1, 1, 6, 4 * kernels.COLUMNS, dense), 2, 700, torch.tensor([700, 133])), 1e-12)


@pytest.mark.launches_nothing
def test_a_large_dense_state_is_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "LARGEST", 16 * 32 + 16 * 16 + 32 * 32)
    monkeypatch.setattr(kernels, "_walk", None)
    agree(arguments(Model(2, 1, 18, 16, dense=True), 2, 40), 1e-12)


@DENSE
@pytest.mark.parametrize(
    ("size", "chunk"), [(6, 16), pytest.param(34, 32, marks=pytest.mark.thorough, id="groups of four warps")]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_lower_precisions(dtype: torch.dtype, size: int, chunk: int, dense: bool) -> None:
    """States and sums are float32 whatever u is; on a GPU half precisions multiply in TF32, with 64 rows by wgmma."""
    agree(
        arguments(Model(2, 1, size, chunk, dense), 2, 75, torch.tensor([75, 20]), dtype),
        2e-6 if dtype == torch.float32 else 2e-2,
    )


@pytest.mark.thorough
@DENSE
@pytest.mark.parametrize("size", [16, 64])
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_tiles_that_are_filled(
    dtype: torch.dtype, size: int, dense: bool, segments: bool, request: pytest.FixtureRequest
) -> None:
    """By rows and states, of rows that end together and anywhere, with chunks of up to 16 elements; and almost."""
    for less in range(5 if compiled(request) else 1):
        chunk, batch = 32 if size == 64 else 16 >> less, 17 - less
        channels = 1 if dtype.itemsize == 2 else 1 + less % 2
        model = Model(2, channels, size - less * (1 if dense else 2), chunk, dense)
        length = 5 * chunk - less % chunk
        together, anywhere = (
            arguments(model, batch, length, lengths, dtype)
            for lengths in (None, torch.arange(batch) * 7 % (length + 1))
        )
        together[5] = None
        for given in (together, anywhere):
            agree(given, TOLERANCES[dtype])


def test_float32_keeps_its_digits_over_long_sequences(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a_chunk is applied as the sum of two float32 numbers, also from segment to segment."""
    monkeypatch.setattr(kernels, "SHORTEST", 8)
    exact = lin(torch.tensor([1e-3], dtype=F64), 8, 4)
    u = torch.randn(1, 1, 1 << 12, dtype=F64)
    single = [m.float() for m in exact[:3]]
    inputs: list[Any] = [u.float().double(), *exact, None, None, None]
    want, want_state = reference.ssm_conv(*inputs)
    inputs[:5] = (t.to(DEVICE) for t in (u.float(), *single, exact[3]))
    got, state = kernels.ssm_conv(*inputs)
    assert relative(got.cpu(), want) < 1e-6  # 5e-6 with a_chunk in float32
    assert relative(state.cpu(), want_state) < 1e-6


@pytest.mark.usefixtures("short_segments")
def test_strided_sequences_and_expanded_gradients() -> None:
    model = Model(2, 2, 6, 16, dense=False)
    given = arguments(model, 2, 75)
    u = given[0]
    rows = u.mT.contiguous().mT
    want = run(given, kernels)
    for got, expected in zip(run([rows, *given[1:]], kernels), want, strict=True):
        assert torch.equal(got, expected)
    given = [None if t is None else t.to(DEVICE) for t in given]
    one, nothing = torch.ones((), dtype=F64, device=DEVICE), torch.zeros(2, 2, 6, dtype=F64, device=DEVICE)
    expanded = one.expand(2, 2, 2, 75)
    for a, b in zip(
        kernels.ssm_conv_backward(expanded, nothing, *given),
        kernels.ssm_conv_backward(expanded.contiguous(), nothing, *given),
        strict=True,
    ):
        assert torch.equal(a, b)


def test_empty_dimensions() -> None:
    for batch, length in ((0, 20), (2, 0), (0, 0)):
        given = arguments(Model(2, 1, 6, 16, dense=False), batch, length)
        for got, want in zip(run(given, kernels), run(given, reference), strict=True):
            torch.testing.assert_close(got, want)


@pytest.mark.launches_nothing
def test_the_launch_rule() -> None:
    """Whole sequences where the batch fills the GPU; else as many segments as fill it, of SHORTEST chunks at least."""
    rule, shortest = kernels.segment_steps, kernels.SHORTEST
    assert rule(16, 512, 512) == 512
    assert rule(1, 256, 512) == 512 // 32  # two tiles of 16 segments a head
    assert rule(1, 1, 512) == shortest
    assert rule(1, 1, shortest) == shortest
    assert rule(1, 1, 3) == 3
    assert rule(64, 1 << 20, 1000) == 1000
    for batch, columns, chunks in ((1, 7, 1000), (3, 64, 313), (9, 100, 4096)):
        steps = rule(batch, columns, chunks)
        tiles = -(-batch * -(-chunks // steps) // kernels.ROWS)
        assert steps == shortest or tiles * columns <= kernels.PROGRAMS


@pytest.mark.launches_nothing
def test_precision_follows_torch_s_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "hip", None)
    full, half, double = (torch.empty(0, dtype=t) for t in (torch.float32, torch.bfloat16, F64))
    before = torch.get_float32_matmul_precision()
    try:
        for setting, expected in (("highest", "tf32x3"), ("high", "tf32")):
            torch.set_float32_matmul_precision(setting)
            assert kernels._precision(full, torch.float32) == expected
            assert kernels._precision(half, torch.float32) == "tf32"
            assert kernels._precision(double, F64) == "ieee"
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels serve backend="triton" of the registered ops, on the CPU too."""
    for op in ("ssm_conv", "ssm_conv_backward"):
        served = dispatch.Implementation(getattr(kernels, op), lambda device, dtype: None)
        monkeypatch.setitem(dispatch._implementations[op], "triton", served)


@pytest.mark.checks("gradcheck", of="ssm_conv/triton")
@pytest.mark.usefixtures("registered", "short_segments")
@DENSE
def test_first_and_second_derivatives(dense: bool) -> None:
    given = arguments(Model(1, 1, 2, 2, dense), 1, 7)
    leaves = [t.to(DEVICE).requires_grad_() for t in given if t is not None]

    def convolution(backend: str) -> Any:
        return lambda *tensors: torch.ops.sequence_kernels.ssm_conv.default(*tensors, None, backend)

    assert gradcheck(convolution("triton"), leaves, fast_mode=True)
    second_derivatives.assert_those_of_torch(convolution, leaves, "triton")


@pytest.mark.on_ptx
@pytest.mark.usefixtures("registered", "short_segments")
@DENSE
def test_registration(dense: bool) -> None:
    """The shapes, dtypes and strides that tracing was promised, also for powers that lie strided."""
    given = arguments(Model(2, 2, 4, 4, dense), 2, 19, dtype=torch.float32)
    given[4] = given[4].mT.contiguous().mT
    given = [None if t is None else t.to(DEVICE) for t in given]
    for op, leading in (("ssm_conv", ()), ("ssm_conv_backward", kernels.ssm_conv(*given))):
        torch.library.opcheck(
            getattr(torch.ops.sequence_kernels, op).default,
            (*leading, *given, "triton"),
            test_utils=("test_schema", "test_faketensor"),
        )
