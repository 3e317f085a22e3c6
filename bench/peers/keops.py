"""pykeops: map-reduce kernels generated and compiled at their first use; told to stay on the CPU for CPU tensors."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from bench.harness.declare import Inputs


@functools.cache
def _reduction(formula: str, *names: str) -> Callable[..., Tensor]:
    """A sum over j of complex numbers; the first name varies with i, the others with j."""
    from pykeops.torch import Genred

    aliases = [f"{name} = {'Vj' if i else 'Vi'}(2)" for i, name in enumerate(names)]
    return Genred(formula, aliases, reduction_op="Sum", axis=1)


def _sum(formula: str, **arguments: Tensor) -> Tensor:
    pairs = [torch.view_as_real(value.resolve_conj()).contiguous() for value in arguments.values()]
    backend = "CPU" if pairs[0].device.type == "cpu" else "GPU"
    return torch.view_as_complex(_reduction(formula, *arguments)(*pairs, backend=backend))


def vandermonde(x: Inputs) -> Tensor:
    """2 Re sum_n v_n e^{x_n l}."""
    position = torch.arange(x["L"], device=x["v"].device).to(x["v"].dtype).expand(x["v"].shape[0], -1)
    return 2 * _sum("ComplexMult(v, ComplexExp(ComplexMult(x, l)))", l=position, v=x["v"], x=x["x"]).real


def vandermonde_transpose(x: Inputs) -> Tensor:
    """sum_l g_l e^{x_n l}."""
    position = torch.arange(x["g"].shape[-1], device=x["g"].device).to(x["x"].dtype).expand_as(x["g"])
    return _sum(
        "ComplexMult(g, ComplexExp(ComplexMult(x, l)))", x=x["x"], g=x["g"].to(x["x"].dtype), l=position
    )


def cauchy(x: Inputs) -> Tensor:
    """sum_n v_n / (z_l - w_n) + conj(v_n) / (z_l - conj(w_n)), one call for each of the v that share poles."""
    v, z, w = x["v"], x["z"].expand(x["w"].shape[0], -1), x["w"]
    formula = "ComplexDivide(v, z - w) + ComplexDivide(Conj(v), z - Conj(w))"
    return torch.stack([_sum(formula, z=z, v=each, w=w) for each in v])
