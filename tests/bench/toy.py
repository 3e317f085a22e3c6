"""A small benchmark of our own to try the harness on: scaling a vector."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bench.harness.declare import FORWARD, Bench, Cost, Inputs, Peer, Shape, Target, grid


def inputs(shape: Shape, device: torch.device) -> Inputs:
    return {"x": torch.randn(shape["L"], device=device), "factor": torch.tensor(3.0, device=device)}


def scaled(x: Inputs) -> Tensor:
    return x["x"] * x["factor"]


def added(x: Inputs) -> Tensor:
    return x["x"] + (x["factor"] - 1) * x["x"]


def wrong(x: Inputs) -> Tensor:
    return x["x"] * (x["factor"] + 0.1)


def wrong_gradient(x: Inputs) -> Tensor:
    return x["x"].detach() * x["factor"] + x["x"] - x["x"].detach()


def absent(device: str) -> str | None:
    return f"not on {device} today"


TOY = Bench(
    entry="ops",
    shapes={"quick": grid(L=(8, 32)), "full": grid(L=(32, 64)), "cuda": grid(L=128)},
    inputs=inputs,
    run=scaled,
    cost=lambda shape, mode: Cost(bytes=8 * shape["L"], flops=shape["L"]),
    wrt=("x", "factor"),
    peers=(
        Peer("added", added),
        Peer("wrong", wrong),
        Peer("wrong gradient", wrong_gradient),
        Peer("absent", added, unavailable=absent),
        Peer("slow", added, quick=False),
    ),
    targets=(
        Target(5, "scaling", "L32", "added", 2),
        Target(5, "scaling, memory", "L32", "added", 4, quantity="memory"),
        Target(6, "scaling, bandwidth", "L32", "copy", 0.5),
        Target(7, "scaling, longer", "L64", "added", 2),
    ),
)


def pair(
    op: str = "toy", shape: str = "L32", peer: str | None = "added", ours: float = 1e-3, **more: Any
) -> dict[str, Any]:
    """A record as a run would hold it; `more` overrides its fields, `faster` sets the ratio."""
    faster = more.pop("faster", 3.0)

    def series(median: float) -> dict[str, float]:
        return {"median": median, "q20": 0.9 * median, "q80": 1.1 * median, "n": 9}

    record = {"kind": "pair", "op": op, "shape": shape, "dims": {"L": int(shape[1:])}, "mode": FORWARD}
    record |= {"allocator": "default", "device": "cpu", "ours": "torch", "peer": peer, "difference": 1e-7}
    record |= {"cost": {"bytes": 8_000_000, "flops": 1_000_000, "reciprocals": 0, "transcendentals": 0}}
    record |= {"ours_s": series(ours), "ours_bytes": 1 << 20, "foreign": 0.0}
    if peer:
        record |= {"peer_s": series(ours * faster), "ratio": series(faster), "peer_bytes": 5 << 20}
    return record | more


RATES = {"copy": 1e10, "sgemm": 1e11, "reciprocal": 1e10, "exp": 1e9}


def header(day: int = 1, kind: str = "two-core-toy") -> dict[str, Any]:
    machine = {
        "kind": kind,
        "processor": "Toy",
        "cores": 2,
        "vectors": "avx9",
        "memory_gib": 1,
        "system": "Toy",
    }
    return {
        "kind": "run",
        "schema": 1,
        "time": f"2026-01-{day:02d}T00:00:00Z",
        "commit": "0123456789ab",
        "set": "quick",
        "device": "cpu",
        "machine": machine,
        "versions": {"python": "3.12.0", "torch": "2.13.0"},
        "threads": 2,
    }


def lines(*pairs: dict[str, Any], day: int = 1, kind: str = "two-core-toy") -> list[dict[str, Any]]:
    """The records of a results file."""
    ceilings = {"kind": "ceilings", "allocator": "default", "rates": RATES}
    return [header(day, kind), ceilings, *pairs]
