"""Packages of AOTInductor, run where there is no sequence_kernels: in a fresh Python, and in a C++ program."""

from __future__ import annotations

import shutil
import subprocess
import sys
import types
import wave
from pathlib import Path
from typing import Any

import pytest
import torch

from sequence_kernels import S4D, SequenceModel, SequenceModule, export, native
from sequence_kernels.trees import tensors_of

from ..examples.loading import loaded

pytestmark = [
    pytest.mark.skipif(native.unavailable("cpu") is not None, reason="needs the compiled library"),
    pytest.mark.skipif(shutil.which("c++") is None, reason="AOTInductor needs a C++ compiler"),
]
ROOT = Path(__file__).parents[2]
LIBRARY = Path(native.__file__).with_name("_native_cpu.so")
WIDTH = 4

#: 4e-6: stacks of four layers, in which what torch compiles and torch itself are equally far from float64
#: (docs/decisions.md); 2.7e-6 was measured of DSS among them, 7.3e-7 of single blocks.
RUN = """
import sys, torch, torch._inductor.package
library, package, calls = sys.argv[1:]
torch.ops.load_library(library)
for name, given in torch.load(calls).items():
    run = torch._inductor.package.load_package(package, name)
    said = run.get_metadata()
    for inputs, wanted in given:
        for i, state in enumerate(inputs[1:]):
            assert said[f"state_{i}"] == ",".join(map(str, state.shape[1:])), said
        for found, want in zip(run(*inputs), wanted, strict=True):
            assert found.shape == want.shape, (name, found.shape, want.shape)
            assert (found - want).abs().max() <= 4e-6 * want.abs().max(), (name, inputs[0].shape)
    for again, found in zip(run(*(t.mT.contiguous().mT for t in inputs)), run(*inputs), strict=True):
        assert torch.equal(again, found), "what does not lie in one piece is read as if it did"
    x, *state = inputs
    narrower = x[(slice(None), *(slice(-1),) * (x.dim() - 1))]  # and shorter, whichever axis is which
    for wrong in ([x.double(), *state], [narrower, *state], [torch.cat((x, x)), *state] if state else [x[0]]):
        try:
            run(*wrong)
        except RuntimeError:
            continue
        raise AssertionError("arguments that do not fit are taken")
assert not any(module.startswith("sequence_kernels") for module in sys.modules)
print("agreed")
"""


class Own(SequenceModule):
    """A user's, around torch's network instead of ours."""

    d_model = d_output = WIDTH

    def __init__(self) -> None:
        super().__init__()
        self.rnn = torch.nn.GRU(WIDTH, WIDTH, batch_first=True)

    def default_state(self, *batch_shape: int, device: Any = None) -> Any:
        return torch.zeros(*batch_shape, WIDTH, device=device)


def check_in_a_fresh_process(module: SequenceModule, path: Path, step: bool = False) -> None:
    frozen = module.eval().freeze()
    calls: dict[str, list[Any]] = {"model": []} | ({"step": []} if step else {})
    for batch, length in ((1, 1), (3, 40), (2, 101)):
        x = torch.randn(batch, length, WIDTH)
        x = x.mT.contiguous() if module.channels_first else x
        state = frozen(x, frozen.default_state(batch))[1] if module.causal else None
        y, after = frozen(x, state)
        calls["model"].append(((x, *tensors_of(state)), (y, *tensors_of(after))))
        if step:
            element = torch.randn(batch, WIDTH)
            y, after = frozen.step(element, state)
            calls["step"].append(((element, *tensors_of(state)), (y, *tensors_of(after))))
    torch.save(calls, path.with_suffix(".calls"))
    command = [sys.executable, "-c", RUN, str(LIBRARY), str(path), str(path.with_suffix(".calls"))]
    done = subprocess.run(command, capture_output=True, text=True, cwd=path.parent, check=False)
    assert done.stdout == "agreed\n", done.stderr[-2000:]


