"""What a measurement depends on, as a short digest: the compiler, its options, and the code without its comments."""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[2]
_STRING = r'"(?:\\.|[^"\\\n])*"'
_STRING_OR_COMMENT = {
    True: re.compile(rf'("""(?:.|\n)*?"""|{_STRING}|' + r"'(?:\\.|[^'\\\n])*')|#[^\n]*"),  # of Python
    False: re.compile(rf"({_STRING})|//[^\n]*|/\*(?:.|\n)*?\*/"),  # of C++
}


def code(source: Path) -> str:
    """The file without comments, blank lines and spaces at the ends of lines, which change no kernel."""
    return _without_comments(source.read_text(), source.suffix == ".py")


@functools.cache
def _without_comments(text: str, python: bool) -> str:
    text = _STRING_OR_COMMENT[python].sub(lambda found: found[1] or "", text)
    return "\n".join(filter(None, (line.rstrip() for line in text.splitlines())))


def digest(settings: Iterable[str], sources: Iterable[Path]) -> str:
    """Of a compiler's version and options and of the files that it reads."""
    parts = [*settings, *(f"{path.name}\n{code(path)}" for path in sorted(sources))]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
