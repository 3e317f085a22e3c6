"""Optimizer parameter groups from the learning rates and weight decays that parameters ask for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn


def parameter_groups(module: nn.Module, **defaults: Any) -> list[dict[str, Any]]:
    """Parameter groups for a torch optimizer, one for each distinct set of options.

    The options of a parameter (see ``parameter_options``) win over ``defaults``; frozen parameters are left out, and
    one that several modules share comes once. The first group holds the parameters without options of their own::

        torch.optim.AdamW(parameter_groups(model, lr=4e-3, weight_decay=0.01))
    """
    options = parameter_options(module)
    groups: dict[tuple[tuple[str, Any], ...], dict[str, Any]] = {(): {"params": [], **defaults}}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            own = options.get(name, {})
            group = groups.setdefault(tuple(sorted(own.items())), {"params": [], **defaults, **own})
            group["params"].append(parameter)
    return [group for group in groups.values() if group["params"]]


def parameter_options(module: nn.Module) -> dict[str, dict[str, Any]]:
    """What the parameters ask of an optimizer, such as ``{"weight_decay": 0.0, "lr": 1e-3}``, by parameter name.

    It is what a parameter has as an attribute ``_optim``, as layers of ESPnet and s4 set it, or else what our layers
    ask for the parameter of that name: these keep it whatever becomes of the ``Parameter`` (``assign=True``, FSDP2,
    ``to_empty``, parametrizations, pruning). Names are those of ``named_parameters``; parameters that ask for nothing
    are left out.
    """
    by_layer = {
        id(parameter): options
        for part in module.modules()
        if isinstance(part, CarriesOptions)
        for parameter, options in part._asked()
    }
    found = {
        name: getattr(parameter, "_optim", None) or by_layer.get(id(parameter))
        for name, parameter in module.named_parameters()
    }
    return {name: options for name, options in found.items() if options}


class CarriesOptions(nn.Module):
    """Base of modules that ask for options of the optimizer for parameters of their own, by name.

    The parameters carry them as ``_optim`` too, for training scripts that read it there.
    """

    def set_options(self, name: str, options: dict[str, float]) -> None:
        """Ask for options of the parameter of that name."""
        self.__dict__.setdefault("_options", {})[name] = options
        self.get_parameter(name)._optim = options  # type: ignore[attr-defined]

    def _asked(self) -> Iterator[tuple[nn.Parameter, dict[str, float]]]:
        """The parameters with options, as they are now."""
        for name, options in self.__dict__.get("_options", {}).items():
            for parameter in _standing_for(self, name):
                yield parameter, options

    def _mark(self) -> None:
        """Parameters that torch has replaced get their ``_optim``."""
        for parameter, options in self._asked():
            if not hasattr(parameter, "_optim"):
                parameter._optim = options  # type: ignore[attr-defined]

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        super().register_parameter(name, param)
        self._mark()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._mark()

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        result = super()._apply(*args, **kwargs)
        self._mark()
        return result

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._mark()


def _standing_for(module: nn.Module, name: str) -> list[nn.Parameter]:
    """The module's parameter of that name, or what a parametrization, pruning or a norm of it has put in its place."""
    held = module._parameters
    parametrized = module._modules.get("parametrizations")
    if held.get(name) is None and parametrized is not None and name in parametrized:  # type: ignore[operator]
        return list(parametrized.get_submodule(name).parameters(recurse=False))
    places = (name, f"{name}_orig", f"{name}_g", f"{name}_v")
    return [parameter for place in places if (parameter := held.get(place)) is not None]
