"""The parts of SSD that mamba_ssm has as functions, its other forms, the scan both ways, and ``Mamba2Simple``."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sequence_kernels import compat

SSD = "mamba_ssm.ops.triton.ssd_combined"
SCAN = "mamba_ssm.ops.selective_scan_interface"

ARITIES = {
    "mamba_ssm.ops.triton.ssd_chunk_state.chunk_state": 5,
    "mamba_ssm.ops.triton.ssd_state_passing.state_passing": 3,
    "mamba_ssm.ops.triton.ssd_chunk_scan.chunk_scan": 8,
    "mamba_ssm.modules.ssd_minimal.ssd_minimal_discrete": 6,
    f"{SSD}.mamba_chunk_scan": 10,
    f"{SSD}.ssd_chunk_scan_combined_ref": 10,
    f"{SSD}.ssd_selective_scan": 10,
    f"{SSD}.mamba_conv1d_scan_ref": 14,
    f"{SSD}.mamba_split_conv1d_scan_ref": 16,
    f"{SCAN}.bimamba_inner_fn": 16,
    f"{SCAN}.SelectiveScanFn.apply": 10,
    f"{SCAN}.MambaInnerFn.apply": 20,
    "mamba_ssm.modules.mamba2_simple.Mamba2Simple": 21,
}


@pytest.fixture(autouse=True)
def installed() -> Iterator[None]:
    with compat.install():
        yield


def named(path: str) -> Any:
    module, _, name = path.rpartition(".")
    if name == "apply":
        return named(module).apply
    return getattr(importlib.import_module(module), name)


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def close(got: Any, want: Any, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("path", "count"), ARITIES.items())
def test_arguments_are_those_of_upstream(path: str, count: int) -> None:
    parameters = inspect.signature(named(path)).parameters.values()
    assert len(parameters) == count
    assert {p.kind for p in parameters} == {inspect.Parameter.POSITIONAL_OR_KEYWORD}


class Inputs:
    """Four heads of 3 channels in two groups, states of 5 numbers, 11 elements."""

    def __init__(self) -> None:
        self.x, self.z, self.dt = random(2, 11, 4, 3), random(2, 11, 4, 3), random(2, 11, 4)
        self.A, self.B, self.C = -random(4).exp(), random(2, 11, 2, 5), random(2, 11, 2, 5)
        self.D, self.bias, self.initial = random(4), random(4), random(2, 4, 3, 5)

    def whole(self, **options: Any) -> Any:
        first = (self.x, self.dt, self.A, self.B, self.C, 4)
        return named(f"{SSD}.mamba_chunk_scan_combined")(*first, **options)


def test_the_parts_make_the_whole() -> None:
    """Ragged: the last of three chunks of 4 has three elements. With gradients through all of them."""
    s = Inputs()
    leaves = [t.requires_grad_() for t in (s.x, s.B, s.C, s.A, s.initial)]
    dt = F.softplus(F.pad(s.dt + s.bias, (0, 0, 0, 1), value=-torch.inf)).unflatten(1, (3, 4)).movedim(-1, 1)
    sums = (dt * s.A[:, None, None]).cumsum(-1)
    states = named(f"{SSD}.chunk_state")(s.B, s.x, dt, sums)
    before, last = named(f"{SSD}.state_passing")(states.flatten(3), sums[..., -1], s.initial.flatten(2))
    y = named(f"{SSD}.chunk_scan")(s.B, s.C, s.x, dt, sums, before.view(states.shape), s.D, s.z)
    want = s.whole(
        D=s.D, z=s.z, dt_bias=s.bias, dt_softplus=True, initial_states=s.initial, return_final_states=True
    )
    close((y, last.view(s.initial.shape)), want)
    g = random(2, 11, 4, 3)
    close(torch.autograd.grad(y, leaves, g), torch.autograd.grad(want[0], leaves, g))
    with pytest.raises(ValueError, match="dt has 3 chunks of 4 elements, which do not hold 13"):
        named(f"{SSD}.chunk_state")(random(2, 13, 2, 5), random(2, 13, 4, 3), dt, sums)


def test_states_are_of_the_dtypes_of_upstream() -> None:
    states, sums = random(2, 3, 4, 15).bfloat16(), -torch.rand(2, 4, 3)
    before, last = named(f"{SSD}.state_passing")(states, sums)
    assert (before.dtype, last.dtype) == (torch.bfloat16, torch.float32)
    assert not before[:, 0].any()
    b, x, dt = random(2, 8, 2, 5).bfloat16(), random(2, 8, 4, 3).bfloat16(), torch.rand(2, 4, 2, 4)
    kinds = [named(f"{SSD}.chunk_state")(b, x, dt, -dt, wide).dtype for wide in (True, False)]
    assert kinds == [torch.float32, torch.bfloat16]


def test_the_minimal_form() -> None:
    s = Inputs()
    minimal = named("mamba_ssm.modules.ssd_minimal.ssd_minimal_discrete")
    x, dt, *shared = (t[:, :8] for t in (s.x, s.dt.abs(), s.B, s.C))
    b, c = (t.repeat_interleave(2, 2) for t in shared)
    whole = named(f"{SSD}.mamba_chunk_scan_combined")
    want = whole(x, dt, s.A, *shared, 4, initial_states=s.initial, return_final_states=True)
    close(minimal(x * dt.unsqueeze(-1), dt * s.A, b, c, 4, s.initial.unsqueeze(1)), want)
    close(minimal(x * dt.unsqueeze(-1), dt * s.A, b, c, 2)[0], whole(x, dt, s.A, *shared, 4))
    with pytest.raises(ValueError, match="block_len must divide the length 8, got 3"):
        minimal(x, dt, b, c, 3)


@pytest.mark.parametrize("limit", [None, (0.1, 0.5)])
def test_other_forms_of_the_same(limit: tuple[float, float] | None) -> None:
    s = Inputs()
    options = {"D": s.D, "z": s.z, "dt_bias": s.bias, "dt_softplus": True}
    limits = {} if limit is None else {"dt_limit": limit}
    want = s.whole(**options, **limits)
    first = (s.x, s.dt, s.A, s.B, s.C)
    scan = named(f"{SSD}.ssd_selective_scan")
    close(scan(*first, **options, **limits), want)
    each = s.dt.unsqueeze(-1).expand(-1, -1, -1, 3)
    own = s.A.repeat_interleave(3).unsqueeze(1).expand(-1, 5)
    wide = {name: s.__dict__[name].unsqueeze(1).expand(-1, 3) for name in ("D", "bias")}
    close(scan(s.x, each, own, s.B, s.C, wide["D"], s.z, wide["bias"], True, **limits), want)
    if limit is None:
        for name in ("mamba_chunk_scan", "ssd_chunk_scan_combined_ref"):
            close(named(f"{SSD}.{name}")(*first, 4, **options), want)


@pytest.mark.parametrize("told", ["z", "D", "headdim"])
def test_the_mixer_behind_its_first_map(told: str) -> None:
    s, weight, bias = Inputs(), random(32, 4), random(32)
    mixed = torch.cat([t.flatten(2) for t in (s.x, s.B, s.C)], -1)
    x, b, c = named("causal_conv1d.causal_conv1d_fn")(mixed.mT, weight, bias, activation="silu").mT.split(
        [12, 10, 10], -1
    )
    z = s.z if told == "z" else None
    parts = (x.unflatten(-1, (4, 3)), s.dt, s.A, b.unflatten(-1, (2, 5)), c.unflatten(-1, (2, 5)), 4)
    skip = s.D.unsqueeze(1).expand(-1, 3) if told == "D" else s.D
    want = named(f"{SSD}.mamba_chunk_scan_combined")(*parts, skip, z, s.bias, dt_softplus=True).flatten(2)
    theirs = named(f"{SSD}.mamba_conv1d_scan_ref")
    options = {"D": skip, "dt_bias": s.bias, "dt_softplus": True, "ngroups": 2}
    options |= {"z": s.z.flatten(2)} if told == "z" else {"headdim": 3} if told == "headdim" else {}
    close(theirs(mixed, weight, bias, s.dt, s.A, 4, **options), want)
    if told == "headdim":
        with pytest.raises(ValueError, match="headdim must be given where neither z nor a D"):
            theirs(mixed, weight, bias, s.dt, s.A, 4, **{**options, "headdim": None})
        split = torch.cat((s.z.flatten(2), mixed, s.dt), -1)
        rest = (split, weight, bias, s.bias, s.A, s.D, 4)
        more = {"dt_limit": (0.1, 0.5), "rmsnorm_weight": random(12), "headdim": 3, "ngroups": 2}
        both = [named(f"{SSD}.mamba_split_conv1d_scan_{kind}")(*rest, **more) for kind in ("ref", "combined")]
        close(*both)


def test_the_scan_both_ways() -> None:
    """Its second direction is the first, given everything backwards behind a convolution that goes forwards."""
    xz, weight, bias = random(2, 8, 7), random(4, 1, 3), random(4)
    x_proj, dt_proj, out = random(10, 4), random(4, 2), random(6, 4)
    A, A_b, D, dt_bias, out_bias = -random(4, 4).exp(), -random(4, 4).exp(), random(4), random(4), random(6)
    x, z = xz.chunk(2, 1)
    x = F.silu(F.conv1d(F.pad(x, (2, 0)), weight, bias, groups=4))
    dt, b, c = (x_proj @ x).split([2, 4, 4], 1)
    rest = [x, dt_proj @ dt, b, c, z]
    scan = named(f"{SCAN}.selective_scan_fn")

    def one(a: Tensor, u: Tensor, delta: Tensor, b: Tensor, c: Tensor, z: Tensor) -> Tensor:
        return scan(u, delta, a, b, c, D, z, dt_bias, True)

    want = one(A, *rest) + one(A_b, *(t.flip(-1) for t in rest)).flip(-1)
    both = named(f"{SCAN}.bimamba_inner_fn")
    first = (xz, weight, bias, x_proj, dt_proj, out, out_bias)
    close(both(*first, A, A_b, D=D, delta_bias=dt_bias), F.linear(want.mT, out, out_bias))
    fixed, (u, delta, _, c, z) = random(4, 4), rest  # a B that does not vary is the same both ways
    back = one(A_b, *(t.flip(-1) for t in (u, delta)), fixed, c.flip(-1), z.flip(-1)).flip(-1)
    want = one(A, u, delta, fixed, c, z) + back
    close(both(*first, A, A_b, fixed, None, D, dt_bias), F.linear(want.mT, out, out_bias))
    with pytest.raises(NotImplementedError, match="A must be real"):
        both(*first, A.to(torch.complex128), A_b)


def test_autograd_functions_are_called_by_apply() -> None:
    u, delta, A, B = random(2, 4, 7), random(2, 4, 7), -random(4, 3).exp(), random(2, 3, 7)
    fn, applied = named(f"{SCAN}.selective_scan_fn"), named(f"{SCAN}.SelectiveScanFn")
    close(
        applied.apply(u, delta, A, B, B, None, None, None, True), fn(u, delta, A, B, B, delta_softplus=True)
    )
    decorated = named("mamba_ssm.utils.torch.custom_fwd")(lambda ctx, x: 2 * x)
    assert decorated(SimpleNamespace(), 3) == 6


def test_a_mixer_whose_first_state_is_learned() -> None:
    options = {"d_state": 4, "headdim": 4, "ngroups": 2, "dtype": torch.float64}
    simple = named("mamba_ssm.modules.mamba2_simple.Mamba2Simple")
    plain, mixer = named("mamba_ssm.Mamba2")(8, **options), simple(8, **options)
    plain.load_state_dict(mixer.state_dict())
    x, numbers = random(2, 9, 8), torch.tensor([[0] * 4 + [1] * 5] * 2)
    close(mixer(x), plain(x))
    close(mixer(x, numbers), plain(x, seq_idx=numbers))
    learned = simple(8, **options, learnable_init_states=True)
    assert learned.state_dict().keys() - mixer.state_dict().keys() == {"init_states"}
    learned.load_state_dict({**mixer.state_dict(), "init_states": random(4, 4, 4)})
    window, state = plain.allocate_inference_cache(2, 9)
    state.copy_(learned.init_states)
    want = torch.cat([plain.step(x[:, t : t + 1], window, state)[0] for t in range(9)], 1)
    close(learned(x), want)
    cache = learned.allocate_inference_cache(2, 9)
    close(torch.cat([learned.step(x[:, t : t + 1], *cache)[0] for t in range(9)], 1), want)
    learned(x).sum().backward()
    assert learned.init_states.grad.abs().sum() > 0
    with pytest.raises(ValueError, match="seq_idx must be None with learnable_init_states"):
        learned(x, numbers)
    with pytest.raises(NotImplementedError, match="activation must be 'silu' or 'swish', got 'gelu'"):
        simple(8, **options, activation="gelu")


def test_its_norm_is_of_groups_or_of_all_channels() -> None:
    simple = named("mamba_ssm.modules.mamba2_simple.Mamba2Simple")
    options = {"d_state": 4, "headdim": 4, "ngroups": 2, "dtype": torch.float64}
    mixers = [simple(8, **options, use_mem_eff_path=fused) for fused in (True, False)]
    assert [mixer.norm.groups for mixer in mixers] == [2, 1]
