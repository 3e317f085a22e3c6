"""Sequences as callers have them, brought to what a module's ``forward`` and ``step`` take.

A call says which elements belong together by

- ``attention_mask`` (batch, length): the real elements of each row, one run of them, wherever it begins;
- ``reset`` (batch, length): where a new sequence begins within a row, before that element; of ``step``, (batch);
- ``cu_seqlens`` (sequences + 1): where sequences begin and end that lie one behind the other in a single row;
- ``states_at``: positions whose states are wanted;
- ``rate`` (batch), of ``forward`` and ``step``: a sampling step for each row.

A module whose ``forward`` names such a keyword sees to it itself. For all others this does: a mask becomes ``lengths``
of rows that are turned; resets become ``cu_seqlens`` of the rows one behind the other; packed sequences become rows of
their own, padded, with ``lengths``; the states at positions are those after the parts between them; and rows that are
sampled differently are calls of their own, which ``torch.vmap`` makes one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..awaited import Awaited, Pieces, unsplit
from ..ops import checks, packing
from ..ops.packing import packed, unpacked
from ..trees import mapped, tensors_of, with_tensors

#: The keywords, in the order in which they are seen to.
WORDS = ("states_at", "attention_mask", "reset", "cu_seqlens")

Call = Callable[..., tuple[Tensor, Any]]


class Axes(NamedTuple):
    """Where time is in what ``forward`` takes and gives, from the right, and how many axes x has behind the batch's."""

    x: int
    y: int
    behind: int = 2

    @staticmethod
    def of(module: Any) -> Axes:
        if not hasattr(module, "channels_first"):  # it takes tokens
            return Axes(-1, -2, 1)
        return Axes(-1, -1) if module.channels_first else Axes(-2, -2)

    def batch_shape(self, x: Tensor) -> torch.Size:
        return x.shape[: x.dim() - self.behind]


def resolve(module: Any, call: Call, taken: frozenset[str] | None, given: dict[str, Any]) -> Any:
    """What ``forward`` gives for such keywords.

    Args:
        call: ``forward`` of the module with ``(x, state, **keywords)``, which comes here again.
        taken: the names that it takes; None for any, and then also ``cu_seqlens``.
        given: all arguments by name; x as "x".
    """
    if has_rates(given):
        return at_rates(module, call, given, Axes.of(module).batch_shape(given["x"]))
    x, state = given.pop("x"), given.pop("state", None)
    words = {name: given.pop(name) for name in WORDS if given.get(name) is not None}
    if words and isinstance(given.get("rate"), Tensor) and given["rate"].dim() > 0:
        raise ValueError(f"rate for each element cannot be given together with {', '.join(words)}")
    rest = {name: value for name, value in given.items() if name not in WORDS}
    refuse_together(words | rest)
    by_itself = getattr(module, "pointwise", False)
    if "states_at" in words:
        return _with_states_at(module, call, x, state, words.pop("states_at"), words | rest)
    if "attention_mask" in words:
        counts = taken is None or "lengths" in taken
        return _turned(module, call, x, state, words.pop("attention_mask"), words | rest, counts=counts)
    if "reset" in words and not by_itself:
        return _cut_at_resets(module, call, x, state, words["reset"], rest)
    if "cu_seqlens" not in words:
        return call(x, state, **rest)
    bounds = bounds_of(words["cu_seqlens"], x, Axes.of(module))
    if by_itself:
        return call(x, state, **rest)
    if taken is not None and "lengths" not in taken:
        return one_by_one(module, call, x, state, bounds, rest)
    return as_rows(module, call, x, state, bounds, rest)


def has_rates(given: dict[str, Any]) -> bool:
    """Whether there is a sampling step for each row."""
    rate = given.get("rate")
    return isinstance(rate, Tensor) and rate.dim() == 1


