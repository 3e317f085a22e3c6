"""Hugging Face's Mamba models as black boxes: equality where they are right, and where they are wrong by how much."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sequence_kernels.compat import load_mamba

transformers = pytest.importorskip(
    "transformers", reason="pip install --no-deps -r tests/parity/requirements.txt"
)

COMMON = {"hidden_size": 24, "num_hidden_layers": 2, "vocab_size": 30, "use_cache": True}
MAMBA = {**COMMON, "state_size": 5, "use_mambapy": False}
MAMBA2 = {**COMMON, "state_size": 6, "num_heads": 6, "head_dim": 8, "n_groups": 1, "chunk_size": 16}


def mamba(**options: Any) -> Any:
    torch.manual_seed(0)
    config = transformers.MambaConfig(**MAMBA, **options)
    return transformers.MambaForCausalLM(config).double().eval()


def mamba2(**options: Any) -> Any:
    torch.manual_seed(0)
    config = transformers.Mamba2Config(**{**MAMBA2, **options})
    return transformers.Mamba2ForCausalLM(config).double().eval()


def tokens(batch: int, length: int) -> Tensor:
    return torch.randint(30, (batch, length), generator=torch.Generator().manual_seed(1))


def error(got: Tensor, want: Tensor) -> float:
    return float((got - want).detach().norm() / want.detach().norm())


@torch.no_grad()
def agreement(model: Any, x: Tensor, **options: Any) -> float:
    ours = load_mamba(model.state_dict(), **options).double().eval()
    return error(ours(x)[0], model(x).logits.double())


@pytest.mark.parametrize("bias", [False, True])
def test_mamba_is_the_same_function(bias: bool) -> None:
    assert agreement(mamba(use_bias=bias), tokens(2, 70)) < 1e-6


@pytest.mark.parametrize("limit", [(0.0, float("inf")), (0.01, 0.05)])
def test_mamba2_is_the_same_function(limit: tuple[float, float]) -> None:
    assert agreement(mamba2(time_step_limit=limit), tokens(2, 70), dt_limit=limit) < 1e-6


@torch.no_grad()
def test_padding_at_the_end_spoils_its_cache_and_not_our_state() -> None:
    model, x = mamba(), tokens(1, 12)
    ours = load_mamba(model.state_dict()).double().eval()
    padded = torch.cat((x, torch.zeros(1, 5, dtype=x.dtype)), 1)
    _, state = ours(padded, ours.default_state(1), lengths=[12])
    follows, _ = ours.step(torch.tensor([7]), state)
    whole, _ = ours(torch.cat((x, torch.tensor([[7]])), 1))
    assert error(follows, whole[:, -1]) < 1e-12
    mask = torch.cat((torch.ones(1, 12), torch.zeros(1, 5)), 1).long()
    cache = model(padded, attention_mask=mask).cache_params
    theirs = model(
        torch.tensor([[7]]), cache_params=cache, use_cache=True, cache_position=torch.tensor([17])
    ).logits[:, -1]
    assert error(theirs.double(), whole[:, -1]) > 0.1


@torch.no_grad()
def test_generation_is_the_same() -> None:
    model, x = mamba(), tokens(2, 9)
    ours = load_mamba(model.state_dict()).double().eval()
    want = model.generate(x, max_new_tokens=12, do_sample=False, eos_token_id=-1, pad_token_id=0)[:, 9:]
    assert torch.equal(ours.generate(x, 12, temperature=0)[0], want)
