"""A token through a stack of Mamba layers by its stepper, against the matrix products alone."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from bench._mamba import PRODUCTS, inputs, products, weights
from bench.harness.declare import Bench, Cost, Inputs, Shape, Target, grid
from sequence_kernels import MambaLM


def ready(x: Inputs) -> Inputs:
    return {**x, "stepper": x["model"].stepper((len(x["tokens"]),)), "token": x["tokens"][:, 0]}


def restart(x: Inputs) -> None:
    x["stepper"].reset()


def run(x: Inputs) -> Tensor:
    return x["stepper"].step(x["token"])


def cost(shape: Shape, mode: str) -> Cost:
    """Every weight of the linear maps read once, and every state read and written."""
    model = MambaLM(shape["V"], shape["H"], shape["layers"], layer=shape["layer"])
    numbers, states = (
        sum(w.numel() for w in weights(model)),
        sum(part.numel() for layer in model.default_state(shape["B"]) for part in layer),
    )
    return Cost(4 * numbers + 8 * states, 2 * shape["B"] * numbers + 6 * states)


def model_and_tokens(shape: Shape, device: Any) -> Inputs:
    return inputs(shape["layer"], shape, device)


def name(layer: str) -> str:
    return f"B1-H768-layers4-V1024-{layer}"


BENCH = Bench(
    entry="models.MambaLM",
    shapes={
        "quick": grid(B=1, H=256, layers=2, V=1024, layer=("mamba", "mamba2")),
        "full": grid(B=(1, 8), H=768, layers=4, V=1024, layer=("mamba", "mamba2")),
        "cuda": grid(B=(1, 64), H=768, layers=4, V=1024, layer=("mamba", "mamba2")),
    },
    inputs=model_and_tokens,
    run=run,
    setup=ready,
    restart=restart,
    cost=cost,
    peers=(products(),),
    targets=(
        Target(17, "Mamba 4 x 768, a token, over its matrix products", name("mamba"), PRODUCTS, 0.91),
        Target(17, "Mamba-2 4 x 768, a token, over its matrix products", name("mamba2"), PRODUCTS, 0.87),
    ),
)