def at_rates(module: Any, call: Call, given: dict[str, Any], batch_shape: torch.Size) -> tuple[Tensor, Any]:
    """Each row with a system of its own: heads times rows make one call of a kernel."""
    rate, x, state = given.pop("rate"), given.pop("x"), given.pop("state", None)
    checks.tensors(x=x, rate=rate)
    if len(batch_shape) != 1 or rate.shape != batch_shape or not rate.is_floating_point():
        raise ValueError(
            f"rate must be one real number, or one for each row, shape {tuple(batch_shape)}, got "
            f"{checks.describe(rate)}"
        )
    if rate.device.type == "cpu" and not torch.compiler.is_compiling() and not bool((rate > 0).all()):
        raise ValueError(f"rate must be above 0 and finite, got {rate.tolist()}")
    by_row = {name: value for name, value in given.items() if value is not None}
    for name in by_row:
        if name != "lengths":
            raise ValueError(f"rate for each row cannot be given together with {name}")
    if "lengths" in by_row:
        by_row["lengths"] = torch.as_tensor(by_row["lengths"], device=x.device).expand(batch_shape)

    structure = [state]

    def one(x: Tensor, rate: Tensor, by_row: dict[str, Tensor], *leaves: Tensor) -> tuple[Tensor, ...]:
        own = with_tensors(state, (leaf.unsqueeze(0) for leaf in leaves))
        y, structure[0] = call(x.unsqueeze(0), own, rate=rate, **by_row)
        return y.squeeze(0), *(leaf.squeeze(0) for leaf in tensors_of(structure[0]))

    in_dims = (0, 0, 0 if by_row else None, *(0 for _ in tensors_of(state)))
    y, *after = torch.vmap(one, in_dims, randomness="different")(x, rate, by_row, *tensors_of(state))
    return y, with_tensors(structure[0], iter(after))


def refuse_together(given: dict[str, Any]) -> None:
    """Raise ValueError where elements are said to belong together in two ways that do not go together."""
    said = {name for name, value in given.items() if value is not None}
    for one, others in (
        ("cu_seqlens", ("lengths", "reset", "attention_mask", "states_at")),
        ("attention_mask", ("lengths", "states_at")),
    ):
        for other in others:
            if one in said and other in said:
                raise ValueError(f"{one} cannot be given together with {other}")


def bounds_of(cu_seqlens: Any, x: Tensor, axes: Axes) -> Tensor:
    """``cu_seqlens`` as int64 on the device of x, which is one row of all sequences; its last is the row's length.

    Raises ValueError or TypeError where they do not fit.
    """
    bounds = torch.as_tensor(cu_seqlens, device=x.device)
    if axes.batch_shape(x) != (1,):
        raise ValueError(
            f"x must be one row of all sequences, (1, elements, ...), with cu_seqlens, got {tuple(x.shape)}"
        )
    packing.check_cu_seqlens(bounds, x.shape[axes.x])
    return bounds.to(torch.int64)


def bounds_after(module: Any, bounds: Tensor) -> Tensor:
    """Where sequences begin and end after a module that changes their lengths."""
    lengths = bounds.diff()
    left = torch.as_tensor(module.lengths(lengths), device=bounds.device)
    return bounds if left is lengths else torch.cat((bounds[:1], left.cumsum(0)))


def as_rows(
    module: Any, call: Call, x: Tensor, state: Any, bounds: Tensor, rest: dict[str, Any]
) -> tuple[Tensor, Any]:
    """Packed sequences as rows with ``lengths``, as long as the longest."""
    if state is not None and hasattr(module, "stride"):
        raise ValueError(
            "cu_seqlens cannot be given together with a state: the windows of a pool fill up at different times"
        )
    if rest.get("skip") is not None:
        raise ValueError(
            "cu_seqlens cannot be given together with a skip, which would have to be cut likewise"
        )
    axes = Axes.of(module)
    rows, lengths = unpacked(x, bounds, axes.x)
    y, after = call(rows, state, lengths=lengths, **rest)
    left = module.lengths(lengths) if hasattr(module, "lengths") else lengths
    return packed(y, torch.as_tensor(left, device=y.device), axes.y), after


