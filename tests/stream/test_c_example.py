"""examples/c_stream: a WAV file cleaned by a C program, and what it says of files that it cannot take."""

from __future__ import annotations

import contextlib
import io
import shlex
import shutil
import subprocess
import sys
import wave
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.harness.stream import measured
from sequence_kernels import __main__

from ..examples.loading import loaded
from ..test_stepper import native

ROOT = Path(__file__).parents[2]
COMPILER = shutil.which("cc")
pytestmark = [native, pytest.mark.skipif(COMPILER is None, reason="needs a C compiler")]
pytest.importorskip("espeakng_loader")
pytest.importorskip("matplotlib")
pytest.importorskip("tqdm")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compiled as its comment says, without a warning."""
    with contextlib.redirect_stdout(io.StringIO()) as said, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["sequence_kernels", "stream", "--cflags", "--libs"])
        assert __main__.main() == 0
    flags = shlex.split(said.getvalue())
    path = tmp_path_factory.mktemp("example") / "clean"
    strict = ["-std=c99", "-O2", "-Wall", "-Wextra", "-Wpedantic", "-Werror"]
    source = ROOT / "examples/c_stream/clean.c"
    subprocess.run([str(COMPILER), *strict, str(source), *flags, "-o", str(path)], check=True)
    return path


@pytest.fixture(scope="module")
def audio() -> Any:
    return loaded("streaming_audio")


def test_a_file_is_cleaned_as_in_python(program: Path, audio: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = audio.Denoiser().eval()
    torch.nn.init.normal_(model.decoder.weight, std=0.1)  # zero at first, as if there were no model
    stepper = model.stepper()
    stepper.save(tmp_path / "denoiser.skp")
    audio.write_wav(tmp_path / "noisy.wav", audio.Sound(0.5 * torch.randn(2000).clamp(-1, 1), 16000))

    command = [str(program), *(str(tmp_path / name) for name in ("denoiser.skp", "noisy.wav", "cleaned.wav"))]
    said = subprocess.run(command, capture_output=True, text=True, check=True, env={}).stdout
    assert said.startswith("2000 samples in blocks of 160; opened in ")

    with wave.open(str(tmp_path / "noisy.wav")) as file:
        noisy = audio.pcm(file.readframes(2000), 1)
    want = torch.stack([stepper.step(x.view(1)) for x in noisy]).view(-1)
    with wave.open(str(tmp_path / "cleaned.wav")) as file:
        assert (file.getframerate(), file.getnframes()) == (16000, 2000)
        got = torch.frombuffer(bytearray(file.readframes(2000)), dtype=torch.int16)
    assert (want - noisy).abs().max() > 0.1
    assert torch.equal(got, (want.clamp(-1, 1) * 32767).short())


def test_a_step_costs_less_than_python_s_call_and_opening_little(audio: Any) -> None:
    ratio, opening = measured(audio.Denoiser().eval().stepper())
    assert ratio < 1  # a seventh: docs/decisions.md
    assert opening < 0.010


def test_what_it_says_of_other_files(program: Path, tmp_path: Path) -> None:
    (tmp_path / "text.skp").write_text("no program")
    for name, why in (
        ("missing.skp", "the file cannot be read"),
        ("text.skp", "the file is no saved program (.skp)"),
    ):
        command = [str(program), str(tmp_path / name), "noisy.wav", "cleaned.wav"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
        assert (done.returncode, done.stderr) == (1, f"{tmp_path / name}: {why}\n")
