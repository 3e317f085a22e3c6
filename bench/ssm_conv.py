"""The chunked convolution of a diagonal SSM, against convolutions by FFT that are given the whole kernel."""

from __future__ import annotations

import torch
from torch import Tensor

from bench._systems import CHUNK, chunked_cost, diagonal
from bench.harness.declare import (
    BOTH,
    DEFAULT,
    FORWARD,
    KEEPS,
    Bench,
    Cost,
    Counted,
    Inputs,
    Peer,
    Shape,
    Target,
    grid,
)
from bench.harness.unavailable import unless_installed_on_cuda
from bench.peers import scans
from sequence_kernels import ops
from sequence_kernels.ssm import chunk_matrices

FFT, FLOAT32 = "torch rfft", "ours in float32"
MATRICES = ("taps", "e_out", "e_in", "a_powers")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def inputs(shape: Shape, device: torch.device) -> Inputs:
    """Chunk matrices, the kernel for those who need it, and the system for those who scan."""
    system = diagonal(shape["H"], shape["N"], device)
    u = torch.randn(shape["B"], shape["H"], shape["L"], device=device).to(DTYPES[shape["dtype"]])
    matrices = dict(zip(MATRICES, chunk_matrices(system, CHUNK), strict=True))
    return {"u": u, **matrices, "k": system.kernel(shape["L"]), "system": system}


def ours(x: Inputs) -> Tensor:
    return ops.ssm_conv(x["u"], *(x[name] for name in MATRICES))[0]


def float32(x: Inputs) -> Inputs:
    return {**x, "u": x["u"].float()}


def rfft(x: Inputs) -> Tensor:
    """As S4 does it: pad to twice the length; float32 only."""
    size = 2 * x["u"].shape[-1]
    spectrum = torch.fft.rfft(x["u"].float(), n=size) * torch.fft.rfft(x["k"], n=size)[:, None]
    return torch.fft.irfft(spectrum, n=size)[..., : x["u"].shape[-1]].movedim(0, 1)


def cost(shape: Shape, mode: str) -> Cost:
    size = 2 if shape["dtype"] == "bfloat16" else 4
    return chunked_cost(mode, shape["B"], shape["H"], shape["N"], shape["L"], size=size)


def half(shape: Shape) -> str | None:
    return None if shape["dtype"] != "float32" else "the inputs are float32 already"


def whole(shape: Shape) -> str | None:
    return None if shape["dtype"] == "float32" else "takes float32 only"


def speed(shape: Shape, mode: str, plain: float, kept: float) -> tuple[Target, ...]:
    name = "-".join(f"{key}{value}" for key, value in shape.items() if key != "dtype")
    work = f"ssm_conv {name.replace('-', ' ')}, {mode}"
    where = f"{name}-{shape['dtype']}"
    return (
        Target(6, work, where, FFT, plain, mode, allocator=DEFAULT),
        Target(6, work, where, FFT, kept, mode, allocator=KEEPS),
    )


LONG = tuple(
    {"B": 8, "H": h, "N": 32, "L": length, "dtype": "float32"}
    for h, length in ((128, 4096), (64, 16384), (16, 65536))
)
SHORT = {"B": 8, "H": 128, "N": 32, "L": 1024, "dtype": "float32"}
SINGLE = {"B": 1, "H": 256, "N": 32, "L": 16384, "dtype": "float32"}

BENCH = Bench(
    entry="ops.ssm_conv",
    shapes={
        "quick": grid(B=8, H=16, N=32, L=(1024, 4096, 16384), dtype="float32"),
        "full": (*LONG, SHORT, SINGLE, *grid(B=8, H=128, N=32, L=4096, dtype="bfloat16")),
        "cuda": (
            *grid(B=16, H=512, N=32, L=(1024, 4096, 16384, 65536), dtype="float32"),
            *grid(B=16, H=512, N=32, L=16384, dtype="bfloat16"),
        ),
    },
    inputs=inputs,
    run=ours,
    cost=cost,
    counted=(
        # 1 sequence of 64, 1 head, 1 pair (2 states): two chunks of 32. An output takes 32 + 2 multiply-adds, an
        # input 2, a chunk and pair a complex multiply-add (8); taps 32, e_out 64, e_in 64, six powers of 2 floats
        Counted(
            {"B": 1, "H": 1, "N": 1, "L": 64, "dtype": "float32"},
            FORWARD,
            Cost(4 * 128 + 4 * (32 + 64 + 64 + 12), 2 * 64 * (34 + 2) + 2 * 8),
        ),
        Counted(
            {"B": 1, "H": 1, "N": 1, "L": 64, "dtype": "bfloat16"},
            BOTH,
            Cost(2 * (128 + 192) + 3 * 4 * 172, 3 * (2 * 64 * 36 + 16)),
        ),
    ),
    wrt=("u", *MATRICES),
    gate=2,
    peers=(
        Peer(FFT, rfft, wrt=("u", "k"), serves=whole),
        Peer(
            FLOAT32, ours, float32, serves=half, tolerance=2e-2
        ),  # bfloat16 has 8 bits: each output off by 4e-3
        Peer(
            "accelerated-scan",
            scans.accelerated,
            scans.for_accelerated,
            wrt=("u",),
            unavailable=unless_installed_on_cuda("accelerated_scan", "accelerated-scan"),
            serves=whole,
        ),
        Peer(
            "mamba-ssm",
            scans.mamba,
            scans.for_mamba,
            wrt=("u",),
            unavailable=unless_installed_on_cuda("mamba_ssm", "mamba-ssm"),
            serves=whole,
        ),
    ),
    targets=(
        *(target for shape in LONG for target in speed(shape, FORWARD, 10, 5)),
        *speed(SHORT, FORWARD, 4, 2.5),
        *(target for shape in LONG for target in speed(shape, BOTH, 6, 3)),
        *speed(SINGLE, FORWARD, 5, 3),
        *(
            Target(6, "ssm_conv, share of this machine's sgemm rate, forward", name, "sgemm", 0.8)
            for name in (
                "B8-H128-N32-L4096-float32",
                "B8-H64-N32-L16384-float32",
                "B8-H16-N32-L65536-float32",
            )
        ),
        Target(6, "ssm_conv in bfloat16 on a CPU", "B8-H128-N32-L4096-bfloat16", FLOAT32, 1),
        Target(23, "ssm_conv in bfloat16 on a CPU", "B8-H128-N32-L4096-bfloat16", FLOAT32, 1.6),
        Target(
            6, "ssm_conv in bfloat16, forward", "B16-H512-N32-L16384-bfloat16", "roofline", 0.7, device="cuda"
        ),
        *(
            Target(
                6,
                f"ssm_conv at L={length}, {mode}",
                f"B16-H512-N32-L{length}-float32",
                FFT,
                5,
                mode,
                device="cuda",
            )
            for length in (1024, 4096, 16384, 65536)
            for mode in (FORWARD, BOTH)
        ),
    ),
)
