"""Our backbone and its parts against ESPnet's: the same state dict must be the same function.

Options that do not work in ESPnet are not drawn: docs/parity.md lists them.
"""

from __future__ import annotations

import copy
import importlib
import random
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sequence_kernels import SequenceModel
from sequence_kernels.layers import attention, feed_forward, norms, pools, series_norms
from sequence_kernels.layers.activations import activation_module

from .test_espnet_s4 import DEAD, EXACT, difference

B, LENGTH, MEMORY = 2, 32, 5
SSM: list[dict[str, Any]] = [
    {"d_state": 4},
    {"d_state": 8, "measure": "legt", "rank": 2, "channels": 2},
    {"d_state": 4, "mode": "diag", "measure": "diag-lin", "disc": "zoh"},
    {"d_state": 8, "mode": "diag", "measure": "diag-inv", "n_ssm": 1, "postact": None},
    {"d_state": 4, "mode": "diag", "measure": "diag-lin", "bidirectional": True},
]
RESIDUALS: list[Any] = [
    *("F", "N", "R", "D", "A", "none", "ff", "residual", "decay", "affine", None),
    {"_name_": "R", "alpha": 0.5, "beta": 2.0},
    {"_name_": "D", "power": 1.0, "l2": False},
    {"_name_": "A", "scalar": False, "gamma": 0.5},
]
HIGHWAYS: list[Any] = ["H", {"_name_": "highway", "elemwise": True, "scaling_correction": True}]


@pytest.fixture(scope="session")
def parts(espnet: ModuleType) -> dict[str, ModuleType]:
    """ESPnet's modules by name; the S4 among them is put right."""
    names = ("attention", "components", "ff", "model", "pool")
    try:
        return {name: importlib.import_module(f"espnet2.asr.state_spaces.{name}") for name in names}
    except ImportError as error:
        pytest.skip(f"{error}; pip install --no-deps -r tests/parity/requirements.txt")


def draw(seed: int) -> dict[str, Any]:
    """Constructor arguments of a backbone, for ESPnet's."""
    rng = random.Random(seed)
    transposed = rng.random() < 0.4

    def layer() -> dict[str, Any]:
        kind = rng.choice(["s4", "s4", "ff"] if transposed else ["s4", "s4", "ff", "mha"])
        if kind == "s4":
            gates = {} if transposed else {"gate": rng.choice([None, None, 2])}
            return {"_name_": "s4", **rng.choice(SSM), **gates}
        if kind == "ff":
            return {
                "_name_": "ff",
                "expand": rng.choice([1, 2]),
                "activation": rng.choice(["gelu", "glu", "relu", None]),
            }
        return {"_name_": "mha", "n_head": rng.choice([1, 2])}

    norm = rng.choice([None, "layer", "layer", "batch", "none", "group", "instance"])
    eps = rng.random() < 0.3 and norm in ("layer", "batch") and not transposed
    pool = rng.choice([None, None, "pool", "linear"])
    return {
        "d_model": rng.choice([4, 6]),
        "n_layers": rng.choice([1, 2]),
        "n_repeat": rng.choice([1, 2]),
        "transposed": transposed,
        "prenorm": rng.random() < 0.6,
        "dropout": rng.choice([0.0, 0.3]),
        "tie_dropout": rng.random() < 0.5,
        "dropinp": rng.choice([0.0, 0.3]),
        "drop_path": rng.choice([0.0, 0.3]),
        "layer": [layer() for _ in range(rng.choice([1, 2]))],
        "residual": rng.choice(RESIDUALS if transposed else RESIDUALS + HIGHWAYS),
        "norm": {"_name_": norm, "eps": 1e-3} if eps else norm,
        "pool": pool and {"_name_": pool, "stride": rng.choice([1, 2]), "expand": rng.choice([1, 2])},
    }


def name_of(part: Any) -> Any:
    return part["_name_"] if isinstance(part, dict) else part


def has(config: dict[str, Any], kind: str) -> bool:
    return any(layer["_name_"] == kind for layer in config["layer"])


def streams(config: dict[str, Any]) -> bool:
    """Whether ESPnet can step this."""
    return (
        name_of(config["norm"]) in ("layer", "batch", "none")
        and not config["pool"]
        and not any(layer.get("bidirectional") or layer.get("gate") for layer in config["layer"])
    )


def seeds(fit: Callable[[dict[str, Any]], bool] = lambda config: True) -> list[Any]:
    thorough = [pytest.param(seed, marks=pytest.mark.thorough) for seed in range(32, 200) if fit(draw(seed))]
    return [seed for seed in range(32) if fit(draw(seed))] + thorough


