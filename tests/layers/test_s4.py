"""The S4 and S4D layers: options, errors, checkpoints, precision, compilation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from sequence_kernels import S4, S4D, parameter_groups

WIDTH = 6
both = pytest.mark.parametrize("layer", [S4, S4D])


def relative(got: Tensor, want: Tensor) -> float:
    return float((got - want).detach().norm() / want.detach().norm())


def outputs(module: torch.nn.Module, x: Tensor, **kwargs: Any) -> Tensor:
    return module(x, **kwargs)[0]


@both
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("length", [1, 31, 32, 100])
def test_the_two_convolutions_agree(layer: type[S4], bidirectional: bool, length: int) -> None:
    module = layer(WIDTH, 8, channels=2, bidirectional=bidirectional).double()
    x = torch.randn(3, WIDTH, length, dtype=torch.float64)
    chunked = outputs(module, x)
    module.conv = "fft"
    assert relative(outputs(module, x), chunked) < 1e-9


@both
@pytest.mark.parametrize("rate", [2.0, 0.5, 1.5])
def test_rate_reaches_forward_state_and_step(layer: type[S4], rate: float) -> None:
    """Contract 0.6: rate must mean the same everywhere, namely dt times rate."""
    module = layer(WIDTH, 8, transposed=False).double()
    x = torch.randn(2, 40, WIDTH, dtype=torch.float64)
    whole, last = module(x, module.default_state(2), rate=rate)
    first, state = module(x[:, :13], module.default_state(2), rate=rate)
    second, _ = module(x[:, 13:], state, rate=rate)
    assert relative(torch.cat((first, second), 1), whole) < 1e-9
    state = module.default_state(2)
    for t in range(40):
        y, state = module.step(x[:, t], state, rate=rate)
        assert relative(y, whole[:, t]) < 1e-9
    assert relative(state, last) < 1e-9
    with torch.no_grad():
        module.kernel.kernel.log_dt += torch.tensor(rate).double().log()
    assert relative(outputs(module, x), whole) < 1e-9
    assert relative(outputs(module, x, rate=1.0), outputs(module, x)) == 0.0


@both
def test_lengths(layer: type[S4]) -> None:
    """Padding does not reach the real part, nor the state, which is each sequence's own."""
    module = layer(WIDTH, 8, transposed=False).double()
    x = torch.randn(3, 50, WIDTH, dtype=torch.float64)
    lengths = torch.tensor([50, 17, 1])
    poisoned = x.clone()
    for row, length in enumerate(lengths.tolist()):
        poisoned[row, length:] = float("nan")
    y, state = module(poisoned, module.default_state(3), lengths=lengths)
    for row, length in enumerate(lengths.tolist()):
        want, want_state = module(x[row : row + 1, :length], module.default_state(1))
        assert relative(y[row, :length], want[0]) < 1e-12
        assert relative(state[row], want_state[0]) < 1e-12
    two_sided = layer(WIDTH, 8, transposed=False, bidirectional=True).double()
    alone = outputs(two_sided, x[1:2, :17])
    assert relative(outputs(two_sided, poisoned, lengths=lengths)[1, :17], alone[0]) < 1e-12


@both
@pytest.mark.parametrize("lengths", [7, torch.tensor(7), torch.tensor([7]), [7, 7], torch.tensor([7, 7])])
def test_lengths_come_in_many_forms(layer: type[S4], lengths: Any) -> None:
    module = layer(WIDTH, 8)
    x = torch.randn(2, WIDTH, 20)
    want = outputs(module, x, lengths=torch.tensor([7, 7]))[..., :7]
    torch.testing.assert_close(outputs(module, x, lengths=lengths)[..., :7], want, rtol=0, atol=0)


@both
def test_l_max_cuts_the_kernel_off(layer: type[S4]) -> None:
    module = layer(WIDTH, 8, l_max=16).double()
    x = torch.randn(2, WIDTH, 40, dtype=torch.float64)
    y = outputs(module, x)
    late = x.clone()
    late[..., 0] += 1  # the element at 0 is out of sight from position 16 on
    assert relative(outputs(module, late)[..., 16:], y[..., 16:]) < 1e-12
    assert relative(outputs(module, late)[..., :16], y[..., :16]) > 1e-6
    short = x[..., :16]
    assert relative(outputs(module, short), y[..., :16]) < 1e-9
    assert module(short, module.default_state(2))[1] is not None
    with pytest.raises(ValueError, match="length of x with a state must be at most 16, got 40"):
        module(x, module.default_state(2))


