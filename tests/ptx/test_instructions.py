"""Each instruction alone, on numbers where implementations go wrong, against Python's integers and fractions."""

from __future__ import annotations

import itertools
import math
import operator
import random
import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import pytest

from . import numbers
from .file import File, known
from .machine import emulator
from .numbers import BF16, F16, F32, F64, TF32, Format

pytestmark = pytest.mark.skipif(emulator.skip_reason() is not None, reason=str(emulator.skip_reason()))

_FORMATS = {"f32": F32, "f64": F64, "f16": F16, "bf16": BF16, "tf32": TF32}


class Type(NamedTuple):
    """How the bits of a register are read: "s32", "f64", "b16", "pred"."""

    name: str

    @property
    def width(self) -> int:
        return (
            1
            if self.name == "pred"
            else int(re.sub(r"\D+", "", self.name.replace("bf", "").replace("tf", "")))
        )

    @property
    def format(self) -> Format | None:
        return _FORMATS.get(self.name)

    def read(self, bits: int) -> Any:
        if self.format:
            return numbers.number(bits, self.format)
        return bits - (1 << self.width) if self.name[0] == "s" and bits >> (self.width - 1) else bits

    def write(self, value: Any) -> int | None:
        if value is None:  # of the bits of a NaN
            return None
        return numbers.bits(value, self.format) if self.format else int(value) & ((1 << self.width) - 1)

    def samples(self, random: random.Random) -> list[int]:
        """Bits: the ends of the range and what lies next to them, and random ones."""
        ones = (1 << self.width) - 1
        if not self.format:
            edges = {
                0,
                1,
                2,
                3,
                7,
                31,
                32,
                33,
                63,
                64,
                65,
                ones,
                ones - 1,
                ones >> 1,
                (ones >> 1) + 1,
                255,
                256,
            }
            return [e & ones for e in edges] + [
                random.getrandbits(self.width) >> random.randrange(self.width) for _ in range(20)
            ]
        f = self.format
        wanted = [
            0.0,
            1.0,
            0.5,
            1.5,
            2.5,
            3.5,
            2.0**31,
            2.0**32,
            2.0**63,
            2.0**64,
            2.0**31 - 1,
            0.1,
            1e10,
            1e-40,
            2.0**-126,
            1e38,
        ]
        found = {numbers.bits(Fraction(x), f) for x in wanted}
        infinity = numbers.bits(math.inf, f)
        assert infinity is not None
        found |= {
            1,
            infinity,
            infinity - 1,
            infinity + 1,
            numbers.bits(Fraction(1), f) + 1,
            1 << f.mantissa,
            (1 << f.mantissa) - 1,
        }
        close = [
            random.getrandbits(f.mantissa) | (f.bias + random.randrange(-3, 40)) << f.mantissa
            for _ in range(12)
        ]
        with_sign = [b | s << (self.width - 1) for b in (*found, *close) for s in (0, 1)]
        return with_sign + [random.getrandbits(self.width) for _ in range(12)]


class Case(NamedTuple):
    """The operands' types, the first the result's, and the result from theirs; an error of so many last places."""

    types: tuple[Type, ...]
    result: Callable[..., Any]
    places: int = 0


def case(types: str, result: Callable[..., Any], places: int = 0) -> Case:
    return Case(tuple(Type(name) for name in types.split()), result, places)


def extract(a: int, position: int, length: int, width: int, is_signed: bool) -> int:
    position, length = position & 255, length & 255
    sign = is_signed and length and a >> min(position + length - 1, width - 1) & 1
    taken = [
        (a >> (position + i) & 1 if position + i < width else sign) if i < length else sign
        for i in range(width)
    ]
    return sum(int(bit) << i for i, bit in enumerate(taken))


def insert(a: int, b: int, position: int, length: int, width: int) -> int:
    position, length = position & 255, length & 255
    for i in range(length):
        if position + i < width:
            b = b & ~(1 << (position + i)) | (a >> i & 1) << (position + i)
    return b


def permute(a: int, b: int, selector: int) -> int:
    source = (b << 32 | a).to_bytes(8, "little")
    picked = [(source[s & 7], s & 8) for s in (selector >> 4 * i & 15 for i in range(4))]
    return int.from_bytes([(255 if byte & 128 else 0) if sign else byte for byte, sign in picked], "little")


def quotient(a: int, b: int) -> int:
    return -1 if b == 0 else abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def remainder(a: int, b: int) -> int:
    return a if b == 0 else a - b * quotient(a, b)


