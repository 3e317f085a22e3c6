"""The modules that code around Mamba imports, where they are not installed and where they are."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from sequence_kernels import compat, layers
from sequence_kernels.compat.stand_ins import MODULES

SCAN = "mamba_ssm.ops.selective_scan_interface"
SSD = "mamba_ssm.ops.triton.ssd_combined"

#: How many arguments upstream's functions have; HF hands keywords on by signature, so none may be hidden in **kwargs.
ARITIES = {
    f"{SCAN}.selective_scan_fn": 10,
    f"{SCAN}.mamba_inner_fn": 20,
    f"{SSD}.mamba_chunk_scan_combined": 17,
    f"{SSD}.mamba_split_conv1d_scan_combined": 20,
    "mamba_ssm.ops.triton.selective_state_update.selective_state_update": 11,
    "mamba_ssm.ops.triton.layernorm_gated.rmsnorm_fn": 7,
    "mamba_ssm.ops.triton.layernorm_gated.rms_norm_ref": 8,
    "mamba_ssm.ops.triton.layernorm_gated.layernorm_fn": 8,
    "mamba_ssm.ops.triton.layer_norm.layer_norm_fn": 14,
    "mamba_ssm.ops.triton.layer_norm.rms_norm_fn": 13,
    "causal_conv1d.causal_conv1d_fn": 8,
    "causal_conv1d.causal_conv1d_update": 7,
    "causal_conv1d.cpp_functions.causal_conv1d_fwd_function": 7,
    "causal_conv1d.cpp_functions.causal_conv1d_bwd_function": 10,
    "causal_conv1d.cpp_functions.causal_conv1d_update_function": 7,
    "mamba_ssm.Mamba": 16,
    "mamba_ssm.Mamba2": 25,
}


@pytest.fixture(autouse=True)
def installed() -> Iterator[None]:
    with compat.install():
        yield


def named(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def random(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype)


def close(got: Any, want: Any, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)


def test_they_can_be_imported_and_go_again() -> None:
    for name, functions in MODULES.items():
        assert importlib.util.find_spec(name) is not None
        module = importlib.import_module(name)
        assert all(getattr(module, function) is value for function, value in functions.items())
    assert sys.modules["mamba_ssm"].ops.triton.ssd_combined is sys.modules[SSD]  # type: ignore[attr-defined]
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("mamba_ssm.ops.triton.no_such_thing")
    compat.uninstall()
    for name in MODULES:
        with pytest.raises(ImportError):
            importlib.import_module(name)


@pytest.mark.parametrize(("path", "count"), ARITIES.items())
def test_arguments_are_those_of_upstream(path: str, count: int) -> None:
    parameters = inspect.signature(named(path)).parameters.values()
    assert len(parameters) == count
    assert {p.kind for p in parameters} == {inspect.Parameter.POSITIONAL_OR_KEYWORD}


def test_what_is_installed_is_not_shadowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compat.uninstall()
    (tmp_path / "causal_conv1d.py").write_text("def causal_conv1d_fn(x, weight):\n    return 'theirs'\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    x, weight = random(1, 2, 5), random(2, 3)
    for first in ("import", "install"):
        theirs = importlib.import_module("causal_conv1d") if first == "import" else None
        with compat.install():
            theirs = theirs or importlib.import_module("causal_conv1d")
            assert theirs.__file__ == str(tmp_path / "causal_conv1d.py")
            assert theirs.causal_conv1d_fn(x, weight).shape == x.shape
            assert theirs.causal_conv1d_fn(x.to("meta"), weight) == "theirs"
        assert theirs.causal_conv1d_fn(x, weight) == "theirs"
        del sys.modules["causal_conv1d"]


def test_a_compiled_module_that_does_not_load_is_stood_in_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compat.uninstall()
    broken = "raise ImportError('undefined symbol: _ZN3c104cuda9SetDeviceEi')"
    (tmp_path / "selective_scan_cuda.py").write_text(broken)
    monkeypatch.syspath_prepend(str(tmp_path))
    with compat.install():
        assert named("selective_scan_cuda.fwd") is MODULES["selective_scan_cuda"]["fwd"]
    with pytest.raises(ImportError, match="undefined symbol"):
        importlib.import_module("selective_scan_cuda")


class Sizes(SimpleNamespace):
    """Random arguments of a scan over two groups, and what a loop over time makes of them."""

    def __init__(self, length: int = 7) -> None:
        super().__init__(u=random(2, 4, length), delta=random(2, 4, length), A=-random(4, 3).exp())
        self.B, self.C = random(2, 2, 3, length), random(2, 2, 3, length)
        self.D, self.z, self.bias = random(4), random(2, 4, length), random(4)

    def loop(self) -> tuple[Tensor, Tensor]:
        dt = torch.nn.functional.softplus(self.delta + self.bias[:, None])
        b, c = (t.repeat_interleave(2, 1) for t in (self.B, self.C))
        h, ys = torch.zeros(2, 4, 3, dtype=torch.float64), []
        for t in range(self.u.shape[-1]):
            h = torch.exp(dt[..., t, None] * self.A) * h + (dt * self.u)[..., t, None] * b[..., t]
            ys.append((h * c[..., t]).sum(-1) + self.D * self.u[..., t])
        return torch.stack(ys, -1), h


def test_the_scan() -> None:
    s = Sizes()
    want, last = s.loop()
    gated = want * torch.nn.functional.silu(s.z)
    fn = named(f"{SCAN}.selective_scan_fn")
    y, state = fn(s.u, s.delta, s.A, s.B, s.C, s.D, s.z, s.bias, True, True)
    close((y, state), (gated, last))
    half = fn(
        s.u.bfloat16(), s.delta.bfloat16(), s.A.float(), s.B, s.C, s.D.float(), None, s.bias.float(), True
    )
    assert half.dtype == torch.bfloat16
    close(half.double(), want, 0.2)
    # A complex A stands for pairs, and B and C hold real and imaginary parts next to each other.
    twice = [torch.stack((t, torch.zeros_like(t)), -1).flatten(-2) for t in (s.B, s.C)]
    y = fn(s.u, s.delta, s.A.to(torch.complex128), *twice, None, None, s.bias, True)
    close(y, 2 * (want - s.D[:, None] * s.u))


def test_the_scan_s_compiled_modules() -> None:
    """Forward and backward by hand, in the order of each of their three kinds."""
    s = Sizes()
    want, last = s.loop()
    inputs = [s.u, s.delta, s.A, s.B, s.C, s.D, s.bias]
    leaves = [t.clone().requires_grad_() for t in (*inputs, s.z)]
    for name, leaf in zip(("u", "delta", "A", "B", "C", "D", "bias", "z"), leaves, strict=True):
        setattr(s, name, leaf)
    g = random(2, 4, 7)
    plain = torch.autograd.grad(s.loop()[0], leaves[:7], g)
    gated = torch.autograd.grad(s.loop()[0] * torch.nn.functional.silu(s.z), leaves, g)
    u, delta, a, b, c, d, bias, z = (t.detach() for t in leaves)
    for path, rest in (("selective_scan_cuda_core", ()), ("selective_scan_cuda_oflex", (False,))):
        module = importlib.import_module(path)
        out, x = module.fwd(u, delta, a, b, c, d, bias, True, 1, *rest)
        close((out, x[:, :, -1, 1::2]), (want, last))
        close(module.bwd(u, delta, a, b, c, d, bias, g, x, True, 1), list(plain))
    out, _ = named("selective_scan_cuda_oflex.fwd")(
        *(t.to(k) for t, k in zip((u, delta, a, b, c, d, bias), HALF, strict=True)), True, 1, True
    )
    assert out.dtype == torch.float32
    module = importlib.import_module("selective_scan_cuda")
    out, x, out_z = module.fwd(u, delta, a, b, c, d, z, bias, True)
    close((out, out_z), (want, want * torch.nn.functional.silu(z)))
    close(module.fwd(u, delta, a, b, c, d, bias, True, 1)[0], want)  # as VMamba's forks call it
    dz = torch.empty_like(z)
    *found, again = module.bwd(u, delta, a, b, c, d, z, bias, g, x, out, dz, True, True)
    close([*found, again], [*gated, out_z])
    assert found[-1] is dz
    assert module.bwd(u, delta, a, b, c, None, None, None, g, x, None, None, True, False)[5:] == [None, None]


HALF = [
    torch.bfloat16,
    torch.bfloat16,
    torch.float32,
    torch.bfloat16,
    torch.bfloat16,
    torch.float32,
    torch.float32,
]


def test_a_row_of_delta_may_serve_many_channels() -> None:
    s = Sizes()
    few, wide = s.delta[:, :2], s.delta[:, :2].repeat_interleave(2, 1)
    module = importlib.import_module("selective_scan_cuda_oflex")
    rest = (s.A, s.B, s.C, s.D, s.bias[:2], True, 1, False)
    want = (s.A, s.B, s.C, s.D, s.bias[:2].repeat_interleave(2), True, 1, False)
    close(module.fwd(s.u, few, *rest)[0], module.fwd(s.u, wide, *want)[0])
    found = module.bwd(s.u, few, *rest[:5], s.u, None, True, 1)
    assert found[1].shape == few.shape
    assert found[6].shape == (2,)


def test_the_mixers_functions_are_the_layers() -> None:
    x = random(2, 9, 6)
    mamba = layers.Mamba(6, d_state=3, d_conv=3, bias=True).double()
    y = named(f"{SCAN}.mamba_inner_fn")(
        mamba.in_proj(x).mT,
        mamba.conv1d.weight,
        mamba.conv1d.bias,
        mamba.x_proj.weight,
        mamba.dt_proj.weight,
        mamba.out_proj.weight,
        mamba.out_proj.bias,
        -mamba.A_log.exp(),
        D=mamba.D,
        delta_bias=mamba.dt_proj.bias,
    )
    close(y, mamba(x)[0])
    for options in ({"ngroups": 2}, {"rmsnorm": False, "d_ssm": 6}, {"norm_before_gate": True}):
        mamba2 = layers.Mamba2(6, d_state=3, headdim=3, dt_limit=(0.01, 0.05), **options).double()
        norm = mamba2.norm
        y, _ = named(f"{SSD}.mamba_split_conv1d_scan_combined")(
            mamba2.in_proj(x),
            mamba2.conv1d.weight.squeeze(1),
            mamba2.conv1d.bias,
            mamba2.dt_bias,
            -mamba2.A_log.exp(),
            mamba2.D,
            4,
            dt_limit=(0.01, 0.05),
            return_final_states=True,
            rmsnorm_weight=None if norm is None else norm.weight,
            rmsnorm_eps=1e-5,
            outproj_weight=mamba2.out_proj.weight,
            headdim=3,
            ngroups=mamba2.ngroups,
            norm_before_gate=norm is not None and norm.norm_before_gate,
        )
        close(y, mamba2(x)[0])


def test_norms_in_the_mixer_have_gradients() -> None:
    """Upstream's are wrong, or None."""
    shapes = [(1, 8, 5), (4, 1, 3), (4,), (2 + 6, 4), (4, 2), (3, 4), (4, 3)]
    tensors = [random(*shape).requires_grad_() for shape in shapes]
    norms = [random(3).requires_grad_(), random(3).requires_grad_(), random(4).requires_grad_()]

    def inner(*given: Tensor) -> Tensor:
        *first, a, b, c, dt = given
        function = named(f"{SCAN}.mamba_inner_fn")
        return function(*first, None, -a.exp(), b_rms_weight=b, c_rms_weight=c, dt_rms_weight=dt)

    assert torch.autograd.gradcheck(inner, (*tensors, *norms), fast_mode=True)


