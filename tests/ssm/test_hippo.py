"""The initial values against their definitions: the measures' integrals, closed forms, the dense matrices."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.linalg
import scipy.special
import torch

from sequence_kernels.ssm.hippo import diagonal_init, dplr_init, hippo_matrices

HIPPO = ["legs", "legt", "fourier", "fourier_diag", "legsd"]
SPECTRA = ["lin", "inv", "inv2", "quad", "real", "random", "legs"]


def dense(measure: str, d_state: int) -> tuple[np.ndarray, np.ndarray]:
    a, b = hippo_matrices(measure, d_state)
    assert a.dtype == b.dtype == torch.float64
    assert a.shape == (d_state, d_state)
    assert b.shape == (d_state,)
    return a.numpy(), b.numpy()


def full(z: torch.Tensor) -> np.ndarray:
    """Both of each conjugate pair along the last axis."""
    return torch.cat([z, z.conj()], dim=-1).numpy()


def legendre(n: int, s: np.ndarray) -> np.ndarray:
    """Orthonormal Legendre polynomials on [0, 1], (n, points)."""
    return np.stack(
        [math.sqrt(2 * k + 1) * scipy.special.eval_legendre(float(k), 2 * s - 1) for k in range(n)]
    )


def fourier(n: int, s: np.ndarray) -> np.ndarray:
    """Orthonormal 1, 0, sqrt(2) cos(2 pi s), sqrt(2) sin(2 pi s), ... on [0, 1], (n, points)."""
    waves = [f(2 * math.pi * k * s) * math.sqrt(2) for k in range(n // 2) for f in (np.cos, np.sin)]
    waves[0] = np.ones_like(s)
    return np.stack(waves)


def derivative_in_basis(basis, n: int) -> np.ndarray:
    """D with p_j' = sum_k D_jk p_k: Gauss-Legendre quadrature on [0, 1], derivatives by a complex step."""
    nodes, weights = np.polynomial.legendre.leggauss(100)
    s, h = (nodes + 1) / 2, 1e-30
    slope = basis(n, s + 1j * h).imag / h
    return slope * (weights / 2) @ basis(n, s).T


def test_legs_is_the_closed_form_of_the_scaled_legendre_measure() -> None:
    a, b = dense("legs", 7)
    for row in range(7):
        assert b[row] == pytest.approx(math.sqrt(2 * row + 1), rel=1e-15)
        for column in range(7):
            below = -math.sqrt((2 * row + 1) * (2 * column + 1))
            expected = below if row > column else -(row + 1) if row == column else 0
            assert a[row, column] == pytest.approx(expected, rel=1e-14)


def test_legs_impulse_response_is_legendre_under_an_exponential_window() -> None:
    a, b = dense("legs", 9)
    for t in (0.0, 0.1, 0.7, 2.5):
        expected = legendre(9, np.exp([-t]))[:, 0] * math.exp(-t)
        np.testing.assert_allclose(scipy.linalg.expm(a * t) @ b, expected, rtol=0, atol=1e-10)


def test_legt_follows_from_projecting_a_window_on_legendre_polynomials() -> None:
    """c_j = 1/w int_0^w u(t - s) p_j(s/w) ds, differentiated in t; u(t - w) read from the projection."""
    n, w = 8, 2.0
    ends = legendre(n, np.array([0.0, 1.0]))
    expected = (derivative_in_basis(legendre, n) - np.outer(ends[:, 1], ends[:, 1])) / w
    flip = (-1.0) ** np.arange(n)  # our polynomials run from the present to the past
    a, b = dense("legt", n)
    np.testing.assert_allclose(a, flip[:, None] * expected * flip, rtol=0, atol=1e-10)
    np.testing.assert_allclose(b, flip * ends[:, 0] / w, rtol=0, atol=1e-12)


