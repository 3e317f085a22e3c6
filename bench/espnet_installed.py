"""ESPnet's own S4 layer, unmodified: with `compat.install()` against without."""

from __future__ import annotations

import torch
from torch import Tensor

from bench._systems import chunked_cost
from bench.harness.declare import BOTH, Bench, Cost, Inputs, Peer, Shape, Target, grid
from bench.harness.unavailable import unless_installed
from bench.peers import espnet
from sequence_kernels import S4, compat

WITHOUT = "ESPnet S4 without install()"


def inputs(shape: Shape, device: torch.device) -> Inputs:
    batch, heads, pairs, length = (shape[key] for key in "BHNL")
    layer = S4(heads, 2 * pairs, transposed=False).to(device).eval()
    return {"layer": layer, "x": torch.randn(batch, length, heads, device=device)}


def like(x: Inputs) -> Inputs:
    layer: S4 = x["layer"]
    return {**x, "theirs": espnet.like(layer, d_state=2 * layer.n, transposed=False)}


def installed(x: Inputs) -> Tensor:
    with compat.install(espnet.module()):
        return espnet.forward(x)


def cost(shape: Shape, mode: str) -> Cost:
    """What the layer has to do at least: the chunked convolution and the (H, 2 H) linear map."""
    batch, heads, pairs, length = (shape[key] for key in "BHNL")
    linear = Cost(bytes=8 * heads * heads, flops=4 * batch * length * heads * heads)
    found = chunked_cost(mode, batch, heads, pairs, length, dense=True) + linear
    return found + linear + linear if mode == BOTH else found


BENCH = Bench(
    entry="compat.install",
    shapes={"quick": grid(B=1, H=32, N=32, L=1024), "full": grid(B=(1, 4), H=256, N=32, L=4096)},
    inputs=inputs,
    run=installed,
    setup=like,
    cost=cost,
    wrt=("x", "theirs"),
    peers=(
        Peer(
            WITHOUT,
            espnet.forward,
            like,
            unavailable=unless_installed("espnet2", espnet.INSTALL),
            tolerance=espnet.TOLERANCE,
        ),
    ),
    targets=(
        Target(
            8,
            "unmodified ESPnet S4 layer with compat.install(), d_model=256 d_state=64 L=4096 B=1, forward+backward",
            "B1-H256-N32-L4096",
            WITHOUT,
            10,
            BOTH,
        ),
    ),
)