def test_dss_without_l_max_normalises_over_each_call() -> None:
    """As ESPnet's; so it is no recurrence, and says so. With l_max the normaliser is fixed, and it is one."""
    module = S4D(WIDTH, 8, disc="dss").double()
    assert not module.causal
    x = torch.randn(2, WIDTH, 30, dtype=torch.float64)
    for length in (30, 20):
        fixed = S4D(WIDTH, 8, disc="dss", l_max=length).double()
        assert fixed.causal
        fixed.load_state_dict(module.state_dict())
        assert relative(outputs(module, x[..., :length]), outputs(fixed, x[..., :length])) < 1e-12
    assert relative(outputs(fixed, x[..., :10]), outputs(module, x[..., :10])) > 1e-3
    with pytest.raises(ValueError, match="a dss S4D is not causal: it cannot have a state"):
        module.default_state(2)


def test_a_c_tilde_checkpoint_is_the_same_function() -> None:
    """What ESPnet saves after a forward: C (I - A^L) in ``C``, and L (contract 0.9)."""
    module = S4(WIDTH, 16).double()
    x = torch.randn(2, WIDTH, 60, dtype=torch.float64)
    want = outputs(module, x)
    checkpoint = {k: v.clone() for k, v in module.state_dict().items()}
    truncated = module.kernel.kernel.system().truncated_readout(48)
    checkpoint["kernel.kernel.C"] = torch.view_as_real(truncated.detach())
    checkpoint["kernel.kernel.L"] = torch.tensor(48)
    other = S4(WIDTH, 16).double()
    other.load_state_dict(checkpoint, strict=True)
    assert relative(outputs(other, x), want) < 1e-9
    assert int(other.kernel.kernel.L) == 0
    assert int(checkpoint["kernel.kernel.L"]) == 48  # the caller's dict is not touched


MIXING = [
    {"gate": 1},
    {"gate": 2, "activation": None},
    {"bottleneck": 2},
    {"hyper_act": "tanh"},
    {"hyper_act": "id", "channels": 2, "gate": 2, "bottleneck": 3, "postact": None},
]


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("mixing", MIXING, ids=str)
def test_gate_bottleneck_and_hyper_activation(mixing: dict[str, Any], transposed: bool) -> None:
    """Written out; ESPnet's step ignores or crashes on all three, and transposed the first two crash forward."""
    module = S4(WIDTH, 8, mode="diag", measure="diag-lin", transposed=transposed, **mixing).double()
    x = torch.randn(2, 30, WIDTH, dtype=torch.float64)
    activation = module.activation

    def linear(part: Any, x: Tensor) -> Tensor:
        layer = part[0] if isinstance(part, torch.nn.Sequential) else part
        return x @ layer.weight.T + layer.bias

    u = x if module.input_linear is None else activation(linear(module.input_linear, x))
    kernel = module.system().kernel(30)  # (C, H, L)
    lags = torch.arange(30).view(-1, 1) - torch.arange(30)
    toeplitz = torch.where(lags >= 0, kernel[..., lags.clamp(min=0)], 0)
    y = torch.einsum("chts,bsh->btch", toeplitz, u) + module.D * u.unsqueeze(-2)
    if module.hyper_activation is not None:
        half = y.shape[-2] // 2
        y = y[..., :half, :] * module.hyper_activation(y[..., half:, :])
    y = linear(module.output_linear, activation(y.flatten(-2)))
    if isinstance(module.output_linear, torch.nn.Sequential):
        y = torch.nn.functional.glu(y)
    if module.input_gate is not None:
        y = linear(module.output_gate, y * activation(linear(module.input_gate, x)))
    given = x.mT if transposed else x
    got = outputs(module, given)
    assert relative(got.mT if transposed else got, y) < 1e-12
    state = None
    for t in range(30):
        step, state = module.step(x[:, t], state)
        assert relative(step, y[:, t]) < 1e-12
    assert state.shape == (2, module.heads, 4)


