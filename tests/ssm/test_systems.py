"""Discrete systems against dense float64 matrices that are discretised and multiplied out step by step."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sequence_kernels import ops
from sequence_kernels.ssm import (
    DPLRSSM,
    DiagonalSSM,
    SSKernel,
    System,
    chunk_matrices,
    diagonal_init,
    discretize,
    dplr_init,
    hippo_matrices,
)
from sequence_kernels.ssm.diagonal import DiagonalSystem
from sequence_kernels.ssm.parameters import REAL_TYPES, initial_log_dt
from tests.computing import Computing

C128 = torch.complex128
LENGTH = 70


def bilinear(a: Tensor, b: Tensor, dt: float) -> tuple[Tensor, Tensor]:
    """Tustin's rule on dense matrices."""
    identity = torch.eye(len(a), dtype=a.dtype)
    inverse = torch.linalg.inv(identity - dt / 2 * a)
    return inverse @ (identity + dt / 2 * a), dt * inverse @ b


def zoh(a: Tensor, b: Tensor, dt: float) -> tuple[Tensor, Tensor]:
    """The exponential of the augmented matrix."""
    n = len(a)
    block = torch.zeros(n + 1, n + 1, dtype=a.dtype)
    block[:n, :n], block[:n, n] = a * dt, b * dt
    exponential = torch.linalg.matrix_exp(block)
    return exponential[:n, :n], exponential[:n, n]


def impulse_response(a: Tensor, b: Tensor, c: Tensor, length: int) -> Tensor:
    """c A^l b for l < length, one product after the other."""
    state, out = b, []
    for _ in range(length):
        out.append((c @ state).real)
        state = a @ state
    return torch.stack(out)


