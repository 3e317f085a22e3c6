"""Initial values of state-space models: HiPPO matrices, their diagonal plus low-rank forms, diagonal spectra.

A HiPPO matrix A (N, N) is a normal matrix minus a low-rank one: A = M - sum_r P_r P_r^T, M + M^T = 2 c I. M
is unitarily diagonal, its eigenvalues come in conjugate pairs, and one of each pair is kept: n = N / 2 poles
w, and p, b the coordinates of P, B along the kept eigenvectors. All is computed in float64 and rounded once.

Sources: "HiPPO" (Gu et al., 2020) for legs and legt; "Efficiently modeling long sequences with structured
state spaces" (2022) for the diagonal plus low-rank form; "How to train your HiPPO" (2022) for fourier and
legsd; "On the parameterization and initialization of diagonal state space models" (2022) for the diagonal
spectra.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..arguments import values
from ..arguments.values import checked

__all__ = ["DPLRInit", "DiagonalInit", "diagonal_init", "dplr_init", "hippo_matrices"]


class DPLRInit(NamedTuple):
    """x' = (diag(w) - p p^*) x + b u, one of each conjugate pair: w (S, n), p (R, S, n), b (S, n)."""

    w: Tensor
    p: Tensor
    b: Tensor


class DiagonalInit(NamedTuple):
    """x' = diag(a) x + b u, one of each conjugate pair: a (S, n), b (S, n)."""

    a: Tensor
    b: Tensor


def _legendre_scale(d_state: int) -> Tensor:
    return (2 * torch.arange(d_state, dtype=torch.float64) + 1).sqrt()


def _legs(d_state: int) -> tuple[Tensor, Tensor, Tensor]:
    q = _legendre_scale(d_state)
    a = -torch.outer(q, q).tril(-1) - torch.diag((q * q + 1) / 2)
    return a, q, q[None] / math.sqrt(2)


def _legsd(d_state: int) -> tuple[Tensor, Tensor, Tensor]:
    a, b, p = _legs(d_state)
    return a + p.mT @ p, b / 2, p[:0]


def _legt(d_state: int) -> tuple[Tensor, Tensor, Tensor]:
    q = _legendre_scale(d_state)
    odd = torch.arange(d_state) % 2
    above = torch.where(odd[:, None] == odd, 1.0, -1.0).triu(1)
    a = torch.outer(q, q) * (above + torch.ones_like(above).tril()) / -2
    return a, q / 2, torch.stack([q * odd, q * (1 - odd)]) / math.sqrt(2)


