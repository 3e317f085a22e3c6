"""What a caller passes to the ops by hand, or torch.compile without a look: an error, never a crash."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sequence_kernels import S4D, native, ops

from .devices import backends
from .ssm_conv.test_ssm_conv import Model

every_backend = pytest.mark.parametrize("backend", backends("ssm_conv"))
#: For sequences of 40 elements, and the value that the message must show.
LENGTHS = [
    ([10**9, 3], "1000000000"),
    ([41, 3], "41"),
    ([-5, 40], "-5"),
    ([0, -(2**63)], "-9223372036854775808"),
]
bad_lengths = pytest.mark.parametrize(("values", "shown"), LENGTHS, ids=[shown for _, shown in LENGTHS])
MESSAGE = r"lengths must be in 0 .. 40, got .*"


@pytest.mark.skipif(native.unavailable("cpu") is not None, reason=str(native.unavailable("cpu")))
def test_native_ops_called_by_hand(tmp_path: Path) -> None:
    """Every native op, one argument spoiled at a time, in a process that a wild read would end."""
    said = tmp_path / "said"  # a file, as a pipe would be read line by line while both wait
    with said.open("w") as file:
        done = subprocess.run(
            [sys.executable, "-m", "tests.ops.hostile"],
            stdout=file,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            cwd=Path(__file__).parents[2],
        )
    last = said.read_text().rstrip().rpartition("\n")[2]
    assert last == "survived", f"{done.returncode}: {last}\n{done.stderr[-2000:]}"


class Convolution(nn.Module):
    def __init__(self, backend: str) -> None:
        super().__init__()
        self.matrices = [
            t.float() if not t.is_complex() else t for t in Model(2, 1, 4, 8, dense=False).matrices()
        ]
        self.backend = backend

    def forward(self, u: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        return ops.ssm_conv(u, *self.matrices, lengths=lengths, backend=self.backend)


def compiled(module: nn.Module, *example: Any) -> Callable[..., Any]:
    return torch.compile(module, backend="aot_eager", fullgraph=True)


def exported(module: nn.Module, *example: Any) -> Callable[..., Any]:
    return torch.export.export(module, example).module()


@pytest.mark.parametrize("translated", [compiled, exported])
@every_backend
@bad_lengths
def test_lengths_that_no_one_saw(translated: Any, backend: str, values: list[int], shown: str) -> None:
    u, good = torch.randn(2, 2, 40), torch.tensor([40, 0])
    function = translated(Convolution(backend), u, good)
    assert function(u, good)[1].isfinite().all()
    with pytest.raises((ValueError, RuntimeError), match=MESSAGE + shown):
        function(u, torch.tensor(values))


@every_backend
@bad_lengths
def test_lengths_of_a_backward_pass_by_hand(backend: str, values: list[int], shown: str) -> None:
    u = torch.randn(2, 2, 40)
    given = (torch.ones(2, 1, 2, 40), torch.ones(2, 2, 4), u, *Convolution(backend).matrices, None, None)
    with pytest.raises((ValueError, RuntimeError), match=MESSAGE + shown):
        torch.ops.sequence_kernels.ssm_conv_backward(*given, torch.tensor(values), backend)


@bad_lengths
def test_a_compiled_layer(values: list[int], shown: str) -> None:
    layer = S4D(8, 8, transposed=False)
    x = torch.randn(2, 40, 8, requires_grad=True)
    function = torch.compile(layer, backend="aot_eager")
    with pytest.raises((ValueError, RuntimeError), match=MESSAGE + shown):
        function(x, layer.default_state(2), lengths=torch.tensor(values))


def test_orders_and_powers_that_no_sum_can_use() -> None:
    v, z = torch.ones(2, dtype=torch.cfloat), torch.ones(3, dtype=torch.cfloat)
    with pytest.raises(ValueError, match="order must be at most 1000, got 4294967297"):
        ops.cauchy(v, z, -v, order=2**32 + 1)
    with pytest.raises(ValueError, match="power must be at most 1000, got 4294967297"):
        ops.vandermonde(v, -v, 3, power=2**32 + 1)
