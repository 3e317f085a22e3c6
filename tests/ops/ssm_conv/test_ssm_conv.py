"""The chunked convolution of every backend against the recurrence, the FFT convolution, and itself in pieces."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from sequence_kernels import ops
from sequence_kernels.ops.dispatch import implementation
from tests.computing import Computing
from tests.instruction_sets import NAMES, available, limited_to, rounds_matrices

from ..devices import backends
from ..sample import Sample, complexes, real

every_backend = pytest.mark.parametrize("backend", backends("ssm_conv"))
F64 = torch.float64
needs_cpu = pytest.mark.skipif("cpu" not in backends("ssm_conv"), reason="needs the native library")


def _conv(dense: bool, lengths: Tensor | None = None) -> Sample:
    heads, channels, size, chunk, count = 2, 2, 4, 4, 3
    powers = 0.3 * real(heads, count, size, size) if dense else 0.6 * complexes(heads, count, size // 2)
    tensors = (
        real(3, heads, 11),
        real(channels, heads, chunk, seed=1),
        real(channels, heads, size, chunk, seed=2),
        real(heads, chunk, size, seed=3),
        powers,
        real(channels, heads, seed=4),
        real(3, heads, size, seed=5),
    )
    return Sample("ssm_conv", lambda *t: ops.ssm_conv(*t, lengths=lengths), tensors)


SAMPLES = {
    "ssm_conv-diagonal": _conv(dense=False),
    "ssm_conv-dense-lengths": _conv(dense=True, lengths=torch.tensor([0, 6, 11])),
}


class Model:
    """A random stable real system x_t = x_{t-1} A + u_t b, y_t = x_t c + d u_t, and its chunk matrices."""

    def __init__(self, heads: int, channels: int, size: int, chunk: int, dense: bool) -> None:
        generator = torch.Generator().manual_seed(size + chunk)

        def random(*shape: int) -> Tensor:
            return torch.randn(*shape, dtype=F64, generator=generator)

        self.diagonal = torch.complex(random(heads, size // 2), random(heads, size // 2))
        self.diagonal = 0.95 * self.diagonal / self.diagonal.abs().clamp(min=1)
        if dense:
            self.a = random(heads, size, size)
            self.a = 0.95 * self.a / torch.linalg.eigvals(self.a).abs().amax(-1).view(-1, 1, 1)
        else:
            self.a = torch.zeros(heads, size, size, dtype=F64)
            for n in range(size // 2):
                re, im = self.diagonal[:, n].real, self.diagonal[:, n].imag
                self.a[:, 2 * n, 2 * n] = self.a[:, 2 * n + 1, 2 * n + 1] = re
                self.a[:, 2 * n, 2 * n + 1], self.a[:, 2 * n + 1, 2 * n] = im, -im
        self.b, self.c, self.d = random(heads, size), random(channels, heads, size), random(channels, heads)
        powers = [torch.eye(size, dtype=F64).expand(heads, -1, -1)]
        for _ in range(chunk):
            powers.append(powers[-1] @ self.a)
        inputs = torch.stack([(self.b.unsqueeze(1) @ p).squeeze(1) for p in powers[:-1]], 1)
        self.taps = torch.einsum("hts,chs->cht", inputs, self.c)
        self.e_in = inputs.flip(1)
        self.e_out = torch.stack([torch.einsum("hst,cht->chs", p, self.c) for p in powers[1:]], -1)
        exponents = [1 << i for i in range(chunk.bit_length())]
        if dense:
            self.a_powers = torch.stack([powers[e] for e in exponents], 1)
        else:
            self.a_powers = torch.stack([self.diagonal**e for e in exponents], 1)

    def matrices(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.taps, self.e_out, self.e_in, self.a_powers

    def single(self) -> tuple[Tensor, ...]:
        return tuple(m.to(torch.complex64 if m.is_complex() else torch.float32) for m in self.matrices())

    def recurrence(self, u: Tensor, state: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The output, and the state after 0, 1, .. elements."""
        states, outputs = [state], []
        for t in range(u.shape[-1]):
            moved = torch.einsum("bhs,hst->bht", states[-1], self.a)
            states.append(moved + u[..., t].unsqueeze(-1) * self.b)
            read = torch.einsum("bhs,chs->bch", states[-1], self.c)
            outputs.append(read + self.d * u[..., t].unsqueeze(1))
        shape = (*u.shape[:1], *self.d.shape, 0)
        return (torch.stack(outputs, -1) if outputs else u.new_zeros(shape)), states


