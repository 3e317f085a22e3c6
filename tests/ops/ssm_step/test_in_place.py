"""The steps that write to the state they are given: all of it, or the slots of some streams in a pool."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from sequence_kernels import ops

from ..devices import backends, device_of, gpu_backends

H, N, C = 5, 7, 2
C64 = torch.complex64
RANKS = (None, 3)

every = pytest.mark.parametrize(
    ("rank", "backend"),
    [(rank, backend) for rank in RANKS for backend in backends("ssm_step_")]
    + [
        pytest.param(rank, *gpu.values, marks=gpu.marks)
        for rank in RANKS
        for gpu in gpu_backends("ssm_step_")
    ],
)
ranks = pytest.mark.parametrize("rank", RANKS)


@pytest.fixture(autouse=True)
def on_the_device_of_the_backend(request: pytest.FixtureRequest) -> Iterator[None]:
    """Tensors are made where the backend's kernels run."""
    parameters = getattr(request.node, "callspec", None)
    with torch.device(device_of(parameters.params.get("backend", "cpu") if parameters else "cpu")):
        yield


def parameters(rank: int | None, dtype: torch.dtype = C64) -> list[Any]:
    """a, b, c, d, p and q."""
    low_rank = (None, None) if rank is None else torch.randn(2, rank, H, N, dtype=dtype)
    a, b = torch.randn(2, H, N, dtype=dtype)
    return [a, b, torch.randn(C, H, N, dtype=dtype), torch.randn(C, H, dtype=dtype.to_real()), *low_rank]


@every
@pytest.mark.parametrize("batch", [(), (3,), (2, 3), (0,)])
@pytest.mark.parametrize("dtype", [C64, torch.complex128])
def test_in_place_is_the_step(
    rank: int | None, backend: str, batch: tuple[int, ...], dtype: torch.dtype
) -> None:
    state, u = torch.randn(*batch, H, N, dtype=dtype), torch.randn(*batch, H, dtype=dtype.to_real())
    p = parameters(rank, dtype)
    want, want_state = ops.ssm_step(state, u, *p, backend=backend)
    y = ops.ssm_step_(state, u, *p, backend=backend)
    torch.testing.assert_close(y, want, rtol=0, atol=0)
    torch.testing.assert_close(state, want_state, rtol=0, atol=0)


@every
def test_any_layout_of_the_state(rank: int | None, backend: str) -> None:
    u, p = torch.randn(3, H), parameters(rank)
    state = torch.randn(3, H, N, dtype=C64)
    strided = torch.zeros(3, N, 2 * H, dtype=C64).mT[:, ::2].copy_(state)
    assert strided.stride() != state.stride()
    conjugated = state.conj().resolve_conj().conj()
    want = ops.ssm_step_(state, u, *p, backend=backend)
    for other in (strided, conjugated):
        torch.testing.assert_close(ops.ssm_step_(other, u, *p, backend=backend), want)
        torch.testing.assert_close(other.resolve_conj(), state)


@every
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_rows_drive_the_slots_they_name(rank: int | None, backend: str, dtype: torch.dtype) -> None:
    pool = torch.randn(6, H, N, dtype=C64)
    pool.view(-1)[::3] = complex(float("nan"), float("-inf"))  # bits that arithmetic would not keep
    pool[[4, 0, 2]] = torch.randn(3, H, N, dtype=C64)
    before = pool.clone()
    u, p = torch.randn(5, H), parameters(rank)
    u[1] = float("nan")  # of an idle row: read by nobody
    y = ops.ssm_step_(
        pool, u, *p, state_indices=torch.tensor([4, -1, 0, -1, 2], dtype=dtype), backend=backend
    )
    want, want_state = ops.ssm_step(before[[4, 0, 2]], u[[0, 2, 4]], *p, backend=backend)
    torch.testing.assert_close(y[[0, 2, 4]], want)
    assert torch.equal(y[[1, 3]], torch.zeros(2, C, H))
    torch.testing.assert_close(pool[[4, 0, 2]], want_state)
    idle = [1, 3, 5]
    assert torch.equal(pool[idle].view(torch.int64), before[idle].view(torch.int64))


