"""ONNX files, run by onnxruntime beside the modules that they were made of."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sequence_kernels import (
    DSS,
    GRU,
    LRU,
    LSTM,
    S4,
    S4D,
    S5,
    CausalConv,
    SequenceModel,
    SequenceModule,
    export,
)
from sequence_kernels.layers import MultiHeadedAttention
from sequence_kernels.layers.pools import DownPool
from sequence_kernels.trees import tensors_of

onnxruntime = pytest.importorskip("onnxruntime")
WIDTH = 4


class Session:
    """A file in onnxruntime, called as a module is."""

    def __init__(self, path: Path) -> None:
        self._session = onnxruntime.InferenceSession(path)
        self.names = [given.name for given in self._session.get_inputs()]

    def __call__(self, x: Tensor, state: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        given = [t.numpy() for t in (x, *state)]
        y, *after = self._session.run(None, dict(zip(self.names, given, strict=True)))
        return torch.from_numpy(np.asarray(y)), [torch.from_numpy(np.asarray(t)) for t in after]


class Within(SequenceModule):
    """A module of a user's, which says no more of its state than it has to."""

    def __init__(self, inner: SequenceModule) -> None:
        super().__init__()
        self.d_model, self.d_output, self.inner = inner.d_model, inner.d_output, inner

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        y, state = self.inner(x, state)
        return x + y, state

    def default_state(self, *batch_shape: int, device: Any = None) -> Any:
        return self.inner.default_state(*batch_shape, device=device)


def agree(found: Any, wanted: Any, tolerance: float = 1e-5) -> None:
    pairs = list(zip(tensors_of(found), tensors_of(wanted), strict=True))
    assert pairs
    for a, b in pairs:
        assert a.shape == b.shape
        assert float((a - b).abs().max()) <= tolerance * float(b.abs().max())


def carried(module: SequenceModule, path: Path, parts: tuple[int, ...], batch: int) -> None:
    """The file and the module over parts of sequences, each with its own state from call to call."""
    frozen, run = module.eval().freeze(), Session(path)
    state = frozen.default_state(batch)
    own = list(tensors_of(state))
    torch.manual_seed(batch)
    for length in parts:
        x = torch.randn(batch, length, WIDTH)
        x = x.mT.contiguous() if module.channels_first else x
        y, state = frozen(x, state)
        found, own = run(x, own)
        agree((found, own), (y, state))


@pytest.mark.parametrize(
    "layers",
    [
        ["s4"],
        pytest.param(["s4", "gru"], marks=pytest.mark.thorough),
        pytest.param(["s4d", "s5", "dss", "lru", "conv", "ff", "lstm"], marks=pytest.mark.thorough),
    ],
)
def test_a_model(layers: list[str], tmp_path: Path) -> None:
    torch.manual_seed(0)
    small: list[Any] = [
        {"_name_": name, "d_state": 4} if name[0] in "sdl" and name != "lstm" else name for name in layers
    ]
    module = Within(SequenceModel(WIDTH, layer=small, residual="R", norm="layer"))
    export.onnx(module, tmp_path / "model.onnx")
    for batch, parts in ((1, (1, 5, 64, 75)), (7, (300, 1, 1))):
        carried(module, tmp_path / "model.onnx", parts, batch)
    frozen = module.eval().freeze()
    x, state = torch.randn(1, 100_000, WIDTH), frozen.default_state(1)
    y, after = frozen(x, state)
    agree(Session(tmp_path / "model.onnx")(x, list(tensors_of(state))), (y, list(tensors_of(after))), 1e-4)


@pytest.mark.thorough
@pytest.mark.parametrize(
    "make",
    [
        lambda: S4(WIDTH, 4),
        lambda: S4D(WIDTH, 4, gate=2, transposed=False),
        lambda: DSS(WIDTH, 4, transposed=True),
        lambda: S5(WIDTH, 4),
        lambda: LRU(WIDTH, 3),
        lambda: GRU(WIDTH, 5, n_layers=2),
        lambda: LSTM(WIDTH),
        lambda: CausalConv(WIDTH, 3),
        lambda: S4D(WIDTH, 2, measure="diag-real"),
    ],
)
def test_a_layer_and_its_step(make: Any, tmp_path: Path) -> None:
    module = make().eval()
    export.onnx(module, tmp_path / "layer.onnx")
    for batch, parts in ((1, (1, 64, 75)), (3, (32, 33, 1))):
        carried(module, tmp_path / "layer.onnx", parts, batch)
    export.onnx(module, tmp_path / "step.onnx", step=True)
    frozen, run = module.freeze(), Session(tmp_path / "step.onnx")
    state = frozen.default_state(5)
    own = list(tensors_of(state))
    for x in torch.randn(3, 5, WIDTH):
        y, state = frozen.step(x, state)
        found, own = run(x, own)
        agree((found, own), (y, state))


@pytest.mark.thorough
def test_a_module_that_looks_both_ways_has_no_state(tmp_path: Path) -> None:
    module = S4D(WIDTH, 4, bidirectional=True).eval()
    export.onnx(module, tmp_path / "model.onnx")
    run = Session(tmp_path / "model.onnx")
    assert run.names == ["x"]
    for length in (5, 80):
        x = torch.randn(2, WIDTH, length)
        agree(run(x, [])[0], module(x)[0])


@pytest.mark.thorough
def test_torch_alone_exports_a_frozen_layer(tmp_path: Path) -> None:
    frozen, free = S4(WIDTH, 4).freeze(), torch.export.Dim.DYNAMIC
    example = torch.randn(2, WIDTH, 75), frozen.default_state(2)  # of several chunks: one would stay one
    shapes = {0: free, 2: free}, {0: free}
    torch.onnx.export(frozen, example, tmp_path / "a.onnx", dynamo=True, dynamic_shapes=shapes)
    x, state = torch.randn(3, WIDTH, 70), frozen.default_state(3)
    agree(Session(tmp_path / "a.onnx")(x, [state]), frozen(x, state))


def test_what_cannot_be_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.onnx"
    with pytest.raises(ValueError, match=r"layers\.0\.pool, a DownAvgPool, grows"):
        export.onnx(SequenceModel(WIDTH, layer="ff", pool={"_name_": "pool", "expand": 1}), path)
    for growing in (DownPool(WIDTH, expand=2, stride=2), MultiHeadedAttention(WIDTH, n_head=2)):
        with pytest.raises(ValueError, match=r"the module, a \w+, grows"):
            export.onnx(growing, path)
    with pytest.raises(ValueError, match="not causal cannot be stepped"):
        export.onnx(S4D(WIDTH, 4, bidirectional=True), path, step=True)
    with pytest.raises(ValueError, match="l_max"):
        export.onnx(S4D(WIDTH, 4, disc="dss"), path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        ImportError, match=r"needs onnx and onnxscript: `pip install 'sequence-kernels\[export\]'`"
    ):
        export.onnx(GRU(WIDTH), path)
