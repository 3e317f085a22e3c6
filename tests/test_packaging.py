"""The wheel: its tag and contents, with a C++ compiler and without one."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="the native library is built on Linux"
)


def source_tree(tmp_path: Path, *folders: str) -> Path:
    """A copy of what a build reads, with these folders."""
    source = tmp_path / "a source tree"
    source.mkdir()
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    ignored = shutil.ignore_patterns("_native_*", "__pycache__")
    for name in folders:
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    return source


def build(tmp_path: Path, *what: str, path: str) -> tuple[Path, str]:
    """Run setup.py on a copy of the sources; return what it made and what it said."""
    source, made = source_tree(tmp_path, "csrc", "sequence_kernels", "tools"), tmp_path / "dist"
    environment = {**os.environ, "PATH": path}
    environment.pop("CXX", None)
    command = [sys.executable, "setup.py", "-q", *what, "--dist-dir", str(made)]
    result = subprocess.run(command, cwd=source, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    (file,) = made.iterdir()
    return file, result.stderr


@pytest.mark.thorough  # minutes; .ci/run builds the default wheel, of which tools/check_wheel.py wants all this
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_a_wheel_with_the_library_serves_every_python(tmp_path: Path) -> None:
    wheel, _ = build(tmp_path, "bdist_wheel", path=os.environ["PATH"])
    assert wheel.name.startswith("sequence_kernels-0.1.0-py3-none-linux_")
    names = zipfile.ZipFile(wheel).namelist()
    assert "sequence_kernels/_native_cpu.so" in names
    assert "sequence_kernels/py.typed" in names
    with zipfile.ZipFile(wheel) as archive:
        library = archive.read("sequence_kernels/_native_cpu.so")
        facts = json.loads(archive.read("sequence_kernels/_native_cpu.json"))
    assert facts["size"] == len(library)
    assert facts["sha256"] == hashlib.sha256(library).hexdigest()
    assert not [name for name in names if name.startswith(("csrc", "tests", "bench"))]


def test_without_a_compiler_the_wheel_is_pure_and_says_so(tmp_path: Path) -> None:
    empty = tmp_path / "bin"
    empty.mkdir()
    wheel, said = build(tmp_path, "bdist_wheel", path=str(empty))
    assert "no C++ compiler found" in said
    assert wheel.name == "sequence_kernels-0.1.0-py3-none-any.whl"
    names = zipfile.ZipFile(wheel).namelist()
    assert "sequence_kernels/py.typed" in names
    assert {name.split("/")[0] for name in names} == {"sequence_kernels", "sequence_kernels-0.1.0.dist-info"}
    assert not [name for name in names if name.endswith(".so")]
    described = zipfile.ZipFile(wheel).read("sequence_kernels-0.1.0.dist-info/METADATA").decode()
    assert "Description-Content-Type: text/markdown" in described
    assert "`docs/parity.md` lists" in described
    assert set(re.findall(r"\]\(([^)]+)\)", described)) == set()  # on an index a relative link leads nowhere

    # It runs, on torch alone, and can say why.
    installed = tmp_path / "installed"
    zipfile.ZipFile(wheel).extractall(installed)
    program = (
        "import torch, sequence_kernels as sk\n"
        "v, x = torch.ones(3, dtype=torch.complex64), -torch.ones(3, dtype=torch.complex64)\n"
        "print(sk.ops.vandermonde(v, x, 2).tolist())\n"
        "try: sk.ops.vandermonde(v, x, 2, backend='cpu')\n"
        "except sk.BackendUnavailableError as error: print(error)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    ran = subprocess.run(
        [sys.executable, "-c", program],
        cwd=installed,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    first, second = ran.stdout.splitlines()
    assert first.startswith("[6.0, 2.2")
    assert "was not built" in second
    assert "pip install" in second


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_a_wheel_compiles_nothing_that_is_compiled(tmp_path: Path) -> None:
    source = source_tree(tmp_path, "csrc/runtime", "tools")
    (source / "sequence_kernels").mkdir()
    for unneeded in (source / "csrc/runtime").glob("*.cpp"):
        unneeded.unlink()
    (source / "csrc/runtime/one.cpp").write_text('extern "C" int one() { return 1; }\n')

    def objects_after(*python: str) -> dict[Path, int]:
        subprocess.run([sys.executable, *python], cwd=source, check=True, capture_output=True)
        return {path: path.stat().st_mtime_ns for path in (source / "build").rglob("*.o")}

    compiled = objects_after("setup.py", "-q", "build_ext", "--inplace")
    assert [path.name for path in compiled] == ["one.o"]
    wheel = "import sys; sys.path.insert(0, 'tools'); import make_wheel; make_wheel.build(None, '+cpu', None)"
    assert objects_after("-c", wheel) == compiled
    assert list((source / "build").glob("wheel+cpu/*.whl"))


def test_the_source_distribution_holds_the_kernels(tmp_path: Path) -> None:
    archive, _ = build(tmp_path, "sdist", path=os.environ["PATH"])
    unpacked = tmp_path / "unpacked"
    shutil.unpack_archive(archive, unpacked)
    (root,) = unpacked.iterdir()
    for name in (
        "setup.py",
        "csrc/runtime/torch_shim.h",
        "csrc/vandermonde/cpu.cpp",
        "sequence_kernels/native.py",
    ):
        assert (root / name).exists(), name
