"""Our S4 against ESPnet's: the same state dict must be the same function, in every way of running it.

ESPnet's nplr mode stores C (I - A^L), and the buffer L; L = 0 in a layer that never ran means C itself.
"""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sequence_kernels.layers.norms import TransposedLN
from sequence_kernels.layers.s4 import S4

B, LENGTH = 3, 37
#: Relative to the largest element; both sides in float64, so this is summation order alone.
EXACT = 1e-9
#: ESPnet's diag mode has this parameter and never reads it: no gradient, no effect. Ours may leave it out.
DEAD = "kernel.kernel.A"

MEASURES: dict[str, list[tuple[Any, int]]] = {  # name, rank
    "nplr": [
        *(
            (m, 1)
            for m in ("legs", "fourier", "fout", "fourier_diag", "foud", "legsd", "hippo", "diag-lin", "diag")
        ),
        *((m, 2) for m in ("legs", "legt", "hippo", "diag-inv")),
        (["legs", "legt"], 3),
    ],
    "diag": [
        *(
            (f"diag-{m}", 1)
            for m in ("lin", "linear", "inv", "inverse", "inv2", "quad", "real", "random", "legs")
        ),
        *((m, 1) for m in ("diag-hippo", "diag", "legs", "legsd", "fourier", "hippo")),
        ("legt", 2),
    ],
}


def draw(seed: int) -> dict[str, Any]:
    """Constructor arguments, the same for both, over all that works in ESPnet; docs/parity.md has what does not."""
    rng = random.Random(seed)
    mode = ("nplr", "diag")[seed % 2]
    d_model = rng.choice([4, 6, 8])
    measure, rank = rng.choice(MEASURES[mode])
    several = measure in ("hippo", "diag") or not isinstance(measure, str)
    n_ssm = rng.choice([None, 2, d_model] if several else [None, 1, 2, d_model])
    real_types = ["none", "exp", "relu", "softplus"]
    if measure != "diag-real":
        real_types.append("sigmoid")  # reaches 1 only, where diag-real starts
    config = {
        "d_model": d_model,
        "mode": mode,
        "measure": measure,
        "rank": rank,
        "n_ssm": n_ssm,
        "d_state": rng.choice([4, 6, 16, 64]),
        "channels": rng.choice([1, 1, 2, 3]),
        "bidirectional": rng.random() < 0.25,
        "activation": rng.choice(["gelu", "gelu", None, "relu", "tanh", "silu", "sigmoid", "ln"]),
        "postact": rng.choice(["glu", "glu", None, "gelu", "id"]),
        "transposed": rng.random() < 0.5,
        "real_type": rng.choice(real_types),
        "l_max": rng.choice([None, None, LENGTH + 20]),
    }
    config["dt_min"], config["dt_max"] = rng.choice([(0.001, 0.1), (0.01, 0.01), (0.1, 1.0)])
    if mode == "diag":
        config["disc"] = rng.choice(["bilinear", "zoh"])
    if rng.random() < 0.25:
        config["hyper_act"] = rng.choice(["tanh", "relu", "sigmoid", "id", "gelu"])
    if not config["transposed"]:  # where they crash
        config["gate"] = rng.choice([None, 1, 2])
        bottleneck = rng.choice([None, 2])
        if n_ssm in (None, 1) and not several:
            config["bottleneck"] = bottleneck
    damped = config["real_type"] != "relu"  # else theirs solves with a nearly singular I - A^L: 2e-9 of noise
    if damped and n_ssm in (None, 1, d_model) and rng.random() < 0.25:
        config |= {"bandlimit": rng.choice([0.02, 0.1, 0.5]), "l_max": LENGTH + 20}
    return config


def heads(config: dict[str, Any]) -> int:
    return config["d_model"] // (config.get("bottleneck") or 1)


