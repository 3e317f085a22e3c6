"""A language model of Mamba layers over a prompt, against its matrix products alone, and Hugging Face's."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from bench._mamba import HUGGING_FACE, PRODUCTS, hugging_face, inputs, products
from bench.harness.declare import Bench, Cost, Inputs, Shape, Target, grid

SHAPE = "B1-H768-layers4-V1024-L512"


def run(x: Inputs) -> Tensor:
    return x["model"](x["tokens"])[0]


def cost(shape: Shape, mode: str) -> Cost:
    """The matrix products, with d_inner = 2 H, N = 16 and R = H / 16: those of the layers, and the scores."""
    width, rows = shape["H"], shape["B"] * shape["L"]
    inner, rank = 2 * width, -(-width // 16)
    numbers = shape["layers"] * (3 * width * inner + inner * (rank + 32) + rank * inner) + shape["V"] * width
    return Cost(4 * numbers, 2 * rows * numbers)


BENCH = Bench(
    entry="models.MambaLM",
    shapes={
        "quick": grid(B=1, H=256, layers=2, V=1024, L=256),
        "full": grid(B=1, H=768, layers=4, V=1024, L=(512, 2048)),
        "cuda": grid(B=8, H=768, layers=4, V=1024, L=2048),
    },
    inputs=partial(inputs, "mamba"),
    run=run,
    cost=cost,
    peers=(products(), hugging_face("mamba")),
    targets=(
        Target(17, "MambaLM 4 layers of 768, L=512, over its matrix products", SHAPE, PRODUCTS, 0.8),
        Target(17, "MambaLM 4 layers of 768, L=512", SHAPE, HUGGING_FACE, 4),
    ),
)
