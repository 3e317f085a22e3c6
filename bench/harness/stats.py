"""Medians with 20/80 quantiles, and the ratio of two interleaved series."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass


def quantile(values: Sequence[float], q: float) -> float:
    """The q-quantile (0 <= q <= 1) with linear interpolation between order statistics."""
    ordered = sorted(values)
    at = q * (len(ordered) - 1)
    low = int(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (at - low) * (ordered[high] - ordered[low])


@dataclass(frozen=True)
class Summary:
    """A series by its median, its 20 and 80 per cent quantiles and its length."""

    median: float
    q20: float
    q80: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Summary:
        if not values:
            raise ValueError("values is empty, expected at least one measurement")
        return cls(quantile(values, 0.5), quantile(values, 0.2), quantile(values, 0.8), len(values))

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Summary:
    """How many times longer `theirs` takes: the median of the rounds' ratios, with their spread.

    Rounds are interleaved, so a drift of the machine's speed hits both sides of a round and leaves its ratio.
    """
    if len(ours) != len(theirs):
        raise ValueError(f"theirs has {len(theirs)} rounds, expected {len(ours)} as in ours")
    return Summary.of([b / a for a, b in zip(ours, theirs, strict=True)])


FASTER, SLOWER, NO_DIFFERENCE = "faster", "SLOWER", "no difference"

#: A ratio this near to 1 is none: two processes of one program differ as much by where their memory lies.
LEAST = 0.02


def verdict(launches: Sequence[Summary]) -> str:
    """What several launches of two programs say: a difference is one where all of them agree, beyond their spreads.

    Within a launch rounds are alike in what the launch got by chance (its memory's place, a neighbour on its core), so
    that one launch's spread says too little of its error.
    """
    if all(launch.q20 > 1 + LEAST for launch in launches):
        return FASTER
    if all(launch.q80 < 1 / (1 + LEAST) for launch in launches):
        return SLOWER
    return NO_DIFFERENCE
