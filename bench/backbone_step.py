"""One step through a whole backbone of S4D layers and feed-forward layers, against ESPnet's SequenceModel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bench.harness.declare import Bench, Cost, Inputs, Peer, Shape, Target, grid
from bench.harness.unavailable import unless_installed
from bench.peers import espnet
from sequence_kernels import SequenceModel

SHAPE = "B1-H256-N32-layers16"


def stack(shape: Shape) -> dict[str, Any]:
    """Arguments that both libraries take."""
    s4 = {"_name_": "s4", "d_state": 2 * shape["N"], "mode": "diag", "measure": "diag-lin", "disc": "zoh"}
    return {"n_layers": shape["layers"], "layer": [s4], "residual": "R", "norm": "layer"}


def inputs(shape: Shape, device: torch.device) -> Inputs:
    model = SequenceModel(shape["H"], **stack(shape)).to(device).eval()
    x = torch.randn(shape["B"], shape["H"], device=device)
    return {"model": model, "x": x, "shape": shape}


def ready(x: Inputs) -> Inputs:
    return {**x, "stepper": x["model"].stepper((len(x["x"]),))}


def restart(x: Inputs) -> None:
    x["stepper"].reset()


def ours(x: Inputs) -> Tensor:
    return x["stepper"].step(x["x"])


def like(x: Inputs) -> Inputs:
    theirs: Any = espnet.backbone(x["model"], **stack(x["shape"]))
    return {**x, "theirs": theirs, "carried": theirs.default_state(len(x["x"]))}


def their_restart(x: Inputs) -> None:
    x["carried"] = x["theirs"].default_state(len(x["x"]))


def their_step(x: Inputs) -> Tensor:
    y, x["carried"] = x["theirs"].step(x["x"], x["carried"])
    return y


def cost(shape: Shape, mode: str) -> Cost:
    """Every layer's recurrence and linear map once; see `s4d_step`."""
    batch, heads, pairs = (shape[key] for key in "BHN")
    states, linear = batch * heads * pairs, heads * heads
    one = Cost(16 * states + 24 * heads * pairs + 8 * linear, 14 * states + 4 * batch * linear)
    return Cost(shape["layers"] * one.bytes, shape["layers"] * one.flops)


BENCH = Bench(
    entry="SequenceModel",
    shapes={
        "quick": grid(B=1, H=256, N=32, layers=4),
        "full": grid(B=(1, 16), H=256, N=32, layers=16),
        "cuda": grid(B=(1, 64), H=256, N=32, layers=16),
    },
    inputs=inputs,
    run=ours,
    setup=ready,
    restart=restart,
    cost=cost,
    peers=(
        Peer(
            "ESPnet S4",
            their_step,
            like,
            their_restart,
            unavailable=unless_installed("hydra", "hydra-core, and " + espnet.INSTALL),
        ),
    ),
    targets=(Target(7, "16-layer backbone step d_model=256 d_state=64, B=1", SHAPE, "ESPnet S4", 4),),
)
