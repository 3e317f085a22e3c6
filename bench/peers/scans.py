"""Scan and linear-attention libraries, all for CUDA, told to compute a time-invariant SSM."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.harness.declare import Inputs


def for_accelerated(x: Inputs) -> Inputs:
    """Every state's factor at every step."""
    system, (batch, _, length) = x["system"], x["u"].shape
    a = torch.exp(system.x).to(system.c.dtype).flatten()
    forget = a[None, :, None].expand(batch, len(a), length)
    return {**x, "forget": forget.contiguous()}


def accelerated(x: Inputs) -> Tensor:
    """One complex scan a state, then the read-out."""
    from accelerated_scan.complex import scan

    system, u = x["system"], x["u"]
    inputs = (u.unsqueeze(2) * system.b.unsqueeze(-1)).flatten(1, 2).contiguous()
    states = scan(x["forget"], inputs).unflatten(1, system.b.shape)
    return 2 * torch.einsum("chn,bhnl->bchl", system.c, states).real


def for_mamba(x: Inputs) -> Inputs:
    """With steps of 1 its discretisation is exp(A) and B as they are."""
    system = x["system"]
    return {
        **x,
        "delta": torch.ones_like(x["u"]),
        "A": system.log_a.to(system.b.dtype),
        "C": system.c[0].contiguous(),
    }


def mamba(x: Inputs) -> Tensor:
    """The selective scan with B, C and the step constant in time."""
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    return selective_scan_fn(x["u"], x["delta"], x["A"], x["system"].b, x["C"]).unsqueeze(1)


def for_simple_gla(x: Inputs) -> Inputs:
    """Queries, keys and log decays, the same at every position; (batch, length, heads, ...)."""
    batch, width, length = x["u"].shape
    heads, states = x["readout"].shape
    query = (2 * x["readout"]).expand(batch, length, heads, states).contiguous()
    log_decay = x["decay"].expand(batch, length, heads).contiguous()
    return {
        **x,
        "query": query,
        "key": torch.ones_like(query),
        "log_decay": log_decay,
        "head_width": width // heads,
    }


def simple_gla(x: Inputs) -> Tensor:
    """`chunk_simple_gla` with constant decay."""
    from fla.ops.simple_gla import chunk_simple_gla

    value = x["u"].mT.unflatten(-1, (-1, x["head_width"])).contiguous()
    out, _ = chunk_simple_gla(x["query"], x["key"], value, g=x["log_decay"], scale=1.0)
    return out.flatten(-2).mT
