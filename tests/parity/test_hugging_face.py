"""Hugging Face's Mamba models as black boxes: equality where they are right, and where they are wrong by how much."""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sequence_kernels import compat
from sequence_kernels.compat import load_mamba
from sequence_kernels.compat.hugging_face import MIXERS

transformers = pytest.importorskip(
    "transformers", reason="pip install --no-deps -r tests/parity/requirements.txt"
)

V5 = int(transformers.__version__.partition(".")[0]) >= 5
COMMON = {"hidden_size": 24, "num_hidden_layers": 2, "vocab_size": 30, "use_cache": True}
ATTENTION = {"num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 32}
SSD = {
    "mamba_n_heads": 6,
    "mamba_d_head": 8,
    "mamba_n_groups": 2,
    "mamba_d_state": 6,
    "mamba_chunk_size": 16,
    **ATTENTION,
}
#: The start of the names of the classes, and the configuration.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "mamba": ("Mamba", {"state_size": 5, "use_mambapy": False}),
    "falcon_mamba": ("FalconMamba", {"state_size": 5}),
    "jamba": (
        "Jamba",
        {
            **ATTENTION,
            "mamba_d_state": 5,
            "mamba_dt_rank": 3,
            "use_mamba_kernels": False,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "num_experts": 1,
            "num_experts_per_tok": 1,
        },
    ),
    "mamba2": ("Mamba2", {"state_size": 6, "num_heads": 6, "head_dim": 8, "n_groups": 2, "chunk_size": 16}),
    "bamba": ("Bamba", {**SSD, "attn_layer_indices": [1]}),
    "falcon_h1": (
        "FalconH1",
        {**SSD, "mamba_d_ssm": 48, "ssm_multipliers": [0.5, 0.7, 1.1, 0.9, 1.2], "ssm_in_multiplier": 0.8},
    ),
    "granitemoehybrid": (
        "GraniteMoeHybrid",
        {
            **SSD,
            "layer_types": ["mamba", "attention"],
            "shared_intermediate_size": 32,
            "num_local_experts": 0,
            "num_experts_per_tok": 0,
        },
    ),
    "zamba2": (
        "Zamba2",
        {
            **ATTENTION,
            "mamba_d_state": 6,
            "mamba_ngroups": 2,
            "n_mamba_heads": 6,
            "mamba_headdim": 8,
            "chunk_size": 64,
            "time_step_min": 0.05,
            "layers_block_type": ["mamba", "hybrid"],
            "num_mem_blocks": 1,
            "hybrid_layer_ids": [1],
        },
    ),
    "nemotron_h": (
        "NemotronH",
        {
            **ATTENTION,
            "ssm_state_size": 6,
            "n_groups": 2,
            "mamba_num_heads": 6,
            "mamba_head_dim": 8,
            "chunk_size": 16,
            "layers_block_type": ["mamba", "attention"],
            "time_step_min": 0.05,
        },
    ),
}
FAMILIES = pytest.mark.parametrize(
    "name", [name for name, (start, _) in MODELS.items() if hasattr(transformers, f"{start}Config")]
)


def made(name: str, **options: Any) -> Any:
    """A model of random parameters, its biases too."""
    torch.manual_seed(0)
    start, usual = MODELS[name]
    config = getattr(transformers, f"{start}Config")(**{**COMMON, **usual, **options})
    model = getattr(transformers, f"{start}ForCausalLM")(config).double().eval()
    for parameter, value in model.named_parameters():
        if parameter.endswith(("in_proj.bias", "conv1d.bias")):
            torch.nn.init.normal_(value)
    return model


def mamba(**options: Any) -> Any:
    return made("mamba", **options)


def mamba2(**options: Any) -> Any:
    return made("mamba2", n_groups=1, **options)


def empty_cache(model: Any, batch: int) -> Any:
    """What a model of attention and Mamba layers of transformers 4 must be given."""
    if V5 or not hasattr(model, "model"):
        return None
    module = sys.modules[type(model).__module__]
    (cls,) = (
        cls
        for name, cls in vars(module).items()
        if name.endswith("DynamicCache") and cls.__module__ == module.__name__
    )
    place = {"devices": ["cpu"] * 2} if "devices" in inspect.signature(cls).parameters else {"device": "cpu"}
    return cls(model.config, batch, dtype=torch.float64, **place)


