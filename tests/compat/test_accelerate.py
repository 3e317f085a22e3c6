"""``compat.accelerate``: a live model keeps its function, and gets its layers back."""

from __future__ import annotations

import copy
import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sequence_kernels import S4, compat, parameter_groups
from tests.parity.conftest import espnet  # noqa: F401 (the fixture)

from .s4_layers import DSS, LENGTH, S4D, EarlyS4D, FFTConv, H, Model, N, S4Block, Untied
from .test_checkpoints import EXACT, difference, moved

accelerate = sys.modules["sequence_kernels.compat.accelerate"]


def espnet_model(**layer: Any) -> nn.Module:
    from espnet2.asr.state_spaces.model import SequenceModel

    torch.manual_seed(0)
    layers = [{"_name_": "s4", "d_state": 8, **layer}, {"_name_": "ff"}]
    return moved(SequenceModel(H, n_layers=2, layer=layers, residual="R", norm="layer"))


def s4_model() -> Model:
    torch.manual_seed(0)
    return Model(
        S4Block(False),
        S4Block(False, diagonal=True, copies=2),
        S4Block(False, activation=nn.Tanh()),
        S4D(False),
    )


def inputs() -> Tensor:
    return torch.randn(2, LENGTH, H, dtype=torch.float64)


@pytest.mark.parametrize(
    "layer",
    [
        {},
        {"mode": "diag", "measure": "diag-lin", "n_ssm": 2, "channels": 2},
        {"gate": 2, "bottleneck": 2, "hyper_act": "tanh", "postact": "gelu", "activation": "silu"},
        {"bidirectional": True, "measure": "legt", "rank": 2},
        {"mode": "diag", "measure": "diag-inv", "disc": "zoh", "bandlimit": 0.2, "real_type": "softplus"},
    ],
)
@pytest.mark.parametrize("ran", [False, True])
def test_espnet(espnet: ModuleType, layer: dict[str, Any], ran: bool) -> None:  # noqa: F811
    model = espnet_model(**layer)
    reference, x = copy.deepcopy(model), inputs()
    if ran:  # the readout of nplr layers is then another one, C (I - A^L)
        model(x)
    parameters = dict(model.named_parameters())
    done = compat.accelerate(model)
    assert done.replaced == {"layers.0.layer": "S4", "layers.2.layer": "S4"}
    assert not done.skipped
    assert isinstance(model.layers[0].layer, S4)
    expected = reference(x)[0]
    assert difference(model(x)[0], expected) < EXACT
    for name, parameter in model.named_parameters():
        assert parameter is parameters[name]

    optimizers = [torch.optim.SGD(m.parameters(), lr=0.01) for m in (model, reference)]
    if ran or "mode" in layer:  # a layer that never ran makes its C that of its first length, and trains that
        for m, optimizer in zip((model, reference), optimizers, strict=True):
            m(x)[0].square().mean().backward()
            optimizer.step()
        expected = reference(x)[0]
        assert difference(model(x)[0], expected) < EXACT
    done.revert()
    assert type(model.layers[0].layer).__module__ == espnet.__name__
    assert difference(model(x)[0], expected) < EXACT
    assert done.replaced == {}


def test_a_wrong_copy_of_espnets_layer_stays(espnet: ModuleType) -> None:  # noqa: F811
    class Doubled(espnet.S4):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            y, state = super().forward(*args, **kwargs)
            return 2 * y, state

    model, x = espnet_model(), inputs()
    model.layers[0].layer.__class__ = Doubled
    expected = model(x)[0]
    done = compat.accelerate(model)
    assert list(done.replaced) == ["layers.2.layer"]
    assert "on a trial its output and ours are" in done.skipped["layers.0.layer"]
    assert difference(model(x)[0], expected) < EXACT


def test_espnet_steps_without_setup(espnet: ModuleType) -> None:  # noqa: F811
    model, x = espnet_model(), inputs()
    compat.accelerate(model)
    expected, state, steps = model(x)[0], model.default_state(2), []
    for u in x.unbind(1):
        y, state = model.step(u, state)
        steps.append(y)
    assert difference(torch.stack(steps, 1), expected) < EXACT


