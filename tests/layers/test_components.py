"""The small parts that layers share."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import pytest
import torch

from sequence_kernels import FeedForward, parameter_groups
from sequence_kernels.layers.activations import ACTIVATIONS, ModReLU, activation_module
from sequence_kernels.layers.components import (
    DropoutNd,
    StochasticDepth,
    TransposedLinear,
    WeightNormLinear,
    linear_activation,
)
from sequence_kernels.layers.norms import Normalization, TransposedLN
from sequence_kernels.layers.series_norms import (
    ReversibleInstanceNorm1dInput,
    ReversibleInstanceNorm1dOutput,
    TSInverseNormalization,
    TSNormalization,
)

NAMES = (*ACTIVATIONS, None)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("name", NAMES)
def test_every_activation_works_on_channels_in_both_layouts(name: str | None) -> None:
    """ESPnet's "glu" halves the last axis and its "ln" the one before, whichever the channels are."""
    last, first = (activation_module(name, dim=dim, size=6) for dim in (-1, -2))
    if any(True for _ in first.parameters()):
        first.load_state_dict(last.state_dict())
    x = torch.randn(2, 5, 6)
    torch.testing.assert_close(first(x.mT).mT, last(x))
    single = last(x[0, 0])
    torch.testing.assert_close(single, last(x)[0, 0])  # each position by itself


def test_modrelu() -> None:
    module = ModReLU(3)
    assert (module.b.abs() <= 0.01).all()
    with torch.no_grad():
        module.b.copy_(torch.tensor([-1.0, 0.0, 1.0]))
    x = torch.tensor([[3.0, -2.0, -0.5], [-0.5, 0.0, 0.0]])
    torch.testing.assert_close(module(x), torch.tensor([[2.0, -2.0, -1.5], [0.0, 0.0, 0.0]]))
    with pytest.raises(ValueError, match="its size must be given"):
        activation_module("modrelu")


@pytest.mark.parametrize(
    ("initializer", "activation", "spread"),
    [
        ("uniform", None, 1.0),
        ("uniform", "gelu", math.sqrt(2)),
        ("normal", "tanh", 5 / 3),
        ("normal", "glu", 1.0),
        ("xavier", "relu", math.sqrt(2 / (300 + 500)) * math.sqrt(300)),
        ("zero", None, 0.0),
    ],
)
def test_initializers(initializer: str, activation: str | None, spread: float) -> None:
    """Standard deviation of the weight times sqrt(fan_in); "glu" raises in ESPnet."""
    linear = linear_activation(300, 500, activation, initializer=initializer)
    weight = (linear[0] if activation else linear).weight.detach()
    if activation == "glu":
        assert weight.shape == (1000, 300)
    assert abs(float(weight.std()) * math.sqrt(300) - spread) < 0.02
    with pytest.raises(ValueError, match="initializer must be None or one of uniform, normal"):
        linear_activation(3, 5, initializer="orthogonal")


def test_linear_activation_options() -> None:
    assert not linear_activation(3, 5, zero_bias_init=True).bias.any()
    assert linear_activation(3, 5, bias=False).bias is None
    normed = linear_activation(3, 5, "gelu", weight_norm=True, transposed=True)
    assert isinstance(normed[0], WeightNormLinear)
    x = torch.randn(2, 3, 7)
    assert normed(x).shape == (2, 5, 7)
    bare = linear_activation(3, 5, weight_norm=True, bias=False)
    assert {name: tuple(p.shape) for name, p in bare.named_parameters()} == {
        "weight_g": (5, 1),
        "weight_v": (5, 3),
    }
    assert bare(x.mT).shape == (2, 7, 5)


def test_weight_norm_starts_as_the_linear_map_does() -> None:
    linear = TransposedLinear(3, 5)
    x = torch.randn(2, 3, 7)
    torch.testing.assert_close(WeightNormLinear(linear)(x), linear(x))


