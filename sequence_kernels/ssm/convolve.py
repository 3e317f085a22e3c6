"""The convolution of batches of sequences with a system: directly, in chunks or by FFT, in chunks of how many elements.

The rule rests on the times from parameters to outputs in ``bench/results/conv_choice.json``, recorded by ``python -m
bench.harness.conv_choice``, and for the direct one in ``direct_choice.json`` beside it: on each of their rows what is
chosen takes at most 1.25 times what the best choice does.
Longer chunks save work on each element and cost more in their matrices, which are made once for all elements. What
counts is how many elements a head has, batch x length; the number of heads does not. Short sequences without a state
take no matrices at all: what counts there is the length. Compiled kernels beat the FFT at every size, plain torch
(docs/decisions.md) only above ``FFT_BELOW``. No GPU has been measured: a CPU's choices serve, but the direct one, which
has a kernel there alone.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import ops
from ..awaited import Awaited
from ..ops import checks
from ..ops.calls import nothing_else_at_work
from ..ops.dispatch import choose, explains, nearest
from ..ops.layouts import interleaved, paired
from .kept import KeptSystem
from .split import convolve_part
from .system import ChunkMatrices, System

#: What a compiled graph takes, so that one graph serves every batch and length.
ANY_LENGTH = 32

#: Elements of a head below which plain torch goes by FFT, if A is dense and if it is diagonal.
FFT_BELOW = {True: 1 << 12, False: 1 << 14}

#: The longest sequence that is convolved directly has so many elements, or so many times a state's entries, if A is
#: dense and if it is diagonal.
DIRECT, DIRECT_OF_SIZE = 64, {True: 4, False: 2}

# Without the ops' checks: what a system makes fits together.
_ssm_conv = torch.ops.sequence_kernels.ssm_conv.default
_ssm_conv_packed = torch.ops.sequence_kernels.ssm_conv_packed.default
_ssm_chunk = torch.ops.sequence_kernels.ssm_chunk.default
_ssm_direct = torch.ops.sequence_kernels.ssm_direct.default


class Choice(NamedTuple):
    """``conv`` is "direct", "chunked" or "fft"; ``chunk`` the elements of a chunk where it is chunked."""

    conv: str
    chunk: int


def choose_convolution(
    batch: int, length: int, size: int, *, dense: bool, backend: str, state: bool = False
) -> Choice:
    """What is fastest from parameters to outputs.

    Args:
        batch, length: of the input; not looked at while torch.compile traces.
        size: real entries S of a head's state.
        dense: whether the powers of A are a dense matrix (S4) or diagonal (S4D).
        backend: of ``ssm_conv``.
        state: a state goes in or out, which only chunks can do.
    """
    if torch.compiler.is_compiling():
        return Choice("chunked", ANY_LENGTH)
    elements = batch * length
    conv = "chunked"
    if not state and backend == "cpu" and length <= max(DIRECT, DIRECT_OF_SIZE[dense] * size):
        conv = "direct"
    elif not state and backend == "torch" and elements < FFT_BELOW[dense]:
        conv = "fft"
    if elements < 2048:
        return Choice(conv, 16)
    return Choice(conv, 64 if dense and size >= 64 and elements >= 1 << 14 else 32)


@explains("ssm_conv")
def explain_choice(backend: str, **shape: Any) -> str:
    """For ``ops.explain``: batch, length, size, dense and, if one is carried, state."""
    conv, chunk = choose_convolution(**shape, backend=backend)
    kind = "a dense" if shape["dense"] else "a diagonal"
    elements = shape["batch"] * shape["length"]
    about = f"{elements} elements a head, {kind} A with a state of {shape['size']}"
    if conv == "fft":
        most = FFT_BELOW[shape["dense"]]
        return f"  a layer's convolution: fft ({about}; in plain torch faster than chunks below {most})"
    if conv == "direct":
        most = max(DIRECT, DIRECT_OF_SIZE[shape["dense"]] * shape["size"])
        return f"  a layer's convolution: direct ({about}; measured to be faster up to {most} elements a row)"
    why = "nothing else carries a state" if shape.get("state") else "measured: bench/results/conv_choice.json"
    return f"  a layer's convolution: chunked, {chunk} elements a chunk ({about}; {why})"


def convolve(
    system: System,
    u: Tensor,
    d: Tensor | None = None,
    state: Tensor | Awaited | None = None,
    lengths: Tensor | None = None,
    conv: str | None = None,
    *,
    taps: int | None = None,
    bidirectional: bool = False,
    made: dict[int, ChunkMatrices] | None = None,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Drive a system with sequences: ``x_t = A x_{t-1} + B u_t``, ``y_t = 2 Re(C x_t) + d u_t``.

    Args:
        system: of H heads with C channels; with 2 C if ``bidirectional``.
        u: ``(B, H, L)``, any L >= 0, in the precision of the system, or half if that is single.
        d: real skip ``(C, H)``, of any dtype.
        state: x before the first element, complex ``(B, H, N)`` or, as real and imaginary parts, real ``(B, H, 2 N)``;
            the next state is like it. An awaited one is complex; the next is then the one behind the last part.
        lengths: integers ``(B,)`` in 0 .. L: the next state is the one after so many elements. u must be zero after
            them: see ``layers.padding``.
        conv: "chunked", "fft", or None for the fastest way. A call with a state is chunked in any case.
        taps: the kernel is cut off after so many; a longer u goes by FFT, and takes no state.
        bidirectional: the second half of the channels is a kernel that looks ahead, from the next element on. There
            is no state but an awaited one, ``(B, 2, H, N)``.
        made: the matrices of this system that calls before have made, by chunk; those made here are added.
        cu_seqlens: integers ``(Q + 1,)``, where the Q sequences begin and end that B = 1 row of u is; each has a state
            of its own, ``(Q, H, N)``. In chunks only: not with ``taps`` fewer than L, nor ``bidirectional``.

    Returns:
        y ``(B, C, H, L)`` in the dtype of u, and the next state, None if none was given.
    """
    if isinstance(state, Awaited):
        if bidirectional:
            return _both_ways(system, u, d, state), None
        y, _, after = _part(system, u, d, state, lengths)
        return y, after
    _check(system, u, state)
    length = u.shape[-1]
    backend = choose("ssm_conv", None, u)
    backends = backend, nearest("ssm_chunk", backend, system.c)
    way, chunk = choose_convolution(
        u.shape[0],
        length,
        2 * system.c.shape[-1],
        dense=system.dense,
        backend=backend,
        state=state is not None,
    )
    d = None if d is None else d.to(checks.REAL_OF[system.c.dtype])
    if cu_seqlens is not None:
        return _packed_in_chunks(system, u.squeeze(0), d, state, cu_seqlens, chunk, backends[1])
    kept = length if taps is None or taps > length else taps
    if kept < length or (state is None and (conv or way) == "fft"):
        return ops.fft_conv(u, system.kernel(kept), d, bidirectional=bidirectional), None
    if (conv or way) == "direct" and state is None and made is None and not bidirectional:
        skip = system.c.real.new_zeros(system.c.shape[:2]) if d is None else d
        return _ssm_direct(u, *system.discrete(), system.c, skip, backend), None
    if not bidirectional:
        return _in_chunks(system, u, d, state, lengths, chunk, backends, made)
    half = system.c.shape[0] // 2
    back, _ = _in_chunks(system.channels(0, half), u, d, None, None, chunk, backends)
    ahead, _ = _in_chunks(system.channels(half, 2 * half), u.flip(-1), None, None, None, chunk, backends)
    return back + F.pad(ahead.flip(-1)[..., 1:], (0, 1)), None


