"""Packages that AOTInductor compiles: C++ that runs with libtorch and the compiled library, without Python."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import nn

from .. import internals
from .flat import _Flat
from .native import lowered


def package(module: Any, path: str | os.PathLike[str], *, step: bool = False) -> None:
    """Compile a SequenceModule, frozen, into one file for CPUs.

    It holds ``model``, which takes ``x`` ``(batch, length, d_model)``, or in the layout of the module, and of a causal
    module the tensors of a state, and gives y and those of the next state. Batch and length, at least 1, are free. The
    first state is zeros; the metadata says of which shapes, without the batch: ``state_0`` is "8,4", ...

    To run it, load the compiled library: ``torch.ops.load_library("_native_cpu.so")``, or in C++ ``dlopen``; then
    ``torch._inductor.aoti_load_package(path)``, or ``AOTIModelPackageLoader(path, "model")``.

    Args:
        module: any but those with a GRU or an LSTM, which AOTInductor cannot compile for every length.
        path: of the file.
        step: it also holds ``step``, which takes an element ``(batch, d_model)``:
            ``torch._inductor.package.load_package(path, "step")``.

    Raises RuntimeError without the compiled library, and ValueError for a module that cannot be frozen or compiled, or
    whose state grows.
    """
    recurrent = [name for name, part in module.named_modules() if isinstance(part, nn.RNNBase)]
    if recurrent:
        raise ValueError(
            f"{recurrent[0]} cannot be compiled for every length: torch unrolls a GRU and an LSTM"
        )
    forms = {"model": _Flat(module, False)} | ({"step": _Flat(module, True)} if step else {})
    internals.package_aoti()(os.fspath(path), {name: _compiled(flat.eval()) for name, flat in forms.items()})


@torch.no_grad()
def _compiled(flat: _Flat) -> Any:
    """The files of one model."""
    exported = torch.export.export(flat, flat.example, dynamic_shapes=flat.dynamic_shapes, strict=False)
    said = {
        name: ",".join(map(str, t.shape[1:])) for name, t in zip(flat.names[0], flat.example, strict=True)
    }
    options = {"aot_inductor.package": True, "aot_inductor.metadata": said}
    return internals.inductor().aot_compile(lowered(exported).module(), flat.example, options=options)
