"""``compat.accelerate``: a live model keeps its function, and gets its layers back."""

from __future__ import annotations

import copy
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sequence_kernels import S4, compat
from tests.parity.conftest import espnet  # noqa: F401 (the fixture)

from .s4_layers import LENGTH, S4D, H, Model, S4Block
from .test_checkpoints import EXACT, difference, moved


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
    assert not done.new_parameters
    assert isinstance(model.layers[0].layer, S4)
    expected = reference(x)[0]
    assert difference(model(x)[0], expected) < EXACT
    for name, parameter in model.named_parameters():
        assert parameter is parameters[name]

    optimizers = [torch.optim.SGD(m.parameters(), lr=0.01) for m in (model, reference)]
    if (
        "mode" in layer
    ):  # trained in place; the gradient of an nplr layer's C is that of another parametrisation
        for m, optimizer in zip((model, reference), optimizers, strict=True):
            m(x)[0].square().mean().backward()
            optimizer.step()
        expected = reference(x)[0]
        assert difference(model(x)[0], expected) < EXACT
    done.revert()
    assert type(model.layers[0].layer).__module__ == espnet.__name__
    assert difference(model(x)[0], expected) < EXACT
    assert done.replaced == {}


def test_espnet_steps_without_setup(espnet: ModuleType) -> None:  # noqa: F811
    model, x = espnet_model(), inputs()
    compat.accelerate(model)
    expected, state, steps = model(x)[0], model.default_state(2), []
    for u in x.unbind(1):
        y, state = model.step(u, state)
        steps.append(y)
    assert difference(torch.stack(steps, 1), expected) < EXACT


def test_s4_v4_and_s4d() -> None:
    model, x = s4_model(), inputs()
    model.layers[0].layer.layer.kernel.truncate(LENGTH)
    expected, names = model(x), list(model.state_dict())
    done = compat.accelerate(model)
    assert done.replaced == {f"layers.{i}.layer": "S4Block" for i in range(3)} | {"layers.3.layer": "S4D"}
    assert {name.split(".")[1] for name in done.new_parameters} == {"0", "1", "2", "3"}
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
        block.layer.layer.drop = block.layer.drop = nn.Dropout(0.5)
    model.layers[3].layer.dropout = nn.Dropout(0.5)
    model.train()
    compat.accelerate(model)
    for block in model.layers:
        assert block.layer.training
        drops = sum(isinstance(part, nn.Dropout) for part in block.layer.modules())
        assert drops == {"0": 2, "1": 2, "2": 0, "3": 1}[str(list(model.layers).index(block))]


def test_what_was_left_is_reported() -> None:
    model = s4_model()
    model.layers[0].layer.gate = 2
    model.layers[1].layer.layer.activation = nn.Softmax(-1)
    model.layers[2].layer.layer.kernel.dt_transform = "softplus"
    before = model.layers[0].layer
    done = compat.accelerate(model)
    assert done.skipped == {
        "layers.0.layer": "gate=2 has no counterpart here",
        "layers.1.layer": "the activation Softmax has no counterpart here",
        "layers.2.layer": "dt_transform='softplus' is not kept: use load_s4",
    }
    assert model.layers[0].layer is before
    assert "left layers.0.layer: gate=2" in str(done)
    assert "replaced layers.3.layer (S4D)" in str(done)
    assert str(compat.accelerate(nn.Linear(2, 2))) == "found no S4 layer and no Mamba mixer"
    with pytest.raises(ValueError, match="itself such a layer"):
        compat.accelerate(S4Block())


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
    del model.layers[1].layer.layer.bidirectional, model.layers[1].layer.layer.activation
    done = compat.accelerate(model)
    assert "activation" in done.skipped["layers.1.layer"]
    assert len(done.replaced) == 3
