"""S6, Mamba and Mamba-2 against their formulas, element by element in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sequence_kernels import S6, Mamba, Mamba2, parameter_groups
from sequence_kernels.module import SequenceModule

F64 = torch.float64


def drawn(cls: type[SequenceModule], *args: Any, **options: Any) -> Any:
    """All parameters at random, so that none that is zero or one at the start goes unnoticed."""
    torch.manual_seed(0)
    layer = cls(*args, **options).double().eval()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return layer


def convolved(conv: Any, u: Tensor) -> Tensor:
    taps, length = conv.weight.shape[-1], u.shape[1]
    padded = F.pad(u, (0, 0, taps - 1, 0))
    y = sum(conv.weight[:, 0, k] * padded[:, k : k + length] for k in range(taps))
    return F.silu(y + (0 if conv.bias is None else conv.bias))


def recurrence(layer: Any, u: Tensor) -> Tensor:
    rank, size = layer.dt_rank, layer.A_log.shape[1]
    low, b, c = (u @ layer.x_proj.weight.T).split([rank, size, size], -1)
    if getattr(layer, "inner_norm", None) is not None:
        norms = layer.dt_layernorm, layer.b_layernorm, layer.c_layernorm
        low, b, c = (
            t
            / (t.square().mean(-1, keepdim=True) + norm.eps).sqrt()
            * (1 if norm.weight is None else norm.weight)
            for t, norm in zip((low, b, c), norms, strict=True)
        )
    dt = F.softplus(low @ layer.dt_proj.weight.T + layer.dt_proj.bias)
    h, outputs = torch.zeros(len(u), u.shape[2], size, dtype=F64), []
    for t in range(u.shape[1]):
        h = torch.exp(-dt[:, t, :, None] * torch.exp(layer.A_log)) * h
        h = h + (dt[:, t] * u[:, t]).unsqueeze(-1) * b[:, t].unsqueeze(1)
        outputs.append((h * c[:, t].unsqueeze(1)).sum(-1) + layer.D * u[:, t])
    return torch.stack(outputs, 1)


def close(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11)


def test_s6_is_the_recurrence() -> None:
    layer, x = drawn(S6, 20, d_state=3), torch.randn(2, 9, 20, dtype=F64)
    close(layer(x)[0], recurrence(layer, x))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bias": True, "conv_bias": False, "d_conv": 3, "expand": 1.5, "dt_rank": 4},
        {"inner_norm": "learned", "inner_norm_eps": 0.1, "dt_rank": 4},
        {"inner_norm": "plain", "inner_norm_eps": 0.2, "dt_rank": 4},
    ],
)
def test_mamba_is_its_formula(options: dict[str, Any]) -> None:
    layer, x = drawn(Mamba, 12, d_state=3, **options), torch.randn(2, 9, 12, dtype=F64)
    u, z = F.linear(x, layer.in_proj.weight, layer.in_proj.bias).chunk(2, -1)
    y = recurrence(layer, convolved(layer.conv1d, u)) * F.silu(z)
    close(layer(x)[0], F.linear(y, layer.out_proj.weight, layer.out_proj.bias))


def normed(y: Tensor, groups: int) -> Tensor:
    parts = y.unflatten(-1, (groups, -1))
    return (parts / (parts.square().mean(-1, keepdim=True) + 1e-5).sqrt()).flatten(-2)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"ngroups": 2, "norm_before_gate": True, "dt_limit": (0.3, 0.9)},
        {"d_ssm": 16, "D_has_hdim": True, "bias": True},
        {"rmsnorm": False, "ngroups": 6},
        {"ngroups": 2, "norm_groups": 1},
    ],
)
def test_mamba2_is_its_formula(options: dict[str, Any]) -> None:
    layer, x = drawn(Mamba2, 12, d_state=3, headdim=4, **options), torch.randn(2, 9, 12, dtype=F64)
    inner, groups, size = layer.d_ssm, layer.ngroups, 3
    of_norm = options.get("norm_groups", groups)
    aside, heads = 24 - inner, inner // 4
    parts = [aside, aside, inner, inner + 2 * groups * size, heads]
    z0, x0, z, mixed, dt = F.linear(x, layer.in_proj.weight, layer.in_proj.bias).split(parts, -1)
    u, b, c = convolved(layer.conv1d, mixed).split([inner, groups * size, groups * size], -1)
    dt = F.softplus(dt + layer.dt_bias).clamp(*options.get("dt_limit", (0.0, math.inf)))
    d = layer.D if layer.D.numel() == inner else layer.D.repeat_interleave(4)
    state, outputs = torch.zeros(2, heads, 4, size, dtype=F64), []
    for t in range(x.shape[1]):
        row = u[:, t].unflatten(-1, (heads, 4))
        bt, ct = (m[:, t].unflatten(-1, (groups, size)).repeat_interleave(heads // groups, 1) for m in (b, c))
        decay = torch.exp(-dt[:, t] * layer.A_log.exp())
        state = decay[..., None, None] * state + (dt[:, t, :, None] * row).unsqueeze(-1) * bt.unsqueeze(2)
        outputs.append((state * ct.unsqueeze(2)).sum(-1).flatten(1) + d * u[:, t])
    y = torch.stack(outputs, 1)
    if layer.norm is None:
        y = y * F.silu(z)
    elif layer.norm.norm_before_gate:
        y = normed(y, of_norm) * layer.norm.weight * F.silu(z)
    else:
        y = normed(y * F.silu(z), of_norm) * layer.norm.weight
    close(
        layer(x)[0], F.linear(torch.cat((F.silu(z0) * x0, y), -1), layer.out_proj.weight, layer.out_proj.bias)
    )


MAMBA = {
    "A_log": (32, 16),
    "D": (32,),
    "in_proj.weight": (64, 16),
    "conv1d.weight": (32, 1, 4),
    "conv1d.bias": (32,),
    "x_proj.weight": (33, 32),
    "dt_proj.weight": (32, 1),
    "dt_proj.bias": (32,),
    "out_proj.weight": (16, 32),
}
MAMBA2 = {
    "dt_bias": (4,),
    "A_log": (4,),
    "D": (4,),
    "in_proj.weight": (2 * 32 + 2 * 128 + 4, 16),
    "conv1d.weight": (32 + 2 * 128, 1, 4),
    "conv1d.bias": (32 + 2 * 128,),
    "norm.weight": (32,),
    "out_proj.weight": (16, 32),
}


@pytest.mark.parametrize(("layer", "names"), [(Mamba(16), MAMBA), (Mamba2(16, headdim=8), MAMBA2)])
def test_parameters_are_those_of_mamba_ssm(layer: SequenceModule, names: dict[str, tuple[int, ...]]) -> None:
    assert {name: tuple(t.shape) for name, t in layer.state_dict().items()} == names


def test_parameters_start_as_in_mamba_ssm() -> None:
    torch.manual_seed(0)
    layer = Mamba(64, dt_min=0.01, dt_max=0.2)
    torch.testing.assert_close(layer.A_log.exp(), torch.arange(1.0, 17).repeat(128, 1))
    steps = F.softplus(layer.dt_proj.bias)
    assert 0.0099 < float(steps.min()) < 0.02 < 0.1 < float(steps.max()) < 0.2001
    assert float(layer.dt_proj.weight.abs().max()) <= 0.5  # rank 4
    assert torch.equal(layer.D, torch.ones(128))
    heads = Mamba2(64, headdim=2, A_init_range=(2, 3)).A_log.exp()
    assert 2 <= float(heads.min()) < float(heads.max()) <= 3


def test_a_hook_on_the_convolution_s_activation_is_called() -> None:
    layer, x = drawn(Mamba, 8), torch.randn(1, 9, 8, dtype=F64)
    want, seen = layer(x)[0], []
    layer.conv1d.activation.register_forward_hook(lambda *call: seen.append(call))
    close(layer(x)[0], want)
    assert len(seen) == 1


def test_decays_ask_for_no_weight_decay() -> None:
    for layer in (Mamba(16), Mamba2(16, headdim=8), S6(16)):
        spared = {
            id(p)
            for group in parameter_groups(layer)
            if group.get("weight_decay") == 0.0
            for p in group["params"]
        }
        assert {id(layer.A_log), id(layer.D)} <= spared


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("cls", "options"), [(Mamba, {}), (Mamba2, {"headdim": 8, "d_state": 8})])
def test_half_precision_keeps_the_state_in_float32(
    cls: type[SequenceModule], options: dict[str, Any], dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    wide = cls(16, **options).eval()
    x = torch.randn(2, 70, 16)
    half = cls(16, **options).eval()
    half.load_state_dict(wide.state_dict())
    half = half.to(dtype)
    y, state = half(x.to(dtype), half.default_state(2))
    want, exact = wide(x, wide.default_state(2))
    assert y.dtype == dtype
    assert state[-1].dtype == torch.float32
    assert float((y - want).norm() / want.norm()) < 4 * torch.finfo(dtype).eps
    assert float((state[-1] - exact[-1]).norm() / exact[-1].norm()) < 4 * torch.finfo(dtype).eps


def test_padding_cannot_reach_the_state_whatever_it_holds() -> None:
    for layer in (
        drawn(Mamba, 8, bias=True),
        drawn(Mamba2, 8, headdim=4, bias=True, dt_limit=(0.1, 1.0)),
        drawn(S6, 8),
    ):
        x = torch.randn(2, 70, 8, dtype=F64)
        spoilt = x.clone()
        spoilt[1, 30:] = math.nan
        y, state = layer(spoilt, layer.default_state(2), lengths=[70, 30])
        alone, after = layer(x[1:, :30], layer.default_state(1))
        close(y[1:, :30], alone)
        for part, want in zip(state, after, strict=True):
            close(part[1:], want)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Mamba(16, dt_rank=0), "dt_rank must be 'auto' or an int of at least 1, got 0"),
        (lambda: Mamba(16, dt_init="ones"), "dt_init must be 'random' or 'constant', got 'ones'"),
        (lambda: Mamba(16, inner_norm="rms"), "inner_norm must be None, 'learned' or 'plain', got 'rms'"),
        (
            lambda: Mamba(16, inner_norm="plain", inner_norm_eps=0.0),
            "inner_norm_eps must be above 0, got 0.0",
        ),
        (lambda: Mamba2(16, headdim=8, norm_groups=3), "norm_groups must divide the 32 channels"),
        (lambda: Mamba(1, expand=0.5), "expand must give at least one inner channel"),
        (lambda: Mamba(16, dt_min=0.2), r"0 < dt_min <= dt_max, got 0.2 and 0.1"),
        (lambda: Mamba2(16), "headdim must divide the 32 channels of the recurrence, got headdim=64"),
        (lambda: Mamba2(16, headdim=8, ngroups=3), "ngroups must divide the 4 heads, got ngroups=3"),
        (lambda: Mamba2(16, headdim=8, d_ssm=64), r"d_ssm must be at most expand \* d_model = 32, got 64"),
        (lambda: Mamba2(16, headdim=8, dt_limit=(1, 0)), "dt_limit must be two numbers from 0 on"),
    ],
)
def test_bad_sizes_are_named(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("make", [lambda: S6(8), lambda: Mamba(8), lambda: Mamba2(8, headdim=4, d_state=2)])
def test_one_exported_graph_serves_every_length(make: Any) -> None:
    """Lengths of less and of more than the 64 elements between the states that are kept."""
    layer = make().eval()
    length = torch.export.Dim("length", min=2)
    x = torch.randn(2, 20, 8)
    state = layer.default_state(2)
    shapes = ({1: length}, tuple({} for _ in state))
    program = torch.export.export(layer, (x, state), dynamic_shapes=shapes).module()
    for count in (3, 64, 65, 200):
        x = torch.randn(2, count, 8)
        got, want = program(x, state), layer(x, state)
        torch.testing.assert_close(got[0], want[0])
        torch.testing.assert_close(tuple(got[1]), tuple(want[1]))


def test_one_compiled_graph_serves_every_length() -> None:
    layer = Mamba(8).eval()
    graphs: list[Any] = []

    def count(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph

    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend=count)
    for length in (20, 70, 130):
        x = torch.randn(2, length, 8)
        torch.testing.assert_close(compiled(x)[0], layer(x)[0])
    assert len(graphs) == 1