def test_packed_rows_and_their_states() -> None:
    chunk_scan = named(f"{SSD}.mamba_chunk_scan_combined")
    x, dt, b, c, z = (
        random(1, 9, 4, 2),
        random(1, 9, 4),
        random(1, 9, 2, 3),
        random(1, 9, 2, 3),
        random(1, 9, 4, 2),
    )
    a, d, before = -random(4).exp(), random(4), random(1, 4, 2, 3)
    options = {"D": d, "dt_softplus": True, "return_final_states": True}
    numbers, ends = torch.tensor([[5, 5, 0, 0, 0, 5, 5, 5, 5]]), torch.tensor([0, 2, 5, 9])
    y, final, states = chunk_scan(
        x,
        dt,
        a,
        b,
        c,
        4,
        z=z,
        seq_idx=numbers,
        initial_states=before,
        cu_seqlens=ends,
        return_varlen_states=True,
        **options,
    )
    for i, (begin, end) in enumerate(((0, 2), (2, 5), (5, 9))):
        part = [t[:, begin:end] for t in (x, dt, a[None].expand(1, 9, 4), b, c)]
        part[2] = a
        first = {"initial_states": before} if i == 0 else {}
        want, last = chunk_scan(*part, 4, z=z[:, begin:end], **first, **options)
        close(y[:, begin:end], want)
        close(states[i : i + 1], chunk_scan(*part, 4, **options)[1])
    close(final, last)


