"""The chunked convolution of every backend against the recurrence, the FFT convolution, and itself in pieces."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from sequence_kernels import ops

from ..test_contract import backends

every_backend = pytest.mark.parametrize("backend", backends("ssm_conv"))
F64 = torch.float64


class Model:
    """A random stable real system x_t = x_{t-1} A + u_t b, y_t = x_t c + d u_t, and its chunk matrices."""

    def __init__(self, heads: int, channels: int, size: int, chunk: int, dense: bool) -> None:
        generator = torch.Generator().manual_seed(size + chunk)

        def random(*shape: int) -> Tensor:
            return torch.randn(*shape, dtype=F64, generator=generator)

        self.diagonal = torch.complex(random(heads, size // 2), random(heads, size // 2))
        self.diagonal = 0.95 * self.diagonal / self.diagonal.abs().clamp(min=1)
        if dense:
            self.a = random(heads, size, size) / (1.2 * size**0.5)
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
    return float((got - want).norm() / want.norm()) if want.numel() else 0.0


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
    assert relative(y, want) < 1e-12
    for row, length in enumerate(lengths.tolist()):
        assert relative(final[row], states[length][row]) < 1e-12


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
    assert relative(final, states[-1]) < 5e-6
    assert relative(y, want) < max(5e-6, 0.6 * torch.finfo(dtype).eps)


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