def flushed(x: Any) -> Any:
    return numbers.signed(Fraction(0), numbers.negative(x)) if abs(x) < Fraction(2) ** -126 else x


def power_of_two(x: Any) -> Any:
    if not numbers.finite(x):
        return Fraction(0) if x == -math.inf else x
    whole = math.floor(x)
    if not -200 < whole < 200:
        return math.inf if whole > 0 else Fraction(0)
    return Fraction(2.0 ** float(x - whole)) * Fraction(2) ** whole


def approximately_divided(a: Any, b: Any) -> Any:
    huge = numbers.finite(b) and abs(b) > Fraction(2) ** 126
    return (
        numbers.multiply(a, numbers.signed(Fraction(0), numbers.negative(b)))
        if huge
        else numbers.divide(a, b)
    )


COMPARISONS = {
    "eq": operator.eq,
    "ne": operator.ne,
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
}
ROUNDINGS = {"rni": "even", "rzi": "zero", "rmi": "down", "rpi": "up"}


def integers() -> dict[str, Case]:
    found = {}
    for name in ("s32", "u32", "s64", "u64"):
        three = f"{name} {name} {name}"
        found |= {
            f"add.{name}": case(three, operator.add),
            f"sub.{name}": case(three, operator.sub),
            f"mul.lo.{name}": case(three, operator.mul),
            f"mad.lo.{name}": case(f"{three} {name}", lambda a, b, c: a * b + c),
            f"div.{name}": case(three, quotient),
            f"rem.{name}": case(three, remainder),
            f"min.{name}": case(three, min),
            f"max.{name}": case(three, max),
        }
        if name[0] == "s":
            found |= {
                f"abs.{name}": case(f"{name} {name}", abs),
                f"neg.{name}": case(f"{name} {name}", operator.neg),
            }
    for name, double in (("s32", "s64"), ("u32", "u64"), ("u16", "u32")):
        found[f"mul.wide.{name}"] = case(f"{double} {name} {name}", operator.mul)
        found[f"mad.wide.{name}"] = case(f"{double} {name} {name} {double}", lambda a, b, c: a * b + c)
    found["add.s16"] = case("s16 s16 s16", operator.add)
    found["mul.hi.s64"] = case("s64 s64 s64", lambda a, b: a * b >> 64)
    return found


def reciprocal_of_upper_word(a: numbers.Number) -> numbers.Number:
    def upper(x: numbers.Number) -> numbers.Number:
        if numbers.is_nan(x) or not numbers.finite(x):
            return x
        pattern = numbers.bits(x, F64)
        assert pattern is not None
        x = numbers.number(pattern & ~0xFFFFFFFF, F64)
        subnormal = not pattern & 0x7FF << 52
        return numbers.signed(Fraction(0), numbers.negative(x)) if subnormal else x

    return upper(numbers.divide(Fraction(1), upper(a)))


def floats() -> dict[str, Case]:
    found = {}
    for name in ("f32", "f64"):
        two, three = f"{name} {name}", f"{name} {name} {name}"
        for rounding in ("", ".rn"):
            found |= {
                f"add{rounding}.{name}": case(three, numbers.add),
                f"sub{rounding}.{name}": case(three, lambda a, b: numbers.add(a, numbers.negate(b))),
                f"mul{rounding}.{name}": case(three, numbers.multiply),
            }
        found |= {
            f"fma.rn.{name}": case(f"{three} {name}", numbers.fused),
            f"div.rn.{name}": case(three, numbers.divide),
            f"rcp.rn.{name}": case(two, lambda a: numbers.divide(Fraction(1), a)),
            f"sqrt.rn.{name}": case(two, numbers.square_root),
            f"abs.{name}": case(two, lambda a: numbers.signed(a, False) if not numbers.is_nan(a) else a),
            f"neg.{name}": case(two, numbers.negate),
            f"min.{name}": case(three, numbers.smaller),
            f"max.{name}": case(three, numbers.larger),
        }
    found |= {
        "abs.ftz.f32": case(
            "f32 f32", lambda a: numbers.signed(flushed(a), False) if not numbers.is_nan(a) else a
        ),
        "ex2.approx.f32": case("f32 f32", power_of_two, places=2),
        "ex2.approx.ftz.f32": case("f32 f32", lambda a: flushed(power_of_two(flushed(a))), places=2),
        "rcp.approx.ftz.f64": case("f64 f64", reciprocal_of_upper_word),
        "div.full.f32": case("f32 f32 f32", numbers.divide, places=2),
        "div.approx.f32": case("f32 f32 f32", approximately_divided, places=2),
        "copysign.f32": case("b32 b32 b32", lambda a, b: a & 1 << 31 | b & ~(1 << 31)),
        "copysign.f64": case("b64 b64 b64", lambda a, b: a & 1 << 63 | b & ~(1 << 63)),
    }
    return found


