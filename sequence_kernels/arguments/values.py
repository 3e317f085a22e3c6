"""Numbers that modules are made and called with: each check raises an error that names the argument."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any, TypeGuard, TypeVar

import torch
from torch import Tensor

from .. import internals
from ..ops.checks import describe
from . import keywords

Function = TypeVar("Function", bound=Callable[..., Any])

#: The least value of an argument annotated as ``int``, where it is not 1.
LEAST = {"delay": 0, "dim": -2, "horizon": 0, "l_output": 0}

#: Arguments annotated as ``float`` that must be above 0, and those that must be in 0 .. 1. All must be finite.
POSITIVE = ("bandlimit", "dt_max", "dt_min", "eps", "expand", "inner_norm_eps", "max_phase", "real_tolerance")
FRACTIONS = ("drop_path", "dropinp", "dropout", "p", "r_max", "r_min")

#: The groups of parameters that have a learning rate of their own.
GROUPS = ("dt", "A", "B")

_NUMBERS = (int, float, torch.SymInt, torch.SymFloat)  # symbolic ones where a call is traced


def checked(function: Function) -> Function:
    """A constructor, or a function, that refuses arguments which its annotations and the tables above do not allow.

    ``int``: a whole number, at least 1 or what ``LEAST`` says. ``float``: a finite number, see ``POSITIVE`` and
    ``FRACTIONS``. ``bool``: True, False, 1 or 0. ``str``: a string. Each may be None where the annotation says so;
    others are left to the function. A keyword that there is not is answered with the nearest one that there is.
    """
    signature = inspect.signature(function)
    names = keywords.taken(function)
    checks: dict[str, tuple[Callable[[str, Any], None], bool]] = {}
    for name, parameter in signature.parameters.items():
        kinds = str(parameter.annotation).split(" | ")
        check = _CHECKS.get(name) or (_CHECKS.get(kinds[0]) if len(set(kinds) - {"None"}) == 1 else None)
        if check is not None and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            checks[name] = check, "None" in kinds

    @functools.wraps(function)
    def checking(*args: Any, **kwargs: Any) -> Any:
        if names is not None and not names.issuperset(kwargs):
            where = type(args[0]).__name__ if function.__name__ == "__init__" else function.__name__
            keywords.refuse(where, kwargs, names)
        for name, value in signature.bind(*args, **kwargs).arguments.items():
            if name in checks:
                check, optional = checks[name]
                if value is not None or not optional:
                    check(name, value)
        return function(*args, **kwargs)

    return checking  # type: ignore[return-value]


def whole(name: str, value: Any) -> None:
    """Raise unless the value is an integer, at least what ``LEAST`` says or 1."""
    if isinstance(value, bool) or not isinstance(value, (int, Integral)):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}: {value!r}")
    least = LEAST.get(name, 1)
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")


def real(name: str, value: Any) -> None:
    """Raise unless the value is a finite number, in the range that the tables give for the name."""
    if isinstance(value, bool) or not isinstance(value, (int, float, Real)):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}: {value!r}")
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value}")
    if name in POSITIVE and float(value) <= 0:
        raise ValueError(f"{name} must be above 0, got {value}")
    if name in FRACTIONS and not 0 <= float(value) <= 1:
        raise ValueError(f"{name} must be from 0 to 1, got {value}")


def truth(name: str, value: Any) -> None:
    """Raise unless the value is True, False, 1 or 0: a word such as "no" would count as true."""
    if not isinstance(value, int) or value not in (0, 1):
        raise TypeError(f"{name} must be True or False, got {type(value).__name__}: {value!r}")


def text(name: str, value: Any) -> None:
    """Raise unless the value is a string."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a str, got {type(value).__name__}: {value!r}")


def learning_rates(name: str, value: Any) -> None:
    """Raise unless the value is None, a learning rate, or a dict of them for some of the ``GROUPS``."""
    rates = value if isinstance(value, dict) else {"": value}
    if isinstance(value, dict):
        keywords.refuse(name, value, GROUPS)
    for group, rate in rates.items():
        if rate is not None:
            place = f"{name}[{group!r}]" if group else name
            real(place, rate)
            if rate < 0:
                raise ValueError(f"{place} must be at least 0, got {rate}")


_CHECKS: dict[str, Callable[[str, Any], None]] = {
    "int": whole,
    "float": real,
    "bool": truth,
    "str": text,
    "lr": learning_rates,
}


def sampling_rate(rate: Any) -> None:
    """Raise unless ``rate`` is finite and above 0: a number, or a tensor without dimensions.

    A tensor's value is looked at on the CPU only, where that is free.
    """
    if isinstance(rate, bool) or not isinstance(rate, (*_NUMBERS, Real, Tensor)):
        raise TypeError(f"rate must be a number, got {type(rate).__name__}: {rate!r}")
    if not isinstance(rate, Tensor):
        _require_positive(rate)
    elif rate.dim() > 0 or rate.is_complex() or rate.dtype == torch.bool:
        raise ValueError(f"rate must be one real number, or one for each row, got {describe(rate)}")
    elif rate.device.type == "cpu" and not torch.compiler.is_compiling() and not internals.is_wrapped(rate):
        _require_positive(float(rate))


def by_element(rate: Any, u: Tensor) -> TypeGuard[Tensor]:
    """Whether there is a rate for each element of u ``(batch, heads, length)``; raise unless these are right."""
    if not isinstance(rate, Tensor) or rate.dim() != 2:
        return False
    if rate.shape != (u.shape[0], u.shape[2]) or not rate.is_floating_point() or rate.device != u.device:
        expected = f"shape {(u.shape[0], u.shape[2])} on {u.device}"
        raise ValueError(f"rate for each element must be real, of {expected}, got {describe(rate)}")
    if rate.device.type == "cpu" and not torch.compiler.is_compiling() and not bool((rate > 0).all()):
        raise ValueError(f"rate must be above 0, got {float(rate.min())} for an element")
    return True


def unit_rate(module: object, rate: Any) -> None:
    """``sampling_rate`` of a layer that counts elements: it cannot follow another rate than 1."""
    sampling_rate(rate)
    by_row = isinstance(rate, Tensor) and internals.is_wrapped(rate)
    if by_row or rate != 1:
        said = "one for each row" if by_row else rate
        raise ValueError(f"{type(module).__name__} has no step in time: rate must be 1, got {said}")


def _require_positive(rate: Any) -> None:
    if not 0 < rate < math.inf:
        got = "" if torch.compiler.is_compiling() else f", got {rate}"  # a symbolic number has no text
        raise ValueError("rate must be finite and above 0" + got)
