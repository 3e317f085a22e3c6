"""DSS, S5, LRU, GRU, LSTM and the causal convolution against their papers' formulas, written out in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sequence_kernels import (
    DSS,
    GRU,
    LRU,
    LSTM,
    S5,
    CausalConv,
    SequenceModel,
    SequenceModule,
    parameter_groups,
)

H, N, LENGTH = 5, 8, 70


def bare(module: Any) -> Any:
    """The recurrence of a layer alone, every parameter away from its initial value."""
    module.output_linear = nn.Identity()
    return moved(module)


def moved(module: Any) -> Any:
    """Every parameter away from its initial value, in float64."""
    module = module.double().eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return module


def inputs(length: int = LENGTH) -> Tensor:
    return torch.randn(2, length, H, dtype=torch.float64)


def complex_of(parameter: Tensor) -> Tensor:
    return torch.view_as_complex(parameter)


def close(actual: Tensor, expected: Tensor) -> None:
    assert actual.shape == expected.shape
    assert float((actual - expected).abs().max().detach()) < 1e-11 * float(expected.abs().max().detach())


def recurrence(a: Tensor, b: Tensor, c: Tensor, d: Tensor, u: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """``x_t = a x + B u_t``, ``y_t = scale Re(C x_t) + D u_t``, one element after another: the equations as printed."""
    x, outputs = torch.zeros(len(u), len(a), dtype=a.dtype), []
    for t in range(u.shape[1]):
        x = a * x + u[:, t].to(a.dtype) @ b.to(a.dtype).mT
        outputs.append(
            scale * (x @ c.to(a.dtype).mT).real + (u[:, t] @ d.mT if d.dim() == 2 else d * u[:, t])
        )
    return torch.stack(outputs, 1), x


@pytest.mark.parametrize("rate", [1.0, 2.5])
def test_s5(rate: float) -> None:
    """Smith et al. 2023, equations (2), (6): zero-order hold of a diagonalised state space."""
    torch.manual_seed(0)
    layer, u = bare(S5(H, 2 * N, blocks=2, activation=None)), inputs()
    poles = torch.complex(-layer.Lambda_log_decay.exp(), layer.Lambda_imag)
    a = torch.exp(poles * layer.log_dt.exp() * rate)
    b = ((a - 1) / poles)[:, None] * complex_of(layer.B)
    expected, state = recurrence(a, b, complex_of(layer.C), layer.D, u, 2)
    y, last = layer(u, layer.default_state(2), rate=rate)
    close(y, expected)
    close(torch.view_as_real(last), torch.view_as_real(state))
    close(layer(u, rate=rate)[0], expected)


@pytest.mark.parametrize("rate", [1.0, 2.5])
def test_s5_by_an_euler_step_of_real_maps_to_another_width(rate: float) -> None:
    """``x_t = exp(Lambda dt) x_{t-1} + dt B u_t``, ``y_t = 2 C Re x_t + D u_t`` with a matrix D."""
    torch.manual_seed(0)
    options = {"disc": "euler", "real": True, "d_output": 3, "output_linear": False}
    layer, u = moved(S5(H, 2 * N, activation=None, skip="full", **options)), inputs()
    assert (layer.d_output, list(layer.output_linear.parameters())) == (3, [])
    dt = layer.log_dt.exp() * rate
    a = torch.exp(torch.complex(-layer.Lambda_log_decay.exp(), layer.Lambda_imag) * dt)
    expected, _ = recurrence(a, dt[:, None] * layer.B, layer.C, layer.D, u, 2)
    close(layer(u, rate=rate)[0], expected)
    stepper = layer.freeze(rate=rate).stepper((2,))  # no parameter is left to tell its precision
    close(torch.stack([stepper.step(x) for x in u.unbind(1)], 1), expected)
    with pytest.raises(ValueError, match="rate for each element needs disc='zoh', this layer has 'euler'"):
        layer(u, rate=torch.ones(2, LENGTH))


def test_s5_starts_at_the_poles_of_hippo() -> None:
    layer = S5(H, 16, blocks=2)
    i, j = torch.arange(8.0)[:, None], torch.arange(8.0)
    skew = (
        torch.sqrt((2 * i + 1) * (2 * j + 1)) / 2 * torch.sign(i - j)
    )  # the normal part of -HiPPO-LegS, less 1/2
    frequency = torch.linalg.eigvals(skew.double()).imag.sort().values[:4]
    for block in layer.Lambda_imag.view(2, 4):
        torch.testing.assert_close(block.double().sort().values, frequency, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(layer.Lambda_log_decay.exp(), torch.full((8,), 0.5))


def test_lru() -> None:
    """Orvieto et al. 2023, section 3 and equation (7)."""
    torch.manual_seed(0)
    layer, u = bare(LRU(H, N, activation=None)), inputs()
    a = torch.exp(torch.complex(-layer.nu_log.exp(), layer.theta_log.exp()))
    b = layer.gamma_log.exp()[:, None] * complex_of(layer.B)
    expected, state = recurrence(a, b, complex_of(layer.C), layer.D, u, 1)
    y, last = layer(u, layer.default_state(2))
    close(y, expected)
    close(torch.view_as_real(last), torch.view_as_real(state))
    wide = moved(LRU(H, N, activation=None, d_output=7, skip="full", output_linear=False))
    a = torch.exp(torch.complex(-wide.nu_log.exp(), wide.theta_log.exp()))
    b = wide.gamma_log.exp()[:, None] * complex_of(wide.B)
    close(wide(u)[0], recurrence(a, b, complex_of(wide.C), wide.D, u, 1)[0])
    wide.D = None  # as with skip=None
    close(wide(u)[0], recurrence(a, b, complex_of(wide.C), torch.zeros(7, H).double(), u, 1)[0])
    twice, end = layer(u.repeat_interleave(2, 1), layer.default_state(2))
    y, last = layer(u, layer.default_state(2), rate=2.0)  # each input is held for two steps
    close(y, twice[:, 1::2])
    close(torch.view_as_real(last), torch.view_as_real(end))


def test_lru_starts_on_its_ring_with_inputs_of_unit_gain() -> None:
    layer = LRU(H, 2000, r_min=0.5, r_max=0.9, max_phase=1.0)
    radius, phase = torch.exp(-layer.nu_log.detach().exp()), layer.theta_log.detach().exp()
    assert 0.5 <= float(radius.min()) < 0.55
    assert 0.85 < float(radius.max()) <= 0.9001
    assert 0.95 < float(phase.max()) <= 1.0
    torch.testing.assert_close(
        layer.gamma_log.detach().exp(), torch.sqrt(1 - radius**2), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("version", ["exp", "softmax"])
@pytest.mark.parametrize(("growing", "separate"), [(False, False), (True, False), (True, True)])
def test_dss(version: str, growing: bool, separate: bool) -> None:
    """Gupta et al. 2022, propositions 1 and 3: the kernel, by an explicit softmax and a direct convolution."""
    torch.manual_seed(0)
    options = {"sep_dt_re_im": separate, "output_linear": False}
    layer, u = moved(DSS(H, N, version, l_max=LENGTH, activation=None, **options)), inputs()
    if growing and version == "softmax":
        layer.Lambda.data[::2, 0] *= -1
    real = -layer.Lambda[:, 0].exp() if version == "exp" else layer.Lambda[:, 0]
    modes = torch.complex(real, layer.Lambda[:, 1])
    dt, w = layer.log_dt.exp().view(H, -1), complex_of(layer.W)
    turns = torch.complex(
        modes.real * dt[:, :1], modes.imag * dt[:, -1:]
    )  # by steps of their own, if separate
    powers = torch.exp(turns[..., None] * torch.arange(LENGTH))  # (H, N, L)
    if version == "softmax":
        k = torch.einsum("hn,hnl->hl", w / modes, powers / powers.sum(-1, keepdim=True)).real
    else:
        k = torch.einsum("hn,hnl->hl", w * (torch.exp(turns) - 1) / modes, powers).real
    expected = layer.D * u
    for lag in range(LENGTH):
        expected[:, lag:] = expected[:, lag:] + k[:, lag] * u[:, : LENGTH - lag]
    y, _ = layer(u)
    error = float((y - expected).abs().max().detach() / expected.abs().max().detach())
    assert error < (1e-11 if version == "exp" else 1e-4)  # the authors' 1e-7 in the reciprocal
    close(layer(u, layer.default_state(2))[0], y)
    if version == "exp":  # inputs held for two steps, at once and each by itself
        held = torch.full((2, LENGTH), 2.0, dtype=torch.float64)
        close(layer(u, rate=held)[0], layer(u, rate=2.0)[0])


@pytest.mark.parametrize(("cls", "other"), [(GRU, nn.GRU), (LSTM, nn.LSTM)])
def test_recurrent_networks_are_torchs(
    cls: Callable[..., SequenceModule], other: Callable[..., nn.Module]
) -> None:
    torch.manual_seed(0)
    ours, theirs = cls(H, 3, n_layers=2).double(), other(H, 3, 2, batch_first=True).double()
    theirs.load_state_dict(ours.rnn.state_dict())
    u = inputs()
    y, state = ours(u, ours.default_state(2))
    expected, after = theirs(u)
    close(y, expected)
    after = (after,) if isinstance(after, Tensor) else after
    for mine, want in zip(state, after, strict=True):
        close(mine.transpose(0, 1), want)
    with pytest.raises(TypeError, match="state must be a tuple of"):
        ours(u, torch.zeros(2))
    with pytest.raises(ValueError, match="d_model=5"):
        ours(torch.zeros(2, 3, 4))


@pytest.mark.parametrize(
    "make",
    [
        lambda: S5(H, 8),
        lambda: LRU(H, 8),
        lambda: DSS(H, 8),
        lambda: GRU(H, 3, 2),
        lambda: LSTM(H, 3),
        lambda: CausalConv(H),
    ],
    ids=["s5", "lru", "dss", "gru", "lstm", "conv"],
)
def test_the_state_is_the_one_after_the_real_elements(make: Callable[[], SequenceModule]) -> None:
    torch.manual_seed(0)
    layer, lengths = make().double(), [40, 7, 0, 1]
    u = torch.randn(4, 40, H, dtype=torch.float64)
    _, start = layer(torch.randn_like(u), layer.default_state(4))
    y, state = layer(u, start, lengths=torch.tensor(lengths))
    whole, last = layer(u, start)
    flat = layer.state_to_tensor(state)
    for row, length in enumerate(lengths):
        if length:
            close(y[row, :length], whole[row, :length])
        _, alone = layer(u[:, :length], start)
        close(flat[row], layer.state_to_tensor(alone)[row])
    close(layer.state_to_tensor(layer(u, start, lengths=40)[1]), layer.state_to_tensor(last))
    with pytest.raises(ValueError, match=r"lengths must be in 0 \.\. 40"):
        layer(u, start, lengths=torch.tensor([41, 1, 1, 1]))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("size", [1, 4])
def test_the_convolution_by_its_definition(size: int, bias: bool) -> None:
    layer, u = CausalConv(H, size, bias).double(), inputs(9)
    expected = torch.zeros_like(u)
    for t in range(9):
        for k in range(size):
            if t - size + 1 + k >= 0:
                expected[:, t] += layer.weight[:, 0, k] * u[:, t - size + 1 + k]
    close(layer(u)[0], expected + (0 if layer.bias is None else layer.bias))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: S5(4, 7), "d_state must be even"),
        (lambda: S5(4, 8, blocks=3), "blocks must divide d_state / 2 = 4, got 3"),
        (lambda: LRU(4, r_min=1.0), "0 <= r_min < r_max <= 1"),
        (lambda: LRU(4, max_phase=0), "max_phase must be above 0"),
        (lambda: DSS(4, version="log"), "version must be 'softmax' or 'exp'"),
        (lambda: DSS(4, version="softmax"), "pass l_max"),
        (lambda: S5(4, disc="bilinear"), "disc must be 'zoh' or 'euler', got 'bilinear'"),
        (lambda: S5(4, skip="half"), "skip must be 'diagonal', 'full' or None, got 'half'"),
        (lambda: LRU(4, d_output=3), "skip must be 'full' or None where d_output=3 is not d_model=4"),
        (lambda: DSS(4, output_linear=False, postact="gelu"), "postact='gelu' follows the linear map"),
        (lambda: CausalConv(4, 0), "kernel_size must be at least 1"),
        (
            lambda: S5(4)(torch.zeros(2, 3, 5)),
            r"x must have shape \(\.\.\., length, d_model=4\)",
        ),
        (
            lambda: S5(4, 8)(torch.zeros(2, 3, 4), torch.zeros(2, 3) + 0j),
            r"state must have shape \(2, 4\), got",
        ),
        (lambda: LRU(4).step(torch.zeros(2, 5)), r"x must have shape \(\.\.\., d_model=4\)"),
    ],
)
def test_what_they_refuse(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_a_real_state_is_refused() -> None:
    with pytest.raises(TypeError, match="state must be a complex tensor"):
        LRU(4, 8)(torch.zeros(2, 3, 4), torch.zeros(2, 8))


@pytest.mark.parametrize("name", ["s5", "lru", "dss", "gru", "lstm", "conv"])
def test_in_a_model_by_name(name: str) -> None:
    torch.manual_seed(0)
    model = SequenceModel(6, n_layers=2, layer=name, residual="R", norm="layer", dropout=0.1, transposed=True)
    x = torch.randn(2, 40, 6)
    model(x)[0].square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    groups = parameter_groups(model, lr=1e-3, weight_decay=0.1)
    spared = {id(p) for group in groups if group["weight_decay"] == 0 for p in group["params"]}
    for block in model.layers:
        for dynamics in getattr(block.layer, "dynamics", ()):
            assert id(block.layer.get_parameter(dynamics)) in spared
    assert {id(p) for name, p in model.named_parameters() if name.endswith("weight_hh_l0")}.isdisjoint(spared)


@pytest.mark.parametrize("cls", [S5, LRU, DSS])
def test_float32_keeps_its_digits_over_a_long_sequence(cls: Any) -> None:
    torch.manual_seed(0)
    layer = cls(8, 16)
    x = torch.randn(1, 5000, 8)
    y = layer(x)[0].double()
    expected = layer.double()(x.double())[0]
    assert float(((y - expected).norm() / expected.norm()).detach()) < 2e-5
    assert math.isfinite(float(y.abs().max().detach()))


def test_half_precision() -> None:
    torch.manual_seed(0)
    for layer in (DSS(H, N), DSS(H, N, version="softmax", l_max=LENGTH), S5(H, N), LRU(H, N)):
        x = torch.randn(2, LENGTH, H)
        y = layer(x)[0]
        half = layer.bfloat16()
        assert (half(x.bfloat16())[0] - y).abs().max() < 0.05 * y.abs().max()
        assert half.step(x[:, 0].bfloat16())[0].dtype == torch.bfloat16


def test_an_activation_with_a_bias_has_one_for_each_channel() -> None:
    torch.manual_seed(0)
    for cls in (DSS, S5, LRU, CausalConv):
        layer = cls(H, activation="modrelu").eval()
        x = torch.randn(2, 3, H)
        state, steps = layer.default_state(2), []
        for u in x.unbind(1):
            y, state = layer.step(u, state)
            steps.append(y)
        torch.testing.assert_close(torch.stack(steps, 1), layer(x)[0])


@pytest.mark.parametrize("cls", [DSS, S5, LRU, CausalConv])
def test_an_activation_that_halves_the_width_is_refused(cls: Any) -> None:
    with pytest.raises(ValueError, match="activation cannot be 'glu'"):
        cls(H, activation="glu")


@pytest.mark.parametrize("make", [GRU, LSTM, CausalConv])
def test_a_state_of_another_batch_is_refused(make: Callable[[int], SequenceModule]) -> None:
    layer = make(H)
    for state in (layer.default_state(3), layer.default_state(2, 2)):
        with pytest.raises(ValueError, match="state must have shape"):
            layer(torch.randn(2, 4, H), state)
        with pytest.raises(ValueError, match="state must have shape"):
            layer.step(torch.randn(2, H), state)
