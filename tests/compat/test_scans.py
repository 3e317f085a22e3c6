"""``compat.accelerate`` on S5 and LRU layers of other libraries, which return their output alone."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sequence_kernels import compat

from .scan_layers import LRU, S5, discretize_bilinear, discretize_zoh
from .test_checkpoints import difference

NEAR = 2e-6


class Shifted(LRU):
    """A copy that reads the state before the input."""

    def forward(self, input: Tensor, state: Tensor | None = None) -> Tensor:  # noqa: A002
        return super().forward(input.roll(1, 1))


@pytest.mark.parametrize(
    "layer",
    [lambda: S5(6, 8), lambda: S5(6, 8, discretize_bilinear), lambda: LRU(6, 6, 10), lambda: LRU(6, 3, 5)],
)
def test_the_same_function_of_the_same_parameters(layer: Any) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(layer())
    other, x = copy.deepcopy(model), torch.randn(2, 50, 6)
    parameters = dict(model.named_parameters())
    done = compat.accelerate(model)
    assert list(done.replaced) == ["0"], str(done)
    assert not compat.accelerate(model).replaced  # what is ours already
    assert all(p is parameters[name] for name, p in model.named_parameters())
    losses = []
    for m in (model, other):
        optimizer = torch.optim.AdamW(m.parameters(), lr=1e-3)
        for _ in range(3):
            optimizer.zero_grad()
            loss = m(x).square().mean()
            loss.backward()
            optimizer.step()
        losses.append(loss.detach())
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-4, atol=0)
    done.revert()
    assert type(model[0]) is type(other[0])
    assert difference(model(x), other(x)) < 1e-3


def test_s5_with_a_state() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(S5(6, 8, discretize_zoh)), torch.randn(2, 50, 6)
    theirs = model[0]
    compat.accelerate(model)
    y, state = model[0](x[:, :20], 2.0, return_state=True)
    expected, want = theirs(x[:, :20], 2.0, return_state=True)
    assert difference(y, expected) < NEAR
    assert difference(torch.view_as_real(state), torch.view_as_real(want)) < NEAR
    assert difference(model[0](x[:, 20:], 2.0, state), theirs(x[:, 20:], 2.0, want)) < NEAR
    with pytest.raises(ValueError, match="step_scale must be one number"):
        model[0](x, torch.ones(2))


class Louder(S5):
    """A copy that gives twice as much."""

    def forward(self, signal: Tensor, *args: Any, **kwargs: Any) -> Any:
        return 2 * super().forward(signal)


def test_what_is_refused() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Shifted(6, 6, 4), S5(6, 4), LRU(6, 6, 4), Louder(6, 4))
    model[1].seq.bidir = True
    done = compat.accelerate(model)
    assert "on a trial its output and ours are" in done.skipped["0"]
    assert "on a trial its output and ours are" in done.skipped["3"]
    assert done.skipped["1"] == "bidir=True has no counterpart here"
    with pytest.raises(ValueError, match="takes none"):
        model[2](torch.randn(1, 3, 6), torch.zeros(4))
