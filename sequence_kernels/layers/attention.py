"""Multi-head attention that can be carried through time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..arguments import inputs, sequences
from ..arguments.values import checked
from ..awaited import Awaited, begun
from ..module import SequenceModule
from .padding import Lengths, real_elements, without_padding

#: Keys and values ``(*batch_shape, n_head, elements, n_feat / n_head)``, and once a row had elements that are not real,
#: or began anew, which of them can be seen ``(*batch_shape, elements)``.
KeysValues = tuple[Tensor, ...]


class MultiHeadedAttention(SequenceModule):
    """Scaled dot-product attention (Vaswani et al. 2017), of a sequence to itself or to a ``memory``.

    ``(..., length, n_feat)`` in and out; with ``transposed=True`` ``(..., n_feat, length)``. The parameters are those
    of ESPnet's class of this name. An element of the sequence sees

    - with ``memory`` ``(..., elements, n_feat)``: all of the memory, whose layout has the channels last always;
    - without, by default: itself and the elements before it;
    - without, with ``causal=False``: the whole sequence, as in ESPnet. Such a layer cannot be stepped.

    The state is a cache: the keys and values seen so far. A memory is read when the state is still empty, and its
    keys and values then come from the state, so that a step does not compute them again.

    ``dropout``: of the attention weights. ``tie_dropout`` is taken for the sake of configurations, and ignored.
    Raises ValueError for a width that ``n_head`` does not divide.
    """

    state_grows = True  # by every element

    @checked
    def __init__(
        self,
        n_feat: int,
        n_head: int,
        dropout: float = 0.0,
        transposed: bool = False,
        causal: bool = True,
        tie_dropout: bool = False,
    ) -> None:
        super().__init__()
        if n_feat % n_head:
            raise ValueError(f"n_head must divide the width {n_feat}, got {n_head}")
        self.d_model = self.d_output = n_feat
        self.n_head = n_head
        self.dropout = dropout
        self.transposed = transposed
        self.causal = causal
        self.linear_q = nn.Linear(n_feat, n_feat)
        self.linear_k = nn.Linear(n_feat, n_feat)
        self.linear_v = nn.Linear(n_feat, n_feat)
        self.linear_out = nn.Linear(n_feat, n_feat)

    def forward(
        self,
        x: Tensor,
        state: KeysValues | None = None,
        memory: Tensor | None = None,
        mask: Tensor | None = None,
        lengths: Lengths | None = None,
        cu_seqlens: Tensor | None = None,
    ) -> tuple[Tensor, KeysValues | None]:
        """Map a batch of sequences.

        Args:
            x: ``(..., length, n_feat)``, or ``(..., n_feat, length)`` if transposed.
            state: what earlier parts of the sequences left.
            memory: ``(..., elements, n_feat)``, to attend to instead of the sequence itself.
            mask: what may be seen: not 0, ``(..., 1 or length, elements)``, where elements are those of the memory, or
                those of the state and of x. An element that sees nothing gets 0 before the last linear map. Without
                a state, what no element sees is not read.
            lengths, cu_seqlens: as in ``S4``. With a state, a memory or a mask packed sequences are taken as rows, as
                long as the longest.
        """
        if cu_seqlens is not None:
            bounds = sequences.bounds_of(cu_seqlens, x, sequences.Axes.of(self))
            rest = {name: value for name, value in (("memory", memory), ("mask", mask)) if value is not None}
            if state is not None or rest:
                return sequences.as_rows(self, self.forward, x, state, bounds, rest)
            y = self._attend_packed(x.mT if self.transposed else x, bounds.diff().tolist())
            return (y.mT if self.transposed else y), None
        x = x.mT if self.transposed else x
        real = None
        if lengths is not None:
            x, lengths = without_padding(x, lengths, transposed=False)
            if memory is None and (state is not None or not self.causal):
                real = real_elements(x, lengths, transposed=False).squeeze(-1)
        y, keys_values = self._attend(x, state, memory, mask, real)
        return (y.mT if self.transposed else y), (None if state is None else keys_values)

    def step(
        self,
        x: Tensor,
        state: KeysValues | None = None,
        memory: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> tuple[Tensor, KeysValues]:
        """Map one time step ``(..., n_feat)``; from an empty state by default. ``mask``: ``(..., 1, elements)``."""
        state = self.default_state(*x.shape[:-1], device=x.device) if state is None else state
        y, state = self._attend(x.unsqueeze(-2), state, memory, mask, None)
        return y.squeeze(-2), state

    def _attend(
        self,
        x: Tensor,
        state: tuple[Any, ...] | None,
        memory: Tensor | None,
        mask: Tensor | None,
        real: Tensor | None,
    ) -> tuple[Tensor, KeysValues]:
        """Channels last; the keys and values that were seen are returned. ``real``: which elements of x are."""
        inputs.of_width(x, self.d_model)
        if state is not None and isinstance(state[0], Awaited):
            if memory is None:
                return self._attend_parts(x, state, mask, real)
            state = begun(state)  # each process has the whole memory
        elif state is not None and not self.causal:
            raise ValueError(
                "attention with causal=False looks at the whole sequence: it cannot carry a state"
            )
        seen: tuple[Tensor, ...] = ()
        if memory is None and (real is not None or (state is not None and len(state) == 3)):
            seen = (self._seen(x, state, real),)
            unseen = seen[0].unsqueeze(-2)
            mask = unseen if mask is None else (mask != 0) & unseen
        keys, values = self._keys_values(x, state, memory, mask)
        visible = None if mask is None else (mask != 0).unsqueeze(-3)
        y = self._weighted(x, keys, values, visible, causal=memory is None and self.causal)
        return y, (keys, values, *seen)

    def _attend_packed(self, x: Tensor, lengths: list[int]) -> Tensor:
        """Sequences one behind the other ``(1, elements, n_feat)``: projected together, each seen by itself alone."""
        inputs.of_width(x, self.d_model)
        parts = [self._heads(linear(x)) for linear in (self.linear_q, self.linear_k, self.linear_v)]
        dropout = self.dropout if self.training else 0.0
        seen = [
            F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=self.causal)
            for q, k, v in zip(*(part.split(lengths, -2) for part in parts), strict=True)
        ]
        return self.linear_out(torch.cat(seen, -2).transpose(-2, -3).flatten(-2))

    def _attend_parts(
        self, x: Tensor, state: tuple[Any, ...], mask: Tensor | None, real: Tensor | None
    ) -> tuple[Tensor, KeysValues]:
        """``_attend`` of a part of sequences: the keys and values of all parts are gathered."""
        if mask is not None:
            raise ValueError("mask cannot be given to attention over sequences that are split into parts")
        awaited = state[0]
        own = [self._heads(self.linear_k(x)), self._heads(self.linear_v(x))]
        start = [part.start for part in state[:2]]
        if real is not None or len(state) == 3:
            here = x.new_ones(x.shape[:-1], dtype=torch.bool) if real is None else real
            before = state[2].start if len(state) == 3 else here[..., :0].expand(*here.shape[:-1], 0)
            own.append(self._as_head(here, own[0]))
            start.append(self._as_head(before, start[0]))
        part = torch.cat(own, -1)
        earlier, every = awaited.exchange.joined(torch.cat(start, -1), part, -2)
        keys, values, *seen = self._apart(torch.cat((earlier, part), -2) if self.causal else every)
        visible = seen[0].unsqueeze(-2).unsqueeze(-3) if seen else None
        return self._weighted(x, keys, values, visible, causal=self.causal), self._apart(every)

    @staticmethod
    def _as_head(seen: Tensor, like: Tensor) -> Tensor:
        """Which elements can be seen, as one more number of each head's."""
        return seen.to(like.dtype).unsqueeze(-2).unsqueeze(-1).expand(*like.shape[:-2], seen.shape[-1], 1)

    def _apart(self, gathered: Tensor) -> KeysValues:
        width = self.d_model // self.n_head
        keys, values, *seen = gathered.split([width, width, *([1] * (gathered.shape[-1] > 2 * width))], -1)
        return keys, values, *(one[..., 0, :, 0] != 0 for one in seen)

    def _weighted(
        self, x: Tensor, keys: Tensor, values: Tensor, visible: Tensor | None, *, causal: bool
    ) -> Tensor:
        """What the elements of x, the last of those that there are keys of if ``causal``, see."""
        before = keys.shape[-2] - x.shape[-2]  # elements before those of x
        triangular = causal and x.shape[-2] > 1
        if triangular and (visible is not None or before):
            earlier = torch.ones(x.shape[-2], keys.shape[-2], dtype=torch.bool, device=x.device).tril(before)
            visible = earlier if visible is None else visible & earlier
        y = F.scaled_dot_product_attention(
            self._heads(self.linear_q(x)),
            keys,
            values,
            attn_mask=visible,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=triangular and visible is None,
        )
        return self.linear_out(y.transpose(-2, -3).flatten(-2))

    def _seen(self, x: Tensor, state: KeysValues | None, real: Tensor | None) -> Tensor:
        """Which elements of the state and of x can be seen ``(*batch_shape, elements)``."""
        here = x.new_ones(x.shape[:-1], dtype=torch.bool) if real is None else real
        if state is None:
            return here
        before = state[2] if len(state) == 3 else here.new_ones(*here.shape[:-1], state[0].shape[-2])
        return torch.cat((before, here), -1)

    def _keys_values(
        self, x: Tensor, state: KeysValues | None, memory: Tensor | None, mask: Tensor | None
    ) -> KeysValues:
        """Of all that there is to see: from the state, and from x or from a memory that is not in the state yet."""
        seen = 0 if state is None else state[0].shape[-2]
        if state is not None and seen and memory is not None:
            if seen != memory.shape[-2]:
                raise ValueError(
                    f"state holds {seen} elements of a memory, but this memory has {memory.shape[-2]}: "
                    "another memory needs a new state"
                )
            return state[0], state[1]
        source = x if memory is None else memory
        if mask is not None and state is None:  # else it may be seen by a later part
            seen_by_any = (mask != 0).any(-2)[..., -source.shape[-2] :]
            source = torch.where(seen_by_any.unsqueeze(-1), source, 0)
        keys, values = self._heads(self.linear_k(source)), self._heads(self.linear_v(source))
        if state is None or not seen:
            return keys, values
        return torch.cat((state[0], keys), -2), torch.cat((state[1], values), -2)

    def _heads(self, x: Tensor) -> Tensor:
        """(..., L, n_feat) to (..., n_head, L, n_feat / n_head)."""
        return x.unflatten(-1, (self.n_head, -1)).transpose(-2, -3)

    def default_state(self, *batch_shape: int, device: torch.device | str | None = None) -> KeysValues:
        """Keys and values of no elements."""
        if not self.causal:
            raise ValueError("attention with causal=False looks at the whole sequence: it has no state")
        return self.awaited_state(*batch_shape, device=device)

    def awaited_state(self, *batch_shape: int, device: torch.device | str | None = None) -> KeysValues:
        weight = self.linear_k.weight
        shape = (*batch_shape, self.n_head, 0, self.d_model // self.n_head)
        empty = torch.empty(shape, dtype=weight.dtype, device=device or weight.device)
        return empty, empty.clone()

    def unsplit_reason(self) -> str | None:
        return None

    def restart_state(self, state: KeysValues, fresh: Tensor) -> KeysValues:
        seen = state[2] if len(state) == 3 else fresh.new_ones(*fresh.shape, state[0].shape[-2])
        return state[0], state[1], seen & ~fresh.unsqueeze(-1)

    def spread_state(self, state: KeysValues, at: Tensor, count: int) -> KeysValues:
        keys, values = (part.new_zeros(count, *part.shape[1:]).index_copy(0, at, part) for part in state[:2])
        seen = state[2] if len(state) == 3 else at.new_ones(len(at), keys.shape[-2], dtype=torch.bool)
        return keys, values, seen.new_zeros(count, seen.shape[-1]).index_copy(0, at, seen)

    @property
    def state_to_tensor(self) -> Callable[[Any], Tensor | None]:
        """None: a cache grows, and is no tensor of a fixed width."""
        return lambda _: None
