"""A language model of Mamba layers, with the parameter names of mamba_ssm's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..arguments import keywords
from ..arguments.values import checked
from ..layers import Mamba, Mamba2
from ..layers.padding import Lengths, sequence_lengths
from ..layers.pointwise import pointwise
from ..layers.selective import State, wide
from ..stepping.stages import Elementwise, Linear, Residual, Save, Stage, Steppable, stages_of
from ..stepping.stepper import Stepper
from .beam import beam_search
from .sampling import sample

#: Tokens from which on a stepper is worth the copy of the weights that it makes, which takes about 20 steps.
_WORTH_A_STEPPER = 32

_MIXERS: dict[str, type[Mamba] | type[Mamba2]] = {"mamba": Mamba, "mamba2": Mamba2}


class _Block(nn.Module):
    def __init__(self, norm: nn.Module, mixer: Mamba | Mamba2) -> None:
        super().__init__()
        self.norm = norm
        self.mixer = mixer


class _Backbone(nn.Module):
    def __init__(self, embedding: nn.Embedding, blocks: list[_Block], norm_f: nn.Module) -> None:
        super().__init__()
        self.embedding = embedding
        self.layers = nn.ModuleList(blocks)
        self.norm_f = norm_f


class TokenStepper(Stepper):
    """A ``Stepper`` of a language model: it takes tokens, integers, where others take channels, and gives scores.

    ``step``: ``(*batch_shape)`` to ``(*batch_shape, vocabulary)``; ``forward``: ``(*batch_shape, length)`` to
    ``(*batch_shape, length, vocabulary)``.
    """

    def step(self, x: Tensor, *, state_indices: Tensor | None = None) -> Tensor:
        return super().step(self._embedded(x), state_indices=state_indices)

    def forward(self, x: Tensor, *, state_indices: Tensor | None = None) -> Tensor:
        return super().forward(self._embedded(x), state_indices=state_indices)

    def _embedded(self, tokens: Tensor) -> Tensor:
        _check_tokens(tokens)
        return F.embedding(tokens, self._embedding()).to(self.dtype)

    def _embedding(self) -> Tensor:
        backbone: Any = cast("MambaLM", self._source).backbone
        return backbone.embedding.weight.detach()


def _check_tokens(tokens: Any) -> None:
    if not isinstance(tokens, Tensor) or tokens.is_floating_point() or tokens.is_complex():
        said = (
            f"{tuple(tokens.shape)} {tokens.dtype}" if isinstance(tokens, Tensor) else type(tokens).__name__
        )
        raise TypeError(f"tokens must be a tensor of integers, got {said}")


class MambaLM(nn.Module):
    """Token embedding, residual blocks of a norm and a Mamba layer, a norm, and a linear map to scores.

    ``x = x + mixer(norm(x))``, the sum in float32 (float64 of float64), as mamba_ssm's ``MambaLMHeadModel`` with
    ``residual_in_fp32``. The parameters have its names.

    Args:
        vocab_size: number of tokens.
        d_model: width.
        n_layers: number of blocks.
        layer: "mamba" or "mamba2".
        tie_embeddings: the embedding's weight is that of the linear map to scores; there is then no ``lm_head``.
        pad_vocab_size_multiple: the vocabulary is rounded up to a multiple of it.
        eps: of the norms, which are ``torch.nn.RMSNorm``.
        **options: arguments of the layers.

    A state is a list of those of the layers.
    """

    causal = True

    @checked
    def __init__(
        self,
        vocab_size: int,
        d_model: int,
        n_layers: int,
        layer: str = "mamba",
        tie_embeddings: bool = True,
        pad_vocab_size_multiple: int = 8,
        eps: float = 1e-5,
        **options: Any,
    ) -> None:
        super().__init__()
        if layer not in _MIXERS:
            raise ValueError(f"layer must be one of {', '.join(_MIXERS)}, got {layer!r}")
        vocab_size += -vocab_size % pad_vocab_size_multiple
        self.vocab_size = self.d_output = vocab_size
        self.d_model = d_model
        blocks = [
            _Block(nn.RMSNorm(d_model, eps=eps), _MIXERS[layer](d_model, **options)) for _ in range(n_layers)
        ]
        self.backbone = _Backbone(nn.Embedding(vocab_size, d_model), blocks, nn.RMSNorm(d_model, eps=eps))
        self.lm_head = None if tie_embeddings else nn.Linear(d_model, vocab_size, bias=False)
        nn.init.normal_(self.backbone.embedding.weight, std=0.02)
        with torch.no_grad():  # so that the sum's variance does not grow with the depth
            for block in blocks:
                block.mixer.out_proj.weight /= n_layers**0.5

    @keywords.resolved
    def forward(
        self,
        tokens: Tensor,
        state: list[State] | None = None,
        lengths: Lengths | None = None,
        cu_seqlens: Tensor | None = None,
    ) -> tuple[Tensor, list[State] | None]:
        """Scores ``(batch, length, vocabulary)`` of the token after each of ``tokens`` ``(batch, length)``.

        ``lengths``: how many tokens of each row are real; the rest, at its end, may be anything. The next state is the
        one after them, None if no state was given. ``cu_seqlens``, ``reset``, ``attention_mask`` and ``states_at`` as
        every ``SequenceModule`` takes them.
        """
        if tokens.dim() != 2 or tokens.is_floating_point():
            raise ValueError(
                f"tokens must be integers of shape (batch, length), got {tuple(tokens.shape)} {tokens.dtype}"
            )
        blocks = self._blocks()
        if state is not None and len(state) != len(blocks):
            raise ValueError(f"state must have one entry for each of {len(blocks)} layers, got {len(state)}")
        head = self.backbone.embedding.weight if self.lm_head is None else self.lm_head.weight
        dtype = head.dtype
        x, after = wide(self.backbone.embedding(tokens)), []
        if lengths is not None:
            lengths = sequence_lengths(lengths, x, transposed=False)
        kwargs = {"lengths": lengths} if cu_seqlens is None else {"cu_seqlens": cu_seqlens}
        for i, block in enumerate(blocks):
            y, following = block.mixer(block.norm(x.to(dtype)), None if state is None else state[i], **kwargs)
            x = x + y
            after.append(following)
        x = self.backbone.norm_f(x.to(dtype))
        logits = F.linear(x, head) if self.lm_head is None else self.lm_head(x)
        return logits, None if state is None else after

    @keywords.resolved
    def step(self, tokens: Tensor, state: list[State] | None = None) -> tuple[Tensor, list[State]]:
        """Scores ``(batch, vocabulary)`` of the token after ``tokens`` ``(batch,)``; without a state, from zeros."""
        state = self.default_state(len(tokens), device=tokens.device) if state is None else state
        logits, after = self.forward(tokens.unsqueeze(1), state)
        assert after is not None
        return logits.squeeze(1), after

    def unsplit_reason(self) -> str | None:
        """None: its layers are asked."""
        return None

    def default_state(self, *batch_shape: int, device: torch.device | str | None = None) -> list[State]:
        """The state before the first token, for each layer."""
        return [block.mixer.default_state(*batch_shape, device=device) for block in self._blocks()]

    def restart_state(self, state: list[State], fresh: Tensor) -> list[State]:
        """As ``SequenceModule.restart_state``."""
        pairs = zip(self._blocks(), state, strict=True)
        return [block.mixer.restart_state(part, fresh) for block, part in pairs]

    def spread_state(self, state: list[State], at: Tensor, count: int) -> list[State]:
        """As ``SequenceModule.spread_state``."""
        pairs = zip(self._blocks(), state, strict=True)
        return [block.mixer.spread_state(part, at, count) for block, part in pairs]

    def stepper(self, batch_shape: Sequence[int] = (1,), **options: Any) -> TokenStepper:
        """The model made ready to go through tokens, with a state of its own: see ``Stepper``, and ``TokenStepper``."""
        return TokenStepper(self, batch_shape, **options)

    def takes(self, method: str) -> frozenset[str] | None:
        """The names of the arguments that a method takes besides the tokens."""
        taken = keywords.taken(getattr(type(self), method))
        return None if taken is None else taken - {"tokens"}

    def stages(self) -> list[Stage]:
        """What ``step`` does in eval mode, of tokens that are embedded."""
        head = self.backbone.embedding.weight if self.lm_head is None else self.lm_head.weight
        half = head.dtype not in (torch.float32, torch.float64)  # the sum is then wider
        stages: list[Stage] = [Elementwise(wide)] if half else []
        narrowed: list[Stage] = [Elementwise(lambda x: x.to(head.dtype))] if half else []
        for block in self._blocks():
            stages += [
                Save(),
                *narrowed,
                *pointwise(block.norm),
                *stages_of(cast("Steppable", block.mixer)),
                Residual(1, 1),
            ]
        stages += [*narrowed, *pointwise(self.backbone.norm_f)]
        return [*stages, *([Linear(head, None)] if self.lm_head is None else pointwise(self.lm_head))]

    def _blocks(self) -> list[_Block]:
        return list(self.backbone.layers)  # type: ignore[arg-type]

    @torch.inference_mode()
    def generate(
        self,
        tokens: Tensor,
        count: int,
        lengths: Lengths | None = None,
        state: list[State] | None = None,
        end: int | None = None,
        num_beams: int = 1,
        **sampling: Any,
    ) -> tuple[Tensor, list[State]]:
        """Continue prompts ``(batch, length)`` by ``count`` tokens.

        Args:
            lengths: of prompts of unequal length, padded at their ends.
            state: what came before the prompts, such as the state that an earlier call gave.
            end: a token after which a row has no other; None: all rows go on.
            num_beams: above 1, a beam search for the most probable continuation, which takes no ``sampling``.
            **sampling: as ``sample`` takes: ``temperature`` (0: the best), ``top_k``, ``top_p``, ``generator``.

        Returns:
            the new tokens ``(batch, count)``, fewer if all rows have ended, and the state after all but the last.
        """
        if num_beams < 1:
            raise ValueError(f"num_beams must be at least 1, got {num_beams}")
        if num_beams > 1 and sampling:
            raise ValueError(f"num_beams={num_beams} draws nothing and takes no {', '.join(sampling)}")
        state = self.default_state(len(tokens), device=tokens.device) if state is None else state
        logits, after = self.forward(tokens, state, lengths)
        assert after is not None
        if lengths is None:
            scores = logits[:, -1]
        else:
            last = sequence_lengths(lengths, logits, transposed=False) - 1
            if bool((last < 0).any()):
                raise ValueError("lengths must be at least 1, to have something to continue")
            scores = logits[torch.arange(len(tokens), device=tokens.device), last]
        if num_beams > 1:
            return beam_search(self.step, scores, after, count, num_beams, end)
        stepper = self.stepper((len(tokens),)) if count >= _WORTH_A_STEPPER and not self.training else None
        if stepper is not None:
            stepper.state = after
        found: list[Tensor] = []
        ended = torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)
        while len(found) < count:
            drawn = sample(scores, **sampling)
            if end is not None:
                drawn = torch.where(ended, end, drawn)
                ended = ended | (drawn == end)
            found.append(drawn)
            if len(found) == count or bool(ended.all()):
                break
            scores, after = self.step(drawn, after) if stepper is None else (stepper.step(drawn), after)
        after = after if stepper is None else stepper.state
        return torch.stack(found, 1) if found else tokens[:, :0], after
