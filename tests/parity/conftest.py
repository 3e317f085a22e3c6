"""ESPnet's layers as black boxes to compare with. Without ESPnet these tests skip."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

import pytest
import torch

# ESPnet prefers these to its own torch code where they are installed, and then needs a GPU.
ACCELERATORS = ("cauchy_mult", "pykeops", "pykeops.torch")


def conjugate_cauchy(v: torch.Tensor, z: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """sum_n v_n / (z - w_n) + conj(v_n) / (z - conj(w_n)).

    ESPnet's function of the same arguments leaves the second sum out, unlike its CUDA extension and its `step`.
    """
    v, w = torch.cat([v, v.conj()], dim=-1), torch.cat([w, w.conj()], dim=-1)
    return (v[..., None] / (z - w[..., None])).sum(dim=-2)


@pytest.fixture(scope="session")
def espnet() -> ModuleType:
    """The module of ESPnet's S4, its Cauchy sum put right."""
    for name in [name for name in sys.modules if name.startswith("espnet2.asr.state_spaces")]:
        del sys.modules[name]  # other tests may have imported it with an accelerator
    with pytest.MonkeyPatch.context() as patch:
        for name in ACCELERATORS:
            patch.setitem(sys.modules, name, None)
        try:
            module = importlib.import_module("espnet2.asr.state_spaces.s4")
        except ImportError as error:
            pytest.skip(f"{error}; pip install --no-deps -r tests/parity/requirements.txt")
    module.cauchy_naive = conjugate_cauchy
    return module
