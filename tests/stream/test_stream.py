"""Saved steps: the C library gives the bits of the steppers that they were saved from."""

from __future__ import annotations

import re
import struct
import subprocess
import zlib
from collections.abc import Iterator
from ctypes import byref, c_void_p
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sequence_kernels import S4D, MambaLM, SequenceModel, stream, use_backend

from ..test_law import WIDTH, Factory
from ..test_stepper import every, model, native
from . import library as c
from .library import FailedError, Model

pytestmark = native


def rounded(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The weights of linear maps, and of what makes rows of tokens, rounded."""
    with torch.no_grad():
        for part in module.modules():
            if type(part).__name__.endswith("Linear") or isinstance(part, nn.Embedding):
                part.weight.copy_(part.weight.to(dtype))
    return module


def bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(torch.int32)


@every
def test_the_bits_of_the_stepper(make: Factory, tmp_path: Path) -> None:
    """Steps of all streams, of some, blocks, and the state, of every layer; or the reason why a layer has none."""
    module, path = make(), tmp_path / "model.skp"
    stepper, alone = module.stepper((3,)), module.stepper()
    if stepper._program is None:
        with pytest.raises(ValueError, match=r"only a step that the C\+\+ interpreter runs .* does not know"):
            stepper.save(path)
        assert not path.exists()
        return
    stepper.save(path)
    served = Model(path, 3)
    assert [served.size(which) for which in range(6)] == [
        *(WIDTH, module.d_output, 3, 4 * stepper._program.state_size, 0, -1)
    ]
    torch.manual_seed(1)
    for _ in range(12):
        x, some = torch.randn(3, WIDTH), torch.randperm(3)[:2]
        some[0] = some[0] if torch.rand(()) < 0.5 else -1
        assert torch.equal(bits(served.step(x)), bits(stepper.step(x)))
        y = stepper.step(x[:2], state_indices=some)
        assert torch.equal(bits(served.step(x[:2].contiguous(), some)), bits(y))
    want = stepper._flat
    assert want is not None
    for i in range(3):
        assert served.state(i) == bytes(want[i].view(torch.uint8).tolist())

    x = torch.randn(30, WIDTH)
    steps = torch.stack([alone.step(row) for row in x])
    served.reset(1)
    pieces = [
        served.block(x[:7].contiguous(), 1),
        served.block(x[7:7], 1),
        served.block(x[7:20].contiguous(), 1),
    ]
    served.set_state(served.state(1), 2)
    pieces += [served.step(x[t : t + 1], torch.tensor([2])) for t in range(20, 30)]
    assert torch.equal(bits(torch.cat(pieces)), bits(steps))


#: Of all exported layers and models in all their configurations, those that the interpreter does not run, and what it
#: lacks: activations with parameters, norms over something else than the channels, states that grow, elements that give
#: no output at once.
UNSERVED = {
    "S4-bottleneck": "the stage Called",  # modrelu
    "S4-everything": "the stage Pointwise",  # a layer norm of each channel's heads
    "Mamba2-every-option": "the stage Pointwise",  # a part of the channels goes around the recurrence
    "SequenceModel-s4-postnorm": "the stage Pointwise",  # batch norm
    "batch-norm-highway": "the stage Pointwise",
    "affine": "the stage Join",
    "SequenceModel-attention": "the step of a MultiHeadedAttention",
    "MultiHeadedAttention-default": "the step of a MultiHeadedAttention",
    "DownAvgPool-default": "the step of a DownAvgPool",
    "DownLinearPool-default": "the step of a DownLinearPool",
    "DownSample-default": "the step of a DownSample",
    "UpSample-default": "the step of a UpSample",
    "SequenceResidualBlock-pool": "the step of a DownAvgPool",
    "SequenceDecoder-last": "the step of a SequenceDecoder",
    "SequenceDecoder-pool": "the step of a SequenceDecoder",
    "SequenceDecoder-sum": "the step of a SequenceDecoder",
}


def test_what_is_served() -> None:
    """Every exported layer and model but for those of the table, which say why."""
    steppers = {case.id: case.values[0]().stepper() for case in every.args[1]}  # type: ignore[operator]
    reasons = {name: stepper._unserved for name, stepper in steppers.items() if stepper._program is None}
    assert reasons == {name: f"the interpreter does not know {what}" for name, what in UNSERVED.items()}


@pytest.fixture
def limited(instruction_set: int) -> Iterator[int]:
    assert c.call("limit_instruction_set", instruction_set) == instruction_set
    yield instruction_set
    c.call("limit_instruction_set", 2)


@pytest.mark.parametrize("width", [1, 65, 130])
def test_instruction_sets_widths_and_rows(limited: int, width: int, tmp_path: Path) -> None:
    layers = [
        {"_name_": "s4d", "d_state": 34, "channels": 2},
        "ff",
        {"_name_": "s4", "d_state": 4, "rank": 2},
    ]
    module = SequenceModel(width, layer=layers, residual="R", norm="layer").eval()
    for rows in (1, 2, 9, 17, 33):
        stepper, path = module.stepper((rows,)), tmp_path / "model.skp"
        stepper.save(path)
        served = Model(path, rows)
        for x in torch.randn(3, rows, width):
            assert torch.equal(bits(served.step(x)), bits(stepper.step(x)))


@pytest.mark.parametrize("make", [model, lambda: S4D(WIDTH, 8).eval()])
def test_computing_in_float64(make: Any, tmp_path: Path) -> None:
    """Rows in float32, all between in float64; linear maps take no more room for it."""
    module = make()
    module.stepper().save(tmp_path / "narrow.skp")
    stepper = module.stepper(state_dtype=torch.float64)
    stepper.save(tmp_path / "wide.skp")
    served = Model(tmp_path / "wide.skp")
    for x in torch.randn(20, WIDTH):
        assert torch.equal(bits(served.step(x[None])[0]), bits(stepper.step(x)))
    assert served.state() == bytes(stepper._flat.view(torch.uint8).flatten().tolist())
    sizes = [(tmp_path / f"{name}.skp").stat().st_size for name in ("narrow", "wide")]
    assert sizes[0] < sizes[1] < 1.5 * sizes[0]


@pytest.mark.parametrize("state_dtype", [None, torch.float64])
def test_bfloat16_weights(state_dtype: torch.dtype | None, tmp_path: Path) -> None:
    """Linear maps rounded and in half the room, nothing else."""
    module = SequenceModel(64, layer=["s4d", "ff"], residual="R", norm="layer").eval()
    stepper = module.stepper(state_dtype=state_dtype)
    stepper.save(tmp_path / "whole.skp")
    stepper.save(tmp_path / "half.skp", weights="bfloat16")
    whole, half = ((tmp_path / f"{name}.skp").stat().st_size for name in ("whole", "half"))
    assert whole - half == 2 * sum(at.end - at.begin for at in stepper._program.panels) > 0
    served = Model(tmp_path / "half.skp")
    stepper = rounded(module, torch.bfloat16).stepper(state_dtype=state_dtype)
    for x in torch.randn(20, 64):
        assert torch.equal(bits(served.step(x[None])[0]), bits(stepper.step(x)))
    with pytest.raises(ValueError, match="weights must be one of float32, bfloat16, got 'int4'"):
        stepper.save(tmp_path / "other.skp", weights="int4")


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("layer", ["mamba", "mamba2"])
@pytest.mark.parametrize("weights", ["float32", "bfloat16"])
def test_tokens(layer: str, tied: bool, weights: str, tmp_path: Path) -> None:
    """A language model takes tokens; one matrix serves both of its ends if they are tied."""
    options = {"headdim": 8} if layer == "mamba2" else {}
    lm = MambaLM(70, 16, 2, layer, tie_embeddings=tied, d_state=4, **options).eval()
    path = tmp_path / "lm.skp"
    lm.stepper((2,)).save(path, weights=weights)
    stepper = (rounded(lm, torch.bfloat16) if weights == "bfloat16" else lm).stepper((2,))
    served = Model(path, 2)
    assert (served.size(c.INPUTS), served.size(c.OUTPUTS), served.size(c.VOCABULARY)) == (16, 72, 72)
    for _ in range(5):
        tokens = torch.randint(72, (2,))
        assert torch.equal(bits(served.step_tokens(tokens)), bits(stepper.step(tokens)))
    y = served.step_tokens(torch.tensor([99, 71]), torch.tensor([-1, 0]))  # of an idle row it is not read
    want = stepper.step(torch.tensor([0, 71]), state_indices=torch.tensor([-1, 0]))
    assert torch.equal(bits(y), bits(want))
    for tokens in ([0, 72], [-1, 0]):
        with pytest.raises(FailedError, match=str(c.ARGUMENT)):
            served.step_tokens(torch.tensor(tokens))
    numbers = struct.unpack("<q", path.read_bytes()[64:72])[0]
    assert numbers == stepper._program.packed.numel() + (0 if tied else 128 * 16)


def test_steps_that_cannot_be_saved_say_why(tmp_path: Path) -> None:
    def refuses(stepper: Any, match: str) -> None:
        with pytest.raises(ValueError, match=match):
            stepper.save(tmp_path / "model.skp")

    refuses(model().stepper(dtype=torch.float64), "dtype=torch.float32 .*got dtype torch.float64")
    refuses(model(norm="batch").stepper(), "does not know the stage Pointwise")
    with use_backend("torch"):
        refuses(model().stepper(), "on cpu its backend is 'torch'")
    stale = (module := model()).stepper()
    with torch.no_grad():
        next(module.parameters()).add_(1)
    with pytest.raises(RuntimeError, match="refresh"):
        stale.save(tmp_path / "model.skp")
    assert not list(tmp_path.iterdir())


# --- files that are not as they should be -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("saved") / "model.skp"
    MambaLM(8, 4, 1, "mamba", d_state=2).eval().stepper().save(path)
    return path.read_bytes()


def sealed(data: bytes) -> bytes:
    """With its checksum set right."""
    return data[:12] + struct.pack("<I", zlib.crc32(data[16:])) + data[16:]


def status(data: bytes) -> int:
    try:
        Model(data)
    except FailedError as failed:
        return int(failed.args[0])
    return c.OK


def test_every_cut_and_every_flipped_byte_is_found(saved: bytes) -> None:
    assert status(saved) == c.OK
    assert status(b"not a program at all") == c.NOT_A_PROGRAM
    assert status(saved + b"\0") == c.CUT_OFF
    for size in [*range(1, 400), *range(400, len(saved), 37)]:
        assert status(saved[:size]) == c.CUT_OFF
    for at in [*range(400), *range(400, len(saved), 37)]:
        damaged = bytearray(saved)
        damaged[at] ^= 0x10
        kind = (
            c.NOT_A_PROGRAM
            if at < 8
            else c.OTHER_VERSION
            if at < 12
            else c.CUT_OFF
            if 16 <= at < 24
            else c.DAMAGED
        )
        assert status(bytes(damaged)) == kind, at


HEADER = {
    "number_bytes": (24, "<I"),
    "runs": (28, "<I"),
    "inputs": (32, "<q"),
    "outputs": (40, "<q"),
    "state": (48, "<q"),
    "instructions": (56, "<q"),
    "weights": (64, "<q"),
    "vocabulary": (72, "<q"),
    "embedding": (80, "<q"),
    "first code": (88, "<q"),
    "second weights": (88 + (15 + 13) * 8, "<q"),
}


@pytest.mark.parametrize("name", HEADER)
def test_a_program_that_does_not_fit_is_refused(saved: bytes, name: str) -> None:
    """Every size too large or too small by one, negative or huge, with a checksum that is right."""
    at, form = HEADER[name]
    (value,) = struct.unpack_from(form, saved, at)
    least, most = (0, 2**32 - 1) if form == "<I" else (-(2**63), 2**63 - 1)
    wrong = {value + 1, value - 1, least, most, -1, most // 2, 1 << 20, 1 << 30} - {value}
    if name == "first code":
        wrong = {-1, 11, 12, 14, 15, 16, 17, 18, 1 << 40}  # 11 on but 13: of what is kept, and nothing is
    if name == "second weights":
        wrong = {len(saved), most}
    if name in ("vocabulary", "embedding"):  # smaller ones fit
        wrong = {other for other in wrong if other < 0 or other > value + 64}
    for other in wrong:
        if least <= other <= most:
            data = bytearray(saved)
            struct.pack_into(form, data, at, other)
            assert status(sealed(bytes(data))) == c.INVALID, (name, other)


def test_files(tmp_path: Path, saved: bytes) -> None:
    def opened(path: Path) -> int:
        handle = c_void_p(1)
        status = c.call("open", str(path).encode(), 1, byref(handle))
        assert not handle.value or status == c.OK
        c.library().sequence_stream_close(handle)
        return status

    (tmp_path / "empty").touch()
    (tmp_path / "short").write_bytes(saved[:-1])
    (tmp_path / "long").write_bytes(saved + b"\0")
    (tmp_path / "whole").write_bytes(saved)
    (tmp_path / "text").write_text(
        "A file of another kind, which is longer than the header of a saved program is. " * 3
    )
    assert opened(tmp_path / "whole") == c.OK
    assert opened(tmp_path / "missing") == c.UNREADABLE
    assert opened(tmp_path) == c.UNREADABLE
    assert opened(tmp_path / "empty") == c.NOT_A_PROGRAM
    assert opened(tmp_path / "text") == c.NOT_A_PROGRAM
    assert opened(tmp_path / "short") == opened(tmp_path / "long") == c.CUT_OFF


def test_arguments_are_checked_and_nothing_changes(saved: bytes) -> None:
    served = Model(saved, 2)
    x, y, handle = torch.randn(3, 4), torch.full((3, 8), 7.0), served.handle
    served.step(x[:2].contiguous())
    before = served.state(0), served.state(1)
    at, to = x.data_ptr(), y.data_ptr()
    wrong_streams = torch.tensor([0, 2])
    state = bytes(served.size(c.STATE_BYTES))
    for name, *arguments in (
        ("step", None, 1, None, at, to),
        ("step", handle, -1, None, at, to),
        ("step", handle, 3, None, at, to),
        ("step", handle, 1, None, None, to),
        ("step", handle, 1, None, at, None),
        ("step", handle, 2, wrong_streams.data_ptr(), at, to),
        ("step", handle, 2, (wrong_streams - 2).data_ptr(), at, to),
        ("step_tokens", handle, 1, None, None, to),
        ("block", None, 0, 1, at, to),
        ("block", handle, 2, 1, at, to),
        ("block", handle, -1, 1, at, to),
        ("block", handle, 0, -1, at, to),
        ("block", handle, 0, 1, None, to),
        ("reset", None, 0),
        ("reset", handle, 2),
        ("reset", handle, -2),
        ("read_state", handle, 2, state, len(state)),
        ("read_state", handle, 0, state, len(state) - 1),
        ("read_state", handle, 0, None, len(state)),
        ("write_state", handle, -1, state, len(state)),
        ("write_state", handle, 0, state, len(state) + 1),
        ("open", None, 1, byref(c_void_p())),
        ("open", b"model.skp", 1, None),
        ("open_bytes", None, 1, 1, byref(c_void_p())),
        ("open_bytes", saved, len(saved), 0, byref(c_void_p())),
    ):
        assert c.call(name, *arguments) == c.ARGUMENT, (name, arguments)
    assert c.call("open_bytes", saved, len(saved), 1 << 62, byref(c_void_p())) == c.NO_MEMORY
    assert before == (served.state(0), served.state(1))
    assert bool((y == 7).all())
    assert c.call("step", handle, 0, None, None, None) == c.OK
    assert c.call("size", None, c.INPUTS) == -1
    c.library().sequence_stream_close(None)
    served.reset()
    assert served.state(0) == served.state(1) == bytes(len(state))


def test_a_library_that_was_not_built_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(stream, "_DIRECTORY", tmp_path)
    for where in (stream.library, stream.include):
        with pytest.raises(FileNotFoundError, match=r"was not built when .*`pip install"):
            where()


def test_errors_have_texts() -> None:
    texts = [c.library().sequence_stream_text(status).decode() for status in range(-1, 10)]
    assert texts[0] == texts[-1] == "unknown error"
    assert len({*texts}) == 10


# --- the library itself -----------------------------------------------------------------------------------------


def test_it_needs_libc_and_libm_alone_and_is_small() -> None:
    path = stream.library()
    dynamic = subprocess.check_output(["readelf", "-d", str(path)], text=True)
    assert set(re.findall(r"NEEDED.*\[(.*)\]", dynamic)) == {"libc.so.6", "libm.so.6"}
    assert "PATH" not in dynamic
    assert path.stat().st_size < 300_000
    exported = subprocess.check_output(["nm", "-D", "--defined-only", str(path)], text=True).split()[2::3]
    declared = re.findall(r"\b(sequence_stream_\w+)\(", (stream.include() / "sequence_stream.h").read_text())
    assert set(exported) == set(declared)
    versions = re.findall(r"GLIBC_(\d+)\.(\d+)", subprocess.check_output(["nm", "-D", str(path)], text=True))
    assert max((int(major), int(minor)) for major, minor in versions) <= (2, 28)
