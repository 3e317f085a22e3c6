"""The law that every SequenceModule of the library obeys, on every class that it exports."""

from __future__ import annotations

import copy
import functools
import importlib
import inspect
import pickle
import pkgutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import sequence_kernels
from sequence_kernels import (
    DSS,
    GRU,
    LRU,
    LSTM,
    S4,
    S4D,
    S5,
    S6,
    CausalConv,
    Mamba,
    Mamba2,
    SequenceDecoder,
    SequenceModel,
    SequenceModule,
    SequenceResidualBlock,
)
from sequence_kernels.layers.attention import MultiHeadedAttention
from sequence_kernels.layers.pools import (
    DownAvgPool,
    DownLinearPool,
    DownPool,
    DownSample,
    DownSpectralPool,
    Pool,
    Unpool,
    UpPool,
    UpSample,
)

WIDTH = 6
Factory = Callable[..., SequenceModule]


def exported_modules() -> list[type[SequenceModule]]:
    """Every public SequenceModule class in every module of the package."""
    found: dict[str, type[SequenceModule]] = {}
    for info in pkgutil.walk_packages(sequence_kernels.__path__, "sequence_kernels."):
        if info.name.endswith((".triton", "_native_cpu", "_native_cuda", "__main__")):
            continue
        for name, member in vars(importlib.import_module(info.name)).items():
            if inspect.isclass(member) and issubclass(member, SequenceModule) and not name.startswith("_"):
                found[member.__qualname__] = member
    for base in (SequenceModule, Pool, Unpool):
        found.pop(base.__qualname__)
    return list(found.values())


