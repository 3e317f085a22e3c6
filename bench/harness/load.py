"""What other programs took of the cores while something was measured."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

Result = TypeVar("Result")

_STAT = Path("/proc/stat")


def foreign_share(work: Callable[[], Result], processes: Sequence[int] = ()) -> tuple[Result, float]:
    """What `work` returns, and the share of all cores' time that others than this and these processes used meanwhile.

    NaN where Linux does not say.
    """
    start, mine, busy = time.perf_counter(), _own(processes), _busy()
    result = work()
    foreign = _busy() - busy - (_own(processes) - mine)
    return result, max(0.0, foreign / ((time.perf_counter() - start) * (os.cpu_count() or 1)))


def _own(processes: Sequence[int]) -> float:
    """Processor seconds of this process and of those."""
    return time.process_time() + sum(map(_used, processes))


def _used(process: int) -> float:
    """Processor seconds of another process; NaN where Linux does not say, or it has ended."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return math.nan
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _busy() -> float:
    """Seconds that all cores together spent working since the system started; NaN where Linux does not say."""
    if not _STAT.exists():
        return math.nan
    user, nice, system, _, _, irq, softirq, *_ = map(int, _STAT.read_text().splitlines()[0].split()[1:])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")
