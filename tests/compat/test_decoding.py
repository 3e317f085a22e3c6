"""ESPnet's own decoder, accelerated, in ESPnet's own beam search: what it finds without us, with the same scores."""

from __future__ import annotations

import copy
import sys
from types import ModuleType
from typing import Any

import pytest
import torch

from sequence_kernels import compat
from tests.parity.conftest import espnet  # noqa: F401 (the fixture)

VOCABULARY = 12


@pytest.fixture(params=["nplr", "diag"])
def decoder(request: pytest.FixtureRequest, espnet: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Any:  # noqa: F811
    if "typeguard" not in sys.modules:
        typeguard = ModuleType("typeguard")
        typeguard.typechecked = lambda function: function  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "typeguard", typeguard)  # what it imports, and does not need
    s4_decoder = pytest.importorskip("espnet2.asr.decoder.s4_decoder")
    torch.manual_seed(0)
    measure = {"measure": "diag-lin"} if request.param == "diag" else {}
    layers = [{"_name_": "s4", "d_state": 8, "mode": request.param, **measure}, {"_name_": "ff"}]
    sizes = {"n_layers": 2, "layer": layers, "residual": "R", "norm": "layer", "dropout": 0.0}
    made = s4_decoder.S4Decoder(VOCABULARY, 8, **sizes).eval()
    with torch.no_grad():
        made.output.weight.mul_(4)  # so that hypotheses differ
    return made


def search(decoder: Any) -> list[Any]:
    """As ``espnet2.bin.asr_inference`` does it: ``setup_step`` on every part that has it, and a batch of hypotheses."""
    batch_beam_search = pytest.importorskip("espnet.nets.batch_beam_search")
    for part in decoder.modules():
        if hasattr(part, "setup_step"):
            part.setup_step()
    beam = batch_beam_search.BatchBeamSearch(
        scorers={"decoder": decoder},
        weights={"decoder": 1.0},
        beam_size=4,
        vocab_size=VOCABULARY,
        sos=decoder.sos,
        eos=decoder.eos,
    )
    with torch.no_grad():
        return beam(torch.zeros(5, 8), maxlenratio=-9)


def test_the_same_hypotheses(decoder: Any) -> None:
    ours = copy.deepcopy(decoder)
    done = compat.accelerate(ours)
    assert list(done.replaced) == ["decoder.layers.0.layer", "decoder.layers.2.layer"], str(done)
    expected, found = search(decoder), search(ours)
    assert len(found) == len(expected) >= 4
    assert len({tuple(hypothesis.yseq.tolist()) for hypothesis in found}) > 3
    for a, b in zip(found, expected, strict=True):
        assert a.yseq.tolist() == b.yseq.tolist()
        assert float(a.score) == pytest.approx(float(b.score), abs=1e-4)
