"""The convolution of a linear time-invariant state-space model over packed sequences, each with a state of its own."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .. import checks
from ..dispatch import choose, find_implementations
from ..packing import check_cu_seqlens
from ..registration import register_with_adjoint
from ..ssm_conv import check_matrices, check_states, empty_like

find_implementations(__name__, "ssm_conv_packed", "ssm_conv_packed_backward")


def ssm_conv_packed(
    u: Tensor,
    taps: Tensor,
    e_out: Tensor,
    e_in: Tensor,
    a_powers: Tensor,
    d: Tensor | None = None,
    initial_state: Tensor | None = None,
    *,
    cu_seqlens: Tensor,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """``ssm_conv`` of Q sequences that lie one behind the other; no element of one reaches another.

    Args:
        u: ``(H, L)``, the sequences' elements.
        taps, e_out, e_in, a_powers, d: as in ``ssm_conv``.
        initial_state: ``(Q, H, S)``, the state before the first element of each sequence; zero if None.
        cu_seqlens: ``(Q + 1,)`` integers, from 0 to L and ascending: sequence i has the elements from ``cu_seqlens[i]``
            to before ``cu_seqlens[i + 1]``. A sequence may be empty.
        backend: None chooses the fastest that can serve the call.

    Returns:
        ``y`` of shape ``(C, H, L)`` and the final states ``(Q, H, S)``; with a_chunk alone that of a sequence that ends
        inside a chunk is NaN. Chunks are counted from the beginning of each sequence.

    Values of ``cu_seqlens`` that do not ascend from 0 to L raise ValueError or RuntimeError on the CPU; on a GPU, where
    looking at them would wait for it, they make all results NaN.
    """
    checks.tensors(u=u, cu_seqlens=cu_seqlens)
    checks.shape("u", u, (("H", None), ("L", None)))
    check_cu_seqlens(cu_seqlens, u.shape[-1])
    check_matrices(u, taps, e_out, e_in, a_powers, d)
    if initial_state is not None:
        check_states("initial_state", initial_state, u, ("Q", cu_seqlens.shape[0] - 1), e_in)
    return _ssm_conv_packed(
        u,
        taps,
        e_out,
        e_in,
        a_powers,
        d,
        initial_state,
        cu_seqlens,
        choose("ssm_conv_packed", backend, u),
    )


def _fake(u: Tensor, taps: Tensor, e_out: Tensor, e_in: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return (
        empty_like(u, rest[-1], taps.shape[0]),
        taps.new_empty((rest[3].shape[0] - 1, u.shape[0], e_in.shape[-1])),
    )


_ssm_conv_packed, _ = register_with_adjoint(
    "ssm_conv_packed",
    "u: HL, taps: CHT, e_out: CHST, e_in: HTS, a_powers: H..., d?: CH, initial_state?: QHS, cu_seqlens: P int",
    "y: CHL, final_state: QHS",
    fake=_fake,
    missing="taps",
    like_first=empty_like,
    follows_autocast=(0,),
)
