"""The private names of torch that the package needs, all in one place: torch may change them, so tests look for each.

Everything here is in torch 2.10 and later. What each is for stands where it is used.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad

Function = TypeVar("Function", bound=Callable[..., Any])

# Dispatch: what runs below an autograd kernel, and which keys torch passes over in this thread.
below_autograd = torch._C._AutoDispatchBelowAutograd
after_autograd = torch._C._after_autograd_keyset
after_views = torch._C._after_ADInplaceOrView_keyset
is_excluded = torch._C._dispatch_tls_is_dispatch_key_excluded
set_excluded = torch._C._SetExcludeDispatchKeyGuard
CONJUGATE, NEGATIVE = torch._C.DispatchKey.Conjugate, torch._C.DispatchKey.Negative

# torch.func: the innermost transform at work, and Functions that differentiate for one level of transforms alone.
transform: Callable[[], Any] = torch._C._functorch.peek_interpreter_stack
FORWARD_MODE = torch._C._functorch.TransformType.Jvp
is_wrapped = torch._C._functorch.is_functorch_wrapped_tensor
single_level_allowed = torch._C._functorch.get_single_level_autograd_function_allowed
allow_single_level = torch._C._functorch.set_single_level_autograd_function_allowed
SingleLevelFunction: Any = torch.autograd.function._SingleLevelFunction
unpack_dual = torch._VF._unpack_dual
forward_mode_enabled = forward_ad._set_fwd_grad_enabled

# What may be at work around a call: modes, tracers, a vmap of before torch.func (``is_grads_batched``), and levels of
# ``torch.autograd.forward_ad``, negative outside; a compiled ``torch.func.jvp`` does not set one.
dispatch_modes: Callable[[], int] = torch._C._len_torch_dispatch_stack
function_modes: Callable[[], bool] = torch._C._is_torch_function_mode_enabled
tracing_state: Callable[[], Any] = torch._C._get_tracing_state
dual_level: Callable[[], int] = functools.partial(getattr, forward_ad, "_current_level")
VMAP_MODE: Any = torch._C._parse_dispatch_key("VmapMode")
is_included = torch._C._dispatch_tls_is_dispatch_key_included

any_requires_grad = torch._C._any_requires_grad

# ``torch.compiler.disable`` without what that does at once: load the compiler, as slow as to load torch.
not_compiled: Any = torch._compile._disable_dynamo


def inductor() -> Any:
    """The compiler's module, loaded when it is wanted: that takes as long as loading torch."""
    return importlib.import_module("torch._inductor")


def package_aoti() -> Callable[..., Any]:
    """What writes several compiled models into one file."""
    return importlib.import_module("torch._inductor.package.package").package_aoti


def constant_for_compiler(function: Function) -> Function:
    """``torch.compiler.assume_constant_result``, which would load the compiler: as slow as to load torch."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


@constant_for_compiler
def exports() -> bool:
    """Whether ``torch.export`` is at work, or an exporter that begins with it."""
    return torch.compiler.is_exporting()


@constant_for_compiler
def exports_to_onnx() -> bool:
    """Whether ``torch.onnx.export`` is at work, to which an op of ours means nothing."""
    return torch.compiler.is_exporting() and torch.onnx.is_in_onnx_export()


def scan(function: Callable[..., Any], initial: Any, inputs: Tensor) -> tuple[Any, Tensor]:
    """``carry, out = function(carry, input)`` over the first dimension, for exporters: the last carry, and all outs."""
    from torch._higher_order_ops.scan import scan as higher_order_scan

    carried, outs = higher_order_scan(function, initial, inputs)
    return carried, outs


def in_forward_mode() -> bool:
    """Whether ``torch.func.jvp`` is the innermost transform at work."""
    innermost = transform()
    return innermost is not None and innermost.key() == FORWARD_MODE


def has_tangents(args: tuple[Any, ...]) -> bool:
    """Whether one of the arguments is a dual number; only where there is a level of forward-mode differentiation."""
    return any(isinstance(a, Tensor) and unpack_dual(a, level=0).tangent is not None for a in args)