def relative(got: Tensor, want: Tensor) -> float:
    return float((got - want).detach().norm() / want.detach().norm()) if want.numel() else 0.0


@pytest.mark.checks("oracle")
@every_backend
@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("chunk", [1, 2, 16])
@pytest.mark.parametrize("length", [0, 1, 2, 15, 16, 17, 50])
def test_against_the_recurrence(backend: str, dense: bool, chunk: int, length: int) -> None:
    model = Model(3, 2, 6, chunk, dense)
    u, state = torch.randn(2, 3, length, dtype=F64), torch.randn(2, 3, 6, dtype=F64)
    y, final = ops.ssm_conv(u, *model.matrices(), model.d, state, backend=backend)
    want, states = model.recurrence(u, state)
    assert y.shape == want.shape
    assert relative(y, want) < 1e-12
    assert relative(final, states[-1]) < 1e-12
    without, _ = ops.ssm_conv(u, *model.matrices(), backend=backend)
    plain, _ = model.recurrence(u, torch.zeros_like(state))
    assert relative(without, plain - model.d.unsqueeze(-1) * u.unsqueeze(1)) < 1e-12 or length == 0


@every_backend
@pytest.mark.parametrize("dense", [False, True])
def test_lengths_give_each_row_its_own_final_state(backend: str, dense: bool) -> None:
    model = Model(2, 1, 4, 8, dense)
    lengths = torch.tensor([0, 1, 7, 8, 9, 24, 29, 30])
    u, state = torch.randn(8, 2, 30, dtype=F64), torch.randn(8, 2, 4, dtype=F64)
    y, final = ops.ssm_conv(u, *model.matrices(), model.d, state, lengths=lengths, backend=backend)
    want, states = model.recurrence(u, state)
    for row, length in enumerate(lengths.tolist()):
        assert length == 0 or relative(y[row, ..., :length], want[row, ..., :length]) < 1e-12
        assert relative(final[row], states[length][row]) < 1e-12


@every_backend
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("dense", [False, True])
def test_what_lies_past_the_end_of_a_row_is_never_read(backend: str, dense: bool, bad: float) -> None:
    model = Model(2, 2, 4, 8, dense)
    lengths = torch.tensor([0, 1, 7, 8, 9, 24, 29, 30])
    real = (torch.arange(30) < lengths.unsqueeze(-1)).unsqueeze(1)
    clean, state = torch.randn(8, 2, 30, dtype=F64), torch.randn(8, 2, 4, dtype=F64)
    results = []
    for padding in (0.0, bad):
        u = torch.where(real, clean, padding)
        inputs = [t.clone().requires_grad_() for t in (u, *model.matrices(), model.d, state)]
        y, final = ops.ssm_conv(*inputs, lengths=lengths, backend=backend)
        gradients = torch.autograd.grad(
            (torch.cos(y) * real.unsqueeze(1)).sum() + final.square().sum(), inputs
        )
        assert bool((gradients[0].masked_select(~real) == 0).all())
        results.append((y, final, *gradients))
    for got, want in zip(*results, strict=True):
        assert torch.equal(got, want)


@every_backend
@pytest.mark.parametrize("dense", [False, True])
def test_against_the_fft_convolution_and_random_splits(backend: str, dense: bool) -> None:
    model = Model(3, 2, 6, 16, dense)
    u = torch.randn(2, 3, 300, dtype=F64)
    impulse = torch.zeros(1, 3, 300, dtype=F64)
    impulse[..., 0] = 1
    k = model.recurrence(impulse, torch.zeros(1, 3, 6, dtype=F64))[0][0] - torch.nn.functional.pad(
        model.d.unsqueeze(-1), (0, 299)
    )
    y, _ = ops.ssm_conv(u, *model.matrices(), model.d, backend=backend)
    assert relative(y, ops.fft_conv(u, k, model.d)) < 1e-12
    cuts = [0, 1, 18, 18, 111, 300]
    state, pieces = None, []
    for start, stop in pairwise(cuts):
        piece, state = ops.ssm_conv(u[..., start:stop], *model.matrices(), model.d, state, backend=backend)
        pieces.append(piece)
    assert relative(torch.cat(pieces, -1), y) < 1e-12


