"""``mamba_ssm.utils.hf``: a model's configuration and weights, from a directory; nothing is downloaded."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .checkpoints import read

#: What a directory may hold, in the order in which they are looked for.
WEIGHTS = ("model.safetensors", "pytorch_model.bin", "model.pt")


def weights_file(directory: Path) -> Path:
    """Where a directory has its weights. Raises ValueError if it has none."""
    found = next((directory / name for name in WEIGHTS if (directory / name).exists()), None)
    if found is None:
        raise ValueError(f"source {directory} has none of {', '.join(WEIGHTS)}")
    return found


def _directory(model_name: str | os.PathLike[str]) -> Path:
    path = Path(os.fspath(model_name))
    if not path.is_dir():
        raise ValueError(
            f"model_name must be a directory with a config.json and weights, got {str(model_name)!r}: nothing is "
            f"downloaded here; `hf download {model_name} --local-dir DIRECTORY` of huggingface_hub does that"
        )
    return path


def load_config_hf(model_name: str | os.PathLike[str]) -> dict[str, Any]:
    """What ``config.json`` in a directory says."""
    file = _directory(model_name) / "config.json"
    if not file.exists():
        raise ValueError(f"model_name {str(model_name)!r} has no config.json")
    return json.loads(file.read_text())


def load_state_dict_hf(
    model_name: str | os.PathLike[str],
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> dict[str, Tensor]:
    """The state dict in a directory, on a device and in a dtype if they are given."""
    stored = read(weights_file(_directory(model_name)))
    return {name: value.to(device=device, dtype=dtype) for name, value in stored.items()}
