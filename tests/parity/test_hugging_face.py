"""Hugging Face's Mamba models as black boxes: equality where they are right, and where they are wrong by how much."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from sequence_kernels import compat
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


@pytest.fixture
def installed() -> Iterator[None]:
    with compat.install():
        yield


FAMILIES = pytest.mark.parametrize("make", [mamba, mamba2])


def logits(model: Any, *args: Any, **options: Any) -> Tensor:
    with torch.no_grad():
        return model(*args, **options).logits.double()


@FAMILIES
def test_install_changes_no_number_and_can_be_undone(make: Any) -> None:
    model, x = make(), tokens(2, 40)
    want = logits(model, x)
    mixer = type(model.backbone.layers[0].mixer)
    before = dict(vars(mixer))
    with compat.install():
        assert dict(vars(mixer)) != before
        got = logits(model, x)
        made = model.generate(x, max_new_tokens=8, do_sample=False, eos_token_id=-1, pad_token_id=0)
    assert dict(vars(mixer)) == before
    assert error(got, want) < 1e-6
    alone = model.generate(x, max_new_tokens=8, do_sample=False, eos_token_id=-1, pad_token_id=0)
    assert torch.equal(made, alone)


def test_gradients_are_the_same() -> None:
    model, x = mamba(), tokens(2, 20)
    found = []
    for stack in (contextlib.nullcontext(), compat.install()):
        with stack:
            loss = model(x, labels=x).loss
            found.append(torch.autograd.grad(loss, list(model.parameters())))
    for ours, theirs in zip(found[1], found[0], strict=True):
        assert error(ours.double(), theirs.double()) < 1e-4  # theirs are computed in float32


@FAMILIES
@pytest.mark.usefixtures("installed")
def test_a_second_part_goes_on_from_the_cache(make: Any) -> None:
    """Theirs raises IndexError (Mamba), or takes the first token alone and the state wrongly (Mamba2)."""
    model, x = make(), tokens(2, 23)
    whole = logits(model, x)
    with torch.no_grad():
        first = model(x[:, :10], use_cache=True)
        second = model(
            x[:, 10:], cache_params=first.cache_params, use_cache=True, cache_position=torch.arange(10, 23)
        )
    assert error(second.logits.double(), whole[:, 10:]) < 1e-6


@FAMILIES
@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("left", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_padding_at_either_end_does_not_count(make: Any, left: bool, bias: bool) -> None:
    """Theirs lets biases into the padding, ignores the mask of a single row (Mamba2), and decays in it at the end."""
    model, x = make(use_bias=bias), tokens(1, 12)
    for name, parameter in model.named_parameters():
        if name.endswith(("in_proj.bias", "conv1d.bias")):
            torch.nn.init.normal_(parameter)
    follows = torch.tensor([[7]])
    whole = logits(model, torch.cat((x, follows), 1))
    pads, ones = torch.zeros(1, 5, dtype=x.dtype), torch.ones(1, 12, dtype=x.dtype)
    order = (lambda a, b: torch.cat((a, b), 1)) if left else (lambda a, b: torch.cat((b, a), 1))
    with torch.no_grad():
        prompt = model(order(pads, x), attention_mask=order(pads, ones), use_cache=True)
        here = prompt.logits[:, 5:] if left else prompt.logits[:, :12]
        assert error(here.double(), whole[:, :12]) < 1e-6
        then = model(
            follows, cache_params=prompt.cache_params, use_cache=True, cache_position=torch.tensor([17])
        )
    assert error(then.logits[:, -1].double(), whole[:, -1]) < 1e-6
