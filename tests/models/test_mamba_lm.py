"""The Mamba language model: prompts, states, sampling, and checkpoints of others."""

from __future__ import annotations

import io
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sequence_kernels import Mamba, Mamba2, MambaLM, native
from sequence_kernels.compat import export_mamba, load_mamba
from sequence_kernels.models import sample

KINDS: dict[str, dict[str, Any]] = {
    "mamba": {"d_state": 3},
    "mamba2": {"d_state": 4, "headdim": 4, "ngroups": 2},
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def model(kind: str, **options: Any) -> MambaLM:
    torch.manual_seed(0)
    return MambaLM(21, 16, 2, kind, **{**KINDS[kind], **options}).double().eval()


def some_tokens(batch: int, length: int) -> Tensor:
    return torch.randint(21, (batch, length), generator=torch.Generator().manual_seed(1))


def close(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


@every_kind
def test_any_split_and_steps_are_the_whole(kind: str) -> None:
    lm, tokens = model(kind), some_tokens(2, 70)
    whole, after = lm(tokens, lm.default_state(2))
    assert whole.shape == (2, 70, 24)
    first, state = lm(tokens[:, :33], lm.default_state(2))
    second, state = lm(tokens[:, 33:69], state)
    last, state = lm.step(tokens[:, 69], state)
    close(torch.cat((first, second, last.unsqueeze(1)), 1), whole)
    for layer, want in zip(state, after, strict=True):
        for part, other in zip(layer, want, strict=True):
            close(part, other)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        *itertools.product(KINDS, ({}, {"tie_embeddings": False}, {"bias": True, "conv_bias": False})),
        ("mamba", {"inner_norm": "plain", "inner_norm_eps": 0.1}),
        ("mamba", {"inner_norm": "learned"}),
        ("mamba2", {"norm_groups": 1}),
    ],
    ids=str,
)
def test_the_stepper_is_the_model(kind: str, options: dict[str, Any]) -> None:
    lm, tokens = model(kind, **options), some_tokens(3, 12)
    want, after = lm(tokens, lm.default_state(3))
    stepper = lm.stepper((3,))
    assert (stepper._program is None) == (native.unavailable("cpu") is not None)
    block = stepper.forward(tokens[:, :5])
    steps = [stepper.step(tokens[:, t]) for t in range(5, 12)]
    close(torch.cat((block, torch.stack(steps, 1)), 1), want)
    for got, layer in zip(stepper.state, after, strict=True):
        for part, other in zip(got, layer, strict=True):
            close(part, other)
    pool = lm.stepper((7,))
    rows = [pool.step(tokens[:, t], state_indices=torch.tensor([6, -1, 2])) for t in range(12)]
    close(torch.stack(rows, 1)[[0, 2]], want[[0, 2]])
    for typo in ("tokens", "rate", "state_dtpye"):
        with pytest.raises(TypeError, match=rf"MambaLM.stepper takes no argument '{typo}'"):
            lm.stepper((3,), **{typo: 1})
    with pytest.raises(TypeError, match=r"tokens must be a tensor of integers, got \(3, 16\) torch.float64"):
        stepper.step(torch.randn(3, 16).double())


@every_kind
@torch.no_grad()
def test_a_stepper_of_half_precision_sums_as_the_model_does(kind: str) -> None:
    lm, tokens = model(kind).bfloat16(), some_tokens(3, 12)
    want, _ = lm(tokens, lm.default_state(3))
    stepper = lm.stepper((3,))
    got = torch.stack([stepper.step(tokens[:, t]) for t in range(12)], 1)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.float(), want.float(), rtol=0.02, atol=0.02 * float(want.abs().max()))


@every_kind
def test_many_tokens_are_generated_as_a_few_are(kind: str) -> None:
    """From some number on a stepper does it."""
    lm, tokens = model(kind), some_tokens(2, 5)
    many, state = lm.generate(tokens, 40, temperature=0)
    few, here = lm.generate(tokens, 20, temperature=0)
    more, after = lm.generate(few[:, -1:], 20, state=here, temperature=0)
    assert torch.equal(torch.cat((few, more), 1), many)
    for layer, want in zip(state, after, strict=True):
        for part, other in zip(layer, want, strict=True):
            close(part, other)


@every_kind
def test_prompts_of_unequal_length_go_on_as_each_alone(kind: str) -> None:
    lm, tokens = model(kind), some_tokens(3, 40)
    lengths = [40, 7, 1]
    found, state = lm.generate(tokens, 5, lengths=lengths, temperature=0)
    assert found.shape == (3, 5)
    for row, length in enumerate(lengths):
        alone, _ = lm.generate(tokens[row : row + 1, :length], 5, temperature=0)
        assert torch.equal(found[row], alone[0])
    more, _ = lm.generate(found[:, -1:], 4, state=state, temperature=0)  # resumed
    longer, _ = lm.generate(tokens, 9, lengths=lengths, temperature=0)
    assert torch.equal(torch.cat((found, more), 1), longer)


