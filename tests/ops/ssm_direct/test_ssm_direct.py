"""The direct convolution against the recurrence as written, and its backends against each other."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from sequence_kernels import ops

from ..devices import backends, on_every_instruction_set
from ..sample import Sample, complexes, real

C128 = torch.complex128
every_backend = pytest.mark.parametrize("backend", backends("ssm_direct"))


def _direct(rank: int, channels: int) -> Sample:
    def function(u: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor, *low_rank: Tensor) -> Tensor:
        like = a if isinstance(a, Tensor) else b
        p, q = low_rank or (like.new_empty(0, *like.shape),) * 2
        return ops.ssm_direct(u, a, p, q, b, c, d)

    low_rank = (0.5 * complexes(rank, 2, 2, seed=1), 0.5 * complexes(rank, 2, 2, seed=2)) if rank else ()
    tensors = (
        real(2, 2, 3, seed=6),
        0.5 * complexes(2, 2),
        complexes(2, 2, seed=3),
        complexes(channels, 2, 2, seed=4),
        real(channels, 2, seed=5),
    )
    return Sample("ssm_direct", function, (*tensors, *low_rank))


SAMPLES = {
    "ssm_direct": _direct(rank=1, channels=1),
    "ssm_direct-diagonal": _direct(rank=0, channels=2),
}


def drawn(
    rank: int, batch: int, heads: int, length: int, pairs: int, channels: int, dtype: torch.dtype
) -> list[Tensor]:
    """u, a, p, q, b, c and d; the powers of A stay near 1 whatever their number."""
    generator = torch.Generator().manual_seed(rank + length)

    def random(*shape: int, dtype: torch.dtype = C128) -> Tensor:
        return torch.randn(*shape, dtype=dtype, generator=generator)

    scale = 4 * max(1, pairs / 5) ** 0.5
    return [
        random(batch, heads, length, dtype=dtype),
        random(heads, pairs) / 2,
        random(rank, heads, pairs) / scale,
        random(rank, heads, pairs) / scale,
        random(heads, pairs),
        random(channels, heads, pairs).to(dtype.to_complex()),
        random(channels, heads, dtype=dtype),
    ]


def recurrence(u: Tensor, a: Tensor, p: Tensor, q: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """Element by element, in both of each conjugate pair."""
    both = [torch.cat((t, t.conj()), -1) for t in (a, p, q, b, c.to(C128))]
    a, p, q, b, c = both
    matrix = torch.diag_embed(a) + torch.einsum("rhm,rhn->hmn", p, q)
    x, outputs = torch.zeros(len(u), *b.shape, dtype=C128), []
    for now in u.to(torch.float64).unbind(-1):
        x = torch.einsum("hmn,bhn->bhm", matrix, x) + b * now.unsqueeze(-1)
        outputs.append(torch.einsum("chn,bhn->bch", c, x).real + d * now.unsqueeze(1))
    return torch.stack(outputs, -1)


def close(got: Tensor, want: Tensor, tolerance: float) -> None:
    assert got.shape == want.shape
    assert float((got.to(want.dtype) - want).norm().detach()) <= tolerance * float(want.norm().detach())


SIZES = [(1, 1, 1, 1, 1), (2, 3, 7, 5, 1), (3, 2, 33, 9, 2), (2, 5, 80, 32, 1)]


@pytest.mark.checks("oracle")
@every_backend
@pytest.mark.parametrize("rank", [0, 1, 3])
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-6)])
def test_against_the_recurrence(
    backend: str, rank: int, sizes: tuple[int, ...], dtype: torch.dtype, tolerance: float
) -> None:
    inputs = drawn(rank, *sizes, dtype)
    close(ops.ssm_direct(*inputs, backend=backend), recurrence(*inputs), tolerance)


@every_backend
@pytest.mark.parametrize("pole", [0, 1, 1 - 1e-6, 1 - 1e-5j, -1, -0.999, 1j, 1e-200, 0.9 + 0.43j])
def test_poles_whose_real_parts_are_a_delicate_recurrence(backend: str, pole: complex) -> None:
    """Two roots that are nearly one, none that decays, and none at all."""
    inputs = drawn(0, 1, 2, 300, 3, 1, torch.float64)
    inputs[1].fill_(pole)
    inputs = [t.requires_grad_() for t in inputs]
    y, want = ops.ssm_direct(*inputs, backend=backend), recurrence(*inputs)
    close(y, want, 1e-11)
    weight = torch.cos(torch.arange(y.numel(), dtype=torch.float64)).view(y.shape)
    wanted = [inputs[i] for i in (0, 1, 4, 5, 6)]
    got, right = torch.autograd.grad(y, wanted, weight), torch.autograd.grad(want, wanted, weight)
    for a, b in zip(got, right, strict=True):
        close(a, b, 1e-10)


@pytest.mark.parametrize("backend", [b for b in backends("ssm_direct") if b != "torch"])
@pytest.mark.parametrize("rank", [0, 1, 3])
@pytest.mark.parametrize("sizes", SIZES)
def test_gradients_agree_with_the_reference(backend: str, rank: int, sizes: tuple[int, ...]) -> None:
    inputs = [t.requires_grad_() for t in drawn(rank, *sizes, torch.float64)]
    results = []
    for name in (backend, "torch"):
        y = ops.ssm_direct(*inputs, backend=name)
        weight = torch.cos(torch.arange(y.numel(), dtype=torch.float64)).view(y.shape)
        results.append(torch.autograd.grad(y, inputs, weight))
    for got, want in zip(*results, strict=True):
        close(got, want, 1e-11)


@pytest.mark.skipif("cpu" not in backends("ssm_direct"), reason="needs the native library")
def test_every_instruction_set_number_of_threads_and_layout() -> None:
    inputs = [t.requires_grad_() for t in drawn(1, 3, 70, 77, 13, 2, torch.float32)]
    apart = [inputs[0].detach().mT.contiguous().mT.requires_grad_(), *inputs[1:]]
    weight = torch.randn(3, 77, 2, 70).permute(0, 2, 3, 1)

    def run(given: list[Tensor], backend: str) -> tuple[Tensor, ...]:
        y = ops.ssm_direct(*given, backend=backend)
        return (y, *torch.autograd.grad(y, given, weight))

    want = run(inputs, "torch")
    for found in on_every_instruction_set(lambda: run(inputs, "cpu")):
        for a, b, expected in zip(found, run(apart, "cpu"), want, strict=True):
            assert torch.equal(a, b)
            close(a, expected, 2e-6)


@pytest.mark.skipif("cpu" not in backends("ssm_direct"), reason="needs the native library")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sizes", [(1, 2, 3, 4, 1), (3, 21, 19, 4, 2), (2, 70, 40, 3, 1)])
def test_heads_that_lie_side_by_side_give_the_same_bits_and_lie_so_in_the_results(
    sizes: tuple[int, ...], dtype: torch.dtype
) -> None:
    batch, heads, length, _, channels = sizes
    u, *model = drawn(1, *sizes, torch.float64 if dtype == torch.float64 else torch.float32)
    g = torch.randn(batch, length, channels, heads).to(dtype).permute(0, 2, 3, 1)
    u = u.to(dtype).mT.contiguous().mT

    def run(u: Tensor, g: Tensor) -> tuple[Tensor, ...]:
        inputs = [t.detach().requires_grad_() for t in (u, *model)]
        y = ops.ssm_direct(*inputs, backend="cpu")
        return (y, *torch.autograd.grad(y, inputs, g))

    side = run(u, g)
    for mixed in ((u.contiguous(), g.contiguous()), (u.contiguous(), g), (u, g.contiguous())):
        for got, want in zip(side, run(*mixed), strict=True):
            assert torch.equal(got, want)
    assert side[0].permute(0, 3, 1, 2).is_contiguous()
    assert side[1].mT.is_contiguous()


@every_backend
@pytest.mark.parametrize("side", [False, True])
@pytest.mark.parametrize("length", [0, 1, 20])
def test_fakes_say_how_results_lie(backend: str, side: bool, length: int) -> None:
    u, *model = drawn(1, 2, 3, length, 4, 2, torch.float64)
    u = u.mT.contiguous().mT if side else u

    def strides() -> list[tuple[int, ...]]:
        leaf = u.detach().requires_grad_()
        y = ops.ssm_direct(leaf, *model, backend=backend)
        (du,) = torch.autograd.grad(y, leaf, torch.ones_like(y))
        return [y.stride(), du.stride()]

    real = strides()
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        u, *model = (mode.from_tensor(t) for t in (u, *model))
        assert strides() == real


@every_backend
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_rounded_once(backend: str, dtype: torch.dtype) -> None:
    u, *model = drawn(1, 2, 3, 20, 5, 1, torch.float32)
    u = u.to(dtype)
    want = ops.ssm_direct(u.float(), *model, backend=backend).to(dtype)
    torch.testing.assert_close(ops.ssm_direct(u, *model, backend=backend), want)


@every_backend
@pytest.mark.parametrize("sizes", [(2, 3, 0, 4, 1), (0, 3, 5, 4, 1), (2, 0, 5, 4, 1), (2, 3, 5, 0, 2)])
def test_nothing_in(backend: str, sizes: tuple[int, ...]) -> None:
    inputs = [t.requires_grad_() for t in drawn(1, *sizes, torch.float64)]
    y = ops.ssm_direct(*inputs, backend=backend)
    assert y.shape == (sizes[0], sizes[4], *sizes[1:3])
    gradients = torch.autograd.grad(y.sum(), inputs)
    assert all(g.shape == t.shape for g, t in zip(gradients, inputs, strict=True))
    assert all(not g.any() for g in gradients[1:6])  # of the model: nothing depends on it


def test_bad_arguments() -> None:
    u, a, p, q, b, c, d = drawn(2, 2, 3, 4, 5, 1, torch.float32)
    with pytest.raises(ValueError, match=r"q must have shape \(R=2, H=3, N=5\), got \(1, 3, 5\)"):
        ops.ssm_direct(u, a, p, q[:1], b, c, d)
    with pytest.raises(TypeError, match=r"c must be one of complex64, got torch\.complex128"):
        ops.ssm_direct(u, a, p, q, b, c.to(C128), d)
    with pytest.raises(ValueError, match=r"d must have shape \(C=1, H=3\), got \(2, 3\)"):
        ops.ssm_direct(u, a, p, q, b, c, d.repeat(2, 1))