def one_by_one(
    module: Any, call: Call, x: Tensor, state: Any, bounds: Tensor, rest: dict[str, Any]
) -> tuple[Tensor, Any]:
    """Each of the packed sequences by itself, for what depends on the length of a call."""
    axes, outputs, states = Axes.of(module), [], []
    for i, (begin, end) in enumerate(pairwise(bounds.tolist())):
        own = None if state is None else mapped(lambda part, i=i: part[i : i + 1], state)
        y, after = call(x.narrow(axes.x, begin, end - begin), own, **rest)
        outputs.append(y)
        states.append(after)
    y = torch.cat(outputs, axes.y)
    return y, None if state is None else mapped(lambda *parts: torch.cat(parts), *states)


def _turned(
    module: Any, call: Call, x: Tensor, state: Any, mask: Any, rest: dict[str, Any], *, counts: bool
) -> tuple[Tensor, Any]:
    """Rows whose real elements come first, and are so many; what comes out is turned back.

    Where a module does not take ``lengths``, not ``counts``, the real elements go through it packed.
    """
    axes = Axes.of(module)
    length = x.shape[axes.x]
    real = _of_rows("attention_mask", mask, x, axes) != 0
    count = real.sum(-1)
    begin = real.int().argmax(-1) if length else count
    place = torch.arange(length, device=x.device)
    if x.device.type == "cpu" and not torch.compiler.is_compiling():
        run = (place >= begin.unsqueeze(-1)) & (place < (begin + count).unsqueeze(-1))
        if not torch.equal(run, real):
            row = int((run != real).flatten(0, -2).any(-1).nonzero()[0])
            raise ValueError(
                f"attention_mask must have one run of real elements a row, but row {row} has gaps between them"
            )
    if "reset" in rest:
        rest["reset"] = _moved(torch.as_tensor(rest["reset"], device=x.device), begin, -1)
    turned, counted = _moved(x, begin, axes.x), count.flatten()
    if counts:
        y, after = call(turned, state, lengths=counted, **rest)
    else:
        bounds = torch.cat((counted.new_zeros(1), counted.cumsum(0)))
        y, after = call(packed(turned, counted, axes.x), state, cu_seqlens=bounds, **rest)
        short, _ = unpacked(y, bounds, axes.y)
        missing = list(short.shape)
        missing[axes.y] = length - short.shape[axes.y]
        y = torch.cat((short, short.new_zeros(missing)), axes.y)
    return (_moved(y, -begin, axes.y) if y.shape[axes.y] == length else y), after


def _moved(x: Tensor, begin: Tensor, axis: int) -> Tensor:
    """Each row ``begin`` elements to the left, round and round."""
    length = x.shape[axis]
    if length == 0:
        return x
    index = (torch.arange(length, device=x.device) + begin.unsqueeze(-1)) % length
    if x.dim() > index.dim():
        index = index.unsqueeze(-2 if axis == -1 else -1)
    return x.gather(axis, index.expand_as(x))


