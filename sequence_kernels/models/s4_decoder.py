"""A language model over tokens, or the decoder of a recogniser, made of sequence layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..arguments import keywords
from ..arguments.values import checked
from ..layers.padding import Lengths, sequence_lengths
from ..ops import checks
from ..ops.padding import inside
from .backbone import SequenceModel
from .block import PartConfig
from .registry import LayerConfig
from .states import merge_states, select_state, split_states


class S4Decoder(nn.Module):
    """Token embedding, a ``SequenceModel``, and a linear map to scores of the next token.

    Arguments, parameter names and methods are those of ESPnet's class of this name: ``forward`` for training,
    ``init_state``, ``select_state``, ``score`` and ``batch_score`` for searches. Without an encoder's output it is a
    language model. ``compat.espnet_decoder()`` is this class as a subclass of ESPnet's interfaces.

    Args:
        vocab_size: number of tokens; the last one starts and ends a sentence.
        encoder_output_size: width of the encoder's output, and of the backbone.
        input_layer: "embed", the only one.
        layer, ...: see ``SequenceModel``. Layers that take a ``memory`` (as "mha") see the encoder's output.
    """

    @checked
    def __init__(
        self,
        vocab_size: int,
        encoder_output_size: int,
        input_layer: str = "embed",
        dropinp: float = 0.0,
        dropout: float = 0.25,
        prenorm: bool = True,
        n_layers: int = 16,
        transposed: bool = False,
        tie_dropout: bool = False,
        n_repeat: int = 1,
        layer: LayerConfig | Sequence[LayerConfig] | None = None,
        residual: PartConfig = None,
        norm: PartConfig = None,
        pool: PartConfig = None,
        track_norms: bool = True,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        if input_layer != "embed":
            raise ValueError(f"input_layer must be 'embed', got {input_layer!r}")
        self.d_model = encoder_output_size
        self.sos = self.eos = vocab_size - 1
        self.embed = nn.Embedding(vocab_size, encoder_output_size)
        self.decoder = SequenceModel(
            encoder_output_size,
            n_layers=n_layers,
            transposed=transposed,
            dropout=dropout,
            tie_dropout=tie_dropout,
            prenorm=prenorm,
            n_repeat=n_repeat,
            layer="s4" if layer is None else layer,
            residual=residual,
            norm=norm,
            pool=pool,
            track_norms=track_norms,
            dropinp=dropinp,
            drop_path=drop_path,
        )
        self.output = nn.Linear(self.decoder.d_output, vocab_size)

    @keywords.guarded
    def forward(
        self,
        hs_pad: Tensor | None,
        hlens: Lengths | None,
        ys_in_pad: Tensor,
        ys_in_lens: Lengths,
        state: Any = None,
    ) -> tuple[Tensor, Lengths]:
        """Scores, before softmax, of the token after each of ``ys_in_pad``.

        Args:
            hs_pad: the encoder's output ``(batch, frames, encoder_output_size)``; None for a language model. Layers
                that take no ``memory`` do not see it: ESPnet's searches give it to language models too.
            hlens: how many of its frames are real, integers ``(batch,)`` in a tensor or a list; None for all.
            ys_in_pad: tokens, int64 ``(batch, length)``.
            ys_in_lens: how many of them are real, likewise. The others may be any number, as -1.
            state: see ``SequenceModel``.

        Returns:
            ``(batch, length, vocab_size)``, and ``ys_in_lens`` as given.
        """
        memory = self._memory(hs_pad, hlens)
        lengths = sequence_lengths(ys_in_lens, ys_in_pad.unsqueeze(-1), transposed=False)
        tokens = torch.where(inside(lengths, ys_in_pad.shape[1]), ys_in_pad, self.eos)
        z, _ = self.decoder(self.embed(tokens), state=state, lengths=lengths, **memory)
        return self.output(z), ys_in_lens

    def _memory(self, hs_pad: Tensor | None, hlens: Lengths | None = None) -> dict[str, Any]:
        """The encoder's output as keywords of the backbone, as far as one of its layers reads them."""
        if hs_pad is None:
            return {}
        given = {"memory": hs_pad, "mask": None if hlens is None else self._mask(hs_pad, hlens)}
        return keywords.handed(self.decoder, "forward", given)

    @staticmethod
    def _mask(hs_pad: Tensor, hlens: Lengths) -> Tensor:
        hlens = torch.as_tensor(hlens, device=hs_pad.device)
        checks.shape("hlens", hlens, (("batch", hs_pad.shape[0]),))
        return inside(hlens, hs_pad.shape[1]).unsqueeze(1)

    def init_state(self, x: Tensor | None = None) -> Any:
        """The state of a hypothesis without tokens; ``x``, the encoder's output, only says on which device."""
        return self.decoder.default_state(device=None if x is None else x.device)

    batch_init_state = init_state

    def select_state(self, states: Any, i: int, new_id: int | None = None) -> Any:
        """The state of hypothesis ``i`` of those that ``batch_score`` returned."""
        return None if states is None else states[i]

    def batch_score(
        self, ys: Tensor, states: Sequence[Any], xs: Tensor | None = None
    ) -> tuple[Tensor, list[Any]]:
        """Log-probabilities of the next token of several hypotheses, each carried on from a state of its own.

        Args:
            ys: tokens so far ``(hypotheses, length)``, int64; all but the last are in the states already.
            states: a state for each hypothesis, from ``init_state`` or an earlier call.
            xs: the encoder's output for each ``(hypotheses, frames, encoder_output_size)``; None for a language model.

        Returns:
            ``(hypotheses, vocab_size)``, and the list of their next states.
        """
        if len(states) != len(ys):
            raise ValueError(
                f"states must have one entry for each of the {len(ys)} hypotheses, got {len(states)}"
            )
        memory = self._memory(xs)
        z, state = self.decoder.step(self.embed(ys[:, -1]), merge_states(states), **memory)
        return self.output(z).log_softmax(-1), split_states(state, len(ys))

    def score(self, y: Tensor, state: Any, x: Tensor | None = None) -> tuple[Tensor, Any]:
        """``batch_score`` of one hypothesis: tokens ``(length,)``, encoder's output ``(frames, size)``."""
        scores, states = self.batch_score(y.unsqueeze(0), [state], None if x is None else x.unsqueeze(0))
        return scores[0], states[0]

    def final_score(self, state: Any) -> float:
        """What the end of a sentence adds to its score: nothing."""
        return 0.0

    @torch.no_grad()
    def search(self, beam: int, length: int, x: Tensor | None = None) -> list[tuple[list[int], float]]:
        """Beam search: the ``beam`` most probable sentences, best first, each with its log-probability.

        Args:
            beam: hypotheses that are kept.
            length: most tokens in a sentence; one that did not end by then ends there.
            x: the encoder's output ``(frames, encoder_output_size)``; None for a language model.

        Returns:
            Sentences without the tokens that start and end them. The states of all hypotheses are one batch, rows of
            which are taken over by their continuations.
        """
        if beam < 1 or length < 1:
            raise ValueError(f"beam and length must be at least 1, got {beam} and {length}")
        device = self.embed.weight.device
        tokens = torch.full((1, 1), self.sos, device=device)
        scores, state = torch.zeros(1, device=device), merge_states([self.init_state(x)])
        ended: list[tuple[list[int], float]] = []
        for _ in range(length):
            memory = self._memory(None if x is None else x.expand(len(tokens), *x.shape))
            z, state = self.decoder.step(self.embed(tokens[:, -1]), state, **memory)
            extended = scores.unsqueeze(-1) + self.output(z).log_softmax(-1)
            scores, best = extended.flatten().topk(min(beam, extended.numel()))
            row, token = best // extended.shape[-1], best % extended.shape[-1]
            tokens = torch.cat((tokens[row], token.unsqueeze(-1)), -1)
            ends = token == self.eos
            ended += [(t[1:-1], s) for t, s in zip(tokens[ends].tolist(), scores[ends].tolist(), strict=True)]
            tokens, scores, row = tokens[~ends], scores[~ends], row[~ends]
            state = select_state(state, row)
            worst = sorted((score for _, score in ended), reverse=True)[:beam]
            if not len(tokens) or (len(worst) == beam and scores[0] <= worst[-1]):
                break
        else:
            ended += [(t[1:], s) for t, s in zip(tokens.tolist(), scores.tolist(), strict=True)]
        return sorted(ended, key=lambda hypothesis: -hypothesis[1])[:beam]