@every
def test_conjugated_parameters(rank: int | None, backend: str) -> None:
    state, u, p = torch.randn(3, H, N, dtype=C64), torch.randn(3, H), parameters(rank)
    twin = state.clone()
    pending = [None if t is None else t.conj().resolve_conj().conj() for t in p]
    y, want = ops.ssm_step_(state, u, *pending, backend=backend), ops.ssm_step_(twin, u, *p, backend=backend)
    assert torch.equal(y, want)
    assert torch.equal(state, twin)


@every
def test_no_row_and_idle_rows_only(rank: int | None, backend: str) -> None:
    pool, p = torch.randn(2, H, N, dtype=C64), parameters(rank)
    before = pool.clone()
    for count in (0, 3):
        indices = torch.full((count,), -1)
        y = ops.ssm_step_(pool, torch.ones(count, H), *p, state_indices=indices, backend=backend)
        assert torch.equal(y, torch.zeros(count, C, H))
    assert torch.equal(pool, before)
    none = torch.empty(0, H, N, dtype=C64)
    y = ops.ssm_step_(none, torch.ones(2, H), *p, state_indices=torch.full((2,), -1), backend=backend)
    assert torch.equal(y, torch.zeros(2, C, H))


@every
def test_half_precision_input(rank: int | None, backend: str) -> None:
    state, u, p = torch.randn(3, H, N, dtype=C64), torch.randn(3, H).bfloat16(), parameters(rank)
    twin = state.clone()
    y, want = (
        ops.ssm_step_(state, u, *p, backend=backend),
        ops.ssm_step_(twin, u.float(), *p, backend=backend),
    )
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, want.bfloat16())
    torch.testing.assert_close(state, twin)


@ranks
def test_a_gradient_raises(rank: int | None) -> None:
    state, u, p = torch.randn(3, H, N, dtype=C64), torch.randn(3, H), parameters(rank)
    with pytest.raises(RuntimeError, match="ssm_step_ works in place and has no gradient"):
        ops.ssm_step_(state, u.clone().requires_grad_(), *p)
    p[0].requires_grad_()
    with pytest.raises(RuntimeError, match="no gradient"):
        ops.ssm_step_(state, u, *p)
    with torch.no_grad():
        ops.ssm_step_(state, u, *p)


@ranks
def test_autograd_notices_the_change(rank: int | None) -> None:
    state, weight = torch.randn(3, H, N, dtype=C64), torch.ones((), requires_grad=True)
    product = (weight * state).abs().sum()
    ops.ssm_step_(state, torch.randn(3, H), *parameters(rank))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


@ranks
@pytest.mark.parametrize("indices", [None, torch.tensor([1, -1])])
def test_registration_and_compilation(rank: int | None, indices: Tensor | None) -> None:
    state, u, p = torch.randn(2, H, N, dtype=C64), torch.randn(2, H), parameters(rank)
    op = torch.ops.sequence_kernels.ssm_step_.default
    torch.library.opcheck(op, (state.clone(), u, *p, indices, "torch"))

    def two_steps(state: Tensor, u: Tensor) -> Tensor:
        first = ops.ssm_step_(state, u, *p, state_indices=indices)
        return first + ops.ssm_step_(state, u, *p, state_indices=indices)

    twin = state.clone()
    compiled = torch.compile(two_steps, fullgraph=True, dynamic=True, backend="aot_eager")
    torch.testing.assert_close(compiled(state, u), two_steps(twin, u))
    torch.testing.assert_close(state, twin)


@ranks
def test_bad_indices(rank: int | None) -> None:
    pool, u, p = torch.randn(2, H, N, dtype=C64), torch.randn(3, H), parameters(rank)

    def call(indices: Any) -> Tensor:
        return ops.ssm_step_(pool, u, *p, state_indices=indices)

    with pytest.raises(ValueError, match=r"state_indices must be in -1 .. 1, got values in 0 .. 2"):
        call(torch.tensor([0, 1, 2]))
    with pytest.raises(ValueError, match=r"state_indices must be in -1 .. 1, got values in -2 .. 1"):
        call(torch.tensor([0, 1, -2]))
    with pytest.raises(ValueError, match=r"state_indices must have shape \(B=3\), got \(2,\)"):
        call(torch.tensor([0, 1]))
    with pytest.raises(TypeError, match=r"state_indices must be one of int32, int64, got torch.float32"):
        call(torch.zeros(3))
    with pytest.raises(TypeError, match=r"state_indices must be a torch.Tensor, got list"):
        call([0, 1, -1])
    with pytest.raises(ValueError, match=r"state must have shape \(slots, H, N\), got \(1, 2, 5, 7\)"):
        ops.ssm_step_(pool.unsqueeze(0), u, *p, state_indices=torch.tensor([0, 1, -1]))


