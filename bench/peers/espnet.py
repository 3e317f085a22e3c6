"""ESPnet's S4 from its released wheel, used from outside, with its Cauchy sum put right.

Its fallback for the Cauchy kernel sums over one of each conjugate pair only and so computes another function than its
own CUDA extension and its own step; adding the conjugates gives the function that both libraries mean. pykeops, where
installed, is hidden while ESPnet is imported: it would be told to run on a GPU.
"""

from __future__ import annotations

import functools
import logging
import sys
from types import ModuleType
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from bench.harness.declare import Inputs

INSTALL = "--no-deps espnet==202511, then einops and opt_einsum"

# Its S4 computes roots of unity in float32 powers: its kernel is off by 7e-4 at L=4096, 3e-3 at L=16384 (in the norm).
TOLERANCE = 1e-2


@functools.cache
def module() -> ModuleType:
    """`espnet2.asr.state_spaces.s4`, mended."""
    with mock.patch.dict(sys.modules, {"pykeops": None}):
        logging.disable(logging.WARNING)
        try:
            from espnet2.asr.state_spaces import s4
        finally:
            logging.disable(logging.NOTSET)
    half = s4.cauchy_naive
    s4.cauchy_naive = lambda v, z, w: half(torch.cat([v, v.conj()], -1), z, torch.cat([w, w.conj()], -1))
    return s4


def _corresponding(theirs: nn.Module, ours: nn.Module) -> nn.Module:
    """With the parameters of ours, whose names are the same; ESPnet's diagonal kernel has one that nothing reads."""
    found = theirs.load_state_dict(ours.state_dict(), strict=False)
    if found.unexpected_keys or not all(key.endswith("kernel.kernel.A") for key in found.missing_keys):
        raise ValueError(f"the parameters of the two do not correspond: {found}")
    return theirs.to(next(ours.parameters()).device).eval()


def like(ours: nn.Module, **arguments: Any) -> nn.Module:
    """Its S4 layer with the parameters of ours, whose names are the same."""
    return _corresponding(module().S4(ours.d_model, **arguments), ours)


def backbone(ours: nn.Module, **arguments: Any) -> nn.Module:
    """Its SequenceModel with the parameters of ours, ready to step."""
    module()
    from espnet2.asr.state_spaces.model import SequenceModel

    theirs = _corresponding(SequenceModel(ours.d_model, track_norms=False, **arguments), ours)
    parts: list[Any] = [part for part in theirs.modules() if hasattr(part, "setup_step")]
    for part in parts:
        part.setup_step()
    return theirs


def forward(x: Inputs) -> Tensor:
    return x["theirs"](x["x"])[0]


def forward_state(x: Inputs) -> tuple[Tensor, Tensor]:
    y, state = x["theirs"](x["x"], state=x["state"])
    return y, torch.view_as_complex(state) if not state.is_complex() else state


def convolution(x: Inputs) -> Tensor:
    """From the parameters to the output of the convolution: its kernel, an FFT convolution of 2 L points, the skip."""
    u, layer = x["u"], x["theirs"]
    length = u.shape[-1]
    k = layer.kernel(L=length, rate=1.0)[0]
    spectrum = torch.fft.rfft(k, n=2 * length) * torch.fft.rfft(u, n=2 * length).unsqueeze(1)
    return torch.fft.irfft(spectrum, n=2 * length)[..., :length] + layer.D.unsqueeze(-1) * u.unsqueeze(1)


def kernel(x: Inputs) -> Tensor:
    return x["theirs"].kernel(L=x["L"], rate=1.0)[0]
