"""The tools of wheels: what compiles CUDA (cuda_compiler.py, nvrtc.py), what seals a wheel and what looks into it."""

from __future__ import annotations

import base64
import hashlib
import json
import platform
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def compilers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """The module, on a machine without any CUDA compiler."""
    monkeypatch.syspath_prepend(ROOT / "tools")
    import cuda_compiler

    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(sys, "path", [str(tmp_path / "packages")])
    return cuda_compiler


def nvcc(folder: Path, version: str) -> None:
    """An nvcc that says it is of that version."""
    folder.mkdir(parents=True)
    path = folder / "nvcc"
    path.write_text(f"#!/bin/sh\necho 'Cuda compilation tools, release {version}, V{version}.7'\n")
    path.chmod(0o755)


def test_nothing_found_says_what_to_do(compilers: ModuleType) -> None:
    with pytest.raises(SystemExit, match=r"found none: set CUDA_HOME .*'nvidia-cuda-nvrtc-cu12==12.9"):
        compilers.find("12.9")
    with pytest.raises(SystemExit, match=r"'nvidia-cuda-nvcc==13.0.\*'"):
        compilers.find("13.0")


def test_the_first_compiler_of_the_wanted_version_is_taken(
    compilers: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvcc(tmp_path / "packages" / "nvidia" / "cu13" / "bin", "13.0")
    assert "packages" in compilers.find("13.0").command[0]
    nvcc(tmp_path / "bin", "13.0")
    assert compilers.find("13.0").command == [str(tmp_path / "bin" / "nvcc")]
    nvcc(tmp_path / "toolkit" / "bin", "13.0")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "toolkit"))
    assert compilers.find("13.0").command == [str(tmp_path / "toolkit" / "bin" / "nvcc")]
    assert compilers.find("13.0").name == "nvcc 13.0.7"


def test_a_toolkit_of_another_version_is_passed_over_and_named(
    compilers: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvcc(tmp_path / "toolkit" / "bin", "12.6")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "toolkit"))
    with pytest.raises(SystemExit, match=r"found nvcc 12.6.7 of CUDA 12.6"):
        compilers.find("13.0")
    nvcc(tmp_path / "bin", "13.0")
    assert compilers.find("13.0").command == [str(tmp_path / "bin" / "nvcc")]


def test_each_version_has_its_architectures(compilers: ModuleType) -> None:
    assert compilers.architectures_for("12.4") == ["75", "80", "86", "89", "90"]
    assert compilers.architectures_for("12.10") == compilers.architectures_for("13.0")
    assert compilers.architectures_for("13.0")[-1] == "120"
    with pytest.raises(SystemExit, match="older than what the kernels need"):
        compilers.architectures_for("11.8")


def test_dependencies_are_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "tools")
    import nvrtc

    source = ROOT / "csrc" / "vandermonde" / "cuda.cu"
    names = {path.name for path in nvrtc.included(source, [ROOT / "csrc"], set())}
    assert {"cuda.cu", "cuda.h", "kernel.cuh", "launch.h"} <= names


