"""The moving sum against the recurrence written out."""

from __future__ import annotations

import torch

from sequence_kernels import EMA, SequenceModel


def test_against_the_recurrence_written_out() -> None:
    layer, x = EMA(3).double(), torch.randn(2, 7, 3, dtype=torch.float64)
    y, outputs = torch.zeros(2, 3, dtype=torch.float64), []
    for t in range(7):
        y = torch.sigmoid(layer.logit) * y + x[:, t]
        outputs.append(y)
    torch.testing.assert_close(layer(x)[0], torch.stack(outputs, 1))


def test_by_name() -> None:
    assert SequenceModel(4, layer="ema")(torch.randn(2, 5, 4))[0].shape == (2, 5, 4)
