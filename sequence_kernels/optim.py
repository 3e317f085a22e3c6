"""Optimizer parameter groups from the learning rates and weight decays that parameters ask for."""

from __future__ import annotations

from typing import Any

from torch import nn


def parameter_groups(module: nn.Module, **defaults: Any) -> list[dict[str, Any]]:
    """Parameter groups for a torch optimizer, one for each distinct set of options.

    A parameter's attribute ``_optim`` (a dict such as ``{"weight_decay": 0.0, "lr": 1e-3}``, as state-space layers
    set on their dynamics) wins over ``defaults``; frozen parameters are left out. The first group holds the
    parameters without options of their own::

        torch.optim.AdamW(parameter_groups(model, lr=4e-3, weight_decay=0.01))
    """
    groups: dict[tuple[tuple[str, Any], ...], dict[str, Any]] = {(): {"params": [], **defaults}}
    for parameter in module.parameters():
        if parameter.requires_grad:
            own = getattr(parameter, "_optim", {})
            group = groups.setdefault(tuple(sorted(own.items())), {"params": [], **defaults, **own})
            group["params"].append(parameter)
    return [group for group in groups.values() if group["params"]]


class CarriesOptions(nn.Module):
    """Base of modules whose parameters carry options for the optimizer, which copies of parameters would lose."""

    def set_options(self, name: str, options: dict[str, float]) -> None:
        """Give the parameter of that name, as in ``named_parameters``, its ``_optim``."""
        self.__dict__.setdefault("_options", {})[name] = options
        self.get_parameter(name)._optim = options  # type: ignore[attr-defined]

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for name, options in self.__dict__.get("_options", {}).items():
            self.set_options(name, options)
