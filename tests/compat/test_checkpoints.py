"""Checkpoints of other libraries are the same functions here, and go back."""

from __future__ import annotations

import copy
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sequence_kernels import S4, SequenceModel, compat
from tests.parity.conftest import espnet  # noqa: F401 (the fixture)

from .s4_layers import LENGTH, S4D, H, Model, N, S4Block, Untied

EXACT = 1e-9


def difference(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return float(((a - b).abs().max() / b.abs().max()).detach())


def moved(module: nn.Module) -> nn.Module:
    """Every parameter away from its initial value, in float64."""
    module = module.double().eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter) * (0.1 + parameter.abs()))
    return module


V4: dict[str, dict[str, Any]] = {
    "dplr": {},
    "dplr-shared": {"copies": 2, "channels": 2},
    "dplr-bidirectional": {"bidirectional": True, "channels": 2, "glu": False},
    "diagonal": {"diagonal": True},
    "diagonal-shared": {"diagonal": True, "copies": 3, "transposed": False},
}


@pytest.mark.parametrize("name", V4)
def test_s4_v4(name: str) -> None:
    torch.manual_seed(0)
    theirs = S4Block(**V4[name])
    x = torch.randn(2, H, LENGTH, dtype=torch.float64)
    x = x if theirs.transposed else x.mT
    ours = compat.load_s4(theirs.state_dict(), transposed=theirs.transposed)
    assert isinstance(ours, S4)
    assert difference(ours(x)[0], theirs(x)[0]) < EXACT
    back = compat.export_s4(ours)
    assert back.keys() == theirs.state_dict().keys()
    for key, value in theirs.state_dict().items():
        torch.testing.assert_close(back[key], value)


@pytest.mark.parametrize("transposed", [False, True])
def test_s4d(transposed: bool) -> None:
    torch.manual_seed(0)
    theirs = S4D(transposed)
    x = torch.randn(2, H, LENGTH, dtype=torch.float64)
    x = x if transposed else x.mT
    ours = compat.load_s4(theirs.state_dict(), transposed=transposed)
    assert difference(ours(x)[0], theirs(x)[0]) < EXACT


@pytest.mark.parametrize("name", ["dplr", "dplr-shared"])
def test_a_truncated_readout_of_v4_is_the_same_function_at_every_length(name: str) -> None:
    torch.manual_seed(0)
    theirs = S4Block(**V4[name])
    x = torch.randn(2, H, LENGTH, dtype=torch.float64)
    expected = {length: theirs(x[..., :length])[0] for length in (1, 2, 17, LENGTH)}
    theirs.layer.kernel.truncate(LENGTH)
    ours = compat.load_s4(theirs.state_dict())
    for length, want in expected.items():
        assert difference(ours(x[..., :length])[0], want) < EXACT
    back = compat.export_s4(ours, LENGTH)
    for key, value in theirs.state_dict().items():
        torch.testing.assert_close(back[key], value)


def test_v3_has_espnets_names(espnet: ModuleType) -> None:  # noqa: F811
    torch.manual_seed(0)
    theirs = moved(espnet.S4(H, 8, transposed=True))
    state = theirs.state_dict()
    state["output_linear.0.weight"] = state["output_linear.0.weight"].unsqueeze(-1)
    x = torch.randn(2, H, LENGTH, dtype=torch.float64)
    assert difference(compat.load_s4(state)(x)[0], theirs(x)[0]) < EXACT


@pytest.mark.parametrize(
    "arguments",
    [
        {"measure": "legt", "rank": 2, "channels": 2, "n_ssm": 2},
        {"mode": "diag", "measure": "diag-lin", "n_ssm": 3, "bidirectional": True},
        {"gate": 2, "bottleneck": 2},
        {"postact": None, "hyper_act": "tanh"},
    ],
)
def test_espnet_checkpoints_round_trip(espnet: ModuleType, arguments: dict[str, Any]) -> None:  # noqa: F811
    torch.manual_seed(0)
    theirs = moved(espnet.S4(H, 8, transposed=False, **arguments))
    options = {"transposed": False} | {k: v for k, v in arguments.items() if k == "hyper_act"}
    x = torch.randn(2, LENGTH, H, dtype=torch.float64)
    cold = copy.deepcopy(theirs.state_dict())
    expected = theirs(x)[0]  # now C is C (I - A^L), and L is above 0, in nplr mode
    warm = theirs.state_dict()
    for state in (cold, warm):
        ours = compat.load_espnet(state, **options)
        assert difference(ours(x)[0], expected) < EXACT
        for length in (1, 2, 23):
            again = espnet.S4(H, 8, transposed=False, **arguments).double().eval()
            again.load_state_dict(compat.export_espnet(ours, length), strict=True)
            assert difference(again(x[:, :length])[0], ours(x[:, :length])[0]) < EXACT
    if "kernel.kernel.L" in warm:
        assert int(warm["kernel.kernel.L"]) >= LENGTH
        back = compat.export_espnet(ours, int(warm["kernel.kernel.L"]))
        for key, value in warm.items():
            torch.testing.assert_close(back[key], value)