def test_espnets_decoder_hands_on_one_state_for_all(espnet: ModuleType) -> None:  # noqa: F811
    """As its ``S4Decoder`` does: ``setup_step`` on every part that has it, then one state of a batch of 1 for all."""
    model = espnet_model()
    reference, x = copy.deepcopy(model), torch.randn(3, 6, H, dtype=torch.float64)
    compat.accelerate(model)
    scores = []
    for decoder in (model, reference):
        for part in decoder.modules():
            if hasattr(part, "setup_step"):
                part.setup_step(**({} if decoder is model else {"mode": "dense"}))
        state, steps = decoder.default_state(1, device=x.device), []
        for u in x.unbind(1):
            y, states = decoder.step(u, state, memory=None)
            steps.append(y)
            state = [None if s is None else s[:1] for s in states]
        scores.append(torch.stack(steps, 1))
    assert difference(*scores) < EXACT


def test_s4_v4_and_s4d() -> None:
    model, x = s4_model(), inputs()
    model.layers[0].layer.layer.kernel.truncate(LENGTH)
    expected, names = model(x), list(model.state_dict())
    done = compat.accelerate(model)
    assert done.replaced == {f"layers.{i}.layer.layer": "FFTConv" for i in range(3)} | {
        "layers.3.layer": "S4D"
    }
    assert list(model.state_dict()) == names
    assert difference(model(x), expected) < EXACT
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.01)
    expected = model(x)
    done.revert()
    assert list(model.state_dict()) == names
    assert difference(model(x), expected) < EXACT


def test_dropout_and_training_mode_are_kept() -> None:
    model = s4_model()
    for block in model.layers[:2]:
        block.layer.layer.drop = nn.Dropout(1.0)
    model.layers[3].layer.dropout = nn.Dropout(1.0)
    x = inputs()
    expected = model.train()(x)
    assert len(compat.accelerate(model).replaced) == 4
    assert all(part.training for part in model.modules())
    assert difference(model(x), expected) < EXACT
    assert difference(model.eval()(x), expected) > 0.1


class Unbounded(S4D):
    """A copy of ``s4d.py`` with another nonlinearity in its forward."""

    def forward(self, x: Tensor, state: Any = None, **kwargs: Any) -> tuple[Tensor, Any]:
        y, _ = super().forward(x)
        return torch.tanh(y), None


class Alone(S4D):
    """A copy that returns its output alone."""

    def forward(self, x: Tensor, state: Any = None, **kwargs: Any) -> Any:
        return super().forward(x)[0]


class Scaled(S4D):
    """A copy with another parameter, which its forward reads."""

    def __init__(self) -> None:
        super().__init__(False)
        self.scale = nn.Parameter(torch.full((H,), 2.0).double())

    def forward(self, x: Tensor, state: Any = None, **kwargs: Any) -> tuple[Tensor, Any]:
        return super().forward(x * self.scale)


class Tapered(FFTConv):
    """A copy of v4's convolution whose input is windowed."""

    def forward(self, x: Tensor, state: Any = None, **kwargs: Any) -> tuple[Tensor, Any]:
        return super().forward(x * torch.linspace(1, 0.5, x.shape[1])[:, None])


def test_what_computes_something_else_stays() -> None:
    torch.manual_seed(0)
    model = Model(Unbounded(False), Alone(False), Scaled(), S4Block(False), S4D(False), S4Block(False))
    model.layers[3].layer.layer = Tapered(False, 1, nn.GELU(), diagonal=True, copies=H)
    model.layers[5].layer.layer.drop_kernel = nn.Dropout(0.1)
    before = [block.layer for block in model.layers]
    done = compat.accelerate(model)
    assert list(done.replaced) == ["layers.4.layer"]
    for place in ("layers.0.layer", "layers.2.layer", "layers.3.layer.layer"):
        assert "on a trial its output and ours are" in done.skipped[place]
    assert done.skipped["layers.1.layer"] == "its forward returns a tensor alone, ours a tensor and a state"
    assert "drop_kernel" in done.skipped["layers.5.layer.layer"]
    assert [block.layer for block in model.layers[:4]] == before[:4]
    assert "left layers.0.layer: on a trial" in str(done)
    assert "replaced layers.4.layer (S4D)" in str(done)
    unchecked = compat.accelerate(Model(Unbounded(False)), check=False)
    assert list(unchecked.replaced) == ["layers.0.layer"]


