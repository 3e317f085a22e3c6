"""What runs when an op is called: by the short way, at torch's Autograd key, and below it.

The derivatives stand at the Autograd key. torch.func comes by it once for each of its transforms, the innermost first;
what runs below it is what the next transform sees. So ``grad``, ``vjp``, ``jacrev``, ``vmap`` and any nesting of them
differentiate the op as ordinary autograd does, by its kernels. Forward mode is plain torch, which torch differentiates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from .. import internals
from .dispatch import able, implementation

#: ``(needed, inputs, *gradients of the results) -> gradients of the tensors``; ``needed`` says of which tensors.
Backward = Callable[..., "tuple[Any, ...]"]


_ORDINARY = (Tensor, torch.nn.Parameter)


def by_the_short_way(op: Any, name: str, tensors: int, first_as_it_lies: bool = False) -> Callable[..., Any]:
    """Calls the kernel itself where torch would do nothing else: the way through torch takes 6 us.

    That is: where the first ``tensors`` arguments lie in memory as their numbers are, none needs a gradient, and no
    tracer, transform, mode or autocast is at work. To an ONNX file it goes in plain torch.
    """

    kernel = kernel_rule(name, first_as_it_lies)

    def call(*args: Any) -> Any:
        if torch.compiler.is_compiling():
            return implementation(name, "torch")(*args[:-1]) if internals.exports_to_onnx() else op(*args)
        if not takes_its_kernel_alone(args[:tensors]):
            return op(*args)
        return kernel(*args)

    return call


def takes_its_kernel_alone(tensors: Sequence[Any]) -> bool:
    """Whether torch would only run the kernel of a call with these tensors, of which some may be None."""
    needs_gradient = torch.is_grad_enabled()
    for t in tensors:
        if t is not None and (
            type(t) not in _ORDINARY
            or t.is_conj()
            or t.is_neg()
            or t._is_zerotensor()
            or (needs_gradient and t.requires_grad)
        ):
            return False
    return nothing_else_at_work(tensors[0].device.type)


def nothing_else_at_work(device: str) -> bool:
    """Whether no tracer, transform, mode or autocast looks at what is called, and the device has kernels."""
    return not (
        internals.dispatch_modes()
        or internals.function_modes()
        or internals.transform() is not None
        or internals.is_included(internals.VMAP_MODE)
        or internals.tracing_state() is not None
        or internals.dual_level() >= 0
        or device not in ("cpu", "cuda")  # of meta tensors there is no kernel
        or torch.is_autocast_enabled(device)
    )


def kernel_rule(name: str, first_as_it_lies: bool = False) -> Callable[..., Any]:
    """What runs below autograd: the backend's implementation. Its results are contiguous, as the op's fake has them;
    of an op whose fake says how its first one lies, that is left as it is."""
    count = 1 if first_as_it_lies else 0

    def run(*args: Any) -> Any:
        kernel = able(name, args[-1], args[0].device, args[0].dtype)
        if internals.is_excluded(internals.CONJUGATE):
            with _views_resolved():
                out = kernel(*args[:-1])
        else:
            out = kernel(*args[:-1])
        if isinstance(out, Tensor):
            return out if first_as_it_lies else out.contiguous()
        return (*out[:count], *map(Tensor.contiguous, out[count:]))

    return run


@contextmanager
def _views_resolved() -> Iterator[None]:
    """Conjugated and negated views count again: below a TorchDispatchMode torch takes them for what they view.

    So are ops called that a FlopCounterMode or a selective checkpoint looks at. Plain torch would be silently wrong.
    """
    with (
        internals.set_excluded(internals.CONJUGATE, False),
        internals.set_excluded(internals.NEGATIVE, False),
    ):
        yield


def autograd_rule(
    op: Any, tensors: int, given: int, composite: Callable[..., Any], backward: Backward | None
) -> Callable[..., Any]:
    """What runs at the Autograd key of an op whose first ``tensors`` arguments are tensors.

    Results behind the first ``given`` have no gradients and are handed to ``backward`` behind those tensors.

    ``composite`` computes the same of plain torch, or of other registered ops: what forward mode differentiates, and
    reverse mode too where there is no ``backward``.
    """
    pull_back = backward or _through(composite)

    class Differentiated(internals.SingleLevelFunction):
        """For one level of transforms, or for ordinary autograd."""

        @staticmethod
        def forward(ctx: Any, keyset: Any, *args: Any) -> Any:
            if internals.transform() is None:
                out = below(op, keyset, args)
            else:
                with (
                    torch.enable_grad(),
                    internals.forward_mode_enabled(True),
                ):  # off in here; the next level needs them
                    out = below(op, keyset, args)
            kept = out[given:] if isinstance(out, tuple) else ()
            if kept:
                ctx.mark_non_differentiable(*kept)
            ctx.save_for_backward(*args[:tensors], *kept)
            ctx.rest = args[tensors:]
            return out

        @staticmethod
        def backward(ctx: Any, *gradients: Any) -> tuple[Any, ...]:
            inputs = (*ctx.saved_tensors, *ctx.rest)
            needed = ctx.needs_input_grad[1 : tensors + 1]
            return (None, *pull_back(needed, inputs, *gradients[:given]), *(None,) * len(ctx.rest))

    def rule(keyset: Any, *args: Any) -> Any:
        transform = internals.transform()
        if transform is not None and transform.key() == internals.FORWARD_MODE:
            if internals.has_tangents(args):
                return composite(*args)
        elif internals.dual_level() >= 0:
            refuse_dual_numbers(op, args)
        if not torch.is_grad_enabled() or not internals.any_requires_grad(*args):
            return below(op, keyset, args)
        if transform is None:
            return Differentiated.apply(keyset, *args)
        before = internals.single_level_allowed()
        internals.allow_single_level(True)
        try:
            return Differentiated.apply(keyset, *args)
        finally:
            internals.allow_single_level(before)

    return rule


def refuse_dual_numbers(op: Any, args: tuple[Any, ...]) -> None:
    """Those made by hand: below this rule torch would drop their tangents without a word."""
    if internals.has_tangents(args):
        raise NotImplementedError(
            f"{op._opname} has no forward-mode derivative for dual numbers of torch.autograd.forward_ad: "
            "use torch.func.jvp, or reverse mode"
        )


def below(op: Any, keyset: Any, args: Sequence[Any]) -> Any:
    """The op without its Autograd key."""
    with internals.below_autograd():
        return op.redispatch(keyset & internals.after_autograd, *args)


def _through(composite: Callable[..., Any]) -> Backward:
    """Gradients by differentiating the composite: for what is itself a gradient, and differentiated but rarely."""

    def pull_back(needed: Sequence[bool], inputs: tuple[Any, ...], *gradients: Any) -> tuple[Any, ...]:
        wanted = [i for i, is_needed in enumerate(needed) if is_needed]

        def function(*values: Any) -> Any:
            given = list(inputs)
            for i, value in zip(wanted, values, strict=True):
                given[i] = value
            return composite(*given)

        values = [inputs[i] for i in wanted]
        if torch.is_grad_enabled() or not takes_its_kernel_alone((*values, *gradients)):
            pull: Any = torch.func.vjp(function, *values)[1]
            slopes = pull(gradients if len(gradients) > 1 else gradients[0])
        else:  # nobody differentiates this: S4(8) at L = 1, both ways, in 3.1 ms instead of 4.5
            with torch.enable_grad():
                leaves = [t.detach().requires_grad_() for t in values]
                results = function(*leaves)
                results = results if isinstance(results, tuple) else (results,)
            depend = [(r, g) for r, g in zip(results, gradients, strict=True) if r.requires_grad]
            slopes = torch.autograd.grad(
                [r for r, _ in depend], leaves, [g for _, g in depend], materialize_grads=True
            )
        found = dict(zip(wanted, slopes, strict=True))
        return tuple(found.get(i) for i in range(len(needed)))

    return pull_back