def logic() -> dict[str, Case]:
    found = {
        "clz.b32": case("b32 b32", lambda a: 32 - a.bit_length()),
        "clz.b64": case("b32 b64", lambda a: 64 - a.bit_length()),
        "bfe.u32": case("b32 u32 u32 u32", lambda a, p, n: extract(a, p, n, 32, False)),
        "bfe.s32": case("b32 u32 u32 u32", lambda a, p, n: extract(a, p, n, 32, True)),
        "bfi.b32": case("b32 b32 b32 u32 u32", lambda a, b, p, n: insert(a, b, p, n, 32)),
        "bfi.b64": case("b64 b64 b64 u32 u32", lambda a, b, p, n: insert(a, b, p, n, 64)),
        "prmt.b32": case("b32 b32 b32 b32", permute),
        "mov.b32:pack2": case("b32 b16 b16", lambda a, b: a | b << 16),
        "mov.b64:pack2": case("b64 b32 b32", lambda a, b: a | b << 32),
        "mov.b64:pack4": case("b64 b16 b16 b16 b16", lambda a, b, c, d: a | b << 16 | c << 32 | d << 48),
    }
    bitwise = {"and": operator.and_, "or": operator.or_, "xor": operator.xor}
    for width in (16, 32, 64, "pred"):
        b = "pred" if width == "pred" else f"b{width}"
        found |= {f"{name}.{b}": case(f"{b} {b} {b}", f) for name, f in bitwise.items()}
        found[f"not.{b}"] = case(f"{b} {b}", operator.invert)
        found[f"mov.{b}"] = case(f"{b} {b}", lambda a: a)
        if width == "pred":
            continue
        found[f"shl.{b}"] = case(f"{b} {b} u32", lambda a, n: a << min(n, 64))
        for kind in "us":
            name = f"{kind}{width}"
            found[f"shr.{name}"] = case(f"{name} {name} u32", lambda a, n: a >> min(n, 64))
        for kind in "busf":
            found[f"mov.{kind}{width}"] = case(f"{b} {b}", lambda a: a)
            found[f"selp.{kind}{width}"] = case(f"{b} {b} {b} pred", lambda a, b, p: a if p else b)
    for name in ("s16", "u16", "s32", "u32", "s64", "u64", "b16", "b32", "b64", "f16", "bf16", "f32", "f64"):
        three = f"pred {name} {name}"
        for is_, compare in COMPARISONS.items():
            if name in _FORMATS or name[0] != "b" or is_ in ("eq", "ne"):
                found[f"setp.{is_}.{name}"] = case(three, numbers.compared(False, compare))
            if name in _FORMATS:
                found[f"setp.{is_}u.{name}"] = case(three, numbers.compared(True, compare))
        if name in _FORMATS:
            found[f"setp.num.{name}"] = case(three, numbers.compared(False, lambda a, b: True))
            found[f"setp.nan.{name}"] = case(three, numbers.compared(True, lambda a, b: False))
    return found


def conversions() -> dict[str, Case]:
    found = {
        "cvt.f64.f32": case("f64 f32", lambda a: a),
        "cvt.rn.f32.f64": case("f32 f64", lambda a: a),
        "cvt.rn.f16.f32": case("f16 f32", lambda a: a),
        "cvt.f32.f16": case("f32 f16", lambda a: a),
        "cvt.rn.bf16.f32": case("bf16 f32", lambda a: a),
        "cvt.f32.bf16": case("f32 bf16", lambda a: a),
        "cvt.rna.tf32.f32": case("b32 f32", lambda a: numbers.bits(a, TF32, "away")),
        "cvt.rn.f16x2.f32": case("b32 f32 f32", lambda *a: two(F16, *a)),
        "cvt.rn.bf16x2.f32": case("b32 f32 f32", lambda *a: two(BF16, *a)),
        "cvt.rmi.ftz.f32.f32": case("f32 f32", lambda a: numbers.whole(flushed(a), "down")),
        "cvt.s64.s32:low": case("s64 s64", lambda a: (a + (1 << 31)) % (1 << 32) - (1 << 31)),
        "cvta.to.global.u64": case("u64 u64", lambda a: a),
    }
    for name in ("s64.s32", "u64.u32", "u64.u16", "u32.u64", "u16.u32", "u16.u64", "u32.u16"):
        found[f"cvt.{name}"] = case(name.replace(".", " "), lambda a: a)
    for real, (suffix, rounding) in itertools.product(("f32", "f64"), ROUNDINGS.items()):
        found[f"cvt.{suffix}.{real}.{real}"] = case(
            f"{real} {real}", lambda a, r=rounding: numbers.whole(a, r)
        )
        for name in ("s32", "u32", "s64", "u64"):
            to = Type(name)
            settings = (rounding, to.width, name[0] == "s", Type(real).width)
            found[f"cvt.{suffix}.{name}.{real}"] = case(
                f"{name} {real}", lambda a, s=settings: numbers.to_integer(a, *s)
            )
            found[f"cvt.rn.{real}.{name}"] = case(f"{real} {name}", Fraction)
    return found


