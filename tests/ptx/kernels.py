"""The kernels of a .cu file as Python functions, in the PTX that nvcc makes of them."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.cuda_emulator import Kernels
from tests.cuda_emulator.build import ROOT

from .machine import Ptx


class PtxKernels(Kernels):
    """As ``Kernels``, whose launch rules it uses; the kernels run as PTX."""

    def __init__(self, pattern: str, *, check: bool = False, architecture: str = "sm_80") -> None:
        super().__init__(pattern)
        self._check = check
        (source,) = ROOT.glob(pattern)
        self.file = Ptx(architecture).file(source)

    def run(self, kernel: str, fields: dict[str, Any], *, order: str = "forward", seed: int = 0) -> None:
        packed, buffers = self._pack(kernel, fields)
        grid, block, shared = self._module.launch_rule(kernel, packed)
        params = np.frombuffer(packed, dtype=np.uint8)
        self.file.run(
            kernel, params.ctypes.data, grid, block, shared, order, seed, buffers if self._check else []
        )
