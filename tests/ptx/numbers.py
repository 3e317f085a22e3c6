"""Floating point numbers as exact fractions: what each instruction's result has to be, without a processor's help."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple

Number = Fraction | float  # a float only for what is no fraction: -0.0, inf, nan


class Format(NamedTuple):
    """A binary format: bits of the exponent, of the mantissa without its first one, and unused ones below."""

    exponent: int
    mantissa: int
    below: int = 0

    @property
    def width(self) -> int:
        return 1 + self.exponent + self.mantissa + self.below

    @property
    def bias(self) -> int:
        return (1 << (self.exponent - 1)) - 1


F16, BF16, F32, F64 = Format(5, 10), Format(8, 7), Format(8, 23), Format(11, 52)
TF32 = Format(8, 10, below=13)


def number(bits: int, of: Format) -> Number:
    """From its bits."""
    bits >>= of.below
    mantissa = bits & ((1 << of.mantissa) - 1)
    exponent = bits >> of.mantissa & ((1 << of.exponent) - 1)
    negative = bits >> (of.mantissa + of.exponent) & 1
    if exponent == (1 << of.exponent) - 1:
        return math.nan if mantissa else -math.inf if negative else math.inf
    if exponent == 0 and mantissa == 0:
        return -0.0 if negative else Fraction(0)
    whole = mantissa if exponent == 0 else mantissa | 1 << of.mantissa
    value = whole * Fraction(2) ** (max(exponent, 1) - of.bias - of.mantissa)
    return -value if negative else value


def integer(x: Fraction, rounding: str) -> int:
    """ "even" or "away": to nearest, by how ties go; "zero", "down", "up"."""
    if rounding == "even":
        return round(x)
    if rounding == "away":
        return math.floor(abs(x) + Fraction(1, 2)) * (-1 if x < 0 else 1)
    return {"zero": math.trunc, "down": math.floor, "up": math.ceil}[rounding](x)


def is_nan(x: Number) -> bool:
    return x != x


def finite(*xs: Number) -> bool:
    return all(isinstance(x, Fraction) or math.isfinite(x) for x in xs)


def negative(x: Number) -> bool:
    return x < 0 or (isinstance(x, float) and math.copysign(1, x) < 0)


def bits(x: Number, of: Format, ties: str = "even") -> int | None:
    """The bits of the nearest number of the format; None for a NaN, which may have any."""
    if is_nan(x):
        return None
    sign = int(negative(x)) << (of.exponent + of.mantissa)
    infinity = ((1 << of.exponent) - 1) << of.mantissa
    if not finite(x):
        return (sign | infinity) << of.below
    size = abs(Fraction(x))
    if size == 0:
        return sign << of.below
    exponent = size.numerator.bit_length() - size.denominator.bit_length()
    exponent = max(exponent - (Fraction(2) ** exponent > size), 1 - of.bias)
    whole = integer(size / Fraction(2) ** (exponent - of.mantissa), ties)
    # A carry out of the mantissa goes into the exponent by itself, and a subnormal has the exponent 0.
    found = whole + ((exponent + of.bias - 1) << of.mantissa)
    return (sign | min(found, infinity)) << of.below


def is_zero(x: Number) -> bool:
    return x == 0


def signed(x: Number, minus: bool) -> Number:
    """With this sign, -0.0 where it is a zero with a minus."""
    size = abs(x)
    return (-0.0 if size == 0 else -size) if minus else (Fraction(0) if size == 0 else size)


def negate(x: Number) -> Number:
    return signed(x, not negative(x)) if not is_nan(x) else x


def add(a: Number, b: Number) -> Number:
    if not finite(a, b):
        return float("nan") if is_nan(a) or is_nan(b) else _infinite_sum(a, b)
    total = Fraction(a) + Fraction(b)
    return signed(total, negative(a) and negative(b)) if total == 0 else total


def _infinite_sum(a: Number, b: Number) -> float:
    infinities = {float(x) for x in (a, b) if not finite(x)}
    return infinities.pop() if len(infinities) == 1 else math.nan


def multiply(a: Number, b: Number) -> Number:
    minus = negative(a) != negative(b)
    if is_nan(a) or is_nan(b):
        return math.nan
    if not finite(a, b):
        return math.nan if is_zero(a) or is_zero(b) else signed(math.inf, minus)
    return signed(Fraction(a) * Fraction(b), minus)


def square_root(x: Number) -> Number:
    """To 2^-700, and by a bit below that something else than a number of any format where it is inexact."""
    if is_nan(x) or x == 0 or not isinstance(x, Fraction) or x < 0:
        return math.nan if not is_nan(x) and x < 0 else x
    scaled = x * 4**700
    root = math.isqrt(math.floor(scaled))
    return Fraction(root if root * root == scaled else root + Fraction(1, 2)) / 2**700


def divide(a: Number, b: Number) -> Number:
    minus = negative(a) != negative(b)
    if is_nan(a) or is_nan(b):
        return math.nan
    if is_zero(b) or not finite(a):
        undefined = (is_zero(a) and is_zero(b)) or not (finite(a) or finite(b))
        return math.nan if undefined else signed(math.inf, minus)
    return signed(Fraction(0) if not finite(b) else Fraction(a) / Fraction(b), minus)


def fused(a: Number, b: Number, c: Number) -> Number:
    return add(multiply(a, b), c)


def smaller(a: Number, b: Number) -> Number:
    """A zero with a minus is the smaller one; a number is preferred to a NaN."""
    if is_nan(a) or is_nan(b):
        return b if is_nan(a) else a
    return min((a, b), key=lambda x: (x, not negative(x)))


def larger(a: Number, b: Number) -> Number:
    return negate(smaller(negate(a), negate(b)))


def compared(unordered: bool, compare: Callable[[Number, Number], bool]) -> Callable[[Number, Number], bool]:
    """A comparison that is this with a NaN."""
    return lambda a, b: unordered if is_nan(a) or is_nan(b) else compare(a, b)


def to_integer(x: Number, rounding: str, width: int, is_signed: bool, from_width: int) -> int:
    """Held to the range; a NaN gives 0, or the top bit where a side has 64 bits. Never negative: the bits."""
    mask = (1 << width) - 1
    if is_nan(x):
        return 1 << (width - 1) if 64 in (width, from_width) else 0
    low, high = (-(1 << (width - 1)), (1 << (width - 1)) - 1) if is_signed else (0, mask)
    if not finite(x):
        return (low if negative(x) else high) & mask
    return min(max(integer(Fraction(x), rounding), low), high) & mask


def whole(x: Number, rounding: str) -> Number:
    """Rounded to an integer that is a number of the same format and keeps its sign."""
    return signed(Fraction(integer(Fraction(x), rounding)), negative(x)) if finite(x) else x
