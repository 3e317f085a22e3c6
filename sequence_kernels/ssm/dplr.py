"""Diagonal-plus-low-rank state-space models: S4.

The continuous system is ``x' = (diag(w) - P P^*) x + B u`` over N conjugate pairs, so that every product with ``P^*``
is real: ``P^* x = 2 Re(sum_n conj(P_n) x_n)``. Its bilinear discretisation is ``A_bar = 2 G - I``, ``B_bar = dt G B``
with ``G = (I - dt/2 A)^-1``, and by Woodbury, with ``g = 1 / (1 - w dt/2)``, ``M = P^* g P``:

    G = diag(g) - dt/2 (g P) (I + dt/2 M)^-1 (g P^T)^*

again diagonal plus low rank, of the same rank (Gu et al., S4, 2021, appendix C, in other words).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from .. import ops
from ..arguments.values import checked
from ..ops import checks
from ..ops.layouts import as_complex, by_head, interleaved, paired
from .parameters import SSMParameters
from .system import StepParameters


@dataclass(frozen=True)
class DPLRSystem:
    """The discrete system of continuous parameters: w, b (S, N), p (R, S, N) complex, dt (H) float64.

    Head h has copy h mod S. ``c`` (C, H, N) has the dtype of the results.
    """

    dense: ClassVar[bool] = True

    w: Tensor
    p: Tensor
    b: Tensor
    dt: Tensor
    c: Tensor

    def continuous(self) -> tuple[Tensor, Tensor, Tensor]:
        """``w``, ``p`` and ``b`` of every head, in complex128."""
        w, p, b = (by_head(t.to(torch.complex128), len(self.dt)) for t in (self.w, self.p, self.b))
        return w, p, b

    def discrete(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        a_minus_one, p, q, b = ops.dplr_discretize(self.w, self.p, self.b, self.dt, dtype=torch.complex128)
        return 1 + a_minus_one, p, q, b

    def _dense(self) -> Tensor:
        """A_bar as a real (H, S, S) matrix that acts on rows, in float64."""
        return ops.ssm_chunk(*self.discrete(), self.c, 1)[-1].squeeze(1)

    def truncated_readout(self, length: int) -> Tensor:
        """``C (I - A_bar^length)``, which S4 calls C tilde: the kernel cut off after ``length`` taps. complex128."""
        return self._through_truncation(length, solve=False)

    def untruncated_readout(self, length: int) -> Tensor:
        """``C (I - A_bar^length)^-1``: the readout of which the system's own is the truncated one. complex128."""
        return self._through_truncation(length, solve=True)

    def _through_truncation(self, length: int, solve: bool) -> Tensor:
        matrix = self._dense()
        kept = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
        kept = kept - torch.linalg.matrix_power(matrix, length)
        # A column for each channel: of a matrix that is broadcast over them, torch's vmap of solve's gradient is wrong.
        c = interleaved(2 * self.c.to(torch.complex128).conj()).permute(1, 2, 0)
        c = torch.linalg.solve(kept, c) if solve else kept @ c
        real, imag = c.permute(2, 0, 1).unflatten(-1, (-1, 2)).unbind(-1)
        return torch.complex(real / 2, -imag / 2)

    def kernel(self, length: int) -> Tensor:
        """By S4's generating function at the roots of unity, and an FFT.

        With z = 2 (1 - omega) / (1 + omega) / dt the resolvent at omega is ``2 / (1 + omega) (z - A)^-1``. The nodes
        are those of the 2 floor(length / 2) + 1 >= length odd roots, which never meet -1, where z is infinite.
        """
        if length == 0:
            return self.c.real.new_zeros((*self.c.shape[:2], 0))
        odd = length + (length + 1) % 2
        angle = torch.arange(odd // 2 + 1, device=self.dt.device, dtype=torch.float64) * (2 * torch.pi / odd)
        # omega = e^{-i angle}: 2 (1 - omega) / (1 + omega) = 2 i tan(angle / 2), 2 / (1 + omega) = 1 + i tan(angle / 2)
        w, p, b = self.continuous()
        generating = ops.dplr_generating(  # complex128: the correction cancels digits that float32 has not
            self.truncated_readout(odd), p, p.conj(), b, w, self.dt, torch.tan(angle / 2)
        )
        return torch.fft.irfft(generating, n=odd)[..., :length].to(self.c.real.dtype)

    def step_parameters(self, d: Tensor | None = None) -> StepParameters:
        a_minus_one, p, q, b = ops.dplr_discretize(self.w, self.p, self.b, self.dt, dtype=self.c.dtype)
        d = None if d is None else d.to(checks.REAL_OF[self.c.dtype])
        return StepParameters(a_minus_one, b, self.c, d, p, q)

    def transition(self, length: int) -> Callable[[Tensor], Tensor]:
        power = torch.linalg.matrix_power(
            self._dense(), length
        )  # in float64: float32 loses three digits of it

        def apply(state: Tensor) -> Tensor:
            rows = interleaved(state).to(power.dtype).movedim(-2, 0)  # one product a head
            moved = (rows.flatten(1, -2) @ power).view(rows.shape)
            return paired(moved.movedim(0, -2)).to(state.dtype)

        return apply

    def channels(self, start: int, stop: int) -> DPLRSystem:
        return DPLRSystem(self.w, self.p, self.b, self.dt, self.c[start:stop])


class DPLRSSM(SSMParameters):
    """Parameters of H diagonal-plus-low-rank systems with C channels, as in ESPnet's ``SSKernelNPLR``.

    ``C`` (C, H, N, 2), ``log_dt`` (H), ``B`` (1, S, N, 2), ``P`` (R, S, N, 2), ``inv_w_real`` (S, N), ``w_imag``
    (S, N), buffer ``L``: head h uses copy h mod S. ``C`` is always the readout itself, and ``L`` is 0. A checkpoint
    with ``L > 0`` holds ``C (I - A_bar^L)``; it is converted when it is loaded, so that the function is the same.

    ``bandlimit``: modes of that many half cycles a step and more are left out of C; with ``bandlimit_length`` they are
    left out of ``C (I - A_bar^bandlimit_length)`` instead, as by ESPnet with its buffer ``L``.
    """

    P: Tensor
    inv_w_real: Tensor
    w_imag: Tensor
    L: Tensor

    parts = ("log_dt", "C", "B", "P", "inv_w_real", "w_imag")

    @checked
    def __init__(
        self,
        w: Tensor,
        p: Tensor,
        b: Tensor,
        c: Tensor,
        log_dt: Tensor,
        *,
        real_type: str = "exp",
        real_tolerance: float = 1e-3,
        lr: float | dict[str, float] | None = None,
        bandlimit: float | None = None,
        bandlimit_length: int | None = None,
    ) -> None:
        super().__init__(log_dt, real_type, least=real_tolerance, bandlimit=bandlimit)
        self.bandlimit_length = bandlimit_length
        self.register("C", torch.view_as_real(c), group=None, lr=lr)
        self.register("log_dt", log_dt, group="dt", lr=lr)
        self.register("B", torch.view_as_real(b.unsqueeze(0)), group="B", lr=lr)
        self.register("P", torch.view_as_real(p), group="A", lr=lr)
        self.register("inv_w_real", self.to_stored(w.real), group="A", lr=lr)
        self.register("w_imag", w.imag, group="A", lr=lr)
        self.register_buffer("L", torch.tensor(0))

    def system(self, rate: float = 1.0, length: int | None = None) -> DPLRSystem:
        """The discrete system for inputs sampled at ``rate`` times the step that the model was made for.

        It does not depend on the ``length`` of a call.
        """
        c, taps = as_complex(self.C), self.bandlimit_length
        if self.bandlimit is None:
            return self._system(c, rate)
        if taps is None:
            return self._system(self.within_band(c, self.w_imag), rate)
        truncated = self.within_band(self._system(c).truncated_readout(taps), self.w_imag)
        return self._system(self._system(truncated).untruncated_readout(taps).to(c.dtype), rate)

    def _system(self, c: Tensor, rate: float = 1.0) -> DPLRSystem:
        dt, real = self.dt(rate), self.negative(self.inv_w_real)
        return DPLRSystem(
            w=torch.complex(real, self.w_imag.to(real.dtype)),
            p=as_complex(self.P),
            b=as_complex(self.B).squeeze(0),
            dt=dt,
            c=c,
        )

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Tensor],
        prefix: str,
        metadata: dict[str, object],
        strict: bool,
        *args: object,
    ) -> None:
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, *args)
        length = state_dict.get(prefix + "L")
        if length is None or self.L.is_meta or int(length) == 0:
            return
        with torch.no_grad():
            c = torch.view_as_real(self._system(as_complex(self.C)).untruncated_readout(int(length)))
            if metadata.get("assign_to_params_buffers"):  # C and L are the caller's own memory
                self.C = nn.Parameter(c.to(self.C.dtype), self.C.requires_grad)
                self.L = torch.zeros_like(self.L)
            else:
                self.C.copy_(c)
                self.L.zero_()