@every_kind
@pytest.mark.parametrize("count", [6, 40])  # by steps, and by a stepper
def test_a_state_is_saved_and_resumed(kind: str, count: int) -> None:
    lm, tokens = model(kind), some_tokens(2, 9)
    want, _ = lm.generate(tokens, count + 5, lengths=[9, 4], temperature=0)
    found, state = lm.generate(tokens, count, lengths=[9, 4], temperature=0)
    file = io.BytesIO()
    torch.save({"tokens": found, "state": state}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    again = model(kind)  # as another process would have it
    more, _ = again.generate(saved["tokens"][:, -1:], 5, state=saved["state"], temperature=0)
    assert torch.equal(torch.cat((found, more), 1), want)


def test_a_row_that_has_ended_stays_so() -> None:
    lm, tokens = model("mamba"), some_tokens(2, 10)
    free, _ = lm.generate(tokens, 12, temperature=0)
    end = int(free[0, 3])
    found, _ = lm.generate(tokens, 12, end=end, temperature=0)
    for row, other in zip(found, free, strict=True):
        places = (other == end).nonzero()
        stop = int(places[0]) if len(places) else 12
        assert torch.equal(row[:stop], other[: min(stop, len(row))])
        assert bool((row[stop:] == end).all())


@every_kind
@pytest.mark.parametrize("end", [None, 5])
def test_beams_find_the_most_probable_of_all(kind: str, end: int | None) -> None:
    """Prompts of unequal length; beams for all beginnings find what trying every continuation does."""
    lm, tokens = model(kind, tie_embeddings=False), some_tokens(2, 9)
    torch.nn.init.normal_(lm.lm_head.weight)  # so that tokens differ in their scores
    lengths, words = [9, 4], 24
    found, state = lm.generate(tokens, 2, lengths=lengths, end=end, num_beams=words)
    for row, length in enumerate(lengths):
        prompt = tokens[row : row + 1, :length]
        every = torch.cartesian_prod(torch.arange(words), torch.arange(words))
        logp = lm(torch.cat((prompt.expand(len(every), -1), every), 1))[0][:, length - 1 :].log_softmax(-1)
        first, second = (logp[:, i].gather(1, every[:, i : i + 1]).squeeze(1) for i in (0, 1))
        if end is not None:
            stays = every[:, 0] == end
            second = torch.where(stays, torch.where(every[:, 1] == end, 0.0, -torch.inf), second)
        best = every[(first + second).argmax()]
        assert found[row].tolist() == best.tolist()
        _, want = lm(torch.cat((prompt, best[None, :1]), 1), lm.default_state(1))
        for layer, other in zip(state, want, strict=True):
            for part, wanted in zip(layer, other, strict=True):
                close(part[row], wanted[0])


def test_one_beam_is_greedy_and_more_are_no_worse() -> None:
    lm, tokens = model("mamba", tie_embeddings=False), some_tokens(3, 8)
    torch.nn.init.normal_(lm.lm_head.weight)

    @torch.no_grad()
    def total(found: Tensor) -> Tensor:
        logp = lm(torch.cat((tokens, found), 1))[0][:, 7:-1].log_softmax(-1)
        return logp.gather(2, found.unsqueeze(-1)).sum((1, 2))

    greedy, best = (
        lm.generate(tokens, 9, **options)[0] for options in ({"temperature": 0}, {"num_beams": 6})
    )
    assert bool((total(best) >= total(greedy) - 1e-9).all())
    assert not torch.equal(best, greedy)
    end = int(best[0, 2])
    stopped, _ = lm.generate(tokens[:1], 9, end=end, num_beams=3)
    places = (stopped[0] == end).nonzero().flatten().tolist()
    assert places == list(range(places[0], stopped.shape[1])) if places else stopped.shape[1] == 9
    with pytest.raises(ValueError, match="num_beams must be at least 1, got 0"):
        lm.generate(tokens, 2, num_beams=0)
    with pytest.raises(ValueError, match="num_beams=2 draws nothing and takes no top_p"):
        lm.generate(tokens, 2, num_beams=2, top_p=0.5)


def test_sampling_draws_from_what_is_left() -> None:
    logits = torch.tensor([0.1, 0.2, 0.3, 0.4]).log().expand(4000, 4)
    draw = torch.Generator().manual_seed(0)
    assert sample(logits, temperature=0).unique().tolist() == [3]
    assert sample(logits, top_k=2, generator=draw).unique().tolist() == [2, 3]
    assert sample(logits, top_p=0.69, generator=draw).unique().tolist() == [2, 3]
    assert sample(logits, top_p=0.71, generator=draw).unique().tolist() == [1, 2, 3]
    shares = sample(logits, generator=draw).bincount(minlength=4) / 4000
    torch.testing.assert_close(shares, torch.tensor([0.1, 0.2, 0.3, 0.4]), atol=0.03, rtol=0)
    cold = sample(logits, temperature=0.25, generator=draw).bincount(minlength=4) / 4000
    assert float(cold[3]) > 0.7  # 0.4^4 of the sum of fourth powers
    with pytest.raises(ValueError, match=r"top_p must be above 0 and at most 1, got 2"):
        sample(logits, top_p=2.0)
    with pytest.raises(ValueError, match=r"temperature must be at least 0, got -1"):
        sample(logits, temperature=-1.0)


@every_kind
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("hugging_face", [True, False])
def test_checkpoints_go_out_and_come_back(tmp_path: Path, kind: str, tied: bool, hugging_face: bool) -> None:
    lm, tokens = (
        model(kind, bias=True, tie_embeddings=tied, dt_limit=(0.01, 0.1))
        if kind == "mamba2"
        else model(kind, bias=True, tie_embeddings=tied),
        some_tokens(2, 20),
    )
    state = export_mamba(lm, hugging_face=hugging_face)
    assert f"backbone.embedding{'s' if hugging_face else ''}.weight" in state
    torch.save(state, tmp_path / "pytorch_model.bin")
    config = (
        {"n_groups": 2, "time_step_limit": [0.01, 0.1], "layer_norm_epsilon": 1e-5}
        if hugging_face
        else {"ssm_cfg": {"layer": "Mamba2", "ngroups": 2, "dt_limit": [0.01, 0.1]}}
    )
    (tmp_path / "config.json").write_text(json.dumps(config))
    back = load_mamba(tmp_path).double().eval()
    close(back(tokens)[0], lm(tokens)[0])
    assert (back.lm_head is None) == tied
    layer = load_mamba(tmp_path, prefix="backbone.layers.1.mixer.").double().eval()
    assert isinstance(layer, Mamba2 if kind == "mamba2" else Mamba)
    x = torch.randn(1, 9, 16, dtype=torch.float64)
    close(layer(x)[0], lm.backbone.layers[1].mixer(x)[0])


@pytest.mark.parametrize("kind", ["mamba", "mamba2"])
def test_a_checkpoint_is_loaded_in_the_dtype_that_is_asked_for(kind: str) -> None:
    """float32 unless another is; of a float64 checkpoint no digit is lost then."""
    state, groups = export_mamba(model(kind)), {"ngroups": 2} if kind == "mamba2" else {}
    for dtype in (torch.float64, torch.bfloat16):
        loaded = load_mamba(state, dtype=dtype, **groups).state_dict()
        assert all(torch.equal(t, state[name].to(dtype)) for name, t in loaded.items())
    assert {p.dtype for p in load_mamba(state, **groups).parameters()} == {torch.float32}


def test_an_option_that_no_layer_takes_is_not_ignored() -> None:
    state = export_mamba(model("mamba"))
    for prefix in ("", "backbone.layers.0.mixer."):
        with pytest.raises(TypeError, match="ngroups"):
            load_mamba(state, prefix, ngroups=2)


def test_what_is_no_mamba_is_named() -> None:
    with pytest.raises(ValueError, match=r"no Mamba layer or model below prefix 'x.', but nothing"):
        load_mamba({"weight": torch.ones(1)}, prefix="x.")
    with pytest.raises(ValueError, match=r"layer must be one of mamba, mamba2, got 'mamba3'"):
        MambaLM(8, 8, 1, "mamba3")
    with pytest.raises(
        ValueError, match=r"tokens must be integers of shape \(batch, length\), got \(2, 3, 4\)"
    ):
        model("mamba")(torch.zeros(2, 3, 4))
    with pytest.raises(ValueError, match="lengths must be at least 1"):
        model("mamba").generate(some_tokens(2, 3), 1, lengths=[0, 3])


def test_safetensors_are_read(tmp_path: Path) -> None:
    files = pytest.importorskip("safetensors.torch", reason="pip install safetensors")
    lm, tokens = model("mamba"), some_tokens(1, 9)
    state = export_mamba(lm)
    del state["lm_head.weight"]  # tied, and so left out by those who save such files
    files.save_file(state, tmp_path / "model.safetensors")
    close(load_mamba(tmp_path).double().eval()(tokens)[0], lm(tokens)[0])
