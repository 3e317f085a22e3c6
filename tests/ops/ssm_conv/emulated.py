"""The chunked convolution by its CUDA kernels in the emulator, launched as csrc/ssm_conv/cuda.cpp launches them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from tests.cuda_emulator import Kernels

ELEMENTS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
BLOCK_FRAGMENTS = 64


def empty(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.full(shape, float("nan"), dtype=dtype)


def padded(size: int) -> int:
    return -(-size // 16) * 16


class Arguments(NamedTuple):
    """Those of ``ops.ssm_conv``, all contiguous."""

    u: Tensor
    taps: Tensor
    e_out: Tensor
    e_in: Tensor
    a_powers: Tensor
    d: Tensor | None = None
    initial_state: Tensor | None = None
    lengths: Tensor | None = None


class Emulated:
    """Kernels of one kind of arithmetic; with ``large``, those that leave the matrices in global memory."""

    def __init__(self, kernels: Kernels, math: str, *, large: bool = False, **options: Any) -> None:
        self.kernels, self.math, self.large, self.options = kernels, math, large, options

    def _run(self, name: str, kind: str, fields: dict[str, Any]) -> None:
        self.kernels.run(f"ssm_conv_{name}_{kind}", fields, **self.options)

    def _run_packed(self, name: str, fields: dict[str, Any], matrices: int) -> None:
        if self.large:
            heads = fields["H"]
            fields["workspace"] = torch.full((heads * matrices,), 255, dtype=torch.uint8)
            self._run(f"{name}_pack", self.math, fields)
            name += "_large"
        self._run(name, self.math, fields)

    def _sizes(self, a: Arguments) -> dict[str, int]:
        (batch, heads, length), (channels, _, chunk) = a.u.shape, a.taps.shape
        return {"B": batch, "C": channels, "H": heads, "L": length, "T": chunk, "S": a.e_in.shape[-1]}

    def _kind(self, a: Arguments) -> dict[str, Any]:
        wide = a.a_powers.dtype in (torch.float64, torch.complex128)
        return {"dense": int(not a.a_powers.is_complex()), "wide": int(wide)}

    def _real(self, a: Arguments) -> str:
        return "f64" if a.u.dtype == torch.float64 else "f32"

    def _bytes(self, a: Arguments) -> dict[str, int]:
        real = a.taps.element_size()
        return {"real_bytes": real, "operand_bytes": 2 if self.math == "bf16" else real}

    def _numbers(self, a: Arguments) -> tuple[Tensor, int, Tensor]:
        """The powers as real numbers, those of one head, and from A^T of the first head on."""
        flat = torch.view_as_real(a.a_powers) if a.a_powers.is_complex() else a.a_powers
        head = flat[0].numel()
        return flat, head, flat.flatten()[(a.a_powers.shape[1] - 1) * (head // a.a_powers.shape[1]) :]

    def scan(
        self,
        a: Arguments,
        sequences: Tensor,
        chunks: int,
        segments: int,
        *,
        adjoint: bool = False,
        outputs: bool = False,
        **given: Any,
    ) -> None:
        sequences = sequences if sequences.dim() == 4 else sequences.unsqueeze(1)
        inputs = a.e_out if adjoint else a.e_in.unsqueeze(0).transpose(2, 3)  # (inputs, H, S, T)
        size = self._sizes(a)
        size["C"] = size["C"] if outputs else 0
        fields: dict[str, Any] = dict.fromkeys(
            ("starts", "joins", "y", "last", "ends", "workspace", "d", "taps", "e_out")
        )
        if outputs:
            fields |= {"d": a.d, "taps": a.taps, "e_out": a.e_out}
        _, head, a_chunk = self._numbers(a)
        fields |= {
            **size,
            **self._kind(a),
            **self._bytes(a),
            "input": sequences,
            "e_in": a.e_out if adjoint else a.e_in,
            "a_chunk": a_chunk,
            "lengths": a.lengths,
            "inputs": sequences.shape[1],
            **strides("input", sequences, "batch", "channel", "head", "step"),
            **strides("e_in", inputs, "channel", "head", "state", "step"),
            **strides("e_out", a.e_out, "channel", "head", "state", "step"),
            "a_head": head,
            "segments": segments,
            "chunks": chunks,
            "element": ELEMENTS.index(a.u.dtype),
            "adjoint": int(adjoint),
            "resident": int(not self.large),
            **given,
        }
        T, S, operand, real = (
            padded(size["T"]),
            padded(size["S"]),
            fields["operand_bytes"],
            fields["real_bytes"],
        )
        out, wide = size["C"] * T, fields["inputs"] * T
        matrices = operand * (out * (T + S) + S * wide) + 16 * (2 * out + S)
        self._run_packed("forward", fields, matrices + self._transition(a, S, real))

    def _transition(self, a: Arguments, S: int, real: int) -> int:
        return 2 * S * real if a.a_powers.is_complex() else S * (S * real + 16)

    def _carry(
        self, a: Arguments, states: Tensor, initial: Tensor | None, chunks: int, *, adjoint: bool = False
    ) -> None:
        size = self._sizes(a)
        del size["C"]
        _, head, a_chunk = self._numbers(a)
        fields = {
            **size,
            **self._kind(a),
            "states": states,
            "initial": initial,
            "a_chunk": a_chunk,
            "lengths": a.lengths,
            "a_head": head,
            "segments": states.shape[2],
            "chunks": chunks,
            "adjoint": int(adjoint),
        }
        self._run(f"carry_{'dense' if fields['dense'] else 'diagonal'}", self._real(a), fields)

    def _tail(self, name: str, a: Arguments, by_head: bool = False, **given: Any) -> None:
        size = self._sizes(a)
        del size["C"]
        names = ("last", "g_final", "final_state", "joins", "tail_du", "d_powers")
        fields = {
            **size,
            **self._kind(a),
            **dict.fromkeys(names),
            "u": a.u,
            "e_in": a.e_in,
            "powers": self._numbers(a)[0],
            "lengths": a.lengths,
            "count": a.a_powers.shape[1],
            **strides("u", a.u, "batch", "head", "step"),
            "element": ELEMENTS.index(a.u.dtype),
            "by_head": int(by_head),
            **given,
        }
        self._run(name, self._real(a), fields)

    def _starts(self, a: Arguments, chunks: int, segments: int) -> Tensor:
        """The state before each segment."""
        batch, heads, _ = a.u.shape
        states = empty(batch, heads, segments, a.e_in.shape[-1], dtype=a.taps.dtype)
        if segments > 1:
            self.scan(a, a.u, chunks, segments, ends=states)
        self._carry(a, states, a.initial_state, chunks)
        return states

    def forward(self, a: Arguments, chunks: int) -> tuple[Tensor, Tensor]:
        """With segments of so many chunks."""
        (batch, heads, length), size = a.u.shape, self._sizes(a)
        segments = max(1, -(-length // size["T"] // chunks))
        starts = a.initial_state if segments == 1 else self._starts(a, chunks, segments)
        y = empty(batch, size["C"], heads, length, dtype=a.u.dtype)
        last, final = (empty(batch, heads, size["S"], dtype=a.taps.dtype) for _ in range(2))
        self.scan(a, a.u, chunks, segments, outputs=True, starts=starts, y=y, last=last)
        self._tail("tail", a, last=last, final_state=final)
        return y, final

    def backward(
        self, g: Tensor, g_final: Tensor, a: Arguments, chunks: int, splits: int
    ) -> tuple[Tensor, ...]:
        """With segments of so many chunks, a head's rows in so many parts."""
        (batch, heads, length), size = a.u.shape, self._sizes(a)
        C, T, S, real = size["C"], size["T"], size["S"], a.taps.dtype
        segments = max(1, -(-length // T // chunks))
        joins, last, d_initial = (empty(batch, heads, S, dtype=real) for _ in range(3))
        tail_du = empty(batch, heads, T, dtype=real)
        self._tail("tail_adjoint", a, g_final=g_final, joins=joins, tail_du=tail_du)
        starts = self._starts(a, chunks, segments)
        afters = empty(*starts.shape, dtype=real)
        if segments > 1:
            self.scan(a, g, chunks, segments, adjoint=True, joins=joins, ends=afters)
        self._carry(a, afters, joins, chunks, adjoint=True)

        kind, bytes_ = self._kind(a), self._bytes(a)
        state_tiles, input_tiles, output_tiles = padded(S) // 16, padded(T) // 16, C * padded(T) // 8
        transition = 2 * state_tiles * (state_tiles if kind["dense"] else 1)
        count = transition + (state_tiles + input_tiles) * output_tiles + input_tiles * 2 * state_tiles
        partial = empty(splits, heads, count, 128, dtype=real)
        du = empty(batch, heads, length, dtype=a.u.dtype)
        flat, head, a_chunk = self._numbers(a)
        u_strides = strides("u", a.u, "batch", "head", "step")
        fields = {
            **size,
            **kind,
            **bytes_,
            "u": a.u,
            "g": g,
            **a._asdict(),
            "a_chunk": a_chunk,
            "starts": starts,
            "afters": afters,
            "joins": joins,
            "tail_du": tail_du,
            "du": du,
            "d_initial": d_initial,
            "last": last,
            "partial": partial,
            "workspace": None,
            **u_strides,
            **strides("g", g, "batch", "channel", "head", "step"),
            **strides("e_out", a.e_out, "channel", "head", "state", "step"),
            "a_head": head,
            "segments": segments,
            "chunks": chunks,
            "splits": splits,
            "element": ELEMENTS.index(a.u.dtype),
            "resident": int(not self.large),
        }
        del fields["a_powers"], fields["initial_state"]
        Tp, Sp = padded(T), padded(S)
        matrices = bytes_["operand_bytes"] * ((Tp + Sp) * C * Tp + Sp * Tp) + 16 * (Tp + 2 * Sp)
        self._run_packed("backward", fields, matrices + self._transition(a, Sp, bytes_["real_bytes"]))
        d_powers = torch.full_like(flat, float("nan"))
        self._tail("tail_powers", a, by_head=True, last=last, g_final=g_final, d_powers=d_powers)
        d_taps, d_d = torch.full_like(a.taps, float("nan")), empty(C, heads, dtype=real)
        d_e_out, d_e_in = (torch.full_like(t, float("nan")) for t in (a.e_out, a.e_in))
        fields = {
            **size,
            **kind,
            **u_strides,
            "partial": partial,
            "u": a.u,
            "g_final": g_final,
            "lengths": a.lengths,
            "d_taps": d_taps,
            "d_e_out": d_e_out,
            "d_e_in": d_e_in,
            "d_powers": d_powers,
            "d_d": d_d,
            "count": a.a_powers.shape[1],
            "splits": splits,
            "element": ELEMENTS.index(a.u.dtype),
        }
        self._run("gradients", self._real(a), fields)
        if a.a_powers.is_complex():
            d_powers = torch.view_as_complex(d_powers)
        return du, d_taps, d_e_out, d_e_in, d_powers, d_d, d_initial


def strides(name: str, tensor: Tensor, *names: str) -> dict[str, int]:
    return {f"{name}_{part}": tensor.stride(i) for i, part in enumerate(names)}