def two(each: Format, high: Any, low: Any) -> int | None:
    parts = numbers.bits(high, each), numbers.bits(low, each)
    return None if None in parts else parts[0] << 16 | parts[1]  # type: ignore[operator]


CASES = {**integers(), **floats(), **logic(), **conversions()}
#: Tested by kernels, in test_memory.py, test_machine.py and test_tensor_cores.py.
OTHERS = re.compile(r"(ld|st|cp|bar|bra|ret|shfl|redux|mma|ldmatrix|stmatrix|wgmma|fence)\b.*|mov.*:unpack\d")

REGISTERS = {1: "p", 16: "rs", 32: "r", 64: "rd"}


def kernel(name: str, types: tuple[Type, ...], full: bool) -> str:
    """Loads a thread's operands, executes the instruction, and stores the result; every operand takes 8 bytes."""
    widths = [t.width for t in types]
    lines, operands = [], []
    for k, width in enumerate(widths):
        register = f"%{REGISTERS[width]}{k + 10}"
        operands.append(register)
        if k > 0:
            read = f"%r{k + 10}" if width == 1 else register
            lines.append(
                f"ld.global.b{max(width, 32) if width == 1 else width} {read}, [%rd2+{8 * (k - 1)}];"
            )
            lines += [f"setp.ne.b32 {register}, {read}, 0;"] if width == 1 else []
    opcode, _, shape = name.partition(":")
    listed = f"{{{', '.join(operands[1:])}}}" if shape.startswith("pack") else ", ".join(operands[1:])
    guard = "" if full else "@%p9 "
    store = (
        (f"selp.b32 %r10, 1, 0, {operands[0]};", "%r10", 32)
        if widths[0] == 1
        else ("", operands[0], widths[0])
    )
    clear = (
        f"setp.ne.b32 {operands[0]}, %r1, %r1;" if widths[0] == 1 else f"mov.b{widths[0]} {operands[0]}, 77;"
    )
    return "\n".join(
        [
            ".version 8.0\n.target sm_80\n.address_size 64",
            ".visible .entry k(.param .u64 given, .param .u64 out) {",
            ".reg .pred %p<30>; .reg .b16 %rs<30>; .reg .b32 %r<30>; .reg .b64 %rd<30>;",
            "ld.param.u64 %rd1, [given]; ld.param.u64 %rd3, [out]; mov.u32 %r1, %tid.x;",
            f"mad.wide.u32 %rd2, %r1, {8 * (len(types) - 1)}, %rd1; mad.wide.u32 %rd3, %r1, 8, %rd3;",
            "and.b32 %r2, %r1, 3; setp.ne.u32 %p9, %r2, 1;",  # a thread in four does not take part
            *lines,
            clear,
            f"{guard}{opcode} {operands[0]}, {listed};",
            store[0],
            f"st.global.b{store[2]} [%rd3], {store[1]};",
            "ret;\n}",
        ]
    )


def run(text: str, given: np.ndarray, threads: int) -> np.ndarray:
    out = np.zeros(threads, dtype=np.uint64)
    params = np.array([given.ctypes.data, out.ctypes.data], dtype=np.uint64)
    File(text).run("k", params.ctypes.data, (1, 1, 1), (threads, 1, 1))
    return out


def given_to(types: tuple[Type, ...], threads: int) -> list[tuple[int, ...]]:
    generator = random.Random(0)
    samples = [t.samples(generator) for t in types]
    if math.prod(map(len, samples)) <= threads:
        every = itertools.cycle(itertools.product(*samples))
        return list(itertools.islice(every, threads))
    return [tuple(generator.choice(s) for s in samples) for _ in range(threads)]