def test_a_report_of_nothing_says_what_was_nearest() -> None:
    assert str(compat.accelerate(nn.Linear(2, 2))) == "found no S4 layer and no Mamba mixer"
    model = Model(S4D(False))
    del model.layers[0].layer.kernel.log_dt
    report = str(compat.accelerate(model))
    assert "nearest layers.0.layer (S4D): it lacks kernel.log_dt" in report
    with pytest.raises(ValueError, match="itself such a layer"):
        compat.accelerate(S4D())


@pytest.mark.parametrize("transform", ["exp", "softplus", "relu", "none"])
@pytest.mark.parametrize("diagonal", [False, True])
def test_transforms_of_v4(transform: str, diagonal: bool) -> None:
    torch.manual_seed(0)
    model = Model(S4Block(False, diagonal, outer=nn.GELU(), activation=nn.ELU()))
    kernel = model.layers[0].layer.layer.kernel
    kernel.dt_transform = kernel.real_transform = kernel.imag_transform = transform
    kernel.dt_fast = diagonal
    kernel.inv_dt.data.add_(3.2)
    kernel.inv_dt.data.clamp_(max=0.5)
    x = inputs()
    expected = model(x)
    assert list(compat.accelerate(model).replaced) == ["layers.0.layer.layer"]
    assert difference(model(x), expected) < EXACT


@pytest.mark.parametrize("outer", ["glu", "swapped", "shorter", "tied"])
def test_convolutions_of_v4(outer: str) -> None:
    torch.manual_seed(0)
    block = S4Block(False, True, channels=2, activation=nn.GLU(-1) if outer == "glu" else nn.Tanh())
    conv = block.layer
    conv.swap_channels = outer == "swapped"
    conv.l_max = 17 if outer == "shorter" else None
    if outer == "tied":  # a step for each mode: dt_tie=False
        conv.kernel.inv_dt = nn.Parameter(-3 + torch.rand(H, N).double())
        conv.kernel.__class__ = Untied
    model, x = Model(block), inputs()
    expected = model(x)
    done = compat.accelerate(model)
    assert list(done.replaced) == ["layers.0.layer.layer"], str(done)
    assert difference(model(x), expected) < EXACT


def test_layers_before_v3() -> None:
    torch.manual_seed(0)
    model, x = Model(EarlyS4D(False)), inputs()
    expected = model(x)
    other = copy.deepcopy(model)
    other.layers[0].layer.D = nn.Parameter(torch.randn(H))
    assert "its D is (6,), not (channels, heads)" in compat.accelerate(other).skipped["layers.0.layer"]
    assert list(compat.accelerate(model).replaced) == ["layers.0.layer"]
    assert difference(model(x), expected) < EXACT


class Doubled(EarlyS4D):
    """A copy of a layer before v3 that gives twice as much."""

    def forward(self, x: Tensor, **kwargs: Any) -> tuple[Tensor, Any]:
        return 2 * super().forward(x)[0], None


class Delayed(DSS):
    """A copy of DSS that reads the element before."""

    def forward(self, u: Tensor, **kwargs: Any) -> tuple[Tensor, Any]:
        return super().forward(u.roll(1, 1))


def test_wrong_copies_of_other_kinds_stay() -> None:
    torch.manual_seed(0)
    done = compat.accelerate(Model(Doubled(False), Delayed("softmax", True), Delayed("exp", False)))
    assert not done.replaced
    assert len(done.skipped) == 3
    assert all("on a trial its output and ours are" in reason for reason in done.skipped.values())