def test_biases_of_transposed_maps_are_spared_weight_decay() -> None:
    """As in ESPnet, and so that copying and pickling keep it."""
    layer = FeedForward(4, transposed=True)
    for module in (layer, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        groups = parameter_groups(module, lr=1.0, weight_decay=0.1)
        assert [(group["weight_decay"], len(group["params"])) for group in groups] == [(0.1, 2), (0.0, 2)]
    assert len(parameter_groups(FeedForward(4), lr=1.0, weight_decay=0.1)) == 1


def test_feed_forward_expands_by_a_fraction() -> None:
    """In ESPnet `expand` must be an integer."""
    layer = FeedForward(4, expand=1.5)
    assert layer.ff[0][0].weight.shape == (6, 4)
    assert layer.d_model == layer.d_output == 4
    assert layer.step(torch.randn(2, 4))[0].shape == (2, 4)


@pytest.mark.parametrize("name", ["layer", "batch", "group", "instance"])
def test_keywords_reach_the_norm(name: str) -> None:
    """ESPnet's "group" takes their names for numbers."""
    assert Normalization(4, _name_=name, eps=0.5).norm.eps == 0.5


def test_transposed_norm_of_one_axis_or_another() -> None:
    """ "ln" where channels are last: ESPnet's normalises over the positions, which `dim` brings back."""
    x = torch.randn(2, 5, 6)
    norm = activation_module("ln", dim=-1)
    assert isinstance(norm, TransposedLN)
    torch.testing.assert_close(norm(x).mean(-1), torch.zeros(2, 5))
    norm.dim = -2
    torch.testing.assert_close(norm(x).mean(-2), torch.zeros(2, 6))


def test_dropout_nd() -> None:
    x = torch.ones(50, 8, 6)
    tied, turned, free = DropoutNd(), DropoutNd(transposed=False), DropoutNd(tie=False)
    assert not torch.equal(tied(x), tied(x)), "another mask each time"
    y = tied(x)
    assert (y == y[..., :1]).all()
    y = turned(x)
    assert (y == y[:, :1]).all()
    y = free(x)
    assert not (y == y[..., :1]).all()
    assert not (y == y[:, :1]).all()
    assert set(y.unique().tolist()) == {0.0, 2.0}
    assert torch.equal(tied.eval()(x), x)


def test_stochastic_depth() -> None:
    x = torch.ones(200, 3, 2)
    rows = StochasticDepth(0.5)(x)
    assert (rows == rows[:, :1, :1]).all()
    assert set(rows.unique().tolist()) == {0.0, 2.0}
    batches = torch.stack([StochasticDepth(0.5, "batch")(x) for _ in range(40)])
    assert (batches == batches[:, :1, :1, :1]).all()
    assert set(batches.unique().tolist()) == {0.0, 2.0}
    with pytest.raises(ValueError, match="mode must be 'row' or 'batch', got 'column'"):
        StochasticDepth(0.5, "column")


@pytest.mark.parametrize("method", ["mean", "last", None])
def test_series_normalisation(method: str | None) -> None:
    """A series of zeros gives NaN in ESPnet."""
    x = torch.randn(2, 12, 3)
    x[0, :, 1] = 0
    normalize = TSNormalization(method, 4)
    y = normalize(x)
    assert y.isfinite().all()
    torch.testing.assert_close(TSInverseNormalization(method, normalize)(y), x)
    known: Any = {"mean": x[:, :8].abs().mean(1), "last": x[:, 7].abs(), None: torch.ones(2, 3)}[method]
    nonzero = known > 0
    torch.testing.assert_close(y[:, 3][nonzero], (x[:, 3] / known)[nonzero])
    assert TSNormalization("mean", 0)(x).isfinite().all()


@pytest.mark.parametrize("transposed", [False, True])
def test_reversible_norm(transposed: bool) -> None:
    x = torch.randn(2, 12, 3) * 3 + 5
    x = x.mT if transposed else x
    norm = ReversibleInstanceNorm1dInput(3, transposed)
    y = norm(x)
    length = -1 if transposed else -2
    torch.testing.assert_close(y.mean(length), torch.zeros(2, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(y.std(length, correction=0), torch.ones(2, 3), atol=1e-3, rtol=0)
    torch.testing.assert_close(ReversibleInstanceNorm1dOutput(norm)(y), x)
    norm.load_state_dict({"norm.weight": torch.ones(3), "norm.bias": torch.zeros(3)}, strict=True)