@pytest.mark.parametrize("heads", [False, True])
def test_a_step_is_in_place(heads: bool) -> None:
    s, update = Sizes(4), named("mamba_ssm.ops.triton.selective_state_update.selective_state_update")
    want, last = s.loop()
    state = torch.zeros(2, 4, 3, dtype=torch.float64)
    shape = (2, 2, 2) if heads else (2, 4)
    for t in range(4):
        b, c = s.B[..., t], s.C[..., t]
        view = state.view(*shape, 3)
        rest = [s.A, b, c, s.D, None, s.bias]
        if heads:
            rest = [s.A.view(2, 2, 3), b, c, s.D.view(2, 2), None, s.bias.view(2, 2)]
        y = update(view, s.u[..., t].view(shape), s.delta[..., t].view(shape), *rest, True)
        close(y.view(2, 4), want[..., t])
    close(state, last)


def test_steps_of_some_slots() -> None:
    s, update = Sizes(1), named("mamba_ssm.ops.triton.selective_state_update.selective_state_update")
    states, rows = random(5, 4, 3), torch.tensor([3, -1])
    before = states.clone()
    b, c = (t[:, :1, :, 0].squeeze(1) for t in (s.B, s.C))
    y = update(states, s.u[..., 0], s.delta[..., 0], s.A, b, c, state_batch_indices=rows)
    alone = before[3:4].clone()
    close(y[:1], update(alone, s.u[:1, :, 0], s.delta[:1, :, 0], s.A, b[:1], c[:1]))
    assert torch.equal(y[1], torch.zeros_like(y[1]))
    before[3:4] = alone
    assert torch.equal(states, before)