def test_legt_read_at_the_far_end_delays_by_the_window() -> None:
    """The transfer function from u to the window's far end is a Pade approximant of exp(-2 s)."""
    n = 6
    a, b = dense("legt", n)
    read = np.sqrt(2 * np.arange(n) + 1) * (-1.0) ** np.arange(n)
    moment = b
    for order in range(2 * n):
        moment = np.linalg.solve(a, moment)
        assert -read @ moment == pytest.approx((-2.0) ** order / math.factorial(order), rel=1e-8)


def test_fourier_follows_from_projecting_a_window_on_a_truncated_fourier_series() -> None:
    """As legt; but a Fourier series ends at the mean of both ends: u(t - w) = 2 sum_k c_k p_k(w) - u(t)."""
    n, w = 8, 2.0
    end = fourier(n, np.array([0.0]))[:, 0]
    a, b = dense("fourier", n)
    expected = (derivative_in_basis(fourier, n) - 2 * np.outer(end, end)) / w
    np.testing.assert_allclose(a, expected, rtol=0, atol=1e-10)
    np.testing.assert_allclose(b, 2 * end / w, rtol=0, atol=1e-12)


def test_fourier_diag_impulse_response_is_a_decaying_fourier_series() -> None:
    a, b = dense("fourier_diag", 10)
    for t in (0.0, 0.13, 1.7):
        waves = fourier(10, np.array([t]))[:, 0] * math.exp(-t / 2)
        np.testing.assert_allclose(scipy.linalg.expm(a * t) @ b, waves, rtol=0, atol=1e-12)


def test_legsd_transfer_function_tends_to_that_of_legs() -> None:
    """Without the low-rank part and with half of B; the gap at s = 1/2 falls as 1 / N^2 (measured)."""

    def gap(n: int) -> float:
        (a, b), (normal, half) = dense("legs", n), dense("legsd", n)
        transfer = np.linalg.solve(np.eye(n) / 2 - a, b) - np.linalg.solve(np.eye(n) / 2 - normal, half)
        return float(np.abs(transfer[:4]).max())

    assert gap(256) < gap(64) / 10 < gap(16) / 100 < 1e-5


def eigenvectors(a: np.ndarray, w: np.ndarray, b: np.ndarray, b_modes: np.ndarray) -> np.ndarray:
    """Unit eigenvectors of the skew part of ``a`` in the order of ``w``, phases such that V^* b = b_modes."""
    skew = (a - a.T) / 2
    kernel = scipy.linalg.null_space(skew)
    values, vectors = scipy.linalg.eig(skew)
    columns = []
    for pole in w:
        if abs(pole.imag) < 1e-9:
            column = (kernel[:, 0] + 1j * kernel[:, 1]) / math.sqrt(2)
        else:
            column = vectors[:, np.abs(values - 1j * pole.imag).argmin()]
        phase = (column.conj() @ b) / b_modes[len(columns)]
        columns.append(column * phase / abs(phase))
    return np.stack(columns, axis=1)


@pytest.mark.parametrize("measure", [*HIPPO, "fout", "foud"])
@pytest.mark.parametrize("d_state", [2, 6, 16, 64])
def test_dplr_form_is_unitarily_equivalent_to_the_matrix(measure: str, d_state: int) -> None:
    a, b = dense(measure, d_state)
    w, p, b_modes = dplr_init(measure, d_state, rank=2, dtype=torch.complex128)
    half = eigenvectors(a, w[0].numpy(), b, b_modes[0].numpy())
    v = np.concatenate([half, half.conj()], axis=1)
    compressed = np.diag(full(w[0])) - full(p[:, 0]).T @ full(p[:, 0]).conj()
    np.testing.assert_allclose(v.conj().T @ v, np.eye(d_state), rtol=0, atol=1e-9)
    np.testing.assert_allclose(v @ compressed @ v.conj().T, a, rtol=0, atol=1e-9)
    np.testing.assert_allclose(v @ full(b_modes[0]), b, rtol=0, atol=1e-9)
    assert (w.imag <= 0).all()
    assert (b_modes.imag.abs() < 1e-14).all()
    assert (b_modes.real > 0).all()


