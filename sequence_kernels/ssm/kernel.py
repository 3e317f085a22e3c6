"""A state-space model by the name of its kind and of its initial values, as the layers take it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..arguments import keywords
from ..arguments.values import checked
from .diagonal import DiagonalSSM
from .dplr import DPLRSSM
from .hippo import diagonal_init, dplr_init
from .parameters import initial_log_dt


class SSKernel(nn.Module):
    """The state-space model of an S4 layer: H heads with C channels, in ``kernel``, initialised by ``measure``.

    Arguments and parameter names are those of ESPnet's class of this name. ``mode`` is "nplr" (diagonal plus low
    rank, discretised by the bilinear transform) or "diag" (with ``disc``). ``n_ssm`` copies of the state matrix are
    shared by the heads; each head has its own by default. ``lr`` is one learning rate for the groups "dt", "A" and
    "B", or a dict of them; 0 makes the group's parameters buffers. ``bandlimit``: modes of that many half cycles a step
    and more are not read out. ``keops`` and ``verbose`` are taken for the sake of configurations, and change nothing.

    ``disc="dss"`` normalises over ``L`` elements, the layer's ``l_max``. Without one it normalises over the length of
    each call, as ESPnet does always, and the layer is not causal.
    """

    kernel: DiagonalSSM | DPLRSSM

    @checked
    def __init__(
        self,
        H: int,
        N: int = 64,
        L: int | None = None,
        measure: str | Sequence[str] = "legs",
        rank: int = 1,
        channels: int = 1,
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        deterministic: bool = False,
        lr: float | dict[str, float] | None = None,
        mode: str = "nplr",
        n_ssm: int | None = None,
        verbose: bool = False,
        measure_args: dict[str, Any] | None = None,
        real_type: str = "exp",
        keops: bool = False,
        **mode_args: Any,
    ) -> None:
        super().__init__()
        if mode not in _MODES:
            raise ValueError(f"mode must be one of {tuple(_MODES)}, got {mode!r}")
        keywords.refuse(f"{type(self).__name__} with mode={mode!r}", mode_args, SSKernel.options(mode))
        copies = H if n_ssm is None else n_ssm
        if H % copies:
            raise ValueError(f"n_ssm must divide the width {H}, got {n_ssm}")
        dtype = torch.get_default_dtype()
        c = torch.randn(channels, H, N // 2, dtype=dtype.to_complex())
        if deterministic:
            c = torch.zeros_like(c)
            c[..., :1] = 1
        log_dt = initial_log_dt(H, dt_min, dt_max, dtype, deterministic)
        make = _MODES[mode]
        self.kernel = make(
            measure,
            N,
            rank,
            copies,
            c,
            log_dt,
            L,
            measure_args or {},
            real_type=real_type,
            lr=lr,
            **mode_args,
        )

    @staticmethod
    def options(mode: str) -> frozenset[str]:
        """The names of the arguments that there are in this mode."""
        given = {"w", "p", "a", "b", "c", "log_dt", "l_max", "H", "N", "L"}  # by the layer
        model = keywords.named(DiagonalSSM.__init__ if mode == "diag" else DPLRSSM.__init__)
        return (keywords.named(SSKernel.__init__) | model) - given


def _nplr(
    measure: str | Sequence[str],
    d_state: int,
    rank: int,
    copies: int,
    c: Tensor,
    log_dt: Tensor,
    l_max: int | None,
    measure_args: dict[str, Any],
    **options: Any,
) -> DPLRSSM:
    w, p, b = dplr_init(measure, d_state, rank, copies, dtype=c.dtype, **measure_args)
    return DPLRSSM(w, p, b, c, log_dt, **options)


def _diag(
    measure: str | Sequence[str],
    d_state: int,
    rank: int,
    copies: int,
    c: Tensor,
    log_dt: Tensor,
    l_max: int | None,
    measure_args: dict[str, Any],
    **options: Any,
) -> DiagonalSSM:
    a, b = diagonal_init(measure, d_state, copies, dtype=c.dtype, **measure_args)
    return DiagonalSSM(a, b, c, log_dt, l_max=l_max, **options)


_MODES: dict[str, Callable[..., DiagonalSSM | DPLRSSM]] = {"nplr": _nplr, "diag": _diag}