@pytest.mark.parametrize("full", [True, False], ids=["all threads", "some threads"])
@pytest.mark.parametrize("name", CASES)
def test_instruction(name: str, full: bool) -> None:
    types, result, places = CASES[name]
    rows = given_to(types[1:], threads := 256 if full else 64)
    out = run(kernel(name, types, full), np.array(rows, dtype=np.uint64), threads)
    for thread, row in enumerate(rows):
        got = int(out[thread])
        if not full and thread % 4 == 1:
            assert got == (0 if types[0].width == 1 else 77)
            continue
        wanted = types[0].write(result(*(t.read(x) for t, x in zip(types[1:], row, strict=True))))
        expected = "NaN" if wanted is None else hex(wanted)
        message = f"{name} of {[hex(x) for x in row]}: got {got:#x}, expected {expected}"
        if wanted is None:
            assert types[0].format is None or numbers.is_nan(types[0].read(got)), message
        else:
            assert abs(got - wanted) <= places, message


def test_a_store_of_16_bits_takes_the_lowest_of_a_wider_register() -> None:
    types = (Type("b64"), Type("b64"))
    plain = kernel("mov.b64", types, True)
    store = "st.shared.b16 [at], %rd10; ld.shared.b16 %rs9, [at]; cvt.u64.u16 %rd10, %rs9;"
    text = plain.replace("st.global", f"{store}\nst.global").replace(
        ".reg .pred", ".shared .b16 at; .reg .pred"
    )
    given = np.array([0x123456789ABCDEF0], dtype=np.uint64)
    assert int(run(text, given, 1)[0]) == 0xDEF0


@pytest.mark.parametrize(
    ("through", "want"),
    [
        ("st.shared.b8 [at], %rs9; ld.shared.b8 %rs10, [at]; cvt.u64.u16 %rd10, %rs10;", 0xF0),
        ("st.shared.b16 [at], %rs9; ld.shared.b16 %r10, [at]; cvt.u64.u32 %rd10, %r10;", 0xDEF0),
    ],
)
def test_a_load_of_few_bits_clears_the_rest_of_a_register(through: str, want: int) -> None:
    text = kernel("mov.b64", (Type("b64"), Type("b64")), True).replace(
        "st.global", f"cvt.u16.u64 %rs9, %rd10; {through}\nst.global"
    )
    text = text.replace(".reg .pred", ".shared .b16 at; .reg .pred")
    given = np.array([0x123456789ABCDEF0], dtype=np.uint64)
    assert int(run(text, given, 1)[0]) == want


@pytest.mark.parametrize(("name", "parts"), [("mov.b32", 2), ("mov.b64", 2), ("mov.b64", 4)])
def test_a_register_is_taken_apart(name: str, parts: int) -> None:
    width = int(name[-2:])
    each = width // parts
    registers = [f"%{REGISTERS[each]}{20 + k}" for k in range(parts)]
    text = kernel("mov.b64", (Type("b64"), Type("b64")), True)
    whole = "%rd11" if width == 64 else "%r11"
    low = "" if width == 64 else "cvt.u32.u64 %r11, %rd11;"
    stores = " ".join(f"st.global.b{each} [%rd3+{k * each // 8}], {r};" for k, r in enumerate(registers))
    text = text.replace("mov.b64 %rd10, %rd11;", f"{low} {name} {{{', '.join(registers)}}}, {whole};")
    text = text.replace("st.global.b64 [%rd3], %rd10;", stores)
    given = np.array([random.Random(1).getrandbits(64) for _ in range(32)], dtype=np.uint64)
    out = run(text, given, 32)
    assert (out == (given if width == 64 else given & np.uint64(0xFFFFFFFF))).all()


def test_each_instruction_has_a_test() -> None:
    unknown = {name for name in known() if not OTHERS.fullmatch(name)} ^ set(CASES)
    assert unknown == set()


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        (
            "sin.approx.f32 %r3, %r1;",
            "k: PTX line 8: the interpreter does not know the instruction sin.approx.f32",
        ),
        ("mov.u32 %r3, %clock;", "k: PTX line 8: the interpreter does not know the special register %clock"),
        ("add.s64 %rd4, %rd1, %r1;", "k: PTX line 8: add.s64: a register of 32 bits where 64 are expected"),
        ("add.s32 %r3, %r1;", "k: PTX line 8: add.s32 has 2 operands, the interpreter expects 3"),
    ],
)
def test_what_is_not_known_is_an_error_that_names_it(statement: str, said: str) -> None:
    text = kernel("mov.b32", (Type("b32"), Type("b32")), True).replace("and.b32 %r2, %r1, 3;", statement)
    with pytest.raises(RuntimeError, match=re.escape(said)):
        run(text, np.zeros(1, dtype=np.uint64), 1)
