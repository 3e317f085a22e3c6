"""``mamba_ssm.models`` and ``mamba_ssm.utils``: models, generation and checkpoints as code around Mamba uses them."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sequence_kernels import compat
from sequence_kernels.compat.generation import Generated, InferenceParams, decode, sample
from sequence_kernels.compat.language_model import Block, MambaConfig, MambaLMHeadModel, create_block

KINDS: dict[str, dict[str, Any]] = {
    "mamba": {"d_state": 3},
    "mamba2": {"layer": "Mamba2", "d_state": 4, "headdim": 4, "ngroups": 2},
}
every_kind = pytest.mark.parametrize("kind", KINDS)

#: How many arguments mamba_ssm 2.3's functions have, without self.
ARITIES = {
    "models.mixer_seq_simple.create_block": 12,
    "models.mixer_seq_simple.MixerModel": 14,
    "models.mixer_seq_simple.MambaLMHeadModel": 4,
    "models.mixer_seq_simple._init_weights": 5,
    "models.config_mamba.MambaConfig": 12,
    "modules.block.Block": 6,
    "modules.mlp.GatedMLP": 8,
    "utils.generation.sample": 5,
    "utils.generation.decode": 15,
    "utils.generation.InferenceParams": 6,
    "utils.hf.load_config_hf": 1,
    "utils.hf.load_state_dict_hf": 3,
}


@pytest.fixture(autouse=True)
def installed() -> Iterator[None]:
    with compat.install(verbose=False):
        yield


def config(kind: str, **options: Any) -> MambaConfig:
    return MambaConfig(d_model=8, n_layer=2, vocab_size=21, ssm_cfg=KINDS[kind], **options)


def model(kind: str, **options: Any) -> MambaLMHeadModel:
    torch.manual_seed(0)
    lm = MambaLMHeadModel(config(kind, **options))
    for parameter in lm.parameters():  # norms too
        parameter.data += 0.1 * torch.randn_like(parameter)
    return lm.double().eval()  # of numbers that float32 holds, which is what load_mamba makes


def some_tokens(batch: int, length: int) -> Tensor:
    return torch.randint(21, (batch, length), generator=torch.Generator().manual_seed(1))


def close(got: Any, want: Any, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("path", "count"), ARITIES.items())
def test_arguments_are_those_of_upstream(path: str, count: int) -> None:
    module, _, name = path.rpartition(".")
    found = getattr(__import__(f"mamba_ssm.{module}", fromlist=[name]), name)
    parameters = inspect.signature(found).parameters.values()
    assert len(parameters) == count
    assert {p.kind for p in parameters} == {inspect.Parameter.POSITIONAL_OR_KEYWORD}


@every_kind
def test_a_model_is_ours_of_the_same_parameters(kind: str) -> None:
    """And its state dict, tied or not, is one that ``load_mamba`` takes, with its groups named."""
    for tied in (True, False):
        lm, tokens = model(kind, tie_embeddings=tied), some_tokens(2, 9)
        state = lm.state_dict()
        assert state["lm_head.weight"].shape == (24, 8)
        assert (lm.lm_head.weight is lm.backbone.embedding.weight) == tied
        ours = compat.load_mamba(state, **({"ngroups": 2} if kind == "mamba2" else {})).double().eval()
        want, _ = ours(tokens)
        close(lm(tokens).logits, want)
        close(lm(tokens, num_last_tokens=2).logits, want[:, -2:])
        lm.load_state_dict(compat.export_mamba(ours))  # strictly


@every_kind
@pytest.mark.parametrize("fused", [True, False])
def test_an_mlp_and_layer_norms(kind: str, fused: bool) -> None:
    options = {"d_intermediate": 20, "rms_norm": False, "fused_add_norm": fused}
    lm, tokens = model(kind, **options), some_tokens(2, 9)
    backbone = lm.backbone
    x = backbone.embedding(tokens)
    for block in backbone.layers:
        norm, norm2 = block.norm, block.norm2
        x = x + block.mixer(F.layer_norm(x, (8,), norm.weight, norm.bias, 1e-5))
        h, gate = block.mlp.fc1(F.layer_norm(x, (8,), norm2.weight, norm2.bias, 1e-5)).chunk(2, -1)
        assert h.shape[-1] == 128
        x = x + block.mlp.fc2(h * F.silu(gate))
    y = F.layer_norm(x, (8,), backbone.norm_f.weight, backbone.norm_f.bias, 1e-5)
    close(lm(tokens).logits, y @ backbone.embedding.weight.T)


@pytest.mark.parametrize("fused", [True, False])
def test_the_sum_is_wider_than_half_precision(fused: bool) -> None:
    x = torch.randn(1, 4, 8).bfloat16()
    for in_fp32, kind in ((True, torch.float32), (False, torch.bfloat16)):
        block = create_block(
            8, rms_norm=True, fused_add_norm=fused, residual_in_fp32=in_fp32, dtype=torch.bfloat16
        )
        y, total = block(x)
        assert (y.dtype, total.dtype) == (torch.bfloat16, kind)


@every_kind
def test_a_cache_goes_on_by_any_number_of_tokens(kind: str) -> None:
    lm, tokens = model(kind, d_intermediate=20), some_tokens(2, 12)
    want = lm(tokens).logits
    params = InferenceParams(max_seqlen=12, max_batch_size=2)
    params.key_value_memory_dict = lm.allocate_inference_cache(2, 12)
    for _ in range(2):
        params.reset(12, 2)
        found = []
        for begin, end in ((0, 5), (5, 6), (6, 11), (11, 12)):
            found.append(lm(tokens[:, begin:end], inference_params=params).logits)
            params.seqlen_offset = end
        close(torch.cat(found, 1), want)


@every_kind
@torch.no_grad()
def test_generation_is_the_best_of_every_score(kind: str) -> None:
    lm, tokens = model(kind), some_tokens(2, 5)
    found = lm.generate(tokens, 12, return_dict_in_generate=True, output_scores=True, vocab_size=21)
    assert isinstance(found, Generated)
    assert found.sequences.shape == (2, 12)
    assert torch.equal(found.sequences[:, :5], tokens)
    want = lm(found.sequences).logits[:, 4:-1, :21]
    assert found.scores is not None
    close(torch.stack(found.scores, 1), want)
    assert torch.equal(found.sequences[:, 5:], want.argmax(-1))
    ours = compat.load_mamba(lm.state_dict(), **({"ngroups": 2} if kind == "mamba2" else {})).double().eval()
    assert torch.equal(lm.generate(tokens, 12)[:, 5:], ours.generate(tokens, 7, temperature=0)[0])


def test_what_ends_and_steers_a_generation(capsys: pytest.CaptureFixture[str]) -> None:
    lm, tokens = model("mamba"), some_tokens(1, 3)
    best = lm.generate(tokens, 10)
    end = int(best[0, 5])
    cut = 4 + best[0, 3:].tolist().index(end)
    assert torch.equal(lm.generate(tokens, 10, eos_token_id=end), best[:, :cut])
    teacher = torch.full((1, 8), 7)
    taught = lm.generate(tokens, 10, teacher_outputs=teacher)
    assert torch.equal(taught[0, 3:8], teacher[0, 3:])
    fresh = lm.generate(tokens, 10, repetition_penalty=1e9)
    assert len(set(fresh[0].tolist())) == len(
        fresh[0]
    )  # scores here are of both signs, all but 0 when penalised

    class Streamer:
        def __init__(self) -> None:
            self.seen: list[Tensor] = []

        def put(self, tokens: Tensor) -> None:
            self.seen.append(tokens)

        def end(self) -> None:
            self.seen.append(torch.empty(1, 0, dtype=torch.int64))

    streamer = Streamer()
    decode(tokens, lm, 10, streamer=streamer, enable_timing=True)
    assert torch.equal(torch.cat(streamer.seen, 1), best)
    assert "Prompt processing + decoding time" in capsys.readouterr().out


def test_sampling_keeps_to_its_bounds() -> None:
    torch.manual_seed(0)
    logits = torch.tensor([0.1, 0.2, 0.3, 0.4]).log().expand(2000, 4)
    assert sample(logits).unique().tolist() == [3]
    assert sample(logits, top_k=2).unique().tolist() == [2, 3]
    assert sample(logits, top_k=0, top_p=0.71).unique().tolist() == [1, 2, 3]
    assert sample(logits, top_k=0, min_p=0.6).unique().tolist() == [2, 3]
    assert sample(logits, top_k=0).unique().tolist() == [0, 1, 2, 3]
    for name in ("top_p", "min_p"):
        with pytest.raises(ValueError, match=f"{name} must be between 0 and 1, got 2"):
            sample(logits, **{name: 2})
    with pytest.raises(ValueError, match="temperature must be above 0, got 0"):
        sample(logits, 0, temperature=0)


@every_kind
def test_a_directory_is_written_and_read(kind: str, tmp_path: Path) -> None:
    from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel as Model  # type: ignore[import-not-found]
    from mamba_ssm.utils.hf import load_config_hf, load_state_dict_hf  # type: ignore[import-not-found]

    lm, tokens = model(kind), some_tokens(1, 6)
    lm.save_pretrained(tmp_path / "new")
    back = Model.from_pretrained(tmp_path / "new", dtype=torch.float64).eval()
    assert back.config == lm.config
    close(back(tokens).logits, lm(tokens).logits)
    close(compat.load_mamba(tmp_path / "new").double().eval()(tokens)[0], lm(tokens).logits)
    assert load_config_hf(tmp_path / "new")["ssm_cfg"] == KINDS[kind]
    half = load_state_dict_hf(tmp_path / "new", dtype=torch.bfloat16)
    assert {t.dtype for t in half.values()} == {torch.bfloat16}
    with pytest.raises(ValueError, match="got 'state-spaces/mamba-130m': nothing is downloaded here"):
        Model.from_pretrained("state-spaces/mamba-130m")
    with pytest.raises(ValueError, match=r"has no config.json"):
        Model.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"has none of model.safetensors, pytorch_model.bin"):
        load_state_dict_hf(tmp_path)


def test_what_is_not_there_is_named() -> None:
    with pytest.raises(NotImplementedError, match="attn_layer_idx must not have layer 1: attention"):
        model("mamba", attn_layer_idx=[1])
    with pytest.raises(NotImplementedError, match="must be one of Mamba1, Mamba2, got 'Mamba3'"):
        create_block(8, ssm_cfg={"layer": "Mamba3"})
    with pytest.raises(ValueError, match="must be one of Mamba1, Mamba2, got 'Mamba4'"):
        create_block(8, ssm_cfg={"layer": "Mamba4"})
    with pytest.raises(ValueError, match="needs a norm_cls of LayerNorm or RMSNorm, got Identity"):
        Block(8, torch.nn.Identity, norm_cls=torch.nn.Identity, fused_add_norm=True)


def test_parameters_start_as_in_mamba_ssm() -> None:
    torch.manual_seed(0)
    lm = MambaLMHeadModel(MambaConfig(d_model=64, n_layer=9, vocab_size=800, d_intermediate=64))
    assert abs(float(lm.backbone.embedding.weight.detach().std()) - 0.02) < 1e-3
    for block in lm.backbone.layers:
        assert float(block.mixer.out_proj.weight.detach().abs().max()) < 128**-0.5 / 3 + 1e-6
        assert float(block.mlp.fc2.weight.detach().abs().max()) < 128**-0.5 / 3 + 1e-6
        assert float(block.mixer.dt_proj.bias.detach().min()) < -2  # steps of 0.001 to 0.1, not zeros