def test_a_backbone_from_a_file(espnet: ModuleType, tmp_path: Path) -> None:  # noqa: F811
    from espnet2.asr.state_spaces.model import SequenceModel as Theirs

    torch.manual_seed(0)
    layers = [{"_name_": "s4", "d_state": 8, "channels": 2}, {"_name_": "ff", "expand": 3}]
    theirs = moved(Theirs(H, n_layers=2, layer=layers, residual="R", norm="layer", dropout=0.1))
    torch.save({"model": {f"decoder.{k}": v for k, v in theirs.state_dict().items()}}, tmp_path / "model.pth")
    ours = compat.load_espnet(tmp_path / "model.pth", "decoder.", dropout=0.1).eval()
    assert isinstance(ours, SequenceModel)
    x = torch.randn(2, LENGTH, H, dtype=torch.float64)
    assert difference(ours(x)[0], theirs(x)[0]) < EXACT
    with pytest.raises(ValueError, match=r"some below 'decoder\.'"):
        compat.load_espnet(tmp_path / "model.pth")


def test_a_layer_from_safetensors(tmp_path: Path) -> None:
    files = pytest.importorskip("safetensors.torch", reason="pip install safetensors")
    torch.manual_seed(0)
    theirs, x = S4Block(False), torch.randn(2, LENGTH, H, dtype=torch.float64)
    files.save_file(theirs.state_dict(), tmp_path / "s4.safetensors")
    ours = compat.load_s4(tmp_path / "s4.safetensors", transposed=False)
    assert difference(ours(x)[0], theirs(x)[0]) < EXACT
    files.save_file(compat.export_espnet(ours), tmp_path / "espnet.safetensors")
    again = compat.load_espnet(str(tmp_path / "espnet.safetensors"), transposed=False)
    assert difference(again(x)[0], theirs(x)[0]) < EXACT


def test_a_backbone_of_s4() -> None:
    torch.manual_seed(0)
    theirs = Model(S4Block(transposed=False), S4Block(transposed=False, diagonal=True), S4D(transposed=False))
    x = torch.randn(2, LENGTH, H, dtype=torch.float64)
    ours = compat.load_s4(theirs.state_dict())
    assert difference(ours(x)[0], theirs(x)) < EXACT


def test_what_cannot_be_loaded_is_said() -> None:
    with pytest.raises(ValueError, match=r"no S4 layer below the prefix 'encoder\.'"):
        compat.load_espnet({"decoder.weight": torch.zeros(2)}, "encoder.")
    with pytest.raises(TypeError, match="source must be a state dict or a file"):
        compat.load_espnet(torch.zeros(2))  # type: ignore[arg-type]
    state = S4Block().state_dict()
    with pytest.raises(ValueError, match="dt_tie=False, a step for each mode, and a low-rank part"):
        compat.load_s4({**state, "layer.kernel.inv_dt": torch.zeros(H, 4)})
    with pytest.raises(ValueError, match="with gate multiplies before its linear map"):
        compat.load_s4({**state, "input_gate.0.weight": torch.zeros(H, H)})
    with pytest.raises(TypeError, match="swap_channels"):
        compat.load_s4(state, swap_channels=True)
    glu = S4Block(activation=nn.GLU(-1)).state_dict()
    with pytest.raises(ValueError, match="or activation='glu' if it is one of s4 v4"):
        compat.load_s4(glu)
    with pytest.raises(ValueError, match="real_transform must be one of"):
        compat.load_s4(state, real_transform="cosine")
    layer, model = compat.export_espnet(S4(4, 4)), compat.export_espnet(SequenceModel(4, layer=["s4", "ff"]))
    with pytest.raises(ValueError, match=r"options for 'fff', but the checkpoint has ff, s4"):
        compat.load_espnet(model, layers={"fff": {"dropout": 0.1}})
    with pytest.raises(ValueError, match=r"options for 's4', but the checkpoint is one layer"):
        compat.load_espnet(layer, layers={"s4": {"dropout": 0.1}})
    with pytest.raises(TypeError, match=r"'droput'; did you mean 'dropout'\?"):
        compat.load_espnet(model, layers={"s4": {"droput": 0.1}})
    with pytest.raises(TypeError, match=r"'residul'; did you mean 'residual'\?"):
        compat.load_espnet(model, residul="R")
    with pytest.raises(ValueError, match="dt_transform='softplus' is of layers of s4 v4"):
        compat.load_s4(layer, dt_transform="softplus")
    with pytest.raises(ValueError, match="dt_fast=True is of layers of s4 v4"):
        compat.load_s4(layer, dt_fast=True)
    with pytest.raises(ValueError, match=r"some below 'c_layers\.0\.layer\.', 'deep\.'"):
        compat.load_espnet(
            {f"c_layers.0.layer.{k}": v for k, v in layer.items()}
            | {f"deep.{k}": v for k, v in model.items()}
        )
    early = {name.replace("inv_w_real", "w"): value for name, value in layer.items()}
    with pytest.raises(ValueError, match=r"of no known version of S4: it has kernel\.kernel\.B"):
        compat.load_espnet(early)
    attentive = compat.export_espnet(SequenceModel(4, layer=["s4", {"_name_": "mha", "n_head": 2}]))
    with pytest.raises(ValueError, match="number of heads"):
        compat.load_espnet(attentive)
    assert isinstance(compat.load_espnet(attentive, layers={"mha": {"n_head": 2}}), SequenceModel)
    normed = {name.replace("0.weight", "0.weight_g"): value for name, value in layer.items()}
    with pytest.raises(ValueError, match="weight_norm=True"):
        compat.load_espnet(normed)
    with pytest.raises(ValueError, match="length must be at least 0, got -1"):
        compat.export_s4(S4(4, 4), -1)