@pytest.mark.parametrize("measure", ["legs", "hippo", "legt", "diag", "all", "dplr"])
def test_float32_is_the_float64_result_rounded(measure: str) -> None:
    args = {"scaling": "inv"} if measure == "dplr" else {}
    wide = dplr_init(measure, 32, 2, 4, dtype=torch.complex128, **args)
    for narrow, exact in zip(dplr_init(measure, 32, 2, 4, **args), wide, strict=True):
        assert narrow.dtype == torch.complex64
        assert torch.equal(narrow, exact.to(torch.complex64))


def test_spectra_are_their_formulas() -> None:
    n, size = np.arange(8), 16
    expected = {
        "lin": -0.5 + 1j * math.pi * n,
        "inv": -0.5 + 1j * size / math.pi * (size / (2 * n + 1) - 1),
        "inv2": -0.5 + 1j * size / math.pi * (size / (n + 1) - 1),
        "quad": -0.5 + 1j / math.pi * (1 + 2 * n) ** 2,
        "real": -(1.0 + n) + 0j,
        "legs": dplr_init("legs", size, dtype=torch.complex128).w[0].numpy(),
    }
    for name, poles in expected.items():
        a, b = diagonal_init(f"diag-{name}", size, 3, dtype=torch.complex128)
        np.testing.assert_allclose(a.numpy(), np.tile(poles, (3, 1)), rtol=1e-14)
        assert torch.equal(b, torch.ones(3, 8, dtype=torch.complex128))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("lin", "diag-linear"),
        ("linear", "diag-lin"),
        ("inverse", "diag-inv"),
        ("inv2", "diag-inv2"),
        ("quad", "diag-quad"),
        ("real", "diag-real"),
        ("diag-hippo", "diag-legs"),
        ("fout", "fourier"),
        ("foud", "fourier_diag"),
        ("hippo", ["legs", "fourier"]),
        ("diag", ["inv", "lin"]),
        ("all", ["hippo", "diag"]),
    ],
)
def test_names_of_the_same_measure(one: str, other: str | list[str]) -> None:
    for init in (dplr_init(one, 8, n_ssm=4), diagonal_init(one, 8, n_ssm=4)):
        again = dplr_init(other, 8, n_ssm=4) if len(init) == 3 else diagonal_init(other, 8, n_ssm=4)
        assert all(torch.equal(x, y) for x, y in zip(init, again, strict=True))


def test_combined_measures_share_the_copies_in_equal_runs() -> None:
    both = dplr_init(["legs", "diag-quad"], 8, rank=3, n_ssm=6)
    assert [x.shape for x in both] == [(6, 4), (3, 6, 4), (6, 4)]
    for first, measure in ((0, "legs"), (3, "quad")):
        alone = dplr_init(measure, 8, rank=3, n_ssm=3)
        assert torch.equal(both.w[first : first + 3], alone.w)
        assert torch.equal(both.p[:, first : first + 3], alone.p)
        assert torch.equal(both.b[first : first + 3], alone.b)


def test_diagonal_init_keeps_the_measures_input_vector() -> None:
    for measure in HIPPO:
        init, kept = dplr_init(measure, 16, 2, 2), diagonal_init(measure, 16, 2)
        assert torch.equal(kept.a, init.w)
        assert torch.equal(kept.b, init.b)


