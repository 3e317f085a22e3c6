"""Keywords of calls. What a method takes stands in its signature; anything else is refused by name.

Only a method with ``**kwargs`` takes any keyword. Blocks and models have it to hand each of their parts what that part
takes, and refuse what none of them takes.
"""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Collection, Iterable
from typing import Any, NamedTuple, Protocol, TypeVar

from .. import internals
from . import inputs, sequences

Function = TypeVar("Function", bound=Callable[..., Any])

#: The methods whose keywords are looked at; ``stages`` takes those of ``step``.
METHODS = ("forward", "step", "stages", "setup_step")


class Shared(NamedTuple):
    """A keyword that a layer accepts in its ``methods`` even if it makes nothing of it, and why."""

    methods: tuple[str, ...]
    why: str


#: Callers hand these to all their layers alike, whatever the layers are. In a model of ours at least one part must take
#: them; ``lengths`` each does.
SHARED = {
    "lengths": Shared(("forward",), "where each element is mapped by itself, padding needs no care"),
    "memory": Shared(
        METHODS, "ESPnet's decoder hands the encoder's output to all its layers; attention reads it"
    ),
    "mask": Shared(METHODS, "of the memory, likewise"),
    "rate": Shared(METHODS, "ESPnet and s4 hand the sampling step to all layers; some know no time at all"),
    "return_output": Shared(
        ("forward",), "s4's models with attention ask for it; its state-space layers ignore it"
    ),
}

#: Options of constructors that change nothing, and why they are accepted.
UNUSED_OPTIONS = {
    "keops": "a choice among ESPnet's implementations of the kernel",
    "verbose": "ESPnet's and s4's kernels print what they do",
    "tie_dropout": "blocks give it to all their layers; attention and recurrent networks have no such dropout",
}


class _Taking(Protocol):
    def takes(self, method: str) -> frozenset[str] | None: ...


def named(function: Callable[..., Any]) -> frozenset[str]:
    """The names of a function's parameters but ``*args`` and ``**kwargs``."""
    parameters = inspect.signature(function).parameters.values()
    kinds = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD
    return frozenset(p.name for p in parameters if p.kind not in kinds) - {"self"}


def taken(function: Callable[..., Any]) -> frozenset[str] | None:
    """The names of a function's parameters; None if it takes any keyword."""
    parameters = inspect.signature(function).parameters.values()
    return None if any(p.kind is p.VAR_KEYWORD for p in parameters) else named(function)


def named_as(other: Callable[..., Any]) -> Callable[[Function], Function]:
    """Decorator: a function that hands its ``**kwargs`` on to the other one takes what that one takes."""

    def decorate(function: Function) -> Function:
        function.__signature__ = inspect.signature(other)  # type: ignore[attr-defined]
        return function

    return decorate


def guarded(function: Function, dropped: Collection[str] = frozenset()) -> Function:
    """The method, with a TypeError for a keyword that it does not take; those ``dropped`` it does not get.

    A method that takes any keyword gets all. Where ``forward`` or ``step`` fails, see ``inputs.explain``.
    """
    names = taken(function)
    words = _RESOLVES.get(function.__name__, (None, frozenset[str]()))[1]
    with_words = resolved(function)

    @functools.wraps(function)
    def checked(self: Any, *args: Any, **kwargs: Any) -> Any:
        if kwargs and names is not None:
            for name in kwargs:
                if name not in names and name not in words and name not in dropped:
                    raise TypeError(
                        unknown(f"{type(self).__name__}.{function.__name__}", name, names, dropped)
                    )
            kwargs = {name: value for name, value in kwargs.items() if name in names or name in words}
        try:
            return with_words(self, *args, **kwargs) if kwargs else function(self, *args)
        except Exception as error:
            inputs.explain(self, function.__name__, args, kwargs, error)
            raise

    return checked  # type: ignore[return-value]


#: What sees to the ways to say which elements belong together, in methods that do not take these keywords.
_RESOLVES = {
    "forward": (sequences.resolve, frozenset(sequences.WORDS)),
    "step": (sequences.resolve_step, frozenset(("reset",))),
}


def resolved(function: Function) -> Function:
    """A ``forward`` or ``step`` that takes all ways to say which elements belong together; another method as it is."""
    resolves, words = _RESOLVES.get(function.__name__, (None, frozenset[str]()))
    if resolves is None:
        return function
    names, first, *others = taken(function), *list(inspect.signature(function).parameters)[1:]
    words -= {"cu_seqlens"} if names is None else names
    order = ("x", *others)

    @functools.wraps(function)
    def resolving(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not kwargs or (words.isdisjoint(kwargs) and not sequences.has_rates(kwargs)):
            if kwargs.get("cu_seqlens") is not None:
                sequences.refuse_together(kwargs)
            return function(self, *args, **kwargs)
        given = dict(zip(order, args, strict=False)) | kwargs
        if first in given:
            given["x"] = given.pop(first)
        return resolves(self, functools.partial(resolving, self), names, given)

    return resolving  # type: ignore[return-value]


def guard(cls: type) -> dict[str, frozenset[str] | None]:
    """Guard the methods that the class itself defines; what each method of it takes."""
    for method in METHODS:
        if inspect.isfunction(vars(cls).get(method)):
            shared = frozenset(name for name, keyword in SHARED.items() if method in keyword.methods)
            setattr(cls, method, guarded(vars(cls)[method], shared))
    return {method: taken(getattr(cls, method)) for method in METHODS}


@internals.constant_for_compiler
def unknown(where: str, name: str, known: Collection[str], accepted: Collection[str] = ()) -> str:
    """The message that there is no such keyword, with the nearest one known, or accepted without a use for it."""
    nearest = difflib.get_close_matches(name, sorted({*known, *accepted}), n=1)
    guess = f"did you mean {nearest[0]!r}? " if nearest else ""
    return f"{where} takes no argument {name!r}; {guess}it takes {', '.join(sorted(known)) or 'none'}"


def refuse(where: str, given: Iterable[str], known: Collection[str]) -> None:
    """Raise TypeError if a name given is none of those known."""
    for name in given:
        if name not in known:
            raise TypeError(unknown(where, name, known))


def refuse_untaken(module: _Taking, method: str, given: Collection[str]) -> None:
    """Raise TypeError if a name given is none that the module's method takes."""
    names = module.takes(method) if given else None
    if names is not None:
        refuse(f"{type(module).__name__}.{method}", given, names)


def handed(module: _Taking, method: str, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Those of the keywords that the module's method takes."""
    names = module.takes(method) if kwargs else None
    if names is None:
        return kwargs
    return {name: value for name, value in kwargs.items() if name in names or name == "cu_seqlens"}


def of_parts(parts: Iterable[_Taking], method: str) -> frozenset[str] | None:
    """What a module made of these parts takes; None if one of them takes any keyword."""
    found = frozenset(("x", "state", "lengths", "cu_seqlens") if method == "forward" else ("x", "state"))
    for part in parts:
        names = part.takes(method)
        if names is None:
            return None
        found |= names
    return found
