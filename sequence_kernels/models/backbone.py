"""The isotropic backbone: a stack of residual blocks of one width."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..arguments import keywords, sequences
from ..arguments.values import checked
from ..layers.components import dropout_module
from ..layers.norms import norm_stages
from ..layers.padding import Lengths, real_elements, sequence_lengths
from ..module import SequenceModule
from ..stepping.stages import Stage, stages_of
from .block import PartConfig, SequenceResidualBlock, make_norm
from .registry import LayerConfig, layer_config


class SequenceModel(SequenceModule):
    """``n_layers * n_repeat`` times the given layer or layers, each in a residual block.

    ``forward`` maps ``(batch, length, d_model)`` to ``(batch, length, d_output)``, always: as in ESPnet,
    ``transposed`` only chooses the layout *inside*, in which the layers work. Pools shorten the sequence.
    The state is a list with one entry for each block.

    ``layer``: one ``LayerConfig``, or a list of them that is repeated as a whole, as ``["s4d", "ff"]``; or layers
    that exist already, for a stack of just these.
    ``pool``: after every ``n_repeat``-th block, see ``SequenceResidualBlock``; ``step`` then returns None in the place
    of an output when a pool has none.
    ``track_norms``: after each ``forward`` the attribute ``metrics`` holds the mean squares of the input, "norm/0",
    and of every block's output, "norm/1", ...
    ``dropout``, ``tie_dropout``: for every block, and every layer given by name that does not set its own.
    ``dropinp``: dropout of the input.
    ``prenorm``, ``residual``, ``norm``, ``drop_path``: see ``SequenceResidualBlock``; ``prenorm`` also puts a
    norm after the last block.

    Raises as ``SequenceResidualBlock`` does, and ValueError for a state that does not fit the stack.
    """

    @checked
    def __init__(
        self,
        d_model: int,
        n_layers: int = 1,
        transposed: bool = False,
        dropout: float = 0.0,
        tie_dropout: bool = False,
        prenorm: bool = True,
        n_repeat: int = 1,
        layer: LayerConfig | Sequence[LayerConfig] = "s4d",
        residual: PartConfig = None,
        norm: PartConfig = None,
        pool: PartConfig = None,
        track_norms: bool = False,
        dropinp: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.d_model = d_model
        self.transposed = transposed
        self.track_norms = track_norms
        self.metrics: dict[str, Tensor] = {}
        self.drop = dropout_module(dropinp, tied=tie_dropout, transposed=transposed)
        group = layer if isinstance(layer, Sequence) and not isinstance(layer, str) else [layer]
        configs = [layer_config(one, dropout=dropout, tie_dropout=tie_dropout) for one in group]
        repeated = configs * (n_layers * n_repeat)
        modules = [id(one["_name_"]) for one in repeated if isinstance(one["_name_"], SequenceModule)]
        if len(set(modules)) < len(modules):
            raise ValueError(
                "layer: a module cannot be used twice, its parameters would be shared; "
                f"got n_layers={n_layers}, n_repeat={n_repeat} and {len(group)} layers"
            )
        blocks: list[SequenceResidualBlock] = []
        width = d_model
        for i, config in enumerate(repeated, start=1):
            block = SequenceResidualBlock(
                width,
                i,
                prenorm=prenorm,
                dropout=dropout,
                tie_dropout=tie_dropout,
                transposed=transposed,
                layer=config,
                residual=residual,
                norm=norm,
                pool=pool if i % n_repeat == 0 else None,
                drop_path=drop_path,
            )
            blocks.append(block)
            width = block.d_output
        self.layers = nn.ModuleList(blocks)
        self.d_output = width
        self.norm = make_norm(norm if prenorm else None, width, transposed)

    @property
    def _blocks(self) -> list[SequenceResidualBlock]:
        return cast("list[SequenceResidualBlock]", list(self.layers))

    @property
    def causal(self) -> bool:  # type: ignore[override]
        return all(block.causal for block in self._blocks) and (self.norm is None or self.norm.causal)

    @property
    def channels_first(self) -> bool:
        return False

    def takes(self, method: str = "forward") -> frozenset[str] | None:
        return keywords.of_parts(self._blocks, method)

    def unsplit_reason(self) -> str | None:
        return None

    @property
    def d_state(self) -> int | None:
        """The sum over the blocks that have one; None if none has."""
        widths = [block.d_state for block in self._blocks if block.d_state is not None]
        return sum(widths) if widths else None

    @property
    def state_to_tensor(self) -> Callable[[list[Any]], Tensor | None]:
        """A function from a state to ``(*batch_shape, d_state)``, the blocks' states one after another."""

        def concatenate(state: list[Any]) -> Tensor | None:
            pairs = zip(self._blocks, self._checked(state), strict=True)
            parts = [block.state_to_tensor(block_state) for block, block_state in pairs]
            present = [part for part in parts if part is not None]
            return torch.cat(present, dim=-1) if present else None

        return concatenate

    def default_state(self, *batch_shape: int, device: torch.device | str | None = None) -> list[Any]:
        return [block.default_state(*batch_shape, device=device) for block in self._blocks]

    def restart_state(self, state: list[Any], fresh: Tensor) -> list[Any]:
        pairs = zip(self._blocks, self._checked(state), strict=True)
        return [block.restart_state(part, fresh) for block, part in pairs]

    def spread_state(self, state: list[Any], at: Tensor, count: int) -> list[Any]:
        pairs = zip(self._blocks, self._checked(state), strict=True)
        return [block.spread_state(part, at, count) for block, part in pairs]

    def forward(
        self, x: Tensor, state: list[Any] | None = None, **kwargs: Any
    ) -> tuple[Tensor, list[Any] | None]:
        keywords.refuse_untaken(self, "forward", kwargs)
        states = [None] * len(self.layers) if state is None else self._checked(state)
        bounds = kwargs.get("cu_seqlens")
        if bounds is not None:
            kwargs["cu_seqlens"] = bounds = sequences.bounds_of(bounds, x, sequences.Axes.of(self))
        x = self.drop(x.mT if self.transposed else x)
        lengths: Lengths | None = kwargs.get("lengths")
        next_states = []
        metrics = {"norm/0": self._mean_square(x, lengths)} if self.track_norms else {}
        for i, (block, block_state) in enumerate(zip(self._blocks, states, strict=True), start=1):
            x, next_state = block(x, state=block_state, **keywords.handed(block, "forward", kwargs))
            next_states.append(next_state)
            if lengths is not None:
                kwargs["lengths"] = lengths = block.lengths(lengths)
            if bounds is not None:
                kwargs["cu_seqlens"] = bounds = sequences.bounds_after(block, bounds)
            if self.track_norms:
                metrics[f"norm/{i}"] = self._mean_square(x, lengths)
        if self.track_norms:
            self.metrics = metrics
        if self.norm is not None:
            x = self.norm(x, lengths) if bounds is None else self.norm.of_packed(x, bounds)
        return x.mT if self.transposed else x, None if state is None else next_states

    def step(  # type: ignore[override]
        self, x: Tensor, state: list[Any] | None = None, **kwargs: Any
    ) -> tuple[Tensor | None, list[Any]]:
        """Map one time step ``(..., d_model)``; ``state=None`` starts from ``default_state``."""
        keywords.refuse_untaken(self, "step", kwargs)
        states = self.default_state(*x.shape[:-1], device=x.device) if state is None else self._checked(state)
        next_states = list(states)
        for i, block in enumerate(self._blocks):
            y, next_states[i] = block.step(x, state=states[i], **keywords.handed(block, "step", kwargs))
            if y is None:  # a pool waits for more
                return None, next_states
            x = y
        return x if self.norm is None else self.norm.step(x), next_states

    def stages(self, **kwargs: Any) -> list[Stage]:
        through = [stage for block in self._blocks for stage in stages_of(block, **kwargs)]
        return through + norm_stages(self.norm)

    def _checked(self, state: list[Any]) -> list[Any]:
        if not self.causal:
            raise ValueError(
                "state cannot be carried: a layer or norm of this model looks at the whole sequence"
            )
        if not isinstance(state, list) or len(state) != len(self.layers):
            got = f"a list of {len(state)}" if isinstance(state, list) else type(state).__name__
            raise ValueError(
                f"state must be a list with one entry for each of the {len(self.layers)} blocks, "
                f"as default_state() gives; got {got}"
            )
        for i, (block, entry) in enumerate(zip(self._blocks, state, strict=True)):
            if entry is None and block.d_state is not None:
                raise ValueError(
                    f"state[{i}] is None, but that block has a state: start from default_state()"
                )
        return state

    def lengths(self, lengths: Any) -> Any:
        """How many elements are real in what comes out, of sequences with so many."""
        for block in self._blocks:
            lengths = block.lengths(lengths)
        return lengths

    def _mean_square(self, x: Tensor, lengths: Lengths | None) -> Tensor:
        """Of the real elements."""
        if lengths is None:
            return x.detach().square().mean()
        real = real_elements(x, sequence_lengths(lengths, x, self.transposed), self.transposed)
        return torch.where(real, x.detach(), 0).square().sum() / (real.sum() * x.numel() / real.numel())
