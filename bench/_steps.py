"""What stepping an S4 and an S4D layer has in common: the recurrence alone, the layer, getting ready to step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench.harness.declare import Bench, Cost, Counted, Inputs, Peer, Shape, Target, grid
from bench.harness.unavailable import unless_installed
from bench.peers import espnet
from sequence_kernels import S4

ESPNET = "ESPnet S4"
Step = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def step_inputs(make: Callable[[int, int], S4]) -> Callable[[Shape, torch.device], Inputs]:
    """A layer with its readouts, one position of a batch of sequences, and a state."""

    def inputs(shape: Shape, device: torch.device) -> Inputs:
        batch, heads, pairs = (shape[key] for key in "BHN")
        return {
            "layer": make(heads, 2 * pairs).to(device).eval(),
            "x": torch.randn(batch, heads, device=device),
            "state": torch.randn(batch, heads, pairs, dtype=torch.complex64, device=device),
            "part": shape["part"],
        }

    return inputs


def step_bench(
    name: str,
    make: Callable[[int, int], S4],
    prepared: Callable[[S4], Step],
    rank: int,
    targets: tuple[Target, ...],
    counted: tuple[Counted, ...],
    **espnet_arguments: Any,
) -> Bench:
    """`prepared` makes of a layer the function that takes (state, u) to (y, next state) without the skip.

    The parts: "kernel", that function; "layer", a step of the layer's stepper; "prepare", making a stepper and a step.
    """

    def setup(x: Inputs) -> Inputs:
        stepper = x["layer"].stepper((len(x["x"]),))
        return {**x, "step": prepared(x["layer"]), "stepper": stepper}

    def restart(x: Inputs) -> None:
        x["stepper"].state = x["state"]

    def run(x: Inputs) -> Any:
        if x["part"] == "kernel":
            return x["step"](x["state"], x["x"])
        if x["part"] == "prepare":
            return x["layer"].stepper((len(x["x"]),)).step(x["x"])
        return x["stepper"].step(x["x"])

    def like(x: Inputs) -> Inputs:
        theirs: Any = espnet.like(
            x["layer"], d_state=2 * x["state"].shape[-1], transposed=False, **espnet_arguments
        )
        theirs.setup_step()
        return {**x, "theirs": theirs, "zero": theirs.default_state(len(x["x"]))}

    def their_restart(x: Inputs) -> None:
        state = x["state"]
        x["carried"] = torch.cat([state, state.conj()], -1) if rank else state

    def their_run(x: Inputs) -> Any:
        theirs = x["theirs"]
        if x["part"] == "prepare":
            theirs.setup_step()
            return theirs.step(x["x"], x["zero"])[0]
        if "carried" not in x:
            their_restart(x)
        if x["part"] == "kernel":
            y, state = theirs.kernel.step(x["x"], x["carried"])
            return y, state[..., : x["state"].shape[-1]]
        y, x["carried"] = theirs.step(x["x"], x["carried"])
        return y

    def cost(shape: Shape, mode: str) -> Cost:
        """`ssm_step` without the skip; for whole layers also the (H, 2 H) linear map."""
        batch, heads, pairs = (shape[key] for key in "BHN")
        states, poles = batch * heads * pairs, heads * pairs
        found = Cost(16 * states + (24 + 16 * rank) * poles + 8 * batch * heads, (14 + 8 * rank) * states)
        return (
            found + Cost(8 * heads * heads, 4 * batch * heads * heads) if shape["part"] == "layer" else found
        )

    return Bench(
        entry=f"layers.{name}",
        shapes={
            "quick": grid(B=(1, 16), H=256, N=32, part=("kernel", "layer"))
            + grid(B=1, H=256, N=32, part="prepare"),
            "cuda": grid(B=(1, 64), H=256, N=32, part=("kernel", "layer")),
        },
        inputs=step_inputs(make),
        setup=setup,
        restart=restart,
        run=run,
        cost=cost,
        counted=counted,
        peers=(
            Peer(
                ESPNET,
                their_run,
                like,
                their_restart,
                unavailable=unless_installed("espnet2", espnet.INSTALL),
            ),
        ),
        targets=targets,
    )


def step_targets(name: str, kernel: float, layer: float) -> tuple[Target, ...]:
    """Issue 7's rows for a layer's step at d_model=256, d_state=64."""
    return tuple(
        Target(7, f"{name} step d_model=256 d_state=64 B={b}, {part}", f"B{b}-H256-N32-{part}", ESPNET, least)
        for part, least in (("kernel", kernel), ("layer", layer))
        for b in (1, 16)
    )
