"""What proofs have found, on record for all processes: a folder for each build on each GPU, a file for each verdict."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch

try:
    import fcntl
except ImportError:  # not on POSIX: there are no marks, and each process proves for itself
    fcntl = None  # type: ignore[assignment]


class Unit(NamedTuple):
    """What is proven by itself: the kernels of an op's directory in one backend, for one precision, on one device."""

    family: str
    backend: str
    precision: str
    device: torch.device

    @property
    def name(self) -> str:
        return f"{self.family}-{self.backend}-{self.precision}"

    def __str__(self) -> str:
        return f"the {self.backend} kernels of {self.family} for {self.precision}"


class Verdict(NamedTuple):
    """``error``: the largest, relative, None if there is no number; ``seconds``: of the whole proof.

    ``said``: what failed, "" if nothing did.
    """

    passed: bool
    said: str
    error: float | None
    seconds: float
    gpu: str
    date: str


class Ledger:
    """Reads and writes verdicts below a folder; where that cannot be, holds none: each process proves for itself.

    ``place`` is what a verdict depends on beside the unit itself: it names the folder, and stands in it.
    """

    def __init__(self, root: Path | None, place: Mapping[str, str | None]) -> None:
        self.folder: Path | None = None
        if root is None:
            return
        text = json.dumps(place, indent=1, sort_keys=True)
        folder = root / hashlib.sha256(text.encode()).hexdigest()[:16]
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            if not (folder / "place.json").exists():
                write_at_once(folder / "place.json", text)
            self.folder = folder

    def read(self, name: str) -> Verdict | None:
        if self.folder is None:
            return None
        try:
            return Verdict(**json.loads((self.folder / f"{name}.json").read_text()))
        except (OSError, ValueError, TypeError):  # none, or not one of ours
            return None

    def write(self, name: str, verdict: Verdict) -> None:
        if self.folder is not None:
            with contextlib.suppress(OSError):
                write_at_once(self.folder / f"{name}.json", json.dumps(verdict._asdict(), indent=1))

    def forget(self, name: str) -> None:
        """The verdict, and the mark of a process that was killed."""
        if self.folder is not None:
            with contextlib.suppress(OSError):
                (self.folder / f"{name}.json").unlink(missing_ok=True)
                (self.folder / f"{name}.mark").write_text("")

    @contextlib.contextmanager
    def turn(self, name: str) -> Iterator[str]:
        """Waits for other processes that prove the same, then leaves a mark until the end of the ``with`` block.

        Gives the mark of a process that did not come to that end, "" if there is none.
        """
        mark, left = self._open_mark(name), ""
        if mark is not None:
            left = os.pread(mark, 1000, 0).decode(errors="replace")
            _set(mark, f"process {os.getpid()}")
        try:
            yield left
        finally:
            if mark is not None:
                _set(mark, "")
                with contextlib.suppress(OSError):
                    os.close(mark)

    def _open_mark(self, name: str) -> int | None:
        """Locked; None where marks cannot be, so that each process proves for itself."""
        if self.folder is None or fcntl is None:
            return None
        try:
            mark = os.open(self.folder / f"{name}.mark", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError:
            return None
        try:
            fcntl.lockf(mark, fcntl.LOCK_EX)  # the system frees it when the process ends
        except OSError:
            os.close(mark)
            return None
        return mark


def _set(mark: int, text: str) -> None:
    """What cannot be written, on a disk that is full, is not missed: a mark is for processes that are killed."""
    with contextlib.suppress(OSError):
        os.ftruncate(mark, 0)
        os.pwrite(mark, text.encode(), 0)
        os.fsync(mark)


def write_at_once(path: Path, text: str) -> None:
    """All of it or nothing, for whoever reads meanwhile."""
    handle, temporary = tempfile.mkstemp(dir=path.parent)
    try:
        with os.fdopen(handle, "w") as file:
            file.write(text)
        Path(temporary).replace(path)
    except OSError:
        Path(temporary).unlink(missing_ok=True)
        raise


def standard_root() -> Path | None:
    """The user's cache folder; None where there is no home."""
    cache = os.environ.get("XDG_CACHE_HOME")
    try:
        root = Path(cache) if cache else Path.home() / ".cache"
    except RuntimeError:
        return None
    return root / "sequence_kernels" / "proofs"
