"""The chunk matrices of the convolution, from the parameters of a diagonal or diagonal-plus-low-rank model."""

from __future__ import annotations

import torch
from torch import Tensor

from bench._systems import CHUNK, diagonal
from bench.harness.declare import BOTH, FORWARD, Bench, Cost, Counted, Inputs, Shape, grid
from sequence_kernels import ops


def inputs(shape: Shape, device: torch.device) -> Inputs:
    heads, pairs = shape["H"], shape["N"]
    system = diagonal(heads, pairs, device)
    a, _, _, b = system.discrete()
    factors = 0.01 * torch.randn(2, shape["R"], heads, pairs, dtype=torch.complex128, device=device)
    return {"a": a, "p": factors[0], "q": factors[1], "b": b, "c": system.c, "T": shape["T"]}


def ours(x: Inputs) -> tuple[Tensor, ...]:
    return ops.ssm_chunk(x["a"], x["p"], x["q"], x["b"], x["c"], x["T"])


def cost(shape: Shape, mode: str) -> Cost:
    """An element of a chunk and a pair: a complex product (6) for the states, readouts, pulls and lifts, 8 a term for
    all but the lifts, and 4 of a tap; the powers of A by squaring, and as products of pulls and lifts (a multiply-add
    an entry, term and element). Backward the sequences again, and their adjoints. Bytes: inputs and outputs once."""
    h, n, r, chunk = (shape[key] for key in "HNRT")
    given, count = 16 * h * n * (2 + 2 * r) + 8 * h * n, chunk.bit_length()
    powers = 8 * (2 * n) ** 2 if r else 16 * n
    made = h * (4 * chunk + 2 * 4 * chunk * 2 * n + count * powers)
    sequences = chunk * n * (6 * (2 + 2 * r) + 8 * r * (2 + r) + 4) + 6 * n * (count - 1)
    products = 2 * r * (2 * n) ** 2 * (2 * chunk - 1)
    forward = Cost(given + made, h * (sequences + products))
    back = Cost(2 * given + made, 3 * h * sequences + 2 * h * products)
    return forward + back if mode == BOTH else forward


BENCH = Bench(
    entry="ops.ssm_chunk",
    shapes={
        "quick": grid(H=16, N=32, R=(0, 1), T=CHUNK),
        "full": grid(H=256, N=32, R=(0, 1), T=CHUNK),
        "cuda": grid(H=512, N=32, R=(0, 1), T=CHUNK),
    },
    inputs=inputs,
    run=ours,
    cost=cost,
    counted=(
        # a, b and c of 3 pairs read; 2 taps, 2 x 2 rows of 6 numbers, and 2 powers written; 2 x 3 elements and pairs
        # with two products and a tap, and one square
        Counted(
            {"H": 1, "N": 3, "R": 0, "T": 2},
            FORWARD,
            Cost(16 * 6 + 8 * 3 + 4 * 2 + 4 * 24 + 16 * 6, 6 * (12 + 4) + 6 * 3),
        ),
        # p and q too, and powers of 6 x 6; four products, and a term in three of them; 36 entries of 1 and 2 elements
        Counted(
            {"H": 1, "N": 3, "R": 1, "T": 2},
            FORWARD,
            Cost(16 * 12 + 8 * 3 + 4 * 2 + 4 * 24 + 8 * 72, 6 * (24 + 24 + 4) + 6 * 3 + 2 * 36 * 3),
        ),
    ),
    wrt=("a", "p", "q", "b", "c"),
)