def _part(
    system: System,
    u: Tensor,
    d: Tensor | None,
    state: Awaited,
    lengths: Tensor | None = None,
    *,
    backwards: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """The outputs of a part, the state before it and the one behind the last; of sequences that are turned,
    ``backwards``."""

    def passed(start: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
        known = Awaited(start, state.exchange)
        return known.resolve(end, system.transition, u.shape[-1], backwards=backwards)

    if lengths is None and not torch.compiler.is_compiling() and nothing_else_at_work(u.device.type):
        _check(system, u, state.start)
        backend = choose("ssm_conv", None, u)
        size, length = 2 * system.c.shape[-1], u.shape[-1]
        _, chunk = choose_convolution(
            u.shape[0], length, size, dense=system.dense, backend=backend, state=True
        )
        made = chunk_matrices(system, chunk, length % chunk != 0, nearest("ssm_chunk", backend, system.c))
        skip = None if d is None else d.to(checks.REAL_OF[system.c.dtype])
        return convolve_part(u, made, skip, state.start, passed, backend)
    _, end = convolve(system.channels(0, 0), u, None, torch.zeros_like(state.start), lengths)
    assert end is not None
    before, after = passed(state.start, end)
    return convolve(system, u, d, before, lengths)[0], before, after


def _both_ways(system: System, u: Tensor, d: Tensor | None, state: Awaited) -> Tensor:
    """A part of sequences, with the states before it and behind it, ``(B, 2, H, N)``.

    What looks ahead sees the next element first: of the last that is what the state behind the part gives.
    """
    half, turned = system.c.shape[0] // 2, u.flip(-1)
    back, ahead = system.channels(0, half), system.channels(half, 2 * half)
    past, future = state.unbind(1)
    seen_back, _, _ = _part(back, u, d, past)
    to_come, behind, _ = _part(ahead, turned, None, future, backwards=True)
    next_one = 2 * torch.einsum("chn,bhn->bch", ahead.c, behind.to(ahead.c.dtype)).real.to(u.dtype)
    seen_ahead = torch.cat((next_one.unsqueeze(-1), to_come), -1)
    return seen_back + seen_ahead[..., :-1].flip(-1)


def _in_chunks(
    system: System,
    u: Tensor,
    d: Tensor | None,
    state: Tensor | None,
    lengths: Tensor | None,
    chunk: int,
    backends: tuple[str, str],
    made: dict[int, ChunkMatrices] | None = None,
) -> tuple[Tensor, Tensor | None]:
    """``convolve`` by ``ops.ssm_conv``, with the backends of that and of ``ops.ssm_chunk``."""
    matrices = None if made is None else made.get(chunk)
    if matrices is None:
        inside = lengths is not None or torch.compiler.is_compiling() or u.shape[-1] % chunk != 0
        tail = made is not None or (state is not None and inside)  # a final state may be one inside a chunk
        matrices = chunk_matrices(system, chunk, tail, backends[1])
        if made is not None:
            made[chunk] = matrices
    if state is None or not state.is_complex():
        y, final = _ssm_conv(u, *matrices, d, state, lengths, backends[0])
        return y, None if state is None else final
    y, final = _ssm_conv(u, *matrices, d, interleaved(state), lengths, backends[0])
    return y, paired(final)


def _packed_in_chunks(
    system: System,
    u: Tensor,
    d: Tensor | None,
    state: Tensor | None,
    cu_seqlens: Tensor,
    chunk: int,
    backend: str,
) -> tuple[Tensor, Tensor | None]:
    matrices = chunk_matrices(system, chunk, state is not None, backend)
    start = interleaved(state) if state is not None and state.is_complex() else state
    served = choose("ssm_conv_packed", None, u)
    y, final = _ssm_conv_packed(u, *matrices, d, start, cu_seqlens, served)
    if state is None:
        return y.unsqueeze(0), None
    return y.unsqueeze(0), paired(final) if state.is_complex() else final


def chunk_matrices(
    system: System, chunk: int, tail: bool = True, backend: str | None = None
) -> ChunkMatrices:
    """The matrices that ``ops.ssm_conv`` needs for chunks of that many elements, a power of two.

    Without ``tail`` they do for whole chunks only: ``a_powers`` holds A^chunk alone. ``backend``: of ``ops.ssm_chunk``.
    """
    backend = backend or choose("ssm_chunk", None, system.c)
    if isinstance(system, KeptSystem):
        return system.matrices((chunk, tail, backend), lambda: _made(system, chunk, tail, backend))
    return _made(system, chunk, tail, backend)


def _made(system: System, chunk: int, tail: bool, backend: str) -> ChunkMatrices:
    taps, reads, e_in, a_powers = _ssm_chunk(*system.discrete(), system.c, chunk, tail, backend)
    return ChunkMatrices(taps, reads.mT, e_in, a_powers)


def _check(system: System, u: Tensor, state: Tensor | None) -> None:
    """What the layers cannot know to be right."""
    c = system.c
    if u.dtype not in ((torch.float64,) if c.dtype == torch.complex128 else (torch.float32, *checks.HALF)):
        raise TypeError(f"x must be {checks.REAL_OF[c.dtype]} as the parameters are, got {u.dtype}")
    if state is not None and state.dtype not in (c.dtype, checks.REAL_OF[c.dtype]):
        raise TypeError(f"state must be {c.dtype} as the parameters are, got {state.dtype}")
    for name, value in (("x", u), ("state", state)):
        if value is not None and value.device != c.device:
            raise ValueError(f"{name} is on {value.device}, but the parameters are on {c.device}")