def moved(module: nn.Module, seed: int) -> nn.Module:
    """In double precision, with every parameter and every running mean off its initial value."""
    torch.manual_seed(seed)
    module = module.double().eval()
    for parameter in module.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter) * (0.1 + parameter.abs())
    for name, buffer in module.named_buffers():
        if name.endswith("running_mean"):
            buffer += 0.1 * torch.randn_like(buffer)
    return module


def reference(parts: dict[str, ModuleType], config: dict[str, Any], seed: int) -> Any:
    torch.manual_seed(seed)
    return moved(parts["model"].SequenceModel(**copy.deepcopy(config)), seed)  # it changes its arguments


def same_in_ours(theirs: nn.Module, config: dict[str, Any]) -> SequenceModel:
    """Attention to the sequence itself looks at all of it in ESPnet: an option of ours."""
    layers = [layer | ({"causal": False} if layer["_name_"] == "mha" else {}) for layer in config["layer"]]
    ours = SequenceModel(**config | {"layer": layers}).double().eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    for module in ours.modules():
        if isinstance(module, norms.TransposedLN):
            module.eps = 0.0  # as in theirs
    return ours


def sequence(config: dict[str, Any], length: int = LENGTH) -> Tensor:
    return torch.randn(B, length, config["d_model"], dtype=torch.float64)


@pytest.mark.parametrize("seed", seeds())
def test_forward(parts: dict[str, ModuleType], seed: int) -> None:
    config = draw(seed)
    theirs = reference(parts, config, seed)
    ours = same_in_ours(theirs, config)
    for length in (LENGTH, 64, 48):
        x = sequence(config, length)
        assert difference(ours(x)[0], theirs(x)[0]) < EXACT, config
    assert ours.d_output == theirs.d_output
    missing, unexpected = theirs.load_state_dict(ours.state_dict(), strict=False)
    assert not unexpected
    assert all(name.endswith(DEAD) for name in missing)
    x = sequence(config)
    assert difference(ours(x)[0], theirs(x)[0]) < EXACT, config


@pytest.mark.parametrize("seed", seeds(lambda config: has(config, "mha") and config["pool"] is None))
def test_memory(parts: dict[str, ModuleType], seed: int) -> None:
    """Attention to another sequence, part of which a mask hides."""
    config = draw(seed)
    theirs = reference(parts, config, seed)
    ours = same_in_ours(theirs, config)
    x = sequence(config)
    memory = torch.randn(B, MEMORY, config["d_model"], dtype=torch.float64)
    mask = torch.rand(B, 1, MEMORY) > 0.4
    for arguments in ({"memory": memory}, {"memory": memory, "mask": mask}):
        assert difference(ours(x, **arguments)[0], theirs(x, **arguments)[0]) < EXACT, config


@pytest.mark.parametrize("seed", seeds())
def test_gradients(parts: dict[str, ModuleType], seed: int) -> None:
    """Of the input and of every parameter; nplr's own are in test_espnet_s4.py, since theirs holds another C."""
    config = draw(seed)
    theirs = reference(parts, config, seed)
    ours = same_in_ours(theirs, config)
    x = sequence(config)
    weight = torch.randn_like(theirs(x)[0])
    gradients = []
    for model in (ours, theirs):
        leaf = x.clone().requires_grad_()
        (model(leaf)[0] * weight).sum().backward()
        gradients.append({"x": leaf.grad} | {name: p.grad for name, p in model.named_parameters()})
    mine, expected = gradients
    nplr = {name.removesuffix("P") for name in expected if name.endswith("kernel.kernel.P")}
    largest = max(float(gradient.abs().max()) for gradient in expected.values() if gradient is not None)
    for name, gradient in expected.items():
        if name.endswith(DEAD) or any(name.startswith(prefix) for prefix in nplr):
            continue
        error, scale = (float(t.abs().max()) for t in (mine[name] - gradient, gradient))
        # Some vanish by a symmetry, as the one of a bias before a norm: they are the others' rounding.
        assert error < EXACT * max(scale, 1e-3 * largest), (name, config)


