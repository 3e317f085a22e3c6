"""What this machine can do at most: copy bandwidth, sgemm, reciprocals and exponentials a second."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from bench.harness.clock import Sampler, clock_for
from bench.harness.declare import Cost

TRIES = 10


def measure(device: torch.device) -> dict[str, float]:
    """Rates a second: "copy" in bytes read plus written, "sgemm" in float32 operations, "reciprocal" and "exp"
    in results from a block that stays in cache. The best of several tries: a ceiling is never too low by noise.
    """
    on_cuda = device.type == "cuda"
    large, side, cached = (1 << 28, 8192, 1 << 22) if on_cuda else (1 << 24, 1536, 1 << 17)
    source, goal = torch.rand(large, device=device), torch.rand(large, device=device)
    a, b = torch.rand(side, side, device=device), torch.rand(side, side, device=device)
    product = torch.empty_like(a)
    x, y = torch.rand(cached, device=device) + 0.5, torch.empty(cached, device=device)
    works = {
        "copy": (lambda: goal.copy_(source), 8 * large),
        "sgemm": (lambda: torch.mm(a, b, out=product), 2 * side**3),
        "reciprocal": (lambda: torch.reciprocal(x, out=y), cached),
        "exp": (lambda: torch.exp(x, out=y), cached),
    }
    clock = clock_for(device)
    rates = {}
    for name, (call, amount) in works.items():
        call()
        sample = Sampler(call, clock)
        rates[name] = amount / min(sample() for _ in range(TRIES))
    return rates


def floor(cost: Cost, rates: Mapping[str, float]) -> tuple[float, str]:
    """The roofline: the seconds below which this much work cannot be done, and the ceiling that says so.

    Reciprocals and transcendentals run on the same unit, so their times add up.
    """
    special = cost.reciprocals / rates["reciprocal"] + cost.transcendentals / rates["exp"]
    times = {"copy": cost.bytes / rates["copy"], "sgemm": cost.flops / rates["sgemm"], "special": special}
    bound = max(times, key=lambda name: times[name])
    return times[bound], bound
