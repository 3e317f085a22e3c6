"""Whether a layer's convolution runs in chunks or by FFT, and in chunks of how many elements.

The rule rests on the times from parameters to outputs in ``bench/results/conv_choice.json``, recorded by ``python -m
bench.harness.conv_choice``: on each of its rows what is chosen takes at most 1.25 times what the best choice does.
Longer chunks save work on each element and cost more in their matrices, which are made once for all elements. What
counts is how many elements a head has, batch x length; the number of heads does not. Compiled kernels beat the FFT at
every size. No GPU has been measured: there, too, plain torch goes by FFT, and kernels take a CPU's best chunks.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from ..dispatch import explains

#: What a compiled graph takes, so that one graph serves every batch and length.
ANY_LENGTH = 32


class Choice(NamedTuple):
    """``conv`` is "chunked" or "fft"; ``chunk`` the elements of a chunk where it is chunked."""

    conv: str
    chunk: int


def best_chunk(size: int, *, dense: bool) -> int:
    """The fastest chunk T of ``ssm_conv`` alone for a state of ``size`` real entries, A being diagonal or dense.

    An element costs ``2 size + T / 2`` multiply-adds, and its share of the product with A^T: about ``4 size / T``, or
    ``size^2 / T`` where A is dense. It does not depend on the batch or the length. Measured on CPUs: docs/decisions.md.
    """
    return min(max(1 << (size - 1).bit_length(), 32), 128) if dense else 32


def choose_convolution(
    batch: int, length: int, size: int, *, dense: bool, backend: str, state: bool = False
) -> Choice:
    """What is fastest from parameters to outputs.

    Args:
        batch, length: of the input; not looked at while torch.compile traces.
        size: real entries S of a head's state.
        dense: whether A^T is a dense matrix (S4) or diagonal (S4D).
        backend: of ``ssm_conv``; "torch" takes the chunks one by one, which an FFT always beats.
        state: a state goes in or out, which an FFT cannot do.
    """
    if torch.compiler.is_compiling():
        return Choice("chunked", ANY_LENGTH)
    elements = batch * length
    conv = "fft" if backend == "torch" and not state else "chunked"
    if elements < 2048:
        return Choice(conv, 16)
    return Choice(conv, 64 if dense and size >= 64 and elements >= 1 << 14 else 32)


@explains("ssm_conv")
def explain_choice(backend: str, **shape: Any) -> str:
    """For ``ops.explain``: batch, length, size, dense and, if one is carried, state."""
    conv, chunk = choose_convolution(**shape, backend=backend)
    kind = "a dense" if shape["dense"] else "a diagonal"
    elements = shape["batch"] * shape["length"]
    about = f"{elements} elements a head, {kind} A with a state of {shape['size']}"
    if conv == "fft":
        return f"  a layer's convolution: fft ({about}; plain torch would take chunks one by one)"
    why = (
        "an FFT cannot carry the state" if shape.get("state") else "measured: bench/results/conv_choice.json"
    )
    return f"  a layer's convolution: chunked, {chunk} elements a chunk ({about}; {why})"
