"""Ways to change one instruction of PTX so that it still is PTX."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from random import Random
from typing import NamedTuple

STATEMENT = re.compile(r"^(?P<indent>\s*)(?P<guard>@!?%p\d+\s+)?(?P<opcode>[a-z][\w.:]*)(?P<rest>[^;]*);")
REGISTER = re.compile(r"%[a-z]+\d+")
#: Have index and divisor any bits above 32, and the jump by that: up to the line in question.
DIVISION = re.compile(
    r"and\.b64\s+(%rd\d+), %rd\d+, -4294967296;(\s*setp\.\w+\.s64\s+(%p\d+), \1, 0;(\s*@!?\3 bra[^;]*;)?)?$"
)

#: An opcode's beginning, and what it becomes.
OPERATORS = {
    "add.": "sub.",
    "sub.": "add.",
    "min.": "max.",
    "max.": "min.",
    "and.b": "or.b",
    "or.b": "and.b",
    "xor.b": "or.b",
    "div.s": "rem.s",
    "rem.s": "div.s",
    "div.u": "rem.u",
    "rem.u": "div.u",
    "shl.b": "shr.u",
    "shr.u": "shl.b",
    "setp.lt.": "setp.le.",
    "setp.le.": "setp.lt.",
    "setp.gt.": "setp.ge.",
    "setp.ge.": "setp.gt.",
    "setp.eq.": "setp.ne.",
    "setp.ne.": "setp.eq.",
    "neg.": "abs.",
    "cvt.rni.": "cvt.rzi.",
}


class Statement(NamedTuple):
    """A line of PTX taken apart."""

    indent: str
    guard: str
    opcode: str
    rest: str

    def __str__(self) -> str:
        return f"{self.indent}{self.guard}{self.opcode}{self.rest};"


def statement(line: str) -> Statement | None:
    found = STATEMENT.match(line)
    return (
        Statement(*(found[name] or "" for name in ("indent", "guard", "opcode", "rest"))) if found else None
    )


def _operator(s: Statement, near: Sequence[str], random: Random) -> Statement | None:
    for begin, other in OPERATORS.items():
        if s.opcode.startswith(begin):
            return s._replace(opcode=other + s.opcode[len(begin) :])
    return None


def _register(s: Statement, near: Sequence[str], random: Random) -> Statement | None:
    """A source is another register of its kind that is used nearby."""
    sources = [m for m in REGISTER.finditer(s.rest) if "," in s.rest[: m.start()] or s.opcode[:2] == "st"]
    if not sources:
        return None
    chosen = random.choice(sources)
    kind = chosen[0].rstrip("0123456789")
    others = {m[0] for line in near for m in REGISTER.finditer(line) if m[0].rstrip("0123456789") == kind}
    others -= {chosen[0]}
    if not others:
        return None
    return s._replace(rest=s.rest[: chosen.start()] + random.choice(sorted(others)) + s.rest[chosen.end() :])


def _immediate(s: Statement, near: Sequence[str], random: Random) -> Statement | None:
    if s.opcode.startswith(("bar", "bra", "ld.param", "cp", "shfl")):
        return None
    found = re.search(r"([,+]\s*)(-?\d+)\b(?!\w)|0([fd])([0-9A-F]{8,16})", s.rest)
    if not found:
        return None
    if found[2] is not None:
        step = 1 if "[" not in s.rest else 4
        changed = f"{found[1]}{int(found[2]) + step}"
    else:  # a number a quarter or so larger or smaller, or one instead of zero
        one, quarter = (0x3F800000, 1 << 21) if found[3] == "f" else (0x3FF0000000000000, 1 << 50)
        bits = int(found[4], 16)
        changed = f"0{found[3]}{bits ^ quarter if bits else one:0{len(found[4])}X}"
    return s._replace(rest=s.rest[: found.start()] + changed + s.rest[found.end() :])


def _predicate(s: Statement, near: Sequence[str], random: Random) -> Statement | None:
    if not s.guard:
        return None
    return s._replace(guard=s.guard.replace("@!", "@") if "!" in s.guard else s.guard.replace("@", "@!"))


def _removal(s: Statement, near: Sequence[str], random: Random) -> Statement | None:
    """A barrier, a wait or a store, which becomes a jump over nothing."""
    if not s.opcode.startswith(("bar.", "cp.async.wait", "st.global", "st.shared")) or s.guard:
        return None
    return Statement(s.indent, "", "mov.u32", " %removed, 0")


KINDS: dict[str, Callable[[Statement, Sequence[str], Random], Statement | None]] = {
    "operator": _operator,
    "register": _register,
    "immediate": _immediate,
    "predicate": _predicate,
    "removal": _removal,
}


def chooses_division(lines: Sequence[str], line: int) -> bool:
    """Does a line (from 1) only choose between a division of 64 bits and one of 32, which have the same result?"""
    code = [each for each in lines[max(0, line - 8) : line] if STATEMENT.match(each)]
    return bool(STATEMENT.match(lines[line - 1])) and DIVISION.search("\n".join(code)) is not None


def changed(lines: Sequence[str], line: int, kind: str, random: Random) -> list[str] | None:
    """The lines with a change of that kind in one (from 1), if there is one that could make a difference."""
    found = statement(lines[line - 1])
    if not found or chooses_division(lines, line):
        return None
    other = KINDS[kind](found, lines[max(0, line - 12) : line + 4], random)
    if other is None or other == found:
        return None
    made = [*lines[: line - 1], str(other), *lines[line:]]
    if kind == "removal":
        at = max(i for i, each in enumerate(made[:line]) if each.lstrip().startswith(".reg"))
        made[at] += "  .reg .b32 %removed;"
    return made