@pytest.mark.parametrize("mode", ["nplr", "diag"])
@pytest.mark.parametrize("rate", [1.0, 2.0])
def test_bandlimit(mode: str, rate: float) -> None:
    """Fast modes are not read out, at any rate the same ones; ESPnet forgets it in `step`."""
    module = S4(WIDTH, 16, mode=mode, measure="diag-lin", bandlimit=0.1, dt_min=0.01).double()
    free = S4(WIDTH, 16, mode=mode, measure="diag-lin", dt_min=0.01).double()
    free.load_state_dict(module.state_dict())
    kernel = free.kernel.kernel
    imag = kernel.w_imag if mode == "nplr" else kernel.A_imag
    slow = kernel.log_dt.exp().unsqueeze(-1) * imag.abs() / (2 * torch.pi) < 0.05
    assert slow.any()
    assert not slow.all()
    with torch.no_grad():
        kernel.C.mul_(slow.unsqueeze(-1))
    x = torch.randn(2, WIDTH, 40, dtype=torch.float64)
    assert relative(outputs(module, x, rate=rate), outputs(free, x, rate=rate)) < 1e-12
    y, state = None, None
    for t in range(40):
        y, state = module.step(x[..., t], state, rate=rate)
    assert relative(y, outputs(free, x, rate=rate)[..., -1]) < 1e-9


def test_bandlimit_of_what_espnet_stores() -> None:
    """ESPnet's nplr masks C (I - A^L); without a low-rank part that is the same."""
    arguments = {"measure": "diag-lin", "bandlimit": 0.1, "dt_min": 0.01}
    module, stored = (
        S4(WIDTH, 16, **arguments).double(),
        S4(WIDTH, 16, bandlimit_length=30, **arguments).double(),
    )
    stored.load_state_dict(module.state_dict())
    x = torch.randn(2, WIDTH, 40, dtype=torch.float64)
    assert relative(outputs(stored, x), outputs(module, x)) < 1e-9
    arguments["measure"] = "legs"
    module, stored = (
        S4(WIDTH, 16, **arguments).double(),
        S4(WIDTH, 16, bandlimit_length=30, **arguments).double(),
    )
    stored.load_state_dict(module.state_dict())
    assert relative(outputs(stored, x), outputs(module, x)) > 1e-3


def test_padding_does_not_come_back_through_a_bottleneck() -> None:
    """Its bias makes zeros anything but zero, and a bidirectional layer would see them."""
    module = S4(WIDTH, 8, transposed=False, bidirectional=True, bottleneck=2, gate=1).double()
    x = torch.randn(2, 30, WIDTH, dtype=torch.float64)
    x[1, 12:] = float("nan")
    y = outputs(module, x, lengths=torch.tensor([30, 12]))
    assert relative(y[1, :12], outputs(module, x[1:, :12])[0]) < 1e-12


@pytest.mark.parametrize(
    ("mode", "measure", "n_ssm"),
    [
        ("diag", ["legs", "diag-lin"], 2),
        ("diag", "all", 4),
        ("nplr", "all", 4),
        ("nplr", ["legs", "fourier"], None),
    ],
)
def test_lists_of_measures(mode: str, measure: Any, n_ssm: int | None) -> None:
    """In ESPnet a list crashes with mode "diag", and "all" in both modes."""
    module = S4(8, 8, mode=mode, measure=measure, n_ssm=n_ssm)
    assert outputs(module, torch.randn(2, 8, 20)).isfinite().all()


@pytest.mark.parametrize("measure", ["legs", "fout"])
def test_steps_in_single_precision_are_forward(measure: str) -> None:
    """ESPnet's step in its diagonal form is off by 0.29 for legs at 64 states."""
    module = S4(WIDTH, 64, measure=measure, transposed=False)
    x = torch.randn(2, 200, WIDTH)
    with torch.no_grad():
        want, state = outputs(module, x), None
        for t in range(200):
            y, state = module.step(x[:, t], state)
            assert relative(y, want[:, t]) < 1e-4
        exact = outputs(module.double(), x.double())
    assert relative(want.double(), exact) < 1e-5


def test_a_checkpoint_replaces_what_a_module_has_computed() -> None:
    """ESPnet's keeps the roots of unity of the length that it ran before (0.024 off, without a word)."""
    one, two = S4(WIDTH, 16).double(), S4(WIDTH, 16).double()
    x = torch.randn(2, WIDTH, 48, dtype=torch.float64)
    outputs(one, x)
    checkpoint = {k: v.clone() for k, v in two.state_dict().items()}
    checkpoint["kernel.kernel.C"] = torch.view_as_real(
        two.kernel.kernel.system().truncated_readout(49).detach()
    )
    checkpoint["kernel.kernel.L"] = torch.tensor(49)
    one.load_state_dict(checkpoint)
    assert relative(outputs(one, x), outputs(two, x)) < 1e-9