def test_the_convolution() -> None:
    fn, update = named("causal_conv1d.causal_conv1d_fn"), named("causal_conv1d.causal_conv1d_update")
    x, weight, bias, before = random(2, 3, 8), random(3, 4), random(3), random(2, 3, 3)
    known = torch.cat((before, x), -1)
    want = torch.nn.functional.silu(torch.nn.functional.conv1d(known, weight.unsqueeze(1), bias, groups=3))
    y, final = fn(x, weight, bias, initial_states=before, return_final_states=True, activation="silu")
    close((y, final), (want, known[..., -3:]))
    close(fn(x, weight, bias, "silu"), fn(x, weight, bias, None, activation="swish"))  # 1.0's fourth argument
    numbers = torch.tensor([[1, 1, 0, 0, 0, 0, 0, 1], [2, 2, 2, 2, 2, 2, 2, 2]])
    rows = [fn(x[:1, :, b:e], weight, bias) for b, e in ((0, 2), (2, 7), (7, 8))]
    close(fn(x, weight, bias, numbers), torch.cat((torch.cat(rows, -1), fn(x[1:], weight, bias))))
    pool = random(6, 3, 5)  # a window longer than it must be, of slot 4; the other row is idle
    pool[4, :, 2:] = before[0]
    others, places = pool.clone(), torch.tensor([4, -1])
    for t in (slice(0, 1), slice(1, 4)):
        y = update(x[..., t], pool, weight, bias, "silu", None, places)
        close(y[0], want[0, :, t])
        assert not y[1].any()
    close(pool[4], torch.cat((before[0], x[0]), -1)[..., 2:7])
    others[4] = pool[4]
    assert torch.equal(pool, others)
    ring = torch.roll(torch.cat((random(2, 3, 2), before), -1), 3, -1)  # whose oldest place is 3
    y = update(x[..., 0], ring, weight, bias, "silu", torch.tensor([3, 8], dtype=torch.int32))
    close(y, want[..., 0])
    close(ring[..., 3], x[..., 0])
    ends = torch.tensor([0, 2, 8])
    states = named("causal_conv1d.causal_conv1d_varlen.causal_conv1d_varlen_states")(x[0].T, ends, 3)
    close(states, torch.stack((torch.nn.functional.pad(x[0, :, :2], (1, 0)), x[0, :, 5:])))


