"""The language model: its steps in a search are its forward over whole sentences."""

from __future__ import annotations

import copy
import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from sequence_kernels import S4Decoder, compat

VOCABULARY = 11
LAYERS = [{"_name_": "s4", "d_state": 8}, {"_name_": "s4d", "d_state": 4}, "ff"]
ATTENTION = [{"_name_": "s4", "d_state": 8}, {"_name_": "mha", "n_head": 2}, "ff"]


def language_model(make: Any = S4Decoder, layer: Any = LAYERS, **arguments: Any) -> S4Decoder:
    torch.manual_seed(3)
    model = (
        make(VOCABULARY, 8, n_layers=2, layer=layer, residual="R", norm="layer", **arguments).double().eval()
    )
    with torch.no_grad():
        model.output.weight.mul_(4)  # sentences differ in more than their last digits
        model.output.bias[model.eos] += 2
    return model


def log_probabilities(model: S4Decoder, tokens: Tensor, memory: Tensor | None) -> Tensor:
    """Of the token after the last of each sentence, by forward over all of them."""
    memory = None if memory is None else memory.expand(len(tokens), -1, -1)
    lengths = torch.full((len(tokens),), tokens.shape[1])
    return model(memory, None, tokens, lengths)[0][:, -1].log_softmax(-1)


@torch.no_grad()
def recomputed(
    model: S4Decoder, beam: int, length: int, memory: Tensor | None
) -> list[tuple[list[int], float]]:
    """Beam search with nothing carried over."""
    alive, ended = [([model.sos], 0.0)], []
    for _ in range(length):
        scores = log_probabilities(model, torch.tensor([tokens for tokens, _ in alive]), memory)
        longer = [
            ([*tokens, token], score + float(row[token]))
            for (tokens, score), row in zip(alive, scores, strict=True)
            for token in range(VOCABULARY)
        ]
        longer = sorted(longer, key=lambda h: -h[1])[:beam]
        ended += [(tokens[1:-1], score) for tokens, score in longer if tokens[-1] == model.eos]
        alive = [h for h in longer if h[0][-1] != model.eos]
        if not alive:
            break
    ended += [(tokens[1:], score) for tokens, score in alive]
    return sorted(ended, key=lambda h: -h[1])[:beam]


@pytest.mark.parametrize(("layer", "frames"), [(LAYERS, None), (ATTENTION, None), (ATTENTION, 5)])
@pytest.mark.parametrize("beam", [1, 3, 6])
def test_a_search_by_steps_finds_what_recomputing_finds(layer: Any, frames: int | None, beam: int) -> None:
    model = language_model(layer=layer)
    memory = None if frames is None else torch.randn(frames, 8, dtype=torch.float64)
    expected = recomputed(model, beam, 9, memory)
    found = model.search(beam, 9, memory)
    assert [tokens for tokens, _ in found] == [tokens for tokens, _ in expected]
    assert [score for _, score in found] == pytest.approx([score for _, score in expected], abs=1e-9)
    assert len(found) == beam
    assert len({tuple(tokens) for tokens, _ in found}) == beam


def test_every_hypothesis_is_scored_from_its_own_state() -> None:
    """ESPnet's batch_score takes the state of the first hypothesis for all of them."""
    model = language_model()
    tokens = torch.randint(0, VOCABULARY, (3, 6))
    states: list[Any] = [model.init_state() for _ in tokens]
    for t in range(6):
        scores, states = model.batch_score(tokens[:, : t + 1], states)
        torch.testing.assert_close(scores, log_probabilities(model, tokens[:, : t + 1], None))
    kept = [model.select_state(states, i) for i in (2, 0, 2)]
    longer = torch.cat((tokens[[2, 0, 2]], torch.tensor([[1], [2], [3]])), 1)
    scores, _ = model.batch_score(longer, kept)
    torch.testing.assert_close(scores, log_probabilities(model, longer, None))
    one, _ = model.score(longer[1], kept[1])
    torch.testing.assert_close(one, scores[1])
    assert model.final_score(kept[0]) == 0
    with pytest.raises(ValueError, match="states must have one entry for each of the 3 hypotheses, got 2"):
        model.batch_score(longer, kept[:2])


