"""The pools: their definitions, their streaming, and ESPnet's faults put right."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sequence_kernels import SequenceModel
from sequence_kernels.layers.pools import (
    POOLS,
    DownAvgPool,
    DownLinearPool,
    DownPool,
    DownSample,
    DownSpectralPool,
    Pool,
    UpPool,
    UpSample,
    make_pool,
)
from tests.test_law import close, steps

WIDTH = 4


def last(y: Tensor, transposed: bool) -> Tensor:
    return y.mT if transposed else y


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def test_the_registry_has_espnet_s_names() -> None:
    assert set(POOLS) == {"sample", "pool", "linear", "spectral"}
    assert isinstance(make_pool("pool", WIDTH, False), DownAvgPool)
    with pytest.raises(ValueError, match="pool must be one of sample, pool, linear, spectral; got 'max'"):
        make_pool("max", WIDTH, False)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("stride", "expand"), [(1, 1), (1, 2), (2, 1), (3, 2)])
def test_definitions(stride: int, expand: int, transposed: bool) -> None:
    """`sample` raises TypeError in ESPnet."""
    x = torch.randn(2, 13, WIDTH)
    given = x.mT if transposed else x
    sample, mean = (cls(WIDTH, stride, expand, transposed) for cls in (DownSample, DownAvgPool))
    expected = x[:, ::stride].repeat_interleave(expand, -1)
    torch.testing.assert_close(last(sample(given)[0], transposed), expected)
    expected = torch.stack([x[:, i : i + stride].mean(1) for i in range(0, 14 - stride, stride)], 1)
    torch.testing.assert_close(last(mean(given)[0], transposed), expected.repeat_interleave(expand, -1))
    linear = DownLinearPool(WIDTH, stride, expand, transposed)
    weight = linear.linear.weight.unflatten(1, (WIDTH, stride))
    windows = [x[:, i : i + stride] for i in range(0, 14 - stride, stride)]
    expected = torch.stack([torch.einsum("bsh,ohs->bo", w, weight) for w in windows], 1) + linear.linear.bias
    torch.testing.assert_close(last(linear(given)[0], transposed), expected)
    assert mean.d_output == linear.d_output == WIDTH * expand


def test_spectral_keeps_what_is_slow() -> None:
    """ESPnet transforms back twice: its output is reversed in time, and divided by the length."""
    time = torch.arange(24, dtype=torch.float64)
    slow = 2 + torch.cos(2 * torch.pi * time / 24 + 0.3)
    fast = torch.cos(2 * torch.pi * 7 * time / 24)
    x = (slow + fast).view(1, 24, 1)
    y = DownSpectralPool(1, 3, transposed=False)(x)[0]
    torch.testing.assert_close(y[0, :, 0], slow[::3])
    once = DownSpectralPool(1, 1, transposed=False, legacy=True)(x)[0]
    torch.testing.assert_close(once, x.flip(1).roll(1, 1) / 24)
    with pytest.raises(ValueError, match="length that is a multiple of 3, got 25"):
        DownSpectralPool(1, 3, transposed=False)(torch.randn(1, 25, 1))
    with pytest.raises(ValueError, match="length that is a multiple of 6, got 27"):
        DownSpectralPool(1, 3, transposed=False, legacy=True)(torch.randn(1, 27, 1))


def test_up_pool_is_later_by_a_window() -> None:
    pool = UpPool(WIDTH, 3, 2, transposed=False)
    x, skip = torch.randn(2, 5, WIDTH), torch.randn(2, 10, 3)
    weight = torch.nn.functional.normalize(pool.linear.weight_v, dim=1) * pool.linear.weight_g
    mapped = (x @ weight.T + pool.linear.bias).view(2, 5, 3, 2).mT.reshape(2, 10, 3)
    expected = torch.cat((torch.zeros(2, 2, 3), mapped[:, :-2]), 1)
    torch.testing.assert_close(pool(x)[0], expected)
    torch.testing.assert_close(pool(x, skip=skip)[0], expected + skip)
    with pytest.raises(ValueError, match="x must be None: 2 outputs are waiting"):
        pool.step(x[:, 0], pool.default_state(2))
    with pytest.raises(ValueError, match="the first step needs x or a state"):
        pool.step(None)


def test_up_sample_undoes_down_sample() -> None:
    x = torch.randn(2, 4, WIDTH)
    down, up = DownSample(WIDTH, 2, 3, transposed=False), UpSample(3 * WIDTH, 2, 3, transposed=False)
    torch.testing.assert_close(down(up(x.repeat_interleave(3, -1))[0])[0], x.repeat_interleave(3, -1))
    with pytest.raises(ValueError, match="expand must divide the width 4, got 3"):
        UpSample(4, 2, 3)


def test_a_down_and_an_up_pool_stream_together() -> None:
    """A U-Net: what the inner sequence gives at the end of a window comes out in the next one."""
    down = DownPool(WIDTH, 6, stride=3, transposed=False)
    up = UpPool(6, WIDTH, 3, transposed=False)
    x = torch.randn(2, 12, WIDTH)
    whole = up(down(x)[0], skip=x)[0]
    inner, outer, outputs = down.default_state(2), up.default_state(2), []
    for element in x.unbind(1):
        y, inner = down.step(element, inner)
        z, outer = up.step(y, outer)
        outputs.append(z + element)
    close(torch.stack(outputs, 1), whole, 1e-6)


@pytest.mark.parametrize("name", ["sample", "pool", "linear"])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("prenorm", [False, True])
def test_a_stack_with_pools_streams(name: str, transposed: bool, prenorm: bool) -> None:
    """In ESPnet's blocks the step of a pool maps (batch, channels) as a sequence: no pooling, or rows merged."""
    model = SequenceModel(
        WIDTH,
        2,
        transposed,
        prenorm=prenorm,
        n_repeat=2,
        layer={"_name_": "s4d", "d_state": 4},
        residual="R",
        norm="layer",
        pool={"_name_": name, "stride": 2, "expand": 2},
    ).double()
    assert [block.pool is not None for block in model.layers] == [False, True, False, True]
    assert model.d_output == 4 * WIDTH
    x = torch.randn(2, 17, WIDTH, dtype=torch.float64)
    with torch.no_grad():
        whole, state = model(x, model.default_state(2))
        assert whole.shape == (2, 5 if name == "sample" else 4, model.d_output)
        outputs, last_state = steps(model, x, model.default_state(2))
        close(outputs, whole, 1e-9)
        close(last_state, state, 1e-9)
        parts, state = [], None
        for piece in x.split(5, 1):
            y, state = model(piece, model.default_state(2) if state is None else state)
            parts.append(y)
        close(torch.cat(parts, 1), whole, 1e-9)

        stepper = model.stepper((2,))
        given = [stepper.step(element) for element in x.unbind(1)]
        close(torch.stack([y for y in given if y is not None], 1), whole, 1e-9)
        stepper.reset()
        parts = [stepper.forward(x[:, :1]), stepper.forward(x[:, 1:12])]
        middle = stepper.state
        parts.append(stepper.forward(x[:, 12:]))
        close(torch.cat(parts, 1), whole, 1e-9)
        stepper.state = middle
        close(stepper.forward(x[:, 12:]), parts[-1], 1e-12)
        with pytest.raises(ValueError, match="state must hold tensors"):
            stepper.state = model.default_state(3)


