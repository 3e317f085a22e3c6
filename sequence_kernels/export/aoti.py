"""Packages that AOTInductor compiles: C++ that runs with libtorch and the compiled library, without Python."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor, nn

from .. import internals
from .flat import _Flat
from .native import lowered, received


class _Checked(_Flat):
    """Whose arguments the compiled library looks at: what torch compiles takes them to be as in the example.

    It gives the next state in one piece, as it wants it.
    """

    def __init__(self, module: Any, step: bool) -> None:
        super().__init__(module, step)
        for name, given, free in zip(self.names[0], self.example, self.dynamic, strict=True):
            sizes = [0 if i in free else size for i, size in enumerate(given.shape)]
            self.register_buffer(f"like_{name}", given.new_empty(sizes))

    def forward(self, x: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        given = zip(self.names[0], (x, *state), strict=True)
        results = super().forward(*(received(t, getattr(self, f"like_{name}"), x) for name, t in given))
        return tuple(t.contiguous() for t in results)


def package(module: Any, path: str | os.PathLike[str], *, step: bool = False) -> None:
    """Compile a SequenceModule, frozen, into one file for CPUs.

    It holds ``model``, which takes ``x`` ``(batch, length, d_model)``, or in the layout of the module, and of a causal
    module the tensors of a state, and gives y and those of the next state. Batch and length, at least 1, are free. The
    first state is zeros; the metadata says of which shapes, without the batch: ``state_0`` is "8,4", ...

    To run it, load the compiled library: ``torch.ops.load_library("_native_cpu.so")``, or in C++ ``dlopen``; then
    ``torch._inductor.aoti_load_package(path)``, or ``AOTIModelPackageLoader(path, "model")``.

    Args:
        module: any but those that hold a GRU or an LSTM of torch's themselves, which torch unrolls for one length.
        path: of the file.
        step: it also holds ``step``, which takes an element ``(batch, d_model)``:
            ``torch._inductor.package.load_package(path, "step")``.

    Raises RuntimeError without the compiled library, and ValueError for a module that cannot be frozen or compiled, or
    whose state grows.
    """
    scanned = [part.rnn for part in module.modules() if getattr(part, "scans_in_exports", False)]
    for name, part in module.named_modules():
        if isinstance(part, nn.RNNBase) and not any(part is rnn for rnn in scanned):
            raise ValueError(
                f"{name}, a torch.nn.{type(part).__name__}, cannot be compiled for every length, as torch unrolls it: "
                "use sequence_kernels.GRU or LSTM"
            )
    forms = {"model": _Checked(module, False)} | ({"step": _Checked(module, True)} if step else {})
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