def _of_rows(name: str, value: Any, x: Tensor, axes: Axes) -> Tensor:
    """A tensor of one number for each element of x, ``(*batch_shape, length)``."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
    checks.tensors(x=x, **{name: value})
    sizes = [("batch", size) for size in axes.batch_shape(x)]
    checks.shape(name, value, [*sizes, ("length", x.shape[axes.x])])
    return value


class _Pieces(NamedTuple):
    """Rows one behind the other, cut where a sequence begins and behind what is real."""

    bounds: Tensor
    first: Tensor  # (B,): the piece with which each row begins, maybe empty
    final: Tensor  # (B,): and the one with which what is real of it ends

    @staticmethod
    def of(reset: Tensor, lengths: Tensor) -> _Pieces:
        rows, length = reset.shape
        inside = torch.arange(length, device=reset.device) < lengths.unsqueeze(-1)
        row, at = (reset & inside).nonzero(as_tuple=True)
        every = torch.arange(rows, device=reset.device)
        rows_of = torch.cat((every, row, every))
        places = torch.cat((torch.zeros_like(every), at, lengths))
        kinds = torch.cat((torch.zeros_like(every), torch.ones_like(at), torch.full_like(every, 2)))
        order = ((rows_of * (length + 1) + places) * 3 + kinds).argsort()
        cuts = (rows_of * length + places)[order]
        kind = kinds[order]
        bounds = torch.cat((cuts, cuts.new_tensor([rows * length])))
        return _Pieces(bounds, (kind == 0).nonzero().squeeze(-1), (kind == 2).nonzero().squeeze(-1) - 1)


def _cut_at_resets(
    module: Any, call: Call, x: Tensor, state: Any, reset: Any, rest: dict[str, Any]
) -> tuple[Tensor, Any]:
    """The rows one behind the other as packed sequences, of which each row's first goes on from its state."""
    axes = Axes.of(module)
    if any(getattr(part, "stride", 1) != 1 for part in module.modules() if hasattr(part, "lengths")):
        raise ValueError(
            "reset cannot be given where a pool changes the length: a window would span two sequences"
        )
    flags = _of_rows("reset", reset, x, axes) != 0
    batch_shape, length = flags.shape[:-1], flags.shape[-1]
    batch = math.prod(batch_shape)
    lengths = rest.pop("lengths", None)
    lengths = torch.as_tensor(length if lengths is None else lengths, device=x.device).expand(batch)
    checks.lengths("lengths", lengths, length)
    pieces = _Pieces.of(flags.reshape(batch, length), lengths.to(torch.int64))
    row = x.movedim(axes.x, len(batch_shape))
    row = row.reshape(1, batch * length, *row.shape[len(batch_shape) + 1 :]).movedim(1, axes.x)
    started = None
    if state is not None:
        flat = mapped(lambda part: part.reshape(batch, *part.shape[len(batch_shape) :]), state)
        started = module.spread_state(flat, pieces.first, len(pieces.bounds) - 1)
    y, after = call(row, started, cu_seqlens=pieces.bounds, **rest)
    y = y.movedim(axes.y, 1)
    y = y.reshape(*batch_shape, length, *y.shape[2:]).movedim(len(batch_shape), axes.y)
    if state is None:
        return y, None
    return y, mapped(lambda part: part[pieces.final].reshape(*batch_shape, *part.shape[1:]), after)


def placed(at: Tensor, fresh: Tensor, given: Tensor) -> Tensor:
    """A part of a state at the start, with rows of another one in it."""
    _require_same("reset", fresh.shape[1:], given.shape[1:])
    return fresh.to(given.dtype).index_copy(0, at, given)


def restarted(flags: Tensor, fresh: Tensor, old: Tensor) -> Tensor:
    """A part of a state, with rows of the one at the start in it."""
    _require_same("reset", fresh.shape, old.shape)
    return torch.where(
        flags.reshape(*flags.shape, *(1,) * (fresh.dim() - flags.dim())), fresh.to(old.dtype), old
    )


def _require_same(name: str, fresh: torch.Size, given: torch.Size) -> None:
    if fresh != given:
        raise ValueError(
            f"{name} cannot be given with this state: a part of it has shape {tuple(given)} where {tuple(fresh)} is "
            "the start, as of a pool whose window fills up"
        )


def _with_states_at(
    module: Any, call: Call, x: Tensor, state: Any, wanted: Any, rest: dict[str, Any]
) -> tuple[Tensor, Any, list[Any]]:
    """A third result are the states after the elements before each position.

    Places that are as far from each other cut the sequence into pieces that are rows of one call, where the module can
    hand states on between them; else it is run part by part.
    """
    if not module.causal:
        raise ValueError(f"a {type(module).__name__} is not causal: it has no states")
    axes = Axes.of(module)
    length = x.shape[axes.x]
    positions = _positions(wanted, length)
    lengths, reset = rest.pop("lengths", None), rest.pop("reset", None)
    current = module.default_state(*axes.batch_shape(x), device=x.device) if state is None else state
    outputs: list[Tensor] = []
    states: list[Any] = []
    ends = [*positions, length] if not positions or positions[-1] < length else positions
    alike = (
        lengths is None and reset is None and not any(isinstance(value, Tensor) for value in rest.values())
    )
    if alike and (size := _pieces(module, positions)) > 0:
        y, states = _piece_by_piece(call, x.narrow(axes.x, 0, positions[-1]), current, size, axes, rest)
        outputs.append(y)
        current = states[-1]
    for begin, end in pairwise([0, *ends][len(states) :]):
        own = dict(rest)
        if lengths is not None:
            own["lengths"] = (torch.as_tensor(lengths, device=x.device) - begin).clamp(0, end - begin)
        if reset is not None:
            own["reset"] = _of_rows("reset", reset, x, axes)[..., begin:end]
        y, current = call(x.narrow(axes.x, begin, end - begin), current, **own)
        outputs.append(y)
        states.append(current)
    return torch.cat(outputs, axes.y), None if state is None else current, states[: len(positions)]