def test_padded_frames_of_the_encoder_are_not_seen() -> None:
    model = language_model(layer=ATTENTION)
    tokens, lengths = torch.randint(0, VOCABULARY, (2, 4)), torch.tensor([4, 4])
    memory = torch.randn(2, 7, 8, dtype=torch.float64)
    y, same = model(memory, torch.tensor([7, 3]), tokens, lengths)
    assert same is lengths
    torch.testing.assert_close(y[1:], model(memory[1:, :3], None, tokens[1:], lengths[1:])[0])
    torch.testing.assert_close(model(memory, [7, 3], tokens, [4, 4])[0], y)
    with pytest.raises(ValueError, match=r"hlens must have shape \(batch=2\)"):
        model(memory, torch.tensor([7]), tokens, lengths)


def test_what_it_refuses() -> None:
    with pytest.raises(ValueError, match="input_layer must be 'embed', got 'linear'"):
        S4Decoder(5, 4, "linear")
    with pytest.raises(ValueError, match="beam and length must be at least 1, got 0 and 3"):
        language_model().search(0, 3)


@pytest.mark.parametrize(("layer", "frames"), [(LAYERS, 3), (ATTENTION, 5)])
def test_espnets_beam_search(layer: Any, frames: int) -> None:
    pytest.importorskip("espnet", reason="pip install --no-deps -r tests/parity/requirements.txt")
    batch_beam_search = pytest.importorskip("espnet.nets.batch_beam_search")
    scorers = pytest.importorskip("espnet.nets.scorer_interface")
    model = language_model(compat.espnet_decoder(), layer)
    assert isinstance(model, S4Decoder)
    assert isinstance(model, scorers.BatchScorerInterface)
    memory = torch.randn(frames, 8, dtype=torch.float64)
    search = batch_beam_search.BatchBeamSearch(
        scorers={"decoder": model},
        weights={"decoder": 1.0},
        beam_size=3,
        vocab_size=VOCABULARY,
        sos=model.sos,
        eos=model.eos,
    )
    with torch.no_grad():
        found = search(memory, maxlenratio=-6)
    assert len(found) >= 3
    for hypothesis in found[:3]:  # the end of the longest is put there without a score
        tokens = hypothesis.yseq[None] if len(hypothesis.yseq) < 8 else hypothesis.yseq[None, :-1]
        scores = model(memory[None], None, tokens[:, :-1], torch.tensor([tokens.shape[1] - 1]))[
            0
        ].log_softmax(-1)
        total = scores.detach()[0].gather(-1, tokens[0, 1:, None]).sum()
        assert float(hypothesis.score) == pytest.approx(float(total), abs=1e-4)  # it adds in float32


def test_a_checkpoint_of_espnets_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("espnet2", reason="pip install --no-deps -r tests/parity/requirements.txt")
    typeguard = ModuleType("typeguard")
    typeguard.typechecked = lambda function: function  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "typeguard", typeguard)  # what it imports, and does not need
    decoder = pytest.importorskip("espnet2.asr.decoder.s4_decoder")
    layer = [{"_name_": "s4", "d_state": 8}, {"_name_": "ff"}]
    theirs, ours = language_model(decoder.S4Decoder, copy.deepcopy(layer)), language_model(layer=layer)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    loaded = compat.load_espnet(theirs.state_dict(), "decoder.")
    whole = compat.load_espnet(theirs.state_dict())
    assert isinstance(whole, S4Decoder)
    tokens = torch.randint(0, VOCABULARY, (2, 6))
    expected = ours(None, None, tokens, torch.tensor([6, 6]))[0]
    torch.testing.assert_close(whole(None, None, tokens, torch.tensor([6, 6]))[0], expected)
    torch.testing.assert_close(ours.output(loaded(ours.embed(tokens))[0]), expected)