def test_random_parts() -> None:
    def draw(seed: int, measure: str = "diag-random", **args: object) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return dplr_init(measure, 64, 2, 64, generator=generator, **args)

    state = torch.get_rng_state()
    assert torch.equal(draw(1).w, draw(1).w)
    assert not torch.equal(draw(1).w, draw(2).w)
    imag = draw(1, imag_scale=3.0).w.imag
    assert imag.mean().abs() < 0.3
    assert imag.std() == pytest.approx(3, rel=0.05)
    real = draw(1, "lin", random_real=True, real_scale=2.0).w.real
    assert -2 < real.min() < -1.95
    assert -0.05 < real.max() < 0
    index = draw(1, "lin", random_imag=True).w.imag / math.pi
    assert 0 <= index.min() < 0.2
    assert 31.8 < index.max() < 32
    inverse = draw(1, "inv", random_imag=True).w.imag
    torch.testing.assert_close(inverse, 64 / math.pi * (64 / (2 * index + 1) - 1), rtol=1e-4, atol=1e-3)
    for normal in (draw(1, "lin", random_B=True).b, draw(1, "dplr", scaling="lin", diagonal=False).p):
        assert normal.abs().square().mean() == pytest.approx(1, rel=0.05)
        assert normal.square().mean().abs() < 0.05
    assert torch.equal(torch.get_rng_state(), state)
    assert (draw(1, "lin").p == 0).all()


def test_normalize_sets_the_gain_at_frequency_zero() -> None:
    for random_b in (False, True):
        a, b = diagonal_init("inv", 16, 3, dtype=torch.complex128, normalize=True, random_B=random_b)
        np.testing.assert_allclose((np.abs(full(b) / full(a)) ** 2).sum(-1), 1, rtol=1e-12)


def test_scales_stretch_the_spectrum() -> None:
    plain, scaled = diagonal_init("legs"), diagonal_init("diag-legs", real_scale=3.0, imag_scale=0.25)
    torch.testing.assert_close(scaled.a.real, 3 * plain.a.real)
    torch.testing.assert_close(scaled.a.imag, plain.a.imag / 4)


@pytest.mark.parametrize("init", [dplr_init, diagonal_init])
def test_errors_name_the_argument(init) -> None:
    with pytest.raises(ValueError, match=r"measure must be one of legs, .*diag-lin.*hippo.*got 'laguerre'"):
        init("laguerre")
    with pytest.raises(ValueError, match=r"measure must be one of .*got 'diag-legt'"):
        init("diag-legt")
    with pytest.raises(TypeError, match="measure must be a name or a sequence of names; got \\[3\\]"):
        init([3])
    with pytest.raises(ValueError, match="d_state must be even: conjugate pairs; got 7"):
        init("legs", 7)
    for small in (0, -2):
        with pytest.raises(ValueError, match=f"d_state must be at least 1, got {small}"):
            init("legs", small)
    with pytest.raises(
        ValueError, match="n_ssm must be a positive multiple of the 2 measures in 'hippo'; got 3"
    ):
        init("hippo", n_ssm=3)
    with pytest.raises(ValueError, match="n_ssm must be at least 1, got 0"):
        init("legs", n_ssm=0)
    with pytest.raises(TypeError, match=r"'legs' takes no measure_args; got \['real_scale'\]"):
        init("legs", real_scale=2.0)
    with pytest.raises(TypeError, match=r"'diag-lin' takes the measure_args .*imag_scale.*got \['skale'\]"):
        init("lin", skale=2.0)
    with pytest.raises(TypeError, match=r"'dplr' needs measure_args\['scaling'\]"):
        init("dplr")


def test_rank_errors() -> None:
    with pytest.raises(ValueError, match="rank must be at least 2 for measure 'legt'; got 1"):
        dplr_init("legt", rank=1)
    with pytest.raises(ValueError, match="rank must be at least 1, got 0"):
        dplr_init("legsd", rank=0)
    assert diagonal_init("legt").a.shape == (1, 32)


def test_matrix_errors() -> None:
    with pytest.raises(ValueError, match=r"measure must be one of legs, legt, .*; got 'diag-lin'"):
        hippo_matrices("diag-lin", 4)
    with pytest.raises(ValueError, match="d_state must be at least 1, got 0"):
        hippo_matrices("legs", 0)
    with pytest.raises(ValueError, match="d_state must be even"):
        hippo_matrices("fout", 5)
    assert hippo_matrices("legs", 5)[0].shape == (5, 5)