@both
def test_lengths_keep_half_precision(layer: type[S4]) -> None:
    """ESPnet's mask is float32, and makes everything after it so."""
    module = layer(WIDTH, 8).to(torch.bfloat16)
    x = torch.randn(2, WIDTH, 20, dtype=torch.bfloat16)
    assert outputs(module, x, lengths=torch.tensor([20, 5])).dtype == torch.bfloat16


def test_options_that_change_nothing_are_taken() -> None:
    module = S4(WIDTH, 8, keops=True, verbose=True, real_tolerance=0.2)
    assert float(module.kernel.kernel.inv_w_real.detach().exp().min()) >= 0.2 - 1e-6
    assert S4(WIDTH, 8, deterministic=True, mode="diag", measure="diag-lin").kernel.kernel.C.isfinite().all()


def test_names_and_shapes_are_espnet_s() -> None:
    names = {n: tuple(p.shape) for n, p in S4(8, 16, channels=2, n_ssm=4, rank=2).state_dict().items()}
    assert names == {
        "D": (2, 8),
        "kernel.kernel.C": (2, 8, 8, 2),
        "kernel.kernel.log_dt": (8,),
        "kernel.kernel.B": (1, 4, 8, 2),
        "kernel.kernel.P": (2, 4, 8, 2),
        "kernel.kernel.inv_w_real": (4, 8),
        "kernel.kernel.w_imag": (4, 8),
        "kernel.kernel.L": (),
        "output_linear.0.weight": (16, 16),
        "output_linear.0.bias": (16,),
    }
    diagonal = S4(8, 16, mode="diag", measure="diag-lin", bidirectional=True, postact=None)
    names = {n: tuple(p.shape) for n, p in diagonal.state_dict().items()}
    assert names == {
        "D": (1, 8),
        "kernel.kernel.C": (2, 8, 8, 2),
        "kernel.kernel.log_dt": (8,),
        "kernel.kernel.B": (8, 8, 2),
        "kernel.kernel.inv_A_real": (8, 8),
        "kernel.kernel.A_imag": (8, 8),
        "output_linear.weight": (8, 8),
        "output_linear.bias": (8,),
    }
    with_dead_parameter = {**diagonal.state_dict(), "kernel.kernel.A": torch.zeros(8, 8, 2)}
    diagonal.load_state_dict(with_dead_parameter, strict=True)


@both
def test_every_parameter_gets_a_gradient(layer: type[S4]) -> None:
    module = layer(WIDTH, 8)
    outputs(module, torch.randn(2, WIDTH, 40)).square().sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


@both
def test_learning_rates_become_groups(layer: type[S4]) -> None:
    module = layer(WIDTH, 8, lr={"dt": 1e-3, "A": 0.0, "B": 1})
    buffers = {n.rsplit(".", 1)[-1] for n, _ in module.named_buffers()}
    assert buffers >= ({"P", "inv_w_real", "w_imag"} if layer is S4 else {"inv_A_real", "A_imag"})
    groups = parameter_groups(module, lr=4e-3, weight_decay=0.01)
    table = {(g["lr"], g["weight_decay"]): len(g["params"]) for g in groups}
    assert table == {
        (4e-3, 0.01): 3,
        (4e-3, 0.0): 1,
        (1e-3, 0.0): 1,
        (1.0, 0.0): 1,
    }  # C, D, weight; bias; log_dt; B
    torch.optim.AdamW(groups).step()
    module.D.requires_grad_(False)
    assert sum(len(g["params"]) for g in parameter_groups(module)) == 5


@both
def test_deterministic_steps_lie_between_their_bounds(layer: type[S4]) -> None:
    """ESPnet's deterministic option exponentiates twice: steps of about 1."""
    dt = layer(WIDTH, 8, deterministic=True, dt_min=0.01, dt_max=0.1).kernel.kernel.log_dt.exp()
    torch.testing.assert_close(dt[[0, -1]], torch.tensor([0.01, 0.1]))
    assert (dt.diff() > 0).all()


@both
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(layer: type[S4], dtype: torch.dtype) -> None:
    module = layer(WIDTH, 8)
    x = torch.randn(2, WIDTH, 77)
    want = outputs(module, x)
    with torch.autocast("cpu", dtype):
        mixed = outputs(module, x)
    assert mixed.dtype == dtype
    assert relative(mixed.float(), want) < 16 * torch.finfo(dtype).eps
    pure = layer(WIDTH, 8)
    pure.load_state_dict(module.state_dict())
    assert outputs(pure.to(dtype), x.to(dtype)).dtype == dtype