def _rotations(d_state: int, step: float) -> tuple[Tensor, Tensor]:
    """Skew matrix turning each (cosine, sine) pair k at frequency k * step, and the cosines' values at 0."""
    _check_even(d_state)
    skew = torch.zeros(d_state, d_state, dtype=torch.float64)
    skew.diagonal(-1)[::2] = step * torch.arange(d_state // 2, dtype=torch.float64)
    b = torch.zeros(d_state, dtype=torch.float64)
    b[::2] = math.sqrt(2)
    b[0] = 1.0
    return skew - skew.mT, b


def _fourier(d_state: int) -> tuple[Tensor, Tensor, Tensor]:
    skew, b = _rotations(d_state, math.pi)
    return skew - torch.outer(b, b), b, b[None]


def _fourier_diag(d_state: int) -> tuple[Tensor, Tensor, Tensor]:
    skew, b = _rotations(d_state, 2 * math.pi)
    return skew - torch.eye(d_state, dtype=torch.float64) / 2, b, b[None][:0]


# Name -> d_state -> (A (N, N), B (N,), P (r, N)) with A + P^T P normal.
_HIPPO: dict[str, Callable[[int], tuple[Tensor, Tensor, Tensor]]] = {
    "legs": _legs,
    "legt": _legt,
    "fourier": _fourier,
    "fourier_diag": _fourier_diag,
    "legsd": _legsd,
}
# Name -> (index k in [0, n), N) -> imaginary part.
_SPECTRA: dict[str, Callable[[Tensor, int], Tensor]] = {
    "lin": lambda k, size: math.pi * k,
    "inv": lambda k, size: size / math.pi * (size / (2 * k + 1) - 1),
    "inv2": lambda k, size: size / math.pi * (size / (k + 1) - 1),
    "quad": lambda k, size: (2 * k + 1) ** 2 / math.pi,
}
_SCALINGS = (*_SPECTRA, "real", "random", "legs")
_ALIASES = {"fout": "fourier", "foud": "fourier_diag"}
_SCALING_ALIASES = {"linear": "lin", "inverse": "inv", "hippo": "legs"}
_SPECTRUM_OPTIONS: dict[str, Any] = {
    "real_scale": 1.0,
    "imag_scale": 1.0,
    "random_real": False,
    "random_imag": False,
    "random_B": False,
    "normalize": False,
    "diagonal": True,
}
_COMBINATIONS = {
    "hippo": ("legs", "fourier"),
    "diag": ("diag-inv", "diag-lin"),
    "all": ("legs", "fourier", "diag-inv", "diag-lin"),
}


@checked
def hippo_matrices(measure: str, d_state: int) -> tuple[Tensor, Tensor]:
    """Dense HiPPO system x' = A x + B u.

    ``measure``: legs, legt, fourier (fout), fourier_diag (foud) or legsd. legt and fourier look back over a
    window of length 2; fourier_diag has period 1. Returns A (N, N) and B (N,), float64. ValueError for
    another measure, for ``d_state`` < 1, and for an odd one in the Fourier family.
    """
    name = _ALIASES.get(measure, measure)
    if name not in _HIPPO:
        raise ValueError(f"measure must be one of {', '.join([*_HIPPO, *_ALIASES])}; got {measure!r}")
    a, b, _ = _HIPPO[name](d_state)
    return a, b


@checked
def dplr_init(
    measure: str | Sequence[str],
    d_state: int = 64,
    rank: int = 1,
    n_ssm: int = 1,
    *,
    dtype: torch.dtype = torch.complex64,
    generator: torch.Generator | None = None,
    **measure_args: Any,
) -> DPLRInit:
    """Diagonal plus low-rank initial values: diag(w) - p p^* is unitarily equivalent to the measure's matrix.

    ``measure``: a HiPPO name (see `hippo_matrices`); a diagonal spectrum, diag-lin (diag-linear), diag-inv
    (diag-inverse), diag-inv2, diag-quad, diag-real, diag-random or diag-legs (diag-hippo), the prefix
    optional but for the last; "dplr", the spectrum named by ``scaling``; a combination, "hippo" = legs,
    fourier, "diag" = diag-inv, diag-lin, "all" = both; or a sequence of names. Combined measures share
    ``n_ssm`` in equal runs.

    ``measure_args``, for diagonal spectra only: real_scale, imag_scale (factors), random_real (real part
    uniform in (-real_scale, 0)), random_imag (index uniform in [0, n)), random_B (b complex normal, not
    ones), normalize (sum of |b / w|^2 over all N states made 1), diagonal=False (p complex normal, not zero).

    HiPPO poles come by rising imaginary part, all <= 0, their eigenvectors with the phase that makes b
    positive.

    Returns w (S, n), p (R, S, n), b (S, n) of ``dtype`` on torch's default device, S = n_ssm, n = d_state / 2;
    they are computed on the CPU. ValueError for an unknown measure, odd ``d_state``, too small a ``rank`` (legt
    needs 2), ``n_ssm`` not a multiple of the number of measures; TypeError for ``measure_args`` that the measure
    does not take.
    """
    _check_even(d_state)
    names = _expand(measure, n_ssm)
    with torch.device("cpu"):  # eigenvectors are numbers, which a meta device would not have
        parts = [_poles(name, d_state, rank, n_ssm // len(names), generator, measure_args) for name in names]
    w, p, b = (
        torch.cat(part, dim=-2).to(torch.get_default_device(), dtype) for part in zip(*parts, strict=True)
    )
    return DPLRInit(w, p, b)


def _poles(
    name: str,
    d_state: int,
    rank: int,
    copies: int,
    generator: torch.Generator | None,
    measure_args: dict[str, Any],
) -> tuple[Tensor, Tensor, Tensor]:
    """w (S, n), p (R, S, n), b (S, n) of a measure, complex128."""
    if name not in _HIPPO:
        return _spectrum(name, d_state, rank, copies, generator, measure_args)
    if measure_args:
        raise TypeError(f"measure {name!r} takes no measure_args; got {sorted(measure_args)}")
    w, p, b = _normal_form(name, d_state)
    if rank < len(p):
        raise ValueError(f"rank must be at least {len(p)} for measure {name!r}; got {rank}")
    p = torch.cat([p, p.new_zeros(rank - len(p), d_state // 2)])
    return w.expand(copies, -1), p[:, None].expand(-1, copies, -1), b.expand(copies, -1)


@checked
def diagonal_init(
    measure: str | Sequence[str],
    d_state: int = 64,
    n_ssm: int = 1,
    *,
    dtype: torch.dtype = torch.complex64,
    generator: torch.Generator | None = None,
    **measure_args: Any,
) -> DiagonalInit:
    """Diagonal initial values: those of `dplr_init` without its low-rank part.

    A plain HiPPO name keeps that measure's b; the diag- names have b = 1. Arguments and errors are those of
    `dplr_init`, but for ``rank``. Returns a (S, n), b (S, n) of ``dtype``.
    """
    enough = 2  # legt's rank, the largest
    init = dplr_init(measure, d_state, enough, n_ssm, dtype=dtype, generator=generator, **measure_args)
    return DiagonalInit(init.w, init.b)


def _expand(measure: str | Sequence[str], n_ssm: int) -> list[str]:
    """Canonical names behind ``measure``, one a run of n_ssm / len(names) copies."""
    names = []
    if not isinstance(measure, Sequence):
        raise TypeError(f"measure must be a name or a sequence of names; got {measure!r}")
    for given in [measure] if isinstance(measure, str) else measure:
        if not isinstance(given, str):
            raise TypeError(f"measure must be a name or a sequence of names; got {measure!r}")
        for name in _COMBINATIONS.get(given, (given,)):
            name = _ALIASES.get(name, name)
            if name not in _HIPPO and name != "dplr":
                name = "diag-" + _scaling(name)
            names.append(name)
    if not names or n_ssm % len(names):
        raise ValueError(
            f"n_ssm must be a positive multiple of the {len(names)} measures in {measure!r}; got {n_ssm}"
        )
    return names


def _scaling(given: str) -> str:
    name = given.removeprefix("diag-")
    name = _SCALING_ALIASES.get(name, name)
    if name not in _SCALINGS:
        diagonal = [f"diag-{scaling}" for scaling in (*_SCALINGS, *_SCALING_ALIASES)]
        valid = ", ".join([*_HIPPO, *_ALIASES, *diagonal, "dplr", *_COMBINATIONS])
        raise ValueError(f"measure must be one of {valid}; got {given!r}")
    return name


def _normal_form(name: str, d_state: int) -> tuple[Tensor, Tensor, Tensor]:
    """w (n,), p (r, n), b (n,) of a HiPPO measure, complex128."""
    a, b, p = _HIPPO[name](d_state)
    normal = a + p.mT @ p
    if name in ("fourier", "fourier_diag"):
        # Blocks [[c, -f], [f, c]] have the eigenvectors (1, i) of c - i f; eigh would mix those of f = 0.
        frequency = -normal.diagonal(-1)[::2]
        pair = torch.tensor([[1], [1j]], dtype=torch.complex128) / math.sqrt(2)
        vectors = torch.kron(torch.eye(d_state // 2, dtype=torch.complex128), pair)
    else:
        frequency, vectors = torch.linalg.eigh(-0.5j * (normal - normal.mT))
    keep = frequency.argsort()[: d_state // 2]
    coordinates = torch.cat([b[None], p]).to(vectors.dtype) @ vectors[:, keep].conj()
    coordinates = coordinates * coordinates[0].sgn().conj()
    centre = normal.diagonal().mean().expand(len(keep))
    return torch.complex(centre, frequency[keep]), coordinates[1:], coordinates[0]


def _spectrum(
    name: str,
    d_state: int,
    rank: int,
    copies: int,
    generator: torch.Generator | None,
    options: dict[str, Any],
) -> tuple[Tensor, Tensor, Tensor]:
    """w (S, n), p (R, S, n), b (S, n) of a diagonal spectrum, complex128."""
    known = _SPECTRUM_OPTIONS | ({"scaling": None} if name == "dplr" else {})
    if unknown := options.keys() - known.keys():
        raise TypeError(f"measure {name!r} takes the measure_args {sorted(known)}; got {sorted(unknown)}")
    options = known | options
    for option, usual in _SPECTRUM_OPTIONS.items():
        (values.truth if isinstance(usual, bool) else values.real)(option, options[option])
    if name == "dplr" and options["scaling"] is None:
        raise TypeError(
            "measure 'dplr' needs measure_args['scaling'], the name of a diagonal spectrum; got none"
        )
    scaling = _scaling(options["scaling"] if name == "dplr" else name)

    def uniform() -> Tensor:
        return torch.rand(copies, n, dtype=torch.float64, generator=generator)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.complex128, generator=generator)

    n = d_state // 2
    k = n * uniform() if options["random_imag"] else torch.arange(n, dtype=torch.float64).expand(copies, n)
    real = -options["real_scale"] * (uniform() if options["random_real"] else torch.full_like(k, 0.5))
    if scaling == "real":
        real, imag = -1 - k, torch.zeros_like(k)
    elif scaling == "random":
        imag = torch.randn(copies, n, dtype=torch.float64, generator=generator)
    elif scaling == "legs":
        imag = _normal_form("legs", d_state)[0].imag.expand(copies, n)
    else:
        imag = _SPECTRA[scaling](k, d_state)
    w = torch.complex(real, options["imag_scale"] * imag)
    b = normal(copies, n) if options["random_B"] else torch.ones_like(w)
    if options["normalize"]:
        b = b / (2 * (b / w).abs().square().sum(-1, keepdim=True)).sqrt()
    p = w.new_zeros(rank, copies, n) if options["diagonal"] else normal(rank, copies, n)
    return w, p, b


def _check_even(d_state: int) -> None:
    if d_state < 2 or d_state % 2:
        raise ValueError(f"d_state must be even: conjugate pairs; got {d_state}")