def real_modes(block: S4Block) -> dict[str, Tensor]:
    """Its state dict as that of ``is_real=True``, which this makes it."""
    kernel, state = block.layer.kernel, {**block.state_dict()}
    kernel.A_imag.data.zero_()
    for name in ("B", "C"):
        getattr(kernel, name).data[..., 1] = 0
        state[f"layer.kernel.{name}"] = state[f"layer.kernel.{name}"][..., 0]
    del state["layer.kernel.A_imag"]
    return state


@pytest.mark.parametrize("option", ["final_act", "glu", "elu", "is_real", "dt_tie", "dt_fast"])
def test_options_of_v4(option: str) -> None:
    """What a layer of ours computes too, if not with the same parameters."""
    torch.manual_seed(0)
    act = {"glu": nn.GLU(-1), "elu": nn.ELU()}.get(option)
    theirs = S4Block(diagonal=option != "glu", copies=2, channels=2, bidirectional=True, activation=act)
    kernel, given = theirs.layer.kernel, dict[str, Any]()
    if option in ("glu", "elu"):
        given["activation"] = option
    if option == "final_act":
        theirs.output_linear = nn.Identity()
    if option == "dt_tie":
        kernel.__class__ = Untied
        kernel.inv_dt = nn.Parameter(-3 + torch.rand(H, N).double())
    if option == "dt_fast":
        kernel.dt_fast = given["dt_fast"] = True
    state = real_modes(theirs) if option == "is_real" else theirs.state_dict()
    ours = compat.load_s4(state, **given)
    x = torch.randn(2, H, LENGTH, dtype=torch.float64)
    assert difference(ours(x)[0], theirs(x)[0]) < EXACT


@pytest.mark.parametrize("transform", ["none", "relu", "sigmoid", "softplus"])
@pytest.mark.parametrize("diagonal", [False, True])
def test_transforms(transform: str, diagonal: bool) -> None:
    """A positive number that v4 stores by another function of it is that number here."""
    torch.manual_seed(0)
    theirs = S4Block(diagonal=diagonal)
    function = {
        "none": lambda p: p,
        "relu": torch.relu,
        "sigmoid": torch.sigmoid,
        "softplus": nn.functional.softplus,
    }
    state = {**theirs.state_dict()}
    kernel = theirs.layer.kernel
    stored = {
        name: torch.rand_like(p) + 0.01
        for name, p in kernel.named_parameters()
        if name.startswith(("A_", "inv"))
    }
    state |= {f"layer.kernel.{name}": value for name, value in stored.items()}
    offset = 1e-4 if transform == "relu" else 0.0
    positive = {name: function[transform](value) + offset for name, value in stored.items()}
    kernel.A_real.data = positive["A_real"].log()
    kernel.A_imag.data = positive["A_imag"]
    kernel.inv_dt.data = positive["inv_dt"].log()
    ours = compat.load_s4(state, dt_transform=transform, real_transform=transform, imag_transform=transform)
    x = torch.randn(2, H, LENGTH, dtype=torch.float64)
    assert difference(ours(x)[0], theirs(x)[0]) < EXACT


@pytest.mark.parametrize("expand", [1.5, 4 / 3, 0.51])
def test_a_feed_forward_of_any_width(expand: float) -> None:
    ours = SequenceModel(100, layer=["s4", {"_name_": "ff", "expand": expand}], residual="R", norm="layer")
    again = compat.load_espnet(compat.export_espnet(ours))
    assert again.layers[1].layer.ff[2].weight.shape == ours.layers[1].layer.ff[2].weight.shape


@pytest.mark.parametrize("name", ["D", "kernel.kernel.C"])
def test_a_missing_parameter_is_named(name: str) -> None:
    state = dict(S4(H).state_dict())
    del state[name]
    with pytest.raises(ValueError, match=f"no parameter '{name}'"):
        compat.load_espnet(state)
