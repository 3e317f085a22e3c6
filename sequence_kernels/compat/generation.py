"""``mamba_ssm.utils.generation``: tokens one after another from a model with mamba_ssm's calls, on every device."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..models import sampling


@dataclass
class InferenceParams:
    """What a generation keeps: the layers' caches by their numbers, and how many tokens came before."""

    max_seqlen: int
    max_batch_size: int
    seqlen_offset: int = 0
    batch_size_offset: int = 0
    key_value_memory_dict: dict[int, Any] = field(default_factory=dict)
    lengths_per_sample: Tensor | None = None

    def reset(self, max_seqlen: int, max_batch_size: int) -> None:
        """Begin anew; the caches are filled again from zeros."""
        self.max_seqlen, self.max_batch_size, self.seqlen_offset = max_seqlen, max_batch_size, 0
        if self.lengths_per_sample is not None:
            self.lengths_per_sample.zero_()


@dataclass
class Generated:
    """``sequences`` (batch, length), the prompts first; ``scores``: (batch, vocabulary) of each new token."""

    sequences: Tensor
    scores: tuple[Tensor, ...] | None


def sample(
    logits: Tensor, top_k: int = 1, top_p: float = 0.0, min_p: float = 0.0, temperature: float = 1.0
) -> Tensor:
    """Draw tokens (batch,) from scores (batch, vocabulary); ``top_k`` 1, as it is by itself: the best.

    0 is without a limit. ``min_p``: only tokens at least so probable, relative to the best, before ``temperature``.

    Raises:
        ValueError: ``top_p`` or ``min_p`` is not in 0 .. 1, or ``temperature`` is not above 0.
    """
    for name, value in (("top_p", top_p), ("min_p", min_p)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must be between 0 and 1, got {value}")
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}; top_k=1 takes the best")
    if min_p > 0:
        probabilities = logits.float().softmax(-1)
        least = min_p * probabilities.amax(-1, keepdim=True)
        logits = logits.masked_fill(probabilities < least, -torch.inf)
    return sampling.sample(logits, float(temperature), top_k or None, top_p or None)


def _penalised(logits: Tensor, before: Tensor, penalty: float) -> Tensor:
    """Scores of tokens that came before made less, by Keskar et al., "CTRL", 2019, section 4.1."""
    score = logits.gather(1, before)
    return logits.scatter(1, before, torch.where(score < 0, score * penalty, score / penalty))


@torch.inference_mode()
def decode(
    input_ids: Tensor,
    model: Any,
    max_length: int,
    top_k: int = 1,
    top_p: float = 0.0,
    min_p: float = 0.0,
    temperature: float = 1.0,
    repetition_penalty: float = 1.0,
    eos_token_id: int | None = None,
    teacher_outputs: Tensor | None = None,
    vocab_size: int | None = None,
    cg: bool = False,
    enable_timing: bool = False,
    output_scores: bool = False,
    streamer: Any = None,
) -> Generated:
    """Continue prompts (batch, length) to ``max_length`` tokens, or until all rows draw ``eos_token_id`` at once.

    ``top_k``, ``top_p``, ``min_p`` and ``temperature`` as in ``sample``. ``teacher_outputs`` (batch, length): tokens to
    take in place of drawn ones, as far as they go. ``vocab_size``: tokens from there on are not drawn. ``cg`` changes
    nothing; ``enable_timing`` prints how long it took. ``streamer`` has ``put`` and ``end``.
    """
    began = time.perf_counter()
    batch = len(input_ids)
    params = InferenceParams(max_seqlen=max_length, max_batch_size=batch)
    given = 0 if teacher_outputs is None else teacher_outputs.shape[1]
    tokens, known, scores = input_ids, input_ids, list[Tensor]()
    if streamer is not None:
        streamer.put(input_ids.cpu())
    while True:
        places = None if params.seqlen_offset == 0 else tokens.new_full((batch, 1), params.seqlen_offset)
        found = model(tokens, position_ids=places, inference_params=params, num_last_tokens=1)
        logits = found.logits.squeeze(1)[..., :vocab_size]
        params.seqlen_offset += tokens.shape[1]
        if output_scores:
            scores.append(logits)
        if repetition_penalty != 1.0:
            logits = _penalised(logits, known, repetition_penalty)
        if teacher_outputs is not None and given > params.seqlen_offset:
            drawn = teacher_outputs[:, params.seqlen_offset]
        else:
            drawn = sample(logits, top_k, top_p, min_p, temperature)
        tokens = drawn.unsqueeze(1)
        known = torch.cat((known, tokens), 1)
        if streamer is not None:
            streamer.put(tokens.cpu())
        ended = eos_token_id is not None and bool((tokens == eos_token_id).all())
        if ended or params.seqlen_offset >= max_length - 1:
            break
    if streamer is not None:
        streamer.end()
    if enable_timing:
        print(f"Prompt processing + decoding time: {1e3 * (time.perf_counter() - began):.0f}ms")
    return Generated(known, tuple(scores) if output_scores else None)


class GenerationMixin:
    """``generate`` for models with ``allocate_inference_cache`` and mamba_ssm's ``forward``."""

    def allocate_inference_cache(
        self, batch_size: int, max_seqlen: int, dtype: torch.dtype | None = None, **kwargs: Any
    ) -> dict[int, Any]:
        raise NotImplementedError

    def generate(
        self,
        input_ids: Tensor,
        max_length: int,
        top_k: int = 1,
        top_p: float = 0.0,
        min_p: float = 0.0,
        temperature: float = 1.0,
        return_dict_in_generate: bool = False,
        output_scores: bool = False,
        **kwargs: Any,
    ) -> Tensor | Generated:
        """The prompts with what follows, (batch, length), or a ``Generated``; all arguments are those of ``decode``."""
        drawing = top_k, top_p, min_p, temperature
        found = decode(input_ids, self, max_length, *drawing, output_scores=output_scores, **kwargs)
        return found if return_dict_in_generate else found.sequences