@pytest.mark.parametrize("name", ["sample", "pool"])
def test_lengths_shrink_with_the_sequence(name: str) -> None:
    model = SequenceModel(WIDTH, 2, layer={"_name_": "s4d", "d_state": 4}, pool={"_name_": name, "stride": 2})
    x = torch.randn(2, 16, WIDTH)
    y, _ = model(x, lengths=torch.tensor([16, 9]))
    alone, _ = model(x[1:, :9])
    torch.testing.assert_close(y[1, : alone.shape[1]], alone[0])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DownAvgPool(4, 0), "stride must be at least 1, got 0"),
        (lambda: DownAvgPool(4, 1, 0), "expand must be at least 1, got 0"),
        (lambda: DownPool(4), "one of d_output and expand must be given, got None and None"),
        (lambda: DownPool(4, 4, 1), "one of d_output and expand must be given, got 4 and 1"),
        (lambda: UpPool(4, 4, 0), "stride must be at least 1, got 0"),
    ],
)
def test_bad_options(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_weight_norm_has_the_names_of_torch_s_first_one() -> None:
    names = {name: tuple(p.shape) for name, p in DownPool(4, 6, stride=2).state_dict().items()}
    assert names == {"linear.bias": (6,), "linear.weight_g": (6, 1), "linear.weight_v": (6, 8)}
    pool: Pool = DownPool(4, 6, stride=2, transposed=False)
    x = torch.randn(2, 6, 4)
    before = pool(x)[0]
    with torch.no_grad():
        pool.linear.weight_v.mul_(3.0)
    torch.testing.assert_close(pool(x)[0], before)


def test_lengths_with_a_state_are_refused() -> None:
    """What waits in a window would be elements that are not real."""
    model = SequenceModel(WIDTH, layer={"_name_": "s4d", "d_state": 4}, pool={"_name_": "pool", "stride": 2})
    x, lengths = torch.randn(2, 5, WIDTH), torch.tensor([5, 2])
    with pytest.raises(ValueError, match="lengths cannot be given together with a state"):
        model(x, model.default_state(2), lengths=lengths)


def test_a_state_made_on_another_device_follows() -> None:
    """A pool without parameters does not know where it is."""
    for pool in (DownAvgPool(WIDTH, 2), UpSample(WIDTH, 2)):
        x = torch.randn(2, WIDTH, 4, device="meta")
        assert pool(x, pool.default_state(2))[0].device == x.device
