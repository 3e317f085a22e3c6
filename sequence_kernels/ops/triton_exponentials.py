"""Exponentials in Triton kernels, and what is made of them, in float32 or float64: within 3 units in the last place.

By series in the arguments' own dtype: what ``tl.exp`` becomes is exact for small arguments only.
"""

from __future__ import annotations

import triton
import triton.language as tl

_LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _parts(x):
    """scale and m with e^x = scale (1 + m); scale a power of two, |m| < 0.42. Beyond x's range, its ends."""
    wide: tl.constexpr = x.dtype == tl.float64
    terms: tl.constexpr = 14 if wide else 8
    high: tl.constexpr = (
        6.93147180369123816490e-01 if wide else 0.693145751953125
    )  # log 2, whose multiples are exact
    low: tl.constexpr = 1.90821492927058770002e-10 if wide else 1.42860677e-6
    most: tl.constexpr = 709.0 if wide else 88.0
    x = tl.where(x < -most, -most, tl.where(x > most, most, x))  # NaN stays
    n = tl.floor(x * _LOG2_E + 0.5)
    r = x - n * high - n * low
    series = r * 0 + 1
    for i in tl.static_range(terms - 1):
        series = series * (r * (1.0 / (terms - i))) + 1
    return tl.exp2(n), r * series


@triton.jit
def exponential(x):
    """0 or infinite where e^x would be beyond normal numbers, or close to that."""
    most: tl.constexpr = 709.0 if x.dtype == tl.float64 else 88.0
    scale, m = _parts(x)
    return tl.where(x > most, float("inf"), tl.where(x < -most, 0.0, scale + scale * m))


@triton.jit
def exponential_minus_one(x):
    """With all its digits where x is small; its ends as those of ``exponential``."""
    most: tl.constexpr = 709.0 if x.dtype == tl.float64 else 88.0
    scale, m = _parts(x)
    return tl.where(x > most, float("inf"), scale * m + (scale - 1))


@triton.jit
def logistic(x):
    """1 / (1 + e^-x)"""
    e = exponential(tl.where(x < 0, x, -x))
    return tl.where(x < 0, e, 1.0) / (1 + e)


@triton.jit
def softplus(x):
    """log(1 + e^x), and x itself above 20, as torch's: max(x, 0) + 2 atanh(t / (2 + t)) with t = e^-|x|."""
    terms: tl.constexpr = 17 if x.dtype == tl.float64 else 8
    t = exponential(tl.where(x < 0, x, -x))
    s = t / (2 + t)
    square = s * s
    series = square * 0 + 1.0 / (2 * terms + 1)
    for i in tl.static_range(terms):
        series = series * square + 1.0 / (2 * (terms - 1 - i) + 1)
    return tl.where(x > 20, x, tl.where(x < 0, 0.0, x) + 2 * s * series)


@triton.jit
def time_step(x, SOFTPLUS: tl.constexpr, LEAST: tl.constexpr, MOST: tl.constexpr):
    """dt of x = delta + bias: ``clamp(softplus(x), LEAST, MOST)``. NaN stays."""
    if SOFTPLUS:
        x = softplus(x)
    x = tl.where(x < LEAST, tl.full(x.shape, LEAST, x.dtype), x)
    return tl.where(x > MOST, tl.full(x.shape, MOST, x.dtype), x)
