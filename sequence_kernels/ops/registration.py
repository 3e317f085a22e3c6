"""Registers an op with torch, from one declaration of what it takes and gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import internals
from . import dispatch
from .calls import Backward, autograd_rule, below, by_the_short_way, kernel_rule, refuse_dual_numbers
from .dispatch import implementation
from .folding import vmap_rule
from .signature import Signature, adjoint, signature

NAMESPACE = "sequence_kernels"
_library = torch.library.Library(NAMESPACE, "DEF")


def register(
    name: str,
    takes: str,
    gives: str,
    *,
    fake: Callable[..., Any],
    backward: Backward | None = None,
    composite: Callable[..., Any] | None = None,
    follows_autocast: Sequence[int] = (),
) -> Callable[..., Any]:
    """Define ``sequence_kernels::name`` and return it.

    Args:
        takes, gives: as in signature.py. The op also takes ``str backend``, last; implementations do not.
        fake: the results' shapes and dtypes.
        backward: ``(needed, inputs, *gradients of the results) -> gradients of the tensors``. None: see composite.
        composite: the same of operations that torch can differentiate; the op's plain torch if None. It serves forward
            mode, and reverse mode too where there is no ``backward``.
        follows_autocast: positions of the arguments that autocast casts to its dtype, as the inputs of a linear layer;
            all other half-precision ones are cast to float32.

    An op that writes into an argument has no gradient, and raises RuntimeError when one would be needed; its
    implementations also get tensors whose conjugation is pending.
    """
    return _register(name, signature(takes, gives), fake, backward, composite, follows_autocast)


def register_with_adjoint(
    name: str,
    takes: str,
    gives: str,
    *,
    fake: Callable[..., Any],
    missing: str,
    keeps: str = "",
    like_first: Callable[[Tensor, str], Tensor] | None = None,
    follows_autocast: Sequence[int] = (),
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Define an op and ``name_backward``, all its gradients at once, and return both.

    The latter takes the gradients of the results, then what the op takes, and gives a gradient of every tensor but
    those of integers, also of one that is None: it then has the dtype of the argument ``missing``. Its own derivatives
    are those of its plain torch.

    Args:
        keeps: results behind the others that spare the backward op work. They have no gradients, and it takes them
            behind the tensors that the op takes; its plain torch does without them.
        like_first: ``(the first argument, backend) -> its gradient``, as ``fake`` gives results: implementations then
            choose how the first result and that gradient lie. By default they are contiguous, as all others are.
    """
    forward = signature(takes, gives, keeps)
    reverse = adjoint(forward)
    places = [i for i, a in enumerate(forward.tensors) if not a.integers]
    like = [a.name for a in forward.takes].index(missing)

    def backward_fake(*args: Any) -> Any:
        sizes = reverse.sizes(args[: len(reverse.tensors)])
        inputs = args[len(forward.gives) :]

        def gradient(i: int, dims: Sequence[str]) -> Tensor:
            if inputs[i] is None:
                return inputs[like].new_empty([sizes[letter] for letter in dims])
            if i == 0 and like_first is not None:
                return like_first(inputs[0], args[-1])
            return inputs[i].new_empty(inputs[i].shape)

        gradients = tuple(gradient(i, a.dims) for i, a in zip(places, reverse.gives, strict=True))
        return gradients if len(gradients) > 1 else gradients[0]

    def backward(needed: Sequence[bool], inputs: tuple[Any, ...], *gradients: Any) -> tuple[Any, ...]:
        results = reverse_op(*gradients, *inputs)
        found = dict(zip(places, results if len(places) > 1 else (results,), strict=True))
        return tuple(
            found[i].to(inputs[i].dtype) if is_needed else None for i, is_needed in enumerate(needed)
        )

    lies = like_first is not None
    reverse_op = _register(f"{name}_backward", reverse, backward_fake, None, None, (), lies)
    return _register(name, forward, fake, backward, None, follows_autocast, lies), reverse_op


def _register(
    name: str,
    of: Signature,
    fake: Callable[..., Any],
    backward: Backward | None,
    composite: Callable[..., Any] | None,
    follows_autocast: Sequence[int],
    first_as_it_lies: bool = False,
) -> Callable[..., Any]:
    _library.define(f"{name}{of.schema}")
    if 0 in follows_autocast:
        dispatch.follows_autocast(name)
    op = getattr(getattr(torch.ops, NAMESPACE), name).default
    written = [i for i, a in enumerate(of.takes) if a.written]

    def plain_torch(*args: Any) -> Any:
        return implementation(name, "torch")(*args[:-1])

    _library.impl(name, kernel_rule(name, first_as_it_lies), "CompositeExplicitAutograd")
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=_library)
    if written:
        _library.impl(name, _without_gradient(op), "Autograd", with_keyset=True)
        _library.impl(name, _counts_mutations(op, written), "ADInplaceOrView", with_keyset=True)
        _library.impl(
            name, torch.library.fallthrough_kernel, "Conjugate"
        )  # its own rule is for returned tensors
    else:
        rule = autograd_rule(op, len(of.tensors), len(of.gives), composite or plain_torch, backward)
        _library.impl(name, rule, "Autograd", with_keyset=True)
        torch.library.register_vmap(f"{NAMESPACE}::{name}", vmap_rule(op, of), lib=_library)
    for device in ("cpu", "cuda"):
        _library.impl(
            name, _autocast_rule(op, device, frozenset(follows_autocast)), f"Autocast{device.upper()}"
        )
    return op if written else by_the_short_way(op, name, len(of.tensors), first_as_it_lies)


def _without_gradient(op: Any) -> Callable[..., Any]:
    def rule(keyset: Any, *args: Any) -> Any:
        if internals.dual_level() >= 0 or internals.in_forward_mode():
            refuse_dual_numbers(op, args)
        if torch.is_grad_enabled() and internals.any_requires_grad(*args):
            raise RuntimeError(
                f"{op._opname} works in place and has no gradient, but an argument requires one: call it under "
                "torch.no_grad(), or use the op that returns a new tensor"
            )
        return below(op, keyset, args)

    return rule


def _counts_mutations(op: Any, mutated: Sequence[int]) -> Callable[..., Any]:
    """What lets autograd notice that a tensor it has saved was changed."""

    def rule(keyset: Any, *args: Any) -> Any:
        for i in mutated:
            torch.autograd.graph.increment_version(args[i])
        return op.redispatch(keyset & internals.after_views, *args)

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