#: Further configurations to test; a class that is not here is built from its width alone.
VARIANTS: dict[type[SequenceModule], dict[str, dict[str, Any]]] = {
    S4: {
        "default": {"d_state": 8},
        "legt-rank2-channels": {"d_state": 8, "measure": "legt", "rank": 2, "channels": 2},
        "fout-shared": {"d_state": 4, "measure": "fout", "n_ssm": 2, "rank": 1},
        "diag": {"d_state": 8, "mode": "diag", "measure": "diag-inv", "disc": "bilinear", "n_ssm": 3},
        "smallest-state": {"d_state": 2, "postact": None, "activation": None},
        "bidirectional": {"d_state": 8, "bidirectional": True, "channels": 2},
        "gate": {"d_state": 4, "gate": 2},
        "bottleneck": {"d_state": 4, "bottleneck": 3, "activation": "modrelu"},
        "hyper": {"d_state": 4, "hyper_act": "tanh", "channels": 2},
        "everything": {
            "d_state": 4,
            "hyper_act": "ln",
            "gate": 1,
            "bottleneck": 2,
            "bandlimit": 0.2,
            "postact": None,
        },
        "bandlimit": {"d_state": 8, "bandlimit": 0.1, "bandlimit_length": 20},
        "bandlimit-diag": {"d_state": 8, "mode": "diag", "measure": "diag-lin", "bandlimit": 0.1, "gate": 1},
    },
    S4D: {
        "default": {"d_state": 8},
        "real": {"d_state": 8, "measure": "diag-real", "real_type": "softplus"},
        "dss": {"d_state": 8, "disc": "dss", "l_max": 200},
        "dss-of-each-call": {"d_state": 8, "disc": "dss"},
        "channels": {"d_state": 8, "channels": 3, "n_ssm": 2},
        "bidirectional": {"d_state": 8, "bidirectional": True},
    },
    SequenceModel: {
        "stack": {
            "n_layers": 2,
            "layer": [{"_name_": "s4d", "d_state": 4}, "ff"],
            "residual": "R",
            "norm": "layer",
        },
        "s4-postnorm": {
            "n_layers": 2,
            "layer": {"_name_": "s4", "d_state": 4},
            "prenorm": False,
            "residual": "F",
            "norm": "batch",
        },
        "bidirectional": {"layer": {"_name_": "s4d", "d_state": 4, "bidirectional": True}},
        "attention": {
            "layer": [{"_name_": "s4d", "d_state": 4}, {"_name_": "mha", "n_head": 2}, "ff"],
            "residual": "R",
            "norm": "layer",
        },
        "pools": {
            "n_layers": 2,
            "layer": {"_name_": "s4d", "d_state": 4},
            "residual": "R",
            "norm": "layer",
            "pool": {"_name_": "linear", "stride": 2, "expand": 2},
        },
    },
    DSS: {
        "exp": {"d_state": 4},
        "softmax": {"d_state": 4, "version": "softmax", "l_max": 64, "postact": None},
    },
    S5: {
        "default": {"d_state": 8, "activation": "silu"},
        "euler-real-narrow": {
            "d_state": 8,
            "disc": "euler",
            "real": True,
            "d_output": 4,
            "skip": "full",
            "output_linear": False,
        },
    },
    LRU: {"default": {"d_state": 5, "r_min": 0.5}},
    S6: {"default": {"d_state": 3}},
    Mamba: {
        "default": {"d_state": 3},
        "every-option": {"d_conv": 2, "expand": 1.5, "bias": True, "inner_norm": "learned"},
    },
    Mamba2: {
        "default": {"d_state": 3, "headdim": 4},
        "every-option": {
            "d_state": 3,
            "headdim": 2,
            "d_ssm": 8,
            "ngroups": 2,
            "D_has_hdim": True,
            "norm_before_gate": True,
            "dt_limit": (0.005, 0.05),
            "bias": True,
        },
        "no-norm": {"d_state": 3, "headdim": 4, "rmsnorm": False},
        "groups": {"d_state": 2, "headdim": 3, "ngroups": 2, "norm_groups": 1, "D_has_hdim": True},
    },
    GRU: {"default": {}},
    LSTM: {"deep": {"n_layers": 2, "d_hidden": 4}},
    CausalConv: {"one": {"kernel_size": 1}, "long": {"kernel_size": 60, "activation": "silu"}},
    SequenceDecoder: {
        "last": {"d_output": 4},
        "pool": {"d_output": 4, "mode": "pool"},
        "sum": {"mode": "sum"},
    },
    SequenceResidualBlock: {
        "default": {"layer": {"_name_": "s4d", "d_state": 4}, "residual": "R", "norm": "layer"},
        "pool": {"layer": {"_name_": "s4d", "d_state": 4}, "residual": "R", "pool": "pool"},
        "sampled": {"layer": "ff", "prenorm": False, "pool": {"_name_": "sample", "stride": 3, "expand": 2}},
    },
    MultiHeadedAttention: {"default": {"n_head": 2}, "whole-sequence": {"n_head": 3, "causal": False}},
    DownSample: {"default": {}, "stride": {"stride": 3, "expand": 2}},
    DownAvgPool: {"default": {}, "stride": {"stride": 3, "expand": 2}},
    DownLinearPool: {"default": {}, "stride": {"stride": 2, "expand": 2}},
    DownSpectralPool: {"default": {}, "legacy": {"stride": 1, "expand": 2, "legacy": True}},
    DownPool: {
        "default": {"expand": 2, "stride": 3},
        "glu": {"d_output": 4, "stride": 2, "weight_norm": False, "activation": "glu"},
    },
    UpPool: {
        "default": {"d_output": 4, "stride": 3},
        "gelu": {"d_output": 5, "stride": 2, "activation": "gelu"},
    },
    UpSample: {"default": {}, "stride": {"stride": 3, "expand": 2}},
}


@functools.cache
def examples() -> list[tuple[str, Callable[..., SequenceModule], SequenceModule]]:
    """Of each variant a name, what makes it, and one to look at: all that cases() asks about."""
    found: list[tuple[str, Callable[..., SequenceModule], SequenceModule]] = []
    for cls in exported_modules():
        for name, arguments in VARIANTS.get(cls, {"default": {}}).items():

            def make(cls: type = cls, arguments: dict[str, Any] = arguments, **extra: Any) -> SequenceModule:
                torch.manual_seed(0)
                return cls(WIDTH, **arguments, **extra).eval()

            found.append((f"{cls.__name__}-{name}", make, make()))
    return found


def cases(want: Callable[[SequenceModule], bool] = lambda module: True) -> list[Any]:
    return [pytest.param(make, id=name) for name, make, example in examples() if want(example)]


def keeps_length(module: SequenceModule) -> bool:
    """Whether every element gives one output."""
    return all(part.stride == 1 for part in module.modules() if isinstance(part, (Pool, Unpool)))


def grows(module: SequenceModule) -> bool:
    """Whether its state is a cache, of all that it has seen."""
    return any(isinstance(part, MultiHeadedAttention) for part in module.modules())