def test_the_convolution_s_compiled_module() -> None:
    module = importlib.import_module("causal_conv1d_cuda")
    x, weight, bias, before = (
        t.requires_grad_() for t in (random(2, 3, 8), random(3, 4), random(3), random(2, 3, 3))
    )
    fn = named("causal_conv1d.causal_conv1d_fn")
    y, final = fn(x, weight, bias, initial_states=before, return_final_states=True, activation="silu")
    g, g_final = random(2, 3, 8), random(2, 3, 3)
    gradients = torch.autograd.grad((y, final), (x, weight, bias, before), (g, g_final))
    start = fn(x, weight, bias, activation="silu")
    of_start = torch.autograd.grad(start, (x, weight, bias), g)
    x, weight, bias, before = (t.detach() for t in (x, weight, bias, before))
    out, last = torch.empty_like(x), torch.empty_like(before)
    close(module.causal_conv1d_fwd(x, weight, bias, True), start)
    close(module.causal_conv1d_fwd(x, weight, bias, None, True), start)
    close(module.causal_conv1d_fwd(x, weight, bias, None, before, last, True), y)
    close(last, final)
    assert module.causal_conv1d_fwd(x, weight, bias, None, before, out, None, True) is None
    close(out, y)
    dx = torch.empty_like(x)
    close(module.causal_conv1d_bwd(x, weight, bias, g, dx, True), of_start)
    close(dx, of_start[0])
    close(module.causal_conv1d_bwd(x, weight, bias, g, None, None, True), of_start)
    close(module.causal_conv1d_bwd(x, weight, bias, g, None, before, g_final, None, True, True), gradients)
    places = [torch.empty_like(t) for t in gradients]
    assert module.causal_conv1d_bwd(x, weight, bias, g, None, before, g_final, *places, True) is None
    close(places, list(gradients))
    states = [before.clone(), before.clone()]
    one = torch.empty_like(x[..., 0])
    close(module.causal_conv1d_update(x[..., 0], states[0], weight, bias, True), y[..., 0])
    module.causal_conv1d_update(x[..., 0], states[1], weight, bias, one, True, None, None)
    close(one, y[..., 0])


@pytest.mark.parametrize("name", ["Mamba", "Mamba2"])
def test_the_layers(name: str) -> None:
    options: dict[str, Any] = {"d_state": 4, "layer_idx": 0}
    options |= {"headdim": 4, "ngroups": 2, "dt_limit": (0.01, 0.05)} if name == "Mamba2" else {}
    theirs = named(f"mamba_ssm.{name}")(8, **options, dtype=torch.float64)
    ours = getattr(layers, name)(8, **{k: v for k, v in options.items() if k != "layer_idx"}).double()
    ours.load_state_dict(theirs.state_dict())  # the names and shapes are mamba_ssm's
    x = random(2, 9, 8)
    whole = theirs(x)
    close(whole, ours(x)[0])
    params = SimpleNamespace(key_value_memory_dict={}, seqlen_offset=0)
    for _ in range(2):  # a cache that was used before begins anew
        params.seqlen_offset, found = 0, []
        for begin, end in ((0, 2), (2, 6), (6, 7)):
            found.append(theirs(x[:, begin:end], inference_params=params))
            params.seqlen_offset = end
        window, state = params.key_value_memory_dict[0]
        for t in (7, 8):
            y, *same = theirs.step(x[:, t : t + 1], window, state)
            assert same[0] is window
            found.append(y)
        close(torch.cat(found, 1), whole)
    assert window.shape[-1] == 4
    half = named(f"mamba_ssm.{name}")(8, **options, dtype=torch.bfloat16)
    assert half.D.dtype == torch.float32
    assert half(x.bfloat16()).dtype == torch.bfloat16
    half.in_proj = torch.nn.Identity()
    assert half.layer.in_proj is half.in_proj


def test_sequences_packed_for_mamba2() -> None:
    mixer = named("mamba_ssm.Mamba2")(8, d_state=4, headdim=4, dtype=torch.float64)
    x, numbers = random(2, 6, 8), torch.tensor([[0, 0, 1, 1, 1, 0], [3, 3, 3, 3, 3, 3]])
    rows = [torch.cat([mixer(x[:1, b:e]) for b, e in ((0, 2), (2, 5), (5, 6))], 1), mixer(x[1:])]
    close(mixer(x.flatten(0, 1), seqlen=6, seq_idx=numbers).unflatten(0, (2, 6)), torch.cat(rows))
    close(mixer(x, seq_idx=numbers), torch.cat(rows))
    prompts, ends = torch.tensor([[1, 1, 0, 0, 0, -1]]), torch.tensor([0, 2, 5], dtype=torch.int32)
    params = SimpleNamespace(key_value_memory_dict={}, seqlen_offset=0)
    mixer.layer_idx = 0
    y = mixer(x[:1], seq_idx=prompts, cu_seqlens=ends, inference_params=params)
    params.seqlen_offset = 3
    follows = mixer(x[:, 5:], inference_params=params)
    for row, (begin, end) in enumerate(((0, 2), (2, 5))):
        whole = mixer(torch.cat((x[:1, begin:end], x[row : row + 1, 5:]), 1))
        close(torch.cat((y[:, begin:end], follows[row : row + 1]), 1), whole)
    with pytest.raises(ValueError, match=r"seq_idx must be None where inference_params.seqlen_offset"):
        mixer(x[:1], seq_idx=prompts, cu_seqlens=ends, inference_params=params)
    params.seqlen_offset = 0
    with pytest.raises(ValueError, match="seq_idx with inference_params needs cu_seqlens"):
        mixer(x[:1], seq_idx=prompts, inference_params=params)
    with pytest.raises(
        ValueError, match=r"the runs of seq_idx begin and end, \[0, 2, 5, 6\], got \[0, 3, 5\]"
    ):
        mixer(x[:1], seq_idx=prompts, cu_seqlens=torch.tensor([0, 3, 5]), inference_params=params)
    with pytest.raises(NotImplementedError, match="process_group must be None"):
        named("mamba_ssm.Mamba2")(8, process_group=object())


