"""torch.compile of a plain-torch form, compiled before the clock starts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from bench.harness.declare import Inputs


def of(function: Callable[[Inputs], Any]) -> Callable[[Inputs], Inputs]:
    """A setup that compiles the function for these inputs."""

    def setup(inputs: Inputs) -> Inputs:
        return {**inputs, "compiled": torch.compile(function)}

    return setup


def run(inputs: Inputs) -> Any:
    """The compiled function on the inputs it was compiled for."""
    arguments = {name: value for name, value in inputs.items() if name != "compiled"}
    return inputs["compiled"](arguments)
