"""A progress bar with the time left; plain lines where standard error is no terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TextIO

WIDTH = 24


class Progress:
    """Call `begin(label)` at the start, `step(label)` when a piece of work begins, `close()` at the end."""

    def __init__(
        self, total: int, stream: TextIO | None = None, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._total, self._stream, self._now = total, stream or sys.stderr, now
        self._done, self._start = -1, now()

    def step(self, label: str) -> None:
        self._done += 1
        self._write(f"{bar(self._done, self._total)} {label}{self._left()}")

    def begin(self, label: str) -> None:
        """What comes before the first piece of work."""
        self._write(f"{bar(0, self._total)} {label}")

    def _write(self, line: str) -> None:
        if self._stream.isatty():
            self._stream.write(f"\r\x1b[K{line[:118]}")
        else:
            self._stream.write(line + "\n")
        self._stream.flush()

    def close(self) -> None:
        if self._stream.isatty():
            self._stream.write("\r\x1b[K")
            self._stream.flush()

    def _left(self) -> str:
        if self._done < 1:
            return ""
        left = (self._now() - self._start) / self._done * (self._total - self._done)
        return f", {clock(left)} left"


def bar(done: int, total: int) -> str:
    filled = WIDTH * done // max(total, 1)
    return f"[{'#' * filled}{'.' * (WIDTH - filled)}] {done}/{total}"


def clock(seconds: float) -> str:
    """Minutes and seconds, as 1:05."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