@pytest.mark.parametrize("seed", seeds(streams))
def test_chunks_and_steps(parts: dict[str, ModuleType], seed: int) -> None:
    """With attention to a memory: ESPnet's step of attention to the sequence itself sees one element."""
    config = draw(seed)
    theirs = reference(parts, config, seed)
    layers = [dict(layer) for layer in config["layer"]]
    ours = SequenceModel(**config | {"layer": layers}).double().eval()
    ours.load_state_dict(same_in_ours(theirs, config).state_dict())
    memory = torch.randn(B, MEMORY, config["d_model"], dtype=torch.float64)
    arguments = {"memory": memory} if has(config, "mha") else {}
    for module in ours.modules():
        if isinstance(module, norms.TransposedLN):
            module.eps = 0.0
    x = sequence(config)
    with torch.no_grad():
        theirs(x)
        for module in theirs.modules():
            if hasattr(module, "setup_step"):
                module.setup_step()
        theirs_state, ours_state = theirs.default_state(B), ours.default_state(B)
        for piece in x.split(12, 1):
            expected, theirs_state = theirs(piece, state=theirs_state, **arguments)
            y, ours_state = ours(piece, ours_state, **arguments)
            assert difference(y, expected) < EXACT, config
        theirs_state, ours_state = theirs.default_state(B), ours.default_state(B)
        for element in x[:, :8].unbind(1):
            expected, theirs_state = theirs.step(element, theirs_state, **arguments)
            y, ours_state = ours.step(element, ours_state, **arguments)
            assert difference(y, expected) < EXACT, config


def test_batch_norm_learns_the_same_statistics(parts: dict[str, ModuleType]) -> None:
    config = {"d_model": 4, "layer": [{"_name_": "ff"}], "norm": "batch", "residual": "R", "transposed": True}
    theirs = reference(parts, config, 0).train()
    ours = same_in_ours(theirs, config).train()
    x = sequence(config)
    assert difference(ours(x)[0], theirs(x)[0]) < EXACT
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("pool", [None, "linear"])
def test_optimizer_options(parts: dict[str, ModuleType], pool: Any, transposed: bool) -> None:
    """Which parameters ask for no weight decay."""
    config = {
        "d_model": 4,
        "layer": [{"_name_": "s4", "d_state": 4, "lr": 0.01}, {"_name_": "ff"}],
        "transposed": transposed,
        "norm": "layer",
        "residual": "A",
        "pool": pool and {"_name_": pool, "stride": 2},
    }
    models = parts["model"].SequenceModel(**copy.deepcopy(config)), SequenceModel(**config)
    theirs, ours = ({n: getattr(p, "_optim", None) for n, p in m.named_parameters()} for m in models)
    assert ours == theirs
    scales = [
        pools.DownPool(4, 6, stride=2, transposed=transposed),
        pools.UpPool(4, 6, 2, transposed=transposed),
    ]
    known = [
        parts["pool"].DownPool(4, 6, stride=2, transposed=transposed),
        parts["pool"].UpPool(4, 6, 2, transposed),
    ]
    for mine, other in zip(scales, known, strict=True):
        expected = {n: getattr(p, "_optim", None) for n, p in other.named_parameters()}
        assert {n: getattr(p, "_optim", None) for n, p in mine.named_parameters()} == expected


def test_metrics(parts: dict[str, ModuleType]) -> None:
    """ESPnet's default is to track them."""
    config = {"d_model": 4, "layer": [{"_name_": "ff"}], "n_layers": 2, "residual": "R", "track_norms": True}
    theirs = reference(parts, config, 0)
    ours = same_in_ours(theirs, config)
    x = sequence(config)
    ours(x), theirs(x)
    assert ours.metrics.keys() == theirs.metrics.keys()
    for name, value in theirs.metrics.items():
        torch.testing.assert_close(ours.metrics[name], value)


@pytest.mark.parametrize("seed", range(6))
def test_attention(parts: dict[str, ModuleType], seed: int) -> None:
    theirs = moved(parts["attention"].MultiHeadedAttention(6, (1, 2, 3)[seed % 3]), seed)
    ours = attention.MultiHeadedAttention(6, (1, 2, 3)[seed % 3], causal=False).double().eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x, memory = (torch.randn(B, length, 6, dtype=torch.float64) for length in (9, 5))
    mask, own = torch.rand(B, 9, 5) > 0.7, torch.rand(B, 9, 9) > 0.7  # some rows see nothing
    assert not mask.any(-1).all()
    assert difference(ours(x)[0], theirs(x)[0]) < EXACT
    assert difference(ours(x, mask=own)[0], theirs(x, mask=own)[0]) < EXACT
    assert difference(ours(x, memory=memory, mask=mask)[0], theirs(x, memory, mask)[0]) < EXACT


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("activation", [None, "gelu", "glu", "relu", "tanh", "sigmoid", "swish", "sqrelu"])
def test_feed_forward(parts: dict[str, ModuleType], activation: Any, transposed: bool) -> None:
    arguments = (6, 3, 4, transposed, activation, "normal" if activation == "relu" else None)
    theirs = moved(parts["ff"].FF(*arguments), 0)
    ours = feed_forward.FeedForward(*arguments).double()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = torch.randn(B, 6, 6, dtype=torch.float64)
    assert difference(ours(x)[0], theirs(x)[0]) < EXACT
    assert difference(ours.step(x[0])[0], theirs.step(x[0], None)[0]) < EXACT


