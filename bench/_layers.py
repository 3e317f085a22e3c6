"""What measuring an S4 and an S4D layer has in common: parts of a layer, and the same parts of ESPnet's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench._systems import chunked_cost
from bench.harness.declare import BOTH, FORWARD, Bench, Cost, Inputs, Peer, Shape, Target, grid
from bench.harness.unavailable import unless_installed
from bench.peers import espnet
from sequence_kernels import S4
from sequence_kernels.ssm import convolve

ESPNET = "ESPnet S4"


def layer_inputs(make: Callable[[int, int], S4]) -> Callable[[Shape, torch.device], Inputs]:
    """Inputs for a layer of d_model H and d_state 2 N, over which the caller's `make` builds it."""

    def inputs(shape: Shape, device: torch.device) -> Inputs:
        batch, heads, pairs, length = (shape[key] for key in "BHNL")
        return {
            "layer": make(heads, 2 * pairs).to(device).eval(),
            "x": torch.randn(batch, length, heads, device=device),
            "u": torch.randn(batch, heads, length, device=device),
            "state": torch.randn(batch, heads, pairs, dtype=torch.complex64, device=device),
            "part": shape["part"],
        }

    return inputs


def ssm(x: Inputs) -> Tensor:
    """From the layer's parameters to the output of its convolution, the skip included."""
    layer = x["layer"]
    return convolve(layer.system(), x["u"], layer.D)[0]


OURS: dict[str, Callable[[Inputs], Any]] = {
    "ssm": ssm,
    "layer": lambda x: x["layer"](x["x"])[0],
    "state": lambda x: x["layer"](x["x"], x["state"]),
}
THEIRS: dict[str, Callable[[Inputs], Any]] = {
    "ssm": espnet.convolution,
    "layer": espnet.forward,
    "state": espnet.forward_state,
}


def layer_bench(
    name: str,
    make: Callable[[int, int], S4],
    dense: bool,
    targets: tuple[Target, ...],
    **espnet_arguments: Any,
) -> Bench:
    """The benchmark of a layer: its SSM part alone, the whole of it, and a chunk with a state."""

    def cost(shape: Shape, mode: str) -> Cost:
        """The convolution, for whole layers also the (H, 2 H) linear map (twice as much again backward)."""
        batch, heads, pairs, length = (shape[key] for key in "BHNL")
        found = chunked_cost(mode, batch, heads, pairs, length, dense=dense)
        if shape["part"] == "ssm":
            return found
        linear = Cost(bytes=8 * heads * heads, flops=4 * batch * length * heads * heads)
        return found + linear + (linear + linear if mode == BOTH else Cost(0, 0))

    def like(x: Inputs) -> Inputs:
        theirs: Any = espnet.like(
            x["layer"], d_state=2 * x["state"].shape[-1], transposed=False, **espnet_arguments
        )
        if x["part"] == "state":
            with torch.no_grad():
                theirs.setup_step()
        return {**x, "theirs": theirs}

    return Bench(
        entry=f"layers.{name}",
        shapes={
            "quick": grid(B=4, H=32, N=32, L=(1024, 2048), part="layer")
            + grid(B=4, H=32, N=32, L=1024, part="ssm"),
            "full": grid(B=4, H=256, N=32, L=4096, part=("layer", "ssm"))
            + grid(B=4, H=256, N=32, L=1024, part="state"),
            "cuda": grid(B=16, H=512, N=32, L=4096, part=("layer", "ssm")),
        },
        inputs=layer_inputs(make),
        run=lambda x: OURS[x["part"]](x),
        cost=cost,
        wrt=("x", "u", "layer"),
        peers=(
            Peer(
                ESPNET,
                lambda x: THEIRS[x["part"]](x),
                like,
                wrt=("x", "u", "theirs"),
                unavailable=unless_installed("espnet2", espnet.INSTALL),
                tolerance=espnet.TOLERANCE,
            ),
        ),
        targets=targets,
    )


def layer_targets(name: str, ssm: float, layer: float, later: float, memory: float) -> tuple[Target, ...]:
    """The rows of issues 6 and 23 (``later``) for a layer at B=4, d_model=256, d_state=64, L=4096, with gradients."""
    work, shape = f"{name} layer B=4 d_model=256 d_state=64 L=4096", "B4-H256-N32-L4096"
    return (
        Target(6, f"SSM part of an {work}, forward+backward", f"{shape}-ssm", ESPNET, ssm, BOTH),
        Target(6, f"whole {work}, forward+backward", f"{shape}-layer", ESPNET, layer, BOTH),
        Target(23, f"whole {work}, forward+backward", f"{shape}-layer", ESPNET, later, BOTH),
        Target(
            6, f"whole {work}, forward+backward", f"{shape}-layer", ESPNET, memory, BOTH, quantity="memory"
        ),
    )


def state_target() -> Target:
    """Issue 6's row for a chunk with a state."""
    work = "S4 layer with a state, B=4 d_model=256 d_state=64 L=1024, forward"
    return Target(6, work, "B4-H256-N32-L1024-state", ESPNET, 50, FORWARD)
