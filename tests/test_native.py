"""The native library: declarations, loading, and what it links to."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from sequence_kernels import native
from tools.fingerprint import build_number

ROOT = Path(__file__).parent.parent
SHIM = ROOT / "csrc/runtime/torch_shim.h"
HEADERS = Path(torch.__file__).parent / "include"
LIBRARY = ROOT / "sequence_kernels/_native_cpu.so"

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The loader as at its first use, looking for libraries in an empty directory."""
    monkeypatch.setattr(native, "_reasons", {})
    monkeypatch.setattr(native, "_DIRECTORY", tmp_path)
    return tmp_path


def compile_against_torch(shim: str, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    """Compile the declarations after torch's own, as of 2.10, with a use of each function before ours are seen."""
    functions = re.findall(r"\b(?:aoti_)?torch_\w+(?=\()", shim)
    assert len(functions) > 15
    uses = "".join(f"auto* use_of_{name} = &{name};\n" for name in functions)
    source = tmp_path / "agree.cpp"
    source.write_text(f"#include <torch/csrc/stable/c/shim.h>\n{uses}\n{shim}")
    version = "-DTORCH_TARGET_VERSION=0x020a000000000000"
    command = ["g++", "-std=c++17", "-fsyntax-only", version, "-DUSE_CUDA", f"-I{HEADERS}", str(source)]
    return subprocess.run(command, capture_output=True, text=True)


@needs_compiler
def test_declarations_agree_with_torchs_headers(tmp_path: Path) -> None:
    result = compile_against_torch(SHIM.read_text(), tmp_path)
    assert result.returncode == 0, result.stderr


@needs_compiler
@pytest.mark.parametrize(
    ("ours", "wrong"),
    [
        (
            "aoti_torch_get_dim(AtenTensorHandle tensor, int64_t* dim)",
            "aoti_torch_get_dim(AtenTensorHandle tensor, int* dim)",
        ),
        ("int32_t aoti_torch_dtype_float32()", "int64_t aoti_torch_dtype_float32()"),
        ("torch_get_const_data_ptr", "torch_get_konst_data_ptr"),
        ("using StableIValue = uint64_t", "using StableIValue = int64_t"),
    ],
)
def test_a_wrong_declaration_is_found(ours: str, wrong: str, tmp_path: Path) -> None:
    shim = SHIM.read_text()
    assert ours in shim
    assert compile_against_torch(shim.replace(ours, wrong), tmp_path).returncode != 0


def test_the_harness_under_qemu_has_every_function_of_torch() -> None:
    """`make test` need not have qemu: what is asked of torch anew is missing there at run time only."""
    asked, given = (
        set(re.findall(r"\b((?:aoti_)?torch_\w+)\(", path.read_text()))
        for path in (SHIM, ROOT / "tests/aarch64/calls.cpp")
    )
    assert len(asked) > 20
    assert asked <= given


def test_importing_loads_nothing() -> None:
    """Neither the library nor torch's compiler, which takes as long as torch itself."""
    check = (
        "import sys, torch; by_torch = 'torch._dynamo' in sys.modules; import sequence_kernels; "
        "print('_native_cpu' in open('/proc/self/maps').read(), 'torch._dynamo' in sys.modules and not by_torch)"
    )
    result = subprocess.run(
        [sys.executable, "-c", check], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert result.stdout.split() == ["False", "False"]


@needs_compiler
def test_the_library_is_built_and_loads() -> None:
    assert native.unavailable("cpu") is None
    assert torch.ops.sequence_kernels_native.limit_instruction_set(3) in (0, 1, 2, 3)


def test_a_missing_library_says_what_to_do(fresh: Path) -> None:
    reason = native.unavailable("cpu")
    assert reason is not None
    assert "_native_cpu.so was not built" in reason
    assert "`pip install" in reason


def install(folder: Path, name: str, library: bytes, facts: dict[str, Any]) -> None:
    """A library and what was written down of it when it was built."""
    (folder / f"_native_{name}.so").write_bytes(library)
    (folder / f"_native_{name}.json").write_text(json.dumps(facts))


def facts_of(library: bytes) -> dict[str, Any]:
    return {"size": len(library), "sha256": hashlib.sha256(library).hexdigest()}


def test_a_broken_library_gives_the_loaders_reason(fresh: Path) -> None:
    install(fresh, "cpu", b"not a library", facts_of(b"not a library"))
    reason = native.unavailable("cpu")
    assert reason is not None
    assert "does not load" in reason
    assert "invalid ELF header" in reason or "file too short" in reason


def damaged(library: bytes) -> dict[str, bytes]:
    """Copies of which some kill the process that opens them."""
    middle = len(library) // 2
    return {
        "cut off": library[:1_000_000],
        "empty": b"",
        "flipped": library[:middle]
        + bytes(b ^ 0xFF for b in library[middle : middle + 64])
        + library[middle + 64 :],
        "another header": bytes(4096) + library[4096:],
    }


@needs_compiler
def test_a_damaged_library_costs_speed_alone(tmp_path: Path) -> None:
    """One warning, then plain torch serves, and the doctor's reason says what happened.

    Each in a process of its own, which what opens such a library may end; torch is imported once for all.
    """
    library = LIBRARY.read_bytes()
    copies = damaged(library)
    for name, content in copies.items():
        (folder := tmp_path / name).mkdir()
        install(folder, "cpu", content, facts_of(library))
    program = (
        "import os, pathlib, sys, torch, warnings\n"
        "from sequence_kernels import S4D, doctor, native, ops\n"
        "for folder in sys.argv[1:]:\n"
        "    if process := os.fork():\n"
        "        _, status = os.waitpid(process, 0)\n"
        "        assert status == 0, folder\n"
        "        continue\n"
        "    native._DIRECTORY = pathlib.Path(folder)\n"
        "    with warnings.catch_warnings(record=True) as caught:\n"
        "        warnings.simplefilter('always')\n"
        "        y = S4D(4, 4)(torch.randn(2, 4, 30))[0]\n"
        "        y.sum().backward()\n"
        "        ops.vandermonde(torch.ones(3), -torch.ones(3), 4)\n"
        "    assert y.isfinite().all()\n"
        "    print(len(caught), caught[0].message)\n"
        "    versions, libraries = doctor.versions(), doctor.libraries()\n"
        "    report = {'versions': versions, 'devices': [], 'libraries': libraries, 'proofs': [], 'self_test': {}}\n"
        "    print(doctor.broken(report), flush=True)\n"
        "    os._exit(0)\n"
    )
    command = [sys.executable, "-c", program, *(str(tmp_path / name) for name in copies)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"
    said = done.stdout.splitlines()
    assert len(said) == 2 * len(copies)
    for warned, broken in zip(said[::2], said[1::2], strict=True):
        assert warned.startswith("1 sequence_kernels computes with plain torch, which is slower: ")
        assert "_native_cpu.so is damaged" in warned
        assert "`pip install" in warned
        assert "the cpu library: the compiled library _native_cpu.so is damaged" in broken


def test_a_library_of_other_sources_is_not_opened(
    fresh: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """What comes from it is otherwise wrong without a word: compiled callers rely on how its results lie."""
    tree = tmp_path_factory.mktemp("tree")
    (package := tree / "sequence_kernels").mkdir()
    (tree / "setup.py").touch()
    shutil.copytree(ROOT / "tools", tree / "tools")
    source = tree / "csrc/runtime/one.cpp"
    source.parent.mkdir(parents=True)
    source.write_text("first")
    monkeypatch.setattr(native, "_DIRECTORY", package)
    opened: list[Path] = []
    monkeypatch.setattr(torch.ops, "load_library", opened.append)
    install(package, "cpu", b"a library", facts_of(b"a library") | {"build": build_number(tree / "csrc")})
    assert native.unavailable("cpu") is None
    native._reasons.clear()
    source.write_text("second")
    assert "was built from other sources than those in csrc; run `pip install" in str(
        native.unavailable("cpu")
    )
    assert len(opened) == 1


@needs_compiler
def test_the_library_has_the_number_of_its_sources() -> None:
    assert native.build() == build_number(ROOT / "csrc")


@needs_compiler
def test_what_a_package_is_given_is_looked_at() -> None:
    assert native.unavailable("cpu") is None
    received, build = torch.ops.sequence_kernels_native.received, native.build()
    x, like = torch.randn(2, 7, 4), torch.empty(0, 0, 4)
    for given in (x, torch.randn(2, 4, 7).mT, torch.randn(2, 1, 4).expand(2, 7, 4)):
        copied = received(given, like, x, build)
        assert copied.is_contiguous()
        assert copied.data_ptr() != given.data_ptr()
        assert torch.equal(copied, given)
    assert received(x.bfloat16().mT, like.bfloat16().mT, x, build).equal(x.bfloat16().mT)
    with pytest.raises(
        RuntimeError, match=r"made with another build of _native_cpu\.so, 7, than this one, \d+: make"
    ):
        received(x, like, x, 7)
    with pytest.raises(RuntimeError, match="must have the dtype"):
        received(x.double(), like, x, build)
    for wrong in (x[:1], x[..., :3], x[:, :0], x[0], x.sum()):
        with pytest.raises(
            RuntimeError, match=r"expected \(any, any, 4\), as many sequences as x has, got \("
        ):
            received(wrong, like, x, build)


@pytest.mark.parametrize("name", native.LIBRARIES)
@pytest.mark.parametrize("facts", [None, "", "{}", "[]", '{"size": 13}', '{"size": 12, "sha256": ""}'])
def test_what_cannot_be_checked_is_not_opened(
    fresh: Path, monkeypatch: pytest.MonkeyPatch, name: str, facts: str | None
) -> None:
    monkeypatch.setattr(native, "_no_cuda", lambda: None)
    monkeypatch.setattr(torch.ops, "load_library", lambda path: pytest.fail(f"{path} was opened"))
    native._reasons["cpu"] = None
    native._reasons.pop(name, None)
    (fresh / f"_native_{name}.so").write_bytes(b"not a library")
    if facts is not None:
        (fresh / f"_native_{name}.json").write_text(facts)
    assert f"_native_{name}" in str(native.unavailable(name))


@pytest.mark.skipif(torch.version.cuda is not None, reason="needs a torch without CUDA")
def test_without_cuda_the_cuda_library_is_not_tried(fresh: Path) -> None:
    assert "has no CUDA" in str(native.unavailable("cuda"))


def test_the_cuda_library_needs_a_driver_and_the_cpu_s(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_driver(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(native.ctypes, "CDLL", no_driver)
    reason = str(native.unavailable("cuda"))
    assert "there is no NVIDIA driver (libcuda.so.1: cannot open" in reason
    assert "; install one" in reason

    native._reasons.clear()
    monkeypatch.setattr(native.ctypes, "CDLL", lambda name: None)
    assert "_native_cpu.so was not built" in str(native.unavailable("cuda"))

    native._reasons.clear()
    native._reasons["cpu"] = None
    reason = str(native.unavailable("cuda"))
    assert "_native_cuda.so was not built" in reason
    assert "`SEQUENCE_KERNELS_CUDA=13.0 pip install" in reason


def test_an_unknown_library_is_refused() -> None:
    with pytest.raises(ValueError, match="name must be one of"):
        native.unavailable("gpu")


def test_threads_load_once(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loads = []

    def slow(name: str) -> None:
        loads.append(name)
        time.sleep(0.05)

    monkeypatch.setattr(native, "_try_to_load", slow)
    threads = [threading.Thread(target=native.unavailable, args=("cpu",)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert loads == ["cpu"]


@needs_compiler
def test_the_library_needs_torch_and_no_python() -> None:
    dynamic = subprocess.check_output(["readelf", "-d", str(LIBRARY)], text=True)
    needed = re.findall(r"NEEDED.*\[(.*)\]", dynamic)
    assert "libtorch.so" in needed
    assert "RPATH" not in dynamic
    assert "RUNPATH" not in dynamic
    symbols = subprocess.check_output(["nm", "-D", "--undefined-only", str(LIBRARY)], text=True).split()
    assert not [name for name in symbols if name.startswith(("Py", "_Py"))]
    assert not [name for name in symbols if "c10" in name or "2at" in name]


@needs_compiler
def test_instruction_sets_share_no_code() -> None:
    """An inline function that two sets both define would be merged into one, with instructions not every CPU has."""
    builds = sorted(ROOT.glob("build/temp*/native"))
    if not builds:
        pytest.skip("built elsewhere: the object files are not here")
    objects = sorted(builds[-1].glob("*/cpu*.*.o"))
    owners: dict[str, list[str]] = {}
    for path in objects:
        listing = subprocess.check_output(["nm", "--defined-only", "--extern-only", str(path)], text=True)
        for line in listing.splitlines():
            owners.setdefault(line.split()[-1], []).append(str(path))
    assert owners
    assert {name: where for name, where in owners.items() if len(where) > 1} == {}
