"""S4 layers of ESPnet and of ``state-spaces/s4``, and Hugging Face's Mamba mixers, replaced in a live model by ours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import nn

from ..layers import S4
from ..layers.components import dropout_module
from ..module import SequenceModule
from . import hugging_face, names
from .checkpoints import export_espnet, export_s4, s4_arguments

_ACTIVATIONS: dict[type[nn.Module], str | None] = {
    nn.Identity: None,
    nn.GELU: "gelu",
    nn.GLU: "glu",
    nn.ReLU: "relu",
    nn.Sigmoid: "sigmoid",
    nn.SiLU: "silu",
    nn.Softplus: "softplus",
    nn.Tanh: "tanh",
}


@dataclass
class Acceleration:
    """What ``accelerate`` did to a model.

    Attributes:
        replaced: the class of each layer that is ours now, by its name in the model.
        skipped: why each other one was left alone.
        new_parameters: names of parameters that are new objects, which an optimizer made before does not know. All
            others are the same objects as before.
    """

    model: nn.Module
    replaced: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    new_parameters: list[str] = field(default_factory=list)
    _originals: dict[str, tuple[nn.Module, _Kind]] = field(default_factory=dict)

    def revert(self) -> None:
        """Put the replaced layers back, with the values that their parameters have by now."""
        for name, (original, kind) in self._originals.items():
            ours = self.model.get_submodule(name)
            if kind.state_back is not None:
                _load(original, ours, kind.state_back(ours))
            original.train(ours.training)
            _set(self.model, name, original)
        self._originals.clear()
        self.replaced.clear()
        self.new_parameters.clear()

    def __str__(self) -> str:
        lines = [f"replaced {name} ({cls})" for name, cls in self.replaced.items()]
        lines += [f"left {name}: {reason}" for name, reason in self.skipped.items()]
        return "\n".join(lines) or "found no S4 layer and no Mamba mixer"


def accelerate(model: nn.Module) -> Acceleration:
    """Replace the S4 layers of ESPnet (and s4 v3), S4Block and S4D of s4 v4, and Hugging Face's Mamba mixers, by ours:
    the same function.

    Layers are recognised by what they are made of, so that copies of those files under other names are found too.
    Values, device, dtype and training mode are kept. The parameters of ESPnet's layers stay the same objects, so that
    an optimizer goes on with them; those of s4's layers are new, since some change their sign or shape. A step of ours
    needs no ``setup_step``, and its state is complex and of half the size.

    Hugging Face's Mamba mixers keep all their parts, names and parameters, and run on our ops. A mixer is replaced only
    if on a trial input both compute the same. What theirs get wrong is right then: docs/parity.md.

    ESPnet's nplr layers then compute the function of their own ``step``. Without its CUDA extension its ``forward``
    computes another one, in which one half of each conjugate pair is missing.

    Returns:
        What was replaced, and what was not and why; its ``revert()`` undoes it.

    Raises ValueError when ``model`` is itself such a layer: nothing can be put in its place.
    """
    if _kind(model) is not None:
        raise ValueError(
            "model is itself such a layer, and cannot be replaced in place: see load_espnet, load_s4, load_mamba"
        )
    done = Acceleration(model)
    made: dict[nn.Module, nn.Module] = {}  # a layer in several places stays one
    for name, module in list(model.named_modules(remove_duplicate=False)):
        kind = _kind(module)
        if kind is None:
            continue
        try:
            ours = made[module] if module in made else kind.converted(module).train(module.training)
        except (AttributeError, NotImplementedError, TypeError, ValueError) as error:
            done.skipped[name] = str(error)
            continue
        if module not in made:
            known = {id(parameter) for parameter in module.parameters()}
            done.new_parameters += [
                f"{name}.{own}" for own, p in ours.named_parameters() if id(p) not in known
            ]
        made[module] = ours
        done.replaced[name] = type(module).__name__
        done._originals[name] = module, kind
        _set(model, name, ours)
    return done


def _load(original: nn.Module, ours: nn.Module, values: names.StateDict) -> None:
    for value in (*original.parameters(), *original.buffers()):
        if value.is_floating_point():
            value.data = value.data.to(next(ours.parameters()))
    own = original.state_dict()
    original.load_state_dict({key: values[key].reshape(own[key].shape) for key in own})


def _set(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    model.get_submodule(parent)._modules[last] = module


class _Kind(NamedTuple):
    """How a kind of layer is recognised, becomes ours, and gets its values back."""

    recognised: Callable[[Any], bool]
    converted: Callable[[Any], nn.Module]
    state_back: Callable[[nn.Module], names.StateDict] | None  # None: both hold the same parameters


def _kind(module: Any) -> _Kind | None:
    if isinstance(module, SequenceModule):
        return None
    return next((kind for kind in _KINDS if kind.recognised(module)), None)


def _has(module: Any, path: str) -> bool:
    for name in path.split("."):
        module = getattr(module, name, None)
    return module is not None


def _plain(module: Any, *wanted: str) -> None:
    """Raise ValueError unless each named part is absent, None, 0 or an identity."""
    for name in wanted:
        value = getattr(module, name, None)
        if value and not isinstance(value, nn.Identity):
            raise ValueError(f"{name}={value} has no counterpart here")


def _espnet(module: Any) -> S4:
    """Everything outside the kernel is theirs, and so are the parameters, C made the readout itself."""
    inner = module.kernel.kernel
    nplr = hasattr(inner, "P")
    if isinstance(module.activation, nn.GLU):
        raise ValueError("activation='glu' halves the length of the sequence there")
    if nplr:
        _plain(inner, "bandlimit")
        options = {"rank": inner.P.shape[0]}
    else:
        options = {"disc": inner.disc, "bandlimit": inner.bandlimit, "measure": "diag-lin"}
    groups = {"dt": inner.log_dt, "B": inner.B, "A": inner.w_imag if nplr else inner.A_imag}
    ours = S4(
        module.d_model,
        2 * inner.C.shape[-2],
        module.L,
        module.channels,
        module.bidirectional,
        activation=None,
        postact=None,
        hyper_act="id" if module.hyper else None,
        bottleneck=module.bottleneck,
        gate=module.gate,
        transposed=module.transposed,
        mode="nplr" if nplr else "diag",
        n_ssm=inner.n_ssm,
        real_type=inner.real_type,
        lr={name: _rate(p) for name, p in groups.items()},
        **options,
    )
    kernel = ours.kernel.kernel.to(inner.C.device, inner.C.dtype)
    kernel.load_state_dict(inner.state_dict())
    for name, value in list(kernel.named_parameters()):
        parameter = getattr(inner, name)
        parameter.data = value.data
        setattr(kernel, name, parameter)
    ours.D = module.D
    for name in (
        "activation",
        "dropout",
        "output_linear",
        "input_linear",
        "input_gate",
        "output_gate",
        "hyper_activation",
    ):
        if _has(module, name):
            setattr(ours, name, getattr(module, name))
    return ours


def _rate(parameter: torch.Tensor) -> float | None:
    """The learning rate that a parameter asks for; 0 for what is none."""
    if not isinstance(parameter, nn.Parameter):
        return 0.0
    return getattr(parameter, "_optim", {}).get("lr")


def _v4(module: Any) -> S4:
    conv, kernel = module.layer, module.layer.kernel
    _plain(module, "gate", "bottleneck", "mult_activation")
    _plain(conv, "drop_kernel")
    if conv.swap_channels and conv.channels > 1:
        raise ValueError("swap_channels=True has no counterpart here")
    for name, usual in (("dt_transform", "exp"), ("imag_transform", "none")):
        if getattr(kernel, name, usual) != usual:
            raise ValueError(f"{name}={getattr(kernel, name)!r} is not kept: use load_s4")
    options = {
        "l_max": conv.l_max,
        "activation": _activation(conv.activation),
        "transposed": module.transposed,
        "real_type": getattr(kernel, "real_transform", "exp"),
    }
    if hasattr(kernel, "P"):
        _plain(kernel, "bandlimit")
    else:
        options |= {"disc": kernel.disc, "bandlimit": kernel.bandlimit}
    if isinstance(module.output_linear, nn.Sequential) and len(module.output_linear) > 1:
        options["postact"] = _activation(module.output_linear[1]) or "id"
    ours = _loaded(names.from_s4(module.state_dict(), real_transform=options["real_type"]), options)
    if not isinstance(conv.drop, nn.Identity):  # v4 drops before the activation too
        ours.activation = nn.Sequential(conv.drop, ours.activation)
    if not isinstance(module.drop, nn.Identity):
        ours.dropout = dropout_module(
            module.drop.p, tied=not isinstance(module.drop, nn.Dropout), transposed=True
        )
    return ours


def _s4d(module: Any) -> S4:
    options = {"disc": "zoh", "transposed": module.transposed, "lr": {"B": 0.0}}
    options["activation"] = _activation(module.activation)
    ours = _loaded(names.from_s4(module.state_dict()), options)
    ours.dropout = module.dropout
    return ours


def _loaded(state: names.StateDict, options: dict[str, Any]) -> S4:
    example = state["D"]
    ours = S4(**s4_arguments(state, options)).to(example.device, example.dtype)
    ours.load_state_dict(state)
    return ours


def _activation(module: nn.Module) -> str | None:
    if type(module) not in _ACTIVATIONS:
        raise ValueError(f"the activation {type(module).__name__} has no counterpart here")
    return _ACTIVATIONS[type(module)]


_KINDS = (
    _Kind(lambda m: _has(m, "kernel.kernel.log_dt") and _has(m, "D"), _espnet, export_espnet),
    _Kind(lambda m: _has(m, "layer.kernel.inv_dt") and _has(m, "output_linear"), _v4, export_s4),
    _Kind(
        lambda m: _has(m, "kernel.log_A_real") and _has(m, "D"),
        _s4d,
        lambda ours: names.to_s4d(dict(ours.state_dict())),
    ),
    _Kind(hugging_face.is_mixer, hugging_face.accelerated, None),
)
