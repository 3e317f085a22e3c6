"""Stages as programs of the C++ interpreter."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .program import Program
from .stages import Stage


def translated(stages: Sequence[Stage], width: int, dtype: torch.dtype) -> Program | str:
    """The stages as a finished program over ``width`` channels; or why there is none."""
    program = Program(width, dtype)
    for stage in stages:
        if not stage.translate(program):
            return f"the interpreter does not know {stage}"
    program.finish()
    return program