@torch.no_grad()
def part(
    model: Any,
    x: Tensor,
    cache: Any = None,
    start: int = 0,
    mask: Tensor | None = None,
    rotation: int | None = None,
) -> tuple[Tensor, Any]:
    """The logits of the tokens from ``start`` on, and the cache behind them; ``rotation``: where attention has them."""
    name = "cache" if V5 else "past_key_values" if hasattr(model, "model") else "cache_params"
    cache = empty_cache(model, len(x)) if cache is None else cache
    places = torch.arange(start, start + x.shape[1])
    where = {} if V5 else {"cache_position": places}
    if hasattr(model, "model"):  # bamba of transformers 5 counts from 0 again otherwise
        where["position_ids"] = (places - start + (start if rotation is None else rotation)).expand(
            len(x), -1
        )
    if cache is not None:
        where[name] = cache
    found = model(x, use_cache=True, attention_mask=mask, **where)
    return found.logits.double(), getattr(found, name)


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
def test_falcon_mamba_is_the_same_function(tmp_path: Path) -> None:
    """Its norms have no weights: the configuration tells them."""
    model, x = made("falcon_mamba", mixer_rms_eps=0.01, layer_norm_epsilon=0.02), tokens(2, 40)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    model.config.save_pretrained(tmp_path)
    ours = load_mamba(tmp_path).double().eval()
    assert error(ours(x)[0], logits(model, x)) < 1e-6


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("jamba", {"rms_norm_eps": 0.01}),
        ("bamba", {"rms_norm_eps": 0.01}),
        ("granitemoehybrid", {"rms_norm_eps": 0.01}),
        ("mamba2", {"layer_norm_epsilon": 0.01, "n_groups": 1}),
    ],
)
def test_a_mixer_is_a_layer(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    model = made(name, **options)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    model.config.save_pretrained(tmp_path)
    (place, mixer), *_ = ((n, m) for n, m in model.named_modules() if m is mixers(model)[0])
    layer = load_mamba(tmp_path, prefix=f"{place}.").double().eval()
    x = torch.randn(2, 40, 24, dtype=torch.float64)
    assert error(layer(x)[0], mixer(x).double()) < 1e-6
    if name == "mamba2":
        assert error(load_mamba(tmp_path).double()(tokens(2, 40))[0], logits(model, tokens(2, 40))) < 1e-6


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
    theirs, _ = part(model, torch.tensor([[7]]), part(model, padded, mask=mask)[1], 17)
    assert error(theirs[:, -1], whole[:, -1]) > 0.1


@torch.no_grad()
def test_generation_is_the_same() -> None:
    model, x = mamba(), tokens(2, 9)
    ours = load_mamba(model.state_dict()).double().eval()
    want = model.generate(x, max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0)[:, 9:]
    assert torch.equal(ours.generate(x, 12, temperature=0)[0], want)


@pytest.fixture
def installed() -> Iterator[None]:
    with compat.install():
        yield


def logits(model: Any, *args: Any, **options: Any) -> Tensor:
    with torch.no_grad():
        return model(*args, **options).logits.double()


def mixers(model: Any) -> list[Any]:
    return [m for m in model.modules() if hasattr(m, "A_log") and hasattr(m, "conv1d")]


def test_every_family_that_is_served_is_tested() -> None:
    assert {f"modeling_{name}" for name in MODELS} == set(MIXERS)


@FAMILIES
def test_install_changes_no_number_and_can_be_undone(name: str) -> None:
    model, x = made(name), tokens(2, 40)
    want = logits(model, x)
    mixer = type(mixers(model)[0])
    before = dict(vars(mixer))
    options = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    with compat.install():
        assert dict(vars(mixer)) != before
        compat.install()  # once more changes nothing
        got = logits(model, x)
        generated = model.generate(x, **options)
    assert dict(vars(mixer)) == before
    assert error(got, want) < 1e-6
    assert torch.equal(generated, model.generate(x, **options))


@FAMILIES
def test_accelerate_keeps_names_parameters_and_numbers(name: str) -> None:
    model, x = made(name), tokens(2, 23)
    mixers(model)[0].D.requires_grad_(False)
    want, own, types = logits(model, x), dict(model.named_parameters()), [type(m) for m in mixers(model)]
    done = compat.accelerate(model)
    assert sorted(done.replaced.values()) == sorted(t.__name__ for t in types)
    assert not done.skipped
    assert not set(types) & {type(m) for m in mixers(model)}
    now = dict(model.named_parameters())
    assert list(now) == list(own)
    assert all(now[key] is own[key] for key in own)
    assert error(logits(model, x), want) < 1e-6
    whole, state = logits(model, x), None
    for start, end in ((0, 2), (2, 12), (12, 13), (13, 23)):
        y, state = part(model, x[:, start:end], state, start)
        assert error(y, whole[:, start:end]) < 1e-6
    other = copy.deepcopy(model).train()
    assert mixers(other)[0].training
    assert not mixers(model)[0].training
    first = mixers(other)[0]
    first.in_proj = copy.deepcopy(first.in_proj)  # as an adapter would be put in
    torch.nn.init.normal_(first.in_proj.weight)
    assert error(logits(other.eval(), x), whole) > 1e-6
    assert torch.equal(logits(model, x), whole)
    done.revert()
    assert [type(m) for m in mixers(model)] == types
    assert error(logits(model, x), want) < 1e-12


def test_accelerate_tries_a_mixer_before_it_replaces_it() -> None:
    """Which computes the same by its parts, and something else by its code."""
    model, x = mamba(), tokens(1, 9)
    want = logits(model, x)
    first = mixers(model)[0]
    name = "forward" if V5 else "slow_forward"
    theirs = getattr(first, name)
    changed_one = functools.wraps(theirs)(lambda *args, **kwargs: 1.01 * theirs(*args, **kwargs))
    setattr(first, name, changed_one)
    changed = logits(model, x)
    done = compat.accelerate(model)
    assert list(done.skipped) == ["backbone.layers.0.mixer"]
    assert "on a trial it computes something else than ours: they are 0.0099 apart" in str(done)
    assert list(done.replaced) == ["backbone.layers.1.mixer"]
    assert error(logits(model, x), changed) < 1e-6 < error(changed, want)


def test_accelerate_says_what_it_leaves() -> None:
    model = mamba2(hidden_act="gelu")
    assert "the activation 'gelu' has no counterpart here" in str(compat.accelerate(model))
    model = transformers.MambaForCausalLM(mamba().config).to("meta")
    assert "meta device" in str(compat.accelerate(model))
    zamba = torch.nn.Module()
    zamba.mixer = mixers(mamba())[0]
    zamba.mixer.x_proj_weight = torch.nn.Parameter(torch.zeros(2, 3, 4))
    assert "(x_proj_weight)" in str(compat.accelerate(zamba))


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
def test_a_second_part_goes_on_from_the_cache(name: str) -> None:
    model, x = made(name), tokens(2, 23)
    whole = logits(model, x)
    _, cache = part(model, x[:, :10])
    assert error(part(model, x[:, 10:], cache, 10)[0], whole[:, 10:]) < 1e-6


@FAMILIES
@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("left", [True, False])
def test_padding_at_either_end_does_not_count(name: str, left: bool) -> None:
    options = {"use_bias": True} if name in ("mamba", "falcon_mamba", "mamba2") else {}
    model, x = made(name, **options), tokens(1, 12)
    follows = torch.tensor([[7]])
    whole = logits(model, torch.cat((x, follows), 1))
    pads, ones = torch.zeros(1, 5, dtype=x.dtype), torch.ones(1, 12, dtype=x.dtype)

    def order(a: Tensor, b: Tensor) -> Tensor:
        return torch.cat((a, b), 1) if left else torch.cat((b, a), 1)

    here, cache = part(model, order(pads, x), mask=order(pads, ones))
    assert error(here[:, 5:] if left else here[:, :12], whole[:, :12]) < 1e-6
    mask = torch.cat((order(pads, ones), torch.ones_like(follows)), 1)
    then, _ = part(model, follows, cache, 17, mask, rotation=17 if left else 12)
    assert error(then[:, -1], whole[:, -1]) < 1e-6


@pytest.mark.usefixtures("installed")
def test_steps_obey_the_limit_of_time_steps() -> None:
    model, x = mamba2(time_step_limit=(0.0, 0.05)), tokens(2, 9)
    whole, cache, found = logits(model, x), None, []
    for i in range(9):
        y, cache = part(model, x[:, i : i + 1], cache, i)
        found.append(y)
    assert error(torch.cat(found, 1), whole) < 1e-6


@pytest.mark.usefixtures("installed")
def test_zamba2_does_not_depend_on_its_chunks() -> None:
    """Theirs of transformers 4 sums the states that chunks hand on over the wrong axis."""
    x = tokens(2, 60)
    short, long = (logits(made("zamba2", chunk_size=size), x) for size in (16, 64))
    assert torch.equal(short, long)
    compat.uninstall()
    assert error(short, logits(made("zamba2", chunk_size=64), x)) < 1e-6


@FAMILIES
@pytest.mark.usefixtures("installed")
def test_training_is_evaluation(name: str) -> None:
    model, x = made(name), torch.randn(2, 9, 24, dtype=torch.float64)
    mixer = mixers(model)[0]
    assert torch.equal(mixer.train()(x), mixer.eval()(x))


@pytest.mark.usefixtures("installed")
def test_jamba_runs_without_kernels() -> None:
    x = tokens(2, 9)
    assert torch.equal(
        logits(made("jamba", use_mamba_kernels=True), x), logits(made("jamba", use_mamba_kernels=False), x)
    )


@FAMILIES
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_no_worse(name: str, dtype: torch.dtype) -> None:
    exact = made(name)
    x, model = tokens(2, 40), copy.deepcopy(exact).to(dtype)
    want, theirs = logits(exact, x), logits(model, x)
    with compat.install():
        assert error(logits(model, x), want) < 1.2 * error(theirs, want)


@FAMILIES
def test_accelerate_trains_under_autocast(name: str) -> None:
    model, x = made(name).float().train(), tokens(2, 12)
    with torch.autocast("cpu", torch.bfloat16):
        want = model(x, labels=x, use_cache=False).loss
        assert not compat.accelerate(model).skipped
        loss = model(x, labels=x, use_cache=False).loss
    loss.backward()
    assert abs(loss.item() - want.item()) < 0.01
    assert all(p.grad is not None for m in mixers(model) for p in m.parameters())