def make_dplr(measure: str, rank: int, heads: int = 3, size: int = 8) -> tuple[DPLRSSM, Tensor]:
    w, p, b = dplr_init(measure, size, rank, 1, dtype=C128)
    c = torch.randn(2, heads, size // 2, dtype=C128)
    log_dt = torch.linspace(-4, -1, heads, dtype=torch.float64)
    return DPLRSSM(w, p, b, c, log_dt), c


def make_diagonal(disc: str, heads: int = 3, size: int = 8) -> tuple[DiagonalSSM, Tensor]:
    a, b = diagonal_init("diag-lin", size, 1, dtype=C128)
    c = torch.randn(2, heads, size // 2, dtype=C128)
    return DiagonalSSM(a, b, c, torch.linspace(-4, -1, heads, dtype=torch.float64), disc=disc), c


SYSTEMS = [
    pytest.param(lambda: make_diagonal("zoh"), id="zoh"),
    pytest.param(lambda: make_diagonal("bilinear"), id="bilinear"),
    *(
        pytest.param(lambda m=m, r=r: make_dplr(m, r), id=f"{m}-{r}")
        for m, r in [("legs", 1), ("legt", 2), ("fourier", 1), ("legsd", 1), ("legs", 3)]
    ),
]


@pytest.mark.parametrize("disc", ["zoh", "bilinear"])
def test_diagonal_kernel_against_dense_powers(disc: str) -> None:
    ssm, c = make_diagonal(disc)
    a, b = diagonal_init("diag-lin", 8, 1, dtype=C128)
    kernel = ssm.system().kernel(LENGTH)
    for head, dt in enumerate(ssm.log_dt.exp().tolist()):
        dense, drive = {"zoh": zoh, "bilinear": bilinear}[disc](torch.diag(a[0]), b[0], dt)
        for channel in range(2):
            want = 2 * impulse_response(dense, drive, c[channel, head] * b[0], LENGTH)
            torch.testing.assert_close(kernel[channel, head], want)


@pytest.mark.parametrize(("measure", "rank"), [("legs", 1), ("legt", 2), ("fourier", 1), ("legs", 2)])
def test_s4_kernel_against_the_dense_hippo_system(measure: str, rank: int) -> None:
    """The whole way from conjugate pairs, low rank and FFT against the HiPPO matrix itself, in another basis.

    The readout is B itself, the one vector that is known in both bases.
    """
    a, b = hippo_matrices(measure, 8)
    w, p, low_b = dplr_init(measure, 8, rank, 1, dtype=C128)
    log_dt = torch.tensor([-3.0, -1.0], dtype=torch.float64)
    ssm = DPLRSSM(w, p, low_b, low_b.conj().resolve_conj().expand(1, 2, -1), log_dt, real_tolerance=1e-9)
    taps = chunk_matrices(ssm.system(), 128).taps[..., :LENGTH]
    for head, dt in enumerate(log_dt.exp().tolist()):
        want = impulse_response(*bilinear(a, b, dt), b, LENGTH)
        torch.testing.assert_close(taps[0, head], want, rtol=1e-8, atol=1e-10)
        if (
            measure != "fourier"
        ):  # its pole at -1e-9 meets the node 0: no digits are left in the generating function
            torch.testing.assert_close(ssm.system().kernel(LENGTH)[0, head], want, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("make", SYSTEMS)
@pytest.mark.parametrize("rate", [1.0, 2.0, 0.5])
def test_kernel_chunks_and_steps_are_one_system(make: object, rate: float) -> None:
    ssm, _ = make()  # type: ignore[operator]
    system: System = ssm.system(rate)
    kernel = system.kernel(LENGTH)
    state = torch.zeros(1, 3, 4, dtype=C128)
    outputs = []
    for t in range(LENGTH):
        u = torch.full((1, 3), float(t == 0), dtype=torch.float64)
        y, state = ops.ssm_step(state, u, *system.step_parameters())
        outputs.append(y[0])
    torch.testing.assert_close(torch.stack(outputs, -1), kernel, rtol=1e-9, atol=1e-11)

    impulse = torch.zeros(1, 3, LENGTH, dtype=torch.float64)
    impulse[..., 0] = 1
    for chunk in (1, 2, 16, 128):
        y, final = ops.ssm_conv(impulse, *chunk_matrices(system, chunk))
        torch.testing.assert_close(y[0], kernel, rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(torch.view_as_complex(final.unflatten(-1, (-1, 2))), state)
    torch.testing.assert_close(system.channels(1, 2).kernel(LENGTH), kernel[1:], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("make", SYSTEMS)
@pytest.mark.parametrize("length", [0, 1, 2, 63, 64, 65])
def test_kernels_of_every_length_are_prefixes(make: object, length: int) -> None:
    ssm, _ = make()  # type: ignore[operator]
    system = ssm.system()
    torch.testing.assert_close(
        system.kernel(length), system.kernel(LENGTH)[..., :length], rtol=1e-8, atol=1e-10
    )


@pytest.mark.parametrize("make", SYSTEMS)
def test_kernels_and_chunk_matrices_are_differentiable(make: object) -> None:
    ssm, _ = make()  # type: ignore[operator]
    names, parameters = zip(*ssm.named_parameters(), strict=True)

    def through(path: str, *values: Tensor) -> Tensor:
        with torch.nn.utils.stateless._reparametrize_module(ssm, dict(zip(names, values, strict=True))):
            if path == "kernel":
                return ssm.system().kernel(9)
            return ops.ssm_conv(signal, *chunk_matrices(ssm.system(), 4))[0]

    signal = torch.randn(1, 3, 9, dtype=torch.float64)
    for path in ("kernel", "chunks"):
        assert torch.autograd.gradcheck(
            lambda *values, path=path: through(path, *values), parameters, fast_mode=True
        )


@torch.no_grad()
def test_float32_systems_keep_their_digits() -> None:
    """The kernel of HiPPO-LegS in float32 within 2e-6 of float64 (contract 0.7: cached in float32 it is 3e-3)."""
    w, p, b = dplr_init("legs", 64, 1, 1, dtype=torch.complex64)
    c = torch.randn(1, 4, 32, dtype=torch.complex64)
    log_dt = torch.linspace(-6.9, -2.3, 4)
    single = DPLRSSM(w, p, b, c, log_dt)
    double = DPLRSSM(w, p, b, c, log_dt).double()
    for length in (1000, 4096):
        want = double.system().kernel(length)
        assert float(((single.system().kernel(length) - want).norm(dim=-1) / want.norm(dim=-1)).max()) < 2e-6


@pytest.mark.parametrize("length", [5, 20])
def test_truncated_readouts_round_trip(length: int) -> None:
    ssm, c = make_dplr("legs", 1)
    system = ssm.system()
    truncated = system.truncated_readout(length)
    assert float((truncated - c).detach().abs().max()) > 1e-3
    with torch.no_grad():
        ssm.C.copy_(torch.view_as_real(truncated))
    torch.testing.assert_close(ssm.system().untruncated_readout(length), c, rtol=1e-9, atol=1e-9)


def test_dss_normalises_over_its_length() -> None:
    """The formula of contract and paper, written out with all exponentials."""
    a, b = diagonal_init("diag-lin", 8, 1, dtype=C128)
    c = torch.randn(1, 2, 4, dtype=C128)
    log_dt = torch.tensor([-3.0, -1.0], dtype=torch.float64)
    ssm = DiagonalSSM(a, b, c, log_dt, disc="dss", l_max=50)
    position = torch.arange(50, dtype=torch.float64)
    x = a * log_dt.exp().unsqueeze(-1)
    rows = torch.exp(x.unsqueeze(-1) * position)
    softmax = rows / rows.sum(-1, keepdim=True)
    want = torch.einsum("hn,hnl->hl", c[0] * b * b / a, softmax).real
    torch.testing.assert_close(ssm.system().kernel(50)[0], want, rtol=1e-5, atol=1e-6)


def test_zoh_is_continuous_at_zero() -> None:
    a = torch.tensor([[0.0, 1e-9, 1e-3, -1e-2, 0.3j]], dtype=C128)
    _, b = discretize(a, torch.ones_like(a), torch.ones(1, dtype=torch.float64), "zoh")
    assert abs(b[0, 0] - 1) < 1e-15
    for i in range(1, 5):
        want = torch.expm1(a[0, i]) / a[0, i]
        assert abs(b[0, i] - want) < 1e-12


@pytest.mark.parametrize("disc", ["zoh", "bilinear", "dss"])
@pytest.mark.parametrize("pole", [0, -2, -2 + 1e-17j, 1e-9j, -1e-2, -1.5 - 3j, -300, -1e4])
def test_gradients_where_a_discretisation_divides_by_zero(disc: str, pole: complex) -> None:
    """... or takes the logarithm of it, or overflows in what is not used: at a step of 1 that is at 0 and at -2."""

    def kernel(real: Tensor, imag: Tensor, log_dt: Tensor) -> Tensor:
        a = torch.complex(real, imag)
        x, b = discretize(a, torch.ones_like(a), log_dt.exp(), disc, 3000)
        system = DiagonalSystem(x, b, torch.full((1, 1, 1), 1 + 0.5j, dtype=C128))
        return torch.cat((system.kernel(4).flatten(), torch.view_as_real(x.exp() * b).flatten()))

    at = complex(pole)
    parts = [torch.full((1, 1), part, dtype=torch.float64) for part in (at.real, at.imag)]
    inputs = [t.requires_grad_() for t in (*parts, torch.zeros(1, dtype=torch.float64))]
    assert torch.autograd.gradcheck(kernel, inputs, eps=1e-9, atol=1e-6)


@pytest.mark.parametrize("real_type", REAL_TYPES)
def test_real_types_invert(real_type: str) -> None:
    decay = torch.tensor([0.01, 0.3, 0.9], dtype=torch.float64)
    kind = REAL_TYPES[real_type]
    torch.testing.assert_close(kind.decay(kind.stored(decay)), decay)


def test_bad_arguments() -> None:
    a, b = diagonal_init("diag-lin", 8, 1)
    c, log_dt = torch.zeros(1, 2, 4, dtype=torch.complex64), torch.zeros(2)
    with pytest.raises(ValueError, match=r"disc must be one of .* got 'euler'"):
        DiagonalSSM(a, b, c, log_dt, disc="euler")
    with pytest.raises(ValueError, match="pass l_max"):
        DiagonalSSM(a, b, c, log_dt, disc="dss").system()
    with pytest.raises(ValueError, match=r"real_type must be one of .* got 'cube'"):
        DiagonalSSM(a, b, c, log_dt, real_type="cube")
    with pytest.raises(ValueError, match=r"real_type='sigmoid' cannot express .* up to 4"):
        DiagonalSSM(4 * a.real - 2 + 0j, b, c, log_dt, real_type="sigmoid")
    with pytest.raises(ValueError, match="dt_min and dt_max must satisfy 0 < dt_min <= dt_max"):
        initial_log_dt(3, 0.1, 0.01, torch.float32)


def test_few_calls_from_parameters_to_chunk_matrices() -> None:
    """As docs/decisions.md counts them. Those of a diagonal model are its discretisation's, in plain torch."""
    for mode, forward, backward in (("nplr", 8, 7), ("diag", 28, 70)):
        system = SSKernel(4, 8, mode=mode, **({"disc": "zoh"} if mode == "diag" else {})).kernel.system
        with Computing() as count:
            matrices = chunk_matrices(system(), 16)
        assert count.names[-1] == "ssm_chunk"
        assert len(count.names) <= forward
        gradients = [torch.ones_like(m) for m in matrices]
        with Computing() as count:
            torch.autograd.backward(matrices, gradients)
        assert len(count.names) <= backward
