"""AOTInductor of layers as they are, whose parameters are discretised in the package, for Python."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sequence_kernels import DSS, LRU, S4, S4D, S5, SequenceModule, native

pytestmark = [
    pytest.mark.skipif(native.unavailable("cpu") is not None, reason="needs the compiled library"),
    pytest.mark.skipif(shutil.which("c++") is None, reason="AOTInductor needs a C++ compiler"),
    pytest.mark.thorough,  # a minute each
]
WIDTH = 4
LAYERS: dict[str, Callable[[], SequenceModule]] = {
    "s4": lambda: S4(WIDTH, 4, transposed=False),
    "s4d": lambda: S4D(WIDTH, 4, transposed=False),
    "s5": lambda: S5(WIDTH, 4),
    "lru": lambda: LRU(WIDTH, 3),
    "dss": lambda: DSS(WIDTH, 4),
}


class WithState(nn.Module):
    def __init__(self, layer: SequenceModule) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        y, after = self.layer(x, state)
        return y, after


@pytest.mark.parametrize("name", LAYERS)
def test_outputs_and_states_are_those_of_the_layer(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    layer, free = LAYERS[name]().eval(), torch.export.Dim.DYNAMIC
    with torch.no_grad():
        program = torch.export.export(
            WithState(layer),
            (torch.randn(2, 75, WIDTH), layer.default_state(2)),
            dynamic_shapes=({0: free, 1: free}, {0: free}),
            strict=False,
        )
        path = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "layer.pt2"))
        run = torch._inductor.aoti_load_package(path)
        for batch, length in ((2, 75), (3, 1), (1, 200)):
            x, state = torch.randn(batch, length, WIDTH), torch.randn_like(layer.default_state(batch))
            for found, wanted in zip(run(x, state), layer(x, state), strict=True):
                assert (found - wanted).abs().max() <= 2e-6 * wanted.abs().max()
