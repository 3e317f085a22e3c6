"""Registers an op with torch: schema, dispatch to a backend, fake, autograd and autocast rules."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .dispatch import able

NAMESPACE = "sequence_kernels"
_library = torch.library.Library(NAMESPACE, "DEF")
_CONJUGATE = torch._C.DispatchKey.Conjugate


def register(
    name: str,
    schema: str,
    *,
    fake: Callable[..., Any],
    setup_context: Callable[..., None] | None = None,
    backward: Callable[..., Any] | None = None,
    follows_autocast: Sequence[int] = (),
) -> Callable[..., Any]:
    """Define ``sequence_kernels::name`` and return it.

    The last argument of the schema is ``str backend``; an implementation takes all the others. Under autocast the
    arguments at the positions ``follows_autocast`` are cast to autocast's dtype, as the inputs of a linear layer are,
    and all other half-precision ones to float32. An op whose schema declares a mutated argument has no gradient, and
    raises RuntimeError when one would be needed; its implementations also get tensors whose conjugation is pending.
    """
    _library.define(f"{name}{schema}")
    op = getattr(getattr(torch.ops, NAMESPACE), name).default
    mutated = [i for i, a in enumerate(op._schema.arguments) if a.alias_info is not None]

    def run(*args: Any) -> Any:
        _refuse_tangents(name, args)
        implementation = able(name, args[-1], args[0].device, args[0].dtype)
        if torch._C._dispatch_tls_is_dispatch_key_excluded(_CONJUGATE):
            with _views_resolved():
                return implementation(*args[:-1])
        return implementation(*args[:-1])

    _library.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=_library)
    if mutated:
        _library.impl(name, _without_gradient(op), "Autograd", with_keyset=True)
        _library.impl(name, _counts_mutations(op, mutated), "ADInplaceOrView", with_keyset=True)
        _library.impl(
            name, torch.library.fallthrough_kernel, "Conjugate"
        )  # its own rule is for returned tensors
    elif backward is not None:
        torch.library.register_autograd(
            f"{NAMESPACE}::{name}", backward, setup_context=setup_context, lib=_library
        )
    for device in ("cpu", "cuda"):
        _library.impl(
            name, _autocast_rule(op, device, frozenset(follows_autocast)), f"Autocast{device.upper()}"
        )
    return op


@contextmanager
def _views_resolved() -> Iterator[None]:
    """Conjugated and negated views count again: below a TorchDispatchMode torch takes them for what they view.

    So are ops called that a FlopCounterMode or a selective checkpoint looks at. Plain torch would be silently wrong.
    """
    with (
        torch._C._SetExcludeDispatchKeyGuard(_CONJUGATE, False),
        torch._C._SetExcludeDispatchKeyGuard(torch._C.DispatchKey.Negative, False),
    ):
        yield


def _refuse_tangents(name: str, args: Sequence[Any]) -> None:
    """Forward-mode derivatives are not implemented, and torch would drop them without a word."""
    if forward_ad._current_level < 0:
        return
    if any(isinstance(a, Tensor) and forward_ad.unpack_dual(a).tangent is not None for a in args):
        raise NotImplementedError(f"{name} has no forward-mode derivative: use reverse mode")


def _without_gradient(op: Any) -> Callable[..., Any]:
    def rule(keyset: Any, *args: Any) -> Any:
        if torch.is_grad_enabled() and any(isinstance(a, Tensor) and a.requires_grad for a in args):
            raise RuntimeError(
                f"{op._schema.name.partition('::')[2]} works in place and has no gradient, but an argument requires "
                "one: call it under torch.no_grad(), or use the op that returns a new tensor"
            )
        with torch._C._AutoDispatchBelowAutograd():
            return op.redispatch(keyset & torch._C._after_autograd_keyset, *args)

    return rule


def _counts_mutations(op: Any, mutated: Sequence[int]) -> Callable[..., Any]:
    """What lets autograd notice that a tensor it has saved was changed."""

    def rule(keyset: Any, *args: Any) -> Any:
        for i in mutated:
            torch.autograd.graph.increment_version(args[i])
        return op.redispatch(keyset & torch._C._after_ADInplaceOrView_keyset, *args)

    return rule


def _autocast_rule(op: Callable[..., Any], device: str, follows: frozenset[int]) -> Callable[..., Any]:
    def cast(position: int, value: Any, low: torch.dtype) -> Any:
        if not isinstance(value, Tensor) or value.dtype not in (torch.float32, torch.float16, torch.bfloat16):
            return value
        return value.to(low if position in follows else torch.float32)

    def rule(*args: Any) -> Any:
        low = torch.get_autocast_dtype(device)
        with torch.autocast(device, enabled=False):
            return op(*(cast(i, a, low) for i, a in enumerate(args)))

    return rule


def gradient_for(argument: Tensor, gradient: Tensor) -> Tensor:
    """Reduce a gradient to an argument: sum over broadcast dimensions, drop the imaginary part if it is real."""
    if gradient.is_complex() and not argument.is_complex():
        gradient = gradient.real
    return gradient.sum_to_size(argument.shape)


def only_runs(device: str) -> bool:
    """Whether a call of an op on ordinary tensors of the device only runs its implementation, gradients apart.

    No tracer, transform, mode or autocast is at work. The way through torch then only takes time: 6 us.
    """
    return not (
        torch._C._len_torch_dispatch_stack()
        or torch._C._is_torch_function_mode_enabled()
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch._C._get_tracing_state() is not None
        or forward_ad._current_level >= 0
        or torch.is_autocast_enabled(device)
    )
