"""The launches of Triton kernels that are compiled ahead of time.

One for each set of compile-time constants that a launch function can choose; a test demands one for every kernel.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch

#: By label: module, function, arguments.
Launches = dict[str, tuple[str, str, tuple[Any, ...]]]


def _vandermonde(name: str, real: torch.dtype) -> Launches:
    module = "sequence_kernels.ops.vandermonde.triton"
    v, x, g = (torch.zeros(shape, dtype=real.to_complex()) for shape in ((2, 4, 32), (4, 32), (2, 4, 4096)))
    return {
        f"pairs {name}": (module, "vandermonde", (v, x, 4096, True, 1)),
        f"plain {name}": (module, "vandermonde", (v, x, 4096, False, 1)),
        f"real g {name}": (module, "vandermonde_transpose", (g.real.contiguous(), x, 1)),
        f"complex g {name}": (module, "vandermonde_transpose", (g, x, 1)),
    }


def _cauchy(name: str, real: torch.dtype) -> Launches:
    module = "sequence_kernels.ops.cauchy.triton"
    z, w = (torch.zeros(shape, dtype=real.to_complex()) for shape in ((2049,), (4, 32)))
    found: Launches = {}
    for sets in (1, 2, 4):
        v, g = (torch.zeros(sets, 4, size, dtype=real.to_complex()) for size in (32, 2049))
        found[f"{sets} sets, pairs {name}"] = (module, "cauchy", (v, z, w, True, 1))
        found[f"{sets} sets, plain {name}"] = (module, "cauchy", (v, z, w, False, 1))
        found[f"{sets} sets {name}"] = (module, "cauchy_transpose", (g, z, w, False, 1))
    return found


def _dplr_generating(name: str, real: torch.dtype) -> Launches:
    module = "sequence_kernels.ops.dplr_generating.triton"
    found: Launches = {}
    for channels, rank in ((1, 1), (2, 1), (1, 2)):
        c, p, g = (
            torch.zeros(k, 4, n, dtype=real.to_complex())
            for k, n in ((channels, 32), (rank, 32), (channels, 2049))
        )
        b, t = torch.zeros(4, 32, dtype=real.to_complex()), torch.zeros(2049, dtype=real)
        label = f"{channels} channels, rank {rank} {name}"
        found[f"{label}"] = (module, "dplr_generating", (c, p, p, b, b, t))
        found[f"backward, {label}"] = (module, "dplr_generating_backward", (g, c, p, p, b, b, t))
    return found


def _ssm_chunk(name: str, real: torch.dtype) -> Launches:
    module = "sequence_kernels.ops.ssm_chunk.triton"
    found: Launches = {}
    for channels, rank in ((1, 0), (1, 1), (2, 2)):
        a, p = (torch.zeros(*k, 4, 32, dtype=torch.complex128) for k in ((), (rank,)))
        c = torch.zeros(channels, 4, 32, dtype=real.to_complex())
        taps, reads = torch.zeros(channels, 4, 32, dtype=real), torch.zeros(channels, 4, 32, 64, dtype=real)
        powers = torch.zeros(4, 1, 64, 64, dtype=torch.float64) if rank else a.unsqueeze(1)
        label, given = f"{channels} channels, rank {rank} {name}", (a, p, p, a, c, 32, False)
        found[label] = (module, "ssm_chunk", given)
        found[f"backward, {label}"] = (module, "ssm_chunk_backward", (taps, reads, reads[0], powers, *given))
    return found


def _dplr_discretize(name: str, real: torch.dtype) -> Launches:
    module = "sequence_kernels.ops.dplr_discretize.triton"
    found: Launches = {}
    for rank in (1, 2):
        w, p = (torch.zeros(*k, 1, 32, dtype=real.to_complex()) for k in ((), (rank,)))
        given = (w, p, w, torch.zeros(4, dtype=torch.float64), True)
        g, g_p = (torch.zeros(*k, 4, 32, dtype=torch.complex128) for k in ((), (rank,)))
        found[f"rank {rank} {name}"] = (module, "dplr_discretize", given)
        found[f"backward, rank {rank} {name}"] = (
            module,
            "dplr_discretize_backward",
            (g, g_p, g_p, g, *given),
        )
    return found


def _diagonal_discretize(name: str, real: torch.dtype) -> Launches:
    module = "sequence_kernels.ops.diagonal_discretize.triton"
    found: Launches = {}
    for bilinear in (False, True):
        a = torch.zeros(1, 32, dtype=real.to_complex())
        given = (a, a, torch.zeros(4, dtype=torch.float64), bilinear, True)
        g = torch.zeros(4, 32, dtype=torch.complex128)
        label = f"{'bilinear' if bilinear else 'zoh'} {name}"
        found[label] = (module, "diagonal_discretize", given)
        found[f"backward, {label}"] = (module, "diagonal_discretize_backward", (g, g, *given))
    return found


def _ssm_step(name: str, real: torch.dtype) -> Launches:
    module = "sequence_kernels.ops.ssm_step.triton"
    found: Launches = {}
    for rows, heads, pairs in ((1, 4, 32), (8, 4, 32), (32, 4096, 64)):
        state, slots = torch.zeros(rows, heads, pairs, dtype=real.to_complex()), torch.arange(rows)
        u, d = torch.zeros(rows, heads, dtype=real), torch.zeros(1, heads, dtype=real)
        one = state[:1].clone()
        found[f"{rows} rows {name}"] = (module, "ssm_step", (state, u, one[0], one[0], one, d, None, None))
        found[f"{rows} rows, slots {name}"] = (
            module,
            "ssm_step_",
            (state, u, one[0], one[0], one, None, one, one, slots),
        )
    return found


def _selective_step(name: str, dtype: torch.dtype) -> Launches:
    real = torch.float64 if dtype == torch.float64 else torch.float32
    module = "sequence_kernels.ops.selective_step.triton"
    found: Launches = {}
    for form, heads, width, size in (("scan", 256, 1, 16), ("heads", 8, 64, 128)):
        state, slots = torch.zeros(8, heads, width, size, dtype=real), torch.arange(8)
        u, delta, b = (torch.zeros(8, *s, dtype=dtype) for s in ((heads, width), (heads,), (1, size)))
        a, bias = torch.zeros(heads, size if width == 1 else 1, dtype=real), torch.zeros(heads, dtype=real)
        given = (u, delta, a, b, b, bias.unsqueeze(1), u, bias)
        found[f"{form} {name}"] = (
            module,
            "selective_step_",
            (state, *given, slots, True, -math.inf, math.inf),
        )
    return found


def _causal_conv1d(name: str, dtype: torch.dtype) -> Launches:
    module = "sequence_kernels.ops.causal_conv1d.triton"
    real = torch.float64 if dtype == torch.float64 else torch.float32
    weight, bias = torch.zeros(256, 4, dtype=real), torch.zeros(256, dtype=real)
    state = torch.zeros(2, 256, 3, dtype=dtype)
    found: Launches = {}
    for op, sizes in (("causal_conv1d", (2, 256, 512)), ("causal_conv1d_channels_last", (2, 512, 256))):
        x = torch.zeros(sizes, dtype=dtype)
        given = (x, weight, bias, state, True)
        found[f"{op} {name}"] = (module, op, given)
        found[f"backward, {op} {name}"] = (module, f"{op}_backward", (x, state, *given))
    return found


def _selective_scan(name: str, dtype: torch.dtype) -> Launches:
    real, size = (torch.float64, 4) if dtype == torch.float64 else (torch.float32, 16)
    u, b = torch.zeros(2, 512, 256, dtype=dtype), torch.zeros(2, 512, 1, size, dtype=dtype)
    a, d = torch.zeros(256, size, dtype=real), torch.zeros(256, dtype=real)
    state, kept = torch.zeros(2, 256, size, dtype=real), torch.zeros(2, 8 * size, 256, dtype=real)
    module, numbers = "sequence_kernels.ops.selective_scan.triton", (True, -math.inf, math.inf)
    given = (u, u, a, b, b, d, u, d, state)
    return {
        name: (module, "selective_scan", (*given, *numbers)),
        f"backward, {name}": (module, "selective_scan_backward", (u, state, *given, kept, *numbers)),
    }


def _gated_rms_norm(name: str, dtype: torch.dtype) -> Launches:
    module = "sequence_kernels.ops.gated_rms_norm.triton"
    size = 1024 if dtype == torch.float64 else 1536
    x = torch.zeros(64, 1, size, dtype=dtype)
    weight = torch.zeros(1, size, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    found: Launches = {}
    for place in ("first", "last"):
        given = (x, weight, x, place == "first", 1e-5)
        found[f"gate {place} {name}"] = (module, "gated_rms_norm", given)
        found[f"backward, gate {place} {name}"] = (module, "gated_rms_norm_backward", (x, *given))
    return found


def _ssd(name: str, dtype: torch.dtype) -> Launches:
    real = torch.float64 if dtype == torch.float64 else torch.float32
    x, b = torch.zeros(2, 256, 8, 64, dtype=dtype), torch.zeros(2, 256, 1, 128, dtype=dtype)
    shapes = ((2, 256, 8), (8,)), ((8, 64), (2, 8, 64, 128))
    (dt, a), (d, state) = ([torch.zeros(shape, dtype=real) for shape in pair] for pair in shapes)
    module, given = "sequence_kernels.ops.ssd.triton", (x, dt, a, b, b, d, state)
    return {name: (module, "ssd", given), f"backward, {name}": (module, "ssd_backward", (x, state, *given))}


def _ssm_conv(name: str, dtype: torch.dtype, dense: bool) -> Launches:
    """The backward pass divides sequences into segments, the forward pass does not."""
    module = "sequence_kernels.ops.ssm_conv.triton"
    real = torch.float64 if dtype == torch.float64 else torch.float32
    (heads, size, chunk) = (128, 64, 32) if real == torch.float32 else (128, 16, 16)
    count = chunk.bit_length()

    def arguments(batch: int) -> tuple[torch.Tensor, ...]:
        a = torch.zeros(heads, count, size, size, dtype=torch.float64)
        shapes = ((1, heads, chunk), (1, heads, size, chunk), (heads, chunk, size))
        return (
            torch.zeros(batch, heads, 1024, dtype=dtype),
            *(torch.zeros(shape, dtype=real) for shape in shapes),
            a if dense else torch.zeros(heads, count, size // 2, dtype=torch.complex128),
            torch.zeros(1, heads, dtype=real),
            torch.zeros(batch, heads, size, dtype=real),
            torch.zeros(batch, dtype=torch.int64),
        )

    few, many = arguments(2), arguments(128)
    label = f"{'dense' if dense else 'diagonal'} {name}"
    return {
        f"forward, {label}": (module, "ssm_conv", many),
        f"backward, {label}": (module, "ssm_conv_backward", (few[0].unsqueeze(1), few[6], *few)),
    }


def _all() -> Iterator[Launches]:
    for name, real in (("f32", torch.float32), ("f64", torch.float64)):
        for of in (_vandermonde, _cauchy, _ssm_step, _dplr_generating, _ssm_chunk):
            yield of(name, real)
        for of in (_dplr_discretize, _diagonal_discretize):
            yield of(name, real)
        yield _ssm_conv(name, real, dense=False)
        yield _causal_conv1d(name, real)
        yield _selective_step(name, real)
        yield _ssd(name, real)
        yield _gated_rms_norm(name, real)
        yield _selective_scan(name, real)
    yield _causal_conv1d("bf16", torch.bfloat16)
    yield _selective_step("bf16", torch.bfloat16)
    yield _ssd("bf16", torch.bfloat16)
    yield _gated_rms_norm("bf16", torch.bfloat16)
    yield _selective_scan("bf16", torch.bfloat16)
    yield _ssm_conv("f32", torch.float32, dense=True)
    yield _ssm_conv("bf16", torch.bfloat16, dense=False)


#: Label, module, function, arguments; a label is one of its op.
LAUNCHES = [(label, *launch) for found in _all() for label, launch in found.items()]