@pytest.mark.skipif("cpu" not in backends("ssm_step_"), reason="needs the native library")
class TestNative:
    """The C++ kernel against the reference, over every instruction set, size and number of threads."""

    @pytest.mark.parametrize("dtype", [C64, torch.complex128])
    @pytest.mark.parametrize("rank", [None, 0, 1, 3])
    def test_sizes(self, instruction_set: int, dtype: torch.dtype, rank: int | None) -> None:
        for heads in (1, 16, 17):
            for pairs in (0, 1, 3, 4, 9, 16, 33):
                for channels in (0, 1, 3):
                    low_rank = [] if rank is None else torch.randn(2, rank, heads, pairs, dtype=dtype)
                    a, b = torch.randn(2, heads, pairs, dtype=dtype)
                    c = torch.randn(channels, heads, pairs, dtype=dtype)
                    d = torch.randn(channels, heads, dtype=dtype.to_real())
                    state = torch.randn(2, heads, pairs, dtype=dtype)
                    u = torch.randn(2, heads, dtype=dtype.to_real())
                    arguments = (state, u, a, b, c, d, *low_rank)
                    tolerance = 2e-5 if dtype == C64 else 1e-13
                    for got, want in zip(
                        ops.ssm_step(*arguments, backend="cpu"),
                        ops.ssm_step(*arguments, backend="torch"),
                        strict=True,
                    ):
                        scale = float(want.abs().max()) if want.numel() else 1.0
                        torch.testing.assert_close(got, want, rtol=0, atol=tolerance * scale)

    def test_the_same_bits_for_any_number_of_threads_and_rows(self) -> None:
        heads, pairs, rows = 256, 33, 40  # enough to be shared out
        a, b, p, q, c = torch.randn(5, 1, heads, pairs, dtype=C64)
        state, u = torch.randn(rows, heads, pairs, dtype=C64), torch.randn(rows, heads)
        before = torch.get_num_threads()
        results = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(ops.ssm_step(state, u, a[0], b[0], c, None, p, q, backend="cpu"))
        torch.set_num_threads(before)
        results.append(ops.ssm_step(state[:1], u[:1], a[0], b[0], c, None, p, q, backend="cpu"))
        for y, new_state in results:
            assert torch.equal(y, results[0][0][: len(y)])
            assert torch.equal(new_state, results[0][1][: len(y)])

    def test_the_kernel_itself_refuses_what_would_leave_its_memory(self) -> None:
        step = torch.ops.sequence_kernels_native.ssm_step.default
        state, u = torch.zeros(2, H, N, dtype=C64), torch.zeros(2, H)
        a, b, c, d, p, q = parameters(3)
        step(state, None, u, a, b, c, d, p, q, state)
        step(state, None, u, a, b, c, None, None, None, state)
        for wrong in (
            (state, torch.tensor([0]), u, a, b, c, d, p, q, state),
            (state, torch.zeros(2), u, a, b, c, d, p, q, state),
            (state, None, u[:1], a, b, c, d, p, q, state),
            (state, None, u, a[:1], b, c, d, p, q, state),
            (state, None, u, a, b, c, d, p[:, :1], q, state),
            (state, None, u, a, b, c, d, p, q[:1], state),
            (state, None, u, a, b, c, d, p, None, state),
            (state, None, u, a, b, c, d[:1], p, q, state),
            (state, None, u, a, b, c, d, p, q, state[:1]),
            (state, None, u.double(), a, b, c, d, p, q, state),
            (state.mT.contiguous().mT, None, u, a, b, c, d, p, q, state),
        ):
            with pytest.raises(RuntimeError, match="a step"):
                step(*wrong)
        with pytest.raises(RuntimeError, match="state_indices from -1 to below the number of states"):
            step(state, torch.tensor([0, 2]), u, a, b, c, d, p, q, state)