@both
def test_compiles_to_one_graph_for_every_length(layer: type[S4]) -> None:
    module = layer(WIDTH, 8)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend=counter)
    compiled(torch.randn(2, WIDTH, 50))
    attempts = counter.frame_count  # torch may start once more, to take the number `rate` for a constant
    for length in (40, 77, 133, 64):
        x = torch.randn(2, WIDTH, length)
        want = outputs(module, x)
        torch.testing.assert_close(compiled(x)[0], want)
        gradients = torch.autograd.grad(compiled(x)[0].square().sum(), list(module.parameters()))
        expected = torch.autograd.grad(outputs(module, x).square().sum(), list(module.parameters()))
        for got, wanted in zip(gradients, expected, strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
    assert counter.frame_count == attempts <= 2


@both
def test_batches_of_any_shape_and_empty_ones(layer: type[S4]) -> None:
    module = layer(WIDTH, 8)
    x = torch.randn(2, 3, WIDTH, 20)
    y, state = module(x, module.default_state(2, 3))
    flat, _ = module(x.flatten(0, 1))
    torch.testing.assert_close(y.flatten(0, 1), flat)
    assert state.shape == (2, 3, WIDTH, 4)
    assert outputs(module, x[0, 0]).shape == (WIDTH, 20)
    assert outputs(module, x[:0]).shape == (0, 3, WIDTH, 20)
    empty, same = module(x[..., :0], state)
    assert empty.shape == (2, 3, WIDTH, 0)
    torch.testing.assert_close(same, state)


@both
def test_nan_stays_in_its_future(layer: type[S4]) -> None:
    module = layer(WIDTH, 8)
    x = torch.randn(1, WIDTH, 100)
    x[..., 70] = float("nan")
    y = outputs(module, x)
    # Within a chunk a product with zero taps may spread NaN; no earlier chunk is touched.
    assert torch.isfinite(y[..., :64]).all()
    assert torch.isnan(y[..., 70:]).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "slow"}, "mode must be one of"),
        ({"measure": "legz"}, "measure must be one of"),
        ({"n_ssm": 4}, "n_ssm must divide the width 6, got 4"),
        ({"d_state": 7}, "d_state must be even"),
        ({"conv": "direct"}, "conv must be 'chunked' or 'fft'"),
        ({"activation": "glu"}, "use postact='glu'"),
        ({"activation": "gloo"}, "activation must be"),
        ({"l_max": 0}, "l_max must be at least 1"),
        ({"gate": 0}, "gate must be at least 1, got 0"),
        ({"bottleneck": 7}, "bottleneck must be at most d_model=6, got 7"),
        ({"hyper_act": "glu"}, "use postact='glu'"),
        ({"hyper_act": "gloo"}, "activation must be"),
        ({"bottleneck": 2, "n_ssm": 2}, "n_ssm must divide the width 3, got 2"),
        ({"measure": "legt"}, "rank"),
    ],
)
def test_bad_options(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        S4(WIDTH, **arguments)


def test_unknown_keywords_are_refused() -> None:
    with pytest.raises(TypeError, match="disc"):
        S4(WIDTH, disc="zoh")  # nplr is always bilinear
    with pytest.raises(TypeError, match="colour"):
        S4D(WIDTH, colour="red")


@both
def test_bad_inputs(layer: type[S4]) -> None:
    module = layer(WIDTH, 8)
    x = torch.randn(2, WIDTH, 20)
    with pytest.raises(ValueError, match=r"x must have shape \(..., d_model=6, length\), got"):
        module(x.mT)
    with pytest.raises(ValueError, match=r"x must have shape \(..., d_model=6\), got \(2, 5\)"):
        module.step(torch.randn(2, 5))
    with pytest.raises(ValueError, match=r"state must have shape \(2, 6, 4\), got \(3, 6, 4\)"):
        module(x, module.default_state(3))
    with pytest.raises(
        TypeError, match=r"state must be a complex tensor of shape \(2, 6, 4\), got torch.float32"
    ):
        module.step(x[..., 0], torch.zeros(2, 6, 4))
    with pytest.raises(ValueError, match=r"lengths must have shape \(\) or \(batch=2,\), got \(3,\)"):
        module(x, lengths=torch.tensor([1, 2, 3]))
    with pytest.raises(TypeError, match=r"lengths must be integers, got torch.float32"):
        module(x, lengths=torch.tensor([1.0, 2.0]))
    with pytest.raises(ValueError, match=r"lengths must be in 0 .. 20, got values in 1 .. 21"):
        module(x, lengths=torch.tensor([1, 21]))