def test_the_gated_norm() -> None:
    module = importlib.import_module("mamba_ssm.ops.triton.layernorm_gated")
    x, z, weight, bias = random(3, 8), random(3, 8), random(8), random(8)
    gate = torch.nn.functional.silu(z)
    groups = x.unflatten(-1, (2, 4))
    want = torch.nn.functional.layer_norm(groups, (4,), eps=1e-6).flatten(-2) * weight + bias
    close(module.layernorm_fn(x, weight, bias, z, group_size=4), want * gate)
    want = torch.nn.functional.rms_norm((x * gate).unflatten(-1, (2, 4)), (4,), eps=1e-5).flatten(-2)
    norm = module.RMSNorm(8, group_size=4, norm_before_gate=False, dtype=torch.float64)
    close(norm(x, z), want)
    close(module.rmsnorm_fn(x, weight, bias, z, 1e-5, 4, False), want * weight + bias)
    close(module.rms_norm_ref(x, weight, bias, z, 1e-5, 4, False, upcast=False), want * weight + bias)
    norm = module.LayerNorm(8, dtype=torch.float64)
    assert list(norm.state_dict()) == ["weight", "bias"]
    close(norm(x, z), torch.nn.functional.layer_norm(x, (8,)) * gate)


def test_the_norm_of_a_sum() -> None:
    module = importlib.import_module("mamba_ssm.ops.triton.layer_norm")
    x, residual, x1, *parameters = (random(3, 8).requires_grad_() for _ in range(7))
    weight, bias, weight1, bias1 = (t[0] for t in parameters)
    scale = random(3)
    total = x * scale[:, None] + x1 + residual
    got = module.layer_norm_fn(
        x, weight, bias, residual, x1, weight1, bias1, 1e-3, rowscale=scale, prenorm=True
    )
    norm = torch.nn.functional.layer_norm
    close(got, (norm(total, (8,), weight, bias, 1e-3), norm(total, (8,), weight1, bias1, 1e-3), total))
    torch.autograd.grad(got[0].sum() + got[2].sum(), (x, residual, x1, *parameters[:2]))
    layer = importlib.import_module("mamba_ssm.ops.triton.layernorm").RMSNorm(8, dropout_p=0.5).eval()
    half = x.detach().bfloat16()
    y, total = layer(half, half, prenorm=True, residual_in_fp32=True)
    assert (y.dtype, total.dtype) == (torch.bfloat16, torch.bfloat16)  # a residual keeps its dtype
    close(total, 2 * half)
    y, total = layer(half, prenorm=True, residual_in_fp32=True)
    assert total.dtype == torch.float32
    close(y, torch.nn.functional.rms_norm(half.float(), (8,), eps=1e-5).bfloat16())
    dropped = layer.train()(torch.ones(64, 8))
    assert ((dropped == 0).double().mean() - 0.5).abs() < 0.15
    with pytest.raises(NotImplementedError, match="return_dropout_mask must be False"):
        module.rms_norm_fn(x, weight, None, return_dropout_mask=True)


def test_what_would_be_ignored_is_refused() -> None:
    from mamba_ssm import Mamba2  # type: ignore[import-not-found]

    mixer = Mamba2(8, d_state=4, headdim=4)
    with pytest.raises(ValueError, match="cu_seqlens needs seq_idx"):
        mixer(torch.ones(1, 6, 8), cu_seqlens=torch.tensor([0, 2, 6]))
    with pytest.raises(TypeError, match="dtpye"):
        mixer.allocate_inference_cache(1, 1, dtpye=torch.float64)