causal_cases = pytest.mark.parametrize("make", cases(lambda module: module.causal))
all_cases = pytest.mark.parametrize("make", cases())


def layout_of(module: SequenceModule) -> bool:
    """Whether forward takes (batch, width, length). A backbone and the identity have one layout outside."""
    if isinstance(module, (SequenceModel, sequence_kernels.SequenceIdentity)):
        return False
    return bool(getattr(module, "transposed", False))


def forward(module: SequenceModule, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
    """Forward on (batch, length, width) whatever the layout of the module."""
    y, state = module(x.mT if layout_of(module) else x, state)
    return (y.mT if layout_of(module) else y), state


def steps(module: SequenceModule, x: Tensor, state: Any) -> tuple[Tensor, Any]:
    """All that step gives for (batch, length, width): not every element gives an output, and some give several."""
    outputs = []
    for element in x.unbind(1):
        given: list[Tensor | None] = [element]
        if isinstance(module, UpPool):
            given = [None] * (module.stride - 1) + given
        elif isinstance(module, UpSample):
            given = given + [None] * (module.stride - 1)
        for one in given:
            y, state = module.step(one, state)  # type: ignore[arg-type]
            if y is not None:
                outputs.append(y)
    width = module.d_output
    return (torch.stack(outputs, 1) if outputs else x.new_empty(len(x), 0, width)), state


def tensors(state: Any) -> list[Tensor]:
    """All tensors of a state, whatever its structure."""
    if isinstance(state, Tensor):
        return [state]
    if isinstance(state, (list, tuple)):
        return [t for entry in state for t in tensors(entry)]
    if isinstance(state, dict):
        return [t for entry in state.values() for t in tensors(entry)]
    return []


def close(a: Any, b: Any, tolerance: float) -> None:
    """Largest difference over largest value, of tensors or of states."""
    pairs = list(zip(tensors(a), tensors(b), strict=True))
    for left, right in pairs:
        assert left.shape == right.shape
        if right.dtype == torch.bool:
            assert torch.equal(left, right)
            continue
        scale = max(float(right.detach().abs().max()), 1e-30) if right.numel() else 1.0
        assert float((left - right).detach().abs().max()) <= tolerance * scale if right.numel() else True


def test_every_exported_class_is_found() -> None:
    names = {cls.__name__ for cls in exported_modules()}
    assert {"S4", "S4D", "FeedForward", "SequenceIdentity", "SequenceModel", "SequenceResidualBlock"} <= names
    exported = {n for n in sequence_kernels.__all__ if inspect.isclass(getattr(sequence_kernels, n))}
    missing = {
        n
        for n in exported
        if issubclass(getattr(sequence_kernels, n), SequenceModule) and n != "SequenceModule"
    } - names
    assert not missing


@causal_cases
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
@pytest.mark.parametrize("length", [1, 45, 101])
def test_forward_equals_splits_and_steps(
    make: Factory, dtype: torch.dtype, tolerance: float, length: int
) -> None:
    module = make().to(dtype)
    torch.manual_seed(1)
    x = torch.randn(2, length, WIDTH, dtype=dtype)
    whole, last = forward(module, x, module.default_state(2))
    stateless, none = forward(module, x)
    assert none is None
    close(stateless, whole, tolerance)

    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        cuts = sorted(torch.randint(0, length + 1, (3,), generator=generator).tolist())
        state, pieces = module.default_state(2), []
        for start, stop in zip([0, *cuts], [*cuts, length], strict=True):
            piece, state = forward(module, x[:, start:stop], state)
            pieces.append(piece)
        close(torch.cat(pieces, 1), whole, tolerance)
        close(state, last, tolerance)

    outputs, state = steps(module, x, module.default_state(2))
    close(outputs, whole, tolerance)
    close(state, last, tolerance)

    first, state = forward(module, x[:, : length // 2], module.default_state(2))
    second, state = steps(module, x[:, length // 2 :], state)
    close(torch.cat((first, second), 1), whole, tolerance)


@all_cases
def test_layouts_and_widths(make: Factory) -> None:
    module = make()
    x = torch.randn(2, 36, WIDTH)
    y, _ = forward(module, x)
    assert (module.d_model, module.d_output) == (WIDTH, y.shape[-1])
    if module.causal:
        assert y.shape == steps(module, x, module.default_state(2))[0].shape
    else:
        assert y.shape == (2, 36, module.d_output)
    if "transposed" in inspect.signature(type(module)).parameters:
        for transposed in (False, True):
            turned = make(transposed=transposed)
            if {k: v.shape for k, v in turned.state_dict().items()} == {
                k: v.shape for k, v in module.state_dict().items()
            }:
                turned.load_state_dict(module.state_dict())
                close(forward(turned, x)[0], y, 1e-5)
            else:  # a layout may normalise differently, and then has other parameters
                assert forward(turned, x)[0].shape == y.shape


@causal_cases
def test_gradients_flow_through_the_carried_state(make: Factory) -> None:
    module = make().double()
    x = torch.randn(2, 40, WIDTH, dtype=torch.float64)
    weight = torch.randn_like(forward(module, x)[0])

    def gradients(cuts: list[int]) -> list[Tensor]:
        leaf = x.clone().requires_grad_()
        state, pieces = module.default_state(2), []
        for start, stop in zip([0, *cuts], [*cuts, 40], strict=True):
            piece, state = forward(module, leaf[:, start:stop], state)
            pieces.append(piece)
        loss = (torch.cat(pieces, 1) * weight).sum()
        parameters = [p for p in module.parameters() if p.requires_grad]
        return list(torch.autograd.grad(loss, [leaf, *parameters]))

    for split, whole in zip(gradients([7, 20]), gradients([]), strict=True):
        scale = max(
            float(whole.abs().max()), 1e-6
        )  # a bias of attention's keys has no effect, and no gradient
        assert float((split - whole).abs().max()) <= 1e-9 * scale


@causal_cases
@pytest.mark.parametrize("batch_shape", [(), (3,), (2, 3)])
def test_default_state(make: Factory, batch_shape: tuple[int, ...]) -> None:
    module = make()
    state = module.default_state(*batch_shape, device="cpu")
    x = None if isinstance(module, UpPool) else torch.randn(*batch_shape, WIDTH)
    y, next_state = module.step(x, state)  # type: ignore[arg-type]
    assert y is None or y.shape == (*batch_shape, module.d_output)
    for before, after in zip(tensors(state), tensors(next_state), strict=True):
        if module.d_state is not None and before.numel() > 0:  # else it may grow
            assert before.shape == after.shape
        assert before.shape[: len(batch_shape)] == after.shape[: len(batch_shape)] == batch_shape
    flat = module.state_to_tensor(next_state)
    if module.d_state is None:
        assert flat is None
    else:
        assert flat is not None
        assert flat.shape == (*batch_shape, module.d_state)
        assert not flat.is_complex()
    for tensor in tensors(module.default_state(2, device="meta")):
        assert tensor.device.type == "meta"


@all_cases
def test_state_dict_round_trip_deepcopy_and_pickle(make: Factory) -> None:
    module = make()
    x = torch.randn(2, 20, WIDTH)
    expected = forward(module, x)[0]
    fresh = make()
    with torch.no_grad():
        for parameter in fresh.parameters():
            parameter.add_(1.0)
    fresh.load_state_dict(module.state_dict(), strict=True)
    for clone in (fresh, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert type(clone) is type(module)
        close(forward(clone, x)[0], expected, 1e-6)
        assert [getattr(p, "_optim", None) for p in clone.parameters()] == [
            getattr(p, "_optim", None) for p in module.parameters()
        ]


@pytest.mark.parametrize("make", cases(lambda module: not module.causal))
def test_modules_that_are_not_causal_say_so(make: Factory) -> None:
    module = make()
    with pytest.raises(ValueError, match=r"causal|whole sequence|bidirectional"):
        module.step(torch.randn(2, WIDTH))
    state = torch.zeros(2, WIDTH, 4, dtype=torch.complex64)
    with pytest.raises(ValueError, match=r"causal|whole sequence|bidirectional"):
        forward(module, torch.randn(2, 5, WIDTH), [state] if isinstance(module, SequenceModel) else state)


def test_the_law_can_fail() -> None:
    """A module whose step forgets its state does not pass for one that obeys the law."""

    class Forgetful(S4D):
        def step(self, x: Tensor, state: Any = None, **kwargs: Any) -> tuple[Tensor, Any]:
            return super().step(x, self.default_state(*x.shape[:-1]), **kwargs)

    with pytest.raises(AssertionError):
        test_forward_equals_splits_and_steps(
            lambda: Forgetful(WIDTH, d_state=8).eval(), torch.float64, 1e-9, 45
        )