@pytest.mark.parametrize(
    ("layers", "step"),
    [
        (["s4d"], False),
        pytest.param(["s4", "lru", "conv", "ff"], True, marks=pytest.mark.thorough),
        pytest.param(["s5", "dss", "mamba", "s6"], True, marks=pytest.mark.thorough),
        pytest.param([{"_name_": "mamba2", "headdim": 4}], True, marks=pytest.mark.thorough),
        pytest.param([{"_name_": "gru", "n_layers": 2}, "lstm"], True, marks=pytest.mark.thorough),
    ],
)
def test_a_model_in_a_fresh_python(layers: list[Any], step: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = SequenceModel(WIDTH, layer=layers, residual="R", norm="layer")
    export.package(module, tmp_path / "model.pt2", step=step)
    check_in_a_fresh_process(module, tmp_path / "model.pt2", step)


@pytest.mark.thorough
def test_a_stepper(tmp_path: Path) -> None:
    module = S4D(WIDTH, 4, transposed=False).eval()
    module.stepper((2,), rate=0.5).export(tmp_path / "stream.pt2")
    check_in_a_fresh_process(module.freeze(0.5), tmp_path / "stream.pt2", step=True)


def test_steppers_that_cannot_be_exported(tmp_path: Path) -> None:
    module = S4D(WIDTH, 4)
    for stepper in (module.stepper(dtype=torch.float64), module.stepper(state_dtype=torch.float64)):
        with pytest.raises(ValueError, match="in the precision of the module"):
            stepper.export(tmp_path / "stream.pt2")


@pytest.mark.thorough
def test_one_that_looks_both_ways(tmp_path: Path) -> None:
    module = S4D(WIDTH, 4, bidirectional=True)
    export.package(module, tmp_path / "model.pt2")
    check_in_a_fresh_process(module, tmp_path / "model.pt2")


def test_what_cannot_be_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"^rnn, a torch\.nn\.GRU, cannot be compiled for every length"):
        export.package(Own(), tmp_path / "model.pt2")
    with pytest.raises(ValueError, match="not causal cannot be stepped"):
        export.package(S4D(WIDTH, 4, bidirectional=True), tmp_path / "model.pt2", step=True)
    missing = types.SimpleNamespace(unavailable=lambda name: "it was not built")
    monkeypatch.setattr("sequence_kernels.export.native.native", missing)
    with pytest.raises(RuntimeError, match="needs the compiled library: it was not built"):
        export.package(S4D(WIDTH, 4), tmp_path / "model.pt2")


@pytest.mark.thorough
@pytest.mark.skipif(shutil.which("cmake") is None, reason="needs cmake (Debian's package of that name)")
def test_a_cpp_program_cleans_a_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    audio = loaded("streaming_audio")
    module = audio.Denoiser().eval()
    torch.nn.init.normal_(module.decoder.weight, std=0.1)  # zero at first, as if there were no model
    export.package(module, tmp_path / "model.pt2")
    build = tmp_path / "build"
    prefix = f"-DCMAKE_PREFIX_PATH={torch.utils.cmake_prefix_path}"
    subprocess.run(
        ["cmake", "-S", ROOT / "examples/cpp_stream", "-B", build, prefix], check=True, stdout=subprocess.PIPE
    )
    subprocess.run(["cmake", "--build", build], check=True, stdout=subprocess.PIPE)

    noisy = (torch.rand(2005) * 20000 - 10000).to(torch.int16)
    with wave.open(str(tmp_path / "noisy.wav"), "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        file.writeframes(noisy.numpy().tobytes())
    files = [str(tmp_path / name) for name in ("noisy.wav", "cleaned.wav")]
    command = [str(build / "clean_wav"), str(tmp_path / "model.pt2"), str(LIBRARY), *files]
    said = subprocess.run(command, capture_output=True, text=True, check=True, env={}).stdout
    assert said == "2005 samples in blocks of 160\n"

    x, state, parts = noisy.float().view(1, -1, 1) / 32768, module.freeze().default_state(1), []
    frozen = module.freeze()
    for block in x.split(160, 1):
        y, state = frozen(block, state)
        parts.append(y.flatten())
    want = torch.cat(parts).detach().double()
    with wave.open(files[1]) as file:
        got = torch.frombuffer(bytearray(file.readframes(2005)), dtype=torch.int16)
    assert (want - x.flatten()).abs().max() > 0.03
    low, high = (
        ((want + d).clamp(-1, 1) * 32767).trunc() for d in (-1e-6, 1e-6)
    )  # as the program cuts them off
    assert ((low <= got) & (got <= high)).all()
