"""aTENNuate's layer is an S5 layer, and its network runs block by block, which it does not do by itself."""

from __future__ import annotations

import copy
import sys
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sequence_kernels import S5, compat

from .attenuate_layers import Denoiser, SSMLayer
from .test_checkpoints import difference


@pytest.fixture(params=["stand-in", "package"])
def attenuate(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A small Denoiser with drawn weights: one of the same shape, or that of the package."""
    torch.manual_seed(0)
    if request.param == "stand-in":
        model = Denoiser((4, 6), (4, 2))
    else:
        if find_spec("attenuate") is None:
            pytest.skip("attenuate is not installed")
        for name in ("librosa", "torchaudio"):  # which read and write files
            if find_spec(name) is None:
                monkeypatch.setitem(sys.modules, name, ModuleType(name))
        from attenuate.model import Denoiser as Theirs

        model = Theirs(channels=[4, 6], num_coeffs=3, repeat=2, resample_factors=[4, 2])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def ssm_layers(model: nn.Module) -> list[Any]:
    return [part for part in model.modules() if type(part).__name__ == "SSMLayer"]


def as_s5(layer: Any) -> S5:
    (outputs, states), inputs = layer.C.shape, layer.B.shape[1]
    options = {"d_output": outputs, "skip": None, "disc": "euler", "real": True, "output_linear": False}
    made = S5(inputs, 2 * states, activation=None, transposed=True, **options)
    decay, turn = layer.A.detach().unbind(-1)
    poles = {"Lambda_log_decay": F.softplus(decay).log(), "Lambda_imag": turn, "log_dt": layer.log_dt}
    made.load_state_dict(poles | {"B": layer.B, "C": layer.C / 2})
    return made.eval()


@torch.no_grad()
def test_its_layer_is_an_s5_layer(attenuate: Any) -> None:
    for theirs in ssm_layers(attenuate):
        x, ours = torch.randn(2, theirs.B.shape[1], 50), as_s5(theirs)
        expected = theirs(x)
        assert difference(ours(x)[0], expected) < 5e-6
        stepper = ours.stepper((2,))
        assert difference(torch.stack([stepper.step(u) for u in x.unbind(-1)], -1), expected) < 5e-6


def test_layers_are_replaced(attenuate: Any) -> None:
    ours, x, grads = copy.deepcopy(attenuate), torch.randn(2, 1, 48), []
    done = compat.accelerate(ours)
    assert len(done.replaced) == len(ssm_layers(attenuate)), str(done)
    assert difference(ours(x), attenuate(x)) < 1e-5
    for model in (ours, attenuate):
        model(x).square().mean().backward()
        grads.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert difference(*grads) < 1e-4


@pytest.mark.parametrize("size", [1, 5, 16])
@torch.no_grad()
def test_block_by_block(attenuate: Any, size: int) -> None:
    stream, x = compat.AttenuateStream(attenuate), torch.randn(2, 1, 64)
    expected = attenuate(x)
    for _ in range(2):  # what comes after the last block is a new sequence
        out, behind, came = [], 0, 0
        for block in x.split(size, -1):
            came += block.shape[-1]
            out.append(stream.push(block, last=came == 64))
            if came < 64:
                behind = max(behind, came - sum(y.shape[-1] for y in out))
        assert difference(torch.cat(out, -1), expected) < 1e-5
        assert behind == stream.latency if size == 1 else behind <= stream.latency + size


def test_what_waits_for_what(attenuate: Any) -> None:
    """Two rates of 4 and 2: six convolutions, which look ahead by one sample of theirs, and blocks of 8."""
    convolutions = sum(isinstance(part, nn.Conv1d) for part in attenuate.hid_ssms.modules())
    assert compat.AttenuateStream(attenuate).latency == 4 + 8 * convolutions + 4 + 7
    with pytest.raises(ValueError, match="must be a multiple of the product of resample_factors"):
        compat.AttenuateStream(attenuate).push(torch.randn(1, 1, 12), last=True)
    with pytest.raises(TypeError, match="model must be a Denoiser of aTENNuate, got Linear"):
        compat.AttenuateStream(nn.Linear(1, 1))


def test_what_is_refused() -> None:
    class Shifted(SSMLayer):
        """A copy that reads the state before the input."""

        def forward(self, input: Tensor) -> Tensor:  # noqa: A002
            return super().forward(input.roll(1, -1))

    torch.manual_seed(0)
    model = nn.Sequential(Shifted(4, 2, 2), SSMLayer(4, 2, 2))
    model[1].B = nn.Parameter(torch.randn(3, 2))  # something else with these names
    done = compat.accelerate(model)
    assert "on a trial its output and ours are" in done.skipped["0"]
    assert list(done.skipped) == ["0"]
    dilated = Denoiser((4,), (2,))
    dilated.hid_ssms[0][0] = nn.Conv1d(4, 4, 3, padding=2, dilation=2, groups=4)
    with pytest.raises(ValueError, match="with stride and dilation 1 is expected, got Conv1d"):
        compat.AttenuateStream(dilated)
