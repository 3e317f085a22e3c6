"""ONNX files: plain real arithmetic, which needs no custom operator, and a state that goes from call to call."""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import torch

from .flat import _Flat

_NEEDS = "onnx", "onnxscript"
_OPSET = 20


def onnx(module: Any, path: str | os.PathLike[str], *, step: bool = False) -> None:
    """Write the module, frozen, for inference by onnxruntime and others.

    The file takes ``x`` ``(batch, length, d_model)``, or in the layout of the module, and of a causal module the
    tensors of a state, ``state_0``, ...; it gives ``y`` and ``next_state_0``, ... Batch and length, at least 1, are
    free. The first state is zeros: ``module.freeze().default_state(batch)``. Recurrences are two scans, over whole
    chunks and over the rest, carried in float64.

    Args:
        module: a SequenceModule: S4, S4D, DSS, S5, LRU, GRU, LSTM, CausalConv, what maps each element by itself, and
            models of these.
        path: of the file; large weights come beside it.
        step: x is one element ``(batch, d_model)``.

    Raises ImportError without the packages onnx and onnxscript, and ValueError for a module that cannot be frozen, or
    whose state grows.
    """
    missing = [name for name in _NEEDS if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(
            f"an export to ONNX needs {' and '.join(missing)}: `pip install 'sequence-kernels[export]'`"
        )
    flat = _Flat(module, step).eval()
    inputs, outputs = flat.names
    program: Any = torch.onnx.export(
        flat,
        flat.example,
        dynamo=True,
        dynamic_shapes=flat.dynamic_shapes,
        opset_version=_OPSET,
        input_names=inputs,
        output_names=outputs,
        verbose=False,
    )
    for value, free in zip(program.model.graph.inputs, flat.dynamic, strict=True):
        fixed = [i for i in free if isinstance(value.shape[i], int)]
        if fixed:
            raise RuntimeError(f"torch's exporter has fixed the sizes {fixed} of {value.name}, {value.shape}")
    program.save(os.fspath(path))