@every_backend
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_lower_precisions_accumulate_in_float32(backend: str, dtype: torch.dtype) -> None:
    model = Model(3, 2, 6, 16, dense=False)
    u = torch.randn(2, 3, 300).to(dtype)
    y, final = ops.ssm_conv(u, *model.single(), model.d.float(), backend=backend)
    want, states = model.recurrence(u.double(), torch.zeros(2, 3, 6, dtype=F64))
    assert (y.dtype, final.dtype) == (dtype, torch.float32)
    assert relative(final, states[-1]) < (2e-3 if rounds_matrices(backend, dtype) else 5e-6)
    assert relative(y, want) < max(5e-6, 0.6 * torch.finfo(dtype).eps)


@needs_cpu
@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize(("chunk", "size"), [(16, 6), (32, 64), (64, 34), (16, 7)])
@pytest.mark.parametrize("given", ["whole", "lengths", "packed"])
def test_products_of_bfloat16(chunk: int, size: int, dense: bool, given: str) -> None:
    """Matrices, states and gradients of states are rounded where they are multiplied; sums and recurrence are not."""
    if size % 2 and not dense:
        pytest.skip("a diagonal system has pairs of states")
    model = Model(3, 2, size, chunk, dense)
    u, g = torch.randn(3, 3, 333).bfloat16(), torch.randn(3, 2, 3, 333).bfloat16()
    state = torch.randn(3, 3, size)
    ends: dict[str, Any] = {}
    op: Any = ops.ssm_conv
    if given == "lengths":
        ends = {"lengths": torch.tensor([333, 0, 100])}
    elif given == "packed":
        op, ends = ops.ssm_conv_packed, {"cu_seqlens": torch.tensor([0, 1, 150, 333])}
        u, g = u[0], g[0]

    def run(level: int) -> tuple[Tensor, ...]:
        inputs = [t.requires_grad_() for t in (u.clone(), *model.single(), model.d.float(), state.clone())]
        with limited_to(level):
            y, final = op(*inputs, **ends, backend="cpu")
            return y, final, *torch.autograd.grad((y, final), inputs, (g, torch.ones_like(final)))

    exact, rounded = run(NAMES.index("avx512")), run(NAMES.index("avx512_bf16"))
    errors = [relative(got, want) for got, want in zip(rounded, exact, strict=True)]
    powers = errors.pop(6)  # states times gradients of states, both rounded, which may cancel
    assert powers < 1e-2
    assert all(error < 5e-3 for error in errors)
    assert errors[1] > 1e-4


@needs_cpu
def test_chunks_of_fewer_numbers_than_a_vector_are_multiplied_in_float32() -> None:
    model = Model(3, 1, 6, 8, dense=False)
    u = torch.randn(2, 3, 100).bfloat16()
    results = []
    for level in map(NAMES.index, ("avx512_bf16", "avx512")):
        with limited_to(level):
            results.append(ops.ssm_conv(u, *model.single(), backend="cpu"))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@every_backend
@pytest.mark.parametrize("dense", [False, True])
def test_the_chunk_s_power_alone_serves_rows_that_end_on_whole_chunks(backend: str, dense: bool) -> None:
    model = Model(2, 2, 4, 8, dense)
    u, state = torch.randn(4, 2, 30, dtype=F64), torch.randn(4, 2, 4, dtype=F64)
    lengths = torch.tensor([24, 30, 8, 0])
    gradients = []
    for powers in (model.a_powers, model.a_powers[:, -1:]):
        inputs = [t.clone().requires_grad_() for t in (u, *model.matrices()[:3], powers, model.d, state)]
        y, final = ops.ssm_conv(*inputs, lengths=lengths, backend=backend)
        loss = y.square().sum() + final[[0, 2, 3]].square().sum()
        gradients.append((y, final, *torch.autograd.grad(loss, inputs)))
    whole, alone = gradients
    assert torch.isnan(alone[1][1]).all()
    for i, (got, want) in enumerate(zip(alone, whole, strict=True)):
        if i == 1:
            got, want = got[[0, 2, 3]], want[[0, 2, 3]]
        torch.testing.assert_close(
            got, want[:, -1:] if want.shape != got.shape else want, rtol=1e-12, atol=1e-12
        )