def mixed(config: dict[str, Any]) -> bool:
    """Whether ESPnet's step crashes or leaves something out, while its forward does not."""
    return any(config.get(name) is not None for name in ("gate", "bottleneck", "hyper_act", "bandlimit"))


def for_ours(config: dict[str, Any]) -> dict[str, Any]:
    """ESPnet's nplr leaves the modes outside of the band out of what it stores, C (I - A^l_max)."""
    if config["mode"] == "nplr" and "bandlimit" in config:
        return config | {"bandlimit_length": config["l_max"]}
    return config


def streams(config: dict[str, Any]) -> bool:
    """Whether ESPnet can step this: it does not repeat shared diagonal systems, and is not causal if bidirectional."""
    shared = config["mode"] == "diag" and config["n_ssm"] not in (None, 1, config["d_model"])
    return not config["bidirectional"] and not shared


def seeds(fit: Callable[[dict[str, Any]], bool] = lambda config: True) -> list[Any]:
    thorough = [pytest.param(seed, marks=pytest.mark.thorough) for seed in range(40, 200) if fit(draw(seed))]
    return [seed for seed in range(40) if fit(draw(seed))] + thorough


def reference(
    espnet: ModuleType, config: dict[str, Any], seed: int = 0, dtype: torch.dtype = torch.float64
) -> Any:
    """ESPnet's layer with every parameter moved off its initial value."""
    torch.manual_seed(seed)
    layer = espnet.S4(**config).to(dtype).eval()
    for parameter in layer.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter) * (0.1 + parameter.abs())
    return layer


def same_in_ours(layer: nn.Module, config: dict[str, Any]) -> S4:
    ours = S4(**for_ours(config)).to(next(layer.parameters()).dtype).eval()
    ours.load_state_dict(layer.state_dict(), strict=True)
    for module in ours.modules():
        if isinstance(module, TransposedLN):
            module.eps = 0.0  # as in theirs, which gives NaN for a constant column
    return ours


def inputs(config: dict[str, Any], length: int = LENGTH, dtype: torch.dtype = torch.float64) -> Tensor:
    x = torch.randn(B, length, config["d_model"], dtype=dtype)
    return x.mT if config["transposed"] else x


def part(x: Tensor, config: dict[str, Any], start: int, stop: int) -> Tensor:
    return x[..., start:stop] if config["transposed"] else x[:, start:stop]