def test_activation_ln_where_channels_come_first(parts: dict[str, ModuleType]) -> None:
    """Where they come last theirs normalises over the positions; that is TransposedLN(1, dim=-2), to be put in."""
    theirs = moved(parts["components"].Activation("ln"), 0)
    ours = activation_module("ln", dim=-2).double()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = torch.randn(B, 5, 7, dtype=torch.float64)
    assert difference(ours(x), theirs(x)) < EXACT


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("stride", "expand"), [(1, 1), (2, 1), (3, 2)])
@pytest.mark.parametrize("name", ["pool", "linear", "spectral"])
def test_pools(parts: dict[str, ModuleType], name: str, stride: int, expand: int, transposed: bool) -> None:
    """theirs `sample` raises; `spectral` transforms back twice, which is an option of ours."""
    legacy = {"legacy": True} if name == "spectral" else {}
    theirs = moved(parts["pool"].registry[name](4, stride, expand, transposed), 0)
    ours = pools.POOLS[name](4, stride, expand, transposed, **legacy).double()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = torch.randn(B, 12, 4, dtype=torch.float64)
    x = x.mT if transposed else x
    assert difference(ours(x)[0], theirs(x)) < EXACT
    function = parts["pool"].downsample(x, stride, expand, transposed)
    assert difference(pools.DownSample(4, stride, expand, transposed)(x)[0], function) < EXACT


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("weight_norm", [False, True])
@pytest.mark.parametrize("activation", [None, "gelu", "glu"])
def test_pools_between_scales(
    parts: dict[str, ModuleType], activation: Any, weight_norm: bool, transposed: bool
) -> None:
    arguments = {"transposed": transposed, "weight_norm": weight_norm, "activation": activation}
    theirs = moved(parts["pool"].DownPool(4, 6, stride=2, **arguments), 0)
    ours = pools.DownPool(4, 6, stride=2, **arguments).double()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = torch.randn(B, 12, 4, dtype=torch.float64)
    given = x.mT if transposed else x
    assert difference(ours(given)[0], theirs(given)[0]) < EXACT
    theirs_state, state = theirs.default_state(B), ours.default_state(B)
    for element in x.unbind(1):
        expected, theirs_state = theirs.step(element, theirs_state)
        y, state = ours.step(element, state)
        assert (y is None) == (expected is None)
        assert y is None or difference(y, expected) < EXACT
    theirs = moved(parts["pool"].UpPool(4, 6, 2, **arguments), 0)
    up = pools.UpPool(4, 6, 2, **arguments).double()
    up.load_state_dict(theirs.state_dict(), strict=True)
    skip = torch.randn_like(up(given)[0])
    assert difference(up(given, skip=skip)[0], theirs(given, skip)[0]) < EXACT


@pytest.mark.parametrize("method", ["mean", "last", None])
@pytest.mark.parametrize("horizon", [1, 4])
def test_series_normalisation(parts: dict[str, ModuleType], method: Any, horizon: int) -> None:
    theirs = parts["components"].TSNormalization(method, horizon)
    ours = series_norms.TSNormalization(method, horizon)
    x = 3 * torch.randn(B, 12, 4, dtype=torch.float64) + 1
    y = ours(x)
    assert difference(y, theirs(x)) < EXACT
    back = parts["components"].TSInverseNormalization(method, theirs)(y)
    assert difference(series_norms.TSInverseNormalization(method, ours)(y), back) < EXACT


@pytest.mark.parametrize("transposed", [False, True])
def test_reversible_instance_norm(parts: dict[str, ModuleType], transposed: bool) -> None:
    theirs = parts["components"].ReversibleInstanceNorm1dInput(4, transposed).double()
    ours = series_norms.ReversibleInstanceNorm1dInput(4, transposed)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = 3 * torch.randn(B, 12, 4, dtype=torch.float64) + 1
    x = x.mT if transposed else x
    assert difference(ours(x), theirs(x)) < EXACT
    z = torch.randn_like(x)
    back = parts["components"].ReversibleInstanceNorm1dOutput(theirs)(z)
    assert difference(series_norms.ReversibleInstanceNorm1dOutput(ours)(z), back) < EXACT