@every_backend
def test_a_strided_sequence_is_read_as_it_lies(backend: str) -> None:
    model = Model(3, 2, 6, 16, dense=False)
    rows = torch.randn(2, 75, 3, dtype=F64)
    u, g = rows.mT, torch.randn(2, 75, 3, 2, dtype=F64).permute(0, 3, 2, 1)
    results = []
    for sequence, weight in ((u, g), (u.contiguous(), g.contiguous())):
        leaf = sequence.detach().requires_grad_()
        y, final = ops.ssm_conv(leaf, *model.matrices(), backend=backend)
        results.append((y, final, *torch.autograd.grad(y, leaf, weight)))
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def _everything(u: Tensor, g: Tensor, model: Model, lengths: Tensor | None = None) -> tuple[Tensor, ...]:
    """Outputs and all gradients by the C++ kernels, of sequences and gradients as they lie."""
    matrices = model.matrices() if u.dtype == F64 else model.single()
    inputs = [t.detach().requires_grad_() for t in (u, *matrices)]
    y, final = ops.ssm_conv(*inputs, lengths=lengths, backend="cpu")
    return y, final, *torch.autograd.grad((y, final), inputs, (g, torch.ones_like(final)))


@needs_cpu
@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("dtype", [F64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("batch", "heads", "length"),
    [(1, 1, 40), (3, 2, 1), (2, 35, 100), (5, 21, 333), (2, 17, 0), (3, 3, 5000)],
)
def test_heads_that_lie_side_by_side_give_the_same_bits_and_lie_so_in_the_results(
    batch: int, heads: int, length: int, dtype: torch.dtype, dense: bool
) -> None:
    """Fewer heads than a cache line holds, more, no whole number of them; one range of chunks and several."""
    model = Model(heads, 2, 6, 16, dense)
    rows, weights = (
        torch.randn(batch, length, heads).to(dtype),
        torch.randn(batch, length, 2, heads).to(dtype),
    )
    u, g = rows.mT, weights.permute(0, 2, 3, 1)
    lengths = torch.randint(0, length + 1, (batch,))
    side = _everything(u, g, model, lengths)
    for mixed in ((u.contiguous(), g.contiguous()), (u.contiguous(), g), (u, g.contiguous())):
        for got, want in zip(side, _everything(*mixed, model, lengths), strict=True):
            assert torch.equal(got, want)
    if heads > 1 and length > 1:
        assert side[0].permute(0, 3, 1, 2).is_contiguous()
        assert side[2].mT.is_contiguous()


@needs_cpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_instruction_set_takes_heads_that_lie_side_by_side(dtype: torch.dtype) -> None:
    model = Model(19, 1, 6, 16, dense=False)
    u, g = (t.to(dtype) for t in (torch.randn(2, 77, 19), torch.randn(2, 77, 1, 19)))
    u, g = u.mT, g.permute(0, 2, 3, 1)
    for _ in available():
        for got, want in zip(
            _everything(u, g, model), _everything(u.contiguous(), g.contiguous(), model), strict=True
        ):
            assert torch.equal(got, want)


@every_backend
@pytest.mark.parametrize("side", [False, True])
@pytest.mark.parametrize("length", [0, 1, 20])
def test_fakes_say_how_results_lie(backend: str, side: bool, length: int) -> None:
    model = Model(3, 2, 6, 16, dense=False)
    u = torch.randn(2, length, 3, dtype=F64).mT if side else torch.randn(2, 3, length, dtype=F64)

    def strides() -> list[tuple[int, ...]]:
        leaf = u.detach().requires_grad_()
        y, _ = ops.ssm_conv(leaf, *model.matrices(), backend=backend)
        (du,) = torch.autograd.grad(y, leaf, torch.ones_like(y))
        return [y.stride(), du.stride()]

    real = strides()
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        u, model.taps, model.e_out, model.e_in, model.a_powers = (
            mode.from_tensor(t) for t in (u, *model.matrices())
        )
        assert strides() == real


@pytest.mark.parametrize("backend", [b for b in backends("ssm_conv") if b != "torch"])
@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("batch", [1, 2, 3, 11])
@pytest.mark.parametrize(
    ("size", "chunk", "length"), [(2, 4, 9), (18, 32, 1500), (64, 64, 640), (34, 32, 2048)]
)
def test_gradients_agree_with_the_reference(
    backend: str, dense: bool, batch: int, size: int, chunk: int, length: int
) -> None:
    """All shapes of a block: few and many rows, states and chunks that fill no vector, a ragged end."""
    model = Model(2, 2, size, chunk, dense)
    u, state = torch.randn(batch, 2, length, dtype=F64), torch.randn(batch, 2, size, dtype=F64)
    lengths = torch.randint(0, length + 1, (batch,))
    lengths[0] = length
    inputs = [t.clone().requires_grad_() for t in (u, *model.matrices(), model.d, state)]
    results = []
    for name in (backend, "torch"):
        y, final = ops.ssm_conv(*inputs, lengths=lengths, backend=name)
        weights = [torch.cos(torch.arange(t.numel(), dtype=F64)).view(t.shape) for t in (y, final)]
        results.append((y, final, *torch.autograd.grad((y, final), inputs, weights)))
    for got, want in zip(*results, strict=True):
        assert relative(got, want) < 1e-12


@pytest.mark.parametrize("dense", [False, True])
def test_any_number_of_threads_gives_the_same_bits(dense: bool) -> None:
    model = Model(7, 2, 6, 16, dense)
    inputs = [t.requires_grad_() for t in (torch.randn(3, 7, 1111), *model.single())]
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            outputs = ops.ssm_conv(*inputs)
            results.append((*outputs, *torch.autograd.grad(outputs, inputs, [o.detach() for o in outputs])))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.skipif("cpu" not in backends("ssm_conv"), reason="needs the native library")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("chunk", [4, 32])
def test_every_instruction_set_agrees_with_the_reference(chunk: int, dense: bool, dtype: torch.dtype) -> None:
    model = Model(2, 2, 34, chunk, dense)
    inputs = [t.requires_grad_() for t in (torch.randn(3, 2, 333).to(dtype), *model.single())]

    def run(backend: str) -> tuple[Tensor, ...]:
        y, final = ops.ssm_conv(*inputs, backend=backend)
        return y, final, *torch.autograd.grad((y.float().square().sum(), final.square().sum()), inputs)

    want = run("torch")
    for _ in available():
        for got, expected in zip(run("cpu"), want, strict=True):
            assert got.dtype == expected.dtype
            got, expected = (t if t.is_complex() else t.double() for t in (got, expected))
            assert relative(got, expected) < max(5e-6, 2 * torch.finfo(dtype).eps)


def lin(step: Tensor, pairs: int, chunk: int) -> tuple[Tensor, ...]:
    """Chunk matrices of S4D-Lin, by zero-order hold."""
    a = torch.complex(torch.full((pairs,), -0.5, dtype=F64), torch.pi * torch.arange(pairs, dtype=F64))
    x = a * step.unsqueeze(-1)
    return diagonal_matrices(x, (torch.exp(x) - 1) / a, chunk)


def diagonal_matrices(x: Tensor, b: Tensor, chunk: int) -> tuple[Tensor, ...]:
    c = torch.randn(1, *x.shape, dtype=torch.complex128, generator=torch.Generator().manual_seed(0))
    powers = torch.exp(x.unsqueeze(1) * torch.arange(chunk + 1).unsqueeze(-1))  # (H, T + 1, N)
    states = torch.view_as_real(b.unsqueeze(1) * powers[:, :-1]).flatten(-2)
    reads = torch.view_as_real(2 * (c.unsqueeze(2) * powers).conj_physical()).flatten(-2)
    taps = torch.einsum("hts,chs->cht", states, reads[:, :, 0])
    exponents = torch.tensor([1 << i for i in range(chunk.bit_length())])
    a_powers = torch.exp(x.unsqueeze(1) * exponents.unsqueeze(-1))
    return taps, reads[:, :, 1:].mT, states.flip(1), a_powers


def legs(step: Tensor, pairs: int, chunk: int) -> tuple[Tensor, ...]:
    """Chunk matrices of HiPPO-LegS by the bilinear transform, in its real normal form's Schur-like basis."""
    size = 2 * pairs
    q = (2 * torch.arange(size, dtype=F64) + 1).sqrt()
    skew = torch.outer(q, q) / 2
    skew = skew.triu(1) - skew.tril(
        -1
    )  # A + q q^T / 2 = -I / 2 + skew, as A = -(tril(q q^T, -1) + diag(n + 1))
    w, v = torch.linalg.eig(skew)
    keep = torch.argsort(w.imag)[:pairs]
    basis = torch.stack((v[:, keep].real, v[:, keep].imag), -1).flatten(-2) * 2**0.5  # orthogonal
    a = -0.5 * torch.eye(size, dtype=F64) + basis.T @ skew @ basis - torch.outer(basis.T @ q, basis.T @ q) / 2
    half = step.view(-1, 1, 1) / 2 * a
    identity = torch.eye(size, dtype=F64)
    discrete = torch.linalg.solve(identity - half, identity + half)
    b = torch.linalg.solve(identity - half, step.view(-1, 1, 1) * (basis.T @ q).unsqueeze(-1)).squeeze(-1)
    a_rows = discrete.mT
    powers = [identity.expand_as(a_rows)]
    for _ in range(chunk):
        powers.append(powers[-1] @ a_rows)
    c = torch.randn(1, len(step), size, dtype=F64, generator=torch.Generator().manual_seed(0))
    states = torch.stack([(b.unsqueeze(1) @ p).squeeze(1) for p in powers[:-1]], 1)
    e_out = torch.stack([torch.einsum("hst,cht->chs", p, c) for p in powers[1:]], -1)
    taps = torch.einsum("hts,chs->cht", states, c)
    a_powers = torch.stack([powers[1 << i] for i in range(chunk.bit_length())], 1)
    return taps, e_out, states.flip(1), a_powers


@every_backend
@pytest.mark.parametrize(
    ("length", "matrices"),
    [
        (1 << 13, lin),
        (1 << 13, legs),
        pytest.param(1 << 18, lin, marks=pytest.mark.thorough),
        pytest.param(1 << 18, legs, marks=pytest.mark.thorough),
    ],
)
def test_float32_keeps_its_digits_over_long_sequences(backend: str, length: int, matrices: Any) -> None:
    exact = matrices(torch.logspace(-4, 0, 5, dtype=F64), 32, 32)
    single = [m.to(torch.float32) for m in exact[:3]]
    u = torch.randn(1, 5, length)
    want, want_state = ops.ssm_conv(u.double(), *exact, backend=backend)
    y, state = ops.ssm_conv(u, *single, exact[3], backend=backend)
    most = (
        2e-6 if length > 1 << 16 else 1.2e-6
    )  # with a_powers in float32 it would be 2.5e-6 at 2^13, 1e-5 at 2^18
    for h in range(5):
        assert relative(y[:, :, h], want[:, :, h]) < most
        assert relative(state[:, h], want_state[:, h]) < most


@every_backend
@pytest.mark.parametrize("dense", [False, True])
def test_gradients_of_powers_in_double_precision(backend: str, dense: bool) -> None:
    model = Model(2, 1, 6, 16, dense)
    taps, e_out, e_in, _ = model.single()
    u = torch.randn(2, 2, 200)
    a_powers = model.a_powers.clone().requires_grad_()
    y, final = ops.ssm_conv(u, taps, e_out, e_in, a_powers, backend=backend)
    (got,) = torch.autograd.grad(y.sum() + final.sum(), a_powers)
    exact = model.a_powers.clone().requires_grad_()
    y64, final64 = ops.ssm_conv(
        u.double(), *(t.double() for t in (taps, e_out, e_in)), exact, backend=backend
    )
    (want,) = torch.autograd.grad(y64.sum() + final64.sum(), exact)
    assert (y.dtype, final.dtype, got.dtype) == (torch.float32, torch.float32, want.dtype)
    assert relative(got, want) < 2e-6


@pytest.mark.parametrize("alone", [False, True])
def test_registration_with_powers_in_double_precision(alone: bool) -> None:
    model = Model(2, 2, 4, 8, dense=True)
    taps, e_out, e_in, _ = model.single()
    a_powers = model.a_powers[:, -1:] if alone else model.a_powers
    inputs = (torch.randn(2, 2, 16), taps, e_out, e_in, a_powers, model.d.float(), None)
    leaves = tuple(None if t is None else t.clone().requires_grad_() for t in inputs)
    torch.library.opcheck(torch.ops.sequence_kernels.ssm_conv.default, (*leaves, None, "torch"))


@pytest.mark.skipif("cpu" not in backends("ssm_conv"), reason="needs the native library")
@pytest.mark.parametrize(("dtype", "length"), [(torch.bfloat16, 300), (torch.float32, 512)])
def test_strides_beyond_two_to_the_31(dtype: torch.dtype, length: int) -> None:
    """Two sequences further apart than 32 bits can say, in memory of which only their pages are ever touched.

    Those of 300 are copied to where the kernel computes, those of 512 are taken from where they are.
    """
    model = Model(1, 1, 6, 16, dense=False)
    distance = (1 << 31) + 1000
    u, g = (
        torch.empty(distance + length, dtype=dtype).as_strided((2, 1, length), (distance, length, 1))
        for _ in "ug"
    )
    for far in (u, g):
        far.copy_(torch.randn(2, 1, length))
    results = []
    for sequence, weight in ((u, g), (u.clone(), g.clone())):
        leaf = sequence.detach().requires_grad_()
        y, final = ops.ssm_conv(leaf, *model.single(), backend="cpu")
        results.append((y, final, *torch.autograd.grad(y, leaf, weight.unsqueeze(1))))
    for got, want in zip(*results, strict=True):
        assert torch.equal(got, want)


@pytest.mark.thorough
@pytest.mark.skipif("cpu" not in backends("ssm_conv"), reason="needs the native library")
def test_more_than_two_to_the_31_outputs() -> None:
    """A constant input, which settles: the last outputs of the last channel are those of a shorter sequence."""
    model = Model(1, 2, 2, 32, dense=False)
    length = (1 << 30) + 77
    short = length % 32 + 4096
    one = torch.ones(1, 1, 1, dtype=torch.bfloat16)
    y, _ = ops.ssm_conv(one.expand(1, 1, length), *model.single(), backend="cpu")
    want, _ = ops.ssm_conv(one.expand(1, 1, short), *model.single(), backend="cpu")
    assert y.numel() > 1 << 31
    assert torch.equal(y[..., -2000:], want[..., -2000:])
    assert torch.equal(y[:, 0, :, :2000], want[:, 0, :, :2000])


@pytest.mark.parametrize("dense", [False, True])
def test_plain_torch_makes_few_calls_however_long_the_sequence(dense: bool) -> None:
    """64 times as many chunks: six doublings more, each of 6 calls forward and 12 backward; it was 16 a chunk."""
    model = Model(2, 1, 4, 32, dense)
    counts = []
    for length in (256, 16384):
        u, state = torch.randn(1, 2, length, dtype=F64), torch.randn(1, 2, 4, dtype=F64)
        inputs = (u, *model.matrices(), model.d, state, None)
        with Computing() as forward:
            y, final = implementation("ssm_conv", "torch")(*inputs)
        with Computing() as backward:
            implementation("ssm_conv_backward", "torch")(y, final, *inputs)
        counts.append((len(forward.names), len(backward.names)))
    (few, few_back), (many, many_back) = counts
    assert many - few <= 6 * 7
    assert many_back - few_back <= 6 * 14
    assert few_back < 300


@every_backend
def test_empty_batches(backend: str) -> None:
    model = Model(3, 2, 6, 16, dense=False)
    y, final = ops.ssm_conv(torch.ones(0, 3, 20, dtype=F64), *model.matrices(), backend=backend)
    assert y.shape == (0, 2, 3, 20)
    assert final.shape == (0, 3, 6)


def test_bad_arguments() -> None:
    model = Model(3, 2, 6, 16, dense=False)
    taps, e_out, e_in, a_powers = model.matrices()
    u = torch.ones(2, 3, 20, dtype=F64)
    with pytest.raises(ValueError, match="T a power of two, got T=12"):
        ops.ssm_conv(u, taps[..., :12], e_out[..., :12], e_in[:, :12], a_powers)
    with pytest.raises(ValueError, match=r"a_powers must have shape \(H=3, log2\(T\)\+1=5, S/2=3\), got"):
        ops.ssm_conv(u, taps, e_out, e_in, a_powers[:, :4])
    with pytest.raises(ValueError, match=r"u must have shape \(B, H, L\), got \(3, 20\)"):
        ops.ssm_conv(u[0], *model.matrices())
    with pytest.raises(TypeError, match=r"taps must be one of float64, got torch.float32"):
        ops.ssm_conv(u, taps.float(), e_out, e_in, a_powers)
    with pytest.raises(ValueError, match=r"lengths must be in 0 .. 20, got values in 3 .. 21"):
        ops.ssm_conv(u, *model.matrices(), lengths=torch.tensor([3, 21]))
    with pytest.raises(ValueError, match=r"initial_state must have shape \(B=2, H=3, S=6\)"):
        ops.ssm_conv(u, *model.matrices(), initial_state=torch.ones(1, 3, 6, dtype=F64))