def difference(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape
    return float(((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-30)).detach())


@pytest.mark.parametrize("seed", seeds())
def test_forward(espnet: ModuleType, seed: int) -> None:
    config = draw(seed)
    theirs = reference(espnet, config, seed)
    ours = same_in_ours(theirs, config)
    for length in (LENGTH, 1, 2, 50):  # 50: C is replaced in theirs by the readout for a longer kernel
        x = inputs(config, length)
        expected, state = theirs(x)
        assert state is None
        assert difference(ours(x)[0], expected) < EXACT, config
        again = same_in_ours(theirs, config)
        assert difference(again(x)[0], expected) < EXACT, config


@pytest.mark.parametrize("seed", seeds())
def test_our_state_dict_in_theirs(espnet: ModuleType, seed: int) -> None:
    config = draw(seed)
    torch.manual_seed(seed)
    ours = S4(**for_ours(config)).double().eval()
    theirs = espnet.S4(**config).double().eval()
    missing, unexpected = theirs.load_state_dict(ours.state_dict(), strict=False)
    assert set(missing) <= {DEAD}
    assert unexpected == []
    x = inputs(config)
    assert difference(ours(x)[0], theirs(x)[0]) < EXACT, config


@pytest.mark.parametrize("seed", seeds())
def test_float32(espnet: ModuleType, seed: int) -> None:
    """Ours in float32 is as near to theirs in float64 as the inputs' rounding allows, or as theirs in float32 is."""
    config = draw(seed)
    theirs = reference(espnet, config, seed, torch.float32)
    exact = copy.deepcopy(theirs).double()
    ours = same_in_ours(theirs, config)
    x = inputs(config, dtype=torch.float32)
    expected = exact(x.double())[0]
    error = difference(ours(x)[0].double(), expected)
    assert error < max(2e-6, difference(theirs(x)[0].double(), expected)), config


@pytest.mark.parametrize(
    "config", [{"measure": m, "mode": d} for m, d in [("legs", "nplr"), ("diag-lin", "diag")]]
)
def test_defaults_at_length(espnet: ModuleType, config: dict[str, Any]) -> None:
    """64 states, 1000 elements, initial values: where float32 has cost ESPnet's nplr kernel three digits."""
    config = {"d_model": 8} | config
    torch.manual_seed(0)
    theirs = espnet.S4(**config).eval()
    exact, ours = copy.deepcopy(theirs).double(), same_in_ours(theirs, config)
    x = torch.randn(2, 8, 1000)
    expected = exact(x.double())[0]
    assert difference(same_in_ours(exact, config)(x.double())[0], expected) < EXACT
    assert difference(ours(x)[0].double(), expected) < 2e-6
    split, state = [], ours.default_state(2)
    for piece in x.split(300, dim=-1):
        y, state = ours(piece, state)
        split.append(y)
    assert difference(torch.cat(split, -1).double(), expected) < 2e-6


def truncated_readout(layer: Any, c: Tensor, length: int) -> Tensor:
    """C (I - A^length) of an nplr layer of theirs from C (C, H, n, 2), by dense matrices over all N states."""
    kernel = layer.kernel.kernel
    c = torch.view_as_complex(c)
    dt = kernel.log_dt.exp()[:, None, None] / 2
    w, p = kernel._w(), torch.view_as_complex(kernel.P)
    w, p = w.repeat(len(dt) // w.shape[0], 1), p.repeat(1, len(dt) // p.shape[1], 1)
    w, p, c = (torch.cat([x, x.conj()], dim=-1) for x in (w, p, c))
    a = torch.diag_embed(w) - torch.einsum("rhm,rhn->hmn", p, p.conj())
    eye = torch.eye(w.shape[-1], dtype=w.dtype)
    step = torch.linalg.solve(eye - dt * a, eye + dt * a)
    kept = torch.einsum("chm,hmn->chn", c, eye - torch.linalg.matrix_power(step, length))
    return torch.view_as_real(kept[..., : w.shape[-1] // 2])


@pytest.mark.parametrize("seed", seeds())
def test_gradients(espnet: ModuleType, seed: int) -> None:
    """Of the input and of every parameter.

    Theirs in nplr mode holds C (I - A^L) fixed and differentiates by it, ours C: the chain rule joins them. Every
    mode decays, since theirs loses digits where 1 - A^L or exp(dt A) - 1 are near 0 (1e-6 of w_imag's, measured).
    """
    config = draw(seed)
    theirs = reference(espnet, config, seed)
    real = theirs.get_parameter(
        "kernel.kernel." + ("inv_w_real" if config["mode"] == "nplr" else "inv_A_real")
    )
    real.data = 0.5 + torch.rand_like(real)
    ours = same_in_ours(theirs, config)
    x = inputs(config)
    c = theirs.kernel.kernel.C.detach().clone().requires_grad_()
    weight = torch.randn_like(ours(x)[0])
    gradients = []
    for layer in (ours, theirs):
        leaf = x.clone().requires_grad_()
        (layer(leaf)[0] * weight).sum().backward()
        gradients.append({"x": leaf.grad} | {name: p.grad for name, p in layer.named_parameters()})
    mine, expected = gradients
    if config["mode"] == "nplr":
        readout = truncated_readout(theirs, c, int(theirs.kernel.kernel.L))
        torch.testing.assert_close(readout, theirs.kernel.kernel.C, rtol=0, atol=1e-9)
        readout.backward(expected["kernel.kernel.C"].clone())  # adds to the gradients of the others
        expected["kernel.kernel.C"] = c.grad
    expected.pop(DEAD, None)
    assert mine.keys() - {DEAD} == expected.keys()
    for name, gradient in expected.items():
        assert difference(mine[name], gradient) < EXACT, (name, config)


@pytest.mark.parametrize("seed", seeds(streams))
def test_chunks_and_steps(espnet: ModuleType, seed: int) -> None:
    config = draw(seed)
    theirs = reference(espnet, config, seed)
    theirs(inputs(config))
    ours = same_in_ours(theirs, config)
    x = inputs(config)
    size = (B, heads(config), config["d_state"] // 2)
    state = torch.randn(size, dtype=torch.complex128)
    theirs_state, ours_state = state, state
    with torch.no_grad():
        for start, stop in ((0, 1), (1, 20), (20, LENGTH)):
            expected, theirs_state = theirs(part(x, config, start, stop), state=theirs_state)
            y, ours_state = ours(part(x, config, start, stop), state=ours_state)
            assert difference(y, expected) < EXACT, config
            assert difference(ours_state, theirs_state) < EXACT, config
        if mixed(config):
            return
        for module in theirs.modules():
            if hasattr(module, "setup_step"):
                module.setup_step()
        theirs_state, ours_state = theirs.default_state(B), ours.default_state(B)
        for t in range(LENGTH):
            u = part(x, config, t, t + 1).reshape(B, -1)
            expected, theirs_state = theirs.step(u, theirs_state)
            y, ours_state = ours.step(u, ours_state)
            assert difference(y, expected) < EXACT, config


@pytest.mark.parametrize("seed", seeds())
def test_lengths(espnet: ModuleType, seed: int) -> None:
    config = draw(seed)
    theirs = reference(espnet, config, seed)
    ours = same_in_ours(theirs, config)
    x = inputs(config)
    for lengths in (torch.tensor([LENGTH, 5, 20]), torch.tensor([9]), torch.tensor(30), 7):
        expected, y = theirs(x, lengths=lengths)[0], ours(x, lengths=lengths)[0]
        for row, length in enumerate(torch.as_tensor(lengths).expand(B).tolist()):
            one = slice(row, row + 1)
            if config["bidirectional"] and config.get(
                "bottleneck"
            ):  # theirs lets the padding through input_linear
                valid = theirs(part(x[one], config, 0, length))[0]
            else:
                valid = part(expected[one], config, 0, length)
            assert difference(part(y[one], config, 0, length), valid) < EXACT, config


@pytest.mark.parametrize("rate", [0.5, 1.5, 2.0])
@pytest.mark.parametrize("seed", seeds())
def test_rate(espnet: ModuleType, seed: int, rate: float) -> None:
    """A rate is a factor of the time step.

    Theirs in nplr mode is that only nearly (1e-3 to 2e-2 off): its stored C is the one for rate 1. So theirs is given
    the longer time step itself.
    """
    config = {k: v for k, v in draw(seed).items() if k != "bandlimit"} | {"l_max": None}
    theirs = reference(espnet, config, seed)
    ours = same_in_ours(theirs, config)
    x = inputs(config)
    if config["mode"] == "nplr":
        theirs.kernel.kernel.log_dt.data += math.log(rate)
        expected = theirs(x)[0]
    else:
        expected = theirs(x, rate=rate)[0]
    assert difference(ours(x, rate=rate)[0], expected) < EXACT, config


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("real_type", ["exp", "none", "relu"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_dss(espnet: ModuleType, channels: int, real_type: str, bidirectional: bool) -> None:
    """DSS normalises over a length, in theirs that of the call, in ours l_max, or that of the call without one.

    Theirs works in float32 in part, whatever the parameters; it can neither be stepped nor given a state.
    """
    config = {
        "d_model": 6,
        "d_state": 16,
        "mode": "diag",
        "measure": "diag-lin",
        "disc": "dss",
        "channels": channels,
        "real_type": real_type,
        "bidirectional": bidirectional,
        "transposed": True,
        "l_max": LENGTH,
    }
    theirs = reference(espnet, config)
    if real_type == "none":  # growing modes too
        theirs.kernel.kernel.inv_A_real.data *= torch.randn_like(theirs.kernel.kernel.inv_A_real).sign()
    ours = same_in_ours(theirs, config)
    x = inputs(config)
    assert difference(ours(x)[0], theirs(x)[0]) < 1e-6
    ours, short = same_in_ours(theirs, config | {"l_max": None}), x[..., :20]
    assert difference(ours(short)[0], theirs(short)[0]) < 1e-6
    assert difference(ours(x)[0], theirs(x)[0]) < 1e-6


def kinds(layer: nn.Module) -> dict[str, Any]:
    """The optimizer options of each parameter, and the names of the buffers."""
    found: dict[str, Any] = {name: getattr(p, "_optim", None) for name, p in layer.named_parameters()}
    found |= {name: "buffer" for name in layer.state_dict() if name not in found}
    return {name: kind for name, kind in found.items() if name != DEAD}


@pytest.mark.parametrize("mode", ["nplr", "diag"])
@pytest.mark.parametrize(
    "lr", [None, 0.001, 0.0, {"dt": 0.01, "A": 0.0}, {"B": 0.02, "A": 0.03}, {"dt": 0.0}]
)
def test_learning_rates(espnet: ModuleType, mode: str, lr: Any) -> None:
    """The same names are parameters, the same are buffers, with the same optimizer options."""
    config = {"d_model": 4, "d_state": 8, "mode": mode, "measure": "legs", "lr": lr}
    expected, mine = kinds(espnet.S4(**config)), kinds(S4(**config))
    assert mine == expected


@pytest.mark.parametrize("seed", seeds())
def test_initial_values(espnet: ModuleType, seed: int) -> None:
    """Everything not drawn at random is equal, b and P up to a phase for each mode, and moments of the rest agree."""
    config = draw(seed) | {"d_model": 256, "n_ssm": 2, "bottleneck": None}
    torch.manual_seed(seed)
    theirs, ours = espnet.S4(**config).state_dict(), S4(**config).state_dict()
    random_poles = config["measure"] == "diag-random"
    constant_mode_lost = config["measure"] in ("fourier_diag", "foud")  # in theirs: b = 0 there
    assert ours.keys() - {DEAD} == theirs.keys() - {DEAD}
    for name in ours.keys() - {DEAD}:
        value, expected = ours[name], theirs[name]
        assert value.shape == expected.shape, name
        assert value.dtype == expected.dtype, name
        last = name.rpartition(".")[2]
        if last.startswith("inv_") or (last.endswith("_imag") and not random_poles):
            torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-5)
        elif last in ("B", "P"):
            mine, known = torch.view_as_complex(value).abs(), torch.view_as_complex(expected).abs()
            if constant_mode_lost:
                mine, known = mine[..., :-1], known[..., :-1]
            torch.testing.assert_close(mine, known, rtol=1e-4, atol=1e-5)
        elif last == "C" and not constant_mode_lost:
            spread = torch.view_as_complex(value).abs().square().mean((0, 1))
            known = torch.view_as_complex(expected).abs().square().mean((0, 1))
            assert ((spread / known).log().abs() < math.log(2.5)).all(), name
        elif last == "log_dt":
            low, high = math.log(config["dt_min"]), math.log(config["dt_max"])
            assert (value >= low - 1e-6).all()
            assert (value <= high + 1e-6).all()
            assert abs(value.mean() - (low + high) / 2) <= 0.1 * (high - low) + 1e-6
        elif last in ("weight", "bias", "D"):
            assert abs(value.std() - expected.std()) <= 0.3 * expected.std() + 1e-6, name