def test_a_library_changed_after_the_build_is_written_down_anew(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(ROOT / "tools")
    import make_wheel

    def record(data: bytes) -> str:
        return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")

    library, said = (
        b"a library, as auditwheel left it",
        b'{"compiler": "g++", "size": 1, "sha256": "of before"}',
    )
    folder, information = "sequence_kernels/_native_cpu", "sequence_kernels-0.1.0.dist-info/RECORD"
    lines = [
        f"{folder}.so,sha256={record(library)},{len(library)}",
        f"{folder}.json,sha256={record(said)},{len(said)}",
    ]
    wheel = tmp_path / "one.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(f"{folder}.so", library)
        archive.writestr(f"{folder}.json", said)
        archive.writestr(information, "\n".join([*lines, f"{information},,", ""]))
    with zipfile.ZipFile(make_wheel.sealed(wheel)) as archive:
        facts = archive.read(f"{folder}.json")
        assert json.loads(facts) == {
            "compiler": "g++",
            "size": len(library),
            "sha256": hashlib.sha256(library).hexdigest(),
        }
        assert archive.read(f"{folder}.so") == library
        assert archive.read(information).decode().splitlines() == [
            lines[0],
            f"{folder}.json,sha256={record(facts)},{len(facts)}",
            f"{information},,",
        ]


STREAM = "sequence_kernels/stream/lib/libsequence_stream.so"
WHOLE = {
    "sequence_kernels/_native_cpu.so": b"a library",
    "sequence_kernels/_native_cpu.json": json.dumps(
        {"compiler": "g++", "size": 9, "sha256": hashlib.sha256(b"a library").hexdigest()}
    ).encode(),
    "sequence_kernels/py.typed": b"",
    STREAM: b"another library",
    "sequence_kernels/stream/include/sequence_stream.h": b"",
    "sequence_kernels/native.py": b"",
    "sequence_kernels-0.1.0.dist-info/RECORD": b"",
}
NAME = "sequence_kernels-0.1.0-py3-none-manylinux_2_28_x86_64.whl"


@pytest.mark.parametrize(
    ("name", "changes", "fault"),
    [
        (NAME, {}, None),
        (NAME.replace("0.1.0", "0.1.0+cu130"), {}, None),
        (NAME.replace("py3-none", "cp312-cp312"), {}, "is not a manylinux wheel for every Python 3"),
        (NAME.replace("manylinux_2_28", "linux"), {}, "is not a manylinux wheel for every Python 3"),
        (NAME, {"sequence_kernels/py.typed": None}, "it lacks py.typed"),
        (NAME, {"sequence_kernels/_native_cpu.so": None}, "it lacks _native_cpu.so"),
        (NAME, {STREAM: None}, "it lacks stream/lib/lib"),
        (NAME, {"sequence_kernels/stream/include/sequence_stream.h": None}, "it lacks stream/include/"),
        (NAME, {"sequence_kernels/_native_cpu.json": None}, "it lacks _native_cpu.json"),
        (NAME, {"sequence_kernels/_native_cpu.so": b"a librory"}, "does not tell the size and hash"),
        (NAME, {"sequence_kernels/_native_cuda.so": b""}, "has no sequence_kernels/_native_cuda.json"),
        (NAME.replace("2_28", "2_26"), {STREAM: b"\x7fELF" + bytes(14) + b"\x3e\x00"}, None),
        (NAME, {STREAM: b"\x7fELF" + bytes(14) + b"\xb7\x00"}, "libsequence_stream.so is not for x86_64"),
        (NAME, {"csrc/runtime/library.h": b""}, "it holds csrc/runtime/library.h"),
        (NAME, {"tests/__init__.py": b""}, "it holds tests/__init__.py"),
        (NAME, {"bench/__init__.py": b""}, "it holds bench/__init__.py"),
    ],
)
def test_what_is_wrong_with_a_wheel_is_said(
    name: str,
    changes: dict[str, bytes | None],
    fault: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(ROOT / "tools")
    import check_wheel

    with zipfile.ZipFile(tmp_path / name, "w") as archive:
        for file, data in {**WHOLE, **changes}.items():
            if data is not None:
                archive.writestr(file, data)
    found = check_wheel.faults(tmp_path / name)
    assert not found if fault is None else len(found) == 1 and fault in found[0]


def test_a_wheel_is_for_the_machine_that_the_compiler_compiles_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(ROOT / "tools")
    import make_wheel

    compiler = tmp_path / "g++"
    monkeypatch.setenv("CXX", str(compiler))
    for triple, foreign in ((f"{platform.machine()}-linux-gnu", None), ("sparc64-linux-gnu", "sparc64")):
        compiler.write_text(f"#!/bin/sh\necho {triple}\n")
        compiler.chmod(0o755)
        assert make_wheel.foreign_machine() == foreign
    monkeypatch.setattr(sys, "argv", ["make_wheel.py", "--cuda", "13.0", "--output", str(tmp_path)])
    with pytest.raises(SystemExit):
        make_wheel.main()


def test_a_compiler_that_was_asked_for_and_is_not_there_ends_the_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(ROOT / "tools")
    import cpp_compiler

    monkeypatch.setenv("CXX", f"{tmp_path}/no-g++ -O1")
    with pytest.raises(SystemExit, match=r"CXX=.*no-g\+\+ -O1 is no command that is installed"):
        cpp_compiler.find()


def test_a_wheel_with_a_fault_fails_the_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "tools")
    import check_wheel

    monkeypatch.setattr(check_wheel, "check", lambda *given: "it runs")
    for content, status in ((WHOLE, 0), ({**WHOLE, "tests/__init__.py": b""}, 1)):
        with zipfile.ZipFile(tmp_path / NAME, "w") as archive:
            for file, data in content.items():
                archive.writestr(file, data)
        monkeypatch.setattr(sys, "argv", ["check_wheel.py", str(tmp_path / NAME)])
        assert check_wheel.main() == status
