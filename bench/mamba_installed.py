"""Hugging Face's own Mamba model: with `compat.install()` or `compat.accelerate()` against without.

What `install()` and its end take, some 10 ms, is part of each call. A step of training is that of one layer at L = 384:
theirs grows with the square of the length, to a minute a layer at 512.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from bench import mamba_lm
from bench._mamba import PRODUCTS, products
from bench.harness.declare import BOTH, Bench, Cost, Inputs, Peer, Shape, Target, grid
from bench.harness.unavailable import unless_installed
from sequence_kernels import compat

WITHOUT = "transformers without us"


def inputs(shape: Shape, device: torch.device) -> Inputs:
    return {"tokens": torch.randint(shape["V"], (shape["B"], shape["L"]), device=device), "shape": shape}


def theirs(x: Inputs) -> Inputs:
    import transformers

    shape = x["shape"]
    config = transformers.MambaConfig(
        vocab_size=shape["V"], hidden_size=shape["H"], num_hidden_layers=shape["layers"]
    )
    torch.manual_seed(0)
    return {**x, "model": transformers.MambaForCausalLM(config).to(x["tokens"].device).eval()}


def logits(x: Inputs) -> Tensor:
    found: Any = x["model"](x["tokens"], use_cache=False)
    return found.logits


def served(x: Inputs) -> Inputs:
    x = theirs(x)
    if x["shape"]["by"] == "accelerate":
        compat.accelerate(x["model"])
    return x


def run(x: Inputs) -> Tensor:
    with compat.install() if x["shape"]["by"] == "install" else nullcontext():
        return logits(x)


def cost(shape: Shape, mode: str) -> Cost:
    """That of our own model; of each matrix product two more with gradients."""
    found = mamba_lm.cost(shape, mode)
    return found + found + found if mode == BOTH else found


def name(by: str, layers: int = 4, length: int = 512) -> str:
    return f"B1-H768-layers{layers}-V1024-L{length}-{by}"


BENCH = Bench(
    entry="compat.install",
    shapes={
        "quick": grid(B=1, H=64, layers=1, V=256, L=64, by=("install", "accelerate")),
        "full": (
            {"B": 1, "H": 768, "layers": 4, "V": 1024, "L": 512, "by": "install"},
            {"B": 1, "H": 768, "layers": 4, "V": 1024, "L": 512, "by": "accelerate"},
            {"B": 1, "H": 768, "layers": 1, "V": 1024, "L": 384, "by": "install"},
        ),
    },
    inputs=inputs,
    run=run,
    setup=served,
    cost=cost,
    wrt=("model",),
    peers=(
        Peer(
            WITHOUT,
            logits,
            theirs,
            unavailable=unless_installed("transformers", "transformers==4.57.1"),
        ),
        products(theirs),
    ),
    targets=(
        Target(17, "MambaForCausalLM 4 x 768, L=512, with install()", name("install"), WITHOUT, 4),
        Target(
            17,
            "the same with accelerate(), over its matrix products",
            name("accelerate"),
            PRODUCTS,
            0.8,
        ),
        Target(
            17,
            "a training step of one layer, L=384, with install()",
            name("install", 1, 384),
            WITHOUT,
            50,
            BOTH,
        ),
    ),
)