@pytest.mark.parametrize("separate", [False, True])
def test_the_authors_dss(separate: bool) -> None:
    torch.manual_seed(0)
    model, x = Model(DSS("softmax", separate), DSS("exp", separate), DSS("exp", separate)), inputs()
    model.layers[2].layer.kernel.epsilon = 1e-5
    expected = model(x)
    done = compat.accelerate(model)
    assert list(done.replaced) == ["layers.0.layer", "layers.1.layer"], str(done)
    assert "epsilon=1e-05" in done.skipped["layers.2.layer"]
    assert difference(model(x), expected) < 1e-5  # 1e-7 in the authors' reciprocal
    assert model.layers[1].layer.causal
    assert not model.layers[0].layer.causal


def trained(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> list[float]:
    x, losses = inputs(), []
    for _ in range(steps):
        y = model(x)
        loss = ((y if isinstance(y, Tensor) else y[0]) - x.roll(1, 1)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def test_training_goes_on() -> None:
    """The optimizer made before, its state, learning rates and frozen parameters: the same run as without."""
    model = s4_model()
    model.layers[0].layer.layer.kernel.truncate(LENGTH)
    model.layers[3].layer.kernel.A_imag.requires_grad_(False)
    other, runs = copy.deepcopy(model), []
    for m, replaces in ((model, True), (other, False)):
        m.layers[1].layer.layer.kernel.A_real._optim = {"lr": 1e-3, "weight_decay": 0.0}
        optimizer = torch.optim.AdamW(parameter_groups(m, lr=1e-2))
        torch.manual_seed(1)
        runs.append(trained(m, optimizer, 3))
        before = dict(m.named_parameters())
        if replaces:
            done = compat.accelerate(m, optimizer=optimizer)
            assert len(done.replaced) == 4
            assert not done.not_optimized
            assert all(p is before[name] for name, p in m.named_parameters())
            assert not m.layers[3].layer.kernel.A_imag.requires_grad
        runs[-1] += trained(m, optimizer, 20)
    assert runs[0][-1] < 0.9 * runs[0][0]
    torch.testing.assert_close(torch.tensor(runs[0]), torch.tensor(runs[1]), rtol=1e-6, atol=1e-6)
    done.revert()
    torch.testing.assert_close(model(inputs().zero_()), other(inputs().zero_()), rtol=1e-5, atol=1e-5)


def test_an_optimizer_that_lacks_parameters_is_named_first() -> None:
    model = s4_model()
    done = compat.accelerate(model, optimizer=torch.optim.SGD(model.norm.parameters(), lr=0.1))
    assert "layers.3.layer.D" in done.not_optimized
    assert str(done).startswith("the optimizer does not have layers.0.layer.layer.D, ")


def test_an_error_half_way_leaves_the_model_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = s4_model(), inputs()
    before, expected, puts = dict(model.named_modules()), model(x), []

    def fails(*args: Any) -> None:
        puts.append(args)
        if len(puts) == 3:
            raise MemoryError
        original(*args)

    original = accelerate._set
    monkeypatch.setattr(accelerate, "_set", fails)
    with pytest.raises(MemoryError):
        compat.accelerate(model)
    assert dict(model.named_modules()) == before
    assert difference(model(x), expected) == 0


def test_a_layer_in_two_places_stays_one() -> None:
    torch.manual_seed(0)
    model = Model(S4D(False))
    model.again = model.layers[0].layer
    original, x = model.again, inputs()
    y = model(x)
    done = compat.accelerate(model)
    assert isinstance(model.again, S4)
    assert model.again is model.layers[0].layer
    assert list(done.replaced) == ["layers.0.layer", "again"]
    assert difference(model(x), y) < EXACT
    done.revert()
    assert model.again is original
    assert model.layers[0].layer is original


def test_reverting_keeps_the_dtype() -> None:
    model = s4_model()
    done = compat.accelerate(model)
    model.float()
    done.revert()
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_a_layer_that_lacks_a_part_is_left_alone() -> None:
    model = s4_model()
    del model.layers[1].layer.layer.swap_channels
    done = compat.accelerate(model)
    assert "swap_channels" in done.skipped["layers.1.layer.layer"]
    assert len(done.replaced) == 3