def _pieces(module: Any, positions: list[int]) -> int:
    """The size of the pieces that the places cut, several of one size that the module can take as rows; else 0."""
    size = positions[0] if positions else 0
    if len(positions) < 2 or size == 0 or positions != list(range(size, positions[-1] + 1, size)):
        return 0
    parts = list(module.modules())
    strides = math.prod(getattr(part, "stride", 1) for part in parts if hasattr(part, "lengths"))
    grows = any(getattr(part, "state_grows", False) for part in parts)
    return size if size % strides == 0 and not grows and unsplit(module) is None else 0


def _piece_by_piece(
    call: Call, x: Tensor, state: Any, size: int, axes: Axes, rest: dict[str, Any]
) -> tuple[Tensor, list[Any]]:
    """Pieces of ``size`` elements as rows of one call, and the states behind each."""
    batch_shape, count = axes.batch_shape(x), x.shape[axes.x] // size
    batch, dims = math.prod(batch_shape), len(batch_shape)
    rows = x.movedim(axes.x, dims)
    rows = rows.reshape(batch * count, size, *rows.shape[dims + 1 :]).movedim(1, axes.x)

    def awaited(part: Tensor) -> Awaited:
        flat = part.reshape(batch, *part.shape[dims:])
        return Awaited(flat.repeat_interleave(count, 0), Pieces(count))

    y, after = call(rows, mapped(awaited, state), **rest)
    y = y.movedim(axes.y, 1)
    y = y.reshape(*batch_shape, count * y.shape[1], *y.shape[2:]).movedim(dims, axes.y)
    apart = mapped(lambda part: part.reshape(*batch_shape, count, *part.shape[1:]), after)
    return y, [mapped(lambda part, i=i: part.select(dims, i), apart) for i in range(count)]


def _positions(wanted: Any, length: int) -> list[int]:
    """Of ``states_at``: "all", every so many elements, or places in ascending order."""
    if isinstance(wanted, str) and wanted == "all":
        return list(range(1, length + 1))
    if isinstance(wanted, int) and not isinstance(wanted, bool):
        if wanted < 1:
            raise ValueError(f"states_at must be at least 1, for every so many elements, got {wanted}")
        return list(range(wanted, length + 1, wanted))
    given = wanted.tolist() if isinstance(wanted, Tensor) else wanted
    if not isinstance(given, Sequence) or isinstance(given, str) or not all(type(at) is int for at in given):
        raise TypeError(f"states_at must be 'all', an int or places in the sequence, got {wanted!r}")
    places = list(given)
    if sorted(set(places)) != places or (places and not 0 <= places[0] <= places[-1] <= length):
        raise ValueError(f"states_at must ascend within 0 .. {length}, got {places}")
    return places


def resolve_step(module: Any, call: Call, taken: frozenset[str] | None, given: dict[str, Any]) -> Any:
    """What ``step`` gives where ``reset`` ``(*batch_shape)`` says which rows begin anew."""
    if has_rates(given) and given.get("reset") is None:
        given.pop("reset", None)
        return at_rates(module, call, given, given["x"].shape[:-1])
    x, state, reset = given.pop("x"), given.pop("state", None), given.pop("reset")
    if reset is not None:
        if not isinstance(reset, Tensor):
            raise TypeError(f"reset must be a torch.Tensor, got {type(reset).__name__}")
        batch_shape = reset.shape if x is None else x.shape[: x.dim() - Axes.of(module).behind + 1]
        checks.shape("reset", reset, [("batch", size) for size in batch_shape])
        state = None if state is None else module.restart_state(state, reset != 0)
    return call(x, state, **given)
